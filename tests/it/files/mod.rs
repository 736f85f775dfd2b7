//! `pitr files`: directories are backed up and come back, whatever happened in them.

mod beside;
mod btrfs;
mod bucket;
mod bucket_copy;
mod campaign;
mod delta;
mod docker;
mod faults;
mod git;
mod health;
mod in_place;
mod parts;
mod registration;
mod shared;
mod sources;
pub mod tree;
mod watch;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Cluster, Program, Sandbox, expire_at_once, pitr};
use crate::sealed::keygen;
use tree::{Tree, describe};

/// A source, its configuration, and a place for what comes back.
struct World {
    sandbox: Sandbox,
    config: PathBuf,
    repository: PathBuf,
    is_root: bool,
    _cluster: Cluster,
    /// Caches of root's: what lies in the sandbox another user may exchange.
    cache: tempfile::TempDir,
}

impl World {
    fn new(more: &str) -> World {
        let sandbox = Sandbox::new("files");
        World::with(&sandbox.join("repo"), sandbox, "", more)
    }

    /// With another source than the directory.
    fn of(source: &str, more: &str) -> World {
        World::new("").with_source(source, more)
    }

    fn with_source(self, source: &str, more: &str) -> World {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let (before, _) = text.split_once("source = ").unwrap();
        std::fs::write(
            &self.config,
            format!("{before}source = \"{source}\"\n{more}"),
        )
        .unwrap();
        self
    }

    /// On a disk, where change detection says which files are read.
    fn on_disk(more: &str) -> World {
        let sandbox = Sandbox::on_disk("files");
        World::with(&sandbox.join("repo"), sandbox, "", more)
    }

    /// With the repository in a folder of its own.
    fn on(repository: &Path) -> World {
        World::with(repository, Sandbox::new("files"), "", "")
    }

    /// In an encrypted repository, with all keys.
    fn sealed() -> World {
        let sandbox = Sandbox::new("files");
        World::sealed_on(&sandbox.join("repo"), sandbox)
    }

    fn sealed_on(repository: &Path, sandbox: Sandbox) -> World {
        let keys = sandbox.join("keys");
        keygen(&keys, &["ops", "escrow"]).succeed();
        let key = |name: &str| path_text(&keys.join(name));
        let encryption = format!(
            "[repositories.local.encryption]\nkey_set = \"{}\"\nkey_file = \"{}\"\n",
            key("writer.key"),
            key("ops.key")
        );
        World::with(repository, sandbox, &encryption, "")
    }

    fn with(repository: &Path, sandbox: Sandbox, encryption: &str, more: &str) -> World {
        let cluster = Cluster::builder(17).without_fsync().create();
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.local]\nurl = \"file://{}\"\n{encryption}\n[files.up]\nsource = \"{}\"\n{more}",
            cluster.pgdata().display(),
            repository.display(),
            sandbox.dir("source").display()
        );
        let is_root = rustix::process::geteuid().is_root();
        let cache = tempfile::Builder::new()
            .prefix("pitrtest-cache-")
            .tempdir()
            .unwrap();
        if is_root {
            std::os::unix::fs::symlink(cache.path(), sandbox.join("cache")).unwrap();
        }
        let world = World {
            config: sandbox.file("pitr.toml", text),
            repository: repository.to_owned(),
            sandbox,
            is_root,
            _cluster: cluster,
            cache,
        };
        world.pitr(&["init", "--quiet"]).succeed();
        world
    }

    fn source(&self) -> PathBuf {
        self.sandbox.join("source")
    }

    fn pitr(&self, arguments: &[&str]) -> Program {
        let program = pitr().arg("--config").arg(&self.config).args(arguments);
        // The files are those of the tests' own user.
        let program = match self.is_root {
            true => program.privileged(),
            false => program,
        };
        // A file that has just changed counts as settled. Readers would renew their claims at each turn with this.
        let program = match arguments.get(1) {
            Some(&"backup" | &"watch") => program.env("PITR_FAULT_SECONDS", "0"),
            _ => program,
        };
        program.env("XDG_CACHE_HOME", path_text(&self.sandbox.join("cache")))
    }

    /// As a user without rights, who owns the repository.
    fn as_user(&self, arguments: &[&str]) -> Program {
        crate::common::user::own_all(&self.repository);
        pitr().arg("--config").arg(&self.config).args(arguments)
    }

    fn backup(&self) -> Value {
        let run = self.pitr(&["files", "backup", "up", "--json"]).run();
        // A source that lost its last file is a warning.
        let is_empty = run.code() == 6 && run.json()["file_count"] == 0;
        assert!(run.is_success() || is_empty, "{run}");
        run.json()
    }

    fn restored(&self, id: &str, name: &str) -> PathBuf {
        let to = self.sandbox.join(name);
        let mut arguments = vec!["files", "restore", "up", "--backup", id, "--to"];
        let place = path_text(&to);
        arguments.extend([place.as_str(), "--privileged"]);
        self.pitr(&arguments).succeed();
        to
    }

    fn gives(&self, id: &str, expected: &Tree, why: &str) {
        let to = self.restored(id, "back");
        is_same(&describe(&to), expected, &format!("{id}, {why}"));
        std::fs::remove_dir_all(to).unwrap();
    }
}

