//! How much of a cluster was read back by `pitr verify`, and when.

use super::human;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::layout::ClusterLayout;
use crate::repo::portion::{self, Portion, ReadBack, Share};
use crate::wal::inventory::{self, Backup, Inventory};

/// Counts packs of backups and segments, and those that were read back.
///
/// # Errors
/// Errors of the store. Events that cannot be read say nothing.
pub fn share(session: &Session, reading: &Reading, inventory: &Inventory) -> Result<Share> {
    let read = all(session, reading, inventory)?;
    Ok(Share::of(&read, &there(&inventory.backups, inventory)))
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
    Ok(is_read(&there, &read.all()))
}

/// Whether all packs were read, and all segments before the newest one that was read.
fn is_read(there: &Portion, read: &Portion) -> bool {
    let newest = |portion: &Portion| {
        let runs = portion.segments.iter().next_back()?;
        Some((*runs.0, runs.1.bounds()?.1))
    };
    let left = there.minus(read);
    let mut segments = left.segments.iter().flat_map(|(timeline, runs)| {
        let first = runs.bounds().map(|(first, _)| first);
        first.map(|first| (*timeline, first))
    });
    left.counts().0 == 0 && segments.all(|first| newest(read).is_none_or(|newest| first > newest))
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
    let segments = of(share.segments_read, share.segments, "segment");
    let oldest = match share.oldest {
        Some(time) => format!(", the longest ago {}", human::time(time)),
        None => String::new(),
    };
    format!("read back: {packs}, {segments}{oldest}")
}
