//! `pitr wal gaps`: WAL that should be there and is not.

use super::Context;
use super::output::{Align, Table};
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::gaps::{self, NamedGap};

/// `pitr wal gaps`.
pub fn gaps(cx: &Context) -> Result<u8> {
    let gaps = gaps::look(&cx.session)?;
    let found = !gaps.is_empty();
    if cx.out.is_json() {
        cx.out.json(&serde_json::json!({ "gaps": gaps }))?;
    } else if found {
        let mut table = Table::new(&[
            ("timeline", Align::Right),
            ("from", Align::Left),
            ("to", Align::Left),
            ("segments", Align::Right),
            ("first missing", Align::Left),
        ]);
        for NamedGap { gap, names } in &gaps {
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
