//! The inventory of one cluster in a repository, as plain data: the input of every plan.
//!
//! Each inventory is read anew: backups from their roots, timelines and segments from listings, never from a cache. It
//! lists objects that cannot be read or are damaged as such. An error of the repository itself ends the reading, for it
//! is no answer.

use std::collections::{BTreeMap, BTreeSet};

use super::increment;
use super::increments;
use super::path::Listing;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::catalog::{self, Catalog, Manifest, Parts, Reduced, by_writer};
use crate::repo::container::{Container, Kind};
use crate::repo::decision::Decisions;
use crate::repo::event::{self, Recorded};
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::layout::{ClusterLayout, Home};
use crate::repo::lives::{Followed, Lives};
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::cluster::Tablespace;
use crate::repo::root::outline::Outline;
use crate::repo::root::{BackupKind, Stored};
use crate::repo::runs::Runs;
use crate::repo::scope::Scope;
use crate::repo::trimmed::Trimmed;
use crate::repo::wal_proof::WalProof;
use crate::store::{Listed, Store};

/// A history file is read up to this size.
const HISTORY_LIMIT_BYTES: u64 = 1 << 20;
/// Directories of segments are listed by this many threads.
const LISTERS: usize = 4;

/// Everything a plan needs to know.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Location of the repository, without secrets.
    pub repository: String,
    /// The repository's identity.
    pub repository_uuid: String,
    /// Cluster name.
    pub cluster: String,
    /// System identifier, as in `pg_control`.
    pub system_identifier: u64,
    /// PostgreSQL major at registration.
    pub major: u32,
    pub segment_size: SegmentSize,
    /// Backups, ascending by timeline and stop LSN.
    pub backups: Vec<Backup>,
    /// Backups whose root cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// The registration is lost: what other objects tell stands in its place.
    pub is_unregistered: bool,
    /// Backups that were completed, whose roots are not there, and that no mark shows to have been deleted.
    pub lost: Vec<BackupId>,
    /// Ids that were reserved and have no root, apart from lost ones, with their events: backups that run, or came to no end.
    pub begun: Vec<(BackupId, Vec<Recorded>)>,
    /// Timelines of which something is archived.
    pub timelines: BTreeMap<TimelineId, Timeline>,
    /// Segments that a check found damaged, and that no event says were healed.
    pub suspects: BTreeSet<SegmentName>,
    /// Events that somebody forged, and that do not count, each with its subject.
    pub forged: Vec<String>,
    /// Decisions about the timelines.
    pub decisions: Decisions,
    /// Which lives of the timelines are followed.
    pub lives: Lives,
}

/// A backup, reduced to what planning needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// Label that the operator gave it.
    pub label: String,
    /// Start of replay.
    pub start_lsn: Lsn,
    /// End of the WAL that the backup needs.
    pub stop_lsn: Lsn,
    /// From here on the restored cluster is consistent.
    pub consistent_lsn: Lsn,
    /// The checkpoint record.
    pub checkpoint_lsn: Lsn,
    pub start_timeline: TimelineId,
    /// Timeline at the stop.
    pub timeline: TimelineId,
    /// Server's clock at the start.
    pub start_time: TimestampTz,
    /// Server's clock at the stop.
    pub stop_time: TimestampTz,
    /// PostgreSQL major.
    pub major: u32,
    /// Raw bytes of all files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// The cluster's `timezone` setting, where it is known.
    pub timezone: Option<String>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Packs that it needs.
    pub packs: Parts,
    /// Proof of its WAL from the time of the backup; none in backups of earlier pitr versions.
    pub wal_proof: Option<WalProof>,
    /// Pages that failed their checksum when it was taken; 1 where the server alone says that some did.
    pub page_errors: u64,
    /// Known damage of its pages or objects, or what it lacks; none = no damage is known.
    pub damage: Option<String>,
    /// Whether databases lie in it without their content.
    pub is_partial: bool,
    /// How many copies of it are known in which a check found damaged objects: 0 where a copy is not known to be damaged.
    pub damaged_copies: u32,
    /// It is marked for deletion, not before this time.
    pub expire_mark: Option<TimestampTz>,
    /// The pins of it that no event ends, also those that are past their end.
    pub pins: Vec<Pin>,
    /// The holes that expiry made behind it on purpose.
    pub trimmed: Trimmed,
    /// A check read everything of it back, and found no damage.
    pub is_verified: bool,
}

/// A pin of a backup.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pin {
    /// The last part of its key.
    pub event: String,
    /// Why.
    pub reason: Option<String>,
    /// It is over then.
    pub until: Option<TimestampTz>,
    /// When it was made.
    pub time: TimestampTz,
    /// Host on which it was made.
    pub host: String,
    /// A legal hold.
    pub legal: bool,
    /// The store itself holds what the legal hold is for.
    pub held: bool,
}

