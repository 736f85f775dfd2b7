//! Files, dumps and configuration on S3: one cycle of each kind, in an encrypted bucket, with a copy in a directory.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Sandbox, expire_at_once, files_below, newest_bin, user};
use crate::files::tree::describe;
use crate::s3_cycle::Bucketed;
use crate::sealed::keygen;

struct World {
    cluster: Cluster,
    site: Bucketed,
    /// Keys, sources, and what comes back.
    sandbox: Sandbox,
}

impl World {
    fn new() -> World {
        let cluster = Cluster::builder(17).without_fsync().create();
        let sandbox = Sandbox::new("content");
        keygen(&sandbox.join("keys"), &["ops", "escrow"]).succeed();
        let pair = keygen(&sandbox.join("pair"), &["lead", "vault"]).arg("--secrets");
        pair.succeed();
        let place = |name: &str| sandbox.join(name).display().to_string();
        let (keys, pair) = (place("keys"), place("pair"));
        let opened = format!(
            "key_set = \"{keys}/writer.key\"\nkey_file = \"{keys}/ops.key\"\nsecrets_key = \"{pair}/lead.key\"\n"
        );
        let sandbox_copy = sandbox.dir("copy");
        let source = sandbox.dir("source");
        let more = format!(
            "[repositories.store.encryption]\n{opened}secrets = \"{pair}/secrets.key\"\n\
             [repositories.copy]\nurl = \"file://{}\"\n[repositories.copy.encryption]\n{opened}\
             [files.up]\nsource = \"{source}\"\nidentity = \"test\"\n\
             [logical.main]\ncluster = \"main\"\ndatabases = [\"app\"]\n\
             [config.host]\npaths = [\"{source}\"]\nidentity = \"test\"\n",
            sandbox_copy.display(),
            source = source.display(),
        );
        let site = Bucketed::new(&cluster, Peer::start(), &more);
        World {
            cluster,
            site,
            sandbox,
        }
    }

    fn pitr(&self, arguments: &[&str]) -> Program {
        self.site.pitr().args(arguments)
    }

    fn source(&self) -> PathBuf {
        self.sandbox.join("source")
    }

    fn write(&self, name: &str, content: &[u8]) {
        let place = self.source().join(name);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, content).unwrap();
        user::own_all(&self.source());
    }

    fn backup(&self, arguments: &[&str]) -> String {
        let run = self.pitr(arguments).arg("--json").succeed();
        run.id()
    }

    /// Restores into a directory of this name.
    fn restored(&self, arguments: &[&str], name: &str) -> PathBuf {
        let to = self.sandbox.join(name);
        let run = self.pitr(arguments).arg("--to").arg(&to).run();
        // Directories above a set of configuration are other users'.
        assert!([0, 6].contains(&run.code()), "{run}");
        to
    }

    fn backups(&self, repository: &str) -> usize {
        let info = self
            .pitr(&["info", "--json", "--repository", repository])
            .run();
        let info = info.json();
        let scopes = info["scopes"].as_array().cloned().unwrap_or_default();
        let count = |scope: &Value| scope["backups"].as_array().unwrap().len();
        scopes.iter().map(count).sum()
    }

    /// Verifies, copies, verifies the copy, and lets the bucket keep one backup.
    fn verified_copied_and_expired(&self) {
        let verify = |repository: &str| {
            let verify = self.pitr(&["verify", "--json", "--repository", repository]);
            let report = verify.succeed().json();
            assert_eq!(report["scopes"][0]["finding_count"], 0, "{report}");
        };
        verify("store");
        assert_eq!((self.backups("store"), self.backups("copy")), (2, 0));
        let sync = ["repo", "sync", "--from", "store", "--to", "copy"];
        self.pitr(&sync).succeed();
        assert_eq!(self.backups("copy"), 2);
        verify("copy");
        for _ in 0..2 {
            if let Some(server) = &self.site.peer.own {
                server.clear_log();
            }
            let expire = self.pitr(&expire_at_once());
            expire.words("--repository store").run();
            if let Some(server) = &self.site.peer.own {
                let log = server.log();
                let walks: Vec<&String> = log.iter().filter(|line| is_walk(line)).collect();
                assert_eq!(walks.len(), 1, "one for all scopes: {walks:?}");
            }
        }
        assert_eq!((self.backups("store"), self.backups("copy")), (1, 2));
        verify("store");
    }
}

/// Whether a request lists everything that is stored, from its beginning.
fn is_walk(line: &str) -> bool {
    let prefix = line.split_once("&prefix=").map_or("", |(_, rest)| rest);
    let prefix = prefix.split(['&', ' ']).next();
    let is_whole = line.contains("list-type=2") && line.contains("max-keys=1000");
    let is_deep = !line.contains("delimiter=") && !line.contains("continuation-token=");
    is_whole && is_deep && prefix == Some("pg/")
}

