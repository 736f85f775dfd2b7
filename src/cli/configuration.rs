//! `pitr config`: configuration files, with their secrets kept apart.

use std::io::IsTerminal;
use std::path::PathBuf;

use serde_json::json;

use super::left_out::{self, status};
use super::output::with_tabs;
use super::{Context, partial_unless, replaced, rollback};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::configuration::backup::{self, Asked, Taken};
use crate::operate::configuration::original::{self, Restoring, Revealing};
use crate::operate::configuration::redacted::{self, Sides};
use crate::operate::configuration::{in_place, recipients, scan};
use crate::operate::human;
use crate::repo::id::BackupId;

const KIND: &str = "config";

/// Back up configuration files, with their secrets kept apart
///
/// Each set has a name in the configuration: [config.NAME] with paths = ["default", "/srv/app/.env"]. A file with a secret is sealed to a secrets pair besides the
/// repository's keys: "show" and "diff" print it with a mark in place of each secret, and only who holds a key of the pair gets the original. "pitr repo keygen
/// --secrets" makes the pair.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Backup(BackupArgs),
    Show(ShowArgs),
    Diff(DiffArgs),
    Reveal(RevealArgs),
    Restore(RestoreArgs),
    /// Undo a restore in place
    ///
    /// Puts back the files that the restore replaced, and removes those that it made. Without --confirm it shows the plan, and leaves with 8. Refused with 8 where restored
    /// files were changed since.
    ///
    /// Example: pitr config rollback host --confirm
    Rollback(rollback::Args),
    Scan(ScanArgs),
    Recipients(RecipientsArgs),
}

/// Back up configuration files
///
/// Example: pitr config backup host
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The name in the configuration
    pub name: String,

    /// Go on under a name whose earlier backups another host took
    #[arg(long)]
    pub confirm: bool,

    /// A text to recognise the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Store secrets in a repository that is not encrypted
    #[arg(long)]
    pub allow_plain_secrets: bool,
}

/// List the files of a backup, or print one without its secrets
///
/// Example: pitr config show host /etc/postgresql/17/main/postgresql.conf
#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    /// The name under which they were backed up
    pub name: String,

    /// The file
    pub path: Option<String>,

    /// Take this backup instead of the newest one
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
}

/// Compare two backups, or a backup with this host, without secrets
///
/// Without FROM it is the backup before the last one, without TO the last. A mark differs where the secret does; where nothing seals, originals are compared. Leaves with 6 when something differs.
///
/// Example: pitr config diff host --live
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    /// The name under which they were backed up
    pub name: String,

    /// The earlier backup
    pub from: Option<BackupId>,

    /// The later one
    #[arg(value_name = "TO", conflicts_with = "live")]
    pub to: Option<BackupId>,

    /// Compare with the files of this host; without FROM the newest backup is the earlier side
    #[arg(long)]
    pub live: bool,
}

/// Print an original file, or the secrets under one of its keys
///
/// Needs the key file of a recipient of the secrets pair besides what reads the repository.
///
/// Example: pitr config reveal host /srv/app/.env STRIPE_KEY --secrets-key lead.key
#[derive(clap::Args, Debug)]
pub struct RevealArgs {
    /// The name under which it was backed up
    pub name: String,

    /// The file
    pub path: String,

    /// The key, as "scan" and the file itself name it
    pub key: Option<String>,

    /// Take this backup instead of the newest one
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// The key file of a recipient of the secrets pair; else secrets_key of the configuration
    #[arg(long, value_name = "FILE")]
    pub secrets_key: Option<PathBuf>,
}

/// Restore configuration files below a directory
///
/// Writes below a directory that is empty or does not exist, and nowhere else: /etc/crontab becomes DIR/etc/crontab. Owners, setuid and setgid bits and extended
/// attributes other than ACLs are made with --privileged alone.
///
/// With --in-place files go back to where they were. Those that are replaced are kept: pitr config rollback puts them back. Nothing is removed, and directories that are
/// there keep their attributes. Files without secrets need no key of the secrets pair. Without --confirm the plan is shown, with exit status 8.
///
/// Example: pitr config restore host --to /root/restored --secrets-key lead.key
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The name under which they were backed up
    pub name: String,

    /// The directory
    #[arg(long, value_name = "DIR", required_unless_present = "in_place")]
    pub to: Option<PathBuf>,

    /// Replace what differs where it lies, and keep what is replaced
    #[arg(long, conflicts_with_all = ["to", "redacted"])]
    pub in_place: bool,

    /// In place, only what this pattern of gitignore names, with what is below; repeatable
    #[arg(long, value_name = "GLOB", requires = "in_place", conflicts_with_all = ["to"])]
    pub path: Vec<String>,

    /// Carry the plan out
    #[arg(long, requires = "in_place", conflicts_with = "to")]
    pub confirm: bool,

    /// Show the plan, and leave with 0
    #[arg(long, requires = "in_place", conflicts_with_all = ["to", "confirm"])]
    pub dry_run: bool,

    /// Take this backup instead of the newest one
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// Leave the marks in place of secrets; needs no key of the secrets pair
    #[arg(long, conflicts_with = "secrets_key")]
    pub redacted: bool,

    /// The key file of a recipient of the secrets pair; else secrets_key of the configuration
    #[arg(long, value_name = "FILE")]
    pub secrets_key: Option<PathBuf>,

    /// Make owners, setuid and setgid bits and all extended attributes, too
    #[arg(long)]
    pub privileged: bool,
}

