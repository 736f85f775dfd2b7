//! A server for physical replication that does what a script says: odd, old, hostile or refusing. It lets everybody in.
//!
//! A command that the script does not name is answered as a healthy server of [`Identity`] would do. Commands and
//! status updates are kept for the test. PostgreSQL: doc/src/sgml/protocol.sgml, src/backend/replication/walsender.c.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Who the server claims to be.
#[derive(Debug, Clone)]
pub struct Identity {
    pub system_identifier: u64,
    pub timeline: u32,
    /// `flush` of IDENTIFY_SYSTEM.
    pub flush: u64,
    /// `server_version`, say `17.5`.
    pub version: String,
    /// `SHOW wal_segment_size`, say `1MB`.
    pub segment_size: String,
    /// `restart_lsn` of every slot; none: the slot does not exist.
    pub restart: Option<u64>,
}

/// The answer to one command.
#[derive(Debug, Clone)]
pub enum Answer {
    /// As a healthy server would.
    Healthy,
    /// ERROR with SQLSTATE and message, after which the session goes on.
    Error(&'static str, String),
    /// FATAL with SQLSTATE and message, and the end of the connection.
    Fatal(&'static str, String),
    /// Columns and the texts of one row.
    Row(Vec<(&'static str, Option<String>)>),
    /// CopyBoth and what happens in it.
    Stream(Vec<Act>),
    /// These bytes, whatever they are.
    Raw(Vec<u8>),
    /// Nothing, for ever.
    Silence,
    /// The end of the connection.
    Close,
}

/// One step of a stream.
#[derive(Debug, Clone)]
pub enum Act {
    /// WAL data from `start`; the server reports the end of the data as its end of WAL.
    Wal { start: u64, data: Vec<u8> },
    /// A keepalive.
    Keepalive { end: u64, reply: bool },
    /// These bytes, whatever they are.
    Raw(Vec<u8>),
    /// These bytes again and again until the client hangs up.
    Endless(Vec<u8>),
    /// Waits until the client has reported this position as flushed.
    AwaitFlush(u64),
    /// Waits until the client has sent one more status update.
    AwaitStatus,
    /// The timeline ends: CopyDone, the client's CopyDone, the next timeline and where it begins. The session goes on.
    TimelineEnds { next: u32, switch: u64 },
    /// The messages of a server that shuts down when everything is flushed, and the end of the connection.
    Shutdown,
    /// ERROR inside the stream, after which the session goes on.
    Error(&'static str, String),
    /// Nothing more, until the client hangs up.
    Silence,
    /// The end of the connection.
    Close,
}

/// A status update of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub written: u64,
    pub flushed: u64,
    pub applied: u64,
    pub wants_reply: bool,
}

struct Rule {
    begins: String,
    answers: Vec<Answer>,
    asked: usize,
}

struct Shared {
    identity: Mutex<Identity>,
    rules: Mutex<Vec<Rule>>,
    histories: Mutex<Vec<(u32, Vec<u8>)>>,
    commands: Mutex<Vec<String>>,
    statuses: Mutex<Vec<Status>>,
    connections: AtomicU64,
    done: AtomicBool,
}

/// The server, on a port of 127.0.0.1. Dropped, it takes no more connections.
pub struct Walsender {
    port: u16,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// An LSN as PostgreSQL writes it.
pub fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

impl Walsender {
    /// Listens.
    pub fn start(identity: Identity) -> Walsender {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            identity: Mutex::new(identity),
            rules: Mutex::default(),
            histories: Mutex::default(),
            commands: Mutex::default(),
            statuses: Mutex::default(),
            connections: AtomicU64::new(0),
            done: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if state.done.load(Ordering::SeqCst) {
                    return;
                }
                state.connections.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    let _ = Session {
                        socket: client,
                        shared: &state,
                    }
                    .serve();
                });
            }
        });
        Walsender { port, shared }
    }

    /// Answers commands that begin so (upper case as sent) with these, in turn; the last one for ever.
    #[must_use]
    pub fn on(self, begins: &str, answers: impl IntoIterator<Item = Answer>) -> Walsender {
        let answers: Vec<_> = answers.into_iter().collect();
        assert!(!answers.is_empty());
        lock(&self.shared.rules).push(Rule {
            begins: begins.to_owned(),
            answers,
            asked: 0,
        });
        self
    }

