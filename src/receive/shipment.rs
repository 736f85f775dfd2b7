//! The thread that brings WAL from the journal into one repository.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::belonging::{self, Evidence};
use super::content::Received;
use super::histories::Histories;
use crate::archive::life;
use crate::archive::push::{Push, push_content, push_history};
use crate::archive::received::Prefix;
use crate::config::Acknowledge;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::journal::shipping::{Attempts, Ship};
use crate::journal::{Segment, Wake};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::{Position, TimelineId};
use crate::repo::container::{Codec, Container};
use crate::repo::healed;
use crate::repo::kept_open::KeptOpen;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::increment::{self, LIMIT_BYTES, OpenSegment};
use crate::wal::link::{Joined, Mark};
use crate::wal::presence::{self, Presence};

/// The codec of WAL bodies (decisions/0001-hash-and-codec.md).
const CODEC: Codec = Codec::Lz4;
/// How often increments are written while WAL keeps coming.
const EVERY: Duration = Duration::from_secs(1);
/// So many increments are merged for readers.
const MERGE_COUNT: u64 = 64;
/// A merged one writes the segment anew from its start, so a long one is written more rarely: once for so much per increment.
const MERGE_BYTES: u64 = 256 << 10;
/// How long WAL whose life is not proven waits for the server without a word.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing to do: it is looked up again even so.
const IDLE: Duration = Duration::from_secs(60);

/// The facts that the session finds out for all repositories.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) evidence: Arc<Evidence>,
    pub(super) histories: Arc<Histories>,
}

/// One repository, and what is known to be in it.
pub(super) struct Shipment {
    ship: Arc<Ship>,
    acknowledge: Acknowledge,
    /// The cluster's place in the repository, with the lives that are known.
    layout: ClusterLayout,
    /// Its place in the table of [`Ship`].
    index: usize,
    stored: BTreeSet<SegmentName>,
    /// Damaged segments whose readable part is stored: the rest may come yet.
    begun: BTreeSet<SegmentName>,
    /// The end of what is stored, also where a segment before is not.
    farthest: Option<Position>,
    tail: Option<Tail>,
    attempts: Attempts,
    known: Known,
    /// Nothing was stored last, for nothing proves of which life it is.
    is_unproven: bool,
    began: Instant,
    /// The last whole segment, and its own mark: what the next one is joined to.
    last_mark: Option<(SegmentName, Mark)>,
    /// When something was stored last, an increment or a whole segment: while segments fill in less than a second, none needs increments.
    last_put: Option<Instant>,
    /// The repository, where it is one that may stay open: what was read of it need not be asked again for each segment.
    open: KeptOpen,
}

/// The segment that is stored in increments.
struct Tail {
    segment: OpenSegment,
    content: Received,
    /// Behind the last byte that the repository holds for certain.
    to: Lsn,
    /// Objects that were there at first.
    found: Vec<LsnRange>,
    /// Increments since the last merged one.
    count: u64,
}

/// The next step.
enum Work {
    /// A complete segment.
    Whole(Segment),
    /// More of a segment, as an increment.
    Increment(Segment),
    /// The last piece of a segment that will not be whole is stored: its timeline has ended, or its file was damaged.
    Ended(Segment),
    /// Nothing before something happens, or before the time has passed.
    Wait(Wake, Duration),
    /// Nothing any more.
    Done,
}

impl Shipment {
    pub(super) fn new(
        ship: Arc<Ship>,
        (index, acknowledge): (usize, Acknowledge),
        layout: ClusterLayout,
        known: Known,
    ) -> Shipment {
        Shipment {
            layout,
            acknowledge,
            known,
            is_unproven: false,
            began: Instant::now(),
            attempts: Attempts::new(&ship, index, "WAL"),
            ship,
            index,
            stored: BTreeSet::new(),
            begun: BTreeSet::new(),
            farthest: None,
            tail: None,
            last_mark: None,
            last_put: None,
            open: KeptOpen::default(),
        }
    }

