//! JSON objects with their checksum (format, section 4).

use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::root::cluster::PARTIAL;
use super::{root, scope};
use crate::err;
use crate::error::{Error, Result};
use crate::store::{Key, Published, Store, get, put};

/// Greatest size of an object that is not a root.
pub const LIMIT_BYTES: u64 = 1 << 20;
/// Greatest size of a root.
pub const ROOT_LIMIT_BYTES: u64 = 64 << 20;
/// The format this program writes and reads.
pub const FORMAT: u64 = 1;

const NESTING_MAX: usize = 16;
const STRING_MAX: usize = 64 << 10;
const HISTORY_STRING_MAX: usize = 2 << 20;
const BEFORE: &[u8] = b",\"checksum\":\"blake3:";
const AFTER: &[u8] = b"\"}\n";
const SUFFIX: usize = BEFORE.len() + 64 + AFTER.len();
const BEFORE_MAC: &[u8] = b",\"mac\":\"";
const AFTER_MAC: &[u8] = b"\"";
const MAC: usize = BEFORE_MAC.len() + 64 + AFTER_MAC.len();

/// Serializes `value`, with format, kind and key in front and the checksum at the end.
///
/// # Errors
/// `Internal` when `value` is not a JSON object.
pub fn encode(key: &Key, kind: &str, value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(close(open(key, kind, value)?))
}

/// All fields, without the end.
fn open(key: &Key, kind: &str, value: &impl Serialize) -> Result<Vec<u8>> {
    let failed = |e| err!(Internal, "could not serialize object \"{key}\"").source(e);
    let Value::Object(fields) = serde_json::to_value(value).map_err(failed)? else {
        return Err(err!(Internal, "object \"{key}\" is not a JSON object"));
    };
    let mut all = Map::new();
    all.insert("format".into(), FORMAT.into());
    all.insert("kind".into(), kind.into());
    all.insert("key".into(), scope::own_key(key).into());
    all.extend(fields);
    let mut bytes = serde_json::to_vec(&Value::Object(all)).map_err(failed)?;
    bytes.pop(); // the closing brace stands behind the checksum
    Ok(bytes)
}

fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(BEFORE);
    bytes.extend_from_slice(hash.as_bytes());
    bytes.extend_from_slice(AFTER);
    bytes
}

/// Returns the bytes that the checksum covers, if it is right.
fn covered<'a>(key: &Key, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let damaged = |why: &str| err!(Damaged, "object \"{key}\" is damaged: {why}");
    let at = bytes
        .len()
        .checked_sub(SUFFIX)
        .ok_or_else(|| damaged("it is too short"))?;
    let (body, suffix) = bytes.split_at(at);
    let hash = suffix
        .strip_prefix(BEFORE)
        .and_then(|s| s.strip_suffix(AFTER))
        .ok_or_else(|| damaged("it has no checksum"))?;
    match hash == blake3::hash(body).to_hex().as_bytes() {
        true => Ok(body),
        false => Err(damaged("its checksum is wrong")),
    }
}

/// Whether an object that was found under `key`, and stays plain in an encrypted repository, bears the MAC of the key set.
///
/// # Errors
/// `Damaged` when the checksum is wrong: then it was changed by accident.
pub fn is_genuine(store: &dyn Store, key: &Key, bytes: &[u8]) -> Result<bool> {
    let body = covered(key, bytes)?;
    let (content, mac) = match split_mac(body) {
        Some((content, mac)) => (content, Some(mac)),
        None => (body, None),
    };
    Ok(store.is_genuine(key, content, mac))
}

/// Returns the bytes before the MAC, and the digits of the MAC.
fn split_mac(body: &[u8]) -> Option<(&[u8], &str)> {
    let (content, last) = body.split_at_checked(body.len().checked_sub(MAC)?)?;
    let digits = last.strip_prefix(BEFORE_MAC)?.strip_suffix(AFTER_MAC)?;
    Some((content, std::str::from_utf8(digits).ok()?))
}

