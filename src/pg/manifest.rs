//! PostgreSQL's own `backup_manifest`, read as a stream: one file at a time, in the file's own order, with bounded memory.
//!
//! The reader checks what the manifest can prove about itself: its shape, and its SHA-256, which covers every byte before the key
//! `"Manifest-Checksum"`. That checksum stands at the very end, so nothing that was read is proven before [`ManifestReader::finish`].
//!
//! Limits against hostile input: a string has at most 64 KiB, there are at most 65536 WAL ranges, and the nesting is the fixed one of
//! the format (a recursive parser is not used).
//!
//! [`ManifestWriter`] writes one, for a backup of which the server gave none.
//!
//! PostgreSQL: src/backend/backup/backup_manifest.c, src/common/parse_manifest.c, doc/src/sgml/backup-manifest.sgml.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::text::{hex, unhex};

/// The longest string in bytes, quotes and escapes included.
const STRING_SIZE_MAX: usize = 64 << 10;
const BUFFER_SIZE: usize = 2 * STRING_SIZE_MAX;
const WAL_RANGE_COUNT_MAX: usize = 65_536;
/// Name and bytes of each.
const SHA: [(&str, usize); 4] = [
    ("SHA224", 28),
    ("SHA256", 32),
    ("SHA384", 48),
    ("SHA512", 64),
];

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path below the data directory (`pg_tblspc/<oid>/…` in tablespaces), as the bytes on disk. Relative, without `..`.
    pub path: Vec<u8>,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, as text (`2026-11-20 07:01:58 GMT`).
    pub last_modified: String,
    /// Checksum of the content, unless the backup was taken without.
    pub checksum: Option<FileChecksum>,
}

/// A checksum of a file's content.
#[derive(Clone, PartialEq, Eq)]
pub enum FileChecksum {
    /// CRC-32C, PostgreSQL's default. The text holds its four bytes in memory order: little-endian on the machines we read.
    Crc32c(u32),
    /// One of the SHA-2 family, with its name.
    Sha(&'static str, Vec<u8>),
}

impl fmt::Debug for FileChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileChecksum::Crc32c(crc) => write!(f, "CRC32C {crc:08x}"),
            FileChecksum::Sha(name, bytes) => write!(f, "{name} {}", hex(bytes)),
        }
    }
}

impl FileChecksum {
    fn parse(algorithm: &str, digits: &str) -> Option<Self> {
        let bytes = unhex(digits)?;
        if algorithm == "CRC32C" {
            let crc = bytes.try_into().ok()?;
            return Some(FileChecksum::Crc32c(u32::from_le_bytes(crc)));
        }
        let (name, _) = SHA
            .into_iter()
            .find(|(name, size)| *name == algorithm && *size == bytes.len())?;
        Some(FileChecksum::Sha(name, bytes))
    }
}

/// WAL that the backup needs, on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    pub timeline: TimelineId,
    /// The first position needed.
    pub start: Lsn,
    /// The position behind the last needed.
    pub end: Lsn,
}

/// The content of a manifest besides its files; proven, because its checksum fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEnd {
    /// 1 (13–16) or 2 (17 and later).
    pub version: u32,
    /// The cluster's identity; version 2 only.
    pub system_identifier: Option<u64>,
    /// The WAL needed, timelines in increasing order.
    pub wal_ranges: Vec<WalRange>,
    /// How many files were listed.
    pub file_count: u64,
    /// The manifest's own SHA-256.
    pub checksum: [u8; 32],
}

/// Whether a path from a server stays below the directory it is put in: relative, no empty, `.` or `..` component, no NUL.
pub fn is_safe_relative_path(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .all(|part| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0))
}

/// Reads a manifest from any reader.
///
/// ```no_run
/// # use pitr::pg::manifest::ManifestReader;
/// # fn main() -> pitr::error::Result<()> {
/// let mut manifest = ManifestReader::new(std::io::empty());
/// while let Some(file) = manifest.next_file()? {
///     let _ = (file.path, file.size);
/// }
/// let proven = manifest.finish()?;
/// # Ok(()) }
/// ```
pub struct ManifestReader<R> {
    input: Tokens<R>,
    place: Place,
    version: Option<u32>,
    system_identifier: Option<u64>,
    wal_ranges: Vec<WalRange>,
    file_count: u64,
    files_seen: bool,
    checksum: Option<[u8; 32]>,
}

