//! `pitr restore`.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::Serialize;

use super::choice::{Question, Unless};
use super::reading::Reading;
use super::restoring::{self, Opened, Place, ShownReport};
use super::target::TargetArgs;
use super::{Context, human, plan, rival};
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::plan::recovery::{Action, Moment, Plan, Reason};
use crate::repo::root::BackupRoot;
use crate::restore::Report;
use crate::restore::job::{self, Earlier, Job, Purpose, Request};
use crate::restore::target_dir::{Mapping, PlacedTablespace};
use crate::text::hex;

/// Restore a cluster into an empty directory
///
/// Executes what `pitr plan` shows; PostgreSQL then replays the WAL when it is started. The copy does not archive until it is
/// adopted. Run the same command again after an interruption: it resumes.
///
/// Example: pitr restore --to /var/lib/postgresql/17/restored --target-time "2026-11-20 06:40:49+01"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory to restore into: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    #[command(flatten)]
    pub target: TargetArgs,

    /// What PostgreSQL does at the target
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = TargetAction::Promote)]
    pub target_action: TargetAction,

    /// Put the tablespace of directory OLD, or with this OID, into directory NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = TablespaceMapping::parser())]
    pub tablespace_mapping: Vec<TablespaceMapping>,

    /// Put tablespaces without a mapping where the backup says, which are shown and refused else; with --adopt, do so beside a running server
    #[arg(long)]
    pub confirm: bool,

    /// Extract on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Let the copy archive: it succeeds the cluster, which is lost
    #[arg(long)]
    pub adopt: bool,

    /// Show the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// recovery_target_action.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAction {
    /// Accept writes.
    Promote,
    /// Accept reads, and wait for pg_wal_replay_resume().
    Pause,
    /// Stop.
    Shutdown,
}

impl From<TargetAction> for Action {
    fn from(action: TargetAction) -> Action {
        match action {
            TargetAction::Promote => Action::Promote,
            TargetAction::Pause => Action::Pause,
            TargetAction::Shutdown => Action::Shutdown,
        }
    }
}

/// A plan and where it is carried out, as JSON; what was done follows when it was.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    to: &'a str,
    tablespaces: &'a [PlacedTablespace],
    dry_run: bool,
    restored: Option<ShownReport<'a>>,
}

