//! The content of a segment of WAL, as its reader reports it: edges, ends, counts.

use super::lsn::Lsn;

/// The end of valid WAL in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SegmentEnd {
    /// It fills all pages that were read.
    #[default]
    Full,
    /// A switch record, at this LSN, ended the segment.
    Switch(Lsn),
    /// A record length of 0.
    ZeroLength,
    /// A page that was never written.
    ZeroPage,
    /// A page left over from an earlier use of the file.
    StalePage,
}

/// The part of a record that lies at an edge of a segment, without page headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Start of the record; 0/0 for a head, unless its start was seen.
    pub start_lsn: Lsn,
    /// How many bytes of the record lie in this segment.
    pub length: u32,
    /// Head: how many bytes were missing at the segment's start. Tail: the length of the whole record.
    pub total: u32,
    /// End of the record (EndRecPtr), if it ends in this segment.
    pub end_lsn: Option<Lsn>,
    /// The bytes; empty if they are more than [`FRAGMENT_KEEP`](super::reader::FRAGMENT_KEEP).
    pub bytes: Vec<u8>,
}

/// The content of a segment, complete when its last page has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SegmentSummary {
    /// First position of the segment.
    pub start_lsn: Lsn,
    /// Timeline of the first valid page and of the last one; `None` if there is no valid page.
    pub timelines: Option<(u32, u32)>,
    /// The end of a record that began in an earlier segment.
    pub head: Option<Fragment>,
    /// The first record that begins here, and the start of the record before it as it says (0/0 where its header is cut).
    pub first_record: Option<(Lsn, Lsn)>,
    /// The last record that begins here, complete or not.
    pub last_begun: Option<Lsn>,
    /// Start and end (EndRecPtr) of the last record that begins and ends here.
    pub last_complete: Option<(Lsn, Lsn)>,
    /// As `last_complete` was at the first finding.
    pub last_before_damage: Option<(Lsn, Lsn)>,
    /// The beginning of a record that continues in the next segment.
    pub tail: Option<Fragment>,
    /// How valid WAL ends.
    pub end: SegmentEnd,
    /// End of valid WAL: the segment's end, the end of the switch record itself, the first zero or stale position. For
    /// a record that is cut off there, it is the start of the record.
    pub valid_end: Lsn,
    /// Records that begin and end here.
    pub records: u64,
    /// Records that could not be decoded, as far as the reader can tell.
    pub undecoded: u64,
    /// How many findings there were.
    pub findings: u64,
    /// The first place at which recovery would stop because of a finding: a record's start, or a page's.
    pub first_damage: Option<Lsn>,
    /// Whether a page replaces the end of a record that was never finished.
    pub overwritten: bool,
}

impl SegmentSummary {
    /// Returns the summary of a segment of which nothing has been read yet.
    pub(super) fn of(start_lsn: Lsn) -> Self {
        SegmentSummary {
            start_lsn,
            valid_end: start_lsn,
            ..SegmentSummary::default()
        }
    }
}
