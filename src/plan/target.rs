//! The point at which recovery should stop, in PostgreSQL's terms.
//!
//! Owns the target, its timeline and their settings; times are read in `target_time`.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c (`check_recovery_target_xid`, `check_recovery_target_name` and their
//! neighbours; 13: src/backend/utils/misc/guc.c), src/include/access/transam.h (`FirstNormalTransactionId`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::target_time::for_postgresql;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::text::as_text;

/// Longest name of a restore point in bytes: `MAXFNAMELEN` without its terminating zero.
const NAME_BYTES_MAX: usize = 63;

/// The point at which recovery stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At the last transaction end before, or at, this time.
    Time(TimestampTz),
    /// At the end of this transaction.
    Xid(TargetXid),
    /// At this position.
    Lsn(Lsn),
    /// At the restore point of this name.
    Name(RestorePointName),
    /// As soon as the backup is consistent.
    Immediate,
    /// At the end of the archived WAL.
    End,
}

/// Whether what ends exactly at the target is replayed. PostgreSQL asks for time, xid and LSN only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inclusive {
    /// Stop just after the target.
    #[default]
    Yes,
    /// Stop just before it.
    No,
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetTimeline {
    /// The newest that descends from the backup's.
    #[default]
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(TimelineId),
}

/// Everything that is asked of recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryTarget {
    /// Point at which recovery stops.
    pub target: Target,
    /// On which side of it.
    pub inclusive: Inclusive,
    pub timeline: TargetTimeline,
}

impl Default for RecoveryTarget {
    fn default() -> Self {
        RecoveryTarget {
            target: Target::End,
            inclusive: Inclusive::Yes,
            timeline: TargetTimeline::Latest,
        }
    }
}

impl Target {
    /// The setting that tells PostgreSQL, and its value, not quoted; none for the end, which the plan turns into an LSN.
    pub fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            Target::Time(time) => Some(("recovery_target_time", for_postgresql(*time))),
            Target::Xid(xid) => Some(("recovery_target_xid", xid.xid().to_string())),
            Target::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            Target::Name(name) => Some(("recovery_target_name", name.as_str().to_owned())),
            Target::Immediate => Some(("recovery_target", "immediate".to_owned())),
            Target::End => None,
        }
    }

    /// Whether PostgreSQL tells inclusive from exclusive for this target.
    pub fn has_sides(&self) -> bool {
        matches!(self, Target::Time(_) | Target::Xid(_) | Target::Lsn(_))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Time(time) => write!(f, "time {time}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Target::Name(name) => write!(f, "restore point \"{}\"", name.as_str().escape_debug()),
            Target::Immediate => f.write_str("the moment the backup is consistent"),
            Target::End => f.write_str("the end of the archived WAL"),
        }
    }
}

/// A transaction id: 32 bits as WAL records carry it, or with its epoch above as `pg_current_xact_id()` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TargetXid(u64);

impl TargetXid {
    /// The lower 32 bits: what PostgreSQL compares.
    pub fn xid(self) -> u32 {
        u32::try_from(self.0 & 0xFFFF_FFFF).unwrap_or(u32::MAX)
    }

    /// The 64-bit id, where one was given.
    pub fn full(self) -> Option<u64> {
        (self.0 > u64::from(u32::MAX)).then_some(self.0)
    }
}

impl From<u32> for TargetXid {
    fn from(xid: u32) -> Self {
        TargetXid(u64::from(xid))
    }
}

impl FromStr for TargetXid {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Some(s)
            .filter(|s| s.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|s| s.parse().ok())
            .map(TargetXid)
            // 0, 1 and 2 are invalid, bootstrap and frozen: no transaction of theirs ever ends.
            .filter(|xid| xid.xid() >= 3)
            .ok_or_else(|| {
                err!(
                    Usage,
                    "\"{}\" is not a transaction id: 3 to 4294967295, or a full 64-bit id, is needed",
                    s.escape_debug()
                )
            })
    }
}

impl fmt::Display for TargetXid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The name of a restore point: 1–63 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePointName(String);

