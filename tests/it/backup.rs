//! `pitr backup` through the real program, against real servers that archive with `pitr-archive`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pitr::repo::container::Container;
use pitr::repo::layout::ClusterLayout;
use pitr::repo::root::BackupRoot;
use pitr::snapshot::layer::Metadata;
use pitr::snapshot::reader::Snapshot;
use pitr::store::Store;
use pitr::store::file::FileStore;

use crate::common::{Cluster, Program, Sandbox, Site, keep_one, newest_bin, user};
use crate::{per_major, require_root};

pub fn backup(site: &Site) -> Program {
    site.pitr().words("backup --json")
}

pub fn store(site: &Site) -> FileStore {
    FileStore::open(site.repository(), 1).unwrap()
}

pub fn layout(site: &Site) -> ClusterLayout {
    let folder = site.cluster_folder();
    let identifier = folder.file_name().unwrap().to_str().unwrap();
    ClusterLayout::new("main", identifier.parse().unwrap()).unwrap()
}

pub fn root(site: &Site, id: &str) -> BackupRoot {
    let id = id.parse().unwrap();
    BackupRoot::read(&store(site), &layout(site), &id)
        .unwrap()
        .unwrap()
}

/// Ids under `backups/` that have a root.
pub fn committed(site: &Site) -> Vec<String> {
    let mut ids: Vec<String> = site
        .files()
        .iter()
        .filter_map(|f| f.strip_suffix("/manifest")?.rsplit('/').next())
        .map(str::to_owned)
        .collect();
    ids.sort();
    ids
}

/// Writes the files of a backup into `to`, tablespaces below `to/tablespaces`, and proves that nothing is missing.
pub fn extract(site: &Site, root: &BackupRoot, to: &Path) {
    let store = store(site);
    let layout = layout(site);
    let snapshot = Snapshot::open(&store, &layout, root).unwrap();
    let place = |path: &[u8]| -> PathBuf {
        let path = std::str::from_utf8(path).unwrap();
        to.join(path)
    };
    for tablespace in &root.content.tablespaces {
        let target = to.join("tablespaces").join(tablespace.oid.to_string());
        std::fs::create_dir_all(&target).unwrap();
        std::fs::create_dir_all(to.join("pg_tblspc")).unwrap();
        let link = to.join("pg_tblspc").join(tablespace.oid.to_string());
        std::os::unix::fs::symlink(target, link).unwrap();
    }
    let mut mapped = 0;
    let mut files = 0;
    for item in snapshot.items() {
        let item = item.unwrap();
        let path = place(&item.path);
        match item.metadata {
            Metadata::Directory { .. } => std::fs::create_dir_all(path).unwrap(),
            Metadata::Symlink { .. } | Metadata::Node(_) => {}
            Metadata::File { length, .. } => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let file = std::fs::File::create(path).unwrap();
                file.set_len(length).unwrap();
                mapped += item.mapped_bytes;
                files += 1;
            }
        }
    }
    assert_eq!(files, root.head.file_count);
    for index in 0..root.map.packs.len() {
        let pack = snapshot.pack(index).unwrap();
        for number in 0..pack.frame_count() {
            let frame = pack.frame(number).unwrap();
            for visible in &frame.visible {
                let path = frame.file(visible).unwrap().path(snapshot.naming());
                let file = std::fs::File::options()
                    .write(true)
                    .open(place(&path))
                    .unwrap();
                std::os::unix::fs::FileExt::write_all_at(
                    &file,
                    frame.bytes(visible),
                    visible.position,
                )
                .unwrap();
            }
            mapped -= frame.visible_bytes();
        }
    }
    assert_eq!(mapped, 0);
    // A local backup has none.
    if let Some(expected) = &root.content.server_manifest {
        let manifest = store
            .open(&layout.server_manifest(&root.head.id))
            .unwrap()
            .unwrap();
        let manifest = Container::open(manifest)
            .unwrap()
            .read_small(64 << 20)
            .unwrap();
        let hash = blake3::hash(&manifest).to_hex().to_string();
        assert_eq!(*expected, hash);
        std::fs::write(to.join("backup_manifest"), manifest).unwrap();
    }
    user::own_all(to);
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
}

/// Checks the files with the server's own tool.
pub fn verify_with_server_tool(major: u32, folder: &Path) {
    Program::new(newest_bin(major, "pg_verifybackup"))
        .words("-n --ignore=tablespaces")
        .arg(folder)
        .succeed();
}

