//! Counts of what the commands of this host have done: attempts, successes and failures of backups, and the last success of other commands.
//!
//! A repository knows what became of a backup that was committed, and nothing of those that failed. So each command adds its own result to a
//! file of the host. A command that was killed adds nothing: it is noted before it begins, and the next one that looks finds its process gone.
//! The file makes no command fail: what cannot be counted is warned about.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::human;
use super::of::Of;
use super::session::Session;
use super::tallies::Tallies;
use crate::behalf;
use crate::config::{Repository, Settings};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::lock;
use crate::pg::time::TimestampTz;
use crate::process::Identity;
use crate::repo::root::BackupKind;

/// The file, below `state_dir`.
const FILE: &str = "counters.json";
/// Its lock.
const LOCK: &str = "counters.lock";
/// How long another command may hold it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The variable that tells a command of a job of the agent so.
pub const JOB: &str = "PITR_JOB_NAME";
/// The reason of one that was killed.
pub const KILLED: &str = "killed";
/// The damage of the audit log that a check found, among what commands measured.
pub const AUDIT_DAMAGE: &str = "audit verify";
/// An anchor of the audit log, among successes.
pub const AUDIT_ANCHOR: &str = "audit anchor";
/// A check of the audit log in all repositories, among successes.
pub const AUDIT_VERIFY: &str = "audit verify";
/// An anchor of this host is that old at most: one is made each day.
pub const ANCHOR_DAYS: u64 = 3;
/// A check of the audit log by this host is that old at most: one is made each month.
pub const AUDIT_VERIFY_DAYS: u64 = 35;
/// Reading everything of an encrypted repository with a key of this host, among successes.
pub const KEY: &str = "key";
/// Upper bounds of the durations that are counted, in seconds.
pub const BOUNDS: [u32; 9] = [10, 60, 300, 900, 1_800, 3_600, 7_200, 14_400, 43_200];
/// Reasons of failures. They are few and fixed, so that each series stands at 0 before the first failure.
pub const REASONS: [&str; 9] = [
    "config",
    "server",
    "repository",
    "space",
    "locked",
    "refused",
    "damage",
    "interrupted",
    KILLED,
];

/// The series of one kind of backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label {
    /// The cluster, or the name of other content.
    pub cluster: String,
    /// `postgres`, `redis`, `files`, `config`, `git` or `logical`.
    pub component: String,
    /// `full` or `incr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The repository.
    pub repo: String,
}

/// The counts of one series.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All that ended, in whatever way.
    pub attempts: u64,
    /// Those that were committed.
    pub successes: u64,
    /// The others, by reason.
    #[serde(default)]
    pub failures: BTreeMap<String, u64>,
    /// The reason of the last end, where that was a failure of no job of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// The duration of the last success.
    #[serde(default)]
    pub last_ms: Option<u64>,
    /// That of the last failure, where a success has not followed. One that was killed has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed_ms: Option<u64>,
    /// How many successes took no longer than each of [`BOUNDS`].
    #[serde(default)]
    pub within: Vec<u64>,
    /// The sum of their durations.
    #[serde(default)]
    pub total_ms: u64,
}

/// A backup that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its series.
    #[serde(flatten)]
    pub label: Label,
    /// Its process.
    #[serde(flatten)]
    pub process: Identity,
    /// Whether a job of the agent takes it.
    #[serde(default)]
    is_of_job: bool,
    since: TimestampTz,
}

/// One series as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    label: Label,
    #[serde(flatten)]
    counts: Counts,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    #[serde(default)]
    series: Vec<Stored>,
    #[serde(default)]
    running: Vec<Begun>,
    /// The last success of other commands, as `verify cluster`.
    #[serde(default)]
    successes: BTreeMap<String, TimestampTz>,
    /// Values that commands measured last, as `audit verify`.
    #[serde(default)]
    measured: BTreeMap<String, u64>,
    /// Counts of looks.
    #[serde(default)]
    tallies: Tallies,
}

