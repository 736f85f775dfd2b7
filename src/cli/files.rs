//! `pitr files`: directories beside clusters.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::backup::{head_json, jobs, merged};
use super::left_out::{self, SHOWN, status};
use super::{Context, done_or_unconfirmed, replaced, rollback};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate;
use crate::operate::files::copy::{CopyDone, CopyWanted};
use crate::operate::files::watch::{Activity, Behind, State, WatchWanted};
use crate::operate::files::{
    self, Choice, Difference, Done, Entry, RestoreWanted, Restored, Wanted,
};
use crate::operate::human;
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::repo::root::aux_root::AuxContent;
use crate::snapshot::frame::FrameCodec;
use crate::tree::explain::Verdict;
use crate::tree::extract::Permit;

/// Back up directories, and restore them
///
/// Each has a name in the configuration: [files.NAME] with source = "/absolute/path". Other sources are buckets, the output of a command, Git repositories, volumes of
/// Docker, objects of Kubernetes, and states of Terraform; docs/files.md has their keys. Backups lie in the same repositories as those of clusters, encrypted
/// like them; "pitr info", verify, expire and repo sync work on them, too.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Backup(BackupArgs),
    Restore(RestoreArgs),
    /// Undo a restore in place
    ///
    /// Puts back what the restore replaced or removed, and removes what it made. Without --confirm it shows the plan, and leaves with 8. Refused with 8 where restored
    /// entries were changed since.
    ///
    /// Example: pitr files rollback uploads --confirm
    Rollback(rollback::Args),
    Ls(LsArgs),
    Cat(CatArgs),
    Find(FindArgs),
    Diff(DiffArgs),
    Sums(SumsArgs),
    Copy(CopyArgs),
    Watch(WatchArgs),
    CheckExcludes(CheckExcludesArgs),
}

/// Back up a directory
///
/// Stores what changed since the newest good backup of the same source, which the result does not need: each backup is restored by itself. A file counts as
/// unchanged while its size, inode and times are as before. Files that change while they are read are stored and counted; entries that cannot be read are counted
/// and named. Exit status 6 then.
///
/// Example: pitr files backup uploads
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The name in the configuration
    pub name: String,

    /// Read and store everything
    #[arg(long)]
    pub full: bool,

    /// Go on under a name whose earlier backups another host took
    #[arg(long)]
    pub confirm: bool,

    /// A text to recognise the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Read and compress on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Compress with this codec
    #[arg(long, value_enum)]
    pub compression: Option<FrameCodec>,
}

/// Which backup.
#[derive(clap::Args, Debug)]
pub struct ChoiceArgs {
    /// Take this backup instead of the newest one
    #[arg(long, value_name = "ID", conflicts_with = "target_time")]
    pub backup: Option<BackupId>,

    /// Take the newest backup that had ended by this time, such as 2026-11-20T05:40:49Z
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<TimestampTz>,
}

impl ChoiceArgs {
    fn choice(&self) -> Choice {
        Choice {
            backup: self.backup.clone(),
            by_time: self.target_time,
        }
    }
}

/// Restore a directory
///
/// Writes below a directory that is empty or does not exist, and nowhere else. Owners, setuid and setgid bits, devices, pipes, sockets, and extended attributes other than
/// user ones and ACLs are made with --privileged alone. The command prints what it did not make, and leaves with 6 then.
///
/// With --delta the directory may have entries: those that differ from the backup are replaced, each of them whole or not at all. Without --confirm it shows the plan,
/// and leaves with 8. With --in-place the directory is the configured one, and what is replaced or removed is kept: pitr files rollback puts it back.
///
/// Example: pitr files restore uploads --to /srv/restored
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The name under which it was backed up
    pub name: String,

    /// The directory, or the URL of a bucket's prefix without any object
    #[arg(long, value_name = "DIR", required_unless_present = "in_place")]
    pub to: Option<PathBuf>,

    #[command(flatten)]
    pub choice: ChoiceArgs,

    /// Only what this pattern of gitignore names, with what is below; repeatable
    #[arg(long, value_name = "GLOB")]
    pub path: Vec<String>,

    /// Replace what differs in a directory that has entries
    #[arg(long, group = "replaces")]
    pub delta: bool,

    /// Replace what differs in the configured directory, and keep what is replaced
    #[arg(long, group = "replaces", conflicts_with = "to")]
    pub in_place: bool,

    #[command(flatten)]
    pub replace: ReplaceArgs,

    /// Make owners, setuid and setgid bits, devices, pipes, sockets and all extended attributes, too
    #[arg(long)]
    pub privileged: bool,

    /// Write on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
}

