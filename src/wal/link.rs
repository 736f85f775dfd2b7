//! Links between segments (format, section 5, tag 8): which life of a cluster wrote a segment.
//!
//! System identifier, timeline and LSN name a segment, and a clone or a reverted machine writes other WAL under the same names. A segment's *mark* is
//! a hash of its last WAL; each segment keeps its own mark, and the mark that its writer saw in the segment before. Two stored
//! segments belong together when the second one saw the first one's mark.
//!
//! The CRC of the last record alone would not do: that of a switch record covers its position and nothing of what came before, so
//! two lives that wrote as many bytes have the same one.

pub use crate::repo::mark::{Mark, WINDOW_BYTES};
use serde::{Deserialize, Serialize};

use super::index::{HeadEnd, Summary, flag};
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::page::LONG_HEADER;
use crate::pg::record;
use crate::pg::segment::SegmentSize;
use crate::pg::timeline::TimelineId;
use crate::repo::container::{Container, Section, tag};
use crate::repo::varint::{self, Fixed, Reader, stored};
use crate::store::{Key, Store};

/// A record's header, with the page header that may stand inside of it.
const HEADER_BYTES: u64 = 48;

/// The knowledge that a segment's writer had of the segment before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It was not at hand.
    Unknown,
    /// The first record has no predecessor: initdb or pg_resetwal wrote it.
    Nothing,
    /// The segment before, under this timeline, had this mark.
    Known(TimelineId, Mark),
}

/// Section 8 of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The segment's own mark; none where its WAL is damaged or ends inside.
    pub own: Option<Mark>,
    /// The mark of the segment before.
    pub before: Before,
}

impl Link {
    /// A link that joins nothing.
    pub const NONE: Link = Link {
        own: None,
        before: Before::Unknown,
    };

    /// Section 8.
    pub fn section(&self) -> Section {
        let mut bytes = vec![u8::from(self.own.is_some())];
        bytes.extend_from_slice(&self.own.map_or([0; 32], |mark| mark.0));
        let (kind, timeline, mark) = match self.before {
            Before::Unknown => (0, 0, [0; 32]),
            Before::Nothing => (2, 0, [0; 32]),
            Before::Known(timeline, mark) => (1, timeline.get(), mark.0),
        };
        bytes.push(kind);
        varint::put(&mut bytes, u64::from(timeline));
        bytes.extend_from_slice(&mark);
        Section {
            tag: tag::LINK,
            bytes,
            compress: false,
        }
    }

    fn decode(bytes: &[u8]) -> Result<Link> {
        let mut r = Reader::new(bytes, "link of a segment");
        let (has_own, own) = (r.u8()?, r.array()?);
        let (kind, timeline, mark) = (r.u8()?, r.number()?, r.array()?);
        let before = match (kind, TimelineId::new(timeline)) {
            (0, _) => Before::Unknown,
            (1, Some(timeline)) => Before::Known(timeline, Mark(mark)),
            (2, _) => Before::Nothing,
            // A kind that only a later version knows joins nothing here.
            _ => Before::Unknown,
        };
        Ok(Link {
            own: (has_own == 1).then_some(Mark(own)),
            before,
        })
    }

