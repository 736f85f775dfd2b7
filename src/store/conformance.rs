//! The promises of every store, as checks that run against an empty place: one for each clause of [`Store`].
//!
//! Tests run them on every kind of store, and `pitr repo check` on the operator's.

use std::io::Write;

use super::{Key, Listed, Published, Store, get, put};
use crate::err;
use crate::error::{Code, Error, Result};

/// One promise.
pub struct Clause {
    /// The promise.
    pub name: &'static str,
    /// Whether the check deletes.
    pub deletes: bool,
    /// Tries it below a folder that is empty.
    pub check: fn(&dyn Store, &str) -> Result<()>,
}

/// All of them.
pub const CLAUSES: [Clause; 8] = [
    clause("an object is created once, and read back", created_once),
    clause("any part of an object is read", parts),
    clause("an empty object is one", empty),
    clause("an object of several requests is created once", large),
    clause("what was not published is not there", unpublished),
    clause("a listing shows what was created", listed),
    clause("of those who create at the same time one wins", one_wins),
    Clause {
        deletes: true,
        ..clause("what was deleted is gone", deleted)
    },
];

/// A promise whose check deletes nothing.
const fn clause(name: &'static str, check: fn(&dyn Store, &str) -> Result<()>) -> Clause {
    Clause {
        name,
        deletes: false,
        check,
    }
}

/// More than one request of an object store takes.
const LARGE_BYTES: usize = (8 << 20) + 12345;
/// How many create the same object at once.
const CREATORS: u8 = 16;

fn key(folder: &str, name: &str) -> Result<Key> {
    Key::new(format!("{folder}/{name}"))
}

fn broken(what: impl std::fmt::Display) -> Error {
    err!(Refused, "the store {what}")
}

fn require(holds: bool, otherwise: impl std::fmt::Display) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(broken(otherwise)),
    }
}

/// Bytes that look different everywhere.
fn content(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn whole(store: &dyn Store, key: &Key) -> Result<Vec<u8>> {
    get(store, key, 64 << 20)?.ok_or_else(|| broken("does not show what was created"))
}

fn created_once(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "once")?;
    require(
        store.open(&key)?.is_none() && store.head(&key)?.is_none(),
        "shows an object before it was created",
    )?;
    let first = content(1000, 1);
    require(
        put(store, &key, &first)? == Published::Created,
        "calls a free name taken",
    )?;
    require(
        put(store, &key, b"second")? == Published::Exists,
        "replaces objects instead of refusing a name that is taken",
    )?;
    require(
        whole(store, &key)? == first,
        "does not give back what was written",
    )?;
    let size = store.head(&key)?.map(|meta| meta.size_bytes);
    require(size == Some(1000), "does not know an object's length")
}

fn parts(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "parts")?;
    let all = content(300_000, 2);
    put(store, &key, &all)?;
    let object = store
        .open(&key)?
        .ok_or_else(|| broken("does not show what was created"))?;
    require(
        object.size_bytes() == all.len() as u64,
        "does not know an object's length",
    )?;
    for (offset, length) in [
        (0, 1),
        (0, 40_000),
        (40_000, 40_000),
        (123_456, 7),
        (299_999, 1),
        (0, 300_000),
        (300_000, 0),
    ] {
        let mut buffer = vec![0; length];
        object.read_at(&mut buffer, offset as u64)?;
        let expected = all.get(offset..offset + length);
        require(
            expected == Some(buffer.as_slice()),
            "gives other parts of an object than asked for",
        )?;
    }
    let mut two = [0; 2];
    match object.read_at(&mut two, 299_999) {
        Err(e) if e.code() == Code::Damaged => Ok(()),
        Err(e) => Err(e),
        Ok(()) => Err(broken("reads behind an object's end")),
    }
}

fn empty(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "empty")?;
    put(store, &key, b"")?;
    require(
        whole(store, &key)?.is_empty() && store.head(&key)?.is_some_and(|m| m.size_bytes == 0),
        "does not give back what was written",
    )
}

