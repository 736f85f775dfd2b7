//! Two lives of one cluster: conflicts and how they are resolved, timelines and which one is the cluster.

use super::live::scene;
use crate::common::Stop;
use crate::lives::{lives, write};
use crate::resolve::{conflicts, fork};
use crate::ship::spool_of;
use crate::timeline::Lives;

#[test]
fn a_fork() {
    let mut two = lives(17);
    spool_of(&two.site);
    let backup = two.site.pitr().words("backup --quiet");
    fork(&mut two, &backup);
    let site = &two.site;
    let mut scene = scene("live-fork", site, &two.production);
    let first = conflicts(site)["conflicts"][0].clone();
    let (name, copy) = (
        first["name"].as_str().unwrap(),
        first["copy"].as_str().unwrap(),
    );
    write(&two.production, "prod");
    let second = two.production.switch_wal();
    let push = |name: &str| {
        site.archive()
            .arg(format!("pg_wal/{name}"))
            .dir(two.production.pgdata())
    };
    scene.say("A clone has archived first; the cluster's own server offers its segments.");
    scene.run(&push(name));
    let by_hand = site.pitr().words("wal push").arg(format!("pg_wal/{name}"));
    scene.run(&by_hand.dir(two.production.pgdata()));
    scene.run(&push(&second));
    for args in [&["wal", "conflicts"][..], &["info"], &["plan"]] {
        scene.run(&site.pitr().args(args));
    }
    let backup = site.pitr().words("backup --wal-wait 1s");
    // How often the archiver has tried by now is a matter of time.
    scene.run_without(&backup, &["warning: archiving fails on the server ("]);
    let resolve = site.pitr().args(["wal", "resolve", name, "--keep"]);
    scene.run(&resolve.clone().arg("0123456789abcdef"));
    let resolve = resolve.arg(copy);
    scene.run(&resolve);
    scene.run(&resolve.clone().arg("--dry-run"));
    two.production.stop(Stop::Immediate);
    scene.run(&resolve.args(["--confirm", "--reason", "the clone was a drill"]));
    for args in [
        &["wal", "conflicts"][..],
        &["plan"],
        &["plan", "--as-stored"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    scene.check();
}

#[test]
fn a_drill_that_archives() {
    let lives = Lives::new(17);
    let drill = lives.drill("drill");
    lives.origin.sql("insert into t values ('origin', 3)");
    lives.origin.archive_now();
    drop(drill);
    let site = &lives.site;
    let mut scene = scene("live-undecided", site, &lives.origin);
    let abandon = ["timeline", "abandon", "2", "--reason", "a drill"];
    let confirmed = [&abandon[..], &["--confirm"]].concat();
    for args in [
        &["info"][..],
        &["plan"],
        &["timeline", "list"],
        &["backup", "--json"],
        &["timeline", "abandon", "1", "--reason", "a mistake"],
        &abandon,
        &confirmed,
        &["timeline", "list"],
        &["plan"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    scene.check();
}
