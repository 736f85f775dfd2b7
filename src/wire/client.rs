//! A connection that runs replication commands, or is handed over for plain SQL ([`super::sql`]).
//!
//! A call may be dropped at any await. A command that was running then is lost with its answer: the connection refuses
//! further commands. Closing it only hangs up, which ends a backup on the server.
//!
//! PostgreSQL: src/backend/replication/walsender.c, repl_gram.y; doc/src/sgml/protocol.sgml.

use std::sync::Arc;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::connect::{self, Connected};
use super::conninfo::{ConnInfo, Host, TargetSession};
use super::message::{Incoming, Stream, Wire};
use super::server_error::{ServerMessage, protocol};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::pg::version::Major;
use crate::progress::{Progress, Silent};

/// The oldest version that is supported, as `server_version_num` counts.
const VERSION_MIN: u32 = 130_000;
/// The most bytes that the answer to a query may have.
pub(super) const ANSWER_SIZE_MAX: usize = 64 << 20;
const COLUMN_COUNT_MAX: usize = 1664;

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Physical replication: replication commands only, `replication` lines of pg_hba.conf.
    Replication,
    /// Plain SQL in `dbname`, or in `postgres` if none is given.
    Sql,
}

impl Session {
    fn dbname(info: &ConnInfo) -> &str {
        info.dbname.as_deref().unwrap_or("postgres")
    }

    /// The database as pg_hba.conf and the password file name it.
    pub(super) fn hba_database(self, info: &ConnInfo) -> &str {
        match self {
            Session::Replication => "replication",
            Session::Sql => Self::dbname(info),
        }
    }

    pub(super) fn startup(self, info: &ConnInfo) -> Vec<(&str, &str)> {
        let mut parameters = vec![
            ("user", info.user.as_str()),
            ("application_name", info.application_name.as_str()),
        ];
        match self {
            Session::Replication => parameters.push(("replication", "true")),
            Session::Sql => {
                parameters.push(("database", Self::dbname(info)));
                parameters.push(("client_encoding", "UTF8"));
                parameters.push(("DateStyle", "ISO"));
            }
        }
        if let Some(options) = &info.options {
            parameters.push(("options", options));
        }
        parameters
    }
}

/// The result of `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identity.
    pub system_identifier: u64,
    /// The server's current timeline.
    pub timeline: TimelineId,
    /// How far WAL is flushed (on a standby: received and flushed, or replayed).
    pub flush_lsn: Lsn,
}

/// The result of `TIMELINE_HISTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The file's name, `0000000N.history`.
    pub file_name: String,
    pub content: Bytes,
}

/// One row: the text of each column, `None` for NULL.
pub type Row = Vec<Option<Bytes>>;

/// The answer to a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The names of the columns.
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

impl Rows {
    /// The text at `row` and `column`; `None` if there is no such place or it is NULL.
    ///
    /// # Errors
    /// `Server` if the text is not UTF-8.
    pub fn text(&self, row: usize, column: usize) -> Result<Option<&str>> {
        match self.rows.get(row).and_then(|row| row.get(column)) {
            Some(Some(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(error) => Err(protocol("a value is not UTF-8").source(error)),
            },
            _ => Ok(None),
        }
    }

    /// The value at `row` and `column`, which has to be there and to parse.
    ///
    /// # Errors
    /// `Server` if it is not there or cannot be read.
    pub fn value<T: std::str::FromStr>(&self, row: usize, column: usize) -> Result<T> {
        let text = self.text(row, column)?;
        text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            let name = self.columns.get(column).map_or("?", String::as_str);
            protocol(&format!("column \"{name}\" has no value that can be read"))
        })
    }

    /// The texts of a column that are not NULL.
    ///
    /// # Errors
    /// `Server` if one is not UTF-8.
    pub fn texts(&self, column: usize) -> Result<Vec<String>> {
        let texts = (0..self.rows.len()).map(|row| self.text(row, column));
        let texts = texts.filter_map(|text| text.map(|text| text.map(str::to_owned)).transpose());
        texts.collect()
    }

    /// The timeline at `row` and `column`, as [`Rows::value`].
    pub(super) fn timeline(&self, row: usize, column: usize) -> Result<TimelineId> {
        TimelineId::new(self.value(row, column)?)
            .ok_or_else(|| protocol("timeline 0 does not exist"))
    }
}

/// A connection to a server of version 13 or later.
pub struct Client {
    pub(super) wire: Wire,
    pub(super) progress: Arc<dyn Progress>,
    parameters: std::collections::BTreeMap<String, String>,
    version_num: u32,
    host: String,
    place: Box<Host>,
    pid: Option<i32>,
    session: Session,
    /// Whether a command's answer is still under way.
    pub(super) busy: bool,
}

