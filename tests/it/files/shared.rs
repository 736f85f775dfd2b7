//! Content that files share: it is stored once, and comes back into each of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::tree::describe;
use super::{World, id};
use crate::common::{expire_at_once, str_of};

/// Bytes that do not compress, and are the same for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

fn number(backup: &Value, name: &str) -> u64 {
    backup[name].as_u64().unwrap()
}

fn stored_once(world: &World) {
    let source = world.source();
    let large = noise(1, 6 << 20);
    fs::write(source.join("large"), &large).unwrap();
    fs::write(source.join("copy"), &large).unwrap();
    fs::write(source.join("small"), noise(2, 3000)).unwrap();
    let before = describe(&source);
    let first = world.backup();
    let stored = number(&first, "stored_bytes");
    assert!((6 << 20..7 << 20).contains(&stored), "{first}");
    assert_eq!(number(&first, "reused_bytes"), 6 << 20, "{first}");

    // Names change, and new ones come: nothing is stored but the names.
    fs::rename(source.join("large"), source.join("renamed")).unwrap();
    fs::copy(source.join("small"), source.join("small copy")).unwrap();
    let second = world.backup();
    assert_eq!(second["kind"], "incremental", "{second}");
    assert!(number(&second, "stored_bytes") < 4000, "{second}");
    world.gives(id(&second), &describe(&source), "after the rename");

    // An insertion moves all that follows.
    let mut changed = large.clone();
    changed.splice(3_000_000..3_000_000, *b"a few bytes");
    fs::write(source.join("renamed"), &changed).unwrap();
    fs::remove_file(source.join("copy")).unwrap();
    let third = world.backup();
    let stored = number(&third, "stored_bytes");
    assert!((100_000..3 << 20).contains(&stored), "{third}");
    let after = describe(&source);
    world.gives(id(&first), &before, "the first");
    world.gives(id(&third), &after, "the third");
    world.pitr(&["verify"]).succeed();

    // Content that the last one took over outlives the backups that stored it.
    for _ in 0..2 {
        world.pitr(&expire_at_once()).run();
    }
    world.gives(id(&third), &after, "alone");
    world.pitr(&["verify"]).succeed();
    let full = world.pitr(&["files", "backup", "up", "--full", "--json"]);
    let full = full.succeed().json();
    // It takes over nothing from those before, and has the copy of the small one itself.
    assert_eq!(number(&full, "reused_bytes"), 3000, "{full}");
    assert!(number(&full, "stored_bytes") > 6 << 20, "{full}");
    world.gives(id(&full), &after, "the full one");
}

#[test]
fn content_is_stored_once_whatever_its_name() {
    stored_once(&World::new(""));
}

#[test]
fn content_is_stored_once_in_an_encrypted_repository() {
    stored_once(&World::sealed());
}

#[test]
fn a_stream_stores_what_the_one_before_does_not_have() {
    let world = World::new("");
    let dump = world.sandbox.join("dump");
    let mut bytes = noise(5, 5 << 20);
    fs::write(&dump, &bytes).unwrap();
    let source = format!("command = [\"cat\", \"{}\"]\n", dump.display());
    let world = world.with_source("command", &source);
    let first = world.backup();
    assert_eq!(first["kind"], "full", "{first}");
    bytes.splice(1_000_000..1_000_000, noise(6, 5000));
    fs::write(&dump, &bytes).unwrap();
    let second = world.backup();
    assert_eq!(second["kind"], "incremental", "{second}");
    assert!(number(&second, "stored_bytes") < 3 << 20, "{second}");
    assert_eq!(number(&second, "read_bytes"), bytes.len() as u64);
    // Under another name it is the same content, and the old name is gone.
    let named = format!("{source}file_name = \"other\"\n");
    let world = world.with_source("command", &named);
    let third = world.backup();
    assert!(number(&third, "stored_bytes") < 4000, "{third}");
    let back = world.restored(id(&third), "back");
    assert!(fs::read(back.join("other")).unwrap() == bytes);
    assert_eq!(fs::read_dir(&back).unwrap().count(), 1);
}

pub fn flip(pack: &Path) {
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(pack, Permissions::from_mode(0o600)).unwrap();
    fs::write(pack, bytes).unwrap();
}

#[test]
fn u40_damage_of_shared_content_names_all_files_and_all_backups() {
    let world = World::new("");
    let source = world.source();
    for name in ["one", "two"] {
        fs::write(source.join(name), noise(3, 900_000)).unwrap();
    }
    let first = world.backup();
    fs::write(source.join("three"), noise(3, 900_000)).unwrap();
    let second = world.backup();
    let packs = world.sandbox.join("repo/aux/files/up/packs");
    let pack = fs::read_dir(packs.join(id(&first))).unwrap().next();
    flip(&pack.unwrap().unwrap().path());
    let verify = world.pitr(&["verify", "--json"]).run();
    let verify = verify.expect_code(4).json();
    let found = verify["scopes"][0]["findings"].as_array().unwrap();
    for (backup, names) in [
        (&first, &["one", "two"][..]),
        (&second, &["one", "three", "two"]),
    ] {
        let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let is_of = |finding: &&Value| {
            finding["object"].as_str().unwrap().contains(id(backup))
                && str_of(&finding["detail"]).ends_with(&names.join(", "))
        };
        assert!(found.iter().any(|f| is_of(&f)), "{backup} {verify:#}");
    }
    for backup in verify["scopes"][0]["backups"].as_array().unwrap() {
        assert_eq!(backup["restorable"], false, "{verify:#}");
    }
    // Nobody builds on either of them.
    let third = world.backup();
    assert_eq!(third["kind"], "full", "{third}");
    world.gives(id(&third), &describe(&source), "after the damage");
}

#[test]
fn u41_a_pack_that_is_cut_is_not_built_upon() {
    let world = World::new("");
    let source = world.source();
    fs::write(source.join("one"), noise(3, 900_000)).unwrap();
    let first = world.backup();
    let packs = world.sandbox.join("repo/aux/files/up/packs");
    let pack = fs::read_dir(packs.join(id(&first))).unwrap().next();
    let pack = pack.unwrap().unwrap().path();
    fs::set_permissions(&pack, Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&pack).unwrap();
    file.set_len(800_000).unwrap();
    fs::remove_file(source.join("one")).unwrap();
    fs::write(source.join("two"), noise(3, 900_000)).unwrap();
    let second = world.backup();
    assert_eq!(number(&second, "reused_bytes"), 0, "{second}");
    assert_eq!(second["prior"], first["id"], "{second}");
    world.gives(id(&second), &describe(&source), "after the cut");
}
