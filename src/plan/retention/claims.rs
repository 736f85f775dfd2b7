//! Claims, and reservations of backups that may still run: they hold backups and their WAL for a time.

use super::unborn::{Unborn, unborn};
use super::{LEFTOVER_AGE, Policy};
use crate::config::Retention;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Manifest};
use crate::repo::event::{self, Recorded, end, live_claims};
use crate::repo::id::BackupId;

/// A claim that stands, or a reservation without a claim that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The backup.
    pub id: BackupId,
    /// The event that claims it; none for a reservation.
    pub claim: Option<String>,
    /// `backup`, `restore`, `prior`, `sync`, or what a newer program writes.
    pub purpose: String,
    /// The host that wrote the event.
    pub host: String,
    /// When it was written.
    pub since: TimestampTz,
    /// When it ends by itself, if it is not renewed.
    pub until: TimestampTz,
    /// From here on it keeps WAL, where it says so.
    pub start: Option<(u32, Lsn)>,
    /// Whether the backup exists; else it is being taken or copied.
    pub is_committed: bool,
}

impl Held {
    fn new(
        id: &BackupId,
        event: &Recorded,
        now: TimestampTz,
        until: TimestampTz,
        is_committed: bool,
    ) -> Held {
        let purpose = event.event.purpose.as_deref();
        Held {
            id: id.clone(),
            claim: (event.name != "begin").then(|| event.name.clone()),
            purpose: purpose.unwrap_or("backup").to_owned(),
            host: event.event.host.clone(),
            since: event.since(now),
            until,
            start: event.event.timeline.zip(event.event.start_lsn),
            is_committed,
        }
    }
}

/// Everything that holds something, by backup.
pub fn held<R>(catalog: &Catalog<R>, now: TimestampTz) -> Vec<Held> {
    let policy = Policy {
        rules: Retention::newest(1),
        grace: LEFTOVER_AGE,
        ..Policy::default()
    };
    let mut held = Vec::new();
    for (id, subject) in &catalog.ids {
        let is_committed = matches!(subject.manifest, Manifest::Committed(_));
        let claims = live_claims(&subject.events, now);
        let new = |event: &Recorded, until| Held::new(id, event, now, until, is_committed);
        held.extend(claims.iter().map(|claim| new(claim, end(claim, now))));
        if let (true, Manifest::Absent, Some(begin)) =
            (claims.is_empty(), &subject.manifest, subject.begin())
            && event::completed(&subject.events).is_none()
            && matches!(unborn(subject, &policy, now), Unborn::Running(_))
        {
            held.push(new(begin, begin.since(now).saturating_add(LEFTOVER_AGE)));
        }
    }
    held
}
