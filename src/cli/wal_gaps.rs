//! `pitr wal gaps`: WAL that should be there and is not.

use super::output::Table;
use super::{Context, findings_unless, partial_unless};
use crate::error::Result;
use crate::operate::gaps::{self, NamedGap};

pub fn heal(cx: &Context, dry_run: bool) -> Result<u8> {
    cx.stop_in_order()?;
    let (done, failures) = gaps::heal(&cx.session, dry_run)?;
    let found = done
        .iter()
        .any(|one| !one.gaps.is_empty() || !one.not_healed.is_empty());
    let shown = serde_json::json!({ "dry_run": dry_run, "repositories": done });
    cx.answer(&shown, || {
        let word = if dry_run { "would come" } else { "came" };
        for one in &done {
            for healed in &one.healed {
                cx.line(&format!(
                    "repository \"{}\": {} {word} from \"{}\"",
                    one.repository, healed.object, healed.from
                ))?;
            }
            for lost in &one.not_healed {
                cx.line(&format!(
                    "repository \"{}\": not healed: {}: {}",
                    one.repository,
                    lost.object,
                    lost.why()
                ))?;
            }
            if one.gaps.is_empty() {
                cx.note(&format!("repository \"{}\": no gaps", one.repository));
                continue;
            }
            cx.line(&format!("repository \"{}\" lacks:", one.repository))?;
            table(cx, &one.gaps)?;
        }
        if found {
            cx.note("next: pitr wal backfill --from the pg_wal of another node that still has them, then pitr backup");
        }
        Ok(())
    })?;
    // A gap that is left weighs more than a place that failed.
    let is_whole = cx.told(failures)?;
    match found {
        true => Ok(findings_unless(false)),
        false => partial_unless(is_whole),
    }
}

fn table(cx: &Context, gaps: &[NamedGap]) -> Result<()> {
    let row = |NamedGap { gap, names }: &NamedGap| {
        [
            gap.timeline.decimal().to_string(),
            gap.from_lsn.to_string(),
            gap.to_lsn.to_string(),
            gap.segments.to_string(),
            names.first().map(ToString::to_string).unwrap_or_default(),
        ]
    };
    let table = Table::of(">timeline | from | to | >segments | first missing");
    cx.table(&table.rows(gaps.iter().map(row)))
}

pub fn gaps(cx: &Context) -> Result<u8> {
    let gaps = gaps::look(&cx.session)?;
    let found = !gaps.is_empty();
    if cx.is_json() {
        cx.json(&serde_json::json!({ "gaps": gaps }))?;
    } else if found {
        table(cx, &gaps)?;
        cx.note("next: pitr wal gaps --heal looks in the other repositories and in the pg_wal of each configured server; else pitr wal backfill --from the pg_wal of a node that still has them, then pitr backup");
    } else {
        cx.note("no gaps");
    }
    Ok(findings_unless(!found))
}
