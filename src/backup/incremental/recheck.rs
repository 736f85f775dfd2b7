//! Doubts a source: reads the heads of the pages that it names, and of some others of the same relations.
//!
//! A page whose own LSN lies in the interval was changed by a record of it. If the source does not name that page, the
//! source has a hole and serves for nothing. The pages to read follow from date and time of the backup, so that each one doubts others.
//!
//! A page that the source names has the LSN of a record of the interval, or a later one: the checkpoint at the start of
//! the backup wrote it. An older one shows that a write was lost, or that the WAL is another server's. Three kinds of
//! pages tell nothing, and are passed over: pages without content, pages that are all visible, and pages of hash indexes.
//!
//! A large cluster needs millions of single reads. Several threads do them, and they count for the operator's limit. The pages stay in the
//! system's cache: to drop it there would take it from the server, too.
//!
//! PostgreSQL: src/include/access/xloginsert.h, REGBUF_NO_CHANGE; src/backend/access/heap/visibilitymap.c,
//! visibilitymap_set.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Advice;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::archive::datadir::open_at_once;
use crate::backup::rate::Rate;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::datapage::{DEFAULT_PAGE_SIZE, PAGE_HEADER_SIZE, PageHeader};
use crate::pg::lsn::Lsn;
use crate::repo::id::BackupId;
use crate::snapshot::filekey::{ClusterNaming, Fork, RelationFile};
use crate::ticking::ticking;
use crate::wal::changed::{Changed, ForkName, Segment};

/// One page of so many is read.
const ONE_OF: u64 = 100;
/// The system reads so much of a disk for the head of a page.
const HEAD_BYTES: usize = 4096;
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
    /// The draw of the pages that are not named.
    pub seed: u64,
    /// Threads that read.
    pub threads: usize,
    /// The operator's limit.
    pub rate: &'a Rate,
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

/// The draw of a backup: its date and time, which its id has. So it can be told later which pages a backup drew, and the next one of the day draws others.
pub fn seed(id: &BackupId) -> u64 {
    let micros = id.time().map_or(0, |time| time.0);
    micros.div_euclid(1_000_000).unsigned_abs()
}

impl Recheck<'_> {
    /// Looks for pages that contradict what a source says changed, up to a hole. `tick` is called meanwhile.
    ///
    /// # Errors
    /// Those of the filesystem, and of `tick`.
    pub fn run(&self, changed: &Changed, tick: &mut dyn FnMut() -> Result<()>) -> Result<Doubts> {
        let is_over = AtomicBool::new(false);
        let run = Run {
            recheck: self,
            changed,
            is_over: &is_over,
        };
        let mut tick = || tick().inspect_err(|_| is_over.store(true, Ordering::Relaxed));
        Ok(ticking(&mut tick, || run.all())?.into_doubts())
    }

    /// Opens a file of a fork; `None` when there is none.
    fn open(&self, (fork, segment): (ForkName, u32), number: u64) -> Result<Option<Opened>> {
        let (tablespace, database, relation, of) = fork;
        let name = RelationFile {
            tablespace,
            database,
            relation,
            fork: if of == Fork::Main as u8 {
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
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let blocks = file.metadata().map_err(failed)?.len() / DEFAULT_PAGE_SIZE as u64;
        Ok(Some(Opened {
            number,
            fork,
            first_block: u64::from(segment) * u64::from(self.relation_segment_blocks),
            path,
            file,
            blocks,
        }))
    }
}

/// A file of a relation that changed.
struct Opened {
    /// Its place among all files.
    number: u64,
    fork: ForkName,
    first_block: u64,
    path: String,
    file: File,
    blocks: u64,
}

impl Opened {
    fn page(&self, block: u64, lsn: Lsn) -> (u64, Page) {
        let page = Page {
            path: self.path.clone(),
            block: self.first_block + block,
            lsn,
        };
        (self.number, page)
    }

    /// Reads the head of a page; `None` where the file ends before it.
    fn header(&self, block: u64) -> Result<Option<PageHeader>> {
        let mut header = [0; PAGE_HEADER_SIZE];
        let is_there = self.read(&mut header, block * DEFAULT_PAGE_SIZE as u64)?;
        Ok(PageHeader::parse(&header).filter(|_| is_there))
    }

    /// Whether a page says that a hash index owns it: records of these name pages that they only lock.
    ///
    /// PostgreSQL: src/include/access/hash.h, HASHO_PAGE_ID.
    fn is_of_hash_index(&self, header: &PageHeader, block: u64) -> Result<bool> {
        if usize::from(header.special) + 16 != DEFAULT_PAGE_SIZE {
            return Ok(false);
        }
        let mut id = [0; 2];
        let end = (block + 1) * DEFAULT_PAGE_SIZE as u64;
        let is_there = self.read(&mut id, end - 2)?;
        Ok(is_there && u16::from_le_bytes(id) == 0xFF80)
    }

    /// Fills a buffer from a position on; `false` where the file ends before.
    fn read(&self, buffer: &mut [u8], position: u64) -> Result<bool> {
        match self.file.read_exact_at(buffer, position) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(Error::from_io(format!("read \"{}\"", self.path), e)),
        }
    }
}

