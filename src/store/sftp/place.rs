//! A directory on a server: paths, directories that come and last, and the proof that a name is not there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;

use super::failure::{Answered, Failure, Kind};
use super::link::Link;
use super::session::{Facts, Session};
use crate::durable::TEMPORARY_PREFIX;
use crate::err;
use crate::error::{Code, Error};
use crate::pg::time::TimestampTz;
use crate::store::{Irregular, Key, Listed, MARKER, Meta, NAMES_MAX, is_part, names_max, reserve};

/// Directories of a cluster stay, so that its registration never flickers: `clusters/NAME/SYSTEM_IDENTIFIER`.
const LEVELS_KEPT: usize = 3;

/// The directory that is the store.
pub(super) struct Place {
    pub(super) link: Arc<Link>,
    /// Absolute on the server.
    pub(super) root: String,
    /// As the operator knows it.
    pub(super) url: String,
    random: AtomicU64,
    /// The marker was there: where it is gone, another disk is, or none.
    has_marker: AtomicBool,
    /// Directories below the root that are known to last.
    lasting: Mutex<BTreeSet<String>>,
}

impl Place {
    pub(super) fn new(link: Arc<Link>, root: String, url: String, nonce: u64) -> Place {
        Place {
            link,
            root,
            url,
            random: AtomicU64::new(nonce),
            has_marker: AtomicBool::new(false),
            lasting: Mutex::default(),
        }
    }

    /// A path below the root; of the root itself for an empty one.
    pub(super) fn path(&self, key: &str) -> String {
        match key {
            "" => self.root.clone(),
            key => format!("{}/{key}", self.root),
        }
    }

    /// A name of an unfinished file or a trial, which nobody else draws.
    pub(super) fn temporary(&self, stem: &str) -> String {
        let (pid, nonce) = (
            std::process::id(),
            self.random.fetch_add(1, Ordering::Relaxed),
        );
        format!("{TEMPORARY_PREFIX}{stem}.{pid}.{nonce:016x}")
    }

    /// Looks at an object; `None` is proven absence.
    pub(super) async fn look(&self, key: &Key) -> Answered<Option<Facts>> {
        let path = self.path(key.as_str());
        let looked = self
            .link
            .run(&format!("look at object \"{key}\""), |session| {
                let path = &path;
                async move {
                    match session.look(path).await {
                        Ok(facts) => Ok(Some(facts)),
                        Err(failure) if failure.kind == Kind::Absent => {
                            self.prove_absence(&session, key.as_str()).await?;
                            Ok(None)
                        }
                        Err(failure) => Err(failure),
                    }
                }
            })
            .await?;
        if looked.is_some() && key.as_str() == MARKER {
            self.has_marker.store(true, Ordering::Relaxed);
        }
        match looked {
            Some(facts) if !facts.is_regular => {
                let what = err!(Damaged, "object \"{key}\" is not a regular file");
                Err(what.into())
            }
            looked => Ok(looked),
        }
    }

    /// "No such file" is the answer, too, where a file stands in the way of a directory, and where the disk is not mounted.
    ///
    /// The nearest parent that is there must be a directory, the root must be one, and a marker that was there must still be.
    async fn prove_absence(&self, session: &Session, name: &str) -> Answered<()> {
        // The root may be reached through a link.
        let parents: Vec<&str> = parents(name).skip(1).collect();
        let looks = parents.iter().map(|parent| {
            let path = self.path(parent);
            async move { there(session.look(&path).await) }
        });
        let marker = self.path(MARKER);
        let (looks, root, marker) = tokio::join!(
            join_all(looks),
            async { there(session.look_through(&self.root).await) },
            async { there(session.look(&marker).await) },
        );
        for (parent, look) in parents.iter().zip(looks).rev() {
            match look? {
                None => {}
                Some(facts) if facts.is_directory => break,
                Some(_) => {
                    let what = err!(Io, "\"{parent}\" in \"{}\" is not a directory", self.url);
                    return Err(what.into());
                }
            }
        }
        match root? {
            Some(facts) if facts.is_directory => {}
            Some(_) => {
                return Err(err!(NoRepository, "\"{}\" is not a directory", self.url).into());
            }
            None => return Err(self.without_root().into()),
        }
        if name != MARKER && marker?.is_none() && self.has_marker.load(Ordering::Relaxed) {
            return Err(err!(
                NoRepository,
                "\"{}\" is not a repository any more: {MARKER} is gone",
                self.url
            )
            .hint("Nothing there is believed. Look whether the disk is mounted on the server.")
            .into());
        }
        Ok(())
    }

