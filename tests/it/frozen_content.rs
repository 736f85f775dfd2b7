//! Repositories with files, dumps and configuration that an older version wrote (`testdata/repositories/content-*`): verified, listed and restored.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::Digest;

use crate::common::{Cluster, Program, Sandbox, newest_bin, pitr};
use crate::frozen::{fingerprint, without_bytes, without_size};

struct Frozen {
    sandbox: Sandbox,
    source: PathBuf,
    expected: Value,
}

impl Frozen {
    fn new(form: &str) -> Frozen {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories");
        let sandbox = Sandbox::new("frozen");
        let source = root.join(format!("content-{form}"));
        let tar = std::fs::read(source.join("repository.tar")).unwrap();
        let unpack = Program::new("tar").words("-x -C").arg(sandbox.path());
        unpack.stdin(tar).succeed();
        let repository = sandbox.join("repository");
        let mut config = format!(
            "[clusters.main]\n\n[repositories.frozen]\nurl = \"file://{}\"\n",
            repository.display()
        );
        if form.starts_with("encrypted") {
            config += "\n[repositories.frozen.encryption]\n";
            for (key, name) in [("key_file", "ops.key"), ("secrets_key", "secrets/lead.key")] {
                let file = std::fs::read(root.join("keys").join(name)).unwrap();
                let file = sandbox.file(name.rsplit('/').next().unwrap(), file);
                config += &format!("{key} = \"{}\"\n", file.display());
            }
        }
        sandbox.file("pitr.toml", config);
        let expected = std::fs::read(source.join("expected.json")).unwrap();
        Frozen {
            sandbox,
            source,
            expected: serde_json::from_slice(&expected).unwrap(),
        }
    }

    fn pitr(&self, arguments: &[&str]) -> Program {
        let config = self.sandbox.join("pitr.toml");
        pitr().arg("--config").arg(config).args(arguments)
    }

    /// Restores a backup, and returns the folder. Owners are those of the host that made it.
    fn restored(&self, kind: &str, name: &str, id: &str, more: &[&str]) -> PathBuf {
        let to = self.sandbox.join(format!("{kind}-{id}-{}", more.len()));
        let place = to.to_str().unwrap();
        let restore = [kind, "restore", name, "--backup", id, "--to", place];
        let run = self.pitr(&[&restore[..], more].concat()).run();
        assert!([0, 6].contains(&run.code()), "{run}");
        to
    }

    fn backups(&self, kind: &str) -> Vec<(&String, &Value)> {
        self.expected[kind].as_object().unwrap().iter().collect()
    }

    fn verifies_as_expected(&self) {
        let text = |name: &str| std::fs::read_to_string(self.source.join(name)).unwrap();
        let run = self.pitr(&["verify"]).succeed();
        assert_eq!(without_size(&run.stdout), without_size(&text("verify.txt")));
        let expected: Value = serde_json::from_str(&text("verify.json")).unwrap();
        let mut found = self.pitr(&["verify", "--json"]).succeed().json();
        let mut expected = expected;
        for report in [&mut found, &mut expected] {
            // The cluster has neither a backup nor WAL.
            report.as_object_mut().unwrap().remove("clusters").unwrap();
        }
        let found = without_bytes(found, (1, 1));
        assert_eq!(found, without_bytes(expected, (1, 1)), "{found:#}");
    }

    fn files_come_back(&self) {
        let backups = self.backups("files");
        assert_eq!(backups.len(), 2);
        for (id, expected) in backups {
            compare(&self.restored("files", "uploads", id, &[]), expected);
            let sums = ["files", "sums", "uploads", "--backup", id, "--json"];
            let sums = self.pitr(&sums).succeed().json();
            let files = expected.as_object().unwrap().values();
            let files = files.filter(|entry| entry["sha256"].is_string()).count();
            assert_eq!(sums["sums"].as_array().unwrap().len(), files);
        }
        // One directory is taken from the first backup to the second.
        let [first, second] = [0, 1].map(|n| self.backups("files")[n].0.clone());
        let (full, incremental) = match first.ends_with("full") {
            true => (first, second),
            false => (second, first),
        };
        let to = self.restored("files", "uploads", &full, &["--privileged"]);
        let place = to.to_str().unwrap();
        let delta = [
            "files",
            "restore",
            "uploads",
            "--delta",
            "--delete",
            "--confirm",
        ];
        let delta = [&delta[..], &["--backup", &incremental, "--to", place]].concat();
        let run = self.pitr(&delta).run();
        assert!([0, 6].contains(&run.code()), "{run}");
        compare(&to, &self.expected["files"][&incremental]);
    }

