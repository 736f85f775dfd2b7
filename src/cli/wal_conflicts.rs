//! `pitr wal conflicts`: refused copies beside what is stored.

use super::output::Table;
use super::{Context, partial_unless};
use crate::error::Result;
use crate::operate::conflicts::{self, Conflict, Conflicts};
use crate::operate::human;

pub fn run(cx: &Context, wanted: Option<&str>) -> Result<u8> {
    let found = conflicts::look(&cx.session, wanted.map(str::parse).transpose()?)?;
    cx.answer(&found, || print(cx, &found))?;
    partial_unless(cx.told(found.failures)?)
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
        cx.line(&format!(
            "{}: timeline {} is followed from {} on as the server of copy {} wrote it{place}",
            life.event,
            life.segment.timeline.decimal(),
            life.segment,
            life.copy
        ))?;
    }
    let conflicts = &found.conflicts;
    if conflicts.is_empty() {
        cx.note("no conflicts");
        return Ok(());
    }
    let repository = if is_one { "" } else { "repository | " };
    let table = Table::of(&format!(
        "file | refused | followed content | {repository}refused copy"
    ));
    let short = |hash: &str| hash.get(..16).unwrap_or(hash).to_owned();
    let row = |c: &Conflict| {
        let repository = (!is_one).then(|| c.repository.clone());
        let before = [
            c.name.clone(),
            c.refused.map(human::time).unwrap_or_default(),
            c.stored_hash.as_deref().map(short).unwrap_or_default(),
        ];
        let copy = c.copy.clone().unwrap_or_default();
        before.into_iter().chain(repository).chain([copy])
    };
    cx.table(&table.rows(conflicts.iter().map(row)))?;
    cx.warn_all(conflicts.iter().filter_map(|c| c.error.as_deref()));
    cx.note("Both copies are kept. Two servers wrote different WAL under one name: find out which one is the cluster, and stop the other. If the refused copies are the cluster's: pitr wal resolve FILE --keep COPY, for the first of them.");
    Ok(())
}
