//! `pitr expire`.

use std::str::FromStr;

use serde_json::json;

use super::output::Table;
use super::{Context, done_or_unconfirmed, expire_explain, partial_unless, warnings_unless};
use crate::config::Period;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::expire::{self, Asked, Done};
use crate::operate::human;
use crate::operate::of;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::plan::retention::log::{Gone, HistoryFate};
use crate::plan::retention::{Deletion, ExpirePlan, Fate, Judged, Policy};
use crate::redis::overview;
use crate::repo::id::BackupId;
use crate::repo::portion;
use crate::repo::runbook;
use crate::repo::set_mark::{self, Spent};
use crate::repo::slot_map;

/// Delete what is no longer to be kept
///
/// Keeps the backups that the rules of the configuration ask for ([clusters.NAME.retention]: keep_last, keep_daily, keep_weekly, keep_monthly,
/// keep_yearly, keep_within), or the newest N undamaged ones, and every moment from the oldest kept backup's end on; with wal_window, every
/// moment of that window, and older kept backups to their own ends. --dry-run shows what
/// would go; --confirm marks backups, and a run after the grace period deletes them. WAL that no backup can use goes at once.
///
/// Without either the plan is shown, and refused with exit status 8 if there is anything to do. Exit status 8 also when the clocks of
/// host and repository differ by more than ten minutes, and when only damaged backups are newer than the last good one, which is kept;
/// 10 when the repository refused to delete something; 6 when WAL or more is withheld from deletion, with the cause.
///
/// Without --cluster it goes through all clusters of the configuration, and other content.
///
/// Example: pitr expire --keep 7 --dry-run
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Keep this many complete, undamaged backups, at least 1, in the place of keep_last; other rules of the configuration hold, too
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,

    /// Keep this many complete, undamaged backups where the configuration has no rule
    #[arg(long, value_name = "N", conflicts_with = "keep")]
    pub default_keep: Option<u32>,

    /// Delete only what was marked this long ago
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub grace: Period,

    /// Let a backup go only when a newer one was verified (pitr verify) and is this old; 0s: at once, but for the newest verified one
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub min_age: Period,

    /// Go on although more than twice as many backups as usual were taken on one of the last seven days
    #[arg(long)]
    pub confirm_burst: bool,

    /// Give up this backup, which was complete and whose root is lost; may be repeated
    #[arg(long, value_name = "ID")]
    pub give_up: Vec<BackupId>,

    /// Show what would happen and change nothing
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Change nothing, and say of one backup which rule keeps it and until when, or of one segment, or of a place in the log of Redis, which backups need it, or why a mark or a stored runbook of a recovery set goes
    #[arg(long, value_name = "ID|SEGMENT|REPLID:N|MARK|RUNBOOK", conflicts_with_all = ["confirm", "dry_run"])]
    pub explain: Option<Explained>,

    /// Mark what is not kept, and delete what was marked before the grace period
    #[arg(long)]
    pub confirm: bool,
}

/// A backup or a segment of which an explanation is wanted.
#[derive(Debug, Clone)]
pub enum Explained {
    /// A backup.
    Backup(BackupId),
    /// A segment.
    Segment(SegmentName),
    /// A history of Redis, and a position in it.
    Log(String, u64),
    /// A mark of a recovery set.
    Mark(String),
    /// A runbook that is stored with marks.
    Runbook(String),
}

impl FromStr for Explained {
    type Err = Error;

