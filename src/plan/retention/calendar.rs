//! Days, weeks, months and years of retention: which backup of each stays.
//!
//! A backup belongs to the period in which it ended, by the calendar of one zone. Each rule counts the periods that
//! have a backup, newest first, and looks at no other rule. It keeps the last backup of each period.

use std::collections::BTreeMap;

use chrono::{Datelike, Days, Months, NaiveDate};

use crate::config::Retention;
use crate::pg::time::TimestampTz;

/// A unit of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A calendar day, whatever its length.
    Day,
    /// An ISO week: it begins on Monday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Unit {
    /// The rules of the calendar, each with its unit and how many periods it counts.
    pub fn rules(rules: &Retention) -> impl Iterator<Item = (&'static str, Unit, usize)> {
        let all = [
            ("keep_daily", Unit::Day, rules.daily),
            ("keep_weekly", Unit::Week, rules.weekly),
            ("keep_monthly", Unit::Month, rules.monthly),
            ("keep_yearly", Unit::Year, rules.yearly),
        ];
        all.into_iter()
            .map(|(name, unit, count)| (name, unit, count.unwrap_or_default() as usize))
    }

    /// The first day of the period of a date.
    fn begin(self, date: NaiveDate) -> NaiveDate {
        let begin = match self {
            Unit::Day => Some(date),
            Unit::Week => {
                date.checked_sub_days(Days::new(date.weekday().num_days_from_monday().into()))
            }
            Unit::Month => date.with_day(1),
            Unit::Year => date.with_ordinal(1),
        };
        begin.unwrap_or(date)
    }

    /// The first day of the period so many periods later.
    fn later(self, begin: NaiveDate, periods: usize) -> Option<NaiveDate> {
        let number = u32::try_from(periods).ok()?;
        match self {
            Unit::Day => begin.checked_add_days(Days::new(number.into())),
            Unit::Week => begin.checked_add_days(Days::new(u64::from(number) * 7)),
            Unit::Month => begin.checked_add_months(Months::new(number)),
            Unit::Year => begin.checked_add_months(Months::new(number.checked_mul(12)?)),
        }
    }

    /// The period as people write it: `2026-11-20`, `2026-W47`, `2026-11`, `2026`.
    fn name(self, begin: NaiveDate) -> String {
        match self {
            Unit::Day => begin.to_string(),
            Unit::Week => {
                let week = begin.iso_week();
                format!("{}-W{:02}", week.year(), week.week())
            }
            Unit::Month => format!("{}-{:02}", begin.year(), begin.month()),
            Unit::Year => begin.year().to_string(),
        }
    }
}

/// A backup as the calendar sees it; they come in the order of backups.
#[derive(Debug, Clone, Copy)]
pub struct Dated {
    /// Its index among all items.
    pub at: usize,
    /// The day on which it ended.
    pub date: NaiveDate,
    /// It leads to the timeline that may be the cluster, and goes before one of a branch.
    pub is_followed: bool,
}

/// A backup that stands for a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// Its index among all items.
    pub at: usize,
    /// The period, and its number among those that are counted.
    pub reason: String,
    /// On this day the rule lets it go at the earliest; none while the period may still get a later backup.
    pub until: Option<NaiveDate>,
}

/// Returns the backups that stand for the newest `count` periods, newest first.
pub fn pick(unit: Unit, count: usize, dated: &[Dated], today: Option<NaiveDate>) -> Vec<Pick> {
    let mut periods: BTreeMap<NaiveDate, Dated> = BTreeMap::new();
    for one in dated {
        let last = periods.entry(unit.begin(one.date)).or_insert(*one);
        if one.is_followed >= last.is_followed {
            *last = *one;
        }
    }
    let newest = periods.keys().next_back().copied();
    let current = today.map(|day| unit.begin(day));
    let numbered = periods.into_iter().rev().take(count).enumerate();
    numbered
        .map(|(rank, (begin, one))| Pick {
            at: one.at,
            reason: format!("last of {} ({} of {count})", unit.name(begin), rank + 1),
            until: newest
                .filter(|_| current.is_some_and(|current| begin < current))
                .and_then(|newest| unit.later(newest, count - rank)),
        })
        .collect()
}

