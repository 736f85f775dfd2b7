//! One WAL file into one repository.
//!
//! Order: header checked → content streamed through hash, decoder and compressor into an invisible object → object synced, named,
//! directory synced → read back, unless the store's answer has confirmed the bytes. Success is reported only behind the last step. A name that is taken holds either the same content
//! (made durable again, then success) or other content (the original stays, the refused copy goes to `conflicts/`).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::datadir::{DataDirectory, open_at_once};
use super::leftover;
use super::life::{self, Continued};
use super::received::{self, Prefix};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::label::BackupHistory;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::timeline::{Ancestor, History, TimelineId};
use crate::pg::version::Major;
use crate::repo::container::{self, Codec, Container, ContainerWriter, Identity, Kind};
use crate::repo::healed::{self, COPIES_MAX};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::scope;
use crate::store::{Key, NewObject, Published};
use crate::wal::increment::{self, OpenSegment};
use crate::wal::index::{self, SegmentIndex, flag};
use crate::wal::link::{Link, Mark};
use crate::wal::remnant::Remnant;
use crate::wal::tail::{self, Tail};
use crate::wal::undecoded::Indexing;

/// The result of pushing a file. All variants mean: this repository lacks nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The file is new here.
    Stored,
    /// The same content was here before.
    AlreadyThere,
    /// It holds no WAL of the cluster.
    Leftover,
}

/// Something that does not stop archiving but should be known.
pub type Warnings = Vec<String>;

/// The fate of a file, and facts that should be known of it.
pub type Archived = (Pushed, Warnings);

/// The file to push and the place where it belongs.
pub struct Push<'a> {
    pub repository: &'a Repository,
    /// The cluster's name.
    pub cluster: &'a str,
    /// The path from which the file is read.
    pub path: &'a Path,
    /// Its name as PostgreSQL knows it.
    pub name: WalFileName,
    /// How the body is compressed.
    pub codec: Codec,
    /// Whether other files are pushed meanwhile: then one thread does all of the work, which costs less processor time; else two are done
    /// sooner.
    pub beside_others: bool,
    /// The own mark of another segment of the same server, where the segment itself is not at hand any more.
    pub known: Option<(SegmentName, Mark)>,
    /// It comes after what was written later: a segment behind it that is stored must continue it.
    pub is_backfill: bool,
}

/// Bytes read at once; a multiple of every WAL page size.
// Half of it takes 1 % more processor time: the two threads wake each other twice as often.
const CHUNK: usize = 512 << 10;
const SMALL_FILE_MAX: u64 = 1 << 20;

/// Puts one WAL file into the repository under its own name. One that holds no WAL of the cluster is acknowledged with a warning.
///
/// # Errors
/// `SourceMissing`, `SourceSize`, `SourceHeader`, `SourceChanged` for a file that cannot be archived; `WrongCluster` when its system
/// identifier is not registered; `Conflict` or `TimelineReused` when the name holds other bytes; `Clone` for a restored copy; what the
/// store says. In every error case PostgreSQL keeps the file and offers it again.
///
/// PostgreSQL: src/include/access/xlog_internal.h (names), contrib/basic_archive/basic_archive.c (the rule for repeats).
pub fn push(what: &Push<'_>) -> Result<Archived> {
    let data = DataDirectory::of_wal_file(what.path);
    data.check_guard()?;
    let source = Source::open(what.path)?;
    match (push_content(what, source), what.name) {
        (Err(e), WalFileName::Segment(name)) if e.code() == Code::SourceHeader => {
            let left = leftover::left_at(&data, name).ok_or(e)?;
            Ok((Pushed::Leftover, vec![leftover_warning(name, left)]))
        }
        (pushed, _) => pushed,
    }
}

fn leftover_warning(name: SegmentName, left: Lsn) -> String {
    format!(
        "\"{name}\" holds other bytes than its name says, and this server left timeline {} at {left}, before it begins: the cluster has no such WAL, and nothing was stored",
        name.timeline.decimal()
    )
}

/// Returns whether the repository may refuse the file. That is so if its name is taken, by any content, or the segment
/// before is another server's. Nothing is written.
///
/// # Errors
/// Those of [`push`] for a file or a repository for which that cannot be determined.
pub fn may_be_refused(what: &Push<'_>) -> Result<bool> {
    let mut source = Source::open(what.path)?;
    let checked = match what.name {
        WalFileName::Segment(name) => settled(what, &mut source, name, false)?,
        WalFileName::Partial(name) => settled(what, &mut source, name, true)?,
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => {
            let key = layout_of(what)?.wal_file(what.name);
            return Ok(what.repository.store().head(&key)?.is_some());
        }
    };
    if what.repository.store().head(&checked.key())?.is_some() {
        return Ok(true);
    }
    if checked.is_partial {
        return Ok(false);
    }
    Ok(!life::is_own_before(&source, &checked)?
        || received::end_of_other(&source, &checked)?.is_some())
}

