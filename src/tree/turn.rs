//! Turns in which content is read again that nothing says has changed.

use std::time::Duration;

use crate::pg::time::TimestampTz;

/// In this time everything has one turn.
pub const ROUND: Duration = Duration::from_secs(50 * 24 * 3600);

/// Whether the turn of a name comes between two moments. Each name has one in every round, whenever backups are taken.
pub fn is_due(name: &[u8], (since, now): (TimestampTz, TimestampTz), round: Duration) -> bool {
    let round = i64::try_from(round.as_secs()).unwrap_or(i64::MAX);
    let seconds = |time: TimestampTz| time.unix_micros().unwrap_or(0).div_euclid(1_000_000);
    if round == 0 {
        return true;
    }
    let hash: [u8; 32] = blake3::hash(name).into();
    let slot = hash
        .first_chunk()
        .map_or(0, |first| u32::from_le_bytes(*first));
    let first = seconds(since) + 1;
    first + (i64::from(slot) - first).rem_euclid(round) <= seconds(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_one_turn_in_a_round() {
        let at = |seconds: i64| TimestampTz::from_unix_seconds(1_700_000_000 + seconds).unwrap();
        let round = i64::try_from(ROUND.as_secs()).unwrap();
        for name in [&b"a"[..], b"b", b"images/1"] {
            // Whatever the distance of backups is.
            for step in [3600, 86_400, 7 * 86_400, 50 * 86_400] {
                let turns = (0..round / step)
                    .filter(|n| is_due(name, (at(n * step), at((n + 1) * step)), ROUND))
                    .count();
                assert!(turns <= 1, "{step}");
                let missed = round % step;
                assert!(missed > 0 || turns == 1, "{step}");
            }
            assert!(is_due(name, (at(0), at(round)), ROUND));
            assert!(!is_due(name, (at(0), at(0)), ROUND));
        }
    }
}
