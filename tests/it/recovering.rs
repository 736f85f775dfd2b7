//! Real servers recover with segments fetched ahead, while something goes wrong: nothing half, stale or foreign is replayed, and nothing
//! stays behind.

use std::path::{Path, PathBuf};

use crate::common::mount::SmallDisk;
use crate::common::{Cluster, PATIENCE, Sandbox, Site, Stop, copy_tree, wait_until, wait_within};
use crate::prefetch::{count, noting};
use crate::require_mounts;

/// Has a cluster archive `segments` segments, each with 100 rows that hold `value`.
fn fill(cluster: &Cluster, value: u32, segments: u32) {
    let client = cluster.client();
    for _ in 0..segments {
        client.sql(&format!(
            "insert into t select {value} from generate_series(1, 100)"
        ));
        client.sql("select pg_switch_wal()");
    }
    cluster.archive_now();
}

/// A site with a backup and `segments` segments after it; the server is stopped.
fn archived(major: u32, segments: u32) -> (Site, Cluster) {
    let (site, mut origin) = Site::with_cluster(major);
    origin.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    fill(&origin, 1, segments);
    origin.stop(Stop::Fast);
    (site, origin)
}

/// A copy that is to recover with `command`, not started.
fn copy(site: &Site, major: u32, to: &Path, command: &str) -> Cluster {
    site.pitr().restore_to(to).succeed();
    let copy = Cluster::open(major, to).without_fsync();
    copy.option("restore_command", command).create()
}

fn rows(cluster: &Cluster) -> String {
    cluster.wait_promoted();
    cluster.value("select string_agg(a || ': ' || n, ', ' order by a) from (select a, count(*) n from t group by a) t")
}

fn ahead(pgdata: &Path) -> PathBuf {
    pgdata.join("pg_wal/pitr.ahead")
}

fn wait_gone(pgdata: &Path) {
    wait_until("nothing is left", || !ahead(pgdata).exists());
}

/// The segments that wait.
fn waiting(pgdata: &Path) -> Vec<String> {
    let files = std::fs::read_dir(ahead(pgdata)).into_iter().flatten();
    let names = files.filter_map(|f| f.ok()?.file_name().into_string().ok());
    names.filter(|n| n.len() == 24).collect()
}

#[test]
fn f17_two_recoveries_on_one_host_do_not_meddle_with_each_other() {
    const SEGMENTS: u32 = 12;
    let (site, _origin) = archived(16, SEGMENTS);
    let places = ["one", "two"].map(|name| (Sandbox::new(name), site.sandbox().dir(name)));
    let mut copies = places.each_ref().map(|(sandbox, folder)| {
        let (command, log) = noting(&site, sandbox);
        (copy(&site, 16, &folder.join("data"), &command), log)
    });
    for (copy, _) in &mut copies {
        copy.spawn();
    }
    for (copy, log) in &copies {
        wait_within(10 * PATIENCE, "it takes connections", || copy.is_ready());
        assert_eq!(rows(copy), "1: 1200");
        let waited = count(log, "waited 00000001");
        assert!(waited >= 8, "{waited} were fetched ahead");
        wait_gone(copy.pgdata());
    }
}

/// A restore_command that stops before it asks for the n-th segment, as long as the file that is returned is not there.
fn halting(site: &Site, n: usize) -> (String, PathBuf) {
    let go = site.sandbox().join("go");
    let asked = site.sandbox().file("asked", "");
    let script = format!(
        "case $1 in ????????????????????????) echo $1 >> {asked};; esac\n\
         if [ $(sort -u {asked} | wc -l) -ge {n} ]; then while [ -d {} ] && [ ! -e {} ]; do sleep 0.1; done; fi\n\
         exec {} \"$1\" \"$2\"\n",
        site.sandbox().path().display(),
        go.display(),
        site.restore().shell(),
        asked = asked.display(),
    );
    let script = site.sandbox().file("halting.sh", script);
    (format!("/bin/sh {} %f %p", script.display()), go)
}

