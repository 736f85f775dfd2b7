//! One WAL file into one repository.
//!
//! Order: header checked → content streamed through hash, decoder and compressor into an invisible object → object synced, named,
//! directory synced → read back, unless the store's answer has confirmed the bytes. Success is reported only behind the last step. A name that is taken holds either the same content
//! (made durable again, then success) or other content (the original stays, the refused copy goes to `conflicts/`).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::datadir::DataDirectory;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::label::BackupHistory;
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::timeline::{History, TimelineId};
use crate::repo::container::{self, Codec, Container, ContainerWriter, Identity, Kind};
use crate::repo::index::{self, SegmentIndex, flag};
use crate::repo::indexer::Indexer;
use crate::repo::layout::{self, ClusterLayout};
use crate::repo::repository::{Registration, Repository};
use crate::repo::tail;
use crate::store::{Key, NewObject, Object, Published};

/// What pushing a file came to. Both mean: durable in this repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The file is new here.
    Stored,
    /// The same content was here before.
    AlreadyThere,
}

/// Something that does not stop archiving but should be known.
pub type Warnings = Vec<String>;

/// What to push and where it belongs.
pub struct Push<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a str,
    /// Where the file is read.
    pub path: &'a Path,
    /// Its name as PostgreSQL knows it.
    pub name: WalFileName,
    /// How the body is compressed.
    pub codec: Codec,
    /// Whether other files are pushed meanwhile: then one thread does all of the work, which costs less processor time; else two are done
    /// sooner.
    pub beside_others: bool,
}

/// Bytes read at once; a multiple of every WAL page size.
const CHUNK: usize = 256 << 10;
const SMALL_FILE_MAX: u64 = 1 << 20;

/// Puts one WAL file into the repository under its own name.
///
/// # Errors
/// `SourceMissing`, `SourceSize`, `SourceHeader`, `SourceChanged` for a file that cannot be archived; `WrongCluster` when its system
/// identifier is not registered; `Conflict` or `TimelineReused` when the name holds other bytes; `Clone` for a restored copy; what the
/// store says. In every error case PostgreSQL keeps the file and offers it again.
///
/// PostgreSQL: src/include/access/xlog_internal.h (names), contrib/basic_archive/basic_archive.c (the rule for repeats).
pub fn push(what: &Push<'_>) -> Result<(Pushed, Warnings)> {
    DataDirectory::of_wal_file(what.path).check_guard()?;
    let source = Source::open(what.path)?;
    push_content(what, source)
}

/// Whether the file's name is taken in the repository, by whatever content. Nothing is written.
///
/// # Errors
/// Those of [`push`] for a file or a repository of which that cannot be said.
pub fn is_taken(what: &Push<'_>) -> Result<bool> {
    let mut source = Source::open(what.path)?;
    let key = match what.name {
        WalFileName::Segment(name) => settled(what, &mut source, name, false)?.key(),
        WalFileName::Partial(name) => settled(what, &mut source, name, true)?.key(),
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => {
            layout_of(what)?.wal_file(what.name)
        }
    };
    Ok(what.repository.store().head(&key)?.is_some())
}

/// As [`push`], of content that lies in no file of that name; `what.path` only tells where it comes from.
///
/// # Errors
/// Those of [`push`], and of `content`.
pub fn push_content(what: &Push<'_>, mut content: impl Content) -> Result<(Pushed, Warnings)> {
    match what.name {
        WalFileName::Segment(name) => push_wal(what, &mut content, name, false),
        WalFileName::Partial(name) => push_wal(what, &mut content, name, true),
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => {
            push_small(what, &mut content)
        }
    }
    .map_err(|e| e.context(format!("could not archive \"{}\"", what.name)))
}

/// Puts a timeline's history file, as the server gave it, into the repository.
///
/// # Errors
/// `SourceHeader` when it is none; `TimelineReused` when another history is stored under the number; else those of [`push`].
pub fn push_history(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
    content: &[u8],
) -> Result<Pushed> {
    let name = WalFileName::History(timeline);
    put_small(repository, layout, name, content)
        .map(|(pushed, _)| pushed)
        .map_err(|e| e.context(format!("could not archive \"{name}\"")))
}