/// How a directory that has entries is taken back.
#[derive(clap::Args, Debug)]
pub struct ReplaceArgs {
    /// Compare files of equal length and time byte by byte, too
    #[arg(long, requires = "replaces")]
    pub checksum: bool,

    /// Remove what the backup lacks, but for entries that the configuration leaves out of backups
    #[arg(long, requires = "replaces")]
    pub delete: bool,

    /// Carry the plan out
    #[arg(long, requires = "replaces")]
    pub confirm: bool,

    /// Show the plan, and leave with 0
    #[arg(long, requires = "replaces", conflicts_with = "confirm")]
    pub dry_run: bool,
}

/// List what a backup of a directory has
///
/// Example: pitr files ls uploads images/2026
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// The name under which it was backed up
    pub name: String,

    /// Only this entry and what is below it; the path is that below the source
    pub path: Option<String>,

    #[command(flatten)]
    pub choice: ChoiceArgs,
}

/// Print the content of a file in a backup
///
/// Example: pitr files cat uploads settings.json --target-time 2026-11-20T05:40:49Z
#[derive(clap::Args, Debug)]
pub struct CatArgs {
    /// The name under which it was backed up
    pub name: String,

    /// The path below the source
    pub path: String,

    #[command(flatten)]
    pub choice: ChoiceArgs,
}

/// Find entries in every backup of a directory
///
/// The pattern is that of gitignore: *.jpg finds such names anywhere, /images/*.jpg directly below images. The newest backup comes first.
///
/// Example: pitr files find uploads '*.jpg'
#[derive(clap::Args, Debug)]
pub struct FindArgs {
    /// The name under which it was backed up
    pub name: String,

    /// The pattern
    pub pattern: String,
}

/// Compare two backups of a directory
///
/// Prints one line for each entry: + added, - removed, * changed, m other owner, permissions or attributes.
///
/// Example: pitr files diff uploads 20261120T064049Z-482913-full
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    /// The name under which it was backed up
    pub name: String,

    /// The earlier backup
    pub from: BackupId,

    /// The later one; the newest without it
    pub to: Option<BackupId>,
}

/// Print the SHA-256 of every file in a backup
///
/// The list is that of sha256sum, which checks a directory against it: sha256sum --check --quiet list. All content of the backup is read.
///
/// Example: pitr files sums uploads > list
#[derive(clap::Args, Debug)]
pub struct SumsArgs {
    /// The name under which it was backed up
    pub name: String,

    #[command(flatten)]
    pub choice: ChoiceArgs,
}

/// Copy a bucket to another place
///
/// Copies the objects that a source s3://… has now, with their metadata, below --to; no backup is read or made. A store copies by itself where it has both
/// places. Objects that are there already are left, also from a copy that was cut short: the same command goes on with it. Objects that differ there are replaced
/// with --confirm alone: without it the command shows them, copies nothing, and leaves with 8. Nothing is removed.
///
/// Example: pitr files copy media --to s3://elsewhere/media
#[derive(clap::Args, Debug)]
pub struct CopyArgs {
    /// The name in the configuration, of which the source is a bucket
    pub name: String,

    /// The place
    #[arg(long, value_name = "URL")]
    pub to: String,

    /// Replace objects that differ
    #[arg(long)]
    pub confirm: bool,

    /// Show what would be copied, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Copy on this many threads, 1 to 256; 8 at most are used
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
}

