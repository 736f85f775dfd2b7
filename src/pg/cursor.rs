//! Reading of little-endian fields from bytes that nobody has checked yet.
//!
//! Everything PostgreSQL writes into WAL and data files is in the byte order of its host; the hosts that are supported
//! (x86-64, arm64) are little-endian. A file of another byte order is recognised by its first magic number.

/// Takes fields off the front of a slice; every step says whether there was enough.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    /// Returns the bytes that have not been taken yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `n` bytes.
    #[inline]
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(n)?;
        self.rest = tail;
        Some(head)
    }

    /// Takes exactly `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>()?;
        self.rest = tail;
        Some(*head)
    }

    /// Takes one byte.
    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    /// Takes a `u16`.
    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes a `u32`.
    #[inline]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a `u64`.
    #[inline]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes an `i32`.
    #[inline]
    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    /// Takes an `i64`.
    #[inline]
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Takes a count (a C `int` that must not be negative) and that many items of `size` bytes, as one slice.
    #[inline]
    pub fn counted(&mut self, size: usize) -> Option<&'a [u8]> {
        let count = usize::try_from(self.i32()?).ok()?;
        self.take(count.checked_mul(size)?)
    }
}

/// The `u8` at `offset`.
#[inline]
pub fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// The `u16` at `offset`.
#[inline]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Cursor::new(bytes.get(offset..)?).u16()
}

/// The `u32` at `offset`.
#[inline]
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Cursor::new(bytes.get(offset..)?).u32()
}

/// The `i32` at `offset`.
#[inline]
pub fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    Cursor::new(bytes.get(offset..)?).i32()
}

/// The `u64` at `offset`.
#[inline]
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Cursor::new(bytes.get(offset..)?).u64()
}

/// The `i64` at `offset`.
#[inline]
pub fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    Cursor::new(bytes.get(offset..)?).i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_not_there_is_none_and_a_negative_count_too() {
        let mut c = Cursor::new(&[1, 0, 0, 0, 9]);
        assert_eq!(c.counted(1), Some(&[9u8][..]));
        assert_eq!(c.u8(), None);
        assert_eq!(Cursor::new(&[0xFF; 8]).counted(1), None);
        assert_eq!(
            Cursor::new(&[0xFF, 0xFF, 0xFF, 0x7F]).counted(usize::MAX),
            None
        );
        assert_eq!(u32_at(&[1, 2, 3, 4], 1), None);
        assert_eq!(u32_at(&[1, 2, 3, 4], usize::MAX), None);
        assert_eq!(u16_at(&[1, 2, 3], 1), Some(0x0302));
    }
}