    /// Ships until it shall stop; returns whether all that is durable is stored.
    pub(super) fn run(&mut self) -> bool {
        loop {
            let version = self.ship.follower.version();
            let (done, segment) = match self.next() {
                Work::Whole(segment) => {
                    let done = self.with_repository(|this, r| this.whole(r, segment));
                    (done, segment)
                }
                Work::Increment(segment) => {
                    let done = self.with_repository(|this, r| this.increment(r, segment));
                    (done, segment)
                }
                Work::Ended(segment) => (self.ended(segment), segment),
                Work::Wait(wake, time) => {
                    self.ship.follower.wait(version, wake, time);
                    continue;
                }
                Work::Done => return self.ship.follower.damaged().is_empty(),
            };
            match done {
                Ok(()) => self.attempts.succeeded(),
                // An optional repository is not waited for: the file was let go while it was being read.
                Err(_) if !self.is_held(segment.name) => self.tail = None,
                Err(e) if self.is_damage(&e, segment) => {
                    self.ship
                        .progress
                        .warn(&format!("{e}; the server is asked for it again"));
                    self.tail = None;
                }
                // The session compares it with the server first.
                Err(_) if self.waits_for_proof() => {
                    self.ship.follower.wait(version, Wake::AnyRound, EVERY);
                }
                Err(e) => {
                    if self.ship.is_stopping() {
                        self.attempts.report(&e);
                        return false;
                    }
                    self.failed(&e);
                }
            }
        }
    }

    fn waits_for_proof(&self) -> bool {
        self.is_unproven && !self.ship.is_stopping() && self.began.elapsed() < PATIENCE
    }

    fn is_held(&self, name: SegmentName) -> bool {
        let segments = self.ship.follower.segments();
        segments.binary_search_by_key(&name, |s| s.name).is_ok()
    }

    /// Whether the journal has lost what it held of a segment, so that trying again does not help.
    fn is_damage(&self, error: &Error, segment: Segment) -> bool {
        let follower = &self.ship.follower;
        error.code() == Code::SourceMissing && follower.find_damage(segment.name).unwrap_or(false)
    }

    fn next(&mut self) -> Work {
        let segments = self.ship.follower.segments();
        for names in [&mut self.stored, &mut self.begun] {
            names.retain(|name| segments.binary_search_by_key(name, |s| s.name).is_ok());
        }
        let waits = |s: &Segment| s.is_damaged && self.begun.contains(&s.name);
        let mut open = segments.iter().filter(|s| !waits(s));
        let open = open.find(|s| !self.stored.contains(&s.name));
        let is_stopping = self.ship.is_stopping();
        let Some(segment) = open.copied() else {
            return match is_stopping {
                true => Work::Done,
                false => Work::Wait(Wake::AnyRound, IDLE),
            };
        };
        if segment.is_complete() {
            return Work::Whole(segment);
        }
        let shipped = match &self.tail {
            Some(tail) if tail.segment.name == segment.name => tail.to,
            _ => segment.from,
        };
        let waiting = segment.to.0 - shipped.0;
        if waiting == 0 {
            return match (segment.is_last, is_stopping) {
                (false, _) => Work::Ended(segment),
                (true, true) => Work::Done,
                (true, false) => Work::Wait(Wake::AnyRound, IDLE),
            };
        }
        let is_due = is_stopping
            || !segment.is_last
            || self.acknowledge == Acknowledge::Repository
            || waiting >= LIMIT_BYTES as u64;
        let since = self.last_put.map_or(EVERY, |at| at.elapsed());
        match is_due || since >= EVERY {
            true => Work::Increment(segment),
            // Nothing more urgent can come than the end of the segment.
            false => Work::Wait(Wake::SegmentEnd, EVERY - since),
        }
    }

