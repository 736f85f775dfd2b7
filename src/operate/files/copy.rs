//! Copies from bucket to bucket: by the store itself where it can, else read, written and compared.
//!
//! Objects that are there already are not copied again. Equal marks of the stores tell that, or a note of an earlier run: an object in parts
//! has another mark in each place.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bucket::{self, Place, Queue, is_within, workers};
use super::source;
use crate::backup::sources;
use crate::config::{Location, Source};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::snapshot::sort::{MEMORY_BYTES, Sorter};
use crate::store::s3::contents::{Answer, Copied, Entry, Expected, Facts, Outcome};
use crate::tree::left_out::{LeftOut, Part};

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 8 << 20;
/// Most threads that copy.
const MOST_COPIERS: usize = 8;
/// Differing objects that a plan names.
const SHOWN: usize = 20;

/// A copy that is asked for.
#[derive(Debug, Clone)]
pub struct CopyWanted {
    /// Name of the set of files whose source is copied.
    pub name: String,
    /// The place, `s3://bucket/prefix`.
    pub to: String,
    /// Objects that differ are replaced.
    pub is_confirmed: bool,
    /// Nothing is written.
    pub is_dry_run: bool,
    /// How many threads copy.
    pub jobs: usize,
}

/// A copy that was made, or its plan.
#[derive(Debug, Default, Serialize)]
pub struct CopyDone {
    /// The source.
    pub from: String,
    /// The place.
    pub to: String,
    /// Whether nothing was written, though something is to be.
    pub is_plan: bool,
    /// Objects that the place lacks, or lacked.
    pub new_count: u64,
    /// Objects that differ there, or did.
    pub differing_count: u64,
    /// Some of them.
    pub differing: Vec<String>,
    /// Objects that are there already.
    pub unchanged_count: u64,
    /// Objects that the place has alone, which stay.
    pub other_count: u64,
    /// Bytes of the new and differing ones.
    pub size_bytes: u64,
    /// Objects that were copied.
    pub copied_count: u64,
    /// Those of them that the store copied by itself.
    pub by_store_count: u64,
    /// Objects that could not be copied.
    #[serde(skip)]
    pub left_out: LeftOut,
    /// How long it took.
    #[serde(skip)]
    pub took: Duration,
}

/// Copies the source of a set of files, where it is a bucket, to another place.
///
/// # Errors
/// `Usage` for a source that is no bucket; `Refused` for a place within the source, or around it; those of both stores.
pub fn copy(session: &Session, wanted: &CopyWanted) -> Result<CopyDone> {
    let started = Instant::now();
    let settings = session.settings()?;
    let files = settings.files_named(&wanted.name)?;
    let from = bucket::source(session, files)?;
    let to = bucket::place(session, &wanted.to, &wanted.name)?;
    check_apart(&files.source, (&from, &to), &wanted.to)?;
    let cache = source::cache(session, "copy", &wanted.name)?;
    let _alone = sources::lock(&cache)?;
    let hash = blake3::hash(to.contents.location().as_bytes()).to_hex();
    let notes = cache.join(hash.as_str());
    let mut copying = Copying {
        session,
        from: &from,
        to: &to,
        notes: Mutex::new(None),
        is_streamed: AtomicBool::new(!to.contents.is_beside(&from.contents)),
        by_store: AtomicU64::new(0),
        copied: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    };
    session.host.progress.phase("list", None);
    let (mut done, jobs) = copying.compare(&notes)?;
    done.from = from.contents.location().to_owned();
    done.to = to.contents.location().to_owned();
    let is_idle = done.new_count + done.differing_count == 0;
    done.is_plan = wanted.is_dry_run || (done.differing_count > 0 && !wanted.is_confirmed);
    if !done.is_plan && !is_idle {
        copying.notes = Mutex::new(Some(opened(&notes)?));
        session.host.progress.phase("copy", Some(done.size_bytes));
        done.left_out = copying.run(jobs, wanted.jobs.clamp(1, MOST_COPIERS))?;
    }
    done.copied_count = copying.copied.into_inner();
    done.by_store_count = copying.by_store.into_inner();
    done.took = started.elapsed();
    Ok(done)
}

