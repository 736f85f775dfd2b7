//! Buckets: as sources of files, and as places that files are restored into.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::{RestoreWanted, Restored, choose};
use crate::config::{Files, Location, S3Settings, Source};
use crate::err;
use crate::error::{Code, Result};
use crate::operate::session::Session;
use crate::restore::content::Open;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Node, NodeKind};
use crate::snapshot::reader::{Item, Snapshot};
use crate::store::pace::Pace;
use crate::store::s3::contents::{Contents, Expected, Facts, Outcome};
use crate::tree::extract::Extracted;
use crate::tree::left_out::{LeftOut, Part as Left};
use crate::tree::part::Part;

/// No store takes a longer key.
const KEY_LIMIT_BYTES: usize = 1024;
/// Most threads that write: each holds a part of an object.
const MOST_WRITERS: usize = 8;
/// Objects on their way to the writers.
const QUEUE: usize = 64;
/// How often a full queue is looked at again.
const GLANCE: Duration = Duration::from_millis(20);

/// A bucket with the limit of what is read from it and written to it.
pub struct Place {
    pub contents: Contents,
    /// The limit.
    pub pace: Arc<Pace>,
}

/// Whether a target of the command line is a bucket.
pub fn is_bucket(to: &std::path::Path) -> Option<&str> {
    to.to_str().filter(|text| text.starts_with("s3://"))
}

/// Opens the source of a set of files, where it is a bucket.
///
/// # Errors
/// `Usage` for another source; `Config`.
pub fn source(session: &Session, files: &Files) -> Result<Place> {
    match &files.source {
        Source::Bucket { bucket, prefix } => open(session, files, (bucket, prefix)),
        _ => Err(err!(Usage, "the source of \"{}\" is no bucket", files.name)),
    }
}

/// Opens a bucket by its URL. Region, server, credentials and limit are those of the section whose source it is, else those of `name`.
///
/// # Errors
/// `Usage` for what is no such URL; `Config`.
pub fn place(session: &Session, url: &str, name: &str) -> Result<Place> {
    let parsed = Location::from_url(url).map_err(|e| e.with_code(Code::Usage))?;
    let Location::S3 { bucket, prefix } = parsed else {
        return Err(err!(Usage, "\"{url}\" is no bucket"));
    };
    let settings = session.settings()?;
    let files = settings.files.iter().filter(|files| match &files.source {
        Source::Bucket {
            bucket: own,
            prefix: above,
        } => *own == bucket && is_within(&prefix, above),
        _ => false,
    });
    let closest = files.max_by_key(|files| match &files.source {
        Source::Bucket { prefix, .. } => prefix.len(),
        _ => 0,
    });
    let own = settings.files.iter().find(|files| files.name == name);
    let unconfigured = Files::default();
    let files = closest.or(own).unwrap_or(&unconfigured);
    open(session, files, (&bucket, &prefix))
}

