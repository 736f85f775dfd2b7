//! `pitr pin` and `pitr unpin`: keep a backup, whatever retention says.

use serde::Serialize;

use super::moment::Moment;
use super::target::TargetArgs;
use super::timeline::{partial_unless, reason};
use super::{Context, unconfirmed};
use crate::error::Result;
use crate::operate::failures::Failures;
use crate::operate::human;
use crate::operate::pin::{self, Asked, Kind, Pinning, StandingPin};
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

/// Runs `pitr pin`.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let until = args.until.as_deref().map(|text| until(args, text, cx));
    let until = until.transpose()?;
    if let Some(of) = &args.of {
        let reason = args.reason.clone();
        let wanted = Wanted { reason, until };
        let asked = (of.as_str(), &args.backup);
        return of_content(cx, asked, Some(&wanted), (args.confirm, args.dry_run));
    }
    let asked = Asked {
        backup: args.backup.clone(),
        reason: args.reason.clone(),
        until,
        kind: Kind::Pin,
    };
    let mut pinning = pin::plan(&cx.session, &asked)?;
    if !cx.out.is_json() {
        print(cx, &pinning)?;
    }
    warn_of_damage(cx, &pinning);
    if args.confirm {
        pinning.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut pinning.failures);
    finish(cx, &pinning, (args.confirm, args.dry_run), failures, || {
        format!("pinned in {}", pinning.recorded_in.join(" and "))
    })
}

/// The end of the pin, as its zone is asked for.
fn until(args: &Args, text: &str, cx: &Context) -> Result<AskedTarget> {
    let moment: Moment = text.parse()?;
    let zoned = TargetArgs {
        timezone: args.timezone.clone(),
        target_timeline: "latest".to_owned(),
        ..TargetArgs::default()
    };
    Ok(AskedTarget {
        point: Point::Time(moment.after(cx.session.host.now())?),
        ..zoned.parse()?
    })
}

/// Runs `pitr unpin`.
pub fn run_unpin(args: &UnpinArgs, cx: &Context) -> Result<u8> {
    if let Some(of) = &args.of {
        let asked = (of.as_str(), &args.backup);
        return of_content(cx, asked, None, (args.confirm, args.dry_run));
    }
    let mut ending = pin::plan_end(&cx.session, &args.backup, Kind::Pin)?;
    if !cx.out.is_json() {
        print_backup(cx, &ending.backup, ending.stop_time, &ending.held_in)?;
        print_pins(cx, &ending.pins)?;
        cx.out.line(
            "then: no pin keeps it; retention decides about it and the WAL that only it needs",
        )?;
        cx.out
            .note("\"pitr expire --keep N --dry-run\" shows what retention makes of it afterwards");
    }
    if args.confirm {
        ending.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut ending.failures);
    finish(cx, &ending, (args.confirm, args.dry_run), failures, || {
        format!("unpinned in {}", ending.recorded_in.join(" and "))
    })
}

/// Pins a backup of other content, or ends its pins.
fn of_content(
    cx: &Context,
    (of, backup): (&str, &BackupId),
    wanted: Option<&Wanted>,
    (confirm, dry_run): (bool, bool),
) -> Result<u8> {
    let scope = pin_content::scope(of)?;
    let mut pinning = pin_content::plan(&cx.session, (&scope, backup), wanted, Kind::Pin)?;
    if !cx.out.is_json() {
        print_content(cx, of, &pinning)?;
        let then = match (wanted, pinning.until) {
            (None, _) => "then: no pin keeps it; retention decides about it".to_owned(),
            (Some(_), None) => "keeps, until it is unpinned: the backup".to_owned(),
            (Some(_), Some(until)) => format!("keeps, until {}: the backup", human::time(until)),
        };
        cx.out.line(&then)?;
    }
    if confirm {
        pinning.record(&cx.session)?;
    }
    let failures = std::mem::take(&mut pinning.failures);
    let what = if wanted.is_some() {
        "pinned"
    } else {
        "unpinned"
    };
    finish(cx, &pinning, (confirm, dry_run), failures, || {
        format!("{what} in {}", pinning.recorded_in.join(" and "))
    })
}

/// A backup of other content, and its pins or holds.
pub(super) fn print_content(cx: &Context, of: &str, shown: &pin_content::Pinning) -> Result<()> {
    let (backup, places) = (&shown.backup, shown.repositories.join(" and "));
    cx.out
        .line(&format!("backup {backup} of {of}, in {places}"))?;
    print_pins(cx, &shown.pins)
}

pub(super) fn warn_of_damage(cx: &Context, shown: &Pinning) {
    let what = if shown.is_hold() { "hold" } else { "pin" };
    if let Some(damage) = &shown.damage {
        cx.out.warn(&format!(
            "backup \"{}\" is damaged ({damage}): a {what} keeps it as it is",
            shown.backup
        ));
    }
}

/// Answers, behind the plan and what was recorded.
pub(super) fn finish(
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
        return Err(unconfirmed("What is shown above would be recorded."));
    }
    partial_unless(is_whole)
}

pub(super) fn print(cx: &Context, shown: &Pinning) -> Result<()> {
    print_backup(cx, &shown.backup, shown.stop_time, &shown.repositories)?;
    let end = match shown.until {
        None if shown.is_hold() => "until the hold is ended".to_owned(),
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

/// The pins in words; one that several repositories have is one.
pub(super) fn print_pins(cx: &Context, pins: &[StandingPin]) -> Result<()> {
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
        cx.out.line(&format!(
            "{what} of {} on host {}, {end}, in {}: {reason}",
            human::time(one.pin.time),
            one.pin.host,
            places.join(" and ")
        ))?;
    }
    Ok(())
}

pub(super) fn print_backup(
    cx: &Context,
    backup: &BackupId,
    complete: TimestampTz,
    places: &[String],
) -> Result<()> {
    cx.out.line(&format!(
        "backup {backup}, complete {}, in {}",
        human::time(complete),
        places.join(" and ")
    ))
}
