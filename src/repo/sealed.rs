//! A store whose objects are sealed (format, section 11): what is created is encrypted on its way, what is read is proven and decrypted.
//!
//! Who holds only the public half and the MAC key creates objects and compares them; who holds no key at all sees what expiry needs.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use super::halves::Halves;
use super::json;
use super::kept::{Kept, Parts, Recalled};
use super::keyring::Keys;
use super::root::{TOMBSTONE, Tombstone};
use super::{epochs, scope};
use crate::config::Encryption;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::seal::{
    self, CHUNK, FIRST_EPOCH, FOOT_LIMIT_BYTES, Foot, HEAD, Head, MacKey, Opener, Sealer, TAG, TAIL,
};
use crate::store::{Key, Meta, NewObject, Object, Opaque, Published, Store};
use crate::text;

/// One read of this length usually has the foot.
const TAIL_READ_BYTES: u64 = 16 << 10;
/// Chunks that are read at once.
const BATCH: u64 = 16;
/// No tombstone is longer.
const TOMBSTONE_LIMIT_BYTES: u64 = 4096;
const NO_KEY: &str = "Configure the repository's encryption on this host: key_set for what writes, key_file, key_command or a passphrase for what reads.";

/// The remedy on a host that only writes, when it is to read.
const ONLY_WRITES: &str = "Nothing was read, and nothing is wrong with what this host writes: its key_set reads nothing, not even that. Run the command on a host that has a reader's key, or add key_file, key_command or a passphrase to the repository's encryption here; \"pitr doctor\" looks after a host that only writes.";

/// Seals and opens what goes through it.
#[derive(Clone)]
pub struct SealedStore {
    inner: Arc<dyn Store>,
    keys: Arc<Keys>,
    /// The state of a host that cannot read its own objects back.
    kept: Option<Arc<Kept>>,
    /// Whether objects are read from there.
    is_recalling: bool,
    /// The private halves that open objects.
    halves: Arc<Halves>,
    /// A host that has a recipient's key alone has seen that the repository has one epoch.
    is_unrotated: Arc<OnceLock<()>>,
}

impl SealedStore {
    fn mac_key(&self) -> Result<&MacKey> {
        self.keys.mac.as_ref().ok_or_else(|| {
            err!(
                Key,
                "the MAC key of repository \"{}\" is not configured",
                self.location()
            )
            .hint(NO_KEY)
        })
    }

    /// Wraps the store of a repository whose marker names the key set of `keys`.
    pub fn new(inner: Box<dyn Store>, keys: Keys) -> SealedStore {
        let inner: Arc<dyn Store> = Arc::from(inner);
        let keys = Arc::new(keys);
        SealedStore {
            halves: Arc::new(Halves::new(Arc::clone(&inner), Arc::clone(&keys), None)),
            inner,
            keys,
            kept: None,
            is_recalling: false,
            is_unrotated: Arc::default(),
        }
    }

    /// Asks for the private half only when an object is to be opened.
    pub fn opening_later(mut self, from: Encryption) -> SealedStore {
        let (store, keys) = (Arc::clone(&self.inner), Arc::clone(&self.keys));
        self.halves = Arc::new(Halves::new(store, keys, Some(from)));
        self
    }

    /// Keeps parts of what it creates in this state directory, where the keys at hand seal and do not open.
    pub fn keeping(mut self, kept: Kept) -> SealedStore {
        let keys = &self.keys;
        let only_writes = !self.halves.can_open() && keys.public.is_some() && keys.mac.is_some();
        self.kept = only_writes.then(|| Arc::new(kept));
        self
    }

    /// Returns the state that it keeps; none where it reads everything itself.
    pub fn kept(&self) -> Option<&Arc<Kept>> {
        self.kept.as_ref()
    }

    /// Returns the same store, which reads objects of a cluster as far as parts of them were kept.
    pub fn recalling(&self) -> SealedStore {
        SealedStore {
            is_recalling: true,
            ..self.clone()
        }
    }