impl<'a> Shown<'a> {
    fn unrestored(
        plan: &'a Plan,
        to: &'a str,
        tablespaces: &'a [PlacedTablespace],
        dry_run: bool,
    ) -> Shown<'a> {
        Shown {
            plan,
            to,
            tablespaces,
            dry_run,
            restored: None,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let parsed = args.target.parse()?;
    let reading = Reading::open(cx)?;
    let mappings = args.tablespace_mapping.iter().map(Mapping::from).collect();
    // A dry run shows where they would go.
    let as_in_backup = args.confirm || args.dry_run;
    let place = Place::new(cx, &reading.settings, &args.to, mappings, as_in_backup);
    let target = place.look()?;
    let opened = restoring::open(cx, reading)?;
    let cluster = opened.reading.cluster.as_ref();
    let configured_zone = cluster.and_then(|c| c.timezone.as_deref());
    let zone = opened.inventory.timezone();
    let resolved = parsed.resolve(&cx.environment, configured_zone, zone)?;
    let request = Request {
        to: restoring::path_text(&target.data)?,
        cluster: opened.layout.name().to_owned(),
        repository: cx.global.repository.clone(),
        backup: args.target.backup.clone(),
        as_stored: args.target.as_stored,
        tablespace_mappings: args
            .tablespace_mapping
            .iter()
            .map(TablespaceMapping::recorded)
            .collect(),
        purpose: Purpose::Restore {
            target: resolved.target.clone(),
            action: args.target_action.into(),
            adopt: args.adopt,
        },
    };
    let local_time = resolved.local_time.as_deref();
    let earlier = job::earlier(&target.found, &request)?;
    if let Some(cluster) = cluster.filter(|_| args.adopt && !args.dry_run) {
        let copy = (target.data.as_path(), opened.inventory.system_identifier);
        rival::check(cx, copy, cluster, args.confirm)?;
    }
    let (opened, job, root) = match &earlier {
        Earlier::LastStep(job) => taken_up(cx, opened, job, None)?,
        Earlier::Copying(job) => taken_up(cx, opened, job, job.plan.as_ref())?,
        Earlier::None => match planned(args, cx, opened, request, local_time)? {
            ControlFlow::Continue(planned) => planned,
            ControlFlow::Break(status) => return Ok(status),
        },
    };
    let target = place.place(target, &root)?;
    let job = Job {
        tablespaces: target.tablespaces.clone(),
        ..job
    };
    let spares = opened.spares(cx);
    let survey = restoring::survey(&opened, &root, &job, &target, &spares)?;
    restoring::check_commands(cx, &target, &opened)?;
    let Some(plan) = &job.plan else {
        return Err(err!(Internal, "a restore without a plan"));
    };
    let mut shown = Shown::unrestored(plan, &job.request.to, &job.tablespaces, args.dry_run);
    if !cx.out.is_json() {
        plan::show(cx, plan, local_time)?;
    } else if args.dry_run {
        cx.out.json(&shown)?;
    }
    if args.dry_run {
        show_tablespaces(args, cx, &job)?;
        return Ok(exit::SUCCESS);
    }
    let (report, took) = restoring::run(
        cx,
        &opened,
        &root,
        &job,
        (&target, &survey),
        &earlier,
        args.jobs,
        &spares,
    )?;
    let start = restoring::start(&opened, &root, &job, &target, &report);
    if cx.out.is_json() {
        shown.restored = Some(ShownReport::new(&job, &report, &start, took));
        cx.out.json(&shown)?;
        return Ok(exit::SUCCESS);
    }
    cx.out.line("")?;
    restoring::print_report(cx, &job, &report, &start, took)?;
    print_next(cx, &job, plan, (&opened, &report))?;
    Ok(exit::SUCCESS)
}

/// Says where tablespaces would go, and what that needs.
fn show_tablespaces(args: &Args, cx: &Context, job: &Job) -> Result<()> {
    for tablespace in job.tablespaces.iter().filter(|_| !cx.out.is_json()) {
        let needs = match tablespace.path == tablespace.original && !args.confirm {
            true => ", as in the backup: needs --confirm, or --tablespace-mapping",
            false => "",
        };
        let (oid, path) = (tablespace.oid, tablespace.path.display());
        cx.out
            .line(&format!("tablespace {oid} goes to \"{path}\"{needs}"))?;
    }
    Ok(())
}

/// Who gives the backup, what is done with it, and its root.
type Begun = (Opened, Job, BackupRoot);

/// Takes up a restore that was begun, once the WAL of `checked` was looked at again.
fn taken_up(cx: &Context, opened: Opened, job: &Job, checked: Option<&Plan>) -> Result<Begun> {
    let opened = opened.where_it_began(cx, job)?;
    if let Some(plan) = checked {
        opened.check_again(cx, plan)?;
    }
    let (job, root) = opened.resume(cx, job)?;
    Ok((opened, job, root))
}

/// Plans a restore. Where nothing leads to the target it says so, and breaks with the status to leave with.
fn planned(
    args: &Args,
    cx: &Context,
    opened: Opened,
    request: Request,
    local_time: Option<&str>,
) -> Result<ControlFlow<u8, Begun>> {
    let question = Question {
        target: &args.target,
        action: args.target_action.into(),
        is_carried_out: true,
    };
    let chosen = question.answer(cx, opened)?;
    let (opened, plan) = (chosen.opened, chosen.plan);
    if let Some(unless) = chosen.unless {
        let e = error_of(unless, &plan);
        let shown = Shown::unrestored(&plan, &request.to, &[], args.dry_run);
        return out_of_reach(cx, &shown, local_time, e).map(ControlFlow::Break);
    }
    let backup = plan.backup.as_ref().map(|b| b.id.clone());
    let backup = backup.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    let (job, root) = opened.job(cx, request, &backup, Some(plan))?;
    Ok(ControlFlow::Continue((opened, job, root)))
}

/// Why nothing is restored, with what is to be done about it.
fn error_of(unless: Unless, plan: &Plan) -> Error {
    match unless {
        Unless::NotKnown(e) => e,
        Unless::OutOfReach { why, next } => {
            let mut hint = what_helps(plan);
            if let Some(next) = next {
                hint.push_str(&format!("\n{next}"));
            }
            err!(OutOfReach, "{why}").hint(hint)
        }
    }
}

/// The plan says why, on standard output; what follows from it stands with the errors.
fn out_of_reach(cx: &Context, shown: &Shown<'_>, local_time: Option<&str>, e: Error) -> Result<u8> {
    match cx.out.is_json() {
        true => cx.out.json(shown)?,
        false => plan::show(cx, shown.plan, local_time)?,
    }
    plan::fail(cx, e)
}

/// What is to be done about a target that is out of reach.
fn what_helps(plan: &Plan) -> String {
    const NOTHING: &str = "Nothing was written.";
    if plan.reason != Some(Reason::DamagedWal) {
        return NOTHING.to_owned();
    }
    let before = match plan.nearest_before {
        Some(Moment {
            lsn, xid: Some(_), ..
        }) => {
            format!(" The last commit before it is reached with --target-lsn {lsn}.")
        }
        Some(_) => " What the backup itself holds is reached with --target-immediate.".to_owned(),
        None => String::new(),
    };
    let thaw = match plan.repository.starts_with("s3:") {
        true => {
            "What must be thawed the store restores (aws s3api restore-object), which takes hours. "
        }
        false => "",
    };
    format!(
        "{NOTHING}{before}
{thaw}\"pitr verify\" names all that is damaged."
    )
}

fn is_off(value: Option<&str>) -> bool {
    // PostgreSQL: src/backend/utils/adt/bool.c, parse_bool_with_len: any beginning that is unambiguous.
    let value = value.map(str::to_ascii_lowercase).unwrap_or_default();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    begins("off", 2) || begins("false", 1) || begins("no", 1) || value == "0"
}

fn print_next(
    cx: &Context,
    job: &Job,
    plan: &Plan,
    (opened, report): (&Opened, &Report),
) -> Result<()> {
    let out = &cx.out;
    let Purpose::Restore { action, adopt, .. } = &job.request.purpose else {
        return Ok(());
    };
    let ends = match action {
        Action::Promote => {
            "then opens it for writes on a new timeline; its log says \"archive recovery complete\""
        }
        // PostgreSQL: src/backend/access/transam/xlogrecovery.c, recovery_target_action: without hot_standby pause is shutdown.
        Action::Pause if is_off(report.brought.value("hot_standby")) => {
            "then shuts down, because hot_standby is off, and nothing could be read while it pauses; its log says \"shutdown at recovery target\""
        }
        Action::Pause => {
            "then pauses, open for reads; its log says \"pausing at the end of recovery\". select pg_wal_replay_resume() opens it for writes"
        }
        Action::Shutdown => {
            "then shuts down; its log says \"shutdown at recovery target\". It does so at every start until recovery_target_action is changed"
        }
    };
    out.line(&format!(
        "PostgreSQL replays {} of WAL to {}, {ends}.",
        human::size(plan.bytes_to_replay),
        plan.target.target
    ))?;
    let directory = super::archive_command::shell_word(&job.request.to);
    let named = cx.global.cluster.is_some() || opened.reading.settings.clusters.is_empty();
    match adopt {
        true => out.line("It archives as the cluster's successor: make sure that the old one never starts again, and take a full backup."),
        false => out.line(&format!(
            "It does not archive (archive_mode = off). If this copy replaces the cluster: pitr adopt{} --pgdata {directory}",
            cx.flags(named.then_some(opened.layout.name()))
        )),
    }
}

impl From<&TablespaceMapping> for Mapping {
    fn from(mapping: &TablespaceMapping) -> Mapping {
        Mapping {
            old: mapping.old.clone(),
            new: mapping.new.clone(),
        }
    }
}

/// `OLD=NEW`. An equals sign inside a directory is written `\=`, as for pg_basebackup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    /// The directory the tablespace had, or its OID.
    pub old: OsString,
    /// The directory it gets, absolute.
    pub new: PathBuf,
}

