//! `pitr pin` and `pitr unpin`: keep a backup, whatever retention says.

use serde::Serialize;

use super::Context;
use super::target::TargetArgs;
use super::timeline::{partial_unless, reason};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::failures::Failures;
use crate::operate::held::Held;
use crate::operate::reading::Reading;
use crate::operate::session::Session;
use crate::operate::{human, unproven};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::plan::target::Target;
use crate::repo::deletion;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::wal::inventory::{Backup, Inventory, Pin};

/// Keep a backup, whatever retention says
///
/// A pinned backup stays, with the WAL from its start to its end: it can be restored as it was when it was complete. WAL behind that stays only
/// where retention keeps it. Without --confirm it shows what is kept, and changes nothing. The pin is recorded in every repository of the
/// configuration that has the backup, or in the one that --repository names; exit status 10 when one did not answer.
///
/// Example: pitr pin 20261120T064049Z-full --reason "year's end" --until 2028-01-01T00:00:00Z --confirm
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,

    /// Keep it until then, such as "2027-01-01 00:00:00+01"; without it, until pitr unpin
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Read --until in this zone, such as Europe/Berlin or +01:00
    #[arg(long, value_name = "ZONE", requires = "until")]
    pub timezone: Option<String>,

    /// Record the pin
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what is kept, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// End every pin of a backup
///
/// From then on retention decides about it. Nothing is deleted by this command. Without --confirm it shows which pins end, and changes nothing.
///
/// Example: pitr unpin 20261120T064049Z-full --confirm
#[derive(clap::Args, Debug)]
pub struct UnpinArgs {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// End the pins
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what ends, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// Why nothing is written without the MAC key.
const UNPROVEN: &str = "a pin, or its end, that nothing proves would be taken for forged";

/// A backup in the repositories that have it.
pub(super) struct Found {
    /// Those that have it, each with what it says of the backup.
    pub(super) copies: Vec<(Reading, Inventory, Backup)>,
    /// What those that could not be asked said.
    pub(super) failures: Failures,
}

impl Found {
    /// # Errors
    /// `NotFound` where no repository has it; the first failure where one that could not be asked may have it.
    pub(super) fn look(session: &Session, id: &BackupId) -> Result<Found> {
        let Held {
            readings,
            mut failures,
        } = Held::read(session)?;
        let mut copies = Vec::new();
        let mut why_not = None;
        let mut known = Vec::new();
        for (reading, inventory) in readings {
            match inventory.backups.iter().find(|b| b.id == *id).cloned() {
                Some(backup) => copies.push((reading, inventory, backup)),
                None => {
                    why_not = why_not.or(why_absent(&reading, &inventory, id)?);
                    known.extend(inventory.backups.iter().map(|b| b.id.to_string()));
                }
            }
        }
        failures.first_if(session, copies.is_empty())?;
        if copies.is_empty() {
            return Err(why_not.unwrap_or_else(|| unknown(id, &known)));
        }
        Ok(Found { copies, failures })
    }

    fn names(&self) -> Vec<String> {
        let name = |(reading, ..): &(Reading, Inventory, Backup)| reading.configured.name.clone();
        self.copies.iter().map(name).collect()
    }

