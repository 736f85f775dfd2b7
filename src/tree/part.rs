//! A part of a snapshot's tree: the entries that globs name, what is below them, and the directories on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::beneath;
use super::selection::line;
use crate::err;
use crate::error::Result;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::NodeKind;
use crate::snapshot::reader::Snapshot;

/// The entries that are restored.
#[derive(Debug)]
pub struct Part {
    globs: Vec<Gitignore>,
    /// Directories above entries that globs name.
    above: BTreeSet<Vec<u8>>,
    /// The first hard link of the part to a file outside it: it gets the content. By the key of the file.
    leaders: BTreeMap<FileKey, FileKey>,
}

impl Part {
    /// Finds what globs, in the syntax of gitignore, name in a snapshot.
    ///
    /// # Errors
    /// `Usage` for a glob without a meaning; `NotFound` for one that names nothing; those of `tick` and of the store.
    pub fn find(
        snapshot: &Snapshot<'_>,
        globs: &[String],
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Part> {
        let mut part = Part {
            globs: globs
                .iter()
                .map(|glob| compiled(glob))
                .collect::<Result<_>>()?,
            above: BTreeSet::new(),
            leaders: BTreeMap::new(),
        };
        let mut is_used = vec![false; globs.len()];
        let mut links = Vec::new();
        for item in snapshot.items() {
            tick()?;
            let item = item?;
            let Metadata::Node(node) = &item.metadata else {
                continue;
            };
            if item.key.is_attachment() || item.path.is_empty() {
                continue;
            }
            let is_directory = node.kind == NodeKind::Directory;
            let mut is_named = false;
            for (glob, is_used) in part.globs.iter().zip(&mut is_used) {
                let names = names(glob, &item.path, is_directory);
                *is_used |= names;
                is_named |= names;
            }
            if !is_named {
                continue;
            }
            let (mut above, _) = beneath::cut(&item.path);
            while !above.is_empty() && part.above.insert(above.to_vec()) {
                above = beneath::cut(above).0;
            }
            if let NodeKind::HardLink(to) = &node.kind {
                links.push((to.clone(), item.key));
            }
        }
        if let Some((glob, _)) = globs.iter().zip(is_used).find(|(_, is_used)| !is_used) {
            return Err(err!(
                NotFound,
                "the backup has nothing that \"{}\" names",
                glob.escape_debug()
            )
            .hint("Nothing was written. Patterns are those of gitignore, relative to the source: pitr files ls shows the paths."));
        }
        for (to, link) in links {
            if !part.takes(&to.path(Naming::Tree), false) {
                part.leaders.entry(to).or_insert(link);
            }
        }
        Ok(part)
    }

    /// Whether an entry is restored.
    pub fn takes(&self, path: &[u8], is_directory: bool) -> bool {
        path.is_empty()
            || (is_directory && self.above.contains(path))
            || self.is_named(path, is_directory)
    }

    /// Whether a glob names an entry, or a directory above it.
    pub fn is_named(&self, path: &[u8], is_directory: bool) -> bool {
        let mut globs = self.globs.iter();
        globs.any(|glob| names(glob, path, is_directory))
    }

    /// The entry of the part that stands for a file outside it.
    pub fn leader(&self, to: &FileKey) -> Option<&FileKey> {
        self.leaders.get(to)
    }
}

fn compiled(glob: &str) -> Result<Gitignore> {
    let wrong = |e: ignore::Error| err!(Usage, "\"{}\" has no meaning: {e}", glob.escape_debug());
    let mut builder = GitignoreBuilder::new("");
    // As a shell shows it, and as people type it.
    let glob_below = glob.strip_prefix("./").map(|rest| format!("/{rest}"));
    let text = glob_below.as_deref().unwrap_or(glob);
    builder.add_line(None, &line(text)).map_err(wrong)?;
    builder.build().map_err(wrong)
}

/// Whether a glob names an entry, or a directory above it.
fn names(glob: &Gitignore, path: &[u8], is_directory: bool) -> bool {
    let path = Path::new(OsStr::from_bytes(path));
    glob.matched_path_or_any_parents(path, is_directory)
        .is_ignore()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_names_what_is_below_a_directory() {
        let named =
            |glob: &str, path: &str| names(&compiled(glob).unwrap(), path.as_bytes(), false);
        for (glob, path) in [
            ("*.jpg", "a/b.jpg"),
            ("images", "images/2026/x"),
            ("/images/*.jpg", "images/a.jpg"),
            ("./a", "a"),
            ("images/2026/", "images/2026/x/y"),
            ("#recycle", "a/#recycle/x"),
        ] {
            assert!(named(glob, path), "{glob} {path}");
        }
        for (glob, path) in [
            ("/images/*.jpg", "images/b/a.jpg"),
            ("images/", "images"),
            ("./a", "b/a"),
            ("!a", "a"),
            ("a*b", "a/b"),
        ] {
            assert!(!named(glob, path), "{glob} {path}");
        }
    }
}
