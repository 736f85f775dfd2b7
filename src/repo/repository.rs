//! A repository as a whole: marker, clusters, creation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::event::{self, Event};
use super::healed::HealedStore;
use super::layout::ClusterLayout;
use super::lives::Followed;
use super::mark::Mark;
use super::scope::{self, Scope};
use super::{evidence, json};
use crate::config::Encryption;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::store::{Key, Published, Store, get};

/// `pitr.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// 32 hexadecimal digits.
    pub uuid: String,
    pub created: TimestampTz,
    /// Key set id of an encrypted repository.
    pub key_set: Option<String>,
    /// Features that a reader must know.
    pub features: Vec<String>,
}

impl Marker {
    /// Reads the marker of the repository in `store`, encrypted or not.
    ///
    /// # Errors
    /// `NoRepository` when there is none; `Damaged`; what the store says.
    pub fn read(store: &dyn Store) -> Result<Marker> {
        let read = json::read::<Marker>(store, &scope::marker(), "repository", json::LIMIT_BYTES)
            .map_err(|e| e.context(format!("open repository \"{}\"", store.location())))?;
        read.ok_or_else(|| {
            let location = store.location();
            let remedy = match location.split_once("://") {
                Some(("s3", _)) => "Correct the url",
                Some(_) => "Mount the disk on the server or correct the url",
                None => "Mount the disk or correct the url",
            };
            err!(
                NoRepository,
                "\"{location}\" is not a repository: it has no pitr.json"
            )
            .hint(format!(
                "Nothing was read or written. {remedy}; \"pitr init\" creates a new repository."
            ))
        })
    }
}

/// `cluster.json`: a system identifier registered under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Cluster name.
    pub name: String,
    /// System identifier of pg_control.
    #[serde(with = "crate::text::decimal")]
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
    /// Features that a reader must know.
    pub features: Vec<String>,
    /// `cluster.json` is not there: this is what other objects tell. Readers take it; nothing is written under it.
    #[serde(skip)]
    pub is_lost: bool,
}

/// The kind in the JSON of a registration.
const REGISTRATION: &str = "cluster";

/// Reads a registration as it is stored.
///
/// # Errors
/// `Damaged`, also when it is that of another cluster, and when it is forged.
pub fn check_registration(
    store: &dyn Store,
    layout: &ClusterLayout,
    bytes: &[u8],
) -> Result<Registration> {
    let key = layout.registration();
    if !json::is_genuine(store, &key, bytes)? {
        return Err(err!(Damaged, "object \"{key}\" is {}", event::FORGED)
            .hint("Nothing was read or written. Look who can write to the store; then delete the object, and register the cluster again: pitr init."));
    }
    let read: Registration = json::decode(&key, REGISTRATION, bytes)?;
    match read.name == layout.name() && read.system_identifier == layout.system_identifier() {
        true => Ok(read),
        false => Err(err!(Damaged, "object \"{key}\" registers another cluster")),
    }
}

/// The store of an encrypted repository, where this program has one.
#[cfg(feature = "full")]
type Sealed = Option<super::sealed::SealedStore>;
#[cfg(not(feature = "full"))]
type Sealed = Option<()>;

/// The store of a repository as those see it who have these keys.
fn unlocked(
    store: Box<dyn Store>,
    marker: &Marker,
    encryption: Option<&Encryption>,
) -> Result<(Box<dyn Store>, Sealed)> {
    let Some(key_set) = &marker.key_set else {
        return match encryption {
            None => Ok((store, None)),
            Some(_) => Err(err!(
                Key,
                "repository \"{}\" is not encrypted, and encryption is configured for it",
                store.location()
            )
            .hint("Nothing was read or written. Look whether somebody put another repository in its place; to encrypt, create a new repository.")),
        };
    };
    unsealed(store, (key_set, &marker.uuid), encryption)
}

