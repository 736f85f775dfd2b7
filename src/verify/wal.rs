//! Segments: each byte against its checksums, each index against its body, each record against the one before it, also across
//! the borders of segments and timelines.
//!
//! Segments are read in chunks of consecutive ones, on several threads. Each chunk begins by reading the segment before it once more, so
//! that no border is left out.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::check::is_damage;
use super::{About, FindingKind, Work, files};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::reader::{Finding as WalFinding, Reader, SegmentEnd, Sink};
use crate::pg::record::Record;
use crate::pg::segment::{SegmentName, SegmentNumber, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::pg::xlog::{self, WalLevel};
use crate::plan::retention::wal::{Needed, Paths};
use crate::repo::catalog::Manifest;
use crate::repo::container::{Container, Identity, tag};
use crate::repo::id::BackupId;
use crate::repo::lives;
use crate::wal::index::{self, SegmentIndex, flag};
use crate::wal::link::{self, Before, Brief, Joined, Link, Mark};
use crate::wal::survey::Survey;
use crate::wal::undecoded::Indexing;

/// Bytes of consecutive segments that one thread takes at a time.
const CHUNK_BYTES: u64 = 512 << 20;
/// The largest page of WAL, which pages of all other sizes divide.
const PAGE_MAX: usize = 64 << 10;
/// How far back a commit is looked for to say when a gap begins.
const LOOK_BACK: u64 = 64;

/// Consecutive segments of one timeline.
struct Chunk {
    timeline: TimelineId,
    first: SegmentNumber,
    last: SegmentNumber,
    /// The run goes on behind it.
    goes_on: bool,
    /// The segment that comes before, on this timeline or its parent.
    before: Option<SegmentName>,
}

/// Says which segments are looked at.
pub(super) type Wanted<'a> = &'a dyn Fn(TimelineId, SegmentNumber) -> bool;

/// How much of a segment is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Every byte.
    Whole,
    /// Its end, which says what it is, how long it is, and what it continues.
    End,
}

/// The segments that backups need by themselves.
pub(super) fn needed(survey: &Survey, paths: &Paths<'_>, chosen: &[BackupId]) -> Needed {
    let mut needed = Needed::default();
    for id in chosen {
        if let Some(Manifest::Committed(root)) = survey.ids.get(id).map(|s| &s.manifest) {
            paths.need_path(root.timeline, root.start_lsn, root.stop_lsn, &mut needed);
        }
    }
    needed
}

/// Reads the wanted segments.
pub(super) fn check(
    work: &Work<'_>,
    (survey, paths): (&Survey, &Paths<'_>),
    wanted: Wanted<'_>,
    extent: Extent,
) -> Result<()> {
    let chunks = chunks(work, survey, paths, wanted);
    let total: u64 = chunks.iter().map(|c| c.last.0 - c.first.0 + 1).sum();
    let bytes = total.saturating_mul(work.size.bytes());
    work.host.progress.phase("verify WAL", Some(bytes));
    let next = AtomicUsize::new(0);
    let read = || -> Result<()> {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            check_chunk(work, chunk, extent)?;
        }
        Ok(())
    };
    work.on_threads(&read)
}

fn chunks(
    work: &Work<'_>,
    survey: &Survey,
    paths: &Paths<'_>,
    is_wanted: Wanted<'_>,
) -> Vec<Chunk> {
    let step = (CHUNK_BYTES / work.size.bytes()).clamp(4, 256);
    let mut chunks = Vec::new();
    for (timeline, held) in &survey.timelines {
        for (first, last) in held.segments.iter() {
            let mut at = first.0;
            while at <= last.0 {
                let end = at.saturating_add(step - 1).min(last.0);
                let mut wanted = (at..=end)
                    .map(SegmentNumber)
                    .filter(|n| is_wanted(*timeline, *n));
                if let Some(from) = wanted.next() {
                    let to = wanted.last().unwrap_or(from);
                    chunks.push(Chunk {
                        timeline: *timeline,
                        first: from,
                        last: to,
                        goes_on: to < last,
                        before: before(work, survey, paths, *timeline, from),
                    });
                }
                at = end + 1;
            }
        }
    }
    chunks
}

fn before(
    work: &Work<'_>,
    survey: &Survey,
    paths: &Paths<'_>,
    timeline: TimelineId,
    number: SegmentNumber,
) -> Option<SegmentName> {
    let number = SegmentNumber(number.0.checked_sub(1)?);
    let holder = paths.holder(timeline, number);
    let there = survey
        .timelines
        .get(&holder)
        .is_some_and(|t| t.segments.contains(number));
    number.name(holder, work.size).filter(|_| there)
}