fn is_same(found: &Tree, expected: &Tree, why: &str) {
    for (path, text) in expected {
        assert_eq!(found.get(path), Some(text), "{path:?} of {why}");
    }
    let mut more = found.keys().filter(|p| !expected.contains_key(*p));
    assert!(more.next().is_none(), "{more:?}, too: {why}");
}

fn path_text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn id(backup: &Value) -> &str {
    backup["id"].as_str().unwrap()
}

/// Sign and path of a line of `pitr files diff`.
fn line_of_diff(line: &str) -> String {
    let path = line.rsplit(' ').next().unwrap();
    format!("{} {path}", line.split(' ').next().unwrap())
}

/// Backs up, lists, changes, backs up, restores both, verifies, copies and expires. In memory every file would be read each time.
fn whole_life(world: &World) {
    let source = world.source();
    std::fs::create_dir(source.join("images")).unwrap();
    std::fs::write(source.join("images/one"), vec![7; 100_000]).unwrap();
    std::fs::write(source.join("notes"), "first").unwrap();
    let before = describe(&source);
    let first = world.backup();
    assert_eq!(first["kind"], "full", "{first}");
    assert_eq!(first["kind_reason"], Value::Null, "{first}");
    assert_eq!(first["read_count"], 2, "{first}");
    let listed = world.pitr(&["files", "ls", "up", "images"]).succeed();
    listed.expect_stdout("images/one").expect_stdout("100000");

    std::fs::write(source.join("notes"), "second").unwrap();
    std::fs::write(source.join("new"), "new").unwrap();
    let after = describe(&source);
    let second = world.backup();
    assert_eq!(second["kind"], "incremental", "{second}");
    assert_eq!(second["prior"], first["id"], "{second}");
    assert_eq!(
        (&second["read_count"], &second["unchanged_count"]),
        (&2.into(), &1.into()),
        "{second}"
    );
    world.gives(id(&first), &before, "the first");
    world.gives(id(&second), &after, "the second");

    let cat = world.pitr(&["files", "cat", "up", "notes", "--backup", id(&first)]);
    assert_eq!(cat.succeed().stdout, "first");
    let find = world
        .pitr(&["files", "find", "up", "note*", "--json"])
        .run();
    let found = find.success().json()["found"].clone();
    assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
    assert_eq!(found[0]["backup"], second["id"], "{found}");
    let diff = world.pitr(&["files", "diff", "up", id(&first)]).run();
    let lines: Vec<_> = diff.success().stdout.lines().map(line_of_diff).collect();
    assert_eq!(lines, ["+ new", "* notes"]);

    let same = world.backup();
    assert_eq!(same["file_count"], 3, "{same}");
    assert_eq!(
        (&same["read_count"], &same["stored_bytes"]),
        (&0.into(), &0.into())
    );
    world.gives(id(&same), &after, "nothing has changed");

    std::fs::remove_dir_all(source.join("images")).unwrap();
    let third = world.backup();
    assert_eq!(third["file_count"], 2, "{third}");
    world.gives(id(&third), &describe(&source), "without images");
    world.gives(id(&second), &after, "the second again");
    let info = world.pitr(&["info", "--json"]).run().json();
    assert_eq!(info["scopes"][0]["scope"], "aux/files/up", "{info}");
    let verify = world.pitr(&["verify", "--json"]).succeed().json();
    assert_eq!(verify["scopes"][0]["finding_count"], 0, "{verify}");
    for _ in 0..2 {
        world.pitr(&expire_at_once()).run();
    }
    let left = world.pitr(&["info", "--json"]).run().json();
    let left = left["scopes"][0]["backups"].as_array().unwrap().len();
    assert_eq!(left, 1);
    world.gives(id(&third), &describe(&source), "alone");
}

