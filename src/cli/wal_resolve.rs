//! `pitr wal resolve`: gives the fork of a timeline to the server whose copy was refused.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::reading::Reading;
use super::unproven;
use super::{Context, timeline};
use crate::archive::resolve::{self, Fork, Held};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::cluster::Tree;
use crate::repo::clock;
use crate::repo::event::{self, Writer};
use crate::repo::inventory::Inventory;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::{Life, is_copy};

/// What is decided about a fork.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["segment", "undo"])))]
pub struct Args {
    /// The first segment of which two servers have different content
    #[arg(value_name = "SEGMENT", requires = "keep")]
    pub segment: Option<SegmentName>,

    /// The refused copy, as "pitr wal conflicts" shows it: 16 hexadecimal digits
    #[arg(long, value_name = "COPY", value_parser = copy, requires = "segment")]
    pub keep: Option<String>,

    /// End a decision, as "pitr wal conflicts" shows it
    #[arg(long, value_name = "EVENT")]
    pub undo: Option<String>,

    /// Why, for those who read the list later
    #[arg(long, value_name = "TEXT", value_parser = timeline::reason)]
    pub reason: Option<String>,

    /// Record the decision
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what follows, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// Why a decision is not written without the MAC key.
const UNPROVEN: &str = "a decision that nothing proves would not count";

fn copy(text: &str) -> Result<String> {
    match is_copy(text) {
        true => Ok(text.to_owned()),
        false => Err(err!(
            Usage,
            "a copy has 16 hexadecimal digits, in lower case"
        )),
    }
}

/// What the command does, and did.
#[derive(Serialize)]
struct Shown<'a> {
    /// `resolve` or `unresolve`.
    decision: &'static str,
    timeline: u32,
    segment: SegmentName,
    copy: &'a str,
    reason: Option<&'a str>,
    /// Backups that stop behind the fork in the life that is followed now.
    backups: Vec<String>,
    /// Backups that somebody restores or takes just now.
    in_use: Vec<String>,
    warnings: Vec<String>,
    /// The event in each repository.
    recorded: Vec<Recorded>,
    confirmed: bool,
}

/// Where a decision stands.
#[derive(Serialize)]
struct Recorded {
    repository: String,
    /// None where the copy is the one that is followed there anyway.
    event: Option<String>,
}

/// `pitr wal resolve`.
pub fn run(cx: &Context, args: &Args) -> Result<u8> {
    let first = Reading::open(cx)?;
    let inventory = first.inventory(cx)?;
    let mut failures = Failures::default();
    let mut places = vec![];
    for (name, other) in first.all_others(cx) {
        match other.and_then(|other| Ok((other.inventory(cx)?, other))) {
            Ok((own, other)) if own.system_identifier == inventory.system_identifier => {
                places.push((other, own));
            }
            Ok(_) => {}
            Err(e) => {
                failures.add(e, format!("look into repository \"{name}\""));
            }
        }
    }
    places.insert(0, (first, inventory));
    match (&args.segment, &args.keep, &args.undo) {
        (Some(segment), Some(keep), None) => {
            let fork = Fork {
                segment: *segment,
                copy: keep.clone(),
            };
            give(cx, args, &fork, &places, failures)
        }
        (None, _, Some(event)) => take_back(cx, args, event, &places, failures),
        _ => Err(err!(
            Usage,
            "either SEGMENT with --keep COPY or --undo EVENT is needed"
        )),
    }
}

type Place = (Reading, Inventory);

/// A repository in which something is to be written.
struct Change<'a> {
    place: &'a Place,
    layout: ClusterLayout,
    held: Held,
}

