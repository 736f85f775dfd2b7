//! The campaign of drills: random moments of true repositories are drilled, whole and by `--fast`, and every drill is green.
//!
//! Repositories take turns: of each major, plain and encrypted, with full and incremental backups of both methods. The checks of each drill hold
//! at every moment: transfers keep the sum of all accounts, and a counter knows how many there were.
//!
//! `PITR_DRILLS` says how many drills there are (`make drills`: 200), `PITR_DRILLS_SEED` repeats them, and `PITR_DRILLS_PROGRESS` names a file
//! in which the repositories stand whose drills have passed.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use crate::common::random::Random;
use crate::common::{
    ALL_MAJORS, Client, Cluster, PATIENCE, Program, Sandbox, Site, bin, majors, number,
};
use crate::sealed::Sealed;
use crate::skip;

/// Drills of one repository.
const OF_ONE: u64 = 5;
/// Drills in `make test`.
const FEW: u64 = 2;
const ACCOUNTS: usize = 500;
const CHECKS: &str = "-- expect: 50000
select sum(balance) from accounts;
-- expect: t
select (select count(*) from transfers) = (select n from counter);
-- database: other
-- expect: t
select count(*) > 0 from elsewhere;
";

enum Place {
    Plain(Site),
    Encrypted(Sealed),
}

impl Place {
    fn pitr(&self) -> Program {
        match self {
            Place::Plain(site) => site.pitr(),
            Place::Encrypted(sealed) => sealed.on("reader"),
        }
    }
}

fn work(clients: &[Client; 2], random: &mut Random) {
    let [client, other] = clients;
    for _ in 0..10 + random.below(40) {
        let [from, to] = [0; 2].map(|_| 1 + random.below(ACCOUNTS));
        let amount = random.below(50);
        let length = random.below(3) * 2000;
        client.sql(&format!(
            "begin;
             update accounts set balance = balance - {amount} where id = {from};
             update accounts set balance = balance + {amount} where id = {to};
             insert into transfers select n, (select string_agg(md5(g::text), '') from generate_series(0, {length} / 32) g) from counter;
             update counter set n = n + 1;
             commit"
        ));
        let number = random.next();
        match random.below(12) {
            0 => drop(client.sql("vacuum full accounts")),
            1 => drop(client.sql("reindex table transfers")),
            2 => drop(client.sql("checkpoint")),
            3 => drop(client.sql("select pg_switch_wal()")),
            4 => drop(client.sql(&format!("create table t{number} as select 1 as a"))),
            5 => drop(client.sql(&format!(
                "begin; create table t{number} (a int); truncate counter; rollback"
            ))),
            6 => {
                drop(
                    client.sql("begin; savepoint a; delete from transfers; rollback to a; commit"),
                );
            }
            7 => drop(other.sql("update elsewhere set b = repeat('z', 50)")),
            8 => drop(other.sql("truncate elsewhere; insert into elsewhere values (1, 'again')")),
            9 => drop(client.sql("alter table accounts alter balance type numeric")),
            10 => drop(client.sql("vacuum transfers")),
            _ => {}
        }
    }
}

