//! LZ4 blocks by the compressor that knows WAL: whatever is compressed comes back, by the decoder of a library.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::repo::wal_aware_lz4::{self, Alike};
use pitr_fuzz::{Input, within};

const CEILING: usize = 16 << 20;
/// As long as the input may be, a few pages besides.
const BLOCK: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    within(CEILING, || run(data));
});

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let repeats = usize::from(input.choice(4)) + 1;
    let raw = input.rest().repeat(repeats);
    let raw = raw.get(..raw.len().min(BLOCK)).unwrap_or_default();
    let mut out = vec![0; wal_aware_lz4::room(raw.len())];
    let mut compressor = Alike::default();
    // Twice: what is remembered of one block must not reach into the next.
    for _ in 0..2 {
        let length = compressor.compress(raw, &mut out).expect("there is room");
        let back = lz4_flex::block::decompress(&out[..length], raw.len()).expect("a block");
        assert!(back == raw);
    }
}
