//! Proves that the connected server owns the files that are read.
//!
//! The system identifier proves nothing: a clone, a standby, and a machine behind the same load balancer have it, too. Proofs, before the
//! start and again after the stop of a backup:
//! - `postmaster.pid` has the server's port and data directory, and is that of the same process all the time;
//! - the process that answers is a child of that very postmaster; where this host's /proc cannot tell (a container of its own), the
//!   connection is local, and the server started when the file says;
//! - pg_control has the checkpoint that the server reads from its own.
//!
//! PostgreSQL: src/include/utils/pidfile.h; src/backend/utils/misc/pg_controldata.c.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::archive::datadir::DataDirectory;
use crate::archive::pid_file::PidFile;
use crate::backup::incremental::prior::Shape;
use crate::backup::source::{ServerFacts, Source};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::control::ControlFile;
use crate::pg::label::TablespaceLink;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::process::parent_of;

/// The server notes its start time this long after that of its file, at most: it makes its shared memory in between.
const STARTING_S: i64 = 60;
/// How often pg_control is compared: the server may write it between two looks.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The lines of `postmaster.pid` that do not change while a server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Postmaster {
    pid: u32,
    data_directory: String,
    start_time: i64,
    port: String,
}

impl Postmaster {
    fn of(file: PidFile) -> Option<Postmaster> {
        Some(Postmaster {
            pid: u32::try_from(file.pid?).ok()?,
            data_directory: file.data_directory?,
            start_time: file.started?.parse().ok()?,
            port: file.port?,
        })
    }
}

/// A data directory whose server is the connected one.
pub struct Owner {
    directory: DataDirectory,
    postmaster: Postmaster,
    /// Device and number of the directory.
    inode: (u64, u64),
    control: ControlFile,
    stats: Option<Vec<u8>>,
}

impl Owner {
    /// Finds the data directory, and proves that it is the server's.
    ///
    /// # Errors
    /// `Config` when no directory is known; `Denied` when it may not be read; `Refused` when it is another server's; those of the server.
    pub fn find(
        source: &mut dyn Source,
        facts: &ServerFacts,
        configured: Option<&Path>,
    ) -> Result<Owner> {
        let shown = setting(source, "data_directory")?;
        let path = match (configured, &shown) {
            (Some(path), _) => path.to_owned(),
            (None, Some(shown)) => PathBuf::from(shown),
            (None, None) => {
                return Err(err!(Config, "the data directory is not known: the server does not show it to this user")
                    .hint("Nothing was stored. Set pgdata in the cluster's section of the configuration, or grant pg_read_all_settings."));
            }
        };
        check_readable(&path)?;
        let directory = DataDirectory::at(&path);
        let control = directory.control()?.ok_or_else(|| {
            err!(
                SourceMissing,
                "data directory \"{}\" has no pg_control",
                path.display()
            )
        })?;
        let owner = Owner {
            postmaster: postmaster(&path)?,
            inode: inode(&path)?,
            stats: stats_directory(source, &path)?,
            directory,
            control,
        };
        owner.check_identity(facts)?;
        owner.check_process(source, shown.as_deref())?;
        owner.check_replication(source, facts)?;
        owner.check_control(source, Lsn::INVALID)?;
        Ok(owner)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether pages have checksums.
    pub fn has_checksums(&self) -> bool {
        self.control.checksums_enabled()
    }

    /// Returns the properties on which its pages depend.
    pub fn shape(&self) -> Shape {
        Shape {
            catalog_version: self.control.catalog_version,
            block_size_bytes: self.control.block_size,
            segment_size_bytes: self.control.wal_segment_size.bytes(),
            relation_segment_blocks: self.control.relation_segment_blocks,
            data_checksums: self.has_checksums(),
        }
    }

    /// Blocks in one file of a relation.
    pub fn relation_segment_blocks(&self) -> u32 {
        self.control.relation_segment_blocks
    }

    /// `stats_temp_directory` relative to the data directory, where it lies below.
    pub fn stats(&self) -> Option<&[u8]> {
        self.stats.as_deref()
    }

    /// Reads pg_control with its bytes, permission bits and time.
    ///
    /// # Errors
    /// `Damaged` when its CRC stays wrong; those of the filesystem.
    pub fn read_control(&self) -> Result<(Vec<u8>, ControlFile, (u32, i64))> {
        let path = self.path().join("global/pg_control");
        let read = self.directory.control_with_bytes()?;
        let metadata = fs::metadata(&path).ok();
        let (Some((control, bytes)), Some(metadata)) = (read, metadata) else {
            return Err(err!(SourceMissing, "\"{}\" is gone", path.display()));
        };
        Ok((bytes, control, (metadata.mode(), metadata.mtime())))
    }

    /// Permission bits and time of the server's files, by PG_VERSION.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub fn mode_and_time(&self) -> Result<(u32, i64)> {
        let path = self.path().join("PG_VERSION");
        let metadata = fs::metadata(&path)
            .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
        Ok((metadata.mode(), metadata.mtime()))
    }

