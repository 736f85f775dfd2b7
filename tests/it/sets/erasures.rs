//! Erasures in a recovery: what was erased later than the moment is erased before anybody connects.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::shop::{Shop, read};
use crate::common::{
    Client, Cluster, Program, Sandbox, files_below, pitr, pitr_archive, wait_until,
};
use crate::erasure::{ERASE_ONE, slow};

/// A shop, and a mark at which it has a person who is gone in production.
fn shop_with_person(major: u32) -> (Shop, String) {
    let shop = Shop::open(major);
    let table = "create table person (id int primary key)";
    shop.cluster.sql(table);
    shop.cluster
        .sql("insert into person select generate_series(1, 3)");
    shop.write_counter(10);
    let mark = shop.mark();
    shop.cluster.sql(ERASE_ONE);
    shop.write_counter(20);
    (shop, mark)
}

fn add(shop: &Shop, sql: &str) -> String {
    let args = ["erasure", "add", "--json", "--database", "postgres"];
    let run = shop.pitr(&args).words("--sql -").stdin(sql).succeed();
    run.id()
}

fn full(mark: &str) -> [&str; 6] {
    ["recover", "full", "--set", "shop", "--mark", mark]
}

fn persons(cluster: &Cluster) -> String {
    cluster.value("select coalesce(string_agg(id::text, ',' order by id), '') from person")
}

fn is_closed(shop: &Shop) -> bool {
    shop.path("tmp/closed").exists() && Client::connect(&shop.cluster.conninfo("postgres")).is_err()
}

fn what_was_erased_is_gone_before_the_service_starts(major: u32) {
    let (mut shop, mark) = shop_with_person(major);
    let before = shop.json(&[&full(&mark)[..], &["--dry-run"]].concat());
    assert_eq!(before["erasures"], Value::Array(Vec::new()), "{before:#}");
    let steps = before["steps"].as_array().unwrap().len();
    // The script writes more than one segment, and all of them are to be archived.
    let much = "create table public.much as select n, repeat(md5(n::text), 20) t from generate_series(1, 5000) n";
    add(&shop, &format!("{ERASE_ONE}; {much}"));

    let plan = shop.pitr(&full(&mark)).arg("--dry-run").succeed();
    plan.expect_stdout("main lacks 1 of 1 erasure recorded")
        .expect_stdout(
            "2. repeat erasures in main, in private: pitr erasure apply --for-adoption --cluster main",
        )
        .expect_stdout("let main archive: pitr adopt")
        .expect_stderr("nothing proves who recorded");
    let book = shop.pitr(&["runbook", "--set", "shop"]).succeed();
    book.expect_stdout("Before main starts, pitr repeats 1 erasure");

    let report = shop.json(&[&full(&mark)[..], &["--confirm"]].concat());
    assert_eq!(report["is_complete"], true, "{report:#}");
    assert_eq!(report["steps"].as_array().unwrap().len(), steps + 1);
    assert_eq!(report["erasures"][0]["count"], 1, "{report:#}");
    assert_eq!(persons(&shop.cluster), "2,3");
    assert_eq!(shop.counters().rows, 10);
    let data = shop.cluster.pgdata();
    for gone in ["pg_wal/pitr.guard", "pg_wal/pitr.settings"] {
        assert!(!data.join(gone).exists(), "{gone}");
    }
    let auto = read(&data.join("postgresql.auto.conf"));
    assert!(!auto.contains("archive_mode"), "{auto}");

    // The scripts are nobody's writes.
    let back = shop.json(&["recover", "rollback", "--dry-run"]);
    assert_eq!(back["written"], Value::Array(Vec::new()), "{back:#}");

    // The new timeline is archived from its first byte: the backup of before leads into it.
    shop.write_counter(30);
    shop.cluster.archive_now();
    let history = "wal/00000002/history";
    wait_until("the history is archived", || {
        let all = files_below(&shop.path("one"));
        all.iter().any(|path| path.ends_with(history))
    });
    shop.pitr(&["verify", "--quiet"]).succeed();
    let folder = Sandbox::new("erased");
    let to = folder.join("copy");
    let members = before["plan"]["members"].as_array().unwrap();
    let main = members.iter().find(|one| one["member"] == "main").unwrap();
    let backup = main["reached"]["backup"].as_str().unwrap();
    let end = ["restore", "--cluster", "main", "--target-timeline", "2"];
    let restore = shop.pitr(&end).args(["--backup", backup, "--to"]).arg(&to);
    restore.succeed();
    let copy = Cluster::open(major, to).without_fsync().start();
    wait_until("recovery ends", || {
        copy.value("select pg_is_in_recovery()") == "f"
    });
    assert_eq!(persons(&copy), "2,3");
    let rows = "select max(n) from counter";
    assert_eq!(copy.value(rows), "30");
    assert_eq!(copy.value("select count(*) from much"), "5000");
    drop(copy);

    let back = ["recover", "rollback", "--confirm", "--json"];
    shop.pitr(&back).exits(8);
    let back = shop.pitr(&back).arg("--discard-changes").succeed();
    assert_eq!(back.json()["warnings"], Value::Array(Vec::new()), "{back}");
    assert_eq!(shop.counters().rows, 20);
    shop.stop_receiving();
}
crate::per_major!(what_was_erased_is_gone_before_the_service_starts, v13 v15 v19);

