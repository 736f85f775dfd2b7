//! Claims, and reservations of backups that may still run: they hold backups and their WAL for a time. Those of copies go once they hold nothing.

use std::collections::BTreeSet;

use super::unborn::{Unborn, unborn};
use super::{LEFTOVER_AGE, Policy, is_over};
use crate::config::Retention;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{Catalog, Manifest};
use crate::repo::event::{self, Recorded, end, live_claims};
use crate::repo::id::BackupId;

/// A claim that stands, or a reservation without a claim that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
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

/// The purpose of a claim that a copy of a backup makes.
const SYNC: &str = "sync";

/// The events of copies that hold nothing any more: releases, and then the claims that they ended.
///
/// Each claim has been over by its own end for a day. So it holds nothing either where its release alone is gone.
/// A forged event stays, with what it ends: checks name the two.
pub fn spent(events: &[Recorded], now: TimestampTz) -> Vec<&str> {
    let is_old = |since: TimestampTz| is_over(since, LEFTOVER_AGE, now);
    let forged = event::forged(events).into_iter();
    let forged: BTreeSet<&str> = forged.map(|e| e.name.as_str()).collect();
    let is_forged = |e: &Recorded| forged.contains(e.name.as_str());
    let stays = |e: &&Recorded| {
        let is_young = e.event.event == "release" && !is_old(e.since(now));
        is_young || is_forged(e)
    };
    let staying = events.iter().filter(stays);
    let kept: BTreeSet<&str> = staying.filter_map(|e| e.event.ends.as_deref()).collect();
    let is_spent = |e: &&Recorded| {
        e.event.event == "claim"
            && e.event.purpose.as_deref() == Some(SYNC)
            && is_old(end(e, now))
            && !is_forged(e)
            && !kept.contains(e.name.as_str())
    };
    let claims = events.iter().filter(is_spent);
    let claims: BTreeSet<&str> = claims.map(|e| e.name.as_str()).collect();
    let ends_one = |e: &&Recorded| {
        let ended = e.event.ends.as_deref();
        e.event.event == "release" && ended.is_some_and(|ended| claims.contains(ended))
    };
    let releases = events.iter().filter(ends_one);
    let mut names: Vec<&str> = releases.map(|e| e.name.as_str()).collect();
    names.extend(&claims);
    names
}

/// The finds of [`spent`] for one id, claims apart from their releases.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpentClaims {
    /// The releases. They go first: without their claims no run finds them.
    pub releases: Vec<String>,
    /// The claims.
    pub claims: Vec<String>,
}

impl SpentClaims {
    /// Finds them among the events of an id.
    pub fn of(events: &[Recorded], now: TimestampTz) -> SpentClaims {
        let claims = events.iter().filter(|e| e.event.event == "claim");
        let claims: BTreeSet<&str> = claims.map(|e| e.name.as_str()).collect();
        let is_claim = |name: &String| claims.contains(name.as_str());
        let names = spent(events, now).into_iter().map(str::to_owned);
        let (claims, releases) = names.partition(is_claim);
        SpentClaims { releases, claims }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.claims.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::repo::event::Event;

    fn now() -> TimestampTz {
        "2026-11-20T06:40:49Z".parse().unwrap()
    }

    /// An event of so many hours ago.
    fn event(name: &str, hours: u32, event: Event) -> Recorded {
        let at = now().saturating_sub(Duration::from_secs(3600) * hours);
        Recorded {
            name: name.into(),
            event: Event { time: at, ..event },
            stored: at,
            is_doubted: false,
        }
    }

    fn claim(name: &str, hours: u32, ends: Option<&str>) -> Recorded {
        let claim = Event {
            event: "claim".into(),
            purpose: Some(SYNC.into()),
            seconds: Some(3 * 3600),
            ends: ends.map(str::to_owned),
            ..Event::default()
        };
        event(name, hours, claim)
    }

    fn release(name: &str, hours: u32, ends: &str) -> Recorded {
        let release = Event {
            event: "release".into(),
            ends: Some(ends.into()),
            ..Event::default()
        };
        event(name, hours, release)
    }

    #[test]
    fn x39_claims_of_copies_go_a_day_after_their_own_end() {
        let chain = [
            claim("a", 40, None),
            claim("b", 39, Some("a")),
            release("c", 38, "b"),
        ];
        assert_eq!(spent(&chain, now()), ["c", "a", "b"]);
        let apart = SpentClaims {
            releases: vec!["c".to_owned()],
            claims: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(SpentClaims::of(&chain, now()), apart);
        // A copy that was killed releases nothing.
        assert_eq!(spent(&chain[..1], now()), ["a"]);
        // Released long ago, and not yet over for a day by its own end.
        let young = [claim("a", 26, None), release("c", 25, "a")];
        assert_eq!(spent(&young, now()), Vec::<&str>::new());
        // The host stood still, and woke up.
        let late = [claim("a", 400, None), release("c", 1, "a")];
        assert_eq!(spent(&late, now()), Vec::<&str>::new());
        // The store received it later than its writer's clock says.
        let mut behind = claim("a", 400, None);
        behind.stored = now();
        assert_eq!(spent(&[behind], now()), Vec::<&str>::new());
    }

    #[test]
    fn x39_no_other_claim_goes() {
        for purpose in [Some("restore"), Some("prior"), Some("backup"), None] {
            let mut other = claim("a", 400, None);
            other.event.purpose = purpose.map(str::to_owned);
            let all = [other, release("c", 399, "a")];
            assert_eq!(spent(&all, now()), Vec::<&str>::new());
        }
        // It never ends by itself.
        let mut endless = claim("a", 400, None);
        endless.event.seconds = None;
        let all = [endless, release("c", 399, "a")];
        assert_eq!(spent(&all, now()), Vec::<&str>::new());
        // A stranger's event ends what is proven, and a check names it.
        let mut forged = release("c", 399, "a");
        forged.is_doubted = true;
        let all = [claim("a", 400, None), forged];
        assert_eq!(spent(&all, now()), Vec::<&str>::new());
    }
}
