//! A random history, and what `pitr find` must say of it.
//!
//! | file | what it is |
//! |---|---|
//! | `world.rs` | databases, schemas, tablespaces and tables, and the record of what happened to them |
//! | `work.rs` | transactions: what they do to tables, and how they end |
//! | `step.rs` | what happens next |
//!
//! `PITR_FIND_STATEMENTS` sets the length (`make find-campaign`: 10 000), `PITR_FIND_SEED` repeats a history, `PITR_FIND_TARGETS` says how many
//! targets are restored (`all`: each one), and `PITR_FIND_PROGRESS` names a file in which the histories that passed stand.

mod step;
mod work;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pitr::pg::time::TimestampTz;
use serde_json::Value;

use super::{before, events, find, planned, title};
use crate::common::random::Random;
use crate::common::{Cluster, Site, Stop, number};
use crate::per_major;
use world::{Expected, World, quoted_conninfo};

/// Statements of the history in `make test`.
const STATEMENTS: u64 = 250;
/// Targets that are restored there.
const TARGETS: u64 = 2;
/// A longer history has a backup every so many statements.
const BACKUP_EVERY: u64 = 1000;
const ALL: &str = "drop,truncate,rewrite,delete,update,database,tablespace";

fn n02_a_random_history_is_found_completely(major: u32) {
    let statements = number("PITR_FIND_STATEMENTS").unwrap_or(STATEMENTS);
    let is_each = std::env::var("PITR_FIND_TARGETS").is_ok_and(|targets| targets == "all");
    let targets = match is_each {
        true => u64::MAX,
        false => number("PITR_FIND_TARGETS").unwrap_or(TARGETS),
    };
    let seed = number("PITR_FIND_SEED").unwrap_or(0x0015_f14d) + u64::from(major);
    let progress = std::env::var_os("PITR_FIND_PROGRESS").map(PathBuf::from);
    let line = format!("{major} {seed} {statements} {targets} passed");
    let done = progress.as_ref().map(std::fs::read_to_string);
    if done.is_some_and(|text| text.is_ok_and(|text| text.lines().any(|l| l.starts_with(&line)))) {
        return;
    }
    let summary = history(major, (seed, statements), targets);
    if let Some(path) = progress {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::File::options();
        let file = file.create(true).append(true).open(path);
        writeln!(file.unwrap(), "{line}: {summary}").unwrap();
    }
}

per_major!(n02_a_random_history_is_found_completely);

