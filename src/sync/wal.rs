//! The WAL: histories before segments, segments ascending, so that at no time something later stands where something earlier would not come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::Transfer;
use super::copy::Copied;
use super::fork;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, WalFileName};
use crate::pg::timeline::{History, TimelineId};
use crate::plan::lacking::Lacking;
use crate::repo::layout;
use crate::repo::root::outline::{Outline, wal_span};
use crate::repo::runs::Runs;
use crate::store::Key;
use crate::wal::increment;
use crate::wal::increments;
use crate::wal::presence::{self, Presence};

/// The WAL that is left to copy.
pub(super) struct Wal<'a> {
    transfer: &'a Transfer<'a>,
    lacking: &'a Lacking,
    left: Mutex<BTreeMap<TimelineId, Runs>>,
    /// Timelines of which the two sides have different WAL.
    torn: BTreeSet<TimelineId>,
}

impl<'a> Wal<'a> {
    /// Copies the histories, and compares what both sides have.
    ///
    /// # Errors
    /// Errors of the stores.
    pub(super) fn begin(transfer: &'a Transfer<'a>, lacking: &'a Lacking) -> Result<Wal<'a>> {
        let mut torn = BTreeSet::new();
        for (timeline, (name, e)) in fork::find(transfer, lacking)? {
            transfer.problem(transfer.layout.segment(name).as_str(), &e);
            torn.insert(timeline);
        }
        for timeline in &lacking.histories {
            if !torn.contains(timeline) {
                let key = transfer.layout.history(*timeline);
                let copied = transfer.copy_wal_file(&key, WalFileName::History(*timeline));
                if !transfer.settle(key.as_str(), copied)? {
                    torn.insert(*timeline);
                }
            }
        }
        let mut left = lacking.segments.clone();
        left.retain(|timeline, _| !torn.contains(timeline));
        Ok(Wal {
            transfer,
            lacking,
            left: Mutex::new(left),
            torn,
        })
    }

    /// Takes what is left of a stretch, or of everything, in order of timeline and position.
    fn take(
        &self,
        timeline: Option<TimelineId>,
        range: (SegmentNumber, SegmentNumber),
    ) -> Vec<SegmentName> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = Runs::from_runs(vec![range]);
        let mut names = Vec::new();
        for (id, runs) in left.iter_mut() {
            if timeline.is_some_and(|t| t != *id) {
                continue;
            }
            let rest = runs.minus(&whole);
            let taken = runs.minus(&rest);
            *runs = rest;
            let numbers = taken.iter().flat_map(|(first, last)| first.0..=last.0);
            let size = self.transfer.size;
            names.extend(numbers.filter_map(|n| SegmentNumber(n).name(*id, size)));
        }
        names
    }

    fn copy_segments(
        &self,
        names: &[SegmentName],
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let transfer = self.transfer;
        let size = transfer.size.bytes();
        let one = |name: &SegmentName| -> Result<()> {
            let key = transfer.layout.segment(*name);
            let copied = transfer.copy_wal_file(&key, WalFileName::Segment(*name));
            let is_new = matches!(copied, Ok(Copied::Stored(_)));
            transfer.settle(key.as_str(), copied)?;
            transfer.locked().segments += u64::from(is_new);
            transfer.host.progress.advance(size);
            Ok(())
        };
        transfer.side_by_side(names, &one, tick)
    }

    /// Copies the WAL of a backup, from its start to its end.
    ///
    /// # Errors
    /// Errors of the stores, and `tick`.
    pub(super) fn copy_path(
        &self,
        root: &Outline,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut names = Vec::new();
        for (number, holders) in self.path(root)? {
            for timeline in holders {
                names.extend(self.take(Some(timeline), (number, number)));
            }
        }
        self.copy_segments(&names, tick)?;
        // The last segment may be stored only in part.
        let last = SegmentNumber::ending_at(root.stop_lsn, self.transfer.size);
        let (_, timeline) = root.timelines()?;
        let last = last.name(timeline, self.transfer.size);
        for key in &self.lacking.increments {
            let parent = key.parent().and_then(|p| p.rsplit('/').next());
            if last.is_some_and(|last| parent == Some(last.to_string().as_str())) {
                self.copy_increment(key)?;
            }
        }
        Ok(())
    }

