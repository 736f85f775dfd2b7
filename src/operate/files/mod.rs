//! Sets of files: a backup of a directory, and its restore.

pub mod bucket;
pub mod copy;
mod hooks;
pub mod replace;
pub(super) mod source;
pub mod watch;

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::counters;
use super::search::{self, Found, Stored};
use super::session::Session;
use crate::backup::content::{self, Options};
use crate::backup::files::{Watched, selection};
use crate::config::{self, Source};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxRoot};
use crate::repo::scope::Scope;
use crate::restore::content::{Open, check_empty, not_made};
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::{Node, NodeKind};
use crate::snapshot::reader::{Items, Snapshot};
use crate::snapshot::writer;
use crate::text::hex;
use crate::tree::explain::{self, Verdict};
use crate::tree::extract::{self, Extracted, Permit};
use crate::tree::left_out::{self, LeftOut};
use crate::tree::part::Part;
use crate::tree::selection::Selection;
use crate::tree::walk::{self, Taken};

const KIND: &str = "files";
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
    /// The watcher that wants it: nothing is left of a backup of a directory that has nothing new.
    pub watched: Option<Watched>,
    /// Cores that read and compress.
    pub jobs: usize,
    pub codec: FrameCodec,
}

/// A backup that was taken.
pub struct Done {
    /// Its root; that of the backup before where nothing is new.
    pub root: AuxRoot,
    /// Whether there is a new backup.
    pub is_new: bool,
    /// The result of the walk.
    pub taken: Taken,
    /// Why it is a full one though that was not asked for.
    pub why_full: Option<String>,
    /// How many files its prior has, where this one has none.
    pub lost_files: Option<u64>,
    /// Facts about a source that is no directory.
    pub source: Option<serde_json::Value>,
    /// Things about the source that the operator should hear of.
    pub warnings: Vec<String>,
    /// Things about the source that the operator may want to know.
    pub notes: Vec<String>,
    /// Why the program after the backup failed.
    pub after: Option<Error>,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
}

/// Takes a backup of a set of files into the first repository.
///
/// # Errors
/// `Usage` for a name that is not configured; `Config` without a repository or an identity; those of the source and of [`content::take`].
pub fn backup(session: &Session, wanted: &Wanted) -> Result<Done> {
    let settings = session.settings_with_repositories()?;
    let files = settings.files_named(&wanted.name)?;
    let component = match files.source {
        config::Source::Git(_) => "git",
        _ => KIND,
    };
    let label = counters::of_content(component, &wanted.name, settings.first_repository()?);
    let work = || backup_counted(session, wanted, &settings, files);
    counters::counted((session, &settings), &label, work, |done| {
        done.root.head.backup_kind
    })
}

fn backup_counted(
    session: &Session,
    wanted: &Wanted,
    settings: &config::Settings,
    files: &config::Files,
) -> Result<Done> {
    let configured = settings.first_repository()?;
    source::check_places(settings, files)?;
    let repository = session.open_for_backup(configured)?;
    let started = Instant::now();
    let _alone = hooks::alone(session, files)?;
    let began = session.host.now();
    let root = hooks::before(files, &session.host);
    let read_from = root.as_ref().ok().cloned().flatten();
    let done = root.and_then(|root| take(session, (&repository, files), (root, began), wanted));
    let after = hooks::after(files, read_from.as_ref(), done.is_ok());
    match (done, after) {
        (Ok(done), after) => Ok(Done {
            repository: configured.name.clone(),
            took: started.elapsed(),
            after: after.err().or(done.after),
            ..done
        }),
        (Err(e), after) => {
            if let Err(after) = after {
                session.warn(&after.to_string());
            }
            Err(e)
        }
    }
}

