//! Objects of a bucket. A listing tells which there are and which changed; several threads read those.
//!
//! An object is stored as one version of it, or not at all: each read names the version, and one that is replaced meanwhile is read from its
//! beginning again. A sample that is read again in turn finds what the store's marks hide. One that cannot be read then stays as the prior has it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::keys::Place;
use super::{DIRECTORY_MODE, FILE_MODE};
use crate::backup::files::{Set, member};
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::snapshot::arrived::Arrived;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::kind::{Before, Kind, Produced, Work};
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Moment, Node, NodeKind};
use crate::snapshot::sink::FileSink;
use crate::snapshot::sort::{MEMORY_BYTES, Sorter};
use crate::snapshot::writer::SnapshotWriter;
use crate::store::pace::Pace;
use crate::store::s3::contents::{Answer, Contents, Entry, Facts};
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::selection::Selection;
use crate::tree::turn;
use crate::tree::walk::{self, Sample, Taken};

/// Bytes of one request.
const PIECE_BYTES: u64 = 4 << 20;
/// Objects on their way to the readers.
const QUEUE: usize = 256;
/// How often an object that is replaced meanwhile is read.
const ATTEMPTS: u32 = 3;
/// More JSON about an object no node has (format, section 16.2).
const FACTS_LIMIT_BYTES: usize = 16 << 10;
/// After so many refusals a run asks no more for tags that an earlier one could not read: each question costs a request.
const REFUSALS_MAX: u64 = 10;

/// A bucket, or a prefix in it, as a set of files.
pub struct Bucket {
    pub contents: Contents,
    /// The server, where the configuration names it.
    pub endpoint: Option<String>,
    pub identity: String,
    /// Which of its objects are taken.
    pub selection: Selection,
    /// How many threads read. The writer's options name as many sinks as a walk has.
    pub readers: usize,
    /// The limit of bandwidth.
    pub pace: Arc<Pace>,
    /// Counts, once it was read.
    pub counts: Counts,
    /// The result, once it was read.
    pub taken: Taken,
}

/// Counts of objects that are not simply files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that stand beside the tree.
    pub beside: u64,
    /// Objects that were read though the listing says they are as before.
    pub sample: Sample,
}

impl Kind for Bucket {
    crate::backup::files::of_files!();

    fn takes_changes(&self) -> bool {
        true
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        work.host.progress.phase("copy", None);
        let source = Source {
            bucket: self,
            before: work.prior,
            host: work.host,
            now: work.host.now(),
            arrived: work
                .prior
                .map(|_| Mutex::new(Arrived::new(&work.host.scratch))),
            refusals: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        };
        let (taken, counts) = source.take(work.writer, work.tick)?;
        (self.taken, self.counts) = (taken, counts);
        Ok(Produced {
            incomplete_count: self.taken.left_out.count(Part::Entry),
            member: member(&self.taken, self.facts()),
            ..Produced::default()
        })
    }
}

impl Set for Bucket {
    fn taken(&mut self) -> Taken {
        std::mem::take(&mut self.taken)
    }

    fn facts(&self) -> Option<Value> {
        Some(json!({
            "kind": "s3",
            "url": self.contents.location(),
            "endpoint": self.endpoint,
            "beside_count": self.counts.beside,
            "sampled_count": self.counts.sample.read,
            "silent_count": self.counts.sample.silent,
        }))
    }

    fn warnings(&self) -> Vec<String> {
        self.counts.sample.warnings(
            "objects",
            "have other content than before, and the store says that nothing changed; they were stored as they are now",
            "are archived or may not be read; the backup has the content of the one before",
        )
    }
}

/// The data that all threads share.
struct Source<'a> {
    bucket: &'a Bucket,
    before: Option<Before<'a>>,
    host: &'a Host,
    now: TimestampTz,
    /// The names that were met, where there is a prior.
    arrived: Option<Mutex<Arrived>>,
    /// Refusals of tags that an earlier run could not read either.
    refusals: AtomicU64,
    /// Set when everything has to end.
    is_over: AtomicBool,
}

/// An object to be read.
struct Wanted {
    key: FileKey,
    entry: Entry,
    /// The object that the prior has, where the listing says that this is the same.
    known: Option<Known>,
}

