//! Reads everything back and checks it: every object, the chain of the WAL, every backup down to its pages; and says what damage costs.
//!
//! `keys` looks for what nobody names, `files` reads the small objects, `wal` reads segments and follows their records across
//! borders, `open_segment` what is stored of those that are not whole, `snapshot` reads backups, `cost` finds gaps and says which targets are lost. Memory does not grow with the repository. Findings
//! are damage and gaps; warnings are what is odd and costs nothing. Damage is recorded as events, so that plans avoid it.

mod cost;
mod files;
mod keys;
mod manifest;
mod open_segment;
mod snapshot;
mod wal;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::wal::Paths;
use crate::repo::catalog::Manifest;
use crate::repo::event::{self, Event, Recorded, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::store::Store;
use crate::wal::survey::Survey;

/// Findings and warnings that a report lists; the rest is counted.
const LISTED_MAX: usize = 10_000;

/// What is to be checked.
pub struct Verify<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// Whose.
    pub registration: &'a Registration,
    /// This backup only, with the WAL that it needs.
    pub backup: Option<BackupId>,
    /// Threads that read.
    pub threads: usize,
    /// The host that it runs on.
    pub host: &'a Host,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// An object fails a check.
    Damaged,
    /// Its store must thaw an object before it can be read: of no use now, and not checked.
    Frozen,
    /// Whoever made an event or a registration does not hold the MAC key of the key set. It does not count.
    Forged,
    /// Something is missing that something else names.
    Missing,
    /// WAL is missing between WAL that is there.
    Gap,
    /// The WAL's own records are wrong, as the server wrote them.
    Wal,
    /// Pages of a backup fail their checksum, as the server sent them.
    Pages,
}

impl FindingKind {
    /// As JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::Damaged => "damaged",
            FindingKind::Frozen => "frozen",
            FindingKind::Forged => "forged",
            FindingKind::Missing => "missing",
            FindingKind::Gap => "gap",
            FindingKind::Wal => "wal",
            FindingKind::Pages => "pages",
        }
    }
}

/// What a finding is about, as far as it decides what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    /// This backup.
    Backup(BackupId),
    /// This segment cannot be used.
    Segment(SegmentName),
    /// Replay ends here, though the segment is what the server wrote.
    Record(SegmentName, Lsn),
    /// The history of this timeline.
    History(TimelineId),
    /// Nothing that recovery needs.
    Other,
}

/// Damage, or a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The object's key; of a gap the segments.
    pub object: String,
    /// What is wrong.
    pub detail: String,
    /// What it costs: backups and points that are lost. Empty = recovery needs nothing of it.
    pub costs: Vec<String>,
    about: About,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Damage and gaps, by object; at most 10 000.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub finding_count: u64,
    /// What is odd but costs nothing; at most 10 000.
    pub warnings: Vec<String>,
    /// Objects that were read.
    pub object_count: u64,
    /// Stored bytes that were read.
    pub read_bytes: u64,
    /// Segments that were read.
    pub segment_count: u64,
    /// Segments of which no link says which life of the cluster they continue.
    pub unlinked_count: u64,
    /// Backups that were read, each with whether it can be restored.
    pub backups: Vec<(BackupId, bool)>,
    /// Objects that this version cannot check; each has a warning.
    pub unsupported_count: u64,
    unread: Vec<About>,
}