    fn first(&self) -> Result<&(Reading, Inventory, Backup)> {
        let first = self.copies.first();
        first.ok_or_else(|| err!(Internal, "no repository was read"))
    }
}

/// What is left of a backup that a repository has no more.
fn why_absent(reading: &Reading, inventory: &Inventory, id: &BackupId) -> Result<Option<Error>> {
    let name = &reading.configured.name;
    if let Some(unreadable) = inventory.unreadable.iter().find(|u| u.id == *id) {
        let problem = &unreadable.problem;
        return Ok(Some(
            err!(Damaged, "backup \"{id}\" in repository \"{name}\" cannot be read: {problem}")
                .hint("Nothing was changed. \"pitr verify\" shows what it costs; nothing is deleted while it cannot be read."),
        ));
    }
    if inventory.lost.contains(id) {
        return Ok(Some(
            err!(NotFound, "backup \"{id}\" was complete, and its root is lost")
                .hint("Nothing was changed. What is left of it stays until it is given up. \"pitr repo sync\" brings the root back where another repository has it."),
        ));
    }
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    let store = reading.repository.store();
    let is_begun = store.head(&layout.begin(id))?.is_some();
    if store.head(&layout.manifest(id))?.is_none() && !is_begun {
        return Ok(None);
    }
    Ok(Some(
        err!(
            NotFound,
            "backup \"{id}\" is not there: it is not complete yet, it failed, or it was deleted"
        )
        .hint("Nothing was changed. \"pitr info\" shows which backups there are."),
    ))
}

fn unknown(id: &BackupId, known: &[String]) -> Error {
    let text = id.to_string();
    let closest = known.iter().min_by_key(|k| strsim::osa_distance(k, &text));
    let closest = closest.map_or_else(String::new, |c| format!(" The closest is {c}."));
    err!(NotFound, "backup \"{id}\" does not exist").hint(format!(
        "Nothing was changed.{closest} \"pitr info\" shows them all."
    ))
}

/// A standing pin of one repository.
#[derive(Serialize)]
struct ShownPin {
    repository: String,
    #[serde(flatten)]
    pin: Pin,
    /// Past its end.
    over: bool,
}

fn pins(found: &Found, now: TimestampTz) -> Vec<ShownPin> {
    let of = |(reading, _, backup): &(Reading, Inventory, Backup)| -> Vec<ShownPin> {
        let shown = |pin: &Pin| ShownPin {
            repository: reading.configured.name.clone(),
            over: pin.is_over(now),
            pin: pin.clone(),
        };
        backup.pins.iter().map(shown).collect()
    };
    found.copies.iter().flat_map(of).collect()
}

/// The pins in words; one that several repositories have is one.
fn print_pins(cx: &Context, pins: &[ShownPin]) -> Result<()> {
    let mut events: Vec<&str> = Vec::new();
    for one in pins {
        if events.contains(&one.pin.event.as_str()) {
            continue;
        }
        events.push(&one.pin.event);
        let places = pins.iter().filter(|p| p.pin.event == one.pin.event);
        let places: Vec<&str> = places.map(|p| p.repository.as_str()).collect();
        let end = match (one.pin.until, one.over) {
            (None, _) => "until it is unpinned".to_owned(),
            (Some(until), false) => format!("until {}", human::time(until)),
            (Some(until), true) => format!("over since {}", human::time(until)),
        };
        let reason = one.pin.reason.as_deref().unwrap_or("no reason given");
        cx.out.line(&format!(
            "pin of {} on host {}, {end}, in {}: {reason}",
            human::time(one.pin.time),
            one.pin.host,
            places.join(" and ")
        ))?;
    }
    Ok(())
}

fn print_backup(cx: &Context, found: &Found) -> Result<()> {
    let (_, _, backup) = found.first()?;
    cx.out.line(&format!(
        "backup {}, complete {}, in {}",
        backup.id,
        human::time(backup.stop_time),
        found.names().join(" and ")
    ))
}

/// A pin that is shown before it is recorded.
#[derive(Serialize)]
struct Shown<'a> {
    backup: String,
    reason: &'a str,
    until: Option<TimestampTz>,
    timeline: u32,
    /// From here on its WAL is kept.
    start_lsn: Lsn,
    /// To here.
    end_lsn: Lsn,
    repositories: Vec<String>,
    /// Those that stand already.
    pins: Vec<ShownPin>,
    /// It is marked for deletion, not before this time.
    expire_not_before: Option<TimestampTz>,
    recorded_in: Vec<String>,
    confirmed: bool,
}

