//! Copies in other repositories, and what may leave only while there are enough of them.

use std::collections::BTreeMap;

use super::cluster::Backups;
use super::wal::{Needed, Paths};
use super::{Policy, rules};
use crate::config::Retention;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;
use crate::wal::inventory;
use crate::wal::survey::Survey;

/// The copies of what one repository holds in the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copies {
    /// A backup, or WAL, leaves only while so many repositories have it.
    pub wanted: u32,
    /// How many others have a backup whole, as far as is known.
    pub elsewhere: BTreeMap<BackupId, u32>,
    /// The WAL of others.
    pub wal: WalElsewhere,
}

/// The WAL of a cluster in other repositories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalElsewhere {
    /// Each one that could be read.
    pub others: Vec<Other>,
    /// How many could not be read: any of them may need all WAL.
    pub unread: u32,
}

/// The WAL of a cluster in one other repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Other {
    /// Whole segments.
    held: BTreeMap<TimelineId, Runs>,
    /// Segments that its own backups need.
    needed: Needed,
}

impl Other {
    /// Takes the WAL out of a survey of that repository; none where something of it is not known.
    pub fn of(survey: &Survey, now: TimestampTz) -> Option<Other> {
        let paths = Paths::new(survey);
        if !paths.doubts.is_empty() || !survey.unreadable.is_empty() {
            return None;
        }
        let policy = Policy {
            rules: Retention {
                last: Some(u32::MAX),
                ..Retention::default()
            },
            ..Policy::default()
        };
        let backups = Backups::new(survey, &paths, &policy);
        let judged = rules::judge(backups.items(), &backups, &policy, now);
        let mut needed = Needed::default();
        backups.need(&judged.items, &mut needed);
        // A copy that is known to be damaged is none.
        let mut held = inventory::segments(&survey.timelines);
        for suspect in survey.suspects() {
            if let Some(runs) = held.get_mut(&suspect.timeline)
                && let Ok(number) = suspect.number(survey.segment_size)
            {
                *runs = runs.minus(&Runs::from_numbers(vec![number.0]));
            }
        }
        Some(Other { held, needed })
    }

    fn holds(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        let held = self.held.get(&timeline);
        held.is_some_and(|held| held.contains(number))
    }
}

impl Copies {
    /// Whether a segment stays that nothing here needs: a repository whose backups need it has not got it yet.
    pub fn holds_back(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        let others = &self.wal.others;
        let holders = others.iter().filter(|other| other.holds(timeline, number));
        let have = 1 + u32::try_from(holders.count()).unwrap_or(u32::MAX);
        let lacks = |o: &Other| o.needed.contains(timeline, number) && !o.holds(timeline, number);
        have < self.wanted && (self.wal.unread > 0 || others.iter().any(lacks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMELINE: TimelineId = TimelineId::FIRST;

    /// A repository that holds some segments, and needs all from one on.
    fn other(held: &[u64], needed_from: u64) -> Other {
        let runs = Runs::from_numbers(held.to_vec());
        let mut needed = Needed::default();
        needed.add(
            TIMELINE,
            SegmentNumber(needed_from),
            SegmentNumber(u64::MAX),
        );
        Other {
            held: BTreeMap::from([(TIMELINE, runs)]),
            needed,
        }
    }

    fn held_back(wanted: u32, others: Vec<Other>, unread: u32) -> Vec<u64> {
        let wal = WalElsewhere { others, unread };
        let copies = Copies {
            wanted,
            wal,
            ..Copies::default()
        };
        let is_held = |n: &u64| copies.holds_back(TIMELINE, SegmentNumber(*n));
        (1..=6).filter(is_held).collect()
    }

    #[test]
    fn wal_stays_where_a_repository_needs_and_lacks_it() {
        // It needs the segments from 3 on, and has 3 and 4 of them.
        assert_eq!(held_back(2, vec![other(&[3, 4], 3)], 0), [5, 6]);
        // Nobody there needs what lies before.
        assert_eq!(held_back(2, vec![other(&[], 7)], 0), [] as [u64; 0]);
        assert_eq!(held_back(2, Vec::new(), 0), [] as [u64; 0]);
        // Two have it, and that is enough for two; three want one more.
        let two = || vec![other(&[3, 4, 5, 6], 3), other(&[5], 5)];
        assert_eq!(held_back(2, two(), 0), [] as [u64; 0]);
        assert_eq!(held_back(3, two(), 0), [6]);
        // One that does not answer may need all that is short.
        assert_eq!(held_back(2, vec![other(&[3, 4], 9)], 1), [1, 2, 5, 6]);
    }
}
