//! The log of Redis: which of it the remaining backups need, and what goes.
//!
//! Positions and names decide, and of a history as a whole the store's times: so a janitor needs no key. A backup at a position leads to its history, and to
//! each one that left it there or later. It needs the bytes of all of them from there on.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::item::{Hold, Item};
use super::objects::Running;
use super::rules::{Constraint, Lack, newest_good};
use super::{Deletion, ExpirePlan, LEFTOVER_AGE, Policy, is_over};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::Catalog;
use crate::repo::clock;
use crate::repo::id::BackupId;
use crate::repo::log_keys::{SEGMENT_BYTES, segment_of};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::runs::Runs;
use crate::repo::stored_log::{Stored, StoredHistory, StoredLog};

/// The fate of the log of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFate {
    /// Its name.
    pub replid: String,
    /// The first position that is stored, and the one behind the last; none where no bytes are.
    pub stored: Option<(u64, u64)>,
    /// The backups that need it, each with the position from which on it does.
    pub needed: Vec<(u64, BackupId)>,
    /// The objects that go; none where nothing does.
    pub gone: Option<Gone>,
}

/// Objects that go, of one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gone {
    /// Bytes before this position go; none where the whole history does.
    pub before: Option<u64>,
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

impl HistoryFate {
    /// From here on a backup needs it.
    pub fn needed_from(&self) -> Option<u64> {
        self.needed.iter().map(|(from, _)| *from).min()
    }

    /// Whether the byte at a position goes.
    pub fn goes(&self, position: u64) -> bool {
        self.gone
            .is_some_and(|gone| gone.before.is_none_or(|before| position < before))
    }
}

/// The position of a data set: its history, and the bytes of it that the data set holds.
type Position<'a> = (&'a str, u64);

/// The histories to which a position leads, each with the position behind the last byte that follows without a gap.
type Reached<'a> = BTreeMap<&'a str, u64>;

/// A log, and the backups whose data sets it continues.
pub struct Logged<'a> {
    log: &'a StoredLog,
    catalog: &'a Catalog<AuxBackup>,
    ranges: BTreeMap<&'a str, Vec<(u64, u64)>>,
    backups: BTreeMap<&'a BackupId, (Position<'a>, Reached<'a>)>,
    policy: &'a Policy,
    now: TimestampTz,
}

