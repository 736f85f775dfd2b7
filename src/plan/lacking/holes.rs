//! Holes behind backups that retention left on purpose on one side, and that the other one has, too.

use std::collections::BTreeMap;

use super::{Asked, Lacking};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::wal::{Names, Paths};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::wal::inventory::Timeline;
use crate::wal::survey::Root;

impl Asked<'_> {
    /// The records of holes that the receiving side lacks: subject and the last part of the key. Another first hole may be a loss, and is none of these.
    pub(super) fn holes(&self, paths: &Paths<'_>) -> Vec<(BackupId, String)> {
        let there = with_copied(&self.to.timelines, &self.out);
        let is_same = |root: &Root| {
            let begin = |target, held: &BTreeMap<_, _>| {
                let hole = paths.hole_behind(target, root.start_lsn, &Names(held));
                hole.map(|(from, _)| from)
            };
            let mut targets = paths
                .timelines()
                .filter(|t| paths.leads_through(*t, root.timeline, root.stop_lsn));
            targets.any(|target| {
                let here = begin(target, &self.from.timelines);
                here.is_some() && here == begin(target, &there)
            })
        };
        let mut lacking = Vec::new();
        for (id, subject, root) in self.from.committed() {
            let trimmed = event::standing(&subject.events, event::TRIMMED, "");
            let known = self.to.ids.get(id).filter(|s| s.root().is_some());
            let is_known = known.is_some_and(|known| event::is_trimmed(&known.events));
            let comes = known.is_some() || self.out.backups.contains(id);
            let is_torn = self.torn.contains(&root.timeline);
            let record = trimmed.first().filter(|_| comes && !is_known && !is_torn);
            if let Some(record) = record.filter(|_| is_same(root)) {
                lacking.push((id.clone(), record.name.clone()));
            }
        }
        lacking
    }
}

/// The WAL of the receiving side once everything is copied.
fn with_copied(
    to: &BTreeMap<TimelineId, Timeline>,
    lacking: &Lacking,
) -> BTreeMap<TimelineId, Timeline> {
    let mut there = to.clone();
    for (id, copied) in &lacking.segments {
        let into = there.entry(*id).or_default();
        into.segments = std::mem::take(&mut into.segments).union(copied.clone());
    }
    there
}
