//! Access across epochs: given in each or in none, withdrawn from each, and nobody comes back by a file or a copy.

use super::Rotated;
use crate::sealed::refused;

#[test]
fn z15_access_is_given_and_withdrawn_in_every_epoch() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    let local = &sealed.repository;
    sealed.push(&still, "writer", 0).succeed();
    rotated.add("leaver");
    rotated.rotate("operator", "next").succeed();
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    sealed.push(&still, "later", 1).succeed();
    rotated.add("comer");
    assert_eq!(Rotated::recipients(local, 2), ["comer", "escrow", "ops"]);
    assert_eq!(
        Rotated::recipients(local, 1),
        ["comer", "escrow", "leaver", "ops"]
    );
    rotated.host(
        &still.cluster,
        "comer",
        &rotated.writer("next"),
        Some("comer"),
    );
    for n in [0, 1] {
        sealed.fetch(&still, "comer", n).succeed();
        std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    }
    let escrow = sealed.key("escrow");
    let run = rotated.rewrap(&[
        "--withdraw",
        "comer",
        "--withdraw",
        "leaver",
        "--proof",
        &escrow,
    ]);
    let run = run.succeed();
    assert_eq!(
        run.stdout.trim(),
        "Repository local is read by: escrow, ops"
    );
    for epoch in [1, 2] {
        assert_eq!(Rotated::recipients(local, epoch), ["escrow", "ops"]);
    }
    refused(
        &sealed.fetch(&still, "comer", 0).run(),
        204,
        "has no keys for recipient",
    );
    // By one plan for all, with what it does in each epoch.
    let add = sealed.keys.join("comer.pub").display().to_string();
    let all = ["--all", "--add", &add, "--confirm"];
    rotated
        .rewrap(&all)
        .succeed()
        .expect_stdout(
            "Repository local, data of epoch 2: gave access to comer; read by: comer, escrow, ops",
        )
        .expect_stdout("Repository local, data: gave access to comer; read by: comer, escrow, ops");
    // A key that does not open every epoch changes nothing in any.
    std::fs::remove_file(local.join("keys/2/ops")).unwrap();
    let run = rotated.rewrap(&["--withdraw", "comer"]).run();
    refused(&run, 1, "no keys of epoch 2 for recipient \"ops\"");
    assert_eq!(Rotated::recipients(local, 1), ["comer", "escrow", "ops"]);
}

#[test]
fn z15_who_is_named_reads_the_former_epochs_and_two_are_proven() {
    let (rotated, _still) = Rotated::still();
    let sealed = &rotated.sealed;
    let made = sealed.sandbox.join("stranger");
    crate::sealed::keygen(&made, &["stranger"])
        .arg("--pair-only")
        .succeed();
    let stranger = made.join("stranger.pub").display().to_string();
    let run = rotated.rotate_for(
        "operator",
        "next",
        &["ops", "escrow"],
        &["--add", &stranger],
    );
    refused(
        &run.run(),
        8,
        "recipient \"stranger\" has no access to epoch 1",
    );
    let alone = sealed.on("operator").words("repo rotate --dir");
    let alone = alone.arg(rotated.dir("next"));
    let public = |name: &str| {
        sealed
            .keys
            .join(format!("{name}.pub"))
            .display()
            .to_string()
    };
    let unproven = alone
        .clone()
        .args(["--add", &public("ops"), "--add", &public("escrow")]);
    refused(&unproven.run(), 8, "proven so far: ops");
    let one = alone.clone().args(["--add", &public("ops")]);
    refused(&one.run(), 2, "1 recipients are named, and 2 are needed");
    // The proof must be of somebody who is named.
    let other = unproven
        .clone()
        .args(["--proof", &made.join("stranger.key").display().to_string()]);
    refused(&other.run(), 2, "is not that of any .pub file");
    for host in ["writer", "reader"] {
        let run = rotated.rotate(host, "next").run();
        assert_ne!(run.code(), 0, "{run}");
    }
    assert!(!rotated.dir("next").exists());
    let planned = rotated.rotate_for("operator", "next", &["ops", "escrow"], &[]);
    refused(&planned.run(), 8, "--confirm is not given");
    let planned = rotated.rotate_for("operator", "next", &["ops", "escrow"], &["--dry-run"]);
    planned
        .succeed()
        .expect_stdout("Repository local: stores keys/2/escrow, keys/2/ops");
    assert!(!rotated.dir("next").exists() && Rotated::recipients(&sealed.repository, 2).is_empty());
}

#[test]
fn z15_a_new_repository_gets_every_epoch_and_nobody_who_was_left_out() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    rotated.add("leaver");
    let planned = rotated.rotate("operator", "next").succeed();
    planned.expect_stdout("Cannot read it: leaver");
    let file = std::fs::read_to_string(rotated.writer("next")).unwrap();
    assert!(!file.contains("leaver"));
    rotated.host(
        &still.cluster,
        "operator",
        &rotated.writer("next"),
        Some("ops"),
    );
    sealed.push(&still, "writer", 0).succeed();
    sealed.push(&still, "operator", 1).succeed();
    let second = rotated.second("operator");
    for epoch in [1, 2] {
        assert_eq!(Rotated::recipients(&second, epoch), ["escrow", "ops"]);
    }
    // A copy has the objects of both epochs, and no recipient more.
    let sync = sealed
        .on("operator")
        .words("repo sync --from local --to second");
    sync.run();
    for epoch in [1, 2] {
        assert_eq!(Rotated::recipients(&second, epoch), ["escrow", "ops"]);
    }
    sealed.push(&still, "operator", 2).succeed();
    let fetch = ["--repository", "second", "wal", "fetch", &still.segments[2]];
    let to = sealed.sandbox.join("fetched");
    sealed.on("operator").args(fetch).arg(&to).succeed();
}
