//! The objects of one repository that another one lacks and may receive. Pure.
//!
//! An object that the receiving side expired by its own retention does not come back. A backup that is older than every
//! backup kept there on the way to the cluster counts as expired there. WAL is copied only as far as the backups of the
//! receiving side, and those that it receives, need it. Pins are the exception, for they say "keep".

use std::collections::{BTreeMap, BTreeSet};

use super::retention::wal::{Names, Needed, Paths};
use super::retention::{Policy, retention};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;
use crate::repo::scope::healed_base;
use crate::repo::trimmed::Trimmed;
use crate::store::Key;
use crate::wal::inventory::{HistoryFile, Timeline};
use crate::wal::survey::{Root, Subject, Survey};
use backups::Verdict;
use floors::Floors;

mod backups;
mod floors;
pub mod scope;

/// Something that is not copied, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// A backup or a timeline, as people name it.
    pub what: String,
    /// Why not.
    pub why: String,
    /// Kind of the cause.
    pub cause: Cause,
}

/// The kind of cause for which an object is not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It is as it should be.
    Rule,
    /// The two repositories contradict one another.
    Conflict,
    /// It is damaged on one side.
    Damage,
}

/// The objects that are copied, and those that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lacking {
    /// History files.
    pub histories: Vec<TimelineId>,
    /// Whole segments, as runs, ascending per timeline.
    pub segments: BTreeMap<TimelineId, Runs>,
    /// Partial segments and backup history files.
    pub files: Vec<WalFileName>,
    /// Pieces of segments that are not whole.
    pub increments: Vec<Key>,
    /// Refused copies, with the name each was offered under.
    pub refused: Vec<(WalFileName, Key)>,
    /// Backups, oldest first.
    pub backups: Vec<BackupId>,
    /// Pins of backups that both have or will have, and what says that one is complete: subject and the last part of the key.
    pub pins: Vec<(BackupId, String)>,
    /// How many objects of the log of an aux scope.
    pub log_objects: u64,
    /// Segments that both have and that are compared: they would show histories of two servers.
    pub compared: Vec<SegmentName>,
    /// The segments that both have of these timelines: where the first difference is looked for.
    pub both: BTreeMap<TimelineId, Runs>,
    /// Timelines of which the two follow different lives.
    pub parted: BTreeSet<TimelineId>,
    /// Segments that nothing over there needs.
    pub unneeded_segments: u64,
    /// Objects that are not copied, each with the reason.
    pub left_out: Vec<LeftOut>,
    /// Roots, histories and events of the giving side that cannot be read, so that their content is unknown.
    pub unreadable: Vec<String>,
}

impl Lacking {
    /// How many segments are copied.
    pub fn segment_count(&self) -> u64 {
        self.segments.values().map(Runs::count).sum()
    }

    /// Whether the other side lacks nothing that it may be given.
    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
            && self.segments.is_empty()
            && self.files.is_empty()
            && self.increments.is_empty()
            && self.refused.is_empty()
            && self.backups.is_empty()
            && self.pins.is_empty()
            && self.log_objects == 0
    }
}

/// Computes what `to` lacks of `from`; with `everything` also what it may have expired, and what its `rules` would not keep. `followed` are the timelines that may
/// be the cluster, by what both sides hold (`plan::cluster`); none where there is nothing to decide.
pub fn lacking(
    from: &Survey,
    to: &Survey,
    (everything, rules): (bool, Option<&Policy>),
    followed: &[TimelineId],
    now: TimestampTz,
) -> Lacking {
    let both = as_one(from, to);
    let unwanted = rules.filter(|_| !everything).map(|rules| {
        let rules = Policy {
            cluster: followed.to_vec(),
            ..rules.clone()
        };
        backups::not_kept(&retention(&both, &rules, now))
    });
    let ways = Paths::new(&both);
    let mut asked = Asked {
        from,
        to,
        everything,
        unwanted: unwanted.unwrap_or_default(),
        now,
        floors: Floors::new(to, &ways, followed),
        torn: BTreeSet::new(),
        out: Lacking {
            unreadable: from.unreadable.clone(),
            ..Lacking::default()
        },
    };
    asked.lives();
    asked.histories();
    asked.backups();
    asked.damaged_there();
    let merged = asked.merged();
    let paths = Paths::new(&merged);
    let needed = asked.needed(&merged, &paths);
    asked.wal(needed.as_ref());
    asked.beside(needed.as_ref());
    asked.pins();
    asked.out
}

