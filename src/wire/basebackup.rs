//! `BASE_BACKUP` of every major as one stream of files.
//!
//! The majors differ in the command and in how archives are wrapped into messages; callers see one order of events on all of them:
//!
//! `Begin` · for each archive `Archive`, then its members (`Entry`, for a file `Data`* and `EntryEnd`) · `Manifest`* · `End`
//!
//! `End` comes only after the server has said that the command is complete: the stop LSN is known earlier, but an error may follow it.
//! One of these errors is an answer: when pages failed their checksum, all data has been sent, and the backup is complete but damaged.
//!
//! PostgreSQL: src/backend/backup/basebackup.c, basebackup_copy.c (13, 14: src/backend/replication/basebackup.c); repl_gram.y.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Buf, Bytes};
use postgres_protocol::message::backend::Message;

use super::client::{Answer, Client, Rows, command_failed, report};
use super::server_error::{DATA_CORRUPTED, ServerMessage, protocol};
use super::tar::{TarEntry, TarEvent, TarKind, TarReader};
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;

/// How many warnings of the server are kept; a badly damaged cluster sends five for each file.
const WARNING_COUNT_MAX: usize = 10_000;
/// The longest label in bytes (PostgreSQL: MAXPGPATH - 1).
const LABEL_SIZE_MAX: usize = 1023;

/// How the checkpoint at the start is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartCheckpoint {
    /// As fast as possible.
    Fast,
    /// Spread over the time that the server's settings give it.
    Spread,
}

/// The options of a base backup.
#[derive(Debug, Clone)]
pub struct BaseBackupOptions {
    /// The label, one line of at most 1023 bytes.
    pub label: String,
    pub checkpoint: StartCheckpoint,
    /// Whether sizes are estimated first, which costs a scan of the data directory.
    pub estimate_size: bool,
    /// Limit of the transfer in KiB per second, 32 to 1048576.
    pub max_rate_kib_per_s: Option<u32>,
}

impl BaseBackupOptions {
    /// The command for a server of this major.
    ///
    /// The manifest is asked for with its default CRC-32C checksums, the server's check of pages stays on, the server does not wait for
    /// archiving, and links of tablespaces come as members instead of a file `tablespace_map`.
    ///
    /// # Errors
    /// `Usage` for a label or rate that the server would refuse.
    fn command(&self, major: Major) -> Result<String> {
        if self.label.len() > LABEL_SIZE_MAX || self.label.chars().any(char::is_control) {
            return Err(err!(
                Usage,
                "backup label is longer than {LABEL_SIZE_MAX} bytes or has a control character"
            ));
        }
        if let Some(rate) = self.max_rate_kib_per_s
            && !(32..=1_048_576).contains(&rate)
        {
            return Err(err!(
                Usage,
                "maximum rate of {rate} KiB/s is not between 32 KiB/s and 1 GiB/s"
            ));
        }
        // The scanner of replication commands knows doubled quotes and takes a backslash as it is.
        let label = self.label.replace('\'', "''");
        let rate = self
            .max_rate_kib_per_s
            .map(|rate| format!("MAX_RATE {rate}"));
        let mut options = vec![format!("LABEL '{label}'")];
        options.extend(self.estimate_size.then(|| "PROGRESS".to_owned()));
        let fast = self.checkpoint == StartCheckpoint::Fast;
        if major <= Major::V14 {
            options.extend(fast.then(|| "FAST".to_owned()));
            options.push("NOWAIT".to_owned());
            options.extend(rate);
            options.push("MANIFEST 'yes'".to_owned());
            return Ok(format!("BASE_BACKUP {}", options.join(" ")));
        }
        options.push(format!(
            "CHECKPOINT '{}'",
            if fast { "fast" } else { "spread" }
        ));
        options.push("WAIT false".to_owned());
        options.extend(rate);
        options.push("MANIFEST 'yes'".to_owned());
        Ok(format!("BASE_BACKUP ({})", options.join(", ")))
    }
}

