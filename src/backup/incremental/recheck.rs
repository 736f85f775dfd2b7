//! Doubts a source: reads the heads of the pages that it names, and of some others of the same relations.
//!
//! A page whose own LSN lies in the interval was changed by a record of it. If the source does not name that page, the
//! source has a hole and serves for nothing. The pages to read follow from the date, so that each day doubts others.
//!
//! A page that the source names has the LSN of a record of the interval, or a later one: the checkpoint at the start of
//! the backup wrote it. An older one shows that a write was lost, or that the WAL is another server's. Three kinds of
//! pages tell nothing, and are passed over: pages without content, pages that are all visible, and pages of hash indexes.
//!
//! PostgreSQL: src/include/access/xloginsert.h, REGBUF_NO_CHANGE; src/backend/access/heap/visibilitymap.c,
//! visibilitymap_set.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::archive::datadir::open_at_once;
use crate::error::{Error, Result};
use crate::pg::datapage::{DEFAULT_PAGE_SIZE, PAGE_HEADER_SIZE, PageHeader};
use crate::pg::lsn::Lsn;
use crate::snapshot::filekey::{ClusterNaming, Fork, RelationFile};
use crate::wal::changed::{Changed, ForkName, Segment};

/// One page of so many is read.
const ONE_OF: u64 = 100;
/// So many pages are named in a warning.
const LISTED_PAGES: usize = 5;
/// Flag of a page whose rows everybody sees.
const ALL_VISIBLE: u16 = 4;

/// The parameters of a recheck.
pub struct Recheck<'a> {
    /// The data directory.
    pub root: &'a Path,
    /// How tablespaces name their directories.
    pub naming: ClusterNaming,
    /// Blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Start LSNs of the prior and of the backup.
    pub interval: (Lsn, Lsn),
    /// The start of the first segment whose records the source names; none where pages have no checksums. Without these vacuum marks
    /// pages as all visible by records that leave their LSN as it is.
    pub named_since: Option<Lsn>,
    /// The day.
    pub seed: u64,
}

/// A page that contradicts the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The file, relative to the data directory.
    pub path: String,
    /// Block in the fork.
    pub block: u64,
    /// The page's LSN.
    pub lsn: Lsn,
}

/// The pages that contradict the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Doubts {
    /// A page that was changed, and that the source does not name.
    pub hole: Option<Page>,
    /// Pages that the source names, and that are older on disk: the first ones.
    pub stale: Vec<Page>,
    /// How many there are.
    pub stale_count: u64,
}

impl Recheck<'_> {
    /// Looks for pages that contradict what a source says changed, up to the first hole.
    ///
    /// # Errors
    /// Those of the filesystem, and of `tick`.
    pub fn run(&self, changed: &Changed, tick: &mut dyn FnMut() -> Result<()>) -> Result<Doubts> {
        let mut doubts = Doubts::default();
        for fork in changed.active() {
            for segment in 0.. {
                tick()?;
                let Some(blocks) = self.file(changed, (fork, segment), &mut doubts)? else {
                    break;
                };
                if doubts.hole.is_some() {
                    return Ok(doubts);
                }
                if blocks < u64::from(self.relation_segment_blocks) {
                    break;
                }
            }
        }
        Ok(doubts)
    }

    /// Looks through one file; returns its blocks, and `None` when there is none.
    fn file(
        &self,
        changed: &Changed,
        (fork, segment): (ForkName, u32),
        doubts: &mut Doubts,
    ) -> Result<Option<u64>> {
        let (tablespace, database, relation, number) = fork;
        let name = RelationFile {
            tablespace,
            database,
            relation,
            fork: if number == Fork::Main as u8 {
                Fork::Main
            } else {
                Fork::Init
            },
            segment,
        };
        let path = name.path(&self.naming);
        let place = self.root.join(&path);
        let failed = |e| Error::from_io(format!("read \"{}\"", place.display()), e);
        let file = match open_at_once(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let blocks = file.metadata().map_err(failed)?.len() / DEFAULT_PAGE_SIZE as u64;
        let first_block = u64::from(segment) * u64::from(self.relation_segment_blocks);
        let named = changed.wanted(&Segment {
            fork,
            first_block,
            blocks,
            prior_blocks: blocks,
        });
        let judged = self.named_since.filter(|_| changed.is_exact());
        let limit = named.limit.unwrap_or(blocks);
        let mut runs = named.runs.iter().peekable();
        for block in 0..blocks {
            while runs.next_if(|run| run.end <= block).is_some() {}
            let is_named = runs.peek().is_some_and(|run| run.start <= block);
            let since = judged.filter(|_| is_named && block < limit);
            let is_doubted = !is_named && self.is_drawn(&path, block);
            if since.is_none() && !is_doubted {
                continue;
            }
            // Truncated meanwhile.
            let Some(header) = header(&file, block) else {
                break;
            };
            let page = || Page {
                path: path.clone(),
                block: first_block + block,
                lsn: header.lsn,
            };
            let (from, to) = self.interval;
            if is_doubted && from < header.lsn && header.lsn <= to {
                doubts.hole = Some(page());
                break;
            }
            if since.is_some_and(|since| is_stale(&header, since))
                && !is_of_hash_index(&file, &header, block)
                && !changed.is_late(fork, first_block + block)
            {
                doubts.stale_count += 1;
                if doubts.stale.len() < LISTED_PAGES {
                    doubts.stale.push(page());
                }
            }
        }
        Ok(Some(blocks))
    }

    fn is_drawn(&self, path: &str, block: u64) -> bool {
        let of_file = xxh3_64_with_seed(path.as_bytes(), self.seed);
        xxh3_64_with_seed(&block.to_le_bytes(), of_file).is_multiple_of(ONE_OF)
    }
}

/// Whether a page was last changed before a position, and would tell of a later change.
fn is_stale(header: &PageHeader, since: Lsn) -> bool {
    header.lsn <= since && !header.is_new() && header.flags & ALL_VISIBLE == 0
}

/// Reads the head of a page; `None` where the file ends before it.
fn header(file: &File, block: u64) -> Option<PageHeader> {
    let mut header = [0; PAGE_HEADER_SIZE];
    let read = file.read_exact_at(&mut header, block * DEFAULT_PAGE_SIZE as u64);
    read.ok().and_then(|()| PageHeader::parse(&header))
}

/// Whether a page says that a hash index owns it: records of these name pages that they only lock.
///
/// PostgreSQL: src/include/access/hash.h, HASHO_PAGE_ID.
fn is_of_hash_index(file: &File, header: &PageHeader, block: u64) -> bool {
    let mut id = [0; 2];
    let end = (block + 1) * DEFAULT_PAGE_SIZE as u64;
    let read = file.read_exact_at(&mut id, end - 2);
    usize::from(header.special) + 16 == DEFAULT_PAGE_SIZE
        && read.is_ok()
        && u16::from_le_bytes(id) == 0xFF80
}