/// Runs `pitr pin`.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let found = Found::look(&cx.session, &args.backup)?;
    let (reading, inventory, backup) = found.first()?;
    let until = until(args, cx, reading, inventory)?;
    let marks = found.copies.iter().filter_map(|(.., b)| b.expire_mark);
    let mut shown = Shown {
        backup: backup.id.to_string(),
        reason: &args.reason,
        until,
        timeline: backup.timeline.decimal(),
        start_lsn: backup.start_lsn,
        end_lsn: backup.consistent_lsn.max(backup.stop_lsn),
        repositories: found.names(),
        pins: pins(&found, cx.session.host.now()),
        expire_not_before: marks.min(),
        recorded_in: Vec::new(),
        confirmed: args.confirm,
    };
    if !cx.out.is_json() {
        print(cx, &found, &shown)?;
    }
    if let Some(damage) = found.copies.iter().find_map(|(.., b)| b.damage.as_ref()) {
        cx.out.warn(&format!(
            "backup \"{}\" is damaged ({damage}): a pin keeps it as it is",
            args.backup
        ));
    }
    let Found {
        copies,
        mut failures,
    } = found;
    if args.confirm {
        let host = &cx.session.host;
        let pin = Event {
            reason: Some(args.reason.clone()),
            until,
            ..Writer::of(&host).event("pin", &args.backup.to_string())
        };
        // The same name in every repository: they say the same.
        let pin = (pin, host.random());
        for (reading, inventory, backup) in &copies {
            let same = |p: &Pin| p.reason.as_deref() == Some(&args.reason) && p.until == until;
            let recorded = match backup.pins.iter().any(same) {
                true => Ok(()),
                false => record(reading, inventory, [&pin]),
            };
            let recorded = recorded.and_then(|()| still_there(cx, reading, inventory, backup));
            let name = &reading.configured.name;
            match recorded {
                Ok(()) => shown.recorded_in.push(name.clone()),
                Err(e) => {
                    failures.add(e, format!("pin it in repository \"{name}\""));
                }
            }
        }
        failures.first_if(&cx.session, shown.recorded_in.is_empty())?;
    }
    finish(cx, &shown, (args.confirm, args.dry_run), failures, || {
        format!("pinned in {}", shown.recorded_in.join(" and "))
    })
}

/// Answers, behind the plan and what was recorded.
fn finish(
    cx: &Context,
    shown: &impl Serialize,
    (confirm, dry_run): (bool, bool),
    failures: Failures,
    done: impl Fn() -> String,
) -> Result<u8> {
    if cx.out.is_json() {
        cx.out.json(shown)?;
    } else if confirm {
        cx.out.report(&done())?;
    }
    let is_whole = cx.told(failures)?;
    if !confirm && !dry_run {
        return Err(super::unconfirmed("What is shown above would be recorded."));
    }
    partial_unless(is_whole)
}

fn print(cx: &Context, found: &Found, shown: &Shown<'_>) -> Result<()> {
    print_backup(cx, found)?;
    let end = match shown.until {
        None => "until it is unpinned".to_owned(),
        Some(until) => format!("until {}", human::time(until)),
    };
    cx.out.line(&format!(
        "keeps, {end}: the backup, and WAL {} to {} on timeline {}",
        shown.start_lsn, shown.end_lsn, shown.timeline
    ))?;
    print_pins(cx, &shown.pins)?;
    if let Some(due) = shown.expire_not_before {
        cx.out.line(&format!(
            "it is marked for deletion after {}: the pin keeps it, and the next pitr expire ends the mark",
            human::time(due)
        ))?;
    }
    Ok(())
}

