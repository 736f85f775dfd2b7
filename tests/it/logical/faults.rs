//! Everything that goes wrong with dumps: rows D02 to D09 of docs/faults.md.

use rustix::process::Signal;

use super::world::World;
use crate::common::mount::SmallDisk;
use crate::common::{Client, Cluster, paths_below, wait_until};
use crate::require_mounts;

/// Makes the dump long enough to be met in the middle: `pg_dump` waits for a lock of a session of ours, on a table that has no rows to be counted.
fn locked(world: &World) -> Client {
    let client = world.cluster.client_of("app");
    client.sql("begin; lock table only app.parts in access exclusive mode");
    client
}

fn wait_for_dump(world: &World) {
    let client = world.cluster.client();
    wait_until("pg_dump waits for the lock", || {
        client.value(
            "select count(*) from pg_stat_activity where application_name = 'pg_dump' and wait_event_type = 'Lock'",
        ) != "0"
    });
}

#[test]
fn d02_a_program_that_fails_leaves_no_backup() {
    let world = World::new(15);
    let fails = |script: &str| {
        let bin = world.tampering(script);
        world
            .logical(&["backup", "app", "--bin", bin.to_str().unwrap()])
            .run()
    };
    let run = fails("echo 'the end is broken' >&2; exit 3");
    world.assert_no_backup(&run);
    run.expect_code(1)
        .expect_stderr("dump database \"app\": pg_dump failed (exit status: 3): the end is broken");
    let run = fails("kill -9 $$");
    world.assert_no_backup(&run);
    run.expect_code(1)
        .expect_stderr("pg_dump failed (signal: 9");
    // A table that stays locked: the dump gives up before everybody queues behind it.
    let lock = locked(&world);
    let run = world.logical(&["backup", "app"]).run();
    world.assert_no_backup(&run);
    drop(lock);
    // No program at all.
    let empty = world.sandbox.dir("nothing");
    let run = world
        .logical(&["backup", "app", "--bin", empty.to_str().unwrap()])
        .run();
    world.assert_no_backup(&run);
    run.expect_code(2)
        .expect_stderr("no pg_dump of PostgreSQL 15 or newer");
    // The next one works.
    world.backup();
}

#[test]
fn d02_an_interrupt_ends_the_dump_and_leaves_nothing() {
    let world = World::new(16);
    let lock = locked(&world);
    let client = world.cluster.client();
    for signal in [Signal::INT, Signal::TERM] {
        let running = world.logical(&["backup", "app"]).spawn();
        wait_for_dump(&world);
        running.signal(signal);
        let run = running.wait();
        world.assert_no_backup(&run);
        run.expect_code(130);
        // The next round waits for a pg_dump of its own.
        wait_until("pg_dump has ended", || {
            client.value("select count(*) from pg_stat_activity where application_name = 'pg_dump'")
                == "0"
        });
    }
    drop(lock);
    world.backup();
}

#[test]
fn d03_a_lost_session_leaves_no_backup() {
    let world = World::new(17);
    let lock = locked(&world);
    let running = world.logical(&["backup", "app"]).spawn();
    wait_for_dump(&world);
    // The session that holds the snapshot, and counts.
    let killed = world.cluster.value(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pitr' and datname = 'app'",
    );
    assert_eq!(killed, "1");
    lock.sql("rollback");
    let run = running.wait();
    world.assert_no_backup(&run);
    run.expect_stderr("dump database \"app\"");
    world.backup();
}

#[test]
fn d04_no_room_for_the_dumps_leaves_no_backup() {
    require_mounts!("d04_no_room_for_the_dumps_leaves_no_backup");
    let world = World::new(17);
    world.cluster.client_of("app").sql(
        "create table app.large as select g, repeat(md5(g::text), 30) t from generate_series(1, 20000) g",
    );
    let disk = SmallDisk::new(8, 1000);
    let run = world
        .logical(&["backup", "app"])
        .env("TMPDIR", disk.path())
        .run();
    world.assert_no_backup(&run);
    run.expect_code(1)
        .expect_stderr("No space left on device")
        .expect_stderr("error full");
    assert_eq!(paths_below(disk.path()).len(), 0);
}