impl Client {
    /// Connects to the first host that will do.
    ///
    /// Notices of the server go to `progress`: warnings as warnings, the rest as notes.
    ///
    /// # Errors
    /// `Unreachable` if no server can be reached or none is of the kind asked for; `Denied`, with the exact change that would help, if
    /// the server refuses or cannot be trusted; `Config` for certificate files; `Server` for a server older than 13.
    pub async fn connect(
        info: &ConnInfo,
        session: Session,
        progress: Arc<dyn Progress>,
    ) -> Result<Client> {
        let wanted = match info.target_session {
            TargetSession::PreferStandby => vec![TargetSession::Standby, TargetSession::Any],
            other => vec![other],
        };
        let mut result = Err(err!(Internal, "no kind of server was asked for"));
        for kind in wanted {
            result = connect::connect(info, session, progress.as_ref(), kind).await;
            if result.is_ok() {
                break;
            }
        }
        let Connected {
            wire,
            parameters,
            place,
            pid,
        } = result?;
        let host = place.display();
        let text = parameters.get("server_version").map_or("", String::as_str);
        let version_num =
            version_num(text).ok_or_else(|| protocol("the server's version cannot be read"))?;
        if version_num < VERSION_MIN {
            return Err(err!(
                Server,
                "server \"{host}\" runs PostgreSQL {text}, which is older than 13"
            )
            .hint("Versions 13 to 19 are supported. Upgrade the server."));
        }
        Ok(Client {
            wire,
            progress,
            parameters,
            version_num,
            host,
            place: Box::new(place),
            pid,
            session,
            busy: false,
        })
    }

    /// The server's version as `server_version_num` counts: 150020 for 15.20.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// The server's major version.
    ///
    /// # Errors
    /// `Unsupported` for one newer than this program.
    pub fn major(&self) -> Result<Major> {
        Major::from_server_version_num(self.version_num)
    }

    /// The value of a setting that the server reported by itself (`server_version`, `TimeZone`, `in_hot_standby` …).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The host as messages name it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// That host, with the address that answered: of several, another connection to it reaches no other.
    pub fn place(&self) -> &Host {
        &self.place
    }

    /// The server's process for this connection, where it says so.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Returns the purpose of the connection.
    pub fn session(&self) -> Session {
        self.session
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.wire.stream, Stream::Tls(_))
    }

    /// Runs one command and returns its rows. If there are several result sets, the last one with columns counts.
    ///
    /// # Errors
    /// `Server` (`Denied` for missing rights) if the server reports an error, after which the connection can be used again;
    /// `Unreachable` if it is lost.
    pub async fn query(&mut self, command: &str) -> Result<Rows> {
        self.send_command(command).await?;
        let mut answer = Answer::default();
        while !answer.take(self.receive().await?)? {}
        self.busy = false;
        answer.finish(command)
    }

    /// Runs `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// Those of [`Client::query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_identifier: rows.value(0, 0)?,
            timeline: rows.timeline(0, 1)?,
            flush_lsn: rows.value(0, 2)?,
        })
    }

    /// Runs `SHOW`, which works on replication connections too.
    ///
    /// # Errors
    /// Those of [`Client::query`]; `Internal` if `setting` is not a setting's name.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        show(
            &mut self.wire,
            &mut self.busy,
            self.progress.as_ref(),
            setting,
        )
        .await
    }

    /// Runs `TIMELINE_HISTORY`. Timeline 1 has no file.
    ///
    /// # Errors
    /// Those of [`Client::query`]; a file that is not there has SQLSTATE 58P01.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistory> {
        let rows = self
            .query(&format!("TIMELINE_HISTORY {}", timeline.get()))
            .await?;
        let content = rows
            .rows
            .first()
            .and_then(|row| row.get(1))
            .cloned()
            .flatten();
        Ok(TimelineHistory {
            file_name: rows.value(0, 0)?,
            content: content.ok_or_else(|| protocol("the timeline history has no content"))?,
        })
    }

    /// Asks for the history of a timeline; timeline 1 has nothing before it.
    ///
    /// # Errors
    /// Those of [`Client::timeline_history`]; `Damaged` for one that cannot be read.
    pub async fn history(&mut self, timeline: TimelineId) -> Result<History> {
        match timeline {
            TimelineId::FIRST => Ok(History::root(timeline)),
            _ => History::parse(timeline, &self.timeline_history(timeline).await?.content),
        }
    }

    /// Ends the session in order; in the middle of a command it only hangs up.
    ///
    /// # Errors
    /// `Unreachable` if the connection was lost before.
    pub async fn close(mut self) -> Result<()> {
        if !self.busy {
            self.wire
                .send(|out| {
                    frontend::terminate(out);
                    Ok(())
                })
                .await?;
        }
        // The other side may be gone already; there is nothing left to lose.
        let _ = self.wire.stream.shutdown().await;
        Ok(())
    }

    /// Sends one command.
    pub(super) async fn send_command(&mut self, command: &str) -> Result<()> {
        send_command(&mut self.wire, &mut self.busy, command).await
    }

    /// The next message that is neither notice nor setting.
    pub(super) async fn receive(&mut self) -> Result<Message> {
        match self.receive_incoming().await? {
            Incoming::Message(message) => Ok(message),
            Incoming::CopyBoth => Err(protocol("a copy in both directions was not asked for")),
        }
    }

    /// As [`Client::receive`], where a copy in both directions may begin.
    pub(super) async fn receive_incoming(&mut self) -> Result<Incoming> {
        loop {
            match self.wire.receive_incoming().await? {
                Incoming::Message(Message::NoticeResponse(body)) => {
                    report(self.progress.as_ref(), &ServerMessage::read(body.fields()));
                }
                Incoming::Message(Message::ParameterStatus(body)) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value())
                        && let Some(known) = self.parameters.get_mut(name)
                    {
                        value.clone_into(known);
                    }
                }
                incoming => return Ok(incoming),
            }
        }
    }
}

