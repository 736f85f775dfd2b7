//! Drills: restores that were tried, as events tell them (format, section 9).
//!
//! The subject is of its own, as that of `checked` events is: an unknown event of a backup id keeps the backup for ever in older programs, and
//! an unknown subject concerns nobody there.
//!
//! An event tells names of phases, numbers and positions, and no text of a server or of an operator: events stay plain in encrypted
//! repositories. An event that does not count proves nothing: without the MAC key nobody can record a drill that passed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::catalog;
use super::event::{self, Recorded};
use super::id::BackupId;
use super::scope::Scope;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::store::Store;

/// The subject of these events.
pub const SUBJECT: &str = "drills";
/// The kind of event.
pub const DRILLED: &str = "drilled";
/// Drills that are read at most, newest first: one of each night for half a year.
const READ_MAX: usize = 200;
/// Events that are read at most: of junk, and of events that somebody without a key has written, there may be any number.
const NAMES_MAX: usize = 20_000;
/// Length of the time with which names of events and ids of backups begin, `20261120T064049`.
const STAMP: usize = 15;
/// Measurements that an estimate rests on.
const MEASURED: usize = 9;

/// A part of a drill. The order is that in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The plan, and whether there is room.
    Plan,
    /// The files of the backup.
    Copy,
    /// The server, until it replays.
    Start,
    /// The replay, until the target.
    Replay,
    /// The checkpoint after it, until the server takes writes.
    Checkpoint,
    /// The plan beside what the server did.
    Compare,
    /// Indexes and tables, by amcheck.
    Amcheck,
    /// The operator's own queries.
    Checks,
    /// Checksums of all pages.
    Pages,
}

impl Phase {
    /// The phase as events and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Plan => "plan",
            Phase::Copy => "copy",
            Phase::Start => "start",
            Phase::Replay => "replay",
            Phase::Checkpoint => "checkpoint",
            Phase::Compare => "compare",
            Phase::Amcheck => "amcheck",
            Phase::Checks => "checks",
            Phase::Pages => "pages",
        }
    }
}

/// The names of phases, in one line.
pub fn named(phases: &[Phase]) -> String {
    let names: Vec<&str> = phases.iter().map(|phase| phase.name()).collect();
    names.join(", ")
}

/// The duration of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    pub phase: Phase,
    /// How long it took.
    pub ms: u64,
    /// The bytes that it went through: files, or WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The result of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Drill {
    /// The backup that was restored; none where no plan led to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// The kind of target: `end`, `time`, `xid`, `lsn`, `name` or `immediate`.
    pub target: String,
    /// The seed of a random target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The position at which the server ended recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_lsn: Option<Lsn>,
    /// The moment that it was recovered to: that of the last commit, or of the backup's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_time: Option<TimestampTz>,
    /// The phase that showed that recovery is broken; none where the drill passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Phase>,
    /// The durations of its phases.
    pub phases: Vec<Timed>,
    pub checks_passed: u64,
    pub checks_failed: u64,
    /// Phases that checked nothing, or not everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<Phase>,
}

/// A drill as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// When it ended: the earlier of the writer's clock and the store's, so that no clock that is ahead keeps a drill young.
    pub time: TimestampTz,
    /// The host that it ran on.
    pub host: String,
    /// Its result.
    #[serde(flatten)]
    pub drill: Drill,
}

impl Held {
    /// Whether it proved recovery.
    pub fn is_passed(&self) -> bool {
        self.drill.failed.is_none()
    }

    /// How long it took until the server was recovered, checks left out.
    pub fn recovery_ms(&self) -> u64 {
        let phases = self.drill.phases.iter();
        let recovery = phases.filter(|timed| timed.phase <= Phase::Checkpoint);
        recovery.map(|timed| timed.ms).sum()
    }

    /// Whether every byte of the backup was read: a fast drill leaves the copy out.
    pub fn is_whole(&self) -> bool {
        !self.drill.not_checked.contains(&Phase::Copy)
    }

    /// The phase that found the backup itself, or its WAL, broken. A plan that leads nowhere tells of a gap, and the operator's queries may ask for
    /// what the moment did not have.
    fn broken_phase(&self) -> Option<Phase> {
        let failed = self.drill.failed;
        failed.filter(|phase| !matches!(phase, Phase::Plan | Phase::Checks))
    }

