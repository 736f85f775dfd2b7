//! `pitr backup`.

use std::time::Duration;

use serde_json::{Value, json};

use super::output::members;
use super::{Context, audited, backup_delete, partial_unless};
use crate::backup::Options;
use crate::backup::backoff::HeldBack;
use crate::backup::kind::Wish;
use crate::backup::resume::TakenOver;
use crate::config::{Backoff, Period, Size};
use crate::error::{Code, Result};
use crate::operate::audit::framed;
use crate::operate::backup::{self, Taken};
use crate::operate::backup_need::{self, Need};
use crate::operate::human;
use crate::operate::underway;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::repo::root::cluster::{DamagedPage, LeftOutDatabase, Method, named};
use crate::repo::root::{BackupKind, BackupRoot, Head};
use crate::snapshot::frame::FrameCodec;
use crate::wire::basebackup::StartCheckpoint;

/// Take a base backup
///
/// Copies the cluster over the replication protocol, or from its files, into one repository: the first of the configuration, or the one that --repository
/// names. (WAL goes into every required one.) The backup exists once the WAL from its start to its stop is in that repository too, and was
/// compared with the server's own, for which it takes a second connection (max_wal_senders). WAL of a clone, or of this machine before it was
/// set back to a snapshot, completes no backup: exit status 1. When nothing can bring that WAL, because archiving is off and nobody receives it, nothing is begun: exit status 8.
///
/// --method local reads the data directory with several readers, on the database's own host, as a user who may read it. It starts and stops the backup by SQL
/// (pg_backup_start, pg_backup_stop), and refuses files that are not the connected server's own: exit status 8.
///
/// --incremental stores only pages that changed since the newest good backup of the server's history, by the archived WAL, and by that in pg_wal. Every page is read and compared
/// when WAL is not there to name the pages, and each 30 days. The result is restored like a full backup, and outlives the backup that it builds on. Without a
/// backup to build on, a full backup is taken, and the reason is printed. Without --full and --incremental, "full_every" of the configuration decides, and the command says why; without
/// that key the backup is full.
///
/// One backup of a cluster runs at a time in a repository, whatever host takes it. Another one is refused with the id of the first: exit status 7; with --wait it waits for
/// its end. One that was killed holds up nobody on its own host, and others for half an hour.
///
/// --if-needed is for a job that runs every few minutes. It takes a backup when recovery from the newest one would replay WAL for longer than "max_replay", or more of it than "max_wal",
/// and when nothing can be recovered. Otherwise, and while another backup runs, it prints why none is taken: exit status 0.
///
/// A backup that was interrupted leaves its packs for a day. The next one takes them over, by either method, and those of a full backup the next full one: it reads each page again, and
/// stores it again where it has changed. A backup that ran the repository full, or met damage, takes back what it stored.
///
/// Example: pitr backup --label "before the upgrade" --checkpoint fast
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Without one, a backup is taken.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How the files are read
    #[arg(long, value_enum, default_value_t = Method::Stream)]
    pub method: Method,

    /// Store everything
    #[arg(long, conflicts_with = "incremental")]
    pub full: bool,

    /// Store only the pages that changed since the last backup; with --method local only these are read
    #[arg(long)]
    pub incremental: bool,

    /// Wait at most this long for the end of another backup of the cluster
    #[arg(long, value_name = "DURATION", default_value = "0")]
    pub wait: Period,

    /// Take none while recovery would replay no more than max_replay and max_wal of the configuration
    #[arg(long, conflicts_with = "wait")]
    pub if_needed: bool,

    /// A text to recognise the backup by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Start with an immediate checkpoint, or wait for one that is spread over time
    #[arg(long, value_enum, default_value_t = StartCheckpoint::Fast)]
    pub checkpoint: StartCheckpoint,

    /// Read at most this much per second, such as 50MB
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<Size>,

    /// Compress, and read with --method local, on this many cores, 1 to 256; all of them without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Wait at most this long for the WAL that the backup needs
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    pub wal_wait: Period,

    /// Compress with this codec: by default lz4 for a full backup, zstd for an incremental
    #[arg(long, value_enum)]
    pub compression: Option<FrameCodec>,

    /// Store everything again that an interrupted backup stored, and take back what was stored when this one fails
    #[arg(long)]
    pub no_resume: bool,
}

