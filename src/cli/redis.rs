//! `pitr redis`: data sets of Redis and Valkey.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::backup::{head_json, merged};
use super::output::Table;
use super::redis_moments::{self, InfoArgs, PlanArgs, TargetArgs};
use super::{Context, redis_cluster, warnings_unless};
use crate::err;
use crate::error::Result;
use crate::operate::human;
use crate::operate::redis::backup::{self, Asked, Taken};
use crate::operate::redis::into::{self, Replaced};
use crate::operate::redis::keys::{self, Names, Picked};
use crate::operate::redis::list::{self, Listed};
use crate::operate::redis::receive::{self, Ended};
use crate::operate::redis::restore::{self, Restored};
use crate::operate::redis::shards;
use crate::redis::member::Member;
use crate::redis::route::Route;
use crate::redis::version::ServerVersion;
use crate::repo::id::BackupId;

/// Back up Redis and Valkey servers, and restore their data sets
///
/// A backup is the data set of one moment. It is taken over the network as a replica takes it: nothing depends on the server's own files, unless source of its section says so.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Backup(BackupArgs),
    Receive(ReceiveArgs),
    Info(InfoArgs),
    Plan(PlanArgs),
    Restore(RestoreArgs),
    Ls(LsArgs),
}

/// Back up the data set of [redis.NAME]
///
/// The server forks and sends its data set, as to a new replica (PSYNC). The stream goes straight into the repository, and its checksum is compared before the
/// backup exists. A failure leaves no backup. The user needs the rights +psync +replconf +ping +info.
///
/// A server that refuses PSYNC is backed up by its own files on this host: source = "bgsave" or "aof" of the section. No log follows such a backup.
///
/// Every shard of a cluster is backed up, one after the other.
///
/// Exit status 6 when the server writes no checksum.
///
/// Example: pitr redis backup cache --label "before the release"
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The name in the configuration
    pub name: String,

    /// A text to recognise the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Go on under a name whose earlier backups are of another server
    #[arg(long)]
    pub confirm: bool,
}

impl BackupArgs {
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            name: &self.name,
            label: self.label.clone().unwrap_or_default(),
            takes_over: self.confirm,
            of_master: false,
        }
    }
}

/// Receive the commands of [redis.NAME] all the time
///
/// The receiver is a replica to the server. The commands go to receive.journal, are synced, and then acknowledged: WAIT counts them. From there they go into every
/// repository. With a backup it makes any moment restorable: pitr redis restore NAME --to DIR --target-time TIME. It runs until SIGTERM or Ctrl-C.
///
/// Every shard of a cluster is received, each from the owner of its slots; shards may come and go.
///
/// receive.acknowledge = "none" tells the server nothing: WAIT does not count the receiver then.
///
/// Example: pitr redis receive cache
#[derive(clap::Args, Debug)]
pub struct ReceiveArgs {
    /// The name in the configuration
    pub name: String,
}

