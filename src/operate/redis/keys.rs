//! Keys of a data set put into a server that runs, which keeps all its others.
//!
//! A scratch server loads the restored data set. Each key that is asked for is copied from it by `DUMP` and `RESTORE`, with the time at which it ends.
//!
//! Order: look → plan → restore aside → compare → backup of what is there, where a key of it is replaced → copy. A command that was killed left whole keys
//! alone: the next one finds those equal, and copies the rest.
//!
//! Redis: src/cluster.c (dumpCommand, restoreCommand, verifyDumpPayload).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::into::{self, number, plan, require_master, safety, unchanged};
use super::scratch::{Folder, Scratch};
use super::{connect, restore, server};
use crate::config::Redis;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::human;
use crate::operate::session::Session;
use crate::redis::connection::Tick;
use crate::redis::resp::Reply;
use crate::redis::source::Source;
use crate::redis::version::{Flavor, ServerVersion};
use crate::repo::id::BackupId;

/// The first release that takes the time of a key's end from `RESTORE`.
const FIRST_WITH_ABSTTL: (u32, u32) = (5, 0);
/// The first release that tells the time of a key's end.
const FIRST_WITH_EXPIRETIME: (u32, u32) = (7, 0);
/// The answer about the end of a key that is not there; -1 is that of one without an end.
const NO_KEY: i64 = -2;
/// Before that it is computed from two answers, between which time passes.
const COMPUTED_WITHIN_MS: u64 = 1000;
/// The version of the data and a checksum, at the end of what `DUMP` answers.
const FOOTER_BYTES: usize = 10;
/// Keys that one step of `SCAN` looks at.
const STEP: &[u8] = b"1000";

/// The keys that are asked for.
pub struct Picked {
    /// Their database.
    pub db: u32,
    pub names: Names,
}

/// Names of keys.
pub enum Names {
    /// One.
    One(Vec<u8>),
    /// Those that match a pattern of the server.
    Matching(Vec<u8>),
}

/// Keys that were put into a server, or would be.
pub struct Copied {
    /// The plan of the data set.
    pub restored: restore::Restored,
    /// The version of the running server.
    pub server: ServerVersion,
    /// The backup of what was there.
    pub safety: Option<BackupId>,
    /// Keys that the server did not have.
    pub new: u64,
    /// Keys that it had with another value.
    pub replaced: u64,
    /// Keys that it had with the same value: nothing is written.
    pub equal: u64,
    /// Keys that it has and the data set has not: they stay.
    pub others: Vec<Vec<u8>>,
}

/// The value of a key.
struct Value {
    payload: Vec<u8>,
    ends_ms: Option<u64>,
}

/// A key that is copied.
struct Task {
    key: Vec<u8>,
    is_there: bool,
}

/// Keys, compared.
struct Compared {
    tasks: Vec<Task>,
    equal: u64,
    others: Vec<Vec<u8>>,
    bytes: u64,
}

/// Copies keys of a data set into a running server.
///
/// # Errors
/// `NotFound` when the data set has none of them; `Refused` where keys would be replaced without the confirmation, and for a server that takes none; those of the
/// backup, of the restore and of both servers. The hint says in which state the running server is.
pub fn run(session: &Session, asked: &into::Asked<'_>, picked: &Picked) -> Result<Copied> {
    let settings = session.settings_with_repositories()?;
    let redis = server(&settings, asked.into)?;
    let mut tick = || session.host.check_stop();
    let mut running = connect(session, redis).map_err(unchanged)?;
    check(&running).map_err(unchanged)?;
    let folder = Folder::new(&session.host)?;
    let data = folder.data();
    let mut wanted = asked.wanted(&data);
    let (_, version) = plan(session, &wanted, &running.version)?;
    wanted.is_dry_run = false;
    let restored = restore::run(session, &wanted).map_err(unchanged)?;
    session.host.progress.phase("load the data set", None);
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut scratch = Scratch::start(folder, &version, ip, &session.host).map_err(unchanged)?;
    session.host.progress.phase("compare the keys", None);
    let mut pair = Pair {
        then: &mut scratch.source,
        now: &mut running,
    };
    pair.enter(picked.db, &mut tick).map_err(unchanged)?;
    let compared = pair.compare(picked, &mut tick).map_err(unchanged)?;
    fits(pair.now, compared.bytes, &mut tick).map_err(unchanged)?;
    let there = compared.tasks.iter().filter(|task| task.is_there).count();
    let mut copied = Copied {
        restored,
        server: pair.now.version.clone(),
        safety: None,
        new: length(compared.tasks.len() - there),
        replaced: length(there),
        equal: compared.equal,
        others: compared.others,
    };
    if asked.is_dry_run || compared.tasks.is_empty() {
        return Ok(copied);
    }
    if there > 0 && !asked.is_confirmed {
        return Err(unconfirmed(redis, &copied));
    }
    if there > 0 && asked.is_safe {
        session.host.progress.phase("back up what is there", None);
        copied.safety = Some(safety(session, asked)?.root.head.id);
    }
    session.host.progress.phase("copy the keys", None);
    for (done, task) in compared.tasks.iter().enumerate() {
        pair.copy(task, &mut tick)
            .map_err(|e| halfway(e, task, (done, compared.tasks.len()), (redis, &copied)))?;
    }
    Ok(copied)
}

