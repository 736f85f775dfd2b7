//! The envelope of an RDB file: its head, its end and its checksum. Pure. Values are not looked at: their encodings differ by version and module.
//!
//! Redis: src/rdb.c (rdbSaveRio, rdbLoadLen, rdbSaveInfoAuxFields, rdbGenericLoadStringObject).

use crc_fast::{CrcAlgorithm, Digest};

use super::version::FIRST_OF_VALKEY;
use crate::err;
use crate::error::Result;

/// The length of the checksum, with which a file ends.
pub const CRC_BYTES: usize = 8;
/// The head is looked for in so many bytes: Valkey names each slot of a shard there that is on its way, 48 bytes for one.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// The oldest version that is written by a server with histories: Redis 4.
const VERSION_MIN: u32 = 8;
/// The byte before a field of the head.
const AUX: u8 = 0xFA;
/// The byte before the checksum.
const END: u8 = 0xFF;
/// The byte before a string that is packed by LZF, as servers do with those of more than 20 bytes.
const PACKED: u8 = 0xC3;

/// The head of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The version of the format.
    pub version: u32,
    /// The fields before everything else, in order.
    pub fields: Vec<(String, String)>,
}

/// The checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is that of the content.
    Right,
    /// The server writes none: `rdbchecksum no`.
    Off,
    /// It is another one than the content's.
    Wrong,
}

/// A file that passes by, the end of which shows in time.
pub struct Passing {
    digest: Digest,
    head: Vec<u8>,
    found: Option<Head>,
    /// The last bytes, which may be checksum and mark.
    held: Vec<u8>,
    held_most: usize,
    last: Option<u8>,
    passed: u64,
}

impl Head {
    /// Returns the value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Reads the head of a file; none where more bytes are needed.
    ///
    /// # Errors
    /// `Damaged` for bytes that are no RDB file; `Unsupported` for one of a server without histories.
    pub fn read(bytes: &[u8]) -> Result<Option<Head>> {
        let (magic, digits) = match bytes.first() {
            Some(b'V') => (&b"VALKEY"[..], 3),
            _ => (&b"REDIS"[..], 4),
        };
        let known = bytes.get(..magic.len().min(bytes.len()));
        if known != magic.get(..magic.len().min(bytes.len())) {
            return Err(err!(Damaged, "it does not begin as an RDB file does"));
        }
        let Some(number) = bytes.get(magic.len()..magic.len() + digits) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(number).ok();
        let text = text.filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        let version: Option<u32> = text.and_then(|t| t.parse().ok());
        let is_fitting = |v: &u32| (*v >= FIRST_OF_VALKEY) == (magic == b"VALKEY");
        let Some(version) = version.filter(is_fitting) else {
            return Err(err!(Damaged, "its RDB version is no number of its family"));
        };
        if version < VERSION_MIN {
            return Err(err!(
                Unsupported,
                "RDB version {version} is that of a server before Redis 4"
            ));
        }
        let mut at = magic.len() + digits;
        let mut fields = Vec::new();
        loop {
            match bytes.get(at) {
                None => return Ok(None),
                Some(&AUX) => {}
                Some(_) => return Ok(Some(Head { version, fields })),
            }
            let Some((name, after)) = string(bytes, at + 1)? else {
                return Ok(None);
            };
            let Some((value, after)) = string(bytes, after)? else {
                return Ok(None);
            };
            fields.push((name, value));
            at = after;
        }
    }
}

/// Reads a string, and where it ends; none where more bytes are needed.
fn string(bytes: &[u8], at: usize) -> Result<Option<(String, usize)>> {
    match bytes.get(at) {
        None => return Ok(None),
        Some(first) if (0xC0..=0xC2).contains(first) => {
            return Ok(integer(bytes, at + 1, 1 << (first & 3)));
        }
        Some(&PACKED) => return packed(bytes, at + 1),
        Some(_) => {}
    }
    let Some((length, start)) = length(bytes, at)? else {
        return Ok(None);
    };
    let text = bytes.get(start..start + length);
    let text = text.map(|text| String::from_utf8_lossy(text).into_owned());
    Ok(text.map(|text| (text, start + length)))
}

