//! The changes since the prior, by the WAL between the start of the prior and that of the backup.
//!
//! The indexes of archived segments give them; a segment without a usable index is decoded. WAL that is not archived
//! yet is decoded from the server's own pg_wal. The chain is the one that plans follow: links, borders and `xl_prev`
//! are checked from segment to segment. Anything that does not fit is a [`Problem`]: then another source has to give
//! the changes.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::archive::datadir::open_at_once;
use crate::archive::life;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::record::{DEFAULT_BLOCK_SIZE, Record};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::summary::{SegmentEnd, SegmentSummary};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::History;
use crate::pg::version::Major;
use crate::plan::chain::{Chain, Stretch, StretchEnd};
use crate::repo::clock;
use crate::repo::container::Container;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::root::ClusterContent;
use crate::repo::wal_proof::{Prefix, RawHash, WalProof};
use crate::store::{Key, Listed};
use crate::ticking::ticking;
use crate::wal::changed::{Changed, Decoder, Problem, add_record};
use crate::wal::increment::OpenSegment;
use crate::wal::index::{self, HeadEnd, Summary, flag};
use crate::wal::inventory::Inventory;
use crate::wal::link::{self, Link};
use crate::wal::path::Path;
use crate::wal::rollup::Rollup;
use crate::wal::stored_wal::{self, StoredWal};

/// Size of a WAL page.
const PAGE_BYTES: u64 = 8192;
/// Bytes read at once from pg_wal, whole pages.
const PIECE_BYTES: u64 = 1 << 20;
/// A segment that is nowhere may have been archived, and its file been removed, while it was looked for: so often is looked again.
const IDLE_ROUNDS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// WAL whose changes are asked for.
pub struct Interval<'a> {
    /// Repository with the archived part.
    pub repository: &'a Repository,
    /// The cluster's keys.
    pub layout: &'a ClusterLayout,
    /// The server's major.
    pub major: Major,
    /// The backup at whose start it begins.
    pub prior: &'a ClusterContent,
    /// When the prior began.
    pub prior_time: TimestampTz,
    /// The server's history.
    pub history: &'a History,
    pub size: SegmentSize,
    /// Start LSN of the backup, where it ends.
    pub end: Lsn,
    /// The server's pg_wal.
    pub server: &'a std::path::Path,
    /// Called at least once a segment: keeps claims and session, and ends when the operator wants to stop.
    pub tick: RefCell<&'a mut dyn FnMut() -> Result<()>>,
}

/// The result of one look at repository and server.
struct Round {
    /// The newest segment that is archived without a hole.
    newest: SegmentNumber,
    /// The missing part after it, as a problem; none if nothing is missing.
    lacks: Option<Problem>,
}

/// A result, or the problem that keeps it from being known.
type Told<T> = Result<std::result::Result<T, Problem>>;

/// Turns damage of single objects and files into a problem: this source does not serve. Neither does one that cannot
/// be read for want of a key.
fn told<T>(result: Result<T>) -> Told<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(e) if e.is_damage() || matches!(e.code(), Code::NotFound | Code::Key) => {
            Ok(Err(e.to_string()))
        }
        Err(e) => Err(e),
    }
}

/// Leaves with the problem, if there is one.
macro_rules! known {
    ($told:expr) => {
        match $told {
            Ok(value) => value,
            Err(problem) => return Ok(Err(problem)),
        }
    };
}