impl Pin {
    /// As an event says it; `held` by the store.
    pub fn new(pin: &Recorded, held: bool) -> Pin {
        Pin {
            event: pin.name.clone(),
            reason: pin.event.reason.clone(),
            until: pin.event.until,
            time: pin.event.time,
            host: pin.event.host.clone(),
            legal: pin.event.legal,
            held,
        }
    }

    /// Whether it is past its end.
    pub fn is_over(&self, now: TimestampTz) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Backup {
    /// How good it is: undamaged, marked for deletion, damaged. Less is better.
    pub fn rank(&self) -> u8 {
        match (&self.damage, self.expire_mark) {
            (Some(_), _) => 2,
            (None, Some(_)) => 1,
            (None, None) => 0,
        }
    }

    /// The pin that keeps it, of several the one that lasts longest.
    pub fn pin(&self, now: TimestampTz) -> Option<&Pin> {
        let live = self.pins.iter().filter(|pin| !pin.is_over(now));
        live.rev()
            .max_by_key(|pin| pin.until.unwrap_or(TimestampTz::INFINITY))
    }

    /// Whether it is a copy of the same backup: its id alone could have been taken twice.
    pub fn is_copy_of(&self, other: &Backup) -> bool {
        let identity = |b: &Backup| (b.start_time, b.stop_time, b.start_lsn, b.stop_lsn);
        self.id == other.id && identity(self) == identity(other)
    }

    fn reduce(root: Outline) -> Result<Backup> {
        root.check_positions()?;
        let (start_timeline, timeline) = root.timelines()?;
        let (damage, is_partial) = (root.damage(), root.partial);
        let packs = by_writer(root.packs());
        let details = root.details;
        let (label, timezone, tablespaces) = match details {
            Some(d) => (Some(d.label), d.timezone, d.tablespaces),
            None => (None, None, Vec::new()),
        };
        Ok(Backup {
            start_timeline,
            timeline,
            packs,
            id: root.id,
            kind: root.backup_kind,
            label: label.unwrap_or_default(),
            start_lsn: root.start_lsn,
            stop_lsn: root.stop_lsn,
            consistent_lsn: root.consistent_lsn,
            checkpoint_lsn: root.checkpoint_lsn,
            start_time: root.start_time,
            stop_time: root.stop_time,
            major: root.major,
            size_bytes: root.size_bytes,
            stored_bytes: root.stored_bytes,
            timezone,
            tablespaces,
            wal_proof: root.wal_proof,
            page_errors: root.damage_count.max(u64::from(root.damaged)),
            damage,
            is_partial,
            damaged_copies: 0,
            expire_mark: None,
            pins: Vec::new(),
            trimmed: Trimmed::default(),
            is_verified: false,
        })
    }
}

impl Backup {
    /// Takes up the marks, pins and damage that events tell of it.
    fn fold(&mut self, events: &[Recorded], forged: &mut Vec<String>) {
        name_forged(&self.id.to_string(), events, forged);
        if let Some(found) = event::damage(events).first() {
            let detail = found.event.detail.as_deref().unwrap_or("no detail");
            self.damage = Some(format!("a check found damage: {detail}"));
            self.damaged_copies = 1;
        }
        self.expire_mark = event::marks(events)
            .iter()
            .map(|e| e.event.not_before.unwrap_or(e.stored))
            .min();
        let pins = event::standing(events, "pin", "unpin").into_iter();
        self.pins = pins
            .map(|pin| Pin::new(pin, event::is_held(events, pin)))
            .collect();
        self.trimmed = Trimmed::of(events);
        self.is_verified = !event::standing(events, "verified", "").is_empty();
    }
}

/// A backup, and the layers that it needs. Both kinds of parts are kept as runs: names of single ones would take MiB for each backup.
struct Read {
    backup: Backup,
    layers: Parts,
}

impl Read {
    /// Returns what a check found in a part of another id that it needs. Its own events tell of its own parts.
    fn shared_damage<'d>(
        &self,
        damaged: &'d BTreeMap<(PartKind, PartName), String>,
    ) -> Option<&'d String> {
        let mut found = damaged.iter();
        let shared =
            found.find(|((kind, part), _)| part.id != self.backup.id && self.needs(*kind, part));
        shared.map(|(_, detail)| detail)
    }

    fn needs(&self, kind: PartKind, part: &PartName) -> bool {
        let needed = match kind {
            PartKind::Layer => &self.layers,
            PartKind::Pack => &self.backup.packs,
        };
        let number = SegmentNumber(u64::from(part.number));
        needed
            .get(&part.id)
            .is_some_and(|runs| runs.contains(number))
    }
}