impl TablespaceMapping {
    /// Reads the option: directories are bytes.
    pub fn parser() -> impl TypedValueParser<Value = TablespaceMapping> {
        OsStringValueParser::new().try_map(|text| TablespaceMapping::parse(&text))
    }

    fn parse(text: &OsStr) -> Result<TablespaceMapping> {
        let wrong = || {
            err!(
                Usage,
                "\"{}\" is not OLD=NEW: OLD is an absolute directory or an OID, NEW an absolute directory",
                text.display()
            )
        };
        let sides = split_at_equals(text.as_bytes());
        let [old, new] = sides.as_slice() else {
            return Err(wrong());
        };
        let oid = std::str::from_utf8(old).ok().and_then(|t| t.parse().ok());
        let is_oid = oid.is_some_and(|oid: u32| oid > 0);
        if !(old.starts_with(b"/") || is_oid) || !new.starts_with(b"/") {
            return Err(wrong());
        }
        Ok(TablespaceMapping {
            old: OsString::from_vec(old.clone()),
            new: PathBuf::from(OsString::from_vec(new.clone())),
        })
    }

    /// The mapping in the record of a restore, by which the same request is known again.
    pub fn recorded(&self) -> String {
        let words = [self.old.as_os_str(), self.new.as_os_str()];
        match (words[0].to_str(), words[1].to_str()) {
            (Some(old), Some(new)) => format!("{old}={new}"),
            _ => format!("hex {}", words.map(|w| hex(w.as_bytes())).join("=")),
        }
    }
}

