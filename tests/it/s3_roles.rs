//! Roles on S3: the policies that `pitr init --role` prints, byte for byte, are those of four users, and moto's server enforces them.

use std::path::PathBuf;

use pitr::config::S3Settings;
use pitr::error::Code;
use pitr::store::s3::S3Store;
use pitr::store::{self, Key, Store as _};
use serde_json::Value;

use crate::common::moto::Moto;
use crate::common::s3::peer::{Peer, keys};
use crate::common::{Cluster, Program, Run, Sandbox, expire_at_once, list_of, pitr, pitr_archive};
use crate::s3_cycle::Bucketed;
use crate::sealed::keygen;

const ROLES: [&str; 4] = ["reader", "writer", "janitor", "operator"];

/// How doctor names the rights of a role.
fn own_rights(role: &str) -> String {
    let article = if role == "operator" { "an" } else { "a" };
    format!("the rights of {article} {role}")
}
const BUCKET: &str = "backups";
const PREFIX: &str = "prod/pg";
/// A job that one of several agents runs.
const CLAIMED: &str = "[jobs.one]\nrun = \"verify\"\nschedule = \"0 9 * * *\"\nclaim = true\n";

/// A server that judges, four hosts, each with the keys of its role, and a cluster that the writer archives.
struct World {
    cluster: Cluster,
    sandbox: Sandbox,
    moto: Moto,
}

impl World {
    /// With a plain repository, or an encrypted one with an audit log.
    fn new(is_sealed: bool, env: &[(&str, &str)]) -> World {
        let cluster = Cluster::small(17).create();
        let sandbox = Sandbox::new("roles");
        let moto = Moto::with(&sandbox, &[&[("PITR_S3_CONDITIONS", "1")], env].concat());
        moto.make_bucket(BUCKET);
        if is_sealed {
            keygen(&sandbox.join("keys"), &["ops", "escrow", "leaver"]).succeed();
        }
        cluster.append_config("archive_mode", "on");
        let world = World {
            cluster,
            sandbox,
            moto,
        };
        for role in ROLES {
            world.configure(role, is_sealed);
            world.give_rights(role);
        }
        world.moto.judge();
        // An operator makes the repository; nobody else has been there.
        world.pitr("operator", &["init", "--quiet"]).succeed();
        let archive = pitr_archive().arg("--config").arg(world.config("writer"));
        let archive = archive.arg("%p").shell();
        let mut world = world;
        world.cluster.append_config("archive_command", &archive);
        world.cluster.start();
        world
    }

    fn config(&self, role: &str) -> PathBuf {
        self.sandbox.join(format!("{role}.toml"))
    }

