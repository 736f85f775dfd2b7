//! Names the other timelines that lead to a target, and what following each of them loses.

use super::base::Planner;
use super::cluster::{LastCommit, Side, Tree};
use super::recovery::{Plan, Reason};
use super::target::{RecoveryTarget, Target, TargetTimeline};
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;

/// So many other timelines are looked at.
const ELSEWHERE_MAX: usize = 20;

/// The timelines of an inventory, seen from the timeline that a plan follows.
struct Elsewhere<'a> {
    planner: &'a Planner<'a>,
    tree: Tree,
    side: Side<'a>,
    own: TimelineId,
}

/// Adds to a plan on the latest timeline which other timelines lead to the target.
pub(super) fn name_others(planner: &Planner<'_>, plan: &mut Plan) -> Result<()> {
    let Some(own) = plan.target_timeline else {
        return Ok(());
    };
    if planner.is_future() || plan.reason == Some(Reason::NoBackup) {
        return Ok(());
    }
    let elsewhere = Elsewhere {
        planner,
        tree: Tree::of(planner.inventory),
        side: Side {
            inventory: planner.inventory,
            wal: planner.wal,
        },
        own,
    };
    match plan.reachable {
        true => elsewhere.warn(plan),
        false => elsewhere.explain(plan),
    }
}

impl Elsewhere<'_> {
    fn others(&self) -> impl Iterator<Item = TimelineId> + '_ {
        let others = self.tree.timelines().rev().filter(|t| *t != self.own);
        others.take(ELSEWHERE_MAX)
    }

    /// Adds to the explanation of a target that is out of reach every other timeline on which it can be reached.
    fn explain(&self, plan: &mut Plan) -> Result<()> {
        for timeline in self.others() {
            if self.plan_on(timeline)?.reachable {
                let explanation = plan.explanation.get_or_insert_default();
                explanation.push_str(&format!(
                    "; on timeline {0} it can be reached: --target-timeline {0}{1}",
                    timeline.decimal(),
                    self.loss(timeline)?
                ));
            }
        }
        Ok(())
    }

    /// Warns of every other timeline on which a target that is reached means something else.
    fn warn(&self, plan: &mut Plan) -> Result<()> {
        for timeline in self.others() {
            let fork = self.tree.parts_from(timeline, self.own);
            let Some((held, is_undecided)) = self.holds(timeline, fork)? else {
                continue;
            };
            if is_undecided {
                plan.others_meant.push(timeline);
            }
            plan.warnings.push(format!(
                "timeline {0}, which is not on the way to timeline {1}, holds {held}: --target-timeline {0} follows it{2}",
                timeline.decimal(),
                self.own.decimal(),
                self.loss(timeline)?
            ));
        }
        Ok(())
    }

    /// Describes the commits after the point where a timeline and the own one part; `None` unless the target may mean
    /// them. The second one says whether nothing tells which of the two it means.
    fn holds(&self, timeline: TimelineId, fork: Lsn) -> Result<Option<(String, bool)>> {
        let last = match self.side.last_commit(timeline, fork)? {
            LastCommit::None => return Ok(None),
            LastCommit::At(time) => Some(time),
            LastCommit::Unknown(_) => None,
        };
        let shown = last.map_or_else(
            || "commits that cannot be read".to_owned(),
            |time| format!("commits up to {time}"),
        );
        let (is_meant, is_undecided) = match &self.planner.target.target {
            Target::Time(at) => self.may_mean(timeline, fork, *at, last)?,
            Target::Lsn(at) => {
                let size = self.planner.inventory.segment_size;
                let number = SegmentNumber::of(*at, size);
                let is_there = *at > fork && self.planner.inventory.holds(timeline, number);
                (is_there, true)
            }
            Target::Xid(_) | Target::Name(_) => {
                let plan = self.plan_on(timeline)?;
                let stop = plan.stop.filter(|_| plan.reachable);
                return Ok(stop.filter(|stop| stop.lsn >= fork).map(|stop| {
                    let target = &self.planner.target.target;
                    let held = format!("{target}, too, at {}, and {shown}", stop.lsn);
                    (held, true)
                }));
            }
            Target::Immediate | Target::End => (false, false),
        };
        let held = format!("{shown} behind {fork}, of which some are at or before the target");
        Ok(is_meant.then_some((held, is_undecided)))
    }

    /// Whether a time target may mean this timeline, which has commits before it, and whether nothing tells which one it means: see [`between`].
    fn may_mean(
        &self,
        timeline: TimelineId,
        fork: Lsn,
        at: TimestampTz,
        last: Option<TimestampTz>,
    ) -> Result<(bool, bool)> {
        let first = self.side.first_commit(timeline, fork)?;
        if first.is_some_and(|first| first > at) {
            return Ok((false, false));
        }
        let own = self.tree.parts_from(self.own, timeline);
        let begun = self.side.first_commit(self.own, own)?;
        let (is_meant, is_undecided) = between(at, begun, last);
        // Commits that cannot be read may all lie behind the target: a warning is enough.
        Ok((
            is_meant,
            is_undecided && (first.is_some() || last.is_some()),
        ))
    }

    /// Describes the commits of the own timeline that recovery loses if it follows `timeline`.
    fn loss(&self, timeline: TimelineId) -> Result<String> {
        let fork = self.tree.parts_from(self.own, timeline);
        let own = self.own.decimal();
        Ok(match self.side.last_commit(self.own, fork)? {
            LastCommit::None => String::new(),
            LastCommit::At(time) => {
                format!(" (that loses what timeline {own} committed behind {fork}, up to {time})")
            }
            LastCommit::Unknown(_) => {
                format!(" (that loses what timeline {own} committed behind {fork})")
            }
        })
    }

    fn plan_on(&self, timeline: TimelineId) -> Result<Plan> {
        let target = RecoveryTarget {
            timeline: TargetTimeline::Number(timeline),
            ..self.planner.target.clone()
        };
        let other = Planner {
            target: &target,
            ..*self.planner
        };
        other.plan()
    }
}

/// Pure: whether a time may mean a timeline with that last commit: the own one, which has that first commit, had none yet, or both went on. The second one says
/// whether that is undecided: the own one had none yet, or the other one goes on behind the time.
fn between(at: TimestampTz, begun: Option<TimestampTz>, last: Option<TimestampTz>) -> (bool, bool) {
    let is_before_own = begun.is_none_or(|begun| at < begun);
    let went_on = begun.is_none_or(|begun| last.is_none_or(|last| last > begun));
    let lasts = last.is_some_and(|last| last >= at);
    (is_before_own || went_on, is_before_own || lasts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r210_a_time_long_behind_a_failover_means_the_own_timeline() {
        let of = |at: i64, begun: Option<i64>, last: Option<i64>| {
            between(
                TimestampTz(at),
                begun.map(TimestampTz),
                last.map(TimestampTz),
            )
        };
        // Both went on at the failover: a time between is undecided, a later one is not.
        assert_eq!(of(15, Some(10), Some(20)), (true, true));
        assert_eq!(of(900, Some(10), Some(20)), (true, false));
        // The own one had no commit yet.
        assert_eq!(of(25, Some(40), Some(30)), (true, true));
        assert_eq!(of(35, Some(40), Some(30)), (true, true));
        assert_eq!(of(25, None, Some(20)), (true, true));
        // The other one ended before.
        assert!(!of(50, Some(40), Some(30)).0);
        assert_eq!(of(50, Some(40), None), (true, false));
    }
}