impl Reduced for Read {
    fn read(store: &dyn Store, scope: &Scope, id: &BackupId) -> Result<Stored<Read>> {
        Outline::stored(store, scope, id)?.reduced(|root| {
            Ok(Read {
                layers: by_writer(root.layers()),
                backup: Backup::reduce(root)?,
            })
        })
    }
}

/// A backup whose root cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub id: BackupId,
    /// Reason why its root cannot be read.
    pub problem: String,
}

/// The archived history and WAL of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeline {
    pub history: HistoryFile,
    /// When the store received the history.
    pub history_stored: Option<TimestampTz>,
    /// Its whole segments.
    pub segments: Runs,
    pub partials: BTreeSet<SegmentName>,
    /// Segments of which only a part is stored, and how far increments reach in each by their names; not farther than its start where
    /// there is a partial only.
    pub tails: BTreeMap<SegmentNumber, Lsn>,
    /// WAL that is known to be lost, and is not stored since.
    pub lost: Vec<LsnRange>,
}

/// Returns the whole segments of each timeline that has any.
pub fn segments(timelines: &BTreeMap<TimelineId, Timeline>) -> BTreeMap<TimelineId, Runs> {
    let whole = timelines.iter().map(|(id, t)| (*id, t.segments.clone()));
    whole.filter(|(_, runs)| !runs.is_empty()).collect()
}

impl Timeline {
    /// Whether a segment is stored, whole or in part.
    pub fn holds(&self, number: SegmentNumber) -> bool {
        self.segments.contains(number) || self.tails.contains_key(&number)
    }

    /// The first segment at or behind `number` that is stored, whole or in part.
    pub fn next_from(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        let tail = self.tails.range(number..).next().map(|(n, _)| *n);
        match (self.segments.next_from(number), tail) {
            (Some(whole), Some(tail)) => Some(whole.min(tail)),
            (whole, tail) => whole.or(tail),
        }
    }

    /// The last segment before `number` that is stored, whole or in part.
    pub fn previous_to(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        let tail = self.tails.range(..number).next_back().map(|(n, _)| *n);
        let mut runs = self.segments.iter().filter(|(first, _)| *first < number);
        let whole = runs
            .next_back()
            .map(|(_, last)| last.min(SegmentNumber(number.0.saturating_sub(1))));
        whole.max(tail)
    }

    /// The first and the last segment of all that are stored, whole or in part.
    pub fn bounds(&self) -> Option<(SegmentNumber, SegmentNumber)> {
        let tails = self.tails.keys().next().zip(self.tails.keys().next_back());
        let tails = tails.map(|(first, last)| (*first, *last));
        match (self.segments.bounds(), tails) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (whole, tails) => whole.or(tails),
        }
    }

    /// Whether nothing of it is stored.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.tails.is_empty()
    }

    /// Returns the parts of a range that are not stored, as far as names tell, ascending; parts that touch are one.
    pub fn lacks(&self, range: LsnRange, size: SegmentSize) -> Vec<LsnRange> {
        let mut lacking: Vec<LsnRange> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (reach, next) = self.held_at(at, size);
            let (start, end) = (reach.max(at), next.min(range.end));
            if start < end {
                match lacking.last_mut() {
                    Some(before) if before.end == start => before.end = end,
                    _ => lacking.push(LsnRange { start, end }),
                }
            }
            // The last segment of all has no end that lies behind it.
            if next <= at {
                break;
            }
            at = next;
        }
        lacking
    }

    /// Returns how far the WAL around a position is stored, and where the next that is stored may begin.
    fn held_at(&self, at: Lsn, size: SegmentSize) -> (Lsn, Lsn) {
        let number = SegmentNumber::of(at, size);
        let own = number.range(size);
        if let Some(last) = self.segments.run_end(number) {
            let end = last.range(size).end;
            return (end, end);
        }
        if let Some(reach) = self.tails.get(&number) {
            return (*reach, own.end);
        }
        let next = self.next_from(number);
        let next = next.map_or(Lsn(u64::MAX), |next| next.start_lsn(size));
        (own.start, next)
    }

    /// Returns the first range of WAL known to be lost that overlaps `range`; `None` where no such range does.
    pub fn lost_in(&self, range: LsnRange) -> Option<LsnRange> {
        let overlaps = |l: &&LsnRange| l.start < range.end && range.start < l.end;
        self.lost.iter().find(overlaps).copied()
    }
}

/// The history file of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HistoryFile {
    /// There is none.
    #[default]
    Absent,
    /// The content of the file.
    Known(History),
    /// It cannot be read, for this reason.
    Damaged(String),
}

impl Inventory {
    /// Reads what the repository holds of a cluster.
    ///
    /// # Errors
    /// `NotFound` when the cluster is not registered; what the store says. Damage of single objects is part of the answer.
    pub fn read(
        repository: &Repository,
        cluster: &str,
        system_identifier: Option<u64>,
    ) -> Result<Inventory> {
        Inventory::read_as(repository, cluster, system_identifier, Followed::Resolved)
    }

