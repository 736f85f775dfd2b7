//! Segments of which only a part is archived: increments, partials, and what is handed out of them.

use std::path::{Path, PathBuf};

use pitr::pg::lsn::Lsn;
use pitr::pg::segment::{SegmentName, SegmentSize};
use pitr::pg::timeline::TimelineId;
use pitr::repo::event::{self, Event};
use pitr::repo::repository::Repository;
use pitr::wal::increment::{self, OpenSegment};

use serde_json::Value;

use crate::backup::{backup, extract, layout, root, store};
use crate::common::{
    Cluster, Run, Sandbox, Site, Still, Stop, keep_one, unpadded, user, wait_until,
};
use crate::per_major;

const MIB: u64 = 1 << 20;

fn plan(site: &Site, args: &[&str]) -> Value {
    let run = site.pitr().words("plan --json").args(args).run();
    run.json()
}

/// The segment of a server's pg_wal that holds what ends at `end`.
fn segment_of(cluster: &Cluster, timeline: u32, end: Lsn) -> (SegmentName, PathBuf) {
    let size = SegmentSize::new(MIB).unwrap();
    let timeline = pitr::pg::timeline::TimelineId::new(timeline).unwrap();
    let name = SegmentName::of(timeline, Lsn(end.0 - 1), size);
    let path = cluster.pgdata().join("pg_wal").join(name.to_string());
    (name, path)
}

/// Puts what a receiver would have put: the bytes of a segment from `from` to `to`, in pieces of at most `step`.
pub fn stream(site: &Site, path: &Path, name: SegmentName, from: Lsn, to: Lsn, step: u64) {
    let repository = Repository::open(Box::new(store(site))).unwrap();
    let segment = OpenSegment {
        name,
        size: SegmentSize::new(MIB).unwrap(),
        major: 17,
    };
    let bytes = std::fs::read(path).unwrap();
    let start = segment.range().unwrap().start;
    let mut at = from;
    while at < to {
        let end = Lsn((at.0 + step).min(to.0));
        let offset = |lsn: Lsn| (lsn.0 - start.0) as usize;
        let content = &bytes[offset(at)..offset(end)];
        increment::put(&repository, &layout(site), &segment, at, content).unwrap();
        at = end;
    }
    let timeline = site
        .cluster_folder()
        .join("wal")
        .join(&name.to_string()[..8]);
    user::own_all(&timeline);
}

fn start_of(name: SegmentName) -> Lsn {
    name.start_lsn(SegmentSize::new(MIB).unwrap()).unwrap()
}

fn ids(cluster: &Cluster) -> String {
    cluster.value("select array_agg(id order by id)::text from t")
}

/// The rows at the end of a timeline, by a restore.
fn restored(site: &Site, major: u32, timeline: &str) -> String {
    let copy = Sandbox::new("copy");
    let to = copy.join("data");
    site.pitr()
        .restore_to(&to)
        .args(["--target-timeline", timeline])
        .succeed();
    let server = Cluster::open(major, &to).without_fsync().promoted();
    ids(&server)
}

/// Inserts a row in a transaction of its own; returns its xid and where its commit ends.
fn commit(cluster: &Cluster, id: u32) -> (u64, Lsn) {
    let client = cluster.client();
    client.sql(&format!("insert into t values ({id})"));
    let xid = client.value(&format!("select xmin::text from t where id = {id}"));
    let end = client.value("select pg_current_wal_flush_lsn()");
    (xid.parse().unwrap(), end.parse().unwrap())
}

/// A cluster with a backup, whose last commits are in a segment that was only streamed, up to the middle of a record.
struct Lost {
    site: Site,
    major: u32,
    last_xid: u64,
    name: SegmentName,
    /// End of the last commit that was streamed.
    end: Lsn,
}

impl Lost {
    fn new(major: u32) -> Lost {
        let (site, mut cluster) = Site::with_cluster(major);
        // Nothing else writes WAL where the cut is made.
        cluster.sql("create table t (id int); create table big (b text)");
        backup(&site).succeed();
        commit(&cluster, 1);
        cluster.archive_now();
        commit(&cluster, 2);
        let (last_xid, end) = commit(&cluster, 3);
        cluster.sql(
            "insert into big select string_agg(md5(g::text), '') from generate_series(1, 60) g",
        );
        commit(&cluster, 4);
        let (name, path) = segment_of(&cluster, 1, end);
        // Another process of the server may have written in between: the cut is behind the commit in any case.
        let cut = Lsn(end.0 + 40);
        cluster.stop(Stop::Immediate);
        stream(&site, &path, name, start_of(name), cut, 30_001);
        // The primary is gone with all it had.
        std::fs::remove_dir_all(cluster.pgdata()).unwrap();
        Lost {
            site,
            major,
            last_xid,
            name,
            end,
        }
    }

