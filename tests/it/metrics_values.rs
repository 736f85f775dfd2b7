//! The values of metrics are those that the server, the repository and other commands tell.

use pitr::pg::lsn::Lsn;
use pitr::pg::time::TimestampTz;
use rustix::process::Signal;
use serde_json::Value;

use crate::alert_conditions::{later, observe};
use crate::common::{Cluster, Sandbox, Site, list_of, paths_below, user, wait_until};
use crate::metrics::{metrics, site, value};
use crate::per_major;
use crate::sealed::Sealed;

const SEGMENT: f64 = 1_048_576.0;

/// A time of `pitr info` in seconds of Unix time.
fn seconds(time: &Value) -> f64 {
    let time: TimestampTz = time.as_str().unwrap().parse().unwrap();
    time.unix_micros().unwrap() as f64 / 1e6
}

/// A value of the only cluster, which has these labels besides.
fn of_main(text: &str, name: &str, more: &str) -> Option<f64> {
    value(text, &format!("{name}{{cluster=\"main\"{more}}}"))
}

fn lsn(text: &str) -> f64 {
    text.parse::<Lsn>().unwrap().0 as f64
}

/// Whether a time is now, as far as a test can tell.
fn is_now(time: Option<f64>) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - time.unwrap();
    (-5.0..300.0).contains(&age)
}

/// The cluster of `pitr info`.
fn info(site: &Site) -> Value {
    site.pitr().words("info --json").run().json()["clusters"][0].clone()
}

const LOCAL: &str = ",repo=\"local\"";

/// A site with backups of a cluster and of files, by a job and by hand, which were checked, drilled and expired.
fn proven() -> (Site, Cluster) {
    let (site, cluster) = site(17);
    let source = site.sandbox().dir("source");
    std::fs::write(source.join("file"), "content").unwrap();
    site.add_repository("far", "");
    let sections = format!(
        "\n[files.up]\nsource = \"{}\"\nidentity = \"here\"\n\
         [jobs.nightly]\nrun = \"backup --full\"\nschedule = \"0 2 * * *\"\n\
         [jobs.far]\nrun = \"backup --repository far\"\nschedule = \"0 3 * * 0\"\n\
         [jobs.never]\nrun = \"files backup up --repository far\"\nschedule = \"0 4 * * 0\"\n",
        source.display()
    );
    site.add(&sections);
    let run = |arguments: &[&str]| site.pitr().args(arguments).succeed();
    cluster.sql("create table t (a int)");
    run(&["agent", "run", "nightly"]);
    run(&["backup", "--incremental", "--quiet"]);
    cluster.archive_now();
    for _ in 0..2 {
        run(&["files", "backup", "up", "--quiet"]);
        std::fs::write(source.join("file"), "other").unwrap();
    }
    run(&["verify", "--quiet"]);
    run(&[
        "expire",
        "--keep",
        "9",
        "--confirm",
        "--quiet",
        "--repository",
        "local",
    ]);
    let id = info(&site)["backups"][0]["id"].clone();
    let pin = ["pin", "--reason", "x", "--confirm", "--quiet"];
    run(&[&pin[..], &[id.as_str().unwrap()]].concat());
    let folder = Sandbox::new("drills");
    let programs = cluster.bin("initdb").unwrap();
    let drill = site.pitr().words("drill --quiet --dir");
    let drill = drill.arg(folder.path()).arg("--bin");
    drill.arg(programs.parent().unwrap()).succeed();
    (site, cluster)
}