impl<'a> Logged<'a> {
    /// Follows the log from each backup.
    pub fn new(
        catalog: &'a Catalog<AuxBackup>,
        log: &'a StoredLog,
        policy: &'a Policy,
        now: TimestampTz,
    ) -> Logged<'a> {
        let histories = log.0.iter();
        let ranges = histories.map(|(replid, history)| (replid.as_str(), history.ranges()));
        let mut logged = Logged {
            log,
            catalog,
            ranges: ranges.collect(),
            backups: BTreeMap::new(),
            policy,
            now,
        };
        for (id, _, backup) in catalog.committed() {
            if let Some(position) = backup.root.position() {
                let mut reached = Reached::new();
                logged.follow(position.1, position, &mut reached);
                logged.backups.insert(id, (position, reached));
            }
        }
        logged
    }

    /// Follows a history, and those that left it at the `base` or later.
    fn follow(&self, base: u64, (replid, at): Position<'a>, reached: &mut Reached<'a>) {
        let ranges = self.ranges.get(replid).into_iter().flatten();
        let mut ranges = ranges.filter(|(from, to)| *from <= at && at <= *to);
        let end = ranges.next_back().map_or(at, |(_, to)| *to);
        if reached.get(replid).is_some_and(|known| *known >= end) {
            return;
        }
        reached.insert(replid, end);
        for (child, history) in &self.log.0 {
            if let Some(fork) = history.parents.get(replid).filter(|fork| **fork >= base) {
                // A history may have bytes of its own before the place at which it left.
                self.follow(base, (child, end.min(*fork)), reached);
            }
        }
    }

    /// The histories whose bytes a position continues with, though they were left before they got to where its own one begins.
    fn former(&self, (replid, base): Position<'a>) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut next = vec![replid];
        while let Some(replid) = next.pop() {
            let parents = self.log.0.get(replid).into_iter();
            for (parent, fork) in parents.flat_map(|history| &history.parents) {
                if *fork > base && found.insert(parent.as_str()) {
                    next.push(parent);
                }
            }
        }
        found
    }

    fn of(&self, item: &Item<'_>) -> Option<&(Position<'a>, Reached<'a>)> {
        self.backups.get(item.id)
    }

    /// Whether everything behind a backup is promised.
    fn is_base(&self, item: &Item<'_>) -> bool {
        match item.hold {
            _ if item.damage.is_some() => false,
            Some((_, hold)) => self.policy.rules.wal_window.is_none() || hold == Hold::Promise,
            None => false,
        }
    }

    /// The positions at which the promise begins, of each history of which it has anything: what arrived before it was stored before it, and
    /// what a backup of before holds arrived before it.
    fn promises(&self, items: &[Item<'_>]) -> Reached<'a> {
        let oldest = items.iter().find(|item| self.is_base(item));
        let (since, is_before): (_, &dyn Fn(&Item<'_>) -> bool) =
            match (self.policy.rules.wal_window, newest_good(items), oldest) {
                (Some(window), Some(newest), _) => {
                    (newest.saturating_sub(window), &|i| i.precedes_window)
                }
                (None, _, Some(oldest)) => (oldest.taken, &|i| i.order <= oldest.order),
                _ => return Reached::new(),
            };
        let since = since.saturating_sub(clock::MAY_DIFFER);
        let before: Vec<_> = items
            .iter()
            .filter(|item| is_before(item))
            .filter_map(|item| self.of(item))
            .collect();
        let begin = |replid: &str, history: &StoredHistory| {
            let pieces = history.pieces.iter();
            let late = pieces.filter(|piece| piece.object.meta.modified >= since);
            let first = late.map(|piece| piece.from).min()?;
            let leading = before.iter().filter(|(_, led)| led.contains_key(replid));
            let held = leading.map(|((_, position), _)| *position).max();
            Some(first.max(held.unwrap_or(0)))
        };
        let all = self.log.0.iter();
        all.filter_map(|(replid, history)| Some((replid.as_str(), begin(replid, history)?)))
            .collect()
    }

    /// The positions from which on the remaining backups need a history.
    fn needs(&self, items: &[Item<'_>]) -> BTreeMap<&'a str, Vec<(u64, BackupId)>> {
        let has_window = self.policy.rules.wal_window.is_some();
        let mut needs: BTreeMap<&str, Vec<(u64, BackupId)>> = BTreeMap::new();
        // One that is bounded to its own end is whole without any log.
        let remaining = |item: &&Item<'_>| item.remains() && !item.is_bounded(has_window);
        for item in items.iter().filter(remaining) {
            let Some((position, reached)) = self.of(item) else {
                continue;
            };
            let mut histories = self.former(*position);
            histories.extend(reached.keys());
            for replid in histories {
                let needers = needs.entry(replid).or_default();
                needers.push((position.1, item.id.clone()));
            }
        }
        needs
    }

    /// Why nothing of the log goes.
    fn doubts(&self, items: &[Item<'_>], running: &[Running<'_>]) -> Vec<String> {
        let mut doubts = Vec::new();
        if items.is_empty() {
            doubts.push("no log is deleted, because there is no backup".to_owned());
        }
        let unknown = items.iter().filter(|i| i.remains() && self.of(i).is_none());
        doubts.extend(unknown.map(|item| {
            format!(
                "no log is deleted, because the root of backup \"{}\" does not say from where on it needs the log",
                item.id
            )
        }));
        let subject = |id: &BackupId| self.catalog.ids.get(id);
        let lost = running
            .iter()
            .filter(|(id, _)| subject(id).is_some_and(|subject| subject.lost().is_some()));
        doubts.extend(lost.map(|(id, _)| {
            format!(
                "no log is deleted, because the root of backup \"{id}\" is lost; give it up, if no repository has it: pitr expire --give-up {id}"
            )
        }));
        doubts
    }

    /// The objects of a history that go, in their order, and the position before which they do.
    fn going(
        &self,
        history: &'a StoredHistory,
        needed_from: Option<u64>,
    ) -> (Option<u64>, Vec<&'a Stored>) {
        let Some(needed) = needed_from else {
            // A history that has just begun has no backup yet.
            let is_old = |object: &&Stored| is_over(object.meta.modified, LEFTOVER_AGE, self.now);
            return match history.objects().all(|object| is_old(&object)) {
                true => (None, history.objects().collect()),
                false => (None, Vec::new()),
            };
        };
        // A receiver that lost its journal finds in the last segment where it was.
        let last = history
            .bounds()
            .map_or(0, |(_, end)| segment_of(end.saturating_sub(1)));
        let before = segment_of(needed).min(last);
        let pieces = history.pieces.iter().filter(|piece| piece.to <= before);
        let beginnings = history.beginnings.iter().filter(|(at, _)| *at < before);
        let objects = pieces
            .map(|piece| &piece.object)
            .chain(beginnings.map(|(_, object)| object));
        (Some(before), objects.collect())
    }
}

impl Constraint for Logged<'_> {
    fn lacks(&self, items: &[Item<'_>]) -> Option<Lack> {
        let promises = self.promises(items);
        let others = items.iter().enumerate();
        let others = others.filter(|(_, item)| item.damage.is_none() && !self.is_base(item));
        let mut nearest: Option<((u8, u64), Lack)> = None;
        for (at, item) in others {
            let Some(((_, position), reached)) = self.of(item) else {
                continue;
            };
            for (replid, end) in reached {
                let Some(promise) = promises.get(replid) else {
                    continue;
                };
                let from = *position.max(promise);
                let covers = |base: &Item<'_>| {
                    self.is_base(base)
                        && self.of(base).is_some_and(|((_, position), reached)| {
                            *position <= from && reached.get(replid).is_some_and(|end| *end > from)
                        })
                };
                if *end <= from || items.iter().any(covers) {
                    continue;
                }
                // One near the beginning of the promise covers those behind it.
                let distance = match position <= promise {
                    true => (0, promise - position),
                    false => (1, position - promise),
                };
                if nearest.as_ref().is_none_or(|(other, _)| distance < *other) {
                    let lack = Lack {
                        at,
                        reason: self.why_uncovered(replid),
                        warning: None,
                    };
                    nearest = Some((distance, lack));
                }
            }
        }
        nearest.map(|(_, lack)| lack)
    }

    fn logs(&self) -> BTreeMap<String, Runs> {
        let histories = self.log.0.iter().map(|(replid, history)| {
            let pieces = history.pieces.iter();
            let numbers = pieces.map(|piece| piece.from / SEGMENT_BYTES);
            (replid.clone(), Runs::from_numbers(numbers.collect()))
        });
        histories.collect()
    }

    fn delete(&self, items: &[Item<'_>], running: &[Running<'_>], plan: &mut ExpirePlan) {
        let doubts = self.doubts(items, running);
        let mut needs = self.needs(items);
        for (replid, history) in &self.log.0 {
            let mut fate = HistoryFate {
                replid: replid.clone(),
                stored: history.bounds(),
                needed: needs.remove(replid.as_str()).unwrap_or_default(),
                gone: None,
            };
            let (before, objects) = self.going(history, fate.needed_from());
            if doubts.is_empty() && !objects.is_empty() {
                fate.gone = Some(Gone {
                    before,
                    objects: objects.len() as u64,
                    bytes: objects.iter().map(|object| object.meta.size_bytes).sum(),
                });
                let keys = objects.into_iter().map(|object| object.key.clone());
                plan.deletions.extend(keys.map(Deletion::Object));
            }
            plan.log.push(fate);
        }
        plan.withheld.extend(doubts);
    }
}

impl Logged<'_> {
    fn why_uncovered(&self, replid: &str) -> String {
        match self.policy.rules.wal_window {
            Some(_) => {
                format!("wal_window: moments in it of history {replid} are reached from here")
            }
            None => format!("moments of history {replid} can only be reached from it"),
        }
    }
}
