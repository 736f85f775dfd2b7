//! `pitr restore --databases` and `--exclude-databases`: what is left out lies there as zeros, and replay passes over it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::backup::root;
use crate::common::{Client, Cluster, Program, Run, Site, Stop, fault, paths_below, text_of, user};
use crate::per_major;
use crate::restore::{check_checksums, check_relations, content};

/// A cluster with a database that is wanted, and two that are not: `big`, and `far`, whose files lie in a tablespace.
struct World {
    site: Site,
    cluster: Cluster,
    space: PathBuf,
    backup: String,
}

const KEPT: &str = "select count(*) || ' ' || sum(a) from k";

impl World {
    fn new(major: u32, checksums: bool) -> World {
        let builder = Cluster::small(major)
            .checksums(checksums)
            .config("autovacuum", "off");
        let (site, cluster) = Site::with_cluster_of(builder);
        let space = cluster.sandbox().dir("space");
        cluster.make_tablespace("ts", &space);
        cluster.sql("create database app");
        cluster.sql("create database big");
        cluster.sql("create database far tablespace ts");
        cluster.client_of("app").sql(
            "create table k as select g as a, md5(g::text) as b from generate_series(1, 3000) g;
             create table ks tablespace ts as select g as a from generate_series(1, 3000) g;
             create index on k (b)",
        );
        for name in ["big", "far"] {
            cluster.client_of(name).sql(
                "create table t (a int primary key, b text, c int[], d point, e tsvector);
                 insert into t select g, md5(g::text), array[g, g % 7], point(g, g % 13), to_tsvector('simple', md5(g::text)) from generate_series(1, 5000) g;
                 create index on t using hash (b);
                 create index on t using gin (c);
                 create index on t using gist (d);
                 create index on t using spgist (d);
                 create index on t using brin (a);
                 create index on t using gin (e);
                 create table wide (a int, b text);
                 alter table wide alter b set storage external;
                 insert into wide select g, repeat(md5(g::text), 200) from generate_series(1, 300) g;
                 create table seen as select g as a from generate_series(1, 20000) g;
                 create table cut as select g as a from generate_series(1, 20000) g;
                 create table moved (a int) tablespace ts;
                 insert into moved select generate_series(1, 20000);
                 create unlogged table u as select g as a from generate_series(1, 3000) g;
                 create sequence q",
            );
        }
        let backup = site.backup();
        World {
            site,
            cluster,
            space,
            backup,
        }
    }

    /// Traffic that reaches pages which were not changed since the backup began, also without images of them.
    fn traffic(&self) {
        self.cluster.set("full_page_writes", "off");
        self.cluster.sql("checkpoint");
        for name in ["big", "far"] {
            let client = self.cluster.client_of(name);
            client.sql("vacuum seen");
            client.sql(
                "update t set b = b || 'x', d = point(a, 1) where a % 3 = 0;
                 delete from t where a % 5 = 1;
                 insert into t select 5000 + g, md5(g::text), array[g], point(g, g), to_tsvector('simple', 'later') from generate_series(1, 2000) g;
                 update wide set b = repeat(md5(a::text || 'y'), 200) where a % 4 = 0;
                 delete from cut where a > 100;
                 update moved set a = a + 1 where a % 2 = 0;
                 insert into u select generate_series(1, 100);
                 create table made as select g as a from generate_series(1, 3000) g;
                 create index on made (a);
                 drop table wide;
                 select setval('q', 100)",
            );
            client.sql("vacuum t");
            client.sql("vacuum cut");
            client.sql("vacuum (freeze) moved");
            client.sql("reindex table t");
            client.sql("cluster t using t_pkey");
            client.sql("truncate made");
            client.sql("alter table moved set tablespace pg_default");
        }
        let app = self.cluster.client_of("app");
        app.sql("update k set b = 'later' where a % 10 = 0; insert into k select g, 'new' from generate_series(3001, 3500) g");
        app.sql("vacuum k");
        drop(app);
        // A copy of files: replay copies what is there.
        let strategy = if self.cluster.major() >= 15 {
            "strategy file_copy"
        } else {
            ""
        };
        self.cluster
            .sql(&format!("create database clone template big {strategy}"));
        self.cluster.sql("create database born");
        let born = self.cluster.client_of("born");
        born.sql("create table b as select g as a from generate_series(1, 100) g");
        self.cluster.sql("alter database app rename to renamed");
        self.cluster.sql("select pg_create_restore_point('here')");
        self.cluster
            .client_of("renamed")
            .sql("truncate k; select pg_switch_wal()");
        self.cluster.archive_now();
    }

