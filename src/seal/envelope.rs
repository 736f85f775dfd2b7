//! Envelopes: content that only the holders of another pair than the repository's may read (format, section 16.5).
//!
//! An envelope is a sealed object as any other. Its raw bytes are the length of the content, the content, and zeros that hide the length.

use std::io::Write;

use zeroize::Zeroizing;

use super::foot::{Foot, TAIL, foot_length};
use super::head::HEAD;
use super::key::{KeySetId, MacKey, PublicHalf};
use super::opener::Opener;
use super::recipient::Contents;
use super::sealer::{Drawn, Sealer};
use super::{CHUNK, FIRST_EPOCH, TAG};
use crate::err;
use crate::error::{Error, Result};

/// No content is padded to less.
const LEAST_BYTES: usize = 1 << 10;
/// A token of a value is made under this name, so that it is no MAC of anything else.
const TOKEN: &[u8] = b"pitr/1/token";

/// The length that a content of so many bytes is padded to: an eighth more at most, but for short ones.
fn padded(length: usize) -> usize {
    let length = length + 8;
    let step = (length.next_power_of_two() / 16).max(LEAST_BYTES);
    length.next_multiple_of(step)
}

/// Seals `content` as `key`, to the public half of a pair.
///
/// # Errors
/// `Key` for a public half that is none.
pub fn seal(
    content: &[u8],
    key: &str,
    (public, mac): (&PublicHalf, &MacKey),
    drawn: &Drawn,
) -> Result<Vec<u8>> {
    let zeros = vec![0; padded(content.len()) - content.len() - 8];
    seal_with(content, &zeros, key, (public, mac), drawn)
}

fn seal_with(
    content: &[u8],
    padding: &[u8],
    key: &str,
    (public, mac): (&PublicHalf, &MacKey),
    drawn: &Drawn,
) -> Result<Vec<u8>> {
    let failed = |e| Error::from_io("seal a file", e);
    let mut sealer = Sealer::new(Vec::new(), key, (FIRST_EPOCH, public), mac, drawn)?;
    let length = (content.len() as u64).to_le_bytes();
    for part in [&length[..], content, padding] {
        sealer.write_all(part).map_err(failed)?;
    }
    let (sealed, _) = sealer.finish(b"{}", mac).map_err(failed)?;
    Ok(sealed)
}

fn foot(envelope: &[u8]) -> Result<(Foot, usize)> {
    let damaged = || err!(Damaged, "the envelope of a file has no end");
    let tail = envelope.last_chunk::<TAIL>().ok_or_else(damaged)?;
    let length = foot_length(tail).and_then(|n| usize::try_from(n).ok());
    let start = length
        .and_then(|n| envelope.len().checked_sub(n))
        .ok_or_else(damaged)?;
    let foot = Foot::decode(envelope.get(start..).unwrap_or_default())?;
    foot.check_length(envelope.len() as u64, (envelope.len() - start) as u64)?;
    Ok((foot, start))
}

/// The pair that an envelope is sealed to.
///
/// # Errors
/// `Damaged` when it is no envelope.
pub fn sealed_to(envelope: &[u8]) -> Result<KeySetId> {
    Ok(foot(envelope)?.0.decoded_head()?.key_set)
}