impl Interval<'_> {
    /// Returns what changed. While it is read, the archiver may store segments and the server remove them: each round goes on where the archived WAL
    /// ended in the one before, with that segment. A record that began before it and ends behind it is a problem.
    ///
    /// # Errors
    /// `Interrupted`; what the store says, but for damage, which is a problem.
    pub fn changed(&self) -> Told<Changed> {
        known!(self.check_life()?);
        let mut changed = Changed::default();
        let (mut from, _) = self.bounds();
        let mut idle = 0;
        loop {
            self.tick()?;
            let round = known!(self.round(from, &mut changed)?);
            let Some(lacks) = round.lacks else {
                changed.settle();
                return Ok(Ok(changed));
            };
            idle = if round.newest > from { 0 } else { idle + 1 };
            if idle == IDLE_ROUNDS {
                return Ok(Err(lacks));
            }
            std::thread::sleep(PAUSE * idle);
            from = round.newest;
        }
    }

    fn tick(&self) -> Result<()> {
        (self.tick.borrow_mut())()
    }

    /// Start of the first segment whose records are read.
    pub fn first_told(&self) -> Lsn {
        let (first, _) = self.bounds();
        first.range(self.size).start
    }

    fn bounds(&self) -> (SegmentNumber, SegmentNumber) {
        (
            SegmentNumber::of(self.prior.start_lsn, self.size),
            SegmentNumber::ending_at(self.end, self.size),
        )
    }

    /// Adds what the WAL from a segment on changed, first the archived part.
    fn round(&self, from: SegmentNumber, changed: &mut Changed) -> Told<Round> {
        let (repository, layout, history) = (self.repository, self.layout, self.history);
        // Every head of a week's WAL may be read here.
        let look = || -> Told<(Inventory, Stretch)> {
            let (name, identifier) = (layout.name(), layout.system_identifier());
            let read = Inventory::of_wal(repository, name, identifier);
            let inventory = known!(told(read)?);
            let rollup = Rollup::new(repository, &inventory, None)?;
            let chain = Chain::new(&inventory, &rollup, history.clone());
            let stretch = known!(told(chain.stretch_from(from))?);
            let stretch = Stretch::clone(&stretch);
            drop(chain);
            drop(rollup);
            Ok(Ok((inventory, stretch)))
        };
        let (inventory, stretch) = known!(ticking(&mut || self.tick(), look)?);
        let archived = self.archived(from, &inventory, &stretch);
        known!(self.indexed(&archived, changed)?);
        let newest = archived.last().copied();
        known!(match newest {
            Some(newest) => self.is_own(newest)?,
            None => self.has_prior()?,
        });
        let number = newest.map(|name| name.number(self.size)).transpose()?;
        let (_, last) = self.bounds();
        let lacks = match number.is_none_or(|number| number < last) {
            true => self.unarchived(newest, changed)?.err(),
            false => None,
        };
        // More WAL, for which another round would wait, makes it no smaller.
        known!(has_room(changed));
        Ok(Ok(Round {
            newest: number.unwrap_or(from),
            lacks: lacks.map(|lacks| {
                let end = describe(&stretch.end);
                format!("{lacks} (the archived WAL: {end})")
            }),
        }))
    }

    /// The segments of the interval that are archived whole, without a hole from this one on.
    fn archived(
        &self,
        from: SegmentNumber,
        inventory: &Inventory,
        stretch: &Stretch,
    ) -> Vec<SegmentName> {
        let (_, last) = self.bounds();
        let name = |number: u64| {
            let number = SegmentNumber(number);
            let timeline = stretch.timeline_of(number)?;
            let limited = stretch.limit.is_some() && stretch.final_segment() == Some(number);
            (inventory.has(timeline, number) && !limited)
                .then(|| number.name(timeline, self.size))
                .flatten()
        };
        (from.0..=last.0).map_while(name).collect()
    }

    /// Requires that the archived WAL is of the prior's own life: by its proof, and by no other copy that was refused.
    fn check_life(&self) -> Told<()> {
        let store = self.repository.store();
        let Some(proof) = &self.prior.wal_proof else {
            return Ok(Err("its WAL was not proven when it was taken".into()));
        };
        for (name, hash) in proof.segments() {
            let container = known!(told(self.open(name))?);
            if !hash.is_of(&container) {
                return Ok(Err(format!("segment \"{name}\" is another server's")));
            }
        }
        // A prior that ends in a segment that was not whole then is known by the beginning of that alone.
        if let Some((name, length_bytes, hash)) = proof.tail() {
            let (size, major) = (self.size, self.major.number());
            let segment = OpenSegment { name, size, major };
            let tail = (length_bytes, hash);
            let proven =
                stored_wal::has_surely_prefix(self.repository, self.layout, &segment, tail);
            if !known!(told(proven)?) {
                return Ok(Err(format!(
                    "segment \"{name}\" is not surely the prior's own"
                )));
            }
        }
        known!(self.check_end(proof)?);
        let (first, last) = self.bounds();
        for listed in store.list(&self.layout.conflicts())? {
            let name = listed.name.rsplit_once('-').map(|(name, _)| name);
            let Some(Ok(WalFileName::Segment(name))) = name.map(str::parse) else {
                continue;
            };
            let number = name.number(self.size)?;
            // One that was refused before the interval, but after the prior began, tells that another server has come: its WAL may go on later.
            let is_doubt = || Ok::<_, Error>(first <= number || self.is_refused_since(&listed)?);
            if self.history.contains(name.timeline) && number <= last && is_doubt()? {
                return Ok(Err(format!(
                    "another copy of segment \"{name}\" was refused"
                )));
            }
        }
        Ok(Ok(()))
    }

    /// Whether a copy was refused after the prior began, as far as the clocks of this host and the store agree.
    fn is_refused_since(&self, listed: &Listed) -> Result<bool> {
        let key = Key::new(format!("{}/{}", self.layout.conflicts(), listed.name))?;
        let meta = match listed.meta {
            Some(meta) => Some(meta),
            None => self.repository.store().head(&key)?,
        };
        let since = self.prior_time.saturating_sub(clock::MAY_DIFFER);
        Ok(meta.is_none_or(|meta| meta.modified >= since))
    }

    /// Requires that the server goes on from the prior's own end. The copy tells that a later timeline has, if it begins behind that end in the same
    /// segment; the server's own file tells it of a segment that is not archived whole.
    fn check_end(&self, proof: &WalProof) -> Told<()> {
        let own = proof.last.name;
        let path = Path::new(self.history.clone(), self.size);
        let name = path.name(own.number(self.size)?).unwrap_or(own);
        let is_later = name.timeline > own.timeline;
        let unsure = || {
            Ok(Err(format!(
                "segment \"{name}\" is not surely a continuation of the prior"
            )))
        };
        let Some((_, length_bytes, hash)) = proof.end() else {
            return if is_later { unsure() } else { Ok(Ok(())) };
        };
        let (size, major) = (self.size, self.major.number());
        let segment = OpenSegment { name, size, major };
        let stored = StoredWal::open(self.repository, self.layout, &segment);
        let whole = match told(stored)? {
            Ok(Some(StoredWal::Whole(_))) if !is_later => return Ok(Ok(())),
            Ok(Some(whole @ StoredWal::Whole(_))) => {
                told(whole.prefix(self.repository, self.layout, length_bytes))?
            }
            _ => Ok(None),
        };
        let found = match whole {
            Ok(Some(found)) => Some(found),
            _ => self.prefix_in_server(name, length_bytes),
        };
        match found {
            Some(found) if found == hash => Ok(Ok(())),
            None if !is_later => Ok(Ok(())),
            _ => unsure(),
        }
    }

    fn open(&self, name: SegmentName) -> Result<Container> {
        let key = self.layout.segment(name);
        let object = self.repository.store().open(&key)?;
        let object = object.ok_or_else(|| crate::err!(Damaged, "segment \"{name}\" is gone"))?;
        Container::open(object).map_err(|e| e.context(format!("segment \"{name}\"")))
    }

    /// Adds what the archived segments changed, by their indexes where these tell it.
    fn indexed(&self, archived: &[SegmentName], changed: &mut Changed) -> Told<()> {
        let mut crossing: Option<Crossing> = None;
        for (at, name) in archived.iter().enumerate() {
            self.tick()?;
            changed.set_late(name.number(self.size)?.range(self.size).end > self.end);
            let container = known!(told(self.open(*name))?);
            let summary = known!(told(index::read_summary(&container))?);
            if summary.has(flag::UNDECODED) {
                // Its index does not tell of records that cross its borders.
                return Ok(Err(format!(
                    "segment \"{name}\" was archived by a program that could not decode it"
                )));
            }
            if crossing.is_none() && summary.head_end == HeadEnd::Continues {
                return Ok(Err(lies_in_a_record(*name)));
            }
            if let Some(ended) = Crossing::continued(&mut crossing, &container, &summary)? {
                known!(self.joined(&ended, archived.get(ended.from..=at), changed)?);
            }
            if !known!(told(take_index(&container, &summary, changed))?) {
                known!(self.decode(&[*name], changed)?);
            }
            if summary.tail_length > 0 {
                let tail = known!(told(index::read_fragments(&container))?).tail;
                crossing = Some(Crossing {
                    from: at,
                    start: summary.last_begun.unwrap_or_default(),
                    is_whole: tail.len() == summary.tail_length as usize,
                    bytes: tail,
                });
            }
            known!(has_room(changed));
        }
        changed.set_late(false);
        Ok(Ok(()))
    }

    /// Adds what a record changed that crosses a border of segments, whose pieces the indexes kept, or else the bodies have.
    fn joined(
        &self,
        ended: &Crossing,
        segments: Option<&[SegmentName]>,
        changed: &mut Changed,
    ) -> Told<()> {
        if ended.is_whole {
            let at = ended.start;
            let record = Record::parse(self.major, DEFAULT_BLOCK_SIZE, at, at, &ended.bytes);
            if let Ok(record) = record {
                return Ok(add_record(changed, &record));
            }
        }
        self.decode(segments.unwrap_or_default(), changed)
    }

    /// Adds what archived segments in a row changed, by their bodies.
    fn decode(&self, segments: &[SegmentName], changed: &mut Changed) -> Told<()> {
        let mut decoder = Decoder::new(changed);
        for name in segments {
            known!(self.decode_one(*name, &mut decoder)?);
        }
        Ok(Ok(()))
    }

    fn decode_one(&self, name: SegmentName, decoder: &mut Decoder<'_>) -> Told<SegmentSummary> {
        let container = known!(told(self.open(name))?);
        decoder.begin(name, name.start_lsn(self.size)?);
        match container.read_body(&mut |piece| decoder.feed(piece)) {
            Err(e) if e.code() == Code::Key => known!(self.decode_own(name, &container, decoder)?),
            read => known!(told(read)?),
        }
        Ok(whole(name, decoder))
    }

    /// Decodes a segment that cannot be read back from the server's file of it, which has to have the same bytes.
    fn decode_own(
        &self,
        name: SegmentName,
        container: &Container,
        decoder: &mut Decoder<'_>,
    ) -> Told<()> {
        let another = || {
            Ok(Err(format!(
                "segment \"{name}\" cannot be read back, and the server has another one"
            )))
        };
        let path = self.server.join(name.to_string());
        let Ok(file) = open_at_once(&path) else {
            return Ok(Err(format!(
                "segment \"{name}\" cannot be read back, and the server has it no more"
            )));
        };
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < self.size.bytes() {
            let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
            piece.truncate(usize::try_from(self.size.bytes() - at).unwrap_or(usize::MAX));
            // It may be recycled while it is read: then its hash is another one.
            if file.read_exact_at(&mut piece, at).is_err() {
                return another();
            }
            hasher.update(&piece);
            known!(told(decoder.feed(&piece))?);
            at += piece.len() as u64;
        }
        match container.has_hash(hasher.finalize().as_bytes()) {
            true => Ok(Ok(())),
            false => another(),
        }
    }

    /// Requires that the newest archived segment is the server's own, where the server still has it.
    fn is_own(&self, newest: SegmentName) -> Told<()> {
        let container = known!(told(self.open(newest))?);
        let own = known!(told(Link::read(&container))?).own;
        let summary = known!(told(index::read_summary(&container))?);
        let (Some(own), Some(end)) = (own, link::own_end(&summary, self.size)) else {
            return Ok(Ok(()));
        };
        let of = (self.layout.system_identifier(), self.size);
        match life::mark_in_server(self.server, newest, of, end)? {
            Some(mark) if mark != own => Ok(Err(format!(
                "segment \"{newest}\" in the repository is not the server's own"
            ))),
            _ => Ok(Ok(())),
        }
    }

    /// Requires that the server's own WAL is that of the prior, where no segment of the interval is archived whole: up to the stop of the prior it has the
    /// bytes that were proven then.
    fn has_prior(&self) -> Told<()> {
        let last = self.prior.wal_proof.as_ref().map(|proof| &proof.last);
        let Some((last, hash)) = last.and_then(|last| Some((last, last.hash?))) else {
            return Ok(Err("the WAL of the prior was not proven".into()));
        };
        match self.prefix_in_server(last.name, last.length_bytes) == Some(hash) {
            true => Ok(Ok(())),
            false => Ok(Err(format!(
                "segment \"{}\", with which the prior ends, is not archived whole, and the server has it no more",
                last.name
            ))),
        }
    }

    /// The hash of the first bytes of the server's own file of a segment; `None` where it has not so many.
    fn prefix_in_server(&self, name: SegmentName, length_bytes: u64) -> Option<RawHash> {
        let path = self.server.join(name.to_string());
        let mut prefix = Prefix::new(length_bytes);
        let mut at = 0;
        while at < length_bytes {
            let bytes = (length_bytes - at).min(PIECE_BYTES);
            let mut piece = vec![0; usize::try_from(bytes).unwrap_or(0)];
            if !life::read_segment_at(&path, self.size.bytes(), &mut piece, at) {
                break;
            }
            prefix.update(&piece);
            at += bytes;
        }
        prefix.finish()
    }

    /// Adds what the segments behind the newest archived one changed, from the server's own pg_wal. That one is decoded, too: what follows has to continue
    /// it. On a host that cannot read it back its index serves for that.
    fn unarchived(&self, newest: Option<SegmentName>, changed: &mut Changed) -> Told<()> {
        let mut decoder = Decoder::new(changed);
        let (mut number, last) = self.bounds();
        let mut edge = None;
        if let Some(newest) = newest {
            match self.decode_one(newest, &mut decoder)? {
                Ok(summary) if is_all_middle(&summary) => return Ok(Err(lies_in_a_record(newest))),
                Ok(_) => {}
                Err(problem) => {
                    // Its own file would have the bytes.
                    let is_there = self.server.join(newest.to_string()).exists();
                    if self.repository.kept().is_none() || is_there {
                        return Ok(Err(problem));
                    }
                    decoder.restart();
                    edge = Some(known!(self.edge(newest)?));
                }
            }
            number = newest.number(self.size)?.next();
        }
        let path = Path::new(self.history.clone(), self.size);
        while number <= last {
            self.tick()?;
            let Some(name) = path.name(number) else {
                return Ok(Err(format!("{} has no segment", self.end)));
            };
            let summary = known!(self.server_segment(name, number, &mut decoder)?);
            if let Some(edge) = edge.take() {
                known!(edge.join(&summary, self.major, &mut decoder));
            }
            known!(has_room(decoder.changed()));
            number = number.next();
        }
        Ok(Ok(()))
    }

    /// Reads the end of an archived segment from its index.
    fn edge(&self, name: SegmentName) -> Told<Edge> {
        let container = known!(told(self.open(name))?);
        let summary = known!(told(index::read_summary(&container))?);
        let tail = known!(told(index::read_fragments(&container))?).tail;
        Ok(Ok(Edge {
            name,
            summary,
            tail,
        }))
    }

    fn server_segment(
        &self,
        name: SegmentName,
        number: SegmentNumber,
        decoder: &mut Decoder<'_>,
    ) -> Told<SegmentSummary> {
        let lacking = |why: &str| {
            Ok(Err(format!(
                "segment \"{name}\" is not in the repository, and {why}"
            )))
        };
        let path = self.server.join(name.to_string());
        let file = match open_at_once(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return lacking("the server has it no more");
            }
            Err(e) => return Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
        };
        let range = number.range(self.size);
        let end = range.end.0.min(self.end.0) - range.start.0;
        decoder.begin(name, range.start);
        let mut at = 0;
        while at < end {
            let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
            let bytes = (end - at).next_multiple_of(PAGE_BYTES).min(PIECE_BYTES);
            piece.truncate(usize::try_from(bytes).unwrap_or(0));
            if file.read_exact_at(&mut piece, at).is_err() {
                return lacking("the server's file of it is short");
            }
            if at == 0 && !self.is_of_server(&piece, name) {
                return lacking("the server's file of it is another one");
            }
            // Records behind the start LSN are being written, and none of this business.
            let counted = usize::try_from((end - at).min(bytes)).unwrap_or(0);
            if let Some(behind) = piece.get_mut(counted..) {
                behind.fill(0);
            }
            known!(told(decoder.feed(&piece))?);
            at += bytes;
        }
        if range.end <= self.end {
            return Ok(whole(name, decoder));
        }
        let summary = known!(decoder.end());
        match summary.end == SegmentEnd::ZeroLength && summary.valid_end == self.end {
            true => Ok(Ok(summary)),
            false => lacking(&format!(
                "the server's file of it ends at {}, before the backup's start",
                summary.valid_end
            )),
        }
    }

    fn is_of_server(&self, first: &[u8], name: SegmentName) -> bool {
        WalIdentity::read(first).is_ok_and(|wal| {
            wal.matches(name).is_ok()
                && wal.system_identifier == self.layout.system_identifier()
                && wal.segment_size == self.size
        })
    }
}

