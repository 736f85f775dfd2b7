//! Sizes, lengths of time and moments for people. Machines get bytes, and RFC 3339 (`docs/json-output.md`).

use std::time::Duration;

use crate::pg::time::TimestampTz;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size in the unit that suits it: `512 B`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let unit = SizeUnit::for_largest([bytes]);
    format!("{} {}", unit.show(bytes), unit.name())
}

/// One unit for a whole column of sizes: the largest in which the largest of them is not below 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeUnit(u8);

impl SizeUnit {
    /// The unit that suits the largest of these sizes.
    pub fn for_largest(sizes: impl IntoIterator<Item = u64>) -> SizeUnit {
        let largest = sizes.into_iter().max().unwrap_or(0);
        let power = u64::BITS.saturating_sub(largest.leading_zeros() + 1) / 10;
        SizeUnit(u8::try_from(power).unwrap_or(0))
    }

    /// The unit's name, for the head of the column.
    pub fn name(self) -> &'static str {
        UNITS.get(usize::from(self.0)).copied().unwrap_or("B")
    }

    /// A size in this unit: whole bytes, one decimal otherwise.
    pub fn show(self, bytes: u64) -> String {
        if self.0 == 0 {
            return bytes.to_string();
        }
        let unit = 1_u128 << (10 * u32::from(self.0));
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths == 0 && bytes > 0 {
            return "<0.1".to_owned();
        }
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

/// A length of time in milliseconds, for JSON.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A length of time in its two largest units: `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`, `8 d 4 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{} ms", duration.subsec_millis());
    }
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (name, length) in units {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            parts.push(format!("{count} {name}"));
        }
        // The second unit is the neighbour of the first: nobody wants "3 d 1 s".
        if !parts.is_empty() && (count == 0 || parts.len() == 2) {
            break;
        }
    }
    parts.join(" ")
}

/// A moment in UTC to the second: `2026-11-20 06:40:49Z`.
pub fn time(time: TimestampTz) -> String {
    match time.civil() {
        Some(c) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}Z",
            c.year, c.month, c.day, c.hour, c.minute, c.second
        ),
        None => time.to_string(),
    }
}

/// A moment in UTC to the microsecond: `2026-11-20 06:40:49.123456Z`.
pub fn exact_time(time: TimestampTz) -> String {
    time.to_string().replacen('T', " ", 1)
}

/// The two ends of a window to the second, both inside of it; to the microsecond where no whole second is.
pub fn window(from: TimestampTz, to: TimestampTz) -> (String, String) {
    const SECOND: i64 = 1_000_000;
    let over = u64::try_from(from.0.rem_euclid(SECOND)).unwrap_or_default();
    let second = match over {
        0 => from,
        over => from.saturating_add(Duration::from_micros(SECOND.unsigned_abs() - over)),
    };
    match second <= to {
        true => (time(second), time(to)),
        false => (exact_time(from), exact_time(to)),
    }
}

/// A number with its noun: `1 segment`, `3 segments`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_window_are_inside_of_it() {
        let shown = |from: &str, to: &str| {
            let at = |text: &str| -> TimestampTz {
                format!("2026-11-20T06:40:{text}Z").parse().unwrap()
            };
            let (from, to) = window(at(from), at(to));
            let short = |text: String| text.replace("2026-11-20 06:40:", "");
            format!("{} {}", short(from), short(to))
        };
        assert_eq!(shown("27.990000", "31.990000"), "28Z 31Z");
        assert_eq!(shown("27", "31"), "27Z 31Z");
        assert_eq!(shown("27.990000", "28.000000"), "28Z 28Z");
        assert_eq!(shown("27.100000", "27.900000"), "27.100000Z 27.900000Z");
    }

    #[test]
    fn sizes_take_the_unit_that_suits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (16 << 20, "16.0 MiB"),
            (1536 << 20, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        let unit = SizeUnit::for_largest([5, 3 << 30, 1 << 20]);
        assert_eq!((unit.name(), unit.show(512 << 20)), ("GiB", "0.5".into()));
        assert_eq!(unit.show(1 << 20), "<0.1");
        assert_eq!(unit.show(0), "0.0");
    }

    #[test]
    fn lengths_of_time_have_at_most_two_units() {
        for (ms, text) in [
            (0, "0 ms"),
            (850, "850 ms"),
            (12_900, "12 s"),
            (60_000, "1 min"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (7_205_000, "2 h"),
            (705_600_000, "8 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn moments_are_in_utc_and_say_so() {
        let t: TimestampTz = "2026-11-20T06:40:49.123456Z".parse().unwrap();
        assert_eq!(time(t), "2026-11-20 06:40:49Z");
        assert_eq!(exact_time(t), "2026-11-20 06:40:49.123456Z");
        assert_eq!(time(TimestampTz::INFINITY), "infinity");
    }

    #[test]
    fn one_has_no_plural() {
        assert_eq!(count(1, "segment"), "1 segment");
        assert_eq!(count(0, "segment"), "0 segments");
    }
}
