//! Faults of an object store that the whole program answers for: rows of the fault matrix, section 5.3.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::authority::Authority;
use crate::common::s3::peer::Peer;
use crate::common::s3::tls::{OldTls, Says, Tls};
use crate::common::s3::{BUCKET, Fault, KEY};
use crate::common::{Cluster, Program, Run, keep_one, pitr, wait_until};
use crate::fetch::mode;
use crate::s3_cycle::{Bucketed, Offline};

#[test]
fn s17_what_was_deleted_is_no_end_of_the_wal() {
    let off = Offline::new("");
    let name = off.still.segments[0].clone();
    off.push(0).succeed();
    let key = off.server().key(&name);
    off.server().behave(|m| m.versions = true);
    let earliest = chrono::Utc::now().timestamp();
    off.server().lose(&key);
    let latest = chrono::Utc::now().timestamp();
    let told = |by: &str| {
        let told = off.fetch(&name).exits(205);
        let told = told.expect_stderr("an older version is there");
        let place = format!("was deleted from \"s3://{BUCKET}/pg\"{by} at ");
        let (_, rest) = told.stderr.split_once(&place).expect(&told.stderr);
        let (at, _) = rest.split_once(": a delete marker").expect(&told.stderr);
        let at = chrono::DateTime::parse_from_rfc3339(at).expect(at);
        assert!((earliest..=latest).contains(&at.timestamp()), "{told}");
    };
    // The message names the deleter as far as the store does.
    for (deleter, by) in [
        (None, ""),
        (Some(("1234abcd", "janitor")), " by janitor"),
        (Some(("1234abcd", "")), " by 1234abcd"),
        (Some(("", "a\u{202e}b")), " by a\\u{202e}b"),
        (Some(("", "")), ""),
    ] {
        off.server().behave(|m| m.deleter = deleter);
        told(by);
    }
    // Whoever may not list versions still learns that it was deleted.
    let denied = off
        .server()
        .fault("versions", u64::MAX, Fault::Error(403, "AccessDenied"));
    off.fetch(&name).exits(205);
    assert!(denied.times() > 0);
    // A segment that never was is absent; and a writer may store it again.
    off.fetch("000000010000000000000099").exits(1);
    off.push(0).succeed();
    off.fetch(&name).succeed();
}

#[test]
fn s12_wal_that_must_be_thawed_is_no_end_of_the_wal() {
    let off = Offline::new("");
    let name = off.still.segments[0].clone();
    off.push(0).succeed();
    off.push(1).succeed();
    assert_eq!(off.server().reclassify(&name, "GLACIER"), 1);
    off.fetch(&name)
        .exits(201)
        .expect_stderr("R201")
        .expect_stderr("archive class");
    assert!(!off.still.wal("RECOVERYXLOG").exists());
    let verify = pitr()
        .arg("--config")
        .arg(&off.config)
        .words("verify --json");
    let run = verify.run();
    let found = run.json()["clusters"][0]["findings"][0].clone();
    assert_eq!(found["kind"], "frozen", "{run}");
    assert!(found["object"].as_str().unwrap().ends_with(&name), "{run}");
    // Nothing is wrong with it.
    let keys = off.server().keys();
    assert!(!keys.iter().any(|k| k.contains("-damaged-")), "{keys:?}");
    off.server().reclassify(&name, "STANDARD");
    off.fetch(&name).succeed();
}

