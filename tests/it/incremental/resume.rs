//! A backup that was killed, or that failed, and the next one that goes on from its packs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pitr::repo::claim::Claim;
use pitr::repo::event::{self, Event, Writer};
use rustix::process::Signal;

use super::{FULL, INCREMENTAL, World, check_equal, committed, take, truth};
use crate::backup::{layout, root, store};
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, PATIENCE, Program, Run, Site, Stop, paths_below, user, wait_until};
use crate::per_major;
use crate::restore::verify_backup;
use crate::s3_cycle::Bucketed;
use crate::sealed::Sealed;

const MIB: u64 = 1 << 20;

/// A backup whose packs are short, so that a small cluster has many.
fn short_packs(program: Program, args: &[&str]) -> Program {
    program
        .words("backup --json --jobs 2")
        .args(args)
        .env("PITR_FAULT_PACK_BYTES", "300000")
}

fn backup(site: &Site, args: &[&str]) -> Program {
    short_packs(site.pitr(), args)
}

/// How many packs each id has, below a folder.
fn packs_below(folder: &Path) -> BTreeMap<String, usize> {
    let mut packs = BTreeMap::new();
    for path in paths_below(folder) {
        let is_pack = path.components().any(|c| c.as_os_str() == "packs");
        let id = path.parent().and_then(Path::file_name);
        if let Some(id) = id.filter(|_| is_pack && !path.to_string_lossy().contains("/.tmp.")) {
            *packs.entry(id.to_string_lossy().into_owned()).or_default() += 1;
        }
    }
    packs
}

/// Sends a signal to a backup that reads slowly once it has stored so many packs; returns its id and its end.
fn stopped(
    program: Program,
    packs: &dyn Fn() -> BTreeMap<String, usize>,
    count: usize,
    signal: Signal,
) -> (String, Run) {
    let before = packs();
    let mut running = program
        .words("--max-rate 4MiB")
        .timeout(20 * PATIENCE)
        .spawn();
    let mut id = None;
    running.until("packs are durable", || {
        let now = packs();
        let mut new = now
            .into_iter()
            .filter(|(id, n)| !before.contains_key(id) && *n >= count);
        id = new.next().map(|(id, _)| id);
        id.is_some()
    });
    running.signal(signal);
    (id.unwrap(), running.wait())
}

fn killed(site: &Site, args: &[&str], count: usize) -> String {
    let packs = || packs_below(site.repository());
    let (id, run) = stopped(backup(site, args), &packs, count, Signal::KILL);
    assert!(!committed(site).contains(&id), "{run}");
    id
}

/// Deletes what it may at once. WAL alone may be withheld, say where there is no backup yet.
fn expire(site: &Site) {
    let expire = site.pitr().words("expire --keep 1 --grace 0s");
    let run = expire.words("--min-age 0s --confirm --quiet").run();
    assert!(matches!(run.code(), 0 | 6), "{run}");
    assert!(!run.stderr.contains("nothing is deleted"), "{run}");
}

fn stored(run: &Run) -> u64 {
    run.json()["stored_bytes"].as_u64().unwrap()
}

/// The ids that a backup went on from, and how many bytes it did not store again.
fn resumed(run: &Run) -> (Vec<String>, u64) {
    let json = run.json();
    let all = json["resumed"].as_array().unwrap();
    let ids = all.iter().map(|of| of["id"].as_str().unwrap().to_owned());
    let bytes = all.iter().map(|of| of["bytes"].as_u64().unwrap());
    (ids.collect(), bytes.sum())
}

/// The ids of which a backup's root names packs.
fn writers(site: &Site, id: &str) -> BTreeSet<String> {
    let root = root(site, id);
    let packs = root.map.packs.iter();
    packs.map(|pack| pack.key.id.to_string()).collect()
}