/// Back a directory up whenever something in it changes
///
/// Runs until it is stopped. A backup is taken when nothing has changed for two seconds, or half of --within after the first change. The kernel tells of changes
/// (inotify); each backup walks the whole directory, so that nothing depends on what it tells. A walk every ten minutes finds what the kernel does not tell, such as stores
/// through a mapping. No backup is taken while the directory is not there, or its filesystem is not mounted. A backup that fails is tried again.
///
/// With --status it prints how far the running watcher of NAME is behind. Exit status 6 where
/// none runs, or somebody has to look: a failure, a warning, a missing directory, files that cannot be read.
///
/// Example: pitr files watch uploads
#[derive(clap::Args, Debug)]
pub struct WatchArgs {
    /// The name in the configuration, of which the source is a directory
    pub name: String,

    /// A change is in a backup after so many seconds, 2 to 3600; 60 without it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide_default_value = true, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub within: u64,

    /// Print how far the watcher is behind
    #[arg(long)]
    pub status: bool,

    /// Read and compress on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Compress with this codec
    #[arg(long, value_enum)]
    pub compression: Option<FrameCodec>,
}

/// Tell which rule takes a path or leaves it out
///
/// Looks at the directory and the rules of the configuration, and at no backup. A path is absolute, or relative to the source; one that does not exist is
/// judged by patterns alone, as a directory where it ends in a slash.
///
/// Example: pitr files check-excludes uploads cache/a.tmp
#[derive(clap::Args, Debug)]
pub struct CheckExcludesArgs {
    /// The name in the configuration
    pub name: String,

    /// The paths
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        // The programs before and after it must not be cut short.
        Command::Backup(_) | Command::Watch(_) => cx.stop_with_cleanup()?,
        _ => cx.stop_in_order()?,
    }
    match command {
        Command::Backup(args) => backup(args, cx),
        Command::Restore(args) => restore(args, cx),
        Command::Rollback(args) => {
            let to = files::replace::source(&cx.session, &args.name)?;
            let undo = |asked: &_| operate::rollback::run(&cx.session, &to, asked);
            rollback::run(args, "files", &undo, cx)
        }
        Command::Ls(args) => ls(args, cx),
        Command::Cat(args) => cat(args, cx),
        Command::Find(args) => find(args, cx),
        Command::Diff(args) => diff(args, cx),
        Command::Sums(args) => sums(args, cx),
        Command::Copy(args) => copy(args, cx),
        Command::Watch(args) if args.status => watch_status(args, cx),
        Command::Watch(args) => watch(args, cx),
        Command::CheckExcludes(args) => check_excludes(args, cx),
    }
}

/// The things that a restore may make.
fn permit(is_privileged: bool) -> Permit {
    match is_privileged {
        true => Permit::ALL,
        false => Permit::default(),
    }
}

fn backup(args: &BackupArgs, cx: &Context) -> Result<u8> {
    let done = files::backup(
        &cx.session,
        &Wanted {
            name: args.name.clone(),
            label: args.label.clone().unwrap_or_default(),
            is_full: args.full,
            takes_over: args.confirm,
            watched: None,
            jobs: jobs(args.jobs),
            codec: args.compression.unwrap_or(FrameCodec::Lz4),
        },
    )?;
    cx.answer(&backup_as_json(&args.name, &done), || {
        cx.report(&backup_line(&args.name, &done))
    })?;
    warn_of(&done, cx);
    if let Some(e) = &done.after {
        return Ok(cx.error(e));
    }
    let troubles = done.taken.left_out.total() + done.taken.unstable;
    let warnings = done.warnings.len() as u64;
    Ok(status(troubles + warnings + done.lost_files.unwrap_or(0)))
}

