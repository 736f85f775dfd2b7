//! Timelines and their history files.
//!
//! Knowledge: src/backend/access/transam/timeline.c (readTimeLineHistory, writeTimeLineHistory, tliOfPointInHistory) and
//! src/backend/access/transam/xlogrecovery.c (XLogFileReadAnyTLI), PostgreSQL 13–19.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::{Error, Result};

use super::lsn::{Lsn, LsnRange};

/// The text of a history file of a timeline without a parent. PostgreSQL writes none, and passes over comments.
pub const NO_PARENT: &str = "# no parent\n";

/// The number of a timeline, never 0. Prints as in file names: eight upper-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The first timeline of every cluster; it has no history file.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// The timeline with this number, unless it is 0.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(n) => Some(TimelineId(n)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The number as history lines, settings and people write it: decimal.
    pub fn decimal(self) -> u32 {
        self.get()
    }

    /// Name of the history file of this timeline.
    pub fn history_file_name(self) -> String {
        format!("{self}.history")
    }

    /// Reads the decimal form, as in `recovery_target_timeline`.
    ///
    /// # Errors
    /// `Usage` if it is not a decimal number from 1 to 4294967295.
    pub fn from_decimal(text: &str) -> Result<Self> {
        Some(text)
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse().ok())
            .map(TimelineId)
            .ok_or_else(|| {
                err!(
                    Usage,
                    "\"{text}\" is not a timeline: a number from 1 to 4294967295 is needed"
                )
            })
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.get())
    }
}

/// The inverse of `Display`: eight upper-case hexadecimal digits.
impl FromStr for TimelineId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        super::segment::hex8(s)
            .and_then(TimelineId::new)
            .ok_or_else(|| {
                err!(
                    WalName,
                    "\"{s}\" is not a timeline: eight upper-case hexadecimal digits are needed"
                )
            })
    }
}

/// One line of a history file: an ancestor and the position at which it was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// First position that is no longer its own.
    pub switch_lsn: Lsn,
    /// Why it was left, in the server's words and encoding; the variants for time and LSN end with a line feed.
    pub reason: Vec<u8>,
}

/// A position on a timeline. Order: timeline first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub timeline: TimelineId,
    /// A byte of it; as an end, the first that is not covered.
    pub lsn: Lsn,
}

/// A stretch of WAL that one timeline holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// The timeline that holds it.
    pub timeline: TimelineId,
    /// Begin and end of the stretch; the last one of a path ends at `u64::MAX`.
    pub range: LsnRange,
}

/// The ancestry of a timeline, as its history file gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

impl History {
    /// A timeline without a parent: timeline 1 of every cluster.
    pub fn root(timeline: TimelineId) -> Self {
        History {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// The history of a timeline that leaves this one at `switch_lsn`.
    #[must_use]
    pub fn child(&self, timeline: TimelineId, switch_lsn: Lsn, reason: &[u8]) -> Self {
        let mut ancestors = self.ancestors.clone();
        ancestors.push(Ancestor {
            timeline: self.timeline,
            switch_lsn,
            reason: reason.to_vec(),
        });
        History {
            timeline,
            ancestors,
        }
    }

    /// Reads the history file of `timeline`, by the server's own rules.
    ///
    /// White space, empty lines and lines that begin with `#` are skipped; behind the switch point a line may say
    /// anything. Switch points need not increase: a server told to follow timeline 2 and stopped before the switch to
    /// it names timeline 2 as the parent all the same, and reads such a file from its end (see [`History::holder`]).
    ///
    /// # Errors
    /// `Damaged` where the server would refuse the file (a line without timeline or switch point, timelines that do not
    /// increase or are not below the file's own), where a number does not fit, and where there is no line at all: such
    /// a file would turn the timeline into one without a past.
    ///
    /// PostgreSQL: src/backend/access/transam/timeline.c, readTimeLineHistory; xlog.c, StartupXLOG (the parent written is
    /// `recoveryTargetTLI`, wherever recovery ended).
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        // Empty lines since the last entry: they tell whether its reason ended with a line feed of its own.
        let mut empty = 0usize;
        let mut has_comment = false;
        for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
            let text = trim_start(line);
            if text.is_empty() {
                empty += 1;
                continue;
            }
            if text.first() == Some(&b'#') {
                has_comment = true;
                continue;
            }
            if let Some(last) = ancestors.last_mut()
                && empty > 1
            {
                last.reason.push(b'\n');
            }
            empty = 0;
            let damaged = |what: &str| {
                err!(
                    Damaged,
                    "history file \"{timeline}.history\", line {}: {what}",
                    number + 1
                )
            };
            let ancestor = parse_line(text).map_err(damaged)?;
            if ancestors
                .last()
                .is_some_and(|last| ancestor.timeline <= last.timeline)
            {
                return Err(damaged("timelines do not increase"));
            }
            if ancestor.timeline >= timeline {
                return Err(damaged("parent is not below the timeline itself"));
            }
            ancestors.push(ancestor);
        }
        let Some(last) = ancestors.last_mut() else {
            // Somebody wrote it for a timeline that pg_resetwal began; an empty file is one that was lost.
            if has_comment {
                return Ok(History::root(timeline));
            }
            return Err(err!(
                Damaged,
                "history file \"{timeline}.history\" has no entry"
            ));
        };
        // The text after the last line feed counts as one empty line in a file that ends with one.
        if empty > 1 {
            last.reason.push(b'\n');
        }
        Ok(History {
            timeline,
            ancestors,
        })
    }

