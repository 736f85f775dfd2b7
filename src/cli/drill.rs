//! `pitr drill`.

use std::path::PathBuf;

use super::target::TargetArgs;
use super::{Context, drill_page};
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::clone::namespace;
use crate::operate::drill::{self, Asked, Report, checks};
use crate::operate::{human, quarantine};
use crate::repo::drilled::{self, Timed};

/// Try a restore: in a sandbox, with a server in quarantine, held against the plan
///
/// Restores the newest moment, or the target, into a private folder, starts PostgreSQL there without a way in or out, waits for the target,
/// and compares what the server did with what the plan said. Then it checks indexes and tables (amcheck), your own queries and the checksums
/// of all pages. The repository keeps the result, and `pitr info` shows it. It tries one of several repositories, alone: that which
/// was tried longest ago. The folder is gone in the end.
///
/// With --fast nothing is copied beforehand: the content is brought when it is read, as a clone's is. Then not all of it is checked.
///
/// Exit status 4: recovery is broken. Any other failure says that it could not be tried.
///
/// Example: pitr drill --random-target --checks /etc/pitr/checks.sql
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Try a random moment of the recovery window, and print its seed
    #[arg(long, conflicts_with_all = ["target_time", "target_xid", "target_lsn", "target_name", "target_immediate", "backup"])]
    pub random_target: bool,

    /// Draw the random moment by this seed, as an earlier drill printed it
    #[arg(long, value_name = "N", requires = "random_target", conflicts_with_all = ["target_time", "target_xid", "target_lsn", "target_name", "target_immediate", "backup"])]
    pub seed: Option<u64>,

    /// Run the queries of this file, too; a line "-- expect: VALUE" above a query says what it must return, "-- expect: FIGURE ~ 5 %" a number
    #[arg(long, value_name = "FILE")]
    pub checks: Option<PathBuf>,

    /// Restore below this directory; else below drill_dir of the configuration, else where temporary files go
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,

    /// Leave the folder behind, with the stopped data directory
    #[arg(long)]
    pub keep: bool,

    /// Bring content only where replay and your own queries read it; amcheck and the checksums of all pages are left out
    #[arg(long, conflicts_with = "keep")]
    pub fast: bool,

    /// Write the report as one HTML page into this file, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    #[command(flatten)]
    pub target: TargetArgs,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        target: args.target.parse()?,
        random: args
            .random_target
            .then(|| args.seed.unwrap_or_else(|| cx.session.host.random() >> 32)),
        checks: match &args.checks {
            Some(path) => checks::read(&cx.session.environment.absolute(path))?,
            None => Vec::new(),
        },
        folder: folder(args, cx)?,
        bin: args.bin.clone(),
        keep: args.keep,
        is_fast: args.fast,
    };
    if asked.is_fast {
        namespace::enter(&cx.session)?;
    }
    cx.stop_with_cleanup()?;
    let report = drill::run(&cx.session, &asked)?;
    cx.answer(&report, || cx.line(text(&report).trim_end()))?;
    // The verdict counts more than the page.
    let page = args.html.as_ref().map_or(Ok(()), |path| {
        let page = drill_page::page(&report);
        quarantine::write(&cx.session.environment.absolute(path), page.as_bytes())
    });
    if let Err(e) = &page {
        cx.warn(&format!("the page was not written: {e}"));
    }
    Ok(status(cx, &report, page.is_ok()))
}

/// The folder below which it restores; none where temporary files go.
fn folder(args: &Args, cx: &Context) -> Result<Option<PathBuf>> {
    if let Some(dir) = &args.dir {
        return Ok(Some(cx.session.environment.absolute(dir)));
    }
    let cluster = cx.session.settings()?.cluster_if_named()?;
    Ok(cluster.and_then(|c| c.drill_dir))
}

fn status(cx: &Context, report: &Report, has_page: bool) -> u8 {
    if let Some(why) = &report.not_recorded {
        cx.warn(&format!(
            "the result could not be recorded in repository \"{}\", so pitr info does not show it: {why}",
            report.repository
        ));
    }
    let code = match (report.passed, has_page && report.not_recorded.is_none()) {
        (true, true) => return exit::SUCCESS,
        (true, false) => Code::Partial,
        (false, _) => Code::Findings,
    };
    exit::status(Program::Pitr, code)
}

pub(super) fn verdict(report: &Report) -> String {
    match &report.broken {
        None => "recovery works".to_owned(),
        Some(broken) => format!(
            "RECOVERY IS BROKEN, as phase {} shows: {}",
            broken.phase.name(),
            broken.cause
        ),
    }
}

/// The rows of the report: label and value.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("cluster", report.cluster.clone()),
        (
            "repository",
            format!("{} ({})", report.repository, report.url),
        ),
        ("target", report.target.clone()),
    ];
    let mut add = |label, value: Option<String>| {
        facts.extend(value.map(|value| (label, value)));
    };
    let seed = report
        .seed
        .map(|seed| format!("{seed} (repeat: --random-target --seed {seed})"));
    add("seed", seed);
    add("backup", report.backup.as_ref().map(ToString::to_string));
    add(
        "reached",
        report.reached_lsn.map(|lsn| match report.reached_time {
            Some(time) => format!("{lsn}, {}", human::exact_time(time)),
            None => lsn.to_string(),
        }),
    );
    let new = report.new_timeline.map(|t| t.decimal().to_string());
    add("new timeline", new);
    let not_checked = drilled::named(&report.not_checked);
    let not_checked = Some(not_checked).filter(|names| !names.is_empty());
    add("not checked", not_checked);
    let kept = report.kept.as_ref().map(|p| p.display().to_string());
    add("left behind", kept);
    facts
}

/// A duration with its rate.
pub(super) fn timed(timed: &Timed) -> String {
    let took = human::duration(std::time::Duration::from_millis(timed.ms));
    let Some(bytes) = timed.bytes else {
        return took;
    };
    let rate = bytes.saturating_mul(1000) / timed.ms.max(1);
    format!("{took} for {}, {}/s", human::size(bytes), human::size(rate))
}

fn text(report: &Report) -> String {
    let mut text = format!("{}\n\n", verdict(report));
    for (label, value) in facts(report) {
        text.push_str(&format!("{label:<13} {value}\n"));
    }
    text.push('\n');
    for one in &report.phases {
        text.push_str(&format!("{:<13} {}\n", one.phase.name(), timed(one)));
    }
    if !report.checks.is_empty() {
        text.push('\n');
    }
    for check in &report.checks {
        let found = check.found.as_ref().map(|found| format!(": {found}"));
        let word = if check.passed { "ok" } else { "FAILED" };
        text.push_str(&format!(
            "{word:<7} {}{}\n",
            check.name,
            found.unwrap_or_default()
        ));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}
