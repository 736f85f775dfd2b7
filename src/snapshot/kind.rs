//! The seam between the engine and a kind of auxiliary content: what is backed up.

use serde_json::Value;

use super::filekey::Naming;
use super::reader::Snapshot;
use super::writer::SnapshotWriter;
use crate::error::Result;
use crate::host::Host;
use crate::pg::time::TimestampTz;

/// A kind of content.
pub trait Kind {
    /// Returns its name in keys: `files`, `redis`.
    fn name(&self) -> &'static str;

    /// Returns what tells this source from others, as text; none where any host may write.
    fn identity(&self) -> Option<String>;

    /// Returns the features that a reader must know, beside that of nodes.
    fn features(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it can leave out of the snapshot what has not changed since a prior.
    fn takes_changes(&self) -> bool {
        false
    }

    /// Whether it hands everything over each time, so that a map of its own is shorter than one upon the prior's. Content is taken over from there
    /// all the same.
    fn begins_anew(&self) -> bool {
        false
    }

    /// Whether nothing is left of a backup that has nothing new upon its prior.
    fn takes_changes_alone(&self) -> bool {
        false
    }

    /// The moment from which on a backup has to begin before it is of use to somebody, also where it has nothing new.
    fn wanted_since(&self) -> Option<TimestampTz> {
        None
    }

    /// Reads the content into the snapshot.
    ///
    /// # Errors
    /// `Interrupted`; those of the source, of the store, and of `tick`.
    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced>;
}

/// The backup that a kind produces.
pub struct Work<'w, 'scope> {
    /// Takes the files.
    pub writer: &'w SnapshotWriter<'scope>,
    /// How paths lead to keys.
    pub naming: Naming,
    /// The backup that this one builds on; none of a full one.
    pub prior: Option<Before<'w>>,
    /// Stop flag, progress and scratch.
    pub host: &'w Host,
    /// Keeps the claim; called every second at least.
    pub tick: &'w mut dyn FnMut() -> Result<()>,
}

/// A backup that another one builds on.
#[derive(Clone, Copy)]
pub struct Before<'w> {
    /// Its map.
    pub snapshot: &'w Snapshot<'w>,
    /// When it was begun.
    pub start_time: TimestampTz,
    /// Content that nothing says has changed had its turns until then.
    pub turns_since: TimestampTz,
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
