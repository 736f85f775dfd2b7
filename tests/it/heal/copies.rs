//! Healing in copies of a frozen repository: every kind of object, plain, encrypted and in a bucket, and a hostile giver.

use std::path::{Path, PathBuf};

use pitr::repo::scope;
use pitr::store::Key;
use serde_json::Value;

use crate::common::s3::{BUCKET, Fault, KEY, S3Server};
use crate::common::{Program, copy_tree, files_below, str_of};
use crate::frozen::Frozen;

/// Two repositories with the same objects, `frozen` and `second`.
pub struct Copies {
    pub frozen: Frozen,
    pub first: PathBuf,
    pub second: PathBuf,
}

impl Copies {
    pub fn new(form: &str) -> Copies {
        let frozen = Frozen::new(19, form);
        let (first, second) = (
            frozen.path().join("repository"),
            frozen.path().join("second"),
        );
        copy_tree(&first, &second);
        let mut more = format!(
            "\n[repositories.second]\nurl = \"file://{}\"\nrequired = false\n",
            second.display()
        );
        if form.starts_with("encrypted") {
            let key = frozen.path().join("ops.key");
            more += &format!(
                "\n[repositories.second.encryption]\nkey_file = \"{}\"\n",
                key.display()
            );
        }
        let copies = Copies {
            frozen,
            first,
            second,
        };
        copies.configure(&more);
        copies
    }

    pub fn configure(&self, more: &str) {
        crate::common::append(self.frozen.path().join("pitr.toml"), more);
    }

    /// The keys of all objects that heal.
    pub fn keys(&self) -> Vec<String> {
        let keys = files_below(&self.second).into_iter();
        let keys = keys.filter(|key| {
            let key = Key::new(key.as_str());
            key.is_ok_and(|key| scope::is_sealed_form(&key))
        });
        keys.collect()
    }

    pub fn key(&self, part: &str) -> String {
        let keys = self.keys();
        keys.into_iter()
            .find(|key| key.contains(part))
            .unwrap_or_else(|| panic!("{part}"))
    }

    pub fn verify(&self, args: &[&str]) -> Program {
        let program = self.frozen.pitr().words("verify --json");
        program.words("--repository frozen").args(args)
    }

    pub fn copy(&self, key: &str, number: u32) -> PathBuf {
        self.first.join(format!("{key}.heal-{number}"))
    }

    pub fn original(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.second.join(key)).unwrap()
    }
}

/// Changes an object in one of several ways.
pub fn damage(root: &Path, key: &str, way: usize) {
    let path = root.join(key);
    let mut bytes = std::fs::read(&path).unwrap();
    let (middle, last) = (bytes.len() / 2, bytes.len() - 1);
    match way % 5 {
        0 => bytes[middle] ^= 4,
        1 => bytes[last] ^= 1,
        2 => bytes.truncate(middle),
        3 => bytes[0] ^= 0x80,
        _ => bytes.fill(0),
    }
    std::fs::write(path, bytes).unwrap();
}

/// The members of one name in all clusters and scopes of a report.
pub fn all(report: &Value, name: &str) -> Vec<Value> {
    let parts = ["clusters", "scopes"].into_iter();
    let parts = parts.filter_map(|part| report[part].as_array()).flatten();
    let lists = parts.map(|one| {
        one[name]
            .as_array()
            .unwrap_or_else(|| panic!("{name}: {one}"))
    });
    lists.flatten().cloned().collect()
}

fn every_kind_is_healed(form: &str) {
    let copies = Copies::new(form);
    let keys = copies.keys();
    for kind in [
        "/history",
        "/labels/",
        "/open/",
        "/conflicts/",
        "/lives/",
        "/manifest",
        "/server-manifest",
        "/layers/",
        "/packs/",
        "aux/test/",
        "aux/later/",
    ] {
        assert!(keys.iter().any(|key| key.contains(kind)), "no {kind}");
    }
    for (n, key) in keys.iter().enumerate() {
        damage(&copies.first, key, n);
    }
    copies.verify(&[]).exits(4);
    let healed = copies.verify(&["--heal"]).run();
    let report = healed.json();
    assert_eq!(all(&report, "findings"), Vec::<Value>::new(), "{report:#}");
    assert_eq!(healed.code(), 0, "{healed}");
    for key in &keys {
        let copy = std::fs::read(copies.copy(key, 1));
        assert!(copy.is_ok_and(|copy| copy == copies.original(key)), "{key}");
        assert!(!copies.copy(key, 2).exists(), "{key}");
    }
    assert_eq!(all(&report, "healed").len(), keys.len());
    // All of it is read without the other one.
    std::fs::rename(&copies.second, copies.second.with_extension("away")).unwrap();
    copies.verify(&[]).succeed();
    let to = copies.frozen.path().join("restored");
    let restore = copies.frozen.pitr().restore_to(&to).arg("--quiet");
    restore.words("--repository frozen").succeed();
}