#[test]
fn a_directory_is_backed_up_and_comes_back() {
    whole_life(&World::on_disk(""));
}

#[test]
fn a_directory_in_an_encrypted_repository_comes_back() {
    let sandbox = Sandbox::on_disk("files");
    whole_life(&World::sealed_on(&sandbox.join("repo"), sandbox));
}

#[test]
fn a_name_that_is_not_configured_is_refused_with_the_line_to_add() {
    let world = World::new("");
    let run = world.pitr(&["files", "backup", "down"]).run();
    run.expect_code(2)
        .expect_stderr("no set of files \"down\" is configured")
        .expect_stderr("[files.down]");
    let run = world.pitr(&["files", "ls", "down"]).run();
    run.expect_code(2)
        .expect_stderr("no repository has a backup of \"down\"");
    let to = path_text(&world.sandbox.dir("full"));
    std::fs::write(world.sandbox.join("full/x"), "x").unwrap();
    world.backup();
    let restore = ["files", "restore", "up", "--to", to.as_str()];
    let run = world.pitr(&restore).run();
    run.expect_code(8).expect_stderr("is not empty");
}

#[test]
fn u103_rules_leave_entries_out_and_are_counted() {
    let rules = "exclude = [\"*.tmp\", \"!keep.tmp\", \"/cache/\"]\nexclude_if_present = [\".nobackup\"]\nexclude_caches = true\nexclude_larger_than = \"1MB\"\n";
    let world = World::new(rules);
    let source = world.source();
    for (name, bytes) in [
        ("a.tmp", &b"x"[..]),
        ("keep.tmp", b"x"),
        ("cache/x", b"x"),
        ("sub/cache/x", b"x"),
        ("skipped/.nobackup", b""),
        ("skipped/x", b"x"),
        (
            "tagged/CACHEDIR.TAG",
            b"Signature: 8a477f597d28d172789f06886806bc55\n",
        ),
        ("tagged/x", b"x"),
        ("untagged/CACHEDIR.TAG", b"Signature: something else"),
        ("large", &vec![1; 2_000_000]),
    ] {
        let place = source.join(name);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, bytes).unwrap();
    }
    let backup = world.backup();
    assert_eq!(backup["excluded_count"], 5, "{backup}");
    let to = world.restored(id(&backup), "back");
    let names = crate::common::files_below(&to);
    assert_eq!(names, ["keep.tmp", "sub/cache/x", "untagged/CACHEDIR.TAG"]);
    assert!(to.join("skipped").is_dir() && to.join("tagged").is_dir());
    // Entries that were left out for their state stay, also where the rules take them by now.
    std::fs::write(source.join("stray"), "x").unwrap();
    let place = path_text(&source);
    let restore = ["files", "restore", "up", "--privileged", "--delta"];
    let more = ["--delete", "--confirm", "--to", &place];
    let delta = [&restore[..], &more].concat();
    let run = world.pitr(&delta).run();
    assert!(!source.join("stray").exists(), "{run}");
    for kept in ["skipped/x", "tagged/x", "large"] {
        assert!(source.join(kept).exists(), "{kept}: {run}");
    }
    std::fs::write(source.join("large"), "small").unwrap();
    std::fs::remove_file(source.join("skipped/.nobackup")).unwrap();
    let run = world.pitr(&delta).run();
    for kept in ["skipped/x", "tagged/x", "large"] {
        assert!(source.join(kept).exists(), "{kept}: {run}");
    }
}
