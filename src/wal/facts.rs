//! The facts that a plan asks of archived WAL, as plain data: which segments there are, what each of them says, which
//! records decide.
//!
//! The questions are a trait, so that the planner does no I/O: `rollup` answers them from a repository, tests from memory.

use super::index::{HeadEnd, TailClass};
use super::link::Brief;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::parameters::Parameters;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::repo::varint::{Fixed, stored};
use crate::repo::wal_proof::RawHash;

/// Bits of [`Facts::flags`] beyond those of [`super::index::flag`].
pub mod flag {
    /// The segment holds restore points, or it is not known that it holds none.
    pub const RESTORE_POINTS: u16 = 1 << 8;
    /// Which transactions end here is not recorded.
    pub const XIDS_UNKNOWN: u16 = 1 << 9;
    /// The segment holds a change of parameters, or it is not known that it holds none.
    pub const PARAMETERS: u16 = 1 << 10;
    /// Files, a database or a tablespace were removed in the segment, or it is not known that none were.
    pub const REMOVALS: u16 = 1 << 11;
    /// The segment holds a checkpoint, or it is not known that it holds none.
    pub const CHECKPOINTS: u16 = 1 << 12;
    /// Init forks of unlogged relations were created in the segment, or it is not known that none were.
    pub const INIT_FORKS: u16 = 1 << 13;
    /// Tablespaces were made in the segment, or it is not known that none were.
    pub const TABLESPACES: u16 = 1 << 14;
}

stored! {
    /// The facts from the index of a segment, reduced to the needs of plans. LSNs are 0/0 where there is none.
    /// `rollup_cache` stores the fields in this order. A change of the order needs another number in its magic.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Facts {
        /// Bits of [`super::index::flag`] and [`flag`].
        pub flags: u16 = Fixed,
        /// Fate of the record that reaches in from before.
        pub head_end: HeadEnd = Fixed,
        /// Class of the record that continues in the next segment.
        pub tail_class: TailClass = Fixed,
        /// Bytes of the head that lie here.
        pub head_length: u32 = Fixed,
        /// Bytes that the first page says are missing of it.
        pub head_remaining: u32 = Fixed,
        /// Bytes here of the record that continues in the next segment; 0 = none does.
        pub tail_length: u32 = Fixed,
        /// Its whole length.
        pub tail_total: u32 = Fixed,
        /// First position of the segment.
        pub start_lsn: Lsn = Fixed,
        /// The first record that begins here.
        pub first_record: Lsn = Fixed,
        /// The record before it, as it says; 0/0 where its header is cut.
        pub first_prev: Lsn = Fixed,
        /// The last record that begins here, complete or not.
        pub last_begun: Lsn = Fixed,
        /// Start of the last record inside.
        pub last_complete: Lsn = Fixed,
        pub last_complete_end: Lsn = Fixed,
        pub valid_end: Lsn = Fixed,
        /// Commits inside.
        pub commits: u32 = Fixed,
        /// Commits and aborts inside.
        pub ends: u32 = Fixed,
        /// Smallest and largest time of a transaction end inside; only where `ends` is not 0.
        pub times: (TimestampTz, TimestampTz) = Fixed,
        /// Smallest and largest xid of a transaction end inside, as plain numbers.
        pub xids: (u32, u32) = Fixed,
        /// Link that joins the segment to the one before it.
        pub link: Brief = Fixed,
    }
}

impl Facts {
    /// Facts of a segment in which no record begins or ends.
    pub fn empty(start_lsn: Lsn) -> Facts {
        Facts {
            start_lsn,
            valid_end: start_lsn,
            ..Facts::default()
        }
    }

    /// Whether the record that continues in the next segment may be one that an index records as an event.
    pub fn may_cross_event(&self) -> bool {
        self.tail_length > 0 && matches!(self.tail_class, TailClass::Event | TailClass::Unknown)
    }

