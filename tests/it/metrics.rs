//! `pitr metrics`: the names that dashboards need, true counts, and no value for what is not known.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{Cluster, Program, Site, Stop, path_of, paths_below, pitr, wait_until};
use crate::per_major;

/// The value of a series; none where there is none.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map(|rest| rest.trim().parse().unwrap())
}

/// The metrics that `pitr metrics` prints, which promtool accepts.
pub fn metrics(program: &Program) -> String {
    let text = program.clone().arg("metrics").succeed().stdout;
    promtool(&["check", "metrics"], &text);
    text
}

/// Runs Debian's promtool, which reads `input`.
fn promtool(arguments: &[&str], input: &str) {
    use std::io::Write as _;
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: scripts/get-tools test");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // 3 is for its taste in names, of which those of dashboards that exist are not.
    let is_taste = output.status.code() == Some(3) && !said.contains("error while linting");
    assert!(
        output.status.success() || is_taste,
        "promtool {arguments:?}: {said}"
    );
}

const FULL: &str = "{cluster=\"main\",type=\"full\",component=\"postgres\",repo=\"local\"";

fn series(name: &str) -> String {
    format!("{name}{FULL}}}")
}

fn failures(reason: &str) -> String {
    format!("backup_failures_total{FULL},reason=\"{reason}\"}}")
}

/// A site whose repository is called `local`, as `pitr init` calls it.
pub fn site(major: u32) -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(major);
    site.keep_state();
    (site, cluster)
}

fn backups_and_their_failures_are_counted_across_commands(major: u32) {
    let (site, mut cluster) = site(major);
    let pitr = site.pitr();
    // Every series stands at 0 before anything happened, and nothing is told that nobody knows.
    let text = metrics(&pitr);
    for name in ["backup_attempts_total", "backup_success_total"] {
        assert_eq!(value(&text, &series(name)), Some(0.0), "{text}");
    }
    assert_eq!(value(&text, &failures("server")), Some(0.0), "{text}");
    assert_eq!(
        value(
            &text,
            "backup_failure_total{type=\"full\",component=\"postgres\"}"
        ),
        Some(0.0)
    );
    for unknown in [
        "backup_timestamp_seconds",
        "backup_size_bytes",
        "backup_duration_seconds{",
        "pitr_window_start",
        "pitr_rpo_seconds",
        "pitr_drill_last",
        "pitr_verify_last",
    ] {
        assert!(
            !text.lines().any(|l| l.starts_with(unknown)),
            "{unknown} of nothing\n{text}"
        );
    }

    pitr.clone().words("backup --quiet").succeed();
    let text = metrics(&pitr);
    assert_eq!(
        value(&text, &series("backup_attempts_total")),
        Some(1.0),
        "{text}"
    );
    assert_eq!(
        value(&text, &series("backup_success_total")),
        Some(1.0),
        "{text}"
    );
    assert!(
        value(&text, &series("backup_size_bytes")).unwrap() > 1e6,
        "{text}"
    );
    assert!(
        value(&text, &series("backup_duration_seconds")).is_some(),
        "{text}"
    );
    let age = now() - value(&text, &series("backup_timestamp_seconds")).unwrap();
    assert!((0.0..300.0).contains(&age), "{age}");
    let hist = format!("backup_duration_seconds_hist_count{FULL}}}");
    assert_eq!(value(&text, &hist), Some(1.0), "{text}");
    assert!(
        value(
            &text,
            "pitr_rto_estimate_seconds{cluster=\"main\",repo=\"local\",target=\"latest\"}"
        )
        .unwrap()
            > 0.0
    );
    assert_eq!(
        value(&text, "pitr_gaps{cluster=\"main\",repo=\"local\"}"),
        Some(0.0)
    );
    assert_eq!(value(&text, "pitr_repo_up{repo=\"local\"}"), Some(1.0));

    pitr.clone().words("verify --quiet").succeed();
    let text = metrics(&pitr);
    assert!(
        value(
            &text,
            "pitr_verify_last_success_timestamp_seconds{cluster=\"main\",depth=\"full\"}"
        )
        .is_some(),
        "{text}"
    );
    assert_eq!(
        value(
            &text,
            "pitr_verify_coverage_ratio{cluster=\"main\",repo=\"local\",depth=\"full\"}"
        ),
        Some(1.0),
        "{text}"
    );

    // A server that is away is a failure with its reason; the counts go on from the file.
    cluster.stop(crate::common::Stop::Fast);
    assert_ne!(pitr.clone().words("backup --quiet").run().code(), 0);
    let text = metrics(&pitr);
    assert_eq!(
        value(&text, &series("backup_attempts_total")),
        Some(2.0),
        "{text}"
    );
    assert_eq!(
        value(&text, &series("backup_success_total")),
        Some(1.0),
        "{text}"
    );
    assert_eq!(value(&text, &failures("repository")), Some(1.0), "{text}");
    assert!(
        !text.lines().any(|l| l.starts_with("pitr_rpo_seconds")),
        "the server did not answer: {text}"
    );
}
per_major!(backups_and_their_failures_are_counted_across_commands, v13 v17 v18);

fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

fn j06_a_backup_that_is_killed_is_an_attempt_that_failed(major: u32) {
    let (site, _cluster) = site(major);
    let pitr = site.pitr();
    // It waits for WAL that nobody archives.
    let running = pitr
        .clone()
        .words("backup --quiet --max-rate 100KB")
        .spawn();
    let mut text = String::new();
    wait_until("the backup runs", || {
        text = metrics(&pitr);
        value(&text, &series("pitr_backup_running")) == Some(1.0)
    });
    assert_eq!(
        value(&text, &series("backup_attempts_total")),
        Some(0.0),
        "{text}"
    );
    drop(running);
    wait_until("the kill is seen", || {
        text = metrics(&pitr);
        value(&text, &failures("killed")) == Some(1.0)
    });
    assert_eq!(
        value(&text, &series("backup_attempts_total")),
        Some(1.0),
        "{text}"
    );
    assert_eq!(
        value(&text, &series("pitr_backup_running")),
        Some(0.0),
        "{text}"
    );
    assert_eq!(
        value(
            &text,
            "backup_failure_total{type=\"full\",component=\"postgres\"}"
        ),
        Some(1.0),
        "{text}"
    );
}
per_major!(j06_a_backup_that_is_killed_is_an_attempt_that_failed, v17);

fn what_would_be_lost_is_told_as_the_server_goes_on(major: u32) {
    let (site, cluster) = site(major);
    let pitr = site.pitr();
    cluster.sql("create table t (a int)");
    pitr.clone().words("backup --quiet").succeed();
    cluster.sql("select pg_switch_wal()");
    let rpo = "pitr_rpo_bytes{cluster=\"main\"}";
    wait_until("everything is archived", || {
        value(&metrics(&pitr), rpo) == Some(0.0)
    });
    cluster.sql("insert into t select generate_series(1, 1000)");
    let text = metrics(&pitr);
    assert!(value(&text, rpo).unwrap() > 10_000.0, "{text}");
    let age = value(&text, "pitr_rpo_seconds{cluster=\"main\"}");
    assert!(age > Some(0.0), "{text}");
    let lag = value(&text, "pitr_archive_lag_seconds{cluster=\"main\"}");
    assert_eq!(age, lag, "{text}");

    // Promises are judged by the same numbers.
    site.add_to_cluster("rpo = \"1s\"\nrto = \"1s\"\ncopies = \"3-2-1\"\n");
    let mut shown = String::new();
    wait_until("the promise is broken", || {
        shown = pitr.clone().arg("info").run().stdout;
        shown.contains("rpo is 1 s")
    });
    assert!(
        shown.contains("rto is 1 s") && shown.contains("2 of 3 copies"),
        "{shown}"
    );
    let text = metrics(&pitr);
    assert_eq!(
        value(&text, "pitr_status{cluster=\"main\",check=\"objectives\"}"),
        Some(2.0),
        "{text}"
    );
}
per_major!(what_would_be_lost_is_told_as_the_server_goes_on, v17);