    /// Runs `work` on the repository.
    fn with_repository(
        &mut self,
        work: impl FnOnce(&mut Shipment, &Repository) -> Result<()>,
    ) -> Result<()> {
        let place = self.ship.place(self.index);
        let open = self.open.take(place, || self.ship.next_nonce())?;
        let repository = &open.0;
        let layout = repository.recent_lives(&self.layout)?;
        if self.layout != layout {
            // The known tail of the open segment is of another home.
            self.tail = None;
            self.layout = layout;
        }
        work(self, repository)?;
        self.open.keep(open);
        Ok(())
    }

    /// Stores the histories up to a timeline that wait for this repository: no WAL of it comes before.
    fn histories(&self, repository: &Repository, timeline: TimelineId) -> Result<()> {
        let histories = &self.known.histories;
        for (timeline, content) in histories.lacked(self.index, timeline) {
            push_history(repository, &self.layout, timeline, &content)?;
            histories.stored(self.index, timeline);
        }
        Ok(())
    }

    fn whole(&mut self, repository: &Repository, segment: Segment) -> Result<()> {
        self.histories(repository, segment.name.timeline)?;
        let tail = self.tail.as_ref();
        let has_own =
            tail.is_some_and(|tail| tail.segment.name == segment.name && tail.is_compared());
        let content = Received::open(&self.ship.follower, segment)?
            .with_own_increments(has_own)
            .counted_by(self.ship.reading(self.index));
        if !has_own && self.layout.lives().of(segment.name).is_some() {
            self.require_life(repository, segment)?;
        }
        let what = Push {
            repository,
            cluster: self.layout.name(),
            path: &self.ship.follower.file(segment.name),
            name: WalFileName::Segment(segment.name),
            codec: CODEC,
            beside_others: false,
            known: self.mark_before(segment.name).or(self.last_mark),
            is_backfill: false,
        };
        match push_content(&what, content) {
            Ok((_, warnings)) => {
                for warning in warnings {
                    self.ship.progress.warn(&warning);
                }
            }
            // The journal's copy cannot be read. That is no loss when archiving has stored the segment.
            Err(e) if e.code() == Code::SourceMissing => {
                if !self.is_archived(repository, segment)? {
                    return Err(e);
                }
                self.ship.progress.warn(&format!(
                    "{e}; repository \"{}\" has the segment",
                    self.ship.name(self.index)
                ));
            }
            Err(e) => return Err(e),
        }
        let key = self.layout.segment(segment.name);
        let mark = repository.kept_mark(&key);
        self.last_mark = mark.map(|mark| (segment.name, mark));
        if let Some(mark) = mark {
            self.ship.keep_mark(segment.name, mark.0);
        }
        self.tail = None;
        self.last_put = Some(Instant::now());
        self.is_stored(segment);
        Ok(())
    }

