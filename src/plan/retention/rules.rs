//! The rules of retention, for backups of any content: which are kept, and why; which are marked, which are deleted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::NaiveDate;

use super::calendar::{self, Dated, Pick, Unit};
use super::item::{Hold, Item, KeptBy, Twin};
use super::objects::Running;
use super::{CLOCK_SLACK, Commands, ExpirePlan, Fate, Place, Policy, is_over};
use crate::config::Period;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::clock;
use crate::repo::event::{self, Recorded, end, live_claims};
use crate::repo::id::BackupId;
use crate::repo::runs::Runs;

/// Events that a version of this format may write about a backup; others keep it.
const KNOWN_EVENTS: [&str; 15] = [
    "begin",
    "completed",
    "verified",
    "claim",
    "release",
    "pin",
    "unpin",
    "unhold",
    "held",
    "expire",
    "unexpire",
    "damaged",
    "healed",
    event::TRIMMED,
    event::MEANINGLESS,
];

/// The store's clock and this host's may differ by this much without another mark.
const MARK_SLACK: Duration = Duration::from_secs(60);

/// The demands of a kind of content beyond the rules.
pub trait Constraint {
    /// Returns an item that has to stay besides those that are held; `None` when the held ones suffice.
    fn lacks(&self, _items: &[Item<'_>]) -> Option<Lack> {
        None
    }

    /// Returns why recovery hangs on an item alone.
    fn hangs_on(&self, _items: &[Item<'_>], _id: &BackupId) -> Option<String> {
        None
    }

    /// Returns where a backup lies in a cluster's WAL.
    fn place(&self, _id: &BackupId) -> Option<Place> {
        None
    }

    /// Returns the segments that are there.
    fn segments(&self) -> BTreeMap<TimelineId, Runs> {
        BTreeMap::new()
    }

    /// Returns the segments of logs that are there, by history.
    fn logs(&self) -> BTreeMap<String, Runs> {
        BTreeMap::new()
    }

    /// Adds what goes besides the objects of backups.
    fn delete(&self, _items: &[Item<'_>], _running: &[Running<'_>], _plan: &mut ExpirePlan) {}
}

/// Content that asks nothing.
pub struct Unconstrained;

impl Constraint for Unconstrained {}

/// An item that has to stay.
pub struct Lack {
    /// Its index.
    pub at: usize,
    /// Why it stays.
    pub reason: String,
    /// Warning about it, if it is worth one.
    pub warning: Option<String>,
}

/// The result of the rules.
#[derive(Default)]
pub struct Judgement<'a> {
    /// Every committed backup, oldest first.
    pub items: Vec<Item<'a>>,
    /// Backups to mark now.
    pub marks: Vec<BackupId>,
    /// Marks to take back.
    pub unmarks: Vec<(BackupId, String)>,
    /// See [`super::ExpirePlan::warnings`].
    pub warnings: Vec<String>,
    /// See [`super::ExpirePlan::refusal`].
    pub refusal: Option<String>,
    /// See [`super::ExpirePlan::burst`].
    pub burst: Option<String>,
    /// See [`super::ExpirePlan::waiting`].
    pub waiting: Option<String>,
    /// See [`super::ExpirePlan::window_begin`].
    pub window_begin: Option<TimestampTz>,
}

impl<'a> Judgement<'a> {
    fn of(items: Vec<Item<'a>>) -> Judgement<'a> {
        Judgement {
            items,
            ..Judgement::default()
        }
    }

    /// Whether no good backup stays.
    pub fn keeps_nothing(&self) -> bool {
        let stays = |i: &Item<'_>| i.damage.is_none() && i.fate == Fate::Keep;
        !self.items.iter().any(stays)
    }
}

/// Judges every item; they come oldest first.
pub fn judge<'a>(
    items: Vec<Item<'a>>,
    constraint: &dyn Constraint,
    policy: &Policy,
    now: TimestampTz,
) -> Judgement<'a> {
    let mut judged = Judgement::of(items);
    warn_of_the_future(&mut judged, now);
    read_times(&mut judged, constraint, policy, now);
    if let Some(id) = &policy.requested {
        keep_all_but(&mut judged, constraint, (id, &policy.commands));
        hold_others(&mut judged, policy, now);
        refuse_held(&mut judged, (id, &policy.commands));
    } else {
        find_asked(&mut judged, policy, now);
        keep_but_twins(&mut judged, constraint, policy, now);
        hold_others(&mut judged, policy, now);
        hold_young(&mut judged, policy, now);
    }
    for at in 0..judged.items.len() {
        decide(&mut judged, at, policy, now);
    }
    if policy.requested.is_some() {
        judged.unmarks.clear();
        return judged;
    }
    if !policy.confirm_burst && judged.items.iter().any(|i| i.fate != Fate::Keep) {
        judged.burst = burst(&judged, policy, now);
    }
    judged
}

fn warn_of_the_future(judged: &mut Judgement<'_>, now: TimestampTz) {
    let soon = now.saturating_add(CLOCK_SLACK);
    for backup in &judged.items {
        if backup.time > soon {
            judged.warnings.push(format!(
                "backup \"{}\" says that it ended at {}, which is in the future: a clock is or was wrong; order goes by LSN",
                backup.id, backup.time
            ));
        }
        for event in backup.events {
            if event.event.time.max(event.stored) > soon {
                judged.warnings.push(format!(
                    "event \"{}\" of backup \"{}\" is dated in the future: a clock is or was wrong",
                    event.name, backup.id
                ));
            }
        }
    }
}