/// The counts of this host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Each series that ever ended here.
    pub series: BTreeMap<Label, Counts>,
    /// Those that run now.
    pub running: Vec<Begun>,
    /// The last success of other commands, as `verify cluster`.
    pub successes: BTreeMap<String, TimestampTz>,
    /// Values that commands measured last, as `audit verify`.
    pub measured: BTreeMap<String, u64>,
}

impl Counters {
    /// The last success of a command of this host for a cluster, or for what else it is about.
    pub fn last(&self, command: &str, about: &str) -> Option<TimestampTz> {
        self.successes.get(&format!("{command} {about}")).copied()
    }

    /// The bytes that `pitr expire` found locked, of each cluster and repository in which it ran.
    pub fn locked<'a>(
        &'a self,
        settings: &'a Settings,
    ) -> impl Iterator<Item = (&'a str, &'a str, u64)> {
        settings.clusters.iter().flat_map(move |cluster| {
            settings.repositories.iter().filter_map(move |repository| {
                let (cluster, repository) = (cluster.name.as_str(), repository.name.as_str());
                let bytes = self.measured.get(&locked(cluster, repository))?;
                Some((cluster, repository, *bytes))
            })
        })
    }
}

/// The series of content beside clusters, which is full unless its end tells something else.
pub fn of_content(component: &str, name: &str, repository: &Repository) -> Label {
    Label {
        cluster: name.to_owned(),
        component: component.to_owned(),
        kind: "full".to_owned(),
        repo: repository.name.clone(),
    }
}

/// The name of a kind in series.
pub fn kind_name(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incr",
    }
}

/// Runs a backup, and counts what became of it. `label` says what is expected; `kind` tells the kind from the result.
///
/// # Errors
/// Those of `work`.
pub fn counted<T>(
    (session, settings): (&Session, &Settings),
    label: &Label,
    work: impl FnOnce() -> Result<T>,
    kind: impl FnOnce(&T) -> BackupKind,
) -> Result<T> {
    counted_unless((session, settings), label, work, kind, |_| false)
}

/// As [`counted`]; an error that `is_none` holds for is no attempt.
///
/// # Errors
/// Those of `work`.
pub fn counted_unless<T>(
    (session, settings): (&Session, &Settings),
    label: &Label,
    work: impl FnOnce() -> Result<T>,
    kind: impl FnOnce(&T) -> BackupKind,
    is_none: impl FnOnce(&Error) -> bool,
) -> Result<T> {
    let why = |e: &Error| (!is_none(e)).then(|| reason(e.code()));
    counted_by((session, settings), label, work, kind, why)
}

/// As [`counted`]; `why` names the reason of an error, and none where that is no attempt.
///
/// # Errors
/// Those of `work`.
pub fn counted_by<T>(
    (session, settings): (&Session, &Settings),
    label: &Label,
    work: impl FnOnce() -> Result<T>,
    kind: impl FnOnce(&T) -> BackupKind,
    why: impl FnOnce(&Error) -> Option<&'static str>,
) -> Result<T> {
    let own = Begun {
        label: label.clone(),
        process: Identity::of(std::process::id()),
        is_of_job: session.environment.get(JOB).is_some(),
        since: session.host.now(),
    };
    let begun = own.clone();
    update((session, settings), |book| book.running.push(begun));
    let started = Instant::now();
    let done = work();
    let took = human::millis(started.elapsed());
    let (label, reason) = match &done {
        Ok(done) => {
            let kind = kind_name(kind(done)).to_owned();
            let label = Label {
                kind,
                ..label.clone()
            };
            (label, None)
        }
        Err(e) => (label.clone(), why(e)),
    };
    let is_attempt = done.is_ok() || reason.is_some();
    update((session, settings), |book| {
        book.running.retain(|one| *one != own);
        if is_attempt {
            book.add(&label, (reason, own.is_of_job), took);
        }
    });
    done
}

/// Notes that a command succeeded.
pub fn succeeded(session: &Session, command: &str, cluster: &str) {
    let now = session.host.now();
    note(session, |book| {
        book.successes.insert(format!("{command} {cluster}"), now);
    });
}

