//! Reads everything back and checks it: every object, the chain of the WAL, every backup down to its pages; and says what damage costs.
//!
//! `keys` looks for what nobody names, `files` reads the small objects, `wal` reads segments and follows their records across
//! borders, `open_segment` what is stored of those that are not whole, `snapshot` reads backups, `cost` finds gaps and says which targets are lost. Memory does not grow with the repository. Findings
//! are damage and gaps; warnings are what is odd and costs nothing. Damage is recorded as events, so that plans avoid it.

mod check;
mod cost;
pub mod depth;
mod epoch;
mod events;
mod files;
mod keys;
mod log;
mod looked;
mod manifest;
mod oldest;
mod open_segment;
mod packs;
mod record;
pub mod scope;
mod snapshot;
pub mod sums;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::plan::retention::wal::Paths;
use crate::repo::catalog::Manifest;
use crate::repo::event::Recorded;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::portion::{Portion, Seen, Share};
use crate::repo::repository::{Registration, Repository};
use crate::store::Key;
use crate::wal::survey::Survey;
use check::Check;
use cost::CutShort;
use depth::Depth;
use events::find_lost;
use oldest::OfCluster;
use record::{Recorder, Stood, damaged_backups};
use wal::Extent;

/// A check of one cluster in one repository.
pub struct Verify<'a> {
    /// Repository that holds the cluster.
    pub repository: &'a Repository,
    /// Registration of the cluster.
    pub registration: &'a Registration,
    /// This backup only, with the WAL that it needs.
    pub backup: Option<BackupId>,
    /// How much is read.
    pub depth: Depth,
    /// Threads that read.
    pub threads: usize,
    /// The host that it runs on.
    pub host: &'a Host,
}

/// The kind of a finding.
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

/// The subject of a finding, as far as it decides the costs.
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

impl About {
    /// The segment that cannot be used.
    fn segment(&self) -> Option<SegmentName> {
        match self {
            About::Segment(name) => Some(*name),
            _ => None,
        }
    }
}

/// Damage, or a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    /// The object's key; of a gap the segments.
    pub object: String,
    /// Description of the fault.
    pub detail: String,
    /// Costs: backups and points that are lost. Empty = recovery needs nothing of it.
    pub costs: Vec<String>,
    about: About,
}

/// The result of a check.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Damage and gaps, by object; at most 10 000.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub finding_count: u64,
    /// Oddities that cost nothing; at most 10 000.
    pub warnings: Vec<String>,
    /// Objects that were read.
    pub object_count: u64,
    /// Stored bytes that were read.
    pub read_bytes: u64,
    /// Segments that were read.
    pub segment_count: u64,
    /// Segments of which no link says which life of the cluster they continue.
    pub unlinked_count: u64,
    /// Backups that were looked at, each with whether it can be restored; and those that cannot.
    pub backups: Vec<(BackupId, bool)>,
    /// Backups whose structure was not looked at, for the run reached its limits. The report says nothing else of these.
    pub unlooked_count: u64,
    /// Backups whose files were not compared as a whole again, for packs of theirs were read as another backup's.
    pub uncompared: BTreeSet<BackupId>,
    cut_short: CutShort,
    /// How much was read back, by this run and before.
    pub read_back: Share,
    /// Objects that this version cannot check; each has a warning.
    pub unsupported_count: u64,
    unread: Vec<About>,
    /// Subjects of findings that `findings` does not have.
    unlisted: Vec<About>,
    read: Portion,
}

impl Report {
    /// The report of what was recorded, or could not be.
    fn with_record(mut self, recorded: Result<()>) -> Report {
        let failed = recorded.err();
        self.warnings.extend(
            failed.map(|e| format!("what was found could not be recorded in the repository: {e}")),
        );
        self
    }
}

