//! A cluster goes through a rotation: backups, WAL and readers of both epochs.

use super::{Rotated, epoch, epochs};
use crate::common::{Cluster, expire_at_once};
use crate::sealed::{Sealed, refused};

#[test]
fn z11_incrementals_and_restores_go_on_across_a_rotation() {
    let (sealed, cluster) = Sealed::archived(17);
    let rotated = Rotated::of(&cluster, sealed);
    let sealed = &rotated.sealed;
    cluster.sql("create table ledger as select g as id, 'note ' || g as note from generate_series(1, 20000) g");
    let backup = |more: &[&str]| {
        let backup = sealed.on("operator").words("backup --json");
        backup.args(more).succeed().json()
    };
    let first = backup(&[]);
    rotated.add("auditor");
    let before = epochs(&sealed.repository);
    assert_eq!(before[1], 0);
    rotated.rotate("operator", "next").succeed();
    assert_eq!(epochs(&sealed.repository), before, "no data was touched");
    // The hosts get the file; nothing else of them changes.
    rotated.host(&cluster, "former", &sealed.key("writer"), None);
    rotated.host(&cluster, "writer", &rotated.writer("next"), None);
    rotated.host(&cluster, "operator", &rotated.writer("next"), Some("ops"));
    cluster.sql("insert into ledger select g, 'later ' || g from generate_series(20001, 21000) g");
    cluster.archive_now();
    let second = backup(&["--incremental"]);
    assert_eq!(second["kind"], "incremental", "{second}");
    let root = |backup: &serde_json::Value| {
        let id = backup["id"].as_str().unwrap();
        sealed.folder(&format!("backups/{id}/manifest"))
    };
    assert_eq!((epoch(&root(&first)), epoch(&root(&second))), (1, 2));
    let after = epochs(&sealed.repository);
    assert!(
        after[0] == before[0] && after[1] > 3,
        "{before:?} {after:?}"
    );
    cluster.sql("select pg_create_restore_point('both')");
    cluster.sql("delete from ledger");
    cluster.archive_now();
    sealed.on("reader").words("verify --quiet").succeed();
    let doctor = sealed.on("former").arg("doctor").run();
    doctor.expect_stdout("this host seals in epoch 1");
    let to = sealed.sandbox.join("copy");
    let restore = sealed.on("reader").words("restore --quiet --to");
    restore.arg(&to).words("--target-name both").succeed();
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from ledger"), "21000");
    drop(copy);
    // A recipient that the rotation left out gets no further than the first object of the new epoch.
    rotated.host(&cluster, "auditor", &sealed.key("writer"), Some("auditor"));
    let restore = sealed.on("auditor").words("restore --quiet --to");
    let run = restore.arg(sealed.sandbox.join("of-auditor")).run();
    refused(&run, 1, "no keys of epoch 2 for recipient \"auditor\"");
    // Retention needs no private half of any epoch.
    for host in ["janitor", "writer"] {
        sealed.on(host).args(expire_at_once()).succeed();
    }
    sealed.on("reader").words("verify --quiet").succeed();
}

/// The directory of `repo keygen` has the file of `key_set`: nobody is to believe that there is another pair now.
#[test]
fn a_directory_with_the_file_of_key_set_rotates_nothing_and_says_so() {
    let (rotated, _still) = Rotated::still();
    let sealed = &rotated.sealed;
    let public = |name: &str| {
        let path = sealed.keys.join(format!("{name}.pub"));
        path.display().to_string()
    };
    let rotate = |how: &str| {
        let rotate = sealed.on("operator").words("repo rotate --dir");
        let rotate = rotate.arg(&sealed.keys).arg(how);
        let rotate = rotate.args(["--add", &public("ops"), "--add", &public("escrow")]);
        rotate.args(["--proof", &sealed.key("escrow")]).run()
    };
    let run = rotate("--confirm");
    refused(&run, 8, "nothing was rotated");
    assert!(run.stderr.contains("empty directory"), "{run}");
    rotate("--dry-run")
        .expect_code(0)
        .expect_stderr("nothing was rotated");
    assert!(Rotated::recipients(&sealed.repository, 2).is_empty());
}

#[test]
fn z11_segments_of_both_epochs_are_offered_again_fetched_and_compared() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    rotated.add("leaver");
    sealed.push(&still, "writer", 0).succeed();
    rotated.rotate("operator", "next").succeed();
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    sealed.push(&still, "later", 1).succeed();
    assert_eq!(rotated.epoch_of(&still.segments[0]), 1);
    assert_eq!(rotated.epoch_of(&still.segments[1]), 2);
    // Offered again by a host of another epoch, it is the same: equality is the content's.
    for (host, n) in [("later", 0), ("writer", 1), ("operator", 1)] {
        sealed.push(&still, host, n).succeed();
    }
    assert!(!sealed.folder("conflicts").exists());
    for n in [0, 1] {
        sealed.fetch(&still, "reader", n).succeed();
        let fetched = still.wal("RECOVERYXLOG");
        let wal = still.wal(&still.segments[n]);
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(wal).unwrap());
        std::fs::remove_file(fetched).unwrap();
    }
    // Who was left out opens what was sealed before, and nothing that came after.
    rotated.host(
        &still.cluster,
        "leaver",
        &sealed.key("writer"),
        Some("leaver"),
    );
    sealed.fetch(&still, "leaver", 0).succeed();
    std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    let late = sealed.fetch(&still, "leaver", 1).run();
    refused(&late, 204, "no keys of epoch 2 for recipient \"leaver\"");
    assert!(!still.wal("RECOVERYXLOG").exists());
    // Other content under the name of either is a conflict, seen by hosts that read nothing.
    for n in [0, 1] {
        let path = still.wal(&still.segments[n]);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        for host in ["writer", "later"] {
            refused(&sealed.push(&still, host, n).run(), 20, "A120");
        }
    }
}

/// The private half of the second epoch belongs to no recipient of the first one alone, and the MAC key is the same.
#[test]
fn z11_a_passphrase_and_a_command_open_every_epoch() {
    let (rotated, still) = Rotated::still();
    let sealed = &rotated.sealed;
    let passphrase = "correct horse battery staple";
    let file = sealed.sandbox.file("passphrase", format!("{passphrase}\n"));
    let by_text = ["--add-passphrase", "safe", "--passphrase-file"];
    rotated.rewrap(&by_text).arg(&file).succeed();
    let rotate = rotated.rotate_for("operator", "next", &["ops", "escrow"], &by_text);
    rotate.arg(&file).arg("--confirm").succeed();
    assert_eq!(
        Rotated::recipients(&sealed.repository, 2),
        ["escrow", "ops", "safe"]
    );
    rotated.host(&still.cluster, "later", &rotated.writer("next"), None);
    sealed.push(&still, "later", 0).succeed();
    let by_text = format!("passphrase_file = \"{}\"", file.display());
    sealed.configure(&still.cluster, "safe", &by_text);
    let command = format!("key_command = [\"/bin/cat\", \"{}\"]", sealed.key("escrow"));
    let both = format!("key_set = \"{}\"\n{command}", rotated.writer("next"));
    sealed.configure(&still.cluster, "command", &command);
    sealed.configure(&still.cluster, "both", &both);
    for host in ["safe", "command", "both"] {
        sealed.fetch(&still, host, 0).succeed();
        std::fs::remove_file(still.wal("RECOVERYXLOG")).unwrap();
    }
    sealed.push(&still, "both", 1).succeed();
    assert_eq!(rotated.epoch_of(&still.segments[1]), 2);
}