    fn configure(&self, role: &str, is_sealed: bool) {
        let place = |name: &str| self.sandbox.join(name).display().to_string();
        let mut text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\nspool_dir = \"{}\"\n[agent]\nstate_dir = \"{}\"\n\
             [repositories.store]\nurl = \"s3://{BUCKET}/{PREFIX}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
             path_style = true\ncredentials_file = \"{}\"\n",
            self.cluster.pgdata().display(),
            self.cluster.conninfo("postgres"),
            place(&format!("{role}-spool")),
            place(&format!("{role}-state")),
            self.moto.endpoint,
            place(&format!("{role}-credentials")),
        );
        text += "[jobs.clean]\nrun = \"--cluster main expire --keep 1 --min-age 0s --grace 0s --confirm\"\nschedule = \"0 7 * * *\"\n\
                 [jobs.label]\nrun = \"backup --label expire\"\nschedule = \"0 8 * * *\"\n";
        if role == "reader" {
            text += CLAIMED;
        }
        if is_sealed {
            let keys = place("keys");
            let set = format!("key_set = \"{keys}/writer.key\"\n");
            let own = format!("key_file = \"{keys}/ops.key\"\n");
            // As the profile of the role says.
            let encryption = match role {
                "reader" => own,
                "operator" => set + &own,
                _ => set,
            };
            text += &format!(
                "[repositories.store.encryption]\n{encryption}[audit]\nrecords = \"on\"\n"
            );
        }
        self.sandbox.file(format!("{role}.toml"), text);
    }

    /// Makes the user of a role, with the policy that is printed for it.
    fn give_rights(&self, role: &str) {
        let user = self.moto.make_user(role);
        let credentials = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            user.key, user.secret
        );
        self.sandbox
            .file(format!("{role}-credentials"), credentials);
        let printed = self.pitr(role, &["init", "--role", role]).succeed();
        let begin = printed.stdout.find("\n{").unwrap() + 1;
        let length = printed.stdout[begin..].find("\n}").unwrap() + 2;
        let policy = &printed.stdout[begin..begin + length];
        let json = self.pitr(role, &["init", "--role", role, "--json"]).run();
        let told: Value = serde_json::from_str(policy).unwrap();
        assert_eq!(told, json.json()["repositories"][0]["policy"]);
        self.moto.put_policy(role, policy);
    }

    fn pitr(&self, role: &str, arguments: &[&str]) -> Program {
        let program = pitr().arg("--config").arg(self.config(role));
        program.args(arguments)
    }

    fn backup(&self, role: &str) -> String {
        let run = self.pitr(role, &["backup", "--json"]).succeed();
        run.id()
    }

    /// The store with the rights of a role, without pitr around it.
    fn store(&self, role: &str, prefix: &str) -> S3Store {
        let settings = S3Settings {
            endpoint: Some(self.moto.endpoint.clone()),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.sandbox.join(format!("{role}-credentials"))),
            ..S3Settings::default()
        };
        S3Store::open(BUCKET, prefix, &settings, 7).unwrap()
    }

    fn keys(&self) -> Vec<String> {
        keys(&self.store("reader", PREFIX))
    }

    /// A key of the repository with this text in it.
    fn key(&self, part: &str) -> Key {
        let all = self.keys();
        let key = all.iter().find(|key| key.contains(part));
        Key::new(key.unwrap_or_else(|| panic!("{part}: {all:?}"))).unwrap()
    }

    /// The finding of `doctor --role` about the rights of this host: its level, and what was seen.
    fn rights(&self, host: &str, role: &str) -> (String, String) {
        self.finding(host, role, "store").unwrap()
    }

    /// A finding of `doctor --role`: its level, and what was seen.
    fn finding(&self, host: &str, role: &str, name: &str) -> Option<(String, String)> {
        let run = self.pitr(host, &["doctor", "--json", "--role", role]).run();
        let all = run.json()["findings"].as_array().unwrap().clone();
        let is_it = |f: &&Value| f["group"] == "role" && f["name"] == name;
        let own = all.iter().find(is_it)?;
        let text = |name: &str| own[name].as_str().unwrap().to_owned();
        Some((text("level"), text("value")))
    }

    /// Restores as a role, and counts the rows of a table in the copy, which fetches its WAL as that role.
    fn restored(&self, role: &str, target: &[&str]) -> String {
        let to = self.sandbox.join(format!("copy-{role}"));
        let run = self.pitr(role, &["restore", "--quiet", "--to"]).arg(&to);
        run.args(target).succeed();
        let copy = Cluster::open(17, &to).without_fsync().promoted();
        copy.value("select count(*) from ledger")
    }

    /// The store refuses to create, read or delete these, and they are as before.
    fn refuses(&self, role: &str, deed: &str, key: &Key) {
        let store = self.store(role, PREFIX);
        let done = match deed {
            "create" => store::put(&store, key, b"x").map(drop),
            "read" => store::get(&store, key, 64 << 20).map(drop),
            "delete" => store.delete(key).map(drop),
            _ => unreachable!(),
        };
        let error = done.expect_err(&format!("{role} may {deed} {key}"));
        assert_eq!(error.code(), Code::Denied, "{role}, {deed} {key}: {error}");
        let is_there = self.keys().iter().any(|k| k == key.as_str());
        assert_eq!(is_there, deed != "create", "{role}, {deed} {key}");
    }
}

