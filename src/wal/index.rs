//! The index of a segment (format, section 6): what a plan may know without reading the body.
//!
//! Owns the encoding. `indexer` makes an index from WAL, `container` keeps it beside the body.
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::repo::container::{Container, Section, tag};
use crate::repo::varint::{self, Fixed, Reader, Varint, as_other, numbered, stored};

/// Sections 4, 5 and 6 are left out above these raw sizes; readers then decode the body.
pub const XIDS_LIMIT_BYTES: usize = 4 << 20;
/// See [`XIDS_LIMIT_BYTES`].
pub const EVENTS_LIMIT_BYTES: usize = 4 << 20;
/// See [`XIDS_LIMIT_BYTES`].
pub const BLOCKS_LIMIT_BYTES: usize = 8 << 20;

/// Bits of [`Summary::flags`].
pub mod flag {
    /// Section 7 lists findings.
    pub const DAMAGED: u64 = 1;
    /// The segment ends with a switch record.
    pub const SWITCH: u64 = 2;
    /// Valid WAL ends inside: zeros or stale pages follow.
    pub const ENDS_INSIDE: u64 = 4;
    /// An overwritten contrecord is in it.
    pub const OVERWRITTEN: u64 = 8;
    /// Holds WAL of wal_level minimal.
    pub const MINIMAL: u64 = 16;
    /// Carries a tail marker; partials only.
    pub const MARKED: u64 = 32;
    /// Starts with pages of a parent timeline.
    pub const PARENT_PAGES: u64 = 64;
    /// The WAL was not decoded: a PostgreSQL newer than its archiver wrote it.
    pub const UNDECODED: u64 = 128;
}

/// The fate of the record that reaches into the segment from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadEnd {
    /// There is none.
    #[default]
    None = 0,
    /// It ends here.
    Here = 1,
    /// It continues in the next segment: this one is all middle.
    Continues = 2,
    /// It is not finished here: abandoned and overwritten, or cut.
    Abandoned = 3,
}

numbered!(HeadEnd: None, Here, Continues, Abandoned);

/// The class of the record that continues in the next segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TailClass {
    /// Its header is not whole here, or it was not kept.
    #[default]
    Unknown = 0,
    /// A transaction end.
    TransactionEnd = 1,
    /// Another record that has an entry among the events.
    Event = 2,
    /// Neither.
    Other = 3,
}

numbered!(TailClass: Unknown, TransactionEnd, Event, Other);

stored! {
    /// One transaction end as the summary names it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Commit {
        /// Effective xid.
        pub xid: u32 = Fixed,
        /// Start of the record.
        pub lsn: Lsn = Fixed,
        /// Commit time in the record.
        pub time: TimestampTz = Fixed,
    }
}

as_other! { Fixed:
    Option<Commit> => Commit, |commit| commit.unwrap_or_default(), |commit| Some(commit).filter(|commit| commit.xid != 0);
}

stored! {
    /// The summary's facts about transaction ends inside; absent when there are none.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Ends {
        /// Smallest time of any of the four kinds of transaction ends.
        pub min_time: TimestampTz = Fixed,
        /// Largest.
        pub max_time: TimestampTz = Fixed,
        /// First commit in LSN order.
        pub first_commit: Option<Commit> = Fixed,
        /// Last commit in LSN order.
        pub last_commit: Option<Commit> = Fixed,
        /// Smallest effective xid, as a plain number.
        pub min_xid: u32 = Fixed,
        /// Largest.
        pub max_xid: u32 = Fixed,
    }
}

impl Varint for Option<Ends> {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, u64::from(self.is_some()));
        if let Some(ends) = self {
            ends.put(out);
        }
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        match r.varint()? {
            0 => Ok(None),
            _ => Ends::take(r).map(Some),
        }
    }
}

