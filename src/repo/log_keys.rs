//! Keys of the log of an aux scope, and what lies under them (format, section 16.7).

use std::collections::{BTreeMap, BTreeSet};

use super::container::{Container, Kind};
use super::json;
use super::runs::Runs;
use super::scope::Scope;
use crate::err;
use crate::error::Result;
use crate::pg::segment::SegmentNumber;
use crate::store::{Key, Meta, Store};
use crate::text::is_hex;

/// The length of a whole segment.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// Keys of a history's log.
pub struct LogKeys {
    prefix: String,
}

impl LogKeys {
    /// Those of a history.
    pub fn new(scope: &Scope, replid: &str) -> LogKeys {
        LogKeys {
            prefix: format!("{}/{replid}", logs(scope)),
        }
    }

    /// The history's own object.
    ///
    /// # Errors
    /// `Damaged` when the replication id breaks the key grammar.
    pub fn history(&self) -> Result<Key> {
        Key::new(format!("{}/history", self.prefix))
    }

    /// Says that the history begins with so many bytes of another one.
    ///
    /// # Errors
    /// As [`LogKeys::history`].
    pub fn parent(&self, parent: &str, fork: u64) -> Result<Key> {
        Key::new(format!(
            "{}/{parent}-{}",
            self.parents(),
            position_name(fork)
        ))
    }

    /// Below it is what says so.
    pub fn parents(&self) -> String {
        format!("{}/parents", self.prefix)
    }

    /// Says why bytes are received from a position on, and none of those before it.
    ///
    /// # Errors
    /// As [`LogKeys::history`].
    pub fn beginning(&self, position: u64) -> Result<Key> {
        Key::new(format!("{}/{}", self.beginnings(), position_name(position)))
    }

    /// Below it is what says so.
    pub fn beginnings(&self) -> String {
        format!("{}/begins", self.prefix)
    }

    /// The whole segment that begins at a position.
    ///
    /// # Errors
    /// As [`LogKeys::history`].
    pub fn whole(&self, segment: u64) -> Result<Key> {
        let name = position_name(segment);
        let folder = name.get(..8).unwrap_or_default();
        Key::new(format!("{}/{folder}/{name}", self.prefix))
    }

    /// Below it are folders of whole segments, and the increments.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Below it are the segments that have increments.
    pub fn open_segments(&self) -> String {
        format!("{}/open", self.prefix)
    }

    /// Below it are the increments of a segment.
    pub fn increments(&self, segment: u64) -> String {
        format!("{}/open/{}", self.prefix, position_name(segment))
    }

    /// An increment.
    ///
    /// # Errors
    /// As [`LogKeys::history`].
    pub fn increment(&self, from: u64, to: u64) -> Result<Key> {
        let folder = self.increments(segment_of(from));
        Key::new(format!(
            "{folder}/{}-{}",
            position_name(from),
            position_name(to)
        ))
    }

    /// The name that an object of a segment has inside: with the scope, so that none passes for one of another server.
    pub fn name(&self, segment: u64) -> String {
        format!("{}/{}", self.prefix, position_name(segment))
    }
}

/// Below it are the histories of a server.
pub fn logs(scope: &Scope) -> String {
    format!("{}/log", scope.prefix())
}

/// The segment in which a position lies.
pub fn segment_of(position: u64) -> u64 {
    position - position % SEGMENT_BYTES
}

/// The name of a position in a key.
pub fn position_name(position: u64) -> String {
    format!("{position:016X}")
}

/// Whether a text can be the name of a history.
pub fn is_replid(name: &str) -> bool {
    is_hex(name, 40)
}

/// Reads the name of a position.
pub fn parse_position(name: &str) -> Option<u64> {
    let position = u64::from_str_radix(name, 16).ok()?;
    (position_name(position) == name).then_some(position)
}

/// Reads the name of a record of a parent: the parent, and the position.
pub fn parse_parent(name: &str) -> Option<(&str, u64)> {
    let (replid, fork) = name.split_once('-')?;
    is_replid(replid).then_some(())?;
    Some((replid, parse_position(fork)?))
}

/// Reads the name of an increment: its first position, and the one behind its last byte.
pub fn parse_range(name: &str) -> Option<(u64, u64)> {
    let (from, to) = name.split_once('-')?;
    let (from, to) = (parse_position(from)?, parse_position(to)?);
    (from < to).then_some((from, to))
}

/// The history and the number of a whole segment, by its key; none of any other object.
pub fn parse_whole(key: &Key) -> Option<(&str, SegmentNumber)> {
    let mut parts = key.as_str().rsplit('/');
    let (name, _folder, replid) = (parts.next()?, parts.next()?, parts.next()?);
    let position = parse_position(name).filter(|at| segment_of(*at) == *at)?;
    is_replid(replid).then_some((replid, SegmentNumber(position / SEGMENT_BYTES)))
}

