//! Everything that can be recovered: windows of time and WAL, per timeline.

use std::collections::BTreeSet;

use serde::Serialize;

use super::base::{foreign_on_path, lies_on};
use super::chain::{Chain, Stretch, StretchEnd};
use super::estimate::Work;
use super::proof::with_proof;
use super::search::Search;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::wal_proof::foreign;
use crate::wal::facts::Wal;
use crate::wal::inventory::{Backup, Inventory};
use crate::wal::path::Path;

/// Everything from `from` to `to` can be recovered, on the way to a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The timeline on which it ends.
    pub timeline: TimelineId,
    /// When its first backup was complete.
    pub from: TimestampTz,
    /// The last transaction in it; the end of its last backup where none follows.
    pub to: TimestampTz,
    /// Position from which its first backup is consistent.
    pub from_lsn: Lsn,
    /// End of its last complete record.
    pub to_lsn: Lsn,
    /// Whether it reaches the end of the WAL that is archived of the timeline.
    pub to_end: bool,
    /// Why it does not go on, where it does not reach the end.
    pub broken: Option<String>,
    /// Why its WAL ends.
    #[serde(skip)]
    pub end: StretchEnd,
    /// Its backups, oldest first.
    pub backups: Vec<String>,
}

impl Window {
    /// Whether it ends with a backup that expiry keeps to its own end: it is meant to end there.
    pub fn ends_alone(&self, inventory: &Inventory) -> bool {
        let size = inventory.segment_size;
        let last = self.backups.last();
        let mut backups = inventory.backups.iter();
        let Some(last) = backups.find(|b| Some(&b.id.to_string()) == last) else {
            return false;
        };
        let end = SegmentNumber::ending_at(last.consistent_lsn.max(last.stop_lsn), size);
        let is_pinned = !last.pins.is_empty();
        let is_meant = is_pinned && SegmentNumber::ending_at(self.to_lsn, size) <= end
            || self.ends_at_hole(inventory, last);
        is_meant && !self.to_end
    }

    /// Whether the hole behind its last backup is one that expiry made on purpose.
    fn ends_at_hole(&self, inventory: &Inventory, last: &Backup) -> bool {
        let Ok(history) = inventory.history(self.timeline) else {
            return false;
        };
        let path = Path::new(history, inventory.segment_size);
        let reach = path.reach(last.start_lsn, inventory);
        let first = path.name(SegmentNumber::of(reach, inventory.segment_size));
        first.is_some_and(|first| last.trimmed.begins(first))
    }

    /// The work of a recovery to its end, from its newest backup.
    pub fn work(&self, inventory: &Inventory) -> Option<Work> {
        let newest = self.backups.last()?;
        let mut backups = inventory.backups.iter();
        let backup = backups.find(|b| b.id.to_string() == *newest)?;
        Some(Work {
            copy: backup.size_bytes,
            replay: self.to_lsn.0.saturating_sub(backup.start_lsn.0),
        })
    }
}

/// The windows of every timeline, and the backups that cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// Ascending by timeline and position.
    pub windows: Vec<Window>,
    /// Backups whose own WAL is not all there, with what is wrong.
    pub unusable: Vec<(String, String)>,
    /// Timelines that cannot be followed, with what is wrong.
    pub problems: Vec<String>,
    /// Backups that lead to a later timeline by their positions alone: it began in another life.
    pub strays: BTreeSet<(TimelineId, String)>,
}

/// Computes what can be recovered. Damaged backups open no window.
///
/// # Errors
/// Errors of [`Wal`], apart from damage.
pub fn windows(inventory: &Inventory, wal: &dyn Wal) -> Result<Windows> {
    with_proof(wal, |wal| all(inventory, wal))
}

