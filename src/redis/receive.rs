//! A session of the receiver: a history as the server sends it to a replica, into the journal, and acknowledged when it is durable there.
//!
//! Redis: src/replication.c (replicationSendAck, replconfCommand, replicationCron).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::connection::{Arrived, Connection, Tick, lost, silent};
use super::position::{self, Action};
use super::record::{Recorder, State};
use super::resp::{self, FullResync, Reply};
use super::source::Source;
use super::{command::Reader, transfer};
use crate::config::RedisAcknowledge;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::journal::{Condition, Durable, Feeder};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;

/// A server closes the connection of a replica that says nothing for a minute (`repl-timeout`); replicas speak once a second.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for more bytes while some are not durable yet.
const SHORT: Duration = Duration::from_millis(2);
/// How long to wait while nothing is to be done.
const LONG: Duration = Duration::from_millis(200);
/// Bytes that are handed to the journal at once, at most.
const PIECE_BYTES: usize = 1 << 20;
/// A journal that has no room for so long is full: the connection is given up, so that the server's memory does not grow.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

/// How far the receiver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progressed {
    /// The state behind the last byte that was received.
    pub state: State,
    /// The position up to which the journal is durable.
    pub durable: u64,
}

/// The receiver's side of the journal.
pub struct Sink<'a> {
    /// The way into the journal.
    pub feeder: Feeder,
    /// How far it is durable.
    pub watch: watch::Receiver<Durable>,
    /// For waits.
    pub runtime: &'a Runtime,
    /// The state behind the last byte of the journal; none where it is empty.
    pub held: Option<State>,
    /// The place of the next record in the journal. The first one of a process begins a segment.
    pub place: u64,
}

/// The stream of one connection.
struct Stream<'s, 'a> {
    connection: Connection,
    host: &'s Host,
    sink: &'s mut Sink<'a>,
    recorder: Recorder,
    acknowledged: RedisAcknowledge,
    /// Places in the journal, and the positions of the history that they have behind them.
    fed: VecDeque<(u64, u64)>,
    durable: u64,
    told: Option<(u64, Instant)>,
    is_asked: bool,
    /// The history that begins at a position not reached yet.
    fork: Option<(u64, State)>,
}