/// Requires that neither place lies in the other: the next listing would show copies of copies.
fn check_apart(source: &Source, (from, to): (&Place, &Place), url: &str) -> Result<()> {
    let (
        Source::Bucket { bucket, prefix },
        Ok(Location::S3 {
            bucket: other,
            prefix: below,
        }),
    ) = (source, Location::from_url(url))
    else {
        return Ok(());
    };
    let is_one = to.contents.is_beside(&from.contents) && *bucket == other;
    match is_one && (is_within(&below, prefix) || is_within(prefix, &below)) {
        true => Err(err!(
            Refused,
            "\"{}\" and \"{}\" lie in one another",
            from.contents.location(),
            to.contents.location()
        )
        .hint("Nothing was copied. Name a place beside the source.")),
        false => Ok(()),
    }
}

fn opened(notes: &Path) -> Result<File> {
    let mut options = File::options();
    let opened = options.create(true).append(true).mode(0o600).open(notes);
    opened.map_err(|e| Error::from_io(format!("open \"{}\"", notes.display()), e))
}

/// One record about a key: where it was seen, and the marks.
type Record = (char, u64, i64, String, String);

struct Copying<'c> {
    session: &'c Session,
    from: &'c Place,
    to: &'c Place,
    /// Pairs of marks that are of equal content.
    notes: Mutex<Option<File>>,
    /// Whether the store does not copy by itself.
    is_streamed: AtomicBool,
    by_store: AtomicU64,
    copied: AtomicU64,
    is_over: AtomicBool,
}

/// An object to be copied, and what is expected in its place.
struct Job {
    entry: Entry,
    expected: Expected,
}

/// The facts about one key.
#[derive(Default)]
struct Known {
    from: Option<Entry>,
    to: Option<Entry>,
    /// Marks that were noted as those of equal content.
    pairs: Vec<(String, String)>,
}

impl Known {
    fn is_same(&self) -> bool {
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            return false;
        };
        let pair = (from.tag.clone(), to.tag.clone());
        from.size_bytes == to.size_bytes && (from.tag == to.tag || self.pairs.contains(&pair))
    }
}

