//! `pitr restore`.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::Serialize;

use super::erasure::{ConsentArgs, Copied, apply_to_restored, judge, print_applied};
use super::restore_aside;
use super::restore_from_standby;
use super::restore_replaced::{self, Replaced};
use super::restoring::{Place, ShownReport, print_report};
use super::target::TargetArgs;
use super::{Context, partial_unless, plan};
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::aside;
use crate::operate::erasure::apply::{self, Consent};
use crate::operate::erasure::scripts::{self, Applied};
use crate::operate::erasure::{self, Lacking};
use crate::operate::human;
use crate::operate::opened::Opened;
use crate::operate::pacing::MaxRate;
use crate::operate::restore::{Asked, Unreached, Way, prepare};
use crate::operate::restoring::Prepared;
use crate::pg::conf;
use crate::plan::recovery::{Action, Plan};
use crate::restore::databases::Wanted;
use crate::restore::extract::LeftOut;
use crate::restore::job::{Job, Purpose};
use crate::restore::target_dir::{Mapping, PlacedTablespace};

/// Restore a cluster into an empty directory
///
/// Executes what `pitr plan` shows; PostgreSQL then replays the WAL when it is started. The copy does not archive until it is
/// adopted. Run the same command again after an interruption: it resumes.
///
/// Example: pitr restore --to /var/lib/postgresql/17/restored --target-time "2026-11-20 06:40:49+01"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory to restore into: empty, or not there yet; with --delta and --replace a data directory of the cluster
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    #[command(flatten)]
    pub target: TargetArgs,

    /// The action of PostgreSQL at the target
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = Action::Promote)]
    pub target_action: Action,

    /// Put the tablespace of directory OLD, or with this OID, into directory NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping())]
    pub tablespace_mapping: Vec<Mapping>,

    /// Put tablespaces without a mapping where the backup says, which are shown and refused else; with --delta, overwrite the data directory; with --replace and --undo, exchange it; with --adopt, do so beside a running server
    #[arg(long)]
    pub confirm: bool,

    /// Take a stopped data directory of the cluster back in place: what differs is written, what the backup does not have is removed, all of
    /// its WAL too; with --confirm
    #[arg(long)]
    pub delta: bool,

    /// Put the restored cluster in the place of the data directory of a stopped server; the old one is moved aside and kept; with --confirm
    #[arg(long, conflicts_with = "delta")]
    pub replace: bool,

    /// Restore beside the data directory, in which a server may run, and recover there in private; --switch puts it in its place. With --undo, remove that copy
    #[arg(long, conflicts_with_all = ["delta", "replace", "adopt", "erase", "databases", "exclude_databases", "tablespace_mapping"])]
    pub aside: bool,

    /// Take the standby in the directory, which was shut down before it replayed the target: it recovers there in private, and no backup is copied; then run pitr adopt; with --confirm. With --undo, make a standby of it again, if it is not promoted yet
    #[arg(long, conflicts_with_all = ["aside", "switch", "delta", "replace", "adopt", "erase", "databases", "exclude_databases", "tablespace_mapping", "jobs", "max_rate"])]
    pub from_standby: bool,

    /// Put the cluster that --aside has recovered in the place of the data directory, whose server is stopped; then run pitr adopt; with --confirm
    #[arg(long, conflicts_with_all = ["aside", "replace", "delta", "adopt", "erase", "undo", "target", "timezone", "exclusive", "allow_end", "backup", "target_timeline", "as_stored", "target_action", "jobs", "max_rate", "skip_erasure", "unproven_erasures", "databases", "exclude_databases", "tablespace_mapping"])]
    pub switch: bool,

    /// Put the cluster back that --replace or --switch has moved aside; with --confirm
    #[arg(long, conflicts_with_all = ["replace", "delta", "adopt", "erase", "target", "timezone", "exclusive", "allow_end", "backup", "target_timeline", "as_stored", "target_action", "jobs", "max_rate", "skip_erasure", "unproven_erasures", "databases", "exclude_databases", "tablespace_mapping"])]
    pub undo: bool,

    /// Undo it even though the restored cluster has accepted writes; it is kept aside
    #[arg(long, requires = "undo", conflicts_with_all = ["aside", "from_standby"])]
    pub discard_changes: bool,

    /// Restore the content of these databases only, by name or oid, with commas between; others become files of zeros that can be dropped
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with_all = ["exclude_databases"])]
    pub databases: Vec<String>,

    /// Restore the content of all databases but these
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub exclude_databases: Vec<String>,

    /// Extract on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Read from the repository at most this much a second, such as 50MB, besides max_rate of the repository; none sets that aside, too
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<MaxRate>,

    /// Let the copy archive: it succeeds the cluster, which is lost
    #[arg(long)]
    pub adopt: bool,

    /// Start the copy where nobody else reaches it, let it recover, repeat the erasures that it lacks ("pitr erasure"), and stop it
    #[arg(long, conflicts_with = "adopt")]
    pub erase: bool,

    #[command(flatten)]
    pub erasures: ConsentArgs,

    /// Show the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Reads a mapping of tablespaces: directories are bytes.
