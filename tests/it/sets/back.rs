//! Rollbacks, and runs that a rollback has to judge: of another set, cut short, with services that somebody else started, or that do not answer.

use super::shop::{Counters, Shop, read};
use super::{TEN, wreck};
use crate::common::wait_until;
use crate::redis::server::program;

/// A shop that was wrecked behind a mark, and the words that bring it back.
pub fn wrecked() -> (Shop, Counters, Vec<String>) {
    let shop = Shop::open(17);
    shop.write_counter(10);
    let mark = shop.mark();
    let wrecked = wreck(&shop);
    let words = ["recover", "full", "--set", "shop", "--mark", &mark];
    let words = words.iter().map(|word| (*word).to_owned());
    (shop, wrecked, words.collect())
}

pub fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

pub fn reconfigure(shop: &Shop, old: &str, new: &str) {
    let config = read(&shop.path("pitr.toml"));
    assert!(config.contains(old), "{config}");
    shop.sandbox.file("pitr.toml", config.replace(old, new));
}

/// The writes that a rollback would name.
fn written(shop: &Shop) -> Vec<String> {
    let told = shop.json(&["recover", "rollback", "--dry-run"]);
    let written = told["written"].as_array().unwrap().iter();
    written.map(|w| w.as_str().unwrap().to_owned()).collect()
}

/// A server that answers every question with an error runs all the same: its files are not taken away under it.
#[test]
fn r120_a_redis_that_is_busy_is_stopped_before_its_files_change() {
    let (mut shop, _, full) = wrecked();
    // A client writes at once, as soon as the server has loaded.
    let start = read(&shop.path("start-redis"));
    let (cli, socket) = (program("redis-7", "cli"), shop.path("tmp/r"));
    let late = format!(
        "until {0} -s {1} set late 1 | grep -q OK; do sleep 0.1; done\n",
        cli.display(),
        socket.display()
    );
    shop.sandbox.file("start-redis", start + &late);
    shop.redis(&["CONFIG", "SET", "busy-reply-threshold", "100"]);
    let script = ["EVAL", "while true do end", "0"];
    let busy = crate::common::Program::new(&cli).arg("-s").arg(&socket);
    let busy = busy.args(script).spawn();
    wait_until("the server is busy", || {
        shop.redis(&["PING"]).contains("BUSY")
    });
    let run = shop.pitr(&words(&full)).arg("--confirm").run();
    run.expect_code(6)
        .expect_stderr("clients have written since it was started");
    drop(busy);
    assert_eq!(shop.counters(), TEN);
    assert_eq!(shop.redis(&["GET", "late"]), "1");
    shop.stop_receiving();
}

/// Two sets of a host have records in one place. Each is taken back by its own commands.
#[test]
fn r121_a_run_is_taken_back_by_the_commands_of_its_own_set() {
    let (mut shop, wrecked, full) = wrecked();
    let state = shop.path("state").display().to_string();
    let other = format!(
        "[sets.other]\nmembers = [\"files:uploads\"]\nstop = [\"/bin/false\"]\nstate_dir = \"{state}\"\n[repositories.one]"
    );
    reconfigure(&shop, "[repositories.one]", &other);
    let report = shop.pitr(&words(&full)).words("--confirm --json").run();
    let run = report.success().json()["run"].as_str().unwrap().to_owned();
    let back = ["recover", "rollback", "--confirm"];
    let refused = shop.pitr(&back).args(["--set", "other", &run]).run();
    refused
        .expect_code(8)
        .expect_stderr("is a recovery of set \"shop\", not of set \"other\"");
    let none = shop.pitr(&back).words("--set other").run();
    none.expect_code(2).expect_stderr("no recovery is recorded");
    shop.pitr(&back)
        .exits(2)
        .expect_stderr("several recovery sets");
    assert_eq!(shop.counters(), TEN, "nothing was changed");
    shop.pitr(&back).arg(&run).succeed();
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// The host boots behind a kill, and applications write to what is only half of a recovery.
#[test]
fn r122_writes_to_a_run_that_was_cut_short_are_seen() {
    let (mut shop, wrecked, full) = wrecked();
    // The cluster, Redis and the uploads are in their places.
    let run = shop.pitr(&words(&full)).arg("--confirm");
    let run = run.env("PITR_FAULT", "recover-done-7").run();
    assert!(run.stderr.contains("\"recover-done-7\""), "{run}");
    assert_eq!(written(&shop), [""; 0]);
    for script in ["start-pg", "start-redis"] {
        shop.script(script).success();
    }
    wait_until("Redis has loaded", || {
        let cli = crate::common::Program::new(program("redis-7", "cli"));
        let asked = cli.arg("-s").arg(shop.path("tmp/r"));
        let run = asked.words("INFO persistence").run();
        run.stdout.contains("\nloading:0")
    });
    assert_eq!(
        written(&shop),
        [""; 0],
        "servers that were started, and no more"
    );
    shop.write_counter(77);
    let found = written(&shop);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0], "transactions have committed in main");
    assert!(found[1].contains("started by somebody else"), "{found:?}");
    let back = ["recover", "rollback", "--confirm"];
    let refused = shop.pitr(&back).exits(8);
    refused.expect_stderr("something was written");
    assert_eq!(shop.counters().rows, 77, "nothing was changed");
    // Before the adoption nothing of its timeline was archived.
    let back = shop.pitr(&back).arg("--discard-changes").run();
    back.expect_code(6).expect_stderr("was not abandoned");
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// A rollback is a run, too: nobody begins another one on what is half back, and applications that are slow to answer do not keep it from its end.
#[test]
fn r123_a_rollback_that_was_cut_short_keeps_others_out() {
    let (mut shop, wrecked, full) = wrecked();
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    let back = ["recover", "rollback", "--confirm"];
    let cut = shop.pitr(&back).env("PITR_FAULT", "recover-back").run();
    assert!(cut.stderr.contains("\"recover-back\""), "{cut}");
    let refused = shop.pitr(&words(&full)).arg("--confirm").run();
    refused.expect_code(8).expect_stderr("is not finished");
    shop.sandbox.file("tmp/sick", "");
    let done = shop.pitr(&back).env("PITR_FAULT_SECONDS", "5").run();
    done.expect_code(6)
        .expect_stderr("ask whether the applications work");
    assert_eq!(shop.counters(), wrecked);
    shop.pitr(&back).exits(8).expect_stderr("was rolled back");
    shop.stop_receiving();
}