/// Opens the files of the relations that changed, one after the other.
struct Files<'r> {
    recheck: &'r Recheck<'r>,
    forks: std::vec::IntoIter<ForkName>,
    /// The next file of a relation whose last one was full.
    next: Option<(ForkName, u32)>,
    opened: u64,
}

impl<'r> Files<'r> {
    fn new(recheck: &'r Recheck<'r>, changed: &Changed) -> Files<'r> {
        let mut forks: Vec<ForkName> = changed.active().collect();
        forks.sort_unstable();
        Files {
            recheck,
            forks: forks.into_iter(),
            next: None,
            opened: 0,
        }
    }

    fn open_next(&mut self) -> Result<Option<Opened>> {
        loop {
            let next = self.next.take();
            let next = next.or_else(|| Some((self.forks.next()?, 0)));
            let Some((fork, segment)) = next else {
                return Ok(None);
            };
            let Some(opened) = self.recheck.open((fork, segment), self.opened)? else {
                continue;
            };
            self.opened += 1;
            if opened.blocks >= u64::from(self.recheck.relation_segment_blocks) {
                self.next = Some((fork, segment + 1));
            }
            return Ok(Some(opened));
        }
    }
}

/// The pages that one thread found, or all of them, each with the number of its file.
#[derive(Default)]
struct Found {
    hole: Option<(u64, Page)>,
    stale: Vec<(u64, Page)>,
    stale_count: u64,
}

impl Found {
    fn add(&mut self, other: Found) {
        let holes = self.hole.take().into_iter().chain(other.hole);
        self.hole = holes.min_by_key(|(file, _)| *file);
        self.stale.extend(other.stale);
        self.stale_count += other.stale_count;
    }

    /// Puts the pages in order, whichever thread found them.
    fn into_doubts(mut self) -> Doubts {
        self.stale.sort_by_key(|(file, _)| *file);
        self.stale.truncate(LISTED_PAGES);
        Doubts {
            hole: self.hole.map(|(_, page)| page),
            stale: self.stale.into_iter().map(|(_, page)| page).collect(),
            stale_count: self.stale_count,
        }
    }
}

/// A recheck under way.
struct Run<'r> {
    recheck: &'r Recheck<'r>,
    changed: &'r Changed,
    /// Set when every thread has to end.
    is_over: &'r AtomicBool,
}

