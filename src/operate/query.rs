//! A look at a moment: one statement on a clone, which is thrown away.

use std::path::Path;

use super::clone::{self, Asked, folder::State};
use super::session::Session;
use crate::error::Result;
use crate::wire::client::Rows;

/// Runs statements in a database of a clone below a directory; returns the rows of the last one, and what the clone was.
///
/// # Errors
/// Those of [`clone::for_a_while`]; `Server` for what the statement does wrong.
pub fn run(
    session: &Session,
    asked: &Asked,
    below: &Path,
    (database, sql): (&str, &str),
) -> Result<(Rows, State)> {
    clone::for_a_while(session, asked, (database, below), |_, running| {
        let rows = running.server.connect(database)?.query(sql)?;
        Ok((rows, running.state.clone()))
    })
}
