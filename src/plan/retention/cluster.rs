//! The backups of a cluster as items of retention, and what its WAL asks beyond the rules.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::copies::Copies;
use super::item::{self, DamagedParts, Hold, Item, Twin};
use super::objects::Running;
use super::rules::{Constraint, Lack, newest_good};
use super::wal::{Left, Names, Needed, Paths};
use super::{ExpirePlan, Place, Policy, wal_objects};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::Needs;
use crate::repo::clock;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;
use crate::repo::trimmed::Trimmed;
use crate::repo::wal_proof::foreign;
use crate::wal::inventory;
use crate::wal::path::Listing;
use crate::wal::survey::{Root, Subject, Survey};

/// The committed backups of a cluster, and the paths of its WAL.
pub struct Backups<'a> {
    survey: &'a Survey,
    paths: &'a Paths<'a>,
    roots: BTreeMap<&'a BackupId, &'a Root>,
    damaged: DamagedParts,
    /// The timelines that may be the cluster.
    followed: Vec<TimelineId>,
    /// Only the WAL of a window is promised whole.
    window: Option<Duration>,
    has_window: bool,
    /// Copies in other repositories, where WAL leaves only with them.
    copies: Option<&'a Copies>,
    /// How far WAL reaches on the way to a timeline from a position: asked again and again.
    reached: RefCell<BTreeMap<(TimelineId, Lsn), Lsn>>,
}