pub(super) fn mapping() -> impl TypedValueParser<Value = Mapping> {
    OsStringValueParser::new().try_map(|text| Mapping::parse(&text))
}

/// A plan and where it is carried out, as JSON; what was done follows when it was.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    to: &'a str,
    tablespaces: &'a [PlacedTablespace],
    left_out_databases: &'a [LeftOut],
    dry_run: bool,
    restored: Option<ShownReport<'a>>,
    /// Erasures that the copy may lack; none where none is recorded, and where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    erasures: Option<&'a Lacking>,
    /// The outcome of each of them, where they were repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    erased: Option<&'a [Applied]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Replaced>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    check_recovers_in_private(args)?;
    match (args.undo, args.aside) {
        (true, _) if args.from_standby => return restore_from_standby::give_back(args, cx),
        (true, true) => return restore_aside::give_up(args, cx),
        (true, false) => return restore_replaced::undo(args, cx),
        _ if args.from_standby => return restore_from_standby::run(args, cx),
        _ if args.switch => return restore_aside::switch(args, cx),
        _ => {}
    }
    let asked = Asked {
        to: args.to.clone(),
        target: args.target.parse()?,
        action: args.target_action,
        mappings: args.tablespace_mapping.clone(),
        databases: wanted(args),
        delta: args.delta,
        is_hollow: false,
        is_private: false,
        replace: args.replace,
        aside: args.aside,
        adopt: args.adopt,
        is_confirmed: args.confirm,
        dry_run: args.dry_run,
    };
    if args.replace
        && let Some(status) = restore_replaced::taken_up(args, &asked, cx)?
    {
        return Ok(status);
    }
    let (way, local_time) = prepare(&cx.session, &asked)?;
    let prepared = match way {
        Way::Ready(prepared) => prepared,
        Way::OutOfReach(unreached) => return out_of_reach(cx, args, *unreached, local_time),
    };
    let job = &prepared.final_job();
    let Some(plan) = &job.plan else {
        return Err(err!(Internal, "a restore without a plan"));
    };
    let left_out = prepared.left_out();
    let consent = args.erasures.consent();
    let erases = erases(args, cx, (&prepared.opened, plan), &consent)?;
    if erases {
        aside::require_private(&cx.session, prepared.major())?;
    }
    let lacking = lacking(cx, (&prepared.opened, plan));
    let shown = Shown {
        plan,
        to: &job.request.to,
        tablespaces: &job.tablespaces,
        left_out_databases: &left_out,
        dry_run: args.dry_run,
        restored: None,
        erasures: lacking.as_ref(),
        erased: None,
        replaced: prepared
            .replaces
            .as_ref()
            .filter(|_| args.replace)
            .map(Replaced::planned),
    };
    let copied = match args.adopt {
        true => Copied::Adopted,
        false => Copied::Guarded,
    };
    if !cx.is_json() {
        plan::show(cx, plan, local_time.as_deref())?;
    } else if args.dry_run {
        cx.json(&shown)?;
    }
    if args.dry_run {
        show_tablespaces(args, cx, job)?;
        if args.replace {
            restore_replaced::show(cx, &prepared)?;
            restore_replaced::warn(cx, &prepared)?;
        }
        print_left_out(cx, &left_out)?;
        super::erasure::tell(cx, lacking.as_ref(), (&job.request.to, copied))?;
        return Ok(exit::SUCCESS);
    }
    if prepared.is_in_place() && !args.confirm {
        cx.answer(&shown, || Ok(()))?;
        return Err(super::unconfirmed(&format!(
            "\"{}\" would be taken back to the target: what differs is overwritten, and what the backup does not have is removed, its WAL too.",
            job.request.to
        )));
    }
    let replaces = prepared.replaces.as_ref().filter(|_| args.replace);
    if let Some(old) = replaces.filter(|_| !args.confirm) {
        cx.answer(&shown, || Ok(()))?;
        restore_replaced::show(cx, &prepared)?;
        restore_replaced::warn(cx, &prepared)?;
        return Err(super::unconfirmed(&format!(
            "\"{}\" would be moved aside, and the restored cluster would take its place.",
            old.data.display()
        )));
    }
    cx.stop_in_order()?;
    let restored = match args.aside {
        true => aside::restore(&cx.session, &prepared, args.jobs)?,
        false => {
            restore_replaced::warn(cx, &prepared)?;
            prepared.run(&cx.session, args.jobs)?
        }
    };
    let undo = restored.replaced.as_ref();
    let replaced = undo.map(Replaced::done);
    let erased = erases.then(|| apply_to_restored(cx, &job.request.to, &consent));
    if cx.is_json() {
        let erased = erased.transpose()?;
        let applied = erased.as_ref().map(|(applied, _)| applied.as_slice());
        cx.json(&Shown {
            restored: Some(ShownReport::new(job, &restored)),
            erased: applied,
            replaced,
            ..shown
        })?;
        return status(cx, erased.as_ref());
    }
    cx.line("")?;
    let place = if args.aside { Place::Aside } else { Place::Own };
    print_report(cx, job, &restored, place)?;
    if args.aside {
        restore_aside::print_switch(cx, args)?;
        let recovered = Copied::Recovered;
        super::erasure::tell(cx, lacking.as_ref(), (&job.request.to, recovered))?;
        restore_aside::print_adopt(cx, args, &prepared.opened)?;
        return Ok(exit::SUCCESS);
    }
    let has_recovered = matches!(erased, Some(Ok(_)));
    print_next(cx, &prepared, (plan, has_recovered))?;
    if let Some(replaced) = &replaced {
        replaced.print(cx)?;
    }
    print_left_out(cx, &left_out)?;
    let Some(erased) = erased else {
        super::erasure::tell(cx, lacking.as_ref(), (&job.request.to, copied))?;
        return Ok(exit::SUCCESS);
    };
    let erased = erased?;
    print_applied(cx, &erased.0)?;
    status(cx, Some(&erased))
}