impl Run<'_> {
    /// Reads with several threads.
    fn all(&self) -> Result<Found> {
        let files = Mutex::new(Files::new(self.recheck, self.changed));
        let work = || {
            let found = self.some(&files);
            let is_end = !matches!(&found, Ok(found) if found.hole.is_none());
            self.is_over.fetch_or(is_end, Ordering::Relaxed);
            found
        };
        let count = self.recheck.threads.max(1);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            let mut all = Found::default();
            let mut failure: Option<Error> = None;
            for thread in threads {
                match thread.join().unwrap_or_else(|_| Err(panicked())) {
                    Ok(found) => all.add(found),
                    Err(e) => failure = Some(Error::cause(failure.take(), e)),
                }
            }
            failure.map_or(Ok(all), Err)
        })
    }

    /// Reads files until there are no more, or one has a hole.
    fn some(&self, files: &Mutex<Files<'_>>) -> Result<Found> {
        let mut found = Found::default();
        while found.hole.is_none() && !self.is_over.load(Ordering::Relaxed) {
            let opened = match files.lock() {
                Ok(mut files) => files.open_next()?,
                Err(_) => return Err(panicked()),
            };
            match opened {
                Some(opened) => self.file(&opened, &mut found)?,
                None => break,
            }
        }
        Ok(found)
    }

    /// Looks through one file, up to its end by now.
    fn file(&self, opened: &Opened, found: &mut Found) -> Result<()> {
        let (recheck, changed) = (self.recheck, self.changed);
        let named = changed.wanted(&Segment {
            fork: opened.fork,
            first_block: opened.first_block,
            blocks: opened.blocks,
            prior_blocks: opened.blocks,
        });
        let judged = recheck.named_since.filter(|_| changed.is_exact());
        if judged.is_none() || named.runs.is_empty() {
            // Nothing is worth reading ahead beside pages that were drawn.
            let _ = rustix::fs::fadvise(&opened.file, 0, None, Advice::Random);
        }
        let limit = named.limit.unwrap_or(opened.blocks);
        let mut runs = named.runs.iter().peekable();
        let of_file = xxh3_64_with_seed(opened.path.as_bytes(), recheck.seed);
        for block in 0..opened.blocks {
            while runs.next_if(|run| run.end <= block).is_some() {}
            let is_named = runs.peek().is_some_and(|run| run.start <= block);
            let since = judged.filter(|_| is_named && block < limit);
            let is_doubted = !is_named && is_drawn(of_file, block);
            if since.is_none() && !is_doubted {
                continue;
            }
            if self.is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Truncated meanwhile.
            let Some(header) = opened.header(block)? else {
                return Ok(());
            };
            recheck.rate.take(HEAD_BYTES, self.is_over);
            let (from, to) = recheck.interval;
            if is_doubted && from < header.lsn && header.lsn <= to {
                found.hole = Some(opened.page(block, header.lsn));
                return Ok(());
            }
            if since.is_some_and(|since| is_stale(&header, since))
                && !opened.is_of_hash_index(&header, block)?
                && !changed.is_late(opened.fork, opened.first_block + block)
            {
                found.stale_count += 1;
                if found.stale.len() < LISTED_PAGES {
                    found.stale.push(opened.page(block, header.lsn));
                }
            }
        }
        Ok(())
    }
}

fn panicked() -> Error {
    err!(Internal, "a thread that looks at pages panicked")
}

/// Whether a block is drawn, by the hash of its file.
fn is_drawn(of_file: u64, block: u64) -> bool {
    xxh3_64_with_seed(&block.to_le_bytes(), of_file).is_multiple_of(ONE_OF)
}

