//! `START_REPLICATION` of a physical stream: WAL in, positions out.
//!
//! `ReplicationStream::start` → `next_event`* → `finish`, which gives the connection back for further commands. A server ends the
//! stream by itself in two ways: its timeline ended (`Done`; `finish` then says where the history goes on), or it shuts down
//! (`Shutdown`). A server that shuts down waits until everything it has sent is acknowledged as flushed, and asks for it by keepalives
//! that want a reply; whoever owns the stream has to answer them.
//!
//! PostgreSQL: src/backend/replication/walsender.c (StartReplication, WalSndDone, ProcessStandbyReplyMessage, 13–18);
//! doc/src/sgml/protocol.sgml (streaming replication protocol).

use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::client::{Answer, Client, command_failed};
use super::message::Incoming;
use super::server_error::{ServerMessage, protocol};
use super::slot::{SlotName, stream_failed};
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;

/// The parameters of `START_REPLICATION`.
#[derive(Debug, Clone)]
pub struct StartReplication {
    /// The physical slot that keeps WAL for us and follows what we acknowledge; without one the server may remove WAL before we have it.
    pub slot: Option<SlotName>,
    /// The timeline: the server's own, or one of its history.
    pub timeline: TimelineId,
    /// The first byte wanted.
    pub from: Lsn,
}

impl StartReplication {
    fn command(&self) -> String {
        let slot = self.slot.as_ref();
        let slot = slot.map_or_else(String::new, |name| format!("SLOT \"{name}\" "));
        format!(
            "START_REPLICATION {slot}PHYSICAL {} TIMELINE {}",
            self.from,
            self.timeline.get()
        )
    }
}

/// An event of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// WAL. Each begins where the one before ended.
    Data(WalData),
    /// The server is alive.
    Keepalive(Keepalive),
    /// The server has sent everything of this timeline: `finish` says where the history goes on.
    Done,
    /// The server has shut down, and has everything acknowledged. The connection is about to end.
    Shutdown,
}

/// A piece of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalData {
    /// Position of the first byte.
    pub start: Lsn,
    /// How far the server could send: on a primary what it has flushed.
    pub server_end: Lsn,
    /// The server's clock when it sent this.
    pub server_time: TimestampTz,
    /// The bytes, never none.
    pub bytes: Bytes,
}

impl WalData {
    /// The position behind the last byte.
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(self.bytes.len() as u64))
    }
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// How far the server has sent.
    pub server_end: Lsn,
    /// The server's clock.
    pub server_time: TimestampTz,
    /// Whether the server wants a report of positions at once, or else may hang up.
    pub reply_requested: bool,
}

/// The positions that are reported to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Received and written.
    pub written: Lsn,
    /// Safe from a crash: what lets a synchronous commit return, and the server remove WAL.
    pub flushed: Lsn,
    /// Visible to queries, of which only `synchronous_commit = remote_apply` takes notice.
    pub applied: Lsn,
}

/// The point at which a history goes on when a timeline has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline that follows.
    pub timeline: TimelineId,
    /// The position at which it leaves this one.
    pub switch_lsn: Lsn,
}

/// A stream of WAL that is being received. Dropping it hangs up.
pub struct ReplicationStream {
    client: Client,
    command: String,
    phase: Phase,
    answer: Answer,
    /// The position at which the next data begins.
    next: Lsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Both sides send.
    Copy,
    /// The server has ended its side.
    ServerDone,
    /// The copy is over, or never began: the rows and the end of the command.
    Result,
    /// The server takes no further command.
    Shutdown,
}