#[test]
fn what_is_proven_of_backups_has_the_values_that_info_tells() {
    let (site, cluster) = proven();
    let text = metrics(&site.pitr());
    let of = |name: &str, more: &str| of_main(&text, name, more);
    let shown = info(&site);
    // Backups, by type.
    for (at, kind) in [(0, "full"), (1, "incr")] {
        let backup = &shown["backups"][at];
        assert!(backup["id"].as_str().unwrap().ends_with(kind));
        let labels = format!(",type=\"{kind}\"{LOCAL}");
        let newest = of("pitr_backup_last_success_timestamp_seconds", &labels);
        let stop = Some(seconds(&backup["stop_time"]));
        assert_eq!(newest, stop, "{kind}\n{text}");
        let labels = format!(",type=\"{kind}\",component=\"postgres\"{LOCAL}");
        assert_eq!(of("backup_timestamp_seconds", &labels), stop);
        let stored = backup["stored_bytes"].as_f64();
        assert_eq!(of("backup_size_bytes", &labels), stored);
        buckets(&text, &format!("cluster=\"main\"{labels}"));
    }
    // Content beside clusters has both types, too, and the newest one hides no other.
    for kind in ["full", "incr"] {
        let labels =
            format!("{{cluster=\"up\",type=\"{kind}\",component=\"files\",repo=\"local\"}}");
        for name in ["backup_timestamp_seconds", "backup_size_bytes"] {
            assert!(
                value(&text, &format!("{name}{labels}")) > Some(0.0),
                "{name}{labels}\n{text}"
            );
        }
        let done = value(&text, &format!("backup_success_total{labels}"));
        assert_eq!(done, Some(1.0), "{text}");
    }
    // Series stand at 0 in a repository that a job names.
    for known in [
        "{cluster=\"main\",type=\"incr\",component=\"postgres\",repo=\"far\"}",
        "{cluster=\"up\",type=\"full\",component=\"files\",repo=\"far\"}",
    ] {
        assert_eq!(
            value(&text, &format!("backup_attempts_total{known}")),
            Some(0.0),
            "{text}"
        );
    }
    window(&text, &shown);
    for (name, more) in [
        ("pitr_drill_last_success_timestamp_seconds", LOCAL),
        (
            "pitr_verify_oldest_read_timestamp_seconds",
            ",repo=\"local\",depth=\"full\"",
        ),
        ("pitr_expire_last_success_timestamp_seconds", ""),
    ] {
        assert!(is_now(of(name, more)), "{name}\n{text}");
    }
    assert_eq!(of("pitr_drill_last_result", LOCAL), Some(0.0));
    let rto = of("pitr_drill_rto_seconds", LOCAL);
    assert!(rto > Some(0.0) && rto < Some(300.0), "{rto:?}");
    assert_eq!(of("pitr_pins", LOCAL), Some(1.0));
    assert_eq!(of("pitr_verify_damaged_objects", LOCAL), Some(0.0));
    let ended = value(
        &text,
        "pitr_job_last_success_timestamp_seconds{job_name=\"nightly\"}",
    );
    assert!(is_now(ended), "{text}");
    let running = value(&text, "pitr_job_running{job_name=\"nightly\"}");
    assert_eq!(running, Some(0.0), "{text}");
    assert!(!text.contains("pitr_job_last_result{job_name=\"never\"}"));
    types(&text);

    // Then a segment is missing, and a pack is damaged.
    assert_eq!(of("pitr_gap_bytes", LOCAL), Some(0.0));
    let archived = cluster.switch_wal();
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    let files = paths_below(site.repository());
    let missing = files.iter().find(|path| path.ends_with(&archived)).unwrap();
    std::fs::remove_file(missing).unwrap();
    let packs = paths_below(&site.cluster_folder().join("packs"));
    let pack = packs.iter().find(|path| path.is_file()).unwrap();
    let mut bytes = std::fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    user::own(pack);
    assert_ne!(site.pitr().words("verify --quiet").run().code(), 0);
    let text = metrics(&site.pitr());
    assert_eq!(of_main(&text, "pitr_gap_bytes", LOCAL), Some(SEGMENT));
    assert_eq!(of_main(&text, "pitr_gap_inside_window", LOCAL), Some(1.0));
    let damaged = of_main(&text, "pitr_verify_damaged_objects", LOCAL);
    assert!(damaged > Some(0.0), "{text}");
}

