//! The services of members: stopped and started by commands of the configuration, and asked whether they are.

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::config::{Cluster, Redis, RedisAddress};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::program;
use crate::redis::connection::{Connection, Way};
use crate::wire::server_error::sqlstate;

const GLANCE: Duration = Duration::from_millis(50);
/// How long a service may take to be gone, and how long to show itself, once its command has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a command may take that only tells others, or asks. Those that stop and start servers take as long as they take.
pub const SHORT: Duration = Duration::from_secs(300);
/// How much of a command's words a message repeats.
const SAID_BYTES: usize = 2000;
/// PostgreSQL's `ERRCODE_CANNOT_CONNECT_NOW`: the server starts up, or recovers.
const STARTING: &str = "57P03";

/// Runs a command of the configuration; its words go to a file. It starts servers, which hold no pipe of ours.
///
/// # Errors
/// `SourceMissing` when it fails, with the end of what it said, and when it takes longer than `limit`; `Interrupted`. It is killed, with what it
/// started in its process group. Those of the system.
pub fn command(
    session: &Session,
    log: &Path,
    words: &[String],
    limit: Option<Duration>,
) -> Result<()> {
    let name = words.first().cloned().unwrap_or_default();
    let failed = |e| Error::from_io(format!("run \"{name}\""), e).with_code(Code::SourceMissing);
    let file = File::create(log).map_err(failed)?;
    let mut command = program::command(words)?;
    command.stderr(file.try_clone().map_err(failed)?);
    command.stdout(Stdio::from(file)).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return match status.success() {
                true => Ok(()),
                false => {
                    let said = std::fs::read(log).unwrap_or_default();
                    let end = said.get(said.len().saturating_sub(SAID_BYTES)..);
                    let said = String::from_utf8_lossy(end.unwrap_or_default()).into_owned();
                    Err(program::failed(&name, status, &said))
                }
            };
        }
        if let Err(e) = session.host.check_stop() {
            kill(&mut child);
            return Err(e);
        }
        if limit.is_some_and(|limit| began.elapsed() > fault::shortened(limit)) {
            kill(&mut child);
            return Err(err!(
                SourceMissing,
                "\"{name}\" had not ended after {}, and was killed",
                humanly(began.elapsed())
            ));
        }
        if !is_told && began.elapsed() > PATIENCE {
            is_told = true;
            session.warn(&format!(
                "\"{name}\" still runs after {}; what it says is in \"{}\"",
                humanly(began.elapsed()),
                log.display()
            ));
        }
        std::thread::sleep(GLANCE);
    }
}