/// Reads a length, and where it ends; none where more bytes are needed.
fn length(bytes: &[u8], at: usize) -> Result<Option<(usize, usize)>> {
    let Some(&first) = bytes.get(at) else {
        return Ok(None);
    };
    let low = usize::from(first & 0x3F);
    let (length, end) = match (first >> 6, low) {
        (0, length) => (length, at + 1),
        (1, high) => match bytes.get(at + 1) {
            None => return Ok(None),
            Some(&low) => (high << 8 | usize::from(low), at + 2),
        },
        (2, 0) => match bytes.get(at + 1..).and_then(|b| b.first_chunk::<4>()) {
            None => return Ok(None),
            Some(length) => (u32::from_be_bytes(*length) as usize, at + 5),
        },
        _ => return Err(err!(Damaged, "a field of its head has an unknown form")),
    };
    if length > HEAD_BYTES_MAX {
        return Err(err!(Damaged, "a field of its head has {length} bytes"));
    }
    Ok(Some((length, end)))
}

/// Reads a string that was packed, behind the byte that says so: two lengths stand before it.
fn packed(bytes: &[u8], at: usize) -> Result<Option<(String, usize)>> {
    let Some((packed, at)) = length(bytes, at)? else {
        return Ok(None);
    };
    let Some((whole, start)) = length(bytes, at)? else {
        return Ok(None);
    };
    let Some(content) = bytes.get(start..start + packed) else {
        return Ok(None);
    };
    let text = unpack(content, whole)
        .ok_or_else(|| err!(Damaged, "a field of its head cannot be unpacked"))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Some((text, start + packed)))
}

/// Unpacks so many bytes (Redis: src/lzf_d.c); none where it is not so many.
fn unpack(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(length);
    let mut rest = packed;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let mut count = usize::from(first >> 5);
        if count == 0 {
            let (plain, after) = rest.split_at_checked(usize::from(first) + 1)?;
            out.extend_from_slice(plain);
            rest = after;
        } else {
            if count == 7 {
                let (&more, after) = rest.split_first()?;
                count += usize::from(more);
                rest = after;
            }
            let (&low, after) = rest.split_first()?;
            rest = after;
            let back = (usize::from(first & 0x1F) << 8 | usize::from(low)) + 1;
            let start = out.len().checked_sub(back)?;
            // These bytes may be among those that they are copied to.
            for at in start..start + count + 2 {
                out.push(*out.get(at)?);
            }
        }
        if out.len() > length {
            return None;
        }
    }
    (out.len() == length).then_some(out)
}

/// Reads a number of 1, 2 or 4 bytes.
fn integer(bytes: &[u8], at: usize, size: usize) -> Option<(String, usize)> {
    let number = bytes.get(at..at + size)?;
    let value = match *number {
        [a] => i64::from(i8::from_le_bytes([a])),
        [a, b] => i64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => return None,
    };
    Some((value.to_string(), at + size))
}

impl Passing {
    /// Begins a file that `mark_bytes` follow which are not part of it.
    pub fn new(mark_bytes: usize) -> Passing {
        Passing {
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            head: Vec::new(),
            found: None,
            held: Vec::with_capacity(CRC_BYTES + mark_bytes),
            held_most: CRC_BYTES + mark_bytes,
            last: None,
            passed: 0,
        }
    }

    /// Takes the next bytes in, and hands on what is surely content.
    ///
    /// # Errors
    /// As [`Head::read`]; those of `out`.
    pub fn take(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let surplus = (self.held.len() + bytes.len()).saturating_sub(self.held_most);
        let (old, new) = (
            surplus.min(self.held.len()),
            surplus.saturating_sub(self.held.len()),
        );
        let held: Vec<u8> = self.held.drain(..old).collect();
        let (passing, staying) = bytes.split_at_checked(new).unwrap_or((bytes, &[]));
        self.held.extend_from_slice(staying);
        self.pass(&held, out)?;
        self.pass(passing, out)
    }

    fn pass(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.digest.update(bytes);
        self.last = bytes.last().copied();
        self.passed += bytes.len() as u64;
        if self.found.is_none() {
            let room = HEAD_BYTES_MAX.saturating_sub(self.head.len());
            self.head
                .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            self.found = Head::read(&self.head)?;
            let is_endless = self.found.is_none() && self.head.len() >= HEAD_BYTES_MAX;
            if is_endless {
                return Err(err!(Damaged, "its head does not end"));
            }
            if self.found.is_some() {
                self.head = Vec::new();
            }
        }
        out(bytes)
    }

    /// Whether the bytes taken in end with this mark.
    pub fn ends_with(&self, mark: &[u8]) -> bool {
        self.held.len() == self.held_most && self.held.ends_with(mark)
    }

