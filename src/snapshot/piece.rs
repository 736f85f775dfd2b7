//! The places from which the bytes of a file come: the values of extents entries (format, section 8.2) and of chunks entries (16.3).

use super::frame::{PAGE_BYTES, RAW_LIMIT_BYTES};
use crate::error::Result;
use crate::repo::varint::{self, Reader};

/// The chunks and zeros of one entry are not shorter in the mean: a hostile map cannot fill the memory with pieces.
const LEAST_MEAN_BYTES: u64 = 512;
/// Most pieces of one entry; a longer file has several entries.
pub const ENTRY_PIECES: usize = 512;

/// The origin of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros, which no frame holds.
    Zeros,
    /// Raw bytes of a frame.
    Frame {
        /// Index in the layer's list of packs.
        pack: u32,
        /// Frame in that pack.
        frame: u32,
        /// Byte offset in the frame's raw content.
        offset: u32,
    },
    /// A chunk, which other files may share.
    Chunk {
        /// Index in the layer's list of packs.
        pack: u32,
        /// Frame in that pack.
        frame: u32,
        whole: WholeChunk,
    },
}

/// A chunk in its frame. A file may show a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeChunk {
    /// Byte offset of its beginning in the frame's raw content.
    pub offset: u32,
    /// Bytes; never 0.
    pub length: u32,
    pub hash: [u8; 32],
}

impl WholeChunk {
    /// The part of the chunk's bytes that begins at this offset in the frame.
    pub fn part<'b>(&self, bytes: &'b [u8], offset: u32, length: u64) -> &'b [u8] {
        let from = offset.saturating_sub(self.offset) as usize;
        let to = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        bytes.get(from..to.min(bytes.len())).unwrap_or_default()
    }
}

/// A stretch of a file with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte position in the file.
    pub position: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// Origin of the bytes.
    pub source: Source,
}

/// Encodes the pieces of one entry, ascending and disjoint, from the key's `position` on; in units of pages where `has_pages` and all fit.
pub fn encode(position: u64, pieces: &[Piece], has_pages: bool) -> Vec<u8> {
    let page = PAGE_BYTES as u64;
    let in_pages = has_pages
        && position.is_multiple_of(page)
        && pieces
            .iter()
            .all(|p| p.position.is_multiple_of(page) && p.length.is_multiple_of(page));
    let exponent = if in_pages { 13 } else { 0 };
    let mut out = Vec::with_capacity(8 * pieces.len() + 4);
    varint::put(&mut out, exponent);
    varint::put(&mut out, pieces.len() as u64);
    let mut at = position;
    let mut follows = None;
    for piece in pieces {
        let gap = (piece.position - at) >> exponent;
        let length = piece.length >> exponent;
        let names_source = Some(piece.source) != follows;
        let is_long = length > 1;
        varint::put(
            &mut out,
            gap << 2 | u64::from(names_source) << 1 | u64::from(is_long),
        );
        if names_source {
            put_source(&mut out, piece.source);
        }
        if is_long {
            varint::put(&mut out, length - 1);
        }
        at = piece.position + piece.length;
        follows = continued(piece);
    }
    out
}

fn put_source(out: &mut Vec<u8>, source: Source) {
    match source {
        Source::Zeros => varint::put(out, 0),
        Source::Frame {
            pack,
            frame,
            offset,
        } => {
            varint::put(out, u64::from(pack) + 1);
            varint::put(out, u64::from(frame));
            varint::put(out, u64::from(offset));
        }
        // They have entries of their own.
        Source::Chunk { .. } => varint::put(out, 0),
    }
}

/// The source that a piece without one has behind this one.
fn continued(piece: &Piece) -> Option<Source> {
    match piece.source {
        Source::Zeros | Source::Chunk { .. } => None,
        Source::Frame {
            pack,
            frame,
            offset,
        } => Some(Source::Frame {
            pack,
            frame,
            offset: offset.checked_add(u32::try_from(piece.length).ok()?)?,
        }),
    }
}

