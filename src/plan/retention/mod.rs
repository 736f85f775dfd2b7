//! Backups and WAL that stay, and those that go: a plan of expiry, computed without I/O from a survey of the
//! repository.
//!
//! Without a WAL window the promise covers every point from the oldest kept backup's stop LSN on, on every timeline.
//! Each of these points that could be reached before can be reached afterwards. With a window, it covers every point
//! from the newest backup before the window on. Older kept backups are restorable to their own ends. `rules` judges
//! items of any content, and `calendar` those of periods. `aux_items` and `cluster` make items of backups, and
//! `cluster` adds the needs of its WAL. `wal` computes which WAL is needed, and `copies` which of the rest other repositories lack. `objects` lists the deletions of any
//! content, and `wal_objects` those of the WAL. `log` computes what goes of the log of Redis. Backups are ordered by timeline and stop LSN (a timeline's number is
//! larger than those of its ancestors), never by id or by a clock. Deletion has two phases. A backup that is no longer
//! kept is marked. A run after the grace period deletes a marked backup if it finds again that the backup is not kept.
//! The order of deletions is that of the format, section 10.

pub mod aux_items;
mod calendar;
pub mod claims;
mod cluster;
pub mod copies;
#[cfg(test)]
mod histories_tests;
mod item;
pub mod log;
#[cfg(test)]
mod log_tests;
mod objects;
#[cfg(test)]
mod planned_tests;
mod rules;
#[cfg(test)]
mod steady_tests;
#[cfg(test)]
mod tests;
mod unborn;
pub mod wal;
mod wal_objects;

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::NaiveDate;
use claims::SpentClaims;
use cluster::Backups;
use copies::Copies;
use item::{Hold, Item, Twin};
use rules::Constraint;
use wal::Needed;

use super::target_time::Zone;
use crate::config::Retention;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::{Catalog, Needs, Subject};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::portion;
use crate::repo::set_mark::Spent;
use crate::store::Key;
use crate::wal::survey::Survey;

/// A reservation without a backup is left alone for this long.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
/// A tombstone stays for this long.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks may differ by this much before it is called the future.
pub const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// The backups of a scope that are whole as far as is known, and not marked.
pub fn whole<R: Needs>(catalog: &Catalog<R>) -> Vec<BackupId> {
    let damaged = catalog.damaged_parts();
    let is_whole = |subject: &Subject<R>, root: &R| {
        let marks = event::marks(&subject.events);
        marks.is_empty() && item::damage((catalog, &damaged), subject, root.needs()).is_none()
    };
    let whole = catalog.committed();
    whole
        .filter(|(_, subject, root)| is_whole(subject, root))
        .map(|(id, ..)| id.clone())
        .collect()
}

/// The rules and settings of a run of expiry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Which complete, undamaged backups are kept, at least 1, and which WAL.
    pub rules: Retention,
    /// The zone of days, weeks, months and years; else UTC.
    pub zone: Option<Zone>,
    /// How many repositories have a backup and its WAL, where that is asked for.
    pub copies: Option<Copies>,
    /// Backups that a drill proved, where the rules ask for them.
    pub proven: BTreeSet<BackupId>,
    /// Marks younger than this delete nothing.
    pub grace: Duration,
    /// Backups that cannot be deleted, because the store refused.
    pub spared: BTreeSet<BackupId>,
    /// Backups whose roots are lost, and that are deleted like others that are not kept.
    pub given_up: BTreeSet<BackupId>,
    /// A backup goes only where a newer one was verified and is this old.
    pub min_age: Duration,
    /// More backups than usual were taken on purpose.
    pub confirm_burst: bool,
    /// A person asked for this backup to be deleted: nothing else goes but it, and the WAL that nothing needs then. How many are kept does not matter.
    pub requested: Option<BackupId>,
    /// Commands about the content, for what is to be done first.
    pub commands: Commands,
    /// The store's clock, where it can be asked: a pin with an end is over only when this one, too, is past it.
    pub store_clock: Option<TimestampTz>,
    /// The timelines that may be the cluster (`plan::cluster`): each keeps a base. If none is named, the newest does.
    pub cluster: Vec<TimelineId>,
}

/// The commands about a cluster, or about other content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// Takes a backup.
    pub backup: String,
    /// Options that name the content, behind the id of a backup; a space goes before them.
    pub of: String,
}

