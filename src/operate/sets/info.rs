//! The marks of a set, and which of them can be reached.

use std::sync::Arc;

use serde::Serialize;

use super::configured;
use super::moments::{self, Span};
use super::plan::{self, AskedMoment, AskedRecovery};
use crate::config::{RecoverySet, SetMember};
use crate::error::{Code, Result};
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

/// A set.
#[derive(Serialize)]
pub struct SetInfo {
    /// Its name.
    pub set: String,
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
        spans: moments::spans(session, &settings, &set.members)?,
        marks,
        is_cut: found.is_cut,
        refused: found.refused,
    })
}

/// Plans a mark: whether it is settled, and the members that it waits for.
///
/// # Errors
/// Those of the repositories.
pub(super) fn settled(
    session: &Session,
    set: &RecoverySet,
    id: &str,
) -> Result<(Option<bool>, Vec<String>)> {
    let asked = AskedRecovery {
        set: Some(set.name.clone()),
        extent: Extent::Full,
        moment: AskedMoment::Mark(id.to_owned()),
        with_erasures: false,
        after_stop: false,
        from_standby: false,
        timelines: Vec::new(),
    };
    match plan::look(&quiet(session), &asked) {
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

/// The same session without a word: a mark that waits is no trouble of a repository.
pub(super) fn quiet(session: &Session) -> Session {
    Session {
        host: session.host.with_progress(Arc::new(Silent)),
        system_identifier: session.system_identifier,
        // A directory that hangs is waited for once.
        away: session.away.clone(),
        ..session.again()
    }
}
