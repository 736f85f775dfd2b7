//! Zeros: padding of switched segments, pages that were never initialised.

static ZEROS: [u8; 4096] = [0; 4096];

/// Whether all bytes are zero. Pages are compared at once, by the library of C: a loop over bytes takes long in a build that is not optimised.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROS.len())
        .all(|page| ZEROS.starts_with(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_found() {
        for length in [0, 1, 4095, 4096, 4097, 8192, 10_000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 1;
                    assert!(!is_zero(&bytes), "{length} {at}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