fn give(
    cx: &Context,
    args: &Args,
    fork: &Fork,
    places: &[Place],
    failures: Failures,
) -> Result<u8> {
    let mut changes = Vec::new();
    let mut shown = shown(cx, args, "resolve", (fork.segment, &fork.copy), places)?;
    for place in places {
        let (reading, inventory) = place;
        let layout = inventory.layout()?;
        let held = resolve::look(&reading.repository, &layout, fork)?;
        match &held {
            Held::Absent => shown.warnings.push(format!(
                "repository \"{}\" has no refused copy {} of \"{}\": nothing changes there",
                reading.configured.name, fork.copy, fork.segment
            )),
            Held::Followed => shown.recorded.push(Recorded {
                repository: reading.configured.name.clone(),
                event: None,
            }),
            Held::Refused(refused) => {
                require_childless(inventory, fork)?;
                let warning = resolve::check(&reading.repository, &layout, fork, refused)?;
                shown.warnings.extend(warning);
                changes.push(Change {
                    place,
                    layout,
                    held,
                });
            }
        }
    }
    if changes.is_empty() && shown.recorded.is_empty() {
        return Err(err!(
            NotFound,
            "no repository has a refused copy {} of \"{}\"",
            fork.copy,
            fork.segment
        )
        .hint("Nothing was changed. See the refused copies: pitr wal conflicts"));
    }
    let write = |change: &Change<'_>, writer: &Writer<'_>| -> Result<String> {
        let (reading, _) = change.place;
        let Held::Refused(refused) = &change.held else {
            return Err(err!(Internal, "there is no refused copy"));
        };
        let reason = args.reason.as_deref();
        resolve::resolve(
            &reading.repository,
            &change.layout,
            (fork, reason),
            refused,
            writer,
        )
    };
    finish(cx, args, (shown, failures), &changes, write)
}

fn take_back(
    cx: &Context,
    args: &Args,
    event: &str,
    places: &[Place],
    failures: Failures,
) -> Result<u8> {
    let standing =
        |inventory: &Inventory| inventory.lives.iter().find(|l| l.event == *event).cloned();
    let Some(life) = places.iter().find_map(|(_, inventory)| standing(inventory)) else {
        return Err(err!(
            NotFound,
            "no standing decision is called \"{}\"",
            event.escape_debug()
        )
        .hint("Nothing was changed. See the decisions: pitr wal conflicts"));
    };
    let shown = shown(cx, args, "unresolve", (life.segment, &life.copy), places)?;
    let mut changes = Vec::new();
    for place in places {
        let own = |l: &&Life| (l.segment, &l.copy) == (life.segment, &life.copy);
        if place.1.lives.iter().any(|l| own(&l)) {
            changes.push(Change {
                place,
                layout: place.1.layout()?,
                held: Held::Followed,
            });
        }
    }
    let write = |change: &Change<'_>, writer: &Writer<'_>| -> Result<String> {
        let (reading, inventory) = change.place;
        let all = inventory.lives.iter();
        let own = all.filter(|l| (l.segment, &l.copy) == (life.segment, &life.copy));
        let mut last = String::new();
        for one in own {
            last = resolve::undo(
                &reading.repository,
                &change.layout,
                (one, args.reason.as_deref()),
                writer,
            )?;
        }
        Ok(last)
    };
    finish(cx, args, (shown, failures), &changes, write)
}

/// The life that wins would read its timeline from another one than what descends from the life that loses.
fn require_childless(inventory: &Inventory, fork: &Fork) -> Result<()> {
    let size = inventory.segment_size;
    let start = fork.segment.number(size)?.start_lsn(size);
    let tree = Tree::of(inventory);
    let abandoned = tree.abandoned(&inventory.decisions);
    let children: Vec<String> = inventory
        .timelines
        .iter()
        .filter(|(id, held)| !held.segments.is_empty() && !abandoned.contains(id))
        .filter_map(|(id, _)| {
            let left = tree.history(*id)?.switch_point(fork.segment.timeline)?;
            (left > start).then(|| id.decimal().to_string())
        })
        .collect();
    if children.is_empty() {
        return Ok(());
    }
    Err(err!(
        Refused,
        "timeline {} leaves timeline {} behind the fork, and has WAL of its own",
        children.join(" and "),
        fork.segment.timeline.decimal()
    )
    .hint(format!(
        "Nothing was changed. It continues the WAL that is followed now, and could not be restored without --as-stored.\nIf it is not the cluster: pitr timeline abandon {} --reason TEXT. If it is, this server is not the cluster: stop it.",
        children.first().map_or("N", String::as_str)
    )))
}

