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
use super::version::ServerVersion;
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
    /// When the server saw the end of its last save, in seconds since 1970 by its clock; asked behind the opening.
    pub ended_seconds: Option<i64>,
    /// Whether the server has the clock of this host.
    pub is_one_clock: bool,
}

/// The second of a file comes from time(2), which Linux moves on with its ticks: at 100 Hz, up to 10 ms behind the clock that others read.
const TICK: Duration = Duration::from_millis(20);

/// How long a busy server may take to see that its child has saved.
const UNSEEN_SECONDS: i64 = 60;

impl Saved {
    /// The latest time at which the server can have forked. Another save may have followed ours: the head has the second in which the one of this file began.
    /// Without that second, and with that of another clock, it is the opening.
    pub fn latest(&self, head: &Head) -> TimestampTz {
        let end = begun(head).filter(|_| self.is_one_clock);
        // Clocks may be set back meanwhile.
        end.map_or(self.found, |end| end.min(self.found))
            .max(self.forked)
    }

    /// Requires that the file is of a save that this server began after the request.
    ///
    /// # Errors
    /// `Refused`.
    pub fn require_own(&self, head: &Head, version: &ServerVersion) -> Result<()> {
        let field = format!("{}-ver", version.flavor.name());
        let is_of_other = head.field(&field).is_some_and(|by| by != version.text());
        let named = self.opened.named_seconds();
        let is_near = |ended: i64| (ended - UNSEEN_SECONDS..=ended + 1).contains(&named);
        let is_far = self.is_one_clock && self.ended_seconds.is_some_and(|ended| !is_near(ended));
        if is_of_other || is_far {
            return Err(elsewhere(&self.opened.path));
        }
        let is_before = |end: TimestampTz| end.saturating_add(TICK) < self.requested;
        if self.is_one_clock && begun(head).is_some_and(is_before) {
            return Err(err!(
                Unreachable,
                "the file of the server is of a moment before it was asked to save"
            )
            .hint("A replica that took its master's data set over puts that in its place. Run the command again."));
        }
        Ok(())
    }
}

/// The end of the second in which the save of a file began, by the server's clock.
fn begun(head: &Head) -> Option<TimestampTz> {
    let seconds = head.field("ctime")?.parse::<i64>().ok()?;
    TimestampTz::from_unix_micros(seconds.checked_add(1)?.checked_mul(1_000_000)?)
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
    require_settled(source, tick)?;
    let server = source.ask("server", tick)?;
    place.require_process(&server)?;
    if run_of(&server) != run {
        return Err(err!(
            Unreachable,
            "another server answers than the one that was asked to save"
        ));
    }
    let opened = files::open(&path)?;
    let is_new = |opened: &Opened| former.as_ref().is_none_or(|f| opened.is_other_than(f));
    let opened = opened.filter(is_new).ok_or_else(|| elsewhere(&path))?;
    let found = host.now();
    // Another save may have ended meanwhile, whose file this is.
    let after = idle(source, tick)?;
    let ended = after.field("rdb_last_save_time");
    Ok(Saved {
        opened,
        requested,
        forked,
        found,
        ended_seconds: ended.and_then(|seconds| seconds.parse().ok()),
        is_one_clock: source.connection.is_of_this_host(),
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
        require_settled(source, tick)?;
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

/// Requires that the server takes no other server's data set over: it would put that in the place of its own file.
fn require_settled(source: &mut Source, tick: Tick<'_>) -> Result<()> {
    let info = source.ask("replication", tick)?;
    match info.field("master_link_status") {
        None | Some("up") => Ok(()),
        Some(_) => Err(source.connection.refused(&[b"BGSAVE"], "MASTERDOWN")),
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
    .hint("The server runs elsewhere, or in a container: service.data_directory names its directory as this host sees it. Or its save was given up (FLUSHALL, a resynchronisation): run the command again.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::version::Flavor;

    #[test]
    fn a_fork_is_not_later_than_what_bounds_it() {
        let folder = std::env::temp_dir().join(format!("pitr-saved-{}", std::process::id()));
        std::fs::write(&folder, b"x").unwrap();
        let opened = files::open(&folder).unwrap().unwrap();
        std::fs::remove_file(&folder).unwrap();
        let at = |micros| TimestampTz::from_unix_micros(micros).unwrap();
        let mut saved = Saved {
            opened,
            requested: at(10_000_000),
            forked: at(10_400_000),
            found: at(14_000_000),
            ended_seconds: None,
            is_one_clock: true,
        };
        let of = |saved: &Saved, ctime: &str| {
            saved.latest(&Head {
                version: 10,
                fields: vec![("ctime".to_owned(), ctime.to_owned())],
            })
        };
        let latest = |ctime: &str| of(&saved, ctime);
        // The second of the answer, one before it, one of a later save, and clocks that are not this one's.
        assert_eq!(latest("10"), at(11_000_000));
        assert_eq!(latest("9"), at(10_400_000));
        assert_eq!(latest("12"), at(13_000_000));
        assert_eq!(latest("99"), at(14_000_000));
        assert_eq!(latest("-5"), at(10_400_000));
        assert_eq!(latest("soon"), at(14_000_000));
        assert_eq!(latest(&i64::MAX.to_string()), at(14_000_000));
        let head = |ctime: &str, version: &str| Head {
            version: 10,
            fields: vec![
                ("ctime".to_owned(), ctime.to_owned()),
                ("redis-ver".to_owned(), version.to_owned()),
            ],
        };
        let version = ServerVersion::new(Flavor::Redis, "7.0.15").unwrap();
        let is_own = |saved: &Saved, ctime: &str, by: &str| {
            saved.require_own(&head(ctime, by), &version).is_ok()
        };
        assert!(is_own(&saved, "10", "7.0.15") && !is_own(&saved, "10", "7.0.16"));
        // A file of a moment before the request is of a transfer.
        assert!(is_own(&saved, "9", "7.0.15") && !is_own(&saved, "8", "7.0.15"));
        // The clock of the second is a tick behind.
        saved.requested = at(10_015_000);
        assert!(is_own(&saved, "9", "7.0.15") && !is_own(&saved, "8", "7.0.15"));
        saved.requested = at(10_030_000);
        assert!(!is_own(&saved, "9", "7.0.15"));
        saved.requested = at(10_000_000);
        // The file got its name just before the server saw the end of its save.
        let named = saved.opened.named_seconds();
        for (ended, wanted) in [(named, true), (named + 61, false), (named - 2, false)] {
            saved.ended_seconds = Some(ended);
            assert_eq!(is_own(&saved, "10", "7.0.15"), wanted);
        }
        // Another clock tells nothing, and one that was set back ends nothing.
        saved.is_one_clock = false;
        assert!(is_own(&saved, "8", "7.0.15"));
        assert_eq!(saved.latest(&head("11", "7.0.15")), at(14_000_000));
        saved.found = at(1_000_000);
        assert_eq!(saved.latest(&head("11", "7.0.15")), at(10_400_000));
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
