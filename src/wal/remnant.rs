//! The remnant of a segment that is not stored whole: increments, a partial, or both; and how far its WAL is valid.
//!
//! A remnant counts as a segment that ends inside, after its last whole record. pitr reads all of it to find that end:
//! no stored object gives it.

use super::increment::{self, OpenSegment};
use super::increments::{self, Run};
use super::index::{self, HeadEnd, SegmentIndex, flag};
use super::indexer::Indexer;
use super::tail;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::page::{LONG_HEADER, WalIdentity};
use crate::pg::segment::WalFileName;
use crate::repo::container::{Container, Kind};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::store::Key;

/// A remnant whose bytes were read and decoded.
#[derive(Debug, Clone)]
pub struct Remnant {
    segment: OpenSegment,
    source: Source,
    index: SegmentIndex,
    start: Lsn,
    end: Lsn,
    is_complete: bool,
}

#[derive(Debug, Clone)]
enum Source {
    Run(Run),
    Partial(Key),
}

impl Remnant {
    /// Reads what is stored of a segment besides the whole one; `None` when nothing is that begins with the segment.
    ///
    /// # Errors
    /// `Damaged` when an object is that nothing else makes up for, or when partial and increments differ; what the store says.
    pub fn find(
        repository: &Repository,
        layout: &ClusterLayout,
        segment: &OpenSegment,
    ) -> Result<Option<Remnant>> {
        let reader = Reading {
            repository,
            layout,
            segment,
        };
        let streamed = reader.streamed()?;
        let partial = reader.partial()?;
        match (streamed, partial) {
            (Some(streamed), Some(partial)) => {
                reader.compare(&streamed, &partial)?;
                // Equal ones: the partial is one object.
                let is_longer = streamed.valid_end() > partial.valid_end();
                Ok(Some(if is_longer { streamed } else { partial }))
            }
            (streamed, partial) => Ok(streamed.or(partial)),
        }
    }

    /// The index of the bytes, as that of a partial; of a complete run as that of a segment.
    pub fn index(&self) -> &SegmentIndex {
        &self.index
    }

    /// Returns the end of its last whole record; the segment's start when there is none.
    pub fn valid_end(&self) -> Lsn {
        self.index.summary.valid_end
    }

    /// Whether no record ends in it: it says nothing that its absence would not.
    pub fn is_empty(&self) -> bool {
        self.valid_end() <= self.start
    }

    /// Whether it holds every byte of the segment.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the next segment may follow: it is complete, or ends with a switch record.
    pub fn goes_on(&self) -> bool {
        self.is_complete || !self.index.summary.has(flag::ENDS_INSIDE)
    }

    /// Returns the name of its source, for people.
    pub fn kind(&self) -> &'static str {
        match self.source {
            Source::Run(_) => "increments",
            Source::Partial(_) => "partial",
        }
    }

    /// How many objects it is read from.
    pub fn object_count(&self) -> usize {
        match &self.source {
            Source::Run(run) => run.pieces().len(),
            Source::Partial(_) => 1,
        }
    }

    /// Streams its valid bytes, with zeros up to the end of their last page.
    ///
    /// # Errors
    /// `Damaged` when an object is damaged; errors of `sink`. After an error, the bytes that `sink` received must not
    /// become visible.
    pub fn read_pages(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read_valid(repository, layout, sink)?;
        let left = (PAGE - self.kept_end().0 % PAGE) % PAGE;
        sink(&vec![0; usize::try_from(left).unwrap_or(0)])
    }

    /// Streams a file of the segment's size: the bytes themselves when they are complete, else padded with zeros (format, section 7.2).
    ///
    /// # Errors
    /// As [`Remnant::read_pages`].
    pub fn read_padded(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.read_valid(repository, layout, sink)?;
        tail::pad(self.kept_end(), self.end, sink)
    }

    /// Up to here its bytes are handed out.
    fn kept_end(&self) -> Lsn {
        match self.is_complete {
            true => self.end,
            false => self.valid_end(),
        }
    }

    fn read_valid(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let reader = Reading {
            repository,
            layout,
            segment: &self.segment,
        };
        reader.read_up_to(&self.source, self.kept_end(), sink)
    }
}

/// Size of WAL pages; others are refused at registration.
const PAGE: u64 = 8192;

struct Reading<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    segment: &'a OpenSegment,
}

