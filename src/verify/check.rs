//! The means and the findings of every check: of a cluster, and of any other scope.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::depth::step_bytes;
use super::looked::Looked;
use super::{About, Finding, FindingKind, Report};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::{Catalog, Manifest};
use crate::repo::id::{BackupId, PartName};
use crate::repo::portion::{Gathered, Portion, Seen, Share};
use crate::repo::scope::Scope;
use crate::store::Store;

/// Findings and warnings that a report lists; the rest is counted.
const LISTED_MAX: usize = 10_000;

#[derive(Default)]
pub(super) struct Found {
    pub findings: Vec<Finding>,
    pub finding_count: u64,
    /// Findings that the list does not have: their kind, their subject and their number.
    unlisted: Vec<(FindingKind, About, u64)>,
    pub warnings: Vec<String>,
    /// Subjects that this version cannot check.
    pub unread: Vec<About>,
    /// How many objects of each backup its store must thaw first, where the configuration has moved them there.
    pub archived: BTreeMap<BackupId, u64>,
    /// Backups of lives that are not followed: the check judges none of them, whole or not.
    pub elsewhere: Vec<BackupId>,
    /// Backups whose structure was not looked at, for a limit was reached first: nothing of it is known.
    pub unlooked: BTreeSet<BackupId>,
    /// Backups of which packs were read as another backup's: their files were not compared as a whole.
    pub uncompared: BTreeSet<BackupId>,
}

impl Found {
    pub fn count(&mut self, kind: FindingKind, about: About, number: u64) {
        self.finding_count += number;
        match self.unlisted.last_mut() {
            Some((last_kind, last, n)) if (*last_kind, &*last) == (kind, &about) => *n += number,
            _ => self.unlisted.push((kind, about, number)),
        }
    }

    /// Returns the kind and the subject of every finding, listed or not.
    pub fn abouts(&self) -> impl Iterator<Item = (FindingKind, &About)> {
        let listed = self.findings.iter().map(|f| (f.kind, &f.about));
        listed.chain(self.unlisted.iter().map(|(kind, about, _)| (*kind, about)))
    }

    /// Returns the subjects of findings that the list does not have.
    pub fn unlisted(&self) -> impl Iterator<Item = &About> {
        self.unlisted.iter().map(|(_, about, _)| about)
    }

    /// Drops what is about something that is over, listed or not.
    pub fn forget(&mut self, is_over: impl Fn(&About) -> bool) {
        self.findings.retain(|f| !is_over(&f.about));
        self.unlisted.retain(|(_, about, _)| !is_over(about));
        let unlisted: u64 = self.unlisted.iter().map(|(.., n)| n).sum();
        self.finding_count = self.findings.len() as u64 + unlisted;
    }
}

/// A check of one scope under way: what it works with, and what it found.
pub(super) struct Check<'a> {
    pub store: &'a dyn Store,
    pub scope: Scope,
    pub host: &'a Host,
    /// The time before the run read which lives are followed.
    pub begun: TimestampTz,
    /// The same moment, for limits of time: the reading of the catalog counts.
    pub started: Instant,
    /// Threads that read.
    pub threads: usize,
    found: Mutex<Found>,
    /// The last segment of each timeline when the run began; none where there is no WAL.
    pub seen: Option<Seen>,
    read: Mutex<Gathered>,
    /// Portion that was read and that [`Check::take_read`] has returned.
    told: Mutex<Portion>,
    /// An object that was listed was not there any more.
    pub is_vanishing: AtomicBool,
    /// Layers and packs that need not be looked at again as another backup's.
    pub looked: Looked,
    pub objects: AtomicU64,
    pub bytes: AtomicU64,
    /// Bytes of the maps of backups whose structure was looked at: walking a map reads all of it.
    pub map_bytes: AtomicU64,
    /// How much of `bytes` was read when it was last recorded what was read.
    recorded_bytes: AtomicU64,
}

