//! The state of a host that writes into an encrypted repository and cannot read it back: the parts of its own objects
//! that its next incremental asks for.
//!
//! A file below `<state_dir>/<uuid of the repository>` holds parts of the object of the same key, in plain bytes that
//! are sealed to a key of this host (decision 0047). It names the foot of that object, and counts for no other one. So
//! state of another repository, and state that was put back from an earlier day, is as good as missing. A failure to
//! keep something never fails what is stored.

use std::fs::{DirBuilder, Metadata};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keyring::{Keys, draw, read_secret, system_random};
use super::sealed::SealedStore;
use crate::durable::{self, Delivery};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::process;
use crate::seal::{self, FIRST_EPOCH, MacKey, PrivateHalf, Sealer, Secret32, public_of};
use crate::store::file::FileStore;
use crate::store::{Key, Object, Store};
use crate::text;

/// Raised whenever the meaning of a file changes.
const VERSION: u32 = 1;
/// The host's key, beside the files: private half and MAC key, in hexadecimal.
const KEY_FILE: &str = "host.key";
/// Parts of WAL take no more room than that.
const WAL_LIMIT_BYTES: usize = 1 << 30;
/// The room is measured once for so many segments.
const MEASURED_EACH: u64 = 64;
const AT_ONCE: u64 = 1 << 20;
/// So much of layers that could not be kept stays in memory.
const UNKEPT_BYTES: usize = 32 << 20;

/// The facts of a file, under its MAC.
#[derive(Clone, Serialize, Deserialize)]
struct Facts {
    version: u32,
    /// BLAKE3 of the foot of the object in the repository, in hexadecimal.
    foot: String,
    /// Length of the object as it is stored.
    stored_bytes: u64,
    /// Length of its content.
    plain_bytes: u64,
    /// Position and length of each part, ascending; the file's content is the parts one after another.
    parts: Vec<(u64, u64)>,
}

/// The parts of an object that is being written.
#[derive(Default)]
pub struct Parts {
    at: u64,
    is_kept: bool,
    parts: Vec<(u64, Vec<u8>)>,
}

impl Parts {
    /// Says whether the bytes from here on are kept.
    pub fn keep(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
    }

    /// Takes the object's next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let at = self.at;
        self.at += bytes.len() as u64;
        if !self.is_kept || bytes.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some((from, part)) if *from + part.len() as u64 == at => part.extend_from_slice(bytes),
            _ => self.parts.push((at, bytes.to_vec())),
        }
    }
}

/// The kept parts of one object, open for reading.
pub struct Recalled {
    key: Key,
    object: Box<dyn Object>,
    facts: Facts,
}

impl Recalled {
    /// Returns the length of the content of the object, most of which was not kept.
    pub fn plain_bytes(&self) -> u64 {
        self.facts.plain_bytes
    }

    /// Returns the offset from which on all of the object is there.
    pub fn readable_from(&self) -> u64 {
        self.facts.parts.last().map_or(0, |(from, _)| *from)
    }

    /// Reads from the object's position `offset` on; `None` when that was not kept.
    ///
    /// # Errors
    /// `Damaged`, and those of the system.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Option<Result<()>> {
        let end = offset.checked_add(buffer.len() as u64)?;
        let mut before = 0;
        for (from, length) in &self.facts.parts {
            if *from <= offset && end <= from + length {
                let read = self.object.read_at(buffer, before + (offset - from));
                return Some(read.map_err(|e| err!(Damaged, "{}", damaged(&self.key, &e))));
            }
            before += length;
        }
        None
    }
}

/// A layer that is not kept in a file.
struct Memory(Vec<u8>);

impl Object for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or_else(|| err!(Damaged, "the layer ends before"))?);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// The state directory of one repository.
pub struct Kept {
    directory: PathBuf,
    opened: OnceLock<std::result::Result<SealedStore, String>>,
    /// The first failure to keep something.
    failed: Mutex<Option<String>>,
    /// Layers that could not be kept: the backup that wrote them reads them once more.
    unkept: Mutex<Vec<(Key, Facts, Vec<u8>)>>,
}

impl Kept {
    /// Takes a directory, which is made when it is first asked for.
    pub fn new(directory: PathBuf) -> Kept {
        Kept {
            directory,
            opened: OnceLock::new(),
            failed: Mutex::new(None),
            unkept: Mutex::default(),
        }
    }

    /// Returns why something could not be kept since this process began.
    pub fn failure(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone()
    }

    fn store(&self) -> std::result::Result<&SealedStore, &str> {
        let open = || open(&self.directory).map_err(|e| e.to_string());
        self.opened
            .get_or_init(open)
            .as_ref()
            .map_err(|e| e.as_str())
    }

