//! Limits: bandwidth that processes share and WAL does not pay for, and a backup that slows down for a busy server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::proxy::{Proxy, Way};
use crate::common::{
    Cluster, PATIENCE, Program, Sandbox, Site, bin, paths_below, pitr, user, wait_until,
};
use crate::per_major;

const MIB: u64 = 1 << 20;

/// Writes lines into the section of the cluster, and of the repository.
fn configure(site: &Site, cluster: &str, repository: &str) {
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (before, after) = config.split_once("[repositories.").unwrap();
    let (name, rest) = after.split_once("]\n").unwrap();
    let before = before.replace("[clusters.main]\n", &format!("[clusters.main]\n{cluster}"));
    let text = format!("{before}[repositories.{name}]\n{repository}{rest}");
    std::fs::write(site.config(), text).unwrap();
}

fn caches(site: &Site) -> (PathBuf, String) {
    let caches = site.sandbox().dir("caches");
    let line = format!("cache_dir = \"{}\"\n", caches.display());
    (caches, line)
}

/// A cluster with some MiB that do not compress.
fn filled(major: u32) -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql(
        "create table noise as select decode(string_agg(md5(random()::text), ''), 'hex') as b
         from generate_series(1, 40) s, generate_series(1, 20000) g group by g",
    );
    cluster.archive_now();
    (site, cluster)
}

fn timed(program: &Program) -> (crate::common::Run, Duration) {
    let begun = Instant::now();
    let run = program.succeed();
    (run, begun.elapsed())
}

/// Bytes of the packs.
fn packs(repository: &Path) -> u64 {
    let files = paths_below(repository).into_iter();
    let packs = files.filter(|path| path.to_str().unwrap().contains("/packs/"));
    packs.map(|path| path.metadata().unwrap().len()).sum()
}

fn restore(site: &Site, to: &Path, more: &[&str]) -> Program {
    let program = site.pitr().restore_to(to).arg("--json");
    program.args(more).timeout(20 * PATIENCE)
}

#[test]
fn b16_processes_share_the_limit_of_a_repository_and_wal_has_none() {
    let (site, cluster) = filled(17);
    let (caches, line) = caches(&site);
    let (run, _) = timed(&site.pitr().words("backup --json"));
    let id = run.id();
    cluster.archive_now();
    let bytes = packs(site.repository());
    assert!(bytes > 8 * MIB, "{bytes}");
    // One restore takes four seconds at that rate.
    let rate = bytes / 4;
    configure(&site, &line, &format!("max_rate = {rate}\n"));
    let (run, took) = timed(&restore(&site, &site.sandbox().join("one"), &[]));
    assert!(took >= Duration::from_millis(3500), "{took:?} {run}");
    run.expect_stderr("shared with the other");
    // The file is closed to others, and named for no place.
    let files = paths_below(&caches.join("rate"));
    assert_eq!(files.len(), 1, "{files:?}");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&caches.join("rate")), mode(&files[0])),
        (0o700, 0o600)
    );

    // Two at once take twice as long, and WAL is archived and fetched meanwhile as if they were not there.
    let begun = Instant::now();
    let mut both: Vec<_> = ["two", "three"]
        .map(|name| restore(&site, &site.sandbox().join(name), &[]).spawn())
        .into();
    cluster.sql("create table more as select md5(g::text) from generate_series(1, 20000) g");
    let name = cluster.archive_now();
    let target = site.sandbox().join("fetched");
    site.restore().arg(&name).arg(&target).succeed();
    let wal_took = begun.elapsed();
    assert!(
        !both.iter_mut().all(|running| running.is_done()),
        "{wal_took:?}"
    );
    for running in both {
        running.wait().success();
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(7000), "{took:?}");

    // Verify is paced, too; "none" sets the limit aside, and a limit of the command's own holds besides it.
    let verify = |more: &[&str]| timed(&site.pitr().args(["verify", "--backup", &id]).args(more));
    let (run, took) = verify(&[]);
    assert!(took >= Duration::from_millis(3500), "{took:?}");
    run.expect_stderr("shared with the other");
    let (free, _) = verify(&["--max-rate", "none"]);
    assert!(!free.stderr.contains("shared with the other"), "{free}");
    let half = format!("{}B", rate / 2);
    let (_, slow) = verify(&["--max-rate", &half]);
    assert!(slow >= Duration::from_millis(7000), "{slow:?}");

    // A drill restores by the same limit.
    let folder = Sandbox::new("drills");
    let initdb = bin(17, "initdb").unwrap();
    let drill = site.pitr().words("drill --dir").arg(folder.path());
    let drill = drill.arg("--bin").arg(initdb.parent().unwrap());
    let (run, took) = timed(&drill.timeout(20 * PATIENCE));
    run.expect_stderr("shared with the other");
    assert!(took >= Duration::from_millis(3500), "{took:?}");
}