    /// As [`Inventory::read`]; `followed` says which segments of a forked timeline count.
    ///
    /// # Errors
    /// Those of [`Inventory::read`].
    pub fn read_as(
        repository: &Repository,
        cluster: &str,
        system_identifier: Option<u64>,
        followed: Followed,
    ) -> Result<Inventory> {
        let registration = choose_registration(repository, cluster, system_identifier)?;
        let layout = ClusterLayout::new(cluster, registration.system_identifier)?;
        let layout = followed.apply(repository, layout)?;
        let mut forged = Vec::new();
        let catalog = catalog::Reading::begin(repository.store(), &layout)?.backups()?;
        let subjects = catalog.others.clone();
        let taken = take_backups(catalog, &mut forged);
        let segment_size = SegmentSize::new(registration.segment_size_bytes)?;
        let decisions = Decisions::read(repository, &layout)?;
        forged.extend(decisions.forged.iter().cloned());
        let timelines = read_timelines(repository, &layout, segment_size, &subjects)?;
        let suspects = read_suspects(repository, &layout, &subjects, &mut forged)?;
        Ok(Inventory {
            lost: taken.lost,
            begun: taken.begun,
            backups: taken.backups,
            unreadable: taken.unreadable,
            suspects,
            forged,
            ..Inventory::without_backups(repository, registration, &layout, timelines, decisions)?
        })
    }

    /// Reads the WAL that the repository holds of a cluster, and the decisions about its timelines; no backups.
    ///
    /// # Errors
    /// As [`Inventory::read`].
    pub fn of_wal(
        repository: &Repository,
        cluster: &str,
        system_identifier: u64,
    ) -> Result<Inventory> {
        let registration = choose_registration(repository, cluster, Some(system_identifier))?;
        let layout = ClusterLayout::new(cluster, system_identifier)?;
        let layout = Followed::Resolved.apply(repository, layout)?;
        let segment_size = SegmentSize::new(registration.segment_size_bytes)?;
        let listed = repository.store().list(&layout.events())?.into_iter();
        let subjects: Vec<String> = listed.map(|l| l.name).collect();
        let timelines = read_timelines(repository, &layout, segment_size, &subjects)?;
        let decisions = Decisions::read(repository, &layout)?;
        Inventory::without_backups(repository, registration, &layout, timelines, decisions)
    }

    fn without_backups(
        repository: &Repository,
        registration: Registration,
        layout: &ClusterLayout,
        timelines: BTreeMap<TimelineId, Timeline>,
        decisions: Decisions,
    ) -> Result<Inventory> {
        Ok(Inventory {
            repository: repository.store().location(),
            repository_uuid: repository.marker().uuid.clone(),
            cluster: registration.name,
            system_identifier: registration.system_identifier,
            major: registration.major,
            segment_size: SegmentSize::new(registration.segment_size_bytes)?,
            is_unregistered: registration.is_lost,
            timelines,
            decisions,
            lives: layout.lives().clone(),
            ..Inventory::default()
        })
    }

    /// Returns the layout of the cluster's objects.
    ///
    /// # Errors
    /// `Usage` for an impossible cluster name.
    pub fn layout(&self) -> Result<ClusterLayout> {
        let layout = ClusterLayout::new(&self.cluster, self.system_identifier)?;
        Ok(layout.with_lives(self.lives.clone()))
    }

    /// The history of a timeline: its file, or nothing before it for timeline 1.
    ///
    /// # Errors
    /// `NotFound` where there is no file, `Damaged` where it cannot be read.
    pub fn history(&self, timeline: TimelineId) -> Result<History> {
        match self.timelines.get(&timeline).map(|t| &t.history) {
            Some(HistoryFile::Known(history)) => Ok(history.clone()),
            Some(HistoryFile::Damaged(why)) => Err(err!(
                Damaged,
                "the history file of timeline {} cannot be read: {why}",
                timeline.decimal()
            )),
            _ if timeline == TimelineId::FIRST => Ok(History::root(timeline)),
            _ => Err(err!(
                NotFound,
                "timeline {} has no history file in the repository",
                timeline.decimal()
            )
            .hint(format!(
                "Push it from a data directory that has it: pitr wal push PGDATA/pg_wal/{}",
                timeline.history_file_name()
            ))),
        }
    }

    /// Whether a segment is stored, whole or in part.
    pub fn holds(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        self.timelines
            .get(&timeline)
            .is_some_and(|t| t.holds(number))
    }

    /// Whether a segment is stored whole.
    pub fn has(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        self.timelines
            .get(&timeline)
            .is_some_and(|t| t.segments.contains(number))
    }

