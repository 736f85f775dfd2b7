//! Healed copies (format, section 12): the whole copy of a damaged object, beside it under `<key>.heal-<n>`.
//!
//! The original is read first, always: who may only create objects must not be able to change what is read of a whole
//! one. Containers prove themselves, so [`HealedStore`] settles them where they are opened. Roots, layers and packs are proven
//! by their readers, which come through [`read`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::container::{Container, Kind};
use super::layout;
use super::scope::{self, CLUSTERS, healed_base};
use crate::error::{Code, Error, Result};
use crate::store::{Key, Listed, NewObject, Object, Store};
use crate::text::hex;

/// So many healed copies of an object are looked at, and written.
pub const COPIES_MAX: u32 = 16;

/// Returns the key of a healed copy.
///
/// # Errors
/// `Damaged` when it is too long for a key.
pub fn copy_key(key: &Key, number: u32) -> Result<Key> {
    Key::new(format!("{key}.heal-{number}"))
}

/// Whether an error says that the stored bytes of an object are of no use. An object that its store must thaw is whole for all that
/// is known.
pub fn is_of_the_object(e: &Error) -> bool {
    (e.code() == Code::Damaged || e.is_medium()) && !e.is_frozen()
}

/// Opens what is stored under a key; none where nothing is. The inner error says that this one object is of no use now: it is damaged, or
/// must be thawed. A sealed object shows that when it is opened, a plain one when it is read: both are the same to a caller whom such an
/// object does not stop.
///
/// # Errors
/// All else that the store says.
pub fn opened(store: &dyn Store, key: &Key) -> Result<Option<Result<Box<dyn Object>>>> {
    match store.open(key) {
        Err(e) if is_of_the_object(&e) || e.is_frozen() => Ok(Some(Err(e))),
        object => Ok(object?.map(Ok)),
    }
}

/// As [`opened`], of a container. The inner error may be any that reading the object gives, such as `Unsupported` or `Unreachable`.
///
/// # Errors
/// Those of [`opened`].
pub fn container(store: &dyn Store, key: &Key) -> Result<Option<Result<Container>>> {
    let object = opened(store, key)?;
    Ok(object.map(|object| object.and_then(Container::open)))
}

/// Returns the result of `read` on the object under `key`; where that is damaged, on the first healed copy that passes.
///
/// # Errors
/// Those of `read` on the original; that of a copy which its store must thaw first, for that one may be whole.
pub fn read<T>(store: &dyn Store, key: &Key, read: impl Fn(&dyn Store) -> Result<T>) -> Result<T> {
    let e = match read(store) {
        Err(e) if is_of_the_object(&e) => e,
        other => return other,
    };
    let mut frozen = None;
    // That no copy could be looked for changes nothing about the original.
    for copy in store.healed_copies(key).unwrap_or_default() {
        let view = View {
            inner: store,
            key,
            copy: &copy,
        };
        match read(&view) {
            Ok(found) => {
                store.note_healed(key, &copy);
                return Ok(found);
            }
            Err(why) if matches!(why.code(), Code::TargetWrite | Code::Interrupted) => {
                return Err(why);
            }
            Err(why) if why.is_frozen() => {
                frozen.get_or_insert(why);
            }
            Err(_) => {}
        }
    }
    Err(frozen.unwrap_or(e))
}

/// Requires that every byte of a container passes its checks.
///
/// # Errors
/// `Damaged`; what the store says.
pub fn check_whole(container: &Container) -> Result<()> {
    container.check_stored()?;
    match container.is_opaque() {
        true => Ok(()),
        false => container.read_body(&mut |_| Ok(())),
    }
}

/// Whether a key is that of a container: one that is whole proves it by itself.
pub fn is_container(key: &Key) -> bool {
    let mut parts = key.as_str().split('/');
    let is_of_cluster = parts.next() == Some(CLUSTERS);
    is_of_cluster
        && match parts.nth(2) {
            Some("wal" | "conflicts") => true,
            Some("backups") => matches!(parts.nth(1), Some("server-manifest" | "relations")),
            _ => false,
        }
}