    /// The segments of a backup's WAL, each with the timelines whose copy serves, the best first.
    fn path(&self, root: &Outline) -> Result<Vec<(SegmentNumber, Vec<TimelineId>)>> {
        let size = self.transfer.size;
        let (_, timeline) = root.timelines()?;
        let history = root.history()?;
        let history = history.unwrap_or_else(|| History::root(timeline));
        let path = history.path();
        let (first, last) = wal_span(root.start_lsn, root.stop_lsn, size)?;
        let holders = |number: SegmentNumber| {
            let range = number.range(size);
            let overlaps = path.iter().rev();
            let overlaps =
                overlaps.filter(|i| i.range.start < range.end && range.start < i.range.end);
            overlaps.map(|i| i.timeline).collect()
        };
        Ok((first.0..=last.0)
            .map(SegmentNumber)
            .map(|n| (n, holders(n)))
            .collect())
    }

    /// Requires that the other side has the WAL of a backup, durably.
    ///
    /// # Errors
    /// `Damaged`, naming the first segment that does not count.
    pub(super) fn prove(&self, root: &Outline) -> Result<()> {
        for (number, holders) in self.path(root)? {
            let mut why = None;
            let mut is_there = false;
            for timeline in holders {
                let Some(name) = number.name(timeline, self.transfer.size) else {
                    continue;
                };
                match self.missing(name, root.stop_lsn)? {
                    None => {
                        is_there = true;
                        break;
                    }
                    Some(missing) => {
                        why.get_or_insert(format!("segment \"{name}\" {missing}"));
                    }
                }
            }
            if !is_there {
                let why = why.unwrap_or_else(|| "no timeline has its WAL".to_owned());
                return Err(err!(Damaged, "its WAL is not there: {why}"));
            }
        }
        Ok(())
    }

    /// Why a segment does not count; `None` when it does.
    fn missing(&self, name: SegmentName, stop: Lsn) -> Result<Option<String>> {
        let (to, layout) = (self.transfer.to, &self.transfer.layout);
        match presence::of_segment(to.store(), layout, name)? {
            Presence::Settled => return Ok(None),
            Presence::Unusable(why) => return Ok(Some(why)),
            Presence::Absent => {}
        }
        let whole = name.number(self.transfer.size)?.range(self.transfer.size);
        let pieces = increment::list(to, layout, name)?;
        let pieces = increments::longest(whole.start, &pieces);
        let reach = pieces.last().map_or(whole.start, |p| p.end);
        if reach < stop.min(whole.end) {
            return Ok(Some("is not in the repository".to_owned()));
        }
        for piece in pieces {
            let key = layout.increment(name, piece);
            if let Some(object) = to.store().open(&key)? {
                object.settle()?;
            }
        }
        Ok(None)
    }

    /// Copies the WAL that no copied backup has called for.
    ///
    /// # Errors
    /// Errors of the stores.
    pub(super) fn copy_rest(&self) -> Result<()> {
        let names = self.take(None, (SegmentNumber(0), SegmentNumber(u64::MAX)));
        if names.is_empty() {
            return Ok(());
        }
        let bytes = (names.len() as u64).saturating_mul(self.transfer.size.bytes());
        self.transfer.host.progress.phase("copy WAL", Some(bytes));
        self.copy_segments(&names, &mut || Ok(()))
    }

    /// Copies partial segments, labels, increments and refused copies.
    ///
    /// # Errors
    /// Errors of the stores.
    pub(super) fn copy_beside(&self) -> Result<()> {
        let transfer = self.transfer;
        for name in &self.lacking.files {
            if !self.torn.contains(&name.timeline()) {
                let key = transfer.layout.wal_file(*name);
                let copied = transfer.copy_wal_file(&key, *name);
                transfer.settle(key.as_str(), copied)?;
            }
        }
        for key in &self.lacking.increments {
            self.copy_increment(key)?;
        }
        for (name, key) in &self.lacking.refused {
            let copied = match layout::increment_range(key.name()) {
                Some(_) => transfer.copy_increment(key),
                None => transfer.copy_wal_file(key, *name),
            };
            transfer.settle(key.as_str(), copied)?;
        }
        Ok(())
    }

    fn copy_increment(&self, key: &Key) -> Result<()> {
        let segment = key.parent().and_then(|p| p.rsplit('/').next());
        let segment = segment.and_then(|s| s.parse::<SegmentName>().ok());
        if segment.is_some_and(|s| self.torn.contains(&s.timeline)) {
            return Ok(());
        }
        let copied = self.transfer.copy_increment(key);
        self.transfer.settle_some(key, copied)
    }

    /// Whether the two sides have different WAL of a timeline.
    pub(super) fn is_torn(&self, timeline: u32) -> bool {
        TimelineId::new(timeline).is_some_and(|t| self.torn.contains(&t))
    }
}
