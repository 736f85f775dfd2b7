//! `pitr repo compact`: the same backup once more, without the packs of which little is visible.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use pitr::repo::root::BackupRoot;
use rustix::process::Signal;

use super::{FULL, INCREMENTAL, World, increment, take, truth};
use crate::backup::{committed, root};
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, PATIENCE, Program, Run, Site, Stop, expire_at_once, wait_until};
use crate::per_major;
use crate::restore::{content, verify_backup};
use crate::s3_cycle::Bucketed;
use crate::sealed::{Sealed, check_nothing_is_plain};
use crate::several::Two;

fn compact(site: &Site, args: &[&str]) -> Program {
    let program = site.pitr().words("repo compact --json");
    // Ids of one second are in no order.
    std::thread::sleep(Duration::from_millis(1100));
    program.args(args).timeout(10 * PATIENCE)
}

fn compacted(run: &Run) -> String {
    let id = &run.json()["compacted"]["id"];
    id.as_str().unwrap_or_else(|| panic!("{run}")).to_owned()
}

/// All that a restore of a backup to its own end writes: one after the other into the same directory.
fn restored(world: &World, id: &str) -> Vec<(String, Vec<u8>)> {
    let parent = world.site.sandbox().dir("same");
    let (to, space) = (parent.join("data"), parent.join("space"));
    let mapping = format!("{}={}", world.space.display(), space.display());
    let restore = world.site.pitr().words("restore --target-immediate");
    let restore = restore.args(["--backup", id, "--tablespace-mapping", &mapping]);
    restore.arg("--to").arg(&to).succeed();
    verify_backup(world.cluster.major(), &to);
    let found = content(&parent);
    std::fs::remove_dir_all(&parent).unwrap();
    found
}

/// Fails unless two restores wrote the same: only the id of the backup may differ, where one is written down.
fn check_same(mut one: Vec<(String, Vec<u8>)>, mut two: Vec<(String, Vec<u8>)>, ids: [&str; 2]) {
    let neutral = |files: &mut Vec<(String, Vec<u8>)>| {
        for (name, bytes) in files.iter_mut().filter(|(n, _)| !n.contains("/base/")) {
            if let Ok(text) = std::str::from_utf8(bytes)
                && ids.iter().any(|id| text.contains(id))
            {
                assert!(name.contains("pitr"), "{name} names a backup");
                *bytes = Vec::new();
            }
        }
    };
    neutral(&mut one);
    neutral(&mut two);
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&one), names(&two));
    for ((name, one), (_, two)) in one.iter().zip(&two) {
        assert!(one == two, "{name} differs");
    }
    assert!(one.len() > 900, "{}", one.len());
}

fn writers(root: &BackupRoot) -> BTreeSet<String> {
    let layers = root.map.shards.iter().flat_map(|shard| &shard.layers);
    let layers = layers.map(|layer| layer.key.id.to_string());
    let packs = root.map.packs.iter().map(|pack| pack.key.id.to_string());
    layers.chain(packs).collect()
}

/// Requires that no frame is of LZ4: pages of incrementals would become larger (format, section 5.2).
fn check_codec(site: &Site, id: &str) {
    const CODEC: usize = 12;
    let packs = site
        .files()
        .into_iter()
        .filter(|f| f.contains(&format!("/packs/{id}/")));
    let mut count = 0;
    for pack in packs {
        let bytes = std::fs::read(site.repository().join(pack)).unwrap();
        let frames = bytes.windows(CODEC + 1).filter(|w| w.starts_with(b"PFRM"));
        for frame in frames {
            assert_ne!(frame[CODEC], 1);
            count += 1;
        }
    }
    assert!(count > 0);
}

