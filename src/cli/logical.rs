//! `pitr logical`: dumps of databases.

use std::path::PathBuf;

use serde_json::json;

use super::backup::head_json;
use super::{Context, findings_unless};
use crate::error::Result;
use crate::operate::human;
use crate::operate::logical::backup::{self, Asked, Taken};
use crate::operate::logical::check::{self, Checked, Level};
use crate::operate::logical::restore::{self, Into, Restored};
use crate::repo::id::BackupId;

/// Dump databases with pg_dump, restore and check the dumps
///
/// A dump is for moving, for upgrades and for single tables. Daily history is cheaper with pitr backup --incremental.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Backup(BackupArgs),
    Restore(RestoreArgs),
    Check(CheckArgs),
}

/// Dump the databases of [logical.NAME]
///
/// Each database is dumped by pg_dump in one snapshot, which the backup records with the WAL positions around it. Roles and tablespaces follow. Every dump is read
/// back before the backup exists: each table must have the rows that were counted in its snapshot. A failure leaves no backup.
///
/// The dumps wait in a private directory below TMPDIR, which needs room for all of them, uncompressed.
///
/// Example: pitr logical backup main --label "before the upgrade"
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The name in the configuration
    pub name: String,

    /// A text to recognise the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Dump each database over this many connections, in place of the configured number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,

    /// Go on under a name whose earlier backups are of another cluster
    #[arg(long)]
    pub confirm: bool,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,
}

/// Restore dumps as files, or into a database of a live server
///
/// --to writes the dumps as files: globals.sql, and for each database a directory for pg_restore.
///
/// --into fills an empty database by pg_restore, in one transaction unless --jobs or --create is given. A database that is not empty is refused (8). With
/// --replace --confirm whatever the dump names is dropped first, as pg_restore --clean --if-exists does.
///
/// A dump of content = "data" fills tables that are there and have no rows. --create and --replace do not go with it (8).
///
/// Example: pitr logical restore main --into "host=db2 dbname=app" --database app --table public.orders
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["to", "into"]))]
pub struct RestoreArgs {
    /// The name of the dumps
    pub name: String,

    /// Write the dumps into this directory: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,

    /// Fill the database of this server, in libpq's syntax; a password belongs into a password file
    #[arg(long, value_name = "CONNINFO")]
    pub into: Option<String>,

    /// Restore this backup; without it the newest
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// Restore this database of the backup; needed when it has several
    #[arg(long, value_name = "NAME", requires = "into", conflicts_with = "to")]
    pub database: Option<String>,

    /// Restore only this schema; may be repeated
    #[arg(long, value_name = "SCHEMA", requires = "into", conflicts_with = "to")]
    pub schema: Vec<String>,

    /// Restore only this table, without its indexes, constraints and policies; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE", requires = "into", conflicts_with_all = ["to"])]
    pub table: Vec<String>,

    /// Restore over this many connections, and not in one transaction
    #[arg(long, value_name = "N", requires = "into", conflicts_with_all = ["to", "replace"],
        value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,

    /// Create the database under the name that it has in the backup
    #[arg(long, requires = "into", conflicts_with_all = ["to", "schema", "table", "replace"])]
    pub create: bool,

    /// Drop whatever the dump names before it is restored
    #[arg(long, requires = "into", conflicts_with = "to")]
    pub replace: bool,

    /// Confirm --replace
    #[arg(long, requires = "replace")]
    pub confirm: bool,

    /// Let everything belong to the role that restores
    #[arg(long, requires = "into", conflicts_with = "to")]
    pub no_owner: bool,

    /// Restore no grants
    #[arg(long, requires = "into", conflicts_with = "to")]
    pub no_privileges: bool,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR", requires = "into", conflicts_with = "to")]
    pub bin: Option<PathBuf>,
}

/// Check a backup of dumps
///
/// --list parses each dump's table of contents. --read, which is the default, reads everything through pg_restore and compares the rows of each data file with
/// those counted in the snapshot. --restore restores into a private server without network, and compares the rows there; it runs code of the dumps as this user.
/// Every level compares all stored bytes with the hashes of the backup. The command says what its level proves. Exit status 4 when something is wrong.
///
/// Example: pitr logical check main --restore
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("level").args(["list", "read", "restore"]))]
pub struct CheckArgs {
    /// The name of the dumps
    pub name: String,

    /// Parse the tables of contents
    #[arg(long)]
    pub list: bool,

    /// Read everything
    #[arg(long)]
    pub read: bool,

    /// Restore into a private server
    #[arg(long)]
    pub restore: bool,

    /// Check this backup; without it the newest
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    // The spool and the programs have to end in order, however impatient the operator is.
    cx.stop_with_cleanup()?;
    match command {
        Command::Backup(args) => run_backup(args, cx),
        Command::Restore(args) => run_restore(args, cx),
        Command::Check(args) => run_check(args, cx),
    }
}

