//! The store on S3 against servers that are no good: what no rule knows, lists that are no lists, answers without end.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pitr::error::Code;
use pitr::store::s3::S3Store;
use pitr::store::{Published, Store, get, put};

use crate::common::s3::{BUCKET, Fault, KEY, Place, SECRET, key, large};
use crate::common::{pitr, wait_until};

#[test]
fn s01_what_no_rule_knows_may_pass() {
    let place = Place::new();
    let store = place.store();
    for (n, fault) in [
        Fault::Stranger(520),
        Fault::Stranger(530),
        Fault::Error(408, ""),
        Fault::ErrorIn200("ConditionalRequestConflict"),
        Fault::Says(200, "<ListBuck"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = key(&format!("x{n}"));
        let fired = place.server.fault("PUT", 1, fault.clone());
        assert_eq!(put(&store, &name, b"one").unwrap(), Published::Created);
        let listed = place.server.fault("list-type=2", 1, fault.clone());
        assert_eq!(store.list("").unwrap().len(), n + 1);
        assert_eq!((fired.times(), listed.times()), (1, 1), "{fault:?}");
    }
    // An error that will not pass is the archive's trouble all the same, about which recovery waits.
    for fault in [
        Fault::Stranger(302),
        Fault::Stranger(501),
        Fault::Error(400, "InvalidArgument"),
    ] {
        let fired = place.server.fault("x0?", 1, fault.clone());
        let error = get(&store, &key("x0"), 10).unwrap_err();
        assert_eq!(
            (error.code(), fired.times()),
            (Code::Unreachable, 1),
            "{fault:?}: {error}"
        );
    }
}

#[test]
fn s01_what_one_request_is_told_all_heed() {
    const SLOW_DOWNS: u64 = 5;
    let place = Place::new();
    // With other settings, and so for itself.
    let (store, apart) = (place.store(), place.open(|s| s.retry_budget *= 2));
    let slow = Fault::Error(503, "SlowDown");
    let slow = place.server.fault("/told?", SLOW_DOWNS, slow);
    let is_over = AtomicBool::new(false);
    let fill = |store: &S3Store, name: String| {
        for n in 0.. {
            if is_over.load(Ordering::SeqCst) {
                return;
            }
            let key = key(&format!("{name}-{n}"));
            assert_eq!(put(store, &key, b"one").unwrap(), Published::Created);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    std::thread::scope(|scope| {
        let told = scope.spawn(|| put(&store, &key("told"), b"one"));
        wait_until("it is told", || slow.times() > 0);
        for n in 0..5 {
            scope.spawn({
                let (fill, store) = (&fill, &store);
                move || fill(store, format!("same/{n}"))
            });
            scope.spawn({
                let (fill, apart) = (&fill, &apart);
                move || fill(apart, format!("apart/{n}"))
            });
        }
        let told = told.join();
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(told.unwrap().unwrap(), Published::Created);
    });
    assert_eq!(slow.times(), SLOW_DOWNS);
    let log = place.server.log();
    let asked = |name: &str| log.iter().filter(|l| l.contains(name)).count();
    let (same, apart) = (asked("/same/"), asked("/apart/"));
    assert!(same * 2 < apart, "{same} requests against {apart}");
}

#[test]
fn s06_a_condition_that_was_not_set_is_no_conflict() {
    let place = Place::new();
    let store = place.store();
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    let refused = Fault::Error(412, "PreconditionFailed");
    let fired = place.server.fault("GET", 2, refused.clone());
    let error = get(&store, &key("x"), 10).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    let error = store.list("").unwrap_err();
    assert_eq!(
        (error.code(), fired.times()),
        (Code::Unreachable, 2),
        "{error}"
    );
    let fired = place.server.fault("POST", 1, refused);
    let mut object = store.create(&key("packs/x")).unwrap();
    let error = object.write_all(&large()).unwrap_err();
    assert!(error.to_string().contains("412"), "{error}");
    assert_eq!(fired.times(), 1);
}

#[test]
fn s02_a_list_that_does_not_say_that_it_is_all_is_none() {
    let place = Place::new();
    let store = place.store();
    for name in ["x", "y", "z"] {
        put(&store, &key(name), b"").unwrap();
    }
    for page in [
        "<ListBucketResult/>",
        "<ListBucketResult></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a/b/x</Key></Contents></ListBucketResult>",
        // As a proxy cuts it: S3 says first that it does not go on.
        "<ListBucketResult><Prefix>a/b/</Prefix><IsTruncated>false</IsTruncated><Contents><Key>a/b/x</Key></Contents><Cont",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Prefix>c/</Prefix><IsTruncated>false</IsTruncated></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>c/x</Key></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Size>1</Size></Contents></ListBucketResult>",
    ] {
        let once = place.server.fault("list-type=2", 1, Fault::Says(200, page));
        assert_eq!(store.list("").unwrap().len(), 3, "{page}");
        assert_eq!(once.times(), 1, "{page}");
        let always = place.server.fault("list-type=2", 2, Fault::Says(200, page));
        let error = place.once().list("").unwrap_err();
        assert_eq!(error.code(), Code::Unreachable, "{page}: {error}");
        let first = place.once().first_key();
        assert!(first.is_err(), "{page}: {first:?}");
        assert_eq!(always.times(), 2, "{page}");
    }
}

#[test]
fn a_list_without_end_is_an_error() {
    let place = Place::new();
    let store = place.once();
    let check = |how: &str| {
        let error = store.list("").unwrap_err();
        assert_eq!(error.code(), Code::Unreachable, "{how}: {error}");
        assert!(error.to_string().contains(how), "{error}");
        assert!(store.irregular().is_err(), "{how}");
    };
    place.server.behave(|m| m.repeats = true);
    check("shows nothing");
    put(&store, &key("x"), b"").unwrap();
    check("goes back");
    place.server.behave(|m| m.repeats = false);
    assert_eq!(store.list("").unwrap().len(), 1);
}

#[test]
fn an_answer_without_end_is_not_kept() {
    let place = Place::new();
    let store = place.once();
    put(&store, &key("x"), b"one").unwrap();
    for status in [503, 200, 403] {
        let fired = place.server.fault("/bucket", 3, Fault::Endless(status));
        let errors = [
            store.list("").unwrap_err(),
            get(&store, &key("x"), 10).unwrap_err(),
            put(&store, &key("y"), b"one").unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code(), Code::Unreachable, "{status}: {error}");
        }
        assert_eq!(fired.times(), 3);
    }
    // Eight for each, and what stands between the two: it is far more than anybody reads.
    let sent = place.server.endless_bytes() >> 20;
    assert!(sent < 9 * 40, "{sent} MiB");
}

#[test]
fn an_upload_that_lost_a_part_is_never_published() {
    let place = Place::new();
    let store = place.store();
    // The begin of the upload; its first part, whose failure the second finds; the second, which the completion finds.
    for (n, skip, line) in [
        (0, 0, "?uploads"),
        (1, 0, "partNumber"),
        (2, 1, "partNumber"),
    ] {
        let name = format!("packs/{n}");
        let fired = place
            .server
            .fault_after(skip, line, 1, Fault::Error(403, "AccessDenied"));
        let mut object = store.create(&key(&name)).unwrap();
        // Whoever passes over errors, as a writer does that is dropped.
        let failed = large()
            .chunks(3 << 20)
            .chain(large().chunks(3 << 20))
            .filter(|piece| object.write_all(piece).is_err())
            .count();
        let error = object.publish().unwrap_err();
        assert_eq!((error.code(), fired.times()), (Code::Denied, 1), "{error}");
        assert!(failed > 0 || n == 2, "{n}: {failed}");
        assert!(store.head(&key(&name)).unwrap().is_none());
        assert_eq!(place.server.open_uploads(), 0, "{n}");
    }
}

#[test]
fn s09_credentials_that_were_replaced_are_read_again() {
    let place = Place::new();
    let file = place.server.credentials(&place.sandbox, "AKIDWITHDRAWN");
    let store = place.open(|s| s.credentials_file = Some(file.clone()));
    for _ in 0..2 {
        place.server.clear_log();
        let error = put(&store, &key("x"), b"one").unwrap_err();
        assert_eq!(error.code(), Code::Denied, "{error}");
        assert_eq!(place.server.log().len(), 2, "{:?}", place.server.log());
    }
    let valid = place.server.credentials(&place.sandbox, KEY);
    std::fs::copy(valid, file).unwrap();
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    place.server.clear_log();
    assert_eq!(get(&store, &key("x"), 10).unwrap().unwrap(), b"one");
    assert_eq!(place.server.log().len(), 1, "they are kept");
}

#[test]
fn s09_a_session_is_renewed_before_it_ends() {
    let place = Place::new();
    let ends = place.sandbox.join("ends");
    // A client keeps a session until five to ten seconds before its end.
    let program = place.sandbox.file(
        "session",
        format!(
            r#"end=$(($(date +%s) + 12))
            echo $end >> {}
            printf '{{"Version": 1, "AccessKeyId": "{KEY}", "SecretAccessKey": "{SECRET}",'
            printf '"SessionToken": "until-%s", "Expiration": "%s"}}' $end "$(date -u -d @$end +%Y-%m-%dT%H:%M:%SZ)"
            "#,
            ends.display()
        ),
    );
    let line = format!("credential_process = /bin/sh {}", program.display());
    let file = place
        .sandbox
        .file("profile", format!("[default]\n{line}\n"));
    // This process runs the program: it must be its own.
    let own = rustix::process::geteuid().as_raw();
    std::os::unix::fs::chown(&file, Some(own), None).unwrap();
    let store = place.open(|s| s.credentials_file = Some(file));
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    wait_until("sessions are renewed and the first is over", || {
        let now = chrono::Utc::now().timestamp();
        assert_eq!(get(&store, &key("x"), 10).unwrap().unwrap(), b"one");
        let text = std::fs::read_to_string(&ends).unwrap();
        let ends: Vec<i64> = text.lines().map(|end| end.parse().unwrap()).collect();
        // Each refusal brings one about, which may happen where a machine stands still.
        let early = ends.len() as u64 - 1 - place.server.ended_tokens();
        early >= 2 && now >= ends[0]
    });
}

#[test]
fn a_completion_has_more_time_than_other_requests() {
    let place = Place::new();
    let attempt = Duration::from_secs(10);
    let store = place.open(|s| s.stall_timeout = attempt);
    let slow = place
        .server
        .fault("?uploadId", u64::MAX, Fault::Slow(attempt + attempt / 2));
    let mut object = store.create(&key("packs/x")).unwrap();
    object.write_all(&large()).unwrap();
    assert_eq!(object.publish().unwrap(), Published::Created);
    assert_eq!(slow.times(), 1, "{:?}", place.server.log());
}

#[test]
fn an_upload_whose_completion_got_no_answer_is_not_taken_back() {
    let place = Place::new();
    let store = place.once();
    let silent = place.server.fault("?uploadId", 1, Fault::Reset);
    let mut object = store.create(&key("packs/x")).unwrap();
    object.write_all(&large()).unwrap();
    let error = object.publish().unwrap_err();
    assert_eq!(
        (error.code(), silent.times()),
        (Code::Unreachable, 1),
        "{error}"
    );
    assert_eq!(place.server.open_uploads(), 1, "the store may be at it");
    let found = store.irregular().unwrap();
    assert!(
        matches!(&found[..], [left] if left.is_unfinished),
        "{found:?}"
    );
    // An upload that the store has refused is taken back.
    let refused = place
        .server
        .fault("?uploadId", 1, Fault::Error(403, "AccessDenied"));
    let mut object = store.create(&key("packs/y")).unwrap();
    object.write_all(&large()).unwrap();
    let error = object.publish().unwrap_err();
    assert_eq!(
        (error.code(), refused.times()),
        (Code::Denied, 1),
        "{error}"
    );
    assert_eq!(place.server.open_uploads(), 1);
}

#[test]
fn an_endpoint_of_the_environment_is_looked_at_like_a_configured_one() {
    let place = Place::new();
    let sandbox = &place.sandbox;
    let config = sandbox.file(
        "pitr.toml",
        format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.store]\nurl = \"s3://{BUCKET}/pg\"\nregion = \"us-east-1\"\n\
             path_style = true\ncredentials_file = \"{}\"\n",
            sandbox.join("data").display(),
            place.server.credentials(sandbox, KEY).display()
        ),
    );
    let profile = |name: &str, endpoint: &str| {
        sandbox.file(
            name,
            format!(
                "[default]\nservices = ours\n[services ours]\ns3 =\n  endpoint_url = {endpoint}\n"
            ),
        )
    };
    let check = || pitr().arg("--config").arg(&config).words("repo check");
    // An address that nobody has (RFC 5737): nothing is sent to it.
    let elsewhere = "http://192.0.2.1:9000";
    for run in [
        check().env("AWS_ENDPOINT_URL", elsewhere),
        check().env("AWS_ENDPOINT_URL_S3", elsewhere),
        check().env("AWS_CONFIG_FILE", profile("elsewhere", elsewhere)),
    ] {
        let run = run.exits(3);
        run.expect_stderr("plain HTTP to another machine");
    }
    let here = place.server.endpoint();
    let of_all = check().env("AWS_ENDPOINT_URL", elsewhere);
    for (n, run) in [
        check().env("AWS_ENDPOINT_URL", &here),
        of_all.env("AWS_ENDPOINT_URL_S3", &here),
        check().env("AWS_CONFIG_FILE", profile("here", &here)),
    ]
    .into_iter()
    .enumerate()
    {
        place.server.clear_log();
        let run = run.run();
        assert!(!place.server.log().is_empty(), "{n}: {run}");
    }
}
