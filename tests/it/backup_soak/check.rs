//! A moment is planned, restored and compared with what the server held.

use serde_json::Value;

use super::indexes;
use super::world::{Mark, World};
use crate::common::reception::lsn;
use crate::common::{Cluster, Stop};
use crate::incremental::truth;
use crate::restore::{check_checksums, check_relations, verify_backup};

/// Arguments that ask for a moment, in one of the ways in which a target can be given.
fn target(mark: &Mark, way: usize) -> [String; 2] {
    match way {
        0 => ["--target-name".to_owned(), mark.name.clone()],
        1 => [
            "--target-lsn".to_owned(),
            pitr::pg::lsn::Lsn(mark.lsn).to_string(),
        ],
        2 => ["--target-xid".to_owned(), mark.xid.clone()],
        _ => ["--target-time".to_owned(), mark.time.clone()],
    }
}

const WAYS: usize = 4;

/// A backup that is there.
pub struct Backup {
    pub id: String,
    pub start: u64,
    /// From here on it leads.
    pub stop: u64,
}

pub fn backups(world: &World) -> Vec<Backup> {
    let info = world.home.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |b: &Value| Backup {
        id: text(&b["id"]),
        start: lsn(&text(&b["start_lsn"])),
        stop: lsn(&text(&b["stop_lsn"])),
    };
    backups.iter().map(one).collect()
}

fn plan(world: &World, asked: &[String]) -> Value {
    let run = world.home.pitr().words("plan --json").args(asked).run();
    let plan = run.json();
    let code = if plan["reachable"] == true { 0 } else { 5 };
    assert_eq!(run.code(), code, "{run}");
    plan
}

/// Whether a moment can be reached is what the backups say that are left.
fn check_plan(world: &World, mark: &Mark, way: usize) -> bool {
    let plan = plan(world, &target(mark, way));
    let expected = backups(world).iter().any(|b| b.stop <= mark.lsn);
    assert_eq!(
        plan["reachable"], expected,
        "{} by {way}: {plan:#}",
        mark.name
    );
    expected
}

/// Every moment since the oldest backup that is left is promised, and none before.
pub fn all_marks_are_planned(world: &World) {
    for (number, mark) in world.marks.iter().enumerate() {
        check_plan(world, mark, number % WAYS);
    }
}

/// Restores a moment, from any backup that leads there, and compares everything.
pub fn moment(world: &mut World, mark: &Mark, is_thorough: bool) {
    let way = world.random.below(WAYS);
    if !check_plan(world, mark, way) {
        return;
    }
    let mut asked = target(mark, way).to_vec();
    if world.random.one_in(2) {
        let mut able = backups(world);
        able.retain(|b| b.stop <= mark.lsn);
        let id = world.random.pick(&able).id.clone();
        asked.extend(["--backup".to_owned(), id]);
    }
    world.restored += 1;
    let folder = format!("restored_{}", world.restored);
    let sandbox = &world.home.sandbox;
    sandbox.dir(&folder);
    let (to, space) = (
        sandbox.join(format!("{folder}/data")),
        sandbox.join(format!("{folder}/space")),
    );
    println!("backup soak {}: {} from {asked:?}", world.major, mark.name);
    let mapping = format!("{}={}", world.space.display(), space.display());
    let restore = world.home.pitr().arg("restore").args(&asked);
    let restore = restore.args(["--tablespace-mapping", &mapping]);
    restore.arg("--to").arg(&to).succeed();
    verify_backup(world.major, &to);
    let mut copy = Cluster::open(world.major, &to).without_fsync().promoted();
    let found = truth(&copy);
    assert_eq!(found, *mark.content, "{} from {asked:?}", mark.name);
    if is_thorough {
        unlogged_tables_are_empty(&copy);
        indexes::answer_like_tables(&copy);
        check_relations(&copy);
        copy.stop(Stop::Fast);
        if world.has_checksums {
            check_checksums(&copy);
        }
    }
    drop(copy);
    let _ = std::fs::remove_dir_all(world.home.sandbox.join(&folder));
}

/// A restore leaves tables without WAL as they are after a crash: empty, and ready for rows.
fn unlogged_tables_are_empty(copy: &Cluster) {
    for client in indexes::databases(copy) {
        let tables =
            "select oid::regclass from pg_class where relkind = 'r' and relpersistence = 'u'";
        for row in client.sql(tables) {
            let table = row[0].as_deref().unwrap();
            let count = client.value(&format!("select count(*) from {table}"));
            assert_eq!(count, "0", "{table}");
            client.sql(&format!("insert into {table} (a) values (1)"));
        }
    }
}