    /// Takes up the backups that another repository has, as if they were in this one; of two copies the better.
    pub fn add_backups(&mut self, others: &[Backup]) {
        for other in others {
            match self.backups.iter_mut().find(|b| b.id == other.id) {
                None => self.backups.push(other.clone()),
                Some(own) if other.is_copy_of(own) && other.rank() < own.rank() => {
                    *own = other.clone();
                }
                // A restore takes each object from the copy that has it whole.
                Some(own) if other.is_copy_of(own) && own.damaged_copies > 0 => {
                    own.damaged_copies += other.damaged_copies;
                }
                Some(_) => {}
            }
        }
        sort(&mut self.backups);
    }

    /// The zone of the cluster's clock settings, as its newest backup records it.
    pub fn timezone(&self) -> Option<&str> {
        self.backups
            .iter()
            .max_by_key(|b| b.stop_time)
            .and_then(|b| b.timezone.as_deref())
    }
}

impl Listing for Inventory {
    fn run(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        self.timelines.get(&timeline)?.segments.run_end(number)
    }

    fn part(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Lsn> {
        self.timelines.get(&timeline)?.tails.get(&number).copied()
    }

    fn next_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        self.timelines.get(&timeline)?.next_from(number)
    }
}

/// Sorts by place. At one place, as of a backup and its compaction, a verified one comes last: readers begin at the end.
pub fn sort(backups: &mut [Backup]) {
    backups.sort_by(|a, b| {
        let key = |b: &Backup| (b.timeline, b.stop_lsn, b.is_verified);
        key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
    });
}

/// The registration that readers take: the one asked for, the only one, or that of the newest backup.
fn choose_registration(
    repository: &Repository,
    cluster: &str,
    system_identifier: Option<u64>,
) -> Result<Registration> {
    let mut registrations = repository.registrations(cluster)?;
    if registrations.is_empty() {
        let names = repository.cluster_names()?.join(", ");
        return Err(err!(
            NotFound,
            "cluster \"{cluster}\" is not in repository \"{}\"",
            repository.store().location()
        )
        .hint(format!("Known there: {names}")));
    }
    if let Some(wanted) = system_identifier {
        let known: Vec<String> = registrations
            .iter()
            .map(|r| r.system_identifier.to_string())
            .collect();
        return registrations
            .into_iter()
            .find(|r| r.system_identifier == wanted)
            .ok_or_else(|| {
                err!(
                    NotFound,
                    "system identifier {wanted} is not registered for cluster \"{cluster}\""
                )
                .hint(format!("Registered: {}", known.join(", ")))
            });
    }
    let mut newest: Option<(BackupId, usize)> = None;
    if registrations.len() > 1 {
        for (at, registration) in registrations.iter().enumerate() {
            let layout = ClusterLayout::new(cluster, registration.system_identifier)?;
            // Ids begin with the start time, which is what "newest" means between clusters that share no WAL. Within
            // one second the later registration counts as newer.
            let id = newest_backup(repository, &layout, newest.as_ref().map(|(id, _)| id))?;
            newest = id.map(|id| (id, at)).or(newest);
        }
    }
    let at = newest.map_or(registrations.len() - 1, |(_, at)| at);
    Ok(registrations.swap_remove(at))
}