/// Makes one repository and drills it; what each drill took.
fn drills(number: u64, seed: u64, count: u64) -> Vec<String> {
    let major = major_of(number);
    let is_encrypted = number % 2 == 1;
    let mut random = Random::new(seed + number);
    let (place, cluster): (Place, Cluster) = match is_encrypted {
        false => {
            let (site, cluster) = Site::with_cluster(major);
            (Place::Plain(site), cluster)
        }
        true => {
            let (sealed, cluster) = Sealed::archived(major);
            (Place::Encrypted(sealed), cluster)
        }
    };
    let space = cluster.sandbox().dir("space");
    cluster.make_tablespace("ts", &space);
    cluster.sql("create database other");
    let clients = [cluster.client(), cluster.client_of("other")];
    clients[0].sql(&format!(
        "create table accounts (id int primary key, balance int);
         insert into accounts select g, 100 from generate_series(1, {ACCOUNTS}) g;
         create table transfers (n int, note text) tablespace ts;
         create index on transfers (n);
         create table counter as select 0 as n"
    ));
    clients[1]
        .sql("create table elsewhere as select g as a, 'first' as b from generate_series(1, 50) g");
    for kind in [
        "--full",
        "--incremental",
        "--incremental",
        "--full",
        "--incremental",
    ] {
        let method = *random.pick(&["local", "stream"]);
        let backup = ["backup", "--json", "--method", method, kind];
        let run = place.pitr().args(backup).timeout(3 * PATIENCE).succeed();
        assert_eq!(run.json()["kind"], kind.trim_start_matches('-'), "{run}");
        work(&clients, &mut random);
    }
    cluster.archive_now();
    let folder = Sandbox::new("drills");
    let checks = cluster.sandbox().file("checks.sql", CHECKS);
    let programs = bin(major, "initdb").unwrap();
    let drill = |n: u64| {
        let began = Instant::now();
        let is_fast = (n + number) % 2 == 1;
        let drawn = (seed + number * OF_ONE + n).to_string();
        let program = place
            .pitr()
            .args(["drill", "--json", "--random-target", "--seed", &drawn]);
        let program = program
            .arg("--dir")
            .arg(folder.path())
            .arg("--checks")
            .arg(&checks);
        let program = program.arg("--bin").arg(programs.parent().unwrap());
        let program = program
            .args(is_fast.then_some("--fast"))
            .timeout(3 * PATIENCE);
        let run = program.succeed();
        let json = run.json();
        assert_eq!(json["passed"], true, "{run}");
        assert_eq!(
            json["reached_lsn"], json["plan"]["stop"]["recovery_end_lsn"],
            "{run}"
        );
        let own = json["checks"].as_array().unwrap().iter();
        let own: Vec<_> = own.filter(|c| c["phase"] == "checks").collect();
        assert_eq!(own.len(), 3, "{run}");
        assert!(own.iter().all(|c| c["passed"] == true), "{run}");
        if is_fast {
            assert_eq!(
                json["not_checked"],
                json!(["copy", "amcheck", "pages"]),
                "{run}"
            );
        }
        let word = if is_fast { "fast" } else { "whole" };
        let (backup, at) = (&json["plan"]["backup"]["kind"], &json["reached_lsn"]);
        let took = began.elapsed().as_secs_f32();
        format!(
            "{word} from {backup} at {at}, not checked {}, {took:.1} s",
            json["not_checked"]
        )
    };
    let told = (0..count).map(drill).collect();
    assert!(crate::common::files_below(folder.path()).is_empty());
    told
}

fn major_of(number: u64) -> u32 {
    ALL_MAJORS[usize::try_from(number).unwrap() % ALL_MAJORS.len()]
}

/// The number of this turn; of this day, where tests take no turns.
fn day() -> u64 {
    if let Some(turn) = crate::common::fault::turn() {
        return u64::try_from(turn).unwrap();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs() / 86_400
}

#[test]
fn y02_y31_random_drills_of_true_repositories_are_green() {
    if !crate::clone::can_mount() {
        skip!("drill_soak", "needs /dev/fuse");
    }
    let asked = number("PITR_DRILLS");
    let seed = number("PITR_DRILLS_SEED").unwrap_or(1000);
    let progress = std::env::var_os("PITR_DRILLS_PROGRESS").map(PathBuf::from);
    let done = progress
        .as_ref()
        .and_then(|path| std::fs::read_to_string(path).ok());
    let done = done.unwrap_or_default();
    let count = asked.unwrap_or(FEW);
    // Without being asked for more, each repository has its day.
    let (mut green, mut number) = (0, asked.map_or_else(day, |_| 0));
    if asked.is_none() && !majors().contains(&major_of(number)) {
        skip!("drill_soak", "not in PITR_TEST_MAJORS");
    }
    while green < count {
        let of_one = OF_ONE.min(count - green);
        let major = major_of(number);
        let line = format!("repository {number} of {major}, seed {seed}: {of_one} drills passed");
        if !done.lines().any(|l| l == line) {
            for told in drills(number, seed, of_one) {
                println!("drills: repository {number} of {major}: {told}");
            }
            if let Some(path) = &progress {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let mut file = std::fs::File::options();
                let file = file.create(true).append(true).open(path);
                writeln!(file.unwrap(), "{line}").unwrap();
            }
        }
        (green, number) = (green + of_one, number + 1);
        println!("drills: {green} of {count} are done");
    }
}
