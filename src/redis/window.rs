//! The times to which servers can be taken back: those of one server, and those that several have in common. Pure.

use serde::Serialize;

use super::history::leaving;
use super::overview::Line;
use crate::pg::time::TimestampTz;

/// Times without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The first one.
    pub from_time: TimestampTz,
    /// The last one.
    pub to_time: TimestampTz,
}

/// A data set from which the log goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base<'a> {
    /// Its history.
    pub replid: &'a str,
    /// The bytes of the history that it holds.
    pub offset: u64,
    /// When the server gave it.
    pub time: TimestampTz,
}

/// Returns the windows of a server, ascending: each begins with a backup, and lasts as long as the log behind it has no gap.
pub fn of(histories: &[Line], bases: &[Base<'_>]) -> Vec<Window> {
    let mut windows: Vec<Window> = bases
        .iter()
        .filter_map(|base| {
            let to_time = reach(histories, base.replid, base.offset, histories.len())?;
            (base.time <= to_time).then_some(Window {
                from_time: base.time,
                to_time,
            })
        })
        .collect();
    windows.sort_unstable_by_key(|window| (window.from_time, window.to_time));
    let mut joined: Vec<Window> = Vec::new();
    for window in windows {
        match joined.last_mut() {
            Some(last) if window.from_time <= last.to_time => {
                last.to_time = last.to_time.max(window.to_time);
            }
            _ => joined.push(window),
        }
    }
    joined
}

/// Returns when the last byte had arrived to which the log leads from a backup.
pub fn end(histories: &[Line], bases: &[Base<'_>]) -> Option<TimestampTz> {
    let ends = bases.iter();
    ends.filter_map(|base| reach(histories, base.replid, base.offset, histories.len()))
        .max()
}

/// When the last byte had arrived to which the log leads from a position of a history, through so many further histories at most.
fn reach<'h>(
    histories: &'h [Line],
    replid: &str,
    offset: u64,
    depth: usize,
) -> Option<TimestampTz> {
    let line = histories.iter().find(|line| line.replid == replid);
    let mut ranges = line.into_iter().flat_map(|line| &line.ranges);
    let range = ranges.find(|range| range.from <= offset && offset <= range.to);
    // The next history may have the bytes of both.
    let last = range.map_or(offset, |range| range.to);
    let own = range.and_then(|range| range.to_time);
    let lineage = |line: &'h Line| (line.replid.as_str(), line.parents.as_slice());
    let all: Vec<_> = histories.iter().map(lineage).collect();
    let onward = leaving(&all, replid)
        .into_iter()
        .filter(|(_, fork)| depth > 0 && offset <= *fork)
        .filter_map(|(child, fork)| {
            // Everything between lies in one of both.
            let from = fork.min(last);
            reach(histories, child, from, depth - 1)
        });
    own.into_iter().chain(onward).max()
}

/// Returns the times that are in a window of each, ascending; none of nobody.
pub fn common(all: &[Vec<Window>]) -> Vec<Window> {
    let Some((first, others)) = all.split_first() else {
        return Vec::new();
    };
    others
        .iter()
        .fold(first.clone(), |common, other| both(&common, other))
}

fn both(some: &[Window], others: &[Window]) -> Vec<Window> {
    let pairs = some.iter().flat_map(|a| others.iter().map(move |b| (a, b)));
    let shared = pairs.map(|(a, b)| Window {
        from_time: a.from_time.max(b.from_time),
        to_time: a.to_time.min(b.to_time),
    });
    shared.filter(|w| w.from_time <= w.to_time).collect()
}

/// Ends windows at a time.
pub fn until(windows: Vec<Window>, end: TimestampTz) -> Vec<Window> {
    let before = windows.into_iter().filter(|w| w.from_time <= end);
    before
        .map(|window| Window {
            to_time: window.to_time.min(end),
            ..window
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::history::Parent;
    use crate::redis::overview::Range;

    fn at(seconds: i64) -> TimestampTz {
        TimestampTz::from_unix_micros(seconds * 1_000_000).unwrap()
    }

    fn line(replid: &str, parents: &[(&str, u64)], ranges: &[(u64, u64, i64, i64)]) -> Line {
        let parents = parents.iter().map(|(replid, fork)| Parent {
            replid: (*replid).to_owned(),
            fork: *fork,
        });
        let ranges = ranges.iter().map(|(from, to, begin, end)| Range {
            from: *from,
            to: *to,
            from_time: Some(at(*begin)),
            to_time: Some(at(*end)),
        });
        Line {
            replid: replid.to_owned(),
            server: None,
            parents: parents.collect(),
            ranges: ranges.collect(),
            beginnings: Vec::new(),
            notable: Vec::new(),
        }
    }

    fn base(replid: &str, offset: u64, seconds: i64) -> Base<'_> {
        Base {
            replid,
            offset,
            time: at(seconds),
        }
    }

    fn seconds(windows: &[Window]) -> Vec<(i64, i64)> {
        let of = |time: TimestampTz| time.unix_micros().unwrap() / 1_000_000;
        windows
            .iter()
            .map(|w| (of(w.from_time), of(w.to_time)))
            .collect()
    }

    #[test]
    fn a_window_begins_with_a_backup_and_ends_at_a_gap() {
        let log = [line("a", &[], &[(100, 200, 10, 20), (300, 400, 30, 40)])];
        assert_eq!(of(&log, &[]), []);
        // Nothing leads on from before the log, nor from inside the gap.
        for offset in [50, 250] {
            assert_eq!(of(&log, &[base("a", offset, 12)]), [], "{offset}");
        }
        let bases = [base("a", 150, 15), base("a", 350, 35), base("a", 120, 12)];
        assert_eq!(seconds(&of(&log, &bases)), [(12, 20), (35, 40)]);
    }

    #[test]
    fn a_history_that_goes_on_prolongs_the_window() {
        let goes_on = |fork, from| {
            let parent = line("a", &[], &[(100, 200, 10, 20)]);
            [parent, line("b", &[("a", fork)], &[(from, 500, 25, 50)])]
        };
        let bases = [base("a", 150, 15)];
        assert_eq!(seconds(&of(&goes_on(200, 200), &bases)), [(15, 50)]);
        // The new server left the old one before its end, and one that has the bytes of both.
        assert_eq!(seconds(&of(&goes_on(180, 180), &bases)), [(15, 50)]);
        assert_eq!(seconds(&of(&goes_on(220, 190), &bases)), [(15, 50)]);
        // It begins behind a gap, or left the old one before the backup.
        assert_eq!(seconds(&of(&goes_on(220, 220), &bases)), [(15, 20)]);
        assert_eq!(seconds(&of(&goes_on(140, 140), &bases)), [(15, 20)]);
        // A second failover, to a replica that stood before the first one.
        let c = line("c", &[("b", 180)], &[(180, 900, 60, 90)]);
        let [a, b] = goes_on(200, 200);
        assert_eq!(seconds(&of(&[a, b, c], &bases)), [(15, 90)]);
        // A wrong record of two that go on from each other ends, too.
        let a = line("a", &[("b", 300)], &[(100, 200, 10, 20)]);
        let b = line("b", &[("a", 200)], &[(200, 300, 21, 30)]);
        assert_eq!(seconds(&of(&[a, b], &bases)), [(15, 30)]);
    }

    #[test]
    fn common_times_are_in_a_window_of_each() {
        let windows = |all: &[(i64, i64)]| -> Vec<Window> {
            let window = |(from, to): &(i64, i64)| Window {
                from_time: at(*from),
                to_time: at(*to),
            };
            all.iter().map(window).collect()
        };
        let shared = |all: &[&[(i64, i64)]]| {
            let all: Vec<_> = all.iter().map(|one| windows(one)).collect();
            seconds(&common(&all))
        };
        assert_eq!(shared(&[]), []);
        assert_eq!(shared(&[&[(1, 9)]]), [(1, 9)]);
        assert_eq!(shared(&[&[(1, 9)], &[]]), []);
        assert_eq!(shared(&[&[(1, 9)], &[(10, 12)]]), []);
        let all: [&[(i64, i64)]; 3] = [&[(1, 9), (12, 20)], &[(3, 15)], &[(2, 13), (14, 30)]];
        assert_eq!(shared(&all), [(3, 9), (12, 13), (14, 15)]);
        let cut = until(windows(&[(1, 9), (12, 20), (25, 30)]), at(14));
        assert_eq!(seconds(&cut), [(1, 9), (12, 14)]);
    }
}
