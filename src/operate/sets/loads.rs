//! Whether a Redis server will load what a recovery puts in its place, and keep it.

use std::path::Path;

use super::recover::UNCHANGED;
use crate::config::Redis;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::redis::{connect, sentinels};
use crate::operate::session::Session;
use crate::redis::connection::Tick;
use crate::redis::files::{self, APPEND_ONLY, APPEND_ONLY_DIRECTORY, DUMP};
use crate::redis::info::REPLICA;
use crate::redis::source::Source;

/// The files that a server loads at its start.
pub enum Loads {
    /// The directory that is configured for it, and the names that a recovery writes.
    Own,
    /// Others, in words.
    Other(String),
    /// Nothing that this host can tell, with the reason: some servers tell nobody, and one in a container names another directory.
    Untold(String),
}

/// Asks a server which files it loads.
///
/// # Errors
/// `Interrupted`.
pub fn ask(session: &Session, redis: &Redis) -> Result<Loads> {
    let mut tick = || session.host.check_stop();
    let told = connect(session, redis).and_then(|mut source| of(redis, &mut source, &mut tick));
    known(told)
}

/// An error is no answer, and no obstacle.
fn known(told: Result<Loads>) -> Result<Loads> {
    match told {
        Err(e) if e.code() != Code::Interrupted => Ok(Loads::Untold(e.to_string())),
        told => told,
    }
}

fn of(redis: &Redis, source: &mut Source, tick: Tick<'_>) -> Result<Loads> {
    let dir = source.setting("dir", tick)?;
    let told = dir.as_ref().map_or("", |dir| dir.expose());
    let wanted = redis.service.data_directory.as_deref();
    let found = files::number(Path::new(told));
    if found.is_none() || found != wanted.and_then(files::number) {
        let shown = told.escape_debug();
        // A directory of that name may be here, too, and be none of the server's.
        return Ok(
            match found.is_some() && files::works_in(&source.info) == found {
                true => Loads::Other(format!("its dir is \"{shown}\"")),
                false => {
                    Loads::Untold(format!("its dir is \"{shown}\", which is another one here"))
                }
            },
        );
    }
    let is_append_only = source.setting("appendonly", tick)?;
    let names: &[(&'static str, &str)] = match is_append_only.is_some_and(|v| v.expose() == "yes") {
        true => &[APPEND_ONLY, APPEND_ONLY_DIRECTORY],
        false => &[DUMP],
    };
    for (name, usual) in names {
        let value = source.setting(name, tick)?;
        if let Some(value) = value.filter(|value| value.expose() != *usual) {
            return Ok(Loads::Other(format!(
                "its {name} is \"{}\", and a recovery writes \"{usual}\"",
                value.expose().escape_debug()
            )));
        }
    }
    Ok(Loads::Own)
}

/// Requires that a server will load what is put in its place, and that neither Sentinels nor a master give it anything else. A server that does not answer tells
/// nothing of this.
///
/// # Errors
/// `Refused`; `Denied`, for it could not be asked behind its start either; `Interrupted`; those of the configuration's files.
pub fn require(session: &Session, redis: &Redis) -> Result<()> {
    if redis.address.is_none() {
        return Err(watched(redis));
    }
    let mut source = match connect(session, redis) {
        Ok(source) => source,
        Err(e) if matches!(e.code(), Code::Unreachable | Code::Deadline | Code::Server) => {
            return Ok(());
        }
        Err(e) => return Err(e.hint_first(UNCHANGED)),
    };
    let mut tick = || session.host.check_stop();
    if source.role() == REPLICA {
        let master = source.info.field("master_host").unwrap_or("?");
        return Err(err!(
            Refused,
            "Redis server \"{}\" is a replica of {}, which would give it its own data set again",
            redis.name,
            master.escape_debug()
        )
        .hint(format!("{UNCHANGED}\nName the master in [redis.{}], or let the server be its own (REPLICAOF NO ONE, and no replicaof in redis.conf).", redis.name)));
    }
    match sentinels::are_watching(&mut source, &mut tick) {
        Ok(false) => {}
        Ok(true) => return Err(watched(redis)),
        Err(e) if e.code() == Code::Interrupted => return Err(e),
        Err(e) => session.warn(&format!(
            "nothing tells whether Sentinels watch Redis server \"{}\": {e}",
            redis.name
        )),
    }
    match known(of(redis, &mut source, &mut tick))? {
        Loads::Other(why) => Err(other(redis, &why)),
        Loads::Own | Loads::Untold(_) => Ok(()),
    }
}

fn other(redis: &Redis, why: &str) -> Error {
    let directory = redis.service.data_directory.as_deref();
    err!(
        Refused,
        "Redis server \"{}\" loads other files than those that a recovery puts into \"{}\": {why}",
        redis.name,
        directory.unwrap_or(Path::new("")).display()
    )
    .hint(format!("{UNCHANGED}\nCorrect service.data_directory in [redis.{}], or give the server's files the names that Redis gives by itself.", redis.name))
}

/// The error of a server that Sentinels watch: they promote a replica while its files change, and have it copy that replica later.
fn watched(redis: &Redis) -> Error {
    let name = &redis.name;
    let identity = redis.identity.clone().unwrap_or_else(|| redis.place());
    let section = match redis.address {
        Some(_) => String::new(),
        None => format!(
            "\nLet [redis.{name}] lead to the server of this host: address in place of sentinel.master and sentinel.addresses, and identity = \"{identity}\"."
        ),
    };
    err!(
        Refused,
        "Sentinels watch Redis server \"{name}\": they would promote a replica meanwhile, and overwrite what was restored"
    )
    .hint(format!("{UNCHANGED}\nHave each Sentinel forget the master (SENTINEL REMOVE NAME), or stop all of them.{section}\nBehind the recovery have the replicas follow this server (REPLICAOF), and then the Sentinels watch it (SENTINEL MONITOR)."))
}