/// Requires a server that takes keys.
fn check(running: &Source) -> Result<()> {
    require_master(running)?;
    if running.version.flavor == Flavor::Redis && running.version.release < FIRST_WITH_ABSTTL {
        return Err(err!(
            Unsupported,
            "{} does not take the time at which a key ends",
            running.version
        )
        .hint("Redis 5.0 is the oldest one that does."));
    }
    Ok(())
}

/// Requires that the keys fit: a server that evicts keys would lose others for them.
fn fits(running: &mut Source, bytes: u64, tick: Tick<'_>) -> Result<()> {
    let memory = running.ask("memory", tick)?;
    let (used, max) = (number(&memory, "used_memory"), number(&memory, "maxmemory"));
    match max > 0 && used.saturating_add(bytes) > max {
        true => Err(err!(
            Refused,
            "the keys take {bytes} bytes, the server uses {used}, and its maxmemory is {max}"
        )
        .hint("The server would evict keys, or refuse these. Raise maxmemory.")),
        false => Ok(()),
    }
}

/// The data set and the running server.
struct Pair<'p> {
    then: &'p mut Source,
    now: &'p mut Source,
}

impl Pair<'_> {
    /// Selects the database in both.
    fn enter(&mut self, db: u32, tick: Tick<'_>) -> Result<()> {
        let db = db.to_string();
        for source in [&mut *self.then, &mut *self.now] {
            source.connection.take_values();
            // The first one is selected already, and a user may lack the right to select.
            if db != "0" {
                let words: [&[u8]; 2] = [b"SELECT", db.as_bytes()];
                source.connection.ask(&words, tick)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, picked: &Picked, tick: Tick<'_>) -> Result<Compared> {
        let (then, now) = match &picked.names {
            Names::One(key) => (BTreeSet::from([key.clone()]), BTreeSet::new()),
            Names::Matching(pattern) => (
                scan(self.then, pattern, tick)?,
                scan(self.now, pattern, tick)?,
            ),
        };
        let mut compared = Compared {
            tasks: Vec::new(),
            equal: 0,
            others: now.difference(&then).cloned().collect(),
            bytes: 0,
        };
        for key in then {
            // Time goes on in the scratch server, too.
            let Some(wanted) = value(self.then, &key, tick)? else {
                continue;
            };
            let found = value(self.now, &key, tick)?;
            if found.as_ref().is_some_and(|found| is_same(found, &wanted)) {
                compared.equal += 1;
                continue;
            }
            compared.bytes += memory(self.then, &key, tick)?;
            let is_there = found.is_some();
            compared.tasks.push(Task { key, is_there });
        }
        match compared.tasks.is_empty() && compared.equal == 0 {
            true => Err(none(picked, compared.others.len())),
            false => Ok(compared),
        }
    }

    fn copy(&mut self, task: &Task, tick: Tick<'_>) -> Result<()> {
        let Some(wanted) = value(self.then, &task.key, tick)? else {
            // Its time is over since it was compared; what the server has of it stays.
            return Ok(());
        };
        let ends = wanted.ends_ms.unwrap_or(0).to_string();
        let mut words: Vec<&[u8]> = vec![b"RESTORE", &task.key, ends.as_bytes(), &wanted.payload];
        words.push(b"ABSTTL");
        if task.is_there {
            words.push(b"REPLACE");
        }
        self.now.connection.ask(&words, tick).map(|_| ())
    }
}

/// The keys of the database that match a pattern.
fn scan(source: &mut Source, pattern: &[u8], tick: Tick<'_>) -> Result<BTreeSet<Vec<u8>>> {
    let mut keys = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let words: [&[u8]; 6] = [b"SCAN", &cursor, b"MATCH", pattern, b"COUNT", STEP];
        let pair = match source.connection.ask(&words, tick)? {
            Reply::Array(pair) => <[Reply; 2]>::try_from(pair).ok(),
            _ => None,
        };
        let Some([Reply::Bulk(Some(next)), Reply::Array(found)]) = pair else {
            return Err(odd("SCAN"));
        };
        keys.extend(found.into_iter().filter_map(|key| match key {
            Reply::Bulk(key) => key,
            _ => None,
        }));
        if next == b"0" {
            return Ok(keys);
        }
        cursor = next;
    }
}

