//! Keys that a command prints: wrapped by openssl and opened by it, and every way in which such a command can fail.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Instant;

use crate::common::{Program, Run, Sandbox, paths_below, user, wait_until};
use crate::sealed::{Stored, keygen, refused};

/// The words of openssl with a key in a file, as TOML and command lines have them.
fn openssl(sandbox: &Sandbox, way: &str) -> Vec<String> {
    let secret = sandbox.join("wrapping");
    if !secret.exists() {
        sandbox.file("wrapping", "a key that a KMS would hold");
    }
    let pass = format!("file:{}", secret.display());
    let words = [
        "/usr/bin/openssl",
        "enc",
        way,
        "-aes-256-cbc",
        "-pbkdf2",
        "-pass",
    ];
    let words = words.into_iter().map(str::to_owned);
    words.chain([pass]).collect()
}

fn toml(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("[{}]", words.join(", "))
}

impl Stored {
    /// Makes the recipient `kms`, whose key exists wrapped alone, and gives it access.
    fn wrap_key(&self) -> PathBuf {
        let keys = self.sealed.sandbox.join("wrapped-keys");
        let wrap = openssl(&self.sealed.sandbox, "-e");
        let made = keygen(&keys, &[]).words("--pair-only --wrapped kms --");
        made.args(&wrap)
            .succeed()
            .expect_stdout("Nothing has unwrapped");
        let mut files: Vec<String> = paths_below(&keys)
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();
        assert_eq!(files, ["kms.pub", "kms.wrapped"]);
        let add = self.sealed.on("reader").words("repo rewrap --add");
        add.arg(keys.join("kms.pub"))
            .succeed()
            .expect_stdout("escrow, kms, ops");
        keys.join("kms.wrapped")
    }

    /// Writes a command that runs this script, and the host that asks it for its key.
    fn scripted(&self, host: &str, script: &str) -> PathBuf {
        let path = self.command_file(host, script);
        let encryption = format!("key_command = [\"{}\"]", path.display());
        self.sealed
            .configure(&self.still.cluster, host, &encryption);
        path
    }

    fn command_file(&self, name: &str, script: &str) -> PathBuf {
        let file = self
            .sealed
            .sandbox
            .file(format!("{name}.sh"), format!("#!/bin/sh\n{script}\n"));
        mode(&file, 0o755);
        file
    }

    fn fetch_as(&self, host: &str) -> Run {
        let run = self.sealed.fetch(&self.still, host, 0).run();
        let target = self.still.wal("RECOVERYXLOG");
        assert_eq!(target.exists(), run.is_success(), "{run}");
        if run.is_success() {
            self.still.check_first();
        }
        run
    }

    fn doctor(&self, host: &str) -> Program {
        self.sealed.on(host).words("doctor --json")
    }
}

fn mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_key_that_exists_wrapped_alone_opens_the_repository() {
    let stored = Stored::new();
    let wrapped = stored.wrap_key();
    let mut words = openssl(&stored.sealed.sandbox, "-d");
    words.extend(["-in".to_owned(), wrapped.display().to_string()]);
    let encryption = format!("key_command = {}", toml(&words));
    stored
        .sealed
        .configure(&stored.still.cluster, "kms", &encryption);
    stored.fetch_as("kms").success();
    let doctor = stored.doctor("kms").run();
    let findings = doctor.json()["findings"].to_string();
    assert!(
        findings.contains("\"kms\"") && findings.contains("/usr/bin/openssl"),
        "{doctor}"
    );
    // It proves itself where access is withdrawn, beside another one.
    let withdraw = stored
        .sealed
        .on("kms")
        .words("repo rewrap --withdraw ops --proof");
    withdraw
        .arg(stored.sealed.key("escrow"))
        .succeed()
        .expect_stdout("escrow, kms");
    // A wrapped key that others may exchange is not read.
    mode(&wrapped, 0o666);
    let run = stored.fetch_as("kms");
    refused(&run, 204, "may be changed by other users: its mode is 0666");
}

