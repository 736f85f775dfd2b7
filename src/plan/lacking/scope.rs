//! The objects of an aux scope in one repository that another repository lacks and may receive.

use std::collections::BTreeSet;

use super::backups::{self, Verdict};
use super::{Lacking, LeftOut};
use crate::config::Retention;
use crate::pg::time::TimestampTz;
use crate::plan::retention::aux_items::retention;
use crate::plan::retention::{Deletion, Policy};
use crate::repo::catalog::{Catalog, Subject};
use crate::repo::id::BackupId;
use crate::repo::log_keys::Objects;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::stored_log::StoredLog;
use crate::store::Key;

/// The backups and pins that are copied, and the objects that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LackingBackups {
    /// Backups, oldest first.
    pub backups: Vec<BackupId>,
    /// Pins of backups that both have or will have, and what says that one is complete: subject and the last part of the key.
    pub pins: Vec<(BackupId, String)>,
    pub log: Objects,
    /// Records of the slots of a shard.
    pub slots: Vec<Key>,
    /// Objects that are not copied, each with the reason.
    pub left_out: Vec<LeftOut>,
    /// Objects of the giving side that cannot be read.
    pub unreadable: Vec<String>,
}

impl LackingBackups {
    /// Whether the other side lacks nothing that it may be given.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty()
            && self.pins.is_empty()
            && self.log.is_empty()
            && self.slots.is_empty()
    }
}

/// The same among what a cluster may lack: no WAL.
impl From<LackingBackups> for Lacking {
    fn from(lacking: LackingBackups) -> Lacking {
        Lacking {
            backups: lacking.backups,
            pins: lacking.pins,
            log_objects: lacking.log.count() + lacking.slots.len() as u64,
            left_out: lacking.left_out,
            unreadable: lacking.unreadable,
            ..Lacking::default()
        }
    }
}

/// The objects that expiry would delete of a log, which is that of both sides, where `to` has also the `chosen` backups of `from`.
pub fn unwanted_log(
    (from, to): (&Catalog<AuxBackup>, &Catalog<AuxBackup>),
    chosen: &[BackupId],
    log: &StoredLog,
    rules: Option<&Policy>,
    now: TimestampTz,
) -> BTreeSet<Key> {
    let mut ids = to.ids.clone();
    let copied = chosen.iter().filter_map(|id| from.ids.get_key_value(id));
    ids.extend(copied.map(|(id, subject)| (id.clone(), subject.clone())));
    let both = Catalog {
        ids,
        ..Catalog::empty()
    };
    let all = Policy {
        rules: Retention::newest(u32::MAX),
        ..Policy::default()
    };
    let plan = retention(&both, log, rules.unwrap_or(&all), now);
    let gone = plan.deletions.into_iter().filter_map(|one| match one {
        Deletion::Object(key) => Some(key),
        _ => None,
    });
    gone.collect()
}

/// Computes what `to` lacks of `from`, but for its log; with `everything` also what it may have expired, and what its `rules` would not keep of the backups and the
/// `log` of both.
pub fn lacking(
    from: &Catalog<AuxBackup>,
    to: &Catalog<AuxBackup>,
    log: &StoredLog,
    (everything, rules): (bool, Option<&Policy>),
    now: TimestampTz,
) -> LackingBackups {
    let ordered = |catalog| Catalog::committed(catalog).map(place);
    let floor = backups::floor(ordered(to));
    let unwanted = rules.filter(|_| !everything).map(|rules| {
        let both = Catalog {
            ids: backups::as_one(from, to),
            ..Catalog::empty()
        };
        backups::not_kept(&retention(&both, log, rules, now))
    });
    let unwanted = unwanted.unwrap_or_default();
    let mut chosen: Vec<_> = ordered(from).collect();
    chosen.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = LackingBackups {
        unreadable: from.unreadable.clone(),
        ..LackingBackups::default()
    };
    for ((end, id), subject) in chosen {
        let is_below = floor.as_ref().is_some_and(|f| (end, id.clone()) < *f);
        let why = match everything {
            true => None,
            false if is_below => Some(backups::BELOW_FLOOR),
            false => unwanted.contains(&id).then_some(backups::NOT_KEPT),
        };
        match backups::why_not((subject, to.ids.get(&id)), None, why, now) {
            None => {}
            Some(Verdict::Copy) => out.backups.push(id),
            Some(Verdict::Leave(why, cause)) => out.left_out.push(LeftOut {
                what: format!("backup {id}"),
                why,
                cause,
            }),
        }
    }
    out.pins = backups::pins((from, to), &out.backups);
    out
}

type Placed<'a> = ((TimestampTz, BackupId), &'a Subject<AuxBackup>);

/// The place of a backup among others: by its end, as retention orders them.
fn place<'a>(
    (id, subject, backup): (&'a BackupId, &'a Subject<AuxBackup>, &'a AuxBackup),
) -> Placed<'a> {
    ((backup.end(subject.stored), id.clone()), subject)
}
