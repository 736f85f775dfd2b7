//! Histories made at random, and a model of what retention promises that knows nothing of the planner.
//!
//! A history is weeks to years of one repository: WAL, backups, compactions, promotions, pins, holds, claims, drills, and copies in another repository.
//! There are damage, clocks that are wrong, doubts which timeline is the cluster, and runs of expiry that are killed. Every fifth history is one of other
//! content, which has no WAL. The model knows the true times. The planner of recovery is asked as well in one history of a thousand. `make expiry-model`
//! runs a million; `PITR_EXPIRY_FROM` continues at a seed.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of small worlds"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use chrono_tz::Tz;
use serde_json::json;

use super::copies::{Other, WalElsewhere};
use super::planned_tests::is_planned;
use super::tests::{
    Dice, HOUR, MIB, add_timeline, apply, empty, event, is_reachable, known_history, leads_to, tli,
};
use super::*;
use crate::pg::timeline::History as Ancestry;
use crate::repo::catalog::{Manifest, numbers};
use crate::repo::event::{TRIMMED, legal_holds, live_claims, live_pins, standing};
use crate::repo::root::aux_root::{AuxBackup, AuxOutline};
use crate::repo::runs::Runs;
use crate::repo::stored_log::StoredLog;
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
    /// Backups that a drill proved, where the rules ask for them.
    proven: Option<BTreeSet<BackupId>>,
    /// Another repository, where nothing leaves without a copy there.
    elsewhere: Option<Elsewhere>,
    /// The planner of recovery is asked, too.
    is_planned: bool,
}

