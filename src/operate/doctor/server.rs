//! The server as SQL shows it: version, settings, the archiver's counters, rights, clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Findings, differing, receiver};
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::server_conf::Started;
use crate::config::{Cluster, Settings};
use crate::error::{Code, Result};
use crate::operate::archive_command::{Weight, compose, judge, shell_word};
use crate::operate::blocked::Blocked;
use crate::operate::human;
use crate::operate::server::{self, Server};
use crate::operate::session::Session;
use crate::operate::start_line::program;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::release;
use crate::wire::client::SystemIdentity;

/// The server's answers that other groups need.
#[derive(Default)]
pub(super) struct Seen {
    pub pgdata: Option<PathBuf>,
    pub system_identifier: Option<u64>,
    /// Its major, where this program knows it.
    pub major: Option<Major>,
    pub in_recovery: bool,
    /// The timeline that it writes or follows.
    pub timeline: Option<TimelineId>,
    /// It leaves archiving to another: a standby, unless archive_mode is always.
    pub leaves_archiving: bool,
    /// Nobody answers where it should be.
    pub is_silent: bool,
    /// The file that the server archived last, as its statistics say.
    pub last_archived: Option<String>,
    /// The right archive_command.
    pub ours: Option<String>,
    /// Several clusters are configured, and pitr-archive does not know this one by its data directory.
    pub needs_name: bool,
}

/// A setting as pg_settings has it.
struct Setting {
    value: String,
    pending_restart: bool,
}

/// A setting as the configuration files have it, whether the server has read them or not.
struct Written {
    value: String,
    /// File and line.
    place: String,
}

impl Written {
    /// Whether it turns archiving on.
    fn is_on(&self) -> bool {
        ["on", "always"].contains(&self.value.as_str())
    }
}

type Values = BTreeMap<String, Setting>;

const NAMES: &str = "'wal_level', 'archive_mode', 'archive_command', 'archive_library', 'archive_timeout', 'full_page_writes', 'fsync', \
    'data_checksums', 'max_wal_senders', 'data_directory', 'restore_command', 'recovery_target_timeline'";

pub(super) fn look(
    found: &mut Findings,
    settings: &Settings,
    cluster: &Cluster,
    session: &Session,
) -> Seen {
    found.begin("server");
    let conninfo = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    let mut server = match Server::connect(conninfo) {
        Ok(server) => server,
        Err(e) => {
            found.error("connection", &e);
            return Seen {
                is_silent: e.code() == Code::Unreachable,
                ..Seen::default()
            };
        }
    };
    let version = server.session().server_version().to_owned();
    let version = version.split(' ').next().unwrap_or_default();
    let told = format!("{}, PostgreSQL {version}", server.session().host());
    let newer = Major::newer_means(server.session().version_num() / 10_000);
    match (server.session().major(), newer) {
        (_, Some(means)) => found.warn("connection", told, means, "install a newer pitr"),
        (Ok(_), None) => found.ok("connection", told),
        (Err(e), None) => found.error("connection", &e),
    }
    // One question that fails takes nothing from what the others have told.
    let mut seen = Seen {
        major: server.session().major().ok(),
        ..Seen::default()
    };
    if let Err(e) = ask(found, &mut server, settings, cluster, session, &mut seen) {
        found.error("questions", &e);
    }
    seen
}