/// The place of the reader between two calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    /// Behind a top-level value.
    BetweenKeys,
    /// In the array of files; `true` before its first.
    InFiles {
        first: bool,
    },
    End,
}

impl<R: Read> ManifestReader<R> {
    /// Starts reading; nothing is read before the first [`ManifestReader::next_file`].
    pub fn new(input: R) -> Self {
        ManifestReader {
            input: Tokens::new(input),
            place: Place::Start,
            version: None,
            system_identifier: None,
            wal_ranges: Vec::new(),
            file_count: 0,
            files_seen: false,
            checksum: None,
        }
    }

    /// Returns the next file, or `None` behind the last.
    ///
    /// # Errors
    /// `Damaged` if this is not a manifest, `Unsupported` for a version other than 1 and 2, an I/O code if reading fails. After an
    /// error the reader is of no more use.
    pub fn next_file(&mut self) -> Result<Option<ManifestFile>> {
        loop {
            match self.place {
                Place::Start => {
                    self.input.expect(b'{')?;
                    let key = self.input.top_level_key()?;
                    self.top_level(&key)?;
                }
                Place::BetweenKeys => match self.input.next()? {
                    Token::Mark(b',') => {
                        let key = self.input.top_level_key()?;
                        self.top_level(&key)?;
                    }
                    Token::Mark(b'}') => self.place = Place::End,
                    other => return Err(unexpected(&other)),
                },
                Place::InFiles { first } => {
                    if let Some(file) = self.file(first)? {
                        return Ok(Some(file));
                    }
                }
                Place::End => return Ok(None),
            }
        }
    }

    /// Reads what is left (further files are checked for shape and counted), and proves the whole by its checksum.
    ///
    /// # Errors
    /// Those of [`ManifestReader::next_file`]; `Damaged` if the checksum does not fit or anything follows the manifest.
    pub fn finish(mut self) -> Result<ManifestEnd> {
        while self.next_file()?.is_some() {}
        self.input.end_of_input()?;
        let computed = self.input.digest();
        let stored = self.checksum.ok_or_else(|| damaged("it has no checksum"))?;
        if stored != computed {
            return Err(damaged("its checksum does not fit its content"));
        }
        if !self.files_seen {
            return Err(damaged("it has no list of files"));
        }
        let version = self.version.ok_or_else(|| damaged("it has no version"))?;
        if version == 2 && self.system_identifier.is_none() {
            return Err(damaged("it has no system identifier"));
        }
        Ok(ManifestEnd {
            version,
            system_identifier: self.system_identifier,
            wal_ranges: self.wal_ranges,
            file_count: self.file_count,
            checksum: stored,
        })
    }

    /// Reads the value of a top-level key; of `Files` only its beginning.
    fn top_level(&mut self, key: &str) -> Result<()> {
        if self.checksum.is_some() {
            return Err(damaged("a key follows its checksum"));
        }
        self.place = Place::BetweenKeys;
        match key {
            "PostgreSQL-Backup-Manifest-Version" if self.version.is_none() => {
                let version = self.input.number()?;
                if !(1..=2).contains(&version) {
                    return Err(err!(
                        Unsupported,
                        "backup manifest version {version} is not 1 or 2"
                    ));
                }
                self.version = u32::try_from(version).ok();
            }
            "System-Identifier" if self.system_identifier.is_none() => {
                self.system_identifier = Some(self.input.number()?);
            }
            "Files" if !self.files_seen => {
                self.input.expect(b'[')?;
                self.files_seen = true;
                self.place = Place::InFiles { first: true };
            }
            "WAL-Ranges" if self.wal_ranges.is_empty() => self.wal_ranges()?,
            "Manifest-Checksum" => {
                let text = self.input.string()?;
                let bytes = unhex(&text).and_then(|bytes| bytes.try_into().ok());
                self.checksum = Some(
                    bytes.ok_or_else(|| damaged("its checksum is not 64 hexadecimal digits"))?,
                );
            }
            _ => {
                return Err(damaged(&format!(
                    "key \"{}\" is not known or stands twice",
                    key.escape_debug()
                )));
            }
        }
        Ok(())
    }

