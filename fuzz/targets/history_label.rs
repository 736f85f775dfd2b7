//! Timeline histories, backup labels, backup history files, tablespace maps and control files: reading ends with a value or an error.
//! A history that can be read is printed so that it reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pg::control::ControlFile;
use pitr::pg::datapage;
use pitr::pg::label::{self, BackupHistory, BackupLabel};
use pitr::pg::lsn::Lsn;
use pitr::pg::segment::SegmentSize;
use pitr::pg::timeline::{History, TimelineId};
use pitr_fuzz::{Input, within};

const CEILING: usize = 64 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(6) {
        0 => history(&mut input),
        1 => {
            if let Ok(label) = BackupLabel::parse(input.rest()) {
                let _ = label.from_standby();
            }
        }
        2 => {
            let _ = BackupHistory::parse(input.rest());
        }
        3 => {
            let major = input.major();
            let _ = label::parse_tablespace_map(input.rest(), major);
        }
        4 => control(&mut input),
        _ => {
            let (block, lsn) = (input.u32(), Lsn(input.u64()));
            let mut page = input.rest().to_vec();
            let _ = datapage::check(&page, block, Some(lsn));
            page.resize(datapage::DEFAULT_PAGE_SIZE, 0);
            let _ = datapage::check(&page, block, Some(lsn));
            let sum = datapage::checksum(&page, block);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(
                datapage::checksum(&page, block),
                sum,
                "its own field does not count"
            );
            let _ = datapage::check(&page, block, None);
        }
    }
}

fn history(input: &mut Input<'_>) {
    let Some(timeline) = TimelineId::new(u32::from(input.u16())) else {
        return;
    };
    let at = Lsn(input.u64());
    let Ok(history) = History::parse(timeline, input.rest()) else {
        return;
    };
    let printed = history.to_bytes();
    assert_eq!(History::parse(timeline, &printed).unwrap(), history);
    assert!(history.contains(timeline));
    assert!(
        history.contains(history.holder(at)),
        "somebody holds every position"
    );
    let path = history.path();
    assert_eq!(path.last().map(|i| i.timeline), Some(timeline));
    let size = SegmentSize::DEFAULT;
    let _ = pitr::pg::segment::SegmentNumber::of(at, size);
    if let Some(next) = TimelineId::new(timeline.get() + 1) {
        let child = history.child(next, at, b"no recovery target specified");
        let _ = History::parse(next, &child.to_bytes());
    }
}

/// pg_control with its checksum made right.
fn control(input: &mut Input<'_>) {
    let _ = ControlFile::parse(input.rest());
    let version = input.major().version();
    let mut bytes = input.rest().to_vec();
    bytes.resize(pitr::pg::control::CONTROL_FILE_SIZE, 0);
    bytes[8..12].copy_from_slice(&version.control_version.to_le_bytes());
    bytes[12..16].copy_from_slice(&version.catalog_version.to_le_bytes());
    let at = version.control.crc;
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    if let Ok(control) = ControlFile::parse(&bytes) {
        let _ = format!("{control:?} {}", control.checksums_enabled());
    }
}