/// Whether a container says of itself that it is the object of this key. To which backup a manifest or a list belongs,
/// the root of that tells.
///
/// # Errors
/// `Key` where the key of the hashes is not at hand.
pub fn belongs(store: &dyn Store, key: &Key, container: &Container) -> Result<bool> {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let [CLUSTERS, _, identifier, area, rest @ ..] = parts.as_slice() else {
        return Ok(false);
    };
    let identity = container.identity();
    if identifier.parse() != Ok(identity.system_identifier) {
        return Ok(false);
    }
    let is = |kind: Kind, name: &str| container.kind() == kind && identity.name == name;
    Ok(match (*area, rest) {
        ("conflicts", [name]) => {
            let hash = match container.is_opaque() {
                true => identity.hash,
                false => store.public_hash(&identity.hash)?,
            };
            let of = name.rsplit_once('-');
            of.is_some_and(|(of, begins)| of == identity.name && hex(&hash).starts_with(begins))
        }
        ("wal", [timeline, "history"]) => is(Kind::History, &format!("{timeline}.history")),
        ("wal", [.., "labels", name]) => is(Kind::Label, name),
        ("wal", [.., "partial", name]) => is(Kind::Partial, &format!("{name}.partial")),
        ("wal", [.., "open", segment, range]) => {
            let range = layout::increment_range(range).map(|r| (r.start.0, r.end.0));
            is(Kind::Increment, segment) && range == Some((identity.from_lsn, identity.to_lsn))
        }
        ("wal", [.., name]) => is(Kind::Segment, name),
        ("backups", [_, "server-manifest"]) => is(Kind::ServerManifest, "backup_manifest"),
        ("backups", [_, "relations"]) => container.kind() == Kind::Relations,
        _ => false,
    })
}

/// The object that is read under a key that has healed copies.
#[derive(Debug, Clone)]
enum Choice {
    /// It is not known yet whether the original is damaged.
    Open,
    Original,
    Copy(Key),
}

/// A store in which a damaged container is read from its healed copy.
///
/// Listings that pass through it tell which objects have such copies, so that it asks for none where nothing was healed.
pub struct HealedStore {
    inner: Box<dyn Store>,
    choices: Mutex<BTreeMap<Key, Choice>>,
}

impl HealedStore {
    /// Wraps the store of a repository.
    pub fn new(inner: Box<dyn Store>) -> HealedStore {
        HealedStore {
            inner,
            choices: Mutex::default(),
        }
    }

    fn choices(&self) -> MutexGuard<'_, BTreeMap<Key, Choice>> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, prefix: &str, name: &str) {
        if !name.contains(".heal-") {
            return;
        }
        let whole = format!("{prefix}/{name}");
        let key = healed_base(&whole).map(Key::new);
        if let Some(key) = key.and_then(Result::ok) {
            self.choices().entry(key).or_insert(Choice::Open);
        }
    }

    /// The copy to read under a key, if it is not to be the original.
    fn chosen(&self, key: &Key) -> Option<Key> {
        let choice = self.choices().get(key).cloned()?;
        let choice = match choice {
            Choice::Open if is_container(key) => {
                let decided = self.decide(key)?;
                self.choices().insert(key.clone(), decided.clone());
                decided
            }
            Choice::Copy(_) if !is_container(key) => Choice::Original,
            known => known,
        };
        match choice {
            Choice::Copy(copy) => Some(copy),
            Choice::Open | Choice::Original => None,
        }
    }

    /// Reads the original whole, and copies where it is damaged; `None` where that could not be told. Reading it then says why.
    fn decide(&self, key: &Key) -> Option<Choice> {
        let mut own = None;
        let original = || -> Result<()> {
            if let Some(object) = self.inner.open(key)? {
                let container = Container::open_under(key, object)?;
                own = Some((container.kind(), container.identity().clone()));
                check_whole(&container)?;
            }
            Ok(())
        };
        match { original }() {
            Ok(()) => return Some(Choice::Original),
            Err(e) if is_of_the_object(&e) => {}
            Err(_) => return None,
        }
        for copy in self.healed_copies(key).ok()? {
            let passes = || -> Result<bool> {
                let Some(object) = self.inner.open(&copy)? else {
                    return Ok(false);
                };
                let container = Container::open_under(key, object)?;
                // As far as the damaged original still says what it held, it is that.
                let found = (container.kind(), container.identity().clone());
                let is_same = own.as_ref().is_none_or(|own| *own == found);
                check_whole(&container)?;
                Ok(is_same && belongs(self.inner.as_ref(), key, &container)?)
            };
            if passes().unwrap_or(false) {
                return Some(Choice::Copy(copy));
            }
        }
        Some(Choice::Original)
    }
}