    /// The next element of the list of files, or `None` at its end.
    fn file(&mut self, first: bool) -> Result<Option<ManifestFile>> {
        if !self.input.element(first)? {
            self.place = Place::BetweenKeys;
            return Ok(None);
        }
        self.place = Place::InFiles { first: false };
        let mut fields = FileFields::default();
        self.input.members(|key, input| fields.read(key, input))?;
        self.file_count += 1;
        fields.into_file().map(Some)
    }

    fn wal_ranges(&mut self) -> Result<()> {
        self.input.expect(b'[')?;
        while self.input.element(self.wal_ranges.is_empty())? {
            let (mut timeline, mut start, mut end) = (None, None, None);
            self.input.members(|key, input| {
                match key {
                    "Timeline" => timeline = timeline_id(input.number()?),
                    "Start-LSN" => start = input.string()?.parse::<Lsn>().ok(),
                    "End-LSN" => end = input.string()?.parse::<Lsn>().ok(),
                    _ => return Err(damaged("a WAL range has a key that is not known")),
                }
                Ok(())
            })?;
            let (Some(timeline), Some(start), Some(end)) = (timeline, start, end) else {
                return Err(damaged("a WAL range is incomplete"));
            };
            if self.wal_ranges.len() >= WAL_RANGE_COUNT_MAX {
                return Err(damaged("it has too many WAL ranges"));
            }
            self.wal_ranges.push(WalRange {
                timeline,
                start,
                end,
            });
        }
        Ok(())
    }
}

#[derive(Default)]
struct FileFields {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    last_modified: Option<String>,
    algorithm: Option<String>,
    checksum: Option<String>,
}

impl FileFields {
    fn read<R: Read>(&mut self, key: &str, input: &mut Tokens<R>) -> Result<()> {
        let twice = match key {
            "Path" => self.path.replace(input.string()?.into_bytes()).is_some(),
            "Encoded-Path" => {
                let bytes = unhex(&input.string()?);
                let bytes = bytes.ok_or_else(|| damaged("an encoded path is not hexadecimal"))?;
                self.path.replace(bytes).is_some()
            }
            "Size" => self.size.replace(input.number()?).is_some(),
            "Last-Modified" => self.last_modified.replace(input.string()?).is_some(),
            "Checksum-Algorithm" => self.algorithm.replace(input.string()?).is_some(),
            "Checksum" => self.checksum.replace(input.string()?).is_some(),
            _ => return Err(damaged("a file has a key that is not known")),
        };
        match twice {
            true => Err(damaged("a file has a key twice")),
            false => Ok(()),
        }
    }

    fn into_file(self) -> Result<ManifestFile> {
        let (Some(path), Some(size)) = (self.path, self.size) else {
            return Err(damaged("a file has no path or no size"));
        };
        let name = || path.escape_ascii().to_string();
        if !is_safe_relative_path(&path) {
            return Err(damaged(&format!(
                "path \"{}\" does not stay below the data directory",
                name()
            )));
        }
        let checksum = match (self.algorithm, self.checksum) {
            (None, None) => None,
            (Some(algorithm), Some(hex)) => {
                Some(FileChecksum::parse(&algorithm, &hex).ok_or_else(|| {
                    damaged(&format!(
                        "the checksum of file \"{}\" cannot be read",
                        name()
                    ))
                })?)
            }
            _ => return Err(damaged(&format!("file \"{}\" has half a checksum", name()))),
        };
        Ok(ManifestFile {
            path,
            size,
            last_modified: self.last_modified.unwrap_or_default(),
            checksum,
        })
    }
}

