//! Directories as a kind of content.

use std::path::Path;

use serde_json::json;

use crate::config;
use crate::error::Result;
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::tree::left_out::{Example, Part};
use crate::tree::selection::Selection;
use crate::tree::walk::{self, Taken, Tree};

/// Examples of entries that could not be read, as a root has them.
const EXAMPLES: usize = 100;

/// A directory with what is in it.
pub struct Files<'a> {
    source: &'a Path,
    identity: String,
    /// Which of its entries are taken.
    pub selection: Selection,
    readers: usize,
    /// The result of the walk, once it is over.
    pub taken: Taken,
}

impl<'a> Files<'a> {
    /// The configured directory, read by so many threads.
    ///
    /// # Errors
    /// `Config` for a pattern that has no meaning.
    pub fn new(files: &'a config::Files, identity: String, readers: usize) -> Result<Files<'a>> {
        let mut selection = Selection::new(&files.exclude)?;
        selection.markers.clone_from(&files.exclude_if_present);
        selection.caches = files.exclude_caches;
        selection.larger_than_bytes = files.exclude_larger_than_bytes;
        selection.one_file_system = files.one_file_system;
        Ok(Files {
            source: &files.source,
            identity,
            selection,
            readers,
            taken: Taken::default(),
        })
    }
}

impl Kind for Files<'_> {
    fn name(&self) -> &'static str {
        "files"
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn takes_changes(&self) -> bool {
        true
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        work.host.progress.phase("copy", None);
        let tree = Tree {
            root: self.source,
            selection: &self.selection,
            before: work.prior,
            readers: self.readers,
            host: work.host,
        };
        self.taken = walk::take(&tree, work.writer, work.tick)?;
        let left_out = &self.taken.left_out;
        let examples = left_out.examples().iter().take(EXAMPLES);
        Ok(Produced {
            unstable_count: self.taken.unstable,
            incomplete_count: left_out.count(Part::Entry) + left_out.count(Part::Content),
            base: self.source.to_str().map(str::to_owned),
            member: json!({
                "excluded_count": self.taken.excluded,
                "unchanged_count": self.taken.unchanged,
                "read_count": self.taken.read,
                "read_bytes": self.taken.read_bytes,
                "left_out": examples.map(Example::as_json).collect::<Vec<_>>(),
            }),
        })
    }
}