#[test]
fn b16_a_limit_for_some_hours_leaves_the_others_free() {
    let (site, _cluster) = filled(15);
    timed(&site.pitr().words("backup"));
    let (_, line) = caches(&site);
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let hour = seconds.unwrap().as_secs() / 3600 % 24;
    let bytes = packs(site.repository());
    // Six hours from now, and six hours ago in the zone of the second run.
    let hours = format!("{:02}:00-{:02}:00", (hour + 5) % 24, (hour + 8) % 24);
    let limit = |rate: u64| format!("max_rate = {rate}\n");
    let verify = |zone: &str| timed(&site.pitr().arg("verify").env("TZ", zone));
    let hours_line = format!("max_rate_hours = \"{hours}\"\n");
    configure(&site, &line, &(limit(bytes / 1000) + &hours_line));
    let (run, took) = verify("UTC");
    assert!(took < Duration::from_secs(200), "{took:?}");
    run.expect_stderr(&format!("a second from {hours}, shared with the other"));
    // By POSIX, this zone is ahead of UTC.
    site.edit(&limit(bytes / 1000), &limit(bytes / 4));
    let (run, took) = verify("XXX-6");
    assert!(took >= Duration::from_millis(3500), "{took:?} {run}");
}

#[test]
fn max_rate_of_the_command_line_holds_where_nothing_is_configured() {
    let (site, _cluster) = filled(16);
    timed(&site.pitr().words("backup"));
    let bytes = packs(site.repository());
    let rate = format!("{}B", bytes / 3);
    let least = Duration::from_millis(2600);
    let to = site.sandbox().join("to");
    let (run, took) = timed(&restore(&site, &to, &["--max-rate", &rate]));
    assert!(took >= least, "{took:?} {run}");
    let (_, took) = timed(&site.pitr().args(["verify", "--max-rate", &rate]));
    assert!(took >= least, "{took:?}");
    let second = site.add_repository("second", "");
    let sync = site.pitr().words("repo sync --to second");
    let (_, took) = timed(&sync.args(["--max-rate", &rate]));
    assert!(took >= least, "{took:?}");
    assert_eq!(packs(&second), bytes);
    for wrong in ["0", "10", "fast"] {
        let run = site.pitr().args(["verify", "--max-rate", wrong]).run();
        run.expect_code(2);
    }
}

#[test]
fn a_backup_keeps_the_limit_of_its_repository() {
    let (site, cluster) = filled(15);
    let (run, _) = timed(&site.pitr().words("backup --json"));
    let stored = run.json()["stored_bytes"].as_u64().unwrap();
    let (_, line) = caches(&site);
    configure(&site, &line, &format!("max_rate = {}\n", stored / 4));
    for method in ["stream", "local"] {
        let backup = site.pitr().args(["backup", "--method", method]);
        let running = backup.timeout(20 * PATIENCE).spawn();
        let begun = Instant::now();
        let archived = cluster.archive_now();
        assert!(!archived.is_empty());
        running.wait().success();
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(3300), "{method}: {took:?}");
    }
}

