//! `pitr pin` and `pitr unpin`: keep a backup, whatever retention says.

use serde::Serialize;

use super::timeline::reason;
use super::{Context, done_or_unconfirmed, partial_unless};
use crate::error::Result;
use crate::operate::hold::{By, Objects};
use crate::operate::human;
use crate::operate::moment::Moment;
use crate::operate::pin::{self, Asked, Events, Kind, Pinning, Plan, StandingPin};
use crate::operate::pin_content::{self, Wanted};
use crate::operate::target::{AskedTarget, Point};
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;

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

    /// The content that it is a backup of, such as files:uploads, redis:cache, config:host or logical:main; a cluster without it
    #[arg(long, value_name = "KIND:NAME")]
    pub of: Option<String>,

    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,

    /// Keep it until then: a time such as "2027-01-01 00:00:00+01", a day, or a length of time such as 30d; without it, until pitr unpin
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
/// From then on retention decides about it, unless it is on legal hold, which "pitr unhold" ends. Nothing is deleted by this command. Without --confirm it shows which pins end, and changes nothing.
///
/// Example: pitr unpin 20261120T064049Z-full --confirm
#[derive(clap::Args, Debug)]
pub struct UnpinArgs {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: BackupId,

    /// The content that it is a backup of, such as files:uploads; a cluster without it
    #[arg(long, value_name = "KIND:NAME")]
    pub of: Option<String>,

    /// End the pins
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what ends, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let until = args.until.as_deref().map(|text| until(args, text, cx));
    let wanted = Wanted {
        reason: args.reason.clone(),
        until: until.transpose()?,
    };
    let of = (args.of.as_deref(), &args.backup);
    begin(cx, of, wanted, Kind::Pin, (args.confirm, args.dry_run))
}

/// The end of the pin, as its zone is asked for.
fn until(args: &Args, text: &str, cx: &Context) -> Result<AskedTarget> {
    let moment = text.parse::<Moment>()?.after(cx.session.host.now())?;
    Ok(AskedTarget {
        timezone: args.timezone.as_deref().map(str::parse).transpose()?,
        ..AskedTarget::at(Point::Time(moment))
    })
}

pub fn run_unpin(args: &UnpinArgs, cx: &Context) -> Result<u8> {
    let of = (args.of.as_deref(), &args.backup);
    end(cx, of, Kind::Pin, (args.confirm, args.dry_run))
}

/// Pins a backup or puts it on hold; `of` names other content than a cluster.
pub(super) fn begin(
    cx: &Context,
    (of, backup): (Option<&str>, &BackupId),
    wanted: Wanted,
    kind: Kind,
    word: (bool, bool),
) -> Result<u8> {
    if let Some(of) = of {
        return of_content(cx, (of, backup), Some(&wanted), kind, word);
    }
    let asked = Asked {
        backup: backup.clone(),
        reason: wanted.reason,
        until: wanted.until,
        kind,
    };
    let plan = pin::plan(&cx.session, &asked)?;
    finish(cx, plan, word, |plan| {
        print(cx, plan)?;
        print_stores(cx, &plan.holds)
    })
}

/// Ends the pins of a backup, or its holds; `of` names other content than a cluster.
pub(super) fn end(
    cx: &Context,
    (of, backup): (Option<&str>, &BackupId),
    kind: Kind,
    word: (bool, bool),
) -> Result<u8> {
    if let Some(of) = of {
        return of_content(cx, (of, backup), None, kind, word);
    }
    let plan = pin::plan_end(&cx.session, backup, kind)?;
    finish(cx, plan, word, |plan| {
        let ending = &plan.shown;
        print_backup(cx, &ending.backup, ending.stop_time, &ending.held_in)?;
        print_ending(cx, &ending.pins)?;
        cx.line(&format!("{} and the WAL that only it needs", ended(kind)))?;
        if kind == Kind::Pin {
            cx.note(
                "\"pitr expire --keep N --dry-run\" shows what retention makes of it afterwards",
            );
        }
        Ok(())
    })
}

/// Pins a backup of other content or puts it on hold, or ends its pins or holds.
fn of_content(
    cx: &Context,
    (of, backup): (&str, &BackupId),
    wanted: Option<&Wanted>,
    kind: Kind,
    word: (bool, bool),
) -> Result<u8> {
    let scope = pin_content::scope(of)?;
    let plan = pin_content::plan(&cx.session, (&scope, backup), wanted, kind)?;
    finish(cx, plan, word, |plan| {
        let shown = &plan.shown;
        let places = shown.repositories.join(" and ");
        cx.line(&format!("backup {backup} of {of}, in {places}"))?;
        match wanted {
            None => print_ending(cx, &shown.pins)?,
            Some(_) => print_pins(cx, &shown.pins, "")?,
        }
        match (kind, wanted) {
            (_, None) => cx.line(ended(kind)),
            (Kind::Pin, Some(_)) => {
                let until = until_words(&plan.events, shown.until);
                cx.line(&format!("keeps, {until}: the backup"))
            }
            (Kind::Hold, Some(_)) => print_stores(cx, &plan.holds),
        }
    })
}

/// The fate of a backup after the end of its pins or holds.
fn ended(kind: Kind) -> &'static str {
    match kind {
        Kind::Pin => "then: no pin keeps it; retention decides about it",
        Kind::Hold => "then: no hold keeps it; pins and retention decide about it",
    }
}