/// Another repository, as it was after the last sync.
#[derive(Default)]
struct Elsewhere {
    copies: Copies,
    /// Its WAL.
    held: BTreeMap<TimelineId, Runs>,
    /// Its backups need the WAL of these timelines from these segments on.
    needed: Vec<(TimelineId, u64)>,
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
            proven: dice.one_in(3).then(BTreeSet::new),
            elsewhere: dice.one_in(8).then(Elsewhere::new),
            is_planned: seed.is_multiple_of(1000),
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
        let written = (SegmentNumber(before / MIB), SegmentNumber(to / MIB));
        held.segments = std::mem::take(&mut held.segments).union(Runs::from_runs(vec![written]));
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
        let id = self.next_id();
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
        if self.dice.one_in(2) {
            self.drill(&id);
        }
        self.taken.insert(id.clone(), self.now);
        self.commit(id, root);
    }

    fn next_id(&self) -> BackupId {
        let number = self.taken.len();
        let id = format!(
            "2026{:02}{:02}T{:02}0000Z-full",
            1 + number / 600,
            1 + number / 24 % 25,
            number % 24
        );
        id.parse().unwrap()
    }

    /// A root is written; half of the backups are verified at once.
    fn commit(&mut self, id: BackupId, root: Root) {
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
        self.survey.ids.insert(id, subject);
    }

    /// A sound backup is stored again, under another id, without anything that others share.
    fn compact(&mut self) {
        let Some(origin) = self.some_backup() else {
            return;
        };
        let subject = &self.survey.ids[&origin];
        let root = subject.root().unwrap();
        if !is_sound(&self.survey, subject, root) {
            return;
        }
        let id = self.next_id();
        let root = Root {
            packs: BTreeMap::from([(id.clone(), Runs::from_numbers(vec![0]))]),
            ..root.clone()
        };
        if self.wrong.contains(&origin) {
            self.wrong.insert(id.clone());
        }
        self.taken.insert(id.clone(), self.taken[&origin]);
        self.commit(id, root);
    }

    /// A legal hold is laid on a backup, or the one that it has is lifted.
    fn hold(&mut self) {
        let Some(id) = self.some_backup() else { return };
        let now = at(self.now);
        let events = &mut self.survey.ids.get_mut(&id).unwrap().events;
        let held = legal_holds(events).first().map(|hold| hold.name.clone());
        let mut one = event(if held.is_some() { "unhold" } else { "pin" }, now);
        one.event.legal = held.is_none();
        one.event.ends = held;
        events.push(one);
    }

    /// A drill proves a backup.
    fn drill(&mut self, id: &BackupId) {
        if let Some(proven) = &mut self.proven {
            proven.insert(id.clone());
        }
    }

    /// It becomes undecided which timeline is the cluster, or somebody decides, also for one that is not the newest.
    fn doubt(&mut self) {
        let timelines: Vec<TimelineId> = self.survey.timelines.keys().copied().collect();
        let one = timelines[self.dice.roll(timelines.len() as u64) as usize];
        let newest = timelines[timelines.len() - 1];
        let mut both = vec![one, newest];
        both.dedup();
        self.policy.cluster = match self.dice.roll(4) {
            0 => Vec::new(),
            1 => vec![one],
            _ => both,
        };
    }

    /// The other repository gets what there is; now and then it does not answer.
    fn sync(&mut self, is_aux: bool) {
        if self.elsewhere.is_some() {
            let is_unread = self.dice.one_in(6);
            self.elsewhere = Some(match is_unread {
                true => Elsewhere::unread(),
                false => Elsewhere::of(&self.survey, is_aux, at(self.now)),
            });
        }
    }

    /// The policy of a run, with what is known of drills and other repositories.
    fn prepare(&mut self) {
        self.policy.proven = self.proven.clone().unwrap_or_default();
        let copies = self.elsewhere.as_ref().map(|other| other.copies.clone());
        self.policy.copies = copies;
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

impl Elsewhere {
    /// One that was never reached.
    fn new() -> Elsewhere {
        let copies = Copies {
            wanted: 2,
            ..Copies::default()
        };
        Elsewhere {
            copies,
            ..Elsewhere::default()
        }
    }

    /// One that does not answer: it may need all WAL.
    fn unread() -> Elsewhere {
        let mut other = Elsewhere::new();
        other.copies.wal.unread = 1;
        other
    }

    /// One that has all that is sound here.
    fn of(survey: &Survey, is_aux: bool, now: TimestampTz) -> Elsewhere {
        let mut other = Elsewhere::new();
        let sound = roots(survey).filter(|(_, subject, root)| is_sound(survey, subject, root));
        other.copies.elsewhere = sound.map(|(id, ..)| (id.clone(), 1)).collect();
        if is_aux {
            return other;
        }
        let Some(wal) = Other::of(survey, now) else {
            return Elsewhere::unread();
        };
        other.copies.wal = WalElsewhere {
            others: vec![wal],
            unread: 0,
        };
        let held = survey.timelines.iter();
        other.held = held.map(|(t, held)| (*t, held.segments.clone())).collect();
        // It needs nothing behind a hole that was made on purpose.
        let trimmed = |(_, subject, _): (&BackupId, &Subject, &Root)| {
            !standing(&subject.events, TRIMMED, "").is_empty()
        };
        if !roots(survey).any(trimmed) {
            let whole = roots(survey).filter(|(_, subject, root)| {
                is_sound(survey, subject, root) && has_own_wal(survey, root)
            });
            other.needed = whole
                .map(|(.., root)| (root.timeline, root.start_lsn.0 / MIB))
                .collect();
        }
        other
    }

    /// Whether its backups need a segment that it lacks.
    fn lacks(&self, timeline: TimelineId, number: u64) -> bool {
        let is_needed = |(of, from): &(TimelineId, u64)| *of == timeline && *from <= number;
        (self.copies.wal.unread > 0 || self.needed.iter().any(is_needed))
            && !self.holds(timeline, number)
    }

    fn holds(&self, timeline: TimelineId, number: u64) -> bool {
        let held = self.held.get(&timeline);
        held.is_some_and(|held| held.contains(SegmentNumber(number)))
    }
}

/// The backups of a history as those of other content.
fn aux_catalog(survey: &Survey) -> Catalog<AuxBackup> {
    static OUTLINE: LazyLock<AuxOutline> = LazyLock::new(|| {
        let outline = json!({
            "id": "20260101T000000Z-full", "nonce": "", "backup_kind": "full", "scope": "aux/files/home", "source": null,
            "start_time": at(0), "stop_time": at(0), "size_bytes": 1, "stored_bytes": 1, "unstable_count": 0, "incomplete_count": 0,
            "lock_until": null, "layers": {}, "packs": {},
        });
        serde_json::from_value(outline).unwrap()
    });
    let backup = |id: &BackupId, root: &Root| {
        let mut outline = OUTLINE.clone();
        outline.id = id.clone();
        (outline.start_time, outline.stop_time) = (root.stop_time, root.stop_time);
        AuxBackup {
            root: outline,
            layers: root.layers.clone(),
            packs: root.packs.clone(),
        }
    };
    let mut catalog = Catalog::empty();
    for (id, subject) in &survey.ids {
        let manifest = match &subject.manifest {
            Manifest::Committed(root) => Manifest::Committed(Box::new(backup(id, root))),
            Manifest::Tombstone => Manifest::Tombstone,
            Manifest::Absent | Manifest::Unreadable(_) => Manifest::Absent,
        };
        let subject = crate::repo::catalog::Subject {
            manifest,
            stored: subject.stored,
            packs: subject.packs.clone(),
            newest_part: subject.newest_part,
            events: subject.events.clone(),
            ..crate::repo::catalog::Subject::default()
        };
        catalog.ids.insert(id.clone(), subject);
    }
    catalog
}

/// A plan in a few lines.
fn told(plan: &ExpirePlan) -> String {
    let line = |b: &Judged| format!("{} {:?} {:?} {}\n", b.id, b.place, b.fate, b.reason);
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
    is_aux: bool,
    /// In the order of backups.
    all: Vec<(&'a BackupId, &'a Root)>,
    good: BTreeSet<&'a BackupId>,
    /// Those that do not count, because another one of the same content does.
    aside: BTreeMap<&'a BackupId, &'a BackupId>,
    /// The ways to the timelines that may be the cluster, as far as a backup leads there; one without a timeline where none does.
    ways: Vec<Option<Ancestry>>,
}

impl<'a> Naive<'a> {
    fn new(history: &'a History, survey: &'a Survey, is_aux: bool) -> Naive<'a> {
        let mut all: Vec<_> = roots(survey).map(|(id, _, root)| (id, root)).collect();
        match is_aux {
            // Other content has no position: its own clock orders it, unless that was ahead.
            true => all.sort_by_key(|(id, root)| (label(&survey.ids[*id], root), *id)),
            false => all.sort_by_key(|(id, root)| (root.timeline, root.stop_lsn, *id)),
        }
        let is_good = |(id, root): &&(&'a BackupId, &'a Root)| {
            (is_aux || has_own_wal(survey, root)) && is_sound(survey, &survey.ids[*id], root)
        };
        let good: BTreeSet<_> = all.iter().filter(is_good).map(|(id, _)| *id).collect();
        Naive {
            aside: set_aside(survey, &all, &good),
            ways: ways(&history.policy.cluster, survey),
            history,
            is_aux,
            all,
            good,
        }
    }

    /// The good ones, in their order.
    fn good(&self) -> impl DoubleEndedIterator<Item = (&'a BackupId, &'a Root)> {
        let all = self.all.iter().copied();
        all.filter(move |(id, _)| self.good.contains(*id))
    }

    /// The good ones that the rules count.
    fn counted(&self) -> Vec<(&'a BackupId, &'a Root)> {
        let good = self.good();
        good.filter(|(id, _)| !self.aside.contains_key(*id))
            .collect()
    }

    /// Those that the rules count, damaged ones among them.
    fn counted_also_damaged(&self) -> Vec<(&'a BackupId, &'a Root)> {
        let all = self.all.iter().copied();
        all.filter(|(id, _)| !self.aside.contains_key(*id))
            .collect()
    }

    /// Whether a drill proved it, or another one of the same content.
    fn is_proven(&self, id: &BackupId) -> bool {
        let proven = &self.history.policy.proven;
        let mut others = self.aside.iter().filter(|(_, counts)| **counts == id);
        proven.contains(id) || others.any(|(other, _)| proven.contains(*other))
    }

    /// Whether the other repository has no copy of it yet, where nothing leaves without one.
    fn is_short(&self, id: &BackupId) -> bool {
        let other = self.history.elsewhere.as_ref();
        other.is_some_and(|other| !other.copies.elsewhere.contains_key(id))
    }

    /// Whether the time of one contradicts that of another on its timeline.
    fn is_inverted(&self, survey: &Survey, id: &BackupId) -> bool {
        let all: Vec<_> = roots(survey)
            .map(|(id, s, r)| (id, r.timeline, r.stop_lsn, label(s, r)))
            .collect();
        let own = all.iter().find(|(other, ..)| *other == id).unwrap();
        all.iter().filter(|other| other.1 == own.1).any(|other| {
            (other.2 < own.2 && other.3 > own.3) || (other.2 > own.2 && other.3 < own.3)
        })
    }

    /// The newest good ones that a check has read back: of all, and of those that lead to each timeline that may be the cluster.
    fn last_verified(&self, survey: &Survey) -> BTreeSet<&'a BackupId> {
        let is_verified = |id: &BackupId| {
            let verified = standing(&survey.ids[id].events, "verified", "");
            !verified.is_empty()
        };
        let newest = |is_meant: &dyn Fn(&Root) -> bool| {
            let mut newest = self.good().rev();
            newest.find(|(id, root)| is_verified(id) && is_meant(root))
        };
        let ways = self.ways.iter().flatten();
        let on_ways = ways.filter_map(|way| newest(&|root| is_followed(way, root)));
        let all = on_ways.chain(newest(&|_| true));
        all.map(|(id, _)| id).collect()
    }

    /// A time, written in the zone of the rules.
    fn text(&self, time: TimestampTz, format: &str) -> String {
        let utc = chrono::DateTime::from_timestamp_micros(time.unix_micros().unwrap()).unwrap();
        utc.with_timezone(&self.history.zone)
            .format(format)
            .to_string()
    }

    /// The rules of the calendar that keep something: name, format of a period, and how many of them.
    fn calendar(&self) -> impl Iterator<Item = (&'static str, &'static str, usize)> {
        let rules = &self.history.policy.rules;
        let all = [
            ("keep_daily", "%Y-%m-%d", rules.daily),
            ("keep_weekly", "%G-W%V", rules.weekly),
            ("keep_monthly", "%Y-%m", rules.monthly),
            ("keep_yearly", "%Y", rules.yearly),
        ];
        let counts = all.map(|(rule, format, count)| (rule, format, count.unwrap_or(0) as usize));
        counts.into_iter().filter(|(.., count)| *count > 0)
    }

    /// The last of each of the newest periods, by true times, on the way to each timeline that may be the cluster.
    fn of_periods(&self, items: &[(&'a BackupId, &'a Root)], wanted: &mut Wanted<'a>) {
        for way in &self.ways {
            for (rule, format, count) in self.calendar() {
                let mut periods: BTreeMap<String, Vec<(bool, usize, &'a BackupId)>> =
                    BTreeMap::new();
                for (order, (id, root)) in items.iter().enumerate() {
                    let follows = way.as_ref().is_some_and(|way| is_followed(way, root));
                    let text = self.text(at(self.history.taken[*id]), format);
                    periods.entry(text).or_default().push((follows, order, *id));
                }
                for members in periods.values().rev().take(count) {
                    let (.., id) = members.iter().max().unwrap();
                    wanted.entry(*id).or_default().push(rule);
                }
            }
        }
    }

    /// The good ones that count, newest first; those of a branch with a higher number come last.
    fn newest_first(&self, way: Option<&Ancestry>) -> Vec<&'a BackupId> {
        let is_beside = |root: &Root| {
            way.is_some_and(|way| root.timeline > way.timeline() && !is_followed(way, root))
        };
        let counted = self.counted().into_iter().rev();
        let (beside, mut newest): (Vec<_>, Vec<_>) = counted.partition(|(_, root)| is_beside(root));
        newest.extend(beside);
        newest.into_iter().map(|(id, _)| id).collect()
    }

    /// The backups that the rules ask for, by what is true: those of a wrong clock stand for no period.
    fn wanted(&self) -> Wanted<'a> {
        let rules = &self.history.policy.rules;
        let mut wanted = Wanted::new();
        let keep = rules.last.unwrap_or(0).max(1) as usize;
        let newest = if rules.last.unwrap_or(0) > 0 {
            "keep_last"
        } else {
            "newest"
        };
        for way in &self.ways {
            let all = self.newest_first(way.as_ref());
            for id in all.iter().take(keep) {
                wanted.entry(*id).or_default().push(newest);
            }
            if let Some(id) = all.iter().find(|id| self.is_proven(id)) {
                wanted.entry(*id).or_default().push("keep_proven");
            }
        }
        let mut right = self.counted();
        right.retain(|(id, _)| !self.history.wrong.contains(*id));
        // Nothing but its clock says where other content belongs: one of a clock that was set back may stand for the period of another one.
        if !(self.is_aux && self.history.clocks == Clocks::Back) {
            self.of_periods(&right, &mut wanted);
        }
        if let Some(within) = rules.within {
            let hour = |id: &BackupId| self.history.taken[id];
            let newest = right.iter().map(|(id, _)| hour(id)).max().unwrap_or(0);
            let hours = within.as_secs() / 3600;
            for (id, _) in right.iter().filter(|(id, _)| hour(id) + hours >= newest) {
                wanted.entry(*id).or_default().push("keep_within");
            }
        }
        wanted
    }
}