impl Verify<'_> {
    /// Checks everything, and records which backups and segments are damaged.
    ///
    /// # Errors
    /// `NotFound` when the backup asked for does not exist; `Interrupted`; what the store says, but for damage, which is a finding.
    pub fn run(&self) -> Result<Report> {
        self.repository.store().read_medium();
        let survey = Survey::read(self.repository, self.registration)?;
        let layout = survey.layout(self.registration)?;
        let chosen = self.chosen(&survey)?;
        let mut paths = Paths::new(&survey);
        paths.trust_all();
        let work = Work {
            what: self,
            store: self.repository.store(),
            layout,
            size: SegmentSize::new(self.registration.segment_size_bytes)?,
            found: Mutex::default(),
            is_vanishing: AtomicBool::new(false),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            unlinked: AtomicU64::new(0),
            unproven: AtomicU64::new(0),
        };
        let lost = self.lost(&survey);
        find_lost(&work, &survey, &lost);
        if self.backup.is_none() {
            keys::check(&work, &survey)?;
            files::check(&work, &survey)?;
        }
        wal::check(&work, &survey, &paths, &chosen)?;
        for id in &chosen {
            snapshot::check(&work, id)?;
        }
        if let n @ 1.. = work.unproven.load(Ordering::Relaxed) {
            work.warn(unproven(n));
        }
        if !work.is_disturbed() {
            cost::add_gaps(&work, &survey, &mut paths, &chosen);
            let report = cost::report(work, &survey, &paths, &chosen);
            return Ok(self.record(&survey, report));
        }
        // What is missing may have been expired meanwhile: only what is still there, or still needed, counts.
        let survey = Survey::read(self.repository, self.registration)?;
        let mut paths = Paths::new(&survey);
        paths.trust_all();
        let is_there = |id: &BackupId| {
            let subject = survey.ids.get(id);
            let manifest = subject.map(|s| &s.manifest);
            matches!(
                manifest,
                Some(Manifest::Committed(_) | Manifest::Unreadable(_))
            ) || subject.is_some_and(|s| s.lost().is_some())
        };
        work.forget(|about| match about {
            About::Backup(id) => !is_there(id),
            _ => false,
        });
        let chosen: Vec<BackupId> = chosen.into_iter().filter(is_there).collect();
        cost::add_gaps(&work, &survey, &mut paths, &chosen);
        let mut report = cost::report(work, &survey, &paths, &chosen);
        let lost = lost.into_iter().filter(is_there).map(|id| (id, false));
        report.backups.extend(lost);
        Ok(self.record(&survey, report))
    }

    /// The backups that were completed and whose roots are lost: the one asked for, or all.
    fn lost(&self, survey: &Survey) -> Vec<BackupId> {
        let all = survey.ids.iter().filter(|(_, s)| s.lost().is_some());
        let wanted = all.filter(|(id, _)| self.backup.as_ref().is_none_or(|w| w == *id));
        wanted.map(|(id, _)| id.clone()).collect()
    }

    /// The backups to read: the one asked for, or all.
    fn chosen(&self, survey: &Survey) -> Result<Vec<BackupId>> {
        let manifest = |id: &BackupId| survey.ids.get(id).map(|s| &s.manifest);
        let Some(id) = &self.backup else {
            return Ok(survey.committed().map(|(id, _, _)| id.clone()).collect());
        };
        match manifest(id) {
            Some(Manifest::Committed(_)) => Ok(vec![id.clone()]),
            _ if survey.ids.get(id).is_some_and(|s| s.lost().is_some()) => Ok(Vec::new()),
            Some(Manifest::Unreadable(_)) => {
                Err(err!(Damaged, "the root of backup \"{id}\" cannot be read")
                    .hint("This backup is lost.\nRun pitr verify to see what else is."))
            }
            _ => Err(err!(NotFound, "backup \"{id}\" does not exist")
                .hint("Run pitr info to see the backups.")),
        }
    }

    /// Writes what was found of backups and segments as events, and ends those that no longer hold.
    fn record(&self, survey: &Survey, mut report: Report) -> Report {
        let mut damaged: BTreeMap<String, (String, String)> = BTreeMap::new();
        for finding in &report.findings {
            let subject = match &finding.about {
                // Pages that were damaged when the backup was taken stand in its root, and what is frozen is whole for all that is known.
                About::Backup(_)
                    if matches!(finding.kind, FindingKind::Pages | FindingKind::Frozen) =>
                {
                    continue;
                }
                About::Backup(id) => id.to_string(),
                About::Segment(name) if finding.kind == FindingKind::Damaged => {
                    format!("wal-{name}")
                }
                _ => continue,
            };
            let said = (finding.object.clone(), finding.detail.clone());
            damaged.entry(subject).or_insert(said);
        }
        let mut known: BTreeMap<String, &[Recorded]> = BTreeMap::new();
        for (id, whole) in &report.backups {
            if let Some(subject) = survey.ids.get(id).filter(|_| *whole) {
                known.insert(id.to_string(), &subject.events);
            }
        }
        if self.backup.is_none() {
            let is_read = |name: &SegmentName| !report.unread.contains(&About::Segment(*name));
            let all = survey.segment_events.iter();
            for (name, events) in all.filter(|(name, _)| is_read(name)) {
                let is_there = name.number(survey.segment_size).is_ok_and(|n| {
                    let held = survey.timelines.get(&name.timeline);
                    held.is_some_and(|t| t.segments.contains(n))
                });
                if is_there {
                    known.insert(format!("wal-{name}"), events);
                }
            }
        }
        let whole = report.backups.iter().filter(|(_, whole)| *whole);
        let verified: Vec<&BackupId> = whole
            .map(|(id, _)| id)
            .filter(|id| self.repository_may_prove() && !is_verified(survey, id))
            .collect();
        let result = self.require_proof(&damaged);
        let result = result.and_then(|()| self.write_events(survey, &damaged, &known));
        let result = result.and_then(|()| self.write_verified(&verified));
        if let Err(e) = result {
            report.warnings.push(format!(
                "what was found could not be recorded in the repository: {e}"
            ));
        }
        report
    }

    /// Whether what this process records counts: who has no MAC key where one is would be found to have forged it.
    fn repository_may_prove(&self) -> bool {
        let key = crate::repo::scope::marker();
        let is_encrypted = self.repository.marker().key_set.is_some();
        !is_encrypted || matches!(self.repository.store().mac(&key, b""), Ok(Some(_)))
    }

    /// Records which backups passed whole, once each: expire lets older ones go only then.
    fn write_verified(&self, ids: &[&BackupId]) -> Result<()> {
        let layout =
            ClusterLayout::new(&self.registration.name, self.registration.system_identifier)?;
        let writer = Writer::of(self.host);
        for id in ids {
            let verified = writer.event("verified", &id.to_string());
            writer.record(self.repository.store(), &layout, &verified)?;
        }
        Ok(())
    }

    fn require_proof(&self, damaged: &BTreeMap<String, (String, String)>) -> Result<()> {
        if damaged.is_empty() || self.repository_may_prove() {
            return Ok(());
        }
        Err(err!(Key, "the MAC key of its key set is not configured"))
    }

    fn write_events(
        &self,
        survey: &Survey,
        damaged: &BTreeMap<String, (String, String)>,
        known: &BTreeMap<String, &[Recorded]>,
    ) -> Result<()> {
        let layout =
            ClusterLayout::new(&self.registration.name, self.registration.system_identifier)?;
        let (store, writer) = (self.repository.store(), Writer::of(self.host));
        for (subject, (object, detail)) in damaged {
            let events = events_of(survey, subject);
            if !event::damage(events).is_empty() {
                continue;
            }
            writer.record(store, &layout, &writer.damaged(subject, object, detail))?;
        }
        for (subject, events) in known {
            if damaged.contains_key(subject) {
                continue;
            }
            for over in event::damage(events) {
                let healed = Event {
                    ends: Some(over.name.clone()),
                    ..writer.event("healed", subject)
                };
                writer.record(store, &layout, &healed)?;
            }
        }
        Ok(())
    }
}

