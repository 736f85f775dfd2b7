//! A server is promoted in the segment in which a backup stops: in the backup's life, or in another one that was written past its end. Positions are the
//! same in both.

use std::path::PathBuf;

use serde_json::Value;

use crate::common::{Cluster, Run, Site, Stop, copy_tree, expire_at_once, user, wait_until};
use crate::per_major;
use crate::resolve::{backups, restored};
use crate::sealed::Sealed;

/// A snapshot of a server, and what it did from there on: a backup that stops in its first segment.
struct Snapshot {
    site: Site,
    server: Cluster,
    snapshot: PathBuf,
    common: String,
    own: String,
    stop: String,
}

impl Snapshot {
    fn new(major: u32) -> Snapshot {
        // No life fills the segment in which they part.
        let builder = Cluster::builder(major)
            .without_fsync()
            .config("autovacuum", "off");
        let (site, mut server) = Site::with_cluster_of(builder);
        server.sql("create table t (id int primary key, life text)");
        server.sql("insert into t select g, 'common' from generate_series(1, 2000) g");
        server.sql("vacuum freeze t");
        let common = site.backup();
        server.sql("checkpoint");
        // A backup that begins in a new segment stays in it.
        server.archive_now();
        let snapshot = server.sandbox().join("snapshot");
        copy_tree(server.pgdata(), &snapshot);
        std::fs::remove_file(snapshot.join("postmaster.pid")).unwrap();
        user::own_all(&snapshot);
        let args = ["backup", "--json", "--max-rate", "8MiB"];
        let running = site.pitr().args(args).spawn();
        let copying = "select count(*) > 0 from pg_stat_progress_basebackup where phase = 'streaming database files'";
        wait_until("the backup copies", || server.value(copying) == "t");
        server.sql("update t set life = 'first' where id <= 100");
        server.sql("checkpoint");
        let own = running.wait().success().id();
        let content = crate::backup::root(&site, &own).content;
        let stop = content.stop_lsn.to_string();
        server.stop(Stop::Immediate);
        Snapshot {
            site,
            server,
            snapshot,
            common,
            own,
            stop,
        }
    }

    /// The snapshot is the server again.
    fn revert(&mut self) {
        let away = self.server.sandbox().join("away");
        std::fs::rename(self.server.pgdata(), away).unwrap();
        std::fs::rename(&self.snapshot, self.server.pgdata()).unwrap();
    }

    /// Archives a segment of timeline 2, the one in which it begins.
    fn goes_on(&self) {
        let first = self.server.archive_now();
        let stop = crate::backup::root(&self.site, &self.own).content.wal_proof;
        let last = stop.unwrap().last.name.to_string();
        assert_eq!(first, last.replacen("00000001", "00000002", 1));
        self.server.archive_now();
        assert!(!self.site.cluster_folder().join("conflicts").exists());
    }

    fn plan(&self, args: &[&str]) -> Value {
        let plan = self.site.pitr().words("plan --json").args(args).run();
        plan.success().json()
    }

    fn incremental(&self) -> Run {
        let args = ["backup", "--incremental", "--method", "local", "--json"];
        let run = self.site.pitr().args(args).succeed();
        assert_eq!(run.json()["kind"], "incremental", "{run}");
        run
    }

    fn restored(&self, name: &str) -> String {
        restored(&self.site, self.server.major(), name, &[])
    }
}