    /// Returns the part of the key set that this host has.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The foot of an object, proven as far as the keys at hand allow; or a tombstone, which the janitor writes without a key.
    fn foot(&self, key: &Key, object: &dyn Object) -> Result<Found> {
        let size = object.size_bytes();
        let wanted = size.min(TAIL_READ_BYTES);
        let mut tail = read(object, size - wanted..size)?;
        let length = tail.last_chunk::<TAIL>().and_then(seal::foot_length);
        let Some(length) = length else {
            return match tombstone(key, object)? {
                Some(bytes) => Ok(Found::Tombstone(bytes)),
                None => Err(unsealed(key, object)),
            };
        };
        if length > size || length > FOOT_LIMIT_BYTES {
            return Err(err!(
                Damaged,
                "object \"{key}\" was cut: its foot has {length} bytes, it has {size}"
            ));
        }
        if length > wanted {
            tail = read(object, size - length..size)?;
        }
        let at = tail.len() - usize::try_from(length).unwrap_or(tail.len());
        let of_object = |e: Error| e.context(format!("read object \"{key}\""));
        let foot = Foot::decode(tail.get(at..).unwrap_or_default()).map_err(of_object)?;
        self.check(key, &foot).map_err(of_object)?;
        foot.check_length(size, length).map_err(of_object)?;
        Ok(Found::Sealed(Box::new(foot), tail.split_off(at)))
    }

    /// Opens what was kept of an object that the store does not let this host read. A listing has to show roots and
    /// layers with the same length.
    fn unseen(&self, key: &Key, denied: Error) -> Result<Option<Box<dyn Object>>> {
        let Some(kept) = self.kept.as_ref().filter(|_| scope::is_sealed_form(key)) else {
            return Err(denied);
        };
        let mut stored_bytes = None;
        if key.name() == "manifest" || key.as_str().contains("/layers/") {
            let listed = self.inner.list(key.parent().unwrap_or_default())?;
            let Some(found) = listed.iter().find(|listed| listed.name == key.name()) else {
                return Ok(None);
            };
            stored_bytes = found.meta.map(|meta| meta.size_bytes);
        }
        match kept.recall_unseen(key, stored_bytes) {
            Ok(recalled) => Ok(Some(Box::new(Unseen(recalled)))),
            // As one of a newer format: it is passed over, and not called damaged.
            Err(why) => Err(denied.with_code(Code::Unsupported).context(why)),
        }
    }

    /// Requires that the repository shows the first epoch alone: the pair of a later one is in the file for hosts, and nowhere else where
    /// a host with the MAC key could not have put another one.
    fn check_unrotated(&self, mac: &MacKey) -> Result<()> {
        if self.is_unrotated.get().is_some() {
            return Ok(());
        }
        let later = match epochs::later(self.inner.as_ref(), Some(mac)) {
            // A host that may not look is no worse off than one that is shown nothing.
            Err(e) if e.code() == Code::Denied => Vec::new(),
            other => other?,
        };
        let Some(newest) = later.last() else {
            self.is_unrotated.get_or_init(|| ());
            return Ok(());
        };
        Err(err!(
            Key,
            "the key set of repository \"{}\" has epoch {}, and this host has a recipient's key alone",
            self.location(),
            newest.number
        )
        .hint("Nothing was written: objects are sealed to the pair in the file for hosts. Name the current writer.key as key_set, beside the recipient's key."))
    }

    /// Whether the foot is that of this object of this key set.
    fn check(&self, key: &Key, foot: &Foot) -> Result<()> {
        let key_set = Head::key_set_of(&foot.head);
        if key_set != self.keys.id {
            return Err(err!(
                Damaged,
                "it is sealed with key set {key_set}, the repository with {}",
                self.keys.id
            ));
        }
        if let Some(mac) = &self.keys.mac
            && !foot.is_genuine(mac)
        {
            return Err(err!(
                Damaged,
                "it is forged: whoever made it does not hold the MAC key of the key set"
            ));
        }
        // The MAC is that of the key set in every epoch and version: a stranger's word that an object is newer counts for nothing.
        if foot.decoded_head()?.epoch < FIRST_EPOCH {
            return Err(err!(Damaged, "it names no epoch of the key set"));
        }
        let base = scope::own_key(key);
        match foot.key == base {
            true => Ok(()),
            false => Err(misplaced(&foot.key, base)),
        }
    }
}

