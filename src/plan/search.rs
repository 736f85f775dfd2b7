//! Finds where recovery from one backup stops: the index prunes, the decoded segment proves.

use std::rc::Rc;

use super::chain::{Chain, Stretch};
use super::recovery::{EndKind, TransactionEnd};
use super::stop::{Replay, Rule, crosses_restore_point, may_change_parameters, transaction_end};
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::SegmentNumber;
use crate::wal::facts::{Crossing, Entry, EntryKind, Facts, flag};
use crate::wal::index::{HeadEnd, TailClass};

/// Recovery from one backup over one stretch of WAL.
pub struct Search<'a> {
    /// The way.
    pub chain: &'a Chain<'a>,
    /// The WAL.
    pub stretch: Rc<Stretch>,
    /// The start of replay.
    pub start_lsn: Lsn,
    /// From here on the cluster is consistent.
    pub consistent_lsn: Lsn,
}

/// The segments of a search, in which something may be found.
type Span = std::ops::RangeInclusive<u64>;

impl Search<'_> {
    /// Runs recovery up to where `rule` stops it; without a stop in the result it would replay everything.
    ///
    /// The facts about the last transaction and about the first that is left out are completed from other segments.
    ///
    /// # Errors
    /// Errors of the WAL.
    pub fn run<'r>(&self, rule: &'r Rule) -> Result<Replay<'r>> {
        let mut replay = Replay::new(rule, self.start_lsn, self.consistent_lsn);
        let Some(last) = self.stretch.final_segment() else {
            return Ok(replay);
        };
        let first = self.segment_of(match rule {
            // Before this nothing can happen.
            Rule::Immediate => Lsn(self.consistent_lsn.0.saturating_sub(1)),
            Rule::Lsn { at, .. } => (*at).max(self.start_lsn),
            _ => self.start_lsn,
        });
        let searched = self.chain.last_to_search(rule, &self.stretch);
        let until = searched.unwrap_or(last);
        for number in (first.0..=until.0).map(SegmentNumber) {
            if !self.may_stop(rule, number)? {
                continue;
            }
            replay.replayed = self.end_before(number)?;
            self.chain
                .scan(&self.stretch, number, &mut |entry| replay.record(entry))?;
            if replay.stop.is_some() {
                self.complete(&mut replay, number, last)?;
                return Ok(replay);
            }
            // Nothing stopped it: what was seen of this segment is looked for again, once the stop is known.
            replay = Replay::new(rule, self.start_lsn, self.consistent_lsn);
        }
        // When a cluster is consistent depends on its backup.
        if *rule != Rule::Immediate {
            self.chain.note_in_vain(rule, &self.stretch);
        }
        Ok(replay)
    }

    /// Returns the last commit and the last end of a transaction that are replayed, for notes about the end.
    pub fn last_transactions(&self) -> Result<(Option<TransactionEnd>, Option<TransactionEnd>)> {
        match self.stretch.final_segment() {
            Some(last) => self.last_in(self.first().0..=last.0),
            None => Ok((None, None)),
        }
    }

    fn first(&self) -> SegmentNumber {
        self.segment_of(self.start_lsn)
    }

    fn segment_of(&self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber::of(lsn, self.chain.size())
    }

    /// Whether recovery may stop at a record that begins in this segment; false is certain.
    pub fn may_stop(&self, rule: &Rule, number: SegmentNumber) -> Result<bool> {
        let name = self.chain.name_in(&self.stretch, number)?;
        let facts = self.chain.wal().facts(name)?;
        let mut crossing = || self.crossing(number);
        if !rule.may_stop_in(&facts, &mut crossing)? {
            return Ok(false);
        }
        match rule {
            Rule::Xid { xid, .. } => {
                if facts.has(flag::XIDS_UNKNOWN) || self.chain.wal().may_end(name, *xid)? {
                    return Ok(true);
                }
                Ok(match self.tail(&facts, number)? {
                    Crossing::End { xid: ended, .. } => ended == *xid || ended == 0,
                    other => other == Crossing::Unknown,
                })
            }
            Rule::Name(wanted) => {
                if crosses_restore_point(&facts, &mut crossing)? {
                    return Ok(true);
                }
                let points = self.chain.wal().restore_points(name)?;
                Ok(points.is_none_or(|points| points.iter().any(|p| p.name == *wanted)))
            }
            _ => Ok(true),
        }
    }

    /// The largest parameters of all changes that are replayed up to `end`; none where none is.
    ///
    /// # Errors
    /// Errors of the WAL.
    pub fn parameters(&self, end: Lsn) -> Result<Option<Parameters>> {
        let mut largest: Option<Parameters> = None;
        let Some(last) = self.stretch.final_segment() else {
            return Ok(largest);
        };
        let last = last.min(SegmentNumber::ending_at(end, self.chain.size()));
        for number in (self.first().0..=last.0).map(SegmentNumber) {
            let facts = self.chain.facts(&self.stretch, number)?;
            if !may_change_parameters(&facts, &mut || self.crossing(number))? {
                continue;
            }
            self.chain
                .scan(&self.stretch, number, &mut |entry: &Entry| {
                    if let EntryKind::ParameterChange(changed) = entry.kind
                        && entry.start >= self.start_lsn
                        && entry.end <= end
                    {
                        largest = Some(largest.map_or(changed, |l| l.max(changed)));
                    }
                })?;
        }
        Ok(largest)
    }

    fn crossing(&self, number: SegmentNumber) -> Result<Crossing> {
        let name = self.chain.name_in(&self.stretch, number)?;
        let next = self.chain.next_name(&self.stretch, number);
        self.chain.wal().crossing(name, next)
    }

    fn tail(&self, facts: &Facts, number: SegmentNumber) -> Result<Crossing> {
        let relevant = matches!(
            facts.tail_class,
            TailClass::TransactionEnd | TailClass::Unknown
        );
        if facts.tail_length == 0 || !relevant {
            return Ok(Crossing::Nothing);
        }
        Ok(match self.crossing(number)? {
            other @ (Crossing::End { .. } | Crossing::Unknown) => other,
            _ => Crossing::Nothing,
        })
    }

    /// The end of the last record that begins before this segment; none at the very start.
    fn end_before(&self, number: SegmentNumber) -> Result<Option<Lsn>> {
        let facts = self.chain.facts(&self.stretch, number)?;
        if number > self.first() && facts.head_end == HeadEnd::Here && facts.head_length > 0 {
            return Ok(Some(super::chain::position_behind(
                facts.start_lsn,
                facts.head_length,
            )));
        }
        for before in (self.first().0..number.0).rev().map(SegmentNumber) {
            let facts = self.chain.facts(&self.stretch, before)?;
            if facts.last_complete_end.0 > self.start_lsn.0 {
                return Ok(Some(facts.last_complete_end));
            }
        }
        Ok(None)
    }

    /// Finds in other segments what the one of the stop does not tell.
    fn complete(
        &self,
        replay: &mut Replay<'_>,
        at: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<()> {
        if (replay.last_commit.is_none() || replay.last_end.is_none()) && at > self.first() {
            let (commit, end) = self.last_in(self.first().0..=at.0 - 1)?;
            replay.last_commit = replay.last_commit.or(commit);
            replay.last_end = replay.last_end.or(end);
        }
        for number in (at.0 + 1..=last.0).map(SegmentNumber) {
            let complete = replay.excluded_commit.is_some() && replay.excluded.is_some();
            let facts = self.chain.facts(&self.stretch, number)?;
            let wanted_late = replay.late.is_none()
                && facts.ends > 0
                && replay.late_before.is_some_and(|t| facts.times.0 <= t);
            let wanted = match (&replay.excluded, &replay.excluded_commit) {
                (None, _) => facts.ends > 0,
                (Some(_), None) => facts.commits > 0,
                _ => false,
            };
            if wanted
                || wanted_late
                || (!complete && self.tail(&facts, number)? != Crossing::Nothing)
            {
                self.chain
                    .scan(&self.stretch, number, &mut |entry| replay.record(entry))?;
            }
            if complete && replay.late_before.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The last commit and the last transaction end of these segments.
    fn last_in(&self, span: Span) -> Result<(Option<TransactionEnd>, Option<TransactionEnd>)> {
        let (mut commit, mut end) = (None, None);
        for number in span.rev().map(SegmentNumber) {
            let facts = self.chain.facts(&self.stretch, number)?;
            let wanted = if end.is_none() {
                facts.ends > 0
            } else {
                facts.commits > 0
            };
            if !wanted && self.tail(&facts, number)? == Crossing::Nothing {
                continue;
            }
            let (mut commit_here, mut end_here) = (None, None);
            self.chain
                .scan(&self.stretch, number, &mut |entry: &Entry| {
                    if entry.start < self.start_lsn {
                        return;
                    }
                    if let Some(found) = transaction_end(entry) {
                        end_here = Some(found);
                        if found.kind == EndKind::Commit {
                            commit_here = Some(found);
                        }
                    }
                })?;
            commit = commit.or(commit_here);
            end = end.or(end_here);
            if commit.is_some() && end.is_some() {
                break;
            }
        }
        Ok((commit, end))
    }
}