#[test]
fn s12_s13_a_bucket_that_freezes_and_locks() {
    let mut cluster = Cluster::small(17).create();
    let peer = Peer::own();
    peer.server().behave(|m| m.versions = true);
    let site = Bucketed::new(&cluster, peer, "");
    site.attach(&cluster);
    cluster.start();
    let server = site.peer.server();
    site.backup();
    let both = with_copy(&site);
    // A restore from what must be thawed first is refused before it begins, and the plan says so.
    assert!(server.reclassify("/packs/", "DEEP_ARCHIVE") > 0);
    let plan = ["plan", "--target-immediate"];
    let refused = site.pitr().args(plan).exits(1);
    refused.expect_stderr("DEEP_ARCHIVE");
    let to = site.sandbox.join("copy");
    let restore = site.pitr().words("restore --target-immediate --to");
    let refused = restore.arg(&to).exits(1);
    refused.expect_stderr("Nothing was written");
    assert!(!to.exists());
    what_is_frozen_comes_from_another_repository(&site, &both);
    server.reclassify("/packs/", "STANDARD");
    site.pitr().args(plan).succeed();
    wal_that_must_be_thawed_leads_nowhere(&site, &cluster);
    for mode in ["GOVERNANCE", "COMPLIANCE"] {
        server.behave(|m| m.default_lock = Some((mode, Duration::from_secs(30 * 86_400))));
        what_is_locked_stays_whole_until_its_time_has_come(&site, mode);
    }
}

/// A configuration with a second repository, which holds the same.
fn with_copy(site: &Bucketed) -> PathBuf {
    let text = std::fs::read_to_string(&site.config).unwrap();
    let place = site.sandbox.join("second");
    let second = format!(
        "\n[repositories.second]\nurl = \"file://{}\"\n",
        place.display()
    );
    let both = site.sandbox.file("both.toml", format!("{text}{second}"));
    let on = |args: &[&str]| pitr().arg("--config").arg(&both).args(args);
    on(&["init", "--quiet"]).succeed();
    on(&["repo", "sync", "--quiet"]).succeed();
    both
}

fn what_is_frozen_comes_from_another_repository(site: &Bucketed, both: &Path) {
    let to = site.sandbox.join("thawed");
    let on = |args: &[&str]| pitr().arg("--config").arg(both).args(args);
    let restore = on(&["restore", "--target-immediate", "--to"]).arg(&to);
    for run in [on(&["plan", "--target-immediate"]), restore] {
        let run = run.succeed().expect_stderr("DEEP_ARCHIVE");
        let run = run.expect_stderr("it is taken from \"second\"");
        assert!(!run.stderr.contains("is damaged"), "{run}");
    }
    assert!(to.join("PG_VERSION").exists());
    std::fs::remove_dir_all(to).unwrap();
    // Nothing is wrong with what is frozen.
    let keys = site.peer.server().keys();
    assert!(!keys.iter().any(|k| k.contains("-damaged-")), "{keys:?}");
}

/// One segment in the middle of those that a target needs is frozen, and a cache knows it from before.
fn wal_that_must_be_thawed_leads_nowhere(site: &Bucketed, cluster: &Cluster) {
    let client = cluster.client();
    for n in 0..4 {
        client.sql(&format!("create table moved_{n} (id int)"));
        cluster.archive_now();
    }
    client.sql("select pg_create_restore_point('thawed')");
    cluster.archive_now();
    let to = site.sandbox.join("copy");
    let cache = |name: &str| site.sandbox.join(name);
    let asked = |args: &[&str], folder: &str| {
        let run = site.pitr().env("XDG_CACHE_HOME", cache(folder));
        let run = run.args(args).words("--target-name thawed");
        match args.first() {
            Some(&"restore") => run.arg("--to").arg(&to).run(),
            _ => run.run(),
        }
    };
    let warm = asked(&["plan", "--json"], "warm").success().json();
    let needed = &warm["segments_needed"];
    let server = site.peer.server();
    let keys = server.keys();
    let is_needed = |key: &&String| {
        let name = key.rsplit('/').next().unwrap();
        key.contains("/wal/")
            && name > needed["first"].as_str().unwrap()
            && name < needed["last"].as_str().unwrap()
    };
    let middle = keys.iter().find(is_needed).unwrap();
    assert_eq!(server.reclassify(middle, "GLACIER"), 1);
    let name = middle.rsplit('/').next().unwrap();
    let told = |run: Run, out: bool| {
        let run = run.expect_code(5);
        let text = if out { &run.stdout } else { &run.stderr };
        assert!(
            text.contains(&format!("segment {name} cannot be used")),
            "{run}"
        );
        assert!(text.contains("must thaw it"), "{run}");
    };
    told(asked(&["plan"], "warm"), true);
    told(asked(&["plan"], "cold"), true);
    let restored = asked(&["restore"], "cold");
    told(restored.expect_stderr("repo thaw"), false);
    assert!(!to.exists());
    // A segment that the target does not need may be frozen, and one that was thawed is needed no less.
    let target = ["plan", "--target-immediate"];
    site.pitr().args(target).succeed();
    server.reclassify(middle, "STANDARD");
    asked(&["plan"], "warm").success();
}

