//! The backups of a cluster as items of retention, and what its WAL asks beyond the rules.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::item::{self, DamagedParts, Hold, Item};
use super::objects::Running;
use super::rules::{Constraint, Lack};
use super::wal::{Needed, Paths};
use super::{ExpirePlan, Fate, Place, Policy, wal_objects};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::Needs;
use crate::repo::id::BackupId;
use crate::repo::wal_proof::foreign;
use crate::wal::survey::{Root, Subject, Survey};

/// The committed backups of a cluster, and the paths of its WAL.
pub struct Backups<'a> {
    survey: &'a Survey,
    paths: &'a Paths<'a>,
    roots: BTreeMap<&'a BackupId, &'a Root>,
    damaged: DamagedParts,
    /// The timelines that may be the cluster.
    followed: Vec<TimelineId>,
    /// How far WAL reaches on the way to a timeline from a position: asked again and again.
    reached: RefCell<BTreeMap<(TimelineId, Lsn), Lsn>>,
}

impl<'a> Backups<'a> {
    /// Takes the committed backups out of a survey.
    pub fn new(survey: &'a Survey, paths: &'a Paths<'a>, policy: &Policy) -> Backups<'a> {
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
            reached: RefCell::default(),
        }
    }

    /// Returns the backups as items.
    ///
    /// Order: a timeline's number is larger than those of its ancestors, so no backup comes before one that it descends from.
    pub fn items(&self) -> Vec<Item<'a>> {
        let mut roots: Vec<_> = self.roots.iter().map(|(id, root)| (*id, *root)).collect();
        roots.sort_by_key(|(id, root)| (root.timeline, root.stop_lsn, *id));
        let subject = |id| self.survey.ids.get(id);
        let subjects = roots
            .into_iter()
            .filter_map(|(id, root)| Some((id, root, subject(id)?)));
        subjects
            .enumerate()
            .map(|(order, (id, root, subject))| Item {
                order,
                id,
                time: root.stop_time,
                stored: subject.stored.unwrap_or(TimestampTz::INFINITY),
                events: &subject.events,
                stored_bytes: root.stored_bytes,
                needs: root.needs(),
                damage: self.damage(subject, root),
                hold: None,
                is_asked: false,
                fate: Fate::Keep,
            })
            .collect()
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
        let leading: Vec<_> = leading
            .filter(|(_, _, root)| self.leads(root, timeline))
            .collect();
        if leading.iter().any(|(_, item, _)| item.hold.is_some()) {
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

    /// A good backup that is not kept, from which a point inside the promise can be reached that no kept backup reaches.
    ///
    /// Near the beginning of the promise first: such a backup covers those after it.
    fn uncovered(&self, items: &[Item<'_>]) -> Option<Lack> {
        let kept = self.roots_of(items, |i| i.hold.is_some());
        let promise = kept.iter().map(|(_, _, root)| root.stop_lsn).min()?;
        let mut others = self.roots_of(items, |i| i.hold.is_none() && i.damage.is_none());
        others.sort_by_key(|(_, _, root)| match root.stop_lsn {
            stop if stop <= promise => (0, promise.0 - stop.0),
            stop => (1, stop.0),
        });
        for (at, _, root) in others {
            for target in self.paths.timelines() {
                let from = root.stop_lsn.max(promise);
                let reaches =
                    |r: &Root| self.leads(r, target) && self.reach(target, r.start_lsn) >= from;
                let covers = |r: &Root| r.stop_lsn <= from && reaches(r);
                if reaches(root) && !kept.iter().any(|(_, _, kept)| covers(kept)) {
                    return Some(Lack {
                        at,
                        reason: format!(
                            "points of timeline {} can only be reached from it",
                            target.decimal()
                        ),
                        warning: None,
                    });
                }
            }
        }
        None
    }

    /// Adds what the remaining backups need of the WAL.
    pub fn need(&self, items: &[Item<'_>], needed: &mut Needed) {
        for (_, item, root) in self.roots_of(items, |item| item.remains()) {
            match item.hold {
                Some((_, Hold::Pin)) if !matches!(item.fate, Fate::Waiting(_)) => {
                    let end = root.consistent_lsn.max(root.stop_lsn);
                    self.paths
                        .need_path(root.timeline, root.start_lsn, end, needed);
                }
                _ => self
                    .paths
                    .need_from(root.timeline, root.start_lsn, root.stop_lsn, needed),
            }
            if root.start_timeline != root.timeline {
                self.paths
                    .need_path(root.timeline, root.start_lsn, root.stop_lsn, needed);
            }
        }
    }
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

    fn delete(&self, items: &[Item<'_>], running: &[Running<'_>], plan: &mut ExpirePlan) {
        wal_objects::delete(self.survey, self.paths, (self, items), running, plan);
    }

    fn lacks(&self, items: &[Item<'_>]) -> Option<Lack> {
        let mut followed = self.followed.iter();
        let base = followed.find_map(|timeline| self.base(items, *timeline));
        base.or_else(|| self.uncovered(items))
    }

    fn hangs_on(&self, items: &[Item<'_>], id: &BackupId) -> Option<String> {
        let good = self.roots_of(items, |i| i.damage.is_none());
        let is_base = |timeline: &&TimelineId| {
            let mut leading = good.iter().filter(|(_, _, r)| self.leads(r, **timeline));
            leading.next().is_some_and(|(_, item, _)| item.id == id) && leading.next().is_none()
        };
        let base = self.followed.iter().find(is_base)?;
        Some(format!(
            "it is the only good one that leads to timeline {}, which the cluster follows",
            base.decimal()
        ))
    }
}