impl Default for Commands {
    fn default() -> Commands {
        Commands {
            backup: "pitr backup".to_owned(),
            of: String::new(),
        }
    }
}

impl Policy {
    /// The zone of days.
    pub fn zone(&self) -> Zone {
        self.zone.unwrap_or(Zone::UTC)
    }

    /// The day on which a moment falls.
    fn date(&self, time: TimestampTz) -> Option<NaiveDate> {
        self.zone().date(time)
    }
}

/// The fate of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It is marked now, and deleted by a run after the grace period.
    Mark,
    /// It was marked before and is in its grace period until then.
    Waiting(TimestampTz),
    /// It is deleted now.
    Delete,
}

impl Fate {
    /// One word for it, as JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Keep => "keep",
            Fate::Mark => "mark",
            Fate::Waiting(_) => "waiting",
            Fate::Delete => "delete",
        }
    }
}

/// A backup, what becomes of it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub id: BackupId,
    /// Place in a cluster's WAL; none of other content.
    pub place: Option<Place>,
    /// Its own clock at the stop.
    pub stop_time: TimestampTz,
    /// That clock was ahead of the store's.
    pub is_ahead: bool,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Damage of the backup.
    pub damage: Option<String>,
    /// Fate of the backup.
    pub fate: Fate,
    /// Why.
    pub reason: String,
    /// Retention keeps it: points behind it are promised. A pin or a claim alone promises nothing.
    pub is_promised: bool,
    /// It stays with the WAL to its own end, and none behind that.
    pub is_bounded: bool,
    /// The rules that keep it, by their names in the configuration.
    pub rules: Vec<&'static str>,
    /// The rules let it go then at the earliest; none where that hangs on backups to come, or where no rule keeps it.
    pub kept_until: Option<TimestampTz>,
}

/// The place of a backup in the WAL of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From here on it can be recovered to.
    pub stop_lsn: Lsn,
    /// Start of its replay.
    pub start_lsn: Lsn,
    /// Timeline at the stop.
    pub timeline: TimelineId,
}

/// One deletion, or several of one kind in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// A backup's root: from then on it does not exist.
    Manifest(BackupId),
    /// PostgreSQL's own manifest.
    ServerManifest(BackupId),
    /// The list of a backup's relations.
    Relations(BackupId),
    /// Layer objects, first to last number.
    Layers(BackupId, u32, u32),
    /// Packs, first to last number.
    Packs(BackupId, u32, u32),
    /// Segments of a timeline, first to last.
    Segments(TimelineId, SegmentNumber, SegmentNumber),
    /// A partial segment or a backup history file.
    WalFile(WalFileName),
    /// An increment, a refused copy or a healed copy.
    Object(Key),
    /// An event of a subject, by the last part of its key.
    Event(String, String),
    /// A tombstone whose time is over.
    Tombstone(BackupId),
    /// The reservation of an id.
    Begin(BackupId),
    /// The remains of an unfinished write.
    Unfinished(String),
    /// Claims of copies of an id that hold nothing any more. They go last of all, as far as a round lasts.
    Spent(BackupId, SpentClaims),
}

/// The actions of a run of expiry, in this order: marks, then tombstones, then deletions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpirePlan {
    /// Every backup, oldest first.
    pub backups: Vec<Judged>,
    pub marks: Vec<BackupId>,
    /// Marks to take back, because the backup is kept again: id and the mark's event.
    pub unmarks: Vec<(BackupId, String)>,
    /// Aborted backups whose writers must not commit any more.
    pub tombstones: Vec<BackupId>,
    /// Deletions, in order.
    pub deletions: Vec<Deletion>,
    /// Backups that stay and lose the WAL behind their ends, each with the first segment that it loses: it is recorded before.
    pub holes: Vec<(BackupId, SegmentName)>,
    /// The WAL that backups need, those that are being taken included.
    pub needed: Needed,
    /// The WAL that no backup here needs, and that stays because another repository lacks it: first and last segment.
    pub short: Vec<(TimelineId, SegmentNumber, SegmentNumber)>,
    /// The log of Redis, by history.
    pub log: Vec<log::HistoryFate>,
    /// Marks of a recovery set that go.
    pub spent: Vec<Spent>,
    /// Its stored runbooks that go, by name.
    pub runbooks: Vec<String>,
    /// From here on every moment stays reachable, where a WAL window says so.
    pub window_begin: Option<TimestampTz>,
    /// The root of a backup is lost, or may be: it may be older than each that is shown.
    pub has_lost: bool,
    /// Why less is deleted than could be.
    pub withheld: Vec<String>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
    /// A safety guard spoke: the policy alone would have taken the last good backup.
    pub refusal: Option<String>,
    /// More backups than usual were taken lately: nothing is marked or deleted before that is confirmed.
    pub burst: Option<String>,
    /// Text that names what the minimum age holds back, and until when.
    pub waiting: Option<String>,
}

