//! Who may read an encrypted repository: passphrases from files and descriptors, keys that are tried before they are handed out, and
//! strangers' recipients.

use std::path::Path;

use pitr::store::{Key, Store as _};

use crate::common::fault::{self, Fault};
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Sandbox, user};
use crate::require_strace;
use crate::s3_cycle::Bucketed;
use crate::sealed::{Stored, flipped, keygen, refused};

const PASSPHRASE: &str = "correct horse battery staple";

/// The program with the file's content behind descriptor 3.
pub fn with_descriptor(program: &Program, file: &Path) -> Program {
    let words = [
        "sh",
        "-c",
        "exec 3<\"$0\"; exec \"$@\"",
        file.to_str().unwrap(),
    ];
    program.clone().under(words)
}

impl Stored {
    /// Gives the passphrase access as recipient `name`.
    fn give_passphrase(&self, name: &str) {
        let rewrap = self
            .sealed
            .on("reader")
            .args(["repo", "rewrap", "--add-passphrase", name]);
        rewrap.env("PITR_PASSPHRASE", PASSPHRASE).succeed();
    }

    /// Configures a host that reads with the passphrase; `more` goes into its section of keys.
    fn passphrase_host(&self, host: &str, text: &str, more: &str) {
        let file = self.sealed.sandbox.file(format!("{host}.passphrase"), text);
        let encryption = format!("passphrase_file = \"{}\"\n{more}", file.display());
        self.sealed
            .configure(&self.still.cluster, host, &encryption);
    }

    /// Whether the host gets the first segment back, byte for byte.
    fn reads(&self, host: &str) {
        self.sealed.fetch(&self.still, host, 0).succeed();
        let fetched = self.still.wal("RECOVERYXLOG");
        let wal = self.still.wal(&self.still.segments[0]);
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(wal).unwrap());
        std::fs::remove_file(fetched).unwrap();
    }
}

#[test]
fn a_passphrase_comes_from_a_file_or_a_descriptor() {
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let file = sealed.sandbox.file("passphrase", format!("{PASSPHRASE}\n"));
    let rewrap = |name: &str| {
        sealed
            .on("reader")
            .args(["repo", "rewrap", "--add-passphrase", name])
    };
    let by_file = rewrap("filed").arg("--passphrase-file").arg(&file);
    by_file.succeed().expect_stdout("escrow, filed, ops");
    let by_descriptor = rewrap("described").words("--passphrase-fd 3");
    with_descriptor(&by_descriptor, &file)
        .succeed()
        .expect_stdout("described, escrow, filed, ops");
    stored.passphrase_host("filed", &format!("{PASSPHRASE}\n"), "");
    stored.reads("filed");
    sealed.configure(&still.cluster, "described", "passphrase_fd = 3");
    let to = sealed.sandbox.join("fetched");
    let fetch = sealed
        .on("described")
        .args(["wal", "fetch", &still.segments[1]]);
    let fetch = fetch.arg(&to);
    with_descriptor(&fetch, &file).succeed();
    assert!(std::fs::read(&to).unwrap() == std::fs::read(still.wal(&still.segments[1])).unwrap());
    std::fs::remove_file(&to).unwrap();
    // Each repository of the configuration asks; a descriptor can be read only once.
    with_descriptor(&sealed.on("described").words("verify --quiet"), &file).succeed();
    refused(
        &fetch.run(),
        1,
        "could not read a passphrase from descriptor 3",
    );
    let empty = sealed.sandbox.file("empty", "\n");
    refused(
        &with_descriptor(&fetch, &empty).run(),
        1,
        "the passphrase is empty",
    );
    assert!(!to.exists());
    // Both ways for the key set of another repository, too.
    let keys = sealed.sandbox.join("more");
    let made = keygen(&keys, &["ops"]).words("--passphrase safe --passphrase-file");
    made.arg(&file).succeed();
    let keys = sealed.sandbox.join("others");
    let made = keygen(&keys, &["ops"]).words("--passphrase safe --passphrase-fd 3");
    with_descriptor(&made, &file).succeed();
}