stored! {
    /// Section 2.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Summary {
        /// See [`flag`].
        pub flags: u64 = Varint,
        /// First LSN of the segment.
        pub start_lsn: Lsn = Fixed,
        /// Timeline of the first page; 0 when there is no valid page.
        pub first_timeline: u32 = Varint,
        /// Timeline of the last valid page.
        pub last_timeline: u32 = Varint,
        /// Bytes at the start that belong to an earlier record.
        pub head_length: u32 = Varint,
        /// Bytes that the first page says are missing of it.
        pub head_remaining: u32 = Varint,
        /// Fate of that record.
        pub head_end: HeadEnd = Fixed,
        /// First record that begins here and its `xl_prev` (0/0 where its header is cut by the segment's end).
        pub first_record: Option<(Lsn, Lsn)> = Fixed,
        /// Last record that begins here.
        pub last_begun: Option<Lsn> = Fixed,
        /// Start and end of the last record inside.
        pub last_complete: Option<(Lsn, Lsn)> = Fixed,
        /// Bytes here of the record that continues.
        pub tail_length: u32 = Varint,
        /// Its whole length.
        pub tail_total: u32 = Varint,
        /// Class of that record.
        pub tail_class: TailClass = Fixed,
        pub valid_end: Lsn = Fixed,
        /// Records inside.
        pub records: u64 = Varint,
        /// Commits inside, prepared ones too.
        pub commits: u64 = Varint,
        /// Aborts inside, prepared ones too.
        pub aborts: u64 = Varint,
        /// Prepares inside.
        pub prepares: u64 = Varint,
        /// Times and xids of transaction ends inside.
        pub ends: Option<Ends> = Varint,
    }
}

impl Summary {
    /// Whether a bit of [`flag`] is set.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The summary as pitr 0.1 wrote it of a segment in which a switch record ends that an edge has cut: it took the segment for one whose WAL
    /// ends inside.
    pub fn before_cut_switches(&self) -> Summary {
        Summary {
            flags: self.flags & !flag::SWITCH | flag::ENDS_INSIDE,
            ..self.clone()
        }
    }

    /// Section 2.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(200);
        self.put(&mut out);
        out
    }

    /// Reads section 2.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn decode(bytes: &[u8]) -> Result<Summary> {
        Summary::take(&mut Reader::new(bytes, "summary of a segment"))
    }
}

stored! {
    /// Section 3: bytes of records that cross the segment's edges; empty where there are none or they are above 64 KiB.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Fragments {
        /// At the start.
        pub head: Vec<u8> = Varint,
        /// At the end.
        pub tail: Vec<u8> = Varint,
    }
}

impl Fragments {
    /// Section 3.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.head.len() + self.tail.len() + 8);
        self.put(&mut out);
        out
    }

    /// Reads section 3.
    pub fn decode(bytes: &[u8]) -> Result<Fragments> {
        Fragments::take(&mut Reader::new(bytes, "fragments of a segment"))
    }
}

/// Section 4: a set of xids as runs of consecutive plain numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct XidSet(Vec<(u32, u32)>);

impl XidSet {
    /// Makes the set from sorted numbers without duplicates.
    pub fn from_sorted(xids: &[u32]) -> XidSet {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &xid in xids {
            match runs.last_mut() {
                Some((first, length))
                    if u64::from(*first) + u64::from(*length) == u64::from(xid) =>
                {
                    *length += 1;
                }
                _ => runs.push((xid, 1)),
            }
        }
        XidSet(runs)
    }

    /// Whether `xid` is in it.
    pub fn contains(&self, xid: u32) -> bool {
        let at = self.0.partition_point(|(first, _)| *first <= xid);
        at.checked_sub(1)
            .and_then(|i| self.0.get(i))
            .is_some_and(|(first, length)| xid - first < *length)
    }

    /// The oldest one, in the circle of 32 bits: plain numbers begin anew behind the greatest.
    pub fn oldest(&self) -> Option<u32> {
        let firsts = self.0.iter().map(|(first, _)| *first);
        let older = |a: u32, b: u32| match b.wrapping_sub(a).cast_signed() < 0 {
            true => b,
            false => a,
        };
        firsts.filter(|first| *first > 0).reduce(older)
    }

    fn encode(&self) -> Vec<u8> {
        encode_runs(&self.0)
    }

    fn decode(r: &mut Reader<'_>) -> Result<XidSet> {
        Ok(XidSet(decode_runs(r)?))
    }
}

