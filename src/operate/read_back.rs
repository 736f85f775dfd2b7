//! How much of a cluster was read back by `pitr verify`, and when.

use super::human;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::repo::layout::ClusterLayout;
use crate::repo::portion::{self, Portion, ReadBack, Share};
use crate::wal::inventory::{self, Inventory};

/// Counts packs of backups and segments, and those that were read back.
///
/// # Errors
/// Errors of the store. Events that cannot be read say nothing.
pub fn share(session: &Session, reading: &Reading, inventory: &Inventory) -> Result<Share> {
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    let events = portion::events(reading.repository.store(), &layout)?;
    let moves = inventory.lives.moves(inventory.segment_size);
    let backups = inventory.backups.iter();
    let packs = backups.map(|backup| Portion::of_packs(&backup.packs));
    let there = Portion {
        segments: inventory::segments(&inventory.timelines),
        ..packs.fold(Portion::default(), |all, one| all.union(&one))
    };
    Ok(Share::of(
        &ReadBack::new(&events, &moves, session.host.now()),
        &there,
    ))
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