#[cfg(feature = "full")]
fn unsealed(
    store: Box<dyn Store>,
    (key_set, uuid): (&str, &str),
    encryption: Option<&Encryption>,
) -> Result<(Box<dyn Store>, Sealed)> {
    use super::{kept::Kept, sealed::SealedStore};
    // Archiving needs no helper, and does not wait for one.
    let late = encryption.filter(|from| from.opens_later());
    let at_once = late.map(Encryption::without_helpers);
    let at_once = at_once.as_ref().or(encryption);
    let keys = super::keyring::Keys::load(store.as_ref(), key_set.parse()?, at_once)
        .map_err(|e| e.context(format!("open repository \"{}\"", store.location())))?;
    let sealed = SealedStore::new(store, keys);
    let sealed = match late {
        Some(from) => sealed.opening_later(from.clone()),
        None => sealed,
    };
    // The marker is anybody's, and becomes a path.
    let state = encryption.and_then(|from| from.state_dir.as_ref());
    let is_uuid = uuid.len() == 32 && uuid.bytes().all(|b| b.is_ascii_hexdigit());
    let sealed = match state.filter(|_| is_uuid) {
        Some(state) => sealed.keeping(Kept::new(state.join(uuid))),
        None => sealed,
    };
    Ok((Box::new(sealed.clone()), Some(sealed)))
}

/// The small programs have pitr do it where they know that a repository is encrypted.
#[cfg(not(feature = "full"))]
fn unsealed(
    store: Box<dyn Store>,
    _key_set: (&str, &str),
    _encryption: Option<&Encryption>,
) -> Result<(Box<dyn Store>, Sealed)> {
    Err(err!(
        Key,
        "repository \"{}\" is encrypted, and no encryption is configured for it",
        store.location()
    )
    .hint("Nothing was read or written. Configure the repository's encryption on this host: key_set for what writes, key_file, key_command or a passphrase for what reads."))
}

/// An open repository: its marker was read in this session.
pub struct Repository {
    store: Box<dyn Store>,
    #[cfg(feature = "full")]
    sealed: Sealed,
    marker: Marker,
    known: Mutex<Known>,
    /// The last file that was archived found its name taken, or none was archived yet.
    is_looked_at_first: AtomicBool,
}

/// Facts that were read from a remote store and never change: that an object is there. Absence is never remembered.
#[derive(Default)]
struct Known {
    registrations: Vec<Registration>,
    histories: Vec<(ClusterLayout, TimelineId, History)>,
    /// Read at that moment; of the only cluster that a process archives.
    lives: Option<(ClusterLayout, Instant)>,
    /// Own marks of segments that were archived last, by their keys.
    marks: BTreeMap<Key, Mark>,
    /// Segments that this process is archiving.
    flights: BTreeSet<Key>,
    /// Whether segments lay below this prefix of streamed ones, at that moment.
    streams: Option<(String, bool, Instant)>,
}

/// So many marks are kept.
const MARKS_MAX: usize = 256;
/// For how long resolutions are believed that were read.
const LIVES_AGE: Duration = Duration::from_secs(60);
/// For how long nobody is taken to stream where nobody did. Once somebody does, each segment is looked up.
const UNSTREAMED_AGE: Duration = Duration::from_secs(1);

/// A segment on its way into the repository, for as long as this lives.
pub struct Flight<'a> {
    repository: &'a Repository,
    key: Key,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.repository.known().flights.remove(&self.key);
    }
}

impl Repository {
    /// Reads the marker.
    ///
    /// # Errors
    /// `NoRepository` when there is none: an unmounted disk, another bucket, nothing created yet; `Key` when it is encrypted and the keys
    /// are not those of it, or when it is not and should be.
    pub fn open(store: Box<dyn Store>) -> Result<Repository> {
        Repository::open_with(store, None)
    }

    /// As [`Repository::open`], with the keys of an encrypted one.
    ///
    /// # Errors
    /// Those of [`Repository::open`].
    pub fn open_with(store: Box<dyn Store>, encryption: Option<&Encryption>) -> Result<Repository> {
        let marker = Marker::read(store.as_ref())?;
        let (store, sealed) = unlocked(store, &marker, encryption)?;
        Ok(Repository::with(store, sealed, marker))
    }