/// Tells what a backup lacks, and what is odd about its source. JSON has the former.
fn warn_of(done: &Done, cx: &Context) {
    if !cx.is_json() {
        if let Some(why) = &done.why_full {
            cx.note(&format!("everything was stored: {why}"));
        }
        left_out::warn(cx, &done.taken.left_out, "", "more were not read");
        if done.taken.unstable > 0 {
            cx.warn(&format!(
                "{} changed while being read, and may hold parts of two states",
                human::count(done.taken.unstable, "file")
            ));
        }
    }
    if let Some(files) = done.lost_files {
        cx.warn(&format!(
            "the source has no file any more, and the backup before has {files}: is its filesystem mounted?"
        ));
    }
    done.notes.iter().for_each(|note| cx.note(note));
    cx.warn_all(&done.warnings);
}

fn backup_line(name: &str, done: &Done) -> String {
    let head = &done.root.head;
    let taken = &done.taken;
    let known = match taken.reused_bytes {
        0 => String::new(),
        bytes => format!(", {} of it stored before", human::size(bytes)),
    };
    let how = match &head.prior {
        Some(prior) => format!(
            "{} read, changed since {prior}: {}{known}",
            human::count(taken.read, "file"),
            human::size(taken.read_bytes)
        ),
        None => format!("full{known}"),
    };
    format!(
        "backup {} of \"{name}\": {} in {} stored as {} ({how}) in {}",
        head.id,
        human::size(head.size_bytes),
        human::count(head.file_count, "file"),
        human::size(head.stored_bytes),
        human::duration(done.took)
    )
}

fn backup_as_json(name: &str, done: &Done) -> serde_json::Value {
    let (head, taken) = (&done.root.head, &done.taken);
    let more = json!({
        "kind": head.backup_kind,
        "prior": head.prior,
        "kind_reason": done.why_full,
        "read_count": taken.read,
        "read_bytes": taken.read_bytes,
        "reused_bytes": taken.reused_bytes,
        "unchanged_count": taken.unchanged,
        "excluded_count": taken.excluded,
        "unstable_count": taken.unstable,
        "left_out": left_out::as_json(&taken.left_out),
        "source": done.source,
        "after_error": done.after.as_ref().map(ToString::to_string),
    });
    head_json(name, head, (&done.repository, done.took), &more)
}

fn restore(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let bucket = args.to.as_deref().and_then(files::bucket::is_bucket);
    if bucket.is_some() && args.delta {
        return Err(err!(Usage, "--delta is for directories")
            .hint("Restore into a prefix without any object."));
    }
    let to = match &args.to {
        Some(to) if bucket.is_some() => to,
        // All jobs write at once there.
        Some(to) if !args.delta || (!args.replace.dry_run && files::replace::is_fresh(to)?) => to,
        _ => return replace(args, cx),
    };
    let wanted = RestoreWanted {
        name: args.name.clone(),
        choice: args.choice.choice(),
        globs: args.path.clone(),
        to: to.clone(),
        permit: permit(args.privileged),
        jobs: jobs(args.jobs),
    };
    let restored = match bucket {
        Some(url) => files::bucket::restore(&cx.session, &wanted, url)?,
        None => files::restore(&cx.session, &wanted)?,
    };
    let Restored {
        root,
        extracted,
        took,
        ..
    } = &restored;
    let shown = json!({
        "backup": root.head.id,
        "name": args.name,
        "to": to.to_string_lossy(),
        "paths": args.path,
        "entry_count": extracted.entries,
        "written_bytes": extracted.written_bytes,
        "left_out": left_out::as_json(&extracted.left_out),
        "incomplete_count": root.content.incomplete_count,
        "unstable_count": root.content.unstable_count,
        "not_stored": restored.not_stored,
        "duration_ms": human::millis(*took),
    });
    cx.answer(&shown, || {
        cx.report(&format!(
            "backup {} of \"{}\" restored to \"{}\": {} entries, {} written in {}",
            root.head.id,
            args.name,
            to.display(),
            extracted.entries,
            human::size(extracted.written_bytes),
            human::duration(*took)
        ))?;
        let more = "more were not made as they were";
        left_out::warn(cx, &extracted.left_out, "", more);
        tell_of_backup(cx, &root.content, &restored.not_stored);
        Ok(())
    })?;
    let content = &root.content;
    let troubles = content.incomplete_count + content.unstable_count;
    Ok(status(extracted.left_out.total() + troubles))
}

