//! The audit log: who ran what is recorded in every repository, and whoever changes the record is found.

mod anchor;
mod chain;
mod report;
mod repository;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Cluster, Program, Run, Sandbox, Site, files_below, pitr, user, wait_until};
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
        world.pitr("host", &["init", "--quiet"]).succeed();
        user::own_all(world.sandbox.path());
        world
    }

    /// In an encrypted repository, with the keys of a host that writes.
    fn sealed() -> World {
        let sandbox = Sandbox::new("audit");
        let keys = sandbox.join("keys");
        keygen(&keys, &["ops", "escrow"]).succeed();
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
        let run = self.pitr("host", &["audit", "list", "--json"]).succeed();
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
    sudo.succeed();
    let to = world.sandbox.join("back");
    let restore = [
        "files",
        "restore",
        "up",
        "--quiet",
        "--to",
        to.to_str().unwrap(),
    ];
    world.pitr("host", &restore).succeed();
    std::fs::rename(world.sandbox.join("source"), world.sandbox.join("gone")).unwrap();
    assert_ne!(world.backup().code(), 0);
    // A command that only looks is not recorded.
    world.pitr("host", &["files", "ls", "up"]).succeed();

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
fn root_follows_no_link_in_the_state_of_another_account() {
    crate::require_root!("root_follows_no_link_in_the_state_of_another_account");
    let world = World::new();
    world.backup().success();
    let state = world.sandbox.join("host");
    let as_root = || {
        let run = world.pitr("host", &["files", "backup", "up"]);
        let run = run.privileged().succeed();
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
fn a_command_that_was_killed_leaves_its_beginning() {
    let world = World::new();
    world.backup().success();
    world.configure(
        "host",
        "on",
        "[files.slow]\nsource = \"command\"\nfile_name = \"x\"\ncommand = [\"sleep\", \"20\"]\n",
    );
    world.pitr("host", &["init", "--quiet"]).succeed();
    let mut slow = world.pitr("host", &["files", "backup", "slow"]).spawn();
    slow.until("the record of its beginning", || {
        world.chain("one").len() == 7
    });
    slow.ended_by(Signal::KILL);
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
    let anchored = world.pitr("host", &["audit", "anchor"]).succeed();
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

/// Row X49: a log that is too long to be checked becomes shorter all the same.
#[test]
fn x49_a_log_that_is_too_long_for_one_look_expires() {
    let world = World::new();
    world.backup().success();
    let first = world.chain("one");
    assert!(first.len() > 3, "{first:?}");
    let lowered = |arguments: &[&str]| {
        let pitr = world.pitr("host", arguments);
        pitr.env("PITR_FAULT_LIMIT", "3").run()
    };
    lowered(&["audit", "verify"])
        .expect_stderr("the audit log has more than 3 records")
        .expect_stderr("pitr expire --confirm");
    std::thread::sleep(std::time::Duration::from_secs(3));
    world.configure("host", "on", "keep = \"2s\"\n");
    let expire = ["expire", "--confirm", "--grace", "0s", "--min-age", "0s"];
    let run = lowered(&expire);
    assert!(!run.stderr.contains("the audit log has more"), "{run}");
    assert!(first.iter().all(|path| !path.exists()), "{run}");
    world.configure("host", "on", "");
    assert_eq!(world.problems(&[]).0, 0);
}

/// Row X45: the host may add records, and may not delete those of others.
#[test]
fn x45_a_store_that_keeps_its_records_gets_one_that_says_so() {
    crate::require_root!("x45_a_store_that_keeps_its_records_gets_one_that_says_so");
    let world = World::new();
    world.backup().success();
    for repository in ["one", "two"] {
        let chain = world.chain(repository);
        for path in &chain {
            chown(path, Some(0), Some(0)).unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        let folder = chain[0].parent().unwrap();
        chown(folder, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(folder, Permissions::from_mode(0o1777)).unwrap();
    }
    let oldest = world.chain("one").swap_remove(0);
    std::thread::sleep(std::time::Duration::from_secs(7));
    world.configure("host", "on", "keep = \"6s\"\n");
    let expire = ["expire", "--confirm", "--grace", "0s", "--min-age", "0s"];
    for _ in 0..2 {
        let run = world.pitr("host", &expire).run();
        assert_ne!(run.code(), 10, "{run}");
        run.expect_stderr("records of the audit log that are old enough stay");
    }
    assert!(oldest.exists());
    // The second run adds no record. On a slow machine more records may be old enough by then.
    let mut said: Vec<String> = Vec::new();
    for record in world.list() {
        let expired = &record["expired"];
        if record["object"] == "one" && expired.is_object() {
            said.push(expired.to_string());
        }
    }
    let all = said.len();
    said.sort();
    said.dedup();
    assert!(all > 0 && said.len() == all, "{said:?}");
    world.configure("host", "on", "");
    assert_eq!(world.problems(&[]), (0, vec![]));
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
        .succeed();
    assert_eq!(rights.json()["repositories"].as_array().unwrap().len(), 2);
    assert_eq!(files_below(&world.sandbox.join("one")), files);
}

fn the_view_of_contrib_shows_archiver_slots_and_receivers(major: u32) {
    let (site, cluster) = Site::with_cluster(major);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/pitr_status.sql");
    cluster.sql(&std::fs::read_to_string(script).unwrap());
    cluster.sql("select pg_create_physical_replication_slot('kept', true)");
    let state = |part: &str| {
        let rows = cluster.sql(&format!(
            "select state from pitr_status where part = '{part}'"
        ));
        rows.iter()
            .map(|row| row[0].clone().unwrap())
            .collect::<Vec<_>>()
    };
    cluster.archive_now();
    // Statistics follow; those of old majors with a delay.
    wait_until("the archiver's statistics", || state("archiver") == ["ok"]);
    assert_eq!(state("slot"), ["inactive, reserved"]);
    assert_eq!(state("receiver"), [""; 0]);
    drop(site);
}
per_major!(the_view_of_contrib_shows_archiver_slots_and_receivers, v13 v17 v19);