/// A genuine object of another key: somebody put it here.
fn misplaced(of: &str, here: &str) -> Error {
    let kind = |key: &str| key.split('/').take(4).collect::<Vec<_>>().join("/");
    let of = of.escape_debug();
    match kind(&of.to_string()) == kind(here) && of.to_string().as_str() < here {
        true => err!(
            Damaged,
            "it was rolled back: the older object \"{of}\" was put in its place"
        ),
        false => err!(
            Damaged,
            "it was swapped: the object of \"{of}\" was put in its place"
        ),
    }
}

fn unsealed(key: &Key, object: &dyn Object) -> Error {
    let begins_sealed = read(object, 0..object.size_bytes().min(8));
    if begins_sealed.is_ok_and(|bytes| bytes == seal::MAGIC) {
        return err!(Damaged, "object \"{key}\" was cut: its end is missing");
    }
    err!(
        Damaged,
        "object \"{key}\" is not sealed, in a repository where everything of its kind is"
    )
    .hint("It is not used: whoever can write to the store could have put it there. Run \"pitr verify\" to see what else is.")
}

/// The bytes of a plain object under the key of a root, where they are a janitor's tombstone.
fn tombstone(key: &Key, object: &dyn Object) -> Result<Option<Vec<u8>>> {
    if key.name() != "manifest" || object.size_bytes() > TOMBSTONE_LIMIT_BYTES {
        return Ok(None);
    }
    let bytes = read(object, 0..object.size_bytes())?;
    let is_one = json::decode::<Tombstone>(key, TOMBSTONE, &bytes).is_ok();
    Ok(is_one.then_some(bytes))
}

fn read(object: &dyn Object, range: Range<u64>) -> Result<Vec<u8>> {
    let length = usize::try_from(range.end - range.start)
        .map_err(|_| err!(Internal, "too much is read at once"))?;
    let mut bytes = vec![0; length];
    object.read_at(&mut bytes, range.start)?;
    Ok(bytes)
}

impl Store for SealedStore {
    crate::store::pass_on!();

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let object = match self.inner.open(key) {
            Err(e) if e.code() == Code::Denied && self.is_recalling => return self.unseen(key, e),
            object => object?,
        };
        let Some(object) = object else {
            return Ok(None);
        };
        if !scope::is_sealed_form(key) {
            return Ok(Some(object));
        }
        let (foot, stored_foot) = match self.foot(key, object.as_ref())? {
            Found::Sealed(foot, stored) => (*foot, stored),
            // The store is not asked again: it could answer with something else.
            Found::Tombstone(bytes) => {
                let inner = object;
                return Ok(Some(Box::new(PlainObject { bytes, inner })));
            }
        };
        let facts = serde_json::from_slice(&foot.facts)
            .map_err(|e| Error::from(e).context(format!("read object \"{key}\"")))?;
        let kept = self.kept.as_ref().filter(|_| self.is_recalling);
        let base = Key::new(scope::own_key(key))?;
        let recalled = kept.map(|kept| kept.recall(&base, &stored_foot));
        let sealed = SealedObject {
            inner: object,
            foot,
            stored_foot,
            facts,
            key: key.clone(),
            keys: Arc::clone(&self.keys),
            halves: Arc::clone(&self.halves),
            opener: OnceLock::new(),
            recalled,
            last: Mutex::new(None),
        };
        Ok(Some(Box::new(sealed)))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        if !scope::is_sealed_form(key) {
            return self.inner.create(key);
        }
        let (Some((epoch, public)), Some(mac)) = (&self.keys.public, &self.keys.mac) else {
            return Err(err!(
                Key,
                "repository \"{}\" is encrypted, and no key to write with is configured",
                self.location()
            )
            .hint(NO_KEY));
        };
        if !self.keys.is_of_file {
            self.check_unrotated(mac)?;
        }
        let drawn = self.keys.drawn()?;
        let inner = self.inner.create(key)?;
        let sealer = Sealer::new(inner, scope::own_key(key), (*epoch, public), mac, &drawn)?;
        Ok(Box::new(SealedNew {
            sealer,
            mac: mac.clone(),
            facts: Map::new(),
            key: key.clone(),
            parts: Parts::default(),
            kept: self.kept.clone().filter(|_| scope::is_of_cluster(key)),
        }))
    }

    fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.inner.create(key)
    }

    fn encrypted(&self) -> Option<&dyn Store> {
        Some(self.inner.as_ref())
    }

    fn public_hash(&self, hash: &[u8; 32]) -> Result<[u8; 32]> {
        Ok(self.mac_key()?.content(hash))
    }

    fn chunk_hash(&self, bytes: &[u8]) -> Result<(u8, [u8; 32])> {
        Ok((1, self.mac_key()?.chunk(bytes)))
    }

    fn chunk_seed(&self) -> Result<u64> {
        Ok(self.mac_key()?.chunk_seed())
    }

    fn mac(&self, key: &Key, content: &[u8]) -> Result<Option<String>> {
        let Some(mac) = &self.keys.mac else {
            return Ok(None);
        };
        let made = mac.sign_plain(key.as_str(), content)?;
        Ok(Some(text::hex(&made)))
    }

    fn is_genuine(&self, key: &Key, content: &[u8], found: Option<&str>) -> bool {
        let Some(mac) = &self.keys.mac else {
            return true;
        };
        let found: Option<[u8; 32]> = found.and_then(text::unhex_array);
        found.is_some_and(|found| mac.is_genuine_plain(key.as_str(), content, &found))
    }
}