/// Refused with the store's own words.
fn denied(run: &Run) {
    assert_eq!(run.code(), 1, "{run}");
    assert!(run.stderr.contains("AccessDenied"), "{run}");
    assert!(run.stderr.contains("next:"), "{run}");
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

#[test]
fn each_role_does_its_work_with_the_printed_policy_and_no_more() {
    let world = World::new(false, &[]);
    let client = world.cluster.client();
    client.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 20000) g");
    // A writer archives, backs up, and marks.
    let first = world.backup("writer");
    client.sql("insert into ledger select g, 'second' from generate_series(20001, 30000) g");
    client.sql("select pg_create_restore_point('before')");
    client.sql("delete from ledger");
    world.cluster.archive_now();
    // A reader looks, plans, restores, and verifies.
    let info = world.pitr("reader", &["info"]).succeed();
    info.expect_stdout(&first);
    let plan = ["plan", "--target-name", "before", "--json"];
    let plan = world.pitr("reader", &plan).succeed().json();
    assert_eq!(plan["backup"]["id"], first.as_str());
    let target = ["--target-name", "before"];
    assert_eq!(world.restored("reader", &target), "30000");
    world.pitr("reader", &["verify"]).succeed();
    // An operator does all of that.
    let second = world.backup("operator");
    world.pitr("operator", &["verify"]).succeed();
    assert_eq!(world.restored("operator", &target), "30000");
    let check = world.pitr("operator", &["repo", "check"]).run();
    check.expect_stdout("These credentials may not delete");
    let pin = ["pin", &second, "--reason", "a test", "--confirm"];
    world.pitr("operator", &pin).succeed();
    let unpin = ["unpin", &second, "--confirm"];
    world.pitr("operator", &unpin).succeed();
    for role in ROLES {
        let own = own_rights(role);
        assert_eq!(world.rights(role, role), ("ok".to_owned(), own));
    }
    refusals(&world, &first);
    claims(&world);
    // A label is no command.
    let label = ["agent", "run", "label"];
    world.pitr("writer", &label).succeed();
    world.pitr("operator", &["verify"]).succeed();
    // A janitor expires, by the agent too; what is left is whole.
    world.agents_expire(&["reader", "writer", "operator"]);
    let gone = |id: &str| {
        !world
            .keys()
            .iter()
            .any(|k| k.contains(&format!("/packs/{id}/")))
    };
    assert!(gone(&first) && gone(&second));
    world.pitr("reader", &["verify"]).succeed();
    // Trials of hosts that may not delete stay until they are a day old.
    let left = world.store("janitor", PREFIX).irregular().unwrap();
    assert!(left.iter().all(|one| one.is_unfinished), "{left:?}");
}

/// With and without a policy that demands the condition, and in a bucket that keeps versions.
#[test]
fn s36_the_doctor_tells_of_a_host_that_may_replace_objects() {
    let mut cluster = Cluster::small(17).create();
    let site = Bucketed::new(&cluster, Peer::own(), "");
    let server = site.peer.server();
    let warned = || {
        ROLES.map(|role| {
            let run = site.pitr().args(["doctor", "--json", "--role", role]).run();
            let all = run.json()["findings"].as_array().unwrap().clone();
            let is_it = |f: &&Value| f["group"] == "role" && f["name"] == "objects of store";
            let found = all.iter().find(is_it);
            found.is_some_and(|f| f["level"] == "warn" && f["value"] == "may replace objects")
        })
    };
    // An operator may copy objects into another class.
    assert_eq!(warned(), [true, true, true, false]);
    server.behave(|m| m.versions = true);
    assert_eq!(warned(), [false; 4]);
    server.behave(|m| (m.versions, m.wants_condition) = (false, true));
    assert_eq!(warned(), [false; 4]);
    // All that is stored is created so, in one request or in parts.
    site.attach(&cluster);
    cluster.start();
    cluster.sql("create table ledger as select g as id, md5(random()::text) from generate_series(1, 400000) g");
    server.clear_log();
    site.backup();
    cluster.archive_now();
    let expire = expire_at_once();
    site.pitr().args(expire).succeed();
    // These credentials may delete, and nothing else is found.
    let check = site.pitr().words("repo check").exits(6);
    check.expect_stderr("these credentials may delete");
    site.pitr().words("verify --quiet").succeed();
    let log = server.log();
    assert!(
        log.iter().any(|line| line.contains("uploadId")),
        "none went in parts"
    );
}

