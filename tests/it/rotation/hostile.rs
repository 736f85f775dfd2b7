//! A store's owner, a host with the MAC key and a withdrawn recipient around a rotation.

use std::path::Path;

use super::{EPOCH_AT, Rotated, block, unblock};
use crate::common::user;
use crate::sealed::{flipped, refused};

/// An object of a recipient as somebody without the MAC key makes it.
fn forge(repository: &Path, epoch: u32, name: &str) {
    let stored = std::fs::read_to_string(repository.join("keys/1/ops")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&stored).unwrap();
    let mut object = json.as_object().unwrap().clone();
    for field in ["format", "kind", "key", "checksum"] {
        object.remove(field);
    }
    object.insert("epoch".into(), epoch.into());
    object.insert("recipient".into(), name.into());
    object.insert("public_half".into(), "11".repeat(32).into());
    let key = pitr::store::Key::new(format!("keys/{epoch}/{name}")).unwrap();
    let bytes = pitr::repo::json::encode(&key, pitr::repo::keyring::RECIPIENT, &object).unwrap();
    let path = repository.join(key.as_str());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
    user::own_all(&repository.join("keys"));
}

#[test]
fn z14_writers_are_moved_neither_forward_nor_back() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    rotated.rotate("operator", "next").succeed();
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    // An owner who hides the epoch, and everything of it.
    let hidden = sealed.sandbox.join("hidden");
    std::fs::rename(sealed.repository.join("keys/2"), &hidden).unwrap();
    sealed.push(&still, "later", 0).succeed();
    assert_eq!(rotated.epoch_of(&still.segments[0]), 2);
    let doctor = sealed.on("later").arg("doctor").exits(1);
    doctor.expect_stdout("nobody can read what this host writes");
    refused(
        &sealed.fetch(&still, "reader", 0).run(),
        204,
        "no keys of epoch 2",
    );
    // It is neither absent nor damaged: nothing is put in its place, and nothing is recorded.
    sealed.push(&still, "reader", 0).run();
    let verify = sealed.on("reader").words("verify --quiet").run();
    assert!(!verify.is_success(), "{verify}");
    for path in crate::common::paths_below(&sealed.repository) {
        let name = path.display().to_string();
        assert!(
            !name.contains("-damaged-") && !name.contains(".heal-"),
            "{name}"
        );
    }
    std::fs::rename(&hidden, sealed.repository.join("keys/2")).unwrap();
    sealed.fetch(&still, "reader", 0).succeed();
    // An owner who shows more moves nobody either.
    forge(&sealed.repository, 7, "ops");
    for (host, n, epoch) in [("writer", 1, 1), ("later", 2, 2)] {
        sealed.push(&still, host, n).succeed();
        assert_eq!(rotated.epoch_of(&still.segments[n]), epoch);
    }
}

#[test]
fn z14_a_strangers_epoch_stops_nobody_but_the_next_rotation() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    forge(&sealed.repository, 2, "ops");
    // A host with a recipient's key alone goes on, where a genuine epoch would stop it.
    sealed.push(&still, "reader", 0).succeed();
    assert_eq!(rotated.epoch_of(&still.segments[0]), 1);
    let doctor = sealed.on("operator").arg("doctor").run();
    doctor.expect_stdout("no holder of the MAC key made its keys");
    rotated.add("more");
    let run = rotated.rotate("operator", "next").run();
    refused(&run, 8, "it shows epoch 2, and the file is of epoch 1");
    assert!(!rotated.dir("next").exists());
    std::fs::remove_dir_all(sealed.repository.join("keys/2")).unwrap();
    rotated.rotate("operator", "next").succeed();
    let push = sealed.push(&still, "reader", 1).run();
    refused(&push, 37, "this host has a recipient's key alone");
    assert!(!sealed.object(&still.segments[1]).exists());
    sealed.fetch(&still, "reader", 0).succeed();
    // Names that are added afterwards are seen to be of no pair of the file.
    forge(&sealed.repository, 2, "mallory");
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    let doctor = sealed.on("later").arg("doctor").run();
    doctor.expect_stdout("mallory");
}