/// The kind of an object, as its end shows it.
enum Found {
    /// Its foot, and that as it is stored.
    Sealed(Box<Foot>, Vec<u8>),
    /// All its bytes.
    Tombstone(Vec<u8>),
}

/// A plain object, in the bytes that were checked.
struct PlainObject {
    bytes: Vec<u8>,
    inner: Box<dyn Object>,
}

impl Object for PlainObject {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).ok();
        let range = from.and_then(|from| Some(from..from.checked_add(buffer.len())?));
        let wanted = range.and_then(|range| self.bytes.get(range));
        let wanted = wanted.ok_or_else(|| err!(Damaged, "the object ends before"))?;
        buffer.copy_from_slice(wanted);
        Ok(())
    }

    crate::store::forward! {
        fn settle(&self) -> Result<()>;
        fn meta(&self) -> Option<Meta>;
    }
}

/// The kept parts of an object that the store does not show.
struct Unseen(Recalled);

impl Object for Unseen {
    fn size_bytes(&self) -> u64 {
        self.0.plain_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let read = self.0.read_at(buffer, offset);
        read.unwrap_or_else(|| Err(err!(Key, "this host keeps no content of the object")))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn readable_from(&self) -> u64 {
        self.0.readable_from()
    }
}

/// An object on its way into the store.
struct SealedNew {
    sealer: Sealer<Box<dyn NewObject>>,
    mac: MacKey,
    facts: Map<String, Value>,
    key: Key,
    parts: Parts,
    kept: Option<Arc<Kept>>,
}

impl Write for SealedNew {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sealer.write(bytes)?;
        self.parts.add(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sealer.flush()
    }
}

impl NewObject for SealedNew {
    fn describe(&mut self, facts: Map<String, Value>, hash: Option<&[u8; 32]>) {
        self.facts.extend(facts);
        if let Some(hash) = hash {
            let content = text::hex(&self.mac.content(hash));
            self.facts.insert("content".into(), content.into());
        }
    }

    fn keep(&mut self, is_kept: bool) {
        self.parts.keep(is_kept && self.kept.is_some());
    }