fn b18_what_a_killed_backup_stored_is_not_stored_again(major: u32) {
    let world = World::new(major, major.is_multiple_of(2));
    let site = &world.site;
    let (one, other): (&[&str], &[&str]) = match major {
        18 => (&FULL, &[]),
        17 => (&[], &[]),
        _ => (&FULL, &FULL),
    };
    let first = killed(site, one, 8);
    // Pages, files and databases change before the next one.
    world.churn(1);
    let run = backup(site, other).succeed();
    assert!(run.stderr.contains("are read back"), "{run}");
    let (ids, bytes) = resumed(&run);
    assert_eq!(ids, std::slice::from_ref(&first), "{run}");
    assert!(bytes > 4 * MIB, "{run}");
    let id = run.id();
    // A full one at the same moment.
    let whole = backup(site, other).arg("--no-resume").succeed();
    assert_eq!(resumed(&whole).0, Vec::<String>::new(), "{whole}");
    assert!(stored(&run) + MIB < stored(&whole), "{run}\n{whole}");
    let (taken, full) = (root(site, &id), root(site, &whole.id()));
    assert_eq!(taken.head.file_count, full.head.file_count);
    assert_eq!(taken.head.backup_kind, full.head.backup_kind);
    assert_eq!(writers(site, &id), [first.clone(), id.clone()].into());
    let own: u64 = taken
        .map
        .packs
        .iter()
        .filter(|pack| pack.key.id == taken.head.id)
        .map(|pack| pack.size_bytes)
        .sum();
    assert!(own <= taken.head.stored_bytes && own * 10 > taken.head.stored_bytes * 8);
    // Only the next one goes on from it: full backups share nothing later.
    let later = backup(site, other).succeed();
    assert_eq!(resumed(&later).0, Vec::<String>::new(), "{later}");
    assert_eq!(writers(site, &later.id()), [later.id()].into());
    site.pitr().arg("verify").succeed();
    world.cluster.archive_now();
    let expected = world.truth();
    let one = world.restored(&id, "one", &[]);
    let two = world.restored(&whole.id(), "two", &[]);
    check_equal(&world, (one, two), false, &expected);
}
per_major!(b18_what_a_killed_backup_stored_is_not_stored_again, v15 v17 v18);

#[test]
fn b18_a_backup_that_goes_on_is_killed_too_and_the_next_one_goes_on_from_both() {
    let world = World::new(17, true);
    let site = &world.site;
    backup(site, &FULL).succeed();
    world.churn(1);
    world.cluster.archive_now();
    let one = killed(site, &INCREMENTAL, 3);
    world
        .cluster
        .sql("update t set b = b || 'y' where a % 90 = 1");
    let two = killed(site, &INCREMENTAL, 2);
    let run = backup(site, &["--incremental"]).succeed();
    assert_eq!(run.json()["kind"], "incremental", "{run}");
    let (ids, bytes) = resumed(&run);
    assert_eq!(ids, [one.clone(), two.clone()], "{run}");
    assert!(bytes > MIB, "{run}");
    let id = run.id();
    let writers = writers(site, &id);
    assert!(
        writers.contains(&one) && writers.contains(&two),
        "{writers:?}"
    );
    // An incremental upon it.
    world.churn(2);
    world.cluster.archive_now();
    let last = take(site, &INCREMENTAL).success().id();
    let whole = take(site, &["--no-resume"]).success().id();
    site.pitr().arg("verify").succeed();
    world.cluster.archive_now();
    let expected = world.truth();
    let first = world.restored(&last, "one", &[]);
    check_equal(
        &world,
        (first, world.restored(&whole, "two", &[])),
        false,
        &expected,
    );
}

/// The packs of a full backup that was killed wait for the next full one. An incremental in between reads none of it, and ends nothing.
#[test]
fn b39_a_full_backup_that_was_killed_is_left_to_the_next_full_one() {
    let world = World::new(17, true);
    let site = &world.site;
    backup(site, &FULL).succeed();
    let whole = ["--full", "--method", "local"];
    let dead = killed(site, &whole, 8);
    let kept = packs_below(site.repository())[&dead];
    for round in 1..3 {
        world.churn(round);
        world.cluster.archive_now();
        let run = backup(site, &INCREMENTAL).succeed();
        assert_eq!(run.json()["kind"], "incremental", "{run}");
        assert!(!run.stderr.contains("are read back"), "{run}");
        assert_eq!(resumed(&run).0, Vec::<String>::new(), "{run}");
        assert!(!writers(site, &run.id()).contains(&dead), "{run}");
    }
    let claims = event::read_all(&store(site), &layout(site), &dead).unwrap();
    let is_prior = |e: &event::Recorded| e.event.purpose.as_deref() == Some("prior");
    assert!(!claims.iter().any(is_prior), "{claims:?}");
    // Nor does expire take them away meanwhile.
    expire(site);
    assert_eq!(packs_below(site.repository())[&dead], kept);
    let run = backup(site, &whole).succeed();
    let (ids, bytes) = resumed(&run);
    assert_eq!(ids, std::slice::from_ref(&dead), "{run}");
    assert!(bytes > 0, "{run}");
    site.pitr().arg("verify").succeed();
    let again = backup(site, &whole).succeed();
    assert_eq!(resumed(&again).0, Vec::<String>::new(), "{again}");
}

