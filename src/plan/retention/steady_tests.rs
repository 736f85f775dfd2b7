//! Histories of one pace, in which `expire` goes on whatever the rules are, and bursts in them, which cost little of what was there before.
//!
//! The clock is right, and nothing happens but backups, checks, pins and runs of expiry. `histories_tests` has all the rest, and confirms each burst.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of small worlds"
)]

use std::ops::Range;

use super::histories_tests::number_of;
use super::rules::{Unconstrained, judge};
use super::tests::{Dice, HOUR, event};
use super::*;
use crate::repo::catalog::Parts;
use crate::repo::event::Recorded;

const DAY: u64 = 24;
/// By then the rules of days and weeks have thinned what they can.
const BURST_BEGIN: u64 = 70 * DAY;

fn at(hour: u64) -> TimestampTz {
    let begin: TimestampTz = "2026-01-05T00:30:00Z".parse().unwrap();
    begin.saturating_add(HOUR * hour as u32)
}

struct Taken {
    id: BackupId,
    hour: u64,
    events: Vec<Recorded>,
}

struct Steady {
    policy: Policy,
    /// Hours from one backup to the next.
    backup: u64,
    /// Hours from one run of expiry to the next.
    expire: u64,
    /// Hours from one check of all backups to the next.
    check: u64,
    /// Some backups are pinned.
    has_pins: bool,
    /// Hours without a run of expiry.
    outage: Range<u64>,
    /// Hours with a backup each.
    burst: Range<u64>,
}

impl Steady {
    fn new(rules: Retention, backup: u64, expire: u64) -> Steady {
        Steady {
            policy: Policy {
                rules,
                grace: HOUR * 24,
                min_age: HOUR * 24,
                ..Policy::default()
            },
            backup,
            expire,
            check: DAY,
            has_pins: false,
            outage: 0..0,
            burst: 0..0,
        }
    }

    fn some(seed: u64) -> (Steady, Dice) {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            dice.roll(2);
        }
        let mut count = |most: u64| dice.one_in(2).then(|| 1 + dice.roll(most) as u32);
        let rules = Retention {
            daily: count(40),
            weekly: count(8),
            monthly: count(4),
            ..Retention::default()
        };
        let gates = [
            (24, 24),
            (24, 24),
            (0, 0),
            (168, 24),
            (6, 6),
            (0, 24),
            (24, 0),
        ];
        let (grace, min_age) = gates[dice.roll(7) as usize];
        let mut steady = Steady::new(rules, DAY, [24, 24, 6, 4][dice.roll(4) as usize]);
        steady.policy.grace = HOUR * grace;
        steady.policy.min_age = HOUR * min_age;
        steady.check = [1, 24, 24, 168][dice.roll(4) as usize];
        (steady, dice)
    }

    /// Lives so many hours; returns what is left, how many backups went, and how often expiry was stopped.
    fn live(&self, hours: u64) -> (Vec<Taken>, usize, u64) {
        let (mut all, mut number, mut stopped) = (Vec::new(), 0, 0);
        for hour in 0..hours {
            if hour.is_multiple_of(self.backup) || self.burst.contains(&hour) {
                all.push(self.take(number, hour));
                number += 1;
            }
            if hour.is_multiple_of(self.check) {
                check(&mut all, hour);
            }
            if hour.is_multiple_of(self.expire) && !self.outage.contains(&hour) {
                stopped += u64::from(!self.is_expired(&mut all, hour));
            }
        }
        let gone = number - all.len();
        (all, gone, stopped)
    }

    fn take(&self, number: usize, hour: u64) -> Taken {
        let id = format!(
            "2026{:02}{:02}T{:02}0000Z-full",
            1 + number / 600,
            1 + number / 24 % 25,
            number % 24
        );
        let mut events = Vec::new();
        if self.has_pins && number.is_multiple_of(50) {
            events.push(event("pin", at(hour)));
        }
        Taken {
            id: id.parse().unwrap(),
            hour,
            events,
        }
    }

    /// A run of expiry; whether no burst stopped it.
    fn is_expired(&self, all: &mut Vec<Taken>, hour: u64) -> bool {
        let now = at(hour).saturating_add(HOUR / 3);
        let parts = Parts::new();
        let (gone, marks, unmarks) = {
            let items = all.iter().enumerate().map(|(order, one)| {
                let time = at(one.hour);
                Item {
                    time,
                    stored: time,
                    taken: time,
                    stored_bytes: 1,
                    ..Item::new(order, &one.id, &one.events, (&parts, &parts))
                }
            });
            let judged = judge(items.collect(), &Unconstrained, &self.policy, now);
            if judged.burst.is_some() {
                return false;
            }
            let gone = judged.items.iter().filter(|i| i.fate == Fate::Delete);
            let gone: BTreeSet<BackupId> = gone.map(|i| i.id.clone()).collect();
            (gone, judged.marks, judged.unmarks)
        };
        for one in all.iter_mut() {
            if marks.contains(&one.id) {
                one.events.push(event("expire", now));
            }
            for (_, name) in unmarks.iter().filter(|(id, _)| *id == one.id) {
                let mut unmark = event("unexpire", now);
                unmark.event.ends = Some(name.clone());
                one.events.push(unmark);
            }
        }
        all.retain(|one| !gone.contains(&one.id));
        true
    }
}