/// Whether a segment is all middle of a record.
fn is_all_middle(summary: &SegmentSummary) -> bool {
    let head = summary.head.as_ref();
    head.is_some_and(|head| head.end_lsn.is_none()) && summary.first_record.is_none()
}

/// The problem of such a segment, where reading begins with it.
fn lies_in_a_record(name: SegmentName) -> Problem {
    format!("segment \"{name}\" lies in a record that begins before it and ends behind it")
}

/// Requires that a segment was whole.
fn whole(
    name: SegmentName,
    decoder: &mut Decoder<'_>,
) -> std::result::Result<SegmentSummary, Problem> {
    let summary = decoder.end()?;
    match summary.end {
        SegmentEnd::Full | SegmentEnd::Switch(_) => Ok(summary),
        _ => Err(format!("the WAL of segment \"{name}\" ends inside")),
    }
}

/// Requires that what changed fits into memory. Asked after each segment: an interval of days may name millions of files.
fn has_room(changed: &Changed) -> std::result::Result<(), Problem> {
    match changed.is_too_large() {
        true => Err("it names too many files".into()),
        false => Ok(()),
    }
}

/// Adds what an index tells; `false` where it does not tell everything.
fn take_index(container: &Container, summary: &Summary, changed: &mut Changed) -> Result<bool> {
    let silent = flag::DAMAGED | flag::MINIMAL | flag::ENDS_INSIDE;
    if summary.has(silent) {
        return Ok(false);
    }
    let blocks = index::read_blocks(container)?;
    let events = index::read_events(container, summary.start_lsn)?;
    Ok(blocks
        .zip(events)
        .is_some_and(|(blocks, events)| changed.add_index(&blocks, &events).is_ok()))
}