    fn configuration_comes_back(&self) {
        let host = self.expected["host"].as_str().unwrap();
        for (id, expected) in self.backups("config") {
            let to = self.restored("config", "host", id, &[]);
            compare(&to.join(&host[1..]), expected);
            let redacted = self.restored("config", "host", id, &["--redacted"]);
            let env = std::fs::read_to_string(redacted.join(&host[1..]).join(".env")).unwrap();
            assert!(env.contains("DB_PASSWORD=«"), "{env}");
        }
    }

    fn dumps_come_back(&self) {
        let server = Cluster::builder(18).without_fsync().start();
        for (id, expected) in self.backups("logical") {
            let program = newest_bin(18, "pg_restore");
            let bin = program.parent().unwrap();
            let conninfo = server.conninfo("postgres");
            let restore = [
                "logical", "restore", "main", "--backup", id, "--create", "--bin",
            ];
            let restore = self.pitr(&restore).arg(bin).args(["--into", &conninfo]);
            restore.succeed();
            let client = server.client_of("app");
            for line in expected.as_array().unwrap() {
                let line = line.as_str().unwrap();
                let (table, _) = line.split_once(':').unwrap();
                assert_eq!(client.value(&fingerprint(table)), line);
            }
        }
    }
}

/// Compares a directory with what `testdata/repositories/make-content` wrote down.
fn compare(root: &Path, expected: &Value) {
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut found = serde_json::Map::new();
    let mut paths = vec![PathBuf::new()];
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let place = root.join(&path);
        let status = place.symlink_metadata().unwrap();
        let shown = match path.as_os_str().as_bytes() {
            b"" => ".".to_owned(),
            path => path.escape_ascii().to_string(),
        };
        let mtime = i128::from(status.mtime()) * 1_000_000_000 + i128::from(status.mtime_nsec());
        let mut entry = serde_json::json!({
            "mode": format!("{:o}", status.mode()),
            "mtime_ns": mtime.to_string(),
        });
        if status.is_symlink() {
            let target = std::fs::read_link(&place).unwrap();
            entry["target"] = target.to_str().unwrap().into();
        } else {
            entry["xattrs"] = xattrs(&place);
        }
        if status.is_file() {
            let content = std::fs::read(&place).unwrap();
            entry["sha256"] = pitr::text::hex(&sha2::Sha256::digest(&content)).into();
            let first = inodes.entry(status.ino()).or_insert_with(|| shown.clone());
            entry["same_as"] = first.clone().into();
        }
        found.insert(shown, entry);
    }
    let found = Value::Object(found);
    assert_eq!(&found, expected, "{found:#}");
}

fn xattrs(place: &Path) -> Value {
    let mut room = vec![0; 4096];
    let length = rustix::fs::listxattr(place, &mut room[..]).unwrap();
    let mut found = serde_json::Map::new();
    for name in room[..length].split(|b| *b == 0) {
        let name = std::str::from_utf8(name).unwrap();
        if name.starts_with("user.") {
            let mut value = vec![0; 4096];
            let length = rustix::fs::getxattr(place, name, &mut value[..]).unwrap();
            found.insert(name.to_owned(), pitr::text::hex(&value[..length]).into());
        }
    }
    Value::Object(found)
}

fn everything_comes_back(form: &str) {
    let frozen = Frozen::new(form);
    frozen.verifies_as_expected();
    let info = frozen.pitr(&["info", "--json"]).run().json();
    let scopes = info["scopes"].as_array().unwrap().iter();
    let mut scopes: Vec<_> = scopes
        .map(|scope| scope["scope"].as_str().unwrap())
        .collect();
    scopes.sort_unstable();
    assert_eq!(
        scopes,
        ["aux/config/host", "aux/files/uploads", "aux/logical/main"]
    );
    frozen.files_come_back();
    frozen.configuration_comes_back();
    frozen.dumps_come_back();
}

#[test]
fn frozen_content_comes_back() {
    everything_comes_back("plain");
    everything_comes_back("plain-2");
}

#[test]
fn frozen_encrypted_content_comes_back() {
    everything_comes_back("encrypted");
    everything_comes_back("encrypted-2");
}