    /// Gives it the history file of a timeline.
    #[must_use]
    pub fn history(self, timeline: u32, content: impl Into<Vec<u8>>) -> Walsender {
        lock(&self.shared.histories).push((timeline, content.into()));
        self
    }

    /// Returns a libpq connection string.
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres sslmode=disable",
            self.port
        )
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns every command so far, of all connections.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.shared.commands).clone()
    }

    /// Returns how many commands begin so.
    pub fn asked(&self, begins: &str) -> usize {
        let commands = self.commands();
        commands.iter().filter(|c| c.starts_with(begins)).count()
    }

    /// Returns every status update so far.
    pub fn statuses(&self) -> Vec<Status> {
        lock(&self.shared.statuses).clone()
    }

    /// Returns how many connections were made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Walsender {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// WAL as steps of a stream, in pieces of at most `piece` bytes.
pub fn wal(start: u64, bytes: &[u8], piece: usize) -> Vec<Act> {
    let mut at = start;
    bytes
        .chunks(piece)
        .map(|chunk| {
            let act = Act::Wal {
                start: at,
                data: chunk.to_vec(),
            };
            at += chunk.len() as u64;
            act
        })
        .collect()
}

/// A message of `kind`, with its true length.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn wal_data(start: u64, data: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.extend(start.to_be_bytes());
    body.extend(start.wrapping_add(data.len() as u64).to_be_bytes());
    body.extend(0_i64.to_be_bytes());
    body.extend(data);
    message(b'd', &body)
}

fn keepalive(end: u64, reply: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.extend(end.to_be_bytes());
    body.extend(0_i64.to_be_bytes());
    body.push(u8::from(reply));
    message(b'd', &body)
}

fn failure(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0");
    message(b'E', fields.as_bytes())
}

fn row(columns: &[(&str, Option<Vec<u8>>)]) -> Vec<u8> {
    let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
    let (mut description, mut data) = (count.to_vec(), count.to_vec());
    for (name, value) in columns {
        description.extend(name.as_bytes());
        // No table, no column of it; type text, of varying length, no modifier, as text.
        description.extend([0, 0, 0, 0, 0, 0, 0]);
        description.extend(25_u32.to_be_bytes());
        description.extend((-1_i16).to_be_bytes());
        description.extend((-1_i32).to_be_bytes());
        description.extend(0_u16.to_be_bytes());
        match value {
            None => data.extend((-1_i32).to_be_bytes()),
            Some(bytes) => {
                data.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
                data.extend(bytes);
            }
        }
    }
    let mut bytes = message(b'T', &description);
    bytes.extend(message(b'D', &data));
    bytes
}

/// One connection.
struct Session<'a> {
    socket: TcpStream,
    shared: &'a Shared,
}

/// Whether the session goes on.
type Goes = std::io::Result<bool>;