    /// Keeps parts of an object that is stored by now, and ends with this foot. A failure is remembered alone.
    pub fn put(&self, key: &Key, foot: &[u8], parts: &Parts) {
        if parts.parts.is_empty() {
            return;
        }
        let facts = Facts {
            version: VERSION,
            foot: text::hex(blake3::hash(foot).as_bytes()),
            stored_bytes: seal::sealed_bytes(parts.at).unwrap_or(0) + foot.len() as u64,
            plain_bytes: parts.at,
            parts: parts
                .parts
                .iter()
                .map(|(from, part)| (*from, part.len() as u64))
                .collect(),
        };
        let put = || -> Result<()> {
            let store = self.store().map_err(|why| err!(Io, "{why}"))?;
            self.make_room(key)?;
            self.write(store.keys(), key, &facts, parts)
        };
        if let Err(e) = put() {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| e.to_string());
            let mut unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: usize = unkept.iter().map(|(.., content)| content.len()).sum();
            if key.as_str().contains("/layers/") && bytes < UNKEPT_BYTES {
                let content = parts
                    .parts
                    .iter()
                    .flat_map(|(_, part)| part)
                    .copied()
                    .collect();
                unkept.push((key.clone(), facts, content));
            }
        }
    }

    fn write(&self, keys: &Keys, key: &Key, facts: &Facts, parts: &Parts) -> Result<()> {
        let path = self.directory.join(key.as_str());
        let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
        if let Some(parent) = path.parent() {
            make(parent).map_err(failed)?;
        }
        let facts = serde_json::to_vec(facts)
            .map_err(|e| err!(Internal, "the facts of a file could not be written").source(e))?;
        let (Some((epoch, public)), Some(mac)) = (&keys.public, &keys.mac) else {
            return Err(err!(Internal, "the host's key is not whole"));
        };
        // Unsynced: what a power cut takes away, or leaves in pieces, is missing, and found to be.
        let file = Delivery::create(&path, nonce()?).map_err(failed)?;
        let mut sealer = Sealer::new(file, key.as_str(), (*epoch, public), mac, &keys.drawn()?)?;
        for (_, part) in &parts.parts {
            sealer.write_all(part).map_err(failed)?;
        }
        let (file, _) = sealer.finish(&facts, mac).map_err(failed)?;
        file.finish().map_err(failed)
    }

    /// Opens what is kept of an object that ends with this foot.
    ///
    /// # Errors
    /// Why it cannot be had, for a sentence.
    pub fn recall(&self, key: &Key, foot: &[u8]) -> std::result::Result<Recalled, String> {
        let of_this = text::hex(blake3::hash(foot).as_bytes());
        self.recall_if(key, |facts| facts.foot == of_this)
    }

    /// As [`Kept::recall`], of an object of which the store shows the stored length alone.
    ///
    /// # Errors
    /// Why it cannot be had, for a sentence.
    pub fn recall_unseen(
        &self,
        key: &Key,
        stored_bytes: Option<u64>,
    ) -> std::result::Result<Recalled, String> {
        self.recall_if(key, |facts| {
            stored_bytes.is_none_or(|n| n == facts.stored_bytes)
        })
    }

    fn recall_if(
        &self,
        key: &Key,
        is_of_it: impl FnOnce(&Facts) -> bool,
    ) -> std::result::Result<Recalled, String> {
        let (object, facts) = match self.unkept(key) {
            Some((facts, content)) => (Box::new(Memory(content)) as Box<dyn Object>, facts),
            None => self.open(key)?,
        };
        match is_of_it(&facts) {
            true => Ok(Recalled {
                key: key.clone(),
                object,
                facts,
            }),
            false => Err(format!(
                "what this host keeps of object \"{key}\" is of another object than the repository has"
            )),
        }
    }

    /// Reads what is kept of an object, whole.
    ///
    /// # Errors
    /// Why it cannot be had, for a sentence.
    pub fn check(&self, key: &Key) -> std::result::Result<(), String> {
        let (object, _) = self.open(key)?;
        let (mut at, end) = (0, object.size_bytes());
        loop {
            let length = (end - at).min(AT_ONCE);
            let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
            object
                .read_at(&mut piece, at)
                .map_err(|e| damaged(key, &e))?;
            at += length;
            if at == end {
                return Ok(());
            }
        }
    }

    fn unkept(&self, key: &Key) -> Option<(Facts, Vec<u8>)> {
        let unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, facts, content) = unkept.iter().find(|(of, ..)| of == key)?;
        Some((facts.clone(), content.clone()))
    }

    fn open(&self, key: &Key) -> std::result::Result<(Box<dyn Object>, Facts), String> {
        let store = self.store()?;
        let nothing = || format!("this host keeps nothing of object \"{key}\"");
        let object = store.open(key).map_err(|e| damaged(key, &e))?;
        let object = object.ok_or_else(nothing)?;
        let facts = object.sealed().map(|sealed| sealed.facts().clone());
        let facts: Option<Facts> = facts.and_then(|facts| serde_json::from_value(facts).ok());
        let facts = facts.filter(|facts| facts.version == VERSION);
        let facts = facts.ok_or_else(|| {
            format!("what this host keeps of object \"{key}\" is of another version of pitr")
        })?;
        Ok((object, facts))
    }

    /// Deletes what is kept of a cluster's objects, but for those that `is_needed` names.
    pub fn prune(&self, cluster: &str, is_needed: &dyn Fn(&str) -> bool) {
        let files = files_below(&self.directory, cluster);
        for (key, _) in files.into_iter().filter(|(key, _)| !is_needed(key)) {
            let _ = std::fs::remove_file(self.directory.join(key));
        }
    }

    /// Forgets all WAL when it takes too much room: an interval that is not whole serves for nothing.
    fn make_room(&self, key: &Key) -> Result<()> {
        let Some((cluster, rest)) = key.as_str().split_once("/wal/") else {
            return Ok(());
        };
        let number = rest.get(rest.len().saturating_sub(8)..).unwrap_or_default();
        let number = u64::from_str_radix(number, 16).unwrap_or_default();
        let limit = fault::lowered(WAL_LIMIT_BYTES);
        if !number.is_multiple_of(MEASURED_EACH) && limit == WAL_LIMIT_BYTES {
            return Ok(());
        }
        let files = files_below(&self.directory, &format!("{cluster}/wal"));
        if files.iter().map(|(_, bytes)| bytes).sum::<u64>() <= limit as u64 {
            return Ok(());
        }
        for (key, _) in files {
            let path = self.directory.join(key);
            let failed = |e| Error::from_io(format!("delete \"{}\"", path.display()), e);
            std::fs::remove_file(&path).map_err(failed)?;
        }
        Ok(())
    }
}

