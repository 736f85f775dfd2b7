//! Restores of a backup that caught unlogged relations before their init fork was created, on real servers: recovery ends, and the relations are
//! there and empty.

use std::path::{Path, PathBuf};

use crate::backup::{committed, root};
use crate::common::{Client, Cluster, Program, Run, Sandbox, Site, Stop, fault, user, wait_until};
use crate::restore::{check_relations, verify_backup};
use crate::{per_major, require_fuse, require_strace};

/// Files that the backup has and a restore leaves out: the main forks of two indexes.
const LEFT_OUT: u64 = 2;

/// A cluster whose backup was taken while two indexes of unlogged tables were built.
struct Caught {
    site: Site,
    cluster: Cluster,
    /// The main forks of the indexes, relative to the data directory.
    indexes: Vec<String>,
}

/// Waits until so many sessions wait for the lock that holds up the builds.
fn wait_held_up(client: &Client, sessions: &str) {
    wait_until("the builds are held up", || {
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory'";
        client.value(waiting) == sessions
    });
}

impl Caught {
    fn new(major: u32, args: &[&str]) -> Caught {
        let (site, cluster) = Site::with_cluster(major);
        let client = cluster.client();
        client.sql(
            "create table t as select g as a from generate_series(1, 1000) g;
             create unlogged table u as select g as a from generate_series(1, 1000) g;
             create unlogged table v as select g as a from generate_series(1, 1000) g;
             create unlogged table w as select g as a from generate_series(1, 1000) g;
             create index on w (a);
             create function slow(int) returns int language plpgsql immutable as
             'begin perform pg_advisory_xact_lock_shared(7); return $1; end'",
        );
        client.sql("select pg_advisory_lock(7)");
        std::thread::scope(|scope| {
            for build in [
                "create index u_slow on u (slow(a))",
                "create index v_slow on v using hash (slow(a))",
            ] {
                let builder = cluster.client();
                scope.spawn(move || builder.sql(build));
            }
            wait_held_up(&client, "2");
            site.pitr().words("backup --quiet").args(args).succeed();
            client.sql("select pg_advisory_unlock(7)");
        });
        let path =
            |index| client.value(&format!("select pg_relation_filepath('{index}'::regclass)"));
        let indexes = ["u_slow", "v_slow"].map(path).to_vec();
        client.sql("insert into t select g from generate_series(1001, 1500) g");
        client.sql("select pg_create_restore_point('here')");
        client.sql(
            "insert into t select g from generate_series(1501, 2000) g;
             create unlogged table later (a int primary key)",
        );
        cluster.archive_now();
        Caught {
            site,
            cluster,
            indexes,
        }
    }

    fn restore(&self, to: &Path) -> Program {
        self.site.pitr().restore_to(to).arg("--json")
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.site.sandbox().dir("copies").join(name)
    }

    fn open(&self, data: &Path) -> Cluster {
        Cluster::open(self.cluster.major(), data)
            .without_fsync()
            .create()
    }

    /// The files that are left out are not there, and the report counts them.
    fn check_left_out(&self, run: &Run, data: &Path) {
        let left_out = &run.json()["restored"]["unlogged_left_out_file_count"];
        assert_eq!(*left_out, LEFT_OUT, "{run}");
        for index in &self.indexes {
            assert!(!data.join(index).exists(), "{index}");
        }
    }
}

/// Recovery has ended, and all unlogged relations are empty and serve.
fn check_serves(server: &Cluster, rows: &str) {
    let client = server.client();
    assert_eq!(client.value("select count(*) from t"), rows);
    client.sql("set enable_seqscan = off; set enable_bitmapscan = off");
    for (table, condition) in [("u", "slow(a) = 5"), ("v", "slow(a) = 5"), ("w", "a = 5")] {
        let count = format!("select count(*) from {table}");
        assert_eq!(client.value(&count), "0", "{table}");
        client.sql(&format!(
            "insert into {table} select g from generate_series(1, 100) g"
        ));
        let found = format!("select count(*) from {table} where {condition}");
        let plan = client.sql(&format!("explain {found}"));
        let uses = |row: &Vec<Option<String>>| row[0].as_deref().unwrap().contains("Index");
        assert!(plan.iter().any(uses), "{plan:?}");
        assert_eq!(client.value(&found), "1", "{table}");
    }
    check_relations(server);
}

fn goes_the_whole_way(caught: &Caught) {
    let major = caught.cluster.major();
    for (name, target, rows) in [
        ("latest", &[][..], "2000"),
        ("point", &["--target-name", "here"], "1500"),
    ] {
        let data = caught.copy(name);
        let run = caught.restore(&data).args(target).succeed();
        caught.check_left_out(&run, &data);
        verify_backup(major, &data);
        let mut server = caught.open(&data);
        server.start();
        server.wait_promoted();
        check_serves(&server, rows);
    }
}

fn t34_a_local_backup_that_caught_an_unlogged_index_is_restored(major: u32) {
    goes_the_whole_way(&Caught::new(major, &["--method", "local"]));
}
per_major!(t34_a_local_backup_that_caught_an_unlogged_index_is_restored, v13 v16 v18 v19);

