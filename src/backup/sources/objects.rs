//! Files that exist in memory alone: what a program printed, in pieces that people look for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{directory, file, key};
use crate::backup::files::{Set, member};
use crate::error::Result;
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::walk::Taken;

/// Files by path.
pub struct Objects {
    /// Content of each.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Things that could not be read.
    pub left_out: LeftOut,
    pub identity: String,
    /// Facts about the source.
    pub facts: Value,
    /// The result, once everything is stored.
    pub taken: Taken,
}

impl Kind for Objects {
    crate::backup::files::of_files!();

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let now = work.host.now();
        let sizes = self.files.values().map(|content| content.len() as u64);
        work.host.progress.phase("copy", Some(sizes.sum()));
        let mut sink = work.writer.sink();
        for path in directories(self.files.keys()) {
            sink.node(&key(path.as_bytes())?, directory(now))?;
        }
        for (path, content) in &self.files {
            (work.tick)()?;
            sink.begin(key(path.as_bytes())?)?;
            sink.append(content)?;
            sink.end_node(file(now, *blake3::hash(content).as_bytes()))?;
            self.taken.read += 1;
            self.taken.read_bytes += content.len() as u64;
            work.host.progress.advance(content.len() as u64);
        }
        sink.finish()?;
        self.taken.left_out = std::mem::take(&mut self.left_out);
        Ok(Produced {
            incomplete_count: self.taken.left_out.count(Part::Entry),
            member: member(&self.taken, self.facts()),
            ..Produced::default()
        })
    }
}

impl Set for Objects {
    fn taken(&mut self) -> Taken {
        std::mem::take(&mut self.taken)
    }

    fn facts(&self) -> Option<Value> {
        Some(self.facts.clone())
    }
}

/// Pure: the root, and every directory on the way to a path.
fn directories<'p>(paths: impl Iterator<Item = &'p String>) -> BTreeSet<&'p str> {
    let mut found = BTreeSet::from([""]);
    for path in paths {
        let mut rest = path.as_str();
        while let Some((above, _)) = rest.rsplit_once('/') {
            found.insert(above);
            rest = above;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_on_the_way_is_there() {
        let paths = ["a/b/c", "a/d", "e"].map(str::to_owned);
        let found: Vec<_> = directories(paths.iter()).into_iter().collect();
        assert_eq!(found, ["", "a", "a/b"]);
    }
}
