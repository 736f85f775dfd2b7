//! The objects of an aux scope in one repository that another repository lacks and may receive.

use super::backups::{self, Verdict};
use super::{Lacking, LeftOut};
use crate::pg::time::TimestampTz;
use crate::plan::retention::Policy;
use crate::plan::retention::aux_items::retention;
use crate::repo::catalog::{Catalog, Subject};
use crate::repo::id::BackupId;
use crate::repo::log_keys::Objects;
use crate::repo::root::aux_root::AuxBackup;
use crate::store::Key;

/// The backups and pins that are copied, and the objects that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LackingBackups {
    /// Backups, oldest first.
    pub backups: Vec<BackupId>,
    /// Pins of backups that both have or will have, and what says that one is complete: subject and the last part of the key.
    pub pins: Vec<(BackupId, String)>,
    /// Objects of the log.
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

/// Computes what `to` lacks of `from`; with `everything` also what it may have expired, and what its `rules` would not keep.
pub fn lacking(
    from: &Catalog<AuxBackup>,
    to: &Catalog<AuxBackup>,
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
        backups::not_kept(&retention(&both, rules, now))
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
