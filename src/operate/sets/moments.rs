//! The moments that all members with a log reach.

use std::time::Duration;

use serde::Serialize;

use super::cluster;
use crate::config::{MemberKind, SetMember, Settings};
use crate::error::Result;
use crate::operate::reading::Reading;
use crate::operate::redis;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// A stretch of time that every member with a log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Its first moment.
    pub from: TimestampTz,
    /// Its last one.
    pub to: TimestampTz,
}

/// The stretches that these members have in common, as far as they have a log; where none has, there are none.
///
/// # Errors
/// Those of the repositories.
pub fn spans(session: &Session, settings: &Settings, members: &[SetMember]) -> Result<Vec<Span>> {
    let mut common: Option<Vec<Span>> = None;
    for member in members {
        let own = match member.kind {
            MemberKind::Cluster => of_cluster(session, settings, member)?,
            MemberKind::Redis => of_redis(session, member)?,
            MemberKind::Files | MemberKind::Config => continue,
        };
        common = Some(match common {
            None => own,
            Some(known) => both(&known, &own),
        });
    }
    Ok(common.unwrap_or_default())
}

fn of_cluster(session: &Session, settings: &Settings, member: &SetMember) -> Result<Vec<Span>> {
    cluster(settings, &member.name)?;
    let own = session.on_cluster(&member.name);
    let reading = Reading::open(&own)?;
    let inventory = reading.inventory(&own)?;
    let windows = reading.windows(&own, &inventory)?.windows;
    let spans = windows.iter().map(|window| Span {
        from: window.from,
        to: window.to,
    });
    Ok(joined(spans.collect()))
}

/// From each base on to the end of what is stored without a gap. The time of the last byte is none of it: more of that time may have been on its way.
fn of_redis(session: &Session, member: &SetMember) -> Result<Vec<Span>> {
    let info = redis::info::run(session, &member.name, false)?;
    let windows = redis::windows::of(session, &member.name, info.as_ref())?;
    let spans = windows.iter().map(|window| Span {
        from: window.from_time,
        to: window.to_time.saturating_sub(Duration::from_micros(1)),
    });
    Ok(joined(spans.collect()))
}

/// Joins stretches that touch, ascending.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.retain(|span| span.from <= span.to);
    spans.sort_by_key(|span| (span.from, span.to));
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => joined.push(span),
        }
    }
    joined
}

/// Pure: what two lists have in common.
fn both(one: &[Span], other: &[Span]) -> Vec<Span> {
    let mut common = Vec::new();
    for a in one {
        for b in other {
            let (from, to) = (a.from.max(b.from), a.to.min(b.to));
            if from <= to {
                common.push(Span { from, to });
            }
        }
    }
    joined(common)
}

/// Pure: the last of these moments at or before a time, and the first one behind it.
pub fn nearest(spans: &[Span], time: TimestampTz) -> (Option<TimestampTz>, Option<TimestampTz>) {
    let before = spans.iter().filter(|span| span.from <= time);
    let after = spans.iter().map(|span| span.from);
    (
        before.map(|span| span.to.min(time)).max(),
        after.filter(|from| *from > time).min(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: &str, to: &str) -> Span {
        let time = |text: &str| format!("2026-11-20T{text}:00Z").parse().unwrap();
        Span {
            from: time(from),
            to: time(to),
        }
    }

    #[test]
    fn members_have_those_moments_in_common_that_each_of_them_has() {
        let one = joined(vec![
            span("08:00", "09:00"),
            span("08:30", "10:00"),
            span("11:00", "12:00"),
        ]);
        assert_eq!(one, [span("08:00", "10:00"), span("11:00", "12:00")]);
        let other = [span("09:00", "11:30")];
        assert_eq!(
            both(&one, &other),
            [span("09:00", "10:00"), span("11:00", "11:30")]
        );
        assert!(both(&one, &[]).is_empty());
    }

    #[test]
    fn the_nearest_moments_are_those_around_a_gap() {
        let spans = [span("08:00", "09:00"), span("11:00", "12:00")];
        let at = |text: &str| span(text, text).from;
        let near = |text: &str| nearest(&spans, at(text));
        assert_eq!(near("10:00"), (Some(at("09:00")), Some(at("11:00"))));
        assert_eq!(near("11:30"), (Some(at("11:30")), None));
        assert_eq!(near("07:00"), (None, Some(at("08:00"))));
        assert_eq!(near("13:00"), (Some(at("12:00")), None));
        assert_eq!(nearest(&[], at("10:00")), (None, None));
    }
}
