//! The text files that frame a base backup: `backup_label`, `tablespace_map` and the backup history file.
//!
//! The text is bytes, not characters: a label may hold any encoding.
//!
//! PostgreSQL: src/backend/access/transam/xlogbackup.c (build_backup_content; 13–15 in xlog.c), xlogrecovery.c (read_backup_label,
//! read_tablespace_map; 13, 14 in xlog.c).

use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;

/// The most bytes that are read of any of these files: a map of 100 000 tablespaces is smaller.
pub const LABEL_FILE_SIZE_MAX: usize = 16 << 20;

/// A position with the name of the WAL file that PostgreSQL prints beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLocation {
    /// The position.
    pub lsn: Lsn,
    /// The file. For a stop LSN on a segment boundary it is the one *after* the last needed.
    pub file: SegmentName,
}

/// The content of `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Start LSN (the redo point of the start checkpoint) and its file.
    pub start: WalLocation,
    /// Position of the start checkpoint's record.
    pub checkpoint: Lsn,
    /// `streamed`; `pg_start_backup` for the exclusive backups of 13 and 14.
    pub method: Option<Vec<u8>>,
    /// Kind of server that it was taken from: `primary`, `standby`, or `master` (13).
    pub from: Option<Vec<u8>>,
    /// Start time in the server's own zone, as text.
    pub start_time: Option<Vec<u8>>,
    /// The label that was asked for.
    pub label: Option<Vec<u8>>,
    /// Timeline at the start; equals that of the file's name.
    pub start_timeline: Option<TimelineId>,
    /// Start LSN and timeline of the backup that this incremental one builds on (17+).
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

impl BackupLabel {
    /// Reads the file.
    ///
    /// # Errors
    /// `Damaged` where PostgreSQL refuses it too: the first two lines, line ends, a timeline that contradicts the file's name.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut lines = Lines::new("backup_label", bytes)?;
        let start = lines.location("START WAL LOCATION: ")?;
        let checkpoint = lines.lsn("CHECKPOINT LOCATION: ")?;
        let mut label = lines.middle(start, checkpoint)?;
        label.incremental_from = lines.incremental_from()?;
        lines.finish()?;
        label.checked()
    }

    /// Whether the backup was taken from a standby.
    pub fn from_standby(&self) -> bool {
        self.from.as_deref() == Some(b"standby")
    }

    /// Refuses the label of a file on another timeline than the one it names.
    fn checked(self) -> Result<BackupLabel> {
        if let Some(timeline) = self.start_timeline
            && timeline != self.start.file.timeline
        {
            return Err(err!(
                Damaged,
                "backup label names timeline {}, but file \"{}\"",
                timeline.get(),
                self.start.file
            ));
        }
        Ok(self)
    }
}

/// The content of a backup history file (`….backup`); only primaries write one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    /// The lines it shares with `backup_label`.
    pub label: BackupLabel,
    /// Stop LSN and its file; see [`WalLocation::file`].
    pub stop: WalLocation,
    /// Stop time in the server's own zone, as text.
    pub stop_time: Vec<u8>,
}

impl BackupHistory {
    /// Reads the file.
    ///
    /// # Errors
    /// `Damaged` if a line is missing or cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut lines = Lines::new("backup history file", bytes)?;
        let start = lines.location("START WAL LOCATION: ")?;
        let stop = lines.location("STOP WAL LOCATION: ")?;
        let checkpoint = lines.lsn("CHECKPOINT LOCATION: ")?;
        let mut label = lines.middle(start, checkpoint)?;
        let stop_time = lines.value("STOP TIME: ")?.to_vec();
        lines.timeline("STOP TIMELINE: ")?;
        label.incremental_from = lines.incremental_from()?;
        lines.finish()?;
        Ok(BackupHistory {
            label: label.checked()?,
            stop,
            stop_time,
        })
    }
}

/// One line of `tablespace_map`: a tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The tablespace's oid, the link's name under `pg_tblspc`.
    pub oid: u32,
    /// Target of the link.
    pub path: Vec<u8>,
}

/// Reads `tablespace_map`.
///
/// A backslash takes the next byte as it is; in 13 it does so only before a line break, and stands for itself elsewhere (seen on 13.23).
///
/// # Errors
/// `Damaged` if an oid is not a number, a path is empty or the last line does not end.
pub fn parse_tablespace_map(bytes: &[u8], major: Major) -> Result<Vec<TablespaceLink>> {
    let damaged = |what: &str| err!(Damaged, "invalid data in file \"tablespace_map\": {what}");
    check_size("tablespace_map", bytes)?;
    let (mut links, mut line, mut escaped) = (Vec::new(), Vec::new(), false);
    for &byte in bytes {
        match byte {
            // In 13 the backslash before was an ordinary one, and this byte is looked at afresh.
            _ if escaped && major == Major::V13 && !matches!(byte, b'\n' | b'\r') => {
                line.push(b'\\');
                escaped = byte == b'\\';
                if !escaped {
                    line.push(byte);
                }
            }
            _ if escaped => {
                line.push(byte);
                escaped = false;
            }
            b'\\' => escaped = true,
            b'\n' | b'\r' => {
                if !line.is_empty() {
                    links.push(
                        link(&line).ok_or_else(|| damaged("a line is not an oid and a path"))?,
                    );
                    line.clear();
                }
            }
            _ => line.push(byte),
        }
    }
    if escaped || !line.is_empty() {
        return Err(damaged("the last line does not end"));
    }
    Ok(links)
}