/// The raw content of one WAL file, from wherever it is read.
pub trait Content {
    /// Its length.
    fn size(&self) -> u64;
    /// Reads on, and fills `buffer` unless the content ends: 0 at its end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize>;
    /// Goes back to the beginning.
    fn rewind(&mut self) -> Result<()>;
    /// The last bytes, where the marker of a padded tail would be; reading goes on where it was.
    fn last(&self) -> Result<[u8; tail::LONG]>;
    /// What has been read is still what is there.
    fn check_unchanged(&self) -> Result<()>;
}

/// The file being archived, with what it looked like when it was opened.
struct Source {
    file: File,
    size: u64,
    modified: (i64, i64),
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        let shown = path.display();
        let missing = |e: std::io::Error| {
            let hint = if e.kind() == std::io::ErrorKind::PermissionDenied {
                "PostgreSQL keeps the file. Run the command as the server's user."
            } else {
                "archive_command must pass %p, the path, not %f, the name."
            };
            err!(SourceMissing, "could not open file \"{shown}\"")
                .source(e)
                .hint(hint)
        };
        // Opening a fifo without O_NONBLOCK would hang.
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(missing)?;
        let metadata = file.metadata().map_err(missing)?;
        if !metadata.is_file() {
            return Err(err!(SourceMissing, "\"{shown}\" is not a regular file"));
        }
        Ok(Source {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            file,
        })
    }
}

impl Content for Source {
    fn size(&self) -> u64 {
        self.size
    }

    fn check_unchanged(&self) -> Result<()> {
        let metadata = self
            .file
            .metadata()
            .map_err(|e| err!(SourceMissing, "could not look at the file again").source(e))?;
        if metadata.len() != self.size || (metadata.mtime(), metadata.mtime_nsec()) != self.modified
        {
            return Err(err!(SourceChanged, "the file changed while it was read")
                .hint("Nothing was stored; PostgreSQL offers the file again. Another program writes into pg_wal."));
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(err!(SourceMissing, "could not read the file").source(e)),
            }
        }
        Ok(filled)
    }

    fn rewind(&mut self) -> Result<()> {
        use std::io::Seek;
        self.file
            .rewind()
            .map_err(|e| err!(SourceMissing, "could not read the file again").source(e))
    }

    /// The last bytes of the file, where the marker of a padded tail would be.
    fn last(&self) -> Result<[u8; tail::LONG]> {
        use std::os::unix::fs::FileExt;
        let mut last = [0; tail::LONG];
        self.file
            .read_exact_at(&mut last, self.size.saturating_sub(tail::LONG as u64))
            .map_err(|e| err!(SourceMissing, "could not read the file").source(e))?;
        Ok(last)
    }
}

/// A segment or partial whose header was checked.
struct Checked {
    layout: ClusterLayout,
    wal: WalIdentity,
    name: WalFileName,
    segment: SegmentName,
    /// Where the segment ends.
    end: Lsn,
    is_partial: bool,
    is_marked: bool,
}

impl Checked {
    fn key(&self) -> Key {
        self.layout.wal_file(self.name)
    }
}

fn push_wal(
    what: &Push<'_>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<(Pushed, Warnings)> {
    let checked = settled(what, source, segment, is_partial)?;
    let key = checked.key();
    if what.repository.looks_first()
        && let Some(object) = what.repository.store().open(&key)?
    {
        what.repository.found_taken(true);
        return already_there(what, source, &checked, &key, object);
    }
    let (published, identity, index) = store_wal(what, source, &checked, &key)?;
    what.repository.found_taken(published == Published::Exists);
    match published {
        Published::Created => {
            read_back(what.repository, &key, &identity)?;
            Ok((Pushed::Stored, warnings(&checked, &index)))
        }
        // Another process stored the name meanwhile.
        Published::Exists => match what.repository.store().open(&key)? {
            Some(object) => already_there(what, source, &checked, &key, object),
            None => Err(err!(Unreachable, "object \"{key}\" came and went")),
        },
    }
}

/// Header and name checked, and under which name it belongs.
fn settled(
    what: &Push<'_>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<Checked> {
    let mut checked = check_header(what, source, segment, is_partial)?;
    check_timeline(what, &checked)?;
    if checked.is_marked && !is_partial {
        settle_marked(what, &mut checked)?;
    }
    Ok(checked)
}