/// Whether a prefix is another one, or lies below it.
pub fn is_within(prefix: &str, above: &str) -> bool {
    above.is_empty()
        || prefix
            .strip_prefix(above)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn open(session: &Session, files: &Files, (bucket, prefix): (&str, &str)) -> Result<Place> {
    let settings: &S3Settings = &files.s3;
    let contents = Contents::open(bucket, prefix, settings, session.host.random())?;
    let pace = session.pace_of_source(files, contents.location())?;
    Ok(Place { contents, pace })
}

/// Restores a backup into a bucket, below a prefix that has no object.
///
/// # Errors
/// `NotFound`; `Refused` when there are objects, also by others meanwhile; `Damaged`; those of both stores.
pub fn restore(session: &Session, wanted: &RestoreWanted, url: &str) -> Result<Restored> {
    let started = Instant::now();
    let place = place(session, url, &wanted.name)?;
    let chosen = choose(session, &wanted.name, &wanted.choice)?;
    chosen.read(session, |open| {
        if let Some(key) = place.contents.first_key()? {
            let shown = key.escape_debug();
            return Err(err!(Refused, "\"{url}\" has objects, such as \"{shown}\"")
                .hint("Nothing was written. Name a prefix without any."));
        }
        let Open { snapshot, tick, .. } = open;
        let part = match wanted.globs.is_empty() {
            true => None,
            false => Some(Part::find(snapshot, &wanted.globs, tick)?),
        };
        let size_bytes = open.root.head.size_bytes;
        let progress = &session.host.progress;
        progress.phase("restore", part.is_none().then_some(size_bytes));
        let writing = Writing {
            session,
            snapshot,
            place: &place,
            entries: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        };
        let left_out = writing.run(part.as_ref(), wanted.jobs.clamp(1, MOST_WRITERS), tick)?;
        Ok(Restored {
            root: open.root.clone(),
            not_stored: open.member["left_out"].clone(),
            extracted: Extracted {
                entries: writing.entries.into_inner(),
                written_bytes: writing.written_bytes.into_inner(),
                left_out,
            },
            took: started.elapsed(),
        })
    })
}

/// An object to be written.
struct Job {
    key: String,
    /// The file that has its content; none of an empty object.
    content: Option<FileKey>,
    length: u64,
    facts: Facts,
}

/// Jobs that several threads take, each job by one of them.
pub struct Queue<J>(Mutex<Receiver<J>>);

impl<J> Queue<J> {
    /// The next job; none where no more come. A thread does `doing` to objects.
    ///
    /// # Errors
    /// `Internal` where a thread panicked.
    pub fn next(&self, doing: &str) -> Result<Option<J>> {
        match self.0.lock() {
            Ok(queue) => Ok(queue.recv().ok()),
            Err(_) => Err(err!(Internal, "a thread that {doing} objects panicked")),
        }
    }
}

/// Starts threads that take jobs; the first one that fails sets `is_over`.
pub fn workers<'s, J: Send + 's, T: Send + 's>(
    threads: &'s Scope<'s, '_>,
    count: usize,
    is_over: &'s AtomicBool,
    work: impl Fn(&Queue<J>) -> Result<T> + Copy + Send + 's,
) -> (SyncSender<J>, Vec<ScopedJoinHandle<'s, Result<T>>>) {
    let (jobs, queue) = sync_channel(QUEUE);
    let queue = Arc::new(Queue(Mutex::new(queue)));
    let spawned = (0..count).map(|_| {
        let queue = Arc::clone(&queue);
        threads.spawn(move || {
            let done = work(&queue);
            is_over.fetch_or(done.is_err(), Ordering::Relaxed);
            done
        })
    });
    (jobs, spawned.collect())
}