/// The time at which a backup ended, as far as its own clock and the store's tell.
fn label(subject: &Subject, root: &Root) -> TimestampTz {
    root.stop_time.min(subject.stored.unwrap())
}

/// The backups that do not count, each with the one of the same content that does: the newest that was verified, else the oldest good one. Marked ones stand back.
fn set_aside<'a>(
    survey: &Survey,
    all: &[(&'a BackupId, &'a Root)],
    good: &BTreeSet<&'a BackupId>,
) -> BTreeMap<&'a BackupId, &'a BackupId> {
    let mut aside = BTreeMap::new();
    let has = |id: &BackupId, kind: &str, ended_by: &str| {
        !standing(&survey.ids[id].events, kind, ended_by).is_empty()
    };
    let is_marked = |id: &BackupId| has(id, "expire", "unexpire");
    let groups = all.chunk_by(|(_, a), (_, b)| a.is_twin(b));
    for twins in groups.filter(|twins| twins.len() > 1) {
        let ids: Vec<&'a BackupId> = twins.iter().map(|(id, _)| *id).collect();
        let is_open = |id: &BackupId| good.contains(id) && !is_marked(id);
        let any_open = ids.iter().any(|id| is_open(id));
        let may_count = |id: &BackupId| good.contains(id) && (!any_open || is_open(id));
        let proven = ids
            .iter()
            .rposition(|id| may_count(id) && has(id, "verified", ""));
        let oldest = ids.iter().position(|id| good.contains(*id));
        let counts = proven.or(oldest).unwrap_or(0);
        for (place, id) in ids.iter().enumerate() {
            if place > counts || (place < counts && proven.is_some()) {
                aside.insert(*id, ids[counts]);
            }
        }
    }
    aside
}

