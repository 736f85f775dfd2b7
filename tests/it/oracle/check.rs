//! One target: plan it, restore it, start the server, compare everything with the record.

use std::collections::BTreeMap;

use serde_json::Value;

use super::history::History;
use super::model::State;
use super::record::{Entry, Record, What, parse_lsn, parse_time, print_lsn};
use super::target::{Base, Kind, Stop, Target, print_time, reaches, stop};
use super::workload::DATABASES;
use crate::common::{Client, Cluster, Stop as Shutdown, wait_until};

pub fn target(history: &History, record: &Record, target: &Target, number: usize) {
    println!(
        "oracle {} target {number}: {:?}",
        history.major,
        target.args()
    );
    let path = target.path(record);
    let bases = bases(history);
    let run = history
        .pitr()
        .words("plan --json")
        .args(target.args())
        .run();
    let plan = run.json();
    if plan["reachable"] != Value::Bool(true) {
        assert_eq!(run.code(), 5, "{run:?}");
        for base in &bases {
            // PostgreSQL would take a backup that was complete only behind the time, where nothing ended in between; the plan
            // refuses it, for it may hold what happened behind the target.
            let too_young = matches!(target.kind, Kind::Time(t) if t < base.stop_time);
            assert!(
                too_young || !reaches(path, target, base, record),
                "the plan says out of reach, but backup {} reaches it: {plan:#}",
                base.id
            );
        }
        return;
    }
    let id = plan["backup"]["id"].as_str().expect("an id");
    let base = bases
        .iter()
        .find(|b| b.id == id)
        .expect("a backup that exists");
    assert!(
        reaches(path, target, base, record),
        "backup {id} does not reach the target: {plan:#}"
    );
    let stop = stop(path, target, base);
    let applied = &path[..stop.applied(path)];
    plan_agrees(&plan, path, &stop, base, record.is_seen);
    let mut server = restore(history, target, &plan, number);
    log_agrees(&server, target, path, &stop, base, record.is_seen);
    tables_agree(history, &server, applied);
    server.stop(Shutdown::Fast);
    for folder in [
        format!("restored-{number}"),
        format!("restored-{number}-space"),
    ] {
        let _ = std::fs::remove_dir_all(history.memory.join(&folder));
    }
}

fn bases(history: &History) -> Vec<Base> {
    let info = history.pitr().words("info --json").run().json();
    let backups = info["clusters"][0]["backups"]
        .as_array()
        .expect("backups")
        .clone();
    let lsn = |v: &Value| parse_lsn(v.as_str().expect("an LSN"));
    backups
        .iter()
        .map(|b| Base {
            id: b["id"].as_str().expect("an id").to_owned(),
            timeline: u32::try_from(b["timeline"].as_u64().expect("a timeline")).expect("small"),
            start_lsn: lsn(&b["start_lsn"]),
            stop_lsn: lsn(&b["stop_lsn"]),
            stop_time: moment(&b["stop_time"]),
        })
        .collect()
}

fn moment(said: &Value) -> i64 {
    let text = said.as_str().expect("a time").replace('T', " ");
    parse_time(text.trim_end_matches('Z')).expect("a time")
}

/// The last commit that is replayed, the first transaction end that is not, and the outcome.
fn plan_agrees(plan: &Value, path: &[Entry], stop: &Stop, base: &Base, is_seen: bool) {
    let same_lsn = |said: &Value, lsn: u64| {
        let said = parse_lsn(said.as_str().expect("an LSN"));
        // A client saw only that the record ended right behind.
        said == lsn || is_seen && said < lsn && lsn - said < 1 << 16
    };
    let applied = stop.applied(path);
    let commit = path[..applied].iter().rev().find_map(|e| match e.what {
        What::Commit { xid, time } if e.lsn >= base.start_lsn => Some((xid, time, e.lsn)),
        _ => None,
    });
    if let Some((xid, time, lsn)) = commit {
        assert_eq!(plan["last_commit"]["xid"], xid, "{plan:#}");
        assert!(
            same_lsn(&plan["last_commit"]["lsn"], lsn),
            "{lsn:X} {plan:#}"
        );
        assert_eq!(plan["last_commit"]["time"], print_time(time), "{plan:#}");
    }
    let excluded = path[applied..].iter().find_map(|e| match e.what {
        What::Commit { xid, .. } | What::Abort { xid, .. } => Some((xid, e.lsn)),
        _ => None,
    });
    match excluded {
        Some((xid, lsn)) => {
            assert_eq!(plan["first_excluded"]["xid"], xid, "{plan:#}");
            assert!(
                same_lsn(&plan["first_excluded"]["lsn"], lsn),
                "{lsn:X} {plan:#}"
            );
        }
        None => assert!(plan["first_excluded"].is_null(), "{plan:#}"),
    }
    let outcome = if *stop == Stop::End {
        "end_of_wal"
    } else {
        "stops_at_target"
    };
    assert_eq!(plan["outcome"], outcome, "{plan:#}");
}

