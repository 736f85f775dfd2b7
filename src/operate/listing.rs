//! The segments that are archived, by timeline.

use std::collections::BTreeSet;

use serde::Serialize;

use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::repo::layout::ClusterLayout;
use crate::store::{Key, Store};
use crate::wal::increment::{self};
use crate::wal::inventory::{HistoryFile, Timeline};

/// A segment.
#[derive(Serialize)]
pub struct ListedSegment {
    pub name: SegmentName,
    /// Its length as stored.
    pub stored_bytes: u64,
    pub stored: TimestampTz,
}

/// A timeline.
#[derive(Serialize)]
pub struct ListedTimeline {
    /// Its number.
    pub timeline: u32,
    /// Whether its history file is there.
    pub history: bool,
    /// The timeline that it left.
    pub parent: Option<u32>,
    /// The position at which it left that.
    pub switch_lsn: Option<Lsn>,
    /// How many segments are there.
    pub segments: u64,
    pub partials: Vec<SegmentName>,
    /// Segments of which only a part is stored.
    pub tails: Vec<ListedTail>,
}

/// A segment of which only a part is stored.
#[derive(Serialize)]
pub struct ListedTail {
    pub name: SegmentName,
    /// How far increments reach.
    pub reach_lsn: Option<Lsn>,
    pub increments: usize,
    /// Whether there is a partial.
    pub has_partial: bool,
    /// Its length as stored.
    pub stored_bytes: u64,
}

/// The archived WAL of a cluster.
#[derive(Serialize)]
pub struct Listing {
    pub cluster: String,
    pub system_identifier: String,
    /// WAL segment size.
    pub segment_size_bytes: u64,
    pub timelines: Vec<ListedTimeline>,
    /// How many segments are there.
    pub segments: Vec<ListedSegment>,
}

/// Lists the archived WAL.
///
/// # Errors
/// Errors of the repository.
pub fn list(session: &Session) -> Result<Listing> {
    let reading = Reading::open(session)?;
    let inventory = reading.inventory(session)?;
    let layout = inventory.layout()?;
    let mut segments = Vec::new();
    for (id, timeline) in &inventory.timelines {
        let names = |number: SegmentNumber| number.name(*id, inventory.segment_size);
        let bounds = timeline.segments.iter();
        let logs = bounds.filter_map(|(first, last)| Some(names(first)?.log..=names(last)?.log));
        for log in logs.flatten().collect::<BTreeSet<u32>>() {
            for home in layout.homes(*id) {
                let prefix = home.log(log);
                segments.extend(of_log(reading.repository.store(), &layout, &prefix)?);
            }
        }
    }
    segments.sort_by_key(|s| s.name);
    let timelines = inventory
        .timelines
        .iter()
        .map(|(id, timeline)| {
            let parent = match &timeline.history {
                HistoryFile::Known(history) => history.parent(),
                _ => None,
            };
            let tails = timeline
                .tails
                .keys()
                .filter_map(|n| n.name(*id, inventory.segment_size))
                .map(|name| tail(&reading, &layout, timeline, name, inventory.segment_size))
                .collect::<Result<Vec<_>>>()?;
            Ok(ListedTimeline {
                timeline: id.decimal(),
                history: timeline.history != HistoryFile::Absent,
                parent: parent.map(|(id, _)| id.decimal()),
                switch_lsn: parent.map(|(_, lsn)| lsn),
                segments: timeline.segments.count(),
                partials: timeline.partials.iter().copied().collect(),
                tails,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Listing {
        cluster: inventory.cluster.clone(),
        system_identifier: inventory.system_identifier.to_string(),
        segment_size_bytes: inventory.segment_size.bytes(),
        timelines,
        segments,
    })
}

/// The segments below a prefix, in order. A listing that says lengths and times saves a request for each.
fn of_log(store: &dyn Store, layout: &ClusterLayout, prefix: &str) -> Result<Vec<ListedSegment>> {
    let mut segments = Vec::new();
    for listed in store.list(prefix)?.into_iter().filter(|l| !l.is_prefix) {
        let Ok(WalFileName::Segment(name)) = listed.name.parse() else {
            continue;
        };
        // A segment that lies elsewhere belongs to a life that is not followed.
        let key = layout.segment(name);
        if key.parent() != Some(prefix) {
            continue;
        }
        let meta = match listed.meta {
            None => store.head(&key)?,
            known => known,
        };
        // Deleted since it was listed: then it is not there.
        segments.extend(meta.map(|meta| ListedSegment {
            name,
            stored_bytes: meta.size_bytes,
            stored: meta.modified,
        }));
    }
    Ok(segments)
}

/// How far what is stored of a segment reaches.
pub(super) fn tail(
    reading: &Reading,
    layout: &ClusterLayout,
    timeline: &Timeline,
    name: SegmentName,
    size: SegmentSize,
) -> Result<ListedTail> {
    let store = reading.repository.store();
    let number = name.number(size)?;
    let increments = increment::list(&reading.repository, layout, name)?;
    let ranges = increments.iter();
    let mut keys: Vec<Key> = ranges.map(|range| layout.increment(name, *range)).collect();
    let has_partial = timeline.partials.contains(&name);
    if has_partial {
        keys.push(layout.wal_file(WalFileName::Partial(name)));
    }
    let mut stored_bytes = 0;
    for key in keys {
        stored_bytes += store.head(&key)?.map_or(0, |meta| meta.size_bytes);
    }
    let reach = timeline.tails.get(&number).copied();
    Ok(ListedTail {
        name,
        reach_lsn: reach.filter(|reach| *reach > number.start_lsn(size)),
        increments: increments.len(),
        has_partial,
        stored_bytes,
    })
}
