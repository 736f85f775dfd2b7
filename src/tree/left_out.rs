//! The things that a walk did not take, or an extraction did not make again: counted by part, with the first examples.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::error::Result;

/// Examples that are kept.
const EXAMPLES: usize = 1000;

/// The part of an entry that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Entry,
    /// The content of the directory.
    Content,
    /// Owner and group.
    Owner,
    /// Permissions, or the bits setuid and setgid.
    Mode,
    /// An extended attribute or an ACL.
    Xattr,
    /// The time of modification.
    Time,
    /// A tag of a newer version.
    Tag,
}

impl Part {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Part::Entry => "entry",
            Part::Content => "content",
            Part::Owner => "owner",
            Part::Mode => "mode",
            Part::Xattr => "xattr",
            Part::Time => "time",
            Part::Tag => "tag",
        }
    }
}

/// One thing that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The entry.
    pub path: Vec<u8>,
    /// Part of the entry.
    pub part: Part,
    pub why: String,
}

impl Example {
    /// The example as commands print it, and as roots have it.
    pub fn as_json(&self) -> serde_json::Value {
        serde_json::json!({
            "path": String::from_utf8_lossy(&self.path),
            "part": self.part.name(),
            "reason": self.why,
        })
    }
}

/// All that was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    counts: BTreeMap<Part, u64>,
    examples: Vec<Example>,
}

impl LeftOut {
    /// Counts one thing.
    pub fn add(&mut self, path: &[u8], part: Part, why: impl Display) {
        *self.counts.entry(part).or_default() += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example {
                path: path.to_vec(),
                part,
                why: why.to_string(),
            });
        }
    }

    /// Counts one thing as [`LeftOut::add`] does. It never fails: its caller ends with it, and the work goes on.
    pub fn leave(&mut self, path: &[u8], part: Part, why: impl Display) -> Result<()> {
        self.add(path, part, why);
        Ok(())
    }

    /// Adds what another thread left out.
    pub fn merge(&mut self, other: LeftOut) {
        for (part, count) in other.counts {
            *self.counts.entry(part).or_default() += count;
        }
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }

    /// How much of one part was left out.
    pub fn count(&self, part: Part) -> u64 {
        self.counts.get(&part).copied().unwrap_or(0)
    }

    /// How much was left out in all.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The first thousand.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }
}