    fn publish(self: Box<Self>) -> Result<Published> {
        let facts = serde_json::to_vec(&Value::Object(self.facts))
            .map_err(|e| err!(Internal, "the facts of an object could not be written").source(e))?;
        let (inner, foot) = self
            .sealer
            .finish(&facts, &self.mac)
            .map_err(|e| Error::from_io(format!("write object \"{}\"", self.key), e))?;
        let published = inner.publish()?;
        if let (Published::Created, Some(kept)) = (published, &self.kept) {
            kept.put(&self.key, &foot, &self.parts);
        }
        Ok(published)
    }
}

/// An object whose foot was proven.
struct SealedObject {
    inner: Box<dyn Object>,
    foot: Foot,
    stored_foot: Vec<u8>,
    facts: Value,
    key: Key,
    keys: Arc<Keys>,
    halves: Arc<Halves>,
    opener: OnceLock<Opener>,
    /// The parts that this host kept, or why it has none; none where objects are not read from there.
    recalled: Option<std::result::Result<Recalled, String>>,
    /// The chunk that was read last, by its number: the next read often begins in it.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl SealedObject {
    fn opener(&self) -> Result<&Opener> {
        if let Some(opener) = self.opener.get() {
            return Ok(opener);
        }
        if let Some(recalled) = &self.recalled {
            let why = match recalled {
                Ok(_) => format!("this host keeps no content of object \"{}\"", self.key),
                Err(why) => why.clone(),
            };
            return Err(err!(Key, "{why}").hint(ONLY_WRITES));
        }
        let private = match self.halves.can_open() {
            true => self.halves.of(self.foot.decoded_head()?.epoch)?,
            false => None,
        };
        let (Some(mac), Some(private)) = (&self.keys.mac, private) else {
            return Err(err!(
                Key,
                "object \"{}\" is encrypted, and no key to read it with is configured",
                self.key
            )
            .hint(match self.keys.mac {
                Some(_) => ONLY_WRITES,
                None => NO_KEY,
            }));
        };
        let opener = Opener::new(&self.foot, mac, &private);
        let opener = opener.map_err(|e| e.context(format!("open object \"{}\"", self.key)))?;
        Ok(self.opener.get_or_init(|| opener))
    }

    /// Reads and opens a run of chunks, and hands over each.
    fn chunks(
        &self,
        numbers: Range<u64>,
        see: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<Option<(u64, Vec<u8>)>> {
        let opener = self.opener()?;
        let stored = |n: u64| HEAD as u64 + n * (CHUNK + TAG) as u64;
        let last = numbers.end.saturating_sub(1);
        let end = stored(last) + (opener.chunk_bytes(last) + TAG) as u64;
        // The head goes with the first chunk: who reads all has checked all.
        let from = match numbers.start {
            0 => 0,
            first => stored(first),
        };
        let mut bytes = read(self.inner.as_ref(), from..end)?;
        let mut rest = bytes.as_mut_slice();
        if from == 0 {
            let (head, behind) = rest.split_at_mut(HEAD.min(rest.len()));
            if head != self.foot.head {
                return Err(err!(
                    Damaged,
                    "the head of object \"{}\" was changed since it was sealed",
                    self.key
                ));
            }
            rest = behind;
        }
        let mut kept = None;
        for number in numbers {
            let length = opener.chunk_bytes(number) + TAG;
            let (chunk, behind) = rest.split_at_mut(length.min(rest.len()));
            rest = behind;
            let length = opener
                .open(number, chunk)
                .map_err(|e| e.context(format!("read object \"{}\"", self.key)))?;
            let raw = chunk.get(..length).unwrap_or_default();
            see(number, raw);
            if number == last {
                kept = Some((number, raw.to_vec()));
            }
        }
        Ok(kept)
    }
}

/// Copies what of a chunk lies in the wanted range.
fn copy(buffer: &mut [u8], offset: u64, number: u64, raw: &[u8]) {
    let begin = number * CHUNK as u64;
    let (from, to) = (
        offset.max(begin),
        (offset + buffer.len() as u64).min(begin + raw.len() as u64),
    );
    let place = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
    if from >= to {
        return;
    }
    let source = raw.get(place(from, begin)..place(to, begin));
    let target = buffer.get_mut(place(from, offset)..place(to, offset));
    if let (Some(target), Some(source)) = (target, source) {
        target.copy_from_slice(source);
    }
}

impl Object for SealedObject {
    fn size_bytes(&self) -> u64 {
        self.foot.plain_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let end = end.filter(|end| *end <= self.foot.plain_bytes);
        let end = end.ok_or_else(|| {
            err!(
                Damaged,
                "object \"{}\" ends before byte {offset} and {} more",
                self.key,
                buffer.len()
            )
        })?;
        if let Some(Ok(recalled)) = &self.recalled
            && let Some(read) = recalled.read_at(buffer, offset)
        {
            return read;
        }
        let mut next = offset / CHUNK as u64;
        // Nothing is asked of an empty range; but an empty object is proven by opening its only chunk.
        let behind = match buffer.is_empty() {
            true => seal::chunks(self.foot.plain_bytes).min(next + 1),
            false => end.div_ceil(CHUNK as u64),
        };
        let mut kept = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, raw)) = kept.as_ref().filter(|(number, _)| *number == next) {
            copy(buffer, offset, *number, raw);
            next += 1;
        }
        // Other threads may read meanwhile.
        let before = kept.take();
        drop(kept);
        let mut newest = before;
        while next < behind {
            let numbers = next..behind.min(next + BATCH);
            next = numbers.end;
            newest = self.chunks(numbers, &mut |number, raw| {
                copy(buffer, offset, number, raw);
            })?;
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(())
    }

