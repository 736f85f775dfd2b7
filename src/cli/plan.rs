//! `pitr plan`.

use super::Context;
use super::target::TargetArgs;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::fault;
use crate::operate::choice::{Question, Unless};
use crate::operate::former;
use crate::operate::how_long;
use crate::operate::human;
use crate::operate::opened;
use crate::operate::reading::Reading;
use crate::plan::estimate::Estimate;
use crate::plan::recovery::{
    Action, EndKind, Moment, Outcome, Plan, Side, Stop, StopRecord, TransactionEnd,
};

/// Show what a restore would do, and prove its outcome
///
/// Prints the backup, the WAL and the timelines it needs, the last commit that will be replayed and the first that will not.
/// When the target is out of reach (exit status 5), says why, and names the nearest reachable moments. Changes nothing.
///
/// Example: pitr plan --target-time "2026-11-20 06:40:49+01" --exclusive
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Names of missing segments that people see; machines get more.
const MISSING_SHOWN: usize = 8;

/// Backups that were not taken and that people see; machines get all.
const NOT_TAKEN_SHOWN: usize = 3;

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    // An error in the words is reported before anything is opened.
    let target = args.target.parse()?;
    fault::pause("plan");
    let first = opened::open(&cx.session, Reading::open(&cx.session)?)?;
    former::warn(&cx.session, &first.reading, &first.inventory);
    let question = Question {
        target: &target,
        action: Action::Promote,
        is_carried_out: false,
    };
    let chosen = question.answer(&cx.session, first)?;
    let estimate = how_long::of_plan(&cx.session, &chosen.opened, &chosen.plan);
    let shown = Shown {
        plan: &chosen.plan,
        estimate,
    };
    let local_time = chosen.resolved.local_time.as_deref();
    cx.answer(&shown, || print(cx, &shown, local_time))?;
    match chosen.unless {
        None => {
            // The plan holds, and yet a restore would not get far.
            chosen.opened.require_thawed(&cx.session, &chosen.plan)?;
            Ok(exit::SUCCESS)
        }
        Some(Unless::OutOfReach { next, .. }) => {
            if let Some(next) = next {
                cx.note(&next);
            }
            Ok(exit::status(Program::Pitr, Code::OutOfReach))
        }
        Some(Unless::NotKnown(e)) => fail(cx, e),
    }
}

/// Ends with an error behind a plan that is shown: where that is JSON it stays the only document.
pub fn fail(cx: &Context, e: Error) -> Result<u8> {
    match cx.is_json() {
        true => Ok(exit::status(Program::Pitr, e.code())),
        false => Err(e),
    }
}

/// A plan, and how long it takes.
#[derive(serde::Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    estimate: Option<Estimate>,
}

/// Prints a plan; `local_time` is a target time as it was written.
pub fn show(cx: &Context, plan: &Plan, local_time: Option<&str>) -> Result<()> {
    let estimate = None;
    cx.answer(plan, || print(cx, &Shown { plan, estimate }, local_time))
}

fn print(cx: &Context, shown: &Shown<'_>, local_time: Option<&str>) -> Result<()> {
    cx.line(render(shown, local_time).trim_end())?;
    cx.warn_all(&shown.plan.warnings);
    Ok(())
}

fn render(shown: &Shown<'_>, local_time: Option<&str>) -> String {
    let plan = shown.plan;
    let mut page = Page::default();
    let mut asked = plan.target.target.to_string();
    if let Some(local) = local_time {
        asked.push_str(&format!(" ({local})"));
    }
    if plan.target.target.has_sides() && plan.target.inclusive == crate::plan::target::Inclusive::No
    {
        asked.push_str(", exclusive");
    }
    page.add("target", &asked);
    page.add("outcome", &outcome(plan));
    match plan.reachable {
        true => reachable(plan, shown.estimate.as_ref(), &mut page),
        false => unreachable(plan, &mut page),
    }
    if !plan.backups_not_chosen.is_empty() {
        page.blank();
        for other in plan.backups_not_chosen.iter().take(NOT_TAKEN_SHOWN) {
            page.add("not taken", &format!("{}: {}", other.id, other.detail));
        }
        let more = plan
            .backups_not_chosen
            .len()
            .saturating_sub(NOT_TAKEN_SHOWN);
        if more > 0 {
            let more = human::count(more as u64, "more backup");
            page.add("not taken", &format!("{more}; --json names all"));
        }
    }
    page.0
}

/// Labels on the left, values on the right.
#[derive(Default)]
struct Page(String);

impl Page {
    fn add(&mut self, label: &str, value: &str) {
        self.0.push_str(&format!("{label:<15} {value}\n"));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }
}

