//! Checks the pages of relations while they are read, and reads torn ones again.
//!
//! The server writes while its files are read, so that a page may come in two halves. Such a page carries an LSN at or above the start of
//! the backup, and replay writes it anew; or a second look shows it whole. PostgreSQL: src/backend/backup/basebackup.c,
//! verify_page_checksum.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::backup::producer::{Damage, LISTED_PAGES};
use crate::error::{Error, Result};
use crate::pg::datapage::{self, DEFAULT_PAGE_SIZE, PageHeader, PageState};
use crate::pg::lsn::Lsn;
use crate::repo::root::cluster::DamagedPage;
use crate::snapshot::filekey::{ClusterNaming, FileKey};

/// Pauses before a page is read again; a write takes less.
const PAUSES_MS: [u64; 5] = [0, 1, 10, 50, 100];
/// So many pages of a reader stay bad through all pauses; later ones are read again only once.
const PATIENT_PAGES: u64 = 20;

/// A page, as a root names it.
type Page = (FileKey, u64, Lsn);

/// Pages that are not as they should be.
#[derive(Debug, Default)]
pub struct Findings {
    damaged: Vec<Page>,
    damaged_count: u64,
    /// Pages that fail, and say that they were changed during the backup. Whether they can have been is known at its stop.
    torn: Vec<Page>,
}

impl Findings {
    /// Adds those of another reader.
    pub fn add(&mut self, other: Findings) {
        self.damaged_count += other.damaged_count;
        self.damaged.extend(other.damaged);
        self.torn.extend(other.torn);
    }

    /// Returns the damaged pages of a backup that stopped at `stop_lsn`: no page on disk was changed after it.
    pub fn judge(mut self, stop_lsn: Lsn, naming: &ClusterNaming) -> Damage {
        self.torn.retain(|(_, _, lsn)| *lsn > stop_lsn);
        self.damaged_count += self.torn.len() as u64;
        self.damaged.append(&mut self.torn);
        self.damaged.sort_unstable();
        self.damaged.truncate(LISTED_PAGES);
        let page = |(file, block, lsn): Page| DamagedPage {
            path: String::from_utf8_lossy(&file.path(naming)).into_owned(),
            block,
            lsn,
        };
        Damage {
            pages: self.damaged.into_iter().map(page).collect(),
            count: self.damaged_count,
        }
    }
}

/// A relation's file whose pages are checked.
pub struct Checked<'c> {
    pub file: &'c File,
    pub key: &'c FileKey,
    /// Its first block, counted over all files of the fork.
    pub first_block: u64,
    /// Start LSN of the backup.
    pub start_lsn: Lsn,
}