/// Each bucket holds what the one before it holds, and the last one all.
fn buckets(text: &str, labels: &str) {
    let of = |end: &str, more: &str| {
        let series = format!("backup_duration_seconds_hist_{end}{{{labels}{more}}}");
        value(text, &series).expect(&series)
    };
    let bounds = [
        "10", "60", "300", "900", "1800", "3600", "7200", "14400", "43200", "+Inf",
    ];
    let counts = bounds.map(|bound| of("bucket", &format!(",le=\"{bound}\"")));
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!((counts[9], of("count", "")), (1.0, 1.0), "{text}");
    let took = value(text, &format!("backup_duration_seconds{{{labels}}}"));
    assert_eq!(Some(of("sum", "")), took, "the only run");
    let within = bounds.iter().zip(counts).filter(|(_, count)| *count > 0.0);
    let first = within.map(|(bound, _)| *bound).next().unwrap();
    assert!(
        first == "+Inf" || took <= first.parse().ok(),
        "{first}: {took:?}"
    );
}

fn window(text: &str, shown: &Value) {
    let window = list_of(&shown["recovery_windows"]).last().unwrap();
    let of = |name: &str| of_main(text, name, ",repo=\"local\",timeline=\"1\"");
    let (from, to) = (seconds(&window["from"]), seconds(&window["to"]));
    assert_eq!(
        of("pitr_window_start_timestamp_seconds"),
        Some(from),
        "{text}"
    );
    assert_eq!(of("pitr_window_end_timestamp_seconds"), Some(to), "{text}");
    let length = of("pitr_window_seconds").unwrap();
    assert!((length - (to - from)).abs() < 0.001, "{length}");
}