#[test]
fn b16_where_no_file_can_be_shared_the_limit_holds_and_that_is_said() {
    let (site, _cluster) = filled(14);
    timed(&site.pitr().words("backup"));
    let rate = packs(site.repository()) / 2;
    let (caches, line) = caches(&site);
    configure(&site, &line, &format!("max_rate = {rate}\n"));
    let victim = site.sandbox().dir("victim");
    let place = caches.join("rate");
    let check = |cause: &str| {
        let (run, took) = timed(&site.pitr().words("verify"));
        assert!(took >= Duration::from_millis(1600), "{took:?} {run}");
        run.expect_stderr("holds for this process alone")
            .expect_stderr(cause);
    };
    // Another user could have put anything there.
    std::os::unix::fs::symlink(&victim, &place).unwrap();
    check("rate");
    assert!(paths_below(&victim).is_empty());
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    user::own(&place);
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
    check("must belong to this account alone");
    std::fs::remove_dir(&place).unwrap();
    std::fs::write(&place, "a file").unwrap();
    check("rate");
}

/// A backup goes on slowly while WAL waits to be archived, and at full speed once it does not.
fn b17_a_backup_slows_down_while_wal_waits(major: u32) {
    let (site, cluster) = filled(major);
    configure(&site, "backoff = { wal_lag = \"4MiB\" }\n", "");
    let quick = site.pitr().words("backup --json").succeed();
    assert_eq!(quick.json()["held_back"]["slowed_ms"], 0, "{quick}");
    let command = cluster.value("show archive_command");
    cluster.set("archive_command", "false");
    for _ in 0..8 {
        cluster.sql("create table if not exists x (a int); insert into x values (1)");
        cluster.switch_wal();
    }
    let method = if major.is_multiple_of(2) {
        "local"
    } else {
        "stream"
    };
    let backup = site.pitr().args(["backup", "--json", "--method", method]);
    let backup = backup
        .words("--wal-wait 10m --max-rate 4MiB")
        .timeout(20 * PATIENCE);
    let running = backup.spawn();
    wait_until("the backup slows down", || {
        running.stderr().contains("the backup slows down")
    });
    cluster.set("archive_command", &command);
    let run = running.wait().success();
    let held_back = &run.json()["held_back"];
    assert!(held_back["slowed_ms"].as_u64().unwrap() > 0, "{run}");
    assert!(held_back["wal_lag_ms"].as_u64().unwrap() > 0, "{run}");
    assert_eq!(held_back["latency_ms"], 0, "{run}");
    let most = held_back["most_wal_lag_bytes"].as_u64().unwrap();
    assert!(most >= 7 * MIB && most.is_multiple_of(MIB), "{run}");
    run.expect_stderr("of WAL wait to be archived");
}
per_major!(b17_a_backup_slows_down_while_wal_waits, v13 v19);

#[test]
fn b17_a_backup_slows_down_while_answers_take_long() {
    let (site, cluster) = filled(17);
    configure(&site, "backoff = { latency = \"100ms\" }\n", "");
    // The connection that compares WAL is slow, too.
    cluster.set("wal_keep_size", "512MB");
    let proxy = Proxy::to(cluster.port());
    proxy.delay(Way::ToClient, Duration::from_millis(150));
    let config = std::fs::read_to_string(site.config()).unwrap();
    let near = config.lines().find(|l| l.starts_with("conninfo")).unwrap();
    let far = format!("conninfo = \"{}\"", proxy.conninfo());
    let far = site.sandbox().file("far.toml", config.replace(near, &far));
    let backup = pitr().arg("--config").arg(&far);
    let backup = backup.words("backup --json --method local --max-rate 8MiB");
    let running = backup.timeout(20 * PATIENCE).spawn();
    // The WAL that the backup compares goes the same way, and would take minutes.
    wait_until("the backup slows down", || {
        running.stderr().contains("slows down")
    });
    proxy.delay(Way::ToClient, Duration::ZERO);
    let run = running.wait().success();
    let held_back = &run.json()["held_back"];
    assert!(held_back["slowed_ms"].as_u64().unwrap() > 0, "{run}");
    assert!(
        held_back["most_latency_ms"].as_u64().unwrap() >= 150,
        "{run}"
    );
    assert_eq!(held_back["wal_lag_ms"], 0, "{run}");
    run.expect_stderr("an answer of the server took");
}