impl Verify<'_> {
    /// Checks everything, and records which backups and segments are damaged.
    ///
    /// # Errors
    /// `NotFound` when the backup asked for does not exist; `Interrupted`; what the store says, but for damage, which is a finding.
    pub fn run(&self) -> Result<Report> {
        self.repository.store().read_medium();
        let begun = (self.host.now(), Instant::now());
        let survey = Survey::compared(self.repository, self.registration)?;
        let of_backups = survey.ids.values().map(|subject| &subject.events);
        let stood = Stood::of(of_backups.chain(survey.segment_events.values()));
        let layout = survey.layout(self.registration)?;
        let chosen = self.chosen(&survey)?;
        let mut paths = Paths::new(&survey);
        paths.trust_all();
        let work = Work {
            what: self,
            check: Check::new(
                self.repository.store(),
                &layout,
                self.threads,
                begun,
                self.host,
            )
            .seeing(seen(&survey)),
            layout,
            size: SegmentSize::new(self.registration.segment_size_bytes)?,
            segments: AtomicU64::new(0),
            unlinked: AtomicU64::new(0),
            unproven: AtomicU64::new(0),
            undecoded: AtomicU64::new(0),
            is_unsummed: AtomicBool::new(false),
        };
        let lost = self.lost(&survey);
        find_lost(&work, &survey.catalog, &lost, self.backup.is_none());
        if self.backup.is_none() {
            keys::check(&work, &survey)?;
            files::check(&work, &survey)?;
            epoch::check(&work, self.repository, &self.newest(&work, &survey))?;
        }
        self.read(&work, (&survey, &paths), &chosen)?;
        if let n @ 1.. = work.unproven.load(Ordering::Relaxed) {
            work.warn(unproven(n));
        }
        if let n @ 1.. = work.undecoded.load(Ordering::Relaxed) {
            work.warn(undecoded(n));
        }
        warn_strays(&work, &survey, &chosen);
        work.warn_healed();
        work.warn_archived();
        let recorder = self.recorder(&work.layout);
        recorder.record_read(&work);
        if !work.is_disturbed() {
            cost::add_gaps(&work, &survey, &mut paths, &chosen);
            let report = cost::report(work, &survey, &paths, &chosen);
            return Ok(self.record((&survey, &stood), report));
        }
        // Expiry may have deleted missing objects meanwhile: only objects that are still there, or still needed, count.
        let survey = Survey::compared(self.repository, self.registration)?;
        let mut paths = Paths::new(&survey);
        paths.trust_all();
        let is_there = |id: &BackupId| check::is_there(&survey.catalog, id);
        work.forget_gone(&survey.catalog);
        let chosen: Vec<BackupId> = chosen.into_iter().filter(is_there).collect();
        cost::add_gaps(&work, &survey, &mut paths, &chosen);
        let mut report = cost::report(work, &survey, &paths, &chosen);
        let lost = lost.into_iter().filter(is_there).map(|id| (id, false));
        report.backups.extend(lost);
        Ok(self.record((&survey, &stood), report))
    }

    /// Reads WAL and backups as deep as it is asked.
    fn read(
        &self,
        work: &Work<'_>,
        (survey, paths): (&Survey, &Paths<'_>),
        chosen: &[BackupId],
    ) -> Result<()> {
        let one = self.backup.is_some();
        let needed = one.then(|| wal::needed(survey, paths, chosen));
        let is_wanted = |timeline, number| {
            let needed = needed.as_ref();
            needed.is_none_or(|needed| needed.contains(timeline, number))
        };
        let extent = match self.depth {
            Depth::Everything => Some(Extent::Whole),
            Depth::Fast => Some(Extent::End),
            Depth::Oldest(_) => None,
        };
        let recorder = self.recorder(&work.layout);
        if let Some(extent) = extent {
            wal::check(work, (survey, paths), &is_wanted, extent)?;
            recorder.record_step(work);
        }
        if let Depth::Oldest(budget) = &self.depth {
            let content = OfCluster {
                work,
                survey,
                paths,
            };
            let there = oldest::there(survey);
            let read_back = survey.read_back(self.host.now());
            return oldest::read(
                (work, &recorder),
                (&survey.catalog, &there),
                (&read_back, budget),
                &content,
            );
        }
        // Shared parts are read as the newest one's.
        for id in chosen.iter().rev() {
            let events = survey.ids.get(id).map_or(&[][..], |s| &s.events);
            snapshot::check(work, id, self.depth.of_packs(events))?;
            recorder.record_step(work);
        }
        Ok(())
    }

    /// The newest segment, and the newest backup.
    fn newest(&self, work: &Work<'_>, survey: &Survey) -> Vec<Key> {
        let mut timelines = survey.timelines.iter().rev();
        let segment = timelines.find_map(|(timeline, found)| {
            let (_, last) = found.segments.bounds()?;
            Some(work.layout.segment(last.name(*timeline, work.size)?))
        });
        let backup = survey.committed().last();
        let backup = backup.map(|(id, _, _)| work.layout.manifest(id));
        segment.into_iter().chain(backup).collect()
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

    fn recorder<'r>(&'r self, layout: &'r ClusterLayout) -> Recorder<'r> {
        Recorder {
            repository: self.repository,
            scope: layout,
            host: self.host,
        }
    }

    /// Returns the backups in which nothing is wrong and of which every byte was read back, by this run or before.
    fn whole<'r>(&self, survey: &Survey, report: &'r Report) -> Vec<&'r BackupId> {
        let read_back = survey.read_back(self.host.now());
        let read = read_back.all().union(&report.read);
        let mut paths = Paths::new(survey);
        paths.trust_all();
        let was_read = |id: &BackupId| {
            let root = survey.ids.get(id).and_then(|subject| subject.root());
            root.is_some_and(|root| oldest::was_read(survey, &paths, root, &read))
        };
        // It does not read the server's manifests, and no event says who did.
        let is_read = self.depth != Depth::Fast;
        let sound = report.backups.iter().filter(|(_, sound)| *sound && is_read);
        sound.map(|(id, _)| id).filter(|id| was_read(id)).collect()
    }

    /// Object and detail of the place at which recovery ends.
    fn said_of(
        &self,
        survey: &Survey,
        report: &Report,
        (name, lsn): &(SegmentName, Lsn),
    ) -> (String, String) {
        let about = About::Record(*name, *lsn);
        match report.findings.iter().find(|f| f.about == about) {
            Some(finding) => (finding.object.clone(), finding.detail.clone()),
            None => {
                let layout = survey.layout(self.registration);
                let object = layout.map(|layout| layout.segment(*name).as_str().to_owned());
                let object = object.unwrap_or_else(|_| name.to_string());
                (object, format!("recovery does not get past {lsn}"))
            }
        }
    }

    /// Writes what was found of backups and segments as events, and ends those that no longer hold.
    fn record(&self, (survey, stood): (&Survey, &Stood), report: Report) -> Report {
        let mut damaged = damaged_backups(&report.findings);
        for finding in &report.findings {
            if let (About::Segment(name), FindingKind::Damaged) = (&finding.about, finding.kind) {
                let said = (finding.object.clone(), finding.detail.clone());
                damaged.entry(format!("wal-{name}")).or_insert(said);
            }
        }
        // Expire is to know it, also of one that an earlier run took for good.
        for (id, place) in &report.cut_short {
            let said = self.said_of(survey, &report, place);
            damaged.entry(id.to_string()).or_insert(said);
        }
        let mut known: BTreeMap<String, &[Recorded]> = BTreeMap::new();
        let is_deep = self.depth == Depth::Everything;
        for (id, whole) in report.backups.iter().filter(|_| is_deep) {
            // Damage that was recorded meanwhile may be what was not compared.
            let is_whole = *whole && !report.uncompared.contains(id);
            if let Some(subject) = survey.ids.get(id).filter(|_| is_whole) {
                known.insert(id.to_string(), &subject.events);
            }
        }
        if self.backup.is_none() && is_deep {
            let doubted = report.unread.iter().chain(&report.unlisted);
            let doubted: BTreeSet<_> = doubted.filter_map(About::segment).collect();
            let all = survey.segment_events.iter();
            for (name, events) in all.filter(|(name, _)| !doubted.contains(name)) {
                let is_there = name.number(survey.segment_size).is_ok_and(|n| {
                    let held = survey.timelines.get(&name.timeline);
                    held.is_some_and(|t| t.segments.contains(n))
                });
                if is_there {
                    known.insert(format!("wal-{name}"), events);
                }
            }
        }
        let whole = self.whole(survey, &report);
        let layout = survey.layout(self.registration);
        let result = layout.and_then(|layout| {
            let recorder = self.recorder(&layout);
            recorder.record(&damaged, (&known, stood), &whole, &|subject| {
                events_of(survey, subject)
            })?;
            let read = || Survey::compared(self.repository, self.registration).map(|s| s.catalog);
            recorder.record_sharing(read, &report.findings)
        });
        report.with_record(result)
    }
}