/// A script that fails aside stops nothing, and one that fails in the place starts nothing.
fn a_script_that_fails_stops_a_recovery(is_late: bool) {
    let (mut shop, mark) = shop_with_person(17);
    let bad = add(&shop, "delete from nowhere");
    add(&shop, ERASE_ONE);
    let mut confirmed = [&full(&mark)[..], &["--confirm"]].concat();
    confirmed.extend(is_late.then_some("--after-stop"));
    let failed = shop.pitr(&confirmed).exits(1);
    failed
        .expect_stderr(&bad)
        .expect_stderr("\"nowhere\" does not exist")
        .expect_stderr(match is_late {
            true => "No service was started",
            false => "nothing was stopped",
        })
        .expect_stderr("--skip-erasure ID")
        .expect_stderr("run the same command again");
    assert_eq!(is_closed(&shop), is_late);
    shop.pitr(&confirmed).exits(1);
    assert_eq!(is_closed(&shop), is_late);
    let shown = shop.pitr(&full(&mark)).arg("--skip-erasure").arg(&bad);
    let shown = shown.exits(8);
    shown.expect_stdout(&format!("--skip {bad} --confirm"));
    // The moment is older than the database of this one.
    if !is_late {
        shop.cluster.sql("create database later");
    }
    let args = ["erasure", "add", "--json", "--database", "later"];
    let later = shop.pitr(&args).words("--sql -").stdin(ERASE_ONE);
    let later = later.succeed().json()["id"].clone();
    let skip = [&confirmed[..], &["--skip-erasure", &bad]].concat();
    shop.pitr(&skip).exits(1).expect_stderr("lacks a database");
    assert_eq!(is_closed(&shop), is_late);
    let skip = [&skip[..], &["--skip-erasure", later.as_str().unwrap()]].concat();
    shop.pitr(&skip).succeed();
    assert_eq!(persons(&shop.cluster), "2,3");
    assert!(!shop.path("tmp/closed").exists());
    shop.stop_receiving();
}

#[test]
fn a_script_that_fails_aside_stops_nothing() {
    a_script_that_fails_stops_a_recovery(false);
}

#[test]
fn a_script_that_fails_keeps_a_recovery_from_starting_anything() {
    a_script_that_fails_stops_a_recovery(true);
}

/// Another repository may have more erasures, and one that proves who recorded them decides about those of the other one.
#[test]
fn what_the_operator_has_to_decide_is_said_before_anything_stops() {
    let (mut shop, mark) = shop_with_person(17);
    let config = read(&shop.path("pitr.toml"));
    let two = format!(
        "[repositories.two]\nurl = \"file://{}\"\n",
        shop.path("two").display()
    );
    let id = add(&shop, ERASE_ONE);
    shop.sandbox.file("pitr.toml", format!("{config}{two}"));
    let confirmed = [&full(&mark)[..], &["--confirm"]].concat();
    let refused = shop.pitr(&confirmed).exits(8);
    refused
        .expect_stderr("did not answer")
        .expect_stderr("--repository NAME");
    let one = [&full(&mark)[..], &["--dry-run", "--repository", "one"]].concat();
    shop.pitr(&one).succeed();

    // The second one is encrypted.
    let keys = shop.path("keys").display().to_string();
    let keygen = ["repo", "keygen", "--dir", &keys, "--recipient", "ops"];
    shop.pitr(&keygen).succeed();
    let keys = format!(
        "[repositories.two.encryption]\nkey_set = \"{keys}/writer.key\"\nkey_file = \"{keys}/ops.key\"\n"
    );
    shop.sandbox
        .file("pitr.toml", format!("{config}{two}{keys}"));
    let init = ["init", "--quiet", "--one-recipient"];
    shop.pitr(&init).succeed();
    let refused = shop.pitr(&confirmed).exits(8);
    refused
        .expect_stderr(&format!("erasure \"{id}\" is in repository one alone"))
        .expect_stderr(&format!("--skip-erasure {id} or with --unproven-erasures"));
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
    let allowed = shop.pitr(&confirmed).arg("--unproven-erasures").run();
    allowed.success();
    assert_eq!(persons(&shop.cluster), "2,3");
    shop.stop_receiving();
}