/// Whether a page was last changed before a position, and would tell of a later change.
fn is_stale(header: &PageHeader, since: Lsn) -> bool {
    header.lsn <= since && !header.is_new() && header.flags & ALL_VISIBLE == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::change::Change;
    use crate::pg::record::{Fork as ForkNumber, Relation};

    const SEGMENT_BLOCKS: u32 = 2000;
    const INTERVAL: (Lsn, Lsn) = (Lsn(1000), Lsn(2000));

    /// A data directory with one relation of three files, the last of which is not full.
    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new() -> Directory {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(directory.path().join("base/5")).unwrap();
            let made = Directory(directory);
            for (name, blocks) in [("7", SEGMENT_BLOCKS), ("7.1", SEGMENT_BLOCKS), ("7.2", 500)] {
                let file = File::create(made.place(name)).unwrap();
                file.set_len(u64::from(blocks) * DEFAULT_PAGE_SIZE as u64)
                    .unwrap();
            }
            made
        }

        fn place(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join("base/5").join(name)
        }

        /// Writes the head of a page.
        fn put(&self, name: &str, block: u64, lsn: Lsn) {
            let mut head = [0; PAGE_HEADER_SIZE];
            head[..4].copy_from_slice(&u32::try_from(lsn.0 >> 32).unwrap().to_le_bytes());
            let low = u32::try_from(lsn.0 & 0xFFFF_FFFF).unwrap();
            head[4..8].copy_from_slice(&low.to_le_bytes());
            head[14..16].copy_from_slice(&8000_u16.to_le_bytes());
            let file = File::options().write(true).open(self.place(name)).unwrap();
            file.write_all_at(&head, block * DEFAULT_PAGE_SIZE as u64)
                .unwrap();
        }

        fn recheck<'a>(&'a self, seed: u64, rate: &'a Rate) -> Recheck<'a> {
            Recheck {
                root: self.0.path(),
                naming: ClusterNaming {
                    major: 17,
                    catalog_version: 1,
                },
                relation_segment_blocks: SEGMENT_BLOCKS,
                interval: INTERVAL,
                named_since: Some(INTERVAL.0),
                seed,
                threads: 4,
                rate,
            }
        }
    }

    fn changed(blocks: &[u32]) -> Changed {
        let mut changed = Changed::default();
        for block in blocks {
            changed.add(&Change::Block {
                relation: Relation {
                    tablespace: 1663,
                    database: 5,
                    number: 7,
                },
                fork: ForkNumber::MAIN,
                block: *block,
            });
        }
        changed.settle();
        changed
    }

    /// The blocks of a file that a seed draws.
    fn drawn(name: &str, seed: u64, blocks: u64) -> Vec<u64> {
        let of_file = xxh3_64_with_seed(format!("base/5/{name}").as_bytes(), seed);
        (0..blocks).filter(|b| is_drawn(of_file, *b)).collect()
    }

    #[test]
    fn b40_each_run_of_a_day_draws_other_pages_and_the_same_run_the_same() {
        let id = |text: &str| text.parse::<BackupId>().unwrap();
        let one = seed(&id("20261120T064049Z-482913-incr"));
        let next = seed(&id("20261120T074049Z-111111-incr"));
        assert_eq!(one, seed(&id("20261120T064049Z-482913-incr")));
        let (one, next) = (drawn("7", one, 100_000), drawn("7", next, 100_000));
        assert!((800..1200).contains(&one.len()), "{}", one.len());
        let again = next.iter().filter(|block| one.contains(block)).count();
        assert!(again < 50, "{again}");
    }

    #[test]
    fn b40_several_threads_read_within_the_limit_and_find_what_one_finds() {
        let directory = Directory::new();
        let rate = Rate::new(None);
        let recheck = directory.recheck(1, &rate);
        // One page of each file is named, and older than its record.
        let changed = changed(&[3, SEGMENT_BLOCKS + 4, 2 * SEGMENT_BLOCKS + 5]);
        for (name, block) in [("7", 3), ("7.1", 4), ("7.2", 5)] {
            directory.put(name, block, Lsn(900));
        }
        let found = recheck.run(&changed, &mut || Ok(())).unwrap();
        assert_eq!((found.hole, found.stale_count), (None, 3));
        let stale = found.stale.iter().map(|page| page.block);
        assert!(stale.eq([3, 2004, 4005]), "{:?}", found.stale);
        let mut read = 0;
        for (name, blocks, named) in [("7", 2000, 3), ("7.1", 2000, 4), ("7.2", 500, 5)] {
            let drawn = drawn(name, 1, blocks);
            read += drawn.iter().filter(|block| **block != named).count() + 1;
        }
        assert_eq!(rate.taken_bytes(), (read * HEAD_BYTES) as u64);
        // A page that was changed, and is not named.
        let hidden = drawn("7.1", 1, 2000).into_iter().find(|b| *b != 4).unwrap();
        directory.put("7.1", hidden, Lsn(1500));
        let hole = recheck.run(&changed, &mut || Ok(())).unwrap().hole.unwrap();
        assert_eq!((hole.path.as_str(), hole.lsn), ("base/5/7.1", Lsn(1500)));
        assert_eq!(hole.block, u64::from(SEGMENT_BLOCKS) + hidden);
    }

    /// A directory in place of the file fails each read.
    #[test]
    fn b40_a_page_that_cannot_be_read_is_told_and_a_truncated_file_is_none() {
        let directory = Directory::new();
        let rate = Rate::new(None);
        let recheck = directory.recheck(1, &rate);
        let changed = changed(&[3]);
        let is_over = AtomicBool::new(false);
        let run = Run {
            recheck: &recheck,
            changed: &changed,
            is_over: &is_over,
        };
        let look = |place: &Path| {
            let opened = Opened {
                number: 0,
                fork: (1663, 5, 7, 0),
                first_block: 0,
                path: "base/5/7".into(),
                file: File::open(place).unwrap(),
                blocks: u64::from(SEGMENT_BLOCKS),
            };
            let mut found = Found::default();
            run.file(&opened, &mut found).map(|()| found.stale_count)
        };
        let failed = look(directory.0.path()).unwrap_err();
        assert!(failed.to_string().contains("base/5/7"), "{failed}");
        let place = directory.place("7");
        let file = File::options().write(true).open(&place).unwrap();
        file.set_len(3 * DEFAULT_PAGE_SIZE as u64).unwrap();
        assert_eq!(look(&place).unwrap(), 0);
    }

    #[test]
    fn b40_a_recheck_that_waits_for_the_limit_ends_when_it_is_told_to() {
        let directory = Directory::new();
        // Each page costs more than an hour.
        let rate = Rate::new(Some(1));
        let recheck = directory.recheck(1, &rate);
        let mut stop = || Err(err!(Interrupted, "interrupted"));
        let stopped = recheck.run(&changed(&[3]), &mut stop).unwrap_err();
        assert_eq!(stopped.code(), Code::Interrupted);
    }
}
