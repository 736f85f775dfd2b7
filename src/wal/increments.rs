//! The longest run of bytes that the increments of a segment hold, from its start on (format, section 7.1).

use super::increment::OpenSegment;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::repo::container::{Container, Kind};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::store::Key;

/// The largest page of WAL, which pages of all other sizes divide.
const PAGE_MAX: u64 = 64 << 10;

/// Increments that follow one another without a hole; each but the last reaches into the next, or up to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    segment: OpenSegment,
    /// Never empty, ascending.
    pieces: Vec<LsnRange>,
}

/// The increments that lead farthest from `start` on: from each position the one that reaches farthest. `ranges` ascend by start.
pub fn longest(start: Lsn, ranges: &[LsnRange]) -> Vec<LsnRange> {
    let mut pieces: Vec<LsnRange> = Vec::new();
    let mut at = start;
    let mut rest = ranges.iter().peekable();
    loop {
        let mut best: Option<LsnRange> = None;
        while let Some(range) = rest.next_if(|r| r.start <= at) {
            if best.is_none_or(|b| b.end < range.end) {
                best = Some(*range);
            }
        }
        match best.filter(|b| b.end > at) {
            Some(piece) => {
                at = piece.end;
                pieces.push(piece);
            }
            None => return pieces,
        }
    }
}

/// Returns the hole between the longest run from `start` on and the increments after it; `None` where no increment
/// follows.
pub fn hole(start: Lsn, ranges: &[LsnRange]) -> Option<LsnRange> {
    let reach = longest(start, ranges).last().map_or(start, |p| p.end);
    let behind = ranges.iter().filter(|r| r.start > reach);
    let next = behind.map(|r| r.start).min()?;
    Some(LsnRange {
        start: reach,
        end: next,
    })
}

impl Run {
    /// The longest run of these increments; `None` when none begins at the segment's start.
    ///
    /// # Errors
    /// `Usage` for a name that does not belong to the segment size.
    pub fn of(segment: OpenSegment, ranges: &[LsnRange]) -> Result<Option<Run>> {
        let whole = segment.range()?;
        let inside: Vec<LsnRange> = ranges.iter().copied().filter(|r| whole.holds(*r)).collect();
        let pieces = longest(whole.start, &inside);
        Ok((!pieces.is_empty()).then_some(Run { segment, pieces }))
    }

    /// Returns the end of the run.
    pub fn end(&self) -> Lsn {
        self.pieces.last().map_or(Lsn(0), |p| p.end)
    }

    /// Bytes from its end to the end of the WAL page.
    pub fn missing_of_page(&self) -> usize {
        let missing = self.end().0.next_multiple_of(PAGE_MAX) - self.end().0;
        usize::try_from(missing).unwrap_or(0)
    }

    /// The increments that it consists of.
    pub fn pieces(&self) -> &[LsnRange] {
        &self.pieces
    }

    /// Streams its bytes, one increment at a time. Increments must agree where they overlap.
    ///
    /// The last bytes of an increment reach the sink before its hash is known: the sink's work must not become visible before this returns
    /// `Ok`.
    ///
    /// # Errors
    /// `Damaged` when an increment is, is gone, or differs from the one before; what `sink` returns.
    pub fn read(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = self.segment.range()?.start;
        // The key of the increment before, and the hash of the bytes that the next one repeats.
        let mut repeated: Option<(Key, blake3::Hash)> = None;
        for (number, piece) in self.pieces.iter().enumerate() {
            let next = self.pieces.get(number + 1).map_or(piece.end, |p| p.start);
            let mut overlap = Overlap {
                known: at,
                next,
                position: piece.start,
                before: blake3::Hasher::new(),
                behind: blake3::Hasher::new(),
            };
            let key = layout.increment(self.segment.name, *piece);
            let container = open(repository, layout, &self.segment, *piece)?;
            let read = container.read_body(&mut |bytes| {
                let fresh = overlap.take(bytes);
                if !fresh.is_empty() {
                    overlap.check(repeated.as_ref(), &key)?;
                    sink(fresh)?;
                }
                Ok(())
            });
            read.map_err(|e| e.context(format!("read increment \"{key}\"")))?;
            overlap.check(repeated.as_ref(), &key)?;
            repeated = Some((key, overlap.behind.finalize()));
            at = piece.end;
        }
        Ok(())
    }
}

