//! Histories made at random, and a model of what retention promises that knows nothing of the planner.
//!
//! A history is weeks to years of one repository: WAL, backups, promotions, pins, claims, damage, clocks that are wrong, and runs of expiry that
//! are killed. The model knows the true times. `make expiry-model` runs a million; `PITR_EXPIRY_FROM` continues at a seed.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of small worlds"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use chrono_tz::Tz;

use super::cluster::Backups;
use super::rules::Unconstrained;
use super::tests::{
    Dice, HOUR, MIB, add_timeline, apply, empty, event, is_reachable, leads_to, tli,
};
use super::*;
use crate::repo::catalog::{Manifest, numbers};
use crate::repo::event::{TRIMMED, live_claims, live_pins, standing};
use crate::repo::runs::Runs;
use crate::wal::survey::{Root, Subject, Survey};

const DAY: u64 = 24;

/// A moment of a history, by the true clock.
fn at(hour: u64) -> TimestampTz {
    static BEGIN: LazyLock<TimestampTz> = LazyLock::new(|| "2026-01-05T00:30:00Z".parse().unwrap());
    BEGIN.saturating_add(HOUR * hour as u32)
}

/// How clocks are wrong in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clocks {
    Right,
    /// Some backups are years older by their own clock.
    Back,
    /// Some backups are years in the future by their own clock.
    Ahead,
}

struct History {
    dice: Dice,
    survey: Survey,
    now: u64,
    /// Hours that one segment takes.
    pace: u64,
    clocks: Clocks,
    /// The store dated everything when it was copied, and not when it was written.
    is_copied: bool,
    /// Current position of each timeline that is written to.
    heads: BTreeMap<u32, u64>,
    /// Positions of a timeline, each with the hour at which WAL got there.
    passed: Vec<(u32, u64, u64)>,
    /// Backups with the hour at which they were taken.
    taken: BTreeMap<BackupId, u64>,
    /// Those whose own clock was wrong.
    wrong: BTreeSet<BackupId>,
    policy: Policy,
    zone: Tz,
}

