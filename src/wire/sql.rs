//! Plain SQL, by tokio-postgres.
//!
//! tokio-postgres would send a password to any server that asks for it, believe answers of any length, and refuse most settings of a
//! libpq connection string. So [`Client`] opens and authenticates the connection. Then tokio-postgres takes it over: `Adopted` shows it a
//! start-up that has happened already, and limits what an answer may have.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::str::Utf8Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::client::{ANSWER_SIZE_MAX, Client, Rows, Session, command_failed, report};
use super::conninfo::{ConnInfo, Host};
use super::message::{Stream, lost};
use super::server_error::{ServerMessage, protocol};
use crate::err;
use crate::error::{Code, Error, Result, causes};
use crate::pg::version::Major;
use crate::progress::Progress;

/// How long a session that is closed waits for its end.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// A session for plain SQL in `dbname`, or in `postgres` if none is given.
pub struct Sql {
    client: tokio_postgres::Client,
    driver: JoinHandle<()>,
    server_version: String,
    version_num: u32,
    host: String,
    place: Host,
    /// Bytes that the answer under way may still have.
    budget: Arc<AtomicUsize>,
    /// Why the connection has ended.
    failure: Arc<Mutex<Option<Error>>>,
}

impl Sql {
    /// Connects to the first host that will do. Notices of the server go to `progress`.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub async fn connect(info: &ConnInfo, progress: Arc<dyn Progress>) -> Result<Sql> {
        let client = Client::connect(info, Session::Sql, Arc::clone(&progress)).await?;
        Sql::take_over(client, progress).await
    }

    async fn take_over(client: Client, progress: Arc<dyn Progress>) -> Result<Sql> {
        let (host, version_num) = (client.host().to_owned(), client.version_num());
        let place = client.place().clone();
        let server_version = client.parameter("server_version").unwrap_or_default();
        let server_version = server_version.to_owned();
        let budget = Arc::new(AtomicUsize::new(ANSWER_SIZE_MAX));
        let adopted = Adopted::new(client, Arc::clone(&budget));
        let mut config = tokio_postgres::Config::new();
        // The user is the one of the start-up that has happened; this one goes nowhere.
        config.user("adopted").ssl_mode(SslMode::Disable);
        let (client, connection) = config
            .connect_raw(adopted, NoTls)
            .await
            .map_err(|error| protocol("after start-up").source(error))?;
        let failure = Arc::new(Mutex::new(None));
        let driver = tokio::spawn(drive(connection, progress, Arc::clone(&failure)));
        Ok(Sql {
            client,
            driver,
            server_version,
            version_num,
            host,
            place,
            budget,
            failure,
        })
    }

    /// Runs one command and returns its rows. If there are several result sets, the last one with columns counts.
    ///
    /// # Errors
    /// `Server` (`Denied` for missing rights) if the server reports an error, after which the session can be used again; `Server`, of which
    /// [`is_own_limit`] tells, for an answer that this client does not take; `Unreachable` if the connection is lost.
    pub async fn query(&mut self, command: &str) -> Result<Rows> {
        self.budget.store(ANSWER_SIZE_MAX, Ordering::Relaxed);
        let answer = self.client.simple_query(command).await;
        let messages = answer.map_err(|error| self.failed(error, command))?;
        let mut rows = Rows::default();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    rows = Rows {
                        columns: columns.iter().map(|c| c.name().to_owned()).collect(),
                        rows: Vec::new(),
                    };
                }
                SimpleQueryMessage::Row(row) => rows.rows.push(values(&row)?),
                _ => {}
            }
        }
        Ok(rows)
    }

    fn failed(&self, error: tokio_postgres::Error, command: &str) -> Error {
        if let Some(message) = error.as_db_error() {
            return command_failed(read(message), command);
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure
            .take()
            .unwrap_or_else(|| ended("run a query", error))
    }

    /// Hands what `COPY … TO STDOUT` gives on to `COPY … FROM STDIN` of another session; returns its rows. `tick` is called for each piece.
    ///
    /// The other server has taken nothing unless all of it came: a session that breaks off ends its copy with an error.
    ///
    /// # Errors
    /// Those of [`Sql::query`], of either side; those of `tick`.
    pub async fn copy_into(
        &mut self,
        out: &str,
        into: &mut Sql,
        command: &str,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u64> {
        self.budget.store(ANSWER_SIZE_MAX, Ordering::Relaxed);
        into.budget.store(ANSWER_SIZE_MAX, Ordering::Relaxed);
        let from = self.client.copy_out(out).await;
        let from = from.map_err(|error| self.failed(error, out))?;
        let to = into.client.copy_in::<_, Bytes>(command).await;
        let to = to.map_err(|error| into.failed(error, command))?;
        let (mut from, mut to) = (Box::pin(from), Box::pin(to));
        while let Some(piece) = from.next().await {
            self.budget.store(ANSWER_SIZE_MAX, Ordering::Relaxed);
            let piece = piece.map_err(|error| self.failed(error, out))?;
            let sent = to.feed(piece).await;
            sent.map_err(|error| into.failed(error, command))?;
            tick()?;
        }
        let finished = to.as_mut().finish().await;
        finished.map_err(|error| into.failed(error, command))
    }

    /// The server's version as `server_version_num` counts: 150020 for 15.20.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// The server's version as it names it itself.
    pub fn server_version(&self) -> &str {
        &self.server_version
    }

    /// The server's major version.
    ///
    /// # Errors
    /// `Unsupported` for one newer than this program.
    pub fn major(&self) -> Result<Major> {
        Major::from_server_version_num(self.version_num)
    }

    /// The host as messages name it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The place that was reached, of the several that the settings may name.
    pub fn place(&self) -> &Host {
        &self.place
    }

    /// Ends the session in order.
    pub async fn close(self) {
        drop(self.client);
        // The other side may be gone already; there is nothing left to lose.
        let _ = tokio::time::timeout(CLOSE_MAX, self.driver).await;
    }
}

/// The error of a session that has ended. An answer that this client does not take is the same when it is asked for again.
fn ended(doing: &str, error: tokio_postgres::Error) -> Error {
    let error = lost(doing, io::Error::other(error));
    match is_own_limit(&error) {
        true => error.with_code(Code::Server),
        false => error,
    }
}

/// An answer that is longer than this client takes.
#[derive(Debug)]
struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer has more than 64 MiB")
    }
}