impl Store for HealedStore {
    crate::store::pass_on!(all but listings and delete);

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let listed = self.inner.list(prefix)?;
        for one in listed.iter().filter(|one| !one.is_prefix) {
            self.see(prefix, &one.name);
        }
        Ok(listed)
    }

    fn visit(&self, prefix: &str, see: &mut dyn FnMut(&str, bool)) -> Result<()> {
        self.inner.visit(prefix, &mut |name, is_prefix| {
            if !is_prefix {
                self.see(prefix, name);
            }
            see(name, is_prefix);
        })
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        match self.chosen(key) {
            Some(copy) => self.inner.open(&copy),
            None => self.inner.open(key),
        }
    }

    /// The copies of a root go behind it: with the root its backup ends. Those of other objects go first, so that none is left without its base.
    fn delete(&self, key: &Key) -> Result<bool> {
        if key.name() != "manifest" && self.choices().contains_key(key) {
            for copy in self.healed_copies(key)? {
                self.inner.delete(&copy)?;
            }
            self.forget_healed(key);
        }
        self.inner.delete(key)
    }

    crate::store::forward! {
        fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;
        fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>>;
    }

    fn healed_copies(&self, key: &Key) -> Result<Vec<Key>> {
        let mut copies = Vec::new();
        if !scope::is_sealed_form(key)
            || healed_base(key.as_str()).is_some()
            || self.inner.head(key)?.is_none()
        {
            return Ok(copies);
        }
        for number in 1..=COPIES_MAX {
            let copy = copy_key(key, number)?;
            if self.inner.head(&copy)?.is_none() {
                break;
            }
            copies.push(copy);
        }
        if !copies.is_empty() {
            self.choices().entry(key.clone()).or_insert(Choice::Open);
        }
        Ok(copies)
    }

    fn note_healed(&self, key: &Key, copy: &Key) {
        self.choices()
            .insert(key.clone(), Choice::Copy(copy.clone()));
    }

    fn forget_healed(&self, key: &Key) {
        self.choices().remove(key);
    }

    fn healed_in_use(&self) -> Vec<(Key, Key)> {
        let choices = self.choices();
        let used = choices.iter().filter_map(|(key, choice)| match choice {
            Choice::Copy(copy) => Some((key.clone(), copy.clone())),
            Choice::Open | Choice::Original => None,
        });
        used.collect()
    }

    crate::store::pass_keys!();
}

/// A store in which one object is its healed copy.
struct View<'a> {
    inner: &'a dyn Store,
    key: &'a Key,
    copy: &'a Key,
}

impl Store for View<'_> {
    crate::store::pass_on!();

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        match key == self.key {
            true => self.inner.open(self.copy),
            false => self.inner.open(key),
        }
    }

    crate::store::forward! {
        fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;
        fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>>;
    }

    crate::store::pass_keys!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;
    use crate::store::file::FileStore;
    use crate::store::put;

    #[test]
    fn v52_a_frozen_copy_of_a_damaged_object_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(&dir.path().join("repo"), 1).unwrap();
        let key = Key::new("clusters/main/1/packs/20261120T064049Z-full/3").unwrap();
        put(&store, &key, b"torn").unwrap();
        put(&store, &copy_key(&key, 1).unwrap(), b"cold").unwrap();
        let store = HealedStore::new(Box::new(store));
        let look = |store: &dyn Store| -> Result<()> {
            let object = store.open(&key)?.unwrap();
            match crate::store::read(object.as_ref(), &key, 16)?.as_slice() {
                b"cold" => Err(err!(Damaged, "it must be thawed").frozen()),
                b"whole" => Ok(()),
                _ => Err(err!(Damaged, "it is torn")),
            }
        };
        assert!(read(&store, &key, look).unwrap_err().is_frozen());
        put(&store, &copy_key(&key, 2).unwrap(), b"whole").unwrap();
        read(&store, &key, look).unwrap();
    }

    /// A store that gives no object back before it is thawed, as a sealed one in an archive class.
    struct Cold {
        inner: Box<dyn Store>,
    }

    impl Store for Cold {
        crate::store::pass_on!();

        fn open(&self, _key: &Key) -> Result<Option<Box<dyn Object>>> {
            Err(err!(Damaged, "it must be thawed").frozen())
        }

        crate::store::forward! {
            fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;
            fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>>;
        }

        crate::store::pass_keys!();
    }

    #[test]
    fn v52_a_frozen_object_is_the_same_whether_it_shows_when_it_is_opened_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let inner = FileStore::create(&dir.path().join("repo"), 1).unwrap();
        let key = Key::new("clusters/main/1/wal/00000001/00000000/000000010000000000000001");
        let cold = Cold {
            inner: Box::new(inner),
        };
        let opened = opened(&cold, &key.unwrap()).unwrap();
        assert!(opened.unwrap().err().unwrap().is_frozen());
    }
}
