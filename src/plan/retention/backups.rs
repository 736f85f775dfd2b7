//! Which backups are kept, and why; which are marked, which are deleted.

use std::collections::BTreeMap;

use super::wal::{Needed, Paths};
use super::{CLOCK_SLACK, Fate, Judged, LEFTOVER_AGE, Policy, is_over};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::event::{self, Recorded, end, live_claims};
use crate::repo::id::BackupId;
use crate::repo::wal_proof::foreign;
use crate::wal::facts::Runs;
use crate::wal::survey::{Manifest, Root, Subject, Survey, numbers};

/// Events that a version of this format may write about a backup; others keep it.
const KNOWN_EVENTS: [&str; 12] = [
    "begin",
    "completed",
    "verified",
    "claim",
    "release",
    "pin",
    "unpin",
    "expire",
    "unexpire",
    "damaged",
    "healed",
    event::MEANINGLESS,
];

/// The store's clock and this host's may differ by this much without another mark.
const MARK_SLACK: std::time::Duration = std::time::Duration::from_secs(60);

/// What the judgement came to.
pub struct Judgement<'a> {
    /// Every committed backup, ascending by timeline and stop LSN.
    pub backups: Vec<Candidate<'a>>,
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
}

/// A committed backup with what is decided about it.
pub struct Candidate<'a> {
    /// The backup.
    pub id: &'a BackupId,
    /// What its root says.
    pub root: &'a Root,
    /// Its events.
    subject: &'a Subject,
    /// What is wrong with it; it does not count then.
    damage: Option<String>,
    /// Why it stays, and how much of the WAL with it.
    hold: Option<(String, Hold)>,
    /// A person asked for its deletion: it counts for nothing else.
    is_asked: bool,
    /// What becomes of it.
    pub(super) fate: Fate,
}

/// Why a backup stays, as far as it matters to the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Retention: every point behind it is promised.
    Promise,
    /// Something else, a claim above all: everything behind it stays too.
    Window,
    /// A pin alone: it stays restorable to its end.
    Pin,
}

impl<'a> Judgement<'a> {
    fn of(backups: Vec<Candidate<'a>>) -> Judgement<'a> {
        Judgement {
            backups,
            marks: Vec::new(),
            unmarks: Vec::new(),
            warnings: Vec::new(),
            refusal: None,
            burst: None,
            waiting: None,
        }
    }
}

impl Judgement<'_> {
    /// Whether no good backup stays.
    pub fn keeps_nothing(&self) -> bool {
        !self
            .backups
            .iter()
            .any(|b| b.damage.is_none() && b.fate == Fate::Keep)
    }

    /// Backups that still exist after the run.
    pub fn remaining(&self) -> impl Iterator<Item = &Candidate<'_>> {
        self.backups.iter().filter(|b| b.fate != Fate::Delete)
    }

    /// Adds what the remaining backups need of the WAL.
    pub fn need(&self, paths: &Paths<'_>, needed: &mut Needed) {
        for backup in self.remaining() {
            let root = backup.root;
            match backup.hold {
                Some((_, Hold::Pin)) if !matches!(backup.fate, Fate::Waiting(_)) => {
                    let end = root.consistent_lsn.max(root.stop_lsn);
                    paths.need_path(root.timeline, root.start_lsn, end, needed);
                }
                _ => paths.need_from(root.timeline, root.start_lsn, root.stop_lsn, needed),
            }
            if root.start_timeline != root.timeline {
                paths.need_path(root.timeline, root.start_lsn, root.stop_lsn, needed);
            }
        }
    }

    /// The backups with their fates, in order.
    pub fn into_backups(self) -> Vec<Judged> {
        self.backups
            .into_iter()
            .map(|b| Judged {
                id: b.id.clone(),
                timeline: b.root.timeline,
                start_lsn: b.root.start_lsn,
                stop_lsn: b.root.stop_lsn,
                stop_time: b.root.stop_time,
                stored_bytes: b.root.stored_bytes,
                damage: b.damage,
                fate: b.fate,
                is_promised: matches!(b.hold, Some((_, Hold::Promise))),
                reason: b.hold.map_or_else(
                    || "older than what is kept".to_owned(),
                    |(reason, _)| reason,
                ),
            })
            .collect()
    }
}

