//! The names that a backup met, laid beside those of its prior at the end: what the prior has and the backup did not meet is gone.

use std::path::Path;

use super::filekey::{FileKey, Naming};
use super::reader::Snapshot;
use super::sink::FileSink;
use super::sort::{MEMORY_BYTES, Sorter};
use crate::error::Result;

/// Names in any order, sorted within a memory ceiling.
pub struct Arrived(Sorter);

impl Arrived {
    /// No names yet; `scratch` takes those that do not fit into memory.
    pub fn new(scratch: &Path) -> Arrived {
        Arrived(Sorter::new(scratch, MEMORY_BYTES))
    }

    /// Takes a name down.
    ///
    /// # Errors
    /// Those of the scratch file.
    pub fn add(&mut self, key: &FileKey) -> Result<()> {
        self.0.push(key.as_bytes(), &[])
    }

    /// Records each name of `prior` that did not arrive as gone. Calls `tick` for each that did.
    ///
    /// # Errors
    /// Those of the scratch file, of the prior's map, and of `tick`.
    pub fn finish(
        self,
        prior: &Snapshot<'_>,
        naming: impl Into<Naming>,
        sink: &FileSink<'_>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let naming = naming.into();
        let mut items = prior.items();
        let mut next = items.next().transpose()?;
        self.0.drain(&mut |key, _| {
            let key = FileKey::decode(key, naming)?;
            tick()?;
            while let Some(gone) = next.take_if(|item| item.key < key) {
                sink.gone(&gone.key)?;
                next = items.next().transpose()?;
            }
            if next.take_if(|item| item.key == key).is_some() {
                next = items.next().transpose()?;
            }
            Ok(())
        })?;
        while let Some(gone) = next {
            sink.gone(&gone.key)?;
            next = items.next().transpose()?;
        }
        Ok(())
    }
}
