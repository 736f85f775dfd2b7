//! Tests of the end of the last WAL before a border, as each side of the border tells it: one fact at a time.

use super::index::{HeadEnd, Summary, flag};
use super::link::{EndBefore, end_before, own_end};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentSize;

const SIZE: u64 = 1 << 20;
const START: Lsn = Lsn(16 * SIZE);

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

/// A whole segment: its first record lies behind the page header, its last one 1000 bytes before the end.
fn whole() -> Summary {
    Summary {
        start_lsn: START,
        first_timeline: 1,
        last_timeline: 1,
        first_record: Some((Lsn(START.0 + 40), Lsn(START.0 - 1000))),
        last_begun: Some(Lsn(START.0 + SIZE - 1000)),
        last_complete: Some((Lsn(START.0 + SIZE - 1000), Lsn(START.0 + SIZE))),
        valid_end: Lsn(START.0 + SIZE),
        records: 9,
        ..Summary::default()
    }
}

#[test]
fn a_segments_own_end_is_the_last_header_with_room_for_a_page_header_or_the_segments() {
    let own = |s: &Summary| own_end(s, size());
    // The format has these numbers: marks that are stored were computed with them.
    assert_eq!(own(&whole()), Some(SIZE - 1000 + 48));
    let tail = Summary {
        tail_length: 8,
        ..whole()
    };
    assert_eq!(own(&tail), Some(SIZE));
    let through = Summary {
        head_end: HeadEnd::Continues,
        ..whole()
    };
    assert_eq!(own(&through), Some(SIZE));
    for flags in [flag::DAMAGED, flag::ENDS_INSIDE] {
        assert_eq!(own(&Summary { flags, ..whole() }), None);
    }
}

#[test]
fn the_next_segment_tells_the_same_end_or_nothing() {
    let before = |s: &Summary| end_before(s, size());
    assert_eq!(before(&whole()), EndBefore::At(SIZE - 1000 + 48));
    let flags = flag::DAMAGED;
    assert_eq!(before(&Summary { flags, ..whole() }), EndBefore::Unknown);
    let reaches_in = Summary {
        head_remaining: 8,
        ..whole()
    };
    assert_eq!(before(&reaches_in), EndBefore::At(SIZE));
    let earlier = Summary {
        first_record: Some((Lsn(START.0 + 40), Lsn(START.0 - SIZE - 8))),
        ..whole()
    };
    assert_eq!(before(&earlier), EndBefore::At(SIZE));
    let none = Summary {
        first_record: None,
        ..whole()
    };
    assert_eq!(before(&none), EndBefore::Unknown);
}

#[test]
fn a_record_in_the_place_of_an_abandoned_one_tells_nothing_of_the_segment_before() {
    let flags = flag::OVERWRITTEN;
    let first = Summary { flags, ..whole() };
    assert_eq!(end_before(&first, size()), EndBefore::Unknown);
    // On a later page: the record that was abandoned began in this segment.
    let later = Summary {
        first_record: Some((Lsn(START.0 + 48), Lsn(START.0 - 1000))),
        ..first
    };
    let end = end_before(&later, size());
    assert_eq!(end, EndBefore::At(SIZE - 1000 + 48));
}

#[test]
fn only_a_header_that_is_there_to_its_end_has_no_predecessor() {
    let first_at = |offset| Summary {
        first_record: Some((Lsn(START.0 + offset), Lsn(0))),
        ..whole()
    };
    let before = |offset| end_before(&first_at(offset), size());
    assert_eq!(before(40), EndBefore::Nothing);
    assert_eq!(before(SIZE - 24), EndBefore::Nothing);
    assert_eq!(before(SIZE - 16), EndBefore::Unknown);
}