/// Requires that a segment's file may take the place of what is missing, or damaged under a key. Nothing is written.
///
/// # Errors
/// `Conflict` for other content; `Damaged` where nothing proves that it is the same; those of [`push`] for the file.
pub fn check_heals(what: &Push<'_>, key: Option<&Key>) -> Result<()> {
    let WalFileName::Segment(segment) = what.name else {
        return Err(err!(Internal, "\"{}\" is no segment", what.name));
    };
    let mut source = Source::open(what.path)?;
    let checked = settled(what, &mut source, segment, false)?;
    let own = checked.key();
    let key = key.unwrap_or(&own);
    if own != *key {
        return Err(err!(Conflict, "it belongs to another life of its timeline"));
    }
    let Some(stored) = healed::container(what.repository.store(), key)? else {
        return Ok(());
    };
    match stored {
        Ok(container) => {
            check_named(&container, &checked, key)?;
            let hash = hash_of(&mut source)?;
            match container.has_hash(&hash) {
                true => Ok(()),
                false => Err(conflict_error(
                    &checked.layout,
                    checked.name,
                    &container,
                    &hash,
                )),
            }
        }
        Err(e) => require_seen(&mut source, &checked, stored_damaged(key, e)),
    }
}

/// As [`push`], of content that lies in no file of that name; `what.path` only tells where it comes from.
///
/// # Errors
/// Those of [`push`], and of `content`.
pub fn push_content(what: &Push<'_>, mut content: impl Content) -> Result<Archived> {
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
    /// Fills `buffer` from an offset on; [`Content::read`] goes on where it was.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    /// As [`Content::read_at`], of another segment of the same server; `false` when that one is not at hand.
    fn read_other(&self, name: SegmentName, buffer: &mut [u8], offset: u64) -> Result<bool>;
    /// Requires that the source still has the content that has been read.
    fn check_unchanged(&self) -> Result<()>;
    /// Whether the segment's increments were compared with it already.
    fn has_own_increments(&self) -> bool {
        false
    }
}

/// The file being archived, with what it looked like when it was opened.
struct Source {
    path: PathBuf,
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
        let file = open_at_once(path).map_err(missing)?;
        let metadata = file.metadata().map_err(missing)?;
        if !metadata.is_file() {
            return Err(err!(SourceMissing, "\"{shown}\" is not a regular file"));
        }
        Ok(Source {
            path: path.to_owned(),
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

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| err!(SourceMissing, "could not read the file").source(e))
    }

    fn read_other(&self, name: SegmentName, buffer: &mut [u8], offset: u64) -> Result<bool> {
        let path = self.path.with_file_name(name.to_string());
        // One that the server has just recycled is not at hand any more.
        Ok(life::read_segment_at(&path, self.size, buffer, offset))
    }
}

/// A segment or partial whose header was checked.
pub(super) struct Checked<'a> {
    pub(super) what: &'a Push<'a>,
    pub(super) repository: &'a Repository,
    pub(super) layout: ClusterLayout,
    pub(super) wal: WalIdentity,
    pub(super) name: WalFileName,
    pub(super) segment: SegmentName,
    /// The position at which the segment ends.
    end: Lsn,
    is_partial: bool,
    /// That of its timeline, where it is known.
    pub(super) history: Option<History>,
    registered_major: u32,
}

impl Checked<'_> {
    fn key(&self) -> Key {
        self.layout.wal_file(self.name)
    }

    /// The number of the major that wrote it: that of the registration where the pages do not tell.
    pub(super) fn major(&self) -> u32 {
        self.wal.major.map_or(self.registered_major, Major::number)
    }

    pub(super) fn open_segment(&self) -> OpenSegment {
        OpenSegment {
            name: self.segment,
            size: self.wal.segment_size,
            major: self.major(),
        }
    }

    fn is_undecoded(&self) -> bool {
        self.wal.major.is_none()
    }
}

fn push_wal(
    what: &Push<'_>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<Archived> {
    let mut checked = check_header(what, source, segment, is_partial)?;
    if is_partial && is_of_other_server(&checked)? {
        return partial_of_other(source, &checked);
    }
    checked.history = check_timeline(&checked)?;
    push_checked(source, &checked)
}

/// Whether the server was promoted to its timeline by itself, and the repository has that of another server under the number.
fn is_of_other_server(checked: &Checked<'_>) -> Result<bool> {
    let timeline = checked.segment.timeline;
    let Some(own) = own_history(checked.what.path, timeline) else {
        return Ok(false);
    };
    let known = sound_history(checked.repository, &checked.layout, timeline)?;
    Ok(known.is_some_and(|known| !is_same_history(&own, &known)))
}

/// The partial of a timeline whose number another server has. Its server has left that timeline for a higher number, and what comes behind waits
/// for this file: it is kept where nothing reads it, for recovery never asks for a partial.
fn partial_of_other(source: &mut dyn Content, checked: &Checked<'_>) -> Result<Archived> {
    source.rewind()?;
    let (hash, _) = read_and_index(source, checked, |chunk| Some(chunk.bytes))?;
    let key = keep_refused(source, checked, &hash)?;
    settle_kept(checked, &key)?;
    Ok((
        Pushed::Stored,
        vec![format!(
            "timeline {} is that of another server in the archive: \"{}\" is kept under \"{key}\", and nothing leads through it. Take a backup of this server",
            checked.segment.timeline.decimal(),
            checked.name
        )],
    ))
}