fn link(line: &[u8]) -> Option<TablespaceLink> {
    let blank = line.iter().position(|&byte| byte == b' ')?;
    let (oid, path) = (line.get(..blank)?, line.get(blank + 1..)?);
    (!path.is_empty()).then_some(TablespaceLink {
        oid: decimal(oid)?,
        path: path.to_vec(),
    })
}

/// A cursor over lines that each must end with `\n`.
struct Lines<'a> {
    file: &'static str,
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    fn new(file: &'static str, bytes: &'a [u8]) -> Result<Self> {
        check_size(file, bytes)?;
        Ok(Lines { file, rest: bytes })
    }

    fn damaged(&self, what: &str) -> Error {
        err!(
            Damaged,
            "invalid data in file \"{}\": {}",
            self.file,
            what.trim_end_matches([':', ' '])
        )
    }

    fn peek(&self, prefix: &str) -> bool {
        self.rest.starts_with(prefix.as_bytes())
    }

    fn optional(&mut self, prefix: &str) -> Option<Vec<u8>> {
        self.take(prefix).map(<[u8]>::to_vec)
    }

    fn take(&mut self, prefix: &str) -> Option<&'a [u8]> {
        let after = self.rest.strip_prefix(prefix.as_bytes())?;
        let end = after.iter().position(|&byte| byte == b'\n')?;
        self.rest = after.get(end + 1..)?;
        after.get(..end)
    }

    fn value(&mut self, prefix: &str) -> Result<&'a [u8]> {
        self.take(prefix).ok_or_else(|| self.damaged(prefix))
    }

    fn text(&mut self, prefix: &str) -> Result<&'a str> {
        let value = self.value(prefix)?;
        std::str::from_utf8(value).map_err(|_| self.damaged(prefix))
    }

    /// The label is the only free text, and may have any lines: it reaches to the last one of those that follow a label.
    fn label(&mut self) -> Option<Vec<u8>> {
        let after = self.rest.strip_prefix(b"LABEL: ")?;
        let next = b"\nSTART TIMELINE: ";
        let Some(end) = after.windows(next.len()).rposition(|window| window == next) else {
            return self.optional("LABEL: ");
        };
        self.rest = after.get(end + 1..)?;
        after.get(..end).map(<[u8]>::to_vec)
    }

    /// The lines that stand in both files, the first two taken already.
    fn middle(&mut self, start: WalLocation, checkpoint: Lsn) -> Result<BackupLabel> {
        Ok(BackupLabel {
            start,
            checkpoint,
            method: self.optional("BACKUP METHOD: "),
            from: self.optional("BACKUP FROM: "),
            start_time: self.optional("START TIME: "),
            label: self.label(),
            start_timeline: match self.peek("START TIMELINE: ") {
                true => Some(self.timeline("START TIMELINE: ")?),
                false => None,
            },
            incremental_from: None,
        })
    }

    fn lsn(&mut self, prefix: &str) -> Result<Lsn> {
        let text = self.text(prefix)?;
        text.parse().map_err(|_| self.damaged(prefix))
    }

    fn timeline(&mut self, prefix: &str) -> Result<TimelineId> {
        let value = self.value(prefix)?;
        decimal(value)
            .and_then(TimelineId::new)
            .ok_or_else(|| self.damaged(prefix))
    }

    fn location(&mut self, prefix: &str) -> Result<WalLocation> {
        let text = self.text(prefix)?;
        let parse = || {
            let (lsn, file) = text.strip_suffix(')')?.split_once(" (file ")?;
            Some(WalLocation {
                lsn: lsn.parse().ok()?,
                file: file.parse().ok()?,
            })
        };
        parse().ok_or_else(|| self.damaged(prefix))
    }

    fn incremental_from(&mut self) -> Result<Option<(Lsn, TimelineId)>> {
        if !self.peek("INCREMENTAL FROM LSN: ") {
            return Ok(None);
        }
        let lsn = self.lsn("INCREMENTAL FROM LSN: ")?;
        Ok(Some((lsn, self.timeline("INCREMENTAL FROM TLI: ")?)))
    }

    fn finish(self) -> Result<()> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(self.damaged("a line that is not known")),
        }
    }
}

