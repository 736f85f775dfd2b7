//! Files of a server on this host, for servers that do not answer `PSYNC`.
//!
//! The account of the server may exchange them at any moment: a file is opened once, no symbolic link in its place is followed, and it is read by its descriptor alone.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::connection::Tick;
use super::info::Info;
use super::source::Source;
use crate::err;
use crate::error::{Code, Error, Result};

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Settings of a server, and what they are unless somebody changed them.
pub const DUMP: (&str, &str) = ("dbfilename", "dump.rdb");
pub const APPEND_ONLY: (&str, &str) = ("appendfilename", "appendonly.aof");
pub const APPEND_ONLY_DIRECTORY: (&str, &str) = ("appenddirname", "appendonlydir");

/// The device and inode at a path; none where this host cannot tell.
pub fn number(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The number by which a server calls itself. In a container it means nothing here.
fn process(info: &Info) -> Option<u32> {
    info.field("process_id")?.parse().ok()
}

/// The directory in which that process of this host works, as [`number`]. `info` has the section `server`.
pub fn works_in(info: &Info) -> Option<(u64, u64)> {
    number(Path::new(&format!("/proc/{}/cwd", process(info)?)))
}

/// The directory of a server, as this host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory, absolute.
    pub directory: PathBuf,
    /// Whether the server named it.
    is_told: bool,
}

/// A regular file that is open.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    /// Its path, for messages.
    pub path: PathBuf,
    /// As it was when it was opened.
    pub metadata: Metadata,
}

impl Place {
    /// Finds the directory: the one that the operator names, else the one that the server names.
    ///
    /// # Errors
    /// `Refused` for a server of another host; `Config` where nobody names the directory; those of the connection and of `tick`.
    pub fn find(source: &mut Source, configured: Option<&Path>, tick: Tick<'_>) -> Result<Place> {
        if let Some(directory) = configured {
            return Ok(Place {
                directory: directory.to_owned(),
                is_told: false,
            });
        }
        if !source.connection.is_of_this_host() {
            return Err(err!(
                Refused,
                "{} is on another host, and so are its files",
                source.connection.address()
            )
            .hint("Run pitr on the server's host. Where its directory is mounted here: service.data_directory names it."));
        }
        match told(source, "dir", tick)? {
            Some(directory) => Ok(Place {
                directory: PathBuf::from(directory),
                is_told: true,
            }),
            None => Err(err!(
                Config,
                "the server does not tell where its files are (CONFIG GET dir)"
            )
            .hint("Add service.data_directory, or give the user the right: +config|get (before Redis 7: +config).")),
        }
    }

    /// Requires that the server's process works in the directory that it named, where this host can tell: by a tunnel another host's server answers at an address of
    /// this one. `info` has the section `server`.
    ///
    /// # Errors
    /// `Refused`.
    pub fn require_process(&self, info: &Info) -> Result<()> {
        let Some(process) = process(info).filter(|_| self.is_told) else {
            return Ok(());
        };
        match works_in(info).zip(number(&self.directory)) {
            Some((works_in, named)) if works_in != named => Err(err!(
                Refused,
                "process {process} of this host, as the server calls itself, does not work in \"{}\"",
                self.directory.display()
            )
            .hint("The server runs elsewhere, behind a tunnel or in a container. In a container: service.data_directory names its directory as this host sees it.")),
            _ => Ok(()),
        }
    }

    /// The file that a save writes.
    ///
    /// # Errors
    /// Those of the connection and of `tick`.
    pub fn dump(&self, source: &mut Source, tick: Tick<'_>) -> Result<PathBuf> {
        Ok(self.directory.join(named(source, DUMP, tick)?))
    }

    /// The append-only file: its directory and its name. Before Redis 7 it lies in the directory of the server.
    ///
    /// # Errors
    /// Those of the connection and of `tick`.
    pub fn append_only(&self, source: &mut Source, tick: Tick<'_>) -> Result<(PathBuf, String)> {
        let name = named(source, APPEND_ONLY, tick)?;
        let directory = match source.version.has_directory() {
            true => self
                .directory
                .join(named(source, APPEND_ONLY_DIRECTORY, tick)?),
            false => self.directory.clone(),
        };
        Ok((directory, name))
    }
}