fn all(inventory: &Inventory, wal: &dyn Wal) -> Result<Windows> {
    let mut found = Windows::default();
    let mut usable: Vec<String> = Vec::new();
    let mut failed: Vec<(String, String)> = Vec::new();
    let mut timelines: Vec<TimelineId> = inventory.timelines.keys().copied().collect();
    timelines.extend(inventory.backups.iter().map(|b| b.timeline));
    timelines.sort_unstable();
    timelines.dedup();
    for timeline in timelines {
        let history = match inventory.history(timeline) {
            Ok(history) => history,
            Err(e) if matches!(e.code(), Code::NotFound | Code::Damaged) => {
                let hint = e.hint_text().map(|hint| format!(". {hint}"));
                found
                    .problems
                    .push(format!("{e}{}", hint.unwrap_or_default()));
                continue;
            }
            Err(e) => return Err(e),
        };
        let chain = Chain::new(inventory, wal, history);
        of_timeline(inventory, &chain, &mut found, &mut usable, &mut failed)?;
    }
    failed.retain(|(id, _)| !usable.contains(id));
    failed.dedup_by(|a, b| a.0 == b.0);
    found.unusable = failed;
    Ok(found)
}

fn of_timeline(
    inventory: &Inventory,
    chain: &Chain<'_>,
    found: &mut Windows,
    usable: &mut Vec<String>,
    failed: &mut Vec<(String, String)>,
) -> Result<()> {
    let size = inventory.segment_size;
    let timeline = chain.history().timeline();
    // Newest first: stretches that lead into known ones are walked only up to there.
    let backups = inventory
        .backups
        .iter()
        .rev()
        .filter(|b| b.damage.is_none() && lies_on(chain.history(), b));
    let mut groups: Vec<(Lsn, std::rc::Rc<Stretch>, Vec<&Backup>)> = Vec::new();
    for backup in backups {
        if let Some(name) = foreign_on_path(backup, chain, inventory)? {
            if name.timeline > backup.timeline {
                found.strays.insert((timeline, backup.id.to_string()));
            }
            if backup.timeline == timeline {
                failed.push((backup.id.to_string(), foreign(name)));
            }
            continue;
        }
        let stretch = chain.stretch_from(SegmentNumber::of(backup.start_lsn, size))?;
        if stretch.reach() < backup.consistent_lsn {
            if backup.timeline == timeline {
                let why = super::unreachable::describe_short(chain, &stretch, backup);
                failed.push((backup.id.to_string(), why));
            }
            continue;
        }
        usable.push(backup.id.to_string());
        match groups
            .iter_mut()
            .find(|(reach, ..)| *reach == stretch.reach())
        {
            // The older backup's stretch is the longer one.
            Some((_, known, members)) => {
                *known = stretch;
                members.push(backup);
            }
            None => groups.push((stretch.reach(), stretch, vec![backup])),
        }
    }
    groups.reverse();
    for (reach, stretch, mut members) in groups {
        members.reverse();
        // A window that ends on an ancestor is listed with the ancestor.
        let ends_on = chain.history().holder(Lsn(reach.0.saturating_sub(1)));
        let has_own = inventory
            .timelines
            .get(&timeline)
            .is_some_and(|t| !t.is_empty());
        let to_end = stretch.end == StretchEnd::EndOfWal;
        if ends_on != timeline && (has_own || !to_end) {
            continue;
        }
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            continue;
        };
        let search = Search {
            chain,
            stretch: std::rc::Rc::clone(&stretch),
            start_lsn: last.start_lsn,
            consistent_lsn: last.consistent_lsn,
        };
        let (_, end) = search.last_transactions()?;
        let to = match end {
            // The clock of the backup was ahead.
            Some(end) if end.lsn >= last.stop_lsn && end.time < last.start_time => end.time,
            Some(end) => end.time.max(last.stop_time),
            None => last.stop_time,
        };
        found.windows.push(Window {
            timeline,
            from: first.stop_time.min(to),
            to,
            from_lsn: first.consistent_lsn,
            to_lsn: reach,
            to_end,
            broken: (!to_end).then(|| super::unreachable::describe_end(chain, &stretch)),
            end: stretch.end.clone(),
            backups: members.iter().map(|b| b.id.to_string()).collect(),
        });
    }
    Ok(())
}
