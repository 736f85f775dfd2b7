//! The room on the filesystems of repositories, and when none will be left.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::session::Session;
use crate::behalf;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::store;

/// The room of a repository is noted so often.
const SAMPLE: Duration = Duration::from_secs(6 * 3600);
/// So many notes are kept: those of 30 days.
const SAMPLES: usize = 120;
/// The notes of a repository that does not answer, or is configured no more, are kept as long as those of one that does.
const AWAY_MAX: Duration = Duration::from_secs(SAMPLE.as_secs() * SAMPLES as u64);
/// A shorter time foretells nothing.
const SPAN_MIN: Duration = Duration::from_secs(24 * 3600);

/// The room on the filesystem of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Its name.
    pub repository: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// When it is full, at the rate of all notes or of the last day; none without growth, and before a day of notes.
    pub full_in_s: Option<u64>,
}

/// The file of the notes, below `state_dir`. That of the page is long, and each look would read it.
const FILE: &str = "rooms.json";

/// The free bytes of one repository, as they were noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    repository: String,
    /// The free bytes, oldest first.
    notes: Vec<(TimestampTz, u64)>,
}

impl Room {
    /// The share that is used, in per cent.
    pub fn used_percent(&self) -> u64 {
        let free = free_percent(self.free_bytes, self.total_bytes);
        free.map_or(0, |free| 100_u64.saturating_sub(free))
    }
}

/// The free share of a filesystem in per cent; none where it tells no size. One in a cloud may tell 2^63 bytes.
pub fn free_percent(free: u64, total: u64) -> Option<u64> {
    let percent = (u128::from(free) * 100).checked_div(u128::from(total))?;
    Some(u64::try_from(percent).unwrap_or(u64::MAX))
}

/// Adds the forecast to what a look has measured; whether it was noted, too. Without the file of notes, the forecast begins anew; without a place for it,
/// there is none.
pub fn look(
    session: &Session,
    measured: &[(String, store::Room)],
    state_dir: Option<&Path>,
) -> (Vec<Room>, Result<()>) {
    let path = state_dir.map(|place| place.join(FILE));
    let known = path.as_deref().and_then(|path| behalf::read(path).ok());
    let before: Vec<Noted> = known
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let now = session.host.now();
    let mut rooms = Vec::new();
    let mut noted = Vec::new();
    for (name, room) in measured {
        let known = before.iter().find(|one| one.repository == *name);
        let notes = known.map_or(&[][..], |known| &known.notes);
        let (room, notes) = with_notes(name, *room, notes, now);
        rooms.push(room);
        noted.push(Noted {
            repository: name.clone(),
            notes,
        });
    }
    // One that is away for a while keeps its notes.
    let is_away = |one: &&Noted| {
        let last = one.notes.last().map(|(at, _)| now.duration_since(*at));
        let is_recent = last.is_some_and(|age| age < Some(AWAY_MAX));
        is_recent && !noted.iter().any(|known| known.repository == one.repository)
    };
    let away: Vec<Noted> = before.iter().filter(is_away).cloned().collect();
    noted.extend(away);
    let kept = match path.filter(|_| noted != before) {
        None => Ok(()),
        Some(path) => session.keep_json(&path, "notes", &noted),
    };
    (rooms, kept)
}

/// The room, and the notes with that of now where one is due.
fn with_notes(
    repository: &str,
    store::Room {
        total_bytes,
        free_bytes,
    }: store::Room,
    before: &[(TimestampTz, u64)],
    now: TimestampTz,
) -> (Room, Vec<(TimestampTz, u64)>) {
    let notes = before.iter();
    let mut notes: Vec<_> = notes.filter(|(at, _)| *at <= now).copied().collect();
    let is_due = |(at, _): &(TimestampTz, u64)| now.duration_since(*at) >= Some(SAMPLE);
    if notes.last().is_none_or(is_due) {
        notes.push((now, free_bytes));
    }
    notes.drain(..notes.len().saturating_sub(SAMPLES));
    let room = Room {
        repository: repository.to_owned(),
        total_bytes,
        free_bytes,
        full_in_s: full_in(&notes, free_bytes, now),
    };
    (room, notes)
}

