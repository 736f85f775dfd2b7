//! The Sentinels of a configured server: asked one after the other for the present master, or one of its replicas.
//!
//! Sentinels do not learn of a failover at the same moment, and one that was cut off names a former master. So each server that is named is asked for its role.

use std::time::Duration;

use super::{connect_to, way};
use crate::config::{Redis, RedisAddress};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::redis::connection::{Connection, Tick};
use crate::redis::info::REPLICA;
use crate::redis::resp::Reply;
use crate::redis::sentinel;
use crate::redis::source::Source;

/// A Sentinel answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// The channel in which Sentinels speak of each master that they watch.
const CHANNEL: &[u8] = b"__sentinel__:hello";

/// Connects to a server that a Sentinel names: to a replica, where one is preferred and fit, else to the master.
///
/// # Errors
/// `Config` where no Sentinel knows the name, and for files; `Unreachable`, or the one error that all of them led to; those of `tick`.
pub(super) fn connect(redis: &Redis, prefers_replica: bool, tick: Tick<'_>) -> Result<Source> {
    let name = redis.sentinel.master.as_deref().unwrap_or_default();
    let mut failures = Vec::new();
    let mut without_name = 0;
    for address in &redis.sentinel.addresses {
        let failure = match led_by(redis, (address, name), prefers_replica, tick) {
            Ok(Some(source)) => return Ok(source),
            Ok(None) => {
                without_name += 1;
                err!(Unreachable, "it knows no master of this name")
            }
            Err(e) if matches!(e.code(), Code::Interrupted | Code::Config) => return Err(e),
            Err(e) => e,
        };
        failures.push((address.clone(), failure));
    }
    if without_name == failures.len() {
        return Err(err!(
            Config,
            "no Sentinel knows a master \"{}\"",
            name.escape_debug()
        )
        .hint("Correct sentinel.master: SENTINEL MASTERS at a Sentinel lists the names. They are case-sensitive."));
    }
    let search = format!("no Sentinel leads to master \"{}\"", name.escape_debug());
    Err(none_leads(&search, &failures))
}

/// Whether Sentinels watch a server.
///
/// # Errors
/// Those of the server and of the connection; those of `tick`.
pub(in crate::operate) fn are_watching(running: &mut Source, tick: Tick<'_>) -> Result<bool> {
    let words: [&[u8]; 3] = [b"PUBSUB", b"NUMSUB", CHANNEL];
    let reply = running.connection.ask(&words, tick)?;
    let none = Reply::Line("0".to_owned());
    Ok(!matches!(reply, Reply::Array(pair) if pair.get(1) == Some(&none)))
}

/// The server that one Sentinel leads to; none where it does not know the name.
fn led_by(
    redis: &Redis,
    (address, name): (&RedisAddress, &str),
    prefers_replica: bool,
    tick: Tick<'_>,
) -> Result<Option<Source>> {
    let patience = redis.stall_timeout.min(PATIENCE);
    let (way, password) = way(&redis.sentinel.access, address, patience)?;
    let mut connection = Connection::open(way, password.as_ref(), tick).map_err(of_sentinel)?;
    let master = sentinel::master(&mut connection, name, tick).map_err(of_sentinel)?;
    let Some(master) = master else {
        return Ok(None);
    };
    if prefers_replica {
        let replicas = sentinel::replicas(&mut connection, name, tick).map_err(of_sentinel)?;
        for replica in replicas {
            match connect_to(redis, &replica, tick) {
                Ok(source) if source.role() == REPLICA && source.check_ready().is_ok() => {
                    return Ok(Some(source));
                }
                Err(e) if e.code() == Code::Interrupted => return Err(e),
                // The next one may be fit, and the master is there in the end.
                _ => {}
            }
        }
    }
    let source = connect_to(redis, &master, tick)?;
    match source.role() {
        REPLICA => Err(err!(
            Unreachable,
            "it names {master} as master, which is a replica"
        )),
        _ => Ok(Some(source)),
    }
}

/// Says where the keys of a Sentinel's account stand.
fn of_sentinel(error: Error) -> Error {
    if error.code() == Code::Interrupted {
        return error;
    }
    error.hint_last("For Sentinels these keys begin with sentinel.")
}

/// The error of a search that nobody led to its end: what each said.
pub(super) fn none_leads(search: &str, failures: &[(RedisAddress, Error)]) -> Error {
    let said = failures.iter().map(|(at, e)| format!("{at}: {e}"));
    let said: Vec<String> = said.collect();
    let first = failures.first().map(|(_, e)| e);
    let code = first.map_or(Code::Unreachable, Error::code);
    let is_one = failures.iter().all(|(_, e)| e.code() == code);
    let code = if is_one { code } else { Code::Unreachable };
    let hint = first.and_then(Error::hint_text);
    let hint = hint.unwrap_or("Run the command again: a failover may be under way.");
    let error = Error::new(code, format!("{search}: {}", said.join("; ")));
    error.hint(hint.to_owned())
}