/// How a backup begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// Start LSN: the redo point of the start checkpoint.
    pub start_lsn: Lsn,
    /// The timeline at the start.
    pub timeline: TimelineId,
    /// Estimated size of the data directory without tablespaces, if asked for.
    pub base_size_kib: Option<u64>,
    /// Tablespaces outside the data directory (15+: also those inside it).
    pub tablespaces: Vec<Tablespace>,
}

impl BackupStart {
    /// The estimated size of everything, if asked for.
    pub fn size_kib(&self) -> Option<u64> {
        self.tablespaces
            .iter()
            .try_fold(self.base_size_kib?, |sum, tablespace| {
                sum.checked_add(tablespace.size_kib?)
            })
    }
}

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    /// The path on the server. A relative path (`pg_tblspc/<oid>`) is a plain directory inside the data directory.
    pub location: Vec<u8>,
    /// Estimated size, if asked for.
    pub size_kib: Option<u64>,
}

/// How a backup ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEnd {
    /// Stop LSN: WAL up to here is needed.
    pub stop_lsn: Lsn,
    /// The timeline at the end.
    pub timeline: TimelineId,
    /// Whether the server found pages whose checksum fails: everything was sent, but some of it is damaged.
    pub checksum_failure: bool,
    /// The server's warnings, in order; with a checksum failure they name files and blocks.
    pub warnings: Vec<String>,
}

/// One step of a backup; see the module head for the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The start checkpoint is done.
    Begin(BackupStart),
    /// An archive begins.
    Archive {
        /// The tablespace it holds; `None` for the data directory.
        tablespace: Option<u32>,
    },
    /// A member begins. Paths are those of the manifest: below the data directory, `pg_tblspc/<oid>/…` for tablespaces.
    Entry(TarEntry),
    /// Content of the file that began last.
    Data(Bytes),
    /// The file that began last is complete.
    EntryEnd,
    /// A piece of the server's manifest.
    Manifest(Bytes),
    /// The backup is complete.
    End(BackupEnd),
}

/// A base backup that is being received. Dropping it hangs up, which ends the backup on the server.
pub struct BaseBackup {
    client: Client,
    command: String,
    /// Whether archives come wrapped (15+) or one by one.
    wrapped: bool,
    phase: Phase,
    answer: Answer,
    /// The first of the two result sets at the start.
    start: Option<(Lsn, TimelineId)>,
    archives: VecDeque<Option<u32>>,
    tar: Option<OpenArchive>,
    /// Bytes of the present archive that have not been looked at.
    unread: Bytes,
    manifest_seen: bool,
    links: BTreeSet<Vec<u8>>,
    stop: Option<(Lsn, TimelineId)>,
    checksum_failure: bool,
    warnings: Vec<String>,
}

/// The part of the backup that the next messages belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Two result sets: the start LSN, the tablespaces.
    Start,
    /// A copy has to begin.
    BeforeCopy,
    /// Inside a copy.
    Copy {
        manifest: bool,
    },
    /// The result set with the stop LSN, then the end of the command.
    Stop,
    Finished,
}

struct OpenArchive {
    reader: TarReader,
    /// The prefix of its paths.
    prefix: Vec<u8>,
}

impl BaseBackup {
    /// Asks for a backup. The first event comes once the checkpoint at the start is done.
    ///
    /// # Errors
    /// `Usage` for options that the server would refuse, `Unsupported` for a server newer than this program; `Unreachable`.
    pub async fn start(mut client: Client, options: &BaseBackupOptions) -> Result<BaseBackup> {
        let major = client.major()?;
        let command = options.command(major)?;
        client.send_command(&command).await?;
        Ok(BaseBackup {
            client,
            command,
            wrapped: major >= Major::V15,
            phase: Phase::Start,
            answer: Answer::default(),
            start: None,
            archives: VecDeque::new(),
            tar: None,
            unread: Bytes::new(),
            manifest_seen: false,
            links: BTreeSet::new(),
            stop: None,
            checksum_failure: false,
            warnings: Vec::new(),
        })
    }