fn is_same(found: &Path, expected: &Path) {
    assert_eq!(describe(found), describe(expected));
}

#[test]
fn files_on_s3() {
    let world = World::new();
    world.write("images/one", &[7; 100_000]);
    world.write("notes", b"first");
    let first = world.backup(&["files", "backup", "up"]);
    let was = describe(&world.source());
    world.write("notes", b"second");
    let second = world.backup(&["files", "backup", "up"]);
    let listed = world.pitr(&["files", "ls", "up", "images"]).succeed();
    listed.expect_stdout("images/one");
    let restore = |id| ["files", "restore", "up", "--backup", id];
    let to = world.restored(&restore(&first), "first");
    assert_eq!(describe(&to), was);
    // The same directory goes on to the second.
    let delta = [&restore(&second)[..], &["--delta", "--delete", "--confirm"]].concat();
    is_same(&world.restored(&delta, "first"), &world.source());
    world.verified_copied_and_expired();
    let from_copy = [&restore(&first)[..], &["--repository", "copy"]].concat();
    assert_eq!(describe(&world.restored(&from_copy, "from-copy")), was);
    is_same(
        &world.restored(&restore(&second), "second"),
        &world.source(),
    );
}

#[test]
fn dumps_on_s3() {
    let mut world = World::new();
    world.cluster.start();
    world.cluster.sql("create database app");
    let client = world.cluster.client_of("app");
    client.sql("create table ledger as select g as id from generate_series(1, 1000) g");
    let program = newest_bin(17, "pg_dump");
    let bin = program.parent().unwrap().to_str().unwrap();
    let backup = ["logical", "backup", "main", "--bin", bin];
    let first = world.backup(&backup);
    client.sql("insert into ledger values (1001)");
    let second = world.backup(&backup);
    for id in [&first, &second] {
        let check = [
            "logical", "check", "main", "--backup", id, "--read", "--bin", bin,
        ];
        world.pitr(&check).succeed();
    }
    world.verified_copied_and_expired();
    world.cluster.sql("drop database app with (force)");
    let conninfo = world.cluster.conninfo("postgres");
    let restore = [
        "logical", "restore", "main", "--bin", bin, "--create", "--into", &conninfo,
    ];
    for (more, rows) in [
        (&["--backup", &first, "--repository", "copy"][..], "1000"),
        (&[], "1001"),
    ] {
        world.pitr(&[&restore[..], more].concat()).succeed();
        let found = world
            .cluster
            .client_of("app")
            .value("select count(*) from ledger");
        assert_eq!(found, rows);
        world.cluster.sql("drop database app with (force)");
    }
}

#[test]
fn configuration_on_s3() {
    let world = World::new();
    world.write(".env", b"DB_PASSWORD=Gr3enTea!42\n");
    world.write("plain.conf", b"listen = 80\n");
    let first = world.backup(&["config", "backup", "host"]);
    let was = describe(&world.source());
    world.write(".env", b"DB_PASSWORD=sk_live_4eC39HqLyjWDarjtT1\n");
    let second = world.backup(&["config", "backup", "host"]);
    let diff = world.pitr(&["config", "diff", "host"]).exits(6);
    assert!(
        !diff.stdout.contains("Gr3enTea") && !diff.stdout.contains("sk_live"),
        "{diff}"
    );
    let below = |to: PathBuf| to.join(world.source().strip_prefix("/").unwrap());
    let restore = |id| ["config", "restore", "host", "--backup", id];
    let to = below(world.restored(&restore(&first), "first"));
    assert_eq!(describe(&to), was);
    // In place, and back.
    let in_place = [&restore(&first)[..], &["--in-place", "--confirm"]].concat();
    world.pitr(&in_place).succeed();
    assert_eq!(
        std::fs::read(world.source().join(".env")).unwrap(),
        b"DB_PASSWORD=Gr3enTea!42\n"
    );
    world
        .pitr(&["config", "rollback", "host", "--confirm"])
        .succeed();
    assert_eq!(files_below(&world.source()), [".env", "plain.conf"]);
    world.verified_copied_and_expired();
    // The copy has the recipients, too.
    let from_copy = [&restore(&first)[..], &["--repository", "copy"]].concat();
    assert_eq!(
        describe(&below(world.restored(&from_copy, "from-copy"))),
        was
    );
    is_same(
        &below(world.restored(&restore(&second), "second")),
        &world.source(),
    );
}