    /// The file as the server writes it: the parent's file, an empty line, the new line.
    ///
    /// PostgreSQL: src/backend/access/transam/timeline.c, writeTimeLineHistory.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.ancestors.is_empty() {
            return NO_PARENT.into();
        }
        let mut out = Vec::new();
        for (i, ancestor) in self.ancestors.iter().enumerate() {
            if i > 0 {
                out.push(b'\n');
            }
            out.extend_from_slice(
                format!("{}\t{}\t", ancestor.timeline.decimal(), ancestor.switch_lsn).as_bytes(),
            );
            out.extend_from_slice(&ancestor.reason);
            out.push(b'\n');
        }
        out
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// The timeline this one was made from, and where.
    pub fn parent(&self) -> Option<(TimelineId, Lsn)> {
        self.ancestors.last().map(|a| (a.timeline, a.switch_lsn))
    }

    /// Whether `timeline` is this timeline or an ancestor of it.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.ancestors.iter().any(|a| a.timeline == timeline)
    }

    /// Returns the LSN at which the path to this timeline leaves `timeline`; `None` for this timeline itself and for
    /// strangers.
    ///
    /// PostgreSQL: src/backend/access/transam/timeline.c, tliSwitchPoint.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors
            .iter()
            .find(|a| a.timeline == timeline)
            .map(|a| a.switch_lsn)
    }

    /// The timeline that holds the byte at `lsn`.
    ///
    /// PostgreSQL: src/backend/access/transam/timeline.c, tliOfPointInHistory: the newest entry that covers it.
    pub fn holder(&self, lsn: Lsn) -> TimelineId {
        self.path()
            .into_iter()
            .rev()
            .find(|i| i.range.start <= lsn)
            .map_or(self.timeline, |i| i.timeline)
    }

    /// The stretches of WAL that lead to this timeline, oldest first, without gaps, from 0/0 to `u64::MAX`.
    ///
    /// An ancestor that holds nothing on this way is left out.
    pub fn path(&self) -> Vec<Interval> {
        let mut path = Vec::with_capacity(self.ancestors.len() + 1);
        let mut end = Lsn(u64::MAX);
        let mut timeline = self.timeline;
        for ancestor in self.ancestors.iter().rev() {
            // An entry begins where the one before it ends.
            if ancestor.switch_lsn < end {
                path.push(Interval {
                    timeline,
                    range: LsnRange {
                        start: ancestor.switch_lsn,
                        end,
                    },
                });
                end = ancestor.switch_lsn;
            }
            timeline = ancestor.timeline;
        }
        if end > Lsn(0) {
            path.push(Interval {
                timeline,
                range: LsnRange { start: Lsn(0), end },
            });
        }
        path.reverse();
        path
    }

    /// The timeline that this way takes up where `timeline` ends; `None` for the last one and for strangers.
    pub fn next_of(&self, timeline: TimelineId) -> Option<TimelineId> {
        let mut ancestors = self.ancestors.iter().map(|a| a.timeline);
        ancestors.find(|t| *t == timeline)?;
        Some(ancestors.next().unwrap_or(self.timeline))
    }
}

fn is_space(byte: u8) -> bool {
    // isspace() of the C locale; a line feed has ended the line already.
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0B | 0x0C)
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let blank = bytes.iter().take_while(|&&b| is_space(b)).count();
    bytes.get(blank..).unwrap_or_default()
}

