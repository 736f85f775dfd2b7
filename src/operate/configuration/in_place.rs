//! Configuration files go back to where they were.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::original::{Door, check_count, sealed_files};
use super::{configured, find};
use crate::backup::configuration::NAME;
use crate::config::{ConfigSet, DEFAULT_PATHS};
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::operate::in_place::{self, Replaced, Work};
use crate::operate::rollback::{self, RolledBack};
use crate::operate::session::Session;
use crate::repo::id::BackupId;
use crate::repo::root::aux_root::AuxRoot;
use crate::restore::content::Open;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::reader::Snapshot;
use crate::tree::part::Part;
use crate::tree::replace::journal::Restore;
use crate::tree::replace::{Contents, Target, Wanted};
use crate::tree::settle::Permit;

/// Paths of configuration are those of the host.
const ROOT: &str = "/";

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Name of the set.
    pub name: String,
    /// Which backup; else the newest.
    pub backup: Option<BackupId>,
    /// Globs of the files that are restored; everything without one.
    pub globs: Vec<String>,
    /// Owners and all extended attributes are made, too.
    pub is_privileged: bool,
    /// The key file of a recipient of the secrets pair; else the configured one.
    pub secrets_key: Option<PathBuf>,
    /// Whether the plan is carried out.
    pub is_confirmed: bool,
}

/// Originals, and files that have no secret.
struct Originals<'o, 'a> {
    door: Door<'o>,
    sealed: HashSet<Vec<u8>>,
    root: &'o AuxRoot,
    member: &'o Value,
    snapshot: &'o Snapshot<'a>,
    reader: ContentReader<'o, 'a>,
    host: &'o Host,
}

impl Contents for Originals<'_, '_> {
    fn read(
        &mut self,
        path: &[u8],
        (file, length): (&FileKey, u64),
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if !self.sealed.contains(path) {
            return self.reader.read(file, length, sink);
        }
        let host = self.host;
        let open = Open {
            root: self.root,
            member: self.member,
            snapshot: self.snapshot,
            tick: &mut || host.check_stop(),
        };
        let original = self.door.original(&open, path)?;
        sink(&original.ok_or_else(|| err!(Damaged, "an original is gone"))?)
    }
}

/// Takes configuration files back to a backup, where they lie.
///
/// # Errors
/// `Config` for a set that is not configured here; `Key` without a key that opens an original; `NotFound`; `Damaged`; those of the system.
pub fn restore(session: &Session, asked: &Asked) -> Result<Replaced> {
    let home = home(session, &asked.name)?;
    let stored = find(session, &asked.name, asked.backup.as_ref())?;
    let door = Door::new(&stored, asked.secrets_key.as_ref());
    stored.read(session, |open| {
        let files = sealed_files(&open)?;
        check_count(open.member, files.len())?;
        let part = match asked.globs.is_empty() {
            true => None,
            false => Some(Part::find(open.snapshot, &asked.globs, open.tick)?),
        };
        let wanted = Wanted {
            snapshot: open.snapshot,
            part: part.as_ref(),
            permit: match asked.is_privileged {
                true => Permit::ALL,
                false => Permit::default(),
            },
            // The map has the length of the text without secrets.
            trusts_times: false,
            // Directories on the way are not the set's.
            settles_directories: false,
            removes: None,
        };
        let mut originals = Originals {
            door,
            sealed: files.into_iter().collect(),
            root: open.root,
            member: open.member,
            snapshot: open.snapshot,
            reader: ContentReader::new(open.snapshot),
            host: &session.host,
        };
        let restore = Restore {
            kind: NAME.to_owned(),
            name: asked.name.clone(),
            backup: stored.id.clone(),
            began: session.host.now(),
        };
        let work = Work {
            target: &open_at(&home)?,
            to: &home,
            wanted: &wanted,
            contents: &mut originals,
            restore: Some(restore),
            is_confirmed: asked.is_confirmed,
        };
        in_place::take_back(&session.host, open, work)
    })
}

/// Undoes a restore in place.
///
/// # Errors
/// `Config` for a set that is not configured here; those of [`rollback::run`].
pub fn roll_back(session: &Session, asked: &rollback::Asked) -> Result<RolledBack> {
    let home = home(session, &asked.name)?;
    rollback::undo(session, &open_at(&home)?, &home, asked)
}

fn open_at(home: &Path) -> Result<Target> {
    let below = home.strip_prefix(ROOT).unwrap_or(home);
    Target::open_with_home(Path::new(ROOT), below.as_os_str().as_bytes())
}

/// The directory that has the journal: the lowest one above all paths of the set.
fn home(session: &Session, name: &str) -> Result<PathBuf> {
    let settings = session.settings()?;
    Ok(home_of(configured(&settings, name)?))
}

fn home_of(set: &ConfigSet) -> PathBuf {
    let homes = set.paths.iter().map(|path| match path == DEFAULT_PATHS {
        true => PathBuf::from(ROOT),
        false => directory_of(Path::new(path)),
    });
    homes
        .reduce(|a, b| common(&a, &b))
        .unwrap_or_else(|| ROOT.into())
}

/// The directory that a path is, or lies in; of a pattern the part without a star. Backups have the places that links lead to.
fn directory_of(path: &Path) -> PathBuf {
    let has_no_star =
        |part: &std::path::Component<'_>| !part.as_os_str().as_bytes().contains(&b'*');
    let plain: PathBuf = path.components().take_while(has_no_star).collect();
    let plain = std::fs::canonicalize(&plain).unwrap_or(plain);
    let mut directory = plain.as_path();
    while let Some(above) = directory.parent()
        && !directory.is_dir()
    {
        directory = above;
    }
    directory.to_owned()
}

fn common(a: &Path, b: &Path) -> PathBuf {
    let pairs = a.components().zip(b.components());
    pairs.take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_lies_above_all_paths() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        for name in ["a/b", "c"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("a/file"), "").unwrap();
        let of = |paths: &[&str]| {
            let absolute = |path: &&str| match *path {
                "default" => "default".to_owned(),
                path => folder.join(path).display().to_string(),
            };
            home_of(&ConfigSet {
                paths: paths.iter().map(absolute).collect(),
                ..ConfigSet::default()
            })
        };
        assert_eq!(of(&["a/b"]), folder.join("a/b"));
        assert_eq!(of(&["a/file"]), folder.join("a"));
        assert_eq!(of(&["a/*/x"]), folder.join("a"));
        assert_eq!(of(&["a/gone/x", "a/b"]), folder.join("a"));
        assert_eq!(of(&["a/b", "c"]), folder);
        assert_eq!(of(&["a/b", "default"]), Path::new("/"));
    }
}