fn push_checked(source: &mut dyn Content, checked: &Checked<'_>) -> Result<Archived> {
    let key = checked.key();
    let _flight = checked.repository.begin_flight(key.clone());
    if checked.repository.looks_first()
        && let Some(stored) = healed::container(checked.repository.store(), &key)?
    {
        checked.repository.found_taken(true);
        return already_there(source, checked, &key, stored);
    }
    let put = match store_wal(source, checked, &key)? {
        Stored::Put(put) => put,
        Stored::Padded(valid_end) => return push_padded(source, checked, valid_end),
        Stored::Moved(checked) => return push_checked(source, &checked),
        Stored::Refused(why, hash) => return refuse(source, checked, (&why, &hash)),
    };
    checked
        .repository
        .found_taken(put.published == Published::Exists);
    match put.published {
        Published::Created => {
            read_back(checked.repository, &key, &put.identity)?;
            let mut warnings = warnings(checked, &put.index);
            warnings.extend(put.warning);
            warnings.extend(newer_warning(checked)?);
            if !checked.is_partial {
                warnings.extend(life::check_after(checked, (&put.index.summary, &put.link))?);
                keep_mark(checked.repository, &key, &put.link);
            }
            Ok((Pushed::Stored, warnings))
        }
        // Another process stored the name meanwhile.
        Published::Exists => match healed::container(checked.repository.store(), &key)? {
            Some(stored) => already_there(source, checked, &key, stored),
            None => Err(err!(Unreachable, "object \"{key}\" came and went")),
        },
    }
}

/// Refuses a segment whose name is free: it hides or contradicts what is archived of another server. The copy is kept, so that "pitr wal resolve" can
/// name it.
fn refuse(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    (why, hash): (&str, &[u8; 32]),
) -> Result<Archived> {
    if let Some(moved) = moved(checked)? {
        return push_checked(source, &moved);
    }
    keep_refused(source, checked, hash)?;
    Err(err!(
        Conflict,
        "{why}; offered {}…, system identifier {}, timeline {}",
        short(hash),
        checked.layout.system_identifier(),
        checked.segment.timeline.decimal()
    )
    .hint(two_servers(checked.name)))
}

/// Remembers the mark that the next segment is compared with.
fn keep_mark(repository: &Repository, key: &Key, link: &Link) {
    if let Some(mark) = link.own {
        repository.keep_mark(key.clone(), mark);
    }
}

/// A whole-named segment whose WAL ends inside, with nothing but padding behind it, is no whole one: a standby with archive_mode = always
/// offers the tail that it was handed, and the end of a timeline that its primary has left. It is stored as the partial that it is; should
/// the segment be completed, PostgreSQL offers it again.
fn push_padded(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    valid_end: Lsn,
) -> Result<Archived> {
    let moved = moved(checked)?;
    let checked = moved.as_ref().unwrap_or(checked);
    let partial = Checked {
        layout: checked.layout.clone(),
        name: WalFileName::Partial(checked.segment),
        is_partial: true,
        history: None,
        ..*checked
    };
    let (pushed, mut warnings) = push_checked(source, &partial)?;
    warnings.push(padded_warning(checked, valid_end));
    Ok((pushed, warnings))
}

/// The file with the home that it has by the resolutions which the repository knows now; `None` when that is the one it was taken to have.
fn moved<'a>(checked: &Checked<'a>) -> Result<Option<Checked<'a>>> {
    let layout = checked.repository.read_lives(&checked.layout)?;
    let has_moved = layout.home_of(checked.segment) != checked.layout.home_of(checked.segment);
    Ok(has_moved.then(|| Checked {
        layout,
        history: checked.history.clone(),
        ..*checked
    }))
}

fn padded_warning(checked: &Checked<'_>, valid_end: Lsn) -> String {
    format!(
        "the WAL of \"{}\" ends inside, at {valid_end}: it was archived as a partial segment. Should the segment be completed, PostgreSQL offers it again",
        checked.name
    )
}

/// Header and name checked, and under which name it belongs.
fn settled<'a>(
    what: &'a Push<'a>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<Checked<'a>> {
    let mut checked = check_header(what, source, segment, is_partial)?;
    checked.history = check_timeline(&checked)?;
    Ok(checked)
}

/// WAL of a timeline must be that of the history which the repository has of it. Two copies of a cluster take the same number when both
/// are promoted, and the names of their segments do not tell. Returns the timeline's history, where one is known.
fn check_timeline(checked: &Checked<'_>) -> Result<Option<History>> {
    let timeline = checked.segment.timeline;
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let own = own_history(checked.what.path, timeline);
    let Some(known) = sound_history(checked.repository, &checked.layout, timeline)? else {
        return Ok(own);
    };
    let is_before = known
        .parent()
        .is_some_and(|(_, begin)| checked.end <= begin);
    if !is_before && own.is_none_or(|own| is_same_history(&own, &known)) {
        return Ok(Some(known));
    }
    Err(err!(
        TimelineReused,
        "it belongs to another timeline {} than the repository's",
        timeline.decimal()
    )
    .hint("Nothing was stored. Two servers were promoted to the same timeline number: see \"pitr wal conflicts\", stop the one that is not the cluster's, or give this one a name of its own with \"pitr adopt --as NAME\"."))
}

/// The history of a timeline as the server has it beside a WAL file; none where it has none that can be read.
pub(super) fn own_history(beside: &Path, timeline: TimelineId) -> Option<History> {
    let directory = DataDirectory::of_wal_file(beside);
    let path = directory.wal().join(timeline.history_file_name());
    History::parse(timeline, &std::fs::read(path).ok()?).ok()
}

