//! A data set by `BGSAVE`: the server forks, writes a file beside its last one, and gives it that one's name.
//!
//! The former file is held open meanwhile, so that no new one gets its number: another number behind the name is proof that a save has ended since. The save is one
//! that began after the request: it is made when no other one runs.
//!
//! Redis: src/rdb.c (bgsaveCommand, rdbSave, backgroundSaveDoneHandlerDisk).

use std::path::Path;
use std::time::Duration;

use super::connection::Tick;
use super::files::{self, Opened, Place};
use super::info::Info;
use super::rdb::Head;
use super::resp::Reply;
use super::source::Source;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;

/// How often the server is asked whether it has saved.
const GLANCE: Duration = Duration::from_millis(100);
/// The rights that a backup needs.
const RIGHTS: &str = "+bgsave +ping +info +config|get";

/// A file that was saved, and what bounds the moment of its fork.
#[derive(Debug)]
pub struct Saved {
    /// The file.
    pub opened: Opened,
    /// This host's clock before the request.
    pub requested: TimestampTz,
    /// The same when the server had answered: it had forked.
    pub forked: TimestampTz,
    /// The same when the file was opened.
    pub found: TimestampTz,
}

impl Saved {
    /// The latest time at which the server can have forked. Another save may have followed ours: the head has the second in which the one of this file began.
    pub fn latest(&self, head: &Head) -> TimestampTz {
        let seconds = head
            .field("ctime")
            .and_then(|text| text.parse::<i64>().ok());
        let end = seconds.and_then(|seconds| seconds.checked_add(1)?.checked_mul(1_000_000));
        let end = end.and_then(TimestampTz::from_unix_micros);
        end.map_or(self.found, |end| end.clamp(self.forked, self.found))
    }
}

/// Has the server save its data set, and opens the file.
///
/// # Errors
/// `Refused` where the disk has no room, or the file is not on this host; `Server` for a save that failed; those of the server, of the system and of `tick`.
pub fn take(source: &mut Source, place: &Place, host: &Host, tick: Tick<'_>) -> Result<Saved> {
    let path = place.dump(source, tick)?;
    let run = run(source, tick)?;
    let (former, requested) = begin(source, &path, (place, host), tick)?;
    let forked = host.now();
    fault::pause("redis-save");
    let ended = idle(source, tick)?;
    if ended.field("rdb_last_bgsave_status") != Some("ok") {
        return Err(failed());
    }
    let now = run_of(&source.ask("server", tick)?);
    if now != run {
        return Err(err!(
            Unreachable,
            "another server answers than the one that was asked to save"
        ));
    }
    let opened = files::open(&path)?;
    let is_new = |opened: &Opened| former.as_ref().is_none_or(|f| opened.is_other_than(f));
    let opened = opened.filter(is_new).ok_or_else(|| elsewhere(&path))?;
    Ok(Saved {
        opened,
        requested,
        forked,
        found: host.now(),
    })
}

/// Requests the save. Returns the file of the former one, and the time before the request.
fn begin(
    source: &mut Source,
    path: &Path,
    (place, host): (&Place, &Host),
    tick: Tick<'_>,
) -> Result<(Option<Opened>, TimestampTz)> {
    loop {
        idle(source, tick)?;
        let former = files::open(path)?;
        require_room(place, former.as_ref())?;
        let requested = host.now();
        source.connection.send(&[b"BGSAVE"])?;
        match source.connection.reply(tick)? {
            Reply::Error(said) if is_busy(&said) => pause(tick)?,
            Reply::Error(said) => {
                let e = source.connection.refused(&[b"BGSAVE"], &said);
                return Err(match e.code() {
                    Code::Denied => e.hint(format!(
                        "A backup by BGSAVE needs these rights: {RIGHTS}\nBefore Redis 7: +config in place of +config|get."
                    )),
                    _ => e,
                });
            }
            _ => return Ok((former, requested)),
        }
    }
}

/// Another child of the server runs: it began between two looks.
fn is_busy(said: &str) -> bool {
    ["in progress", "AOF log", "child process"]
        .iter()
        .any(|words| said.contains(words))
}

