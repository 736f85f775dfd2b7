//! `pitr wal list`: the segments that are archived.

use super::Context;
use crate::error::Result;
use crate::operate::human::{self, SizeUnit};
use crate::operate::listing;

/// So much of a long listing is printed at a time.
const LINES_BYTES: usize = 64 << 10;

pub fn list(cx: &Context) -> Result<u8> {
    let listing = listing::list(&cx.session)?;
    cx.answered(&listing, || {
        let (segments, timelines) = (&listing.segments, &listing.timelines);
        let unit = SizeUnit::for_largest(segments.iter().map(|s| s.stored_bytes));
        // Printed as they come: a table of a hundred thousand rows would be laid out in memory first.
        let mut text = format!(
            "{:<24}  {:>10}  archived\n",
            "segment",
            format!("stored {}", unit.name())
        );
        for segment in segments {
            let stored = unit.show(segment.stored_bytes);
            let time = human::time(segment.stored);
            text.push_str(&format!("{}  {stored:>10}  {time}\n", segment.name));
            if text.len() > LINES_BYTES {
                cx.line(text.trim_end())?;
                text.clear();
            }
        }
        if !text.is_empty() {
            cx.line(text.trim_end())?;
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
            cx.line(&format!("{}  {stored:>10}  {parts}", tail.name))?;
        }
        let total = segments.iter().map(|s| s.stored_bytes).sum();
        cx.note(&format!(
            "{} on {}, {} stored",
            human::count(segments.len() as u64, "segment"),
            human::count(timelines.len() as u64, "timeline"),
            human::size(total)
        ));
        Ok(())
    })
}
