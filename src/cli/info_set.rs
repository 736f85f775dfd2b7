//! `pitr info --set`.

use super::Context;
use super::output::{Align, Table};
use crate::error::Result;
use crate::exit;
use crate::operate::human;
use crate::operate::sets::info::{self, MarkInfo, SetInfo};

/// Marks that are shown.
const SHOWN: usize = 20;

/// Shows a set. Leaves with 6 when neither a moment nor a mark can be reached.
pub(super) fn run(set: &str, cx: &Context) -> Result<u8> {
    let info = info::run(&cx.session, Some(set), SHOWN)?;
    match cx.out.is_json() {
        true => cx.out.json(&info)?,
        false => print(cx, &info)?,
    }
    let is_reached = info.marks.iter().any(|mark| mark.settled == Some(true));
    match is_reached || !info.spans.is_empty() {
        true => Ok(exit::SUCCESS),
        false => Ok(exit::WARNINGS),
    }
}

fn print(cx: &Context, info: &SetInfo) -> Result<()> {
    let members: Vec<String> = info.members.iter().map(ToString::to_string).collect();
    cx.out
        .line(&format!("set \"{}\": {}", info.set, members.join(", ")))?;
    if info.spans.is_empty() {
        cx.out
            .line("no moment that every member with a log reaches")?;
    }
    for span in &info.spans {
        cx.out.line(&format!(
            "any minute from {} to {}",
            human::time(span.from),
            human::time(span.to)
        ))?;
    }
    if !info.marks.is_empty() {
        let mut table = Table::new(&[
            ("MARK", Align::Left),
            ("TIME", Align::Left),
            ("LEVEL", Align::Right),
            ("STATE", Align::Left),
            ("LABEL", Align::Left),
        ]);
        for mark in &info.marks {
            table.row(row(mark));
        }
        cx.out.line("")?;
        cx.out.table(&table)?;
    }
    if info.is_cut {
        cx.out.note("there are older marks, too");
    }
    for (name, why) in &info.refused {
        cx.out.warn(&format!("event \"{name}\" is no mark: {why}"));
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