/// A check reads back each backup that none has read yet.
fn check(all: &mut [Taken], hour: u64) {
    for one in all {
        if one.events.iter().all(|e| e.event.event != "verified") {
            one.events.push(event("verified", at(hour)));
        }
    }
}

fn counted(last: u32, daily: u32, weekly: u32, monthly: u32) -> Retention {
    let some = |count: u32| (count > 0).then_some(count);
    Retention {
        last: some(last),
        daily: some(daily),
        weekly: some(weekly),
        monthly: some(monthly),
        ..Retention::default()
    }
}

/// How many random histories a test lives.
fn count() -> u64 {
    number_of("PITR_EXPIRY_HISTORIES", 20_000).div_ceil(1000)
}

#[test]
fn x70_expire_goes_on_where_backups_keep_the_pace_of_the_documented_rules() {
    let within = |days: u32| Retention {
        within: Some(HOUR * 24 * days),
        ..Retention::default()
    };
    // Those of sizing.md, retention.md, README and redis.md.
    let documented = [
        counted(24, 14, 0, 0),
        counted(24, 30, 0, 0),
        counted(0, 30, 12, 12),
        counted(14, 0, 0, 0),
        within(14),
        within(2),
    ];
    for rules in documented {
        for (backup, expire) in [(1, 24), (1, 6), (24, 24)] {
            let steady = Steady::new(rules.clone(), backup, expire);
            let (_, gone, stopped) = steady.live(30 * DAY);
            let case = format!("{rules:?}, one each {backup} h, expired each {expire} h");
            assert_eq!(stopped, 0, "{case}");
            let is_thinned = backup == 1 || rules.last == Some(14) || rules.within.is_some();
            assert!(gone > 0 || !is_thinned, "{case}");
        }
    }
}

#[test]
fn x70_expire_goes_on_whatever_the_rules_and_the_pace_are() {
    let mut all_gone = 0;
    for seed in 1..=count() {
        let (mut steady, mut dice) = Steady::some(seed);
        let last = [1, 2, 3, 5, 7, 10, 14, 24, 30, 48, 60];
        steady.policy.rules.last = Some(last[dice.roll(11) as usize]);
        steady.backup = [1, 1, 2, 4, 6, 12, 24][dice.roll(7) as usize];
        steady.has_pins = dice.one_in(4);
        // The newest verified backup stays alone of its day where no age is asked, until there is a newer one.
        steady.policy.min_age = steady.policy.min_age.max(HOUR * 6);
        if dice.one_in(3) {
            steady.outage = 20 * DAY..22 * DAY + dice.roll(300);
        }
        let (_, gone, stopped) = steady.live(40 * DAY);
        let (rules, pace) = (&steady.policy.rules, steady.backup);
        assert_eq!(stopped, 0, "seed {seed}, one each {pace} h: {rules:?}");
        all_gone += gone;
    }
    assert!(all_gone > 1000, "{all_gone}");
}

/// Older backups go no faster than by about one a day while a burst goes on, whatever rules of periods are beside `keep_last`.
#[test]
fn x70_a_burst_of_some_days_pushes_little_out() {
    let mut stops = 0;
    for seed in 1..=count() {
        let (mut steady, mut dice) = Steady::some(seed);
        steady.policy.rules.last = Some(8 + dice.roll(53) as u32);
        let days = 1 + dice.roll(6);
        let (before, ..) = steady.live(BURST_BEGIN);
        steady.burst = BURST_BEGIN..BURST_BEGIN + days * DAY;
        let (left, _, stopped) = steady.live(BURST_BEGIN + (days + 1) * DAY);
        stops += stopped;
        let left: BTreeSet<BackupId> = left.into_iter().map(|one| one.id).collect();
        let lost = before.iter().filter(|one| !left.contains(&one.id)).count();
        let rules = &steady.policy.rules;
        assert!(
            lost as u64 <= days + 4,
            "seed {seed}: {lost} of {} in {days} days: {rules:?}",
            before.len()
        );
    }
    assert!(stops > count(), "{stops}");
}