/// The ways to the timelines that may be the cluster; without a policy that names them, the newest one is.
fn ways(named: &[TimelineId], survey: &Survey) -> Vec<Option<Ancestry>> {
    let newest = [*survey.timelines.keys().next_back().unwrap()];
    let named: &[TimelineId] = if named.is_empty() { &newest } else { named };
    let all = named
        .iter()
        .map(|timeline| known_history(survey, *timeline));
    let leads = |way: &Ancestry| roots(survey).any(|(.., root)| is_followed(way, root));
    let led_to: Vec<_> = all.filter(leads).map(Some).collect();
    match led_to.is_empty() {
        true => vec![None],
        false => led_to,
    }
}

fn is_followed(history: &Ancestry, root: &Root) -> bool {
    history.holder(Lsn(root.stop_lsn.0 - 1)) == root.timeline
}

/// Whether the WAL of a backup is there, to its own end, on the way to some timeline.
fn has_own_wal(survey: &Survey, root: &Root) -> bool {
    let mut targets = survey.timelines.keys();
    targets.any(|target| leads_to(survey, root, *target, root.stop_lsn))
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
    /// Points that the planner was asked for.
    planned: u64,
    /// Backups that stay for a drill, for want of a copy, because of a hold, and until they were verified in the place of another one.
    proven: u64,
    short: u64,
    held: u64,
    twins: u64,
    /// Runs while it was undecided which timeline is the cluster.
    undecided: u64,
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
        self.planned += other.planned;
        self.proven += other.proven;
        self.short += other.short;
        self.held += other.held;
        self.twins += other.twins;
        self.undecided += other.undecided;
    }
}