fn gives_the_same_bytes(major: u32) {
    let world = World::new(major, major.is_multiple_of(2));
    let site = &world.site;
    let full = take(site, &FULL).success().id();
    world.churn(1);
    increment(site);
    world.churn(2);
    let origin = increment(site);
    world.cluster.archive_now();
    let before = root(site, &origin);

    // Shown first, and nothing is stored.
    let files = site.files();
    let run = compact(site, &["--dry-run", "--visible", "100"]).succeed();
    assert_eq!(run.json()["backup"], origin.as_str(), "{run}");
    assert_eq!(
        run.json()["packs"].as_array().unwrap().len(),
        before.map.packs.len()
    );
    compact(site, &["--visible", "100"]).exits(8);
    assert_eq!(site.files(), files);

    // All packs but the largest.
    let visible = before.map.packs.iter().map(|pack| pack.live_bytes);
    let most = visible.clone().sum::<u64>() - visible.max().unwrap();
    let most = format!("{most}B");
    let some = compact(
        site,
        &["--confirm", "--visible", "100", "--max-bytes", &most],
    );
    let some = some.succeed();
    let share = compacted(&some);
    let whole = compact(
        site,
        &["--confirm", "--visible", "100", "--backup", &origin],
    );
    let whole = compacted(&whole.succeed());
    for id in [&share, &whole] {
        let after = root(site, id);
        assert_eq!(after.head.prior.as_ref().unwrap().to_string(), origin);
        let moments = |r: &BackupRoot| (r.head.start_time, r.head.stop_time, r.head.size_bytes);
        assert_eq!(moments(&after), moments(&before));
        let content = |r: &BackupRoot| {
            let mut content = r.content.clone();
            content.oldest_content = None;
            // The list of relations stays with the backup that asked the server.
            content.relations = None;
            content
        };
        assert_eq!(content(&after), content(&before));
        // Neither full_every nor the scan of all pages begins anew.
        assert_eq!(pitr::backup::incremental::base(&after).to_string(), full);
        assert!(after.content.whole_scan_time.is_some());
    }
    assert!(writers(&root(site, &share)).contains(&full));
    assert_eq!(
        writers(&root(site, &whole)),
        BTreeSet::from([whole.clone()])
    );
    if !major.is_multiple_of(2) {
        check_codec(site, &whole);
    }
    site.pitr().arg("verify").succeed();
    let expected = restored(&world, &origin);
    for id in [&share, &whole] {
        check_same(restored(&world, id), expected.clone(), [&origin, id]);
    }

    // The next incremental builds on the newest of them, and keeps the age of the content.
    world.churn(3);
    world.cluster.archive_now();
    let next = increment(site);
    let after = root(site, &next);
    assert_eq!(after.head.prior.as_ref().unwrap().to_string(), whole);
    assert_eq!(pitr::backup::incremental::base(&after).to_string(), full);
    world.cluster.archive_now();
    let at_end = world.truth();
    let mut copy = world.restored(&next, "copy", &[]);
    assert_eq!(truth(&copy), at_end);
    copy.stop(Stop::Fast);
    // Everything older goes, and what is left is whole.
    site.pitr().arg("verify").succeed();
    site.pitr().args(expire_at_once()).succeed();
    assert_eq!(committed(site), std::slice::from_ref(&next));
    let files = site.files();
    let has = |id: &str| files.iter().any(|f| f.contains(&format!("packs/{id}/")));
    assert!(has(&whole) && !has(&full) && !has(&origin), "{files:#?}");
    site.pitr().arg("verify").succeed();
    let copy = world.restored(&next, "again", &[]);
    assert_eq!(truth(&copy), at_end);
}
per_major!(gives_the_same_bytes, v13 v16 v19);

/// A streamed full backup, with PostgreSQL's own manifest, and nothing to give up but what is asked for.
#[test]
fn a_full_backup_is_stored_again_with_its_manifest() {
    let world = World::new(17, true);
    let site = &world.site;
    let full = take(site, &[]).success().id();
    world.cluster.archive_now();
    let idle = compact(site, &["--confirm"]).succeed();
    assert!(idle.json()["compacted"].is_null(), "{idle}");
    assert_eq!(committed(site), std::slice::from_ref(&full));
    let id = compacted(&compact(site, &["--confirm", "--visible", "100"]).succeed());
    assert!(root(site, &id).content.server_manifest.is_some());
    site.pitr().arg("verify").succeed();
    let expected = restored(&world, &full);
    check_same(restored(&world, &id), expected, [&full, &id]);
}

