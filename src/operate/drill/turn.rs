//! The repository whose turn it is: the one that was drilled longest ago.

use crate::err;
use crate::error::Result;
use crate::operate::away::Away;
use crate::operate::opened::{self, Opened};
use crate::operate::pacing::Pacing;
use crate::operate::reading::Reading;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::drilled;
use crate::repo::event;

/// A session in which one repository alone is asked, and that repository. So a drill proves that this one leads to the moment by itself.
///
/// # Errors
/// That of the first repository, where none can be opened.
pub(super) fn next(session: &Session) -> Result<(Session, Opened)> {
    let settings = session.settings()?;
    let names: Vec<String> = settings
        .repositories
        .iter()
        .map(|r| r.name.clone())
        .collect();
    if session.flags.repository.is_some() || names.len() < 2 {
        let own = narrowed(session, session.flags.repository.clone());
        let opened = opened::open(&own, Reading::open(&own)?)?;
        return Ok((own, opened));
    }
    let mut due: Option<(Option<TimestampTz>, Session, Opened)> = None;
    let mut failed = None;
    for name in names {
        let own = narrowed(session, Some(name.clone()));
        match look(&own) {
            Ok((drilled, opened)) => {
                if due.as_ref().is_none_or(|(time, ..)| drilled < *time) {
                    due = Some((drilled, own, opened));
                }
            }
            Err(e) => {
                session.warn(&format!("repository \"{name}\" cannot be drilled: {e}"));
                failed.get_or_insert(e);
            }
        }
    }
    match due {
        Some((_, own, opened)) => Ok((own, opened)),
        None => Err(failed.unwrap_or_else(|| err!(Config, "no repository is configured"))),
    }
}

/// Opens a repository, and finds when it was drilled last.
fn look(session: &Session) -> Result<(Option<TimestampTz>, Opened)> {
    let opened = opened::open(session, Reading::open(session)?)?;
    let store = opened.reading.repository.store();
    let drills = drilled::newest(store, &opened.layout, &event::host())?;
    Ok((drills.newest.map(|held| held.time), opened))
}

fn narrowed(session: &Session, repository: Option<String>) -> Session {
    let mut flags = session.flags.clone();
    flags.repository = repository;
    Session {
        host: session.host.clone(),
        environment: session.environment.clone(),
        flags,
        system_identifier: session.system_identifier,
        followed: session.followed,
        away: Away::default(),
        pacing: Pacing::limited(None),
    }
}