#[test]
fn a_passphrase_comes_from_a_command() {
    let stored = Stored::new();
    let passphrase = "correct horse battery staple";
    let rewrap = stored
        .sealed
        .on("reader")
        .words("repo rewrap --add-passphrase safe");
    rewrap
        .words("--passphrase-fd 0")
        .stdin(passphrase)
        .succeed();
    let command = stored.command_file("phrase", &format!("echo '{passphrase}'"));
    let encryption = format!(
        "passphrase_command = [\"{}\"]\nrecipient = \"safe\"",
        command.display()
    );
    stored
        .sealed
        .configure(&stored.still.cluster, "phrase", &encryption);
    stored.fetch_as("phrase").success();
}

#[test]
fn a_command_that_fails_opens_nothing_and_tells_no_secret() {
    let stored = Stored::new();
    let key = stored.sealed.key("ops");
    let text = std::fs::read_to_string(&key).unwrap();
    let secret = text.split('"').find(|word| word.len() == 64).unwrap();
    let writer = stored.sealed.key("writer");
    let escrowed = text.replace(secret, &"1".repeat(64));
    for (name, script, part) in [
        (
            "fails",
            "echo 'AccessDenied by the KMS' >&2; exit 3".to_owned(),
            "failed (exit status: 3): AccessDenied by the KMS",
        ),
        (
            "tells",
            format!("cat {key} >&2; exit 1"),
            "failed (exit status: 1): ",
        ),
        (
            "traces",
            format!("cat {key}; echo '{secret}' >&2; exit 1"),
            "is not shown",
        ),
        ("silent", format!("cat {key} >&2"), "prints nothing"),
        (
            "endless",
            "exec yes".to_owned(),
            "prints more than 4096 bytes",
        ),
        (
            "other",
            format!("cat {writer}"),
            "is not the key file of a recipient",
        ),
        ("wrong", format!("echo '{escrowed}'"), "ops"),
    ] {
        stored.scripted(name, &script);
        let run = stored.fetch_as(name);
        refused(&run, 204, part);
        assert!(!format!("{run}").contains(secret), "{name}: {run}");
        let doctor = stored.doctor(name).run();
        assert_ne!(doctor.code(), 0, "{name}");
        assert!(!format!("{doctor}").contains(secret), "{name}: {doctor}");
    }
}

/// Row F23: the KMS is lost together with the primary.
#[test]
fn f23_a_key_that_cannot_be_had_does_not_stop_a_standby_that_streams() {
    let stored = Stored::new();
    stored.scripted("fails", "exit 1");
    let cluster = &stored.still.cluster;
    let signal = |name: &str| cluster.pgdata().join(name);
    std::fs::write(signal("recovery.signal"), "").unwrap();
    refused(&stored.fetch_as("fails"), 204, "failed (exit status: 1)");
    std::fs::rename(signal("recovery.signal"), signal("standby.signal")).unwrap();
    cluster.append_config("primary_conninfo", "host=127.0.0.1");
    let run = stored.fetch_as("fails").expect_code(1);
    run.expect_stderr("failed (exit status: 1)");
}

