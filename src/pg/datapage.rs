//! Data pages: header, position of the last change, checksum, and the rule by which a page read during a backup is judged.
//!
//! PostgreSQL: src/include/storage/bufpage.h, checksum_impl.h; src/backend/backup/basebackup.c (verify_page_checksum).

use crate::pg::cursor;
use crate::pg::lsn::Lsn;
use crate::pg::zeros::is_zero;

/// Bytes before the line pointers.
pub const PAGE_HEADER_SIZE: usize = 24;
/// The page size of every packaged PostgreSQL; `pg_control` has the true one.
pub const DEFAULT_PAGE_SIZE: usize = 8192;

/// The fields of a page header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// End of the last WAL record that changed the page.
    pub lsn: Lsn,
    /// Stored checksum; 0 when there is none.
    pub checksum: u16,
    /// 1 has free lines, 2 full, 4 all visible.
    pub flags: u16,
    /// Offset of the free space's start.
    pub lower: u16,
    /// Offset of the free space's end; 0 marks a page that was never initialised.
    pub upper: u16,
    /// Offset of the special space.
    pub special: u16,
}

impl PageHeader {
    /// Reads the header; `None` if there are fewer than 24 bytes.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let header: &[u8; PAGE_HEADER_SIZE] = page.first_chunk()?;
        let half = |offset: usize| cursor::u16_at(header, offset);
        Some(PageHeader {
            lsn: lsn(page)?,
            checksum: half(8)?,
            flags: half(10)?,
            lower: half(12)?,
            upper: half(14)?,
            special: half(16)?,
        })
    }

    /// Whether the page was never initialised (it should then be all zero).
    pub fn is_new(&self) -> bool {
        self.upper == 0
    }
}

/// The position of the page's last change; stored as two words, the upper one first.
fn lsn(page: &[u8]) -> Option<Lsn> {
    let (high, low) = (cursor::u32_at(page, 0)?, cursor::u32_at(page, 4)?);
    Some(Lsn(u64::from(high) << 32 | u64::from(low)))
}

/// The items of a page with their numbers, from 1. Those of line pointers that lead nowhere, or have no storage, are left out.
///
/// PostgreSQL: src/include/storage/itemid.h, LP_NORMAL.
pub fn items(page: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let header = PageHeader::parse(page).filter(|header| !header.is_new());
    let lower = header.map_or(0, |header| usize::from(header.lower));
    let lower = lower.min(page.len());
    let pointers = page.get(PAGE_HEADER_SIZE..lower).unwrap_or_default();
    let pointers = (1..).zip(pointers.as_chunks::<4>().0);
    pointers.filter_map(|(number, pointer)| {
        let pointer = u32::from_le_bytes(*pointer);
        let (start, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
        let is_normal = pointer >> 15 & 3 == 1;
        let item = page.get(start..start + length).filter(|_| is_normal)?;
        Some((number, item))
    })
}

const LANES: usize = 32;
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;

/// Start values of the 32 interleaved sums.
const OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// Computes the checksum of a page as block `block` of its fork (counted over all files of the fork). Never 0.
///
/// The stored checksum's bytes count as zero. A length that is not a multiple of 128 is cut to one; page sizes never are.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW>();
    let mut sums = OFFSETS;
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        if let Some(stored) = first.get_mut(8..10) {
            stored.fill(0);
        }
        mix(&mut sums, &first);
        for row in rest {
            mix(&mut sums, row);
        }
    }
    mix(&mut sums, &[0; ROW]);
    mix(&mut sums, &[0; ROW]);
    let folded = sums.iter().fold(block, |a, b| a ^ b);
    let sum = (folded % 65535) as u16;
    sum + 1
}

/// One round over 32 words: plain lanes, which the compiler turns into vector instructions.
#[inline(always)]
fn mix(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// The result of the check of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// The checksum fits.
    Good,
    /// Never initialised: it carries no checksum.
    New,
    /// Never initialised by its header, but not all zero: damage that PostgreSQL's own check overlooks.
    NewNotZero,
    /// Changed after the backup began: replay writes it anew, so a torn copy is legal.
    Newer,
    /// The checksum does not fit.
    Bad {
        /// Checksum that the page carries.
        stored: u16,
        /// Checksum of its content.
        computed: u16,
    },
}

impl PageState {
    /// Whether the page is damaged.
    pub fn is_damaged(self) -> bool {
        matches!(self, PageState::Bad { .. } | PageState::NewNotZero)
    }
}

/// Judges one page of a cluster with checksums.
///
/// `backup_start` is the start LSN of the backup the page was read for, or `None` if nobody was writing (after a clean shutdown or
/// a completed replay), when every page has to fit. `block` counts over all files of the fork. During a backup a `Bad` page is read
/// again once before it is believed; a reader of a stream cannot, and takes the server's verdict.
pub fn check(page: &[u8], block: u32, backup_start: Option<Lsn>) -> PageState {
    let Some(header) = PageHeader::parse(page) else {
        return PageState::Bad {
            stored: 0,
            computed: 0,
        };
    };
    if header.is_new() {
        return if is_zero(page) {
            PageState::New
        } else {
            PageState::NewNotZero
        };
    }
    if backup_start.is_some_and(|start| header.lsn >= start) {
        return PageState::Newer;
    }
    let computed = checksum(page, block);
    if header.checksum == computed {
        PageState::Good
    } else {
        PageState::Bad {
            stored: header.checksum,
            computed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterned() -> Vec<u8> {
        (0..8192usize)
            .map(|i| u8::try_from((7 * i + 3) % 256).unwrap())
            .collect()
    }

    #[test]
    fn checksums_equal_those_of_the_server() {
        let page = patterned();
        assert_eq!(checksum(&page, 0), 43596);
        assert_eq!(checksum(&page, 1), 43595);
        assert_eq!(checksum(&page, 131_072), 43594);
        let mut page = vec![0u8; 8192];
        page[14] = 1;
        assert_eq!(checksum(&page, 0), 21607);
    }

    #[test]
    fn stored_checksum_does_not_change_the_computed_one() {
        let mut page = patterned();
        page[8] = 0xAA;
        page[9] = 0x55;
        assert_eq!(checksum(&page, 0), 43596);
    }

    #[test]
    fn position_is_stored_upper_half_first() {
        let mut page = vec![0u8; 8192];
        page[0] = 2;
        page[4] = 0x60;
        assert_eq!(PageHeader::parse(&page).unwrap().lsn, Lsn(0x2_0000_0060));
    }

    #[test]
    fn pages_are_judged_as_during_a_backup() {
        let mut page = vec![0u8; 8192];
        assert_eq!(check(&page, 0, None), PageState::New);
        page[100] = 1;
        assert_eq!(check(&page, 0, None), PageState::NewNotZero);
        page[4] = 0x60;
        page[14] = 1;
        let sum = checksum(&page, 7);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(check(&page, 7, Some(Lsn(0x61))), PageState::Good);
        assert_eq!(check(&page, 7, Some(Lsn(0x60))), PageState::Newer);
        assert!(check(&page, 8, Some(Lsn(0x61))).is_damaged());
        assert!(check(&page[..10], 8, None).is_damaged());
    }
}
