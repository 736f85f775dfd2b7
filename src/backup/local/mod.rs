//! Reads a cluster's files from its data directory, between the start and the stop of a backup on its own server.
//!
//! One SQL session starts and stops the backup. Order: proof that the server owns the files → start → proof that pg_control is the
//! server's → files, by several readers at once → pg_control → stop → the same proof again → `backup_label` and the links of
//! tablespaces, both as the server's stop gave them. There is no file `tablespace_map`, as in a stream: the root lists the
//! tablespaces, and a restore makes the links.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, perform_base_backup; doc/src/sgml/backup.sgml, "Making a Base Backup Using the Low Level API".

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::producer::{Produced, Producer, Work};
use super::source::{ServerFacts, Source};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::label::{self, BackupLabel, TablespaceLink};
use crate::pg::lsn::Lsn;
use crate::repo::root::cluster::Method;
use crate::snapshot::filekey::FileKey;
use crate::wire::basebackup::{BackupEnd, BackupStart, Tablespace};

mod exclude;
mod owner;
mod pages;
mod rate;
mod reader;
mod session;
mod walk;

use owner::Owner;
use pages::Findings;
use rate::Rate;
use reader::{Reader, Reading};
use session::Stopped;
use walk::Walk;

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

impl Copying<'_, '_, '_, '_> {
    fn run(mut self) -> Result<Produced> {
        let major = self.work.facts.major;
        // A tablespace that is made later is made again by replay, which wants no directory in its way.
        let tablespaces = walk::tablespaces(self.owner.path())?;
        let real_roots = walk::real_roots(self.owner.path(), self.work.naming, &tablespaces)?;
        let start_lsn = session::start(self.source, major, self.work.request)?;
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
        let findings = self.copy(start_lsn, &tablespaces, &real_roots)?;
        let control = self.copy_control()?;
        let stopped = session::stop(self.source, major)?;
        self.owner.check_again(self.source)?;
        let end_timeline = session::timeline(self.source, timeline)?;
        let label = BackupLabel::parse(&stopped.label)?;
        let links = label::parse_tablespace_map(&stopped.map, major)?;
        check_links(&links, &tablespaces)?;
        links
            .iter()
            .try_for_each(|link| self.owner.check_tablespace(link))?;
        self.add_ends(&stopped, &links)?;
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
            damage: findings.judge(stopped.stop_lsn, &self.work.naming),
        })
    }

    /// Copies all files but pg_control.
    fn copy(
        &mut self,
        start_lsn: Lsn,
        tablespaces: &[u32],
        real_roots: &[PathBuf],
    ) -> Result<Findings> {
        let work = &mut self.work;
        let walk = Walk::new(
            self.owner.path(),
            work.naming,
            tablespaces,
            self.owner.stats(),
        );
        work.host
            .progress
            .phase("copy", Some(walk.size(&|| work.host.check_stop())?));
        let rate = Rate::new(work.options.max_rate_bytes_per_s);
        let is_over = AtomicBool::new(false);
        let reading = Reading {
            root: self.owner.path(),
            real_roots,
            naming: work.naming,
            // Without checksums a page proves nothing.
            check_from: self.owner.has_checksums().then_some(start_lsn),
            relation_segment_blocks: self.owner.relation_segment_blocks(),
            rate: &rate,
            is_over: &is_over,
            progress: work.host.progress.as_ref(),
        };
        let (sender, files) = sync_channel::<FileKey>(QUEUED_FILES);
        let files = Mutex::new(files);
        let writer = work.writer;
        std::thread::scope(|threads| {
            let (walk, reading, files) = (&walk, &reading, &files);
            let progress = work.host.progress.as_ref();
            let mut running = vec![threads.spawn({
                let (sink, is_over) = (writer.sink(), &is_over);
                move || {
                    or_stop(is_over, || {
                        walk.run(&sink, &sender, is_over, progress)?;
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
        })
    }

    fn copy_control(&mut self) -> Result<crate::pg::control::ControlFile> {
        let (bytes, control, metadata) = self.owner.read_control()?;
        self.add_file(b"global/pg_control", metadata, &bytes)?;
        Ok(control)
    }

    /// Adds what the stop of the backup gave.
    fn add_ends(&mut self, stopped: &Stopped, links: &[TablespaceLink]) -> Result<()> {
        let (mode, _) = self.owner.mode_and_time()?;
        let now = self.work.host.now().unix_micros().unwrap_or_default() / 1_000_000;
        self.add_file(b"backup_label", (mode, now), &stopped.label)?;
        let sink = self.work.writer.sink();
        for link in links {
            let path = format!("pg_tblspc/{}", link.oid);
            let key = FileKey::from_path(path.as_bytes(), &self.work.naming)?;
            sink.symlink(&key, &link.path)?;
        }
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

/// Puts the threads' findings together. Of several errors the first that is no mere consequence of another counts.
fn joined(running: Vec<Thread<'_>>, watched: Result<()>) -> Result<Findings> {
    let mut all = Findings::default();
    let mut failure: Option<Error> = watched.err();
    for thread in running {
        let result = thread.join();
        match result.unwrap_or_else(|_| Err(err!(Internal, "a thread that reads files panicked"))) {
            Ok(findings) => all.add(findings),
            Err(e)
                if failure
                    .as_ref()
                    .is_none_or(|f| f.code() == Code::Interrupted) =>
            {
                failure = Some(e);
            }
            Err(_) => {}
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
