//! Two rotations at once: one pair at most gets a file for hosts.

use super::Rotated;
use crate::common::Program;
use crate::sealed::refused;

/// Stops a rotation at a named point until the file is removed.
pub fn paused(
    rotate: Program,
    at: &str,
    rotated: &Rotated,
) -> (crate::common::Running, std::path::PathBuf) {
    let gate = rotated.sealed.sandbox.join(format!("gate-{at}"));
    let mut running = rotate
        .env("PITR_FAULT_PAUSE", format!("{at}={}", gate.display()))
        .spawn();
    running.until("it waits", || gate.exists());
    (running, gate)
}

#[test]
fn z13_of_two_rotations_at_once_one_at_most_gets_a_file() {
    for (point, names) in [
        ("rotate-begun", ["ops", "escrow"]),
        ("rotate-stored", ["ops", "escrow"]),
        // Other names: no object of the one is in the way of the other's.
        ("rotate-begun", ["third", "fourth"]),
        ("rotate-stored", ["third", "fourth"]),
    ] {
        let (rotated, still) = Rotated::still();
        let second = rotated.second("operator");
        rotated.add("third");
        rotated.add("fourth");
        // The other operator has the repositories in the other order, and another key.
        let text = std::fs::read_to_string(rotated.sealed.config("operator")).unwrap();
        let (head, rest) = text.split_once("[repositories.local]").unwrap();
        let (local, second_part) = rest.split_once("[repositories.second]").unwrap();
        let turned = format!("{head}[repositories.second]{second_part}[repositories.local]{local}");
        let own = rotated.sealed.key(names[0]);
        let turned = turned.replace(&rotated.sealed.key("ops"), &own);
        rotated.sealed.sandbox.file("rival.toml", turned);
        let (one, gate) = paused(rotated.rotate("operator", "next"), point, &rotated);
        let other = rotated.rotate_for("rival", "other", &names, &["--confirm"]);
        let other = other.run();
        std::fs::remove_file(&gate).unwrap();
        let one = one.wait();
        let files = ["next", "other"].map(|dir| rotated.dir(dir).join("writer.key").exists());
        let codes = [one.code(), other.code()];
        assert_eq!(files, codes.map(|code| code == 0), "{point}: {one} {other}");
        assert!(files != [true, true], "{point}: {one} {other}");
        // Whoever failed takes back what it stored; whoever is left goes on, or begins again.
        for (host, dir, done) in [("operator", "next", files[0]), ("rival", "other", files[1])] {
            if !done && rotated.dir(dir).join("rotation.key").exists() && files != [false, false] {
                // A file of key_set from before: it still finds its own.
                rotated.take_back(host, dir).succeed();
            }
        }
        if files == [false, false] {
            rotated.take_back("rival", "other").run();
            rotated.rotate("operator", "next").succeed();
        }
        let done = ["next", "other"]
            .into_iter()
            .find(|dir| rotated.dir(dir).join("writer.key").exists());
        let writer = rotated.writer(done.unwrap());
        let text = std::fs::read_to_string(&writer).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        for store in [&rotated.sealed.repository, &second] {
            for name in Rotated::recipients(store, 2) {
                let object = std::fs::read_to_string(store.join("keys/2").join(&name)).unwrap();
                assert!(
                    object.contains(file["public_half"].as_str().unwrap()),
                    "{name}"
                );
            }
            assert_eq!(Rotated::recipients(store, 2).len(), 2);
        }
        rotated.host(&still.cluster, "later", &writer, None);
        rotated.sealed.push(&still, "later", 0).succeed();
        rotated.host(&still.cluster, "named", &writer, Some(names[0]));
        if done == Some("other") {
            rotated.sealed.fetch(&still, "named", 0).succeed();
        } else {
            rotated.sealed.fetch(&still, "reader", 0).succeed();
        }
    }
}

#[test]
fn z13_a_second_rotation_from_the_same_file_is_refused() {
    let (rotated, _still) = Rotated::still();
    rotated.rotate("operator", "next").succeed();
    let run = rotated.rotate("operator", "other").run();
    refused(&run, 8, "it shows epoch 2, and the file is of epoch 1");
    assert!(!rotated.dir("other").exists());
}

/// Both may have one pair each where their configurations have no repository in common: every repository can be read, and nothing is copied.
#[test]
fn z13_repositories_with_two_pairs_of_one_epoch_copy_nothing() {
    let (rotated, still) = Rotated::still();
    let second = rotated.second("operator");
    let both = std::fs::read_to_string(rotated.sealed.config("operator")).unwrap();
    let away = rotated.sealed.sandbox.join("away");
    for (dir, other) in [("next", &second), ("other", &rotated.sealed.repository)] {
        let name = match dir {
            "next" => "second",
            _ => "local",
        };
        std::fs::rename(other, &away).unwrap();
        let alone = without(&both, name);
        rotated.sealed.sandbox.file("alone.toml", alone);
        rotated.rotate("alone", dir).succeed();
        std::fs::rename(&away, other).unwrap();
    }
    let text = both.replacen(&rotated.sealed.key("writer"), &rotated.writer("next"), 1);
    let text = text.replacen(&rotated.sealed.key("writer"), &rotated.writer("other"), 1);
    std::fs::write(rotated.sealed.config("operator"), text).unwrap();
    rotated.sealed.push(&still, "operator", 0).succeed();
    rotated.sealed.fetch(&still, "operator", 0).succeed();
    let sync = rotated.sealed.on("operator").words("repo sync").run();
    refused(&sync, 8, "lacks it or has another pair in it");
    let doctor = rotated.sealed.on("operator").arg("doctor").run();
    doctor.expect_stdout("another in second than in local");
}

/// The configuration without one of its repositories.
fn without(text: &str, name: &str) -> String {
    let mut kept = String::new();
    let mut is_kept = true;
    for line in text.lines() {
        if line.starts_with('[') {
            is_kept = !line.starts_with(&format!("[repositories.{name}"));
        }
        if is_kept {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}
