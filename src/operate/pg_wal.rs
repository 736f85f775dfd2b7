//! The WAL that the configured server of a cluster keeps in its `pg_wal`, as a giver of segments that a repository lacks or has damaged.

use std::path::PathBuf;

use crate::archive::backfill;
use crate::archive::datadir::DataDirectory;
use crate::archive::push::{self, Push};
use crate::command::archive::CODEC;
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::repo::container::Container;
use crate::repo::healed;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::store::Key;

/// A server's `pg_wal` on this host.
pub struct PgWal {
    cluster: String,
    identifier: u64,
    folder: PathBuf,
}

impl PgWal {
    /// Returns that of the configured data directory of a cluster; none where that is not on this host, or is another cluster's.
    pub fn of(settings: &Settings, registration: &Registration) -> Option<PgWal> {
        let is_it = |name: &str| name == registration.name;
        let configured = settings.clusters.iter().find(|c| is_it(c.name.as_str()))?;
        let pgdata = configured.pgdata.as_ref()?;
        let control = DataDirectory::at(pgdata).control_head().ok().flatten();
        // The server that has the name now may be another cluster.
        let is_own = control.is_none_or(|c| c.system_identifier == registration.system_identifier);
        let folder = backfill::directory(pgdata).ok().filter(|_| is_own)?;
        Some(PgWal {
            cluster: registration.name.clone(),
            identifier: registration.system_identifier,
            folder,
        })
    }

    /// The directory, for people.
    pub fn shown(&self) -> String {
        self.folder.display().to_string()
    }

    /// Archives a segment into a repository that lacks it. A dry run only says that it would.
    ///
    /// # Errors
    /// `NotFound` where the server has not this segment whole; those of [`push::check_heals`] and [`push::push`].
    pub fn fill(&self, repository: &Repository, name: SegmentName, dry_run: bool) -> Result<()> {
        let key = ClusterLayout::new(&self.cluster, self.identifier)?.segment(name);
        if repository.store().head(&key)?.is_some() {
            return Err(err!(NotFound, "the repository does not lack it"));
        }
        self.offer(repository, (name, None), dry_run)
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
        let store = repository.store();
        let is_whole = |object| {
            let container = Container::open_under(key, object);
            container.is_ok_and(|container| healed::check_whole(&container).is_ok())
        };
        // One that was healed before is read in the place of the original.
        store.healed_copies(key)?;
        if store.open(key)?.is_some_and(is_whole) {
            return Ok(None);
        }
        self.offer(repository, (name, Some(key)), dry_run)?;
        let copies = store.healed_copies(key)?;
        Ok(Some(copies.last().unwrap_or(key).clone()))
    }

    fn offer(
        &self,
        repository: &Repository,
        (name, key): (SegmentName, Option<&Key>),
        dry_run: bool,
    ) -> Result<()> {
        let path = self.folder.join(name.to_string());
        if !path.is_file() {
            return Err(err!(NotFound, "it is not there any more"));
        }
        if let Some(why) = backfill::unfit(&path, name) {
            return Err(err!(NotFound, "it is not whole there: {why}"));
        }
        let push = Push {
            repository,
            cluster: &self.cluster,
            path: &path,
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