/// Passes a notice on: warnings as warnings, the rest as notes.
pub(super) fn report(progress: &dyn Progress, notice: &ServerMessage) {
    let text = format!("server: {notice}");
    match notice.severity.as_str() {
        "WARNING" => progress.warn(&text),
        _ => progress.note(&text),
    }
}

async fn send_command(wire: &mut Wire, busy: &mut bool, command: &str) -> Result<()> {
    if *busy {
        return Err(err!(
            Internal,
            "connection is still busy with an earlier command"
        ));
    }
    *busy = true;
    wire.send(|out| frontend::query(command, out)).await
}

/// `SHOW` on a connection that is not a [`Client`] yet.
async fn show(
    wire: &mut Wire,
    busy: &mut bool,
    progress: &dyn Progress,
    setting: &str,
) -> Result<String> {
    if setting.is_empty()
        || !setting
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
    {
        return Err(err!(
            Internal,
            "\"{}\" is not the name of a setting",
            setting.escape_debug()
        ));
    }
    let command = format!("SHOW {setting}");
    send_command(wire, busy, &command).await?;
    let mut answer = Answer::default();
    loop {
        match wire.receive().await? {
            Message::NoticeResponse(body) => report(progress, &ServerMessage::read(body.fields())),
            Message::ParameterStatus(_) => {}
            message => {
                if answer.take(message)? {
                    *busy = false;
                    return answer.finish(&command)?.value(0, 0);
                }
            }
        }
    }
}

/// Rows as they come in.
#[derive(Default)]
pub(super) struct Answer {
    rows: Rows,
    bytes: usize,
    error: Option<ServerMessage>,
}

impl Answer {
    /// Takes the next message of the answer; says whether that was the last one.
    fn take(&mut self, message: Message) -> Result<bool> {
        match message {
            Message::RowDescription(body) => self.describe(&body)?,
            Message::DataRow(body) => self.add(&body)?,
            Message::CommandComplete(_) | Message::EmptyQueryResponse => {}
            Message::ErrorResponse(body) => {
                self.error.get_or_insert(ServerMessage::read(body.fields()));
            }
            Message::ReadyForQuery(_) => return Ok(true),
            _ => {
                return Err(protocol(
                    "a message does not belong to the answer of a query",
                ));
            }
        }
        Ok(false)
    }

    pub fn describe(&mut self, body: &RowDescriptionBody) -> Result<()> {
        let fields = body
            .fields()
            .map(|field| Ok(field.name().to_owned()))
            .collect::<Vec<_>>();
        let columns = fields.map_err(|error| protocol("description of rows").source(error))?;
        if columns.len() > COLUMN_COUNT_MAX {
            return Err(protocol("a result has too many columns"));
        }
        self.rows = Rows {
            columns,
            rows: Vec::new(),
        };
        Ok(())
    }