    fn with(store: Box<dyn Store>, sealed: Sealed, marker: Marker) -> Repository {
        #[cfg(not(feature = "full"))]
        let _ = sealed;
        Repository {
            store: Box::new(HealedStore::new(store)),
            #[cfg(feature = "full")]
            sealed,
            marker,
            known: Mutex::default(),
            is_looked_at_first: AtomicBool::new(true),
        }
    }

    /// Returns this repository with the objects of clusters readable as far as this host kept parts of them, for who
    /// builds on a backup; none where it reads them itself, or keeps nothing.
    #[cfg(feature = "full")]
    pub fn recalling(&self) -> Option<Repository> {
        let sealed = self
            .sealed
            .as_ref()
            .filter(|sealed| sealed.kept().is_some())?;
        let sealed = sealed.recalling();
        let store = Box::new(sealed.clone());
        Some(Repository::with(store, Some(sealed), self.marker.clone()))
    }

    /// Returns the state of a host that cannot read back what it writes here; none where it can.
    #[cfg(feature = "full")]
    pub fn kept(&self) -> Option<&super::kept::Kept> {
        self.sealed.as_ref()?.kept().map(std::sync::Arc::as_ref)
    }

    /// Returns the part of the key set that this host has; none where the repository is not encrypted.
    #[cfg(feature = "full")]
    pub fn keys(&self) -> Option<&super::keyring::Keys> {
        Some(self.sealed.as_ref()?.keys())
    }

    /// Creates the marker, or opens the repository that is there.
    pub fn create(
        store: Box<dyn Store>,
        uuid: u128,
        now: TimestampTz,
    ) -> Result<(Repository, Published)> {
        Repository::create_with(store, uuid, now, None, None)
    }