/// No role does what it must not do, whoever asks: pitr, or its keys alone.
fn refusals(world: &World, backup: &str) {
    denied(&world.pitr("reader", &["backup"]).run());
    denied(&world.pitr("janitor", &["backup"]).run());
    let pin = ["pin", backup, "--reason", "a test", "--confirm"];
    denied(&world.pitr("reader", &pin).run());
    for role in ["reader", "writer"] {
        denied(&world.pitr(role, &expire_at_once()).run());
    }
    // An operator may mark what a janitor then deletes.
    let marked = world.pitr("operator", &expire_at_once()).run();
    assert_eq!(marked.code(), 10, "{marked}");
    assert!(marked.stderr.contains("AccessDenied"), "{marked}");
    assert!(
        world
            .keys()
            .iter()
            .any(|k| k.contains(&format!("/packs/{backup}/")))
    );
    let (wal, pack, marker) = (world.key("/wal/"), world.key("/packs/"), key("pitr.json"));
    let event = format!("{}/events/{backup}/pin-x", world.cluster_folder());
    for key in [&wal, &pack, &marker] {
        for role in ["reader", "writer", "operator"] {
            world.refuses(role, "delete", key);
        }
    }
    for role in ["reader", "janitor"] {
        world.refuses(role, "create", &key("clusters/main/1/wal/00000001/history"));
        world.refuses(role, "create", &key("keys/1/new"));
    }
    world.refuses("reader", "create", &key(&event));
    // Beside the prefix nobody does anything.
    for role in ROLES {
        for prefix in ["", "prod", "prod/pgx", "test"] {
            let store = world.store(role, prefix);
            let listed = store.list("").map(drop).unwrap_err();
            assert_eq!(listed.code(), Code::Denied, "{role} in \"{prefix}\"");
            let put = store::put(&store, &key("stray"), b"x").unwrap_err();
            assert_eq!(put.code(), Code::Denied, "{role} in \"{prefix}\"");
        }
    }
    // doctor sees the difference between a host and another role.
    let told = |level: &str, value: &str| (level.to_owned(), value.to_owned());
    for (host, role, seen) in [
        ("reader", "writer", told("fail", "may not create objects")),
        ("writer", "janitor", told("fail", "may not delete objects")),
        ("writer", "reader", told("warn", "may create objects")),
        ("janitor", "writer", told("fail", "may not create objects")),
    ] {
        assert_eq!(world.rights(host, role), seen, "{host} as {role}");
    }
}

/// doctor sees that the policy of a host is older than a job that has to be claimed first.
fn claims(world: &World) {
    let found = |role: &str| world.finding(role, role, "claims in store");
    let told = |level: &str, value: &str| Some((level.to_owned(), value.to_owned()));
    assert_eq!(found("reader"), told("ok", "jobs can be claimed"));
    assert_eq!(found("janitor"), None);
    crate::common::append(world.config("janitor"), CLAIMED);
    assert_eq!(found("janitor"), told("fail", "may not create claims"));
    assert_eq!(world.rights("janitor", "janitor").0, "ok");
}

impl World {
    /// The agents of hosts that may not delete refuse a job by name, and that of the janitor runs it.
    fn agents_expire(&self, refused: &[&str]) {
        let job = ["agent", "run", "clean"];
        for role in refused {
            let run = self.pitr(role, &job).exits(8);
            run.expect_stderr("job \"clean\" would expire")
                .expect_stderr("may not delete in repository \"store\"");
        }
        self.pitr("janitor", &job).succeed();
    }

