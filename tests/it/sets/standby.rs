//! A recovery whose cluster is a standby that has not replayed the moment.

use super::shop::{Shop, read};
use crate::common::{Client, Cluster, list_of, wait_until};

/// A shop, and the configuration of a host whose data directory is the standby's.
struct Pair {
    shop: Shop,
    standby: Cluster,
}

impl Pair {
    fn open() -> Pair {
        let shop = Shop::open(17);
        let standby = Cluster::builder(17)
            .without_fsync()
            .standby_of(&shop.cluster)
            .config("recovery_min_apply_delay", "1h")
            .create();
        let (port, socket) = (standby.port().to_string(), standby.socket_dir());
        for (name, value) in [
            ("port", port.as_str()),
            ("unix_socket_directories", &socket.display().to_string()),
            ("listen_addresses", ""),
        ] {
            standby.append_config(name, value);
        }
        for script in ["stop-pg", "start-pg"] {
            let text = read(&shop.path(script));
            let own = shop.cluster.pgdata().display().to_string();
            let text = text.replace(&own, &standby.pgdata().display().to_string());
            let text = text.replace("tmp/pg.log", "tmp/standby.log");
            shop.sandbox.file(script.replace("pg", "standby"), text);
        }
        let pair = Pair { shop, standby };
        pair.script("start-standby");
        let text = read(&pair.shop.path("pitr.toml"));
        let (own, other) = (&pair.shop.cluster, &pair.standby);
        let conninfo = (own.conninfo("postgres"), other.conninfo("postgres"));
        let data = (own.pgdata().display(), other.pgdata().display());
        let text = text
            .replace(&data.0.to_string(), &data.1.to_string())
            .replace(&conninfo.0, &conninfo.1)
            .replace("stop-pg", "stop-standby")
            .replace("start-pg", "start-standby");
        pair.shop.sandbox.file("pitr.toml", text);
        pair
    }

    fn script(&self, name: &str) {
        self.shop.script(name).success();
    }

    fn client(&self) -> Client {
        Client::connect(&self.standby.conninfo("postgres")).expect("the standby answers")
    }

    fn wait_received(&self) {
        let end = self.shop.cluster.insert_lsn();
        let sql = format!("select pg_last_wal_receive_lsn() >= '{end}'");
        wait_until("the standby has the WAL", || {
            self.client().value(&sql) == "t"
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.shop.script("stop-standby");
    }
}

#[test]
fn r109_a_standby_is_the_source_of_a_recovery() {
    let mut pair = Pair::open();
    let shop = &pair.shop;
    shop.write_counter(10);
    // Marks ask the primary: the standby has replayed too little.
    let host = read(&shop.path("pitr.toml"));
    let with_primary = host.replace(
        &pair.standby.conninfo("postgres"),
        &shop.cluster.conninfo("postgres"),
    );
    shop.sandbox.file("pitr.toml", with_primary);
    let mark = shop.mark();
    shop.sandbox.file("pitr.toml", host);
    shop.write_counter(20);
    shop.cluster.sql("delete from counter");
    shop.cluster.archive_now();
    pair.wait_received();
    let line = [
        "recover",
        "database",
        "--set",
        "shop",
        "--mark",
        &mark,
        "--from-standby",
    ];
    let shown = shop.json(&[&line[..], &["--dry-run"]].concat());
    let steps: Vec<&str> = list_of(&shown["steps"])
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps[0],
        "stop the standby of main, and recover it in private"
    );
    assert!(!steps.contains(&"stop main"), "{steps:?}");
    // Given up before it was promoted: it is a standby again, and runs.
    let confirmed = [&line[..], &["--confirm"]].concat();
    let run = shop
        .pitr(&confirmed)
        .env("PITR_FAULT", "recover-begun-0")
        .run();
    assert!(run.stderr.contains("\"recover-begun-0\""), "{run}");
    let back = ["recover", "rollback", "--confirm", "--json"];
    let told = shop.pitr(&back).succeed().json();
    assert_eq!(told["warnings"].as_array().unwrap().len(), 0, "{told:#}");
    assert_eq!(pair.client().value("select pg_is_in_recovery()"), "t");
    for point in ["aside-recovered", "recover-done-3"] {
        let run = shop.pitr(&confirmed).env("PITR_FAULT", point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
    }
    // The old primary is away before the service of the new one archives.
    pair.script("stop-pg");
    let report = shop.pitr(&confirmed).arg("--json").succeed().json();
    assert_eq!(report["is_complete"], true, "{report:#}");
    let rows = pair.client().value("select max(n) from counter");
    assert_eq!(
        (rows.as_str(), shop.redis(&["GET", "counter"]).as_str()),
        ("10", "10")
    );
    // Back: the cluster stays, and that is said.
    let told = shop.pitr(&back).exits(6).json();
    let warnings = told["warnings"].to_string();
    assert!(
        warnings.contains("main stays as it was recovered"),
        "{told:#}"
    );
    assert_eq!(shop.redis(&["GET", "counter"]), "20");
    pair.shop.stop_receiving();
}

/// A standby that is told to wait lacks what ended before the mark: the mark does not promise it, and the plan says how old the state is.
#[test]
fn r130_a_standby_makes_no_mark_of_level_3() {
    let mut pair = Pair::open();
    let shop = &pair.shop;
    // Committed before the mark; the standby has it, and has not replayed it.
    shop.write_counter(10);
    pair.wait_received();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let made = shop.json(&["mark", "shop", "--with-backups"]);
    assert_eq!(made["level"], 1, "{made:#}");
    let followers = made["followers"].as_array().unwrap();
    assert_eq!(followers.len(), 1, "{made:#}");
    let scope = followers[0]["scope"].as_str().unwrap();
    assert!(scope.starts_with("clusters/main/"), "{made:#}");
    let behind = followers[0]["behind_seconds"].as_u64();
    assert!(behind.is_none_or(|seconds| seconds > 0), "{made:#}");
    let shown = shop.pitr(&["mark", "shop"]).succeed();
    shown.expect_stdout("of a server that follows another one");
    let id = made["id"].as_str().unwrap();
    shop.settle(id);
    let line = ["recover", "full", "--set", "shop", "--mark", id];
    let plan = shop.pitr(&line).arg("--json").exits(8).json()["plan"].clone();
    assert_eq!(plan["level"], 1, "{plan:#}");
    let state = plan["members"][0]["reached"]["moment"].as_str().unwrap();
    assert!(state < plan["time"].as_str().unwrap(), "{plan:#}");
    assert!(plan["spread_seconds"].as_u64().unwrap() >= 1, "{plan:#}");
    let shown = shop.pitr(&line).exits(8);
    shown.expect_stdout(", level 1, states up to ");
    pair.shop.stop_receiving();
}