/// Makes the source ready, and takes it.
fn take(
    session: &Session,
    (repository, files): (&Repository, &config::Files),
    (root, began): (Option<PathBuf>, TimestampTz),
    wanted: &Wanted,
) -> Result<Done> {
    let readers = match &files.source {
        // Requests take their time whatever the host has to do.
        Source::Bucket { .. } => MOST_READERS,
        _ => wanted.jobs.clamp(1, MOST_READERS),
    };
    let is_sealed = repository.marker().key_set.is_some();
    let mut ready = source::make_ready(session, files, root, (is_sealed, readers, wanted.watched))?;
    let mut snapshot =
        writer::Options::new(wanted.codec, wanted.jobs, session.host.scratch.clone());
    snapshot.sinks = walk::sinks(readers);
    let options = Options {
        label: wanted.label.clone(),
        snapshot,
        is_full: wanted.is_full,
        takes_over: wanted.takes_over,
        began,
    };
    let set = ready.set.as_mut();
    let taken = content::take(repository, &files.name, set, &options, &session.host);
    let rest = ready.end_rest();
    if let (Err(rest), Err(_)) = (&rest, &taken) {
        session.warn(&rest.to_string());
    }
    let taken = match &files.source {
        Source::Command => source::explained("the command", taken)?,
        _ => taken?,
    };
    ready.stored();
    ready.warnings.extend(ready.set.warnings());
    let is_empty = taken.root.head.file_count == 0;
    Ok(Done {
        lost_files: taken.prior_files.filter(|files| is_empty && *files > 0),
        root: taken.root,
        is_new: taken.is_new,
        taken: ready.set.taken(),
        source: ready.set.facts(),
        warnings: ready.warnings,
        notes: ready.notes,
        why_full: taken.why_full,
        after: rest.err(),
        repository: String::new(),
        took: Duration::ZERO,
    })
}

/// The backup that is read.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub backup: Option<BackupId>,
    /// Else the newest one that had ended by this time, or the newest of all.
    pub by_time: Option<TimestampTz>,
}

/// A backup of a name, as far as a choice has to know it.
#[derive(Debug, Clone)]
struct Candidate {
    id: BackupId,
    ended: TimestampTz,
    is_damaged: bool,
    is_marked: bool,
}

impl Candidate {
    /// Why another backup is better.
    fn why_not(&self) -> String {
        match self.is_damaged {
            true => "it is damaged, and pitr verify says what of it".to_owned(),
            false => format!(
                "it is marked for deletion, and --backup {} takes it",
                self.id
            ),
        }
    }
}

/// Chooses the backup of a name in the first repository that has a fitting one, those with an undamaged copy first. A newer one that is passed over is a warning.
pub(super) fn choose(session: &Session, name: &str, choice: &Choice) -> Result<Stored> {
    choose_saying(session, name, choice, &|text| session.warn(text))
}

/// As [`choose`]; `passed` hears of a newer one that is passed over.
fn choose_saying(
    session: &Session,
    name: &str,
    choice: &Choice,
    passed: &dyn Fn(&str),
) -> Result<Stored> {
    // The first one that another repository may have a better one than, and the newer one that it stands for.
    let second_best: RefCell<Option<(Candidate, Option<String>)>> = RefCell::new(None);
    let found = search::best(session, (KIND, name), |repository, scope| {
        let all = backups(repository, scope)?;
        let Some(chosen) = fitting(&all, choice) else {
            return Ok(None);
        };
        let newer = passed_over(&all, choice);
        let told = newer.map(|newer| {
            format!(
                "backup \"{}\" is newer than \"{}\", which is taken, and is passed over: {}",
                newer.id,
                chosen.id,
                newer.why_not()
            )
        });
        let mut second_best = second_best.borrow_mut();
        let before = second_best.as_ref().map(|(before, _)| before);
        let is_good = is_better(chosen, newer, before);
        match (is_good, told) {
            (true, Some(told)) => passed(&told),
            (true, None) => {}
            (false, told) => {
                second_best.get_or_insert((chosen.clone(), told));
            }
        }
        Ok(Some(Found {
            id: chosen.id.clone(),
            is_good,
        }))
    })?;
    if found.as_ref().is_some_and(|found| !found.is_good)
        && let Some((taken, newer)) = second_best.into_inner()
    {
        if taken.is_damaged {
            session.warn(&format!(
                "backup \"{}\" is damaged: pitr verify says what of it",
                taken.id
            ));
        }
        if let Some(newer) = newer {
            passed(&newer);
        }
    }
    found.ok_or_else(|| {
        let which = match (&choice.backup, choice.by_time) {
            (Some(id), _) => format!("backup \"{id}\" of \"{name}\""),
            (None, Some(time)) => format!("backup of \"{name}\" that had ended by {time}"),
            (None, None) => format!("backup of \"{name}\""),
        };
        err!(NotFound, "no repository has a {which}").hint("Look what there is: pitr info")
    })
}

