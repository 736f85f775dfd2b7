//! Tar archives as a server streams them: entries out of pieces of any size, without ever holding more than one header.
//!
//! Understands what PostgreSQL writes (ustar; sizes above 8 GiB in GNU base-256) and what its own reader accepts. Every header's
//! checksum is verified, every name has to stay below the directory that it is extracted to. Other kinds of members (hard links,
//! devices, long-name and pax headers) are refused: no server sends them.
//!
//! PostgreSQL: src/port/tar.c (tarCreateHeader, read_tar_number), src/backend/backup/basebackup.c.

use bytes::{Buf, Bytes};

use crate::err;
use crate::error::{Error, Result};
use crate::pg::manifest::is_safe_relative_path;
use crate::pg::zeros::is_zero;

/// Headers and the padding of content come in blocks of this size.
pub const TAR_BLOCK_SIZE: usize = 512;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Relative path without `..` and without a slash at the end.
    pub path: Vec<u8>,
    /// The kind of the member.
    pub kind: TarKind,
    /// Permission bits, at most 07777.
    pub mode: u32,
    /// Modification time in Unix seconds.
    pub mtime: i64,
}

/// The kind of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarKind {
    /// A regular file; its content follows.
    File {
        /// Size in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// The target of the link: any path, never empty.
        target: Vec<u8>,
    },
}

/// An event from reading an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarEvent {
    /// A member begins. Directories and links consist of this alone.
    Entry(TarEntry),
    /// Content of the file that began last; never empty.
    Data(Bytes),
    /// The file that began last is complete.
    EntryEnd,
}

/// Reads one archive.
pub struct TarReader {
    state: State,
    header: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Content {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    /// One block of zeros has been read; the end if another follows.
    OneZeroBlock,
    /// Behind the two blocks of zeros; nothing but zeros may follow.
    End,
}

impl Default for TarReader {
    fn default() -> Self {
        TarReader::new()
    }
}

impl TarReader {
    /// Begins an archive.
    pub fn new() -> Self {
        TarReader {
            state: State::Header,
            header: Vec::with_capacity(TAR_BLOCK_SIZE),
        }
    }

    /// Takes from `input` what the next event needs; `None` once `input` is used up.
    ///
    /// # Errors
    /// `Damaged` if this is not a tar archive or a name leaves the directory; `Unsupported` for a kind of member that no server sends.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<TarEvent>> {
        loop {
            match self.state {
                State::Content { left: 0, padding } => {
                    self.state = State::Padding { left: padding };
                    return Ok(Some(TarEvent::EntryEnd));
                }
                State::Padding { left: 0 } => self.state = State::Header,
                _ if input.is_empty() => return Ok(None),
                State::Content { left, padding } => {
                    let data = input.split_to(at_most(left, input.len()));
                    self.state = State::Content {
                        left: left - data.len() as u64,
                        padding,
                    };
                    return Ok(Some(TarEvent::Data(data)));
                }
                State::Padding { left } => {
                    let skipped = at_most(left, input.len());
                    input.advance(skipped);
                    self.state = State::Padding {
                        left: left - skipped as u64,
                    };
                }
                State::End => {
                    if input.iter().any(|&byte| byte != 0) {
                        return Err(damaged("something follows its end"));
                    }
                    input.clear();
                }
                State::Header | State::OneZeroBlock => {
                    if let Some(entry) = self.header(input)? {
                        return Ok(Some(TarEvent::Entry(entry)));
                    }
                }
            }
        }
    }

    /// Ends the archive. The two blocks of zeros may be missing: 13 and 14 do not send them.
    ///
    /// # Errors
    /// `Damaged` if it ends within a member.
    pub fn finish(self) -> Result<()> {
        match self.state {
            State::Header | State::OneZeroBlock | State::End if self.header.is_empty() => Ok(()),
            State::Padding { left: 0 } => Ok(()),
            _ => Err(damaged("it ends within a member")),
        }
    }

    /// Collects a header; `None` if it is not whole yet or marks the end.
    fn header(&mut self, input: &mut Bytes) -> Result<Option<TarEntry>> {
        let wanted = TAR_BLOCK_SIZE - self.header.len();
        let part = input.split_to(wanted.min(input.len()));
        self.header.extend_from_slice(&part);
        let Ok(header) = <[u8; TAR_BLOCK_SIZE]>::try_from(self.header.as_slice()) else {
            return Ok(None);
        };
        self.header.clear();
        if is_zero(&header) {
            self.state = if self.state == State::OneZeroBlock {
                State::End
            } else {
                State::OneZeroBlock
            };
            return Ok(None);
        }
        if self.state == State::OneZeroBlock {
            return Err(damaged("a block of zeros stands before a member"));
        }
        let entry = parse(&header)?;
        if let TarKind::File { size } = entry.kind {
            let block = TAR_BLOCK_SIZE as u64;
            self.state = State::Content {
                left: size,
                padding: (block - size % block) % block,
            };
        }
        Ok(Some(entry))
    }
}