impl ReplicationStream {
    /// Asks for the stream and waits until the server has granted it.
    ///
    /// # Errors
    /// `NotFound` if there is no such slot, `Locked` if it is in use, `SlotLost` if it was invalidated, `Gap` if the WAL was removed;
    /// `Server` and `Denied` if the server refuses otherwise; `Unreachable` if the connection is lost.
    pub async fn start(mut client: Client, what: &StartReplication) -> Result<ReplicationStream> {
        if client.version_num() < 150_000 {
            // 13 and 14 know their timeline only after it, and refuse.
            client.identify_system().await?;
        }
        let command = what.command();
        client.send_command(&command).await?;
        let mut stream = ReplicationStream {
            client,
            command,
            phase: Phase::Copy,
            answer: Answer::default(),
            next: what.from,
        };
        match stream.client.receive_incoming().await? {
            Incoming::CopyBoth => {}
            // Nothing to stream: the timeline ends where we wanted to begin.
            Incoming::Message(Message::RowDescription(body)) => {
                stream.answer.describe(&body)?;
                stream.phase = Phase::Result;
            }
            Incoming::Message(Message::ErrorResponse(body)) => {
                let error = command_failed(ServerMessage::read(body.fields()), &stream.command);
                return Err(stream_failed(error, what.slot.as_ref()));
            }
            Incoming::Message(_) => return Err(protocol("a stream does not begin with a copy")),
        }
        Ok(stream)
    }

    /// Returns the next event. It may be dropped at its await and called again.
    ///
    /// Nothing is read ahead of the caller beyond one message, so a slow caller slows the server.
    ///
    /// # Errors
    /// `Gap` if the WAL was removed; `Server` (or `Denied`) if the server ends the stream with another error or breaks the protocol;
    /// `Unreachable` if the connection is lost.
    pub async fn next_event(&mut self) -> Result<StreamEvent> {
        match self.phase {
            Phase::Copy => {}
            Phase::ServerDone | Phase::Result => return Ok(StreamEvent::Done),
            Phase::Shutdown => return Ok(StreamEvent::Shutdown),
        }
        match self.client.receive().await? {
            Message::CopyData(body) => self.read(body.into_bytes()),
            Message::CopyDone => {
                self.phase = Phase::ServerDone;
                Ok(StreamEvent::Done)
            }
            Message::CommandComplete(_) => {
                self.phase = Phase::Shutdown;
                Ok(StreamEvent::Shutdown)
            }
            Message::ErrorResponse(body) => {
                let error = command_failed(ServerMessage::read(body.fields()), &self.command);
                Err(stream_failed(error, None))
            }
            _ => Err(protocol("a message does not belong to a stream of WAL")),
        }
    }

    fn read(&mut self, mut body: Bytes) -> Result<StreamEvent> {
        let short = |_| protocol("a message of the stream is too short");
        match body.try_get_u8().map_err(short)? {
            b'w' => {
                let data = WalData {
                    start: Lsn(body.try_get_u64().map_err(short)?),
                    server_end: Lsn(body.try_get_u64().map_err(short)?),
                    server_time: TimestampTz(body.try_get_i64().map_err(short)?),
                    bytes: body,
                };
                if data.start != self.next {
                    return Err(protocol(&format!(
                        "WAL of {} was expected, and WAL of {} came",
                        self.next, data.start
                    )));
                }
                let end = data.start.0.checked_add(data.bytes.len() as u64);
                match end {
                    Some(end) if !data.bytes.is_empty() => self.next = Lsn(end),
                    _ => return Err(protocol("a piece of WAL is empty or has no end")),
                }
                Ok(StreamEvent::Data(data))
            }
            b'k' => Ok(StreamEvent::Keepalive(Keepalive {
                server_end: Lsn(body.try_get_u64().map_err(short)?),
                server_time: TimestampTz(body.try_get_i64().map_err(short)?),
                reply_requested: body.try_get_u8().map_err(short)? != 0,
            })),
            _ => Err(protocol("a message of the stream has an unknown kind")),
        }
    }

    /// Tells the server positions; `now` is this host's clock, from which the server computes lags. A call that was dropped leaves the
    /// connection unusable.
    ///
    /// # Errors
    /// `Unreachable` if the connection is lost.
    pub async fn send_status(
        &mut self,
        positions: Positions,
        reply: bool,
        now: TimestampTz,
    ) -> Result<()> {
        if self.phase != Phase::Copy {
            return Ok(());
        }
        let send = self.client.wire.send(|out| {
            out.put_u8(b'd');
            // The length counts itself: 4 + 1 + 4 * 8 + 1.
            out.put_u32(38);
            out.put_u8(b'r');
            out.put_u64(positions.written.0);
            out.put_u64(positions.flushed.0);
            out.put_u64(positions.applied.0);
            out.put_i64(now.0);
            out.put_u8(u8::from(reply));
            Ok(())
        });
        send.await
    }

