//! Anchors: a record that names the newest record of every chain, and a line to keep elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{About, Log, Spool, readable};
use crate::config::{Records, Settings};
use crate::err;
use crate::error::Result;
use crate::operate::counters;
use crate::operate::session::Session;
use crate::repo::audit::{self, Hash, Head, Outcome, Record};
use crate::store::Store;
use crate::text::hex;

/// Chains that an anchor names at most: those with the newest records.
const CHAINS_MAX: usize = 4_000;

/// An anchor that was made.
#[derive(Debug, Serialize)]
pub struct Anchored {
    /// The line that proves all of it: `<writer>/<seq>:<hash>`.
    pub anchor: String,
    /// The chains that it names.
    pub chains: usize,
    /// The repositories that have it.
    pub repositories: Vec<String>,
}

/// Makes an anchor of what the repositories hold.
///
/// # Errors
/// `Config` where nothing is recorded; the first failure when no repository can be read.
pub fn anchor(session: &Session) -> Result<Anchored> {
    let log = Log::open(session)?.ok_or_else(|| {
        err!(Config, "no audit log is configured").hint("Set records = \"on\" in [audit].")
    })?;
    log.send();
    let mut heads = BTreeMap::new();
    let mut failed = None;
    for configured in &log.settings.repositories {
        let read = session.open(configured);
        if let Err(e) = read.and_then(|repository| newest(repository.store(), &mut heads)) {
            session.warn(&format!(
                "the anchor leaves out repository \"{}\": {e}",
                configured.name
            ));
            failed = failed.or(Some(e));
        }
    }
    if let Some(e) = failed.filter(|_| heads.is_empty()) {
        return Err(e);
    }
    let about = About {
        command: counters::AUDIT_ANCHOR,
        object: None,
    };
    let record = Record {
        outcome: Outcome::Noted,
        heads,
        ..about.record(session)
    };
    let chains = record.heads.len();
    let record = log.append(record)?;
    let bytes = audit::encode(&record)?;
    let (_, hash) = audit::decode(&record.writer, record.seq, &bytes)?;
    let has_it = log.settings.repositories.iter();
    let has_it = has_it.filter(|one| log.spool.is_sent(one, &record));
    let repositories: Vec<String> = has_it.map(|one| one.name.clone()).collect();
    if !repositories.is_empty() {
        counters::succeeded(session, counters::AUDIT_ANCHOR, "");
    }
    Ok(Anchored {
        anchor: line(&record, &hash),
        chains,
        repositories,
    })
}

/// The line of the newest record of this host that a repository has, for what leaves the host anyway: notices and reports. It opens no repository. None
/// where nothing is recorded.
///
/// # Errors
/// Those of the system.
pub fn head(session: &Session, settings: &Settings) -> Result<Option<String>> {
    let place = settings.state_dir(&session.environment);
    let place = place.filter(|_| settings.audit.records != Records::Off);
    let spool = place.and_then(|place| Spool::existing(&place, settings));
    let head = spool.map_or(Ok(None), |spool| spool.head(&settings.repositories))?;
    Ok(head.map(|(record, hash)| line(&record, &hash)))
}

fn line(record: &Record, hash: &Hash) -> String {
    format!("{}/{}:{}", record.writer, record.seq, hex(hash))
}

/// Adds the newest record of each chain, where it is newer than what is known. A doubted or damaged one names nothing.
fn newest(store: &dyn Store, heads: &mut BTreeMap<String, Head>) -> Result<()> {
    let mut chains: Vec<_> = audit::names(store)?.chains.into_iter().collect();
    let last = |numbers: &audit::Numbers| {
        let (seq, meta) = numbers.last_key_value()?;
        Some((meta.map(|meta| meta.modified), *seq))
    };
    chains.sort_by_key(|(_, numbers)| std::cmp::Reverse(last(numbers)));
    for (writer, numbers) in chains.into_iter().take(CHAINS_MAX) {
        let Some((_, seq)) = last(&numbers) else {
            continue;
        };
        let is_known = heads.get(&writer).is_some_and(|known| known.seq >= seq);
        let read = readable(store, (&writer, seq), &|_| ())?;
        if let Some(stored) = read.filter(|stored| !is_known && !stored.is_doubted) {
            let hash = hex(&stored.hash);
            heads.insert(writer, Head { seq, hash });
        }
    }
    Ok(())
}
