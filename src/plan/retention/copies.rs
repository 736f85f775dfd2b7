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
        Some(Other {
            held: inventory::segments(&survey.timelines),
            needed,
        })
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
