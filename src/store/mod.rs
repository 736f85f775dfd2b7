//! Bytes under keys. The meaning of the keys is `repo`'s business.
//!
//! A store creates objects that never change, reads ranges of them, lists, and deletes. It answers "absent" only when the store
//! itself said so in a session that had read the repository's marker; everything else is an error.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};

use crate::config::{self, Location};
use crate::err;
use crate::error::{Error, Result};

#[cfg(feature = "full")]
pub mod ahead;
#[cfg(feature = "program")]
pub mod blob;
#[cfg(feature = "program")]
pub mod conformance;
pub mod file;
#[cfg(feature = "program")]
mod http;
#[cfg(feature = "program")]
pub mod kms;
pub mod life;
#[cfg(feature = "full")]
pub mod pace;
#[cfg(feature = "program")]
mod parts;
pub mod probe;
pub mod reserve;
#[cfg(feature = "program")]
pub mod runtime;
#[cfg(feature = "program")]
pub mod s3;
#[cfg(feature = "program")]
pub mod sftp;

pub use crate::durable::Published;

/// The name of the object by which a repository is known.
pub const MARKER: &str = "pitr.json";

/// No folder has more names, and no place more that is irregular: a server that names more is not listened to any longer.
#[cfg(feature = "program")]
const NAMES_MAX: usize = 1_000_000;
/// A chain of the audit log may have more records than a check of it takes: it must be listed to become shorter.
#[cfg(feature = "program")]
const RECORDS_MAX: usize = 4_000_000;

/// Names that a listing of a folder may have.
#[cfg(feature = "program")]
fn names_max(folder: &str) -> usize {
    match folder.starts_with("audit/") {
        true => RECORDS_MAX,
        false => NAMES_MAX,
    }
}

/// A relative object key of checked grammar: `A-Z a-z 0-9 . _ -` in parts of 1–200 bytes separated by `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Checks the grammar of `key`.
    ///
    /// # Errors
    /// `Damaged` when it is no key: keys are made by programs, so a wrong one came from a damaged or hostile object.
    pub fn new(key: impl Into<String>) -> Result<Key> {
        let key = key.into();
        if key.len() <= 1024 && key.split('/').all(is_part) {
            Ok(Key(key))
        } else {
            let shown: String = key.escape_debug().take(200).collect();
            Err(err!(Damaged, "\"{shown}\" is not an object key"))
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the last `/`.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The part before the last `/`, if there is one.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(p, _)| p)
    }
}

/// Whether a text may stand between the slashes of a key.
fn is_part(text: &str) -> bool {
    text.len() <= 200 && crate::config::is_part(text)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One name in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The last part of the key.
    pub name: String,
    /// Whether keys exist below it (a directory), rather than an object under it.
    pub is_prefix: bool,
    /// Length and time of an object, where the listing says them: then no request for each is needed.
    pub meta: Option<Meta>,
}

/// The facts that the store gives of an object without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Stored length.
    pub size_bytes: u64,
    /// When the store received it, in microseconds since 2000-01-01 UTC, by the store's own clock.
    pub modified: crate::pg::time::TimestampTz,
}

/// The room on the disk of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// An object as a listing of the whole store shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    pub key: &'a str,
    /// Its length and time.
    pub meta: Meta,
    /// Its storage class by the store's name, where the store has any.
    pub class: Option<&'a str>,
}

/// A name in the store that is no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Irregular {
    /// Path relative to the store; for people if it is not UTF-8.
    pub path: String,
    /// When it was last changed, by the store's clock.
    pub modified: crate::pg::time::TimestampTz,
    /// Left by a write that did not finish; else a stranger's.
    pub is_unfinished: bool,
}

/// The facts about a deleted object, from a store that keeps deleted objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deleted {
    /// When it was deleted, by the store's clock; none where that was not found out.
    pub at: Option<crate::pg::time::TimestampTz>,
    /// Who deleted it, as the store calls them; none where it does not say.
    pub by: Option<String>,
    /// Whether it can be had back; none where that was not found out.
    pub is_kept: Option<bool>,
}

/// Objects that cannot be read before the store has thawed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// The first of them.
    pub key: String,
    /// Name that the store gives their class.
    pub class: String,
    /// How many are in such a class.
    pub count: usize,
}

