//! The log of an aux scope, as names and the store's times tell of it: no key is needed. Plans of expiry and of syncs ask for no more.

use std::collections::BTreeMap;

use super::log_keys::{self, Objects, SEGMENT_BYTES, is_replid};
use super::scope::{Scope, healed_base};
use crate::error::Result;
use crate::store::{Key, Meta, Store};

/// The log of a server, by history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredLog(pub BTreeMap<String, StoredHistory>);

/// A history, as far as anything of it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredHistory {
    /// The histories that it goes on from, each with the number of its bytes that this one begins with.
    pub parents: BTreeMap<String, u64>,
    /// The objects that have its bytes, ascending.
    pub pieces: Vec<Piece>,
    /// Records of where reception began, each with its position.
    pub beginnings: Vec<(u64, Stored)>,
    /// Objects that describe it besides; that of the history itself is the last one.
    pub records: Vec<Stored>,
}

/// Bytes of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The first position.
    pub from: u64,
    /// Behind the last byte.
    pub to: u64,
    pub object: Stored,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: Key,
    /// Its length and time.
    pub meta: Meta,
}

impl StoredLog {
    /// Lists the log of a scope.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read(store: &dyn Store, scope: &Scope) -> Result<StoredLog> {
        StoredLog::of((store, scope), &log_keys::objects(store, scope)?)
    }

    /// The log of which these objects are, and asks the store for what the listing did not say.
    ///
    /// # Errors
    /// Those of the store.
    pub fn of((store, scope): (&dyn Store, &Scope), objects: &Objects) -> Result<StoredLog> {
        let mut log = StoredLog::default();
        for key in objects.containers.iter().chain(&objects.small) {
            let meta = match objects.metas.get(key) {
                Some(meta) => Some(*meta),
                None => store.head(key)?,
            };
            // An object that came and went meanwhile is nothing.
            if let Some(meta) = meta {
                let key = key.clone();
                log.add(scope, Stored { key, meta });
            }
        }
        log.sort();
        Ok(log)
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Both logs as one.
    #[must_use]
    pub fn union(mut self, other: StoredLog) -> StoredLog {
        for (replid, theirs) in other.0 {
            let own = self.0.entry(replid).or_default();
            for (parent, fork) in theirs.parents {
                own.goes_on(parent, fork);
            }
            own.pieces.extend(theirs.pieces);
            own.beginnings.extend(theirs.beginnings);
            own.records.extend(theirs.records);
        }
        self.sort();
        self
    }

    /// Adds an object. One whose name says nothing to this version belongs to no history, and stays.
    fn add(&mut self, scope: &Scope, object: Stored) {
        let key = healed_base(object.key.as_str()).unwrap_or(object.key.as_str());
        let logs = format!("{}/", log_keys::logs(scope));
        let Some((replid, rest)) = key.strip_prefix(&logs).and_then(|key| key.split_once('/'))
        else {
            return;
        };
        let (folder, name) = rest.rsplit_once('/').unwrap_or(("", rest));
        let range = match folder.starts_with("open/") {
            true => log_keys::parse_range(name),
            false => log_keys::parse_position(name)
                .and_then(|from| Some((from, from.checked_add(SEGMENT_BYTES)?))),
        };
        let (replid, name) = (replid.to_owned(), name.to_owned());
        match (folder, range) {
            ("" | "parents", _) => {
                let history = self.0.entry(replid).or_default();
                if let Some((parent, fork)) = log_keys::parse_parent(&name) {
                    history.goes_on(parent.to_owned(), fork);
                }
                history.records.push(object);
            }
            ("begins", Some((position, _))) => {
                let history = self.0.entry(replid).or_default();
                history.beginnings.push((position, object));
            }
            ("begins", None) => {}
            (_, Some((from, to))) if is_replid(&replid) => {
                let history = self.0.entry(replid).or_default();
                history.pieces.push(Piece { from, to, object });
            }
            (_, _) => {}
        }
    }

    fn sort(&mut self) {
        for history in self.0.values_mut() {
            let pieces = &mut history.pieces;
            pieces.sort_by(|a, b| a.place().cmp(&b.place()));
            pieces.dedup_by(|a, b| a.object.key == b.object.key);
            let beginnings = &mut history.beginnings;
            beginnings.sort_by(|(a, one), (b, other)| (a, &one.key).cmp(&(b, &other.key)));
            beginnings.dedup_by(|a, b| a.1.key == b.1.key);
            // Records of parents come before "history".
            let records = &mut history.records;
            records.sort_by(|a, b| b.key.cmp(&a.key));
            records.dedup_by(|a, b| a.key == b.key);
        }
    }
}

impl Piece {
    fn place(&self) -> (u64, u64, &Key) {
        (self.from, self.to, &self.object.key)
    }
}

impl StoredHistory {
    /// The largest number counts, where there are several records of one parent.
    fn goes_on(&mut self, parent: String, fork: u64) {
        let known = self.parents.entry(parent).or_default();
        *known = fork.max(*known);
    }

    /// The stored ranges, ascending, without those that touch or overlap.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for piece in &self.pieces {
            match joined.last_mut() {
                Some(last) if piece.from <= last.1 => last.1 = last.1.max(piece.to),
                _ => joined.push((piece.from, piece.to)),
            }
        }
        joined
    }

    /// The first position that is stored, and the one behind the last; none where no bytes are.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        let first = self.pieces.first()?.from;
        Some((first, self.pieces.iter().map(|piece| piece.to).max()?))
    }

    /// All objects: those with bytes first, ascending.
    pub fn objects(&self) -> impl Iterator<Item = &Stored> {
        let pieces = self.pieces.iter().map(|piece| &piece.object);
        let beginnings = self.beginnings.iter().map(|(_, object)| object);
        pieces.chain(beginnings).chain(&self.records)
    }
}