/// Follows the records from segment to segment.
#[derive(Default)]
struct Chain {
    reader: Option<(WalIdentity, Reader)>,
    /// Set when the reader stands right behind this segment.
    behind: Option<SegmentNumber>,
    /// That segment's name, and its own mark.
    mark: Option<(SegmentName, Option<Mark>)>,
}

/// Keeps what a reader of WAL finds.
#[derive(Default)]
struct Findings {
    first: Vec<WalFinding>,
    /// The first record that ends in the segment and has wal_level minimal; the index lacks one that began in the segment before.
    minimal: Option<Lsn>,
}

impl Sink for Findings {
    fn record(&mut self, record: &Record<'_>) {
        if xlog::changed_level(record) == Some(WalLevel::Minimal) {
            self.minimal.get_or_insert(record.start_lsn);
        }
    }

    fn finding(&mut self, finding: WalFinding) {
        // Behind the first one recovery does not come.
        if self.first.len() < 8 {
            self.first.push(finding);
        }
    }
}

fn check_chunk(work: &Work<'_>, chunk: &Chunk, extent: Extent) -> Result<()> {
    let mut chain = Chain::default();
    if let Some(before) = chunk.before {
        // Its own check is another chunk's; here it only leads in.
        let lead = lead_in(work, before, extent, &mut chain);
        match lead {
            Err(e) if is_damage(&e) || e.is_frozen() || e.code() == Code::Unsupported => {
                chain = Chain::default();
            }
            lead => lead?,
        }
    }
    for number in chunk.first.0..=chunk.last.0 {
        work.host.check_stop()?;
        let Some(name) = SegmentNumber(number).name(chunk.timeline, work.size) else {
            break;
        };
        let goes_on = number < chunk.last.0 || chunk.goes_on;
        let key = work.layout.segment(name);
        let checked = match extent {
            Extent::Whole => check_segment(work, name, goes_on, &mut chain),
            Extent::End => check_end(work, name, &mut chain),
        };
        let checked = work.settle(checked, key.as_str(), About::Segment(name))?;
        match checked {
            Some(State::Sound) if extent == Extent::Whole => {
                work.read_segment(chunk.timeline, SegmentNumber(number));
            }
            Some(State::Sound | State::EndsReplay) => {}
            Some(State::Gone) | None => chain = Chain::default(),
        }
        work.segments.fetch_add(1, Ordering::Relaxed);
        work.host.progress.advance(work.size.bytes());
    }
    Ok(())
}

fn lead_in(work: &Work<'_>, name: SegmentName, extent: Extent, chain: &mut Chain) -> Result<()> {
    let key = work.layout.segment(name);
    let object = work
        .store
        .open(&key)?
        .ok_or_else(|| err!(Damaged, "it is gone"))?;
    let container = Container::open(object)?;
    check_wal_identity(work, container.identity(), name)?;
    if extent == Extent::Whole {
        read_wal(&container, name, chain, None, &mut Findings::default())?;
    }
    chain.mark = Some((name, Link::read(&container)?.own));
    Ok(())
}

/// The state in which a segment was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is not there any more: whether it is missed is decided in the end.
    Gone,
    /// Every byte is as it was stored, and recovery does not get through it. It stays due, so that each run says so.
    EndsReplay,
    /// Recovery gets through it.
    Sound,
}

