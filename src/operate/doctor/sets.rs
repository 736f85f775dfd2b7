//! Recovery sets: whether marks arrive in all members, and whether the instructions that are stored with them are those of now.

use super::Findings;
use crate::config::Settings;
use crate::error::Code;
use crate::operate::human;
use crate::operate::session::Session;
use crate::operate::sets::watch::{self, Watched};

/// Looks at each configured set.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    if settings.repositories.is_empty() {
        return;
    }
    found.begin("sets");
    for (name, watched) in watch::all(session, settings) {
        let title = format!("{name} marks");
        match watched {
            Ok(watched) => {
                marks(found, &title, &watched, session);
                runbook(found, &watched);
            }
            Err(e) if e.code() == Code::Key => found.warn(
                &title,
                "not judged",
                e.to_string(),
                "run pitr doctor where a key reads the repositories",
            ),
            Err(e) => found.error(&title, &e),
        }
    }
}

fn marks(found: &mut Findings, title: &str, watched: &Watched, session: &Session) {
    let (set, now) = (&watched.set, session.host.now());
    if watched.count == 0 {
        let advice = format!("none yet; pitr mark {set} --every 1min makes one each minute");
        return found.ok(title, advice);
    }
    let age = watched.settled.and_then(|at| now.duration_since(at));
    let value = age.map_or_else(
        || "none is settled".to_owned(),
        |age| format!("the newest settled one is {} old", human::duration(age)),
    );
    let waits = match watched.why.as_slice() {
        [] => "marks come no more".to_owned(),
        why => format!("the newest one waits: {}", why.join("; ")),
    };
    let next = format!("pitr info --set {set}");
    // As of backups, the configured limit alone is judged here.
    match watched.max_age {
        Some(limit) if watched.overdue(limit, now).is_some() => {
            found.fail(title, value, waits, next);
        }
        _ if watched.settled.is_none() => found.warn(title, value, waits, next),
        _ => found.ok(title, value),
    }
}

fn runbook(found: &mut Findings, watched: &Watched) {
    let (set, title) = (&watched.set, format!("{} runbook", watched.set));
    match watched.runbook_is_current {
        None => {}
        Some(true) => found.ok(&title, "stored with the newest mark"),
        Some(false) => found.warn(
            &title,
            "the one that is stored with the newest mark is another one",
            "the configuration has changed since, or pitr mark runs with another one",
            format!("pitr mark {set}; start pitr mark --every again"),
        ),
    }
}