/// A hook that hangs ends, with what it started, and the recovery does not.
#[test]
fn r124_a_hook_that_hangs_is_ended() {
    let (mut shop, _, full) = wrecked();
    let pid = shop.path("tmp/hook.pid").display().to_string();
    let line = format!("sleep 1000 & echo $! > {pid}; wait");
    let hook = format!("[sets.shop]\nhook = [\"/bin/sh\", \"-c\", \"{line}\"]");
    reconfigure(&shop, "[sets.shop]", &hook);
    let run = shop.pitr(&words(&full)).arg("--confirm");
    let run = run.env("PITR_FAULT_SECONDS", "5").exits(6);
    run.expect_stderr("had not ended after");
    let pid = read(&shop.path("tmp/hook.pid"));
    wait_until("what the hook started has ended", || {
        !std::path::Path::new("/proc").join(pid.trim()).exists()
    });
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}

/// The restored state lacks a role that was made later. The run ends with an error that says so, and can be taken back.
#[test]
fn r125_a_server_that_lets_nobody_in_is_not_waited_for() {
    let (mut shop, wrecked, full) = wrecked();
    shop.cluster.sql("create role late superuser login");
    let late = format!("user=late {}", shop.cluster.conninfo("postgres"));
    let late = late.replace("user=postgres ", "");
    let own = shop.cluster.conninfo("postgres");
    reconfigure(
        &shop,
        &format!("conninfo = \"{own}\""),
        &format!("conninfo = \"{late}\""),
    );
    let run = shop.pitr(&words(&full)).arg("--confirm");
    let run = run.env("PITR_FAULT_SECONDS", "5").run();
    assert_ne!(run.code(), 0, "{run}");
    run.expect_stderr("whether it has recovered");
    let back = ["recover", "rollback", "--confirm"];
    shop.pitr(&back).succeed();
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// Every stop of the service would fail, with the applications down.
#[test]
fn r126_what_a_killed_server_left_is_named_before_anything_is_stopped() {
    let (mut shop, _, full) = wrecked();
    shop.script("stop-pg").success();
    let pid = shop.cluster.pgdata().join("postmaster.pid");
    std::fs::write(&pid, "4194399\n").unwrap();
    let refused = shop.pitr(&words(&full)).arg("--confirm").run();
    refused
        .expect_code(8)
        .expect_stderr("process 4194399 of")
        .expect_stderr("remove postmaster.pid");
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
    std::fs::remove_file(&pid).unwrap();
    shop.script("start-pg").success();
    shop.stop_receiving();
}

/// Replaces a piece of a script of the shop. Returns the script as it was.
pub fn rescript(shop: &Shop, name: &str, old: &str, new: &str) -> String {
    let script = read(&shop.path(name));
    assert!(script.contains(old), "{script}");
    shop.sandbox.file(name, script.replace(old, new));
    script
}

/// Redis asks for a password that the configuration does not have: nothing tells what was written to it.
#[test]
fn r167_a_rollback_that_may_lose_everything_needs_no_answer() {
    let (mut shop, wrecked, full) = wrecked();
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    shop.redis(&["CONFIG", "SET", "requirepass", "s3cret"]);
    let back = ["recover", "rollback", "--confirm"];
    let refused = shop.pitr(&back).run();
    assert!(!refused.is_success(), "{refused}");
    refused
        .expect_stderr("look for what was written to redis:shop")
        .expect_stderr("--discard-changes");
    rescript(
        &shop,
        "stop-redis",
        "#!/bin/sh",
        "#!/bin/sh\nexport REDISCLI_AUTH=s3cret",
    );
    let back = shop.pitr(&back).words("--discard-changes --json").run();
    let told = back.success().json();
    let written = told["written"].to_string();
    assert!(
        written.contains("nothing tells what was written to redis:shop"),
        "{told:#}"
    );
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// The service of the cluster does not stop: what a rollback has stopped by then is started again, or named.
#[test]
fn r167_a_rollback_that_does_not_begin_leaves_nothing_stopped() {
    let (mut shop, wrecked, full) = wrecked();
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    let stop = rescript(&shop, "stop-pg", "set -e", "exit 7");
    let back = ["recover", "rollback", "--confirm"];
    let failed = shop.pitr(&back).run();
    assert!(!failed.is_success(), "{failed}");
    assert!(!failed.stderr.contains("NOT STARTED AGAIN"), "{failed}");
    assert!(!shop.path("tmp/closed").exists(), "{failed}");
    assert_eq!(shop.counters(), TEN);
    // Redis was started again, and does not tell whether it was written to.
    let start = rescript(&shop, "start-redis", "set -e", "exit 7");
    let failed = shop.pitr(&back).arg("--discard-changes").run();
    failed
        .expect_stderr("STOPPED, AND NOT STARTED AGAIN: the applications, redis:shop")
        .expect_stderr("start redis:shop again");
    shop.sandbox.file("start-redis", start);
    shop.sandbox.file("stop-pg", stop);
    shop.pitr(&back).arg("--discard-changes").succeed();
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// Redis comes back with a password: the run says what keeps it from asking, and goes on when it can.
#[test]
fn r168_a_redis_that_answers_nobody_is_told_with_its_words() {
    let (mut shop, _, full) = wrecked();
    let start = rescript(
        &shop,
        "start-redis",
        "--port 0",
        "--port 0 --requirepass s3cret",
    );
    let run = shop.pitr(&words(&full)).arg("--confirm");
    let run = run.env("PITR_FAULT_SECONDS", "5").run();
    assert!(!run.is_success(), "{run}");
    run.expect_stderr("ask Redis server \"shop\" whether it has loaded")
        .expect_stderr("the server wants a password")
        .expect_stderr("Add password_file");
    let stop = rescript(
        &shop,
        "stop-redis",
        "#!/bin/sh",
        "#!/bin/sh\nexport REDISCLI_AUTH=s3cret",
    );
    shop.script("stop-redis").success();
    shop.sandbox.file("start-redis", start);
    shop.sandbox.file("stop-redis", stop);
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}

/// A cluster that is restored after the stop: the run is killed behind the exchange, the host starts the service, and applications write.
#[test]
fn r169_writes_behind_an_exchange_that_was_not_recorded_are_seen() {
    let (mut shop, wrecked, mut full) = wrecked();
    full.push("--after-stop".to_owned());
    let run = shop.pitr(&words(&full)).arg("--confirm");
    let run = run.env("PITR_FAULT", "recover-worked-4").run();
    assert!(run.stderr.contains("\"recover-worked-4\""), "{run}");
    assert_eq!(written(&shop), [""; 0]);
    shop.script("start-pg").success();
    let recovers = "select pg_is_in_recovery()";
    wait_until("recovery has ended", || shop.cluster.value(recovers) == "f");
    assert_eq!(shop.cluster.value("select max(n) from counter"), "10");
    assert_eq!(written(&shop), [""; 0], "a start writes nothing");
    shop.cluster.sql("insert into counter values (77)");
    assert_eq!(written(&shop), ["transactions have committed in main"]);
    let back = ["recover", "rollback", "--confirm"];
    let refused = shop.pitr(&back).exits(8);
    refused.expect_stderr("something was written");
    shop.cluster.archive_now();
    let back = shop.pitr(&back).words("--discard-changes --json").run();
    let told = back.success().json();
    assert_eq!(told["warnings"], serde_json::json!([]), "{told:#}");
    assert_eq!(shop.counters(), wrecked);
    let list = shop.json(&["timeline", "list"]).to_string();
    assert!(list.contains("rollback of run"), "{list}");
    shop.stop_receiving();
}

/// Applications that do not start are none of the members: the rollback ends, and says so.
#[test]
fn r173_a_rollback_ends_without_the_applications() {
    let (mut shop, wrecked, full) = wrecked();
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    let start = rescript(&shop, "start-shop", "set -e", "exit 7");
    let back = ["recover", "rollback", "--confirm"];
    let done = shop.pitr(&back).exits(6);
    done.expect_stderr("start the applications");
    assert_eq!(shop.counters(), wrecked);
    shop.pitr(&back).exits(8).expect_stderr("was rolled back");
    shop.sandbox.file("start-shop", start);
    shop.script("start-shop").success();
    shop.stop_receiving();
}
