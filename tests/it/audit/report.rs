//! Reports on runs, controls and the audit log.

use serde_json::Value;

use super::World;
use crate::common::Site;

#[test]
fn a_report_tells_runs_and_escapes_every_text() {
    let world = World::new();
    let backup = world.pitr("host", &["files", "backup", "up", "--quiet"]);
    backup
        .env("SUDO_USER", "<script>alert(1)</script>")
        .succeed();
    let report = |kind: &str, format: &str| {
        world
            .pitr(
                "host",
                &["report", kind, "--since", "1h", "--format", format],
            )
            .run()
    };
    let daily = report("daily", "json").json();
    let runs = daily["runs"].as_array().unwrap().clone();
    assert_eq!(runs.len(), 2, "{daily:#}");
    assert_eq!(
        (&runs[1]["command"], &runs[1]["outcome"]),
        (&"files backup".into(), &"succeeded".into())
    );
    assert!(runs[1]["ended"].is_string());
    let page = report("compliance", "html").stdout;
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("&lt;script&gt;"),
        "{page}"
    );
    assert!(
        !page.contains("<script") && !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
    // A text goes into a file as well.
    let file = world.sandbox.join("report.txt");
    let run = world.pitr("host", &["report", "daily", "--since", "1h", "--output"]);
    let run = run.arg(&file).run();
    assert_eq!(run.stdout, "");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("Daily report, "), "{text}");
    assert!(
        text.contains("\nRuns\n") && text.contains("files backup"),
        "{text}"
    );
    // A changed log is not quoted in silence.
    std::fs::remove_file(&world.chain("one")[1]).unwrap();
    let audit = report("audit", "text");
    assert_eq!(audit.code(), 4, "{}", audit.stderr);
    assert!(audit.stdout.contains("missing"), "{}", audit.stdout);
}

#[test]
fn j66_a_cluster_that_cannot_be_looked_at_is_in_the_report() {
    let (site, _cluster) = Site::with_cluster(17);
    site.keep_state();
    site.pitr().words("backup --quiet").succeed();
    let report = || site.pitr().words("report compliance --format json").run();
    let whole = report().success().json();
    let recoverable = |report: &serde_json::Value| report["controls"][0].clone();
    assert_eq!(recoverable(&whole)["state"], "ok", "{whole:#}");
    assert_eq!(whole["failures"], serde_json::json!([]));
    let told = |kind: &str, format: &str| {
        let words = ["report", kind, "--since", "1h", "--format", format];
        site.pitr().args(words).run().stdout
    };
    let text = told("daily", "text");
    assert!(
        text.contains("What somebody should do\nnothing\n"),
        "{text}"
    );
    // Another cluster, whose registration is damaged.
    site.add("[clusters.other]\npgdata = \"/nowhere\"\n");
    let other = site.repository().join("clusters/other/7000000000000000000");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("cluster.json"), "{}").unwrap();
    let run = report();
    assert_eq!(run.code(), 10, "{run}");
    let report = run.json();
    for control in &report["controls"].as_array().unwrap()[..2] {
        assert_eq!(control["state"], "warning", "{control:#}");
    }
    assert!(run.stderr.contains("other"), "{run}");
    let failures = report["failures"].as_array().unwrap();
    let [failure] = failures.as_slice() else {
        panic!("{report:#}");
    };
    let failure = failure.as_str().unwrap();
    assert!(failure.contains("look at cluster \"other\""), "{failure}");
    for kind in ["daily", "compliance"] {
        let text = told(kind, "text");
        let (before, after) = text.split_once("\nCould not be looked at\n").unwrap();
        assert!(!before.contains("Controls"), "it is the first: {text}");
        assert!(after.contains("look at cluster \"other\""), "{text}");
        let unknown = "What somebody should do\nnot known: see above\n";
        assert!(
            after.contains(unknown) && !text.contains("\nnone"),
            "{text}"
        );
        let page = told(kind, "html");
        let heading = page.split("<h2>").nth(1).unwrap();
        assert!(heading.starts_with("Could not be looked at<"), "{page}");
        assert!(
            !page.contains("<p>nothing</p>") && !page.contains("<p>none</p>"),
            "{page}"
        );
    }
}