/// Keygen notices bytes that a disk swallowed, not the restore that needs them.
#[test]
fn keys_are_tried_before_they_are_handed_out() {
    require_strace!("keys_are_tried_before_they_are_handed_out");
    let sandbox = Sandbox::new("keygen");
    let keys = sandbox.join("keys");
    // The first bytes of the first file never arrive.
    let (run, fired) = fault::inject(
        &keygen(&keys, &["ops", "escrow"]),
        &Fault::pretend("write", 20).at(1),
    );
    assert!(fired >= 1, "{run}");
    assert_ne!(run.code(), 0, "{run}");
    assert_eq!(run.stdout, "");
    run.expect_stderr("do not open what they are for")
        .expect_stderr(keys.to_str().unwrap());
}

/// Puts `count` recipients into the repository that the passphrase does not open, listed before all others.
fn add_junk(stored: &Stored, count: usize) {
    let keys = stored.sealed.repository.join("keys/1");
    let strangers = stored.sealed.sandbox.join(format!("strangers-{count}"));
    let made = keygen(&strangers, &["ops"]).words("--passphrase junk");
    made.env("PITR_PASSPHRASE", "a passphrase of theirs")
        .succeed();
    let text = std::fs::read_to_string(strangers.join("writer.key")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let recipients = file["recipients"].as_array().unwrap();
    let junk = recipients
        .iter()
        .find(|r| r["recipient"] == "junk")
        .unwrap();
    let own = std::fs::read_to_string(keys.join("ops")).unwrap();
    let own: serde_json::Value = serde_json::from_str(&own).unwrap();
    for n in 0..count {
        let name = format!("0-{n}");
        let mut object = junk.as_object().unwrap().clone();
        object.insert("recipient".into(), name.clone().into());
        object.insert("key_set".into(), own["key_set"].clone());
        let key = Key::new(format!("keys/1/{name}")).unwrap();
        let bytes =
            pitr::repo::json::encode(&key, pitr::repo::keyring::RECIPIENT, &object).unwrap();
        std::fs::write(keys.join(&name), bytes).unwrap();
        user::own(&keys.join(&name));
    }
}

#[test]
fn a_strangers_recipients_keep_no_passphrase_out() {
    let stored = Stored::new();
    stored.give_passphrase("safe");
    stored.passphrase_host("any", PASSPHRASE, "");
    stored.passphrase_host("named", PASSPHRASE, "recipient = \"safe\"");
    let mac = format!("key_set = \"{}\"", stored.sealed.key("writer"));
    stored.passphrase_host("proving", PASSPHRASE, &mac);
    add_junk(&stored, 3);
    stored.reads("any");
    add_junk(&stored, 9);
    // So many are not tried; but who says whose passphrase it is, or can tell which are forged, gets in at once.
    let run = stored.sealed.fetch(&stored.still, "any", 0).run();
    refused(
        &run,
        204,
        "opens none of the recipients that were tried, 8 in all",
    );
    run.expect_stderr("recipient = \"NAME\"");
    stored.reads("named");
    stored.reads("proving");
    let doctor = stored.sealed.on("proving").words("doctor --json").run();
    let findings = doctor.json()["findings"].to_string();
    assert!(
        findings.contains("0-0") && findings.contains("forged"),
        "{doctor}"
    );
    // A wrong passphrase is reported as such, and so is a damaged object.
    stored.passphrase_host("wrong", "incorrect horse battery", "recipient = \"safe\"");
    let run = stored.sealed.fetch(&stored.still, "wrong", 0).run();
    refused(
        &run,
        204,
        "the passphrase is not that of recipient \"safe\"",
    );
    stored.passphrase_host("nobody", PASSPHRASE, "recipient = \"nobody\"");
    let run = stored.sealed.fetch(&stored.still, "nobody", 0).run();
    refused(&run, 204, "has no keys for recipient \"nobody\"");
    stored.passphrase_host("pair", PASSPHRASE, "recipient = \"ops\"");
    let run = stored.sealed.fetch(&stored.still, "pair", 0).run();
    refused(
        &run,
        204,
        "recipient \"ops\" has a key file, not a passphrase",
    );
    let safe = stored.sealed.repository.join("keys/1/safe");
    let right = std::fs::read(&safe).unwrap();
    std::fs::write(&safe, flipped(&right, right.len() / 2)).unwrap();
    for host in ["named", "proving", "any"] {
        let run = stored.sealed.fetch(&stored.still, host, 0).run();
        refused(&run, 201, "keys/1/safe");
    }
}

#[test]
fn a_wrong_passphrase_beside_a_damaged_recipient_tells_both() {
    let stored = Stored::new();
    stored.give_passphrase("safe");
    stored.passphrase_host("wrong", "incorrect horse battery", "");
    let escrow = stored.sealed.repository.join("keys/1/escrow");
    let right = std::fs::read(&escrow).unwrap();
    std::fs::write(&escrow, flipped(&right, right.len() / 2)).unwrap();
    let run = stored.sealed.fetch(&stored.still, "wrong", 0).run();
    refused(&run, 201, "keys/1/escrow");
    run.expect_stderr("the passphrase is not that of any recipient");
}

#[test]
fn x21_a_repository_that_lost_the_keys_of_all_recipients_gets_them_back() {
    let stored = Stored::new();
    let (still, sealed) = (&stored.still, &stored.sealed);
    let of = |name: &str| sealed.repository.join("keys/1").join(name);
    let init = |host: &str| {
        let init = sealed.on(host).words("init --key-set");
        init.arg(sealed.key("writer")).succeed()
    };
    // Somebody withdrew one of two: that one does not come back.
    std::fs::remove_file(of("escrow")).unwrap();
    init("writer").expect_stdout("Nothing had to be done");
    assert!(!of("escrow").exists());
    std::fs::remove_file(of("ops")).unwrap();
    let lost = sealed.fetch(still, "reader", 0).run();
    refused(&lost, 204, "pitr init --key-set FILE");
    let doctor = sealed.on("writer").arg("doctor").run();
    doctor.expect_stdout("pitr init --key-set FILE");
    let source = sealed.sandbox.dir("source");
    std::fs::write(source.join("a"), "content").unwrap();
    let files = format!(
        "key_set = \"{}\"\n[files.up]\nsource = \"{}\"",
        sealed.key("writer"),
        source.display()
    );
    sealed.configure(&still.cluster, "backer", &files);
    user::own_all(sealed.sandbox.path());
    let backup = sealed.on("backer").words("files backup up").run();
    backup
        .success()
        .expect_stderr("nobody can open what is stored in repository \"local\"");
    init("writer").expect_stderr("has those of writer.key again: escrow, ops");
    stored.reads("reader");
    // A host that reads, too, and something that is no recipient.
    let both = format!(
        "key_set = \"{}\"\nkey_file = \"{}\"",
        sealed.key("writer"),
        sealed.key("ops")
    );
    sealed.configure(&still.cluster, "both", &both);
    std::fs::remove_file(of("escrow")).unwrap();
    std::fs::write(of("ops"), "junk").unwrap();
    init("both").expect_stderr("escrow, ops");
    stored.reads("reader");
    init("both").expect_stdout("Nothing had to be done");
}

/// Without a lock a version stays as well where the bucket keeps versions.
#[test]
fn s33_a_bucket_that_keeps_versions_says_what_a_withdrawal_leaves() {
    let cluster = Cluster::builder(17).without_fsync().create();
    let keys = Sandbox::new("keys");
    let names = ["ops", "escrow", "guest", "former", "other"];
    keygen(&keys.join("set"), &names).succeed();
    let file = |name: &str| keys.join("set").join(name).display().to_string();
    let more = format!(
        "[repositories.store.encryption]\nkey_set = \"{}\"\nkey_file = \"{}\"\n",
        file("writer.key"),
        file("ops.key")
    );
    let site = Bucketed::new(&cluster, Peer::own(), &more);
    let server = site.peer.server();
    let proof = file("escrow.key");
    let withdraw = |name: &str| {
        let rewrap = site.pitr().words("repo rewrap --all --confirm");
        let rewrap = rewrap.args(["--withdraw", name, "--proof", &proof]);
        rewrap.run().success()
    };
    let run = withdraw("former");
    assert!(!run.stderr.contains("keeps a version"), "{run}");
    server.behave(|m| m.versions = true);
    let run = withdraw("guest")
        .expect_stderr("the store keeps a version of what recipient \"guest\" opens")
        .expect_stderr("the key still opens it. That version stays until a rule");
    assert!(!run.stderr.contains("Nobody can delete"), "{run}");
    // A role that may not list versions does not know.
    let denied = crate::common::s3::Fault::Error(403, "AccessDenied");
    server.fault("versions", u64::MAX, denied);
    withdraw("other").expect_stderr("the store may keep a version of what recipient \"other\"");
}

/// A lock keeps the version and its end; the name leads nowhere any more. A hold keeps that, too, and no other repository waits for it.
#[test]
fn s33_a_bucket_that_locks_lets_recipients_be_withdrawn() {
    let cluster = Cluster::builder(17).without_fsync().create();
    let keys = Sandbox::new("keys");
    keygen(&keys.join("set"), &["ops", "escrow"]).succeed();
    let guest = keygen(&keys.join("new"), &["guest"]).arg("--pair-only");
    guest.succeed();
    let file = |name: &str| keys.join(name).display().to_string();
    let local = keys.dir("local");
    let encryption = |name: &str| {
        format!(
            "[repositories.{name}.encryption]\nkey_set = \"{}\"\nkey_file = \"{}\"\n",
            file("set/writer.key"),
            file("set/ops.key")
        )
    };
    let more = format!(
        "object_lock = {{ mode = \"compliance\", period = \"30d\" }}\n{}[repositories.local]\nurl = \"file://{}\"\n{}",
        encryption("store"),
        local.display(),
        encryption("local")
    );
    let site = Bucketed::new(&cluster, Peer::own(), &more);
    let server = site.peer.server();
    server.behave(|m| (m.versions, m.object_lock) = (true, Some(true)));
    let store = site.store();
    let escrow = server.key("keys/1/escrow");
    let held = Key::new("keys/1/escrow").unwrap();
    let rewrap = || {
        let (public, proof) = (file("new/guest.pub"), file("new/guest.key"));
        let change = ["--add", &public, "--withdraw", "escrow", "--proof", &proof];
        let rewrap = site.pitr().words("repo rewrap --all --confirm");
        rewrap.args(change).run()
    };
    let is_local = || local.join("keys/1/escrow").exists();
    assert!(is_local() && store.hold(&held, true).unwrap());
    rewrap()
        .expect_code(10)
        .expect_stderr("legal hold")
        .expect_stdout("Repository store, data: gave access to guest; not done: withdraws escrow");
    assert!(server.keys().contains(&escrow) && !is_local());
    store.hold(&held, false).unwrap();
    // A hold that the object does not show is asked for.
    server.behave(|m| m.hides_holds = true);
    assert!(store.hold(&held, true).is_err());
    rewrap().expect_code(7).expect_stderr("legal hold");
    assert!(server.keys().contains(&escrow));
    assert!(store.hold(&held, false).is_ok());
    let run = rewrap().success();
    assert!(!server.keys().contains(&escrow), "{run}");
    run.expect_stderr("the store keeps a version of what recipient \"escrow\" opens")
        .expect_stderr("Nobody can delete that version before")
        .expect_stderr("That version stays until a rule for noncurrent versions")
        .expect_stderr("pitr repo rotate");
    let readers = site.pitr().words("doctor").run();
    assert!(readers.stdout.contains("guest, ops"), "{readers}");
}