/// Tells which times belong to a longest run that never decreases. The others contradict the order in which they come.
pub fn in_order(times: &[TimestampTz]) -> Vec<bool> {
    // For each length of a run, the index of the smallest time that ends one; and for each time the one before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(times.len());
    for (at, time) in times.iter().enumerate() {
        let length = ends.partition_point(|end| times.get(*end).is_some_and(|t| t <= time));
        before.push(length.checked_sub(1).and_then(|l| ends.get(l)).copied());
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut is_in_order = vec![false; times.len()];
    let mut next = ends.last().copied();
    while let Some(at) = next {
        if let Some(mark) = is_in_order.get_mut(at) {
            *mark = true;
        }
        next = before.get(at).copied().flatten();
    }
    is_in_order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dated(dates: &[&str]) -> Vec<Dated> {
        let one = |(at, date): (usize, &&str)| Dated {
            at,
            date: date.parse().unwrap(),
            is_followed: true,
        };
        dates.iter().enumerate().map(one).collect()
    }

    fn reasons(unit: Unit, count: usize, dates: &[&str]) -> Vec<(usize, String)> {
        let picked = pick(unit, count, &dated(dates), None);
        picked.into_iter().map(|p| (p.at, p.reason)).collect()
    }

    #[test]
    fn the_last_of_each_period_stays_and_empty_periods_do_not_count() {
        let days = ["2026-08-31", "2026-10-01", "2026-10-31", "2026-11-02"];
        let text = |at: usize, reason: &str| (at, reason.to_owned());
        let months = [
            text(3, "last of 2026-11 (1 of 2)"),
            text(2, "last of 2026-10 (2 of 2)"),
        ];
        assert_eq!(reasons(Unit::Month, 2, &days), months);
        assert_eq!(
            reasons(Unit::Month, 3, &days).last(),
            Some(&text(0, "last of 2026-08 (3 of 3)"))
        );
        assert_eq!(
            reasons(Unit::Year, 1, &days),
            [text(3, "last of 2026 (1 of 1)")]
        );
        assert!(reasons(Unit::Day, 0, &days).is_empty());
    }

    #[test]
    fn weeks_are_those_of_iso_8601() {
        // Friday of the last week of 2026, Sunday of the same week in 2027, Monday of the next.
        let days = ["2027-01-01", "2027-01-03", "2027-01-04"];
        let weeks = reasons(Unit::Week, 9, &days);
        assert_eq!(weeks[0], (2, "last of 2027-W01 (1 of 9)".to_owned()));
        assert_eq!(weeks[1], (1, "last of 2026-W53 (2 of 9)".to_owned()));
        assert_eq!(weeks.len(), 2);
    }

    #[test]
    fn a_backup_of_a_branch_stands_for_a_period_only_where_no_other_does() {
        let mut days = dated(&["2026-10-01", "2026-10-31", "2026-11-01"]);
        days[1].is_followed = false;
        days[2].is_followed = false;
        let at: Vec<_> = pick(Unit::Month, 2, &days, None)
            .iter()
            .map(|p| p.at)
            .collect();
        assert_eq!(at, [2, 0]);
    }

    #[test]
    fn a_period_that_is_over_tells_when_it_goes_at_the_earliest() {
        let days = dated(&["2026-09-30", "2026-11-20"]);
        let today = "2026-11-22".parse().ok();
        let picked = pick(Unit::Month, 3, &days, today);
        let until: Vec<_> = picked
            .iter()
            .map(|p| p.until.map(|d| d.to_string()))
            .collect();
        // September is the second of three: two more months with backups let it go.
        assert_eq!(until, [None, Some("2027-01-01".to_owned())]);
    }

    #[test]
    fn times_that_contradict_their_order_are_told() {
        let told = |times: &[i64]| {
            let times: Vec<_> = times.iter().map(|t| TimestampTz(*t)).collect();
            in_order(&times)
        };
        assert_eq!(told(&[1, 2, 2, 3]), [true; 4]);
        assert_eq!(told(&[5, 6, 1, 7]), [true, true, false, true]);
        assert_eq!(told(&[1, 9, 2, 3]), [true, false, true, true]);
        assert_eq!(told(&[]), [false; 0]);
    }
}