/// Restore a data set as a directory that a server loads, or into a running server
///
/// --to gets the data set as the base of an append-only file, and a redis.conf that makes the server load it: Redis 7 and newer, and Valkey, from a directory with
/// a manifest, Redis 4 to 6 from a single file. A server whose version cannot load the data set is refused (8) before anything is written. redis-check-aof or
/// valkey-check-aof looks at the result where it is on the search path.
///
/// Keys whose time to live is over vanish when a server loads them. --as-replica makes the server the replica of a master that is not there: it keeps them, and
/// takes no writes.
///
/// With the name of a cluster --to gets a directory for each shard, all of one moment. Exit status 6 when it is not exact.
///
/// --into replaces all keys of a running server. A scratch server loads the data set on this host, and the running server is its replica until both have the same.
/// A backup of what is there is taken before. Stop what writes there: writes are refused meanwhile, and those of the time between are lost. It needs --confirm.
///
/// --key and --keys bring keys alone into the running server, by DUMP and RESTORE, with the time at which each ends. All its other keys stay. Keys that it has with
/// another value are replaced with --confirm only, and a backup is taken before. Without a replaced key neither is needed. --dry-run says how many keys are new,
/// replaced and equal. A command that was killed is run again.
///
/// Example: pitr redis restore cache --to /var/lib/redis-restored
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The name of the data set
    pub name: String,

    /// Write into this directory: empty, or not there yet
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    pub to: Option<PathBuf>,

    /// Replace all keys of the running server of this section of the configuration, or those of --key and --keys alone
    #[arg(long, value_name = "SECTION", conflicts_with_all = ["to", "as_replica", "server_version"])]
    pub into: Option<String>,

    /// Bring this key alone
    #[arg(long, value_name = "KEY", requires = "into", conflicts_with = "keys")]
    pub key: Option<OsString>,

    /// Bring the keys alone that match this pattern of the server, such as "user:*"
    #[arg(long, value_name = "PATTERN", requires = "into")]
    pub keys: Option<OsString>,

    /// The database of --key and --keys; without it 0
    #[arg(long, value_name = "N", requires = "into")]
    pub db: Option<u32>,

    /// Replace the keys that the running server has
    #[arg(long, requires = "into")]
    pub confirm: bool,

    /// Take no backup of what the running server has
    #[arg(long, requires = "into")]
    pub no_safety: bool,

    /// Restore this backup; without it the newest
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,

    /// The moment.
    #[command(flatten)]
    pub target: TargetArgs,

    /// Keep keys whose time to live is over, for a look at the data as they were
    #[arg(long)]
    pub as_replica: bool,

    /// The version of the server that shall load it, such as 7.2 or "valkey 8.1"; without it that of the server on the search path
    #[arg(long, value_name = "V")]
    pub server_version: Option<String>,

    /// Show what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// List the backups of a data set
///
/// Example: pitr redis ls cache
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// The name of the data set
    pub name: String,
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    if let Command::Backup(_) | Command::Receive(_) | Command::Restore(_) = command {
        cx.stop_in_order()?;
    }
    match command {
        Command::Backup(args) => run_backup(args, cx),
        Command::Receive(args) => run_receive(args, cx),
        Command::Restore(args) => run_restore(args, cx),
        Command::Ls(args) => run_ls(args, cx),
        Command::Info(args) => redis_moments::info(args, cx),
        Command::Plan(args) => redis_moments::plan(args, cx),
    }
}

fn run_receive(args: &ReceiveArgs, cx: &Context) -> Result<u8> {
    if shards::is_cluster(&cx.session, &args.name)? {
        return redis_cluster::receive(&args.name, cx);
    }
    let ended = receive::run(&cx.session, &args.name)?;
    cx.answer(&received_json(&args.name, &ended), || {
        report_received(&args.name, &ended, cx)
    })?;
    if !ended.is_shipped {
        cx.warn("a repository does not hold all of it yet: the rest is in the journal, and the next receiver ships it");
    }
    Ok(warnings_unless(ended.is_shipped))
}

pub(super) fn received_json(name: &str, ended: &Ended) -> Value {
    let (replid, offset) = ended.position.clone().unzip();
    json!({ "name": name, "replid": replid, "offset": offset, "shipped": ended.is_shipped })
}

pub(super) fn report_received(name: &str, ended: &Ended, cx: &Context) -> Result<()> {
    let Some((replid, position)) = &ended.position else {
        return Ok(());
    };
    cx.report(&format!(
        "redis \"{name}\": received up to offset {position} of {replid}"
    ))
}

fn run_backup(args: &BackupArgs, cx: &Context) -> Result<u8> {
    if shards::is_cluster(&cx.session, &args.name)? {
        return redis_cluster::backup(args, cx);
    }
    let taken = backup::run(&cx.session, args.asked())?;
    cx.warn_all(&taken.warnings);
    cx.answer(&backup_json(&args.name, &taken), || {
        print_backup(&taken, cx)
    })?;
    Ok(warnings_unless(taken.member.has_checksum))
}

fn print_backup(taken: &Taken, cx: &Context) -> Result<()> {
    let Taken { root, member, .. } = taken;
    let head = &root.head;
    cx.report(&format!(
        "backup {}: {} ({}) {}",
        head.id,
        described(member),
        member.role,
        moment(member),
    ))?;
    cx.report(&format!(
        "{}, stored as {} in {}; {}",
        human::size(member.bytes()),
        human::size(head.stored_bytes),
        human::duration(taken.took),
        match member.has_checksum {
            true => "the checksum is right",
            false => "the server writes no checksum",
        }
    ))
}