fn a_report_tells_how_promises_were_kept_and_what_nobody_knows(major: u32) {
    let (site, mut cluster) = site(major);
    cluster.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    site.add_to_cluster("rpo = \"1d\"\nrto = \"1s\"\n");
    // A minute passes between two looks, whatever the machine needs for them.
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let start = begun.as_secs();
    let at = |minute: u64, args: &[&str]| {
        let clock = format!("{},{start},0", start + 60 * minute);
        let program = site.pitr().args(args).env("PITR_FAULT_CLOCK", clock);
        program.run()
    };
    let promises = |minute: u64| {
        let run = at(minute, &["report", "daily", "--format", "json"]);
        let report = run.json();
        let found = report["promises"].as_array().unwrap().clone();
        let of = |name: &str| found.iter().find(|one| one["promise"] == name).cloned();
        (of("rpo").unwrap(), of("rto").unwrap())
    };
    let seconds = |one: &serde_json::Value| {
        ["kept_s", "broken_s", "unknown_s"].map(|name| one[name].as_u64().unwrap())
    };
    for minute in 0..3 {
        at(minute, &["agent", "observe"]).success();
    }
    let (rpo, rto) = promises(2);
    // By default a recovery takes seconds.
    assert_eq!(seconds(&rpo), [120, 0, 0], "{rpo}");
    assert_eq!(seconds(&rto), [0, 120, 0], "{rto}");
    assert!(rto["worst_ms"].as_u64() > Some(1000) && rto["worst_time"].is_string());
    // A server that is down says nothing: that is no time in which the promise was kept.
    cluster.stop(Stop::Fast);
    at(3, &["agent", "observe"]);
    assert_eq!(seconds(&promises(3).0), [120, 0, 60]);
    // Nobody looks for half an hour.
    cluster.start();
    at(33, &["agent", "observe"]);
    at(34, &["agent", "observe"]);
    let (rpo, _) = promises(34);
    assert_eq!(seconds(&rpo), [180, 0, 60 + 30 * 60], "{rpo}");
    let text = at(34, &["report", "daily"]).stdout;
    let line = text.lines().find(|l| l.contains("rpo: 1 d")).unwrap();
    assert!(line.contains("8.82 %") && line.contains("31 min"), "{text}");
    let page = std::fs::read_to_string(site.sandbox().join("state/page.json")).unwrap();
    assert!(page.contains("last 7 days: rpo 1 d kept 8.82 %"), "{page}");
    // A history that cannot be read is no empty one, and keeps nothing else from being told.
    let history = site.sandbox().join("state/objectives/main.jsonl");
    std::fs::remove_file(&history).unwrap();
    std::fs::create_dir(&history).unwrap();
    let observed = at(35, &["agent", "observe"]);
    assert!(observed.code() != 0, "{observed}");
    observed.expect_stderr("main.jsonl");
    let report = at(35, &["report", "daily"]).expect_code(10);
    report
        .expect_stderr("read how promises were kept")
        .expect_stdout("Newest drills");
}
per_major!(
    a_report_tells_how_promises_were_kept_and_what_nobody_knows,
    v17
);

fn the_textfile_is_replaced_as_a_whole_and_tells_of_a_repository_that_is_gone(major: u32) {
    let (site, _cluster) = site(major);
    let pitr = site.pitr();
    let file = site.sandbox().join("pitr.prom");
    let run = |code: i32| {
        let run = pitr.clone().words("metrics --textfile").arg(&file).run();
        let run = run.expect_code(code);
        assert_eq!(run.stdout, "");
        std::fs::read_to_string(&file).unwrap()
    };
    let text = run(0);
    promtool(&["check", "metrics"], &text);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o644
    );
    assert!(
        text.ends_with('\n') && text.contains("pitr_repo_up{repo=\"local\"} 1"),
        "{text}"
    );
    let room = |name: &str| value(&text, &format!("pitr_repo_{name}_bytes{{repo=\"local\"}}"));
    assert!(
        room("fs") > room("free") && room("free") > Some(0.0),
        "{text}"
    );

    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let failed = pitr.clone().words("metrics --textfile").arg(&file).run();
    assert_ne!(failed.code(), 0, "{failed}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("pitr_repo_up{repo=\"local\"} 0"), "{text}");
    assert!(
        text.contains("pitr_archive_ready_segments"),
        "what the host knows stays: {text}"
    );
    assert!(!text.contains("pitr_gaps{"), "nobody knows of gaps: {text}");
    let status = "pitr_status{cluster=\"main\",check=\"recovery\"}";
    assert_eq!(value(&text, status), Some(3.0), "{text}");
    assert_eq!(value(&text, "pitr_repo_fs_bytes{repo=\"local\"}"), None);
    // A folder that is not there is an error that names the file.
    let nowhere = pitr
        .clone()
        .words("metrics --textfile /nowhere/pitr.prom")
        .run();
    nowhere.expect_code(1).expect_stderr("/nowhere/pitr.prom");
}
per_major!(
    the_textfile_is_replaced_as_a_whole_and_tells_of_a_repository_that_is_gone,
    v17
);