fn check_segment(
    work: &Work<'_>,
    name: SegmentName,
    goes_on: bool,
    chain: &mut Chain,
) -> Result<State> {
    let key = work.layout.segment(name);
    let Some(container) = files::open(work, &key)? else {
        return Ok(State::Gone);
    };
    files::check_identity(&container, &work.layout, WalFileName::Segment(name))?;
    check_wal_identity(work, container.identity(), name)?;
    let mut indexer = None;
    let mut findings = Findings::default();
    let (summary_end, last) = read_wal(&container, name, chain, Some(&mut indexer), &mut findings)?;
    let indexer = indexer.ok_or_else(|| err!(Internal, "no page was read"))?;
    let index = indexer.finish(false);
    if index.summary.has(flag::UNDECODED) {
        work.undecoded.fetch_add(1, Ordering::Relaxed);
    }
    check_index(&container, &index, false)?;
    let mut is_sound = check_link(work, (&container, &last), name, &index, chain)?;
    if index.summary.has(flag::MINIMAL) || findings.minimal.is_some() {
        is_sound = false;
        let detail = "it has WAL of wal_level minimal, at which recovery stops";
        let at = findings.minimal.unwrap_or(index.summary.start_lsn);
        let about = About::Record(name, at);
        work.find(FindingKind::Wal, key.as_str(), detail, about);
    }
    for finding in &findings.first {
        let about = About::Record(name, finding.lsn);
        work.find(FindingKind::Wal, key.as_str(), finding.to_string(), about);
    }
    let ends_inside = !matches!(summary_end, SegmentEnd::Full | SegmentEnd::Switch(_));
    if ends_inside && goes_on && findings.first.is_empty() {
        is_sound = false;
        let at = index.summary.valid_end;
        let detail = format!("WAL ends at {at}, although the next segment is there");
        work.find(
            FindingKind::Wal,
            key.as_str(),
            detail,
            About::Record(name, at),
        );
    }
    Ok(match is_sound && findings.first.is_empty() {
        true => State::Sound,
        false => State::EndsReplay,
    })
}

/// Checks what the end of a segment says.
fn check_end(work: &Work<'_>, name: SegmentName, chain: &mut Chain) -> Result<State> {
    let key = work.layout.segment(name);
    let Some(object) = work.store.open(&key)? else {
        work.is_vanishing.store(true, Ordering::Relaxed);
        return Ok(State::Gone);
    };
    let container = Container::open_under(&key, object)?;
    files::check_identity(&container, &work.layout, WalFileName::Segment(name))?;
    check_wal_identity(work, container.identity(), name)?;
    work.count(0);
    let start = name.start_lsn(work.size)?;
    check_joined(work, Link::read(&container)?, name, start, chain)?;
    Ok(State::Sound)
}

/// The segment's own mark has to be that of its WAL.
fn check_link(
    work: &Work<'_>,
    (container, last): (&Container, &Last),
    name: SegmentName,
    index: &SegmentIndex,
    chain: &mut Chain,
) -> Result<bool> {
    let link = Link::read(container)?;
    if let Some(own) = link.own
        && Some(own) != own_mark(work, container, last, index)?
    {
        return Err(err!(Damaged, "its own mark is not that of its WAL"));
    }
    check_joined(work, link, name, index.summary.start_lsn, chain)
}

/// The mark that the segment's writer saw in the segment before is to be that of the one which is stored, or another server wrote one of the two.
/// Returns whether recovery may come from there.
fn check_joined(
    work: &Work<'_>,
    link: Link,
    name: SegmentName,
    start: Lsn,
    chain: &mut Chain,
) -> Result<bool> {
    let before = chain.mark.replace((name, link.own));
    let number = name.number(work.size)?;
    let before = before.filter(|(b, _)| b.number(work.size).is_ok_and(|b| b.next() == number));
    let Some((before, own)) = before else {
        return Ok(true);
    };
    let brief = Brief::from(link);
    let own = Brief::from(Link {
        own,
        before: Before::Unknown,
    });
    let detail = match brief.continues(own.own, before.timeline) {
        Joined::Yes => return Ok(true),
        joined if brief.is_first || joined == Joined::Unproven => {
            work.unlinked.fetch_add(1, Ordering::Relaxed);
            return Ok(true);
        }
        _ => match other_life(work, before, name, link)? {
            Some(way) => {
                work.warn(format!(
                    "segment \"{name}\" continues a life of timeline {} that is not followed: {way}",
                    before.timeline.decimal()
                ));
                return Ok(true);
            }
            None => format!("another server wrote it: it does not continue segment \"{before}\""),
        },
    };
    let key = work.layout.segment(name);
    let about = About::Record(name, start);
    work.find(FindingKind::Wal, key.as_str(), detail, about);
    Ok(false)
}