    crate::store::forward! {
        fn settle(&self) -> Result<()>;
        fn meta(&self) -> Option<Meta>;
    }

    fn opaque(&self) -> Option<&dyn Opaque> {
        let is_readable = self.halves.can_open() || matches!(self.recalled, Some(Ok(_)));
        (!is_readable).then_some(self as &dyn Opaque)
    }

    fn readable_from(&self) -> u64 {
        match &self.recalled {
            Some(Ok(recalled)) => recalled.readable_from(),
            _ => 0,
        }
    }

    fn sealed(&self) -> Option<&dyn Opaque> {
        Some(self)
    }
}

impl Opaque for SealedObject {
    fn facts(&self) -> &Value {
        &self.facts
    }

    fn public_hash(&self, hash: &[u8; 32]) -> Option<[u8; 32]> {
        self.keys.mac.as_ref().map(|mac| mac.content(hash))
    }

    fn stored_foot(&self) -> &[u8] {
        &self.stored_foot
    }

    fn epoch(&self) -> Result<u32> {
        Ok(self.foot.decoded_head()?.epoch)
    }

    fn stored_hash(&self) -> (u64, [u8; 32]) {
        let end = seal::sealed_bytes(self.foot.plain_bytes).unwrap_or(0);
        (end, self.foot.stored)
    }