/// WAL of a timeline must be that of the history which the repository has of it. Two copies of a cluster take the same number when both
/// are promoted, and the names of their segments do not tell.
fn check_timeline(what: &Push<'_>, checked: &Checked) -> Result<()> {
    let timeline = checked.segment.timeline;
    if timeline == TimelineId::FIRST {
        return Ok(());
    }
    let Some(known) = sound_history(what.repository, &checked.layout, timeline)? else {
        return Ok(());
    };
    let is_before = known
        .parent()
        .is_some_and(|(_, begin)| checked.end <= begin);
    let own = DataDirectory::of_wal_file(what.path)
        .wal()
        .join(timeline.history_file_name());
    let own = std::fs::read(own).ok();
    let own = own.and_then(|content| History::parse(timeline, &content).ok());
    if !is_before && own.is_none_or(|own| is_same_history(&own, &known)) {
        return Ok(());
    }
    Err(err!(
        TimelineReused,
        "it belongs to another timeline {} than the repository's",
        timeline.decimal()
    )
    .hint("Nothing was stored. Two servers were promoted to the same timeline number: see \"pitr wal conflicts\", stop the one that is not the cluster's, or give it a name of its own with \"pitr adopt --as NAME\"."))
}

/// Without a key the reasons in a history are not known.
fn is_same_history(own: &History, known: &History) -> bool {
    let (own, known) = (own.ancestors(), known.ancestors());
    own.len() == known.len()
        && own.iter().zip(known).all(|(own, known)| {
            (own.timeline, own.switch_lsn) == (known.timeline, known.switch_lsn)
                && (own.reason == known.reason || known.reason.is_empty())
        })
}

fn check_header(
    what: &Push<'_>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<Checked> {
    let mut first = [0; 40];
    let n = source.read(&mut first)?;
    source.rewind()?;
    if n < first.len() {
        return Err(err!(
            SourceSize,
            "the file has {} bytes, less than the header of a segment (expected e.g. {})",
            source.size(),
            SegmentSize::DEFAULT.bytes()
        )
        .hint("Nothing was stored. The file was cut: check the disk; take a base backup from a standby if the server cannot write it again."));
    }
    let header = |e: Error| {
        e.with_code(Code::SourceHeader).hint(
            "Nothing was stored. The file does not hold what its name says: check the disk, and take a base backup from a standby.",
        )
    };
    let wal = WalIdentity::read(&first).map_err(header)?;
    if source.size() != wal.segment_size.bytes() {
        return Err(err!(
            SourceSize,
            "the file has {} bytes, expected {}",
            source.size(),
            wal.segment_size.bytes()
        )
        .hint("Nothing was stored; PostgreSQL offers the file again. Check the disk of pg_wal."));
    }
    wal.matches(segment).map_err(header)?;
    let layout = ClusterLayout::new(what.cluster, wal.system_identifier)?;
    let registration = what.repository.require(&layout)?;
    check_sizes(&registration, &wal)?;
    let end = wal.start_lsn.0.checked_add(wal.segment_size.bytes());
    let end = end.map(Lsn).ok_or_else(|| {
        header(err!(
            SourceHeader,
            "the segment lies behind the last position that WAL can have"
        ))
    })?;
    let is_marked = tail::is_marked(
        &source.last()?,
        end,
        wal.system_identifier,
        segment.timeline.get(),
    );
    Ok(Checked {
        layout,
        wal,
        name: what.name,
        segment,
        end,
        is_partial,
        is_marked,
    })
}

fn check_sizes(registration: &Registration, wal: &WalIdentity) -> Result<()> {
    if wal.segment_size.bytes() != registration.segment_size_bytes {
        return Err(err!(
            SourceSize,
            "the segment has {} bytes, cluster \"{}\" is registered with {}",
            wal.segment_size.bytes(),
            registration.name,
            registration.segment_size_bytes
        )
        .hint("Nothing was stored. After pg_resetwal --wal-segsize the same name means another position: archive into a new repository or under a new cluster name."));
    }
    if wal.page_size != registration.wal_block_size_bytes {
        return Err(err!(
            SourceHeader,
            "WAL pages of {} bytes are not supported, only {}",
            wal.page_size,
            registration.wal_block_size_bytes
        ));
    }
    Ok(())
}

