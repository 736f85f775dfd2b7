//! Logical dumps: their whole life on real servers, under load, and with everything that fails on the way.

mod campaign;
mod damage;
mod faults;
mod schema;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitr::config;
use pitr::repo::event::Writer;
use pitr::repo::scope::Scope;
use serde_json::json;

use crate::common::{Cluster, files_below, list_of};
use crate::per_major;
use world::World;

/// Moves money between accounts until the test ends it. Each transfer writes a row of history.
fn load(cluster: &Cluster, stop: &Arc<AtomicBool>) -> Vec<std::thread::JoinHandle<u64>> {
    (0..2)
        .map(|n| {
            let (client, stop) = (cluster.client_of("app"), Arc::clone(stop));
            std::thread::spawn(move || {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (from, to) = (1 + (done * 7 + n) % 500, 1 + (done * 13 + n + 5) % 500);
                    client.sql(&format!(
                        "begin; update app.accounts set euros = euros - 1 where id = least({from}, {to}); \
                         update app.accounts set euros = euros + 1 where id = greatest({from}, {to}); \
                         insert into app.history (account, euros) values ({from}, -1), ({to}, 1); commit"
                    ));
                    done += 1;
                }
                done
            })
        })
        .collect()
}

/// A backup while money moves is one moment: no transfer is there by half, and the rows are those that were counted.
fn d01_a_dump_under_load_is_one_snapshot(major: u32) {
    let world = World::new(major);
    let stop = Arc::new(AtomicBool::new(false));
    let writers = load(&world.cluster, &stop);
    let backup = world
        .logical(&["backup", "app", "--label", "under load", "--json"])
        .succeed();
    stop.store(true, Ordering::Relaxed);
    let transfers: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
    assert!(transfers > 0);
    world.assert_spool_is_empty();
    let member = &backup.json()["logical"];
    assert_eq!(member["checks"], json!(["read"]));
    assert_eq!(member["server_major"], major);
    let database = &member["databases"][0];
    let lsn =
        |name: &str| -> pitr::pg::lsn::Lsn { database[name].as_str().unwrap().parse().unwrap() };
    assert!(lsn("start_lsn") <= lsn("stop_lsn"));
    let snapshot = database["snapshot"].as_str().unwrap();
    assert_eq!(snapshot.split(':').count(), 3, "{snapshot}");

    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    world
        .logical(&["restore", "app", "--into", &into])
        .succeed();
    world.assert_spool_is_empty();
    let one = |sql: &str| copy.value(sql);
    assert_eq!(one("select sum(euros) from app.accounts"), "50000.00");
    assert_eq!(
        one("select coalesce(sum(euros), 0)::int from app.history"),
        "0"
    );
    assert_eq!(one("select count(*) % 2 from app.history"), "0");
    let rows: u64 = [
        "app.accounts",
        "app.history",
        "app.parts",
        "app.moods",
        "app.secrets",
        "app.scratch",
        "public.plain",
        "app.no_columns",
        "app.derived",
        "app.\"Odd \"\"name\"\"; drop\"",
    ]
    .iter()
    .map(|table| -> u64 {
        one(&format!("select count(*) from {table}"))
            .parse()
            .unwrap()
    })
    .sum();
    assert_eq!(database["row_count"], rows);
    assert_eq!(one("select count(*) from pg_largeobject_metadata"), "1");
    assert_eq!(one("select count(*) from pg_policies"), "1");
    assert_eq!(
        one("select nextval(pg_get_serial_sequence('public.plain', 'id'))"),
        "31"
    );
    // Everything that does not move is the same.
    let original = world.cluster.client_of("app");
    for table in [
        "app.parts",
        "app.moods",
        "app.secrets",
        "public.plain",
        "app.\"Odd \"\"name\"\"; drop\"",
    ] {
        let sql = format!("select md5(string_agg(t::text, ',' order by t::text)) from {table} t");
        assert_eq!(one(&sql), original.value(&sql), "{table}");
    }
    check_levels(&world);
}

/// Every level finds a whole backup whole, and says what that proves.
fn check_levels(world: &World) {
    for (level, proof) in [
        ("--list", "table of contents can be parsed"),
        ("--read", "data file has the rows of its snapshot"),
        ("--restore", "a server took every definition"),
    ] {
        let run = world.logical(&["check", "app", level]).succeed();
        let run = run.expect_stdout("is whole").expect_stdout(proof);
        let json = world
            .logical(&["check", "app", level, "--json"])
            .succeed()
            .json();
        assert_eq!(json["finding_count"], 0, "{json}");
        // It tells which commits the dump holds.
        let database = &json["databases"][0];
        let snapshot = database["snapshot"].as_str().unwrap();
        assert!(
            run.stdout.contains(&format!("snapshot {snapshot} at ")),
            "{snapshot}"
        );
        assert!(database["start_lsn"].is_string() && database["stop_lsn"].is_string());
        world.assert_spool_is_empty();
    }
}

