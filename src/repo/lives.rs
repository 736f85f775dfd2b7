//! Which life of a timeline the archive follows: `resolve` events of the subject `cluster` (format, sections 3 and 9; decision 0019).
//!
//! Two servers that write one timeline meet at a fork, the first segment of which they have different content. A `resolve` event gives the fork to
//! the server of the refused copy: from there on the timeline's segments have another home.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::event::{self, CLUSTER, Recorded};
use super::layout::{ClusterLayout, Home};
use super::repository::Repository;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::store::Store;
use crate::text::is_hex;

/// The kind of the event that gives a fork away.
pub const RESOLVE: &str = "resolve";
/// The kind of the event that ends it.
pub const UNRESOLVE: &str = "unresolve";

/// One standing resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Life {
    /// The last part of the event's key.
    pub event: String,
    /// The first segment of the life.
    pub segment: SegmentName,
    /// The first 16 hexadecimal digits of that segment's hash, as the key of the refused copy has them.
    pub copy: String,
    /// The writer's clock, and later than that of each resolution which it knew.
    pub time: TimestampTz,
    /// Why.
    pub reason: Option<String>,
}

/// From when on the segments of a timeline, from one on, lie in another home than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The timeline of the segments.
    pub timeline: TimelineId,
    /// The first of them.
    pub first: SegmentNumber,
    /// The later of the writer's and the store's clock.
    pub time: TimestampTz,
}

/// The standing resolutions of a cluster, oldest first; and when there was one, or an end of one.
#[derive(Debug, Clone, Default)]
pub struct Lives {
    standing: Arc<Vec<Life>>,
    moves: Arc<Vec<(SegmentName, TimestampTz)>>,
}

/// Lives are the same where the same resolutions stand.
impl PartialEq for Lives {
    fn eq(&self, other: &Lives) -> bool {
        self.standing == other.standing
    }
}

impl Eq for Lives {}

impl Lives {
    /// Reads what a repository knows.
    ///
    /// # Errors
    /// `Damaged` when an event of the subject cannot be read: which life is followed is then unknown. Other errors of
    /// the store.
    pub fn read(repository: &Repository, layout: &ClusterLayout) -> Result<Lives> {
        let events = event::read_some(repository.store(), layout, CLUSTER, &is_resolution);
        let lives = events.and_then(|events| Lives::fold(&events));
        lives.map_err(|e| match e.code() {
            Code::Damaged | Code::Unsupported => err!(
                Damaged,
                "which life of a timeline the archive follows is unknown, for an event of \"pitr wal resolve\" cannot be read"
            )
            .source(e)
            .hint("Run \"pitr verify\" to see the object. Bring it back from another repository (\"pitr repo sync\"), or remove it and resolve the fork again."),
            _ => e,
        })
    }

    fn fold(events: &[Recorded]) -> Result<Lives> {
        let standing = event::standing(events, RESOLVE, UNRESOLVE);
        let lives = standing.into_iter().map(|recorded| {
            life(recorded).ok_or_else(|| {
                err!(
                    Unsupported,
                    "event \"{}\" names no segment and no copy that this version understands",
                    recorded.name.escape_debug()
                )
            })
        });
        let lives = Lives::sorted(lives.collect::<Result<_>>()?);
        Ok(Lives {
            moves: Arc::new(moves(events)),
            ..lives
        })
    }

    fn sorted(mut lives: Vec<Life>) -> Lives {
        lives.sort_by(|a, b| (a.time, &a.event).cmp(&(b.time, &b.event)));
        Lives {
            standing: Arc::new(lives),
            moves: Arc::default(),
        }
    }

    /// These, and one more.
    pub fn with(&self, life: Life) -> Lives {
        Lives::sorted(self.iter().cloned().chain(std::iter::once(life)).collect())
    }