impl Reading<'_> {
    fn streamed(&self) -> Result<Option<Remnant>> {
        let mut ranges = increment::list(self.repository, self.layout, self.segment.name)?;
        let Some(first) = Run::of(*self.segment, &ranges)? else {
            return Ok(None);
        };
        let error = match self.read_run(first.clone()) {
            Err(e) if e.code() == Code::Damaged => e,
            other => return other.map(Some),
        };
        // Others may hold the same bytes: one that was merged, or those it was merged from.
        ranges.retain(|range| !first.pieces().contains(range) || self.is_sound(*range));
        match Run::of(*self.segment, &ranges)? {
            Some(other) if other != first && other.end() >= first.end() => {
                self.read_run(other).map(Some)
            }
            _ => Err(error),
        }
    }

    fn is_sound(&self, range: LsnRange) -> bool {
        increments::open(self.repository, self.layout, self.segment, range)
            .and_then(|container| container.read_body(&mut |_| Ok(())))
            .is_ok()
    }

    fn read_run(&self, run: Run) -> Result<Remnant> {
        let whole = self.segment.range()?;
        let is_complete = run.end() == whole.end;
        let stored_end = run.end();
        let mut decoding = Decoding::new(self, whole);
        run.read(self.repository, self.layout, &mut |bytes| {
            decoding.feed(bytes)
        })?;
        let mut index = decoding.finish(!is_complete)?;
        // A record from the segment before whose rest is not all here looks complete when its last page has begun.
        if index.summary.valid_end > stored_end.align_up(8) {
            empty(&mut index, whole.start);
        }
        Ok(Remnant {
            segment: *self.segment,
            source: Source::Run(run),
            index,
            start: whole.start,
            end: whole.end,
            is_complete,
        })
    }

    fn partial(&self) -> Result<Option<Remnant>> {
        let key = self
            .layout
            .wal_file(WalFileName::Partial(self.segment.name));
        let Some(container) = self.open_partial(&key)? else {
            return Ok(None);
        };
        let whole = self.segment.range()?;
        let read = || -> Result<(SegmentIndex, bool)> {
            let is_marked = index::read_summary(&container)?.has(flag::MARKED);
            let mut decoding = Decoding::new(self, whole);
            container.read_body(&mut |bytes| decoding.feed(bytes))?;
            Ok((decoding.finish(true)?, is_marked))
        };
        let (mut index, is_marked) = read().map_err(|e| context(&key, e))?;
        let is_complete = !index.summary.has(flag::ENDS_INSIDE) && !is_marked;
        let head_only =
            index.summary.head_end == HeadEnd::Here && index.summary.last_complete.is_none();
        // Stale bytes may follow what was received; that the rest of a record is all here shows only by one that follows it.
        if head_only && !is_marked && !is_complete {
            empty(&mut index, whole.start);
        }
        Ok(Some(Remnant {
            segment: *self.segment,
            source: Source::Partial(key),
            index,
            start: whole.start,
            end: whole.end,
            is_complete,
        }))
    }

    fn open_partial(&self, key: &Key) -> Result<Option<Container>> {
        let Some(object) = self.repository.store().open(key)? else {
            return Ok(None);
        };
        let open = || -> Result<Container> {
            let container = Container::open(object)?;
            let identity = container.identity();
            let range = self.segment.range()?;
            let name = WalFileName::Partial(self.segment.name);
            let own = container.is_stored_as(Kind::Partial, name, self.layout.system_identifier())
                && identity.segment_size_bytes == self.segment.size.bytes()
                && identity.raw_bytes == self.segment.size.bytes()
                && identity.from_lsn == range.start.0;
            match own {
                true => Ok(container),
                false => Err(err!(Damaged, "it is another object")),
            }
        };
        open().map(Some).map_err(|e| context(key, e))
    }

    /// Checks that both have the same bytes as far as both are valid.
    fn compare(&self, streamed: &Remnant, partial: &Remnant) -> Result<()> {
        let until = streamed.valid_end().min(partial.valid_end());
        let hash = |source: &Source| -> Result<blake3::Hash> {
            let mut hasher = blake3::Hasher::new();
            self.read_up_to(source, until, &mut |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            Ok(hasher.finalize())
        };
        if hash(&streamed.source)? == hash(&partial.source)? {
            return Ok(());
        }
        Err(err!(
            Damaged,
            "increments \"{}\" and partial \"{}\" of segment \"{}\" differ before {until}",
            self.layout.increments(self.segment.name),
            self.layout
                .wal_file(WalFileName::Partial(self.segment.name)),
            self.segment.name
        )
        .hint("Two servers may have written the same timeline. Recovery cannot know which one to follow; \"pitr verify\" says what it costs."))
    }

    /// Streams the bytes from the segment's start to `until`; reads all of them, so that what was handed out is checked.
    fn read_up_to(
        &self,
        source: &Source,
        until: Lsn,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut left = until.0.saturating_sub(self.segment.range()?.start.0);
        let mut cut = |bytes: &[u8]| {
            let now = usize::try_from(left).map_or(bytes.len(), |n| n.min(bytes.len()));
            left -= now as u64;
            match bytes.get(..now) {
                Some(valid) if !valid.is_empty() => sink(valid),
                _ => Ok(()),
            }
        };
        match source {
            Source::Run(run) => run.read(self.repository, self.layout, &mut cut)?,
            Source::Partial(key) => match self.open_partial(key)? {
                Some(container) => container.read_body(&mut cut).map_err(|e| context(key, e))?,
                None => return Err(err!(Damaged, "partial \"{key}\" is gone")),
            },
        }
        match left {
            0 => Ok(()),
            _ => Err(err!(
                Damaged,
                "segment \"{}\" does not reach to {until}",
                self.segment.name
            )),
        }
    }
}

