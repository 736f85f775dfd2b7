//! The histories of timelines that a repository does not have yet: in the journal's directory, so that WAL of a timeline waits in the journal
//! for its history, and commits wait for neither.
//!
//! No WAL of a timeline is stored in a repository before its history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable;
use crate::error::{Error, Result};
use crate::journal::Segment;
use crate::pg::timeline::{History, TimelineId};

/// The beginning of the names of the files. A server calls its own otherwise: nothing takes one for the history of a server beside its WAL.
const PREFIX: &str = "history-";

/// A history, and the numbers of the repositories that lack it.
struct Waiting {
    content: Arc<[u8]>,
    lacking: BTreeSet<usize>,
}

/// The histories that wait, and where their files are.
pub(super) struct Histories {
    directory: PathBuf,
    waiting: Mutex<BTreeMap<TimelineId, Waiting>>,
}

impl Histories {
    /// Begins with what an earlier process left beside these segments, for so many repositories. Files of timelines before all of the WAL are
    /// removed, and so is one that cannot be read: the server gives it again.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(super) fn begin(
        directory: &Path,
        held: &[Segment],
        repositories: usize,
    ) -> Result<Histories> {
        let failed = |e| {
            let what = format!("read the histories in \"{}\"", directory.display());
            Error::from_io(what, e)
        };
        let first = held.first().map(|segment| segment.name.timeline);
        let mut waiting = BTreeMap::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(timeline) = timeline_of(&entry.file_name()) else {
                continue;
            };
            let content = std::fs::read(entry.path()).map_err(failed)?;
            let is_needed = first.is_some_and(|first| timeline >= first);
            if !is_needed || History::parse(timeline, &content).is_err() {
                let _ = std::fs::remove_file(entry.path());
                continue;
            }
            let content = content.into();
            let lacking = (0..repositories).collect();
            waiting.insert(timeline, Waiting { content, lacking });
        }
        Ok(Histories {
            directory: directory.to_owned(),
            waiting: Mutex::new(waiting),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<TimelineId, Waiting>> {
        // Every change is one of the map, and each entry is whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, timeline: TimelineId) -> PathBuf {
        self.directory.join(format!("{PREFIX}{timeline}"))
    }

    /// Returns the history of a timeline that waits.
    pub(super) fn of(&self, timeline: TimelineId) -> Option<Arc<[u8]>> {
        let waiting = self.waiting();
        waiting.get(&timeline).map(|one| Arc::clone(&one.content))
    }

    /// Keeps a history for the repositories that lack it, also for the next process.
    ///
    /// # Errors
    /// Those of the filesystem; this process knows the history even so.
    pub(super) fn keep(
        &self,
        (timeline, content): (TimelineId, &[u8]),
        lacking: BTreeSet<usize>,
        nonce: u64,
    ) -> Result<()> {
        let mut waiting = self.waiting();
        let one = Waiting {
            content: content.into(),
            lacking,
        };
        waiting.insert(timeline, one);
        let written = durable::replace(&self.path(timeline), content, nonce);
        written.map_err(|e| {
            let what = format!("keep the history of timeline {}", timeline.decimal());
            Error::from_io(what, e)
        })
    }

    /// Returns what a repository lacks before it may have WAL of a timeline.
    pub(super) fn lacked(
        &self,
        index: usize,
        timeline: TimelineId,
    ) -> Vec<(TimelineId, Arc<[u8]>)> {
        let waiting = self.waiting();
        let lacked = waiting
            .range(..=timeline)
            .filter(|(_, one)| one.lacking.contains(&index));
        lacked
            .map(|(timeline, one)| (*timeline, Arc::clone(&one.content)))
            .collect()
    }

    /// A repository has a history. The file of one that every repository has is removed.
    pub(super) fn stored(&self, index: usize, timeline: TimelineId) {
        let mut waiting = self.waiting();
        let Some(one) = waiting.get_mut(&timeline) else {
            return;
        };
        one.lacking.remove(&index);
        if one.lacking.is_empty() {
            waiting.remove(&timeline);
            // One that stays is compared with the repositories after the next start.
            let _ = std::fs::remove_file(self.path(timeline));
        }
    }
}

/// The timeline whose history a file of this name holds.
fn timeline_of(name: &std::ffi::OsStr) -> Option<TimelineId> {
    name.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::pg::lsn::Lsn;
    use crate::pg::segment::{SegmentName, SegmentSize};
    use crate::pg::timeline::tli;

    fn segment(timeline: u32) -> Segment {
        let size = SegmentSize::new(1 << 20).unwrap();
        let from = Lsn(3 << 20);
        Segment {
            name: SegmentName::of(tli(timeline), from, size),
            from,
            to: Lsn(from.0 + 1),
            end: Lsn(4 << 20),
            is_last: true,
            is_damaged: false,
        }
    }

    fn history(timeline: u32) -> Vec<u8> {
        let root = History::root(TimelineId::FIRST);
        let child = root.child(tli(timeline), Lsn(3 << 20), b"no recovery target");
        child.to_bytes()
    }

    fn timelines(histories: &Histories, index: usize, timeline: u32) -> Vec<u32> {
        let lacked = histories.lacked(index, tli(timeline));
        lacked.iter().map(|(t, _)| t.get()).collect()
    }

    #[test]
    fn each_repository_lacks_what_leads_to_a_timeline_until_it_has_it_also_behind_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let begin = |held: &[Segment]| Histories::begin(path, held, 2).unwrap();
        let histories = begin(&[]);
        for timeline in [2, 3] {
            let both = BTreeSet::from([0, 1]);
            let nonce = u64::from(timeline);
            let one = history(timeline);
            histories.keep((tli(timeline), &one), both, nonce).unwrap();
        }
        assert_eq!(timelines(&histories, 0, 1), [0; 0]);
        assert_eq!(timelines(&histories, 0, 2), [2]);
        assert_eq!(timelines(&histories, 1, 3), [2, 3]);
        histories.stored(0, tli(2));
        histories.stored(0, tli(7));
        assert_eq!(timelines(&histories, 0, 3), [3]);
        assert_eq!(histories.of(tli(2)).as_deref(), Some(&*history(2)));
        // The next process asks both again.
        let histories = begin(&[segment(1), segment(2)]);
        assert_eq!(timelines(&histories, 0, 3), [2, 3]);
        for index in [0, 1] {
            histories.stored(index, tli(2));
        }
        assert_eq!(histories.of(tli(2)), None);
        assert_eq!(timelines(&begin(&[segment(1)]), 1, 9), [3]);
        // WAL begins behind it.
        assert_eq!(timelines(&begin(&[segment(4)]), 1, 9), [0; 0]);
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn rubbish_is_no_history_and_a_directory_that_is_gone_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let held = [segment(1)];
        std::fs::write(path.join("history-00000002"), "rubbish").unwrap();
        std::fs::write(path.join("history-x"), "rubbish").unwrap();
        let histories = Histories::begin(path, &held, 1).unwrap();
        assert_eq!(timelines(&histories, 0, 9), [0; 0]);
        assert!(!path.join("history-00000002").exists());
        std::fs::remove_file(path.join("history-x")).unwrap();
        std::fs::remove_dir(path).unwrap();
        let gone = Histories::begin(path, &held, 1).err().unwrap();
        assert_eq!(gone.code(), Code::Io);
        let kept = histories.keep((tli(2), &history(2)), BTreeSet::from([0]), 1);
        assert_eq!(kept.unwrap_err().code(), Code::Io);
        assert_eq!(timelines(&histories, 0, 2), [2]);
    }
}