/// The commands of `pitr backup`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Delete(backup_delete::Args),
}

/// As many jobs as asked for, else one for each core.
pub(super) fn jobs(asked: Option<u16>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or(cores, usize::from)
}

/// A backup of content as JSON: what each has, and `more` of its kind.
pub(super) fn head_json(
    name: &str,
    head: &Head,
    (repository, took): (&str, Duration),
    more: &Value,
) -> Value {
    let all = json!({
        "id": head.id,
        "name": name,
        "label": head.label,
        "repository": repository,
        "start_time": head.start_time,
        "stop_time": head.stop_time,
        "file_count": head.file_count,
        "size_bytes": head.size_bytes,
        "stored_bytes": head.stored_bytes,
        "duration_ms": human::millis(took),
    });
    merged(all, more)
}

/// An answer with the members of another one besides its own.
pub(super) fn merged(mut all: Value, more: &Value) -> Value {
    for (member, value) in more.as_object().into_iter().flatten() {
        all[member] = value.clone();
    }
    all
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if let Some(Command::Delete(args)) = &args.command {
        return backup_delete::run(args, cx);
    }
    cx.stop_in_order()?;
    if args.if_needed {
        return run_if_needed(args, cx);
    }
    let taken = backup::run(&cx.session, args.method, options(args))?;
    told(cx, taken, None)
}

/// Takes a backup where one is needed. The audit log tells of that backup alone.
fn run_if_needed(args: &Args, cx: &Context) -> Result<u8> {
    let why = match backup_need::look(&cx.session)? {
        Need::Needed(why) => why,
        Need::NotNeeded(why) => return not_taken(cx, &why),
    };
    cx.note(&format!("a backup is needed: {why}"));
    let cluster = cx.session.settings()?.cluster()?.name;
    let take = || {
        let taken = backup::run_if_free(&cx.session, args.method, options(args))?;
        told(cx, taken, Some(&why))
    };
    let about = audited::backup(cluster.as_str());
    let shown = about.clone();
    let take = || underway::during(&cx.session, shown.as_ref(), take);
    match framed(&cx.session, about, take) {
        // Another one began behind the judgement.
        Err(e) if e.code() == Code::Locked => not_taken(cx, &e.to_string()),
        done => done,
    }
}

fn not_taken(cx: &Context, reason: &str) -> Result<u8> {
    cx.answered(&json!({ "id": null, "reason": reason }), || {
        cx.report(&format!("no backup is taken: {reason}"))
    })
}

/// Prints what was taken, and for which need; returns the status.
fn told(cx: &Context, taken: Taken, need: Option<&str>) -> Result<u8> {
    let Taken {
        root,
        why,
        held_back,
        taken_over,
        repository,
        took,
    } = taken;
    let shown = members! {
        'a;
        id: String = root.head.id.to_string();
        reason: Option<&'a str> = need;
        kind: BackupKind = root.head.backup_kind;
        kind_reason: Option<&'a str> = why.as_deref();
        prior: Option<String> = root.head.prior.as_ref().map(ToString::to_string);
        cluster: &'a str = &root.content.cluster;
        system_identifier: String = root.content.system_identifier.to_string();
        label: &'a str = &root.head.label;
        repository: &'a str = &repository;
        start_lsn: Lsn = root.content.start_lsn;
        stop_lsn: Lsn = root.content.stop_lsn;
        start_time: TimestampTz = root.head.start_time;
        stop_time: TimestampTz = root.head.stop_time;
        timeline: u32 = root.content.timeline;
        from_standby: bool = root.content.from_standby;
        file_count: u64 = root.head.file_count;
        size_bytes: u64 = root.head.size_bytes;
        stored_bytes: u64 = root.head.stored_bytes;
        left_out_databases: &'a [LeftOutDatabase] = &root.content.left_out_databases;
        damaged: bool = root.content.is_damaged();
        damage_count: u64 = root.content.damage_count;
        damage: &'a [DamagedPage] = &root.content.damage;
        duration_ms: u64 = human::millis(took);
        held_back: Option<&'a HeldBack> = held_back.as_ref();
        resumed: &'a [TakenOver] = &taken_over;
    };
    cx.answer(&shown, || {
        print(cx, &root, took)?;
        tell_taken_over(cx, &taken_over);
        tell_held_back(cx, held_back.as_ref());
        Ok(())
    })?;
    partial_unless(!root.content.is_damaged())
}

