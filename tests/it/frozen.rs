//! Repositories that an older version wrote (`testdata/repositories`): read, planned and restored on their own major, rows compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pitr::config::Encryption;
use pitr::error::Result;
use pitr::repo::repository::Repository;
use pitr::repo::scope::Scope;
use pitr::restore::content::read;
use pitr::snapshot::filekey::FileKey;
use pitr::snapshot::kind::{Kind, Produced, Work};
use pitr::snapshot::node::{Device, Moment, Node, NodeKind, Owner};
use pitr::store::file::FileStore;
use serde_json::Value;

use crate::common::{Cluster, Program, Sandbox, files_below, keep_one, pitr};
use crate::content::blobs::Blobs;
use crate::content::world::{host, scope, take_into};
use crate::per_major;

/// Name and number of backups of the repositories that were frozen together.
struct Generation {
    forms: [&'static str; 2],
    backups: usize,
    timelines: usize,
    scopes: &'static [&'static str],
}

const FIRST: Generation = Generation {
    forms: ["plain", "encrypted"],
    backups: 2,
    timelines: 2,
    scopes: &[],
};

const SECOND: Generation = Generation {
    forms: ["plain-2", "encrypted-2"],
    backups: 4,
    timelines: 3,
    scopes: &[UNKNOWN, "aux/test/blobs"],
};

/// Content of a kind that no program knows.
const UNKNOWN: &str = "aux/later/blobs";

/// A copy of a frozen repository, and a configuration that reads it.
pub struct Frozen {
    major: u32,
    is_encrypted: bool,
    sandbox: Sandbox,
    source: PathBuf,
}

impl Frozen {
    pub fn new(major: u32, form: &str) -> Frozen {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories");
        let sandbox = Sandbox::new("frozen");
        let source = root.join(format!("pg{major}-{form}"));
        let tar = std::fs::read(source.join("repository.tar")).unwrap();
        Program::new("tar")
            .words("-x -C")
            .arg(sandbox.path())
            .stdin(tar)
            .succeed();
        let mut config = format!(
            "[clusters.main]\n\n[repositories.frozen]\nurl = \"file://{}\"\n",
            sandbox.join("repository").display()
        );
        let is_encrypted = form.starts_with("encrypted");
        if is_encrypted {
            let key = std::fs::read(root.join("keys/ops.key")).unwrap();
            let key = sandbox.file("ops.key", key);
            config += &format!(
                "\n[repositories.frozen.encryption]\nkey_file = \"{}\"\n",
                key.display()
            );
        }
        sandbox.file("pitr.toml", config);
        Frozen {
            major,
            is_encrypted,
            sandbox,
            source,
        }
    }

