//! Shares of a recipient's key: made, joined to a key that opens a repository, and every way in which joining fails.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::common::{Program, Run, Sandbox, pitr};
use crate::sealed::{Stored, keygen, refused};

/// Makes the recipient `breakglass`, whose key is 5 shares of which 3 open it, in a directory of its own.
fn divide(sandbox: &Sandbox, directory: &str) -> PathBuf {
    let keys = sandbox.join(directory);
    let split = [
        "--pair-only",
        "--split",
        "breakglass",
        "--shares",
        "5",
        "--threshold",
        "3",
    ];
    let run = keygen(&keys, &[]).args(split).succeed();
    run.expect_stdout("Any 3 of the 5 shares open the key");
    assert!(!keys.join("breakglass.key").exists());
    keys
}

fn share(keys: &Path, number: u8) -> PathBuf {
    keys.join(format!("breakglass.share-{number}"))
}

fn text(keys: &Path, number: u8) -> String {
    std::fs::read_to_string(share(keys, number)).unwrap()
}

fn join(sandbox: &Sandbox, files: &[PathBuf]) -> Program {
    let out = sandbox.join("joined.key");
    pitr().words("repo join --out").arg(out).args(files)
}

/// A share as somebody typed it.
fn typed(sandbox: &Sandbox, text: &str) -> PathBuf {
    sandbox.file("typed", text)
}

fn fails(sandbox: &Sandbox, run: &Run, part: &str) {
    refused(run, 1, part);
    assert!(!sandbox.join("joined.key").exists(), "{run}");
}

#[test]
fn enough_shares_open_the_repository_and_fewer_do_not() {
    let stored = Stored::new();
    let sandbox = &stored.sealed.sandbox;
    let keys = divide(sandbox, "shares");
    let add = stored.sealed.on("reader").words("repo rewrap --add");
    add.arg(keys.join("breakglass.pub")).succeed();
    let files: Vec<PathBuf> = [5, 1, 4].map(|n| share(&keys, n)).into();
    for file in &files {
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let run = join(sandbox, &files[..2]).run();
    fails(sandbox, &run, "2 of the 3 shares that are needed are given");
    let run = join(sandbox, &files).succeed();
    run.expect_stdout("the key of recipient \"breakglass\", of no key set");
    let key = sandbox.join("joined.key");
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let encryption = format!("key_file = \"{}\"", key.display());
    stored
        .sealed
        .configure(&stored.still.cluster, "glass", &encryption);
    stored.sealed.fetch(&stored.still, "glass", 0).succeed();
    // The key is written over no other file.
    refused(&join(sandbox, &files).run(), 8, "is there already");
    // Another program joins them by the page of the decision alone.
    let written = std::fs::read_to_string(&key).unwrap();
    let joined = joined_by_python(&files);
    assert!(joined.len() == 64 && written.contains(&joined));
}

fn joined_by_python(files: &[PathBuf]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed/join.py");
    let python = Program::new("/usr/bin/python3").arg("-B").arg(script);
    let run = python.args(files).succeed();
    run.stdout.trim().to_owned()
}

/// The shares in `testdata/sealed` are of a key that counts from 3 on.
#[test]
fn the_vectors_are_joined_without_any_code_of_pitr() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sealed");
    let file = |n| folder.join(format!("share-{n}.txt"));
    let key: String = (3..35).map(|n| format!("{n:02x}")).collect();
    for two in [[1, 2], [3, 1]] {
        assert_eq!(joined_by_python(&two.map(file)), key);
    }
}

#[test]
fn a_key_set_may_have_a_divided_recipient_from_its_beginning() {
    let sandbox = Sandbox::new("shares");
    let keys = sandbox.join("keys");
    let split = ["--split", "breakglass", "--shares", "2", "--threshold", "2"];
    let run = keygen(&keys, &["ops"]).args(split).arg("--json").succeed();
    let made = run.json();
    assert_eq!(made["shares"].as_array().unwrap().len(), 2);
    let writer = std::fs::read_to_string(keys.join("writer.key")).unwrap();
    assert!(writer.contains("\"breakglass\"") && writer.contains("\"ops\""));
    let run = join(&sandbox, &[share(&keys, 2), share(&keys, 1)])
        .arg("--json")
        .succeed();
    assert_eq!(run.json()["key_set"], made["key_set"]);
    assert_eq!(run.json()["shares"], serde_json::json!([2, 1]));
}