/// Decodes what [`encode`] wrote; `packs` is the length of the layer's list of packs.
///
/// # Errors
/// `Damaged` when pieces count pages without `has_pages`, are empty, overlap, overflow, or name a pack that is not listed or bytes no frame can have.
pub fn decode(position: u64, value: &[u8], packs: usize, has_pages: bool) -> Result<Vec<Piece>> {
    let mut r = Reader::new(value, "extents of a file");
    let exponent = match r.varint()? {
        0 => 0,
        13 if has_pages => 13,
        _ => return Err(r.damaged()),
    };
    let unit = 1_u64 << exponent;
    let count = r.count(1)?;
    let mut pieces = Vec::with_capacity(count);
    let mut at = position;
    let mut follows = None;
    for _ in 0..count {
        let head = r.varint()?;
        let source = if head & 2 != 0 {
            read_source(&mut r, packs)?
        } else {
            follows.ok_or_else(|| r.damaged())?
        };
        let units = if head & 1 != 0 {
            r.varint()?.checked_add(1).ok_or_else(|| r.damaged())?
        } else {
            1
        };
        let start = (head >> 2)
            .checked_mul(unit)
            .and_then(|gap| at.checked_add(gap));
        let length = units.checked_mul(unit);
        let (Some(start), Some(length)) = (start, length) else {
            return Err(r.damaged());
        };
        let piece = Piece {
            position: start,
            length,
            source,
        };
        let inside_frame = match source {
            Source::Zeros | Source::Chunk { .. } => true,
            Source::Frame { offset, .. } => u64::from(offset)
                .checked_add(length)
                .is_some_and(|end| end <= RAW_LIMIT_BYTES as u64),
        };
        at = start.checked_add(length).ok_or_else(|| r.damaged())?;
        if !inside_frame {
            return Err(r.damaged());
        }
        follows = continued(&piece);
        pieces.push(piece);
    }
    if pieces.is_empty() {
        return Err(r.damaged());
    }
    r.finish()?;
    Ok(pieces)
}

fn read_source(r: &mut Reader<'_>, packs: usize) -> Result<Source> {
    let Some(pack) = r.varint()?.checked_sub(1) else {
        return Ok(Source::Zeros);
    };
    let pack = u32::try_from(pack)
        .ok()
        .filter(|p| (*p as usize) < packs)
        .ok_or_else(|| r.damaged())?;
    Ok(Source::Frame {
        pack,
        frame: r.number()?,
        offset: r.number()?,
    })
}

/// Encodes pieces of a file that is cut into chunks, ascending and disjoint, from the key's `position` on.
pub fn encode_chunks(position: u64, pieces: &[Piece]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 * pieces.len() + 4);
    varint::put(&mut out, pieces.len() as u64);
    let mut at = position;
    for piece in pieces {
        let gap = piece.position - at;
        match piece.source {
            Source::Chunk { pack, frame, whole } => {
                varint::put(&mut out, gap << 1);
                varint::put(&mut out, u64::from(pack));
                varint::put(&mut out, u64::from(frame));
                varint::put(&mut out, u64::from(whole.offset));
                varint::put(&mut out, u64::from(whole.length));
                out.extend_from_slice(&whole.hash);
            }
            Source::Zeros | Source::Frame { .. } => {
                varint::put(&mut out, gap << 1 | 1);
                varint::put(&mut out, piece.length);
            }
        }
        at = piece.position + piece.length;
    }
    out
}

/// Decodes what [`encode_chunks`] wrote; `packs` is the length of the layer's list of packs.
///
/// # Errors
/// `Damaged` when pieces are empty, too many or overflow, or name a pack that is not listed or bytes that no frame can have.
pub fn decode_chunks(position: u64, value: &[u8], packs: usize) -> Result<Vec<Piece>> {
    let mut r = Reader::new(value, "chunks of a file");
    let count = r.count(2)?;
    let mut pieces = Vec::with_capacity(count);
    let mut at = position;
    for _ in 0..count {
        let head = r.varint()?;
        let start = at.checked_add(head >> 1).ok_or_else(|| r.damaged())?;
        let (length, source) = match head & 1 {
            1 => (r.varint()?, Source::Zeros),
            _ => read_chunk(&mut r, packs)?,
        };
        at = start
            .checked_add(length)
            .filter(|_| length > 0)
            .ok_or_else(|| r.damaged())?;
        pieces.push(Piece {
            position: start,
            length,
            source,
        });
    }
    let most = 2 + (at - position) / LEAST_MEAN_BYTES;
    if pieces.is_empty() || pieces.len() as u64 > most {
        return Err(r.damaged());
    }
    r.finish()?;
    Ok(pieces)
}