/// The backups of a name, oldest first.
fn backups(repository: &Repository, scope: &Scope) -> Result<Vec<Candidate>> {
    let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let committed = catalog.committed();
    let mut found: Vec<_> = committed
        .map(|(id, subject, backup)| Candidate {
            id: id.clone(),
            ended: backup.end(subject.stored),
            is_damaged: !event::damage(&subject.events).is_empty(),
            is_marked: event::is_marked(&subject.events),
        })
        .collect();
    found.sort_by(|a, b| (a.ended, &a.id).cmp(&(b.ended, &b.id)));
    Ok(found)
}

/// Pure: the backup that is meant. One without known damage comes first, then one that is not marked for deletion, then the newest.
fn fitting<'a>(backups: &'a [Candidate], choice: &Choice) -> Option<&'a Candidate> {
    let fitting = all_fitting(backups, choice);
    fitting.max_by_key(|one| (!one.is_damaged, !one.is_marked, one.ended, &one.id))
}

/// Pure: whether a repository's choice is taken, and no other one is asked. Another one may have an undamaged copy of a newer backup. `before` is the choice of an
/// earlier repository that was not taken.
fn is_better(chosen: &Candidate, newer: Option<&Candidate>, before: Option<&Candidate>) -> bool {
    !chosen.is_damaged
        && match before {
            Some(before) => {
                before.is_damaged || (chosen.ended, &chosen.id) > (before.ended, &before.id)
            }
            None => newer.is_none_or(|newer| !newer.is_damaged),
        }
}

/// Pure: the newest backup that fits, where another one is meant.
fn passed_over<'a>(backups: &'a [Candidate], choice: &Choice) -> Option<&'a Candidate> {
    let newest = all_fitting(backups, choice).max_by_key(|one| (one.ended, &one.id))?;
    let chosen = fitting(backups, choice)?;
    (chosen.id != newest.id).then_some(newest)
}

fn all_fitting<'a>(
    backups: &'a [Candidate],
    choice: &Choice,
) -> impl Iterator<Item = &'a Candidate> {
    let fits = move |one: &&Candidate| match (&choice.backup, choice.by_time) {
        (Some(wanted), _) => *wanted == one.id,
        (None, Some(time)) => one.ended <= time,
        (None, None) => true,
    };
    backups.iter().filter(fits)
}

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct RestoreWanted {
    /// Name of the set of files.
    pub name: String,
    /// Which backup.
    pub choice: Choice,
    /// Globs of the entries that are restored; everything without one.
    pub globs: Vec<String>,
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
    /// Examples of what could not be read when the backup was taken: an array of `path`, `part` and `reason`, or null.
    pub not_stored: serde_json::Value,
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
    let host = &session.host;
    chosen.read(session, |open| {
        let part = match wanted.globs.is_empty() {
            true => None,
            false => Some(Part::find(open.snapshot, &wanted.globs, open.tick)?),
        };
        make_directory(&wanted.to, 0o777)?;
        check_empty(&wanted.to)?;
        let size_bytes = open.root.head.size_bytes;
        host.progress
            .phase("restore", part.is_none().then_some(size_bytes));
        let (permit, jobs) = (wanted.permit, wanted.jobs);
        let tree = (open.snapshot, part.as_ref());
        let mut extracted =
            extract::extract_some(tree, &wanted.to, permit, jobs, (host, open.tick))?;
        if open.member["source"]["beside_count"] != 0 {
            leave_objects(tree, &mut extracted.left_out, open.tick)?;
        }
        Ok(Restored {
            root: open.root.clone(),
            not_stored: open.member["left_out"].clone(),
            extracted,
            took: started.elapsed(),
        })
    })
}