    /// Every change of homes, also those that another one undid.
    pub fn moves(&self, size: SegmentSize) -> Vec<Move> {
        let all = self.moves.iter();
        let moves = all.filter_map(|(name, time)| {
            Some(Move {
                timeline: name.timeline,
                first: name.number(size).ok()?,
                time: *time,
            })
        });
        moves.collect()
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Life> {
        self.standing.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }

    /// The life to which a segment belongs: that of the newest resolution of its timeline at or before it. `None` is the life that was archived
    /// first.
    pub fn of(&self, name: SegmentName) -> Option<&Life> {
        let holds = |l: &&Life| l.segment.timeline == name.timeline && l.segment <= name;
        self.iter().rev().find(holds)
    }

    /// The lives to which the segments of a part of a timeline belong, in their order: the copy that each began with, nothing for the one that was
    /// archived first.
    pub fn along(&self, first: SegmentName, last: SegmentName) -> Vec<String> {
        let begins = self.iter().map(|life| life.segment);
        let begins = begins.filter(|s| s.timeline == first.timeline && (first..=last).contains(s));
        let begins: BTreeSet<SegmentName> = std::iter::once(first).chain(begins).collect();
        let copy = |at| {
            self.of(at)
                .map_or_else(String::new, |life| life.copy.clone())
        };
        let mut along: Vec<String> = begins.into_iter().map(copy).collect();
        along.dedup();
        along
    }
}

/// Which segments of a forked timeline are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Followed {
    /// Those of the life that `pitr wal resolve` chose.
    #[default]
    Resolved,
    /// Those that were archived first.
    AsStored,
}

impl Followed {
    /// The layout in which segments have the homes that a repository gives them.
    ///
    /// # Errors
    /// Those of [`Lives::read`].
    pub fn apply(self, repository: &Repository, layout: ClusterLayout) -> Result<ClusterLayout> {
        let lives = match self {
            Followed::Resolved => Lives::read(repository, &layout)?,
            Followed::AsStored => Lives::default(),
        };
        Ok(layout.with_lives(lives))
    }
}

/// Whether the last part of an event's key names one of these kinds.
pub fn is_resolution(name: &str) -> bool {
    name.split('-')
        .any(|part| part == RESOLVE || part == UNRESOLVE)
}

/// The first segment and the time of each resolution, and of each end of one.
fn moves(events: &[Recorded]) -> Vec<(SegmentName, TimestampTz)> {
    let first = |recorded: &Recorded| recorded.event.segment.as_deref()?.parse().ok();
    let counted = events.iter().filter(|e| e.counts());
    let moves = counted.filter_map(|one| {
        let ended = one.event.ends.as_deref();
        let of = match one.event.event.as_str() {
            RESOLVE => one,
            UNRESOLVE => events.iter().find(|e| Some(e.name.as_str()) == ended)?,
            _ => return None,
        };
        Some((first(of)?, one.event.time.max(one.stored)))
    });
    moves.collect()
}

fn life(recorded: &Recorded) -> Option<Life> {
    let event = &recorded.event;
    let copy = event.copy.clone().filter(|copy| is_copy(copy))?;
    Some(Life {
        event: recorded.name.clone(),
        segment: event.segment.as_deref()?.parse().ok()?,
        copy,
        time: event.time,
        reason: event.reason.clone(),
    })
}

