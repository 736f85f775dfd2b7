//! The content of a WAL file: a segment by its index and its records, the text of a history or label file.

use serde::Serialize;

use super::listing::tail;
use super::reading::Reading;
use super::session::Session;
use crate::archive::fetch::check_identity;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::History;
use crate::repo::container::Container;
use crate::wal::facts::{EntryKind, Wal};
use crate::wal::increment::OpenSegment;
use crate::wal::index::{self, Blocks, Summary, WalEvent, flag};
use crate::wal::inventory::Inventory;
use crate::wal::remnant::Remnant;
use crate::wal::undecoded;

/// The content of a WAL file.
pub enum Content {
    /// A segment, or a part of one.
    Segment(Box<SegmentContent>),
    /// A history or backup history file.
    Text(Vec<u8>),
}

/// The end of a transaction.
#[derive(Serialize)]
pub struct TransactionEnd {
    /// The transaction.
    pub xid: u32,
    /// The start of the record.
    pub lsn: Lsn,
    pub end_lsn: Lsn,
    /// The server's clock.
    pub time: TimestampTz,
}

/// A restore point.
#[derive(Serialize)]
pub struct RestorePoint {
    pub name: String,
    /// The start of the record.
    pub lsn: Lsn,
    /// The server's clock.
    pub time: TimestampTz,
}

/// The content of a segment, by its index and its records.
#[derive(Default, Serialize)]
pub struct SegmentContent {
    pub name: String,
    /// `segment`, `partial`, or what increments make.
    pub kind: &'static str,
    pub timeline: u32,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// PostgreSQL major.
    pub major: u32,
    pub start_lsn: Lsn,
    pub end_lsn: Lsn,
    /// The end of valid WAL.
    pub valid_end_lsn: Lsn,
    /// Its length.
    pub raw_bytes: u64,
    /// Its length as stored.
    pub stored_bytes: u64,
    /// The hash of the raw content; none where it is not one object's.
    pub hash: Option<String>,
    /// Its peculiarities.
    pub flags: Vec<&'static str>,
    /// The first record that begins in it.
    pub first_record: Option<Lsn>,
    /// The last record that ends in it.
    pub last_complete: Option<Lsn>,
    pub last_complete_end: Option<Lsn>,
    pub records: u64,
    pub commit_count: u64,
    pub abort_count: u64,
    /// How many prepared transactions.
    pub prepare_count: u64,
    /// The earliest end of a transaction.
    pub min_time: Option<TimestampTz>,
    /// The latest one.
    pub max_time: Option<TimestampTz>,
    pub commits: Vec<TransactionEnd>,
    pub aborts: Vec<TransactionEnd>,
    pub restore_points: Vec<RestorePoint>,
    /// Records of interest.
    pub events: Option<Vec<String>>,
    /// How many blocks it changes.
    pub changed_blocks: Option<u64>,
    /// Its damage or trouble.
    pub damage: Vec<String>,
}

/// Reads what is in a WAL, history or backup history file.
///
/// # Errors
/// `NotFound` when it is not in the archive; what the repository says.
pub fn look(session: &Session, name: WalFileName) -> Result<Content> {
    let reading = Reading::open(session)?;
    let inventory = reading.inventory(session)?;
    let layout = inventory.layout()?;
    let key = layout.wal_file(name);
    let Some(object) = reading.repository.store().open(&key)? else {
        if let WalFileName::Segment(segment) = name
            && inventory.holds(segment.timeline, segment.number(inventory.segment_size)?)
        {
            return show_tail(session, &reading, &inventory, segment);
        }
        return Err(err!(NotFound, "\"{name}\" is not in the archive")
            .hint("pitr wal list shows what is there."));
    };
    let container = Container::open(object)
        .and_then(|c| check_identity(&c, &layout, name).map(|()| c))
        .map_err(|e| e.context(format!("read object \"{key}\"")))?;
    match name {
        WalFileName::Segment(segment) => {
            show_wal(session, &reading, &inventory, &container, segment, true)
        }
        WalFileName::Partial(segment) => {
            show_wal(session, &reading, &inventory, &container, segment, false)
        }
        WalFileName::History(timeline) => {
            let history = History::parse(timeline, &container.read_small(1 << 20)?)?;
            Ok(Content::Text(history.to_bytes()))
        }
        WalFileName::BackupHistory { .. } => Ok(Content::Text(container.read_small(64 << 10)?)),
    }
}

