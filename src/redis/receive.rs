//! A session of the receiver: a history as the server sends it to a replica, into the journal, and acknowledged when it is durable there.
//!
//! Redis: src/replication.c (replicationSendAck, replconfCommand, replicationCron).

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::connection::{Arrived, Connection, Tick, lost, silent};
use super::history::{Beginning, Held, Parent};
use super::owed::{Base, Owed};
use super::position::{self, Action};
use super::record::{Recorder, SEGMENT_BYTES, State};
use super::resp::{self, FullResync, Reply};
use super::shipment::Rewind;
use super::source::Source;
use super::{command::Reader, transfer};
use crate::config::RedisAcknowledge;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::journal::{Condition, Durable, Feeder};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{Position, TimelineId};

/// A server closes the connection of a replica that says nothing for a minute (`repl-timeout`); replicas speak once a second.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for more bytes while some are not durable yet.
const SHORT: Duration = Duration::from_millis(2);
/// How long to wait while nothing is to be done.
const LONG: Duration = Duration::from_millis(200);
/// The journal's queue is to hold a quarter of its 8 MiB: each repository has a segment of the log in memory besides.
const SHARE: usize = 4;
/// Bytes that are handed to the journal at once, at most.
const PIECE_BYTES: usize = 1 << 20;
/// A journal that has no room for so long is full: the connection is given up, so that the server's memory does not grow.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

/// The receiver's side of the journal.
pub struct Sink<'a> {
    /// The way into the journal.
    pub feeder: Feeder,
    /// How far it is durable.
    pub watch: watch::Receiver<Durable>,
    /// How far every required repository has it.
    pub archived: watch::Receiver<Option<Position>>,
    /// For waits.
    pub runtime: &'a Runtime,
    /// The state behind the last byte of the journal; none where it is empty.
    pub held: Option<State>,
    /// The place of the next record in the journal. The first one of a process begins a segment.
    pub place: u64,
    /// The state in front of bytes that the journal has lost since they were received.
    pub rewind: Rewind,
    /// The base behind a gap: nothing is acknowledged before it is stored.
    pub owed: &'a Owed,
}

impl Sink<'_> {
    /// Goes back to what the journal has, where it has lost something. The bytes that follow begin a segment.
    fn rewind(&mut self) -> Result<()> {
        let lost = self
            .rewind
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(state) = lost else {
            return Ok(());
        };
        let position = state.reader.position();
        self.held = Some(state);
        self.place = self.place.next_multiple_of(SEGMENT_BYTES);
        Err(err!(
            Unreachable,
            "the journal has lost what follows position {position}"
        ))
    }
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
    /// The position that counts. None before anything of this connection does: the server may have been promoted, and what was durable before may not be its own.
    durable: Option<u64>,
    told: Option<(u64, Instant)>,
    is_asked: bool,
    /// The history that begins at a position not reached yet.
    fork: Option<(u64, State)>,
}

/// A turn in what is received, which the operator is to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Reception begins without the bytes before it.
    Begins(Beginning),
    /// The server has gone on without the last bytes that were received: their history is left before its end.
    Leaves {
        /// The history, and the position up to which the server has it.
        parent: Parent,
        /// The position up to which it was received.
        received: u64,
    },
    /// The server goes on behind what was received; the history that it goes on from is named where it has another one.
    GoesOn(Option<Parent>),
}

/// A process other than the one that sent what was received before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its own name for itself.
    pub run_id: String,
    /// For how long it runs.
    pub up_seconds: Option<u64>,
}

/// The account of a turn for the operator: the state behind it, and the process where it is another one.
pub type Told<'t> = (&'t Turn, &'t State, Option<&'t Process>);

