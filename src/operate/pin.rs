//! Pins: a backup stays, whatever retention says.

use serde::Serialize;

use super::failures::Failures;
use super::found::Found;
use super::reading::Reading;
use super::session::Session;
use super::target::AskedTarget;
use super::{human, unproven};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::plan::target::Target;
use crate::repo::deletion;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::wal::inventory::{Backup, Inventory, Pin};

/// Why nothing is written without the MAC key.
pub(super) const UNPROVEN: &str =
    "a pin, or its end, that nothing proves would be taken for forged";

/// A backup in a repository.
pub(super) type Stored = (Reading, Inventory, Backup);

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub backup: BackupId,
    /// Why, for those who read it later.
    pub reason: String,
    /// The time at which the pin ends.
    pub until: Option<AskedTarget>,
    /// Whether it is a legal hold.
    pub kind: Kind,
}

/// Who may end a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `unpin`, and its end.
    Pin,
    /// `unhold` alone.
    Hold,
}

impl Kind {
    fn is_of(self, pin: &Pin) -> bool {
        pin.legal == (self == Kind::Hold)
    }
}

/// A standing pin of one repository.
#[derive(Serialize)]
pub struct StandingPin {
    pub repository: String,
    #[serde(flatten)]
    pub pin: Pin,
    /// Past its end.
    pub over: bool,
}

fn pins(found: &Found, now: TimestampTz) -> Vec<StandingPin> {
    let of = |(reading, _, backup): &Stored| -> Vec<StandingPin> {
        let shown = |pin: &Pin| StandingPin {
            repository: reading.configured.name.clone(),
            over: pin.is_over(now),
            pin: pin.clone(),
        };
        backup.pins.iter().map(shown).collect()
    };
    found.copies.iter().flat_map(of).collect()
}

/// A pin that is shown before it is recorded.
#[derive(Serialize)]
pub struct Pinning {
    pub backup: BackupId,
    reason: String,
    /// The end of the pin; without one it stays until it is unpinned.
    pub until: Option<TimestampTz>,
    /// The backup's timeline.
    pub timeline: u32,
    /// From here on its WAL is kept.
    pub start_lsn: Lsn,
    /// To here.
    pub end_lsn: Lsn,
    /// The repositories that have the backup.
    pub repositories: Vec<String>,
    /// Those that stand already.
    pub pins: Vec<StandingPin>,
    /// It is marked for deletion, not before this time.
    pub expire_not_before: Option<TimestampTz>,
    /// The repositories in which it was recorded.
    pub recorded_in: Vec<String>,
    /// Whether it was to be recorded.
    pub confirmed: bool,
    /// When the backup was complete.
    #[serde(skip)]
    pub stop_time: TimestampTz,
    /// The damage of the backup.
    #[serde(skip)]
    pub damage: Option<String>,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    copies: Vec<Stored>,
    #[serde(skip)]
    kind: Kind,
}

/// Looks what a pin would keep.
///
/// # Errors
/// Those of [`Found::look`]; `Usage` when the end is in the past.
pub fn plan(session: &Session, asked: &Asked) -> Result<Pinning> {
    let found = Found::look(session, &asked.backup)?;
    let (reading, inventory, backup) = found.first()?;
    let marks = found.copies.iter().filter_map(|(.., b)| b.expire_mark);
    let damage = found.copies.iter().find_map(|(.., b)| b.damage.clone());
    Ok(Pinning {
        until: until(session, asked, reading, inventory)?,
        backup: backup.id.clone(),
        reason: asked.reason.clone(),
        timeline: backup.timeline.decimal(),
        start_lsn: backup.start_lsn,
        end_lsn: backup.consistent_lsn.max(backup.stop_lsn),
        repositories: found.names(),
        pins: pins(&found, session.host.now()),
        expire_not_before: marks.min(),
        recorded_in: Vec::new(),
        confirmed: false,
        stop_time: backup.stop_time,
        damage,
        copies: found.copies,
        failures: found.failures,
        kind: asked.kind,
    })
}

impl Pinning {
    /// Whether it is a legal hold.
    pub fn is_hold(&self) -> bool {
        self.kind == Kind::Hold
    }