#[test]
fn j07_a_damaged_or_unwritable_file_of_counters_fails_no_backup() {
    let (site, _cluster) = site(17);
    let state = site.sandbox().join("state");
    let pitr = site.pitr();
    site.sandbox().file("state/counters.json", "{\"series\": [");
    let run = pitr.clone().words("backup --quiet").succeed();
    run.expect_stderr("counting begins anew");
    assert_eq!(
        value(&metrics(&pitr), &series("backup_success_total")),
        Some(1.0)
    );
    // A directory in the place of the lock.
    std::fs::remove_file(state.join("counters.lock")).unwrap();
    std::fs::create_dir(state.join("counters.lock")).unwrap();
    let run = pitr.clone().words("backup --quiet").succeed();
    run.expect_stderr("missing from the metrics");
}

/// Asked for as other exporters name them; each of these names is theirs.
fn the_names_of_other_exporters_are_there_on_request(major: u32) {
    let (site, cluster) = site(major);
    let pitr = site.pitr();
    let others = ["pgbackrest_", "barman_", "cnpg_", "walg_", "pg_stat_"];
    let has = |text: &str, prefix: &str| text.lines().any(|line| line.starts_with(prefix));
    let compat = |names: &str| {
        let run = pitr.clone().args(["metrics", "--compat", names]).run();
        let text = run.success().stdout;
        promtool(&["check", "metrics"], &text);
        text
    };
    let nothing = compat("walg,cnpg,barman,pgbackrest,walg");
    for (series, expected) in [
        ("pgbackrest_stanza_status{stanza=\"main\"}", Some(2.0)),
        (
            "pgbackrest_exporter_status{stanza=\"all-stanzas\"}",
            Some(1.0),
        ),
        ("barman_backups_total{server=\"main\"}", Some(0.0)),
        ("barman_last_backup{", None),
        (
            "walg_backups{backup_type=\"full\",cluster=\"main\"}",
            Some(0.0),
        ),
        ("walg_newest_basebackup{", None),
        ("cnpg_collector_first_recoverability_point{", None),
        ("pgbackrest_backup_since_last_completion_seconds{", None),
    ] {
        assert_eq!(
            value(&nothing, series),
            expected,
            "{series} of nothing\n{nothing}"
        );
    }
    cluster.sql("create table t (a int)");
    pitr.clone().words("backup --quiet").succeed();
    cluster.sql("insert into t values (1)");
    let second = pitr.clone().words("backup --incremental --json");
    let second = second.succeed().id();
    let pin = ["pin", &second, "--reason", "audit", "--confirm"];
    pitr.clone().args(pin).succeed();
    cluster.archive_now();

    // Off unless asked for, and only what is asked for.
    let text = metrics(&pitr);
    assert!(others.iter().all(|prefix| !has(&text, prefix)), "{text}");
    let text = compat("barman");
    assert!(has(&text, "barman_") && !has(&text, "walg_") && !has(&text, "pgbackrest_"));
    let names = "[agent]\nmetrics_compat = [\"pgbackrest\", \"barman\", \"cnpg\", \"walg\", \"postgres_exporter\"]\n";
    site.edit("[agent]\n", names);
    let text = metrics(&pitr);
    assert!(others.iter().all(|prefix| has(&text, prefix)), "{text}");

    // The counts of the archiver under each of their names.
    let archived = value(&text, "pitr_archive_pushed_total{cluster=\"main\"}");
    assert!(archived > Some(0.0), "{text}");
    for name in ["cnpg_pg_stat_archiver", "pg_stat_archiver"] {
        let of = |end: &str| value(&text, &format!("{name}_{end}{{cluster=\"main\"}}"));
        assert_eq!(of("archived_count"), archived, "{name}\n{text}");
        assert_eq!(of("failed_count"), Some(0.0));
        let age = of("last_archive_age").or(of("seconds_since_last_archival"));
        assert!((0.0..300.0).contains(&age.unwrap()), "{name}: {age:?}");
    }
    assert!(
        !has(&text, "cnpg_pg_stat_archiver_last_failed_time"),
        "none failed"
    );

    let info = pitr.clone().words("info --json").succeed().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap().clone();
    assert_eq!(backups.len(), 2);
    let bytes = |backup: usize, name: &str| backups[backup][name].as_f64();
    let pgbackrest = |family: &str, kind: &str| {
        let labels = format!("backup_type=\"{kind}\",block_incr=\"n\",stanza=\"main\"");
        value(&text, &format!("pgbackrest_backup_{family}{{{labels}}}"))
    };
    for kind in ["full", "diff", "incr"] {
        let age = pgbackrest("since_last_completion_seconds", kind).unwrap();
        assert!((0.0..600.0).contains(&age), "{age}");
        let newest = usize::from(kind == "incr");
        assert_eq!(
            pgbackrest("last_size_bytes", kind),
            bytes(newest, "size_bytes")
        );
        let stored = pgbackrest("last_repo_delta_bytes", kind);
        assert_eq!(stored, bytes(newest, "stored_bytes"));
        assert_eq!(pgbackrest("last_error_status", kind), Some(0.0));
    }
    for (series, expected) in [
        ("pgbackrest_stanza_status{stanza=\"main\"}".to_owned(), 0.0),
        ("pgbackrest_repo_status{cipher=\"none\",repo_key=\"1\",stanza=\"main\"}".to_owned(), 0.0),
        ("pgbackrest_stanza_backup_lock_status{stanza=\"main\"}".to_owned(), 0.0),
        (format!("pgbackrest_wal_archive_status{{database_id=\"1\",pg_version=\"{major}\",repo_key=\"1\",stanza=\"main\",wal_max=\"\",wal_min=\"\"}}"), 1.0),
        ("barman_backups_total{server=\"main\"}".to_owned(), 2.0),
        ("barman_up{server=\"main\",check=\"archiver_errors\"}".to_owned(), 1.0),
        ("barman_up{server=\"main\",check=\"systemid_coherence\"}".to_owned(), 1.0),
        ("cnpg_collector_up{cluster=\"main\"}".to_owned(), 1.0),
        ("walg_backups{backup_type=\"full\",cluster=\"main\"}".to_owned(), 1.0),
        ("walg_backups{backup_type=\"delta\",cluster=\"main\"}".to_owned(), 1.0),
        ("walg_basebackup_count{cluster=\"main\"}".to_owned(), 2.0),
        ("walg_wal_integrity_status{timeline_id=\"1\",timeline_hex=\"00000001\",cluster=\"main\"}".to_owned(), 1.0),
        ("walg_wal_verify_status{operation=\"integrity\",cluster=\"main\"}".to_owned(), 1.0),
        ("walg_storage_up{repo=\"local\"}".to_owned(), 1.0),
    ] {
        assert_eq!(value(&text, &series), Some(expected), "{series}\n{text}");
    }
    assert_eq!(
        value(&text, "barman_backup_size{server=\"main\",number=\"1\"}"),
        bytes(1, "size_bytes")
    );
    let last = value(&text, "walg_newest_basebackup{cluster=\"main\"}").unwrap();
    assert_eq!(
        value(&text, "barman_last_backup{server=\"main\"}"),
        Some(last)
    );
    assert!(value(&text, "barman_first_backup{server=\"main\"}").unwrap() < last);
    let ready = "cnpg_collector_pg_wal_archive_status{value=\"done\",cluster=\"main\"}";
    assert!(value(&text, ready).unwrap() > 0.0, "{text}");
    let count = value(
        &text,
        "cnpg_collector_pg_wal{value=\"count\",cluster=\"main\"}",
    );
    let size = value(
        &text,
        "cnpg_collector_pg_wal{value=\"size\",cluster=\"main\"}",
    );
    let segment = cluster.sql("select setting from pg_settings where name = 'wal_segment_size'");
    let segment: f64 = segment[0][0].as_ref().unwrap().parse().unwrap();
    assert_eq!(size.unwrap(), count.unwrap() * segment, "{text}");
    let pinned = text.lines().find(|line| {
        line.starts_with("walg_backup_info{") && line.contains(&format!("\"{second}\""))
    });
    let pinned = pinned.unwrap();
    assert!(
        pinned.contains("is_permanent=\"true\"") && pinned.contains("backup_type=\"delta\""),
        "{pinned}"
    );

    // WAL that is missing is told, and a repository that is away is no success.
    let archived = cluster.switch_wal();
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    let files = paths_below(site.repository());
    let missing = files.iter().find(|path| path.ends_with(&archived)).unwrap();
    std::fs::remove_file(missing).unwrap();
    let text = metrics(&pitr);
    for lost in [
        "walg_wal_integrity_status{timeline_id=\"1\",timeline_hex=\"00000001\",cluster=\"main\"}",
        "walg_wal_verify_status{operation=\"integrity\",cluster=\"main\"}",
    ] {
        assert_eq!(value(&text, lost), Some(0.0), "{text}");
    }
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let text = pitr.clone().arg("metrics").run().stdout;
    assert_eq!(
        value(&text, "pgbackrest_exporter_status{stanza=\"all-stanzas\"}"),
        Some(0.0),
        "{text}"
    );
    assert_eq!(value(&text, "walg_storage_up{repo=\"local\"}"), Some(0.0));
    assert!(!has(&text, "pgbackrest_stanza_status") && !has(&text, "barman_backups_total"));
    let unknown = pitr.clone().words("metrics --compat zabbix").run();
    unknown.expect_code(2).expect_stderr("pgbackrest");
    site.edit("\"cnpg\"", "\"nagios\"");
    let unknown = pitr.clone().arg("metrics").run();
    unknown
        .expect_code(3)
        .expect_stderr("\"nagios\" is no exporter whose names are known");
}
per_major!(the_names_of_other_exporters_are_there_on_request, v13 v17);

