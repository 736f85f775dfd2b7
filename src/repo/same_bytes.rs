//! Which bytes of two pieces of 64 agree.

/// A bit for each byte that both have.
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "the vector instructions that every x86-64 has are offered as unsafe functions only"
)]
#[inline(always)]
pub fn same_bytes(a: &[u8; 64], b: &[u8; 64]) -> u64 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8};
    let pairs = a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0);
    pairs.enumerate().fold(0, |same, (n, (a, b))| {
        // SAFETY: SSE2 is part of x86-64; each load reads the 16 bytes of an array, and needs no alignment.
        let bits = unsafe {
            let a = _mm_loadu_si128(a.as_ptr().cast());
            let b = _mm_loadu_si128(b.as_ptr().cast());
            _mm_movemask_epi8(_mm_cmpeq_epi8(a, b))
        };
        same | u64::from(bits.cast_unsigned()) << (16 * n)
    })
}

/// A bit for each byte that both have.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn same_bytes(a: &[u8; 64], b: &[u8; 64]) -> u64 {
    same_bytes_by_words(a, b)
}

/// A bit for each byte that both have, on processors of any kind.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline(always)]
fn same_bytes_by_words(a: &[u8; 64], b: &[u8; 64]) -> u64 {
    const LOW: u64 = 0x7F7F_7F7F_7F7F_7F7F;
    let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    pairs.enumerate().fold(0, |same, (n, (a, b))| {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        // The upper bit of each byte that is zero, then those eight bits side by side.
        let zero = !(((differ & LOW) + LOW) | differ | LOW);
        same | ((zero >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_bytes_are_told_one_by_one() {
        let a: [u8; 64] = std::array::from_fn(|n| n.to_le_bytes()[0]);
        for flip in [0, 1, 0x80, 0xFF] {
            for at in 0..64 {
                let mut b = a;
                b[at] ^= flip;
                b[63] ^= flip;
                let expected = if flip == 0 || at == 63 {
                    !0
                } else {
                    !(1 << at | 1 << 63)
                };
                assert_eq!(same_bytes(&a, &b), expected);
                assert_eq!(same_bytes_by_words(&a, &b), expected);
            }
        }
    }
}