    fn to(&self) -> PathBuf {
        self.site.sandbox().join("copy/data")
    }

    fn restore(&self, args: &[&str]) -> Program {
        self.site.sandbox().dir("copy");
        let new_space = self.site.sandbox().join("copy/space");
        self.site
            .pitr()
            .words("restore --json --target-name here")
            .args(args)
            .arg("--to")
            .arg(self.to())
            .arg("--tablespace-mapping")
            .arg(format!("{}={}", self.space.display(), new_space.display()))
    }

    fn open(&self) -> Cluster {
        let copy = Cluster::open(self.cluster.major(), self.to());
        copy.without_fsync().create()
    }

    fn oid(&self, name: &str) -> String {
        let oid = format!("select oid from pg_database where datname = '{name}'");
        self.cluster.value(&oid)
    }

    /// A backup of a server on this data directory.
    fn take(&self, server: &Cluster, args: &[&str]) -> Run {
        let backup = self.site.pitr().words("backup --json").args(args);
        backup
            .env("PITR_CLUSTERS_MAIN_CONNINFO", server.conninfo("postgres"))
            .env("PITR_CLUSTERS_MAIN_PGDATA", server.pgdata())
            .run()
    }
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect()
}

/// Files of relations of a database below a directory, with their lengths and the space that they take.
fn relations(folder: &Path, oid: &str) -> Vec<(PathBuf, u64, u64)> {
    let is_digit = |b: &u8| b.is_ascii_digit();
    let files = paths_below(folder).into_iter().filter(|path| {
        if path
            .components()
            .any(|part| part.as_os_str() == "pg_tblspc")
        {
            // The link leads to what is found beside it.
            return false;
        }
        let of = path.parent().and_then(Path::file_name);
        let name = path.file_name().unwrap().as_encoded_bytes();
        of.is_some_and(|of| of == oid) && name.first().is_some_and(is_digit)
    });
    files
        .map(|path| {
            let meta = std::fs::metadata(&path).unwrap();
            (path, meta.len(), meta.blocks() * 512)
        })
        .collect()
}

fn is_zeros(path: &Path) -> bool {
    std::fs::read(path).unwrap().iter().all(|byte| *byte == 0)
}

fn replay_passes_over_what_is_left_out((major, checksums): (u32, bool)) {
    let world = World::new(major, checksums);
    world.traffic();
    let (big, far) = (world.oid("big"), world.oid("far"));
    let dry = world
        .restore(&["--databases", "app", "--dry-run"])
        .succeed()
        .json();
    assert!(!world.to().exists());
    let run = world.restore(&["--databases", "app"]).succeed();
    let json = run.json();
    assert_eq!(names(&json["left_out_databases"]), ["big", "far"], "{run}");
    assert_eq!(dry["left_out_databases"], json["left_out_databases"]);
    assert_eq!(json["recovery_settings"]["ignore_invalid_pages"], "on");
    assert!(json["restored"]["compared_file_count"].as_u64().unwrap() > 500);

    // Full length, no content, no space.
    let copy = world.site.sandbox().join("copy");
    let mut bytes = 0;
    for oid in [&big, &far] {
        let found = relations(&copy, oid);
        assert!(found.len() > 200, "{} files of {oid}", found.len());
        for (path, length, space) in &found {
            assert!(
                *space <= 4096 && is_zeros(path),
                "{path:?}: {length}, {space}"
            );
            bytes += length;
        }
    }
    let told = json["left_out_databases"].as_array().unwrap().iter();
    let told: u64 = told.map(|one| one["size_bytes"].as_u64().unwrap()).sum();
    assert_eq!(told, bytes);
    assert!(json["restored"]["size_bytes"].as_u64().unwrap() > 0);
    let mut server = world.open();
    server.start();
    server.wait_promoted();
    // Without the setting the server would have ended here.
    server.wait_log("WAL contains references to invalid pages");
    let app = server.client_of("renamed");
    assert_eq!(app.value(KEPT), "3500 6126750");
    assert_eq!(app.value("select count(*) from ks"), "3000");
    drop(app);
    let born = server.client_of("born");
    assert_eq!(born.value("select sum(a) from b"), "5050");
    drop(born);
    let settings = std::fs::read_to_string(world.to().join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("ignore_invalid_pages"), "{settings}");
    for name in ["big", "far", "clone"] {
        let refused = Client::connect(&server.conninfo(name))
            .map(|_| ())
            .unwrap_err();
        let refused = text_of(&refused);
        assert!(
            refused.contains("is not a valid data directory"),
            "{name}: {refused}"
        );
        server.sql(&format!("drop database {name}"));
    }
    assert!(!world.to().join("base").join(&big).exists());
    assert!(!server.log().contains("PANIC"), "{}", server.log());
    check_relations(&server);
    server.stop(Stop::Fast);
    if checksums {
        check_checksums(&server);
    }
    server.start();
    assert_eq!(server.client_of("renamed").value(KEPT), "3500 6126750");
}