/// Judges every committed backup.
pub fn judge<'a>(
    survey: &'a Survey,
    paths: &Paths<'_>,
    policy: &Policy,
    now: TimestampTz,
) -> Judgement<'a> {
    let mut judged = Judgement::of(candidates(survey, paths));
    warn_of_the_future(&mut judged, now);
    if let Some(id) = &policy.requested {
        keep_all_but(&mut judged, paths, policy, id);
        hold_others(&mut judged, policy, now);
        refuse_held(&mut judged, id);
    } else {
        find_asked(&mut judged, policy, now);
        keep_counted(&mut judged, survey, paths, policy);
        hold_others(&mut judged, policy, now);
        hold_young(&mut judged, policy, now);
    }
    for at in 0..judged.backups.len() {
        decide(&mut judged, at, policy, now);
    }
    if policy.requested.is_some() {
        judged.unmarks.clear();
        return judged;
    }
    if !policy.confirm_burst && judged.backups.iter().any(|b| b.fate != Fate::Keep) {
        judged.burst = burst(&judged, now);
    }
    judged
}

fn candidates<'a>(survey: &'a Survey, paths: &Paths<'_>) -> Vec<Candidate<'a>> {
    let mut backups: Vec<Candidate<'a>> = survey
        .ids
        .iter()
        .filter_map(|(id, subject)| match &subject.manifest {
            Manifest::Committed(root) => Some(Candidate {
                damage: damage(survey, subject, root, paths),
                id,
                root,
                subject,
                hold: None,
                is_asked: false,
                fate: Fate::Keep,
            }),
            _ => None,
        })
        .collect();
    backups.sort_by(|a, b| order(a).cmp(&order(b)));
    backups
}

/// A timeline's number is larger than those of its ancestors, so this order never puts a backup before one that it descends from.
fn order<'a>(backup: &Candidate<'a>) -> (TimelineId, Lsn, &'a BackupId) {
    (backup.root.timeline, backup.root.stop_lsn, backup.id)
}

fn damage(survey: &Survey, subject: &Subject, root: &Root, paths: &Paths<'_>) -> Option<String> {
    if let Some(damage) = &root.damage {
        return Some(damage.clone());
    }
    if let Some(name) = root.foreign {
        return Some(foreign(name));
    }
    if let Some(missing) = missing_part(survey, root) {
        return Some(format!("{missing} is missing"));
    }
    if let Some(found) = event::damage(&subject.events).first() {
        let detail = found.event.detail.as_deref().unwrap_or("no detail");
        return Some(format!("a check found damage: {detail}"));
    }
    // A descendant's copy of the segment in which it began may have what the timeline itself lacks.
    let reach = paths
        .timelines()
        .filter(|t| paths.leads_through(*t, root.timeline, root.stop_lsn))
        .map(|t| paths.reach(t, root.start_lsn))
        .max()
        .unwrap_or_default();
    (reach < root.stop_lsn).then(|| format!("WAL that it needs is missing from {reach} on"))
}

/// The first layer or pack that a root names and that is not there: such a backup must not stand for a whole one.
fn missing_part(survey: &Survey, root: &Root) -> Option<String> {
    let first = |kind: &str, named: &BTreeMap<BackupId, Runs>, have: fn(&Subject) -> &Runs| {
        named.iter().find_map(|(id, named)| {
            let have = survey.ids.get(id).map(have);
            let is_there = |n: u32| have.is_some_and(|h| h.contains(SegmentNumber(n.into())));
            let missing = numbers(named).find(|n| !is_there(*n))?;
            Some(format!("{kind} \"{id}/{missing:06}\""))
        })
    };
    first("layer", &root.layers, |s| &s.layers).or_else(|| first("pack", &root.packs, |s| &s.packs))
}