fn damaged(key: &Key, e: &Error) -> String {
    format!("what this host keeps of object \"{key}\" is damaged: {e}")
}

fn nonce() -> Result<u64> {
    let mut bytes = [0; 8];
    system_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn make(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// Opens a directory, and makes it and its key where there is none.
fn open(directory: &Path) -> Result<SealedStore> {
    let shown = directory.display();
    let failed = |e| Error::from_io(format!("open state directory \"{shown}\""), e);
    make(directory).map_err(failed)?;
    check_owner(directory, &std::fs::metadata(directory).map_err(failed)?)?;
    let store = FileStore::open(directory, nonce()?)?;
    Ok(SealedStore::new(Box::new(store), host_keys(directory)?))
}

/// Requires that nobody else reads or writes what is kept.
fn check_owner(directory: &Path, metadata: &Metadata) -> Result<()> {
    let shown = directory.display();
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(err!(
            Denied,
            "state directory \"{shown}\" is open to other users: its mode is {mode:04o}"
        ));
    }
    let (own, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
    match own == owner {
        true => Ok(()),
        false => Err(err!(
            Denied,
            "state directory \"{shown}\" belongs to user {owner}, not to user {own}"
        )),
    }
}

/// Reads the host's key, and makes it where there is none.
fn host_keys(directory: &Path) -> Result<Keys> {
    let path = directory.join(KEY_FILE);
    let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
    if !path.exists() {
        let halves = [draw(system_random)?, draw(system_random)?];
        let text = halves.iter().map(|half| text::hex(half.expose())).collect();
        let text = Zeroizing::new(text);
        durable::write_new(&path, String::as_bytes(&text), nonce()?).map_err(failed)?;
    }
    let text = read_secret("host key", &path)?;
    let text = std::str::from_utf8(&text).unwrap_or_default();
    let halves = text.split_at_checked(64);
    let halves = halves.and_then(|(a, b)| Some((Secret32::from_hex(a)?, Secret32::from_hex(b)?)));
    let (private, mac) =
        halves.ok_or_else(|| err!(Damaged, "\"{}\" is damaged: delete it", path.display()))?;
    let private = PrivateHalf(private);
    let public = public_of(&private)?;
    let mac = MacKey::new(mac, &public)?;
    let none = Keys::none(mac.id());
    Ok(Keys {
        public: Some((FIRST_EPOCH, public)),
        is_of_file: true,
        mac: Some(mac),
        private: Some(private),
        ..none
    })
}

/// Whether a file is on its way under another name: `.tmp.<name>.<pid>.<nonce>`, of a process that runs.
fn is_being_written(name: &str) -> bool {
    let mut ends = name.rsplit('.').skip(1);
    let pid = ends.next().and_then(|pid| pid.parse().ok());
    name.starts_with(durable::TEMPORARY_PREFIX) && pid.is_some_and(|pid| !process::has_ended(pid))
}

/// Keys and lengths of the files below a folder.
fn files_below(directory: &Path, folder: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(directory.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata())
            else {
                continue;
            };
            let key = format!("{folder}/{name}");
            match metadata.is_dir() {
                true => folders.push(key),
                false if is_being_written(&name) => {}
                false => found.push((key, metadata.len())),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn kept(directory: &Path) -> Kept {
        Kept::new(directory.join("state"))
    }

    fn parts(content: &[(bool, &[u8])]) -> Parts {
        let mut parts = Parts::default();
        for (is_kept, bytes) in content {
            parts.keep(*is_kept);
            parts.add(bytes);
        }
        parts
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn read(part: &Recalled, range: Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        part.read_at(&mut bytes, range.start)?.unwrap();
        Some(bytes)
    }

    #[test]
    fn parts_come_back_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let kept = kept(directory.path());
        let pack = key("clusters/main/7/packs/20261120T064049Z-full/000000");
        let content = parts(&[
            (true, b"head"),
            (false, b"frames"),
            (true, b"has"),
            (true, b"hes"),
        ]);
        kept.put(&pack, b"foot", &content);
        assert_eq!(kept.failure(), None);
        let part = kept.recall(&pack, b"foot").unwrap();
        assert_eq!(part.readable_from(), 10);
        assert_eq!(read(&part, 0..4).unwrap(), b"head");
        assert_eq!(read(&part, 10..16).unwrap(), b"hashes");
        assert_eq!(read(&part, 12..14).unwrap(), b"sh");
        for range in [0..5, 4..5, 9..11, 15..17] {
            assert_eq!(read(&part, range.clone()), None, "{range:?}");
        }
        let stored = std::fs::read(directory.path().join("state").join(pack.as_str())).unwrap();
        assert!(!stored.windows(6).any(|w| w == b"hashes"));
        kept.check(&pack).unwrap();
    }

    #[test]
    fn the_file_of_another_object_and_a_damaged_one_are_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let kept = kept(directory.path());
        let [one, two] = ["000000", "000001"]
            .map(|n| key(&format!("clusters/main/7/layers/20261120T064049Z-full/{n}")));
        let refused = |key: &Key, foot: &[u8]| kept.recall(key, foot).err().unwrap();
        assert!(refused(&one, b"foot").contains("keeps nothing"));
        kept.put(&one, b"foot", &parts(&[(true, b"layer")]));
        assert!(refused(&one, b"another foot").contains("of another object"));
        let path = |key: &Key| directory.path().join("state").join(key.as_str());
        let whole = std::fs::read(path(&one)).unwrap();
        std::fs::write(path(&two), &whole).unwrap();
        assert!(refused(&two, b"foot").contains("damaged"), "swapped");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(path(&one), &flipped).unwrap();
            assert!(kept.check(&one).is_err(), "byte {at}");
            std::fs::write(path(&one), &whole[..at]).unwrap();
            assert!(kept.check(&one).is_err(), "cut at {at}");
        }
        // Another host's key opens nothing.
        std::fs::write(path(&one), &whole).unwrap();
        std::fs::remove_file(directory.path().join("state/host.key")).unwrap();
        let other = Kept::new(directory.path().join("state"));
        assert!(
            other
                .recall(&one, b"foot")
                .err()
                .unwrap()
                .contains("damaged")
        );
    }

    #[test]
    fn a_directory_that_others_may_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let one = key("clusters/main/7/layers/20261120T064049Z-full/000000");
        set(&state, 0o750);
        let open = kept(directory.path());
        open.put(&one, b"foot", &parts(&[(true, b"layer")]));
        assert!(open.failure().unwrap().contains("open to other users"));
        set(&state, 0o700);
        let closed = kept(directory.path());
        closed.put(&one, b"foot", &parts(&[(true, b"layer")]));
        assert_eq!(closed.failure(), None);
        set(&state.join("host.key"), 0o644);
        let why = kept(directory.path()).recall(&one, b"foot").err().unwrap();
        assert!(why.contains("open to other users"), "{why}");
        set(&state.join("host.key"), 0o600);
        std::fs::write(state.join("host.key"), "short").unwrap();
        let why = kept(directory.path()).recall(&one, b"foot").err().unwrap();
        assert!(why.contains("delete it"), "{why}");
    }

    #[test]
    fn what_is_not_needed_any_more_goes() {
        let directory = tempfile::tempdir().unwrap();
        let kept = kept(directory.path());
        let all = [
            "clusters/main/7/wal/a",
            "clusters/main/7/layers/b/0",
            "clusters/other/8/wal/a",
        ]
        .map(key);
        for one in &all {
            kept.put(one, b"foot", &parts(&[(true, b"x")]));
        }
        kept.prune("clusters/main/7", &|key| key.contains("/layers/"));
        let is_there = |key: &Key| kept.check(key).is_ok();
        assert_eq!(all.each_ref().map(is_there), [false, true, true]);
    }
}