/// Varint count, then per run varint gap to the end of the previous run and varint length − 1.
fn encode_runs(runs: &[(u32, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * 2 + 4);
    varint::put(&mut out, runs.len() as u64);
    let mut end = 0_u64;
    for (first, length) in runs {
        varint::put(&mut out, u64::from(*first) - end);
        varint::put(&mut out, u64::from(*length) - 1);
        end = u64::from(*first) + u64::from(*length);
    }
    out
}

fn decode_runs(r: &mut Reader<'_>) -> Result<Vec<(u32, u32)>> {
    let count = r.count(2)?;
    let mut runs = Vec::with_capacity(count);
    let mut end = 0_u64;
    for _ in 0..count {
        let first = end.checked_add(r.varint()?).ok_or_else(|| r.damaged())?;
        let length = r.varint()?.checked_add(1).ok_or_else(|| r.damaged())?;
        end = first
            .checked_add(length)
            .filter(|e| *e <= 1 << 32)
            .ok_or_else(|| r.damaged())?;
        let narrow = |v: u64| u32::try_from(v).map_err(|_| r.damaged());
        runs.push((narrow(first)?, narrow(length)?));
    }
    Ok(runs)
}

/// Declares the events of section 5 with their numbers; their fields are put and taken in order, each in the form that stands behind it.
macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $number:literal {
        $($(#[$of_field:meta])* $field:ident: $type:ty = $form:ident,)*
    },)*) => {
        /// Something in section 5, with the start LSN of its record.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum WalEvent {
            $($(#[$doc])* $event { $($(#[$of_field])* $field: $type,)* },)*
        }

        impl WalEvent {
            fn kind(&self) -> u8 {
                match self {
                    $(WalEvent::$event { .. } => $number,)*
                }
            }

            fn body(&self) -> Vec<u8> {
                let mut out = Vec::new();
                match self {
                    $(WalEvent::$event { $($field),* } => {
                        $($form::put($field, &mut out);)*
                    })*
                }
                out
            }

            /// None for a kind of a later version.
            fn decode(kind: u8, body: &[u8]) -> Result<Option<WalEvent>> {
                let mut r = Reader::new(body, "event of a segment");
                Ok(Some(match kind {
                    $($number => WalEvent::$event { $($field: $form::take(&mut r)?),* },)*
                    _ => return Ok(None),
                }))
            }
        }
    };
}

events! {
    /// `pg_create_restore_point`.
    RestorePoint = 1 {
        /// Time in the record.
        time: TimestampTz = Fixed,
        /// Name, up to its NUL.
        name: Vec<u8> = Varint,
    },
    /// A checkpoint or end-of-recovery record.
    Checkpoint = 2 {
        /// Which of the three.
        kind: CheckpointKind = Fixed,
        timeline: u32 = Varint,
        /// The one before; differs when the record starts a timeline.
        previous_timeline: u32 = Varint,
        /// Redo point; 0/0 for end of recovery.
        redo_lsn: Lsn = Fixed,
        /// When it was made.
        time: TimestampTz = Fixed,
    },
    /// Settings that a recovering server must match.
    ParameterChange = 3 {
        /// max_connections, max_worker_processes, max_wal_senders, max_prepared_transactions, max_locks_per_transaction.
        limits: [u64; 5] = Varint,
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u64 = Varint,
        wal_log_hints: bool = Fixed,
        track_commit_timestamp: bool = Fixed,
    },
    /// End of an online backup on a primary.
    BackupEnd = 4 {
        start_lsn: Lsn = Fixed,
    },
    /// A record was abandoned and overwritten.
    OverwrittenContrecord = 5 {
        /// Start of the abandoned record.
        lsn: Lsn = Fixed,
    },
    /// A relation file was dropped, truncated or created.
    Relation = 6 {
        /// 0 dropped at transaction end, 1 truncated, 2 created.
        action: u8 = Fixed,
        /// Tablespace.
        spc: u32 = Varint,
        /// Database.
        db: u32 = Varint,
        /// Relation file number.
        rel: u32 = Varint,
        fork: u8 = Varint,
        /// New length in blocks, of a truncation.
        block: u32 = Varint,
        /// Transaction.
        xid: u32 = Varint,
    },
    /// A database was created or dropped.
    Database = 7 {
        /// 0 file copy, 1 WAL log, 2 drop.
        action: u8 = Fixed,
        /// Database.
        db: u32 = Varint,
        /// Tablespace.
        spc: u32 = Varint,
        /// Transaction.
        xid: u32 = Varint,
    },
    /// A tablespace was created or dropped.
    Tablespace = 8 {
        /// 0 create, 1 drop.
        action: u8 = Fixed,
        oid: u32 = Varint,
        /// Transaction.
        xid: u32 = Varint,
        /// Location, of a creation.
        path: Vec<u8> = Varint,
    },
    /// full_page_writes changed.
    FullPageWrites = 9 {
        is_on: bool = Fixed,
    },
    /// A transaction end larger than what is kept.
    Undecoded = 10 {
        /// Resource manager.
        rmid: u8 = Fixed,
        /// xl_info.
        info: u8 = Fixed,
        /// Effective xid; 0 = not known.
        xid: u32 = Varint,
        time: TimestampTz = Fixed,
    },
}

/// Kinds of checkpoint-like records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKind {
    /// Online.
    Online = 0,
    /// Shutdown.
    Shutdown = 1,
    /// End of recovery.
    EndOfRecovery = 2,
}