/// The end of a segment that is known by its index alone.
struct Edge {
    name: SegmentName,
    summary: Summary,
    /// The beginning of the record that crosses the border; empty where there is none.
    tail: Vec<u8>,
}

impl Edge {
    /// Requires that the next segment continues this one, and adds what the record changed that crosses the border.
    fn join(
        &self,
        next: &SegmentSummary,
        major: Major,
        decoder: &mut Decoder<'_>,
    ) -> std::result::Result<(), Problem> {
        let breaks = || {
            format!(
                "the server's own WAL does not continue segment \"{}\"",
                self.name
            )
        };
        let begun = self.summary.last_begun.ok_or_else(breaks)?;
        match &next.head {
            None if self.summary.tail_length == 0 => {}
            Some(head)
                if head.end_lsn.is_some()
                    && self.tail.len() == self.summary.tail_length as usize
                    && head.bytes.len() == head.length as usize =>
            {
                let bytes = [self.tail.as_slice(), &head.bytes].concat();
                let record = Record::parse(major, DEFAULT_BLOCK_SIZE, begun, begun, &bytes);
                decoder.add(&record.map_err(|_| breaks())?)?;
            }
            _ => return Err(breaks()),
        }
        match next.first_record {
            Some((_, before)) if before != begun => Err(breaks()),
            _ => Ok(()),
        }
    }
}

