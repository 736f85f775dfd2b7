//! The services of members: stopped and started by commands of the configuration, and asked whether they are.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::{Cluster, Redis};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::program;

const GLANCE: Duration = Duration::from_millis(50);
/// How long a service may take to be gone, and how long to show itself, once its command has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of a command's words a message repeats.
const SAID_BYTES: usize = 2000;

/// Runs a command of the configuration; its words go to a file. It starts servers, which hold no pipe of ours.
///
/// # Errors
/// `SourceMissing` when it fails, with the end of what it said; `Interrupted`, after it was killed; those of the system.
pub fn command(session: &Session, log: &Path, words: &[String]) -> Result<()> {
    let name = words.first().cloned().unwrap_or_default();
    let failed = |e| Error::from_io(format!("run \"{name}\""), e).with_code(Code::SourceMissing);
    let file = File::create(log).map_err(failed)?;
    let mut command = program::command(words)?;
    command.stderr(file.try_clone().map_err(failed)?);
    command.stdout(Stdio::from(file));
    let mut child = command.spawn().map_err(failed)?;
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
            // One that ended meanwhile needs no signal.
            let _ = child.kill();
            let _ = child.wait();
            return Err(e);
        }
        std::thread::sleep(GLANCE);
    }
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
                "The run is recorded: mend the service, then run the same command again, or pitr recover rollback RUN.",
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
/// `Server` when the server is gone; `Interrupted`.
pub fn wait_cluster_started(session: &Session, cluster: &Cluster) -> Result<Value> {
    let conninfo = cluster
        .conninfo
        .as_ref()
        .map_or("", |secret| secret.expose());
    let mut gone: Option<Instant> = None;
    let mut found = Value::Null;
    let patience = fault::shortened(PATIENCE);
    wait(session, None, "", &mut || {
        match is_cluster_stopped(cluster) {
            true if gone.get_or_insert_with(Instant::now).elapsed() > patience => {
                return Err(err!(
                    Server,
                    "the server of cluster \"{}\" does not run: its log says why",
                    cluster.name
                ));
            }
            true => return Ok(false),
            false => gone = None,
        }
        // A server that recovers answers with errors.
        let Ok(mut server) = Server::connect(conninfo) else {
            return Ok(false);
        };
        let sql = "select pg_is_in_recovery(), case when pg_is_in_recovery() then null else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end";
        let Ok(rows) = server.query(sql) else {
            return Ok(false);
        };
        if rows.text(0, 0)? != Some("f") {
            return Ok(false);
        }
        let timeline: u32 = rows.value(0, 1)?;
        found = json!({ "timeline": timeline });
        Ok(true)
    })?;
    Ok(found)
}

/// Whether a Redis server answers at its address. One that cannot be asked may run.
///
/// # Errors
/// Those of the configuration's files, and of the server.
pub fn is_redis_stopped(session: &Session, redis: &Redis) -> Result<bool> {
    match crate::operate::redis::connect(session, redis) {
        Ok(_) => Ok(false),
        Err(e) if e.code() == Code::Unreachable => {
            // A server that loads is there.
            Ok(!e.to_string().contains("loading"))
        }
        Err(e) => Err(e),
    }
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
/// `Deadline` when it does not answer; `Interrupted`.
pub fn wait_redis_started(session: &Session, redis: &Redis) -> Result<Value> {
    let mut found = Value::Null;
    let what = format!("Redis server \"{}\" does not answer", redis.name);
    let mut answered: Option<Instant> = Some(Instant::now());
    let patience = fault::shortened(PATIENCE);
    wait(session, None, "", &mut || {
        match facts(session, redis) {
            Ok(facts) => {
                found = facts;
                return Ok(true);
            }
            // Loading may take as long as it takes.
            Err(e) if e.to_string().contains("loading") => answered = Some(Instant::now()),
            Err(_) => {}
        }
        match answered.is_some_and(|since| since.elapsed() > patience) {
            true => Err(err!(Deadline, "{what}")),
            false => Ok(false),
        }
    })?;
    Ok(found)
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
    let keys = source.info.keyspace();
    let number = |name: &str| info.field(name).and_then(|n| n.parse::<u64>().ok());
    Ok(json!({
        "run_id": source.info.field("run_id"),
        "lasting_keys": keys.iter().map(|db| db.keys.saturating_sub(db.expires)).sum::<u64>(),
        "changes": number("rdb_changes_since_last_save"),
        "saved": number("rdb_last_save_time"),
    }))
}