/// A disk that loses or changes bytes between `pg_dump` and the repository.
#[test]
fn d05_a_dump_that_is_not_whole_is_not_stored() {
    let world = World::new(13);
    let largest = "file=$(ls -S \"$dir\"/*.dat | grep -v toc.dat | head -1)\n";
    for (damage, expected) in [
        ("rm \"$file\"", "pg_restore failed"),
        ("truncate -s -1 \"$file\"", "is cut short"),
        ("truncate -s 100 \"$file\"", "is cut short"),
        ("sed -i 2d \"$file\"", "its snapshot had 500"),
        ("truncate -s -100 \"$dir/toc.dat\"", "pg_restore failed"),
        ("rm \"$dir/toc.dat\"", "pg_restore failed"),
    ] {
        let bin = world.tampering(&format!("{largest}{damage}"));
        let run = world
            .logical(&["backup", "app", "--bin", bin.to_str().unwrap()])
            .run();
        world.assert_no_backup(&run);
        run.expect_code(1)
            .expect_stderr("is not whole")
            .expect_stderr(expected);
    }
    world.backup();
}

#[test]
fn d06_damage_in_the_repository_is_found_by_every_level() {
    for world in [World::new(17), World::sealed(13)] {
        let id = world.backup();
        let packs = world
            .sandbox
            .join(format!("one/aux/logical/app/packs/{id}"));
        let pack = paths_below(&packs).remove(0);
        let whole = std::fs::read(&pack).unwrap();
        let flipped = {
            let mut bytes = whole.clone();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            bytes
        };
        let cut = whole[..whole.len() / 2].to_vec();
        for damaged in [Some(flipped), Some(cut), None] {
            std::fs::remove_file(&pack).unwrap();
            if let Some(bytes) = &damaged {
                std::fs::write(&pack, bytes).unwrap();
                crate::common::user::own(&pack);
            }
            for level in ["--list", "--read", "--restore"] {
                let run = world.logical(&["check", "app", level]).exits(4);
                run.expect_stdout("damaged: ")
                    .expect_stdout("is damaged: restore another one");
            }
            let copy = "d06";
            let client = world.database(copy);
            let into = world.cluster.conninfo(copy);
            let run = world.logical(&["restore", "app", "--into", &into]).run();
            assert_eq!(run.code(), 1, "{run}");
            assert_eq!(
                client.value("select count(*) from pg_namespace where nspname = 'app'"),
                "0"
            );
            drop(client);
            world.cluster.sql("drop database d06");
            world.assert_spool_is_empty();
            let _ = std::fs::remove_file(&pack);
            std::fs::write(&pack, &whole).unwrap();
            crate::common::user::own(&pack);
        }
        world.logical(&["check", "app", "--restore"]).succeed();
    }
}

/// Damage that came before the first hash and that keeps every row: only a server sees it, and the lower levels claim nothing else.
#[test]
fn d07_a_value_that_no_server_takes_is_found_by_a_restore() {
    let world = World::new(15);
    let bin = world.tampering(
        "file=$(grep -l 'part 7$' \"$dir\"/*.dat)\nsed -i 's/^7\\tpart 7$/x\\tpart 7/' \"$file\"",
    );
    let bin = bin.to_str().unwrap();
    world.logical(&["backup", "app", "--bin", bin]).succeed();
    for level in ["--list", "--read"] {
        world.logical(&["check", "app", level]).succeed();
    }
    let run = world
        .logical(&["check", "app", "--restore", "--json"])
        .exits(4);
    let json = run.json();
    assert_eq!(json["finding_count"], 1, "{json}");
    assert_eq!(json["proves"], serde_json::Value::Null);
    let finding = json["databases"][0]["findings"][0].as_str().unwrap();
    assert!(
        finding.contains("invalid input syntax for type integer"),
        "{finding}"
    );
    world.assert_spool_is_empty();
}

