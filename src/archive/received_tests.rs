//! A whole segment and the increments that a receiver stored before it: of one server, and of two.

use super::life_tests::{Bench, Life, SEGMENT, padded, unfinished};
use super::push::{Archived, Pushed, may_be_refused};
use crate::error::{Code, Result};
use crate::pg::craft::Craft;
use crate::pg::segment::SegmentSize;
use crate::pg::version::Major;
use crate::wal::increment::{self, OpenSegment};

const PAGE: usize = 8192;

/// Stores increments of the second segment that end at these offsets.
fn receive(bench: &Bench, life: &Life, bytes: &[u8], ends: &[usize]) {
    let segment = OpenSegment {
        name: life.name(2),
        size: SegmentSize::new(SEGMENT as u64).unwrap(),
        major: 17,
    };
    let (repository, layout) = (bench.repository(), bench.layout());
    let start = segment.range().unwrap().start;
    let mut from = 0;
    for to in ends {
        let at = crate::pg::lsn::Lsn(start.0 + from as u64);
        increment::put(&repository, &layout, &segment, at, &bytes[from..*to]).unwrap();
        from = *to;
    }
}

fn bytes_of(life: &Life) -> Vec<u8> {
    std::fs::read(life.path(2)).unwrap()
}

fn is_refused(bench: &Bench, pushed: Result<Archived>) {
    let error = pushed.err().unwrap();
    assert_eq!(error.code(), Code::Conflict, "{error}");
    assert!(
        error
            .to_string()
            .contains("a receiver has archived other content"),
        "{error}"
    );
    assert_eq!(bench.kept(), 1, "it is kept");
}

#[test]
fn what_was_received_of_another_server_is_not_superseded() {
    let (bench, one, other) = Bench::with_two();
    receive(&bench, &one, &bytes_of(&one), &[60, 200]);
    let (repository, path) = (bench.repository(), other.path(2));
    assert!(may_be_refused(&other.what(&repository, &path, 2)).unwrap());
    is_refused(&bench, other.push(&repository, 2));
    let key = bench.layout().segment(other.name(2));
    assert!(repository.store().head(&key).unwrap().is_none());
    // The server that was received from goes on.
    let path = one.path(2);
    assert!(!may_be_refused(&one.what(&repository, &path, 2)).unwrap());
    let (pushed, warnings) = one.push(&repository, 2).unwrap();
    assert_eq!((pushed, warnings), (Pushed::Stored, Vec::new()));
}

#[test]
fn the_zeros_after_a_switch_prove_no_server() {
    let (bench, one, other) = Bench::with_two();
    let ends = [200, PAGE, SEGMENT / 2, SEGMENT - PAGE];
    receive(&bench, &one, &bytes_of(&one), &ends);
    is_refused(&bench, other.push(&bench.repository(), 2));
    one.push(&bench.repository(), 2).unwrap();
}

/// The server crashed while it wrote a record, and wrote another one in its place.
#[test]
fn bytes_after_the_last_whole_record_are_nobodys_commit() {
    for (is_torn, first) in [(true, 1), (false, 1), (true, 3)] {
        let (bench, one) = Bench::with_one();
        let crafted = |second: u8| {
            let mut craft = Craft::new(Major::V17);
            craft.main(0, 0x20, 0, &[1; 40]);
            craft.switch();
            craft.main(0, 0x20, 0, &[if second == 1 { first } else { 1 }; 5000]);
            craft.main(0, 0x20, 0, &[second; 5000]);
            craft.switch();
            craft.bytes.split_off(SEGMENT)
        };
        let end = if is_torn { PAGE } else { 11_000 };
        receive(&bench, &one, &crafted(1), &[100, end]);
        let pushed = one.offer(&bench.repository(), &crafted(2), false);
        match is_torn && first == 1 {
            true => assert_eq!(pushed.unwrap(), (Pushed::Stored, Vec::new())),
            false => is_refused(&bench, pushed),
        }
    }
}

#[test]
fn the_padded_tail_of_a_standby_is_a_partial_however_far_was_received() {
    let (bench, one) = Bench::with_one();
    receive(&bench, &one, &unfinished(9, 1), &[30_000, 45_000]);
    let offered = one.offer(&bench.repository(), &padded(unfinished(5, 1)), false);
    let (_, warnings) = offered.unwrap();
    assert!(
        warnings[0].contains("archived as a partial"),
        "{warnings:?}"
    );
    assert!(bench.keys(&bench.layout().conflicts()).is_empty());
}