    fn from_str(text: &str) -> Result<Explained> {
        let position = overview::parse_target(text);
        match (text.parse(), text.parse(), position) {
            (Ok(id), ..) => Ok(Explained::Backup(id)),
            (_, Ok(WalFileName::Segment(name)), _) => Ok(Explained::Segment(name)),
            (.., Some((replid, position))) => Ok(Explained::Log(replid, position)),
            _ if set_mark::is_name(text) => Ok(Explained::Mark(text.to_owned())),
            _ if runbook::is_name(text) => Ok(Explained::Runbook(text.to_owned())),
            _ => Err(err!(
                Usage,
                "\"{}\" is neither the id of a backup nor the name of a segment, a mark or a runbook, nor a place in the log of Redis (REPLID:N)",
                text.escape_debug()
            )),
        }
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let policy = Policy {
        grace: args.grace.duration(),
        given_up: args.give_up.iter().cloned().collect(),
        min_age: args.min_age.duration(),
        confirm_burst: args.confirm_burst,
        ..Policy::default()
    };
    let asked = Asked {
        keep: at_least_one(args.keep)?,
        default_keep: at_least_one(args.default_keep)?,
        policy,
        is_confirmed: args.confirm,
    };
    cx.stop_in_order()?;
    let (done, mut failures) = expire::run(&cx.session, &asked)?;
    if let Some(explained) = &args.explain {
        let reported = expire_explain::report(cx, explained, &done);
        if let Err(e) = &reported
            && e.code() == Code::NotFound
        {
            // A repository that could not be read may be the one that has it.
            failures.first_if(&cx.session, true)?;
        }
        reported?;
        return partial_unless(cx.told(failures)?);
    }
    report(cx, args, &done)?;
    failures.first_if(&cx.session, done.iter().all(|d| d.is_cut_short))?;
    let is_whole = cx.told(failures)?;
    status(args, &done, is_whole)
}

/// How many backups the command line asks for; never none.
fn at_least_one(keep: Option<u32>) -> Result<Option<u32>> {
    match keep {
        Some(0) => Err(err!(Config, "at least 1 backup has to be kept").hint(
            "Nothing was deleted. Say how many with --keep N, at least 1: pitr expire --keep 7 --dry-run",
        )),
        keep => Ok(keep),
    }
}

fn status(args: &Args, done: &[Done], is_whole: bool) -> Result<u8> {
    if let Some(refusal) = done.iter().find_map(|d| d.plan.refusal.as_ref()) {
        return Err(err!(Refused, "{refusal}").hint(
            "No good backup was deleted.\nTake a backup, and run pitr verify to see what is damaged: pitr backup",
        ));
    }
    if let Some(burst) = done.iter().find_map(|d| d.plan.burst.as_ref()) {
        return Err(err!(Refused, "{burst}").hint(
            "A timer in a loop, or another server under this name, takes backups: pitr info shows them.\nIf they were wanted, add --confirm-burst: the newest are kept, whatever they push out.",
        ));
    }
    if !is_whole {
        return partial_unless(false);
    }
    let refused: u64 = done
        .iter()
        .filter_map(|d| d.outcome.as_ref())
        .map(|o| o.refused_count)
        .sum();
    if refused > 0 {
        return Err(err!(
            Partial,
            "the repository refused {}",
            human::count(refused, "deletion")
        )
        .hint("What is left is tried again by the next run. Run it as the user that owns the repository."));
    }
    let is_enough = args.dry_run || args.confirm || done.iter().all(|d| d.plan.only_clears());
    done_or_unconfirmed(is_enough, "The plan above would be carried out.")?;
    // A disk that fills because nothing goes is no success.
    Ok(warnings_unless(
        done.iter().all(|d| d.plan.withheld.is_empty()),
    ))
}

fn report(cx: &Context, args: &Args, done: &[Done]) -> Result<()> {
    if cx.is_json() {
        let mut all = of::split(done, |one| &one.of, shown);
        all.insert("confirmed".to_owned(), args.confirm.into());
        return cx.json(&all);
    }
    for one in done {
        // A run that went as planned is no news.
        if !cx.is_quiet() || !one.went_well() {
            print(cx, one)?;
        }
        warn(cx, one);
    }
    Ok(())
}

fn shown(done: &Done) -> serde_json::Value {
    let plan = &done.plan;
    let backups: Vec<_> = plan.backups.iter().map(shown_backup).collect();
    let size = done.segment_size;
    let deletions: Vec<_> = plan.deletions.iter().map(|d| deletion(d, size)).collect();
    let mut value = json!({
        "repository": done.repository,
        "backups": backups,
        "marks": plan.marks,
        "unmarks": plan.unmarks.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        "tombstones": plan.tombstones,
        "deletions": deletions,
        "segments": plan.segment_count(),
        "withheld": plan.withheld,
        "warnings": done.warnings().collect::<Vec<_>>(),
        "refusal": plan.refusal,
        "burst": plan.burst,
        "waiting": plan.waiting,
        "window_begin": plan.window_begin,
        "trimmed": plan.trimmed(),
        "outcome": done.outcome.as_ref().map(|o| json!({
            "marked": o.marked,
            "deleted_backups": o.deleted_backups,
            "deleted_segments": o.deleted_segments,
            "deleted_objects": o.deleted_objects,
            "refused": o.refused,
            "refused_count": o.refused_count,
            "locked": o.locked,
            "locked_count": o.locked_count,
            "cleared": o.cleared,
            "uncleared": o.uncleared,
        })),
    });
    let runs = plan.short.iter();
    let runs: Vec<_> = runs
        .filter_map(|(timeline, first, last)| {
            let name = |number: &SegmentNumber| number.name(*timeline, size);
            Some(json!({ "first": name(first)?, "last": name(last)? }))
        })
        .collect();
    if !runs.is_empty() {
        value["short_of_copies"] = runs.into();
    }
    if !plan.log.is_empty() {
        value["log"] = plan.log.iter().map(shown_history).collect();
    }
    if !plan.spent.is_empty() {
        let spent = |one: &Spent| json!({ "mark": one.mark, "why": one.why });
        value["spent"] = plan.spent.iter().map(spent).collect();
    }
    if !plan.runbooks.is_empty() {
        value["runbooks"] = json!(plan.runbooks);
    }
    done.of.named(value)
}

fn shown_history(history: &HistoryFate) -> serde_json::Value {
    json!({
        "replid": history.replid,
        "from": history.stored.map(|(from, _)| from),
        "to": history.stored.map(|(_, to)| to),
        "needed_from": history.needed_from(),
        "gone": history.gone.map(|gone| json!({
            "before": gone.before,
            "objects": gone.objects,
            "bytes": gone.bytes,
        })),
    })
}

pub(super) fn shown_backup(backup: &Judged) -> serde_json::Value {
    let not_before = match backup.fate {
        Fate::Waiting(due) => Some(due),
        _ => None,
    };
    let mut shown = json!({
        "id": backup.id,
        "stop_time": backup.stop_time,
        "stored_bytes": backup.stored_bytes,
        "damaged": backup.damage.is_some(),
        "damage": backup.damage,
        "fate": backup.fate.as_str(),
        "not_before": not_before,
        "reason": backup.reason,
        "rules": backup.rules,
        "kept_until": backup.kept_until,
        "to_its_end_only": backup.is_bounded,
    });
    if let Some(place) = backup.place {
        shown["timeline"] = place.timeline.get().into();
        shown["start_lsn"] = json!(place.start_lsn);
        shown["stop_lsn"] = json!(place.stop_lsn);
    }
    shown
}

fn deletion(deletion: &Deletion, size: SegmentSize) -> serde_json::Value {
    let many = |kind: &str, id: &dyn std::fmt::Display, first: u32, last: u32| json!({ "kind": kind, "backup": id.to_string(), "first": first, "last": last });
    let one = |kind: &str, name: &dyn std::fmt::Display| json!({ "kind": kind, "name": name.to_string() });
    match deletion {
        Deletion::Manifest(id) => one("backup", id),
        Deletion::ServerManifest(id) => one("server_manifest", id),
        Deletion::Relations(id) => one("relations", id),
        Deletion::Layers(id, first, last) => many("layers", id, *first, *last),
        Deletion::Packs(id, first, last) => many("packs", id, *first, *last),
        Deletion::Segments(timeline, first, last) => {
            let name = |n: &SegmentNumber| n.name(*timeline, size);
            json!({ "kind": "segments", "timeline": timeline.get(), "first": name(first), "last": name(last), "count": last.0 - first.0 + 1 })
        }
        Deletion::WalFile(name) => one("wal_file", name),
        Deletion::Object(key) => one("object", key),
        Deletion::Event(subject, name) => {
            json!({ "kind": "event", "subject": subject, "name": name })
        }
        Deletion::Tombstone(id) => one("tombstone", id),
        Deletion::Begin(id) => one("reservation", id),
        Deletion::Unfinished(path) => one("unfinished", path),
        Deletion::Spent(id, spent) => {
            let names = [&spent.releases[..], &spent.claims[..]].concat();
            json!({ "kind": "claims", "backup": id.to_string(), "names": names })
        }
    }
}

fn print(cx: &Context, done: &Done) -> Result<()> {
    let plan = &done.plan;
    cx.line(&format!(
        "{} in repository {}",
        done.of.title(),
        done.repository
    ))?;
    let unit = human::SizeUnit::for_largest(plan.backups.iter().map(|b| b.stored_bytes));
    let row = |backup: &Judged| {
        let what = match backup.fate {
            Fate::Waiting(due) => format!("deleted after {}", human::time(due)),
            fate => fate.as_str().to_owned(),
        };
        let why = match &backup.damage {
            Some(damage) => format!("{}; damaged: {damage}", backup.reason),
            None => backup.reason.clone(),
        };
        let place = backup.place;
        [
            backup.id.to_string(),
            place.map_or_else(String::new, |p| p.timeline.decimal().to_string()),
            place.map_or_else(String::new, |p| p.stop_lsn.to_string()),
            human::time(backup.stop_time),
            unit.show(backup.stored_bytes),
            what,
            why,
        ]
    };
    if is_set(done) {
        // A set has marks alone.
    } else if plan.backups.is_empty() {
        cx.line("no backup")?;
    } else {
        let stored = unit.name();
        let table = Table::of(&format!(
            "backup | >timeline | stop LSN | complete | >stored {stored} | what | why"
        ));
        cx.table(&table.rows(plan.backups.iter().map(row)))?;
    }
    cx.lines(lines(done))
}

pub(super) fn is_set(done: &Done) -> bool {
    matches!(&done.of, of::Of::Scope(scope) if scope.kind() == Some(set_mark::KIND))
}

fn warn(cx: &Context, done: &Done) {
    for warning in done.warnings().chain(&done.plan.withheld) {
        let (title, repository) = (done.of.title(), &done.repository);
        cx.warn(&format!("{title} in repository {repository}: {warning}"));
    }
    if let Some(o) = &done.outcome {
        cx.tell_left(("delete", "deleted yet"), &o.refused, &o.locked);
    }
}

/// Says how much of a history of Redis goes.
fn line_of_log(history: &HistoryFate) -> Option<String> {
    Some(log_that_goes(&history.replid, history.gone?))
}

/// The log of a history of Redis that goes, in words.
pub(super) fn log_that_goes(replid: &str, gone: Gone) -> String {
    let size = human::size(gone.bytes);
    let count = human::count(gone.objects, "object");
    match gone.before {
        Some(before) => {
            format!(
                "log that no backup needs: history {replid} before position {before} ({count}, {size})"
            )
        }
        None => {
            format!("log to which no backup leads: history {replid}, all of it ({count}, {size})")
        }
    }
}

/// WAL that stays for other repositories, in words.
pub(super) fn wal_that_stays(first: &str, last: &str, segments: u64) -> String {
    let count = human::count(segments, "segment");
    format!(
        "WAL that stays for min_copies: {first} to {last} ({count}); another repository needs it and has not got it yet"
    )
}

fn lines(done: &Done) -> Vec<String> {
    let plan = &done.plan;
    let mut lines = Vec::new();
    let size = done.segment_size;
    for deletion in &plan.deletions {
        if let Deletion::Segments(timeline, first, last) = deletion
            && let (Some(from), Some(to)) =
                (first.name(*timeline, size), last.name(*timeline, size))
        {
            let count = human::count(last.0 - first.0 + 1, "segment");
            lines.push(format!("WAL that nothing needs: {from} to {to} ({count})"));
        }
    }
    for (timeline, first, last) in &plan.short {
        if let (Some(from), Some(to)) = (first.name(*timeline, size), last.name(*timeline, size)) {
            let count = last.0 - first.0 + 1;
            lines.push(wal_that_stays(&from.to_string(), &to.to_string(), count));
        }
    }
    lines.extend(plan.log.iter().filter_map(line_of_log));
    if let (Some(first), Some(last)) = (plan.spent.first(), plan.spent.last()) {
        let count = human::count(plan.spent.len() as u64, "mark");
        lines.push(format!(
            "marks that nobody can use: {} to {} ({count}); the newest: {}",
            first.mark, last.mark, last.why
        ));
    }
    if !plan.runbooks.is_empty() {
        let count = human::count(plan.runbooks.len() as u64, "runbook");
        let names = plan.runbooks.join(", ");
        lines.push(format!("stored {count} that no mark names: {names}"));
    }
    lines.extend(plan.waiting.iter().map(|w| format!("waiting: {w}")));
    for id in &plan.tombstones {
        lines.push(format!("aborted backup: {id}"));
    }
    let leftovers = plan
        .deletions
        .iter()
        .filter(|d| matches!(d, Deletion::Unfinished(_)))
        .count();
    if leftovers > 0 {
        let count = human::count(leftovers as u64, "file");
        lines.push(format!("left by unfinished writes: {count}"));
    }
    let is_slots =
        |d: &&Deletion| matches!(d, Deletion::Event(day, _) if day.starts_with(slot_map::SUBJECT));
    let slots = plan.deletions.iter().filter(is_slots).count();
    if slots > 0 {
        let count = human::count(slots as u64, "record");
        lines.push(format!(
            "slots of a shard that later records repeat: {count}"
        ));
    }
    lines.extend(cleared(plan));
    let has_log = !plan.log.is_empty();
    let what = if has_log { "log" } else { "WAL" };
    if let (Some(begin), Some(_)) = (plan.window_begin, plan.oldest_kept()) {
        lines.push(format!(
            "every moment from {} on (wal_window) stays reachable, as far as its {what} is there; backups before it are restorable to their own ends",
            human::time(begin)
        ));
    } else if let Some(oldest) = plan.oldest_kept().filter(|_| has_log) {
        lines.push(format!(
            "every moment from {} on stays reachable, as far as its log is there",
            human::time(oldest.stop_time)
        ));
    } else if let Some((oldest, place)) = plan.oldest_kept().and_then(|o| Some((o, o.place?))) {
        lines.push(format!(
            "every point from {} on ({}) stays reachable, as far as its WAL is there",
            place.stop_lsn,
            human::time(oldest.stop_time)
        ));
    }
    if let Some(o) = &done.outcome {
        lines.push(format!(
            "{}marked {}, deleted {}, {}, {} in all",
            match done.is_cut_short {
                true => "before it ended early: ",
                false => "",
            },
            human::count(o.marked.len() as u64, "backup"),
            human::count(o.deleted_backups.len() as u64, "backup"),
            human::count(o.deleted_segments, "segment"),
            human::count(o.deleted_objects, "object"),
        ));
        if o.locked_count > 0 {
            let count = human::count(o.locked_count, "object");
            lines.push(format!(
                "kept by the store's lock, for a later run: {count}"
            ));
        }
        if o.cleared > 0 {
            let count = human::count(o.cleared, "record");
            lines.push(format!("cleared away: {count} of copies that are over"));
        }
        if o.uncleared > 0 {
            let count = human::count(o.uncleared, "backup");
            lines.push(format!(
                "claims of copies that the store keeps, for a later run: those of {count}"
            ));
        }
    } else if plan.is_empty() {
        lines.push("nothing to do".to_owned());
    } else if plan.only_clears() {
        lines.push("nothing to do; --confirm clears away what is named above".to_owned());
    }
    lines
}

/// Says what goes of events that tell nothing any more.
fn cleared(plan: &ExpirePlan) -> Vec<String> {
    let claims = plan.deletions.iter().map(|deletion| match deletion {
        Deletion::Spent(_, spent) => spent.claims.len() as u64,
        _ => 0,
    });
    let is_check =
        |d: &&Deletion| matches!(d, Deletion::Event(subject, _) if subject == portion::SUBJECT);
    let checks = plan.deletions.iter().filter(is_check).count() as u64;
    let counts = [
        ("claims of copies that are over", claims.sum::<u64>()),
        ("records of checks that tell nothing any more", checks),
    ];
    let some = counts.into_iter().filter(|(_, count)| *count > 0);
    some.map(|(what, count)| format!("{what}: {count}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::exit;
    use crate::expire::Outcome;
    use crate::plan::retention::claims::SpentClaims;
    use crate::repo::scope::Scope;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn done(deletions: Vec<Deletion>, outcome: Option<Outcome>) -> Done {
        Done {
            repository: "local".to_owned(),
            of: of::Of::Scope(Scope::cluster("main", 7).unwrap()),
            segment_size: SegmentSize::DEFAULT,
            plan: ExpirePlan {
                deletions,
                ..ExpirePlan::default()
            },
            outcome,
            warning: None,
            is_cut_short: false,
        }
    }

    /// The claims of two copies, and the release of one, and a check that a later one repeats.
    fn over() -> Vec<Deletion> {
        let spent = SpentClaims {
            releases: vec!["c".to_owned()],
            claims: vec!["a".to_owned(), "b".to_owned()],
        };
        let id = "20261120T064049Z-full".parse().unwrap();
        let check = Deletion::Event(portion::SUBJECT.to_owned(), "d".to_owned());
        vec![check, Deletion::Spent(id, spent)]
    }

    #[test]
    fn x39_claims_of_copies_alone_are_no_plan_to_confirm() {
        let args = Line::try_parse_from(["x"]).unwrap().args;
        let only = done(over(), None);
        let named = [
            "claims of copies that are over: 2",
            "records of checks that tell nothing any more: 1",
        ];
        let nothing = "nothing to do; --confirm clears away what is named above";
        assert_eq!(lines(&only), [&named[..], &[nothing][..]].concat());
        assert_eq!(status(&args, &[only], true).unwrap(), exit::SUCCESS);
        // Beside anything else they are named, and that is asked for.
        let more = [over(), vec![Deletion::Unfinished("x".to_owned())]].concat();
        let more = done(more, None);
        let unfinished = "left by unfinished writes: 1 file";
        assert_eq!(lines(&more), [&[unfinished][..], &named[..]].concat());
        let refused = status(&args, &[more], true).unwrap_err();
        assert_eq!(refused.code(), Code::Refused);
        assert_eq!(lines(&done(Vec::new(), None)), ["nothing to do"]);
    }

    #[test]
    fn x39_what_was_cleared_away_is_told_apart_from_objects() {
        let outcome = Outcome {
            deleted_objects: 1,
            cleared: 3,
            uncleared: 1,
            ..Outcome::default()
        };
        let all = lines(&done(over(), Some(outcome)));
        assert_eq!(
            all[2..],
            [
                "marked 0 backups, deleted 0 backups, 0 segments, 1 object in all",
                "cleared away: 3 records of copies that are over",
                "claims of copies that the store keeps, for a later run: those of 1 backup",
            ]
        );
    }

    #[test]
    fn x39_claims_of_copies_are_named_in_json() {
        let one = over().pop().unwrap();
        assert_eq!(
            deletion(&one, SegmentSize::DEFAULT),
            json!({
                "kind": "claims",
                "backup": "20261120T064049Z-full",
                "names": ["c", "a", "b"],
            })
        );
    }
}