impl History {
    fn new(seed: u64) -> History {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            dice.roll(2);
        }
        let mut survey = empty();
        add_timeline(&mut survey, 1, None, vec![1]);
        let zone = [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York][dice.roll(3) as usize];
        let clocks = match dice.roll(8) {
            0 => Clocks::Back,
            1 => Clocks::Ahead,
            _ => Clocks::Right,
        };
        let mut history = History {
            survey,
            now: 0,
            pace: 1,
            clocks,
            is_copied: dice.one_in(6),
            heads: [(1, MIB + 64)].into(),
            passed: vec![(1, MIB + 64, 0)],
            taken: BTreeMap::new(),
            wrong: BTreeSet::new(),
            policy: Policy::default(),
            zone,
            dice,
        };
        history.policy = history.some_policy();
        history
    }

    fn some_policy(&mut self) -> Policy {
        let dice = &mut self.dice;
        let mut count = |most: u64| dice.one_in(2).then(|| dice.roll(most) as u32);
        let mut rules = Retention {
            last: count(4),
            daily: count(5),
            weekly: count(4),
            monthly: count(4),
            yearly: count(3),
            ..Retention::default()
        };
        let days = |n: u64| Duration::from_secs(n * DAY * 3600);
        rules.within = self.dice.one_in(4).then(|| days(1 + self.dice.roll(20)));
        rules.wal_window = self.dice.one_in(2).then(|| days(1 + self.dice.roll(30)));
        Policy {
            rules,
            zone: Some(Zone::Named(self.zone)),
            grace: HOUR * (self.dice.roll(2) * DAY) as u32,
            min_age: HOUR * [0, 0, 24][self.dice.roll(3) as usize],
            confirm_burst: true,
            ..Policy::default()
        }
    }

    /// Time passes, and WAL is written.
    fn pass(&mut self, hours: u64) {
        self.now += hours;
        let heads: Vec<(u32, u64)> = self.heads.iter().map(|(t, lsn)| (*t, *lsn)).collect();
        for (timeline, head) in heads {
            self.write(timeline, head + hours * MIB / self.pace + 8);
        }
    }

    fn write(&mut self, timeline: u32, to: u64) {
        let before = self.heads.insert(timeline, to).unwrap_or(to);
        self.survey.newest_wal.insert(tli(timeline), at(self.now));
        self.passed.push((timeline, to, self.now));
        let held = self.survey.timelines.get_mut(&tli(timeline)).unwrap();
        let have = held.segments.iter().flat_map(|(a, b)| a.0..=b.0);
        let mut all: Vec<u64> = have.chain(before / MIB..=to / MIB).collect();
        all.sort_unstable();
        all.dedup();
        held.segments = Runs::from_numbers(all);
    }

    fn some_head(&mut self) -> (u32, u64) {
        // The newest timeline most of the time.
        let nth = if self.dice.one_in(5) {
            self.dice.roll(self.heads.len() as u64) as usize
        } else {
            0
        };
        let (timeline, head) = self.heads.iter().rev().nth(nth).unwrap();
        (*timeline, *head)
    }

    fn back_up(&mut self) {
        let (timeline, start) = self.some_head();
        let stop = start + 8 + self.dice.roll(3 * MIB / 2) / 8 * 8;
        self.write(timeline, stop + 8);
        let number = self.taken.len();
        let id: BackupId = format!(
            "2026{:02}{:02}T{:02}0000Z-full",
            1 + number / 600,
            1 + number / 24 % 25,
            number % 24
        )
        .parse()
        .unwrap();
        let is_wrong = self.clocks != Clocks::Right && self.dice.one_in(4);
        let years = HOUR * (DAY * 500) as u32;
        let stop_time = match self.clocks {
            Clocks::Back if is_wrong => at(self.now).saturating_sub(years),
            Clocks::Ahead if is_wrong => at(self.now).saturating_add(years * 9),
            _ => at(self.now),
        };
        if is_wrong {
            self.wrong.insert(id.clone());
        }
        let mut packs = BTreeMap::from([(id.clone(), Runs::from_numbers(vec![0]))]);
        if self.dice.one_in(4)
            && let Some(other) = self.some_backup()
        {
            packs.insert(other, Runs::from_numbers(vec![0]));
        }
        let root = Root {
            stop_time,
            packs,
            ..Root::sample(tli(timeline), Lsn(start), Lsn(stop))
        };
        let mut events = vec![event("begin", at(self.now))];
        if self.dice.one_in(2) {
            events.push(event("verified", at(self.now)));
        }
        let subject = Subject {
            manifest: Manifest::Committed(Box::new(root)),
            stored: Some(at(self.now)),
            packs: Runs::from_numbers(vec![0]),
            events,
            ..Subject::default()
        };
        self.survey.ids.insert(id.clone(), subject);
        self.taken.insert(id, self.now);
    }

    fn some_backup(&mut self) -> Option<BackupId> {
        let all: Vec<BackupId> = roots(&self.survey).map(|(id, ..)| id.clone()).collect();
        let nth = self.dice.roll(all.len() as u64) as usize;
        all.get(nth).cloned()
    }

    fn promote(&mut self) {
        if self.heads.len() > 2 {
            return;
        }
        let (parent, head) = self.some_head();
        let child = 1 + self.survey.timelines.len() as u32;
        add_timeline(
            &mut self.survey,
            child,
            Some((parent, Lsn(head))),
            vec![head / MIB],
        );
        self.heads.insert(child, head);
        self.survey.newest_wal.insert(tli(child), at(self.now));
        let held = self.survey.timelines.get_mut(&tli(child)).unwrap();
        held.history_stored = Some(at(self.now));
        self.passed.push((child, head, self.now));
        if self.dice.one_in(2) {
            self.heads.remove(&parent);
        }
    }

    /// Something happens to a backup.
    fn touch(&mut self) {
        let now = at(self.now);
        let Some(id) = self.some_backup() else { return };
        let kind = ["pin", "claim", "damaged", "verified"][self.dice.roll(4) as usize];
        let mut one = event(kind, now);
        let hours = self.dice.roll(60 * DAY);
        match kind {
            "pin" if self.dice.one_in(2) => one.event.until = Some(at(self.now + hours)),
            "claim" => one.event.seconds = Some(self.dice.roll(8) * 3600),
            _ => {}
        }
        self.survey.ids.get_mut(&id).unwrap().events.push(one);
    }

    /// A hole that nobody meant.
    fn lose(&mut self) {
        let nth = self.dice.roll(self.survey.timelines.len() as u64) as usize;
        let held = self.survey.timelines.values_mut().nth(nth).unwrap();
        let mut left: Vec<u64> = held.segments.iter().flat_map(|(a, b)| a.0..=b.0).collect();
        if left.len() > 2 {
            left.remove(self.dice.roll(left.len() as u64 - 1) as usize);
            held.segments = Runs::from_numbers(left);
        }
    }

    fn copy_times(&mut self) {
        if self.is_copied {
            let now = at(self.now);
            for subject in self.survey.catalog.ids.values_mut() {
                subject.stored = subject.stored.map(|_| now);
            }
            self.survey.newest_wal.values_mut().for_each(|at| *at = now);
            for held in self.survey.timelines.values_mut() {
                held.history_stored = held.history_stored.map(|_| now);
            }
            self.is_copied = false;
        }
    }
}