fn large(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "packs/large")?;
    let first = content(LARGE_BYTES, 3);
    let write = |all: &[u8]| -> Result<Published> {
        let mut object = store.create(&key)?;
        for piece in all.chunks(1_000_000) {
            object
                .write_all(piece)
                .map_err(|e| Error::from_io("write an object", e))?;
        }
        object.publish()
    };
    require(
        write(&first)? == Published::Created,
        "calls a free name taken",
    )?;
    require(
        write(&content(LARGE_BYTES, 4))? == Published::Exists,
        "replaces objects of several requests",
    )?;
    let object = store
        .open(&key)?
        .ok_or_else(|| broken("does not show what was created"))?;
    let mut buffer = vec![0; 100_000];
    for (n, piece) in first.chunks(100_000).enumerate() {
        let buffer = buffer.get_mut(..piece.len()).unwrap_or_default();
        object.read_at(buffer, n as u64 * 100_000)?;
        require(buffer == piece, "does not give back what was written")?;
    }
    Ok(())
}

fn unpublished(store: &dyn Store, folder: &str) -> Result<()> {
    for (name, length) in [("small", 10), ("packs/large", LARGE_BYTES)] {
        let key = key(folder, name)?;
        let mut object = store.create(&key)?;
        object
            .write_all(&content(length, 5))
            .map_err(|e| Error::from_io("write an object", e))?;
        drop(object);
        require(
            store.open(&key)?.is_none(),
            "shows an object that was never published",
        )?;
    }
    let objects = store.list(folder)?.iter().any(|l| !l.is_prefix);
    require(!objects, "lists an object that was never published")
}

fn listed(store: &dyn Store, folder: &str) -> Result<()> {
    for name in ["a", "a-b", "d/b", "c/d/e", "b"] {
        put(store, &key(folder, name)?, b"x")?;
    }
    let names = |prefix: &str| -> Result<Vec<(String, bool)>> {
        let listed = store.list(prefix)?.into_iter();
        let mut names: Vec<_> = listed
            .map(
                |Listed {
                     name, is_prefix, ..
                 }| (name, is_prefix),
            )
            .collect();
        names.sort();
        Ok(names)
    };
    let expected = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
        names.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect()
    };
    require(
        names(folder)?
            == expected(&[
                ("a", false),
                ("a-b", false),
                ("b", false),
                ("c", true),
                ("d", true),
            ])
            && names(&format!("{folder}/c"))? == expected(&[("d", true)])
            && names(&format!("{folder}/c/d"))? == expected(&[("e", false)])
            && names(&format!("{folder}/none"))?.is_empty(),
        "lists something else than what was created",
    )
}

fn one_wins(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "race")?;
    let outcomes: Vec<Result<Published>> = std::thread::scope(|scope| {
        let create = |n: u8| {
            let key = &key;
            scope.spawn(move || put(store, key, &[n; 100]))
        };
        let running: Vec<_> = (0..CREATORS).map(create).collect();
        let joined = running.into_iter().map(|r| {
            r.join()
                .unwrap_or_else(|_| Err(err!(Internal, "a creator panicked")))
        });
        joined.collect()
    });
    let mut winners = Vec::new();
    for (n, outcome) in (0..CREATORS).zip(outcomes) {
        if outcome? == Published::Created {
            winners.push(n);
        }
    }
    let [winner] = winners.as_slice() else {
        return Err(broken(format!(
            "lets {} of {CREATORS} who create an object at the same time win",
            winners.len()
        )));
    };
    require(
        whole(store, &key)? == [*winner; 100],
        "keeps the object of one who did not win",
    )
}

fn deleted(store: &dyn Store, folder: &str) -> Result<()> {
    let key = key(folder, "gone")?;
    put(store, &key, b"x")?;
    require(store.delete(&key)?, "calls an object absent that is there")?;
    require(
        store.open(&key)?.is_none() && store.list(folder)?.iter().all(|l| l.name != "gone"),
        "shows what was deleted",
    )?;
    require(!store.delete(&key)?, "deletes what is not there")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::FileStore;

    #[test]
    fn a_directory_keeps_every_promise() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path(), 1).unwrap();
        for (n, clause) in CLAUSES.iter().enumerate() {
            (clause.check)(&store, &format!("clause-{n}"))
                .unwrap_or_else(|e| panic!("{}: {e}", clause.name));
        }
    }
}
