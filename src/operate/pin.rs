//! Pins: a backup stays, whatever retention says.

use serde::Serialize;

use super::failures::Failures;
use super::found::Found;
use super::hold::{self, Objects};
use super::needs::Owner;
use super::reading::Reading;
use super::session::Session;
use super::target::AskedTarget;
use super::{human, unproven};
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::plan::target::Target;
use crate::repo::deletion;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::wal::inventory::{Backup, Inventory, Pin};

/// Why nothing is written without the MAC key.
const UNPROVEN: &str = "a pin, or its end, that nothing proves would be taken for forged";

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

    /// The event that ends it.
    fn end(self) -> &'static str {
        match self {
            Kind::Pin => "unpin",
            Kind::Hold => "unhold",
        }
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

/// A backup in one repository that has it.
pub(super) struct Stored {
    pub(super) configured: config::Repository,
    pub(super) repository: Repository,
    pub(super) owner: Owner,
    /// The pins that stand, and the legal holds, or one of the two.
    pub(super) pins: Vec<Pin>,
}

/// A pin, or the end of pins, that is shown before it is recorded.
#[derive(Serialize)]
pub struct Plan<T> {
    /// The content of the plan.
    #[serde(flatten)]
    pub shown: T,
    /// The outcome.
    #[serde(flatten)]
    pub events: Events,
    /// The keepers of a legal hold, repository by repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Objects>,
}

impl<T> Plan<T> {
    pub(super) fn new(shown: T, events: Events) -> Result<Plan<T>> {
        Ok(Plan {
            holds: match events.kind {
                Kind::Pin => Vec::new(),
                Kind::Hold => hold::keepers(&events.copies)?,
            },
            shown,
            events,
        })
    }

    /// Records it; has the stores hold every object that a backup on legal hold needs, or no more what no other hold needs.
    ///
    /// # Errors
    /// The first, when it could be recorded nowhere.
    pub fn record(&mut self, session: &Session) -> Result<()> {
        self.events.record(session)?;
        hold::in_stores(session, &mut self.events, &mut self.holds);
        Ok(())
    }
}

/// A pin of a backup, or the end of its pins, in the repositories that have it.
#[derive(Serialize)]
pub struct Events {
    /// The repositories in which it was recorded.
    pub recorded_in: Vec<String>,
    /// Whether it was to be recorded.
    pub confirmed: bool,
    /// The damage of the backup.
    #[serde(skip)]
    pub damage: Option<String>,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    /// The backup.
    #[serde(skip)]
    pub id: BackupId,
    #[serde(skip)]
    pub(super) copies: Vec<Stored>,
    #[serde(skip)]
    kind: Kind,
    /// Reason and end of the pin; none where pins end.
    #[serde(skip)]
    pin: Option<(String, Option<TimestampTz>)>,
}

impl Events {
    pub(super) fn new(
        (id, kind): (&BackupId, Kind),
        pin: Option<(String, Option<TimestampTz>)>,
        (copies, failures): (Vec<Stored>, Failures),
    ) -> Events {
        Events {
            recorded_in: Vec::new(),
            confirmed: false,
            damage: None,
            failures,
            id: id.clone(),
            copies,
            kind,
            pin,
        }
    }

    /// Whether it is a legal hold, or the end of one.
    pub fn is_hold(&self) -> bool {
        self.kind == Kind::Hold
    }

    /// Whether pins end.
    pub fn is_end(&self) -> bool {
        self.pin.is_none()
    }

    /// The names of the repositories.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |copy: &Stored| copy.configured.name.clone();
        self.copies.iter().map(name).collect()
    }

    /// The pins that stand.
    pub(super) fn pins(&self, now: TimestampTz) -> Vec<StandingPin> {
        let of = |copy: &Stored| -> Vec<StandingPin> {
            let shown = |pin: &Pin| StandingPin {
                repository: copy.configured.name.clone(),
                over: pin.is_over(now),
                pin: pin.clone(),
            };
            copy.pins.iter().map(shown).collect()
        };
        self.copies.iter().flat_map(of).collect()
    }

    fn record(&mut self, session: &Session) -> Result<()> {
        self.confirmed = true;
        let events = self.events(&session.host);
        for copy in &self.copies {
            let name = &copy.configured.name;
            match self.write(session, copy, &events) {
                Ok(()) => self.recorded_in.push(name.clone()),
                Err(e) => {
                    let verb = match (&copy.owner, &self.pin) {
                        (Owner::Aux(_), _) => "record",
                        (Owner::Cluster(_), Some(_)) => "pin",
                        (Owner::Cluster(_), None) => self.kind.end(),
                    };
                    let doing = format!("{verb} it in repository \"{name}\"");
                    if !self.failures.add(e, doing) {
                        break;
                    }
                }
            }
        }
        self.failures.first_if(session, self.recorded_in.is_empty())
    }

    /// The events. They have the same name in every repository: they say the same.
    fn events(&self, host: &Host) -> Vec<Event> {
        let (writer, subject) = (Writer::of(host), self.id.to_string());
        if let Some((reason, until)) = &self.pin {
            let pin = Event {
                reason: Some(reason.clone()),
                until: *until,
                legal: self.is_hold(),
                ..writer.event("pin", &subject)
            };
            return vec![pin];
        }
        let mut ends: Vec<Event> = Vec::new();
        for pin in self.copies.iter().flat_map(|copy| &copy.pins) {
            let name = Some(pin.event.clone());
            if !ends.iter().any(|event| event.ends == name) {
                ends.push(Event {
                    ends: name,
                    ..writer.event(self.kind.end(), &subject)
                });
            }
        }
        ends
    }

    /// Records in one repository the pin, unless the same one stands there, or the end of those that stand there.
    fn write(&self, session: &Session, copy: &Stored, events: &[Event]) -> Result<()> {
        let (store, scope) = (copy.repository.store(), copy.owner.scope());
        let is_due = |event: &Event| {
            let is_same = |one: &Pin| {
                one.reason == event.reason && one.until == event.until && self.kind.is_of(one)
            };
            let is_ended = |one: &Pin| event.ends.as_deref() == Some(one.event.as_str());
            match self.is_end() {
                true => copy.pins.iter().any(is_ended),
                false => !copy.pins.iter().any(is_same),
            }
        };
        let due: Vec<&Event> = events.iter().filter(|event| is_due(event)).collect();
        if (self.is_end() || !due.is_empty())
            && let Some(why) = unproven::warning(&copy.configured, &copy.repository, UNPROVEN)
        {
            return Err(err!(Key, "{why}").hint("Nothing was changed there."));
        }
        for event in due {
            // A copy of the repository, or a sync, may have brought it already.
            event::record_once(store, scope, event)
                .map_err(|e: Error| e.context("write the event"))?;
        }
        match self.is_end() {
            true => Ok(()),
            false => require_outlived(session, (store, scope), &self.id),
        }
    }
}