    fn restored(&self, name: &str, args: &[&str]) -> (Cluster, Sandbox) {
        let copy = Sandbox::new(name);
        let to = copy.join("data");
        self.site.pitr().restore_to(&to).args(args).succeed();
        let server = Cluster::open(self.major, &to).without_fsync().promoted();
        (server, copy)
    }

    /// A server on the backup without any target: it goes as far as it gets WAL.
    fn recovered(&self, id: &str) -> (Cluster, Sandbox) {
        let copy = Sandbox::new("copy");
        let folder = copy.dir("data");
        extract(&self.site, &root(&self.site, id), &folder);
        std::fs::write(folder.join("recovery.signal"), "").unwrap();
        user::own(&folder.join("recovery.signal"));
        let command = self.site.restore().words("%f %p").shell();
        let server = Cluster::open(self.major, &folder)
            .option("archive_mode", "off")
            .option("restore_command", command)
            .option("recovery_target_timeline", "latest")
            .promoted();
        (server, copy)
    }
}

fn f21_a_lost_primary_costs_nothing_that_was_streamed(major: u32) {
    let lost = Lost::new(major);
    let p = plan(&lost.site, &[]);
    assert_eq!(p["reachable"], true, "{p:#}");
    assert_eq!(p["outcome"], "end_of_wal");
    assert_eq!(p["last_commit"]["xid"], lost.last_xid, "{p:#}");
    assert_eq!(p["segments_needed"]["last"], lost.name.to_string());
    let stop: Lsn = p["stop"]["end_lsn"].as_str().unwrap().parse().unwrap();
    assert!(lost.end <= stop && stop.0 < lost.end.0 + 40, "{p:#}");

    // To the end, as pitr restores: the server stops at the last record that was streamed.
    let (server, _copy) = lost.restored("end", &[]);
    assert_eq!(ids(&server), "{1,2,3}");
    let at = p["stop"]["lsn"].as_str().unwrap();
    server.wait_log(&format!(
        "recovery stopping after WAL location (LSN) \"{at}\""
    ));

    // To a transaction in the tail.
    let target = (lost.last_xid - 1).to_string();
    let (server, _copy) = lost.restored("xid", &["--target-xid", &target]);
    assert_eq!(ids(&server), "{1,2}");

    // Without a target the server finds the end by itself: a record of length zero, no damage.
    let id = p["backup"]["id"].as_str().unwrap();
    let (server, _copy) = lost.recovered(id);
    assert_eq!(ids(&server), "{1,2,3}");
    let log = server.log();
    // "wanted" or "expected", by version.
    let end = log
        .lines()
        .find(|l| l.contains("invalid record length at"))
        .unwrap_or_default();
    assert!(end.contains(": ") && end.contains("got 0"), "{end}\n{log}");
    let redo = log.lines().find(|l| l.contains("redo done at")).unwrap();
    assert!(redo.contains(at), "{redo} {at}");
}
per_major!(f21_a_lost_primary_costs_nothing_that_was_streamed, v13 v17 v19);

/// The last segment of a timeline whose server died is archived as a partial when its standby is promoted.
fn h06_the_partial_of_an_old_timeline_leads_to_its_end(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (id int)");
    backup(&site).succeed();
    commit(&primary, 1);
    primary.archive_now();
    let standby = Cluster::builder(major).standby_of(&primary).create();
    site.attach(&standby);
    let mut standby = standby;
    standby.start();
    let (last_xid, end) = commit(&primary, 2);
    standby.wait_replayed(&end);
    let (name, _) = segment_of(&primary, 1, end);
    drop(primary);
    standby.promote();
    standby.wait_promoted();
    commit(&standby, 3);
    standby.archive_now();
    let partial = site.object(&format!("{name}.partial"));
    wait_until("the partial is archived", || partial.exists());
    drop(standby);

    let p = plan(&site, &["--target-timeline", "1"]);
    assert_eq!(p["reachable"], true, "{p:#}");
    assert_eq!(p["last_commit"]["xid"], last_xid, "{p:#}");
    for (timeline, rows) in [("1", "{1,2}"), ("2", "{1,2,3}")] {
        assert_eq!(restored(&site, major, timeline), rows, "{timeline}");
    }
    // As people see it.
    let listed = site.pitr().words("wal list --json").run().json();
    let tail = &listed["timelines"][0]["tails"][0];
    assert_eq!(tail["name"], name.to_string(), "{listed:#}");
    assert_eq!(tail["has_partial"], true);
    let shown = site
        .pitr()
        .args(["wal", "show", &name.to_string(), "--json"])
        .succeed()
        .json();
    assert_eq!(shown["kind"], "partial");
    let commits = shown["commits"].as_array().unwrap();
    assert_eq!(commits.last().unwrap()["xid"], last_xid, "{shown:#}");
    site.pitr().arg("verify").succeed();
}
per_major!(h06_the_partial_of_an_old_timeline_leads_to_its_end, v14 v16 v19);

