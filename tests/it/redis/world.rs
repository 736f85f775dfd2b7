//! A repository, and configurations that lead to servers.

use std::path::{Path, PathBuf};

use super::server::{Server, bin};
use crate::common::s3::KEY;
use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Program, Run, Sandbox, pitr};
use crate::sealed::keygen;

pub struct World {
    pub sandbox: Sandbox,
    /// Repositories are made for a cluster.
    cluster: Cluster,
    /// The sections of the configuration that name keys.
    pub encryption: String,
    /// The bucket's server, where the repository is in one.
    pub peer: Option<Peer>,
    /// The family and version whose programs are on the search path.
    pub installed: &'static str,
}

impl World {
    /// A repository, and `[redis.cache]` for this server.
    pub fn new(server: &Server) -> World {
        let world = World::without_server(server.name, false, None);
        world.configure(&format!("address = \"{}\"", server.address()));
        world.pitr(&["init", "--quiet"]).succeed();
        world
    }

    pub fn sealed(server: &Server) -> World {
        let world = World::without_server(server.name, true, None);
        world.configure(&format!("address = \"{}\"", server.address()));
        world.pitr(&["init", "--quiet"]).succeed();
        world
    }

    /// In a bucket of the tests' own server, encrypted.
    pub fn sealed_in_bucket(server: &Server) -> World {
        let world = World::without_server(server.name, true, Some(Peer::own()));
        world.configure(&format!("address = \"{}\"", server.address()));
        world.pitr(&["init", "--quiet"]).succeed();
        world
    }

    fn without_server(installed: &'static str, is_sealed: bool, peer: Option<Peer>) -> World {
        let sandbox = Sandbox::new("redis");
        let cluster = Cluster::builder(17).without_fsync().create();
        let keys = sandbox.join("keys");
        let mut encryption = String::new();
        if is_sealed {
            keygen(&keys, &["ops", "escrow"]).succeed();
            encryption = format!(
                "[repositories.one.encryption]\nkey_set = \"{0}/writer.key\"\nkey_file = \"{0}/ops.key\"\n",
                keys.display()
            );
        }
        World {
            sandbox,
            cluster,
            encryption,
            installed,
            peer,
        }
    }

    /// Gives `[redis.cache]` these lines.
    pub fn configure(&self, lines: &str) {
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n[repositories.one]\n{}{}[redis.cache]\n{lines}\n",
            self.cluster.pgdata().display(),
            self.place(),
            self.encryption,
        );
        self.sandbox.file("pitr.toml", text);
    }

    /// The lines of the configuration that lead to the repository.
    fn place(&self) -> String {
        match &self.peer {
            None => format!("url = \"file://{}\"\n", self.repository().display()),
            Some(peer) => format!(
                "url = \"s3://{}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
                peer.bucket,
                peer.endpoint(),
                peer.credentials(&self.sandbox, KEY).display()
            ),
        }
    }

    pub fn repository(&self) -> PathBuf {
        self.sandbox.join("one")
    }

    pub fn pitr(&self, arguments: &[&str]) -> Program {
        let path = format!("{}:/usr/bin:/bin", bin(self.installed).display());
        pitr()
            .arg("--config")
            .arg(self.sandbox.join("pitr.toml"))
            .args(arguments)
            .env("PATH", path)
    }

    /// `pitr redis …`.
    pub fn redis(&self, arguments: &[&str]) -> Program {
        self.pitr(&[&["redis"], arguments].concat())
    }

    /// The answer of a command with `--json`.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let run = self.redis(arguments).arg("--json").run();
        run.success().json()
    }

    /// Takes the private half of the keys out of the configuration, or puts it back.
    pub fn hide_private_key(&self, is_hidden: bool) {
        let path = self.sandbox.join("pitr.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let (from, to) = match is_hidden {
            true => ("\nkey_file", "\n#key_file"),
            false => ("\n#key_file", "\nkey_file"),
        };
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// Takes a backup; its JSON.
    pub fn backup(&self) -> serde_json::Value {
        let run = self.redis(&["backup", "cache", "--json"]).succeed();
        run.json()
    }

    /// Restores the newest backup into a new directory of this name.
    pub fn restore(&self, name: &str, more: &[&str]) -> PathBuf {
        let to = self.sandbox.join(name);
        let run = self.restoring(&to, more).succeed();
        run.expect_stdout("finds it valid");
        to
    }

    pub fn restoring(&self, to: &Path, more: &[&str]) -> Program {
        self.redis(&["restore", "cache", "--to"]).arg(to).args(more)
    }

    /// The ids of the backups that exist.
    pub fn ids(&self) -> Vec<String> {
        let json = self.redis(&["ls", "cache", "--json"]).succeed().json();
        let backups = json["backups"].as_array().unwrap().iter();
        backups
            .map(|b| b["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Requires that a backup failed with this status and these words, and left nothing.
    pub fn assert_none(&self, run: Run, status: i32, words: &str) {
        let run = run.expect_code(status).expect_stderr(words);
        assert!(run.stderr.contains("No backup was made"), "{run}");
        assert_eq!(self.ids(), Vec::<String>::new());
    }
}