/// A tail that pitr-restore padded: refused, unless its timeline ended inside it and so it will never be complete.
fn settle_marked(what: &Push<'_>, checked: &mut Checked) -> Result<()> {
    let refused = || {
        err!(SourceHeader, "the segment is a tail that was padded when it was restored")
            .hint("Nothing was stored, for the segment will be complete later; PostgreSQL offers it again.")
    };
    let ends_here = |history: &History| {
        history
            .switch_point(checked.segment.timeline)
            .is_some_and(|lsn| lsn > checked.wal.start_lsn && lsn < checked.end)
    };
    let mut ended = false;
    for timeline in timelines(what, &checked.layout)? {
        if timeline > checked.segment.timeline {
            ended |= read_history(what.repository, &checked.layout, timeline)?
                .is_some_and(|h| ends_here(&h));
        }
    }
    ended |= local_histories(what.path).iter().any(ends_here);
    if !ended {
        return Err(refused());
    }
    checked.name = WalFileName::Partial(checked.segment);
    checked.is_partial = true;
    Ok(())
}

/// Timelines that the repository has a history file of.
fn timelines(what: &Push<'_>, layout: &ClusterLayout) -> Result<Vec<TimelineId>> {
    let listed = what.repository.store().list(&layout.wal())?;
    Ok(listed.iter().filter_map(|l| l.name.parse().ok()).collect())
}

/// The history of a timeline, for who compares with it; one that is damaged compares with nothing. Verify tells of that, and nobody else waits
/// for it to be mended.
///
/// # Errors
/// Those of [`read_history`], apart from damage.
pub fn sound_history(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<Option<History>> {
    let read = || read_history(repository, layout, timeline);
    match repository.history(layout, timeline, read) {
        Err(e) if e.code() == Code::Damaged => Ok(None),
        read => read,
    }
}

/// A timeline's history in the repository; `None` when it is not there.
pub fn read_history(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<Option<History>> {
    let key = layout.history(timeline);
    let Some(object) = repository.store().open(&key)? else {
        return Ok(None);
    };
    let read = || -> Result<History> {
        let container = Container::open(object)?;
        container.history(timeline, SMALL_FILE_MAX)
    };
    read()
        .map(Some)
        .map_err(|e| e.context(format!("read object \"{key}\"")))
}

fn local_histories(path: &Path) -> Vec<History> {
    let directory = DataDirectory::of_wal_file(path);
    let Ok(entries) = std::fs::read_dir(directory.wal()) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| {
            let e = e.ok()?;
            match e.file_name().to_str()?.parse().ok()? {
                WalFileName::History(timeline) => {
                    History::parse(timeline, &std::fs::read(e.path()).ok()?).ok()
                }
                _ => None,
            }
        })
        .collect()
}

/// Streams the content into an object and publishes it.
fn store_wal(
    what: &Push<'_>,
    source: &mut dyn Content,
    checked: &Checked,
    key: &Key,
) -> Result<(Published, Identity, SegmentIndex)> {
    source.rewind()?;
    let object = what.repository.store().create(key)?;
    let kind = if checked.is_partial {
        Kind::Partial
    } else {
        Kind::Segment
    };
    let write_failed = |e| write_failed(what.repository, key, e);
    let writer = writer_under(key, object, kind, what.codec).map_err(write_failed)?;
    let (writer, hash, index) = stream(what, source, checked, writer, key)?;
    source.check_unchanged()?;
    let identity = Identity {
        hash,
        raw_bytes: source.size(),
        system_identifier: checked.wal.system_identifier,
        timeline: checked.segment.timeline.get(),
        major: checked.wal.major.number(),
        segment_size_bytes: checked.wal.segment_size.bytes(),
        name: checked.name.to_string(),
        from_lsn: checked.wal.start_lsn.0,
        to_lsn: checked.end.0,
    };
    let object = writer
        .complete(&identity, index.sections(checked.is_partial))
        .map_err(write_failed)?;
    Ok((object.publish()?, identity, index))
}

type Writer = ContainerWriter<Box<dyn NewObject>>;

fn writer_under(
    key: &Key,
    object: Box<dyn NewObject>,
    kind: Kind,
    codec: Codec,
) -> std::io::Result<Writer> {
    let writer = ContainerWriter::new(object, kind, codec)?;
    Ok(match layout::is_conflict(key) {
        true => writer.refused(),
        false => writer,
    })
}

/// Reads once; unless other files keep the processors busy, one thread hashes and decodes, another compresses and writes.
fn stream(
    what: &Push<'_>,
    source: &mut dyn Content,
    checked: &Checked,
    writer: Writer,
    key: &Key,
) -> Result<(Writer, [u8; 32], SegmentIndex)> {
    let (written, read) = match what.beside_others {
        true => in_turn(source, checked, writer),
        false => side_by_side(source, checked, writer)?,
    };
    // Where writing failed, reading ended early.
    let writer = written.map_err(|e| write_failed(what.repository, key, e))?;
    let (hash, index) = read?;
    Ok((writer, hash, index))
}

/// What became of writing, and of reading.
type Streamed = (std::io::Result<Writer>, Result<([u8; 32], SegmentIndex)>);

fn in_turn(source: &mut dyn Content, checked: &Checked, mut writer: Writer) -> Streamed {
    let mut failed = None;
    let read = read_and_index(source, checked, |chunk| {
        match writer.write(chunk.bytes.get(..chunk.length).unwrap_or_default()) {
            Ok(()) => Some(chunk.bytes),
            Err(e) => {
                failed = Some(e);
                None
            }
        }
    });
    (failed.map_or(Ok(writer), Err), read)
}

fn side_by_side(source: &mut dyn Content, checked: &Checked, writer: Writer) -> Result<Streamed> {
    let (to_write, written) = sync_channel::<Chunk>(2);
    let (to_reuse, reusable) = sync_channel::<Vec<u8>>(4);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || compress(writer, &written, &to_reuse));
        let read = read_and_index(source, checked, |chunk| {
            // A writer that has failed is gone.
            to_write.send(chunk).ok()?;
            Some(reusable.try_recv().unwrap_or_else(|_| vec![0; CHUNK]))
        });
        drop(to_write);
        let written = thread.join();
        let written = written.map_err(|_| err!(Internal, "the compressing thread panicked"))?;
        Ok((written, read))
    })
}