/// The newest backup that is committed, if it is newer than `known`: a tombstone and what an aborted run left are none.
fn newest_backup(
    repository: &Repository,
    layout: &ClusterLayout,
    known: Option<&BackupId>,
) -> Result<Option<BackupId>> {
    let mut ids = catalog::ids(repository.store(), layout)?;
    ids.sort();
    for id in ids.into_iter().rev() {
        if known.is_some_and(|known| id.is_before(known)) {
            break;
        }
        match Outline::read(repository.store(), layout, &id) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Some(id)),
            Err(e) if e.is_damage() => return Ok(Some(id)),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The ids of a catalog, by what stands in the place of their roots.
#[derive(Default)]
struct Taken {
    backups: Vec<Backup>,
    unreadable: Vec<Unreadable>,
    lost: Vec<BackupId>,
    begun: Vec<(BackupId, Vec<Recorded>)>,
}

fn take_backups(catalog: Catalog<Read>, forged: &mut Vec<String>) -> Taken {
    let mut taken = Taken::default();
    let damaged = catalog.damaged_parts();
    for (id, subject) in catalog.ids {
        if subject.lost().is_some() {
            taken.lost.push(id);
            continue;
        }
        match subject.manifest {
            Manifest::Committed(read) => {
                let shared = read.shared_damage(&damaged);
                let Read { mut backup, .. } = *read;
                match subject.unread_events {
                    None => backup.fold(&subject.events, forged),
                    // One damaged event hides what it says; the backup itself is still there.
                    Some(e) => {
                        let note = format!("an event of it cannot be read: {e}");
                        backup.damage.get_or_insert(note);
                    }
                }
                if let Some(detail) = shared {
                    let note = format!("a check found damage: {detail}");
                    backup.damage.get_or_insert(note);
                    backup.damaged_copies = 1;
                }
                taken.backups.push(backup);
            }
            Manifest::Unreadable(problem) => taken.unreadable.push(Unreadable { id, problem }),
            Manifest::Absent if subject.begin().is_some() => {
                taken.begun.push((id, subject.events));
            }
            Manifest::Absent | Manifest::Tombstone => {}
        }
    }
    sort(&mut taken.backups);
    taken
}

/// Whether damage was found in another life of a timeline than the one that is followed.
pub fn is_elsewhere(layout: &ClusterLayout, name: SegmentName, damage: &Recorded) -> bool {
    let object = damage.event.object.as_deref();
    object.is_some_and(|object| layout.is_elsewhere(name, object))
}

fn name_forged(subject: &str, events: &[Recorded], into: &mut Vec<String>) {
    let forged = event::forged(events).into_iter();
    into.extend(forged.map(|e| format!("{subject}/{}", e.name)));
}

fn read_suspects(
    repository: &Repository,
    layout: &ClusterLayout,
    subjects: &[String],
    forged: &mut Vec<String>,
) -> Result<BTreeSet<SegmentName>> {
    let mut suspects = BTreeSet::new();
    for subject in subjects {
        let Some(Ok(name)) = subject.strip_prefix("wal-").map(str::parse::<SegmentName>) else {
            continue;
        };
        let standing = match event::read_all(repository.store(), layout, subject) {
            Ok(events) => {
                name_forged(subject, &events, forged);
                let mut found = event::damage(&events).into_iter();
                found.any(|e| !is_elsewhere(layout, name, e))
            }
            // Whatever it says, the segment is looked at itself.
            Err(e) if e.is_damage() => true,
            Err(e) => return Err(e),
        };
        if standing {
            suspects.insert(name);
        }
    }
    Ok(suspects)
}

pub(super) fn read_timelines(
    repository: &Repository,
    layout: &ClusterLayout,
    size: SegmentSize,
    subjects: &[String],
) -> Result<BTreeMap<TimelineId, Timeline>> {
    let store = repository.store();
    let mut timelines = BTreeMap::new();
    for listed in store.list(&layout.wal())? {
        let Ok(id) = listed.name.parse::<TimelineId>() else {
            continue;
        };
        let mut timeline = Timeline::default();
        let mut open = Vec::new();
        for home in layout.homes(id) {
            let own = |l: &Listed| own_segment(layout, &home, &l.name);
            let mut logs = Vec::new();
            for inner in store.list(home.prefix())? {
                match (inner.name.as_str(), inner.is_prefix) {
                    ("history", false) => {
                        timeline.history = read_history(repository, layout, id)?;
                        let meta = store.head(&layout.history(id))?;
                        timeline.history_stored = meta.map(|meta| meta.modified);
                    }
                    ("partial", true) => {
                        let names = store.list(&home.partials())?;
                        timeline.partials.extend(names.iter().filter_map(own));
                    }
                    // Before the segments: one that is completed meanwhile is then seen as whole.
                    ("open", true) => {
                        open.extend(store.list(&home.open_segments())?.iter().filter_map(own));
                    }
                    (log, true) => logs.extend(log_number(log)),
                    _ => {}
                }
            }
            let segments = read_segments(repository, layout, (id, &home), &logs, size)?;
            timeline.segments = std::mem::take(&mut timeline.segments).union(segments);
        }
        read_tails(repository, layout, &mut timeline, open.into_iter(), size)?;
        timelines.insert(id, timeline);
    }
    read_lost(repository, layout, size, subjects, &mut timelines)?;
    Ok(timelines)
}

/// The segment of this name, if this is its home.
fn own_segment(layout: &ClusterLayout, home: &Home, name: &str) -> Option<SegmentName> {
    let name = name.parse::<SegmentName>().ok()?;
    (layout.home_of(name) == *home).then_some(name)
}

/// Segments of which only a part is stored. Increments of whole ones may still lie there: they are not looked at.
fn read_tails(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: &mut Timeline,
    open: impl Iterator<Item = SegmentName>,
    size: SegmentSize,
) -> Result<()> {
    let whole = &timeline.segments;
    let number = |name: SegmentName| name.number(size).ok().filter(|n| !whole.contains(*n));
    for number in timeline.partials.iter().copied().filter_map(number) {
        timeline.tails.insert(number, number.start_lsn(size));
    }
    for name in open {
        let Some(number) = number(name) else {
            continue;
        };
        let range = number.range(size);
        let increments = increment::list(repository, layout, name)?;
        if let Some(last) = increments::longest(range.start, &increments).last() {
            timeline.tails.insert(number, last.end.min(range.end));
        }
        timeline
            .lost
            .extend(increments::hole(range.start, &increments));
    }
    Ok(())
}

/// Adds the WAL that `gap` events report as lost, apart from the parts of it that arrived after all.
fn read_lost(
    repository: &Repository,
    layout: &ClusterLayout,
    size: SegmentSize,
    subjects: &[String],
    timelines: &mut BTreeMap<TimelineId, Timeline>,
) -> Result<()> {
    for (id, timeline) in timelines {
        let subject = event::timeline_subject(*id);
        if !subjects.contains(&subject) {
            continue;
        }
        let events = match event::read_all(repository.store(), layout, &subject) {
            Ok(events) => events,
            // It tells what is missing in the listing, too.
            Err(e) if e.is_damage() => continue,
            Err(e) => return Err(e),
        };
        let lost: Vec<LsnRange> = event::gaps(&events, layout, *id, size)
            .into_iter()
            .flat_map(|lost| timeline.lacks(lost, size))
            .collect();
        timeline.lost.extend(lost);
    }
    Ok(())
}

/// The directory of a log id: eight upper-case hexadecimal digits.
fn log_number(name: &str) -> Option<u32> {
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (name.len() == 8 && name.bytes().all(upper))
        .then(|| u32::from_str_radix(name, 16).ok())
        .flatten()
}

/// Lists the directories of a timeline, several at a time: on a disk that is not cached each costs a seek.
fn read_segments(
    repository: &Repository,
    layout: &ClusterLayout,
    (timeline, home): (TimelineId, &Home),
    logs: &[u32],
    size: SegmentSize,
) -> Result<Runs> {
    let list = |logs: &[u32]| -> Result<Runs> {
        let mut runs = Vec::new();
        for log in logs {
            let mut numbers = Vec::new();
            let directory = home.log(*log);
            repository.store().visit(&directory, &mut |name, _| {
                // Healed copies count only where their base is: they have names of their own.
                if let Some(name) = own_segment(layout, home, name)
                    && name.timeline == timeline
                    && name.log == *log
                    && let Ok(number) = name.number(size)
                {
                    numbers.push(number.0);
                }
            })?;
            runs.push(Runs::from_numbers(numbers));
        }
        Ok(runs.into_iter().fold(Runs::default(), Runs::union))
    };
    if logs.len() < 2 * LISTERS {
        return list(logs);
    }
    let share = logs.len().div_ceil(LISTERS);
    let parts: Vec<Result<Runs>> = std::thread::scope(|scope| {
        let threads: Vec<_> = logs
            .chunks(share)
            .map(|part| scope.spawn(move || list(part)))
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(err!(Internal, "a listing thread panicked")))
            })
            .collect()
    });
    let mut all = Runs::default();
    for part in parts {
        all = all.union(part?);
    }
    Ok(all)
}

