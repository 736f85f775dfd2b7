//! RESP, as far as replication needs it: commands, simple replies, and the lines around a transfer. Pure.
//!
//! A server keeps a connection alive by single line feeds while it prepares a transfer. They may come before any line, and are passed over.

use crate::err;
use crate::error::Result;
use crate::text::is_hex;

/// A line of a server has no more bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// A bulk string of a reply has no more bytes: no server takes a longer one back (`proto-max-bulk-len`).
const BULK_BYTES_MAX: usize = 512 << 20;
/// An array of a reply has no more elements: the settings of a server are fewer, and so are the keys of one step of `SCAN`.
const ARRAY_LENGTH_MAX: usize = 64 << 10;
/// An array may be in an array, as in the answer to `SCAN`, and none in that.
const ARRAY_DEPTH_MAX: u32 = 2;
/// How much of an answer that makes no sense is repeated.
const SHOWN_CHARS: usize = 80;
/// The length of the mark at the end of a transfer whose length is not known before.
pub const MARK_BYTES: usize = 40;

/// A reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A simple string, or a number.
    Line(String),
    /// An error, as the server words it.
    Error(String),
    /// A bulk string; none of the null one, nor of a null array.
    Bulk(Option<Vec<u8>>),
    /// An array of the others, or of arrays of them.
    Array(Vec<Reply>),
}

/// The answer to a request for a full resynchronisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullResync {
    /// The history: 40 hexadecimal digits.
    pub replid: String,
    /// The bytes of the history that the data set holds.
    pub offset: u64,
}

/// How the end of a transfer is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// It has so many bytes.
    Length(u64),
    /// These bytes follow it.
    Mark([u8; MARK_BYTES]),
}

/// Encodes a command.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Returns the first line that is not empty, without its end, and how many bytes it takes with what stands before it; none where more has to come.
///
/// # Errors
/// `Server` for a line without an end.
pub fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let is_text = |byte: &u8| !matches!(byte, b'\n' | b'\r');
    let Some(start) = bytes.iter().position(is_text) else {
        return Ok(None);
    };
    let rest = bytes.get(start..).unwrap_or_default();
    match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let text = rest.get(..end).unwrap_or_default();
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            Ok(Some((text, start + end + 1)))
        }
        None if rest.len() > LINE_BYTES_MAX => Err(no_sense(rest)),
        None => Ok(None),
    }
}

/// Returns the first reply, and how many bytes it takes with what stands before it; none where more has to come.
///
/// # Errors
/// `Server` for what no server answers to the commands of a replica.
pub fn reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>> {
    nested(bytes, ARRAY_DEPTH_MAX)
}

fn nested(bytes: &[u8], depth: u32) -> Result<Option<(Reply, usize)>> {
    let Some((line, used)) = line(bytes)? else {
        return Ok(None);
    };
    match line.strip_prefix(b"*").zip(depth.checked_sub(1)) {
        Some((b"-1", _)) => Ok(Some((Reply::Bulk(None), used))),
        Some((digits, below)) => array(digits, bytes, used, below),
        None => single(bytes),
    }
}

fn array(
    digits: &[u8],
    bytes: &[u8],
    mut used: usize,
    below: u32,
) -> Result<Option<(Reply, usize)>> {
    let length = number(digits).and_then(|n| usize::try_from(n).ok());
    let length = length.filter(|n| *n <= ARRAY_LENGTH_MAX);
    let length = length.ok_or_else(|| no_sense(digits))?;
    let mut elements = Vec::new();
    for _ in 0..length {
        match nested(bytes.get(used..).unwrap_or_default(), below)? {
            Some((element, more)) => {
                elements.push(element);
                used += more;
            }
            None => return Ok(None),
        }
    }
    Ok(Some((Reply::Array(elements), used)))
}

fn single(bytes: &[u8]) -> Result<Option<(Reply, usize)>> {
    let Some((line, used)) = line(bytes)? else {
        return Ok(None);
    };
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    let reply = match line {
        [b'+' | b':', rest @ ..] => Reply::Line(text(rest)),
        [b'-', rest @ ..] => Reply::Error(text(rest)),
        b"$-1" => Reply::Bulk(None),
        [b'$', digits @ ..] => {
            let length = number(digits).and_then(|n| usize::try_from(n).ok());
            let length = length.filter(|n| *n <= BULK_BYTES_MAX);
            let length = length.ok_or_else(|| no_sense(line))?;
            let Some(found) = bytes.get(used..used + length + 2) else {
                return Ok(None);
            };
            let Some(content) = found.strip_suffix(b"\r\n") else {
                return Err(no_sense(line));
            };
            return Ok(Some((
                Reply::Bulk(Some(content.to_vec())),
                used + length + 2,
            )));
        }
        _ => return Err(no_sense(line)),
    };
    Ok(Some((reply, used)))
}