fn write_failed(repository: &Repository, key: &Key, e: std::io::Error) -> Error {
    let error = Error::from_io(format!("write object \"{key}\""), e);
    if error.code() != Code::Full {
        return error;
    }
    let free = repository.store().free_bytes().ok().flatten();
    let free = free.map_or_else(
        || "free space is unknown".to_owned(),
        |n| format!("{n} bytes are free"),
    );
    error.context(format!("repository is full ({free})")).hint(
        "Nothing was stored and nothing is lost: PostgreSQL keeps the file and offers it again. Free space in the repository; never delete from pg_wal by hand.",
    )
}

struct Chunk {
    bytes: Vec<u8>,
    length: usize,
}

fn compress(
    mut writer: Writer,
    written: &Receiver<Chunk>,
    to_reuse: &SyncSender<Vec<u8>>,
) -> std::io::Result<Writer> {
    for chunk in written {
        writer.write(chunk.bytes.get(..chunk.length).unwrap_or_default())?;
        // The reader may be done and gone.
        let _ = to_reuse.try_send(chunk.bytes);
    }
    Ok(writer)
}

/// Reads all of it. `pass_on` takes each chunk and gives room for the next, or nothing to end here.
fn read_and_index(
    source: &mut dyn Content,
    checked: &Checked,
    mut pass_on: impl FnMut(Chunk) -> Option<Vec<u8>>,
) -> Result<([u8; 32], SegmentIndex)> {
    let mut hasher = blake3::Hasher::new();
    let mut indexer = Indexer::new(
        &checked.wal,
        checked.wal.start_lsn,
        checked.segment.timeline,
    )?;
    let mut done = 0_u64;
    let mut bytes = vec![0; CHUNK];
    loop {
        let length = source.read(&mut bytes)?;
        if length == 0 {
            break;
        }
        let piece = bytes.get(..length).unwrap_or_default();
        hasher.update(piece);
        // Whole pages are certain: the size is that of a segment, and chunks are multiples of the page size.
        indexer
            .feed(piece)
            .map_err(|e| e.with_code(Code::SourceChanged))?;
        done += length as u64;
        let Some(room) = pass_on(Chunk { bytes, length }) else {
            break;
        };
        bytes = room;
    }
    if done != source.size() {
        return Err(err!(
            SourceChanged,
            "the file ended at {done} of {} bytes",
            source.size()
        ));
    }
    let mut index = indexer.finish(checked.is_partial);
    if checked.is_marked {
        index.summary.flags |= flag::MARKED;
    }
    Ok((*hasher.finalize().as_bytes(), index))
}

