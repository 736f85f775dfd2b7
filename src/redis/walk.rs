//! The stored bytes of a history, from a position on.

use std::collections::BTreeMap;

use super::history::Parent;
use super::log::{self, Cut, Event, Mark, Stored};
use crate::error::{Error, Result};
use crate::repo::log_keys::{self, LogKeys, SEGMENT_BYTES, segment_of};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::store::Key;

/// The keys of the objects that have the byte at a position, in the order in which they count: the whole segment, then the increment that reaches furthest.
fn candidates(repository: &Repository, keys: &LogKeys, position: u64) -> Result<Vec<Key>> {
    let segment = segment_of(position);
    let mut found = vec![keys.whole(segment)?];
    let mut ranges = log::increments(repository, keys, segment)?;
    ranges.retain(|(from, to)| *from <= position && position < *to);
    ranges.sort_unstable_by_key(|(from, to)| (std::cmp::Reverse(*to), *from));
    for (from, to) in ranges {
        found.push(keys.increment(from, to)?);
    }
    Ok(found)
}

/// Reads from the first object that has the byte at a position and is whole; none where no stored byte follows. One that is damaged ends nothing where another
/// one has the same bytes.
///
/// # Errors
/// `Damaged` when all are; those of the store.
fn first_whole<T>(
    repository: &Repository,
    keys: &LogKeys,
    position: u64,
    read: &dyn Fn(&Stored) -> Result<T>,
) -> Result<Option<T>> {
    let mut damage: Option<Error> = None;
    for key in candidates(repository, keys, position)? {
        let found =
            Stored::open(repository, &key).and_then(|stored| stored.as_ref().map(read).transpose());
        match found {
            Ok(None) => {}
            Ok(Some(found)) => return Ok(Some(found)),
            Err(e) if e.is_damage() => {
                damage.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    damage.map_or(Ok(None), Err)
}

/// An object, as far as a plan reads it.
pub struct Seen {
    /// Its first position.
    pub from: u64,
    /// Behind its last byte.
    pub to: u64,
    /// Its first place at which a reading may begin.
    pub first_cut: Option<Cut>,
    /// When its bytes had arrived.
    pub marks: Vec<Mark>,
}

/// Looks at the object that counts for a position; none where no stored byte follows.
///
/// # Errors
/// `Damaged`; `Key` where it cannot be read; those of the store.
pub fn object_at(repository: &Repository, keys: &LogKeys, position: u64) -> Result<Option<Seen>> {
    first_whole(repository, keys, position, &|stored| seen(stored))
}

fn seen(stored: &Stored) -> Result<Seen> {
    Ok(Seen {
        from: stored.from,
        to: stored.to,
        first_cut: stored.summary()?.first,
        marks: stored.marks()?,
    })
}

/// Reads the object that counts for a position, and its bytes.
///
/// # Errors
/// As [`object_at`].
pub fn bytes_at(
    repository: &Repository,
    keys: &LogKeys,
    position: u64,
) -> Result<Option<(Seen, Vec<u8>)>> {
    first_whole(repository, keys, position, &|stored| {
        Ok((seen(stored)?, stored.bytes()?))
    })
}

/// Looks at the object that counts for a position, and at the commands that it names.
///
/// # Errors
/// As [`object_at`].
pub fn events_at(
    repository: &Repository,
    keys: &LogKeys,
    position: u64,
) -> Result<Option<(Seen, Vec<Event>)>> {
    first_whole(repository, keys, position, &|stored| {
        Ok((seen(stored)?, stored.events()?))
    })
}

/// The segments of a history of which something is stored, ascending, and whether they are stored whole.
///
/// # Errors
/// Those of the store.
pub fn segments(repository: &Repository, keys: &LogKeys) -> Result<BTreeMap<u64, bool>> {
    let store = repository.store();
    let mut segments = BTreeMap::new();
    for listed in store.list(&keys.open_segments())? {
        segments.extend(log_keys::parse_position(&listed.name).map(|segment| (segment, false)));
    }
    for folder in store.list(keys.prefix())? {
        if folder.is_prefix && folder.name.len() == 8 {
            let listed = store.list(&format!("{}/{}", keys.prefix(), folder.name))?;
            let named = listed.iter().map(|l| log_keys::parse_position(&l.name));
            segments.extend(named.flatten().map(|segment| (segment, true)));
        }
    }
    segments.retain(|segment, _| segment.is_multiple_of(SEGMENT_BYTES));
    Ok(segments)
}

/// The stored ranges of a history, ascending, without those that touch or overlap: between two of them is a gap.
///
/// # Errors
/// Those of the store.
pub fn ranges(repository: &Repository, keys: &LogKeys) -> Result<Vec<(u64, u64)>> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (segment, is_whole) in segments(repository, keys)? {
        let found = match is_whole {
            true => vec![(segment, segment.saturating_add(SEGMENT_BYTES))],
            false => log::increments(repository, keys, segment)?,
        };
        for (from, to) in found {
            match joined.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
    }
    Ok(joined)
}

/// The last stored place at which a history may be gone on with; known without the keys, too. An object that is damaged is passed over.
///
/// # Errors
/// `Damaged` where no object has one and some are damaged; those of the store.
pub fn last_cut(repository: &Repository, keys: &LogKeys) -> Result<Option<Cut>> {
    let mut damage: Option<Error> = None;
    for segment in segments(repository, keys)?.into_keys().rev() {
        let mut ranges = log::increments(repository, keys, segment)?;
        ranges.sort_unstable_by_key(|(_, to)| std::cmp::Reverse(*to));
        let increments = ranges.iter().map(|(from, to)| keys.increment(*from, *to));
        for key in std::iter::once(keys.whole(segment)).chain(increments) {
            let stored = Stored::open(repository, &key?);
            match stored.and_then(|s| s.map_or(Ok(None), |s| s.whole_cut())) {
                Ok(None) => {}
                Ok(cut) => return Ok(cut),
                Err(e) if e.is_damage() => {
                    damage.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
    }
    damage.map_or(Ok(None), Err)
}

/// The first mark of time of the bytes behind a position, and the last one of the history.
///
/// # Errors
/// As [`object_at`].
pub fn life(repository: &Repository, keys: &LogKeys, behind: u64) -> Result<Option<(Mark, Mark)>> {
    let ranges = ranges(repository, keys)?;
    let first = ranges.iter().find(|(_, to)| *to > behind);
    let (Some((from, _)), Some((_, end))) = (first, ranges.last()) else {
        return Ok(None);
    };
    let first = object_at(repository, keys, behind.max(*from))?;
    let first = first.and_then(|seen| seen.marks.into_iter().find(|m| m.position > behind));
    let last = object_at(repository, keys, end.saturating_sub(1))?;
    let last = last.and_then(|seen| seen.marks.last().copied());
    Ok(first.zip(last))
}

/// The history whose bytes arrived last, and when. One whose end is damaged is passed over, and `warn` hears of it.
///
/// # Errors
/// As [`object_at`], but for damage.
pub fn latest(
    repository: &Repository,
    scope: &Scope,
    warn: &dyn Fn(&str),
) -> Result<Option<(String, Mark)>> {
    let mut latest: Option<(String, Mark)> = None;
    for (replid, _) in histories(repository, scope)? {
        let life = match life(repository, &LogKeys::new(scope, &replid), 0) {
            Err(e) if e.is_damage() => {
                warn(&format!(
                    "when the last bytes of history {replid} arrived is not known: {e}"
                ));
                continue;
            }
            life => life?,
        };
        if let Some((_, last)) = life
            && latest
                .as_ref()
                .is_none_or(|(_, mark)| mark.arrived_us < last.arrived_us)
        {
            latest = Some((replid, last));
        }
    }
    Ok(latest)
}

/// A history of which something is stored, and those that it goes on from.
pub type Known = (String, Vec<Parent>);

/// The histories of a server of which something is stored.
///
/// # Errors
/// Those of the store.
pub fn histories(repository: &Repository, scope: &Scope) -> Result<Vec<Known>> {
    let mut found = Vec::new();
    for listed in repository.store().list(&log_keys::logs(scope))? {
        if listed.is_prefix && log_keys::is_replid(&listed.name) {
            let keys = LogKeys::new(scope, &listed.name);
            found.push((listed.name.clone(), Parent::of(repository, &keys)?));
        }
    }
    Ok(found)
}