/// Refuses what a recovery in private would not do.
fn check_recovers_in_private(args: &Args) -> Result<()> {
    if !(args.aside || args.from_standby) {
        return Ok(());
    }
    if args.target_action != Action::Promote {
        return Err(err!(Usage, "--aside and --from-standby end recovery at the target: --target-action is promote")
            .hint("Nothing was done. A server that pauses or stops there is that of a plain restore: leave --aside and --from-standby out."));
    }
    check_no_consent(args)
}

/// Refuses consent to scripts that are not run.
pub(super) fn check_no_consent(args: &Args) -> Result<()> {
    match args.erasures.consent() == Consent::default() {
        true => Ok(()),
        false => Err(
            err!(Usage, "--skip-erasure and --unproven-erasures need --erase")
                .hint("Nothing was done. Without --erase no script is run."),
        ),
    }
}

/// The erasures that a copy may lack. A warning says where that is not known.
pub(super) fn lacking(cx: &Context, (opened, plan): (&Opened, &Plan)) -> Option<Lacking> {
    let found = erasure::lacking(&cx.session, opened, plan);
    found.unwrap_or_else(|e| unknown(cx, &e))
}

/// Warns that it is not known which erasures a copy may lack.
pub(super) fn unknown(cx: &Context, e: &Error) -> Option<Lacking> {
    cx.warn(&format!("whether erasures are newer than this copy is not known: {e}. Before it accepts connections: pitr erasure list"));
    None
}

