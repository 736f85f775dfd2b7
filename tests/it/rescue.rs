//! `pitr rescue` into a live server: whole databases and schemas, tables that others lead to, and hosts that lack programs.

use crate::clone::{Cloned, rescue, rescuing};
use crate::common::{Cluster, Program, Run, Sandbox, Site, path_of};
use crate::{per_major, require_fuse};

/// A cluster with a database of its own, which `then` destroys something of.
fn with_database(major: u32, then: impl Fn(&Cluster)) -> Cloned {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("create role reader; create role keeper");
    cluster.sql("create database doomed owner keeper");
    cluster.sql("alter database doomed set work_mem = '7MB'; alter database doomed set search_path = s, public; alter role reader in database doomed set work_mem = '9MB'; revoke connect on database doomed from public; grant connect on database doomed to reader");
    let doomed = cluster.client_of("doomed");
    doomed.sql("create schema s; create table s.items (id serial primary key, picture oid); create index pictures on s.items (picture); create view s.seen as select id from s.items; create table public.plain (a int primary key, item int references s.items); create publication pub for table s.items");
    let more = |from: u32, to: u32| {
        doomed.sql(&format!("insert into s.items (picture) select lo_from_bytea(0, convert_to('picture ' || g, 'UTF8')) from generate_series({from}, {to}) g"));
    };
    more(1, 20);
    // One of them is another role's, and a third one reads it.
    doomed.sql("do $$ declare object oid := (select picture from s.items where id = 20); begin execute format('alter large object %s owner to keeper; grant select on large object %s to reader', object, object); end $$");
    doomed.sql("insert into public.plain select g, g from generate_series(1, 10) g");
    site.pitr().words("backup --quiet").succeed();
    more(21, 25);
    drop(doomed);
    let before = cluster.value("select pg_current_wal_insert_lsn()");
    then(&cluster);
    cluster.archive_now();
    Cloned {
        site,
        cluster,
        folder: Sandbox::new("c"),
        before,
    }
}

/// All rows, with the large objects that they name.
const ITEMS: &str =
    "select string_agg(id || convert_from(lo_get(picture), 'UTF8'), ',' order by id) from s.items";
/// How many large objects there are, and whose those are that have grants.
const OBJECTS: &str = "select count(*) || string_agg(' ' || lomowner::regrole || ' ' || lomacl::text, '') from pg_largeobject_metadata";
const RIGHTS: &str = "select datdba::regrole || (select string_agg(a::text, ' ' order by a::text) from unnest(datacl) a) from pg_database where datname = 'doomed'";
const SETTINGS: &str = "select string_agg(setrole || ' ' || c, ' ' order by setrole, c) from pg_db_role_setting join pg_database d on d.oid = setdatabase, unnest(setconfig) c where datname = 'doomed'";

fn next_command(run: &Run) -> &str {
    let line = run
        .stderr
        .lines()
        .find_map(|l| l.trim().strip_prefix("next:"));
    line.unwrap_or_else(|| panic!("no next command: {run}"))
        .trim()
}

/// The statements that the notes of a rescue name.
fn statements(run: &Run) -> Vec<&str> {
    let notes = run.stdout.lines().filter(|l| l.starts_with("note: "));
    notes
        .filter_map(|l| l.rsplit_once(": "))
        .map(|(_, sql)| sql)
        .collect()
}