fn what_is_locked_stays_whole_until_its_time_has_come(site: &Bucketed, mode: &str) {
    let server = site.peer.server();
    let (first, _) = (site.backup(), site.backup());
    let expire = || {
        let expire = keep_one(&["--grace", "0s", "--confirm"]);
        site.pitr().args(expire).succeed()
    };
    let there = || {
        server
            .keys()
            .iter()
            .any(|k| k.contains(&format!("packs/{first}/")))
    };
    let manifest = format!("backups/{first}/manifest");
    expire();
    expire()
        .expect_stdout("kept by the store's lock")
        .expect_stderr("kept by the store until ")
        .expect_stderr(&format!("({})", mode.to_lowercase()));
    assert!(there() && server.keys().iter().any(|k| k.ends_with(&manifest)));
    site.pitr().words("verify --quiet").succeed();
    server.unlock();
    expire();
    assert!(!there() && !server.keys().iter().any(|k| k.ends_with(&manifest)));
}

#[test]
fn s11_what_a_killed_upload_left_is_taken_back_after_a_day() {
    let off = Offline::new("stall_timeout = \"10m\"\nretry_budget = \"10m\"\n");
    let run = |args: &[&str]| pitr().arg("--config").arg(&off.config).args(args);
    let stalled = off.server().fault("partNumber=2", 1, Fault::Stalled);
    let running = run(&["repo", "check"]).spawn();
    wait_until("the second part is on its way", || stalled.times() == 1);
    running.ended_by(rustix::process::Signal::KILL);
    off.server().heal();
    assert_eq!(off.server().open_uploads(), 1);
    let expire = keep_one(&["--confirm"]);
    run(&expire).succeed();
    assert_eq!(off.server().open_uploads(), 1, "it may still be running");
    off.server().age_uploads(Duration::from_secs(25 * 3600));
    run(&["verify"])
        .run()
        .expect_stderr("was left by a write that did not finish; pitr expire removes it");
    run(&keep_one(&["--dry-run"]))
        .succeed()
        .expect_stdout("left by unfinished writes");
    run(&expire).succeed();
    assert_eq!(off.server().open_uploads(), 0);
}

#[test]
fn s15_a_server_that_does_not_prove_to_be_the_store_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let off = Offline::new("");
    let sandbox = off.still.site.sandbox();
    let ca = sandbox.file("ca.pem", &authority.pem);
    let plain = std::fs::read_to_string(&off.config).unwrap();
    let config = |name: &str, endpoint: &str, ca_file: bool| {
        let mut text = plain.replace(&off.server().endpoint(), endpoint);
        if ca_file {
            text.push_str(&format!("ca_file = \"{}\"\n", ca.display()));
        }
        sandbox.file(name, text)
    };
    let good = |says: Says| Tls::before(off.server(), &authority, &says);
    let sound = good(Says {
        subject: "the store",
        host: "localhost",
        year: 2100,
    });
    let trusted = config("sound.toml", &sound.endpoint(), true);
    off.push_with(&trusted, 0).succeed();
    let before = off.server().log().len();
    let refused = |config: &Path, says: &str| {
        let run = off.push_with(config, 1).exits(30);
        run.expect_stderr("A130").expect_stderr(says);
        let fetch = off.fetch_with(config, &off.still.segments[0]);
        fetch.env("PITR_FAULT_SECONDS", "1").exits(200);
    };
    // Nobody told whom to trust.
    let unknown = config("unknown.toml", &sound.endpoint(), false);
    refused(&unknown, "the store");
    let forged = Tls::before(
        off.server(),
        &other,
        &Says {
            subject: "a stranger",
            host: "localhost",
            year: 2100,
        },
    );
    refused(
        &config("forged.toml", &forged.endpoint(), true),
        "a stranger",
    );
    let expired = good(Says {
        subject: "the old store",
        host: "localhost",
        year: 2021,
    });
    let file = config("expired.toml", &expired.endpoint(), true);
    refused(&file, "the old store");
    refused(&file, "to 2021-01-01");
    let elsewhere = good(Says {
        subject: "another host",
        host: "example.com",
        year: 2100,
    });
    refused(
        &config("host.toml", &elsewhere.endpoint(), true),
        "another host",
    );
    let old = OldTls::start();
    let file = config("old.toml", &old.endpoint(), true);
    let text = std::fs::read_to_string(&file).unwrap() + "retry_budget = \"1s\"\n";
    refused(&sandbox.file("old.toml", text), "");
    assert_eq!(
        off.server().log().len(),
        before,
        "nobody else was asked for anything"
    );
}