/// A run of expiry, perhaps killed, against the model.
fn expire(history: &mut History, is_aux: bool, tally: &mut Tally) {
    let now = at(history.now);
    history.prepare();
    let policy = history.policy.clone();
    let before = history.survey.clone();
    let plan = match is_aux {
        true => aux_items::retention(&aux_catalog(&before), &StoredLog::default(), &policy, now),
        false => retention(&before, &policy, now),
    };
    tally.runs += 1;
    tally.undecided += u64::from(policy.cluster.len() > 1);
    let is_killed = history.dice.one_in(4);
    if is_killed {
        let mut done = plan.clone();
        let left = history.dice.roll(1 + done.deletions.len() as u64) as usize;
        done.deletions.truncate(left);
        apply(&mut history.survey, &done, now);
    } else {
        apply(&mut history.survey, &plan, now);
    }
    let naive = Naive::new(history, &before, is_aux);
    let wanted = naive.wanted();
    check_backups((&naive, &wanted), &before, &plan, tally);
    check_rules((&naive, &wanted), &before, &plan, tally);
    if history.clocks != Clocks::Right {
        check_periods(&naive, &before, &plan);
    }
    if !is_aux {
        check_points((&naive, &wanted), &before, &plan, tally);
        check_wal(history, &plan, is_killed, tally);
        check_copies(history, &plan);
    }
}

