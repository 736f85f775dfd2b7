//! Reads a cluster's files from its data directory, between the start and the stop of a backup on its own server.
//!
//! One SQL session starts and stops the backup. Order: proof that the server owns the files → start → proof that pg_control is the
//! server's → files, by several readers at once → pg_control → stop → the same proof again → `backup_label` and the links of
//! tablespaces, both as the server's stop gave them. There is no file `tablespace_map`, as in a stream: the root lists the
//! tablespaces, and a restore makes the links.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, perform_base_backup; doc/src/sgml/backup.sgml, "Making a Base Backup Using the Low Level API".

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::incremental::prior::Shape;
use super::incremental::recheck::{self, Doubts, Recheck};
use super::incremental::wal::Interval;
use super::producer::{Produced, Producer, Work};
use super::source::{ServerFacts, Source};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::label::{self, BackupLabel, TablespaceLink};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::repo::id::BackupId;
use crate::repo::root::cluster::{Method, named};
use crate::snapshot::filekey::FileKey;
use crate::snapshot::sink::FileSink;
use crate::wal::changed::{Changed, Problem};
use crate::wire::basebackup::{BackupEnd, BackupStart, Tablespace};

mod against;
mod exclude;
mod left_out;
mod merge;
mod owner;
mod pages;
mod reader;
mod session;
mod task;
#[cfg(test)]
mod truncation_tests;
mod walk;

use against::Against;
use owner::Owner;
use pages::Findings;
use reader::{Reader, Reading};
use session::Stopped;
use task::{Queue, Task};
use walk::{Listed, Walk};

/// Most readers: more wait for the disk and the threads that compress.
const MOST_READERS: usize = 8;
/// Files that wait for a reader.
const QUEUED_FILES: usize = 1024;
/// How often the copy is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the session is used, so that nothing between takes it for dead.
const PING: Duration = Duration::from_secs(10);

/// A data directory on this host.
pub struct Local {
    configured: Option<PathBuf>,
    owner: Option<Owner>,
}

impl Local {
    /// Reads `pgdata`, or else the directory that the server names.
    pub fn new(pgdata: Option<PathBuf>) -> Local {
        Local {
            configured: pgdata,
            owner: None,
        }
    }
}

impl Producer for Local {
    fn method(&self) -> Method {
        Method::Local
    }

    fn sinks(&self, jobs: usize) -> usize {
        readers(jobs)
    }

    fn prepare(&mut self, source: &mut dyn Source, facts: &ServerFacts) -> Result<()> {
        session::check_rights(source, facts.major)?;
        let owner = Owner::find(source, facts, self.configured.as_deref())?;
        self.owner = Some(owner);
        Ok(())
    }

    fn shape(&self) -> std::result::Result<Shape, String> {
        let owner = self.owner.as_ref();
        let shape = owner.map(Owner::shape);
        shape.ok_or_else(|| "the data directory was not looked at".to_owned())
    }

    fn why_full(&self) -> Result<Option<String>> {
        let path = self.owner.as_ref().map(Owner::path);
        let marked = path.map_or_else(|| Ok(Vec::new()), left_out::marked_there)?;
        // WAL tells nothing of pages that a restore did not bring.
        Ok((!marked.is_empty()).then(|| {
            format!(
                "a restore left databases out of this data directory: {}",
                named(&marked)
            )
        }))
    }

    fn produce(&mut self, source: &mut dyn Source, work: Work<'_, '_, '_>) -> Result<Produced> {
        let owner = self
            .owner
            .as_ref()
            .ok_or_else(|| err!(Internal, "the data directory was not looked at"))?;
        Copying {
            owner,
            source,
            work,
        }
        .run()
    }
}

/// A copy under way.
struct Copying<'c, 'w, 'scope, 'env> {
    owner: &'c Owner,
    source: &'c mut dyn Source,
    work: Work<'w, 'scope, 'env>,
}