fn read_chunk(r: &mut Reader<'_>, packs: usize) -> Result<(u64, Source)> {
    let pack: u32 = r.number()?;
    let frame = r.number()?;
    let whole = WholeChunk {
        offset: r.number()?,
        length: r.number()?,
        hash: r.array()?,
    };
    let end = u64::from(whole.offset) + u64::from(whole.length);
    if pack as usize >= packs || end > RAW_LIMIT_BYTES as u64 {
        return Err(r.damaged());
    }
    let source = Source::Chunk { pack, frame, whole };
    Ok((u64::from(whole.length), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_chunks() -> impl Strategy<Value = (u64, Vec<Piece>)> {
        let chunk = (0_u32..5, 0_u32..2000, 0_u32..1 << 21, any::<[u8; 32]>());
        let piece = (0_u64..4, 512_u32..1 << 21, proptest::option::of(chunk));
        let pieces = proptest::collection::vec(piece, 1..40);
        (0_u64..1 << 40, pieces).prop_map(|(first, raw)| {
            let mut at = first;
            let pieces = raw.into_iter().map(|(gap, length, chunk)| {
                let piece = Piece {
                    position: at + gap,
                    length: u64::from(length),
                    source: chunk.map_or(Source::Zeros, |(pack, frame, offset, hash)| {
                        let whole = WholeChunk {
                            offset,
                            length,
                            hash,
                        };
                        Source::Chunk { pack, frame, whole }
                    }),
                };
                at = piece.position + piece.length;
                piece
            });
            (first, pieces.collect())
        })
    }

    proptest! {
        #[test]
        fn chunks_come_back((position, pieces) in any_chunks()) {
            let value = encode_chunks(position, &pieces);
            prop_assert_eq!(decode_chunks(position, &value, 5).unwrap(), pieces.clone());
            for n in 0..value.len() {
                prop_assert!(decode_chunks(position, &value[..n], 5).is_err());
            }
            if pieces.iter().any(|p| matches!(p.source, Source::Chunk { pack: 4, .. })) {
                prop_assert!(decode_chunks(position, &value, 4).is_err());
            }
        }

        #[test]
        fn any_bytes_are_chunks_or_an_error(position in any::<u64>(), value in proptest::collection::vec(any::<u8>(), 0..99)) {
            if let Ok(pieces) = decode_chunks(position, &value, 3) {
                prop_assert!(pieces.iter().all(|p| p.length > 0));
                prop_assert!(pieces.windows(2).all(|w| w[0].position + w[0].length <= w[1].position));
            }
        }
    }

    fn any_pieces() -> impl Strategy<Value = (u64, Vec<Piece>)> {
        let source = prop_oneof![
            Just(Source::Zeros),
            (0_u32..5, 0_u32..2000, 0_u32..(1 << 20)).prop_map(|(pack, frame, offset)| {
                Source::Frame {
                    pack,
                    frame,
                    offset,
                }
            })
        ];
        let piece = (0_u64..4, 1_u64..130, source, any::<bool>());
        let unit = prop_oneof![Just(1_u64), Just(8192)];
        (
            unit,
            0_u64..1 << 40,
            proptest::collection::vec(piece, 1..40),
        )
            .prop_map(|(unit, first, raw)| {
                let first = first * unit;
                let mut at = first;
                let mut pieces: Vec<Piece> = Vec::new();
                for (gap, length, source, joins) in raw {
                    let follows = pieces.last().and_then(continued).filter(|_| joins);
                    let length = length * unit;
                    let source = match follows.unwrap_or(source) {
                        Source::Frame { offset, .. }
                            if u64::from(offset) + length > RAW_LIMIT_BYTES as u64 =>
                        {
                            Source::Zeros
                        }
                        other => other,
                    };
                    at += gap * unit;
                    pieces.push(Piece {
                        position: at,
                        length,
                        source,
                    });
                    at += length;
                }
                (first, pieces)
            })
    }

    proptest! {
        #[test]
        fn pieces_come_back((position, pieces) in any_pieces()) {
            let value = encode(position, &pieces, true);
            prop_assert_eq!(decode(position, &value, 5, true).unwrap(), pieces.clone());
            let bytes = encode(position, &pieces, false);
            prop_assert_eq!(decode(position, &bytes, 5, false).unwrap(), pieces.clone());
            prop_assert_eq!(decode(position, &value, 5, false).is_err(), value != bytes);
            for n in 0..value.len() {
                prop_assert!(decode(position, &value[..n], 5, true).is_err());
            }
            if pieces.iter().any(|p| matches!(p.source, Source::Frame { pack: 4, .. })) {
                prop_assert!(decode(position, &value, 4, true).is_err());
            }
        }

        #[test]
        fn any_bytes_are_pieces_or_an_error(position in any::<u64>(), value in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(pieces) = decode(position, &value, 3, true) {
                prop_assert!(pieces.windows(2).all(|w| w[0].position + w[0].length <= w[1].position));
            }
        }
    }

    #[test]
    fn a_run_of_pages_costs_a_few_bytes() {
        let pieces: Vec<Piece> = (0..512_u32)
            .map(|i| Piece {
                position: u64::from(i) << 20,
                length: 1 << 20,
                source: Source::Frame {
                    pack: 3,
                    frame: i,
                    offset: 0,
                },
            })
            .collect();
        assert!(encode(0, &pieces, true).len() < 512 * 8);
        let overflow = [
            1 << 2,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            0xFF,
            1,
        ];
        assert!(decode(0, &overflow, 1, true).is_err());
        assert!(decode(0, &[0, 0], 1, true).is_err());
    }
}
