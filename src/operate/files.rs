//! Sets of files: a backup of a directory, and its restore.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::session::Session;
use crate::backup::content::{self, Options};
use crate::backup::files::Files;
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxRoot};
use crate::repo::scope::Scope;
use crate::restore::content::{Open, check_empty, read};
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Node, NodeKind};
use crate::snapshot::writer;
use crate::tree::extract::{self, Extracted, Permit};
use crate::tree::walk::Taken;

const KIND: &str = "files";
const MACHINE_ID: &str = "/etc/machine-id";
/// Most threads that read files: more wait for the disk and the threads that compress.
const MOST_READERS: usize = 8;

/// A backup that is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name of the set of files.
    pub name: String,
    /// The operator's text.
    pub label: String,
    /// Everything is stored, whatever an earlier backup has.
    pub is_full: bool,
    /// A name that another source wrote goes on with this one.
    pub takes_over: bool,
    /// Cores that read and compress.
    pub jobs: usize,
    /// Codec of frames.
    pub codec: FrameCodec,
}

/// A backup that was taken.
pub struct Done {
    /// Its root.
    pub root: AuxRoot,
    /// The result of the walk.
    pub taken: Taken,
    /// Why it is a full one though that was not asked for.
    pub why_full: Option<String>,
    /// How many files its prior has, where this one has none.
    pub lost_files: Option<u64>,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
}

/// Takes a backup of a set of files into the first repository.
///
/// # Errors
/// `Usage` for a name that is not configured; `Config` without a repository or an identity; those of [`content::take`].
pub fn backup(session: &Session, wanted: &Wanted) -> Result<Done> {
    let settings = session.settings_with_repositories()?;
    let files = settings.files_named(&wanted.name)?;
    let configured = settings
        .repositories
        .first()
        .ok_or_else(|| err!(Config, "no repository is configured"))?;
    let readers = wanted.jobs.clamp(1, MOST_READERS);
    let mut kind = Files::new(files, identity(files)?, readers)?;
    let repository = session.open(configured)?;
    let mut snapshot =
        writer::Options::new(wanted.codec, wanted.jobs, session.host.scratch.clone());
    // The walk has a sink of its own, and one for names that are gone.
    snapshot.sinks = readers + 2;
    let options = Options {
        label: wanted.label.clone(),
        snapshot,
        is_full: wanted.is_full,
        takes_over: wanted.takes_over,
    };
    let started = Instant::now();
    let taken = content::take(&repository, &files.name, &mut kind, &options, &session.host)?;
    let is_empty = taken.root.head.file_count == 0;
    Ok(Done {
        lost_files: taken.prior_files.filter(|files| is_empty && *files > 0),
        root: taken.root,
        taken: kind.taken,
        why_full: taken.why_full,
        repository: configured.name.clone(),
        took: started.elapsed(),
    })
}

/// The identity of a source: the configured one, else that of the machine.
fn identity(files: &config::Files) -> Result<String> {
    if let Some(own) = &files.identity {
        return Ok(own.clone());
    }
    let id = std::fs::read_to_string(MACHINE_ID).unwrap_or_default();
    let id = id.trim_end_matches('\n');
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match id.len() == 32 && id.bytes().all(is_digit) {
        true => Ok(id.to_owned()),
        false => Err(err!(
            Config,
            "{MACHINE_ID} does not tell which machine this is, so two hosts could mix their files under the name \"{}\"",
            files.name
        )
        .hint(format!(
            "Nothing was stored.\nGive the source a name of its own: identity = \"…\" in [files.{}].",
            files.name
        ))),
    }
}

/// The backup that is read.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Its id.
    pub backup: Option<BackupId>,
    /// Else the newest one that had ended by this time, or the newest of all.
    pub by_time: Option<TimestampTz>,
}

/// A chosen backup.
struct Chosen {
    repository: Repository,
    scope: Scope,
    id: BackupId,
}

