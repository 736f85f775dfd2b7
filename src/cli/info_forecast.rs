//! The picture of retention that `pitr info` draws: backups, and windows of a cluster, along time, and what goes next.

use crate::operate::forecast::{Forecast, Foretold};
use crate::operate::human;
use crate::pg::time::TimestampTz;
use crate::plan::window::Window;

/// Columns of the picture.
const WIDTH: usize = 72;
/// Backups of which the picture says when they go.
const NEXT_MAX: usize = 5;

/// Draws the picture, line by line.
pub fn lines(forecast: &Forecast, windows: &[Window], now: TimestampTz) -> Vec<String> {
    let title = format!("retention: {}; days of {}", forecast.rules, forecast.zone);
    let mut lines = vec![title];
    lines.extend(forecast.notes.iter().cloned());
    let times = forecast.backups.iter().map(|b| b.stop_time);
    let Some(first) = times.filter(|t| *t <= now).min() else {
        return lines;
    };
    let scale = Scale { first, last: now };
    let day = |time: TimestampTz| human::time(time).chars().take(10).collect::<String>();
    lines.push(format!("{:<62}{}", day(first), day(now)));
    let mut row = vec![' '; WIDTH];
    for backup in &forecast.backups {
        if let Some(cell) = row.get_mut(scale.column(backup.stop_time)) {
            *cell = symbol(backup, *cell);
        }
    }
    lines.push(row.iter().collect::<String>().trim_end().to_owned());
    let legend = "o kept  x goes  ! damaged";
    if windows.is_empty() {
        lines.push(legend.to_owned());
        lines.extend(next(&forecast.backups));
        return lines;
    }
    let mut row = vec![' '; WIDTH];
    for window in windows.iter().filter(|w| w.from < w.to) {
        let columns = scale.column(window.from)..=scale.column(window.to);
        row.iter_mut()
            .enumerate()
            .filter(|(at, _)| columns.contains(at))
            .for_each(|(_, cell)| *cell = '=');
    }
    lines.push(row.iter().collect::<String>().trim_end().to_owned());
    lines.push(format!("{legend}  = every moment can be reached"));
    lines.extend(next(&forecast.backups));
    lines
}

/// The places of moments in the picture.
struct Scale {
    first: TimestampTz,
    last: TimestampTz,
}

impl Scale {
    fn column(&self, time: TimestampTz) -> usize {
        let seconds = |t: TimestampTz| t.duration_since(self.first).map_or(0, |d| d.as_secs());
        let whole = seconds(self.last).max(1);
        let last = WIDTH as u64 - 1;
        let column = u128::from(seconds(time).min(whole)) * u128::from(last) / u128::from(whole);
        usize::try_from(column).unwrap_or(WIDTH - 1)
    }
}

/// Returns the symbol for a backup in a column that shows `there`: the worst of several in one column.
fn symbol(backup: &Foretold, there: char) -> char {
    match (backup.damaged, backup.fate, there) {
        (true, ..) | (_, _, '!') => '!',
        (_, fate, there) if fate != "keep" || there == 'x' => 'x',
        _ => 'o',
    }
}

/// The backups that go next, and when.
fn next(backups: &[Foretold]) -> Vec<String> {
    let goes = |b: &Foretold| {
        let when = match b.fate {
            "keep" => b.kept_until.map(|t| (t, "kept until")),
            "waiting" => b.not_before.map(|t| (t, "deleted after")),
            _ => Some((TimestampTz::NEG_INFINITY, "goes")),
        };
        when.map(|(time, word)| (time, word, b.id.clone(), b.reason.clone()))
    };
    let mut going: Vec<_> = backups.iter().filter_map(goes).collect();
    going.sort();
    let line = |(time, word, id, reason): &(TimestampTz, &str, _, String)| match time.is_finite() {
        true => format!("{id} {word} {}: {reason}", human::time(*time)),
        false => format!("{id} {word} with the next runs of expire: {reason}"),
    };
    going.iter().take(NEXT_MAX).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_backups_windows_and_what_goes() {
        let time = |text: &str| text.parse::<TimestampTz>().unwrap();
        let backup = |id: &str, stop: &str, fate: &'static str, until: Option<&str>| Foretold {
            id: id.parse().unwrap(),
            stop_time: time(stop),
            fate,
            reason: "keep_monthly: last of 2026-09 (2 of 2)".to_owned(),
            not_before: None,
            kept_until: until.map(time),
            to_its_end_only: false,
            damaged: false,
        };
        let mut forecast = Forecast {
            rules: "keep_monthly 2".to_owned(),
            zone: "UTC".to_owned(),
            window_begin: None,
            notes: Vec::new(),
            backups: vec![
                backup(
                    "20260831T000000Z-full",
                    "2026-08-31T00:00:00Z",
                    "mark",
                    None,
                ),
                backup(
                    "20260930T000000Z-full",
                    "2026-09-30T00:00:00Z",
                    "keep",
                    Some("2026-12-01T00:00:00Z"),
                ),
                backup(
                    "20261110T000000Z-full",
                    "2026-11-10T00:00:00Z",
                    "keep",
                    None,
                ),
            ],
        };
        let window = Window {
            timeline: crate::pg::timeline::TimelineId::FIRST,
            from: time("2026-09-30T00:00:00Z"),
            to: time("2026-11-11T00:00:00Z"),
            from_lsn: crate::pg::lsn::Lsn(0),
            to_lsn: crate::pg::lsn::Lsn(0),
            to_end: true,
            broken: None,
            end: crate::plan::chain::StretchEnd::EndOfWal,
            backups: Vec::new(),
        };
        let drawn = lines(&forecast, &[window], time("2026-11-11T00:00:00Z"));
        assert_eq!(drawn[1].len(), 72);
        assert_eq!(drawn[2], format!("x{}o{}o", " ".repeat(28), " ".repeat(40)));
        assert_eq!(drawn[3], format!("{}{}", " ".repeat(29), "=".repeat(43)));
        assert!(drawn[5].starts_with("20260831T000000Z-full goes with the next runs"));
        assert!(drawn[6].starts_with("20260930T000000Z-full kept until 2026-12-01"));
        assert_eq!(drawn.len(), 7);
        // Other content has no windows.
        let drawn = lines(&forecast, &[], time("2026-11-11T00:00:00Z"));
        assert_eq!(drawn[3], "o kept  x goes  ! damaged");
        assert_eq!(drawn.len(), 6);
        // A reason for which nothing goes stands before it.
        forecast.notes.push("nothing is marked".to_owned());
        let noted = lines(&forecast, &[], time("2026-11-11T00:00:00Z"));
        assert_eq!(
            (noted[1].as_str(), &noted[2..]),
            ("nothing is marked", &drawn[1..])
        );
    }
}