/// A cluster of some tens of MiB that do not change, with a backup that was killed.
fn still(major: u32) -> (Site, Cluster) {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql(
        "create table t as select g as a, md5(g::text) as b from generate_series(1, 100000) g",
    );
    cluster.sql("vacuum (freeze) t");
    cluster.sql("checkpoint");
    (site, cluster)
}

fn check_restored(site: &Site, cluster: &Cluster, id: &str) {
    cluster.archive_now();
    let to = site.sandbox().dir("copy").join("data");
    let restore = site.pitr().args(["restore", "--backup", id, "--to"]);
    restore.arg(&to).succeed();
    verify_backup(cluster.major(), &to);
    let copy = Cluster::open(cluster.major(), &to).without_fsync();
    let mut copy = copy.promoted();
    assert_eq!(truth(&copy), truth(cluster));
    copy.stop(Stop::Fast);
}

/// Flips a bit of a file in the middle.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn pack(site: &Site, id: &str, number: u32) -> PathBuf {
    let folder = site.cluster_folder().join("packs").join(id);
    folder.join(format!("{number:06}"))
}

#[test]
fn b18_a_damaged_pack_is_found_and_left_alone() {
    let (site, cluster) = still(17);
    let first = killed(&site, &FULL, 6);
    damage(&pack(&site, &first, 1));
    // Another one lacks its end.
    let short = std::fs::File::options()
        .write(true)
        .open(pack(&site, &first, 3))
        .unwrap();
    short.set_len(5000).unwrap();
    let run = backup(&site, &FULL).succeed();
    for number in [1, 3] {
        let told = format!("pack \"{first}/{number:06}\" of an interrupted backup is not used");
        assert!(run.stderr.contains(&told), "{run}");
    }
    let id = run.id();
    let named: BTreeSet<String> = root(&site, &id)
        .map
        .packs
        .iter()
        .map(|pack| pack.key.to_string())
        .collect();
    for number in 0..6 {
        let is_named = named.contains(&format!("{first}/{number:06}"));
        assert_eq!(is_named, ![1, 3].contains(&number), "{number}: {run}");
    }
    site.pitr().arg("verify").succeed();
    check_restored(&site, &cluster, &id);
}

#[test]
fn b18_a_run_that_is_interrupted_leaves_its_packs_for_a_day() {
    let (site, cluster) = still(16);
    let packs = || packs_below(site.repository());
    let (one, run) = stopped(backup(&site, &FULL), &packs, 4, Signal::TERM);
    run.expect_code(130).expect_stdout("stay for a day");
    let kept = packs()[&one];
    assert!(kept >= 4);
    assert_eq!(committed(&site), Vec::<String>::new());
    // Without --no-resume the next one would go on from it. This takes back what it stored.
    let alone = backup(&site, &["--method", "local", "--no-resume"]);
    let (two, run) = stopped(alone, &packs, 2, Signal::TERM);
    run.expect_code(130).expect_stdout("is deleted again");
    assert!(!packs().contains_key(&two) && packs()[&one] == kept);
    // Expire leaves it alone.
    expire(&site);
    assert_eq!(packs()[&one], kept);
    let run = backup(&site, &FULL).succeed();
    assert_eq!(resumed(&run).0, std::slice::from_ref(&one), "{run}");
    let id = run.id();

    // A day later, and its claims over, what no root names goes.
    let events = site.cluster_folder().join("events").join(&one);
    age_a_day(&site, &one, &events, &BTreeSet::new());
    let used = root(&site, &id).map.packs;
    let used = used.iter().filter(|p| p.key.id.to_string() == one).count();
    expire(&site);
    let manifest = site.cluster_folder().join("backups").join(&one);
    assert!(manifest.join("manifest").exists(), "no tombstone");
    assert_eq!(packs().get(&one).copied().unwrap_or(0), used);
    site.pitr().arg("verify").succeed();
    check_restored(&site, &cluster, &id);
    let run = backup(&site, &FULL).succeed();
    assert_eq!(resumed(&run).0, Vec::<String>::new(), "{run}");
}

