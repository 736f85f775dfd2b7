//! Packs, frames, layers, entries, nodes and pieces: whatever they hold, reading ends with a value or an error, and what is written is read the
//! same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::repo::id::PartName;
use pitr::repo::scope::Tag;
use pitr::snapshot::filekey::{ClusterNaming, FileKey, Naming, Part};
use pitr::snapshot::frame::{self, Extent, FrameCodec, FrameEntry, PackedFrame, Packer};
use pitr::snapshot::layer::{EntryKind, Layer, LayerWriter, Metadata};
use pitr::snapshot::node::Node;
use pitr::snapshot::pack::{self, PackReader, PackWriter};
use pitr::snapshot::piece::{self, Piece, Source};
use pitr_fuzz::{Input, Memory, PART, SYSTEM_IDENTIFIER, within};

const CEILING: usize = 100 << 20;
const NAMING: Naming = Naming::Cluster(ClusterNaming {
    major: 17,
    catalog_version: 202_406_281,
});
const PACK_TRAILER: usize = 64;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(8) {
        0 => read_pack(input.rest()),
        1 => packed_and_changed(&mut input),
        2 => one_frame(&mut input),
        3 => layer_of_index(&mut input),
        4 => layer_of_entries(&mut input),
        5 => pieces(&mut input),
        6 => pieces_made(&mut input),
        _ => node(input.rest()),
    }
}

fn part() -> PartName {
    PART.parse().unwrap()
}

fn read_pack(bytes: &[u8]) {
    let opened = PackReader::open(
        Memory::boxed(bytes),
        &part(),
        Tag::cluster(SYSTEM_IDENTIFIER),
        NAMING,
    );
    let Ok(pack) = opened else {
        return;
    };
    let _ = pack.page_hashes();
    for number in 0..pack.frame_count().min(64) {
        let stated = pack.entry(number).unwrap().raw_bytes;
        if let Ok(frame) = pack.frame(number) {
            assert_eq!(frame.raw.len(), stated as usize);
        }
    }
}

/// A sound pack, read whole; then bytes of it changed and its checksums made right again.
fn packed_and_changed(input: &mut Input<'_>) {
    let mut packer = Packer::new(codec(input)).unwrap();
    let mut writer = PackWriter::new(Vec::new(), &part(), Tag::cluster(SYSTEM_IDENTIFIER)).unwrap();
    let mut laid = Vec::new();
    for _ in 0..=input.choice(4) {
        let (extents, raw) = extents(input);
        if raw.is_empty() {
            continue;
        }
        let mut packed = PackedFrame::default();
        packer.pack(&extents, &raw, &mut packed).unwrap();
        writer.append(&mut packed).unwrap();
        laid.push((extents, raw));
    }
    let (mut bytes, summary) = writer.finish().unwrap();
    let opened = PackReader::open(
        Memory::boxed(&bytes),
        &part(),
        Tag::cluster(SYSTEM_IDENTIFIER),
        NAMING,
    );
    let pack = opened.unwrap();
    assert_eq!(pack.hash(), &summary.hash);
    pack.page_hashes().unwrap();
    for (number, (extents, raw)) in (0..).zip(&laid) {
        let frame = pack.frame(number).unwrap();
        assert_eq!((&frame.extents, &frame.raw), (extents, raw));
    }
    for _ in 0..input.choice(8) {
        let (at, byte) = (usize::from(input.u16()), input.u8());
        let length = bytes.len();
        bytes[length - 1 - at % length] = byte;
    }
    seal_pack(&mut bytes);
    read_pack(&bytes);
}

fn codec(input: &mut Input<'_>) -> FrameCodec {
    if input.choice(2) == 0 {
        FrameCodec::Lz4
    } else {
        FrameCodec::Zstd(1)
    }
}

fn extents(input: &mut Input<'_>) -> (Vec<Extent>, Vec<u8>) {
    let (mut extents, mut all) = (Vec::new(), Vec::new());
    for _ in 0..=input.choice(3) {
        let path = input.piece();
        let mut raw = input.piece().to_vec();
        if input.choice(4) == 0 {
            raw.resize(raw.len().next_multiple_of(8192), 7);
        }
        let position = u64::from(input.u16()) * 8192;
        let Ok(file) = FileKey::from_path(path, NAMING) else {
            continue;
        };
        let Ok(length @ 1..) = u32::try_from(raw.len()) else {
            continue;
        };
        extents.push(Extent {
            file,
            position,
            length,
        });
        all.append(&mut raw);
    }
    (extents, all)
}