/// Writes a manifest, file by file.
pub struct ManifestWriter<W: Write> {
    output: W,
    hasher: Sha256,
    is_first: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins the manifest of a cluster of this major: from 17 on it names the cluster.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn new(output: W, major: Major, system_identifier: u64) -> io::Result<Self> {
        let mut writer = ManifestWriter {
            output,
            hasher: Sha256::new(),
            is_first: true,
        };
        let identity = match major >= Major::V17 {
            true => format!("2,\n\"System-Identifier\": {system_identifier}"),
            false => "1".to_owned(),
        };
        writer.put(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": {identity},\n\"Files\": ["
        ))?;
        Ok(writer)
    }

    /// Adds a file with its time in Unix seconds.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn file(&mut self, path: &[u8], size: u64, mtime: i64, crc: u32) -> io::Result<()> {
        let path = match std::str::from_utf8(path) {
            Ok(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(path)),
        };
        let time = TimestampTz::from_unix_seconds(mtime).and_then(TimestampTz::civil);
        let time = time.map_or_else(String::new, |c| {
            let (hour, minute, second) = (c.hour, c.minute, c.second);
            format!(
                "{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} GMT",
                c.year, c.month, c.day
            )
        });
        let comma = if self.is_first { "" } else { "," };
        self.is_first = false;
        self.put(&format!(
            "{comma}\n{{ {path}, \"Size\": {size}, \"Last-Modified\": \"{time}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            hex(&crc.to_le_bytes())
        ))
    }

    /// Ends the manifest with the WAL that the backup needs.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn finish(mut self, wal: &WalRange) -> io::Result<W> {
        self.put(&format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
            wal.timeline.get(),
            wal.start,
            wal.end
        ))?;
        let checksum = hex(&self.hasher.clone().finalize());
        self.put(&format!("\"Manifest-Checksum\": \"{checksum}\"}}\n"))?;
        Ok(self.output)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hasher.update(text);
        self.output.write_all(text.as_bytes())
    }
}

fn timeline_id(number: u64) -> Option<TimelineId> {
    TimelineId::new(u32::try_from(number).ok()?)
}

fn damaged(what: &str) -> Error {
    err!(Damaged, "backup manifest cannot be read: {what}")
}

fn unexpected(token: &Token) -> Error {
    let what: &str = match token {
        Token::Mark(mark) => &format!("\"{}\"", char::from(*mark)),
        Token::Text(_) => "a string",
        Token::Number(_) => "a number",
    };
    damaged(&format!("{what} stands at the wrong place"))
}

#[derive(PartialEq, Eq)]
enum Token {
    /// One of `{}[]:,`.
    Mark(u8),
    Text(String),
    Number(u64),
}

/// The JSON of a manifest as tokens, over a buffer of fixed size, with the SHA-256 of what was read.
struct Tokens<R> {
    input: R,
    buffer: Vec<u8>,
    /// Unread bytes are `buffer[at..end]`.
    at: usize,
    end: usize,
    /// Bytes before this index are in `sha` already; never behind `at` while it moves on.
    hashed: usize,
    sha: Sha256,
    sealed: bool,
}

impl<R: Read> Tokens<R> {
    fn new(input: R) -> Self {
        Tokens {
            input,
            buffer: vec![0; BUFFER_SIZE],
            at: 0,
            end: 0,
            hashed: 0,
            sha: Sha256::new(),
            sealed: false,
        }
    }

    /// Brings everything before `at` into the digest.
    fn hash(&mut self) {
        if !self.sealed {
            self.sha
                .update(self.buffer.get(self.hashed..self.at).unwrap_or_default());
        }
        self.hashed = self.at;
    }

    fn digest(&mut self) -> [u8; 32] {
        std::mem::take(&mut self.sha).finalize().into()
    }