/// One line by `sscanf("%u\t%X/%X")`, the rest being the reason.
fn parse_line(text: &[u8]) -> std::result::Result<Ancestor, &'static str> {
    let (number, rest) = digits(text, 10);
    let timeline = number
        .and_then(|n| u32::try_from(n).ok())
        .and_then(TimelineId::new)
        .ok_or("expected a timeline")?;
    let missing = "expected a switch point";
    let (high, rest) = digits(trim_start(rest), 16);
    let rest = rest.strip_prefix(b"/").ok_or(missing)?;
    let (low, rest) = digits(rest, 16);
    let half = |n: Option<u64>| n.and_then(|n| u32::try_from(n).ok()).ok_or(missing);
    Ok(Ancestor {
        timeline,
        switch_lsn: Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)),
        reason: rest.strip_prefix(b"\t").unwrap_or(rest).to_vec(),
    })
}

/// The number at the front, and what follows it. `None` without digits and for more than fit.
fn digits(bytes: &[u8], radix: u32) -> (Option<u64>, &[u8]) {
    let mut value = Some(0u64);
    let mut count = 0;
    for &b in bytes {
        let Some(digit) = char::from(b).to_digit(radix) else {
            break;
        };
        value = value
            .and_then(|v| v.checked_mul(u64::from(radix)))
            .and_then(|v| v.checked_add(u64::from(digit)));
        count += 1;
    }
    let rest = bytes.get(count..).unwrap_or_default();
    (value.filter(|_| count > 0), rest)
}