/// Opens what was sealed as `key`.
///
/// # Errors
/// `Damaged` when a bit of it is another, or it was sealed as something else; `Key` for another pair.
pub fn open(envelope: &[u8], key: &str, contents: &Contents) -> Result<Zeroizing<Vec<u8>>> {
    let damaged = |why: &str| err!(Damaged, "the envelope of a file is damaged: {why}");
    let (foot, chunks_end) = foot(envelope)?;
    if foot.decoded_head()?.key_set != contents.mac.id() {
        return Err(err!(Key, "the file was sealed to another pair"));
    }
    if !foot.is_genuine(&contents.mac) {
        return Err(damaged("it was not made by a holder of the secrets' key"));
    }
    if foot.key != key {
        return Err(damaged("it is that of another file"));
    }
    let (head, _) = envelope
        .split_first_chunk::<HEAD>()
        .ok_or_else(|| damaged("it has no head"))?;
    if *head != foot.head {
        return Err(damaged("head and foot differ"));
    }
    let opener = Opener::new(&foot, &contents.mac, &contents.private)?;
    let body = envelope.get(HEAD..chunks_end).unwrap_or_default();
    let mut plain = Zeroizing::new(Vec::with_capacity(body.len()));
    let mut room = Zeroizing::new(vec![0; CHUNK + TAG]);
    for (number, chunk) in (0..).zip(body.chunks(CHUNK + TAG)) {
        let room = room.get_mut(..chunk.len()).unwrap_or_default();
        room.copy_from_slice(chunk);
        let length = opener.open(number, room)?;
        plain.extend_from_slice(room.get(..length).unwrap_or_default());
    }
    let (length, rest) = plain
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged("it is too short"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (content, padding) = rest
        .split_at_checked(length)
        .ok_or_else(|| damaged("it is too short"))?;
    if plain.len() != padded(length) || padding.iter().any(|byte| *byte != 0) {
        return Err(damaged("its padding is not as it should be"));
    }
    Ok(Zeroizing::new(content.to_vec()))
}

/// Eight digits that stand for a value in a scope: the same for the same value, and no way back without the key.
pub fn token(value: &[u8], scope: &str, mac: &MacKey) -> String {
    let tag = mac.sign(&[TOKEN, &[0], scope.as_bytes(), &[0], value]);
    crate::text::hex(tag.get(..4).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::seal::{Secret32, random_pair};

    fn pair(seed: u8) -> (PublicHalf, Contents) {
        let (private, public) = random_pair(&Secret32::new([seed; 32]));
        let contents = Contents::new(private, Secret32::new([seed + 1; 32])).unwrap();
        (public, contents)
    }

    fn drawn() -> Drawn {
        Drawn {
            object_key: Secret32::new([7; 32]),
            ephemeral: Secret32::new([8; 32]),
        }
    }

    #[test]
    fn what_was_sealed_comes_back_and_nothing_else_does() {
        let (public, contents) = pair(1);
        for length in [0, 1, 1015, 1016, 1017, 65_528, 65_529, 200_000] {
            let content: Vec<u8> = (0..length)
                .map(|i| u8::try_from(i % 251).unwrap())
                .collect();
            let sealed = seal(&content, "a/b", (&public, &contents.mac), &drawn()).unwrap();
            assert_eq!(*open(&sealed, "a/b", &contents).unwrap(), content);
            assert_eq!(sealed_to(&sealed).unwrap(), contents.mac.id());
        }
        let sealed = seal(b"content", "a/b", (&public, &contents.mac), &drawn()).unwrap();
        assert_eq!(
            open(&sealed, "a/c", &contents).unwrap_err().code(),
            Code::Damaged
        );
        assert_eq!(
            open(&sealed, "a/b", &pair(5).1).unwrap_err().code(),
            Code::Key
        );
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, "a/b", &contents).is_err(), "byte {at}");
            assert!(open(&sealed[..at], "a/b", &contents).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn padding_carries_nothing() {
        let (public, contents) = pair(1);
        let opened = |padding: &[u8]| {
            let pair = (&public, &contents.mac);
            let sealed = seal_with(b"content", padding, "a", pair, &drawn()).unwrap();
            open(&sealed, "a", &contents).map_err(|e| e.code())
        };
        let mut padding = vec![0; padded(7) - 15];
        assert_eq!(*opened(&padding).unwrap(), b"content");
        assert_eq!(opened(&padding[1..]).unwrap_err(), Code::Damaged);
        assert_eq!(
            opened(&vec![0; padded(7) + 1009]).unwrap_err(),
            Code::Damaged
        );
        *padding.last_mut().unwrap() = 1;
        assert_eq!(opened(&padding).unwrap_err(), Code::Damaged);
    }

    #[test]
    fn lengths_are_hidden() {
        let lengths: std::collections::BTreeSet<usize> = (0..1000).map(padded).collect();
        assert_eq!(lengths.len(), 1);
        assert!(
            (0..100_000).all(|n| padded(n) >= n + 8 && padded(n) <= (n + 8) * 9 / 8 + LEAST_BYTES)
        );
    }

    #[test]
    fn tokens_belong_to_values_and_keys() {
        let (a, b) = (pair(1).1.mac, pair(5).1.mac);
        let token = |value: &[u8], scope, mac| token(value, scope, mac);
        assert_eq!(token(b"x", "s", &a), token(b"x", "s", &a));
        assert!(token(b"x", "s", &a) != token(b"y", "s", &a));
        assert!(token(b"x", "s", &a) != token(b"x", "s", &b));
        assert!(token(b"x", "s", &a) != token(b"x", "t", &a));
    }
}