fn run_backup(args: &BackupArgs, cx: &Context) -> Result<u8> {
    let asked = Asked {
        name: &args.name,
        label: args.label.clone().unwrap_or_default(),
        jobs: args.jobs,
        takes_over: args.confirm,
        bin: args.bin.as_deref(),
    };
    let Taken {
        root,
        member,
        repository,
        took,
    } = backup::run(&cx.session, asked)?;
    let head = &root.head;
    let more = json!({ "logical": member });
    let shown = head_json(&args.name, head, (&repository, took), &more);
    cx.answered(&shown, || {
        for database in &member.databases {
            cx.report(&format!(
                "database {}: {} in {}, {}, snapshot {} at {} to {}",
                database.name,
                human::count(database.row_count, "row"),
                human::count(database.table_count, "table"),
                human::size(database.size_bytes),
                database.snapshot,
                database.start_lsn,
                database.stop_lsn
            ))?;
        }
        cx.report(&format!(
            "backup {}: {} by pg_dump {}, stored as {} in {}; every dump was read back",
            head.id,
            human::count(member.databases.len() as u64, "database"),
            member.pg_dump_version,
            human::size(head.stored_bytes),
            human::duration(took)
        ))?;
        cx.note(&format!(
            "next: \"pitr logical check {} --restore\" restores the dumps into a private server",
            args.name
        ));
        Ok(())
    })
}

fn run_restore(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    let (session, name, backup) = (&cx.session, args.name.as_str(), args.backup.as_ref());
    let restored = match (&args.to, &args.into) {
        (Some(to), _) => restore::to_directory(session, name, backup, to)?,
        (None, conninfo) => {
            let into = Into {
                conninfo: conninfo.clone().unwrap_or_default(),
                database: args.database.clone(),
                schemas: args.schema.clone(),
                tables: args.table.clone(),
                jobs: args.jobs,
                create: args.create,
                replace: args.replace,
                is_confirmed: args.confirm,
                no_owner: args.no_owner,
                no_privileges: args.no_privileges,
                bin: args.bin.clone(),
            };
            restore::to_server(session, name, backup, &into)?
        }
    };
    report_restore(args, cx, &restored)
}

fn report_restore(args: &RestoreArgs, cx: &Context, restored: &Restored) -> Result<u8> {
    let shown = json!({
        "id": restored.id,
        "name": args.name,
        "repository": restored.repository,
        "to": args.to.as_ref().map(|to| to.to_string_lossy()),
        "database": restored.database,
        "selected_entries": restored.selected,
        "logical": restored.member,
    });
    cx.answered(&shown, || print_restore(args, cx, restored))
}

fn print_restore(args: &RestoreArgs, cx: &Context, restored: &Restored) -> Result<()> {
    match (&args.to, &restored.database) {
        (Some(to), _) => cx.report(&format!(
            "backup {}: {} in \"{}\"; read them with pg_restore",
            restored.id,
            human::count(restored.member.databases.len() as u64, "dump"),
            to.display()
        )),
        (None, database) => {
            let database = database.as_deref().unwrap_or_default();
            let part = restored.selected.map_or(String::new(), |entries| {
                format!(", {entries} entries of the dump")
            });
            cx.report(&format!(
                "backup {}: database {database} is restored{part}",
                restored.id
            ))?;
            cx.note("next: run ANALYZE there: a dump has no statistics");
            Ok(())
        }
    }
}

fn run_check(args: &CheckArgs, cx: &Context) -> Result<u8> {
    let level = match (args.list, args.restore) {
        (true, _) => Level::List,
        (_, true) => Level::Restore,
        _ => Level::Read,
    };
    let which = (args.backup.as_ref(), level);
    let checked = check::run(&cx.session, &args.name, which, args.bin.as_deref())?;
    let count = checked.finding_count();
    let mut value = json!(checked);
    value["name"] = json!(args.name);
    value["finding_count"] = json!(count);
    cx.answer(&value, || print_check(cx, &checked))?;
    Ok(findings_unless(count == 0))
}

fn print_check(cx: &Context, checked: &Checked) -> Result<()> {
    cx.lines(checked.findings.iter().map(|f| format!("wrong: {f}")))?;
    for database in &checked.databases {
        for finding in &database.findings {
            cx.line(&format!("wrong: database {}: {finding}", database.name))?;
        }
        if database.findings.is_empty() {
            cx.report(&format!(
                "database {}: {} in {}, snapshot {} at {} to {}",
                database.name,
                human::count(database.row_count, "row"),
                human::count(database.table_count, "table"),
                database.snapshot,
                database.start_lsn,
                database.stop_lsn
            ))?;
        }
    }
    match checked.proves {
        Some(proof) => cx.report(&format!("backup {} is whole: {proof}", checked.id)),
        None if checked.level == Level::Restore && checked.findings.is_empty() => cx.line(&format!(
            "backup {} did not pass. What a server refuses for want of an extension or a collation of this host is no damage; else restore another one, and take a new one",
            checked.id
        )),
        None => cx.line(&format!(
            "backup {} is damaged: restore another one, and take a new one",
            checked.id
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::RestoreArgs;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        _args: RestoreArgs,
    }

    #[test]
    fn programs_are_needed_by_a_server_alone() {
        let parses = |words: &[&str]| {
            let words = ["x", "app", "--bin", "/bin"].iter().chain(words);
            Line::try_parse_from(words).is_ok()
        };
        assert!(parses(&["--into", "host=db"]));
        // Whatever names the other one is refused with it.
        assert!(!parses(&["--to", "/to"]));
    }
}