#[test]
fn s14_doctor_warns_of_rules_that_delete() {
    let off = Offline::new("");
    let doctor = || {
        let run = pitr().arg("--config").arg(&off.config);
        run.words("doctor --json").run().json().to_string()
    };
    assert!(!doctor().contains("lifecycle"));
    off.server().behave(|m| {
        m.lifecycle = Some(
            "<Rule><ID>tidy</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>\
             <Rule><ID>cold</ID><Filter><Prefix>pg/</Prefix></Filter><Status>Enabled</Status><Transition><Days>7</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>\
             <Rule><ID>logs</ID><Filter><Prefix>logs/</Prefix></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>\
             <Rule><ID>off</ID><Filter><Prefix></Prefix></Filter><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
                .to_owned(),
        );
    });
    let said = doctor();
    assert!(said.contains("deletes objects after 30 days"), "{said}");
    assert!(
        said.contains("moves objects to GLACIER after 7 days"),
        "{said}"
    );
    assert!(!said.contains("after 1 days"), "{said}");
    // Who may not read them is not told anything.
    let denied = Fault::Error(403, "AccessDenied");
    let denied = off.server().fault("lifecycle", u64::MAX, denied);
    assert!(!doctor().contains("lifecycle"));
    assert!(denied.times() > 0, "it was not asked for");
}

#[test]
fn s15_doctor_names_a_certificate_that_ends_soon() {
    let authority = Authority::new();
    let off = Offline::new("");
    let ca = off.still.site.sandbox().file("ca.pem", &authority.pem);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    // It ends with the next year, a year from now at least.
    let year = i32::try_from(1970 + now / 31_556_952 + 2).unwrap();
    let days = (i64::from(year) - 1970) * 365 + (i64::from(year) - 1969) / 4;
    let says = Says {
        subject: "the store",
        host: "localhost",
        year,
    };
    let tls = Tls::before(off.server(), &authority, &says);
    let plain = std::fs::read_to_string(&off.config).unwrap();
    let text = plain.replace(&off.server().endpoint(), &tls.endpoint());
    let text = format!("{text}ca_file = \"{}\"\n", ca.display());
    let config = off.still.site.sandbox().file("tls.toml", text);
    for (left, level) in [(22, "ok"), (20, "warn"), (2, "fail"), (-1, "fail")] {
        let clock = format!("{},{now},1", (days - left) * 86_400);
        let doctor = pitr().arg("--config").arg(&config);
        let doctor = doctor.words("doctor --json");
        let said = doctor.env("PITR_FAULT_CLOCK", clock).run().json();
        let findings = said["findings"].as_array().unwrap();
        let of_it = findings.iter().find(|f| f["name"] == "certificate");
        let of_it = of_it.unwrap_or_else(|| panic!("{said}"));
        assert_eq!(of_it["level"], level, "{left}: {of_it}");
        let value = of_it["value"].as_str().unwrap();
        assert!(value.contains(&format!("{year}-01-01")), "{value}");
    }
}