impl std::error::Error for TooLong {}

/// Whether an answer is longer than this client takes.
pub fn is_too_long(error: &Error) -> bool {
    causes(error).any(|cause| cause.is::<TooLong>())
}

/// Whether an answer is one that this client does not take: it is too long, or not in UTF-8. Nothing is wrong with the server for that.
pub fn is_own_limit(error: &Error) -> bool {
    is_too_long(error) || causes(error).any(|cause| cause.is::<Utf8Error>())
}

/// Carries messages until the session ends.
async fn drive(
    mut connection: Connection<Adopted, tokio_postgres::tls::NoTlsStream>,
    progress: Arc<dyn Progress>,
    failure: Arc<Mutex<Option<Error>>>,
) {
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => report(progress.as_ref(), &read(&notice)),
            Ok(_) => {}
            Err(error) => {
                let error = ended("talk to the server", error);
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    }
}

fn read(message: &DbError) -> ServerMessage {
    ServerMessage {
        severity: message.parsed_severity().map_or_else(
            || message.severity().to_owned(),
            |severity| severity.to_string(),
        ),
        sqlstate: message.code().code().to_owned(),
        message: message.message().to_owned(),
        detail: message.detail().map(str::to_owned),
        hint: message.hint().map(str::to_owned),
        routine: message.routine().map(str::to_owned),
    }
}

fn values(row: &SimpleQueryRow) -> Result<Vec<Option<Bytes>>> {
    let value = |column| match row.try_get(column) {
        Ok(text) => Ok(text.map(|text: &str| Bytes::copy_from_slice(text.as_bytes()))),
        Err(error) => Err(err!(Server, "a value of the answer is not UTF-8").source(error)),
    };
    (0..row.len()).map(value).collect()
}

/// A connection that is authenticated, and looks as if its start-up were still to come.
struct Adopted {
    stream: Stream,
    /// The bytes that are shown before the server's own bytes.
    shown: BytesMut,
    /// The beginning of the start-up message, until all of it has been swallowed.
    startup: Option<BytesMut>,
    budget: Arc<AtomicUsize>,
}

impl Adopted {
    fn new(client: Client, budget: Arc<AtomicUsize>) -> Adopted {
        let pid = client.pid().unwrap_or_default();
        let (stream, received) = client.wire.into_parts();
        let mut shown = BytesMut::new();
        // AuthenticationOk, BackendKeyData, ReadyForQuery; what came behind the real ones follows.
        shown.put_slice(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c");
        shown.put_i32(pid);
        shown.put_slice(b"\0\0\0\0Z\0\0\0\x05I");
        shown.put_slice(&received);
        Adopted {
            stream,
            shown,
            startup: Some(BytesMut::new()),
            budget,
        }
    }
}

impl AsyncRead for Adopted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shown.is_empty() {
            let length = this.shown.len().min(buf.remaining());
            buf.put_slice(&this.shown.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        let take = |left: usize| left.checked_sub(read);
        let within = this
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        Poll::Ready(match within {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other(TooLong)),
        })
    }
}