    fn without_root(&self) -> Error {
        err!(NoRepository, "repository directory \"{}\" does not exist", self.url).hint(
            "Nothing was written. Mount the disk on the server or correct the url; \"pitr init\" creates a new repository.",
        )
    }

    /// Whether the root is there.
    pub(super) async fn is_there(&self) -> Answered<bool> {
        self.link
            .run(
                &format!("look at \"{}\"", self.root),
                |session| async move {
                    match there(session.look_through(&self.root).await)? {
                        None => Ok(false),
                        Some(facts) if facts.is_directory => Ok(true),
                        Some(_) => {
                            let what = err!(Refused, "\"{}\" is not a directory", self.url);
                            Err(what.into())
                        }
                    }
                },
            )
            .await
    }

    /// Creates the root with missing parents, durably.
    pub(super) async fn create(&self) -> Answered<()> {
        let parts: Vec<&str> = self.root.split('/').filter(|p| !p.is_empty()).collect();
        for depth in 1..=parts.len() {
            let path = format!("/{}", parts.get(..depth).unwrap_or_default().join("/"));
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let parent = if parent.is_empty() { "/" } else { parent };
            let doing = format!("create directory \"{path}\"");
            let (path, parent) = (path.as_str(), parent);
            self.link
                .run(&doing, |session| async move {
                    if there(session.look_through(path).await)?.is_some() {
                        return Ok(());
                    }
                    session.make_directory(path).await?;
                    session.settle_names(parent).await
                })
                .await?;
        }
        Ok(())
    }

    /// Sees to it that a directory below the root is there and lasts. Who made it may have died before it did.
    pub(super) async fn last(&self, session: &Arc<Session>, directory: &str) -> Answered<()> {
        let is_known = |d: &str| self.lasting().contains(d);
        if directory.is_empty() || is_known(directory) {
            return Ok(());
        }
        let below: Vec<&str> = parents(directory).skip(1).chain([directory]).collect();
        let new: Vec<&str> = below.into_iter().filter(|at| !is_known(at)).collect();
        let looks = new.iter().map(|at| {
            let path = self.path(at);
            async move { there(session.look(&path).await) }
        });
        for (at, look) in new.iter().zip(join_all(looks).await) {
            if !look?.is_some_and(|facts| facts.is_directory) {
                self.make(session, at).await?;
            }
        }
        let settled = new.iter().map(|at| {
            let parent = self.path(at.rsplit_once('/').map_or("", |(parent, _)| parent));
            async move { session.settle_names(&parent).await }
        });
        futures_util::future::try_join_all(settled).await?;
        let mut lasting = self.lasting();
        lasting.extend(new.into_iter().map(str::to_owned));
        Ok(())
    }

    /// Makes one directory, whose being there already is fine.
    async fn make(&self, session: &Session, at: &str) -> Answered<()> {
        let path = self.path(at);
        let Err(failure) = session.make_directory(&path).await else {
            return Ok(());
        };
        let is_there = there(session.look(&path).await)?.is_some_and(|f| f.is_directory);
        match (is_there, failure.kind) {
            (true, _) => Ok(()),
            (false, Kind::Absent) if !at.contains('/') => Err(self.without_root().into()),
            (false, _) => Err(self.explained(session, failure).await),
        }
    }

    /// Forgets what was known to last: a janitor removes empty directories.
    pub(super) fn forget(&self) {
        self.lasting().clear();
    }