impl ExpirePlan {
    /// The oldest backup that is kept and good: the promise begins at its end.
    pub fn oldest_kept(&self) -> Option<&Judged> {
        self.backups
            .iter()
            .filter(|b| b.is_promised)
            .min_by_key(|b| b.place.map(|place| place.stop_lsn))
    }

    /// How many segments go.
    pub fn segment_count(&self) -> u64 {
        self.deletions
            .iter()
            .map(|d| match d {
                Deletion::Segments(_, first, last) => last.0 - first.0 + 1,
                _ => 0,
            })
            .sum()
    }

    /// Whether nothing at all happens.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
            && self.unmarks.is_empty()
            && self.tombstones.is_empty()
            && self.deletions.is_empty()
    }

    /// Backups that stay and lose the WAL behind their ends.
    pub fn trimmed(&self) -> Vec<&BackupId> {
        let mut trimmed: Vec<_> = self.holes.iter().map(|(id, _)| id).collect();
        trimmed.dedup();
        trimmed
    }

    /// Whether nothing goes but events that tell nothing any more: claims of copies that are over, and superseded checks.
    pub fn only_clears(&self) -> bool {
        let is_cleared = |deletion: &Deletion| match deletion {
            Deletion::Spent(..) => true,
            Deletion::Event(subject, _) => subject == portion::SUBJECT,
            _ => false,
        };
        self.marks.is_empty()
            && self.unmarks.is_empty()
            && self.tombstones.is_empty()
            && self.deletions.iter().all(is_cleared)
    }
}

/// Computes what is kept and what goes of a cluster.
///
/// Whatever cannot be judged for sure stays: with an unreadable root, reservation, claim or history nothing is deleted at all, and
/// `withheld` says so.
pub fn retention(survey: &Survey, policy: &Policy, now: TimestampTz) -> ExpirePlan {
    let paths = wal::Paths::new(survey);
    let backups = Backups::new(survey, &paths, policy);
    plan(&survey.catalog, (&backups, backups.items()), policy, now)
}

