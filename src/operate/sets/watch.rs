//! The marks of a set, as those see them who watch over it: `pitr doctor`, metrics and alerts.

use std::time::Duration;

use super::info;
use super::{configured, runbook, scope};
use crate::config::{MemberKind, RecoverySet, Settings};
use crate::error::Result;
use crate::operate::search;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::runbook as stored_runbook;
use crate::repo::set_mark::{self, Mark, Place};

const HOUR: Duration = Duration::from_secs(3600);
/// Files settle with their next backup: one each day, and the time that it takes.
const DAY: Duration = Duration::from_secs(26 * 3600);
/// The newest marks that tell the rhythm: seven pauses lie between them.
const RHYTHM: usize = 8;
/// Fewer marks have no rhythm.
const RHYTHM_MIN: usize = 3;
/// Marks that are planned at most: a plan reads the repository.
const PLANNED: usize = 14;

/// The marks of a set.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Its name.
    pub set: String,
    /// How many events are there.
    pub count: usize,
    /// The time of the newest mark.
    pub newest: Option<TimestampTz>,
    /// The time of the newest mark that was found settled.
    pub settled: Option<TimestampTz>,
    /// The members that the newest mark waits for, or why it is no target.
    pub why: Vec<String>,
    /// The longest pause of late between marks without a label; none without a rhythm.
    pub pause: Option<Duration>,
    /// Whether members settle with their next backup.
    pub has_backups: bool,
    /// The largest age that the configuration allows.
    pub max_age: Option<Duration>,
    /// Whether the instructions that are stored with the newest mark are those of this configuration.
    pub runbook_is_current: Option<bool>,
}

impl Watched {
    /// The age at which the newest settled mark is too old: that of the configuration, else the longest pause of late, and two hours. Marks that are made by hand
    /// have none.
    pub fn limit(&self) -> Option<Duration> {
        let shortest = if self.has_backups { DAY } else { HOUR * 2 };
        let usual = |pause: Duration| pause.saturating_add(HOUR * 2).max(shortest);
        self.max_age.or_else(|| self.pause.map(usual))
    }

    /// The age of the newest settled mark, where it is too old: none within that says that no settled one was found.
    pub fn overdue(&self, limit: Duration, now: TimestampTz) -> Option<Option<Duration>> {
        let age = self
            .settled
            .map(|at| now.duration_since(at).unwrap_or_default());
        (self.count > 0 && age.is_none_or(|age| age > limit)).then_some(age)
    }
}

/// Looks at the marks of each configured set.
pub fn all(session: &Session, settings: &Settings) -> Vec<(String, Result<Watched>)> {
    let sets = settings.sets.iter();
    sets.map(|set| (set.name.clone(), look(session, settings, &set.name)))
        .collect()
}

fn look(session: &Session, settings: &Settings, name: &str) -> Result<Watched> {
    let set = configured(settings, Some(name))?;
    let has_backups = |kind| matches!(kind, MemberKind::Files | MemberKind::Config);
    let mut watched = Watched {
        set: set.name.clone(),
        has_backups: set.members.iter().any(|member| has_backups(member.kind)),
        max_age: set.max_mark_age.map(crate::config::Period::duration),
        ..Watched::default()
    };
    let quiet = info::quiet(session);
    let scope = scope(set)?;
    let text = runbook::to_store(settings, set);
    // The first repository that has marks: a writer makes each of them in all.
    let found = search::look_in_first(&quiet, |repository, _| {
        let store = repository.store();
        let places = set_mark::places(store, &scope)?;
        let Some(behind) = places.len().checked_sub(1) else {
            return Ok(None);
        };
        let lately = places.get(behind.saturating_sub(RHYTHM - 1)..);
        let lately = lately.unwrap_or_default();
        let lately = set_mark::read_at(store, &scope, lately, &quiet.host)?.marks;
        let hash = stored_runbook::hash(store, &text)?;
        Ok(Some((places, lately, hash)))
    })?;
    let Some((places, lately, hash)) = found else {
        return Ok(watched);
    };
    watched.count = places.len();
    watched.pause = pause(&lately);
    watched.newest = lately.last().map(|mark| mark.ended);
    let runbook = lately.last().and_then(|mark| mark.runbook.as_ref());
    watched.runbook_is_current = runbook.map(|own| *own == hash);
    let mut newest_first = places;
    newest_first.reverse();
    let mut judge = |at: usize| -> Result<Option<TimestampTz>> {
        let Some(place) = newest_first.get(at) else {
            return Ok(None);
        };
        let (settled, why) = settled(&quiet, set, place)?;
        if at == 0 {
            watched.why = why;
        }
        Ok(settled)
    };
    watched.settled = first_settled(newest_first.len(), &mut judge)?;
    Ok(watched)
}