/// The value of a key; none where there is no such key.
fn value(source: &mut Source, key: &[u8], tick: Tick<'_>) -> Result<Option<Value>> {
    let payload = match source.connection.ask(&[b"DUMP", key], tick)? {
        Reply::Bulk(Some(payload)) => payload,
        Reply::Bulk(None) => return Ok(None),
        _ => return Err(odd("DUMP")),
    };
    let is_time = has_expiretime(source);
    let question: &[u8] = if is_time { b"PEXPIRETIME" } else { b"PTTL" };
    let answer = ask_number(source, &[question, key], tick)?;
    let ends_ms = match u64::try_from(answer) {
        // Its time was over between the two questions.
        Err(_) if answer == NO_KEY => return Ok(None),
        Err(_) => None,
        Ok(end) if is_time => Some(end),
        Ok(left) => Some(left.saturating_add(now_ms(source, tick)?)),
    };
    Ok(Some(Value { payload, ends_ms }))
}

fn has_expiretime(source: &Source) -> bool {
    source.version.flavor == Flavor::Valkey || source.version.release >= FIRST_WITH_EXPIRETIME
}

/// The server's clock.
fn now_ms(source: &mut Source, tick: Tick<'_>) -> Result<u64> {
    let reply = source.connection.ask(&[b"TIME"], tick)?;
    let Reply::Array(parts) = reply else {
        return Err(odd("TIME"));
    };
    let parts = parts.iter().filter_map(|part| match part {
        Reply::Bulk(Some(digits)) => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    });
    match parts.collect::<Vec<u64>>().as_slice() {
        [seconds, micros] => Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000)),
        _ => Err(odd("TIME")),
    }
}

/// How much memory a key takes.
fn memory(source: &mut Source, key: &[u8], tick: Tick<'_>) -> Result<u64> {
    let words: [&[u8]; 5] = [b"MEMORY", b"USAGE", key, b"SAMPLES", b"0"];
    match source.connection.ask(&words, tick)? {
        Reply::Line(number) => number.parse().map_err(|_| odd("MEMORY")),
        // Its time is over.
        Reply::Bulk(None) => Ok(0),
        _ => Err(odd("MEMORY")),
    }
}

fn ask_number(source: &mut Source, words: &[&[u8]], tick: Tick<'_>) -> Result<i64> {
    let none = || odd("PEXPIRETIME or PTTL");
    match source.connection.ask(words, tick)? {
        Reply::Line(number) => number.parse().map_err(|_| none()),
        _ => Err(none()),
    }
}

/// Whether both are the same. Equal values may differ in their bytes, as the order of a large set does; different ones never have the same.
fn is_same(one: &Value, other: &Value) -> bool {
    let body = |value: &Value| value.payload.len().saturating_sub(FOOTER_BYTES);
    let is_value = one.payload.get(..body(one)) == other.payload.get(..body(other));
    is_value
        && match (one.ends_ms, other.ends_ms) {
            (Some(one), Some(other)) => one.abs_diff(other) < COMPUTED_WITHIN_MS,
            (one, other) => one == other,
        }
}

fn odd(command: &str) -> Error {
    err!(Server, "the server does not answer to {command}")
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The error of a data set that has none of the keys.
fn none(picked: &Picked, others: usize) -> Error {
    let db = picked.db;
    let name = |name: &[u8]| name.escape_ascii().to_string();
    match &picked.names {
        Names::One(key) => err!(
            NotFound,
            "the data set has no key \"{}\" in database {db}, or its time to live is over",
            name(key)
        ),
        Names::Matching(pattern) => err!(
            NotFound,
            "the data set has no key that matches \"{}\" in database {db}; the server has {others}",
            name(pattern)
        ),
    }
    .hint("Name another moment (--target-time), or another database (--db).")
}

fn unconfirmed(redis: &Redis, copied: &Copied) -> Error {
    unchanged(
        err!(
            Refused,
            "{} of {} at {} would be replaced",
            human::count(copied.replaced, "key"),
            copied.server,
            redis.place()
        )
        .hint(format!(
            "{} more would be new, and {} are equal. Stop what writes there, and add --confirm.",
            copied.new, copied.equal
        )),
    )
}

/// Adds to an error how far the copy came.
fn halfway(
    error: Error,
    task: &Task,
    (done, all): (usize, usize),
    (redis, copied): (&Redis, &Copied),
) -> Error {
    let mut hint = format!(
        "{done} of {all} keys were written, each whole; the others are as they were. The same command writes the rest."
    );
    if let Some(id) = &copied.safety {
        hint += &format!(
            "\nWhat the server had is in a backup: pitr redis restore {} --backup {id}",
            redis.name
        );
    }
    error
        .context(format!("copy key \"{}\"", task.key.escape_ascii()))
        .hint_first(&hint)
}
