//! Marks of a set of clusters expire with the backups that lead to them.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::backup_soak::home::Home;
use crate::common::s3::Fault;
use crate::common::{Cluster, Site, expire_at_once, paths_below};
use crate::per_major;

/// In an encrypted bucket, by a janitor without keys that is killed once as it deletes.
fn x12_marks_of_a_cluster_go_with_the_backups_that_lead_to_them(major: u32) {
    let builder = Cluster::small(major);
    let mut cluster = builder.create();
    let home = Home::new(&cluster, true, true);
    home.configure("[sets.shop]\nmembers = [\"main\"]\n");
    home.attach(&cluster);
    cluster.start();
    cluster.sql("create table t (n int)");
    let id = |args: &[&str]| {
        let run = home.pitr().args(args).arg("--json").succeed();
        run.id()
    };
    let mark = |label: &[&str]| {
        cluster.sql("insert into t select count(*) from t");
        let made = id(&[&["mark", "shop"], label].concat());
        std::thread::sleep(std::time::Duration::from_millis(1100));
        cluster.archive_now();
        made
    };
    id(&["backup"]);
    let early = mark(&["--label", "early"]);
    let kept = id(&["backup"]);
    let plain = mark(&[]);
    let late = mark(&["--label", "late"]);
    home.pitr().arg("verify").succeed();
    let marks = || {
        let mut all = home.objects("aux/sets/shop/events/");
        all.retain(|key| key.contains("-mark-"));
        all.len()
    };
    // Clocks agree to the second here, and not only to an hour.
    let expire = |keep: &str, more: &[&str]| {
        let options = ["expire", "--keep", keep, "--min-age", "0s", "--grace", "0s"];
        let program = home.janitor().args(options).args(more);
        program.env("PITR_FAULT_SECONDS", "0")
    };
    assert_eq!(marks(), 3);
    expire("2", &["--confirm"]).succeed();
    assert_eq!(marks(), 3);
    let words = format!("marks that nobody can use: {early} to {early} (1 mark)");
    let shown = expire("1", &["--dry-run"]).succeed();
    shown.expect_stdout(&words);
    let explained = expire("1", &["--explain", &late]).succeed();
    explained.expect_stdout("it stays");

    let stalled = home
        .server()
        .fault("DELETE /bucket/pg/aux/sets", 1, Fault::Stalled);
    let mut running = expire("1", &["--confirm"]).spawn();
    running.until("expire deletes the mark", || stalled.times() > 0);
    running.ended_by(Signal::KILL);
    home.heal();
    assert_eq!(marks(), 3);
    expire("1", &["--confirm"]).succeed();
    assert_eq!(marks(), 2);
    let info = home.pitr().words("info --set shop --json").run();
    let info = info.success();
    let has = |mark: &String| info.stdout.contains(mark.as_str());
    assert!(has(&plain) && has(&late) && !has(&early), "{info}");
    let all = home.pitr().words("info --json").run().json();
    let backups = all["clusters"][0]["backups"].as_array().unwrap().clone();
    let ids: Vec<_> = backups.iter().map(|b| b["id"].clone()).collect();
    assert_eq!(ids, [kept]);
    home.pitr().arg("verify").succeed();
}

/// A root that cannot be read may be that of the backup that leads to a mark, and so may one that is lost.
#[test]
fn x33_marks_stay_while_a_root_is_unreadable_or_lost() {
    let builder = Cluster::small(18);
    let mut cluster = builder.create();
    let site = Site::new(&cluster);
    site.add("\n[sets.shop]\nmembers = [\"main\"]\n");
    site.attach(&cluster);
    cluster.start();
    let id = |args: &[&str]| {
        let run = site.pitr().args(args).arg("--json").succeed();
        run.id()
    };
    let first = id(&["backup", "--full"]);
    id(&["mark", "shop", "--label", "early"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    cluster.archive_now();
    id(&["backup", "--full"]);
    let marks = || {
        let all = paths_below(site.repository());
        let is_mark = |path: &&PathBuf| path.to_str().unwrap().contains("-mark-");
        all.iter().filter(is_mark).count()
    };
    let expire = || {
        let expire = site.pitr().args(expire_at_once());
        expire.env("PITR_FAULT_SECONDS", "0").run()
    };
    let manifest = site.cluster_folder().join("backups").join(first);
    let manifest = manifest.join("manifest");
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    let run = expire();
    assert_eq!(marks(), 1, "lost: {run}");
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    let run = expire();
    assert_eq!(marks(), 1, "unreadable: {run}");
    std::fs::write(&manifest, &whole).unwrap();
    site.pitr().words("verify --quiet").succeed();
    expire().success();
    assert_eq!(marks(), 0);
}

per_major!(x12_marks_of_a_cluster_go_with_the_backups_that_lead_to_them, v15 v18);

/// Sets have no backups that would tell who writes them, and need none.
#[test]
fn t74_a_set_whose_registration_is_lost_is_marked_again_after_init() {
    let mut cluster = Cluster::builder(18).without_fsync().create();
    let site = Site::new(&cluster);
    site.add("\n[sets.shop]\nmembers = [\"main\"]\n");
    site.attach(&cluster);
    cluster.start();
    let mark = || site.pitr().words("mark shop").run();
    mark().success();
    std::fs::remove_file(site.repository().join("aux/sets/shop/scope.json")).unwrap();
    mark().expect_code(1).expect_stderr("pitr init");
    let init = site.pitr().arg("init").succeed();
    init.expect_stderr("had lost the registration of \"aux/sets/shop\"");
    mark().success();
}