/// Reads `FULLRESYNC <replid> <offset>`; none of another answer.
pub fn full_resync(line: &str) -> Option<FullResync> {
    let mut words = line.split(' ');
    let (first, replid, offset) = (words.next()?, words.next()?, words.next()?);
    let is_replid = is_hex(replid, 40);
    (first == "FULLRESYNC" && is_replid && words.next().is_none()).then_some(FullResync {
        replid: replid.to_owned(),
        offset: number(offset.as_bytes())?,
    })
}

/// Reads the line before a transfer: `$<length>` or `$EOF:<mark>`; none of another line.
pub fn extent(line: &[u8]) -> Option<Extent> {
    let rest = line.strip_prefix(b"$")?;
    match rest.strip_prefix(b"EOF:") {
        Some(mark) => mark.try_into().ok().map(Extent::Mark),
        None => number(rest).map(Extent::Length),
    }
}

/// The error of an answer that is no RESP, or none that a server gives here.
pub fn no_sense(answer: &[u8]) -> crate::error::Error {
    let shown: String = answer.escape_ascii().to_string();
    let shown: String = shown.chars().take(SHOWN_CHARS).collect();
    err!(
        Server,
        "the server answers \"{shown}\", which no Redis or Valkey says here"
    )
    .hint("Check that address names a Redis or Valkey server, and that tls is configured where the server wants it.")
}

/// A number of digits alone: what `parse` takes besides is no server's.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        assert_eq!(
            command(&[b"PSYNC", b"?", b"-1"]),
            b"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n"
        );
    }

    #[test]
    fn replies_are_read_once_they_are_whole() {
        let whole: &[(&[u8], Reply)] = &[
            (b"+OK\r\n", Reply::Line("OK".into())),
            (b":12\r\n", Reply::Line("12".into())),
            (b"\n\n\n+OK\r\n", Reply::Line("OK".into())),
            (b"-NOPERM no\r\n", Reply::Error("NOPERM no".into())),
            (b"$-1\r\n", Reply::Bulk(None)),
            (b"$0\r\n\r\n", Reply::Bulk(Some(Vec::new()))),
            (b"$4\r\na\r\nb\r\n", Reply::Bulk(Some(b"a\r\nb".to_vec()))),
            (
                b"*2\r\n:0\r\n*1\r\n$1\r\nk\r\n",
                Reply::Array(vec![
                    Reply::Line("0".into()),
                    Reply::Array(vec![Reply::Bulk(Some(b"k".to_vec()))]),
                ]),
            ),
        ];
        for (bytes, expected) in whole {
            let followed = [bytes, &b"+next"[..]].concat();
            assert_eq!(
                reply(&followed).unwrap(),
                Some((expected.clone(), bytes.len()))
            );
            for end in 0..bytes.len() {
                assert_eq!(reply(&bytes[..end]).unwrap(), None, "{end} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"*1\r\n*1\r\n*1\r\n",
            b"*65537\r\n",
            b"$12345678901234567890\r\n",
            b"$99999999999\r\n",
            b"$+1\r\n",
            b"$1\r\nabc",
        ] {
            assert!(reply(bytes).is_err(), "{bytes:?}");
        }
        assert!(line(&[b'x'; LINE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn the_lines_around_a_transfer_are_read() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let found = full_resync(&format!("FULLRESYNC {id} 854")).unwrap();
        assert_eq!((found.replid.as_str(), found.offset), (id, 854));
        for odd in [
            format!("FULLRESYNC {id}"),
            format!("FULLRESYNC {} 1", id.to_uppercase()),
            format!("FULLRESYNC {id} -1"),
            format!("FULLRESYNC {id} 1 2"),
            format!("CONTINUE {id}"),
        ] {
            assert_eq!(full_resync(&odd), None, "{odd}");
        }
        assert_eq!(extent(b"$88"), Some(Extent::Length(88)));
        let marked = format!("$EOF:{id}");
        let mark: [u8; 40] = id.as_bytes().try_into().unwrap();
        assert_eq!(extent(marked.as_bytes()), Some(Extent::Mark(mark)));
        for odd in [&b"$EOF:short"[..], b"$", b"$-1", b"+OK", b""] {
            assert_eq!(extent(odd), None, "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = reply(&bytes);
            let _ = extent(&bytes);
            let _ = full_resync(&String::from_utf8_lossy(&bytes));
        }
    }
}
