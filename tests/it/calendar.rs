//! Rules of the calendar on content beside clusters: directories, dumps, Redis and configuration, backed up over more than a year.
//!
//! The clock of each command is set (`PITR_FAULT_CLOCK`), and that of the bucket goes along.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, FixedOffset, Utc};
use serde_json::Value;

use crate::common::s3::KEY;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Run, Sandbox, newest_bin, paths_below, pitr};
use crate::redis::server::{Server, bin};
use crate::sealed::keygen;

const DAY: u64 = 86_400;
/// Days on which everything is backed up, from the first one on.
const DAYS: [u64; 9] = [0, 1, 35, 36, 70, 330, 390, 399, 400];
/// The contents: the words of their backup, and their scope.
const CONTENTS: [([&str; 3], &str); 4] = [
    (["files", "backup", "up"], "aux/files/up"),
    (["logical", "backup", "app"], "aux/logical/app"),
    (["redis", "backup", "cache"], "aux/redis/cache"),
    (["config", "backup", "etc"], "aux/config/etc"),
];
const RULES: &str = "[retention]\nkeep_daily = 2\nkeep_weekly = 3\nkeep_monthly = 4\nkeep_yearly = 2\nkeep_within = \"36h\"\n";

/// A repository that backups leave, and one that gets copies.
struct World {
    server: Server,
    cluster: Cluster,
    sandbox: Sandbox,
    peer: Option<Peer>,
    /// Noon of the first day, of tomorrow: nothing is older than its clock.
    first: u64,
    /// When this began.
    origin: u64,
    /// Hours by which the zone of the rules is ahead of that of the host.
    zone: u8,
    /// Backups of each content, in order of days.
    ids: [Vec<String>; 4],
}

impl World {
    fn new(in_bucket: bool, is_sealed: bool, zone: u8) -> World {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let sandbox = Sandbox::new("calendar");
        if is_sealed {
            let keys = keygen(&sandbox.join("keys"), &["ops", "escrow"]);
            keys.succeed();
        }
        let cluster = Cluster::builder(17).without_fsync().start();
        cluster.sql("create database app");
        let world = World {
            server: Server::start("redis-7", &[]),
            cluster,
            peer: in_bucket.then(Peer::own),
            sandbox,
            first: (now.as_secs() / DAY + 1) * DAY + DAY / 2,
            origin: now.as_secs(),
            zone,
            ids: Default::default(),
        };
        for folder in ["source", "etc"] {
            std::fs::create_dir(world.sandbox.join(folder)).unwrap();
        }
        for host in ["reader", "janitor"] {
            let text = world.configuration(host == "reader" && is_sealed);
            world.sandbox.file(format!("{host}.toml"), text);
        }
        world.at(0, "reader", &["init", "--quiet"]).succeed();
        world
    }

