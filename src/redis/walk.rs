//! The stored bytes of a history, from a position on.

use super::history::History;
use super::log::{self, Cut, LogKeys, SEGMENT_BYTES, Stored, segment_of};
use crate::error::Result;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// Returns the object that reaches furthest from a position on, with the bytes there; none where no stored byte follows.
///
/// # Errors
/// `Damaged`; those of the store.
pub fn object_at(
    repository: &Repository,
    keys: &LogKeys<'_>,
    position: u64,
) -> Result<Option<Stored>> {
    let segment = segment_of(position);
    let whole = Stored::open(repository, keys, &keys.whole(segment)?)?;
    if let Some(whole) = whole.filter(|whole| whole.from <= position) {
        return Ok(Some(whole));
    }
    let found = log::increments(repository, keys, segment)?;
    let holds = found
        .iter()
        .filter(|(from, to)| *from <= position && position < *to);
    let Some((from, to)) = holds.max_by_key(|(_, to)| *to).copied() else {
        return Ok(None);
    };
    Stored::open(repository, keys, &keys.increment(from, to)?)
}

/// The segments of a history of which something is stored, ascending.
///
/// # Errors
/// Those of the store.
pub fn segments(repository: &Repository, keys: &LogKeys<'_>) -> Result<Vec<u64>> {
    let store = repository.store();
    let mut segments = Vec::new();
    for folder in store.list(keys.prefix())? {
        if folder.is_prefix && folder.name.len() == 8 {
            let listed = store.list(&format!("{}/{}", keys.prefix(), folder.name))?;
            segments.extend(listed.iter().filter_map(|l| log::parse_position(&l.name)));
        }
    }
    let open = store.list(&keys.open_segments())?;
    segments.extend(open.iter().filter_map(|l| log::parse_position(&l.name)));
    segments.retain(|segment| segment.is_multiple_of(SEGMENT_BYTES));
    segments.sort_unstable();
    segments.dedup();
    Ok(segments)
}

/// The last stored place at which a history may be gone on with.
///
/// # Errors
/// `Damaged`; those of the store.
pub fn last_cut(repository: &Repository, keys: &LogKeys<'_>) -> Result<Option<Cut>> {
    for segment in segments(repository, keys)?.into_iter().rev() {
        if let Some(whole) = Stored::open(repository, keys, &keys.whole(segment)?)? {
            if let Some(cut) = whole.summary.last {
                return Ok(Some(cut));
            }
            continue;
        }
        for (from, to) in log::increments(repository, keys, segment)?
            .into_iter()
            .rev()
        {
            let stored = Stored::open(repository, keys, &keys.increment(from, to)?)?;
            if let Some(cut) = stored.and_then(|stored| stored.summary.last) {
                return Ok(Some(cut));
            }
        }
    }
    Ok(None)
}

/// The histories of a server of which something is stored.
///
/// # Errors
/// `Damaged`; those of the store.
pub fn histories(repository: &Repository, scope: &Scope) -> Result<Vec<(String, History)>> {
    let mut found = Vec::new();
    for listed in repository.store().list(&log::logs(scope))? {
        if listed.is_prefix && is_replid(&listed.name) {
            let keys = LogKeys::new(scope, &listed.name);
            let history = History::read(repository, &keys)?;
            found.extend(history.map(|history| (listed.name.clone(), history)));
        }
    }
    Ok(found)
}

fn is_replid(name: &str) -> bool {
    name.len() == 40
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