#[test]
fn shares_come_from_standard_input_as_people_type_them() {
    let sandbox = Sandbox::new("shares");
    let keys = divide(&sandbox, "shares");
    let mut all = "From the safe in Bern.\n".to_owned();
    for n in [2, 3] {
        all.push_str(&text(&keys, n));
    }
    let typed: String = all
        .lines()
        .map(|line| match line.split_once("    ") {
            Some((name, rest)) if name.starts_with("line") => {
                format!("  {name} {}\r\n", rest.to_uppercase().replace(' ', "  "))
            }
            _ => format!("{line}\r\n"),
        })
        .collect();
    // The third is in a file.
    let files = [share(&keys, 5), PathBuf::from("-")];
    join(&sandbox, &files).stdin(typed).succeed();
    std::fs::remove_file(sandbox.join("joined.key")).unwrap();
    let run = join(&sandbox, &[]).stdin(all).run();
    fails(&sandbox, &run, "2 of the 3 shares");
    let run = join(&sandbox, &[]).stdin("").run();
    fails(&sandbox, &run, "standard input holds no share");
}

#[test]
fn a_wrong_share_is_named() {
    let sandbox = Sandbox::new("shares");
    let keys = divide(&sandbox, "shares");
    let others = divide(&sandbox, "others");
    let with = |third: PathBuf| join(&sandbox, &[share(&keys, 1), share(&keys, 2), third]).run();
    fails(&sandbox, &with(share(&keys, 2)), "share 2 is given twice");
    fails(
        &sandbox,
        &with(share(&others, 3)),
        "the shares are of two sets",
    );
    let right = text(&keys, 3);
    // Every digit of every line is under a check, and so is each word of the head.
    let is_named = |changed: String, part: &str| {
        assert_ne!(changed, right);
        let run = with(typed(&sandbox, &changed));
        fails(&sandbox, &run, part);
    };
    for name in ["line 1", "line 4"] {
        let at = right.find(name).unwrap() + 15;
        let digit = if &right[at..=at] == "0" { "1" } else { "0" };
        let changed = format!("{}{digit}{}", &right[..at], &right[at + 1..]);
        is_named(
            changed,
            &format!("its line \"{name}\" is missing, or has a mistake"),
        );
        let line = right.lines().find(|line| line.starts_with(name)).unwrap();
        is_named(right.replace(line, ""), &format!("its line \"{name}\""));
    }
    let apart = "the lines of a share do not belong together";
    is_named(right.replace("3 of 5", "4 of 5"), apart);
    is_named(right.replace("any 3", "any 2"), apart);
    is_named(right.replace("breakglass", "breakglas"), apart);
    is_named(
        right.replace("share      3", "share      9"),
        "its line \"share\"",
    );
    let at = right.find("check").unwrap();
    is_named(right[..at].to_owned(), "its line \"check\"");
    // One that others may read is not taken: three of them are the key.
    let open = typed(&sandbox, &right);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails(&sandbox, &with(open), "0644");
    fails(
        &sandbox,
        &with(sandbox.join("nowhere")),
        "could not read share",
    );
    fails(
        &sandbox,
        &with(keys.join("breakglass.pub")),
        "holds no share",
    );
}

#[test]
fn numbers_of_shares_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new("shares");
    let keys = sandbox.join("keys");
    for (shares, threshold) in [("1", "1"), ("3", "1"), ("2", "3"), ("17", "2"), ("0", "0")] {
        let numbers = ["--shares", shares, "--threshold", threshold];
        let run = keygen(&keys, &["ops"])
            .words("--split glass")
            .args(numbers)
            .run();
        refused(&run, 2, "shares is not possible");
        assert!(!keys.join("writer.key").exists());
    }
    let run = keygen(&keys, &["ops"]).words("--split glass").run();
    refused(&run, 2, "--shares");
    let twice = ["--split", "ops", "--shares", "3", "--threshold", "2"];
    refused(
        &keygen(&keys, &["ops"]).args(twice).run(),
        2,
        "two recipients have the same name",
    );
    let word = ["--split", "writer", "--shares", "3", "--threshold", "2"];
    refused(
        &keygen(&keys, &["ops"]).args(word).run(),
        2,
        "\"writer\" is the name of the file",
    );
}
