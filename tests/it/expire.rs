//! `pitr expire` through the real program, on repositories of real servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pitr::repo::id::BackupId;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::root::BackupRoot;
use pitr::store::Store;
use pitr::store::file::FileStore;

use crate::common::{
    Cluster, Program, Run, Sandbox, Site, Still, copy_all, expire_at_once, fault, files_below,
    keep_one, list_of, pitr, str_of, wait_until,
};
use crate::{per_major, require_strace};

/// A cluster with some backups, WAL between them, and their ids.
fn with_backups(major: u32, count: usize) -> (Site, Cluster, Vec<String>) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("CREATE TABLE t(n int, filler text)");
    let mut ids = Vec::new();
    for n in 0..count {
        cluster.sql("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 6000) n");
        cluster.archive_now();
        ids.push(site.backup());
        cluster.sql(&format!("DELETE FROM t WHERE n % 2 = {}", n % 2));
        cluster.archive_now();
    }
    (site, cluster, ids)
}

/// `pitr expire` on a copy of the repository.
fn expire_in(repository: &Path) -> Program {
    pitr()
        .words("expire --min-age 0s --json --cluster main --repository")
        .arg(repository)
}

fn copy(site: &Site, sandbox: &Sandbox, name: &str) -> PathBuf {
    let to = sandbox.join(name);
    copy_all(site.repository(), &to);
    to
}

fn files(root: &Path) -> BTreeSet<String> {
    files_below(root).into_iter().collect()
}