/// The place of a backup among others: by timeline and position, as retention orders them.
type Order = (TimelineId, Lsn, BackupId);

fn order(id: &BackupId, root: &Root) -> Order {
    (root.timeline, root.stop_lsn, id.clone())
}

/// Returns the receiving side as it would be with all that the giving side has.
fn as_one(from: &Survey, to: &Survey) -> Survey {
    let mut both = Survey::empty(to.segment_size);
    both.catalog.ids = backups::as_one(from, to);
    both.timelines = union(from, to);
    // Retention asks when a timeline was left. A copy has later times than its original.
    let sides = [from, to];
    for (id, into) in &mut both.timelines {
        let held = sides.iter().filter_map(|side| side.timelines.get(id));
        if held.clone().all(Timeline::is_empty) {
            let stored = held.filter_map(|held| held.history_stored);
            into.history_stored = stored.min();
        }
        if let Some(newest) = newest_wal(&sides, *id) {
            both.newest_wal.insert(*id, newest);
        }
    }
    both
}

/// When a store received the newest WAL that one of both has of a timeline.
fn newest_wal(sides: &[&Survey; 2], id: TimelineId) -> Option<TimestampTz> {
    let ends = sides.iter().filter_map(|side| {
        let (_, last) = side.timelines.get(&id)?.bounds()?;
        Some((last, *side))
    });
    let ends: Vec<_> = ends.collect();
    let newest = ends.iter().map(|(last, _)| *last).max();
    let of_newest = ends.iter().filter(|(last, _)| Some(*last) == newest);
    let times = of_newest.filter_map(|(_, side)| side.newest_wal.get(&id));
    times.copied().min()
}

/// The WAL of both sides.
fn union(from: &Survey, to: &Survey) -> BTreeMap<TimelineId, Timeline> {
    let mut both: BTreeMap<TimelineId, Timeline> = BTreeMap::new();
    for side in [to, from] {
        for (id, timeline) in &side.timelines {
            let into = both.entry(*id).or_default();
            if !matches!(into.history, HistoryFile::Known(_)) {
                into.history = timeline.history.clone();
            }
            into.segments = std::mem::take(&mut into.segments).union(timeline.segments.clone());
        }
    }
    both
}

struct Asked<'a> {
    from: &'a Survey,
    to: &'a Survey,
    everything: bool,
    /// Backups that retention over there would not keep.
    unwanted: BTreeSet<BackupId>,
    now: TimestampTz,
    floors: Floors<'a>,
    /// Timelines of which the two have different histories.
    torn: BTreeSet<TimelineId>,
    out: Lacking,
}