fn ask(
    found: &mut Findings,
    server: &mut Server,
    settings: &Settings,
    cluster: &Cluster,
    session: &Session,
    seen: &mut Seen,
) -> Result<()> {
    let values = values(server)?;
    seen.pgdata = values
        .get("data_directory")
        .map(|s| PathBuf::from(&s.value))
        .filter(|p| p.join("PG_VERSION").exists());
    let rows = server.query("select pg_catalog.pg_is_in_recovery(), system_identifier from pg_catalog.pg_control_system()")?;
    let mode = values.get("archive_mode").map_or("", |s| s.value.as_str());
    seen.in_recovery = rows.text(0, 0)? == Some("t");
    seen.leaves_archiving = seen.in_recovery && mode != "always";
    seen.system_identifier = rows.text(0, 1)?.and_then(|t| t.parse().ok());
    let role = if seen.in_recovery {
        "standby"
    } else {
        "primary"
    };
    found.ok("role of the server", role);
    if seen.in_recovery {
        standby(found, &values, settings, cluster);
    }
    seen.ours = composed(settings, cluster, "pitr-archive");
    seen.needs_name = needs_name(settings, seen.pgdata.as_deref());
    let written = written(server, "archive_mode");
    archiving(found, &values, written.as_ref(), cluster, seen);
    durability(found, &values, server.session().version_num() / 10_000);
    // Nothing of another cluster's directory tells of the server.
    let configured = cluster.pgdata.clone();
    let own = configured.filter(|pgdata| differing(pgdata, seen).is_none());
    let pgdata = own.or(seen.pgdata.clone());
    if !seen.leaves_archiving && (mode != "off" || !receiver::is_configured(cluster)) {
        // Blocked::all takes the configured directory where it gets none.
        let blocked = pgdata.as_deref();
        let blocked = blocked.map(|pgdata| Blocked::all(cluster, Some(pgdata), session));
        let blocked = blocked.unwrap_or_default();
        seen.last_archived = counters(found, server, seen.in_recovery, &blocked)?;
    }
    seen.timeline = rights(found, server, &values, cluster)?;
    clock(found, server, session)?;
    receiver::look(found, server, cluster, seen.in_recovery, pgdata.as_deref())?;
    receiver::others(found, server, cluster, seen.in_recovery)
}

fn values(server: &mut Server) -> Result<Values> {
    let rows = server.query(&format!(
        "select name, setting, pending_restart from pg_catalog.pg_settings where name in ({NAMES})"
    ))?;
    let mut values = Values::new();
    for row in 0..rows.rows.len() {
        let setting = Setting {
            value: rows.text(row, 1)?.unwrap_or_default().to_owned(),
            pending_restart: rows.text(row, 2)? == Some("t"),
        };
        values.insert(rows.text(row, 0)?.unwrap_or_default().to_owned(), setting);
    }
    Ok(values)
}

/// Reads the last value of a setting in the configuration files. Only a superuser may: to all others they are unknown.
fn written(server: &mut Server, name: &str) -> Option<Written> {
    let rows = server.query(&format!(
        "select setting, sourcefile || ':' || sourceline from pg_catalog.pg_file_settings where name = '{name}' order by seqno desc limit 1"
    ));
    let rows = rows.ok().filter(|rows| !rows.rows.is_empty())?;
    Some(Written {
        value: rows.text(0, 0).ok()??.to_owned(),
        place: rows.text(0, 1).ok()??.to_owned(),
    })
}

/// Whether a standby gets from the archive what its primary has removed, and follows a promotion.
fn standby(found: &mut Findings, values: &Values, settings: &Settings, cluster: &Cluster) {
    // A role that may not read all settings has a finding of its own.
    let get = |name: &str| values.get(name).map(|s| s.value.as_str());
    if let Some(command) = get("restore_command") {
        let fetch = composed(settings, cluster, "pitr-restore");
        let fetch = fetch.and_then(|own| Some(format!("{} %f %p", own.strip_suffix(" %p")?)));
        let fix = fetch.map_or("set restore_command to pitr-restore".to_owned(), |ours| {
            alter("restore_command", &ours)
        });
        match command {
            "" => found.warn(
                "restore_command",
                "empty",
                "a standby that falls behind needs WAL that the primary may have removed: it stops there, and is made anew",
                fix,
            ),
            command if !command.contains("pitr-restore") => found.warn(
                "restore_command",
                command,
                "it does not ask the repositories of pitr",
                fix,
            ),
            command => found.ok("restore_command", command),
        }
    }
    match get("recovery_target_timeline") {
        Some("latest") => found.ok("recovery_target_timeline", "latest"),
        Some(other) => found.warn(
            "recovery_target_timeline",
            other,
            "after a failover this standby does not follow the new primary",
            alter("recovery_target_timeline", "latest"),
        ),
        None => {}
    }
}

