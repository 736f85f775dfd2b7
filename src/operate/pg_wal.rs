//! The WAL that a configured server of a cluster keeps in its `pg_wal`, as a giver of segments that a repository lacks or has damaged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::streamed_wal::StreamedWal;
use crate::archive::backfill;
use crate::archive::datadir::DataDirectory;
use crate::archive::push::{self, Push};
use crate::command::archive::CODEC;
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::repo::container::Container;
use crate::repo::healed;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::store::Key;

/// A server is asked for at most so many segments.
const ASKED_MAX: usize = 1000;

/// The `pg_wal` of one server.
pub struct PgWal {
    cluster: String,
    identifier: u64,
    place: Place,
}

enum Place {
    /// On this host.
    Folder(PathBuf),
    /// Wherever the server is.
    Server(Box<StreamedWal>),
}

impl PgWal {
    /// Returns those of a cluster: of its configured data directory, where that is on this host and no other cluster's, and of each server that
    /// its connection string names.
    pub fn all(settings: &Settings, registration: &Registration, host: &Host) -> Vec<PgWal> {
        let identifier = registration.system_identifier;
        let is_it = |name: &str| name == registration.name;
        let found = settings.clusters.iter().find(|c| is_it(c.name.as_str()));
        let Some(configured) = found else {
            return Vec::new();
        };
        let folder = configured.pgdata.as_deref().and_then(|pgdata| {
            let control = DataDirectory::at(pgdata).control_head().ok().flatten();
            // The server that has the name now may be another cluster.
            let is_own = control.is_none_or(|c| c.system_identifier == identifier);
            backfill::directory(pgdata).ok().filter(|_| is_own)
        });
        let servers = StreamedWal::of(configured, registration, host).into_iter();
        let places = folder.into_iter().map(Place::Folder);
        let of = |place| PgWal {
            cluster: registration.name.clone(),
            identifier,
            place,
        };
        places
            .chain(servers.map(Box::new).map(Place::Server))
            .map(of)
            .collect()
    }

    /// The directory, or the server, for people.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::Folder(folder) => folder.display().to_string(),
            Place::Server(server) => server.shown(),
        }
    }

    /// Archives a segment into a repository that lacks it. A dry run only says that it would.
    ///
    /// # Errors
    /// `NotFound` where the server has not this segment whole; `SourceMissing` where it cannot be asked; those of [`push::check_heals`] and
    /// [`push::push`].
    pub fn fill(&self, repository: &Repository, name: SegmentName, dry_run: bool) -> Result<()> {
        if let Place::Folder(folder) = &self.place {
            path_in(folder, name)?;
        }
        let key = self.layout(repository)?.segment(name);
        if repository.store().head(&key)?.is_some() {
            return Err(err!(NotFound, "the repository does not lack it"));
        }
        self.offer(repository, (name, None), dry_run)
    }

    /// Those of many missing segments that are worth a question. A server has the newest, and each that it has not takes a connection to it.
    pub fn likely(&self, missing: &BTreeSet<SegmentName>) -> BTreeSet<SegmentName> {
        match &self.place {
            Place::Folder(_) => missing.clone(),
            Place::Server(_) => missing.iter().rev().take(ASKED_MAX).copied().collect(),
        }
    }

    /// Archives a segment beside the damaged one under a key, and returns the key of the copy; none where what is stored is whole.
    ///
    /// # Errors
    /// Those of [`PgWal::fill`].
    pub fn heal(
        &self,
        repository: &Repository,
        (name, key): (SegmentName, &Key),
        dry_run: bool,
    ) -> Result<Option<Key>> {
        self.layout(repository)?;
        let store = repository.store();
        let is_whole = |object| {
            let container = Container::open_under(key, object);
            container.is_ok_and(|container| healed::check_whole(&container).is_ok())
        };
        // One that was healed before is read in the place of the original.
        store.healed_copies(key)?;
        if healed::opened(store, key)?.is_some_and(|object| object.is_ok_and(is_whole)) {
            return Ok(None);
        }
        self.offer(repository, (name, Some(key)), dry_run)?;
        let copies = store.healed_copies(key)?;
        Ok(Some(copies.last().unwrap_or(key).clone()))
    }

    /// The layout with the resolutions of the repository, which a push into an object store takes as they were read last.
    fn layout(&self, repository: &Repository) -> Result<ClusterLayout> {
        repository.recent_lives(&ClusterLayout::new(&self.cluster, self.identifier)?)
    }

    fn offer(
        &self,
        repository: &Repository,
        (name, key): (SegmentName, Option<&Key>),
        dry_run: bool,
    ) -> Result<()> {
        match &self.place {
            Place::Folder(folder) => {
                let path = path_in(folder, name)?;
                self.offer_file(repository, (name, key), &path, dry_run)
            }
            Place::Server(server) => {
                let file = server.fetch(name)?;
                self.offer_file(repository, (name, key), file.path(), dry_run)
            }
        }
    }

    fn offer_file(
        &self,
        repository: &Repository,
        (name, key): (SegmentName, Option<&Key>),
        path: &Path,
        dry_run: bool,
    ) -> Result<()> {
        if let Some(why) = backfill::unfit(path, name) {
            return Err(err!(NotFound, "it is not whole there: {why}"));
        }
        let push = Push {
            repository,
            cluster: &self.cluster,
            path,
            name: WalFileName::Segment(name),
            codec: CODEC,
            beside_others: false,
            known: None,
            is_backfill: true,
        };
        push::check_heals(&push, key)?;
        if !dry_run {
            push::push(&push)?;
        }
        Ok(())
    }
}

fn path_in(folder: &Path, name: SegmentName) -> Result<PathBuf> {
    let path = folder.join(name.to_string());
    match path.is_file() {
        true => Ok(path),
        false => Err(err!(NotFound, "it is not there any more")),
    }
}
