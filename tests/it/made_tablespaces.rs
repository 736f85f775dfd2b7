//! Recovery makes a tablespace again in the directory that WAL names. On the host of the cluster these are its own files: nothing writes there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{Cluster, Program, Sandbox, Site, Stop, bin, paths_below};
use crate::{per_major, require_fuse};

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
        site.pitr().args(["backup", "--quiet"]).run().success();
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
            folder: Sandbox::new("made"),
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
        program.args(["--target-name", "here"])
    }

    fn drill(&self) -> Program {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        let drill = self.site.pitr().args(["drill", "--dir"]);
        let drill = drill.arg(self.folder.path()).arg("--bin");
        drill.arg(initdb.parent().unwrap())
    }

    fn restore(&self, to: &Path) -> Program {
        self.to(self.site.pitr().args(["restore", "--to"]).arg(to))
    }
}

fn t60_recovery_writes_into_no_files_of_a_tablespace_that_it_makes(major: u32) {
    let mut made = Made::new(major);
    let before = made.content();
    assert!(before.len() > 1, "{before:?}");
    for drill in [made.drill(), made.to(made.drill())] {
        let run = drill.run().expect_code(8);
        run.expect_stderr("would write into the files of")
            .expect_stderr("pitr backup");
    }
    let copy = made.site.sandbox().dir("copies").join("copy");
    made.restore(&copy)
        .run()
        .expect_code(8)
        .expect_stderr("would write into the files of");
    assert!(!copy.exists());
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );

    // Its own server has what it had, and the next backup leads the tablespace elsewhere.
    made.cluster.start();
    let sum = "select count(*) || ' ' || sum(b) from m";
    assert_eq!(made.cluster.query_one_string(sum), "10000 25000");
    made.site.pitr().args(["backup", "--quiet"]).run().success();
    made.cluster.sql("insert into m values (0, 0)");
    made.cluster.archive_now();
    made.drill().run().success();

    // Once the files are moved away, recovery makes the tablespace in the empty directory.
    made.cluster.stop(Stop::Fast);
    let aside = made.site.sandbox().dir("aside");
    for entry in std::fs::read_dir(&made.space).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), aside.join(entry.file_name())).unwrap();
    }
    made.restore(&copy).run().success();
    let mut own = Cluster::open(major, &copy).create();
    own.start();
    own.wait_promoted();
    assert_eq!(own.query_one_string(sum), "5000 5000");
}
per_major!(t60_recovery_writes_into_no_files_of_a_tablespace_that_it_makes, v13 v18);

#[test]
fn t60_no_clone_writes_into_the_files_of_its_cluster() {
    require_fuse!("t60_no_clone_writes_into_the_files_of_its_cluster");
    let made = Made::new(17);
    let before = made.content();
    let folder = made.folder.path();
    let pitr = || made.site.pitr();
    let at = ["--target-name", "here"];
    let clone = pitr().args(["clone", "--dir"]).arg(folder).args(at);
    let query = pitr().arg("query").args(at).arg("select 1");
    let refused = |why: &str| {
        for program in [&clone, &query] {
            program.clone().run().expect_code(8).expect_stderr(why);
        }
    };
    refused("would write into the files of");
    assert!(
        made.content() == before,
        "files of the cluster were changed"
    );
    // On a host that has the directory alone, a clone would leave files there.
    for entry in std::fs::read_dir(&made.space).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    refused("outside of the copy");
    assert!(made.content().is_empty());
}
