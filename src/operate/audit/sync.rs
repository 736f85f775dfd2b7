//! Records that one repository has and another lacks.

use std::collections::BTreeSet;

use serde::Serialize;

use super::readable;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::repo::audit;
use crate::repo::audit_chain::Chains;
use crate::repo::repository::Repository;
use crate::store::Store;

/// Records that a repository lacked.
#[derive(Debug, Serialize)]
pub struct Brought {
    /// The repository that gives.
    pub from: String,
    /// The repository that gets.
    pub to: String,
    /// Records that were copied, or would be.
    pub records: u64,
}

/// Copies the records that the other side lacks, but for those that have expired there, or are old enough for it.
///
/// # Errors
/// Those of the stores; `Interrupted`. A record that cannot be read is a warning.
pub fn bring(
    session: &Session,
    (from_name, from): (&str, &Repository),
    (to_name, to): (&str, &Repository),
    is_dry_run: bool,
) -> Result<Option<Brought>> {
    if from.marker().key_set != to.marker().key_set {
        return Ok(None);
    }
    let (from, to) = (from.store(), to.store());
    let keep = session.settings()?.audit.keep();
    let before = session.host.now().saturating_sub(keep);
    let mut there = audit::names(to)?.chains;
    let mut gone = None;
    let mut records = 0;
    for (writer, numbers) in audit::names(from)?.chains {
        let known = there.remove(&writer).unwrap_or_default();
        let known: BTreeSet<u64> = known.into_keys().collect();
        let first = known.first().copied().unwrap_or(u64::MAX);
        for seq in numbers.into_keys().filter(|seq| !known.contains(seq)) {
            session.host.check_stop()?;
            // Only a record before all others of its chain can have expired.
            if seq < first && gone_up_to((to_name, to), session, (&mut gone, &writer))? >= seq {
                continue;
            }
            let told = |e: &Error| session.warn(&format!("not copied from \"{from_name}\": {e}"));
            let read = readable(from, (&writer, seq), &told)?;
            if read.is_some_and(|read| read.record.time >= before)
                && (is_dry_run || audit::copy(from, to, &writer, seq)?)
            {
                records += 1;
            }
        }
    }
    Ok((records > 0).then(|| Brought {
        from: from_name.to_owned(),
        to: to_name.to_owned(),
        records,
    }))
}

/// The last record of a chain that a repository's own records let expire. They are read once, and only where it matters.
fn gone_up_to(
    (name, store): (&str, &dyn Store),
    session: &Session,
    (known, writer): (&mut Option<Chains>, &str),
) -> Result<u64> {
    let chains = match known.take() {
        Some(chains) => chains,
        None => Chains::read(name, store, &session.host)?,
    };
    Ok(known.insert(chains).expired_up_to(writer))
}