fn check_size(file: &str, bytes: &[u8]) -> Result<()> {
    match bytes.len() > LABEL_FILE_SIZE_MAX {
        true => Err(err!(
            Damaged,
            "file \"{file}\" has {} bytes, which is too long",
            bytes.len()
        )),
        false => Ok(()),
    }
}

fn decimal(digits: &[u8]) -> Option<u32> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-20 07:01:58 UTC\nLABEL: nightly: full\nSTART TIMELINE: 1\n";

    #[test]
    fn label_is_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!(label.start.lsn, Lsn(0x200_0028));
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(label.label.as_deref(), Some(&b"nightly: full"[..]));
        assert_eq!(label.start.file.to_string(), "000000010000000000000002");
        assert_eq!(label.method.as_deref(), Some(&b"streamed"[..]));
        assert_eq!(label.from.as_deref(), Some(&b"primary"[..]));
        let start_time = b"2026-11-20 07:01:58 UTC";
        assert_eq!(label.start_time.as_deref(), Some(&start_time[..]));
        assert_eq!(label.start_timeline, Some(TimelineId::FIRST));
        assert_eq!(label.incremental_from, None);
        assert!(!label.from_standby());

        let incremental =
            format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(incremental.as_bytes()).unwrap();
        assert_eq!(
            label.incremental_from,
            Some((Lsn(0x100_0028), TimelineId::FIRST))
        );
    }

    #[test]
    fn label_with_line_breaks_is_kept_whole() {
        let lines = "two\nSTART TIMELINE: 9\nSTOP TIME: then\nlines\n";
        let text = LABEL.replace("nightly: full", lines);
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(label.label.as_deref(), Some(lines.as_bytes()));
        assert_eq!(label.start_timeline, Some(TimelineId::FIRST));
    }

    #[test]
    fn damaged_labels_are_refused() {
        for text in [
            String::new(),
            LABEL.replace('\n', "\r\n"),
            LABEL.replace("0/2000028", "02000028"),
            LABEL.replace("START TIMELINE: 1", "START TIMELINE: 2"),
            LABEL.replace("CHECKPOINT LOCATION", "CHECKPOINT"),
            LABEL.replace("000000010000000000000002", "00000001000000000000002"),
            format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\n"),
            format!("{LABEL}more\n"),
        ] {
            assert!(BackupLabel::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(BackupLabel::parse(LABEL.trim_end().as_bytes()).is_err());
    }

    #[test]
    fn history_file_is_read() {
        let text = "START WAL LOCATION: 0/9000028 (file 000000010000000000000009)\n\
            STOP WAL LOCATION: 0/9000138 (file 000000010000000000000009)\nCHECKPOINT LOCATION: 0/9000060\n\
            BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-20 07:01:58 UTC\nLABEL: x\n\
            START TIMELINE: 1\nSTOP TIME: 2026-11-20 07:01:59 UTC\nSTOP TIMELINE: 1\n";
        let history = BackupHistory::parse(text.as_bytes()).unwrap();
        assert_eq!(history.stop.lsn, Lsn(0x900_0138));
        assert_eq!(history.stop.file.to_string(), "000000010000000000000009");
        assert_eq!(history.stop_time, b"2026-11-20 07:01:59 UTC");
        assert_eq!(history.label.label.as_deref(), Some(&b"x"[..]));
        assert!(BackupHistory::parse(LABEL.as_bytes()).is_err());
    }

    #[test]
    fn tablespace_paths_are_escaped() {
        let text = b"16384 /srv/a b\n4294967295 /odd\\\\name\\\nline\\\r\n";
        let links = parse_tablespace_map(text, Major::V17).unwrap();
        let read: Vec<(u32, &[u8])> = links.iter().map(|l| (l.oid, &l.path[..])).collect();
        assert_eq!(
            read,
            [(16384, &b"/srv/a b"[..]), (u32::MAX, b"/odd\\name\nline\r")]
        );
        let thirteen = parse_tablespace_map(b"7 /a\\b\\\\\\\nc\n", Major::V13).unwrap();
        assert_eq!(thirteen[0].path, b"/a\\b\\\\\nc");
        for bad in [
            "16384 /a",
            "x /a\n",
            "16384\n",
            "16384 \n",
            "99999999999 /a\n",
            "1 /a\\",
        ] {
            assert!(
                parse_tablespace_map(bad.as_bytes(), Major::V17).is_err(),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..200) {
            let _ = BackupLabel::parse(&bytes);
            let _ = BackupHistory::parse(&bytes);
            let mut text = LABEL.as_bytes()[..cut.min(LABEL.len())].to_vec();
            text.extend_from_slice(&bytes);
            let _ = BackupLabel::parse(&text);
            let _ = parse_tablespace_map(&bytes, Major::V17);
        }
    }
}
