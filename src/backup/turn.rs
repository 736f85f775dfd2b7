//! One backup of a cluster at a time in a repository, on whatever hosts they are started.
//!
//! A backup that runs is an id without a root that a claim of purpose `backup` holds. A backup looks for others before it reserves its id, and again
//! when it has its own claim: so of two that begin at one time at least one sees the other, and gives way. Nothing of a backup depends on it: two
//! that ran at once, because a host stood still or a claim was ended by hand, would both be whole.

use std::time::{Duration, Instant};

use super::stored;
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::process;
use crate::repo::catalog;
use crate::repo::claim::{BACKUP_RENEWAL_SECONDS, LEFT_SECONDS};
use crate::repo::clock::MAY_DIFFER;
use crate::repo::event::{self, Event, Recorded, live_claims};
use crate::repo::id::BackupId;
use crate::repo::scope::Scope;
use crate::store::Store;

/// A claim that was not renewed for so long is that of a backup that was killed.
const SILENT: Duration = Duration::from_secs(3 * BACKUP_RENEWAL_SECONDS);
/// How often a waiting backup looks.
const LOOKS_AGAIN: Duration = Duration::from_secs(1);
/// How long two that began at one time wait at most, each for a time of its own, before they try again.
const STANDS_BACK_MS: (u64, u64) = (200, 3000);

/// Another backup of the cluster that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub id: BackupId,
    pub host: String,
    /// When it began.
    pub since: TimestampTz,
    /// When it counts for killed if it gives no sign of life.
    pub until: TimestampTz,
}

/// This process, as far as others are judged from here.
struct Here<'a> {
    now: TimestampTz,
    host: String,
    has_ended: &'a dyn Fn(u32) -> bool,
}