impl<'a> Backups<'a> {
    /// Takes the committed backups out of a survey.
    pub fn new(survey: &'a Survey, paths: &'a Paths<'a>, policy: &'a Policy) -> Backups<'a> {
        let roots = survey.committed().map(|(id, _, root)| (id, root));
        let newest = || paths.timelines().next_back().into_iter().collect();
        Backups {
            survey,
            paths,
            roots: roots.collect(),
            damaged: survey.damaged_parts(),
            followed: match policy.cluster.is_empty() {
                true => newest(),
                false => policy.cluster.clone(),
            },
            window: policy.rules.wal_window,
            has_window: policy.rules.wal_window.is_some(),
            copies: policy.copies.as_ref(),
            reached: RefCell::default(),
        }
    }

    /// Returns the backups as items.
    ///
    /// Order: a timeline's number is larger than those of its ancestors, so no backup comes before one that it descends from.
    pub fn items(&self) -> Vec<Item<'a>> {
        let mut roots: Vec<_> = self.roots.iter().map(|(id, root)| (*id, *root)).collect();
        roots.sort_by_key(|(id, root)| (root.timeline, root.stop_lsn, root.stop_time, *id));
        let subject = |id| self.survey.ids.get(id);
        let subjects = roots
            .into_iter()
            .filter_map(|(id, root)| Some((id, root, subject(id)?)));
        let mut items: Vec<_> = subjects
            .enumerate()
            .map(|(order, (id, root, subject))| Item {
                time: root.stop_time,
                stored: subject.stored.unwrap_or(TimestampTz::INFINITY),
                stored_bytes: root.stored_bytes,
                leads_to: self.followed(|t| self.leads(root, t)),
                unsure: root.unsure.clone(),
                beside: self.followed(|t| root.timeline > t && !self.leads(root, t)),
                damage: self.damage(subject, root),
                ..Item::new(order, id, &subject.events, root.needs())
            })
            .collect();
        self.find_twins(&mut items);
        items
    }

    /// Some of the timelines that may be the cluster.
    fn followed(&self, is_meant: impl Fn(TimelineId) -> bool) -> BTreeSet<TimelineId> {
        let followed = self.followed.iter().copied();
        followed.filter(|timeline| is_meant(*timeline)).collect()
    }

    /// Finds backups of the same content. Items come in the order of ids there, oldest first.
    fn find_twins(&self, items: &mut [Item<'a>]) {
        let same = |a: &Item<'_>, b: &Item<'_>| match (self.root(a), self.root(b)) {
            (Some(a), Some(b)) => a.is_twin(b),
            _ => false,
        };
        for twins in items.chunk_by_mut(same).filter(|twins| twins.len() > 1) {
            let (counts, is_proven) = counting(twins);
            let Some(id) = twins.get(counts).map(|twin| twin.id) else {
                continue;
            };
            for (at, twin) in twins.iter_mut().enumerate() {
                twin.twin = match at.cmp(&counts) {
                    Ordering::Less => is_proven.then_some(Twin::StoodForBy(id)),
                    Ordering::Equal => None,
                    Ordering::Greater => Some(Twin::StandsLater(id)),
                };
            }
        }
    }

    fn damage(&self, subject: &Subject, root: &Root) -> Option<String> {
        if let Some(damage) = &root.damage {
            return Some(damage.clone());
        }
        let needs = root.needs();
        if let Some(name) = root.foreign {
            return Some(foreign(name));
        }
        if let Some(damage) = item::damage((self.survey, &self.damaged), subject, needs) {
            return Some(damage);
        }
        // A descendant's copy of the segment in which it began may have what the timeline itself lacks.
        let targets = self.paths.timelines();
        let reach = targets
            .filter(|target| self.leads(root, *target))
            .map(|target| self.reach(target, root.start_lsn))
            .max()
            .unwrap_or_default();
        (reach < root.stop_lsn).then(|| format!("WAL that it needs is missing from {reach} on"))
    }

    /// Whether a backup can be rolled forward to a timeline.
    fn leads(&self, root: &Root, target: TimelineId) -> bool {
        self.paths
            .leads_through(target, root.timeline, root.stop_lsn)
    }

    /// Whether it surely can: a backup of which that is not known stands for no other.
    fn surely_leads(&self, root: &Root, target: TimelineId) -> bool {
        self.paths
            .surely_leads_through(target, root.timeline, root.stop_lsn)
    }

    fn reach(&self, target: TimelineId, start: Lsn) -> Lsn {
        let mut reached = self.reached.borrow_mut();
        *reached
            .entry((target, start))
            .or_insert_with(|| self.paths.reach(target, start))
    }

    fn root(&self, item: &Item<'_>) -> Option<&'a Root> {
        self.roots.get(item.id).copied()
    }

    /// The roots of some items, with their indexes.
    fn roots_of<'i>(
        &self,
        items: &'i [Item<'_>],
        wanted: impl Fn(&Item<'_>) -> bool,
    ) -> Vec<(usize, &'i Item<'i>, &'a Root)> {
        let all = items.iter().enumerate().filter(|(_, item)| wanted(item));
        all.filter_map(|(at, item)| Some((at, item, self.root(item)?)))
            .collect()
    }

    /// After a failover to a standby that lagged, the cluster's timeline may begin before the oldest kept backup: its base stays.
    fn base(&self, items: &[Item<'_>], timeline: TimelineId) -> Option<Lack> {
        let leading = self.roots_of(items, |_| true).into_iter();
        let mut leading: Vec<_> = leading
            .filter(|(_, _, root)| self.leads(root, timeline))
            .collect();
        let is_sure = |root: &Root| self.surely_leads(root, timeline);
        // One that may lead there is better than none.
        let mut good = leading.iter().filter(|(_, item, _)| item.damage.is_none());
        if good.any(|(_, _, root)| is_sure(root)) {
            leading.retain(|(_, _, root)| is_sure(root));
        }
        if leading.iter().any(|(_, item, _)| self.is_base(item)) {
            return None;
        }
        let good = leading.iter().filter(|(_, item, _)| item.damage.is_none());
        let (at, item, _) = good.max_by_key(|(_, _, root)| root.stop_lsn)?;
        let number = timeline.decimal();
        Some(Lack {
            at: *at,
            reason: format!("the base of timeline {number}, which the cluster follows"),
            warning: Some(format!(
                "no backup that is kept leads to timeline {number}, which the cluster follows: \"{}\" is kept for it, with the WAL from there on",
                item.id
            )),
        })
    }

    /// Whether everything behind a backup is promised.
    fn is_base(&self, item: &Item<'_>) -> bool {
        match item.hold {
            _ if item.damage.is_some() => false,
            Some((_, hold)) => !self.has_window || hold == Hold::Promise,
            None => false,
        }
    }

    /// Returns the position where the promise begins on the way to a timeline; `None` where nothing is kept, or where the window has no moment of it.
    ///
    /// Without a window: at the end of the oldest kept backup, on every timeline. With one: at the end of the newest good backup that was taken
    /// before it for sure; before the first such one, everything is promised.
    fn promise(&self, items: &[Item<'_>], target: TimelineId) -> Option<Lsn> {
        if !self.has_window {
            let kept = self.roots_of(items, |i| self.is_base(i));
            return kept.iter().map(|(_, _, root)| root.stop_lsn).min();
        }
        if self.is_past(items, target) {
            return None;
        }
        let before = self.roots_of(items, |i| i.precedes_window && i.damage.is_none());
        let leading = before
            .iter()
            .filter(|(_, _, r)| self.surely_leads(r, target));
        Some(leading.map(|(_, _, r)| r.stop_lsn).max().unwrap_or(Lsn(0)))
    }

    /// Whether a timeline that is not the cluster was left before the window: what leads to it and lies in the window is on the way to others, too.
    fn is_past(&self, items: &[Item<'_>], target: TimelineId) -> bool {
        let newest = newest_good(items).zip(self.window);
        let begin = newest.map(|(newest, window)| newest.saturating_sub(window));
        let begin = begin.map(|begin| begin.saturating_sub(clock::MAY_DIFFER));
        let held = self.survey.timelines.get(&target);
        let stored = match held {
            // Its history was archived when it began.
            Some(held) if held.is_empty() => held.history_stored,
            _ => self.survey.newest_wal.get(&target).copied(),
        };
        let is_followed = self.followed.contains(&target);
        !is_followed && stored.zip(begin).is_some_and(|(at, begin)| at < begin)
    }

    /// A good backup that is not kept, from which a point inside the promise can be reached that no kept backup reaches.
    ///
    /// Near the beginning of the promise first: such a backup covers those after it.
    fn uncovered(&self, items: &[Item<'_>]) -> Option<Lack> {
        let targets = self.paths.timelines();
        let promised: Vec<(TimelineId, Lsn)> = targets
            .filter_map(|target| Some((target, self.promise(items, target)?)))
            .collect();
        let bases = self.roots_of(items, |i| self.is_base(i));
        let mut others = self.roots_of(items, |i| !self.is_base(i) && i.damage.is_none());
        others.sort_by_cached_key(|(_, _, root)| {
            let led_to = promised
                .iter()
                .filter(|(target, _)| self.leads(root, *target));
            let distance = |promise: Lsn| match root.stop_lsn {
                stop if stop <= promise => (0, promise.0 - stop.0),
                stop => (1, stop.0),
            };
            led_to.map(|(_, promise)| distance(*promise)).min()
        });
        for (at, _, root) in others {
            for (target, promise) in &promised {
                let from = root.stop_lsn.max(*promise);
                let reaches =
                    |r: &Root| self.leads(r, *target) && self.reach(*target, r.start_lsn) >= from;
                let covers =
                    |r: &Root| r.stop_lsn <= from && self.surely_leads(r, *target) && reaches(r);
                if reaches(root) && !bases.iter().any(|(_, _, base)| covers(base)) {
                    return Some(Lack {
                        at,
                        reason: self.why_uncovered(*target),
                        warning: None,
                    });
                }
            }
        }
        None
    }

    fn why_uncovered(&self, target: TimelineId) -> String {
        let number = target.decimal();
        match self.has_window {
            true => format!("wal_window: moments in it on timeline {number} are reached from here"),
            false => format!("points of timeline {number} can only be reached from it"),
        }
    }

    /// Adds what the remaining backups need of the WAL.
    pub fn need(&self, items: &[Item<'_>], needed: &mut Needed) {
        for (_, item, root) in self.roots_of(items, |item| item.remains()) {
            let is_bounded = item.is_bounded(self.has_window);
            needed.begin(item.id, is_bounded);
            let range = (root.start_lsn, root.stop_lsn);
            let end = root.consistent_lsn.max(root.stop_lsn);
            if is_bounded {
                self.paths.need_to_end(root.timeline, range, end, needed);
            } else {
                let trimmed = self.holes_of(root);
                if trimmed.is_empty() {
                    self.paths
                        .need_from(root.timeline, root.start_lsn, root.stop_lsn, needed);
                } else {
                    let held = &Names(&self.survey.timelines);
                    let range = (root.start_lsn, end);
                    self.paths
                        .need_unbroken(root.timeline, range, held, &trimmed, needed);
                }
            }
            if root.start_timeline != root.timeline {
                self.paths
                    .need_path(root.timeline, root.start_lsn, root.stop_lsn, needed);
            }
        }
        needed.end();
    }

    /// The holes that expiry made on purpose behind a backup, as they are recorded of it or of a twin.
    fn holes_of(&self, root: &Root) -> Trimmed {
        let mut trimmed = Trimmed::default();
        for (id, _) in self.roots.iter().filter(|(_, other)| other.is_twin(root)) {
            let subject = self.survey.ids.get(id);
            trimmed.add(subject.map_or(&[][..], |subject| &subject.events));
        }
        trimmed
    }

    /// Returns the backups that remain, and behind which this run leaves a hole, or a larger one, or a twin's hole is not recorded yet. Each comes
    /// with the first segment of the hole. The run records it before WAL goes.
    pub fn trimmed(&self, items: &[Item<'_>], needed: &Needed) -> Vec<(BackupId, SegmentName)> {
        let names = || Names(&self.survey.timelines);
        let left = Left {
            names: names(),
            needed,
        };
        let mut holes = Vec::new();
        for (_, item, root) in self.roots_of(items, |item| item.remains()) {
            let known = Trimmed::of(item.events);
            let first = |target: TimelineId| {
                let hole =
                    |held: &dyn Listing| self.paths.hole_behind(target, root.start_lsn, held);
                let (before, after) = (hole(&names()), hole(&left));
                let (from, _) = after?;
                let name = from.name(self.paths.holder(target, from), self.survey.segment_size)?;
                // A hole of before is none of expiry, unless a twin says so, or this run makes it larger.
                let is_new = before != after;
                let is_meant = || is_new || self.holes_of(root).begins(name);
                (!known.begins(name) && is_meant()).then_some(name)
            };
            let led_to = self.paths.timelines().filter(|t| self.leads(root, *t));
            let firsts: BTreeSet<SegmentName> = led_to.filter_map(first).collect();
            holes.extend(firsts.into_iter().map(|first| (item.id.clone(), first)));
        }
        holes
    }
}

/// Chooses the twin that counts, by its index, and says whether it is proven. The first of these that there is:
/// - the newest undamaged, unmarked one that was verified;
/// - where every undamaged one is marked, the newest of them that was verified;
/// - the oldest undamaged one;
/// - the oldest one.
fn counting(twins: &[Item<'_>]) -> (usize, bool) {
    let is_good = |item: &Item<'_>| item.damage.is_none();
    let unmarked = |item: &Item<'_>| is_good(item) && !item.is_marked();
    let proven = match twins.iter().any(unmarked) {
        true => twins.iter().rposition(|i| unmarked(i) && i.is_verified()),
        false => twins.iter().rposition(|i| is_good(i) && i.is_verified()),
    };
    let oldest = || twins.iter().position(is_good).unwrap_or(0);
    (proven.unwrap_or_else(oldest), proven.is_some())
}

impl Constraint for Backups<'_> {
    fn place(&self, id: &BackupId) -> Option<Place> {
        let root = self.roots.get(id)?;
        Some(Place {
            timeline: root.timeline,
            start_lsn: root.start_lsn,
            stop_lsn: root.stop_lsn,
        })
    }

    fn segments(&self) -> BTreeMap<TimelineId, Runs> {
        inventory::segments(&self.survey.timelines)
    }

    fn delete(&self, items: &[Item<'_>], running: &[Running<'_>], plan: &mut ExpirePlan) {
        wal_objects::delete(
            (self.survey, self.copies),
            self.paths,
            (self, items),
            running,
            plan,
        );
    }

    fn lacks(&self, items: &[Item<'_>]) -> Option<Lack> {
        let mut followed = self.followed.iter();
        let base = followed.find_map(|timeline| self.base(items, *timeline));
        base.or_else(|| self.uncovered(items))
    }

    fn hangs_on(&self, items: &[Item<'_>], id: &BackupId) -> Option<String> {
        let good = self.roots_of(items, |i| i.damage.is_none());
        let is_base = |timeline: &&TimelineId| {
            let (mut own, mut others) = (false, false);
            for (_, item, root) in &good {
                match item.id == id {
                    true => own |= self.leads(root, **timeline),
                    false => others |= self.surely_leads(root, **timeline),
                }
            }
            own && !others
        };
        let base = self.followed.iter().find(is_base)?;
        Some(format!(
            "it is the only good one that leads to timeline {}, which the cluster follows",
            base.decimal()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::segment::{SegmentNumber, SegmentSize};
    use crate::repo::catalog::Manifest;

    const MIB: u64 = 1 << 20;
    const NEWER: &str = "20261120T064049Z-full";

    /// The WAL of one timeline, with a backup in segments 30 to 39 and one that begins in segment 90.
    fn survey(segments: impl Iterator<Item = u64>) -> Survey {
        let mut survey = Survey::empty(SegmentSize::new(MIB).unwrap());
        let timeline = inventory::Timeline {
            segments: Runs::from_numbers(segments.collect()),
            ..inventory::Timeline::default()
        };
        survey.timelines.insert(TimelineId::FIRST, timeline);
        for (id, start, stop) in [("20261118T064049Z-full", 30, 39), (NEWER, 90, 91)] {
            let at = |segment: u64| Lsn(segment * MIB + 40);
            let root = Root::sample(TimelineId::FIRST, at(start), at(stop));
            let subject = Subject {
                manifest: Manifest::Committed(Box::new(root)),
                ..Subject::default()
            };
            survey.ids.insert(id.parse().unwrap(), subject);
        }
        survey
    }

    #[test]
    fn x57_a_hole_that_begins_where_wal_was_lost_before_is_recorded() {
        let holes = |survey: &Survey, older: Hold| {
            let (paths, policy) = (Paths::new(survey), Policy::default());
            let backups = Backups::new(survey, &paths, &policy);
            let mut items = backups.items();
            for item in &mut items {
                let is_newer = item.id.to_string() == NEWER;
                let hold = if is_newer { Hold::Promise } else { older };
                item.hold = Some((String::new(), hold));
            }
            let mut needed = Needed::default();
            backups.need(&items, &mut needed);
            let holes = backups.trimmed(&items, &needed).into_iter();
            holes.map(|(_, first)| first).collect::<Vec<_>>()
        };
        let first = SegmentNumber(40).name(TimelineId::FIRST, SegmentSize::new(MIB).unwrap());
        let lost = survey((1..=39).chain(45..=100));
        assert_eq!(holes(&lost, Hold::End), [first.unwrap()]);
        // The WAL behind the loss stays.
        assert_eq!(holes(&lost, Hold::Promise), []);
        // Nobody let that WAL go.
        let all = survey((1..=39).chain(90..=100));
        assert_eq!(holes(&all, Hold::End), []);
    }
}
