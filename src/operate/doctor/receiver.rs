//! The receiver's slot: whether it is there and used, and how much WAL it keeps on the server.

use std::path::Path;

use super::Findings;
use crate::config::Cluster;
use crate::error::Result;
use crate::operate::human;
use crate::operate::receiver::SLOT_DEFAULT;
use crate::operate::server::Server;

/// Shares of the limit, in percent, from which on kept WAL is a warning, and a failure.
const WARN_PERCENT: u64 = 50;
const FAIL_PERCENT: u64 = 90;

/// The slot as the server describes it.
struct Slot {
    is_active: bool,
    is_lost: bool,
    kept_bytes: u64,
}

/// Whether the configuration is that of a receiver.
pub(super) fn is_configured(cluster: &Cluster) -> bool {
    cluster.receive.slot.is_some() || cluster.receive.journal.is_some()
}

/// Looks, if there is to be a receiver. `pgdata` is the data directory where it can be read from here.
pub(super) fn look(
    found: &mut Findings,
    server: &mut Server,
    cluster: &Cluster,
    in_recovery: bool,
    pgdata: Option<&Path>,
) -> Result<()> {
    if !is_configured(cluster) {
        return Ok(());
    }
    let name = cluster.receive.slot.as_deref().unwrap_or(SLOT_DEFAULT);
    found.begin("receiver");
    let limit_bytes = limit(found, server)?;
    let Some(slot) = slot(server, name, in_recovery)? else {
        found.fail(
            "slot",
            format!("\"{name}\" does not exist"),
            "the server removes WAL before it is received",
            "pitr receive --create-slot",
        );
        return Ok(());
    };
    if slot.is_lost {
        found.fail(
            "lost WAL",
            format!("slot \"{name}\" has lost WAL that it was to keep"),
            "it grew beyond max_slot_wal_keep_size while nobody received",
            "pitr receive --drop-slot, then pitr receive --create-slot; then take a base backup: pitr backup",
        );
        return Ok(());
    }
    if slot.is_active {
        found.ok("slot", format!("\"{name}\", in use"));
    } else {
        found.fail(
            "slot",
            format!("\"{name}\", not in use"),
            "nothing is received, and the server keeps all WAL for the slot",
            "start pitr receive; if it runs, its messages say why it does not stream",
        );
    }
    kept(found, slot.kept_bytes, limit_bytes, pgdata);
    Ok(())
}

/// Looks at slots of others: without a limit, one that nobody reads fills the disk of pg_wal.
pub(super) fn others(
    found: &mut Findings,
    server: &mut Server,
    cluster: &Cluster,
    in_recovery: bool,
) -> Result<()> {
    let own = cluster.receive.slot.as_deref().unwrap_or(SLOT_DEFAULT);
    let end = end_of_wal(in_recovery);
    // A slot in use is far behind once it keeps more than the server keeps by itself: max_wal_size, in MiB.
    let rows = server.query(&format!(
        "select slot_name, active, kept from (select slot_name, active, \
         greatest(0, pg_catalog.pg_wal_lsn_diff({end}, restart_lsn))::bigint as kept \
         from pg_catalog.pg_replication_slots where not temporary and restart_lsn is not null and slot_name <> '{own}') s \
         where (not active or kept > (select setting::bigint << 20 from pg_catalog.pg_settings where name = 'max_wal_size')) \
         and (select setting from pg_catalog.pg_settings where name = 'max_slot_wal_keep_size') = '-1' order by kept desc, slot_name"
    ))?;
    let mut shown = Vec::new();
    for row in 0..rows.rows.len() {
        let name = rows.text(row, 0)?.unwrap_or_default();
        let used = match rows.text(row, 1)? {
            Some("t") => "in use",
            _ => "not in use",
        };
        let kept: u64 = rows.value(row, 2)?;
        shown.push(format!("\"{name}\" ({used}) keeps {}", human::size(kept)));
    }
    let Some(first) = rows.text(0, 0).ok().flatten().filter(|_| !shown.is_empty()) else {
        return Ok(());
    };
    found.begin("slots");
    found.warn(
        "slots of others",
        shown.join(", "),
        "max_slot_wal_keep_size is -1: pg_wal grows until its disk is full, and then the server stops",
        format!("alter system set max_slot_wal_keep_size = '…GB'; select pg_reload_conf(); a slot that nobody needs: select pg_drop_replication_slot('{first}')"),
    );
    Ok(())
}