#[test]
fn z14_a_head_that_names_another_epoch_or_version_is_forged() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    rotated.rotate("operator", "next").succeed();
    sealed.push(&still, "writer", 0).succeed();
    let path = sealed.object(&still.segments[0]);
    let right = std::fs::read(&path).unwrap();
    // Offset 8 is the version, 10 the algorithm.
    for (at, value) in [(EPOCH_AT, 2), (EPOCH_AT, 3), (8, 2), (10, 2)] {
        let mut bytes = right.clone();
        let end = bytes.len();
        let length = u32::from_le_bytes(*bytes[end - 12..].first_chunk().unwrap());
        let foot = end - length as usize;
        for head in [0, foot] {
            bytes[head + at] = value;
        }
        let crc = crc32c::crc32c(&bytes[foot..end - 8]);
        bytes[end - 8..end - 4].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        refused(
            &sealed.fetch(&still, "reader", 0).run(),
            201,
            "it is forged",
        );
        let verify = sealed.on("reader").words("verify --quiet").run();
        assert!(
            verify.stderr.contains("it is forged") || verify.stdout.contains("it is forged"),
            "{verify}"
        );
    }
}

#[test]
fn z14_a_changed_file_for_hosts_is_refused() {
    let (rotated, still) = Rotated::still();
    rotated.rotate("operator", "next").succeed();
    let path = rotated.dir("next").join("writer.key");
    let text = std::fs::read_to_string(&path).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    for field in ["public_half", "first_half", "mac_key", "mac", "key_set"] {
        let own = file[field].as_str().unwrap();
        let changed = flipped(own.as_bytes(), 3);
        let mut changed = String::from_utf8(changed).unwrap_or_else(|_| own.replace('a', "b"));
        if !changed.bytes().all(|b| b.is_ascii_hexdigit()) {
            let digit = if own.starts_with('0') { "1" } else { "0" };
            changed = format!("{digit}{}", &own[1..]);
        }
        std::fs::write(&path, text.replace(own, &changed)).unwrap();
        let push = rotated.sealed.push(&still, "later", 0).run();
        assert_eq!(push.code(), 37, "{field}: {push}");
    }
    for (from, to) in [
        ("\"epoch\": 2", "\"epoch\": 3"),
        ("\"epoch\": 2", "\"epoch\": 1"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let push = rotated.sealed.push(&still, "later", 0).run();
        assert_eq!(push.code(), 37, "{to}: {push}");
    }
    assert!(!rotated.sealed.object(&still.segments[0]).exists());
    std::fs::write(&path, &text).unwrap();
    rotated.sealed.push(&still, "later", 0).succeed();
}

#[test]
fn z14_an_object_that_is_put_before_the_repetition_is_refused() {
    let (rotated, _still) = Rotated::still();
    let second = rotated.second("operator");
    block(&second);
    assert_ne!(rotated.rotate("operator", "next").run().code(), 0);
    unblock(&second);
    // Whoever the first repository is, the other one has nothing yet.
    let empty = [&second, &rotated.sealed.repository]
        .into_iter()
        .find(|store| Rotated::recipients(store, 2).is_empty())
        .unwrap();
    forge(empty, 2, "ops");
    let run = rotated.rotate("operator", "next").run();
    refused(&run, 8, "is there, and is another one");
    std::fs::remove_file(empty.join("keys/2/ops")).unwrap();
    forge(empty, 2, "mallory");
    let run = rotated.rotate("operator", "next").run();
    refused(&run, 8, "epoch 2 has another pair there than the file");
    assert!(!rotated.dir("next").join("writer.key").exists());
    std::fs::remove_file(empty.join("keys/2/mallory")).unwrap();
    rotated.rotate("operator", "next").succeed();
}