fn t13_with_checksums(major: u32) {
    replay_passes_over_what_is_left_out((major, true));
}
per_major!(t13_with_checksums);

fn t13_without_checksums(major: u32) {
    replay_passes_over_what_is_left_out((major, false));
}
per_major!(t13_without_checksums, v13 v17 v19);

/// A server on a restore that has left databases "big" and "far" out, in the place of the original.
fn without_big_and_far(major: u32) -> (World, Cluster) {
    let world = World::new(major, true);
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    let restore = world.restore(&["--exclude-databases", "far,big", "--adopt", "--confirm"]);
    let mut original = world.cluster;
    let conninfo = original.conninfo("postgres");
    let pgdata = original.pgdata().to_owned();
    original.stop(Stop::Fast);
    let run = restore.succeed();
    assert_eq!(names(&run.json()["left_out_databases"]), ["big", "far"]);
    assert!(!conninfo.is_empty() && pgdata.exists());
    let world = World {
        cluster: original,
        ..world
    };
    let mut server = world.open();
    server.start();
    server.wait_promoted();
    (world, server)
}

#[test]
fn k37_a_partial_backup_is_asked_for_what_it_has() {
    let (world, server) = without_big_and_far(17);
    let run = world.take(&server, &[]).success();
    let partial = run.id();
    let kept = server.client_of("app").value(KEPT);
    // Its files are copies of files that the backup lacks.
    server.sql("create database copied template big strategy file_copy");
    server.archive_now();
    let folder = crate::common::Sandbox::on_disk("c");
    let bin = server.bin("initdb").unwrap();
    let at = |program: crate::common::Program| {
        let program = program.args(["--backup", &partial, "--dir"]);
        program
            .arg(folder.path())
            .arg("--bin")
            .arg(bin.parent().unwrap())
    };
    let query = |database: &str, sql: &str| {
        at(world
            .site
            .pitr()
            .args(["query", sql, "--database", database]))
        .run()
    };
    let run = query("app", KEPT).success();
    let run = run.expect_stdout(&kept).expect_stderr("copied first");
    if crate::clone::can_mount() {
        run.expect_stderr("the backup is partial");
    }
    let lacking = query("big", "select count(*) from t").expect_code(8);
    lacking.expect_stderr("no content of database");
    let hollow = query("copied", "select count(*) from t").expect_code(8);
    hollow.expect_stderr("is not the one of the backup");
    let file = folder.join("k.dump");
    let rescue = ["rescue", "--table", "k", "--database", "app", "--to"];
    at(world.site.pitr().args(rescue).arg(&file)).succeed();
    assert!(file.exists());
    if crate::clone::can_mount() {
        let clone = at(world.site.pitr().arg("clone")).exits(8);
        clone.expect_stderr("it is partial");
    } else {
        crate::common::skipped("k37_a_clone_of_a_partial_backup", "needs /dev/fuse");
    }
}