impl<'w> Copying<'_, 'w, '_, '_> {
    fn run(mut self) -> Result<Produced> {
        let major = self.work.facts.major;
        // A tablespace that is made later is made again by replay, which wants no directory in its way.
        let tablespaces = walk::tablespaces(self.owner.path())?;
        let real_roots = walk::real_roots(self.owner.path(), self.work.naming, &tablespaces)?;
        let how = (major, self.work.request);
        let watch = &mut self.work.watch;
        let start_lsn = session::start(self.source, how, &mut || watch.tick())?;
        // One in place is in no map of the server's.
        let now = walk::tablespaces(self.owner.path())?;
        if let Some(oid) = now.into_iter().find(|oid| !tablespaces.contains(oid)) {
            return Err(created(oid));
        }
        let timeline = self.owner.check_control(self.source, start_lsn)?;
        let mut start = BackupStart {
            start_lsn,
            timeline,
            base_size_kib: None,
            tablespaces: Vec::new(),
        };
        self.work.watch.began(&start)?;
        let against = self.against((timeline, start_lsn))?;
        let copied = self.copy(start_lsn, (&tablespaces, &real_roots), against.as_ref());
        let (findings, old_links) = copied.map_err(|e| match e.is_damage() && against.is_some() {
            true => e.hint("Nothing was committed. The prior may be damaged: pitr verify tells. A full backup needs none: pitr backup --method local"),
            false => e,
        })?;
        let control = self.copy_control()?;
        self.source.keep_wal(true);
        let stopped = session::stop(self.source, major)?;
        self.owner.check_again(self.source)?;
        let end_timeline = session::timeline(self.source, timeline)?;
        let left_out = left_out::there(self.owner.path(), &self.work.naming, &tablespaces)?;
        let label = BackupLabel::parse(&stopped.label)?;
        let links = label::parse_tablespace_map(&stopped.map, major)?;
        check_links(&links, &tablespaces)?;
        links
            .iter()
            .try_for_each(|link| self.owner.check_tablespace(link))?;
        self.add_ends(&stopped, &links, &old_links)?;
        start.tablespaces = links.into_iter().map(tablespace).collect();
        Ok(Produced {
            start,
            end: BackupEnd {
                stop_lsn: stopped.stop_lsn,
                timeline: end_timeline,
                checksum_failure: false,
                warnings: Vec::new(),
            },
            label,
            control,
            manifest: None,
            has_scanned: against.as_ref().is_none_or(Against::compares_all),
            left_out,
            damage: findings.judge(stopped.stop_lsn, &self.work.naming),
        })
    }

    /// Settles the source of the changes since the prior; `None` for a full backup.
    fn against(&mut self, start: (TimelineId, Lsn)) -> Result<Option<Against<'w>>> {
        let Some(prior) = self.work.prior else {
            return Ok(None);
        };
        let told = match prior.why_scan(self.work.host.now()) {
            Some(why) => Err(why),
            None => self
                .changed(start)?
                .map_err(|why| format!("WAL does not tell what changed since: {why}")),
        };
        if let Err(why) = &told {
            self.work.host.progress.note(&format!(
                "every page is read and compared with backup \"{}\", for {why}",
                prior.root.head.id
            ));
        }
        let progress = self.work.host.progress.as_ref();
        Ok(Some(Against::new(prior, told.ok(), progress)))
    }

    /// Asks WAL what changed since the prior, and doubts what it says.
    fn changed(
        &mut self,
        (timeline, start_lsn): (TimelineId, Lsn),
    ) -> Result<std::result::Result<Changed, Problem>> {
        let Some(prior) = self.work.prior else {
            return Err(err!(Internal, "a full backup has no prior"));
        };
        if prior.history.timeline() != timeline {
            return Ok(Err("the server has changed its timeline".into()));
        }
        let host = self.work.host;
        host.progress.phase("read what changed from WAL", None);
        let (source, watch) = (&mut *self.source, &mut self.work.watch);
        let mut tick = in_use(host, source, || watch.tick());
        let interval = Interval {
            repository: prior.repository,
            layout: self.work.layout,
            major: self.work.facts.major,
            prior: &prior.root.content,
            prior_time: prior.root.head.start_time,
            history: &prior.history,
            size: self.work.facts.segment_size,
            end: start_lsn,
            server: &self.owner.path().join("pg_wal"),
            tick: RefCell::new(&mut tick),
        };
        let first_told = interval.first_told();
        let changed = match interval.changed()? {
            Ok(changed) => changed,
            Err(why) => return Ok(Err(why)),
        };
        let recheck = Recheck {
            root: self.owner.path(),
            naming: self.work.naming,
            relation_segment_blocks: self.owner.relation_segment_blocks(),
            interval: (prior.root.content.start_lsn, start_lsn),
            named_since: self.owner.has_checksums().then_some(first_told),
            seed: recheck::seed(self.work.id),
            threads: readers(self.work.options.jobs),
            rate: self.work.rate,
        };
        let doubts = recheck.run(&changed, &mut tick)?;
        if let Some(stale) = stale(&doubts, first_told, &prior.root.head.id) {
            host.progress.warn(&stale);
            return Ok(Err("pages on disk are older than it says".into()));
        }
        Ok(match doubts.hole {
            None => Ok(changed),
            Some(hole) => Err(format!(
                "block {} of \"{}\" was changed at {}, which is not in it",
                hole.block, hole.path, hole.lsn
            )),
        })
    }

    /// Copies all files but pg_control. Returns the prior's links of tablespaces, too.
    fn copy(
        &mut self,
        start_lsn: Lsn,
        (tablespaces, real_roots): (&[u32], &[PathBuf]),
        against: Option<&Against<'_>>,
    ) -> Result<(Findings, Vec<FileKey>)> {
        let work = &mut self.work;
        let walk = Walk::new(
            self.owner.path(),
            work.naming,
            tablespaces,
            self.owner.stats(),
        );
        // How much of it is read of an incremental is not known before.
        let size = match against {
            None => {
                let (host, watch) = (work.host, &mut work.watch);
                let mut tick = in_use(host, &mut *self.source, || watch.tick());
                Some(walk.size(&mut tick)?)
            }
            Some(_) => None,
        };
        work.host.progress.phase("copy", size);
        let is_over = AtomicBool::new(false);
        let reading = Reading {
            root: self.owner.path(),
            real_roots,
            naming: work.naming,
            // Without checksums a page proves nothing.
            check_from: self.owner.has_checksums().then_some(start_lsn),
            relation_segment_blocks: self.owner.relation_segment_blocks(),
            against,
            rate: work.rate,
            is_over: &is_over,
            progress: work.host.progress.as_ref(),
        };
        let (sender, files) = sync_channel::<Task>(QUEUED_FILES);
        let files = Mutex::new(files);
        let (writer, naming) = (work.writer, work.naming);
        let old_links = Mutex::new(Vec::new());
        let findings = std::thread::scope(|threads| {
            let (walk, reading, files) = (&walk, &reading, &files);
            let (progress, scratch) = (work.host.progress.as_ref(), work.host.scratch.as_path());
            let mut running = vec![threads.spawn({
                let (sink, is_over, old_links) = (writer.sink(), &is_over, &old_links);
                move || {
                    or_stop(is_over, || {
                        let queue = Queue { sender, is_over };
                        match against {
                            None => list(walk, &sink, &queue, progress)?,
                            Some(against) => {
                                let found = merge::run(
                                    (walk, against.compare.prior),
                                    (&sink, &queue),
                                    (naming, scratch),
                                    progress,
                                )?;
                                if let Ok(mut links) = old_links.lock() {
                                    *links = found;
                                }
                            }
                        }
                        sink.finish().map(|()| Findings::default())
                    })
                }
            })];
            for _ in 0..readers(work.options.jobs) {
                let reader = Reader::new(reading, writer.sink());
                let is_over = &is_over;
                running.push(threads.spawn(move || or_stop(is_over, || reader.run(files))));
            }
            let watched = watch(
                &running,
                || {
                    work.host.check_stop()?;
                    work.watch.tick()
                },
                self.source,
            );
            is_over.fetch_or(watched.is_err(), Ordering::Relaxed);
            joined(running, watched)
        })?;
        Ok((findings, old_links.into_inner().unwrap_or_default()))
    }

    fn copy_control(&mut self) -> Result<crate::pg::control::ControlFile> {
        let (bytes, control, metadata) = self.owner.read_control()?;
        self.add_file(b"global/pg_control", metadata, &bytes)?;
        Ok(control)
    }

    /// Adds what the stop of the backup gave. Links that only the prior has are gone.
    fn add_ends(
        &mut self,
        stopped: &Stopped,
        links: &[TablespaceLink],
        old_links: &[FileKey],
    ) -> Result<()> {
        let (mode, _) = self.owner.mode_and_time()?;
        let now = self.work.host.now().unix_micros().unwrap_or_default() / 1_000_000;
        self.add_file(b"backup_label", (mode, now), &stopped.label)?;
        let sink = self.work.writer.sink();
        let mut keys = Vec::new();
        for link in links {
            let path = format!("pg_tblspc/{}", link.oid);
            let key = FileKey::from_path(path.as_bytes(), &self.work.naming)?;
            sink.symlink(&key, &link.path)?;
            keys.push(key);
        }
        let mut gone = old_links.iter().filter(|key| !keys.contains(key));
        gone.try_for_each(|key| sink.gone(key))?;
        sink.finish()
    }

    fn add_file(&mut self, path: &[u8], (mode, mtime): (u32, i64), bytes: &[u8]) -> Result<()> {
        let mut sink = self.work.writer.sink();
        let key = FileKey::from_path(path, &self.work.naming)?;
        sink.begin(key)?;
        sink.append(bytes)?;
        sink.end(mode, mtime)?;
        sink.finish()
    }
}