/// Row L51: a primary died ahead of the standby that was promoted. Its last segment, brought in by hand, gives its last commits to the old timeline.
fn l51_what_a_dead_primary_had_ahead_of_its_successor_is_on_the_old_timeline(major: u32) {
    let (site, mut primary) = Site::with_cluster(major);
    primary.sql("create table t (id int)");
    backup(&site).succeed();
    commit(&primary, 1);
    primary.archive_now();
    let mut standby = Cluster::builder(major).standby_of(&primary).create();
    site.attach(&standby);
    standby.start();
    let (_, end) = commit(&primary, 2);
    standby.wait_replayed(&end);
    standby.set("primary_conninfo", "");
    wait_until("it is on its own", || {
        standby.value("select count(*) from pg_stat_wal_receiver") == "0"
    });
    let (last_xid, end) = commit(&primary, 3);
    let (name, path) = segment_of(&primary, 1, end);
    primary.stop(Stop::Immediate);
    standby.promote();
    commit(&standby, 4);
    standby.archive_now();
    let partial = site.object(&format!("{name}.partial"));
    wait_until("the partial is archived", || partial.exists());
    drop(standby);

    let last = || plan(&site, &["--target-timeline", "1"])["last_commit"]["xid"].clone();
    assert_ne!(last(), last_xid);
    let push = site.pitr().words("wal push").arg(&path);
    let run = push.clone().succeed();
    assert!(run.stderr.contains("continues it up to"), "{run}");
    assert_eq!(last(), last_xid, "{run}");
    push.succeed();
    for (timeline, rows) in [("1", "{1,2,3}"), ("2", "{1,2,4}")] {
        assert_eq!(restored(&site, major, timeline), rows, "{timeline}");
    }
    site.pitr().arg("verify").succeed();
}
per_major!(l51_what_a_dead_primary_had_ahead_of_its_successor_is_on_the_old_timeline, v13 v19);

/// A standby may have streamed more than the archive holds: what it has is never replaced by less, or its promotion would fail.
fn f18_a_tail_never_replaces_what_a_standby_has_streamed(major: u32) {
    let (site, mut primary) = Site::with_cluster(major);
    primary.sql("create table t (id int)");
    primary.archive_now();
    let restore = site.restore().words("%f %p").shell();
    let standby = Cluster::builder(major)
        .standby_of(&primary)
        .config("restore_command", &restore)
        .config("archive_mode", "off")
        .start();
    let (_, early) = commit(&primary, 1);
    let (_, late) = commit(&primary, 2);
    standby.wait_replayed(&late);
    let (name, path) = segment_of(&primary, 1, early);
    assert_eq!(segment_of(&primary, 1, late).0, name);
    primary.stop(Stop::Immediate);
    stream(&site, &path, name, start_of(name), early, MIB);
    // The standby looks into the archive again, now that nobody streams, and then is promoted.
    standby.wait_log("could not connect to the primary server");
    standby.promote();
    standby.wait_promoted();
    assert_eq!(ids(&standby), "{1,2}");
}

per_major!(f18_a_tail_never_replaces_what_a_standby_has_streamed, v13 v19);