fn populate(cluster: &Cluster, sandbox: &Sandbox) {
    let space = sandbox.dir("space");
    cluster.make_tablespace("ts", &space);
    cluster.sql("create database other");
    cluster.sql(
        "create table t as select g as a, repeat('x', 300) as b from generate_series(1, 20000) g;
         create index on t (a);
         create unlogged table u as select g as a from generate_series(1, 1000) g;
         create table in_space tablespace ts as select g as a from generate_series(1, 30000) g;",
    );
    cluster.sql("vacuum t");
    cluster
        .client_of("other")
        .sql("create table o as select 1 as a");
}

fn a_backup_holds_what_the_server_sent_and_recovers(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    populate(&cluster, site.sandbox());
    let run = backup(&site).args(["--label", "it's the first"]).succeed();
    let shown = run.json();
    let id = shown["id"].as_str().unwrap();
    assert_eq!(committed(&site), [id]);
    let root = root(&site, id);
    assert_eq!(shown["size_bytes"], root.head.size_bytes);
    assert_eq!(shown["damaged"], false);
    assert_eq!(shown["start_lsn"], root.content.start_lsn.to_string());
    assert_eq!(root.head.label, "it's the first");
    assert_eq!((root.content.major, root.content.timeline), (major, 1));
    assert_eq!(root.content.tablespaces.len(), 1);
    assert!(root.content.data_checksums && !root.content.from_standby);
    assert!(root.head.stored_bytes < root.head.size_bytes);
    assert_eq!(
        root.content.timezone.as_deref(),
        Some(cluster.value("show timezone").as_str())
    );
    assert!(root.head.start_time <= root.head.stop_time);

    // A row behind the backup comes back with the archived WAL.
    cluster.sql("insert into t values (0, 'after')");
    cluster.archive_now();
    let expected = fingerprint(&cluster);
    let copy = Sandbox::new("copy");
    let folder = copy.dir("data");
    extract(&site, &root, &folder);
    verify_with_server_tool(major, &folder);
    let restore = site.restore().words("%f %p").shell();
    std::fs::write(folder.join("recovery.signal"), "").unwrap();
    user::own(&folder.join("recovery.signal"));
    let restored = Cluster::open(major, &folder)
        .option("restore_command", restore)
        .option("archive_mode", "off")
        .option("recovery_target_timeline", "current")
        .promoted();
    assert_eq!(fingerprint(&restored), expected);
}
per_major!(a_backup_holds_what_the_server_sent_and_recovers);

fn fingerprint(cluster: &Cluster) -> BTreeMap<&'static str, String> {
    let hash = "select md5(string_agg(x::text, ',' order by x::text)) from";
    [
        ("t", format!("{hash} t x")),
        ("in_space", format!("{hash} in_space x")),
        (
            "databases",
            format!("{hash} (select datname from pg_database) x"),
        ),
    ]
    .into_iter()
    .map(|(name, sql)| (name, cluster.value(&sql)))
    .collect()
}

/// The line that init prints is for the shell it was printed in, which may be root's.
#[test]
fn a_backup_taken_by_root_does_not_lock_the_servers_user_out() {
    require_root!("a_backup_taken_by_root_does_not_lock_the_servers_user_out");
    let (site, _cluster) = Site::with_cluster(17);
    let backup = site.pitr().words("backup --quiet").privileged();
    backup.succeed();
    for verb in ["info", "verify", "plan"] {
        site.pitr().arg(verb).succeed();
    }
    site.pitr().words("backup --quiet").succeed();
}

#[test]
fn the_human_answer_is_one_line_and_what_comes_next() {
    let (site, _cluster) = Site::with_cluster(15);
    let run = site.pitr().arg("backup").succeed();
    let line = run.stdout.trim_end();
    assert_eq!(line.lines().count(), 1, "{run}");
    for part in [
        "backup 2",
        "-full: ",
        " stored as ",
        ":1) in ",
        "WAL 0/",
        " on timeline 1",
    ] {
        assert!(line.contains(part), "{part}: {run}");
    }
    assert!(run.stderr.contains("next: "), "{run}");
    let run = site
        .pitr()
        .words("backup --compression zstd --jobs 1 --checkpoint spread")
        .succeed();
    assert!(run.stdout.contains("-full: "), "{run}");
    assert_eq!(committed(&site).len(), 2);
}

