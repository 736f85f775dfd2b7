//! WAL of wal_level minimal between a backup and a target: bulk loads are not in it.

use crate::common::{Site, Stop};
use crate::per_major;

fn t63_no_plan_leads_through_wal_of_wal_level_minimal(major: u32) {
    let (site, mut cluster) = Site::with_cluster(major);
    cluster.sql("create table t as select 1 as a");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("select pg_create_restore_point('before')");
    let mut at_level = |level: &str, senders: &str, archive_mode: &str| {
        cluster.append_config("wal_level", level);
        cluster.append_config("max_wal_senders", senders);
        cluster.append_config("archive_mode", archive_mode);
        cluster.stop(Stop::Fast);
        cluster.start();
    };
    at_level("minimal", "0", "off");
    at_level("replica", "10", "on");
    cluster.sql("select pg_create_restore_point('behind')");
    cluster.archive_now();
    let plan = |target: &str| {
        let plan = site.pitr().words("plan --json --target-name");
        plan.arg(target).run()
    };
    plan("before").success();
    let run = plan("behind").expect_code(5);
    let json = run.json();
    assert_eq!(json["reason"], "minimal_wal", "{run}");
    let fatal = json["fatal_message"].as_str().unwrap();
    let words = match major {
        13 => "hot standby is not possible because wal_level was not set",
        _ => "WAL was generated with wal_level=minimal, cannot continue recovering",
    };
    assert!(fatal.contains(words), "{run}");
    let run = site.pitr().arg("verify").exits(4);
    run.expect_stdout("it has WAL of wal_level minimal");
}
per_major!(t63_no_plan_leads_through_wal_of_wal_level_minimal, v13 v14);
