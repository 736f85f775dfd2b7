//! The number encodings of binary objects (format, section 2): LEB128 varints, zigzag, blobs, little-endian integers.

use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;

/// Appends an unsigned LEB128.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7F;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a signed number as zigzag varint.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put(
        out,
        (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned(),
    );
}

/// Appends a length and the bytes.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the `put` functions wrote; every read checks what is left.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`; `what` names the structure in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Reader { rest: bytes, what }
    }

    /// The error for content that breaks the format.
    #[cold]
    pub fn damaged(&self) -> Error {
        err!(
            Damaged,
            "{} is damaged: {} bytes before its end",
            self.what,
            self.rest.len()
        )
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `n` bytes.
    #[inline]
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(n) else {
            return Err(self.damaged());
        };
        self.rest = rest;
        Ok(head)
    }

    /// The next N bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes(N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.damaged())
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian.
    #[inline]
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    #[inline]
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    #[inline]
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian, signed.
    #[inline]
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A varint in its shortest form.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(self.damaged());
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.damaged());
                }
                return Ok(value);
            }
        }
        Err(self.damaged())
    }

    /// A varint that must fit the type.
    pub fn number<T: TryFrom<u64>>(&mut self) -> Result<T> {
        let value = self.varint()?;
        T::try_from(value).map_err(|_| self.damaged())
    }

    /// A count of things of at least `least` bytes each: never more than what is left can hold.
    pub fn count(&mut self, least: usize) -> Result<usize> {
        let count: usize = self.number()?;
        if count
            .checked_mul(least)
            .is_some_and(|n| n <= self.rest.len())
        {
            Ok(count)
        } else {
            Err(self.damaged())
        }
    }

    /// A zigzag varint.
    pub fn zigzag(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// A length and that many bytes.
    pub fn blob(&mut self) -> Result<&'a [u8]> {
        let length: usize = self.number()?;
        self.bytes(length)
    }

    /// A blob that must be UTF-8.
    pub fn text(&mut self) -> Result<&'a str> {
        let bytes = self.blob()?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged())
    }

    /// Requires that nothing is left.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.damaged())
        }
    }
}

/// A value in its first form: integers little-endian in their width, an LSN and a time as their numbers, a struct as its fields in order.
pub trait Fixed: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads it back.
    ///
    /// # Errors
    /// `Damaged` where it is not there.
    fn take(r: &mut Reader<'_>) -> Result<Self>;
}

/// A value in its second form: numbers as varints, bytes and texts behind their length, an option behind a varint that is 0 or 1.
pub trait Varint: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads it back.
    ///
    /// # Errors
    /// `Damaged` where it is not there, or is too large.
    fn take(r: &mut Reader<'_>) -> Result<Self>;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Fixed for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(r: &mut Reader<'_>) -> Result<Self> {
                r.array().map(<$int>::from_le_bytes)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, i64);

/// Forms of values that are one other value: how to make the one of the other, both ways.
macro_rules! as_other {
    ($form:ident: $($type:ty => $other:ty, $to:expr, $from:expr;)*) => {$(
        impl $crate::repo::varint::$form for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let to: fn(&$type) -> $other = $to;
                $form::put(&to(self), out);
            }

            fn take(r: &mut $crate::repo::varint::Reader<'_>) -> $crate::error::Result<Self> {
                <$other as $form>::take(r).map($from)
            }
        }
    )*};
}
as_other! { Fixed:
    bool => u8, |is_so| u8::from(*is_so), |number| number != 0;
    Lsn => u64, |lsn| lsn.0, Lsn;
    TimestampTz => i64, |time| time.0, TimestampTz;
    Option<Lsn> => Lsn, |lsn| lsn.unwrap_or_default(), |lsn| Some(lsn).filter(|lsn| lsn.0 != 0);
    Option<(Lsn, Lsn)> => (Lsn, Lsn), |two| two.unwrap_or_default(), |two| Some(two).filter(|(first, _)| first.0 != 0);
}
pub(crate) use as_other;

impl<A: Fixed, B: Fixed> Fixed for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        Ok((A::take(r)?, B::take(r)?))
    }
}

macro_rules! numbers {
    ($($int:ty),*) => {$(
        impl Varint for $int {
            fn put(&self, out: &mut Vec<u8>) {
                put(out, u64::from(*self));
            }

            fn take(r: &mut Reader<'_>) -> Result<Self> {
                r.number()
            }
        }
    )*};
}
numbers!(u8, u32, u64);

impl<const N: usize> Fixed for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        r.array()
    }
}

impl<const N: usize> Varint for [u64; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|number| put(out, *number));
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        let mut all = [0; N];
        for one in &mut all {
            *one = r.varint()?;
        }
        Ok(all)
    }
}

impl Varint for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        put_blob(out, self);
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        Ok(r.blob()?.to_vec())
    }
}

impl Varint for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_blob(out, self.as_bytes());
    }

    fn take(r: &mut Reader<'_>) -> Result<Self> {
        Ok(r.text()?.to_owned())
    }
}

/// Gives an enum the way back from its numbers, and a byte as its form.
macro_rules! numbered {
    ($type:ident: $($one:ident),*) => {
        impl $type {
            /// The one with this number.
            pub fn from_number(number: u8) -> Option<$type> {
                let all = [$($type::$one),*];
                all.into_iter().find(|one| *one as u8 == number)
            }
        }

        impl $crate::repo::varint::Fixed for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(*self as u8);
            }

            fn take(r: &mut $crate::repo::varint::Reader<'_>) -> $crate::error::Result<$type> {
                let number = r.u8()?;
                $type::from_number(number).ok_or_else(|| r.damaged())
            }
        }
    };
}
pub(crate) use numbered;

/// Declares a struct whose fields are put and taken in their order, each in the form that stands behind it.
macro_rules! stored {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$doc:meta])* pub $field:ident: $type:ty = $form:ident,)*
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $crate::repo::varint::Fixed for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($form::put(&self.$field, out);)*
            }

            fn take(r: &mut $crate::repo::varint::Reader<'_>) -> $crate::error::Result<$name> {
                Ok($name {
                    $($field: $form::take(r)?,)*
                })
            }
        }
    };
}
pub(crate) use stored;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_only_in_shortest_form() {
        let mut out = Vec::new();
        let values = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        let signed = [0, -1, 1, i64::MIN, i64::MAX, -12345];
        for v in values {
            put(&mut out, v);
        }
        for v in signed {
            put_zigzag(&mut out, v);
        }
        put_blob(&mut out, b"abc");
        let mut r = Reader::new(&out, "test");
        for v in values {
            assert_eq!(r.varint().unwrap(), v);
        }
        for v in signed {
            assert_eq!(r.zigzag().unwrap(), v);
        }
        assert_eq!(r.blob().unwrap(), b"abc");
        r.finish().unwrap();
        for bad in [&[0x80, 0x00][..], &[0x80], &[0xFF; 11], &[]] {
            assert!(Reader::new(bad, "test").varint().is_err(), "{bad:?}");
        }
        assert!(Reader::new(&[200, 1, 0], "test").count(1).is_err());
    }
}