/// An object open for reading. Reads at any position, from any thread.
pub trait Object: Send + Sync {
    /// Stored length in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Damaged` when the object ends before; `Io`, `Unreachable` when the medium fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Makes sure the object survives a power cut, whoever wrote it.
    fn settle(&self) -> Result<()>;

    /// Returns the view of an encrypted object that cannot be read here, for want of a key; `None` for one that can be
    /// read.
    fn opaque(&self) -> Option<&dyn Opaque> {
        None
    }

    /// Returns the offset from which on it can be read: a host that cannot read back what it wrote has parts alone.
    fn readable_from(&self) -> u64 {
        0
    }

    /// The facts of what is stored, encrypted or not, that came with the object when it was opened; none where the store sends none with it.
    fn meta(&self) -> Option<Meta> {
        None
    }

    /// As [`Object::opaque`], whether it can be read or not.
    fn sealed(&self) -> Option<&dyn Opaque> {
        None
    }
}

/// An encrypted object, to who cannot read it.
pub trait Opaque {
    /// Returns the facts that its writer recorded, a JSON object.
    fn facts(&self) -> &Value;

    /// How a hash of raw content stands in the facts; `None` without the key for that.
    fn public_hash(&self, hash: &[u8; 32]) -> Option<[u8; 32]>;

    /// Checks all stored bytes.
    fn check_stored(&self) -> Result<()>;

    /// The BLAKE3 of so many bytes at the front of what is stored: all but what was proven when it was opened.
    fn stored_hash(&self) -> (u64, [u8; 32]);

    /// All that is stored behind those bytes, as it was proven when it was opened.
    fn stored_foot(&self) -> &[u8];

    /// The epoch of the key set that it is sealed in.
    ///
    /// # Errors
    /// `Damaged` when it names none.
    fn epoch(&self) -> Result<u32>;
}

/// An object being written. It appears only when [`NewObject::publish`] returns `Created`; dropped, it leaves nothing.
pub trait NewObject: Write + Send {
    /// Says what those may know who can list the store but hold no key: only an encrypted repository keeps it, beside the content. `hash` is
    /// that of the raw content.
    fn describe(&mut self, _facts: Map<String, Value>, _hash: Option<&[u8; 32]>) {}

    /// Says whether what is written from now on is kept by a host that cannot read the object back.
    fn keep(&mut self, _is_kept: bool) {}

    /// Makes the object durable and visible, unless the key is taken.
    fn publish(self: Box<Self>) -> Result<Published>;
}

/// A place that keeps objects.
pub trait Store: Send + Sync {
    /// The place as the operator knows it, without secrets.
    fn location(&self) -> String;

    /// Opens an object; `None` is the store's own word that it is absent.
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>>;

    /// Asked behind an absence: whether the object was there, and somebody deleted it. `None` where the store knows nothing of that.
    fn deleted(&self, _key: &Key) -> Result<Option<Deleted>> {
        Ok(None)
    }

    /// Objects below `prefix` (no trailing slash) that are there and cannot be read before they are thawed; only keys that are `wanted` count.
    fn frozen(&self, _prefix: &str, _wanted: &dyn Fn(&str) -> bool) -> Result<Option<Frozen>> {
        Ok(None)
    }

    /// Whether the configuration has objects moved to where they must be thawed before they can be read.
    fn has_archive(&self) -> bool {
        false
    }

    /// Begins a new object. Parents appear as needed.
    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;