    /// Ends the stream in order and gives the connection back, with where the history goes on if the timeline has ended. WAL that is
    /// still on its way is dropped.
    ///
    /// # Errors
    /// Those of [`ReplicationStream::next_event`]; `Unreachable` after `Shutdown`.
    pub async fn finish(mut self) -> Result<(Client, Option<NextTimeline>)> {
        match self.phase {
            Phase::Copy | Phase::ServerDone => {
                let send = self.client.wire.send(|out| {
                    frontend::copy_done(out);
                    Ok(())
                });
                send.await?;
            }
            Phase::Result => {}
            Phase::Shutdown => return Err(err!(Unreachable, "server has shut down")),
        }
        loop {
            match (self.client.receive().await?, self.phase) {
                (Message::CopyData(_), Phase::Copy) => {}
                (Message::CopyDone, Phase::Copy) => self.phase = Phase::ServerDone,
                (Message::RowDescription(body), Phase::ServerDone) => {
                    self.answer.describe(&body)?;
                    self.phase = Phase::Result;
                }
                (Message::DataRow(body), Phase::Result) => self.answer.add(&body)?,
                (Message::CommandComplete(_), Phase::ServerDone | Phase::Result) => {}
                (Message::ReadyForQuery(_), Phase::ServerDone | Phase::Result) => break,
                (Message::ErrorResponse(body), _) => {
                    let error = ServerMessage::read(body.fields());
                    return Err(command_failed(error, &self.command));
                }
                _ => {
                    return Err(protocol(
                        "a message does not belong to the end of a stream of WAL",
                    ));
                }
            }
        }
        self.client.busy = false;
        let rows = self.answer.into_rows();
        let next = match self.phase {
            Phase::Result => Some(NextTimeline {
                timeline: rows.timeline(0, 0)?,
                switch_lsn: rows.value(0, 1)?,
            }),
            _ => None,
        };
        Ok((self.client, next))
    }

    /// The host as messages name it.
    pub fn host(&self) -> &str {
        self.client.host()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Error};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn both() -> Vec<u8> {
        message(b'W', &[0, 0, 0])
    }

    fn data(start: u64, bytes: &[u8]) -> Vec<u8> {
        let start = start.to_be_bytes();
        let body = [&b"w"[..], &start, &[0; 7], &[9], &[0; 8], bytes].concat();
        message(b'd', &body)
    }

    fn keepalive(reply: u8) -> Vec<u8> {
        message(
            b'd',
            &[&b"k"[..], &[0; 7], &[5], &[0; 7], &[3], &[reply]].concat(),
        )
    }

    /// `next_tli` and `next_tli_startpos`, then both ends of the command.
    fn result(rows: bool) -> Vec<u8> {
        let mut out = Vec::new();
        if rows {
            let mut description = vec![0, 2];
            for name in ["next_tli", "next_tli_startpos"] {
                description.extend_from_slice(name.as_bytes());
                description.extend_from_slice(&[0; 19]);
            }
            out.extend(message(b'T', &description));
            out.extend(message(
                b'D',
                &[&[0, 2, 0, 0, 0, 1][..], b"2", &[0, 0, 0, 4], b"0/A0"].concat(),
            ));
        }
        for _ in 0..2 {
            out.extend(message(b'C', b"START_STREAMING\0"));
        }
        out.extend(message(b'Z', b"I"));
        out
    }

