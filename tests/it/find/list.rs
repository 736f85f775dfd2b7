//! The list of relations that a backup keeps, and the names that `pitr find` takes from it.

use std::path::PathBuf;

use super::{events, find, only, titles, transaction};
use crate::common::{Cluster, Sandbox, Site, Stop};
use crate::{per_major, require_fuse};

fn backup(site: &Site) -> (String, PathBuf) {
    let id = site.pitr().words("backup --json").succeed().id();
    let list = site
        .cluster_folder()
        .join("backups")
        .join(&id)
        .join("relations");
    (id, list)
}

/// Without images in the WAL and without a server, the last backup tells which table it was.
fn n05_a_backup_keeps_the_names_of_relations(major: u32) {
    let builder = Cluster::small(major);
    let builder = builder
        .config("full_page_writes", "off")
        .config("autovacuum", "off");
    let (site, mut cluster) = Site::with_cluster_of(builder);
    cluster.sql("create schema app");
    cluster.sql("create database other");
    for table in ["app.orders", "app.kept"] {
        cluster.sql(&format!("create table {table} (a int primary key, b text); insert into {table} select g, repeat('x', 3000) from generate_series(1, 100) g"));
    }
    let other = cluster.client_of("other");
    other.sql("create table elsewhere as select 1 as a");
    let (id, list) = backup(&site);
    assert!(list.exists());
    let info = site.pitr().words("verify --json").succeed();
    assert!(!info.stdout.contains("relations"), "{info}");
    cluster.archive_now();
    cluster.sql("checkpoint");
    let client = cluster.client();
    let since = client.value("select clock_timestamp()::text");
    let gone = transaction(&client, "drop table app.orders");
    let thin = transaction(&client, "delete from app.kept");
    other.sql("drop table elsewhere");
    cluster.archive_now();
    drop((other, client));
    cluster.stop(Stop::Fast);

    let answer = find(&site, &["--since", &since, "--min-rows", "1"]);
    // Neither indexes nor TOAST tables are events.
    assert_eq!(
        titles(&answer),
        [
            "drop postgres.app.orders",
            "delete postgres.app.kept",
            "drop other.public.elsewhere"
        ],
        "{answer:#}"
    );
    assert_eq!(only(&answer, "drop postgres.app.orders")["xid"], gone);
    assert_eq!(only(&answer, "delete postgres.app.kept")["xid"], thin);
    let found = find(&site, &["--table", "app.orders"]);
    assert_eq!(events(&found).len(), 1);
    // The command reports events that it leaves out, and a misspelled name.
    let told = |args: &[&str]| site.pitr().arg("find").args(args).succeed();
    told(&["--kind", "delete"]).expect_stderr("fewer than 1000 rows are left out: --min-rows 1");
    let typo = told(&["--table", "app.order"]);
    assert!(!typo.stderr.contains("partition"), "{typo}");
    typo.expect_stderr("no table \"app.order\" is in the lists")
        .expect_stderr("near: app.orders");

    // Damaged: verify says so, and find does without.
    let bytes = std::fs::read(&list).unwrap();
    let mut spoilt = bytes.clone();
    let middle = bytes.len() / 3;
    spoilt[middle] ^= 0xFF;
    std::fs::write(&list, &spoilt).unwrap();
    let run = site.pitr().words("verify --json").exits(4);
    run.expect_stdout(&format!("backups/{id}/relations"));
    let run = site
        .pitr()
        .args(["find", "--json", "--since", &since])
        .run();
    let found = run.success();
    assert!(found.stderr.contains("list of relations"), "{found}");
    assert!(
        titles(&found.json()).iter().all(|t| t.contains('?')),
        "{found}"
    );
    // Gone: a warning, and no damage.
    std::fs::remove_file(&list).unwrap();
    let run = site.pitr().arg("verify").run();
    assert!(run.stderr.contains("no list of its relations"), "{run}");
    assert_ne!(run.code(), 4, "{run}");
}

per_major!(n05_a_backup_keeps_the_names_of_relations);

