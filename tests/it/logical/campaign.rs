//! Random databases on every major: dumped while rows move, restored, and compared in every definition and every value.
//!
//! `PITR_LOGICAL_ROUNDS` says how many databases, `PITR_LOGICAL_DAMAGES` how many damages of each dump (`make logical-campaign`: 5 and 30),
//! `PITR_LOGICAL_SEED` repeats a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::damage;
use super::schema::{self, Facts, ROLES};
use super::world::World;
use crate::common::random::Random;
use crate::common::{Client, Cluster, Program, newest_bin};
use crate::per_major;

/// Rows that move while the dump is taken: money between accounts, and pieces between partitions.
const MOVING: &str = "
    create schema moving;
    create table moving.accounts (id int primary key, euros int not null);
    insert into moving.accounts select g, 100 from generate_series(1, 100) g;
    create table moving.history (id bigint generated always as identity primary key, account int references moving.accounts, euros int);
    create table moving.pieces (id int, place int, primary key (id, place)) partition by list (place);
    create table moving.pieces_0 partition of moving.pieces for values in (0);
    create table moving.pieces_1 partition of moving.pieces for values in (1);
    create table moving.pieces_2 partition of moving.pieces for values in (2);
    insert into moving.pieces select g, g % 3 from generate_series(1, 300) g;
";

/// Holds in every snapshot, however rows move.
const INVARIANTS: &str = "select (select sum(euros) from moving.accounts) || ' ' || (select coalesce(sum(euros), 0) from moving.history) || ' ' || \
    (select count(*) % 2 from moving.history) || ' ' || (select count(distinct id) || ' ' || count(*) || ' ' || sum(id) from moving.pieces)";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Moves rows until the flag is set; returns the transactions.
