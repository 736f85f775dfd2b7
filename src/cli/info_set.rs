//! `pitr info --set`.

use super::output::Table;
use super::{Context, warnings_unless};
use crate::error::Result;
use crate::operate::human;
use crate::operate::sets::info::{self, MarkInfo, SetInfo};

/// Marks that are shown.
const SHOWN: usize = 20;

/// Shows a set. Leaves with 6 when neither a moment nor a mark can be reached.
pub(super) fn run(set: &str, cx: &Context) -> Result<u8> {
    let info = info::run(&cx.session, Some(set), SHOWN)?;
    cx.answer(&info, || print(cx, &info))?;
    let is_reached = info.marks.iter().any(|mark| mark.settled == Some(true));
    Ok(warnings_unless(is_reached || !info.spans.is_empty()))
}

fn print(cx: &Context, info: &SetInfo) -> Result<()> {
    let members: Vec<String> = info.members.iter().map(ToString::to_string).collect();
    cx.line(&format!("set \"{}\": {}", info.set, members.join(", ")))?;
    if info.spans.is_empty() {
        cx.line("no moment that every member with a log reaches")?;
    }
    for span in &info.spans {
        cx.line(&format!(
            "any minute from {} to {}",
            human::time(span.from),
            human::time(span.to)
        ))?;
    }
    if !info.marks.is_empty() {
        cx.line("")?;
        let table = Table::of("MARK | TIME | >LEVEL | STATE | LABEL");
        cx.table(&table.rows(info.marks.iter().map(row)))?;
    }
    if info.is_cut {
        cx.note("there are older marks, too");
    }
    for (name, why) in &info.refused {
        cx.warn(&format!("event \"{name}\" is no mark: {why}"));
    }
    Ok(())
}

fn row(mark: &MarkInfo) -> [String; 5] {
    let state = match mark.settled {
        None => String::new(),
        Some(true) => "settled".to_owned(),
        Some(false) => format!("waits: {}", mark.why.join("; ")),
    };
    [
        mark.id.clone(),
        human::time(mark.time),
        mark.level.number().to_string(),
        state,
        mark.label.clone().unwrap_or_default(),
    ]
}