    /// Reads the link of a segment; [`Link::NONE`] where it was stored before there were links. If the container cannot
    /// be read for want of a key, the marks are the keyed ones.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn read(container: &Container) -> Result<Link> {
        if let Some(opaque) = container.object().opaque() {
            let facts = opaque.facts().get("link").cloned();
            let facts = facts.and_then(|f| serde_json::from_value::<LinkFacts>(f).ok());
            return Ok(facts.map_or(Link::NONE, |facts| facts.link()));
        }
        match container.section(tag::LINK)? {
            Some(bytes) => Link::decode(&bytes),
            None => Ok(Link::NONE),
        }
    }

    /// Reads the link of a stored segment, and whether its marks are keyed; `None` when the segment is not stored.
    ///
    /// # Errors
    /// `Damaged`; those of the store.
    pub fn stored(store: &dyn Store, key: &Key) -> Result<Option<(Link, bool)>> {
        let container = Container::stored(store, key)?;
        let read = |c: Container| Ok((Link::read(&c)?, c.is_opaque()));
        container.map(read).transpose()
    }

    /// Returns the facts of the link that stay plain in an encrypted repository; `keyed` gives the keyed hash of a
    /// mark.
    ///
    /// # Errors
    /// Errors of `keyed`.
    pub fn facts(
        &self,
        keyed: &dyn Fn(&[u8; 32]) -> Result<[u8; 32]>,
    ) -> Result<serde_json::Map<String, serde_json::Value>> {
        let text = |mark: Mark| -> Result<String> { Ok(crate::text::hex(&keyed(&mark.0)?)) };
        let (timeline, before) = match self.before {
            Before::Known(timeline, mark) => (Some(timeline.get()), Some(text(mark)?)),
            _ => (None, None),
        };
        let facts = LinkFacts {
            own: self.own.map(text).transpose()?,
            before,
            timeline,
            is_first: self.before == Before::Nothing,
        };
        let value = serde_json::to_value(facts).unwrap_or_default();
        Ok(serde_json::Map::from_iter([("link".to_owned(), value)]))
    }
}

/// A link in the facts of a sealed object.
#[derive(Serialize, Deserialize)]
struct LinkFacts {
    own: Option<String>,
    before: Option<String>,
    timeline: Option<u32>,
    is_first: bool,
}

impl LinkFacts {
    fn link(&self) -> Link {
        let mark = |text: &Option<String>| {
            let hash = blake3::Hash::from_hex(text.as_ref()?).ok()?;
            Some(Mark(*hash.as_bytes()))
        };
        let timeline = self.timeline.and_then(TimelineId::new);
        let before = match (timeline, mark(&self.before)) {
            (Some(timeline), Some(mark)) => Before::Known(timeline, mark),
            _ if self.is_first => Before::Nothing,
            _ => Before::Unknown,
        };
        Link {
            own: mark(&self.own),
            before,
        }
    }
}

/// Returns the offset at which the last WAL of a segment ends that the next one continues; `None` where it is not
/// known.
///
/// The offset is the segment's end if a record reaches into the next segment. Otherwise it is the end of the last
/// record's header: nothing follows a switch record.
pub fn own_end(summary: &Summary, size: SegmentSize) -> Option<u64> {
    if summary.has(flag::DAMAGED | flag::ENDS_INSIDE | flag::UNDECODED) {
        return None;
    }
    let continues = summary.tail_length > 0 || summary.head_end == HeadEnd::Continues;
    match summary.last_begun.filter(|_| !continues) {
        Some(last) => Some(header_end(last, summary.start_lsn, size)),
        None => Some(size.bytes()),
    }
}

/// The end of the last WAL in the segment before, by what a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndBefore {
    /// Not known.
    Unknown,
    /// There is nothing before.
    Nothing,
    /// At this offset.
    At(u64),
}

/// Returns the end of the last WAL in the segment before, by what its successor says.
pub fn end_before(summary: &Summary, size: SegmentSize) -> EndBefore {
    // A damaged segment is no evidence of its first record.
    if summary.has(flag::DAMAGED | flag::UNDECODED) {
        return EndBefore::Unknown;
    }
    if summary.head_remaining > 0 {
        return EndBefore::At(size.bytes());
    }
    let Some((first, previous)) = summary.first_record else {
        return EndBefore::Unknown;
    };
    // The first page may stand in the place of a record that was abandoned, which then reached to the segment's end; or a later page does.
    if summary.has(flag::OVERWRITTEN)
        && first.0.checked_sub(LONG_HEADER as u64) == Some(summary.start_lsn.0)
    {
        return EndBefore::Unknown;
    }
    let Some(start) = summary.start_lsn.0.checked_sub(size.bytes()).map(Lsn) else {
        return EndBefore::Unknown;
    };
    if previous == Lsn(0) {
        // The record's header may be cut by the segment's end.
        let offset = first.0.saturating_sub(summary.start_lsn.0);
        let is_whole = offset.saturating_add(record::HEADER as u64) <= size.bytes();
        return match is_whole {
            true => EndBefore::Nothing,
            false => EndBefore::Unknown,
        };
    }
    if previous < start {
        // The record that ends with the segment before began earlier still.
        return EndBefore::At(size.bytes());
    }
    EndBefore::At(header_end(previous, start, size))
}

