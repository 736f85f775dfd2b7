//! What waits in pg_wal, as far as the data directory can be read from here.

use std::path::Path;
use std::time::Duration;

use super::Findings;
use super::server::Seen;
use crate::archive::datadir::DataDirectory;
use crate::archive::spool;
use crate::cli::blocked::Blocked;
use crate::cli::{Context, human};
use crate::config::{Cluster, Settings};
use crate::pg::segment::WalFileName;
use crate::pg::time::TimestampTz;

/// A file that waits longer than this does not wait, it is stuck.
const STUCK: Duration = Duration::from_secs(300);
/// More files than this are a backlog.
const MANY: usize = 32;

pub(super) fn look(found: &mut Findings, pgdata: &Path, seen: &Seen, cx: &Context) {
    found.begin("pg_wal");
    let status = pgdata.join("pg_wal/archive_status");
    let entries = match std::fs::read_dir(&status) {
        Ok(entries) => entries,
        Err(e) => {
            found.warn(
                "waiting",
                "cannot be seen",
                format!("\"{}\": {e}", status.display()),
                "run pitr doctor as the server's user",
            );
            return;
        }
    };
    let mut waiting = 0;
    let mut oldest: Option<(TimestampTz, String)> = None;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".ready")) else {
            continue;
        };
        if stem.parse::<WalFileName>().is_err() {
            continue;
        }
        waiting += 1;
        let since = entry.metadata().and_then(|m| m.modified());
        if let Ok(since) = since.map(TimestampTz::from_system_time)
            && oldest.as_ref().is_none_or(|(t, _)| since < *t)
        {
            oldest = Some((since, stem.to_owned()));
        }
    }
    let age = oldest
        .as_ref()
        .and_then(|(since, _)| cx.now().duration_since(*since))
        .unwrap_or_default();
    let name = oldest.map(|(_, name)| name).unwrap_or_default();
    let value = match waiting {
        0 => "nothing".to_owned(),
        n => format!(
            "{}, the oldest for {}: {name}",
            human::count(n, "file"),
            human::duration(age)
        ),
    };
    let fix = "see the server's log for pitr-archive, and free or mount the repository";
    // A standby that does not archive keeps none, or those of its time as a primary.
    if seen.leaves_archiving || (age < STUCK && waiting <= MANY as u64) {
        found.ok("waiting", value);
    } else if age >= STUCK {
        found.fail(
            "waiting",
            value,
            "archiving is stuck: pg_wal grows until its disk is full",
            fix,
        );
    } else {
        found.warn("waiting", value, "archiving does not keep up", fix);
    }
    space(found, &pgdata.join("pg_wal"));
}

/// Whether the spool that is configured can be used; as another user than the server's that cannot be said.
pub(super) fn spool(
    found: &mut Findings,
    cluster: &Cluster,
    settings: &Settings,
    pgdata: &Path,
    cx: &Context,
) {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    let is_server = std::fs::metadata(pgdata).is_ok_and(|root| root.uid() == own);
    let data = DataDirectory::at(pgdata);
    let place = spool::place(cluster, settings, &cx.environment, &data);
    let Some(place) = place.ok().flatten() else {
        return;
    };
    if cluster.spool_dir.is_none() || !is_server {
        return;
    }
    match spool::Spool::open(&place) {
        Ok(_) => found.ok("spool", place.display().to_string()),
        Err(e) => found.warn(
            "spool",
            place.display().to_string(),
            format!("it cannot be used, and files are archived one at a time: {e}"),
            "let spool_dir name a directory that only the server's user can enter",
        ),
    }
}

/// Workers that archive ahead and were waited for in vain.
pub(super) fn hung(found: &mut Findings, cluster: &Cluster, pgdata: &Path, cx: &Context) {
    let data = DataDirectory::at(pgdata);
    for (process, since) in spool::hung(cluster, &cx.environment, &data) {
        let since = TimestampTz::from_system_time(since);
        let age = cx.now().duration_since(since).unwrap_or_default();
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
pub(super) fn blocked(found: &mut Findings, cluster: &Cluster, pgdata: &Path, cx: &Context) {
    for file in Blocked::all(cluster, Some(pgdata), cx) {
        let cause = "PostgreSQL offers no later file before this one is archived: pg_wal grows";
        let fix = "see the hint of pitr-archive in the server's log";
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
    let value = format!("{} of {} free", human::size(free), human::size(total));
    match free.saturating_mul(100) / total.max(1) {
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
