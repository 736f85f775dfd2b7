//! `pitr wal conflicts`: refused copies beside what is stored.

use super::Context;
use super::output::{Align, Table};
use crate::error::Result;
use crate::exit::{self};
use crate::operate::conflicts;
use crate::operate::human::{self};

/// `pitr wal conflicts`.
pub fn run(cx: &Context, wanted: Option<&str>) -> Result<u8> {
    let found = conflicts::look(&cx.session, wanted.map(str::parse).transpose()?)?;
    if cx.out.is_json() {
        cx.out.json(&found)?;
        return Ok(exit::SUCCESS);
    }
    for life in &found.resolutions {
        cx.out.line(&format!(
            "{}: timeline {} is followed from {} on as the server of copy {} wrote it",
            life.event,
            life.segment.timeline.decimal(),
            life.segment,
            life.copy
        ))?;
    }
    let conflicts = &found.conflicts;
    if conflicts.is_empty() {
        cx.out.note("no conflicts");
        return Ok(exit::SUCCESS);
    }
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("refused", Align::Left),
        ("followed content", Align::Left),
        ("refused copy", Align::Left),
    ]);
    let short = |hash: &str| hash.get(..16).unwrap_or(hash).to_owned();
    for c in conflicts {
        table.row([
            c.name.clone(),
            c.refused.map(human::time).unwrap_or_default(),
            c.stored_hash.as_deref().map(short).unwrap_or_default(),
            c.copy.clone().unwrap_or_default(),
        ]);
    }
    cx.out.table(&table)?;
    for error in conflicts.iter().filter_map(|c| c.error.as_deref()) {
        cx.out.warn(error);
    }
    cx.out.note("Both copies are kept. Two servers wrote different WAL under one name: find out which one is the cluster, and stop the other. If the refused copies are the cluster's: pitr wal resolve FILE --keep COPY, for the first of them.");
    Ok(exit::SUCCESS)
}