#[test]
fn s08_clocks_that_differ_are_told_with_the_seconds() {
    let off = Offline::new("");
    let said = |args: &[&str]| {
        let run = pitr().arg("--config").arg(&off.config).args(args).run();
        format!("{}{}", run.stdout, run.stderr)
    };
    let seconds = |text: &str| {
        let (before, _) = text.split_once(" s ahead of this host's")?;
        before
            .rsplit(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    for args in [&["doctor"][..], &["repo", "check"]] {
        off.server().behave(|m| m.clock_ahead = Duration::ZERO);
        let text = said(args);
        assert_eq!(seconds(&text), None::<u64>, "{text}");
        // Less than the store minds, and so much that it refuses.
        for ahead in [5 * 60, 20 * 60] {
            let ahead_by = Duration::from_secs(ahead);
            off.server().behave(|m| m.clock_ahead = ahead_by);
            let text = said(args);
            let told = seconds(&text);
            assert!(
                told.is_some_and(|s| s.abs_diff(ahead) < 60),
                "{ahead}: {text}"
            );
        }
    }
}

#[test]
fn x07_expire_stops_when_the_store_goes_away_and_the_next_run_finishes() {
    let builder = Cluster::builder(17).segment_size_mb(1);
    let (site, _cluster) = Bucketed::with_cluster(
        builder.without_fsync(),
        Peer::own(),
        "retry_budget = \"1s\"\n",
    );
    let (first, last) = (site.backup(), site.backup());
    let server = site.peer.server();
    let expire = || {
        let expire = keep_one(&["--grace", "0s", "--confirm"]);
        site.pitr().args(expire).run()
    };
    let of = |id: &str| server.keys().iter().filter(|k| k.contains(id)).count();
    let whole = of(&first);
    // Before the first deletion; behind that of the root; and while its objects go.
    for (gone, deletions) in [(false, 0), (true, 1), (true, 1)] {
        let away = server.fault_after(deletions, "DELETE", u64::MAX, Fault::Reset);
        expire().expect_code(9).expect_stderr("goes on");
        assert!(away.times() > 0);
        server.heal();
        let listed = site.pitr().words("info --json").succeed();
        let listed = listed.json().to_string();
        assert_eq!(listed.contains(&format!("\"{first}\"")), !gone, "{listed}");
        assert!(listed.contains(&format!("\"{last}\"")), "{listed}");
        assert!(of(&first) > 1 && (gone || of(&first) >= whole));
        site.pitr().words("verify --quiet").succeed();
    }
    expire().success();
    // Behind what lost its root stands a tombstone, and no data.
    assert!(
        !server
            .keys()
            .iter()
            .any(|k| k.contains(&format!("packs/{first}/")))
    );
    let listed = site.pitr().words("info --json").run().json();
    assert!(
        !listed.to_string().contains(&format!("\"{first}\"")),
        "{listed}"
    );
    site.pitr().words("verify --quiet").succeed();
}

#[test]
fn a_region_that_nobody_knows_is_wrong_configuration_unless_who_knows_it_is_out_of_order() {
    let off = Offline::new("");
    off.push(0).succeed();
    let there = &off.still.segments[0];
    let text = std::fs::read_to_string(&off.config).unwrap();
    let is_about = |line: &&str| !line.starts_with("region") && !line.starts_with("endpoint");
    let lines: Vec<&str> = text.lines().filter(is_about).collect();
    assert_eq!(lines.len() + 2, text.lines().count());
    std::fs::write(&off.config, lines.join("\n")).unwrap();
    let info = || pitr().arg("--config").arg(&off.config).arg("info");
    let told = "no region is known";
    // Nobody is there who could say it: not asked, and asked in vain.
    let nobody = [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"),
    ];
    for (name, value) in nobody {
        let run = |program: Program| program.env(name, value).run();
        run(info()).expect_code(3).expect_stderr(told);
        run(off.push(1)).expect_code(2).expect_stderr(told);
        for (signal, streams) in [("recovery.signal", false), ("standby.signal", true)] {
            mode(&off.still, signal, streams);
            run(off.fetch(there)).expect_code(202).expect_stderr(told);
            assert!(!off.still.wal("RECOVERYXLOG").exists());
        }
    }
    // The machine's provider is there, and cannot tell today.
    let broken = off
        .server()
        .fault("/latest/", u64::MAX, Fault::Error(500, ""));
    let provider = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", off.server().endpoint());
    let run = |program: Program| program.env(provider.0, &provider.1).run();
    run(info()).expect_code(9).expect_stderr(told);
    run(off.push(1)).expect_code(30).expect_stderr(told);
    mode(&off.still, "standby.signal", true);
    // The library asks again after waits drawn at random: a standby may be answered before it gives up.
    let fetch = off.fetch(there).env("PITR_FAULT_SECONDS", "1");
    run(fetch).expect_code(1);
    assert!(broken.times() > 0);
}

#[test]
fn credentials_that_others_can_read_are_refused() {
    let off = Offline::new("");
    let file = off.server().credentials(off.still.site.sandbox(), KEY);
    let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode));
    mode(0o640).unwrap();
    let told = "is open to other users: its mode is 0640";
    let push = off.push(0).run();
    assert_ne!(push.code(), 0, "{push}");
    push.expect_stderr(told).expect_stderr("chmod 600");
    let fetch = off.fetch(&off.still.segments[0]).run();
    fetch.expect_code(202).expect_stderr(told);
    mode(0o600).unwrap();
    off.push(0).succeed();
}

