//! The quarantine of clones, queries and rescues: nothing gets out.

use crate::clone::client;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Sandbox, bin, files_below, text_of};
use crate::drill::{Hostile, Outside};
use crate::s3_cycle::Bucketed;
use crate::{per_major, require_fuse};

/// Statements that reach out, and the words with which they fail.
const REACHING: [(&str, &str); 2] = [
    ("select reach()", "program"),
    ("select reach_by_dblink()", "could not establish connection"),
];

fn k38_nothing_gets_out_of_a_clone_a_query_and_a_rescue(major: u32) {
    require_fuse!("k38_nothing_gets_out_of_a_clone_a_query_and_a_rescue");
    let hostile = Hostile::new(major);
    let (site, cluster) = (&hostile.site, &hostile.cluster);
    hostile.outside.is_called_by(cluster);
    cluster.sql("create table t as select g as id from generate_series(1, 100) g");
    site.pitr().words("backup --quiet").succeed();
    // It fires in replicas, too.
    cluster.sql("create function fires() returns event_trigger language plpgsql as 'begin perform public.reach(); end'; create event trigger e on ddl_command_end execute function fires(); alter event trigger e enable always");
    cluster.archive_now();
    hostile.outside.was_not_reached();
    let below = hostile.folder.path();
    let programs = bin(major, "initdb").unwrap();
    let at = |program: Program| {
        let program = program.arg("--dir").arg(below).arg("--bin");
        program.arg(programs.parent().unwrap())
    };
    let run = at(site.pitr().words("clone --json")).succeed();
    let run = run
        .expect_stderr("without pg_cron")
        .expect_stderr("pg_tde of shared_preload_libraries is not installed");
    let clone = client(&run);
    for (sql, why) in REACHING {
        let refused = text_of(&clone.try_sql(sql).unwrap_err());
        assert!(refused.contains(why), "{sql}: {refused}");
    }
    assert_eq!(clone.value("select networks()"), "0");
    assert_eq!(clone.value("select count(*) from t"), "100");
    assert_eq!(
        clone.value("select count(*) from pg_stat_subscription where pid is not null"),
        "0"
    );
    for fixed in [
        "archive_mode",
        "archive_cleanup_command",
        "primary_conninfo",
    ] {
        let set = clone.value(&format!("show {fixed}"));
        assert!(matches!(set.as_str(), "" | "off"), "{fixed} = {set}");
    }
    drop(clone);
    let stop = site.pitr().args(["clone", "stop", &run.id(), "--dir"]);
    stop.arg(below).succeed();

    let query = |sql: &str| at(site.pitr().args(["query", sql])).run();
    for (sql, why) in REACHING {
        query(sql).expect_code(1).expect_stderr(why);
    }
    query("select networks()").success().expect_stdout("0");
    query("select count(*) from t")
        .success()
        .expect_stdout("100");
    let file = site.sandbox().join("t.dump");
    let rescue = ["rescue", "--table", "t", "--database", "postgres", "--to"];
    at(site.pitr().args(rescue).arg(&file)).succeed();
    hostile.outside.was_not_reached();
    assert!(files_below(below).is_empty(), "{:?}", files_below(below));
}
per_major!(k38_nothing_gets_out_of_a_clone_a_query_and_a_rescue, v13 v15 v17 v19);

/// pitr fetches the WAL for a server that has no network, and keeps to itself what gets into the store.
#[test]
fn k38_a_server_whose_wal_is_across_a_network_has_none() {
    require_fuse!("k38_a_server_whose_wal_is_across_a_network_has_none");
    let builder = Cluster::small(18);
    let (site, cluster) = Bucketed::with_cluster(builder, Peer::start(), "");
    let outside = Outside::new();
    outside.is_called_by(&cluster);
    cluster.sql("create table env (line text)");
    cluster.sql(
        "create function variables() returns bigint language plpgsql as $$ begin
                   copy public.env from program 'env';
                   return (select count(*) from public.env where line like 'AWS_%'); end $$",
    );
    site.backup();
    // Some segments, so that they are fetched ahead.
    for _ in 0..6 {
        cluster.sql("create table if not exists t as select 1 as id where false; insert into t select g from generate_series(1, 5000) g");
        cluster.archive_now();
    }
    let folder = Sandbox::new("c");
    let programs = bin(18, "initdb").unwrap();
    let at = |program: Program| {
        let program = program.arg("--dir").arg(folder.path()).arg("--bin");
        let program = program.arg(programs.parent().unwrap());
        program.env("AWS_PROBE", "secret")
    };
    let query = |sql: &str| at(site.pitr().args(["query", sql])).succeed();
    query("select networks()").expect_stdout("0");
    query("select variables()").expect_stdout("0");
    query("select count(*) from t").expect_stdout("30000");
    for (sql, why) in REACHING {
        let run = at(site.pitr().args(["query", sql])).run();
        run.expect_code(1).expect_stderr(why);
    }
    let checks = folder.path().join("checks.sql");
    std::fs::write(&checks, "select reach();\nselect reach_by_dblink();\n").unwrap();
    for kind in [&[][..], &["--fast"]] {
        let drill = site.pitr().words("drill --checks").arg(&checks);
        let drill = drill.args(kind).env("TMPDIR", folder.path());
        let run = drill.arg("--bin").arg(programs.parent().unwrap()).run();
        let mut run = run.expect_code(4);
        for (_, why) in REACHING {
            run = run.expect_stdout(why);
        }
    }
    outside.was_not_reached();
}