    fn configuration(&self, has_keys: bool) -> String {
        let place = |path: &str| self.sandbox.join(path).display().to_string();
        let store = match &self.peer {
            None => format!("url = \"file://{}\"\n", place("store")),
            Some(peer) => format!(
                "url = \"s3://{}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
                peer.bucket,
                peer.endpoint(),
                peer.credentials(&self.sandbox, KEY).display()
            ),
        };
        let keys = |repository: &str| match has_keys {
            true => format!(
                "[repositories.{repository}.encryption]\nkey_set = \"{0}/writer.key\"\nkey_file = \"{0}/ops.key\"\n",
                place("keys")
            ),
            false => String::new(),
        };
        format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n{RULES}timezone = \"+{:02}:00\"\n\
             [repositories.store]\n{store}{}[repositories.store.retention]\nmin_copies = 2\n\
             [repositories.copy]\nurl = \"file://{}\"\n{}\
             [files.up]\nsource = \"{}\"\nidentity = \"test\"\n\
             [logical.app]\ncluster = \"main\"\ndatabases = [\"app\"]\n\
             [redis.cache]\naddress = \"{}\"\n\
             [config.etc]\npaths = [\"{}\"]\nidentity = \"test\"\n",
            self.cluster.pgdata().display(),
            self.cluster.conninfo("postgres"),
            self.zone,
            keys("store"),
            place("copy"),
            keys("copy"),
            place("source"),
            self.server.address(),
            place("etc"),
        )
    }

    /// `pitr` on a host whose clock says that it is so many days later, as that of the bucket.
    fn at(&self, day: u64, host: &str, args: &[&str]) -> Program {
        let ahead = self.first + day * DAY - self.origin;
        if let Some(peer) = &self.peer {
            peer.server()
                .behave(|manner| manner.clock_ahead = Duration::from_secs(ahead));
        }
        let dump = newest_bin(17, "pg_dump");
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            bin("redis-7").display(),
            dump.parent().unwrap().display()
        );
        let clock = format!("{},{},1,all", self.first + day * DAY, self.origin);
        let config = self.sandbox.join(format!("{host}.toml"));
        let program = pitr().arg("--config").arg(config).args(args);
        let program = program.env("PITR_FAULT_CLOCK", clock).env("TZ", "UTC");
        program.env("PATH", path)
    }

    /// At the end of all.
    fn last(&self, host: &str, args: &[&str]) -> Program {
        self.at(DAYS[DAYS.len() - 1], host, args)
    }

    /// Backs up everything on a day, with its number in all contents.
    fn back_up(&mut self, nth: usize) {
        let source = self.sandbox.join("source/day");
        std::fs::write(&source, nth.to_string()).unwrap();
        let day = format!("listen = {nth}\n");
        std::fs::write(self.sandbox.join("etc/day"), day).unwrap();
        for folder in ["source", "etc"] {
            crate::common::user::own_all(&self.sandbox.join(folder));
        }
        let app = self.cluster.client_of("app");
        app.sql(&format!(
            "drop table if exists day; create table day as select {nth} as n"
        ));
        self.server.ask(&["SET", "day", &nth.to_string()]);
        for (content, (words, _)) in CONTENTS.iter().enumerate() {
            let run = self.at(DAYS[nth], "reader", words).arg("--json").run();
            let id = run.success().id();
            self.ids[content].push(id);
        }
        self.date(nth);
    }

    /// Dates what a directory got on a day: its filesystem has the machine's own clock.
    fn date(&self, nth: usize) {
        if self.peer.is_some() {
            return;
        }
        let time = UNIX_EPOCH + Duration::from_secs(self.first + DAYS[nth] * DAY);
        let dated = UNIX_EPOCH + Duration::from_secs(self.first);
        for path in paths_below(&self.sandbox.join("store")) {
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            if modified < dated {
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(time).unwrap();
            }
        }
    }

    /// `pitr expire` of the repository that backups leave, by a host without keys.
    fn expire(&self, more: &[&str]) -> Run {
        let options = [
            "expire",
            "--min-age",
            "0s",
            "--grace",
            "0s",
            "--confirm-burst",
            "--repository",
            "store",
        ];
        self.last("janitor", &options).args(more).run()
    }

    /// The backups that a plan keeps, by their days, and the reasons.
    fn kept(&self, plan: &Value, content: usize) -> (BTreeSet<usize>, String) {
        let scopes = plan["scopes"].as_array().unwrap();
        let scope = scopes.iter().find(|s| s["scope"] == CONTENTS[content].1);
        let backups = scope.unwrap()["backups"].as_array().unwrap();
        let kept = backups.iter().filter(|b| b["fate"] == "keep");
        let nth = |b: &Value| self.ids[content].iter().position(|id| b["id"] == **id);
        let days = kept
            .map(|b| nth(b).expect("a backup of this test"))
            .collect();
        (days, plan.to_string())
    }

    /// Pins the backups of a day in all contents, or unpins them where no word is given.
    fn pin(&self, nth: usize, more: &[&str]) {
        for (content, (words, _)) in CONTENTS.iter().enumerate() {
            let of = format!("{}:{}", words[0], words[2]);
            let verb = if more.is_empty() { "unpin" } else { "pin" };
            let pin = [verb, &self.ids[content][nth], "--of", &of, "--json"];
            let run = self.last("reader", &pin).args(more).exits(8);
            assert_eq!(run.json()["confirmed"], false, "{run}");
            let run = self.last("reader", &pin).args(more).arg("--confirm").run();
            let json = run.success().json();
            assert_eq!(
                json["repositories"].as_array().unwrap().len(),
                2,
                "{json:#}"
            );
            assert_eq!(json["recorded_in"], json["repositories"], "{json:#}");
        }
        self.date(DAYS.len() - 1);
    }

    /// How many backups there are.
    fn count(&self, content: usize) -> usize {
        let info = ["info", "--json", "--repository", "store"];
        let info = self.last("reader", &info).run().json();
        let scopes = info["scopes"].as_array().unwrap().iter();
        let mut own = scopes.filter(|s| s["scope"] == CONTENTS[content].1);
        own.next().unwrap()["backups"].as_array().unwrap().len()
    }

    fn restored(&self, content: usize, nth: usize) -> String {
        let to: PathBuf = self.sandbox.join(format!("back-{content}-{nth}"));
        let (words, id) = (CONTENTS[content].0, &self.ids[content][nth]);
        if words[0] == "config" {
            let path = self.sandbox.join("etc/day").display().to_string();
            let show = ["config", "show", words[2], &path, "--backup", id];
            let shown = self.last("reader", &show).succeed();
            let day = shown.stdout.trim().strip_prefix("listen = ");
            return day.unwrap().to_owned();
        }
        let restore = [words[0], "restore", words[2], "--backup", id, "--to"];
        self.last("reader", &restore).arg(&to).succeed();
        match content {
            0 => std::fs::read_to_string(to.join("day")).unwrap(),
            1 => {
                // The dump is there; a database gets it.
                let name = format!("back_{nth}");
                self.cluster.sql(&format!("create database {name}"));
                let into = self.cluster.conninfo(&name);
                let restore = ["logical", "restore", "app", "--backup", id, "--into", &into];
                self.last("reader", &restore).succeed();
                self.cluster.client_of(&name).value("select n from day")
            }
            _ => {
                let copy = Server::on("redis-7", &to, &[]);
                copy.ask(&["GET", "day"])
                    .trim()
                    .trim_matches('"')
                    .to_owned()
            }
        }
    }
}

