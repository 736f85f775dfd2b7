//! The places of the repositories: looked at, then made. Directory, trial of its filesystem, marker, registration.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Wanted;
use super::identity::Identity;
use super::user::ServerUser;
use crate::cli::Context;
use crate::config::{self, Location};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::layout;
use crate::repo::repository::{Registration, Repository};
use crate::store::file::FileStore;
use crate::store::probe::probe;
use crate::store::{Published, Store};

/// What a repository's place is before anything is done to it.
pub(super) enum State {
    /// Neither it nor, perhaps, its parents are there.
    Missing,
    /// An empty directory.
    Empty,
    /// A repository; whether the cluster is registered in it.
    Repository { registered: bool },
}

pub(super) struct Prepared<'a> {
    configured: &'a config::Repository,
    path: &'a Path,
    state: State,
}

pub(super) fn prepare<'a>(
    wanted: &Wanted,
    configured: &'a config::Repository,
    identity: &Identity,
    confirm: bool,
    cx: &Context,
) -> Result<Prepared<'a>> {
    let Location::File(path) = &configured.location;
    if let Some(pgdata) = &identity.pgdata {
        apart(path, pgdata)?;
    }
    let state = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => State::Missing,
        Err(e) => {
            let doing = format!("look at repository directory \"{}\"", path.display());
            return Err(Error::from_io(doing, e));
        }
        Ok(_) if has_marker(path, cx)? => {
            let repository = cx.open(configured)?;
            let registered = check_registered(wanted, &repository, identity, confirm)?;
            State::Repository { registered }
        }
        Ok(_) => {
            check_empty(path)?;
            State::Empty
        }
    };
    Ok(Prepared {
        configured,
        path,
        state,
    })
}

fn has_marker(path: &Path, cx: &Context) -> Result<bool> {
    let store = FileStore::open(path, cx.random())?;
    Ok(store.head(&layout::marker())?.is_some())
}

/// A repository inside the data directory would be in its own backups, and the other way round is no better.
fn apart(path: &Path, pgdata: &Path) -> Result<()> {
    // The nearest parent that exists, without links.
    let real = |p: &Path| {
        let there = p.ancestors().find(|a| a.exists()).unwrap_or(p);
        let rest = p.strip_prefix(there).unwrap_or(Path::new(""));
        std::fs::canonicalize(there)
            .unwrap_or_else(|_| there.to_owned())
            .join(rest)
    };
    let (path, pgdata) = (real(path), real(pgdata));
    if path.starts_with(&pgdata) || pgdata.starts_with(&path) {
        return Err(err!(
            Refused,
            "repository \"{}\" and data directory \"{}\" lie in one another",
            path.display(),
            pgdata.display()
        )
        .hint("Nothing was written. Keep the repository apart, best on another disk."));
    }
    Ok(())
}

/// What a filesystem's own tools or a killed `init` leave is nothing; anything else belongs to somebody.
fn check_empty(path: &Path) -> Result<()> {
    let shown = path.display();
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| Error::from_io(format!("list directory \"{shown}\""), e))?;
    let mut names: Vec<String> = entries
        .iter()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n != "lost+found" && !n.starts_with(durable::TEMPORARY_PREFIX))
        .collect();
    names.sort();
    let Some(first) = names.first() else {
        return Ok(());
    };
    Err(err!(
        Refused,
        "directory \"{shown}\" is not a repository, and not empty: it holds \"{}\"{}",
        first.escape_debug(),
        match names.len() {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        }
    )
    .hint("Nothing was written. Name an empty directory, or one that does not exist yet."))
}

