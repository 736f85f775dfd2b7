//! The edges of segments: by its first bytes, what the record is that begins in one and ends in a later one.

use std::fmt;

use super::facts::Crossing;
use crate::error::Result;
use crate::pg::record::{HEADER, RecordHeader};
use crate::pg::rmgr;
use crate::pg::time::TimestampTz;
use crate::pg::xlog;
use crate::repo::varint::{Fixed, Reader, stored};

/// The place of `wal_level` in a change of parameters: behind the header of its main data and five numbers.
const LEVEL_AT: usize = HEADER + 2 + 20;
/// How many bytes of an edge fragment are kept: the time of a transaction end lies within the first 45 of its record.
pub const PREFIX: usize = 47;

/// The first bytes of a fragment of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    length: u8,
    bytes: [u8; PREFIX],
}

impl Prefix {
    /// The first bytes of `fragment`.
    pub fn of(fragment: &[u8]) -> Prefix {
        let mut bytes = [0; PREFIX];
        let kept = fragment.len().min(PREFIX);
        for (to, from) in bytes.iter_mut().zip(fragment) {
            *to = *from;
        }
        Prefix {
            length: u8::try_from(kept).unwrap_or(0),
            bytes,
        }
    }

    /// Returns the bytes that were kept.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }
}

/// A length, and the bytes in a place of full size.
impl Fixed for Prefix {
    fn put(&self, out: &mut Vec<u8>) {
        self.length.put(out);
        self.bytes.put(out);
    }

    fn take(r: &mut Reader<'_>) -> Result<Prefix> {
        let (length, bytes) = <(u8, [u8; PREFIX])>::take(r)?;
        let kept = bytes.get(..usize::from(length)).map(Prefix::of);
        kept.ok_or_else(|| r.damaged())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({} bytes)", self.length)
    }
}

stored! {
    /// The first bytes of the records that cross the two ends of a segment.
    /// `rollup_cache` stores the fields in this order. A change of the order needs another number in its magic.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Edges {
        /// First bytes here of the record that reaches in from before.
        pub head: Prefix = Fixed,
        /// First bytes of the record that continues in the next segment.
        pub tail: Prefix = Fixed,
    }
}

/// Returns the kind of a record that crosses from one segment into the next, as far as its first bytes tell.
///
/// `tail` has the first bytes of its beginning, which is `tail_length` bytes long; `head` has the first bytes of its
/// rest.
pub fn crossing(tail: &Prefix, tail_length: u32, head: &Prefix) -> Crossing {
    let mut bytes = tail.bytes().to_vec();
    if usize::try_from(tail_length) == Ok(bytes.len()) {
        bytes.extend_from_slice(head.bytes());
    }
    let Some(header) = RecordHeader::read(&bytes) else {
        return Crossing::Unknown;
    };
    if header.rmid == rmgr::XLOG && header.info & 0xF0 == xlog::RESTORE_POINT_OPCODE {
        return Crossing::RestorePoint;
    }
    if header.rmid == rmgr::XLOG && header.info & 0xF0 == xlog::PARAMETER_CHANGE {
        // wal_level has four bytes, of which the first decides.
        let level = bytes.get(LEVEL_AT);
        return level.map_or(Crossing::Unknown, |level| Crossing::ParameterChange {
            is_minimal: *level == 0,
        });
    }
    if matches!(
        header.rmid,
        rmgr::STORAGE | rmgr::DATABASE | rmgr::TABLESPACE
    ) {
        return Crossing::Files;
    }
    if header.rmid != rmgr::TRANSACTION {
        return Crossing::Nothing;
    }
    let (is_commit, prepared) = match header.info & 0x70 {
        0x00 => (true, false),
        0x20 => (false, false),
        0x30 => (true, true),
        0x40 => (false, true),
        _ => return Crossing::Nothing,
    };
    match time_of(&bytes) {
        Some(time) => Crossing::End {
            // That of a prepared transaction stands far behind the first bytes.
            xid: if prepared { 0 } else { header.xid.0 },
            time,
            is_commit,
        },
        None => Crossing::Unknown,
    }
}

/// The time of a transaction end: it comes first in the main data, behind the headers of fragments.
///
/// PostgreSQL: src/include/access/xlogrecord.h (XLogRecordDataHeader, origin, top-level xid).
fn time_of(record: &[u8]) -> Option<TimestampTz> {
    let mut at = HEADER;
    loop {
        let id = *record.get(at)?;
        at += match id {
            255 => 2,
            254 => 5,
            253 => 3,
            252 => 5,
            _ => return None,
        };
        if id >= 254 {
            break;
        }
    }
    let time = record.get(at..at + 8)?;
    Some(TimestampTz(i64::from_le_bytes(time.try_into().ok()?)))
}

const _: () = assert!(PREFIX >= HEADER + 3 + 5 + 5 + 8 && PREFIX > LEVEL_AT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_keeps_the_first_bytes() {
        assert_eq!(Prefix::of(b"abc").bytes(), b"abc");
        assert_eq!(Prefix::of(&[7; 100]).bytes(), [7; PREFIX]);
        assert!(Prefix::of(b"").bytes().is_empty());
    }
}
