//! The first day with a server of PostgreSQL 17: keys, init, backup, restore, standby, receiver.

use std::path::Path;

use super::Scene;
use super::redact::Data;
use crate::common::{Builder, Cluster, Reception, Sandbox, Site, Stop, pitr, wait_until};
use crate::ship::spool_of;

/// A server that does nothing by itself: no checkpoint, no vacuum, no segment ended by a timer moves a position.
pub fn quiet() -> Builder {
    Cluster::builder(17)
        .segment_size_mb(1)
        .config("autovacuum", "off")
        .config("checkpoint_timeout", "1h")
        .config("archive_timeout", "1h")
        // A restored copy that nobody moves would take it. The server itself gets another one on its command line.
        .config("port", "1")
}

/// A scene with a site and its server.
pub fn scene(name: &str, site: &Site, cluster: &Cluster) -> Scene {
    let places: &[(&Path, &str)] = &[
        (site.sandbox().path(), "[site]"),
        (cluster.sandbox().path(), "[server]"),
    ];
    let mut scene = Scene::new(name, Data::Live, places);
    scene.redactor.add(cluster.port().to_string(), "[port]");
    scene
}

#[test]
fn keys_and_init() {
    // On the disk of the repository, which is remarked on, whether the machine has room in memory or not.
    let cluster = quiet().without_fsync().on_disk().start();
    let sandbox = Sandbox::on_disk("init");
    let places: &[(&Path, &str)] = &[
        (sandbox.path(), "[sandbox]"),
        (cluster.sandbox().path(), "[server]"),
    ];
    let mut scene = Scene::new("live-init", Data::Live, places);
    scene.redactor.add(cluster.port().to_string(), "[port]");
    let init = |name: &str| {
        let folder = sandbox.dir(name);
        let init = pitr().words("init --config").arg(folder.join("pitr.toml"));
        let init = init.arg("--pgdata").arg(cluster.pgdata());
        init.args(["--conninfo", &cluster.conninfo("postgres"), "--repository"])
            .arg(folder.join("repo"))
    };
    scene.run(&init("plain"));
    scene.say("The configuration file is there now.");
    scene.run(&init("plain"));
    let keys = sandbox.join("keys");
    let keygen = pitr().words("repo keygen --dir").arg(&keys);
    scene.run(&keygen);
    scene.run(&keygen.clone().words("--recipient ops"));
    scene.run(
        &init("encrypted")
            .arg("--key-set")
            .arg(keys.join("writer.key")),
    );
    let more = pitr().words("repo keygen --dir").arg(sandbox.join("more"));
    scene.run(&more.words("--recipient ops --recipient escrow"));
    let writer = sandbox.join("more/writer.key");
    scene.run(&init("encrypted").arg("--key-set").arg(&writer));
    scene.run(&init("json").words("--json"));
    scene.say("There is no server, and no data directory.");
    let nowhere = pitr().words("init --pgdata").arg(sandbox.join("nowhere"));
    let nowhere = nowhere.arg("--config").arg(sandbox.join("nowhere.toml"));
    scene.run(&nowhere.arg("--repository").arg(sandbox.join("repo")));
    scene.check();
}

#[test]
fn the_first_day() {
    let (site, cluster) = Site::with_cluster_of(quiet().without_fsync().on_disk());
    let mut scene = scene("live-first-day", &site, &cluster);
    scene.say("Nothing is archived, and there is no backup.");
    for args in [&["info"][..], &["plan"], &["verify"], &["timeline", "list"]] {
        scene.run(&site.pitr().args(args));
    }
    cluster.sql("create table t (a int); insert into t values (1)");
    cluster.archive_now();
    scene.run(&site.pitr().arg("backup").args(["--label", "the first"]));
    cluster.sql("insert into t values (2)");
    cluster.sql("select pg_create_restore_point('noon')");
    let segment = cluster.archive_now();
    for args in [
        &["info"][..],
        &["plan"],
        &["plan", "--target-name", "noon"],
        &["verify"],
        &["backup", "--json"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    let to = site.sandbox().dir("copies");
    let restore = site.pitr().words("restore --target-name noon --to");
    let restore = restore.arg(to.join("restored"));
    scene.run(&restore);
    scene.say("Once more: the directory is not empty.");
    scene.run(&restore);
    let adopt = site.pitr().words("adopt --pgdata").arg(to.join("restored"));
    scene.say("The copy has a guard, and the server of the cluster still runs.");
    let fetch = site.pitr().args(["wal", "fetch", &segment]);
    let segment = format!("pg_wal/{segment}");
    fetch.arg(to.join("restored").join(&segment)).succeed();
    scene.run(&site.archive().arg(&segment).dir(to.join("restored")));
    scene.run(&adopt);
    scene.run(&adopt.clone().words("--as staging"));
    scene.run(&adopt.words("--as staging"));
    let standby = site.pitr().words("standby --to").arg(to.join("standby"));
    let conninfo = format!(
        "host={} port={} user=postgres",
        cluster.socket_dir().display(),
        cluster.port()
    );
    scene.run(&standby.args(["--primary-conninfo", &conninfo]));
    scene.check();
}

#[test]
fn the_doctor() {
    // On the disk of the repository, so that there is a warning for sure: that the machine's disk is full is no other status.
    let (site, mut cluster) = Site::with_cluster_of(quiet().on_disk());
    spool_of(&site);
    let mut scene = scene("live-doctor", &site, &cluster);
    cluster.archive_now();
    site.pitr().words("backup --quiet").succeed();
    let seen = "select coalesce(last_archived_wal like '%.backup', false) from pg_stat_archiver";
    wait_until("it is counted", || cluster.value(seen) == "t");
    // How full the machine's disk is, and its filesystem, are nothing of ours.
    let doctor = |scene: &mut Scene| {
        let machine = ["  space  ", "  writable and durable  "];
        scene.run_without(&site.pitr().arg("doctor"), &machine);
    };
    doctor(&mut scene);
    scene.say("The server's archive_command is another one.");
    cluster.set("archive_command", "cp %p /nowhere/%f");
    wait_until("it is seen", || {
        cluster.value("show archive_command").starts_with("cp")
    });
    doctor(&mut scene);
    cluster.stop(Stop::Fast);
    scene.say("The server is stopped.");
    doctor(&mut scene);
    scene.run(&site.pitr().arg("backup"));
    scene.check();
}

#[test]
fn the_receiver() {
    let reception = Reception::of(quiet().without_fsync().on_disk());
    let site = &reception.site;
    let mut scene = scene("live-receive", site, &reception.cluster);
    scene
        .redactor
        .add(reception.proxy.port().to_string(), "[port]");
    // The server may write a record of its own at any moment.
    scene.redactor.forget("lsn");
    scene.run(&reception.receive());
    reception.cluster.sql("create table t (a int)");
    let end = "select pg_current_wal_flush_lsn()";
    let until = reception.cluster.value(end);
    let once = reception.receive().words("--create-slot --until-lsn");
    scene.run(&once.arg(until));
    scene.run(&reception.receive().arg("--drop-slot"));
    scene.run(&reception.receive().arg("--drop-slot"));
    scene.check();
}