    /// The backup in each repository that has it.
    pub(super) fn copies(&self) -> &[Stored] {
        &self.copies
    }

    /// Records the pin, unless the same one stands.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let host = &session.host;
        let pin = Event {
            reason: Some(self.reason.clone()),
            until: self.until,
            legal: self.kind == Kind::Hold,
            ..Writer::of(host).event("pin", &self.backup.to_string())
        };
        // The same name in every repository: they say the same.
        let pin = (pin, host.random());
        for (reading, inventory, backup) in &self.copies {
            let same = |p: &Pin| {
                p.reason.as_deref() == Some(&self.reason)
                    && p.until == self.until
                    && self.kind.is_of(p)
            };
            let recorded = match backup.pins.iter().any(same) {
                true => Ok(()),
                false => record(reading, inventory, [&pin]),
            };
            let recorded = recorded.and_then(|()| {
                let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
                let place = (reading.repository.store(), &*layout);
                require_outlived(session, place, &backup.id)
            });
            let name = &reading.configured.name;
            match recorded {
                Ok(()) => self.recorded_in.push(name.clone()),
                Err(e) => {
                    let doing = format!("pin it in repository \"{name}\"");
                    if !self.failures.add(e, doing) {
                        break;
                    }
                }
            }
        }
        self.failures.first_if(session, self.recorded_in.is_empty())
    }
}

/// The end of the pin, which has to be in the future.
fn until(
    session: &Session,
    asked: &Asked,
    reading: &Reading,
    inventory: &Inventory,
) -> Result<Option<TimestampTz>> {
    let Some(until) = &asked.until else {
        return Ok(None);
    };
    let resolved = reading.resolve(session, inventory, until)?;
    to_come(session, resolved.target.target).map(Some)
}

/// Requires that the end of a pin is in the future.
///
/// # Errors
/// `Usage`.
pub(super) fn to_come(session: &Session, until: Target) -> Result<TimestampTz> {
    match until {
        Target::Time(at) if at > session.host.now() => Ok(at),
        Target::Time(at) => Err(err!(
            Usage,
            "--until {} is in the past: such a pin would keep nothing",
            human::time(at)
        )
        .hint("Nothing was changed. Say a time to come, or leave --until out.")),
        _ => Err(err!(Internal, "the end of a pin was read as no time")),
    }
}

/// Writes events, each with the nonce of its name.
fn record<'a>(
    reading: &Reading,
    inventory: &Inventory,
    events: impl IntoIterator<Item = &'a (Event, u64)>,
) -> Result<()> {
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}").hint("Nothing was changed there."));
    }
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    for (event, nonce) in events {
        event::record(reading.repository.store(), &layout, event, *nonce)
            .map_err(|e: Error| e.context("write the event"))?;
    }
    Ok(())
}

/// Requires that the backup outlived the recording of its pin: a run of expire that had read its events before may have deleted it.
///
/// # Errors
/// `NotFound`; `Interrupted`; what the store says.
pub(super) fn require_outlived(
    session: &Session,
    place: (&dyn Store, &Scope),
    backup: &BackupId,
) -> Result<()> {
    match deletion::outlived(place, &session.host, backup) {
        Ok(true) => Ok(()),
        Ok(false) => Err(
            err!(NotFound, "backup \"{backup}\" was deleted while it was pinned")
                .hint("The pin keeps nothing there. \"pitr info\" shows which backups there are."),
        ),
        Err(e) if e.code() == Code::Interrupted => Err(err!(
            Interrupted,
            "interrupted while \"pitr expire\" runs; the pin of backup \"{backup}\" is recorded in {}",
            place.0.location()
        )
        .hint("Nobody knows yet whether the backup outlived that run, and later repositories were not asked. Run the same command again, or end the pin with \"pitr unpin\" (a hold with \"pitr unhold\").")),
        Err(e) => Err(e),
    }
}

/// Pins that are shown before they end.
#[derive(Serialize)]
pub struct Unpinning {
    pub backup: BackupId,
    pub pins: Vec<StandingPin>,
    /// Those that have a pin to end.
    pub repositories: Vec<String>,
    /// The repositories in which the end was recorded.
    pub recorded_in: Vec<String>,
    /// Whether it was to be recorded.
    pub confirmed: bool,
    /// When the backup was complete.
    #[serde(skip)]
    pub stop_time: TimestampTz,
    /// All repositories that have the backup.
    #[serde(skip)]
    pub held_in: Vec<String>,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    copies: Vec<Stored>,
    #[serde(skip)]
    kind: Kind,
}