    /// Judges the checksum, if the file ended here.
    pub fn checksum(&self) -> Checksum {
        match self.held.first_chunk::<CRC_BYTES>() {
            Some(bytes) if self.last == Some(END) => match u64::from_le_bytes(*bytes) {
                0 => Checksum::Off,
                stored if stored == self.digest.finalize() => Checksum::Right,
                _ => Checksum::Wrong,
            },
            _ => Checksum::Wrong,
        }
    }

    /// Ends the file here: hands on its checksum, and returns its head and its length.
    ///
    /// # Errors
    /// `Damaged` for a file without a head; those of `out`.
    pub fn end(self, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(Head, u64)> {
        let (Some(head), Some(crc)) = (self.found, self.held.first_chunk::<CRC_BYTES>()) else {
            return Err(err!(Damaged, "it is too short for an RDB file"));
        };
        out(crc)?;
        Ok((head, self.passed + CRC_BYTES as u64))
    }
}

/// The end of a file that other bytes follow, as in an append-only file. Nothing tells its length: the right checksum behind a possible last byte is the sign.
pub struct End {
    digest: Digest,
    /// Bytes that the digest does not have yet.
    held: Vec<u8>,
    /// Bytes that it has.
    passed: u64,
}

impl End {
    /// Begins with the first byte of a file.
    pub fn at_start() -> End {
        End {
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            held: Vec::new(),
            passed: 0,
        }
    }