/// The days that the rules keep, as somebody finds them with a calendar of that zone in hand.
fn expected(first: u64, zone: u8) -> BTreeSet<usize> {
    let zone = FixedOffset::east_opt(i32::from(zone) * 3600).unwrap();
    let date = |nth: &usize| {
        let seconds = i64::try_from(first + DAYS[*nth] * DAY).unwrap();
        DateTime::<Utc>::from_timestamp(seconds, 0)
            .unwrap()
            .with_timezone(&zone)
            .date_naive()
    };
    // The last of each of the newest periods.
    let last_of = |count: usize, period: &dyn Fn(chrono::NaiveDate) -> (i32, u32)| {
        let mut periods = BTreeSet::new();
        let newest = (0..DAYS.len())
            .rev()
            .filter(|nth| periods.insert(period(date(nth))));
        newest.take(count).collect::<Vec<_>>()
    };
    let within = (0..DAYS.len()).filter(|nth| DAYS[DAYS.len() - 1] - DAYS[*nth] < 2);
    [
        last_of(2, &|d| (d.year(), d.ordinal())),
        last_of(3, &|d| (d.iso_week().year(), d.iso_week().week())),
        last_of(4, &|d| (d.year(), d.month())),
        last_of(2, &|d| (d.year(), 0)),
        within.collect(),
    ]
    .concat()
    .into_iter()
    .collect()
}

