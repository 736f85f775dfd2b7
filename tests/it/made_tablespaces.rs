//! Recovery makes a tablespace again in the directory that WAL names. On the host of the cluster these are its own files: nothing writes there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::clone::client;
use crate::common::{
    Cluster, Program, Sandbox, Site, Stop, bin, fault, files_below, paths_below, wait_until,
};
use crate::{per_major, require_fuse, require_strace};

/// A cluster that made a tablespace after its backup, and is stopped.
struct Made {
    site: Site,
    cluster: Cluster,
    space: PathBuf,
    folder: Sandbox,
}

impl Made {
    fn new(major: u32) -> Made {
        let (site, cluster) = Site::with_cluster(major);
        cluster.sql("create table t as select g as a from generate_series(1, 1000) g");
        site.pitr().words("backup --quiet").succeed();
        let space = cluster.sandbox().dir("space");
        let location = space.display();
        cluster.sql(&format!("create tablespace late location '{location}'"));
        for step in [
            "create table m tablespace late as select g as a, 1 as b from generate_series(1, 5000) g",
            "checkpoint",
            "select pg_create_restore_point('here')",
            // Pages that recovery would set back, and a tail that it would cut.
            "update m set b = 2",
            "insert into m select g, 3 from generate_series(1, 5000) g",
            "checkpoint",
        ] {
            cluster.sql(step);
        }
        cluster.archive_now();
        let mut made = Made {
            site,
            cluster,
            space,
            folder: Sandbox::on_disk("made"),
        };
        made.cluster.stop(Stop::Fast);
        made
    }

    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let read = |path: PathBuf| {
            let content = std::fs::read(&path).unwrap();
            (path, content)
        };
        paths_below(&self.space).into_iter().map(read).collect()
    }

    fn to(&self, program: Program) -> Program {
        program.words("--target-name here")
    }

    fn drill(&self) -> Program {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        let drill = self.site.pitr().words("drill --dir");
        let drill = drill.arg(self.folder.path()).arg("--bin");
        drill.arg(initdb.parent().unwrap())
    }

    fn restore(&self, to: &Path) -> Program {
        self.to(self.site.pitr().restore_to(to))
    }
}

fn t60_recovery_writes_into_no_files_of_a_tablespace_that_it_makes(major: u32) {
    let mut made = Made::new(major);
    let before = made.content();
    assert!(before.len() > 1, "{before:?}");
    // A host without namespaces starts nothing. Elsewhere a directory of the drill lies over the cluster's.
    for drill in [made.drill(), made.to(made.drill())] {
        without_namespaces(drill.clone())
            .exits(8)
            .expect_stderr("outside of the copy");
        drill.succeed();
    }
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );
    assert!(files_below(made.folder.path()).is_empty());
    let copy = made.site.sandbox().dir("copies").join("copy");
    made.restore(&copy)
        .exits(8)
        .expect_stderr("would write into the files of");
    assert!(!copy.exists());
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );

    // Its own server has what it had, and the next backup leads the tablespace elsewhere.
    made.cluster.start();
    let sum = "select count(*) || ' ' || sum(b) from m";
    assert_eq!(made.cluster.value(sum), "10000 25000");
    made.site.pitr().words("backup --quiet").succeed();
    made.cluster.sql("insert into m values (0, 0)");
    made.cluster.archive_now();
    made.drill().succeed();

    // Once the files are moved away, recovery makes the tablespace in the empty directory.
    made.cluster.stop(Stop::Fast);
    let aside = made.site.sandbox().dir("aside");
    for entry in std::fs::read_dir(&made.space).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), aside.join(entry.file_name())).unwrap();
    }
    made.restore(&copy).succeed();
    let own = Cluster::open(major, &copy).promoted();
    assert_eq!(own.value(sum), "5000 5000");
}
per_major!(t60_recovery_writes_into_no_files_of_a_tablespace_that_it_makes, v13 v18);

/// A search path that has no `unshare`.
fn without_namespaces(program: Program) -> Program {
    program.env("PATH", "/nonexistent")
}