/// Sends all files to the readers, and records directories.
fn list(
    walk: &Walk<'_>,
    sink: &FileSink<'_>,
    queue: &Queue<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut take = |listed| match listed {
        Listed::Directory(key, mode, mtime) => sink.directory(&key, mode, mtime),
        Listed::File(key) => queue.send(Task { key, prior: None }),
    };
    walk.run(&mut take, progress)
}

/// Does the work of one thread. Its failure, or its panic, stops the others: the walk would wait for ever for a reader.
fn or_stop<T>(is_over: &AtomicBool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _panic = Panic(is_over);
    let result = work();
    is_over.fetch_or(result.is_err(), Ordering::Relaxed);
    result
}

/// Stops the other threads when this one panics.
struct Panic<'a>(&'a AtomicBool);

impl Drop for Panic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Readers for so many cores.
fn readers(jobs: usize) -> usize {
    jobs.clamp(1, MOST_READERS)
}

type Thread<'t> = ScopedJoinHandle<'t, Result<Findings>>;

/// Waits for the threads. The session is used now and then.
fn watch(
    running: &[Thread<'_>],
    mut tick: impl FnMut() -> Result<()>,
    source: &mut dyn Source,
) -> Result<()> {
    let mut used = Instant::now();
    while !running.iter().all(Thread::is_finished) {
        tick()?;
        if used.elapsed() >= PING {
            source.query("select 1")?;
            used = Instant::now();
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// A tick that uses the session now and then: a firewall would forget one that says nothing.
fn in_use<'u>(
    host: &'u Host,
    source: &'u mut dyn Source,
    mut tick: impl FnMut() -> Result<()> + 'u,
) -> impl FnMut() -> Result<()> + 'u {
    let mut used = Instant::now();
    move || {
        host.check_stop()?;
        if used.elapsed() >= PING {
            source.query("select 1")?;
            used = Instant::now();
        }
        tick()
    }
}

/// Joins the threads' findings. Among several errors, the first that is no mere consequence of another counts.
fn joined(running: Vec<Thread<'_>>, watched: Result<()>) -> Result<Findings> {
    let mut all = Findings::default();
    let mut failure: Option<Error> = watched.err();
    for thread in running {
        let result = thread.join();
        match result.unwrap_or_else(|_| Err(err!(Internal, "a thread that reads files panicked"))) {
            Ok(findings) => all.add(findings),
            Err(e) => failure = Some(Error::cause(failure.take(), e)),
        }
    }
    failure.map_or(Ok(all), Err)
}

/// Requires that every tablespace that was there at the start was copied.
fn check_links(links: &[TablespaceLink], copied: &[u32]) -> Result<()> {
    match links.iter().find(|link| !copied.contains(&link.oid)) {
        None => Ok(()),
        Some(link) => Err(created(link.oid)),
    }
}

fn created(oid: u32) -> Error {
    err!(
        Refused,
        "tablespace {oid} was created while the backup began"
    )
    .hint("Nothing was committed. Take the backup again: pitr backup --method local")
}

fn tablespace(link: TablespaceLink) -> Tablespace {
    Tablespace {
        oid: link.oid,
        location: link.path,
        size_kib: None,
    }
}

/// Warns of pages that are older on disk than the WAL says which changed them.
fn stale(doubts: &Doubts, since: Lsn, prior: &BackupId) -> Option<String> {
    if doubts.stale_count == 0 {
        return None;
    }
    let pages = doubts.stale.iter();
    let pages: Vec<String> = pages
        .map(|page| {
            format!(
                "block {} of \"{}\" is of {}",
                page.block, page.path, page.lsn
            )
        })
        .collect();
    let more = match doubts.stale_count > doubts.stale.len() as u64 {
        true => ", and others",
        false => "",
    };
    Some(format!(
        "pages that WAL changed after {since} are older on disk: {} ({}{more}). A write was lost, or the WAL is another server's. \
         This backup has these pages as they are on disk. Look at the logs of kernel and disk, and restore backup \"{prior}\" with its WAL to compare",
        doubts.stale_count,
        pages.join(", ")
    ))
}
