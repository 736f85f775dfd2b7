//! Configuration files go back to where they were.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::original::{Door, check_count, sealed_files};
use super::{configured, find};
use crate::backup::configuration::{NAME, paths};
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
use crate::secrets::matches;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::reader::Snapshot;
use crate::tree::part::Part;
use crate::tree::replace::depot::Run;
use crate::tree::replace::journal::Restore;
use crate::tree::replace::undo::{Kept, kept_at};
use crate::tree::replace::{Contents, Target, Wanted};
use crate::tree::settle::Permit;

/// Paths of configuration are those of the host.
const ROOT: &str = "/";
/// The reason for which an entry of another path is not made.
const OUTSIDE: &str = "lies outside the paths of the set as it is configured here";

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
    let settings = session.settings()?;
    let set = configured(&settings, &asked.name)?;
    // A restore that was interrupted is undone where it was made.
    let home = home_of_kept(home_of(set), &asked.name, |kept| !kept.is_complete)?;
    let scope = PathScope::of(set);
    let refuses = |path: &[u8], is_directory: bool| {
        let is_refused = !scope.has(path, is_directory);
        is_refused.then_some(OUTSIDE)
    };
    let stored = find(session, &asked.name, asked.backup.as_ref())?;
    let mut door = Door::new(&stored, asked.secrets_key.as_ref());
    stored.read(session, |open| {
        let files = sealed_files(&open)?;
        check_count(open.member, files.len())?;
        let part = match asked.globs.is_empty() {
            true => None,
            false => Some(Part::find(open.snapshot, &asked.globs, open.tick)?),
        };
        if part.is_none() && !asked.is_confirmed {
            // A plan is shown only for what can be carried out: files that are gone here are compared with nothing.
            for path in &files {
                door.original(&open, path)?;
            }
        }
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
            refuses: Some(&refuses),
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
    let settings = session.settings()?;
    let home = home_of(configured(&settings, &asked.name)?);
    let is_wanted = |kept: &Kept| asked.run.as_ref().is_none_or(|run| *run == kept.run);
    let home = home_of_kept(home, &asked.name, is_wanted)?;
    rollback::undo(session, &open_at(&home)?, &home, asked)
}

/// The restores of a set that can be undone.
///
/// # Errors
/// `Config` for a set that is not configured here.
pub fn kept(session: &Session, name: &str) -> Result<Vec<Kept>> {
    let settings = session.settings()?;
    let home = home_of(configured(&settings, name)?);
    // One that we may not read has none of ours.
    let all = home.ancestors().filter_map(|home| kept_at(home).ok());
    let is_of_set = |kept: &Kept| kept.restore.kind == NAME && kept.restore.name == name;
    Ok(all.flatten().filter(is_of_set).collect())
}

/// The directory that has the newest restore of a set which is wanted: `home`, or one above it. A restore makes a configured directory that was lost, and has
/// its journal above it then.
fn home_of_kept(home: PathBuf, name: &str, is_wanted: impl Fn(&Kept) -> bool) -> Result<PathBuf> {
    let mut newest: Option<(Run, &Path)> = None;
    for directory in home.ancestors() {
        // One that we may not read has none of ours.
        let Ok(kept) = kept_at(directory) else {
            continue;
        };
        let kept = kept.into_iter();
        let mut of_set = kept.filter(|kept| kept.restore.kind == NAME && kept.restore.name == name);
        let found = of_set.rfind(|kept| is_wanted(kept));
        if let Some(found) = found
            && newest.as_ref().is_none_or(|(run, _)| *run < found.run)
        {
            newest = Some((found.run, directory));
        }
    }
    let found = newest.map(|(_, directory)| directory.to_owned());
    Ok(found.unwrap_or(home))
}

fn open_at(home: &Path) -> Result<Target> {
    let below = home.strip_prefix(ROOT).unwrap_or(home);
    Target::open_with_home(Path::new(ROOT), below.as_os_str().as_bytes())
}

/// The directory in which a restore has its journal: the lowest one that is there above all paths of the set.
fn home_of(set: &ConfigSet) -> PathBuf {
    let homes = set.paths.iter().map(|path| match path == DEFAULT_PATHS {
        true => PathBuf::from(ROOT),
        false => directory_of(Path::new(path)),
    });
    let home = homes.reduce(|a, b| common(&a, &b));
    home.unwrap_or_else(|| ROOT.into())
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

/// The places that the paths of a set lead to now, and those that its patterns name.
enum PathScope {
    /// The set has files of PostgreSQL's, of pitr's and of the host.
    Everything,
    Paths {
        patterns: Vec<String>,
        places: Vec<PathBuf>,
    },
}

impl PathScope {
    fn of(set: &ConfigSet) -> PathScope {
        if set.paths.iter().any(|path| path == DEFAULT_PATHS) {
            return PathScope::Everything;
        }
        let expanded = set.paths.iter().flat_map(|path| paths::expand(path).found);
        // Backups have a link, and what it leads to.
        let places = expanded.filter_map(|path| std::fs::canonicalize(path).ok());
        PathScope::Paths {
            places: places.collect(),
            patterns: set.paths.clone(),
        }
    }

    /// Whether an entry is one of them or lies below one, or is a directory on the way to one.
    fn has(&self, path: &[u8], is_directory: bool) -> bool {
        let PathScope::Paths { patterns, places } = self else {
            return true;
        };
        let path = Path::new(ROOT).join(OsStr::from_bytes(path));
        let is_place =
            |place: &PathBuf| path.starts_with(place) || (is_directory && place.starts_with(&path));
        places.iter().any(is_place)
            || patterns.iter().any(|pattern| {
                let pattern = Path::new(pattern);
                let is_long = path.components().count() >= pattern.components().count();
                (is_long || is_directory) && agree(pattern, &path)
            })
    }
}

/// Pure: whether a pattern and a path agree in all parts that both have.
fn agree(pattern: &Path, path: &Path) -> bool {
    let mut pairs = pattern.components().zip(path.components());
    pairs.all(|(wanted, part)| {
        let texts = (wanted.as_os_str().to_str(), part.as_os_str().to_str());
        wanted == part || matches!(texts, (Some(wanted), Some(part)) if matches(wanted, part))
    })
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