#[test]
fn a_command_that_hangs_is_killed_with_its_workers() {
    let stored = Stored::new();
    let pid = stored.sealed.sandbox.file("pid", "");
    stored.scripted(
        "hangs",
        &format!("trap '' TERM; sleep 600 & echo $! >{}; wait", pid.display()),
    );
    let since = Instant::now();
    let run = stored.fetch_as("hangs");
    refused(&run, 204, "has not ended within 10 s");
    assert!(since.elapsed().as_secs() >= 10);
    let worker: u32 = std::fs::read_to_string(&pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    wait_until("the worker ends", || pitr::process::has_ended(worker));
}

#[test]
fn a_command_that_others_may_change_or_that_is_missing_is_not_run() {
    let stored = Stored::new();
    let ran = stored.sealed.sandbox.join("ran");
    let script = format!("touch {}; cat {}", ran.display(), stored.sealed.key("ops"));
    let command = stored.scripted("host", &script);
    for open in [0o775, 0o757] {
        mode(&command, open);
        let run = stored.fetch_as("host");
        refused(&run, 204, "may be changed by other users");
    }
    mode(&command, 0o644);
    refused(&stored.fetch_as("host"), 204, "could not be run");
    mode(&command, 0o755);
    // A directory or a link on the way counts as well.
    let folder = stored.sealed.sandbox.dir("open");
    let link = folder.join("link");
    std::os::unix::fs::symlink(&command, &link).unwrap();
    user::own(&link);
    let encryption = format!("key_command = [\"{}\"]", link.display());
    stored
        .sealed
        .configure(&stored.still.cluster, "linked", &encryption);
    mode(&folder, 0o777);
    refused(
        &stored.fetch_as("linked"),
        204,
        "may be changed by other users",
    );
    assert!(!ran.exists());
    mode(&folder, 0o755);
    stored.fetch_as("linked").success();
    assert!(ran.exists());
    std::fs::remove_file(&command).unwrap();
    refused(&stored.fetch_as("host"), 204, "No such file");
}

#[test]
fn a_command_gets_no_secret_and_runs_when_something_is_opened() {
    let stored = Stored::new();
    let seen = stored.sealed.sandbox.join("seen");
    let script = format!(
        "env >>{}; pwd >>{}; cat {}",
        seen.display(),
        seen.display(),
        stored.sealed.key("ops")
    );
    let path = stored.scripted("host", &script);
    let both = format!(
        "key_set = \"{}\"\nkey_command = [\"{}\"]",
        stored.sealed.key("writer"),
        path.display()
    );
    stored
        .sealed
        .configure(&stored.still.cluster, "host", &both);
    // Archiving asks no command, on a host that has one as well.
    stored.sealed.push(&stored.still, "host", 1).succeed();
    assert!(!seen.exists());
    let fetch = stored.sealed.fetch(&stored.still, "host", 0);
    let fetch = fetch
        .env("PITR_PASSPHRASE", "planted-1")
        .env("PGPASSWORD", "planted-2");
    let fetch = fetch.env("AWS_PROFILE", "backup");
    fetch.env("BASH_ENV", "/planted-3").succeed();
    let text = std::fs::read_to_string(&seen).unwrap();
    assert!(!text.contains("planted"), "{text}");
    assert!(
        text.contains("AWS_PROFILE=backup") && text.lines().any(|line| line == "/"),
        "{text}"
    );
    // Once, however many objects are opened.
    std::fs::remove_file(&seen).unwrap();
    stored.sealed.on("host").words("verify --quiet").succeed();
    let text = std::fs::read_to_string(&seen).unwrap();
    assert_eq!(
        text.lines().filter(|line| *line == "/").count(),
        1,
        "{text}"
    );
}

#[test]
fn a_wrapping_command_that_wraps_nothing_is_refused() {
    let sandbox = Sandbox::new("wrap");
    let keys = sandbox.join("keys");
    for (command, part) in [
        (vec!["/bin/cat"], "prints the key as it is"),
        (vec!["/bin/false"], "failed (exit status: 1)"),
        (vec!["/bin/true"], "prints nothing"),
        (vec!["/nowhere/kms"], "No such file"),
        (vec!["cat"], "is not an absolute path"),
    ] {
        let made = keygen(&keys, &["ops"]).words("--wrapped kms --");
        let run = made.args(command).run();
        assert_ne!(run.code(), 0, "{run}");
        run.expect_stderr(part);
        assert!(!keys.join("writer.key").exists());
    }
    let made = keygen(&keys, &["ops"]).words("--wrapped kms --");
    made.args(openssl(&sandbox, "-e")).succeed();
    assert!(keys.join("kms.wrapped").exists() && !keys.join("kms.key").exists());
}
