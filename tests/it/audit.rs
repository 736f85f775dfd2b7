//! The audit log: who ran what is recorded in every repository, and whoever changes the record is found.

use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::alert_conditions::{Sink, later, observe};
use crate::common::{
    Cluster, PATIENCE, Program, Run, Sandbox, Site, files_below, pitr, user, wait_until,
};
use crate::per_major;
use crate::sealed::keygen;

/// A source of files, two repositories, and a host that records.
pub struct World {
    pub sandbox: Sandbox,
    cluster: Cluster,
    encryption: String,
}

impl World {
    /// Expires all records that are older than two seconds, once those that are there now are.
    fn expire_records(&self) {
        std::thread::sleep(std::time::Duration::from_secs(3));
        self.configure("host", "on", "keep = \"2s\"\n");
        let command = ["expire", "--confirm", "--quiet"];
        let at_once = ["--grace", "0s", "--min-age", "0s"];
        self.pitr("host", &[&command[..], &at_once].concat()).run();
    }

    pub fn new() -> World {
        World::of(Sandbox::new("audit"), String::new())
    }

    fn of(sandbox: Sandbox, encryption: String) -> World {
        let world = World {
            cluster: Cluster::builder(17).without_fsync().create(),
            encryption,
            sandbox,
        };
        std::fs::write(world.sandbox.dir("source").join("a"), "content").unwrap();
        world.configure("host", "on", "");
        world.pitr("host", &["init", "--quiet"]).run().success();
        user::own_all(world.sandbox.path());
        world
    }

    /// In an encrypted repository, with the keys of a host that writes.
    fn sealed() -> World {
        let sandbox = Sandbox::new("audit");
        let keys = sandbox.join("keys");
        keygen(&keys, &["ops", "escrow"]).run().success();
        let encryption = |name: &str| {
            format!(
                "[repositories.{name}.encryption]\nkey_set = \"{}\"\n",
                keys.join("writer.key").display()
            )
        };
        let encryption = encryption("one") + &encryption("two");
        World::of(sandbox, encryption)
    }