/// A standby with `archive_mode = always` archives what it has restored; a padded tail must not get into the archive as the segment, and archiving
/// must not wait for it: nothing says that the segment will ever be complete here.
#[test]
fn f21_a_standby_that_archives_always_archives_a_padded_tail_as_a_partial() {
    let (site, mut primary) = Site::with_cluster(17);
    primary.sql("create table t (id int)");
    primary.archive_now();
    let restore = site.restore().words("%f %p").shell();
    let archive = site.archive().arg("%p").shell();
    let mut standby = Cluster::builder(17)
        .standby_of(&primary)
        .config("restore_command", &restore)
        .config("archive_mode", "always")
        .config("archive_command", &archive)
        .option("primary_conninfo", "")
        .config("wal_retrieve_retry_interval", "200ms")
        .create();
    let (_, end) = commit(&primary, 1);
    let (name, path) = segment_of(&primary, 1, end);
    stream(&site, &path, name, start_of(name), end, MIB);
    standby.start();
    wait_until("the standby has replayed the tail", || {
        standby.value("select count(*) from t") == "1"
    });
    standby.wait_log("it was archived as a partial segment");
    assert!(!site.object(&name.to_string()).exists());
    assert!(site.object(&format!("{name}.partial")).exists());
    // Once the segment is complete both archive it, and it is the same.
    commit(&primary, 2);
    assert_eq!(primary.archive_now(), name.to_string());
    wait_until("the standby has replayed the whole segment", || {
        standby.value("select count(*) from t") == "2"
    });
    let status = standby.pgdata().join("pg_wal/archive_status");
    wait_until("the standby has archived it, too", || {
        status.join(format!("{name}.done")).exists()
    });
    // A padded copy of a timeline that ended is the partial that it is.
    let conflicts = site.cluster_folder().join("conflicts");
    assert!(!conflicts.exists());
    primary.stop(Stop::Immediate);
}

/// A place in which a server recovers, without a server.
struct Asking {
    copy: Sandbox,
}

impl Asking {
    fn new() -> Asking {
        let copy = Sandbox::new("asking");
        copy.dir("data/pg_wal");
        Asking { copy }
    }

    fn target(&self) -> PathBuf {
        self.copy.join("data/pg_wal/RECOVERYXLOG")
    }

    fn fetch(&self, site: &Site, name: &str) -> Run {
        let _ = std::fs::remove_file(self.target());
        site.restore().arg(name).arg(self.target()).run()
    }

    /// Lets recovery have a target, or none.
    fn recovery(&self, target: Option<&str>) {
        let data = self.copy.join("data");
        let setting = target.map_or(String::new(), |lsn| {
            format!("recovery_target_lsn = '{lsn}'\n")
        });
        std::fs::write(data.join("postgresql.auto.conf"), setting).unwrap();
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        user::own_all(&data);
    }
}

fn is_tail(bytes: &[u8]) -> bool {
    bytes.len() as u64 == MIB && bytes.ends_with(&[0; 8192])
}

#[test]
fn f04_a_tail_is_the_end_only_where_nothing_follows() {
    let still = Still::new(17, 1, 4);
    let site = &still.site;
    let names: Vec<SegmentName> = still.segments.iter().map(|s| s.parse().unwrap()).collect();
    let (open, later) = (names[2], names[3]);
    let start = start_of(open);
    let streamed = Lsn(start.0 + 20_000);
    for name in &still.segments[..2] {
        still.push(name).succeed();
    }
    stream(
        site,
        &still.wal(&still.segments[2]),
        open,
        start,
        streamed,
        9000,
    );
    let asking = Asking::new();
    asking.recovery(None);
    let fetch = |name: SegmentName| asking.fetch(site, &name.to_string());
    let own = std::fs::read(still.wal(&still.segments[2])).unwrap();
    let is_own_tail = || {
        let bytes = std::fs::read(asking.target()).unwrap();
        is_tail(&bytes) && bytes[..8192] == own[..8192]
    };
    fetch(open).success();
    assert!(is_own_tail());
    let mut shorter = std::fs::read(asking.target()).unwrap();
    fetch(later).expect_code(1);
    // A server that has as much of it keeps its own file; one whose file is shorter, or holds other WAL, gets it.
    let local = asking.copy.join("data/pg_wal").join(open.to_string());
    std::fs::write(&local, &own).unwrap();
    fetch(open).expect_code(1);
    shorter[9000..].fill(0);
    std::fs::write(&local, &shorter).unwrap();
    fetch(open).success();
    let other = std::fs::read(still.wal(&still.segments[1])).unwrap();
    std::fs::write(&local, other).unwrap();
    fetch(open).success();
    std::fs::remove_file(&local).unwrap();

    // Anything of a later segment proves that WAL went on.
    let gap = |run: Run| {
        let run = run.expect_code(205);
        assert!(run.stderr.contains("error R205"), "{run}");
    };
    let later_start = start_of(later);
    stream(
        site,
        &still.wal(&still.segments[3]),
        later,
        later_start,
        Lsn(later_start.0 + 9000),
        MIB,
    );
    gap(fetch(open));
    fetch(later).success();
    // To a target recovery may go: it fails where it does not get there.
    asking.recovery(Some(&start.to_string()));
    fetch(open).success();
    assert!(is_own_tail());
    asking.recovery(None);
    gap(fetch(open));
    let open_folder = |name: SegmentName| {
        let wal = site.cluster_folder().join("wal/00000001");
        wal.join("open").join(name.to_string())
    };
    // Its directory alone says nothing.
    for entry in std::fs::read_dir(open_folder(later)).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fetch(open).success();
    // A hole between its own increments does.
    stream(
        site,
        &still.wal(&still.segments[2]),
        open,
        Lsn(start.0 + 30_000),
        Lsn(start.0 + 31_000),
        MIB,
    );
    gap(fetch(open));
    site.pitr().words("wal gaps").exits(4);
    stream(
        site,
        &still.wal(&still.segments[2]),
        open,
        streamed,
        Lsn(start.0 + 30_000),
        MIB,
    );
    fetch(open).success();
    site.pitr().words("wal gaps").succeed();

    // WAL that a receiver recorded as lost is a hole until it is there.
    let lost = Event {
        event: "gap".into(),
        subject: event::timeline_subject(TimelineId::FIRST),
        from_lsn: Some(Lsn(start.0 + 31_000)),
        to_lsn: Some(start_of(later)),
        ..Event::default()
    };
    event::record(&store(site), &layout(site), &lost, 7).unwrap();
    user::own_all(&site.cluster_folder().join("events"));
    gap(fetch(open));
    let gaps = site.pitr().words("wal gaps --json").exits(4).json();
    assert_eq!(
        gaps["gaps"][0]["from_lsn"],
        Lsn(start.0 + 31_000).to_string(),
        "{gaps:#}"
    );
    assert_eq!(gaps["gaps"][0]["to_lsn"], start_of(later).to_string());
    let info = site.pitr().words("info --json").run().json();
    assert_eq!(
        info["clusters"][0]["gaps"],
        json_without_names(&gaps),
        "{info:#}"
    );
    assert_eq!(info["clusters"][0]["tails"][0]["segment"], open.to_string());
    // The whole segment fills it, and supersedes everything.
    still.push(&still.segments[2]).succeed();
    site.pitr().words("wal gaps").succeed();
    fetch(open).success();
    assert_eq!(std::fs::read(asking.target()).unwrap(), own);
    // The janitor takes what it supersedes.
    let expire = keep_one(&["--grace", "0", "--confirm"]);
    // There is no backup, so no WAL goes, which is no success.
    site.pitr().args(expire).exits(6);
    let files = site.files();
    assert!(!files.iter().any(|f| f.contains("/open/")), "{files:#?}");
}

