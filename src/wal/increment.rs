//! Increments (format, section 7.1): pieces of a segment that is still being streamed.
//!
//! Each holds a range of the segment's raw bytes and is never changed. A whole segment supersedes them all.

use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::repo::container::{Codec, Container, ContainerWriter, Identity, Kind};
use crate::repo::layout::{self, ClusterLayout};
use crate::repo::repository::Repository;
use crate::store::{Key, Published};

/// The longest increment that is written as it comes; merged ones may be as long as the segment.
pub const LIMIT_BYTES: usize = 8 << 20;
/// Merged ones are read in pieces of this length.
const CHUNK: usize = 256 << 10;

/// The segment that increments belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSegment {
    pub name: SegmentName,
    /// Segment size of the cluster.
    pub size: SegmentSize,
    /// PostgreSQL major.
    pub major: u32,
}

impl OpenSegment {
    /// The positions of the whole segment.
    ///
    /// # Errors
    /// `Usage` when the name does not belong to this segment size.
    pub fn range(&self) -> Result<LsnRange> {
        Ok(self.name.number(self.size)?.range(self.size))
    }

    /// The identity of an object with these bytes of it.
    pub fn identity(&self, system_identifier: u64, range: LsnRange, hash: [u8; 32]) -> Identity {
        Identity {
            hash,
            raw_bytes: range.end.0 - range.start.0,
            system_identifier,
            timeline: self.name.timeline.get(),
            major: self.major,
            segment_size_bytes: self.size.bytes(),
            name: self.name.to_string(),
            from_lsn: range.start.0,
            to_lsn: range.end.0,
        }
    }
}

/// Stores `content`, the bytes of the segment from `from` on; `Exists` means that the same bytes were there, and are durable.
///
/// # Errors
/// `Usage` when the bytes are none, more than [`LIMIT_BYTES`], or not inside the segment; `Conflict` when the range holds other
/// bytes; `Damaged` when the stored copy cannot be compared; what the store says.
pub fn put(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    from: Lsn,
    content: &[u8],
) -> Result<Published> {
    let range = checked_range(segment, from, content.len())?;
    let hash = *blake3::hash(content).as_bytes();
    let identity = segment.identity(layout.system_identifier(), range, hash);
    let key = layout.increment(segment.name, range);
    // Writing all of it only to hear that the name is taken would cost more than this look.
    if let Some(published) = compare(repository, &key, &identity)? {
        return Ok(published);
    }
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = repository.store().create(&key)?;
    let mut writer = ContainerWriter::new(object, Kind::Increment, Codec::Lz4).map_err(failed)?;
    writer.write(content).map_err(failed)?;
    let object = writer.complete(&identity, Vec::new()).map_err(failed)?;
    if object.publish()? == Published::Created {
        return Ok(Published::Created);
    }
    compare(repository, &key, &identity)?
        .ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))
}

/// Stores one increment from the segment's start to `to`, so that readers need not put it together from many. `read` fills its buffer
/// from the segment's bytes, in order.
///
/// # Errors
/// Those of [`put`], but for the length; those of `read`.
pub fn put_merged(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    to: Lsn,
    read: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<Published> {
    let whole = segment.range()?;
    let range = LsnRange {
        start: whole.start,
        end: to,
    };
    if to <= whole.start || to > whole.end {
        return Err(err!(
            Usage,
            "no increment of segment \"{}\" ends at {to}",
            segment.name
        ));
    }
    let key = layout.increment(segment.name, range);
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = repository.store().create(&key)?;
    let mut writer = ContainerWriter::new(object, Kind::Increment, Codec::Lz4).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = to.0 - whole.start.0;
    while left > 0 {
        let n = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let chunk = buffer.get_mut(..n).unwrap_or_default();
        read(chunk)?;
        hasher.update(chunk);
        writer.write(chunk).map_err(failed)?;
        left -= n as u64;
    }
    let hash = *hasher.finalize().as_bytes();
    let identity = segment.identity(layout.system_identifier(), range, hash);
    let object = writer.complete(&identity, Vec::new()).map_err(failed)?;
    if object.publish()? == Published::Created {
        return Ok(Published::Created);
    }
    compare(repository, &key, &identity)?
        .ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))
}

fn checked_range(segment: &OpenSegment, from: Lsn, length: usize) -> Result<LsnRange> {
    let whole = segment.range()?;
    let end = from.0.checked_add(length as u64).map(Lsn);
    let inside = end.filter(|end| from >= whole.start && *end <= whole.end);
    match inside {
        Some(end) if length > 0 && length <= LIMIT_BYTES => Ok(LsnRange { start: from, end }),
        _ => Err(err!(
            Usage,
            "{length} bytes from {from} on are no increment of segment \"{}\"",
            segment.name
        )),
    }
}