fn outcome(plan: &Plan) -> String {
    let explanation = plan.explanation.as_deref().unwrap_or_default();
    match (&plan.stop, plan.outcome) {
        (Some(stop), Outcome::StopsAtTarget) => format!("recovery stops {}", stop_text(stop)),
        (Some(stop), Outcome::EndOfWal) => {
            format!(
                "everything archived is replayed, up to {}",
                stop.recovery_end_lsn
            )
        }
        _ => format!("out of reach: {explanation}"),
    }
}

fn stop_text(stop: &Stop) -> String {
    let side = match stop.side {
        Side::Before => "before",
        Side::After => "after",
    };
    let time = stop.time.map(human::exact_time).unwrap_or_default();
    let xid = stop.xid.unwrap_or_default();
    match stop.record {
        StopRecord::Commit => format!(
            "{side} the commit of transaction {xid} at {} ({time})",
            stop.lsn
        ),
        StopRecord::Abort => format!(
            "{side} the abort of transaction {xid} at {} ({time})",
            stop.lsn
        ),
        StopRecord::RestorePoint => {
            format!("{side} the restore point at {} ({time})", stop.lsn)
        }
        StopRecord::Record => format!("{side} the record at {}", stop.lsn),
    }
}

fn end_text(end: &TransactionEnd) -> String {
    let kind = match end.kind {
        EndKind::Commit => "transaction",
        EndKind::Abort => "abort of transaction",
    };
    format!(
        "{kind} {}, {}, at {}",
        end.xid,
        human::exact_time(end.time),
        end.lsn
    )
}

fn moment_text(moment: &Moment) -> String {
    let mut text = match moment.time {
        Some(time) => format!("{}, LSN {}", human::exact_time(time), moment.lsn),
        None => format!("LSN {}", moment.lsn),
    };
    if let Some(xid) = moment.xid {
        text.push_str(&format!(", transaction {xid}"));
    }
    text
}

fn reachable(plan: &Plan, estimate: Option<&Estimate>, page: &mut Page) {
    if let Some(backup) = &plan.backup {
        page.add(
            "backup",
            &format!(
                "{}, consistent at {} ({})",
                backup.id,
                backup.consistent_lsn,
                human::time(backup.stop_time)
            ),
        );
    }
    let path: Vec<String> = plan
        .timelines
        .iter()
        .map(|part| part.timeline.decimal().to_string())
        .collect();
    let target = plan.target_timeline.map_or(0, |t| t.decimal());
    let mut timelines = path.join(" > ");
    if plan.timelines.last().map(|p| p.timeline.decimal()) != Some(target) {
        timelines.push_str(&format!(" (on the way to {target})"));
    }
    page.add("timelines", &timelines);
    let needed = &plan.segments_needed;
    if let (Some(first), Some(last)) = (needed.first, needed.last) {
        let names = match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        };
        let count = human::count(needed.count, "segment");
        page.add("WAL", &format!("{count}, {names}, all there"));
    }
    let none = || "none after the start of the backup".to_owned();
    let last = plan.last_commit.as_ref().map_or_else(none, end_text);
    page.add("last commit", &last);
    let first = plan.first_excluded.as_ref();
    page.add(
        "first excluded",
        &first.map_or_else(|| "none is archived".into(), end_text),
    );
    page.add(
        "work",
        &format!(
            "{} to copy, {} of WAL to replay",
            human::size(plan.bytes_to_copy),
            human::size(plan.bytes_to_replay)
        ),
    );
    if let Some(estimate) = estimate {
        page.add("time", &how_long::line(estimate));
    }
    page.blank();
    for (name, value) in &plan.recovery_settings {
        page.add(
            "setting",
            &format!("{name} = '{}'", value.replace('\'', "''")),
        );
    }
}

fn unreachable(plan: &Plan, page: &mut Page) {
    if let Some(message) = &plan.fatal_message {
        page.add("PostgreSQL", &format!("would stop with FATAL: {message}"));
    }
    if plan.segments_missing_count > 0 {
        let shown: Vec<String> = plan
            .segments_missing
            .iter()
            .take(MISSING_SHOWN)
            .map(ToString::to_string)
            .collect();
        let mut text = format!(
            "{}: {}",
            human::count(plan.segments_missing_count, "segment"),
            shown.join(", ")
        );
        if plan.segments_missing_count > shown.len() as u64 {
            text.push_str(", …");
        }
        page.add("missing", &text);
    }
    let none = || "nothing".to_owned();
    page.add(
        "nearest before",
        &plan.nearest_before.as_ref().map_or_else(none, moment_text),
    );
    page.add(
        "nearest after",
        &plan.nearest_after.as_ref().map_or_else(none, moment_text),
    );
}