fn layout(root: &Path) -> ClusterLayout {
    let folder = std::fs::read_dir(root.join("clusters/main"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let identifier = folder.file_name().to_str().unwrap().parse().unwrap();
    ClusterLayout::new("main", identifier).unwrap()
}

/// Roots that exist, each with everything that it names.
fn whole_backups(root: &Path) -> Vec<String> {
    let store = FileStore::open(root, 1).unwrap();
    let layout = layout(root);
    let mut ids = Vec::new();
    for listed in store.list(&layout.backups()).unwrap() {
        let id: BackupId = listed.name.parse().unwrap();
        let Some(backup) = BackupRoot::read(&store, &layout, &id).unwrap() else {
            continue;
        };
        let layers = backup.map.shards.iter().flat_map(|s| &s.layers);
        let keys = layers
            .map(|l| layout.layer(&l.key))
            .chain(backup.map.packs.iter().map(|p| layout.pack(&p.key)))
            .chain([layout.begin(&id)]);
        for key in keys {
            assert!(store.head(&key).unwrap().is_some(), "{id} lost {key}");
        }
        ids.push(listed.name);
    }
    ids.sort();
    ids
}

/// Files below `wal`, `packs` and `layers`.
fn content(root: &Path) -> BTreeSet<String> {
    let parts = ["/wal/", "/packs/", "/layers/"];
    let mut found = files(root);
    found.retain(|f| parts.iter().any(|p| f.contains(p)));
    found
}

fn fates(run: &Run) -> Vec<String> {
    let json = run.json();
    let backups = json["clusters"][0]["backups"].as_array().unwrap();
    let fate = |b: &serde_json::Value| b["fate"].as_str().unwrap().to_owned();
    backups.iter().map(fate).collect()
}

/// The files that a plan in JSON says will go; the events of marks that the run itself makes are not among them.
fn predicted(run: &Run, prefix: &str) -> BTreeSet<String> {
    let json = run.json();
    let mut gone = BTreeSet::new();
    for d in json["clusters"][0]["deletions"].as_array().unwrap() {
        let text = |field: &str| d[field].as_str().unwrap().to_owned();
        let parts = |kind: &str| -> Vec<String> {
            let range = d["first"].as_u64().unwrap()..=d["last"].as_u64().unwrap();
            range
                .map(|n| format!("{prefix}/{kind}/{}/{n:06}", text("backup")))
                .collect()
        };
        match d["kind"].as_str().unwrap() {
            "backup" => gone.extend([format!("{prefix}/backups/{}/manifest", text("name"))]),
            "server_manifest" => {
                gone.extend([format!("{prefix}/backups/{}/server-manifest", text("name"))]);
            }
            "relations" => {
                gone.extend([format!("{prefix}/backups/{}/relations", text("name"))]);
            }
            "layers" => gone.extend(parts("layers")),
            "packs" => gone.extend(parts("packs")),
            "segments" => {
                let (first, last) = (text("first"), text("last"));
                let number = |name: &str| {
                    let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
                    hex(&name[8..16]) * 4096 + hex(&name[16..])
                };
                for n in number(&first)..=number(&last) {
                    let (log, seg) = (n / 4096, n % 4096);
                    let tli = &first[..8];
                    gone.insert(format!(
                        "{prefix}/wal/{tli}/{log:08X}/{tli}{log:08X}{seg:08X}"
                    ));
                }
            }
            "wal_file" => {
                let name = text("name");
                gone.insert(format!("{prefix}/wal/{}/labels/{name}", &name[..8]));
            }
            "event" => {
                gone.insert(format!(
                    "{prefix}/events/{}/{}",
                    text("subject"),
                    text("name")
                ));
            }
            "reservation" => {
                gone.insert(format!("{prefix}/events/{}/begin", text("name")));
            }
            other => panic!("{other}"),
        }
    }
    gone
}

fn x08_expire_deletes_what_the_dry_run_showed(major: u32) {
    let (site, cluster, ids) = with_backups(major, 3);
    let expire = || site.pitr().words("expire --min-age 0s");
    let before = files(site.repository());

    // Without a word nothing happens.
    expire().exits(3).expect_stderr("how many backups to keep");
    expire()
        .words("--keep 0")
        .exits(3)
        .expect_stderr("at least 1 backup");
    expire()
        .words("--keep 1")
        .exits(8)
        .expect_stderr("--confirm");
    expire().words("--keep 1 --dry-run").succeed();
    assert_eq!(files(site.repository()), before);

    // The grace period: marked only, and whatever the marked ones need stays.
    let json = || expire().words("--json --keep 1");
    let run = json().arg("--confirm").succeed();
    assert_eq!(fates(&run), ["mark", "mark", "keep"]);
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(whole_backups(site.repository()), sorted);
    let run = json().arg("--dry-run").succeed();
    assert_eq!(fates(&run), ["waiting", "waiting", "keep"]);
    assert!(list_of(&run.json()["clusters"][0]["deletions"]).is_empty());

    // Without grace the dry run shows exactly what goes.
    let before = files(site.repository());
    let shown = json().words("--grace 0 --dry-run").succeed();
    assert_eq!(fates(&shown), ["delete", "delete", "keep"]);
    let run = json().words("--grace 0 --confirm").succeed();
    let after = files(site.repository());
    let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
    let prefix = layout(site.repository()).prefix();
    assert_eq!(gone, predicted(&shown, &prefix));
    assert!(after.is_subset(&before));
    let outcome = &run.json()["clusters"][0]["outcome"];
    assert!(outcome["deleted_segments"].as_u64().unwrap() >= 4);
    assert_eq!(outcome["deleted_backups"].as_array().unwrap().len(), 2);
    assert_eq!(whole_backups(site.repository()), ids[2..]);
    let again = json().words("--grace 0 --confirm").succeed();
    assert_eq!(again.json()["clusters"][0]["outcome"]["deleted_objects"], 0);

    // The backup that is kept is whole: from its start on every segment comes back, and archiving goes on.
    let root = BackupRoot::read(
        &FileStore::open(site.repository(), 1).unwrap(),
        &layout(site.repository()),
        &ids[2].parse().unwrap(),
    )
    .unwrap()
    .unwrap();
    let last = cluster.archive_now();
    let to = site.sandbox().join("fetched");
    let number = |name: &str| u64::from_str_radix(&name[16..], 16).unwrap();
    for n in root.content.start_lsn.0 >> 20..=number(&last) {
        let name = format!("0000000100000000{n:08X}");
        site.restore().arg(&name).arg(&to).privileged().succeed();
    }
    site.pitr().arg("backup").succeed();
}
per_major!(x08_expire_deletes_what_the_dry_run_showed, v13 v14 v19);

#[test]
fn x02_expire_killed_at_every_store_operation_goes_on() {
    require_strace!("x02_expire_killed_at_every_store_operation_goes_on");
    let (site, cluster, ids) = with_backups(18, 3);
    drop(cluster);
    let sandbox = Sandbox::new("sweep");
    let arguments = ["--keep", "1", "--grace", "0", "--confirm"];
    let reference = copy(&site, &sandbox, "reference");
    let names = match fault::is_long() {
        true => fault::every_call(),
        false => vec!["linkat", "unlinkat", "mkdirat"],
    };
    let traced = expire_in(&reference).args(arguments).privileged();
    let (run, mut calls) = fault::trace(&traced, &names);
    run.success();
    assert_eq!(whole_backups(&reference), ids[2..]);
    let wanted = content(&reference);
    if fault::is_long() {
        calls.retain(|c| c.touches(&reference));
    }
    let (mut points, mut missed) = (0, 0);
    let of_turn = |(n, _): &(usize, &fault::Call)| fault::is_of_turn(*n);
    for (_, call) in calls.iter().enumerate().filter(of_turn) {
        let repository = copy(&site, &sandbox, "killed");
        let program = expire_in(&repository).args(arguments).privileged();
        let (run, fired) = fault::inject(&program, &call.kill());
        // Several threads share the listing, each with calls of its own number.
        assert!(
            fired >= 1 || fault::is_long() && run.is_success(),
            "{call:?}"
        );
        missed += usize::from(fired == 0);
        // Nothing that is visible is broken, and nothing that is wanted is gone.
        assert!(whole_backups(&repository).contains(&ids[2]), "{call:?}");
        assert!(wanted.is_subset(&content(&repository)), "{call:?}");
        // A reservation that is left alone may be of a backup that runs: then WAL is withheld, and expire reports that.
        let run = program.run();
        assert!(matches!(run.code(), 0 | 6), "{run}");
        assert_eq!(whole_backups(&repository), ids[2..], "{call:?}");
        assert_eq!(content(&repository), wanted, "{call:?}");
        std::fs::remove_dir_all(&repository).unwrap();
        points += 1;
    }
    println!("expire was killed at {} store operations", points - missed);
    assert!(
        points > fault::share(20) && missed * 10 < points,
        "{missed} of {points}"
    );
}

#[test]
fn x37_many_rounds_delete_what_one_deletes_and_leave_no_tombstone() {
    let (site, cluster, ids) = with_backups(17, 3);
    drop(cluster);
    let sandbox = Sandbox::new("rounds");
    let arguments = ["--keep", "1", "--grace", "0", "--confirm"];
    let run = |name: &str, seconds: &str| {
        let repository = copy(&site, &sandbox, name);
        let program = expire_in(&repository).args(arguments);
        let program = program.env("PITR_FAULT_SECONDS", seconds).privileged();
        let run = program.succeed();
        assert_eq!(whole_backups(&repository), ids[2..]);
        let (events, others): (BTreeSet<String>, BTreeSet<String>) = files(&repository)
            .into_iter()
            .partition(|file| file.contains("/events/"));
        let outcome = run.json()["clusters"][0]["outcome"].clone();
        (outcome, events.len(), others)
    };
    // A round of no length ends behind its first segment.
    let (one, many) = (run("one", "600"), run("many", "0"));
    assert!(one.0["deleted_segments"].as_u64() > Some(2), "{}", one.0);
    assert_eq!(one, many);
}

#[test]
fn x06_refused_deletions_are_counted_and_not_called_success() {
    require_strace!("x06_refused_deletions_are_counted_and_not_called_success");
    let (site, cluster, ids) = with_backups(18, 2);
    drop(cluster);
    let sandbox = Sandbox::new("refused");
    let arguments = ["--keep", "1", "--grace", "0", "--confirm"];
    // A backup that is being restored stays, and expire prints until when.
    let claimed = copy(&site, &sandbox, "claimed");
    let claim = pitr::repo::event::Event {
        event: "claim".into(),
        subject: ids[0].clone(),
        host: "db9".into(),
        purpose: Some("restore".into()),
        seconds: Some(3 * 3600),
        ..Default::default()
    };
    let store = FileStore::open(&claimed, 1).unwrap();
    pitr::repo::event::record(&store, &layout(&claimed), &claim, 7).unwrap();
    let run = expire_in(&claimed).args(arguments).privileged().run();
    let first = &run.json()["clusters"][0]["backups"][0];
    let reason = first["reason"].as_str().unwrap();
    let said = reason.strip_prefix("in use by a restore on host \"db9\" until 20");
    assert!(
        said.is_some_and(|s| s.contains("if it is not renewed")),
        "{run}"
    );
    let repository = copy(&site, &sandbox, "r");
    let program = expire_in(&repository).args(arguments).privileged();
    let (run, fired) = fault::inject(&program, &fault::Fault::error("unlinkat", "EACCES"));
    assert!(fired > 0);
    run.expect_code(10);
    // The root was refused first: all that it needs stays.
    assert_eq!(whole_backups(&repository).len(), 2);
    program.succeed();
    assert_eq!(whole_backups(&repository), ids[1..]);

    // A refusal for a root alone, too: nothing that it names goes before it.
    let repository = copy(&site, &sandbox, "root");
    let traced = copy(&site, &sandbox, "traced-root");
    let program = |at: &Path| expire_in(at).args(arguments).privileged();
    let (_, calls) = fault::trace(&program(&traced), &["unlinkat"]);
    let call = calls.iter().find(|c| c.text.contains("/backups/"));
    let (run, fired) = fault::inject(&program(&repository), &call.unwrap().fail("EACCES"));
    assert_eq!(fired, 1);
    run.expect_code(10);
    assert_eq!(whole_backups(&repository).len(), 2);

    // A disk that fails ends the run at once; the next one goes on.
    let repository = copy(&site, &sandbox, "eio");
    let traced = copy(&site, &sandbox, "traced");
    let program = |at: &Path| expire_in(at).args(arguments).privileged();
    let (_, calls) = fault::trace(&program(&traced), &["unlinkat"]);
    let packs = "/packs/";
    let call = calls.iter().find(|c| c.text.contains(packs)).unwrap();
    let (run, fired) = fault::inject(&program(&repository), &call.fail("EIO"));
    assert_eq!(fired, 1);
    let run = run.expect_code(1).expect_stderr("goes on");
    // The report has the deletions that were done before.
    let outcome = &run.json()["clusters"][0]["outcome"];
    assert_eq!(outcome["deleted_backups"][0], ids[0].as_str(), "{run}");
    assert!(outcome["deleted_objects"].as_u64().unwrap() > 0, "{run}");
    assert_eq!(whole_backups(&repository), ids[1..]);
    program(&repository).succeed();
    assert_eq!(content(&repository), content(&traced));
}

#[test]
fn what_a_killed_check_left_is_taken_back_after_a_day() {
    require_strace!("what_a_killed_check_left_is_taken_back_after_a_day");
    let still = Still::new(17, 1, 1);
    still.push(&still.segments[0]).succeed();
    let before = files(still.site.repository());
    let check = || still.site.pitr().words("repo check");
    // Leftovers of root must be the user's to take back.
    for (program, part) in [
        (check(), ".tmp.probe."),
        (check().privileged(), ".tmp.check."),
    ] {
        let (_, calls) = fault::trace(&program, &["linkat"]);
        let call = calls.iter().find(|c| c.text.contains(part)).unwrap();
        let (run, fired) = fault::inject(&program, &call.kill());
        assert!(run.code() == 137 && fired >= 1, "{run}");
    }
    let left = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(still.site.repository()).unwrap();
        let paths = entries.map(|e| e.unwrap().path());
        paths
            .filter(|p| p.to_str().unwrap().contains("/.tmp."))
            .filter(|p| !p.to_str().unwrap().contains("/.tmp.reserve."))
            .collect()
    };
    assert_eq!(left().len(), 2);
    let expire = || {
        let confirmed = keep_one(&["--confirm", "--quiet"]);
        // Without a backup no WAL goes, which is no success.
        still.site.pitr().args(confirmed).exits(6);
    };
    let verify = || still.site.pitr().words("verify").run();
    expire();
    assert_eq!(left().len(), 2, "it may still be running");
    assert!(!verify().stderr.contains(".tmp."));
    let day_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    for path in left() {
        let folder = std::fs::File::open(path).unwrap();
        folder.set_modified(day_ago).unwrap();
    }
    let run = verify();
    let told = "was left by a write that did not finish; pitr expire removes it";
    assert_eq!(run.stderr.matches(told).count(), 2, "{run}");
    expire();
    // Events record that verify read the segment.
    let mut after = files(still.site.repository());
    after.retain(|file| !file.contains("/events/checks/"));
    assert_eq!(after, before);
    assert!(left().is_empty());
}

#[test]
fn x01_leftovers_go_and_a_damaged_backup_does_not_count() {
    let (site, cluster, ids) = with_backups(15, 2);
    drop(cluster);
    let folder = site.cluster_folder();
    // A write that was cut, a day and a bit ago, and one of now.
    let day_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    for (name, is_old) in [(".tmp.old", true), (".tmp.new", false)] {
        let path = folder.join("packs").join(name);
        std::fs::write(&path, "x").unwrap();
        if is_old {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(day_ago).unwrap();
        }
    }
    let expire = |args: &[&str]| {
        site.pitr()
            .words("expire --min-age 0s --json")
            .args(args)
            .privileged()
    };
    expire(&["--keep", "5", "--confirm"]).succeed();
    assert!(!folder.join("packs/.tmp.old").exists());
    assert!(folder.join("packs/.tmp.new").exists());

    // The newer backup is known to be damaged.
    let store = FileStore::open(site.repository(), 7).unwrap();
    let event = pitr::repo::event::Event {
        event: "damaged".into(),
        subject: ids[1].clone(),
        time: "2026-11-20T06:40:49Z".parse().unwrap(),
        ..Default::default()
    };
    pitr::repo::event::record(&store, &layout(site.repository()), &event, 7).unwrap();
    let run = expire(&["--keep", "1", "--grace", "0", "--confirm"]).exits(8);
    assert_eq!(fates(&run), ["keep", "keep"]);
    run.expect_stderr("the last good one, is kept");
    assert_eq!(whole_backups(site.repository()).len(), 2);

    // A root that cannot be read stops every deletion.
    let manifest = folder.join("backups").join(&ids[1]).join("manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    let before = files(site.repository());
    let run = expire(&["--keep", "1", "--grace", "0", "--confirm"]).exits(6);
    assert!(str_of(&run.json()["clusters"][0]["withheld"][0]).contains("manifest"));
    assert_eq!(files(site.repository()), before);
}

fn age(path: &Path, hours: u64) {
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(old).unwrap();
}

#[test]
fn x02_an_aborted_backup_goes_behind_a_tombstone_and_can_never_commit() {
    let (site, cluster, ids) = with_backups(18, 1);
    drop(cluster);
    let root = site.repository();
    let (store, layout) = (FileStore::open(root, 1).unwrap(), layout(root));
    // It began long ago, wrote a pack, and was killed.
    let id: BackupId = "20251120T064049Z-full".parse().unwrap();
    let event = |kind: &str| pitr::repo::event::Event {
        event: kind.into(),
        subject: id.to_string(),
        time: "2025-11-20T06:40:49Z".parse().unwrap(),
        seconds: Some(3 * 3600),
        ..Default::default()
    };
    pitr::repo::event::begin(&store, &layout, &event("begin")).unwrap();
    let claim = pitr::repo::event::record(&store, &layout, &event("claim"), 7).unwrap();
    let folder = site.cluster_folder();
    let begin = folder.join("events").join(id.to_string()).join("begin");
    let claim = begin.with_file_name(claim);
    let pack = folder.join("packs").join(id.to_string()).join("000000");
    std::fs::create_dir_all(pack.parent().unwrap()).unwrap();
    std::fs::write(&pack, "half a pack").unwrap();
    let expire = || {
        let run = site
            .pitr()
            .args(keep_one(&["--confirm", "--json"]))
            .privileged()
            .run();
        let clusters = run.json()["clusters"][0].clone();
        let is_withheld = clusters["withheld"] != serde_json::json!([]);
        run.expect_code(if is_withheld { 6 } else { 0 });
        clusters
    };
    // By the store's clock all this is of now: it may be a backup that runs, and says that it is old.
    let done = expire();
    assert!(done["tombstones"].as_array().unwrap().is_empty());
    assert!(str_of(&done["withheld"][0]).contains(&id.to_string()));
    assert!(pack.exists());
    age(&begin, 25);
    age(&claim, 25);
    let done = expire();
    assert_eq!(done["tombstones"][0], id.to_string());
    assert!(!pack.exists() && !claim.exists() && begin.exists());
    // Its writer wakes up and cannot commit any more.
    let mut late = BackupRoot::read(&store, &layout, &ids[0].parse().unwrap())
        .unwrap()
        .unwrap();
    late.head.id = id.clone();
    assert_eq!(
        late.commit(&store, &layout).unwrap(),
        pitr::store::Published::Exists
    );
    assert!(BackupRoot::read(&store, &layout, &id).unwrap().is_none());
    assert!(expire()["deletions"].as_array().unwrap().is_empty());
    // A month later the rest goes too.
    let tombstone = folder.join("backups").join(id.to_string()).join("manifest");
    age(&tombstone, 31 * 24);
    expire();
    assert!(!tombstone.exists() && !begin.exists());
    assert_eq!(whole_backups(root), ids);
    site.pitr().arg("verify").privileged().succeed();
}

/// Every timeline and point of a repository that a plan reaches, one point in each segment.
fn reachable(repository: &Path, last: u64) -> BTreeSet<(u32, u64)> {
    let mut found = BTreeSet::new();
    for timeline in 1..=3_u32 {
        for number in 1..=last {
            let lsn = (number << 20) + 0x40100;
            let run = pitr()
                .words("plan --json --cluster main --repository")
                .arg(repository)
                .args(["--target-timeline", &timeline.to_string()])
                .args([
                    "--target-lsn",
                    &format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF),
                ])
                .privileged()
                .run();
            if run.is_success() && run.json()["reachable"] == true {
                found.insert((timeline, lsn));
            }
        }
    }
    found
}

#[test]
fn i5_x04_what_a_plan_reached_inside_the_promise_it_reaches_afterwards() {
    let (site, first) = Site::with_cluster(16);
    let round = |cluster: &Cluster| {
        cluster.sql("CREATE TABLE IF NOT EXISTS t(n int, filler text)");
        cluster.sql("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 3000) n");
        cluster.archive_now();
    };
    let backup = |cluster: &Cluster| {
        site.pitr()
            .words("backup --json")
            .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"))
            .succeed();
        round(cluster);
    };
    let standby_of = |cluster: &Cluster| {
        let mut standby = Cluster::builder(16)
            .without_fsync()
            .standby_of(cluster)
            .create();
        site.attach(&standby);
        standby.start();
        standby
    };
    round(&first);
    backup(&first);
    backup(&first);
    let second = standby_of(&first);
    round(&first);
    second.promote();
    second.wait_promoted();
    // The old primary goes on for a while: two branches.
    round(&first);
    backup(&second);
    let third = standby_of(&second);
    round(&second);
    third.promote();
    third.wait_promoted();
    round(&third);
    backup(&third);
    drop((first, second, third));

    let last = site
        .files()
        .iter()
        .filter_map(|f| f.rsplit('/').next())
        .filter(|name| name.len() == 24 && name.starts_with("0000000"))
        .filter_map(|name| u64::from_str_radix(&name[16..], 16).ok())
        .max()
        .unwrap();
    let sandbox = Sandbox::new("promise");
    let before = reachable(site.repository(), last);
    assert!(before.iter().any(|(t, _)| *t == 1) && before.iter().any(|(t, _)| *t == 3));
    let mut less = 0;
    for keep in 1..=3 {
        let repository = copy(&site, &sandbox, &format!("keep{keep}"));
        let run = expire_in(&repository)
            .args(["--grace", "0", "--confirm", "--keep", &keep.to_string()])
            .privileged()
            .succeed();
        let json = run.json();
        let kept = json["clusters"][0]["backups"].as_array().unwrap();
        let promise = kept
            .iter()
            .filter(|b| b["fate"] == "keep")
            .map(|b| {
                let lsn = b["stop_lsn"].as_str().unwrap();
                u64::from_str_radix(lsn.split_once('/').unwrap().1, 16).unwrap()
            })
            .min()
            .unwrap();
        let after = reachable(&repository, last);
        assert!(after.is_subset(&before));
        for point in before.iter().filter(|(_, lsn)| *lsn >= promise) {
            assert!(
                after.contains(point),
                "keep {keep}: {point:X?} is lost\n{json:#}"
            );
        }
        less += before.len() - after.len();
        let run = pitr()
            .words("verify --cluster main --repository")
            .arg(&repository)
            .privileged()
            .run();
        run.success();
    }
    assert!(less > 0, "nothing was ever expired");
}

/// A backup that an expire run has not marked before it reads everything anew waits for another run.
#[test]
fn x01_a_backup_that_becomes_old_while_expire_runs_is_not_deleted_by_that_run() {
    require_strace!("x01_a_backup_that_becomes_old_while_expire_runs_is_not_deleted_by_that_run");
    let (site, _cluster, ids) = with_backups(18, 2);
    let expire = site.pitr().args(expire_at_once());
    let run = fault::pause(&expire, "linkat", || {
        site.pitr().words("backup --quiet").succeed();
    });
    run.success();
    let left = whole_backups(site.repository());
    // Ids of one second have no order.
    assert!(left.len() == 2 && left.contains(&ids[1]), "{left:?}");
    expire.succeed();
    assert_eq!(whole_backups(site.repository()).len(), 1);
}

fn t10_expire_beside_a_restore_leaves_its_backup_and_the_wal_behind_it(major: u32) {
    require_strace!("t10_expire_beside_a_restore_leaves_its_backup_and_the_wal_behind_it");
    let (site, cluster, ids) = with_backups(major, 2);
    let rows = cluster.value("select count(*) from t");
    let expire = |keep: &str| {
        let expire = ["expire", "--min-age", "0s", "--grace", "0s", "--confirm"];
        let expire = site.pitr().args(expire);
        expire.args(["--json", "--keep", keep]).succeed()
    };
    // The WAL before the first backup is nobody's.
    expire("2");
    let before = content(site.repository());
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().args(["restore", "--backup", &ids[0], "--to"]);
    let held = fault::Fault::signal("pwrite64", "SIGSTOP").at(50);
    let run = fault::pause_at(&restore.arg(&to), &held, || {
        assert!(to.join("base").exists() && !to.join("global/pg_control").exists());
        let run = expire("1");
        assert_eq!(fates(&run), ["keep", "keep"], "{run}");
        let first = &run.json()["clusters"][0]["backups"][0];
        let reason = first["reason"].as_str().unwrap();
        assert!(reason.starts_with("in use by a restore on host"), "{run}");
        assert_eq!(content(site.repository()), before);
    });
    run.success();
    let copy = Cluster::open(major, &to).without_fsync().promoted();
    assert_eq!(copy.value("select count(*) from t"), rows);
    drop(copy);
    // It has ended, and claims nothing.
    assert_eq!(fates(&expire("1")), ["delete", "keep"]);
    assert_eq!(whole_backups(site.repository()), ids[1..]);
}
per_major!(t10_expire_beside_a_restore_leaves_its_backup_and_the_wal_behind_it, v13 v17);

#[test]
fn a_restore_whose_backup_expires_while_it_is_planned_says_so() {
    require_strace!("a_restore_whose_backup_expires_while_it_is_planned_says_so");
    let (site, cluster, ids) = with_backups(18, 2);
    drop(cluster);
    let sandbox = Sandbox::new("expires");
    let stop = |calls: &str, nth: usize| fault::Fault::signal(calls, "SIGSTOP").at(nth);
    let root = |at: &Path| {
        let id = ids[0].parse().unwrap();
        at.join(layout(at).manifest(&id).as_str())
    };
    // Just before the claim is there, and just after the root was read.
    for (name, on_root) in [("claim", None), ("root", Some(root))] {
        let repository = copy(&site, &sandbox, name);
        let to = sandbox.join(format!("{name}-copy"));
        let restore = pitr()
            .args(["restore", "--cluster", "main", "--backup", &ids[0]])
            .words("--target-immediate --repository")
            .arg(&repository)
            .arg("--to")
            .arg(&to);
        let fault = match on_root {
            Some(root) => stop("pread64", 2).on(root(&repository)),
            None => stop("fsync,fdatasync", 1),
        };
        let run = fault::pause_at(&restore, &fault, || {
            let expire = expire_in(&repository).words("--keep 1 --grace 0 --confirm");
            let run = expire.succeed();
            assert_eq!(fates(&run), ["delete", "keep"]);
        });
        run.expect_code(2)
            .expect_stderr("was deleted while the restore was planned");
        assert!(!to.exists());
    }
}

#[test]
fn t62_a_restore_waits_for_a_run_of_expire_that_decided_before_its_claim() {
    let (site, _cluster, ids) = with_backups(17, 2);
    let expire = |args: &[&str]| {
        let expire = ["expire", "--min-age", "0s", "--keep", "1", "--confirm"];
        site.pitr().args(expire).args(args)
    };
    expire(&["--grace", "1h"]).succeed();
    let to = site.sandbox().join("first");
    let first = site.pitr().args(["restore", "--backup", &ids[0], "--to"]);
    let paused = |name: &str| {
        let path = site.sandbox().dir("paused").join(name);
        (format!("{name}={}", path.display()), path)
    };
    // The restore has planned, and has claimed nothing yet.
    let ((restore_pause, planned), (expire_pause, decided)) =
        (paused("restore-planned"), paused("expire-decided"));
    let mut first = first
        .arg(&to)
        .env("PITR_FAULT_PAUSE", restore_pause)
        .spawn();
    wait_until("the restore has planned", || planned.exists());
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let clock = format!("{},{now},1,all", now + 7200);
    let expire = expire(&["--grace", "1h"])
        .env("PITR_FAULT_PAUSE", expire_pause)
        .env("PITR_FAULT_CLOCK", clock)
        .spawn();
    wait_until("expire has decided", || decided.exists());
    std::fs::remove_file(&planned).unwrap();
    wait_until("the restore waits", || {
        first.is_done() || first.stderr().contains("waiting until it has ended")
    });
    assert!(!first.is_done(), "{}", first.stderr());
    std::fs::remove_file(&decided).unwrap();
    expire.wait().success();
    assert_eq!(whole_backups(site.repository()), ids[1..]);
    first
        .wait()
        .expect_code(2)
        .expect_stderr("was deleted while the restore was planned");
    assert!(!to.exists());
}

#[test]
fn r221_a_restore_that_was_interrupted_goes_on_though_its_backup_was_marked_since() {
    let (site, _cluster, ids) = with_backups(18, 2);
    let to = site.sandbox().join("copy");
    let restore = site.pitr().args(["restore", "--backup", &ids[0], "--to"]);
    let restore = restore.arg(&to);
    let begun = site.sandbox().dir("paused").join("restore-control");
    let pause = format!("restore-control={}", begun.display());
    let running = restore.clone().env("PITR_FAULT_PAUSE", pause).spawn();
    wait_until("the restore has begun", || begun.exists());
    running.signal(rustix::process::Signal::INT);
    std::fs::remove_file(&begun).unwrap();
    running.wait().expect_code(130);
    assert!(to.join("pg_wal/pitr.restore").exists() && !to.join("global/pg_control").exists());
    let expire = ["expire", "--min-age", "0s", "--keep", "1", "--confirm"];
    site.pitr().args(expire).words("--grace 1h").succeed();
    let run = restore.succeed();
    run.expect_stderr("is marked for deletion; it is kept while this restore runs");
    assert!(to.join("global/pg_control").exists());
    // Its claim is left to the recovery.
    site.pitr().args(expire).words("--grace 0s").succeed();
    assert!(whole_backups(site.repository()).contains(&ids[0]));
}

#[test]
fn x41_a_backup_does_not_wait_long_for_a_run_of_expire_that_was_killed_here() {
    let (site, _cluster, _) = with_backups(17, 2);
    let decided = site.sandbox().dir("paused").join("expire-decided");
    let expire = [
        "expire",
        "--min-age",
        "0s",
        "--keep",
        "1",
        "--grace",
        "0",
        "--confirm",
    ];
    let pause = format!("expire-decided={}", decided.display());
    let running = site.pitr().args(expire).env("PITR_FAULT_PAUSE", pause);
    let running = running.spawn();
    wait_until("expire has decided", || decided.exists());
    let mut backup = site.pitr().arg("backup").spawn();
    wait_until("the backup waits", || {
        backup.is_done() || backup.stderr().contains("deletes WAL: waiting")
    });
    running.ended_by(rustix::process::Signal::KILL);
    let killed = std::time::Instant::now();
    let run = backup.wait().success();
    let run = run.expect_stderr("was killed: waiting for 90 seconds");
    let waited = killed.elapsed().as_secs();
    assert!((89..280).contains(&waited), "{waited} s: {run}");
    // Its claim is not there for ever: the next run clears it away.
    site.pitr().args(expire).succeed();
}

/// `PITR_SCALE_SEGMENTS=100000 cargo test --test it expire_over -- --nocapture` prints its memory and time.
#[test]
fn expire_over_many_segments_stays_small() {
    let count: u64 = std::env::var("PITR_SCALE_SEGMENTS").map_or(2000, |n| {
        n.parse().expect("PITR_SCALE_SEGMENTS is a number")
    });
    let sandbox = Sandbox::new("scale");
    let folder = sandbox.dir("r");
    crate::plan_scale::repository(&folder, count, &[]);
    let run = |what: &str| {
        let program = expire_in(&folder)
            .args(["--keep", "7", "--grace", "0", what])
            .privileged();
        let started = std::time::Instant::now();
        let (run, usage) = program.measure();
        let run = run.success();
        eprintln!(
            "expire {what} over {count} segments: {:?}, {usage:?}",
            started.elapsed()
        );
        // Most of it is code of the unoptimised program, of which more is in memory on a busy machine.
        assert!(usage.peak_memory_bytes < 72 << 20, "{usage:?}");
        run.json()
    };
    let shown = run("--dry-run");
    let done = run("--confirm");
    let outcome = &done["clusters"][0]["outcome"];
    assert_eq!(outcome["deleted_backups"].as_array().unwrap().len(), 43);
    assert_eq!(
        outcome["deleted_segments"],
        shown["clusters"][0]["segments"]
    );
    assert!(outcome["deleted_segments"].as_u64().unwrap() > count / 2);
}

#[test]
fn c07_a_restore_claims_nothing_when_it_is_complete_and_what_others_left_is_released_by_command() {
    use pitr::repo::event::{self, Event};
    let (site, cluster, ids) = with_backups(15, 2);
    let claims = |args: &[&str]| {
        let program = site.pitr().words("repo claims --json").args(args);
        program.privileged().run()
    };
    let held = |run: &Run| {
        let json = run.json();
        let all = json["claims"].as_array().unwrap().clone();
        let text = |c: &serde_json::Value, f: &str| c[f].as_str().unwrap_or("none").to_owned();
        let one = |c: &serde_json::Value| (text(c, "backup"), text(c, "purpose"), text(c, "host"));
        all.iter().map(one).collect::<Vec<_>>()
    };
    let expire = || {
        let args = keep_one(&["--grace", "0", "--confirm", "--json"]);
        site.pitr().args(args).privileged().run()
    };
    let to = cluster.sandbox().join("copy");
    let restore = [
        "restore",
        "--quiet",
        "--target-immediate",
        "--backup",
        &ids[0],
        "--to",
    ];
    site.pitr().args(restore).arg(&to).succeed();
    assert_eq!(held(&claims(&[]).success()), []);

    // A restore that was killed and its copy deleted, and a backup that was killed before its first claim.
    let (store, layout) = (
        FileStore::open(site.repository(), 1).unwrap(),
        layout(site.repository()),
    );
    let now =
        cluster.value("select to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')");
    let killed = "20261120T064049Z-000007-full";
    let event = |kind: &str, subject: &str| Event {
        event: kind.into(),
        subject: subject.into(),
        time: now.parse().unwrap(),
        host: "db9".into(),
        ..Event::default()
    };
    let claim = Event {
        purpose: Some("restore".into()),
        seconds: Some(3 * 3600),
        ..event("claim", &ids[0])
    };
    event::record(&store, &layout, &claim, 7).unwrap();
    event::begin(&store, &layout, &event("begin", killed)).unwrap();
    let both = vec![
        (killed.to_owned(), "backup".to_owned(), "db9".to_owned()),
        (ids[0].clone(), "restore".to_owned(), "db9".to_owned()),
    ];
    let sorted = |run: &Run| {
        let mut held = held(run);
        held.sort();
        held
    };
    let mut wanted = both.clone();
    wanted.sort();
    assert_eq!(sorted(&claims(&[]).success()), wanted);
    let run = expire().expect_code(6);
    assert_eq!(fates(&run), ["keep", "keep"]);

    // Nothing is released unless it is confirmed.
    let before = files(site.repository());
    let unconfirmed = claims(&["--release", &ids[0]]).expect_code(8);
    assert!(unconfirmed.stdout.contains("db9"), "{unconfirmed}");
    claims(&["--release", &ids[0], "--dry-run"]).success();
    claims(&["--release", "20200101T000000Z-full", "--confirm"]).expect_code(2);
    assert_eq!(files(site.repository()), before);
    for id in [ids[0].as_str(), killed] {
        let run = claims(&["--release", id, "--confirm"]).success();
        assert_eq!(run.json()["claims"][0]["released"], true, "{run}");
    }
    assert_eq!(held(&claims(&[]).success()), []);
    let run = expire().success();
    assert_eq!(fates(&run), ["delete", "keep"]);
    assert!(
        run.json()["clusters"][0]["outcome"]["deleted_segments"].as_u64() > Some(0),
        "{run}"
    );
}
