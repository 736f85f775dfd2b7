//! WAL pages and records: whatever stands on them, reading them in pieces tells the same as reading them at once; WAL that was laid as
//! a server lays it is read back record by record; what a body says can be walked; the index is a function of the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pg::craft::{self, Craft};
use pitr::pg::lsn::Lsn;
use pitr::pg::page::{PageHeader, WalIdentity};
use pitr::pg::reader::{Finding, Reader, SegmentSummary, Sink};
use pitr::pg::record::{Record, RecordHeader};
use pitr::pg::timeline::TimelineId;
use pitr::pg::{change, xact, xlog};
use pitr::wal::indexer::Indexer;
use pitr_fuzz::{Input, within};

/// The ceiling of the two small commands.
const CEILING: usize = 64 << 20;
const PAGE: usize = 8192;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(4) {
        0 => {
            let identity = Craft::new(input.major()).identity;
            let mut pages = input.rest().to_vec();
            pages.resize(pages.len().next_multiple_of(PAGE), 0);
            check_pages(&identity, &pages);
        }
        1 => headed_pages(&mut input),
        2 => laid_records(&mut input),
        _ => one_record(&mut input),
    }
}

/// Pages with sound headers around arbitrary content.
fn headed_pages(input: &mut Input<'_>) {
    let mut wal = Craft::new(input.major());
    while !input.is_empty() {
        let flags = u16::from(input.choice(16)) & !2;
        let remaining = match input.choice(3) {
            0 => 0,
            1 => u32::from(input.u16()),
            _ => input.u32(),
        };
        wal.page_header(flags, remaining);
        let content = input.piece();
        wal.bytes
            .extend_from_slice(&content[..content.len().min(wal.room() % PAGE)]);
        wal.bytes.resize(wal.bytes.len().next_multiple_of(PAGE), 0);
    }
    check_pages(&wal.identity.clone(), &wal.bytes);
}

/// Records as a server lays them; perhaps with damage done afterwards.
fn laid_records(input: &mut Input<'_>) {
    let mut wal = Craft::new(input.major());
    let segment = 1 << 20;
    let mut laid = Vec::new();
    let mut damage = Vec::new();
    while !input.is_empty() && wal.bytes.len() < 3 * segment {
        match input.choice(8) {
            0 => damage.push((input.u32() as usize, input.u8())),
            1 => {
                let (length, byte) = (input.u32() as usize % 200_000, input.u8());
                laid.push(wal.record(0, 0x20, 0, &craft::long_main_data(&vec![byte; length])));
            }
            2 => {
                let (rmid, info, xid) = (input.u8() % 22, input.u8(), input.u32());
                if !xlog::is_switch(rmid, info) {
                    laid.push(wal.main(rmid, info, xid, input.piece()));
                }
            }
            3 => {
                laid.push(wal.switch());
            }
            4 => {
                let left = usize::from(input.u16()) % 400 * 8;
                if wal.room() > left + 40 {
                    laid.push(wal.leave(left));
                }
            }
            _ => {
                let (rmid, info, xid) = (input.u8() % 22, input.u8(), input.u32());
                if !xlog::is_switch(rmid, info) {
                    laid.push(wal.record(rmid, info, xid, input.piece()));
                }
            }
        }
    }
    wal.fill_segment();
    for (at, bits) in &damage {
        let length = wal.bytes.len().max(1);
        if let Some(byte) = wal.bytes.get_mut(at % length) {
            *byte ^= bits;
        }
    }
    let found = check_pages(&wal.identity.clone(), &wal.bytes);
    if damage.iter().all(|(_, bits)| *bits == 0) {
        assert_eq!(found.records, laid, "records that were laid are read");
        assert!(found.findings.is_empty(), "sound WAL: {:?}", found.findings);
    }
}