/// The end of WAL, as SQL.
fn end_of_wal(in_recovery: bool) -> &'static str {
    match in_recovery {
        true => "pg_catalog.pg_last_wal_replay_lsn()",
        false => "pg_catalog.pg_current_wal_lsn()",
    }
}

/// The most WAL that slots may keep; `None` without a limit.
fn limit(found: &mut Findings, server: &mut Server) -> Result<Option<u64>> {
    // In MiB; -1 for none (src/backend/utils/misc/guc_tables.c).
    let rows = server.query(
        "select setting from pg_catalog.pg_settings where name = 'max_slot_wal_keep_size'",
    )?;
    let megabytes: i64 = rows.value(0, 0)?;
    match u64::try_from(megabytes) {
        Ok(megabytes) => {
            let bytes = megabytes.saturating_mul(1 << 20);
            found.ok("max_slot_wal_keep_size", human::size(bytes));
            Ok(Some(bytes))
        }
        Err(_) => {
            found.warn(
                "max_slot_wal_keep_size",
                "no limit",
                "while nobody receives, pg_wal grows until its disk is full, and then the server stops",
                "leave it room for the longest absence of the receiver, less than the disk has: alter system set max_slot_wal_keep_size = '…GB'; select pg_reload_conf()",
            );
            Ok(None)
        }
    }
}

fn slot(server: &mut Server, name: &str, in_recovery: bool) -> Result<Option<Slot>> {
    let end = end_of_wal(in_recovery);
    // Names of slots have no character that would need a quote.
    let rows = server.query(&format!(
        "select active, wal_status = 'lost', greatest(0, coalesce(pg_catalog.pg_wal_lsn_diff({end}, restart_lsn), 0))::bigint \
         from pg_catalog.pg_replication_slots where slot_name = '{name}'"
    ))?;
    if rows.rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(Slot {
        is_active: rows.text(0, 0)? == Some("t"),
        is_lost: rows.text(0, 1)? == Some("t"),
        kept_bytes: rows.value(0, 2)?,
    }))
}

/// How much of what it may take the kept WAL takes: of the limit, and of the disk.
fn kept(found: &mut Findings, kept_bytes: u64, limit_bytes: Option<u64>, pgdata: Option<&Path>) {
    let room = pgdata
        .and_then(|pgdata| rustix::fs::statvfs(pgdata.join("pg_wal")).ok())
        .filter(|stat| stat.f_blocks > 0)
        .map(|stat| kept_bytes.saturating_add(stat.f_bavail.saturating_mul(stat.f_frsize)));
    let of_limit = limit_bytes.map(|limit| (percent(kept_bytes, limit), "max_slot_wal_keep_size"));
    let of_disk = room.map(|room| (percent(kept_bytes, room), "the disk of pg_wal"));
    let (share, of) = of_limit.max(of_disk).unwrap_or((0, "no limit"));
    let value = format!("{}, {share} % of {of}", human::size(kept_bytes));
    let cause = "the receiver is away or does not keep up; at 100 % the slot loses WAL, or the server stops";
    let fix = "start pitr receive, or see why it is behind: pitr info";
    match share {
        FAIL_PERCENT.. => found.fail("kept WAL", value, cause, fix),
        WARN_PERCENT.. => found.warn("kept WAL", value, cause, fix),
        _ => found.ok("kept WAL", value),
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::doctor::Level;

    #[test]
    fn w12_kept_wal_is_a_warning_from_half_of_the_limit_and_a_failure_from_nine_tenths() {
        let level = |kept_bytes| {
            let mut found = Findings::default();
            kept(&mut found, kept_bytes, Some(1000), None);
            found.all[0].level
        };
        assert_eq!(level(499), Level::Ok);
        assert_eq!(level(500), Level::Warn);
        assert_eq!(level(899), Level::Warn);
        assert_eq!(level(900), Level::Fail);
        assert_eq!(level(u64::MAX), Level::Fail);
    }
}
