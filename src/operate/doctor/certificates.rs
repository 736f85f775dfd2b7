//! How long certificates are valid still: those that this host shows, and those that stores show it.

use std::time::Duration;

use super::{Findings, Session, Settings};
use crate::operate::{certificates, human};
use crate::pg::time::TimestampTz;

/// A certificate that ends within this time is a warning, and a failure.
const WARN: Duration = Duration::from_secs(21 * 86_400);
const FAIL: Duration = Duration::from_secs(3 * 86_400);

/// Looks at the files of certificates that this host shows to servers, and to those who ask its agent.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    found.begin("certificates");
    for (path, end) in certificates::expiries_of_shown(settings) {
        let name = path.display().to_string();
        let value = format!("ends {}", human::time(end));
        let cause = "from then on nobody who verifies it lets this host in, or asks its agent";
        let next = "renew it, then have the agent read it: systemctl reload pitr-agent";
        judge(found, (&name, end), value, (cause, next), session);
    }
}

/// Adds what the end of a certificate means.
pub(super) fn judge(
    found: &mut Findings,
    (name, end): (&str, TimestampTz),
    value: String,
    (cause, next): (&str, &str),
    session: &Session,
) {
    let left = end.duration_since(session.host.now()).unwrap_or_default();
    if left < FAIL {
        found.fail(name, value, cause, next);
    } else if left < WARN {
        found.warn(name, value, cause, next);
    } else {
        found.ok(name, value);
    }
}
