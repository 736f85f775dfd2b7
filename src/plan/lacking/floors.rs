//! The oldest backups that the receiving side keeps: an older one counts as expired there.

use std::collections::BTreeMap;

use super::{Order, backups, order};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::wal::Paths;
use crate::repo::id::BackupId;
use crate::wal::survey::{Root, Survey};

/// The oldest backup that is kept on the way to each timeline that may be the cluster, and of all.
pub struct Floors<'a> {
    paths: &'a Paths<'a>,
    followed: BTreeMap<TimelineId, Option<Order>>,
    of_all: Option<Order>,
}

impl<'a> Floors<'a> {
    /// Finds them in `to`; `paths` are those of both sides.
    pub fn new(to: &Survey, paths: &'a Paths<'a>, followed: &[TimelineId]) -> Floors<'a> {
        let floor = |is_meant: &dyn Fn(&Root) -> bool| {
            let meant = to.committed().filter(|(.., root)| is_meant(root));
            backups::floor(meant.map(|(id, subject, root)| (order(id, root), subject)))
        };
        let on_way =
            |target: &TimelineId| (*target, floor(&|root: &Root| leads(paths, root, *target)));
        Floors {
            paths,
            followed: followed.iter().map(on_way).collect(),
            of_all: floor(&|_| true),
        }
    }

    /// Whether a backup is older than each that is kept: on a way on which it lies, or of all where it is of a branch. A branch with a higher number lets nothing
    /// of the cluster look expired. A way without a floor brings nothing back that is below the floor of another way.
    pub fn is_below(&self, id: &BackupId, root: &Root) -> bool {
        let own = order(id, root);
        let is_below = |floor: &Option<Order>| floor.as_ref().is_some_and(|floor| own < *floor);
        let ways = self.followed.iter();
        let ways = ways.filter(|(target, _)| leads(self.paths, root, **target));
        let floors: Vec<_> = ways.map(|(_, floor)| floor).collect();
        match floors.is_empty() {
            true => is_below(&self.of_all),
            false => floors.into_iter().any(is_below),
        }
    }
}

fn leads(paths: &Paths<'_>, root: &Root, target: TimelineId) -> bool {
    paths.leads_through(target, root.timeline, root.stop_lsn)
}
