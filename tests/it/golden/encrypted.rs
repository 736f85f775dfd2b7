//! The same of an encrypted repository, with its key and without.

use std::path::Path;

use super::frozen::Stage;

#[test]
fn with_the_key() {
    let mut stage = Stage::new("frozen-encrypted", 18, "encrypted");
    for args in [
        &["info"][..],
        &["plan"],
        &["verify"],
        &["repo", "show"],
        &["wal", "list"],
    ] {
        stage.pitr(args);
    }
    stage.check();
}

#[test]
fn without_the_key() {
    let mut stage = Stage::new("frozen-encrypted-without-key", 18, "encrypted");
    stage.forget_key();
    for args in [
        &["info"][..],
        &["info", "--json"],
        &["plan"],
        &["verify"],
        &["repo", "show"],
        &["wal", "list"],
    ] {
        stage.pitr(args);
    }
    stage.say("the key file is not there");
    stage.lose_key();
    stage.pitr(&["plan"]);
    stage.check();
}

/// The key set gets another pair: the plan, what it refuses, what is done, and what is said afterwards.
#[test]
fn rotated() {
    let mut stage = Stage::new("rotated", 18, "encrypted");
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories/keys");
    let writer = std::fs::read_to_string(keys.join("writer.key")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&writer).unwrap();
    for recipient in file["recipients"].as_array().unwrap() {
        let name = recipient["recipient"].as_str().unwrap();
        let public = serde_json::json!({
            "kind": "pitr recipient", "recipient": name, "public_key": recipient["public_key"],
        });
        stage.file(&format!("{name}.pub"), public.to_string());
    }
    let escrow = stage.file(
        "escrow.key",
        std::fs::read(keys.join("escrow.key")).unwrap(),
    );
    let own = stage.file("writer.key", &writer);
    let path = |name: &str| stage.path().join(name).display().to_string();
    let (dir, ops, public) = (path("next"), path("ops.pub"), path("escrow.pub"));
    let other = path("other");
    let escrow = escrow.display().to_string();
    let rotate = ["repo", "rotate", "--dir", &dir, "--add", &ops];
    let both = [&rotate[..], &["--add", &public]].concat();
    let proven = [&both[..], &["--proof", &escrow]].concat();
    stage.say("there is no file for hosts");
    stage.pitr(&proven);
    stage.add_to_configuration(&format!("key_set = \"{}\"\n", own.display()));
    stage.say("too few are named, or proven");
    stage.pitr(&rotate);
    stage.pitr(&both);
    stage.pitr(&[&proven[..], &["--dry-run"]].concat());
    stage.pitr(&proven);
    stage.pitr(&[&proven[..], &["--confirm"]].concat());
    stage.pitr(&[&proven[..], &["--json"]].concat());
    stage.pitr(&["repo", "rotate", "--dir", &dir, "--take-back", "--confirm"]);
    stage.say("another one follows on the file that was made");
    let other = [&["repo", "rotate", "--dir", &other][..], &proven[4..]].concat();
    stage.pitr(&[&other[..], &["--dry-run"]].concat());
    stage.check();
}
