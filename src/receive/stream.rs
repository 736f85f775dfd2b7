//! One stream of WAL: from the server into the journal, and what is safe back to the server.
//!
//! A position is reported to the server only once it is durable in the journal or, with `acknowledge = "repository"`,
//! in every required repository too. It is reported at once when it changes, when the server asks, and at least every
//! second. A silent server is asked for a sign of life, and given up when none comes, so that half-open connections are
//! noticed on this side.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::in_step::InStep;
use crate::config::Acknowledge;
use crate::err;
use crate::error::Result;
use crate::host::Clock;
use crate::journal::{Condition, Durable, Feeder, Room};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{Position, TimelineId};
use crate::wire::replication::{Positions, ReplicationStream, StreamEvent, WalData};

/// How often stop flag and clocks are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Positions are reported to the server at least this often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// After this long without a word the server is asked for a sign of life.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// After this long without a word the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a message to the server may take.
const SEND_MAX: Duration = Duration::from_secs(10);

/// A server that shuts down asks again as soon as it has an answer, until everything is safe. When so many questions come in a row,
/// this long, it is let go: what is not safe was not acknowledged, and comes again after its start.
const QUESTIONS_MAX: u32 = 20;
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);
/// Between such an answer and the next question.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);
/// Questions farther apart than this on average are those of a server that goes on.
const QUESTION_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// The parts that a stream works with.
pub struct Sources {
    /// The way into the journal.
    pub feeder: Feeder,
    /// How far the journal is durable.
    pub durable: watch::Receiver<Durable>,
    /// How far every required repository is.
    pub archived: watch::Receiver<Option<Position>>,
    /// The condition under which WAL counts as safe.
    pub acknowledge: Acknowledge,
    /// The clock, for the server's computation of lags.
    pub clock: Clock,
    /// The server whose end of WAL the stream tells.
    pub origin: Origin,
}

/// The server whose end of WAL a stream tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The one that writes.
    Primary,
    /// A standby, which may have no connection itself.
    Standby,
    /// None: the timeline has ended, and the server reports its end.
    Past,
}

/// The positions that a stream has reached; for status and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reached {
    /// Behind the last byte that came.
    pub received: Lsn,
    /// When it came.
    pub received_time: Option<TimestampTz>,
    /// End of the durable WAL in the journal.
    pub flushed: Lsn,
    /// The position that the receiver has acknowledged to the server as safe.
    pub acknowledged: Lsn,
    /// The server's end of WAL.
    pub server_end: Lsn,
    /// Up to when all commits are durable in the journal.
    pub safe_time: Option<TimestampTz>,
}

/// Why [`Streaming::step`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done.
    Progress,
    /// Time passed.
    Tick,
    /// The server has no more of this timeline, and everything that came is handed to the journal.
    Done,
    /// The server has shut down.
    Shutdown,
}

/// A stream under way.
pub struct Streaming {
    stream: ReplicationStream,
    timeline: TimelineId,
    sources: Sources,
    /// The slot's position when streaming began: the server takes any position, even one that moves its slot back.
    floor: Lsn,
    /// WAL that waits for room in the journal's queue; meanwhile nothing is read.
    pending: Option<WalData>,
    reached: Reached,
    in_step: InStep,
    tick: Interval,
    heard: Instant,
    told: Instant,
    /// Since when, and how often, the server has asked while not everything was safe.
    asked: Option<(Instant, u32)>,
}

enum Wake {
    Tick,
    Durable,
    Archived,
    Room(Result<Room>),
    Event(Result<StreamEvent>),
}

impl Streaming {
    /// Goes on with a stream that was granted.
    pub fn new(
        stream: ReplicationStream,
        position: Position,
        floor: Lsn,
        sources: Sources,
    ) -> Streaming {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Streaming {
            stream,
            timeline: position.timeline,
            sources,
            floor,
            pending: None,
            reached: Reached {
                received: position.lsn,
                ..Reached::default()
            },
            in_step: InStep::default(),
            tick,
            heard: now,
            told: now,
            asked: None,
        }
    }

    /// How far it has come.
    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// How the journal is.
    pub fn condition(&self) -> Condition {
        self.sources.durable.borrow().condition
    }

    /// The server.
    pub fn host(&self) -> &str {
        self.stream.host()
    }

    /// The stream, for its end in order.
    pub fn into_stream(self) -> ReplicationStream {
        self.stream
    }

    /// Does the next thing there is to do.
    ///
    /// # Errors
    /// Those of the stream; `Unreachable` when the server is silent for too long; `Internal` when the journal has ended.
    pub async fn step(&mut self) -> Result<Step> {
        let wanted = self.pending.as_ref().map(|data| data.bytes.len());
        let by_repository = self.sources.acknowledge == Acknowledge::Repository;
        let wake = tokio::select! {
            biased;
            _ = self.tick.tick() => Wake::Tick,
            Ok(()) = self.sources.durable.changed() => Wake::Durable,
            Ok(()) = self.sources.archived.changed(), if by_repository => Wake::Archived,
            room = self.sources.feeder.room(wanted.unwrap_or(0)), if wanted.is_some() => Wake::Room(room),
            event = self.stream.next_event(), if wanted.is_none() => Wake::Event(event),
        };
        match wake {
            Wake::Tick => {
                self.on_tick().await?;
                return Ok(Step::Tick);
            }
            Wake::Durable | Wake::Archived => self.tell_if_changed().await?,
            Wake::Room(room) => self.feed(room?)?,
            Wake::Event(event) => return self.on_event(event?).await,
        }
        Ok(Step::Progress)
    }