/// Chooses the backup of a name in the first repository that has a fitting one.
fn choose(session: &Session, name: &str, choice: &Choice) -> Result<Chosen> {
    let settings = session.settings_with_repositories()?;
    let scope = Scope::aux(KIND, name)?;
    let mut failure: Option<Error> = None;
    for configured in &settings.repositories {
        let opened = session.open(configured);
        let found = opened.and_then(|repository| {
            let ids = backups(&repository, &scope)?;
            Ok((fitting(&ids, choice), repository))
        });
        match found {
            Ok((Some(id), repository)) => {
                return Ok(Chosen {
                    repository,
                    scope,
                    id,
                });
            }
            Ok((None, _)) => {}
            Err(e) => {
                session.warn(&format!(
                    "repository \"{}\" is passed over: {e}",
                    configured.name
                ));
                failure.get_or_insert(e);
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        let which = match (&choice.backup, choice.by_time) {
            (Some(id), _) => format!("backup \"{id}\" of \"{name}\""),
            (None, Some(time)) => format!("backup of \"{name}\" that had ended by {time}"),
            (None, None) => format!("backup of \"{name}\""),
        };
        err!(NotFound, "no repository has a {which}").hint("Look what there is: pitr info")
    }))
}

/// The backups of a name, oldest first, with the time at which each ended.
fn backups(repository: &Repository, scope: &Scope) -> Result<Vec<(TimestampTz, BackupId)>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let committed = catalog.committed();
    let mut found: Vec<_> = committed
        .map(|(id, _, backup)| (backup.root.stop_time, id.clone()))
        .collect();
    found.sort();
    Ok(found)
}

/// Pure: the backup that is meant.
fn fitting(backups: &[(TimestampTz, BackupId)], choice: &Choice) -> Option<BackupId> {
    let fits = |(ended, id): &&(TimestampTz, BackupId)| match (&choice.backup, choice.by_time) {
        (Some(wanted), _) => wanted == id,
        (None, Some(time)) => *ended <= time,
        (None, None) => true,
    };
    backups.iter().rfind(fits).map(|(_, id)| id.clone())
}

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct RestoreWanted {
    /// Name of the set of files.
    pub name: String,
    /// Which backup.
    pub choice: Choice,
    /// The directory: it is empty, or does not exist.
    pub to: PathBuf,
    /// The things that any user may not make.
    pub permit: Permit,
    /// How many threads write.
    pub jobs: usize,
}

/// A restore that was made.
pub struct Restored {
    /// The backup's root.
    pub root: AuxRoot,
    /// The result of the extraction.
    pub extracted: Extracted,
    /// How long it took.
    pub took: Duration,
}

/// Restores a backup into an empty directory, which is made where it does not exist.
///
/// # Errors
/// `NotFound`; `Refused` when the directory is not empty; those of [`extract::extract`] and of the store.
pub fn restore(session: &Session, wanted: &RestoreWanted) -> Result<Restored> {
    let started = Instant::now();
    let chosen = choose(session, &wanted.name, &wanted.choice)?;
    make_directory(&wanted.to)?;
    check_empty(&wanted.to)?;
    let place = (&chosen.scope, &chosen.id);
    let host = &session.host;
    read(&chosen.repository, place, host, |open| {
        host.progress
            .phase("restore", Some(open.root.head.size_bytes));
        let (permit, jobs) = (wanted.permit, wanted.jobs);
        let extracted = extract::extract(open.snapshot, &wanted.to, permit, jobs, host)?;
        Ok(Restored {
            root: open.root.clone(),
            extracted,
            took: started.elapsed(),
        })
    })
}

fn make_directory(to: &Path) -> Result<()> {
    match std::fs::create_dir(to) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            let what = format!("create directory \"{}\"", to.display());
            Err(Error::from_io(what, e).with_code(crate::error::Code::TargetWrite))
        }
        _ => Ok(()),
    }
}

/// An entry of a backup.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Path below the source; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `file`, `directory`, `symlink`, `hard_link`, `fifo`, `socket`, `char_device` or `block_device`.
    pub kind: &'static str,
    /// Permissions, octal.
    pub mode: String,
    /// Owner and group, by name where the backup has one.
    pub owner: Option<String>,
    /// Length of a file.
    pub size_bytes: Option<u64>,
    /// Time of modification.
    pub mtime: Option<TimestampTz>,
    /// The target of a link.
    pub target: Option<String>,
    /// Whether it changed while it was read.
    pub unstable: bool,
}

