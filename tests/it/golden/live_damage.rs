//! Segments that are missing or damaged, a damaged backup, and what the two small programs say.

use std::path::Path;

use super::live::{quiet, scene};
use crate::common::{Site, paths_below, pitr_archive, pitr_restore};

/// Changes the last byte of a file: what a change in the middle breaks first depends on the bytes there.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().expect("it has bytes") ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage() {
    let (site, cluster) = Site::with_cluster_of(quiet().without_fsync().on_disk());
    let mut scene = scene("live-damage", &site, &cluster);
    cluster.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    let names: Vec<String> = (0..4)
        .map(|n| {
            cluster.sql(&format!("insert into t values ({n})"));
            cluster.archive_now()
        })
        .collect();
    scene.say("A segment is damaged.");
    flip(&site.object(&names[0]));
    scene.run(&site.pitr().arg("verify"));
    let fetch = site
        .restore()
        .arg(&names[0])
        .arg(site.sandbox().join("out"));
    scene.run(&fetch);
    scene.run(&site.pitr().args(["wal", "show", &names[0]]));
    scene.say("Another one is missing.");
    std::fs::remove_file(site.object(&names[2])).unwrap();
    for args in [
        &["verify"][..],
        &["wal", "gaps"],
        &["wal", "list"],
        &["info"],
        &["plan"],
        &["plan", "--allow-end"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    let to = site.sandbox().join("copy");
    scene.run(&site.pitr().restore_to(to));
    scene.say("The backup is damaged, too.");
    let objects = paths_below(&site.cluster_folder().join("backups"));
    flip(
        objects
            .iter()
            .find(|p| p.ends_with("server-manifest"))
            .unwrap(),
    );
    for args in [
        &["verify"][..],
        &["info"],
        &["plan"],
        &["expire", "--keep", "1"],
    ] {
        scene.run(&site.pitr().args(args));
    }
    scene.check();
}

#[test]
fn the_small_programs() {
    let (site, cluster) = Site::with_cluster_of(quiet().without_fsync().on_disk());
    let mut scene = scene("live-small-programs", &site, &cluster);
    let name = cluster.archive_now();
    let out = site.sandbox().dir("out").join("f");
    let push = |path: &str| site.archive().arg(path).dir(cluster.pgdata());
    let fetch = |name: &str| site.restore().arg(name).arg(&out);
    scene.say("It is archived already.");
    scene.run(&push(&format!("pg_wal/{name}")));
    scene.run(
        &site
            .pitr()
            .words("wal push")
            .arg(format!("pg_wal/{name}"))
            .dir(cluster.pgdata()),
    );
    scene.run(&push("pg_wal/000000010000000000000099"));
    scene.run(&push("pg_wal/nonsense"));
    scene.run(&push("postgresql.conf"));
    scene.run(&site.archive());
    scene.run(&site.archive().arg("--fast").arg("x"));
    scene.run(&fetch(&name));
    scene.run(
        &site
            .pitr()
            .args(["wal", "fetch", &name])
            .arg(site.sandbox().join("out/g")),
    );
    scene.run(&fetch("000000010000000000000099"));
    scene.run(
        &site
            .pitr()
            .words("wal fetch 000000010000000000000099")
            .arg(site.sandbox().join("out/g")),
    );
    scene.run(&fetch("00000009.history"));
    scene.run(&fetch("nonsense"));
    scene.run(&site.restore().arg(&name));
    let none = site.sandbox().join("none.toml");
    scene.run(&pitr_archive().arg("--config").arg(&none).arg("pg_wal/x"));
    scene.run(&pitr_restore().arg("--config").arg(&none).args([&name, "x"]));
    scene.say("The repository is away.");
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    scene.run(&push(&format!("pg_wal/{name}")));
    scene.run(&fetch(&name));
    scene.run(&site.pitr().arg("info"));
    scene.check();
}