    fn feed(&mut self, room: Room) -> Result<()> {
        let Some(data) = self.pending.take() else {
            return Ok(());
        };
        self.heard = Instant::now();
        let end = data.end();
        self.sources
            .feeder
            .feed(room, self.timeline, data.start, data.bytes)?;
        self.reached.received = end;
        self.reached.received_time = Some((self.sources.clock)());
        Ok(())
    }

    async fn on_event(&mut self, event: StreamEvent) -> Result<Step> {
        self.heard = Instant::now();
        match event {
            StreamEvent::Data(data) => {
                self.see_end(data.server_end, data.server_time);
                self.pending = Some(data);
            }
            StreamEvent::Keepalive(alive) => {
                // A standby says the same while its own server is away.
                match self.sources.origin {
                    Origin::Primary => self.see_end(alive.server_end, alive.server_time),
                    _ => self.reached.server_end = self.reached.server_end.max(alive.server_end),
                }
                if alive.reply_requested {
                    self.answer().await?;
                }
            }
            StreamEvent::Done => return Ok(Step::Done),
            StreamEvent::Shutdown => return Ok(Step::Shutdown),
        }
        Ok(Step::Progress)
    }

    /// Takes what the server said of its end, and when it did: what waited on the way is of then.
    fn see_end(&mut self, end: Lsn, said: TimestampTz) {
        self.reached.server_end = self.reached.server_end.max(end);
        if self.sources.origin != Origin::Past {
            let now = (self.sources.clock)();
            self.in_step.told(self.reached.server_end, said.min(now));
        }
        self.reached.safe_time = self.in_step.durable(self.reached.flushed);
    }

    /// Answers a question of the server, unless it has waited for too long to shut down.
    async fn answer(&mut self) -> Result<()> {
        if self.safe() >= self.reached.received {
            self.asked = None;
            return self.tell(false).await;
        }
        let (since, count) = self.asked.map_or((Instant::now(), 1), |(s, n)| (s, n + 1));
        self.asked = Some((since, count));
        let waited = since.elapsed();
        if count >= QUESTIONS_MAX && waited > SHUTDOWN_PATIENCE {
            if waited < QUESTION_INTERVAL_MAX * count {
                return Err(err!(
                    Unreachable,
                    "server \"{}\" shuts down and waits until {} is safe, which takes too long: hung up, so that it can end",
                    self.stream.host(),
                    self.reached.received
                ));
            }
            self.asked = None;
        }
        if count > QUESTIONS_MAX / 4 {
            sleep(ANSWER_PAUSE).await;
        }
        self.tell(false).await
    }

    async fn on_tick(&mut self) -> Result<()> {
        let silent = match self.pending {
            // We do not listen: the journal has no room.
            Some(_) => Duration::ZERO,
            None => self.heard.elapsed(),
        };
        if silent >= SILENCE_MAX {
            return Err(err!(
                Unreachable,
                "server \"{}\" has not said anything for {} s",
                self.stream.host(),
                silent.as_secs()
            ));
        }
        if self.told.elapsed() >= TELL_INTERVAL {
            self.tell(silent >= ASK_AFTER).await?;
        }
        Ok(())
    }

    /// Returns the position that is safe on this timeline, and may be acknowledged.
    fn safe(&mut self) -> Lsn {
        let on_this = |position: Option<Position>| {
            let here = position.filter(|p| p.timeline == self.timeline);
            here.map_or(Lsn::INVALID, |p| p.lsn)
        };
        let flushed = on_this(self.sources.durable.borrow_and_update().position);
        let archived = on_this(*self.sources.archived.borrow_and_update());
        self.reached.flushed = flushed;
        self.reached.safe_time = self.in_step.durable(flushed);
        let safe = match self.sources.acknowledge {
            Acknowledge::Journal => flushed,
            Acknowledge::Repository => flushed.min(archived),
        };
        match safe >= self.floor {
            true => safe,
            false => Lsn::INVALID,
        }
    }

    /// Tells the server when there is something to tell.
    pub async fn tell_if_changed(&mut self) -> Result<()> {
        match self.safe() > self.reached.acknowledged {
            true => self.tell(false).await,
            false => Ok(()),
        }
    }

    /// Tells the server what is safe; `ask` wants an answer.
    async fn tell(&mut self, ask: bool) -> Result<()> {
        // WAL that was safe once stays so.
        let safe = self.safe().max(self.reached.acknowledged);
        let positions = Positions {
            // Received but not durable is worth nothing to us, and so to nobody.
            written: safe,
            flushed: safe,
            applied: Lsn::INVALID,
        };
        let now = (self.sources.clock)();
        let sent = timeout(SEND_MAX, self.stream.send_status(positions, ask, now));
        sent.await
            .unwrap_or_else(|_| Err(err!(Unreachable, "server takes no messages any more")))?;
        self.told = Instant::now();
        self.reached.acknowledged = safe;
        Ok(())
    }
}