/// The hash of an object's content: of every byte before its MAC, or before its checksum where it bears no MAC.
///
/// # Errors
/// `Damaged` when the checksum is wrong.
#[cfg(feature = "full")]
pub fn content_hash(key: &Key, bytes: &[u8]) -> Result<[u8; 32]> {
    let body = covered(key, bytes)?;
    let content = split_mac(body).map_or(body, |(content, _)| content);
    Ok(blake3::hash(content).into())
}

/// Checks and parses an object that was found under `key`.
///
/// # Errors
/// `Damaged` when the checksum, the kind or the key is wrong; `Unsupported` for another format or an unknown feature.
pub fn decode<T: DeserializeOwned>(key: &Key, kind: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |why: &str| err!(Damaged, "object \"{key}\" is damaged: {why}");
    covered(key, bytes)?;
    check_shape(bytes).map_err(damaged)?;
    let head: Head =
        serde_json::from_slice(bytes).map_err(|e| damaged("it cannot be parsed").source(e))?;
    if head.format != FORMAT {
        return Err(err!(
            Unsupported,
            "object \"{key}\" has another format than {FORMAT}"
        )
        .hint("Use the version of pitr that wrote it, or a newer one."));
    }
    let refused = match kind {
        root::KIND => head.features.unknown,
        _ => head.features.first,
    };
    if let Some(feature) = refused {
        return Err(
            err!(Unsupported, "object \"{key}\" needs feature \"{feature}\"")
                .hint("Use the version of pitr that wrote it, or a newer one."),
        );
    }
    if head.kind != kind {
        return Err(damaged(&format!("it is not of kind \"{kind}\"")));
    }
    if head.key != scope::own_key(key) {
        return Err(damaged("it belongs under another key"));
    }
    serde_json::from_slice(bytes).map_err(|e| damaged("a field is missing or wrong").source(e))
}

/// The fields that every object has. Other fields are passed over, not built: a tree of values takes dozens of times
/// the memory of its text.
#[derive(Deserialize)]
struct Head {
    format: u64,
    kind: String,
    key: String,
    #[serde(default)]
    features: Features,
}

/// Features of roots that this program knows; of other objects it knows none.
const KNOWN_FEATURES: [&str; 1] = [PARTIAL];

/// The first name of a list, and the first that no root may have.
#[derive(Default)]
struct Features {
    first: Option<String>,
    unknown: Option<String>,
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Unknown;
        impl<'de> Visitor<'de> for Unknown {
            type Value = Features;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut names: A,
            ) -> std::result::Result<Features, A::Error> {
                let mut features = Features::default();
                while let Some(name) = names.next_element::<String>()? {
                    let is_known = KNOWN_FEATURES.contains(&name.as_str());
                    features.first.get_or_insert_with(|| name.clone());
                    if !is_known {
                        features.unknown = Some(name);
                        break;
                    }
                }
                while names.next_element::<IgnoredAny>()?.is_some() {}
                Ok(features)
            }
        }
        deserializer.deserialize_seq(Unknown)
    }
}

/// Holds the text to the limits of the format before anything is made of it: how deep it nests, how long its strings are.
fn check_shape(bytes: &[u8]) -> std::result::Result<(), &'static str> {
    let mut depth = 0_usize;
    let mut last: &[u8] = &[];
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > NESTING_MAX {
                    return Err("it nests too deep");
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let rest = bytes.get(at + 1..).unwrap_or_default();
                let length = string_length(rest).ok_or("a string has no end")?;
                // Behind the name of a field stands its value: `last` is the name then.
                let is_history = matches!(last, b"history" | b"history_hex");
                let limit = if is_history {
                    HISTORY_STRING_MAX
                } else {
                    STRING_MAX
                };
                if length > limit {
                    return Err("a string is too long");
                }
                last = rest.get(..length).unwrap_or_default();
                at += length + 1;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Bytes before the quote that ends a string.
fn string_length(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match rest.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The kind that an object says it has, before any check.
pub fn kind_of(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        kind: String,
    }
    serde_json::from_slice::<Head>(bytes).ok().map(|h| h.kind)
}

/// One member of an object that was checked before; the others are passed over, not built.
#[cfg(feature = "full")]
pub fn member(bytes: &[u8], name: &str) -> Option<Value> {
    struct One<'n>(&'n str);
    impl<'de> Visitor<'de> for One<'_> {
        type Value = Option<Value>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut members: A,
        ) -> std::result::Result<Option<Value>, A::Error> {
            let mut found = None;
            while let Some(key) = members.next_key::<String>()? {
                match key == self.0 {
                    true => found = Some(members.next_value()?),
                    false => drop(members.next_value::<IgnoredAny>()?),
                }
            }
            Ok(found)
        }
    }
    let mut read = serde_json::Deserializer::from_slice(bytes);
    read.deserialize_map(One(name)).ok().flatten()
}