#[test]
fn v02_every_kind_of_object_is_healed() {
    every_kind_is_healed("plain-2");
}

#[test]
fn v02_v05_every_kind_of_encrypted_object_is_healed() {
    every_kind_is_healed("encrypted-2");
}

#[test]
fn v02_missing_parts_come_back_under_their_own_keys() {
    let copies = Copies::new("plain-2");
    let keys: Vec<String> = copies.keys();
    let is_part = |key: &&String| {
        ["/packs/", "/layers/", "/server-manifest", "/history"]
            .iter()
            .any(|part| key.contains(part))
    };
    let missing: Vec<&String> = keys.iter().filter(is_part).collect();
    for key in &missing {
        std::fs::remove_file(copies.first.join(key)).unwrap();
    }
    copies.verify(&[]).exits(4);
    let report = copies.verify(&["--heal"]).run().json();
    assert_eq!(all(&report, "findings"), Vec::<Value>::new(), "{report:#}");
    for key in missing {
        let found = std::fs::read(copies.first.join(key));
        assert!(
            found.is_ok_and(|found| found == copies.original(key)),
            "{key}"
        );
    }
    // A root makes its backup true: a sync brings it, behind its parts.
    let root = copies.key("/manifest");
    std::fs::remove_file(copies.first.join(&root)).unwrap();
    let run = copies.verify(&["--heal"]).exits(4);
    let said = &all(&run.json(), "not_healed")[0];
    assert!(
        str_of(&said["reasons"][0]).contains("pitr repo sync"),
        "{run}"
    );
    let sync = copies.frozen.pitr().words("repo sync --heal --all --quiet");
    sync.words("--from second --to frozen").succeed();
    copies.verify(&[]).succeed();
}

#[test]
fn v02_registrations_and_events_are_named_and_have_no_copies() {
    let copies = Copies::new("plain-2");
    let begin = files_below(&copies.first)
        .into_iter()
        .find(|key| key.contains("/begin"))
        .unwrap();
    damage(&copies.first, &begin, 0);
    let run = copies.verify(&["--heal"]).exits(4);
    let said = &all(&run.json(), "not_healed")[0];
    assert!(begin.starts_with(said["object"].as_str().unwrap()), "{run}");
    assert!(
        str_of(&said["reasons"][0]).contains("have no healed copies"),
        "{run}"
    );
    assert!(!copies.copy(&begin, 1).exists());
}

#[test]
fn v03_what_neither_has_whole_stays_lost_and_is_said() {
    let copies = Copies::new("plain-2");
    let keys = copies.keys();
    let packs: Vec<&String> = keys.iter().filter(|key| key.contains("/packs/")).collect();
    damage(&copies.first, packs[0], 0);
    damage(&copies.second, packs[0], 2);
    damage(&copies.first, packs[1], 0);
    let report = copies.verify(&["--heal"]).exits(4).json();
    let lost = all(&report, "not_healed");
    assert_eq!(lost.len(), 1, "{report:#}");
    assert_eq!(lost[0]["object"], packs[0].as_str());
    assert!(
        str_of(&lost[0]["reasons"][0]).starts_with("\"second\": "),
        "{lost:?}"
    );
    let healed = all(&report, "healed");
    assert_eq!(healed.len(), 1);
    assert_eq!(healed[0]["object"], packs[1].as_str());
    let left = all(&report, "findings");
    assert!(
        left.iter().all(|f| f["object"] == packs[0].as_str()),
        "{left:?}"
    );
    assert!(
        left.iter()
            .all(|f| !f["costs"].as_array().unwrap().is_empty()),
        "{left:?}"
    );
}

