//! The audit log of this host: records that no repository has yet.

use super::{Findings, Session, Settings};
use crate::config::Records;
use crate::operate::audit::Spool;
use crate::operate::human;

/// Looks at the records that wait on this host.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    if settings.audit.records == Records::Off {
        return;
    }
    found.begin("audit");
    let Some(place) = settings.state_dir(&session.environment) else {
        found.fail(
            "log",
            "no place",
            "no command of this host is recorded",
            "set state_dir in [agent]",
        );
        return;
    };
    let Some(spool) = Spool::existing(&place, settings) else {
        found.ok("log", "no command was recorded on this host yet");
        return;
    };
    for configured in &settings.repositories {
        let name = configured.name.as_str();
        match spool.waiting(configured) {
            Ok(0) => found.ok(name, "has every record of this host"),
            Ok(count) => found.warn(
                name,
                format!("{} on this host", human::count(count as u64, "record")),
                "they go there with the next recorded command that may create objects below audit/",
                "pitr audit anchor; where access is denied: allow PutObject below audit/ (pitr init --role)",
            ),
            Err(e) => found.error(name, &e),
        }
    }
}