/// The way to a life that is stored, not followed, and continued by a segment: what descends from a life that lost its fork is no damage.
fn other_life(
    work: &Work<'_>,
    before: SegmentName,
    name: SegmentName,
    link: Link,
) -> Result<Option<&'static str>> {
    let Before::Known(timeline, mark) = link.before else {
        return Ok(None);
    };
    let begins_life = || {
        work.layout
            .lives()
            .of(name)
            .is_some_and(|l| l.segment == name)
    };
    if timeline != before.timeline || (name.timeline == timeline && !begins_life()) {
        return Ok(None);
    }
    let homes = lives::stored_homes(work.store, &work.layout, before.timeline)?;
    for (index, home) in homes.iter().enumerate() {
        match Link::stored(work.store, &home.segment(before)) {
            Ok(Some((link, _))) if link.own == Some(mark) => {
                return Ok(Some(match index {
                    0 => "with --as-stored recovery gets there",
                    _ => {
                        "its resolution was taken back or replaced, and recovery gets there when \"pitr wal resolve\" chooses it again"
                    }
                }));
            }
            // Its own check tells of the damage.
            Err(e) if e.code() != Code::Damaged => return Err(e),
            _ => {}
        }
    }
    Ok(None)
}

/// The mark of the WAL in a segment. Its last bytes are at hand; where WAL ends far before them, it is read once more.
fn own_mark(
    work: &Work<'_>,
    container: &Container,
    last: &Last,
    index: &SegmentIndex,
) -> Result<Option<Mark>> {
    let Some(end) = link::own_end(&index.summary, work.size) else {
        return Ok(None);
    };
    let mut again = Last::default();
    let last = match last.begin() <= end.saturating_sub(link::WINDOW_BYTES) {
        true => last,
        false => {
            container.read_body(&mut |piece| {
                let left = usize::try_from(end.saturating_sub(again.end)).unwrap_or(usize::MAX);
                again.keep(piece.get(..left.min(piece.len())).unwrap_or_default());
                Ok(())
            })?;
            &again
        }
    };
    Mark::compute(end, &mut |buffer, from| {
        let offset = usize::try_from(from - last.begin()).unwrap_or(usize::MAX);
        match last.bytes.get(offset..offset.saturating_add(buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(err!(Damaged, "it is shorter than its WAL")),
        }
    })
    .map(Some)
}

/// The last bytes that were read of a segment: what a mark covers, and more.
#[derive(Default)]
struct Last {
    bytes: Vec<u8>,
    /// Behind the last of them, counted from the segment's start.
    end: u64,
}

impl Last {
    fn begin(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    fn keep(&mut self, piece: &[u8]) {
        const WINDOW: usize = 256 << 10;
        const _: () = assert!(WINDOW as u64 == link::WINDOW_BYTES);
        self.bytes.extend_from_slice(piece);
        self.end += piece.len() as u64;
        if self.bytes.len() > 4 * WINDOW {
            self.bytes.drain(..self.bytes.len() - WINDOW);
        }
    }
}

/// A partial stands for itself: nothing follows it, and its end may be anything.
pub(super) fn check_partial(work: &Work<'_>, name: SegmentName) -> Result<()> {
    let file = WalFileName::Partial(name);
    let key = work.layout.wal_file(file);
    let read = || -> Result<()> {
        let Some(container) = files::open(work, &key)? else {
            return Ok(());
        };
        files::check_identity(&container, &work.layout, file)?;
        check_wal_identity(work, container.identity(), name)?;
        let mut indexer = None;
        let mut chain = Chain::default();
        let findings = &mut Findings::default();
        read_wal(&container, name, &mut chain, Some(&mut indexer), findings)?;
        let indexer = indexer.ok_or_else(|| err!(Internal, "no page was read"))?;
        let mut index = indexer.finish(true);
        // Whether padding follows the valid end the writer has looked up; a lie about it changes no byte that recovery is given.
        index.summary.flags |= index::read_summary(&container)?.flags & flag::MARKED;
        check_index(&container, &index, true)
    };
    // Recovery never asks for a partial; it is the last copy of a timeline's end all the same.
    work.settle(read(), key.as_str(), About::Other)?;
    Ok(())
}

fn check_wal_identity(work: &Work<'_>, identity: &Identity, name: SegmentName) -> Result<()> {
    let range = name.number(work.size)?.range(work.size);
    let fits = identity.raw_bytes == work.size.bytes()
        && identity.segment_size_bytes == work.size.bytes()
        && identity.from_lsn == range.start.0
        && identity.to_lsn == range.end.0;
    match fits {
        true => Ok(()),
        false => Err(err!(
            Damaged,
            "it says {} bytes from {} to {}, expected {} bytes from {}",
            identity.raw_bytes,
            Lsn(identity.from_lsn),
            Lsn(identity.to_lsn),
            work.size.bytes(),
            range.start
        )),
    }
}

/// Streams the body through its hash, the chain and (where there is one) the indexer. Returns how its WAL ends, and its last bytes.
fn read_wal(
    container: &Container,
    name: SegmentName,
    chain: &mut Chain,
    mut indexer: Option<&mut Option<Indexing>>,
    findings: &mut Findings,
) -> Result<(SegmentEnd, Last)> {
    let mut last = Last::default();
    let mut pages: Vec<u8> = Vec::with_capacity(2 * PAGE_MAX + (256 << 10));
    let mut begun = false;
    container.read_body(&mut |piece| {
        pages.extend_from_slice(piece);
        let whole = pages.len() - pages.len() % PAGE_MAX;
        let Some(now) = pages.get(..whole).filter(|p| !p.is_empty()) else {
            return Ok(());
        };
        if !begun {
            let identity = WalIdentity::read(now)?;
            identity.matches(name)?;
            let stated = container.identity();
            let is_of_major = match identity.major.map(Major::number) {
                Some(major) => major == stated.major,
                None => container.is_undecoded(),
            };
            if identity.system_identifier != stated.system_identifier || !is_of_major {
                return Err(err!(Damaged, "its WAL is another cluster's"));
            }
            chain.enter(&identity, name)?;
            if let Some(slot) = indexer.as_deref_mut() {
                *slot = Some(Indexing::new(&identity, name.timeline)?);
            }
            begun = true;
        }
        if let Some((_, reader)) = &mut chain.reader {
            reader.feed(now, findings)?;
        }
        if let Some(Some(indexer)) = indexer.as_deref_mut() {
            indexer.feed(now)?;
            last.keep(now);
        }
        pages.drain(..whole);
        Ok(())
    })?;
    if !pages.is_empty() || !begun {
        return Err(err!(Damaged, "it holds no whole pages"));
    }
    let end = match &mut chain.reader {
        Some((_, reader)) => reader.finish_segment().end,
        None => SegmentEnd::Full,
    };
    Ok((end, last))
}

impl Chain {
    /// Goes on with the next segment, or begins anew where it is not the next one. There is nothing to follow in WAL that cannot be decoded.
    fn enter(&mut self, identity: &WalIdentity, name: SegmentName) -> Result<()> {
        if identity.major.is_none() {
            (self.reader, self.behind) = (None, None);
            return Ok(());
        }
        let number = name.number(identity.segment_size)?;
        let follows = self.behind.is_some_and(|b| b.next() == number)
            && self
                .reader
                .as_ref()
                .is_some_and(|(known, _)| known.major == identity.major);
        if !follows {
            self.reader = Some((*identity, Reader::new(identity)?));
        }
        if let Some((_, reader)) = &mut self.reader {
            reader.start_segment(identity.start_lsn, name.timeline)?;
        }
        self.behind = Some(number);
        Ok(())
    }
}

/// The stored index has to be what the body says.
fn check_index(container: &Container, index: &SegmentIndex, partial: bool) -> Result<()> {
    if container.is_undecoded() && !index.summary.has(flag::UNDECODED) {
        // An older program stored it without an index.
        return Ok(());
    }
    for section in index.sections(partial) {
        let stored = container.section(section.tag)?;
        let is_old = || {
            let old = index.summary.before_cut_switches().encode();
            section.tag == tag::SUMMARY && stored.as_deref() == Some(old.as_slice())
        };
        if stored.as_deref() != Some(section.bytes.as_slice()) && !is_old() {
            return Err(err!(
                Damaged,
                "section {} of its index is not what the WAL says",
                section.tag
            ));
        }
    }
    let known = index::read_damage(container)?;
    match known == index.damage {
        true => Ok(()),
        false => Err(err!(
            Damaged,
            "its index lists other findings than its WAL has"
        )),
    }
}

/// The last commit before a segment, as indexes say; for people only.
pub(super) fn last_commit_before(
    work: &Work<'_>,
    timeline: TimelineId,
    number: SegmentNumber,
) -> Option<TimestampTz> {
    for back in 1..=LOOK_BACK {
        let name = SegmentNumber(number.0.checked_sub(back)?).name(timeline, work.size)?;
        let object = work.store.open(&work.layout.segment(name)).ok()??;
        let summary = Container::open(object)
            .map_err(|e: Error| e)
            .and_then(|c| index::read_summary(&c))
            .ok()?;
        if let Some(ends) = summary.ends {
            return Some(ends.last_commit.map_or(ends.max_time, |c| c.time));
        }
    }
    None
}
