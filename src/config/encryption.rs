//! The configuration of an encrypted repository: the places of its keys, never the keys themselves.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{S3Settings, Secret};

/// `[repositories.NAME.encryption]`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Encryption {
    /// The writer's file: the public half of the key set and its MAC key.
    pub key_set: Option<PathBuf>,
    /// A recipient's private key.
    pub key_file: Option<PathBuf>,
    /// A file with a recipient's passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// A descriptor from which a recipient's passphrase is read.
    pub passphrase_fd: Option<i32>,
    /// A command that prints a recipient's key file: the program as an absolute path, and its arguments. Empty without one.
    pub key_command: Vec<String>,
    /// A command that prints a recipient's passphrase, likewise.
    pub passphrase_command: Vec<String>,
    /// A key of AWS KMS that unwraps a recipient's key file.
    pub kms: Kms,
    /// A recipient's passphrase, from the environment.
    pub passphrase: Option<Secret>,
    /// The recipient that the passphrase belongs to.
    pub recipient: Option<String>,
    /// The directory in which a host that only writes keeps parts of its objects, absolute; else `state` below the caches.
    pub state_dir: Option<PathBuf>,
    /// The file of the secrets pair: its public half and the key of tokens.
    pub secrets: Option<PathBuf>,
    /// The private key of a recipient of the secrets pair.
    pub secrets_key: Option<PathBuf>,
}

/// `kms` of `[repositories.NAME.encryption]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kms {
    /// The id, the ARN or the alias of the key.
    pub key_id: Option<String>,
    /// The key file as the KMS encrypted it.
    pub wrapped_file: Option<PathBuf>,
    /// The way to the KMS and the credentials; the rest of it has no meaning here.
    pub link: S3Settings,
}

impl Encryption {
    /// The files it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = [
            &self.key_set,
            &self.key_file,
            &self.passphrase_file,
            &self.kms.wrapped_file,
            &self.kms.link.credentials_file,
            &self.kms.link.ca_file,
        ];
        files.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Whether it names what opens objects, and not only what seals them.
    pub fn can_read(&self) -> bool {
        self.key_file.is_some() || self.helper().is_some() || self.has_passphrase()
    }

    /// The program or the key of the KMS that is asked for what opens objects, and its key in the configuration.
    pub fn helper(&self) -> Option<(&'static str, &str)> {
        let helpers = [
            ("key_command", self.key_command.first()),
            ("passphrase_command", self.passphrase_command.first()),
            ("kms.key_id", self.kms.key_id.as_ref()),
        ];
        let mut given = helpers
            .into_iter()
            .filter_map(|(key, one)| Some((key, one?)));
        given.next().map(|(key, one)| (key, one.as_str()))
    }

    /// Whether it seals objects with a file, and asks a helper when it opens them.
    pub fn opens_later(&self) -> bool {
        self.key_set.is_some() && self.helper().is_some()
    }

    /// The same without its helpers.
    #[must_use]
    pub fn without_helpers(&self) -> Encryption {
        Encryption {
            key_command: Vec::new(),
            passphrase_command: Vec::new(),
            kms: Kms::default(),
            ..self.clone()
        }
    }

    /// Whether it seals objects and opens none: so does a host that attackers reach first.
    pub fn only_writes(&self) -> bool {
        self.key_set.is_some() && !self.can_read()
    }

    /// Whether it names what proves objects: every key file has the MAC key.
    pub fn can_prove(&self) -> bool {
        self.key_set.is_some() || self.can_read()
    }

    /// Whether there is a passphrase.
    pub fn has_passphrase(&self) -> bool {
        self.passphrase_file.is_some()
            || self.passphrase_fd.is_some()
            || !self.passphrase_command.is_empty()
            || self.passphrase.is_some()
    }

    /// Ways to read that are named; more than one is an error.
    pub(super) fn ways_to_read(&self) -> usize {
        [
            self.key_file.is_some(),
            self.passphrase_file.is_some(),
            self.passphrase_fd.is_some(),
            !self.key_command.is_empty(),
            !self.passphrase_command.is_empty(),
            self.kms.key_id.is_some(),
            self.passphrase.is_some(),
        ]
        .into_iter()
        .filter(|is_there| *is_there)
        .count()
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption")
            .field("key_set", &self.key_set)
            .field("key_file", &self.key_file)
            .field("passphrase_file", &self.passphrase_file)
            .field("passphrase_fd", &self.passphrase_fd)
            .field("key_command", &self.key_command.first())
            .field("passphrase_command", &self.passphrase_command.first())
            .field("kms", &self.kms.key_id)
            .field("recipient", &self.recipient)
            .field("state_dir", &self.state_dir)
            .field("secrets", &self.secrets)
            .field("secrets_key", &self.secrets_key)
            .finish_non_exhaustive()
    }
}
