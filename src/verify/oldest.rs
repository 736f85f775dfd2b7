//! Reads what was never read back, or longest ago, step by step; after each step an event says so, so that the next run goes on there. Then it looks
//! at the structure of backups, of as many as the limits allow: the next runs look at others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::check::Check;
use super::depth::{Budget, Queue, Slow, Unit};
use super::packs::Chosen;
use super::record::Recorder;
use super::wal::{self, Extent};
use super::{Work, snapshot};
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::retention::wal::Paths;
use crate::repo::catalog::{Catalog, Needs, Parts, Subject};
use crate::repo::event;
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::portion::{Portion, ReadBack};
use crate::repo::runs::Runs;
use crate::wal::inventory;
use crate::wal::survey::{Root, Survey};

/// Packs, by the backup as whose they are read.
type Divided<'c> = BTreeMap<&'c BackupId, Parts>;

/// Reads parts of a kind of content.
pub(super) trait ReadParts {
    /// Returns the stored length of a segment; 0 where there is no WAL.
    fn segment_bytes(&self, _timeline: TimelineId, _number: SegmentNumber) -> Result<u64> {
        Ok(0)
    }

    /// Returns the stored length of a segment of a log; 0 where there is no log.
    fn log_bytes(&self, _replid: &str, _number: SegmentNumber) -> Result<u64> {
        Ok(0)
    }

    /// Reads segments, of WAL or of a log.
    fn segments(&self, _portion: &Portion) -> Result<()> {
        Ok(())
    }

    /// Segments of which damage is recorded.
    fn damaged_segments(&self) -> Vec<Unit> {
        Vec::new()
    }

    /// Reads packs of a backup.
    fn packs(&self, id: &BackupId, packs: &Parts) -> Result<()>;

    /// Looks at what leads to the content of a backup.
    fn structure(&self, id: &BackupId) -> Result<()>;
}

/// Reads of what is `there` as much as the budget allows, and looks at the structure of as many backups as it allows.
///
/// Content takes the time that the structure leaves.
pub(super) fn read<R: Needs>(
    (check, recorder): (&Check<'_>, &Recorder<'_>),
    (catalog, there): (&Catalog<R>, &Portion),
    (read_back, budget): (&ReadBack, &Budget),
    content: &dyn ReadParts,
) -> Result<()> {
    let ages = read_back.by_age(there);
    let slow = slow((check, catalog), budget, content);
    let mut queue = Queue::new(&ages, budget, check.started, slow);
    read_content((check, recorder), catalog, &mut queue, content)?;
    let read = read_back.all().union(&check.told());
    let unlooked = look(check, &turns(catalog, &read, check.begun), budget, content)?;
    check.found().unlooked = unlooked;
    queue.go_on(budget.end(check.started));
    read_content((check, recorder), catalog, &mut queue, content)
}

/// The packs and segments that would take the limits of the others; none where there are no limits.
fn slow<R: Needs>(
    (check, catalog): (&Check<'_>, &Catalog<R>),
    budget: &Budget,
    content: &dyn ReadParts,
) -> Slow {
    if *budget == Budget::default() {
        return Slow::default();
    }
    let pack_of = |(kind, part): (PartKind, PartName)| (kind == PartKind::Pack).then_some(part);
    let cold = RefCell::new(BTreeSet::new());
    let see = |key: &str| {
        let part = check.scope.named_part(key);
        cold.borrow_mut().extend(part.and_then(pack_of));
        false
    };
    let place = check.scope.parts(PartKind::Pack, None);
    // An error costs the order alone.
    let seen = check.store.frozen(&place, &see);
    let packs = catalog.damaged_parts().into_keys().filter_map(pack_of);
    let damaged = packs.map(Unit::Pack).chain(content.damaged_segments());
    Slow {
        damaged: damaged.collect(),
        cold: match seen {
            Ok(_) => cold.into_inner(),
            Err(_) => BTreeSet::new(),
        },
    }
}

/// Looks at the structure of backups in this order, of one at least. Returns those that the limits left out.
fn look(
    check: &Check<'_>,
    order: &[&BackupId],
    budget: &Budget,
    content: &dyn ReadParts,
) -> Result<BTreeSet<BackupId>> {
    for (at, id) in order.iter().enumerate() {
        let map_bytes = check.map_bytes.load(Ordering::Relaxed);
        if at > 0 && budget.is_over(check.started, map_bytes) {
            let rest = order.iter().skip(at);
            return Ok(rest.map(|id| (*id).clone()).collect());
        }
        content.structure(id)?;
    }
    Ok(BTreeSet::new())
}

/// Returns the backups in the order in which they have their turn.
///
/// Chance lets each of them come, for nothing is kept of the last run. Every other run begins with those that only lack the look to count as
/// verified, the newest first: `expire` waits for these.
fn turns<'c, R: Needs>(
    catalog: &'c Catalog<R>,
    read: &Portion,
    begun: TimestampTz,
) -> Vec<&'c BackupId> {
    let seed = blake3::hash(&begun.0.to_le_bytes());
    let is_due = |(_, subject, root): &(&BackupId, &Subject<R>, &R)| {
        let was_read = Portion::of_packs(root.needs().1).minus(read).is_empty();
        let is_verified = !event::standing(&subject.events, "verified", "").is_empty();
        was_read && !is_verified && event::damage(&subject.events).is_empty()
    };
    let due = catalog.committed().filter(is_due).map(|(id, ..)| id);
    let due: Vec<_> = due.collect();
    let all: Vec<_> = catalog.committed().map(|(id, ..)| id).collect();
    in_turn(&all, &due, seed.as_bytes())
}