/// Dates the reservation of an id 25 hours back, as if its claims were over by now. `stay` are the events that do.
fn age_a_day(site: &Site, id: &str, events: &Path, stay: &BTreeSet<String>) {
    let (store, layout) = (store(site), layout(site));
    let known = event::read_all(&store, &layout, id).unwrap();
    for path in paths_below(events) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if !stay.contains(name) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let begin = known.into_iter().find(|e| e.name == "begin").unwrap().event;
    let day = std::time::Duration::from_secs(25 * 3600);
    let old = Event {
        time: begin.time.saturating_sub(day),
        ..begin
    };
    event::begin(&store, &layout, &old).unwrap();
    let path = events.join("begin");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now() - day)
        .unwrap();
    user::own(&path);
}

/// While the next one runs, expire deletes nothing of what it takes over.
#[test]
fn b18_what_is_taken_over_is_claimed_against_expire() {
    let (site, cluster) = still(15);
    let one = killed(&site, &FULL, 6);
    let packs = || packs_below(site.repository());
    let all = packs()[&one];
    let mut running = backup(&site, &FULL)
        .words("--max-rate 2MiB")
        .timeout(20 * PATIENCE)
        .spawn();
    wait_until("it copies", || {
        assert!(!running.is_done(), "{}", running.stderr());
        running.stderr().contains("are read back") && packs().len() > 1
    });
    let (store, layout) = (store(&site), layout(&site));
    let events = event::read_all(&store, &layout, &one).unwrap();
    let live = events.iter().filter(|e| e.event.event == "claim").count();
    assert_eq!(live, 3, "its own two, and that of the next one");
    // A day later nothing but this claim keeps them.
    let folder = site.cluster_folder().join("events").join(&one);
    let is_of_next = |e: &&event::Recorded| e.event.purpose.as_deref() == Some("prior");
    let of_next = events.iter().filter(is_of_next).map(|e| e.name.clone());
    let of_next: BTreeSet<String> = of_next.collect();
    assert_eq!(of_next.len(), 1, "{events:?}");
    age_a_day(&site, &one, &folder, &of_next);
    expire(&site);
    assert_eq!(packs()[&one], all);
    let run = running.wait().success();
    assert_eq!(resumed(&run).0, std::slice::from_ref(&one), "{run}");
    check_restored(&site, &cluster, &run.id());
}

/// A pack that goes before the root is written is noticed: nothing is committed that leads to it.
#[test]
fn b18_a_pack_that_goes_meanwhile_is_noticed_before_the_root_is_written() {
    let (site, _cluster) = still(14);
    let one = killed(&site, &FULL, 6);
    let packs = || packs_below(site.repository());
    let running = backup(&site, &FULL)
        .words("--max-rate 2MiB")
        .timeout(20 * PATIENCE)
        .spawn();
    wait_until("it copies", || packs().len() > 1);
    std::fs::remove_file(pack(&site, &one, 0)).unwrap();
    let run = running.wait().expect_code(1);
    assert_eq!(committed(&site), Vec::<String>::new(), "{run}");
    let run = backup(&site, &["--no-resume"]).succeed();
    site.pitr().arg("verify").succeed();
    assert_eq!(committed(&site), [run.id()]);
}

/// A copy of the cluster has its identifier and other rows.
#[test]
fn b18_packs_of_a_clone_bring_no_page_of_it() {
    let (site, mut cluster) = still(17);
    cluster.stop(Stop::Fast);
    let to = site.sandbox().dir("clone").join("data");
    Program::new("cp")
        .arg("-a")
        .arg(cluster.pgdata())
        .arg(&to)
        .privileged()
        .succeed();
    cluster.start();
    let clone = Cluster::open(17, &to)
        .option("archive_command", "/bin/true")
        .without_fsync()
        .start();
    clone.sql("update t set b = 'of the clone' where a % 3 = 0");
    clone.sql("create table only_there as select g as a from generate_series(1, 50000) g");
    clone.sql("checkpoint");
    let packs = || packs_below(site.repository());
    let of_clone =
        backup(&site, &[]).env("PITR_CLUSTERS_MAIN_CONNINFO", clone.conninfo("postgres"));
    let (id, _) = stopped(of_clone, &packs, 12, Signal::KILL);
    cluster.sql("update t set b = 'of the cluster' where a % 5 = 0");
    let run = backup(&site, &FULL).succeed();
    let (ids, bytes) = resumed(&run);
    assert_eq!(ids, [id], "{run}");
    // Most catalogs are the same.
    assert!(bytes > 0, "{run}");
    site.pitr().arg("verify").succeed();
    check_restored(&site, &cluster, &run.id());
}

