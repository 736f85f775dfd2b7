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
use crate::repo::root::cluster::DamagedPage;
use crate::repo::scope::Scope;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
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
    for file in named_files(*snapshot.naming(), warnings) {
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

/// Pure: the relations that the warnings name, in whatever language. The verdict at the end names none.
fn named_files(naming: Naming, warnings: &[String]) -> BTreeSet<FileKey> {
    let named = warnings.iter().filter_map(|text| path_in(text));
    named
        .filter_map(|path| FileKey::from_path(path.as_bytes(), naming).ok())
        .filter(|file| file.relation().is_some())
        .collect()
}

/// Pure: the path to a relation in a text.
fn path_in(text: &str) -> Option<&str> {
    let begins = FOLDERS.iter().filter_map(|folder| text.find(folder));
    let rest = text.get(begins.min()?..)?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.');
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    rest.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::filekey::ClusterNaming;

    #[test]
    fn c04_files_are_named_in_whatever_language() {
        let naming = Naming::Cluster(ClusterNaming {
            major: 17,
            catalog_version: 202_406_281,
        });
        let warnings = [
            "checksum verification failed in file \"./base/5/16384\", block 3: calculated 1 but expected 2",
            "Prüfsummenprüfung fehlgeschlagen in Datei »./base/5/16384«, Block 5: berechnet 1, aber erwartet 2",
            "échec de la vérification dans le fichier « ./pg_tblspc/16400/PG_17_202406281/5/16500.1 », bloc 4",
            "checksum verification failed in file \"./global/1262\", block 0: calculated 1 but expected 2",
            "file \"./base/5/16384\" has a total of 7 checksum verification failures",
            "9 total checksum verification failures",
        ];
        let warnings = warnings.map(str::to_owned);
        let named = named_files(naming, &warnings).into_iter();
        let paths = named.map(|file| String::from_utf8(file.path(naming)).unwrap());
        assert_eq!(
            paths.collect::<BTreeSet<_>>(),
            BTreeSet::from(
                [
                    "base/5/16384",
                    "global/1262",
                    "pg_tblspc/16400/PG_17_202406281/5/16500.1"
                ]
                .map(str::to_owned)
            )
        );
    }
}
