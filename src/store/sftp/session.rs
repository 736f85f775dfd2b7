//! One connection to a server: its requests, each watched for silence, and what the server must be able to do.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use russh_sftp::client::rawsession::Limits;
use russh_sftp::client::{Config, RawSftpSession};
use russh_sftp::extensions;
use russh_sftp::protocol::{FileAttributes, OpenFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::{Answered, Failure, Kind};
use super::link::Server;
use super::ssh::Ssh;
use crate::config::SftpSettings;
use crate::err;
use crate::error::{Code, Error};
use crate::store::{Room, life, runtime};

/// No answer is longer. OpenSSH's are up to this.
const PACKET_BYTES: u32 = 256 << 10;
/// Bytes of one request to read or write, where the server names no limit: all servers take so many.
const PIECE_BYTES: u64 = 32 << 10;
/// Not more, whatever the server offers: the head of an answer needs room, too.
const PIECE_BYTES_MAX: u64 = 255 << 10;
/// Files that are open at the same time. The library takes names of handles for text, and OpenSSH counts in them: from 128 on they are none.
const HANDLES: usize = 100;
/// So many of these only those have who need them just then.
const HANDLES_KEPT_FREE: usize = 50;
/// The library's own limit of time: ours goes by silence.
const NEVER_SECONDS: u64 = 86_400 * 365;
/// Requests for a listing that are on their way together.
const LISTINGS: usize = 4;

/// A connection.
pub(super) struct Session {
    raw: RawSftpSession,
    ssh: Ssh,
    line: Arc<Line>,
    stall: Duration,
    piece_bytes: u64,
    handles: Arc<Semaphore>,
    has_statvfs: bool,
}

/// Attributes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) is_directory: bool,
    pub(super) is_regular: bool,
    pub(super) size_bytes: u64,
    /// Seconds since 1970.
    pub(super) modified: u32,
    pub(super) accessed: u32,
}

impl Facts {
    fn of(attributes: &FileAttributes) -> Answered<Facts> {
        let (Some(mode), Some(size_bytes), Some(modified)) =
            (attributes.permissions, attributes.size, attributes.mtime)
        else {
            return Err(lacking("does not tell kind, length and date of files"));
        };
        Ok(Facts {
            is_directory: mode & 0o170_000 == 0o040_000,
            is_regular: mode & 0o170_000 == 0o100_000,
            size_bytes,
            modified,
            accessed: attributes.atime.unwrap_or_default(),
        })
    }
}

/// The server's disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) room: Room,
    pub(super) has_inodes: bool,
    pub(super) is_read_only: bool,
}

/// A file that is open on the server; closed when it is dropped.
pub(super) struct Open {
    session: Arc<Session>,
    handle: String,
    permit: Option<OwnedSemaphorePermit>,
}

impl Open {
    /// Whether it was opened over this connection: the server forgets with another.
    pub(super) fn is_of(&self, session: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (session, handle) = (Arc::clone(&self.session), std::mem::take(&mut self.handle));
        let permit = self.permit.take();
        if let Ok(runtime) = runtime::runtime() {
            runtime.spawn(async move {
                let _ = session
                    .watch(async { Ok(session.raw.close(handle).await?) })
                    .await;
                drop(permit);
            });
        }
    }
}

