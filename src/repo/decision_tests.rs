//! Decisions as a store holds them.

use super::clock;
use super::crafted;
use super::decision::{Decisions, SUBJECT};
use super::event::{self, Event};

#[test]
fn a_decision_under_a_clock_that_was_ahead_counts_by_the_stores_time() {
    let (_dir, repository, layout) = crafted::empty();
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
