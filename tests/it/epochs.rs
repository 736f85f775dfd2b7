//! A key set has a later epoch, of which this version knows nothing (decision 0060): whatever would be half of it is refused.
//!
//! There is no program that writes one. Objects of the first epoch stand for it, whose head names the second, under the MAC of the key set.

use std::path::{Path, PathBuf};

use ring::{hkdf, hmac};

use crate::common::{Run, expire_at_once, paths_below};
use crate::sealed::{Sealed, Stored, keygen, refused};

/// The place of the epoch in a head.
const EPOCH_AT: usize = 12;
/// The end of a foot: hash of what is stored, length, MAC; length, checksum, magic.
const AFTER_STORED: usize = 8 + 32 + 12;

struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

/// The key of MACs of the key set, by the page of the format.
fn mac_key(sealed: &Sealed) -> hmac::Key {
    let text = std::fs::read_to_string(sealed.key("writer")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let secret = pitr::text::unhex(file["mac_key"].as_str().unwrap()).unwrap();
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"").extract(&secret);
    let mut mac = [0; 32];
    let derived = key.expand(&[b"pitr/1/mac"], Length).unwrap();
    derived.fill(&mut mac).unwrap();
    hmac::Key::new(hmac::HMAC_SHA256, &mac)
}

/// Names the second epoch in head and foot; with the key, as a writer of that epoch would.
fn in_second_epoch(object: &[u8], key: Option<&hmac::Key>) -> Vec<u8> {
    let mut bytes = object.to_vec();
    let end = bytes.len();
    let length = u32::from_le_bytes(*bytes[end - 12..].first_chunk().unwrap());
    let foot = end - length as usize;
    for head in [0, foot] {
        assert_eq!(bytes[head + EPOCH_AT..][..4], 1_u32.to_le_bytes());
        bytes[head + EPOCH_AT..][..4].copy_from_slice(&2_u32.to_le_bytes());
    }
    if let Some(key) = key {
        let stored = blake3::hash(&bytes[..foot]);
        bytes[end - AFTER_STORED - 32..][..32].copy_from_slice(stored.as_bytes());
        let signed = [b"pitr/1/foot", &bytes[foot..end - 44]].concat();
        let mac = hmac::sign(key, &signed);
        bytes[end - 44..][..32].copy_from_slice(mac.as_ref());
    }
    let crc = crc32c::crc32c(&bytes[foot..end - 8]);
    bytes[end - 8..end - 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn names(repository: &Path) -> Vec<PathBuf> {
    let mut names = paths_below(repository);
    names.sort();
    names
}

const LATER: &str = "in epoch 2 of the key set, and this version knows epoch 1 alone";

#[test]
fn an_object_of_a_later_epoch_is_neither_absent_nor_damaged() {
    let stored = Stored::new();
    let key = mac_key(&stored.sealed);
    let path = stored.sealed.object(&stored.still.segments[1]);
    let right = std::fs::read(&path).unwrap();
    let before = names(&stored.sealed.repository);
    std::fs::write(&path, in_second_epoch(&right, Some(&key))).unwrap();
    let fetch = stored.sealed.fetch(&stored.still, "reader", 1).run();
    refused(&fetch, 201, LATER);
    assert!(!stored.still.wal("RECOVERYXLOG").exists());
    // Offered again, it is no conflict, and no healed copy is put beside it.
    for host in ["writer", "reader"] {
        refused(&stored.sealed.push(&stored.still, host, 1).run(), 35, LATER);
    }
    assert_eq!(names(&stored.sealed.repository), before);
    let verify = stored.sealed.on("reader").args(["verify", "--quiet"]).run();
    assert_ne!(verify.code(), 0, "{verify}");
    assert!(verify.stderr.contains(LATER), "{verify}");
    // It may record that it looked, and records no damage.
    for path in names(&stored.sealed.repository) {
        let name = path.display().to_string();
        let is_wrong = name.contains("-damaged-") || name.contains(".heal-");
        assert!(!is_wrong, "{name}");
    }
    // Its neighbours are what they were.
    let fetch = stored.sealed.fetch(&stored.still, "reader", 0).run();
    fetch.success();
    std::fs::remove_file(stored.still.wal("RECOVERYXLOG")).unwrap();
    // A stranger's word for it is a forgery, wherever the MAC key is.
    std::fs::write(&path, in_second_epoch(&right, None)).unwrap();
    let fetch = stored.sealed.fetch(&stored.still, "reader", 1).run();
    refused(&fetch, 201, "it is forged");
}

#[test]
fn a_backup_of_a_later_epoch_is_left_alone() {
    let (sealed, cluster) = Sealed::archived(17);
    let backup = || {
        let run = sealed
            .on("writer")
            .args(["backup", "--json"])
            .run()
            .success();
        run.json()["id"].as_str().unwrap().to_owned()
    };
    let first = backup();
    cluster.sql("create table t (a int)");
    backup();
    let root = sealed.folder(&format!("backups/{first}/manifest"));
    let right = std::fs::read(&root).unwrap();
    let later = in_second_epoch(&right, Some(&mac_key(&sealed)));
    std::fs::write(&root, &later).unwrap();
    let packs = names(&sealed.folder("packs"));
    for host in ["writer", "reader", "janitor"] {
        let run = sealed.on(host).args(expire_at_once()).run();
        assert_eq!(std::fs::read(&root).unwrap(), later, "{host}: {run}");
        assert_eq!(names(&sealed.folder("packs")), packs, "{host}: {run}");
        assert!(run.stderr.contains("epoch 2"), "{host}: {run}");
    }
}

#[test]
fn access_is_given_and_withdrawn_in_no_epoch_alone() {
    let stored = Stored::new();
    let sealed = &stored.sealed;
    let more = sealed.sandbox.join("more");
    keygen(&more, &["more"]).arg("--pair-only").run().success();
    let keys = sealed.repository.join("keys");
    std::fs::create_dir(keys.join("2")).unwrap();
    std::fs::copy(keys.join("1/ops"), keys.join("2/ops")).unwrap();
    crate::common::user::own_all(&keys);
    let before = names(&keys);
    let add = more.join("more.pub").display().to_string();
    let escrow = sealed.key("escrow");
    let rewrap = |arguments: &[&str]| -> Run {
        let run = sealed.on("reader").args(["repo", "rewrap"]).args(arguments);
        run.run()
    };
    for arguments in [
        &["--add", add.as_str()][..],
        &["--withdraw", "ops", "--proof", &escrow],
        &["--all", "--add", &add, "--confirm"],
    ] {
        refused(&rewrap(arguments), 1, "keeps keys in epoch 2");
        assert_eq!(names(&keys), before);
    }
    for host in ["reader", "writer"] {
        let doctor = sealed.on(host).arg("doctor").run();
        assert_eq!(doctor.code(), 1, "{doctor}");
        assert!(doctor.stdout.contains("keeps keys in epoch 2"), "{doctor}");
    }
    // Objects of the first epoch stay readable.
    sealed.fetch(&stored.still, "reader", 0).run().success();
    // The pairs of pitr config lie beside the epochs, and are none.
    std::fs::remove_dir_all(keys.join("2")).unwrap();
    std::fs::create_dir(keys.join(format!("secrets-{}", "1".repeat(32)))).unwrap();
    crate::common::user::own_all(&keys);
    rewrap(&["--add", &add]).success();
}

#[test]
fn a_writers_file_of_a_later_epoch_is_refused_as_such() {
    let stored = Stored::new();
    let sealed = &stored.sealed;
    let text = std::fs::read_to_string(sealed.key("writer")).unwrap();
    assert_eq!(text.matches("\"epoch\": 1").count(), 3);
    let later = text.replacen("\"epoch\": 1", "\"epoch\": 2", 1);
    std::fs::write(sealed.key("writer"), later).unwrap();
    let push = sealed.push(&stored.still, "writer", 0).run();
    refused(&push, 35, LATER);
    refused(&push, 35, "writer.key\" is");
}