/// The command that calls one of the small programs, as `pitr init` would print it.
fn composed(settings: &Settings, cluster: &Cluster, program: &str) -> Option<String> {
    let program = std::env::current_exe().ok()?.parent()?.join(program);
    let name = Some(cluster.name.as_str());
    Some(compose(&program, settings.path.as_deref()?, name))
}

/// Whether pitr-archive cannot know without `--cluster` whose WAL it is given.
fn needs_name(settings: &Settings, pgdata: Option<&Path>) -> bool {
    // A server on another host, or a directory that cannot be looked at, tells nothing here.
    let is_unknown = |pgdata| settings.cluster_at(pgdata).is_none();
    settings.clusters.len() > 1 && pgdata.is_some_and(is_unknown)
}

fn alter(name: &str, value: &str) -> String {
    format!(
        "alter system set {name} = '{}'; select pg_reload_conf()",
        value.replace('\'', "''")
    )
}

fn restart(name: &str, value: &str) -> String {
    format!("alter system set {name} = '{value}', then restart the server")
}

/// Reports that nothing is archived, and what brings the server to archive.
fn archive_off(found: &mut Findings, is_pending: bool, written: Option<&Written>, seen: &Seen) {
    let is_copy = |pgdata: &Path| DataDirectory::at(pgdata).wal().join(GUARD).exists();
    let written = written.filter(|w| w.is_on());
    let (cause, fix) = match written {
        _ if seen.pgdata.as_deref().is_some_and(is_copy) => (
            "this is a restored copy, and pitr restore wrote archive_mode = off into it".to_owned(),
            "if it replaces the cluster: pitr adopt, then restart the server; else point conninfo at the cluster".to_owned(),
        ),
        Some(written) => (
            format!("{} sets it to {}, and that takes effect with a restart", written.place, written.value),
            "restart the server".to_owned(),
        ),
        None if is_pending => (
            "it was changed, and takes effect with a restart".to_owned(),
            "restart the server".to_owned(),
        ),
        None => ("nothing is archived".to_owned(), restart("archive_mode", "on")),
    };
    found.fail("archive_mode", "off", cause, fix);
}

fn archiving(
    found: &mut Findings,
    values: &Values,
    written: Option<&Written>,
    cluster: &Cluster,
    seen: &mut Seen,
) {
    let get = |name: &str| values.get(name).map_or("", |s| s.value.as_str());
    match get("wal_level") {
        "minimal" => found.fail(
            "wal_level",
            "minimal",
            "such WAL cannot be archived",
            restart("wal_level", "replica"),
        ),
        level => found.ok("wal_level", level),
    }
    let mode = values.get("archive_mode");
    let pending = mode.is_some_and(|s| s.pending_restart);
    // A copy that was adopted while it runs archives once it is started again.
    let waits = pending || written.is_some_and(Written::is_on);
    match get("archive_mode") {
        "off" if !waits && receiver::is_configured(cluster) => {
            found.ok("archive_mode", "off: the receiver is to bring the WAL");
            return;
        }
        "off" => archive_off(found, pending, written, seen),
        mode => found.ok("archive_mode", mode),
    }
    let library = get("archive_library");
    if !library.is_empty() {
        found.fail(
            "archive_library",
            library,
            "the library archives, and archive_command is not run",
            alter("archive_library", ""),
        );
    } else if get("archive_mode") != "off" {
        command(found, get("archive_command"), seen);
    }
    let rpo = cluster.objectives.rpo.filter(|rpo| rpo.0 > 0);
    match (get("archive_timeout"), rpo) {
        ("0", _) => found.warn(
            "archive_timeout",
            "0",
            "on a quiet server the last transactions are archived only when their segment is full",
            alter("archive_timeout", "60s"),
        ),
        (seconds, Some(rpo))
            if !receiver::is_configured(cluster)
                && seconds.parse::<u64>().is_ok_and(|s| s > rpo.0) =>
        {
            found.warn(
                "archive_timeout",
                format!("{seconds} s"),
                format!(
                    "that is more than rpo, {}: on a quiet server the last transactions are archived later",
                    human::duration(rpo.duration())
                ),
                alter("archive_timeout", &format!("{}s", rpo.0.div_ceil(2))),
            );
        }
        (seconds, _) => found.ok("archive_timeout", format!("{seconds} s")),
    }
}

