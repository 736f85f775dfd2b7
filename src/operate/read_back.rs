//! How much of a cluster, or of other content, was read back by `pitr verify`, and when.

use std::collections::BTreeMap;

use super::human;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::{Catalog, Needs};
use crate::repo::layout::ClusterLayout;
use crate::repo::portion::{self, Portion, ReadBack, Seen, Share};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::runs::Runs;
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::wal::inventory::{self, Backup, Inventory};

/// Counts packs of backups and segments, and those that were read back.
///
/// # Errors
/// Errors of the store. Events that cannot be read say nothing.
pub fn share(session: &Session, reading: &Reading, inventory: &Inventory) -> Result<Share> {
    let read = all(session, reading, inventory)?;
    Ok(Share::of(&read, &there(&inventory.backups, inventory)))
}

/// As [`share`], of other content whose backups were read; `logs` are the whole segments of its log.
///
/// # Errors
/// Those of [`share`].
pub fn share_of_scope(
    (store, scope): (&dyn Store, &Scope),
    (catalog, logs): (&Catalog<AuxBackup>, BTreeMap<String, Runs>),
    now: TimestampTz,
) -> Result<Share> {
    let read = ReadBack::new(&portion::events(store, scope)?, &[], now);
    let packs = catalog.committed();
    let packs = packs.map(|(_, _, backup)| Portion::of_packs(backup.needs().1));
    let there = Portion {
        logs,
        ..packs.fold(Portion::default(), |all, one| all.union(&one))
    };
    Ok(Share::of(&read, &there))
}

/// Whether everything was read back since a moment. WAL and backups that came after the last check are the next one's.
///
/// # Errors
/// Those of [`share`].
pub fn is_whole(
    session: &Session,
    (reading, inventory): (&Reading, &Inventory),
    since: TimestampTz,
) -> Result<bool> {
    let read = all(session, reading, inventory)?.since(since);
    let Some(last) = read.newest() else {
        return Ok(false);
    };
    let known = inventory.backups.iter().filter(|b| b.stop_time <= last);
    let there = there(known, inventory);
    Ok(is_read(&there, &read.all(), read.seen().as_ref()))
}

/// Whether all packs were read, and all segments that runs knew of. A run of one backup knows of more than it reads.
fn is_read(there: &Portion, read: &Portion, seen: Option<&Seen>) -> bool {
    let left = there.minus(read);
    let is_newer = |(timeline, runs): (&TimelineId, &Runs)| {
        let Some(((first, _), seen)) = runs.bounds().zip(seen) else {
            return false;
        };
        seen.get(timeline).is_none_or(|last| first > *last)
    };
    let has_read = there.segments.is_empty() || !read.segments.is_empty();
    has_read && left.counts().0 == 0 && left.segments.iter().all(is_newer)
}

fn all(session: &Session, reading: &Reading, inventory: &Inventory) -> Result<ReadBack> {
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    let events = portion::events(reading.repository.store(), &layout)?;
    let moves = inventory.lives.moves(inventory.segment_size);
    Ok(ReadBack::new(&events, &moves, session.host.now()))
}

fn there<'a>(backups: impl IntoIterator<Item = &'a Backup>, inventory: &Inventory) -> Portion {
    let packs = backups.into_iter();
    let packs = packs.map(|backup| Portion::of_packs(&backup.packs));
    Portion {
        segments: inventory::segments(&inventory.timelines),
        ..packs.fold(Portion::default(), |all, one| all.union(&one))
    }
}

/// Tells a share in one line.
pub fn line(share: &Share) -> String {
    let of = |read: u64, all: u64, what: &str| format!("{read} of {}", human::count(all, what));
    let packs = of(share.packs_read, share.packs, "pack");
    // Most content has neither WAL nor a log.
    let segments = match share.segments {
        0 => String::new(),
        all => format!(", {}", of(share.segments_read, all, "segment")),
    };
    let oldest = match share.oldest {
        Some(time) => format!(", the longest ago {}", human::time(time)),
        None => String::new(),
    };
    format!("read back: {packs}{segments}{oldest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::segment::SegmentNumber;
    use crate::repo::portion::Gathered;

    fn segments(timeline: TimelineId, numbers: &[u64]) -> Portion {
        let mut gathered = Gathered::default();
        for number in numbers {
            gathered.segment(timeline, SegmentNumber(*number));
        }
        gathered.portion()
    }

    #[test]
    fn y45_only_segments_behind_all_that_a_check_knew_of_may_be_unread() {
        let (first, second) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        let there = segments(first, &[1, 2, 3, 4]);
        let read = |numbers: &[u64], last: u64| {
            let seen = Seen::from([(first, SegmentNumber(last))]);
            is_read(&there, &segments(first, numbers), Some(&seen))
        };
        assert!(read(&[1, 2, 3, 4], 4));
        assert!(read(&[1, 2], 2));
        // A check of one backup, and one that left a hole.
        assert!(!read(&[1, 2], 4));
        assert!(!read(&[1, 3], 3));
        // Nothing that was read is no check, and an older program tells not what it knew of.
        assert!(!read(&[], 0));
        assert!(!is_read(&there, &segments(first, &[1, 2]), None));
        assert!(is_read(&there, &there, None));
        assert!(is_read(&Portion::default(), &Portion::default(), None));
        // A timeline that came later.
        let later = there.union(&segments(second, &[4]));
        let seen = Seen::from([(first, SegmentNumber(4))]);
        assert!(is_read(&later, &there, Some(&seen)));
        assert!(!is_read(&later, &there, None));
    }
}