fn k19_a_dropped_database_comes_back_by_the_commands_that_rescue_names(major: u32) {
    require_fuse!("k19_a_dropped_database_comes_back_by_the_commands_that_rescue_names");
    let [items, rights, settings] = [const { std::cell::OnceCell::<String>::new() }; 3];
    let cloned = with_database(major, |cluster| {
        let doomed = cluster.client_of("doomed");
        for (value, sql) in [(&items, ITEMS), (&rights, RIGHTS), (&settings, SETTINGS)] {
            value.set(doomed.value(sql)).unwrap();
        }
        drop(doomed);
        cluster.sql("drop database doomed with (force)");
    });
    let live = &cloned.cluster;
    let rescue = cloned.site.pitr().words("rescue --into");
    let rescue = cloned.at_moment(rescue.arg(live.conninfo("doomed")));
    let refused = rescue.exits(1);
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    let pitr = path_of("pitr");
    let pitr = pitr.parent().unwrap().display();
    // As an operator pastes it.
    let pasted = Program::new("sh").args(["-ec", next_command(&refused)]);
    let pasted = pasted.env("PATH", format!("{pitr}:{}", cloned.search_path()));
    let run = pasted.succeed();
    assert!(run.stdout.contains("s.items: 25 rows"), "{run}");
    let doomed = live.client_of("doomed");
    let one = |sql: &str| doomed.value(sql);
    assert_eq!(&one(ITEMS), items.get().unwrap());
    assert_eq!(one("select count(*) from pg_largeobject_metadata"), "25");
    assert_eq!(one("select count(*) from s.seen"), "25");
    assert_eq!(one("select count(*) from pg_publication_tables"), "1");
    doomed.sql("insert into public.plain values (99, 25)");
    assert!(
        doomed
            .try_sql("insert into public.plain values (100, 1000)")
            .is_err()
    );
    let next: u32 = one("insert into s.items default values returning id")
        .parse()
        .unwrap();
    // A server that recovered leaves out up to 32 values.
    assert!((26..=58).contains(&next), "{next}");
    // Everything that no archive has is named, as statements.
    for statement in statements(&run) {
        doomed.sql(statement);
    }
    assert_eq!(&one(RIGHTS), rights.get().unwrap(), "{run}");
    assert_eq!(&one(SETTINGS), settings.get().unwrap(), "{run}");
}
// Nobody has client programs of 14 for these hosts.
per_major!(k19_a_dropped_database_comes_back_by_the_commands_that_rescue_names, v13 v15 v16 v17 v18 v19);

#[test]
fn k19_a_database_that_the_moment_did_not_have_is_named() {
    require_fuse!("k19_a_database_that_the_moment_did_not_have_is_named");
    let cloned = with_database(17, |_| ());
    let file = cloned.folder.join("x.dump");
    let to = cloned.site.pitr().words("rescue --database other --to");
    let run = cloned.at_moment(to.arg(&file)).exits(2);
    run.expect_stderr("there is no database \"other\" at that moment");
    // A password of the connection string is not repeated.
    let into = format!("{} password=hush", cloned.cluster.conninfo("gone"));
    let rescue = cloned.site.pitr().args(["rescue", "--into", &into]);
    let run = cloned.at_moment(rescue).exits(1);
    assert!(next_command(&run).starts_with("createdb "), "{run}");
    assert!(
        !format!("{}{}", run.stdout, run.stderr).contains("hush"),
        "{run}"
    );
}

fn k20_a_dropped_schema_comes_back_into_the_live_database(major: u32) {
    require_fuse!("k20_a_dropped_schema_comes_back_into_the_live_database");
    let cloned = with_database(major, |cluster| {
        let doomed = cluster.client_of("doomed");
        // All large objects but two are gone with it. One of these is another one now.
        doomed.sql("select lo_put(picture, 0, 'PICTURE') from s.items where id = 1; select lo_unlink(picture) from s.items where id > 2");
        doomed.sql("drop schema s cascade");
    });
    let live = &cloned.cluster;
    let rescue = cloned.site.pitr().words("rescue --schema s --into");
    let rescue = cloned.at_moment(rescue.arg(live.conninfo("doomed")));
    let run = rescue.succeed();
    assert!(run.stdout.contains("s.items: 25 rows"), "{run}");
    let doomed = live.client_of("doomed");
    let one = |sql: &str| doomed.value(sql);
    // The live database keeps the object that is another one, which is named. All others are back, with their owners.
    let items = one(ITEMS);
    assert!(
        items.starts_with("1PICTURE 1,2picture 2,3picture 3,"),
        "{items}"
    );
    assert!(items.ends_with(",25picture 25"), "{items}");
    assert_eq!(one(OBJECTS), "25 keeper {keeper=rw/keeper,reader=r/keeper}");
    assert_eq!(one("select count(*) from s.seen"), "25");
    assert_eq!(
        one("select count(*) from pg_indexes where schemaname = 's'"),
        "2"
    );
    for part in [
        "large objects that rows name: 23 made, 1 there already",
        "have other content than at that moment",
        "alter publication pub add table s.items;",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run}");
    }
    // The foreign key of the table that stayed.
    let key = statements(&run);
    let key = key
        .iter()
        .find(|sql| sql.contains("add constraint"))
        .unwrap();
    doomed.sql(key);
    // Rows that are there already stay as they are.
    doomed.sql("delete from public.plain; delete from s.items where id > 1");
    rescue.exits(1).expect_stderr("Nothing was changed");
    assert_eq!(one("select count(*) from s.items"), "1");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
}
per_major!(k20_a_dropped_schema_comes_back_into_the_live_database, v13 v16 v18 v19);

