//! The WAL that one server, on whatever host, a primary or a standby, still has: asked for segment by segment over replication.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::receive::upstream;
use crate::repo::repository::Registration;
use crate::wire::conninfo::{ConnInfo, Environment, TargetSession};
use crate::wire::replication::{Positions, ReplicationStream, StartReplication, StreamEvent};
use crate::wire::runtime;

/// A server that is asked for WAL. It is connected to when the first segment is wanted.
pub struct StreamedWal {
    /// It has one host.
    info: ConnInfo,
    identifier: u64,
    segment_size: SegmentSize,
    host: Host,
    state: RefCell<State>,
}

enum State {
    /// Not connected, or not any more.
    Idle,
    /// A stream that goes on where its last segment ended.
    Open(Box<Stream>),
    /// It cannot be asked, or is another cluster: once is enough.
    Useless,
}

struct Stream {
    runtime: Runtime,
    stream: ReplicationStream,
    timeline: TimelineId,
    /// The position up to which the server has WAL.
    written: Lsn,
    next: Lsn,
    /// Bytes that came with the end of the last segment.
    rest: Bytes,
}

impl StreamedWal {
    /// Returns the servers that the connection string of a cluster names.
    pub fn of(
        cluster: &config::Cluster,
        registration: &Registration,
        host: &Host,
    ) -> Vec<StreamedWal> {
        let size = SegmentSize::new(registration.segment_size_bytes);
        let (Some(conninfo), Ok(segment_size)) = (&cluster.conninfo, size) else {
            return Vec::new();
        };
        let Ok(info) = ConnInfo::resolve(conninfo.expose(), &Environment::of_process()) else {
            return Vec::new();
        };
        let of_host = |place| StreamedWal {
            info: ConnInfo {
                hosts: vec![place],
                target_session: TargetSession::Any,
                ..info.clone()
            },
            identifier: registration.system_identifier,
            segment_size,
            host: host.clone(),
            state: RefCell::new(State::Idle),
        };
        info.hosts.iter().cloned().map(of_host).collect()
    }

    /// The server, for people.
    pub fn shown(&self) -> String {
        self.info.display_hosts()
    }

    /// Returns a file with a whole segment, which goes when it is dropped.
    ///
    /// # Errors
    /// `NotFound` where the server does not have it whole, or was of no use before; `SourceMissing` where it cannot be asked.
    pub fn fetch(&self, name: SegmentName) -> Result<NamedTempFile> {
        let size = self.segment_size;
        let wanted = name.number(size)?.range(size);
        let mut stream = match self.state.replace(State::Idle) {
            State::Open(open) if (open.timeline, open.next) == (name.timeline, wanted.start) => {
                open
            }
            State::Idle | State::Open(_) => Box::new(self.start(name.timeline, wanted)?),
            State::Useless => {
                self.state.replace(State::Useless);
                return Err(err!(NotFound, "the server was of no use before"));
            }
        };
        let file = stream
            .segment(&self.host, wanted)
            .map_err(|e| self.judged(e))?;
        self.state.replace(State::Open(stream));
        Ok(file)
    }

    fn start(&self, timeline: TimelineId, wanted: LsnRange) -> Result<Stream> {
        let runtime = runtime::start()?;
        let opened = runtime.block_on(async {
            let mut client = upstream::connect(&self.info, Arc::clone(&self.host.progress)).await?;
            let host = client.host().to_owned();
            let identity = upstream::answered(&host, client.identify_system()).await?;
            if identity.system_identifier != self.identifier {
                return Err(err!(WrongCluster, "it is another cluster"));
            }
            let what = StartReplication {
                slot: None,
                timeline,
                from: wanted.start,
            };
            let stream = ReplicationStream::start(client, &what);
            Ok((upstream::answered(&host, stream).await?, identity.flush_lsn))
        });
        let (stream, written) = opened.map_err(|e| self.judged(e))?;
        Ok(Stream {
            runtime,
            stream,
            timeline,
            written,
            next: wanted.start,
            rest: Bytes::new(),
        })
    }

    /// Tells an error that says that the server has no such WAL from one after which it is not asked again.
    fn judged(&self, e: Error) -> Error {
        match e.code() {
            Code::NotFound | Code::Gap | Code::Server => e.with_code(Code::NotFound),
            // The file is this host's, and the server as good as before.
            Code::Full | Code::ReadOnly | Code::Io => e.with_code(Code::SourceMissing),
            _ => {
                self.state.replace(State::Useless);
                e.context("ask the server for WAL")
                    .with_code(Code::SourceMissing)
            }
        }
    }
}

impl Stream {
    /// Receives a segment that begins where the last one ended.
    fn segment(&mut self, host: &Host, wanted: LsnRange) -> Result<NamedTempFile> {
        if wanted.end > self.written {
            return Err(err!(
                NotFound,
                "the server has WAL up to {}, inside this segment",
                self.written
            ));
        }
        let failed = |e| Error::from_io("write a segment to a temporary file", e);
        let mut file = tempfile::Builder::new()
            .prefix("pitr-wal-")
            .tempfile_in(&host.scratch)
            .map_err(failed)?;
        while self.next < wanted.end {
            let mut piece = self.piece(host)?;
            let left = usize::try_from(wanted.end.0 - self.next.0).unwrap_or(usize::MAX);
            if piece.len() > left {
                self.rest = piece.split_off(left);
            }
            file.write_all(&piece).map_err(failed)?;
            self.next = Lsn(self.next.0 + piece.len() as u64);
        }
        Ok(file)
    }

    /// The next bytes of the stream. No position is reported: a connection that reports one may be what a commit waits for.
    fn piece(&mut self, host: &Host) -> Result<Bytes> {
        if !self.rest.is_empty() {
            return Ok(std::mem::take(&mut self.rest));
        }
        let server = self.stream.host().to_owned();
        let stream = &mut self.stream;
        self.runtime.block_on(async {
            loop {
                match upstream::answered(&server, stream.next_event()).await? {
                    StreamEvent::Data(data) => return Ok(data.bytes),
                    StreamEvent::Keepalive(alive) if alive.reply_requested => {
                        let (none, now) = (Positions::default(), host.now());
                        stream.send_status(none, false, now).await?;
                    }
                    StreamEvent::Keepalive(_) => {}
                    StreamEvent::Done => return Err(err!(NotFound, "its timeline ends before")),
                    StreamEvent::Shutdown => {
                        return Err(err!(Unreachable, "the server has shut down"));
                    }
                }
            }
        })
    }
}