    /// The server's process, where it says so.
    pub fn pid(&self) -> Option<i32> {
        self.client.pid()
    }

    /// Returns the next event; `None` after `End`. It may be dropped at its await and called again.
    ///
    /// Nothing is read ahead of the caller beyond one message, so a slow caller slows the server.
    ///
    /// # Errors
    /// `Server` (or `Denied`) if the server ends the backup with an error or breaks the protocol; `Damaged` if an archive cannot be
    /// read; `Unreachable` if the connection is lost. The backup is then worth nothing.
    pub async fn next_event(&mut self) -> Result<Option<BackupEvent>> {
        loop {
            if let Some(event) = self.next_member()? {
                return Ok(Some(event));
            }
            if self.phase == Phase::Finished {
                return Ok(None);
            }
            let message = self.client.wire.receive().await?;
            if let Some(event) = self.accept(message)? {
                return Ok(Some(event));
            }
        }
    }

    /// Gives the connection back after `End`; earlier it is closed instead.
    pub fn into_client(self) -> Option<Client> {
        (self.phase == Phase::Finished).then_some(self.client)
    }

    /// The next event out of the bytes at hand.
    fn next_member(&mut self) -> Result<Option<BackupEvent>> {
        let Some(archive) = &mut self.tar else {
            return Ok(None);
        };
        Ok(match archive.reader.next(&mut self.unread)? {
            None => None,
            Some(TarEvent::Data(data)) => Some(BackupEvent::Data(data)),
            Some(TarEvent::EntryEnd) => Some(BackupEvent::EntryEnd),
            Some(TarEvent::Entry(entry)) => Some(BackupEvent::Entry(placed(
                entry,
                &archive.prefix,
                &mut self.links,
            )?)),
        })
    }

    fn accept(&mut self, message: Message) -> Result<Option<BackupEvent>> {
        match (message, self.phase) {
            (Message::NoticeResponse(body), _) => self.notice(&ServerMessage::read(body.fields())),
            (Message::ParameterStatus(_), _) => {}
            (Message::ErrorResponse(body), phase) => {
                let error = ServerMessage::read(body.fields());
                // All data, the manifest and the stop LSN are here: the verdict on the pages is an answer, not a failure.
                if phase != Phase::Stop
                    || self.stop.is_none()
                    || error.sqlstate != DATA_CORRUPTED
                    || self.checksum_failure
                {
                    return Err(command_failed(error, &self.command));
                }
                self.checksum_failure = true;
                self.notice(&ServerMessage {
                    severity: "WARNING".to_owned(),
                    ..error
                });
            }
            (Message::RowDescription(body), Phase::Start | Phase::Stop) => {
                self.answer.describe(&body)?;
            }
            (Message::DataRow(body), Phase::Start | Phase::Stop) => self.answer.add(&body)?,
            (Message::CommandComplete(_), Phase::Start) => return self.start_answer(),
            (Message::CommandComplete(_), Phase::Stop) => {
                let rows = std::mem::take(&mut self.answer).into_rows();
                if self.stop.is_none() {
                    self.stop = Some((rows.value(0, 0)?, rows.timeline(0, 1)?));
                }
            }
            (Message::CopyOutResponse(_), Phase::BeforeCopy) => return self.begin_copy(),
            (Message::CopyData(body), Phase::Copy { manifest }) if self.wrapped => {
                return self.wrapped_data(body.into_bytes(), manifest);
            }
            (Message::CopyData(body), Phase::Copy { manifest }) => {
                return self.data(body.into_bytes(), manifest);
            }
            (Message::CopyDone, Phase::Copy { .. }) => self.end_copy()?,
            (Message::ReadyForQuery(_), Phase::Stop) => return self.finish().map(Some),
            _ => {
                return Err(protocol(
                    "a message does not belong to a base backup at this point",
                ));
            }
        }
        Ok(None)
    }

    fn notice(&mut self, notice: &ServerMessage) {
        report(self.client.progress.as_ref(), notice);
        if notice.severity == "WARNING" && self.warnings.len() < WARNING_COUNT_MAX {
            self.warnings.push(notice.to_string());
        }
    }