/// Without a key the reasons in a history are not known.
pub(crate) fn is_same_history(own: &History, known: &History) -> bool {
    is_same_path(own.ancestors(), known.ancestors())
}

/// Whether the timeline of one history is an ancestor in another one, by the same way.
pub(super) fn is_ancestor(known: &History, later: &History) -> bool {
    let length = known.ancestors().len();
    let way = later.ancestors().split_at_checked(length);
    way.is_some_and(|(before, rest)| {
        let is_next = |a: &Ancestor| a.timeline == known.timeline();
        rest.first().is_some_and(is_next) && is_same_path(before, known.ancestors())
    })
}

fn is_same_path(own: &[Ancestor], known: &[Ancestor]) -> bool {
    own.len() == known.len()
        && own.iter().zip(known).all(|(own, known)| {
            (own.timeline, own.switch_lsn) == (known.timeline, known.switch_lsn)
                && (own.reason == known.reason || known.reason.is_empty())
        })
}

fn check_header<'a>(
    what: &'a Push<'a>,
    source: &mut dyn Content,
    segment: SegmentName,
    is_partial: bool,
) -> Result<Checked<'a>> {
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
    check_major(&registration, &wal).map_err(header)?;
    // In an object store they are read where the segment does not simply go on.
    let layout = match what.repository.store().is_remote() && !is_partial {
        true => what.repository.known_lives(&layout).unwrap_or(layout),
        false => what.repository.recent_lives(&layout)?,
    };
    let end = wal.start_lsn.0.checked_add(wal.segment_size.bytes());
    let end = end.map(Lsn).ok_or_else(|| {
        header(err!(
            SourceHeader,
            "the segment lies behind the last position that WAL can have"
        ))
    })?;
    Ok(Checked {
        what,
        repository: what.repository,
        layout,
        wal,
        name: what.name,
        segment,
        end,
        is_partial,
        history: None,
        registered_major: registration.major,
    })
}

/// An unknown magic number is believed where the server was registered as one that may be newer; else a known one is damaged.
fn check_major(registration: &Registration, wal: &WalIdentity) -> Result<()> {
    if wal.major.is_some() || registration.major >= Major::NEWEST.number() {
        return Ok(());
    }
    Err(err!(
        SourceHeader,
        "its first page has magic {:04X}, which is not that of PostgreSQL {}, as which cluster \"{}\" is registered",
        wal.page_magic,
        registration.major,
        registration.name
    ))
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

/// The result of storing a segment or partial.
enum Stored<'a> {
    /// It was put under its key, or the key was taken.
    Put(Box<Put>),
    /// Nothing was stored: valid WAL ends here, and padding follows.
    Padded(Lsn),
    /// Nothing was stored: the segment has another home.
    Moved(Box<Checked<'a>>),
    /// Nothing was stored, for this reason: another server has archived what belongs to it. The hash is that of the offered content.
    Refused(String, [u8; 32]),
}

struct Put {
    published: Published,
    identity: Identity,
    index: SegmentIndex,
    link: Link,
    warning: Option<String>,
}

/// Streams the content into an object and publishes it.
fn store_wal<'a>(source: &mut dyn Content, checked: &Checked<'a>, key: &Key) -> Result<Stored<'a>> {
    source.rewind()?;
    let store = checked.repository.store();
    let object = store.create(key)?;
    let kind = if checked.is_partial {
        Kind::Partial
    } else {
        Kind::Segment
    };
    let write_failed = |e| write_failed(checked.repository, key, e);
    let writer = writer_under(key, object, kind, checked.what.codec).map_err(write_failed)?;
    let writer = writer.undecoded(checked.is_undecoded());
    let (writer, hash, mut index) = stream(source, checked, writer, key)?;
    if checked.is_partial {
        if is_padded(source, checked, &index)? {
            index.summary.flags |= flag::MARKED;
        }
    } else if is_tail(source, checked, &index)? {
        return Ok(Stored::Padded(index.summary.valid_end));
    }
    let (mut link, mut warning) = (Link::NONE, None);
    // If a fork was resolved, the partial of the other server does not belong to the life that is followed.
    let in_life = checked.layout.lives().of(checked.segment).is_some();
    if !checked.is_partial || in_life {
        link = life::link(source, checked, &index.summary)?;
        if !scope::is_conflict(key) {
            if !checked.is_partial {
                life::check_first(checked, &hash)?;
            }
            let before = life::check_before(source, checked, (&index.summary, &link));
            let is_sure = matches!(before, Ok(Continued::Yes));
            if !is_sure && let Some(moved) = moved(checked)? {
                return Ok(Stored::Moved(Box::new(moved)));
            }
            warning = before?.warning();
            if checked.what.is_backfill && !checked.is_partial {
                life::require_after(source, checked, (&index.summary, &link))?;
            }
            if !checked.is_partial
                && let Some(why) = beside_other(source, checked, (&index, &link))?
            {
                return Ok(Stored::Refused(why, hash));
            }
        }
    }
    source.check_unchanged()?;
    let segment = checked.open_segment();
    let of = checked.wal.system_identifier;
    let identity = Identity {
        name: checked.name.to_string(),
        ..segment.identity(of, segment.range()?, hash)
    };
    let mut sections = index.sections(checked.is_partial);
    let mut facts = None;
    if !checked.is_partial {
        sections.push(link.section());
        facts = Some(link.facts(&|mark| store.public_hash(mark))?);
    }
    let mut object = writer.complete(&identity, sections).map_err(write_failed)?;
    if let Some(facts) = facts {
        object.describe(facts, None);
    }
    Ok(Stored::Put(Box::new(Put {
        published: object.publish()?,
        identity,
        index,
        link,
        warning,
    })))
}