/// cron mails whatever is printed.
#[test]
fn quiet_commands_are_silent_when_all_goes_well() {
    let (site, cluster) = Site::with_cluster(17);
    let quiet = |args: &[&str]| site.pitr().arg("--quiet").args(args).run();
    for args in [
        &["backup"][..],
        &["backup"],
        &keep_one(&["--confirm"]),
        &["verify"],
    ] {
        let run = quiet(args).success();
        assert_eq!(
            (run.stdout.as_str(), run.stderr.as_str()),
            ("", ""),
            "{run}"
        );
    }
    // A question is answered all the same, and errors are reported.
    assert!(
        quiet(&["info"])
            .success()
            .stdout
            .contains("recovery: any moment")
    );
    quiet(&keep_one(&["--dry-run"]))
        .success()
        .expect_stdout("deleted after");
    let name = cluster.archive_now();
    cluster.archive_now();
    std::fs::remove_file(site.object(&name)).unwrap();
    quiet(&["verify"]).expect_code(4).expect_stdout(&name);
}

#[test]
fn of_two_repositories_the_backup_goes_into_the_one_that_is_named() {
    let (site, _cluster) = Site::with_cluster(17);
    site.add_repository("second", "");
    let run = backup(&site).succeed();
    assert_eq!(run.json()["repository"], "local", "{run}");
    assert!(run.stderr.contains("--repository NAME"), "{run}");
    let first = run.json()["id"].clone();
    let run = backup(&site).words("--repository second").succeed();
    assert_eq!(run.json()["repository"], "second", "{run}");
    let other = run.json()["id"].clone();
    // Each has its own, and the WAL that leads on from it.
    for (name, id) in [("local", first), ("second", other)] {
        let of = |verb: &str| {
            let run = site
                .pitr()
                .args([verb, "--json", "--repository", name])
                .run();
            run.success().json()
        };
        let info = of("info");
        let backups = info["clusters"][0]["backups"].as_array().unwrap();
        let ids: Vec<_> = backups.iter().map(|b| &b["id"]).collect();
        assert_eq!(ids, [&id], "{name}");
        assert_eq!(of("plan")["backup"]["id"], id, "{name}");
    }
}

#[test]
fn labels_and_rates_that_the_server_would_refuse_are_refused_before_anything_is_done() {
    let (site, _cluster) = Site::with_cluster(15);
    let before = site.files();
    for args in [
        ["--label", "two\nlines"],
        ["--max-rate", "1KiB"],
        ["--max-rate", "2GiB"],
    ] {
        site.pitr().arg("backup").args(args).exits(2);
    }
    assert_eq!(site.files(), before);
}

/// A backup on a later timeline needs its history file, in the root and in the repository.
#[test]
fn a_backup_behind_a_promotion_has_its_history() {
    let (site, primary) = Site::with_cluster(16);
    primary.sql("create table t as select 1 as a");
    let mut standby = primary.standby().start();
    drop(primary);
    standby.promote();
    let conninfo = standby.conninfo("postgres");
    let take = || {
        let run = backup(&site)
            .env("PITR_CLUSTERS_MAIN_CONNINFO", &conninfo)
            .succeed();
        root(&site, &run.id())
    };
    let first = take();
    assert_eq!(
        (first.content.start_timeline, first.content.timeline),
        (2, 2)
    );
    let history = first.content.history.unwrap();
    assert!(
        history.contains("no recovery target specified"),
        "{history}"
    );
    // A history file that was lost is stored again.
    std::fs::remove_file(site.object("00000002.history")).unwrap();
    assert_eq!(take().content.history.unwrap(), history);
    let out = site.sandbox().dir("out").join("fetched");
    site.restore().arg("00000002.history").arg(&out).succeed();
    assert_eq!(std::fs::read_to_string(out).unwrap(), history);
    standby.stop(crate::common::Stop::Immediate);
}