/// A record alone, as it is put together from fragments.
fn one_record(input: &mut Input<'_>) {
    let major = input.major();
    let (rmid, info, xid) = (input.u8() % 24, input.u8(), input.u32());
    let bytes = craft::header_and(rmid, info, xid, Lsn(8), input.rest());
    assert!(RecordHeader::read(&bytes).is_some());
    if let Ok(record) = Record::parse(major, 8192, Lsn(1 << 20), Lsn(2 << 20), &bytes) {
        take_apart(&record);
    }
    // The bytes as they are, too: length and checksum of the fuzzer's own.
    let _ = Record::parse(major, 8192, Lsn(1 << 20), Lsn(2 << 20), input.rest());
}

fn take_apart(record: &Record<'_>) {
    let Ok(body) = record.body() else {
        return;
    };
    assert!(body.main_data.len() <= body.main_data_len as usize);
    let mut blocks = 0;
    for block in body.blocks() {
        blocks += 1;
        let _ = format!("{block:?}");
    }
    let mut block_changes = 0;
    let changed = change::changes(record, &body, |c| {
        if matches!(c, change::Change::Block { .. }) {
            block_changes += 1;
        }
    });
    if changed.is_ok() {
        assert!(block_changes >= blocks, "every block reference is a change");
    }
    let _ = format!("{:?}", xact::decode(record, body.main_data));
    let _ = format!("{:?}", xlog::decode(record, body.main_data));
    let _ = xact::restore_point(record, body.main_data);
    assert_eq!(
        xact::outcome(record).is_some(),
        is_end(record, body.main_data)
    );
}

fn is_end(record: &Record<'_>, main_data: &[u8]) -> bool {
    match xact::decode(record, main_data) {
        Ok(Some(decoded)) => matches!(decoded, xact::TransactionRecord::End(_)),
        Ok(None) => false,
        Err(_) => xact::outcome(record).is_some(),
    }
}

/// The results of reading.
#[derive(Default, PartialEq, Debug)]
struct Found {
    records: Vec<(Lsn, Lsn)>,
    findings: Vec<Finding>,
    summaries: Vec<SegmentSummary>,
}

impl Sink for Found {
    fn record(&mut self, record: &Record<'_>) {
        take_apart(record);
        self.records.push((record.start_lsn, record.end_lsn));
    }

    fn finding(&mut self, finding: Finding) {
        let _ = finding.to_string();
        self.findings.push(finding);
    }
}

fn check_pages(identity: &WalIdentity, pages: &[u8]) -> Found {
    let _ = PageHeader::read(pages);
    let _ = WalIdentity::read(pages);
    let whole = read(identity, pages, usize::MAX);
    assert_eq!(whole, read(identity, pages, 1), "page by page");
    assert!(whole.records.iter().all(|(start, end)| start < end));
    assert!(
        whole.records.is_sorted(),
        "records come in the order of the WAL"
    );
    index(identity, pages);
    whole
}

fn read(identity: &WalIdentity, pages: &[u8], at_once: usize) -> Found {
    let segment = identity.segment_size.bytes();
    let mut found = Found::default();
    let mut reader = Reader::new(identity).unwrap();
    let mut start = identity.start_lsn;
    for segment_pages in pages.chunks(usize::try_from(segment).unwrap()) {
        reader.start_segment(start, identity.timeline).unwrap();
        for piece in segment_pages.chunks(PAGE.saturating_mul(at_once)) {
            reader.feed(piece, &mut found).unwrap();
        }
        found.summaries.push(reader.finish_segment());
        start = Lsn(start.0 + segment);
    }
    found
}

fn index(identity: &WalIdentity, pages: &[u8]) {
    let segment = usize::try_from(identity.segment_size.bytes()).unwrap();
    let pages = &pages[..pages.len().min(segment)];
    let make = |timeline| {
        let mut indexer = Indexer::new(identity, identity.start_lsn, timeline).unwrap();
        indexer.feed(pages).unwrap();
        indexer.finish(false)
    };
    let index = make(TimelineId::FIRST);
    assert_eq!(index, make(TimelineId::FIRST));
    pitr_fuzz::check_index(&index);
}