fn at_most(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

fn damaged(what: &str) -> Error {
    err!(Damaged, "tar archive cannot be read: {what}")
}

fn parse(header: &[u8; TAR_BLOCK_SIZE]) -> Result<TarEntry> {
    let stored =
        number(field(header, 148, 8)).ok_or_else(|| damaged("a header's checksum is no number"))?;
    if stored != checksum(header) {
        return Err(damaged("a header's checksum does not fit"));
    }
    let path = path(header)?;
    let name = || path.escape_ascii().to_string();
    let get = |offset, length, what: &str| {
        number(field(header, offset, length)).ok_or_else(|| {
            damaged(&format!(
                "member \"{}\" has no {what} that can be read",
                name()
            ))
        })
    };
    let mode = get(100, 8, "mode")?;
    let size = get(124, 12, "size")?;
    let mtime = get(136, 12, "time")?;
    let kind = match header.get(156).copied().unwrap_or_default() {
        b'0' | 0 => TarKind::File { size },
        b'5' => TarKind::Directory,
        b'2' => TarKind::Symlink {
            target: text(field(header, 157, 100)).to_vec(),
        },
        other => {
            return Err(err!(
                Unsupported,
                "tar member \"{}\" is of kind \"{}\", which is not supported",
                name(),
                other.escape_ascii()
            ));
        }
    };
    if !matches!(kind, TarKind::File { .. }) && size != 0 {
        return Err(damaged(&format!(
            "member \"{}\" has content, but is no file",
            name()
        )));
    }
    if matches!(&kind, TarKind::Symlink { target } if target.is_empty()) {
        return Err(damaged(&format!("link \"{}\" has no target", name())));
    }
    Ok(TarEntry {
        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
        mtime: i64::try_from(mtime)
            .map_err(|_| damaged(&format!("member \"{}\" is from too far a future", name())))?,
        path,
        kind,
    })
}

/// The sum of all bytes, with blanks for the sum itself.
fn checksum(header: &[u8; TAR_BLOCK_SIZE]) -> u64 {
    let all: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    let own: u64 = field(header, 148, 8)
        .iter()
        .map(|&byte| u64::from(byte))
        .sum();
    all - own + 8 * u64::from(b' ')
}

fn path(header: &[u8; TAR_BLOCK_SIZE]) -> Result<Vec<u8>> {
    let name = text(field(header, 0, 100));
    // Only POSIX archives keep the beginning of a long name apart; GNU uses the place for something else.
    let prefix = if field(header, 257, 6) == b"ustar\0" {
        text(field(header, 345, 155))
    } else {
        b""
    };
    let mut path = prefix.to_vec();
    if !prefix.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.strip_suffix(b"/").unwrap_or(name));
    // Servers send "./pg_wal/archive_status", and everything else without the dot.
    let path = path.strip_prefix(b"./").map(<[u8]>::to_vec).unwrap_or(path);
    match is_safe_relative_path(&path) {
        true => Ok(path),
        false => Err(damaged(&format!(
            "path \"{}\" does not stay below its directory",
            path.escape_ascii()
        ))),
    }
}

fn field(header: &[u8; TAR_BLOCK_SIZE], offset: usize, length: usize) -> &[u8] {
    header.get(offset..offset + length).unwrap_or_default()
}

