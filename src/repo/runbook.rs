//! Recovery instructions of a set, stored once for each text (format, section 16.8): for those who have lost the host that had the configuration.
//!
//! A mark names the text by its hash, and the mark's own proof makes it more than a text that somebody left there.

use super::container::{Codec, Container, ContainerWriter, Identity, Kind};
use super::scope::Scope;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::store::{Key, Store};
use crate::text::{hex, is_hex};

/// A text has at most so many bytes.
pub const LIMIT_BYTES: u64 = 1 << 20;
/// The name in the container.
const NAME: &str = "runbook";
/// Digits of the hash in the key.
const DIGITS: usize = 16;

/// The folder of a set's texts.
pub fn folder(scope: &Scope) -> String {
    format!("{}/runbooks", scope.prefix())
}

/// Whether a name below [`folder`] is that of a text.
pub fn is_name(name: &str) -> bool {
    is_hex(name, DIGITS)
}

/// A text that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name: the first digits of its hash.
    pub name: String,
    /// When the store received it.
    pub stored: TimestampTz,
}

/// Lists the texts of a set.
///
/// # Errors
/// Errors of the store.
pub fn all(store: &dyn Store, scope: &Scope) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    for listed in store.list(&folder(scope))? {
        if listed.is_prefix || !is_name(&listed.name) {
            continue;
        }
        let meta = match listed.meta {
            Some(meta) => Some(meta),
            None => store.head(&named(scope, &listed.name)?)?,
        };
        found.extend(meta.map(|meta| Stored {
            name: listed.name,
            stored: meta.modified,
        }));
    }
    Ok(found)
}

/// The name of the text that a mark names; none of what is no hash.
pub fn name_in(hash: &str) -> Option<&str> {
    hash.get(..DIGITS).filter(|_| is_hash(hash))
}

/// Returns the key of a text by its name.
///
/// # Errors
/// `Usage` for what is no name of an object.
pub fn named(scope: &Scope, name: &str) -> Result<Key> {
    Key::new(format!("{}/{name}", folder(scope)))
}

/// Whether a text is named so by a mark.
pub fn is_hash(text: &str) -> bool {
    is_hex(text, 64)
}

/// Returns the key of the text that a mark names.
///
/// # Errors
/// `Damaged` for a text that is no hash.
pub fn key(scope: &Scope, hash: &str) -> Result<Key> {
    let name = name_in(hash).ok_or_else(|| err!(Damaged, "a mark names no runbook"))?;
    named(scope, name)
}

/// Returns the hash by which a mark of this repository names a text.
///
/// # Errors
/// `Key` where the key of hashes is not at hand.
pub fn hash(store: &dyn Store, text: &str) -> Result<String> {
    let raw = *blake3::hash(text.as_bytes()).as_bytes();
    Ok(hex(&store.public_hash(&raw)?))
}

/// Stores a text where it is not there yet, and returns the hash by which a mark of this repository names it.
///
/// # Errors
/// `Refused` for a text that is too long; `Key` where the key of hashes is not at hand; what the store says.
pub fn write(store: &dyn Store, scope: &Scope, text: &str) -> Result<String> {
    if text.len() as u64 > LIMIT_BYTES {
        return Err(err!(
            Refused,
            "a runbook has at most {LIMIT_BYTES} bytes, this one {}",
            text.len()
        ));
    }
    let raw = *blake3::hash(text.as_bytes()).as_bytes();
    let hash = hex(&store.public_hash(&raw)?);
    let key = key(scope, &hash)?;
    if store.head(&key)?.is_some() {
        return Ok(hash);
    }
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = store.create(&key)?;
    let mut writer = ContainerWriter::new(object, Kind::Runbook, Codec::Lz4).map_err(failed)?;
    writer.write(text.as_bytes()).map_err(failed)?;
    let identity = Identity {
        hash: raw,
        raw_bytes: text.len() as u64,
        name: NAME.to_owned(),
        ..Identity::default()
    };
    let object = writer.complete(&identity, Vec::new()).map_err(failed)?;
    object.publish()?;
    Ok(hash)
}

/// Reads the text that a mark names; none where it is not there.
///
/// # Errors
/// `Damaged` where it is another text; `Key` without the private key of an encrypted repository; what the store says.
pub fn read(store: &dyn Store, scope: &Scope, hash: &str) -> Result<Option<String>> {
    let key = key(scope, hash)?;
    let Some(object) = store.open(&key)? else {
        return Ok(None);
    };
    let raw = Container::open_under(&key, object)
        .and_then(|container| check(&key, container))
        .map_err(|e| e.context(format!("read object \"{key}\"")))?;
    let own = store.public_hash(blake3::hash(&raw).as_bytes())?;
    let text = String::from_utf8(raw).ok().filter(|_| hex(&own) == hash);
    let other = || err!(Damaged, "object \"{key}\" is not what its mark names");
    text.map(Some).ok_or_else(other)
}

/// Returns the content of a container that is a text.
///
/// # Errors
/// `Damaged`; what the store says.
pub fn check(key: &Key, container: Container) -> Result<Vec<u8>> {
    if container.kind() != Kind::Runbook || container.identity().name != NAME {
        return Err(err!(Damaged, "object \"{key}\" is no runbook"));
    }
    container.read_small(LIMIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;
    use crate::repo::set_mark::KIND;

    #[test]
    fn a_text_comes_back_by_its_hash_and_no_other_does() {
        let (_dir, store) = crafted::store();
        let scope = Scope::aux(KIND, "shop").unwrap();
        let hash = write(&store, &scope, "# Recovery").unwrap();
        assert_eq!(write(&store, &scope, "# Recovery").unwrap(), hash);
        assert_eq!(
            read(&store, &scope, &hash).unwrap().as_deref(),
            Some("# Recovery")
        );
        // A text that lies under the key of another one, of which a mark has the whole hash.
        let other = format!("{}{}", &hash[..16], "0".repeat(48));
        let wrong = read(&store, &scope, &other).unwrap_err();
        assert!(wrong.is_damage(), "{wrong}");
        assert_eq!(read(&store, &scope, &"0".repeat(64)).unwrap(), None);
        for none in ["", "../x", &hash[..16], &hash.to_uppercase()] {
            assert!(read(&store, &scope, none).is_err(), "{none}");
        }
        let long = "x".repeat((1 << 20) + 1);
        assert!(write(&store, &scope, &long).is_err());
    }
}