fn shown<'a>(
    cx: &Context,
    args: &'a Args,
    decision: &'static str,
    (segment, copy): (SegmentName, &'a str),
    places: &[Place],
) -> Result<Shown<'a>> {
    let mut backups = BTreeSet::new();
    let mut in_use = BTreeSet::new();
    for (reading, inventory) in places {
        let size = inventory.segment_size;
        let behind = |lsn| {
            SegmentNumber::ending_at(lsn, size) >= segment.number(size).unwrap_or(SegmentNumber(0))
        };
        let own = inventory.backups.iter();
        let own = own.filter(|b| b.timeline == segment.timeline && behind(b.stop_lsn));
        backups.extend(own.map(|b| b.id.to_string()));
        let layout = inventory.layout()?;
        for listed in reading.repository.store().list(&layout.events())? {
            if listed
                .name
                .parse::<crate::repo::layout::BackupId>()
                .is_err()
            {
                continue;
            }
            let events = event::read_all(reading.repository.store(), &layout, &listed.name)?;
            if !event::live_claims(&events, cx.now()).is_empty() {
                in_use.insert(listed.name);
            }
        }
    }
    Ok(Shown {
        decision,
        timeline: segment.timeline.decimal(),
        segment,
        copy,
        reason: args.reason.as_deref(),
        backups: backups.into_iter().collect(),
        in_use: in_use.into_iter().collect(),
        warnings: Vec::new(),
        recorded: Vec::new(),
        confirmed: args.confirm,
    })
}

fn finish(
    cx: &Context,
    args: &Args,
    (mut shown, mut failures): (Shown<'_>, Failures),
    changes: &[Change<'_>],
    write: impl Fn(&Change<'_>, &Writer<'_>) -> Result<String>,
) -> Result<u8> {
    if !cx.out.is_json() {
        print(cx, &shown)?;
    }
    let (clock, random) = (|| cx.now(), || cx.random());
    let writer = Writer::new(&clock, &random);
    if args.confirm {
        for change in changes {
            let (reading, _) = change.place;
            let name = &reading.configured.name;
            match require_proof(reading, cx).and_then(|()| write(change, &writer)) {
                Ok(event) => shown.recorded.push(Recorded {
                    repository: name.clone(),
                    event: Some(event),
                }),
                Err(e) => {
                    failures.add(e, format!("record it in repository \"{name}\""));
                }
            }
        }
        failures.first_if(cx, shown.recorded.is_empty())?;
    }
    if cx.out.is_json() {
        cx.out.json(&shown)?;
    } else if args.confirm {
        for one in &shown.recorded {
            cx.out.report(&match &one.event {
                Some(event) => format!("recorded in {} as {event}", one.repository),
                None => format!("{} follows that copy already", one.repository),
            })?;
        }
    }
    let is_whole = failures.told(cx)?;
    if !args.confirm && !args.dry_run {
        return Err(
            err!(Refused, "nothing was changed, because --confirm is not given").hint(
                "The decision above would be recorded.\nAdd --confirm to do it, or --dry-run to only look.",
            ),
        );
    }
    Ok(match is_whole {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Partial),
    })
}

/// The event has to count, and decisions are ordered by their times.
fn require_proof(reading: &Reading, cx: &Context) -> Result<()> {
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}"));
    }
    clock::check(reading.repository.store(), cx.now())
        .map_err(|e: Error| e.context("date the decision"))
}

fn print(cx: &Context, shown: &Shown<'_>) -> Result<()> {
    let Shown {
        timeline, segment, ..
    } = shown;
    let then = match shown.decision {
        "resolve" => format!("the server of copy {}", shown.copy),
        _ => "the server that archived it first".to_owned(),
    };
    cx.out.line(&format!(
        "timeline {timeline} is followed from {segment} on as {then} wrote it"
    ))?;
    if !shown.backups.is_empty() {
        let backups = shown.backups.join(", ");
        cx.out.line(&format!(
            "backups of the life that is followed now: {backups}"
        ))?;
    }
    for id in &shown.in_use {
        cx.out.warn(&format!(
            "backup {id} is being taken, restored or copied: let that end first, for its WAL may change below it"
        ));
    }
    for warning in &shown.warnings {
        cx.out.warn(warning);
    }
    let note = match shown.decision {
        "resolve" => {
            "nothing is deleted: the other life stays, and pitr plan and restore --as-stored lead there. Stop its server. Versions of pitr before this command ignore the decision: every host that archives or restores needs this one"
        }
        _ => {
            "nothing is deleted. The server whose life is not followed any more waits with its next segment"
        }
    };
    cx.out.note(note);
    Ok(())
}