#[test]
fn j66_a_log_that_could_not_be_read_is_not_called_whole() {
    let world = World::new();
    let report = || {
        let words = ["report", "compliance", "--format", "json"];
        world.pitr("host", &words).run().json()
    };
    let recorded = |report: &Value| {
        let controls = report["controls"].as_array().unwrap();
        let found = controls
            .iter()
            .find(|one| one["control"] == "commands recorded");
        found.unwrap()["state"].clone()
    };
    assert_eq!(recorded(&report()), "ok");
    let two = world.sandbox.join("two");
    std::fs::rename(&two, world.sandbox.join("away")).unwrap();
    let away = report();
    assert_eq!(recorded(&away), "warning", "{away:#}");
    let failures = away["failures"].as_array().unwrap().iter();
    let logs = failures.filter(|one| {
        one.as_str()
            .unwrap()
            .contains("read the audit log of repository")
    });
    assert_eq!(logs.count(), 1, "{away:#}");
}

#[test]
fn y43_a_control_is_met_for_every_copy_of_a_cluster_or_not_at_all() {
    let (site, cluster) = Site::with_cluster(17);
    site.keep_state();
    site.add_repository("offsite", "");
    let pitr = |words: &[&str]| site.pitr().args(words.iter().copied()).arg("--quiet").run();
    pitr(&["backup"]).success();
    cluster.archive_now();
    pitr(&["repo", "sync"]).success();
    let state = |name: &str, since: &str| {
        let report = site.pitr().words("report compliance --format json");
        let report = report.args(["--since", since]).run().json();
        let controls = report["controls"].as_array().unwrap();
        let found = controls.iter().find(|one| one["control"] == name).unwrap();
        (
            found["state"].as_str().unwrap().to_owned(),
            found["observed"].clone(),
        )
    };
    let expect = |name: &str, since: &str, wanted: &str| {
        let (state, observed) = state(name, since);
        assert_eq!(state, wanted, "{name}: {observed}");
    };
    let (tested, checked) = ("restores tested", "stored data checked");
    expect(tested, "1h", "warning");
    expect(checked, "1h", "warning");
    // A check that reads nothing back is none.
    pitr(&["verify", "--fast"]).success();
    expect(checked, "1h", "warning");
    pitr(&["verify"]).success();
    pitr(&["verify", "--repository", "offsite"]).success();
    expect(checked, "1h", "ok");
    // A drill of one repository proves nothing of the other.
    let initdb = crate::common::bin(17, "initdb").unwrap();
    let bin = initdb.parent().unwrap().to_str().unwrap();
    pitr(&["drill", "--bin", bin]).success();
    expect(tested, "1h", "warning");
    pitr(&["drill", "--bin", bin, "--repository", "offsite"]).success();
    expect(tested, "1h", "ok");
    // Both are older than this time.
    std::thread::sleep(std::time::Duration::from_secs(2));
    expect(tested, "1s", "warning");
    expect(checked, "1s", "warning");
}

#[test]
fn y45_a_check_of_one_backup_leaves_the_segments_behind_it_unchecked() {
    let (site, cluster) = Site::with_cluster(17);
    site.keep_state();
    let pitr = |words: &[&str]| site.pitr().args(words.iter().copied()).arg("--quiet").run();
    let archive = || {
        cluster.sql("select pg_logical_emit_message(false, 'a', 'b')");
        cluster.archive_now();
    };
    let expect = |wanted: &str| {
        let report = ["report", "compliance", "--format", "json", "--since", "1h"];
        let report = site.pitr().args(report).run().json();
        let controls = report["controls"].as_array().unwrap();
        let checked = |one: &&Value| one["control"] == "stored data checked";
        let found = controls.iter().find(checked).unwrap();
        assert_eq!(found["state"], wanted, "{found}");
    };
    pitr(&["init"]).success();
    let id = site.backup();
    (0..3).for_each(|_| archive());
    pitr(&["verify", "--backup", &id]).success();
    expect("warning");
    pitr(&["verify"]).success();
    expect("ok");
    archive();
    expect("ok");
}