/// Why a backup stays whose deletion was asked for.
const ASKED: &str = "its deletion was asked for, and is left to \"pitr backup delete\"";

/// By which clock pins end: the earlier of two.
fn pin_clock(policy: &Policy, now: TimestampTz) -> TimestampTz {
    policy.store_clock.map_or(now, |store| store.min(now))
}

/// Requests to delete a backup that have not lapsed, and that no pin stops.
fn find_asked(judged: &mut Judgement<'_>, policy: &Policy, now: TimestampTz) {
    let pin_clock = pin_clock(policy, now);
    for backup in &mut judged.items {
        let events = backup.events;
        let marks = event::marks(events);
        backup.is_asked = marks.iter().any(|mark| event::is_request(mark, now))
            && event::live_pins(events, pin_clock).is_empty();
    }
}

/// Reads when each backup was taken, and which were taken before the WAL window for sure.
fn read_times(
    judged: &mut Judgement<'_>,
    constraint: &dyn Constraint,
    policy: &Policy,
    now: TimestampTz,
) {
    judged.items.iter_mut().for_each(|item| item.read_time(now));
    let Some(window) = policy.rules.wal_window else {
        return;
    };
    // A clock of this host that is ahead shortens no window; nor does a server that has stopped.
    let Some(newest) = newest_good(&judged.items) else {
        return;
    };
    let begin = newest.saturating_sub(window);
    judged.window_begin = Some(begin);
    let mut latest: BTreeMap<Option<TimelineId>, TimestampTz> = BTreeMap::new();
    for item in &mut judged.items {
        let timeline = constraint.place(item.id).map(|place| place.timeline);
        let latest = latest.entry(timeline).or_insert(item.taken);
        // A clock that was set back makes a backup look older than it is: neither its predecessors nor the store's clock may say otherwise.
        item.precedes_window = item.taken.max(item.stored) <= begin && item.taken >= *latest;
        *latest = item.taken.max(*latest);
    }
}

