//! Commands that run, as `pitr info`, the metrics and the page of other processes see them.

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::answer;
use crate::backup_faults::slow;
use crate::common::{PATIENCE, Program, Running, Site, wait_until};

/// Lets the commands of a site keep state, and an agent serve; the port.
fn served(site: &Site) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    site.keep_state();
    site.add(&format!("listen = \"127.0.0.1:{port}\"\n"));
    port
}

fn spawned(program: Program) -> Running {
    program.timeout(20 * PATIENCE).spawn()
}

/// Commands that run, as `pitr info` tells.
fn running(site: &Site) -> Vec<Value> {
    let info = site.pitr().words("info --json").run().json();
    info["running"].as_array().unwrap().clone()
}

/// Waits until a command has done part of its phase, as `pitr info` sees it.
fn wait_for(site: &Site, command: &str) -> Value {
    let mut seen = Value::Null;
    wait_until("it is seen", || {
        let found = running(site)
            .into_iter()
            .find(|one| one["command"] == command);
        seen = found.unwrap_or_default();
        seen["left_s"].is_u64()
    });
    seen
}

fn sample(site: &Site, series: &str) -> Option<f64> {
    let text = site.pitr().words("metrics").run().stdout;
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_backup_and_a_restore_that_run_are_seen_by_other_processes_until_they_end() {
    let (site, _cluster) = slow();
    let port = served(&site);
    assert!(running(&site).is_empty());
    assert_eq!(sample(&site, "pitr_restore_running"), Some(0.0));
    let limited = [
        "backup",
        "--quiet",
        "--max-rate",
        "256KiB",
        "--wal-wait",
        "10m",
    ];
    let backup = spawned(site.pitr().args(limited));
    let seen = wait_for(&site, "backup");
    assert_eq!(seen["object"], "main", "{seen}");
    let (done, total) = (seen["done_bytes"].as_u64(), seen["total_bytes"].as_u64());
    assert!(Some(0) < done && done < total, "{seen}");
    let ratio = "pitr_backup_progress_ratio{cluster=\"main\",type=\"full\",component=\"postgres\"";
    let ratio = sample(&site, ratio).expect("a series");
    assert!(ratio > 0.0 && ratio < 1.0, "{ratio}");
    let of_backup = |name: &str| {
        let labels = "{cluster=\"main\",type=\"full\",component=\"postgres\"";
        sample(&site, &format!("pitr_backup_{name}{labels}"))
    };
    assert_eq!(of_backup("total_bytes"), total.map(|bytes| bytes as f64));
    let now = of_backup("done_bytes");
    assert!(now >= done.map(|bytes| bytes as f64) && now < of_backup("total_bytes"));
    assert!(of_backup("left_seconds") > Some(0.0));
    let stanza = |name: &str| {
        let text = site.pitr().words("metrics --compat pgbackrest").run();
        let series = format!("pgbackrest_stanza_{name}{{stanza=\"main\"}} ");
        let line = text
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(&series));
        line.map(|value| value.parse::<f64>().unwrap())
    };
    assert!(stanza("backup_complete_bytes") >= now);
    assert_eq!(stanza("backup_total_bytes"), of_backup("total_bytes"));
    assert_eq!(stanza("restore_lock_status"), Some(0.0));
    assert_eq!(stanza("restore_total_bytes"), Some(0.0));
    let told = site.pitr().arg("info").run();
    assert!(told.stdout.contains("backup main runs since "), "{told}");

    let _agent = spawned(site.pitr().arg("agent"));
    let state = || {
        let (_, body) = answer(port, "GET /api/state HTTP/1.1\r\nHost: localhost\r\n", "")?;
        serde_json::from_str::<Value>(&body).ok()
    };
    wait_until("the page shows it", || {
        state().is_some_and(|state| state["running"][0]["percent"].is_u64())
    });
    backup.ended_by(Signal::KILL);
    assert!(
        running(&site).is_empty(),
        "its file is there, and it is gone"
    );
    assert_eq!(state().unwrap()["running"], Value::Array(Vec::new()));

    site.pitr().words("backup --quiet").succeed();
    let to = site.sandbox().join("back");
    let to = to.to_str().unwrap();
    let limited = ["restore", "--to", to, "--max-rate", "1MiB", "--quiet"];
    let restore = spawned(site.pitr().args(limited));
    let seen = wait_for(&site, "restore");
    assert!(seen["phase"].is_string(), "{seen}");
    assert_eq!(sample(&site, "pitr_restore_running"), Some(1.0));
    assert!(sample(&site, "pitr_restore_progress_ratio").is_some());
    assert!(sample(&site, "pitr_restore_done_bytes") > Some(0.0));
    assert!(sample(&site, "pitr_restore_left_seconds").is_some());
    assert_eq!(stanza("restore_lock_status"), Some(1.0));
    assert_eq!(stanza("backup_complete_bytes"), Some(0.0));
    restore.wait().success();
    assert!(running(&site).is_empty());
    // That of the killed one is gone, too.
    let left: Vec<_> = std::fs::read_dir(site.sandbox().join("state/running"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
