//! The agent of this host: whether it could take the configuration.

use super::{Findings, Session, Settings};
use crate::operate::agent_trouble;

/// Tells of a configuration that the agent could not take.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    let place = settings.state_dir(&session.environment);
    if let Some(trouble) = place.and_then(|place| agent_trouble::read(&place)) {
        found.begin("agent");
        found.fail(
            "configuration",
            trouble.meaning(),
            trouble.error,
            "mend the file; then start the agent again, or: systemctl reload pitr-agent",
        );
    }
}
