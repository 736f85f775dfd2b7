//! The agent on a host that only writes: the looks judge what takes no key, and jobs delete where the credentials may.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::alert_conditions::{Sink, examine, later, observe};
use crate::alert_heartbeat::Service;
use crate::common::{Cluster, Program, paths_below, wait_until};
use crate::metrics::value;
use crate::sealed::Sealed;

/// The printed profile of a writer, with the rest of a configuration.
fn writer(rest: &str) -> (Sealed, Cluster, PathBuf) {
    let (sealed, cluster) = Sealed::archived(17);
    let state = sealed.sandbox.dir("state");
    crate::common::keep_state(&sealed.config("writer"), &state);
    crate::common::append(sealed.config("writer"), rest);
    (sealed, cluster, state)
}

/// Breaks archiving, and returns the program of half an hour later.
fn archiving_breaks(cluster: &mut Cluster, pitr: Program) -> Program {
    cluster.alter_system("archive_command", "false");
    cluster.restart();
    cluster.switch_wal();
    let status = cluster.pgdata().join("pg_wal/archive_status");
    wait_until("a file waits", || {
        let mut paths = paths_below(&status).into_iter();
        paths.any(|path| path.to_str().unwrap().ends_with(".ready"))
    });
    later(&pitr, 1800)
}

#[test]
fn j16_a_host_that_only_writes_tells_of_real_trouble_and_beats_without_it() {
    let (service, sink) = (Service::start(), Sink::new());
    let (sealed, mut cluster, state) = writer(&format!(
        "{}[alerts.beat]\nkind = \"heartbeat\"\nurl = \"http://127.0.0.1:{}/ping/s3cret\"\n",
        sink.section(),
        service.port
    ));
    let host = || sealed.on("writer");
    observe(&host());
    sink.expect("main/recovery/newest backup", &[("new", "critical")]);
    service.expect(0);
    host().words("backup --quiet").succeed();
    cluster.archive_now();
    observe(&host());
    observe(&host());
    sink.expect(
        "main/recovery/newest backup",
        &[("new", "critical"), ("resolved", "critical")],
    );
    sink.expect("main/recovery/not judged here", &[("new", "low")]);
    sink.expect("look", &[]);
    service.expect(1);

    // The page has what is known, and what an examination finds: the server of this test has no fsync.
    examine(&host());
    observe(&host());
    let page = std::fs::read_to_string(state.join("page.json")).unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    let conditions = page["conditions"].as_array().unwrap().iter();
    let ids: Vec<&str> = conditions.map(|one| one["id"].as_str().unwrap()).collect();
    let known = ["main/doctor/server/fsync", "main/recovery/not judged here"];
    assert_eq!(ids, known);
    let written = &page["info"]["written"][0];
    assert_eq!(written["name"], "main");
    assert_eq!(written["backups"].as_array().unwrap().len(), 1, "{written}");
    let run = host().arg("metrics").succeed();
    let status = |check| {
        let series = format!("pitr_status{{cluster=\"main\",check=\"{check}\"}}");
        value(&run.stdout, &series)
    };
    assert_eq!(status("archiving"), Some(0.0));
    assert_eq!(status("recovery"), Some(1.0));
    assert_eq!(status("objectives"), None);

    let later = archiving_breaks(&mut cluster, host());
    observe(&later);
    sink.expect("main/archiving/waiting", &[("new", "critical")]);
    service.expect(0);
}

#[test]
fn j66_the_report_of_a_host_that_only_writes_has_what_it_wrote() {
    let (sealed, _cluster, _) = writer("");
    let report = |kind: &str, format: &str| {
        let words = ["report", kind, "--since", "1h", "--format", format];
        sealed.on("writer").args(words).run()
    };
    let missing = report("daily", "text").success();
    missing.expect_stdout("there is no backup");
    let backup = sealed.on("writer").words("backup --json").run();
    let id = backup.success().id();
    let daily = report("daily", "json").success().json();
    let backups = daily["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 1, "{daily:#}");
    assert_eq!(
        (&backups[0]["id"], &backups[0]["of"]),
        (&id.into(), &"main".into())
    );
    assert_eq!(backups[0]["stored_bytes"], Value::Null);
    let told = daily["recommendations"].to_string();
    assert!(told.contains("this host only writes"), "{daily:#}");
    assert!(told.contains("pitr info on a host"), "{daily:#}");
    // Nothing here proves what takes a key.
    let compliance = report("compliance", "json").json();
    let controls = compliance["controls"].as_array().unwrap();
    for name in [
        "recoverable",
        "no known damage",
        "erasures readable",
        "stored data checked",
    ] {
        let found = controls.iter().find(|one| one["control"] == name).unwrap();
        assert_eq!(found["state"], "warning", "{found:#}");
    }
}

#[test]
fn a_job_that_expires_runs_where_the_credentials_may_delete() {
    let (sealed, _cluster, _) =
        writer("[jobs.clean]\nrun = \"expire --keep 3 --confirm\"\nschedule = \"0 7 * * *\"\n");
    let host = |arguments: &[&str]| sealed.on("writer").args(arguments).run();
    host(&["backup", "--quiet"]).success();
    // The profile of a janitor has these keys, too, and in a directory of its own it may delete.
    host(&["agent", "run", "clean"]).success();
    let set = |mode| {
        std::fs::set_permissions(&sealed.repository, PermissionsExt::from_mode(mode)).unwrap();
    };
    set(0o555);
    let refused = host(&["agent", "run", "clean"]);
    let shown = host(&["agent", "status", "--json"]);
    set(0o755);
    refused
        .expect_code(8)
        .expect_stderr("job \"clean\" would expire")
        .expect_stderr("may not delete in repository \"local\"");
    let job = &shown.json()["jobs"][0];
    assert_eq!(job["last_status"], 8, "{job}");
    assert_eq!(job["failing"], true, "{job}");
}
