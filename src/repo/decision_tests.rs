//! Decisions as a store holds them.

use super::clock;
use super::decision::{Decisions, SUBJECT};
use super::event::{self, Event};
use super::layout::ClusterLayout;
use super::repository::Repository;
use crate::pg::time::TimestampTz;
use crate::store::file::FileStore;

#[test]
fn a_decision_under_a_clock_that_was_ahead_counts_by_the_stores_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::create(&directory.path().join("r"), 1).unwrap();
    let (repository, _) = Repository::create(Box::new(store), 1, TimestampTz(0)).unwrap();
    let layout = ClusterLayout::new("main", 7).unwrap();
    let decide = |time: &str, nonce| {
        let decision = Event {
            event: "restore".into(),
            subject: SUBJECT.into(),
            timeline: Some(2),
            time: time.parse().unwrap(),
            ..Event::default()
        };
        event::record(repository.store(), &layout, &decision, nonce).unwrap();
    };
    decide("2001-11-20T06:40:49Z", 1);
    decide("2199-11-20T06:40:49Z", 2);
    let stored = event::read_all(repository.store(), &layout, SUBJECT).unwrap();
    let decisions = Decisions::read(&repository, &layout).unwrap();
    let [early, late] = decisions.all.as_slice() else {
        panic!("{decisions:?}");
    };
    assert_eq!(early.time, stored[0].event.time);
    let limit = stored[1].stored.saturating_add(clock::MAY_DIFFER);
    assert_eq!(late.time, limit);
    assert!(limit < stored[1].event.time);
}
