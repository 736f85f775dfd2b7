//! Doubts a source: reads some of the pages that it does not name, if others of the same relation changed.
//!
//! A page whose own LSN lies in the interval was changed by a record of it. If the source does not name that page, the
//! source has a hole and serves for nothing. The pages to read follow from the date, so that each day doubts others.

use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::archive::datadir::open_at_once;
use crate::error::{Error, Result};
use crate::pg::datapage::{DEFAULT_PAGE_SIZE, PageHeader};
use crate::pg::lsn::Lsn;
use crate::snapshot::filekey::{ClusterNaming, Fork, RelationFile};
use crate::wal::changed::{Changed, ForkName, Segment};

/// One page of so many is read.
const ONE_OF: u64 = 100;

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
    /// The day.
    pub seed: u64,
}

/// A page that was changed, and that the source did not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The file, relative to the data directory.
    pub path: String,
    /// Block in the fork.
    pub block: u64,
    /// The page's LSN.
    pub lsn: Lsn,
}

impl Recheck<'_> {
    /// Looks for a hole in what a source says changed.
    ///
    /// # Errors
    /// Those of the filesystem, and of `tick`.
    pub fn run(
        &self,
        changed: &Changed,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Hole>> {
        for fork in changed.active() {
            for segment in 0.. {
                tick()?;
                let Some(found) = self.file(changed, fork, segment)? else {
                    break;
                };
                if let Some(hole) = found.hole {
                    return Ok(Some(hole));
                }
                if found.blocks < u64::from(self.relation_segment_blocks) {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Looks through one file; `None` when there is none.
    fn file(&self, changed: &Changed, fork: ForkName, segment: u32) -> Result<Option<Found>> {
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
        let mut runs = named.runs.iter().peekable();
        for block in 0..blocks {
            while runs.next_if(|run| run.end <= block).is_some() {}
            let is_named = runs.peek().is_some_and(|run| run.start <= block);
            if is_named || !self.is_drawn(&path, block) {
                continue;
            }
            let mut header = [0; 24];
            if file
                .read_exact_at(&mut header, block * DEFAULT_PAGE_SIZE as u64)
                .is_err()
            {
                // Truncated meanwhile.
                break;
            }
            let lsn = PageHeader::parse(&header).map_or(Lsn::INVALID, |h| h.lsn);
            let (from, to) = self.interval;
            if from < lsn && lsn <= to {
                let hole = Hole {
                    path,
                    block: first_block + block,
                    lsn,
                };
                return Ok(Some(Found {
                    blocks,
                    hole: Some(hole),
                }));
            }
        }
        Ok(Some(Found { blocks, hole: None }))
    }

    fn is_drawn(&self, path: &str, block: u64) -> bool {
        let of_file = xxh3_64_with_seed(path.as_bytes(), self.seed);
        xxh3_64_with_seed(&block.to_le_bytes(), of_file).is_multiple_of(ONE_OF)
    }
}

struct Found {
    blocks: u64,
    hole: Option<Hole>,
}
