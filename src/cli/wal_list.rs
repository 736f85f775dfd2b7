//! `pitr wal list`: the segments that are archived.

use serde::Serialize;

use super::Context;
use super::human::{self, SizeUnit};
use super::reading::Reading;
use crate::error::Result;
use crate::exit::{self};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::repo::increment::{self};
use crate::repo::inventory::{HistoryFile, Timeline};
use crate::repo::layout::ClusterLayout;
use crate::store::Key;

/// So much of a long listing is printed at a time.
const LINES_BYTES: usize = 64 << 10;

#[derive(Serialize)]
struct ListedSegment {
    name: SegmentName,
    stored_bytes: u64,
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
    let reading = Reading::open(cx)?;
    let inventory = reading.inventory(cx)?;
    let layout = ClusterLayout::new(&inventory.cluster, inventory.system_identifier)?;
    let store = reading.repository.store();
    let mut segments = Vec::new();
    for (id, timeline) in &inventory.timelines {
        for (first, last) in timeline.segments.iter() {
            for number in first.0..=last.0 {
                let number = crate::pg::segment::SegmentNumber(number);
                let Some(name) = number.name(*id, inventory.segment_size) else {
                    continue;
                };
                // Deleted since it was listed: then it is not there.
                if let Some(meta) = store.head(&layout.segment(name))? {
                    segments.push(ListedSegment {
                        name,
                        stored_bytes: meta.size_bytes,
                    });
                }
            }
        }
    }
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
        "{:<24}  {:>10}\n",
        "segment",
        format!("stored {}", unit.name())
    );
    for segment in &segments {
        let stored = unit.show(segment.stored_bytes);
        text.push_str(&format!("{}  {stored:>10}\n", segment.name));
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