/// A plan in a few lines.
fn told(plan: &ExpirePlan) -> String {
    let line = |b: &Judged| {
        format!(
            "{} {:?} {:?} {}\n",
            b.id,
            b.place.unwrap(),
            b.fate,
            b.reason
        )
    };
    let backups: String = plan.backups.iter().map(line).collect();
    format!(
        "\n{backups}window from {:?}\n{:?}",
        plan.window_begin, plan.deletions
    )
}

fn roots(survey: &Survey) -> impl Iterator<Item = (&BackupId, &Subject, &Root)> {
    survey.catalog.committed()
}

/// The backups that rules ask for, each with their names.
type Wanted<'a> = BTreeMap<&'a BackupId, Vec<&'static str>>;

/// A naive reading of the documentation: the backups that are kept, each with its rule.
struct Naive<'a> {
    history: &'a History,
    /// In the order of backups.
    good: Vec<(&'a BackupId, &'a Root)>,
}

impl<'a> Naive<'a> {
    fn new(history: &'a History, survey: &'a Survey, has_wal: bool) -> Naive<'a> {
        let mut good: Vec<_> = roots(survey)
            .filter(|(_, subject, root)| {
                let whole = !has_wal
                    || survey
                        .timelines
                        .keys()
                        .any(|target| leads_to(survey, root, *target, root.stop_lsn));
                whole && is_sound(survey, subject, root)
            })
            .map(|(id, _, root)| (id, root))
            .collect();
        good.sort_by_key(|(id, root)| (root.timeline, root.stop_lsn, *id));
        Naive { history, good }
    }

    /// Whether the time of one contradicts that of another on its timeline.
    fn is_inverted(&self, survey: &Survey, id: &BackupId) -> bool {
        let label = |subject: &Subject, root: &Root| match root.stop_time > subject.stored.unwrap()
        {
            true => subject.stored.unwrap().min(at(self.history.now)),
            false => root.stop_time,
        };
        let all: Vec<_> = roots(survey)
            .map(|(id, s, r)| (id, r.timeline, r.stop_lsn, label(s, r)))
            .collect();
        let own = all.iter().find(|(other, ..)| *other == id).unwrap();
        all.iter().filter(|other| other.1 == own.1).any(|other| {
            (other.2 < own.2 && other.3 > own.3) || (other.2 > own.2 && other.3 < own.3)
        })
    }

    /// The newest good ones that a check has read back: of all, and of those that lead to the cluster.
    fn last_verified(&self, survey: &Survey) -> BTreeSet<&'a BackupId> {
        let is_verified = |id: &BackupId| {
            let verified = standing(&survey.ids[id].events, "verified", "");
            !verified.is_empty()
        };
        let history = cluster_of(survey);
        let newest = || self.good.iter().rev().filter(|(id, _)| is_verified(id));
        let mut followed = newest().filter(|(_, root)| is_followed(&history, root));
        let both = [newest().next(), followed.next()];
        both.into_iter().flatten().map(|(id, _)| *id).collect()
    }

    fn text(&self, id: &BackupId, format: &str) -> String {
        let micros = at(self.history.taken[id]).unix_micros().unwrap();
        let utc = chrono::DateTime::from_timestamp_micros(micros).unwrap();
        utc.with_timezone(&self.history.zone)
            .format(format)
            .to_string()
    }

    /// The backups that the rules ask for, by what is true: those of a wrong clock stand for no period.
    fn wanted(&self, survey: &Survey) -> Wanted<'a> {
        let rules = &self.history.policy.rules;
        let mut wanted = Wanted::new();
        let keep = rules.last.unwrap_or(0).max(1) as usize;
        let history = cluster_of(survey);
        let follows = |root: &Root| is_followed(&history, root);
        for (id, _) in self.good.iter().rev().take(keep) {
            let rule = if rules.last.unwrap_or(0) > 0 {
                "keep_last"
            } else {
                "newest"
            };
            wanted.entry(id).or_default().push(rule);
        }
        let right: Vec<_> = self
            .good
            .iter()
            .filter(|(id, _)| !self.history.wrong.contains(*id))
            .collect();
        for (rule, format, count) in [
            ("keep_daily", "%Y-%m-%d", rules.daily),
            ("keep_weekly", "%G-W%V", rules.weekly),
            ("keep_monthly", "%Y-%m", rules.monthly),
            ("keep_yearly", "%Y", rules.yearly),
        ] {
            let mut periods: BTreeMap<String, Vec<(bool, usize, &BackupId)>> = BTreeMap::new();
            for (order, (id, root)) in right.iter().enumerate() {
                let members = periods.entry(self.text(id, format)).or_default();
                members.push((follows(root), order, id));
            }
            for members in periods.values().rev().take(count.unwrap_or(0) as usize) {
                let (.., id) = members.iter().max().unwrap();
                wanted.entry(id).or_default().push(rule);
            }
        }
        if let Some(within) = rules.within {
            let hour = |id: &BackupId| self.history.taken[id];
            let newest = right.iter().map(|(id, _)| hour(id)).max().unwrap_or(0);
            let hours = within.as_secs() / 3600;
            for (id, _) in right.iter().filter(|(id, _)| hour(id) + hours >= newest) {
                wanted.entry(id).or_default().push("keep_within");
            }
        }
        wanted
    }
}