fn b14_a_backup_of_what_was_left_out_is_partial(major: u32) {
    let (world, server) = without_big_and_far(major);

    let mut partial = Vec::new();
    for args in [
        &[][..],
        &["--method", "local"],
        &["--method", "local", "--incremental"],
    ] {
        let run = world.take(&server, args).success();
        let json = run.json();
        assert_eq!(json["kind"], "full", "{run}");
        assert_eq!(names(&json["left_out_databases"]), ["big", "far"], "{run}");
        partial.push(json["id"].as_str().unwrap().to_owned());
        if args.contains(&"--incremental") {
            let why = json["kind_reason"].as_str().unwrap();
            assert!(why.contains("left databases out"), "{why}");
        }
    }
    let of_root = root(&world.site, &partial[0]);
    assert_eq!(of_root.head.features, ["partial"]);
    assert_eq!(of_root.content.left_out_databases.len(), 2);

    // It stands for no whole one: plans pass it over, and expiry keeps what it does not replace.
    let plan = |args: &[&str]| world.site.pitr().words("plan --json").args(args).run();
    server.archive_now();
    let chosen = plan(&[]).success().json();
    assert_eq!(chosen["backup"]["id"], world.backup.as_str(), "{chosen}");
    let reasons = chosen["backups_not_chosen"].as_array().unwrap();
    assert!(
        reasons.iter().all(|one| one["reason"] == "partial_backup"),
        "{chosen}"
    );
    let named = plan(&["--backup", &partial[1]]).success().json();
    assert_eq!(named["backup"]["id"], partial[1].as_str());
    assert!(
        named["warnings"].to_string().contains("is partial"),
        "{named}"
    );
    let info = world.site.pitr().words("info --json").run().json();
    let shown = info["clusters"][0]["backups"].as_array().unwrap();
    let are_partial: Vec<_> = shown
        .iter()
        .map(|one| one["partial"].as_bool().unwrap())
        .collect();
    assert_eq!(are_partial, [false, true, true, true], "{info}");
    world.site.pitr().arg("verify").succeed();
    let dry = ["expire", "--keep", "1", "--min-age", "0", "--dry-run"];
    let expiry = world.site.pitr().args(dry).run();
    expiry
        .expect_code(8)
        .expect_stdout("has no content of database");

    // A restore of a partial backup says what it has not, and is as partial.
    let second = world.site.sandbox().dir("second").join("data");
    let mapping = format!(
        "{}={}",
        world.site.sandbox().join("copy/space").display(),
        world.site.sandbox().join("second/space").display()
    );
    let again = world
        .site
        .pitr()
        .args(["restore", "--json", "--backup", &partial[0]]);
    let again = again
        .args(["--tablespace-mapping", &mapping, "--to"])
        .arg(&second);
    let again = again.succeed().json();
    assert_eq!(again["recovery_settings"]["ignore_invalid_pages"], "on");
    assert!(second.join("pitr.partial").exists());

    // One of the two is dropped: the next backup lacks the other alone. None is left: it is whole.
    server.sql("drop database far");
    let run = world.take(&server, &["--method", "local"]).success();
    assert_eq!(names(&run.json()["left_out_databases"]), ["big"], "{run}");
    let run = world.take(&server, &[]).success();
    assert_eq!(names(&run.json()["left_out_databases"]), ["big"], "{run}");
    // A copy of its files is as empty, and no marker names it.
    let copied = if major < 15 {
        ""
    } else {
        " strategy file_copy"
    };
    server.sql(&format!("create database copied template big{copied}"));
    server.sql("drop database big");
    for args in [&[][..], &["--method", "local"]] {
        let run = world.take(&server, args).success();
        let json = run.json();
        let left_out = json["left_out_databases"].as_array().unwrap();
        assert_eq!(left_out.len(), 1, "{run}");
        let id = json["id"].as_str().unwrap();
        assert_eq!(root(&world.site, id).head.features, ["partial"]);
    }
    server.sql("drop database copied");
    for args in [&[][..], &["--method", "local"]] {
        let run = world.take(&server, args).success();
        assert_eq!(names(&run.json()["left_out_databases"]), Vec::<&str>::new());
        let id = run.id();
        assert_eq!(root(&world.site, &id).head.features, Vec::<String>::new());
    }
    // The marker names what is gone: nothing of it keeps an incremental from being one.
    let run = world.take(&server, &["--method", "local", "--incremental"]);
    assert_eq!(run.success().json()["kind"], "incremental");

    // A marker that cannot be read is no reason to call a backup whole.
    let marker = world.to().join("pitr.partial");
    std::fs::write(&marker, "{").unwrap();
    for args in [&[][..], &["--method", "local"]] {
        let run = world.take(&server, args);
        assert!(!run.is_success(), "{run}");
        assert!(run.stdout.contains("pitr.partial"), "{run}");
    }
    std::fs::remove_file(&marker).unwrap();
    world.take(&server, &["--method", "local"]).success();
}
per_major!(b14_a_backup_of_what_was_left_out_is_partial, v14 v17);

