//! The catalogs that give relations, schemas, databases and tablespaces their names, as far as their first columns have fixed places.
//!
//! PostgreSQL: src/include/catalog/{pg_class,pg_namespace,pg_database,pg_tablespace}.h, src/backend/utils/cache/relmapper.c, 13–19.

use super::cursor::{self, Cursor};
use super::record::Record;
use super::rmgr;
use super::version::Major;

/// Oids below this one belong to the system; src/include/access/transam.h, FirstNormalObjectId.
pub const FIRST_NORMAL_OID: u32 = 16384;
/// Bytes of a `name`.
const NAME: usize = 64;
/// `datconnlimit` of a database that is being dropped.
const INVALID_DATABASE: i32 = -2;
/// src/backend/utils/cache/relmapper.c, RELMAPPER_FILEMAGIC.
const MAP_MAGIC: i32 = 0x0059_2717;

/// A catalog whose rows have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Catalog {
    /// `pg_class`: relations, one in each database.
    Class,
    /// `pg_namespace`: schemas, one in each database.
    Namespace,
    /// `pg_database`, shared.
    Database,
    /// `pg_tablespace`, shared.
    Tablespace,
}

impl Catalog {
    /// Every one.
    pub const ALL: [Catalog; 4] = [
        Catalog::Class,
        Catalog::Namespace,
        Catalog::Database,
        Catalog::Tablespace,
    ];

    /// Returns its oid, which its file has as number until something rewrites it.
    pub fn oid(self) -> u32 {
        match self {
            Catalog::Class => 1259,
            Catalog::Namespace => 2615,
            Catalog::Database => 1262,
            Catalog::Tablespace => 1213,
        }
    }

    /// Whether all databases share it.
    pub fn is_shared(self) -> bool {
        matches!(self, Catalog::Database | Catalog::Tablespace)
    }
}

/// A row of `pg_class`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    /// Oid of the relation.
    pub oid: u32,
    pub name: String,
    /// Oid of its schema.
    pub namespace: u32,
    /// Number of its file; 0 where it has none, or the map of the catalogs has it.
    pub file: u32,
    /// Oid of its tablespace; 0 = that of the database.
    pub tablespace: u32,
    /// `relkind`.
    pub kind: u8,
    /// `relpersistence`.
    pub persistence: u8,
}

impl ClassRow {
    /// Reads the columns of a row.
    pub fn read(columns: &[u8], major: Major) -> Option<ClassRow> {
        let at = if major >= Major::V18 { 118 } else { 114 };
        let row = ClassRow {
            oid: cursor::u32_at(columns, 0)?,
            name: name_at(columns, 4)?,
            namespace: cursor::u32_at(columns, 68)?,
            file: cursor::u32_at(columns, 88)?,
            tablespace: cursor::u32_at(columns, 92)?,
            persistence: cursor::u8_at(columns, at)?,
            kind: cursor::u8_at(columns, at + 1)?,
        };
        // Anything else is a row of another relation, or of a major with other columns.
        let is_known = row.kind.is_ascii_alphabetic() && b"put".contains(&row.persistence);
        (is_known && row.oid > 0).then_some(row)
    }

    /// Returns the oid of the relation that is written anew, where the name is that of the transient one which takes the rows.
    ///
    /// PostgreSQL: src/backend/commands/cluster.c (make_new_heap), in 19 repack.c.
    pub fn written_anew(&self) -> Option<u32> {
        self.name.strip_prefix("pg_temp_")?.parse().ok()
    }
}

/// Reads oid and name of a row of one of the other catalogs.
pub fn named(columns: &[u8]) -> Option<(u32, String)> {
    let oid = cursor::u32_at(columns, 0).filter(|oid| *oid > 0)?;
    Some((oid, name_at(columns, 4)?))
}

/// Whether a row of `pg_database` says that its database is being dropped.
pub fn is_invalid_database(columns: &[u8], major: Major) -> bool {
    let at = if major >= Major::V15 { 80 } else { 208 };
    cursor::i32_at(columns, at) == Some(INVALID_DATABASE)
}

/// Reads a `name`, whatever its encoding: bytes that are no UTF-8 are replaced.
fn name_at(columns: &[u8], at: usize) -> Option<String> {
    let field = columns.get(at..at + NAME)?;
    let name = field.split(|b| *b == 0).next().unwrap_or_default();
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// The map of the catalogs' files of a database, as a record writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMap {
    /// Oid of the database; 0 for the shared catalogs.
    pub database: u32,
    /// Oid and file number of each catalog.
    pub files: Vec<(u32, u32)>,
}

impl FileMap {
    /// Reads the map that a record writes; `None` for every other record.
    pub fn read(record: &Record<'_>, main: &[u8]) -> Option<FileMap> {
        if record.rmid != rmgr::RELMAP {
            return None;
        }
        let mut c = Cursor::new(main);
        let (database, _tablespace) = (c.u32()?, c.u32()?);
        let mut c = Cursor::new(c.counted(1)?);
        let is_map = c.i32()? == MAP_MAGIC;
        let pairs = c.counted(8).filter(|_| is_map)?;
        let pair = |p: &[u8]| Some((cursor::u32_at(p, 0)?, cursor::u32_at(p, 4)?));
        Some(FileMap {
            database,
            files: pairs.chunks_exact(8).filter_map(pair).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft;
    use crate::pg::lsn::Lsn;
    use crate::pg::record::DEFAULT_BLOCK_SIZE;
    use proptest::prelude::*;

    fn map(values: &[i32]) -> Option<FileMap> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bytes = craft::header_and(rmgr::RELMAP, 0, 9, Lsn(0), &craft::main_data(&data));
        let record =
            Record::parse(Major::V16, DEFAULT_BLOCK_SIZE, Lsn(8), Lsn(16), &bytes).unwrap();
        FileMap::read(&record, record.body().unwrap().main_data)
    }

    #[test]
    fn a_map_is_read_and_a_false_one_is_not() {
        let read = map(&[5, 1663, 24, MAP_MAGIC, 2, 1259, 16500, 1249, 1249]).unwrap();
        assert_eq!(
            (read.database, read.files),
            (5, vec![(1259, 16500), (1249, 1249)])
        );
        assert_eq!(map(&[5, 1663, 24, 1, 2, 1259, 16500, 1249, 1249]), None);
        assert_eq!(map(&[5, 1663, 8, MAP_MAGIC, 2]), None);
        assert_eq!(map(&[5, 1663, -1, MAP_MAGIC, 2]), None);
    }

    proptest! {
        #[test]
        fn any_columns_are_read_or_refused(columns in proptest::collection::vec(any::<u8>(), 0..220)) {
            let _ = (ClassRow::read(&columns, Major::V18), named(&columns), is_invalid_database(&columns, Major::V13));
        }
    }
}