/// What is said of backups that carry no proof.
fn unproven(count: u64) -> String {
    let (backups, their, them) = match count {
        1 => ("backup has", "its", "it"),
        _ => ("backups have", "their", "them"),
    };
    format!(
        "{count} {backups} no proof of {their} WAL, for an older pitr took {them}: a clone's WAL in its place is not noticed"
    )
}

/// Finds what is missing of backups that were completed, and warns of what may be one.
fn find_lost(work: &Work<'_>, survey: &Survey, lost: &[BackupId]) {
    for id in lost {
        let key = work.layout.manifest(id);
        work.find(
            FindingKind::Missing,
            key.as_str(),
            format!("the backup was complete, and its root is not there. Where another repository has the backup, \"pitr repo sync\" brings it back; else give it up: pitr expire --give-up {id}"),
            About::Backup(id.clone()),
        );
    }
    let now = work.what.host.now();
    let may_be = survey.ids.iter().filter(|(_, s)| s.may_be_lost(now));
    for (id, _) in may_be.filter(|_| work.what.backup.is_none()) {
        work.warn(format!(
            "backup \"{id}\" is incomplete, or its root is lost: it cannot be restored. Where another repository has the backup, \"pitr repo sync\" brings it back; else pitr expire deletes what is left of it"
        ));
    }
}