/// The prior's version of an object.
struct Known {
    hash: Option<[u8; 32]>,
    facts: Facts,
    /// Whether it is its turn to be read. Else its tags could not be read, and are asked for again.
    is_due: bool,
}

impl Source<'_> {
    fn check_stop(&self) -> Result<()> {
        self.host.check_stop()?;
        match self.is_over.load(Ordering::Relaxed) {
            true => Err(err!(Interrupted, "the reading was given up")),
            false => Ok(()),
        }
    }

    fn meet(&self, key: &FileKey) -> Result<()> {
        match self.arrived.as_ref().map(Mutex::lock) {
            None => Ok(()),
            Some(Ok(mut arrived)) => arrived.add(key),
            Some(Err(_)) => Err(panicked()),
        }
    }

    fn known(&self, key: &FileKey) -> Result<Option<Box<Node>>> {
        let Some(before) = &self.before else {
            return Ok(None);
        };
        Ok(match before.snapshot.metadata(key)? {
            Some(Metadata::Node(node)) => Some(node),
            _ => None,
        })
    }

    /// Reads everything, and hears the caller all the while.
    fn take(
        mut self,
        writer: &SnapshotWriter<'_>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Taken, Counts)> {
        let work = || self.take_with(writer);
        let reader = "a thread that reads objects";
        let (mut taken, mut counts) = walk::heard(work, &self.is_over, tick, reader)?;
        counts.sample = taken.sample;
        taken.reused_bytes = writer.reused_bytes();
        if let (Some(arrived), Some(before)) = (self.arrived.take(), &self.before) {
            let arrived = arrived.into_inner().map_err(|_| panicked())?;
            let sink = writer.sink();
            arrived.finish(before.snapshot, Naming::Tree, &sink, tick)?;
            sink.finish()?;
        }
        Ok((taken, counts))
    }

    /// Lists, and reads objects with several threads.
    fn take_with(&self, writer: &SnapshotWriter<'_>) -> Result<(Taken, Counts)> {
        let sink = writer.sink();
        std::thread::scope(|threads| {
            let (wanted, queue) = sync_channel(QUEUE);
            // The readers alone hold the queue's end: the walk ends when all of them have.
            let queue = Arc::new(Mutex::new(queue));
            let readers: Vec<_> = (0..self.bucket.readers.max(1))
                .map(|_| {
                    let reader = Reader::new(self, writer.sink());
                    let queue = Arc::clone(&queue);
                    threads.spawn(move || {
                        let read = reader.run(&queue);
                        // The others have no reason to go on.
                        self.is_over.fetch_or(read.is_err(), Ordering::Relaxed);
                        read
                    })
                })
                .collect();
            drop(queue);
            let listed = Walk::new(self, sink, wanted).run();
            match (walk::joined(readers, "objects"), listed) {
                // The listing ends by the readers' end, and not the other way round.
                (Err(e), Ok(_)) => Err(e),
                (Err(e), Err(listed)) if listed.code() == Code::Interrupted => Err(e),
                (_, Err(listed)) => Err(listed),
                (Ok(mut sum), Ok((walked, counts))) => {
                    sum.left_out.merge(walked.left_out);
                    sum.excluded = walked.excluded;
                    sum.excluded_by_state = walked.excluded_by_state;
                    sum.unchanged += walked.unchanged;
                    Ok((sum, counts))
                }
            }
        })
    }
}

fn panicked() -> crate::error::Error {
    err!(Internal, "a thread that reads objects panicked")
}

/// A directory whose objects are passing.
#[derive(Default)]
struct Level {
    path: Vec<u8>,
    /// Time of the newest object below it.
    newest: i64,
    /// The object that stands for it, where there is one.
    marker: Option<Entry>,
    is_excluded: bool,
}

/// The thread that lists.
struct Walk<'w, 't> {
    source: &'w Source<'w>,
    sink: FileSink<'t>,
    wanted: SyncSender<Wanted>,
    /// The root, and each directory on the way to the last object.
    open: Vec<Level>,
    taken: Taken,
    counts: Counts,
}