/// Notes that a command succeeded for a cluster, or, where none is named, for each that it found. Each has what it did, and whether that went well;
/// `failed` are clusters in which it failed. A cluster counts whatever became of the others, but not of other content.
pub fn succeeded_for<'a>(
    (session, command): (&Session, &str),
    name: Option<&'a str>,
    failed: &BTreeSet<String>,
    done: impl Iterator<Item = (&'a Of, bool)>,
) {
    for name in well(name, failed, done) {
        succeeded(session, command, name);
    }
}

fn well<'a>(
    name: Option<&'a str>,
    failed: &BTreeSet<String>,
    done: impl Iterator<Item = (&'a Of, bool)>,
) -> Vec<&'a str> {
    let mut clusters: BTreeMap<&str, bool> = name.map(|name| (name, true)).into_iter().collect();
    let mut is_content_well = true;
    for (of, went_well) in done {
        match of.cluster() {
            Some(cluster) => *clusters.entry(cluster).or_insert(true) &= went_well,
            None => is_content_well &= went_well,
        }
    }
    let counts = |(name, is_well): (&'a str, bool)| {
        (is_well && is_content_well && !failed.contains(name)).then_some(name)
    };
    clusters.into_iter().filter_map(counts).collect()
}

/// Notes what a command measured, which stands until it measures again.
pub fn measured(session: &Session, what: &str, value: u64) {
    note(session, |book| {
        book.measured.insert(what.to_owned(), value);
    });
}

/// Notes what a command measured of a part, which takes nothing back of what was measured of all.
pub fn measured_in_part(session: &Session, what: &str, value: u64) {
    note(session, |book| {
        let known = book.measured.entry(what.to_owned()).or_default();
        *known = value.max(*known);
    });
}

/// Has a look counted, and returns what all looks of this host have counted; none where nothing can be kept.
pub fn tallied(
    (session, settings): (&Session, &Settings),
    look: impl FnOnce(&mut Tallies) + Send,
) -> Option<Tallies> {
    let place = settings.state_dir(&session.environment)?;
    // The counts were read before: an error was reported then.
    let book = change(session, &place, |book| look(&mut book.tallies)).ok()?;
    Some(book.tallies)
}

/// The name of the bytes that `pitr expire` found locked, among what commands measured.
pub fn locked(cluster: &str, repository: &str) -> String {
    format!("expire locked {cluster} {repository}")
}

/// Reads the counts, with those that were killed meanwhile; none where no command can keep any.
///
/// # Errors
/// `Io` when the file cannot be read or written; `Deadline` when it stays locked.
pub fn read(session: &Session, settings: &Settings) -> Result<Option<Counters>> {
    let Some(place) = settings.state_dir(&session.environment) else {
        return Ok(None);
    };
    let book = match change(session, &place, |_| ()) {
        Ok(book) => book,
        Err(_) if settings.agent.state_dir.is_none() && !is_kept(&place) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let series = book.series.into_iter().map(|s| (s.label, s.counts));
    Ok(Some(Counters {
        series: series.collect(),
        running: book.running,
        successes: book.successes,
        measured: book.measured,
    }))
}

fn is_kept(place: &Path) -> bool {
    behalf::of(place, || Ok(place.join(FILE).exists())).unwrap_or_default()
}

/// The reason by which a failure is counted.
pub fn reason(code: Code) -> &'static str {
    match code {
        Code::Usage | Code::Config | Code::Key | Code::NotFound => "config",
        Code::Unreachable | Code::NoRepository | Code::Io | Code::ReadOnly | Code::Partial => {
            "repository"
        }
        Code::Full => "space",
        Code::Locked | Code::Deadline => "locked",
        Code::Refused | Code::Clone | Code::WrongCluster | Code::Conflict | Code::Diverged => {
            "refused"
        }
        Code::Damaged | Code::ReadBack | Code::Gap => "damage",
        Code::Interrupted => "interrupted",
        _ => "server",
    }
}

impl Counts {
    /// The duration of the last run, whatever became of it.
    pub fn run_ms(&self) -> Option<u64> {
        self.last_failed_ms.or(self.last_ms)
    }

