//! The seam between the engine and a kind of auxiliary content: what is backed up, and how it is put back.

use std::path::Path;

use serde_json::Value;

use super::filekey::Naming;
use super::reader::Snapshot;
use super::writer::SnapshotWriter;
use crate::error::Result;
use crate::host::Host;

/// A kind of content.
pub trait Kind {
    /// Returns its name in keys: `files`, `redis`.
    fn name(&self) -> &'static str;

    /// Returns what tells this source from others, as text; none where any host may write.
    fn identity(&self) -> Option<String>;

    /// Reads the content into the snapshot.
    ///
    /// # Errors
    /// `Interrupted`; those of the source, of the store, and of `tick`.
    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced>;

    /// Puts a backup back below a directory that is empty.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    fn restore(&self, snapshot: &Snapshot<'_>, member: &Value, to: &Path) -> Result<()>;
}

/// The backup that a kind produces.
pub struct Work<'w, 'scope> {
    /// Takes the files.
    pub writer: &'w SnapshotWriter<'scope>,
    /// How paths lead to keys.
    pub naming: Naming,
    /// Stop flag, progress and scratch.
    pub host: &'w Host,
    /// Keeps the claim; called every second at least.
    pub tick: &'w mut dyn FnMut() -> Result<()>,
}

/// The facts that a kind gives about its product.
#[derive(Debug, Default)]
pub struct Produced {
    /// Files that changed while they were read.
    pub unstable_count: u64,
    /// Entries that could not be read.
    pub incomplete_count: u64,
    /// The path that keys are relative to.
    pub base: Option<String>,
    /// The member of the root that belongs to the kind.
    pub member: Value,
}