/// The object must say of itself what was written, where the store has not said so.
fn read_back(repository: &Repository, key: &Key, identity: &Identity) -> Result<()> {
    if repository.store().is_confirming() {
        return Ok(());
    }
    let read = || -> Result<bool> {
        let object = repository.store().open(key)?;
        let object = object.ok_or_else(|| err!(ReadBack, "the object is gone"))?;
        Ok(Container::open(object)?.is(identity))
    };
    match read() {
        Ok(true) => Ok(()),
        Ok(false) => Err(err!(ReadBack, "object \"{key}\" reads back as another one")),
        Err(e) if e.code() == Code::Damaged => {
            Err(err!(ReadBack, "object \"{key}\" reads back damaged").source(e))
        }
        Err(e) => Err(e),
    }
}

fn warnings(checked: &Checked, index: &SegmentIndex) -> Warnings {
    index
        .damage
        .iter()
        .map(|(kind, lsn)| {
            format!(
                "WAL in \"{}\" is damaged at {lsn} ({}): archived as it is, but recovery will not get past it; take a base backup soon",
                checked.name,
                kind.as_str()
            )
        })
        .collect()
}

/// The name is taken: the same content is made durable again, other content is a conflict.
fn already_there(
    what: &Push<'_>,
    source: &mut dyn Content,
    checked: &Checked,
    key: &Key,
    object: Box<dyn Object>,
) -> Result<(Pushed, Warnings)> {
    let container = Container::open(object).map_err(|e| stored_damaged(key, e))?;
    check_named(&container, checked, key)?;
    source.rewind()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
    }
    source.check_unchanged()?;
    let hash = *hasher.finalize().as_bytes();
    if container.has_hash(&hash) {
        check_stored(&container, key)?;
        container.object().settle()?;
        return Ok((Pushed::AlreadyThere, Vec::new()));
    }
    let offered = what.repository.store().public_hash(&hash)?;
    let conflict = checked.layout.conflict(checked.name, &offered);
    if what.repository.store().open(&conflict)?.is_none() {
        store_wal(what, source, checked, &conflict)?;
    }
    Err(conflict_error(
        &checked.layout,
        checked.name,
        &container,
        &hash,
    ))
}

/// An object of another name under this key is no other content of this name: somebody moved it.
fn check_named(container: &Container, checked: &Checked, key: &Key) -> Result<()> {
    let identity = container.identity();
    let same = identity.name == checked.name.to_string()
        && identity.system_identifier == checked.wal.system_identifier;
    match same {
        true => Ok(()),
        false => Err(stored_damaged(
            key,
            err!(Damaged, "it holds \"{}\"", identity.name.escape_debug()),
        )),
    }
}

/// Before success is repeated, the stored copy must still be whole: an acknowledgement is one like any other.
fn check_stored(container: &Container, key: &Key) -> Result<()> {
    container
        .check_stored()
        .map_err(|e| stored_damaged(key, e))?;
    if !container.is_opaque() {
        index::read_summary(container).map_err(|e| stored_damaged(key, e))?;
    }
    Ok(())
}

fn stored_damaged(key: &Key, e: Error) -> Error {
    if e.code() != Code::Damaged {
        return e;
    }
    err!(Damaged, "the copy stored under \"{key}\" is damaged").source(e).hint(
        "PostgreSQL keeps the file. Run \"pitr verify\" to see what else is; move the damaged object away by hand and archiving stores it anew.",
    )
}

fn conflict_error(
    layout: &ClusterLayout,
    name: WalFileName,
    stored: &Container,
    offered: &[u8; 32],
) -> Error {
    let short = |hash: &[u8; 32]| {
        let hex = blake3::Hash::from_bytes(*hash).to_hex();
        hex.get(..16).unwrap_or_default().to_owned()
    };
    err!(
        Conflict,
        "already archived with other content: stored blake3 {}…, offered {}…, system identifier {}, timeline {}",
        match stored.is_opaque() {
            true => "unknown here, for it is encrypted, ".to_owned(),
            false => short(&stored.identity().hash),
        },
        short(offered),
        layout.system_identifier(),
        name.timeline().decimal()
    )
    .hint(format!(
        "Nothing was overwritten; both copies are kept, and archiving waits at this file. Likely two servers write the same timeline (split brain, a clone without a guard, or a promotion without the archive). See \"pitr wal conflicts\" and \"pitr wal show {name}\"."
    ))
}

