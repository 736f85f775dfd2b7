//! Segment objects: container, directory, sections and body, whatever they hold; sections that can be read are written the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pg::lsn::Lsn;
use pitr::repo::container::{Codec, Container, Section, tag};
use pitr::wal::index::{self, SegmentIndex};
use pitr_fuzz::{Input, Memory, check_index, object, within};

/// The ceiling of the two small commands.
const CEILING: usize = 64 << 20;
const TRAILER: usize = 56;
const ENTRY: usize = 16;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(4) {
        0 => read_all(input.rest()),
        1 => read_all(&sealed(input.rest())),
        2 => {
            // A sound object, then bytes changed, then sealed again.
            let codec = if input.choice(2) == 0 {
                Codec::Lz4
            } else {
                Codec::Zstd(1)
            };
            let content = input.piece();
            let mut bytes = object(content, codec, sections(&mut input));
            for _ in 0..input.choice(8) {
                let (at, byte) = (usize::from(input.u16()), input.u8());
                let length = bytes.len();
                // Counted from the end, where the structure is.
                bytes[length - 1 - at % length] = byte;
            }
            read_all(&sealed(&bytes));
        }
        _ => {
            let bytes = object(b"x", Codec::Lz4, sections(&mut input));
            read_all(&bytes);
        }
    }
}

fn sections(input: &mut Input<'_>) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    while !input.is_empty() && sections.len() < 8 {
        let tag = tag::SUMMARY + input.choice(8);
        let compress = input.choice(2) == 0;
        let bytes = input.piece().to_vec();
        if sections.iter().all(|s| s.tag != tag) {
            sections.push(Section {
                tag,
                bytes,
                compress,
            });
        }
    }
    sections
}

/// Makes the checksums of trailer, directory, sections and whole object fit what is there.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let Some(trailer) = out.len().checked_sub(TRAILER) else {
        return out;
    };
    let length = out.len() as u64;
    out[trailer + 11] = 1;
    out[trailer + 16..trailer + 24].copy_from_slice(&length.to_le_bytes());
    out[trailer + 32..trailer + 36].fill(0);
    out[trailer + 8] %= 10;
    out[trailer + 9] = 0;
    let directory = trailer.saturating_sub(usize::from(out[trailer + 8]) * ENTRY);
    let mut offset = [0; 8];
    offset.copy_from_slice(&out[trailer..trailer + 8]);
    let sections = u64::from_le_bytes(offset).min(directory as u64);
    let start = usize::try_from(sections).unwrap();
    out[trailer..trailer + 8].copy_from_slice(&sections.to_le_bytes());
    let section_bytes = u32::try_from(directory - start).unwrap();
    out[trailer + 36..trailer + 40].copy_from_slice(&section_bytes.to_le_bytes());
    for at in (directory..trailer).step_by(ENTRY) {
        let number = |from: usize| {
            let mut n = [0; 4];
            n.copy_from_slice(&out[at + from..at + from + 4]);
            u32::from_le_bytes(n) as usize
        };
        let from = start.saturating_add(number(4));
        if let Some(section) = out.get(from..from.saturating_add(number(8)).min(directory)) {
            let crc = crc32c::crc32c(section);
            out[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = crc32c::crc32c(&out[directory..trailer]);
    out[trailer + 12..trailer + 16].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&out[trailer..trailer + 44]);
    out[trailer + 44..trailer + 48].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&out[..trailer + 48]);
    out[trailer + 48..trailer + 52].copy_from_slice(&crc.to_le_bytes());
    out[trailer + 52..].copy_from_slice(b"PITR");
    out
}

fn read_all(bytes: &[u8]) {
    let Ok(container) = Container::open(Memory::boxed(bytes)) else {
        return;
    };
    let _ = container.check_stored();
    let raw_bytes = container.identity().raw_bytes;
    let mut seen = 0;
    let read = container.read_body(&mut |piece| {
        seen += piece.len() as u64;
        Ok(())
    });
    assert!(
        seen <= raw_bytes,
        "no more than the object says reaches the caller"
    );
    if read.is_ok() {
        assert_eq!(seen, raw_bytes);
    }
    let _ = container.read_small(1 << 20);
    for tag in 0..=9 {
        let _ = container.section(tag);
    }
    let summary = index::read_summary(&container);
    let start = summary.as_ref().map_or(Lsn(1 << 20), |s| s.start_lsn);
    let fragments = index::read_fragments(&container);
    let xids = index::read_xids(&container);
    let events = index::read_events(&container, start);
    let blocks = index::read_blocks(&container);
    let damage = index::read_damage(&container);
    if let Ok(Some(xids)) = &xids {
        let _ = xids.contains(3);
    }
    if let (Ok(summary), Ok(fragments), Ok(damage)) = (summary, fragments, damage) {
        check_index(&SegmentIndex {
            summary,
            fragments,
            xids: xids.unwrap_or_default(),
            events: events.unwrap_or_default(),
            blocks: blocks.unwrap_or_default(),
            damage,
        });
    }
}