#[test]
fn rules_are_tested_by_promtool() {
    promtool(&["check", "rules", "rules.yml"], "");
    promtool(
        &["test", "rules", "rules_test.yml", "rules_days_test.yml"],
        "",
    );
}

#[test]
fn every_rule_has_a_firing_and_a_quiet_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/prometheus");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let cases = read("rules_test.yml") + &read("rules_days_test.yml");
    let rules = read("rules.yml");
    let rules = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let rules: BTreeSet<&str> = rules.collect();
    assert!(rules.len() > 40, "{rules:?}");
    for rule in rules {
        let is_quiet = cases.contains(&format!("- {{alertname: {rule},"));
        assert!(is_quiet, "{rule} has no quiet case");
        // increase() of a gauge that grows is no growth: the rule is there as dashboards have it.
        let fires = cases.contains(&format!("- alertname: {rule}\n"));
        assert!(fires || rule == "BackupSizeIncrease", "{rule} never fires");
    }
}

/// Names of metrics in an expression.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with("pitr_") || word.starts_with("backup_");
    words.filter(is_name).map(str::to_owned).collect()
}

/// Rules and dashboard ask for nothing that is not there: each name is a family of the source.
#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let nouns = [
        "mod",
        "alerts",
        "audit",
        "checks",
        "counts",
        "hosts",
        "progress",
        "repositories",
        "server",
        "stored",
    ];
    let source = nouns.map(|noun| read(&format!("src/operate/metrics/{noun}.rs")));
    let source = source.concat();
    let exists = |name: &str| source.contains(&format!("\"{name}\""));
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("contrib/grafana/pitr.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
    let mut names = BTreeSet::new();
    for target in targets {
        names.extend(named(target["expr"].as_str().unwrap()));
    }
    for rule in crate::metrics_rules::rules() {
        names.extend(named(&rule.expr));
    }
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        assert!(exists(name), "{name} is no metric");
    }
    // The documentation has them all.
    let docs = read("docs/metrics.md");
    let families = source
        .split('"')
        .filter(|part| named(part).len() == 1 && named(part).contains(*part));
    for family in families {
        assert!(
            docs.contains(&format!("`{family}`")),
            "{family} is not in docs/metrics.md"
        );
    }
}

#[test]
fn where_nothing_can_be_counted_no_count_is_shown() {
    // The harness has no room for caches.
    let (site, _cluster) = Site::with_cluster(17);
    site.pitr().words("backup --quiet").succeed();
    let run = site.pitr().arg("metrics").succeed();
    let run = run.expect_stderr("set state_dir in [agent]");
    assert!(!run.stdout.contains("backup_attempts_total"), "{run}");
    assert!(run.stdout.contains("backup_timestamp_seconds"), "{run}");
}

#[test]
fn the_check_of_nagios_tells_unknown_from_well() {
    let (site, _cluster) = site(17);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/nagios/check_pitr");
    let check = || {
        let program = Program::new(&script).arg("--config").arg(site.config());
        program.env("PITR", path_of("pitr")).privileged().run()
    };
    check()
        .expect_code(2)
        .expect_stdout("PITR CRITICAL: critical: there is no backup");
    site.pitr().words("backup --quiet").succeed();
    check()
        .expect_code(0)
        .expect_stdout("PITR OK: recovery: any moment");
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    check().expect_code(3).expect_stdout("PITR UNKNOWN");
}

#[test]
fn metrics_without_a_configuration_are_refused() {
    pitr().arg("metrics").exits(3);
}