fn history(major: u32, (seed, statements): (u64, u64), targets: u64) -> String {
    let began = Instant::now();
    let tell = |what: &str| {
        let elapsed = began.elapsed().as_secs();
        eprintln!("find {major}: {elapsed} s: {what}");
    };
    let given = seed - u64::from(major);
    tell(&format!(
        "PITR_FIND_SEED={given} PITR_FIND_STATEMENTS={statements}"
    ));
    let builder = Cluster::small(major);
    let builder = builder
        .config("max_prepared_transactions", "8")
        .config("log_statement", "all")
        .config("max_wal_size", "64MB");
    let (site, cluster) = Site::with_cluster_of(builder);
    let mut world = World::new(cluster, Random::new(seed));
    let backup = || site.pitr().words("backup --quiet").succeed();
    backup();
    let mut told = 0;
    while world.statements < statements {
        world.step();
        if world.statements / BACKUP_EVERY > told {
            told = world.statements / BACKUP_EVERY;
            backup();
            let (count, events) = (world.statements, world.expected.len());
            tell(&format!("{count} statements, {events} events"));
        }
    }
    world.end_all();
    world.cluster.archive_now();
    tell("the history is written");

    let answer = find(&site, &["--kind", ALL, "--min-rows", "1"]);
    assert_eq!(answer["unread"], Value::Array(Vec::new()));
    let found = in_order(events(&answer).clone());
    compare(&found, &world.expected);
    tell("everything is found, and nothing else");
    // The indexes alone lead to the same, rows apart.
    let by_index = in_order(events(&find(&site, &[])).clone());
    same(&by_index, found.iter().filter(|e| e["rows"].is_null()));
    tell("the indexes lead to the same");
    windows(&site, &mut world.random, &found);
    tell("windows, transactions and tables show their part");

    for (event, wanted) in found.iter().zip(&world.expected) {
        let plan = planned(&site, event);
        assert_eq!(plan["outcome"], "stops_at_target", "{wanted:#?}\n{plan:#}");
    }
    tell("each target is planned");

    // Recovery creates a tablespace that is younger than the backup where the server had it.
    world.stop();
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, event) in found.iter().enumerate() {
        let kind = event["kind"].as_str().unwrap();
        kinds.entry(kind).or_default().push(at);
    }
    let counts: BTreeMap<_, _> = kinds.iter().map(|(kind, all)| (*kind, all.len())).collect();
    let all: Vec<_> = kinds.values().collect();
    let targets = targets.min(found.len() as u64);
    for n in 0..targets {
        // Each kind has its turn, as some are rare.
        let at = match world.random.one_in(3) {
            _ if targets == found.len() as u64 => usize::try_from(n).unwrap(),
            true => world.random.below(found.len()),
            false => {
                let of_kind = *world.random.pick(&all);
                *world.random.pick(of_kind)
            }
        };
        let title = title(&found[at]);
        tell(&format!("target {n}: {title}"));
        restored(&site, &world, &found[at], &world.expected[at]);
    }
    let took = began.elapsed().as_secs();
    let summary = format!(
        "{} statements, {} events {counts:?}, {targets} targets restored, {took} s",
        world.statements,
        found.len()
    );
    tell(&summary);
    summary
}

/// Events in the order of commits, and those of one transaction by name.
fn in_order(mut found: Vec<Value>) -> Vec<Value> {
    let lsn = |event: &Value| {
        let text = event["commit_lsn"].as_str().unwrap();
        text.parse::<pitr::pg::lsn::Lsn>().unwrap()
    };
    found.sort_by_cached_key(|event| (lsn(event), title(event)));
    found
}

/// Holds the answer against the record of the history.
fn compare(found: &[Value], expected: &[Expected]) {
    for (at, (event, wanted)) in found.iter().zip(expected).enumerate() {
        let context = || {
            let around = at.saturating_sub(4)..(at + 5).min(expected.len());
            let wanted: Vec<_> = expected[around.clone()].iter().collect();
            let has: Vec<_> = around.filter_map(|n| found.get(n)).map(title).collect();
            format!("event {at}: {event:#}\nexpected {wanted:#?}\nfound {has:#?}")
        };
        assert_eq!(title(event), wanted.title, "{}", context());
        let xid = event["xid"].as_u64().unwrap();
        assert!(wanted.xids.contains(&xid), "the xid of {}", context());
        let time: TimestampTz = event["time"].as_str().unwrap().parse().unwrap();
        let (from, to) = wanted.times;
        assert!(from <= time && time <= to, "the time of {}", context());
        assert_eq!(event["rows"].as_u64(), wanted.rows, "rows of {}", context());
        assert_eq!(
            event["gid"].as_str(),
            wanted.gid.as_deref(),
            "{}",
            context()
        );
        // The commit destroys it, and no record before.
        if wanted.is_of_relation() {
            assert_eq!(event["target_lsn"], event["commit_lsn"], "{}", context());
        }
    }
    let more: Vec<_> = found.iter().skip(expected.len()).map(title).collect();
    assert!(more.is_empty(), "behind the last event: {more:#?}");
    let missing: Vec<_> = expected.iter().skip(found.len()).collect();
    assert!(missing.is_empty(), "not found: {missing:#?}");
}

