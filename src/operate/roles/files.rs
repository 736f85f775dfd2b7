//! Owners and modes of the files of a role, as `pitr init --role` prints them: configuration, secrets, directories.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::secret::check_closed;
use crate::config::{Location, Settings};
use crate::error::{Code, Error};
use crate::operate::finding::Findings;
use crate::operate::owner::{Access, User};
use crate::operate::session::Session;

/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;
/// Others may do anything.
const OTHERS: u32 = 0o007;
/// Group and others may do anything.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Looks at every file and directory that the configuration names. One that is not there yet is made closed by whatever needs it.
pub(super) fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    configuration(found, settings);
    secrets(found, settings);
    directories(found, settings, session);
    repositories(found, settings);
}

fn configuration(found: &mut Findings, settings: &Settings) {
    const NAME: &str = "configuration file";
    let Some(path) = &settings.path else { return };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) => return found.error(NAME, &Error::from_io("look at the configuration", e)),
    };
    let mode = mode(&metadata);
    let shown = path.display();
    if mode & OTHERS_WRITE != 0 {
        found.fail(
            NAME,
            format!("mode {mode:04o}"),
            "the file names programs that run as this user, and others may change it",
            format!("chmod 640 {shown}"),
        );
    } else if mode & OTHERS != 0 {
        found.warn(
            NAME,
            format!("mode {mode:04o}"),
            "every user of the host reads where the backups lie and which accounts reach them",
            format!("chmod 640 {shown}, and give it the group of the role: chgrp GROUP {shown}"),
        );
    } else if !is_own_or_roots(&metadata) {
        found.warn(
            NAME,
            format!("of user {}", metadata.uid()),
            "its owner decides which programs run as this user",
            format!("chown root {shown}"),
        );
    } else {
        found.ok(NAME, format!("mode {mode:04o}"));
    }
}

fn secrets(found: &mut Findings, settings: &Settings) {
    let user = User::of_process();
    let files = files_of_secrets(settings);
    let before = found.all.len();
    for path in &files {
        let name = path.display().to_string();
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(e) => {
                found.error(&name, &Error::from_io("look at a file with a secret", e));
                continue;
            }
        };
        if let Err(e) = check_closed(Code::Config, "file with a secret", path, &metadata) {
            found.error(&name, &e);
        } else if let Some(at) = user.kept_out_by(path, Access::Read) {
            found.fail(
                &name,
                "cannot be read",
                format!(
                    "user \"{}\" is kept out by \"{}\"",
                    user.name(),
                    at.display()
                ),
                format!("chown {} {}", user.name(), at.display()),
            );
        }
    }
    if found.all.len() == before {
        found.ok(
            "files with secrets",
            format!("{}, closed to others", files.len()),
        );
    }
}

/// The files that hold a key, a password or a token. Certificates and lists of hosts are none.
fn files_of_secrets(settings: &Settings) -> Vec<PathBuf> {
    let mut files: Vec<Option<&PathBuf>> = vec![
        settings.page.token_file.as_ref(),
        settings.agent.tls.key_file.as_ref(),
    ];
    for one in &settings.repositories {
        files.extend([
            one.s3.credentials_file.as_ref(),
            one.sftp.key_file.as_ref(),
            one.sftp.passphrase_file.as_ref(),
        ]);
        if let Some(keys) = &one.encryption {
            files.extend([
                keys.key_set.as_ref(),
                keys.key_file.as_ref(),
                keys.passphrase_file.as_ref(),
                keys.kms.link.credentials_file.as_ref(),
                keys.secrets.as_ref(),
                keys.secrets_key.as_ref(),
            ]);
        }
    }
    for redis in &settings.redis {
        for access in [&redis.access, &redis.sentinel.access] {
            files.extend([access.password_file.as_ref(), access.tls.key_file.as_ref()]);
        }
    }
    for sink in &settings.alerts {
        files.extend([
            sink.url_file.as_ref(),
            sink.key_file.as_ref(),
            sink.password_file.as_ref(),
        ]);
    }
    let mut files: Vec<PathBuf> = files.into_iter().flatten().cloned().collect();
    files.sort();
    files.dedup();
    files
}

fn directories(found: &mut Findings, settings: &Settings, session: &Session) {
    let common = [
        ("state_dir", settings.state_dir(&session.environment)),
        ("cache_dir", session.environment.cache_dir()),
    ];
    let of_clusters = settings.clusters.iter().flat_map(|cluster| {
        [
            ("cache_dir", cluster.cache_dir.clone()),
            ("spool_dir", cluster.spool_dir.clone()),
        ]
    });
    let repositories = settings.repositories.iter();
    let of_keys = repositories.filter_map(|one| one.encryption.as_ref());
    let of_keys = of_keys.map(|keys| ("state_dir of encryption", keys.state_dir.clone()));
    let mut seen = Vec::new();
    for (name, path) in common.into_iter().chain(of_clusters).chain(of_keys) {
        let Some(path) = path.filter(|path| !seen.contains(path)) else {
            continue;
        };
        directory(found, name, &path);
        seen.push(path);
    }
}

fn directory(found: &mut Findings, name: &str, path: &Path) {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => {
            return found.error(
                name,
                &Error::from_io(format!("look at \"{}\"", path.display()), e),
            );
        }
    };
    let mode = mode(&metadata);
    let value = format!("{}, mode {mode:04o}", path.display());
    if mode & GROUP_AND_OTHERS != 0 {
        found.warn(
            name,
            value,
            "it holds what this host remembers, and other users may enter it",
            format!("chmod 700 {}", path.display()),
        );
    } else if !is_own_or_roots(&metadata) {
        found.warn(
            name,
            format!("{value}, of user {}", metadata.uid()),
            "another user than the one that runs this owns it",
            "run pitr as its owner, or name another directory",
        );
    } else {
        found.ok(name, value);
    }
}

/// Looks at the modes of repositories in directories of this host. Whether this user creates and deletes there was tried.
fn repositories(found: &mut Findings, settings: &Settings) {
    for one in &settings.repositories {
        let Location::File(path) = &one.location else {
            continue;
        };
        let name = format!("directory of {}", one.name);
        match std::fs::metadata(path) {
            Ok(metadata) if mode(&metadata) & (OTHERS | OTHERS_WRITE) != 0 => found.warn(
                &name,
                format!("mode {:04o}", mode(&metadata)),
                "other users of the host may enter it: without encryption they read the data, and with the right to write they delete it",
                format!("chmod 750 {}", path.display()),
            ),
            Ok(metadata) => found.ok(&name, format!("mode {:04o}", mode(&metadata))),
            Err(e) => found.error(&name, &Error::from_io("look at the directory", e)),
        }
    }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// Whether a file belongs to this user or to root; root looks for whichever user runs pitr.
fn is_own_or_roots(metadata: &Metadata) -> bool {
    let own = rustix::process::geteuid();
    own.is_root() || [own.as_raw(), 0].contains(&metadata.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Encryption, Environment, Flags, Location, Repository};

    #[test]
    fn credentials_of_the_kms_are_a_secret() {
        let mut repository = Repository::at(Location::File("/a".into()));
        let mut encryption = Encryption::default();
        encryption.kms.link.credentials_file = Some("/etc/pitr/kms".into());
        repository.encryption = Some(encryption);
        let mut settings = Settings::readable(&Flags::default(), &Environment::default());
        settings.repositories = vec![repository];
        let files = files_of_secrets(&settings);
        assert_eq!(files, [PathBuf::from("/etc/pitr/kms")]);
    }
}
