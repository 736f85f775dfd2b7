//! The backups of an aux scope as items of retention: nothing is asked beyond the rules, but what a log asks.

use super::item::{self, Item};
use super::log::Logged;
use super::rules::Unconstrained;
use super::{ExpirePlan, Policy, plan};
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Needs};
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::stored_log::StoredLog;

/// Computes what is kept and what goes of an aux scope, and of its log, where it has one.
pub fn retention(
    catalog: &Catalog<AuxBackup>,
    log: &StoredLog,
    policy: &Policy,
    now: TimestampTz,
) -> ExpirePlan {
    match log.is_empty() {
        true => plan(catalog, (&Unconstrained, items(catalog)), policy, now),
        false => {
            let logged = Logged::new(catalog, log, policy, now);
            plan(catalog, (&logged, items(catalog)), policy, now)
        }
    }
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
                time: backup.root.stop_time,
                stored: subject.stored.unwrap_or(TimestampTz::INFINITY),
                stored_bytes: backup.root.stored_bytes,
                damage: item::damage((catalog, &damaged), subject, needs),
                ..Item::new(order, id, &subject.events, needs)
            }
        })
        .collect()
}
