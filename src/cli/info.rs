//! `pitr info`.

use super::output::Table;
use super::{Context, info_forecast, info_set, status_of};
use crate::error::Result;
use crate::operate::finding::{self, Finding};
use crate::operate::how_long;
use crate::operate::human::{self, SizeUnit};
use crate::operate::info::{self, BackupInfo, ClusterInfo};
use crate::operate::proven;
use crate::operate::read_back;
use crate::operate::scopes::ScopeInfo;
use crate::plan::window::Window;
use crate::repo::portion::Share;

/// Show what can be recovered, to when
///
/// One screen: clusters, backups, recovery windows and gaps. Exit status: 0 well, 6 warning, 1 critical. Without --cluster every cluster of
/// the configuration is shown, or of the repository where none is configured.
///
/// Example: pitr info --repository file:///var/backups/pitr
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show a recovery set instead: the moments that all members reach, and its marks
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if let Some(set) = &args.set {
        return info_set::run(set, cx);
    }
    let info = info::look(&cx.session)?;
    cx.answer(&info, || {
        for (index, shown) in info.clusters.iter().enumerate() {
            if index > 0 {
                cx.line("")?;
            }
            print(cx, shown)?;
        }
        for one in &info.scopes {
            print_scope(cx, one)?;
        }
        for running in &info.running {
            cx.line("")?;
            cx.line(&running.line())?;
        }
        Ok(())
    })?;
    if let Some(trouble) = info.agent_trouble {
        let (meaning, error) = (trouble.meaning(), &trouble.error);
        cx.warn(&format!("{meaning}: {error}"));
    }
    let state = info.state;
    cx.told(info.failures)?;
    Ok(status_of(state))
}

fn print(cx: &Context, shown: &ClusterInfo) -> Result<()> {
    cx.line(&format!(
        "cluster \"{}\", system identifier {}, PostgreSQL {}, in {}",
        shown.name, shown.system_identifier, shown.major, shown.repository
    ))?;
    cx.line(&shown.recovery_line())?;
    if shown.read_back != Share::default() {
        cx.line(&read_back::line(&shown.read_back))?;
    }
    if let Some(line) = proven::line(&shown.drills) {
        cx.line(&line)?;
    }
    if let Some(estimate) = &shown.estimate {
        let line = format!("time to recovery: {}", how_long::line(estimate));
        cx.line(&line)?;
    }
    if let Some(receiver) = &shown.receiver {
        cx.line(&receiver.line())?;
    }
    cx.lines(shown.repositories.iter().map(|lag| lag.line()))?;
    if !shown.backups.is_empty() {
        cx.line("")?;
        cx.table(&backups(&shown.backups))?;
    }
    if !shown.recovery_windows.is_empty() {
        cx.line("")?;
        let is_open = |w: &&Window| !w.ends_alone(&shown.inventory);
        let row = |w: &Window| {
            let (from, to) = human::window(w.from, w.to);
            let timeline = w.timeline.decimal().to_string();
            [timeline, from, to, w.to_lsn.to_string()]
        };
        let open = shown.recovery_windows.iter().filter(is_open);
        let table = Table::of(">timeline | recoverable from | to | up to LSN");
        cx.table(&table.rows(open.map(row)))?;
    }
    let alone = shown.recovery_windows.iter();
    let alone = alone.filter(|w| w.ends_alone(&shown.inventory));
    let alone = alone.map(|w| w.backups.len() as u64).sum();
    if alone > 0 {
        let count = human::count(alone, "older backup");
        cx.line(&format!(
            "besides: {count}, restorable with the WAL to its own end: pitr restore --target-immediate --backup ID"
        ))?;
    }
    cx.lines(shown.left_behind.iter().map(|left| left.line()))?;
    if let Some(forecast) = &shown.retention {
        cx.line("")?;
        let now = cx.session.host.now();
        cx.lines(info_forecast::lines(forecast, &shown.recovery_windows, now))?;
    }
    if !shown.others.is_empty() {
        cx.line("")?;
    }
    cx.lines(shown.others.iter().map(|other| other.line()))?;
    if !shown.problems.is_empty() {
        cx.line("")?;
    }
    print_problems(cx, &shown.problems)
}

/// Prints problems, and what helps behind the last of those that it helps; nothing where they have said so.
fn print_problems(cx: &Context, problems: &[Finding]) -> Result<()> {
    let config = cx.session.flags.config.as_deref();
    for (index, problem) in problems.iter().enumerate() {
        let state = problem.level.state();
        let value = finding::with_config(&problem.value, config);
        cx.line(&format!("{state}: {value}"))?;
        let Some(next) = &problem.next else { continue };
        let following = problems.get(index + 1).and_then(|f| f.next.as_ref());
        if !problem.value.contains(next) && following != Some(next) {
            let next = finding::with_config(next, config);
            cx.line(&format!("  next: {next}"))?;
        }
    }
    Ok(())
}

fn print_scope(cx: &Context, shown: &ScopeInfo) -> Result<()> {
    cx.line("")?;
    let newest = match shown.backups.last() {
        None => "no backup".to_owned(),
        Some(newest) => format!(
            "{}, the newest of {}",
            human::count(shown.backups.len() as u64, "backup"),
            human::time(newest.stop_time)
        ),
    };
    let line = format!("{} in {}: {newest}", shown.scope, shown.repository);
    cx.line(&line)?;
    if let Some(share) = shown.read_back.filter(|share| *share != Share::default()) {
        cx.line(&read_back::line(&share))?;
    }
    if let Some(forecast) = &shown.retention {
        let now = cx.session.host.now();
        cx.lines(info_forecast::lines(forecast, &[], now))?;
    }
    print_problems(cx, &shown.problems)
}

fn backups(backups: &[BackupInfo]) -> Table {
    let raw = SizeUnit::for_largest(backups.iter().map(|b| b.size_bytes));
    let stored = SizeUnit::for_largest(backups.iter().map(|b| b.stored_bytes));
    let row = |b: &BackupInfo| {
        let tenths = u128::from(b.size_bytes) * 10 / u128::from(b.stored_bytes.max(1));
        let mut notes = Vec::new();
        if b.damaged {
            notes.push("damaged".to_owned());
        }
        if b.expire_not_before.is_some() {
            notes.push("marked for deletion".to_owned());
        }
        match b.pinned.then_some(b.pinned_until) {
            None => {}
            Some(_) if b.hold == Some("store") => notes.push("on hold".to_owned()),
            Some(_) if b.hold.is_some() => notes.push("on hold (advisory)".to_owned()),
            Some(None) => notes.push("pinned".to_owned()),
            Some(Some(until)) => notes.push(format!("pinned until {}", human::time(until))),
        }
        if !b.label.is_empty() {
            notes.push(b.label.clone());
        }
        [
            b.id.to_string(),
            human::time(b.stop_time),
            b.timeline.to_string(),
            raw.show(b.size_bytes),
            stored.show(b.stored_bytes),
            format!("{}.{}", tenths / 10, tenths % 10),
            notes.join(", "),
        ]
    };
    let heads = format!(
        "backup | complete | >timeline | >size {} | >stored {} | >ratio | ",
        raw.name(),
        stored.name()
    );
    Table::of(&heads).rows(backups.iter().map(row))
}
