//! Finds the damaged pages of a backup whose server reported checksum failures.
//!
//! The server names at most five pages of a file; its verdict decides. This reads the stored pages of the files that it named, and applies the
//! server's own rule: pages that carry an LSN at or above the start LSN may be torn, replay writes them anew.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, verify_page_checksum (13–15: sendFile).

use std::collections::BTreeSet;

use super::producer::LISTED_PAGES;
use crate::error::Result;
use crate::pg::datapage::{self, DEFAULT_PAGE_SIZE, PageHeader};
use crate::pg::lsn::Lsn;
use crate::repo::root::BackupRoot;
use crate::repo::root::cluster::{ClusterContent, CutPage, DamagedPage};
use crate::repo::scope::Scope;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{ClusterNaming, FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;
use crate::store::Store;
use crate::ticking::ticking;

/// The first folders of a path to a relation.
const FOLDERS: [&str; 3] = ["base/", "global/", "pg_tblspc/"];

/// Damaged pages in file order, at most 10 000, and how many there are in all, in the files that the warnings name. `tick` is called all the while.
///
/// # Errors
/// `Key` where this host cannot read its backups back; `Damaged`; those of the store and of `tick`.
pub fn locate(
    (store, scope): (&dyn Store, &Scope),
    root: &BackupRoot,
    warnings: &[String],
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<DamagedPage>, u64)> {
    let snapshot = ticking(tick, || Snapshot::open(store, scope, root))?;
    let mut content = ContentReader::new(&snapshot);
    let mut found = Vec::new();
    let mut count = 0;
    for file in named_files(&root.content, warnings) {
        let length = snapshot.metadata(&file)?;
        let length = length.as_ref().and_then(Metadata::file_length);
        let path = String::from_utf8_lossy(&file.path(*snapshot.naming())).into_owned();
        let mut position = 0;
        content.read(&file, length.unwrap_or(0), &mut |bytes| {
            tick()?;
            check_pages(root, &file, (bytes, position), &mut |block, lsn| {
                count += 1;
                if found.len() < LISTED_PAGES {
                    let path = path.clone();
                    found.push(DamagedPage { path, block, lsn });
                }
            });
            position += bytes.len() as u64;
            Ok(())
        })?;
    }
    Ok((found, count))
}

/// Hands the block number and LSN of every damaged page to `report`.
fn check_pages(
    root: &BackupRoot,
    file: &FileKey,
    (bytes, position): (&[u8], u64),
    report: &mut dyn FnMut(u64, Lsn),
) {
    let Some(relation) = file.relation() else {
        return;
    };
    let first = u64::from(relation.segment) * u64::from(root.content.relseg_blocks)
        + position / DEFAULT_PAGE_SIZE as u64;
    let (pages, _) = bytes.as_chunks::<DEFAULT_PAGE_SIZE>();
    for (block, page) in (first..).zip(pages) {
        let number = u32::try_from(block).unwrap_or(u32::MAX);
        if datapage::check(page, number, Some(root.content.start_lsn)).is_damaged() {
            let lsn = PageHeader::parse(page).map_or(Lsn::INVALID, |header| header.lsn);
            report(block, lsn);
        }
    }
}

/// Pure: the pages of which the server read a part, by its warnings, of a backup for which it reported no failure.
///
/// PostgreSQL: basebackup.c, sendFile: "could not verify checksum in file \"%s\", block %u: read buffer size %d and page size %d differ".
pub fn cut_pages(content: &ClusterContent, warnings: &[String]) -> Vec<CutPage> {
    let naming = Naming::Cluster(ClusterNaming::from(content));
    let cut = warnings.iter().filter_map(|text| {
        let (path, behind) = path_in(content, text)?;
        let mut numbers = behind.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.find_map(|digits| digits.parse::<u64>().ok());
        let (first, read, page) = (number()?, number()?, number()?);
        let file = FileKey::from_path(path.as_bytes(), naming).ok()?;
        let segment = u64::from(file.relation()?.segment);
        let is_it = page == DEFAULT_PAGE_SIZE as u64 && read % page != 0 && number().is_none();
        is_it.then(|| CutPage {
            path,
            block: segment * u64::from(content.relseg_blocks) + first + read / page,
        })
    });
    cut.take(LISTED_PAGES).collect()
}

/// Pure: the relations that the warnings name, in whatever language. The verdict at the end names none.
fn named_files(content: &ClusterContent, warnings: &[String]) -> BTreeSet<FileKey> {
    let naming = Naming::Cluster(ClusterNaming::from(content));
    let named = warnings.iter().filter_map(|text| path_in(content, text));
    named
        .filter_map(|(path, _)| FileKey::from_path(path.as_bytes(), naming).ok())
        .filter(|file| file.relation().is_some())
        .collect()
}

/// Pure: the path to a relation in a text, and the text behind it. The server names a file in a tablespace by where its link leads.
fn path_in<'t>(content: &ClusterContent, text: &'t str) -> Option<(String, &'t str)> {
    let version = ClusterNaming::from(content).version_directory();
    let placed = content.tablespaces.iter().filter_map(|tablespace| {
        let place = format!("{}/{version}/", tablespace.location.to_string_lossy());
        let (_, rest) = text.split_once(&place)?;
        Some((place.len(), tablespace.oid, rest))
    });
    // One location may end as another one does.
    let (folder, rest) = match placed.max_by_key(|(length, _, _)| *length) {
        Some((_, oid, rest)) => (format!("pg_tblspc/{oid}/{version}/"), rest),
        None => {
            let begins = FOLDERS.iter().filter_map(|folder| text.find(folder));
            (String::new(), text.get(begins.min()?..)?)
        }
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.');
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    let (path, behind) = rest.split_at_checked(end)?;
    Some((folder + path, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::root::cluster::Tablespace;

    /// The second place ends as the first one does.
    fn with_tablespaces() -> ClusterContent {
        let tablespace = |oid, location: &str| Tablespace {
            oid,
            location: location.into(),
        };
        ClusterContent {
            tablespaces: vec![
                tablespace(16_402, "/my ts"),
                tablespace(16_401, "/mnt/base/my ts"),
            ],
            ..ClusterContent::sample()
        }
    }

    #[test]
    fn c04_files_are_named_in_whatever_language() {
        let content = with_tablespaces();
        let warnings = [
            "checksum verification failed in file \"./base/5/16384\", block 3: calculated 1 but expected 2",
            "Prüfsummenprüfung fehlgeschlagen in Datei »./base/5/16384«, Block 5: berechnet 1, aber erwartet 2",
            "échec de la vérification dans le fichier « ./pg_tblspc/16400/PG_17_202406281/5/16500.1 », bloc 4",
            "checksum verification failed in file \"./global/1262\", block 0: calculated 1 but expected 2",
            "checksum verification failed in file \"/mnt/base/my ts/PG_17_202406281/5/16501\", block 0: calculated 1 but expected 2",
            "Prüfsummenprüfung fehlgeschlagen in Datei »/my ts/PG_17_202406281/5/16502.1«, Block 5: berechnet 1, aber erwartet 2",
            "file \"./base/5/16384\" has a total of 7 checksum verification failures",
            "9 total checksum verification failures",
        ];
        let warnings = warnings.map(str::to_owned);
        let naming = Naming::Cluster(ClusterNaming::from(&content));
        let named = named_files(&content, &warnings).into_iter();
        let paths = named.map(|file| String::from_utf8(file.path(naming)).unwrap());
        assert_eq!(
            paths.collect::<BTreeSet<_>>(),
            BTreeSet::from(
                [
                    "base/5/16384",
                    "global/1262",
                    "pg_tblspc/16400/PG_17_202406281/5/16500.1",
                    "pg_tblspc/16401/PG_17_202406281/5/16501",
                    "pg_tblspc/16402/PG_17_202406281/5/16502.1"
                ]
                .map(str::to_owned)
            )
        );
    }

    #[test]
    fn b58_a_page_of_which_the_server_read_a_part_is_named() {
        let content = with_tablespaces();
        let cut = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            let pages = cut_pages(&content, &texts);
            pages
                .into_iter()
                .map(|p| (p.path, p.block))
                .collect::<Vec<_>>()
        };
        let blocks = u64::from(content.relseg_blocks);
        let version = ClusterNaming::from(&content).version_directory();
        assert_eq!(
            cut(&[
                "could not verify checksum in file \"./base/5/16384\", block 8: read buffer size 4096 and page size 8192 differ",
                &format!(
                    "konnte Prüfsumme in Datei »./pg_tblspc/16400/{version}/5/16500.1« nicht überprüfen, Block 4: gelesene Puffergröße 20480 und Seitengröße 8192 sind verschieden"
                ),
                &format!(
                    "could not verify checksum in file \"/mnt/base/my ts/{version}/5/16501\", block 8: read buffer size 4096 and page size 8192 differ"
                ),
            ]),
            [
                ("base/5/16384".to_owned(), 8),
                (
                    format!("pg_tblspc/16400/{version}/5/16500.1"),
                    blocks + 4 + 2
                ),
                (format!("pg_tblspc/16401/{version}/5/16501"), 8),
            ]
        );
        let none = cut(&[
            "checksum verification failed in file \"./base/5/16384\", block 3: calculated 1 but expected 2",
            "checksum verification failed in file \"./base/5/16384\", block 3: calculated 1A but expected 2000",
            "could not verify checksum in file \"./base/5/16384\", block 8: read buffer size 16384 and page size 8192 differ",
            "could not verify checksum in file \"./backup_label\", block 0: read buffer size 12 and page size 8192 differ",
            "file \"./base/5/16384\" has a total of 7 checksum verification failures",
        ]);
        assert!(none.is_empty(), "{none:?}");
    }
}