/// Every backup that a rule asks for stays, and each good one that stays is whole.
fn check_backups(
    (naive, wanted): (&Naive<'_>, &Wanted<'_>),
    before: &Survey,
    plan: &ExpirePlan,
    tally: &mut Tally,
) {
    let after = &naive.history.survey;
    let now = at(naive.history.now);
    tally.kept += wanted.len() as u64;
    tally.deleted_backups += (roots(before).count() - roots(after).count()) as u64;
    let last_verified = naive.last_verified(before);
    for judged in &plan.backups {
        let id = &judged.id;
        let rules = wanted.get(id);
        let events = &before.ids[id].events;
        let is_held = !live_pins(events, now).is_empty() || !live_claims(events, now).is_empty();
        let has_to_stay =
            rules.is_some() || is_held || last_verified.contains(id) || naive.is_short(id);
        assert!(
            judged.fate == Fate::Keep || !has_to_stay,
            "{id} is wanted by {rules:?}: {judged:?}"
        );
        if judged.fate == Fate::Keep && naive.good.contains(id) {
            let subject = &after.ids[id];
            let root = subject.root().unwrap();
            assert!(is_sound(after, subject, root), "{id} lost what it needs");
            let is_whole = naive.is_aux || has_own_wal(after, root);
            assert!(is_whole, "{id} lost its WAL");
        }
    }
}

/// No backup stays without a rule that names it, or another reason that is true.
fn check_rules(
    (naive, wanted): (&Naive<'_>, &Wanted<'_>),
    before: &Survey,
    plan: &ExpirePlan,
    tally: &mut Tally,
) {
    let history = naive.history;
    let now = at(history.now);
    let last_verified = naive.last_verified(before);
    // Damaged ones are kept as if they were good, besides those that are.
    let mut damaged = Wanted::new();
    if plan.backups.iter().any(|b| b.damage.is_some()) {
        naive.of_periods(&naive.counted_also_damaged(), &mut damaged);
    }
    let promise = plan.backups.iter().position(|b| b.is_promised);
    for (place, judged) in plan.backups.iter().enumerate() {
        if judged.fate != Fate::Keep {
            continue;
        }
        let id = &judged.id;
        for rule in &judged.rules {
            let of = match judged.damage {
                None => wanted,
                Some(_) => &damaged,
            };
            let is_named = of.get(id).is_some_and(|rules| rules.contains(rule));
            let is_asked = match *rule {
                "wrong_time" if naive.is_aux => history.wrong.contains(id),
                "wrong_time" => history.wrong.contains(id) || naive.is_inverted(before, id),
                // A wrong clock may also agree with its neighbours: then it stands for a period that never was.
                _ if history.clocks != Clocks::Right && is_by_time(&history.policy, rule) => true,
                _ => is_named,
            };
            assert!(is_asked, "{id} is kept by {rule}: {judged:?}");
            tally.doubted += u64::from(*rule == "wrong_time");
            tally.proven += u64::from(*rule == "keep_proven");
        }
        let events = &before.ids[id].events;
        let says = |words: &str| judged.reason.contains(words);
        let is_pinned = !live_pins(events, now).is_empty();
        let is_short = says("min_copies") && naive.is_short(id);
        let is_waiting = is_unproven_twin(naive, before, judged) && says("takes the place of");
        tally.short += u64::from(is_short);
        tally.held += u64::from(is_pinned && says("on legal hold"));
        tally.twins += u64::from(is_waiting);
        let is_held = !judged.rules.is_empty()
            || is_kept_damaged(
                (naive, judged),
                promise.is_none_or(|promise| promise <= place),
            )
            || says("timeline") && judged.is_promised
            || is_pinned
            || !live_claims(events, now).is_empty()
            || last_verified.contains(id)
            || is_short
            || is_waiting
            || says("verified") && !history.policy.min_age.is_zero();
        assert!(is_held, "{id} stays for nothing: {judged:?}");
    }
}

