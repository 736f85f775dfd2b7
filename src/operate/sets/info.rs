//! The marks of a set, and which of them can be reached.

use std::sync::Arc;

use serde::Serialize;

use super::plan::{self, AskedMoment, AskedRecovery};
use super::{cluster, configured};
use crate::config::{MemberKind, RecoverySet, SetMember, Settings};
use crate::error::{Code, Result};
use crate::operate::away::Away;
use crate::operate::pacing::Pacing;
use crate::operate::reading::Reading;
use crate::operate::redis;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::plan::sets::Extent;
use crate::progress::Silent;
use crate::repo::set_mark::Level;

/// Marks that are planned, the newest: a plan reads the repository.
const PLANNED: usize = 10;

/// A mark.
#[derive(Debug, Serialize)]
pub struct MarkInfo {
    /// Its name.
    pub id: String,
    /// The operator's text.
    pub label: Option<String>,
    /// When every member had answered.
    pub time: TimestampTz,
    /// The exactness.
    pub level: Level,
    /// Whether every member has stored what it names; none where nobody looked.
    pub settled: Option<bool>,
    /// The members that it waits for, or why it is no target.
    pub why: Vec<String>,
}

/// A stretch of time that every member with a log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Its first moment.
    pub from: TimestampTz,
    /// Its last one.
    pub to: TimestampTz,
}

/// A set.
#[derive(Serialize)]
pub struct SetInfo {
    /// Its name.
    pub set: String,
    /// Its members.
    pub members: Vec<SetMember>,
    /// The stretches of time that are reached, oldest first; files come as of the nearest backup.
    pub spans: Vec<Span>,
    /// The marks, newest first.
    pub marks: Vec<MarkInfo>,
    /// Whether there are older marks.
    pub is_cut: bool,
    /// Events that are no marks, and why not.
    pub refused: Vec<(String, String)>,
}

/// Looks at a set.
///
/// # Errors
/// `Usage`; those of the repositories.
pub fn run(session: &Session, name: Option<&str>, limit: usize) -> Result<SetInfo> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, name)?;
    let found = plan::marks(session, set, limit)?;
    let mut marks = Vec::new();
    for (number, mark) in found.marks.iter().enumerate() {
        let (settled, why) = match number < PLANNED {
            true => settled(session, set, &mark.id)?,
            false => (None, Vec::new()),
        };
        marks.push(MarkInfo {
            id: mark.id.clone(),
            label: mark.label.clone(),
            time: mark.ended,
            level: mark.level,
            settled,
            why,
        });
    }
    Ok(SetInfo {
        set: set.name.clone(),
        members: set.members.clone(),
        spans: spans(session, &settings, set)?,
        marks,
        is_cut: found.is_cut,
        refused: found.refused,
    })
}

fn settled(session: &Session, set: &RecoverySet, id: &str) -> Result<(Option<bool>, Vec<String>)> {
    let asked = AskedRecovery {
        set: Some(set.name.clone()),
        extent: Extent::Full,
        moment: AskedMoment::Mark(id.to_owned()),
        with_erasures: false,
        after_stop: false,
        from_standby: false,
    };
    // A mark that waits is no trouble of a repository.
    let quiet = Session {
        host: session.host.with_progress(Arc::new(Silent)),
        environment: session.environment.clone(),
        flags: session.flags.clone(),
        system_identifier: session.system_identifier,
        followed: session.followed,
        away: Away::default(),
        pacing: Pacing::limited(None),
    };
    match plan::run(&quiet, &asked) {
        Ok(planned) => {
            let members = planned.plan.members.iter();
            let why =
                members.filter_map(|one| Some(format!("{}: {}", one.member, one.why.as_ref()?)));
            Ok((Some(planned.plan.reachable), why.collect()))
        }
        Err(e) if matches!(e.code(), Code::OutOfReach | Code::NotFound) => {
            Ok((Some(false), vec![e.to_string()]))
        }
        Err(e) => Err(e),
    }
}

/// The stretches that all members with a log have in common; of a set without such members there are none.
fn spans(session: &Session, settings: &Settings, set: &RecoverySet) -> Result<Vec<Span>> {
    let mut common: Option<Vec<Span>> = None;
    for member in &set.members {
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

/// From each base on to the end of what is stored without a gap.
fn of_redis(session: &Session, member: &SetMember) -> Result<Vec<Span>> {
    let info = redis::info::run(session, &member.name, false)?;
    let windows = redis::windows::of(session, &member.name, info.as_ref())?;
    let spans = windows.iter().map(|window| Span {
        from: window.from_time,
        to: window.to_time,
    });
    Ok(spans.collect())
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
}
