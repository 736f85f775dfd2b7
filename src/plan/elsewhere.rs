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
            let Some(held) = self.holds(timeline, fork)? else {
                continue;
            };
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
    /// them.
    fn holds(&self, timeline: TimelineId, fork: Lsn) -> Result<Option<String>> {
        let last = match self.side.last_commit(timeline, fork)? {
            LastCommit::None => return Ok(None),
            LastCommit::At(time) => Some(time),
            LastCommit::Unknown(_) => None,
        };
        let shown = last.map_or_else(
            || "commits that cannot be read".to_owned(),
            |time| format!("commits up to {time}"),
        );
        let is_meant = match &self.planner.target.target {
            Target::Time(at) => self.is_meant(timeline, fork, *at, last)?,
            Target::Lsn(at) => {
                let size = self.planner.inventory.segment_size;
                let number = SegmentNumber::of(*at, size);
                *at > fork && self.planner.inventory.holds(timeline, number)
            }
            Target::Xid(_) | Target::Name(_) => {
                let plan = self.plan_on(timeline)?;
                let stop = plan.stop.filter(|_| plan.reachable);
                return Ok(stop.filter(|stop| stop.lsn >= fork).map(|stop| {
                    let target = &self.planner.target.target;
                    format!("{target}, too, at {}, and {shown}", stop.lsn)
                }));
            }
            Target::Immediate | Target::End => false,
        };
        Ok(is_meant
            .then(|| format!("{shown} behind {fork}, of which some are at or before the target")))
    }

    /// Whether a time target may mean this timeline: it has commits before it, and either the own timeline had none yet, or both went on.
    fn is_meant(
        &self,
        timeline: TimelineId,
        fork: Lsn,
        at: TimestampTz,
        last: Option<TimestampTz>,
    ) -> Result<bool> {
        let first = self.side.first_commit(timeline, fork)?;
        if first.is_some_and(|first| first > at) {
            return Ok(false);
        }
        let own = self.tree.parts_from(self.own, timeline);
        let begun = self.side.first_commit(self.own, own)?;
        Ok(begun.is_none_or(|begun| at < begun || last.is_none_or(|last| last > begun)))
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
