//! The first WAL that a server still gives, once it has said that it removed what was asked for.
//!
//! WAL before the slot's position may be there all the same: wal_keep_size, another slot or a checkpoint to come keeps it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::upstream;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::progress::Progress;
use crate::wal::path::Path;
use crate::wire::conninfo::ConnInfo;
use crate::wire::replication::{ReplicationStream, StartReplication, StreamEvent};
use crate::wire::sql::Sql;

/// The server that is asked: one host, and the path to its timeline.
pub struct Server<'a> {
    /// Its place.
    pub info: &'a ConnInfo,
    /// The path of its history.
    pub path: &'a Path,
    /// Takes its notices.
    pub progress: &'a Arc<dyn Progress>,
}

impl Server<'_> {
    /// Returns the position from which on the server has everything, up to `kept`, where it has WAL for certain. It has removed the segment of
    /// `removed`.
    ///
    /// SQL lists the files of pg_wal. Without the right to that, the server is asked for segments until the first is found.
    ///
    /// # Errors
    /// `Unreachable` when the connection is lost; those of [`ReplicationStream::start`].
    pub async fn first_after(&self, removed: Lsn, kept: Lsn) -> Result<Lsn> {
        let size = self.path.size();
        let (removed, kept) = (
            SegmentNumber::of(removed, size),
            SegmentNumber::of(kept, size),
        );
        let first = match self.list().await {
            Ok(names) => first_listed(self.path, &names, kept).max(removed.next()),
            Err(_) => self.search(removed, kept).await?,
        };
        Ok(first.start_lsn(size))
    }

    async fn list(&self) -> Result<BTreeSet<SegmentName>> {
        let question = async {
            let mut sql = Sql::connect(self.info, Arc::clone(self.progress)).await?;
            let listed = sql
                .query("select pg_catalog.string_agg(name, ' ') from pg_catalog.pg_ls_waldir() where pg_catalog.length(name) = 24")
                .await;
            sql.close().await;
            listed
        };
        let rows = upstream::answered(&self.info.display_hosts(), question).await?;
        let names = rows.text(0, 0)?.unwrap_or_default().split(' ');
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Halves the segments between one that is removed and one that is kept.
    async fn search(
        &self,
        mut removed: SegmentNumber,
        mut kept: SegmentNumber,
    ) -> Result<SegmentNumber> {
        while kept.0.saturating_sub(removed.0) > 1 {
            let middle = SegmentNumber(removed.0 + (kept.0 - removed.0) / 2);
            match self.gives(middle).await? {
                true => kept = middle,
                false => removed = middle,
            }
        }
        Ok(kept)
    }

    /// Whether the server sends the first bytes of a segment.
    async fn gives(&self, number: SegmentNumber) -> Result<bool> {
        let what = StartReplication {
            slot: None,
            timeline: self.path.holder(number),
            from: number.start_lsn(self.path.size()),
        };
        let question = async {
            let client = upstream::connect(self.info, Arc::clone(self.progress)).await?;
            let mut stream = ReplicationStream::start(client, &what).await?;
            while let StreamEvent::Keepalive(_) = stream.next_event().await? {}
            Ok(true)
        };
        match upstream::answered(&self.info.display_hosts(), question).await {
            Err(e) if e.code() == Code::Gap => Ok(false),
            answer => answer,
        }
    }
}

/// The first of the segments that lead to `kept` without a hole.
fn first_listed(
    path: &Path,
    names: &BTreeSet<SegmentName>,
    mut kept: SegmentNumber,
) -> SegmentNumber {
    let is_there = |number| {
        path.name(number)
            .is_some_and(|name: SegmentName| names.contains(&name))
    };
    while let Some(before) = kept.0.checked_sub(1).map(SegmentNumber)
        && is_there(before)
    {
        kept = before;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::segment::SegmentSize;
    use crate::pg::timeline::{History, TimelineId};

    #[test]
    fn the_first_is_the_one_from_which_on_every_file_of_the_path_is_there() {
        let mib = 1 << 20;
        let size = SegmentSize::new(mib).unwrap();
        let second = TimelineId::new(2).unwrap();
        let history = History::root(TimelineId::FIRST).child(second, Lsn(7 * mib + 5), b"promoted");
        let path = Path::new(history, size);
        let name = |timeline, number| SegmentName::of(timeline, Lsn(number * mib), size);
        let first = TimelineId::FIRST;
        let mut names: BTreeSet<_> = [2, 4, 5, 6, 7].map(|n| name(first, n)).into();
        // Ahead lie files that are made for later.
        names.extend([7, 8, 9, 20].map(|n| name(second, n)));
        let listed = |names: &BTreeSet<_>| first_listed(&path, names, SegmentNumber(9)).0;
        assert_eq!(listed(&names), 4);
        names.remove(&name(second, 7));
        assert_eq!(listed(&names), 8, "the parent's file is not the path's");
        names.clear();
        assert_eq!(listed(&names), 9);
    }
}
