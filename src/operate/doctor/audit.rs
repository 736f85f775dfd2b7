//! The audit log of this host: records that no repository has yet, and the age of anchors and checks.

use std::time::Duration;

use super::{Findings, Session, Settings};
use crate::config::Records;
use crate::operate::audit::Spool;
use crate::operate::counters::{self, Counters};
use crate::operate::human;
use crate::pg::time::TimestampTz;

/// Looks at the records that wait on this host.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    if settings.audit.records == Records::Off {
        return;
    }
    found.begin("audit");
    let Some(place) = settings.state_dir(&session.environment) else {
        return found.fail(
            "log",
            "no place",
            "no command of this host is recorded",
            "set state_dir in [agent]",
        );
    };
    let Some(spool) = Spool::existing(&place, settings) else {
        return found.ok("log", "no command was recorded on this host yet");
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
    if let Ok(Some(counters)) = counters::read(session, settings) {
        ages(found, &counters, session.host.now());
    }
}

/// Tells when this host made an anchor and a check last. One that it never made may be another host's matter.
fn ages(found: &mut Findings, counters: &Counters, now: TimestampTz) {
    let each = [
        ("anchor", counters::AUDIT_ANCHOR, counters::ANCHOR_DAYS),
        ("check", counters::AUDIT_VERIFY, counters::AUDIT_VERIFY_DAYS),
    ];
    for (name, command, days) in each {
        let Some(last) = counters.last(command, "") else {
            found.ok(name, "none by this host");
            continue;
        };
        let at = human::time(last);
        let age = now.duration_since(last).unwrap_or_default();
        match age > Duration::from_secs(days * 86_400) {
            false => found.ok(name, at),
            true => found.warn(
                name,
                format!("{at}, {} ago", human::duration(age)),
                "what is removed from the audit log since then may go unseen",
                format!("pitr {command}"),
            ),
        }
    }
}