/// Hands the entries of a backup to `see`, in order; with `below` only that entry and what is below it. Returns the backup's id.
///
/// # Errors
/// `NotFound`, also when nothing has the path; `Damaged`; those of `see` and of the store.
pub fn list(
    session: &Session,
    name: &str,
    choice: &Choice,
    below: Option<&str>,
    see: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<BackupId> {
    let chosen = choose(session, name, choice)?;
    let below = below.map(|path| path.trim_matches('/').as_bytes());
    let mut count = 0_u64;
    read(
        &chosen.repository,
        (&chosen.scope, &chosen.id),
        &session.host,
        |open: Open<'_>| {
            for item in open.snapshot.items() {
                session.host.check_stop()?;
                let item = item?;
                let Metadata::Node(node) = &item.metadata else {
                    continue;
                };
                if item.key.is_attachment() || !is_below(&item.path, below) {
                    continue;
                }
                count += 1;
                see(entry(&item.path, node))?;
            }
            Ok(())
        },
    )?;
    match (count, below) {
        (0, Some(path)) => Err(err!(
            NotFound,
            "backup \"{}\" has no \"{}\"",
            chosen.id,
            String::from_utf8_lossy(path)
        )),
        _ => Ok(chosen.id),
    }
}

fn is_below(path: &[u8], below: Option<&[u8]>) -> bool {
    let Some(below) = below.filter(|below| !below.is_empty()) else {
        return true;
    };
    path.strip_prefix(below)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn entry(path: &[u8], node: &Node) -> Entry {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (kind, size_bytes, target) = match &node.kind {
        NodeKind::File(length) => ("file", Some(*length), None),
        NodeKind::Directory => ("directory", None, None),
        NodeKind::Symlink(target) => ("symlink", None, Some(text(target))),
        NodeKind::Fifo => ("fifo", None, None),
        NodeKind::Socket => ("socket", None, None),
        NodeKind::CharDevice(_) => ("char_device", None, None),
        NodeKind::BlockDevice(_) => ("block_device", None, None),
        NodeKind::HardLink(to) => {
            let to = to.path(crate::snapshot::filekey::Naming::Tree);
            ("hard_link", None, Some(text(&to)))
        }
    };
    let owner = node.owner.as_ref().map(|owner| {
        let shown = |name: &[u8], number: u32| match name.is_empty() {
            true => number.to_string(),
            false => text(name),
        };
        format!(
            "{}:{}",
            shown(&owner.user, owner.uid),
            shown(&owner.group, owner.gid)
        )
    });
    let is_link = matches!(node.kind, NodeKind::HardLink(_));
    Entry {
        path: if path.is_empty() {
            ".".to_owned()
        } else {
            text(path)
        },
        kind,
        mode: format!("{:04o}", node.mode),
        owner,
        size_bytes,
        mtime: TimestampTz::from_unix_seconds(node.mtime.seconds).filter(|_| !is_link),
        target,
        unstable: node.unstable != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_backup_by_a_time_is_taken() {
        let id = |n: u32| {
            format!("2026112{n}T064049Z-00000{n}-full")
                .parse::<BackupId>()
                .unwrap()
        };
        let backups: Vec<_> = (1..4)
            .map(|n| (TimestampTz(i64::from(n) * 10), id(n)))
            .collect();
        let by = |time| {
            let by_time = Some(TimestampTz(time));
            fitting(
                &backups,
                &Choice {
                    backup: None,
                    by_time,
                },
            )
        };
        assert_eq!(fitting(&backups, &Choice::default()), Some(id(3)));
        assert_eq!((by(9), by(10), by(29)), (None, Some(id(1)), Some(id(2))));
        let named = |n| {
            fitting(
                &backups,
                &Choice {
                    backup: Some(id(n)),
                    by_time: None,
                },
            )
        };
        assert_eq!((named(2), named(4)), (Some(id(2)), None));
        assert!(is_below(b"a/b", Some(b"a")) && is_below(b"a", Some(b"a")));
        assert!(!is_below(b"ab", Some(b"a")) && is_below(b"ab", Some(b"")));
    }
}
