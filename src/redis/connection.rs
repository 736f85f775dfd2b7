//! A connection to a server: plain, by TLS or by a socket, with a limit to the server's silence.
//!
//! It blocks for no longer than a tick, so that its user can stop and keep what has to be kept. A full buffer is read no further: the server waits then, as
//! for any slow replica.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::refusal;
use super::resp::{self, Reply};
use crate::config::{RedisAddress, Secret};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::wire::tls;

/// How long a read may block.
const TICK: Duration = Duration::from_millis(200);
/// How long an address may take to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// More never waits to be understood: the longest reply is shorter, unless values are asked for.
const BUFFER_BYTES_MAX: usize = 32 << 20;
/// The same where values are asked for.
const VALUE_BYTES_MAX: usize = 512 << 20;

/// Asked all the while whether to go on.
pub type Tick<'t> = &'t mut dyn FnMut() -> Result<()>;

/// The way to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The place where it listens.
    pub address: RedisAddress,
    /// The files of TLS; none: plain.
    pub tls: Option<tls::Files>,
    /// How long it may be silent.
    pub stall_timeout: Duration,
    /// The user's name, for messages.
    pub user: Option<String>,
}

/// The arrival that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// Bytes.
    Bytes,
    /// The end: the server closed the connection.
    Closed,
    /// Nothing, for as long as was waited.
    Nothing,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection.
pub struct Connection {
    way: Way,
    stream: Stream,
    /// How long a read blocks.
    block: Duration,
    buffer: Vec<u8>,
    /// How far the buffer may grow.
    buffer_max: usize,
    /// The part of the buffer that was received and not taken yet.
    start: usize,
    end: usize,
}

impl Connection {
    /// Connects to the first address of the host that answers, and names the user where there is a password.
    ///
    /// # Errors
    /// `Unreachable`; `Denied` for a certificate, a user or a password that is refused; `Config` for files of TLS that cannot be read; those of `tick`.
    pub fn open(way: Way, password: Option<&Secret>, tick: Tick<'_>) -> Result<Connection> {
        let shown = way.address.to_string();
        let opened = Stream::open(&way, tick);
        let stream = opened.map_err(|e| match e.code() {
            Code::Interrupted => e,
            _ => e.context(format!("connect to \"{shown}\"")),
        })?;
        let mut connection = Connection {
            way,
            stream,
            block: TICK,
            buffer: vec![0; BUFFER_BYTES],
            buffer_max: BUFFER_BYTES_MAX,
            start: 0,
            end: 0,
        };
        if let Some(password) = password {
            let user = connection.way.user.clone();
            let mut words = vec![&b"AUTH"[..]];
            words.extend(user.as_deref().map(str::as_bytes));
            words.push(password.expose().as_bytes());
            connection.ask(&words, tick)?;
        }
        Ok(connection)
    }

    /// The place that it leads to.
    pub fn address(&self) -> &RedisAddress {
        &self.way.address
    }

    /// Takes replies as long as values of keys are.
    pub fn take_values(&mut self) {
        self.buffer_max = VALUE_BYTES_MAX;
    }

    /// Sends a command.
    ///
    /// # Errors
    /// `Unreachable` when the connection is gone.
    pub fn send(&mut self, words: &[&[u8]]) -> Result<()> {
        self.send_at_once(&[words])
    }

    /// Sends several commands in one piece.
    ///
    /// # Errors
    /// `Unreachable` when the connection is gone.
    pub fn send_at_once(&mut self, commands: &[&[&[u8]]]) -> Result<()> {
        let bytes: Vec<u8> = commands.iter().flat_map(|c| resp::command(c)).collect();
        let sent = self.stream.write_all(&bytes);
        let sent = sent.and_then(|()| self.stream.flush());
        sent.map_err(|e| lost().source(e))
    }

    /// Sends a command, and returns its reply. An error of the server is one of ours.
    ///
    /// # Errors
    /// Those of the server, explained; `Unreachable`, `Deadline`, `Server`; those of `tick`.
    pub fn ask(&mut self, words: &[&[u8]], tick: Tick<'_>) -> Result<Reply> {
        self.send(words)?;
        match self.reply(tick)? {
            Reply::Error(said) => Err(self.refused(words, &said)),
            reply => Ok(reply),
        }
    }

