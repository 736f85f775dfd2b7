//! A key set gets another pair (decision 0060): objects of both are read side by side, and nothing is rewritten.

mod access;
mod crash;
mod cycle;
mod forgotten;
mod hostile;
mod rivals;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{Cluster, Program, Still, paths_below, user};
use crate::sealed::{Sealed, keygen};

/// The place of the epoch in a head.
const EPOCH_AT: usize = 12;

/// A sealed repository with the recipients ops and escrow, and operators who rotate its key set.
pub struct Rotated {
    pub sealed: Sealed,
    /// Each is a directory of [`Rotated::dir`].
    dirs: Vec<&'static str>,
}

impl Rotated {
    pub fn of(cluster: &Cluster, sealed: Sealed) -> Rotated {
        let rotated = Rotated {
            sealed,
            dirs: vec!["next", "other"],
        };
        rotated.host(
            cluster,
            "operator",
            &rotated.sealed.key("writer"),
            Some("ops"),
        );
        rotated
    }

    /// A key set of a cluster that is shut down.
    pub fn still() -> (Rotated, Still) {
        let still = Still::new(17, 1, 4);
        let sealed = Sealed::new(&still.cluster);
        (Rotated::of(&still.cluster, sealed), still)
    }

    /// Configures a host with a file for hosts, and a recipient's key where it reads.
    pub fn host(&self, cluster: &Cluster, host: &str, writer: &str, reader: Option<&str>) {
        let mut encryption = format!("key_set = \"{writer}\"\n");
        if let Some(reader) = reader {
            encryption.push_str(&format!("key_file = \"{}\"\n", self.sealed.key(reader)));
        }
        self.sealed.configure(cluster, host, &encryption);
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        assert!(self.dirs.contains(&name));
        self.sealed.sandbox.join(name)
    }

    /// The file for hosts that a rotation makes.
    pub fn writer(&self, dir: &str) -> String {
        self.dir(dir).join("writer.key").display().to_string()
    }

    fn public(&self, name: &str) -> String {
        let path = self.sealed.keys.join(format!("{name}.pub"));
        path.display().to_string()
    }

    /// Rotates for some recipients, the last one of whom is proven by its key file.
    pub fn rotate_for(&self, host: &str, dir: &str, names: &[&str], more: &[&str]) -> Program {
        let mut rotate = self.sealed.on(host).words("repo rotate --dir");
        rotate = rotate.arg(self.dir(dir));
        for name in names {
            rotate = rotate.args(["--add", &self.public(name)]);
        }
        let last = names.last().unwrap();
        rotate.args(["--proof", &self.sealed.key(last)]).args(more)
    }

    pub fn rotate(&self, host: &str, dir: &str) -> Program {
        self.rotate_for(host, dir, &["ops", "escrow"], &["--confirm"])
    }

    pub fn take_back(&self, host: &str, dir: &str) -> Program {
        let rotate = self.sealed.on(host).words("repo rotate --dir");
        rotate.arg(self.dir(dir)).words("--take-back --confirm")
    }

    /// Gives another recipient access, whose key file is made with it.
    pub fn add(&self, name: &str) {
        let made = self.sealed.sandbox.join(format!("made-{name}"));
        keygen(&made, &[name]).arg("--pair-only").succeed();
        for end in ["key", "pub"] {
            let file = format!("{name}.{end}");
            std::fs::rename(made.join(&file), self.sealed.keys.join(&file)).unwrap();
        }
        user::own_all(&self.sealed.keys);
        let add = self.rewrap(&["--add", &self.public(name)]);
        add.succeed();
    }

    pub fn rewrap(&self, arguments: &[&str]) -> Program {
        let rewrap = self.sealed.on("operator").words("repo rewrap");
        rewrap.args(arguments)
    }

    /// Names below `keys/<epoch>/` of a repository.
    pub fn recipients(repository: &Path, epoch: u32) -> Vec<String> {
        let folder = repository.join(format!("keys/{epoch}"));
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    pub fn epoch_of(&self, segment: &str) -> u32 {
        epoch(&self.sealed.object(segment))
    }

    /// Adds a second repository of the key set to the configuration of the operator, and makes it with its file.
    pub fn second(&self, host: &str) -> PathBuf {
        let second = self.with_second(host);
        self.sealed.on(host).words("init --quiet").succeed();
        second
    }

    /// The same without making it.
    pub fn with_second(&self, host: &str) -> PathBuf {
        let second = self.sealed.sandbox.join("second");
        let text = std::fs::read_to_string(self.sealed.config(host)).unwrap();
        let (_, encryption) = text.split_once("[repositories.local.encryption]").unwrap();
        let more = format!(
            "[repositories.second]\nurl = \"file://{}\"\n[repositories.second.encryption]{encryption}",
            second.display()
        );
        std::fs::write(self.sealed.config(host), text + &more).unwrap();
        second
    }
}

/// The epoch that a sealed object names.
pub fn epoch(path: &Path) -> u32 {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(b"PITRSEA1"), "{}", path.display());
    u32::from_le_bytes(*bytes[EPOCH_AT..].first_chunk().unwrap())
}

/// How many sealed objects of each of the first two epochs there are.
pub fn epochs(repository: &Path) -> [usize; 2] {
    let sealed = paths_below(repository)
        .into_iter()
        .filter(|path| path.is_file() && std::fs::read(path).unwrap().starts_with(b"PITRSEA1"));
    let mut found = [0; 2];
    for path in sealed {
        found[epoch(&path) as usize - 1] += 1;
    }
    found
}

/// Takes from everybody the right to write to the keys of a repository.
pub fn block(repository: &Path) {
    set_mode(repository, 0o555);
}

pub fn unblock(repository: &Path) {
    set_mode(repository, 0o755);
}

fn set_mode(repository: &Path, mode: u32) {
    let keys = repository.join("keys");
    std::fs::set_permissions(keys, PermissionsExt::from_mode(mode)).unwrap();
}