/// Returns the time of a mark that is settled, and else the members that it waits for.
fn settled(
    session: &Session,
    set: &RecoverySet,
    place: &Place,
) -> Result<(Option<TimestampTz>, Vec<String>)> {
    let found = search::look_in_first(session, |repository, _| {
        let places = std::slice::from_ref(place);
        let marks = set_mark::read_at(repository.store(), &scope(set)?, places, &session.host)?;
        Ok(marks.marks.into_iter().next())
    })?;
    let Some(mark) = found else {
        return Ok((None, vec!["it is no mark".to_owned()]));
    };
    let (is_settled, why) = info::settled(session, set, &mark.id)?;
    Ok(((is_settled == Some(true)).then_some(mark.ended), why))
}

/// Finds the newest settled mark of so many, newest first, by steps that grow, and then between the last two. A mark behind a settled one is settled, too, but for
/// gaps; each that is returned was planned.
fn first_settled(
    count: usize,
    judge: &mut dyn FnMut(usize) -> Result<Option<TimestampTz>>,
) -> Result<Option<TimestampTz>> {
    let (mut waits, mut at, mut found) = (None, 0, None);
    for _ in 0..PLANNED {
        if at >= count {
            break;
        }
        let settled = judge(at)?;
        match (settled, found) {
            (Some(time), _) => found = Some((at, time)),
            (None, _) => waits = Some(at),
        }
        let first_open = waits.map_or(0, |at| at + 1);
        at = match found {
            Some((settled, _)) if settled <= first_open => break,
            Some((settled, _)) => first_open.midpoint(settled),
            // The oldest one is looked at, too.
            None => (first_open * 2).min((count - 1).max(first_open)),
        };
    }
    Ok(found.map(|(_, time)| time))
}

/// Pure: the longest pause between marks without a label, which are made by a timer; none for too few.
fn pause(marks: &[Mark]) -> Option<Duration> {
    let own = marks.iter().filter(|mark| mark.label.is_none());
    let times: Vec<TimestampTz> = own.map(|mark| mark.ended).collect();
    let pauses = times.iter().zip(times.iter().skip(1));
    let pauses = pauses.filter_map(|(before, after)| after.duration_since(*before));
    pauses.max().filter(|_| times.len() >= RHYTHM_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u32) -> TimestampTz {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        start.saturating_add(Duration::from_secs(60) * minutes)
    }

    #[test]
    fn the_newest_settled_mark_is_found_with_few_plans() {
        for count in [1, 2, 3, 10, 1000, 10_080] {
            for first in [0, 1, 2, 5, 6, 7, 300, 999, 5000, 10_079, 10_080] {
                let mut planned = 0;
                let mut judge = |n: usize| {
                    planned += 1;
                    assert!(n < count);
                    Ok((n >= first).then(|| at(u32::try_from(count - n).unwrap())))
                };
                let found = first_settled(count, &mut judge).unwrap();
                assert!(planned <= PLANNED);
                let exact = (first < count).then(|| at(u32::try_from(count - first).unwrap()));
                // Far back the search ends before it is exact, and names an older one that is settled.
                match first < 64 {
                    true => assert_eq!(found, exact, "{count} {first}"),
                    false => assert!(found <= exact, "{count} {first}"),
                }
                assert!(first >= count || count < 1024 || first > 5000 || found.is_some());
            }
        }
    }

    #[test]
    fn the_limit_is_configured_or_follows_the_rhythm() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let watched = |pause, has_backups| Watched {
            count: 1,
            settled: Some(at(0)),
            pause,
            has_backups,
            ..Watched::default()
        };
        assert_eq!(watched(None, true).limit(), None);
        assert_eq!(watched(Some(minutes(1)), false).limit(), Some(minutes(121)));
        assert_eq!(watched(Some(minutes(1)), true).limit(), Some(DAY));
        let weekly = minutes(7 * 24 * 60);
        assert_eq!(watched(Some(weekly), true).limit(), Some(weekly + HOUR * 2));
        let strict = Watched {
            max_age: Some(minutes(5)),
            ..watched(Some(weekly), true)
        };
        assert_eq!(strict.limit(), Some(minutes(5)));
        assert_eq!(strict.overdue(minutes(5), at(5)), None);
        assert_eq!(strict.overdue(minutes(5), at(6)), Some(Some(minutes(6))));
        let waits = Watched {
            settled: None,
            ..strict.clone()
        };
        assert_eq!(waits.overdue(minutes(5), at(5)), Some(None));
        let none = Watched { count: 0, ..waits };
        assert_eq!(none.overdue(minutes(5), at(5)), None);
    }
}
