//! The repository of a history: a directory or a bucket, plain or encrypted.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::mount::{Rights, SmallDisk, rights};
use crate::common::s3::peer::{Peer, keys};
use crate::common::s3::{Fault, Fired, KEY, S3Server};
use crate::common::{Cluster, Program, Sandbox, files_below, pitr, pitr_archive};
use crate::sealed::keygen;

/// Names of the two hosts that have the key set: one has the private half, too.
pub const READER: &str = "reader";
/// A host that cannot read back what it wrote.
pub const WRITER: &str = "writer";
/// A host without any key.
const JANITOR: &str = "janitor";

/// The objects of one cluster, and the configurations of the hosts that reach them.
pub struct Home {
    pub sandbox: Sandbox,
    pub is_encrypted: bool,
    /// The bucket's server; where there is none the repository is a directory.
    bucket: Option<Peer>,
    /// The filesystem of a directory, where this test may mount.
    disk: Option<SmallDisk>,
}

/// Room on the filesystem of a directory.
const ROOM: u64 = 4 << 30;

/// An object that was taken away, to be put back.
pub struct Hidden {
    key: String,
    bytes: Vec<u8>,
}

impl Home {
    /// Initializes a repository for a cluster that is not running.
    pub fn new(cluster: &Cluster, in_bucket: bool, is_encrypted: bool) -> Home {
        let may_mount = !in_bucket && matches!(rights(), Rights::Here);
        let home = Home {
            sandbox: Sandbox::new("home"),
            is_encrypted,
            bucket: in_bucket.then(Peer::own),
            disk: may_mount.then(|| SmallDisk::new(4096, 1_000_000)),
        };
        let keys = home.sandbox.join("keys");
        let state = home.sandbox.dir("host").join("state");
        let key = |name: &str| keys.join(format!("{name}.key")).display().to_string();
        if is_encrypted {
            keygen(&keys, &["ops", "escrow"]).succeed();
        }
        let hosts = [
            (READER, format!("key_file = \"{}\"", key("ops"))),
            (
                WRITER,
                format!(
                    "key_set = \"{}\"\nstate_dir = \"{}\"",
                    key("writer"),
                    state.display()
                ),
            ),
            (JANITOR, String::new()),
        ];
        for (host, encryption) in hosts {
            let mut text = home.configuration(cluster);
            if is_encrypted && !encryption.is_empty() {
                text += &format!("[repositories.main.encryption]\n{encryption}\n");
            }
            home.sandbox.file(format!("{host}.toml"), text);
        }
        home.on(home.archiver()).words("init --quiet").succeed();
        home
    }

    fn configuration(&self, cluster: &Cluster) -> String {
        let place = match &self.bucket {
            None => format!("url = \"file://{}\"\n", self.directory().display()),
            Some(peer) => format!(
                "url = \"s3://{}/pg\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
                peer.bucket,
                peer.endpoint(),
                peer.credentials(&self.sandbox, KEY).display()
            ),
        };
        format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[repositories.main]\n{place}",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
        )
    }

    /// Lets a cluster that is not running archive into it.
    pub fn attach(&self, cluster: &Cluster) {
        let archive = pitr_archive()
            .arg("--config")
            .arg(self.config(self.archiver()));
        cluster.append_config("archive_mode", "on");
        cluster.append_config("archive_command", &archive.arg("%p").shell());
    }

    /// Adds a section to the configuration of each host.
    pub fn configure(&self, section: &str) {
        for host in [READER, WRITER, JANITOR] {
            let path = self.config(host);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text + section).unwrap();
        }
    }

    /// The server of the bucket.
    pub fn server(&self) -> &S3Server {
        self.bucket.as_ref().expect("a bucket").server()
    }

    /// The host on which the server archives.
    fn archiver(&self) -> &'static str {
        if self.is_encrypted { WRITER } else { READER }
    }

    fn config(&self, host: &str) -> PathBuf {
        self.sandbox.join(format!("{host}.toml"))
    }

    /// `pitr` on one of the hosts.
    pub fn on(&self, host: &str) -> Program {
        pitr().arg("--config").arg(self.config(host))
    }

    /// `pitr` on a host that may read everything.
    pub fn pitr(&self) -> Program {
        self.on(READER)
    }

    /// `pitr` on a host without keys, where there are any.
    pub fn janitor(&self) -> Program {
        self.on(if self.is_encrypted { JANITOR } else { READER })
    }

    /// The repository's directory, where it is not in a bucket.
    pub fn directory(&self) -> PathBuf {
        let around = self.disk.as_ref().map(SmallDisk::path);
        around.unwrap_or(self.sandbox.path()).join("repo")
    }

    /// Whether the directory has a filesystem of its own, which can get full.
    pub fn can_get_full(&self) -> bool {
        self.disk.is_some()
    }

    /// Leaves this much free on the filesystem of the directory; none gives it all its room back.
    pub fn leave_free(&self, bytes: Option<u64>) {
        let disk = self.disk.as_ref().expect("a filesystem of its own");
        disk.leave_free(bytes.unwrap_or(ROOM));
    }

    /// Whether the repository is a directory.
    pub fn is_directory(&self) -> bool {
        self.bucket.is_none()
    }

    pub fn describe(&self) -> String {
        let place = match (self.is_directory(), self.can_get_full()) {
            (true, true) => "a directory that can get full",
            (true, false) => "a directory",
            (false, _) => "a bucket",
        };
        let keys = if self.is_encrypted {
            "encrypted"
        } else {
            "plain"
        };
        format!("{place}, {keys}")
    }

    /// The repository does not answer for a while.
    pub fn away(&self, time: Duration) {
        match &self.bucket {
            None => {
                let here = self.directory();
                let away = here.with_file_name("away");
                std::fs::rename(&here, &away).unwrap();
                std::thread::sleep(time);
                std::fs::rename(&away, &here).unwrap();
            }
            Some(peer) => {
                let server = peer.server();
                server.fault("/bucket", u64::MAX, Fault::Error(503, "SlowDown"));
                std::thread::sleep(time);
                server.heal();
            }
        }
    }

    /// Lets something go wrong with some of the requests behind the first `skip`.
    pub fn disturb(&self, skip: u64, times: u64, fault: Fault) -> Fired {
        self.server().fault_after(skip, "/bucket", times, fault)
    }

    /// Ends every fault.
    pub fn heal(&self) {
        if let Some(peer) = &self.bucket {
            peer.server().heal();
        }
    }

    /// The keys of objects that have this part.
    pub fn objects(&self, part: &str) -> Vec<String> {
        let mut all = match &self.bucket {
            None => files_below(&self.directory()),
            Some(peer) => keys(&peer.store(&self.sandbox, "pg")),
        };
        all.retain(|key| key.contains(part));
        all
    }

    /// Takes an object away.
    pub fn hide(&self, key: &str) -> Hidden {
        let key = key.to_owned();
        let bytes = match &self.bucket {
            None => {
                let path = self.directory().join(&key);
                let bytes = std::fs::read(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                bytes
            }
            Some(peer) => {
                let key = format!("pg/{key}");
                let bytes = peer.server().object(&key);
                peer.server().lose(&key);
                bytes
            }
        };
        Hidden { key, bytes }
    }

    /// Puts it back.
    pub fn show(&self, hidden: &Hidden) {
        match &self.bucket {
            None => {
                let path = self.directory().join(&hidden.key);
                std::fs::write(&path, &hidden.bytes).unwrap();
                crate::common::user::own(&path);
            }
            Some(peer) => peer
                .server()
                .plant(&format!("pg/{}", hidden.key), &hidden.bytes),
        }
    }
}
