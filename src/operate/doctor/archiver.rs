//! Files that wait in pg_wal, as far as the data directory can be read from here.

use std::path::Path;

use super::Findings;
use super::server::Seen;
use crate::archive::datadir::DataDirectory;
use crate::archive::spool;
use crate::config::account::Account;
use crate::config::{Cluster, Environment, Settings};
use crate::operate::blocked::{Blocked, PASSING, STUCK, Waiting};
use crate::operate::human;
use crate::operate::owner::{Access, User};
use crate::operate::room::free_percent;
use crate::operate::session::Session;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;

/// More files than this are a backlog.
const MANY: u64 = 32;
/// So many of the segments archived last are looked for in the repositories.
const DONE_LOOKED_AT: usize = 32;

pub(super) fn look(found: &mut Findings, pgdata: &Path, seen: &Seen, session: &Session) {
    found.begin("pg_wal");
    let waiting = match Waiting::read(pgdata, session.host.now()) {
        Ok(waiting) => waiting,
        Err(e) => {
            let status = pgdata.join("pg_wal/archive_status");
            return found.warn(
                "waiting",
                "cannot be seen",
                format!("\"{}\": {e}", status.display()),
                "run pitr doctor as the server's user",
            );
        }
    };
    let (value, age) = (waiting.to_string(), waiting.age);
    let fix = "see the server's log for pitr-archive, and free or mount the repository";
    // A standby that does not archive keeps none, or those of its time as a primary.
    if seen.leaves_archiving || (age < PASSING && waiting.count <= MANY) {
        found.ok("waiting", value);
    } else if age >= PASSING {
        let why = "archiving is stuck: pg_wal grows until its disk is full";
        match age >= STUCK {
            true => found.fail("waiting", value, why, fix),
            false => found.warn("waiting", value, why, fix),
        }
    } else {
        found.warn("waiting", value, "archiving does not keep up", fix);
    }
    space(found, &pgdata.join("pg_wal"));
}

/// The newest segments that the server has marked as archived; none where that cannot be seen.
pub(super) fn newest_done(pgdata: &Path) -> Vec<SegmentName> {
    let Ok(entries) = std::fs::read_dir(pgdata.join("pg_wal/archive_status")) else {
        return Vec::new();
    };
    let names = entries.filter_map(std::result::Result::ok).filter_map(|e| {
        let name = e.file_name();
        name.to_str()?.strip_suffix(".done")?.parse().ok()
    });
    let mut names: Vec<SegmentName> = names.collect();
    names.sort_unstable();
    names.drain(..names.len().saturating_sub(DONE_LOOKED_AT));
    names
}

/// Checks whether the server's commands have a spool. As another user than root and the server's, that cannot be found
/// out.
pub(super) fn spool(found: &mut Findings, cluster: &Cluster, settings: &Settings, pgdata: &Path) {
    let own = rustix::process::geteuid().as_raw();
    let Ok(user) = User::owner_of(pgdata) else {
        return;
    };
    if own != 0 && own != user.uid {
        return;
    }
    let data = DataDirectory::at(pgdata);
    let environment = environment_of_server(&data, user.uid);
    let Ok(place) = spool::place(cluster, settings, &environment, &data) else {
        return;
    };
    let (value, why) = match &place {
        None => (
            "none".to_owned(),
            Some("the server's user has no home directory".to_owned()),
        ),
        Some(place) => (place.display().to_string(), unusable(place, &user, own)),
    };
    let Some(why) = why else {
        return found.ok("spool", value);
    };
    found.warn(
        "spool",
        value,
        format!("nothing is archived ahead, and pitr info does not learn why a file is not archived: {why}"),
        format!(
            "set spool_dir in [clusters.{}] to a directory on a local disk that only user \"{}\" can enter",
            cluster.name,
            user.name()
        ),
    );
}

/// The environment of archive_command: that of a server that runs, else an empty one, which is what Debian starts servers with.
fn environment_of_server(data: &DataDirectory, uid: u32) -> Environment {
    let variables = data
        .server()
        .and_then(|(pid, _)| std::fs::read(format!("/proc/{pid}/environ")).ok());
    Environment::of_other(&variables.unwrap_or_default(), Account::of(uid))
}

/// Why the server's user could not use a spool, or make it.
fn unusable(place: &Path, user: &User, own: u32) -> Option<String> {
    let existing = place.ancestors().find(|p| p.exists())?;
    if existing == place && own == user.uid {
        return spool::Spool::open(place).err().map(|e| e.to_string());
    }
    let at = match std::fs::metadata(existing) {
        Ok(metadata) if metadata.is_dir() => user.kept_out_by(existing, Access::Use)?,
        _ => existing.to_owned(),
    };
    Some(format!(
        "user \"{}\" cannot write to \"{}\"",
        user.name(),
        at.display()
    ))
}

/// Workers that archive ahead and were waited for in vain.
pub(super) fn hung(found: &mut Findings, cluster: &Cluster, pgdata: &Path, session: &Session) {
    let data = DataDirectory::at(pgdata);
    for (process, since) in spool::hung(cluster, &session.environment, &data) {
        let since = TimestampTz::from_system_time(since);
        let age = session.host.now().duration_since(since).unwrap_or_default();
        let process = process.map_or_else(|| "a process".to_owned(), |id| format!("process {id}"));
        found.warn(
            "worker",
            format!(
                "{process} has archived nothing for {}",
                human::duration(age)
            ),
            "the worker that archives ahead hangs: files are archived one at a time meanwhile",
            "end it, and the next file starts another one: kill -KILL",
        );
    }
}

/// Files that were tried and cannot be archived; what is ready behind them goes ahead, but no acknowledgement does.
pub(super) fn blocked(found: &mut Findings, cluster: &Cluster, pgdata: &Path, session: &Session) {
    for file in Blocked::all(cluster, Some(pgdata), session) {
        let cause = "PostgreSQL offers no later file before this one is archived: pg_wal grows";
        let fix = file.hint();
        let fix = fix.unwrap_or("see the hint of pitr-archive in the server's log");
        match file.has_lasted() {
            true => found.fail("blocked", file.line(), cause, fix),
            false => found.warn("blocked", file.line(), cause, fix),
        }
    }
}

fn space(found: &mut Findings, wal: &Path) {
    let Ok(stat) = rustix::fs::statvfs(wal) else {
        return;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let Some(percent) = free_percent(free, total) else {
        return;
    };
    let value = format!("{} of {} free", human::size(free), human::size(total));
    match percent {
        0..=2 => found.fail(
            "space",
            value,
            "the server stops when the disk of pg_wal is full",
            "free space; never delete from pg_wal by hand",
        ),
        3..=9 => found.warn(
            "space",
            value,
            "little is left for WAL that waits for the archive",
            "free space; never delete from pg_wal by hand",
        ),
        _ => found.ok("space", value),
    }
}