/// Shows a plan, records it where that is confirmed, and answers.
fn finish<T: Serialize>(
    cx: &Context,
    mut plan: Plan<T>,
    (confirm, dry_run): (bool, bool),
    print: impl FnOnce(&Plan<T>) -> Result<()>,
) -> Result<u8> {
    if !cx.is_json() {
        print(&plan)?;
    }
    if let Some(damage) = &plan.events.damage {
        let kind = if plan.events.is_hold() { "hold" } else { "pin" };
        let id = &plan.events.id;
        cx.warn(&format!(
            "backup \"{id}\" is damaged ({damage}): a {kind} keeps it as it is"
        ));
    }
    if confirm {
        plan.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut plan.events.failures);
    if cx.is_json() {
        cx.json(&plan)?;
    } else if confirm {
        cx.report(&outcome(&plan.events, &plan.holds))?;
    }
    let is_whole = cx.told(failures)?;
    let id = &plan.events.id;
    let would = match (plan.events.is_end(), plan.events.is_hold()) {
        (false, _) => "What is shown above would be recorded.".to_owned(),
        (true, false) => format!("The pins of backup \"{id}\" would end."),
        (true, true) => format!("The legal holds of backup \"{id}\" would end."),
    };
    done_or_unconfirmed(confirm || dry_run, &would)?;
    partial_unless(is_whole)
}

/// The state of the backup in the repositories in which that was recorded.
fn outcome(events: &Events, holds: &[Objects]) -> String {
    let state = match (events.is_hold(), events.is_end()) {
        (false, false) => "pinned",
        (false, true) => "unpinned",
        (true, false) => "on hold",
        (true, true) => "no longer on hold",
    };
    if !events.is_hold() {
        return format!("{state} in {}", events.recorded_in.join(" and "));
    }
    let recorded = holds
        .iter()
        .filter(|hold| events.recorded_in.contains(&hold.repository));
    let one = |hold: &Objects| match hold.by {
        By::Store => format!("{state} in {}: {} objects", hold.repository, hold.objects),
        By::Advisory => format!("{state} in {} (advisory)", hold.repository),
    };
    recorded.map(one).collect::<Vec<_>>().join("\n")
}

/// The keepers of a hold; a pin has none.
fn print_stores(cx: &Context, holds: &[Objects]) -> Result<()> {
    let one = |hold: &Objects| {
        let (place, by) = (&hold.repository, hold.by.words());
        format!("in {place} {by}")
    };
    cx.lines(holds.iter().map(one))
}

fn print(cx: &Context, plan: &Plan<Pinning>) -> Result<()> {
    let shown = &plan.shown;
    print_backup(cx, &shown.backup, shown.stop_time, &shown.repositories)?;
    let until = until_words(&plan.events, shown.until);
    cx.line(&format!(
        "keeps, {until}: the backup, and WAL {} to {} on timeline {}",
        shown.start_lsn, shown.end_lsn, shown.timeline
    ))?;
    print_pins(cx, &shown.pins, "")?;
    if let Some(due) = shown.expire_not_before {
        cx.line(&format!(
            "it is marked for deletion after {}: the pin keeps it, and the next pitr expire ends the mark",
            human::time(due)
        ))?;
    }
    Ok(())
}

fn until_words(events: &Events, until: Option<TimestampTz>) -> String {
    match until {
        Some(until) => format!("until {}", human::time(until)),
        None if events.is_hold() => "until the hold is ended".to_owned(),
        None => "until it is unpinned".to_owned(),
    }
}

/// The pins or holds that end. None stands where an unhold was cut short.
fn print_ending(cx: &Context, pins: &[StandingPin]) -> Result<()> {
    match pins.is_empty() {
        true => cx.line("ends: what a store still holds of it, for its legal holds have ended"),
        false => print_pins(cx, pins, "ends: "),
    }
}

/// The pins in words, behind `what_comes`; one that several repositories have is one.
fn print_pins(cx: &Context, pins: &[StandingPin], what_comes: &str) -> Result<()> {
    let mut events: Vec<&str> = Vec::new();
    for one in pins {
        if events.contains(&one.pin.event.as_str()) {
            continue;
        }
        events.push(&one.pin.event);
        let places = pins.iter().filter(|p| p.pin.event == one.pin.event);
        let places: Vec<&str> = places.map(|p| p.repository.as_str()).collect();
        let what = if one.pin.legal { "legal hold" } else { "pin" };
        let end = match (one.pin.until, one.over) {
            (None, _) if one.pin.legal => match one.pin.held {
                true => "by the store's own hold".to_owned(),
                false => "advisory".to_owned(),
            },
            (None, _) => "until it is unpinned".to_owned(),
            (Some(until), false) => format!("until {}", human::time(until)),
            (Some(until), true) => format!("over since {}", human::time(until)),
        };
        let reason = one.pin.reason.as_deref().unwrap_or("no reason given");
        cx.line(&format!(
            "{what_comes}{what} of {} on host {}, {end}, in {}: {reason}",
            human::time(one.pin.time),
            one.pin.host,
            places.join(" and ")
        ))?;
    }
    Ok(())
}

fn print_backup(
    cx: &Context,
    backup: &BackupId,
    complete: TimestampTz,
    places: &[String],
) -> Result<()> {
    cx.line(&format!(
        "backup {backup}, complete {}, in {}",
        human::time(complete),
        places.join(" and ")
    ))
}
