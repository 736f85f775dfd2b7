//! The repositories in turn: first the one that was drilled longest ago.

use crate::err;
use crate::error::Result;
use crate::operate::opened::{self, Opened};
use crate::operate::reading::Reading;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::drilled;
use crate::repo::event;

/// Sessions in which one repository alone is asked, and that repository, the one that is due in front. So a drill proves that this one leads to the moment by itself.
///
/// # Errors
/// That of the first repository, where none can be opened.
pub(super) fn due(session: &Session) -> Result<Vec<(Session, Opened)>> {
    let settings = session.settings()?;
    let names = settings.repositories.iter().map(|r| r.name.clone());
    let names: Vec<String> = names.collect();
    if session.flags.repository.is_some() || names.len() < 2 {
        let own = narrowed(session, session.flags.repository.clone());
        let opened = opened::open(&own, Reading::open(&own)?)?;
        return Ok(vec![(own, opened)]);
    }
    let mut due: Vec<(Option<TimestampTz>, Session, Opened)> = Vec::new();
    let mut failed = None;
    for name in names {
        let own = narrowed(session, Some(name.clone()));
        match look(&own) {
            Ok((drilled, opened)) => due.push((drilled, own, opened)),
            Err(e) => {
                session.warn(&format!("repository \"{name}\" cannot be drilled: {e}"));
                failed.get_or_insert(e);
            }
        }
    }
    if due.is_empty() {
        return Err(failed.unwrap_or_else(|| err!(Config, "no repository is configured")));
    }
    due.sort_by_key(|(drilled, ..)| *drilled);
    let due = due.into_iter().map(|(_, own, opened)| (own, opened));
    Ok(due.collect())
}

/// Opens a repository, and finds when it was drilled last.
fn look(session: &Session) -> Result<(Option<TimestampTz>, Opened)> {
    let opened = opened::open(session, Reading::open(session)?)?;
    let store = opened.reading.repository.store();
    let drills = drilled::newest(store, &opened.layout, &event::host())?;
    Ok((drills.newest.map(|held| held.time), opened))
}

fn narrowed(session: &Session, repository: Option<String>) -> Session {
    let mut own = session.again();
    own.flags.repository = repository;
    own.system_identifier = session.system_identifier;
    own
}