impl Session<'_> {
    fn serve(mut self) -> std::io::Result<()> {
        self.socket.set_nodelay(true)?;
        if !self.greet()? {
            return Ok(());
        }
        loop {
            let (kind, body) = self.receive()?;
            if kind != b'Q' {
                return Ok(());
            }
            let command = String::from_utf8_lossy(&body);
            let command = command.trim_end_matches('\0').to_owned();
            lock(&self.shared.commands).push(command.clone());
            if !self.answer(&command)? {
                let _ = self.socket.shutdown(Shutdown::Both);
                return Ok(());
            }
        }
    }

    fn greet(&mut self) -> Goes {
        loop {
            let mut length = [0; 4];
            self.socket.read_exact(&mut length)?;
            let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            self.socket.read_exact(&mut body)?;
            match body.get(..4) {
                // SSLRequest and GSSENCRequest.
                Some([0x04, 0xd2, 0x16, 0x2f | 0x30]) => self.socket.write_all(b"N")?,
                Some([0, 3, ..]) => break,
                _ => return Ok(false),
            }
        }
        let version = lock(&self.shared.identity).version.clone();
        let mut bytes = message(b'R', &0_u32.to_be_bytes());
        for (name, value) in [
            ("server_version", version.as_str()),
            ("in_hot_standby", "off"),
            ("default_transaction_read_only", "off"),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("integer_datetimes", "on"),
            ("TimeZone", "UTC"),
        ] {
            bytes.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        bytes.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
        bytes.extend(message(b'Z', b"I"));
        self.socket.write_all(&bytes)?;
        Ok(true)
    }

    fn receive(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        self.socket.read_exact(&mut body)?;
        Ok((header[0], body))
    }

    fn answer(&mut self, command: &str) -> Goes {
        let answer = {
            let mut rules = lock(&self.shared.rules);
            let rule = rules.iter_mut().find(|r| command.starts_with(&r.begins));
            rule.map_or(Answer::Healthy, |rule| {
                let at = rule.asked.min(rule.answers.len() - 1);
                rule.asked += 1;
                rule.answers[at].clone()
            })
        };
        match answer {
            Answer::Healthy => self.healthy(command),
            Answer::Error(sqlstate, text) => self.ready(failure("ERROR", sqlstate, &text)),
            Answer::Fatal(sqlstate, text) => {
                self.socket.write_all(&failure("FATAL", sqlstate, &text))?;
                Ok(false)
            }
            Answer::Row(columns) => {
                let columns: Vec<_> = columns
                    .into_iter()
                    .map(|(name, value)| (name, value.map(String::into_bytes)))
                    .collect();
                self.complete(row(&columns), "SELECT")
            }
            Answer::Stream(acts) => self.stream(&acts),
            Answer::Raw(bytes) => {
                self.socket.write_all(&bytes)?;
                Ok(true)
            }
            Answer::Silence => self.silence(),
            Answer::Close => Ok(false),
        }
    }

    fn healthy(&mut self, command: &str) -> Goes {
        let identity = lock(&self.shared.identity).clone();
        let text = |value: String| Some(value.into_bytes());
        let word = command.split_whitespace().next().unwrap_or_default();
        match word {
            "IDENTIFY_SYSTEM" => {
                let columns = [
                    ("systemid", text(identity.system_identifier.to_string())),
                    ("timeline", text(identity.timeline.to_string())),
                    ("xlogpos", text(lsn(identity.flush))),
                    ("dbname", None),
                ];
                self.complete(row(&columns), word)
            }
            "SHOW" => {
                let name = command["SHOW".len()..].trim().trim_end_matches(';');
                let value = match name {
                    "wal_segment_size" => identity.segment_size,
                    "wal_level" => "replica".into(),
                    "data_directory_mode" => "0700".into(),
                    "transaction_read_only" | "in_hot_standby" => "off".into(),
                    _ => String::new(),
                };
                self.complete(row(&[("setting", text(value))]), word)
            }
            "READ_REPLICATION_SLOT" => {
                let columns = [
                    ("slot_type", identity.restart.and(text("physical".into()))),
                    (
                        "restart_lsn",
                        identity.restart.map(|at| lsn(at).into_bytes()),
                    ),
                    (
                        "restart_tli",
                        identity.restart.and(text(identity.timeline.to_string())),
                    ),
                ];
                self.complete(row(&columns), word)
            }
            "CREATE_REPLICATION_SLOT" => {
                lock(&self.shared.identity).restart = Some(identity.flush);
                let columns = [
                    ("slot_name", text("slot".into())),
                    ("consistent_point", text(lsn(0))),
                    ("snapshot_name", None),
                    ("output_plugin", None),
                ];
                self.complete(row(&columns), word)
            }
            "DROP_REPLICATION_SLOT" => {
                lock(&self.shared.identity).restart = None;
                self.complete(Vec::new(), word)
            }
            // The row of pg_replication_slots for the slot.
            "select" if command.contains("pg_replication_slots") && identity.restart.is_some() => {
                let columns = [
                    ("slot_type", text("physical".into())),
                    (
                        "restart_lsn",
                        identity.restart.map(|at| lsn(at).into_bytes()),
                    ),
                    ("wal_status", text("reserved".into())),
                ];
                self.complete(row(&columns), "SELECT 1")
            }
            "TIMELINE_HISTORY" => self.timeline_history(command),
            "START_REPLICATION" => self.stream(&[Act::Silence]),
            _ => self.ready(failure(
                "ERROR",
                "42601",
                &format!("not in the script: {command}"),
            )),
        }
    }

    fn timeline_history(&mut self, command: &str) -> Goes {
        let number = command.split_whitespace().nth(1).unwrap_or_default();
        let number: u32 = number.trim_end_matches(';').parse().unwrap_or(0);
        let content = lock(&self.shared.histories)
            .iter()
            .find(|(timeline, _)| *timeline == number)
            .map(|(_, content)| content.clone());
        let name = format!("{number:08X}.history");
        match content {
            Some(content) => {
                let columns = [
                    ("filename", Some(name.into_bytes())),
                    ("content", Some(content)),
                ];
                self.complete(row(&columns), "TIMELINE_HISTORY")
            }
            None => self.ready(failure(
                "ERROR",
                "58P01",
                &format!("could not open file \"pg_wal/{name}\": No such file or directory"),
            )),
        }
    }

    fn complete(&mut self, mut bytes: Vec<u8>, tag: &str) -> Goes {
        bytes.extend(message(b'C', format!("{tag}\0").as_bytes()));
        self.ready(bytes)
    }

    fn ready(&mut self, mut bytes: Vec<u8>) -> Goes {
        bytes.extend(message(b'Z', b"I"));
        self.socket.write_all(&bytes)?;
        Ok(true)
    }

    /// Reads and throws away until the client hangs up.
    fn silence(&mut self) -> Goes {
        let mut sink = [0; 4096];
        while self.socket.read(&mut sink)? > 0 {}
        Ok(false)
    }

    fn stream(&mut self, acts: &[Act]) -> Goes {
        // CopyBothResponse: text, no columns.
        self.socket.write_all(&message(b'W', &[0, 0, 0]))?;
        for act in acts {
            match act {
                Act::Wal { start, data } => self.socket.write_all(&wal_data(*start, data))?,
                Act::Keepalive { end, reply } => {
                    self.socket.write_all(&keepalive(*end, *reply))?;
                }
                Act::Raw(bytes) => self.socket.write_all(bytes)?,
                Act::Endless(bytes) => loop {
                    self.socket.write_all(bytes)?;
                },
                Act::AwaitFlush(position) => {
                    let end = Instant::now() + PATIENCE;
                    while self.status(end)?.flushed < *position {}
                }
                Act::AwaitStatus => {
                    self.status(Instant::now() + PATIENCE)?;
                }
                Act::TimelineEnds { next, switch } => return self.end_timeline(*next, *switch),
                Act::Shutdown => {
                    self.socket.write_all(&message(b'C', b"COPY 0\0"))?;
                    return Ok(false);
                }
                Act::Error(sqlstate, text) => return self.ready(failure("ERROR", sqlstate, text)),
                Act::Silence => loop {
                    // Updates are still kept.
                    self.status(Instant::now() + Duration::from_secs(3600))?;
                },
                Act::Close => return Ok(false),
            }
        }
        // Whatever the client says after the last step, it is heard.
        loop {
            self.status(Instant::now() + Duration::from_secs(3600))?;
        }
    }

    /// The next status update.
    fn status(&mut self, end: Instant) -> std::io::Result<Status> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let (kind, body) = self.receive()?;
            self.socket.set_read_timeout(None)?;
            match (kind, body.first()) {
                (b'd', Some(b'r')) if body.len() == 34 => {
                    let number =
                        |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
                    let status = Status {
                        written: number(1),
                        flushed: number(9),
                        applied: number(17),
                        wants_reply: body[33] != 0,
                    };
                    lock(&self.shared.statuses).push(status);
                    return Ok(status);
                }
                (b'd', Some(b'h')) => {}
                // CopyDone, Terminate: the client leaves.
                _ => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    fn end_timeline(&mut self, next: u32, switch: u64) -> Goes {
        self.socket.write_all(&message(b'c', b""))?;
        loop {
            let (kind, _) = self.receive()?;
            match kind {
                b'd' => {}
                b'c' => break,
                _ => return Ok(false),
            }
        }
        let columns = [
            ("next_tli", Some(next.to_string().into_bytes())),
            ("next_tli_startpos", Some(lsn(switch).into_bytes())),
        ];
        let mut bytes = row(&columns);
        // PostgreSQL sends one for the command and one for the copy.
        bytes.extend(message(b'C', b"START_STREAMING\0"));
        self.ready(bytes)
    }
}