fn restore(history: &History, target: &Target, plan: &Value, number: usize) -> Cluster {
    let name = format!("restored-{number}");
    let to = history.memory.join(&name);
    let place = history.memory.join(format!("{name}-space"));
    let mut program = history
        .pitr()
        .arg("restore")
        .arg("--to")
        .arg(&to)
        .args(target.args())
        .words("--target-action promote");
    for location in locations(history, plan["backup"]["id"].as_str().expect("an id")) {
        program = program
            .arg("--tablespace-mapping")
            .arg(format!("{location}={}", place.display()));
    }
    program.succeed();
    let server = Cluster::open(history.major, &to).start();
    wait_until("recovery ends", || {
        server.value("select pg_is_in_recovery()") == "f"
    });
    server
}

/// Roots are plain JSON: where the backup's tablespaces were.
fn locations(history: &History, id: &str) -> Vec<String> {
    let clusters = history.sandbox.join("repository/clusters/main");
    let cluster = std::fs::read_dir(clusters)
        .expect("the cluster's folder")
        .next()
        .expect("one cluster")
        .expect("a folder")
        .path();
    let text =
        std::fs::read_to_string(cluster.join(format!("backups/{id}/manifest"))).expect("a root");
    let root: Value = serde_json::from_str(&text).expect("JSON");
    let all = root["tablespaces"].as_array().expect("tablespaces");
    all.iter()
        .map(|t| t["location"].as_str().expect("a path").to_owned())
        .collect()
}

/// Checks the server's own log of where it stopped.
fn log_agrees(
    server: &Cluster,
    target: &Target,
    path: &[Entry],
    stop: &Stop,
    base: &Base,
    is_seen: bool,
) {
    let log = server.log();
    let line = log
        .lines()
        .find_map(|l| l.split("recovery stopping ").nth(1))
        .unwrap_or_default();
    let expected = match (stop, &target.kind) {
        (Stop::Before(i) | Stop::After(i), kind) => {
            let side = if matches!(stop, Stop::Before(_)) {
                "before"
            } else {
                "after"
            };
            match (kind, &path[*i].what) {
                (Kind::Lsn(_), _) if is_seen => format!("{side} WAL location"),
                (Kind::Lsn(_), _) => {
                    format!("{side} WAL location (LSN) \"{}\"", print_lsn(path[*i].lsn))
                }
                (Kind::Name(name), _) => format!("at restore point \"{name}\""),
                (_, What::Commit { xid, .. }) => format!("{side} commit of transaction {xid}"),
                (_, What::Abort { xid, .. }) => format!("{side} abort of transaction {xid}"),
                other => unreachable!("{other:?}"),
            }
        }
        (Stop::Consistent(_), _) => "after reaching consistency".to_owned(),
        // The end is planned as the LSN of the last record.
        (Stop::End, _) => "after WAL location".to_owned(),
    };
    assert!(
        line.starts_with(&expected),
        "the server stopped \"{line}\", expected \"{expected}\"\n{log}"
    );
    // A record at which an LSN target stops ends replay before its time is noted (recoveryStopsAfter).
    let noted = match (stop, &target.kind) {
        (Stop::After(i), Kind::Lsn(_)) => *i,
        // The record that is the target is in the record, unless only a client saw the WAL.
        (Stop::End, _) if !is_seen => path.len() - 1,
        _ => stop.applied(path),
    };
    let last = path[..noted].iter().rev().find_map(|e| match e.what {
        What::Commit { time, .. } | What::Abort { time, .. } if e.lsn >= base.start_lsn => {
            Some(time)
        }
        _ => None,
    });
    let said = log
        .lines()
        .find_map(|l| {
            l.split("last completed transaction was at log time ")
                .nth(1)
        })
        .and_then(|t| parse_time(t.trim_end_matches("+00").trim_end_matches(" UTC")));
    assert_eq!(said, last, "last completed transaction\n{log}");
}

fn tables_agree(history: &History, server: &Cluster, applied: &[Entry]) {
    let committed = applied.iter().filter_map(|e| match e.what {
        What::Commit { xid, .. } => Some((e.timeline, xid)),
        _ => None,
    });
    let ledger = history.shared.ledger.lock().expect("not poisoned");
    let expected = ledger.state(committed);
    let found = read(server);
    for table in expected.keys().chain(found.keys()) {
        assert_eq!(
            hash(found.get(table)),
            hash(expected.get(table)),
            "table {table:?}: found {:?}, expected {:?}",
            found.get(table),
            expected.get(table)
        );
    }
}

fn hash(rows: Option<&BTreeMap<i64, String>>) -> Option<String> {
    let rows = rows?;
    let mut hasher = blake3::Hasher::new();
    for row in rows.values() {
        hasher.update(row.as_bytes());
        hasher.update(b"\n");
    }
    Some(hasher.finalize().to_hex().to_string())
}

fn read(server: &Cluster) -> State {
    let mut state = State::new();
    for database in DATABASES {
        let client: Client = server.client_of(database);
        let tables = client.sql("select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1");
        for table in tables {
            let table = table[0].clone().expect("a name");
            let rows = client.sql(&format!(
                "select id, id || '|' || v || '|' || t from {table} order by id"
            ));
            let rows = rows
                .into_iter()
                .map(|r| {
                    (
                        r[0].clone().expect("an id").parse().expect("a number"),
                        r[1].clone().expect("a row"),
                    )
                })
                .collect();
            state.insert((database.to_owned(), table), rows);
        }
    }
    state
}