/// Whether a rule goes by the time at which a backup was taken, and is one of the policy.
fn is_by_time(policy: &Policy, rule: &str) -> bool {
    let rules = &policy.rules;
    match rule {
        "keep_within" => rules.within.is_some(),
        "keep_daily" => rules.daily > Some(0),
        "keep_weekly" => rules.weekly > Some(0),
        "keep_monthly" => rules.monthly > Some(0),
        "keep_yearly" => rules.yearly > Some(0),
        _ => false,
    }
}

/// Whether a backup does not count as long as it was not verified, because it was compacted from another one.
fn is_unproven_twin(naive: &Naive<'_>, before: &Survey, judged: &Judged) -> bool {
    let events = &before.ids[&judged.id].events;
    naive.aside.contains_key(&judged.id) && standing(events, "verified", "").is_empty()
}

/// Whether a backup stays because it is damaged, and lies behind the beginning of the promise. That is not known where clocks were wrong.
fn is_kept_damaged((naive, judged): (&Naive<'_>, &Judged), is_behind: bool) -> bool {
    let is_sure = naive.history.clocks == Clocks::Right;
    let says = |words: &str| judged.reason.contains(words);
    let is_known = says("damaged, but newer") && is_behind || says("damaged, as");
    judged.damage.is_some() && (is_known || !is_sure)
}

/// A rule of the calendar keeps one good backup of a period, and no more than it counts, whatever clocks say.
fn check_periods(naive: &Naive<'_>, before: &Survey, plan: &ExpirePlan) {
    for (rule, format, count) in naive.calendar() {
        let kept = plan.backups.iter().filter(|b| b.damage.is_none());
        let kept = kept.filter(|b| b.rules.contains(&rule));
        let periods: Vec<String> = kept
            .map(|b| {
                let subject = &before.ids[&b.id];
                naive.text(label(subject, subject.root().unwrap()), format)
            })
            .collect();
        let most = count * naive.ways.len();
        assert!(periods.len() <= most, "{rule} keeps {periods:?}: {plan:?}");
        let distinct: BTreeSet<&String> = periods.iter().collect();
        let is_once = naive.ways.len() > 1 || distinct.len() == periods.len();
        assert!(is_once, "{rule} keeps {periods:?}: {plan:?}");
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
            if history.is_planned {
                check_plan(history, before, (tli(*timeline), point), plan);
                tally.planned += 1;
            }
            assert!(
                is_reachable(&history.survey, tli(*timeline), point),
                "{point} of hour {hour} on {timeline} is lost at hour {}: {}",
                history.now,
                told(plan)
            );
        }
    }
}

/// The planner of recovery has found a way to a point, and finds one.
fn check_plan(
    history: &History,
    before: &Survey,
    (timeline, point): (TimelineId, Lsn),
    plan: &ExpirePlan,
) {
    for (when, survey) in [("before", before), ("after", &history.survey)] {
        assert!(
            is_planned(survey, timeline, point, at(history.now)),
            "{point} on {timeline} is not planned as reachable {when} the run: {}",
            told(plan)
        );
    }
}

/// No WAL stays that nobody needs, and each backup needs what recovery from it may read.
fn check_wal(history: &History, plan: &ExpirePlan, is_killed: bool, tally: &mut Tally) {
    tally.deleted_segments += plan.segment_count();
    tally.trimmed += plan.trimmed().len() as u64;
    if !plan.withheld.is_empty() {
        assert_eq!(plan.segment_count(), 0, "{:?}", plan.withheld);
        return;
    }
    let after = &history.survey;
    let is_whole = !is_killed && after.timelines.len() == 1;
    for (timeline, held) in &after.timelines {
        // A few of many: each asks for every need.
        let step = match is_whole {
            true => 1,
            false => 1 + held.segments.count() as usize / 10,
        };
        let all = held.segments.iter().flat_map(|(a, b)| a.0..=b.0);
        for number in all.skip(history.now as usize % step).step_by(step) {
            let needers = plan.needed.needers(*timeline, SegmentNumber(number));
            // A run that was killed leaves what it would have deleted.
            let is_left = is_killed && goes(plan, *timeline, number);
            assert!(
                !needers.is_empty() || is_left || is_short(plan, *timeline, number),
                "nobody needs {number} of {timeline}: {}",
                told(plan)
            );
            for needer in needers {
                let root = after.ids[&needer.id].root().unwrap();
                let end = match needer.is_bounded {
                    true => (root.stop_lsn.0 - 1) / MIB,
                    false => u64::MAX,
                };
                let own = root.start_lsn.0 / MIB..=end;
                assert!(
                    own.contains(&number) && may_read(after, root, (*timeline, number)),
                    "{} does not need {number} of {timeline}",
                    needer.id
                );
            }
        }
    }
}