/// The history of the newest timeline, which is the cluster.
fn cluster_of(survey: &Survey) -> crate::pg::timeline::History {
    let newest = *survey.timelines.keys().next_back().unwrap();
    super::tests::known_history(survey, newest)
}

fn is_followed(history: &crate::pg::timeline::History, root: &Root) -> bool {
    history.holder(Lsn(root.stop_lsn.0 - 1)) == root.timeline
}

/// Whether all its packs are there, and nobody found damage.
fn is_sound(survey: &Survey, subject: &Subject, root: &Root) -> bool {
    let is_there = |(id, runs): (&BackupId, &Runs)| {
        let have = survey.ids.get(id).map(|s| &s.packs);
        numbers(runs).all(|n| have.is_some_and(|h| h.contains(SegmentNumber(n.into()))))
    };
    root.packs.iter().all(is_there) && standing(&subject.events, "damaged", "healed").is_empty()
}

/// Counts of the results of the histories, so that none is trivial.
#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    kept: u64,
    deleted_backups: u64,
    deleted_segments: u64,
    points: u64,
    doubted: u64,
    trimmed: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.kept += other.kept;
        self.deleted_backups += other.deleted_backups;
        self.deleted_segments += other.deleted_segments;
        self.points += other.points;
        self.doubted += other.doubted;
        self.trimmed += other.trimmed;
    }
}

/// A run of expiry, perhaps killed, against the model.
fn expire(history: &mut History, is_aux: bool, tally: &mut Tally) {
    let now = at(history.now);
    let policy = history.policy.clone();
    let before = history.survey.clone();
    let plan = match is_aux {
        true => {
            let paths = wal::Paths::new(&before);
            let backups = Backups::new(&before, &paths, &policy);
            super::plan(
                &before.catalog,
                (&Unconstrained, backups.items()),
                &policy,
                now,
            )
        }
        false => retention(&before, &policy, now),
    };
    tally.runs += 1;
    let is_killed = history.dice.one_in(4);
    if is_killed {
        let mut done = plan.clone();
        let left = history.dice.roll(1 + done.deletions.len() as u64) as usize;
        done.deletions.truncate(left);
        apply(&mut history.survey, &done, now);
    } else {
        apply(&mut history.survey, &plan, now);
    }
    let naive = Naive::new(history, &before, !is_aux);
    let wanted = naive.wanted(&before);
    check_backups((&naive, &wanted), &before, &plan, is_aux, tally);
    if !is_aux {
        check_points((&naive, &wanted), &before, &plan, tally);
        check_wal(history, &plan, is_killed, tally);
    }
}