/// Reads and decodes the object under `key`; `None` is proven absence.
pub fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &Key,
    kind: &str,
    limit_bytes: u64,
) -> Result<Option<T>> {
    match get(store, key, limit_bytes)? {
        Some(bytes) => decode(key, kind, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Encodes and stores an object.
pub fn write(
    store: &dyn Store,
    key: &Key,
    kind: &str,
    value: &impl Serialize,
) -> Result<Published> {
    put(store, key, &encode(key, kind, value)?)
}

/// Requires that an object of an encrypted repository could be signed: without its MAC it would be called forged by all who have the key.
///
/// # Errors
/// `Key`.
pub fn require_mac(store: &dyn Store, key: &Key) -> Result<()> {
    match store.encrypted().is_some() && store.mac(key, &[])?.is_none() {
        true => Err(err!(
            Key,
            "object \"{key}\" of an encrypted repository would be written without proof: key_set is not configured"
        )
        .hint("Nothing was written. Configure key_set, which reads nothing, in the section of the repository.")),
        false => Ok(()),
    }
}

/// As [`write()`], of an object that stays plain in an encrypted repository, and bears a MAC there where the MAC key is at hand.
pub fn write_signed(
    store: &dyn Store,
    key: &Key,
    kind: &str,
    value: &impl Serialize,
) -> Result<Published> {
    let mut bytes = open(key, kind, value)?;
    if let Some(mac) = store.mac(key, &bytes)? {
        bytes.extend_from_slice(BEFORE_MAC);
        bytes.extend_from_slice(mac.as_bytes());
        bytes.extend_from_slice(AFTER_MAC);
    }
    put(store, key, &close(bytes))
}

/// As [`write()`], of an object that stays plain in an encrypted repository, too.
pub fn write_plain(
    store: &dyn Store,
    key: &Key,
    kind: &str,
    value: &impl Serialize,
) -> Result<Published> {
    let mut object = store.create_plain(key)?;
    object
        .write_all(&encode(key, kind, value)?)
        .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
    object.publish()
}

/// A damaged JSON object that cannot even be parsed is still an error of its key.
impl From<serde_json::Error> for Error {
    fn from(e: serde_json::Error) -> Self {
        err!(Damaged, "not valid JSON").source(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Thing {
        name: String,
        number: u64,
    }

    /// A whole object with this text for its fields.
    fn object(fields: &str) -> Vec<u8> {
        let mut bytes =
            format!("{{\"format\":1,\"kind\":\"event\",\"key\":\"events/x/begin\",\"name\":\"a\",\"number\":1{fields}")
                .into_bytes();
        let hash = blake3::hash(&bytes).to_hex();
        bytes.extend_from_slice(BEFORE);
        bytes.extend_from_slice(hash.as_bytes());
        bytes.extend_from_slice(AFTER);
        bytes
    }

    #[test]
    fn z05_shapes_beyond_the_limits_are_refused_before_anything_is_made_of_them() {
        let key = Key::new("events/x/begin").unwrap();
        let read = |fields: &str| decode::<Thing>(&key, "event", &object(fields));
        read("").unwrap();
        read(&format!(",\"x\":{}1{}", "[".repeat(15), "]".repeat(15))).unwrap();
        read(&format!(",\"history\":\"{}\"", "h".repeat(1 << 20))).unwrap();
        read(",\"x\":\"\\\"[[[[[[[[[[[[[[[[[[[[\"").unwrap();
        for bad in [
            format!(",\"x\":{}1{}", "[".repeat(16), "]".repeat(16)),
            format!(",\"x\":{}", "{\"a\":".repeat(100_000)),
            format!(",\"x\":\"{}\"", "x".repeat((64 << 10) + 1)),
            format!(",\"history\":\"{}\"", "h".repeat(3 << 20)),
            ",\"number\":18446744073709551616".to_owned(),
            ",\"x\":\"".to_owned(),
        ] {
            let error = read(&bad).unwrap_err();
            assert_eq!(error.code(), Code::Damaged, "{error}");
        }
        // A million of them cost no more than one.
        let many = format!(",\"features\":[\"new\"{}]", ",\"x\"".repeat(1_000_000));
        assert_eq!(read(&many).unwrap_err().code(), Code::Unsupported);
    }

    #[test]
    fn an_object_comes_back_and_every_flipped_bit_is_seen() {
        let key = Key::new("events/x/begin").unwrap();
        let thing = Thing {
            name: "a".into(),
            number: u64::MAX,
        };
        let bytes = encode(&key, "event", &thing).unwrap();
        assert_eq!(bytes.len() - SUFFIX, bytes.len() - 87);
        assert_eq!(decode::<Thing>(&key, "event", &bytes).unwrap(), thing);
        serde_json::from_slice::<Value>(&bytes).unwrap();
        for i in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[i / 8] ^= 1 << (i % 8);
            assert_eq!(
                decode::<Thing>(&key, "event", &bad).unwrap_err().code(),
                Code::Damaged,
                "bit {i}"
            );
        }
        for n in 0..bytes.len() {
            assert!(decode::<Thing>(&key, "event", &bytes[..n]).is_err());
        }
        let other = Key::new("events/y/begin").unwrap();
        assert!(decode::<Thing>(&other, "event", &bytes).is_err());
        let newer = serde_json::json!({ "name": "a", "number": 1, "features": ["x", "y"] });
        let newer = encode(&key, "event", &newer).unwrap();
        let refused = decode::<Thing>(&key, "event", &newer).unwrap_err();
        assert_eq!(refused.code(), Code::Unsupported);
        assert!(refused.to_string().contains("\"x\""), "{refused}");
    }

    #[test]
    fn a_root_may_have_the_features_that_are_known_and_no_other_object_any() {
        let key = Key::new("events/x/begin").unwrap();
        let read = |kind: &str, features: &[&str]| {
            let thing = serde_json::json!({ "name": "a", "number": 1, "features": features });
            let bytes = encode(&key, kind, &thing).unwrap();
            decode::<Thing>(&key, kind, &bytes).map_err(|e| e.code())
        };
        assert!(read(root::KIND, &[PARTIAL]).is_ok());
        assert_eq!(read(root::KIND, &[PARTIAL, "x"]), Err(Code::Unsupported));
        assert_eq!(read("event", &[PARTIAL]), Err(Code::Unsupported));
    }

    #[test]
    fn a_root_may_be_found_under_the_name_of_a_healed_copy_and_an_event_may_not() {
        let thing = serde_json::json!({});
        let read = |written: &str| {
            let key = Key::new(written).unwrap();
            let bytes = encode(&key, "thing", &thing).unwrap();
            let healed = Key::new(format!("{written}.heal-1")).unwrap();
            decode::<Value>(&healed, "thing", &bytes).map_err(|e| e.code())
        };
        assert!(read("clusters/main/7/backups/20261120T064049Z-full/manifest").is_ok());
        for plain in ["events/20261120T064049Z-full/begin", "cluster.json"] {
            let refused = read(&format!("clusters/main/7/{plain}"));
            assert_eq!(refused, Err(Code::Damaged), "{plain}");
        }
    }
}
