//! `pitr wal show`: what is in a segment, by its index; the text of a history or label file.

use super::Context;
use crate::error::Result;
use crate::exit;
use crate::operate::content::{self, Content, SegmentContent};
use crate::operate::human;
use crate::pg::segment::WalFileName;

pub fn show(cx: &Context, name: &str) -> Result<u8> {
    let name: WalFileName = name.parse()?;
    match content::look(&cx.session, name)? {
        Content::Segment(shown) => cx.answer(&shown, || print_segment(cx, &shown))?,
        Content::Text(content) => {
            let text = String::from_utf8_lossy(&content);
            let shown = serde_json::json!({ "name": name, "content": text });
            cx.answer(&shown, || cx.text(text.trim_end()))?;
        }
    }
    Ok(exit::SUCCESS)
}

fn print_segment(cx: &Context, shown: &SegmentContent) -> Result<()> {
    let line = |label: &str, value: String| cx.line(&format!("{label:<15} {value}"));
    line("name", shown.name.clone())?;
    line(
        "WAL",
        format!(
            "{} to {}, valid up to {}, timeline {}, PostgreSQL {}",
            shown.start_lsn, shown.end_lsn, shown.valid_end_lsn, shown.timeline, shown.major
        ),
    )?;
    line(
        "size",
        format!(
            "{}, stored as {}",
            human::size(shown.raw_bytes),
            human::size(shown.stored_bytes)
        ),
    )?;
    if let Some(hash) = &shown.hash {
        line("content", hash.clone())?;
    }
    if !shown.flags.is_empty() {
        line("flags", shown.flags.join(", "))?;
    }
    let records = match shown.flags.contains(&"undecoded") {
        true => "not decoded: a PostgreSQL newer than this pitr wrote them".to_owned(),
        false => format!(
            "{}: {}, {}, {}",
            shown.records,
            human::count(shown.commit_count, "commit"),
            human::count(shown.abort_count, "abort"),
            human::count(shown.prepare_count, "prepare")
        ),
    };
    line("records", records)?;
    if let (Some(from), Some(to)) = (shown.min_time, shown.max_time) {
        line(
            "transactions",
            format!("{} to {}", human::exact_time(from), human::exact_time(to)),
        )?;
    }
    for damage in &shown.damage {
        line("damage", damage.clone())?;
    }
    for event in shown.events.iter().flatten() {
        line("event", event.clone())?;
    }
    for commit in &shown.commits {
        line(
            "commit",
            format!(
                "transaction {}, {}, at {}",
                commit.xid,
                human::exact_time(commit.time),
                commit.lsn
            ),
        )?;
    }
    Ok(())
}