#[test]
fn f13_a_recovery_that_is_stopped_half_way_leaves_nothing_and_goes_on() {
    let (site, _origin) = archived(15, 12);
    for (n, how) in [Stop::Fast, Stop::Immediate].into_iter().enumerate() {
        let (command, go) = halting(&site, 4);
        let to = site.sandbox().dir(format!("copy{n}")).join("data");
        let mut copy = copy(&site, 15, &to, &command);
        copy.spawn();
        wait_until("segments wait", || waiting(&to).len() > 3);
        copy.stop(how);
        wait_gone(&to);
        std::fs::write(&go, "").unwrap();
        copy.start();
        assert_eq!(rows(&copy), "1: 1200");
        wait_gone(&to);
        std::fs::remove_file(&go).unwrap();
    }
}

#[test]
fn a_disk_that_gets_full_ends_fetching_ahead_and_not_the_recovery() {
    require_mounts!("a_disk_that_gets_full_ends_fetching_ahead_and_not_the_recovery");
    const MIB: u64 = 1 << 20;
    let (site, _origin) = archived(17, 16);
    // So much room is wanted that recovery is not short of it when there is less.
    site.add_to_cluster("prefetch_segments = 60\n");
    let disk = SmallDisk::new(300, 10_000);
    let to = disk.path().join("data");
    let (command, go) = halting(&site, 4);
    let mut copy = copy(&site, 17, &to, &command);
    copy.spawn();
    wait_until("segments wait", || waiting(&to).len() > 3);
    let free = || {
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let filler = disk.path().join("filler");
    std::fs::File::create(&filler).unwrap();
    let length = usize::try_from(free() - 45 * MIB).unwrap();
    std::fs::write(&filler, vec![0; length]).unwrap();
    std::fs::write(&go, "").unwrap();
    wait_within(10 * PATIENCE, "it takes connections", || copy.is_ready());
    assert_eq!(rows(&copy), "1: 1600");
    wait_gone(&to);
    assert!(free() < 61 * MIB, "the disk was too full to fetch ahead");
}

#[test]
fn segments_of_a_timeline_that_recovery_leaves_are_not_replayed_and_not_left() {
    let (site, mut origin) = Site::with_cluster(19);
    origin.sql("create table t (a int)");
    site.pitr().words("backup --quiet").succeed();
    fill(&origin, 1, 6);
    origin.stop(Stop::Fast);
    // A copy is promoted, and the origin goes on where it was: there is WAL of both timelines for the same positions.
    let sandbox = Sandbox::new("fork");
    copy_tree(origin.pgdata(), &sandbox.join("data"));
    let mut promoted = Cluster::open(19, sandbox.join("data"))
        .without_fsync()
        .option("restore_command", site.restore().words("%f %p").shell())
        .create();
    promoted.touch("standby.signal");
    promoted.start();
    promoted.promote();
    fill(&promoted, 2, 8);
    promoted.stop(Stop::Fast);
    origin.start();
    fill(&origin, 3, 12);
    origin.stop(Stop::Fast);
    let decide = [
        "timeline",
        "restore",
        "2",
        "--reason",
        "a test",
        "--confirm",
    ];
    site.pitr().args(decide).succeed();

    let to = site.sandbox().dir("copy").join("data");
    let (noted, log) = noting(&site, site.sandbox());
    // The first segment of the second timeline is asked for when some of the first wait that will not be.
    let stale = site.sandbox().file("stale", "");
    let script = site.sandbox().file(
        "stale.sh",
        format!(
            "if [ ! -s {stale} ]; then case $1 in 00000002????????????????)\n\
             n=0; until ls $(dirname $2)/pitr.ahead | grep ^00000001 > {stale} || [ $n -ge 600 ]; do sleep 0.1; n=$((n+1)); done;;\n\
             esac; fi\n{noted}\n",
            stale = stale.display()
        )
        .replace("%f %p", "\"$1\" \"$2\""),
    );
    let command = format!("/bin/sh {} %f %p", script.display());
    let mut copy = copy(&site, 19, &to, &command);
    copy.start();
    assert_eq!(rows(&copy), "1: 600, 2: 800");
    let text = std::fs::read_to_string(&stale).unwrap();
    assert!(text.contains("00000001"), "some had been fetched ahead");
    let waited = count(&log, "waited 00000002");
    assert!(waited >= 5, "{waited} of the second timeline");
    wait_gone(&to);
}