/// Looks which pins of a kind would end.
///
/// # Errors
/// Those of [`Found::look`]; `NotFound` when the backup is not pinned, and was never on hold; `Refused` when it is on hold and only pins are to end.
pub fn plan_end(session: &Session, id: &BackupId, kind: Kind) -> Result<Unpinning> {
    let mut found = Found::look(session, id)?;
    let mut standing = pins(&found, session.host.now());
    let is_held = standing.iter().any(|one| one.pin.legal);
    standing.retain(|one| kind.is_of(&one.pin));
    let was_held = match kind {
        Kind::Pin => false,
        Kind::Hold => was_held(&found)?,
    };
    if standing.is_empty() && !was_held {
        found.failures.first_if(session, true)?;
        return Err(none(id, kind, is_held));
    }
    let (held_in, stop_time) = (found.names(), found.first()?.2.stop_time);
    let is_meant = |backup: &Backup| was_held || backup.pins.iter().any(|pin| kind.is_of(pin));
    found.copies.retain(|(.., backup)| is_meant(backup));
    Ok(Unpinning {
        backup: id.clone(),
        pins: standing,
        repositories: found.names(),
        recorded_in: Vec::new(),
        confirmed: false,
        stop_time,
        held_in,
        failures: found.failures,
        copies: found.copies,
        kind,
    })
}

/// Why there is nothing to end.
fn none(id: &BackupId, kind: Kind, is_held: bool) -> Error {
    match (kind, is_held) {
        (Kind::Pin, true) => err!(
            Refused,
            "backup \"{id}\" is on legal hold, which no unpin ends"
        )
        .hint(format!(
            "Nothing was changed. Who may end the hold does it with \"pitr unhold {id}\"."
        )),
        (Kind::Pin, false) => err!(NotFound, "backup \"{id}\" is not pinned")
            .hint("Nothing was changed. \"pitr info\" shows which backups are pinned."),
        (Kind::Hold, _) => err!(NotFound, "backup \"{id}\" is not on hold")
            .hint("Nothing was changed. \"pitr info\" shows which backups are."),
    }
}

/// Whether it was ever on hold: an unhold that was cut short goes on.
fn was_held(found: &Found) -> Result<bool> {
    for (reading, inventory, backup) in &found.copies {
        let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
        let subject = backup.id.to_string();
        let is_pin = |name: &str| event::kind_in(name) == "pin";
        let pins = event::read_some(reading.repository.store(), &layout, &subject, &is_pin)?;
        if pins.iter().any(|pin| pin.event.legal) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Unpinning {
    /// The backup in each repository that has something to end.
    pub(super) fn copies(&self) -> &[Stored] {
        &self.copies
    }

    /// Records the end of every pin.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let host = &session.host;
        let writer = Writer::of(host);
        // One event for each pin, whichever repositories have it.
        let mut ends: Vec<(Event, u64)> = Vec::new();
        let kind = match self.kind {
            Kind::Pin => "unpin",
            Kind::Hold => "unhold",
        };
        for pin in &self.pins {
            let name = Some(pin.pin.event.clone());
            if !ends.iter().any(|(event, _)| event.ends == name) {
                let event = Event {
                    ends: name,
                    ..writer.event(kind, &self.backup.to_string())
                };
                ends.push((event, host.random()));
            }
        }
        for (reading, inventory, backup) in &self.copies {
            let is_here = |(event, _): &&(Event, u64)| {
                let ended = |pin: &Pin| event.ends.as_deref() == Some(pin.event.as_str());
                backup.pins.iter().any(ended)
            };
            let here = ends.iter().filter(is_here);
            let name = &reading.configured.name;
            match record(reading, inventory, here) {
                Ok(()) => self.recorded_in.push(name.clone()),
                Err(e) => {
                    self.failures
                        .add(e, format!("{kind} it in repository \"{name}\""));
                }
            }
        }
        self.failures.first_if(session, self.recorded_in.is_empty())
    }
}