#[test]
fn t65_a_timeline_that_pg_resetwal_began_is_backed_up_once_a_comment_says_so() {
    let (site, mut cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select 1 as a");
    cluster.stop(crate::common::Stop::Fast);
    let mut reset = user::command(newest_bin(17, "pg_resetwal"));
    reset.args(["-l", "000000030000000000000020"]);
    assert!(reset.arg(cluster.pgdata()).status().unwrap().success());
    cluster.start();
    let refused = backup(&site).exits(8);
    refused.expect_stdout("pitr wal push pg_wal/00000003.history");
    let history = cluster.pgdata().join("pg_wal/00000003.history");
    std::fs::write(&history, "# no parent\n").unwrap();
    user::own(&history);
    site.pitr().words("wal push").arg(&history).succeed();
    backup(&site).succeed();
    cluster.sql("insert into t values (2)");
    cluster.archive_now();
    let copy = site.sandbox().dir("copies").join("copy");
    site.pitr().restore_to(&copy).succeed();
    let own = Cluster::open(17, &copy).promoted();
    assert_eq!(own.value("select sum(a) from t"), "3");
}

#[test]
fn a_tablespace_in_place_and_a_linked_pg_wal_are_plain_directories() {
    let mut cluster = Cluster::small(17)
        .config("allow_in_place_tablespaces", "on")
        .create();
    let site = Site::new(&cluster);
    site.attach(&cluster);
    let (wal, elsewhere) = (cluster.pgdata().join("pg_wal"), site.sandbox().join("wal"));
    std::fs::rename(&wal, &elsewhere)
        .or_else(|_| {
            std::fs::create_dir_all(elsewhere.join("archive_status"))?;
            std::fs::create_dir_all(elsewhere.join("summaries"))?;
            for entry in std::fs::read_dir(&wal)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    std::fs::copy(entry.path(), elsewhere.join(entry.file_name()))?;
                }
            }
            std::fs::remove_dir_all(&wal)
        })
        .unwrap();
    user::own_all(&elsewhere);
    std::os::unix::fs::symlink(&elsewhere, &wal).unwrap();
    cluster.start();
    cluster.sql("create tablespace here location ''");
    cluster.sql("create table t tablespace here as select g as a from generate_series(1, 5000) g");
    let run = backup(&site).succeed();
    let root = root(&site, &run.id());
    assert!(root.content.tablespaces.is_empty());
    let copy = Sandbox::new("copy");
    let folder = copy.dir("data");
    extract(&site, &root, &folder);
    verify_with_server_tool(17, &folder);
    assert!(folder.join("pg_wal").is_dir());
    assert_eq!(
        std::fs::read_dir(folder.join("pg_tblspc")).unwrap().count(),
        1
    );
}

#[test]
fn a_role_that_may_only_replicate_is_enough_and_one_that_may_not_is_told_so() {
    let (site, cluster) = Site::with_cluster_of(
        Cluster::small(15)
            .hba("local all postgres trust\nlocal all all reject\nlocal replication all trust\n"),
    );
    cluster.sql("create role copies login replication");
    cluster.sql("create role other login");
    let of = |role: &str| {
        let conninfo = cluster
            .conninfo("postgres")
            .replace("user=postgres", &format!("user={role}"));
        assert!(conninfo.contains(role), "{conninfo}");
        site.pitr()
            .arg("backup")
            .env("PITR_CLUSTERS_MAIN_CONNINFO", conninfo)
            .run()
    };
    of("copies").success().expect_stderr("no SQL connection");
    let refused = of("other").expect_code(1);
    assert!(refused.stderr.contains("REPLICATION"), "{refused}");
    assert_eq!(committed(&site).len(), 1);
}

#[test]
fn h07_an_aborted_backup_of_a_new_identifier_hides_no_good_one() {
    use pitr::repo::repository::Registration;
    let (site, cluster) = Site::with_cluster(17);
    cluster.archive_now();
    let id = backup(&site).succeed().id();
    drop(cluster);
    let repository = pitr::repo::open(
        &pitr::config::Repository::at(pitr::config::Location::File(site.repository().to_owned())),
        1,
    )
    .unwrap();
    let old = repository.registrations("main").unwrap().remove(0);
    let new = Registration {
        system_identifier: old.system_identifier + 1,
        ..old.clone()
    };
    repository.register(&new).unwrap();
    let folder = |identifier: u64| {
        site.repository()
            .join(format!("clusters/main/{identifier}"))
    };
    let left = folder(new.system_identifier).join("backups/20991120T064049Z-full");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("server-manifest"), "x").unwrap();
    user::own_all(site.repository());
    let shown = || site.pitr().words("info --json").run().json()["clusters"][0].clone();
    let info = shown();
    assert_eq!(info["backups"][0]["id"], id.as_str(), "{info}");
    site.pitr().words("plan --json").succeed();
    // Once it is committed it is the newest.
    let from = folder(old.system_identifier)
        .join("backups")
        .join(&id)
        .join("manifest");
    std::fs::copy(from, left.join("manifest")).unwrap();
    user::own_all(site.repository());
    let list = site.pitr().words("wal list --json").succeed();
    assert_eq!(
        list.json()["system_identifier"],
        new.system_identifier.to_string(),
        "{list}"
    );
}

#[test]
fn a_server_that_is_down_cannot_be_reached() {
    let cluster = Cluster::builder(17).segment_size_mb(1).create();
    let site = Site::new(&cluster);
    let run = backup(&site).exits(9);
    assert_eq!(run.json()["code"], "unreachable", "{run}");
    assert!(committed(&site).is_empty());
}
