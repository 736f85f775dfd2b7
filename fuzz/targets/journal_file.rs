//! A file of the receiver's journal: whatever it holds, what is read of it are whole frames one behind another; and what is written is
//! read the same, in pieces of any size and from any position.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pg::lsn::Lsn;
use pitr::pg::segment::SegmentSize;
use pitr::pg::timeline::TimelineId;
use pitr::journal::frame::{FRAME_HEADER, FileHeader, Frames, HEADER_BYTES, HEADER_USED};
use pitr_fuzz::{Input, SYSTEM_IDENTIFIER, within};

const CEILING: usize = 16 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(3) {
        0 => {
            if let Ok(header) = FileHeader::decode(input.rest()) {
                assert_eq!(header.encode(), input.rest()[..HEADER_USED]);
            }
        }
        1 => {
            let header = header(&mut input);
            let file = file(&header, input.rest());
            read(&header, file);
        }
        _ => written_and_changed(&mut input),
    }
}

fn header(input: &mut Input<'_>) -> FileHeader {
    let segment_size = SegmentSize::new(1 << 20).unwrap();
    FileHeader {
        timeline: TimelineId::new(input.u32().max(1)).unwrap(),
        system_identifier: SYSTEM_IDENTIFIER,
        segment_size,
        start_lsn: Lsn(u64::from(input.u16()) * segment_size.bytes()),
        salt: u64::from(input.u8()),
    }
}

fn file(header: &FileHeader, frames: &[u8]) -> Vec<u8> {
    let mut file = header.encode().to_vec();
    file.resize(usize::try_from(HEADER_BYTES).unwrap(), 0);
    file.extend_from_slice(frames);
    file
}

/// Everything that is read of a file: the same, however it is read.
fn read(header: &FileHeader, file: Vec<u8>) -> Vec<u8> {
    let size = file.len();
    let mut frames = Frames::new(file, *header);
    let mut wal = Vec::new();
    let mut buffer = vec![0; 777];
    loop {
        let n = frames.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        wal.extend_from_slice(&buffer[..n]);
    }
    let end = frames.lsn();
    assert_eq!(end.0 - header.start_lsn.0, wal.len() as u64);
    assert!(end <= header.end_lsn());
    assert!(frames.offset() <= size as u64);
    frames.rewind();
    frames.read_to_end().unwrap();
    assert_eq!(frames.lsn(), end);
    let middle = wal.len() / 2;
    let lsn = Lsn(header.start_lsn.0 + middle as u64);
    assert!(frames.skip_to(lsn).unwrap());
    let n = frames.read(&mut buffer).unwrap();
    assert_eq!(buffer[..n], wal[middle..middle + n]);
    // Headers alone may promise more than is whole, never less.
    assert!(frames.skip_to(end).unwrap());
    let _ = frames.skip_to(header.end_lsn()).unwrap();
    wal
}

/// Frames of any lengths, read back; then some of their bytes changed: what is read is a beginning of what was written.
fn written_and_changed(input: &mut Input<'_>) {
    let header = header(input);
    let changes = [(input.u16(), input.u8()), (input.u16(), input.u8())];
    let mut frames = Vec::new();
    let mut wal = Vec::new();
    while !input.is_empty() {
        let payload = input.piece();
        if payload.is_empty() {
            continue;
        }
        let lsn = Lsn(header.start_lsn.0 + wal.len() as u64);
        let halves = payload.split_at(payload.len() / 2);
        let head = header.frame(lsn, [halves.0, halves.1].into_iter());
        assert_eq!(head.len(), FRAME_HEADER);
        frames.extend_from_slice(&head);
        frames.extend_from_slice(payload);
        wal.extend_from_slice(payload);
    }
    assert_eq!(read(&header, file(&header, &frames)), wal);
    for (at, flip) in changes {
        if let Some(byte) = frames.get_mut(usize::from(at)) {
            *byte ^= flip;
        }
    }
    let kept = read(&header, file(&header, &frames));
    assert!(wal.starts_with(&kept));
    // Another use of the file has another salt.
    let other = FileHeader {
        salt: header.salt + 1,
        ..header
    };
    assert!(read(&other, file(&other, &frames)).is_empty());
}