/// A name among the server's settings. It is one word of a path.
fn named(
    source: &mut Source,
    (setting, usual): (&'static str, &str),
    tick: Tick<'_>,
) -> Result<String> {
    let name = told(source, setting, tick)?;
    let name = name.unwrap_or_else(|| usual.to_owned());
    match !is_name(&name) {
        true => Err(err!(Server, "the server's {setting} is no name of a file")),
        false => Ok(name),
    }
}

/// The value of a setting; none where the server does not tell it.
fn told(source: &mut Source, name: &'static str, tick: Tick<'_>) -> Result<Option<String>> {
    match source.setting(name, tick) {
        Ok(value) => Ok(value.map(|value| value.expose().to_owned())),
        Err(e) if matches!(e.code(), Code::Denied | Code::Server) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a regular file; none where there is none.
///
/// # Errors
/// `Refused` for what is no regular file; those of the system.
pub fn open(path: &Path) -> Result<Option<Opened>> {
    // A pipe in its place must not hold this program.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(path, e.into())),
    };
    let metadata = file.metadata().map_err(|e| unreadable(path, e))?;
    if !metadata.is_file() {
        return Err(err!(Refused, "\"{}\" is no regular file", path.display())
            .hint("Look at what put it there: servers make no such thing."));
    }
    Ok(Some(Opened {
        file,
        path: path.to_owned(),
        metadata,
    }))
}

/// The error of a file or directory that cannot be read.
pub fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let is_denied = error.kind() == ErrorKind::PermissionDenied;
    let e = Error::from_io(format!("read \"{}\"", path.display()), error);
    match is_denied {
        true => {
            e.hint("Run pitr as root or as a user of the server's group: its files are its own.")
        }
        false => e,
    }
}

impl Opened {
    /// Its length when it was opened.
    pub fn bytes(&self) -> u64 {
        self.metadata.size()
    }

    /// When the file got its name, in seconds since 1970 by the clock of its filesystem.
    pub fn named_seconds(&self) -> i64 {
        self.metadata.ctime()
    }

    /// Whether it is another file than `former`, which is open still, so that its number is not given away.
    pub fn is_other_than(&self, former: &Opened) -> bool {
        let number = |opened: &Opened| (opened.metadata.dev(), opened.metadata.ino());
        number(self) != number(former)
    }

    /// Requires that nobody changed it since it was opened.
    ///
    /// # Errors
    /// `Damaged`; those of the system.
    pub fn require_unchanged(&self) -> Result<()> {
        let now = self.file.metadata();
        let now = now.map_err(|e| unreadable(&self.path, e))?;
        let seen = |m: &Metadata| (m.size(), m.mtime(), m.mtime_nsec());
        match seen(&now) == seen(&self.metadata) {
            true => Ok(()),
            false => Err(err!(
                Damaged,
                "\"{}\" changed while it was read: no server does that",
                self.path.display()
            )),
        }
    }

    /// Hands on its bytes of this range, in their order.
    ///
    /// # Errors
    /// `Damaged` where it is shorter; those of the system, of `out` and of `tick`.
    pub fn pass(
        &self,
        range: std::ops::Range<u64>,
        tick: Tick<'_>,
        out: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = range.start;
        while at < range.end {
            tick()?;
            let most = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let room = piece.get_mut(..most.min(PIECE_BYTES)).unwrap_or_default();
            let read = self.file.read_at(room, at);
            match read.map_err(|e| unreadable(&self.path, e))? {
                0 => {
                    return Err(err!(
                        Damaged,
                        "\"{}\" became shorter while it was read",
                        self.path.display()
                    ));
                }
                count => {
                    out(room.get(..count).unwrap_or_default())?;
                    at += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Reads it whole, as a text of at most so many bytes.
    ///
    /// # Errors
    /// `Damaged` for a longer one and for what is no text; those of [`Opened::pass`].
    pub fn text(&self, most: u64, tick: Tick<'_>) -> Result<String> {
        let odd = || err!(Damaged, "\"{}\" is no small text", self.path.display());
        if self.bytes() > most {
            return Err(odd());
        }
        let mut text = Vec::new();
        self.pass(0..self.bytes(), tick, &mut |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        String::from_utf8(text).map_err(|_| odd())
    }
}

/// Free bytes of the filesystem of a directory.
///
/// # Errors
/// Those of the system.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(directory).map_err(|e| unreadable(directory, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether a word of a manifest is a name of a file in its directory.
pub fn is_name(word: &str) -> bool {
    let path = Path::new(word);
    path.file_name()
        .is_some_and(|name| name.as_bytes() == word.as_bytes())
}