/// The segment of a name that lies in two lives: two contents that are genuine, of one server by its identifier.
fn of_two_lives(copies: &Copies) -> (String, String) {
    let keys = copies.keys();
    for other in keys
        .iter()
        .filter(|key| key.contains("/lives/") && !key.contains("/open/"))
    {
        let name = other.rsplit('/').next().unwrap();
        let own = keys.iter().find(|key| {
            key.ends_with(&format!("/{name}"))
                && !key.contains("/lives/")
                && !key.contains("/open/")
        });
        if let Some(own) = own
            && copies.original(own) != copies.original(other)
        {
            return (own.clone(), other.clone());
        }
    }
    panic!("no segment has two lives: {keys:?}");
}

#[test]
fn v04_a_hostile_giver_is_not_believed() {
    let copies = Copies::new("plain-2");
    let (own, other) = of_two_lives(&copies);
    let segments: Vec<String> = copies
        .keys()
        .into_iter()
        .filter(|k| crate::several::is_segment(k))
        .collect();
    let packs: Vec<String> = copies
        .keys()
        .into_iter()
        .filter(|k| k.contains("/packs/"))
        .collect();
    let roots: Vec<String> = copies
        .keys()
        .into_iter()
        .filter(|k| k.contains("clusters/") && k.ends_with("/manifest"))
        .collect();
    let lie = |key: &str, with: &str| {
        std::fs::write(copies.second.join(key), copies.original(with)).unwrap();
    };
    // The WAL of another life under the very name; the whole of another key; another backup's pack, and root.
    let forged = [
        (own.clone(), other.clone()),
        (
            segments
                .iter()
                .find(|s| **s != own && **s != other)
                .unwrap()
                .clone(),
            other.clone(),
        ),
        (packs[0].clone(), packs[1].clone()),
        (roots[0].clone(), roots[1].clone()),
    ];
    let whole: Vec<Vec<u8>> = forged.iter().map(|(key, _)| copies.original(key)).collect();
    for (key, with) in &forged {
        lie(key, with);
    }
    for way in [0, 1] {
        for ((key, _), bytes) in forged.iter().zip(&whole) {
            std::fs::write(copies.first.join(key), bytes).unwrap();
            damage(&copies.first, key, way);
        }
        let report = copies.verify(&["--heal"]).exits(4).json();
        let healed = all(&report, "healed");
        assert!(healed.is_empty(), "way {way}: {healed:?}");
        for (key, _) in &forged {
            assert!(!copies.copy(key, 1).exists(), "way {way}: {key}");
        }
    }
}

#[test]
fn v04_a_copy_that_lay_there_before_the_damage_replaces_nothing() {
    let copies = Copies::new("plain-2");
    let (own, other) = of_two_lives(&copies);
    let name = own.rsplit('/').next().unwrap().to_owned();
    let target = copies.frozen.path().join("fetched");
    let fetch = |repository: &str| {
        let _ = std::fs::remove_file(&target);
        let run = copies
            .frozen
            .pitr()
            .args(["wal", "fetch", &name])
            .arg(&target);
        run.args(["--repository", repository]).run()
    };
    // The decision about the lives of the timeline is left out of this: the plain key is the one that is read.
    for root in [&copies.first, &copies.second] {
        for event in files_below(root)
            .iter()
            .filter(|key| key.contains("resolve-"))
        {
            std::fs::remove_file(root.join(event)).unwrap();
        }
    }
    fetch("second").success();
    let truth = std::fs::read(&target).unwrap();
    std::fs::write(copies.copy(&own, 1), copies.original(&other)).unwrap();
    fetch("frozen").success();
    assert!(
        std::fs::read(&target).unwrap() == truth,
        "a whole original was not read"
    );
    // The original still says what it held: the planted copy does not, and the genuine one becomes the next.
    damage(&copies.first, &own, 0);
    fetch("frozen").expect_code(1);
    let report = copies.verify(&["--heal"]).run().json();
    let healed = all(&report, "healed");
    assert_eq!(healed[0]["copy"], format!("{own}.heal-2"), "{healed:?}");
    assert!(std::fs::read(copies.copy(&own, 2)).unwrap() == copies.original(&own));
    fetch("frozen").success();
    assert!(std::fs::read(&target).unwrap() == truth);
}