impl<'a> Check<'a> {
    pub fn new(
        store: &'a dyn Store,
        scope: &Scope,
        threads: usize,
        (begun, started): (TimestampTz, Instant),
        host: &'a Host,
    ) -> Check<'a> {
        Check {
            store,
            scope: scope.clone(),
            host,
            begun,
            started,
            threads,
            found: Mutex::default(),
            seen: None,
            read: Mutex::default(),
            told: Mutex::default(),
            is_vanishing: AtomicBool::new(false),
            looked: Looked::default(),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            map_bytes: AtomicU64::new(0),
            recorded_bytes: AtomicU64::new(0),
        }
    }

    /// Has its events say what WAL there was when it began.
    pub fn seeing(self, seen: Seen) -> Check<'a> {
        Check {
            seen: Some(seen),
            ..self
        }
    }

    pub fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something was found, or was gone.
    pub fn is_disturbed(&self) -> bool {
        self.is_vanishing.load(Ordering::Relaxed) || self.found().finding_count > 0
    }

    /// Forgets what was found of backups that are gone: expiry may have deleted objects meanwhile.
    pub fn forget_gone<R>(&self, catalog: &Catalog<R>) {
        self.found().forget(|about| match about {
            About::Backup(id) => !is_there(catalog, id),
            _ => false,
        });
    }

    /// Counts findings without listing them.
    pub fn find_more(&self, kind: FindingKind, about: About, number: u64) {
        self.found().count(kind, about, number);
    }

    pub fn find(&self, kind: FindingKind, object: &str, detail: impl Into<String>, about: About) {
        let mut found = self.found();
        if found.findings.len() >= fault::listed(LISTED_MAX) {
            found.count(kind, about, 1);
        } else {
            found.finding_count += 1;
            found.findings.push(Finding {
                kind,
                object: object.to_owned(),
                detail: detail.into(),
                costs: Vec::new(),
                about,
            });
        }
    }

    /// Says which objects are damaged and cost nothing, for a healed copy of them was read.
    pub fn warn_healed(&self) {
        let prefix = format!("{}/", self.scope.prefix());
        let used = self.store.healed_in_use().into_iter();
        for (key, copy) in used.filter(|(key, _)| key.as_str().starts_with(&prefix)) {
            self.warn(format!(
                "\"{key}\" is damaged, and costs nothing: its healed copy \"{}\" is read",
                copy.name()
            ));
        }
    }

    /// Says how much was not read because tiers have moved it to where it must be thawed first.
    pub fn warn_archived(&self) {
        let found = self.found();
        let (backups, objects) = (found.archived.len(), found.archived.values().sum::<u64>());
        let first = found.archived.keys().next().cloned();
        drop(found);
        if let Some(id) = first {
            self.warn(format!(
                "not read, because tiers have moved them to a class from which they must be thawed: {objects} objects of {backups} backups (pitr repo thaw --backup {id})"
            ));
        }
    }

    pub fn warn(&self, warning: String) {
        let mut found = self.found();
        if found.warnings.len() < LISTED_MAX {
            found.warnings.push(warning);
        }
    }

    /// Counts an object of a backup that tiers have moved to where it must be thawed first.
    pub fn pass_archived(&self, id: &BackupId) {
        *self.found().archived.entry(id.clone()).or_default() += 1;
    }

    /// An object of a newer format: neither sound nor damaged, and nothing is recorded of it.
    pub fn pass_over(&self, e: &Error, object: &str, about: About) {
        self.found().unread.push(about);
        self.warn(format!("\"{object}\" was not checked: {e}"));
    }

    /// Damage becomes a finding about `object`, what this version does not know a warning; other errors end the check.
    pub fn settle<T>(&self, result: Result<T>, object: &str, about: About) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_frozen() => {
                // Moved there on purpose, it is no finding: it was not read.
                if let (About::Backup(id), true) = (&about, self.store.has_archive()) {
                    self.pass_archived(id);
                    return Ok(None);
                }
                self.found().unread.push(about.clone());
                self.find(FindingKind::Frozen, object, e.to_string(), about);
                Ok(None)
            }
            Err(e) if is_damage(&e) => {
                self.find(FindingKind::Damaged, object, e.to_string(), about);
                Ok(None)
            }
            Err(e) if e.code() == Code::Unsupported => {
                self.pass_over(&e, object, about);
                Ok(None)
            }
            // Stores name the object themselves.
            Err(e) if e.to_string().contains(object) => Err(e),
            Err(e) => Err(e.context(format!("read object \"{object}\""))),
        }
    }

    /// Settles the root of a backup that was listed; one that is not there any more was deleted meanwhile.
    pub fn root<R>(&self, id: &BackupId, read: Result<Option<R>>) -> Result<Option<R>> {
        self.host.check_stop()?;
        let key = self.scope.manifest(id);
        let root = self.settle(read, key.as_str(), About::Backup(id.clone()))?;
        if let Some(None) = root {
            self.is_vanishing.store(true, Ordering::Relaxed);
            self.warn(format!(
                "backup \"{id}\" was deleted while the repository was read"
            ));
        }
        Ok(root.flatten())
    }

    /// Remembers that every byte of a pack was read and passed its checks.
    pub fn read_pack(&self, part: &PartName) {
        if let Ok(mut read) = self.read.lock() {
            read.pack(part);
        }
    }

    /// Remembers the same of a segment.
    pub fn read_segment(&self, timeline: TimelineId, number: SegmentNumber) {
        if let Ok(mut read) = self.read.lock() {
            read.segment(timeline, number);
        }
    }

    /// Remembers the same of a segment of a log.
    pub fn read_log(&self, replid: &str, number: SegmentNumber) {
        if let Ok(mut read) = self.read.lock() {
            read.log(replid, number);
        }
    }

    /// Returns what was read since this was called last.
    pub fn take_read(&self) -> Portion {
        let read = self.read.lock();
        let read = read.map_or_else(|_| Gathered::default(), |mut r| std::mem::take(&mut *r));
        let read = read.portion();
        if let Ok(mut told) = self.told.lock() {
            *told = told.union(&read);
        }
        read
    }

    /// Makes the report of what was found. Those of `backups` are whole that were read and are not `bad`.
    pub fn report(
        &self,
        found: Found,
        backups: impl Iterator<Item = BackupId>,
        bad: &BTreeSet<BackupId>,
        read_back: Share,
    ) -> Report {
        let looked = backups.filter(|id| !found.unlooked.contains(id) || bad.contains(id));
        let backups = looked.map(|id| {
            let is_read = !found.unread.contains(&About::Backup(id.clone()))
                && !found.archived.contains_key(&id);
            let is_whole = is_read && !bad.contains(&id);
            (id, is_whole)
        });
        let backups = backups.collect();
        Report {
            findings: found.findings,
            finding_count: found.finding_count,
            warnings: found.warnings,
            object_count: self.objects.load(Ordering::Relaxed),
            read_bytes: self.bytes.load(Ordering::Relaxed),
            backups,
            unlooked_count: found.unlooked.len() as u64,
            uncompared: found.uncompared,
            unsupported_count: found.unread.len() as u64,
            unread: found.unread,
            read_back,
            read: self.told(),
            ..Report::default()
        }
    }

    /// Takes what was found, findings and warnings in order.
    pub fn take_found(&self) -> Found {
        let mut found = std::mem::take(&mut *self.found());
        let findings = &mut found.findings;
        findings
            .sort_by(|a, b| (&a.object, a.kind, &a.detail).cmp(&(&b.object, b.kind, &b.detail)));
        found.warnings.sort();
        found
    }

    /// Does a piece of work on all threads.
    pub fn on_threads(&self, work: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads.max(1))
                .map(|_| scope.spawn(work))
                .collect();
            let mut result = Ok(());
            // All of them end before the first error counts.
            for thread in threads {
                let ended = thread.join().unwrap_or_else(|_| Err(panicked()));
                result = result.and(ended);
            }
            result
        })
    }

    /// Whether so much was read since it was last recorded that a run which is killed now would lose a step.
    pub fn has_read_step(&self) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let recorded = self.recorded_bytes.load(Ordering::Relaxed);
        let has_read = bytes.saturating_sub(recorded) >= step_bytes();
        if has_read {
            self.recorded_bytes.store(bytes, Ordering::Relaxed);
        }
        has_read
    }

    /// Returns all that [`Check::take_read`] has returned.
    pub fn told(&self) -> Portion {
        let told = self.told.lock();
        told.map_or_else(|_| Portion::default(), |told| told.clone())
    }

    pub fn count(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A thread has panicked.
pub(super) fn panicked() -> Error {
    err!(Internal, "a reading thread panicked")
}

/// Whether a backup is there, or was completed and is lost.
pub(super) fn is_there<R>(catalog: &Catalog<R>, id: &BackupId) -> bool {
    catalog.ids.get(id).is_some_and(|subject| {
        let manifest = &subject.manifest;
        matches!(manifest, Manifest::Committed(_) | Manifest::Unreadable(_))
            || subject.lost().is_some()
    })
}

/// A medium that cannot read one object back is damage to that object: the others are still looked at.
pub(super) fn is_damage(e: &Error) -> bool {
    match e.code() {
        Code::Damaged | Code::SourceHeader | Code::WrongCluster | Code::WalName => true,
        Code::Io => e.is_medium(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;

    #[test]
    fn a_backup_of_which_nothing_is_listed_is_damaged_all_the_same() {
        let one = About::Backup("20261120T064049Z-full".parse().unwrap());
        let mut found = Found::default();
        found.count(FindingKind::Pages, About::Other, 1);
        found.count(FindingKind::Damaged, one.clone(), 7);
        let abouts: Vec<_> = found.abouts().collect();
        assert!(abouts.contains(&(FindingKind::Damaged, &one)));
    }

    #[test]
    fn what_is_not_listed_is_counted_and_forgotten_with_its_backup() {
        let backup = |id: &str| About::Backup(id.parse().unwrap());
        let (one, two) = (
            backup("20261120T064049Z-full"),
            backup("20261120T064050Z-full"),
        );
        let mut found = Found::default();
        for about in [&one, &one, &two, &one] {
            found.count(FindingKind::Damaged, about.clone(), 7);
        }
        assert_eq!((found.finding_count, found.unlisted.len()), (28, 3));
        found.forget(|about| *about == one);
        assert_eq!(found.finding_count, 7);
        found.forget(|about| *about == two);
        assert_eq!((found.finding_count, found.unlisted.len()), (0, 0));
    }

    #[test]
    fn only_what_is_said_of_the_object_is_damage() {
        use rustix::io::Errno;
        let read = |errno: Errno| {
            let error = std::io::Error::from(errno);
            is_damage(&Error::from_io("read object", error).context("read a frame"))
        };
        assert!(read(Errno::IO) && read(Errno::UCLEAN));
        for errno in [
            Errno::MFILE,
            Errno::NOMEM,
            Errno::STALE,
            Errno::NOTCONN,
            Errno::INTR,
        ] {
            assert!(!read(errno), "{errno}");
        }
        assert!(is_damage(&err!(Damaged, "x")) && !is_damage(&err!(Unsupported, "x")));
    }
}