numbered!(CheckpointKind: Online, Shutdown, EndOfRecovery);

impl CheckpointKind {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckpointKind::Online => "online",
            CheckpointKind::Shutdown => "shutdown",
            CheckpointKind::EndOfRecovery => "end of recovery",
        }
    }
}

/// Section 6: blocks changed, per relation fork.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks(pub Vec<ForkBlocks>);

/// The blocks of one relation fork that a segment changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkBlocks {
    /// Tablespace, database, relation file number, fork.
    pub fork: (u32, u32, u32, u8),
    /// Runs (first block, length), ascending.
    pub runs: Vec<(u32, u32)>,
}

impl Blocks {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, self.0.len() as u64);
        let mut last = [0; 3];
        for blocks in &self.0 {
            let (spc, db, rel, fork) = blocks.fork;
            let next = [spc, db, rel].map(i64::from);
            for (next, last) in next.iter().zip(last) {
                varint::put_zigzag(&mut out, next - last);
            }
            last = next;
            out.push(fork);
            out.extend_from_slice(&encode_runs(&blocks.runs));
        }
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Blocks> {
        let count = r.count(5)?;
        let mut forks = Vec::with_capacity(count);
        let mut last = [0_i64; 3];
        for _ in 0..count {
            let mut next = [0_u32; 3];
            for (value, last) in next.iter_mut().zip(&mut last) {
                *last = last.checked_add(r.zigzag()?).ok_or_else(|| r.damaged())?;
                *value = u32::try_from(*last).map_err(|_| r.damaged())?;
            }
            let fork = r.u8()?;
            let [spc, db, rel] = next;
            forks.push(ForkBlocks {
                fork: (spc, db, rel, fork),
                runs: decode_runs(r)?,
            });
        }
        Ok(Blocks(forks))
    }
}

/// Kinds of findings in section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// A record's checksum.
    Crc = 1,
    /// A record does not follow the one before.
    Prev = 2,
    /// A page header.
    PageHeader = 3,
    /// A record header.
    RecordHeader = 4,
    /// Bytes behind a switch record.
    AfterSwitch = 5,
}

numbered!(DamageKind: Crc, Prev, PageHeader, RecordHeader, AfterSwitch);

impl DamageKind {
    /// As it is shown, in JSON too.
    pub fn as_str(self) -> &'static str {
        match self {
            DamageKind::Crc => "record checksum",
            DamageKind::Prev => "previous record",
            DamageKind::PageHeader => "page header",
            DamageKind::RecordHeader => "record header",
            DamageKind::AfterSwitch => "bytes behind a switch",
        }
    }
}

/// A whole index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Section 2.
    pub summary: Summary,
    /// Section 3.
    pub fragments: Fragments,
    /// Section 4; `None` = not recorded.
    pub xids: Option<XidSet>,
    /// Section 5, ascending by LSN; `None` = not recorded.
    pub events: Option<Vec<(Lsn, WalEvent)>>,
    /// Section 6; `None` = not recorded.
    pub blocks: Option<Blocks>,
    /// Section 7.
    pub damage: Vec<(DamageKind, Lsn)>,
}

impl SegmentIndex {
    /// The index of a segment of which no byte is there.
    pub fn nothing(start_lsn: Lsn) -> SegmentIndex {
        SegmentIndex {
            summary: Summary {
                flags: flag::ENDS_INSIDE,
                start_lsn,
                valid_end: start_lsn,
                ..Summary::default()
            },
            fragments: Fragments::default(),
            xids: Some(XidSet::default()),
            events: Some(Vec::new()),
            blocks: Some(Blocks::default()),
            damage: Vec::new(),
        }
    }

