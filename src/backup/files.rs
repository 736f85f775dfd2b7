//! Directories as a kind of content.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::config;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::snapshot::kind::{Before, Kind, Produced, Work};
use crate::tree::left_out::{Example, Part};
use crate::tree::replace::DEPOT_PATTERN;
use crate::tree::selection::Selection;
use crate::tree::walk::{self, Taken, Tree};

/// Examples of entries that could not be read, as a root has them.
const EXAMPLES: usize = 100;

/// A set of files that can be taken.
pub trait Set: Kind {
    /// Hands the result over, once it is taken.
    fn taken(&mut self) -> Taken;

    /// Returns facts about a source that is no directory.
    fn facts(&self) -> Option<Value>;

    /// Returns what the operator should hear of once it is taken.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A directory with what is in it.
pub struct Files {
    /// The directory that is read.
    pub root: PathBuf,
    /// The directory that is configured; none of a source that is none.
    pub base: Option<String>,
    /// The identity of the source.
    pub identity: String,
    /// Which of its entries are taken.
    pub selection: Selection,
    /// How many threads read.
    pub readers: usize,
    /// Whether files are the same ones from run to run, so that a prior tells which have changed.
    pub is_lasting: bool,
    /// The watcher that wants it; nothing is left of a backup for one that has nothing new upon its prior.
    pub watched: Option<Watched>,
    /// Facts about a source that is no directory.
    pub facts: Option<Value>,
    /// The result of the walk, once it is over.
    pub taken: Taken,
}

/// A watcher of a directory, which walks more often than it leaves backups.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watched {
    /// When its last walk that came to its end was begun.
    pub walked: Option<TimestampTz>,
    /// The newest mark of a recovery set waits for a backup that begins behind this moment.
    pub marked: Option<TimestampTz>,
}

/// The rules of a set of files.
///
/// # Errors
/// `Config` for a pattern that has no meaning.
pub fn selection(files: &config::Files) -> Result<Selection> {
    // Depots of restores in place lie in the source. The last pattern decides.
    let mut patterns = files.exclude.clone();
    patterns.push(DEPOT_PATTERN.to_owned());
    let mut selection = Selection::new(&patterns)?;
    selection.markers.clone_from(&files.exclude_if_present);
    selection.caches = files.exclude_caches;
    selection.larger_than_bytes = files.exclude_larger_than_bytes;
    selection.one_file_system = files.one_file_system;
    Ok(selection)
}

/// The member of a root: the result, and facts about a source that is no directory.
pub fn member(taken: &Taken, facts: Option<Value>) -> Value {
    let examples = taken.left_out.examples().iter().take(EXAMPLES);
    let mut member = json!({
        "excluded_count": taken.excluded,
        "excluded_by_state_count": taken.excluded_by_state.count,
        "unchanged_count": taken.unchanged,
        "read_count": taken.read,
        "read_bytes": taken.read_bytes,
        "reused_bytes": taken.reused_bytes,
        "left_out": examples.map(Example::as_json).collect::<Vec<_>>(),
    });
    let by_state = taken.excluded_by_state.paths.iter();
    let by_state: Vec<&str> = by_state
        .filter_map(|path| std::str::from_utf8(path).ok())
        .collect();
    if let Some(member) = member.as_object_mut() {
        if !by_state.is_empty() {
            member.insert("excluded_by_state".to_owned(), by_state.into());
        }
        if let Some(facts) = facts {
            member.insert("source".to_owned(), facts);
        }
    }
    member
}

/// The name and the identity of a [`Kind`] that is a set of files.
macro_rules! of_files {
    () => {
        fn name(&self) -> &'static str {
            "files"
        }

        fn identity(&self) -> Option<String> {
            Some(self.identity.clone())
        }
    };
}
pub(in crate::backup) use of_files;

impl Kind for Files {
    crate::backup::files::of_files!();

    fn takes_changes(&self) -> bool {
        self.is_lasting
    }

    fn takes_changes_alone(&self) -> bool {
        self.watched.is_some()
    }

    fn wanted_since(&self) -> Option<TimestampTz> {
        self.watched.and_then(|watched| watched.marked)
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        work.host.progress.phase("copy", None);
        let tree = Tree {
            root: &self.root,
            selection: &self.selection,
            before: work
                .prior
                .map(|before| self.since_walk(before, work.host.now())),
            readers: self.readers,
            is_shared: true,
            host: work.host,
        };
        self.taken = walk::take(&tree, work.writer, work.tick)?;
        let mut member = member(&self.taken, self.facts.clone());
        member["rules"] = self.selection.digest().into();
        let left_out = &self.taken.left_out;
        Ok(Produced {
            unstable_count: self.taken.unstable,
            incomplete_count: left_out.count(Part::Entry) + left_out.count(Part::Content),
            base: self.base.clone(),
            member,
        })
    }
}

impl Files {
    /// Turns of files count from the last walk, which may have left no backup. A clock that was set back tells nothing.
    fn since_walk<'w>(&self, before: Before<'w>, now: TimestampTz) -> Before<'w> {
        let walked = self.watched.and_then(|watched| watched.walked);
        let walked = walked.filter(|walked| *walked <= now);
        Before {
            turns_since: before.turns_since.max(walked.unwrap_or(before.turns_since)),
            ..before
        }
    }
}

impl Set for Files {
    fn taken(&mut self) -> Taken {
        std::mem::take(&mut self.taken)
    }

    fn facts(&self) -> Option<Value> {
        self.facts.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.taken.sample.warnings(
            "files",
            "have other content than before, and no time says so: a disk or a program changed them; they were stored as they are now, and earlier backups have what was there",
            "cannot be read; the backup has the content of the one before",
        )
    }
}
