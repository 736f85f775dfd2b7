//! The seam between a backup and the way in which its files are read: over the replication protocol ([`super::stream`]), or from the
//! data directory ([`super::local`]).

use std::thread::Scope;

use super::Options;
use super::incremental::Prior;
use super::incremental::prior::Shape;
use super::rate::Rate;
use super::source::{ServerFacts, Source};
use super::stream::ReceivedManifest;
use crate::error::Result;
use crate::host::Host;
use crate::pg::control::ControlFile;
use crate::pg::label::BackupLabel;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::cluster::{DamagedPage, LeftOutDatabase, Method};
use crate::snapshot::filekey::ClusterNaming;
use crate::snapshot::writer::SnapshotWriter;
use crate::store::Store;
use crate::wire::basebackup::{BackupEnd, BackupStart, BaseBackupOptions};

/// Most pages that a root lists.
pub const LISTED_PAGES: usize = 10_000;

/// A way to read the files of a cluster.
pub trait Producer {
    /// Returns its name in the root.
    fn method(&self) -> Method;

    /// Returns how many sinks hold content at one time, for so many cores.
    fn sinks(&self, _jobs: usize) -> usize {
        1
    }

    /// Refuses what cannot work, before anything is stored.
    ///
    /// # Errors
    /// `Refused`, `Denied`, `Config`, and those of the server.
    fn prepare(&mut self, _source: &mut dyn Source, _facts: &ServerFacts) -> Result<()> {
        Ok(())
    }

    /// Returns what the pages of the server's files depend on; [`Producer::prepare`] comes before.
    ///
    /// # Errors
    /// Why that is not known, for a sentence.
    fn shape(&self) -> std::result::Result<Shape, String>;

    /// Returns why the next backup stores everything, whatever is wished; [`Producer::prepare`] comes before.
    ///
    /// # Errors
    /// `Damaged`, and those of the files.
    fn why_full(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Starts the backup on the server, copies its files into the snapshot, and stops it.
    ///
    /// # Errors
    /// `Interrupted`; `Damaged` when the files are not those of the server's backup; those of the server, the files and the store.
    fn produce(&mut self, source: &mut dyn Source, work: Work<'_, '_, '_>) -> Result<Produced>;
}

/// The backup that a producer works for.
pub struct Work<'w, 'scope, 'env> {
    /// Scope in which threads may be started.
    pub threads: &'scope Scope<'scope, 'env>,
    /// Takes the files.
    pub writer: &'w SnapshotWriter<'scope>,
    /// How tablespaces name their directories.
    pub naming: ClusterNaming,
    pub facts: &'w ServerFacts,
    /// The operator's wishes.
    pub options: &'w Options,
    /// The same, as the server is asked.
    pub request: &'w BaseBackupOptions,
    /// Stop flag, progress and scratch.
    pub host: &'w Host,
    /// The repository's store.
    pub store: &'w dyn Store,
    /// The cluster's keys.
    pub layout: &'w ClusterLayout,
    pub id: &'w BackupId,
    /// The backup on whose map an incremental builds.
    pub prior: Option<&'w Prior<'w>>,
    /// The speed at which files are read.
    pub rate: &'w Rate,
    /// Hears how it goes.
    pub watch: &'w mut dyn Watch,
}

/// Follows a backup while its files are copied.
pub trait Watch {
    /// Hears how the backup began.
    ///
    /// # Errors
    /// Those of the claim, and of the system.
    fn began(&mut self, start: &BackupStart) -> Result<()>;

    /// Keeps the claim; called every second at least.
    ///
    /// # Errors
    /// Those of the claim.
    fn tick(&mut self) -> Result<()>;
}

/// The backup that a producer has read.
pub struct Produced {
    /// How the backup began.
    pub start: BackupStart,
    /// How it ended.
    pub end: BackupEnd,
    /// `backup_label`.
    pub label: BackupLabel,
    /// `pg_control`.
    pub control: ControlFile,
    /// The server's manifest, where it gave one.
    pub manifest: Option<ReceivedManifest>,
    /// Whether every page was read.
    pub has_scanned: bool,
    /// Databases that lie there without content, by the marker of the restore that left them out.
    pub left_out: Vec<LeftOutDatabase>,
    /// Pages that failed their checksum; of a stream they are located later.
    pub damage: Damage,
}

/// Pages that failed their checksum.
#[derive(Debug, Default)]
pub struct Damage {
    /// The first of them, in file order.
    pub pages: Vec<DamagedPage>,
    /// How many there are in all.
    pub count: u64,
}
