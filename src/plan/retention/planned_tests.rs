//! The planner of recovery, asked about moments of the histories that expiry is tested with.
//!
//! A survey is its inventory. Its WAL is laid for one question: the names of segments are those that are there, and a record ends where the question
//! wants to go.

use std::collections::BTreeSet;

use super::tests::{MIB, size};
use super::*;
use crate::error::Result;
use crate::plan::base;
use crate::plan::cluster::{Cluster, Verdict, Why};
use crate::plan::recovery::Options;
use crate::plan::target::{Inclusive, RecoveryTarget, Target, TargetTimeline};
use crate::repo::event::damage;
use crate::repo::root::BackupKind;
use crate::repo::trimmed::Trimmed;
use crate::repo::wal_proof::RawHash;
use crate::wal::facts::{Crossing, Entry, EntryKind, Facts, NamedPoint, Wal};
use crate::wal::inventory::{self, Backup, Inventory};
use crate::wal::survey::Root;

/// WAL in which no record crosses the end of a segment. Every timeline has the same records, as far as it has the segment.
struct Laid {
    /// Positions inside of segments at which a record ends and the next one begins.
    cuts: BTreeSet<u64>,
}

impl Laid {
    fn records(&self, name: SegmentName) -> Result<Vec<Entry>> {
        let range = name.number(size())?.range(size());
        let inside = self.cuts.range(range.start.0 + 1..range.end.0).copied();
        let begins = std::iter::once(range.start.0).chain(inside.clone());
        let ends = inside.chain(std::iter::once(range.end.0));
        let record = |(start, end)| Entry {
            start: Lsn(start),
            end: Lsn(end),
            kind: EntryKind::Other,
        };
        Ok(begins.zip(ends).map(record).collect())
    }
}

impl Wal for Laid {
    fn facts(&self, name: SegmentName) -> Result<Facts> {
        let records = self.records(name)?;
        let (first, last) = (&records[0], &records[records.len() - 1]);
        let mut facts = Facts::empty(first.start);
        facts.first_record = first.start;
        facts.last_begun = last.start;
        (facts.last_complete, facts.last_complete_end) = (last.start, last.end);
        facts.valid_end = last.end;
        Ok(facts)
    }

    fn crossing(&self, _: SegmentName, _: Option<SegmentName>) -> Result<Crossing> {
        Ok(Crossing::Nothing)
    }

    fn may_end(&self, _: SegmentName, _: u32) -> Result<bool> {
        Ok(false)
    }

    fn restore_points(&self, _: SegmentName) -> Result<Option<Vec<NamedPoint>>> {
        Ok(Some(Vec::new()))
    }

    fn scan(
        &self,
        name: SegmentName,
        _: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()> {
        self.records(name)?.iter().for_each(visit);
        Ok(())
    }

    fn has_hash(&self, _: SegmentName, _: RawHash) -> Result<bool> {
        Ok(true)
    }

    fn has_prefix(&self, _: SegmentName, _: u64, _: RawHash) -> Result<bool> {
        Ok(true)
    }
}

fn backup(id: &BackupId, subject: &Subject<Root>, root: &Root) -> Backup {
    let damaged = !damage(&subject.events).is_empty();
    Backup {
        id: id.clone(),
        kind: BackupKind::Full,
        label: String::new(),
        start_lsn: root.start_lsn,
        stop_lsn: root.stop_lsn,
        consistent_lsn: root.consistent_lsn,
        checkpoint_lsn: root.start_lsn,
        start_timeline: root.start_timeline,
        timeline: root.timeline,
        start_time: root.stop_time,
        stop_time: root.stop_time,
        major: 17,
        size_bytes: root.size_bytes,
        stored_bytes: root.stored_bytes,
        timezone: None,
        tablespaces: Vec::new(),
        packs: root.packs.clone(),
        wal_proof: None,
        page_errors: 0,
        damage: damaged.then(|| "a check found damage".to_owned()),
        is_partial: false,
        damaged_copies: u32::from(damaged),
        expire_mark: None,
        pins: Vec::new(),
        trimmed: Trimmed::of(&subject.events),
        is_verified: false,
    }
}

fn inventory_of(survey: &Survey) -> Inventory {
    let all = survey.committed();
    let mut backups: Vec<Backup> = all
        .map(|(id, subject, root)| backup(id, subject, root))
        .collect();
    inventory::sort(&mut backups);
    Inventory {
        repository: "/r".to_owned(),
        repository_uuid: "0".to_owned(),
        cluster: "main".to_owned(),
        system_identifier: 7,
        major: 17,
        segment_size: survey.segment_size,
        backups,
        timelines: survey.timelines.clone(),
        ..Inventory::default()
    }
}

/// Whether the planner finds a way to a point of a timeline.
pub(super) fn is_planned(
    survey: &Survey,
    timeline: TimelineId,
    point: Lsn,
    now: TimestampTz,
) -> bool {
    // The record that ends at the point is the last one to be replayed.
    let segment = (point.0 - 1) / MIB * MIB;
    let last = segment.max(point.0 - 8);
    // No backup is consistent behind the first record that it replays.
    let begins = survey.committed().map(|(.., root)| root.start_lsn.0);
    let cuts = begins.flat_map(|begin| [begin, begin + 4]);
    let mut cuts: BTreeSet<u64> = cuts.filter(|cut| *cut <= last || *cut >= point.0).collect();
    cuts.extend([last, point.0]);
    let laid = Laid { cuts };
    let target = RecoveryTarget {
        target: Target::Lsn(Lsn(last)),
        inclusive: Inclusive::Yes,
        timeline: TargetTimeline::Number(timeline),
    };
    let verdict = Verdict::Decided {
        timeline,
        why: Why::Newest,
    };
    let options = Options {
        restore_command: "pitr-restore %f %p".to_owned(),
        cluster: Some(Cluster {
            verdict,
            beside: Vec::new(),
            abandoned: BTreeSet::new(),
        }),
        ..Options::default()
    };
    let plan = base::plan(&inventory_of(survey), &laid, &target, &options, now);
    plan.unwrap().reachable
}