#[test]
fn k46_rows_bring_the_large_objects_that_they_name() {
    require_fuse!("k46_rows_bring_the_large_objects_that_they_name");
    let cloned = with_database(18, |cluster| {
        let doomed = cluster.client_of("doomed");
        doomed.sql("select lo_unlink(picture) from s.items where id <= 10; delete from public.plain; delete from s.items where id <= 5; update s.items set picture = null where id in (6, 7)");
    });
    let live = cloned.cluster.client_of("doomed");
    let one = |sql: &str| live.value(sql);
    let rescue = cloned.site.pitr().words("rescue --json --into");
    let rescue = rescue.arg(cloned.cluster.conninfo("doomed"));
    let rescue = cloned.at_moment(rescue.words("--table s.items"));
    let objects = |run: &Run| run.json()["large_objects"].clone();
    // Rows that stayed name none of two objects any more, and lack three.
    let run = rescue.clone().arg("--rows-missing-only").succeed();
    assert_eq!(objects(&run)["made"], 8, "{run}");
    assert_eq!(objects(&run)["same"], 15, "{run}");
    assert_eq!(one("select count(lo_get(picture)) from s.items"), "23");
    let run = rescue.clone().arg("--as").arg("public.earlier").succeed();
    assert_eq!(objects(&run)["made"], 2, "{run}");
    assert_eq!(
        one(&ITEMS.replace("s.items", "public.earlier"))
            .matches("picture")
            .count(),
        25
    );
    // A server that cannot give an object its owner gets neither rows nor objects.
    live.sql("drop table public.earlier; select lo_unlink(picture) from s.items where id = 20; drop view s.seen; drop publication pub; alter table s.items rename to other; alter database doomed owner to postgres");
    live.sql("drop owned by keeper; drop owned by reader; drop role keeper; drop role reader");
    let run = rescue.exits(1).expect_stdout("\"keeper\\\" does not exist");
    assert_eq!(one("select to_regclass('s.items') is null"), "t", "{run}");
    assert_eq!(one("select count(*) from pg_largeobject_metadata"), "24");
    // Neither does one in which a name is taken.
    live.sql("create role keeper; create role reader");
    rescue.exits(1).expect_stdout("already exists");
    assert_eq!(one("select count(*) from pg_largeobject_metadata"), "24");
    // An archive has none, and says so.
    let file = cloned.folder.join("x.dump");
    let to = cloned.site.pitr().words("rescue --table s.items");
    let to = to.words("--database doomed --to").arg(&file);
    let run = cloned.at_moment(to).succeed();
    run.expect_stdout("s.items.picture may name large objects");
}

#[test]
fn k21_without_pg_dump_of_the_major_that_is_said_and_rows_come_back_all_the_same() {
    require_fuse!("k21_without_pg_dump_of_the_major_that_is_said_and_rows_come_back_all_the_same");
    let cloned = Cloned::new(14);
    let refused = rescue(&cloned, &["--table", "t"]).expect_code(2);
    refused
        .expect_stdout("no pg_dump of PostgreSQL 14")
        .expect_stdout("--as NAME");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    rescue(&cloned, &["--table", "t", "--as", "t_then"]).success();
    let rows = cloned.cluster.value("select count(*) from t_then");
    assert_eq!(rows, "31000");
}

