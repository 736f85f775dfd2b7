//! Names of backups, and of the objects that they write.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::err;
use crate::error::{Error, Result};
use crate::pg::time::TimestampTz;
use crate::text::as_text;

/// Layers or packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// Parts of the map.
    Layer,
    /// Frames of file content.
    Pack,
}

/// Length of the start time in a backup's id, `20261120T064049Z`.
const STAMP_LEN: usize = 16;

/// A backup's id, e.g. `20261120T064049Z-482913-full`; older programs wrote no number, or a small one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// Composes the id for a start time printed as `20261120T064049Z`. Six decimal digits of `random` go into it, so
    /// that two hosts that begin in the same second, each in a repository of its own, get two ids.
    pub fn compose(stamp: &str, random: u64, kind: &str) -> Result<BackupId> {
        format!("{stamp}-{:06}-{kind}", random % 1_000_000).parse()
    }
}

impl BackupId {
    /// Whether an incremental backup has it.
    pub fn is_incremental(&self) -> bool {
        self.0.ends_with("-incr")
    }

    /// Whether it began in an earlier second than `other`. Ids of one second have no order: their numbers are drawn at random.
    pub fn is_before(&self, other: &BackupId) -> bool {
        self.0[..STAMP_LEN] < other.0[..STAMP_LEN]
    }

    /// The time in it, at which it was reserved by its host's clock; none where no calendar has it.
    pub fn time(&self) -> Option<TimestampTz> {
        let digits = |at: Range<usize>| self.0.get(at);
        let date = [digits(0..4)?, digits(4..6)?, digits(6..8)?].join("-");
        let time = [digits(9..11)?, digits(11..13)?, digits(13..15)?].join(":");
        format!("{date}T{time}Z").parse().ok()
    }
}

/// The id that is spelled most like `text`.
pub fn closest<'a>(
    known: impl IntoIterator<Item = &'a BackupId>,
    text: &str,
) -> Option<&'a BackupId> {
    known
        .into_iter()
        .min_by_key(|id| strsim::osa_distance(&id.0, text))
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let stamp = s.get(..STAMP_LEN).unwrap_or_default().as_bytes();
        let stamp_ok = stamp.iter().enumerate().all(|(i, b)| match i {
            8 => *b == b'T',
            15 => *b == b'Z',
            _ => b.is_ascii_digit(),
        });
        let rest = s
            .get(STAMP_LEN..)
            .and_then(|r| r.strip_prefix('-'))
            .unwrap_or_default();
        let kind = rest.rsplit('-').next().unwrap_or_default();
        let number_ok = match rest.rsplit_once('-') {
            Some((n, _)) => n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty(),
            None => true,
        };
        if stamp.len() == STAMP_LEN && stamp_ok && number_ok && matches!(kind, "full" | "incr") {
            Ok(BackupId(s.to_owned()))
        } else {
            let shown: String = s.escape_debug().take(100).collect();
            Err(err!(
                NotFound,
                "\"{shown}\" is not a backup id, as 20261120T064049Z-482913-full is"
            ))
        }
    }
}

as_text!(BackupId);

/// A layer object or a pack inside its prefix: `<id>/<n>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName {
    /// The backup that wrote it.
    pub id: BackupId,
    /// Counts from 0.
    pub number: u32,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:06}", self.id, self.number)
    }
}

impl FromStr for PartName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let shown = || s.escape_debug().take(100).collect::<String>();
        let wrong = || {
            err!(
                Damaged,
                "\"{}\" is not the name of a layer or pack",
                shown()
            )
        };
        let (id, number) = s.split_once('/').ok_or_else(wrong)?;
        if number.len() != 6 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        Ok(PartName {
            id: id.parse().map_err(|_| wrong())?,
            number: number.parse().map_err(|_| wrong())?,
        })
    }
}

as_text!(PartName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_second_have_no_order() {
        let id = |text: &str| text.parse::<BackupId>().unwrap();
        let (low, high) = (
            id("20261120T064049Z-000001-full"),
            id("20261120T064049Z-999999-full"),
        );
        let later = id("20261120T064050Z-000000-full");
        assert!(!low.is_before(&high) && !high.is_before(&low));
        assert!(high.is_before(&later) && !later.is_before(&high));
    }
}