/// Names the objects of a bucket that no directory can have.
fn leave_objects(
    (snapshot, part): (&Snapshot<'_>, Option<&Part>),
    left_out: &mut LeftOut,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    for item in snapshot.items() {
        tick()?;
        let item = item?;
        let is_wanted = part.is_none_or(|part| part.is_named(&item.path, false));
        if item.key.is_attachment() && is_wanted {
            left_out.add(&item.path, left_out::Part::Entry, OBJECT_ALONE);
        }
    }
    Ok(())
}

/// Why an object is not in a directory.
const OBJECT_ALONE: &str =
    "its key is no path, or that of a directory: it is restored into a bucket alone";

/// Makes a directory, where none is there.
pub(super) fn make_directory(to: &Path, mode: u32) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(to) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(not_made(to, e)),
        _ => Ok(()),
    }
}

/// An entry of a backup.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Path below the source; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `file`, `directory`, `symlink`, `hard_link`, `fifo`, `socket`, `char_device`, `block_device`, or `object`: one whose key is no path.
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
    let below = below.map(|path| path.trim_start_matches("./").trim_matches('/'));
    let below = below.filter(|path| *path != ".").map(str::as_bytes);
    let mut count = 0_u64;
    chosen.read(session, |open| {
        each(open, |path, node, is_object| {
            if !is_below(path, below) {
                return Ok(());
            }
            count += 1;
            see(entry(path, node, is_object))
        })
    })?;
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