    /// Counts a success. The duration of a failure says nothing of how long a backup takes.
    fn succeeded(&mut self, took: u64) {
        self.successes += 1;
        (self.last_ms, self.last_failed_ms) = (Some(took), None);
        self.total_ms = self.total_ms.saturating_add(took);
        self.within.resize(BOUNDS.len() + 1, 0);
        let bounds = BOUNDS.iter().map(|b| u64::from(*b) * 1000);
        // The last one counts all.
        for (within, bound) in self.within.iter_mut().zip(bounds.chain([u64::MAX])) {
            *within += u64::from(took <= bound);
        }
    }
}

impl Book {
    fn add(&mut self, label: &Label, (reason, is_of_job): (Option<&str>, bool), took: u64) {
        if reason.is_none() {
            self.forget_failures(label);
        }
        let at = match self.series.iter().position(|s| s.label == *label) {
            Some(at) => at,
            None => {
                self.series.push(Stored {
                    label: label.clone(),
                    counts: Counts::default(),
                });
                self.series.len() - 1
            }
        };
        let Some(Stored { counts, .. }) = self.series.get_mut(at) else {
            return;
        };
        counts.attempts += 1;
        match reason {
            None => counts.succeeded(took),
            Some(reason) => {
                *counts.failures.entry(reason.to_owned()).or_default() += 1;
                counts.last_failed_ms = Some(took).filter(|_| reason != KILLED);
                if !is_of_job {
                    counts.last_failure = Some(reason.to_owned());
                }
            }
        }
    }

    /// A backup of any kind in any repository makes good what failed before.
    fn forget_failures(&mut self, label: &Label) {
        let is_same = |one: &&mut Stored| {
            (&one.label.cluster, &one.label.component) == (&label.cluster, &label.component)
        };
        let same = self.series.iter_mut().filter(is_same);
        same.for_each(|one| one.counts.last_failure = None);
    }

    /// Counts those whose process is gone.
    fn reap(&mut self) {
        let (alive, gone): (Vec<Begun>, Vec<Begun>) = self
            .running
            .drain(..)
            .partition(|one| one.process.is_alive());
        self.running = alive;
        gone.iter()
            .for_each(|one| self.add(&one.label, (Some(KILLED), one.is_of_job), 0));
    }
}

/// As [`update`], where the configuration can be read.
fn note(session: &Session, with: impl FnOnce(&mut Book) + Send) {
    if let Ok(settings) = session.settings() {
        update((session, &settings), with);
    }
}

/// As [`change`], for a command that goes on whatever becomes of it.
fn update((session, settings): (&Session, &Settings), with: impl FnOnce(&mut Book) + Send) {
    let Some(place) = settings.state_dir(&session.environment) else {
        return;
    };
    // Without a place of its own nothing is counted on a host without room for caches, and `pitr metrics` says so.
    if let Err(e) = change(session, &place, with)
        && settings.agent.state_dir.is_some()
    {
        session.warn(&format!(
            "what this command did is missing from the metrics: {e}"
        ));
    }
}

/// Changes the file under its lock. Root does it on behalf of the user of backups, whose directory it may be.
fn change(
    session: &Session,
    state_dir: &Path,
    with: impl FnOnce(&mut Book) + Send,
) -> Result<Book> {
    behalf::of(state_dir, || Ok(change_own(session, state_dir, with)))
        .map_err(|e| Error::from_io(format!("open directory \"{}\"", state_dir.display()), e))?
}

fn change_own(session: &Session, state_dir: &Path, with: impl FnOnce(&mut Book)) -> Result<Book> {
    make(state_dir)?;
    let _lock = lock(&state_dir.join(LOCK))?;
    let path = state_dir.join(FILE);
    let mut book = load(session, &path)?;
    let before = serde_json::to_vec(&book).unwrap_or_default();
    book.reap();
    with(&mut book);
    let text = serde_json::to_vec(&book)
        .map_err(|e| err!(Internal, "counters cannot be written").source(e))?;
    if text != before {
        durable::replace(&path, &text, session.host.random())
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
    }
    Ok(book)
}

/// Makes a directory of state, which nobody else may read: that of the account in whose directory it lies.
///
/// # Errors
/// Those of the system.
pub fn make(directory: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).recursive(true);
    let made = behalf::of(directory, || builder.create(directory));
    made.map_err(|e| Error::from_io(format!("make directory \"{}\"", directory.display()), e))
}

