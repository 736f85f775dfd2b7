//! `pitr wal resolve`: gives the fork of a timeline to the server whose copy was refused.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Context;
use super::timeline;
use crate::archive::resolve::{self, Fork, State};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::failures::Failures;
use crate::operate::held::Held;
use crate::operate::reading::Reading;
use crate::operate::unproven;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::timeline::{History, TimelineId};
use crate::plan::cluster::Tree;
use crate::repo::clock;
use crate::repo::event::{self, Writer};
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::{Life, Lives, is_copy};
use crate::wal::inventory::Inventory;

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
    /// Backups that stop behind the fork, whichever server they were taken from.
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
    let Held {
        readings: places,
        failures,
    } = Held::read(&cx.session)?;
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
    let mut refused = None;
    let mut others = Vec::new();
    for place in places {
        let (reading, inventory) = place;
        let layout = inventory.layout()?;
        match resolve::look(&reading.repository, &layout, fork)? {
            State::Absent => {}
            State::Other => others.push(Change { place, layout }),
            State::Followed => shown.recorded.push(Recorded {
                repository: reading.configured.name.clone(),
                event: None,
            }),
            State::Refused(copy) => {
                refused.get_or_insert((copy, reading.repository.marker().key_set.clone()));
                changes.push(Change { place, layout });
            }
        }
    }
    let Some((refused, key_set)) = refused else {
        return match shown.recorded.is_empty() {
            true => Err(err!(
                NotFound,
                "no repository has a refused copy {} of \"{}\"",
                fork.copy,
                fork.segment
            )
            .hint("Nothing was changed. See the refused copies: pitr wal conflicts")),
            false => finish(cx, args, (shown, failures), &[], |_, _| Ok(String::new())),
        };
    };
    // A server waits at the first repository that refuses its segment, and the next one has not been offered it.
    for other in others {
        match other.place.0.repository.marker().key_set == key_set {
            true => changes.push(other),
            false => shown.warnings.push(format!(
                "repository \"{}\" has other keys, and names the copy otherwise: resolve the fork there by itself, --repository {0}",
                other.place.0.configured.name
            )),
        }
    }
    for change in &changes {
        let (reading, inventory) = change.place;
        require_one_history(inventory, fork.segment.timeline)?;
        shown.warnings.extend(check_children(inventory, fork)?);
        let warning = resolve::check(&reading.repository, &change.layout, fork, &refused)?;
        shown.warnings.extend(warning);
    }
    let write = |change: &Change<'_>, writer: &Writer<'_>| -> Result<String> {
        let (reading, _) = change.place;
        let reason = args.reason.as_deref();
        resolve::resolve(
            &reading.repository,
            &change.layout,
            (fork, reason),
            &refused,
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
    let all = || {
        places
            .iter()
            .flat_map(|(_, inventory)| inventory.lives.iter())
    };
    let Some(life) = all().find(|l| l.event == event) else {
        return Err(err!(
            NotFound,
            "no standing decision is called \"{}\"",
            event.escape_debug()
        )
        .hint("Nothing was changed. See the decisions: pitr wal conflicts"));
    };
    let is_own = |l: &&Life| (l.segment, &l.copy) == (life.segment, &life.copy);
    let fork = Fork {
        segment: life.segment,
        copy: life.copy.clone(),
    };
    let mut shown = shown(cx, args, "unresolve", (life.segment, &life.copy), places)?;
    let mut changes = Vec::new();
    for place in places
        .iter()
        .filter(|(_, i)| i.lives.iter().any(|l| is_own(&l)))
    {
        shown.warnings.extend(check_children(&place.1, &fork)?);
        require_former(place, &is_own, life)?;
        changes.push(Change {
            place,
            layout: place.1.layout()?,
        });
    }
    let write = |change: &Change<'_>, writer: &Writer<'_>| -> Result<String> {
        let (reading, inventory) = change.place;
        let mut last = String::new();
        for one in inventory.lives.iter().filter(is_own) {
            let what = (one, args.reason.as_deref());
            last = resolve::undo(&reading.repository, &change.layout, what, writer)?;
        }
        Ok(last)
    };
    finish(cx, args, (shown, failures), &changes, write)
}

/// Requires that every timeline which descends from this one has the same history of it. Two servers that were promoted to one number have two
/// timelines, and the archive has the history of one: no life of that number leads to the other.
fn require_one_history(inventory: &Inventory, timeline: TimelineId) -> Result<()> {
    let tree = Tree::of(inventory);
    let Some(own) = tree.history(timeline) else {
        return Ok(());
    };
    let points = |h: &History| -> Vec<(TimelineId, Lsn)> {
        let before = h.ancestors().iter().take_while(|a| a.timeline != timeline);
        before.map(|a| (a.timeline, a.switch_lsn)).collect()
    };
    let descends = |h: &&History| h.switch_point(timeline).is_some();
    let mut others = tree
        .timelines()
        .filter_map(|t| tree.history(t))
        .filter(descends);
    match others.find(|h| points(h) != points(own)) {
        None => Ok(()),
        Some(other) => Err(err!(
            Refused,
            "timeline {} descends from another timeline {} than the archived one: two servers were promoted to that number",
            other.timeline().decimal(),
            timeline.decimal()
        )
        .hint("Nothing was changed: the archive has the history of one of the two, and nothing would lead through the other. Give the server that waits a name of its own: pitr adopt --as NAME, or pitr init --cluster NAME, then pitr backup.")),
    }
}

/// Requires that the life which would be followed again still has its first segment: once that was expired, nothing leads into it.
fn require_former(
    (reading, inventory): &Place,
    is_own: &dyn Fn(&&Life) -> bool,
    life: &Life,
) -> Result<()> {
    let left = inventory.lives.iter().filter(|l| !is_own(l));
    let left = left.fold(Lives::default(), |lives, life| lives.with(life.clone()));
    let layout = inventory.layout()?.with_lives(left);
    let key = layout.segment(life.segment);
    match reading.repository.store().head(&key)? {
        Some(_) => Ok(()),
        None => Err(err!(
            Refused,
            "what was followed before that decision has been expired: \"{key}\" is not in repository \"{}\"",
            reading.configured.name
        )
        .hint("Nothing was changed. The decision stays: nothing would lead to what the other server wrote.")),
    }
}

/// Requires that no timeline with WAL of its own continues the life that is followed now behind the fork: it could not be reached any more. Returns
/// a warning for one of which that is not so, or not known.
fn check_children(inventory: &Inventory, fork: &Fork) -> Result<Option<String>> {
    let size = inventory.segment_size;
    let parent = fork.segment.timeline;
    let start = fork.segment.number(size)?.start_lsn(size);
    let tree = Tree::of(inventory);
    let abandoned = tree.abandoned(&inventory.decisions);
    let mut doubtful = Vec::new();
    for (id, held) in &inventory.timelines {
        let left = tree.history(*id).and_then(|h| h.switch_point(parent));
        let Some(left) = left.filter(|left| *left > start) else {
            continue;
        };
        if held.segments.is_empty() || abandoned.contains(id) {
            continue;
        }
        // Recovery reads the child's copy of the segment in which it was left, and the parent's up to there.
        let last = SegmentNumber::of(left, size).0.saturating_sub(1);
        match inventory.has(parent, SegmentNumber(last)) {
            false => doubtful.push(id.decimal().to_string()),
            true => {
                return Err(err!(
                    Refused,
                    "timeline {} leaves timeline {} behind the fork, and has WAL of its own",
                    id.decimal(),
                    parent.decimal()
                )
                .hint(format!(
                    "Nothing was changed. It continues the WAL that is followed now, and could be restored only as that is followed.\nIf it is a drill or a clone: pitr timeline abandon {} --reason TEXT. If it is the cluster, the WAL that is followed is the right one.",
                    id.decimal()
                )));
            }
        }
    }
    Ok((!doubtful.is_empty()).then(|| {
        format!(
            "timeline {} leaves timeline {} behind the fork: what is followed now does not lead to it",
            doubtful.join(" and "),
            parent.decimal()
        )
    }))
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
            if listed.name.parse::<crate::repo::id::BackupId>().is_err() {
                continue;
            }
            let events = event::read_all(reading.repository.store(), &layout, &listed.name)?;
            if !event::live_claims(&events, cx.session.host.now()).is_empty() {
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
    let host = &cx.session.host;
    let writer = Writer::of(&host);
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
        failures.first_if(&cx.session, shown.recorded.is_empty())?;
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
    let is_whole = cx.told(failures)?;
    if !args.confirm && !args.dry_run {
        return Err(super::unconfirmed("The decision above would be recorded."));
    }
    timeline::partial_unless(is_whole)
}

/// The event has to count, and decisions are ordered by their times.
fn require_proof(reading: &Reading, cx: &Context) -> Result<()> {
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}"));
    }
    clock::check(reading.repository.store(), cx.session.host.now())
        .map_err(|e: Error| e.context("date the decision"))
}

fn print(cx: &Context, shown: &Shown<'_>) -> Result<()> {
    let Shown {
        timeline, segment, ..
    } = shown;
    let then = match shown.decision {
        "resolve" => format!("the server of copy {}", shown.copy),
        _ => "its server before that decision".to_owned(),
    };
    cx.out.line(&format!(
        "timeline {timeline} is followed from {segment} on as {then} wrote it"
    ))?;
    if !shown.backups.is_empty() {
        let backups = shown.backups.join(", ");
        cx.out.line(&format!(
            "backups of timeline {timeline} behind the fork, of which those of the other server need --as-stored then: {backups}"
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