impl Copying<'_> {
    /// Lays both listings and the notes of earlier runs side by side.
    fn compare(&self, notes: &Path) -> Result<(CopyDone, Sorter)> {
        let scratch = &self.session.host.scratch;
        let mut all = Sorter::new(scratch, MEMORY_BYTES);
        for (sign, place) in [('f', self.from), ('t', self.to)] {
            place.contents.list(&mut |entry| {
                self.session.host.check_stop()?;
                let (key, size, tag) = (entry.key, entry.size_bytes, entry.tag);
                let record: Record = (sign, size, entry.modified, tag, String::new());
                all.push(key.as_bytes(), &packed(&record)?)
            })?;
        }
        let read = File::open(notes).map(BufReader::new).into_iter();
        for line in read.flat_map(BufRead::lines) {
            // A note that a kill cut short is none.
            let note = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let note: Option<(String, String, String)> = note;
            if let Some((key, from, to)) = note {
                all.push(key.as_bytes(), &packed(&('n', 0, 0, from, to))?)?;
            }
        }
        let mut done = CopyDone::default();
        let mut jobs = Sorter::new(scratch, MEMORY_BYTES);
        let mut last: Option<(Vec<u8>, Known)> = None;
        all.drain(&mut |key, record| {
            self.session.host.check_stop()?;
            if let Some((before, known)) = last.take_if(|(before, _)| before != key) {
                decide(&before, known, &mut done, &mut jobs)?;
            }
            let (_, known) = last.get_or_insert_with(|| (key.to_vec(), Known::default()));
            let (sign, entry, other) = unpacked(key, record)?;
            match sign {
                'f' => known.from = Some(entry),
                't' => known.to = Some(entry),
                _ => known.pairs.push((entry.tag, other)),
            }
            Ok(())
        })?;
        if let Some((key, known)) = last {
            decide(&key, known, &mut done, &mut jobs)?;
        }
        Ok((done, jobs))
    }

    fn run(&self, jobs: Sorter, copiers: usize) -> Result<LeftOut> {
        std::thread::scope(|threads| {
            let copy = |queue: &Queue<Job>| self.copy_all(queue);
            let (send, copiers) = workers(threads, copiers, &self.is_over, copy);
            let sent = jobs.drain(&mut |key, record| {
                self.check_stop()?;
                let (_, entry, there) = unpacked(key, record)?;
                let expected = match there.is_empty() {
                    true => Expected::Nothing,
                    false => Expected::Tag(there),
                };
                let job = Job { entry, expected };
                send.send(job)
                    .map_err(|_| err!(Interrupted, "the copiers have ended"))
            });
            drop(send);
            let (mut left_out, mut failure) = (LeftOut::default(), sent.err());
            for copier in copiers {
                let panicked = |_| Err(err!(Internal, "a thread that copies objects panicked"));
                match copier.join().unwrap_or_else(panicked) {
                    Ok(left) => left_out.merge(left),
                    Err(e) => failure = Some(Error::cause(failure.take(), e)),
                }
            }
            failure.map_or(Ok(left_out), Err)
        })
    }

    fn check_stop(&self) -> Result<()> {
        self.session.host.check_stop()?;
        match self.is_over.load(Ordering::Relaxed) {
            true => Err(err!(Interrupted, "the copying was given up")),
            false => Ok(()),
        }
    }

    fn copy_all(&self, queue: &Queue<Job>) -> Result<LeftOut> {
        let mut left_out = LeftOut::default();
        while let Some(job) = queue.next("copies")? {
            self.check_stop()?;
            match self.copy(&job)? {
                Ok(tag) => {
                    self.copied.fetch_add(1, Ordering::Relaxed);
                    self.note(&job.entry, &tag)?;
                }
                Err(why) => left_out.add(job.entry.key.as_bytes(), Part::Entry, why),
            }
        }
        Ok(left_out)
    }

    /// Copies one object; returns its mark in its new place. The inner error is why it was not copied.
    fn copy(&self, job: &Job) -> Result<std::result::Result<String, String>> {
        const REPLACED: &str = "it, or what stands in its place, was replaced meanwhile";
        if !self.is_streamed.load(Ordering::Relaxed) {
            let (from, to) = (&self.from.contents, &self.to.contents);
            match to.copy(from, &job.entry, &job.expected)? {
                Copied::Done(Outcome::Stored(tag)) => {
                    self.by_store.fetch_add(1, Ordering::Relaxed);
                    self.session.host.progress.advance(job.entry.size_bytes);
                    return Ok(Ok(tag));
                }
                Copied::Done(Outcome::Other) | Copied::Changed => {
                    return Ok(Err(REPLACED.to_owned()));
                }
                Copied::Refused(why) => {
                    if !self.is_streamed.swap(true, Ordering::Relaxed) {
                        let text = format!(
                            "the store does not copy by itself, and objects are read and written: {why}"
                        );
                        self.session.note(&text);
                    }
                }
            }
        }
        Ok(match self.stream(job)? {
            Answer::There(Outcome::Stored(tag)) => Ok(tag),
            Answer::There(Outcome::Other) | Answer::Gone | Answer::Changed => {
                Err(REPLACED.to_owned())
            }
            Answer::Refused(why) => Err(why),
        })
    }

    /// Reads an object as it was listed, and writes it.
    fn stream(&self, job: &Job) -> Result<Answer<Outcome>> {
        let Job { entry, expected } = job;
        let facts = match self.from.contents.facts(entry)? {
            Answer::There(facts) => facts,
            Answer::Gone => return Ok(Answer::Gone),
            Answer::Changed => return Ok(Answer::Changed),
            Answer::Refused(why) => return Ok(Answer::Refused(why)),
        };
        let to = &self.to.contents;
        let mut upload = to.upload(&entry.key, &facts, entry.size_bytes, expected.clone());
        let mut at = 0;
        while at < entry.size_bytes {
            self.check_stop()?;
            let length = PIECE_BYTES.min(entry.size_bytes - at);
            let bytes = usize::try_from(length).unwrap_or(usize::MAX);
            self.from.pace.take(bytes);
            let piece = match self.read(entry, (at, length), &facts)? {
                Answer::There(piece) => piece,
                Answer::Gone => return Ok(Answer::Gone),
                Answer::Changed => return Ok(Answer::Changed),
                Answer::Refused(why) => return Ok(Answer::Refused(why)),
            };
            self.to.pace.take(bytes);
            upload.append(&piece)?;
            at += length;
            self.session.host.progress.advance(length);
        }
        upload.finish().map(Answer::There)
    }

    fn read(&self, entry: &Entry, part: (u64, u64), facts: &Facts) -> Result<Answer<bytes::Bytes>> {
        Ok(
            match self.from.contents.read(&entry.key, part, Some(facts))? {
                Answer::There(piece) if piece.size_bytes != entry.size_bytes => Answer::Changed,
                Answer::There(piece) => Answer::There(piece.bytes),
                Answer::Gone => Answer::Gone,
                Answer::Changed => Answer::Changed,
                Answer::Refused(why) => Answer::Refused(why),
            },
        )
    }

    /// Notes the marks of equal content. A lost note costs another copy.
    fn note(&self, entry: &Entry, tag: &str) -> Result<()> {
        let panicked = |_| err!(Internal, "a thread that copies objects panicked");
        let mut notes = self.notes.lock().map_err(panicked)?;
        let (Some(notes), false) = (notes.as_mut(), entry.tag == tag) else {
            return Ok(());
        };
        let line = serde_json::json!([entry.key, entry.tag, tag]).to_string() + "\n";
        let written = notes.write_all(line.as_bytes());
        written.map_err(|e| Error::from_io("note what is copied", e))
    }
}