fn is_killed_while_it_erases_and_goes_on_or_back(is_late: bool) {
    let (mut shop, mark) = shop_with_person(17);
    let folder = Sandbox::new("begun");
    let begun = folder.join("now");
    let slow = add(&shop, &slow(&begun));
    let mut confirmed = [&full(&mark)[..], &["--confirm"]].concat();
    confirmed.extend(is_late.then_some("--after-stop"));
    let waiting = shop.cluster.pgdata().with_added_extension("pitr-new");
    let pid_file = match is_late {
        true => shop.cluster.pgdata().join("postmaster.pid"),
        false => waiting.join("postmaster.pid"),
    };
    let running = shop.pitr(&confirmed).spawn();
    wait_until("the script runs in private", || begun.exists());
    assert!(read(&pid_file).contains("/pitr-drill-"));
    assert_eq!(is_closed(&shop), is_late, "somebody gets in");
    running.ended_by(Signal::KILL);
    let pid = read(&pid_file).lines().next().unwrap().to_owned();
    let server = format!("/proc/{pid}/cwd");
    assert!(Path::new(&server).exists(), "the server was left behind");
    let back = ["recover", "rollback", "--confirm", "--json"];
    let told = shop.pitr(&back).succeed().json();
    assert_eq!(told["warnings"], Value::Array(Vec::new()), "{told:#}");
    assert!(std::fs::read_link(&server).is_err());
    assert!(!waiting.exists(), "the copy is given up");
    assert_eq!(shop.counters().rows, 20);

    let remove = ["erasure", "remove", &slow, "--confirm"];
    shop.pitr(&remove).succeed();
    add(&shop, ERASE_ONE);
    // The steps that erase, adopt and start.
    let [erase, adopt, start] = match is_late {
        true => [8, 9, 10],
        false => [1, 10, 11],
    };
    let points = [("begun", erase), ("worked", erase)];
    let points = points
        .into_iter()
        .chain([("begun", adopt), ("worked", adopt), ("begun", start)]);
    for (what, number) in points {
        let point = format!("recover-{what}-{number}");
        let run = shop.pitr(&confirmed).env("PITR_FAULT", &point).run();
        assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
        assert_eq!(is_closed(&shop), is_late || number != erase);
    }
    shop.pitr(&confirmed).succeed();
    assert_eq!(persons(&shop.cluster), "2,3");
    assert_eq!(shop.counters().rows, 10);
    let told = shop.pitr(&back).succeed().json();
    assert_eq!(told["warnings"], Value::Array(Vec::new()), "{told:#}");
    assert_eq!(shop.counters().rows, 20);
    shop.stop_receiving();
}

#[test]
fn a_recovery_that_is_killed_while_it_erases_aside_goes_on_or_back() {
    is_killed_while_it_erases_and_goes_on_or_back(false);
}

#[test]
fn a_recovery_that_is_killed_while_it_erases_goes_on_or_back() {
    is_killed_while_it_erases_and_goes_on_or_back(true);
}

/// The applications run while a cluster is restored aside, and somebody is erased in production then.
#[test]
fn r211_an_erasure_that_is_recorded_behind_the_restore_is_not_lost() {
    let (mut shop, mark) = shop_with_person(17);
    let confirmed = [&full(&mark)[..], &["--confirm"]].concat();
    let point = "recover-done-0";
    let run = shop.pitr(&confirmed).env("PITR_FAULT", point).run();
    assert!(run.stderr.contains(&format!("\"{point}\"")), "{run}");
    let id = add(&shop, ERASE_ONE);
    let refused = shop.pitr(&confirmed).exits(8);
    refused
        .expect_stderr("became known since this run was planned")
        .expect_stderr(&id);
    assert!(!is_closed(&shop), "nothing was stopped");
    let back = ["recover", "rollback", "--confirm"];
    shop.pitr(&back).succeed();
    shop.pitr(&confirmed).succeed();
    assert_eq!(persons(&shop.cluster), "2,3");
    assert_eq!(shop.counters().rows, 10);
    shop.stop_receiving();
}

const SIDES: [&str; 2] = ["left", "right"];

/// A set of two clusters and nothing else.
struct Pair {
    sandbox: Sandbox,
    clusters: [Cluster; 2],
    /// Root's alone, where it records what it does.
    _record: tempfile::TempDir,
}