/// Look for secrets in files of this host
///
/// Prints file, line, key and rule of each, and never its value. Leaves with 6 when there are any.
///
/// Example: pitr config scan /srv/app /etc/nginx
#[derive(clap::Args, Debug)]
pub struct ScanArgs {
    /// Files and directories
    #[arg(value_name = "PATH", required_unless_present = "set")]
    pub paths: Vec<PathBuf>,

    /// The rules of this set of the configuration, and its files where no path is named
    #[arg(long, value_name = "NAME")]
    pub set: Option<String>,
}

/// List who may read originals, give access, or take it
///
/// Without options it lists the recipients of the secrets pair. No data is touched: who has read an original before still knows it, and a new pair seals later
/// backups from those who are gone.
///
/// Example: pitr config recipients --add new.pub --secrets-key lead.key
#[derive(clap::Args, Debug)]
pub struct RecipientsArgs {
    /// Give access to the recipient whose .pub file this is. May be given several times
    #[arg(long, value_name = "FILE")]
    pub add: Vec<PathBuf>,

    /// Withdraw a recipient's access; two who keep it must be proven. May be given several times
    #[arg(long, value_name = "NAME")]
    pub withdraw: Vec<String>,

    /// The key file of a recipient who has access. May be given several times
    #[arg(long, value_name = "FILE")]
    pub secrets_key: Vec<PathBuf>,
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    match command {
        Command::Backup(args) => backup(args, cx),
        Command::Show(args) => show(args, cx),
        Command::Diff(args) => diff(args, cx),
        Command::Reveal(args) => reveal(args, cx),
        Command::Restore(args) => restore(args, cx),
        Command::Rollback(args) => {
            let undo = |asked: &_| in_place::roll_back(&cx.session, asked);
            rollback::run(args, KIND, &undo, cx)
        }
        Command::Scan(args) => scan(args, cx),
        Command::Recipients(args) => recipients(args, cx),
    }
}

fn backup(args: &BackupArgs, cx: &Context) -> Result<u8> {
    let taken = backup::run(
        &cx.session,
        &Asked {
            name: args.name.clone(),
            label: args.label.clone().unwrap_or_default(),
            takes_over: args.confirm,
            allow_plain: args.allow_plain_secrets,
        },
    )?;
    let Taken { root, left_out, .. } = &taken;
    let head = &root.head;
    if cx.is_json() {
        cx.json(&json!({
            "id": head.id,
            "name": args.name,
            "label": head.label,
            "repository": taken.repository,
            "start_time": head.start_time,
            "stop_time": head.stop_time,
            "file_count": head.file_count,
            "stored_bytes": head.stored_bytes,
            "sealed_count": taken.sealed_files,
            "secret_count": taken.secrets,
            "unstable_count": root.content.unstable_count,
            "left_out": left_out::as_json(left_out),
            "duration_ms": human::millis(taken.took),
        }))?;
    } else {
        let files = head.file_count.saturating_sub(taken.sealed_files as u64);
        cx.report(&format!(
            "backup {} of \"{}\": {}, {} of them with {}, stored as {} in {}",
            head.id,
            args.name,
            human::count(files, "file"),
            taken.sealed_files,
            human::count(taken.secrets as u64, "secret"),
            human::size(head.stored_bytes),
            human::duration(taken.took)
        ))?;
        left_out::warn(cx, left_out, "/", "more");
    }
    Ok(status(left_out.total() + root.content.unstable_count))
}

fn show(args: &ShowArgs, cx: &Context) -> Result<u8> {
    let backup = args.backup.as_ref();
    let Some(path) = &args.path else {
        let (id, lines) = redacted::list(&cx.session, &args.name, backup)?;
        let shown = json!({ "backup": id, "name": args.name, "entries": lines });
        return cx.answered(&shown, || {
            lines.iter().try_for_each(|line| {
                let secret = if line.has_secrets { "secret" } else { "" };
                cx.line(&format!(
                    "{} {:<9} {secret:<6} {}",
                    line.mode, line.kind, line.path
                ))
            })
        });
    };
    let (id, content) = redacted::show(&cx.session, &args.name, path, backup)?;
    let text = String::from_utf8_lossy(&content);
    let shown = json!({ "backup": id, "name": args.name, "path": path, "redacted": text });
    cx.answered(&shown, || match std::io::stdout().is_terminal() {
        true => cx.raw(&with_tabs(&text)),
        false => cx.bytes(&content),
    })
}