impl Session {
    /// Connects, and looks whether the server can do what a repository needs.
    pub(super) async fn connect(server: &Server, settings: &SftpSettings) -> Answered<Session> {
        let (ssh, stream) = Ssh::start(server, settings)?;
        let line = Arc::new(Line::default());
        let config = Config {
            max_packet_len: PACKET_BYTES,
            request_timeout_secs: NEVER_SECONDS,
            ..Config::default()
        };
        let watched = Watched {
            stream,
            line: Arc::clone(&line),
        };
        let mut session = Session {
            raw: RawSftpSession::new_with_config(watched, config),
            ssh,
            line,
            stall: settings.stall_timeout,
            piece_bytes: PIECE_BYTES,
            handles: Arc::new(Semaphore::new(HANDLES)),
            has_statvfs: false,
        };
        match session.greet().await {
            Ok((piece_bytes, has_statvfs)) => {
                session.piece_bytes = piece_bytes;
                session.has_statvfs = has_statvfs;
                session.raw.set_limits(Limits::default());
                Ok(session)
            }
            Err(failure) if failure.kind == Kind::Again => {
                Err(session.ssh.explained(failure).await)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn greet(&self) -> Answered<(u64, bool)> {
        let version = self.watch(async { Ok(self.raw.init().await?) }).await?;
        let has = |name: &str| version.extensions.contains_key(name);
        if version.version != 3 {
            return Err(lacking("speaks another version of the protocol than 3"));
        }
        if !has(extensions::HARDLINK) {
            return Err(lacking(
                "has no hardlink@openssh.com: objects could replace each other",
            ));
        }
        if !has(extensions::FSYNC) {
            return Err(lacking(
                "has no fsync@openssh.com: nothing there would be known to survive a power cut",
            ));
        }
        let piece_bytes = match has(extensions::LIMITS) {
            false => PIECE_BYTES,
            true => {
                let limits = self.watch(async { Ok(self.raw.limits().await?) }).await?;
                let least = limits.max_read_len.min(limits.max_write_len);
                match least {
                    // Zero stands for no limit, or for an unknown one.
                    0 => PIECE_BYTES,
                    least => least.min(PIECE_BYTES_MAX),
                }
            }
        };
        Ok((piece_bytes, has(extensions::STATVFS)))
    }

    /// Waits for a request. It is given up when nothing has come or gone over the connection for so long, or at the process's end.
    pub(super) async fn watch<T>(&self, request: impl Future<Output = Answered<T>>) -> Answered<T> {
        let begun = Instant::now();
        let mut request = pin!(request);
        loop {
            let moved = self.line.last().max(begun);
            let until = moved + self.stall;
            let end = runtime::end();
            let until = end.map_or(until, |end| end.min(until));
            if let Ok(answer) = tokio::time::timeout_at(until.into(), &mut request).await {
                return answer;
            }
            let is_over = end.is_some_and(|end| Instant::now() >= end);
            if is_over || self.line.last().max(begun).elapsed() >= self.stall {
                let seconds = begun.elapsed().as_secs_f32();
                return Err(Failure::again(format!("no answer within {seconds:.1} s")));
            }
        }
    }

    /// How long nothing has come or gone.
    pub(super) fn quiet_since(&self, begun: Instant) -> Duration {
        self.line.last().max(begun).elapsed()
    }

    /// Gives up the connection: requests that wait for an answer get an error.
    pub(super) fn end(&self) {
        self.ssh.end();
    }

    /// Adds to the failure of a connection what ssh said about it.
    pub(super) async fn explained(&self, failure: Failure) -> Failure {
        self.ssh.explained(failure).await
    }

    pub(super) async fn look(&self, path: &str) -> Answered<Facts> {
        Facts::of(&self.raw.lstat(path).await?.attrs)
    }

    /// As [`Session::look`], through a symbolic link.
    pub(super) async fn look_through(&self, path: &str) -> Answered<Facts> {
        Facts::of(&self.raw.stat(path).await?.attrs)
    }

    pub(super) async fn make_directory(&self, path: &str) -> Answered<()> {
        self.raw.mkdir(path, mode(0o700)).await?;
        Ok(())
    }

    pub(super) async fn remove(&self, path: &str) -> Answered<()> {
        self.raw.remove(path).await?;
        Ok(())
    }

    pub(super) async fn remove_directory(&self, path: &str) -> Answered<()> {
        self.raw.rmdir(path).await?;
        Ok(())
    }

    /// Gives a file its name, which must be free.
    pub(super) async fn name(&self, temporary: &str, path: &str) -> Answered<()> {
        self.raw.hardlink(temporary, path).await?;
        Ok(())
    }

    /// Sets when a file was read last, and leaves the rest as it is.
    pub(super) async fn set_accessed(
        &self,
        path: &str,
        accessed: u32,
        modified: u32,
    ) -> Answered<()> {
        let attributes = FileAttributes {
            atime: Some(accessed),
            mtime: Some(modified),
            ..FileAttributes::empty()
        };
        self.raw.setstat(path, attributes).await?;
        Ok(())
    }

    pub(super) async fn create(self: &Arc<Self>, path: &str) -> Answered<Open> {
        let flags = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        self.open(path, flags, None).await
    }

    pub(super) async fn open_again(self: &Arc<Self>, path: &str) -> Answered<Open> {
        self.open(path, OpenFlags::READ | OpenFlags::WRITE, None)
            .await
    }

    pub(super) async fn open_to_read(self: &Arc<Self>, path: &str) -> Answered<Open> {
        self.open(path, OpenFlags::READ, None).await
    }

    /// Opens a file that may stay open; none where too many are.
    pub(super) async fn open_to_keep(self: &Arc<Self>, path: &str) -> Answered<Option<Open>> {
        if self.handles.available_permits() <= HANDLES_KEPT_FREE {
            return Ok(None);
        }
        let Ok(permit) = Arc::clone(&self.handles).try_acquire_owned() else {
            return Ok(None);
        };
        let opened = self.open(path, OpenFlags::READ, Some(permit)).await;
        opened.map(Some)
    }

    async fn open(
        self: &Arc<Self>,
        path: &str,
        flags: OpenFlags,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Answered<Open> {
        let permit = match permit {
            Some(permit) => permit,
            None => {
                let permit = Arc::clone(&self.handles).acquire_owned().await;
                permit.map_err(|_| Failure::again("the connection has ended"))?
            }
        };
        let handle = self.raw.open(path, flags, mode(0o600)).await?.handle;
        self.opened(handle, permit)
    }

    fn opened(self: &Arc<Self>, handle: String, permit: OwnedSemaphorePermit) -> Answered<Open> {
        // The library replaces what is no text, and another file may have that name.
        if handle.contains(char::REPLACEMENT_CHARACTER) {
            return Err(lacking("names open files by what is no text"));
        }
        Ok(Open {
            session: Arc::clone(self),
            handle,
            permit: Some(permit),
        })
    }

    /// Makes a file, or the names in a directory, survive a power cut: OpenSSH opens a directory for reading like a file.
    pub(super) async fn settle(&self, open: &Open) -> Answered<()> {
        self.raw.fsync(open.handle.as_str()).await?;
        Ok(())
    }

    /// Settles the names in a directory.
    pub(super) async fn settle_names(self: &Arc<Self>, directory: &str) -> Answered<()> {
        let open = self.open_to_read(directory).await?;
        self.settle(&open).await
    }

    /// Reads exactly so many bytes.
    pub(super) async fn read(&self, open: &Open, offset: u64, bytes: u64) -> Answered<Vec<u8>> {
        let pieces = pieces(offset, bytes, self.piece_bytes)
            .map(|(at, length)| self.read_piece(open, at, length));
        Ok(try_join_all(pieces).await?.concat())
    }

    async fn read_piece(&self, open: &Open, offset: u64, bytes: u64) -> Answered<Vec<u8>> {
        let mut all: Vec<u8> = Vec::new();
        loop {
            let done = all.len() as u64;
            let left = u32::try_from(bytes - done).unwrap_or(u32::MAX);
            if left == 0 {
                return Ok(all);
            }
            let data = self
                .raw
                .read(open.handle.as_str(), offset + done, left)
                .await?;
            if data.data.is_empty() || data.data.len() as u64 > u64::from(left) {
                return Err(Failure::again(
                    "an answer is of another length than asked for",
                ));
            }
            life::sign();
            match all.is_empty() {
                true => all = data.data,
                false => all.extend_from_slice(&data.data),
            }
        }
    }

    pub(super) async fn write(&self, open: &Open, offset: u64, bytes: &[u8]) -> Answered<()> {
        let all = pieces(offset, bytes.len() as u64, self.piece_bytes).map(|(at, length)| {
            let begin = usize::try_from(at - offset).unwrap_or(usize::MAX);
            let end = begin.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            let piece = bytes.get(begin..end).unwrap_or_default().to_vec();
            async move {
                self.raw.write(open.handle.as_str(), at, piece).await?;
                life::sign();
                Ok::<(), Failure>(())
            }
        });
        try_join_all(all).await?;
        Ok(())
    }

    /// Lists a directory, whole; one with more entries than `most` is refused.
    pub(super) async fn list(
        self: &Arc<Self>,
        directory: &str,
        most: usize,
    ) -> Answered<Vec<(String, Facts)>> {
        let permit = Arc::clone(&self.handles).acquire_owned().await;
        let permit = permit.map_err(|_| Failure::again("the connection has ended"))?;
        let handle = self.raw.opendir(directory).await?.handle;
        let open = self.opened(handle, permit)?;
        let mut all = Vec::new();
        loop {
            let asked = (0..LISTINGS).map(|_| async {
                match self
                    .raw
                    .readdir(open.handle.as_str())
                    .await
                    .map_err(Failure::from)
                {
                    Ok(name) => Ok(Some(name.files)),
                    Err(failure) if failure.kind == Kind::End => Ok(None),
                    Err(failure) => Err(failure),
                }
            });
            let mut is_over = false;
            for files in try_join_all(asked).await? {
                let Some(files) = files else {
                    is_over = true;
                    continue;
                };
                for file in files
                    .into_iter()
                    .filter(|f| f.filename != "." && f.filename != "..")
                {
                    all.push((file.filename, Facts::of(&file.attrs)?));
                }
            }
            if is_over {
                return Ok(all);
            }
            if all.len() > most {
                let what = format!("a listing does not end after {most} names");
                return Err(Error::new(Code::Unreachable, what).into());
            }
        }
    }

    /// The disk of a path, where the server tells.
    pub(super) async fn disk(&self, path: &str) -> Answered<Option<Disk>> {
        if !self.has_statvfs {
            return Ok(None);
        }
        let found = self.raw.statvfs(path).await?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size);
        Ok(Some(Disk {
            room: Room {
                total_bytes: bytes(found.blocks),
                free_bytes: bytes(found.blocks_avail),
            },
            has_inodes: found.inodes_avail > 0 || found.inodes == 0,
            is_read_only: found.flags & 1 == 1,
        }))
    }
}

fn mode(bits: u32) -> FileAttributes {
    FileAttributes {
        permissions: Some(bits),
        ..FileAttributes::empty()
    }
}

/// A range in pieces: where each begins, and its length.
fn pieces(offset: u64, bytes: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..bytes.div_ceil(most)).map(move |n| (offset + n * most, most.min(bytes - n * most)))
}

fn lacking(what: &str) -> Failure {
    let error = err!(Refused, "the SFTP server {what}")
        .hint("Nothing was written. A repository needs OpenSSH's sftp-server, or one with the same extensions.");
    Failure::new(Kind::Final, error)
}

/// When something came or went last over a connection.
struct Line {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Default for Line {
    fn default() -> Line {
        Line {
            begun: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }
}

impl Line {
    fn moves(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// The connection, watched.
struct Watched {
    stream: UnixStream,
    line: Arc<Line>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.line.moves();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.line.moves();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_pieces() {
        let cut = |offset, bytes| pieces(offset, bytes, 10).collect::<Vec<_>>();
        assert_eq!(cut(5, 0), []);
        assert_eq!(cut(5, 10), [(5, 10)]);
        assert_eq!(cut(5, 25), [(5, 10), (15, 10), (25, 5)]);
    }
}