/// Every backup that a rule asks for stays whole, and none stays for nothing.
fn check_backups(
    (naive, wanted): (&Naive<'_>, &Wanted<'_>),
    before: &Survey,
    plan: &ExpirePlan,
    is_aux: bool,
    tally: &mut Tally,
) {
    let history = naive.history;
    let after = &history.survey;
    for (id, rules) in wanted {
        let judged = plan.backups.iter().find(|b| b.id == **id).unwrap();
        assert_eq!(
            judged.fate,
            Fate::Keep,
            "{id} is wanted by {rules:?}: {judged:?}"
        );
        let subject = &after.ids[*id];
        let root = subject.root().unwrap();
        assert!(is_sound(after, subject, root), "{id} lost what it needs");
        let mut targets = after.timelines.keys();
        let is_whole = is_aux || targets.any(|t| leads_to(after, root, *t, root.stop_lsn));
        assert!(is_whole, "{id} lost its WAL");
        tally.kept += 1;
    }
    let last_verified = naive.last_verified(before);
    for id in &last_verified {
        let judged = plan.backups.iter().find(|b| b.id == **id).unwrap();
        assert_eq!(judged.fate, Fate::Keep, "the last verified: {judged:?}");
    }
    tally.deleted_backups += (roots(before).count() - roots(after).count()) as u64;
    for judged in plan.backups.iter().filter(|b| b.fate == Fate::Keep) {
        let subject = &before.ids[&judged.id];
        let now = at(history.now);
        let is_wrong = || naive.is_inverted(before, &judged.id);
        for rule in &judged.rules {
            let is_asked = match *rule {
                "wrong_time" => is_wrong() || history.wrong.contains(&judged.id),
                // A wrong clock may also agree with its neighbours: then it stands for a period that never was.
                _ if history.clocks != Clocks::Right || judged.damage.is_some() => true,
                rule => wanted
                    .get(&judged.id)
                    .is_some_and(|rules| rules.contains(&rule)),
            };
            assert!(is_asked, "{} is kept by {rule}: {judged:?}", judged.id);
            tally.doubted += u64::from(*rule == "wrong_time");
        }
        let is_held = !judged.rules.is_empty()
            || judged.damage.is_some()
            || judged.reason.contains("timeline")
            || !live_pins(&subject.events, now).is_empty()
            || !live_claims(&subject.events, now).is_empty()
            || last_verified.contains(&judged.id)
            || judged.reason.contains("verified") && !history.policy.min_age.is_zero();
        assert!(is_held, "{} stays for nothing: {judged:?}", judged.id);
    }
}

/// Every moment that was promised is still reached.
fn check_points(
    (naive, wanted): (&Naive<'_>, &Wanted<'_>),
    before: &Survey,
    plan: &ExpirePlan,
    tally: &mut Tally,
) {
    let history = naive.history;
    let promise = wanted
        .keys()
        .map(|id| before.ids[*id].root().unwrap().stop_lsn);
    let promise = promise.min();
    let window = history.policy.rules.wal_window.map(|w| w.as_secs() / 3600);
    // A few of them: each asks for every segment on its way.
    let step = 1 + history.passed.len() / 10;
    let some = history.passed.iter().skip(history.now as usize % step);
    for (timeline, lsn, hour) in some.step_by(step) {
        let point = Lsn(*lsn);
        let is_promised = match window {
            Some(hours) => hour + hours >= history.now,
            None => promise.is_some_and(|promise| point >= promise),
        };
        if is_promised && is_reachable(before, tli(*timeline), point) {
            tally.points += 1;
            assert!(
                is_reachable(&history.survey, tli(*timeline), point),
                "{point} of hour {hour} on {timeline} is lost at hour {}: {}",
                history.now,
                told(plan)
            );
        }
    }
}