/// A text up to its NUL or the end of its field.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number: octal digits with blanks around, or base-256 after a byte 0x80. `None` for negative and too large ones.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => rest.iter().try_fold(0u64, |value, &byte| {
            (value >> 56 == 0).then(|| value << 8 | u64::from(byte))
        }),
        _ => {
            let digits = text(field).trim_ascii();
            digits.iter().try_fold(0u64, |value, &byte| {
                let digit = matches!(byte, b'0'..=b'7').then(|| u64::from(byte - b'0'))?;
                (value >> 61 == 0).then_some(value << 3 | digit)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn header(name: &str, kind: u8, size: u64, target: &str) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000600 ");
        if size < 1 << 33 {
            block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
        } else {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
        block[136..148].copy_from_slice(format!("{:011o} ", 1_800_000_000).as_bytes());
        block[156] = kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }

    fn seal(block: &mut [u8]) {
        let sum = checksum((&*block).try_into().unwrap());
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn file(name: &str, content: &[u8]) -> Vec<u8> {
        let mut out = header(name, b'0', content.len() as u64, "");
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    /// Names, contents and targets of an archive that comes in pieces of `piece` bytes.
    fn read(bytes: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let (mut reader, mut found, mut open) = (TarReader::new(), Vec::new(), false);
        for chunk in bytes.chunks(piece) {
            let mut input = Bytes::copy_from_slice(chunk);
            while let Some(event) = reader.next(&mut input)? {
                match event {
                    TarEvent::Entry(entry) => {
                        assert!(!open);
                        open = matches!(entry.kind, TarKind::File { .. });
                        let target = match entry.kind {
                            TarKind::Symlink { target } => target,
                            _ => Vec::new(),
                        };
                        found.push((String::from_utf8(entry.path).unwrap_or_default(), target));
                    }
                    TarEvent::Data(data) => found.last_mut().unwrap().1.extend_from_slice(&data),
                    TarEvent::EntryEnd => open = false,
                }
            }
        }
        reader.finish().map(|()| found)
    }

    fn sample(trailer: usize) -> Vec<u8> {
        let mut bytes = file("backup_label", b"hello");
        bytes.extend(header("base/", b'5', 0, ""));
        bytes.extend(file("base/empty", b""));
        bytes.extend(file("base/block", &[7; 512]));
        bytes.extend(header("pg_tblspc/16384", b'2', 0, "/srv/ts"));
        bytes.extend(file("base/long", &[9; 1300]));
        bytes.resize(bytes.len() + trailer, 0);
        bytes
    }

    #[test]
    fn members_are_read_whatever_the_pieces_and_the_trailer() {
        for trailer in [0, 1024, 10_240] {
            for piece in [1, 3, 511, 512, 513, 4096, 1 << 20] {
                let found = read(&sample(trailer), piece).unwrap();
                let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(
                    names,
                    [
                        "backup_label",
                        "base",
                        "base/empty",
                        "base/block",
                        "pg_tblspc/16384",
                        "base/long"
                    ]
                );
                assert_eq!(found[0].1, b"hello");
                assert_eq!(found[3].1, [7; 512]);
                assert_eq!(found[4].1, b"/srv/ts");
                assert_eq!(found[5].1, [9; 1300]);
            }
        }
    }

    #[test]
    fn sizes_above_8_gib_are_read() {
        let mut reader = TarReader::new();
        let mut input = Bytes::from(header("big", b'0', (5 << 33) + 1, ""));
        match reader.next(&mut input).unwrap() {
            Some(TarEvent::Entry(entry)) => assert_eq!(
                entry.kind,
                TarKind::File {
                    size: (5 << 33) + 1
                }
            ),
            other => panic!("{other:?}"),
        }
        assert!(reader.finish().is_err());
    }

    #[test]
    fn z03_hostile_archives_are_refused() {
        let code = |bytes: &[u8]| read(bytes, 4096).unwrap_err().code();
        for name in [
            "../x",
            "/etc/passwd",
            "a/../b",
            "././a",
            "./",
            "./../a",
            "a//b",
            "",
            "/",
            "..",
            "a/.",
        ] {
            assert_eq!(code(&header(name, b'0', 0, "")), Code::Damaged, "{name}");
        }
        for kind in [b'1', b'3', b'L', b'x', b'g', 0xff] {
            assert_eq!(code(&header("a", kind, 0, "")), Code::Unsupported);
        }
        assert_eq!(code(&header("a", b'2', 0, "")), Code::Damaged);
        assert_eq!(code(&header("a", b'5', 10, "")), Code::Damaged);
        let bytes = sample(1024);
        for cut in 1..bytes.len() - 1024 {
            let boundary = [1024, 1536, 2048, 3072, 3584].contains(&cut);
            assert_eq!(read(&bytes[..cut], 4096).is_ok(), boundary, "{cut}");
        }
        let mut flipped = bytes.clone();
        flipped[20] ^= 1;
        assert_eq!(code(&flipped), Code::Damaged);
        let mut negative = header("a", b'0', 0, "");
        negative[124..136].fill(0xff);
        seal(&mut negative);
        assert_eq!(code(&negative), Code::Damaged);
        let mut hidden = vec![0; 512];
        hidden.extend(&bytes);
        assert_eq!(code(&hidden), Code::Damaged);
        let mut more = bytes.clone();
        more.extend(file("more", b""));
        assert_eq!(code(&more), Code::Damaged);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..1500), sealed: bool, piece in 1usize..900) {
            if sealed && noise.len() >= 512 {
                seal(&mut noise[..512]);
            }
            let _ = read(&noise, piece);
        }
    }
}
