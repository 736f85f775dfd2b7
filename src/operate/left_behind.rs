//! Commits that a cluster left behind: they were stored of a timeline after the position at which the next one began, as a failover leaves them.

use serde::Serialize;

use super::human;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::cluster::Side;
use crate::wal::inventory::Inventory;

/// Commits of a timeline that the cluster does not have.
#[derive(Debug, Serialize)]
pub struct LeftBehind {
    pub timeline: u32,
    /// The position at which it was left.
    pub switch_lsn: Lsn,
    /// How many commits are stored after it.
    pub commits: u64,
    /// Time of the first of them, by the server's clock.
    pub first: TimestampTz,
    /// Time of the last of them.
    pub last: TimestampTz,
}

impl LeftBehind {
    /// All of them on the way to the timeline that is the cluster, the newest first.
    ///
    /// # Errors
    /// Those of the WAL, apart from damage.
    pub fn all(
        session: &Session,
        reading: &Reading,
        inventory: &Inventory,
        cluster: Option<TimelineId>,
    ) -> Result<Vec<LeftBehind>> {
        let Some(Ok(history)) = cluster.map(|timeline| inventory.history(timeline)) else {
            return Ok(Vec::new());
        };
        let rollup = reading.rollup(session, inventory)?;
        let side = Side {
            inventory,
            wal: &rollup,
        };
        let mut left = Vec::new();
        for timeline in inventory.timelines.keys().rev() {
            let Some(switch_lsn) = history.switch_point(*timeline) else {
                continue;
            };
            if let Some(behind) = side.commits_behind(*timeline, switch_lsn)? {
                left.push(LeftBehind {
                    timeline: timeline.decimal(),
                    switch_lsn,
                    commits: behind.commits,
                    first: behind.first,
                    last: behind.last,
                });
            }
        }
        Ok(left)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "left behind: {} of timeline {} after {}, from {} to {}. The cluster does not have them; pitr restore --target-timeline {} leads to them",
            human::count(self.commits, "commit"),
            self.timeline,
            self.switch_lsn,
            human::time(self.first),
            human::time(self.last),
            self.timeline
        )
    }
}