    /// Takes the next bytes in, and returns the length of the file once its end was among them. A file without a checksum has no end.
    pub fn find(&mut self, bytes: &[u8]) -> Option<u64> {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let rest = self.held.get(at..).unwrap_or_default();
            let last = rest.iter().position(|byte| *byte == END);
            let known = last.unwrap_or(rest.len());
            let stored = last.and_then(|last| rest.get(last + 1..)?.first_chunk::<CRC_BYTES>());
            let Some(stored) = stored else {
                self.digest.update(rest.get(..known).unwrap_or_default());
                self.passed += known as u64;
                self.held.drain(..at + known);
                return None;
            };
            self.digest.update(rest.get(..=known).unwrap_or_default());
            self.passed += known as u64 + 1;
            if u64::from_le_bytes(*stored) == self.digest.finalize() {
                return Some(self.passed + CRC_BYTES as u64);
            }
            at += known + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An empty data set of Redis 7.0.15, as `DEBUG RELOAD` writes it, with a field of each form.
    fn file() -> Vec<u8> {
        let mut bytes = b"REDIS0010\xFA\x09redis-ver\x067.0.15\xFA\x0Aredis-bits\xC0\x40".to_vec();
        bytes.extend_from_slice(b"\xFA\x05ctime\xC2\x15\xCD\x5B\x07\xFA\x0Erepl-stream-db\xC0\x00");
        bytes.extend_from_slice(b"\xFA\x04long\x40\x03abc\xFF");
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn pass(bytes: &[u8], step: usize, mark: &[u8]) -> (Passing, Vec<u8>) {
        let mut passing = Passing::new(mark.len());
        let mut out = Vec::new();
        for part in bytes.chunks(step) {
            passing
                .take(part, &mut |b| {
                    out.extend_from_slice(b);
                    Ok(())
                })
                .unwrap();
        }
        (passing, out)
    }

    #[test]
    fn the_checksum_is_that_of_redis() {
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Redis, b"123456789");
        // Redis: src/crc64.c, the first line of its self-test.
        assert_eq!(crc, 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let file = file();
        let body = file.len() - CRC_BYTES;
        let head = Head::read(&file).unwrap().unwrap();
        assert_eq!(head.version, 10);
        assert_eq!(head.field("redis-ver"), Some("7.0.15"));
        assert_eq!(head.field("redis-bits"), Some("64"));
        assert_eq!(head.field("ctime"), Some("123456789"));
        assert_eq!(head.field("repl-stream-db"), Some("0"));
        assert_eq!(head.field("long"), Some("abc"));
        assert_eq!(head.field("none"), None);
        for end in 0..body - 1 {
            assert_eq!(Head::read(&file[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(Head::read(b"VALKEY080\xFF").unwrap().unwrap().version, 80);
    }

    /// The states of two slots are packed: `rdbSaveRawString` does so with what is longer than 20 bytes and repeats itself.
    #[test]
    fn r215_a_field_that_is_packed_is_read() {
        // "100>", 40 times "a", ",101>", 40 times "a" again, and ",".
        let mut content = b"\x04100>a\xE0\x1E\x00\x04,101>\xE0\x1F\x2C\x00,".to_vec();
        let text = format!("100>{0},101>{0},", "a".repeat(40));
        let (packed, whole) = (content.len(), text.len());
        assert_eq!(unpack(&content, whole), Some(text.clone().into_bytes()));
        let mut file = b"VALKEY080\xFA\x13cluster-slot-states\xC3".to_vec();
        file.extend([packed, 0x40, whole].map(|number| u8::try_from(number).unwrap()));
        file.append(&mut content);
        let body = file.len();
        file.push(END);
        let head = Head::read(&file).unwrap().unwrap();
        assert_eq!(head.field("cluster-slot-states"), Some(text.as_str()));
        for end in 0..body {
            assert_eq!(Head::read(&file[..end]).unwrap(), None, "{end}");
        }
    }

    /// A shard with all slots on their way has a head of 768 KiB.
    #[test]
    fn r215_a_head_that_names_every_slot_is_read() {
        let mut file = b"VALKEY080\xFA\x13cluster-slot-states\x80".to_vec();
        let length = 48 << 14;
        file.extend_from_slice(&u32::to_be_bytes(length));
        file.resize(file.len() + length as usize, b'x');
        file.push(END);
        let (passing, _) = pass(&[&file[..], &[0; CRC_BYTES]].concat(), 1 << 16, b"");
        let (head, _) = passing.end(&mut |_| Ok(())).unwrap();
        assert_eq!(head.fields.len(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [
            &b"PGDMP"[..],
            b"RADIS0010",
            b"REDIS00x0\xFF",
            b"REDIS0080\xFF",
            b"VALKEY011\xFF",
            b"REDIS0003\xFF",
            b"REDIS0010\xFA\xC4\x01",
            // A copy from before the beginning, and a string that is shorter than it says.
            b"REDIS0010\xFA\xC3\x02\x03\x20\x00",
            b"REDIS0010\xFA\xC3\x02\x03\x00a",
            b"REDIS0010\xFA\x81",
        ] {
            assert!(Head::read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_file_passes_in_any_steps_and_its_mark_does_not() {
        let mark = [b'm'; 40];
        let whole = file();
        let sent = [&whole[..], &mark].concat();
        for step in [1, 2, 7, 47, 48, 49, 500] {
            let (passing, mut out) = pass(&sent, step, &mark);
            assert!(passing.ends_with(&mark));
            assert_eq!(passing.checksum(), Checksum::Right);
            let (head, length) = passing
                .end(&mut |b| {
                    out.extend_from_slice(b);
                    Ok(())
                })
                .unwrap();
            assert_eq!((head.version, length), (10, whole.len() as u64));
            assert_eq!(out, whole, "{step}");
        }
    }

    #[test]
    fn a_changed_byte_and_a_missing_checksum_show() {
        let mut changed = file();
        changed[20] ^= 1;
        assert_eq!(pass(&changed, 9, b"").0.checksum(), Checksum::Wrong);
        let mut off = file();
        let at = off.len() - CRC_BYTES;
        off[at..].fill(0);
        assert_eq!(pass(&off, 9, b"").0.checksum(), Checksum::Off);
        let (cut, _) = pass(&off[..at - 1], 9, b"");
        assert_eq!(cut.checksum(), Checksum::Wrong);
        assert!(pass(b"REDIS0010", 9, b"").0.end(&mut |_| Ok(())).is_err());
    }

    #[test]
    fn the_end_is_found_before_whatever_follows_and_however_it_comes() {
        let mut inner = file();
        let at = inner.len() - CRC_BYTES - 1;
        // Bytes as the last one are nothing without the checksum behind them.
        inner.splice(at..at, [END, 1, 2, END, END, END, 0, 0, 0]);
        let body = inner.len() - CRC_BYTES;
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &inner[..body]);
        inner[body..].copy_from_slice(&crc.to_le_bytes());
        for (whole, expected) in [(file(), file().len()), (inner.clone(), inner.len())] {
            for rest in [&b""[..], b"*1\r\n$4\r\nPING\r\n", &[END; 30]] {
                let sent = [&whole[..], rest].concat();
                for step in [1, 3, 8, 9, 10, 1000] {
                    let mut end = End::at_start();
                    let found = sent.chunks(step).find_map(|part| end.find(part));
                    assert_eq!(found, Some(expected as u64), "{step}");
                }
            }
        }
        let mut off = file();
        let at = off.len() - CRC_BYTES;
        off[at..].fill(0);
        assert_eq!(End::at_start().find(&off), None);
        assert_eq!(End::at_start().find(&file()[..at + 7]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Head::read(&bytes);
            let _ = Head::read(&[b"REDIS0011", bytes.as_slice()].concat());
        }
    }
}