fn t70_a_clone_makes_tablespaces_in_directories_of_its_own(major: u32) {
    require_fuse!("t70_a_clone_makes_tablespaces_in_directories_of_its_own");
    let made = Made::new(major);
    let before = made.content();
    let folder = made.folder.path();
    let at = ["--target-name", "here"];
    let initdb = bin(major, "initdb").unwrap();
    let placed = |program: Program| {
        let program = program.arg("--dir").arg(folder).args(at).arg("--bin");
        program.arg(initdb.parent().unwrap())
    };
    let sum = "select count(*) || ' ' || sum(b) from m";
    let query = placed(made.site.pitr().arg("query")).arg(sum);
    query.succeed().expect_stdout("5000 5000");
    without_namespaces(query)
        .exits(8)
        .expect_stderr("outside of the copy");

    let run = placed(made.site.pitr().words("clone --json"));
    let run = run.succeed();
    let clone = client(&run);
    assert_eq!(clone.value(sum), "5000 5000");
    clone.sql("insert into m values (0, 7); create table n tablespace late as select 1");
    drop(clone);
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );
    // Kept, it has its files where its own server finds them.
    let below = |words: &[&str]| {
        let program = made.site.pitr().arg("clone").args(words);
        program.arg("--dir").arg(folder).succeed()
    };
    below(&["keep", &run.id()]);
    wait_until("all of the clone is there", || {
        let list = below(&["list", "--json"]).json();
        list.to_string().contains("\"whole\"")
    });
    let stopped = below(&["stop", &run.id(), "--json"]).json();
    let data = stopped["data"].as_str().unwrap();
    let own = Cluster::open(major, data).start();
    assert_eq!(own.value(sum), "5001 5007");
    assert_eq!(own.value("select count(*) from n"), "1");
    drop(own);
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );
}
per_major!(t70_a_clone_makes_tablespaces_in_directories_of_its_own, v13 v18);

#[test]
fn t70_a_mount_and_a_host_without_the_directory_are_refused() {
    require_fuse!("t70_a_mount_and_a_host_without_the_directory_are_refused");
    let made = Made::new(17);
    let folder = made.folder.path();
    let at = ["--target-name", "here"];
    let mount = made.site.pitr().arg("mount");
    let mount = mount.arg(made.folder.dir("at")).args(at);
    mount.exits(8).expect_stderr("outside of the copy");
    std::fs::rename(&made.space, made.space.with_extension("away")).unwrap();
    let initdb = bin(17, "initdb").unwrap();
    for command in ["clone", "drill"] {
        let program = made.site.pitr().arg(command).arg("--bin");
        let program = program.arg(initdb.parent().unwrap()).arg("--dir");
        let run = program.arg(folder).args(at).exits(8);
        run.expect_stderr("which is no directory that this user can see");
    }
}

#[test]
fn a_directory_that_recovery_needs_is_named_where_it_does_not_exist() {
    let made = Made::new(17);
    std::fs::rename(&made.space, made.space.with_extension("away")).unwrap();
    let copy = made.site.sandbox().dir("copies").join("copy");
    let dry = made.restore(&copy).arg("--dry-run").succeed();
    dry.expect_stderr("which does not exist");
}

#[test]
fn r220_a_tablespace_that_is_made_in_the_place_of_another_one_comes_back() {
    let name = "r220_a_tablespace_that_is_made_in_the_place_of_another_one_comes_back";
    require_strace!(name);
    let (site, mut cluster) = Site::with_cluster(17);
    let space = cluster.sandbox().dir("space");
    cluster.make_tablespace("first", &space);
    cluster.sql("create table m tablespace first as select g as a from generate_series(1, 500) g");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("drop table m");
    cluster.sql("drop tablespace first");
    cluster.make_tablespace("second", &space);
    cluster.sql("create table n tablespace second as select g as a from generate_series(1, 70) g");
    cluster.sql("select pg_create_restore_point('here')");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    // Another host has the directory, and nothing in it.
    std::fs::rename(&space, space.with_extension("away")).unwrap();
    cluster.sandbox().dir("space");
    let copy = site.sandbox().dir("copies").join("copy");
    let restore = site.pitr().restore_to(&copy);
    let restore = restore.words("--confirm --target-name here");
    let (run, fired) = fault::inject(&restore, &fault::Fault::kill("syncfs"));
    assert!(fired >= 1 || run.code() == 137, "{run}");
    restore.succeed();
    let own = Cluster::open(17, &copy).promoted();
    assert_eq!(own.value("select count(*) from n"), "70");
}