/// Who has been taken for killed takes nothing back that another one has claimed.
#[test]
fn b18_a_run_that_fails_after_another_one_claimed_its_packs_leaves_them() {
    let (site, _cluster) = still(15);
    let packs = || packs_below(site.repository());
    let running = backup(
        &site,
        &["--method", "local", "--no-resume", "--max-rate", "4MiB"],
    )
    .spawn();
    wait_until("packs are durable", || packs().values().any(|n| *n >= 3));
    let id = packs().into_keys().next().unwrap();
    let (store, layout) = (store(&site), layout(&site));
    let clock = || pitr::pg::time::TimestampTz::from_system_time(std::time::SystemTime::now());
    let writer = Writer::new(&clock, &|| 77);
    let claimed = id.parse().unwrap();
    Claim::take((&store, &layout), writer, &claimed, "prior", None).unwrap();
    user::own_all(&site.cluster_folder().join("events").join(&id));
    let run = running.ended_by(Signal::TERM).expect_code(130);
    run.expect_stdout("are still there");
    assert!(packs()[&id] >= 3);
}

#[test]
fn b18_sealed_packs_are_gone_on_from_where_they_can_be_read() {
    let (sealed, cluster) = Sealed::archived(17);
    cluster.sql(
        "create table t as select g as a, md5(g::text) as b from generate_series(1, 100000) g",
    );
    let packs = || packs_below(&sealed.repository);
    let on = |host: &str| short_packs(sealed.on(host), &["--method", "local"]);
    let (one, _) = stopped(on("writer"), &packs, 6, Signal::KILL);
    // A host that only writes stores everything, and says so.
    let run = on("writer").succeed();
    assert_eq!(resumed(&run).0, Vec::<String>::new(), "{run}");
    let told = format!("backup \"{one}\" was interrupted, and this host cannot read");
    assert!(run.stderr.contains(&told), "{run}");
    let all = stored(&run);
    let run = on("reader").succeed();
    assert_eq!(resumed(&run).0, [one], "{run}");
    assert!(stored(&run) + MIB < all, "{run}");
    sealed.on("reader").arg("verify").succeed();
    // Such a host takes back what it stored, for it could not go on from it.
    let (two, run) = stopped(on("writer"), &packs, 2, Signal::TERM);
    run.expect_code(130).expect_stdout("is deleted again");
    assert!(!packs().contains_key(&two));
}

#[test]
fn b18_in_a_bucket_nothing_is_put_again() {
    let (site, cluster) = Bucketed::with_cluster(Cluster::small(17), Peer::own(), "");
    cluster.sql(
        "create table t as select g as a, md5(g::text) as b from generate_series(1, 100000) g",
    );
    cluster.sql("vacuum (freeze) t");
    cluster.sql("checkpoint");
    let server = site.peer.server();
    let packs = || {
        let mut packs = BTreeMap::new();
        for key in server.keys() {
            if let Some((_, rest)) = key.split_once("/packs/") {
                let id = rest.split('/').next().unwrap();
                *packs.entry(id.to_owned()).or_default() += 1;
            }
        }
        packs
    };
    let backup = |args: &[&str]| short_packs(site.pitr(), &FULL).args(args);
    let (one, _) = stopped(backup(&[]), &packs, 8, Signal::KILL);
    let puts = || {
        let log = server.log();
        let of_pack = |line: &&String| line.contains("/packs/") && line.starts_with("PUT");
        log.iter().filter(of_pack).count()
    };
    server.clear_log();
    let run = backup(&[]).succeed();
    let again = puts();
    assert_eq!(resumed(&run).0, std::slice::from_ref(&one), "{run}");
    server.clear_log();
    let whole = backup(&["--no-resume"]).succeed();
    let all = puts();
    assert!(again > 0 && again + 6 <= all, "{again} {all}");
    assert!(stored(&run) + MIB < stored(&whole), "{run}\n{whole}");
    site.pitr().arg("verify").succeed();
}

/// A sync brings along what a resumed backup took from elsewhere.
#[test]
fn b18_a_resumed_backup_is_copied_whole() {
    let (site, cluster) = still(16);
    let one = killed(&site, &FULL, 5);
    let run = backup(&site, &FULL).succeed();
    let id = run.id();
    assert!(writers(&site, &id).contains(&one));
    cluster.archive_now();
    let second = site.add_repository("second", "");
    site.pitr().words("repo sync --to second").succeed();
    assert!(packs_below(&second).contains_key(&one));
    site.pitr().words("verify --repository second").succeed();
}
