//! Two repositories with a cluster each, in directories or in a bucket, plain or encrypted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use pitr::backup::content::{Options, take};
use pitr::config::{self, Encryption, Location};
use pitr::error::Result;
use pitr::host::Host;
use pitr::pg::time::TimestampTz;
use pitr::progress::Silent;
use pitr::repo::id::BackupId;
use pitr::repo::repository::Repository;
use pitr::repo::root::aux_root::AuxRoot;
use pitr::repo::scope::Scope;
use pitr::restore::content::read;
use pitr::snapshot::frame::FrameCodec;
use pitr::snapshot::kind::Kind;
use pitr::snapshot::writer;
use pitr::store::Key;

use super::blobs::Blobs;
use crate::common::s3::peer::Peer;
use crate::common::s3::{BUCKET, KEY};
use crate::common::{Cluster, Program, Sandbox, pitr};
use crate::sealed::keygen;

/// The kind of place of the repositories, and whether they are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub in_bucket: bool,
    pub is_sealed: bool,
}

/// All of it.
pub struct World {
    pub form: Form,
    pub sandbox: Sandbox,
    peer: Option<Peer>,
    _cluster: Cluster,
}

/// The scope of these tests.
pub fn scope() -> Scope {
    Scope::aux("test", "blobs").unwrap()
}

/// A host whose clock is ahead by so many hours.
pub fn host(hours: u64) -> Host {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let ahead = Duration::from_secs(3600 * hours);
    Host {
        clock: Arc::new(move || TimestampTz::from_system_time(SystemTime::now() + ahead)),
        random: Arc::new(|| NEXT.fetch_add(1, Ordering::Relaxed)),
        stop: Arc::default(),
        progress: Arc::new(Silent),
        scratch: std::env::temp_dir(),
    }
}

/// Takes a backup of content under a name.
pub fn take_into(repository: &Repository, name: &str, kind: &mut dyn Kind) -> Result<AuxRoot> {
    let host = host(0);
    let mut snapshot = writer::Options::new(FrameCodec::Lz4, 2, host.scratch.clone());
    snapshot.pack_bytes = 1 << 20;
    let options = Options {
        label: "a label".to_owned(),
        snapshot,
        is_full: false,
        takes_over: false,
        began: host.now(),
    };
    take(repository, name, kind, &options, &host).map(|taken| taken.root)
}

impl World {
    pub fn new(form: Form) -> World {
        let sandbox = Sandbox::new("content");
        let cluster = Cluster::builder(17).without_fsync().create();
        let world = World {
            form,
            peer: form.in_bucket.then(Peer::own),
            sandbox,
            _cluster: cluster,
        };
        if form.is_sealed {
            keygen(&world.sandbox.join("keys"), &["ops", "escrow"]).succeed();
        }
        for (host, encryption) in [
            ("all", form.is_sealed.then(|| world.encryption())),
            ("janitor", None),
        ] {
            let text = world.configuration(encryption.as_ref());
            world.sandbox.file(format!("{host}.toml"), text);
        }
        world.pitr("all", &["init", "--quiet"]).succeed();
        world
    }

    fn encryption(&self) -> Encryption {
        let key = |name: &str| Some(self.sandbox.join("keys").join(format!("{name}.key")));
        Encryption {
            key_set: key("writer"),
            key_file: key("ops"),
            ..Encryption::default()
        }
    }

    fn configuration(&self, encryption: Option<&Encryption>) -> String {
        let mut text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n",
            self._cluster.pgdata().display(),
            self._cluster.conninfo("postgres"),
        );
        for name in ["one", "two"] {
            let place = match &self.peer {
                None => format!("url = \"file://{}\"\n", self.sandbox.join(name).display()),
                Some(peer) => format!(
                    "url = \"s3://{BUCKET}/{name}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
                    peer.endpoint(),
                    peer.credentials(&self.sandbox, KEY).display()
                ),
            };
            text.push_str(&format!("[repositories.{name}]\n{place}"));
            if let Some(e) = encryption {
                let path = |p: &Option<PathBuf>| p.as_ref().unwrap().display().to_string();
                text.push_str(&format!(
                    "[repositories.{name}.encryption]\nkey_set = \"{}\"\nkey_file = \"{}\"\n",
                    path(&e.key_set),
                    path(&e.key_file)
                ));
            }
        }
        text
    }

    /// `pitr` with the keys of a host: `all`, or `janitor`, who has none. The test itself writes as root.
    pub fn pitr(&self, host: &str, arguments: &[&str]) -> Program {
        let config = self.sandbox.join(format!("{host}.toml"));
        let program = pitr().arg("--config").arg(config).args(arguments);
        match self.form.in_bucket {
            true => program,
            false => program.privileged(),
        }
    }

    /// A repository, opened in this process with all keys.
    pub fn open(&self, name: &str) -> Repository {
        let mut place = config::Repository::at(match &self.peer {
            None => Location::File(self.sandbox.join(name)),
            Some(_) => Location::S3 {
                bucket: BUCKET.into(),
                prefix: name.into(),
            },
        });
        if let Some(peer) = &self.peer {
            place.s3 = peer.settings(&self.sandbox, KEY);
        }
        place.encryption = self.form.is_sealed.then(|| self.encryption());
        pitr::repo::open(&place, 7).unwrap()
    }

    /// Takes a backup into the first repository.
    pub fn take(&self, blobs: &Blobs) -> Result<AuxRoot> {
        take_into(&self.open("one"), "blobs", &mut blobs.clone())
    }

    /// Restores a backup and returns the blobs.
    pub fn restore(
        &self,
        from: &str,
        id: &BackupId,
    ) -> Result<std::collections::BTreeMap<String, Vec<u8>>> {
        let to = tempfile::tempdir().unwrap();
        let repository = self.open(from);
        let host = host(0);
        read(&repository, (&scope(), id), (&host, host.now()), |open| {
            Blobs::restore(open.snapshot, open.member, to.path())
        })?;
        Ok(Blobs::below(to.path()))
    }

    /// The stored bytes of an object, after `change`; none to remove it.
    pub fn change(&self, repository: &str, key: &Key, change: impl Fn(&mut Vec<u8>) -> bool) {
        match &self.peer {
            None => {
                let path = self.sandbox.join(repository).join(key.as_str());
                let mut bytes = std::fs::read(&path).unwrap();
                let stays = change(&mut bytes);
                std::fs::remove_file(&path).unwrap();
                if stays {
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            Some(peer) => {
                let key = format!("{repository}/{key}");
                let mut bytes = peer.server().object(&key);
                match change(&mut bytes) {
                    true => peer.server().plant(&key, &bytes),
                    false => peer.server().lose(&key),
                }
            }
        }
    }

    /// Removes an object.
    pub fn lose(&self, repository: &str, key: &Key) {
        self.change(repository, key, |_| false);
    }
}