/// Takes a directory that has entries back.
fn replace(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let asked = files::replace::Asked {
        name: args.name.clone(),
        choice: args.choice.choice(),
        globs: args.path.clone(),
        to: args.to.clone(),
        permit: permit(args.privileged),
        compares_content: args.replace.checksum,
        deletes: args.replace.delete,
        is_confirmed: args.replace.confirm,
    };
    let shown = replaced::Shown {
        kind: "files",
        name: &args.name,
        globs: &args.path,
        is_dry_run: args.replace.dry_run,
    };
    replaced::show(&shown, cx, &files::replace::replace(&cx.session, &asked)?)
}

fn watch(args: &WatchArgs, cx: &Context) -> Result<u8> {
    let wanted = WatchWanted {
        name: args.name.clone(),
        within: Duration::from_secs(args.within),
        jobs: jobs(args.jobs),
        codec: args.compression.unwrap_or(FrameCodec::Lz4),
    };
    files::watch::watch(&cx.session, &wanted, &mut |done| {
        if done.is_new {
            cx.answer(&backup_as_json(&args.name, done), || {
                cx.report(&backup_line(&args.name, done))
            })?;
        }
        warn_of(done, cx);
        if let Some(e) = &done.after {
            cx.warn(&e.to_string());
        }
        Ok(())
    })?;
    Ok(exit::SUCCESS)
}

fn watch_status(args: &WatchArgs, cx: &Context) -> Result<u8> {
    let found = files::watch::behind(&cx.session, &args.name)?;
    let state = found.state.as_ref();
    let shown = json!({
        "name": args.name,
        "is_running": found.is_running,
        "behind_ms": found.behind.map(human::millis),
        "activity": state.map(|state| state.activity).filter(|_| found.is_running),
        "changed_since": state.and_then(|state| state.changed_since),
        "covered_until": state.and_then(|state| state.covered_until),
        "backup": state.and_then(|state| state.backup.as_ref()),
        "error": state.and_then(|state| state.error.as_ref()),
        "directory_count": state.map(|state| state.directory_count),
        "is_complete": state.map(|state| state.is_complete),
        "left_out_count": state.map(|state| state.left_out_count),
        "warning": state.and_then(|state| state.warning.as_ref()),
    });
    cx.answer(&shown, || cx.line(&status_line(&args.name, &found)))?;
    let is_well = found.is_running && state.is_some_and(State::is_well);
    Ok(status(u64::from(!is_well)))
}

fn status_line(name: &str, found: &Behind) -> String {
    let state = found.state.as_ref();
    let until = match state.and_then(|state| state.covered_until) {
        Some(until) => format!("backups have everything until {}", human::time(until)),
        None => "it has taken no backup yet".to_owned(),
    };
    let troubles = state.map(troubles).unwrap_or_default();
    let lacks = state.is_some_and(|state| state.left_out_count > 0);
    match (found.is_running, found.behind) {
        (true, Some(behind)) if behind.is_zero() => format!(
            "\"{name}\" is watched, and every change{} is in a backup; {until}{troubles}",
            if lacks { " that can be read" } else { "" }
        ),
        (true, Some(behind)) => format!(
            "\"{name}\" is watched, and {} behind; {until}{troubles}",
            human::duration(behind)
        ),
        (true, None) => format!("\"{name}\" is watched, and nothing is noted yet"),
        (false, _) => format!("no watcher of \"{name}\" runs here; {until}{troubles}"),
    }
}

/// The things for which somebody has to look.
fn troubles(state: &State) -> String {
    let missing = "its directory is not there, or its filesystem is not mounted".to_owned();
    let is_missing = state.activity == Activity::SourceMissing && state.error.is_none();
    let left_out = human::count(state.left_out_count, "thing") + " cannot be read";
    let all = [
        is_missing.then_some(missing),
        (state.left_out_count > 0).then_some(left_out),
        state
            .warning
            .as_ref()
            .map(|text| format!("the last warning: {text}")),
        state
            .error
            .as_ref()
            .map(|e| format!("the last attempt failed: {e}")),
    ];
    all.into_iter()
        .flatten()
        .map(|text| format!("; {text}"))
        .collect()
}

