//! A repository as a whole: marker, clusters, creation.

use serde::{Deserialize, Serialize};

use super::event::{self, Event};
use super::json;
use super::layout::{self, ClusterLayout};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::store::{Published, Store};

/// `pitr.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// 32 hexadecimal digits.
    pub uuid: String,
    /// When the repository was created.
    pub created: TimestampTz,
    /// Key set id of an encrypted repository.
    pub key_set: Option<String>,
    /// What a reader must know.
    pub features: Vec<String>,
}

/// `cluster.json`: a system identifier registered under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Cluster name.
    pub name: String,
    /// Of pg_control.
    #[serde(with = "super::backup::decimal")]
    pub system_identifier: u64,
    /// PostgreSQL major at registration.
    pub major: u32,
    /// WAL segment size at registration.
    pub segment_size_bytes: u64,
    /// Page size of data files; 8192.
    pub block_size_bytes: u32,
    /// Page size of WAL; 8192.
    pub wal_block_size_bytes: u32,
    /// When it was registered.
    pub first_seen: TimestampTz,
    /// What a reader must know.
    pub features: Vec<String>,
}

/// An open repository: its marker was read in this session.
pub struct Repository {
    store: Box<dyn Store>,
    marker: Marker,
}

impl Repository {
    /// Reads the marker.
    ///
    /// # Errors
    /// `NoRepository` when there is none: an unmounted disk, another bucket, nothing created yet.
    pub fn open(store: Box<dyn Store>) -> Result<Repository> {
        let read = json::read::<Marker>(
            store.as_ref(),
            &layout::marker(),
            "repository",
            json::LIMIT_BYTES,
        )
        .map_err(|e| e.context(format!("open repository \"{}\"", store.location())))?;
        let Some(marker) = read else {
            return Err(err!(NoRepository, "\"{}\" is not a repository: it has no pitr.json", store.location()).hint(
                "Nothing was read or written. Mount the disk or correct the url; \"pitr init\" creates a new repository.",
            ));
        };
        if marker.key_set.is_some() {
            return Err(err!(
                Unsupported,
                "repository \"{}\" is encrypted",
                store.location()
            )
            .hint("Use a version of pitr that can read encrypted repositories."));
        }
        Ok(Repository { store, marker })
    }

    /// Creates the marker, or opens the repository that is there.
    pub fn create(
        store: Box<dyn Store>,
        uuid: u128,
        now: TimestampTz,
    ) -> Result<(Repository, Published)> {
        let marker = Marker {
            uuid: format!("{uuid:032x}"),
            created: now,
            key_set: None,
            features: Vec::new(),
        };
        let published = json::write(store.as_ref(), &layout::marker(), "repository", &marker)?;
        Ok((Repository::open(store)?, published))
    }

    /// The bytes below.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// The marker as read when the session began.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }

    /// Names of clusters, sorted.
    pub fn cluster_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .store
            .list(layout::CLUSTERS)?
            .into_iter()
            .filter(|l| l.is_prefix && layout::is_cluster_name(&l.name))
            .map(|l| l.name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Registrations under a name, oldest first.
    pub fn registrations(&self, name: &str) -> Result<Vec<Registration>> {
        if !layout::is_cluster_name(name) {
            return Err(err!(
                Usage,
                "\"{}\" is not a cluster name",
                name.escape_debug()
            ));
        }
        let mut found = Vec::new();
        for listed in self.store.list(&format!("{}/{name}", layout::CLUSTERS))? {
            let Ok(identifier) = listed.name.parse::<u64>() else {
                continue;
            };
            if let Some(registration) = self.registration(&ClusterLayout::new(name, identifier)?)? {
                found.push(registration);
            }
        }
        found.sort_by_key(|r| r.first_seen);
        Ok(found)
    }

    /// The registration of one cluster; `None` when the identifier is not registered under the name.
    pub fn registration(&self, layout: &ClusterLayout) -> Result<Option<Registration>> {
        let key = layout.cluster();
        let read: Option<Registration> =
            json::read(self.store.as_ref(), &key, "cluster", json::LIMIT_BYTES)?;
        match read {
            Some(r)
                if r.name != layout.name() || r.system_identifier != layout.system_identifier() =>
            {
                Err(err!(Damaged, "object \"{key}\" registers another cluster"))
            }
            other => Ok(other),
        }
    }

    /// Requires that the identifier is registered under the name.
    ///
    /// # Errors
    /// `WrongCluster`, naming both identifiers.
    pub fn require(&self, layout: &ClusterLayout) -> Result<Registration> {
        if let Some(registration) = self.registration(layout)? {
            return Ok(registration);
        }
        Err(self.wrong_cluster(layout)?)
    }

    fn wrong_cluster(&self, layout: &ClusterLayout) -> Result<Error> {
        let known: Vec<String> = self
            .registrations(layout.name())?
            .iter()
            .map(|r| r.system_identifier.to_string())
            .collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        Ok(err!(
            WrongCluster,
            "system identifier {} is not registered for cluster \"{}\" (registered: {known})",
            layout.system_identifier(),
            layout.name()
        )
        .hint("Nothing was stored. If this is another cluster, correct --cluster or the repository; after initdb or pg_upgrade, run \"pitr init --confirm\"."))
    }

    /// Registers a cluster; its being registered already is fine.
    pub fn register(&self, registration: &Registration) -> Result<Published> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        json::write(
            self.store.as_ref(),
            &layout.cluster(),
            "cluster",
            registration,
        )
    }

    /// Segment sizes accepted for a cluster: the registered one and those of `segment_size` events.
    pub fn segment_sizes(
        &self,
        layout: &ClusterLayout,
        registration: &Registration,
    ) -> Result<Vec<u64>> {
        let mut sizes = vec![registration.segment_size_bytes];
        for recorded in event::read_all(self.store.as_ref(), layout, "cluster")? {
            let Event {
                event,
                segment_size_bytes: Some(size),
                ..
            } = recorded.event
            else {
                continue;
            };
            if event == "segment_size" && !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        Ok(sizes)
    }
}