/// When the newest good one was taken. The store's time of one whose own clock was ahead may be that of a copy: others go first.
pub(super) fn newest_good(items: &[Item<'_>]) -> Option<TimestampTz> {
    let good = || items.iter().filter(|item| item.damage.is_none());
    let sure = good().filter(|item| !item.is_ahead());
    let newest = sure.map(|item| item.taken).max();
    newest.or_else(|| good().map(|item| item.taken).max())
}

/// As [`keep_counted`], where of several backups of the same content one counts. The others are neither kept by a rule, nor push anything out.
fn keep_but_twins(
    judged: &mut Judgement<'_>,
    constraint: &dyn Constraint,
    policy: &Policy,
    now: TimestampTz,
) {
    let items = std::mem::take(&mut judged.items);
    // A drill of one of them proved the content of all: the one that counts stays for it.
    let proven = items.iter().filter(|i| policy.proven.contains(i.id));
    let policy = &Policy {
        proven: proven.map(|i| i.counted().clone()).collect(),
        ..policy.clone()
    };
    let (twins, counted): (Vec<_>, Vec<_>) = items.into_iter().partition(|i| i.twin.is_some());
    judged.items = counted;
    keep_counted(judged, constraint, policy, now);
    judged.items.extend(twins);
    judged.items.sort_by_key(|i| i.order);
    let held = |i: &&Item<'_>| i.damage.is_some() && i.hold.is_some();
    let damaged: BTreeSet<&BackupId> = judged.items.iter().filter(held).map(|i| i.id).collect();
    for item in &mut judged.items {
        let Some(Twin::StandsLater(other)) = item.twin else {
            continue;
        };
        if item.damage.is_some() && damaged.contains(other) {
            // Another part may be damaged, and one of the two can heal.
            item.hold(format!("damaged, as \"{other}\" is, which counts for it"));
        } else if item.damage.is_none() && !item.is_verified() {
            let reason =
                format!("it takes the place of \"{other}\" once it was verified: pitr verify");
            item.hold_also(reason, Hold::End);
        }
    }
}

/// As [`keep_by_rules`], where a backup whose deletion was asked for lets no other one go, and does not go itself if retention alone would keep it.
fn keep_counted(
    judged: &mut Judgement<'_>,
    constraint: &dyn Constraint,
    policy: &Policy,
    now: TimestampTz,
) {
    let mut as_if = Judgement::of(judged.items.iter().map(Item::undecided).collect());
    as_if.window_begin = judged.window_begin;
    let items = std::mem::take(&mut judged.items);
    let (asked, counted): (Vec<_>, Vec<_>) = items.into_iter().partition(|i| i.is_asked);
    judged.items = counted;
    keep_by_rules(judged, constraint, policy, now);
    if asked.is_empty() {
        return;
    }
    judged.items.extend(asked);
    judged.items.sort_by_key(|i| i.order);
    keep_by_rules(&mut as_if, constraint, policy, now);
    for (item, kept) in judged.items.iter_mut().zip(as_if.items) {
        match (kept.hold, item.is_asked) {
            (Some(_), true) => item.hold = Some((ASKED.to_owned(), Hold::Window)),
            (Some((reason, kind)), false) => match &item.hold {
                Some((_, Hold::End)) if kind != Hold::End => item.hold_also(reason, kind),
                Some(_) => {}
                None => {
                    item.hold = Some((reason, kind));
                    item.kept_by = kept.kept_by;
                }
            },
            (None, _) => {}
        }
    }
}

/// Keeps every backup but the one that was asked for, and that one, too, where recovery hangs on it.
fn keep_all_but(
    judged: &mut Judgement<'_>,
    constraint: &dyn Constraint,
    (id, commands): (&BackupId, &Commands),
) {
    for item in judged.items.iter_mut().filter(|i| i.id != id) {
        item.hold("nobody asked for its deletion".to_owned());
    }
    let Some(why) = why_needed(&judged.items, constraint, id) else {
        return;
    };
    judged.refusal = Some(format!(
        "backup \"{id}\" is not deleted: {why}. First take another one: {}",
        commands.backup
    ));
    if let Some(item) = judged.items.iter_mut().find(|i| i.id == id) {
        item.hold(why);
    }
}

/// Why a backup that was asked for has to stay. The newest is that of the cluster, whatever a branch has; while it is undecided, that of each timeline.
fn why_needed(items: &[Item<'_>], constraint: &dyn Constraint, id: &BackupId) -> Option<String> {
    let good = || items.iter().filter(|i| i.damage.is_none());
    let newest_on = |way| items.get(*newest_first(items, way).first()?);
    let newest: Vec<&Item<'_>> = ways(items).into_iter().filter_map(newest_on).collect();
    let is_newest = newest.iter().any(|i| i.id == id);
    let asked = good().find(|i| i.id == id);
    let is_twin = |i: &Item<'_>| asked.is_some_and(|a| !is_newest && a.counted() == i.counted());
    let twin = newest.iter().find(|i| is_twin(i));
    if good().next().is_none() {
        Some("no other backup is known to be good".to_owned())
    } else if asked.is_some_and(|asked| asked.has_stand_in(items)) {
        None
    } else if let Some(twin) = twin {
        let newer = format!("\"{}\", which was compacted from it", twin.id);
        Some(format!("{newer}, is not known to be good: pitr verify"))
    } else if is_newest && good().count() == 1 {
        Some("it is the only one that is known to be good".to_owned())
    } else if is_newest {
        Some("it is the newest good one".to_owned())
    } else {
        constraint.hangs_on(items, id)
    }
}

/// A pin, a claim or something else stops a request.
fn refuse_held(judged: &mut Judgement<'_>, (id, commands): (&BackupId, &Commands)) {
    if judged.refusal.is_some() {
        return;
    }
    let held = judged
        .items
        .iter()
        .find(|b| b.id == id)
        .and_then(|b| Some((b.hold.clone()?, b.events)));
    let Some(((why, kind), events)) = held else {
        return;
    };
    let of = &commands.of;
    let next = match kind {
        Hold::Pin if !event::legal_holds(events).is_empty() => {
            format!("First: pitr unhold {id}{of} --confirm")
        }
        Hold::Pin => format!("First: pitr unpin {id}{of} --confirm"),
        _ => "\"pitr repo claims\" shows what is in use".to_owned(),
    };
    judged.refusal = Some(format!("backup \"{id}\" is not deleted: {why}. {next}"));
}

/// Keeps the backups that the rules keep, those that the content needs besides, and damaged ones inside the promise.
fn keep_by_rules(
    judged: &mut Judgement<'_>,
    constraint: &dyn Constraint,
    policy: &Policy,
    now: TimestampTz,
) {
    keep_newest(judged, policy);
    let today = policy.date(now);
    let dated = match policy.rules.goes_by_time() {
        true => dated(judged, constraint, policy),
        false => Vec::new(),
    };
    keep_within(judged, policy, &dated);
    keep_periods(judged, policy, &dated, today, false);
    keep_proven(judged, policy);
    judged.refusal = refusal(&judged.items, policy);
    while let Some(lack) = constraint.lacks(&judged.items) {
        judged.warnings.extend(lack.warning);
        if let Some(item) = judged.items.get_mut(lack.at) {
            item.hold_also(lack.reason, Hold::Promise);
        }
    }
    // A damaged backup is no reason to lose what it alone may still hold.
    let has_window = judged.window_begin.is_some();
    let is_base = |item: &Item<'_>| match item.hold {
        Some((_, hold)) => !has_window || hold == Hold::Promise,
        None => false,
    };
    let oldest = judged.items.iter().position(is_base);
    let inside = judged.items.iter_mut().skip(oldest.unwrap_or(0));
    for item in inside.filter(|i| i.damage.is_some()) {
        item.hold("damaged, but newer than the oldest kept".to_owned());
    }
    keep_periods(judged, policy, &dated, today, true);
}

/// The timelines that may be the cluster, as far as a backup leads there; one `None` where no backup does.
fn ways(items: &[Item<'_>]) -> Vec<Option<TimelineId>> {
    let all: BTreeSet<TimelineId> = items.iter().flat_map(|i| &i.leads_to).copied().collect();
    match all.is_empty() {
        true => vec![None],
        false => all.into_iter().map(Some).collect(),
    }
}

/// Whether a backup leads to a timeline that may be the cluster.
fn is_on(item: &Item<'_>, way: Option<TimelineId>) -> bool {
    way.is_some_and(|timeline| item.leads_to.contains(&timeline))
}

/// Whether a backup is known to lead there.
fn is_surely_on(item: &Item<'_>, way: Option<TimelineId>) -> bool {
    is_on(item, way) && way.is_none_or(|timeline| !item.unsure.contains(&timeline))
}

/// Whether a backup is of a branch that is newer than the timeline by its number alone.
fn is_beside(item: &Item<'_>, way: Option<TimelineId>) -> bool {
    way.is_some_and(|timeline| item.beside.contains(&timeline))
}

/// The good ones, newest first; those of a branch beside the timeline come last, though its number is higher.
fn newest_first(items: &[Item<'_>], way: Option<TimelineId>) -> Vec<usize> {
    let good = items.iter().enumerate().filter(|(_, i)| i.damage.is_none());
    let mut good: Vec<(bool, usize)> = good.map(|(at, i)| (!is_beside(i, way), at)).collect();
    good.sort_unstable_by_key(|one| Reverse(*one));
    good.into_iter().map(|(_, at)| at).collect()
}

/// The newest good ones, at least one.
fn keep_newest(judged: &mut Judgement<'_>, policy: &Policy) {
    let keep = policy.rules.last.unwrap_or(0).max(1) as usize;
    let begin = judged.window_begin;
    // While it is not known which timeline is the cluster, each that may be it keeps as many.
    let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
    for way in ways(&judged.items) {
        let newest = newest_first(&judged.items, way).into_iter();
        for (rank, at) in newest.take(keep).enumerate() {
            let best = ranks.entry(at).or_insert(rank);
            *best = rank.min(*best);
        }
    }
    for (at, rank) in ranks {
        let Some(item) = judged.items.get_mut(at) else {
            continue;
        };
        let (rule, reason) = match policy.rules.last {
            Some(1..) => (
                "keep_last",
                format!("number {} of the newest {keep}", rank + 1),
            ),
            _ => ("newest", "the newest good one".to_owned()),
        };
        let is_bounded = begin.is_some_and(|begin| item.taken < begin);
        item.keep(reason, KeptBy { rule, until: None }, is_bounded);
    }
}

/// The newest good one that a drill proved.
fn keep_proven(judged: &mut Judgement<'_>, policy: &Policy) {
    let begin = judged.window_begin;
    let is_proven =
        |at: &usize| (judged.items.get(*at)).is_some_and(|i| policy.proven.contains(i.id));
    let newest = |way| (newest_first(&judged.items, way).into_iter()).find(is_proven);
    let kept: BTreeSet<usize> = ways(&judged.items).into_iter().filter_map(newest).collect();
    for at in kept {
        let Some(item) = judged.items.get_mut(at) else {
            continue;
        };
        let is_bounded = begin.is_some_and(|begin| item.taken < begin);
        let reason = "keep_proven: the newest that a drill proved".to_owned();
        let kept_by = KeptBy {
            rule: "keep_proven",
            until: None,
        };
        item.keep(reason, kept_by, is_bounded);
    }
}

/// Why the rules alone would have taken the last good backup.
fn refusal(items: &[Item<'_>], policy: &Policy) -> Option<String> {
    let keep = policy.rules.most() as usize;
    let counted = items.len().saturating_sub(keep);
    let last_good = items.iter().rposition(|i| i.damage.is_none());
    match last_good.and_then(|at| Some((at, items.get(at)?))) {
        Some((at, item)) if at < counted => Some(format!(
            "the newest {keep} backups are damaged: backup \"{}\", the last good one, is kept",
            item.id
        )),
        None if !items.is_empty() => {
            Some("no backup is known to be good: nothing is deleted".to_owned())
        }
        _ => None,
    }
}

/// The backups that have a day, with it. One whose time contradicts its place among the others has none: it counts nowhere, and stays.
fn dated(judged: &mut Judgement<'_>, constraint: &dyn Constraint, policy: &Policy) -> Vec<Dated> {
    let mut by_timeline: BTreeMap<Option<TimelineId>, Vec<usize>> = BTreeMap::new();
    for (at, item) in judged.items.iter().enumerate() {
        let timeline = constraint.place(item.id).map(|place| place.timeline);
        if !item.is_far_ahead() {
            by_timeline.entry(timeline).or_default().push(at);
        }
    }
    let mut dates: Vec<Option<NaiveDate>> = vec![None; judged.items.len()];
    for members in by_timeline.values() {
        let of = |at: &usize| judged.items.get(*at).map(|item| item.taken);
        let times: Vec<TimestampTz> = members.iter().filter_map(of).collect();
        for ((at, time), is_in_order) in members.iter().zip(&times).zip(calendar::in_order(&times))
        {
            if let Some(date) = dates.get_mut(*at).filter(|_| is_in_order) {
                *date = policy.date(*time);
            }
        }
    }
    let mut dated = Vec::new();
    for (at, (item, date)) in judged.items.iter_mut().zip(dates).enumerate() {
        let Some(date) = date else {
            judged.warnings.push(format!(
                "backup \"{}\" says that it ended at {}, which contradicts its place among the others, or the store: a clock was wrong. It counts in no period, and stays; to let it go: pitr backup delete {}{}",
                item.id, item.time, item.id, policy.commands.of
            ));
            let reason = "its time contradicts its place among the others, or the store".to_owned();
            let kept_by = KeptBy {
                rule: "wrong_time",
                until: None,
            };
            item.keep(reason, kept_by, judged.window_begin.is_some());
            continue;
        };
        dated.push(Dated {
            at,
            date,
            is_followed: false,
        });
    }
    dated
}

/// Every good one that is not much older than the newest.
fn keep_within(judged: &mut Judgement<'_>, policy: &Policy, dated: &[Dated]) {
    let (Some(within), Some(newest)) = (policy.rules.within, newest_good(&judged.items)) else {
        return;
    };
    let (begin, window) = (newest.saturating_sub(within), judged.window_begin);
    for one in dated {
        let Some(item) = judged.items.get_mut(one.at) else {
            continue;
        };
        if item.damage.is_none() && item.taken >= begin {
            let is_bounded = window.is_some_and(|window| item.taken < window);
            let reason = format!("keep_within: {}", Period(within.as_secs()));
            let kept_by = KeptBy {
                rule: "keep_within",
                until: Some(item.taken.saturating_add(within)),
            };
            item.keep(reason, kept_by, is_bounded);
        }
    }
}

/// The last good one of each period; with `also_damaged`, damaged ones that would be it, restorable to their ends once they are healed.
fn keep_periods(
    judged: &mut Judgement<'_>,
    policy: &Policy,
    dated: &[Dated],
    today: Option<NaiveDate>,
    also_damaged: bool,
) {
    let counted: Vec<Vec<Dated>> = ways(&judged.items)
        .into_iter()
        .map(|way| counted(&judged.items, way, dated, also_damaged))
        .collect();
    let begin = judged.window_begin;
    for (rule, unit, count) in Unit::rules(&policy.rules) {
        let picks = (counted.iter()).flat_map(|one| calendar::pick(unit, count, one, today));
        // Each timeline says the same of one backup.
        let picks: BTreeMap<usize, Pick> = picks.map(|pick| (pick.at, pick)).collect();
        for pick in picks.into_values() {
            let Some(item) = judged.items.get_mut(pick.at) else {
                continue;
            };
            let until = pick.until.and_then(|day| policy.zone().begin(day));
            let kept_by = KeptBy { rule, until };
            let reason = format!("{rule}: {}", pick.reason);
            match (&item.damage, also_damaged) {
                (None, true) => {}
                (Some(_), _) if item.hold.is_some() => {}
                (Some(_), _) => item.keep(reason, kept_by, true),
                (None, false) => {
                    item.keep(
                        reason,
                        kept_by,
                        begin.is_some_and(|begin| item.taken < begin),
                    );
                }
            }
        }
    }
}

/// The backups that can stand for a period; those that lead to the timeline go first.
fn counted(
    items: &[Item<'_>],
    way: Option<TimelineId>,
    dated: &[Dated],
    also_damaged: bool,
) -> Vec<Dated> {
    let all = dated
        .iter()
        .filter_map(|one| Some((one, items.get(one.at)?)));
    all.filter(|(_, item)| also_damaged || item.damage.is_none())
        .map(|(one, item)| Dated {
            is_followed: is_surely_on(item, way),
            ..*one
        })
        .collect()
}

/// Pins, claims, events of a newer version, refusals of the store.
fn hold_others(judged: &mut Judgement<'_>, policy: &Policy, now: TimestampTz) {
    let pin_clock = pin_clock(policy, now);
    for backup in &mut judged.items {
        let events = backup.events;
        let pin = pinned(events, pin_clock);
        let unknown = events
            .iter()
            .find(|e| !KNOWN_EVENTS.contains(&e.event.event.as_str()));
        let held = if policy.spared.contains(backup.id) {
            Some(("the store refused to delete it".to_owned(), Hold::Window))
        } else if let Some(reason) = in_use(events, now) {
            Some((reason, Hold::Window))
        } else if let Some(reason) = recovered_from((events, pin.as_deref()), policy, now) {
            Some((reason, Hold::Window))
        } else if let Some(event) = unknown {
            let reason = format!("it has an event of kind \"{}\"", event.event.event);
            Some((reason, Hold::Window))
        } else {
            pin.map(|reason| (reason, Hold::Pin))
        };
        let held = held.or_else(|| short_of_copies(backup, policy));
        match (&backup.hold, held) {
            (None, held) => backup.hold = held,
            // A reader may want more of it than its own end.
            (Some((_, Hold::End)), Some((reason, Hold::Window))) => {
                backup.hold_also(reason, Hold::Window);
            }
            _ => {}
        }
    }
}

/// Too few repositories have a backup that no rule keeps here.
fn short_of_copies(backup: &Item<'_>, policy: &Policy) -> Option<(String, Hold)> {
    let asks = backup.hold.is_none() && policy.requested.is_none();
    let copies = policy.copies.as_ref().filter(|_| asks)?;
    let have = 1 + copies.elsewhere.get(backup.id).copied().unwrap_or_default();
    (have < copies.wanted).then(|| {
        let reason = format!(
            "min_copies: {have} of {} repositories have it",
            copies.wanted
        );
        (reason, Hold::Window)
    })
}

/// Holds backups that would go only by the count of backups: each stays until a newer one was verified and has the
/// minimum age. A backup of a branch proves nothing of those that lead to the cluster.
///
/// The age counts from the later of the backup's own time and the store's: a copy begins anew, and neither clock alone makes it old.
fn hold_young(judged: &mut Judgement<'_>, policy: &Policy, now: TimestampTz) {
    if policy.min_age.is_zero() {
        return hold_last_verified(judged);
    }
    let since = |b: &Item<'_>| b.time.max(b.stored);
    let verified: Vec<(usize, TimestampTz, BTreeSet<TimelineId>)> = judged
        .items
        .iter()
        .enumerate()
        .filter(|(_, b)| is_verified(b))
        .map(|(at, b)| (at, since(b), &b.leads_to - &b.unsure))
        .collect();
    let opens = |at: usize, backup: &Item<'_>, is_due: &dyn Fn(TimestampTz) -> bool| {
        let mut newer = verified.iter().filter(|(newer, ..)| *newer > at);
        newer.any(|(_, since, to)| backup.leads_to.is_subset(to) && is_due(*since))
    };
    let is_old = |since: TimestampTz| is_over(since, policy.min_age, now);
    let hours = policy.min_age.as_secs_f64() / 3600.0;
    let mut held = Vec::new();
    for (at, backup) in judged.items.iter_mut().enumerate() {
        // The WAL behind one that only a pin keeps would go as well.
        let loses = matches!(backup.hold, None | Some((_, Hold::End | Hold::Pin)));
        if loses && !opens(at, backup, &is_old) {
            let is_kept = backup.hold.is_some();
            let reason = format!("no newer backup that was verified is {hours} hours old yet");
            hold_behind(backup, &reason);
            if !is_kept {
                held.push(at);
            }
        }
    }
    let (Some(first), Some(oldest)) = (
        held.first(),
        held.first().and_then(|at| judged.items.get(*at)),
    ) else {
        return;
    };
    let young = verified
        .iter()
        .filter(|(at, _, to)| at > first && oldest.leads_to.is_subset(to));
    let when = match young
        .map(|(_, since, _)| since.saturating_add(policy.min_age))
        .min()
    {
        Some(due) => format!("the next one is at {due}"),
        None => "no newer one was verified: pitr verify".to_owned(),
    };
    let which = match (policy.rules.goes_by_time(), policy.rules.last.unwrap_or(1)) {
        (true, _) => "that no rule keeps".to_owned(),
        (false, keep) => format!("more than the newest {}", keep.max(1)),
    };
    judged.waiting = Some(format!(
        "{} {which} stay until a newer backup was verified and is {hours} hours old (--min-age); {when}",
        held.len(),
    ));
}

/// Whether a backup may let older ones go: it was verified, and is to stay.
fn is_verified(backup: &Item<'_>) -> bool {
    backup.damage.is_none() && !backup.is_asked && backup.is_verified()
}

/// Holds the newest backup that was verified, of all and of each timeline that may be the cluster: nothing proves that a newer one is whole.
fn hold_last_verified(judged: &mut Judgement<'_>) {
    let last = |is_meant: &dyn Fn(&Item<'_>) -> bool| {
        let found = |b: &Item<'_>| is_verified(b) && is_meant(b);
        judged.items.iter().rposition(found)
    };
    let ways = ways(&judged.items).into_iter();
    let on_ways = ways.filter_map(|way| last(&|b: &Item<'_>| is_surely_on(b, way)));
    let held: BTreeSet<usize> = on_ways.chain(last(&|_| true)).collect();
    for at in held {
        let last = judged.items.get_mut(at);
        let loses = |b: &&mut Item<'_>| matches!(b.hold, None | Some((_, Hold::End | Hold::Pin)));
        if let Some(last) = last.filter(loses) {
            hold_behind(last, "no newer backup was verified yet: pitr verify");
        }
    }
}

/// Holds a backup with everything behind it.
fn hold_behind(backup: &mut Item<'_>, reason: &str) {
    let what = match backup.hold {
        Some(_) => "the WAL behind it stays: ",
        None => "",
    };
    backup.hold_also(format!("{what}{reason}"), Hold::Window);
}

/// Days back in which more backups than usual count.
const BURST_DAYS: u64 = 7;

/// So many periods behind those that a rule counts may still have the backup that it kept: it waits for its deletion.
const JUST_LEFT: usize = 2;

/// A day, counted back from now, of the last seven in which more than twice as many backups were taken as on the median day that has any.
/// Times are those of the server: copies of old backups are no burst. Only `keep_last` counts backups: without it none can push out another one.
fn burst(judged: &Judgement<'_>, policy: &Policy, now: TimestampTz) -> Option<String> {
    policy.rules.last.filter(|last| *last > 0)?;
    let left = just_left(&judged.items, policy);
    let mut days: BTreeMap<u64, (usize, bool)> = BTreeMap::new();
    for (at, backup) in judged.items.iter().enumerate() {
        // A compacted backup is none that was taken.
        if backup.twin.is_none() {
            let age = now.duration_since(backup.time).unwrap_or_default();
            let (count, is_telling) = days.entry(age.as_secs() / (24 * 3600)).or_default();
            *count += 1;
            *is_telling |= is_telling_of_its_day(backup) && !left.contains(&at);
        }
    }
    let telling = days.values().filter(|(_, is_telling)| *is_telling);
    let mut counts: Vec<usize> = telling.map(|(count, _)| *count).collect();
    counts.sort_unstable();
    // The busier of two in the middle counts: part of the oldest day that tells anything is often gone already.
    let usual = *counts.get(counts.len() / 2)?;
    let recent = days.range(..BURST_DAYS);
    let (day, count) = recent
        .map(|(day, (count, _))| (day, *count))
        .max_by_key(|(_, count)| *count)?;
    (count > 2 * usual).then(|| {
        format!(
            "nothing is marked or deleted, because {count} backups were taken within 24 hours, which ended {day} days ago, and usual are {usual}: they push out older ones"
        )
    })
}

/// Whether others of its day are there, too, as far as retention is concerned. One that stays for its period, a pin, a drill or a wrong clock may be
/// all that is left of many. It says nothing of how many are usual.
fn is_telling_of_its_day(item: &Item<'_>) -> bool {
    let mut rules = item.kept_by.iter().map(|kept| kept.rule);
    match item.kept_by.is_empty() {
        true => !matches!(item.hold, Some((_, Hold::Pin))),
        false => rules.any(|rule| ["keep_last", "newest", "keep_within"].contains(&rule)),
    }
}

/// The backups that rules of periods keep, or kept until a short time ago.
fn just_left(items: &[Item<'_>], policy: &Policy) -> BTreeSet<usize> {
    let counting = items.iter().enumerate().filter(|(_, i)| i.twin.is_none());
    let dated = counting.filter_map(|(at, item)| {
        let date = policy.date(item.taken)?;
        Some(Dated {
            at,
            date,
            is_followed: false,
        })
    });
    let dated: Vec<Dated> = dated.collect();
    let mut left = BTreeSet::new();
    for way in ways(items) {
        let counted = counted(items, way, &dated, false);
        for (_, unit, count) in Unit::rules(&policy.rules).filter(|(.., count)| *count > 0) {
            let picks = calendar::pick(unit, count + JUST_LEFT, &counted, None);
            left.extend(picks.into_iter().map(|pick| pick.at));
        }
    }
    left
}

/// Why a backup is pinned, and until when: of several pins the one that lasts longest.
fn pinned(events: &[Recorded], now: TimestampTz) -> Option<String> {
    let live = event::live_pins(events, now);
    // The first of those that last equally long.
    let until = |pin: &&Recorded| pin.event.until.unwrap_or(TimestampTz::INFINITY);
    let pin = live.into_iter().rev().max_by_key(until)?;
    let why = pin.event.reason.as_deref().unwrap_or("no reason given");
    Some(match pin.event.until {
        None if pin.event.legal => format!("on legal hold: {why}"),
        None => format!("pinned: {why}"),
        Some(until) => format!("pinned until {until}: {why}"),
    })
}

/// By whom a backup is in use, and until when: of several claims the one that ends last.
fn in_use(events: &[Recorded], now: TimestampTz) -> Option<String> {
    let live = live_claims(events, now);
    let claim = live.into_iter().max_by_key(|claim| end(claim, now))?;
    let purpose = claim.event.purpose.as_deref().unwrap_or("something");
    let until = match claim.event.seconds {
        Some(_) => format!("until {}, if it is not renewed", end(claim, now)),
        None => "until it is released".to_owned(),
    };
    Some(format!(
        "in use by a {purpose} on host \"{}\" {until}",
        claim.event.host
    ))
}

/// By whom a backup was restored within the grace. The recovery that follows reads the WAL behind the backup, and claims nothing. Without a window that WAL
/// stays with the backup, and no longer than its mark allows; a pin alone would not hold it.
fn recovered_from(
    (events, pin): (&[Recorded], Option<&str>),
    policy: &Policy,
    now: TimestampTz,
) -> Option<String> {
    // A request for its deletion is answered with the pin.
    let pin = pin.filter(|_| policy.requested.is_none());
    if policy.rules.wal_window.is_none() && pin.is_none() {
        return None;
    }
    let mut restores = event::restores(events).into_iter();
    let young = restores.find(|end| end.since(now).saturating_add(policy.grace) > now)?;
    let recovery = format!(
        "a restore on host \"{}\" ended at {}, and its recovery may read WAL behind it",
        young.event.host,
        young.since(now)
    );
    Some(match pin {
        Some(pin) => format!("{pin}; {recovery}"),
        None => recovery,
    })
}

/// Whether a standing mark allows deletion now; if not, when the earliest will. A mark without grace is due though the store's clock, which dates it, is
/// ahead by as much as it may be.
pub fn mark_state(
    events: &[Recorded],
    policy: &Policy,
    now: TimestampTz,
) -> Option<Option<TimestampTz>> {
    let ahead = match policy.grace.is_zero() {
        true => clock::MAY_DIFFER,
        false => Duration::ZERO,
    };
    let due = event::marks(events)
        .iter()
        .map(|mark| {
            let own = mark.since(now).saturating_add(policy.grace);
            let own = own.saturating_sub(ahead);
            mark.event.not_before.map_or(own, |t| t.max(own))
        })
        .min()?;
    Some((due > now).then_some(due))
}

fn decide(judged: &mut Judgement<'_>, at: usize, policy: &Policy, now: TimestampTz) {
    let Some(backup) = judged.items.get_mut(at) else {
        return;
    };
    let events = backup.events;
    let marks = event::marks(events);
    if let Some((_, hold)) = &backup.hold {
        // A reader avoids marked backups; one that retention wants again is no longer marked. A claim says nothing about that.
        let is_wanted = *hold == Hold::Pin || live_claims(events, now).is_empty();
        if is_wanted && !policy.spared.contains(backup.id) {
            // A request that has not lapsed is for the run that its maker starts.
            let ends = |mark: &&&Recorded| !(backup.is_asked && event::is_request(mark, now));
            for mark in marks.iter().filter(ends) {
                judged.unmarks.push((backup.id.clone(), mark.name.clone()));
            }
        }
        return;
    }
    // A mark that comes of age much later than one of today would (another grace, a clock in the future) is joined by one of today.
    let today = now.saturating_add(policy.grace).saturating_add(MARK_SLACK);
    backup.fate = match mark_state(events, policy, now) {
        Some(None) => Fate::Delete,
        Some(Some(due)) if due <= today => Fate::Waiting(due),
        _ => {
            judged.marks.push(backup.id.clone());
            if policy.grace.is_zero() {
                Fate::Delete
            } else {
                Fate::Mark
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Retention;
    use crate::repo::catalog::Parts;
    use crate::repo::event::Event;

    #[test]
    fn the_rules_need_no_wal() {
        let ids: Vec<BackupId> = (1..=4)
            .map(|n| format!("2026110{n}T000000Z-full").parse().unwrap())
            .collect();
        let parts = Parts::new();
        let now = TimestampTz(0);
        let item = |order: usize| Item {
            time: now,
            stored: now,
            taken: now,
            stored_bytes: 1,
            damage: (order == 2).then(|| "torn".to_owned()),
            ..Item::new(order, &ids[order], &[], (&parts, &parts))
        };
        let policy = Policy {
            rules: Retention::newest(2),
            confirm_burst: true,
            ..Policy::default()
        };
        let judged = judge((0..4).map(item).collect(), &Unconstrained, &policy, now);
        let fates: Vec<_> = judged.items.iter().map(|i| i.fate).collect();
        assert_eq!(fates, [Fate::Delete, Fate::Keep, Fate::Keep, Fate::Keep]);
        assert_eq!(judged.marks, ids[..1]);
        assert_eq!(judged.items[1].hold.as_ref().unwrap().1, Hold::Promise);
        assert_eq!(judged.items[2].hold.as_ref().unwrap().1, Hold::Window);
    }

    #[test]
    fn without_grace_a_mark_is_due_though_the_stores_clock_is_a_little_ahead() {
        let now = TimestampTz(1 << 50);
        let after = |seconds| now.saturating_add(Duration::from_secs(seconds));
        let state = |stored, not_before, grace| {
            let mark = Recorded {
                name: "mark".to_owned(),
                event: Event {
                    event: "expire".to_owned(),
                    time: now,
                    not_before: Some(not_before),
                    ..Event::default()
                },
                stored,
                is_doubted: false,
            };
            let policy = Policy {
                grace: Duration::from_secs(grace),
                ..Policy::default()
            };
            mark_state(&[mark], &policy, now)
        };
        assert_eq!(state(after(5), now, 0), Some(None));
        assert_eq!(state(after(5), now, 3600), Some(Some(after(3605))));
        // A grace that the mark itself promises is not shortened.
        assert_eq!(state(now, after(5), 0), Some(Some(after(5))));
        assert_eq!(state(after(900), now, 0), Some(Some(after(300))));
    }

    #[test]
    fn a_request_for_a_held_backup_names_the_command_that_ends_the_hold() {
        let id: BackupId = "20261101T000000Z-full".parse().unwrap();
        let parts = Parts::new();
        let now = TimestampTz(0);
        let refused = |legal: bool| {
            let pin = Recorded {
                name: "pin".to_owned(),
                event: Event {
                    event: "pin".to_owned(),
                    subject: id.to_string(),
                    legal,
                    ..Event::default()
                },
                stored: now,
                is_doubted: false,
            };
            let events = [pin];
            let item = Item {
                time: now,
                stored: now,
                taken: now,
                stored_bytes: 1,
                hold: Some(("it is held".to_owned(), Hold::Pin)),
                ..Item::new(0, &id, &events, (&parts, &parts))
            };
            let mut judged = Judgement::of(vec![item]);
            refuse_held(&mut judged, (&id, &Commands::default()));
            judged.refusal.unwrap()
        };
        assert!(refused(true).ends_with(&format!("First: pitr unhold {id} --confirm")));
        assert!(refused(false).ends_with(&format!("First: pitr unpin {id} --confirm")));
    }
}