    /// Explains an error that the server gave to a command.
    pub fn refused(&self, words: &[&[u8]], said: &str) -> Error {
        let command = words.first().copied().unwrap_or_default();
        let command = String::from_utf8_lossy(command);
        refusal::explain(&command, said, self.way.user.as_deref())
    }

    /// Reads the next reply.
    ///
    /// # Errors
    /// `Unreachable`, `Deadline`, `Server` for what is no reply; those of `tick`.
    pub fn reply(&mut self, tick: Tick<'_>) -> Result<Reply> {
        self.read_whole(tick, resp::reply)
    }

    /// Reads the next line that is not empty.
    ///
    /// # Errors
    /// As [`Connection::reply`].
    pub fn line(&mut self, tick: Tick<'_>) -> Result<Vec<u8>> {
        let read = |bytes: &[u8]| Ok(resp::line(bytes)?.map(|(line, used)| (line.to_vec(), used)));
        self.read_whole(tick, read)
    }

    fn read_whole<T>(
        &mut self,
        tick: Tick<'_>,
        read: impl Fn(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<T> {
        loop {
            if let Some((found, used)) = read(self.received())? {
                self.taken(used);
                return Ok(found);
            }
            let patience = self.way.stall_timeout;
            match self.more(patience, tick)? {
                Arrived::Bytes => {}
                Arrived::Closed => return Err(lost()),
                Arrived::Nothing => return Err(silent(patience)),
            }
        }
    }

    /// Bytes that were received and not taken yet.
    pub fn received(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes bytes of what was received.
    pub fn taken(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// The address of this host that the server sees; none where the server is on this host.
    pub fn own_ip(&self) -> Option<IpAddr> {
        let address = match &self.stream {
            Stream::Tcp(stream) => stream.local_addr(),
            Stream::Tls(stream) => stream.sock.local_addr(),
            Stream::Unix(_) => return None,
        };
        let ip = address.ok().map(|address| address.ip());
        ip.filter(|ip| !ip.is_loopback())
    }

    /// Whether the server listens at an address of this host.
    pub fn is_of_this_host(&self) -> bool {
        let stream = match &self.stream {
            Stream::Unix(_) => return true,
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        };
        let own = stream.local_addr().map(|address| address.ip());
        let other = stream.peer_addr().map(|address| address.ip());
        matches!((own, other), (Ok(own), Ok(other)) if own == other)
    }

    /// How long the server may be silent.
    pub fn stall_timeout(&self) -> Duration {
        self.way.stall_timeout
    }

    /// Waits for more bytes than were received, for no longer than `patience`.
    ///
    /// # Errors
    /// `Unreachable` when the connection breaks; those of `tick`.
    pub fn more(&mut self, patience: Duration, tick: Tick<'_>) -> Result<Arrived> {
        self.make_room()?;
        self.set_block(patience.clamp(Duration::from_millis(1), TICK))?;
        let since = Instant::now();
        loop {
            tick()?;
            let free = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.stream.read(free) {
                Ok(0) => return Ok(Arrived::Closed),
                Ok(count) => {
                    self.end += count;
                    return Ok(Arrived::Bytes);
                }
                Err(e) if is_wait(&e) => {
                    if since.elapsed() >= patience {
                        return Ok(Arrived::Nothing);
                    }
                }
                // TLS wants to be closed in order, which no server does that was killed.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(Arrived::Closed),
                Err(e) => return Err(lost().source(e)),
            }
        }
    }

    /// How long a read may block from now on, unless bytes come.
    fn set_block(&mut self, time: Duration) -> Result<()> {
        if self.block == time {
            return Ok(());
        }
        self.block = time;
        let set = match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(time)),
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(time)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(time)),
        };
        set.map_err(|e| Error::from_io("set up the connection", e))
    }

    fn make_room(&mut self) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end < self.buffer.len() {
            return Ok(());
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            return Ok(());
        }
        match self.buffer.len() * 2 {
            length if length <= self.buffer_max => self.buffer.resize(length, 0),
            _ if self.buffer_max == VALUE_BYTES_MAX => {
                return Err(err!(
                    Unsupported,
                    "the value has more than {} MiB",
                    VALUE_BYTES_MAX >> 20
                )
                .hint("Restore with --to, start a server with the directory, and copy what is wanted of it."));
            }
            _ => return Err(resp::no_sense(self.received())),
        }
        Ok(())
    }
}