fn types(text: &str) {
    for (name, kind) in [
        ("backup_success_total", "counter"),
        ("backup_attempts_total", "counter"),
        ("backup_failures_total", "counter"),
        ("backup_failure_total", "counter"),
        ("backup_duration_seconds", "gauge"),
        ("backup_duration_seconds_hist", "histogram"),
        ("backup_size_bytes", "gauge"),
        ("backup_timestamp_seconds", "gauge"),
        ("pitr_archive_pushed_total", "counter"),
        ("pitr_build_info", "gauge"),
    ] {
        let line = format!("# TYPE {name} {kind}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
}

#[test]
fn archiving_and_the_server_have_the_values_that_the_server_tells() {
    let (site, cluster) = site(17);
    let pitr = site.pitr();
    cluster.sql("create table t (a int)");
    pitr.clone().words("backup --quiet").succeed();
    cluster.archive_now();
    cluster.sql("insert into t select generate_series(1, 1000)");
    let before = lsn(&cluster.insert_lsn());
    let text = metrics(&pitr);
    let after = lsn(&cluster.insert_lsn());
    let of = |name: &str| of_main(&text, name, "");
    let lag = of("pitr_archive_lag_bytes").unwrap();
    assert_eq!(of("pitr_rpo_bytes"), Some(lag));
    let end = of("pitr_archive_last_lsn").unwrap() + lag;
    assert!(
        lag > 10_000.0 && (before..=after).contains(&end),
        "{before} {end} {after}"
    );
    let offset = of("pitr_server_clock_offset_seconds").unwrap();
    assert!(offset.abs() < 2.0, "{offset}");
    let wal = cluster.value("select sum(size) from pg_ls_waldir()");
    assert_eq!(of("pitr_pg_wal_bytes"), wal.parse().ok());
    let free = of("pitr_pg_wal_fs_free_bytes").unwrap();
    assert!(free > 0.0);
    assert_eq!(of("pitr_archive_oldest_ready_seconds"), Some(0.0));
    assert_eq!(of("pitr_pg_wal_full_in_seconds"), None, "{text}");
    assert_eq!(value(&text, "pitr_metrics_errors"), Some(0.0));

    // A file that waits, and a disk that filled by as much as is left within a quarter of an hour.
    cluster.set("archive_command", "false");
    let name = cluster.switch_wal();
    let ready = cluster
        .pgdata()
        .join(format!("pg_wal/archive_status/{name}.ready"));
    wait_until("the file waits", || ready.exists());
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(1200);
    std::fs::File::open(&ready)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let counters = site.sandbox().join("state/counters.json");
    let text = std::fs::read(&counters).unwrap();
    let mut book: Value = serde_json::from_slice(&text).unwrap();
    let noted = &mut book["tallies"]["pg_wal_free"]["main"];
    let first = noted[0][1].as_u64().unwrap();
    *noted = serde_json::json!([[noted[0][0], 2 * first]]);
    std::fs::write(&counters, book.to_string()).unwrap();
    user::own(&counters);
    let text = metrics(&later(&pitr, 900));
    let waits = of_main(&text, "pitr_archive_oldest_ready_seconds", "").unwrap();
    assert!((2100.0..2400.0).contains(&waits), "{waits}");
    let full = of_main(&text, "pitr_pg_wal_full_in_seconds", "").unwrap();
    assert!((600.0..1500.0).contains(&full), "{full}");

    // The disk of a repository, of which half is left after two days.
    let rooms = site.sandbox().join("state/rooms.json");
    let mut book: Value = serde_json::from_slice(&std::fs::read(&rooms).unwrap()).unwrap();
    let free = book[0]["notes"][0][1].as_u64().unwrap();
    book[0]["notes"][0][1] = (2 * free).into();
    std::fs::write(&rooms, book.to_string()).unwrap();
    user::own(&rooms);
    let text = metrics(&later(&pitr, 172_800));
    let full = value(&text, "pitr_repo_full_in_seconds{repo=\"local\"}");
    assert!(full > Some(100_000.0) && full < Some(300_000.0), "{text}");

    // A repository that is away is a part that could not be looked at.
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let text = pitr.clone().arg("metrics").run().stdout;
    assert!(value(&text, "pitr_metrics_errors") > Some(0.0), "{text}");
}

#[test]
fn a_host_that_only_writes_tells_when_its_backups_ended() {
    let (sealed, _cluster) = Sealed::archived(17);
    let state = sealed.sandbox.dir("state");
    let source = sealed.sandbox.dir("source");
    std::fs::write(source.join("file"), "content").unwrap();
    let sections = format!(
        "\n[files.up]\nsource = \"{}\"\nidentity = \"here\"\n[agent]\nstate_dir = \"{}\"\n",
        source.display(),
        state.display()
    );
    crate::common::append(sealed.config("writer"), &sections);
    let host = || sealed.on("writer");
    host().words("backup --quiet").succeed();
    let files = host().words("files backup up --quiet");
    files.succeed();
    // Nothing of them is counted here, as where another host took them.
    std::fs::remove_file(state.join("counters.json")).unwrap();
    let text = metrics(&host());
    for (cluster, component) in [("main", "postgres"), ("up", "files")] {
        let labels = format!(
            "{{cluster=\"{cluster}\",type=\"full\",component=\"{component}\",repo=\"local\"}}"
        );
        let of = |name: &str| value(&text, &format!("{name}{labels}"));
        assert_eq!(of("backup_attempts_total"), Some(0.0), "{text}");
        assert!(is_now(of("backup_timestamp_seconds")), "{text}");
    }
    let labels = ",type=\"full\",repo=\"local\"";
    let newest = of_main(&text, "pitr_backup_last_success_timestamp_seconds", labels);
    assert!(is_now(newest), "{text}");
}

/// The conditions of the last look, and how bad each is.
fn conditions(site: &Site) -> Vec<(String, String)> {
    let page = std::fs::read_to_string(site.sandbox().join("state/page.json")).unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    let all = page["conditions"].as_array().unwrap().iter();
    let text = |one: &Value| one.as_str().unwrap().to_owned();
    all.map(|one| (text(&one["id"]), text(&one["severity"])))
        .collect()
}

#[test]
fn j76_a_synchronous_receiver_that_is_away_is_critical_before_one_that_delays_nobody() {
    let (site, mut cluster) = site(17);
    let pitr = site.pitr();
    let journal = site.sandbox().dir("journal");
    site.add(&format!(
        "\n[clusters.main.receive]\njournal = \"{}\"\n",
        journal.display()
    ));
    cluster.sql("create table t (a int)");
    pitr.clone().words("backup --quiet").succeed();
    let of =
        |text: &str, name: &str| of_main(text, &format!("pitr_receiver_{name}"), ",slot=\"pitr\"");
    let receiver = pitr.clone().words("receive --create-slot").spawn();
    let mut text = String::new();
    wait_until("no commit waits for it", || {
        text = metrics(&pitr);
        of(&text, "sync_state") == Some(0.0) && of(&text, "connected") == Some(1.0)
    });
    cluster.set("synchronous_standby_names", "pitr");
    wait_until("commits wait for it", || {
        of(&metrics(&pitr), "sync_state") == Some(3.0)
    });
    cluster.sql("insert into t select generate_series(1, 1000)");
    let position = lsn(&cluster.value("select pg_current_wal_flush_lsn()"));
    wait_until("it is safe", || {
        text = metrics(&pitr);
        of(&text, "flushed_lsn") >= Some(position)
    });
    let known = |name| of(&text, name).unwrap();
    assert!(known("received_lsn") >= known("flushed_lsn"), "{text}");
    assert!(known("flushed_lsn") >= known("uploaded_lsn") && known("uploaded_lsn") > 0.0);
    let lag = known("received_lsn") - known("uploaded_lsn");
    assert!(
        (0.0..=lag + SEGMENT).contains(&known("lag_bytes")),
        "{text}"
    );
    let rpo = of_main(&text, "pitr_rpo_seconds", "");
    assert!(rpo < Some(5.0), "{rpo:?}");

    receiver.ended_by(Signal::TERM);
    text = metrics(&pitr);
    assert_eq!(of(&text, "connected"), Some(0.0), "{text}");
    assert_eq!(of(&text, "sync_state"), None, "nobody receives: {text}");
    let state = ("main/receiver/state".to_owned(), "critical".to_owned());
    observe(&later(&pitr, 60));
    let found = conditions(&site);
    assert!(found.contains(&state), "{found:?}");
    // Nobody waits for it any more.
    cluster.sql("alter system reset synchronous_standby_names");
    cluster.reload();
    wait_until("no commit waits", || {
        of(&metrics(&pitr), "sync_state") == Some(0.0)
    });
    observe(&later(&pitr, 60));
    let found = conditions(&site);
    assert!(!found.contains(&state), "{found:?}");
    cluster.stop(crate::common::Stop::Fast);
}

fn j77_a_standby_tells_how_far_it_lags_and_not_how_idle_its_primary_is(major: u32) {
    let (site, mut primary) = site(major);
    let standby = Cluster::builder(major).standby_of(&primary).start();
    primary.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    primary.archive_now();
    let lag = |text: &str| of_main(text, "pitr_replication_lag_seconds", "");
    assert_eq!(lag(&metrics(&site.pitr())), None, "a primary has none");
    site.edit(&primary.conninfo("postgres"), &standby.conninfo("postgres"));
    let mut text = String::new();
    wait_until("it has everything", || {
        text = metrics(&site.pitr());
        lag(&text) == Some(0.0)
    });
    standby.sql("select pg_wal_replay_pause()");
    primary.sql("insert into t values (1)");
    primary.archive_now();
    wait_until("it lags", || lag(&metrics(&site.pitr())) > Some(1.0));
    // Nothing streams in any more: what is archived is all that there is.
    standby.sql("select pg_wal_replay_resume()");
    primary.stop(crate::common::Stop::Fast);
    wait_until("it has what is archived", || {
        lag(&metrics(&site.pitr())) == Some(0.0)
    });
}
per_major!(
    j77_a_standby_tells_how_far_it_lags_and_not_how_idle_its_primary_is,
    v13 v17
);
