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
use crate::plan::window::Window;
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
    /// Whether a backup leads to the end of the timeline: nothing that lies before it is missing or damaged.
    #[serde(skip)]
    pub is_reachable: bool,
}

impl LeftBehind {
    /// All of them on the way to the timeline that is the cluster, the newest first. The windows tell whether they can be recovered.
    ///
    /// # Errors
    /// Those of the WAL, apart from damage.
    pub fn all(
        session: &Session,
        reading: &Reading,
        inventory: &Inventory,
        cluster: Option<(TimelineId, &[Window])>,
    ) -> Result<Vec<LeftBehind>> {
        let Some((timeline, windows)) = cluster else {
            return Ok(Vec::new());
        };
        let Ok(history) = inventory.history(timeline) else {
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
                    is_reachable: windows.iter().any(|w| w.timeline == *timeline && w.to_end),
                });
            }
        }
        Ok(left)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let leads = match self.is_reachable {
            true => format!(
                "pitr restore --target-timeline {} leads to them",
                self.timeline
            ),
            false => format!(
                "no backup leads to all of them: pitr plan --target-timeline {} names the nearest moment",
                self.timeline
            ),
        };
        format!(
            "left behind: {} of timeline {} after {}, from {} to {}. The cluster does not have them; {leads}",
            human::count(self.commits, "commit"),
            self.timeline,
            self.switch_lsn,
            human::time(self.first),
            human::time(self.last)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r227_commits_behind_damage_are_not_said_to_be_restored() {
        let line = |is_reachable| {
            let left = LeftBehind {
                timeline: 3,
                switch_lsn: Lsn(0x1_0000),
                commits: 1,
                first: TimestampTz(0),
                last: TimestampTz(0),
                is_reachable,
            };
            left.line()
        };
        let leads = "pitr restore --target-timeline 3 leads to them";
        assert!(line(true).ends_with(leads));
        assert!(!line(false).contains(leads));
        assert!(line(false).contains("pitr plan --target-timeline 3 names"));
    }
}