fn x10_the_calendar_decides_about_other_content(in_bucket: bool, is_sealed: bool, zone: u8) {
    let mut world = World::new(in_bucket, is_sealed, zone);
    for nth in 0..DAYS.len() {
        world.back_up(nth);
    }
    let wanted = expected(world.first, zone);
    let dropped: Vec<usize> = (0..DAYS.len())
        .filter(|nth| !wanted.contains(nth))
        .collect();
    assert!(dropped.len() > 1, "{wanted:?}");
    world
        .last("reader", &["verify", "--repository", "store"])
        .succeed();

    // No other repository has a copy.
    let plan = world.expire(&["--dry-run", "--json"]).success().json();
    for content in 0..CONTENTS.len() {
        let (kept, plan) = world.kept(&plan, content);
        assert_eq!(kept.len(), DAYS.len(), "{plan}");
        assert!(
            plan.contains("min_copies: 1 of 2 repositories have it"),
            "{plan}"
        );
    }
    let sync = [
        "repo", "sync", "--from", "store", "--to", "copy", "--all", "--quiet",
    ];
    world.last("reader", &sync).succeed();
    let plan = world.expire(&["--dry-run", "--json"]).success().json();
    for (content, (_, scope)) in CONTENTS.iter().enumerate() {
        let (kept, plan) = world.kept(&plan, content);
        assert_eq!(kept, wanted, "{scope} {plan}");
    }

    for ids in &world.ids {
        let explained = world.expire(&["--explain", &ids[dropped[0]]]).success();
        explained.expect_stdout("no rule keeps it");
        let newest = ids.last().unwrap();
        let explained = world.expire(&["--explain", newest]).success();
        explained
            .expect_stdout("keep_daily")
            .expect_stdout("keep_within");
    }
    // Pins hold above the rules, with a reason and an end.
    let pinned = dropped[1];
    let with_pinned: BTreeSet<usize> = wanted.iter().copied().chain([pinned]).collect();
    world.pin(
        pinned,
        &[
            "--reason",
            "year's end",
            "--until",
            "2999-01-01 00:00:00+00",
        ],
    );
    let plan = world.expire(&["--dry-run", "--json"]).success().json();
    for (content, ids) in world.ids.iter().enumerate() {
        assert_eq!(world.kept(&plan, content).0, with_pinned, "{plan:#}");
        let explained = world.expire(&["--explain", &ids[pinned]]).success();
        explained.expect_stdout("year's end");
    }
    world.expire(&["--confirm"]).success();
    for content in 0..CONTENTS.len() {
        assert_eq!(world.count(content), with_pinned.len());
        assert_eq!(world.restored(content, pinned), pinned.to_string());
    }
    world.pin(pinned, &[]);
    let done = world.expire(&["--confirm"]).success();
    assert_eq!(
        is_sealed,
        done.stderr.contains("it is not checked who made"),
        "{done}"
    );
    let plan = world.expire(&["--dry-run", "--json"]).success().json();
    let oldest = *wanted.first().unwrap();
    for (content, (_, scope)) in CONTENTS.iter().enumerate() {
        let (kept, plan) = world.kept(&plan, content);
        assert_eq!(
            (kept.len(), &kept),
            (wanted.len(), &wanted),
            "{scope} {plan}"
        );
        assert_eq!(world.count(content), wanted.len(), "{scope}");
        for nth in [oldest, DAYS.len() - 1] {
            assert_eq!(world.restored(content, nth), nth.to_string());
        }
    }
    world.last("reader", &["verify"]).succeed();
}

#[test]
fn x10_in_a_directory() {
    x10_the_calendar_decides_about_other_content(false, false, 0);
}

#[test]
fn x10_in_an_encrypted_directory() {
    x10_the_calendar_decides_about_other_content(false, true, 13);
}

#[test]
fn x10_in_a_bucket() {
    x10_the_calendar_decides_about_other_content(true, false, 13);
}

#[test]
fn x10_in_an_encrypted_bucket() {
    x10_the_calendar_decides_about_other_content(true, true, 0);
}