    /// As [`Repository::create`], encrypted with the key set `key_set` where there is one; its recipients are stored already.
    pub fn create_with(
        store: Box<dyn Store>,
        uuid: u128,
        now: TimestampTz,
        key_set: Option<String>,
        encryption: Option<&Encryption>,
    ) -> Result<(Repository, Published)> {
        let marker = Marker {
            uuid: format!("{uuid:032x}"),
            created: now,
            key_set,
            features: Vec::new(),
        };
        let published = json::write(store.as_ref(), &scope::marker(), "repository", &marker)?;
        Ok((Repository::open_with(store, encryption)?, published))
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
            .list(scope::CLUSTERS)?
            .into_iter()
            .filter(|l| l.is_prefix && scope::is_scope_name(&l.name))
            .map(|l| l.name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// The scopes of auxiliary content, sorted.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn aux_scopes(&self) -> Result<Vec<Scope>> {
        let names = |prefix: &str| -> Result<Vec<String>> {
            let listed = self.store.list(prefix)?.into_iter();
            let named = listed.filter(|l| l.is_prefix && scope::is_scope_name(&l.name));
            Ok(named.map(|l| l.name).collect())
        };
        let mut scopes = Vec::new();
        for kind in names(scope::AUX)? {
            for name in names(&format!("{}/{kind}", scope::AUX))? {
                scopes.push(Scope::aux(&kind, &name)?);
            }
        }
        scopes.sort();
        Ok(scopes)
    }

    /// Registrations under a name, oldest first; of one that is lost, what the cluster's other objects tell.
    ///
    /// # Errors
    /// `Damaged` when one is; what the store says.
    pub fn registrations(&self, name: &str) -> Result<Vec<Registration>> {
        let mut found = Vec::new();
        let mut forged = None;
        for layout in self.clusters(name)? {
            let Some(bytes) = self.stored_registration(&layout)? else {
                found.extend(evidence::registration(self.store(), &layout)?);
                continue;
            };
            let read = check_registration(self.store(), &layout, &bytes);
            // One that somebody put beside the genuine ones must not keep anybody from those.
            match json::is_genuine(self.store(), &layout.registration(), &bytes)? {
                true => found.push(read?),
                false => forged = forged.or(read.err()),
            }
        }
        found.sort_by_key(|r| r.first_seen);
        match forged {
            Some(forged) if found.is_empty() => Err(forged),
            _ => Ok(found),
        }
    }

    /// Every place under a name that is that of a system identifier, registered or not.
    ///
    /// # Errors
    /// `Usage` when it is no name of a cluster; what the store says.
    pub fn clusters(&self, name: &str) -> Result<Vec<ClusterLayout>> {
        if !scope::is_scope_name(name) {
            return Err(err!(
                Usage,
                "\"{}\" is not a cluster name",
                name.escape_debug()
            ));
        }
        let listed = self.store.list(&format!("{}/{name}", scope::CLUSTERS))?;
        let identifiers = listed.iter().filter_map(|l| l.name.parse::<u64>().ok());
        identifiers.map(|id| ClusterLayout::new(name, id)).collect()
    }

    /// The registration of one cluster; `None` when the identifier is not registered under the name.
    pub fn registration(&self, layout: &ClusterLayout) -> Result<Option<Registration>> {
        let bytes = self.stored_registration(layout)?;
        bytes
            .map(|bytes| check_registration(self.store(), layout, &bytes))
            .transpose()
    }

    /// As [`Repository::require`], for those who only read: also a cluster whose registration is lost.
    ///
    /// # Errors
    /// Those of [`Repository::require`].
    pub fn require_readable(&self, layout: &ClusterLayout) -> Result<Registration> {
        let required = self.require(layout);
        match &required {
            Err(e) if e.code() == Code::WrongCluster => {
                evidence::registration(self.store(), layout)?.map_or(required, Ok)
            }
            _ => required,
        }
    }

    fn stored_registration(&self, layout: &ClusterLayout) -> Result<Option<Vec<u8>>> {
        get(self.store(), &layout.registration(), json::LIMIT_BYTES)
    }

    /// Requires that the identifier is registered under the name.
    ///
    /// # Errors
    /// `WrongCluster`, naming both identifiers.
    pub fn require(&self, layout: &ClusterLayout) -> Result<Registration> {
        let known = self
            .known()
            .registrations
            .iter()
            .find(|r| r.name == layout.name() && r.system_identifier == layout.system_identifier())
            .cloned();
        if let Some(registration) = known {
            return Ok(registration);
        }
        let Some(registration) = self.registration(layout)? else {
            return Err(self.wrong_cluster(layout)?);
        };
        if self.store.is_remote() {
            self.known().registrations.push(registration.clone());
        }
        Ok(registration)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The history of a timeline: `read`, unless a remote store has shown it before. One that is absent or damaged is read each time.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn history(
        &self,
        layout: &ClusterLayout,
        timeline: TimelineId,
        read: impl FnOnce() -> Result<Option<History>>,
    ) -> Result<Option<History>> {
        let is_it =
            |(l, t, _): &&(ClusterLayout, TimelineId, History)| l.is_of(layout) && *t == timeline;
        if let Some((_, _, history)) = self.known().histories.iter().find(is_it) {
            return Ok(Some(history.clone()));
        }
        let read = read()?;
        if let Some(history) = read.as_ref().filter(|_| self.store.is_remote()) {
            let known = (layout.clone(), timeline, history.clone());
            self.known().histories.push(known);
        }
        Ok(read)
    }

    /// Whether a name is looked at before it is written. A remote store refuses a taken name by itself, so that looking is worth a request
    /// only where names are taken: before the first file, and after one that was there.
    pub fn looks_first(&self) -> bool {
        !self.store.is_remote() || self.is_looked_at_first.load(Ordering::Relaxed)
    }

    /// The layout with the resolutions that were read during the last minute; `None` where they have to be read.
    pub fn known_lives(&self, layout: &ClusterLayout) -> Option<ClusterLayout> {
        let known = self.known();
        let (known, read) = known.lives.as_ref()?;
        (read.elapsed() < LIVES_AGE && known.is_of(layout)).then(|| known.clone())
    }

    /// The layout with the resolutions of the cluster, not older than a minute.
    ///
    /// # Errors
    /// Those of [`Repository::read_lives`].
    pub fn recent_lives(&self, layout: &ClusterLayout) -> Result<ClusterLayout> {
        match self.known_lives(layout) {
            Some(known) => Ok(known),
            None => self.read_lives(layout),
        }
    }

    /// Reads the resolutions of the cluster.
    ///
    /// # Errors
    /// Those of [`Followed::apply`].
    pub fn read_lives(&self, layout: &ClusterLayout) -> Result<ClusterLayout> {
        let read = Followed::Resolved.apply(self, layout.clone())?;
        self.known().lives = Some((read.clone(), Instant::now()));
        Ok(read)
    }

    /// Says whether the name of a file was taken.
    pub fn found_taken(&self, is_taken: bool) {
        self.is_looked_at_first.store(is_taken, Ordering::Relaxed);
    }

    /// Whether segments are streamed below a prefix, as far as that is known now.
    pub fn has_streams(&self, prefix: &str) -> Option<bool> {
        let known = self.known();
        let (_, is_any, at) = known.streams.as_ref().filter(|(of, ..)| of == prefix)?;
        (*is_any || at.elapsed() < UNSTREAMED_AGE).then_some(*is_any)
    }

    /// Says whether segments are streamed below a prefix.
    pub fn found_streams(&self, prefix: String, is_any: bool) {
        self.known().streams = Some((prefix, is_any, Instant::now()));
    }

    /// Says that this process archives a segment.
    pub fn begin_flight(&self, key: Key) -> Flight<'_> {
        self.known().flights.insert(key.clone());
        Flight {
            repository: self,
            key,
        }
    }

    /// Whether this process is archiving the segment.
    pub fn is_in_flight(&self, key: &Key) -> bool {
        self.known().flights.contains(key)
    }

    /// Keeps the own mark of a segment that is stored for certain.
    pub fn keep_mark(&self, key: Key, mark: Mark) {
        let marks = &mut self.known().marks;
        marks.insert(key, mark);
        if marks.len() > MARKS_MAX {
            // Names ascend with time on a timeline.
            marks.pop_first();
        }
    }

    /// The own mark of a stored segment, where it was kept.
    pub fn kept_mark(&self, key: &Key) -> Option<Mark> {
        self.known().marks.get(key).copied()
    }

    fn wrong_cluster(&self, layout: &ClusterLayout) -> Result<Error> {
        if evidence::registration(self.store(), layout)?.is_some() {
            return Ok(err!(
                WrongCluster,
                "the registration \"{}\" is missing, although the repository holds the cluster",
                layout.registration()
            )
            .hint("Nothing was stored. What is there can be read and restored. Register the cluster again on its host, with its data directory: pitr init"));
        }
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
        .hint("Nothing was stored. If this is another cluster, correct --cluster or the repository; after initdb or pg_upgrade, set pgdata and conninfo to the new cluster's, and run \"pitr init --confirm\"."))
    }

    /// Registers a cluster; its being registered already is fine.
    ///
    /// # Errors
    /// `Key` when the repository is encrypted and its MAC key is not configured; what the store says.
    pub fn register(&self, registration: &Registration) -> Result<Published> {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        json::require_mac(self.store.as_ref(), &layout.registration())?;
        json::write_signed(
            self.store.as_ref(),
            &layout.registration(),
            REGISTRATION,
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
            let counts = recorded.counts();
            let Event {
                event,
                segment_size_bytes: Some(size),
                ..
            } = recorded.event
            else {
                continue;
            };
            if event == "segment_size" && counts && !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        Ok(sizes)
    }
}