fn packed(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| err!(Internal, "an object cannot be noted: {e}"))
}

fn unpacked(key: &[u8], record: &[u8]) -> Result<(char, Entry, String)> {
    let read: std::result::Result<Record, _> = serde_json::from_slice(record);
    let (sign, size_bytes, modified, tag, other) =
        read.map_err(|e| err!(Internal, "a note is damaged: {e}"))?;
    let entry = Entry {
        key: String::from_utf8_lossy(key).into_owned(),
        size_bytes,
        modified,
        tag,
    };
    Ok((sign, entry, other))
}

/// Decides about one key.
fn decide(key: &[u8], known: Known, done: &mut CopyDone, jobs: &mut Sorter) -> Result<()> {
    let is_same = known.is_same();
    match (known.from, known.to) {
        (Some(_), Some(_)) if is_same => done.unchanged_count += 1,
        (Some(from), to) => {
            match &to {
                None => done.new_count += 1,
                Some(_) => {
                    done.differing_count += 1;
                    if done.differing.len() < SHOWN {
                        done.differing.push(from.key.clone());
                    }
                }
            }
            done.size_bytes += from.size_bytes;
            let there = to.map(|to| to.tag).unwrap_or_default();
            let record: Record = ('f', from.size_bytes, from.modified, from.tag, there);
            jobs.push(key, &packed(&record)?)?;
        }
        (None, Some(_)) => done.other_count += 1,
        (None, None) => {}
    }
    Ok(())
}