fn t34_a_streamed_backup_that_caught_an_unlogged_index_is_restored(major: u32) {
    let caught = Caught::new(major, &["--method", "stream"]);
    goes_the_whole_way(&caught);
    // Before the index was there nothing is left out: its build is undone.
    let id = committed(&caught.site).pop().unwrap();
    let stop_lsn = root(&caught.site, &id).content.stop_lsn.to_string();
    let data = caught.copy("before");
    let run = caught
        .restore(&data)
        .args(["--target-lsn", &stop_lsn])
        .succeed();
    let left_out = &run.json()["restored"]["unlogged_left_out_file_count"];
    assert_eq!(*left_out, 0, "{run}");
    assert!(data.join(&caught.indexes[0]).exists());
    let mut server = caught.open(&data);
    server.start();
    server.wait_promoted();
    let indexes = "select count(*) from pg_class where relname ~ '_slow$'";
    assert_eq!(server.value(indexes), "0");
}
per_major!(t34_a_streamed_backup_that_caught_an_unlogged_index_is_restored, v13 v16 v18 v19);

#[test]
fn t34_what_an_older_version_had_restored_already_is_removed() {
    require_strace!("t34_what_an_older_version_had_restored_already_is_removed");
    let mut caught = Caught::new(18, &["--method", "local"]);
    let data = caught.copy("resumed");
    let restore = caught.restore(&data);
    let (_, fired) = fault::inject(&restore, &fault::Fault::kill("syncfs"));
    assert_eq!(fired, 1);
    for index in &caught.indexes {
        let path = data.join(index);
        assert!(!path.exists(), "{index}");
        std::fs::write(&path, [7; 8192]).unwrap();
        user::own_all(&path);
    }
    let run = restore.succeed();
    assert_eq!(run.json()["restored"]["resumed"], true, "{run}");
    caught.check_left_out(&run, &data);
    verify_backup(18, &data);
    // Restored in place, the data directory has both forks.
    caught.cluster.stop(Stop::Fast);
    let pgdata = caught.cluster.pgdata().to_owned();
    for index in &caught.indexes {
        assert!(pgdata.join(index).exists() && pgdata.join(format!("{index}_init")).exists());
    }
    let run = caught.restore(&pgdata).words("--delta --confirm").succeed();
    caught.check_left_out(&run, &pgdata);
    verify_backup(18, &pgdata);
    caught.cluster.start();
    caught.cluster.wait_promoted();
    check_serves(&caught.cluster, "2000");
}

/// The remedy for a directory that was restored with these files: its second start removes them.
fn t34_a_server_that_died_of_such_a_file_comes_up_at_its_second_start(major: u32) {
    let caught = Caught::new(major, &["--method", "local"]);
    let data = caught.copy("died");
    caught.restore(&data).succeed();
    for index in &caught.indexes {
        std::fs::write(data.join(index), [7; 8192]).unwrap();
        user::own_all(&data.join(index));
    }
    let mut server = caught.open(&data);
    server.spawn();
    assert_ne!(server.wait_ended(), 0);
    server.wait_log("File exists");
    server.start();
    server.wait_promoted();
    check_serves(&server, "2000");
}
per_major!(t34_a_server_that_died_of_such_a_file_comes_up_at_its_second_start, v13 v16 v18 v19);

#[test]
fn t34_a_standby_that_is_promoted_opens() {
    let caught = Caught::new(18, &["--method", "local"]);
    let data = caught.copy("standby");
    let run = caught
        .site
        .pitr()
        .words("standby --to")
        .arg(&data)
        .args(["--primary-conninfo", &caught.cluster.conninfo("postgres")])
        .succeed()
        .expect_stdout("2 files of unlogged relations");
    for index in &caught.indexes {
        assert!(!data.join(index).exists(), "{run}");
    }
    let mut standby = caught.open(&data);
    standby.start();
    standby.wait_log("started streaming WAL from primary");
    standby.promote();
    standby.wait_promoted();
    check_serves(&standby, "2000");
}

#[test]
fn t34_a_clone_opens() {
    require_fuse!("t34_a_clone_opens");
    let caught = Caught::new(18, &["--method", "stream"]);
    let folder = Sandbox::on_disk("c");
    let bin = crate::common::bin(18, "initdb").unwrap();
    let of = |program: Program| {
        program
            .arg("--dir")
            .arg(folder.path())
            .arg("--bin")
            .arg(bin.parent().unwrap())
    };
    let run = of(caught.site.pitr().words("clone --json")).succeed();
    let clone = crate::clone::client(&run);
    assert_eq!(clone.value("select count(*) from t"), "2000");
    assert_eq!(clone.value("select count(*) from u"), "0");
    clone.sql("insert into u select g from generate_series(1, 100) g; set enable_seqscan = off");
    assert_eq!(clone.value("select count(*) from u where slow(a) = 5"), "1");
    drop(clone);
    caught
        .site
        .pitr()
        .args(["clone", "stop", &run.id(), "--dir"])
        .arg(folder.path())
        .succeed();
}
