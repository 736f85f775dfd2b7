//! The backups of an aux scope as items of retention: nothing is asked beyond the rules.

use super::item::{self, Item};
use super::rules::Unconstrained;
use super::{ExpirePlan, Fate, Policy, plan};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Needs};
use crate::repo::root::aux_root::AuxBackup;

/// Computes what is kept and what goes of an aux scope.
pub fn retention(catalog: &Catalog<AuxBackup>, policy: &Policy, now: TimestampTz) -> ExpirePlan {
    plan(catalog, (&Unconstrained, items(catalog)), policy, now)
}

/// Orders the backups by their ends (format, section 16.1).
fn items(catalog: &Catalog<AuxBackup>) -> Vec<Item<'_>> {
    let damaged = catalog.damaged_parts();
    let mut all: Vec<_> = catalog
        .committed()
        .map(|(id, subject, backup)| (backup.end(subject.stored), id, subject, backup))
        .collect();
    all.sort_by_key(|(end, id, ..)| (*end, *id));
    all.into_iter()
        .enumerate()
        .map(|(order, (_, id, subject, backup))| {
            let needs = backup.needs();
            Item {
                order,
                id,
                time: backup.root.stop_time,
                stored: subject.stored.unwrap_or(TimestampTz::INFINITY),
                taken: TimestampTz::INFINITY,
                precedes_window: false,
                stored_bytes: backup.root.stored_bytes,
                events: &subject.events,
                needs,
                damage: item::damage((catalog, &damaged), subject, needs),
                hold: None,
                kept_by: Vec::new(),
                is_asked: false,
                twin: None,
                fate: Fate::Keep,
            }
        })
        .collect()
}
