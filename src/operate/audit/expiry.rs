//! Records that are old enough go, the oldest of each chain first, after a record says so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{About, Log, readable};
use crate::config;
use crate::error::{Code, Error, Result};
use crate::host::Host;
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
    let own = log.spool.writer()?;
    let own = own.as_deref();
    let (mut due, recent) = due((store, own), log.settings.audit.keep(), &session.host)?;
    if due.is_empty() {
        return Ok(0);
    }
    clock::check(store, now)?;
    let expired = due.iter().filter_map(|(writer, seqs)| {
        let last = seqs.last()?;
        Some((writer.clone(), *last))
    });
    let expired: BTreeMap<String, u64> = expired.collect();
    let stay = |e: &Error| {
        session.warn(&format!(
            "records of the audit log that are old enough stay in repository \"{}\": {e}",
            configured.name
        ));
    };
    let mut count = 0;
    let said = said((store, own), &recent, (&expired, &due))?;
    // More are due each day: where the oldest may not go, no record says so of the others.
    if said == Said::Oldest {
        let oldest = due.iter().filter_map(|(writer, seqs)| {
            let first = seqs.first()?;
            Some((writer.clone(), vec![*first]))
        });
        let (gone, denied) = delete(session, store, &oldest.collect())?;
        if gone == 0 {
            if let Some(e) = &denied {
                stay(e);
            }
            return Ok(0);
        }
        count += gone;
        // Those that are gone are not counted twice; one that stays is asked for again.
        for (writer, seqs) in &mut due {
            let (left, _) = audit::numbers(store, writer)?;
            seqs.retain(|seq| left.contains_key(seq));
        }
    }
    // Without that record the beginning of the chains would look as if somebody had removed it.
    if said != Said::All && !say(session, &log, configured, store, expired)? {
        session.warn(&format!(
            "no record of the audit log expired in repository \"{}\": it takes no record of that",
            configured.name
        ));
        return Ok(count);
    }
    let (others, denied) = delete(session, store, &due)?;
    if let Some(e) = &denied {
        stay(e);
    }
    Ok(count + others)
}

/// Records that are old enough, from the beginning of each chain.
type Due = BTreeMap<String, Vec<u64>>;

/// So many records of a chain are looked at in one run: each is read, and those of the next run are fewer.
const OLD_MAX: usize = 100_000;

/// So many of this host's last records are looked at for one that says the same.
const LOOKED_AT: usize = 64;

/// The extent to which a record of this host tells already of what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// One says that these expire.
    All,
    /// One says so of the oldest of each chain.
    Oldest,
    Nothing,
}

/// Looks how far a record of this host in the repository says already that these expire: a store that keeps its records gets no more of them.
fn said(
    (store, own): (&dyn Store, Option<&str>),
    recent: &[u64],
    (expired, due): (&BTreeMap<String, u64>, &Due),
) -> Result<Said> {
    let Some(writer) = own else {
        return Ok(Said::Nothing);
    };
    let mut found = Said::Nothing;
    for seq in recent {
        let read = readable(store, (writer, *seq), &|_| ())?;
        let Some(read) = read.filter(|read| !read.is_doubted) else {
            continue;
        };
        if read.record.expired == *expired {
            return Ok(Said::All);
        }
        if covers(&read.record.expired, due) {
            found = Said::Oldest;
        }
    }
    Ok(found)
}

/// Pure: whether a record says of the oldest of each chain that it expires.
fn covers(said: &BTreeMap<String, u64>, due: &Due) -> bool {
    due.iter().all(|(writer, seqs)| {
        let last = said.get(writer);
        seqs.first()
            .is_none_or(|first| last.is_some_and(|last| first <= last))
    })
}

/// Records that these expire; `false` where the repository does not take that.
fn say(
    session: &Session,
    log: &Log<'_>,
    configured: &config::Repository,
    store: &dyn Store,
    expired: BTreeMap<String, u64>,
) -> Result<bool> {
    let about = About {
        command: "expire",
        object: Some(configured.name.clone()),
    };
    let record = Record {
        outcome: Outcome::Noted,
        expired,
        ..about.record(session)
    };
    let record = log.append(record)?;
    Ok(audit::read(store, &record.writer, record.seq)?.is_some())
}