/// Whether the first record of a segment names another record before it than the last one of the segment before. That tells two lives apart where the
/// writer of the second segment did not have the first one; agreement proves nothing.
pub fn is_contradicted(before: &Summary, after: &Summary) -> bool {
    let unsure = flag::DAMAGED | flag::UNDECODED;
    // A record that was abandoned is passed over by what follows it.
    let is_abandoned = after.has(flag::OVERWRITTEN) || after.head_end == HeadEnd::Abandoned;
    if before.has(unsure | flag::ENDS_INSIDE) || after.has(unsure) || is_abandoned {
        return false;
    }
    let named = after.first_record.filter(|(_, named)| *named != Lsn(0));
    let last = before.last_begun.zip(named);
    last.is_some_and(|(last, (_, named))| named != last)
}

fn header_end(record: Lsn, start: Lsn, size: SegmentSize) -> u64 {
    let offset = record.0.saturating_sub(start.0);
    offset.saturating_add(HEADER_BYTES).min(size.bytes())
}

stored! {
    /// A link as plans keep it: the first bytes of the marks, 0 where there is none.
    /// `rollup_cache` stores the fields in this order. A change of the order needs another number in its magic.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Brief {
        /// The segment's own mark.
        pub own: u64 = Fixed,
        /// The mark of the segment before.
        pub before: u64 = Fixed,
        /// The timeline in that one's name; 0 where it was not at hand.
        pub timeline: u32 = Fixed,
        /// The first record has no predecessor.
        pub is_first: bool = Fixed,
    }
}

impl From<Link> for Brief {
    fn from(link: Link) -> Brief {
        let brief = |mark: Mark| {
            let first = mark.0.first_chunk().copied().unwrap_or_default();
            u64::from_le_bytes(first).max(1)
        };
        let (timeline, before) = match link.before {
            Before::Known(timeline, mark) => (timeline.get(), brief(mark)),
            _ => (0, 0),
        };
        Brief {
            own: link.own.map_or(0, brief),
            before,
            timeline,
            is_first: link.before == Before::Nothing,
        }
    }
}

/// Whether two neighbours belong to one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// The second one continues the first one.
    Yes,
    /// It does not: another server wrote one of them, or pg_resetwal came between them.
    No,
    /// One of them does not say.
    Unproven,
}

