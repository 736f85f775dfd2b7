//! Records that are old enough go, the oldest of each chain first, after a record says so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{About, Log, readable};
use crate::config;
use crate::error::{Code, Result};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::audit::{self, Numbers, Outcome, Record};
use crate::repo::clock;
use crate::store::Store;

/// Deletes the records of a repository that are older than the configuration wants; their number. Nothing goes where nothing is recorded.
///
/// # Errors
/// `Refused` when the clocks of host and store differ; those of the store.
pub fn expire(
    session: &Session,
    configured: &config::Repository,
    store: &dyn Store,
) -> Result<u64> {
    let Some(log) = Log::open(session)? else {
        return Ok(0);
    };
    let now = session.host.now();
    let due = due(store, log.settings.audit.keep(), now)?;
    if due.is_empty() {
        return Ok(0);
    }
    clock::check(store, now)?;
    let about = About {
        command: "expire",
        object: Some(configured.name.clone()),
    };
    let expired = due.iter().filter_map(|(writer, seqs)| {
        let last = seqs.last()?;
        Some((writer.clone(), *last))
    });
    let record = Record {
        outcome: Outcome::Noted,
        expired: expired.collect(),
        ..about.record(session)
    };
    let record = log.append(record)?;
    // Without that record the beginning of the chains would look as if somebody had removed it.
    if audit::read(store, &record.writer, record.seq)?.is_none() {
        session.warn(&format!(
            "no record of the audit log expired in repository \"{}\": it takes no record of that",
            configured.name
        ));
        return Ok(0);
    }
    let mut count = 0;
    for (writer, seqs) in &due {
        for seq in seqs {
            session.host.check_stop()?;
            match store.delete(&audit::key(writer, *seq)?) {
                Ok(_) => count += 1,
                // A store that still keeps the oldest keeps the younger ones as well.
                Err(e) if e.code() == Code::Locked => break,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(count)
}

/// The records that are old enough, from the beginning of each chain.
fn due(store: &dyn Store, keep: Duration, now: TimestampTz) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut due = BTreeMap::new();
    for (writer, numbers) in audit::names(store)?.chains {
        let seqs = old(store, &writer, numbers, now.saturating_sub(keep), now)?;
        if !seqs.is_empty() {
            due.insert(writer, seqs);
        }
    }
    Ok(due)
}

fn old(
    store: &dyn Store,
    writer: &str,
    numbers: Numbers,
    before: TimestampTz,
    now: TimestampTz,
) -> Result<Vec<u64>> {
    let mut seqs = Vec::new();
    for (seq, meta) in numbers {
        let meta = match meta {
            None => store.head(&audit::key(writer, seq)?)?,
            known => known,
        };
        // One that somebody deletes meanwhile is gone.
        let Some(stored) = meta.map(|meta| meta.modified) else {
            continue;
        };
        if stored >= before || !is_old(store, writer, seq, before, now)? {
            break;
        }
        seqs.push(seq);
    }
    Ok(seqs)
}

/// Whether a record's own time lets it go as well. A clock that was ahead keeps none, and one that cannot be read has no time.
fn is_old(
    store: &dyn Store,
    writer: &str,
    seq: u64,
    before: TimestampTz,
    now: TimestampTz,
) -> Result<bool> {
    let is_old = |own: TimestampTz| {
        let is_ahead = own > now.saturating_add(clock::MAY_DIFFER);
        is_ahead || own < before
    };
    let stored = readable(store, (writer, seq), &|_| ())?;
    Ok(stored.is_none_or(|stored| is_old(stored.record.time)))
}