    /// Whether the repository durably holds a segment of which the journal has lost a part. The stored one must begin with what can be read, or
    /// its link must name the segment that was shipped before; neither may tell of another life.
    fn is_archived(&self, repository: &Repository, segment: Segment) -> Result<bool> {
        let (name, store) = (segment.name, repository.store());
        if presence::of_segment(store, &self.layout, name)? != Presence::Settled {
            return Ok(false);
        }
        let key = self.layout.segment(name);
        let before = self.mark_before(name);
        let joined = match before {
            Some(before) => life::is_continued(repository, &key, before)?,
            None => Joined::Unproven,
        };
        if joined == Joined::No {
            return Ok(false);
        }
        let Some(stored) = healed::container(store, &key)? else {
            return Ok(false);
        };
        let mut content = Received::open(&self.ship.follower, segment)?;
        let length = content.readable_bytes();
        match begins_alike(stored, &mut content, length) {
            Ok(is_same) => Ok(is_same && (length > 0 || joined == Joined::Yes)),
            Err(e) if e.code() == Code::Key => Ok(joined == Joined::Yes),
            Err(e) if e.code() == Code::Damaged => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn is_stored(&mut self, segment: Segment) {
        self.stored.insert(segment.name);
        self.reached(&segment, segment.to);
        self.ship.stored(self.index, segment.name);
    }

    /// Tells how far the repository holds everything: not past a segment of which the journal has lost a part.
    fn reached(&mut self, segment: &Segment, lsn: Lsn) {
        self.farthest = self.farthest.max(Some(position(segment, lsn)));
        let follower = &self.ship.follower;
        let is_before = |name: &SegmentName| *name < segment.name;
        let segments = follower.segments();
        let mut held = segments.iter().map(|s| s.name);
        let lacks = follower.damaged().iter().any(is_before)
            || held.any(|name| is_before(&name) && !self.stored.contains(&name));
        if let Some(farthest) = self.farthest.filter(|_| !lacks) {
            self.ship.reached(self.index, farthest);
        }
    }

    fn increment(&mut self, repository: &Repository, segment: Segment) -> Result<()> {
        self.histories(repository, segment.name.timeline)?;
        let begins = self
            .tail
            .as_ref()
            .is_none_or(|t| t.segment.name != segment.name);
        if begins {
            let mut tail = self.begin(repository, segment)?;
            tail.check_whole(repository, &self.layout, segment.to)?;
            self.tail = Some(tail);
        }
        let Some(tail) = &mut self.tail else {
            return Ok(());
        };
        let range = tail.next_range(segment.to);
        let length = usize::try_from(range.end.0 - range.start.0).unwrap_or(LIMIT_BYTES);
        let mut wal = vec![0; length];
        tail.content.seek(range.start)?;
        tail.content.fill(&mut wal)?;
        increment::put(repository, &self.layout, &tail.segment, range.start, &wal)?;
        drop(wal);
        tail.check_whole(repository, &self.layout, range.end)?;
        self.last_put = Some(Instant::now());
        tail.to = range.end;
        tail.count += 1;
        if tail.is_merge_due() {
            tail.merge(repository, &self.layout)?;
        }
        self.reached(&segment, range.end);
        Ok(())
    }

    /// The mark of the segment before one, as far as this journal has shipped or let go that one.
    fn mark_before(&self, name: SegmentName) -> Option<(SegmentName, Mark)> {
        let size = self.ship.follower.segment_size();
        let is_before = |b: &SegmentName| name.before(b.timeline, size) == Some(*b);
        let own = self.last_mark.filter(|(b, _)| is_before(b));
        let before = || name.before(name.timeline, size);
        own.or_else(|| {
            let (before, mark) = self.ship.mark(before()?)?;
            Some((before, Mark(mark)))
        })
    }

    /// Requires that a segment is of the life of its timeline that the repository follows.
    fn require_life(&mut self, repository: &Repository, segment: Segment) -> Result<()> {
        self.is_unproven = false;
        let (name, size) = (segment.name, self.ship.follower.segment_size());
        let joined = match self.mark_before(name) {
            Some(before) => life::check_next(repository, &self.layout, (name, size), before)?,
            None => Joined::Unproven,
        };
        // The first segment of a life is stored whole, and who stores more of one compares it.
        let is_chosen = self.layout.lives().of(name).is_some();
        let key = self.layout.segment(name);
        if joined == Joined::Yes || !is_chosen || repository.store().head(&key)?.is_some() {
            return Ok(());
        }
        let proof = self.known.evidence.at((name.timeline, segment.from));
        let mut content = Received::open(&self.ship.follower, segment)?;
        let content = (segment, &mut content);
        let required = belonging::require(repository, &self.layout, content, proof);
        self.is_unproven = required.is_err();
        required
    }

    fn begin(&mut self, repository: &Repository, segment: Segment) -> Result<Tail> {
        let registration = repository.require(&self.layout)?;
        self.require_life(repository, segment)?;
        let found = increment::list(repository, &self.layout, segment.name)?;
        Ok(Tail {
            segment: OpenSegment {
                name: segment.name,
                size: self.ship.follower.segment_size(),
                major: registration.major,
            },
            content: Received::open(&self.ship.follower, segment)?
                .counted_by(self.ship.reading(self.index)),
            to: segment.from,
            count: found.len() as u64,
            found,
        })
    }

    /// The timeline has ended inside the segment, which will never be whole: increments are what stays of it. The file of a damaged one
    /// stays until that is mended or given up.
    fn ended(&mut self, segment: Segment) -> Result<()> {
        if self.tail.as_ref().is_some_and(|tail| tail.count > 1) {
            self.with_repository(|this, repository| match &mut this.tail {
                Some(tail) => tail.merge(repository, &this.layout),
                None => Ok(()),
            })?;
        }
        self.tail = None;
        match segment.is_damaged {
            true => {
                self.begun.insert(segment.name);
            }
            false => self.is_stored(segment),
        }
        Ok(())
    }

    fn failed(&mut self, error: &Error) {
        // Knowledge of the open segment may not hold any more: another disk may be mounted.
        self.tail = None;
        self.attempts.failed(error);
    }
}

fn position(segment: &Segment, lsn: Lsn) -> Position {
    Position {
        timeline: segment.name.timeline,
        lsn,
    }
}

/// Whether a stored segment begins with the next `length` bytes of what was received.
pub(super) fn begins_alike(
    stored: Result<Container>,
    content: &mut Received,
    length: u64,
) -> Result<bool> {
    let mut read = |buffer: &mut [u8], _| content.fill(buffer);
    let mut prefix = Prefix::new(length, &mut read);
    stored?.read_body(&mut |bytes| prefix.compare(bytes))?;
    Ok(prefix.is_same())
}

impl Tail {
    /// Returns what is stored next: an object that was found is compared and taken over, else it is the WAL that came since.
    fn next_range(&self, durable: Lsn) -> LsnRange {
        let limit = LIMIT_BYTES as u64;
        let found = self
            .found
            .iter()
            .filter(|r| r.start <= self.to && self.to < r.end && r.end <= durable)
            .filter(|r| r.end.0 - r.start.0 <= limit)
            .max_by_key(|r| r.end);
        found.copied().unwrap_or(LsnRange {
            start: self.to,
            end: Lsn(durable.0.min(self.to.0 + limit)),
        })
    }

    /// Whether everything that was stored at first was compared.
    fn is_compared(&self) -> bool {
        self.found.iter().all(|range| range.end <= self.to)
    }

    /// Requires that the whole segment, where an archiver has stored it meanwhile, holds what was received up to `to`. An archiver looks for
    /// increments before it stores, and this looks after an increment is stored: one of the two sees the other.
    fn check_whole(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        to: Lsn,
    ) -> Result<()> {
        let name = self.segment.name;
        let Some(stored) = healed::container(repository.store(), &layout.segment(name))? else {
            return Ok(());
        };
        let start = self.segment.range()?.start;
        self.content.seek(start)?;
        match begins_alike(stored, &mut self.content, to.0 - start.0) {
            Ok(true) => Ok(()),
            // Verify reports damage, and without the key the end of the segment tells.
            Err(e) if matches!(e.code(), Code::Damaged | Code::Key) => Ok(()),
            Err(e) => Err(e),
            Ok(false) => Err(err!(
                Conflict,
                "segment \"{name}\" is archived with other content than was received of it up to {to}"
            )
            .hint("Nothing was overwritten. Likely two servers write the same timeline (split brain, a clone without a guard). Stop the one that is not the cluster. See \"pitr wal conflicts\".")),
        }
    }

    fn is_merge_due(&self) -> bool {
        let from = self.segment.range().map_or(self.to, |r| r.start);
        self.count >= MERGE_COUNT && self.count * MERGE_BYTES >= self.to.0 - from.0
    }

    fn merge(&mut self, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
        self.content.seek(self.segment.range()?.start)?;
        let content = &mut self.content;
        increment::put_merged(repository, layout, &self.segment, self.to, &mut |buffer| {
            content.fill(buffer)
        })?;
        self.count = 0;
        Ok(())
    }
}