    /// Whether a later drill of the same backup refutes this one, which failed: it passed, and has checked that phase. A fast drill reads
    /// some of the content, and the next one other parts of it.
    fn is_refuted_by(&self, later: &Held) -> bool {
        let has_checked = |phase| !later.drill.not_checked.contains(&phase);
        later.is_passed()
            && self.broken_phase().is_none_or(has_checked)
            && (later.is_whole() || self.is_whole())
    }
}

/// The newest drills of a scope.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Drills {
    pub newest: Option<Held>,
    /// The newest one that passed.
    pub proven: Option<Held>,
    /// Backups that are there and from which recovery was found broken, each by the last such drill that no later one has refuted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<Held>,
    /// The newest that passed on this host, of which durations are learnt.
    #[serde(skip)]
    pub measured: Vec<Held>,
}

/// Reads the newest drills, as far as they count; `host` is that whose durations are wanted.
///
/// # Errors
/// Errors of the store. An event that cannot be read proves nothing.
pub fn newest(store: &dyn Store, scope: &Scope, host: &str) -> Result<Drills> {
    Ok(since(store, (scope, host), None)?.0)
}

/// As [`newest`], with the backups from which recovery is broken as far as is known.
///
/// # Errors
/// As [`newest`].
pub fn standing(store: &dyn Store, scope: &Scope, host: &str) -> Result<Drills> {
    let oldest = catalog::ids(store, scope)?.into_iter().min();
    let Some(oldest) = oldest else {
        return newest(store, scope, host);
    };
    let (mut found, all) = since(store, (scope, host), Some(&oldest.to_string()))?;
    for held in broken(all) {
        let id = held.drill.backup.as_ref();
        let root = id.map(|id| store.head(&scope.manifest(id))).transpose()?;
        // Nobody restores a backup that is gone.
        if root.flatten().is_some() {
            found.broken.push(held);
        }
    }
    Ok(found)
}

/// Reads drills until the newest are known, and on until those before the backup `oldest`, where one is given. Returns all that it has read, too.
fn since(
    store: &dyn Store,
    (scope, host): (&Scope, &str),
    oldest: Option<&str>,
) -> Result<(Drills, Vec<Held>)> {
    let (mut found, mut all) = (Drills::default(), Vec::new());
    for name in names(store, scope)?.iter().take(NAMES_MAX) {
        let is_known = found.proven.is_some() && found.measured.len() >= MEASURED;
        let concerns = oldest.is_some_and(|oldest| name.get(..STAMP) >= oldest.get(..STAMP));
        if all.len() >= READ_MAX || (is_known && !concerns) {
            break;
        }
        for held in read(store, scope, name)? {
            found.add(held.clone(), host);
            all.push(held);
        }
    }
    Ok((found, all))
}

/// The drills that found backups broken and that no later one has refuted, oldest first.
fn broken(mut all: Vec<Held>) -> Vec<Held> {
    // The store's clock may give several one second: then the order of their names counts.
    all.reverse();
    all.sort_by_key(|held| held.time);
    let mut broken: BTreeMap<BackupId, Held> = BTreeMap::new();
    for held in all {
        let Some(id) = held.drill.backup.clone() else {
            continue;
        };
        if held.broken_phase().is_some() {
            broken.insert(id, held);
        } else if broken.get(&id).is_some_and(|b| b.is_refuted_by(&held)) {
            broken.remove(&id);
        }
    }
    let mut broken: Vec<Held> = broken.into_values().collect();
    broken.sort_by_key(|held| held.time);
    broken
}

/// The backups that a drill proved, among the newest drills. The last drill of a backup decides. One in which only the operator's own queries
/// failed tells nothing: these may ask for what the moment did not have.
///
/// # Errors
/// Errors of the store. An event that cannot be read proves nothing.
pub fn proven_backups(store: &dyn Store, scope: &Scope) -> Result<BTreeSet<BackupId>> {
    let mut last: BTreeMap<BackupId, Held> = BTreeMap::new();
    let mut passed = 0;
    for name in names(store, scope)?.iter().take(NAMES_MAX) {
        // Neither drills that failed nor junk push the proof of a backup out of sight.
        if passed == READ_MAX {
            break;
        }
        for held in read(store, scope, name)? {
            passed += usize::from(held.is_passed());
            // A fast drill that passed has not read everything; one that failed tells something.
            let is_told = held.is_whole() || !held.is_passed();
            let tells = is_told && held.drill.failed != Some(Phase::Checks);
            let Some(id) = held.drill.backup.clone().filter(|_| tells) else {
                continue;
            };
            if last.get(&id).is_none_or(|other| other.time < held.time) {
                last.insert(id, held);
            }
        }
    }
    let passed = last.into_iter().filter(|(_, held)| held.is_passed());
    Ok(passed.map(|(id, _)| id).collect())
}