/// Tells what of an increment is known from the one before, and what the next one repeats.
struct Overlap {
    /// Bytes before this were read already.
    known: Lsn,
    /// From here on the next increment repeats it.
    next: Lsn,
    position: Lsn,
    before: blake3::Hasher,
    behind: blake3::Hasher,
}

impl Overlap {
    /// The part of `bytes` that was not read before.
    fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let offset = |lsn: Lsn| {
            let distance = lsn.0.saturating_sub(self.position.0);
            usize::try_from(distance).map_or(bytes.len(), |n| n.min(bytes.len()))
        };
        let (known, fresh) = bytes.split_at(offset(self.known));
        self.before.update(known);
        self.behind
            .update(bytes.get(offset(self.next)..).unwrap_or_default());
        self.position.0 += bytes.len() as u64;
        fresh
    }

    fn check(&self, repeated: Option<&(Key, blake3::Hash)>, own: &Key) -> Result<()> {
        match repeated {
            Some((other, hash)) if self.before.finalize() != *hash => Err(err!(
                Damaged,
                "increments \"{other}\" and \"{own}\" differ where they overlap"
            )
            .hint("Two servers may have written the same timeline. See \"pitr verify\".")),
            _ => Ok(()),
        }
    }
}

/// Opens an increment and makes sure that it is the one its key says.
///
/// # Errors
/// `Damaged` when it is not, or is gone.
pub fn open(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    range: LsnRange,
) -> Result<Container> {
    let key = layout.increment(segment.name, range);
    let open = || -> Result<Container> {
        let object = repository
            .store()
            .open(&key)?
            .ok_or_else(|| err!(Damaged, "it was listed, and is not there"))?;
        let container = Container::open(object)?;
        let identity = container.identity();
        let own = container.is_stored_as(Kind::Increment, segment.name, layout.system_identifier())
            && identity.segment_size_bytes == segment.size.bytes()
            && identity.from_lsn == range.start.0
            && identity.to_lsn == range.end.0
            && identity.raw_bytes == range.end.0 - range.start.0;
        match own {
            true => Ok(container),
            false => Err(err!(Damaged, "it is another object")),
        }
    };
    open().map_err(|e: Error| e.context(format!("increment \"{key}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::segment::SegmentSize;
    use crate::repo::crafted;
    use crate::wal::increment;

    fn range(start: u64, end: u64) -> LsnRange {
        LsnRange {
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    #[test]
    fn the_longest_run_has_no_hole() {
        let ranges = |pairs: &[(u64, u64)]| -> Vec<LsnRange> {
            pairs.iter().map(|(a, b)| range(*a, *b)).collect()
        };
        for (given, expected) in [
            (&[][..], &[][..]),
            (&[(110, 120)], &[]),
            (&[(100, 120), (120, 130)], &[(100, 120), (120, 130)]),
            // A merged one makes those it covers idle.
            (
                &[(100, 120), (100, 150), (120, 130), (150, 160)],
                &[(100, 150), (150, 160)],
            ),
            // If two increments overlap the run, the one that reaches farther is taken.
            (
                &[(100, 120), (110, 125), (115, 140)],
                &[(100, 120), (115, 140)],
            ),
            (&[(100, 120), (121, 140)], &[(100, 120)]),
        ] {
            assert_eq!(longest(Lsn(100), &ranges(given)), ranges(expected));
        }
        for (given, lost) in [
            (&[][..], None),
            (&[(110, 120)], Some((100, 110))),
            (&[(100, 120), (120, 130)], None),
            (&[(100, 120), (125, 130), (122, 140)], Some((120, 122))),
        ] {
            let mut given = ranges(given);
            given.sort_unstable_by_key(|r| (r.start, r.end));
            let lost = lost.map(|(a, b)| range(a, b));
            assert_eq!(hole(Lsn(100), &given), lost);
        }
    }

    struct Fixture {
        _directory: tempfile::TempDir,
        repository: Repository,
        layout: ClusterLayout,
        segment: OpenSegment,
        bytes: Vec<u8>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let (directory, repository, layout) = crafted::empty();
            Fixture {
                _directory: directory,
                repository,
                layout,
                segment: OpenSegment {
                    name: "000000010000000000000003".parse().unwrap(),
                    size: SegmentSize::new(1 << 20).unwrap(),
                    major: 17,
                },
                bytes: (0..1_u32 << 20)
                    .map(|i| (i * 7 % 251).to_le_bytes()[0])
                    .collect(),
            }
        }

        fn put(&self, from: usize, to: usize) {
            self.put_bytes(from, &self.bytes[from..to]);
        }

        fn put_bytes(&self, from: usize, bytes: &[u8]) {
            let start = self.segment.range().unwrap().start;
            let at = Lsn(start.0 + from as u64);
            increment::put(&self.repository, &self.layout, &self.segment, at, bytes).unwrap();
        }

        fn read(&self) -> Result<Vec<u8>> {
            let listed = increment::list(&self.repository, &self.layout, self.segment.name)?;
            let run = Run::of(self.segment, &listed)?.unwrap();
            let mut read = Vec::new();
            run.read(&self.repository, &self.layout, &mut |bytes| {
                read.extend_from_slice(bytes);
                Ok(())
            })?;
            let start = self.segment.range()?.start;
            assert_eq!(run.end().0 - start.0, read.len() as u64);
            Ok(read)
        }
    }

    #[test]
    fn a_run_is_read_over_its_overlaps() {
        let f = Fixture::new();
        f.put(0, 300_000);
        f.put(10, 20);
        f.put(250_000, 700_000);
        assert_eq!(f.read().unwrap(), &f.bytes[..700_000]);
        f.put(700_000, 1 << 20);
        assert_eq!(f.read().unwrap(), f.bytes);
        // Behind a hole nothing counts, and one that is not chosen is not looked at.
        let g = Fixture::new();
        g.put(0, 5000);
        g.put_bytes(100, &[0; 50]);
        g.put(5001, 6000);
        assert_eq!(g.read().unwrap(), &g.bytes[..5000]);
    }

    #[test]
    fn overlaps_that_differ_are_damage_that_names_both() {
        let f = Fixture::new();
        f.put(0, 300_000);
        let mut other = f.bytes[299_000..400_000].to_vec();
        other[500] ^= 1;
        f.put_bytes(299_000, &other);
        let error = f.read().unwrap_err();
        assert_eq!(error.code(), Code::Damaged);
        let text = error.to_string();
        let start = f.segment.range().unwrap().start.0;
        for from in [start, start + 299_000] {
            assert!(text.contains(&format!("{from:016X}-")), "{text}");
        }
    }

    #[test]
    fn an_increment_under_the_key_of_another_is_damage() {
        let f = Fixture::new();
        f.put(0, 100);
        let start = f.segment.range().unwrap().start;
        let key = |from: u64, to: u64| {
            let range = range(start.0 + from, start.0 + to);
            f.layout.increment(f.segment.name, range)
        };
        let store = f.repository.store();
        let moved = crate::store::get(store, &key(0, 100), 1 << 20)
            .unwrap()
            .unwrap();
        crate::store::put(store, &key(100, 200), &moved).unwrap();
        assert_eq!(f.read().unwrap_err().code(), Code::Damaged);
    }
}