    /// Returns the events from a server's bytes until it hangs up, then the result of `finish`.
    fn play(
        bytes: Vec<u8>,
    ) -> std::result::Result<(Vec<StreamEvent>, Option<NextTimeline>), Error> {
        let runtime = crate::wire::runtime::start().unwrap();
        runtime.block_on(async {
            let (server, client) = UnixStream::pair().unwrap();
            let (mut from_client, mut to_client) = server.into_split();
            let drain = tokio::spawn(async move {
                let mut seen = Vec::new();
                let _ = from_client.read_to_end(&mut seen).await;
            });
            let send = tokio::spawn(async move {
                let _ = to_client.write_all(&bytes).await;
            });
            let what = StartReplication {
                slot: Some("s".parse().unwrap()),
                timeline: TimelineId::FIRST,
                from: Lsn(0x10),
            };
            let mut stream = ReplicationStream::start(Client::on(client, 150_000), &what).await?;
            let mut events = Vec::new();
            loop {
                let event = stream.next_event().await?;
                let end = matches!(event, StreamEvent::Done | StreamEvent::Shutdown);
                events.push(event);
                if end {
                    break;
                }
            }
            let next = match events.last() {
                Some(StreamEvent::Done) => stream.finish().await?.1,
                _ => {
                    drop(stream);
                    None
                }
            };
            send.await.unwrap();
            drain.await.unwrap();
            Ok((events, next))
        })
    }

    fn whole() -> Vec<u8> {
        [
            both(),
            data(0x10, b"abc"),
            keepalive(1),
            data(0x13, b"d"),
            message(b'c', b""),
            result(true),
        ]
        .concat()
    }

    #[test]
    fn a_timeline_is_received_to_its_end() {
        let (events, next) = play(whole()).unwrap();
        let [
            StreamEvent::Data(first),
            StreamEvent::Keepalive(alive),
            StreamEvent::Data(second),
            StreamEvent::Done,
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((first.start, first.end()), (Lsn(0x10), Lsn(0x13)));
        assert_eq!((&first.bytes[..], first.server_end), (&b"abc"[..], Lsn(9)));
        assert!(alive.reply_requested);
        assert_eq!(alive.server_end, Lsn(5));
        assert_eq!(alive.server_time, TimestampTz(3));
        assert_eq!(second.end(), Lsn(0x14));
        let next = next.unwrap();
        assert_eq!((next.timeline.get(), next.switch_lsn), (2, Lsn(0xA0)));
    }

    #[test]
    fn a_timeline_without_more_and_a_shutdown_are_ends_too() {
        let (events, next) = play(result(true)).unwrap();
        assert_eq!(events, [StreamEvent::Done]);
        assert!(next.is_some());
        let shut = [both(), message(b'C', b"COPY 0\0")].concat();
        assert_eq!(play(shut).unwrap().0, [StreamEvent::Shutdown]);
        let (_, next) = play([both(), message(b'c', b""), result(false)].concat()).unwrap();
        assert_eq!(next, None);
    }

    #[test]
    fn what_does_not_continue_is_refused() {
        let code = |bytes: Vec<u8>| play([both(), bytes].concat()).unwrap_err().code();
        assert_eq!(code(data(0x11, b"x")), Code::Server);
        assert_eq!(code(data(0x10, b"")), Code::Server);
        assert_eq!(code(message(b'd', b"")), Code::Server);
        assert_eq!(code(message(b'd', b"w123")), Code::Server);
        assert_eq!(code(message(b'd', b"?")), Code::Server);
        assert_eq!(code(data(0x10, b"x")), Code::Unreachable);
    }

    #[test]
    fn refusals_of_a_slot_have_codes_of_their_own() {
        let code = |sqlstate: &str| {
            let error = format!("SERROR\0VERROR\0C{sqlstate}\0Mno\0\0");
            play(message(b'E', error.as_bytes())).unwrap_err().code()
        };
        assert_eq!(code("55006"), Code::Locked);
        assert_eq!(code("42704"), Code::NotFound);
        assert_eq!(code("55000"), Code::SlotLost);
        assert_eq!(code("58P01"), Code::Gap);
        assert_eq!(code("42501"), Code::Denied);
        assert_eq!(code("XX000"), Code::Server);
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_server_are_read_without_a_panic(
            at in 0usize..300, noise in proptest::collection::vec(any::<u8>(), 0..20), cut in 0usize..20
        ) {
            let mut bytes = whole();
            let at = at % bytes.len();
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, noise);
            let _ = play(bytes);
        }
    }
}