/// Joins all backups, from a place on that the seed tells, and behind those that are due in every other run. Each comes once.
fn in_turn<'c>(all: &[&'c BackupId], due: &[&'c BackupId], seed: &[u8; 32]) -> Vec<&'c BackupId> {
    let [first, number @ ..] = seed;
    let number = number
        .first_chunk::<4>()
        .copied()
        .map_or(0, u32::from_le_bytes);
    let start = number as usize % all.len().max(1);
    let (before, behind) = all.split_at(start);
    let due = due.iter().rev().filter(|_| first % 2 == 0);
    let mut known = BTreeSet::new();
    let order = due.chain(behind).chain(before);
    order.copied().filter(|id| known.insert(*id)).collect()
}

/// Reads steps of the queue until it says that there is none, or that the limits are reached.
fn read_content<R: Needs>(
    (check, recorder): (&Check<'_>, &Recorder<'_>),
    catalog: &Catalog<R>,
    queue: &mut Queue,
    content: &dyn ReadParts,
) -> Result<()> {
    let mut size_of = |unit: &Unit| match unit {
        Unit::Segment(timeline, number) => content.segment_bytes(*timeline, *number),
        Unit::Log(replid, number) => content.log_bytes(replid, *number),
        Unit::Pack(part) => {
            let meta = check.store.head(&check.scope.pack(part))?;
            Ok(meta.map_or(0, |meta| meta.size_bytes))
        }
    };
    while let Some(portion) = queue.next(&mut size_of)? {
        content.segments(&portion)?;
        let divided = by_backup(catalog, &portion.packs);
        for (id, packs) in &divided {
            content.packs(id, packs)?;
        }
        recorder.record_read(check);
        // A fault of a pack concerns every backup that names the pack.
        let failed = Portion::of_packs(&portion.packs).minus(&check.told());
        for (id, packs) in others(catalog, &failed, &divided) {
            content.packs(id, &packs)?;
        }
    }
    Ok(())
}

/// Returns the packs that roots name and that are there: all that can be read back.
pub(super) fn packs_of_backups<R: Needs>(catalog: &Catalog<R>) -> Portion {
    let named = catalog
        .committed()
        .map(|(_, _, root)| Portion::of_packs(root.needs().1));
    let named = named.fold(Portion::default(), |all, one| all.union(&one));
    named.common(&catalog.packs())
}

/// Divides packs among backups that name them: each is read once, as one of the newest backup.
fn by_backup<'c, R: Needs>(catalog: &'c Catalog<R>, packs: &Parts) -> Divided<'c> {
    let mut rest = Portion::of_packs(packs);
    let mut divided = Divided::new();
    let backups: Vec<_> = catalog.committed().collect();
    for (id, _, root) in backups.into_iter().rev() {
        let own = rest.common(&Portion::of_packs(root.needs().1));
        if !own.is_empty() {
            rest = rest.minus(&own);
            divided.insert(id, own.packs);
        }
    }
    divided
}