#[test]
fn what_cannot_be_left_out_is_refused_by_name() {
    let world = World::new(17, true);
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    for (args, code, part) in [
        (["--databases", "nobody"], 2, "no database \\\"nobody\\\""),
        (
            ["--exclude-databases", "template1"],
            2,
            "is always restored",
        ),
        (["--exclude-databases", "postgres"], 2, "is always restored"),
    ] {
        world.restore(&args).exits(code).expect_stdout(part);
    }
    let both = world.restore(&["--databases", "app", "--exclude-databases", "big"]);
    both.exits(2);
    assert!(!world.to().exists());
    // All that are named: an ordinary restore.
    let run = world.restore(&["--databases", "app,big,far"]).succeed();
    assert_eq!(names(&run.json()["left_out_databases"]), Vec::<&str>::new());
    assert!(!world.to().join("pitr.partial").exists());
    assert!(world.to().join("backup_manifest").exists());
    // A catalog that was rewritten has another file.
    world.cluster.sql("vacuum full pg_database");
    world
        .cluster
        .sql("alter database big rename to \"Größe, 1\"");
    let backup = world.site.backup();
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    let oid = world.oid("Größe, 1");
    std::fs::remove_dir_all(world.site.sandbox().join("copy")).unwrap();
    let args = [
        "--exclude-databases",
        &oid,
        "--dry-run",
        "--backup",
        &backup,
    ];
    let dry = world.restore(&args).succeed();
    assert_eq!(
        names(&dry.json()["left_out_databases"]),
        ["Größe, 1"],
        "{dry}"
    );
}

/// Returns the files that a restore writes, without those that differ by nature.
fn state(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = content(folder);
    found.retain(|(name, _)| {
        !["pitr.guard", "pitr.settings", "pitr.partial"]
            .iter()
            .any(|own| name.ends_with(own))
    });
    found
}

#[test]
fn t13_killed_at_any_point_the_same_command_completes_it_and_another_is_refused() {
    crate::require_strace!(
        "t13_killed_at_any_point_the_same_command_completes_it_and_another_is_refused"
    );
    let world = World::new(15, true);
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    let copy = world.site.sandbox().join("copy");
    let restore = || world.restore(&["--databases", "app", "--jobs", "1"]);
    let (run, calls) = fault::trace(&restore(), fault::MUTATING);
    run.success();
    let reference = state(&copy);
    let calls: Vec<_> = calls.iter().filter(|c| c.touches(&copy)).collect();
    let step = (calls.len() / 8).max(1);
    let last = calls.len().saturating_sub(6);
    let (mut unfinished, mut points) = (0, 0);
    for (n, call) in calls.iter().enumerate() {
        let is_left_out = n < last && n % step != 0;
        points += usize::from(!is_left_out);
        if is_left_out || !fault::is_of_turn(points) {
            continue;
        }
        std::fs::remove_dir_all(&copy).unwrap();
        world.site.sandbox().dir("copy");
        let (run, fired) = fault::inject(&restore(), &call.kill());
        assert!(fired >= 1 || run.code() == 137, "{}\n{run}", call.text);
        if world.to().join("global/pg_control").exists() {
            continue;
        }
        if world.to().join("pg_wal/pitr.restore").exists() {
            unfinished += 1;
            world.restore(&[]).exits(8);
        }
        restore().succeed();
        assert!(world.to().join("pitr.partial").exists());
        assert!(state(&copy) == reference, "{}", call.text);
    }
    assert!(unfinished > fault::share(5), "{unfinished}");
}