/// Whether what is stored under `key` is the same; `None` when nothing is.
fn compare(repository: &Repository, key: &Key, offered: &Identity) -> Result<Option<Published>> {
    let Some(object) = repository.store().open(key)? else {
        return Ok(None);
    };
    let stored = Container::open(object)
        .and_then(|c| c.check_stored().map(|()| c))
        .map_err(|e| stored_damaged(key, e))?;
    let identity = stored.identity();
    if stored.kind() != Kind::Increment
        || identity.name != offered.name
        || identity.system_identifier != offered.system_identifier
    {
        let other = err!(Damaged, "it holds \"{}\"", identity.name.escape_debug());
        return Err(stored_damaged(key, other));
    }
    if !stored.has_hash(&offered.hash) {
        return Err(err!(
            Conflict,
            "increment \"{key}\" is already stored with other content"
        )
        .hint("Nothing was overwritten. Likely two servers write the same timeline (split brain, a clone without a guard). Stop the wrong one."));
    }
    stored.object().settle()?;
    Ok(Some(Published::Exists))
}

fn stored_damaged(key: &Key, e: Error) -> Error {
    if e.code() != Code::Damaged {
        return e;
    }
    err!(Damaged, "the copy stored under \"{key}\" is damaged")
        .source(e)
        .hint("Run \"pitr verify\" to see what else is; move the damaged object away by hand and it is stored anew.")
}

/// The increments of a segment, ascending by start, then by end.
///
/// # Errors
/// Errors of the store.
pub fn list(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: SegmentName,
) -> Result<Vec<LsnRange>> {
    let mut ranges: Vec<LsnRange> = repository
        .store()
        .list(&layout.increments(segment))?
        .iter()
        .filter(|l| !l.is_prefix)
        .filter_map(|l| layout::increment_range(&l.name))
        .collect();
    ranges.sort_unstable_by_key(|r| (r.start, r.end));
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;

    const NAME: &str = "000000010000000000000003";

    fn segment() -> OpenSegment {
        OpenSegment {
            name: NAME.parse().unwrap(),
            size: SegmentSize::new(1 << 20).unwrap(),
            major: 17,
        }
    }

    #[test]
    fn the_same_bytes_are_stored_once_and_others_are_a_conflict() {
        let (_dir, repository, layout) = crafted::empty();
        let segment = segment();
        let start = segment.range().unwrap().start;
        let put = |from: Lsn, bytes: &[u8]| put(&repository, &layout, &segment, from, bytes);
        assert_eq!(put(start, &[1; 5000]).unwrap(), Published::Created);
        assert_eq!(put(start, &[1; 5000]).unwrap(), Published::Exists);
        let refused = put(start, &[2; 5000]).unwrap_err();
        assert_eq!(refused.code(), Code::Conflict);
        let behind = Lsn(start.0 + 5000);
        assert_eq!(put(behind, &[3; 10]).unwrap(), Published::Created);
        let listed = list(&repository, &layout, segment.name).unwrap();
        let ends: Vec<u64> = listed.iter().map(|r| r.end.0 - start.0).collect();
        assert_eq!(ends, [5000, 5010]);
        let end = segment.range().unwrap().end;
        for (from, length) in [
            (start, 0),
            (Lsn(start.0 - 1), 2),
            (Lsn(end.0 - 1), 2),
            (Lsn(u64::MAX), 2),
            (start, (1 << 20) + 1),
        ] {
            let bytes = vec![0; length];
            assert_eq!(put(from, &bytes).unwrap_err().code(), Code::Usage, "{from}");
        }
    }

    #[test]
    fn a_merged_one_may_be_longer_and_is_the_same_object() {
        let (_dir, repository, layout) = crafted::empty();
        let segment = OpenSegment {
            size: SegmentSize::new(64 << 20).unwrap(),
            ..segment()
        };
        let start = segment.range().unwrap().start;
        let merge = |length: u64, byte: u8| {
            let to = Lsn(start.0 + length);
            put_merged(&repository, &layout, &segment, to, &mut |buffer| {
                buffer.fill(byte);
                Ok(())
            })
        };
        let long = LIMIT_BYTES as u64 + 77;
        assert_eq!(merge(long, 1).unwrap(), Published::Created);
        assert_eq!(merge(long, 1).unwrap(), Published::Exists);
        assert_eq!(merge(long, 2).unwrap_err().code(), Code::Conflict);
        assert_eq!(merge(500, 1).unwrap(), Published::Created);
        let again = put(&repository, &layout, &segment, start, &[1; 500]);
        assert_eq!(again.unwrap(), Published::Exists);
        for length in [0, (64 << 20) + 1] {
            assert_eq!(merge(length, 1).unwrap_err().code(), Code::Usage);
        }
    }
}
