//! The databases of a cluster, from the files of their catalog: oids and names without a server.
//!
//! A base backup holds pages as they were read, before replay. A row may be one that a transaction was about to write or to replace, and no
//! hint bit says how that ended. So each database has the name of its best row, and besides it every name that it may have had.
//!
//! PostgreSQL: src/include/catalog/pg_database.h, src/backend/utils/cache/relmapper.c, src/include/access/htup_details.h,
//! src/include/storage/itemid.h.

use std::collections::BTreeMap;

use super::cursor;
use super::datapage::{self, DEFAULT_PAGE_SIZE};

/// The oid of pg_database.
const PG_DATABASE: u32 = 1262;
/// `RELMAPPER_FILEMAGIC`.
const MAP_MAGIC: u32 = 0x0059_2717;
/// Begin of the mappings; each has two words.
const MAPPINGS: usize = 8;
/// Mappings that fit before and from PostgreSQL 16 on; the checksum follows them.
const MOST_MAPPINGS: [usize; 2] = [62, 64];
/// `FirstNormalObjectId`: initdb gave out the oids below.
const FIRST_NORMAL_OID: u32 = 16_384;

const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMAX_COMMITTED: u16 = 0x0400;
const XMAX_INVALID: u16 = 0x0800;
const XMAX_LOCK_ONLY: u16 = 0x0080;
const NAME_BYTES: usize = 64;

/// A database of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The name of its directories.
    pub oid: u32,
    /// Its name, in the encoding of that database.
    pub name: Vec<u8>,
    /// Names that it had before or was about to get.
    pub other_names: Vec<Vec<u8>>,
    /// `datistemplate`: DROP DATABASE refuses it.
    pub is_template: bool,
}

impl Database {
    /// Whether initdb made it, or people connect to it to drop others.
    pub fn is_of_system(&self) -> bool {
        self.oid < FIRST_NORMAL_OID || self.is_template || self.name == b"postgres"
    }

    /// Whether it has, or may have had, this name.
    pub fn may_have_name(&self, name: &[u8]) -> bool {
        self.name == name || self.other_names.iter().any(|other| other == name)
    }
}

/// How far a row stands, better ones last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Another row, or none, has taken its place.
    Replaced,
    /// A transaction was about to replace it, and its end is not known.
    Doubtful,
    /// No transaction has replaced it.
    Current,
}

/// A row of pg_database.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    oid: u32,
    name: Vec<u8>,
    is_template: bool,
    standing: Standing,
}

/// Returns the file number of pg_database by a `global/pg_filenode.map`; `None` when the map fails its check.
pub fn file_of_catalog(map: &[u8]) -> Option<u32> {
    file_of(map, PG_DATABASE)
}

/// Returns the file number of a shared catalog, likewise.
pub(super) fn file_of(map: &[u8], catalog: u32) -> Option<u32> {
    let words = |at: usize| cursor::u32_at(map, at);
    let count = usize::try_from(words(4)?).ok()?;
    let checks_out = |most: usize| {
        let end = MAPPINGS + most * 8;
        let covered = map.get(..end);
        count <= most && covered.is_some_and(|c| words(end) == Some(crc32c::crc32c(c)))
    };
    if words(0)? != MAP_MAGIC || !MOST_MAPPINGS.into_iter().any(checks_out) {
        return None;
    }
    let mut mappings = (0..count).map(|n| MAPPINGS + n * 8);
    let at = mappings.find(|at| words(*at) == Some(catalog))?;
    words(at + 4)
}

/// Returns the databases by the pages of pg_database, ascending by oid.
pub fn of_pages(file: &[u8], major: u32) -> Vec<Database> {
    let mut found: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
    let pages = file.chunks_exact(DEFAULT_PAGE_SIZE);
    for row in pages.flat_map(|page| rows(page, major)) {
        found.entry(row.oid).or_default().push(row);
    }
    found.into_values().filter_map(database).collect()
}

/// Joins the rows of one database; `None` when all that is left of it was replaced: it was dropped.
fn database(rows: Vec<Row>) -> Option<Database> {
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| row.standing > Standing::Replaced)
        .collect();
    // The last one of equals counts: a row that replaces another one mostly stands behind it.
    let best = rows.iter().max_by_key(|row| row.standing)?.clone();
    let mut other_names: Vec<_> = rows.into_iter().map(|row| row.name).collect();
    other_names.retain(|name| *name != best.name);
    other_names.sort_unstable();
    other_names.dedup();
    Some(Database {
        oid: best.oid,
        name: best.name,
        other_names,
        is_template: best.is_template,
    })
}

/// Reads the rows of a page that can be, or have been, visible.
fn rows(page: &[u8], major: u32) -> Vec<Row> {
    let tuples = datapage::items(page);
    tuples.filter_map(|(_, tuple)| row(tuple, major)).collect()
}

