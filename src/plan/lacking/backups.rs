//! Which backups one side lacks, and which of their pins: the same for any content.

use std::collections::{BTreeMap, BTreeSet};

use super::Cause;
use crate::pg::time::TimestampTz;
use crate::plan::retention::{ExpirePlan, Fate};
use crate::repo::catalog::{Catalog, Manifest, Subject};
use crate::repo::event;
use crate::repo::id::BackupId;

/// Whether a backup is copied.
pub enum Verdict {
    /// It is.
    Copy,
    /// Why not, and what that means.
    Leave(String, Cause),
}

/// Why a backup is not wanted: retention over there had it before.
pub const BELOW_FLOOR: &str = "it is older than every backup kept there; --all copies it";
/// Likewise, by the rules of the configuration.
pub const NOT_KEPT: &str = "no rule of retention there keeps it; --all copies it";

/// The backups that a plan of the receiving side with everything in it does not keep.
pub fn not_kept(plan: &ExpirePlan) -> BTreeSet<BackupId> {
    let gone = plan.backups.iter().filter(|b| b.fate != Fate::Keep);
    gone.map(|b| b.id.clone()).collect()
}

/// Returns the objects under every id, as the receiving side would have them with all that the giving side has.
pub fn as_one<R: Clone>(from: &Catalog<R>, to: &Catalog<R>) -> BTreeMap<BackupId, Subject<R>> {
    let mut both = to.ids.clone();
    for (id, subject) in &from.ids {
        if both.get(id).is_none_or(|there| there.root().is_none()) {
            both.insert(id.clone(), subject.clone());
        }
    }
    both
}

/// Says that two backups have one id: programs before the first release gave those of one second the same.
fn same_id(own: &event::Event, other: &event::Event) -> String {
    let begun = |e: &event::Event| format!("on host \"{}\" at {}", e.host, e.time);
    format!(
        "two backups have this id, begun {} and {}: each is whole in its own repository, and neither is copied to the other; a new backup gets an id of its own and is copied: pitr backup",
        begun(own),
        begun(other)
    )
}

/// The oldest backup that a side keeps of its own accord: neither marked, nor held by a pin alone. The newest that is not marked is
/// kept by any retention, whatever else holds it. A pin past its end still stands here: its backup is no sign of what else is kept.
///
/// A claim does not count. A process that reads the oldest kept backup must not make it look expired, nor what is
/// missing after it. If a claim alone holds a backup, some expired backups come back, and go with the next run of
/// expire.
pub fn floor<'a, O: Ord + Clone, R: 'a>(
    committed: impl Iterator<Item = (O, &'a Subject<R>)>,
) -> Option<O> {
    let is_marked = |s: &Subject<R>| event::is_marked(&s.events);
    let is_pinned = |s: &Subject<R>| !event::standing(&s.events, "pin", "unpin").is_empty();
    let unmarked: Vec<_> = committed.filter(|(_, s)| !is_marked(s)).collect();
    let kept = unmarked.iter().filter(|(_, s)| !is_pinned(s));
    let oldest = kept.map(|(order, _)| order).min();
    let newest = || unmarked.iter().map(|(order, _)| order).max();
    oldest.or_else(newest).cloned()
}

/// Judges a backup by what lies under its id on both sides; `None` when it is there already. `conflict` is why the content of both sides stands
/// against it. `unwanted` is why retention there does not want it, unless it is pinned, or lost its root there.
pub fn why_not<R>(
    (subject, there): (&Subject<R>, Option<&Subject<R>>),
    conflict: Option<&str>,
    unwanted: Option<&str>,
    now: TimestampTz,
) -> Option<Verdict> {
    let leave_for = |cause: Cause, why: &str| Some(Verdict::Leave(why.to_owned(), cause));
    let leave = |why: &str| leave_for(Cause::Rule, why);
    if let Some(there) = there
        && let (Some(own), Some(other)) = (subject.begin(), there.begin())
        && own.event.nonce != other.event.nonce
    {
        return leave_for(Cause::Conflict, &same_id(&own.event, &other.event));
    }
    match there.map(|s| &s.manifest) {
        Some(Manifest::Committed(_)) => return None,
        Some(Manifest::Tombstone) => {
            return leave(
                "an unfinished copy of it was given up there by pitr expire; the id is free again 30 days later",
            );
        }
        Some(Manifest::Unreadable(_)) => {
            return leave_for(Cause::Damage, "what is there under its id cannot be read");
        }
        Some(Manifest::Absent) | None => {}
    }
    if let Some(conflict) = conflict {
        return leave(conflict);
    }
    let events = &subject.events;
    if event::is_marked(events) {
        return leave("it is marked for deletion");
    }
    // One that lost its root there was not expired.
    let is_lost = there.is_some_and(|s| s.lost().is_some());
    let is_pinned = !event::live_pins(events, now).is_empty();
    if let Some(unwanted) = unwanted.filter(|_| !is_lost && !is_pinned) {
        return leave(unwanted);
    }
    if let Some(found) = event::damage(events).first() {
        let detail = found.event.detail.as_deref().unwrap_or("no detail");
        return leave_for(
            Cause::Damage,
            &format!("a check found it damaged: {detail}"),
        );
    }
    Some(Verdict::Copy)
}

/// Pins of backups that both have or will have, and what says that one is complete: subject and the last part of the key.
pub fn pins<R>(
    (from, to): (&Catalog<R>, &Catalog<R>),
    copied: &[BackupId],
) -> Vec<(BackupId, String)> {
    let mut pins = Vec::new();
    for (id, subject, _) in from.committed() {
        let there = to.ids.get(id);
        let is_there = there.is_some_and(|s| s.root().is_some());
        if !is_there && !copied.contains(id) {
            continue;
        }
        let has = |name: &str| there.is_some_and(|s| s.events.iter().any(|e| e.name == name));
        let is_completed = |s: &Subject<R>| s.events.iter().any(|e| e.event.event == "completed");
        // A copy that was cut short right behind its root lacks the event that says so.
        let is_cut_short = is_there && !there.is_some_and(is_completed);
        let is_meant =
            |kind: &str| event::PINNING.contains(&kind) || (is_cut_short && kind == "completed");
        let lacking = subject
            .events
            .iter()
            .filter(|e| is_meant(&e.event.event) && !e.is_doubted)
            .filter(|e| !has(&e.name));
        pins.extend(lacking.map(|e| (id.clone(), e.name.clone())));
    }
    pins
}