/// The timeline with this number, in tests.
#[cfg(test)]
pub(crate) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    const TWO: &[u8] =
        b"1\t0/10000A0\tno recovery target specified\n\n2\t0/2400728\tafter LSN 0/2400728\n\n";

    #[test]
    fn a_timeline_prints_in_hexadecimal_and_is_never_zero() {
        assert_eq!(tli(26).to_string(), "0000001A");
        assert_eq!("0000001A".parse::<TimelineId>().unwrap(), tli(26));
        for bad in [
            "",
            "1A",
            "0000001a",
            "00000000",
            "0000001G",
            "+000001A",
            "00000001A",
        ] {
            assert_eq!(bad.parse::<TimelineId>().unwrap_err().code(), Code::WalName);
        }
        assert_eq!(TimelineId::from_decimal("26").unwrap(), tli(26));
        for bad in ["", "0", "-1", "+1", "4294967296", "x"] {
            assert!(TimelineId::from_decimal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_the_server_is_read_and_written_byte_for_byte() {
        for text in [
            TWO,
            b"1\t0/3000000\tafter 2026-11-20 07:00:41.09009+00\n\n",
            b"1\t0/3000000\tat restore point \"x\"\n",
            b"1\t0/3000000\tafter LSN 0/3\n\n\n2\t1/0\treached consistency\n\n5\t1/8\tbefore transaction 7\n",
        ] {
            let history = History::parse(tli(9), text).unwrap();
            assert_eq!(history.to_bytes(), text, "{}", String::from_utf8_lossy(text));
        }
        let history = History::parse(tli(3), TWO).unwrap();
        assert_eq!(history.parent(), Some((tli(2), Lsn(0x240_0728))));
        assert_eq!(history.ancestors()[1].reason, b"after LSN 0/2400728\n");
        let made = History::root(tli(1))
            .child(tli(2), Lsn(0x100_00A0), b"no recovery target specified")
            .child(tli(3), Lsn(0x240_0728), b"after LSN 0/2400728\n");
        assert_eq!(made, history);
    }

    #[test]
    fn comments_blank_lines_and_white_space_are_skipped() {
        let text =
            b"# comment\n\n  # another\n \t\n  1 0/00003000 by hand\n\t2\t0/4000\n#end\n3\t1/0";
        let history = History::parse(tli(4), text).unwrap();
        let got: Vec<_> = history
            .ancestors()
            .iter()
            .map(|a| (a.timeline.get(), a.switch_lsn.0))
            .collect();
        assert_eq!(got, [(1, 0x3000), (2, 0x4000), (3, 1 << 32)]);
    }

    #[test]
    fn t65_a_comment_alone_says_that_a_timeline_has_no_parent() {
        let history = History::parse(tli(3), NO_PARENT.as_bytes()).unwrap();
        assert_eq!(history, History::root(tli(3)));
        assert_eq!(history.to_bytes(), NO_PARENT.as_bytes());
    }

    #[test]
    fn what_the_server_refuses_is_damaged() {
        let cases: [(&[u8], &str); 13] = [
            (b"", "has no entry"),
            (b"\n \n", "has no entry"),
            (b"x\t0/1\tr\n", "expected a timeline"),
            (b"-1\t0/1\tr\n", "expected a timeline"),
            (b"0\t0/1\tr\n", "expected a timeline"),
            (b"4294967297\t0/1\tr\n", "expected a timeline"),
            (b"1\n", "expected a switch point"),
            (b"1\t0\n", "expected a switch point"),
            (b"1\t0/\n", "expected a switch point"),
            (b"1\t0/123456789\tr\n", "expected a switch point"),
            (
                b"1\t0/1\tr\n1\t0/2\tr\n",
                "line 2: timelines do not increase",
            ),
            (b"4\t0/1\tr\n", "parent is not below"),
            (b"\0\0\0\0\0\0", "expected a timeline"),
        ];
        for (text, what) in cases {
            let error = History::parse(tli(4), text).unwrap_err();
            assert_eq!(error.code(), Code::Damaged);
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn the_path_says_who_holds_what() {
        let history = History::parse(tli(3), TWO).unwrap();
        let path: Vec<_> = history
            .path()
            .iter()
            .map(|i| (i.timeline.get(), i.range.start.0, i.range.end.0))
            .collect();
        assert_eq!(
            path,
            [
                (1, 0, 0x100_00A0),
                (2, 0x100_00A0, 0x240_0728),
                (3, 0x240_0728, u64::MAX)
            ]
        );
        assert_eq!(history.holder(Lsn(0x100_009F)), tli(1));
        assert_eq!(history.holder(Lsn(0x100_00A0)), tli(2));
        assert_eq!(history.holder(Lsn(u64::MAX)), tli(3));
        assert_eq!(history.switch_point(tli(2)), Some(Lsn(0x240_0728)));
        assert_eq!(history.switch_point(tli(3)), None);
        assert!(history.contains(tli(1)) && history.contains(tli(3)) && !history.contains(tli(4)));
        let next = |t| history.next_of(tli(t)).map(TimelineId::get);
        assert_eq!(
            [next(1), next(2), next(3), next(4)],
            [Some(2), Some(3), None, None]
        );
    }

    /// Recovery that follows timeline 2 but stops before the switch to it names 2 as the parent of 3.
    #[test]
    fn a_parent_that_holds_nothing_is_passed_over() {
        let history = History::parse(tli(3), b"1\t0/100\tr\n\n2\t0/50\tr\n").unwrap();
        let path: Vec<_> = history
            .path()
            .iter()
            .map(|i| (i.timeline.get(), i.range.start.0, i.range.end.0))
            .collect();
        assert_eq!(path, [(1, 0, 0x50), (3, 0x50, u64::MAX)]);
        assert_eq!(history.holder(Lsn(0x4F)), tli(1));
        assert_eq!(history.holder(Lsn(0x60)), tli(3));
    }

    /// tliOfPointInHistory as PostgreSQL writes it, as the judge of [`History::holder`].
    fn judge(history: &History, lsn: Lsn) -> TimelineId {
        let mut begin = Lsn(0);
        let mut entries = Vec::new();
        for a in history.ancestors() {
            entries.push((a.timeline, begin, a.switch_lsn));
            begin = a.switch_lsn;
        }
        entries.push((history.timeline(), begin, Lsn(0)));
        entries
            .into_iter()
            .rev()
            .find(|&(_, b, e)| (b == Lsn(0) || b <= lsn) && (e == Lsn(0) || lsn < e))
            .unwrap()
            .0
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = History::parse(tli(7), &bytes);
        }

        #[test]
        fn almost_right_files_are_read_or_refused(text in "([0-9 #]{0,3}\t?[0-9A-Fx]{0,9}/?[0-9A-F]{0,9}[\t ]?[a-z]{0,5}\n{0,3}){0,5}") {
            if let Ok(history) = History::parse(tli(0xFFFF), text.as_bytes()) {
                prop_assert_eq!(&History::parse(tli(0xFFFF), &history.to_bytes()).unwrap(), &history);
            }
        }

        #[test]
        fn the_holder_is_the_one_postgresql_finds(switches in proptest::collection::vec(1u64..40, 0..6), lsn in 0u64..45) {
            let mut history = History::root(tli(1));
            for (i, s) in switches.iter().enumerate() {
                history = history.child(tli(u32::try_from(i).unwrap() + 2), Lsn(*s), b"r");
            }
            prop_assert_eq!(history.holder(Lsn(lsn)), judge(&history, Lsn(lsn)));
            let path = history.path();
            prop_assert!(path.windows(2).all(|w| w[0].range.end == w[1].range.start));
        }
    }
}
