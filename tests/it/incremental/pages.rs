//! Compares the relations of two data directories page by page, but for what a server changes without WAL.
//!
//! Masked: the checksum, hint bits of pages and tuples, dead items of indexes, free space, the cache on the first page of an SP-GiST index; the free
//! space map as a whole. PostgreSQL's own masks: src/backend/access/common/bufmask.c, heapam_xlog.c (heap_mask).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const PAGE: usize = 8192;
/// The LSN in the pages of a GiST index that was built sorted; replay gives them the LSN of the record.
/// src/include/access/gist.h.
const GIST_BUILD_LSN: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

/// Differences, at most some; empty when the relations are equal. `spgist` are the paths of SP-GiST indexes. Visibility maps count only with
/// `has_maps`: PostgreSQL 15 and later lose the bits of a database that was created by WAL_LOG when that is replayed.
pub fn differences(
    (one, two): (&Path, &Path),
    spgist: &BTreeSet<String>,
    has_maps: bool,
) -> Vec<String> {
    let promoted = promotion(one).min(promotion(two));
    let (one, two) = (relations(one), relations(two));
    let mut all = Comparison {
        promoted,
        own: 0,
        found: Vec::new(),
    };
    let names = one.keys().chain(two.keys());
    let names: BTreeSet<_> = names
        .filter(|name| has_maps || !name.ends_with("_vm"))
        .collect();
    assert!(names.len() > 200, "{} relations", names.len());
    for name in names {
        match (one.get(name), two.get(name)) {
            (Some(a), Some(b)) => all.file(name, (a, b), spgist.contains(name)),
            // A map that was made and holds nothing is in no WAL.
            (a, b) => {
                let there = a.or(b).map_or(&[][..], Vec::as_slice);
                all.file(name, (there, &[]), false);
            }
        }
    }
    assert!(
        all.own <= 20,
        "{} pages were changed after recovery",
        all.own
    );
    all.found.truncate(20);
    all.found
}

/// Returns where recovery ended: pages that a copy changed later are its own business, and few.
fn promotion(root: &Path) -> u64 {
    let files = std::fs::read_dir(root.join("pg_wal")).unwrap();
    let names = files.map(|e| e.unwrap().file_name().into_string().unwrap());
    let newest = names.filter(|n| n.ends_with(".history")).max().unwrap();
    let text = std::fs::read_to_string(root.join("pg_wal").join(newest)).unwrap();
    let lsn = text
        .trim_end()
        .lines()
        .last()
        .unwrap()
        .split('\t')
        .nth(1)
        .unwrap();
    lsn.parse::<pitr::pg::lsn::Lsn>().unwrap().0
}

fn lsn(page: &[u8]) -> u64 {
    let word = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
    word(0) << 32 | word(4)
}

struct Comparison {
    promoted: u64,
    /// Pages that differ, and were changed after recovery.
    own: usize,
    found: Vec<String>,
}

impl Comparison {
    fn file(&mut self, name: &str, (a, b): (&[u8], &[u8]), is_spgist: bool) {
        let length = a.len().max(b.len());
        let is_map = name.ends_with("_vm");
        for at in (0..length).step_by(PAGE).skip(usize::from(is_spgist)) {
            let (a, b) = (page(a, at), page(b, at));
            if a == b {
                continue;
            }
            let (mut a, mut b) = (masked(a), masked(b));
            let is_own = lsn(&a).max(lsn(&b)) > self.promoted;
            // A map takes the LSN of a heap page, at whatever time it is replayed.
            if is_map || [&a, &b].iter().any(|page| page[..8] == GIST_BUILD_LSN) {
                a[..8].fill(0);
                b[..8].fill(0);
            }
            if a == b {
                continue;
            }
            if is_own {
                self.own += 1;
                continue;
            }
            let byte = a.iter().zip(&b).position(|(x, y)| x != y);
            self.found
                .push(format!("{name} block {} byte {byte:?}", at / PAGE));
        }
    }
}

/// A page; behind the end of a file zeros, for a new page of zeros is in no WAL.
fn page(bytes: &[u8], at: usize) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let there = bytes.get(at..).unwrap_or_default();
    let n = there.len().min(PAGE);
    page[..n].copy_from_slice(&there[..n]);
    page
}

fn half(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

fn masked(mut page: [u8; PAGE]) -> Vec<u8> {
    let (lower, upper, special) = (half(&page, 12), half(&page, 14), half(&page, 16));
    if upper == 0 {
        return page.to_vec();
    }
    // A page whose header was made and that holds nothing: a map that was extended.
    if page[24..].iter().all(|b| *b == 0) {
        return vec![0; PAGE];
    }
    page[8..10].fill(0);
    // Has free lines; is full.
    page[10] &= !3;
    page[20..24].fill(0);
    if lower < 24 || upper < lower || special < upper || special > PAGE {
        return page.to_vec();
    }
    // A deleted page of a GIN index: replay empties it, and the server does not.
    if PAGE - special == 8 && page[special + 6] & 4 != 0 {
        page[10..].fill(0);
    }
    let is_heap = special == PAGE;
    let mut used = vec![!is_heap; PAGE];
    for at in (24..lower.saturating_sub(3)).step_by(4) {
        let item = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, flags, bytes) = (item & 0x7FFF, (item >> 15) & 3, item >> 17);
        let (tuple, end) = (offset as usize, (offset + bytes) as usize);
        if !is_heap {
            // LP_DEAD is a hint there.
            if bytes > 0 {
                let item = item & !(3 << 15) | 1 << 15;
                page[at..at + 4].copy_from_slice(&item.to_le_bytes());
            }
        } else if flags == 1 && bytes >= 23 && end <= PAGE {
            // t_cid, and of t_infomask the hint bits and HEAP_COMBOCID.
            page[tuple + 8..tuple + 12].fill(0);
            page[tuple + 20] &= !0x20;
            page[tuple + 21] &= !0x0F;
            used[tuple..end].fill(true);
        }
    }
    // Between tuples lies what is left of others.
    for (byte, is_used) in page.iter_mut().zip(used).skip(lower) {
        *byte = if is_used { *byte } else { 0 };
    }
    page[lower..upper].fill(0);
    if !is_heap && PAGE - special >= 16 {
        // BTP_HAS_GARBAGE; of a hash index LH_PAGE_HAS_DEAD_TUPLES; of GiST F_HAS_GARBAGE: all hints.
        let flags = special + 12;
        if PAGE - special == 16 {
            page[flags] &= !0x50;
            page[flags] &= !0x80;
            page[special + 8] &= !0x10;
        }
    }
    page.to_vec()
}

/// The main, visibility and init forks below `base`, `global` and the tablespaces, each with all its segments in one.
fn relations(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["base", "global", "pg_tblspc"] {
        walk(&root.join(folder), folder, &mut found);
    }
    found
}

fn walk(folder: &Path, name: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let own = path.file_name().unwrap().to_str().unwrap().to_owned();
        let name = format!("{name}/{own}");
        if path.is_dir() {
            walk(&path, &name, found);
        } else if own.as_bytes()[0].is_ascii_digit() && !own.contains("_fsm") {
            assert!(
                !own.contains('.'),
                "{name}: no relation of these tests has a second segment"
            );
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
}