/// Retention counts the two as one, and the old one goes once the new one was verified.
#[test]
fn the_old_one_goes_once_the_new_one_was_verified() {
    let world = World::new(16, true);
    let site = &world.site;
    let first = take(site, &FULL).success().id();
    world.churn(1);
    let origin = increment(site);
    world.cluster.archive_now();
    site.pitr().arg("verify").succeed();
    let args = ["--confirm", "--visible", "100"];
    let id = compacted(&compact(site, &args).succeed());
    let expire = |more: &[&str]| {
        let expire = site.pitr().words("expire --min-age 0s --keep 2");
        expire.args(more).succeed()
    };
    let now = ["--grace", "0s", "--confirm", "--confirm-burst"];
    let mut all = vec![first.clone(), origin.clone(), id.clone()];
    all.sort();
    let run = expire(&now);
    assert_eq!(committed(site), all, "{run}");
    run.expect_stdout("takes the place of");
    site.pitr().arg("verify").succeed();
    expire(&now);
    let mut left = vec![first, id.clone()];
    left.sort();
    assert_eq!(committed(site), left);
    site.pitr().arg("verify").succeed();
    let at_end = world.truth();
    let copy = world.restored(&id, "copy", &[]);
    assert_eq!(truth(&copy), at_end);
}

/// A backup is refused meanwhile, expiry deletes nothing that is read, and a compaction that was killed leaves nothing that counts.
#[test]
fn b15_killed_it_leaves_nothing_and_the_next_run_works() {
    let world = World::new(15, true);
    let site = &world.site;
    let full = take(site, &FULL).success().id();
    world.churn(1);
    let origin = increment(site);
    world.cluster.archive_now();
    site.pitr().arg("verify").succeed();
    let all = ["--confirm", "--visible", "100"];
    let before = committed(site);
    let begun = |n: usize| {
        let files = site.files();
        let own = files.iter().filter(|f| f.contains("-incr/begin"));
        own.count() > n
    };
    for signal in [Signal::KILL, Signal::TERM] {
        let count = site
            .files()
            .iter()
            .filter(|f| f.contains("-incr/begin"))
            .count();
        let running = compact(site, &all).words("--max-rate 256KiB").spawn();
        wait_until("it has reserved an id", || begun(count));
        std::thread::sleep(Duration::from_secs(2));
        take(site, &INCREMENTAL).expect_code(7);
        compact(site, &all).exits(7);
        let expire = [
            "--keep",
            "1",
            "--min-age",
            "0s",
            "--grace",
            "0s",
            "--confirm",
        ];
        let expire = site.pitr().arg("expire").args(expire);
        expire.arg("--confirm-burst").succeed();
        assert!(committed(site).contains(&origin));
        running.signal(signal);
        let run = running.wait();
        assert!(!run.is_success(), "{run}");
        let left = committed(site);
        assert!(
            before
                .iter()
                .filter(|id| **id != full)
                .all(|id| left.contains(id))
        );
        assert!(left.iter().all(|id| before.contains(id)), "{left:?}");
        site.pitr().arg("verify").succeed();
    }
    let id = compacted(&compact(site, &all).succeed());
    site.pitr().arg("verify").succeed();
    let expected = restored(&world, &origin);
    check_same(restored(&world, &id), expected, [&origin, &id]);
    // A damaged pack is stored by nobody a second time.
    let pack = root(site, &id).map.packs[0].key.to_string();
    let path = site.cluster_folder().join("packs").join(pack);
    flip(&path);
    let run = compact(site, &["--confirm", "--visible", "100", "--backup", &id]).run();
    assert!(!run.is_success(), "{run}");
    assert!(
        run.stderr.contains("damage") || run.stdout.contains("damage"),
        "{run}"
    );
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    let mode = std::fs::metadata(path).unwrap().permissions();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, mode).unwrap();
    crate::common::user::own(path);
}

/// A reader compacts an encrypted repository, a writer cannot.
#[test]
fn of_an_encrypted_repository_with_the_key_of_a_reader() {
    let (sealed, cluster) = Sealed::archived(17);
    cluster.sql("create table t as select g as a, md5(g::text) as b, 'the secret' as c from generate_series(1, 20000) g");
    let take = |args: &[&str]| {
        let backup = sealed.on("reader").words("backup --json");
        backup.args(args).succeed().id()
    };
    take(&FULL);
    cluster.sql("update t set b = b || 'x' where a % 100 = 0");
    let origin = take(&INCREMENTAL);
    cluster.sql("select pg_create_restore_point('here')");
    cluster.archive_now();
    let compact = |host: &str| {
        let compact = sealed.on(host).words("repo compact --json");
        compact.words("--confirm --visible 100").run()
    };
    let run = compact("writer").expect_code(1);
    run.expect_stdout("no key to read it with");
    let id = compacted(&compact("reader").success());
    assert_ne!(id, origin);
    check_nothing_is_plain(&sealed, "the secret");
    sealed.on("reader").arg("verify").succeed();
    let plan = sealed.on("janitor").words("expire --dry-run --keep 1");
    let plan = plan.run();
    assert!(matches!(plan.code(), 0 | 6), "{plan}");
    sealed.sandbox.dir("copy");
    let to = sealed.sandbox.join("copy/data");
    let restore = sealed
        .on("reader")
        .args(["restore", "--backup", &id, "--to"]);
    restore.arg(&to).succeed();
    verify_backup(17, &to);
    let copy = Cluster::open(17, &to).without_fsync().promoted();
    assert_eq!(truth(&copy), truth(&cluster));
}

