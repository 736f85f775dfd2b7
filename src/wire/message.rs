//! Messages on the connection: framing with length limits over a socket, plain or encrypted.
//!
//! The length of every message is checked before anything is allocated for it. Reading may be cancelled at any await: what has arrived
//! stays in the buffer.
//!
//! PostgreSQL: doc/src/sgml/protocol.sgml.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{COPY_DATA_TAG, Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::server_error::protocol;
use crate::err;
use crate::error::{Code, Error, Result};

/// The longest message before authentication is complete; libpq allows 30000 bytes.
const BEFORE_AUTHENTICATION_MAX: usize = 64 << 10;
/// The longest message other than CopyData.
const MESSAGE_SIZE_MAX: usize = 16 << 20;
/// The longest CopyData; servers send at most 128 KiB.
const COPY_DATA_SIZE_MAX: usize = 64 << 20;
/// Free room for one read: exactly the longest message of WAL that servers send (128 KiB behind 30 bytes). So while much comes, a buffer ends
/// where a message does, and no half of one has to be copied into the next.
const READ_SIZE: usize = (128 << 10) + 30;
/// With less free room than this a read gets a new buffer. Every message shares its buffer: with one for each of many small messages,
/// those that wait in a queue would hold far more memory than they have bytes.
const READ_SIZE_MIN: usize = 8 << 10;
/// `CopyBothResponse`, which postgres-protocol does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// The three kinds of connection.
pub(super) enum Stream {
    Socket(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether others on the network cannot listen: encrypted, or on this machine.
    pub fn is_private(&self) -> bool {
        !matches!(self, Stream::Tcp(_))
    }
}

/// A connection that carries messages.
pub(super) struct Wire {
    pub stream: Stream,
    received: BytesMut,
    to_send: BytesMut,
    authenticated: bool,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        Wire {
            stream,
            received: BytesMut::new(),
            to_send: BytesMut::new(),
            authenticated: false,
        }
    }

    /// The stream, and what was received and not read of it.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.received)
    }

    /// Lifts the short limit of the time before authentication.
    pub fn set_authenticated(&mut self) {
        self.authenticated = true;
    }

    /// Encodes one message and sends it.
    pub async fn send(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<()> {
        self.to_send.clear();
        encode(&mut self.to_send)
            .map_err(|error| err!(Internal, "could not encode a message").source(error))?;
        let sent = async {
            self.stream.write_all(&self.to_send).await?;
            self.stream.flush().await
        };
        let sent = sent.await.map_err(|error| lost("send to server", error));
        self.to_send.clear();
        sent
    }

    /// Returns the next message where no copy in both directions may begin.
    ///
    /// # Errors
    /// `Unreachable` if the connection is lost; `Server` if the message is too long or not understood.
    pub async fn receive(&mut self) -> Result<Message> {
        match self.receive_incoming().await? {
            Incoming::Message(message) => Ok(message),
            Incoming::CopyBoth => Err(protocol("a copy in both directions was not asked for")),
        }
    }

    /// Returns the next message.
    ///
    /// # Errors
    /// As [`Wire::receive`].
    pub async fn receive_incoming(&mut self) -> Result<Incoming> {
        loop {
            let wanted = match self.buffered()? {
                Buffered::Whole => break,
                Buffered::Missing(bytes) => bytes,
            };
            let room = self.received.capacity() - self.received.len();
            if room < wanted.max(READ_SIZE_MIN) {
                self.received.reserve(wanted.max(READ_SIZE));
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => {
                    return Err(err!(
                        Unreachable,
                        "server closed the connection unexpectedly"
                    ));
                }
                Ok(_) => {}
                Err(error) => return Err(lost("receive from server", error)),
            }
        }
        if self.received.first() == Some(&COPY_BOTH_RESPONSE_TAG) {
            self.skip_message();
            return Ok(Incoming::CopyBoth);
        }
        match Message::parse(&mut self.received) {
            Ok(Some(message)) => Ok(Incoming::Message(message)),
            Ok(None) => Err(err!(Internal, "a whole message could not be parsed")),
            Err(error) => {
                Err(err!(Server, "server sent a message that cannot be understood").source(error))
            }
        }
    }

    /// Drops the whole message at the front: its formats are those of a copy without columns.
    fn skip_message(&mut self) {
        if let Ok(Some(header)) = Header::parse(&self.received) {
            let size = usize::try_from(header.len()).unwrap_or(0) + 1;
            self.received.advance(size.min(self.received.len()));
        }
    }

    fn buffered(&self) -> Result<Buffered> {
        let header = Header::parse(&self.received);
        let header =
            header.map_err(|error| err!(Server, "server sent an invalid message").source(error))?;
        let Some(header) = header else {
            return Ok(Buffered::Missing(5 - self.received.len()));
        };
        let limit = match header.tag() {
            _ if !self.authenticated => BEFORE_AUTHENTICATION_MAX,
            COPY_DATA_TAG => COPY_DATA_SIZE_MAX,
            _ => MESSAGE_SIZE_MAX,
        };
        let size = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if size > limit {
            return Err(err!(
                Server,
                "server sent a message of {size} bytes, more than the limit of {limit}"
            ));
        }
        Ok(match (size + 1).checked_sub(self.received.len()) {
            None | Some(0) => Buffered::Whole,
            Some(missing) => Buffered::Missing(missing),
        })
    }
}

/// A message, or the beginning of a copy in both directions.
pub(super) enum Incoming {
    Message(Message),
    CopyBoth,
}

enum Buffered {
    Whole,
    Missing(usize),
}

/// An I/O error on a connection: whatever its number, the server may be reached again later.
pub(super) fn lost(doing: &str, error: io::Error) -> Error {
    Error::new(Code::Unreachable, doing).source(error)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn receive(bytes: &[u8], authenticated: bool) -> Result<Message> {
        let (mut server, client) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(Stream::Socket(client));
        if authenticated {
            wire.set_authenticated();
        }
        server.write_all(bytes).await.unwrap();
        drop(server);
        wire.receive().await
    }

    #[tokio::test]
    async fn lengths_are_checked_before_anything_is_allocated() {
        let code = async |bytes: &[u8], authenticated| {
            receive(bytes, authenticated).await.err().map(|e| e.code())
        };
        assert_eq!(code(b"d\x7f\xff\xff\xff", true).await, Some(Code::Server));
        assert_eq!(code(b"T\x02\x00\x00\x00", true).await, Some(Code::Server));
        assert_eq!(code(b"R\x00\x02\x00\x00", false).await, Some(Code::Server));
        assert_eq!(code(b"R\x00\x00\x00\x03", false).await, Some(Code::Server));
        assert_eq!(
            code(b"Z\x00\x00\x00\x05", true).await,
            Some(Code::Unreachable)
        );
        assert_eq!(code(b"", true).await, Some(Code::Unreachable));
        assert_eq!(code(b"?\x00\x00\x00\x04", true).await, Some(Code::Server));
        assert_eq!(
            code(b"W\x00\x00\x00\x07\x00\x00\x00", true).await,
            Some(Code::Server)
        );
        assert_eq!(code(b"Z\x00\x00\x00\x05I", true).await, None);
    }
}
