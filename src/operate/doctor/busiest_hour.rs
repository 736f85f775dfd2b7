//! The busiest hour: how much WAL the server wrote in it, as the archived segments tell, and for how long the disk of `pg_wal` has room
//! at that rate.

use std::path::Path;
use std::time::Duration;

use super::Findings;
use crate::error::Result;
use crate::operate::human;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::repository::Repository;
use crate::wal::facts::Wal as _;
use crate::wal::inventory::Inventory;
use crate::wal::rollup::Rollup;

/// Room for WAL that waits while a repository does not answer.
const ROOM: Duration = Duration::from_secs(4 * 3600);
/// More room than this is as good as any.
const AMPLE: Duration = Duration::from_secs(30 * 86_400);
const HOUR: Duration = Duration::from_secs(3600);
/// So many of the newest segments are looked at.
const SEGMENTS_MAX: usize = 1024;

/// Looks at the disk of a data directory that can be read from here.
pub(super) fn look(
    found: &mut Findings,
    repository: &Repository,
    (inventory, timeline): (&Inventory, Option<TimelineId>),
    pgdata: &Path,
) -> Result<()> {
    let Ok(stat) = rustix::fs::statvfs(pgdata.join("pg_wal")) else {
        return Ok(());
    };
    // One that tells no size tells no room.
    if stat.f_blocks == 0 {
        return Ok(());
    }
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let commits = last_commits(repository, inventory, timeline)?;
    let bytes = busiest(&commits, inventory.segment_size.bytes());
    if bytes == 0 {
        return Ok(());
    }
    let seconds = u128::from(free) * u128::from(HOUR.as_secs()) / u128::from(bytes);
    let room = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
    let shown = match room > AMPLE {
        true => format!("more than {}", human::duration(AMPLE)),
        false => human::duration(room),
    };
    let busy = human::size(bytes);
    let value = format!("for {shown} of WAL, at {busy} in the busiest hour");
    match room < ROOM {
        true => found.warn(
            "room of pg_wal",
            value,
            "while a repository does not answer, WAL waits there, and the server stops when the disk is full",
            "give pg_wal a disk with room for four hours, or a second repository that archiving goes on with",
        ),
        false => found.ok("room of pg_wal", value),
    }
    Ok(())
}

/// Reads the time of the last commit in each of the newest segments that has one, newest first.
fn last_commits(
    repository: &Repository,
    inventory: &Inventory,
    timeline: Option<TimelineId>,
) -> Result<Vec<TimestampTz>> {
    let size = inventory.segment_size;
    let wal = Rollup::new(repository, inventory, None)?;
    let mut commits = Vec::new();
    for (id, numbers) in newest(inventory, timeline) {
        let (Some(last), Some(first)) = (numbers.first(), numbers.last()) else {
            continue;
        };
        wal.prefetch(id, *first, *last)?;
        let names = numbers.iter().filter_map(|number| number.name(id, size));
        // A segment that is damaged has its own finding.
        let facts = names.filter_map(|name| wal.facts(name).ok());
        commits.extend(facts.filter(|f| f.commits > 0).map(|f| f.times.1));
    }
    Ok(commits)
}

/// The newest segments of a timeline and its ancestors, newest first; where none is decided, of the highest timeline.
fn newest(
    inventory: &Inventory,
    timeline: Option<TimelineId>,
) -> Vec<(TimelineId, Vec<SegmentNumber>)> {
    let highest = || inventory.timelines.last_key_value().map(|(id, _)| *id);
    let Some(id) = timeline.or_else(highest) else {
        return Vec::new();
    };
    let history = inventory.history(id).ok();
    let ancestors = history.iter().flat_map(|h| h.ancestors().iter().rev());
    // The next timeline has the segment of the switch itself.
    let end = |switch| SegmentNumber::of(switch, inventory.segment_size);
    let ancestors = ancestors.map(|a| (a.timeline, Some(end(a.switch_lsn))));
    let mut left = SEGMENTS_MAX;
    let mut all = Vec::new();
    for (id, end) in std::iter::once((id, None)).chain(ancestors) {
        let held = inventory.timelines.get(&id);
        let runs = held.into_iter().flat_map(|t| t.segments.iter().rev());
        let numbers = runs.flat_map(|(first, last)| (first.0..=last.0).rev());
        let own = numbers.map(SegmentNumber);
        let own = own.filter(|number| end.is_none_or(|end| *number < end));
        let own: Vec<SegmentNumber> = own.take(left).collect();
        left -= own.len();
        all.push((id, own));
    }
    all
}

/// The most bytes of segments within one hour.
fn busiest(times: &[TimestampTz], segment_bytes: u64) -> u64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let (mut begin, mut most) = (0, 0);
    for (at, time) in times.iter().enumerate() {
        let is_within = |from: &TimestampTz| time.duration_since(*from).is_some_and(|d| d < HOUR);
        while times.get(begin).is_some_and(|from| !is_within(from)) {
            begin += 1;
        }
        most = most.max(at + 1 - begin);
    }
    segment_bytes.saturating_mul(most as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::lsn::Lsn;
    use crate::pg::segment::SegmentSize;
    use crate::pg::timeline::{History, tli};
    use crate::repo::runs::Runs;
    use crate::wal::inventory::{HistoryFile, Timeline};

    #[test]
    fn a_promotion_hides_no_hour_before_it() {
        let at = |number: u64, more: u64| Lsn((number << 20) + more);
        let root = History::root(tli(1));
        let timeline = |history: History, numbers: std::ops::Range<u64>| Timeline {
            history: HistoryFile::Known(history),
            segments: Runs::from_numbers(numbers.collect()),
            ..Timeline::default()
        };
        // Timeline 3 was given up.
        let second = root.child(tli(2), at(6, 5), b"promoted");
        let third = root.child(tli(3), at(4, 0), b"tried");
        let mut inventory = Inventory {
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            ..Inventory::default()
        };
        inventory.timelines.insert(tli(1), timeline(root, 2..10));
        inventory.timelines.insert(tli(2), timeline(second, 6..9));
        inventory.timelines.insert(tli(3), timeline(third, 4..5));
        let looked_at = |of| {
            let all = newest(&inventory, of).into_iter();
            let all = all.map(|(id, own)| (id.decimal(), own.iter().map(|n| n.0).collect()));
            all.collect::<Vec<(u32, Vec<u64>)>>()
        };
        let followed = looked_at(Some(tli(2)));
        assert_eq!(followed, [(2, vec![8, 7, 6]), (1, vec![5, 4, 3, 2])]);
        let highest = looked_at(None);
        assert_eq!(highest, [(3, vec![4]), (1, vec![3, 2])]);
    }

    #[test]
    fn the_busiest_hour_is_not_the_last_one() {
        let time = |minute: i64| TimestampTz::from_unix_seconds(minute * 60).unwrap();
        let times = |minutes: &[i64]| minutes.iter().map(|m| time(*m)).collect::<Vec<_>>();
        assert_eq!(busiest(&[], 16), 0);
        assert_eq!(busiest(&times(&[200, 120, 65, 40, 10, 9]), 16), 3 * 16 + 16);
        assert_eq!(busiest(&times(&[200, 100, 0]), 16), 16);
    }
}