/// The names of the events, newest first.
fn names(store: &dyn Store, scope: &Scope) -> Result<Vec<String>> {
    let mut names = event::names(store, scope, SUBJECT, DRILLED)?;
    names.reverse();
    Ok(names)
}

/// Reads an event; one that is damaged or does not count gives none.
fn read(store: &dyn Store, scope: &Scope, name: &str) -> Result<Vec<Held>> {
    match event::read_some(store, scope, SUBJECT, &|n| n == name) {
        Err(e) if e.code() == Code::Damaged => Ok(Vec::new()),
        read => Ok(read?.into_iter().filter_map(held).collect()),
    }
}

impl Drills {
    fn add(&mut self, held: Held, host: &str) {
        let is_newer = |than: &Option<Held>| than.as_ref().is_none_or(|t| t.time < held.time);
        if held.is_passed() {
            if is_newer(&self.proven) {
                self.proven = Some(held.clone());
            }
            if held.is_whole() && held.host == host && self.measured.len() < MEASURED {
                self.measured.push(held.clone());
            }
        }
        if is_newer(&self.newest) {
            self.newest = Some(held);
        }
    }
}

fn held(recorded: Recorded) -> Option<Held> {
    let counts = recorded.counts() && recorded.event.event == DRILLED;
    let drill = recorded.event.drill.filter(|_| counts)?;
    Some(Held {
        time: recorded.event.time.min(recorded.stored),
        host: recorded.event.host,
        drill,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;
    use crate::repo::event::Event;
    use crate::store::file::FileStore;

    fn record((store, scope): (&FileStore, &Scope), time: &str, nonce: u64, drill: Drill) {
        let event = Event {
            event: DRILLED.into(),
            subject: SUBJECT.into(),
            time: time.parse().unwrap(),
            host: "here".into(),
            drill: Some(drill),
            ..Event::default()
        };
        event::record(store, scope, &event, nonce).unwrap();
    }

    fn to_end(failed: Option<Phase>) -> Drill {
        Drill {
            target: "end".into(),
            failed,
            ..Drill::default()
        }
    }

    fn ids() -> [BackupId; 3] {
        ["01", "02", "03"].map(|day| format!("202011{day}T060000Z-full").parse().unwrap())
    }

    #[test]
    fn the_newest_drill_and_the_newest_that_passed_are_told_apart() {
        let (_dir, store, scope) = crafted::scope();
        assert_eq!(newest(&store, &scope, "here").unwrap(), Drills::default());
        record((&store, &scope), "2020-11-20T06:00:00Z", 7, to_end(None));
        let failed = to_end(Some(Phase::Replay));
        record((&store, &scope), "2020-11-21T06:00:00Z", 7, failed);
        let drills = newest(&store, &scope, "here").unwrap();
        assert_eq!(drills.newest.unwrap().drill.failed, Some(Phase::Replay));
        let proven = drills.proven.unwrap();
        assert_eq!(proven.time, "2020-11-20T06:00:00Z".parse().unwrap());
        assert_eq!(drills.measured.len(), 1);
        assert!(newest(&store, &scope, "there").unwrap().measured.is_empty());
    }

    #[test]
    fn the_last_drill_of_a_backup_decides_and_own_queries_decide_nothing() {
        let (_dir, store, scope) = crafted::scope();
        let [a, b, c] = ids();
        let drilled = |id: &BackupId, day: u32, failed| {
            let drill = Drill {
                backup: Some(id.clone()),
                failed,
                ..Drill::default()
            };
            let time = format!("2020-11-{day}T06:00:00Z");
            record((&store, &scope), &time, 7, drill);
        };
        drilled(&a, 10, None);
        drilled(&b, 11, None);
        drilled(&b, 12, Some(Phase::Copy));
        drilled(&a, 13, Some(Phase::Checks));
        drilled(&c, 14, Some(Phase::Checks));
        let proven = || proven_backups(&store, &scope).unwrap();
        assert_eq!(proven(), BTreeSet::from([a.clone()]));
        drilled(&b, 15, None);
        assert_eq!(proven(), BTreeSet::from([a, b]));
    }

    #[test]
    fn a_failure_of_a_backup_stands_until_a_drill_of_it_has_checked_the_same() {
        let (_dir, store, scope) = crafted::scope();
        let [a, b, gone] = ids();
        for id in [&a, &b] {
            crate::store::put(&store, &scope.manifest(id), b"root").unwrap();
        }
        let fast = || vec![Phase::Copy, Phase::Amcheck, Phase::Pages];
        let nonce = std::cell::Cell::new(0);
        let drilled = |id: &BackupId, day: u32, failed, not_checked| {
            let drill = Drill {
                backup: Some(id.clone()),
                failed,
                not_checked,
                ..Drill::default()
            };
            nonce.set(nonce.get() + 1);
            let time = format!("2020-11-{day}T06:00:00Z");
            record((&store, &scope), &time, nonce.get(), drill);
        };
        let broken = || {
            let drills = standing(&store, &scope, "").unwrap();
            let ids = drills
                .broken
                .into_iter()
                .filter_map(|held| held.drill.backup);
            ids.collect::<Vec<_>>()
        };
        drilled(&b, 10, Some(Phase::Amcheck), vec![]);
        drilled(&gone, 10, Some(Phase::Copy), vec![]);
        // Neither another backup, nor a fast drill, nor a host without amcheck shows that it works.
        for day in 11..30 {
            drilled(&a, day, None, vec![]);
        }
        drilled(&b, 12, None, fast());
        drilled(&b, 13, None, vec![Phase::Amcheck]);
        assert_eq!(broken(), std::slice::from_ref(&b));
        drilled(&b, 14, None, vec![Phase::Pages]);
        assert!(broken().is_empty());
        // Replay is what a fast drill checks, unless content may have been in its way.
        drilled(&b, 15, Some(Phase::Replay), vec![]);
        drilled(&b, 16, None, fast());
        assert!(broken().is_empty());
        drilled(&b, 17, Some(Phase::Replay), fast());
        drilled(&b, 18, None, fast());
        drilled(&a, 30, Some(Phase::Checks), vec![]);
        drilled(&a, 30, Some(Phase::Plan), vec![]);
        assert_eq!(broken(), [b]);
    }

    #[test]
    fn neither_junk_nor_drills_that_failed_hide_a_proof() {
        let (dir, store, scope) = crafted::scope();
        let id: BackupId = "20201101T060000Z-full".parse().unwrap();
        let drilled = |minute: usize, drill: Drill| {
            let time = format!("2020-11-10T{:02}:{:02}:00Z", minute / 60, minute % 60);
            record((&store, &scope), &time, 7, drill);
        };
        let passed = Drill {
            backup: Some(id.clone()),
            ..Drill::default()
        };
        drilled(0, passed);
        for minute in 1..=READ_MAX + 5 {
            drilled(minute, to_end(Some(Phase::Amcheck)));
        }
        let folder = dir.path().join(scope.subject(SUBJECT));
        for n in 0..READ_MAX + 5 {
            let name = format!("29991231T000000.000000Z-{DRILLED}-{n:08x}");
            std::fs::write(folder.join(name), "junk").unwrap();
        }
        assert!(!names(&store, &scope).unwrap().is_empty());
        assert_eq!(
            proven_backups(&store, &scope).unwrap(),
            BTreeSet::from([id])
        );
    }

    #[test]
    fn a_clock_that_is_ahead_keeps_no_drill_young_and_a_damaged_event_proves_nothing() {
        let (dir, store, scope) = crafted::scope();
        record((&store, &scope), "2999-11-20T06:00:00Z", 7, to_end(None));
        let proven = newest(&store, &scope, "here").unwrap().proven.unwrap();
        assert!(proven.time < "2900-01-01T00:00:00Z".parse().unwrap());
        let folder = dir.path().join(scope.subject(SUBJECT));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, text.replace("\"target\"", "\"tarket\"")).unwrap();
        }
        assert_eq!(newest(&store, &scope, "here").unwrap(), Drills::default());
    }
}
