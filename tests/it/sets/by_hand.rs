//! A directory of a set is gone: nothing can be exchanged, and the commands that are printed bring everything back.

use super::TEN;
use super::back::{words, wrecked};
use super::shop::{REDIS, Shop, read};
use crate::common::{Program, pitr, user};
use crate::redis::server::program;

/// Runs lines of a shell, with pitr and the servers on the search path.
fn by_hand(shop: &Shop, lines: &str) {
    let own = pitr().arg("--config").arg(shop.path("pitr.toml")).shell();
    let program = shop
        .sandbox
        .file("bin/pitr", format!("#!/bin/sh\nexec {own} \"$@\"\n"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let path = format!("{}:{}", shop.path("bin").display(), shop.search_path());
    let run = Program::new("/bin/sh").args(["-ex", "-c", lines]);
    run.env("PATH", path).succeed();
}

#[test]
fn r170_a_directory_that_is_gone_is_named_with_the_commands_that_help() {
    let (mut shop, _, full) = wrecked();
    shop.sandbox.dir("bin");
    // As a service does, it ends when the server has loaded.
    let start = read(&shop.path("start-redis"));
    let (cli, socket) = (program(REDIS, "cli"), shop.path("tmp/r"));
    let ready = format!(
        "until {} -s {} ping | grep -q PONG; do sleep 0.1; done\n",
        cli.display(),
        socket.display()
    );
    shop.sandbox.file("start-redis", start + &ready);
    user::own(&shop.path("bin"));
    let commands = |shop: &Shop| -> String {
        let refused = shop.pitr(&words(&full)).words("--confirm --json").run();
        let told = refused.expect_code(8).json();
        let hint = told["hint"].as_str().unwrap().to_owned();
        assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
        let (_, lines) = hint.split_once(":\n").unwrap();
        lines.to_owned()
    };
    // The cluster is lost: what is left is replaced by hand.
    shop.script("stop-pg").success();
    std::fs::remove_dir_all(shop.cluster.pgdata()).unwrap();
    let lines = commands(&shop);
    by_hand(&shop, &lines);
    assert_eq!(shop.counters(), TEN);
    assert_eq!(read(&shop.path("settings/.env")), "SHOP_TITLE=Tea\n");
    assert!(shop.path("redis.before").exists(), "what was there is kept");
    // All of it is lost.
    for script in ["stop-pg", "stop-redis"] {
        shop.script(script).success();
    }
    for gone in ["redis", "uploads"] {
        std::fs::remove_dir_all(shop.path(gone)).unwrap();
    }
    std::fs::remove_dir_all(shop.cluster.pgdata()).unwrap();
    let lines = commands(&shop);
    by_hand(&shop, &lines);
    assert_eq!(shop.counters(), TEN);
    let book = shop.pitr(&["runbook", "--set", "shop"]).succeed();
    let line = format!(
        "pitr redis restore shop --to {} TARGET",
        shop.path("redis").display()
    );
    assert!(book.stdout.contains(&line), "{book}");
    shop.stop_receiving();
}