fn read_history(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<HistoryFile> {
    let key = layout.history(timeline);
    // An encrypted one may fail as it is opened.
    let object = match repository.store().open(&key) {
        Ok(Some(object)) => object,
        Ok(None) => return Ok(HistoryFile::Absent),
        Err(e) if e.is_damage() => return Ok(HistoryFile::Damaged(e.to_string())),
        Err(e) => return Err(e),
    };
    let read = || -> Result<History> {
        let container = Container::open(object)?;
        let name = timeline.history_file_name();
        if !container.is_stored_as(Kind::History, name, layout.system_identifier()) {
            return Err(err!(Damaged, "object \"{key}\" is another file"));
        }
        container.history(timeline, HISTORY_LIMIT_BYTES)
    };
    match read() {
        Ok(history) => Ok(HistoryFile::Known(history)),
        Err(e) if e.is_damage() => Ok(HistoryFile::Damaged(e.to_string())),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::catalog::Subject;
    use crate::repo::event::Event;

    fn id(n: u32) -> BackupId {
        format!("20261120T0640{n:02}Z-full").parse().unwrap()
    }

    fn backup(n: u32, packs: Parts) -> Backup {
        Backup {
            id: id(n),
            kind: BackupKind::Incremental,
            label: String::new(),
            start_lsn: Lsn(1000),
            stop_lsn: Lsn(2000),
            consistent_lsn: Lsn(2000),
            checkpoint_lsn: Lsn(1000),
            start_timeline: TimelineId::FIRST,
            timeline: TimelineId::FIRST,
            start_time: TimestampTz(0),
            stop_time: TimestampTz(0),
            major: 17,
            size_bytes: 0,
            stored_bytes: 0,
            timezone: None,
            tablespaces: Vec::new(),
            packs,
            wal_proof: None,
            page_errors: 0,
            damage: None,
            is_partial: false,
            damaged_copies: 0,
            expire_mark: None,
            pins: Vec::new(),
            trimmed: Trimmed::default(),
            is_verified: false,
        }
    }

    /// Parts that the first backup wrote.
    fn parts(numbers: impl IntoIterator<Item = u64>) -> Parts {
        Parts::from([(id(1), Runs::from_numbers(numbers.into_iter().collect()))])
    }

    fn subject(backup: Backup, layers: Parts) -> (BackupId, Subject<Read>) {
        let id = backup.id.clone();
        let subject = Subject {
            manifest: Manifest::Committed(Box::new(Read { backup, layers })),
            ..Subject::default()
        };
        (id, subject)
    }

    fn damaged(kind: &str, number: u32) -> Recorded {
        let object = format!("clusters/main-7/{kind}/{}/{number:06}", id(1));
        Recorded {
            name: format!("{kind}-{number}"),
            event: Event {
                event: "damaged".into(),
                subject: id(1).to_string(),
                object: Some(object),
                detail: Some(format!("{kind} {number}")),
                ..Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        }
    }

    #[test]
    fn r198_damage_of_a_shared_part_is_that_of_each_backup_that_needs_it() {
        let (writer, first) = subject(backup(1, parts(0..5)), Parts::new());
        let events = vec![damaged("packs", 3), damaged("layers", 2)];
        let first = Subject { events, ..first };
        let catalog = Catalog {
            ids: BTreeMap::from([
                (writer, first),
                subject(backup(2, parts(0..5)), parts([0, 1])),
                subject(backup(3, parts([0, 2, 4])), parts([0, 1])),
                subject(backup(4, parts(0..5)), parts(0..9)),
                subject(backup(5, Parts::new()), parts([2])),
            ]),
            ..Catalog::empty()
        };
        let mut forged = Vec::new();
        let taken = take_backups(catalog, &mut forged);
        let found: Vec<_> = taken.backups.iter().map(|b| b.damage.as_deref()).collect();
        let packs = Some("a check found damage: packs 3");
        let layers = Some("a check found damage: layers 2");
        // Its own events tell it of the first, in their order; of others layers come before packs.
        assert_eq!(found, [packs, packs, None, layers, layers]);
        let copies: Vec<_> = taken.backups.iter().map(|b| b.damaged_copies).collect();
        assert_eq!(copies, [1, 1, 0, 1, 1]);
    }

    #[test]
    fn t82_of_a_recorded_loss_only_what_is_not_stored_counts() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let at = |number: u64, more: u64| Lsn((number << 20) + more);
        let range = |start, end| LsnRange { start, end };
        let timeline = Timeline {
            segments: Runs::from_numbers(vec![5, 6]),
            tails: BTreeMap::from([(SegmentNumber(3), at(3, 500))]),
            ..Timeline::default()
        };
        let lacks = |start, end| timeline.lacks(range(start, end), size);
        assert_eq!(
            lacks(at(3, 100), at(8, 7)),
            [range(at(3, 500), at(5, 0)), range(at(7, 0), at(8, 7))]
        );
        assert_eq!(lacks(at(3, 0), at(3, 500)), []);
        assert_eq!(lacks(at(5, 9), at(7, 0)), []);
        let last = Lsn(u64::MAX);
        assert_eq!(lacks(at(9, 0), last), [range(at(9, 0), last)]);
    }

    /// Who looks for the best backup begins at the end: plans, and an incremental for its prior.
    #[test]
    fn of_a_backup_and_its_compaction_the_verified_one_comes_last() {
        let with = |n, stop, is_verified| Backup {
            stop_lsn: Lsn(stop),
            is_verified,
            ..backup(n, Parts::new())
        };
        let sorted = |mut all: Vec<Backup>| -> Vec<BackupId> {
            sort(&mut all);
            all.into_iter().map(|b| b.id).collect()
        };
        let neither = sorted(vec![with(2, 2000, false), with(1, 2000, false)]);
        assert_eq!(neither, [id(1), id(2)]);
        let older = sorted(vec![with(1, 2000, true), with(2, 2000, false)]);
        assert_eq!(older, [id(2), id(1)]);
        let both = sorted(vec![with(2, 2000, true), with(1, 2000, true)]);
        assert_eq!(both, [id(1), id(2)]);
        // One that lies further on comes behind, verified or not.
        let further = sorted(vec![with(3, 2001, false), with(1, 2000, true)]);
        assert_eq!(further, [id(1), id(3)]);
        let other = Backup {
            timeline: TimelineId::new(2).unwrap(),
            ..with(4, 1900, false)
        };
        assert_eq!(sorted(vec![other, with(1, 2000, true)]), [id(1), id(4)]);
    }
}