/// Returns a reason to refuse: another server has archived increments of the segment, or the segment after it.
fn beside_other(
    source: &dyn Content,
    checked: &Checked<'_>,
    (index, link): (&SegmentIndex, &Link),
) -> Result<Option<String>> {
    if !source.has_own_increments()
        && let Some(end) = received::end_of_other(source, checked)?
    {
        let why = format!("a receiver has archived other content of it, up to {end}");
        return Ok(Some(why));
    }
    // In an object store it would cost a request. A file that has rotted tells of no other life.
    if checked.repository.store().is_remote() || index.summary.has(flag::DAMAGED) {
        return Ok(None);
    }
    let next = life::other_after(checked, (&index.summary, link))?;
    Ok(next.map(|next| {
        format!(
            "the archive's segment \"{next}\" does not continue it: another server wrote that one"
        )
    }))
}

/// Whether the content, offered as a whole segment, is the beginning of one.
fn is_tail(source: &dyn Content, checked: &Checked<'_>, index: &SegmentIndex) -> Result<bool> {
    Ok(tail::is_left_unfinished(&index.summary, checked.end) || is_padded(source, checked, index)?)
}

/// Whether nothing but padding follows the valid WAL, which ends inside.
fn is_padded(source: &dyn Content, checked: &Checked<'_>, index: &SegmentIndex) -> Result<bool> {
    if !tail::may_be_padded(&index.summary) {
        return Ok(false);
    }
    let tail = Tail {
        valid_end: index.summary.valid_end,
        system_identifier: checked.wal.system_identifier,
        timeline: checked.segment.timeline.get(),
    };
    tail.is_padded(checked.end, &mut |buffer, at| {
        source.read_at(buffer, at.0.saturating_sub(checked.wal.start_lsn.0))
    })
}

type Writer = ContainerWriter<Box<dyn NewObject>>;

fn writer_under(
    key: &Key,
    object: Box<dyn NewObject>,
    kind: Kind,
    codec: Codec,
) -> std::io::Result<Writer> {
    let writer = ContainerWriter::new(object, kind, codec)?;
    Ok(match scope::is_conflict(key) {
        true => writer.refused(),
        false => writer,
    })
}

/// Reads once; unless other files keep the processors busy, one thread hashes and decodes, another compresses and writes.
fn stream(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    writer: Writer,
    key: &Key,
) -> Result<(Writer, [u8; 32], SegmentIndex)> {
    let (written, read) = match checked.what.beside_others {
        true => in_turn(source, checked, writer),
        false => side_by_side(source, checked, writer)?,
    };
    // If writing failed, reading ended early.
    let writer = written.map_err(|e| write_failed(checked.repository, key, e))?;
    let (hash, index) = read?;
    Ok((writer, hash, index))
}

/// The results of writing and of reading.
type Streamed = (std::io::Result<Writer>, Result<([u8; 32], SegmentIndex)>);