/// Hands the content of a file to `sink`, in pieces. Returns the backup's id.
///
/// # Errors
/// `NotFound` when the backup has no such file; `Damaged`; those of `sink` and of the store.
pub fn cat(
    session: &Session,
    name: &str,
    choice: &Choice,
    path: &str,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<BackupId> {
    let chosen = choose(session, name, choice)?;
    chosen.read(session, |open| {
        let key = FileKey::from_path(path.trim_matches('/').as_bytes(), Naming::Tree);
        let mut found = None;
        for key in key.into_iter().chain(FileKey::attachment(path.as_bytes())) {
            found = found.or(file(open.snapshot, key)?);
        }
        let (key, length) = found
            .ok_or_else(|| err!(NotFound, "backup \"{}\" has no file \"{path}\"", chosen.id))?;
        ContentReader::new(open.snapshot).read(&key, length, &mut |bytes| {
            (open.tick)()?;
            sink(bytes)
        })
    })?;
    Ok(chosen.id)
}

/// Hands the SHA-256 of every file of a backup to `see`, with its path, in order. Returns the backup's id.
///
/// # Errors
/// `NotFound`; `Damaged`; those of `see` and of the store.
pub fn sums(
    session: &Session,
    name: &str,
    choice: &Choice,
    see: &mut dyn FnMut(&[u8], &str) -> Result<()>,
) -> Result<BackupId> {
    let chosen = choose(session, name, choice)?;
    chosen.read(session, |open| {
        let Open { snapshot, tick, .. } = open;
        let mut reader = ContentReader::new(snapshot);
        let mut linked: BTreeMap<FileKey, String> = BTreeMap::new();
        let mut items = snapshot.items();
        while let Some((key, path, node)) = next_node(&mut items)? {
            tick()?;
            let (from, length) = match node.kind {
                NodeKind::File(length) => (key, length),
                NodeKind::HardLink(to) => match snapshot.metadata(&to)? {
                    Some(Metadata::Node(origin)) => match origin.kind {
                        NodeKind::File(length) => (to, length),
                        _ => continue,
                    },
                    _ => {
                        let path = path.escape_ascii();
                        return Err(err!(Damaged, "\"{path}\" is a hard link to nothing"));
                    }
                },
                _ => continue,
            };
            let sum = match linked.get(&from).cloned() {
                Some(sum) => sum,
                None => {
                    let mut hasher = Sha256::new();
                    reader.read(&from, length, &mut |bytes| {
                        hasher.update(bytes);
                        tick()
                    })?;
                    hex(&hasher.finalize())
                }
            };
            see(&path, &sum)?;
            // Its other names follow.
            if node.links.is_some() {
                linked.insert(from, sum);
            }
        }
        Ok(())
    })?;
    Ok(chosen.id)
}

/// Tells for each path which rule of a configured directory takes it, or leaves it out.
///
/// # Errors
/// `Usage` for a source that is no directory, and a path outside of it; `Config`; those of [`explain::explain`].
pub fn check_excludes(session: &Session, name: &str, paths: &[PathBuf]) -> Result<Vec<Verdict>> {
    let settings = session.settings()?;
    let files = settings.files_named(name)?;
    let Source::Directory(directory) = &files.source else {
        return Err(err!(
            Usage,
            "the source of \"{name}\" is no directory, and has no rules"
        ));
    };
    let selection = selection(files)?;
    let explain = |path: &PathBuf| {
        let below = match path.is_absolute() {
            true => path.strip_prefix(directory).ok(),
            false => Some(path.as_path()),
        };
        let is_plain = |below: &&Path| {
            let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            below.components().all(plain)
        };
        let below = below.filter(is_plain).ok_or_else(|| {
            let (shown, above) = (path.display(), directory.display());
            err!(Usage, "\"{shown}\" does not lie below \"{above}\"")
        })?;
        let ends_in_slash = path.as_os_str().as_bytes().ends_with(b"/");
        let mut below = below.components().as_path().as_os_str().as_bytes();
        below = below.strip_prefix(b"./").unwrap_or(below);
        let slash: &[u8] = if ends_in_slash { b"/" } else { b"" };
        explain::explain(directory, &selection, &[below, slash].concat())
    };
    paths.iter().map(explain).collect()
}

/// The key that has the content of a file, and its length. A hard link leads to another key.
fn file(snapshot: &Snapshot<'_>, key: FileKey) -> Result<Option<(FileKey, u64)>> {
    let node = |key: &FileKey| match snapshot.metadata(key)? {
        Some(Metadata::Node(node)) => Ok::<_, Error>(Some(node.kind)),
        _ => Ok(None),
    };
    Ok(match node(&key)? {
        Some(NodeKind::File(length)) => Some((key, length)),
        Some(NodeKind::HardLink(to)) => match node(&to)? {
            Some(NodeKind::File(length)) => Some((to, length)),
            _ => None,
        },
        _ => None,
    })
}

/// Hands each entry that matches a pattern of gitignore to `see`, of every backup in the first repository that has any, newest first.
///
/// # Errors
/// `NotFound` without a backup; `Config` for a pattern without a meaning; `Damaged`; those of `see` and of the store.
pub fn find(
    session: &Session,
    name: &str,
    pattern: &str,
    see: &mut dyn FnMut(&BackupId, TimestampTz, Entry) -> Result<()>,
) -> Result<()> {
    let selection = Selection::new(&[pattern.to_owned()])?;
    // All of them are read.
    let chosen = choose_saying(session, name, &Choice::default(), &|_| {})?;
    let backups = backups(&chosen.repository, &chosen.scope)?;
    for Candidate { id, ended, .. } in backups.iter().rev() {
        chosen.read_other(session, id, |open| {
            each(open, |path, node, is_object| {
                let is_directory = node.kind == NodeKind::Directory;
                match selection.excludes(path, is_directory) {
                    Some(_) => see(id, *ended, entry(path, node, is_object)),
                    None => Ok(()),
                }
            })
        })?;
    }
    Ok(())
}

/// The kind of a difference between two backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The later one has it alone.
    Added,
    /// The earlier one has it alone.
    Removed,
    /// Type, length, time or content differ.
    Changed,
    /// Owner, permissions or extended attributes alone differ.
    Attributes,
}