impl<'w, 't> Walk<'w, 't> {
    fn new(source: &'w Source<'w>, sink: FileSink<'t>, wanted: SyncSender<Wanted>) -> Walk<'w, 't> {
        Walk {
            source,
            sink,
            wanted,
            open: vec![Level::default()],
            taken: Taken::default(),
            counts: Counts::default(),
        }
    }

    fn run(mut self) -> Result<(Taken, Counts)> {
        let mut sorter = Sorter::new(&self.source.host.scratch, MEMORY_BYTES);
        self.source.bucket.contents.list(&mut |entry| {
            self.source.check_stop()?;
            let order = Place::of(&entry.key, entry.size_bytes).order();
            let Entry {
                key,
                size_bytes,
                modified,
                tag,
            } = entry;
            let record = serde_json::to_vec(&(key, size_bytes, modified, tag));
            let record = record.map_err(|e| err!(Internal, "an object cannot be noted: {e}"))?;
            sorter.push(&order, &record)
        })?;
        let mut before: Option<(Place, Entry)> = None;
        sorter.drain(&mut |_, record| {
            self.source.check_stop()?;
            let read = serde_json::from_slice::<(String, u64, i64, String)>(record);
            let (key, size_bytes, modified, tag) =
                read.map_err(|e| err!(Internal, "a note of an object is damaged: {e}"))?;
            let entry = Entry {
                key,
                size_bytes,
                modified,
                tag,
            };
            let place = Place::of(&entry.key, size_bytes);
            if let Some((last, entry)) = before.take() {
                self.settle(last, Some(&place), entry)?;
            }
            before = Some((place, entry));
            Ok(())
        })?;
        if let Some((last, entry)) = before {
            self.settle(last, None, entry)?;
        }
        while let Some(level) = self.open.pop() {
            self.close(level)?;
        }
        self.sink.finish()?;
        Ok((self.taken, self.counts))
    }

    /// Takes an object, of which `next` follows in order.
    fn settle(&mut self, place: Place, next: Option<&Place>, entry: Entry) -> Result<()> {
        let is_above = next.is_some_and(|next| place.is_above(next));
        let selection = &self.source.bucket.selection;
        match place {
            Place::File(path) if !is_above => {
                let is_out =
                    self.enter(above(&path))? || selection.excludes(&path, false).is_some();
                if is_out || selection.is_too_large(entry.size_bytes) {
                    self.taken.excluded += 1;
                    if !is_out {
                        self.taken.excluded_by_state.add(&path);
                    }
                    return Ok(());
                }
                self.see(entry.modified);
                self.file(FileKey::from_path(&path, Naming::Tree)?, entry)
            }
            Place::Directory(path) => {
                if self.enter(&path)? {
                    self.taken.excluded += 1;
                    return Ok(());
                }
                self.see(entry.modified);
                if let Some(level) = self.open.last_mut() {
                    level.marker = Some(entry);
                }
                Ok(())
            }
            Place::File(key) | Place::Beside(key) => {
                let is_out = selection.excludes_key(&key);
                if is_out || selection.is_too_large(entry.size_bytes) {
                    self.taken.excluded += 1;
                    if !is_out {
                        self.taken.excluded_by_state.add(&key);
                    }
                    return Ok(());
                }
                let Ok(place) = FileKey::attachment(&key) else {
                    let why = "no backup has an object of this key";
                    return self.taken.left_out.leave(&key, Part::Entry, why);
                };
                self.counts.beside += 1;
                self.file(place, entry)
            }
        }
    }

    fn see(&mut self, modified: i64) {
        if let Some(level) = self.open.last_mut() {
            level.newest = level.newest.max(modified);
        }
    }