    /// Has the agent of a role examine and look: returns the names of critical conditions, and the clusters that it only writes.
    fn looked(&self, role: &str) -> (Vec<String>, Value) {
        for command in ["examine", "observe"] {
            self.pitr(role, &["agent", command]).run();
        }
        let page = self.sandbox.join(format!("{role}-state/page.json"));
        let page: Value = serde_json::from_str(&std::fs::read_to_string(page).unwrap()).unwrap();
        let all = page["conditions"].as_array().unwrap().iter();
        let critical = all.filter(|one| one["severity"] == "critical");
        let critical = critical.map(|one| one["id"].as_str().unwrap().to_owned());
        (critical.collect(), page["info"]["written"].clone())
    }

    /// `clusters/main/<system identifier>`
    fn cluster_folder(&self) -> String {
        format!("clusters/main/{}", self.cluster.system_identifier())
    }
}

#[test]
fn a_host_that_only_writes_does_its_work_without_reading_backups() {
    let world = World::new(true, &[("PITR_S3_SUMS", "1")]);
    let client = world.cluster.client();
    client.sql("create table ledger as select g as id from generate_series(1, 5000) g");
    let first = world.backup("writer");
    client.sql("insert into ledger select g from generate_series(5001, 6000) g");
    world.cluster.archive_now();
    world.refuses("writer", "read", &world.key("/packs/"));
    world.refuses("writer", "read", &world.key("/backups/"));
    // The increments of a host that cannot read its own backups need what it keeps itself.
    let second = world.backup("writer");
    assert_ne!(first, second);
    assert_eq!(world.restored("reader", &[]), "6000");
    world.pitr("reader", &["verify"]).succeed();
    for role in ROLES {
        let own = own_rights(role);
        assert_eq!(world.rights(role, role), ("ok".to_owned(), own));
    }
    // An operator takes access to keys away, which deletes a recipient's; nothing else may it delete.
    let leaver = world.sandbox.join("keys/leaver.pub");
    let proof = world.sandbox.join("keys/escrow.key").display().to_string();
    let withdraw = ["repo", "rewrap", "--withdraw", "leaver", "--proof", &proof];
    let run = world.pitr("operator", &withdraw).run();
    assert!(leaver.exists() && run.is_success(), "{run}");
    world.refuses("operator", "delete", &world.key("/packs/"));
    // The agent of the writer judges what it may know.
    let (critical, written) = world.looked("writer");
    // The server of this test has no fsync.
    assert_eq!(critical, ["main/doctor/server/fsync"], "{written}");
    assert_eq!(written[0]["backups"][0]["id"], second.as_str());
    world.agents_expire(&["writer", "operator"]);
    // Every role has left records of what it did, which a reader may write, too.
    world.pitr("janitor", &expire_at_once()).succeed();
    let listed = world.pitr("operator", &["audit", "list", "--json"]).run();
    let listed = listed.success().json();
    let hosts: std::collections::BTreeSet<String> = list_of(&listed["records"])
        .iter()
        .map(|record| record["command"].as_str().unwrap().to_owned())
        .collect();
    for command in ["backup", "restore", "expire", "repo rewrap"] {
        assert!(hosts.contains(command), "{command}: {hosts:?}");
    }
    world.refuses(
        "reader",
        "create",
        &key("clusters/main/1/wal/00000001/history"),
    );
    world.pitr("reader", &["verify"]).succeed();
}

#[test]
fn a_host_that_may_not_read_back_hears_that_the_store_confirms_nothing() {
    let world = World::new(true, &[]);
    let run = world.pitr("writer", &["backup"]).run();
    assert_eq!(run.code(), 1, "{run}");
    for part in [
        "confirms no checksum",
        "Nothing is acknowledged",
        "NeverReadBackups",
    ] {
        assert!(run.stderr.contains(part), "{part}: {run}");
    }
    // WAL may be read back, and is archived all the same.
    world.cluster.archive_now();
    let all = world.keys();
    assert!(all.iter().any(|key| key.contains("/wal/")), "{all:?}");
    assert!(!all.iter().any(|key| key.ends_with("/manifest")), "{all:?}");
}