    /// Requires that pg_control has the checkpoint that the server reads, with a redo point from `start_lsn` on. Returns its timeline.
    ///
    /// # Errors
    /// `Refused`; those of the server and the filesystem.
    pub fn check_control(&self, source: &mut dyn Source, start_lsn: Lsn) -> Result<TimelineId> {
        let mut seen = None;
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::sleep(LOOK_AGAIN);
            }
            let rows = source.query(
                "select checkpoint_lsn, redo_lsn, timeline_id, extract(epoch from checkpoint_time)::bigint from pg_control_checkpoint()",
            )?;
            let asked: (Lsn, Lsn, u32, i64) = (
                rows.value(0, 0)?,
                rows.value(0, 1)?,
                rows.value(0, 2)?,
                rows.value(0, 3)?,
            );
            let (_, control, _) = self.read_control()?;
            let copy = &control.checkpoint_copy;
            let read = (
                control.checkpoint,
                copy.redo,
                copy.timeline.get(),
                copy.time,
            );
            if asked == read && copy.redo >= start_lsn {
                return Ok(copy.timeline);
            }
            seen = Some((asked.0, read.0));
        }
        let (asked, read) = seen.unwrap_or_default();
        Err(self.another(&format!(
            "its pg_control has the checkpoint at {read}, the server's own the one at {asked}"
        )))
    }

    /// Proves everything again.
    ///
    /// # Errors
    /// `Refused`; those of the server and the filesystem.
    pub fn check_again(&self, source: &mut dyn Source) -> Result<()> {
        if inode(self.path())? != self.inode {
            return Err(self.another("another directory has taken its place"));
        }
        if postmaster(self.path())? != self.postmaster {
            return Err(self.another("another server was started in it meanwhile"));
        }
        self.check_process(source, None)?;
        self.check_control(source, Lsn::INVALID).map(|_| ())
    }

    fn check_identity(&self, facts: &ServerFacts) -> Result<()> {
        let control = &self.control;
        match control.system_identifier == facts.system_identifier && control.major == facts.major {
            true => Ok(()),
            false => Err(self.another(&format!(
                "it belongs to cluster {}, PostgreSQL {}, the server to cluster {}, PostgreSQL {}",
                control.system_identifier,
                control.major.number(),
                facts.system_identifier,
                facts.major.number()
            ))),
        }
    }

    fn check_process(&self, source: &mut dyn Source, shown: Option<&str>) -> Result<()> {
        let rows = source.query(
            "select pg_backend_pid(), current_setting('port'), \
             floor(extract(epoch from pg_postmaster_start_time()))::bigint, \
             coalesce(inet_server_addr() <<= '127.0.0.0/8' or inet_server_addr() = '::1', true)",
        )?;
        let file = &self.postmaster;
        let port: String = rows.value(0, 1)?;
        if port != file.port {
            return Err(self.another(&format!(
                "its server listens on port {}, the connected one on {port}",
                file.port
            )));
        }
        if shown.is_some_and(|shown| shown != file.data_directory) {
            return Err(self.another("the server names another data directory"));
        }
        let is_child = parent_of(rows.value(0, 0)?) == Some(file.pid);
        match self.runs_here() {
            Some(true) if is_child => return Ok(()),
            Some(true) => {
                return Err(self.another(&format!(
                    "its server is process {} of this host, and another one answers",
                    file.pid
                )));
            }
            // This one has brought its postmaster.pid along.
            Some(false) if is_child => {
                return Err(self.another("the server runs in another directory"));
            }
            None if is_child && inode(Path::new(&file.data_directory)).ok() == Some(self.inode) => {
                return Ok(());
            }
            _ => {}
        }
        // Processes cannot be seen from here.
        let started: i64 = rows.value(0, 2)?;
        let is_local = rows.text(0, 3)? == Some("t");
        if !is_local {
            return Err(self.another("the connection leads to another machine"));
        }
        match (file.start_time..=file.start_time + STARTING_S).contains(&started) {
            true => Ok(()),
            false => Err(self.another("its server was started at another time")),
        }
    }

    /// Whether the process that postmaster.pid names works in the directory; `None` where that cannot be seen.
    fn runs_here(&self) -> Option<bool> {
        let working = inode(Path::new(&format!("/proc/{}/cwd", self.postmaster.pid)));
        Some(working.ok()? == self.inode)
    }

    /// Requires that a tablespace is the server's own: its link leads where the server says, and to the directory that the server sees there.
    ///
    /// # Errors
    /// `Refused`.
    pub fn check_tablespace(&self, link: &TablespaceLink) -> Result<()> {
        let place = self.path().join(format!("pg_tblspc/{}", link.oid));
        let Ok(target) = fs::read_link(&place) else {
            // It was dropped.
            return Ok(());
        };
        let of_server = format!("/proc/{}/root", self.postmaster.pid);
        let seen = Path::new(&of_server).join(target.strip_prefix("/").unwrap_or(&target));
        let is_same = match (self.runs_here(), inode(&seen), inode(&place)) {
            (Some(true), Ok(seen), Ok(own)) => seen == own,
            _ => true,
        };
        match target.as_os_str().as_bytes() == link.path && is_same {
            true => Ok(()),
            false => Err(self.another(&format!(
                "its tablespace {} is another directory than the server's",
                link.oid
            ))),
        }
    }

    /// Requires that the connection for replication leads to the same server: the WAL of the backup is compared with what it sends.
    fn check_replication(&self, source: &mut dyn Source, facts: &ServerFacts) -> Result<()> {
        let Some(pid) = facts.replication_pid else {
            return Ok(());
        };
        let rows = source.query(&format!(
            "select count(*) from pg_catalog.pg_stat_activity where pid = {pid}"
        ))?;
        match rows.value::<u64>(0, 0)? {
            0 => Err(self
                .another("the connections for replication and for SQL lead to different servers")),
            _ => Ok(()),
        }
    }

    fn another(&self, why: &str) -> Error {
        err!(
            Refused,
            "data directory \"{}\" is not that of the connected server: {why}",
            self.path().display()
        )
        .hint("Nothing was committed. --method local reads the files of the server that conninfo leads to, on its own host.\nCorrect pgdata or conninfo, best a socket's directory as host; or take the backup over the network: pitr backup --method stream")
    }
}