fn show_wal(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    container: &Container,
    segment: SegmentName,
    is_whole: bool,
) -> Result<Content> {
    let decoded = match container.is_undecoded() {
        true => undecoded::decode(container)?,
        false => None,
    };
    let summary = match decoded {
        Some(index) => index.summary,
        None => index::read_summary(container)?,
    };
    let identity = container.identity();
    let mut shown = shown(&summary, segment, inventory, container.stored_bytes())?;
    shown.name.clone_from(&identity.name);
    shown.kind = if is_whole { "segment" } else { "partial" };
    shown.major = identity.major;
    shown.raw_bytes = identity.raw_bytes;
    shown.hash = Some(format!(
        "blake3:{}",
        blake3::Hash::from_bytes(identity.hash).to_hex()
    ));
    for (kind, lsn) in index::read_damage(container)? {
        shown.damage.push(format!("{} at {lsn}", kind.as_str()));
    }
    if is_whole {
        let events = index::read_events(container, summary.start_lsn)?;
        let blocks = index::read_blocks(container)?;
        show_lists(&mut shown, events.as_deref(), blocks.as_ref());
        if !summary.has(flag::UNDECODED) {
            show_records(session, reading, inventory, segment, &mut shown)?;
        }
    }
    Ok(Content::Segment(Box::new(shown)))
}

/// A segment of which only a part is stored, as recovery would get it.
fn show_tail(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    segment: SegmentName,
) -> Result<Content> {
    let layout = inventory.layout()?;
    let open = OpenSegment {
        name: segment,
        size: inventory.segment_size,
        major: inventory.major,
    };
    let Some(found) = Remnant::find(&reading.repository, &layout, &open)? else {
        return Err(err!(
            NotFound,
            "\"{segment}\" is not in the archive any more"
        ));
    };
    let number = segment.number(inventory.segment_size)?;
    let timeline = inventory.timelines.get(&segment.timeline);
    let stored = match timeline.filter(|t| t.tails.contains_key(&number)) {
        Some(held) => tail(reading, &layout, held, segment, inventory.segment_size)?.stored_bytes,
        None => 0,
    };
    let index = found.index();
    let mut shown = shown(&index.summary, segment, inventory, stored)?;
    shown.kind = found.kind();
    shown.raw_bytes = found.valid_end().0 - shown.start_lsn.0;
    for (kind, lsn) in &index.damage {
        shown.damage.push(format!("{} at {lsn}", kind.as_str()));
    }
    show_lists(&mut shown, index.events.as_deref(), index.blocks.as_ref());
    show_records(session, reading, inventory, segment, &mut shown)?;
    Ok(Content::Segment(Box::new(shown)))
}

fn show_lists(
    shown: &mut SegmentContent,
    events: Option<&[(Lsn, WalEvent)]>,
    blocks: Option<&Blocks>,
) {
    let text = |(lsn, event): &(Lsn, WalEvent)| format!("{lsn} {}", event_text(event));
    shown.events = events.map(|events| events.iter().map(text).collect());
    shown.changed_blocks = blocks.map(|blocks| {
        let runs = blocks.0.iter().flat_map(|fork| &fork.runs);
        runs.map(|(_, length)| u64::from(*length)).sum()
    });
}

/// Decodes the segment for its transactions and restore points.
fn show_records(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    segment: SegmentName,
    shown: &mut SegmentContent,
) -> Result<()> {
    let size = inventory.segment_size;
    let rollup = reading.rollup(session, inventory)?;
    let next = |name: SegmentName| {
        let following = name.next(size)?;
        let number = following.number(size).ok()?;
        inventory
            .holds(following.timeline, number)
            .then_some(following)
    };
    rollup.scan(segment, &next, &mut |entry| match &entry.kind {
        EntryKind::End {
            xid,
            time,
            is_commit,
        } => {
            let list = if *is_commit {
                &mut shown.commits
            } else {
                &mut shown.aborts
            };
            list.push(TransactionEnd {
                xid: *xid,
                lsn: entry.start,
                end_lsn: entry.end,
                time: *time,
            });
        }
        EntryKind::RestorePoint { time, name } => shown.restore_points.push(RestorePoint {
            name: String::from_utf8_lossy(name).into_owned(),
            lsn: entry.start,
            time: *time,
        }),
        _ => {}
    })
}

