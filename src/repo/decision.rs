//! Decisions about the timelines of a cluster: events of the subject `cluster` (format, section 9).

use serde::Serialize;

use super::clock;
use super::event::{self, Event, Recorded};
use super::layout::ClusterLayout;
use super::repository::Repository;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;

pub use super::event::CLUSTER as SUBJECT;

/// The kind of a decision about a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A copy on it became the cluster.
    Adopted,
    /// It is the cluster.
    Restore,
    /// It is not, and neither is what descends from it.
    Abandon,
}

impl Kind {
    /// The event's kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Adopted => "adopted",
            Kind::Restore => "restore",
            Kind::Abandon => "abandon",
        }
    }
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The last part of the event's key.
    pub event: String,
    pub kind: Kind,
    /// About which timeline.
    pub timeline: TimelineId,
    /// The writer's clock, where the store's does not contradict it.
    pub time: TimestampTz,
    /// Why.
    pub reason: Option<String>,
    /// The decision that this one ends.
    #[serde(skip)]
    pub ends: Option<String>,
}

/// All decisions about a cluster's timelines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decisions {
    /// In the order of their keys.
    pub all: Vec<Decision>,
    /// Why there may be others: an event cannot be read.
    pub unreadable: Option<String>,
    /// Events that were forged, and that do not count.
    pub forged: Vec<String>,
}

impl Decisions {
    /// Reads what a repository knows.
    ///
    /// # Errors
    /// Errors of the store. Damage of an event is part of the answer.
    pub fn read(repository: &Repository, layout: &ClusterLayout) -> Result<Decisions> {
        match event::read_all(repository.store(), layout, SUBJECT) {
            Ok(events) => Ok(Decisions::fold(&events, layout.name())),
            Err(e) if e.is_damage() => Ok(Decisions {
                unreadable: Some(e.to_string()),
                ..Decisions::default()
            }),
            Err(e) => Err(e),
        }
    }

    fn fold(events: &[Recorded], cluster: &str) -> Decisions {
        let all = events.iter().filter(|e| e.counts());
        let forged = event::forged(events).into_iter();
        Decisions {
            all: all.filter_map(|e| decision(e, cluster)).collect(),
            unreadable: None,
            forged: forged.map(|e| format!("{SUBJECT}/{}", e.name)).collect(),
        }
    }

    /// Takes up what another repository knows.
    pub fn add(&mut self, other: &Decisions) {
        for decision in &other.all {
            if !self.all.iter().any(|own| own.event == decision.event) {
                self.all.push(decision.clone());
            }
        }
        self.all.sort_by(|a, b| a.event.cmp(&b.event));
        if self.unreadable.is_none() {
            self.unreadable.clone_from(&other.unreadable);
        }
    }

    /// The abandonments that no `restore` has ended.
    pub fn abandoned(&self) -> impl Iterator<Item = &Decision> {
        let is_ended = |one: &Decision| {
            let mut restores = self.all.iter().filter(|d| d.kind == Kind::Restore);
            restores.any(|d| d.ends.as_deref() == Some(one.event.as_str()))
        };
        let all = self.all.iter();
        all.filter(move |d| d.kind == Kind::Abandon && !is_ended(d))
    }

    /// The decisions for a timeline, the newest first.
    pub fn chosen(&self) -> Vec<&Decision> {
        let all = self.all.iter();
        let mut chosen: Vec<_> = all.filter(|d| d.kind != Kind::Abandon).collect();
        chosen.sort_by(|a, b| (b.time, &b.event).cmp(&(a.time, &a.event)));
        chosen
    }
}

/// `None` for what is about no timeline, and for a copy that was adopted under another name.
fn decision(recorded: &Recorded, cluster: &str) -> Option<Decision> {
    let Event {
        event,
        timeline,
        reason,
        ends,
        as_name,
        ..
    } = &recorded.event;
    let kind = match event.as_str() {
        "adopted" if as_name.as_deref().is_none_or(|name| name == cluster) => Kind::Adopted,
        "restore" => Kind::Restore,
        "abandon" => Kind::Abandon,
        _ => return None,
    };
    Some(Decision {
        event: recorded.name.clone(),
        kind,
        timeline: timeline.and_then(TimelineId::new)?,
        // A copy of the event is stored later. A clock that was ahead makes no decision that stands for years.
        time: recorded
            .event
            .time
            .min(recorded.stored.saturating_add(clock::MAY_DIFFER)),
        reason: reason.clone(),
        ends: ends.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(n: u32, kind: &str, timeline: Option<u32>, ends: Option<&str>) -> Recorded {
        Recorded {
            name: format!("{n}-{kind}-0"),
            event: Event {
                event: kind.into(),
                subject: SUBJECT.into(),
                timeline,
                ends: ends.map(str::to_owned),
                ..Event::default()
            },
            stored: TimestampTz(i64::from(n)),
            is_doubted: false,
        }
    }

    fn standing(decisions: &Decisions) -> Vec<u32> {
        decisions
            .abandoned()
            .map(|d| d.timeline.decimal())
            .collect()
    }

    #[test]
    fn a_restore_ends_the_abandonment_that_it_names() {
        let mut events = vec![
            recorded(1, "abandon", Some(2), None),
            recorded(2, "abandon", Some(3), None),
            recorded(3, "restore", Some(2), None),
        ];
        assert_eq!(standing(&Decisions::fold(&events, "main")), [2, 3]);
        events.push(recorded(4, "restore", Some(2), Some("1-abandon-0")));
        let mut decisions = Decisions::fold(&events, "main");
        assert_eq!(standing(&decisions), [3]);
        assert_eq!(decisions.chosen()[0].event, "4-restore-0");
        // The other repository knows the end of it alone.
        let other = Decisions::fold(
            &[recorded(5, "restore", Some(3), Some("2-abandon-0"))],
            "main",
        );
        decisions.add(&other);
        decisions.add(&other);
        assert_eq!((standing(&decisions).len(), decisions.all.len()), (0, 5));
    }

    #[test]
    fn what_is_doubted_or_about_another_cluster_decides_nothing() {
        let mut doubted = recorded(1, "abandon", Some(2), None);
        doubted.is_doubted = true;
        let mut staging = recorded(2, "adopted", Some(2), None);
        staging.event.as_name = Some("staging".into());
        let events = [
            doubted,
            staging,
            recorded(3, "adopted", None, None),
            recorded(4, "restore", Some(0), None),
            recorded(5, "segment_size", Some(2), None),
        ];
        let decisions = Decisions::fold(&events, "main");
        assert_eq!(decisions.all, []);
        assert_eq!(decisions.forged, ["cluster/1-abandon-0"]);
    }
}