    /// Whether a bit of `flags` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The kind of the record that begins in a segment and ends in a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// There is none, or it decides nothing.
    Nothing,
    /// It ends a transaction; the xid is 0 where it is not known.
    End {
        /// Effective xid.
        xid: u32,
        time: TimestampTz,
        /// Whether it is a commit.
        is_commit: bool,
    },
    /// It is a restore point.
    RestorePoint,
    /// It is a change of parameters.
    ParameterChange {
        /// Whether `wal_level` is minimal from there on.
        is_minimal: bool,
    },
    /// It makes or removes files of relations, databases or tablespaces.
    Files,
    /// It may be anything: the body has to tell.
    Unknown,
}

/// A record of the WAL, as far as it matters to where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub start: Lsn,
    /// End of the record (EndRecPtr).
    pub end: Lsn,
    /// Kind of the record.
    pub kind: EntryKind,
}

/// The kind of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// It ends a transaction, prepared ones too.
    End {
        /// Effective xid.
        xid: u32,
        time: TimestampTz,
        /// Commit or abort.
        is_commit: bool,
    },
    /// Another record of the transaction manager.
    Transaction,
    /// A restore point.
    RestorePoint {
        /// When it was made.
        time: TimestampTz,
        /// Its name, in the server's encoding.
        name: Vec<u8>,
    },
    /// A checkpoint.
    Checkpoint {
        /// Next xid with its epoch in the upper half.
        next_xid: u64,
    },
    /// The server was started with other parameters.
    ParameterChange(Parameters),
    /// Anything else.
    Other,
}

/// A restore point, as the index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPoint {
    /// Start of the record.
    pub lsn: Lsn,
    /// When it was made.
    pub time: TimestampTz,
    /// Its name, in the server's encoding.
    pub name: Vec<u8>,
}

/// Answers what a plan asks of archived WAL. Only segments that the inventory lists are asked for.
///
/// `Damaged` and `Unsupported` are answers about a segment; every other error ends the plan.
pub trait Wal {
    /// Tells which segments will be asked for, so that they can be read together.
    ///
    /// # Errors
    /// As [`Wal::facts`], but nothing about single segments.
    fn prefetch(
        &self,
        _timeline: TimelineId,
        _first: SegmentNumber,
        _last: SegmentNumber,
    ) -> Result<()> {
        Ok(())
    }

    /// Returns the facts from the index of a segment.
    fn facts(&self, name: SegmentName) -> Result<Facts>;

    /// Returns the kind of the record that begins in `name` and ends in `next`, the segment that follows on the path.
    fn crossing(&self, name: SegmentName, next: Option<SegmentName>) -> Result<Crossing>;

    /// Whether a transaction of this xid may end inside the segment; false is certain.
    fn may_end(&self, name: SegmentName, xid: u32) -> Result<bool>;

    /// The restore points inside the segment; `None` where the index does not record them.
    fn restore_points(&self, name: SegmentName) -> Result<Option<Vec<NamedPoint>>>;

    /// Decodes the segment's body and shows every record that begins in it, in order, up to the first that is damaged.
    ///
    /// `next` gives the segment that follows on the path: the last record may end there.
    fn scan(
        &self,
        name: SegmentName,
        next: &dyn Fn(SegmentName) -> Option<SegmentName>,
        visit: &mut dyn FnMut(&Entry),
    ) -> Result<()>;

    /// Whether a segment has this hash, as the stored object says; one that is damaged, or not stored whole, has every hash.
    ///
    /// # Errors
    /// As [`Wal::facts`], apart from damage.
    fn has_hash(&self, name: SegmentName, hash: RawHash) -> Result<bool>;

    /// Whether the first bytes of a segment have this hash, as [`Wal::has_hash`].
    ///
    /// # Errors
    /// As [`Wal::has_hash`].
    fn has_prefix(&self, name: SegmentName, length_bytes: u64, hash: RawHash) -> Result<bool>;

    /// Makes sure that the facts returned for a segment still match the stored segment.
    ///
    /// # Errors
    /// As [`Wal::facts`].
    fn confirm(&self, _name: SegmentName) -> Result<()> {
        Ok(())
    }
}