/// A setting, where the server shows it to this user.
fn setting(source: &mut dyn Source, name: &str) -> Result<Option<String>> {
    let rows = source.query(&format!(
        "select setting from pg_catalog.pg_settings where name = '{name}'"
    ))?;
    Ok(rows.text(0, 0)?.map(str::to_owned))
}

/// Up to PostgreSQL 14 statistics have a directory of their own, anywhere.
fn stats_directory(source: &mut dyn Source, root: &Path) -> Result<Option<Vec<u8>>> {
    let name = setting(source, "stats_temp_directory")?.unwrap_or_default();
    let path = Path::new(&name);
    let below = path.strip_prefix(root).ok();
    let relative = below.or(path.is_relative().then_some(path));
    let relative = relative.map(|path| path.as_os_str().as_encoded_bytes().to_vec());
    Ok(relative.filter(|path| !path.is_empty()))
}

/// Requires that this user can read the files, before anything is begun.
fn check_readable(path: &Path) -> Result<()> {
    let unreadable = |path: &Path, e: std::io::Error| {
        let shown = path.display().to_string();
        match e.kind() {
            std::io::ErrorKind::NotFound => err!(SourceMissing, "\"{shown}\" does not exist on this host")
                .hint("Nothing was stored. --method local reads the server's files: run it on the database's host, and check pgdata; or take the backup over the network: pitr backup --method stream"),
            std::io::ErrorKind::PermissionDenied => err!(Denied, "\"{shown}\" may not be read by this user")
                .hint("Nothing was stored. --method local reads the server's files: run it as the server's user (sudo -u postgres pitr backup --method local), or as one of its group (initdb --allow-group-access)."),
            _ => Error::from_io(format!("read \"{shown}\""), e),
        }
    };
    for folder in ["", "base", "global", "pg_tblspc"] {
        let folder = path.join(folder);
        fs::read_dir(&folder).map_err(|e| unreadable(&folder, e))?;
    }
    let control = path.join("global/pg_control");
    let opened = fs::File::open(&control);
    opened.map(|_| ()).map_err(|e| unreadable(&control, e))
}

fn postmaster(root: &Path) -> Result<Postmaster> {
    let file = PidFile::read(root).map_err(|e| {
        let code = Error::from_io("", e).code();
        Error::new(
            if code == Code::Denied { code } else { Code::Refused },
            format!("no server runs in data directory \"{}\": it has no postmaster.pid that can be read", root.display()),
        )
        .hint("Nothing was committed. --method local reads the files of the server that conninfo leads to, on its own host: correct pgdata or conninfo, or take the backup over the network: pitr backup --method stream")
    })?;
    let path = root.join("postmaster.pid");
    Postmaster::of(file).ok_or_else(|| err!(Damaged, "\"{}\" cannot be understood", path.display()))
}

fn inode(path: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(path)
        .map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_pid_file_are_read() {
        let text = "77\n/data\n1700000000\n5432\n/tmp\n*\n 1 2\nready   \n";
        let of = |text: &str| Postmaster::of(PidFile::parse(text));
        let file = of(text).unwrap();
        assert_eq!((file.pid, file.start_time), (77, 1_700_000_000));
        assert_eq!(
            (file.port.as_str(), file.data_directory.as_str()),
            ("5432", "/data")
        );
        // A single-user backend's is negative; a server that starts has not written all lines yet.
        assert_eq!(of("-77\n/data\n1700000000\n5432\n"), None);
        assert_eq!(of("77\n/data\n"), None);
    }
}