/// A record that crosses borders of segments.
struct Crossing {
    /// Index of the segment in which it begins.
    from: usize,
    start: Lsn,
    /// Its pieces so far.
    bytes: Vec<u8>,
    /// Whether no piece is missing.
    is_whole: bool,
}

impl Crossing {
    /// Takes up what a segment has of the record; returns it once it ends there. One that was abandoned changed nothing.
    fn continued(
        open: &mut Option<Crossing>,
        container: &Container,
        summary: &Summary,
    ) -> Result<Option<Crossing>> {
        let Some(mut crossing) = open.take() else {
            return Ok(None);
        };
        if matches!(summary.head_end, HeadEnd::None | HeadEnd::Abandoned) {
            return Ok(None);
        }
        let head = match index::read_fragments(container) {
            Ok(fragments) => fragments.head,
            Err(e) if e.is_damage() => Vec::new(),
            Err(e) => return Err(e),
        };
        crossing.is_whole &= head.len() == summary.head_length as usize;
        crossing.bytes.extend_from_slice(&head);
        if summary.head_end == HeadEnd::Here {
            return Ok(Some(crossing));
        }
        *open = Some(crossing);
        Ok(None)
    }
}

/// Why a chain of archived WAL ends, for a sentence.
fn describe(end: &StretchEnd) -> String {
    match end {
        StretchEnd::EndOfWal => "nothing more is there".into(),
        StretchEnd::Missing { .. } => "segments are missing".into(),
        StretchEnd::Broken { at, why } => format!("segment \"{at}\": {why}"),
        StretchEnd::Damaged { at, why } => format!("segment \"{at}\" is damaged: {why}"),
        StretchEnd::EndsInside { at, lsn } => format!("WAL ends in segment \"{at}\" at {lsn}"),
        StretchEnd::Minimal { at } => {
            format!("segment \"{at}\" has WAL of wal_level minimal")
        }
        StretchEnd::Undecoded { at } => {
            format!("segment \"{at}\" was written by a PostgreSQL that is not known")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::change::Change;
    use crate::pg::craft::{Craft, long_main_data};
    use crate::pg::record::Relation;
    use crate::pg::timeline::TimelineId;
    use crate::repo;
    use crate::wal::crafted;

    /// More dropped relations than are kept.
    fn too_many() -> Changed {
        let mut changed = Changed::default();
        for number in 0..500_000 {
            changed.add(&Change::Drop(Relation {
                tablespace: 1663,
                database: 5,
                number,
            }));
        }
        changed
    }

    fn first_two(interval: &Interval<'_>) -> [SegmentName; 2] {
        [1, 2].map(|n| {
            let name = SegmentNumber(n).name(TimelineId::FIRST, interval.size);
            name.unwrap()
        })
    }

    /// Reads what changed from the start of crafted WAL to `end`, in a repository; the server's own WAL would be in `server`.
    fn in_interval(
        craft: &Craft,
        (repository, server): (&Repository, &std::path::Path),
        end: Lsn,
        read: impl FnOnce(&Interval<'_>),
    ) {
        let layout = ClusterLayout::new("main", craft.identity.system_identifier).unwrap();
        let (prior, history) = (ClusterContent::sample(), History::root(TimelineId::FIRST));
        let mut tick = || -> Result<()> { Ok(()) };
        read(&Interval {
            repository,
            layout: &layout,
            major: Major::V17,
            prior: &prior,
            prior_time: TimestampTz(0),
            history: &history,
            size: craft.identity.segment_size,
            end,
            server,
            tick: RefCell::new(&mut tick),
        });
    }

    /// A later round begins with the newest segment of the one before.
    #[test]
    fn b46_a_record_whose_beginning_was_read_in_an_earlier_round_is_a_problem() {
        let mut craft = Craft::new(Major::V17);
        craft.main(0, 0x20, 0, &[7; 40]);
        // From the first segment through the second into the third.
        craft.record(0, 0x20, 0, &long_main_data(&vec![7; 5 << 19]));
        craft.switch();
        let dir = tempfile::tempdir().unwrap();
        let repository = crafted::repository(dir.path(), &craft);
        in_interval(
            &craft,
            (&repository, dir.path()),
            Lsn(4 << 20),
            |interval| {
                let size = interval.size;
                let [one, two, three] =
                    [1, 2, 3].map(|n| SegmentNumber(n).name(TimelineId::FIRST, size).unwrap());
                let indexed = |segments: &[SegmentName]| {
                    let mut changed = Changed::default();
                    interval.indexed(segments, &mut changed).unwrap()
                };
                assert_eq!(indexed(&[one, two, three]), Ok(()));
                assert_eq!(indexed(&[one, two]), Ok(()));
                assert_eq!(indexed(&[three]), Ok(()), "the earlier round had it");
                let problem = Err(lies_in_a_record(two));
                assert_eq!(indexed(&[two, three]), problem);
                let mut changed = Changed::default();
                let unarchived = interval.unarchived(Some(two), &mut changed).unwrap();
                assert_eq!(unarchived, problem);
            },
        );
    }

    /// The record that ends in such a segment, or begins there, would be passed over.
    #[test]
    fn b46_a_segment_that_its_archiver_could_not_decode_is_a_problem() {
        let mut craft = Craft::new(Major::V17);
        craft.record(0, 0x20, 0, &long_main_data(&vec![7; 3 << 19]));
        craft.switch();
        let dir = tempfile::tempdir().unwrap();
        let (repository, _) = repo::crafted::create(dir.path(), &craft);
        for (number, segment) in (1..).zip(craft.bytes.chunks(1 << 20)) {
            crafted::store_as(&repository, &craft, (number, segment), number == 2);
        }
        in_interval(
            &craft,
            (&repository, dir.path()),
            Lsn(3 << 20),
            |interval| {
                let segments = first_two(interval);
                let told = interval.indexed(&segments, &mut Changed::default());
                assert!(told.unwrap().unwrap_err().contains("could not decode"));
            },
        );
    }

    #[test]
    fn r199_too_many_files_are_refused_before_the_next_segment_is_read() {
        let mut craft = Craft::new(Major::V17);
        craft.main(0, 0x20, 0, &[7; 40]);
        craft.switch();
        let dir = tempfile::tempdir().unwrap();
        let repository = crafted::repository(dir.path(), &craft);
        in_interval(
            &craft,
            (&repository, dir.path()),
            Lsn(4 << 20),
            |interval| {
                // The second one is not there.
                let segments = first_two(interval);
                let of = |mut changed: Changed| interval.indexed(&segments, &mut changed).unwrap();
                assert_eq!(of(too_many()), Err("it names too many files".to_owned()));
                assert!(of(Changed::default()).unwrap_err().contains("is gone"));
            },
        );
    }
}