/// Warns of backups from which a later timeline does not go on, although their positions say so.
fn warn_strays(work: &Work<'_>, survey: &Survey, chosen: &[BackupId]) {
    for id in chosen {
        let root = survey.ids.get(id).and_then(|subject| subject.root());
        for (timeline, name) in root.into_iter().flat_map(|root| &root.strays) {
            work.warn(format!(
                "backup \"{id}\" does not lead to timeline {}: segment \"{name}\" begins with the WAL of another life of the cluster (pitr timeline list)",
                timeline.decimal()
            ));
        }
    }
}

/// Returns the warning about backups that carry no proof.
fn unproven(count: u64) -> String {
    let (backups, their, them) = match count {
        1 => ("backup has", "its", "it"),
        _ => ("backups have", "their", "them"),
    };
    format!(
        "{count} {backups} no proof of {their} WAL, for an older pitr took {them}: a clone's WAL in its place is not noticed"
    )
}

/// The last whole segment of each timeline.
fn seen(survey: &Survey) -> Seen {
    let last = survey.timelines.iter().filter_map(|(timeline, found)| {
        let (_, last) = found.segments.bounds()?;
        Some((*timeline, last))
    });
    last.collect()
}

/// The warning about segments whose records cannot be read.
fn undecoded(count: u64) -> String {
    let segments = match count {
        1 => "segment was",
        _ => "segments were",
    };
    format!(
        "{count} {segments} written by a PostgreSQL newer than {}: every byte was checked against its checksum, and nothing is proven of the records. Install a newer pitr",
        Major::NEWEST
    )
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

/// The data that the checks of a cluster share.
struct Work<'a> {
    what: &'a Verify<'a>,
    check: Check<'a>,
    layout: ClusterLayout,
    size: SegmentSize,
    segments: AtomicU64,
    unlinked: AtomicU64,
    /// Backups of which nothing was proven when they were taken.
    unproven: AtomicU64,
    /// Segments of a PostgreSQL newer than every supported one.
    undecoded: AtomicU64,
    /// A backup of a cluster without checksums of pages was looked at: in its packs nobody asked for them.
    is_unsummed: AtomicBool,
}

impl<'a> Deref for Work<'a> {
    type Target = Check<'a>;

    fn deref(&self) -> &Check<'a> {
        &self.check
    }
}