/// Holds a part of the answer against the whole. A relation that nothing names from within the part has numbers, and is shown by these.
fn same<'a>(some: &[Value], all: impl Iterator<Item = &'a Value>) {
    let numbers = |e: &Value| {
        let [target, xid, rows] = ["target_lsn", "xid", "rows"].map(|n| e[n].to_string());
        let (kind, database) = (&e["kind"], &e["database"]["name"]);
        format!("{target} {xid} {kind} {database} {rows}")
    };
    let named = |e: &Value| format!("{} {}", numbers(e), title(e));
    let all: Vec<&Value> = all.collect();
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    let has = sorted(some.iter().map(numbers).collect());
    let wanted = sorted(all.iter().map(|e| numbers(e)).collect());
    let at = has.iter().zip(&wanted).position(|(a, b)| a != b);
    let at = at.unwrap_or(has.len().min(wanted.len()));
    let around = |list: &[String]| {
        let part = at.saturating_sub(2)..(at + 4).min(list.len());
        format!("{:#?}", list.get(part).unwrap_or_default())
    };
    let (shown, whole) = (around(&has), around(&wanted));
    assert!(has == wanted, "{at}: {shown}\nin the whole answer {whole}");
    let wanted: BTreeSet<String> = all.iter().map(|e| named(e)).collect();
    for event in some {
        let is_nameless = event["relation"].is_object() && event["relation"]["name"].is_null();
        let is_known = is_nameless || wanted.contains(&named(event));
        assert!(is_known, "{event:#}\nin the whole answer {wanted:#?}");
    }
}

/// Asks for parts of the history: windows of time, transactions, tables.
fn windows(site: &Site, random: &mut Random, found: &[Value]) {
    for _ in 0..3 {
        let from = random.below(found.len());
        let to = (from + random.below(60)).min(found.len() - 1);
        let [since, until] = [from, to].map(|at| found[at]["time"].as_str().unwrap());
        let within = |e: &&Value| {
            let time = e["time"].as_str().unwrap();
            since <= time && time <= until
        };
        let window = ["--since", since, "--until", until];
        let every = ["--kind", ALL, "--min-rows", "1"];
        let answer = find(site, &[&window[..], &every].concat());
        same(
            &in_order(events(&answer).clone()),
            found.iter().filter(within),
        );
        let answer = find(
            site,
            &[&window[..], &["--kind", "drop,truncate,rewrite"]].concat(),
        );
        let kinds = ["drop", "truncate", "rewrite"];
        let of_kind = |e: &&Value| kinds.contains(&e["kind"].as_str().unwrap());
        same(
            &in_order(events(&answer).clone()),
            found.iter().filter(within).filter(of_kind),
        );
        let xid = found[from]["xid"].to_string();
        let answer = find(site, &["--xid", &xid]);
        same(
            &in_order(events(&answer).clone()),
            found.iter().filter(|e| e["xid"] == found[from]["xid"]),
        );
        let relation = &found[from]["relation"];
        if relation["name"].is_string() {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            let name = format!("{}.{}", text(&relation["schema"]), text(&relation["name"]));
            let answer = find(site, &["--table", &name, "--xid", &xid]);
            // The name of now is known less well from a part.
            let is_it =
                |e: &Value| title(e) == title(&found[from]) && e["xid"] == found[from]["xid"];
            assert!(events(&answer).iter().any(is_it), "{name}: {answer:#}");
        }
    }
}

/// Restores the moment before an event, and looks at what it destroyed.
fn restored(site: &Site, world: &World, event: &Value, expected: &Expected) {
    world.empty_spaces();
    let (mut server, _copy) = before(site, world.cluster.major(), event);
    let Some(seen) = &expected.seen else {
        return;
    };
    let client = server.client_of(&quoted_conninfo(&seen.database));
    if let Some(gid) = event["gid"].as_str() {
        let gid = gid.replace('\'', "''");
        client.sql(&format!("rollback prepared '{gid}'"));
    }
    let found = client.value(&seen.query);
    assert_eq!(found, seen.answer, "{expected:#?}\n{event:#}");
    drop(client);
    server.stop(Stop::Fast);
}

/// The server's clock: it is this host's.
fn now() -> TimestampTz {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since_2000 = now.unwrap() - Duration::from_secs(946_684_800);
    TimestampTz(i64::try_from(since_2000.as_micros()).unwrap())
}
