//! JSON objects of a repository: what can be read is written the same again, and nothing is read whose checksum, kind or key is wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::repo::event::Event;
use pitr::repo::json;
use pitr::repo::repository::{Marker, Registration};
use pitr::repo::root::{self, BackupRoot, Tombstone};
use pitr::store::Key;
use pitr_fuzz::{Input, within};
use serde::Serialize;
use serde::de::DeserializeOwned;

const CEILING: usize = 100 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, mode) = (input.choice(5), input.choice(3));
    let key = Key::new("clusters/main/7000000000000000001/object").unwrap();
    let bytes = match mode {
        0 => input.rest().to_vec(),
        1 => sealed(input.rest()),
        _ => sealed(&headed(input.rest(), kind)),
    };
    let _ = json::kind_of(&bytes);
    match kind {
        0 => check::<BackupRoot>(&key, root::KIND, &bytes),
        1 => check::<Event>(&key, "event", &bytes),
        2 => check::<Marker>(&key, "repository", &bytes),
        3 => check::<Registration>(&key, "cluster", &bytes),
        _ => check::<Tombstone>(&key, root::TOMBSTONE, &bytes),
    }
}

/// The fields that every object begins with, and then the fuzzer's.
fn headed(fields: &[u8], kind: u8) -> Vec<u8> {
    let kind = [
        root::KIND,
        "event",
        "repository",
        "cluster",
        root::TOMBSTONE,
    ][usize::from(kind)];
    let head = format!(
        "{{\"format\":1,\"kind\":\"{kind}\",\"key\":\"clusters/main/7000000000000000001/object\""
    );
    [head.as_bytes(), fields].concat()
}

fn sealed(body: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(body).to_hex();
    [body, b",\"checksum\":\"blake3:", hash.as_bytes(), b"\"}\n"].concat()
}

fn check<T>(key: &Key, kind: &str, bytes: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(read) = json::decode::<T>(key, kind, bytes) else {
        return;
    };
    let written = json::encode(key, kind, &read).unwrap();
    assert_eq!(json::kind_of(&written).as_deref(), Some(kind));
    assert_eq!(json::decode::<T>(key, kind, &written).unwrap(), read);
    let other = Key::new("clusters/main/7000000000000000001/other").unwrap();
    assert!(
        json::decode::<T>(&other, kind, &written).is_err(),
        "bound to its key"
    );
}