/// Deletes the records; how many, and why others stay where this host may not delete them.
fn delete(session: &Session, store: &dyn Store, due: &Due) -> Result<(u64, Option<Error>)> {
    let (mut count, mut denied) = (0, None);
    for (writer, seqs) in due {
        for seq in seqs {
            session.host.check_stop()?;
            match store.delete(&audit::key(writer, *seq)?) {
                Ok(_) => count += 1,
                // A store that still keeps the oldest keeps the younger ones as well.
                Err(e) if e.code() == Code::Locked => break,
                Err(e) if e.code() == Code::Denied => {
                    denied = Some(e);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok((count, denied))
}

/// Returns the records that are old enough, and the last ones of this host's chain that stay, newest first: one of them may say so already. It goes
/// chain by chain, for a log that is too long for one look must become shorter, too.
fn due(
    (store, own): (&dyn Store, Option<&str>),
    keep: Duration,
    host: &Host,
) -> Result<(Due, Vec<u64>)> {
    let (mut due, mut recent) = (Due::new(), Vec::new());
    let (writers, _) = audit::writers(store)?;
    for writer in writers {
        let (numbers, _) = audit::numbers(store, &writer)?;
        let seqs = old((store, &writer), (&numbers, OLD_MAX), keep, host)?;
        if own == Some(writer.as_str()) {
            // One that expires itself says nothing any more.
            let first = seqs.last().map_or(0, |last| last.saturating_add(1));
            let stay = numbers.range(first..).rev().take(LOOKED_AT);
            recent = stay.map(|(seq, _)| *seq).collect();
        }
        if !seqs.is_empty() {
            due.insert(writer, seqs);
        }
    }
    Ok((due, recent))
}

/// The first `most` of these records that are old enough.
fn old(
    (store, writer): (&dyn Store, &str),
    (numbers, most): (&Numbers, usize),
    keep: Duration,
    host: &Host,
) -> Result<Vec<u64>> {
    let now = host.now();
    let before = now.saturating_sub(keep);
    let mut seqs = Vec::new();
    for (seq, meta) in numbers.iter().take(most) {
        host.check_stop()?;
        let seq = *seq;
        let meta = match meta {
            None => store.head(&audit::key(writer, seq)?)?,
            known => *known,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::store::file::FileStore;

    #[test]
    fn x49_a_run_looks_at_so_many_records_of_a_chain_and_hears_the_wish_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path(), 1).unwrap();
        // A record that cannot be read has the store's time alone.
        for seq in 1..=5 {
            crate::store::put(&store, &audit::key("one", seq).unwrap(), b"x").unwrap();
        }
        let (numbers, _) = audit::numbers(&store, "one").unwrap();
        let host = Host::still("2100-01-01T00:00:00Z".parse().unwrap(), 1);
        let old = |most: usize| old((&store, "one"), (&numbers, most), Duration::ZERO, &host);
        assert_eq!(old(3).unwrap(), [1, 2, 3]);
        assert_eq!(old(9).unwrap(), [1, 2, 3, 4, 5]);
        host.stop.store(true, Ordering::Relaxed);
        assert_eq!(old(9).unwrap_err().code(), Code::Interrupted);
    }

    #[test]
    fn x45_a_record_covers_what_is_due_by_the_oldest_of_each_chain() {
        let due = |first: u64, second: u64| {
            let chain = |name: &str, from: u64| (name.to_owned(), (from..from + 9).collect());
            BTreeMap::from([chain("a", first), chain("b", second)])
        };
        let said = BTreeMap::from([("a".to_owned(), 4), ("b".to_owned(), 2)]);
        assert!(covers(&said, &due(1, 1)) && covers(&said, &due(4, 2)));
        assert!(!covers(&said, &due(5, 1)) && !covers(&said, &due(1, 3)));
        assert!(!covers(&BTreeMap::new(), &due(1, 1)));
    }
}