/// Requires that a container of a log is what its key says.
///
/// # Errors
/// `Damaged`.
pub fn check(container: &Container, key: &Key) -> Result<()> {
    let identity = container.identity();
    let (from, to) = (identity.from_lsn, identity.to_lsn);
    let segment = segment_of(from);
    let end = segment.saturating_add(SEGMENT_BYTES);
    // The folder of an increment has the name of its segment, and that of a whole segment begins it.
    let folder = key.parent().unwrap_or_default();
    let prefix = match parse_range(key.name()) {
        Some(range) if range == (from, to) => {
            folder.strip_suffix(&format!("/open/{}", position_name(segment)))
        }
        None if parse_position(key.name()) == Some(from) && (from, to) == (segment, end) => {
            let (prefix, first) = folder.rsplit_once('/').unwrap_or_default();
            key.name().starts_with(first).then_some(prefix)
        }
        _ => None,
    };
    let name = prefix.map(|prefix| format!("{prefix}/{}", position_name(segment)));
    let is_own = container.kind() == Kind::Log
        && from < to
        && to <= end
        && name.as_deref() == Some(identity.name.as_str())
        && identity.raw_bytes == to - from;
    match is_own {
        true => Ok(()),
        false => Err(err!(Damaged, "it is not what its key says")),
    }
}

/// Requires that a JSON object of a log is whole.
///
/// # Errors
/// `Damaged`.
pub fn check_small(key: &Key, bytes: &[u8]) -> Result<()> {
    let kind = json::kind_of(bytes).unwrap_or_default();
    json::decode::<serde_json::Value>(key, &kind, bytes).map(|_| ())
}

/// The keys of a log. The objects that describe a history are copied before those that have its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// JSON objects.
    pub small: Vec<Key>,
    pub containers: Vec<Key>,
    /// Names that are none of this format.
    pub unknown: Vec<String>,
    /// Lengths and times, where the listing says them.
    pub metas: BTreeMap<Key, Meta>,
}

impl Objects {
    /// How many there are.
    pub fn count(&self) -> u64 {
        (self.small.len() + self.containers.len()) as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The whole segments, by history.
    pub fn whole(&self) -> BTreeMap<String, Runs> {
        let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (replid, number) in self.containers.iter().filter_map(parse_whole) {
            numbers.entry(replid.to_owned()).or_default().push(number.0);
        }
        let runs = numbers.into_iter();
        runs.map(|(replid, n)| (replid, Runs::from_numbers(n)))
            .collect()
    }

    /// Leaves those that are wanted.
    pub fn retain(&mut self, is_wanted: impl Fn(&Key) -> bool) {
        self.small.retain(&is_wanted);
        self.containers.retain(&is_wanted);
    }

    /// Those that others are not among.
    pub fn without(self, others: &Objects) -> Objects {
        let left = |keys: Vec<Key>, others: &[Key]| -> Vec<Key> {
            let others: BTreeSet<&str> = others.iter().map(Key::as_str).collect();
            let is_left = |key: &Key| !others.contains(key.as_str());
            keys.into_iter().filter(is_left).collect()
        };
        Objects {
            small: left(self.small, &others.small),
            containers: left(self.containers, &others.containers),
            unknown: self.unknown,
            metas: self.metas,
        }
    }
}

/// Lists the objects of the log of a scope.
///
/// # Errors
/// Those of the store.
pub fn objects(store: &dyn Store, scope: &Scope) -> Result<Objects> {
    let mut found = Objects::default();
    for history in store.list(&logs(scope))? {
        let prefix = format!("{}/{}", logs(scope), history.name);
        if !history.is_prefix || !is_replid(&history.name) {
            found.unknown.push(prefix);
            continue;
        }
        for listed in store.list(&prefix)? {
            let at = format!("{prefix}/{}", listed.name);
            match (listed.name.as_str(), listed.is_prefix) {
                ("history", false) => {
                    let key = Key::new(at)?;
                    found
                        .metas
                        .extend(listed.meta.map(|meta| (key.clone(), meta)));
                    found.small.push(key);
                }
                ("parents" | "begins", true) => {
                    let keys = leaves(store, &at, &mut found.metas)?;
                    found.small.extend(keys);
                }
                ("open", true) => {
                    for segment in store.list(&at)? {
                        let at = format!("{at}/{}", segment.name);
                        let keys = leaves(store, &at, &mut found.metas)?;
                        found.containers.extend(keys);
                    }
                }
                (name, true) if name.len() == 8 => {
                    let keys = leaves(store, &at, &mut found.metas)?;
                    found.containers.extend(keys);
                }
                _ => found.unknown.push(at),
            }
        }
    }
    Ok(found)
}

fn leaves(store: &dyn Store, prefix: &str, metas: &mut BTreeMap<Key, Meta>) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    for listed in store.list(prefix)? {
        if !listed.is_prefix {
            let key = Key::new(format!("{prefix}/{}", listed.name))?;
            metas.extend(listed.meta.map(|meta| (key.clone(), meta)));
            keys.push(key);
        }
    }
    Ok(keys)
}
