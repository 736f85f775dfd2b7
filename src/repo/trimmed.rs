//! The holes that expiry made on purpose behind a backup, as events tell them.

use std::collections::BTreeSet;

use super::event::{self, Recorded, TRIMMED};
use crate::pg::segment::SegmentName;

/// The first segments of the holes that expiry made behind a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// An older pitr did not name the hole: each first one counts.
    is_any: bool,
    begins: BTreeSet<SegmentName>,
}

impl Trimmed {
    /// Reads them from the events of a backup.
    pub fn of(events: &[Recorded]) -> Trimmed {
        let mut trimmed = Trimmed::default();
        trimmed.add(events);
        trimmed
    }

    /// One hole that is named.
    #[cfg(test)]
    pub fn at(first: SegmentName) -> Trimmed {
        Trimmed {
            is_any: false,
            begins: BTreeSet::from([first]),
        }
    }

    /// Adds those of a backup of the same content.
    pub fn add(&mut self, events: &[Recorded]) {
        for recorded in event::standing(events, TRIMMED, "") {
            match &recorded.event.segment {
                None => self.is_any = true,
                // A name that is none names no hole.
                Some(name) => self.begins.extend(name.parse::<SegmentName>().ok()),
            }
        }
    }

    /// Whether none is recorded.
    pub fn is_empty(&self) -> bool {
        !self.is_any && self.begins.is_empty()
    }

    /// Whether the hole that begins with this segment was made on purpose. The event is older than the hole: where the store kept that WAL, or it
    /// came again, another hole is a loss.
    pub fn begins(&self, first: SegmentName) -> bool {
        self.is_any || self.begins.contains(&first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;
    use crate::repo::event::Event;

    fn trimmed(segment: Option<&str>) -> Recorded {
        Recorded {
            name: format!("1-{TRIMMED}-{}", segment.unwrap_or_default()),
            event: Event {
                event: TRIMMED.into(),
                segment: segment.map(str::to_owned),
                ..Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        }
    }

    #[test]
    fn x51_only_the_hole_that_was_recorded_is_deliberate() {
        let [one, other] = ["000000010000000000000043", "000000010000000000000044"];
        let named = Trimmed::of(&[trimmed(Some(one))]);
        assert!(named.begins(one.parse().unwrap()));
        assert!(!named.begins(other.parse().unwrap()));
        // An older program did not say which.
        let any = Trimmed::of(&[trimmed(None)]);
        assert!(any.begins(other.parse().unwrap()));
        let none = Trimmed::of(&[trimmed(Some("no segment"))]);
        assert!(none.is_empty() && !none.begins(one.parse().unwrap()));
    }
}
