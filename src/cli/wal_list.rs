//! `pitr wal list`: the segments that are archived.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::exit::{self};
use crate::operate::human::{self, SizeUnit};
use crate::operate::reading::Reading;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::repo::layout::ClusterLayout;
use crate::store::{Key, Store};
use crate::wal::increment::{self};
use crate::wal::inventory::{HistoryFile, Timeline};

/// So much of a long listing is printed at a time.
const LINES_BYTES: usize = 64 << 10;

#[derive(Serialize)]
struct ListedSegment {
    name: SegmentName,
    stored_bytes: u64,
    stored: TimestampTz,
}

#[derive(Serialize)]
struct ListedTimeline {
    timeline: u32,
    history: bool,
    parent: Option<u32>,
    switch_lsn: Option<Lsn>,
    segments: u64,
    partials: Vec<SegmentName>,
    tails: Vec<ListedTail>,
}

/// A segment of which only a part is stored.
#[derive(Serialize)]
pub(super) struct ListedTail {
    name: SegmentName,
    /// How far increments reach.
    reach_lsn: Option<Lsn>,
    increments: usize,
    has_partial: bool,
    pub(super) stored_bytes: u64,
}

#[derive(Serialize)]
struct Listing {
    cluster: String,
    system_identifier: String,
    segment_size_bytes: u64,
    timelines: Vec<ListedTimeline>,
    segments: Vec<ListedSegment>,
}

/// `pitr wal list`.
pub fn list(cx: &Context) -> Result<u8> {
    let reading = Reading::open(&cx.session)?;
    let inventory = reading.inventory(&cx.session)?;
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
    if cx.out.is_json() {
        cx.out.json(&Listing {
            cluster: inventory.cluster.clone(),
            system_identifier: inventory.system_identifier.to_string(),
            segment_size_bytes: inventory.segment_size.bytes(),
            timelines,
            segments,
        })?;
        return Ok(exit::SUCCESS);
    }
    let unit = SizeUnit::for_largest(segments.iter().map(|s| s.stored_bytes));
    // Printed as they come: a table of a hundred thousand rows would be laid out in memory first.
    let mut text = format!(
        "{:<24}  {:>10}  archived\n",
        "segment",
        format!("stored {}", unit.name())
    );
    for segment in &segments {
        let stored = unit.show(segment.stored_bytes);
        let time = human::time(segment.stored);
        text.push_str(&format!("{}  {stored:>10}  {time}\n", segment.name));
        if text.len() > LINES_BYTES {
            cx.out.line(text.trim_end())?;
            text.clear();
        }
    }
    if !text.is_empty() {
        cx.out.line(text.trim_end())?;
    }
    for tail in timelines.iter().flat_map(|t| &t.tails) {
        let stored = unit.show(tail.stored_bytes);
        let mut parts = Vec::new();
        if let Some(reach) = tail.reach_lsn {
            let count = human::count(tail.increments as u64, "increment");
            parts.push(format!("{count} up to {reach}"));
        }
        if tail.has_partial {
            parts.push("a partial".to_owned());
        }
        let parts = parts.join(" and ");
        cx.out
            .line(&format!("{}  {stored:>10}  {parts}", tail.name))?;
    }
    let total = segments.iter().map(|s| s.stored_bytes).sum();
    cx.out.note(&format!(
        "{} on {}, {} stored",
        human::count(segments.len() as u64, "segment"),
        human::count(timelines.len() as u64, "timeline"),
        human::size(total)
    ));
    Ok(exit::SUCCESS)
}

/// The segments below a prefix, in order. A listing that says lengths and times saves a request for each.
fn of_log(store: &dyn Store, layout: &ClusterLayout, prefix: &str) -> Result<Vec<ListedSegment>> {
    let mut segments = Vec::new();
    for listed in store.list(prefix)?.into_iter().filter(|l| !l.is_prefix) {
        let Ok(WalFileName::Segment(name)) = listed.name.parse() else {
            continue;
        };
        // What lies elsewhere is of a life that is not followed.
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
    let mut keys: Vec<Key> = increments
        .iter()
        .map(|range| layout.increment(name, *range))
        .collect();
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
