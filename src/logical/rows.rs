//! The rows of each table, counted in the snapshot of the dump.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::member::LargeObjects;
use super::source::size_of;
use super::tool::Tick;
use crate::err;
use crate::error::{Error, Result};

/// A file of counts is not larger: a hundred bytes for each table.
const LIMIT_BYTES: u64 = 256 << 20;
/// The end of a file with a table's data, as `COPY` and `pg_dump` write it.
const END: &[u8] = b"\\.\n\n\n";
const BUFFER_BYTES: usize = 256 << 10;

/// A table and its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// The table's OID, by which the dump's contents name it.
    pub oid: u32,
    pub schema: String,
    /// Its name.
    pub table: String,
    pub rows: u64,
}

/// Returns the file's bytes.
///
/// # Errors
/// `Internal`.
pub fn write(tables: &[TableRows]) -> Result<Vec<u8>> {
    serde_json::to_vec(tables).map_err(|e| err!(Internal, "write the tables' rows").source(e))
}

/// Reads the file.
///
/// # Errors
/// `Damaged`; errors of the system.
pub fn read(path: &Path) -> Result<Vec<TableRows>> {
    let doing = || format!("read \"{}\"", path.display());
    let file = std::fs::File::open(path).map_err(|e| Error::from_io(doing(), e))?;
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::from_io(doing(), e))?;
    serde_json::from_slice(&bytes).map_err(|e| err!(Damaged, "{}", doing()).source(e))
}

/// Counts the rows of a table's data in a dump; none where the file does not end as `COPY` ends it.
///
/// # Errors
/// Errors of the system; those of `tick`.
pub fn in_file(path: &Path, tick: Tick<'_>) -> Result<Option<u64>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut lines = 0_u64;
    let mut last: Vec<u8> = Vec::new();
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        let read = buffer.get(..length).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        tick()?;
        lines += read.iter().filter(|b| **b == b'\n').count() as u64;
        last.extend_from_slice(
            read.get(length.saturating_sub(END.len() + 1)..)
                .unwrap_or_default(),
        );
        let surplus = last.len().saturating_sub(END.len() + 1);
        last.drain(..surplus);
    }
    // A line feed, or the beginning of the file, stands before the end.
    let is_whole = last.ends_with(END) && (last.len() == END.len() || last.first() == Some(&b'\n'));
    Ok(is_whole.then(|| lines.saturating_sub(3)))
}

/// Measures the large objects that a dump lists in `blobs.toc`, since PostgreSQL 17 in several such files. A file that is missing counts nothing.
///
/// # Errors
/// Errors of the system.
pub fn large_objects(directory: &Path) -> Result<LargeObjects> {
    let failed = |e| Error::from_io(format!("read \"{}\"", directory.display()), e);
    let mut all = LargeObjects { count: 0, bytes: 0 };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with("blobs") && name.ends_with(".toc")) {
            continue;
        }
        let list = std::fs::read(directory.join(&*name)).map_err(failed)?;
        for line in String::from_utf8_lossy(&list).lines() {
            // `16400 blob_16400.dat`: PostgreSQL, src/bin/pg_dump/pg_backup_directory.c, _EndLO.
            let file = line.split_once(' ').map(|(_, file)| directory.join(file));
            let size = file.filter(|f| f.is_file()).map(|f| size_of(&f));
            all.count += u64::from(size.is_some());
            all.bytes += size.transpose()?.unwrap_or(0);
        }
    }
    Ok(all)
}

/// Finds the data files in the contents of an archive, as `pg_restore --list` prints them: the number of the file by the table's OID.
pub fn data_files(list: &str) -> BTreeMap<u32, String> {
    // `3345; 0 16389 TABLE DATA public t owner`: PostgreSQL, src/bin/pg_dump/pg_backup_archiver.c, PrintTOCSummary.
    let entry = |line: &str| {
        let (id, rest) = line.split_once("; ")?;
        let mut words = rest.splitn(3, ' ');
        let (_, oid, what) = (words.next()?, words.next()?, words.next()?);
        what.starts_with("TABLE DATA ")
            .then_some((oid.parse().ok()?, format!("{}.dat", id.trim())))
    };
    list.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.dat");
        let count = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            in_file(&path, &mut || Ok(())).unwrap()
        };
        assert_eq!(count(b"\\.\n\n\n"), Some(0));
        assert_eq!(count(b"1\ta\n2\tb\\nc\n\\.\n\n\n"), Some(2));
        assert_eq!(count(b"1\ta\n2\tb\n"), None);
        assert_eq!(count(b"1\ta\n2\tb\\.\n\n\n"), None);
        assert_eq!(count(b""), None);
        let many = [b"abc\n".repeat(200_000), END.to_vec()].concat();
        assert_eq!(count(&many), Some(200_000));
        assert_eq!(count(&many[..many.len() - 1]), None);
    }

    #[test]
    fn data_files_are_found_in_the_contents() {
        let list = ";\n; Archive created at …\n;\n\
            200; 1259 16389 TABLE public t postgres\n\
            3345; 0 16389 TABLE DATA public t postgres\n\
            3346; 0 16400 TABLE DATA odd name t two words\n\
            3350; 0 0 SEQUENCE SET public s postgres\n";
        let found = data_files(list);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&16389], "3345.dat");
        assert_eq!(found[&16400], "3346.dat");
    }
}