/// Seconds until nothing is free, at the rate since the first note, or at that since a day ago where it is full sooner.
fn full_in(notes: &[(TimestampTz, u64)], free: u64, now: TimestampTz) -> Option<u64> {
    let is_old = |(at, _): &&(TimestampTz, u64)| now.duration_since(*at) >= Some(SPAN_MIN);
    let recent = notes.iter().rfind(is_old);
    let ends = notes.first().into_iter().chain(recent);
    ends.filter_map(|note| full_since(*note, free, now)).min()
}

/// Seconds until nothing is free, at the rate since a note.
fn full_since((since, then): (TimestampTz, u64), free: u64, now: TimestampTz) -> Option<u64> {
    let span = now.duration_since(since).filter(|span| *span >= SPAN_MIN)?;
    let taken = then.checked_sub(free).filter(|taken| *taken > 0)?;
    let seconds = u128::from(free) * u128::from(span.as_secs()) / u128::from(taken);
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w74_a_filesystem_of_any_size_is_as_full_as_it_is() {
        let used = |free_bytes, total_bytes| {
            let room = Room {
                repository: "r".into(),
                total_bytes,
                free_bytes,
                full_in_s: None,
            };
            room.used_percent()
        };
        assert_eq!(used(1 << 63, 1 << 63), 0);
        assert_eq!(used(1 << 61, 1 << 63), 75);
        assert_eq!(used(u64::MAX, u64::MAX), 0);
        assert_eq!(used(0, 1000), 100);
        assert_eq!(free_percent(0, 0), None, "it tells no size");
    }

    #[test]
    fn a_disk_that_fills_is_foretold_after_a_day_and_not_before() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let at = |hours: u64| start.saturating_add(Duration::from_secs(hours * 3600));
        let room = |free_bytes| store::Room {
            total_bytes: 1000,
            free_bytes,
        };
        let (first, notes) = with_notes("r", room(500), &[], start);
        assert_eq!((first.full_in_s, notes.len()), (None, 1));
        let (soon, same) = with_notes("r", room(400), &notes, at(5));
        assert_eq!((soon.full_in_s, &same), (None, &notes));
        let (day, two) = with_notes("r", room(400), &notes, at(24));
        assert_eq!((day.full_in_s, two.len()), (Some(4 * 86_400), 2));
        let (grown, _) = with_notes("r", room(600), &notes, at(24));
        assert_eq!(grown.full_in_s, None, "room was made");
        // A clock that was set back forgets what lies ahead of it.
        let (_, back) = with_notes("r", room(400), &two, at(1));
        assert_eq!(back.len(), 1);
    }

    #[test]
    fn a_disk_that_begins_to_fill_is_foretold_by_its_last_day() {
        let start: TimestampTz = "2026-11-20T00:00:00Z".parse().unwrap();
        let look = |before: u64, notes: &[(TimestampTz, u64)], free_bytes| {
            let now = start.saturating_add(SAMPLE * u32::try_from(before).unwrap());
            let total_bytes = 1000;
            let room = store::Room {
                total_bytes,
                free_bytes,
            };
            with_notes("r", room, notes, now)
        };
        let run = |level: u64| {
            let mut notes: Vec<(TimestampTz, u64)> = Vec::new();
            for before in 0..120 {
                // The first notes go when the last ones come.
                let free = if before < 10 { level } else { 500 };
                (_, notes) = look(before, &notes, free);
            }
            let mut full = None;
            for (before, free) in (120..).zip([475, 450, 425, 400]) {
                let (room, with_it) = look(before, &notes, free);
                (full, notes) = (room.full_in_s, with_it);
            }
            full
        };
        assert_eq!(run(500), Some(4 * 86_400), "by 30 days it is 119 days");
        assert_eq!(run(100), Some(4 * 86_400), "room was made in between");
    }
}