    /// The configuration of a host that keeps its state in a directory of this name.
    fn configure(&self, host: &str, records: &str, more: &str) {
        let place = |name: &str| self.sandbox.join(name).display().to_string();
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.one]\nurl = \"file://{}\"\n[repositories.two]\nurl = \"file://{}\"\nrequired = false\n{}\
             [files.up]\nsource = \"{}\"\n[agent]\nstate_dir = \"{}\"\n[retention]\nkeep_last = 1\n[audit]\nrecords = \"{records}\"\n{more}",
            self.cluster.pgdata().display(),
            place("one"),
            place("two"),
            self.encryption,
            place("source"),
            place(host),
        );
        self.sandbox.file(format!("{host}.toml"), text);
        user::own(&self.sandbox.join(format!("{host}.toml")));
    }

    pub fn pitr(&self, host: &str, arguments: &[&str]) -> Program {
        let config = self.sandbox.join(format!("{host}.toml"));
        pitr().arg("--config").arg(config).args(arguments)
    }

    pub fn backup(&self) -> Run {
        self.pitr("host", &["files", "backup", "up", "--quiet"])
            .run()
    }

    fn list(&self) -> Vec<Value> {
        let run = self
            .pitr("host", &["audit", "list", "--json"])
            .run()
            .success();
        run.json()["records"].as_array().unwrap().clone()
    }

    /// The kinds of problems that a check finds, and its exit status.
    pub fn problems(&self, more: &[&str]) -> (i32, Vec<String>) {
        let mut arguments = vec!["audit", "verify", "--json"];
        arguments.extend(more);
        let run = self.pitr("host", &arguments).run();
        let json = run.json();
        let all = json["problems"].as_array().unwrap().iter();
        let kind = |p: &Value| p["problem"].as_str().unwrap().to_owned();
        (run.code(), all.map(kind).collect())
    }

    fn log(&self, repository: &str) -> PathBuf {
        self.sandbox.join(repository).join("audit")
    }

    /// The objects of the only chain of a repository, in order.
    pub fn chain(&self, repository: &str) -> Vec<PathBuf> {
        let log = self.log(repository);
        files_below(&log)
            .iter()
            .map(|name| log.join(name))
            .collect()
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn every_command_leaves_its_records_in_every_repository() {
    let world = World::new();
    let secret = "a-secret-of-the-command-line";
    let backup = ["files", "backup", "up", "--quiet", "--label", secret];
    let sudo = world
        .pitr("host", &backup)
        .env("SUDO_USER", "anna\u{1b}[2J");
    sudo.run().success();
    let to = world.sandbox.join("back");
    let restore = [
        "files",
        "restore",
        "up",
        "--quiet",
        "--to",
        to.to_str().unwrap(),
    ];
    world.pitr("host", &restore).run().success();
    std::fs::rename(world.sandbox.join("source"), world.sandbox.join("gone")).unwrap();
    assert_ne!(world.backup().code(), 0);
    // A command that only looks is not recorded.
    world.pitr("host", &["files", "ls", "up"]).run().success();

    let records = world.list();
    let told: Vec<_> = records
        .iter()
        .map(|r| {
            (
                r["command"].as_str().unwrap(),
                r["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("init", "begun"),
            ("init", "succeeded"),
            ("files backup", "begun"),
            ("files backup", "succeeded"),
            ("files restore", "begun"),
            ("files restore", "succeeded"),
            ("files backup", "begun"),
            ("files backup", "failed"),
        ]
    );
    let first = &records[2];
    assert_eq!(first["object"], "up");
    assert_eq!(first["sudo_user"], "anna[2J");
    assert_eq!(
        first["uid"],
        if user::is_root() {
            user::ids().0
        } else {
            rustix::process::geteuid().as_raw()
        }
    );
    assert_eq!(first["run"], records[3]["run"]);
    assert_ne!(first["run"], records[4]["run"]);
    assert!(records[7]["reason"].is_string() && records[7]["status"] != 0);
    for record in &records {
        assert_eq!(record["repositories"].as_array().unwrap().len(), 2);
    }
    let chains = (world.chain("one"), world.chain("two"));
    assert_eq!(chains.0.len(), 8);
    for (one, two) in chains.0.iter().zip(&chains.1) {
        assert_eq!(bytes(one), bytes(two));
        assert!(!String::from_utf8_lossy(&bytes(one)).contains(secret));
    }
    assert_eq!(world.problems(&[]), (0, vec![]));
    // Other commands pass over it.
    let verify = world.pitr("host", &["verify"]).run();
    assert!(!verify.stderr.contains("audit"), "{}", verify.stderr);
    // A command that was narrowed to one repository leaves no hole in the other.
    let narrow = [
        "files",
        "restore",
        "up",
        "--quiet",
        "--to",
        "/nonexistent/x",
        "--repository",
        "one",
    ];
    assert_ne!(world.pitr("host", &narrow).run().code(), 0);
    assert_eq!(world.chain("two").len(), 12);
}

#[test]
fn whoever_changes_the_log_is_found() {
    let world = World::new();
    for _ in 0..3 {
        world.backup().success();
    }
    let anchor = world.pitr("host", &["audit", "anchor"]).run().success();
    let anchor = anchor.stdout.trim().to_owned();
    world.backup().success();
    let chain = world.chain("one");
    assert_eq!(chain.len(), 11);
    assert_eq!(world.problems(&["--anchor", &anchor]), (0, vec![]));
    let kept: Vec<Vec<u8>> = chain.iter().map(|path| bytes(path)).collect();
    let restore = || {
        for (path, content) in chain.iter().zip(&kept) {
            std::fs::write(path, content).unwrap();
        }
    };
    let check = |expected: &str, name: &str| {
        let (code, problems) = world.problems(&[]);
        assert_eq!(code, 4, "{name}: {problems:?}");
        assert!(
            problems.iter().any(|p| p == expected),
            "{name}: {problems:?}"
        );
        restore();
    };
    std::fs::remove_file(&chain[0]).unwrap();
    check("beginning", "the first one");
    std::fs::remove_file(&chain[4]).unwrap();
    check("missing", "one in the middle");
    // The state of this host knows the last one; another host has the anchor.
    std::fs::remove_file(&chain[10]).unwrap();
    check("removed", "the last one");
    let mut flipped = kept[4].clone();
    flipped[40] ^= 1;
    std::fs::write(&chain[4], flipped).unwrap();
    check("damaged", "a flipped bit");
    std::fs::write(&chain[4], &kept[6]).unwrap();
    std::fs::write(&chain[6], &kept[4]).unwrap();
    check("damaged", "two that changed places");
    // Another story with the right checksum: the next record does not follow it.
    let text = String::from_utf8(kept[4].clone()).unwrap();
    let (body, _) = text.split_once(",\"checksum\"").unwrap();
    let body = body.replace("files backup", "files cat");
    let forged = format!(
        "{body},\"checksum\":\"blake3:{}\"}}\n",
        blake3::hash(body.as_bytes()).to_hex()
    );
    std::fs::write(&chain[4], forged).unwrap();
    check("order", "another story");
    // The whole chain under the name of another writer.
    let (from, to) = (chain[0].parent().unwrap(), world.log("one").join("other"));
    std::fs::rename(from, &to).unwrap();
    let (code, problems) = world.problems(&[]);
    assert_eq!(code, 4);
    assert!(problems.iter().any(|p| p == "damaged"), "{problems:?}");
    std::fs::rename(&to, from).unwrap();
    // Everything in both repositories, and the state of the host: the anchor that was kept outside tells.
    for repository in ["one", "two"] {
        std::fs::remove_dir_all(world.log(repository)).unwrap();
    }
    std::fs::remove_dir_all(world.sandbox.join("host/audit")).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let (code, problems) = world.problems(&["--anchor", &anchor]);
    assert_eq!(
        (code, problems),
        (4, vec!["removed".to_owned(), "removed".to_owned()])
    );
}

#[test]
fn a_repository_that_was_away_gets_its_records_in_order() {
    let world = World::new();
    let (there, away) = (world.sandbox.join("two"), world.sandbox.join("away"));
    std::fs::rename(&there, &away).unwrap();
    world.backup().success();
    world.backup().success();
    let doctor = world.pitr("host", &["doctor", "--json"]).run();
    let waiting = |doctor: &Run| {
        let all = doctor.json()["findings"].as_array().unwrap().clone();
        let of = |f: &Value| f["group"] == "audit" && f["name"] == "two";
        all.into_iter().find(of).unwrap()["value"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(waiting(&doctor), "4 records on this host");
    std::fs::rename(&away, &there).unwrap();
    assert_eq!(world.problems(&[]), (6, vec!["behind".to_owned()]));
    world.backup().success();
    assert_eq!(world.chain("two").len(), 8);
    assert_eq!(world.problems(&[]), (0, vec![]));
    // One that lost its log gets it from the other.
    std::fs::remove_dir_all(world.log("two")).unwrap();
    assert_eq!(world.problems(&[]).0, 4);
    let sync = world
        .pitr("host", &["repo", "sync", "--json"])
        .run()
        .success();
    let brought = &sync.json()["audit"][0];
    assert_eq!(
        (&brought["to"], &brought["records"]),
        (&"two".into(), &8.into())
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn who_may_not_create_keeps_the_records_and_required_ones_stop_the_command() {
    let world = World::new();
    world.backup().success();
    let log = |mode: u32| {
        for repository in ["one", "two"] {
            for entry in std::fs::read_dir(world.log(repository)).unwrap() {
                let path = entry.unwrap().path();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
                std::fs::set_permissions(path, mode).unwrap();
            }
        }
    };
    log(0o555);
    let cat = ["files", "cat", "up", "a"];
    let run = world.pitr("host", &cat).run().success();
    assert_eq!(run.stdout, "content");
    assert_eq!(world.chain("one").len(), 4);
    world.configure("host", "required", "");
    // The command that makes repositories needs none.
    world.pitr("host", &["init", "--quiet"]).run().success();
    let refused = world.pitr("host", &cat).run();
    assert_eq!(refused.code(), 8, "{}", refused.stderr);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("audit log"));
    log(0o755);
    world.pitr("host", &cat).run().success();
    // Those that waited came first.
    let told: Vec<_> = world.list().iter().map(|r| r["outcome"].clone()).collect();
    assert_eq!(
        told[4..],
        [
            "begun",
            "succeeded",
            "begun",
            "succeeded",
            "begun",
            "failed",
            "begun",
            "succeeded"
        ]
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn commands_that_run_at_once_make_one_chain() {
    let world = World::new();
    world.backup().success();
    let cat = world.pitr("host", &["files", "cat", "up", "a"]);
    let running: Vec<_> = (0..6).map(|_| cat.spawn()).collect();
    running
        .into_iter()
        .for_each(|one| drop(one.wait().success()));
    let folders = std::fs::read_dir(world.log("one")).unwrap().count();
    assert_eq!((folders, world.chain("one").len()), (1, 16));
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn a_copied_state_becomes_a_chain_of_its_own() {
    let world = World::new();
    world.backup().success();
    let (host, copied) = (world.sandbox.join("host"), world.sandbox.join("copied"));
    let copy = std::process::Command::new("cp")
        .arg("-a")
        .args([&host, &copied])
        .status();
    assert!(copy.unwrap().success());
    world.backup().success();
    // The machine was set back, or this is its clone: both hold the same state.
    std::fs::remove_dir_all(&host).unwrap();
    std::fs::rename(&copied, &host).unwrap();
    world.backup().success();
    assert_eq!(std::fs::read_dir(world.log("one")).unwrap().count(), 2);
    let records = world.list();
    assert_eq!(records.len(), 8);
    let continues: Vec<_> = records
        .iter()
        .filter(|r| r["continues"].is_string())
        .collect();
    assert_eq!(continues.len(), 1);
    assert_eq!(
        (&continues[0]["seq"], &continues[0]["outcome"]),
        (&1.into(), &"begun".into())
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn v32_a_chain_that_is_cut_before_the_record_which_another_one_continues_is_found() {
    let world = World::new();
    world.backup().success();
    let (host, copied) = (world.sandbox.join("host"), world.sandbox.join("copied"));
    let copy = std::process::Command::new("cp")
        .arg("-a")
        .args([&host, &copied])
        .status();
    assert!(copy.unwrap().success());
    world.backup().success();
    std::fs::remove_dir_all(&host).unwrap();
    std::fs::rename(&copied, &host).unwrap();
    world.backup().success();
    let continued = world.list();
    let continued = continued.iter().find_map(|r| r["continues"].as_str());
    let (writer, last) = continued.unwrap().split_once('/').unwrap();
    assert!(last.parse::<u64>().unwrap() > 1, "{last}");
    assert_eq!(world.problems(&[]), (0, vec![]));
    // All but the first record of the former chain go everywhere, and no anchor knows them.
    for repository in ["one", "two"] {
        let folder = world.log(repository).join(writer);
        for name in files_below(&folder).iter().skip(1) {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
    }
    let removed = || vec!["removed".to_owned(); 2];
    assert_eq!(world.problems(&[]), (4, removed()));
    // A repository that is left out may have the rest.
    let alone = world.problems(&["--repository", "two"]);
    assert_eq!(alone, (0, vec![]));
}

#[test]
fn y44_a_check_of_one_repository_ends_no_alert_about_another() {
    let world = World::new();
    let sink = Sink::new();
    world.configure("host", "on", &sink.section());
    let own = world.pitr("host", &[]);
    world.backup().success();
    let first = world.chain("two").remove(1);
    let kept = bytes(&first);
    std::fs::remove_file(&first).unwrap();
    assert_eq!(world.problems(&[]), (4, vec!["missing".to_owned()]));
    observe(&own);
    sink.expect("audit/broken", &[("new", "critical")]);
    let broken = || {
        let text = world.pitr("host", &["metrics"]).run().stdout;
        crate::metrics::value(&text, "pitr_audit_broken")
    };
    assert_eq!(world.problems(&["--repository", "one"]), (0, vec![]));
    let report = ["--repository", "one", "report", "audit"];
    world.pitr("host", &report).run().success();
    assert_eq!(broken(), Some(1.0));
    observe(&own);
    sink.expect("audit/broken", &[("new", "critical")]);
    // A check of all repositories knows.
    std::fs::write(&first, kept).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(broken(), Some(0.0));
    observe(&own);
    sink.last("audit/broken", "resolved", "critical", "");
}

#[test]
fn y46_a_host_that_moves_to_another_repository_damages_no_log() {
    let world = World::new();
    world.configure("late", "on", "");
    let config = world.sandbox.join("late.toml");
    let both = std::fs::read_to_string(&config).unwrap();
    let both = both.replace("required = false\n", "");
    let without = |name: &str| {
        let from = both.find(&format!("[repositories.{name}]")).unwrap();
        let rest = &both[from + 1..];
        let next = if name == "one" {
            "[repositories."
        } else {
            "[files."
        };
        let end = from + 1 + rest.find(next).unwrap();
        std::fs::write(&config, both[..from].to_owned() + &both[end..]).unwrap();
    };
    let backup = ["files", "backup", "up", "--quiet"];
    without("one");
    for _ in 0..2 {
        world.pitr("late", &backup).run().success();
    }
    // That one dies. The other one is older than the record that says so.
    std::fs::remove_dir_all(world.sandbox.join("two")).unwrap();
    without("two");
    let later = later(&world.pitr("late", &backup), 3 * 86_400);
    later.run().success();
    let run = world.pitr("late", &["audit", "verify", "--json"]).run();
    let problems = run.json()["problems"].clone();
    assert_eq!(run.code(), 6, "{problems}");
    assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    assert_eq!(problems[0]["problem"], "unproven", "{problems}");
}

#[test]
fn v33_anchors_and_checks_that_come_no_more_are_told() {
    let world = World::new();
    let sink = Sink::new();
    world.configure("host", "on", &sink.section());
    let own = world.pitr("host", &[]);
    let levels = |pitr: &Program| -> Vec<String> {
        let json = pitr.clone().args(["doctor", "--json"]).run().json();
        let all = json["findings"].as_array().unwrap().iter();
        let own = all.filter(|f| f["name"] == "anchor" || f["name"] == "check");
        own.map(|f| f["level"].as_str().unwrap().to_owned())
            .collect()
    };
    world.backup().success();
    observe(&own);
    assert_eq!(levels(&own), ["ok", "ok"], "they may be another host's");
    world.pitr("host", &["audit", "anchor"]).run().success();
    assert_eq!(world.problems(&[]).0, 0);
    let text = world.pitr("host", &["metrics"]).run().stdout;
    let name = "pitr_audit_last_verified_timestamp_seconds";
    assert!(crate::metrics::value(&text, name) > Some(1e9), "{text}");
    let days = |days: u64| later(&own, days * 86_400);
    assert_eq!(levels(&days(4)), ["warn", "ok"]);
    assert_eq!(levels(&days(36)), ["warn", "warn"]);
    observe(&days(4));
    let (anchor, check) = ("audit/anchor/stale", "audit/verify/stale");
    sink.expect(anchor, &[("new", "medium")]);
    sink.expect(check, &[]);
    observe(&days(36));
    sink.last(check, "new", "medium", "last succeeded on this host");
    observe(&own);
    sink.last(anchor, "resolved", "medium", "");
    sink.last(check, "resolved", "medium", "");
    // A check of one repository is no check of the log.
    world.problems(&["--repository", "two"]);
    let after = world.pitr("host", &["metrics"]).run().stdout;
    let of = |text: &str| crate::metrics::value(text, name);
    assert_eq!(of(&after), of(&text));
}

#[test]
fn a_repository_that_came_later_has_no_hole() {
    let world = World::new();
    world.backup().success();
    // The second one is another one, which is empty.
    std::fs::remove_dir_all(world.sandbox.join("two")).unwrap();
    std::fs::write(
        world.sandbox.join("host.toml"),
        std::fs::read_to_string(world.sandbox.join("host.toml"))
            .unwrap()
            .replace("/two\"", "/three\""),
    )
    .unwrap();
    world.pitr("host", &["init", "--quiet"]).run().success();
    world.backup().success();
    let (code, problems) = world.problems(&[]);
    assert_eq!((code, problems), (6, vec!["behind".to_owned()]));
    let before = world.list().len();
    let sync = world.pitr("host", &["repo", "sync", "--quiet"]);
    sync.run().success();
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(world.list().len(), before + 2);
    let names = |name: &str| files_below(&world.log(name));
    assert_eq!(names("one"), names("three"));
}

#[test]
fn a_repository_made_anew_at_its_place_is_no_damage() {
    let world = World::new();
    world.backup().success();
    let anew = |name: &str| {
        std::fs::remove_dir_all(world.sandbox.join(name)).unwrap();
        let init = world.pitr("host", &["init"]).run().success();
        let backup = world.pitr("host", &["files", "backup", "up"]).run();
        let told = init.stderr + &backup.success().stderr;
        assert!(told.contains("is another one than before"), "{told}");
    };
    anew("one");
    // The other one has the chain of before, which a sync brings.
    assert_eq!(world.problems(&[]), (6, vec!["behind".to_owned()]));
    anew("two");
    let (code, problems) = world.problems(&["--repository", "two"]);
    assert_eq!((code, problems), (0, vec![]));
    let again = world.pitr("host", &["files", "backup", "up"]);
    let again = again.run().success();
    assert!(!again.stderr.contains("another one"), "{again}");
}

#[test]
fn root_follows_no_link_in_the_state_of_another_account() {
    crate::require_root!("root_follows_no_link_in_the_state_of_another_account");
    let world = World::new();
    world.backup().success();
    let state = world.sandbox.join("host");
    let as_root = || {
        let run = world.pitr("host", &["files", "backup", "up"]);
        let run = run.privileged().run().success();
        for name in ["one", "two"] {
            user::own_all(&world.sandbox.join(name));
        }
        run
    };
    let run = as_root();
    assert!(!run.stderr.contains("missing"), "{run}");
    // The account owns the files that root made, and goes on with them.
    let (uid, _) = user::ids();
    for name in files_below(&state) {
        let found = state.join(&name).symlink_metadata().unwrap();
        assert_eq!(found.uid(), uid, "{name}");
    }
    world.backup().success();
    assert_eq!(world.problems(&[]), (0, vec![]));

    let victims = world.sandbox.dir("victims");
    chown(&victims, Some(0), Some(0)).unwrap();
    let link = |at: &Path, to: &Path| {
        symlink(to, at).unwrap();
        user::own(at);
    };
    let spools = std::fs::read_dir(state.join("audit")).unwrap();
    let spool = spools.map(|entry| entry.unwrap().path()).next().unwrap();
    let locks = [spool.join("lock"), state.join("counters.lock")];
    for lock in &locks {
        std::fs::remove_file(lock).unwrap();
        link(lock, &victims.join("nologin"));
    }
    let run = as_root();
    assert!(run.stderr.contains("missing from the audit log"), "{run}");
    assert!(run.stderr.contains("missing from the metrics"), "{run}");
    for lock in &locks {
        std::fs::remove_file(lock).unwrap();
    }
    std::fs::rename(state.join("audit"), state.join("away")).unwrap();
    link(&state.join("audit"), &victims);
    let run = as_root();
    assert!(run.stderr.contains("missing from the audit log"), "{run}");
    assert_eq!(std::fs::read_dir(&victims).unwrap().count(), 0);
    // Without the links it goes on where it was.
    std::fs::remove_file(state.join("audit")).unwrap();
    std::fs::rename(state.join("away"), state.join("audit")).unwrap();
    let run = as_root();
    assert!(!run.stderr.contains("missing"), "{run}");
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn configurations_of_one_state_directory_have_chains_of_their_own() {
    let world = World::new();
    let text = std::fs::read_to_string(world.sandbox.join("host.toml")).unwrap();
    let other = text
        .replace("/one\"", "/three\"")
        .replace("/two\"", "/four\"");
    let path = world.sandbox.file("other.toml", other);
    user::own(&path);
    world.pitr("other", &["init", "--quiet"]).run().success();
    for host in ["host", "other", "host", "other"] {
        let backup = world.pitr(host, &["files", "backup", "up", "--quiet"]);
        backup.run().success();
    }
    for (host, repository) in [("host", "one"), ("other", "three")] {
        let verify = world.pitr(host, &["audit", "verify"]).run();
        verify.success();
        assert_eq!(world.chain(repository).len(), 6);
        assert_eq!(std::fs::read_dir(world.log(repository)).unwrap().count(), 1);
    }
}

#[test]
fn a_command_that_was_killed_leaves_its_beginning() {
    let world = World::new();
    world.backup().success();
    world.configure(
        "host",
        "on",
        "[files.slow]\nsource = \"command\"\nfile_name = \"x\"\ncommand = [\"sleep\", \"20\"]\n",
    );
    world.pitr("host", &["init", "--quiet"]).run().success();
    let mut slow = world.pitr("host", &["files", "backup", "slow"]).spawn();
    wait_until(PATIENCE, "the record of its beginning", || {
        assert!(!slow.is_done(), "{}", slow.stderr());
        world.chain("one").len() == 7
    });
    slow.signal(Signal::KILL);
    slow.wait();
    let last = world.list().pop().unwrap();
    assert_eq!(
        (&last["object"], &last["outcome"]),
        (&"slow".into(), &"begun".into())
    );
}

#[test]
fn records_expire_from_the_oldest_on_and_a_record_says_so() {
    let world = World::new();
    world.backup().success();
    let anchored = world.pitr("host", &["audit", "anchor"]).run().success();
    let line = anchored.stdout.trim();
    assert_eq!(world.problems(&["--anchor", line]), (0, vec![]));
    world.backup().success();
    world.expire_records();
    // These are left: expire's own beginning and end, and the two records that say what expired.
    let left = world.list();
    let told: Vec<_> = left
        .iter()
        .map(|r| r["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(told.first(), Some(&"begun"), "{told:?}");
    assert!(told.contains(&"noted"), "{told:?}");
    assert_eq!(world.problems(&[]), (0, vec![]));
    // Nobody may say later that it was old enough: the anchor is gone as well here, so the age alone cannot tell.
    world.configure("host", "on", "");
    assert_eq!(world.problems(&[]).0, 0);
    // An anchor that was kept outside asks for its record in both repositories.
    let unproven = vec!["unproven".to_owned(); 2];
    assert_eq!(world.problems(&["--anchor", line]), (6, unproven));
    // Without the record that says so, the beginning is missing.
    for repository in ["one", "two"] {
        for path in world.chain(repository) {
            if String::from_utf8_lossy(&bytes(&path)).contains("\"expired\"") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let (code, problems) = world.problems(&[]);
    assert_eq!(code, 4);
    assert!(problems.iter().any(|p| p == "beginning"), "{problems:?}");
}

#[test]
fn records_bear_a_mac_and_those_of_a_stranger_are_doubted() {
    let world = World::sealed();
    let backup = world.pitr("host", &["files", "backup", "up", "--quiet", "--full"]);
    backup.run().success();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let chain = world.chain("one");
    let last = chain.last().unwrap();
    let text = String::from_utf8(bytes(last)).unwrap();
    assert!(text.contains(",\"mac\":\""), "{text}");
    // A stranger appends, as far as anybody can without the MAC key, and takes the next number of the host.
    let content = text.split_once(",\"mac\"").unwrap().0;
    let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
    let seq = chain.len() as u64;
    let value: Value = serde_json::from_str(&text).unwrap();
    let forged = content
        .replace(&format!("{seq:012}"), &format!("{:012}", seq + 1))
        .replace(&format!("\"seq\":{seq}"), &format!("\"seq\":{}", seq + 1))
        .replace(value["prev"].as_str().unwrap(), &hash);
    let forged = format!(
        "{forged},\"checksum\":\"blake3:{}\"}}\n",
        blake3::hash(forged.as_bytes()).to_hex()
    );
    let place = last.with_file_name(format!("{:012}", seq + 1));
    std::fs::write(&place, forged).unwrap();
    user::own(&place);
    let (code, problems) = world.problems(&["--repository", "one"]);
    assert_eq!((code, problems), (6, vec!["doubted".to_owned()]));
    // The host leaves the chain, and loses none of its own records.
    backup.run().success();
    let records = world.list();
    let own: Vec<_> = records.iter().filter(|r| r["doubted"] == false).collect();
    assert_eq!(own.last().unwrap()["outcome"], "succeeded");
    assert!(own.iter().any(|r| r["continues"].is_string()));
    let anchored = world
        .pitr("host", &["audit", "anchor", "--json"])
        .run()
        .success();
    assert_eq!(anchored.json()["repositories"].as_array().unwrap().len(), 2);
}

#[test]
fn a_role_is_compared_with_what_the_host_may_do() {
    let world = World::sealed();
    let found = |role: &str| -> Vec<(String, String)> {
        let doctor = world
            .pitr("host", &["doctor", "--json", "--role", role])
            .run();
        let all = doctor.json()["findings"].as_array().unwrap().clone();
        let own = all.iter().filter(|f| f["group"] == "role");
        let text = |f: &Value, name: &str| f[name].as_str().unwrap().to_owned();
        own.map(|f| (text(f, "level"), text(f, "value"))).collect()
    };
    let files = files_below(&world.sandbox.join("one"));
    let told = |level: &str, value: &str| (level.to_owned(), value.to_owned());
    // A directory knows no right to create without the right to delete.
    let writer = [
        told("ok", "those of a writer"),
        told("warn", "may delete objects"),
    ];
    assert_eq!(found("writer")[..2], writer);
    let janitor = [
        told("ok", "those of a janitor"),
        told("ok", "the rights of a janitor"),
    ];
    assert_eq!(found("janitor")[..2], janitor);
    let reader = [
        told("fail", "may not read"),
        told("warn", "may delete objects"),
    ];
    assert_eq!(found("reader")[..2], reader);
    assert_eq!(files_below(&world.sandbox.join("one")), files);
    // The needs of a role are printed for every repository, and nothing is done.
    let rights = world
        .pitr("host", &["init", "--role", "writer", "--json"])
        .run()
        .success();
    assert_eq!(rights.json()["repositories"].as_array().unwrap().len(), 2);
    assert_eq!(files_below(&world.sandbox.join("one")), files);
}

#[test]
fn a_report_tells_runs_and_escapes_every_text() {
    let world = World::new();
    let backup = world.pitr("host", &["files", "backup", "up", "--quiet"]);
    backup
        .env("SUDO_USER", "<script>alert(1)</script>")
        .run()
        .success();
    let report = |kind: &str, format: &str| {
        world
            .pitr(
                "host",
                &["report", kind, "--since", "1h", "--format", format],
            )
            .run()
    };
    let daily = report("daily", "json").json();
    let runs = daily["runs"].as_array().unwrap().clone();
    assert_eq!(runs.len(), 2, "{daily:#}");
    assert_eq!(
        (&runs[1]["command"], &runs[1]["outcome"]),
        (&"files backup".into(), &"succeeded".into())
    );
    assert!(runs[1]["ended"].is_string());
    let page = report("compliance", "html").stdout;
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("&lt;script&gt;"),
        "{page}"
    );
    assert!(
        !page.contains("<script") && !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
    // A changed log is not quoted in silence.
    std::fs::remove_file(&world.chain("one")[1]).unwrap();
    let audit = report("audit", "text");
    assert_eq!(audit.code(), 4, "{}", audit.stderr);
    assert!(audit.stdout.contains("missing"), "{}", audit.stdout);
}

#[test]
fn j66_a_cluster_that_cannot_be_looked_at_is_in_the_report() {
    let (site, _cluster) = Site::with_cluster(17);
    let state = site.sandbox().dir("state");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let section = format!("\n[agent]\nstate_dir = \"{}\"\n", state.display());
    std::fs::write(site.config(), config + &section).unwrap();
    site.pitr().args(["backup", "--quiet"]).run().success();
    let report = || {
        site.pitr()
            .args(["report", "compliance", "--format", "json"])
            .run()
    };
    let whole = report().success().json();
    let recoverable = |report: &serde_json::Value| report["controls"][0].clone();
    assert_eq!(recoverable(&whole)["state"], "ok", "{whole:#}");
    assert_eq!(whole["failures"], serde_json::json!([]));
    let told = |kind: &str, format: &str| {
        let words = ["report", kind, "--since", "1h", "--format", format];
        site.pitr().args(words).run().stdout
    };
    let text = told("daily", "text");
    assert!(
        text.contains("What somebody should do\nnothing\n"),
        "{text}"
    );
    // Another cluster, whose registration is damaged.
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(
        site.config(),
        config + "[clusters.other]\npgdata = \"/nowhere\"\n",
    )
    .unwrap();
    let other = site.repository().join("clusters/other/7000000000000000000");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("cluster.json"), "{}").unwrap();
    let run = report();
    assert_eq!(run.code(), 10, "{run}");
    let report = run.json();
    for control in &report["controls"].as_array().unwrap()[..2] {
        assert_eq!(control["state"], "warning", "{control:#}");
    }
    assert!(run.stderr.contains("other"), "{run}");
    let failures = report["failures"].as_array().unwrap();
    let [failure] = failures.as_slice() else {
        panic!("{report:#}");
    };
    let failure = failure.as_str().unwrap();
    assert!(failure.contains("look at cluster \"other\""), "{failure}");
    for kind in ["daily", "compliance"] {
        let text = told(kind, "text");
        let (before, after) = text.split_once("\nCould not be looked at\n").unwrap();
        assert!(!before.contains("Controls"), "it is the first: {text}");
        assert!(after.contains("look at cluster \"other\""), "{text}");
        let unknown = "What somebody should do\nnot known: see above\n";
        assert!(
            after.contains(unknown) && !text.contains("\nnone"),
            "{text}"
        );
        let page = told(kind, "html");
        let heading = page.split("<h2>").nth(1).unwrap();
        assert!(heading.starts_with("Could not be looked at<"), "{page}");
        assert!(
            !page.contains("<p>nothing</p>") && !page.contains("<p>none</p>"),
            "{page}"
        );
    }
}

#[test]
fn j66_a_log_that_could_not_be_read_is_not_called_whole() {
    let world = World::new();
    let report = || {
        let words = ["report", "compliance", "--format", "json"];
        world.pitr("host", &words).run().json()
    };
    let recorded = |report: &Value| {
        let controls = report["controls"].as_array().unwrap();
        let found = controls
            .iter()
            .find(|one| one["control"] == "commands recorded");
        found.unwrap()["state"].clone()
    };
    assert_eq!(recorded(&report()), "ok");
    let two = world.sandbox.join("two");
    std::fs::rename(&two, world.sandbox.join("away")).unwrap();
    let away = report();
    assert_eq!(recorded(&away), "warning", "{away:#}");
    let failures = away["failures"].as_array().unwrap().iter();
    let logs = failures.filter(|one| {
        one.as_str()
            .unwrap()
            .contains("read the audit log of repository")
    });
    assert_eq!(logs.count(), 1, "{away:#}");
}

#[test]
fn y43_a_control_is_met_for_every_copy_of_a_cluster_or_not_at_all() {
    let (site, cluster) = Site::with_cluster(17);
    let offsite = site.sandbox().join("offsite");
    let state = site.sandbox().dir("state");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let more = format!(
        "\n[repositories.offsite]\nurl = \"file://{}\"\n[agent]\nstate_dir = \"{}\"\n",
        offsite.display(),
        state.display()
    );
    std::fs::write(site.config(), config + &more).unwrap();
    let pitr = |words: &[&str]| site.pitr().args(words.iter().copied()).arg("--quiet").run();
    pitr(&["init"]).success();
    pitr(&["backup"]).success();
    cluster.archive_now();
    pitr(&["repo", "sync"]).success();
    let state = |name: &str, since: &str| {
        let report = site
            .pitr()
            .args(["report", "compliance", "--format", "json"]);
        let report = report.args(["--since", since]).run().json();
        let controls = report["controls"].as_array().unwrap();
        let found = controls.iter().find(|one| one["control"] == name).unwrap();
        (
            found["state"].as_str().unwrap().to_owned(),
            found["observed"].clone(),
        )
    };
    let expect = |name: &str, since: &str, wanted: &str| {
        let (state, observed) = state(name, since);
        assert_eq!(state, wanted, "{name}: {observed}");
    };
    let (tested, checked) = ("restores tested", "stored data checked");
    expect(tested, "1h", "warning");
    expect(checked, "1h", "warning");
    // A check that reads nothing back is none.
    pitr(&["verify", "--fast"]).success();
    expect(checked, "1h", "warning");
    pitr(&["verify"]).success();
    pitr(&["verify", "--repository", "offsite"]).success();
    expect(checked, "1h", "ok");
    // A drill of one repository proves nothing of the other.
    let initdb = crate::common::bin(17, "initdb").unwrap();
    let bin = initdb.parent().unwrap().to_str().unwrap();
    pitr(&["drill", "--bin", bin]).success();
    expect(tested, "1h", "warning");
    pitr(&["drill", "--bin", bin, "--repository", "offsite"]).success();
    expect(tested, "1h", "ok");
    // Both are older than this time.
    std::thread::sleep(std::time::Duration::from_secs(2));
    expect(tested, "1s", "warning");
    expect(checked, "1s", "warning");
}

#[test]
fn y45_a_check_of_one_backup_leaves_the_segments_behind_it_unchecked() {
    let (site, cluster) = Site::with_cluster(17);
    let state = site.sandbox().dir("state");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let more = format!("\n[agent]\nstate_dir = \"{}\"\n", state.display());
    std::fs::write(site.config(), config + &more).unwrap();
    let pitr = |words: &[&str]| site.pitr().args(words.iter().copied()).arg("--quiet").run();
    let archive = || {
        cluster.sql("select pg_logical_emit_message(false, 'a', 'b')");
        cluster.archive_now();
    };
    let expect = |wanted: &str| {
        let report = ["report", "compliance", "--format", "json", "--since", "1h"];
        let report = site.pitr().args(report).run().json();
        let controls = report["controls"].as_array().unwrap();
        let checked = |one: &&Value| one["control"] == "stored data checked";
        let found = controls.iter().find(checked).unwrap();
        assert_eq!(found["state"], wanted, "{found}");
    };
    pitr(&["init"]).success();
    let backup = site.pitr().args(["backup", "--json"]).run().success();
    (0..3).for_each(|_| archive());
    let id = backup.json()["id"].as_str().unwrap().to_owned();
    pitr(&["verify", "--backup", &id]).success();
    expect("warning");
    pitr(&["verify"]).success();
    expect("ok");
    archive();
    expect("ok");
}

fn the_view_of_contrib_shows_archiver_slots_and_receivers(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/pitr_status.sql");
    cluster.sql(&std::fs::read_to_string(script).unwrap());
    cluster.sql("select pg_create_physical_replication_slot('kept', true)");
    let state = |part: &str| {
        let rows = cluster.query_rows(&format!(
            "select state from pitr_status where part = '{part}'"
        ));
        rows.iter()
            .map(|row| row[0].clone().unwrap())
            .collect::<Vec<_>>()
    };
    cluster.archive_now();
    // Statistics follow; those of old majors with a delay.
    wait_until(PATIENCE, "the archiver's statistics", || {
        state("archiver") == ["ok"]
    });
    assert_eq!(state("slot"), ["inactive, reserved"]);
    assert_eq!(state("receiver"), [""; 0]);
    drop(site);
}
per_major!(the_view_of_contrib_shows_archiver_slots_and_receivers, v13 v17 v19);

/// Answers one request with success; returns what it said, head and body.
fn answered_once(listener: std::net::TcpListener) -> std::thread::JoinHandle<String> {
    use std::io::{Read as _, Write as _};
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = String::new();
        let mut bytes = [0; 4096];
        while !heard.contains("END") {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "{heard}");
            heard += std::str::from_utf8(&bytes[..count]).unwrap();
        }
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        heard
    })
}

/// Everything that leaves the host anyway proves the log: whoever keeps it finds a removal in all repositories at once.
#[test]
fn r91_notices_heartbeats_and_reports_carry_an_anchor() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let heard = world.sandbox.dir("out").join("notices");
    let sinks = format!(
        "[alerts.out]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"(cat; echo; echo $PITR_ALERT_ANCHOR) >> {}\"]\n\
         [alerts.beat]\nkind = \"heartbeat\"\nurl = \"http://{}/\"\ntemplate = \"{{{{host}}}} {{{{anchor}}}} END\"\n",
        heard.display(),
        listener.local_addr().unwrap(),
    );
    world.configure("host", "on", &sinks);
    let beat = answered_once(listener);
    world.backup().success();
    world.pitr("host", &["audit", "anchor"]).run().success();
    world.backup().success();
    world.pitr("host", &["alert", "test"]).run().success();
    let notices = std::fs::read_to_string(&heard).unwrap();
    let (json, variable) = notices.trim_end().split_once('\n').unwrap();
    let json: Value = serde_json::from_str(json).unwrap();
    let anchor = json["anchor"].as_str().unwrap();
    assert_eq!(anchor, variable);
    let chain = world.chain("one");
    let last = format!("/{}:", chain.len());
    assert!(anchor.contains(&last), "{anchor} and {last}");
    let beat = beat.join().unwrap();
    assert!(
        beat.starts_with("POST / ") && beat.contains(anchor),
        "{beat}"
    );
    let report = world.pitr("host", &["report", "daily"]).run();
    report.expect_stdout(&format!("Audit log of this host: {anchor}"));
    let json = world
        .pitr("host", &["report", "daily", "--format", "json"])
        .run();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["anchor"], *anchor);

    let kept = heard.display().to_string();
    assert_eq!(world.problems(&["--anchor", &kept]), (0, vec![]));
    let none = world
        .sandbox
        .file("none", "no anchor: db1/x:00")
        .display()
        .to_string();
    let run = world
        .pitr("host", &["audit", "verify", "--anchor", &none])
        .run();
    run.expect_code(2).expect_stderr("holds no anchor");
    let run = world
        .pitr("host", &["audit", "verify", "--anchor", "nothing"])
        .run();
    run.expect_code(2).expect_stderr("WRITER/NUMBER:HASH");
    // The newest records go in both repositories at once, and with them what this host remembers.
    for name in ["one", "two"] {
        for path in world.chain(name).iter().rev().take(2) {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::remove_dir_all(world.sandbox.join("host/audit")).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let both = vec!["removed".to_owned(), "removed".to_owned()];
    assert_eq!(world.problems(&["--anchor", &kept]), (4, both.clone()));
    for name in ["one", "two"] {
        std::fs::remove_dir_all(world.log(name)).unwrap();
    }
    assert_eq!(world.problems(&[]), (0, vec![]));
    assert_eq!(world.problems(&["--anchor", &kept]), (4, both));
}

#[test]
fn x20_records_that_expired_do_not_come_back_by_a_copy() {
    let world = World::new();
    world.backup().success();
    world.backup().success();
    let second = world.chain("two").swap_remove(1);
    let kept = bytes(&second);
    world.expire_records();
    world.configure("host", "on", "");
    assert!(!second.exists());
    // As a repository that was away, and took no part in it.
    std::fs::write(&second, &kept).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let sync = world.pitr("host", &["repo", "sync", "--json"]);
    let sync = sync.run().success();
    assert_eq!(sync.json()["audit"], serde_json::json!([]), "{sync}");
    assert_eq!(world.problems(&[]), (0, vec![]));
}