/// History and backup history files.
fn push_small(what: &Push<'_>, source: &mut dyn Content) -> Result<(Pushed, Warnings)> {
    if source.size() > SMALL_FILE_MAX {
        return Err(err!(
            SourceSize,
            "the file has {} bytes, more than any history file",
            source.size()
        ));
    }
    let mut content = vec![0; usize::try_from(source.size()).unwrap_or(0)];
    let n = source.read(&mut content)?;
    source.check_unchanged()?;
    content.truncate(n);
    check_small(what.name, &content)?;
    put_small(what.repository, &layout_of(what)?, what.name, &content)
}

fn put_small(
    repository: &Repository,
    layout: &ClusterLayout,
    name: WalFileName,
    content: &[u8],
) -> Result<(Pushed, Warnings)> {
    let kind = check_small(name, content)?;
    let registration = repository.require(layout)?;
    let identity = Identity {
        hash: *blake3::hash(content).as_bytes(),
        raw_bytes: content.len() as u64,
        system_identifier: layout.system_identifier(),
        timeline: name.timeline().get(),
        major: registration.major,
        segment_size_bytes: registration.segment_size_bytes,
        name: name.to_string(),
        from_lsn: 0,
        to_lsn: 0,
    };
    let key = layout.wal_file(name);
    if store_small(repository, &key, kind, &identity, content)? == Published::Created {
        read_back(repository, &key, &identity)?;
        return Ok((Pushed::Stored, Vec::new()));
    }
    let object = repository
        .store()
        .open(&key)?
        .ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))?;
    let container = Container::open(object).map_err(|e| stored_damaged(&key, e))?;
    if container.has_hash(&identity.hash) {
        let check = match container.is_opaque() {
            true => container.check_stored(),
            false => container.read_small(SMALL_FILE_MAX).map(|_| ()),
        };
        check.map_err(|e| stored_damaged(&key, e))?;
        container.object().settle()?;
        return Ok((Pushed::AlreadyThere, Vec::new()));
    }
    let offered = repository.store().public_hash(&identity.hash)?;
    let conflict = layout.conflict(name, &offered);
    store_small(repository, &conflict, kind, &identity, content)?;
    let error = conflict_error(layout, name, &container, &identity.hash);
    Err(match name {
        WalFileName::History(timeline) => err!(
            TimelineReused,
            "timeline {} already belongs to another history in the archive",
            timeline.decimal()
        )
        .source(error)
        .hint("Nothing was overwritten. Two servers were promoted to the same timeline. Stop the wrong one, or restart this one in recovery so that it takes a higher number; see \"pitr wal conflicts\"."),
        _ => error,
    })
}

fn check_small(name: WalFileName, content: &[u8]) -> Result<Kind> {
    let header = |e: Error| e.with_code(Code::SourceHeader);
    match name {
        WalFileName::History(timeline) => {
            History::parse(timeline, content).map_err(header)?;
            Ok(Kind::History)
        }
        _ => {
            BackupHistory::parse(content).map_err(header)?;
            Ok(Kind::Label)
        }
    }
}

/// These files do not name their cluster: pg_control beside them does, else the only registration.
fn layout_of(what: &Push<'_>) -> Result<ClusterLayout> {
    if let Some(control) = DataDirectory::of_wal_file(what.path).control()? {
        return ClusterLayout::new(what.cluster, control.system_identifier);
    }
    match what.repository.registrations(what.cluster)?.as_slice() {
        [only] => ClusterLayout::new(what.cluster, only.system_identifier),
        [] => Err(err!(WrongCluster, "cluster \"{}\" is not registered", what.cluster)
            .hint("Nothing was stored. Run \"pitr init\" for this cluster.")),
        _ => Err(err!(
            WrongCluster,
            "cluster \"{}\" has several system identifiers, and there is no pg_control beside the file",
            what.cluster
        )
        .hint("Nothing was stored. Give the path inside the data directory.")),
    }
}

fn store_small(
    repository: &Repository,
    key: &Key,
    kind: Kind,
    identity: &Identity,
    content: &[u8],
) -> Result<Published> {
    let failed = |e| write_failed(repository, key, e);
    let object = repository.store().create(key)?;
    let mut writer = writer_under(key, object, kind, Codec::Lz4).map_err(failed)?;
    writer.write(content).map_err(failed)?;
    let mut object = writer.complete(identity, Vec::new()).map_err(failed)?;
    let timeline = TimelineId::new(identity.timeline);
    if let (Kind::History, Some(timeline)) = (kind, timeline) {
        container::describe_history(object.as_mut(), &History::parse(timeline, content)?);
    }
    object.publish()
}