impl RestorePointName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RestorePointName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let problem = if s.is_empty() {
            "it is empty"
        } else if s.len() > NAME_BYTES_MAX {
            "it is longer than 63 bytes"
        } else if s.contains(char::is_control) {
            "it holds a control character"
        } else {
            return Ok(RestorePointName(s.to_owned()));
        };
        let shown: String = s.chars().take(100).flat_map(char::escape_debug).collect();
        Err(err!(
            Usage,
            "\"{shown}\" is not the name of a restore point: {problem}"
        ))
    }
}

impl fmt::Display for RestorePointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(RestorePointName);

impl FromStr for TargetTimeline {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "latest" => Ok(TargetTimeline::Latest),
            "current" => Ok(TargetTimeline::Current),
            number => TimelineId::from_decimal(number)
                .map(TargetTimeline::Number)
                .map_err(|_| {
                    err!(
                        Usage,
                        "\"{}\" is not a timeline: latest, current or a number from 1 to 4294967295 is needed",
                        s.escape_debug()
                    )
                }),
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetTimeline::Latest => f.pad("latest"),
            TargetTimeline::Current => f.pad("current"),
            TargetTimeline::Number(timeline) => fmt::Display::fmt(&timeline.decimal(), f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn transaction_ids_have_32_or_64_bits() {
        for (text, xid, full) in [
            ("3", 3, None),
            ("4294967295", u32::MAX, None),
            ("4294967299", 3, Some(4_294_967_299)),
            ("18446744073709551615", u32::MAX, Some(u64::MAX)),
            ("000742", 742, None),
        ] {
            let target: TargetXid = text.parse().unwrap();
            assert_eq!((target.xid(), target.full()), (xid, full), "{text}");
        }
        for text in [
            "",
            "-1",
            "+7",
            "abc",
            "2^40",
            "0",
            "1",
            "2",
            "0x10",
            " 7",
            "4294967296",
            "4294967298",
            "18446744073709551616",
        ] {
            let error = text.parse::<TargetXid>().unwrap_err();
            assert_eq!(error.code(), Code::Usage, "{text}");
        }
    }

    #[test]
    fn names_have_63_bytes_at_most() {
        let longest = "é".repeat(31) + "x";
        for text in ["a", "before drop", "it's", longest.as_str()] {
            assert_eq!(text.parse::<RestorePointName>().unwrap().as_str(), text);
        }
        let too_long = "é".repeat(32);
        for text in ["", "a\nb", "a\0", too_long.as_str()] {
            assert!(text.parse::<RestorePointName>().is_err(), "{text}");
        }
    }

    #[test]
    fn timelines_are_named_or_numbered() {
        for text in ["latest", "current", "1", "4294967295"] {
            assert_eq!(text.parse::<TargetTimeline>().unwrap().to_string(), text);
        }
        for text in ["", "0", "latest1", "Latest", "-1", "4294967296", "0x2"] {
            let error = text.parse::<TargetTimeline>().unwrap_err();
            assert_eq!(error.code(), Code::Usage, "{text}");
        }
    }

    #[test]
    fn settings_are_those_of_postgresql() {
        let time: TimestampTz = "2026-11-20T05:40:49.5Z".parse().unwrap();
        for (target, setting) in [
            (
                Target::Time(time),
                Some(("recovery_target_time", "2026-11-20 05:40:49.500000+00")),
            ),
            (
                Target::Xid("4294967299".parse().unwrap()),
                Some(("recovery_target_xid", "3")),
            ),
            (
                Target::Lsn(Lsn(0x300_0060)),
                Some(("recovery_target_lsn", "0/3000060")),
            ),
            (
                Target::Name("it's".parse().unwrap()),
                Some(("recovery_target_name", "it's")),
            ),
            (Target::Immediate, Some(("recovery_target", "immediate"))),
            (Target::End, None),
        ] {
            assert_eq!(
                target.setting(),
                setting.map(|(key, value)| (key, value.to_owned()))
            );
            let json = serde_json::to_string(&target).unwrap();
            assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target);
        }
        assert!(serde_json::from_str::<Target>("{\"name\":\"\"}").is_err());
    }
}
