//! The busiest hour: how much WAL the server wrote in it, as the archived segments tell, and for how long the disk of `pg_wal` has room
//! at that rate.

use std::path::Path;
use std::time::Duration;

use super::Findings;
use crate::error::Result;
use crate::operate::human;
use crate::pg::segment::SegmentNumber;
use crate::pg::time::TimestampTz;
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
    inventory: &Inventory,
    pgdata: &Path,
) -> Result<()> {
    let Ok(stat) = rustix::fs::statvfs(pgdata.join("pg_wal")) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let commits = last_commits(repository, inventory)?;
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
fn last_commits(repository: &Repository, inventory: &Inventory) -> Result<Vec<TimestampTz>> {
    let size = inventory.segment_size;
    let Some((id, timeline)) = inventory.timelines.last_key_value() else {
        return Ok(Vec::new());
    };
    let runs = timeline.segments.iter().rev();
    let numbers = runs.flat_map(|(first, last)| (first.0..=last.0).rev());
    let numbers: Vec<u64> = numbers.take(SEGMENTS_MAX).collect();
    let (Some(last), Some(first)) = (numbers.first(), numbers.last()) else {
        return Ok(Vec::new());
    };
    let wal = Rollup::new(repository, inventory, None)?;
    wal.prefetch(*id, SegmentNumber(*first), SegmentNumber(*last))?;
    let numbers = numbers.iter().map(|n| SegmentNumber(*n));
    let names = numbers.filter_map(|number| number.name(*id, size));
    // A segment that is damaged has its own finding.
    let facts = names.filter_map(|name| wal.facts(name).ok());
    Ok(facts.filter(|f| f.commits > 0).map(|f| f.times.1).collect())
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

    #[test]
    fn the_busiest_hour_is_not_the_last_one() {
        let time = |minute: i64| TimestampTz::from_unix_seconds(minute * 60).unwrap();
        let times = |minutes: &[i64]| minutes.iter().map(|m| time(*m)).collect::<Vec<_>>();
        assert_eq!(busiest(&[], 16), 0);
        assert_eq!(busiest(&times(&[200, 120, 65, 40, 10, 9]), 16), 3 * 16 + 16);
        assert_eq!(busiest(&times(&[200, 100, 0]), 16), 16);
    }
}