    fn check_stored(&self) -> Result<()> {
        let (end, expected) = self.stored_hash();
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < end {
            let piece = read(self.inner.as_ref(), at..end.min(at + (1 << 20)))?;
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        match *hasher.finalize().as_bytes() == expected {
            true => Ok(()),
            false => Err(err!(
                Damaged,
                "the stored bytes of object \"{}\" were changed since it was sealed",
                self.key
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::repo::crafted;
    use crate::repo::event::{self, Event};
    use crate::repo::id::BackupId;
    use crate::repo::layout::ClusterLayout;
    use crate::repo::root::BackupRoot;
    use crate::seal::{KeySetId, Secret32};
    use crate::store::{Listed, Meta, Room};

    /// An object that is another one when it is read again behind the two reads of a check: of its end, and of all of it.
    struct Fickle {
        first: Vec<u8>,
        later: Vec<u8>,
        reads: AtomicUsize,
    }

    impl Object for Arc<Fickle> {
        fn size_bytes(&self) -> u64 {
            self.first.len() as u64
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            let bytes = match self.reads.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => &self.first,
                _ => &self.later,
            };
            let from = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
            Ok(())
        }

        fn settle(&self) -> Result<()> {
            Ok(())
        }
    }

    impl Store for Arc<Fickle> {
        fn location(&self) -> String {
            "fickle".into()
        }

        fn open(&self, _: &Key) -> Result<Option<Box<dyn Object>>> {
            Ok(Some(Box::new(Arc::clone(self))))
        }

        fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
            Err(err!(Denied, "{key} cannot be written"))
        }

        fn list(&self, _: &str) -> Result<Vec<Listed>> {
            Ok(Vec::new())
        }

        fn head(&self, _: &Key) -> Result<Option<Meta>> {
            Ok(None)
        }

        fn delete(&self, key: &Key) -> Result<bool> {
            Err(err!(Denied, "{key} cannot be deleted"))
        }

        fn room(&self) -> Result<Option<Room>> {
            Ok(None)
        }
    }

    #[test]
    fn a_tombstone_stays_what_was_checked_whatever_the_store_says_next() {
        let layout = ClusterLayout::new("main", 7).unwrap();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let key = layout.manifest(&id);
        let tombstone = Tombstone {
            id: id.clone(),
            nonce: "0".repeat(32),
        };
        let first = json::encode(&key, TOMBSTONE, &tombstone).unwrap();
        let later = vec![b' '; first.len()];
        let fickle = Arc::new(Fickle {
            first: first.clone(),
            later,
            reads: AtomicUsize::new(0),
        });
        let store = SealedStore::new(Box::new(fickle), Keys::none(KeySetId([1; 16])));
        assert_eq!(BackupRoot::read(&store, &layout, &id).unwrap(), None);
        let e = store.open(&key).err().unwrap();
        assert_eq!(e.code(), crate::error::Code::Damaged, "{e}");
    }

    /// A host whose configuration lost the section of encryption.
    #[test]
    fn z17_no_event_that_would_count_as_forged_is_written_without_the_mac_key() {
        let (_dir, inner) = crafted::store();
        let keys = Keys::load(&inner, KeySetId([1; 16]), None).unwrap();
        let store = SealedStore::new(Box::new(inner), keys);
        let layout = ClusterLayout::new("main", 7).unwrap();
        let of = |kind: &str| Event {
            event: kind.into(),
            subject: "20261120T064049Z-full".into(),
            ..Event::default()
        };
        let begun = event::begin(&store, &layout, &of("begin"));
        assert_eq!(begun.unwrap_err().code(), Code::Key);
        for kind in ["completed", "gap", "pin", "mark", "drilled", "adopted"] {
            let recorded = event::record(&store, &layout, &of(kind), 7);
            assert_eq!(recorded.unwrap_err().code(), Code::Key, "{kind}");
        }
        let read = || event::read_all(&store, &layout, "20261120T064049Z-full").unwrap();
        assert!(read().is_empty());
        // A janitor without keys marks, and claims what it deletes.
        for kind in ["claim", "expire"] {
            event::record(&store, &layout, &of(kind), 7).unwrap();
        }
        assert_eq!(read().len(), 2);
    }

    /// The file in `testdata/sealed`, which another program checks and which does not change any more: repositories hold such objects.
    #[test]
    fn the_vector_of_an_event_is_what_is_written_today() {
        let ramp =
            |first: u8| Secret32::new(std::array::from_fn(|n| first + u8::try_from(n).unwrap()));
        let public = seal::public_of(&seal::PrivateHalf(ramp(0x20))).unwrap();
        let mac = MacKey::new(ramp(0x60), &public).unwrap();
        let none = Keys::none(mac.id());
        let keys = Keys {
            public: Some((FIRST_EPOCH, public)),
            is_of_file: true,
            mac: Some(mac),
            ..none
        };
        let (dir, inner) = crafted::store();
        let store = SealedStore::new(Box::new(inner), keys);
        let layout = ClusterLayout::new("main", 7).unwrap();
        let event = Event {
            event: "begin".into(),
            subject: "20261120T064049Z-full".into(),
            time: "2026-11-20T06:40:49.123456Z".parse().unwrap(),
            nonce: "0".repeat(32),
            ..Event::default()
        };
        event::begin(&store, &layout, &event).unwrap();
        let key = layout.begin(&event.subject.parse().unwrap());
        let written = std::fs::read(dir.path().join(key.as_str())).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed/event.json");
        if std::env::var_os("PITR_WRITE_VECTORS").is_some() {
            std::fs::write(path, &written).unwrap();
        }
        assert!(std::fs::read(path).unwrap() == written, "{path} differs");
        let all = event::read_all(&store, &layout, &event.subject).unwrap();
        assert!(all.iter().all(|e| e.event == event && !e.is_doubted));
    }
}