impl Pair {
    fn open(major: u32) -> Pair {
        let clusters = SIDES.map(|_| {
            let cluster = Cluster::builder(major).own_identifier().segment_size_mb(1);
            let cluster = cluster.without_fsync().config("archive_mode", "on");
            cluster.create()
        });
        let sandbox = Sandbox::new("pair");
        let record = tempfile::tempdir().unwrap();
        let mut config = format!(
            "[sets.pair]\nmembers = [\"left\", \"right\"]\nstate_dir = \"{}\"\n[repositories.one]\nurl = \"file://{}\"\n",
            record.path().display(),
            sandbox.join("one").display(),
        );
        let pair = Pair {
            sandbox,
            clusters,
            _record: record,
        };
        for (side, cluster) in SIDES.iter().zip(&pair.clusters) {
            let pgdata = cluster.pgdata().display().to_string();
            let log = pair.sandbox.join(format!("{side}.log"));
            let pg_ctl = cluster.bin("pg_ctl").expect("pg_ctl");
            let pg_ctl = |words: &[&str]| {
                let program = Program::new(&pg_ctl).args(["-D", &pgdata, "-w"]);
                let command = program.args(words).command();
                let words = std::iter::once(command.get_program()).chain(command.get_args());
                let words: Vec<_> = words.map(|word| format!("{word:?}")).collect();
                format!("[{}]", words.join(", "))
            };
            config += &format!(
                "[clusters.{side}]\npgdata = \"{pgdata}\"\nconninfo = \"{}\"\nservice.stop = {}\nservice.start = {}\n",
                cluster.conninfo("postgres"),
                pg_ctl(&["-m", "fast", "stop"]),
                pg_ctl(&["-l", &log.display().to_string(), "start"]),
            );
            let archive = pitr_archive().arg("--config").arg(pair.config());
            let archive = archive.args(["--cluster", side, "%p"]).shell();
            cluster.append_config("archive_command", &archive);
            cluster.append_config("port", &cluster.port().to_string());
            let sockets = cluster.socket_dir().display().to_string();
            cluster.append_config("unix_socket_directories", &sockets);
            cluster.append_config("listen_addresses", "");
        }
        pair.sandbox.file("pitr.toml", config);
        pair
    }

    fn config(&self) -> std::path::PathBuf {
        self.sandbox.join("pitr.toml")
    }

    fn pitr(&self, words: &[&str]) -> Program {
        let postgres = self.clusters[0].bin("pg_ctl").expect("pg_ctl");
        let path = format!("{}:/usr/bin:/bin", postgres.parent().unwrap().display());
        let program = pitr().arg("--config").arg(self.config());
        program.args(words).env("PATH", path)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for cluster in &self.clusters {
            let stop = cluster.tool("pg_ctl").arg("-D").arg(cluster.pgdata());
            let _ = stop.words("-m immediate stop").run();
        }
    }
}

/// Root gives each cluster's own work to the owner of its data directory.
#[test]
fn each_cluster_of_a_set_repeats_erasures_of_its_own_for_root_too() {
    crate::require_root!("each_cluster_of_a_set_repeats_erasures_of_its_own_for_root_too");
    let pair = Pair::open(17);
    for (side, cluster) in SIDES.iter().zip(&pair.clusters) {
        let log = pair.sandbox.join(format!("{side}.log"));
        let start = cluster.tool("pg_ctl").arg("-D").arg(cluster.pgdata());
        start.words("-w -l").arg(&log).arg("start").succeed();
        pair.pitr(&["init", "--quiet", "--cluster", side]).succeed();
        cluster.sql("create table person as select generate_series(1, 3) id");
        let backup = ["backup", "--cluster", side];
        pair.pitr(&backup).succeed();
    }
    let mark = pair.pitr(&["mark", "pair", "--json"]).succeed().id();
    for cluster in &pair.clusters {
        cluster.sql("delete from person where id > 1");
        cluster.archive_now();
    }
    for (side, id) in SIDES.iter().zip(["1", "2"]) {
        let words = ["erasure", "add", "--cluster", side, "--sql", "-"];
        let add = pair.pitr(&words).words("--database postgres");
        let sql = format!("delete from person where id = {id}");
        add.stdin(sql).succeed();
    }
    let words = ["recover", "full", "--set", "pair", "--mark", &mark];
    let recover = pair.pitr(&words).words("--confirm --json").privileged();
    let report = recover.succeed().json();
    assert_eq!(report["is_complete"], true, "{report:#}");
    assert_eq!(report["erasures"].as_array().unwrap().len(), 2);
    assert_eq!(persons(&pair.clusters[0]), "2,3");
    assert_eq!(persons(&pair.clusters[1]), "1,3");
    for (side, cluster) in SIDES.iter().zip(&pair.clusters) {
        let guard = cluster.pgdata().join("pg_wal/pitr.guard");
        assert!(!guard.exists(), "{side}");
        cluster.archive_now();
    }
}