/// Hands each difference between two backups to `see`, in order of paths: that of `from`, and the newest one where `to` names none.
///
/// # Errors
/// `NotFound`; `Damaged`; those of `see` and of the store.
pub fn diff(
    session: &Session,
    name: &str,
    (from, to): (&BackupId, Option<&BackupId>),
    see: &mut dyn FnMut(Difference, Entry) -> Result<()>,
) -> Result<BackupId> {
    let choice = Choice {
        backup: to.cloned(),
        by_time: None,
    };
    let chosen = choose(session, name, &choice)?;
    chosen.read_other(session, from, |before| {
        chosen.read(session, |after| {
            let (mut old, mut new) = (before.snapshot.items(), after.snapshot.items());
            let (mut was, mut is) = (next_node(&mut old)?, next_node(&mut new)?);
            loop {
                (before.tick)()?;
                (after.tick)()?;
                let order = match (&was, &is) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => Ordering::Greater,
                    (Some(_), None) => Ordering::Less,
                    (Some((a, _, _)), Some((b, _, _))) => a.cmp(b),
                };
                if let (Ordering::Equal, Some((_, _, a)), Some((key, path, b))) = (order, &was, &is)
                    && let Some(difference) = difference(a, b)
                {
                    see(difference, entry(path, b, key.is_attachment()))?;
                }
                if let (Ordering::Less, Some((key, path, node))) = (order, &was) {
                    see(Difference::Removed, entry(path, node, key.is_attachment()))?;
                }
                if let (Ordering::Greater, Some((key, path, node))) = (order, &is) {
                    see(Difference::Added, entry(path, node, key.is_attachment()))?;
                }
                if order != Ordering::Greater {
                    was = next_node(&mut old)?;
                }
                if order != Ordering::Less {
                    is = next_node(&mut new)?;
                }
            }
        })
    })?;
    Ok(chosen.id)
}

type Next = (FileKey, Vec<u8>, Node);

fn next_node(items: &mut Items<'_, '_>) -> Result<Option<Next>> {
    for item in items {
        let item = item?;
        if let Metadata::Node(node) = item.metadata {
            return Ok(Some((item.key, item.path, *node)));
        }
    }
    Ok(None)
}

/// Pure: how an entry differs. A file whose facts of change detection are equal has equal content.
fn difference(a: &Node, b: &Node) -> Option<Difference> {
    let is_file = matches!(a.kind, NodeKind::File(_));
    let is_same_content = match (a.blake3, b.blake3) {
        (Some(a), Some(b)) => a == b,
        _ => !is_file || a.change == b.change,
    };
    let is_same_time = a.mtime == b.mtime || a.kind == NodeKind::Directory;
    let is_same = a.kind == b.kind && is_same_time && is_same_content;
    let described = |node: &Node| (node.xattrs.clone(), node.bucket.clone());
    let attributes = |node: &Node| (node.mode, node.owner.clone(), described(node));
    match (is_same, attributes(a) == attributes(b)) {
        (false, _) => Some(Difference::Changed),
        (true, false) => Some(Difference::Attributes),
        (true, true) => None,
    }
}

/// Hands each entry of a tree to `see`, in order, then the objects beside it.
fn each(open: Open<'_>, mut see: impl FnMut(&[u8], &Node, bool) -> Result<()>) -> Result<()> {
    for item in open.snapshot.items() {
        (open.tick)()?;
        let item = item?;
        if let Metadata::Node(node) = &item.metadata {
            see(&item.path, node, item.key.is_attachment())?;
        }
    }
    Ok(())
}