fn json_without_names(gaps: &Value) -> Value {
    let mut gaps = gaps["gaps"].clone();
    for gap in gaps.as_array_mut().unwrap() {
        gap.as_object_mut().unwrap().remove("names");
    }
    gaps
}

/// A backup from a standby has no end record: PostgreSQL calls it consistent at the minRecoveryPoint of its control file.
fn t01_immediate_from_a_standbys_backup_stops_where_the_plan_says(major: u32) {
    let (site, primary) = Site::with_cluster(major);
    primary.sql("create table t (id int)");
    let standby = Cluster::builder(major)
        .standby_of(&primary)
        .option("archive_mode", "off")
        .start();
    // WAL goes on while the backup runs, and behind it.
    let client = primary.client();
    let mut running = backup(&site)
        .env("PITR_CLUSTERS_MAIN_CONNINFO", standby.conninfo("postgres"))
        .spawn();
    while !running.is_done() {
        client.sql("insert into t select g from generate_series(1, 100) g");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.wait().success();
    primary.sql("insert into t values (0)");
    primary.archive_now();
    let p = plan(&site, &["--target-immediate"]);
    assert_eq!(p["reachable"], true, "{p:#}");
    let copy = Sandbox::new("copy");
    let to = copy.join("data");
    site.pitr()
        .restore_to(&to)
        .arg("--target-immediate")
        .succeed();
    let server = Cluster::open(major, &to).without_fsync().promoted();
    // The timeline begins where the server stopped.
    let history = unpadded(&std::fs::read_to_string(to.join("pg_wal/00000002.history")).unwrap());
    let switch = history.split('\t').nth(1).unwrap();
    assert_eq!(
        p["stop"]["recovery_end_lsn"],
        switch,
        "{p:#}\n{}",
        server.log()
    );
    let consistent = p["backup"]["consistent_lsn"].as_str().unwrap();
    let log = server.log();
    let line = log
        .lines()
        .find(|l| l.contains("consistent recovery state reached at"))
        .unwrap();
    assert!(line.ends_with(&format!("at {consistent}")), "{line} {p:#}");
}

per_major!(t01_immediate_from_a_standbys_backup_stops_where_the_plan_says, v13 v19);
