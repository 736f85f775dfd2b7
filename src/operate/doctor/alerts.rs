//! The alert sinks: whether they took what the agent of this host sent last.

use super::{Findings, Session, Settings};
use crate::operate::failing_sinks;
use crate::operate::human;

/// Looks at the deliveries that the agent noted.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    let place = settings.state_dir(&session.environment);
    let Some(place) = place.filter(|_| !settings.alerts.is_empty()) else {
        return;
    };
    found.begin("alerts");
    let failing = match failing_sinks::read(settings, &place) {
        Ok(failing) => failing,
        Err(e) => return found.error("deliveries", &e),
    };
    for sink in &settings.alerts {
        let name = sink.name.as_str();
        match failing.get(name) {
            None => found.ok(name, "no delivery failed lately"),
            Some(failing) => found.fail(
                name,
                format!("takes nothing since {}", human::time(failing.since)),
                failing.error.clone(),
                format!("pitr alert test --sink {name}"),
            ),
        }
    }
}