#[test]
fn c9_credentials_that_cannot_be_read_are_told_with_the_cause() {
    let off = Offline::new("");
    let file = off.server().credentials(off.still.site.sandbox(), KEY);
    let refused = |cause: &str| {
        let told = format!(
            "could not read credentials file \"{}\": {cause}",
            file.display()
        );
        let push = off.push(0).exits(2).expect_stderr(&told);
        push.expect_stderr("chown postgres");
        let fetch = off.fetch(&off.still.segments[0]).run();
        fetch.expect_code(202).expect_stderr(&told);
    };
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o000)).unwrap();
    refused("Permission denied");
    std::fs::remove_file(&file).unwrap();
    refused("No such file");
}

#[test]
fn what_the_configuration_says_of_objects_arrives_with_each_kind_of_them() {
    let builder = Cluster::builder(17).segment_size_mb(1);
    let mut cluster = builder.without_fsync().create();
    let dressed = |sse: &str| {
        let classes = "wal = \"STANDARD_IA\", packs = \"GLACIER_IR\", manifests = \"ONEZONE_IA\"";
        format!("storage_class = {{ {classes} }}\n{sse}")
    };
    let kms = dressed("sse = \"aws:kms\"\nsse_kms_key_id = \"alias/backup\"\n");
    let site = Bucketed::new(&cluster, Peer::own(), &kms);
    site.attach(&cluster);
    cluster.start();
    let server = site.peer.server();
    let check = |sse: &str, key_id: Option<&str>, before: &[String]| {
        let mut seen = [0; 3];
        for key in server.keys().iter().filter(|k| !before.contains(k)) {
            let headers = server.written_with(key);
            let header = |name: &str| headers.get(&format!("x-amz-{name}")).map(String::as_str);
            let (kind, class) = match key {
                k if k.contains("/wal/") => (0, "STANDARD_IA"),
                k if k.contains("/packs/") || k.contains("/layers/") => (1, "GLACIER_IR"),
                _ => (2, "ONEZONE_IA"),
            };
            seen[kind] += 1;
            assert_eq!(header("storage-class"), Some(class), "{key}");
            assert_eq!(header("server-side-encryption"), Some(sse), "{key}");
            let used = header("server-side-encryption-aws-kms-key-id");
            assert_eq!(used, key_id, "{key}");
        }
        assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
    };
    site.backup();
    check("aws:kms", Some("alias/backup"), &[]);
    // The backup's label is archived behind it.
    cluster.archive_now();
    crate::common::edit(&site.config, &kms, &dressed("sse = \"AES256\"\n"));
    let before = server.keys();
    site.backup();
    check("AES256", None, &before);
}
