//! Keys that AWS KMS unwraps by itself: on moto's, and on a KMS that throttles, denies, hangs or is away.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::moto::Moto;
use crate::common::{Program, Run, Sandbox};
use crate::sealed::{Stored, keygen, refused};

/// The secret of the credentials, which no message may show.
const SECRET: &str = "wJalrXUtnFEMI-a-secret-of-the-test";

/// The environment of a host whose KMS is at this address.
fn environment(sandbox: &Sandbox, endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL_KMS", endpoint.to_owned()),
        ("AWS_REGION", "eu-central-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIATEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ("HOME", sandbox.path().display().to_string()),
    ]
}

fn with(program: Program, env: &[(&'static str, String)]) -> Program {
    let add = |program: Program, (name, value): &(&'static str, String)| program.env(name, value);
    env.iter().fold(program, add)
}

impl Stored {
    fn kms_host(&self, name: &str, key: &str, wrapped: &Path) {
        let encryption = format!(
            "kms.key_id = \"{key}\"\nkms.wrapped_file = \"{}\"",
            wrapped.display()
        );
        self.sealed
            .configure(&self.still.cluster, name, &encryption);
    }

    fn fetched_by_kms(&self, host: &str, env: &[(&'static str, String)]) -> Run {
        let run = with(self.sealed.fetch(&self.still, host, 0), env).run();
        assert!(!format!("{run}").contains(SECRET), "{run}");
        if run.is_success() {
            self.still.check_first();
        }
        run
    }

    /// Wraps the key of a new recipient by a key of the KMS, and gives it access.
    fn wrapped_by_kms(&self, key: &str, env: &[(&'static str, String)]) -> PathBuf {
        let keys = self.sealed.sandbox.join("kms-keys");
        let made = keygen(&keys, &[]).args(["--pair-only", "--wrapped", "cloud", "--kms", key]);
        let made = with(made, env).succeed();
        made.expect_stdout(&format!("kms.key_id = \"{key}\""));
        let add = self.sealed.on("reader").words("repo rewrap --add");
        add.arg(keys.join("cloud.pub")).succeed();
        assert!(!keys.join("cloud.key").exists());
        keys.join("cloud.wrapped")
    }
}

#[test]
fn u86_a_key_that_the_kms_wrapped_opens_the_repository_and_one_of_another_purpose_does_not() {
    let stored = Stored::new();
    let sandbox = &stored.sealed.sandbox;
    let moto = Moto::start(sandbox);
    let env = environment(sandbox, &moto.endpoint);
    let aws = sandbox.file("aws", format!("#!/bin/sh\nexec {} \"$@\"\n", moto.aws));
    std::fs::set_permissions(&aws, std::fs::Permissions::from_mode(0o755)).unwrap();
    let kms = |arguments: &[&str]| {
        let way = ["--region", "eu-central-1", "--endpoint-url", &moto.endpoint];
        let run = with(Program::new(&aws).args(way).arg("kms"), &env);
        run.args(arguments).succeed().stdout.trim().to_owned()
    };
    let query = ["--query", "KeyMetadata.Arn", "--output", "text"];
    let arn = kms(&[&["create-key"], &query[..]].concat());
    let target = ["--alias-name", "alias/pitr", "--target-key-id", &arn];
    kms(&[&["create-alias"], &target[..]].concat());
    let wrapped = stored.wrapped_by_kms("alias/pitr", &env);
    stored.kms_host("cloud", "alias/pitr", &wrapped);
    stored.fetched_by_kms("cloud", &env).success();
    // The region of an ARN is that of the KMS.
    stored.kms_host("arn", &arn, &wrapped);
    let mut without_region = env.clone();
    without_region.retain(|(name, _)| *name != "AWS_REGION");
    stored.fetched_by_kms("arn", &without_region).success();
    let doctor = with(stored.sealed.on("cloud").words("doctor --json"), &env).run();
    let findings = doctor.json()["findings"].to_string();
    assert!(
        findings.contains("kms.key_id") && findings.contains("\"cloud\""),
        "{doctor}"
    );
    // Archiving asks no KMS.
    let both = format!(
        "key_set = \"{}\"\nkms = {{ key_id = \"alias/pitr\", wrapped_file = \"{}\" }}",
        stored.sealed.key("writer"),
        wrapped.display()
    );
    stored
        .sealed
        .configure(&stored.still.cluster, "both", &both);
    let push = stored.sealed.push(&stored.still, "both", 1);
    let away = environment(sandbox, "http://127.0.0.1:9");
    with(push, &away).succeed();
    // The same key file, encrypted without the purpose, or changed, or under a key that is not there.
    let plain = sandbox.file("plain", std::fs::read(stored.sealed.key("ops")).unwrap());
    let source = format!("fileb://{}", plain.display());
    let encrypt = ["encrypt", "--key-id", "alias/pitr", "--plaintext", &source];
    let query = ["--query", "CiphertextBlob", "--output", "text"];
    let text = kms(&[&encrypt[..], &query].concat());
    let foreign = sandbox.join("foreign");
    let decode = format!("echo '{text}' | base64 -d >{}", foreign.display());
    let decoded = std::process::Command::new("sh")
        .args(["-c", &decode])
        .status();
    assert!(decoded.unwrap().success());
    stored.kms_host("foreign", "alias/pitr", &foreign);
    refused(
        &stored.fetched_by_kms("foreign", &env),
        204,
        "InvalidCiphertextException",
    );
    stored.kms_host("other", "alias/other", &wrapped);
    refused(
        &stored.fetched_by_kms("other", &env),
        204,
        "NotFoundException",
    );
    // Who may exchange the file chooses the key.
    std::fs::set_permissions(&wrapped, std::fs::Permissions::from_mode(0o666)).unwrap();
    let run = stored.fetched_by_kms("cloud", &env);
    refused(&run, 204, "may be changed by other users");
    std::fs::set_permissions(&wrapped, std::fs::Permissions::from_mode(0o600)).unwrap();
    drop(moto);
    let since = Instant::now();
    let run = stored.fetched_by_kms("cloud", &env);
    refused(&run, 204, "AWS KMS does nothing with the key");
    assert!(since.elapsed() < Duration::from_secs(20));
}

/// A KMS that gives one answer after another, the last one again and again. It counts the requests.
struct Answers {
    endpoint: String,
    asked: Arc<AtomicUsize>,
}

impl Answers {
    /// Each answer is a status and a body; a status of 0 is no answer at all.
    fn give(answers: Vec<(u16, String)>) -> Answers {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                        break;
                    }
                    let lower = line.to_ascii_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                let _ = reader.read_exact(&mut body);
                let n = count.fetch_add(1, Ordering::Relaxed);
                let (status, body) = &answers[n.min(answers.len() - 1)];
                let mut stream = reader.into_inner();
                if *status == 0 {
                    held.push(stream);
                    continue;
                }
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Answers { endpoint, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn failure(code: &str, message: &str) -> (u16, String) {
    (
        400,
        format!("{{\"__type\": \"{code}\", \"message\": \"{message}\"}}"),
    )
}

/// The answer that decrypts to this key file.
fn decrypted(sandbox: &Sandbox, key: &str) -> (u16, String) {
    let out = sandbox.join("base64");
    let script = format!("base64 -w0 <{key} >{}", out.display());
    let status = std::process::Command::new("sh")
        .args(["-c", &script])
        .status();
    assert!(status.unwrap().success());
    let text = std::fs::read_to_string(out).unwrap();
    (
        200,
        format!("{{\"KeyId\": \"arn:aws:kms:eu-central-1:1:key/a\", \"Plaintext\": \"{text}\"}}"),
    )
}

#[test]
fn u87_a_kms_that_throttles_denies_hangs_or_gives_something_else_opens_nothing() {
    let stored = Stored::new();
    let sandbox = &stored.sealed.sandbox;
    let wrapped = sandbox.file("ops.wrapped", "what a KMS would encrypt");
    stored.kms_host("cloud", "alias/pitr", &wrapped);
    let fetched = |answers: Vec<(u16, String)>| {
        let kms = Answers::give(answers);
        let env = environment(sandbox, &kms.endpoint);
        (stored.fetched_by_kms("cloud", &env), kms.asked())
    };
    let throttled = || failure("ThrottlingException", "Rate exceeded");
    let good = decrypted(sandbox, &stored.sealed.key("ops"));
    // It is asked again, and opens.
    let (run, asked) = fetched(vec![throttled(), throttled(), good.clone()]);
    run.success();
    assert_eq!(asked, 3);
    let (run, asked) = fetched(vec![throttled()]);
    refused(&run, 204, "ThrottlingException: Rate exceeded");
    assert_eq!(asked, 3);
    // A KMS may repeat what it was sent.
    let denied = format!("no kms:Decrypt for {SECRET}");
    let (run, asked) = fetched(vec![failure("AccessDeniedException", &denied)]);
    refused(&run, 204, "AccessDeniedException: no kms:Decrypt");
    refused(&run, 204, "pitr=recipient-key");
    assert_eq!(asked, 1);
    let (run, _) = fetched(vec![failure("IncorrectKeyException", "")]);
    refused(&run, 204, "IncorrectKeyException");
    let (run, _) = fetched(vec![(200, "{}".to_owned())]);
    refused(&run, 204, "without what it was asked for");
    let writer = decrypted(sandbox, &stored.sealed.key("writer"));
    let (run, _) = fetched(vec![writer]);
    refused(&run, 204, "is not the key file of a recipient");
    let since = Instant::now();
    let (run, _) = fetched(vec![(0, String::new())]);
    refused(&run, 204, "has not answered within 10 s");
    assert!(since.elapsed() < Duration::from_secs(25));
    // A KMS that is reached over a network needs TLS.
    let env = environment(sandbox, "http://kms.example");
    let run = stored.fetched_by_kms("cloud", &env);
    refused(&run, 204, "plain HTTP to another machine");
}

#[test]
fn a_wrapping_by_the_kms_that_fails_leaves_no_key() {
    let sandbox = Sandbox::new("kms-wrap");
    let keys = sandbox.join("keys");
    let kms = Answers::give(vec![failure("NotFoundException", "Alias is not found")]);
    let env = environment(&sandbox, &kms.endpoint);
    let made = keygen(&keys, &["ops"]).words("--wrapped cloud --kms alias/none");
    let run = with(made, &env).exits(1);
    run.expect_stderr("NotFoundException");
    assert!(!keys.exists());
    let both = keygen(&keys, &["ops"]).words("--wrapped cloud --kms a -- /bin/cat");
    both.exits(2);
    keygen(&keys, &["ops"]).words("--wrapped cloud").exits(2);
}