/// Computes what is kept and what goes of any content.
fn plan<R: Needs>(
    catalog: &Catalog<R>,
    (content, items): (&dyn Constraint, Vec<Item<'_>>),
    policy: &Policy,
    now: TimestampTz,
) -> ExpirePlan {
    let judged = rules::judge(items, content, policy, now);
    let mut plan = ExpirePlan {
        warnings: judged.warnings.clone(),
        refusal: judged.refusal.clone(),
        marks: judged.marks.clone(),
        unmarks: judged.unmarks.clone(),
        waiting: judged.waiting.clone(),
        window_begin: judged.window_begin,
        ..ExpirePlan::default()
    };
    if judged.burst.is_some() {
        plan.burst.clone_from(&judged.burst);
        plan.marks.clear();
        plan.unmarks.clear();
        plan.withheld.extend(judged.burst.clone());
    }
    if policy.requested.is_none() {
        lost_backups(catalog, policy, now, &mut plan);
    }
    let unreadable = catalog.unreadable.iter();
    plan.withheld.extend(
        unreadable.map(|what| format!("nothing is deleted, because this cannot be read: {what}")),
    );
    if plan.withheld.is_empty() && judged.keeps_nothing() && !judged.items.is_empty() {
        plan.withheld
            .push("nothing is deleted, because no backup is known to be good".to_owned());
    }
    if plan.withheld.is_empty() {
        let asked = (content, judged.items.as_slice());
        objects::delete(catalog, asked, policy, now, &mut plan);
    }
    if let Some(id) = &policy.requested {
        let is_gone = catalog.ids.get(id).and_then(Subject::root).is_none();
        restrict(&mut plan, id, is_gone);
    }
    let items = judged.items.into_iter();
    let has_window = plan.window_begin.is_some();
    plan.backups = items.map(|item| shown(item, content, has_window)).collect();
    if !plan.withheld.is_empty() {
        keep_withheld(&mut plan, now);
    }
    plan
}

fn shown(item: Item<'_>, content: &dyn Constraint, has_window: bool) -> Judged {
    Judged {
        id: item.id.clone(),
        place: content.place(item.id),
        stop_time: item.time,
        is_ahead: item.is_ahead(),
        stored_bytes: item.stored_bytes,
        is_promised: matches!(item.hold, Some((_, Hold::Promise))),
        is_bounded: item.is_bounded(has_window),
        rules: item.kept_by.iter().map(|kept| kept.rule).collect(),
        kept_until: item.kept_by.iter().filter_map(|kept| kept.until).max(),
        damage: item.damage,
        fate: item.fate,
        reason: match (item.hold, item.twin) {
            (Some((reason, _)), _) => reason,
            (None, Some(Twin::StoodForBy(other))) => {
                format!("\"{other}\" was compacted from it, and takes its place")
            }
            (None, _) => "no rule keeps it".to_owned(),
        },
    }
}

/// Shows what happens where deletion is withheld, and not what it would have been.
fn keep_withheld(plan: &mut ExpirePlan, now: TimestampTz) {
    for backup in &mut plan.backups {
        let goes = plan
            .deletions
            .contains(&Deletion::Manifest(backup.id.clone()));
        if backup.fate == Fate::Delete && !goes {
            backup.fate = Fate::Waiting(now);
        }
        if plan.burst.is_some() && backup.fate == Fate::Mark {
            backup.fate = Fate::Keep;
        }
    }
}

/// Leaves to other runs what has nothing to do with the backup `id`. One that is gone already leaves its WAL to a later round of the same run.
fn restrict(plan: &mut ExpirePlan, id: &BackupId, is_gone: bool) {
    plan.tombstones.clear();
    let goes = is_gone || plan.deletions.contains(&Deletion::Manifest(id.clone()));
    if !goes {
        plan.log.iter_mut().for_each(|history| history.gone = None);
    }
    let own = id.to_string();
    plan.deletions.retain(|deletion| match deletion {
        _ if !goes => false,
        Deletion::Manifest(of)
        | Deletion::ServerManifest(of)
        | Deletion::Relations(of)
        | Deletion::Layers(of, ..)
        | Deletion::Packs(of, ..)
        | Deletion::Begin(of) => of == id,
        Deletion::Event(subject, _) => *subject == own || subject.starts_with("wal-"),
        Deletion::Segments(..) | Deletion::WalFile(_) | Deletion::Object(_) => true,
        Deletion::Tombstone(_) | Deletion::Unfinished(_) | Deletion::Spent(..) => false,
    });
}

/// Backups whose roots are lost stay until they are given up; of what may be one a warning tells.
fn lost_backups<R: Needs>(
    catalog: &Catalog<R>,
    policy: &Policy,
    now: TimestampTz,
    plan: &mut ExpirePlan,
) {
    for id in catalog.may_be_lost(now) {
        plan.has_lost = true;
        plan.warnings.push(format!(
            "backup \"{id}\" is incomplete, or its root is lost: what is left of it goes as that of a backup that failed. Where another repository has the backup, \"pitr repo sync\" brings it back before that"
        ));
    }
    for (id, subject) in &catalog.ids {
        let Some(lost) = subject.lost() else {
            continue;
        };
        if policy.given_up.contains(id) {
            plan.marks.push(id.clone());
            continue;
        }
        plan.has_lost = true;
        let wal = lost
            .start
            .map(|(_, lsn)| format!(", and the WAL from {lsn} on"));
        plan.warnings.push(format!(
            "backup \"{id}\" was complete, and its root is lost: its layers and packs stay{}. Where another repository has the backup, \"pitr repo sync\" brings the root back; else give it up: pitr expire --give-up {id}",
            wal.unwrap_or_default()
        ));
    }
}

/// Whether a duration counted from `since` is over.
fn is_over(since: TimestampTz, duration: Duration, now: TimestampTz) -> bool {
    since.saturating_add(duration) <= now
}

/// The segment of a WAL file's name; history files have none.
fn segment_of(name: WalFileName) -> Option<SegmentName> {
    match name {
        WalFileName::Segment(s)
        | WalFileName::Partial(s)
        | WalFileName::BackupHistory { segment: s, .. } => Some(s),
        WalFileName::History(_) => None,
    }
}