/// Row T76: a server is set back to a snapshot, written past the end of a backup that was taken since, and promoted in the segment in which that stops.
fn t76_a_backup_leads_to_no_timeline_of_a_life_that_was_written_past_its_end(major: u32) {
    let mut two = Snapshot::new(major);
    two.revert();
    let server = &mut two.server;
    server.start();
    let is_past = format!("select pg_current_wal_flush_lsn() > '{}'", two.stop);
    while server.value(&is_past) == "f" {
        server.sql("select pg_logical_emit_message(true, 'pitr', repeat('x', 10000))");
    }
    server.stop(Stop::Immediate);
    server.touch("standby.signal");
    server.start();
    server.promote();
    two.goes_on();

    let (common, own) = (two.common.as_str(), two.own.as_str());
    let plan = two.plan(&[]);
    assert_eq!(plan["backup"]["id"], common, "{plan:#}");
    let left = plan["backups_not_chosen"].as_array().unwrap();
    let why = left.iter().find(|b| b["id"] == own).unwrap();
    assert_eq!(why["reason"], "backup_wal_foreign", "{plan:#}");
    // Its own life is there.
    let plan = two.plan(&["--backup", own]);
    assert_eq!(plan["target_timeline"], 1, "{plan:#}");
    let doctor = two.site.pitr().words("doctor --json").run().json();
    let newest = format!("{doctor:#}");
    assert!(
        newest.contains(&format!("\"value\": \"{common}, ")),
        "{newest}"
    );
    let verify = two.site.pitr().arg("verify").succeed();
    let words = format!("backup \"{own}\" does not lead to timeline 2");
    assert!(verify.stderr.contains(&words), "{verify}");
    for _ in 0..2 {
        two.site.pitr().args(expire_at_once()).succeed();
    }
    assert_eq!(backups(&two.site), [common, own]);
    assert_eq!(two.restored("full"), "common 2000");

    let run = two.incremental();
    assert!(run.stderr.contains("every page is read"), "{run}");
    assert!(run.stderr.contains("not surely a continuation"), "{run}");
    assert_eq!(two.restored("incremental"), "common 2000");
    two.site.pitr().arg("verify").succeed();
}
per_major!(t76_a_backup_leads_to_no_timeline_of_a_life_that_was_written_past_its_end, v13 v15 v17 v19);

/// Row T76: the same fork in the backup's own life.
fn t76_a_backup_leads_to_the_timeline_that_begins_at_its_end(major: u32) {
    let mut two = Snapshot::new(major);
    two.revert();
    let server = &mut two.server;
    let restore = two.site.restore().words("%f %p").shell();
    server.append_config("restore_command", &restore);
    server.append_config("recovery_target_lsn", &two.stop);
    server.append_config("recovery_target_inclusive", "off");
    server.append_config("recovery_target_action", "promote");
    server.touch("recovery.signal");
    server.start();
    server.wait_promoted();
    two.goes_on();

    let plan = two.plan(&[]);
    assert_eq!(plan["backup"]["id"], two.own.as_str(), "{plan:#}");
    assert_eq!(plan["target_timeline"], 2, "{plan:#}");
    let verify = two.site.pitr().arg("verify").succeed();
    assert!(!verify.stderr.contains("does not lead"), "{verify}");
    assert_eq!(two.restored("full"), "common 1900, first 100");
    let run = two.incremental();
    assert!(!run.stderr.contains("every page is read"), "{run}");
    assert_eq!(two.restored("incremental"), "common 1900, first 100");
    two.site.pitr().args(expire_at_once()).succeed();
    assert!(!backups(&two.site).contains(&two.common));
}
per_major!(t76_a_backup_leads_to_the_timeline_that_begins_at_its_end, v13 v15 v17 v19);

/// Row T76: nothing tells a janitor without keys whether a timeline that begins in the last segment of a backup goes on from it.
#[test]
fn t76_a_janitor_without_keys_keeps_a_backup_that_surely_leads_to_the_timeline() {
    let (sealed, mut cluster) = Sealed::archived(17);
    cluster.sql("create table t as select generate_series(1, 1000)");
    let backup = || {
        let args = ["backup", "--json", "--full"];
        sealed.on("writer").args(args).succeed().id()
    };
    let first = backup();
    cluster.archive_now();
    let second = backup();
    cluster.stop(Stop::Fast);
    std::fs::rename(cluster.pgdata(), cluster.sandbox().join("away")).unwrap();
    let args = ["restore", "--quiet", "--target-immediate", "--backup"];
    let restore = sealed.on("reader").args(args).arg(&second);
    restore.arg("--to").arg(cluster.pgdata()).succeed();
    sealed.on("writer").words("adopt --quiet").succeed();
    cluster.start();
    cluster.wait_promoted();
    assert!(cluster.archive_now().starts_with("00000002"));
    let left = |host: &str| {
        sealed.on(host).args(expire_at_once()).succeed();
        let folder = sealed.folder("packs");
        [&first, &second].map(|id| folder.join(id).exists())
    };
    sealed.on("reader").arg("verify").succeed();
    assert_eq!(left("janitor"), [true, true]);
    assert_eq!(left("reader"), [false, true]);
    sealed.on("reader").arg("verify").succeed();
}