impl<'a> Here<'a> {
    fn at(now: TimestampTz, has_ended: &'a dyn Fn(u32) -> bool) -> Here<'a> {
        Here {
            now,
            host: event::host(),
            has_ended,
        }
    }

    /// The backup that these events of an id without a root tell of, where it runs.
    fn running(&self, id: &BackupId, events: &[Recorded]) -> Option<Running> {
        let claims = live_claims(events, self.now);
        let own = claims
            .into_iter()
            .filter(|c| c.event.purpose.as_deref() == Some("backup"));
        let last_sign = own.map(|c| c.since(self.now)).max()?;
        let until = last_sign.saturating_add(SILENT);
        let begin = events.iter().find(|e| e.name == "begin")?;
        let was_killed = self.has_writer_ended(&begin.event);
        (until > self.now && !was_killed).then(|| Running {
            id: id.clone(),
            host: begin.event.host.clone(),
            since: begin.since(self.now),
            until,
        })
    }

    /// Whether the writer was a process of this host, and has ended. Its number may have come again, which its name tells.
    fn has_writer_ended(&self, begin: &Event) -> bool {
        let by_name = || {
            begin
                .process
                .as_deref()
                .is_some_and(process::has_named_ended)
        };
        begin.host == self.host && (begin.pid.is_some_and(|pid| (self.has_ended)(pid)) || by_name())
    }

    fn is_over(&self, id: &BackupId, events: &[Recorded]) -> bool {
        let Some(begin) = events.iter().find(|e| e.name == "begin") else {
            return false;
        };
        let is_own = |e: &&Recorded| e.event.purpose.as_deref() == Some("backup");
        let standing = event::standing(events, "claim", "release");
        let was_released = events.iter().any(|e| is_own(&e)) && !standing.iter().any(is_own);
        let has_ended = self.has_writer_ended(&begin.event);
        self.running(id, events).is_none() && (begin.event.resumable || was_released || has_ended)
    }
}

/// Whether a process of this host has ended; this one does not count.
fn has_ended(pid: u32) -> bool {
    pid == std::process::id() || process::has_ended(pid)
}

/// Whether the backup of an id without a root runs, as far as its events and the processes of this host tell.
pub fn is_running(id: &BackupId, events: &[Recorded], now: TimestampTz) -> bool {
    let here = Here::at(now, &process::has_ended);
    here.running(id, events).is_some()
}

/// Whether the writer of an id without a root is over, and deletes nothing that it stored any more.
///
/// A writer that may only have stood still gives what others claimed no more away, as its `begin` says. An older program takes everything back when it
/// wakes up. So of that one it must be proven that it has ended.
pub fn is_over(id: &BackupId, events: &[Recorded], now: TimestampTz) -> bool {
    Here::at(now, &has_ended).is_over(id, events)
}

/// Waits until no other backup of the scope runs, for at most `limit`; whether it waited. `tick` is called meanwhile.
///
/// # Errors
/// `Locked` naming the other one; `Interrupted`; those of `tick`; what the store says.
pub fn wait(
    (store, scope): (&dyn Store, &Scope),
    limit: Duration,
    host: &Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<bool> {
    let begun = Instant::now();
    let mut is_said = false;
    while let Some(other) = other((store, scope), None, host)? {
        if begun.elapsed() >= limit {
            return Err(refused(&other, scope, limit));
        }
        if !is_said {
            is_said = true;
            host.progress.note(&format!(
                "backup \"{}\" of cluster \"{}\" runs on host \"{}\": waiting for its end",
                other.id,
                scope.name(),
                other.host
            ));
        }
        host.check_stop()?;
        tick()?;
        std::thread::sleep(LOOKS_AGAIN);
    }
    Ok(is_said)
}

fn refused(other: &Running, scope: &Scope, waited: Duration) -> Error {
    let Running {
        id,
        host,
        since,
        until,
    } = other;
    let hint = format!(
        "Nothing was stored. Without a sign of life it counts for killed at {until}; if you know that it was, end its claim: pitr repo claims --release {id} --confirm\nWait for its end: pitr backup --wait 1h"
    );
    let still = match waited.is_zero() {
        true => "runs",
        false => "still runs",
    };
    err!(
        Locked,
        "backup \"{id}\" of cluster \"{}\" {still} on host \"{host}\" since {since}",
        scope.name()
    )
    .hint(hint)
}

/// Returns whether no other backup runs, now that `own` is claimed. If one does, the caller takes its claim back,
/// stands back, and waits anew.
///
/// # Errors
/// Errors of the store.
pub fn is_alone(store: &dyn Store, scope: &Scope, own: &BackupId, host: &Host) -> Result<bool> {
    Ok(other((store, scope), Some(own), host)?.is_none())
}

/// Waits for a time that no other backup waits.
pub fn stand_back(host: &Host) {
    let (least, most) = STANDS_BACK_MS;
    let own = host.random() % (most - least);
    std::thread::sleep(Duration::from_millis(least + own));
}

/// Finds a running backup of the scope.
///
/// # Errors
/// Errors of the store.
pub fn running(store: &dyn Store, scope: &Scope, host: &Host) -> Result<Option<Running>> {
    other((store, scope), None, host)
}

/// A running backup of the scope beside `own`.
fn other(
    (store, scope): (&dyn Store, &Scope),
    own: Option<&BackupId>,
    host: &Host,
) -> Result<Option<Running>> {
    let here = Here::at(host.now(), &has_ended);
    for id in unfinished((store, scope), here.now)? {
        if Some(&id) == own {
            continue;
        }
        let events = match event::read_all(store, scope, &id.to_string()) {
            // "pitr verify" names it, and it stops no backup.
            Err(e) if e.is_damage() => continue,
            events => events?,
        };
        if let Some(running) = here.running(&id, &events) {
            return Ok(Some(running));
        }
    }
    Ok(None)
}

/// Ids that were reserved and have no root. Those that are older than the newest committed backup are left out, but for what clocks may differ.
///
/// None of these runs, for the two would have run at once. So few events are read. [`left_for`] tells what they left.
///
/// # Errors
/// Errors of the store.
pub fn unfinished(place: (&dyn Store, &Scope), now: TimestampTz) -> Result<Vec<BackupId>> {
    without_root(place, now, false)
}

/// Ids without a root from which the backup `own` may go on.
///
/// An incremental hardly has a page of a full backup, and would read all of it back first. So it leaves that to the next full one, for which only newer
/// full backups count: incrementals that were committed since have taken nothing over.
///
/// # Errors
/// Errors of the store.
pub fn left_for(
    own: &BackupId,
    place: (&dyn Store, &Scope),
    now: TimestampTz,
) -> Result<Vec<BackupId>> {
    let takes_full = !own.is_incremental();
    let mut left = without_root(place, now, takes_full)?;
    left.retain(|id| id != own && (takes_full || id.is_incremental()));
    Ok(left)
}

/// Ids that were reserved and have no root, back to the newest committed backup; where `fulls_apart`, full ones back to the newest committed full one.
fn without_root(
    (store, scope): (&dyn Store, &Scope),
    now: TimestampTz,
    fulls_apart: bool,
) -> Result<Vec<BackupId>> {
    // Events before roots: a backup that commits meanwhile is then seen as running or as committed.
    let listed = store.list(&scope.events())?;
    let mut begun: Vec<BackupId> = listed.iter().filter_map(|l| l.name.parse().ok()).collect();
    let mut with_more = catalog::ids(store, scope)?;
    with_more.retain(|id| begun.contains(id));
    with_more.sort_unstable();
    let day = now.saturating_sub(Duration::from_secs(LEFT_SECONDS));
    let is_recent = |id: &&BackupId| id.time() >= Some(day) && !with_more.contains(*id);
    let recent: Vec<BackupId> = begun.iter().filter(is_recent).cloned().collect();
    let mut floors = Floors::default();
    let mut committed = Vec::new();
    for id in with_more.into_iter().rev() {
        if floors.is_below(&id, fulls_apart) {
            continue;
        }
        if stored::length(store, &scope.manifest(&id))?.is_none() {
            continue;
        }
        // One of the future says nothing of what is older.
        let known = |t: &TimestampTz| *t <= now.saturating_add(MAY_DIFFER);
        let begun = id.time().filter(known);
        let floor = begun.map(|t| t.saturating_sub(2 * MAY_DIFFER));
        let hides = recent.iter().any(|one| one.time() < floor);
        if !hides || !is_copy((store, scope), &id)? {
            floors.raise(&id, floor);
        }
        committed.push(id);
    }
    begun.retain(|id| !floors.is_below(id, fulls_apart) && !committed.contains(id));
    Ok(begun)
}

/// Whether `pitr repo sync` brought a backup here: its reservation is dated well before the store received it. Nothing ran beside a copy.
fn is_copy((store, scope): (&dyn Store, &Scope), id: &BackupId) -> Result<bool> {
    let is_late = |begin: Recorded| begin.stored > begin.event.time.saturating_add(MAY_DIFFER);
    match event::read_one(store, scope, &id.to_string(), "begin") {
        Err(e) if e.is_damage() => Ok(false),
        begin => Ok(begin?.is_some_and(is_late)),
    }
}

/// The times of the newest committed backups, less what clocks may differ.
#[derive(Default)]
struct Floors {
    of_all: Option<TimestampTz>,
    of_fulls: Option<TimestampTz>,
}

impl Floors {
    /// Counts a committed backup; newer ones come first.
    fn raise(&mut self, id: &BackupId, time: Option<TimestampTz>) {
        self.of_all = self.of_all.or(time);
        if !id.is_incremental() {
            self.of_fulls = self.of_fulls.or(time);
        }
    }

    fn is_below(&self, id: &BackupId, fulls_apart: bool) -> bool {
        let floor = match fulls_apart && !id.is_incremental() {
            true => self.of_fulls,
            false => self.of_all,
        };
        floor.is_some_and(|floor| id.time() < Some(floor))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::repo::event::Event;
    use crate::store::file::FileStore;

    pub(in crate::backup) const ID: &str = "20261120T064049Z-482913-full";

    pub(in crate::backup) fn at(seconds: u64) -> TimestampTz {
        let begun: TimestampTz = "2026-11-20T06:40:49Z".parse().unwrap();
        begun.saturating_add(Duration::from_secs(seconds))
    }

    /// An event of the backup, so many seconds after its begin.
    pub(in crate::backup) fn recorded(name: &str, seconds: u64, event: Event) -> Recorded {
        Recorded {
            name: name.into(),
            event: Event {
                subject: ID.into(),
                time: at(seconds),
                ..event
            },
            stored: at(seconds),
            is_doubted: false,
        }
    }

    fn event(name: &str, kind: &str, seconds: u64, ends: Option<&str>) -> Recorded {
        let event = Event {
            event: kind.into(),
            host: "one".into(),
            ends: ends.map(str::to_owned),
            pid: (kind == "begin").then_some(77),
            purpose: (kind == "claim").then(|| "backup".to_owned()),
            seconds: (kind == "claim").then_some(3 * 3600),
            ..Event::default()
        };
        recorded(name, seconds, event)
    }

    /// An empty repository, and the time in it.
    #[allow(
        clippy::disallowed_methods,
        reason = "the store's times are those of this clock"
    )]
    fn repository() -> (tempfile::TempDir, FileStore, Scope, TimestampTz) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path(), 1).unwrap();
        let scope = Scope::cluster("main", 7).unwrap();
        let now = TimestampTz::from_system_time(std::time::SystemTime::now());
        (directory, store, scope, now)
    }

    fn id_at(time: TimestampTz, kind: &str) -> String {
        format!("{}Z-{kind}", &event::compact(time)[..15])
    }

    /// When it counts for killed, as seen `seconds` after its begin.
    fn seen(events: &[Recorded], host: &str, has_ended: bool, seconds: u64) -> Option<TimestampTz> {
        let here = Here {
            now: at(seconds),
            host: host.to_owned(),
            has_ended: &|pid| {
                assert_eq!(pid, 77);
                has_ended
            },
        };
        let running = here.running(&ID.parse().unwrap(), events)?;
        assert_eq!((running.host.as_str(), running.since), ("one", at(0)));
        Some(running.until)
    }

    #[test]
    fn a_backup_runs_while_its_claim_is_renewed_and_its_process_is_there() {
        let mut events = vec![event("begin", "begin", 0, None)];
        // Its writer looks for others when it has its claim.
        assert_eq!(seen(&events, "two", false, 1), None);
        events.push(event("a", "claim", 0, None));
        assert_eq!(seen(&events, "two", true, 1), Some(at(1800)));
        assert_eq!(seen(&events, "one", false, 1), Some(at(1800)));
        assert_eq!(seen(&events, "one", true, 1), None, "killed on this host");
        assert_eq!(seen(&events, "two", true, 1799), Some(at(1800)));
        assert_eq!(seen(&events, "two", true, 1800), None, "silent");
        events.push(event("b", "claim", 600, Some("a")));
        assert_eq!(seen(&events, "two", true, 1800), Some(at(2400)));
        events.push(event("c", "release", 700, Some("b")));
        assert_eq!(seen(&events, "two", true, 701), None);
        // Others hold it for other purposes.
        let mut synced = event("d", "claim", 700, None);
        synced.event.purpose = Some("sync".into());
        events.push(synced);
        assert_eq!(seen(&events, "two", true, 701), None);
    }

    #[test]
    fn b62_a_killed_writer_whose_number_came_again_has_ended() {
        let own = process::own_name().unwrap();
        let (place, tick) = own.rsplit_once(' ').unwrap();
        let before = format!("{place} {}", tick.parse::<u64>().unwrap() - 1);
        let named = |name: &str| {
            let mut begin = event("begin", "begin", 0, None);
            begin.event.process = Some(name.to_owned());
            [begin, event("a", "claim", 0, None)]
        };
        // The process of this number is there.
        assert_eq!(seen(&named(&own), "one", false, 1), Some(at(1800)));
        assert_eq!(seen(&named(&before), "one", false, 1), None);
        // Another host, which may have the same namespaces by name, tells nothing.
        assert_eq!(seen(&named(&before), "two", false, 1), Some(at(1800)));
    }

    /// Ids older than the newest committed backup are not looked at, but for what clocks may differ.
    #[test]
    fn another_backup_is_found_beside_the_newest_committed_one() {
        let (_directory, store, scope, now) = repository();
        let host = Host::still(now, 5);
        let stamp = |minutes: u64| {
            id_at(
                now.saturating_sub(Duration::from_secs(60 * minutes)),
                "full",
            )
        };
        let claimed = |id: &str| {
            let mut events = [
                event("begin", "begin", 0, None),
                event("x", "claim", 0, None),
            ];
            for one in &mut events {
                (one.event.subject, one.event.time) = (id.to_owned(), now);
            }
            event::begin(&store, &scope, &events[0].event).unwrap();
            event::record(&store, &scope, &events[1].event, 9).unwrap();
        };
        let found = |own: Option<&str>| {
            let own = own.map(|id| id.parse().unwrap());
            let other = other((&store, &scope), own.as_ref(), &host).unwrap();
            other.map(|running| running.id.to_string())
        };
        let commit = |id: &str| {
            let key = scope.manifest(&id.parse().unwrap());
            crate::store::put(&store, &key, b"its root").unwrap();
        };
        let (old, new) = (stamp(60), stamp(10));
        claimed(&old);
        assert_eq!(found(None), Some(old.clone()));
        assert_eq!(found(Some(&old)), None);
        claimed(&new);
        assert_eq!(found(Some(&old)), Some(new.clone()));
        let refused = wait((&store, &scope), Duration::ZERO, &host, &mut || Ok(()));
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), crate::error::Code::Locked);
        assert!(refused.to_string().contains("on host \"one\""), "{refused}");
        commit(&new);
        assert_eq!(found(None), None);
        assert!(is_alone(&store, &scope, &old.parse().unwrap(), &host).unwrap());
        // Begun before that, by a clock that was behind.
        let late = stamp(25);
        claimed(&late);
        assert_eq!(found(None), Some(late.clone()));
        // A clock that was an hour ahead hides nothing.
        let ahead = id_at(now.saturating_add(Duration::from_secs(3600)), "full");
        claimed(&ahead);
        commit(&ahead);
        assert_eq!(found(None), Some(late));
    }

    /// The packs of an interrupted full backup wait for the next full one: incrementals in between neither read it nor end it.
    #[test]
    fn b39_a_full_backup_that_was_killed_is_left_to_the_next_full_one() {
        let (_directory, store, scope, now) = repository();
        let id = |minutes: u64, kind: &str| -> BackupId {
            let time = now.saturating_sub(Duration::from_secs(60 * minutes));
            id_at(time, kind).parse().unwrap()
        };
        let begin = |id: &BackupId| {
            let mut begin = event("begin", "begin", 0, None).event;
            (begin.subject, begin.time) = (id.to_string(), now);
            event::begin(&store, &scope, &begin).unwrap();
        };
        let commit = |id: &BackupId| {
            begin(id);
            crate::store::put(&store, &scope.manifest(id), b"its root").unwrap();
        };
        let left = |kind: &str| {
            let mut left = left_for(&id(0, kind), (&store, &scope), now).unwrap();
            left.sort_unstable();
            left
        };
        let killed = [id(300, "full"), id(240, "full"), id(230, "incr")];
        killed.iter().for_each(begin);
        // Its next one went on from what was older.
        commit(&id(270, "full"));
        commit(&id(120, "incr"));
        let young = id(30, "incr");
        begin(&young);
        assert_eq!(left("incr"), std::slice::from_ref(&young));
        assert_eq!(left("full"), [killed[1].clone(), young.clone()]);
        // Who looks for a backup that runs looks no further back than before.
        let all = unfinished((&store, &scope), now).unwrap();
        assert_eq!(all, std::slice::from_ref(&young));
        // The new one's own id is none of them.
        begin(&id(0, "full"));
        assert_eq!(left("full"), [killed[1].clone(), young.clone()]);
        commit(&id(60, "full"));
        assert_eq!(left("full"), [young]);
    }

    /// A backup of another repository, which a sync brought here, has nothing to do with those that were taken here.
    #[test]
    fn b54_a_copied_backup_hides_neither_a_killed_one_nor_one_that_runs() {
        let (_directory, store, scope, now) = repository();
        let id = |minutes: u64| -> (BackupId, TimestampTz) {
            let time = now.saturating_sub(Duration::from_secs(60 * minutes));
            (id_at(time, "full").parse().unwrap(), time)
        };
        let begin = |id: &BackupId, time: TimestampTz| {
            let mut begin = event("begin", "begin", 0, None).event;
            (begin.subject, begin.time) = (id.to_string(), time);
            event::begin(&store, &scope, &begin).unwrap();
        };
        let commit = |id: &BackupId, time: TimestampTz| {
            begin(id, time);
            crate::store::put(&store, &scope.manifest(id), b"its root").unwrap();
        };
        let ((killed, _), (copied, its_time), (own, _)) = (id(120), id(60), id(50));
        begin(&killed, now);
        commit(&copied, its_time);
        let left = || left_for(&id(0).0, (&store, &scope), now).unwrap();
        assert_eq!(left(), std::slice::from_ref(&killed));
        let all = unfinished((&store, &scope), now).unwrap();
        assert_eq!(all, [killed]);
        // One that was taken here was stored as soon as it was dated.
        commit(&own, now);
        assert!(left().is_empty());
    }
}
