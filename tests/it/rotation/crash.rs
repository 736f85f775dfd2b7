//! A rotation that is killed, and repositories that are away: the same command goes on, with the same pair.

use std::path::Path;

use rustix::process::Signal;

use super::rivals::paused;
use super::{Rotated, block, unblock};
use crate::common::fault::{self, MUTATING};
use crate::require_strace;
use crate::sealed::refused;

/// The public half that a file or an object names.
fn half(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["public_half"].as_str().unwrap().to_owned()
}

#[test]
fn z12_a_rotation_killed_at_any_call_goes_on_with_the_same_pair() {
    require_strace!("z12_a_rotation_killed_at_any_call_goes_on_with_the_same_pair");
    let (rotated, still) = Rotated::still();
    let second = rotated.second("operator");
    let stores = [rotated.sealed.repository.clone(), second];
    let dir = rotated.dir("next");
    let rotate = rotated.rotate("operator", "next");
    let again = || {
        let _ = std::fs::remove_dir_all(&dir);
        for store in &stores {
            let _ = std::fs::remove_dir_all(store.join("keys/2"));
        }
    };
    let (run, calls) = fault::trace(&rotate, MUTATING);
    run.success();
    assert!(calls.len() > 12, "{}", calls.len());
    let mut unfinished = 0;
    for (n, call) in calls.iter().enumerate() {
        if !fault::is_of_turn(n) {
            continue;
        }
        again();
        let (run, fired) = fault::inject(&rotate, &call.kill());
        assert!(fired > 0, "{}: {run}", call.text);
        // Nobody seals in an epoch that some repository may not have.
        let writer = dir.join("writer.key");
        let pair = dir.join("rotation.key");
        let made = [&writer, &pair].into_iter().find(|p| p.exists());
        let made = made.map(|path| half(path));
        let stored = stores.iter().map(|s| Rotated::recipients(s, 2).len());
        let stored: Vec<usize> = stored.collect();
        if writer.exists() {
            assert_eq!(stored, [2, 2], "{}", call.text);
        }
        if stored.iter().any(|n| *n > 0) {
            assert!(made.is_some(), "{}: the pair is durable first", call.text);
            unfinished += 1;
        }
        rotate.succeed();
        assert!(!pair.exists(), "{}", call.text);
        let own = half(&writer);
        assert!(made.is_none_or(|made| made == own), "{}", call.text);
        for store in &stores {
            assert_eq!(Rotated::recipients(store, 2), ["escrow", "ops"]);
            for name in ["escrow", "ops"] {
                assert_eq!(half(&store.join("keys/2").join(name)), own);
            }
        }
    }
    assert!(unfinished >= fault::share(3), "{unfinished}");
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    rotated.sealed.push(&still, "later", 0).succeed();
    rotated.sealed.fetch(&still, "reader", 0).succeed();
}

#[test]
fn z12_no_host_takes_the_file_of_a_rotation_that_is_not_finished() {
    let (rotated, still) = Rotated::still();
    let second = rotated.second("operator");
    // The second repository takes nothing.
    block(&second);
    let run = rotated.rotate("operator", "next").run();
    assert_ne!(run.code(), 0, "{run}");
    run.expect_stderr("the same command goes on");
    let pending = rotated.dir("next").join("rotation.key");
    assert!(pending.exists() && !rotated.dir("next").join("writer.key").exists());
    let pending = pending.display().to_string();
    for path in [pending.clone(), rotated.writer("next")] {
        // Under the name that it gets, too.
        if path != pending {
            std::fs::copy(&pending, &path).unwrap();
        }
        crate::common::user::own_all(&rotated.dir("next"));
        rotated.host(&still.cluster, "early", &path, None);
        let push = rotated.sealed.push(&still, "early", 0).run();
        refused(&push, 37, "is of a rotation that is not finished");
    }
    std::fs::remove_file(rotated.writer("next")).unwrap();
    assert!(!rotated.sealed.object(&still.segments[0]).exists());
    // Hosts go on in the former epoch meanwhile, and readers read.
    rotated.sealed.push(&still, "writer", 0).succeed();
    rotated.sealed.fetch(&still, "reader", 0).succeed();
    unblock(&second);
    rotated.rotate("operator", "next").succeed();
}