/// The error of a connection that ended before its time.
pub fn lost() -> Error {
    err!(Unreachable, "the server closed the connection").hint(
        "Run the command again. If it ends at once each time: the server may be in protected mode, expect TLS, or drop replicas that exceed client-output-buffer-limit; its log says which.",
    )
}

/// The error of a server that says nothing.
pub fn silent(patience: Duration) -> Error {
    err!(
        Deadline,
        "the server was silent for {} s",
        patience.as_secs()
    )
    .hint("Look at the server and the network, and run the command again. stall_timeout sets how long silence is borne.")
}

fn is_wait(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

impl Stream {
    fn open(way: &Way, tick: Tick<'_>) -> Result<Stream> {
        let (host, port) = match &way.address {
            RedisAddress::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(unreachable)?;
                stream
                    .set_read_timeout(Some(TICK))
                    .and_then(|()| stream.set_write_timeout(Some(way.stall_timeout)))
                    .map_err(|e| Error::from_io("set up the connection", e))?;
                return Ok(Stream::Unix(stream));
            }
            RedisAddress::Tcp { host, port } => (host.as_str(), *port),
        };
        // Wrong files of TLS are found without the server.
        let tls = way.tls.as_ref().map(tls::for_files).transpose()?;
        let stream = connect((host, port), tick)?;
        stream
            .set_read_timeout(Some(TICK))
            .and_then(|()| stream.set_write_timeout(Some(way.stall_timeout)))
            .and_then(|()| stream.set_nodelay(true))
            .map_err(|e| Error::from_io("set up the connection", e))?;
        let Some(config) = tls else {
            return Ok(Stream::Tcp(stream));
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| err!(Config, "host name \"{host}\" cannot be used with TLS").source(e))?;
        let session = ClientConnection::new(config, name)
            .map_err(|e| err!(Config, "could not set up TLS").source(e))?;
        let mut stream = StreamOwned::new(session, stream);
        shake_hands(&mut stream, way.stall_timeout, tick)?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

fn connect(host: (&str, u16), tick: Tick<'_>) -> Result<TcpStream> {
    let found = host.to_socket_addrs();
    let found = found.map_err(|e| err!(Unreachable, "find the host's address").source(e))?;
    let mut failure = None;
    for address in found {
        tick()?;
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.map_or_else(|| err!(Unreachable, "the host has no address"), unreachable))
}

fn unreachable(error: std::io::Error) -> Error {
    err!(Unreachable, "the server does not answer")
        .source(error)
        .hint("Check that the server runs and listens there (port, unixsocket, bind), and that this user may reach it.")
}

fn shake_hands(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    patience: Duration,
    tick: Tick<'_>,
) -> Result<()> {
    let since = Instant::now();
    while stream.conn.is_handshaking() {
        tick()?;
        match stream.conn.complete_io(&mut stream.sock) {
            Ok(_) => {}
            Err(e) if is_wait(&e) && since.elapsed() < patience => {}
            Err(e) if is_wait(&e) => return Err(silent(patience)),
            Err(e) => return Err(no_tls(e)),
        }
    }
    Ok(())
}

/// The error of a handshake: the network's, or one about the certificates.
fn no_tls(error: std::io::Error) -> Error {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let hint = match inner {
        None => {
            "The server ended the handshake: it may not speak TLS on this port (tls-port), or want a certificate (tls-auth-clients): name one with tls.cert_file and tls.key_file."
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            "The server's certificate is not of an authority in tls.ca_file, has expired, or does not name the host of address."
        }
        Some(_) => {
            "The server may not speak TLS on this port (tls-port), or want another certificate (tls-auth-clients): tls.cert_file and tls.key_file."
        }
    };
    let code = match inner {
        None => Code::Unreachable,
        Some(_) => Code::Denied,
    };
    Error::new(code, "establish TLS with the server")
        .source(error)
        .hint(hint)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.flush(),
            Stream::Unix(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