/// Reads a tuple; `None` when it was never visible, or is none.
fn row(tuple: &[u8], major: u32) -> Option<Row> {
    let xmax = cursor::u32_at(tuple, 4)?;
    let mask = cursor::u16_at(tuple, 20)?;
    let has = |bit: u16| mask & bit != 0;
    if has(XMIN_INVALID) && !has(XMIN_COMMITTED) {
        return None;
    }
    let standing = match xmax == 0 || has(XMAX_INVALID) || has(XMAX_LOCK_ONLY) {
        true => Standing::Current,
        false if has(XMAX_COMMITTED) => Standing::Replaced,
        false => Standing::Doubtful,
    };
    let data = tuple.get(usize::from(*tuple.get(22)?)..)?;
    let oid = cursor::u32_at(data, 0)?;
    let name = data.get(4..4 + NAME_BYTES)?;
    let name = name.split(|&byte| byte == 0).next()?;
    // Behind oid, name, owner and encoding: up to 14 two names of locales, from 15 on the provider.
    let template_at = if major >= 15 { 77 } else { 204 };
    let is_template = *data.get(template_at)? != 0;
    (oid != 0 && !name.is_empty()).then(|| Row {
        oid,
        name: name.to_vec(),
        is_template,
        standing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(oid: u32, name: &str, (xmax, mask): (u32, u16), is_template: bool) -> Vec<u8> {
        let mut tuple = vec![0; 24 + 220];
        tuple[4..8].copy_from_slice(&xmax.to_le_bytes());
        tuple[20..22].copy_from_slice(&mask.to_le_bytes());
        tuple[22] = 24;
        tuple[24..28].copy_from_slice(&oid.to_le_bytes());
        tuple[28..28 + name.len()].copy_from_slice(name.as_bytes());
        tuple[24 + 77] = u8::from(is_template);
        tuple
    }

    fn page(tuples: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; DEFAULT_PAGE_SIZE];
        let mut upper = DEFAULT_PAGE_SIZE;
        for (n, tuple) in tuples.iter().enumerate() {
            upper -= tuple.len();
            page[upper..upper + tuple.len()].copy_from_slice(tuple);
            let pointer = u32::try_from(upper | 1 << 15 | tuple.len() << 17).unwrap();
            page[24 + n * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = u16::try_from(24 + tuples.len() * 4).unwrap();
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page[14..16].copy_from_slice(&u16::try_from(upper).unwrap().to_le_bytes());
        page
    }

    #[test]
    fn a_database_has_the_name_of_the_row_that_stands_and_those_that_are_in_doubt() {
        let (live, replaced, doubtful) = ((0, 0x100), (9, 0x500), (9, 0x100));
        let file = [
            page(&[
                tuple(1, "template1", live, true),
                tuple(20_000, "old", replaced, false),
                tuple(20_000, "renamed", doubtful, false),
                tuple(20_000, "new", (0, 0), false),
            ]),
            vec![0; DEFAULT_PAGE_SIZE],
            page(&[
                tuple(20_001, "dropped", replaced, false),
                tuple(20_002, "never", (0, XMIN_INVALID), false),
                tuple(20_003, "locked", (9, 0x180), false),
                tuple(20_004, "about to be dropped", doubtful, false),
                // Frozen: both bits.
                tuple(20_005, "frozen", (0, 0x300), false),
            ]),
        ]
        .concat();
        let found = of_pages(&file, 15);
        let shown: Vec<_> = found
            .iter()
            .map(|d| (d.oid, String::from_utf8_lossy(&d.name).into_owned()))
            .collect();
        let expected = [
            (1, "template1"),
            (20_000, "new"),
            (20_003, "locked"),
            (20_004, "about to be dropped"),
            (20_005, "frozen"),
        ];
        assert_eq!(shown, expected.map(|(oid, name)| (oid, name.to_owned())));
        assert_eq!(found[1].other_names, [b"renamed"]);
        assert!(found[1].may_have_name(b"renamed") && !found[1].may_have_name(b"old"));
        assert!(found[0].is_of_system() && !found[1].is_of_system());
        assert!(found[0].is_template);
    }

    #[test]
    fn pages_that_are_none_hold_no_database() {
        let mut broken = page(&[tuple(20_000, "a", (0, 0x100), false)]);
        broken[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        for page in [
            &broken[..],
            &[0xff; DEFAULT_PAGE_SIZE][..],
            &[],
            &broken[..100],
        ] {
            assert_eq!(of_pages(page, 17), []);
        }
    }

    #[test]
    fn a_map_tells_the_file_of_the_catalog_only_when_its_checksum_is_right() {
        for most in MOST_MAPPINGS {
            let mut map = vec![0; MAPPINGS + most * 8];
            map[..4].copy_from_slice(&MAP_MAGIC.to_le_bytes());
            map[4..8].copy_from_slice(&2_u32.to_le_bytes());
            for (at, number) in [(8, 1260), (12, 1260), (16, PG_DATABASE), (20, 17_000_u32)] {
                map[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            let sum = crc32c::crc32c(&map);
            map.extend_from_slice(&sum.to_le_bytes());
            assert_eq!(file_of_catalog(&map), Some(17_000));
            assert_eq!(file_of_catalog(&map[..100]), None);
            map[20] ^= 1;
            assert_eq!(file_of_catalog(&map), None);
        }
    }
}