#[test]
fn z12_a_rotation_that_is_not_finished_is_taken_back_and_a_finished_one_is_not() {
    let (rotated, still) = Rotated::still();
    let second = rotated.second("operator");
    block(&second);
    assert_ne!(rotated.rotate("operator", "next").run().code(), 0);
    unblock(&second);
    let local = &rotated.sealed.repository;
    rotated.take_back("operator", "next").succeed();
    for store in [local, &second] {
        assert_eq!(Rotated::recipients(store, 2), [""; 0]);
    }
    refused(
        &rotated.take_back("operator", "next").run(),
        8,
        "has no rotation that is not finished",
    );
    rotated.rotate("operator", "next").succeed();
    let refuses = || {
        let run = rotated.take_back("operator", "next").run();
        assert_eq!(run.code(), 8, "{run}");
        for store in [local, &second] {
            assert_eq!(Rotated::recipients(store, 2), ["escrow", "ops"]);
        }
    };
    refuses();
    // An operator moves the file to its host.
    let moved = rotated.sealed.sandbox.join("moved.key");
    std::fs::rename(rotated.writer("next"), &moved).unwrap();
    refuses();
    rotated.host(&still.cluster, "later", &moved.display().to_string(), None);
    rotated.sealed.push(&still, "later", 0).succeed();
    rotated.sealed.fetch(&still, "reader", 0).succeed();
}

#[test]
fn y50_access_that_is_given_before_a_rotation_is_finished_is_in_no_way_of_it() {
    for takes_back in [false, true] {
        let (rotated, still) = Rotated::still();
        let second = rotated.second("operator");
        let stores = [&rotated.sealed.repository, &second];
        let rotate = rotated.rotate("operator", "next");
        let (running, gate) = paused(rotate, "rotate-stored", &rotated);
        running.ended_by(Signal::KILL);
        let _ = std::fs::remove_file(gate);
        rotated.add("comer");
        for store in stores {
            let names = Rotated::recipients(store, 2);
            assert_eq!(names, ["comer", "escrow", "ops"]);
        }
        if takes_back {
            // All of the epoch goes, for a repository that shows it is one that nobody rotates.
            let taken = rotated.take_back("operator", "next").succeed();
            taken.expect_stdout("keys/2/comer");
            for store in stores {
                assert_eq!(Rotated::recipients(store, 2), [""; 0]);
            }
        }
        rotated.rotate("operator", "next").succeed();
        let comer = (!takes_back).then_some("comer").into_iter();
        let names: Vec<&str> = comer.chain(["escrow", "ops"]).collect();
        assert_eq!(Rotated::recipients(&second, 2), names);
        rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
        rotated.sealed.push(&still, "later", 0).succeed();
        rotated.sealed.fetch(&still, "reader", 0).succeed();
    }
}

#[test]
fn z12_a_repository_that_was_away_gets_the_epochs_later() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    let second = rotated.second("operator");
    let away = sealed.sandbox.join("away");
    std::fs::rename(&second, &away).unwrap();
    let run = rotated.rotate("operator", "next").run();
    assert_ne!(run.code(), 0, "{run}");
    run.expect_stderr("nothing was stored");
    assert!(!rotated.dir("next").exists());
    assert_eq!(Rotated::recipients(&sealed.repository, 2), [""; 0]);
    // Without it in the configuration the others are rotated, twice.
    let with_second = std::fs::read_to_string(sealed.config("operator")).unwrap();
    rotated.host(
        &still.cluster,
        "operator",
        &sealed.key("writer"),
        Some("ops"),
    );
    rotated.rotate("operator", "next").succeed();
    rotated.host(
        &still.cluster,
        "operator",
        &rotated.writer("next"),
        Some("ops"),
    );
    rotated.rotate("operator", "other").succeed();
    assert_eq!(
        Rotated::recipients(&sealed.repository, 3),
        ["escrow", "ops"]
    );
    // It comes back, and hosts seal to it in an epoch that it does not have.
    std::fs::rename(&away, &second).unwrap();
    let both = with_second.replace(&sealed.key("writer"), &rotated.writer("other"));
    std::fs::write(sealed.config("operator"), both).unwrap();
    rotated.host(&still.cluster, "later", &rotated.writer("other"), None);
    rotated.with_second("later");
    sealed.push(&still, "later", 0).succeed();
    let doctor = sealed.on("operator").arg("doctor").exits(1);
    doctor.expect_stdout("nobody can read what this host writes");
    refused(
        &sealed.on("operator").words("repo sync").run(),
        10,
        "lacks it or has another pair",
    );
    // A further rotation waits for it, too.
    let next = rotated.rotate("operator", "next").run();
    assert_ne!(next.code(), 0, "{next}");
    let given = rotated.rotate("operator", "other").succeed();
    given.expect_stdout(
        "Repository second: stored keys/2/escrow, keys/2/ops, keys/3/escrow, keys/3/ops",
    );
    let again = rotated.rotate_for("operator", "other", &["ops", "escrow"], &[]);
    let again = again.succeed().expect_stdout("Repository second: has it");
    again.expect_stderr("nothing was rotated");
    std::fs::rename(&sealed.repository, &away).unwrap();
    let only = ["--repository", "second", "wal", "fetch", &still.segments[0]];
    let to = sealed.sandbox.join("fetched");
    sealed.on("operator").args(only).arg(&to).succeed();
    let wal = std::fs::read(still.wal(&still.segments[0])).unwrap();
    assert!(std::fs::read(to).unwrap() == wal);
}