    fn lasting(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out what a refusal without a reason means: no room, a disk that may only be read, or a broken one.
    pub(super) async fn explained(&self, session: &Session, failure: Failure) -> Failure {
        if failure.kind != Kind::Failed {
            return failure;
        }
        let Ok(Some(disk)) = session.disk(&self.root).await else {
            return failure;
        };
        let (code, what) = if disk.is_read_only {
            (
                Code::ReadOnly,
                "the repository's disk is read-only".to_owned(),
            )
        } else if !disk.has_inodes {
            (
                Code::Full,
                "repository is full (no inode is free)".to_owned(),
            )
        } else if disk.room.free_bytes < super::ROOM_BYTES {
            (
                Code::Full,
                format!(
                    "repository is full ({} bytes are free)",
                    disk.room.free_bytes
                ),
            )
        } else {
            let error = failure.error.hint(
                "The server does not say why: a quota, or a disk that fails. Its log may (sftp-server -l ERROR).",
            );
            return Failure { error, ..failure };
        };
        let error = failure.error.with_code(code).context(what);
        let error = match code {
            Code::Full => error.hint(
                "Nothing was stored and nothing is lost: PostgreSQL keeps the file and offers it again. \"pitr expire --confirm\" frees space in the repository; never delete from pg_wal by hand.",
            ),
            _ => error,
        };
        Failure {
            kind: Kind::Final,
            error,
            ..failure
        }
    }

    /// Lists what lies directly below; an absent directory is empty.
    pub(super) async fn list(&self, prefix: &str) -> Answered<Vec<Listed>> {
        let named = self.names(prefix).await?.into_iter();
        let objects = named.filter(|(name, _)| is_part(name));
        Ok(objects
            .map(|(name, facts)| Listed {
                name,
                is_prefix: facts.is_directory,
                meta: Some(meta(&facts)).filter(|_| facts.is_regular),
            })
            .collect())
    }

    /// Names directly below, whatever they are.
    pub(super) async fn names(&self, prefix: &str) -> Answered<Vec<(String, Facts)>> {
        let path = self.path(prefix);
        let path = path.as_str();
        self.link
            .run(&format!("list \"{prefix}\""), |session| async move {
                match session.list(path, names_max(prefix)).await {
                    Err(failure) if failure.kind == Kind::Absent => {
                        // A link, or a file, in its place is no empty directory.
                        let inside = match prefix {
                            "" => String::new(),
                            prefix => format!("{prefix}/x"),
                        };
                        self.prove_absence(&session, &inside).await?;
                        Ok(Vec::new())
                    }
                    listed => listed,
                }
            })
            .await
    }

    /// Finds names that are no objects; a walk over everything.
    pub(super) async fn irregular(&self) -> Answered<Vec<Irregular>> {
        let mut found = Vec::new();
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            for (name, facts) in self.names(&directory).await? {
                let path = match directory.as_str() {
                    "" => name.clone(),
                    directory => format!("{directory}/{name}"),
                };
                match (is_part(&name), facts) {
                    (true, facts) if facts.is_directory => directories.push(path),
                    (true, facts) if facts.is_regular => {}
                    _ if reserve::is_piece(&path) => {}
                    (_, facts) => found.push(Irregular {
                        // A directory is what a trial left.
                        is_unfinished: name.starts_with(TEMPORARY_PREFIX)
                            && (facts.is_regular || facts.is_directory)
                            && !name.contains(char::REPLACEMENT_CHARACTER),
                        path,
                        modified: time(facts.modified),
                    }),
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Deletes an object; `false` when it was not there.
    pub(super) async fn delete(&self, key: &Key) -> Answered<bool> {
        let path = self.path(key.as_str());
        let path = path.as_str();
        let removed = self
            .link
            .run(&format!("delete object \"{key}\""), |session| async move {
                match session.remove(path).await {
                    Ok(()) => Ok(true),
                    Err(failure) if failure.kind == Kind::Absent => {
                        self.prove_absence(&session, key.as_str()).await?;
                        Ok(false)
                    }
                    Err(failure) => Err(self.explained(&session, failure).await),
                }
            })
            .await?;
        if removed {
            self.remove_empty_parents(key).await;
        }
        Ok(removed)
    }

    /// Directories carry no meaning; an empty one is only clutter.
    async fn remove_empty_parents(&self, key: &Key) {
        let above: Vec<&str> = parents(key.as_str()).skip(1).collect();
        for directory in above.into_iter().rev() {
            if directory.matches('/').count() < LEVELS_KEPT {
                return;
            }
            let path = self.path(directory);
            let path = path.as_str();
            let removed = self
                .link
                .run("remove a directory", |session| async move {
                    session.remove_directory(path).await
                })
                .await;
            if removed.is_err() {
                return;
            }
            self.lasting().remove(directory);
        }
    }

    /// Makes it last that names are gone from a directory, or that the directory is.
    pub(super) async fn settle_deletions(&self, prefix: &str) -> Answered<()> {
        let mut at = prefix;
        loop {
            let path = self.path(at);
            let path = path.as_str();
            let settled = self
                .link
                .run(&format!("sync \"{at}\""), |session| async move {
                    session.settle_names(path).await
                })
                .await;
            match settled {
                Err(failure) if failure.kind == Kind::Absent && !at.is_empty() => {
                    at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
                }
                settled => return settled,
            }
        }
    }

    /// Removes an unfinished file, or what a trial left with all that is in it; `false` when it is gone.
    pub(super) async fn discard(&self, unfinished: &str) -> Answered<bool> {
        let name = unfinished.rsplit('/').next().unwrap_or(unfinished);
        if !name.starts_with(TEMPORARY_PREFIX) {
            let what = err!(Internal, "\"{unfinished}\" is no unfinished object");
            return Err(what.into());
        }
        let path = self.path(unfinished);
        let path = path.as_str();
        self.link
            .run(&format!("delete \"{unfinished}\""), |session| async move {
                remove_all(&session, path).await
            })
            .await
    }

    /// The time of the server's clock, by a file that is removed at once.
    pub(super) async fn clock(&self) -> Answered<TimestampTz> {
        let path = self.path(&self.temporary("clock"));
        let path = path.as_str();
        self.link
            .run("ask the clock", |session| async move {
                // The one of an attempt whose answer was lost.
                let _ = session.remove(path).await;
                let created = session.create(path).await;
                let created = match created {
                    Ok(open) => open,
                    Err(failure) => return Err(self.explained(&session, failure).await),
                };
                drop(created);
                let looked = session.look(path).await;
                session.remove(path).await?;
                Ok(time(looked?.modified))
            })
            .await
    }
}

/// Removes a file or a directory with all that is in it; `false` when it is not there. A link is removed, and not followed.
async fn remove_all(session: &Arc<Session>, path: &str) -> Answered<bool> {
    let Some(facts) = there(session.look(path).await)? else {
        return Ok(false);
    };
    if !facts.is_directory {
        return Ok(there(session.remove(path).await)?.is_some());
    }
    // Parents stand before what is in them.
    let mut directories = vec![path.to_owned()];
    let mut at = 0;
    while let Some(directory) = directories.get(at).cloned() {
        at += 1;
        for (name, facts) in session.list(&directory, NAMES_MAX).await? {
            let inside = format!("{directory}/{name}");
            match facts.is_directory {
                true => directories.push(inside),
                false => there(session.remove(&inside).await).map(drop)?,
            }
        }
    }
    for directory in directories.iter().rev() {
        there(session.remove_directory(directory).await)?;
    }
    Ok(true)
}

/// None where the server says that it is not there.
fn there<T>(looked: Answered<T>) -> Answered<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.kind == Kind::Absent => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The directories above a name, from the root down; the root is empty.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    let root = Some("").filter(|_| !name.is_empty());
    let slashes = name.match_indices('/').map(|(at, _)| at);
    root.into_iter()
        .chain(slashes.filter_map(|at| name.get(..at)))
}

pub(super) fn meta(facts: &Facts) -> Meta {
    Meta {
        size_bytes: facts.size_bytes,
        modified: time(facts.modified),
    }
}

fn time(seconds: u32) -> TimestampTz {
    TimestampTz::from_unix_seconds(i64::from(seconds)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_begin_with_the_root() {
        assert_eq!(parents("a/b/c").collect::<Vec<_>>(), ["", "a", "a/b"]);
        assert_eq!(parents("a").collect::<Vec<_>>(), [""]);
        assert_eq!(parents("").count(), 0);
    }
}
