//! A full resynchronisation: the server forks, and sends its data set as an RDB file.
//!
//! A transfer whose length is not known before ends with a mark, which the server draws once for its whole life: a value may hold it. So it is looked for at
//! the end of what has arrived alone, and counts only with a right checksum before it. A server that writes no checksum ends by
//! its silence after the mark: it sends nothing more before it is acknowledged, and this connection never does.
//!
//! Redis: src/replication.c (syncCommand, replicationSetupSlaveForFullResync, readSyncBulkPayload, updateSlavesWaitingBgsave).

use std::time::Duration;

use super::connection::{Arrived, Connection, Tick, lost, silent};
use super::rdb::{Checksum, Head, Passing};
use super::resp::{self, Extent, FullResync, Reply};
use super::source::Source;
use super::version::Flavor;
use crate::err;
use crate::error::Result;

/// How long a server must have been silent after a mark that no checksum confirms.
const SETTLED: Duration = Duration::from_secs(3);

/// A data set that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The head of its file.
    pub head: Head,
    /// The length of the file.
    pub bytes: u64,
    /// Whether the file has a checksum, which was right.
    pub has_checksum: bool,
}

/// Says what this side takes. Valkey writes a form for older replicas unless one names its version, which has no room for ends of fields.
///
/// # Errors
/// Those of the server, explained, and of the connection; those of `tick`.
pub fn introduce(source: &mut Source, tick: Tick<'_>) -> Result<()> {
    option(source, &[b"capa", b"eof", b"capa", b"psync2"], tick)?;
    let version = source.version.text().to_owned();
    match source.version.flavor {
        Flavor::Redis => Ok(()),
        Flavor::Valkey => option(source, &[b"version", version.as_bytes()], tick),
    }
}

/// Sets options of the replication. One that the server does not know is left out.
fn option(source: &mut Source, options: &[&[u8]], tick: Tick<'_>) -> Result<()> {
    let words = [&[&b"REPLCONF"[..]], options].concat();
    source.connection.send(&words)?;
    match source.connection.reply(tick)? {
        Reply::Error(said) if !is_unknown_option(&said) => {
            Err(source.connection.refused(&words, &said))
        }
        _ => Ok(()),
    }
}

/// Asks for the data set. The server forks for it.
///
/// # Errors
/// Those of the server, explained; `Unreachable`, `Deadline`; those of `tick`.
pub fn request(source: &mut Source, tick: Tick<'_>) -> Result<FullResync> {
    introduce(source, tick)?;
    // A server that takes it closes the connection after the file; one that does not know it goes on like for any replica.
    option(source, &[b"rdb-only", b"1"], tick)?;
    let psync: &[&[u8]] = &[b"PSYNC", b"?", b"-1"];
    match source.connection.ask(psync, tick)? {
        Reply::Line(line) => {
            resp::full_resync(&line).ok_or_else(|| resp::no_sense(line.as_bytes()))
        }
        Reply::Error(_) | Reply::Bulk(_) | Reply::Array(_) => Err(resp::no_sense(b"a bulk string")),
    }
}

/// Whether a server does not know an option of REPLCONF, as opposed to the command.
fn is_unknown_option(said: &str) -> bool {
    said.starts_with("ERR") && !said.starts_with("ERR unknown command")
}

/// Receives the data set after [`request`], and hands it on as it comes.
///
/// # Errors
/// `Damaged` for a file that is none, or whose checksum is wrong; `Unreachable` when the connection ends too early, `Deadline` when the server falls silent;
/// those of `out` and of `tick`.
pub fn receive(
    connection: &mut Connection,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
    tick: Tick<'_>,
) -> Result<Received> {
    let line = connection.line(tick)?;
    if let Some(said) = line.strip_prefix(b"-") {
        let said = String::from_utf8_lossy(said).into_owned();
        return Err(connection.refused(&[b"PSYNC"], &said));
    }
    let mut out = |bytes: &[u8]| out(bytes);
    let passing = match resp::extent(&line).ok_or_else(|| resp::no_sense(&line))? {
        Extent::Length(length) => by_length(connection, length, &mut out, tick)?,
        Extent::Mark(mark) => by_mark(connection, &mark, &mut out, tick)?,
    };
    ended(passing, &mut out)
}

/// Ends a data set here, and requires its checksum.
///
/// # Errors
/// `Damaged`; those of `out`.
pub fn ended(passing: Passing, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Received> {
    let checksum = passing.checksum();
    if checksum == Checksum::Wrong {
        return Err(wrong_checksum());
    }
    let (head, bytes) = passing.end(out)?;
    Ok(Received {
        head,
        bytes,
        has_checksum: checksum == Checksum::Right,
    })
}

fn by_length(
    connection: &mut Connection,
    length: u64,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
    tick: Tick<'_>,
) -> Result<Passing> {
    let mut passing = Passing::new(0);
    let mut left = length;
    while left > 0 {
        if connection.received().is_empty() {
            wait(connection, tick)?;
        }
        let bytes = connection.received();
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        passing.take(bytes.get(..most).unwrap_or_default(), out)?;
        connection.taken(most);
        left -= most as u64;
    }
    Ok(passing)
}

fn by_mark(
    connection: &mut Connection,
    mark: &[u8],
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
    tick: Tick<'_>,
) -> Result<Passing> {
    let mut passing = Passing::new(mark.len());
    loop {
        let count = connection.received().len();
        passing.take(connection.received(), out)?;
        connection.taken(count);
        if !passing.ends_with(mark) {
            wait(connection, tick)?;
            continue;
        }
        if passing.checksum() == Checksum::Right {
            return Ok(passing);
        }
        match connection.more(SETTLED, tick)? {
            Arrived::Bytes => {}
            Arrived::Closed | Arrived::Nothing => return Ok(passing),
        }
    }
}

/// Waits for bytes that have to come.
fn wait(connection: &mut Connection, tick: Tick<'_>) -> Result<()> {
    let patience = connection.stall_timeout();
    match connection.more(patience, tick)? {
        Arrived::Bytes => Ok(()),
        Arrived::Closed => Err(lost()),
        Arrived::Nothing => Err(silent(patience)),
    }
}

fn wrong_checksum() -> crate::error::Error {
    err!(
        Damaged,
        "the data set that arrived has another checksum than the server computed"
    )
    .hint("Run the command again. If it fails each time: look at the memory of the server's host, and at what stands between it and this one.")
}