/// The same packs, of each other backup that names them.
fn others<'c, R: Needs>(
    catalog: &'c Catalog<R>,
    packs: &Portion,
    divided: &Divided<'_>,
) -> Divided<'c> {
    let all = catalog.committed().filter_map(|(id, _, root)| {
        let read = divided.get(id).map(Portion::of_packs).unwrap_or_default();
        let own = packs
            .common(&Portion::of_packs(root.needs().1))
            .minus(&read);
        Some((id, own.packs)).filter(|(_, packs)| !packs.is_empty())
    });
    all.collect()
}

/// Returns whether everything that a backup needs by itself was read back at some time. Every run reads the stored
/// parts of a segment that is not whole.
pub(super) fn was_read(survey: &Survey, paths: &Paths<'_>, root: &Root, read: &Portion) -> bool {
    let packs = Portion::of_packs(&root.packs);
    let size = survey.segment_size;
    let first = SegmentNumber::of(root.start_lsn, size);
    let last = SegmentNumber::ending_at(root.stop_lsn, size);
    let is_in = |runs: Option<&Runs>, number| runs.is_some_and(|runs| runs.contains(number));
    let was_read = |number: SegmentNumber| {
        let holder = paths.holder(root.timeline, number);
        let stored = survey.timelines.get(&holder).map(|t| &t.segments);
        is_in(read.segments.get(&holder), number) || !is_in(stored, number)
    };
    packs.minus(read).is_empty() && (first.0..=last.0).map(SegmentNumber).all(was_read)
}

/// Returns what can be read back of a cluster.
pub(super) fn there(survey: &Survey) -> Portion {
    Portion {
        segments: inventory::segments(&survey.timelines),
        ..packs_of_backups(&survey.catalog)
    }
}

/// The WAL and the backups of a cluster.
pub(super) struct OfCluster<'a> {
    pub work: &'a Work<'a>,
    pub survey: &'a Survey,
    pub paths: &'a Paths<'a>,
}

impl ReadParts for OfCluster<'_> {
    fn segment_bytes(&self, timeline: TimelineId, number: SegmentNumber) -> Result<u64> {
        let Some(name) = number.name(timeline, self.work.size) else {
            return Ok(0);
        };
        let meta = self.work.store.head(&self.work.layout.segment(name))?;
        Ok(meta.map_or(0, |meta| meta.size_bytes))
    }

    fn segments(&self, portion: &Portion) -> Result<()> {
        let is_wanted = |timeline: TimelineId, number| {
            let runs = portion.segments.get(&timeline);
            runs.is_some_and(|runs| runs.contains(number))
        };
        let there = (self.survey, self.paths);
        wal::check(self.work, there, &is_wanted, Extent::Whole)
    }

    fn damaged_segments(&self) -> Vec<Unit> {
        let all = self.survey.segment_events.iter();
        let damaged = all.filter(|(_, events)| !event::damage(events).is_empty());
        let unit = |(name, _): (&SegmentName, _)| {
            let number = name.number(self.work.size).ok()?;
            Some(Unit::Segment(name.timeline, number))
        };
        damaged.filter_map(unit).collect()
    }

    fn packs(&self, id: &BackupId, packs: &Parts) -> Result<()> {
        snapshot::read_some(self.work, id, packs)
    }

    fn structure(&self, id: &BackupId) -> Result<()> {
        snapshot::check(self.work, id, Chosen::Directories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v47_each_backup_has_its_turn_and_what_is_due_comes_first_in_every_other_run() {
        let ids: Vec<BackupId> = (0..7)
            .map(|n| format!("2026112{n}T064049Z-full").parse().unwrap())
            .collect();
        let all: Vec<&BackupId> = ids.iter().collect();
        let due = [all[2], all[4]];
        let mut first = BTreeSet::new();
        for number in 0..7 {
            let seed = |odd: u8| {
                let mut seed = [0; 32];
                (seed[0], seed[1]) = (odd, number);
                seed
            };
            let order = in_turn(&all, &due, &seed(1));
            first.insert(order[0]);
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 7);
            assert_eq!(order.len(), 7);
            let order = in_turn(&all, &due, &seed(0));
            assert_eq!((order[0], order[1], order.len()), (all[4], all[2], 7));
        }
        assert_eq!(first.len(), 7);
        assert!(in_turn(&[], &[], &[0; 32]).is_empty());
    }
}