fn context(key: &Key, e: Error) -> Error {
    e.context(format!("read partial \"{key}\""))
}

/// No record ends here.
fn empty(index: &mut SegmentIndex, start: Lsn) {
    let summary = &mut index.summary;
    summary.flags |= flag::ENDS_INSIDE;
    summary.head_end = match summary.head_end {
        HeadEnd::None => HeadEnd::None,
        _ => HeadEnd::Abandoned,
    };
    (summary.first_record, summary.last_begun) = (None, None);
    (summary.last_complete, summary.valid_end) = (None, start);
}

/// Decodes the bytes of a remnant as they come, in any pieces.
struct Decoding<'a> {
    reading: &'a Reading<'a>,
    whole: LsnRange,
    indexer: Option<Indexer>,
    /// Bytes that are no whole page yet.
    rest: Vec<u8>,
    done: u64,
}

impl<'a> Decoding<'a> {
    fn new(reading: &'a Reading<'a>, whole: LsnRange) -> Decoding<'a> {
        Decoding {
            reading,
            whole,
            indexer: None,
            rest: Vec::new(),
            done: 0,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
        let whole = self.rest.len() - self.rest.len() % page;
        let pages = self.rest.get(..whole).unwrap_or_default();
        if !pages.is_empty() {
            let indexer = match &mut self.indexer {
                Some(indexer) => indexer,
                slot => slot.insert(self.reading.indexer(pages)?),
            };
            indexer.feed(pages)?;
            self.done += whole as u64;
            self.rest.drain(..whole);
        }
        Ok(())
    }

    /// Ends with zeros, as a server would find them.
    fn finish(mut self, is_partial: bool) -> Result<SegmentIndex> {
        let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
        if self.indexer.is_none() && self.rest.len() < LONG_HEADER {
            // Not even the header of its first page is there: nothing is known of the segment, and it counts as empty.
            let mut index = SegmentIndex::nothing(self.whole.start);
            empty(&mut index, self.whole.start);
            return Ok(index);
        }
        if !self.rest.is_empty() {
            self.feed(&vec![0; page - self.rest.len()])?;
        }
        if self.whole.start.0 + self.done < self.whole.end.0 {
            self.feed(&vec![0; page])?;
        }
        self.indexer
            .map(|indexer| indexer.finish(is_partial))
            .ok_or_else(|| err!(Damaged, "no page was read"))
    }
}