#[test]
fn d08_a_database_that_is_not_empty_is_replaced_on_request_alone_and_as_a_whole() {
    let world = World::new(17);
    world.cluster.sql("comment on database app is 'ours'");
    world.backup();
    let app = world.cluster.client_of("app");
    app.sql("delete from public.plain where id > 10; create table public.mine (n int)");
    let into = world.cluster.conninfo("app");
    let restore = |options: &[&str]| {
        world
            .logical(&[&["restore", "app", "--into", &into], options].concat())
            .run()
    };
    let plain = || app.value("select count(*) from public.plain");
    restore(&[])
        .expect_code(8)
        .expect_stderr("database \"app\" is not empty");
    restore(&["--replace"])
        .expect_code(8)
        .expect_stderr("With --confirm");
    assert_eq!(plain(), "10");
    // A view of the operator's own stands in the way: nothing is replaced then.
    app.sql("create view public.mine_too as select id from public.plain");
    let run = restore(&["--replace", "--confirm"]).expect_code(1);
    run.expect_stderr("The database is as it was.");
    assert_eq!(plain(), "10");
    app.sql("drop view public.mine_too");
    restore(&["--replace", "--confirm"]).success();
    assert_eq!(plain(), "30");
    assert_eq!(app.value("select count(*) from public.mine"), "0");
    // A new database, under the name of the dump.
    let elsewhere = Cluster::builder(17).without_fsync().start();
    let other = elsewhere.conninfo("postgres");
    let create = |options: &[&str]| {
        world
            .logical(&[&["restore", "app", "--into", &other, "--create"], options].concat())
            .run()
    };
    let run = create(&[]).expect_code(1);
    run.expect_stderr("role \"app_owner\" does not exist")
        .expect_stderr("drop it before the next try");
    elsewhere.sql("drop database if exists app");
    create(&["--no-owner", "--no-privileges"])
        .expect_code(1)
        .expect_stderr("app_reader");
    elsewhere.sql("drop database if exists app");
    elsewhere.sql("create role app_reader");
    for jobs in [&[][..], &["--jobs", "2"]] {
        elsewhere.sql("drop database if exists app");
        create(&[&["--no-owner", "--no-privileges"], jobs].concat()).success();
        let client = elsewhere.client_of("app");
        let count = client.value("select count(*) from public.plain");
        assert_eq!(count, "30");
        let comment =
            "select shobj_description(oid, 'pg_database') from pg_database where datname = 'app'";
        assert_eq!(client.value(comment), "ours");
        drop(client);
    }
    create(&[])
        .expect_code(8)
        .expect_stderr("database \"app\" exists");
    // An older server is none.
    let older = Cluster::builder(16).without_fsync().start();
    let run = world
        .logical(&["restore", "app", "--into", &older.conninfo("postgres")])
        .run();
    run.expect_code(8)
        .expect_stderr("the server runs PostgreSQL 16, the dump is of PostgreSQL 17");
}