    fn start_answer(&mut self) -> Result<Option<BackupEvent>> {
        let rows = std::mem::take(&mut self.answer).into_rows();
        let Some((start_lsn, timeline)) = self.start else {
            self.start = Some((rows.value(0, 0)?, rows.timeline(0, 1)?));
            return Ok(None);
        };
        let start = self.tablespaces(&rows, start_lsn, timeline)?;
        self.phase = Phase::BeforeCopy;
        Ok(Some(BackupEvent::Begin(start)))
    }

    fn tablespaces(
        &mut self,
        rows: &Rows,
        start_lsn: Lsn,
        timeline: TimelineId,
    ) -> Result<BackupStart> {
        let mut start = BackupStart {
            start_lsn,
            timeline,
            base_size_kib: None,
            tablespaces: Vec::new(),
        };
        for (index, row) in rows.rows.iter().enumerate() {
            let size_kib = match rows.text(index, 2)? {
                None => None,
                Some(_) => u64::try_from(rows.value::<i64>(index, 2)?).ok(),
            };
            if rows.text(index, 0)?.is_none() {
                start.base_size_kib = size_kib;
                self.archives.push_back(None);
                continue;
            }
            let oid = rows.value(index, 0)?;
            let location = row
                .get(1)
                .cloned()
                .flatten()
                .ok_or_else(|| protocol("a tablespace has no location"))?;
            start.tablespaces.push(Tablespace {
                oid,
                location: location.to_vec(),
                size_kib,
            });
            self.archives.push_back(Some(oid));
        }
        let distinct: BTreeSet<_> = self.archives.iter().collect();
        if distinct.len() != self.archives.len() || !distinct.contains(&None) {
            return Err(protocol(
                "the list of tablespaces is not complete or names one twice",
            ));
        }
        Ok(start)
    }

    /// A copy begins: the one that holds everything, or (13, 14) that of the next archive in the list, and of the manifest at last.
    fn begin_copy(&mut self) -> Result<Option<BackupEvent>> {
        self.phase = Phase::Copy { manifest: false };
        if self.wrapped {
            return Ok(None);
        }
        match self.archives.pop_front() {
            Some(tablespace) => Ok(Some(self.open_archive(tablespace))),
            None => {
                self.phase = Phase::Copy { manifest: true };
                self.manifest_seen = true;
                Ok(None)
            }
        }
    }

    fn end_copy(&mut self) -> Result<()> {
        self.close_archive()?;
        if self.wrapped && !(self.archives.is_empty() && self.manifest_seen) {
            return Err(protocol("an archive or the manifest is missing"));
        }
        self.phase = if self.manifest_seen {
            Phase::Stop
        } else {
            Phase::BeforeCopy
        };
        Ok(())
    }

    fn open_archive(&mut self, tablespace: Option<u32>) -> BackupEvent {
        let prefix = tablespace
            .map(|oid| format!("pg_tblspc/{oid}/").into_bytes())
            .unwrap_or_default();
        self.tar = Some(OpenArchive {
            reader: TarReader::new(),
            prefix,
        });
        BackupEvent::Archive { tablespace }
    }

    fn close_archive(&mut self) -> Result<()> {
        match self.tar.take() {
            Some(archive) => archive.reader.finish(),
            None => Ok(()),
        }
    }

    /// One message of the copy of 15+: its first byte tells what it is.
    fn wrapped_data(&mut self, mut bytes: Bytes, manifest: bool) -> Result<Option<BackupEvent>> {
        let kind = bytes
            .try_get_u8()
            .map_err(|error| protocol("an empty message in a base backup").source(error))?;
        match kind {
            b'd' => self.data(bytes, manifest),
            b'n' if !manifest => {
                self.close_archive()?;
                let tablespace = archive_name(&bytes)?;
                let known = self
                    .archives
                    .iter()
                    .position(|archive| *archive == tablespace);
                known
                    .and_then(|at| self.archives.remove(at))
                    .ok_or_else(|| protocol("an archive was not announced or comes twice"))?;
                Ok(Some(self.open_archive(tablespace)))
            }
            b'm' if !manifest => {
                self.close_archive()?;
                self.phase = Phase::Copy { manifest: true };
                self.manifest_seen = true;
                Ok(None)
            }
            // Progress: how much of the archive is done. We count ourselves.
            b'p' => Ok(None),
            _ => Err(protocol("a message of a base backup has an unknown kind")),
        }
    }

