//! The log of a server, as the repositories have it.

use crate::error::{Error, Result};
use crate::operate::search;
use crate::operate::session::Session;
use crate::redis::kind::NAME;
use crate::redis::overview::{self, Line};
use crate::repo::scope::Scope;

/// The log of a server, in one repository.
pub struct Info {
    pub repository: String,
    /// The histories, the oldest first.
    pub histories: Vec<Line>,
}

/// Reads the log of a server in the first repository that has any of it; none where none has. `with_commands` looks for what somebody may want to go back before.
/// A damaged object of it is a warning: what it would tell is not known.
///
/// # Errors
/// The error of the first repository that failed, where no other one has any.
pub fn run(session: &Session, name: &str, with_commands: bool) -> Result<Option<Info>> {
    let scope = Scope::aux(NAME, name)?;
    search::look_in_first(session, |repository, configured| {
        let passes = |e: Error| {
            session.warn(&e.to_string());
            Ok(())
        };
        let histories = overview::read(&repository, &scope, with_commands, &passes)?;
        Ok((!histories.is_empty()).then_some(Info {
            repository: configured.name,
            histories,
        }))
    })
}
