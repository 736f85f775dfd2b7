//! Ids under which no backup exists: one that is being taken, one that was given up, one whose root is lost.

use super::rules::mark_state;
use super::{LEFTOVER_AGE, Policy, is_over};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::catalog::Subject;
use crate::repo::event::{self, live_claims};

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
pub fn unborn<R>(subject: &Subject<R>, policy_grace: &Policy, now: TimestampTz) -> Unborn {
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
fn unborn_again<R>(subject: &Subject<R>, policy: &Policy, now: TimestampTz) -> Option<Unborn> {
    let completed = event::completed(&subject.events)?;
    let is_due = mark_state(&subject.events, policy, now) == Some(None);
    if is_due && live_claims(&subject.events, now).is_empty() {
        return Some(Unborn::Leftover);
    }
    Some(Unborn::Running(completed.start.into_iter().collect()))
}