/// Receives until the connection ends, which is an error, or until `tick` says so.
///
/// `began` hears of each history that begins without what was held before, and why.
///
/// # Errors
/// Those of the server and of the connection; `Full` when the journal has no room; those of `tick`.
pub fn run(
    source: Source,
    acknowledged: RedisAcknowledge,
    (sink, host): (&mut Sink<'_>, &Host),
    began: &mut dyn FnMut(&State, Option<&str>),
    watch: &mut dyn FnMut(&Progressed),
    tick: Tick<'_>,
) -> Result<()> {
    let mut source = source;
    let (state, fork) = match position::action(sink.held.as_ref(), &source.info) {
        Action::Wait(why) => {
            return Err(err!(Unreachable, "the server sends no history now: {why}"));
        }
        Action::WentBack { has } => {
            let position = sink.held.as_ref().map_or(0, |held| held.reader.position());
            return Err(err!(
                Refused,
                "the server has {has} bytes of its history, and {position} were received from it: it was set back, or is another one"
            )
            .hint("Nothing was received. Point the receiver at the right server; or, where it was set back on purpose, restart it (redis-cli shutdown nosave is not needed: any restart without its dump file begins another history)."));
        }
        Action::GoOn => go_on(&mut source, sink.held.as_ref(), began, tick)?,
        Action::Begin(why) => (begin(&mut source, why, began, tick)?, None),
    };
    let position = state.reader.position();
    let mut stream = Stream {
        connection: source.connection,
        host,
        recorder: Recorder::new(sink.place, state.clone()),
        sink,
        acknowledged,
        fed: VecDeque::new(),
        durable: position,
        told: None,
        is_asked: false,
        fork,
    };
    let mut records = Vec::new();
    stream.recorder.begin(state, &mut records)?;
    stream.feed(records, tick)?;
    stream.receive(watch, tick)
}

/// Asks for what follows the bytes that are held.
fn go_on(
    source: &mut Source,
    held: Option<&State>,
    began: &mut dyn FnMut(&State, Option<&str>),
    tick: Tick<'_>,
) -> Result<(State, Option<(u64, State)>)> {
    let held = held
        .ok_or_else(|| err!(Internal, "nothing is held"))?
        .clone();
    let connection = &mut source.connection;
    connection.ask(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"], tick)?;
    let next = (held.reader.position() + 1).to_string();
    let words: [&[u8]; 3] = [b"PSYNC", held.replid.as_bytes(), next.as_bytes()];
    let Reply::Line(line) = connection.ask(&words, tick)? else {
        return Err(resp::no_sense(b"a bulk string"));
    };
    if let Some(full) = resp::full_resync(&line) {
        let why = "the server did not go on where the receiver was";
        return Ok((begun(source, &full, Some(why), began, tick)?, None));
    }
    let mut words = line.split_ascii_whitespace();
    let is_continued = words.next() == Some("CONTINUE");
    let replid = words.next().unwrap_or(&held.replid).to_owned();
    if !is_continued {
        return Err(resp::no_sense(line.as_bytes()));
    }
    let run_id = source.info.field("run_id").unwrap_or_default().to_owned();
    if replid == held.replid {
        return Ok((State { run_id, ..held }, None));
    }
    // A failover since the question would name another history.
    let Some((parent, fork)) = source
        .info
        .parent(&replid)
        .filter(|(p, _)| *p == held.replid)
    else {
        return Err(err!(
            Unreachable,
            "the server changed its history meanwhile"
        ));
    };
    let next = State {
        replid,
        run_id,
        parent: Some((parent, fork)),
        server_version: source.version.text().to_owned(),
        flavor: source.version.flavor.name().to_owned(),
        from: fork,
        reader: held.reader.clone(),
    };
    Ok((held, Some((fork, next))))
}

/// Asks for a history from its present end on.
fn begin(
    source: &mut Source,
    why: Option<&str>,
    began: &mut dyn FnMut(&State, Option<&str>),
    tick: Tick<'_>,
) -> Result<State> {
    let connection = &mut source.connection;
    connection.ask(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"], tick)?;
    // The data set is not wanted here: a base is taken by a connection of its own. Servers before 7.0 do not know that, and send it.
    connection.send(&[b"REPLCONF", b"rdb-filter-only", b""])?;
    connection.reply(tick)?;
    match connection.ask(&[b"PSYNC", b"?", b"-1"], tick)? {
        Reply::Line(line) => {
            let full = resp::full_resync(&line).ok_or_else(|| resp::no_sense(line.as_bytes()))?;
            begun(source, &full, why, began, tick)
        }
        Reply::Error(_) | Reply::Bulk(_) => Err(resp::no_sense(b"a bulk string")),
    }
}

/// Passes over the data set, behind which the history goes on.
fn begun(
    source: &mut Source,
    full: &FullResync,
    why: Option<&str>,
    began: &mut dyn FnMut(&State, Option<&str>),
    tick: Tick<'_>,
) -> Result<State> {
    let received = transfer::receive(&mut source.connection, &mut |_| Ok(()), tick)?;
    let db = received.head.field("repl-stream-db");
    let state = State {
        replid: full.replid.clone(),
        run_id: source.info.field("run_id").unwrap_or_default().to_owned(),
        parent: None,
        server_version: source.version.text().to_owned(),
        flavor: source.version.flavor.name().to_owned(),
        from: full.offset,
        reader: Reader::new(full.offset, db.and_then(|db| db.parse().ok())),
    };
    began(&state, why);
    Ok(state)
}

impl Stream<'_, '_> {
    fn receive(&mut self, watch: &mut dyn FnMut(&Progressed), tick: Tick<'_>) -> Result<()> {
        let mut heard = Instant::now();
        // Some bytes came with the answers before.
        self.take(tick)?;
        loop {
            let patience = if self.fed.is_empty() { LONG } else { SHORT };
            match self.connection.more(patience, tick)? {
                Arrived::Bytes => {
                    heard = Instant::now();
                    self.take(tick)?;
                }
                Arrived::Closed => return Err(lost()),
                Arrived::Nothing => {
                    let stall = self.connection.stall_timeout();
                    if heard.elapsed() >= stall {
                        return Err(silent(stall));
                    }
                }
            }
            self.see_durable()?;
            self.acknowledge()?;
            watch(&Progressed {
                state: self.recorder.state().clone(),
                durable: self.durable,
            });
        }
    }

    /// Hands all that was received to the journal.
    fn take(&mut self, tick: Tick<'_>) -> Result<()> {
        while !self.connection.received().is_empty() {
            let arrived_us = self.host.now().unix_micros().unwrap_or_default();
            let received = self.connection.received();
            let mut piece = received.get(..PIECE_BYTES).unwrap_or(received);
            let position = self.recorder.state().reader.position();
            let mut records = Vec::with_capacity(piece.len() + 1024);
            if let Some((fork, state)) = &self.fork {
                let before = usize::try_from(fork.saturating_sub(position)).unwrap_or(usize::MAX);
                if before == 0 {
                    let reader = self.recorder.state().reader.clone();
                    let state = State {
                        reader,
                        ..state.clone()
                    };
                    self.recorder.begin(state, &mut records)?;
                    self.fork = None;
                } else {
                    piece = piece.get(..before).unwrap_or(piece);
                }
            }
            let is_asked = &mut self.is_asked;
            self.recorder
                .append(arrived_us, piece, &mut records, &mut |command| {
                    *is_asked |= command.asks_for_acknowledgement();
                    Ok(())
                })?;
            let taken = piece.len();
            self.connection.taken(taken);
            self.feed(records, tick)?;
        }
        Ok(())
    }

    fn feed(&mut self, records: Vec<u8>, tick: Tick<'_>) -> Result<()> {
        let length = records.len();
        let (feeder, runtime) = (&self.sink.feeder, self.sink.runtime);
        let since = Instant::now();
        let room = loop {
            let wait = async { tokio::time::timeout(LONG, feeder.room(length)).await };
            if let Ok(room) = runtime.block_on(wait) {
                break room?;
            }
            tick()?;
            let condition = self.sink.watch.borrow().condition;
            if condition == Condition::Full || since.elapsed() >= ROOM_TIMEOUT {
                return Err(err!(Full, "the journal has no room: the connection was given up, so that the server does not keep what cannot be taken")
                    .hint("Nothing that was acknowledged is lost. The receiver goes on when there is room, where the server's backlog reaches back so far."));
            }
        };
        let place = self.recorder.place();
        let from = place - length as u64;
        feeder.feed(room, TimelineId::FIRST, Lsn(from), Bytes::from(records))?;
        let state = self.recorder.state();
        self.sink.place = place;
        self.sink.held = Some(state.clone());
        self.fed.push_back((place, state.reader.position()));
        Ok(())
    }

    /// Sees how far the journal is durable.
    fn see_durable(&mut self) -> Result<()> {
        let durable = *self.sink.watch.borrow();
        if durable.condition == Condition::Failed {
            return Err(err!(Io, "the journal cannot be written"));
        }
        let place = durable.position.map_or(0, |position| position.lsn.0);
        while let Some((_, position)) = self.fed.front().filter(|(end, _)| *end <= place) {
            self.durable = *position;
            self.fed.pop_front();
        }
        Ok(())
    }

    /// Tells the server how far the journal is durable: at once when that changed, and every second.
    fn acknowledge(&mut self) -> Result<()> {
        let position = match self.acknowledged {
            RedisAcknowledge::Journal => self.durable,
            RedisAcknowledge::None => 0,
        };
        let is_due = self
            .told
            .is_none_or(|(told, at)| told != position || at.elapsed() >= ACKNOWLEDGE_EVERY);
        let may_wait =
            self.is_asked && !self.fed.is_empty() && self.acknowledged == RedisAcknowledge::Journal;
        if !is_due && (!self.is_asked || may_wait) {
            return Ok(());
        }
        let text = position.to_string();
        self.connection
            .send(&[b"REPLCONF", b"ACK", text.as_bytes()])?;
        self.told = Some((position, Instant::now()));
        self.is_asked &= may_wait;
        Ok(())
    }
}

/// Whether another attempt may help.
pub fn may_try_again(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable | Code::Deadline | Code::Full | Code::Server
    )
}