/// PostgreSQL: src/bin/pg_basebackup/pg_basebackup.c, `tablespace_list_append`.
fn split_at_equals(text: &[u8]) -> Vec<Vec<u8>> {
    let mut sides = Vec::new();
    let mut side = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.peek() == Some(&b'=') => side.extend(bytes.next()),
            b'=' => sides.push(std::mem::take(&mut side)),
            _ => side.push(byte),
        }
    }
    sides.push(side);
    sides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_reads_as_off_is_off() {
        for off in ["off", "OF", "false", "f", "no", "n", "0"] {
            assert!(is_off(Some(off)), "{off}");
        }
        for other in [
            Some("on"),
            Some("o"),
            Some(""),
            Some("true"),
            Some("1"),
            None,
        ] {
            assert!(!is_off(other), "{other:?}");
        }
    }

    #[test]
    fn tablespace_mappings_are_read_as_pg_basebackup_does() {
        for (text, old, new) in [
            ("/a=/b", "/a", "/b"),
            ("16385=/b", "16385", "/b"),
            (r"/a\=x=/b\=y", "/a=x", "/b=y"),
            (r"/a\b=/c", r"/a\b", "/c"),
        ] {
            let mapping = TablespaceMapping::parse(OsStr::new(text)).unwrap();
            assert_eq!((mapping.old, mapping.new), (old.into(), PathBuf::from(new)));
        }
        for text in [
            "", "16385", "=", "a=/b", "/a=b", "/a=/b=/c", "0=/b", r"/a\=/b", "/a=",
        ] {
            assert!(
                TablespaceMapping::parse(OsStr::new(text)).is_err(),
                "{text}"
            );
        }
        let mapping = TablespaceMapping::parse(OsStr::from_bytes(b"/\xe9=/b")).unwrap();
        assert_eq!(mapping.old, OsStr::from_bytes(b"/\xe9"));
        assert_eq!(mapping.recorded(), "hex 2fe9=2f62");
    }
}
