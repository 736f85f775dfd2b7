//! `pitr wal gaps`: WAL that should be there and is not.

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::reading::Reading;
use crate::pg::segment::SegmentName;
use crate::plan::gap::{self, Gap};

/// A gap names at most this many of its segments.
const NAMES_MAX: u64 = 1000;

#[derive(Serialize)]
struct ShownGap {
    #[serde(flatten)]
    gap: Gap,
    names: Vec<SegmentName>,
}

#[derive(Serialize)]
struct ShownGaps {
    gaps: Vec<ShownGap>,
}

/// `pitr wal gaps`.
pub fn gaps(cx: &Context) -> Result<u8> {
    let reading = Reading::open(&cx.session)?;
    let inventory = reading.inventory(&cx.session)?;
    let size = inventory.segment_size;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let gaps: Vec<ShownGap> = gap::gaps(&inventory, oldest.unwrap_or_default())
        .into_iter()
        .map(|gap| {
            let first = gap.from_lsn.0 / size.bytes();
            let names = (first..first + gap.segments.min(NAMES_MAX))
                .filter_map(|n| crate::pg::segment::SegmentNumber(n).name(gap.timeline, size))
                .collect();
            ShownGap { gap, names }
        })
        .collect();
    let found = !gaps.is_empty();
    if cx.out.is_json() {
        cx.out.json(&ShownGaps { gaps })?;
    } else if found {
        let mut table = Table::new(&[
            ("timeline", Align::Right),
            ("from", Align::Left),
            ("to", Align::Left),
            ("segments", Align::Right),
            ("first missing", Align::Left),
        ]);
        for ShownGap { gap, names } in &gaps {
            table.row([
                gap.timeline.decimal().to_string(),
                gap.from_lsn.to_string(),
                gap.to_lsn.to_string(),
                gap.segments.to_string(),
                names.first().map(ToString::to_string).unwrap_or_default(),
            ]);
        }
        cx.out.table(&table)?;
        cx.out.note("next: pitr wal backfill --from the pg_wal of a node that still has them, then pitr backup");
    } else {
        cx.out.note("no gaps");
    }
    Ok(if found {
        exit::status(Program::Pitr, Code::Findings)
    } else {
        exit::SUCCESS
    })
}