#[test]
fn v30_a_neighbour_that_cannot_be_asked_is_not_taken_for_one_that_is_not_there() {
    let copies = Copies::new("plain-2");
    let (other, own) = of_two_lives(&copies);
    // The giver has the WAL of another life under the very name, and the original says nothing any more. One neighbour is there.
    std::fs::write(copies.second.join(&own), copies.original(&other)).unwrap();
    let folder = own.rsplit_once('/').unwrap().0;
    let beside = |key: &&String| key.rsplit_once('/').unwrap().0 == folder && **key != own;
    let keys = copies.keys();
    let beside: Vec<&String> = keys.iter().filter(beside).collect();
    let neighbours: Vec<&String> = [
        beside.iter().copied().filter(|key| **key > own).min(),
        beside.iter().copied().filter(|key| **key < own).max(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let server = S3Server::start();
    for key in files_below(&copies.first) {
        if neighbours.get(1).is_none_or(|gone| **gone != key) {
            server.plant(
                &format!("pg/{key}"),
                &std::fs::read(copies.first.join(&key)).unwrap(),
            );
        }
    }
    let length = copies.original(&own).len();
    server.plant(&format!("pg/{own}"), &vec![0; length]);
    copies.configure(&format!(
        "\n[repositories.bucket]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\nrequired = false\n",
        server.endpoint(),
        server.credentials(copies.frozen.sandbox(), KEY).display()
    ));
    std::fs::remove_dir_all(&copies.first).unwrap();
    let heal = || {
        let program = copies.frozen.pitr().words("verify --json --heal");
        program.words("--repository bucket").run()
    };
    let copy = format!("pg/{own}.heal-1");
    // Refused each time that it is read, from the first time on, the second one, and so on.
    let mut fired = 1;
    for skip in 0.. {
        server.heal();
        if fired == 0 {
            break;
        }
        let refused = Fault::Error(403, "AccessDenied");
        let fault = server.fault_after(skip, &format!("/pg/{}", neighbours[0]), 1000, refused);
        let run = heal();
        fired = fault.times();
        assert!(!server.keys().contains(&copy), "{skip}: {run}");
        // Once it is asked each time, it says what it has to say.
        let said = run.stdout.contains("beside the damaged one do not join");
        assert!(said || fired > 0, "{skip}: {run}");
        assert!(skip < 50, "{run}");
    }
}

#[test]
fn v05_a_repository_of_another_key_set_heals_nothing() {
    let copies = Copies::new("plain-2");
    let other = Frozen::new(19, "encrypted-2");
    copies.configure(&format!(
        "\n[repositories.other]\nurl = \"file://{}\"\nrequired = false\n\n[repositories.other.encryption]\nkey_file = \"{}\"\n",
        other.path().join("repository").display(),
        other.path().join("ops.key").display()
    ));
    std::fs::remove_dir_all(&copies.second).unwrap();
    let pack = files_below(&copies.first)
        .into_iter()
        .find(|key| key.contains("/packs/"))
        .unwrap();
    damage(&copies.first, &pack, 0);
    let run = copies.verify(&["--heal"]).exits(4);
    let said = all(&run.json(), "not_healed")[0]["reasons"].to_string();
    assert!(said.contains("do not have the same key set"), "{said}");
    assert!(said.contains("could not be asked"), "{said}");
}

#[test]
fn v06_objects_in_a_bucket_are_healed() {
    let copies = Copies::new("plain-2");
    let server = S3Server::start();
    for key in files_below(&copies.second) {
        server.plant(&format!("pg/{key}"), &copies.original(&key));
    }
    copies.configure(&format!(
        "\n[repositories.bucket]\nurl = \"s3://{BUCKET}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\nrequired = false\n",
        server.endpoint(),
        server.credentials(copies.frozen.sandbox(), KEY).display()
    ));
    let segment = copies
        .keys()
        .into_iter()
        .find(|k| crate::several::is_segment(k))
        .unwrap();
    let keys = [
        copies.key("/packs/"),
        copies.key("/layers/"),
        copies.key("/manifest"),
        segment,
    ];
    for key in &keys {
        let mut bytes = copies.original(key);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        server.plant(&format!("pg/{key}"), &bytes);
    }
    let verify = |args: &[&str]| {
        let program = copies
            .frozen
            .pitr()
            .words("verify --json --repository bucket");
        program.args(args).run()
    };
    verify(&[]).expect_code(4);
    let report = verify(&["--heal"]).success().json();
    assert_eq!(all(&report, "healed").len(), keys.len(), "{report:#}");
    for key in &keys {
        assert!(
            server.object(&format!("pg/{key}.heal-1")) == copies.original(key),
            "{key}"
        );
    }
    // And from the bucket into a directory.
    damage(&copies.first, &keys[0], 0);
    std::fs::remove_dir_all(&copies.second).unwrap();
    let report = copies.verify(&["--heal"]).succeed().json();
    assert_eq!(all(&report, "healed")[0]["from"], "bucket", "{report:#}");
}

#[test]
fn v07_a_damaged_copy_is_healed_in_its_turn() {
    let copies = Copies::new("plain-2");
    let keys = [
        copies.key("/packs/"),
        copies
            .keys()
            .into_iter()
            .find(|k| crate::several::is_segment(k))
            .unwrap(),
    ];
    for key in &keys {
        damage(&copies.first, key, 0);
    }
    copies.verify(&["--heal"]).succeed();
    for key in &keys {
        damage(&copies.first, &format!("{key}.heal-1"), 0);
    }
    copies.verify(&[]).exits(4);
    let report = copies.verify(&["--heal"]).succeed().json();
    let healed = all(&report, "healed");
    assert_eq!(healed.len(), 2, "{healed:?}");
    assert!(
        keys.iter().all(|key| copies.copy(key, 2).exists()),
        "{healed:?}"
    );
    // The giver's original is damaged, too: its healed copy gives.
    let swapped = copies
        .frozen
        .pitr()
        .words("verify --json --repository second --heal");
    for key in &keys {
        damage(&copies.second, key, 2);
    }
    let report = swapped.succeed().json();
    assert_eq!(all(&report, "healed").len(), 2, "{report:#}");
}

#[test]
fn v02_what_is_cut_in_an_encrypted_repository_ends_no_check() {
    let copies = Copies::new("encrypted-2");
    let verify = |more: &[&str]| {
        let program = copies.frozen.pitr().words("verify --json");
        program.words("--repository second").args(more).run()
    };
    let keys = copies.keys();
    let segments: Vec<&String> = keys.iter().filter(|key| is_segment(key)).collect();
    assert!(segments.iter().any(|key| key.contains("/lives/")));
    for key in segments {
        let good = std::fs::read(copies.second.join(key)).unwrap();
        damage(&copies.second, key, 2);
        verify(&[]).expect_code(4).expect_stdout(key);
        std::fs::write(copies.second.join(key), good).unwrap();
    }
    let history = keys
        .iter()
        .find(|key| key.ends_with("00000003/history"))
        .unwrap();
    damage(&copies.second, history, 2);
    let key = keys
        .iter()
        .find(|key| is_segment(key) && key.contains("/lives/"));
    damage(&copies.second, key.unwrap(), 2);
    verify(&[]).expect_code(4);
    verify(&["--heal"]).success();
    verify(&["--heal"]).success();
}

fn is_segment(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or_default();
    key.contains("/wal/")
        && name.len() == 24
        && !key.contains("partial")
        && !key.contains("conflicts")
}

#[test]
fn v10_the_healed_copy_of_a_root_is_what_a_new_repository_gets() {
    let copies = Copies::new("plain-2");
    let roots: Vec<String> = copies
        .keys()
        .into_iter()
        .filter(|key| key.ends_with("/manifest"))
        .collect();
    assert!(roots.len() > 2);
    for key in &roots {
        damage(&copies.first, key, 0);
    }
    copies.verify(&["--heal"]).succeed();
    // The second one is lost, and made anew.
    for key in files_below(&copies.second) {
        if key != "pitr.json" {
            std::fs::remove_file(copies.second.join(key)).unwrap();
        }
    }
    // One of them is marked for deletion, and is not copied.
    let is_copied = |key: &str| key.starts_with("clusters/") && !key.contains("20261122T101445Z");
    let sync = copies
        .frozen
        .pitr()
        .words("repo sync --from frozen --to second");
    let synced = sync.run();
    for key in roots.iter().filter(|key| is_copied(key)) {
        let bytes = std::fs::read(copies.second.join(key));
        let bytes = bytes.unwrap_or_else(|e| panic!("{key}: {e}: {synced}"));
        let copy = std::fs::read(copies.copy(key, 1)).unwrap();
        assert!(bytes == copy, "{key}: {synced}");
    }
    let plan = copies.frozen.pitr().words("plan --repository second");
    plan.succeed();
}

/// Empties the second repository, as where it is lost and made anew.
fn empty(copies: &Copies) {
    let has_content = |key: &String| key.starts_with("clusters/") || key.starts_with("aux/");
    for key in files_below(&copies.second).into_iter().filter(has_content) {
        std::fs::remove_file(copies.second.join(key)).unwrap();
    }
}

#[test]
fn v12_healed_wal_of_an_encrypted_repository_goes_to_a_new_one() {
    let copies = Copies::new("encrypted-2");
    let wal: Vec<String> = copies
        .keys()
        .into_iter()
        .filter(|key| key.contains("/wal/") || key.ends_with("server-manifest"))
        .collect();
    for kind in ["/open/", "/history", "server-manifest"] {
        assert!(wal.iter().any(|key| key.contains(kind)), "no {kind}");
    }
    for key in &wal {
        damage(&copies.first, key, 0);
    }
    copies.verify(&["--heal"]).succeed();
    let truth: Vec<Vec<u8>> = wal.iter().map(|key| copies.original(key)).collect();
    empty(&copies);
    let sync = copies.frozen.pitr().words("repo sync --all --json");
    let synced = sync.words("--from frozen --to second").run();
    let report = synced.json().to_string();
    assert!(!report.contains("is damaged"), "{synced}");
    let mut copied = 0;
    for (key, truth) in wal.iter().zip(&truth) {
        if let Ok(bytes) = std::fs::read(copies.second.join(key)) {
            assert!(bytes == *truth, "{key}");
            copied += 1;
        }
    }
    assert!(
        copied * 2 > wal.len(),
        "{copied} of {}: {synced}",
        wal.len()
    );
}

#[test]
fn v13_a_history_that_says_nothing_is_healed_only_from_where_its_wal_is_the_same() {
    let copies = Copies::new("plain-2");
    let history = copies.key("/history");
    let timeline = history.trim_end_matches("history").to_owned();
    let all_segments: Vec<String> = copies.keys();
    let all_segments = all_segments.into_iter().filter(|key| is_segment(key));
    let (segments, others): (Vec<String>, Vec<String>) =
        all_segments.partition(|key| key.starts_with(&timeline) && !key.contains("/lives/"));
    let own = &segments[0];
    let reason = || {
        let report = copies.verify(&["--heal"]).run().json();
        let left = all(&report, "not_healed");
        left.iter()
            .find(|one| one["object"] == history.as_str())
            .map(|one| one["reasons"].to_string())
    };
    // The giver has the WAL of another life under the very names.
    damage(&copies.first, &history, 4);
    let kept: Vec<(String, Vec<u8>)> = segments
        .iter()
        .map(|key| (key.clone(), copies.original(key)))
        .collect();
    let foreign = copies.original(&others[0]);
    for key in &segments {
        std::fs::remove_file(copies.second.join(key)).unwrap();
    }
    std::fs::write(copies.second.join(own), &foreign).unwrap();
    let said = reason().unwrap_or_default();
    assert!(said.contains("history of another server"), "{own}: {said}");
    // It has none.
    std::fs::remove_file(copies.second.join(own)).unwrap();
    let said = reason().unwrap_or_default();
    assert!(said.contains("no segment of its timeline"), "{said}");
    assert!(!copies.copy(&history, 1).exists());
    for (key, bytes) in kept {
        std::fs::write(copies.second.join(key), bytes).unwrap();
    }
    assert_eq!(reason(), None);
    assert!(copies.copy(&history, 1).exists());
}