#[test]
fn d09_no_password_is_on_a_command_line_in_a_log_or_in_a_plain_repository() {
    const SECRET: &str = "pw-7f3a";
    let hba = "local all postgres trust\nlocal all all scram-sha-256\n";
    let world = World::of(Cluster::builder(17).without_fsync().hba(hba).start(), false);
    world.cluster.sql(&format!(
        "create role dumper superuser login password '{SECRET}'"
    ));
    let config = world.sandbox.join("pitr.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let named = text.replace("user=postgres", &format!("user=dumper password={SECRET}"));
    std::fs::write(&config, named).unwrap();
    let seen = world.sandbox.file("seen", "");
    let bin = world.tampering(&format!(
        "{{ echo \"$all\"; env; }} >> {0}; stat -c '%a %n' \"$(dirname \"$dir\")/..\" \"$PGSERVICEFILE\" >> {0}",
        seen.display()
    ));
    let run = world
        .logical(&["backup", "app", "--bin", bin.to_str().unwrap()])
        .succeed();
    assert!(!format!("{run}").contains(SECRET), "{run}");
    let seen = std::fs::read_to_string(&seen).unwrap();
    assert!(
        seen.contains("--snapshot=") && seen.contains("PGSERVICEFILE="),
        "{seen}"
    );
    assert!(!seen.contains(SECRET), "{seen}");
    assert!(seen.lines().any(|l| l.starts_with("700 ")), "{seen}");
    // A wrong one is named as such, and not shown.
    let wrong = text.replace("user=postgres", "user=dumper password=wrong-7f3b");
    std::fs::write(&config, wrong).unwrap();
    let run = world.logical(&["backup", "app"]).run();
    assert!(
        !run.is_success() && !format!("{run}").contains("wrong-7f3b"),
        "{run}"
    );
    std::fs::write(&config, &text).unwrap();
    let run = world
        .logical(&[
            "restore",
            "app",
            "--into",
            &format!("host=/x dbname=y password={SECRET}"),
        ])
        .run();
    run.expect_code(2).expect_stderr("holds a password");
    // The hash of the role is no less a secret.
    let to = world.sandbox.join("files");
    world
        .logical(&["restore", "app", "--to", to.to_str().unwrap()])
        .succeed();
    let globals = std::fs::read_to_string(to.join("globals.sql")).unwrap();
    assert!(
        globals.contains("CREATE ROLE dumper") && !globals.contains("SCRAM"),
        "{globals}"
    );
}

#[test]
fn a_name_that_is_not_configured_is_refused_with_the_lines_to_add() {
    let world = World::new(17);
    let run = world.logical(&["backup", "other"]).exits(3);
    run.expect_stderr(
        "Add to the configuration file: [logical.other] and below it cluster = \"main\"",
    );
    for command in ["check", "restore"] {
        let to = world.sandbox.join("nowhere");
        let to = ["--to", to.to_str().unwrap()];
        let more = if command == "restore" { &to[..] } else { &[] };
        let run = world.logical(&[&[command, "app"], more].concat()).run();
        run.expect_code(2).expect_stderr("has no undamaged backup");
    }
    assert!(!world.sandbox.join("nowhere").exists());
}

#[test]
fn an_interrupted_check_leaves_no_server() {
    let world = World::new(16);
    world.backup();
    let running = world.logical(&["check", "app", "--restore"]).spawn();
    let mut server = None;
    wait_until("the private server runs", || {
        let pid = paths_below(&world.spool)
            .into_iter()
            .find(|path| path.ends_with("data/postmaster.pid"))
            .and_then(|path| std::fs::read_to_string(path).ok());
        server = pid.and_then(|text| text.lines().next()?.parse::<u32>().ok());
        server.is_some()
    });
    running.ended_by(Signal::INT).expect_code(130);
    world.assert_spool_is_empty();
    assert!(pitr::process::has_ended(server.unwrap()));
}

/// Another cluster under the name is not mixed with the first.
#[test]
fn dumps_of_another_cluster_are_refused_under_the_name() {
    let world = World::new(17);
    world.backup();
    let other = Cluster::builder(17)
        .own_identifier()
        .without_fsync()
        .start();
    other.sql("create database app");
    world.point_to(&other);
    let run = world.logical(&["backup", "app"]).exits(8);
    run.expect_stderr("is written by source");
    assert_eq!(world.ids("app").len(), 1);
    world.logical(&["backup", "app", "--confirm"]).succeed();
    assert_eq!(world.ids("app").len(), 2);
}

#[test]
fn a_host_that_only_writes_takes_dumps_which_others_restore() {
    let world = World::sealed(17);
    let config = world.sandbox.join("pitr.toml");
    let with_key = std::fs::read_to_string(&config).unwrap();
    let without = with_key.lines().filter(|l| !l.starts_with("key_file"));
    std::fs::write(&config, without.collect::<Vec<_>>().join("\n")).unwrap();
    let [first, second] = ["first", "second"].map(|note| {
        let sql = format!("update app.accounts set note = '{note}'");
        world.cluster.client_of("app").sql(&sql);
        world.backup()
    });
    for level in ["--list", "--read", "--restore"] {
        let run = world.logical(&["check", "app", level]).run();
        assert!(!run.is_success(), "no key, no content: {run}");
    }
    let to = world.sandbox.join("own");
    let restore = ["restore", "app", "--to", to.to_str().unwrap()];
    assert!(!world.logical(&restore).run().is_success(), "no key");
    std::fs::write(&config, with_key).unwrap();
    for (id, note) in [(first, "first"), (second, "second")] {
        let check = world.logical(&["check", "app", "--restore", "--backup", &id]);
        check.succeed();
        let copy = world.database(note);
        let into = world.cluster.conninfo(note);
        let restore = ["restore", "app", "--backup", &id, "--into", &into];
        world.logical(&restore).succeed();
        let found = copy.value("select distinct note from app.accounts");
        assert_eq!(found, note);
    }
    world.pitr(&["verify"]).succeed();
}
