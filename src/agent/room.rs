//! The room on the filesystems of repositories, and when none will be left.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observed;
use crate::config::{Location, Settings};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// The room of a repository is noted so often.
const SAMPLE: Duration = Duration::from_secs(6 * 3600);
/// So many notes are kept: those of 30 days.
const SAMPLES: usize = 120;
/// A shorter time foretells nothing.
const SPAN_MIN: Duration = Duration::from_secs(24 * 3600);

/// The room on the filesystem of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Its name.
    pub repository: String,
    /// All bytes.
    pub total_bytes: u64,
    /// Those that are free.
    pub free_bytes: u64,
    /// When it is full, at the rate of the notes; none without growth, and before a day of notes.
    pub full_in_s: Option<u64>,
    /// The free bytes of before, oldest first.
    notes: Vec<(TimestampTz, u64)>,
}

/// The part of the file before that is read.
#[derive(Default, Deserialize)]
struct Before {
    #[serde(default)]
    rooms: Vec<Room>,
}

impl Room {
    /// The share that is used, in per cent.
    pub fn used_percent(&self) -> u64 {
        let free = self.free_bytes.saturating_mul(100);
        let free = free.checked_div(self.total_bytes).unwrap_or(0);
        100_u64.saturating_sub(free)
    }
}

/// Measures the room of each repository in a directory. The file of the look before has its notes. Without that file, the forecast begins anew.
pub fn look(session: &Session, settings: &Settings, state_dir: &Path) -> Vec<Room> {
    let before: Before = observed::read(&observed::file(state_dir))
        .ok()
        .and_then(|(text, _)| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let now = session.host.now();
    let one = |repository: &crate::config::Repository| {
        let room = room(&repository.location)?;
        let name = &repository.name;
        let known = before.rooms.iter().find(|r| r.repository == *name);
        let notes = known.map_or(&[][..], |known| &known.notes);
        Some(noted(name, room, notes, now))
    };
    settings.repositories.iter().filter_map(one).collect()
}

/// All bytes and the free ones on the filesystem of a repository in a directory.
fn room(location: &Location) -> Option<(u64, u64)> {
    let Location::File(place) = location else {
        return None;
    };
    let stat = rustix::fs::statvfs(place).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some((bytes(stat.f_blocks), bytes(stat.f_bavail)))
}

fn noted(
    repository: &str,
    (total_bytes, free_bytes): (u64, u64),
    before: &[(TimestampTz, u64)],
    now: TimestampTz,
) -> Room {
    let mut notes: Vec<_> = before
        .iter()
        .filter(|(at, _)| *at <= now)
        .copied()
        .collect();
    let is_due = |(at, _): &(TimestampTz, u64)| now.duration_since(*at) >= Some(SAMPLE);
    if notes.last().is_none_or(is_due) {
        notes.push((now, free_bytes));
    }
    notes.drain(..notes.len().saturating_sub(SAMPLES));
    Room {
        repository: repository.to_owned(),
        total_bytes,
        free_bytes,
        full_in_s: full_in(&notes, free_bytes, now),
        notes,
    }
}

/// Seconds until nothing is free, at the rate since the first note.
fn full_in(notes: &[(TimestampTz, u64)], free: u64, now: TimestampTz) -> Option<u64> {
    let (since, then) = notes.first()?;
    let span = now
        .duration_since(*since)
        .filter(|span| *span >= SPAN_MIN)?;
    let taken = then.checked_sub(free).filter(|taken| *taken > 0)?;
    let seconds = u128::from(free) * u128::from(span.as_secs()) / u128::from(taken);
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fills_is_foretold_after_a_day_and_not_before() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let at = |hours: u64| start.saturating_add(Duration::from_secs(hours * 3600));
        let first = noted("r", (1000, 500), &[], start);
        assert_eq!((first.full_in_s, first.notes.len()), (None, 1));
        let soon = noted("r", (1000, 400), &first.notes, at(5));
        assert_eq!((soon.full_in_s, soon.notes.len()), (None, 1));
        let day = noted("r", (1000, 400), &first.notes, at(24));
        assert_eq!((day.full_in_s, day.notes.len()), (Some(4 * 86_400), 2));
        let grown = noted("r", (1000, 600), &first.notes, at(24));
        assert_eq!(grown.full_in_s, None, "room was made");
        // A clock that was set back forgets what lies ahead of it.
        let back = noted("r", (1000, 400), &day.notes, at(1));
        assert_eq!(back.notes.len(), 1);
    }
}