    /// The sections to store. Partials carry 2 and 3 only.
    pub fn sections(&self, partial: bool) -> Vec<Section> {
        let section = |tag, bytes, compress| Section {
            tag,
            bytes,
            compress,
        };
        let mut sections = vec![
            section(tag::SUMMARY, self.summary.encode(), false),
            section(tag::FRAGMENTS, self.fragments.encode(), false),
        ];
        if partial {
            return sections;
        }
        let start = self.summary.start_lsn;
        // Each is cut before the next one takes memory.
        let xids = self.xids.as_ref().map(XidSet::encode);
        let xids = limited(xids, XIDS_LIMIT_BYTES);
        sections.push(section(tag::XIDS, xids, true));
        let events = self.events.as_ref().map(|e| encode_events(start, e));
        let events = limited(events, EVENTS_LIMIT_BYTES);
        sections.push(section(tag::EVENTS, events, true));
        let blocks = self.blocks.as_ref().map(Blocks::encode);
        let blocks = limited(blocks, BLOCKS_LIMIT_BYTES);
        sections.push(section(tag::BLOCKS, blocks, true));
        if !self.damage.is_empty() {
            sections.push(section(tag::DAMAGE, encode_damage(&self.damage), true));
        }
        sections
    }
}

/// Section 2 of an object.
///
/// # Errors
/// `Damaged` when it is missing or wrong.
pub fn read_summary(container: &Container) -> Result<Summary> {
    match container.section(tag::SUMMARY)? {
        Some(bytes) => Summary::decode(&bytes),
        None => Err(crate::err!(Damaged, "a segment object has no summary")),
    }
}

/// Section 3 of an object.
pub fn read_fragments(container: &Container) -> Result<Fragments> {
    match container.section(tag::FRAGMENTS)? {
        Some(bytes) => Fragments::decode(&bytes),
        None => Err(crate::err!(Damaged, "a segment object has no fragments")),
    }
}

/// Section 4 of an object; `None` when it was not recorded.
pub fn read_xids(container: &Container) -> Result<Option<XidSet>> {
    recorded(container, tag::XIDS, XidSet::decode)
}

/// Section 5 of an object; `None` when it was not recorded.
pub fn read_events(container: &Container, start_lsn: Lsn) -> Result<Option<Vec<(Lsn, WalEvent)>>> {
    recorded(container, tag::EVENTS, |r| decode_events(start_lsn, r))
}

/// Section 6 of an object; `None` when it was not recorded.
pub fn read_blocks(container: &Container) -> Result<Option<Blocks>> {
    recorded(container, tag::BLOCKS, Blocks::decode)
}

/// Section 7 of an object.
pub fn read_damage(container: &Container) -> Result<Vec<(DamageKind, Lsn)>> {
    let Some(bytes) = container.section(tag::DAMAGE)? else {
        return Ok(Vec::new());
    };
    let mut r = Reader::new(&bytes, "findings of a segment");
    let count = r.count(9)?;
    let mut damage = Vec::with_capacity(count);
    for _ in 0..count {
        damage.push(Fixed::take(&mut r)?);
    }
    Ok(damage)
}

fn recorded<T>(
    container: &Container,
    tag: u8,
    decode: impl FnOnce(&mut Reader<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let Some(bytes) = container.section(tag)? else {
        return Ok(None);
    };
    let mut r = Reader::new(&bytes, "index of a segment");
    match r.u8()? {
        0 => Ok(None),
        1 => decode(&mut r).map(Some),
        _ => Err(r.damaged()),
    }
}

fn limited(section: Option<Vec<u8>>, limit: usize) -> Vec<u8> {
    match section {
        Some(mut bytes) if bytes.len() <= limit => {
            bytes.insert(0, 1);
            bytes
        }
        _ => vec![0],
    }
}

fn encode_events(start: Lsn, events: &[(Lsn, WalEvent)]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, events.len() as u64);
    for (lsn, event) in events {
        out.push(event.kind());
        varint::put(&mut out, lsn.0 - start.0);
        varint::put_blob(&mut out, &event.body());
    }
    out
}

fn decode_events(start: Lsn, r: &mut Reader<'_>) -> Result<Vec<(Lsn, WalEvent)>> {
    let count = r.count(3)?;
    let mut events = Vec::new();
    for _ in 0..count {
        let kind = r.u8()?;
        let lsn = start.0.checked_add(r.varint()?);
        let lsn = lsn.ok_or_else(|| r.damaged())?;
        let body = r.blob()?;
        if let Some(event) = WalEvent::decode(kind, body)? {
            events.push((Lsn(lsn), event));
        }
    }
    Ok(events)
}