fn copy(args: &CopyArgs, cx: &Context) -> Result<u8> {
    let done = files::copy::copy(
        &cx.session,
        &CopyWanted {
            name: args.name.clone(),
            to: args.to.clone(),
            is_confirmed: args.confirm,
            is_dry_run: args.dry_run,
            jobs: jobs(args.jobs),
        },
    )?;
    let more = json!({
        "name": args.name,
        "left_out": left_out::as_json(&done.left_out),
        "duration_ms": human::millis(done.took),
    });
    cx.answer(&merged(json!(done), &more), || {
        for key in &done.differing {
            cx.line(&format!("* {}", key.escape_debug()))?;
        }
        cx.report(&copy_line(&done))?;
        left_out::warn(cx, &done.left_out, "", "more were not copied");
        Ok(())
    })?;
    let is_enough = !done.is_plan || done.differing_count == 0 || args.dry_run;
    done_or_unconfirmed(is_enough, "The plan above would be carried out.")?;
    Ok(status(done.left_out.total()))
}

fn copy_line(done: &CopyDone) -> String {
    let (new, differing) = (done.new_count, done.differing_count);
    let there = human::count(done.unchanged_count, "object");
    let (from, to) = (&done.from, &done.to);
    match done.is_plan {
        true => format!(
            "to be copied from {from} to {to}: {} ({}), of which {differing} differ there; {there} are there already",
            human::count(new + differing, "object"),
            human::size(done.size_bytes)
        ),
        false => format!(
            "copied from {from} to {to}: {}, {} by the store itself; {there} were there already, in {}",
            human::count(done.copied_count, "object"),
            done.by_store_count,
            human::duration(done.took)
        ),
    }
}

fn cat(args: &CatArgs, cx: &Context) -> Result<u8> {
    if cx.is_json() {
        return Err(err!(Usage, "the content of a file is no JSON").hint("Leave --json out."));
    }
    let choice = args.choice.choice();
    files::cat(&cx.session, &args.name, &choice, &args.path, &mut |bytes| {
        cx.bytes(bytes)
    })?;
    Ok(exit::SUCCESS)
}

fn find(args: &FindArgs, cx: &Context) -> Result<u8> {
    let mut found = Vec::new();
    files::find(
        &cx.session,
        &args.name,
        &args.pattern,
        &mut |id, ended, entry| {
            if cx.is_json() {
                found.push(json!({ "backup": id, "stop_time": ended, "entry": entry }));
                return Ok(());
            }
            cx.line(&format!("{id} {}", line(entry)))
        },
    )?;
    cx.answered(&json!({ "name": args.name, "found": found }), || Ok(()))
}

fn diff(args: &DiffArgs, cx: &Context) -> Result<u8> {
    let mut found = Vec::new();
    let which = (&args.from, args.to.as_ref());
    let to = files::diff(&cx.session, &args.name, which, &mut |difference, entry| {
        if cx.is_json() {
            found.push(json!({ "difference": difference, "entry": entry }));
            return Ok(());
        }
        let sign = match difference {
            Difference::Added => '+',
            Difference::Removed => '-',
            Difference::Changed => '*',
            Difference::Attributes => 'm',
        };
        cx.line(&format!("{sign} {}", line(entry)))
    })?;
    let shown = json!({ "name": args.name, "from": args.from, "to": to, "differences": found });
    cx.answered(&shown, || Ok(()))
}

fn sums(args: &SumsArgs, cx: &Context) -> Result<u8> {
    let mut found = Vec::new();
    let choice = args.choice.choice();
    let id = files::sums(&cx.session, &args.name, &choice, &mut |path, sum| {
        if cx.is_json() {
            let path = String::from_utf8_lossy(path);
            found.push(json!({ "path": path, "sha256": sum }));
            return Ok(());
        }
        cx.bytes(&sum_line(path, sum))
    })?;
    let shown = json!({ "backup": id, "name": args.name, "sums": found });
    cx.answered(&shown, || Ok(()))
}

