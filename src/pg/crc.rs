//! CRC-32C of WAL records, most of which have less than a hundred bytes.
//!
//! PostgreSQL's way: what follows the header, then the header up to the checksum (src/backend/access/transam/xloginsert.c,
//! XLogRecordAssemble). `crc32c` is made for long inputs and takes the odd bytes at both ends one by one, which on short records is most of
//! the work.

use super::record::HEADER;

/// The part of the header that is covered.
const COVERED: usize = 20;

/// From this length on three strands side by side are faster.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 768;

/// The checksum of a record with this header and what follows it.
#[inline]
pub fn of_record(header: &[u8; HEADER], body: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if body.len() < LONG && std::arch::is_x86_feature_detected!("sse4.2") {
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: the processor has just been asked for them.
        return unsafe { of_short_record(header, body) };
    }
    behind(crc32c::crc32c(body), header)
}

/// The checksum of a record whose body has the checksum `body`; `header` is its beginning.
#[inline]
pub fn behind(body: u32, header: &[u8]) -> u32 {
    crc32c::crc32c_append(body, header.get(..COVERED).unwrap_or_default())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn of_short_record(header: &[u8; HEADER], body: &[u8]) -> u32 {
    use super::cursor;
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let (words, rest) = body.as_chunks::<8>();
    let mut crc = u64::from(u32::MAX);
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    // The instruction leaves the upper half zero.
    let mut crc = u32::try_from(crc).unwrap_or(0);
    let mut at = 0;
    if rest.len() & 4 != 0 {
        crc = _mm_crc32_u32(crc, cursor::u32_at(rest, at).unwrap_or(0));
        at += 4;
    }
    if rest.len() & 2 != 0 {
        crc = _mm_crc32_u16(crc, cursor::u16_at(rest, at).unwrap_or(0));
        at += 2;
    }
    if rest.len() & 1 != 0 {
        crc = _mm_crc32_u8(crc, cursor::u8_at(rest, at).unwrap_or(0));
    }
    let mut crc = u64::from(crc);
    for at in [0, 8] {
        crc = _mm_crc32_u64(crc, cursor::u64_at(header, at).unwrap_or(0));
    }
    let crc = u32::try_from(crc).unwrap_or(0);
    !_mm_crc32_u32(crc, cursor::u32_at(header, 16).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_the_checksum_of_the_general_way() {
        let bytes: Vec<u8> = (0..2000_u32)
            .map(|n| (n * n / 3).to_le_bytes()[0])
            .collect();
        let (header, rest) = bytes.split_first_chunk::<HEADER>().unwrap();
        for length in (0..300).chain([766, 767, 768, 769, 1500]) {
            let body = &rest[..length];
            let joined = [body, &header[..COVERED]].concat();
            assert_eq!(of_record(header, body), crc32c::crc32c(&joined), "{length}");
            assert_eq!(
                behind(crc32c::crc32c(body), header),
                crc32c::crc32c(&joined)
            );
        }
    }
}