fn shown(
    summary: &Summary,
    segment: SegmentName,
    inventory: &Inventory,
    stored_bytes: u64,
) -> Result<SegmentContent> {
    let names = [
        (flag::DAMAGED, "damaged"),
        (flag::SWITCH, "switch"),
        (flag::ENDS_INSIDE, "ends_inside"),
        (flag::OVERWRITTEN, "overwritten_contrecord"),
        (flag::MINIMAL, "wal_level_minimal"),
        (flag::MARKED, "padded"),
        (flag::PARENT_PAGES, "begins_on_parent_timeline"),
        (flag::UNDECODED, "undecoded"),
    ];
    let flags = names.into_iter().filter(|(bit, _)| summary.has(*bit));
    let size = inventory.segment_size;
    let range = segment.number(size)?.range(size);
    Ok(SegmentContent {
        name: segment.to_string(),
        kind: "segment",
        timeline: segment.timeline.get(),
        system_identifier: inventory.system_identifier.to_string(),
        major: inventory.major,
        start_lsn: range.start,
        end_lsn: range.end,
        valid_end_lsn: summary.valid_end,
        raw_bytes: size.bytes(),
        stored_bytes,
        flags: flags.map(|(_, name)| name).collect(),
        first_record: summary.first_record.map(|(lsn, _)| lsn),
        last_complete: summary.last_complete.map(|(lsn, _)| lsn),
        last_complete_end: summary.last_complete.map(|(_, lsn)| lsn),
        records: summary.records,
        commit_count: summary.commits,
        abort_count: summary.aborts,
        prepare_count: summary.prepares,
        min_time: summary.ends.map(|e| e.min_time),
        max_time: summary.ends.map(|e| e.max_time),
        ..SegmentContent::default()
    })
}

fn event_text(event: &WalEvent) -> String {
    match event {
        WalEvent::RestorePoint { name, .. } => {
            format!("restore point \"{}\"", String::from_utf8_lossy(name))
        }
        WalEvent::Checkpoint {
            kind,
            timeline,
            redo_lsn,
            ..
        } => format!(
            "checkpoint {}, timeline {timeline}, redo {redo_lsn}",
            kind.as_str()
        ),
        WalEvent::ParameterChange {
            limits, wal_level, ..
        } => format!(
            "settings changed: max_connections {}, wal_level {wal_level}",
            limits[0]
        ),
        WalEvent::BackupEnd { start_lsn } => {
            format!("end of the backup that started at {start_lsn}")
        }
        WalEvent::OverwrittenContrecord { lsn } => {
            format!("replaces the unfinished record at {lsn}")
        }
        WalEvent::Relation {
            action,
            spc,
            db,
            rel,
            xid,
            ..
        } => {
            let what = match action {
                0 => "dropped",
                1 => "truncated",
                _ => "created",
            };
            format!("relation {spc}/{db}/{rel} {what}, transaction {xid}")
        }
        WalEvent::Database {
            action, db, xid, ..
        } => {
            let what = if *action == 2 { "dropped" } else { "created" };
            format!("database {db} {what}, transaction {xid}")
        }
        WalEvent::Tablespace {
            action, oid, xid, ..
        } => {
            let what = if *action == 1 { "dropped" } else { "created" };
            format!("tablespace {oid} {what}, transaction {xid}")
        }
        WalEvent::FullPageWrites { is_on } => {
            format!("full_page_writes {}", if *is_on { "on" } else { "off" })
        }
        WalEvent::Undecoded {
            rmid, info, xid, ..
        } => {
            format!(
                "record of resource manager {rmid}, info {info:#04X}, transaction {xid}, too long to be decoded"
            )
        }
    }
}