    pub fn add(&mut self, body: &DataRowBody) -> Result<()> {
        let row = row(body)?;
        // As libpq does (fe-protocol3.c, getAnotherTuple): callers find values by the described columns.
        if row.len() != self.rows.columns.len() {
            return Err(protocol(
                "a row has another number of columns than its description",
            ));
        }
        // Rows and columns cost memory even when they are empty.
        self.bytes += body.buffer().len() + 32 * (row.len() + 1);
        if self.bytes > ANSWER_SIZE_MAX {
            return Err(protocol("an answer has more than 64 MiB"));
        }
        self.rows.rows.push(row);
        Ok(())
    }

    pub fn into_rows(self) -> Rows {
        self.rows
    }

    fn finish(self, command: &str) -> Result<Rows> {
        match self.error {
            Some(error) => Err(command_failed(error, command)),
            None => Ok(self.rows),
        }
    }
}

/// The error of a command; only its first words are named, the rest may hold anything.
pub(super) fn command_failed(error: ServerMessage, command: &str) -> Error {
    let words: Vec<_> = command.split_whitespace().take(2).collect();
    error.into_error(&format!("run command \"{}\"", words.join(" ")))
}

/// The columns of a row, sharing the message's bytes.
pub(super) fn row(body: &DataRowBody) -> Result<Row> {
    let buffer = body.buffer_bytes();
    let columns = body
        .ranges()
        .map(|range| Ok(range.map(|range| buffer.slice(range))))
        .collect();
    columns.map_err(|error| protocol("a row cannot be read").source(error))
}

/// Why this server is not of the kind asked for, if so.
pub(super) async fn unsuitable(
    connected: &mut Connected,
    wanted: TargetSession,
) -> Result<Option<&'static str>> {
    if matches!(wanted, TargetSession::Any | TargetSession::PreferStandby) {
        return Ok(None);
    }
    let standby = is_on(connected, "in_hot_standby").await?;
    let read_only = standby || is_on(connected, "default_transaction_read_only").await?;
    let reason = match wanted {
        TargetSession::ReadWrite if read_only => "server takes no writes",
        TargetSession::ReadOnly if !read_only => "server takes writes",
        TargetSession::Primary if standby => "server is in recovery",
        TargetSession::Standby if !standby => "server is not in recovery",
        _ => return Ok(None),
    };
    Ok(Some(reason))
}

/// Whether a setting is on that servers report from 14 on.
///
/// Before 14 a replication connection can only ask with SHOW. Every transaction on a standby is read-only; so is one on a primary with
/// default_transaction_read_only, which is taken for a standby then.
async fn is_on(connected: &mut Connected, name: &str) -> Result<bool> {
    if let Some(value) = connected.parameters.get(name) {
        return Ok(value == "on");
    }
    let mut busy = false;
    let value = show(
        &mut connected.wire,
        &mut busy,
        &Silent,
        "transaction_read_only",
    )
    .await?;
    Ok(value == "on")
}

/// Turns `15.20 (Debian 15.20-1)` into 150020; `19beta1` counts as 190000.
fn version_num(text: &str) -> Option<u32> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    let major: u32 = parts.next()?.parse().ok()?;
    let dotted = text
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .starts_with('.');
    let minor: u32 = if dotted {
        parts.next()?.parse().ok()?
    } else {
        0
    };
    match (major, minor) {
        // Before 10 the first two numbers were the major version.
        (0..=9, _) => Some(major * 10_000 + minor.min(99) * 100),
        (10..=999, 0..=9_999) => Some(major * 10_000 + minor),
        _ => None,
    }
}

#[cfg(test)]
impl Client {
    /// A client in the middle of a command, on a connection that nobody authenticated.
    pub(super) fn on(stream: tokio::net::UnixStream, version_num: u32) -> Client {
        let mut wire = Wire::new(Stream::Socket(stream));
        wire.set_authenticated();
        Client {
            wire,
            progress: Arc::new(Silent),
            parameters: std::collections::BTreeMap::new(),
            version_num,
            host: "test".to_owned(),
            place: Box::new(Host {
                address: super::conninfo::HostAddress::Socket("/".into()),
                port: 1,
            }),
            pid: None,
            session: Session::Replication,
            busy: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_counted_as_the_server_does() {
        assert_eq!(
            version_num("15.20 (Debian 15.20-1.pgdg12+1)"),
            Some(150_020)
        );
        assert_eq!(version_num("13.23"), Some(130_023));
        assert_eq!(version_num("19beta1"), Some(190_000));
        assert_eq!(version_num("9.6.24"), Some(90_600));
        assert_eq!(version_num(""), None);
        assert_eq!(version_num("devel"), None);
    }
}