fn diff(args: &DiffArgs, cx: &Context) -> Result<u8> {
    let sides = Sides {
        from: args.from.clone(),
        to: args.to.clone(),
        is_live: args.live,
    };
    let differences = redacted::diff(&cx.session, &args.name, &sides)?;
    let shown = json!({ "name": args.name, "differences": differences });
    cx.answer(&shown, || {
        differences.iter().try_for_each(|one| {
            cx.line(&format!("{} {}", one.difference, one.path))?;
            cx.text(&one.lines)
        })
    })?;
    Ok(status(differences.len() as u64))
}

fn reveal(args: &RevealArgs, cx: &Context) -> Result<u8> {
    if cx.is_json() {
        return Err(err!(Usage, "an original is no JSON").hint("Leave --json out."));
    }
    let original = original::reveal(
        &cx.session,
        &Revealing {
            name: args.name.clone(),
            path: args.path.clone(),
            key: args.key.clone(),
            backup: args.backup.clone(),
            secrets_key: args.secrets_key.clone(),
        },
    )?;
    cx.bytes(&original)?;
    Ok(exit::SUCCESS)
}

/// Takes files back where they lie.
fn replace(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let asked = in_place::Asked {
        name: args.name.clone(),
        backup: args.backup.clone(),
        globs: args.path.clone(),
        is_privileged: args.privileged,
        secrets_key: args.secrets_key.clone(),
        is_confirmed: args.confirm,
    };
    let shown = replaced::Shown {
        kind: KIND,
        name: &args.name,
        globs: &args.path,
        is_dry_run: args.dry_run,
    };
    replaced::show(&shown, cx, &in_place::restore(&cx.session, &asked)?)
}

fn restore(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let Some(to) = &args.to else {
        return replace(args, cx);
    };
    let restored = original::restore(
        &cx.session,
        &Restoring {
            name: args.name.clone(),
            backup: args.backup.clone(),
            to: to.clone(),
            is_privileged: args.privileged,
            is_redacted: args.redacted,
            secrets_key: args.secrets_key.clone(),
        },
    )?;
    let extracted = &restored.extracted;
    if cx.is_json() {
        cx.json(&json!({
            "backup": restored.id,
            "name": args.name,
            "to": to,
            "entry_count": extracted.entries,
            "original_count": restored.originals,
            "redacted": args.redacted,
            "incomplete_count": restored.incomplete_count,
            "left_out": left_out::as_json(&extracted.left_out),
            "duration_ms": human::millis(restored.took),
        }))?;
    } else {
        let originals = match args.redacted {
            true => "without secrets".to_owned(),
            false => format!("{} with secrets", restored.originals),
        };
        cx.report(&format!(
            "backup {} of \"{}\" restored to \"{}\": {} entries, {originals}, in {}",
            restored.id,
            args.name,
            to.display(),
            extracted.entries,
            human::duration(restored.took)
        ))?;
        left_out::warn(cx, &extracted.left_out, "/", "more");
        left_out::warn_incomplete(cx, restored.incomplete_count);
    }
    Ok(status(
        extracted.left_out.total() + restored.incomplete_count,
    ))
}

fn scan(args: &ScanArgs, cx: &Context) -> Result<u8> {
    let scanned = scan::run(&cx.session, args.set.as_deref(), &args.paths)?;
    let shown = json!({
        "file_count": scanned.files,
        "findings": scanned.findings,
        "left_out": left_out::as_json(&scanned.left_out),
    });
    cx.answer(&shown, || {
        for one in &scanned.findings {
            let open = match one.world_readable {
                true => ", open to all",
                false => "",
            };
            let key = if one.key.is_empty() { "-" } else { &one.key };
            cx.line(&format!(
                "{}:{}: {key} ({}, mode {}{open})",
                one.path, one.line, one.rule, one.mode
            ))?;
        }
        left_out::warn(cx, &scanned.left_out, "/", "more");
        Ok(())
    })?;
    Ok(status(
        scanned.findings.len() as u64 + scanned.left_out.total(),
    ))
}

fn recipients(args: &RecipientsArgs, cx: &Context) -> Result<u8> {
    let asked = recipients::Asked {
        add: args.add.clone(),
        withdraw: args.withdraw.clone(),
        keys: args.secrets_key.clone(),
    };
    let (answers, failures) = recipients::run(&cx.session, &asked)?;
    cx.answer(&json!({ "repositories": answers }), || {
        answers.iter().try_for_each(|one| {
            cx.line(&format!(
                "Originals in {} are read by: {} (secrets pair {})",
                one.name,
                one.recipients.join(", "),
                one.secrets_pair
            ))
        })
    })?;
    partial_unless(cx.told(failures)?)
}