    fn data(&mut self, bytes: Bytes, manifest: bool) -> Result<Option<BackupEvent>> {
        if manifest {
            return Ok((!bytes.is_empty()).then_some(BackupEvent::Manifest(bytes)));
        }
        if self.tar.is_none() {
            return Err(protocol("data of a base backup belongs to no archive"));
        }
        self.unread = bytes;
        Ok(None)
    }

    fn finish(&mut self) -> Result<BackupEvent> {
        let (stop_lsn, timeline) = self
            .stop
            .ok_or_else(|| protocol("a base backup ended without a stop LSN"))?;
        self.phase = Phase::Finished;
        self.client.busy = false;
        Ok(BackupEvent::End(BackupEnd {
            stop_lsn,
            timeline,
            checksum_failure: self.checksum_failure,
            warnings: std::mem::take(&mut self.warnings),
        }))
    }
}

/// Puts a member at its place below the data directory.
///
/// Links exist only as `pg_tblspc/<name>`, and nothing may lie under one: otherwise a member could be written through a link to
/// anywhere.
fn placed(mut entry: TarEntry, prefix: &[u8], links: &mut BTreeSet<Vec<u8>>) -> Result<TarEntry> {
    let in_tablespace = !prefix.is_empty();
    if in_tablespace {
        entry.path.splice(0..0, prefix.iter().copied());
    } else if let Some(name) = entry.path.strip_prefix(b"pg_tblspc/") {
        let first = name.split(|&byte| byte == b'/').next().unwrap_or_default();
        if matches!(entry.kind, TarKind::Symlink { .. }) && first.len() == name.len() {
            links.insert(name.to_vec());
            return Ok(entry);
        }
        if links.contains(first) {
            return Err(protocol(&format!(
                "member \"{}\" lies under a link",
                entry.path.escape_ascii()
            )));
        }
    }
    match entry.kind {
        TarKind::Symlink { .. } => Err(protocol(&format!(
            "link \"{}\" is not one of a tablespace",
            entry.path.escape_ascii()
        ))),
        _ => Ok(entry),
    }
}