#[test]
fn k06_sequences_go_on_and_a_table_that_a_foreign_key_leads_to_keeps_its_rows() {
    require_fuse!("k06_sequences_go_on_and_a_table_that_a_foreign_key_leads_to_keeps_its_rows");
    let cloned = Cloned::with(17, "create table numbered (id bigserial primary key, v text); insert into numbered (v) select 'old ' || g from generate_series(1, 50) g;
        create table down (id int generated always as identity (increment by -1 minvalue -1000 maxvalue -1 start -1) primary key, v text); insert into down (v) select 'old ' || g from generate_series(1, 50) g");
    let live = &cloned.cluster;
    let one = |sql: &str| live.value(sql);
    let replace = |table: &str| rescue(&cloned, &["--table", table, "--replace", "--confirm"]);
    live.sql("delete from numbered where id > 10; select setval('numbered_id_seq', 10); delete from down where id < -10; select setval('down_id_seq', -10)");
    for (table, next) in [("numbered", "51"), ("down", "-51")] {
        replace(table).success();
        let insert = format!("insert into {table} (v) values ('new') returning id::text");
        assert_eq!(one(&insert), next, "{table}");
    }
    // One that is ahead is not taken back.
    live.sql("select setval('numbered_id_seq', 1000)");
    replace("numbered").success();
    assert_eq!(
        one("insert into numbered (v) values ('new') returning id::text"),
        "1001"
    );

    live.sql("create role clerk login; grant select, insert on numbered to clerk; update numbered set v = 'live'");
    let into = live
        .conninfo("postgres")
        .replace("user=postgres", "user=clerk");
    let clerk = cloned
        .site
        .pitr()
        .args(["rescue", "--table", "numbered", "--into", &into]);
    let clerk = cloned.at_moment(clerk).words("--replace --confirm").run();
    assert!(!clerk.is_success(), "{clerk}");
    clerk.expect_stderr("grant truncate on");
    let holder = live.client();
    holder.sql("begin; lock table numbered in share mode");
    replace("numbered")
        .expect_code(1)
        .expect_stdout("Other sessions use the table");
    holder.sql("rollback");

    live.sql("create table kid (id bigint references numbered); insert into kid values (1); delete from numbered where id = 40");
    let refused = replace("numbered").expect_code(8);
    assert!(!refused.stdout.contains("Other sessions"), "{refused}");
    refused
        .expect_stdout("foreign keys of kid lead to it")
        .expect_stdout("--rows-missing-only")
        .expect_stdout("--as NAME");
    assert_eq!(one("select count(*) from numbered where v = 'live'"), "50");
    let added = rescuing(&cloned, &["--table", "numbered", "--rows-missing-only"]).run();
    assert_eq!(added.success().json()["tables"][0]["added_rows"], 1);
    // A key that leads to its own table is no hindrance.
    live.sql("drop table kid; alter table numbered add column up bigint references numbered");
    replace("numbered").success();
}

/// Columns of all types that own a sequence. One row has numbers to which the sequences never come.
const PRICED: &str = "create sequence priced_id; create sequence priced_code; create sequence priced_price;
    create domain digits as numeric(20); create domain number as digits;
    create table priced (id number primary key default nextval('priced_id'), code text default 'c' || nextval('priced_code'),
        price money default nextval('priced_price')::int, n serial, v text);
    alter sequence priced_id owned by priced.id; alter sequence priced_code owned by priced.code; alter sequence priced_price owned by priced.price;
    alter table priced alter n type bigint;
    insert into priced (v) select 'old ' || g from generate_series(1, 50) g;
    insert into priced (id, n, v) values (99999999999999999999, 3000000000, 'far')";

fn k64_sequences_of_columns_that_are_no_integers_end_no_rescue(major: u32) {
    require_fuse!("k64_sequences_of_columns_that_are_no_integers_end_no_rescue");
    let cloned = Cloned::with(major, PRICED);
    let live = &cloned.cluster;
    for mode in [&["--replace", "--confirm"][..], &["--rows-missing-only"]] {
        live.sql("delete from priced where id > 10; select setval('priced_id', 10), setval('priced_n_seq', 10)");
        let run = rescue(&cloned, &[&["--table", "priced"][..], mode].concat()).success();
        run.expect_stdout("stays as it is: column code is no number")
            .expect_stdout("stays as it is: column price is no number");
        let insert = "insert into priced (v) values ('new') returning id::text || ' ' || n || code";
        assert!(live.value(insert).starts_with("51 51c"), "{mode:?}");
        assert_eq!(live.value("select count(*) from priced"), "52");
    }
}
per_major!(k64_sequences_of_columns_that_are_no_integers_end_no_rescue, v13 v19);

/// A moment with things that no rescue carries, of which the live server has lost some.
fn hard_to_carry() -> Cloned {
    let cloned = Cloned::with(17, "create role gone; create type mood as enum ('glad'); create schema s;
        create table bare (a int); insert into bare values (1), (2);
        create table s.base (a int); insert into s.base values (1); create view s.seen as select a from s.base;
        create table parts (a int primary key) partition by range (a);
        create table parts_1 partition of parts for values from (0) to (10); insert into parts values (1), (2);
        create table owned (a int); alter table owned owner to gone; create table moody (m mood)");
    let live = &cloned.cluster;
    live.sql("drop view s.seen; drop table owned, moody; drop role gone; drop type mood");
    cloned
}

#[test]
fn k06_what_cannot_be_carried_is_refused_and_the_way_that_works_is_named() {
    require_fuse!("k06_what_cannot_be_carried_is_refused_and_the_way_that_works_is_named");
    let cloned = hard_to_carry();
    let live = &cloned.cluster;
    let one = |sql: &str| live.value(sql);
    let refuses = |words: &[&str], code: i32, reasons: [&str; 2]| {
        let run = rescue(&cloned, words).expect_code(code);
        let said = run.stdout.replace("\\\"", "\"");
        for reason in reasons {
            assert!(said.contains(reason), "{reason}: {run}");
        }
        assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    };
    let keyless = ["--table", "bare", "--rows-missing-only"];
    refuses(&keyless, 8, ["public.bare has no primary key", "--as NAME"]);
    refuses(
        &["--table", "s.seen"],
        8,
        ["s.seen is no table", "--schema NAME"],
    );
    for mode in [
        &["--as", "beside"][..],
        &["--replace", "--confirm"],
        &["--rows-missing-only"],
    ] {
        let partitioned = [&["--table", "parts"][..], mode].concat();
        let several = [&["--table", "bare", "--table", "big"][..], mode].concat();
        for words in [partitioned, several] {
            let takes = "take one table that is not partitioned";
            refuses(&words, 2, [takes, "2 were found"]);
        }
    }
    let role = "role \"gone\" does not exist";
    refuses(
        &["--table", "owned"],
        1,
        [role, "A role that is gone has to be created first"],
    );
    let kind = "type \"public.mood\" does not exist";
    refuses(&["--table", "moody"], 1, [kind, "--to FILE"]);
    let there = "select string_agg(relname, ' ' order by relname) from pg_class where relname in ('owned', 'moody', 'seen', 'beside', 'bare', 'parts')";
    assert_eq!(one(there), "bare parts");
    assert_eq!(one("select count(*) from bare"), "2");
    assert_eq!(one("select count(*) from parts"), "2");

    // The hints name ways that work.
    live.sql("create role gone");
    rescue(&cloned, &["--table", "owned"]).success();
    rescue(&cloned, &["--table", "parts_1", "--as", "beside"]).success();
    assert_eq!(one("select count(*) from beside"), "2");
    let file = cloned.folder.join("s.dump");
    let to = ["rescue", "--schema", "s", "--database", "postgres", "--to"];
    let to = cloned.site.pitr().args(to).arg(&file);
    cloned.at_moment(to).succeed();
    let into = live.conninfo("postgres");
    let take = ["-d", into.as_str(), "--table", "seen"];
    live.tool("pg_restore").args(take).arg(&file).succeed();
    assert_eq!(one("select count(*) from s.seen"), "1");
}

#[test]
fn k06_an_older_live_server_takes_no_table_of_a_newer_one() {
    require_fuse!("k06_an_older_live_server_takes_no_table_of_a_newer_one");
    let cloned = Cloned::new(17);
    let older = Cluster::builder(16).without_fsync().start();
    let into = cloned.site.pitr().words("rescue --table t --into");
    let into = cloned.at_moment(into.arg(older.conninfo("postgres")));
    let run = into.exits(8);
    run.expect_stderr("the live server is PostgreSQL 16, and the moment is one of 17")
        .expect_stderr("--to FILE");
    let there = "select count(*) from pg_class where relname = 't'";
    assert_eq!(older.value(there), "0");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    // Rows alone go there.
    into.words("--as t_then").succeed();
    let rows = "select count(*) from t_then";
    assert_eq!(older.value(rows), "31000");
}

#[test]
fn k48_time_limits_of_the_live_server_end_no_rescue() {
    require_fuse!("k48_time_limits_of_the_live_server_end_no_rescue");
    let cloned = with_database(17, |cluster| {
        let doomed = cluster.client_of("doomed");
        doomed.sql("create table s.wide as select g as id, repeat(md5(g::text), 30) as b from generate_series(1, 60000) g");
    });
    let live = &cloned.cluster;
    // The moment is the one in which this was there.
    let before = live.value("select pg_current_wal_insert_lsn()");
    let cloned = Cloned { before, ..cloned };
    let live = &cloned.cluster;
    let doomed = live.client_of("doomed");
    doomed.sql("drop schema s cascade; select lo_unlink(oid) from pg_largeobject_metadata");
    live.archive_now();
    live.sql("create role hasty superuser login");
    for name in [
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
    ] {
        live.sql(&format!("alter role hasty set {name} = '200ms'"));
    }
    let into = live
        .conninfo("doomed")
        .replace("user=postgres", "user=hasty");
    let rescue = cloned.site.pitr().args(["rescue", "--into", &into]);
    let rescue = cloned.at_moment(rescue);
    let one = |sql: &str| doomed.value(sql);
    // pg_dump takes longer than any of them, while a session of the live server is idle.
    let run = rescue.clone().words("--schema s").succeed();
    run.expect_stdout("large objects that rows name: 25 made");
    assert_eq!(one("select count(*) from s.wide"), "60000");
    assert_eq!(one("select count(lo_get(picture)) from s.items"), "25");
    doomed.sql("create function waits() returns trigger language plpgsql as 'begin perform pg_sleep(1); return null; end'; create trigger waits after insert on s.wide execute function waits()");
    let replace = ["--table", "s.wide", "--replace", "--confirm"];
    rescue.args(replace).succeed();
    assert_eq!(one("select count(*) from s.wide"), "60000");
}

#[test]
fn k49_rows_of_an_extension_are_in_no_archive_and_that_is_said() {
    require_fuse!("k49_rows_of_an_extension_are_in_no_archive_and_that_is_said");
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create schema s; create table s.own (a int); insert into s.own values (1), (2)");
    for name in ["made", "config", "some"] {
        cluster.sql(&format!("create table s.{name} (a int); insert into s.{name} values (1), (2), (3); alter extension plpgsql add table s.{name}"));
    }
    // As the script of an extension says it by pg_extension_config_dump.
    cluster.sql("update pg_extension set extconfig = array['s.config'::regclass, 's.some'::regclass], extcondition = array['', 'where a = 1'] where extname = 'plpgsql'");
    let cloned = Cloned::of(site, cluster);
    let to = |more: &[&str], name: &str| {
        let file = cloned.folder.join(name);
        let to = cloned.site.pitr().words("rescue --database postgres");
        cloned.at_moment(to.args(more).arg("--to").arg(file)).run()
    };
    for name in ["s.made", "s.some"] {
        let run = to(&["--table", name], "x.dump").expect_code(8);
        run.expect_stderr("belongs to extension plpgsql")
            .expect_stderr("--as NAME");
    }
    let run = to(&["--table", "s.config"], "config.dump").success();
    run.expect_stdout("s.config: 3 rows");
    let run = to(&["--schema", "s"], "s.dump").success();
    let mut run = run
        .expect_stdout("s.own: 2 rows")
        .expect_stdout("s.config: 3 rows");
    for name in ["made", "some"] {
        assert!(!run.stdout.contains(&format!("s.{name}: 3 rows")), "{run}");
        run = run.expect_stdout(&format!("table s.{name} belongs to extension plpgsql"));
    }
    let live = &cloned.cluster;
    let list = live.tool("pg_restore").arg("--list");
    let list = list.arg(cloned.folder.join("s.dump")).succeed();
    assert!(list.stdout.contains("TABLE DATA s config"), "{list}");
    assert!(!list.stdout.contains("TABLE DATA s made"), "{list}");
    // Rows alone come by COPY.
    let into = live.conninfo("postgres");
    let rows = cloned.site.pitr().args(["rescue", "--into", &into]);
    let rows = rows.words("--table s.made --as made_then");
    cloned.at_moment(rows).succeed();
    assert_eq!(live.value("select count(*) from made_then"), "3");
}

#[test]
fn k53_the_rows_of_an_unlogged_table_are_in_no_backup_and_the_live_ones_stay() {
    require_fuse!("k53_the_rows_of_an_unlogged_table_are_in_no_backup_and_the_live_ones_stay");
    let cloned = Cloned::with(
        17,
        "create unlogged table cached (id int primary key); insert into cached values (1), (2), (3)",
    );
    let live = &cloned.cluster;
    for mode in [&["--replace", "--confirm"][..], &["--rows-missing-only"]] {
        let run = rescue(&cloned, &[&["--table", "cached"][..], mode].concat());
        run.expect_code(8)
            .expect_stdout("public.cached is unlogged at that moment");
        assert_eq!(live.value("select count(*) from cached"), "3");
    }
    let note = "table public.cached is unlogged: its rows are in no backup";
    let run = rescue(&cloned, &["--table", "cached", "--as", "cached_then"]);
    run.success().expect_stdout(note);
    let file = cloned.folder.join("x.dump");
    let to = ["rescue", "--database", "postgres", "--schema", "public"];
    let to = cloned.site.pitr().args(to).arg("--to").arg(file);
    cloned.at_moment(to).succeed().expect_stdout(note);
    live.sql("drop table cached");
    let run = rescue(&cloned, &["--table", "cached"]).success();
    run.expect_stdout(note);
}

#[test]
fn k54_rows_are_not_rounded_or_cut_off_by_a_live_column_of_another_type() {
    require_fuse!("k54_rows_are_not_rounded_or_cut_off_by_a_live_column_of_another_type");
    let cloned = Cloned::with(
        17,
        "create schema app; create type app.mood as enum ('glad'); create table typed (id int primary key, exact numeric(10,4), name varchar(20), at timestamptz, m app.mood); insert into typed select g, 1.2345, 'a long name', '2026-03-04 05:06:07+09', 'glad' from generate_series(1, 3) g",
    );
    let live = &cloned.cluster;
    // The live server writes the names of its types otherwise.
    live.sql("alter role postgres set search_path = app, public");
    let rows = "select string_agg(t::text, ' ' order by id) from typed t";
    for (change, back, said) in [
        (
            "exact type numeric(10,2)",
            "exact type numeric(10,4)",
            "column exact was numeric(10,4) at that moment, and is numeric(10,2)",
        ),
        (
            "exact type smallint",
            "exact type numeric(10,4)",
            "and is smallint",
        ),
        (
            "name type varchar(5) using left(name, 5)",
            "name type varchar(20)",
            "and is character varying(5)",
        ),
        (
            "at type timestamp",
            "at type timestamptz",
            "and is timestamp without time zone",
        ),
    ] {
        live.sql(&format!(
            "alter table typed alter {change}; delete from typed where id = 2"
        ));
        let was = live.value(rows);
        for mode in [&["--replace", "--confirm"][..], &["--rows-missing-only"]] {
            let run = rescue(&cloned, &[&["--table", "typed"][..], mode].concat());
            run.expect_code(8)
                .expect_stdout(said)
                .expect_stdout("--as NAME");
            assert_eq!(live.value(rows), was);
        }
        live.sql(&format!("alter table typed alter {back}"));
    }
    // Types in which every value stays as it was.
    live.sql("alter table typed alter id type bigint, alter name type text, alter exact type numeric(12,4)");
    rescue(&cloned, &["--table", "typed", "--replace", "--confirm"]).success();
    let same = "select count(*) from typed where exact = 1.2345 and name = 'a long name' and at = '2026-03-04 05:06:07+09'";
    assert_eq!(live.value(same), "3");
}

#[test]
fn k55_a_name_that_means_two_tables_replaces_neither() {
    require_fuse!("k55_a_name_that_means_two_tables_replaces_neither");
    let cloned = Cloned::with(
        17,
        "create schema shop; create table shop.orders (id int primary key); create table public.orders (id int primary key); insert into shop.orders values (1); insert into public.orders values (2)",
    );
    let live = &cloned.cluster;
    live.sql("insert into shop.orders values (10); insert into public.orders values (20); alter role postgres set search_path = shop, public");
    let counts =
        "select (select count(*) from shop.orders) || ' ' || (select count(*) from public.orders)";
    for mode in [&["--replace", "--confirm"][..], &["--rows-missing-only"]] {
        let run = rescue(&cloned, &[&["--table", "orders"][..], mode].concat());
        run.expect_code(8).expect_stdout(
            "orders is public.orders at that moment, and shop.orders in the live server",
        );
        assert_eq!(live.value(counts), "2 2");
    }
    rescue(
        &cloned,
        &["--table", "shop.orders", "--replace", "--confirm"],
    )
    .success();
    assert_eq!(live.value(counts), "1 2");
}

#[test]
fn k59_a_prepared_transaction_of_the_moment_holds_up_nobody() {
    require_fuse!("k59_a_prepared_transaction_of_the_moment_holds_up_nobody");
    let builder = Cluster::builder(17).config("max_prepared_transactions", 5);
    let (site, cluster) = Site::with_cluster_of(builder);
    cluster.sql("create table ord as select g as id from generate_series(1, 100) g");
    site.pitr().words("backup --quiet").succeed();
    let client = cluster.client();
    for statement in ["begin", "drop table ord", "prepare transaction 'gone'"] {
        client.sql(statement);
    }
    let before = cluster.value("select pg_current_wal_insert_lsn()");
    // Recovery takes the record behind the target, too.
    client.sql("select pg_logical_emit_message(true, 'test', '')");
    client.sql("commit prepared 'gone'");
    cluster.archive_now();
    let cloned = Cloned {
        site,
        cluster,
        folder: Sandbox::on_disk("c"),
        before,
    };
    let note = "prepared transaction \"gone\" was open at that moment, and is rolled back";
    let rows = cloned.site.pitr().words("query --database postgres");
    let rows = cloned.at_moment(rows).arg("select count(*) from ord").run();
    rows.success().expect_stdout("100").expect_stderr(note);
    rescue(&cloned, &["--table", "ord", "--as", "ord_then"]).success();
    rescue(&cloned, &["--table", "ord"]).success();
    let live = &cloned.cluster;
    let counts = "select (select count(*) from ord) || ' ' || (select count(*) from ord_then)";
    assert_eq!(live.value(counts), "100 100");
}

#[test]
fn k60_the_tables_that_inherit_are_named_however_rows_are_carried() {
    require_fuse!("k60_the_tables_that_inherit_are_named_however_rows_are_carried");
    let cloned = Cloned::with(
        17,
        "create table par (id int primary key); create table kid (primary key (id)) inherits (par); insert into par values (1), (2); insert into kid select g from generate_series(3, 9) g",
    );
    let live = &cloned.cluster;
    // A row of the child has the key of one that the parent lost.
    live.sql("delete from only par where id = 1; insert into kid values (1)");
    let note = "table kid inherits from par, and was not carried";
    for (mode, parent) in [
        (&["--as", "par_then"][..], "2"),
        (&["--rows-missing-only"], "1 2"),
        (&["--replace", "--confirm"], "1 2"),
    ] {
        let run = rescue(&cloned, &[&["--table", "public.par"][..], mode].concat());
        run.success().expect_stdout(note);
        let ids = "select string_agg(id::text, ' ' order by id) from only par";
        assert_eq!(live.value(ids), parent);
    }
    assert_eq!(live.value("select count(*) from par_then"), "2");
    assert_eq!(live.value("select count(*) from kid"), "8");
}

#[test]
fn k61_missing_rows_come_back_into_a_table_that_is_partitioned_by_now() {
    require_fuse!("k61_missing_rows_come_back_into_a_table_that_is_partitioned_by_now");
    let cloned = Cloned::with(
        17,
        "create table grown (id int primary key, v text); insert into grown select g, 'v' from generate_series(1, 20) g",
    );
    let live = &cloned.cluster;
    live.sql("drop table grown; create table grown (id int primary key, v text) partition by range (id); create table low partition of grown for values from (0) to (11); create table high partition of grown for values from (11) to (100); insert into grown select g, 'v' from generate_series(1, 10) g");
    let missing = ["--table", "public.grown", "--rows-missing-only"];
    rescue(&cloned, &missing).success();
    let both = "select (select count(*) from low) || ' ' || (select count(*) from high)";
    assert_eq!(live.value(both), "10 10");
}