fn is_below(path: &[u8], below: Option<&[u8]>) -> bool {
    let Some(below) = below.filter(|below| !below.is_empty()) else {
        return true;
    };
    path.strip_prefix(below)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn entry(path: &[u8], node: &Node, is_object: bool) -> Entry {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (kind, size_bytes, target) = match &node.kind {
        NodeKind::File(length) if is_object => ("object", Some(*length), None),
        NodeKind::File(length) => ("file", Some(*length), None),
        NodeKind::Directory => ("directory", None, None),
        NodeKind::Symlink(target) => ("symlink", None, Some(text(target))),
        NodeKind::Fifo => ("fifo", None, None),
        NodeKind::Socket => ("socket", None, None),
        NodeKind::CharDevice(_) => ("char_device", None, None),
        NodeKind::BlockDevice(_) => ("block_device", None, None),
        NodeKind::HardLink(to) => {
            let to = to.path(Naming::Tree);
            ("hard_link", None, Some(text(&to)))
        }
    };
    let owner = node.owner.as_ref().map(|owner| {
        let shown = |name: &[u8], number: u32| match name.is_empty() {
            true => number.to_string(),
            false => text(name),
        };
        let group = shown(&owner.group, owner.gid);
        format!("{}:{group}", shown(&owner.user, owner.uid))
    });
    let is_link = matches!(node.kind, NodeKind::HardLink(_));
    Entry {
        path: text(if path.is_empty() { &b"."[..] } else { path }),
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
    fn the_newest_good_backup_by_a_time_is_taken() {
        let id = |n: u32| {
            let text = format!("2026112{n}T064049Z-00000{n}-full");
            text.parse::<BackupId>().unwrap()
        };
        let candidate = |n| Candidate {
            id: id(n),
            ended: TimestampTz(i64::from(n) * 10),
            is_damaged: false,
            is_marked: false,
        };
        let mut backups: Vec<_> = (1..4).map(candidate).collect();
        let choice = |time: Option<i64>, backup: Option<u32>| Choice {
            backup: backup.map(id),
            by_time: time.map(TimestampTz),
        };
        let chosen = |backups: &[Candidate], choice: Choice| {
            fitting(backups, &choice).map(|one| one.id.clone())
        };
        assert_eq!(chosen(&backups, Choice::default()), Some(id(3)));
        for (time, expected) in [(9, None), (10, Some(id(1))), (29, Some(id(2)))] {
            assert_eq!(chosen(&backups, choice(Some(time), None)), expected);
        }
        for (named, expected) in [(2, Some(id(2))), (4, None)] {
            assert_eq!(chosen(&backups, choice(None, Some(named))), expected);
        }
        let passed = |backups: &[Candidate], choice: Choice| {
            passed_over(backups, &choice).map(|one| (one.id.clone(), one.why_not()))
        };
        assert_eq!(passed(&backups, Choice::default()), None);
        backups[2].is_damaged = true;
        backups[1].is_marked = true;
        assert_eq!(chosen(&backups, Choice::default()), Some(id(1)));
        assert_eq!(chosen(&backups, choice(None, Some(3))), Some(id(3)));
        assert_eq!(passed(&backups, choice(None, Some(3))), None);
        let (newest, why) = passed(&backups, Choice::default()).unwrap();
        assert!(newest == id(3) && why.contains("damaged"), "{why}");
        let (newest, why) = passed(&backups, choice(Some(29), None)).unwrap();
        assert!(newest == id(2) && why.contains("marked"), "{why}");
        backups[0].is_damaged = true;
        assert_eq!(chosen(&backups, Choice::default()), Some(id(2)));
    }

    #[test]
    fn u104_a_newer_backup_that_is_damaged_here_may_be_whole_in_another_repository() {
        let candidate = |n: u32, is_damaged| Candidate {
            id: format!("2026112{n}T064049Z-00000{n}-full").parse().unwrap(),
            ended: TimestampTz(i64::from(n) * 10),
            is_damaged,
            is_marked: false,
        };
        let (old, new) = (candidate(1, false), candidate(2, false));
        let damaged = candidate(2, true);
        assert!(is_better(&new, None, None) && is_better(&old, None, None));
        assert!(!is_better(&old, Some(&damaged), None));
        assert!(!is_better(&damaged, None, None));
        // The second repository has the newer one whole, or no more than the first one.
        assert!(is_better(&new, None, Some(&old)));
        assert!(!is_better(&old, None, Some(&old)));
        assert!(!is_better(&old, Some(&damaged), Some(&old)));
        assert!(!is_better(&candidate(0, false), None, Some(&old)));
        // All is better than a damaged one.
        assert!(is_better(&old, Some(&damaged), Some(&damaged)));
    }

    #[test]
    fn a_path_has_what_is_below_it() {
        assert!(is_below(b"a/b", Some(b"a")) && is_below(b"a", Some(b"a")));
        assert!(!is_below(b"ab", Some(b"a")) && is_below(b"ab", Some(b"")));
    }
}