impl Asked<'_> {
    fn leave_out(&mut self, what: String, why: impl Into<String>, cause: Cause) {
        let why = why.into();
        self.out.left_out.push(LeftOut { what, why, cause });
    }

    /// Under one name the two have WAL of different lives where their resolutions differ, unless the other side has nothing behind the fork.
    fn lives(&mut self) {
        let (from, to) = (self.from, self.to);
        let all = || from.lives.iter().chain(to.lives.iter());
        let home = |s: &Survey, name| s.lives.of(name).map(|life| life.copy.clone());
        for (id, held) in &to.timelines {
            let forks = all().map(|l| l.segment).filter(|s| s.timeline == *id);
            let fork = forks
                .filter(|name| home(from, *name) != home(to, *name))
                .min();
            let number = fork.and_then(|fork| fork.number(to.segment_size).ok());
            let is_parted = number.is_some_and(|n| {
                let last = held.segments.bounds().map(|(_, last)| last);
                let tail = held.tails.keys().next_back().copied();
                last.max(tail) >= Some(n)
            });
            if is_parted {
                self.torn.insert(*id);
                self.out.parted.insert(*id);
                let what = format!("timeline {}", id.decimal());
                let is_of = |(name, _): &(WalFileName, Key)| matches!(name, WalFileName::Segment(s) if s.timeline == *id);
                // A side of one life alone was never offered the other one.
                let can_follow = |side: &Survey| {
                    fork.is_some_and(|fork| home(side, fork).is_some())
                        || side.conflicts.iter().any(is_of)
                };
                let why = match can_follow(from) && can_follow(to) {
                    true => {
                        "the two repositories follow different lives of it: only one of them was told \"pitr wal resolve\". Resolve the fork in the other one, too (pitr wal conflicts)"
                    }
                    false => {
                        "one of the two repositories holds one life of it alone, as after a revert of its host. The other one follows the life that \"pitr wal resolve\" chose. Each keeps its own WAL and backups; copies go on with the next timeline, that of a promotion or a restore"
                    }
                };
                self.leave_out(what, why, Cause::Conflict);
            }
        }
    }

    fn histories(&mut self) {
        for (id, timeline) in &self.from.timelines {
            let there = self.to.timelines.get(id).map(|t| &t.history);
            match (&timeline.history, there) {
                (HistoryFile::Known(own), Some(HistoryFile::Known(other)))
                    if !is_same(own, other) =>
                {
                    self.torn.insert(*id);
                    let what = format!("timeline {}", id.decimal());
                    let why = "its history is another one in each of the two: two servers were promoted to the same number";
                    self.leave_out(what, why, Cause::Conflict);
                }
                (HistoryFile::Known(_), Some(HistoryFile::Damaged(why))) => {
                    let what = format!("history of timeline {}", id.decimal());
                    let why = format!("the one that is there cannot be read: {why}");
                    self.leave_out(what, why, Cause::Damage);
                }
                (HistoryFile::Known(_), None | Some(HistoryFile::Absent)) => {
                    self.out.histories.push(*id);
                }
                _ => {}
            }
        }
    }

    /// Segments of which the copy that is there is known to be damaged, and this one is not. Nothing is overwritten, so somebody has to
    /// make room.
    fn damaged_there(&mut self) {
        let (from, to) = (self.from, self.to);
        let has = |survey: &Survey, name: &SegmentName| {
            let timeline = survey.timelines.get(&name.timeline);
            let number = name.number(survey.segment_size).ok();
            timeline
                .zip(number)
                .is_some_and(|(t, n)| t.segments.contains(n))
        };
        let is_suspect = |name: &SegmentName| {
            let events = from.segment_events.get(name);
            events.is_some_and(|e| !event::standing(e, "damaged", "healed").is_empty())
        };
        for (name, events) in &to.segment_events {
            let found = event::standing(events, "damaged", "healed");
            let Some(found) = found.first() else { continue };
            if !has(to, name) || !has(from, name) || is_suspect(name) {
                continue;
            }
            let object = found.event.object.as_deref().unwrap_or("the object");
            let why = format!(
                "the copy that is there was found damaged, and nothing is overwritten: run \"pitr verify\" on that repository; if it is damaged still, move \"{object}\" away there by hand, and \"pitr repo sync\" copies this one"
            );
            self.leave_out(format!("segment {name}"), why, Cause::Damage);
        }
    }

    fn backups(&mut self) {
        let from = self.from;
        let mut chosen: Vec<Order> = Vec::new();
        for (id, subject, root) in from.committed() {
            match self.why_not(id, subject, root) {
                None => {}
                Some(Verdict::Copy) => chosen.push(order(id, root)),
                Some(Verdict::Leave(why, cause)) => {
                    self.leave_out(format!("backup {id}"), why, cause);
                }
            }
        }
        chosen.sort();
        self.out.backups = chosen.into_iter().map(|(_, _, id)| id).collect();
    }

    /// `None` when it is there already.
    fn why_not(&self, id: &BackupId, subject: &Subject, root: &Root) -> Option<Verdict> {
        let is_torn = [root.start_timeline, root.timeline]
            .iter()
            .any(|t| self.torn.contains(t));
        backups::why_not(
            (subject, self.to.ids.get(id)),
            is_torn.then_some("the two have different histories of its timeline"),
            match self.everything {
                true => None,
                false if self.floors.is_below(id, root) => Some(backups::BELOW_FLOOR),
                false => self.unwanted.contains(id).then_some(backups::NOT_KEPT),
            },
            self.now,
        )
    }

    /// The receiving side as it will be.
    fn merged(&self) -> Survey {
        let mut merged = Survey::empty(self.to.segment_size);
        merged.timelines = union(self.from, self.to);
        for (id, subject, _) in self.to.committed() {
            merged.ids.insert(id.clone(), subject.clone());
        }
        for id in &self.out.backups {
            if let Some(subject) = self.from.ids.get(id) {
                merged.ids.insert(id.clone(), subject.clone());
            }
        }
        merged
    }

    /// The WAL that the receiving side will need; `None` = all, because nothing tells.
    fn needed(&self, merged: &Survey, paths: &Paths<'_>) -> Option<Needed> {
        if self.everything || merged.committed().next().is_none() {
            return None;
        }
        let mut needed = Needed::default();
        for (id, _, root) in merged.committed() {
            let end = root.consistent_lsn.max(root.stop_lsn);
            // Retention there keeps only the way to the end of an old backup, unless the WAL goes on after it.
            let trimmed = self.holes_of(root);
            if !trimmed.is_empty() {
                // WAL after the backup that was let go there does not come back.
                let held = &Names(&self.to.timelines);
                let range = (root.start_lsn, end);
                paths.need_unbroken(root.timeline, range, held, &trimmed, &mut needed);
            } else if self.floors.is_below(id, root) && !self.is_followed(paths, root, end) {
                let range = (root.start_lsn, root.stop_lsn);
                paths.need_to_end(root.timeline, range, end, &mut needed);
            } else {
                paths.need_from(root.timeline, root.start_lsn, root.stop_lsn, &mut needed);
            }
            if root.start_timeline != root.timeline {
                paths.need_path(root.timeline, root.start_lsn, root.stop_lsn, &mut needed);
            }
        }
        Some(needed)
    }

    /// The holes that the receiving side made on purpose behind it, or behind one of the same content.
    fn holes_of(&self, root: &Root) -> Trimmed {
        let mut trimmed = Trimmed::default();
        for (_, subject, _) in self
            .to
            .committed()
            .filter(|(.., other)| other.is_twin(root))
        {
            trimmed.add(&subject.events);
        }
        trimmed
    }

    fn is_followed(&self, paths: &Paths<'_>, root: &Root, end: Lsn) -> bool {
        let next = SegmentNumber::ending_at(end, self.to.segment_size).next();
        let holder = paths.holder(root.timeline, next);
        let there = self.to.timelines.get(&holder);
        there.is_some_and(|t| t.segments.contains(next))
    }

    fn wal(&mut self, needed: Option<&Needed>) {
        let nothing = Runs::default();
        for (id, timeline) in &self.from.timelines {
            if self.torn.contains(id) {
                continue;
            }
            let there = self.to.timelines.get(id).map_or(&nothing, |t| &t.segments);
            let mut lacking = timeline.segments.minus(there);
            if let Some(needed) = needed {
                let rest = Runs::from_runs(needed.rest(*id, &lacking));
                self.out.unneeded_segments += rest.count();
                lacking = lacking.minus(&rest);
            }
            self.compare(*id, there, &timeline.segments, &lacking);
            if !lacking.is_empty() {
                self.out.segments.insert(*id, lacking);
            }
        }
    }

    /// The last segment that both have, and those beside what is copied.
    fn compare(&mut self, timeline: TimelineId, there: &Runs, here: &Runs, lacking: &Runs) {
        let both = here.minus(&here.minus(there));
        let mut numbers = BTreeSet::new();
        numbers.extend(both.bounds().map(|(_, last)| last.0));
        for (first, last) in lacking.iter() {
            numbers.extend(first.0.checked_sub(1));
            numbers.insert(last.next().0);
        }
        let names = numbers
            .into_iter()
            .map(SegmentNumber)
            .filter(|n| both.contains(*n))
            .filter_map(|n| n.name(timeline, self.to.segment_size));
        self.out.compared.extend(names);
        self.out.both.insert(timeline, both);
    }

    /// Adds the objects that go with their segment.
    fn beside(&mut self, needed: Option<&Needed>) {
        let size = self.to.segment_size;
        let is_needed = |name: SegmentName| {
            let number = name.number(size).ok();
            number.is_some_and(|n| needed.is_none_or(|needed| needed.contains(name.timeline, n)))
        };
        for (id, timeline) in &self.from.timelines {
            if self.torn.contains(id) {
                continue;
            }
            let there = self.to.timelines.get(id);
            let partials = timeline.partials.iter().filter(|p| is_needed(**p));
            let partials = partials.filter(|p| there.is_none_or(|t| !t.partials.contains(p)));
            self.out
                .files
                .extend(partials.map(|p| WalFileName::Partial(*p)));
        }
        let torn = &self.torn;
        let labels = self.from.labels.iter().filter(|l| match l {
            WalFileName::BackupHistory { segment, .. } => {
                is_needed(*segment) && !torn.contains(&segment.timeline)
            }
            _ => false,
        });
        let labels = labels.filter(|l| !self.to.labels.contains(l));
        self.out.files.extend(labels.copied());
        let known: BTreeSet<&Key> = self.to.increments.values().flatten().collect();
        for (segment, keys) in &self.from.increments {
            let is_whole = |survey: &Survey| {
                let runs = survey.timelines.get(&segment.timeline).map(|t| &t.segments);
                let number = segment.number(size).ok();
                runs.zip(number).is_some_and(|(r, n)| r.contains(n))
            };
            if is_needed(*segment)
                && !torn.contains(&segment.timeline)
                && !is_whole(self.from)
                && !is_whole(self.to)
            {
                let keys = keys.iter().filter(|k| !known.contains(k) && is_original(k));
                self.out.increments.extend(keys.cloned());
            }
        }
        let beside = |s: &'_ Survey| -> Vec<(WalFileName, Key)> {
            let all = s.conflicts.iter().chain(&s.shadowed);
            all.cloned().collect()
        };
        let there = beside(self.to);
        let known: BTreeSet<&Key> = there.iter().map(|(_, key)| key).collect();
        let here = beside(self.from);
        let refused = here.iter().filter(|(name, key)| {
            let is_wanted = match name {
                WalFileName::History(_) => true,
                // WAL that one side gave up may lie where the other one follows it.
                WalFileName::Segment(s)
                | WalFileName::Partial(s)
                | WalFileName::BackupHistory { segment: s, .. } => {
                    is_needed(*s) && !torn.contains(&s.timeline)
                }
            };
            is_wanted && !known.contains(key) && is_original(key)
        });
        self.out.refused = refused.cloned().collect();
    }

    fn pins(&mut self) {
        self.out.pins = backups::pins((&self.from.catalog, &self.to.catalog), &self.out.backups);
    }
}

/// The reasons may differ: they are text for people.
fn is_same(a: &History, b: &History) -> bool {
    let bare = |h: &History| -> Vec<(TimelineId, Lsn)> {
        let ancestors = h.ancestors().iter();
        ancestors.map(|a| (a.timeline, a.switch_lsn)).collect()
    };
    bare(a) == bare(b)
}

/// Whether it is no healed copy: those are not copied, for what is read under the original's key is.
fn is_original(key: &Key) -> bool {
    healed_base(key.as_str()).is_none()
}

#[cfg(test)]
mod tests;