fn encode_damage(damage: &[(DamageKind, Lsn)]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, damage.len() as u64);
    damage.iter().for_each(|one| one.put(&mut out));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_comes_back() {
        let commit = Commit {
            xid: 7,
            lsn: Lsn(0x100_0040),
            time: TimestampTz(-5),
        };
        let mut summary = Summary {
            flags: flag::SWITCH | flag::PARENT_PAGES,
            start_lsn: Lsn(0x100_0000),
            first_timeline: 1,
            last_timeline: 2,
            head_length: 10,
            head_remaining: 10,
            head_end: HeadEnd::Here,
            first_record: Some((Lsn(0x100_0038), Lsn(0x0FF_FF00))),
            last_begun: Some(Lsn(0x1FF_0000)),
            last_complete: Some((Lsn(0x1FF_0000), Lsn(0x1FF_0018))),
            tail_length: 0,
            tail_total: 0,
            tail_class: TailClass::Unknown,
            valid_end: Lsn(0x1FF_0018),
            records: 1000,
            commits: 3,
            aborts: 1,
            prepares: 0,
            ends: Some(Ends {
                min_time: TimestampTz(-5),
                max_time: TimestampTz(900),
                first_commit: Some(commit),
                last_commit: None,
                min_xid: 7,
                max_xid: u32::MAX,
            }),
        };
        assert_eq!(Summary::decode(&summary.encode()).unwrap(), summary);
        summary.ends = None;
        summary.first_record = None;
        let bytes = summary.encode();
        assert_eq!(Summary::decode(&bytes).unwrap(), summary);
        for n in 0..bytes.len() {
            assert!(Summary::decode(&bytes[..n]).is_err());
        }
    }

    #[test]
    fn xids_are_exact() {
        let xids = [3, 4, 5, 9, 100, 101, u32::MAX - 1, u32::MAX];
        let set = XidSet::from_sorted(&xids);
        let bytes = set.encode();
        let back = XidSet::decode(&mut Reader::new(&bytes, "t")).unwrap();
        assert_eq!(back, set);
        for x in (0..200).chain([u32::MAX - 2, u32::MAX - 1, u32::MAX]) {
            assert_eq!(back.contains(x), xids.contains(&x), "{x}");
        }
    }

    #[test]
    fn the_oldest_xid_is_the_one_before_the_numbers_begin_anew() {
        let oldest = |xids: &[u32]| XidSet::from_sorted(xids).oldest();
        assert_eq!(oldest(&[700, 701, 900]), Some(700));
        assert_eq!(
            oldest(&[3, 4, 9, u32::MAX - 5, u32::MAX]),
            Some(u32::MAX - 5)
        );
        assert_eq!(oldest(&[0, 5]), Some(5));
        assert_eq!(oldest(&[]), None);
    }

    #[test]
    fn events_and_blocks_come_back() {
        let events = [
            WalEvent::RestorePoint {
                time: TimestampTz(5),
                name: b"before".to_vec(),
            },
            WalEvent::Checkpoint {
                kind: CheckpointKind::Shutdown,
                timeline: 2,
                previous_timeline: 1,
                redo_lsn: Lsn(101),
                time: TimestampTz(6),
            },
            WalEvent::ParameterChange {
                limits: [100, 8, 10, 0, 64],
                wal_level: 1,
                wal_log_hints: false,
                track_commit_timestamp: true,
            },
            WalEvent::BackupEnd { start_lsn: Lsn(9) },
            WalEvent::OverwrittenContrecord { lsn: Lsn(8) },
            WalEvent::Relation {
                action: 1,
                spc: 1663,
                db: 5,
                rel: 6,
                fork: 0,
                block: 7,
                xid: 8,
            },
            WalEvent::Database {
                action: 2,
                db: 5,
                spc: 1663,
                xid: 9,
            },
            WalEvent::Tablespace {
                action: 0,
                oid: 9,
                xid: 10,
                path: b"/ts".to_vec(),
            },
            WalEvent::FullPageWrites { is_on: true },
            WalEvent::Undecoded {
                rmid: 1,
                info: 0,
                xid: 0,
                time: TimestampTz(3),
            },
        ];
        let events: Vec<_> = (100..).map(Lsn).zip(events).collect();
        let bytes = encode_events(Lsn(50), &events);
        assert_eq!(
            decode_events(Lsn(50), &mut Reader::new(&bytes, "t")).unwrap(),
            events
        );
        let blocks = Blocks(vec![
            ForkBlocks {
                fork: (1663, 5, 100, 0),
                runs: vec![(0, 3), (10, 1)],
            },
            ForkBlocks {
                fork: (1663, 5, 90, 2),
                runs: vec![(u32::MAX, 1)],
            },
        ]);
        let bytes = blocks.encode();
        assert_eq!(
            Blocks::decode(&mut Reader::new(&bytes, "t")).unwrap(),
            blocks
        );
    }
}