per_major!(d01_a_dump_under_load_is_one_snapshot, v17);

#[test]
fn dumps_live_in_an_encrypted_repository() {
    let world = World::sealed(18);
    world
        .cluster
        .sql("alter role app_owner login password 'role-secret'");
    let id = world.backup();
    assert_eq!(world.ids("app"), [id.as_str()]);
    check_levels(&world);
    let verify = world.pitr(&["verify", "--json"]).succeed().json();
    assert_eq!(verify["scopes"][0]["finding_count"], 0, "{verify}");
    // As files, with the roles' hashes.
    let to = world.sandbox.join("files");
    world
        .logical(&["restore", "app", "--to", to.to_str().unwrap()])
        .succeed();
    let globals = std::fs::read_to_string(to.join("globals.sql")).unwrap();
    assert!(globals.contains("SCRAM-SHA-256$"), "{globals}");
    let names = files_below(&to);
    assert!(names.iter().any(|n| n.ends_with("/toc.dat")), "{names:?}");
    assert!(names.iter().any(|n| n.ends_with(".rows.json")), "{names:?}");
    world
        .logical(&["restore", "app", "--to", to.to_str().unwrap()])
        .exits(8);
}

#[test]
fn every_database_is_dumped_and_retention_decides() {
    let world = World::new(16);
    world
        .cluster
        .sql("create database closed allow_connections false");
    // A name with everything that a connection string takes for its own, and another encoding.
    world.cluster.sql("create database \"it's = \\ odd\"");
    world.cluster.sql(
        "create database latin encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'",
    );
    let latin = world.cluster.client_of("latin");
    latin.sql("create table words (w text); insert into words values ('Größe'), ('')");
    // Backslashes in names mean themselves all the same.
    latin.sql("create table \"back\\bslash\" (n int)");
    world
        .cluster
        .sql("alter role postgres set standard_conforming_strings = off");
    let odd = "[logical.odd]\ncluster = \"main\"\ncontent = \"schema\"\ndatabases = [\"it's = \\\\ odd\"]\n[logical.data]";
    crate::common::edit(world.sandbox.join("pitr.toml"), "[logical.data]", odd);
    world.logical(&["backup", "odd"]).succeed();
    let first = world.logical(&["backup", "all", "--json"]).succeed();
    let names: Vec<_> = list_of(&first.json()["logical"]["databases"])
        .iter()
        .map(|d| d["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        ["app", "it's = \\ odd", "latin", "postgres", "template1"]
    );
    world.logical(&["backup", "all"]).succeed();
    assert_eq!(world.ids("all").len(), 2);
    // Several databases: one has to be named.
    let into = world.cluster.conninfo("postgres");
    let run = world.logical(&["restore", "all", "--into", &into]).run();
    run.expect_code(2)
        .expect_stderr("Add --database NAME. Known: app, it's = \\ odd, latin");
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    world
        .logical(&["restore", "all", "--database", "latin", "--into", &into])
        .succeed();
    let words = copy.value("select string_agg(w, ',' order by w) from words");
    assert_eq!(words, ",Größe");
    world.pitr(&["verify"]).succeed();
    for _ in 0..2 {
        world.pitr(&crate::common::expire_at_once()).run();
    }
    assert_eq!(world.ids("all").len(), 1);
    world.logical(&["check", "all", "--restore"]).succeed();
}

#[test]
fn definitions_and_data_are_dumped_apart() {
    let world = World::new(19);
    for name in ["definitions", "data"] {
        let run = world.logical(&["backup", name]).succeed();
        // The programs' own warnings are not lost.
        let has_warning = run.stderr.contains("circular foreign-key constraints");
        assert_eq!(has_warning, name == "data", "{run}");
    }
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    world
        .logical(&["restore", "definitions", "--into", &into])
        .succeed();
    assert_eq!(copy.value("select count(*) from app.accounts"), "0");
    world
        .logical(&["check", "definitions", "--restore"])
        .succeed();
    let refused = world.logical(&["check", "data", "--restore"]).run();
    refused
        .expect_code(8)
        .expect_stderr("have data and no definitions");
    world.logical(&["check", "data", "--read"]).succeed();
    // PostgreSQL refuses to run as root: the private server runs as another user then.
    if crate::common::user::is_root() {
        let as_root = world.logical(&["check", "definitions", "--restore"]);
        as_root.privileged().env("TMPDIR", "/tmp").succeed();
    } else {
        crate::common::skipped("a check of definitions by root", "needs root");
    }
}

/// Data goes into tables that are there and empty, as a whole or in part; nothing is appended, and nothing is dropped.
fn data_alone_fills_empty_tables(major: u32) {
    let world = World::new(major);
    for name in ["definitions", "data"] {
        world.logical(&["backup", name]).succeed();
    }
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    let restore = |options: &[&str]| {
        let line = ["restore", "data", "--into", &into];
        world.logical(&[&line[..], options].concat()).run()
    };
    restore(&[])
        .expect_code(8)
        .expect_stderr("database \"copy\" lacks")
        .expect_stderr("app.accounts")
        .expect_stderr("more");
    for options in [&["--create"][..], &["--replace", "--confirm"]] {
        let refused = restore(options).expect_code(8);
        refused.expect_stderr("needs definitions, and the dump has data alone");
    }
    world
        .logical(&["restore", "definitions", "--into", &into])
        .succeed();
    // A part, into the tables of that part.
    restore(&["--table", "public.plain"]).success();
    assert_eq!(copy.value("select count(*) from public.plain"), "30");
    assert_eq!(copy.value("select count(*) from app.accounts"), "0");
    for options in [&["--table", "public.plain"][..], &[]] {
        restore(options)
            .expect_code(8)
            .expect_stderr("database \"copy\" has rows in 1 table: public.plain");
    }
    assert_eq!(copy.value("select count(*) from public.plain"), "30");
    // All of it.
    copy.sql("truncate public.plain");
    restore(&[]).success();
    world.assert_spool_is_empty();
    let original = world.cluster.client_of("app");
    for table in [
        "app.accounts",
        "app.parts",
        "app.moods",
        "app.secrets",
        "public.plain",
        "app.\"Odd \"\"name\"\"; drop\"",
    ] {
        let sql = format!("select md5(string_agg(t::text, ',' order by t::text)) from {table} t");
        assert_eq!(copy.value(&sql), original.value(&sql), "{table}");
    }
    assert_eq!(
        copy.value("select nextval(pg_get_serial_sequence('public.plain', 'id'))"),
        "31"
    );
    let objects = || copy.value("select count(*) from pg_largeobject_metadata");
    assert_eq!(objects(), "1");
    // Large objects keep their numbers: those that are there stand in the way.
    copy.sql("truncate app.accounts, app.history, app.parts, app.\"Odd \"\"name\"\"; drop\", app.moods, app.secrets, app.scratch, app.empty, app.no_columns, app.derived, app.hens, app.eggs, public.plain");
    restore(&[])
        .expect_code(8)
        .expect_stderr("database \"copy\" has 1 large object");
    copy.value("select lo_unlink(oid) from pg_largeobject_metadata");
    restore(&["--jobs", "2"]).success();
    assert_eq!(copy.value("select count(*) from app.accounts"), "500");
    assert_eq!(objects(), "1");
}
per_major!(data_alone_fills_empty_tables, v13 v17 v19);

#[test]
fn a_standby_is_dumped() {
    let world = World::new(18);
    let standby = Cluster::builder(18)
        .without_fsync()
        .standby_of(&world.cluster)
        .start();
    world.point_to(&standby);
    let run = world.logical(&["backup", "app", "--json"]).succeed();
    let member = &run.json()["logical"];
    assert_eq!(member["from_standby"], true);
    // An unlogged table has no content there.
    assert_eq!(
        member["databases"][0]["row_count"],
        500 + 200 + 60 + 2 + 50 + 30 + 2 + 1,
        "{member}"
    );
    world.logical(&["check", "app", "--restore"]).succeed();
    let into = standby.conninfo("postgres");
    let run = world.logical(&["restore", "app", "--into", &into]).run();
    run.expect_code(8).expect_stderr("the server is a standby");
}

#[test]
fn a_part_of_a_dump_is_restored() {
    let world = World::new(14);
    world.backup();
    let restored = |name: &str, options: &[&str]| {
        let copy = world.database(name);
        let into = world.cluster.conninfo(name);
        let run = world
            .logical(&[&["restore", "app", "--into", &into], options].concat())
            .run();
        (copy, run)
    };
    let tables = |copy: &crate::common::Client| {
        copy.value("select coalesce(string_agg(relname, ',' order by relname), '') from pg_class c join pg_namespace n on n.oid = relnamespace where relkind = 'r' and nspname in ('app', 'public')")
    };
    let (copy, run) = restored("part1", &["--table", "app.empty"]);
    run.success();
    assert_eq!(tables(&copy), "empty");
    // Its types are not its own.
    let (copy, run) = restored("part0", &["--table", "app.history"]);
    run.expect_code(1)
        .expect_stderr("type \"app.euros\" does not exist")
        .expect_stderr("The database is as it was.")
        .expect_stderr("are not restored with it")
        .expect_stderr("extensions, foreign servers");
    assert_eq!(tables(&copy), "");
    let (copy, run) = restored("part2", &["--schema", "public"]);
    run.success();
    assert_eq!(tables(&copy), "plain");
    assert_eq!(copy.value("select count(*) from plain"), "30");
    let (copy, run) = restored(
        "part3",
        &["--schema", "app", "--table", "public.plain", "--jobs", "2"],
    );
    run.success();
    assert!(tables(&copy).contains("accounts") && tables(&copy).contains("plain"));
    let (copy, run) = restored("part4", &["--table", "app.nothing"]);
    run.expect_code(2)
        .expect_stderr("the dump has nothing of table \"app\".\"nothing\"");
    assert_eq!(tables(&copy), "");
    let (_, run) = restored("part5", &["--table", "plain"]);
    run.expect_code(2).expect_stderr("is not schema.table");
}

#[test]
fn u57_restored_dumps_inherit_no_acl() {
    use crate::files::tree::{has_no_acl, open_to_another};
    let world = World::new(17);
    world.backup();
    let around = world.sandbox.dir("around");
    open_to_another(&around);
    let to = around.join("to");
    let restore = ["restore", "app", "--to", to.to_str().unwrap()];
    world.logical(&restore).succeed();
    has_no_acl(&to);
}

#[test]
fn d10_event_triggers_are_made_after_all_that_would_fire_them() {
    let world = World::new(15);
    world.cluster.client_of("app").sql(
        "create function app.forbid() returns event_trigger language plpgsql as $$ begin raise exception 'no changes'; end $$; \
         create event trigger guard on ddl_command_start when tag in ('ALTER TABLE', 'COMMENT') execute function app.forbid(); \
         alter event trigger guard disable; comment on event trigger guard is 'a guard'; alter event trigger guard enable",
    );
    world.backup();
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    world
        .logical(&["restore", "app", "--into", &into, "--jobs", "2"])
        .succeed();
    let made = copy.value(
        "select count(*) || ' ' || (select count(*) from pg_constraint where contype = 'f') from pg_event_trigger where evtenabled = 'O'",
    );
    assert_eq!(made, "1 3");
}

#[test]
fn d11_a_schema_is_restored_with_its_grants_and_without_those_whose_name_goes_on() {
    let world = World::new(16);
    world.cluster.client_of("app").sql(
        "create role \"of two\"; \
         create schema part authorization \"of two\"; comment on schema part is 'mine'; grant usage on schema part to app_reader; \
         create table part.t (n int); \
         create schema \"part of\" authorization app_owner; comment on schema \"part of\" is 'other'; create table \"part of\".t (n int); \
         grant usage on schema \"part of\" to app_reader",
    );
    world.backup();
    let schemas = "select coalesce(string_agg(nspname || ' ' || pg_get_userbyid(nspowner) || ' ' || obj_description(oid, 'pg_namespace') \
        || ' ' || has_schema_privilege('app_reader', oid, 'usage'), ',' order by nspname), '') from pg_namespace where nspname like 'part%'";
    for (name, schema, expected) in [
        ("one", "part", "part of two mine true"),
        ("two", "part of", "part of app_owner other true"),
    ] {
        let copy = world.database(name);
        let into = world.cluster.conninfo(name);
        let restore = ["restore", "app", "--into", &into, "--schema", schema];
        world.logical(&restore).succeed();
        assert_eq!(copy.value(schemas), expected);
    }
}

#[test]
fn d12_a_backup_that_is_marked_for_deletion_is_not_the_one_that_is_restored() {
    let world = World::new(17);
    let ids = [world.backup(), world.backup()];
    let place = world.sandbox.join("one");
    let mark = |id: &str| {
        let configured = config::Repository::at(config::Location::File(place.clone()));
        let repository = pitr::repo::open(&configured, 7).unwrap();
        let host = crate::content::world::host(0);
        let (writer, scope) = (Writer::of(&host), Scope::aux("logical", "app").unwrap());
        let marked = writer.event("expire", id);
        writer.record(repository.store(), &scope, &marked).unwrap();
        crate::common::user::own_all(&place);
    };
    let restored = |to: &str| {
        let to = world.sandbox.join(to);
        let restore = ["restore", "app", "--json", "--to", to.to_str().unwrap()];
        let run = world.logical(&restore).succeed();
        run.id()
    };
    assert_eq!(restored("newest"), ids[1]);
    mark(&ids[1]);
    assert_eq!(restored("unmarked"), ids[0]);
    // It is there, and better than nothing.
    mark(&ids[0]);
    assert_eq!(restored("marked"), ids[1]);
}

#[test]
fn u111_k67_a_table_is_not_restored_without_its_rows_nor_silently_without_its_policies() {
    let world = World::new(17);
    world.backup();
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    let restore = |table: &str| {
        let line = ["restore", "app", "--into", &into, "--table", table];
        world.logical(&line).run()
    };
    restore("app.parts")
        .expect_code(8)
        .expect_stderr("table \"app\".\"parts\" is partitioned")
        .expect_stderr("--schema app");
    let schemas = copy.value("select count(*) from pg_namespace where nspname = 'app'");
    assert_eq!(schemas, "0");
    let plain = restore("app.parts_1")
        .success()
        .expect_stderr("a part of it brings none");
    assert!(!plain.stderr.contains("row security"), "{plain}");
    assert_eq!(copy.value("select count(*) from app.parts_1"), "100");
    copy.sql("drop schema app cascade");
    restore("app.secrets")
        .success()
        .expect_stderr("table \"app\".\"secrets\" comes without its row security")
        .expect_stderr("--schema app brings them");
    assert_eq!(copy.value("select count(*) from app.secrets"), "50");
    let policies = "select count(*) from pg_policies";
    assert_eq!(copy.value(policies), "0");
    world.assert_spool_is_empty();
}

#[test]
fn u117_k66_a_schema_is_restored_with_all_partitions_and_into_publications_that_are_there() {
    let world = World::new(18);
    let app = world.cluster.client_of("app");
    app.sql("create schema far");
    app.sql("create table app.led (k int) partition by list (k)");
    app.sql("create table far.led_1 partition of app.led for values in (1)");
    app.sql("insert into app.led values (1)");
    app.sql("create publication \"of led\" for table app.led");
    app.sql("create publication lacking for table app.empty, far.led_1");
    app.sql("create publication whole for tables in schema far");
    world.backup();
    let restore = |more: &[&str]| {
        let into = world.cluster.conninfo("app");
        let line = ["restore", "app", "--into", &into, "--replace", "--confirm"];
        world.logical(&[&line, more].concat()).run()
    };
    restore(&["--schema", "app"])
        .expect_code(8)
        .expect_stderr("table app.led has partition far.led_1 in a schema that is not restored");
    assert_eq!(app.value("select count(*) from far.led_1"), "1");
    let copy = world.database("copy");
    copy.sql("create publication \"of led\"");
    copy.sql("create publication whole for all tables");
    let into = world.cluster.conninfo("copy");
    let both = [
        "restore", "app", "--into", &into, "--schema", "app", "--schema", "far",
    ];
    world
        .logical(&both)
        .succeed()
        .expect_stderr("nothing is added to publications")
        .expect_stderr("that have all tables: lacking, whole");
    assert_eq!(copy.value("select count(*) from app.led"), "1");
    let published = "select string_agg(prrelid::regclass::text, ' ') from pg_publication_rel";
    assert_eq!(copy.value(published), "app.led");
    assert_eq!(copy.value("select count(*) from pg_policies"), "1");
}

#[test]
fn u113_a_name_that_is_not_utf8_keeps_no_other_database_from_being_dumped() {
    let world = World::new(17);
    let ascii =
        "create database ascii encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'";
    world.cluster.sql(ascii);
    world.cluster.sql("create database odd");
    world.cluster.client_of("ascii").sql(
        "do $$ begin execute format('alter database odd rename to %I', convert_from('\\x6f64ff', 'SQL_ASCII')); end $$",
    );
    world.backup();
    world.logical(&["check", "app", "--read"]).succeed();
    let all = || world.logical(&["backup", "all"]).run().expect_code(1);
    all().expect_stderr("the name of database \"od\\xff\"");

    // Rows of a table with such a name cannot be counted.
    world.cluster.client_of("ascii").sql(
        "do $$ begin execute format('alter database %I rename to odd', convert_from('\\x6f64ff', 'SQL_ASCII')); \
         execute format('create table %I (n int)', convert_from('\\x6f64ff', 'SQL_ASCII')); end $$",
    );
    all()
        .expect_stderr("dump database \"ascii\"")
        .expect_stderr("the name of table \"public.od\\xff\"");
    world.assert_spool_is_empty();
    assert_eq!(world.ids("all"), Vec::<String>::new());
}