/// Holes are only where they were recorded, and nothing stays that nobody needs.
fn check_wal(history: &History, plan: &ExpirePlan, is_killed: bool, tally: &mut Tally) {
    tally.deleted_segments += plan.segment_count();
    tally.trimmed += plan.trimmed().len() as u64;
    let after = &history.survey;
    if is_killed || !plan.withheld.is_empty() || after.timelines.len() > 1 {
        return;
    }
    for (first, last) in after.timelines[&tli(1)].segments.iter() {
        for number in first.0..=last.0 {
            let needers = plan.needed.needers(tli(1), SegmentNumber(number));
            assert!(!needers.is_empty(), "nobody needs {number}: {}", told(plan));
            for needer in needers {
                let root = after.ids[&needer.id].root().unwrap();
                let end = match needer.is_bounded {
                    true => (root.stop_lsn.0 - 1) / MIB,
                    false => u64::MAX,
                };
                let own = root.start_lsn.0 / MIB..=end;
                assert!(
                    own.contains(&number),
                    "{} does not need {number}",
                    needer.id
                );
            }
        }
    }
}

/// On one timeline without accidents every hole begins behind a backup of which that is recorded.
fn check_holes(history: &History) {
    let after = &history.survey;
    let runs: Vec<_> = after.timelines[&tli(1)].segments.iter().collect();
    for pair in runs.windows(2) {
        let (before, behind) = (pair[0].1, pair[1].0);
        let (first, _) = pair[0];
        let is_known = roots(after).any(|(_, subject, root)| {
            let is_trimmed = !standing(&subject.events, TRIMMED, "").is_empty();
            is_trimmed && (first.0..=before.0).contains(&(root.start_lsn.0 / MIB))
        });
        let plan = retention(after, &history.policy, at(history.now));
        assert!(
            is_known,
            "a hole from {before:?} to {behind:?}: {}",
            told(&plan)
        );
    }
}

fn live(seed: u64) -> Tally {
    let mut history = History::new(seed);
    let mut tally = Tally::default();
    let is_aux = history.dice.one_in(5);
    let is_accidental = history.dice.one_in(4);
    let has_branches = !is_aux && history.dice.one_in(2);
    let scale = [6, DAY, 7 * DAY, 30 * DAY][history.dice.roll(4) as usize];
    history.pace = scale / (1 + history.dice.roll(4));
    for _ in 0..8 + history.dice.roll(14) {
        let hours = 1 + history.dice.roll(scale);
        history.pass(hours);
        match history.dice.roll(12) {
            0..=5 => history.back_up(),
            6 => history.touch(),
            7 if has_branches => history.promote(),
            8 if is_accidental && !is_aux => history.lose(),
            9 if history.dice.one_in(3) => history.copy_times(),
            10 if history.dice.one_in(3) => history.policy = history.some_policy(),
            _ => {
                expire(&mut history, is_aux, &mut tally);
                // The next run deletes what this one marked, and what a kill left.
                let grace = history.policy.grace.as_secs() / 3600;
                history.pass(grace);
                expire(&mut history, is_aux, &mut tally);
            }
        }
    }
    if !is_aux && !is_accidental && history.survey.timelines.len() == 1 {
        let grace = history.policy.grace.as_secs() / 3600;
        for _ in 0..3 {
            expire_whole(&mut history);
            history.pass(grace);
        }
        check_holes(&history);
    }
    tally
}

/// As [`expire`], never killed.
fn expire_whole(history: &mut History) {
    let plan = retention(&history.survey, &history.policy, at(history.now));
    apply(&mut history.survey, &plan, at(history.now));
}

pub(super) fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().expect("a number"))
}

#[test]
fn x_random_histories_keep_what_the_rules_promise() {
    let count = number_of("PITR_EXPIRY_HISTORIES", 20_000);
    let from = number_of("PITR_EXPIRY_FROM", 1);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let next = std::sync::atomic::AtomicU64::new(from);
    let work = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= from + count {
                return tally;
            }
            if seed.is_multiple_of(50_000) {
                eprintln!("histories up to seed {seed} keep their promise, or are being lived");
            }
            let lived = std::panic::catch_unwind(|| live(seed));
            tally.add(&lived.unwrap_or_else(|_| {
                panic!("history of seed {seed}: PITR_EXPIRY_FROM={seed} PITR_EXPIRY_HISTORIES=1")
            }));
        }
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            all.add(&thread.join().unwrap());
        }
    });
    eprintln!("{count} histories: {all:?}");
    // The histories are not all trivial.
    if count >= 1000 {
        let each = [all.kept, all.points, all.deleted_segments];
        assert!(each.iter().all(|n| *n > count), "{all:?}");
        assert!(
            all.deleted_backups * 2 > count && all.doubted * 20 > count,
            "{all:?}"
        );
        assert!(all.trimmed * 10 > count, "{all:?}");
    }
}