/// Waits until the server has no child, and returns what it says of its files then.
///
/// # Errors
/// Those of the server and of `tick`.
pub(super) fn idle(source: &mut Source, tick: Tick<'_>) -> Result<Info> {
    let busy = [
        "rdb_bgsave_in_progress",
        "aof_rewrite_in_progress",
        "aof_rewrite_scheduled",
    ];
    loop {
        let info = source.ask("persistence", tick)?;
        if !busy.iter().any(|field| info.is_on(field)) {
            return Ok(info);
        }
        pause(tick)?;
    }
}

/// Waits for a moment.
///
/// # Errors
/// Those of `tick`.
pub(super) fn pause(tick: Tick<'_>) -> Result<()> {
    std::thread::sleep(GLANCE);
    tick()
}

/// The process of the server.
///
/// # Errors
/// Those of the server and of `tick`.
pub(super) fn run(source: &mut Source, tick: Tick<'_>) -> Result<String> {
    Ok(run_of(&source.ask("server", tick)?))
}

fn run_of(info: &Info) -> String {
    info.field("run_id").unwrap_or_default().to_owned()
}

/// A save that fails makes most servers refuse writes until one succeeds: it is not asked for where it has to fail.
fn require_room(place: &Place, former: Option<&Opened>) -> Result<()> {
    let needed = former.map_or(0, Opened::bytes);
    let free = files::free_bytes(&place.directory)?;
    match free < needed {
        false => Ok(()),
        true => Err(err!(
            Refused,
            "the disk of \"{}\" has {free} free bytes, and the last save took {needed}",
            place.directory.display()
        )
        .hint("A save that fails makes the server refuse writes (stop-writes-on-bgsave-error). Make room, and run the command again.")),
    }
}

fn failed() -> Error {
    err!(Server, "the server could not save its data set").hint(
        "Its log says why: most often the disk is full. With stop-writes-on-bgsave-error, as is usual, it refuses writes until a save succeeds: mend it, then redis-cli BGSAVE",
    )
}

fn elsewhere(path: &Path) -> Error {
    err!(
        Refused,
        "the server has saved, and \"{}\" of this host is not the file",
        path.display()
    )
    .hint("The server runs elsewhere, or in a container: service.data_directory names its directory as this host sees it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_not_later_than_what_bounds_it() {
        let folder = std::env::temp_dir().join(format!("pitr-saved-{}", std::process::id()));
        std::fs::write(&folder, b"x").unwrap();
        let opened = files::open(&folder).unwrap().unwrap();
        std::fs::remove_file(&folder).unwrap();
        let at = |micros| TimestampTz::from_unix_micros(micros).unwrap();
        let saved = Saved {
            opened,
            requested: at(10_000_000),
            forked: at(10_400_000),
            found: at(14_000_000),
        };
        let latest = |ctime: &str| {
            saved.latest(&Head {
                version: 10,
                fields: vec![("ctime".to_owned(), ctime.to_owned())],
            })
        };
        // The second of the answer, one before it, one of a later save, and clocks that are not this one's.
        assert_eq!(latest("10"), at(11_000_000));
        assert_eq!(latest("9"), at(10_400_000));
        assert_eq!(latest("12"), at(13_000_000));
        assert_eq!(latest("99"), at(14_000_000));
        assert_eq!(latest("-5"), at(10_400_000));
        assert_eq!(latest("soon"), at(14_000_000));
        assert_eq!(latest(&i64::MAX.to_string()), at(14_000_000));
    }

    #[test]
    fn servers_of_each_age_say_that_they_are_busy() {
        for said in [
            "ERR Background save already in progress",
            "ERR Can't BGSAVE while AOF log is writing",
            "ERR Another child process is active (AOF?): can't BGSAVE right now. Use BGSAVE SCHEDULE in order to schedule a BGSAVE whenever possible.",
        ] {
            assert!(is_busy(said), "{said}");
        }
        assert!(!is_busy("ERR unknown command 'BGSAVE'"));
    }
}