/// Pure: a line as sha256sum writes it. One with a backslash first has a path in which some characters are escaped.
pub(super) fn sum_line(path: &[u8], sum: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b'\\' => name.extend(b"\\\\"),
            b'\n' => name.extend(b"\\n"),
            b'\r' => name.extend(b"\\r"),
            _ => name.push(*byte),
        }
    }
    let mark: &[u8] = if name.len() == path.len() { b"" } else { b"\\" };
    [mark, sum.as_bytes(), b"  ", &name, b"\n"].concat()
}

fn check_excludes(args: &CheckExcludesArgs, cx: &Context) -> Result<u8> {
    let verdicts = files::check_excludes(&cx.session, &args.name, &args.paths)?;
    let shown = json!({ "name": args.name, "paths": verdicts });
    cx.answered(&shown, || {
        (verdicts.iter()).try_for_each(|verdict| cx.line(&verdict_line(verdict)))
    })
}

fn verdict_line(verdict: &Verdict) -> String {
    let result = if verdict.taken { "taken" } else { "left out" };
    let value = verdict.value.as_ref();
    let value = value
        .map(|value| format!(" \"{value}\""))
        .unwrap_or_default();
    let rule = match verdict.rule {
        Some(rule) => format!("{rule}{value}"),
        None => "no rule".to_owned(),
    };
    let at = verdict
        .decided_at
        .as_ref()
        .filter(|at| **at != verdict.path);
    let at = at.map(|at| format!(", at \"{at}\"")).unwrap_or_default();
    let gone = match verdict.exists {
        true => "",
        false => ", does not exist",
    };
    format!("{result:<8} {}: {rule}{at}{gone}", verdict.path)
}

fn line(entry: Entry) -> String {
    let size = entry.size_bytes.map(|b| b.to_string()).unwrap_or_default();
    let time = entry.mtime.map(human::time).unwrap_or_default();
    let target = entry.target.map(|t| format!(" -> {t}")).unwrap_or_default();
    format!(
        "{} {:<12} {:<17} {size:>12} {time:<20} {}{target}{unstable}",
        entry.mode,
        entry.kind,
        entry.owner.unwrap_or_default(),
        entry.path,
        unstable = match entry.unstable {
            true => " (changed while it was read)",
            false => "",
        }
    )
}

/// Warns of what the backup never had.
pub(super) fn tell_of_backup(cx: &Context, content: &AuxContent, not_stored: &serde_json::Value) {
    let examples = not_stored.as_array().into_iter().flatten();
    for one in examples.take(SHOWN) {
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        cx.warn(&format!(
            "the backup lacks \"{}\", {}: {}",
            text("path"),
            text("part"),
            text("reason")
        ));
    }
    left_out::warn_incomplete(cx, content.incomplete_count);
    if content.unstable_count > 0 {
        let files = human::count(content.unstable_count, "file");
        cx.warn(&format!("{files} changed while the backup was taken"));
    }
}

fn ls(args: &LsArgs, cx: &Context) -> Result<u8> {
    let mut entries = Vec::new();
    let choice = args.choice.choice();
    let below = args.path.as_deref();
    let id = files::list(&cx.session, &args.name, &choice, below, &mut |entry| {
        if cx.is_json() {
            entries.push(entry);
            return Ok(());
        }
        cx.line(&line(entry))
    })?;
    let shown = json!({ "backup": id, "name": args.name, "entries": entries });
    cx.answered(&shown, || Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_written_as_sha256sum_writes_them() {
        let zeros = "00".repeat(32);
        let text = |path: &[u8]| String::from_utf8(sum_line(path, &zeros)).unwrap();
        assert_eq!(text(b"a b"), format!("{zeros}  a b\n"));
        assert_eq!(text(b"a\nb\\c\r"), format!("\\{zeros}  a\\nb\\\\c\\r\n"));
    }
}