/// The copies of a backup of a cluster.
fn copies(found: Found) -> Result<(Vec<Stored>, Failures)> {
    let copy = |(reading, inventory, backup): (Reading, Inventory, Backup)| {
        let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
        Ok(Stored {
            configured: reading.configured,
            repository: reading.repository,
            owner: Owner::Cluster(layout),
            pins: backup.pins,
        })
    };
    let copies: Result<Vec<Stored>> = found.copies.into_iter().map(copy).collect();
    Ok((copies?, found.failures))
}

/// A pin of a backup of a cluster.
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
    /// When the backup was complete.
    #[serde(skip)]
    pub stop_time: TimestampTz,
}

/// Looks what a pin or a legal hold would keep.
///
/// # Errors
/// Those of [`Found::look`]; `Usage` when the end is in the past; what the stores say of their holds.
pub fn plan(session: &Session, asked: &Asked) -> Result<Plan<Pinning>> {
    let found = Found::look(session, &asked.backup)?;
    let (reading, inventory, backup) = found.first()?;
    let until = until(session, asked, reading, inventory)?;
    let marks = found.copies.iter().filter_map(|(.., b)| b.expire_mark);
    let damage = found.copies.iter().find_map(|(.., b)| b.damage.clone());
    let (backup, expire_not_before) = (backup.clone(), marks.min());
    let pin = Some((asked.reason.clone(), until));
    let events = Events {
        damage,
        ..Events::new((&backup.id, asked.kind), pin, copies(found)?)
    };
    let shown = Pinning {
        until,
        reason: asked.reason.clone(),
        timeline: backup.timeline.decimal(),
        start_lsn: backup.start_lsn,
        end_lsn: backup.consistent_lsn.max(backup.stop_lsn),
        repositories: events.names(),
        pins: events.pins(session.host.now()),
        expire_not_before,
        stop_time: backup.stop_time,
        backup: backup.id,
    };
    Plan::new(shown, events)
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

/// Requires that the backup outlived the recording of its pin: a run of expire that had read its events before may have deleted it.
///
/// # Errors
/// `NotFound`; `Interrupted`; what the store says.
fn require_outlived(
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

/// The end of pins of a backup of a cluster.
#[derive(Serialize)]
pub struct Unpinning {
    pub backup: BackupId,
    pub pins: Vec<StandingPin>,
    /// Those that have a pin to end.
    pub repositories: Vec<String>,
    /// When the backup was complete.
    #[serde(skip)]
    pub stop_time: TimestampTz,
    /// All repositories that have the backup.
    #[serde(skip)]
    pub held_in: Vec<String>,
}

/// Looks which pins of a kind would end.
///
/// # Errors
/// Those of [`Found::look`]; `NotFound` when the backup is not pinned, and was never on hold; `Refused` when it is on hold and only pins are to end; what the
/// stores say of their holds.
pub fn plan_end(session: &Session, id: &BackupId, kind: Kind) -> Result<Plan<Unpinning>> {
    let mut found = Found::look(session, id)?;
    let mut standing = found.copies.iter().flat_map(|(.., backup)| &backup.pins);
    let is_held = standing.any(|pin| pin.legal);
    let was_held = match kind {
        Kind::Pin => false,
        Kind::Hold => was_held(&found)?,
    };
    for (.., backup) in &mut found.copies {
        backup.pins.retain(|pin| kind.is_of(pin));
    }
    let (held_in, stop_time) = (found.names(), found.first()?.2.stop_time);
    let is_meant = |backup: &Backup| was_held || !backup.pins.is_empty();
    found.copies.retain(|(.., backup)| is_meant(backup));
    if found.copies.is_empty() {
        found.failures.first_if(session, true)?;
        return Err(none(id, kind, is_held));
    }
    let events = Events::new((id, kind), None, copies(found)?);
    let shown = Unpinning {
        backup: id.clone(),
        pins: events.pins(session.host.now()),
        repositories: events.names(),
        stop_time,
        held_in,
    };
    Plan::new(shown, events)
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
