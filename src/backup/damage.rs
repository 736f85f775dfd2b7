//! Finds the damaged pages of a backup whose server reported checksum failures.
//!
//! The server names at most five pages of a file; its verdict decides. This reads the stored frames of the files it named (of all
//! relations, when its warnings cannot be understood) and applies the server's own rule: pages that carry an LSN at or above the
//! start LSN may be torn, replay writes them anew.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, verify_page_checksum (13–15: sendFile).

use std::collections::HashSet;

use super::producer::LISTED_PAGES;
use crate::error::Result;
use crate::pg::datapage::{self, DEFAULT_PAGE_SIZE, PageHeader};
use crate::pg::lsn::Lsn;
use crate::repo::root::BackupRoot;
use crate::repo::root::cluster::DamagedPage;
use crate::repo::scope::Scope;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::reader::Snapshot;
use crate::store::Store;

/// The wire keeps no more warnings than this.
const WARNINGS_KEPT: usize = 10_000;

/// Damaged pages in file order, at most 10 000, and how many there are in all.
pub fn locate(
    store: &dyn Store,
    scope: &Scope,
    root: &BackupRoot,
    warnings: &[String],
) -> Result<(Vec<DamagedPage>, u64)> {
    let snapshot = Snapshot::open(store, scope, root)?;
    let named = named_files(&snapshot, warnings)?;
    let mut found: Vec<(FileKey, u64, Lsn)> = Vec::new();
    let mut count = 0;
    for index in 0..root.map.packs.len() {
        let pack = snapshot.pack(index)?;
        for number in 0..pack.frame_count() {
            let frame = pack.frame(number)?;
            for visible in &frame.visible {
                let Some(file) = frame.file(visible) else {
                    continue;
                };
                if named.as_ref().is_some_and(|named| !named.contains(file)) {
                    continue;
                }
                let pages = (frame.bytes(visible), visible.position);
                check_pages(root, file, pages, &mut |block, lsn| {
                    count += 1;
                    if found.len() < LISTED_PAGES {
                        found.push((file.clone(), block, lsn));
                    }
                });
            }
        }
    }
    found.sort();
    let page = |(file, block, lsn): (FileKey, u64, Lsn)| DamagedPage {
        path: String::from_utf8_lossy(&file.path(snapshot.naming())).into_owned(),
        block,
        lsn,
    };
    Ok((found.into_iter().map(page).collect(), count))
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

/// The files that the warnings name; `None` when one of them cannot be understood, or some may have been lost.
fn named_files(snapshot: &Snapshot<'_>, warnings: &[String]) -> Result<Option<HashSet<FileKey>>> {
    let mut files = HashSet::new();
    if warnings.len() >= WARNINGS_KEPT {
        return Ok(None);
    }
    for warning in warnings {
        // The verdict at the end names none: `checksum verification failure during base backup`.
        let Some(path) = warning.split('"').nth(1) else {
            continue;
        };
        let path = path.strip_prefix("./").unwrap_or(path);
        let Ok(file) = FileKey::from_path(path.as_bytes(), snapshot.naming()) else {
            return Ok(None);
        };
        if file.relation().is_none() || snapshot.metadata(&file)?.is_none() {
            return Ok(None);
        }
        files.insert(file);
    }
    Ok((!files.is_empty()).then_some(files))
}
