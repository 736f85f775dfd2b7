//! Scrapes of a week, recorded into Debian's Prometheus: the formulas that dashboards elsewhere use, and every query of our own dashboard.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::agent::answer;
use crate::common::{Cluster, Sandbox, Site, wait_until};

const HOUR: u64 = 3600;

/// Scrapes with the times that they are given.
#[derive(Default)]
struct Recorded(String);

impl Recorded {
    fn add(&mut self, scrape: &str, time_s: u64) {
        let samples = scrape.lines().filter(|line| !line.starts_with('#'));
        for sample in samples {
            writeln!(self.0, "{sample} {time_s}").unwrap();
        }
    }
}

/// A Prometheus that has them, and scrapes nothing.
struct Prometheus {
    child: Child,
    port: u16,
    _sandbox: Sandbox,
}

impl Prometheus {
    fn of(recorded: &Recorded) -> Prometheus {
        let sandbox = Sandbox::new("prometheus");
        let file = sandbox.file("scrapes.om", format!("{}# EOF\n", recorded.0));
        let config = sandbox.file("prometheus.yml", "global: {}\n");
        let data = sandbox.dir("data");
        let made = Command::new("promtool")
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([&file, &data])
            .output()
            .expect("promtool is there: scripts/get-tools test");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg("--storage.tsdb.retention.time=1y")
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = told.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.rsplit_once("address=127.0.0.1:")?;
            let is_it = line.contains("Listening on");
            is_it.then(|| port.trim_matches('"').parse().unwrap())
        });
        let port = listens.expect("the port on which Prometheus listens");
        // The reader keeps the pipe from filling.
        std::thread::spawn(move || told.for_each(drop));
        let started = Prometheus {
            child,
            port,
            _sandbox: sandbox,
        };
        wait_until("Prometheus answers", || {
            answer(port, "GET /-/ready HTTP/1.0\r\n", "")
                .is_some_and(|(head, _)| head.contains("200"))
        });
        started
    }

    /// The series that a query gives at a time, each with its value.
    fn query(&self, query: &str, time_s: u64) -> Vec<(Value, f64)> {
        let mut escaped = String::new();
        for byte in query.bytes() {
            write!(escaped, "%{byte:02X}").unwrap();
        }
        let head = format!(
            "GET /api/v1/query?query={escaped}&time={time_s} HTTP/1.0\r\nHost: localhost\r\n"
        );
        let (_, body) = answer(self.port, &head, "").unwrap();
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(told["status"], "success", "{query}: {told}");
        let series = told["data"]["result"].as_array().unwrap().iter();
        let one = |one: &Value| {
            let value = one["value"][1].as_str().unwrap().parse().unwrap();
            (one["metric"].clone(), value)
        };
        series.map(one).collect()
    }

    /// The only value that a query gives for full backups.
    fn value(&self, query: &str, time_s: u64) -> f64 {
        let found = self.query(query, time_s).into_iter();
        let full: Vec<_> = found.filter(|(of, _)| of["type"] == "full").collect();
        assert_eq!(full.len(), 1, "{query}: {full:?}");
        full[0].1
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn site() -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(17);
    site.keep_state();
    (site, cluster)
}

fn queries() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/grafana/pitr.json");
    let board: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array());
    let queries = targets
        .flatten()
        .map(|target| target["expr"].as_str().unwrap());
    queries.map(str::to_owned).collect()
}

#[test]
fn formulas_and_the_dashboard_work_on_recorded_scrapes() {
    let (site, cluster) = site();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let scrape = || site.pitr().arg("metrics").succeed().stdout;
    let backup = || site.pitr().words("backup --full --quiet").run();
    let fails = || {
        let away = site.sandbox().join("away");
        std::fs::rename(site.repository(), &away).unwrap();
        assert_ne!(backup().code(), 0);
        std::fs::rename(&away, site.repository()).unwrap();
    };
    let mut recorded = Recorded::default();
    recorded.add(&scrape(), now - 144 * HOUR);
    // One of four backups fails in the week, and another one just now.
    for (hours, is_well) in [(120, true), (96, false), (48, true), (24, true)] {
        match is_well {
            true => drop(backup().success()),
            false => fails(),
        }
        cluster.archive_now();
        recorded.add(&scrape(), now - hours * HOUR);
    }
    recorded.add(&scrape(), now - 120);
    fails();
    recorded.add(&scrape(), now - 60);
    let last = scrape();
    recorded.add(&last, now);
    let prometheus = Prometheus::of(&recorded);

    let rate = "rate(backup_success_total[7d]) / rate(backup_attempts_total[7d])";
    assert!((prometheus.value(rate, now) - 0.6).abs() < 1e-9);
    let age = prometheus.value("time() - backup_timestamp_seconds", now + 200);
    assert!((0.0..600.0).contains(&age), "{age}");
    let failure = "rate(backup_failures_total[5m]) > 0";
    assert!(prometheus.value(failure, now) > 0.0);
    assert_eq!(
        prometheus.query(failure, now - 120),
        [],
        "it has not failed yet"
    );
    let growth = "increase(backup_size_bytes[7d]) / increase(backup_size_bytes[30d]) > 1.5";
    assert_eq!(prometheus.query(growth, now), [], "nothing grew");
    assert_eq!(
        prometheus.query("time() - backup_timestamp_seconds > 86400", now),
        []
    );
    let alias = prometheus.value("backup_failure_total", now);
    assert!((alias - 2.0).abs() < 1e-9, "{alias}");

    let names = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let is_name = |word: &&str| word.starts_with("pitr_") || word.starts_with("backup_");
        words.filter(is_name).map(str::to_owned).collect()
    };
    let there = names(&last);
    let (mut answered, mut all) = (0, 0);
    for query in queries() {
        let found = prometheus.query(&query, now);
        all += 1;
        if names(&query).is_subset(&there) {
            assert!(!found.is_empty(), "{query}");
            answered += 1;
        }
    }
    // A site without slots, drills and jobs has no series of them.
    assert!(answered * 3 >= all * 2, "{answered} of {all}");
}
