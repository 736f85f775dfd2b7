//! An agent that does not start, because its configuration is wrong: whom it tells.
//!
//! The sinks are those that can be read of the wrong file, and all others of the copy that the agent before kept. The notices that
//! were taken are remembered, so that a service which is started again and again tells once.

use super::alert::{self, Notices};
use super::in_force;
use super::load::Check;
use super::supervise;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::operate::agent_trouble;
use crate::operate::counters::make;
use crate::operate::session::Session;

/// Notes that the agent did not start, and has the sinks told. While another agent runs, that one tells.
pub fn tell(session: &Session, check: Check, error: &Error) {
    let readable = Settings::readable(&session.flags, &session.environment);
    let Some(state_dir) = readable.state_dir(&session.environment) else {
        return;
    };
    if supervise::is_running(&state_dir) {
        return;
    }
    let before = in_force::before(session, check, &state_dir).map(|loaded| loaded.settings);
    let settings = with_sinks(readable, before.ok());
    let told = || -> Result<()> {
        make(&state_dir)?;
        agent_trouble::note(session, &state_dir, Some((&error.to_string(), false)))?;
        let notices = Notices::of(&state_dir, None);
        let Some(turn) = notices.turn() else {
            return Ok(());
        };
        let conditions = alert::of_start(session, &notices, error);
        alert::tell(
            session,
            (&settings, false),
            (&notices, &turn),
            conditions,
            None,
        )
    };
    if let Err(e) = told() {
        session.warn(&format!("nobody may have been told of it: {e}"));
    }
}

/// Adds the sinks of the configuration before that cannot be read of the file.
fn with_sinks(mut readable: Settings, before: Option<Settings>) -> Settings {
    let Some(before) = before else {
        return readable;
    };
    if readable.alerts.is_empty() {
        return before;
    }
    for sink in before.alerts {
        if readable.alerts.iter().all(|known| known.name != sink.name) {
            readable.alerts.push(sink);
        }
    }
    readable
}
