//! Pins and legal holds of backups of other content than clusters: they stay, whatever retention says.

use serde::Serialize;

use super::failures::Failures;
use super::needs::Owner;
use super::pin::{Events, Kind, Plan, StandingPin, Stored, to_come};
use super::session::Session;
use super::target::AskedTarget;
use crate::config;
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;
use crate::repo::scope::Scope;
use crate::wal::inventory::Pin;

/// A pin to record; none of its fields for the end of all pins.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Why, for those who read it later.
    pub reason: String,
    /// The time at which the pin ends.
    pub until: Option<AskedTarget>,
}

/// A pin of content, or the end of pins.
#[derive(Serialize)]
pub struct Pinning {
    /// The content: `aux/<kind>/<name>`.
    pub scope: String,
    pub backup: BackupId,
    /// Why it is pinned; none where pins end.
    pub reason: Option<String>,
    /// The end of the pin; without one it stays until it is unpinned.
    pub until: Option<TimestampTz>,
    /// The repositories that have the backup.
    pub repositories: Vec<String>,
    /// Those that stand already; or those that end.
    pub pins: Vec<StandingPin>,
}

/// Reads the name of content, such as `files:uploads`.
///
/// # Errors
/// `Usage`.
pub fn scope(text: &str) -> Result<Scope> {
    let odd = || {
        err!(
            Usage,
            "\"{}\" names no content: KIND:NAME, such as files:uploads, redis:cache",
            text.escape_debug()
        )
    };
    let (kind, name) = text.split_once(':').ok_or_else(odd)?;
    Scope::aux(kind, name)
}

/// Looks what a pin would keep, or which pins would end.
///
/// # Errors
/// `NotFound` where no repository has the backup, and where there is no pin to end; `Usage` when the end is in the past; the first failure where a repository that
/// could not be asked may have it.
pub fn plan(
    session: &Session,
    (scope, id): (&Scope, &BackupId),
    wanted: Option<&Wanted>,
    kind: Kind,
) -> Result<Plan<Pinning>> {
    let (mut copies, mut failures) = (Vec::new(), Failures::default());
    for configured in session.settings_with_repositories()?.repositories {
        let found = copy(session, &configured, (scope, id), kind);
        let doing = format!("look into repository \"{}\"", configured.name);
        copies.extend(failures.note(found, doing).flatten());
    }
    failures.first_if(session, copies.is_empty())?;
    if copies.is_empty() {
        return Err(err!(
            NotFound,
            "no repository has backup \"{id}\" of \"{}\"",
            scope.prefix()
        )
        .hint("Nothing was changed. \"pitr info\" shows which backups there are."));
    }
    if wanted.is_none() {
        copies.retain(|(copy, was_held)| *was_held || !copy.pins.is_empty());
    }
    if copies.is_empty() {
        let what = match kind {
            Kind::Pin => "pinned",
            Kind::Hold => "on hold",
        };
        return Err(err!(NotFound, "backup \"{id}\" is not {what}")
            .hint("Nothing was changed. \"pitr info\" shows which backups are."));
    }
    let until = until(session, wanted)?;
    let pin = wanted.map(|wanted| (wanted.reason.clone(), until));
    let copies = copies.into_iter().map(|(copy, _)| copy).collect();
    let events = Events::new((id, kind), pin, (copies, failures));
    let shown = Pinning {
        scope: scope.prefix(),
        backup: id.clone(),
        reason: wanted.map(|wanted| wanted.reason.clone()),
        until,
        repositories: events.names(),
        pins: events.pins(session.host.now()),
    };
    Plan::new(shown, events)
}

/// Looks into one repository; none where it does not have the backup. Tells, where holds are meant, whether it was ever on hold: an unhold that was cut short goes on.
fn copy(
    session: &Session,
    configured: &config::Repository,
    (scope, id): (&Scope, &BackupId),
    kind: Kind,
) -> Result<Option<(Stored, bool)>> {
    let repository = session.open(configured)?;
    let store = repository.store();
    if store.head(&scope.manifest(id))?.is_none() {
        return Ok(None);
    }
    let events = event::read_all(store, scope, &id.to_string())?;
    let is_hold = |one: &Recorded| event::kind_in(&one.name) == "pin" && one.event.legal;
    let was_held = kind == Kind::Hold && events.iter().any(is_hold);
    let mut pins = event::standing(&events, "pin", "unpin");
    pins.retain(|pin| pin.event.legal == (kind == Kind::Hold));
    let pins = pins.into_iter();
    let pins = pins.map(|pin| Pin::new(pin, event::is_held(&events, pin)));
    let copy = Stored {
        configured: configured.clone(),
        pins: pins.collect(),
        owner: Owner::Aux(scope.clone()),
        repository,
    };
    Ok(Some((copy, was_held)))
}

/// The end of the pin, which has to be in the future.
fn until(session: &Session, wanted: Option<&Wanted>) -> Result<Option<TimestampTz>> {
    let Some(until) = wanted.and_then(|wanted| wanted.until.as_ref()) else {
        return Ok(None);
    };
    let resolved = until.resolve(&session.environment, None, None)?;
    to_come(session, resolved.target.target).map(Some)
}