/// It is copied with its backup, and goes with it.
#[test]
fn n05_a_list_is_copied_and_deleted_with_its_backup() {
    let (site, cluster) = Site::with_cluster(18);
    cluster.sql("create table t (a int)");
    let (first, list) = backup(&site);
    let second = site.add_repository("second", "");
    site.pitr().words("repo sync --to second").succeed();
    let below = list.strip_prefix(site.repository()).unwrap();
    let copy = second.join(below);
    assert_eq!(std::fs::read(&list).unwrap(), std::fs::read(copy).unwrap());

    let (_, newer) = backup(&site);
    site.pitr()
        .words("expire --keep 1 --min-age 0s --grace 0 --confirm")
        .arg("--repository")
        .arg(site.repository())
        .succeed();
    assert!(!list.exists() && newer.exists(), "{first}");
}

/// A user may create operators in a schema. The role that takes backups must not call their functions.
#[test]
fn n05_operators_of_users_are_not_called_for_a_list() {
    let (site, cluster) = Site::with_cluster_of(Cluster::builder(14).without_fsync());
    cluster.sql(
        "create function public.called(oid, int4) returns bool language plpgsql as $$begin raise exception 'called'; end$$",
    );
    for name in [">", "="] {
        cluster.sql(&format!(
            "create operator public.{name} (leftarg = oid, rightarg = int4, function = public.called)"
        ));
    }
    cluster.sql("alter database postgres set search_path = public, pg_catalog");
    let (_, list) = backup(&site);
    let root = std::fs::read(list.with_file_name("manifest")).unwrap();
    let root: serde_json::Value = serde_json::from_slice(&root).unwrap();
    // template0 takes no connections, and is the only one that is not read.
    assert_eq!(root["relations"]["unread"], 1, "{root}");
}

/// WAL has no images, the table is younger than the backup, and the server is gone: PostgreSQL reads its catalogs on a clone.
#[test]
fn n05_a_clone_of_the_moment_before_tells_names_that_nothing_else_tells() {
    require_fuse!("n05_a_clone_of_the_moment_before_tells_names_that_nothing_else_tells");
    let builder = Cluster::small(17);
    let builder = builder
        .config("full_page_writes", "off")
        .config("autovacuum", "off");
    let (site, mut cluster) = Site::with_cluster_of(builder);
    backup(&site);
    cluster.sql("create schema app; create table app.orders (a int primary key, b text); insert into app.orders select g, repeat('x', 3000) from generate_series(1, 100) g");
    cluster.archive_now();
    cluster.sql("checkpoint");
    cluster.sql("drop table app.orders");
    cluster.archive_now();
    cluster.stop(Stop::Fast);
    let answer = find(&site, &[]);
    assert!(!titles(&answer).is_empty(), "{answer:#}");
    assert!(
        titles(&answer).iter().all(|t| t.contains('?')),
        "{answer:#}"
    );
    let folder = Sandbox::on_disk("c");
    let below = folder.path().display().to_string();
    let bin = cluster.bin("postgres").unwrap();
    let bin = bin.parent().unwrap().display().to_string();
    let answer = find(&site, &["--clone", "--dir", &below, "--bin", &bin]);
    // Its index and its TOAST table are no events.
    assert_eq!(titles(&answer), ["drop postgres.app.orders"], "{answer:#}");
    assert_eq!(answer["nameless_count"], 0);
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0);
    // A clone that cannot be had is noted, and the numbers stay.
    let run = site
        .pitr()
        .args(["find", "--json", "--clone", "--dir", &below]);
    let section = "[repositories.local]\n";
    site.edit(section, &format!("{section}max_rate = \"1GB\"\n"));
    let run = run.words("--bin /nonexistent").succeed();
    assert!(run.stderr.contains("no clone tells the names"), "{run}");
    // Clones read backups, within the limit of the repository.
    assert!(run.stderr.contains("shared with the other"), "{run}");
    let dir_alone = site.pitr().args(["find", "--dir", &below]).run();
    dir_alone.expect_code(2).expect_stderr("without --clone");
    assert!(run.json()["nameless_count"].as_u64().unwrap() > 0, "{run}");
}
