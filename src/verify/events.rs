//! Events, and the state of ids that they tell, in any scope.

use super::check::Check;
use super::{About, FindingKind};
use crate::error::Result;
use crate::repo::catalog::{Catalog, Needs};
use crate::repo::event;
use crate::repo::id::BackupId;

/// Reads every event.
pub(super) fn events(work: &Check<'_>) -> Result<()> {
    for listed in work.store.list(&work.scope.events())? {
        let subject = work.scope.subject(&listed.name);
        let events = event::read_all(work.store, &work.scope, &listed.name);
        // The subject of a damaged event is still there; only deletion has to wait.
        if let Some(events) = work.settle(events, &subject, About::Other)? {
            events.iter().for_each(|_| work.count(0));
            for forged in event::forged(&events) {
                let key = work.scope.event(&listed.name, &forged.name)?;
                let detail = format!("it does not count, for it is {}", event::FORGED);
                work.find(FindingKind::Forged, key.as_str(), detail, About::Other);
            }
        }
    }
    Ok(())
}

/// A backup is restored without the reservation of its id, but `repo sync` does not copy it. Expire deletes the root first: where that is there
/// still, it was not expire.
pub(super) fn reservations<R>(work: &Check<'_>, catalog: &Catalog<R>) -> Result<()> {
    for (id, subject, _) in catalog.committed() {
        if subject.begin().is_some() {
            continue;
        }
        let key = work.scope.begin(id);
        // One that is there and cannot be read is found as such.
        if work.store.head(&key)?.is_none() && work.store.head(&work.scope.manifest(id))?.is_some()
        {
            let detail = "the reservation of the backup's id is not there: repo sync cannot copy this backup";
            work.find(FindingKind::Missing, key.as_str(), detail, About::Other);
        }
    }
    Ok(())
}

/// Finds what is missing of backups that were completed, and warns of what may be one where the scope is read as a whole.
pub(super) fn find_lost<R: Needs>(
    work: &Check<'_>,
    catalog: &Catalog<R>,
    lost: &[BackupId],
    is_whole: bool,
) {
    for id in lost {
        let key = work.scope.manifest(id);
        let subject = catalog.ids.get(id);
        let why = match subject.is_some_and(|s| event::is_marked_unproven(&s.events)) {
            true => format!(
                "the backup was complete, and its root is not there. A mark for deletion that nothing proves stands beside it: an interrupted \"pitr expire\" of a host without keys leaves that, and the next one there deletes the rest. If nobody ran it, the root is lost: where another repository has the backup, \"pitr repo sync\" brings it back; else give it up: pitr expire --give-up {id}"
            ),
            false => format!(
                "the backup was complete, and its root is not there. Where another repository has the backup, \"pitr repo sync\" brings it back; else give it up: pitr expire --give-up {id}"
            ),
        };
        work.find(
            FindingKind::Missing,
            key.as_str(),
            why,
            About::Backup(id.clone()),
        );
    }
    let now = work.host.now();
    for id in catalog.may_be_lost(now).into_iter().filter(|_| is_whole) {
        work.warn(format!(
            "backup \"{id}\" is incomplete, or its root is lost: it cannot be restored. Where another repository has the backup, \"pitr repo sync\" brings it back; else pitr expire deletes what is left of it"
        ));
    }
}