/// The end of the pin, which has to be in the future.
fn until(
    args: &Args,
    cx: &Context,
    reading: &Reading,
    inventory: &Inventory,
) -> Result<Option<TimestampTz>> {
    let Some(text) = &args.until else {
        return Ok(None);
    };
    let asked = TargetArgs {
        target_time: Some(text.clone()),
        timezone: args.timezone.clone(),
        target_timeline: "latest".to_owned(),
        ..TargetArgs::default()
    };
    let configured = reading.cluster.as_ref().and_then(|c| c.timezone.as_deref());
    let parsed = asked.parse()?;
    let resolved = parsed.resolve(&cx.session.environment, configured, inventory.timezone())?;
    match resolved.target.target {
        Target::Time(at) if at > cx.session.host.now() => Ok(Some(at)),
        Target::Time(at) => Err(err!(
            Usage,
            "--until {} is in the past: such a pin would keep nothing",
            human::time(at)
        )
        .hint("Nothing was changed. Say a time to come, or leave --until out.")),
        _ => Err(err!(Internal, "\"{text}\" was read as no time")),
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
fn still_there(
    cx: &Context,
    reading: &Reading,
    inventory: &Inventory,
    backup: &Backup,
) -> Result<()> {
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    let store = reading.repository.store();
    let host = &cx.session.host;
    let clock = host.clock.as_ref();
    deletion::wait((store, &layout), clock, host.progress.as_ref(), &mut || {
        Ok(())
    })?;
    match store.head(&layout.manifest(&backup.id))? {
        Some(_) => Ok(()),
        None => Err(err!(
            NotFound,
            "backup \"{}\" was deleted while it was pinned",
            backup.id
        )
        .hint("The pin keeps nothing there. \"pitr info\" shows which backups there are.")),
    }
}

/// Pins that are shown before they end.
#[derive(Serialize)]
struct ShownEnd {
    backup: String,
    pins: Vec<ShownPin>,
    /// Those that have a pin to end.
    repositories: Vec<String>,
    recorded_in: Vec<String>,
    confirmed: bool,
}

/// Runs `pitr unpin`.
pub fn run_unpin(args: &UnpinArgs, cx: &Context) -> Result<u8> {
    let mut found = Found::look(&cx.session, &args.backup)?;
    let standing = pins(&found, cx.session.host.now());
    if !cx.out.is_json() && !standing.is_empty() {
        print_backup(cx, &found)?;
        print_pins(cx, &standing)?;
        cx.out.line(
            "then: no pin keeps it; retention decides about it and the WAL that only it needs",
        )?;
        cx.out
            .note("\"pitr expire --keep N --dry-run\" shows what retention makes of it afterwards");
    }
    if standing.is_empty() {
        let error = err!(NotFound, "backup \"{}\" is not pinned", args.backup);
        let none = error.hint("Nothing was changed. \"pitr info\" shows which backups are pinned.");
        found.failures.first_if(&cx.session, true)?;
        return Err(none);
    }
    found.copies.retain(|(.., backup)| !backup.pins.is_empty());
    let mut shown = ShownEnd {
        backup: args.backup.to_string(),
        pins: standing,
        repositories: found.names(),
        recorded_in: Vec::new(),
        confirmed: args.confirm,
    };
    let Found {
        copies,
        mut failures,
    } = found;
    if args.confirm {
        let host = &cx.session.host;
        let writer = Writer::of(&host);
        // One event for each pin, whichever repositories have it.
        let mut ends: Vec<(Event, u64)> = Vec::new();
        for pin in &shown.pins {
            let name = Some(pin.pin.event.clone());
            if !ends.iter().any(|(event, _)| event.ends == name) {
                let event = Event {
                    ends: name,
                    ..writer.event("unpin", &args.backup.to_string())
                };
                ends.push((event, host.random()));
            }
        }
        for (reading, inventory, backup) in &copies {
            let is_here = |(event, _): &&(Event, u64)| {
                let ended = |pin: &Pin| event.ends.as_deref() == Some(pin.event.as_str());
                backup.pins.iter().any(ended)
            };
            let here = ends.iter().filter(is_here);
            let name = &reading.configured.name;
            match record(reading, inventory, here) {
                Ok(()) => shown.recorded_in.push(name.clone()),
                Err(e) => {
                    failures.add(e, format!("unpin it in repository \"{name}\""));
                }
            }
        }
        failures.first_if(&cx.session, shown.recorded_in.is_empty())?;
    }
    finish(cx, &shown, (args.confirm, args.dry_run), failures, || {
        format!("unpinned in {}", shown.recorded_in.join(" and "))
    })
}