    /// As [`Store::create`], of an object that stays plain in an encrypted repository, too.
    fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.create(key)
    }

    /// The bytes as they are stored, where they are encrypted.
    fn encrypted(&self) -> Option<&dyn Store> {
        None
    }

    /// How a hash of raw content may stand in a key: not itself where the store's owner must not be able to guess contents.
    fn public_hash(&self, hash: &[u8; 32]) -> Result<[u8; 32]> {
        Ok(*hash)
    }

    /// The function and the hash that name a chunk of content which files share (format, section 16.3): BLAKE3, and keyed where the repository is encrypted.
    fn chunk_hash(&self, bytes: &[u8]) -> Result<(u8, [u8; 32])> {
        Ok((0, blake3::hash(bytes).into()))
    }

    /// The seed by which content is cut into chunks. It is secret in an encrypted repository, for lengths of chunks tell known files.
    fn chunk_seed(&self) -> Result<u64> {
        Ok(0)
    }

    /// The MAC of an object that stays plain in an encrypted repository, over what stands in it before the MAC, in hexadecimal; `None` where
    /// nothing is encrypted, or the MAC key is not at hand.
    fn mac(&self, _key: &Key, _content: &[u8]) -> Result<Option<String>> {
        Ok(None)
    }

    /// Returns whether such an object bears that MAC. It counts as genuine if nothing can tell.
    fn is_genuine(&self, _key: &Key, _content: &[u8], _mac: Option<&str>) -> bool {
        true
    }

    /// Returns the names directly below `prefix` (no trailing slash; `""` is the root), unordered. An absent prefix is
    /// empty.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Shows what [`Store::list`] returns, name by name and whether keys exist below it: for directories of very many.
    fn visit(&self, prefix: &str, see: &mut dyn FnMut(&str, bool)) -> Result<()> {
        for listed in self.list(prefix)? {
            see(&listed.name, listed.is_prefix);
        }
        Ok(())
    }

    /// Shows every object, unordered; a walk over everything.
    fn objects(&self, see: &mut dyn FnMut(Shown<'_>)) -> Result<()> {
        let mut folders = vec![String::new()];
        while let Some(prefix) = folders.pop() {
            for listed in self.list(&prefix)? {
                let key = match prefix.is_empty() {
                    true => listed.name,
                    false => format!("{prefix}/{}", listed.name),
                };
                if listed.is_prefix {
                    folders.push(key);
                    continue;
                }
                // An object that is deleted meanwhile is passed over.
                let meta = match listed.meta {
                    None => self.head(&Key::new(key.as_str())?)?,
                    known => known,
                };
                if let Some(meta) = meta {
                    see(Shown {
                        key: &key,
                        meta,
                        class: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// Length and time of an object; `None` is proven absence.
    fn head(&self, key: &Key) -> Result<Option<Meta>>;

    /// Returns the keys of the healed copies of an object that was found damaged, in order; none of one that is not there.
    fn healed_copies(&self, _key: &Key) -> Result<Vec<Key>> {
        Ok(Vec::new())
    }

    /// Remembers that a copy is read in place of its damaged original.
    fn note_healed(&self, _key: &Key, _copy: &Key) {}

    /// Forgets which of an object's copies is read: one more was written.
    fn forget_healed(&self, _key: &Key) {}

    /// Returns the damaged objects of which healed copies were read, each with the copy.
    fn healed_in_use(&self) -> Vec<(Key, Key)> {
        Vec::new()
    }

    /// Deletes an object; `false` when it was absent. Only the janitor calls this.
    ///
    /// # Errors
    /// `Locked` while the store keeps it for a time that was set when it was written; `Denied`.
    fn delete(&self, key: &Key) -> Result<bool>;

    /// Hides an object that the store keeps for a time, where it keeps versions of objects: nobody finds it by its key any more, and its lock
    /// stays. Returns until when the store keeps it; `None` where it hides nothing.
    ///
    /// # Errors
    /// `Locked` under a legal hold; `Denied`.
    fn hide(&self, _key: &Key) -> Result<Option<crate::pg::time::TimestampTz>> {
        Ok(None)
    }

    /// Whether a legal hold lies on an object, though it may not show it.
    ///
    /// # Errors
    /// `Denied` for whoever may not ask.
    fn is_held(&self, _key: &Key) -> Result<bool> {
        Ok(false)
    }

    /// Whether the store has legal holds of its own: under one, an account that may delete cannot.
    ///
    /// # Errors
    /// `Denied` when it may not be asked; what the store says.
    fn has_holds(&self) -> Result<bool> {
        Ok(false)
    }

    /// Sets the store's legal hold of an object, or takes it away, and reads it back; `false` where there is no object. Only for a store that has holds.
    fn hold(&self, _key: &Key, _is_on: bool) -> Result<bool> {
        Ok(false)
    }

    /// Extends the locks of an object, or of all below a folder, where less than half of the configured period is left; returns how many. Nothing
    /// where no lock is configured. `tick` is called again and again meanwhile.
    ///
    /// # Errors
    /// `Denied` for an account that may not; those of `tick`; what the store says.
    fn extend_locks(&self, _place: &str, _tick: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
        Ok(0)
    }

    /// Returns until when the store keeps an object; none of one that can be deleted.
    ///
    /// # Errors
    /// `Denied` for an account that may not ask; what the store says.
    fn locked_until(&self, _key: &Key) -> Result<Option<crate::pg::time::TimestampTz>> {
        Ok(None)
    }

    /// Makes the deletions of objects below `prefix` durable, so that what follows cannot survive a power cut without them.
    fn settle_deletions(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    /// Returns the names in the store that are no objects; a walk over everything.
    fn irregular(&self) -> Result<Vec<Irregular>> {
        Ok(Vec::new())
    }

    /// Removes what an unfinished write left, by its [`Irregular::path`]; `false` when it is gone. Only the janitor calls this.
    fn discard(&self, _unfinished: &str) -> Result<bool> {
        Ok(false)
    }

    /// Keeps a reserve of room, where the store has a disk that can be full.
    ///
    /// # Errors
    /// `Full` when there is room for a part of it alone; what the store says.
    fn keep_reserve(&self) -> Result<()> {
        Ok(())
    }

    /// Gives up a piece of the reserve; `false` when there are no more than `left`. Only the janitor calls this.
    fn give_reserve(&self, _left: usize) -> Result<bool> {
        Ok(false)
    }

    /// Returns the time of the store's own clock, by which it dates objects; `None` if it cannot be had without leaving
    /// something in the store.
    fn clock(&self) -> Result<Option<crate::pg::time::TimestampTz>> {
        Ok(None)
    }

    /// From here on every object is read from the medium, as far as the system lets that be, and not from what it remembers of it: for whoever
    /// looks whether the medium has kept it.
    fn read_medium(&self) {}

    /// Whether [`NewObject::publish`] answers `Created` only when the store has confirmed the bytes: then nothing is read back.
    fn is_confirming(&self) -> bool {
        false
    }

    /// Whether each call is a round trip, and keeping the store open holds nothing in use. Callers then remember what never changes as long
    /// as they keep it, and write before they look.
    fn is_remote(&self) -> bool {
        false
    }

    /// The room on its disk, where the store can tell.
    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }
}

/// Writes methods that only pass the question on to `self.inner`.
macro_rules! forward {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $answer:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $answer)? {
            self.inner.$name($($argument),*)
        })*
    };
}
pub(crate) use forward;

/// The methods of a [`Store`] around `self.inner` that only pass the question on. A store confirms the bytes that it was given, sealed or not.
macro_rules! pass_on {
    () => {
        $crate::store::forward! {
            fn list(&self, prefix: &str) -> $crate::error::Result<Vec<$crate::store::Listed>>;
            fn visit(&self, prefix: &str, see: &mut dyn FnMut(&str, bool)) -> $crate::error::Result<()>;
            fn delete(&self, key: &$crate::store::Key) -> $crate::error::Result<bool>;
        }
        $crate::store::pass_on!(all but listings and delete);
    };
    (all but listings and delete) => {
        $crate::store::forward! {
            fn location(&self) -> String;
            fn objects(&self, see: &mut dyn FnMut($crate::store::Shown<'_>)) -> $crate::error::Result<()>;
            fn head(&self, key: &$crate::store::Key) -> $crate::error::Result<Option<$crate::store::Meta>>;
            fn deleted(&self, key: &$crate::store::Key)
                -> $crate::error::Result<Option<$crate::store::Deleted>>;
            fn frozen(&self, prefix: &str, wanted: &dyn Fn(&str) -> bool)
                -> $crate::error::Result<Option<$crate::store::Frozen>>;
            fn has_archive(&self) -> bool;
            fn has_holds(&self) -> $crate::error::Result<bool>;
            fn hold(&self, key: &$crate::store::Key, is_on: bool) -> $crate::error::Result<bool>;
            fn is_held(&self, key: &$crate::store::Key) -> $crate::error::Result<bool>;
            fn hide(&self, key: &$crate::store::Key)
                -> $crate::error::Result<Option<$crate::pg::time::TimestampTz>>;
            fn extend_locks(&self, place: &str, tick: &mut dyn FnMut() -> $crate::error::Result<()>)
                -> $crate::error::Result<u64>;
            fn locked_until(&self, key: &$crate::store::Key)
                -> $crate::error::Result<Option<$crate::pg::time::TimestampTz>>;
            fn settle_deletions(&self, prefix: &str) -> $crate::error::Result<()>;
            fn irregular(&self) -> $crate::error::Result<Vec<$crate::store::Irregular>>;
            fn discard(&self, unfinished: &str) -> $crate::error::Result<bool>;
            fn keep_reserve(&self) -> $crate::error::Result<()>;
            fn give_reserve(&self, left: usize) -> $crate::error::Result<bool>;
            fn clock(&self) -> $crate::error::Result<Option<$crate::pg::time::TimestampTz>>;
            fn read_medium(&self);
            fn is_confirming(&self) -> bool;
            fn is_remote(&self) -> bool;
            fn room(&self) -> $crate::error::Result<Option<$crate::store::Room>>;
        }
    };
}
pub(crate) use pass_on;

/// The methods of a [`Store`] around `self.inner` that know keys of encryption, passed on.
macro_rules! pass_keys {
    () => {
        $crate::store::forward! {
            fn encrypted(&self) -> Option<&dyn $crate::store::Store>;
            fn public_hash(&self, hash: &[u8; 32]) -> $crate::error::Result<[u8; 32]>;
            fn chunk_hash(&self, bytes: &[u8]) -> $crate::error::Result<(u8, [u8; 32])>;
            fn chunk_seed(&self) -> $crate::error::Result<u64>;
            fn mac(&self, key: &$crate::store::Key, content: &[u8])
                -> $crate::error::Result<Option<String>>;
            fn is_genuine(&self, key: &$crate::store::Key, content: &[u8], mac: Option<&str>) -> bool;
        }
    };
}
pub(crate) use pass_keys;

/// Opens the store of a repository; `nonce` is random.
///
/// # Errors
/// `NoRepository` for a directory that is not there; `Config` for settings that cannot be used.
pub fn open(place: &config::Repository, nonce: u64) -> Result<Box<dyn Store>> {
    match &place.location {
        Location::File(path) => Ok(Box::new(file::FileStore::open(path, nonce)?)),
        #[cfg(feature = "program")]
        Location::S3 { bucket, prefix } => {
            let store = s3::S3Store::open(bucket, prefix, &place.s3, nonce)?;
            Ok(Box::new(store))
        }
        #[cfg(feature = "program")]
        location @ Location::Blob { .. } => {
            let store = blob::BlobStore::open(location, &place.s3, nonce)?;
            Ok(Box::new(store))
        }
        #[cfg(feature = "program")]
        location @ Location::Sftp { .. } => {
            let store = sftp::SftpStore::open(location, &place.sftp, nonce)?;
            Ok(Box::new(store))
        }
        // The small programs have pitr do it, and never come here.
        #[cfg(not(feature = "program"))]
        Location::S3 { .. } | Location::Blob { .. } | Location::Sftp { .. } => Err(err!(
            Internal,
            "\"{}\" is across a network, which this program does not reach",
            place.location
        )),
    }
}

/// Writes a whole small object.
pub fn put(store: &dyn Store, key: &Key, content: &[u8]) -> Result<Published> {
    let mut object = store.create(key)?;
    object
        .write_all(content)
        .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
    object.publish()
}

/// Reads a whole object of at most `limit` bytes; `None` is proven absence.
///
/// # Errors
/// `Damaged` when it is larger than `limit`.
pub fn get(store: &dyn Store, key: &Key, limit: u64) -> Result<Option<Vec<u8>>> {
    match store.open(key)? {
        Some(object) => read(object.as_ref(), key, limit).map(Some),
        None => Ok(None),
    }
}

/// So many objects are read at once where each is a round trip. Each thread leaves some 3 MiB to the allocator: where there is little to read there are fewer.
const AT_ONCE: usize = 8;
const FEW_AT_ONCE: usize = 2;
/// So much is little.
const FEW: usize = 64;

thread_local! {
    /// Whether this thread reads beside others.
    static IS_BESIDE: Cell<bool> = const { Cell::new(false) };
}

/// Reads each of `what`, several at once where each read is a round trip. The answers are in the order of `what`. The first failure that is about more than its
/// object ends it: answers behind it may be missing.
pub fn beside<T: Sync, R: Send>(
    store: &dyn Store,
    what: &[T],
    read: impl Fn(&T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let at_once = match store.is_remote() && !IS_BESIDE.get() {
        true if what.len() > FEW => AT_ONCE,
        true => FEW_AT_ONCE.min(what.len()),
        false => 1,
    };
    several(at_once, what, read)
}

fn several<T: Sync, R: Send>(
    at_once: usize,
    what: &[T],
    read: impl Fn(&T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut answers = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = what.get(number) else {
                return answers;
            };
            let answer = read(one);
            if answer.as_ref().is_err_and(|e| !e.is_lost()) {
                next.store(what.len(), Ordering::Relaxed);
            }
            answers.push((number, answer));
        }
    };
    let mut answers = match at_once {
        0 | 1 => some(),
        _ => std::thread::scope(|scope| {
            let beside = || {
                IS_BESIDE.set(true);
                some()
            };
            // Fewer threads do it where the system gives no more.
            let threads: Vec<_> = (0..at_once)
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, beside).ok())
                .collect();
            let own = if threads.is_empty() {
                some()
            } else {
                Vec::new()
            };
            let joined = threads.into_iter().map(|thread| thread.join());
            let read = |answers| match answers {
                Ok(answers) => answers,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            joined.flat_map(read).chain(own).collect()
        }),
    };
    answers.sort_unstable_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Reads a whole open object of at most `limit` bytes; `key` is for messages.
///
/// # Errors
/// `Damaged` when it is larger than `limit`.
pub fn read(object: &dyn Object, key: &Key, limit: u64) -> Result<Vec<u8>> {
    let size = object.size_bytes();
    if size > limit {
        return Err(err!(
            Damaged,
            "object \"{key}\" has {size} bytes, at most {limit} are allowed"
        ));
    }
    let mut content = vec![
        0;
        usize::try_from(size)
            .map_err(|_| err!(Damaged, "object \"{key}\" has {size} bytes"))?
    ];
    object.read_at(&mut content, 0)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_at_once_comes_in_order_and_ends_with_the_first_failure() {
        let what: Vec<usize> = (0..100).collect();
        let bad = || Error::from_io("read", std::io::Error::from_raw_os_error(5));
        for at_once in [1, 8] {
            // A bad sector is one object's, too: whoever goes on behind it needs the answers for the others.
            let others = several(at_once, &what, |n| (*n != 3).then_some(*n).ok_or_else(bad));
            assert_eq!(others.iter().filter(|read| read.is_ok()).count(), 99);
            let all = several(at_once, &what, |n| match n % 10 {
                0 => Err(err!(Damaged, "{n}")),
                _ => Ok(*n),
            });
            let right = all.iter().zip(&what);
            assert_eq!(all.len(), 100);
            assert!(right.clone().all(|(read, n)| match read {
                Ok(read) => read == n,
                Err(e) => e.is_damage() && n % 10 == 0,
            }));
            let count = AtomicUsize::new(0);
            let some = several(at_once, &what, |n| {
                count.fetch_add(1, Ordering::Relaxed);
                match n {
                    0..5 => Ok(*n),
                    _ => Err(err!(Unreachable, "{n}")),
                }
            });
            let count = count.into_inner();
            assert!(count < 6 + at_once, "{count}");
            assert_eq!(some.len(), count);
            assert_eq!(some.iter().position(Result::is_err), Some(5));
            assert!(!IS_BESIDE.get());
        }
    }

    #[cfg(feature = "program")]
    #[test]
    fn x49_a_chain_of_the_audit_log_may_have_more_names_than_any_other_folder() {
        assert_eq!(names_max("audit/one"), RECORDS_MAX);
        for other in ["", "audit", "clusters/audit/7/events", "audits/x"] {
            assert_eq!(names_max(other), NAMES_MAX, "{other}");
        }
    }

    #[test]
    fn key_grammar() {
        for good in [
            "pitr.json",
            "clusters/main/7/wal/00000001/00000000/000000010000000000000001",
            "a/b.heal-1",
        ] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            ".",
            "a b",
            "a\0",
            "é",
            "a/.tmp.x",
            &"x".repeat(201),
        ] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
    }
}