impl Brief {
    /// Whether this segment continues the one of `timeline` whose own mark is `own`.
    pub fn continues(&self, own: u64, timeline: TimelineId) -> Joined {
        if self.is_first {
            return Joined::No;
        }
        match own != 0 && self.timeline == timeline.get() {
            true if own == self.before => Joined::Yes,
            true => Joined::No,
            false => Joined::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::Craft;
    use crate::pg::version::Major;
    use crate::wal::indexer::Indexer;

    /// The summaries of the segments that were laid.
    fn summaries(craft: &Craft) -> Vec<Summary> {
        let size = craft.identity.segment_size.bytes();
        let whole = usize::try_from(size).unwrap();
        let mut start = craft.identity.start_lsn;
        let mut found = Vec::new();
        for bytes in craft.bytes.chunks_exact(whole) {
            let mut indexer = Indexer::new(&craft.identity, start, TimelineId::FIRST).unwrap();
            indexer.feed(bytes).unwrap();
            found.push(indexer.finish(false).summary);
            start.0 += size;
        }
        found
    }

    #[test]
    fn both_sides_of_a_border_agree_where_wal_ends_wherever_the_edge_cuts() {
        const PAGE: usize = 8192;
        for left in [0, 8, 16, 24, 32, 64] {
            for is_switch in [false, true] {
                let mut craft = Craft::new(Major::V17);
                let size = craft.identity.segment_size;
                let whole = usize::try_from(size.bytes()).unwrap();
                while craft.bytes.len() < whole - PAGE {
                    craft.leave(0);
                }
                craft.leave(left);
                match is_switch {
                    true => drop(craft.switch()),
                    false => drop(craft.main(0, 0x20, 0, &[7; 40])),
                }
                for _ in 0..2 {
                    craft.main(0, 0x20, 0, &[7; 20_000]);
                    craft.switch();
                }
                let found = summaries(&craft);
                assert!(found.len() >= 3, "{left} {is_switch}");
                for pair in found.windows(2) {
                    let [one, two] = pair else { continue };
                    let own = own_end(one, size);
                    assert!(own.is_some(), "{left} {is_switch} {one:?}");
                    let seen = end_before(two, size);
                    assert_eq!(seen, EndBefore::At(own.unwrap()), "{left} {is_switch}");
                }
                // If the edge cuts a switch record, the next segment holds nothing but its end, and is whole all the
                // same.
                let is_cut = is_switch && matches!(left, 8 | 16);
                let second = found.get(1).unwrap();
                assert!(second.has(flag::SWITCH) && !second.has(flag::ENDS_INSIDE));
                assert_eq!(second.first_record.is_none(), is_cut, "{left} {is_switch}");
            }
        }
    }

    fn mark(n: u8) -> Mark {
        Mark([n; 32])
    }

    fn all() -> Vec<Link> {
        let known = Before::Known(TimelineId::new(300).unwrap(), mark(7));
        let befores = [Before::Unknown, Before::Nothing, known];
        let owns = [None, Some(mark(1))];
        owns.iter()
            .flat_map(|own| befores.map(|before| Link { own: *own, before }))
            .collect()
    }

    #[test]
    fn a_link_reads_back_plain_and_from_facts() {
        for link in all() {
            assert_eq!(Link::decode(&link.section().bytes).unwrap(), link);
            let facts = link.facts(&|mark| Ok(*mark)).unwrap();
            let read: LinkFacts = serde_json::from_value(facts["link"].clone()).unwrap();
            assert_eq!(read.link(), link);
        }
        assert!(Link::decode(&[1, 2, 3]).is_err());
    }

    #[test]
    fn only_the_same_mark_of_the_same_timeline_joins() {
        let timeline = TimelineId::new(300).unwrap();
        let other = TimelineId::FIRST;
        let own = Brief::from(all()[3]).own;
        for link in all() {
            let brief = Brief::from(link);
            let expected = match link.before {
                Before::Unknown => Joined::Unproven,
                Before::Nothing | Before::Known(..) => Joined::No,
            };
            assert_eq!(brief.continues(own, timeline), expected, "{link:?}");
            if link.before != Before::Nothing {
                assert_eq!(brief.continues(own, other), Joined::Unproven);
                assert_eq!(brief.continues(0, timeline), Joined::Unproven);
            }
        }
        let after = Link {
            own: None,
            before: Before::Known(timeline, mark(1)),
        };
        assert_eq!(Brief::from(after).continues(own, timeline), Joined::Yes);
    }

    #[test]
    fn a_mark_covers_the_last_window_and_nothing_behind_it() {
        let of = |bytes: &[u8], end: usize| {
            let mut read = |buffer: &mut [u8], at: u64| {
                let at = usize::try_from(at).unwrap();
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(())
            };
            Mark::compute(end as u64, &mut read).unwrap()
        };
        let mut bytes = vec![5; 1 << 20];
        let (whole, short) = (of(&bytes, 1 << 20), of(&bytes, 100));
        bytes[(1 << 20) - usize::try_from(WINDOW_BYTES).unwrap()] = 6;
        assert_ne!(of(&bytes, 1 << 20), whole);
        bytes[100] = 6;
        assert_eq!(of(&bytes, 100), short);
        bytes[99] = 6;
        assert_ne!(of(&bytes, 100), short);
    }
}