impl Reading<'_> {
    fn indexer(&self, first: &[u8]) -> Result<Indexer> {
        let damaged = |e: Error| e.with_code(Code::Damaged);
        let identity = WalIdentity::read(first).map_err(damaged)?;
        identity.matches(self.segment.name).map_err(damaged)?;
        if identity.system_identifier != self.layout.system_identifier()
            || identity.segment_size != self.segment.size
            || u64::from(identity.page_size) != PAGE
        {
            return Err(err!(
                Damaged,
                "segment \"{}\" holds WAL of another cluster",
                self.segment.name
            ));
        }
        Indexer::new(&identity, identity.start_lsn, self.segment.name.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::{self, Craft};
    use crate::pg::rmgr;
    use crate::pg::segment::{SegmentNumber, SegmentSize};
    use crate::pg::timeline::TimelineId;
    use crate::pg::version::Major;
    use crate::repo::container::{Codec, ContainerWriter, Identity};
    use crate::repo::crafted;

    const SEGMENT: usize = 1 << 20;

    /// Segment 2 of some WAL: a record reaches into it, and others follow up to somewhere in its middle.
    struct Fixture {
        repository: Repository,
        layout: ClusterLayout,
        segment: OpenSegment,
        /// The segment's bytes, zeros behind what was written.
        bytes: Vec<u8>,
        /// Ends of the records that end in the segment, relative to its start.
        ends: Vec<usize>,
        _directory: tempfile::TempDir,
    }

    /// Writes a record of so many bytes; returns its end.
    fn noop(craft: &mut Craft, byte: u8, length: usize) -> Lsn {
        let data = craft::long_main_data(&vec![byte; length]);
        craft.record(rmgr::XLOG, 0x20, 0, &data).1
    }

    fn fixture() -> Fixture {
        let mut craft = Craft::new(Major::V17);
        let mut ends = vec![noop(&mut craft, 0x5A, SEGMENT + 12_000)];
        for length in [1, 40, 8100, 8200, 300, 20_000, 17, 5000] {
            ends.push(noop(&mut craft, 0x5A, length));
        }
        let start = 2 * SEGMENT;
        let mut bytes = craft.bytes.split_off(SEGMENT);
        bytes.resize(SEGMENT, 0);
        let (directory, repository, _) = crafted::empty();
        let size = SegmentSize::new(SEGMENT as u64).unwrap();
        Fixture {
            repository,
            layout: ClusterLayout::new("main", craft.identity.system_identifier).unwrap(),
            segment: OpenSegment {
                name: SegmentNumber(2).name(TimelineId::FIRST, size).unwrap(),
                size,
                major: 17,
            },
            bytes,
            ends: ends
                .iter()
                .map(|e| usize::try_from(e.0).unwrap() - start)
                .collect(),
            _directory: directory,
        }
    }

    impl Fixture {
        fn start(&self) -> Lsn {
            self.segment.range().unwrap().start
        }

        fn put(&self, from: usize, to: usize) -> Key {
            let at = Lsn(self.start().0 + from as u64);
            let content = &self.bytes[from..to];
            increment::put(&self.repository, &self.layout, &self.segment, at, content).unwrap();
            let end = Lsn(self.start().0 + to as u64);
            let range = LsnRange { start: at, end };
            self.layout.increment(self.segment.name, range)
        }

        fn put_partial(&self, content: &[u8], flags: u64) -> Key {
            let name = WalFileName::Partial(self.segment.name);
            let key = self.layout.wal_file(name);
            let range = self.segment.range().unwrap();
            let hash = *blake3::hash(content).as_bytes();
            let of = self.layout.system_identifier();
            let identity = Identity {
                name: name.to_string(),
                ..self.segment.identity(of, range, hash)
            };
            let mut index = SegmentIndex::nothing(range.start);
            index.summary.flags |= flags;
            let object = self.repository.store().create(&key).unwrap();
            let mut writer = ContainerWriter::new(object, Kind::Partial, Codec::Lz4).unwrap();
            writer.write(content).unwrap();
            let object = writer.finish(&identity, index.sections(true)).unwrap();
            object.publish().unwrap();
            key
        }

        fn find(&self) -> Result<Option<Remnant>> {
            Remnant::find(&self.repository, &self.layout, &self.segment)
        }

        fn valid(&self) -> usize {
            let remnant = self.find().unwrap().unwrap();
            usize::try_from(remnant.valid_end().0 - self.start().0).unwrap()
        }

        fn padded(&self) -> Vec<u8> {
            let mut padded = Vec::new();
            let remnant = self.find().unwrap().unwrap();
            remnant
                .read_padded(&self.repository, &self.layout, &mut |bytes| {
                    padded.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
            padded
        }

        fn delete(&self, key: &Key) {
            assert!(self.repository.store().delete(key).unwrap());
        }

        /// Returns the end of the last record that is whole in the first `length` bytes.
        fn expected(&self, length: usize) -> usize {
            let whole = |e: &&usize| **e <= length;
            self.ends.iter().rev().find(whole).copied().unwrap_or(0)
        }
    }

    #[test]
    fn a_run_is_valid_to_its_last_whole_record_wherever_it_is_cut() {
        let f = fixture();
        assert!(f.find().unwrap().is_none());
        let mut cuts: Vec<usize> = vec![8, 32, 40, 48, 8192, 16_384, 500_000];
        for end in &f.ends {
            let around = [-16, -8, 0, 8, 24, 32, 56];
            cuts.extend(around.map(|by| end.wrapping_add_signed(by)));
        }
        for cut in cuts {
            let key = f.put(0, cut);
            assert_eq!(f.valid(), f.expected(cut), "cut at {cut}");
            f.delete(&key);
        }
    }

    #[test]
    fn stale_bytes_behind_a_partial_are_not_taken_for_wal() {
        let f = fixture();
        let noise = |length: usize| -> Vec<u8> {
            (0..u32::try_from(length).unwrap())
                .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[1])
                .collect()
        };
        for cut in f.ends.iter().flat_map(|e| [*e, e - 16, e + 8]) {
            let mut content = noise(SEGMENT);
            content[..cut].copy_from_slice(&f.bytes[..cut]);
            let key = f.put_partial(&content, 0);
            // That a record from the segment before is all there shows only by one behind it.
            let expected = match f.expected(cut) {
                end if end == f.ends[0] => 0,
                end => end,
            };
            assert_eq!(f.valid(), expected, "cut at {cut}");
            f.delete(&key);
        }
    }

    #[test]
    fn what_is_handed_out_is_padded() {
        let f = fixture();
        let cut = f.ends[6] + 30;
        f.put(0, 20_000);
        f.put(19_000, cut);
        let padded = f.padded();
        let valid = f.ends[6];
        assert_eq!(padded.len(), SEGMENT);
        assert_eq!(padded[..valid], f.bytes[..valid]);
        assert!(padded[valid..].iter().all(|b| *b == 0));
        let remnant = f.find().unwrap().unwrap();
        assert!(!remnant.is_complete() && !remnant.goes_on());
        // A marked partial of it is as long, also where nothing follows the record that came from before.
        let key = f.put_partial(&padded, flag::MARKED);
        assert_eq!((f.valid(), f.padded()), (valid, padded));
        f.delete(&key);
        // Every byte: then it is the segment, and nothing is added.
        f.put(cut, SEGMENT);
        let remnant = f.find().unwrap().unwrap();
        assert!(remnant.is_complete() && remnant.goes_on());
        assert_eq!(f.padded(), f.bytes);
    }

    #[test]
    fn the_longer_of_partial_and_increments_counts_and_both_must_agree() {
        let f = fixture();
        let mut content = f.bytes.clone();
        content[f.ends[5]..].fill(0);
        let partial = f.put_partial(&content, 0);
        let increment = f.put(0, f.ends[3]);
        assert_eq!(f.find().unwrap().unwrap().kind(), "partial");
        assert_eq!(f.valid(), f.ends[5]);
        f.put(f.ends[3], f.ends[7] + 8);
        assert_eq!(f.find().unwrap().unwrap().kind(), "increments");
        assert_eq!(f.valid(), f.ends[7]);
        f.delete(&partial);
        // A record of the partial is wrong, and so its WAL ends before it: nothing behind counts.
        content[f.ends[3] + 50] ^= 1;
        let partial = f.put_partial(&content, 0);
        assert_eq!(f.valid(), f.ends[7]);
        f.delete(&partial);
        // Other WAL of the same segment.
        let mut other = Craft::new(Major::V17);
        noop(&mut other, 1, SEGMENT + 9000);
        noop(&mut other, 1, 9000);
        let mut content = other.bytes.split_off(SEGMENT);
        content.resize(SEGMENT, 0);
        let partial = f.put_partial(&content, 0);
        let error = f.find().unwrap_err();
        assert_eq!(error.code(), Code::Damaged);
        let open = increment.parent().unwrap();
        for name in [partial.as_str(), open] {
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn bytes_of_another_segment_are_damage() {
        let f = fixture();
        let other = vec![0x11; 20_000];
        increment::put(&f.repository, &f.layout, &f.segment, f.start(), &other).unwrap();
        assert_eq!(f.find().unwrap_err().code(), Code::Damaged);
    }

    #[test]
    fn a_damaged_increment_is_made_up_for_by_those_it_was_merged_from() {
        let f = fixture();
        f.put(0, 10_000);
        f.put(10_000, 30_000);
        let merged = f.put(0, 30_000);
        let valid = f.valid();
        let path = f._directory.path().join("repo").join(merged.as_str());
        crafted::rot(&path, 60);
        assert_eq!(f.valid(), valid);
        let start = f.start();
        let first = LsnRange {
            start,
            end: Lsn(start.0 + 10_000),
        };
        f.delete(&f.layout.increment(f.segment.name, first));
        assert_eq!(f.find().unwrap_err().code(), Code::Damaged);
    }
}