fn load(cluster: &Cluster, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<u64>> {
    let run = |seed: u64| {
        let (client, stop) = (cluster.client_of("app"), Arc::clone(stop));
        std::thread::spawn(move || {
            let (mut random, mut done) = (Random::new(seed), 0);
            while !stop.load(Ordering::Relaxed) {
                let (from, to) = (1 + random.below(100), 1 + random.below(100));
                let (piece, place) = (1 + random.below(300), random.below(3));
                // Always in one order, so that no two wait for one another.
                let _ = client.try_sql(&format!(
                    "begin; update moving.accounts set euros = euros + case when id = {from} then -1 else 1 end where id in ({from}, {to}) and {from} <> {to}; \
                     insert into moving.history (account, euros) values ({from}, -1), ({to}, 1); \
                     update moving.pieces set place = {place} where id = {piece}; commit"
                )).map_err(|_| client.sql("rollback"));
                done += 1;
            }
            done
        })
    };
    (0..2).map(run).collect()
}

/// All that a database has: its definitions, and the rows of everything that does not move.
struct Content {
    definitions: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Content {
    fn of(cluster: &Cluster, database: &str) -> Content {
        let dump = Program::new(newest_bin(cluster.major(), "pg_dump"))
            .words("--schema-only --dbname")
            .arg(cluster.conninfo(database));
        let text = dump.succeed().stdout;
        // The key of \restrict is another one each time.
        let is_definition = |line: &&str| !line.starts_with("--") && !line.contains("restrict ");
        // Before version 14 pg_dump orders those of two roles by their number.
        let is_of_role = |line: &String| line.starts_with("ALTER DEFAULT PRIVILEGES");
        let lines = text.lines().filter(is_definition).map(str::to_owned);
        let (mut of_roles, mut definitions): (Vec<_>, Vec<_>) = lines.partition(is_of_role);
        of_roles.sort();
        definitions.extend(of_roles);
        Content {
            definitions,
            values: values(&cluster.client_of(database)),
        }
    }

    fn assert_same(&self, other: &Content, why: &str) {
        for (name, value) in &self.values {
            assert_eq!(other.values.get(name), Some(value), "{name}, {why}");
        }
        assert_eq!(self.values.len(), other.values.len(), "{why}");
        let differs = self
            .definitions
            .iter()
            .zip(&other.definitions)
            .position(|(a, b)| a != b);
        if let Some(at) = differs {
            let around =
                |lines: &[String]| lines[at.saturating_sub(3)..lines.len().min(at + 4)].join("\n");
            panic!(
                "{}\n--- restored\n{}\n{why}",
                around(&self.definitions),
                around(&other.definitions)
            );
        }
        assert_eq!(self.definitions.len(), other.definitions.len(), "{why}");
    }
}

/// Hashes of all rows, by relation; sequences; large objects.
fn values(client: &Client) -> BTreeMap<String, String> {
    let queries = client.sql(
        "select format('%s %I.%I', c.relkind, n.nspname, c.relname), case c.relkind \
           when 'S' then format('select last_value || '' '' || is_called from %I.%I', n.nspname, c.relname) \
           else format('select count(*) || '' '' || coalesce(md5(string_agg(every::text, '','' order by every::text collate \"C\")), '''') from %s %I.%I every', \
             case c.relkind when 'r' then 'only' else '' end, n.nspname, c.relname) end \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'ext', 'moving') and not c.relispartition \
         and (c.relkind in ('r', 'p', 'S') or c.relkind = 'm' and c.relispopulated)",
    );
    let mut all = BTreeMap::new();
    for row in queries {
        let [Some(name), Some(sql)] = &row[..] else {
            panic!("{row:?}");
        };
        all.insert(name.clone(), client.value(sql));
    }
    let objects = "select oid, lomowner::regrole, coalesce(lomacl, acldefault('L', lomowner)), obj_description(oid, 'pg_largeobject'), length(lo_get(oid)), md5(lo_get(oid)) from pg_largeobject_metadata";
    for row in client.sql(objects) {
        all.insert(format!("large object {:?}", row[0]), format!("{row:?}"));
    }
    all
}

/// A dump comes back as the database was in one moment, into a live server and into the private one of a check.
fn whatever_a_database_holds_its_dump_gives_back(major: u32) {
    let seed = number("PITR_LOGICAL_SEED", std::process::id().into());
    for round in 0..number("PITR_LOGICAL_ROUNDS", 1) {
        let begun = Instant::now();
        let seed = seed + round;
        let mut random = Random::new(seed * 100 + u64::from(major));
        let why = format!("PITR_LOGICAL_SEED={seed} on {major}");
        let cluster = Cluster::builder(major).without_fsync().start();
        let world = World::empty(cluster, random.one_in(2));
        let made = fill(&world, random.fork(), &why);
        one_moment(&world, &mut random, &why);
        let damages = number("PITR_LOGICAL_DAMAGES", 2);
        let found = damage::campaign(&world, &mut random, damages, &why);
        println!(
            "{why}: {made}; {found}; {:.1} s",
            begun.elapsed().as_secs_f32()
        );
    }
}

/// Makes a random database; says what it has.
fn fill(world: &World, random: Random, why: &str) -> String {
    let client = world.cluster.client_of("app");
    for role in ROLES {
        client.sql(&format!("create role {role}"));
    }
    let facts = Facts::of(&client, world.cluster.major());
    let mut refused = Vec::new();
    for statement in schema::statements(random, &facts) {
        if let Err(e) = client.try_sql(&statement) {
            refused.push(format!("{statement}\n{}", crate::common::text_of(&e)));
        }
    }
    assert!(refused.is_empty(), "{}\n{why}", refused.join("\n"));
    client.sql(MOVING);
    let made = "select (select count(*) from pg_class where oid >= 16384) || ' relations, extensions ' || (select string_agg(extname, ' ') from pg_extension)";
    client.value(made)
}

fn one_moment(world: &World, random: &mut Random, why: &str) {
    let stop = Arc::new(AtomicBool::new(false));
    let writers = load(&world.cluster, &stop);
    let backup = world.logical(&["backup", "app", "--json"]).run();
    stop.store(true, Ordering::Relaxed);
    let moved: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
    assert!(backup.is_success() && moved > 0, "{backup}\n{why}");
    world.assert_spool_is_empty();
    let original = Content::of(&world.cluster, "app");
    let copy = world.database("copy");
    let into = world.cluster.conninfo("copy");
    let more = *random.pick(&[&[][..], &["--jobs", "3"]]);
    let restore = |more: &[&str]| {
        world
            .logical(&[&["restore", "app", "--into", &into], more].concat())
            .run()
    };
    let run = restore(more);
    assert!(run.is_success(), "{run}\n{why}");
    assert_eq!(copy.value(INVARIANTS), "10000 0 0 300 300 45150", "{why}");
    let restored = Content::of(&world.cluster, "copy");
    original.assert_same(&restored, why);
    // PostgreSQL's pg_restore drops no key and no index of a partition: nothing is replaced then.
    let run = restore(&["--replace", "--confirm"]);
    run.expect_code(1)
        .expect_stderr("cannot drop in")
        .expect_stderr("The database is as it was.");
    restored.assert_same(&Content::of(&world.cluster, "copy"), why);
    for level in ["--list", "--read", "--restore"] {
        let run = world.logical(&["check", "app", level]).run();
        assert!(run.is_success(), "{run}\n{why}");
    }
}

per_major!(whatever_a_database_holds_its_dump_gives_back);
