//! Anchors of the audit log: what was told elsewhere is held against it.

use serde_json::Value;

use super::World;
use crate::alert_conditions::{Sink, later, observe};
use crate::common::{PATIENCE, Program};

#[test]
fn v33_anchors_and_checks_that_come_no_more_are_told() {
    let world = World::new();
    let sink = Sink::new();
    world.configure("host", "on", &sink.section());
    let own = world.pitr("host", &[]);
    let levels = |pitr: &Program| -> Vec<String> {
        let json = pitr.clone().words("doctor --json").run().json();
        let all = json["findings"].as_array().unwrap().iter();
        let own = all.filter(|f| f["name"] == "anchor" || f["name"] == "check");
        own.map(|f| f["level"].as_str().unwrap().to_owned())
            .collect()
    };
    world.backup().success();
    observe(&own);
    assert_eq!(levels(&own), ["ok", "ok"], "they may be another host's");
    world.pitr("host", &["audit", "anchor"]).succeed();
    assert_eq!(world.problems(&[]).0, 0);
    let text = world.pitr("host", &["metrics"]).run().stdout;
    let name = "pitr_audit_last_verified_timestamp_seconds";
    assert!(crate::metrics::value(&text, name) > Some(1e9), "{text}");
    let days = |days: u64| later(&own, days * 86_400);
    assert_eq!(levels(&days(4)), ["warn", "ok"]);
    assert_eq!(levels(&days(36)), ["warn", "warn"]);
    observe(&days(4));
    let (anchor, check) = ("audit/anchor/stale", "audit/verify/stale");
    sink.expect(anchor, &[("new", "medium")]);
    sink.expect(check, &[]);
    observe(&days(36));
    sink.last(check, "new", "medium", "last succeeded on this host");
    observe(&own);
    sink.last(anchor, "resolved", "medium", "");
    sink.last(check, "resolved", "medium", "");
    // A check of one repository is no check of the log.
    world.problems(&["--repository", "two"]);
    let after = world.pitr("host", &["metrics"]).run().stdout;
    let of = |text: &str| crate::metrics::value(text, name);
    assert_eq!(of(&after), of(&text));
}

/// Answers one request with success; returns what it said, head and body.
fn answered_once(listener: std::net::TcpListener) -> std::thread::JoinHandle<String> {
    use std::io::{Read as _, Write as _};
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = String::new();
        let mut bytes = [0; 4096];
        while !heard.contains("END") {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "{heard}");
            heard += std::str::from_utf8(&bytes[..count]).unwrap();
        }
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        heard
    })
}

/// Everything that leaves the host anyway proves the log: whoever keeps it finds a removal in all repositories at once.
#[test]
fn r91_notices_heartbeats_and_reports_carry_an_anchor() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let heard = world.sandbox.dir("out").join("notices");
    let sinks = format!(
        "[alerts.out]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"(cat; echo; echo $PITR_ALERT_ANCHOR) >> {}\"]\n\
         [alerts.beat]\nkind = \"heartbeat\"\nurl = \"http://{}/\"\ntemplate = \"{{{{host}}}} {{{{anchor}}}} END\"\n",
        heard.display(),
        listener.local_addr().unwrap(),
    );
    world.configure("host", "on", &sinks);
    let beat = answered_once(listener);
    world.backup().success();
    world.pitr("host", &["audit", "anchor"]).succeed();
    world.backup().success();
    world.pitr("host", &["alert", "test"]).succeed();
    let notices = std::fs::read_to_string(&heard).unwrap();
    let (json, variable) = notices.trim_end().split_once('\n').unwrap();
    let json: Value = serde_json::from_str(json).unwrap();
    let anchor = json["anchor"].as_str().unwrap();
    assert_eq!(anchor, variable);
    let chain = world.chain("one");
    let last = format!("/{}:", chain.len());
    assert!(anchor.contains(&last), "{anchor} and {last}");
    let beat = beat.join().unwrap();
    assert!(
        beat.starts_with("POST / ") && beat.contains(anchor),
        "{beat}"
    );
    let report = world.pitr("host", &["report", "daily"]).run();
    report.expect_stdout(&format!("Audit log of this host: {anchor}"));
    let json = world
        .pitr("host", &["report", "daily", "--format", "json"])
        .run();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["anchor"], *anchor);

    let kept = heard.display().to_string();
    assert_eq!(world.problems(&["--anchor", &kept]), (0, vec![]));
    let none = world
        .sandbox
        .file("none", "no anchor: db1/x:00")
        .display()
        .to_string();
    let run = world
        .pitr("host", &["audit", "verify", "--anchor", &none])
        .run();
    run.expect_code(2).expect_stderr("holds no anchor");
    let run = world
        .pitr("host", &["audit", "verify", "--anchor", "nothing"])
        .run();
    run.expect_code(2).expect_stderr("WRITER/NUMBER:HASH");
    // The newest records go in both repositories at once, and with them what this host remembers.
    for name in ["one", "two"] {
        for path in world.chain(name).iter().rev().take(2) {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::remove_dir_all(world.sandbox.join("host/audit")).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let both = vec!["removed".to_owned(), "removed".to_owned()];
    assert_eq!(world.problems(&["--anchor", &kept]), (4, both.clone()));
    for name in ["one", "two"] {
        std::fs::remove_dir_all(world.log(name)).unwrap();
    }
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(world.problems(&["--anchor", &kept]), (4, both));
}