/// Receives until the connection ends, which is an error, or until `tick` says so.
///
/// `told` hears of each turn; `succeeded` is called again and again while the connection works.
///
/// # Errors
/// Those of the server and of the connection; `Full` when the journal has no room; those of `tick`.
pub fn run(
    source: Source,
    acknowledged: RedisAcknowledge,
    (sink, host): (&mut Sink<'_>, &Host),
    told: &mut dyn FnMut(Told<'_>),
    succeeded: &mut dyn FnMut(),
    tick: Tick<'_>,
) -> Result<()> {
    let mut source = source;
    let held = sink.held.clone();
    let begun = match position::action(held.as_ref(), &source.info) {
        Action::Wait(why) => {
            return Err(err!(Unreachable, "the server sends no history now: {why}"));
        }
        Action::WentBack { has } => {
            let position = held.as_ref().map_or(0, |held| held.reader.position());
            return Err(err!(
                Refused,
                "the server has {has} bytes of its history, and {position} were received from it: it was set back, or is another one"
            )
            .hint("Nothing was received. Point the receiver at the right server; or, where it was set back on purpose, restart it: it begins another history then."));
        }
        Action::GoOn => go_on(&mut source, required(held)?, host, tick)?,
        Action::Leave { fork } => leave(&mut source, required(held)?, fork, host, tick)?,
        Action::Begin(why) => begin(&mut source, held.as_ref(), why, host, tick)?,
    };
    let turn = turn(sink.held.as_ref(), &begun);
    if let Some(turn) = &turn {
        let process = process(sink.held.as_ref(), &source);
        told((turn, begun.last(), process.as_ref()));
    }
    owe(sink.owed, (&begun, turn.as_ref()), host)?;
    let Begun { state, fork } = begun;
    let mut stream = Stream {
        connection: source.connection,
        host,
        recorder: Recorder::new(sink.place, state.clone()),
        sink,
        acknowledged,
        fed: VecDeque::new(),
        durable: None,
        told: None,
        is_asked: false,
        fork,
    };
    let mut records = Vec::new();
    stream.recorder.begin(state, &mut records)?;
    stream.feed(records, tick)?;
    stream.receive(succeeded, tick)
}

/// The state in front of the first byte of a connection, and the history that begins at a later position.
struct Begun {
    state: State,
    fork: Option<(u64, State)>,
}

impl Begun {
    /// The state in the history that the server has now.
    fn last(&self) -> &State {
        self.fork.as_ref().map_or(&self.state, |(_, next)| next)
    }
}

/// Owes a base behind a gap, before anything behind it is in the journal. So it does where a history is left before its end: its newest base may lie behind that.
fn owe(owed: &Owed, (begun, turn): (&Begun, Option<&Turn>), host: &Host) -> Result<()> {
    let state = begun.last();
    let place = |position| Held {
        replid: state.replid.clone(),
        position,
    };
    let beginning = begun.state.beginning.as_ref();
    if let Some(behind_gap) = beginning.filter(|beginning| beginning.reason.is_some()) {
        return owed.set(Base::behind(place(behind_gap.position)), host.random());
    }
    if let Some(Turn::Leaves { parent, .. }) = turn {
        let base = Base {
            place: place(parent.fork),
            left: Some(parent.clone()),
        };
        return owed.set(base, host.random());
    }
    owed.follow(place(state.reader.position()), host.random())
}

/// Pure: the turn between what is held and what the server sends.
fn turn(held: Option<&State>, begun: &Begun) -> Option<Turn> {
    if let Some(beginning) = &begun.state.beginning {
        return Some(Turn::Begins(beginning.clone()));
    }
    let held = held?;
    let (last, received) = (begun.last(), held.reader.position());
    if last.replid == held.replid {
        let is_other = !held.run_id.is_empty() && held.run_id != last.run_id;
        return is_other.then_some(Turn::GoesOn(None));
    }
    let parent = Parent {
        replid: held.replid.clone(),
        fork: begun
            .fork
            .as_ref()
            .map_or(begun.state.reader.position(), |(fork, _)| *fork),
    };
    Some(match parent.fork < received {
        true => Turn::Leaves { parent, received },
        false => Turn::GoesOn(Some(parent)),
    })
}

/// The process that sends, where it is another one than that of what is held.
fn process(held: Option<&State>, source: &Source) -> Option<Process> {
    let run_id = source.info.field("run_id")?.to_owned();
    let uptime = source.info.field("uptime_in_seconds");
    let process = Process {
        run_id,
        up_seconds: uptime.and_then(|seconds| seconds.parse().ok()),
    };
    (held?.run_id != process.run_id).then_some(process)
}

fn required(held: Option<State>) -> Result<State> {
    held.ok_or_else(|| err!(Internal, "nothing is held"))
}

/// Asks for what follows the bytes that are held.
fn go_on(source: &mut Source, held: State, host: &Host, tick: Tick<'_>) -> Result<Begun> {
    let position = held.reader.position();
    match ask(source, &held.replid, position, tick)? {
        Answer::Full(full) => full_after(source, &full, Some((&held, NOT_CONTINUED)), host, tick),
        Answer::Continue(replid) if replid.as_ref().is_none_or(|r| *r == held.replid) => {
            let parent = source.parent(&held.replid);
            let state = State {
                parent: parent.or(held.parent),
                beginning: None,
                reader: held.reader,
                ..source.state(held.replid, position)
            };
            Ok(Begun { state, fork: None })
        }
        Answer::Continue(replid) => {
            let replid = replid.unwrap_or_default();
            let fork = source.fork(&replid, &held.replid)?;
            let next = source.state(replid, fork);
            let state = State {
                beginning: None,
                run_id: next.run_id.clone(),
                ..held
            };
            Ok(Begun {
                state,
                fork: Some((fork, next)),
            })
        }
    }
}

/// Leaves the history that is held at a position before its end, for the one that the server went on with there.
fn leave(
    source: &mut Source,
    held: State,
    fork: u64,
    host: &Host,
    tick: Tick<'_>,
) -> Result<Begun> {
    match ask(source, &held.replid, fork, tick)? {
        Answer::Full(full) => full_after(source, &full, Some((&held, NOT_CONTINUED)), host, tick),
        Answer::Continue(replid) => {
            let replid = replid.ok_or_else(changed)?;
            match source.fork(&replid, &held.replid)? == fork {
                true => Ok(Begun {
                    state: source.state(replid, fork),
                    fork: None,
                }),
                false => Err(changed()),
            }
        }
    }
}

const NOT_CONTINUED: &str = "the server did not go on where the receiver was";

fn changed() -> Error {
    err!(Unreachable, "the server changed its history meanwhile")
}

/// The answer to the question for a history from a position on.
enum Answer {
    /// All of it, and it is this one.
    Full(FullResync),
    /// The bytes that follow; by which name, where the server says so.
    Continue(Option<String>),
}

fn ask(source: &mut Source, replid: &str, position: u64, tick: Tick<'_>) -> Result<Answer> {
    transfer::introduce(source, tick)?;
    let connection = &mut source.connection;
    // Bytes are counted from one there.
    let next = position.saturating_add(1).to_string();
    let words: [&[u8]; 3] = [b"PSYNC", replid.as_bytes(), next.as_bytes()];
    let Reply::Line(line) = connection.ask(&words, tick)? else {
        return Err(resp::no_sense(b"a bulk string"));
    };
    if let Some(full) = resp::full_resync(&line) {
        return Ok(Answer::Full(full));
    }
    let mut words = line.split_ascii_whitespace();
    match words.next() {
        Some("CONTINUE") => Ok(Answer::Continue(words.next().map(str::to_owned))),
        _ => Err(resp::no_sense(line.as_bytes())),
    }
}

impl Source {
    /// The history that one of its own goes on from, as it said before it was asked for it.
    fn parent(&self, replid: &str) -> Option<Parent> {
        let (replid, fork) = self.info.parent(replid)?;
        Some(Parent { replid, fork })
    }

    /// The position at which a history of its own goes on from the one that is held.
    fn fork(&self, replid: &str, held: &str) -> Result<u64> {
        let parent = self.parent(replid).filter(|parent| parent.replid == held);
        // A failover since the question names another history.
        Ok(parent.ok_or_else(changed)?.fork)
    }

    /// The state in front of a position of one of its histories, between two commands.
    pub fn state(&self, replid: String, position: u64) -> State {
        State {
            parent: self.parent(&replid),
            replid,
            run_id: self.info.field("run_id").unwrap_or_default().to_owned(),
            server_version: self.version.text().to_owned(),
            flavor: self.version.flavor.name().to_owned(),
            beginning: None,
            reader: Reader::new(position, None),
        }
    }
}

/// Asks for a history from its present end on.
fn begin(
    source: &mut Source,
    held: Option<&State>,
    why: Option<&'static str>,
    host: &Host,
    tick: Tick<'_>,
) -> Result<Begun> {
    transfer::introduce(source, tick)?;
    let connection = &mut source.connection;
    // The data set is not wanted here: a base is taken by a connection of its own. Servers before 7.0 do not know that, and send it.
    connection.send(&[b"REPLCONF", b"rdb-filter-only", b""])?;
    connection.reply(tick)?;
    match connection.ask(&[b"PSYNC", b"?", b"-1"], tick)? {
        Reply::Line(line) => {
            let full = resp::full_resync(&line).ok_or_else(|| resp::no_sense(line.as_bytes()))?;
            full_after(source, &full, held.zip(why), host, tick)
        }
        Reply::Error(_) | Reply::Bulk(_) | Reply::Array(_) => Err(resp::no_sense(b"a bulk string")),
    }
}

/// Passes over the data set, behind which the history goes on. The bytes between those that were held and these are lost.
fn full_after(
    source: &mut Source,
    full: &FullResync,
    gap: Option<(&State, &str)>,
    host: &Host,
    tick: Tick<'_>,
) -> Result<Begun> {
    let received = transfer::receive(&mut source.connection, &mut |_| Ok(()), tick)?;
    let db = received.head.field("repl-stream-db");
    let (after, reason) = gap.unzip();
    let after = after.map(|held| Held {
        replid: held.replid.clone(),
        position: held.reader.position(),
    });
    let state = State {
        beginning: Some(Beginning {
            position: full.offset,
            after,
            reason: reason.map(str::to_owned),
            time: host.now(),
        }),
        reader: Reader::new(full.offset, db.and_then(|db| db.parse().ok())),
        ..source.state(full.replid.clone(), full.offset)
    };
    Ok(Begun { state, fork: None })
}

impl Stream<'_, '_> {
    fn receive(&mut self, succeeded: &mut dyn FnMut(), tick: Tick<'_>) -> Result<()> {
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
            self.sink.rewind()?;
            self.see_durable()?;
            self.acknowledge()?;
            succeeded();
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
            let wait = async { tokio::time::timeout(LONG, feeder.room(length * SHARE)).await };
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

    /// Sees how far the journal is durable, or the repositories have it where that is what counts.
    fn see_durable(&mut self) -> Result<()> {
        let durable = *self.sink.watch.borrow();
        if durable.condition == Condition::Failed {
            return Err(err!(Io, "the journal cannot be written"));
        }
        let counted = match self.acknowledged {
            RedisAcknowledge::Repository => *self.sink.archived.borrow(),
            RedisAcknowledge::Journal | RedisAcknowledge::None => durable.position,
        };
        let place = counted.map_or(0, |position| position.lsn.0);
        while let Some((_, position)) = self.fed.front().filter(|(end, _)| *end <= place) {
            self.durable = Some(*position);
            self.fed.pop_front();
        }
        Ok(())
    }

    /// Tells the server how far the journal is durable: at once when that changed, and every second.
    fn acknowledge(&mut self) -> Result<()> {
        let position = match self.acknowledged {
            _ if self.sink.owed.get().is_some() => 0,
            RedisAcknowledge::Journal | RedisAcknowledge::Repository => self.durable.unwrap_or(0),
            RedisAcknowledge::None => 0,
        };
        let is_due = self
            .told
            .is_none_or(|(told, at)| told != position || at.elapsed() >= ACKNOWLEDGE_EVERY);
        let may_wait =
            self.is_asked && !self.fed.is_empty() && self.acknowledged != RedisAcknowledge::None;
        if !is_due && (!self.is_asked || may_wait) {
            return Ok(());
        }
        let text = position.to_string();
        let position_text = text.as_bytes();
        // FACK is what WAITAOF counts, from Redis 7.2 on: what is synced. Older servers stop reading behind ACK.
        self.connection
            .send(&[b"REPLCONF", b"ACK", position_text, b"FACK", position_text])?;
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

/// Whether an operator may put it right: a right, a password, a file or a lock.
pub fn may_be_mended(error: &Error) -> bool {
    matches!(error.code(), Code::Denied | Code::Config | Code::Locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(replid: &str, run_id: &str, position: u64) -> State {
        State {
            run_id: run_id.to_owned(),
            ..State::sample(replid, position)
        }
    }

    #[test]
    fn a_guard_is_not_mended_by_time() {
        for code in [Code::Refused, Code::Damaged, Code::Conflict, Code::Io] {
            let error = Error::new(code, "x");
            assert!(!may_try_again(&error) && !may_be_mended(&error), "{code:?}");
        }
    }

    #[test]
    fn a_turn_tells_what_is_left_and_who_goes_on() {
        let held = state("a", "one", 100);
        let seen =
            |state: State, fork: Option<(u64, State)>| turn(Some(&held), &Begun { state, fork });
        assert_eq!(seen(state("a", "one", 100), None), None);
        assert_eq!(seen(state("a", "two", 100), None), Some(Turn::GoesOn(None)));
        let parent = |fork| Parent {
            replid: "a".to_owned(),
            fork,
        };
        let left = Turn::Leaves {
            parent: parent(70),
            received: 100,
        };
        assert_eq!(seen(state("b", "two", 70), None), Some(left));
        // The server has a little more of the old history than was received.
        let ahead = Some((120, state("b", "two", 120)));
        let on = Turn::GoesOn(Some(parent(120)));
        assert_eq!(seen(state("a", "two", 100), ahead), Some(on));
        let fresh = Begun {
            state: state("a", "one", 0),
            fork: None,
        };
        assert_eq!(turn(None, &fresh), None);
    }
}