/// The checksum over directory and trailer.
fn seal_pack(bytes: &mut [u8]) {
    let Some(trailer) = bytes.len().checked_sub(PACK_TRAILER) else {
        return;
    };
    let mut directory_at = [0; 8];
    directory_at.copy_from_slice(&bytes[trailer + 8..trailer + 16]);
    let directory = usize::try_from(u64::from_le_bytes(directory_at)).unwrap_or(usize::MAX);
    let end = bytes.len() - 12;
    if let Some(covered) = bytes.get(directory..end) {
        let crc = crc32c::crc32c(covered);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A frame whose checksums are right, with an extent list and a payload of the fuzzer's own.
fn one_frame(input: &mut Input<'_>) {
    let list = input.piece();
    let (magic, codec) = (*b"PFRM", input.choice(4));
    let raw_bytes = input.u32();
    let payload = input.rest();
    // If the payload can be decoded, the hash of the content is set to match it.
    let raw = match codec {
        0 => payload.to_vec(),
        2 => zstd::bulk::decompress(payload, 1 << 20).unwrap_or_default(),
        _ => Vec::new(),
    };
    let raw_bytes = if raw.is_empty() {
        raw_bytes
    } else {
        u32::try_from(raw.len()).unwrap()
    };
    let hash = xxhash_rust::xxh3::xxh3_128(&[list, &raw].concat());
    let stored = sealed_frame(magic, codec, list, payload, raw_bytes, hash);
    for page_hashes in 0..3 {
        let entry = FrameEntry {
            stored_bytes: u32::try_from(stored.len()).unwrap(),
            raw_bytes,
            page_hashes,
            hash: stored[24..40].try_into().unwrap(),
            crc: u32::from_le_bytes(stored[20..24].try_into().unwrap()),
        };
        if let Ok(frame) = frame::open(&stored, 0, &entry, &NAMING) {
            assert_eq!(frame.raw.len(), raw_bytes as usize);
            let sum: usize = frame.extents.iter().map(|e| e.length as usize).sum();
            assert_eq!(sum, frame.raw.len());
            let _ = frame::check_pages(&frame, &[]);
        }
    }
    let _ = frame::open(
        input.rest(),
        0,
        &FrameEntry {
            stored_bytes: 0,
            raw_bytes,
            page_hashes: 0,
            hash: [0; 16],
            crc: 0,
        },
        &NAMING,
    );
}

fn sealed_frame(
    magic: [u8; 4],
    codec: u8,
    list: &[u8],
    payload: &[u8],
    raw_bytes: u32,
    hash: u128,
) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    out.extend_from_slice(&raw_bytes.to_le_bytes());
    out.extend_from_slice(&[codec, 0]);
    out.extend_from_slice(&u16::try_from(list.len()).unwrap().to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    let crc_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&hash.to_le_bytes());
    out.extend_from_slice(list);
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out);
    out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// A layer with an index of the fuzzer's own.
fn layer_of_index(input: &mut Input<'_>) {
    let mut writer =
        LayerWriter::new(Vec::new(), &part(), Tag::cluster(SYSTEM_IDENTIFIER)).unwrap();
    writer.add_pack(&part(), &[1; 32]);
    let (empty, _) = writer.finish().unwrap();
    let head = &empty[..pack::HEAD_BYTES];
    let trailer = &empty[empty.len() - 36..];
    let stated = if input.choice(4) == 0 {
        Some(input.u32())
    } else {
        None
    };
    let blocks = input.piece();
    let raw = input.rest();
    let index = if input.choice(8) == 0 {
        raw.to_vec()
    } else {
        zstd::bulk::compress(raw, 1).unwrap()
    };
    let mut end = index.clone();
    end.extend_from_slice(&((head.len() + blocks.len()) as u64).to_le_bytes());
    end.extend_from_slice(&u32::try_from(index.len()).unwrap().to_le_bytes());
    let raw_length = stated.unwrap_or(u32::try_from(raw.len()).unwrap());
    end.extend_from_slice(&raw_length.to_le_bytes());
    let length = (head.len() + blocks.len() + index.len() + 36) as u64;
    end.extend_from_slice(&length.to_le_bytes());
    end.extend_from_slice(&trailer[24..]);
    let hash = blake3::Hasher::new().update(head).update(&end).finalize();
    read_layer(&[head, blocks, &end].concat(), hash.as_bytes());
}

fn read_layer(bytes: &[u8], hash: &[u8; 32]) -> Option<Vec<pitr::snapshot::layer::Entry>> {
    let span = (0, bytes.len() as u64);
    let object = Memory::boxed(bytes);
    let layer = Layer::open(object, span, hash, &part(), Tag::cluster(SYSTEM_IDENTIFIER)).ok()?;
    let mut entries = Vec::new();
    let mut sound = true;
    for number in 0..layer.block_count().min(256) {
        match layer.block(number) {
            Ok(block) => entries.extend(block),
            Err(_) => sound = false,
        }
    }
    let _ = layer.block_for(b"\x01");
    assert!(
        entries.windows(2).all(|w| w[0].key < w[1].key),
        "keys ascend"
    );
    for entry in &entries {
        for naming in [NAMING, Naming::Tree] {
            if let Ok((_, place)) = entry.split(&naming) {
                read_value(entry.kind, place, &entry.value, layer.packs().len());
            }
        }
    }
    sound.then_some(entries)
}

fn read_value(kind: EntryKind, place: Part, value: &[u8], packs: usize) {
    if let Ok(metadata) = Metadata::decode(kind, value) {
        let (kind, encoded) = metadata.encode();
        assert_eq!(Metadata::decode(kind, &encoded).unwrap(), metadata);
    }
    if let Part::Extents(position) = place {
        let _ = piece::decode(position, value, packs, true);
    }
}

fn node(value: &[u8]) {
    if let Ok(node) = Node::decode(value) {
        assert_eq!(Node::decode(&node.encode()).unwrap(), node);
    }
}

/// Entries of the fuzzer's own through the writer.
fn layer_of_entries(input: &mut Input<'_>) {
    let mut entries = Vec::new();
    while !input.is_empty() {
        let key = match input.choice(3) {
            0 => input.piece().to_vec(),
            shape => match FileKey::from_path(input.piece(), NAMING) {
                Ok(file) if shape == 1 => file.metadata_entry(),
                Ok(file) => file.extents_entry(input.u64()),
                Err(_) => continue,
            },
        };
        let number = [1, 2, 3, 4, 5, 7, 8][usize::from(input.choice(7))];
        let kind = EntryKind::from_number(number).unwrap();
        entries.push((key, kind, input.piece()));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let mut writer =
        LayerWriter::new(Vec::new(), &part(), Tag::cluster(SYSTEM_IDENTIFIER)).unwrap();
    writer.add_pack(&part(), &[1; 32]);
    for (key, kind, value) in entries.iter().filter(|e| !e.0.is_empty()) {
        writer.push(key, *kind, value).unwrap();
    }
    let (bytes, summary) = writer.finish().unwrap();
    let read = read_layer(&bytes, &summary.hash).expect("a layer that was written is read");
    let written = entries.iter().filter(|e| !e.0.is_empty());
    assert!(
        read.iter()
            .map(|e| (&*e.key, e.kind, &*e.value))
            .eq(written.map(|(k, kind, v)| (&k[..], *kind, *v)))
    );
}

fn pieces(input: &mut Input<'_>) {
    let (position, packs) = (input.u64(), usize::from(input.u8()));
    if let Ok(pieces) = piece::decode(position, input.rest(), packs, true) {
        let mut at = position;
        for piece in &pieces {
            assert!(piece.position >= at && piece.length > 0);
            at = piece
                .position
                .checked_add(piece.length)
                .expect("no overflow");
        }
        for has_pages in [false, true] {
            let encoded = piece::encode(position, &pieces, has_pages);
            let decoded = piece::decode(position, &encoded, packs, has_pages);
            assert_eq!(decoded.unwrap(), pieces);
        }
    }
}

fn pieces_made(input: &mut Input<'_>) {
    let unit = if input.choice(2) == 0 { 1 } else { 8192 };
    let start = u64::from(input.u32()) * unit;
    let (mut at, mut pieces) = (start, Vec::new());
    while !input.is_empty() && pieces.len() < piece::ENTRY_PIECES {
        at += u64::from(input.u8()) * unit;
        // No frame is longer than 4 MiB.
        let length = (u64::from(input.u16()) % (1 << 9) + 1) * unit;
        let offset = input.u32() % (1 << 20) / 8192 * 8192;
        let source = match input.choice(3) {
            0 => Source::Zeros,
            pack => Source::Frame {
                pack: u32::from(pack),
                frame: u32::from(input.u8()),
                offset: offset.min((4 << 20) - u32::try_from(length).unwrap()),
            },
        };
        pieces.push(Piece {
            position: at,
            length,
            source,
        });
        at += length;
    }
    // An entry without pieces is never written.
    if !pieces.is_empty() {
        let encoded = piece::encode(start, &pieces, true);
        assert_eq!(piece::decode(start, &encoded, 3, true).unwrap(), pieces);
    }
}