/// `base.tar` or `<oid>.tar`, NUL, the tablespace's path, NUL.
fn archive_name(bytes: &[u8]) -> Result<Option<u32>> {
    let name = bytes
        .split(|&byte| byte == 0)
        .next()
        .and_then(|name| name.strip_suffix(b".tar"));
    match name {
        Some(b"base") => Ok(None),
        Some(oid) if oid.iter().all(u8::is_ascii_digit) => {
            let oid = std::str::from_utf8(oid)
                .ok()
                .and_then(|oid| oid.parse().ok());
            oid.map(Some)
                .ok_or_else(|| protocol("the name of an archive"))
        }
        _ => Err(protocol("the name of an archive")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Error};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn options() -> BaseBackupOptions {
        BaseBackupOptions {
            label: "it's".into(),
            checkpoint: StartCheckpoint::Fast,
            estimate_size: true,
            max_rate_kib_per_s: Some(32),
        }
    }

    #[test]
    fn command_has_the_syntax_of_each_major() {
        let old = "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 32 MANIFEST 'yes'";
        let new = "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MAX_RATE 32, MANIFEST 'yes')";
        for major in Major::ALL {
            let wanted = if major <= Major::V14 { old } else { new };
            assert_eq!(options().command(major).unwrap(), wanted);
        }
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_before() {
        let code = |change: fn(&mut BaseBackupOptions)| {
            let mut options = options();
            change(&mut options);
            options.command(Major::V17).unwrap_err().code()
        };
        assert_eq!(code(|o| o.label = "two\nlines".into()), Code::Usage);
        assert_eq!(code(|o| o.label = "x".repeat(1024)), Code::Usage);
        assert_eq!(code(|o| o.max_rate_kib_per_s = Some(31)), Code::Usage);
        assert_eq!(
            code(|o| o.max_rate_kib_per_s = Some(1_048_577)),
            Code::Usage
        );
    }

    #[test]
    fn members_cannot_be_written_through_links() {
        let entry = |path: &str, kind: TarKind| TarEntry {
            path: path.into(),
            kind,
            mode: 0o600,
            mtime: 0,
        };
        let link = |path: &str| {
            entry(
                path,
                TarKind::Symlink {
                    target: b"/srv".to_vec(),
                },
            )
        };
        let file = |path: &str| entry(path, TarKind::File { size: 0 });
        let mut links = BTreeSet::new();
        placed(file("pg_tblspc/7/early"), b"", &mut links).unwrap();
        placed(link("pg_tblspc/16384"), b"", &mut links).unwrap();
        for bad in [
            link("base"),
            link("pg_tblspc/1/2"),
            file("pg_tblspc/16384/x"),
            file("pg_tblspc/16384"),
        ] {
            assert!(placed(bad, b"", &mut links).is_err());
        }
        assert!(placed(link("x"), b"pg_tblspc/16384/", &mut links).is_err());
        let moved = placed(file("PG_15_202209061/5/1"), b"pg_tblspc/16384/", &mut links).unwrap();
        assert_eq!(moved.path, b"pg_tblspc/16384/PG_15_202209061/5/1");
    }

    #[test]
    fn archives_are_named_by_oid() {
        assert_eq!(archive_name(b"base.tar\0\0").unwrap(), None);
        assert_eq!(archive_name(b"16384.tar\0/srv\0").unwrap(), Some(16384));
        for bad in [
            &b""[..],
            b"base.tar.gz\0\0",
            b".tar\0",
            b"99999999999.tar\0",
            b"+1.tar\0",
            b"../x.tar\0",
        ] {
            assert!(archive_name(bad).is_err());
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn rows(columns: &[&str], rows: &[&[Option<&str>]]) -> Vec<u8> {
        let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
        let mut description = count.to_vec();
        for name in columns {
            description.extend_from_slice(name.as_bytes());
            description.extend_from_slice(&[0; 19]);
        }
        let mut out = message(b'T', &description);
        for row in rows {
            let mut body = count.to_vec();
            for value in *row {
                let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(value.unwrap_or_default().as_bytes());
            }
            out.extend(message(b'D', &body));
        }
        out.extend(message(b'C', b"SELECT\0"));
        out
    }

    fn tar(name: &str, size: usize) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000600");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000000001");
        block[156] = b'0';
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.resize(512 + size.next_multiple_of(512), b'x');
        block
    }

    /// A whole backup as a server of `major` sends it; its end is `last`.
    fn script(major: u32, last: &[u8]) -> Vec<u8> {
        let position = |lsn| rows(&["recptr", "tli"], &[&[Some(lsn), Some("1")]]);
        let mut out = position("0/2000028");
        let spaces: [&[Option<&str>]; 2] =
            [&[Some("16384"), Some("/srv"), None], &[None, None, None]];
        out.extend(rows(&["spcoid", "spclocation", "size"], &spaces));
        let copy = message(b'H', &[0, 0, 0]);
        let notice = message(b'N', b"SWARNING\0VWARNING\0C01000\0Mlook out\0\0");
        if major < 15 {
            for archive in [tar("PG_VERSION", 3), tar("base/1/1", 700)] {
                out.extend([&copy[..], &message(b'd', &archive), &message(b'c', b"")].concat());
            }
            out.extend(
                [
                    &copy[..],
                    &message(b'd', b"{manifest}"),
                    &notice,
                    &message(b'c', b""),
                ]
                .concat(),
            );
        } else {
            out.extend_from_slice(&copy);
            let tar = |name: &str, size| [b"d".to_vec(), tar(name, size)].concat();
            for body in [
                &b"n16384.tar\0/srv\0"[..],
                &tar("PG_VERSION", 3),
                b"p\0\0\0\0\0\0\0\x01",
                b"nbase.tar\0\0",
                &tar("base/1/1", 700),
                b"m",
                b"d{manifest}",
            ] {
                out.extend(message(b'd', body));
            }
            out.extend([&notice[..], &message(b'c', b"")].concat());
        }
        out.extend(position("0/2000120"));
        out.extend_from_slice(last);
        out
    }

    fn complete() -> Vec<u8> {
        [message(b'C', b"BASE_BACKUP\0"), message(b'Z', b"I")].concat()
    }

    fn failure(sqlstate: &str) -> Vec<u8> {
        let error = format!("SERROR\0VERROR\0C{sqlstate}\0Mno\0\0");
        [message(b'E', error.as_bytes()), message(b'Z', b"I")].concat()
    }

    /// The events out of what a server sends before it hangs up.
    fn play(major: u32, bytes: Vec<u8>) -> std::result::Result<Vec<BackupEvent>, Error> {
        let runtime = crate::wire::runtime::start().unwrap();
        runtime.block_on(async {
            let (mut server, client) = UnixStream::pair().unwrap();
            let mut backup =
                BaseBackup::start(Client::on(client, major * 10_000), &options()).await?;
            server
                .read_buf(&mut Vec::with_capacity(1000))
                .await
                .unwrap();
            let sender = tokio::spawn(async move {
                let _ = server.write_all(&bytes).await;
            });
            let mut events = Vec::new();
            while let Some(event) = backup.next_event().await? {
                events.push(event);
            }
            sender.await.unwrap();
            Ok(events)
        })
    }

    #[test]
    fn events_have_one_order_on_every_major() {
        let mut seen = Vec::new();
        for major in [13, 15] {
            let events = play(major, script(major, &complete())).unwrap();
            assert!(
                matches!(&events[0], BackupEvent::Begin(start) if start.tablespaces[0].oid == 16384)
            );
            assert_eq!(
                events[1],
                BackupEvent::Archive {
                    tablespace: Some(16384)
                }
            );
            assert!(
                matches!(&events[2], BackupEvent::Entry(entry) if entry.path == b"pg_tblspc/16384/PG_VERSION")
            );
            match events.last().unwrap() {
                BackupEvent::End(end) => {
                    assert_eq!((end.stop_lsn, end.warnings.len()), (Lsn(0x200_0120), 1));
                }
                other => panic!("{other:?}"),
            }
            seen.push(events);
        }
        assert_eq!(seen[0], seen[1]);
    }

    #[test]
    fn only_the_verdict_on_pages_may_follow_the_stop_lsn() {
        for major in [13, 15] {
            let events = play(major, script(major, &failure("XX001"))).unwrap();
            assert!(
                matches!(events.last(), Some(BackupEvent::End(end)) if end.checksum_failure && end.warnings.len() == 2)
            );
            let error = play(major, script(major, &failure("55000"))).unwrap_err();
            assert_eq!(error.code(), Code::Server);
            let whole = script(major, &complete());
            for cut in 0..whole.len() {
                assert!(play(major, whole[..cut].to_vec()).is_err(), "{cut}");
            }
        }
        // The same error earlier is a failure.
        let early = [
            rows(&["recptr", "tli"], &[&[Some("0/1"), Some("1")]]),
            failure("XX001"),
        ]
        .concat();
        assert_eq!(play(15, early).unwrap_err().code(), Code::Server);
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_server_are_read_without_a_panic(
            major in 13u32..=18, at in 0usize..4000, noise in proptest::collection::vec(any::<u8>(), 0..20), cut in 0usize..20
        ) {
            let mut bytes = script(major, &complete());
            let at = at % bytes.len();
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, noise);
            let _ = play(major, bytes);
        }
    }
}