    /// Opens the directories on the way to `path`, itself one, and closes the others; returns whether a rule leaves it out.
    fn enter(&mut self, path: &[u8]) -> Result<bool> {
        while let Some(level) = self.open.pop_if(|level| !is_within(path, &level.path)) {
            self.close(level)?;
        }
        let last = self.open.last();
        let mut is_excluded = last.is_some_and(|level| level.is_excluded);
        let mut at = last.map_or(0, |level| level.path.len());
        let rest = path.get(at..).unwrap_or_default();
        for part in rest.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            at += part.len() + usize::from(at > 0);
            let below = path.get(..at).unwrap_or(path);
            let selection = &self.source.bucket.selection;
            is_excluded |= selection.excludes(below, true).is_some();
            self.open.push(Level {
                path: below.to_vec(),
                is_excluded,
                ..Level::default()
            });
        }
        Ok(is_excluded)
    }

    /// Records a directory: nothing below it follows.
    fn close(&mut self, level: Level) -> Result<()> {
        if level.is_excluded {
            return Ok(());
        }
        self.see(level.newest);
        let key = FileKey::from_path(&level.path, Naming::Tree)?;
        let known = self.source.known(&key)?;
        let mut node = Node::new(NodeKind::Directory, DIRECTORY_MODE, moment(level.newest));
        if let Some(marker) = &level.marker {
            let same = known.as_ref().and_then(|known| same(known, marker));
            node.bucket = match (&known, same) {
                (Some(known), Some(facts)) => {
                    name_lack(&mut self.taken.left_out, &level.path, &facts);
                    known.bucket.clone()
                }
                _ => self.marker(&level.path, marker)?,
            };
        }
        self.source.meet(&key)?;
        match known {
            Some(known) if *known == node => Ok(()),
            _ => self.sink.node(&key, node),
        }
    }

    /// The metadata of an object that stands for a directory.
    fn marker(&mut self, path: &[u8], entry: &Entry) -> Result<Option<Vec<u8>>> {
        let left_out = &mut self.taken.left_out;
        match self.source.bucket.contents.facts(entry)? {
            Answer::There(facts) => Ok(Some(noted(facts, path, left_out)?)),
            Answer::Gone | Answer::Changed => Ok(None),
            Answer::Refused(why) => {
                left_out.add(entry.key.as_bytes(), Part::Xattr, why);
                Ok(None)
            }
        }
    }

    /// Sends an object to the readers, unless the prior has it whole as it is listed and it is not its turn.
    fn file(&mut self, key: FileKey, entry: Entry) -> Result<()> {
        let kind = NodeKind::File(entry.size_bytes);
        let known = self.source.known(&key)?.filter(|known| known.kind == kind);
        let facts = known.as_ref().and_then(|known| same(known, &entry));
        let known = match known.zip(facts) {
            Some((node, facts)) => {
                let since = self.source.before.map(|before| before.start_time);
                let round = fault::shortened(turn::ROUND);
                let is_due = |since| turn::is_due(key.as_bytes(), (since, self.source.now), round);
                let is_due = since.is_some_and(is_due);
                if !is_due {
                    name_lack(&mut self.taken.left_out, entry.key.as_bytes(), &facts);
                }
                if !is_due && !facts.lacks_tags {
                    self.taken.unchanged += 1;
                    return self.source.meet(&key);
                }
                Some(Known {
                    hash: node.blake3,
                    facts,
                    is_due,
                })
            }
            None => None,
        };
        let sent = self.wanted.send(Wanted { key, entry, known });
        sent.map_err(|_| err!(Interrupted, "the readers have ended"))
    }
}

