//! Tar archives of a server: the same events however the stream is cut, sizes that add up, and paths that stay inside.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::pg::manifest::is_safe_relative_path;
use pitr::wire::tar::{TAR_BLOCK_SIZE, TarEntry, TarEvent, TarKind, TarReader};
use pitr_fuzz::{Input, within};

/// A reader holds one header.
const CEILING: usize = 8 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let step = usize::from(input.u16()) + 1;
    let bytes = match input.choice(3) {
        0 => input.rest().to_vec(),
        1 => sealed(input.rest()),
        _ => sealed(&laid(&mut input)),
    };
    let whole = read(&bytes, usize::MAX);
    assert_eq!(whole, read(&bytes, step), "in pieces of {step}");
}

/// Members with fields that a server could write.
fn laid(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    while !input.is_empty() {
        let mut header = [0; TAR_BLOCK_SIZE];
        let name = input.piece();
        let name = &name[..name.len().min(100)];
        header[..name.len()].copy_from_slice(name);
        header[100..108].copy_from_slice(b"0000600 ");
        let content = input.piece();
        let size = match input.choice(4) {
            0 => format!("{:011o} ", input.u64() >> 31),
            _ => format!("{:011o} ", content.len()),
        };
        header[124..136].copy_from_slice(size.as_bytes());
        header[136..148].copy_from_slice(b"14524770000 ");
        header[156] = b"05210L"[usize::from(input.choice(6))];
        let target = input.bytes(3);
        header[157..157 + target.len()].copy_from_slice(target);
        header[257..265].copy_from_slice(b"ustar\x0000");
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(TAR_BLOCK_SIZE), 0);
    }
    out
}

/// Makes the checksum of every block right that has room for one in its place and is not all zeros.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for block in out.chunks_exact_mut(TAR_BLOCK_SIZE) {
        if block.iter().any(|b| *b != 0) && (block[257] == b'u' || block[148] == 0) {
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    out
}

#[derive(Debug, PartialEq, Default)]
struct Told {
    members: Vec<(TarEntry, Vec<u8>, bool)>,
    sound: bool,
}

fn read(bytes: &[u8], step: usize) -> Told {
    let mut reader = TarReader::new();
    let mut told = Told::default();
    for piece in bytes.chunks(step.min(bytes.len().max(1))) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match reader.next(&mut piece) {
                Ok(Some(event)) => add(&mut told, event),
                Ok(None) => break,
                Err(_) => return told,
            }
        }
        assert!(piece.is_empty(), "everything was looked at");
    }
    told.sound = reader.finish().is_ok();
    told
}

fn add(told: &mut Told, event: TarEvent) {
    match event {
        TarEvent::Entry(entry) => {
            assert!(is_safe_relative_path(&entry.path));
            told.members.push((entry, Vec::new(), false));
        }
        TarEvent::Data(data) => {
            let (_, content, ended) = told.members.last_mut().unwrap();
            assert!(!*ended && !data.is_empty());
            content.extend_from_slice(&data);
        }
        TarEvent::EntryEnd => {
            let (entry, content, ended) = told.members.last_mut().unwrap();
            assert!(!*ended);
            *ended = true;
            let length = content.len() as u64;
            assert_eq!(entry.kind, TarKind::File { size: length });
        }
    }
}
