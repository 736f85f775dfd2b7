//! A directory of one cluster, and the one of the other cluster that takes its place.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::{exchange, failed, inode_of, make_private, move_to};
use super::{Side, Way};
use crate::durable;
use crate::err;
use crate::error::Result;

/// A directory that one of the other cluster replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) place: PathBuf,
    pub(super) waiting: PathBuf,
    pub(super) replaced: PathBuf,
    pub(super) undone: PathBuf,
    /// Inodes; none where that cluster has no such directory.
    pub(super) old: Option<u64>,
    pub(super) new: Option<u64>,
}

impl Pair {
    pub(super) fn inode(&self, side: Side) -> Option<u64> {
        match side {
            Side::Old => self.old,
            Side::New => self.new,
        }
    }

    fn names(&self) -> [&Path; 4] {
        [&self.place, &self.waiting, &self.replaced, &self.undone]
    }

    /// Whether a cluster's directory has one of the names.
    pub(super) fn has(&self, side: Side) -> Result<bool> {
        let wanted = self.inode(side);
        for path in self.names() {
            if wanted.is_some() && inode_of(path)? == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The path that a cluster's directory has now.
    pub(super) fn find(&self, side: Side) -> Result<Option<&Path>> {
        let Some(wanted) = self.inode(side) else {
            return Ok(None);
        };
        for path in self.names() {
            if inode_of(path)? == Some(wanted) {
                return Ok(Some(path));
            }
        }
        Err(err!(
            NotFound,
            "\"{}\" and the directories beside it are not as the record has them: one of them is gone",
            self.place.display()
        )
        .hint("Nothing was changed here. Somebody has moved or removed a directory that pitr put aside."))
    }

    /// Gives the place to one of the two, and durably so.
    pub(super) fn put(&self, way: Way) -> Result<()> {
        let (incoming, outgoing) = way.sides();
        let aside = match way {
            Way::Replace => &self.replaced,
            Way::Back => &self.waiting,
            Way::Undo => &self.undone,
        };
        let from = self.find(incoming)?;
        let there = inode_of(&self.place)?;
        if there.is_some() && ![self.old, self.new].contains(&there) {
            return Err(err!(
                Refused,
                "\"{}\" is another directory than before",
                self.place.display()
            )
            .hint("It was left as it is. Move it away, then run the command again."));
        }
        if let Some(parent) = aside.parent() {
            make_private(parent)?;
        }
        match from {
            Some(from) if from == self.place => {}
            Some(from) if there.is_some() => exchange(from, &self.place, aside)?,
            Some(from) => move_to(from, &self.place)?,
            None if there.is_some() => move_to(&self.place, aside)?,
            None => {}
        }
        // The outgoing one has the name that the incoming one had before the exchange.
        if let Some(found) = self.find(outgoing)?
            && found != aside
        {
            move_to(found, aside)?;
        }
        for path in self.names() {
            let parent = path.parent().unwrap_or(path);
            match durable::sync_directory_at(parent) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(parent, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the directories of this program that nothing lies in any more.
    pub(super) fn tidy(&self) {
        for path in [&self.waiting, &self.replaced, &self.undone] {
            if let Some(parent) = path.parent().filter(|p| self.place.parent() != Some(p)) {
                // It goes only when it is empty.
                let _ = std::fs::remove_dir(parent);
            }
        }
    }
}

pub(super) fn pair(place: PathBuf, [waiting, replaced, undone]: [PathBuf; 3]) -> Result<Pair> {
    Ok(Pair {
        old: inode_of(&place)?,
        new: inode_of(&waiting)?,
        place,
        waiting,
        replaced,
        undone,
    })
}

/// `replaced-<time>` of `DIR.replaced-<time>`.
pub(super) fn end_of(data: &Pair, aside: &Path) -> String {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let (place, aside) = (name(&data.place), name(aside));
    let end = aside
        .strip_prefix(&place)
        .and_then(|rest| rest.strip_prefix('.'));
    end.unwrap_or(&aside).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever state a kill leaves, each direction leads to its end from there.
    #[test]
    fn a_pair_goes_both_ways_from_every_state() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (n, (first, second)) in [
            ("d", "d.pitr-new"),
            ("d.pitr-new", "d"),
            ("d.replaced", "d"),
            ("d.replaced", "d.pitr-new"),
            ("d", "d.undone"),
            ("d.pitr-new", "d.undone"),
        ]
        .into_iter()
        .enumerate()
        {
            for way in [Way::Replace, Way::Back, Way::Undo] {
                for name in ["d", "d.pitr-new", "d.replaced", "d.undone"] {
                    let _ = std::fs::remove_dir_all(at(name));
                }
                for (name, content) in [(first, "old"), (second, "new")] {
                    std::fs::create_dir(at(name)).unwrap();
                    std::fs::write(at(name).join("which"), content).unwrap();
                }
                let beside = ["d.pitr-new", "d.replaced", "d.undone"].map(at);
                let pair = Pair {
                    old: inode_of(&at(first)).unwrap(),
                    new: inode_of(&at(second)).unwrap(),
                    ..pair(at("d"), beside).unwrap()
                };
                pair.put(way).unwrap();
                let which = |name: &str| std::fs::read_to_string(at(name).join("which")).ok();
                let (in_place, aside, other) = match way {
                    Way::Replace => ("new", "d.replaced", "old"),
                    Way::Back => ("old", "d.pitr-new", "new"),
                    Way::Undo => ("old", "d.undone", "new"),
                };
                assert_eq!(which("d").as_deref(), Some(in_place), "{n} {way:?}");
                assert_eq!(which(aside).as_deref(), Some(other), "{n} {way:?}");
                assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
            }
        }
    }

    #[test]
    fn a_foreign_directory_in_the_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["d", "d.pitr-new", "d.replaced"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let beside = ["d.pitr-new", "d.replaced", "d.undone"].map(at);
        let pair = Pair {
            old: inode_of(&at("d.replaced")).unwrap(),
            ..pair(at("d"), beside).unwrap()
        };
        let refused = pair.put(Way::Replace).unwrap_err();
        assert!(
            refused.to_string().contains("another directory"),
            "{refused}"
        );
        assert!(at("d.pitr-new").exists() && at("d").exists());
    }
}
