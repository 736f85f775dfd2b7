//! The plan beside what the server did.

use std::path::Path;

use super::Checked;
use crate::err;
use crate::error::{Code, Result};
use crate::operate::quarantine::Quarantined;
use crate::operate::server::Server;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::recovery::Plan;
use crate::repo::drilled::Phase;

/// The server's end of recovery.
pub(in crate::operate) struct Compared {
    /// The position at which its new timeline begins.
    pub(in crate::operate) reached: Option<Lsn>,
    /// The new timeline.
    pub(in crate::operate) timeline: Option<TimelineId>,
    pub(in crate::operate) checks: Vec<Checked>,
}

/// Compares the stop, and the transactions on both sides of it.
///
/// # Errors
/// Errors of the session.
pub(in crate::operate) fn compare(
    server: &mut Quarantined,
    data: &Path,
    plan: &Plan,
) -> Result<Compared> {
    let mut session = server.connect("template1")?;
    let (timeline, reached) = end(&mut session, data)?;
    let planned = plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
    let mut checks = vec![equal("stop LSN", planned, reached)];
    if let Some(commit) = plan.last_commit {
        let found = status(&mut session, commit.xid)?;
        checks.push(holds("last commit", found == "committed", || {
            format!("transaction {} is {found}", commit.xid)
        }));
    }
    if let Some(commit) = plan.first_excluded_commit {
        let found = status(&mut session, commit.xid)?;
        checks.push(holds("first excluded commit", found != "committed", || {
            format!("transaction {} is committed", commit.xid)
        }));
    }
    Ok(Compared {
        reached,
        timeline: Some(timeline),
        checks,
    })
}

fn equal(name: &str, planned: Option<Lsn>, reached: Option<Lsn>) -> Checked {
    let shown = |lsn: Option<Lsn>| lsn.map_or("none".to_owned(), |lsn| lsn.to_string());
    let is_equal = planned.is_some() && planned == reached;
    holds(name, is_equal, || {
        let (planned, reached) = (shown(planned), shown(reached));
        format!("the plan has {planned}, the server ended recovery at {reached}")
    })
}

fn holds(name: &str, passed: bool, found: impl FnOnce() -> String) -> Checked {
    Checked::new(Phase::Compare, name.to_owned(), (!passed).then(found))
}

/// The timeline that the server is on, and where it began.
fn end(session: &mut Server, data: &Path) -> Result<(TimelineId, Option<Lsn>)> {
    let rows = session.query("select pg_walfile_name(pg_current_wal_lsn())")?;
    let name = rows.text(0, 0)?.unwrap_or_default();
    let number = name.get(..8).and_then(|t| u32::from_str_radix(t, 16).ok());
    let timeline = number.and_then(TimelineId::new);
    let timeline = timeline.ok_or_else(|| err!(Server, "the server names no WAL file"))?;
    let path = data.join("pg_wal").join(timeline.history_file_name());
    let Ok(text) = std::fs::read(path) else {
        return Ok((timeline, None));
    };
    let history = History::parse(timeline, &text)?;
    Ok((timeline, history.parent().map(|(_, lsn)| lsn)))
}

/// How a transaction ended, by the server's word. The id has 32 bits; the server's next one tells its epoch.
fn status(session: &mut Server, xid: u32) -> Result<String> {
    let rows = session.query("select pg_snapshot_xmax(pg_current_snapshot())")?;
    let next: u64 = rows.value(0, 0)?;
    let full = full_xid(next, xid);
    let asked = session.query(&format!("select pg_xact_status('{full}'::xid8)"));
    match asked {
        Ok(rows) => Ok(rows.text(0, 0)?.unwrap_or("too old to tell").to_owned()),
        // "transaction ID … is in the future"
        Err(e) if e.code() == Code::Server => Ok("not there".to_owned()),
        Err(e) => Err(e),
    }
}

/// The 64-bit id of a transaction next to `next`.
fn full_xid(next: u64, xid: u32) -> u64 {
    let low = u32::try_from(next & u64::from(u32::MAX)).unwrap_or_default();
    let distance = xid.wrapping_sub(low).cast_signed();
    next.saturating_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_gets_the_epoch_next_to_it() {
        assert_eq!(full_xid(750, 742), 742);
        assert_eq!(full_xid(750, 760), 760);
        assert_eq!(full_xid((1 << 32) + 5, u32::MAX), u64::from(u32::MAX));
        assert_eq!(full_xid(u64::from(u32::MAX) - 1, 4), (1 << 32) + 4);
    }

    #[test]
    fn another_stop_than_planned_is_a_finding() {
        let lsn = |n| Some(Lsn(n));
        assert!(equal("stop", lsn(7), lsn(7)).passed);
        let found = equal("stop", lsn(7), lsn(8)).found.unwrap();
        assert_eq!(found, "the plan has 0/7, the server ended recovery at 0/8");
        assert!(!equal("stop", None, None).passed);
    }
}