/// Ends a command, and what it started.
fn kill(child: &mut Child) {
    // One that ended meanwhile needs no signal.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

/// Waits until something is so.
fn wait(
    session: &Session,
    limit: Option<Duration>,
    what: &str,
    is_so: &mut dyn FnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    let limit = limit.map(fault::shortened);
    while !is_so()? {
        session.host.check_stop()?;
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            return Err(err!(Deadline, "{what} after {}", humanly(began.elapsed())).hint(
                "The run is recorded: mend the service, then run the same command again, or pitr recover rollback RUN. A server of PostgreSQL that was killed leaves postmaster.pid.",
            ));
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

fn humanly(duration: Duration) -> String {
    crate::operate::human::duration(duration)
}

/// Whether no server runs in a data directory, as far as its files tell.
pub fn is_cluster_stopped(cluster: &Cluster) -> bool {
    let pgdata = cluster.pgdata.as_deref();
    !pgdata.is_some_and(|pgdata| pgdata.join("postmaster.pid").exists())
}

/// Requires that no killed server has left its `postmaster.pid`: every command that stops the service would fail, with the applications down.
///
/// # Errors
/// `Refused`.
pub fn require_no_leftover(cluster: &Cluster) -> Result<()> {
    let Some(path) = cluster.pgdata.as_ref().map(|at| at.join("postmaster.pid")) else {
        return Ok(());
    };
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let pid: Option<u32> = text.lines().next().and_then(|pid| pid.trim().parse().ok());
    let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid.to_string()).exists()) else {
        return Ok(());
    };
    // A server in a container has a number that says nothing here, and answers.
    match Server::connect(conninfo(cluster)) {
        Err(e) if e.code() == Code::Unreachable && sqlstate(&e).is_none() => Err(err!(
            Refused,
            "the server of cluster \"{}\" does not answer, and process {pid} of \"{}\" is gone",
            cluster.name,
            path.display()
        )
        .hint("Nothing was changed. Where the server was killed, and runs in no container either, remove postmaster.pid, and run the command again.")),
        _ => Ok(()),
    }
}

fn conninfo(cluster: &Cluster) -> &str {
    let conninfo = cluster.conninfo.as_ref();
    conninfo.map_or("", |secret| secret.expose())
}

/// Waits until a cluster's server is gone.
///
/// # Errors
/// `Deadline`; `Interrupted`.
pub fn wait_cluster_stopped(session: &Session, cluster: &Cluster) -> Result<()> {
    let what = format!("the server of cluster \"{}\" still runs", cluster.name);
    wait(session, Some(PATIENCE), &what, &mut || {
        Ok(is_cluster_stopped(cluster))
    })
}

/// Waits until a cluster has ended recovery and takes writes, however long it replays. Returns its timeline.
///
/// # Errors
/// `Server` when the server is gone; that of the connection, when the server lets nobody in though it does not recover; `Interrupted`.
pub fn wait_cluster_started(session: &Session, cluster: &Cluster) -> Result<Value> {
    let (mut gone, mut refused) = (None, None);
    let mut found = Value::Null;
    let patience = fault::shortened(PATIENCE);
    let is_over =
        |since: &mut Option<Instant>| since.get_or_insert_with(Instant::now).elapsed() > patience;
    wait(session, None, "", &mut || {
        if is_cluster_stopped(cluster) {
            return match is_over(&mut gone) {
                true => Err(err!(
                    Server,
                    "the server of cluster \"{}\" does not run: its log says why",
                    cluster.name
                )),
                false => Ok(false),
            };
        }
        gone = None;
        match timeline(cluster) {
            Ok(Some(timeline)) => {
                found = json!({ "timeline": timeline });
                return Ok(true);
            }
            Ok(None) => refused = None,
            Err(e) if sqlstate(&e) == Some(STARTING) => refused = None,
            Err(e) if is_over(&mut refused) => {
                return Err(e.context(format!(
                    "ask the server of cluster \"{}\" whether it has recovered",
                    cluster.name
                ))
                .hint("The restored state may lack what conninfo needs: its role, password, database, or a line of pg_hba.conf. A server that was killed may have left postmaster.pid."));
            }
            Err(_) => {}
        }
        Ok(false)
    })?;
    Ok(found)
}

/// The timeline of a cluster that takes writes; none while it recovers.
fn timeline(cluster: &Cluster) -> Result<Option<u32>> {
    let mut server = Server::connect(conninfo(cluster))?;
    let sql = "select pg_is_in_recovery(), case when pg_is_in_recovery() then null else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end";
    let rows = server.query(sql)?;
    match rows.text(0, 0)? {
        Some("f") => rows.value(0, 1).map(Some),
        _ => Ok(None),
    }
}

/// Whether no Redis server listens at its address. One that does not answer, or not as it should, may run.
///
/// # Errors
/// Those of the configuration's files, where Sentinels lead to the server; `Interrupted`.
pub fn is_redis_stopped(session: &Session, redis: &Redis) -> Result<bool> {
    let Err(e) = crate::operate::redis::connect(session, redis) else {
        return Ok(false);
    };
    match (e.code(), &redis.address) {
        (Code::Interrupted, _) => Err(e),
        // Sentinels that are stopped, too, lead to no server.
        (Code::Unreachable, None) => Ok(!e.to_string().contains("loading")),
        (Code::Unreachable, Some(_)) => Ok(nobody_listens(&e)),
        (Code::Deadline | Code::Denied | Code::Server, _) => Ok(false),
        // The server may have answered so, or a file is gone without which nobody can ask it.
        (_, Some(address)) => is_nobody_at(session, redis, address),
        (_, None) => Err(e),
    }
}

/// Whether nobody listens at an address, whatever would be answered there.
fn is_nobody_at(session: &Session, redis: &Redis, address: &RedisAddress) -> Result<bool> {
    let way = Way {
        address: address.clone(),
        tls: None,
        stall_timeout: redis.stall_timeout,
        user: None,
    };
    match Connection::open(way, None, &mut || session.host.check_stop()) {
        Err(e) if e.code() == Code::Interrupted => Err(e),
        opened => Ok(opened.is_err_and(|e| nobody_listens(&e))),
    }
}

/// Whether the system refused a connection, because nothing listens there.
fn nobody_listens(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            );
        }
        source = cause.source();
    }
    false
}

/// Waits until a Redis server is gone.
///
/// # Errors
/// `Deadline`; `Interrupted`; those of [`is_redis_stopped`].
pub fn wait_redis_stopped(session: &Session, redis: &Redis) -> Result<()> {
    let what = format!("Redis server \"{}\" still runs", redis.name);
    wait(session, Some(PATIENCE), &what, &mut || {
        is_redis_stopped(session, redis)
    })
}

/// Waits until a Redis server has loaded its data, and tells what it has.
///
/// # Errors
/// That of the last question, once it could not be asked for a minute; `Interrupted`.
pub fn wait_redis_started(session: &Session, redis: &Redis) -> Result<Value> {
    let mut found = Value::Null;
    let mut answered = Instant::now();
    let patience = fault::shortened(PATIENCE);
    wait(session, None, "", &mut || {
        let error = match facts(session, redis) {
            Ok(facts) => {
                found = facts;
                return Ok(true);
            }
            Err(e) => e,
        };
        // Loading may take as long as it takes.
        if error.to_string().contains("loading") {
            answered = Instant::now();
        }
        match error.code() == Code::Interrupted || answered.elapsed() > patience {
            true => Err(not_asked(redis, error)),
            false => Ok(false),
        }
    })?;
    Ok(found)
}

/// Adds to an error that it kept a server from being asked behind its start.
fn not_asked(redis: &Redis, error: Error) -> Error {
    if error.code() == Code::Interrupted {
        return error;
    }
    let name = &redis.name;
    error
        .context(format!(
            "ask Redis server \"{name}\" whether it has loaded its data set"
        ))
        .hint_last(&format!(
            "Where the server does not run, its log says why. Where it does, [redis.{name}] has to name the address, the user and the password that it was started with."
        ))
}

/// Asks a Redis server what it has, and how often it was written to.
///
/// # Errors
/// `Unreachable` while it loads; those of the connection.
pub fn facts(session: &Session, redis: &Redis) -> Result<Value> {
    let mut source = crate::operate::redis::connect(session, redis)?;
    if source.info.is_on("loading") {
        return Err(err!(Unreachable, "the server is loading"));
    }
    let mut tick = || session.host.check_stop();
    let info = source.ask("persistence", &mut tick)?;
    let number = |name: &str| info.number::<u64>(name);
    Ok(json!({
        "run_id": source.info.field("run_id"),
        "lasting_keys": source.info.lasting_keys(),
        "changes": number("rdb_changes_since_last_save"),
        "saved": number("rdb_last_save_time"),
    }))
}
