//! A map whose keys are PostgreSQL's numbers: transactions, relations, forks.
//!
//! The standard hash takes as much time as decoding the records does. It guards against chosen keys; who can choose such numbers owns the
//! server, and would only slow down its own archiving.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map of numbers to values.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Hashes numbers of 32 bits and fewer.
#[derive(Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // The product's best bits are its upper ones, the table looks at the lower ones, too.
        self.0.rotate_left(26)
    }
}
