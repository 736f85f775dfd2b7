//! The chain of WAL that leads to a timeline: stretches without a hole, and what ends them.
//!
//! A [`Chain`] follows a [`Path`] by the indexes of segments. Each segment must continue the one before it: unfinished
//! records, links between records. WAL after a hole does not exist for recovery.
//!
//! PostgreSQL: src/backend/access/transam/xlogreader.c (ValidXLogRecordHeader).

use std::cell::RefCell;
use std::rc::Rc;

use super::stop::Rule;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::{History, TimelineId};
use crate::wal::facts::{Crossing, Entry, Facts, Wal};
use crate::wal::index::{HeadEnd, flag};
use crate::wal::inventory::Inventory;
use crate::wal::link::Joined;
use crate::wal::path::{Path, Pick, Piece};

/// Size of WAL pages and of their headers: src/include/access/xlog_internal.h.
const PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// Why a stretch of WAL ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StretchEnd {
    /// Nothing is archived behind it on this path.
    EndOfWal,
    /// Segments are missing, and later ones are there.
    Missing {
        /// The first that is missing.
        from: SegmentNumber,
        /// The next that is there.
        until: SegmentNumber,
    },
    /// A segment does not continue the one before it.
    Broken {
        at: SegmentName,
        /// The mismatch, in words.
        why: String,
    },
    /// A segment is damaged, or its object is.
    Damaged {
        at: SegmentName,
        /// The damage, in words.
        why: String,
    },
    /// WAL ends inside a segment although later segments are there.
    EndsInside {
        at: SegmentName,
        /// End of the WAL in it.
        lsn: Lsn,
    },
    /// From this segment on WAL was written with wal_level minimal.
    Minimal { at: SegmentName },
    /// A PostgreSQL newer than every supported one wrote the segment: nothing can be proven of it.
    Undecoded { at: SegmentName },
}

/// WAL without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its segments, ascending without a hole.
    pub pieces: Vec<Piece>,
    /// Start and end of the last record that is complete.
    pub last: Option<(Lsn, Lsn)>,
    /// Records of the last segment count up to here only: behind it lies WAL of a timeline that was left.
    pub limit: Option<Lsn>,
    /// Why it ends.
    pub end: StretchEnd,
}

impl Stretch {
    /// The timeline under which a segment is read.
    pub fn timeline_of(&self, number: SegmentNumber) -> Option<TimelineId> {
        self.pieces
            .iter()
            .find(|p| p.first <= number && number <= p.last)
            .map(|p| p.timeline)
    }

    /// The first segment.
    pub fn first(&self) -> Option<SegmentNumber> {
        self.pieces.first().map(|p| p.first)
    }

    /// The last segment.
    pub fn final_segment(&self) -> Option<SegmentNumber> {
        self.pieces.last().map(|p| p.last)
    }

    /// The end of the last complete record; 0/0 when there is none.
    pub fn reach(&self) -> Lsn {
        self.last.map_or(Lsn(0), |(_, end)| end)
    }

    /// Whether this is the same WAL as `later`, from the first segment of that one on.
    pub fn leads_into(&self, later: &Stretch) -> bool {
        let Some(first) = later.first() else {
            return false;
        };
        let shared = self
            .pieces
            .iter()
            .filter(|p| p.last >= first)
            .map(|p| Piece {
                first: p.first.max(first),
                ..*p
            });
        (self.last, self.limit) == (later.last, later.limit)
            && shared.eq(later.pieces.iter().copied())
    }
}

/// The path to a timeline, and the WAL on it.
pub struct Chain<'a> {
    inventory: &'a Inventory,
    wal: &'a dyn Wal,
    path: Path,
    known: RefCell<Vec<Rc<Stretch>>>,
    /// Searches without a result: the rule, and the WAL that was searched.
    in_vain: RefCell<Vec<(Rule, Rc<Stretch>)>>,
}