/// Whether the cluster's identifier is registered under its name already.
fn check_registered(
    wanted: &Wanted,
    repository: &Repository,
    identity: &Identity,
    confirm: bool,
) -> Result<bool> {
    let known = repository.registrations(wanted.cluster.as_str())?;
    if let Some(same) = known
        .iter()
        .find(|r| r.system_identifier == identity.system_identifier)
    {
        if same.segment_size_bytes != identity.segment_size_bytes {
            return Err(err!(
                Refused,
                "cluster \"{}\" is registered with segments of {} bytes, and has {} now",
                wanted.cluster,
                same.segment_size_bytes,
                identity.segment_size_bytes
            )
            .hint("Nothing was written. After pg_resetwal --wal-segsize a segment's name means another position: use a new cluster name."));
        }
        if same.major != identity.major {
            return Err(err!(
                Refused,
                "cluster \"{}\" is registered as PostgreSQL {}, and is {} now, with the same system identifier",
                wanted.cluster,
                same.major,
                identity.major
            )
            .hint("Nothing was written. pg_upgrade gives a new system identifier: look whether this is the right data directory, or use a new cluster name."));
        }
        return Ok(true);
    }
    if known.is_empty() || confirm {
        return Ok(false);
    }
    let others: Vec<String> = known
        .iter()
        .map(|r| r.system_identifier.to_string())
        .collect();
    Err(err!(
        WrongCluster,
        "cluster \"{}\" is registered with system identifier {}, this one has {}",
        wanted.cluster,
        others.join(", "),
        identity.system_identifier
    )
    .hint("Nothing was written. If this is another cluster, give it another name with --cluster.\nAfter pg_upgrade or initdb, run the same command with --confirm, then take a full backup."))
}

/// What became of one repository.
#[derive(Serialize)]
pub(super) struct Done {
    pub name: String,
    pub url: String,
    pub created: bool,
    pub registered: bool,
    pub weaknesses: Vec<String>,
}

pub(super) fn create(
    wanted: &Wanted,
    prepared: &Prepared<'_>,
    identity: &Identity,
    server: &ServerUser,
    cx: &Context,
) -> Result<Done> {
    let path = prepared.path;
    let (was_missing, was_registered) = match prepared.state {
        State::Missing => (true, false),
        State::Empty => (false, false),
        State::Repository { registered } => (false, registered),
    };
    let missing: Vec<PathBuf> = match was_missing {
        true => missing_ancestors(path),
        false => Vec::new(),
    };
    let store = FileStore::create(path, cx.random())?;
    let mut ours = missing;
    let tried = probe(path, cx.random());
    let mut weaknesses = match tried {
        Ok(weak) => weak,
        Err(e) => {
            // What was made for the trial goes away again, deepest first.
            for directory in ours.iter().rev() {
                let _ = std::fs::remove_dir(directory);
            }
            return Err(e);
        }
    };
    if let Some(pgdata) = &identity.pgdata
        && same_filesystem(path, pgdata)
    {
        weaknesses.push("is that of the data directory: one broken disk takes both".to_owned());
    }
    let uuid = (u128::from(cx.random()) << 64) | u128::from(cx.random());
    let (repository, published) = Repository::create(Box::new(store), uuid, cx.now())?;
    let registration = Registration {
        name: wanted.cluster.to_string(),
        system_identifier: identity.system_identifier,
        major: identity.major,
        segment_size_bytes: identity.segment_size_bytes,
        block_size_bytes: identity.block_size_bytes,
        wal_block_size_bytes: identity.wal_block_size_bytes,
        first_seen: cx.now(),
        features: Vec::new(),
    };
    if !was_registered {
        repository.register(&registration)?;
    }
    let created = published == Published::Created;
    ours.extend(made_in(path, wanted, identity));
    server.take(&ours)?;
    Ok(Done {
        name: prepared.configured.name.clone(),
        url: prepared.configured.location.to_string(),
        created,
        registered: !was_registered,
        weaknesses,
    })
}

/// The directories that must be created for `path` to be, highest first.
pub(super) fn missing_ancestors(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|p| !p.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

/// What `init` makes in a repository.
fn made_in(path: &Path, wanted: &Wanted, identity: &Identity) -> Vec<PathBuf> {
    let mut made = vec![path.to_owned(), path.join(layout::marker().as_str())];
    let mut at = path.join(layout::CLUSTERS);
    made.push(at.clone());
    for part in [
        wanted.cluster.as_str(),
        &identity.system_identifier.to_string(),
        "cluster.json",
    ] {
        at.push(part);
        made.push(at.clone());
    }
    made
}

fn same_filesystem(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    device(one).is_some() && device(one) == device(other)
}