/// The homes of a timeline's segments in which something may be stored, whether followed or not; the one of its beginning first.
///
/// # Errors
/// Those of the store.
pub fn stored_homes(
    store: &dyn Store,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<Vec<Home>> {
    let listed = store.list(&layout.lives_of(timeline))?;
    let lives = listed.iter().filter(|l| is_copy(&l.name));
    let lives = lives.map(|l| layout.home(timeline, Some(&l.name)));
    Ok(std::iter::once(layout.home(timeline, None))
        .chain(lives)
        .collect())
}

/// Whether this is what the key of a refused copy ends with: 16 lower-case hexadecimal digits.
pub fn is_copy(text: &str) -> bool {
    is_hex(text, 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::event::Event;

    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbb";

    fn name(n: u32) -> SegmentName {
        format!("00000001{:08X}{n:08X}", 0).parse().unwrap()
    }

    fn resolve(time: i64, n: u32, copy: &str) -> Recorded {
        Recorded {
            name: format!("{time}-{RESOLVE}-0"),
            event: Event {
                event: RESOLVE.into(),
                subject: CLUSTER.into(),
                time: TimestampTz(time),
                segment: Some(name(n).to_string()),
                copy: Some(copy.to_owned()),
                ..Event::default()
            },
            stored: TimestampTz(time),
            is_doubted: false,
        }
    }

    fn unresolve(time: i64, ends: &str) -> Recorded {
        let mut event = resolve(time, 1, A);
        event.name = format!("{time}-{UNRESOLVE}-0");
        event.event.event = UNRESOLVE.into();
        event.event.ends = Some(ends.to_owned());
        event
    }

    fn homes(events: &[Recorded]) -> Vec<Option<String>> {
        let lives = Lives::fold(events).unwrap();
        let home = |n| lives.of(name(n)).map(|l| l.copy.clone());
        (4..=9).map(home).collect()
    }

    #[test]
    fn the_newest_resolution_at_or_before_a_segment_decides() {
        let (a, b) = (Some(A.to_owned()), Some(B.to_owned()));
        let none = None::<String>;
        let all = |one: [&Option<String>; 6]| one.map(Clone::clone).to_vec();
        assert_eq!(homes(&[]), all([&none; 6]));
        let one = resolve(1, 5, A);
        assert_eq!(
            homes(std::slice::from_ref(&one)),
            all([&none, &a, &a, &a, &a, &a])
        );
        // A later fork inside of the life.
        let later = [one.clone(), resolve(2, 8, B)];
        assert_eq!(homes(&later), all([&none, &a, &a, &a, &b, &b]));
        // An earlier fork: what was behind it belongs to the life that lost.
        let earlier = [resolve(1, 8, B), resolve(2, 5, A)];
        assert_eq!(homes(&earlier), all([&none, &a, &a, &a, &a, &a]));
        let ended = [one.clone(), unresolve(3, &one.name)];
        assert_eq!(homes(&ended), all([&none; 6]));
        let again = [one.clone(), unresolve(3, &one.name), resolve(4, 6, A)];
        assert_eq!(homes(&again), all([&none, &none, &a, &a, &a, &a]));
        let moves = Lives::fold(&again).unwrap().moves(SegmentSize::DEFAULT);
        let moves: Vec<_> = moves.iter().map(|m| (m.first.0, m.time.0)).collect();
        assert_eq!(moves, [(5, 1), (5, 3), (6, 4)]);
    }

    #[test]
    fn a_stretch_tells_whose_segments_it_has() {
        let lives = Lives::fold(&[resolve(1, 5, A), resolve(2, 8, B)]).unwrap();
        assert_eq!(lives.along(name(1), name(9)), ["", A, B]);
        assert_eq!(lives.along(name(5), name(7)), [A]);
        assert_eq!(lives.along(name(6), name(8)), [A, B]);
        assert_eq!(lives.along(name(1), name(4)), [""]);
        // A resolution behind the stretch, and one that gives what was followed already.
        let same = Lives::fold(&[resolve(1, 5, A), resolve(2, 7, A)]).unwrap();
        assert_eq!(same.along(name(5), name(9)), [A]);
    }

    #[test]
    fn what_is_forged_or_makes_no_sense_decides_nothing() {
        let mut forged = resolve(1, 5, A);
        forged.is_doubted = true;
        assert!(Lives::fold(&[forged]).unwrap().is_empty());
        let bad = resolve(2, 5, "../../../../etc/");
        let mut none = resolve(3, 5, A);
        none.event.segment = Some("00000002.history".into());
        for one in [bad, none] {
            let refused = Lives::fold(std::slice::from_ref(&one)).unwrap_err();
            assert_eq!(refused.code(), Code::Unsupported);
            assert!(
                Lives::fold(&[one.clone(), unresolve(4, &one.name)])
                    .unwrap()
                    .is_empty()
            );
        }
        // Another timeline is not concerned.
        let lives = Lives::fold(&[resolve(1, 5, A)]).unwrap();
        let other = "000000020000000000000009".parse().unwrap();
        assert_eq!(lives.of(other), None);
    }
}