fn command(found: &mut Findings, value: &str, seen: &mut Seen) {
    let fix = seen.ours.as_deref().map_or_else(
        || "pitr init prints the right one".to_owned(),
        |ours| alter("archive_command", ours),
    );
    if value.is_empty() {
        found.fail(
            "archive_command",
            "empty",
            "WAL stays in pg_wal until its disk is full",
            fix,
        );
        return;
    }
    let mut judged = judge(value);
    if seen.needs_name && judged.program.is_some() && !judged.names_cluster {
        let why = "several clusters are configured, it names none, and no section has this server's data directory as its pgdata: nothing is archived (A101)";
        judged.problems.insert(0, (Weight::Failure, why.to_owned()));
    }
    match judged.problems.first() {
        None => found.ok("archive_command", value),
        Some((weight, _)) => {
            let causes = judged.problems.iter().map(|(_, text)| text.as_str());
            let causes = causes.collect::<Vec<_>>().join("; ");
            match weight {
                Weight::Failure => found.fail("archive_command", value, causes, fix),
                Weight::Warning => found.warn("archive_command", value, causes, fix),
            }
        }
    }
    if let Some(program) = judged.program.as_deref().filter(|p| p.starts_with('/')) {
        runs(found, Path::new(program));
    }
}

/// The program is there, and of our version.
fn runs(found: &mut Findings, program: &Path) {
    let shown = program.display();
    let cannot = |found: &mut Findings, e: std::io::Error| {
        found.fail(
            "program",
            shown.to_string(),
            format!("it cannot be run: {e} (status 126 or 127 ends the archiver without counting a failure)"),
            "install pitr-archive there, executable for the server's user",
        );
    };
    // Whoever may change the server's settings must not get root to run a program of his choice.
    let is_ours = std::env::current_exe().is_ok_and(|e| e.parent() == program.parent());
    if rustix::process::geteuid().is_root() && !is_ours {
        return match std::fs::metadata(program) {
            Ok(_) => found.ok("program", format!("{shown} (not run by root)")),
            Err(e) => cannot(found, e),
        };
    }
    let output = match std::process::Command::new(program)
        .arg("--version")
        .output()
    {
        Ok(output) => output,
        Err(e) => return cannot(found, e),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(1).unwrap_or_default();
    let ours = release::NUMBER;
    match version == ours {
        true => found.ok("program", format!("{shown} {version}")),
        false => found.warn(
            "program",
            format!("{shown} {version}"),
            format!("this pitr has version {ours}"),
            "install the programs of one version",
        ),
    }
}

fn durability(found: &mut Findings, values: &Values, major: u32) {
    let get = |name: &str| values.get(name).map_or("", |s| s.value.as_str());
    match get("fsync") {
        "off" => found.fail(
            "fsync",
            "off",
            "a crash of the machine leaves a damaged cluster, and its WAL",
            alter("fsync", "on"),
        ),
        value => found.ok("fsync", value),
    }
    match get("full_page_writes") {
        "off" => found.warn(
            "full_page_writes",
            "off",
            "a page torn by a crash cannot be repaired (the server turns it on while a backup runs)",
            alter("full_page_writes", "on"),
        ),
        value => found.ok("full_page_writes", value),
    }
    match get("data_checksums") {
        "off" => found.warn(
            "data_checksums",
            "off",
            "a damaged page goes into every backup unseen",
            format!(
                "stop the server, then {} --enable -D {}",
                shell_word(&program("pg_checksums", &Started::default(), major)),
                match get("data_directory") {
                    "" => "DATADIR".into(),
                    directory => shell_word(directory),
                }
            ),
        ),
        value => found.ok("data_checksums", value),
    }
}

/// How long counters that tell of trouble are asked again. Up to PostgreSQL 14 a collector process keeps them, and a reader gets what
/// it wrote down up to half a second ago; every major counts a file a moment after it is marked as archived.
const COUNTERS_SETTLE: Duration = Duration::from_millis(1500);

/// The line of pg_stat_archiver.
struct Counters {
    failures: String,
    last_archived: Option<String>,
    archived_ago: Duration,
    last_failed: String,
    failed_ago: Duration,
    fails: bool,
}

impl Counters {
    fn read(server: &mut Server) -> Result<Counters> {
        let age = |column: &str| {
            format!("extract(epoch from pg_catalog.clock_timestamp() - {column})::bigint")
        };
        let rows = server.query(&format!(
            "select failed_count, last_archived_wal, {}, last_failed_wal, {}, \
             coalesce(last_failed_time > last_archived_time, last_failed_time is not null) from pg_catalog.pg_stat_archiver",
            age("last_archived_time"),
            age("last_failed_time"),
        ))?;
        let text =
            |column| -> Result<String> { Ok(rows.text(0, column)?.unwrap_or_default().to_owned()) };
        let seconds = |column| -> Result<Duration> {
            Ok(Duration::from_secs(text(column)?.parse().unwrap_or(0)))
        };
        Ok(Counters {
            failures: text(0)?,
            last_archived: rows.text(0, 1)?.map(str::to_owned),
            archived_ago: seconds(2)?,
            last_failed: text(3)?,
            failed_ago: seconds(4)?,
            fails: text(5)? == "t",
        })
    }

    fn is_well(&self) -> bool {
        !self.fails && self.last_archived.is_some()
    }

    /// Reads them again while they tell of trouble that may be over.
    fn settled(server: &mut Server) -> Result<Counters> {
        let started = Instant::now();
        loop {
            let counters = Counters::read(server)?;
            if counters.is_well() || started.elapsed() >= COUNTERS_SETTLE {
                return Ok(counters);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Returns the file that was archived last.
fn counters(
    found: &mut Findings,
    server: &mut Server,
    in_recovery: bool,
    blocked: &[Blocked],
) -> Result<Option<String>> {
    let now = Counters::settled(server)?;
    let last_archived = now.last_archived.clone();
    let ago = |age| format!("{} ago", human::duration(age));
    if now.fails {
        let failed = now.last_failed;
        let (since, failures) = (ago(now.failed_ago), now.failures);
        let value = format!("{failed} failed {since}, {failures} failures");
        let (cause, fix) = stuck(&failed, blocked);
        found.fail("archiver", value, cause, fix);
    } else if let Some(last) = now.last_archived {
        let archived = ago(now.archived_ago);
        found.ok("archiver", format!("{last} archived {archived}"));
    } else {
        found.warn(
            "archiver",
            "nothing archived yet",
            "no segment was complete since the statistics were reset",
            match in_recovery {
                true => "on the primary: select pg_switch_wal()",
                false => "select pg_switch_wal()",
            },
        );
    }
    Ok(last_archived)
}

/// Returns why archiving is stuck at a file, and what helps: as pitr-archive said it, where that can be read from here.
fn stuck(failed: &str, blocked: &[Blocked]) -> (&'static str, String) {
    let known = blocked.iter().find(|b| b.file.to_string() == failed);
    match known.and_then(Blocked::hint) {
        Some(hint) => (
            "archiving is stuck at this file: see \"blocked\" below",
            format!("{hint} PostgreSQL then offers pg_wal/{failed} again by itself"),
        ),
        None => (
            "archiving is stuck at this file: the server's log says why",
            format!(
                "as the server's user, run archive_command by hand in the data directory for pg_wal/{failed}"
            ),
        ),
    }
}

fn rights(
    found: &mut Findings,
    server: &mut Server,
    values: &Values,
    cluster: &Cluster,
) -> Result<Option<TimelineId>> {
    found.begin("rights");
    let rows = server.query("select rolname, rolsuper, rolreplication from pg_catalog.pg_roles where rolname = current_user")?;
    let role = rows.text(0, 0)?.unwrap_or_default().to_owned();
    let is = |column| -> Result<bool> { Ok(rows.text(0, column)? == Some("t")) };
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    match is(1)? || is(2)? {
        true => found.ok("replication", format!("role {quoted}")),
        false => found.fail(
            "replication",
            format!("role {quoted}"),
            "pitr backup needs the right to replicate",
            format!("alter role {quoted} replication"),
        ),
    }
    if values.contains_key("data_directory") {
        found.ok("settings", "all can be seen");
    } else {
        found.warn(
            "settings",
            "some cannot be seen",
            "the role may not read every setting",
            format!("grant pg_read_all_settings to {quoted}"),
        );
    }
    senders(found, server, values)?;
    // Only the attempt shows the rules of pg_hba.conf for replication.
    let conninfo = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    match server::identify(conninfo) {
        Ok(SystemIdentity { timeline, .. }) => {
            let shown = format!("timeline {}", timeline.decimal());
            found.ok("replication connection", shown);
            Ok(Some(timeline))
        }
        Err(e) => {
            found.error("replication connection", &e);
            Ok(None)
        }
    }
}

/// Whether a backup finds a connection for replication, beside those of replicas and receivers.
fn senders(found: &mut Findings, server: &mut Server, values: &Values) -> Result<()> {
    let senders = values.get("max_wal_senders");
    let senders = senders.map_or("", |s| s.value.as_str());
    let rows = server.query("select count(*) from pg_catalog.pg_stat_replication")?;
    let in_use: u64 = rows.value(0, 0)?;
    let is_full = senders.parse().is_ok_and(|most: u64| most <= in_use);
    match senders {
        "0" | "1" => found.fail(
            "max_wal_senders",
            senders,
            "a backup takes a connection of its own, and replicas theirs",
            restart("max_wal_senders", "10"),
        ),
        _ if is_full => found.warn(
            "max_wal_senders",
            format!("{senders}, and {in_use} in use"),
            "the next backup, replica or receiver finds no connection",
            restart("max_wal_senders", &(in_use + 5).to_string()),
        ),
        _ => found.ok("max_wal_senders", senders),
    }
    Ok(())
}

/// Compares the clocks. Targets are times of the server's clock; the host's clock gives a backup's age.
fn clock(found: &mut Findings, server: &mut Server, session: &Session) -> Result<()> {
    found.begin("clock");
    let before = session.host.now();
    let rows = server
        .query("select (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint")?;
    let after = session.host.now();
    let Some(server) = TimestampTz::from_unix_micros(rows.value(0, 0)?) else {
        return Ok(());
    };
    let off = match server > after {
        true => server.duration_since(after),
        false => before.duration_since(server),
    };
    let off = off.unwrap_or_default();
    let shown = human::duration(off);
    let cause =
        "the clocks of server and host differ: times of targets and ages of backups do, too";
    let fix = "let both machines keep time by NTP: timedatectl set-ntp true";
    match off.as_secs() {
        0..=1 => found.ok("server and host", "agree"),
        2..=60 => found.warn("server and host", shown, cause, fix),
        _ => found.fail("server and host", shown, cause, fix),
    }
    Ok(())
}
