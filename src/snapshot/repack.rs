//! Stores the content that a map shows of some packs once more, so that a map without these packs shows the same.
//!
//! Only frames with a visible byte are read, each once and by range. Content that is read passes the checks of every
//! reader; content that is written gets checksums and page hashes of its own.

use std::collections::BTreeSet;

use super::frames::Frames;
use super::reader::Snapshot;
use super::sink::FileSink;
use super::writer::SnapshotWriter;
use crate::err;
use crate::error::Result;

/// Stores the visible bytes of packs, by their indexes in the root, and the metadata of the files that they belong to. The layers of the
/// prior must be those of `snapshot`. `tick` hears how many bytes come next.
///
/// # Errors
/// `Damaged` when map or packs fail a check; those of `tick`; what makes writing packs stop.
pub fn repack(
    snapshot: &Snapshot<'_>,
    packs: &BTreeSet<usize>,
    writer: &SnapshotWriter<'_>,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut sink = writer.sink();
    let live = walk(snapshot, packs, &sink, tick)?;
    for index in live.packs() {
        let pack = snapshot.pack(index)?;
        for number in (0..pack.frame_count()).filter(|number| live.contains(index, *number)) {
            let frame = pack.frame(number)?;
            tick(frame.visible_bytes())?;
            for visible in &frame.visible {
                let file = frame.file(visible);
                let file = file.ok_or_else(|| err!(Internal, "bytes that belong to no file"))?;
                sink.part(file, visible.position, frame.bytes(visible))?;
            }
        }
    }
    sink.finish()
}

/// Stores the metadata of every file that has bytes in the packs, and finds the frames that these are in.
fn walk(
    snapshot: &Snapshot<'_>,
    packs: &BTreeSet<usize>,
    sink: &FileSink<'_>,
    tick: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Frames> {
    let mut live = Frames::default();
    for shard in 0..snapshot.map().shards.len() {
        let mut items = snapshot.items_of(shard);
        while let Some(item) = items.next() {
            let item = item?;
            tick(0)?;
            let places = items.take_places();
            let inside = places.iter().filter_map(|place| place.at);
            let mut inside = inside.filter(|at| packs.contains(&at.pack)).peekable();
            if inside.peek().is_some() {
                sink.again(&item.key, &item.metadata)?;
            }
            for at in inside {
                live.add(at.pack, at.frame);
            }
        }
    }
    Ok(live)
}