fn wish(args: &Args) -> Option<Wish> {
    match (args.full, args.incremental) {
        (true, _) => Some(Wish::Full),
        (false, true) => Some(Wish::Incremental),
        (false, false) => None,
    }
}

fn options(args: &Args) -> Options {
    Options {
        label: args.label.clone().unwrap_or_default(),
        checkpoint: args.checkpoint,
        max_rate_bytes_per_s: args.max_rate.map(|rate| rate.0),
        backoff: Backoff::default(),
        jobs: jobs(args.jobs),
        wal_wait: args.wal_wait.duration(),
        codec: args.compression,
        wish: wish(args),
        wait: args.wait.duration(),
        resume: !args.no_resume,
    }
}

/// Prints what interrupted backups had stored already.
fn tell_taken_over(cx: &Context, taken_over: &[TakenOver]) {
    for of in taken_over {
        cx.note(&format!(
            "resumed {}: {} of {} {}, {} were not stored again",
            of.id,
            of.used_packs,
            of.packs,
            if of.packs == 1 { "pack" } else { "packs" },
            human::size(of.bytes)
        ));
    }
}

/// Prints for how long the backup was slower than it could have been.
fn tell_held_back(cx: &Context, held_back: Option<&HeldBack>) {
    let Some(held_back) = held_back.filter(|held_back| held_back.slowed_ms > 0) else {
        return;
    };
    let time = |ms| human::duration(Duration::from_millis(ms));
    cx.note(&format!(
        "slowed down for {} (backoff): WAL archiving lagged for {} (at most {}), answers were slow for {} (at most {} ms)",
        time(held_back.slowed_ms),
        time(held_back.wal_lag_ms),
        human::size(held_back.most_wal_lag_bytes),
        time(held_back.latency_ms),
        held_back.most_latency_ms
    ));
}

fn print(cx: &Context, root: &BackupRoot, took: Duration) -> Result<()> {
    let tenths = u128::from(root.head.size_bytes) * 10 / u128::from(root.head.stored_bytes.max(1));
    // The share that it has in common with its prior is no compression.
    let how = match &root.head.prior {
        Some(prior) => format!("changed since {prior}"),
        None => format!("{}.{}:1", tenths / 10, tenths % 10),
    };
    let line = format!(
        "backup {}: {} in {} stored as {} ({how}) in {}, WAL {} to {} on timeline {}",
        root.head.id,
        human::size(root.head.size_bytes),
        human::count(root.head.file_count, "file"),
        human::size(root.head.stored_bytes),
        human::duration(took),
        root.content.start_lsn,
        root.content.stop_lsn,
        root.content.timeline
    );
    let left_out = &root.content.left_out_databases;
    if !left_out.is_empty() {
        cx.warn(&format!(
            "the backup is partial, and restored only by its name: a restore left out database {}. Drop these databases, then take another backup",
            named(left_out)
        ));
    }
    if !root.content.is_damaged() {
        cx.report(&line)?;
        cx.note("next: \"pitr plan\" shows to which moments it leads");
        return Ok(());
    }
    cx.line(&line)?;
    for page in &root.content.damage {
        cx.line(&format!(
            "damaged: {} block {} LSN {}",
            page.path, page.block, page.lsn
        ))?;
    }
    let more = root
        .content
        .damage_count
        .saturating_sub(root.content.damage.len() as u64);
    if more > 0 {
        cx.line(&format!("damaged: {more} more pages"))?;
    }
    let located = human::count(root.content.damage_count, "page");
    let found = match root.content.damage_reported_by_server {
        true => format!("the server found damaged pages, {located} located"),
        false => format!("{located} failed the check"),
    };
    cx.warn(&format!(
        "{found}: the backup is kept and marked, and used only where no other reaches"
    ));
    cx.note("next: repair or rebuild what the list names, from an earlier backup where needed, then take another backup");
    Ok(())
}