impl Checked<'_> {
    /// Checks the whole pages of `bytes`, which were read from `position`, and puts what was read again in their place. Returns how many
    /// bytes count: fewer, where the file has been truncated.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn check(&self, bytes: &mut [u8], position: u64, found: &mut Findings) -> Result<usize> {
        let length = bytes.len();
        let first = self.first_block + position / DEFAULT_PAGE_SIZE as u64;
        let (pages, _) = bytes.as_chunks_mut::<DEFAULT_PAGE_SIZE>();
        for ((index, page), block) in pages.iter_mut().enumerate().zip(first..) {
            let at = index * DEFAULT_PAGE_SIZE;
            let number = u32::try_from(block).unwrap_or(u32::MAX);
            match self.settle(page, number, position + at as u64, found)? {
                None => return Ok(at),
                Some(PageState::Newer) if !has_its_checksum(page, number) => {
                    if found.torn.len() < LISTED_PAGES {
                        found.torn.push((self.key.clone(), block, lsn_of(page)));
                    }
                }
                Some(state) if state.is_damaged() => {
                    found.damaged_count += 1;
                    if found.damaged.len() < LISTED_PAGES {
                        found.damaged.push((self.key.clone(), block, lsn_of(page)));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(length)
    }

    /// Judges a page, and reads it again as long as it is damaged. `None` when the file ends before it by now.
    fn settle(
        &self,
        page: &mut [u8; DEFAULT_PAGE_SIZE],
        block: u32,
        position: u64,
        found: &Findings,
    ) -> Result<Option<PageState>> {
        let mut state = datapage::check(page, block, Some(self.start_lsn));
        for pause in PAUSES_MS {
            let is_hopeless = pause > 0 && found.damaged_count >= PATIENT_PAGES;
            if !state.is_damaged() || is_hopeless {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            let mut again = [0; DEFAULT_PAGE_SIZE];
            match self.file.read_exact_at(&mut again, position) {
                Ok(()) => *page = again,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(Error::from_io(format!("read {:?} again", self.key), e)),
            }
            state = datapage::check(page, block, Some(self.start_lsn));
        }
        Ok(Some(state))
    }
}

fn lsn_of(page: &[u8]) -> Lsn {
    PageHeader::parse(page).map_or(Lsn::INVALID, |header| header.lsn)
}

fn has_its_checksum(page: &[u8], block: u32) -> bool {
    let stored = PageHeader::parse(page).map(|header| header.checksum);
    stored == Some(datapage::checksum(page, block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NAMING: ClusterNaming = ClusterNaming {
        major: 17,
        catalog_version: 202_406_281,
    };
    const START: Lsn = Lsn(1000);

    fn page(lsn: u8, block: u32) -> Vec<u8> {
        let mut page = vec![7; DEFAULT_PAGE_SIZE];
        page[..8].copy_from_slice(&[0, 0, 0, 0, lsn, 0, 0, 0]);
        let sum = datapage::checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn check(read: &[Vec<u8>], disk: &[Vec<u8>]) -> (usize, Vec<u8>, Findings) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&disk.concat()).unwrap();
        let key = FileKey::from_path(b"base/5/77.1", &NAMING).unwrap();
        let checked = Checked {
            file: &file,
            key: &key,
            first_block: 131_072,
            start_lsn: START,
        };
        let (mut bytes, mut found) = (read.concat(), Findings::default());
        let length = checked.check(&mut bytes, 0, &mut found).unwrap();
        (length, bytes, found)
    }

    #[test]
    fn a_torn_page_is_read_again_and_a_bad_one_is_found() {
        let good: Vec<_> = (0..3).map(|i| page(9, 131_072 + i)).collect();
        let mut torn = good.clone();
        torn[1][5000] ^= 1;
        let (length, bytes, found) = check(&torn, &good);
        assert_eq!((length, bytes), (3 * DEFAULT_PAGE_SIZE, good.concat()));
        assert_eq!(found.damaged_count, 0);

        let (length, bytes, found) = check(&torn, &torn);
        assert_eq!((length, bytes), (3 * DEFAULT_PAGE_SIZE, torn.concat()));
        let damage = found.judge(Lsn(5000), &NAMING);
        assert_eq!(damage.count, 1);
        assert_eq!(damage.pages[0].path, "base/5/77.1");
        assert_eq!(
            (damage.pages[0].block, damage.pages[0].lsn),
            (131_073, Lsn(9))
        );

        let (length, _, found) = check(&torn, &good[..1]);
        assert_eq!(
            (length, found.damaged_count),
            (DEFAULT_PAGE_SIZE, 0),
            "truncated meanwhile"
        );
    }

    #[test]
    fn a_page_that_was_changed_meanwhile_may_be_torn_unless_its_lsn_is_of_the_future() {
        let mut changed = page(0, 131_072);
        changed[4..8].copy_from_slice(&2000_u32.to_le_bytes());
        let torn = [changed];
        let (_, _, found) = check(&torn, &torn);
        assert_eq!(found.torn.len(), 1);
        assert_eq!(found.judge(Lsn(2000), &NAMING).count, 0);
        let (_, _, found) = check(&torn, &torn);
        assert_eq!(found.judge(Lsn(1999), &NAMING).count, 1);
    }
}