#[test]
fn in_a_bucket() {
    let (site, cluster) = Bucketed::with_cluster(Cluster::small(16), Peer::start(), "");
    let take = |args: &[&str]| {
        let backup = site.pitr().words("backup --json").args(args);
        backup.succeed().id()
    };
    cluster
        .sql("create table t as select g as a, md5(g::text) as b from generate_series(1, 30000) g");
    take(&FULL);
    cluster.sql("update t set b = b || 'x' where a % 3 = 0");
    let origin = take(&INCREMENTAL);
    cluster.archive_now();
    let compact = site.pitr().words("repo compact --json --confirm");
    let id = compacted(&compact.words("--visible 100").succeed());
    site.pitr().arg("verify").succeed();
    let parent = site.sandbox.dir("same");
    let restored = |id: &str| {
        let to = parent.join("data");
        let restore = site
            .pitr()
            .args(["restore", "--target-immediate", "--backup", id]);
        restore.arg("--to").arg(&to).succeed();
        let found = content(&to);
        std::fs::remove_dir_all(&to).unwrap();
        found
    };
    let expected = restored(&origin);
    check_same(restored(&id), expected, [&origin, &id]);
}

/// A compacted backup is copied to a second repository, and nothing comes back that expired there.
#[test]
fn it_is_copied_and_the_old_one_does_not_come_back() {
    let two = Two::new();
    let site = &two.site;
    let first = two.first();
    let on = |args: &[&str]| {
        let program = site.pitr().args(args).args(["--repository", &first]);
        program.succeed()
    };
    two.work(10);
    on(&["backup", "--json", "--method", "local"]);
    two.work(3000);
    let taken = on(&["backup", "--json", "--method", "local", "--incremental"]);
    let origin = taken.id();
    two.cluster.archive_now();
    two.sync().succeed();
    std::thread::sleep(Duration::from_millis(1100));
    let all = ["repo", "compact", "--json", "--confirm", "--visible", "100"];
    let id = compacted(&on(&all));
    site.add("\n[retention]\nkeep_last = 1\n");
    on(&["verify"]);
    let now = ["expire", "--min-age", "0s", "--grace", "0s", "--confirm"];
    on(&[&now[..], &["--confirm-burst"]].concat());
    let roots = |repository: &Path| -> Vec<String> {
        let files = crate::common::files_below(repository).into_iter();
        let roots = files.filter(|f| f.contains("/backups/") && f.ends_with("/manifest"));
        roots
            .map(|f| f.rsplit('/').nth(1).unwrap().to_owned())
            .collect()
    };
    assert_eq!(roots(site.repository()), std::slice::from_ref(&id));
    two.sync().succeed();
    assert_eq!(roots(site.repository()), std::slice::from_ref(&id));
    let there = roots(&two.second);
    assert!(there.contains(&id) && there.contains(&origin), "{there:?}");
    site.pitr().arg("verify").succeed();
    // The copy needs no more than itself: it is restored after everything else has gone there, too.
    let expire = site.pitr().args(now).arg("--confirm-burst");
    expire.words("--repository second").succeed();
    assert_eq!(roots(&two.second), std::slice::from_ref(&id));
    let restored = |repository: &str| {
        let to = site.sandbox().join("one");
        let restore = site.pitr().words("restore --target-immediate");
        let restore = restore.args(["--backup", &id, "--repository", repository]);
        restore.arg("--to").arg(&to).succeed();
        let base = content(&to.join("base"));
        std::fs::remove_dir_all(&to).unwrap();
        base
    };
    assert!(restored("second") == restored(&first));
}