fn in_turn(source: &mut dyn Content, checked: &Checked<'_>, mut writer: Writer) -> Streamed {
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

fn side_by_side(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    writer: Writer,
) -> Result<Streamed> {
    let (to_write, written) = sync_channel::<Chunk>(1);
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
    let room = repository.store().room().ok().flatten();
    let free = room.map_or_else(
        || "free space is unknown".to_owned(),
        |room| format!("{} bytes are free", room.free_bytes),
    );
    error.context(format!("repository is full ({free})")).hint(
        "Nothing was stored and nothing is lost: PostgreSQL keeps the file and offers it again. \"pitr expire --confirm\" frees space in the repository; never delete from pg_wal by hand.",
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
    checked: &Checked<'_>,
    mut pass_on: impl FnMut(Chunk) -> Option<Vec<u8>>,
) -> Result<([u8; 32], SegmentIndex)> {
    let mut hasher = blake3::Hasher::new();
    let mut indexing = Indexing::new(&checked.wal, checked.segment.timeline)?;
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
        indexing
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
    let index = indexing.finish(checked.is_partial);
    Ok((*hasher.finalize().as_bytes(), index))
}

/// The object must say of itself what was written, where the store has not said so.
pub(super) fn read_back(repository: &Repository, key: &Key, identity: &Identity) -> Result<()> {
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

fn warnings(checked: &Checked<'_>, index: &SegmentIndex) -> Warnings {
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

/// Warns once that the WAL of this server cannot be decoded: where no such segment is stored before it. `info` and `doctor` repeat it.
fn newer_warning(checked: &Checked<'_>) -> Result<Option<String>> {
    if !checked.is_undecoded() {
        return Ok(None);
    }
    let (segment, size) = (checked.segment, checked.wal.segment_size);
    if let Some(before) = segment.before(segment.timeline, size) {
        let key = checked.layout.segment(before);
        if checked.repository.is_in_flight(&key) {
            return Ok(None);
        }
        let stored = healed::container(checked.repository.store(), &key)?;
        let is_warned = |c: &Container| c.is_undecoded() || c.is_opaque();
        if stored.is_some_and(|c| c.is_ok_and(|c| is_warned(&c))) {
            return Ok(None);
        }
    }
    Ok(Some(format!(
        "\"{}\" was written by a PostgreSQL newer than {} (page magic {:04X}), which this pitr cannot read: its WAL is archived undecoded from here on, and nothing can be proven of it. Install a newer pitr",
        checked.name,
        Major::NEWEST,
        checked.wal.page_magic
    )))
}

/// The name is taken: the same content is made durable again, other content is a conflict.
fn already_there(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    key: &Key,
    stored: Result<Container>,
) -> Result<Archived> {
    let container = match stored.map_err(|e| stored_damaged(key, e)) {
        Ok(container) => container,
        // Archiving waits for the operator, who may know of another server. A backfill is asked for, and looks for a proof.
        Err(e) if checked.what.is_backfill && !checked.is_partial && e.code() == Code::Damaged => {
            require_seen(source, checked, e)?;
            let lost = err!(Damaged, "the copy stored under \"{key}\" is damaged");
            return heal_stored(source, checked, (key, lost));
        }
        Err(e) => return Err(e),
    };
    check_named(&container, checked, key)?;
    let hash = hash_of(source)?;
    if container.has_hash(&hash) {
        if let Err(e) = check_stored(&container, key) {
            return heal_stored(source, checked, (key, e));
        }
        container.object().settle()?;
        if !checked.is_partial && !container.is_opaque() {
            let link = Link::read(&container).map_err(|e| stored_damaged(key, e))?;
            keep_mark(checked.repository, key, &link);
        }
        return Ok((Pushed::AlreadyThere, Vec::new()));
    }
    if checked.is_partial {
        return beside(source, checked, &container, &hash);
    }
    source.rewind()?;
    let (_, index) = read_and_index(source, checked, |chunk| Some(chunk.bytes))?;
    if is_tail(source, checked, &index)? {
        if covers(&container, source, checked, &index)? {
            container.object().settle()?;
            let warning = padded_warning(checked, index.summary.valid_end);
            return Ok((Pushed::AlreadyThere, vec![warning]));
        }
        return push_padded(source, checked, index.summary.valid_end);
    }
    if let Some(moved) = moved(checked)? {
        return push_checked(source, &moved);
    }
    keep_refused(source, checked, &hash)?;
    Err(conflict_error(
        &checked.layout,
        checked.name,
        &container,
        &hash,
    ))
}

/// The hash of all of the content.
fn hash_of(source: &mut dyn Content) -> Result<[u8; 32]> {
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
    Ok(*hasher.finalize().as_bytes())
}

/// Requires that the stored segment after the offered one continues it. The damaged one `e` says nothing of its content any more, and the link
/// of its successor proves which that was (format, section 12).
fn require_seen(source: &mut dyn Content, checked: &Checked<'_>, e: Error) -> Result<()> {
    // A frozen one may be whole.
    if e.code() != Code::Damaged || e.is_frozen() {
        return Err(e);
    }
    source.rewind()?;
    let (_, index) = read_and_index(source, checked, |chunk| Some(chunk.bytes))?;
    let link = life::link(source, checked, &index.summary)?;
    match life::is_seen_after(checked, &link)? {
        true => Ok(()),
        false => Err(e),
    }
}

/// Puts a healed copy beside a damaged object that held the very content that is offered, as itself or its successor says (format, section 12).
///
/// # Errors
/// `e`, which says the damage, where none can be written; those of [`store_wal`].
fn heal_stored(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    (key, e): (&Key, Error),
) -> Result<Archived> {
    if e.code() != Code::Damaged || e.is_frozen() || scope::is_conflict(key) {
        return Err(e);
    }
    let store = checked.repository.store();
    let copies = store.healed_copies(key)?;
    // Somebody has healed it before: what is read in its place is looked at.
    if !copies.is_empty()
        && let Some(Ok(container)) = healed::container(store, key)?
        && check_stored(&container, key).is_ok()
    {
        container.object().settle()?;
        return Ok((Pushed::AlreadyThere, Vec::new()));
    }
    let number = u32::try_from(copies.len()).unwrap_or(COPIES_MAX) + 1;
    if number > COPIES_MAX {
        return Err(e);
    }
    let copy = healed::copy_key(key, number)?;
    let Stored::Put(put) = store_wal(source, checked, &copy)? else {
        return Err(e);
    };
    // Nobody has looked at the one that another writer put there meanwhile: PostgreSQL offers the file again.
    if put.published == Published::Exists {
        return Err(e);
    }
    read_back(checked.repository, &copy, &put.identity)?;
    store.forget_healed(key);
    let warning = format!(
        "the stored copy of \"{}\" is damaged; it is healed: the same content lies beside it, under \"{copy}\"",
        checked.name
    );
    Ok((Pushed::Stored, vec![warning]))
}

/// Keeps a copy under the key of refused ones, and returns that key.
fn keep_refused(source: &mut dyn Content, checked: &Checked<'_>, hash: &[u8; 32]) -> Result<Key> {
    let offered = checked.repository.store().public_hash(hash)?;
    let conflict = checked.layout.conflict(checked.name, &offered);
    match healed::opened(checked.repository.store(), &conflict)? {
        None => {
            store_wal(source, checked, &conflict)?;
        }
        // A damaged one keeps nothing. A frozen one does.
        Some(Err(e)) if e.code() == Code::Damaged && !e.is_frozen() => {
            return Err(stored_damaged(&conflict, e).with_code(Code::Conflict));
        }
        Some(_) => {}
    }
    Ok(conflict)
}

/// Requires that a kept copy is whole, and makes it durable. Another process may have stored it; the acknowledgement comes behind this.
fn settle_kept(checked: &Checked<'_>, key: &Key) -> Result<()> {
    let Some(object) = checked.repository.store().open(key)? else {
        return Err(err!(Unreachable, "object \"{key}\" came and went"));
    };
    let container = Container::open_under(key, object).map_err(|e| stored_damaged(key, e))?;
    check_named(&container, checked, key)?;
    check_stored(&container, key)?;
    container.object().settle()
}

/// Another partial of the same segment: more of the same WAL, a second promotion in it, or other stale bytes behind. Recovery never asks for a
/// partial, so archiving does not wait for a decision. One that holds no more than the stored one is done, one that continues it is stored as an
/// increment, and any other is kept beside it.
fn beside(
    source: &mut dyn Content,
    checked: &Checked<'_>,
    stored: &Container,
    hash: &[u8; 32],
) -> Result<Archived> {
    source.rewind()?;
    let (_, index) = read_and_index(source, checked, |chunk| Some(chunk.bytes))?;
    if covers(stored, source, checked, &index)? {
        stored.object().settle()?;
        return Ok((Pushed::AlreadyThere, Vec::new()));
    }
    if let Some(lengthened) = lengthen(source, checked, index.summary.valid_end)? {
        return Ok(lengthened);
    }
    let key = keep_refused(source, checked, hash)?;
    settle_kept(checked, &key)?;
    let why = match stored.is_opaque() {
        true => {
            "The archived one is encrypted, and this host cannot read it: whether this one continues it is unknown"
        }
        false => {
            "Its WAL does not continue the archived one: two servers were promoted in one segment"
        }
    };
    Ok((
        Pushed::Stored,
        vec![format!(
            "another partial segment of this name is archived: \"{}\" is kept beside it, under \"{key}\". {why}",
            checked.name
        )],
    ))
}

/// Stores the offered WAL as one increment where it continues all that is archived of the segment: a primary that died was ahead of the standby
/// that was promoted. `None` where it does not, or where that cannot be determined here.
///
/// The archived objects stay as they are. Readers take the partial or the increments, whichever has more WAL (format, section 7.1).
fn lengthen(source: &dyn Content, checked: &Checked<'_>, end: Lsn) -> Result<Option<Archived>> {
    let segment = checked.open_segment();
    let (repository, layout) = (checked.repository, &checked.layout);
    let is_unknown = |code| {
        matches!(
            code,
            Code::Damaged | Code::Key | Code::Unsupported | Code::Denied
        )
    };
    let stored = match Remnant::find(repository, layout, &segment) {
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(None),
        Err(e) if is_unknown(e.code()) => return Ok(None),
        Err(e) => return Err(e),
    };
    let (start, known) = (checked.wal.start_lsn, stored.valid_end());
    let length = known.min(end).0.saturating_sub(start.0);
    let mut read = |buffer: &mut [u8], at| source.read_at(buffer, at);
    let mut prefix = Prefix::new(length, &mut read);
    stored.read_pages(repository, layout, &mut |bytes| prefix.compare(bytes))?;
    if !prefix.is_same() {
        return Ok(None);
    }
    let mut at = 0;
    let mut next = |buffer: &mut [u8]| {
        let from = at;
        at += buffer.len() as u64;
        source.read_at(buffer, from)
    };
    let put = increment::put_merged(repository, layout, &segment, end, &mut next)?;
    require_whole(
        repository,
        &layout.increment(segment.name, LsnRange { start, end }),
    )?;
    if put == Published::Exists {
        return Ok(Some((Pushed::AlreadyThere, Vec::new())));
    }
    if end <= known {
        return Ok(Some((Pushed::Stored, Vec::new())));
    }
    let told = format!(
        "\"{}\" was archived up to {known}, and this one continues it up to {end}: its WAL is stored beside it. Only --target-timeline {} reaches what a promotion left behind",
        checked.name,
        checked.segment.timeline.decimal()
    );
    Ok(Some((Pushed::Stored, vec![told])))
}

/// Requires that an increment can be read back whole, where the store has not said so.
fn require_whole(repository: &Repository, key: &Key) -> Result<()> {
    if repository.store().is_confirming() {
        return Ok(());
    }
    let object = repository.store().open(key)?;
    let object = object.ok_or_else(|| err!(ReadBack, "object \"{key}\" is gone"))?;
    let read = Container::open(object).and_then(|container| container.check_stored());
    read.map_err(|e| stored_damaged(key, e))
}

/// Whether the stored copy holds the same bytes up to where the offered WAL ends; unknown, and so no, where it cannot be read for want of a key.
fn covers(
    stored: &Container,
    source: &dyn Content,
    checked: &Checked<'_>,
    index: &SegmentIndex,
) -> Result<bool> {
    if stored.is_opaque() {
        return Ok(false);
    }
    let valid_end = index.summary.valid_end;
    let length = valid_end.0.saturating_sub(checked.wal.start_lsn.0);
    let mut read = |buffer: &mut [u8], at| source.read_at(buffer, at);
    let mut prefix = Prefix::new(length, &mut read);
    stored.read_body(&mut |piece| prefix.compare(piece))?;
    let holds = index::read_summary(stored)?.valid_end >= valid_end;
    Ok(prefix.is_same() && holds)
}

/// An object of another name under this key is no other content of this name: somebody moved it.
fn check_named(container: &Container, checked: &Checked<'_>, key: &Key) -> Result<()> {
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
    if e.code() != Code::Damaged || e.is_frozen() {
        return e;
    }
    err!(Damaged, "the copy stored under \"{key}\" is damaged").source(e).hint(
        "PostgreSQL keeps the file. Run \"pitr verify\" to see what else is; where another repository has it whole, \"pitr verify --heal\" puts a healed copy beside it.",
    )
}

fn conflict_error(
    layout: &ClusterLayout,
    name: WalFileName,
    stored: &Container,
    offered: &[u8; 32],
) -> Error {
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
    .hint(two_servers(name))
}

/// The first digits of a hash.
fn short(hash: &[u8; 32]) -> String {
    let hex = blake3::Hash::from_bytes(*hash).to_hex();
    hex.get(..16).unwrap_or_default().to_owned()
}

/// The meaning of refused content, and the next command.
fn two_servers(name: WalFileName) -> String {
    let then = match name {
        WalFileName::Segment(_) => {
            "If this one is, \"pitr wal resolve\" gives it the timeline from here on."
        }
        _ => "",
    };
    format!(
        "Nothing was overwritten; both copies are kept, and archiving waits at this file. Likely two servers write the same timeline (split brain, a clone without a guard, or a promotion without the archive). See \"pitr wal conflicts\". Stop the server that is not the cluster. {then}"
    )
}

/// History and backup history files.
fn push_small(what: &Push<'_>, source: &mut dyn Content) -> Result<Archived> {
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
) -> Result<Archived> {
    let (kind, mut warnings) = check_small(name, content)?;
    let registration = repository.require(layout)?;
    let identity = Identity {
        hash: *blake3::hash(content).as_bytes(),
        raw_bytes: content.len() as u64,
        system_identifier: layout.system_identifier(),
        timeline: name.timeline().get(),
        major: registration.major,
        segment_size_bytes: registration.segment_size_bytes,
        name: name.to_string(),
        ..Identity::default()
    };
    let key = layout.wal_file(name);
    if store_small(repository, &key, kind, &identity, content)? == Published::Created {
        read_back(repository, &key, &identity)?;
        return Ok((Pushed::Stored, warnings));
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
        return Ok((Pushed::AlreadyThere, warnings));
    }
    let offered = repository.store().public_hash(&identity.hash)?;
    let conflict = layout.conflict(name, &offered);
    let put = store_small(repository, &conflict, kind, &identity, content)?;
    if kind == Kind::Label {
        warnings.push(label_beside(repository, name, &conflict, put)?);
        return Ok((Pushed::Stored, warnings));
    }
    let error = conflict_error(layout, name, &container, &identity.hash);
    Err(match name {
        WalFileName::History(timeline) => err!(
            TimelineReused,
            "timeline {} already belongs to another history in the archive",
            timeline.decimal()
        )
        .source(error)
        .hint("Nothing was overwritten. Two servers were promoted to the same timeline. Stop the wrong one, or give this one a name of its own with \"pitr adopt --as NAME\", and take a backup there. Where it has filled no segment on this timeline yet, it is enough to restart this one in recovery so that it takes a higher number, and to take a backup then: nothing leads through the number that is taken. See \"pitr wal conflicts\"."),
        _ => error,
    })
}

/// Another backup history file of the same name: a backup in another life of the timeline. Recovery never asks for one, so archiving does not
/// wait for a decision: it is kept beside the first.
fn label_beside(
    repository: &Repository,
    name: WalFileName,
    key: &Key,
    put: Published,
) -> Result<String> {
    if put == Published::Exists {
        let object = repository.store().open(key)?;
        let object = object.ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))?;
        object.settle()?;
    }
    Ok(format!(
        "another backup history file of this name is archived: \"{name}\" is kept beside it, under \"{key}\""
    ))
}

/// A backup history file that cannot be read is archived all the same: recovery never asks for one, and WAL would wait behind it for ever.
fn check_small(name: WalFileName, content: &[u8]) -> Result<(Kind, Warnings)> {
    if let WalFileName::History(timeline) = name {
        History::parse(timeline, content).map_err(|e| e.with_code(Code::SourceHeader))?;
        return Ok((Kind::History, Vec::new()));
    }
    let unread = BackupHistory::parse(content).err();
    let warning = |e| format!("\"{name}\" cannot be read, and is archived as it is: {e}");
    Ok((Kind::Label, unread.into_iter().map(warning).collect()))
}

/// These files do not name their cluster: pg_control beside them does, else the only registration.
fn layout_of(what: &Push<'_>) -> Result<ClusterLayout> {
    if let Some(control) = DataDirectory::of_wal_file(what.path).control_head()? {
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