/// Whether recovery from a backup reads a segment on the way to a timeline that goes on from it.
fn may_read(survey: &Survey, root: &Root, (timeline, number): (TimelineId, u64)) -> bool {
    survey.timelines.keys().any(|target| {
        let way = known_history(survey, *target);
        let is_part = |part: &crate::pg::timeline::Interval| {
            part.timeline == timeline
                && part.range.start.0 < (number + 1) * MIB
                && part.range.end.0 > number * MIB
        };
        is_followed(&way, root) && way.path().iter().any(is_part)
    })
}

/// Whether a plan deletes a segment.
fn goes(plan: &ExpirePlan, timeline: TimelineId, number: u64) -> bool {
    plan.deletions.iter().any(|deletion| match deletion {
        Deletion::Segments(of, first, last) => {
            *of == timeline && (first.0..=last.0).contains(&number)
        }
        _ => false,
    })
}

/// Whether a segment stays for want of a copy alone.
fn is_short(plan: &ExpirePlan, timeline: TimelineId, number: u64) -> bool {
    let mut short = plan.short.iter();
    short.any(|(of, first, last)| *of == timeline && (first.0..=last.0).contains(&number))
}

/// WAL stays for want of a copy only where the other repository has none, and none goes that it lacks.
fn check_copies(history: &History, plan: &ExpirePlan) {
    let Some(other) = &history.elsewhere else {
        assert!(plan.short.is_empty(), "{:?}", plan.short);
        return;
    };
    for (timeline, first, last) in &plan.short {
        let held = (first.0..=last.0).find(|number| other.holds(*timeline, *number));
        assert_eq!(held, None, "there is a copy of it: {}", told(plan));
    }
    for deletion in &plan.deletions {
        if let Deletion::Segments(timeline, first, last) = deletion {
            let lost = (first.0..=last.0).find(|number| other.lacks(*timeline, *number));
            assert_eq!(lost, None, "there is no copy of it: {}", told(plan));
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
        match history.dice.roll(13) {
            0..=5 => history.back_up(),
            6 => history.touch(),
            7 if has_branches => history.promote(),
            8 if is_accidental && !is_aux => history.lose(),
            9 if history.dice.one_in(3) => history.copy_times(),
            10 if history.dice.one_in(3) => history.policy = history.some_policy(),
            11 => happen(&mut history, is_aux),
            _ => {
                if history.dice.one_in(2) {
                    history.sync(is_aux);
                }
                expire(&mut history, is_aux, &mut tally);
                // The next run deletes what this one marked, and what a kill left.
                let grace = history.policy.grace.as_secs() / 3600;
                history.pass(grace);
                expire(&mut history, is_aux, &mut tally);
            }
        }
    }
    // WAL that stays for want of a copy may outlive the backup before it.
    let has_copies = history.elsewhere.is_some();
    if !is_aux && !is_accidental && !has_copies && history.survey.timelines.len() == 1 {
        let grace = history.policy.grace.as_secs() / 3600;
        for _ in 0..3 {
            expire_whole(&mut history);
            history.pass(grace);
        }
        check_holes(&history);
    }
    tally
}

/// Something that happens in few histories.
fn happen(history: &mut History, is_aux: bool) {
    match history.dice.roll(4) {
        0 if !is_aux => history.compact(),
        1 if !is_aux => history.doubt(),
        2 => history.hold(),
        _ => {
            if let Some(id) = history.some_backup() {
                history.drill(&id);
            }
        }
    }
}

/// As [`expire`], never killed.
fn expire_whole(history: &mut History) {
    history.prepare();
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
        let rare = [all.proven, all.short, all.held, all.twins, all.undecided];
        assert!(rare.iter().all(|n| *n > 0), "{all:?}");
    }
    if count >= 10_000 {
        assert!(all.planned > 0, "{all:?}");
    }
}
