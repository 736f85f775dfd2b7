//! `pitr wal conflicts`: refused copies beside what is stored.

use super::output::{Align, Table};
use super::{Context, timeline};
use crate::error::Result;
use crate::operate::conflicts::{self, Conflicts};
use crate::operate::human;

/// `pitr wal conflicts`.
pub fn run(cx: &Context, wanted: Option<&str>) -> Result<u8> {
    let found = conflicts::look(&cx.session, wanted.map(str::parse).transpose()?)?;
    match cx.out.is_json() {
        true => cx.out.json(&found)?,
        false => print(cx, &found)?,
    }
    timeline::partial_unless(cx.told(found.failures)?)
}

fn print(cx: &Context, found: &Conflicts) -> Result<()> {
    let is_one = found.looked_at == 1;
    let mut told = Vec::new();
    for standing in &found.resolutions {
        let life = &standing.life;
        if told.contains(&&life.event) {
            continue;
        }
        told.push(&life.event);
        let same = found.resolutions.iter().filter(|s| s.life == *life);
        let names: Vec<&str> = same.map(|s| s.repository.as_str()).collect();
        let place = match is_one {
            true => String::new(),
            false => format!(", in {}", names.join(" and ")),
        };
        cx.out.line(&format!(
            "{}: timeline {} is followed from {} on as the server of copy {} wrote it{place}",
            life.event,
            life.segment.timeline.decimal(),
            life.segment,
            life.copy
        ))?;
    }
    let conflicts = &found.conflicts;
    if conflicts.is_empty() {
        cx.out.note("no conflicts");
        return Ok(());
    }
    let mut columns = vec![
        ("file", Align::Left),
        ("refused", Align::Left),
        ("followed content", Align::Left),
    ];
    if !is_one {
        columns.push(("repository", Align::Left));
    }
    columns.push(("refused copy", Align::Left));
    let mut table = Table::new(&columns);
    let short = |hash: &str| hash.get(..16).unwrap_or(hash).to_owned();
    for c in conflicts {
        let repository = (!is_one).then(|| c.repository.clone());
        let before = [
            c.name.clone(),
            c.refused.map(human::time).unwrap_or_default(),
            c.stored_hash.as_deref().map(short).unwrap_or_default(),
        ];
        let copy = c.copy.clone().unwrap_or_default();
        table.row(before.into_iter().chain(repository).chain([copy]));
    }
    cx.out.table(&table)?;
    for error in conflicts.iter().filter_map(|c| c.error.as_deref()) {
        cx.out.warn(error);
    }
    cx.out.note("Both copies are kept. Two servers wrote different WAL under one name: find out which one is the cluster, and stop the other. If the refused copies are the cluster's: pitr wal resolve FILE --keep COPY, for the first of them.");
    Ok(())
}