/// Whether `path` is this directory, or lies below it.
fn is_within(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn above(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

fn moment(seconds: i64) -> Moment {
    Moment {
        seconds,
        nanoseconds: 0,
    }
}

/// Returns what a node tells of an object, where it is of the version that a listing shows.
fn same(known: &Node, entry: &Entry) -> Option<Facts> {
    let facts = serde_json::from_slice::<Facts>(known.bucket.as_deref()?).ok()?;
    let is_version = facts.etag == entry.tag && facts.modified == entry.modified;
    (known.unstable == 0 && is_version).then_some(facts)
}

/// Names an object again whose metadata no backup has, as long as it is the same.
fn name_lack(left_out: &mut LeftOut, name: &[u8], facts: &Facts) {
    if facts.lacks_metadata {
        let why = "its metadata is larger than a backup can keep";
        left_out.add(name, Part::Xattr, why);
    }
}

/// JSON of what is known about an object. Metadata that no node has room for is left out, and named.
fn noted(facts: Facts, path: &[u8], left_out: &mut LeftOut) -> Result<Vec<u8>> {
    let json = |facts: &Facts| {
        serde_json::to_vec(facts).map_err(|e| err!(Internal, "metadata cannot be noted: {e}"))
    };
    let whole = json(&facts)?;
    if whole.len() <= FACTS_LIMIT_BYTES {
        return Ok(whole);
    }
    let why = format!(
        "its metadata has {} bytes of JSON, and {FACTS_LIMIT_BYTES} are kept",
        whole.len()
    );
    left_out.add(path, Part::Xattr, why);
    json(&Facts {
        etag: facts.etag,
        modified: facts.modified,
        lacks_metadata: true,
        ..Facts::default()
    })
}

/// A thread that reads objects.
struct Reader<'r, 't> {
    source: &'r Source<'r>,
    sink: FileSink<'t>,
    taken: Taken,
}

impl<'r, 't> Reader<'r, 't> {
    fn new(source: &'r Source<'r>, sink: FileSink<'t>) -> Reader<'r, 't> {
        Reader {
            source,
            sink,
            taken: Taken::default(),
        }
    }

    fn run(mut self, queue: &Mutex<Receiver<Wanted>>) -> Result<Taken> {
        while let Some(wanted) = walk::next(queue, "reads objects")? {
            self.object(&wanted)?;
        }
        self.sink.finish()?;
        Ok(self.taken)
    }

    /// Takes an object in one version. One that is gone by now is passed over, as if it had not been listed.
    fn object(&mut self, wanted: &Wanted) -> Result<()> {
        let name = wanted.entry.key.as_bytes();
        if let Some(known) = &wanted.known {
            if !known.is_due && self.lacks_tags_still(wanted, &known.facts)? {
                return Ok(());
            }
            self.taken.sample.read += 1;
        }
        for _ in 0..ATTEMPTS {
            self.source.check_stop()?;
            match self.version(wanted)? {
                Answer::There(()) => return Ok(()),
                Answer::Gone => {
                    self.sink.abandon();
                    return Ok(());
                }
                Answer::Changed => self.sink.abandon(),
                Answer::Refused(why) => {
                    self.sink.abandon();
                    // The listing says that the prior has it as it is.
                    if let Some(known) = &wanted.known {
                        self.taken.sample.unread += 1;
                        name_lack(&mut self.taken.left_out, name, &known.facts);
                        return self.keep(wanted);
                    }
                    return self.taken.left_out.leave(name, Part::Entry, why);
                }
            }
        }
        let why = format!("it was replaced each of the {ATTEMPTS} times it was read");
        self.taken.left_out.leave(name, Part::Entry, why)
    }

    /// Leaves an object as the prior has it.
    fn keep(&mut self, wanted: &Wanted) -> Result<()> {
        self.taken.unchanged += 1;
        self.source.meet(&wanted.key)
    }

    /// Asks for tags that an earlier run could not read, and named. While they are refused, the object stays as the prior has it.
    fn lacks_tags_still(&mut self, wanted: &Wanted, facts: &Facts) -> Result<bool> {
        self.source.check_stop()?;
        let (refusals, key) = (&self.source.refusals, &wanted.entry.key);
        let answer = match refusals.load(Ordering::Relaxed) < REFUSALS_MAX {
            true => self.source.bucket.contents.tags(key, facts)?,
            false => Answer::Refused("they were refused of others in this run".to_owned()),
        };
        if !matches!(answer, Answer::Refused(_)) {
            return Ok(false);
        }
        refusals.fetch_add(1, Ordering::Relaxed);
        self.keep(wanted)?;
        Ok(true)
    }

    fn version(&mut self, wanted: &Wanted) -> Result<Answer<()>> {
        let Wanted { key, entry, known } = wanted;
        let mut hasher = blake3::Hasher::new();
        let mut facts: Option<(Facts, u32)> = None;
        let (mut at, mut size) = (0, entry.size_bytes);
        self.sink.begin_shared(key.clone())?;
        while facts.is_none() || at < size {
            self.source.check_stop()?;
            let length = PIECE_BYTES.min(size.saturating_sub(at).max(1));
            self.source
                .bucket
                .pace
                .take(usize::try_from(length).unwrap_or(usize::MAX));
            let version = facts.as_ref().map(|(facts, _)| facts);
            let read = self
                .source
                .bucket
                .contents
                .read(&entry.key, (at, length), version)?;
            let piece = match read {
                Answer::There(piece) => piece,
                Answer::Gone if facts.is_some() => return Ok(Answer::Changed),
                Answer::Gone => return Ok(Answer::Gone),
                Answer::Changed => return Ok(Answer::Changed),
                Answer::Refused(why) => return Ok(Answer::Refused(why)),
            };
            if facts.is_some() && piece.size_bytes != size {
                return Ok(Answer::Changed);
            }
            size = piece.size_bytes;
            hasher.update(&piece.bytes);
            self.sink.append(&piece.bytes)?;
            at += piece.bytes.len() as u64;
            self.taken.read_bytes += piece.bytes.len() as u64;
            self.source.host.progress.advance(piece.bytes.len() as u64);
            facts.get_or_insert((piece.facts, piece.tag_count));
        }
        let Some((mut facts, tags)) = facts else {
            return Ok(Answer::Changed);
        };
        // AWS counts tags only for who may read them.
        let had_tags = |k: &Known| !k.facts.tags.is_empty() || k.facts.lacks_tags;
        let may_have_tags = tags > 0 || known.as_ref().is_some_and(had_tags);
        match self.tags(entry, &facts, may_have_tags)? {
            Answer::There(tags) => facts.tags = tags,
            Answer::Gone | Answer::Changed => return Ok(Answer::Changed),
            Answer::Refused(why) => {
                // Those of this version that the prior has are better than none.
                if let Some(known) = known.as_ref().filter(|k| k.facts.etag == facts.etag) {
                    facts.tags.clone_from(&known.facts.tags);
                }
                facts.lacks_tags = true;
                let why = format!("its tags: {why}");
                self.taken
                    .left_out
                    .add(entry.key.as_bytes(), Part::Xattr, why);
            }
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let is_as_listed = facts.etag == entry.tag;
        let was = known.as_ref().and_then(|known| known.hash);
        if is_as_listed && was.is_some_and(|was| was != hash) {
            self.taken.sample.silent += 1;
        }
        let mut node = Node::new(NodeKind::File(0), FILE_MODE, moment(facts.modified));
        node.bucket = Some(noted(
            facts,
            entry.key.as_bytes(),
            &mut self.taken.left_out,
        )?);
        node.blake3 = Some(hash);
        self.taken.read += 1;
        self.source.meet(key)?;
        if self.source.before.is_some() {
            // Bytes of this key in older layers count no more.
            self.sink.limit(key, 0)?;
        }
        self.sink.end_node(node)?;
        Ok(Answer::There(()))
    }

    fn tags(
        &self,
        entry: &Entry,
        facts: &Facts,
        may_have_tags: bool,
    ) -> Result<Answer<BTreeMap<String, String>>> {
        match may_have_tags {
            false => Ok(Answer::There(BTreeMap::new())),
            true => self.source.bucket.contents.tags(&entry.key, facts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_what_is_below_it() {
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"", b"a"));
        assert_eq!((above(b"a/b/c"), above(b"a")), (&b"a/b"[..], &b""[..]));
    }

    #[test]
    fn metadata_without_room_is_marked_as_lacking() {
        let mut left_out = LeftOut::default();
        let of = |bytes: usize, left_out: &mut LeftOut| {
            let facts = Facts {
                etag: "tag".to_owned(),
                metadata: [("x".to_owned(), "y".repeat(bytes))].into(),
                ..Facts::default()
            };
            let json = noted(facts, b"key", left_out).unwrap();
            serde_json::from_slice::<Facts>(&json).unwrap()
        };
        assert!(!of(100, &mut left_out).lacks_metadata);
        assert_eq!(left_out.total(), 0);
        let lacking = of(FACTS_LIMIT_BYTES, &mut left_out);
        assert!(lacking.lacks_metadata && lacking.metadata.is_empty());
        assert_eq!((lacking.etag.as_str(), left_out.total()), ("tag", 1));
    }
}