fn warn_of_the_future(judged: &mut Judgement<'_>, now: TimestampTz) {
    let soon = now.saturating_add(CLOCK_SLACK);
    for backup in &judged.backups {
        if backup.root.stop_time > soon {
            judged.warnings.push(format!(
                "backup \"{}\" says that it ended at {}, which is in the future: a clock is or was wrong; order goes by LSN",
                backup.id, backup.root.stop_time
            ));
        }
        for event in &backup.subject.events {
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
    for backup in &mut judged.backups {
        let events = &backup.subject.events;
        let marks = event::standing(events, "expire", "unexpire");
        backup.is_asked = marks.iter().any(|mark| event::is_request(mark, now))
            && event::live_pins(events, pin_clock).is_empty();
    }
}

/// As [`keep_newest`], where a backup whose deletion was asked for lets no other one go, and does not go itself if retention alone would keep it.
fn keep_counted(judged: &mut Judgement<'_>, survey: &Survey, paths: &Paths<'_>, policy: &Policy) {
    let backups = std::mem::take(&mut judged.backups);
    let (asked, counted): (Vec<_>, Vec<_>) = backups.into_iter().partition(|b| b.is_asked);
    judged.backups = counted;
    keep_newest(judged, paths, policy);
    if asked.is_empty() {
        return;
    }
    judged.backups.extend(asked);
    judged.backups.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut as_if = Judgement::of(candidates(survey, paths));
    keep_newest(&mut as_if, paths, policy);
    for (backup, kept) in judged.backups.iter_mut().zip(as_if.backups) {
        match (kept.hold, backup.is_asked) {
            (Some(_), true) => backup.hold = Some((ASKED.to_owned(), Hold::Window)),
            (Some(hold), false) => {
                backup.hold.get_or_insert(hold);
            }
            (None, _) => {}
        }
    }
}

/// Keeps every backup but the one that was asked for, and that one, too, where recovery hangs on it.
fn keep_all_but(judged: &mut Judgement<'_>, paths: &Paths<'_>, policy: &Policy, id: &BackupId) {
    let others =
        (0..judged.backups.len()).filter(|at| judged.backups.get(*at).is_some_and(|b| b.id != id));
    for at in others.collect::<Vec<_>>() {
        hold(judged, at, "nobody asked for its deletion".to_owned());
    }
    let good = || judged.backups.iter().filter(|b| b.damage.is_none());
    let is_newest = good().next_back().is_some_and(|b| b.id == id);
    let is_base = |timeline: &TimelineId| {
        let leads =
            |b: &&Candidate<'_>| paths.leads_through(*timeline, b.root.timeline, b.root.stop_lsn);
        let mut leading = good().filter(leads);
        leading.next().is_some_and(|b| b.id == id) && leading.next().is_none()
    };
    let why = if good().next().is_none() {
        Some("no other backup is known to be good".to_owned())
    } else if is_newest && good().count() == 1 {
        Some("it is the only one that is known to be good".to_owned())
    } else if is_newest {
        Some("it is the newest good one".to_owned())
    } else {
        let base = followed(paths, policy).into_iter().find(is_base);
        base.map(|t| {
            format!(
                "it is the only good one that leads to timeline {}, which the cluster follows",
                t.decimal()
            )
        })
    };
    let Some(why) = why else { return };
    judged.refusal = Some(format!(
        "backup \"{id}\" is not deleted: {why}. First take another one: pitr backup"
    ));
    if let Some(at) = judged.backups.iter().position(|b| b.id == id) {
        hold(judged, at, why);
    }
}

/// A pin, a claim or something else stops a request.
fn refuse_held(judged: &mut Judgement<'_>, id: &BackupId) {
    if judged.refusal.is_some() {
        return;
    }
    let Some((why, kind)) = judged
        .backups
        .iter()
        .find(|b| b.id == id)
        .and_then(|b| b.hold.clone())
    else {
        return;
    };
    let next = match kind {
        Hold::Pin => format!("First: pitr unpin {id} --confirm"),
        _ => "\"pitr repo claims\" shows what is in use".to_owned(),
    };
    judged.refusal = Some(format!("backup \"{id}\" is not deleted: {why}. {next}"));
}

/// The N newest good ones; what the promise needs besides them; the base of the cluster's timeline; damaged ones inside the window.
fn keep_newest(judged: &mut Judgement<'_>, paths: &Paths<'_>, policy: &Policy) {
    let keep = usize::try_from(policy.keep.max(1)).unwrap_or(usize::MAX);
    let good: Vec<usize> = (0..judged.backups.len())
        .filter(|at| judged.backups.get(*at).is_some_and(|b| b.damage.is_none()))
        .collect();
    let newest = good.len().saturating_sub(keep);
    for (rank, at) in good.iter().skip(newest).rev().enumerate() {
        hold(
            judged,
            *at,
            format!("number {} of the newest {keep}", rank + 1),
        );
    }
    let counted = judged.backups.len().saturating_sub(keep);
    if let Some(last_good) = good.last()
        && *last_good < counted
        && let Some(backup) = judged.backups.get(*last_good)
    {
        judged.refusal = Some(format!(
            "the newest {keep} backups are damaged: backup \"{}\", the last good one, is kept",
            backup.id
        ));
    }
    if good.is_empty() && !judged.backups.is_empty() {
        judged.refusal = Some("no backup is known to be good: nothing is deleted".to_owned());
    }
    for timeline in followed(paths, policy) {
        keep_base(judged, paths, timeline);
    }
    let mut reached = BTreeMap::new();
    while let Some((at, timeline)) = uncovered(judged, paths, &mut reached) {
        let reason = format!(
            "points of timeline {} can only be reached from it",
            timeline.decimal()
        );
        hold(judged, at, reason);
    }
    // A damaged backup is no reason to lose what it alone may still hold.
    let oldest = judged
        .backups
        .iter()
        .filter(|b| b.hold.is_some())
        .map(order)
        .min();
    let inside: Vec<usize> = judged
        .backups
        .iter()
        .enumerate()
        .filter(|(_, b)| b.hold.is_none() && b.damage.is_some())
        .filter(|(_, b)| oldest.as_ref().is_none_or(|o| order(b) > *o))
        .map(|(at, _)| at)
        .collect();
    for at in inside {
        hold(
            judged,
            at,
            "damaged, but newer than the oldest kept".to_owned(),
        );
    }
}

fn hold(judged: &mut Judgement<'_>, at: usize, reason: String) {
    if let Some(backup) = judged.backups.get_mut(at) {
        let hold = match backup.damage {
            None => Hold::Promise,
            Some(_) => Hold::Window,
        };
        backup.hold.get_or_insert((reason, hold));
    }
}

/// A good backup that is not kept, from which a point inside the promise can be reached that no kept backup reaches.
///
/// Near the beginning of the promise first: such a backup covers those after it.
fn uncovered(
    judged: &Judgement<'_>,
    paths: &Paths<'_>,
    reached: &mut BTreeMap<(TimelineId, Lsn), Lsn>,
) -> Option<(usize, TimelineId)> {
    let kept: Vec<&Candidate<'_>> = judged.backups.iter().filter(|b| b.hold.is_some()).collect();
    let promise = kept.iter().map(|b| b.root.stop_lsn).min()?;
    let mut reach = |target: TimelineId, start: Lsn| {
        *reached
            .entry((target, start))
            .or_insert_with(|| paths.reach(target, start))
    };
    let mut others: Vec<(usize, &Candidate<'_>)> = judged
        .backups
        .iter()
        .enumerate()
        .filter(|(_, b)| b.hold.is_none() && b.damage.is_none())
        .collect();
    others.sort_by_key(|(_, b)| match b.root.stop_lsn {
        stop if stop <= promise => (0, promise.0 - stop.0),
        stop => (1, stop.0),
    });
    for (at, backup) in others {
        for target in paths.timelines() {
            let leads =
                |b: &Candidate<'_>| paths.leads_through(target, b.root.timeline, b.root.stop_lsn);
            let from = backup.root.stop_lsn.max(promise);
            if !leads(backup) || reach(target, backup.root.start_lsn) < from {
                continue;
            }
            let is_covered = kept.iter().any(|k| {
                k.root.stop_lsn <= from && leads(k) && reach(target, k.root.start_lsn) >= from
            });
            if !is_covered {
                return Some((at, target));
            }
        }
    }
    None
}

/// The timelines that may be the cluster; the newest where the policy names none.
fn followed(paths: &Paths<'_>, policy: &Policy) -> Vec<TimelineId> {
    match policy.cluster.is_empty() {
        true => paths.timelines().next_back().into_iter().collect(),
        false => policy.cluster.clone(),
    }
}

/// After a failover to a standby that lagged, the cluster's timeline may begin before the oldest kept backup: its base stays.
fn keep_base(judged: &mut Judgement<'_>, paths: &Paths<'_>, latest: TimelineId) {
    let leads = |b: &Candidate<'_>| paths.leads_through(latest, b.root.timeline, b.root.stop_lsn);
    if judged.backups.iter().any(|b| b.hold.is_some() && leads(b)) {
        return;
    }
    let base = judged
        .backups
        .iter()
        .enumerate()
        .filter(|(_, b)| b.damage.is_none() && leads(b))
        .max_by_key(|(_, b)| b.root.stop_lsn)
        .map(|(at, _)| at);
    if let Some(at) = base {
        let number = latest.decimal();
        if let Some(backup) = judged.backups.get(at) {
            judged.warnings.push(format!(
                "no backup that is kept leads to timeline {number}, which the cluster follows: \"{}\" is kept for it, with the WAL from there on",
                backup.id
            ));
        }
        hold(
            judged,
            at,
            format!("the base of timeline {number}, which the cluster follows"),
        );
    }
}

/// Pins, claims, events of a newer version, refusals of the store.
fn hold_others(judged: &mut Judgement<'_>, policy: &Policy, now: TimestampTz) {
    let pin_clock = pin_clock(policy, now);
    for backup in &mut judged.backups {
        let events = &backup.subject.events;
        let unknown = events
            .iter()
            .find(|e| !KNOWN_EVENTS.contains(&e.event.event.as_str()));
        let held = if policy.spared.contains(backup.id) {
            Some(("the store refused to delete it".to_owned(), Hold::Window))
        } else if let Some(reason) = in_use(events, now) {
            Some((reason, Hold::Window))
        } else if let Some(event) = unknown {
            let reason = format!("it has an event of kind \"{}\"", event.event.event);
            Some((reason, Hold::Window))
        } else {
            pinned(events, pin_clock).map(|reason| (reason, Hold::Pin))
        };
        if backup.hold.is_none() {
            backup.hold = held;
        }
    }
}

/// What would go only by the count of backups: it stays until a newer backup was verified and has the minimum age.
///
/// The age counts from the later of the backup's own time and the store's: a copy begins anew, and neither clock alone makes it old.
fn hold_young(judged: &mut Judgement<'_>, policy: &Policy, now: TimestampTz) {
    if policy.min_age.is_zero() {
        return;
    }
    let since = |b: &Candidate<'_>| b.root.stop_time.max(b.root.stored);
    let is_verified = |b: &Candidate<'_>| {
        b.damage.is_none()
            && !b.is_asked
            && !event::standing(&b.subject.events, "verified", "").is_empty()
    };
    let verified: Vec<(usize, TimestampTz)> = judged
        .backups
        .iter()
        .enumerate()
        .filter(|(_, b)| is_verified(b))
        .map(|(at, b)| (at, since(b)))
        .collect();
    let is_old = |(_, since): &&(usize, TimestampTz)| is_over(*since, policy.min_age, now);
    let proven = verified.iter().filter(is_old).map(|(at, _)| *at).max();
    let hours = policy.min_age.as_secs_f64() / 3600.0;
    let mut held = Vec::new();
    for (at, backup) in judged.backups.iter_mut().enumerate() {
        if backup.hold.is_none() && proven.is_none_or(|proven| at >= proven) {
            let reason = format!("no newer backup that was verified is {hours} hours old yet");
            backup.hold = Some((reason, Hold::Window));
            held.push(at);
        }
    }
    let Some(first) = held.first() else { return };
    let young = verified.iter().filter(|(at, _)| at > first);
    let when = match young
        .map(|(_, since)| since.saturating_add(policy.min_age))
        .min()
    {
        Some(due) => format!("the next one is at {due}"),
        None => "no newer one was verified: pitr verify".to_owned(),
    };
    judged.waiting = Some(format!(
        "{} more than the newest {} stay until a newer backup was verified and is {hours} hours old (--min-age); {when}",
        held.len(),
        policy.keep.max(1)
    ));
}

/// Days back in which more backups than usual count.
const BURST_DAYS: u64 = 7;

/// A day, counted back from now, of the last seven in which more than twice as many backups were taken as on the median day that has any.
/// Times are those of the server: copies of old backups are no burst.
fn burst(judged: &Judgement<'_>, now: TimestampTz) -> Option<String> {
    let mut days: BTreeMap<u64, usize> = BTreeMap::new();
    for backup in &judged.backups {
        let age = now
            .duration_since(backup.root.stop_time)
            .unwrap_or_default();
        *days.entry(age.as_secs() / (24 * 3600)).or_default() += 1;
    }
    let mut counts: Vec<usize> = days.values().copied().collect();
    counts.sort_unstable();
    let usual = *counts.get(counts.len().saturating_sub(1) / 2)?;
    let (day, count) = days.range(..BURST_DAYS).max_by_key(|(_, count)| **count)?;
    (*count > 2 * usual).then(|| {
        format!(
            "nothing is marked or deleted, because {count} backups were taken within 24 hours, which ended {day} days ago, and usual are {usual}: they push out older ones"
        )
    })
}

/// Why a backup is pinned, and until when: of several pins the one that lasts longest.
fn pinned(events: &[Recorded], now: TimestampTz) -> Option<String> {
    let live = event::live_pins(events, now);
    // The first of those that last equally long.
    let until = |pin: &&Recorded| pin.event.until.unwrap_or(TimestampTz::INFINITY);
    let pin = live.into_iter().rev().max_by_key(until)?;
    let why = pin.event.reason.as_deref().unwrap_or("no reason given");
    Some(match pin.event.until {
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

/// Whether a standing mark allows deletion now; if not, when the earliest will.
pub fn mark_state(
    events: &[Recorded],
    policy: &Policy,
    now: TimestampTz,
) -> Option<Option<TimestampTz>> {
    let due = event::standing(events, "expire", "unexpire")
        .iter()
        .map(|mark| {
            let own = mark.since(now).saturating_add(policy.grace);
            mark.event.not_before.map_or(own, |t| t.max(own))
        })
        .min()?;
    Some((due > now).then_some(due))
}

fn decide(judged: &mut Judgement<'_>, at: usize, policy: &Policy, now: TimestampTz) {
    let Some(backup) = judged.backups.get_mut(at) else {
        return;
    };
    let events = &backup.subject.events;
    let marks = event::standing(events, "expire", "unexpire");
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

/// An id without a backup.
pub enum Unborn {
    /// A backup is being taken; its replay begins at these positions, as its claims say.
    Running(Vec<(TimelineId, Lsn)>),
    /// It is over, and nobody will commit it.
    Leftover,
    /// It has no reservation and is too young to be judged.
    Unknown,
}

/// Judges an id under which no backup exists and no tombstone stands.
pub fn unborn(subject: &Subject, policy_grace: &Policy, now: TimestampTz) -> Unborn {
    let events = &subject.events;
    if let Some(state) = unborn_again(subject, policy_grace, now) {
        return state;
    }
    let Some(begin) = subject.begin() else {
        let newest = subject
            .newest_part
            .into_iter()
            .chain(events.iter().map(|e| e.since(now)))
            .max();
        let is_old = newest.is_none_or(|t| is_over(t, LEFTOVER_AGE, now));
        return match is_old && live_claims(events, now).is_empty() {
            true => Unborn::Leftover,
            false => Unborn::Unknown,
        };
    };
    let claims = live_claims(events, now);
    let is_marked = mark_state(events, policy_grace, now) == Some(None);
    if claims.is_empty() && (is_over(begin.since(now), LEFTOVER_AGE, now) || is_marked) {
        return Unborn::Leftover;
    }
    let has_claimed = events.iter().any(|e| e.event.event == "claim");
    let is_released = events.iter().any(|e| e.event.event == "release");
    if claims.is_empty() && has_claimed && is_released {
        // The writer said that it gave up; its objects wait for the usual time.
        return Unborn::Unknown;
    }
    let positions = events
        .iter()
        .filter(|e| e.event.event == "claim")
        .filter_map(|e| Some((TimelineId::new(e.event.timeline?)?, e.event.start_lsn?)))
        .collect();
    Unborn::Running(positions)
}

/// Judges an id whose backup was completed: without a mark its root is lost, and with one it waits as a backup does.
fn unborn_again(subject: &Subject, policy: &Policy, now: TimestampTz) -> Option<Unborn> {
    let completed = event::completed(&subject.events)?;
    let is_due = mark_state(&subject.events, policy, now) == Some(None);
    if is_due && live_claims(&subject.events, now).is_empty() {
        return Some(Unborn::Leftover);
    }
    let start = (completed.timeline, completed.start_lsn);
    Some(Unborn::Running(vec![start]))
}