/// The data that all threads share.
struct Writing<'w> {
    session: &'w Session,
    snapshot: &'w Snapshot<'w>,
    place: &'w Place,
    entries: AtomicU64,
    written_bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Writing<'_> {
    fn run(
        &self,
        part: Option<&Part>,
        writers: usize,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<LeftOut> {
        std::thread::scope(|threads| {
            let write = |queue: &Queue<Job>| self.write(queue);
            let (jobs, writers) = workers(threads, writers, &self.is_over, write);
            let mut sent = self.send_all(part, &jobs, tick);
            drop(jobs);
            while sent.is_ok() && writers.iter().any(|writer| !writer.is_finished()) {
                sent = tick().and(sent);
                std::thread::sleep(GLANCE);
            }
            self.is_over.fetch_or(sent.is_err(), Ordering::Relaxed);
            for writer in writers {
                let panicked = |_| Err(err!(Internal, "a thread that writes objects panicked"));
                let written = writer.join().unwrap_or_else(panicked);
                let is_cause = sent.as_ref().is_err_and(|e| e.code() == Code::Interrupted);
                if let Err(e) = written
                    && (sent.is_ok() || (is_cause && e.code() != Code::Interrupted))
                {
                    sent = Err(e);
                }
            }
            sent
        })
    }

    /// Sends every entry that a bucket can have; names the others.
    fn send_all(
        &self,
        part: Option<&Part>,
        jobs: &SyncSender<Job>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<LeftOut> {
        let mut left_out = LeftOut::default();
        for item in self.snapshot.items() {
            tick()?;
            let item = item?;
            let Metadata::Node(node) = &item.metadata else {
                return Err(err!(Damaged, "{:?} is no entry of a tree", item.key));
            };
            let is_directory = node.kind == NodeKind::Directory;
            let is_wanted = part.is_none_or(|part| match item.key.is_attachment() {
                true => part.is_named(&item.path, false),
                false => part.takes(&item.path, is_directory),
            });
            if !is_wanted {
                continue;
            }
            match self.job(&item, node)? {
                Ok(Some(job)) => self.send(job, jobs, tick)?,
                Ok(None) => {}
                Err(why) => left_out.add(&item.path, Left::Entry, why),
            }
        }
        Ok(left_out)
    }

    /// The object of an entry; none of a directory for which no object stood. The inner error is why there can be none.
    fn job(&self, item: &Item, node: &Node) -> Result<std::result::Result<Option<Job>, String>> {
        let facts = node.bucket.as_deref().map(serde_json::from_slice::<Facts>);
        let none = |e| err!(Damaged, "{:?} has metadata that is none: {e}", item.key);
        let facts = facts.transpose().map_err(none)?;
        let Ok(key) = std::str::from_utf8(&item.path) else {
            return Ok(Err("no key of a bucket has such bytes".to_owned()));
        };
        let (key, content, length) = match &node.kind {
            NodeKind::File(length) => (key.to_owned(), Some(item.key.clone()), *length),
            NodeKind::Directory if facts.is_none() => return Ok(Ok(None)),
            NodeKind::Directory if key.is_empty() && !self.place.contents.has_prefix() => {
                return Ok(Err("without a prefix it would have no name".to_owned()));
            }
            NodeKind::Directory if key.is_empty() => (String::new(), None, 0),
            NodeKind::Directory => (format!("{key}/"), None, 0),
            NodeKind::HardLink(to) => match self.snapshot.metadata(to)? {
                Some(Metadata::Node(origin)) => match origin.kind {
                    NodeKind::File(length) => (key.to_owned(), Some(to.clone()), length),
                    _ => return Ok(Err("a bucket has files alone".to_owned())),
                },
                _ => return Err(err!(Damaged, "{:?} is another name of nothing", item.key)),
            },
            _ => return Ok(Err("a bucket has files alone".to_owned())),
        };
        match key.len() > KEY_LIMIT_BYTES {
            true => Ok(Err(format!("a key has {KEY_LIMIT_BYTES} bytes at most"))),
            false => Ok(Ok(Some(Job {
                key,
                content,
                length,
                facts: facts.unwrap_or_default(),
            }))),
        }
    }

    fn send(
        &self,
        mut job: Job,
        jobs: &SyncSender<Job>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        loop {
            match jobs.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(again)) if !self.is_over.load(Ordering::Relaxed) => {
                    job = again;
                }
                Err(_) => return Err(err!(Interrupted, "the writers have ended")),
            }
            tick()?;
            std::thread::sleep(GLANCE);
        }
    }

    fn write(&self, queue: &Queue<Job>) -> Result<()> {
        let mut reader = ContentReader::new(self.snapshot);
        while let Some(job) = queue.next("writes")? {
            self.object(&mut reader, &job)?;
        }
        Ok(())
    }

    fn object(&self, reader: &mut ContentReader<'_, '_>, job: &Job) -> Result<()> {
        let contents = &self.place.contents;
        let mut upload = contents.upload(&job.key, &job.facts, job.length, Expected::Nothing);
        if let Some(content) = &job.content {
            reader.read(content, job.length, &mut |bytes| {
                self.session.host.check_stop()?;
                if self.is_over.load(Ordering::Relaxed) {
                    return Err(err!(Interrupted, "the writing was given up"));
                }
                self.place.pace.take(bytes.len());
                upload.append(bytes)?;
                self.session.host.progress.advance(bytes.len() as u64);
                Ok(())
            })?;
        }
        match upload.finish()? {
            Outcome::Stored(_) => {
                self.entries.fetch_add(1, Ordering::Relaxed);
                self.written_bytes.fetch_add(job.length, Ordering::Relaxed);
                Ok(())
            }
            Outcome::Other => Err(err!(
                Refused,
                "another program wrote \"{}\" below \"{}\" meanwhile",
                job.key.escape_debug(),
                contents.location()
            )
            .hint("Its object stays, and so do the objects that were restored before: restore into another prefix.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_what_is_below_it() {
        assert!(is_within("a/b", "a") && is_within("a", "a") && is_within("a", ""));
        assert!(!is_within("ab", "a") && !is_within("", "a"));
    }
}