/// The keys of a data set, and the server that it came from.
pub(super) fn described(member: &Member) -> String {
    let keys = human::count(member.keys(), "key");
    format!("{keys} of {} {}", member.flavor, member.server_version)
}

/// A backup, its time and its size.
pub(super) fn of_backup(id: &BackupId, member: &Member) -> String {
    format!(
        "backup {id}: {} at {}, {}",
        described(member),
        human::time(member.received_time),
        human::size(member.bytes())
    )
}

/// The moment of a data set, and its position where it has one.
pub(super) fn moment(member: &Member) -> String {
    match member.position() {
        Some((replid, offset)) => format!(
            "at {}, offset {offset} of {replid}",
            human::time(member.received_time)
        ),
        None => format!(
            "by {}, of a moment between {} and {}; no log follows it",
            member.method,
            human::time(member.requested_time),
            human::time(member.received_time)
        ),
    }
}

pub(super) fn backup_json(name: &str, taken: &Taken) -> Value {
    let more = json!({ "warnings": taken.warnings, "redis": taken.member });
    let place = (taken.repository.as_str(), taken.took);
    head_json(name, &taken.root.head, place, &more)
}

fn run_into(args: &RestoreArgs, into: &str, cx: &Context) -> Result<u8> {
    let asked = into::Asked {
        name: &args.name,
        into,
        backup: args.backup.as_ref(),
        target: args.target.read()?,
        is_safe: !args.no_safety,
        is_confirmed: args.confirm,
        is_dry_run: args.dry_run,
    };
    if let Some(picked) = picked(args)? {
        return run_keys(&asked, &picked, cx);
    }
    let Replaced {
        restored,
        server,
        replicas,
        safety,
        keys_before,
        keys,
    } = into::run(&cx.session, &asked)?;
    let route = restored.route.as_ref();
    let more = json!({
        "replicas": replicas,
        "keys_before": keys_before,
        "keys": keys,
        "log_bytes": route.map(Route::bytes),
        "arrived_time": route.and_then(Route::arrived),
        "redis": restored.member,
    });
    let shown = into_json(&asked, &server, (&restored, safety.as_ref()), &more);
    cx.answered(&shown, || {
        let log = up_to(route).map(|up_to| format!(" and its log {up_to}{}", arrived(route)));
        let backup = format!("backup {}{}", restored.id, log.unwrap_or_default());
        let had = human::count(keys_before, "key");
        cx.report(&match keys.map(|keys| human::count(keys, "key")) {
            Some(keys) => format!("{backup}: {keys} in {server} of [redis.{into}], which had {had}"),
            None => format!("{backup}: would replace {had} in {server} of [redis.{into}]"),
        })?;
        if let Some(id) = &safety {
            cx.note(&format!(
                "back to what it had: pitr redis restore {into} --backup {id} --into {into} --confirm"
            ));
        }
        if replicas > 0 && !args.dry_run {
            cx.note(&format!(
                "{} copied the new data set, too; a receiver begins anew: take a backup with pitr redis backup {into}",
                human::count(replicas, "replica")
            ));
        }
        Ok(())
    })
}

/// The answer about a running server as JSON: the members that a data set and single keys have in common, and `more`.
fn into_json(
    asked: &into::Asked<'_>,
    server: &ServerVersion,
    (restored, safety): (&Restored, Option<&BackupId>),
    more: &Value,
) -> Value {
    let end = restored.route.as_ref().and_then(Route::end);
    let all = json!({
        "id": restored.id,
        "name": asked.name,
        "repository": restored.repository,
        "into": asked.into,
        "server_version": server.to_string(),
        "dry_run": asked.is_dry_run,
        "safety": safety,
        "replid": end.map(|(replid, _)| replid),
        "offset": end.map(|(_, offset)| offset),
    });
    merged(all, more)
}

/// How many names of keys are shown.
const SHOWN_KEYS: usize = 20;

fn picked(args: &RestoreArgs) -> Result<Option<Picked>> {
    let bytes = |name: &OsString| name.as_bytes().to_vec();
    let names = match (&args.key, &args.keys) {
        (Some(key), _) => Names::One(bytes(key)),
        (None, Some(pattern)) => Names::Matching(bytes(pattern)),
        // A command without names replaces all databases, which nobody wants who names one.
        (None, None) if args.db.is_some() => {
            return Err(err!(Usage, "--db needs --key or --keys"));
        }
        (None, None) => return Ok(None),
    };
    let db = args.db.unwrap_or(0);
    Ok(Some(Picked { db, names }))
}

