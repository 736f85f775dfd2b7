//! The data directory that a WAL file belongs to, as far as its files tell: identity, guard, recovery state.
//!
//! It is the lexical parent of the directory of `%p`, never the working directory: pg_rewind runs restore_command from elsewhere, and
//! pg_wal may be a link.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::pid_file::PidFile;
use super::server_conf;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::control::{ControlFile, ControlHead};
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::timeline::TimelineId;

/// The name of the guard in pg_wal: its presence makes the directory a restored copy that may not archive.
pub const GUARD: &str = "pitr.guard";
const SMALL_BYTES: u64 = 64 << 10;

/// Opens a file for reading; a fifo does not hold the opener up.
///
/// # Errors
/// Those of `open`.
pub fn open_at_once(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

/// Reads a small file of a server, as `postmaster.pid`. Its user may have put something else in its place: neither a fifo nor a file without end
/// holds the reader up.
///
/// # Errors
/// Those of the system.
pub fn read_small(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    open_at_once(path)?
        .take(SMALL_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A data directory, found from the path of one of its WAL files.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    wal: PathBuf,
    root: PathBuf,
}

impl DataDirectory {
    /// The data directory of the WAL file at `path` (`pg_wal/…`, absolute or relative).
    pub fn of_wal_file(path: &Path) -> DataDirectory {
        let parent = |p: &Path| match p.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let wal = parent(path);
        let root = match wal.file_name() {
            Some(_) => parent(&wal),
            // "." or "..": the file stands in the working directory, which then is pg_wal.
            None => wal.join(".."),
        };
        DataDirectory { wal, root }
    }

    /// The data directory `root` itself.
    pub fn at(root: &Path) -> DataDirectory {
        DataDirectory {
            wal: root.join("pg_wal"),
            root: root.to_owned(),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Its pg_wal.
    pub fn wal(&self) -> &Path {
        &self.wal
    }

    /// Whether the server waits for this file to be archived.
    pub fn is_ready(&self, name: WalFileName) -> bool {
        let status = self.wal.join(format!("archive_status/{name}.ready"));
        std::fs::symlink_metadata(status).is_ok()
    }

    /// Whether the file lies in pg_wal, and the server has no mark for it: it neither waits for it nor has had it archived.
    pub fn is_unmarked(&self, name: WalFileName) -> bool {
        let is_there = |path: PathBuf| std::fs::symlink_metadata(path).is_ok();
        let mark = |kind: &str| self.wal.join(format!("archive_status/{name}.{kind}"));
        // A mark is renamed: whatever comes between two looks, one of them sees it.
        !is_there(mark("ready"))
            && !is_there(mark("done"))
            && is_there(self.wal.join(name.to_string()))
    }

    /// The segments right before this one that lie in pg_wal without a mark of the server, at most `most`, oldest first: it neither waits for them nor
    /// has had them archived. A crash can take the marks of the last ones, and the server makes them anew when it would remove the segments, which
    /// may be hours later. The history of their timeline comes first where it has no mark and no segment before has one: a server whose recovery
    /// ended while archiving was off never makes a mark for it.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogarchive.c, `XLogArchiveNotify` (without fsync) and `XLogArchiveCheckDone`.
    pub fn forgotten_before(
        &self,
        segment: SegmentName,
        size: SegmentSize,
        most: usize,
    ) -> Vec<WalFileName> {
        let is_there = |path: PathBuf| std::fs::symlink_metadata(path).is_ok();
        let mark = |name: WalFileName, kind: &str| {
            let mark = self.wal.join(format!("archive_status/{name}.{kind}"));
            is_there(mark)
        };
        // A mark is renamed, and a segment is removed before its mark: whatever comes between two looks, one of them sees it.
        let is_known = |name| mark(name, "ready") || mark(name, "done");
        let is_forgotten = |name: WalFileName| is_there(self.wal.join(name.to_string()));
        let history = WalFileName::History(segment.timeline);
        let mut found = Vec::new();
        let mut at = segment;
        while found.len() < most
            && let Some(before) = at.before(at.timeline, size)
        {
            let name = WalFileName::Segment(before);
            if is_known(name) {
                found.reverse();
                return found;
            }
            if !is_forgotten(name) {
                break;
            }
            found.push(name);
            at = before;
        }
        if self.is_unmarked(history) {
            found.push(history);
        }
        found.reverse();
        found
    }

    /// Reads pg_control; `None` when there is none.
    ///
    /// # Errors
    /// `Damaged` when its CRC stays wrong; the server may be writing it, so it is read up to ten times, 10 ms apart.
    pub fn control(&self) -> Result<Option<ControlFile>> {
        Ok(self.control_with_bytes()?.map(|(control, _)| control))
    }

    /// Reads pg_control with its bytes; `None` when there is none.
    ///
    /// # Errors
    /// As [`DataDirectory::control`].
    pub fn control_with_bytes(&self) -> Result<Option<(ControlFile, Vec<u8>)>> {
        self.read_control(ControlFile::parse)
    }

    /// Reads the fields of pg_control that a newer major has, too; `None` when there is none.
    ///
    /// # Errors
    /// As [`DataDirectory::control`].
    pub fn control_head(&self) -> Result<Option<ControlHead>> {
        let read = self.read_control(ControlHead::parse)?;
        Ok(read.map(|(head, _)| head))
    }

    fn read_control<T>(&self, parse: impl Fn(&[u8]) -> Result<T>) -> Result<Option<(T, Vec<u8>)>> {
        let path = self.root.join("global/pg_control");
        let mut last = None;
        for attempt in 0..10 {
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let mut bytes = Vec::new();
            match open_at_once(&path) {
                Ok(file) => {
                    file.take(SMALL_BYTES)
                        .read_to_end(&mut bytes)
                        .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::from_io(format!("open \"{}\"", path.display()), e)),
            }
            match parse(&bytes) {
                Ok(control) => return Ok(Some((control, bytes))),
                Err(e) => last = Some(e),
            }
        }
        Err(last
            .unwrap_or_else(|| err!(Damaged, "pg_control cannot be read"))
            .context(format!("read \"{}\"", path.display())))
    }

    /// Refuses to archive from a restored copy.
    ///
    /// # Errors
    /// `Clone` when the guard is there.
    pub fn check_guard(&self) -> Result<()> {
        match std::fs::symlink_metadata(self.wal.join(GUARD)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::from_io(format!("look for \"{GUARD}\""), e)),
            Ok(_) => Err(err!(Clone, "data directory is a restored copy that was not adopted").hint(
                "Nothing was archived, so the archive it came from is safe. If this copy is the successor, run \"pitr adopt\"; if not, set archive_mode = off.",
            )),
        }
    }

    /// Whether one of PostgreSQL's signal files is there; relative names are meant so, as PostgreSQL's working directory is this.
    pub fn has(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.root.join(name)).is_ok()
    }

    /// Which server runs here: its process id and when it was started.
    pub fn server(&self) -> Option<(i32, String)> {
        let file = PidFile::read(&self.root).ok()?;
        Some((file.pid?, file.started?))
    }

    /// Whether promotion was asked for and has not begun: by `promote`, or up to PostgreSQL 15 by the file that promote_trigger_file names.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogrecovery.c, `CheckForStandbyTrigger`.
    pub fn is_promoted(&self) -> bool {
        let trigger = || server_conf::value_of(&self.root, "promote_trigger_file");
        self.has("promote") || trigger().is_some_and(|file| !file.is_empty() && self.has(&file))
    }

    /// Whether archive recovery runs there, or will, that fails unless it gets to a target: it cannot take an early end for the end.
    ///
    /// PostgreSQL: src/backend/access/transam/xlogrecovery.c ("recovery ended before configured recovery target was reached").
    pub fn has_recovery_target(&self) -> bool {
        const TARGETS: [&str; 4] = [
            "recovery_target_lsn",
            "recovery_target_time",
            "recovery_target_xid",
            "recovery_target_name",
        ];
        let is_set = |name: &str| {
            let value = server_conf::value_of(&self.root, name);
            value.is_some_and(|value| !value.is_empty())
        };
        self.has("recovery.signal")
            && !self.has("standby.signal")
            && TARGETS.iter().any(|name| is_set(name))
    }

    /// Returns the timeline that `recovery_target_timeline` names by its number.
    pub fn target_timeline(&self) -> Option<TimelineId> {
        let value = server_conf::value_of(&self.root, "recovery_target_timeline")?;
        TimelineId::new(value.parse().ok()?)
    }

    /// Whether primary_conninfo is set: a standby then has another source than the archive.
    pub fn streams(&self) -> bool {
        server_conf::value_of(&self.root, "primary_conninfo").is_some_and(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_the_lexical_parent_of_pg_wal() {
        let of = |p: &str| DataDirectory::of_wal_file(Path::new(p)).path().to_owned();
        assert_eq!(of("pg_wal/000000010000000000000001"), Path::new("."));
        assert_eq!(of("/data/pg_wal/RECOVERYXLOG"), Path::new("/data"));
        assert_eq!(of("x"), Path::new("./.."));
    }

    #[test]
    fn a_fifo_or_a_device_in_the_place_of_a_file_holds_nobody_up() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        };
        fifo("global/pg_control");
        fifo("postmaster.pid");
        let data = DataDirectory::at(dir.path());
        assert!(data.control().is_err() && data.server().is_none());
        let endless = read_small(Path::new("/dev/zero")).unwrap();
        assert_eq!(endless.len() as u64, SMALL_BYTES);
    }
}