/// The line that lets a copy archive; its directory is a word of the shell.
pub(super) fn adopt_line(cx: &Context, opened: &Opened, directory: &str) -> String {
    let named = cx.session.flags.cluster.is_some() || opened.reading.settings.clusters.is_empty();
    let options = cx.session.options(named.then_some(opened.layout.name()));
    format!("pitr adopt{options} --pgdata {directory}")
}

/// Whether `--erase` has anything to do. An obstacle is found before anything is written.
pub(super) fn erases(
    args: &Args,
    cx: &Context,
    (opened, plan): (&Opened, &Plan),
    consent: &Consent,
) -> Result<bool> {
    if !args.erase {
        return check_no_consent(args).map(|()| false);
    }
    if args.target_action != Action::Promote {
        return Err(err!(Usage, "--erase needs a copy that takes writes")
            .hint("Nothing was done. Leave --target-action out, or run \"pitr erasure apply\" once the copy was promoted."));
    }
    let needed = scripts::needed(&cx.session, (opened, plan), consent)?;
    if needed.is_some() {
        apply::check_user()?;
    }
    Ok(needed.is_some())
}

/// The exit status of a restore whose erasures were repeated.
pub(super) fn status(cx: &Context, erased: Option<&(Vec<Applied>, bool)>) -> Result<u8> {
    let Some((applied, is_whole)) = erased else {
        return Ok(exit::SUCCESS);
    };
    let is_elsewhere = judge(cx, applied)?;
    partial_unless(*is_whole && !is_elsewhere)
}

/// The plan says why, on standard output; what follows from it stands with the errors.
fn out_of_reach(
    cx: &Context,
    args: &Args,
    unreached: Unreached,
    local_time: Option<String>,
) -> Result<u8> {
    let plan = &unreached.plan;
    let shown = Shown {
        plan,
        to: &unreached.to,
        tablespaces: &[],
        left_out_databases: &[],
        dry_run: args.dry_run,
        restored: None,
        erasures: None,
        erased: None,
        replaced: None,
    };
    cx.answer(&shown, || plan::show(cx, plan, local_time.as_deref()))?;
    plan::fail(cx, unreached.error)
}

/// Returns the choice of databases; none where all are restored.
fn wanted(args: &Args) -> Option<Wanted> {
    match (&args.databases[..], &args.exclude_databases[..]) {
        ([], []) => None,
        (only, []) => Some(Wanted::Only(only.to_vec())),
        (_, without) => Some(Wanted::Without(without.to_vec())),
    }
}

/// Names the databases without content, and what becomes of them.
fn print_left_out(cx: &Context, left_out: &[LeftOut]) -> Result<()> {
    if cx.is_json() || left_out.is_empty() {
        return Ok(());
    }
    cx.line("Left out:")?;
    for one in left_out {
        cx.line(&format!(
            "  database {}: {}, {} of zeros that take no space",
            one.database,
            human::count(one.file_count, "file"),
            human::size(one.size_bytes)
        ))?;
    }
    cx.line("Nobody can use these databases. Drop them once recovery has ended, with DROP DATABASE: until then each backup of the copy is partial.")
}

/// Says where tablespaces would go, and what that needs.
fn show_tablespaces(args: &Args, cx: &Context, job: &Job) -> Result<()> {
    for tablespace in job.tablespaces.iter().filter(|_| !cx.is_json()) {
        let needs = match tablespace.path == tablespace.original && !args.confirm {
            true => ", as in the backup: needs --confirm, or --tablespace-mapping",
            false => "",
        };
        let (oid, path) = (tablespace.oid, tablespace.path.display());
        cx.line(&format!("tablespace {oid} goes to \"{path}\"{needs}"))?;
    }
    Ok(())
}