fn is_verified(survey: &Survey, id: &BackupId) -> bool {
    !event::standing(events_of(survey, &id.to_string()), "verified", "").is_empty()
}

fn events_of<'a>(survey: &'a Survey, subject: &str) -> &'a [Recorded] {
    if let Some(Ok(name)) = subject.strip_prefix("wal-").map(str::parse) {
        return survey.segment_events.get(&name).map_or(&[], Vec::as_slice);
    }
    subject
        .parse()
        .ok()
        .and_then(|id: BackupId| survey.ids.get(&id))
        .map_or(&[], |s| s.events.as_slice())
}

/// What the checks share.
struct Work<'a> {
    what: &'a Verify<'a>,
    store: &'a dyn Store,
    layout: ClusterLayout,
    size: SegmentSize,
    found: Mutex<Found>,
    /// An object that was listed was not there any more.
    is_vanishing: AtomicBool,
    objects: AtomicU64,
    bytes: AtomicU64,
    segments: AtomicU64,
    unlinked: AtomicU64,
    /// Backups of which nothing was proven when they were taken.
    unproven: AtomicU64,
}

#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    finding_count: u64,
    /// What of that is not in the list, and about what.
    unlisted: Vec<(About, u64)>,
    warnings: Vec<String>,
    /// What this version cannot check.
    unread: Vec<About>,
    /// Backups of lives that are not followed: whole or not, nothing is said of them.
    elsewhere: Vec<BackupId>,
}

impl Found {
    fn count(&mut self, about: About, number: u64) {
        self.finding_count += number;
        match self.unlisted.last_mut() {
            Some((last, n)) if *last == about => *n += number,
            _ => self.unlisted.push((about, number)),
        }
    }

    /// Drops what is about something that is over, listed or not.
    fn forget(&mut self, is_over: impl Fn(&About) -> bool) {
        self.findings.retain(|f| !is_over(&f.about));
        self.unlisted.retain(|(about, _)| !is_over(about));
        let unlisted: u64 = self.unlisted.iter().map(|(_, n)| n).sum();
        self.finding_count = self.findings.len() as u64 + unlisted;
    }
}

impl Work<'_> {
    fn found(&self) -> MutexGuard<'_, Found> {
        match self.found.lock() {
            Ok(found) => found,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// Whether something was found, or was gone.
    fn is_disturbed(&self) -> bool {
        self.is_vanishing.load(Ordering::Relaxed) || self.found().finding_count > 0
    }

    fn forget(&self, is_over: impl Fn(&About) -> bool) {
        self.found().forget(is_over);
    }

    /// Counts findings without listing them.
    fn find_more(&self, about: About, number: u64) {
        self.found().count(about, number);
    }

    fn find(&self, kind: FindingKind, object: &str, detail: impl Into<String>, about: About) {
        let mut found = self.found();
        if found.findings.len() >= LISTED_MAX {
            found.count(about, 1);
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

    fn warn(&self, warning: String) {
        let mut found = self.found();
        if found.warnings.len() < LISTED_MAX {
            found.warnings.push(warning);
        }
    }

    /// An object of a newer format: neither sound nor damaged, and nothing is recorded of it.
    fn pass_over(&self, e: &Error, object: &str, about: About) {
        self.found().unread.push(about);
        self.warn(format!("\"{object}\" was not checked: {e}"));
    }

    /// Damage becomes a finding about `object`, what this version does not know a warning; other errors end the check.
    fn settle<T>(&self, result: Result<T>, object: &str, about: About) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_frozen() => {
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
            Err(e) => Err(e.context(format!("read object \"{object}\""))),
        }
    }

    fn count(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A medium that cannot read one object back is damage to that object: the others are still looked at.
fn is_damage(e: &Error) -> bool {
    match e.code() {
        Code::Damaged | Code::SourceHeader | Code::WrongCluster | Code::WalName => true,
        Code::Io => e.is_medium(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_counted_and_forgotten_with_its_backup() {
        let backup = |id: &str| About::Backup(id.parse().unwrap());
        let (one, two) = (
            backup("20261120T064049Z-full"),
            backup("20261120T064050Z-full"),
        );
        let mut found = Found::default();
        for about in [&one, &one, &two, &one] {
            found.count(about.clone(), 7);
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