impl AsyncWrite for Adopted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(startup) = &mut this.startup else {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        };
        // Its first four bytes are its length.
        let length = match startup.get(..4) {
            Some(mut length) => length.get_u32() as usize,
            None => 4,
        };
        let taken = bytes.len().min(length.saturating_sub(startup.len()).max(1));
        startup.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        let is_whole = |s: &BytesMut| {
            s.get(..4)
                .is_some_and(|mut l| l.get_u32() as usize == s.len())
        };
        if is_whole(startup) {
            this.startup = None;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::progress::Silent;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    /// The answer with one row of one column.
    fn row(value: &[u8]) -> Vec<u8> {
        let description = b"\0\x01name\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        let data = [&b"\0\x01"[..], &length, value].concat();
        [
            message(b'T', description),
            message(b'D', &data),
            message(b'C', b"SELECT 1\0"),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    /// A session, and the end of its connection that is the server's.
    async fn session() -> (Sql, UnixStream) {
        let (server, client) = UnixStream::pair().unwrap();
        let client = Client::on(client, 170_000);
        (
            Sql::take_over(client, Arc::new(Silent)).await.unwrap(),
            server,
        )
    }

    /// Reads the next query, which must be the first thing that the server hears.
    async fn heard(server: &mut UnixStream) -> String {
        assert_eq!(server.read_u8().await.unwrap(), b'Q');
        let length = server.read_u32().await.unwrap();
        let mut text = vec![0; length as usize - 4];
        server.read_exact(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_server_hears_queries_and_no_second_start_up() {
        let (mut sql, mut server) = session().await;
        let asked = async {
            let rows = sql.query("select 'one'").await.unwrap();
            assert_eq!(rows.columns, ["name"]);
            assert_eq!(rows.text(0, 0).unwrap(), Some("one"));
            let refused = sql.query("select secret").await.unwrap_err();
            assert_eq!(refused.code(), Code::Denied);
            assert!(
                refused
                    .to_string()
                    .starts_with("run command \"select secret\": no")
            );
            let rows = sql.query("select 'two'").await.unwrap();
            assert_eq!(rows.text(0, 0).unwrap(), Some("two"));
            sql.close().await;
        };
        let answered = async {
            assert_eq!(heard(&mut server).await, "select 'one'\0");
            server.write_all(&row(b"one")).await.unwrap();
            assert_eq!(heard(&mut server).await, "select secret\0");
            let error = message(b'E', b"SERROR\0VERROR\0C42501\0Mno\0\0");
            server.write_all(&error).await.unwrap();
            server.write_all(&message(b'Z', b"I")).await.unwrap();
            assert_eq!(heard(&mut server).await, "select 'two'\0");
            server.write_all(&row(b"two")).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'X');
        };
        tokio::join!(asked, answered);
    }

    #[tokio::test]
    async fn k65_an_answer_without_end_ends_the_session_and_is_not_asked_for_again() {
        let (mut sql, mut server) = session().await;
        let flood = async {
            heard(&mut server).await;
            // A length that is a lie, and bytes without end.
            server.write_all(b"T\x7f\xff\xff\xff").await.unwrap();
            while server.write_all(&[0; 1 << 20]).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(
            async {
                let answer = sql.query("select 1").await;
                sql.close().await;
                answer
            },
            flood
        );
        let error = answer.unwrap_err();
        assert_eq!(error.code(), Code::Server);
        assert!(error.to_string().contains("more than 64 MiB"), "{error}");
        assert!(is_too_long(&error) && is_own_limit(&error));
    }

    #[tokio::test]
    async fn a_server_that_goes_away_is_unreachable() {
        let (mut sql, mut server) = session().await;
        let gone = async {
            heard(&mut server).await;
            drop(server);
        };
        let (answer, ()) = tokio::join!(sql.query("select 1"), gone);
        let error = answer.unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
        assert!(!is_own_limit(&error));
        let again = sql.query("select 1").await.unwrap_err();
        assert_eq!(again.code(), Code::Unreachable);
    }

    #[tokio::test]
    async fn y53_what_is_not_utf8_is_refused_and_proves_nothing() {
        let (mut sql, mut server) = session().await;
        let answered = async {
            heard(&mut server).await;
            server.write_all(&row(b"\xff")).await.unwrap();
        };
        let (answer, ()) = tokio::join!(sql.query("select 1"), answered);
        let error = answer.unwrap_err();
        assert_eq!(error.code(), Code::Server);
        assert!(is_own_limit(&error) && !is_too_long(&error));
    }
}