    /// Reads more behind the unread bytes; `false` at the end of input.
    fn refill(&mut self) -> Result<bool> {
        self.hash();
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        (self.at, self.hashed) = (0, 0);
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        if free.is_empty() {
            return Err(damaged("a string is too long"));
        }
        loop {
            match self.input.read(free) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io("read backup manifest", error)),
            }
        }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.at..self.end).unwrap_or_default()
    }

    /// The next byte that is not white space, unread; `None` at the end of input.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let unread = self.unread();
            let blank = unread
                .iter()
                .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
                .count();
            let next = unread.get(blank).copied();
            self.at += blank;
            if next.is_some() {
                return Ok(next);
            }
            if !self.refill()? {
                return Ok(None);
            }
        }
    }

    fn next(&mut self) -> Result<Token> {
        let byte = self.peek()?.ok_or_else(|| damaged("it ends too early"))?;
        match byte {
            b'"' => return self.read_string().map(Token::Text),
            b'0'..=b'9' => return self.read_number().map(Token::Number),
            b'{' | b'}' | b'[' | b']' | b':' | b',' => {}
            _ => return Err(damaged("it is not JSON")),
        }
        self.at += 1;
        Ok(Token::Mark(byte))
    }

    /// The next `count` bytes that satisfy `end` being found: returns the length up to and including the end.
    fn scan(&mut self, mut end: impl FnMut(u8) -> bool, inclusive: usize) -> Result<usize> {
        let mut length = 0;
        loop {
            if let Some(found) = self
                .unread()
                .iter()
                .skip(length)
                .position(|&byte| end(byte))
            {
                return Ok(length + found + inclusive);
            }
            length = self.unread().len();
            if length > STRING_SIZE_MAX {
                return Err(damaged("a string is too long"));
            }
            if !self.refill()? {
                return Err(damaged("it ends too early"));
            }
        }
    }

    fn read_string(&mut self) -> Result<String> {
        let (mut quotes, mut escaped) = (0, false);
        let closing = move |byte: u8| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quotes += 1,
                _ => {}
            }
            quotes == 2
        };
        let length = self.scan(closing, 1)?;
        if length > STRING_SIZE_MAX {
            return Err(damaged("a string is too long"));
        }
        let raw = self.unread().get(..length).unwrap_or_default();
        let text = serde_json::from_slice(raw)
            .map_err(|error| damaged("a string is not valid").source(error))?;
        self.at += length;
        Ok(text)
    }

    fn read_number(&mut self) -> Result<u64> {
        let length = self.scan(|byte| !byte.is_ascii_digit(), 0)?;
        let digits = self.unread().get(..length).unwrap_or_default();
        let number = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok());
        self.at += length;
        number.ok_or_else(|| damaged("a number is too large"))
    }

    fn expect(&mut self, mark: u8) -> Result<()> {
        match self.next()? {
            Token::Mark(found) if found == mark => Ok(()),
            token => Err(unexpected(&token)),
        }
    }

    fn string(&mut self) -> Result<String> {
        match self.next()? {
            Token::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    fn number(&mut self) -> Result<u64> {
        match self.next()? {
            Token::Number(number) => Ok(number),
            other => Err(unexpected(&other)),
        }
    }

    /// A key of the outermost object, with its colon. The digest ends before the key of the checksum.
    fn top_level_key(&mut self) -> Result<String> {
        self.peek()?;
        self.hash();
        let key = self.string()?;
        if key == "Manifest-Checksum" {
            self.sealed = true;
        }
        self.expect(b':')?;
        Ok(key)
    }

    /// Whether the array has one more element, of which the opening brace is read.
    fn element(&mut self, first: bool) -> Result<bool> {
        let mut token = self.next()?;
        if !first && token == Token::Mark(b',') {
            token = self.next()?;
            if token == Token::Mark(b']') {
                return Err(unexpected(&token));
            }
        } else if !first && token != Token::Mark(b']') {
            return Err(unexpected(&token));
        }
        match token {
            Token::Mark(b'{') => Ok(true),
            Token::Mark(b']') => Ok(false),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads the rest of an object; `read` takes the value of each key.
    fn members(&mut self, mut read: impl FnMut(&str, &mut Self) -> Result<()>) -> Result<()> {
        let mut first = true;
        loop {
            let key = match (self.next()?, first) {
                (Token::Mark(b'}'), _) => return Ok(()),
                (Token::Text(key), true) => key,
                (Token::Mark(b','), false) => self.string()?,
                (other, _) => return Err(unexpected(&other)),
            };
            self.expect(b':')?;
            read(&key, self)?;
            first = false;
        }
    }

    fn end_of_input(&mut self) -> Result<()> {
        match self.peek()? {
            None => Ok(()),
            Some(_) => Err(damaged("something follows its end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    /// Hands out the input in pieces of `piece` bytes, so that tokens cross the edges of the buffer.
    struct Pieces<'a> {
        rest: &'a [u8],
        piece: usize,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let count = self.piece.min(out.len()).min(self.rest.len());
            let (now, later) = self.rest.split_at(count);
            out[..count].copy_from_slice(now);
            self.rest = later;
            Ok(count)
        }
    }

    fn sealed(body: &str) -> Vec<u8> {
        let digest: [u8; 32] = Sha256::digest(body).into();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{hex}\"}}\n").into_bytes()
    }

    fn sample() -> String {
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 18446744073709551615,\n\"Files\": [\n\
         { \"Path\": \"backup_label\", \"Size\": 204, \"Last-Modified\": \"2026-11-20 07:01:58 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"670d52bb\" },\n\
         { \"Encoded-Path\": \"62617365ff\", \"Size\": 0, \"Last-Modified\": \"2026-11-20 07:01:58 GMT\" },\n\
         { \"Path\": \"a \\\"q\\\" \\u00e4\", \"Size\": 9, \"Last-Modified\": \"x\" }\n\
         ],\n\"WAL-Ranges\": [\n{ \"Timeline\": 2, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000120\" }\n],\n"
            .to_owned()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<(Vec<ManifestFile>, ManifestEnd)> {
        let mut reader = ManifestReader::new(Pieces { rest: bytes, piece });
        let mut files = Vec::new();
        while let Some(file) = reader.next_file()? {
            files.push(file);
        }
        Ok((files, reader.finish()?))
    }

    #[test]
    fn manifest_is_read_in_its_order_whatever_the_pieces() {
        let bytes = sealed(&sample());
        for piece in [1, 2, 3, 7, 64, 100_000] {
            let (files, end) = read(&bytes, piece).unwrap();
            assert_eq!(files.len(), 3);
            assert_eq!(files[0].path, b"backup_label");
            assert_eq!(files[0].checksum, Some(FileChecksum::Crc32c(0xbb52_0d67)));
            assert_eq!(files[1].path.as_slice(), &b"base\xff"[..]);
            assert_eq!(&files[1].checksum, &None);
            assert_eq!(files[2].path, "a \"q\" ä".as_bytes());
            assert_eq!(end.system_identifier, Some(u64::MAX));
            assert_eq!((end.version, end.file_count), (2, 3));
            let range = WalRange {
                timeline: TimelineId::new(2).unwrap(),
                start: Lsn(0x200_0028),
                end: Lsn(0x200_0120),
            };
            assert_eq!(end.wal_ranges, [range]);
        }
    }

    #[test]
    fn finish_alone_proves_the_whole() {
        let bytes = sealed(&sample());
        assert_eq!(
            ManifestReader::new(bytes.as_slice())
                .finish()
                .unwrap()
                .file_count,
            3
        );
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let bytes = sealed(&sample());
        for at in 0..bytes.len() - 1 {
            let mut copy = bytes.clone();
            copy[at] ^= 0x02;
            assert!(read(&copy, 4096).is_err(), "byte {at}");
            assert!(read(&bytes[..at], 4096).is_err(), "cut at {at}");
        }
        let mut more = bytes.clone();
        more.extend_from_slice(b"{}");
        assert!(read(&more, 4096).is_err());
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let body = sample();
        for (from, to) in [
            ("backup_label", "../etc/passwd"),
            ("backup_label", "/etc/passwd"),
            ("backup_label", "a//b"),
            ("backup_label", "a\\u0000b"),
            ("670d52bb", "670d52b"),
            ("670d52bb", "670d52bbaa"),
            ("CRC32C", "CRC32"),
            ("\"Size\": 204", "\"Size\": 99999999999999999999999"),
            ("\"Size\": 204", "\"Size\": -1"),
            ("\"Size\": 204", "\"Size\": [[[[[[[["),
            ("\"Size\": 204, ", ""),
            ("\"Size\": 204", "\"Size\": 204, \"Size\": 204"),
            (" },\n{ \"Enc", " }\n{ \"Enc"),
            ("\"WAL-Ranges\"", "\"Files\""),
            ("\"WAL-Ranges\"", "\"Other\""),
        ] {
            assert!(body.contains(from), "{from}");
            let code = read(&sealed(&body.replacen(from, to, 1)), 4096)
                .unwrap_err()
                .code();
            assert_eq!(code, Code::Damaged, "{to}");
        }
        let newer = sealed(&body.replacen("Version\": 2", "Version\": 3", 1));
        assert_eq!(read(&newer, 4096).unwrap_err().code(), Code::Unsupported);
        let long = "x".repeat(STRING_SIZE_MAX);
        assert!(read(&sealed(&body.replacen("backup_label", &long, 1)), 4096).is_err());
        let endless = std::io::repeat(b'x');
        let start: &[u8] = b"{ \"PostgreSQL";
        assert!(ManifestReader::new(start.chain(endless)).finish().is_err());
        let blank: &[u8] = b"[[[[";
        assert!(ManifestReader::new(blank).finish().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..700, piece in 1usize..200
        ) {
            let mut bytes = sealed(&sample());
            let at = at.min(bytes.len());
            bytes.splice(at..at, noise);
            let _ = read(&bytes, piece);
        }
    }
}