#[test]
fn in_place_what_is_left_out_is_emptied_and_comes_back() {
    let mut world = World::new(16, true);
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    let big = world.oid("big");
    world.cluster.stop(Stop::Fast);
    let pgdata = world.cluster.pgdata().to_owned();
    let status = pgdata.join("pg_wal/archive_status");
    for entry in std::fs::read_dir(status).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "ready") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let delta = |args: &[&str]| {
        let restore = world.site.pitr().words("restore --json --delta --confirm");
        let restore = restore.words("--target-name here").args(args);
        restore.arg("--to").arg(&pgdata).run()
    };
    let run = delta(&["--exclude-databases", "big"]).success();
    assert_eq!(names(&run.json()["left_out_databases"]), ["big"], "{run}");
    let emptied = relations(&pgdata, &big);
    assert!(emptied.len() > 200);
    for (path, _, space) in &emptied {
        assert!(*space <= 4096 && is_zeros(path), "{path:?}");
    }
    assert!(pgdata.join("pitr.partial").exists());
    user::own_all(&pgdata);
    let run = delta(&[]).success();
    assert_eq!(names(&run.json()["left_out_databases"]), Vec::<&str>::new());
    assert!(!pgdata.join("pitr.partial").exists());
    world.cluster.start();
    world.cluster.wait_promoted();
    let rows = world.cluster.client_of("big");
    assert_eq!(rows.value("select count(*) from t"), "5000");
}

/// Packs that hold nothing of what is wanted are not fetched: the backup of one database is read from what is left of the repository.
#[test]
fn what_is_left_out_is_not_read() {
    let world = World::new(17, true);
    // In key order: the local method puts the relations of a database one after another.
    let run = world
        .site
        .pitr()
        .words("backup --json --method local --jobs 1");
    let id = run.succeed().id();
    world.cluster.sql("select pg_create_restore_point('here')");
    world.cluster.archive_now();
    let big = world.oid("big").parse::<u32>().unwrap();
    let store = crate::backup::store(&world.site);
    let (layout, root) = (crate::backup::layout(&world.site), root(&world.site, &id));
    let snapshot = pitr::snapshot::reader::Snapshot::open(&store, &layout, &root).unwrap();
    // The middle of the largest table: frames there hold that table alone.
    let mut largest = None;
    for item in snapshot.items() {
        let item = item.unwrap();
        let of = item.key.relation().map(|relation| relation.database);
        if of == Some(big) && item.mapped_bytes > largest.as_ref().map_or(0, |(_, n)| *n) {
            largest = Some((item.key.clone(), item.mapped_bytes));
        }
    }
    let (key, bytes) = largest.unwrap();
    let at = snapshot.places(&key, bytes / 2, bytes / 2 + 1).unwrap()[0]
        .at
        .unwrap();
    let pack = snapshot.pack(at.pack).unwrap();
    let frame = pack.frame(at.frame).unwrap();
    let is_of_big = |file: &pitr::snapshot::filekey::FileKey| {
        file.relation()
            .is_some_and(|relation| relation.database == big)
    };
    assert!(
        frame.extents().iter().all(|e| is_of_big(&e.file)),
        "{:?}",
        frame.extents()
    );
    let begins: u64 = (0..at.frame)
        .map(|n| u64::from(pack.reader().entry(n).unwrap().stored_bytes))
        .sum();
    let path = world
        .site
        .cluster_folder()
        .join("packs")
        .join(root.map.packs[at.pack].key.to_string());
    let mut content = std::fs::read(&path).unwrap();
    let middle = usize::try_from(72 + begins + 2000).unwrap();
    content[middle] ^= 0xFF;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, content).unwrap();
    user::own_all(&path);
    world.restore(&["--backup", &id, "--jobs", "1"]).exits(4);
    std::fs::remove_dir_all(world.site.sandbox().join("copy")).unwrap();
    let run = world
        .restore(&["--backup", &id, "--exclude-databases", "big"])
        .run();
    run.success();
}