impl<'a> Chain<'a> {
    /// The chain on the path that a history describes.
    pub fn new(inventory: &'a Inventory, wal: &'a dyn Wal, history: History) -> Chain<'a> {
        Chain {
            inventory,
            wal,
            path: Path::new(history, inventory.segment_size),
            known: RefCell::default(),
            in_vain: RefCell::default(),
        }
    }

    /// Notes that a rule stops nothing in a stretch, from wherever in its first segment recovery begins.
    pub fn note_in_vain(&self, rule: &Rule, stretch: &Rc<Stretch>) {
        self.in_vain
            .borrow_mut()
            .push((rule.clone(), Rc::clone(stretch)));
    }

    /// The last segment of a stretch in which a rule has to be tried: behind it was searched in vain from a later backup.
    pub fn last_to_search(&self, rule: &Rule, stretch: &Stretch) -> Option<SegmentNumber> {
        let in_vain = self.in_vain.borrow();
        let searched = in_vain
            .iter()
            .filter(|(tried, later)| tried == rule && stretch.leads_into(later))
            .filter_map(|(_, later)| later.first());
        searched.chain(stretch.final_segment()).min()
    }

    /// The path that it follows.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the history of the timeline that the path leads to.
    pub fn history(&self) -> &History {
        self.path.history()
    }

    /// Segment size of the WAL.
    pub fn size(&self) -> SegmentSize {
        self.path.size()
    }

    /// Returns the source of answers about segments.
    pub fn wal(&self) -> &'a dyn Wal {
        self.wal
    }

    /// The name of a segment under a timeline.
    ///
    /// # Errors
    /// `Damaged` behind the last LSN there is.
    pub fn name(&self, timeline: TimelineId, number: SegmentNumber) -> Result<SegmentName> {
        number
            .name(timeline, self.size())
            .ok_or_else(|| err!(Damaged, "segment {} lies behind the last LSN", number.0))
    }

    /// The name of a segment of a stretch.
    ///
    /// # Errors
    /// `Internal` for one that is not in it.
    pub fn name_in(&self, stretch: &Stretch, number: SegmentNumber) -> Result<SegmentName> {
        let timeline = stretch
            .timeline_of(number)
            .ok_or_else(|| err!(Internal, "segment {} is not in the stretch", number.0))?;
        self.name(timeline, number)
    }

    /// Returns the facts from the index of a segment of a stretch.
    ///
    /// # Errors
    /// Errors of [`Wal::facts`].
    pub fn facts(&self, stretch: &Stretch, number: SegmentNumber) -> Result<Facts> {
        self.wal.facts(self.name_in(stretch, number)?)
    }

    /// Decodes a segment of a stretch; records that end behind its limit or its reach are not shown: a segment that is being streamed may
    /// have grown since.
    ///
    /// # Errors
    /// Errors of [`Wal::scan`].
    pub fn scan(
        &self,
        stretch: &Stretch,
        number: SegmentNumber,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        let name = self.name_in(stretch, number)?;
        let limit = stretch.limit.unwrap_or(Lsn(u64::MAX)).min(stretch.reach());
        self.wal.scan(
            name,
            &|name| self.following(stretch, name),
            &mut |entry: &Entry| {
                if entry.end <= limit {
                    visit(entry);
                }
            },
        )
    }

    fn following(&self, stretch: &Stretch, name: SegmentName) -> Option<SegmentName> {
        let next = name.number(self.size()).ok()?.next();
        stretch.timeline_of(next)?;
        self.name_in(stretch, next).ok()
    }

    /// The segment of a stretch that follows `number`.
    pub fn next_name(&self, stretch: &Stretch, number: SegmentNumber) -> Option<SegmentName> {
        self.following(stretch, self.name_in(stretch, number).ok()?)
    }

    fn pick(&self, number: SegmentNumber, floor: Option<TimelineId>) -> Result<Option<Pick>> {
        self.path
            .pick(number, floor, |timeline| self.is_offered(timeline, number))
    }

    /// See [`Path::in_place_of`].
    ///
    /// # Errors
    /// Errors of [`Wal`], apart from damage.
    pub fn in_place_of(&self, name: SegmentName) -> Result<Option<SegmentName>> {
        let number = name.number(self.size());
        self.path.in_place_of(name, |timeline| {
            number
                .as_ref()
                .map_or(Ok(false), |number| self.is_offered(timeline, *number))
        })
    }

    /// Whether recovery gets a file of this name: one of which a part is stored in which no record ends is not handed out.
    fn is_offered(&self, timeline: TimelineId, number: SegmentNumber) -> Result<bool> {
        if self.inventory.has(timeline, number) {
            return Ok(true);
        }
        if !self.inventory.holds(timeline, number) {
            return Ok(false);
        }
        match self.wal.facts(self.name(timeline, number)?) {
            Ok(facts) => Ok(facts.valid_end > facts.start_lsn),
            // Whoever reads it learns what is wrong.
            Err(e) if e.is_lost() => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// The first segment at or behind `number` that is archived, whole or in part, and on this path.
    pub fn present_from(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        self.path.next_there(number, self.inventory)
    }

    /// The first segment behind WAL on this path that is known to be lost, of all that is lost behind `lsn`.
    fn lost_until(&self, lsn: Lsn) -> Option<SegmentNumber> {
        self.path
            .intervals()
            .iter()
            .filter_map(|i| {
                let range = LsnRange {
                    start: i.range.start.max(lsn),
                    end: i.range.end,
                };
                let lost = self.inventory.timelines.get(&i.timeline)?.lost_in(range)?;
                Some(SegmentNumber::ending_at(lost.end, self.size()).next())
            })
            .min()
    }

    /// Names of the segments that should be there from `from` up to before `until`; at most `most`, and how many there are.
    pub fn missing(
        &self,
        from: SegmentNumber,
        until: SegmentNumber,
        most: usize,
    ) -> (Vec<SegmentName>, u64) {
        let mut names = Vec::new();
        let mut count = 0;
        // A hole may be vast where a switch point is wrong: names are listed one by one, the rest is counted.
        for number in (from.0..until.0).map(SegmentNumber) {
            if names.len() == most {
                count += until.0 - number.0;
                break;
            }
            if let Some(name) = self.path.name(number) {
                names.push(name);
                count += 1;
            }
        }
        (names, count)
    }

    /// Follows the WAL from a segment to its end. Stretches with the same end share the way there.
    ///
    /// # Errors
    /// Errors of [`Wal`], apart from damage, which ends the stretch.
    pub fn stretch_from(&self, first: SegmentNumber) -> Result<Rc<Stretch>> {
        let same = |s: &&Rc<Stretch>| s.first() == Some(first);
        if let Some(known) = self.known.borrow().iter().find(same) {
            return Ok(Rc::clone(known));
        }
        self.prefetch(first)?;
        let mut walk = Walk::default();
        let mut number = first;
        let stretch = loop {
            if let Some(known) = self.join(&walk, number)? {
                break walk.joined(&known);
            }
            if let Some(end) = self.step(&mut walk, number)? {
                break walk.ended(end);
            }
            number = number.next();
        };
        let stretch = Rc::new(stretch);
        self.known.borrow_mut().push(Rc::clone(&stretch));
        Ok(stretch)
    }

    fn prefetch(&self, first: SegmentNumber) -> Result<()> {
        let until = self
            .known
            .borrow()
            .iter()
            .filter_map(|s| s.first())
            .filter(|f| *f > first)
            .min();
        for piece in self
            .path
            .pieces(first.start_lsn(self.size()), Lsn(u64::MAX))
        {
            let last = until.map_or(piece.last, |u| piece.last.min(u));
            if piece.first <= last {
                self.wal.prefetch(piece.timeline, piece.first, last)?;
            }
        }
        Ok(())
    }

    /// The stretch that begins at `number` and continues this walk, if one is known.
    fn join(&self, walk: &Walk, number: SegmentNumber) -> Result<Option<Rc<Stretch>>> {
        let Some(known) = self
            .known
            .borrow()
            .iter()
            .find(|s| s.first() == Some(number) && !walk.is_empty())
            .cloned()
        else {
            return Ok(None);
        };
        let (Some(piece), Some(last)) = (known.pieces.first(), known.last) else {
            return Ok(None);
        };
        let picked = self
            .pick(number, walk.floor)?
            .is_some_and(|p| p.limit.is_none() && p.timeline == piece.timeline);
        if !picked || last.0 <= walk.last.unwrap_or_default().0 {
            return Ok(None);
        }
        let facts = self.wal.facts(self.name(piece.timeline, number)?)?;
        Ok(walk.check(&facts).is_ok().then_some(known))
    }

    /// Takes one segment into the walk, or says why the walk ends before it or in it.
    fn step(&self, walk: &mut Walk, number: SegmentNumber) -> Result<Option<StretchEnd>> {
        let Some(Pick { timeline, limit }) = self.pick(number, walk.floor)? else {
            return Ok(Some(self.hole(number)));
        };
        let name = self.name(timeline, number)?;
        let facts = match self.wal.facts(name) {
            Ok(facts) => facts,
            Err(e) => return damaged(name, e).map(Some),
        };
        if facts.start_lsn != number.start_lsn(self.size()) {
            let why = "it holds another segment".to_owned();
            return Ok(Some(StretchEnd::Damaged { at: name, why }));
        }
        if facts.has(wide(flag::UNDECODED)) {
            return Ok(Some(StretchEnd::Undecoded { at: name }));
        }
        if let Err(why) = walk.check(&facts) {
            return self.broken(walk, name, why).map(Some);
        }
        match self.is_minimal(walk, name, &facts) {
            Ok(true) => return Ok(Some(StretchEnd::Minimal { at: name })),
            Ok(false) => {}
            Err(e) => return damaged(name, e).map(Some),
        }
        if self.inventory.suspects.contains(&name)
            && let Err(e) = self.wal.scan(name, &|_| None, &mut |_| {})
        {
            return damaged(name, e).map(Some);
        }
        if let Some(limit) = limit {
            return self.limited(walk, number, name, limit, &facts).map(Some);
        }
        walk.take(timeline, number, &facts);
        Ok(self.inner_end(number, name, &facts))
    }

    /// Whether a record that ends in the segment has wal_level minimal. PostgreSQL 13 goes on where `hot_standby` is off, without what was
    /// never in WAL.
    fn is_minimal(&self, walk: &Walk, name: SegmentName, facts: &Facts) -> Result<bool> {
        if facts.has(wide(flag::MINIMAL)) {
            return Ok(true);
        }
        let Some(before) = walk.pieces.last().filter(|_| walk.missing > 0) else {
            return Ok(false);
        };
        let before = self.name(before.timeline, before.last)?;
        Ok(self.wal.facts(before)?.may_cross_event()
            && self.wal.crossing(before, Some(name))?
                == Crossing::ParameterChange { is_minimal: true })
    }

    /// Ends the walk between two segments. A cache may have told of either, so both are compared with what is stored.
    fn broken(&self, walk: &Walk, at: SegmentName, why: String) -> Result<StretchEnd> {
        let before = walk.pieces.last().map(|p| self.name(p.timeline, p.last));
        for name in [before.transpose()?, Some(at)].into_iter().flatten() {
            if let Err(e) = self.wal.confirm(name) {
                return damaged(name, e);
            }
        }
        Ok(StretchEnd::Broken { at, why })
    }

    /// Why WAL does not go on behind this segment, if the segment itself says so.
    fn inner_end(
        &self,
        number: SegmentNumber,
        name: SegmentName,
        facts: &Facts,
    ) -> Option<StretchEnd> {
        if facts.has(wide(flag::SWITCH)) {
            // Nothing after a switch record is ever read.
            return None;
        }
        let lsn = facts.valid_end;
        if facts.has(wide(flag::DAMAGED)) {
            let why = format!("its WAL is damaged at {lsn}");
            return Some(StretchEnd::Damaged { at: name, why });
        }
        if !facts.has(wide(flag::ENDS_INSIDE)) {
            return None;
        }
        let later = self
            .present_from(number.next())
            .or_else(|| self.lost_until(lsn));
        Some(match later {
            Some(_) => StretchEnd::EndsInside { at: name, lsn },
            None => StretchEnd::EndOfWal,
        })
    }

    fn hole(&self, number: SegmentNumber) -> StretchEnd {
        let later = self
            .present_from(number.next())
            .or_else(|| self.lost_until(number.start_lsn(self.size())));
        match later {
            Some(until) => StretchEnd::Missing {
                from: number,
                until,
            },
            None => StretchEnd::EndOfWal,
        }
    }

    /// The child's copy of a segment is missing: the parent's serves up to the switch point.
    fn limited(
        &self,
        walk: &mut Walk,
        number: SegmentNumber,
        name: SegmentName,
        limit: Lsn,
        facts: &Facts,
    ) -> Result<StretchEnd> {
        let mut last = None;
        let scanned = self.wal.scan(name, &|_| None, &mut |entry: &Entry| {
            if entry.end <= limit {
                last = Some((entry.start, entry.end));
            }
        });
        if let Err(e) = scanned {
            return damaged(name, e);
        }
        let before = walk.crossing_end(facts);
        walk.push(name.timeline, number);
        walk.limit = Some(limit);
        if let Some(found) = last.or(before.filter(|(_, end)| *end <= limit)) {
            walk.last = Some(found);
        }
        Ok(self.hole(number))
    }
}

/// A segment that is lost ends a stretch; every other error ends the plan.
fn damaged(at: SegmentName, e: Error) -> Result<StretchEnd> {
    match e.is_lost() {
        true => Ok(StretchEnd::Damaged {
            at,
            why: e.to_string(),
        }),
        false => Err(e),
    }
}

/// Flags of the index, as facts carry them.
fn wide(flag: u64) -> u16 {
    u16::try_from(flag).unwrap_or(0)
}

/// Why a segment is not joined to the one before it.
const OTHER_LIFE: &str = "another server wrote it: its writer had another segment before it than the one that is archived";

/// The state that is carried from segment to segment.
#[derive(Debug, Default)]
struct Walk {
    pieces: Vec<Piece>,
    /// Timeline of the last file read.
    floor: Option<TimelineId>,
    /// Bytes still missing of the record that crosses the border.
    missing: u32,
    /// The last record that began; none while it is not known.
    begun: Option<Lsn>,
    /// Start and end of the last complete record.
    last: Option<(Lsn, Lsn)>,
    /// The mark of the last segment; 0 where it has none.
    mark: u64,
    limit: Option<Lsn>,
}

impl Walk {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether the segment continues what was read; else why not.
    fn check(&self, next: &Facts) -> std::result::Result<(), String> {
        let Some(timeline) = self.floor else {
            return Ok(());
        };
        if next.link.continues(self.mark, timeline) == Joined::No {
            return Err(match next.link.is_first {
                true => "its first record has no predecessor: pg_resetwal wrote it".into(),
                false => OTHER_LIFE.into(),
            });
        }
        let abandoned = self.missing > 0 && next.head_remaining == 0;
        if abandoned && !next.has(wide(flag::OVERWRITTEN)) {
            return Err("it does not continue the record that reaches into it".into());
        }
        if !abandoned && next.head_remaining != self.missing {
            return Err(format!(
                "it continues a record by {} bytes, {} are missing",
                next.head_remaining, self.missing
            ));
        }
        let dropped = abandoned || next.head_end == HeadEnd::Abandoned;
        let before = if dropped {
            self.last.map(|(start, _)| start)
        } else {
            self.begun
        };
        match before {
            Some(before) if next.first_prev.0 != 0 && next.first_prev != before => Err(format!(
                "its first record names {} as the record before it, which is {before}",
                next.first_prev
            )),
            _ => Ok(()),
        }
    }

    /// Start and end of the crossing record that ends in this segment.
    fn crossing_end(&self, facts: &Facts) -> Option<(Lsn, Lsn)> {
        let begun = self.begun.filter(|_| self.missing > 0)?;
        (facts.head_end == HeadEnd::Here)
            .then(|| (begun, position_behind(facts.start_lsn, facts.head_length)))
    }

    fn push(&mut self, timeline: TimelineId, number: SegmentNumber) {
        self.floor = Some(timeline);
        match self.pieces.last_mut() {
            Some(piece) if piece.timeline == timeline => piece.last = number,
            _ => self.pieces.push(Piece {
                timeline,
                first: number,
                last: number,
            }),
        }
    }

    fn take(&mut self, timeline: TimelineId, number: SegmentNumber, facts: &Facts) {
        if let Some(crossing) = self.crossing_end(facts) {
            self.last = Some(crossing);
        }
        if facts.last_complete.0 != 0 {
            self.last = Some((facts.last_complete, facts.last_complete_end));
        }
        if facts.last_begun.0 != 0 {
            self.begun = Some(facts.last_begun);
        }
        self.mark = facts.link.own;
        self.missing = if facts.tail_length > 0 {
            facts.tail_total.saturating_sub(facts.tail_length)
        } else if facts.head_end == HeadEnd::Continues {
            facts.head_remaining.saturating_sub(facts.head_length)
        } else {
            0
        };
        self.push(timeline, number);
    }

    fn ended(self, end: StretchEnd) -> Stretch {
        Stretch {
            pieces: self.pieces,
            last: self.last,
            limit: self.limit,
            end,
        }
    }

    fn joined(mut self, known: &Stretch) -> Stretch {
        for piece in &known.pieces {
            match self.pieces.last_mut() {
                Some(last) if last.timeline == piece.timeline => last.last = piece.last,
                _ => self.pieces.push(*piece),
            }
        }
        Stretch {
            pieces: self.pieces,
            last: known.last,
            limit: known.limit,
            end: known.end.clone(),
        }
    }
}

/// Returns the end of a record of which `length` bytes lie in the segment that starts at `start`. Page headers stand
/// between these bytes.
pub(super) fn position_behind(start: Lsn, length: u32) -> Lsn {
    let mut left = u64::from(length);
    let first = PAGE - LONG_HEADER;
    let offset = if left <= first {
        LONG_HEADER + left
    } else {
        left -= first;
        let page = PAGE - SHORT_HEADER;
        let whole = (left - 1) / page;
        PAGE * (1 + whole) + SHORT_HEADER + (left - whole * page)
    };
    Lsn(start.0 + offset).align_up(8)
}
