//! Pins and legal holds of backups of other content than clusters: they stay, whatever retention says.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::pin::{Kind, StandingPin, UNPROVEN, require_outlived, to_come};
use super::session::Session;
use super::target::AskedTarget;
use super::unproven;
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::event::{self, Event, Recorded, Writer};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
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

/// A backup of content in one repository that has it.
struct Copy {
    configured: config::Repository,
    repository: Repository,
    /// The pins that stand, or the legal holds.
    pins: Vec<Recorded>,
    /// The holds among them that the store was seen to keep.
    held: BTreeSet<String>,
    /// Whether it was ever on hold, where holds are meant: an unhold that was cut short goes on.
    was_held: bool,
}

/// A pin, or the end of pins, that is shown before it is recorded.
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
    /// The repositories in which it was recorded.
    pub recorded_in: Vec<String>,
    /// Whether it was to be recorded.
    pub confirmed: bool,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    copies: Vec<Copy>,
    #[serde(skip)]
    of: Scope,
    #[serde(skip)]
    kind: Kind,
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
) -> Result<Pinning> {
    let (mut copies, mut failures) = (Vec::new(), Failures::default());
    for configured in session.settings_with_repositories()?.repositories {
        match copy(session, &configured, (scope, id), kind) {
            Ok(found) => copies.extend(found),
            Err(e) => {
                failures.add(e, format!("look into repository \"{}\"", configured.name));
            }
        }
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
        copies.retain(|copy| copy.was_held || !copy.pins.is_empty());
    }
    if copies.is_empty() {
        let what = match kind {
            Kind::Pin => "pinned",
            Kind::Hold => "on hold",
        };
        return Err(err!(NotFound, "backup \"{id}\" is not {what}")
            .hint("Nothing was changed. \"pitr info\" shows which backups are."));
    }
    let now = session.host.now();
    let standing = copies.iter().flat_map(|copy| {
        let shown = |pin: &Recorded| {
            let pin = Pin::new(pin, copy.held.contains(&pin.name));
            StandingPin {
                repository: copy.configured.name.clone(),
                over: pin.is_over(now),
                pin,
            }
        };
        copy.pins.iter().map(shown).collect::<Vec<_>>()
    });
    Ok(Pinning {
        scope: scope.prefix(),
        backup: id.clone(),
        reason: wanted.map(|wanted| wanted.reason.clone()),
        until: until(session, wanted)?,
        repositories: copies
            .iter()
            .map(|copy| copy.configured.name.clone())
            .collect(),
        pins: standing.collect(),
        recorded_in: Vec::new(),
        confirmed: false,
        failures,
        copies,
        of: scope.clone(),
        kind,
    })
}

/// Looks into one repository; none where it does not have the backup.
fn copy(
    session: &Session,
    configured: &config::Repository,
    (scope, id): (&Scope, &BackupId),
    kind: Kind,
) -> Result<Option<Copy>> {
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
    let held = pins.iter().filter(|pin| event::is_held(&events, pin));
    Ok(Some(Copy {
        configured: configured.clone(),
        held: held.map(|pin| pin.name.clone()).collect(),
        was_held,
        pins: pins.into_iter().cloned().collect(),
        repository,
    }))
}

/// The end of the pin, which has to be in the future.
fn until(session: &Session, wanted: Option<&Wanted>) -> Result<Option<TimestampTz>> {
    let Some(until) = wanted.and_then(|wanted| wanted.until.as_ref()) else {
        return Ok(None);
    };
    let resolved = until.resolve(&session.environment, None, None)?;
    to_come(session, resolved.target.target).map(Some)
}

impl Pinning {
    /// The repositories that have the backup, with the place of its content there.
    pub(super) fn places(&self) -> impl Iterator<Item = (&str, &Repository, &Scope)> {
        self.copies.iter().map(|copy| {
            let name = copy.configured.name.as_str();
            (name, &copy.repository, &self.of)
        })
    }

    /// Records the pin, unless the same one stands; or the end of those that stand.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let subject = self.backup.to_string();
        let writer = Writer::of(&session.host);
        // The same name in every repository: they say the same.
        let pin = self.reason.as_ref().map(|reason| {
            let pin = Event {
                reason: Some(reason.clone()),
                until: self.until,
                legal: self.kind == Kind::Hold,
                ..writer.event("pin", &subject)
            };
            (pin, session.host.random())
        });
        for copy in &self.copies {
            let recorded = match &pin {
                Some(pin) => self.keep(session, copy, pin),
                None => self.end(&writer, copy),
            };
            let name = &copy.configured.name;
            match recorded {
                Ok(()) => self.recorded_in.push(name.clone()),
                Err(e) => {
                    let doing = format!("record it in repository \"{name}\"");
                    if !self.failures.add(e, doing) {
                        break;
                    }
                }
            }
        }
        self.failures.first_if(session, self.recorded_in.is_empty())
    }

    fn keep(&self, session: &Session, copy: &Copy, (pin, nonce): &(Event, u64)) -> Result<()> {
        let is_same =
            |one: &Recorded| one.event.reason == pin.reason && one.event.until == pin.until;
        if !copy.pins.iter().any(is_same) {
            require_proven(copy)?;
            let recorded = event::record(copy.repository.store(), &self.of, pin, *nonce);
            recorded.map_err(|e: Error| e.context("write the event"))?;
        }
        // A run of expire that had read its events before may delete it.
        let place = (copy.repository.store(), &self.of);
        require_outlived(session, place, &self.backup)
    }

    fn end(&self, writer: &Writer, copy: &Copy) -> Result<()> {
        require_proven(copy)?;
        for pin in &copy.pins {
            let kind = match self.kind {
                Kind::Pin => "unpin",
                Kind::Hold => "unhold",
            };
            let event = Event {
                ends: Some(pin.name.clone()),
                ..writer.event(kind, &self.backup.to_string())
            };
            let recorded = writer.record(copy.repository.store(), &self.of, &event);
            recorded.map_err(|e: Error| e.context("write the event"))?;
        }
        Ok(())
    }
}

fn require_proven(copy: &Copy) -> Result<()> {
    match unproven::warning(&copy.configured, &copy.repository, UNPROVEN) {
        Some(why) => Err(err!(Key, "{why}").hint("Nothing was changed there.")),
        None => Ok(()),
    }
}
