//! Page images in WAL records: decompressed, and the hole put back.
//!
//! PostgreSQL: src/backend/access/transam/xlogreader.c (RestoreBlockImage), src/common/pg_lzcompress.c (pglz_decompress).

use super::body::{Image, ImageCodec};

/// Returns the page that an image restores; `None` where its bytes do not give one.
pub fn restore(image: &Image<'_>, block_size: u32) -> Option<Vec<u8>> {
    let size = usize::try_from(block_size).ok()?;
    let hole = usize::from(image.hole_length);
    let length = size.checked_sub(hole)?;
    let raw = match image.codec {
        ImageCodec::Plain => image.bytes.to_vec(),
        ImageCodec::Pglz => pglz(image.bytes, length)?,
        ImageCodec::Lz4 => lz4_flex::block::decompress(image.bytes, length).ok()?,
        ImageCodec::Zstd => zstd::bulk::decompress(image.bytes, length).ok()?,
    };
    if raw.len() != length {
        return None;
    }
    let (before, after) = raw.split_at_checked(usize::from(image.hole_offset))?;
    let mut page = Vec::with_capacity(size);
    page.extend_from_slice(before);
    page.resize(before.len() + hole, 0);
    page.extend_from_slice(after);
    Some(page)
}

/// Decompresses exactly `length` bytes of pglz without its header.
fn pglz(source: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(length);
    let mut rest = source.iter().copied();
    while out.len() < length {
        let control = rest.next()?;
        for bit in 0..8 {
            if out.len() == length {
                break;
            }
            let first = rest.next()?;
            if control >> bit & 1 == 0 {
                out.push(first);
                continue;
            }
            let offset = usize::from(first & 0xF0) << 4 | usize::from(rest.next()?);
            let mut count = usize::from(first & 0x0F) + 3;
            if count == 18 {
                count += usize::from(rest.next()?);
            }
            let start = out.len().checked_sub(offset).filter(|_| offset > 0)?;
            for at in start..start + count.min(length - out.len()) {
                let byte = *out.get(at)?;
                out.push(byte);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(bytes: &[u8], hole: (u16, u16), codec: ImageCodec) -> Option<Vec<u8>> {
        let image = Image {
            bytes,
            hole_offset: hole.0,
            hole_length: hole.1,
            codec,
            apply: true,
        };
        restore(&image, 16)
    }

    #[test]
    fn the_hole_comes_back() {
        let page = [&b"abcd"[..], &[0; 10], b"yz"].concat();
        assert_eq!(image(b"abcdyz", (4, 10), ImageCodec::Plain), Some(page));
        assert_eq!(image(b"abcdy", (4, 10), ImageCodec::Plain), None);
        assert_eq!(image(b"abcdyz", (7, 10), ImageCodec::Plain), None);
    }

    #[test]
    fn pglz_copies_from_what_it_wrote() {
        // Three literals, then 13 bytes from three before: the copy overlaps itself.
        let bytes = [0b1000, b'a', b'b', b'c', 10, 3];
        let page = b"abcabcabcabcabca".to_vec();
        assert_eq!(image(&bytes, (0, 0), ImageCodec::Pglz), Some(page));
        for cut in 0..bytes.len() {
            assert_eq!(image(&bytes[..cut], (0, 0), ImageCodec::Pglz), None);
        }
        // From before the beginning.
        assert_eq!(image(&[0b10, b'a', 10, 2], (0, 0), ImageCodec::Pglz), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..100), length in 0usize..300) {
            if let Some(out) = pglz(&bytes, length) {
                prop_assert_eq!(out.len(), length);
            }
        }
    }
}