/// Reads the file. A damaged one begins anew: a counter that goes back to 0 is what a reader of counters expects of a new host.
fn load(session: &Session, path: &Path) -> Result<Book> {
    let bytes = match behalf::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Book::default()),
        Err(e) => return Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|e| {
        session.warn(&format!(
            "\"{}\" is damaged, and counting begins anew: {e}",
            path.display()
        ));
        Book::default()
    }))
}

/// Takes a lock that is held for moments only.
fn lock(path: &Path) -> Result<File> {
    let failed = |e| Error::from_io(format!("lock \"{}\"", path.display()), e);
    lock::take(path, PATIENCE).map_err(failed)?.ok_or_else(|| {
        err!(
            Deadline,
            "\"{}\" is locked by another process",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::repository::Registration;
    use crate::repo::scope::Scope;

    fn label(kind: &str) -> Label {
        Label {
            cluster: "main".into(),
            component: "postgres".into(),
            kind: kind.into(),
            repo: "local".into(),
        }
    }

    #[test]
    fn every_end_is_an_attempt_with_one_result() {
        let mut book = Book::default();
        book.add(&label("full"), (None, false), 61_000);
        book.add(&label("full"), (Some("space"), false), 1);
        let last = |book: &Book| book.series[0].counts.last_failure.clone();
        assert_eq!(last(&book).as_deref(), Some("space"));
        book.add(&label("incr"), (None, false), 5);
        assert_eq!(last(&book), None);
        let full = &book.series[0].counts;
        assert_eq!((full.attempts, full.successes), (2, 1));
        assert_eq!(full.failures["space"], 1);
        // A failure took no time that a backup takes.
        assert_eq!(full.run_ms(), Some(1), "the last run");
        assert_eq!(full.within, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!((full.total_ms, full.last_ms), (61_000, Some(61_000)));
    }

    #[test]
    fn one_whose_process_is_gone_was_killed() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let begun = |process| Begun {
            label: label("full"),
            process,
            is_of_job: false,
            since: "2026-11-20T00:00:00Z".parse().unwrap(),
        };
        let gone = Identity::of(child.id());
        child.wait().unwrap();
        let mut book = Book {
            running: vec![begun(gone), begun(Identity::of(std::process::id()))],
            ..Book::default()
        };
        book.reap();
        assert_eq!(book.running.len(), 1);
        assert_eq!(book.series[0].counts.failures[KILLED], 1);
        assert_eq!(book.series[0].counts.last_ms, None);
    }

    #[test]
    fn x46_a_cluster_succeeds_whatever_becomes_of_the_others() {
        let cluster = |name: &str| {
            Of::Cluster(Registration {
                name: name.into(),
                system_identifier: 7,
                major: 17,
                segment_size_bytes: 16 << 20,
                block_size_bytes: 8192,
                wal_block_size_bytes: 8192,
                first_seen: TimestampTz(0),
                features: Vec::new(),
                is_lost: false,
            })
        };
        let (a, b, c) = (cluster("a"), cluster("b"), cluster("c"));
        let content = Of::Scope(Scope::cluster("d", 7).unwrap());
        let failed = BTreeSet::from(["c".to_owned()]);
        let done = |is_content_well| {
            let in_one = [(&a, true), (&b, true), (&c, true)];
            let in_other = [(&a, true), (&b, false), (&content, is_content_well)];
            in_one.into_iter().chain(in_other)
        };
        assert_eq!(well(None, &failed, done(true)), ["a"]);
        assert!(well(None, &failed, done(false)).is_empty());
        let none = BTreeSet::new();
        assert_eq!(
            well(Some("a"), &none, [(&content, true)].into_iter()),
            ["a"]
        );
    }

    #[test]
    fn every_reason_has_a_series() {
        for code in [
            Code::Config,
            Code::Server,
            Code::Unreachable,
            Code::Full,
            Code::Locked,
            Code::Refused,
            Code::Damaged,
            Code::Interrupted,
            Code::Internal,
        ] {
            assert!(REASONS.contains(&reason(code)), "{code:?}");
        }
    }
}