fn print_next(
    cx: &Context,
    prepared: &Prepared,
    (plan, has_recovered): (&Plan, bool),
) -> Result<()> {
    let (out, job, opened) = (&cx.out, &prepared.final_job(), &prepared.opened);
    let Purpose::Restore { action, adopt, .. } = &job.request.purpose else {
        return Ok(());
    };
    let ends = match action {
        Action::Promote => {
            "then opens it for writes on a new timeline; its log says \"archive recovery complete\""
        }
        // PostgreSQL: src/backend/access/transam/xlogrecovery.c, recovery_target_action: without hot_standby pause is shutdown.
        Action::Pause if conf::is_off(prepared.brought().value("hot_standby")) => {
            "then shuts down, because hot_standby is off, and nothing could be read while it pauses; its log says \"shutdown at recovery target\""
        }
        Action::Pause => {
            "then pauses, open for reads; its log says \"pausing at the end of recovery\". select pg_wal_replay_resume() opens it for writes"
        }
        Action::Shutdown => {
            "then shuts down; its log says \"shutdown at recovery target\". It does so at every start until recovery_target_action is changed"
        }
    };
    if !has_recovered {
        out.line(&format!(
            "PostgreSQL replays {} of WAL to {}, {ends}.",
            human::size(plan.bytes_to_replay),
            plan.target.target
        ))?;
    }
    let directory = shell_word(&job.request.to);
    match adopt {
        true => out.line("It archives as the cluster's successor: make sure that the old one never starts again, and take a full backup."),
        false => out.line(&format!(
            "It does not archive (archive_mode = off). If this copy replaces the cluster: {}",
            adopt_line(cx, opened, &directory)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn is_taken(words: &str) -> bool {
        let line = format!("pitr --to /d --confirm {words}");
        let parsed = Line::try_parse_from(line.split(' '));
        parsed.is_ok_and(|line| line.args.confirm)
    }

    #[test]
    fn what_a_command_would_pass_over_is_refused() {
        let target = "--target-lsn 0/1 --target-timeline 2 --backup x --as-stored";
        // A recovery of a set gives these.
        for (words, more) in [
            ("--switch", ""),
            ("--undo", " --discard-changes"),
            ("--aside --undo", ""),
            ("--from-standby --undo", ""),
            ("--aside", target),
            ("--from-standby", target),
            ("--replace --adopt", target),
        ] {
            assert!(is_taken(words), "{words}");
            let line = format!("{words} {}", more.trim());
            assert!(is_taken(line.trim()), "{line}");
        }
        for words in [
            "--switch",
            "--undo",
            "--aside --undo",
            "--from-standby --undo",
        ] {
            for more in [
                "--target-lsn 0/1",
                "--target-timeline 2",
                "--timezone UTC",
                "--exclusive",
                "--allow-end",
                "--as-stored",
                "--target-action pause",
                "--jobs 2",
                "--max-rate 1MB",
                "--skip-erasure 20261120T064049.123456Z-0f1e2d3c4b5a6978",
                "--unproven-erasures",
            ] {
                assert!(!is_taken(&format!("{words} {more}")), "{words} {more}");
            }
        }
        for words in [
            "--aside --undo --discard-changes",
            "--from-standby --undo --discard-changes",
            "--from-standby --jobs 2",
            "--from-standby --max-rate 1MB",
        ] {
            assert!(!is_taken(words), "{words}");
        }
        assert!(is_taken("--aside --jobs 2 --max-rate 1MB"));
    }

    #[test]
    fn what_postgresql_reads_as_off_is_off() {
        for off in ["off", "OF", "false", "f", "no", "n", "0"] {
            assert!(conf::is_off(Some(off)), "{off}");
        }
        for other in [
            Some("on"),
            Some("o"),
            Some(""),
            Some("true"),
            Some("1"),
            None,
        ] {
            assert!(!conf::is_off(other), "{other:?}");
        }
    }
}
