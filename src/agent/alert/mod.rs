//! Alerts: compares the conditions of now with the notices that were taken, and delivers the notices that are due.
//!
//! A condition counts as told to a sink once the sink took it. A notice that was not taken is offered again by the next look, so nothing is lost by a
//! sink that is away, and a sink that is away is a condition of its own.

pub mod condition;
pub mod decide;
mod http;
mod mail;
pub mod payload;
pub mod sink;

use std::path::Path;

use self::decide::{Book, Condition, Event, Notice};
use super::load::Loaded;
use crate::behalf;
use crate::config::{Settings, Severity, Sink};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::metrics::Metrics;
use crate::operate::session::Session;

/// The file of the notices that were taken, below `state_dir`.
const FILE: &str = "alerts.json";

/// The result of one delivery.
pub struct Tried {
    /// The sink.
    pub sink: String,
    /// Why it did not take it.
    pub failed: Option<Error>,
}

/// Collects everything that is wrong, sinks that take nothing among it.
pub fn conditions(session: &Session, loaded: &Loaded, metrics: &Metrics) -> Vec<Condition> {
    let mut conditions = condition::all(session, loaded, metrics);
    if !loaded.settings.alerts.is_empty() {
        let book = read(&loaded.state_dir.join(FILE), session);
        conditions.extend(book.failing.iter().map(condition::of_sink));
    }
    conditions
}

/// The conditions after a look that was given up: those of the look before, with the jobs and sinks of now.
pub fn unseen(session: &Session, loaded: &Loaded) -> Vec<Condition> {
    let book = read(&loaded.state_dir.join(FILE), session);
    let sinks: Vec<Condition> = book.failing.iter().map(condition::of_sink).collect();
    let mut conditions = vec![condition::of_given_up()];
    let before = book.open.iter().filter(|(_, open)| !open.is_over);
    let before = before.map(|(id, open)| open.condition(id));
    let is_known = |id: &str| condition::is_of_job(id) || condition::is_of_sink(id) || id == "look";
    conditions.extend(before.filter(|one| !is_known(&one.id)));
    conditions.extend(condition::of_jobs(session, loaded));
    conditions.extend(sinks);
    conditions
}

/// Has everybody told of what is new, goes on or has ended. A file of notices that cannot be written is a condition of its own, and hears nobody the less.
///
/// # Errors
/// Those of that file, behind the deliveries. A sink that fails is a condition.
pub fn tell(
    session: &Session,
    settings: &Settings,
    state_dir: &Path,
    mut conditions: Vec<Condition>,
) -> Result<()> {
    if settings.alerts.is_empty() {
        return Ok(());
    }
    let path = state_dir.join(FILE);
    let mut book = read(&path, session);
    let now = session.host.now();
    let mut notices = decide::decide(now, &conditions, &mut book, &settings.alerts);
    let mut kept = [write(&path, &book, session)];
    if let Some(one) = condition::of_state(&kept)
        && conditions.iter().all(|known| known.id != one.id)
    {
        conditions.push(one);
        notices = decide::decide(now, &conditions, &mut book, &settings.alerts);
    }
    for notice in notices {
        let Some(sink) = settings.alerts.iter().find(|s| s.name == notice.sink) else {
            continue;
        };
        let delivered = sink::deliver(sink, &notice, session);
        if let Err(e) = &delivered {
            session.warn(&format!("alert sink \"{}\": {e}", sink.name));
        }
        book.note(&notice, now, delivered.err().map(|e| e.to_string()));
        // After each one: a kill lets one notice come twice at most.
        kept = kept.map(|before| before.and(write(&path, &book, session)));
    }
    let [kept] = kept;
    kept
}

/// Sends a test to each sink, or to the one that is named.
///
/// # Errors
/// `Usage` for a sink that is not configured, and without any.
pub fn test(session: &Session, settings: &Settings, wanted: Option<&str>) -> Result<Vec<Tried>> {
    let is_meant = |sink: &&Sink| wanted.is_none_or(|name| name == sink.name);
    let sinks: Vec<&Sink> = settings.alerts.iter().filter(is_meant).collect();
    if sinks.is_empty() {
        return Err(match wanted {
            Some(name) => err!(
                Usage,
                "no alert sink \"{}\" is configured",
                name.escape_debug()
            ),
            None => err!(Config, "no alert sink is configured"),
        }
        .hint("Add [alerts.NAME] with its kind to the configuration: docs/agent.md."));
    }
    let try_one = |sink: &Sink| {
        let notice = Notice {
            sink: sink.name.clone(),
            event: Event::Test,
            id: "test".to_owned(),
            severity: Severity::Low,
            summary: "this is a test of pitr alert test: nothing is wrong".to_owned(),
            next: None,
            since: session.host.now(),
        };
        Tried {
            sink: sink.name.clone(),
            failed: sink::deliver(sink, &notice, session).err(),
        }
    };
    Ok(sinks.into_iter().map(try_one).collect())
}

/// Reads the notices that were taken, to show them.
pub fn told(session: &Session, state_dir: &Path) -> Book {
    read(&state_dir.join(FILE), session)
}

/// Reads the notices that were taken. A file that is damaged or cannot be read is given up: each sink gets all of them once more, and nothing is lost.
fn read(path: &Path, session: &Session) -> Book {
    let given_up = |e: &dyn std::fmt::Display| {
        session.warn(&format!(
            "\"{}\" cannot be read, and every alert is sent again: {e}",
            path.display()
        ));
        Book::default()
    };
    match behalf::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| given_up(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Book::default(),
        Err(e) => given_up(&e),
    }
}

fn write(path: &Path, book: &Book, session: &Session) -> Result<()> {
    let text = serde_json::to_vec(book)
        .map_err(|e| err!(Internal, "alerts cannot be written").source(e))?;
    let nonce = session.host.random();
    behalf::of(path, || durable::replace(path, &text, nonce))
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}