    /// Returns the folder of the copy: `repository`, `pitr.toml`, and `ops.key` of an encrypted one.
    pub fn path(&self) -> &Path {
        self.sandbox.path()
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    pub fn pitr(&self) -> Program {
        let config = self.sandbox.join("pitr.toml");
        pitr().arg("--config").arg(config)
    }

    fn expected(&self, name: &str) -> String {
        std::fs::read_to_string(self.source.join(name)).unwrap()
    }

    fn moments(&self) -> Vec<Value> {
        serde_json::from_str(&self.expected("moments.json")).unwrap()
    }

    fn verifies_as_expected(&self) {
        let run = self.pitr().arg("verify").succeed();
        assert_eq!(
            without_size(&run.stdout),
            without_size(&self.expected("verify.txt"))
        );
        let run = self.pitr().words("verify --json").succeed();
        let expected = serde_json::from_str(&self.expected("verify.json")).unwrap();
        let least = (1 << 20, 30);
        let (found, expected) = (
            without_bytes(run.json(), least),
            without_bytes(expected, least),
        );
        assert_eq!(found, expected, "{found:#}");
    }

    /// Lists content, copies it, and deletes none of a kind that it does not know. The backups of the known kind come back.
    fn keeps_content(&self, scopes: &[&str]) {
        let info = self.pitr().words("info --json").run().json();
        let shown = info["scopes"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = shown.iter().map(|s| s["scope"].as_str().unwrap()).collect();
        assert_eq!(names, scopes);
        let Some(known) = shown.get(1) else { return };
        let backups = known["backups"].as_array().unwrap();
        for (version, backup) in (1..).zip(backups) {
            let id = backup["id"].as_str().unwrap().parse().unwrap();
            let to = self.sandbox.dir(format!("blobs-{version}"));
            let host = host(0);
            let at = (&host, host.now());
            read(&self.open(), (&scope(), &id), at, |open| {
                Blobs::restore(open.snapshot, open.member, &to)
            })
            .unwrap();
            assert_eq!(Blobs::below(&to), Blobs::small("here", version).content);
        }
        let unknown = objects_of_unknown(&self.sandbox.join("repository"));
        self.create_copy();
        let config = self.with_copy();
        let with_copy = |args: &[&str]| pitr().arg("--config").arg(&config).args(args).privileged();
        let sync = ["repo", "sync", "--from", "frozen", "--to", "copy"];
        with_copy(&sync).succeed();
        assert_eq!(objects_of_unknown(&self.sandbox.join("copy")), unknown);
        let expire = [
            "--grace",
            "0s",
            "--confirm-burst",
            "--confirm",
            "--json",
            "--repository",
            "frozen",
        ];
        for _ in 0..2 {
            let scopes = with_copy(&keep_one(&expire)).run().json()["scopes"].clone();
            assert_eq!(scopes[0]["scope"], UNKNOWN, "{scopes:#}");
            assert!(
                scopes[0]["withheld"].to_string().contains("does not know"),
                "{scopes:#}"
            );
        }
        let left = self.pitr().words("info --json").run().json();
        assert_eq!(left["scopes"][1]["backups"].as_array().unwrap().len(), 1);
        assert_eq!(
            objects_of_unknown(&self.sandbox.join("repository")),
            unknown
        );
    }

    /// A configuration with all keys, and an empty repository beside the frozen one.
    fn with_copy(&self) -> PathBuf {
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories/keys");
        let mut config = "[clusters.main]\n".to_owned();
        for (name, folder) in [("frozen", "repository"), ("copy", "copy")] {
            let folder = self.sandbox.join(folder);
            config += &format!(
                "\n[repositories.{name}]\nurl = \"file://{}\"\n",
                folder.display()
            );
            if self.is_encrypted {
                config += &format!("\n[repositories.{name}.encryption]\n");
                for (key, file) in [("key_set", "writer.key"), ("key_file", "ops.key")] {
                    let key_file = self
                        .sandbox
                        .file(file, std::fs::read(keys.join(file)).unwrap());
                    config += &format!("{key} = \"{}\"\n", key_file.display());
                }
            }
        }
        self.sandbox.file("both.toml", config)
    }

    /// An empty repository with the keys of this one.
    fn create_copy(&self) {
        let (from, to) = (self.sandbox.join("repository"), self.sandbox.dir("copy"));
        if self.is_encrypted {
            let copy = Program::new("cp").arg("-r").arg(from.join("keys"));
            copy.arg(&to).privileged().succeed();
        }
        let store = Box::new(FileStore::open(&to, 7).unwrap());
        let key_set = self.open().marker().key_set.clone();
        let now = host(0).now();
        Repository::create_with(store, 7, now, key_set, self.keys().as_ref()).unwrap();
    }

    fn keys(&self) -> Option<Encryption> {
        self.is_encrypted.then(|| Encryption {
            key_file: Some(self.sandbox.join("ops.key")),
            ..Encryption::default()
        })
    }

    fn open(&self) -> Repository {
        let store = FileStore::open(&self.sandbox.join("repository"), 7).unwrap();
        Repository::open_with(Box::new(store), self.keys().as_ref()).unwrap()
    }

    /// Restores to a moment, starts the server and compares what the tables hold.
    fn restores(&self, number: usize, moment: &Value) {
        let to = self.sandbox.join(format!("moment-{number}"));
        let restore = self.pitr().restore_to(&to).arg("--quiet");
        restore.args(arguments(moment)).succeed();
        let copy = Cluster::open(self.major, &to).without_fsync().promoted();
        for line in moment["tables"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            let (table, _) = line.split_once(':').unwrap();
            let found = copy.value(&fingerprint(table));
            assert_eq!(found, line, "{moment:#}");
        }
    }
}

/// A query for what a table holds, as `testdata/repositories/make` writes it down.
pub fn fingerprint(table: &str) -> String {
    format!(
        "select '{table}: ' || count(*) || ' rows, md5 ' || md5(coalesce(string_agg(t::text, ';' order by t::text collate \"C\"), '')) from {table} t"
    )
}

/// The objects of the unknown kind in a repository, without events.
fn objects_of_unknown(repository: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = files_below(&repository.join(UNKNOWN)).into_iter();
    let names = names.filter(|name| !name.starts_with("events/"));
    let read = |name: String| {
        let bytes = std::fs::read(repository.join(UNKNOWN).join(&name)).unwrap();
        (name, bytes)
    };
    names.map(read).collect()
}

fn arguments(moment: &Value) -> Vec<&str> {
    let arguments = moment["arguments"].as_array().unwrap();
    arguments.iter().map(|a| a.as_str().unwrap()).collect()
}

/// How much is read of how many objects is no promise, for verify adds events: "2.3 MiB read in 40 objects".
pub fn without_size(text: &str) -> String {
    let without = |line: &str| match line.split_once(" read in ") {
        None => line.to_owned(),
        Some((before, after)) => {
            let (name, _) = before.rsplit_once(": ").unwrap();
            let (_, after) = after.split_once(" objects").unwrap();
            format!("{name}:{after}")
        }
    };
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// A report without what is no promise, once the first scope in it has at least so many bytes and objects.
pub fn without_bytes(mut report: Value, least: (u64, u64)) -> Value {
    let mut least = Some(least);
    for list in ["clusters", "scopes"] {
        let shown = report.get_mut(list).and_then(Value::as_array_mut);
        for one in shown.into_iter().flatten() {
            let (bytes, objects) = least.take().unwrap_or((1, 1));
            assert!(one["read_bytes"].take().as_u64().unwrap() >= bytes);
            assert!(one["objects"].take().as_u64().unwrap() >= objects);
            // A newer version says besides how much was read back: everything.
            if let Some(read_back) = one.as_object_mut().unwrap().remove("read_back") {
                assert_eq!(read_back["packs"], read_back["packs_read"]);
                assert_eq!(read_back["segments"], read_back["segments_read"]);
            }
        }
    }
    report
}

fn read_planned_and_restored(major: u32, generation: &Generation) {
    for form in generation.forms {
        let frozen = Frozen::new(major, form);
        frozen.verifies_as_expected();
        let info = frozen.pitr().words("info --json").run();
        let backups = info.json()["clusters"][0]["backups"].clone();
        let count = backups.as_array().map(Vec::len);
        assert_eq!(count, Some(generation.backups), "{info}");
        let moments = frozen.moments();
        for moment in &moments {
            let plan = frozen.pitr().words("plan --json");
            let plan = plan.args(arguments(moment)).succeed().json();
            assert_eq!(plan["reachable"], true, "{moment:#} {plan:#}");
        }
        // The last moment of each timeline, and of the life that lost its fork.
        let life = |moment: &Value| {
            let is_as_stored = arguments(moment).contains(&"--as-stored");
            (moment["timeline"].as_u64().unwrap(), is_as_stored)
        };
        let last: BTreeMap<_, _> = moments.iter().map(|m| (life(m), m)).collect();
        let timelines: BTreeSet<_> = last.keys().map(|(timeline, _)| timeline).collect();
        assert_eq!(timelines.len(), generation.timelines);
        for (number, moment) in last.values().enumerate() {
            frozen.restores(number, moment);
        }
        frozen.keeps_content(generation.scopes);
    }
}

fn a_frozen_repository_is_read_planned_and_restored(major: u32) {
    read_planned_and_restored(major, &FIRST);
}
per_major!(a_frozen_repository_is_read_planned_and_restored, v13 v18);

fn a_frozen_repository_with_content_is_read_planned_and_restored(major: u32) {
    read_planned_and_restored(major, &SECOND);
}
per_major!(a_frozen_repository_with_content_is_read_planned_and_restored, v13 v19);

/// Nodes of every type, and a few blobs, as a later program might store them.
struct Later(Blobs);

impl Kind for Later {
    fn name(&self) -> &'static str {
        "later"
    }

    fn identity(&self) -> Option<String> {
        self.0.identity()
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let sink = work.writer.sink();
        let key = |name: &str| FileKey::from_path(name.as_bytes(), work.naming);
        for (name, node) in nodes(&key("small/1")?) {
            sink.node(&key(name)?, node)?;
        }
        sink.finish()?;
        self.0.produce(work)
    }
}

fn nodes(file: &FileKey) -> Vec<(&'static str, Node)> {
    let mtime = Moment {
        seconds: 1_795_153_249,
        nanoseconds: 123_456_789,
    };
    let node = |kind| Node::new(kind, 0o640, mtime);
    let owner = Owner {
        uid: 33,
        gid: 33,
        user: b"www-data".to_vec(),
        group: b"www-data".to_vec(),
    };
    let device = Device { major: 1, minor: 3 };
    vec![
        ("device", node(NodeKind::CharDevice(device))),
        (
            "hard",
            Node::new(NodeKind::HardLink(file.clone()), 0, mtime),
        ),
        ("pipe", node(NodeKind::Fifo)),
        ("socket", node(NodeKind::Socket)),
        (
            "symlink",
            Node {
                owner: Some(owner),
                xattrs: vec![(b"user.origin".to_vec(), b"here".to_vec())],
                ..node(NodeKind::Symlink(b"small/1".to_vec()))
            },
        ),
    ]
}

/// Writes the content of a frozen repository: of the one that `FROZEN_CONTENT` names for `testdata/repositories/make`, else of an older one.
#[test]
fn content_is_frozen() {
    let asked = std::env::var_os("FROZEN_CONTENT").map(PathBuf::from);
    let older = asked.is_none().then(|| Frozen::new(18, "plain"));
    let keys = std::env::var_os("FROZEN_KEYS").map(PathBuf::from);
    let encryption = keys.map(|keys| Encryption {
        key_set: Some(keys.join("writer.key")),
        key_file: Some(keys.join("ops.key")),
        ..Encryption::default()
    });
    let folder = asked.unwrap_or_else(|| older.as_ref().unwrap().path().join("repository"));
    let store = FileStore::open(&folder, 7).unwrap();
    let repository = Repository::open_with(Box::new(store), encryption.as_ref()).unwrap();
    for version in [1, 2] {
        take_into(&repository, "blobs", &mut Blobs::small("here", version)).unwrap();
    }
    take_into(&repository, "blobs", &mut Later(Blobs::small("here", 3))).unwrap();
    let scopes = repository.aux_scopes().unwrap();
    let scopes: Vec<String> = scopes.iter().map(Scope::prefix).collect();
    assert_eq!(scopes, SECOND.scopes);
    if let Some(older) = older {
        older.pitr().arg("verify").succeed();
    }
}
