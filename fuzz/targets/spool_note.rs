//! The files that the worker that archives ahead keeps in its spool. A note is believed whole or not at all, and a
//! record of failure never says success.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::archive::spool::{Failure, Note};
use pitr_fuzz::{Input, within};

const CEILING: usize = 8 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(4) {
        0 => note(input.rest()),
        1 => note(&summed(input.rest())),
        2 => changed(&mut input),
        _ => failure(input.rest()),
    }
}

/// With the checksum that belongs to it.
fn summed(json: &[u8]) -> Vec<u8> {
    let sum = format!("\n{:08x}\n", crc32fast::hash(json));
    [json, sum.as_bytes()].concat()
}

fn note(bytes: &[u8]) {
    if let Some(note) = Note::decode(bytes) {
        let written = note.encode().unwrap();
        assert_eq!(Note::decode(&written), Some(note));
    }
}

/// A sound note of which one byte is other, or which ends early, is none.
fn changed(input: &mut Input<'_>) {
    let (at, flip) = (usize::from(input.u16()), input.u8());
    let whole = summed(input.rest());
    let Some(note) = Note::decode(&whole) else {
        return;
    };
    assert_eq!(Note::decode(&whole[..at % whole.len()]), None);
    let mut other = whole.clone();
    other[at % whole.len()] ^= flip;
    assert_eq!(Note::decode(&other), (flip == 0).then_some(note));
}

fn failure(bytes: &[u8]) {
    if let Some(failure) = Failure::decode(bytes) {
        assert!((1..=125).contains(&failure.status));
        let written = serde_json::to_vec(&failure).unwrap();
        assert_eq!(Failure::decode(&written), Some(failure));
    }
}