fn run_keys(asked: &into::Asked<'_>, picked: &Picked, cx: &Context) -> Result<u8> {
    let copied = keys::run(&cx.session, asked, picked)?;
    let (into, restored, safety) = (asked.into, &copied.restored, copied.safety.as_ref());
    let others = copied.others.iter();
    let others: Vec<String> = others.map(|key| key.escape_ascii().to_string()).collect();
    let more = json!({
        "database": picked.db,
        "new": copied.new,
        "replaced": copied.replaced,
        "equal": copied.equal,
        "others": others,
    });
    let shown = into_json(asked, &copied.server, (restored, safety), &more);
    cx.answered(&shown, || {
        let log = up_to(restored.route.as_ref()).map(|up_to| format!(" and its log {up_to}"));
        cx.report(&format!(
            "backup {}{}, {} of [redis.{into}], database {}: {} new, {} replaced, {} equal{}",
            restored.id,
            log.unwrap_or_default(),
            copied.server,
            picked.db,
            copied.new,
            copied.replaced,
            copied.equal,
            match asked.is_dry_run {
                true => "; nothing was written",
                false => "",
            }
        ))?;
        if !others.is_empty() {
            let shown: Vec<&str> = others.iter().take(SHOWN_KEYS).map(String::as_str).collect();
            let more = match others.len() - shown.len() {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let are = if others.len() == 1 { "is" } else { "are" };
            cx.note(&format!(
                "{} did not exist at that moment, and {are} left alone: {}{more}",
                human::count(others.len() as u64, "key"),
                shown.join(", ")
            ));
        }
        if let Some(id) = safety {
            cx.note(&format!(
                "what the server had: pitr redis restore {into} --backup {id}, with the same --into and keys"
            ));
        }
        Ok(())
    })
}

fn run_restore(args: &RestoreArgs, cx: &Context) -> Result<u8> {
    if let Some(stored) = shards::of(&cx.session, &args.name)? {
        return redis_cluster::restore(args, &stored, cx);
    }
    if let Some(into) = &args.into {
        return run_into(args, into, cx);
    }
    let none = || err!(Usage, "--to or --into is needed");
    let to = args.to.as_deref().ok_or_else(none)?;
    let asked = restore::Asked {
        name: &args.name,
        to,
        backup: args.backup.as_ref(),
        target: args.target.read()?,
        as_replica: args.as_replica,
        server_version: args.server_version.as_deref(),
        is_dry_run: args.dry_run,
    };
    let restored = restore::run(&cx.session, &asked)?;
    if restored.target.is_none() {
        cx.warn(&format!(
            "no server is on the search path, and no --server-version is given: the files are made for {} {}, from which the backup came",
            restored.member.flavor, restored.member.server_version
        ));
    }
    cx.answered(&restore_json(args, &args.name, &restored), || {
        report_restore(args, cx, &restored)
    })
}

pub(super) fn restore_json(args: &RestoreArgs, name: &str, restored: &Restored) -> Value {
    let end = restored.route.as_ref().and_then(Route::end);
    let files = restored.files.iter().map(|path| path.to_string_lossy());
    json!({
        "id": restored.id,
        "name": name,
        "repository": restored.repository,
        "to": restored.to.to_string_lossy(),
        "files": files.collect::<Vec<_>>(),
        "target_version": restored.target.as_ref().map(ToString::to_string),
        "as_replica": args.as_replica,
        "dry_run": args.dry_run,
        "checked": restored.checked.is_ok() && !args.dry_run,
        "not_checked": restored.checked.as_ref().err(),
        "start": restored.start,
        "redis": restored.member,
        "log_bytes": restored.route.as_ref().map(Route::bytes),
        "replid": end.map(|(replid, _)| replid),
        "offset": end.map(|(_, offset)| offset),
        "arrived_time": restored.route.as_ref().and_then(Route::arrived),
    })
}

/// The end of a way: an offset of a history.
fn up_to(route: Option<&Route>) -> Option<String> {
    let (replid, offset) = route.and_then(Route::end)?;
    Some(format!("up to offset {offset} of {replid}"))
}

/// The time of the state at the end of a way.
fn arrived(route: Option<&Route>) -> String {
    let time = route.and_then(Route::arrived);
    time.map_or(String::new(), |time| format!(", of {time}"))
}

/// The log that is replayed upon a data set.
pub(super) fn log_of(restored: &Restored) -> Option<String> {
    let route = restored.route.as_ref()?;
    let (size, up_to) = (human::size(route.bytes()), up_to(Some(route))?);
    Some(format!("and {size} of its log, {up_to}"))
}

/// The directory of a data set that is restored, or would be.
pub(super) fn place_of(args: &RestoreArgs, restored: &Restored) -> String {
    match args.dry_run {
        true => format!("would be written to \"{}\"", restored.to.display()),
        false => format!("in \"{}\"", restored.to.display()),
    }
}

fn report_restore(args: &RestoreArgs, cx: &Context, restored: &Restored) -> Result<()> {
    let member = &restored.member;
    let (backup, place) = (of_backup(&restored.id, member), place_of(args, restored));
    cx.report(&format!("{backup}, {place}"))?;
    if let Some(log) = log_of(restored) {
        cx.report(&format!("{log}{}", arrived(restored.route.as_ref())))?;
    }
    for file in &restored.files {
        cx.report(&format!("  {}", file.display()))?;
    }
    match (&restored.checked, args.dry_run) {
        (Ok(()), false) => {
            cx.report("the program that checks append-only files finds it valid")?;
        }
        (Ok(()), true) => {
            cx.report("the program that checks append-only files would look at it")?;
        }
        (Err(why), _) => cx.note(&format!("nothing checked the append-only file: {why}")),
    }
    if member.expires() > 0 && !args.as_replica {
        cx.note(&format!(
            "{} of them had a time to live when the backup was taken: those whose time is over vanish when a server loads them (--as-replica keeps them)",
            human::count(member.expires(), "key")
        ));
    }
    for module in &member.modules {
        cx.note(&format!(
            "the server needs module {}, version {} or newer: name it in redis.conf",
            module.name, module.version
        ));
    }
    if !member.has_checksum {
        cx.warn("the data set has no checksum of its server: damage on its way to the backup would not have been found");
    }
    cx.note(&format!("next: {}", restored.start));
    Ok(())
}

fn run_ls(args: &LsArgs, cx: &Context) -> Result<u8> {
    if let Some(stored) = shards::of(&cx.session, &args.name)? {
        return redis_cluster::ls(args, &stored, cx);
    }
    let (repository, listed) = list::run(&cx.session, &args.name)?;
    let shown = json!({ "name": args.name, "repository": repository, "backups": listed });
    cx.answered(&shown, || match listed.is_empty() {
        true => {
            note_none(&args.name, cx);
            Ok(())
        }
        false => cx.table(&table(&listed)),
    })
}

pub(super) fn note_none(name: &str, cx: &Context) {
    cx.note(&format!(
        "there is no backup: take one with pitr redis backup {name}"
    ));
}

pub(super) fn table(listed: &[Listed]) -> Table {
    Table::of("BACKUP | TIME | >KEYS | >SIZE | SERVER | >OFFSET | STATE | LABEL")
        .rows(listed.iter().map(row))
}

fn row(one: &Listed) -> [String; 8] {
    let (backup, member) = (&one.backup, one.redis.as_ref());
    let known = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    let state = match (&backup.damage, backup.expire_not_before, backup.pinned) {
        (Some(_), _, _) => "damaged",
        (None, Some(_), _) => "expires",
        (None, None, true) => "pinned",
        (None, None, false) => "",
    };
    [
        backup.id.to_string(),
        human::time(member.map_or(backup.stop_time, |m| m.received_time)),
        known(member.map(|m| m.keys().to_string())),
        human::size(backup.size_bytes),
        known(member.map(|m| format!("{} {}", m.flavor, m.server_version))),
        known(member.map(|m| {
            m.position()
                .map_or_else(|| "none".to_owned(), |at| at.1.to_string())
        })),
        state.to_owned(),
        backup.label.clone().unwrap_or_default(),
    ]
}
