//! The receiver as a whole: which server, timeline and position to ask for, when to try again, and when to give up.
//!
//! connect → check what the server is → compare with what is archived, or with the journal → look for the slot → derive the position, record gaps → archive histories → stream, until the timeline ends (then
//! from the second step on), the connection is lost (from the first), or somebody wants to stop. Journal and shipping live for as long
//! as the process; a lost connection does not touch them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::belonging::{Place, Proof};
use super::compare::{self, Compared};
use super::holdings::{self, Holdings, Identity, Listings, Reach};
use super::kept::Kept;
use super::position::{self, Gap, Known, Start};
use super::remaining;
use super::ship::{self, Shipper};
use super::status::{self, RepositoryStatus, Status};
use super::stream::{Origin, Reached, Sources, Step, Streaming};
use super::upstream::{self, ServerFacts};
use crate::config::{self, Acknowledge};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::journal::shipping::{self, Shipped};
use crate::journal::{self, Condition, Journal, Segment};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, Position, TimelineId};
use crate::repo::event::Writer;
use crate::wal::path::Path;
use crate::wire::backoff::Backoff;
use crate::wire::client::Client;
use crate::wire::conninfo::ConnInfo;
use crate::wire::replication::{ReplicationStream, StartReplication};
use crate::wire::runtime;
use crate::wire::slot::{SlotName, SlotState};
use crate::wire::stop::unless_stopped;

/// How often the status is written.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often a wait looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How long a slot may be in use when we start: a server takes a while to notice that our predecessor died.
const SLOT_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to tell the server what is safe at last, and then to end the stream in order.
const LAST_WORD_MAX: Duration = Duration::from_secs(2);
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// How long a repository may take to say what it holds, or to store a history.
const ASIDE_MAX: Duration = Duration::from_secs(20);
/// How long it may take to find out which timeline is the cluster, where no journal leads: all WAL of the repositories is listed.
const CLUSTER_MAX: Duration = Duration::from_secs(600);
/// How long the last increment may take.
const FINISH_MAX: Duration = Duration::from_secs(30);
/// With so many segments that are not acknowledged, it is looked how long the server will keep them.
const WAITING_SEGMENTS: u64 = 4;
/// How long damage of the journal waits that could not be mended.
const MEND_AFTER: Duration = Duration::from_secs(60);
/// How long other servers may give nothing of WAL that one has removed, before it counts as lost.
const OTHERS_MAX: Duration = Duration::from_secs(300);
/// The same trouble is reported again after this long.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// The server to receive from, and the place for its WAL.
pub struct Options {
    /// The cluster's name.
    pub cluster: String,
    /// The servers.
    pub conninfo: ConnInfo,
    pub slot: SlotName,
    /// Whether a slot that is not there is created.
    pub create_slot: bool,
    /// Everything before this is enough.
    pub until: Option<Lsn>,
    /// The configured directory of the journal.
    pub journal: PathBuf,
    /// How large it may grow.
    pub journal_limit_bytes: Option<u64>,
    /// The condition under which WAL counts as safe.
    pub acknowledge: Acknowledge,
    /// The repositories that it is shipped to.
    pub repositories: Vec<config::Repository>,
}

/// How a receiver ended that was not stopped by an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The last status.
    pub status: Status,
    /// Whether everything is in the repositories; else the rest is in the journal.
    pub is_shipped: bool,
}

/// Receives until it is stopped, or has everything that was asked for; `None` when it was stopped before it knew which cluster it is.
///
/// # Errors
/// `Locked` when journal or slot are in use; `NotFound` when the slot is not there; `SlotLost`; `WrongCluster` or `Diverged` when no
/// server is one that may be received from; `Denied`; `Io` when the journal's disk fails. It waits where waiting helps.
pub fn run(options: &Options, host: &Host, watch: &dyn Fn(&Status)) -> Result<Option<Ended>> {
    let runtime = runtime::start()?;
    let result = receive(&runtime, options, host, watch);
    // A repository that hangs may still hold a thread.
    runtime.shutdown_background();
    result
}

fn receive(
    runtime: &tokio::runtime::Runtime,
    options: &Options,
    host: &Host,
    watch: &dyn Fn(&Status),
) -> Result<Option<Ended>> {
    let identified = unless_stopped(&host.stop, identify(options, host));
    let identity = match runtime.block_on(identified) {
        Ok(identity) => identity,
        Err(e) if e.code() == Code::Interrupted => return Ok(None),
        Err(e) => return Err(e),
    };
    let progress = Arc::clone(&host.progress);
    let journal = Journal::open(
        &journal::Options {
            directory: options.journal.clone(),
            system_identifier: identity.system_identifier,
            segment_size: identity.segment_size,
            limit_bytes: options.journal_limit_bytes,
            is_mended: true,
            nonce: host.random(),
            now: host.now(),
        },
        Arc::clone(&progress),
    )?;
    let shipper = Arc::new(Shipper::start(
        &journal,
        ship::Options {
            cluster: options.cluster.clone(),
            acknowledge: options.acknowledge,
            shipping: shipping::Options {
                repositories: options.repositories.clone(),
                nonce: host.random(),
                clock: Arc::clone(&host.clock),
            },
        },
        progress,
    )?);
    let mut session = Session::new(options, (host, watch), identity, &journal, &shipper);
    let result = runtime.block_on(session.receive());
    session.write_status_now();
    let mut status = session.status;
    let archived = shipper.archived();
    let is_shipped = Arc::into_inner(shipper).is_some_and(|shipper| shipper.finish(FINISH_MAX));
    let directory = journal.path().to_owned();
    journal.close()?;
    status.time = host.now();
    status.ended = Some(status.time);
    if let Err(e) = &result {
        status.last_error = Some(e.to_string());
    }
    for repository in &mut status.repositories {
        // The required ones have at least this; what the others have is as it was.
        let end = *archived.borrow();
        repository.archived_lsn = repository.archived_lsn.max(end.map(|p| p.lsn));
        repository.timeline = end.map(|p| p.timeline).or(repository.timeline);
    }
    // As in [`Session::write_status`].
    let _ = status::write(&directory, &status, host.random());
    result?;
    Ok(Some(Ended { status, is_shipped }))
}

/// Which cluster it is: as registered or, where that is not clear or cannot be read, as the server says.
async fn identify(options: &Options, host: &Host) -> Result<Identity> {
    let nonce = host.random();
    let (repositories, cluster) = (options.repositories.clone(), options.cluster.clone());
    let look = move || holdings::registered(&repositories, &cluster, nonce);
    match aside("look into the repositories", look).await {
        Ok(Some(identity)) => return Ok(identity),
        Ok(None) => {}
        // Received WAL waits in the journal until the repository is back.
        Err(error) if is_outage(&error) && options.journal.exists() => {
            host.progress.warn(&format!("repository: {error}"));
        }
        Err(error) => return Err(error),
    }
    let mut backoff = Backoff::default();
    loop {
        match ask_identity(options, host).await {
            Err(error) if error.code() == Code::Unreachable => {
                host.progress.warn(&format!("{error}"));
                sleep(backoff.next(host.random())).await;
            }
            answer => return answer,
        }
    }
}

async fn ask_identity(options: &Options, host: &Host) -> Result<Identity> {
    let mut client = upstream::connect(&options.conninfo, Arc::clone(&host.progress)).await?;
    let host = client.host().to_owned();
    let facts = upstream::answered(&host, upstream::facts(&mut client)).await?;
    Ok(Identity {
        cluster: options.cluster.clone(),
        system_identifier: facts.identity.system_identifier,
        segment_size: facts.segment_size,
        // Also one that is newer than this program: its WAL is stored as it comes.
        major: client.version_num() / 10_000,
    })
}

/// Whether a repository may be back later, also by a command for its key that fails now.
fn is_outage(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable
            | Code::NoRepository
            | Code::Io
            | Code::Deadline
            | Code::Denied
            | Code::Key
    )
}

/// Whether a repository may store later what it does not store now.
fn takes_nothing(error: &Error) -> bool {
    is_outage(error) || matches!(error.code(), Code::Full | Code::ReadOnly)
}

/// Does what may block apart from the connection, and waits for it only so long: a repository may hang.
async fn aside<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    aside_for(ASIDE_MAX, doing, work).await
}

/// As [`aside`], with another limit.
async fn aside_for<T: Send + 'static>(
    limit: Duration,
    doing: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(err!(Internal, "could not {doing}: the thread panicked")),
        Err(_) => Err(err!(
            Deadline,
            "could not {doing} within {} s",
            limit.as_secs()
        )),
    }
}

/// WAL that one server has removed in part, and others are asked for.
#[derive(Clone, Copy)]
struct Sought {
    /// When it was removed, or some of it came last.
    since: Instant,
    /// The end of that server's WAL: one that ends before lacks some.
    to: Lsn,
}

struct Session<'a> {
    options: &'a Options,
    host: &'a Host,
    /// Sees the status whenever it is written.
    watch: &'a dyn Fn(&Status),
    identity: Identity,
    journal: &'a Journal,
    shipper: &'a Arc<Shipper>,
    status: Status,
    status_written: Option<Instant>,
    /// Hosts that turned out not to be received from, until one is.
    left_out: Vec<String>,
    /// Standbys that lag, and servers behind them that are set up wrongly, until each of the others was tried, too.
    passed_over: Vec<String>,
    /// The history of the server's timeline when that was last found to be the cluster's. Another server may take the number for another timeline.
    checked: Option<History>,
    archived_histories: BTreeSet<TimelineId>,
    /// The history that these lead to.
    archived_of: Option<History>,
    /// Whether a repository follows a life that was chosen.
    has_lives: bool,
    /// The server of the last stream.
    last_server: Option<String>,
    /// The hosts that have said that WAL before a position is gone. Another one may have it.
    removed_before: BTreeMap<String, Lsn>,
    /// WAL that one of them had, until it has come.
    sought: Option<Sought>,
    /// The hosts to which another one gave way, until some WAL has come.
    gave_way: BTreeSet<String>,
    /// The end of WAL of the server that was asked last.
    server_end: Lsn,
    /// Whether a stream was ever granted: before, what an operator has to mend ends the process.
    streamed: bool,
    started: Instant,
    told: BTreeMap<String, Instant>,
    /// Whether a failed comparison of the server with the journal was reported.
    is_unproven_told: bool,
    kept: Kept,
    /// When damage of the journal was last looked at.
    mended: Option<Instant>,
    /// Gaps behind a switch point that are recorded.
    recorded: Vec<Gap>,
    /// Gaps that no repository recorded; a warning named each.
    unrecorded: Vec<Gap>,
}

impl<'a> Session<'a> {
    fn new(
        options: &'a Options,
        (host, watch): (&'a Host, &'a dyn Fn(&Status)),
        identity: Identity,
        journal: &'a Journal,
        shipper: &'a Arc<Shipper>,
    ) -> Session<'a> {
        let now = host.now();
        let before = status::read(journal.path()).ok().flatten();
        let status = Status {
            time: now,
            pid: std::process::id(),
            started: now,
            disconnected: Some(disconnected(before.as_ref(), now)),
            cluster: options.cluster.clone(),
            system_identifier: identity.system_identifier,
            slot: Some(options.slot.to_string()),
            safe_time: before.and_then(|before| before.safe_time),
            journal_limit_bytes: options.journal_limit_bytes,
            ..Status::default()
        };
        Session {
            options,
            host,
            watch,
            identity,
            journal,
            shipper,
            status,
            status_written: None,
            left_out: Vec::new(),
            passed_over: Vec::new(),
            checked: None,
            archived_histories: BTreeSet::new(),
            archived_of: None,
            has_lives: false,
            last_server: None,
            removed_before: BTreeMap::new(),
            sought: None,
            gave_way: BTreeSet::new(),
            server_end: Lsn::INVALID,
            streamed: false,
            started: Instant::now(),
            told: BTreeMap::new(),
            is_unproven_told: false,
            kept: Kept::default(),
            mended: None,
            recorded: Vec::new(),
            unrecorded: Vec::new(),
        }
    }

    /// Until it is finished, or something happened that waiting does not mend.
    async fn receive(&mut self) -> Result<()> {
        let mut backoff = Backoff::default();
        self.show_journal();
        loop {
            if self.is_stopped() {
                return Ok(());
            }
            let before = self.status.received_lsn;
            let error = match Box::pin(self.attempt()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.status.received_lsn > before {
                backoff.reset();
            }
            self.disconnect();
            if let Some(failure) = self.journal.failure() {
                return Err(failure);
            }
            if error.code() == Code::Interrupted {
                return Ok(());
            }
            if !self.is_overcome_by_waiting(&error) {
                return Err(error);
            }
            self.tell_trouble(&error);
            let end = Instant::now() + backoff.next(self.host.random());
            while Instant::now() < end && !self.is_stopped() {
                self.write_status();
                sleep(TICK).await;
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.host.stop.load(Ordering::Relaxed)
    }

    fn is_overcome_by_waiting(&self, error: &Error) -> bool {
        match error.code() {
            Code::Unreachable | Code::Deadline | Code::NoRepository | Code::Full => true,
            Code::Locked => {
                let is_young = self.started.elapsed() < crate::fault::shortened(SLOT_PATIENCE);
                // A new process would be told of removed WAL anew, and come here again.
                let is_sought =
                    self.has_others() && self.sought.is_some() && !self.is_sought_in_vain();
                self.streamed || is_young || is_sought
            }
            // A server that we received from may be under repair; one that never worked was set up wrongly.
            Code::Denied | Code::Server | Code::NotFound | Code::Io | Code::ReadOnly => {
                self.streamed
            }
            Code::Gap => !self.removed_before.is_empty(),
            _ => false,
        }
    }

    /// Warns of trouble, once for as long as it is the same.
    fn tell_trouble(&mut self, error: &Error) {
        let text = error.to_string();
        self.status.last_error = Some(text.clone());
        // Several servers have trouble of their own, in turn.
        self.told.retain(|_, when| when.elapsed() < REPEAT_AFTER);
        if self.told.contains_key(&text) {
            return;
        }
        self.host.progress.warn(&format!("{text}; trying again"));
        if let Some(hint) = error.hint_text() {
            self.host.progress.note(hint);
        }
        self.told.insert(text, Instant::now());
    }

    /// One connection, through as many timelines as it leads, until it was stopped or everything that was asked for is safe.
    async fn attempt(&mut self) -> Result<()> {
        self.drain().await?;
        let mut info = self.candidates();
        if info.hosts.is_empty() {
            self.forget_others();
            info = self.candidates();
        }
        let stop = &self.host.stop;
        let connect = upstream::connect(&info, Arc::clone(&self.host.progress));
        let connected = unless_stopped(stop, connect).await;
        let mut client = connected.map_err(|error| {
            let error = match self.is_put_off(&error) {
                true => error.with_code(Code::Unreachable),
                false => error,
            };
            // None of the others can be reached: those left out may have changed meanwhile.
            self.forget_others();
            // One that starts again may have what those have removed.
            self.pass_over_removed();
            error
        })?;
        let mut is_compared = false;
        loop {
            let host = client.host().to_owned();
            let prepared = Box::pin(self.prepare(client, &info, is_compared));
            let prepared = unless_stopped(stop, prepared).await;
            let (connection, start, server) =
                prepared.map_err(|error| match self.is_put_off(&error) {
                    // The standby is tried again before it.
                    true => self.pass_over(&host, error),
                    false => self.give_up(&host, error),
                })?;
            is_compared = true;
            // Those that gave nothing stay behind this one.
            if !self.is_sought_in_vain() {
                self.forget_others();
                self.pass_over_removed();
            }
            let streamed = self.stream(connection, &start, &server).await;
            let streamed = streamed.map_err(|error| {
                let error = self.give_up(&host, error);
                let has_removed = self.removed_before.contains_key(&host);
                match !has_removed && self.is_put_off(&error) {
                    // It may give later what another one has removed.
                    true => error.with_code(Code::Unreachable),
                    false => error,
                }
            });
            match streamed? {
                Some(connection) => client = connection,
                None => return Ok(()),
            }
        }
    }

    /// Waits until everything that was fed is durable. The server is compared with that alone, and may have become another life's within the rest.
    async fn drain(&mut self) -> Result<()> {
        let durable = self.journal.watch();
        loop {
            let now = *durable.borrow();
            if now.position >= self.journal.feeder().expected() {
                return Ok(());
            }
            if self.is_stopped() {
                return Err(err!(Interrupted, "interrupted"));
            }
            if now.condition != Condition::Writing {
                self.check_journal(now.condition)?;
                self.watch_slot_of_last().await;
            }
            self.write_status();
            sleep(TICK).await;
        }
    }

    /// Everything before the stream: whose server it is, the slot, where to begin, the histories.
    async fn prepare(
        &mut self,
        mut client: Client,
        info: &ConnInfo,
        is_compared: bool,
    ) -> Result<(Client, Start, (SlotState, Origin))> {
        let host = client.host().to_owned();
        let facts = upstream::answered(&host, upstream::facts(&mut client)).await?;
        self.server_end = facts.identity.flush_lsn;
        if let Err(error) = self.check_server(&facts) {
            return Err(self.leave_out(client.host(), error));
        }
        if let Err(error) = self.check_timeline(&facts).await {
            return Err(self.refuse(&facts, &host, error));
        }
        let is_fresh = self.journal_end().is_none();
        let (mut is_archived, mut is_same) = (false, false);
        // Before there is a slot: it would keep the WAL of a server from which nobody receives.
        match (is_compared, is_fresh) {
            (true, _) => {}
            (false, true) => {
                (client, is_archived) = self.compare_stored(client, info, &facts).await?;
            }
            (false, false) => {
                let compared = match self.check_end(&facts) {
                    Ok(()) => self.compare(client, info, &facts.history).await,
                    Err(error) => Err(self.refuse(&facts, &host, error)),
                };
                // A standby that is behind, and a server that was not heard out, are no other life.
                let is_other =
                    |e: &Error| e.code() == Code::Diverged || self.left_out.contains(&host);
                let is_refused = !facts.in_recovery && compared.as_ref().is_err_and(is_other);
                if self.options.create_slot && is_refused {
                    self.keep_chosen(info, &host, &facts).await;
                }
                (client, is_same) = compared?;
            }
        }
        let slot = self.slot(&mut client, info, is_same).await?;
        let start = match self.derive(&host, &facts, &slot).await {
            Ok(start) => start,
            Err(error) => return Err(self.refuse(&facts, &host, error)),
        };
        if !is_compared {
            client = self.compare_passed(client, info, &facts, &start).await?;
            if self.has_lives && !is_fresh && self.shipper.proof() != Proof::Archive {
                (client, is_archived) = self.compare_stored(client, info, &facts).await?;
            }
            let proof = match (is_fresh || is_same, is_archived) {
                (false, _) => Proof::Nothing,
                (true, false) => Proof::Journal,
                (true, true) => Proof::Archive,
            };
            // Its last run alone was compared: WAL before a hole may be another server's.
            let start = (start.position.timeline, start.position.lsn);
            let last = self.journal.held().last().map(|h| (h.timeline, h.from));
            self.shipper.compared(proof, last.unwrap_or(start));
            client = self.mend(client, info, &facts).await?;
        }
        self.tell_start(&start);
        self.archive_histories(&mut client, &facts, start.position.timeline)
            .await?;
        let origin = match facts.history.timeline() == start.position.timeline {
            true if facts.in_recovery => Origin::Standby,
            true => Origin::Primary,
            false => Origin::Past,
        };
        Ok((client, start, (slot, origin)))
    }

    /// Another life's server is left out; a standby that has yet to follow, or to catch up, is passed over.
    fn refuse(&mut self, facts: &ServerFacts, host: &str, error: Error) -> Error {
        match error.code() {
            Code::Diverged if facts.in_recovery => self.pass_over(host, error),
            Code::Diverged => self.leave_out(host, error),
            _ => error,
        }
    }

    /// Requires that what the journal holds is part of the server's WAL, as far as its history and its end tell.
    fn check_end(&self, facts: &ServerFacts) -> Result<()> {
        let end = facts.identity.flush_lsn;
        match self.journal_end() {
            Some(held) => position::check_end((&facts.history, end), held, held.lsn),
            None => Ok(()),
        }
    }

    /// Returns the slot. One that has lost WAL is made anew where the server has the journal's end, `has_held`: what follows is likely there, too.
    /// Else other servers may be received from.
    async fn slot(
        &mut self,
        client: &mut Client,
        info: &ConnInfo,
        has_held: bool,
    ) -> Result<SlotState> {
        let (options, progress) = (self.options, &self.host.progress);
        let (name, create) = (&options.slot, options.create_slot);
        let host = client.host().to_owned();
        let slot = upstream::slot(client, info, name, create, progress);
        let slot = upstream::answered(&host, slot).await;
        match slot {
            Err(error) if error.code() == Code::SlotLost && create && has_held => {
                let renewed = upstream::renew_slot(client, info, name, progress);
                upstream::answered(&host, renewed).await
            }
            Err(error) if error.code() == Code::SlotLost => Err(self.leave_out(&host, error)),
            slot => slot,
        }
    }

    /// Makes the slot on a server that was refused for the journal alone: `pitr wal resolve` chose its life, and what it writes is received once
    /// that journal is away. The refusal is told, whatever becomes of this.
    async fn keep_chosen(&mut self, info: &ConnInfo, host: &str, facts: &ServerFacts) {
        let kept = async {
            let Some((holdings, reach)) = self.holdings(false, &facts.history).await? else {
                return Ok(());
            };
            let last = reach.end.and_then(|end| self.segment_ending_at(end));
            let Some(name) = last.filter(|_| holdings.has_lives(&facts.history).unwrap_or(false))
            else {
                return Ok(());
            };
            let mut same = info.clone();
            same.hosts.retain(|h| h.display() == host);
            let progress = &self.host.progress;
            let client = upstream::connect(&same, Arc::clone(progress)).await?;
            let (client, compared) = self.compare_with(client, name, &facts.history).await?;
            if let (Some(mut client), Compared::Same) = (client, compared) {
                let slot = &self.options.slot;
                upstream::slot(&mut client, &same, slot, true, progress).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = kept.await
            && error.code() != Code::Diverged
        {
            self.host.progress.warn(&format!(
                "whether \"{host}\" keeps its WAL until it is received is not known: {error}"
            ));
        }
    }

    /// Requires that the server has the WAL with which the journal ends; returns a connection to it, and whether that is proven.
    async fn compare(
        &mut self,
        client: Client,
        info: &ConnInfo,
        history: &History,
    ) -> Result<(Client, bool)> {
        let host = client.host().to_owned();
        let compared = compare::compare(client, history, &self.journal.follower()).await;
        let is_same = matches!(compared, Ok((_, Compared::Same)));
        Ok((self.compared(compared, &host, info).await?, is_same))
    }

    /// Requires that the server has the last whole segment of the repositories, so that what comes next continues it; returns whether that is proven.
    /// Without a journal nothing else tells; with one, nothing else tells of the life that `pitr wal resolve` chose.
    async fn compare_stored(
        &mut self,
        client: Client,
        info: &ConnInfo,
        facts: &ServerFacts,
    ) -> Result<(Client, bool)> {
        let has_removed = self.removed_before.contains_key(client.host());
        let is_leading = self.journal_end().is_some() && !has_removed;
        let found = self.holdings(is_leading, &facts.history).await?;
        let last = found.and_then(|(_, reach)| self.segment_ending_at(reach.end?));
        let Some(name) = last else {
            return Ok((client, false));
        };
        let host = client.host().to_owned();
        let compared = self.compare_with(client, name, &facts.history).await;
        let is_same = matches!(compared, Ok((_, Compared::Same)));
        Ok((self.compared(compared, &host, info).await?, is_same))
    }

    /// Requires that the server has the last segment that is passed over, if archiving has gone on past the journal's
    /// end.
    async fn compare_passed(
        &mut self,
        client: Client,
        info: &ConnInfo,
        facts: &ServerFacts,
        start: &Start,
    ) -> Result<Client> {
        let Some(journal) = self.journal_end() else {
            return Ok(client);
        };
        let end = start.position.lsn;
        if journal.lsn >= end || !start.gaps.is_empty() {
            return Ok(client);
        }
        let timeline = facts.history.holder(Lsn(end.0.saturating_sub(1)));
        let Some(name) = self.segment_ending_at(Position { timeline, lsn: end }) else {
            return Ok(client);
        };
        let host = client.host().to_owned();
        let compared = self.compare_with(client, name, &facts.history).await;
        self.compared(compared, &host, info).await
    }

    fn segment_ending_at(&self, end: Position) -> Option<SegmentName> {
        let size = self.identity.segment_size;
        SegmentNumber::ending_at(end.lsn, size).name(end.timeline, size)
    }

    async fn compare_with(
        &self,
        mut client: Client,
        name: SegmentName,
        history: &History,
    ) -> Result<(Option<Client>, Compared)> {
        let size = self.identity.segment_size;
        let range = name.number(size)?.range(size);
        let switch = history.switch_point(name.timeline);
        if switch.is_some_and(|switch| switch < range.end) {
            return Ok((Some(client), Compared::Nothing));
        }
        // Asked anew: what is archived may be younger than the last answer.
        let facts = upstream::facts(&mut client).await?;
        if facts.identity.flush_lsn < range.end {
            return match facts.in_recovery {
                // A standby that has yet to catch up.
                true => Ok((Some(client), Compared::Nothing)),
                false => Err(compare::not_archived(name)),
            };
        }
        let (client, hash) = compare::hash(client, name, range.start..range.end).await?;
        let hash = match hash {
            Ok(hash) => hash,
            Err(why) => return Ok((client, Compared::Unproven(why))),
        };
        let (repositories, identity) = (self.options.repositories.clone(), self.identity.clone());
        let nonce = self.host.random();
        let is_same = aside("look into the repositories", move || {
            Holdings::open(&repositories, &identity, nonce)?.has(name, &hash)
        });
        match is_same.await? {
            true => Ok((client, Compared::Same)),
            false => Err(compare::not_archived(name)),
        }
    }

    /// Leaves out a server that is another life's, says what could not be proven, and connects again where the comparison cost the connection.
    async fn compared(
        &mut self,
        compared: Result<(Option<Client>, Compared)>,
        host: &str,
        info: &ConnInfo,
    ) -> Result<Client> {
        let (client, compared) = match compared {
            Err(error) if error.code() == Code::Diverged => {
                return Err(self.leave_out(host, error));
            }
            compared => compared?,
        };
        if let Compared::Unproven(why) = compared
            && !std::mem::replace(&mut self.is_unproven_told, true)
        {
            self.host.progress.warn(&format!(
                "the server's WAL could not be compared with what was received last ({why}): that it is the same server's is not proven"
            ));
        }
        match client {
            Some(client) => Ok(client),
            None => {
                let mut same = info.clone();
                same.hosts.retain(|h| h.display() == host);
                upstream::connect(&same, Arc::clone(&self.host.progress)).await
            }
        }
    }

    /// The servers that have not turned out to be the wrong ones, and wait for no other one.
    fn candidates(&self) -> ConnInfo {
        let mut info = self.options.conninfo.clone();
        let is_out =
            |host: &String| self.left_out.contains(host) || self.passed_over.contains(host);
        info.hosts.retain(|host| !is_out(&host.display()));
        info
    }

    /// This host is none to receive from. Others may be; without any left, that is the end.
    fn leave_out(&mut self, host: &str, error: Error) -> Error {
        self.left_out.push(host.to_owned());
        let mut hosts = self.options.conninfo.hosts.iter();
        match hosts.all(|host| self.left_out.contains(&host.display())) {
            true => error,
            false => error.with_code(Code::Unreachable),
        }
    }

    /// This server may be one to receive from later. A standby that is stuck keeps nobody from the others: they are tried before it is again.
    fn pass_over(&mut self, host: &str, error: Error) -> Error {
        self.passed_over.push(host.to_owned());
        error.with_code(Code::Unreachable)
    }

    /// Those that have removed WAL come behind the others until some of it has come, or these had time enough.
    fn pass_over_removed(&mut self) {
        if !self.is_sought_in_vain() {
            self.passed_over.extend(self.removed_before.keys().cloned());
        }
    }

    /// Whether the others had their time to give what one has removed.
    fn is_sought_in_vain(&self) -> bool {
        let limit = crate::fault::silence(OTHERS_MAX);
        self.sought.is_some_and(|s| s.since.elapsed() >= limit)
    }

    /// Each server that fails once removed WAL was sought in vain comes behind those that were not tried since.
    fn give_up(&mut self, host: &str, error: Error) -> Error {
        if !self.has_others() || !self.is_sought_in_vain() {
            return error;
        }
        match error.code() {
            Code::Unreachable
            | Code::Deadline
            | Code::Locked
            | Code::NotFound
            | Code::Denied
            | Code::Server => {
                self.passed_over.push(host.to_owned());
                // A process that never worked says what only an operator can mend.
                let is_last = !self.streamed && self.candidates().hosts.is_empty();
                match is_last {
                    true => error,
                    false => error.with_code(Code::Unreachable),
                }
            }
            // The same server is asked for what it has.
            _ => error,
        }
    }

    fn has_others(&self) -> bool {
        self.options.conninfo.hosts.len() > 1
    }

    /// A standby gives nothing behind a position, and another server was farther: that one, and all others that were not left so, come first.
    fn leave_stuck(&mut self, host: &str, received: Lsn, sought: Sought) -> Error {
        self.left_out.clear();
        let removed = &self.removed_before;
        self.passed_over.retain(|host| !removed.contains_key(host));
        let limit = crate::fault::silence(OTHERS_MAX);
        let error = err!(
            Unreachable,
            "server \"{host}\" has sent nothing behind {received} for {} s, and another server has WAL up to {}",
            limit.as_secs(),
            sought.to
        );
        self.pass_over(host, error)
    }

    /// The server that has more of the removed WAL is asked alone, before a gap is recorded.
    fn give_way(&mut self, host: &str, (other, first): (String, Lsn)) -> Error {
        let error = err!(
            Unreachable,
            "server \"{host}\" has removed more WAL than \"{other}\", which has it from {first} on and is asked first"
        );
        let hosts = self.options.conninfo.hosts.iter().map(|h| h.display());
        self.passed_over = hosts.filter(|h| *h != other).collect();
        self.gave_way.insert(other);
        error
    }

    /// WAL has come, up to `end`. Every server may have what follows; a primary has all that there is.
    fn came(&mut self, end: Lsn, origin: Origin) {
        let Some(Sought { to, .. }) = self.sought else {
            return;
        };
        self.found();
        if end < to && origin != Origin::Primary {
            let since = Instant::now();
            self.sought = Some(Sought { since, to });
        }
    }

    /// No WAL is sought that a server has removed.
    fn found(&mut self) {
        self.sought = None;
        self.removed_before.clear();
        self.gave_way.clear();
        self.forget_others();
    }

    /// Another server that is set up wrongly ends nothing while a standby may be one to receive from later, and has its time for that.
    fn is_put_off(&self, error: &Error) -> bool {
        let is_other = matches!(error.code(), Code::NotFound | Code::Denied | Code::Server);
        is_other && !self.passed_over.is_empty() && !self.is_sought_in_vain()
    }

    /// All servers are tried again.
    fn forget_others(&mut self) {
        self.left_out.clear();
        self.passed_over.clear();
    }

    fn check_server(&self, facts: &ServerFacts) -> Result<()> {
        let own = &self.identity;
        if facts.identity.system_identifier != own.system_identifier {
            return Err(err!(
                Refused,
                "server has system identifier {}, cluster \"{}\" is registered with {}",
                facts.identity.system_identifier,
                own.cluster,
                own.system_identifier
            )
            .hint("Nothing was received. It is another cluster: correct conninfo, or --cluster; after initdb or pg_upgrade, run \"pitr init --confirm\"."));
        }
        if facts.segment_size != own.segment_size {
            return Err(err!(
                Refused,
                "server has segments of {} bytes, cluster \"{}\" is registered with {}",
                facts.segment_size.bytes(),
                own.cluster,
                own.segment_size.bytes()
            )
            .hint("Nothing was received. After pg_resetwal --wal-segsize, run \"pitr init --confirm\"."));
        }
        Ok(())
    }

    /// Requires that the server's timeline is the cluster, or may be; once for each history. While the repositories are away the journal
    /// leads.
    async fn check_timeline(&mut self, facts: &ServerFacts) -> Result<()> {
        let timeline = facts.history.timeline();
        if self.checked.as_ref() == Some(&facts.history) {
            return Ok(());
        }
        let (repositories, identity) = (self.options.repositories.clone(), self.identity.clone());
        let (nonce, history) = (self.host.random(), facts.history.clone());
        let has_journal = self.journal_end().is_some();
        let limit = match has_journal {
            true => ASIDE_MAX,
            false => CLUSTER_MAX,
        };
        let look = aside_for(limit, "look which timeline is the cluster", move || {
            Holdings::open(&repositories, &identity, nonce)?.cluster(&history)
        });
        let cluster = match look.await {
            Ok(cluster) => cluster,
            Err(error) if has_journal && is_outage(&error) => {
                self.host.progress.warn(&format!(
                    "{error}; the server's timeline was not checked, and streaming goes on from the journal's end"
                ));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(warning) = cluster.require(timeline)? {
            self.host.progress.warn(&warning);
        }
        self.checked = Some(facts.history.clone());
        Ok(())
    }

    /// Returns the end of the journal, or the position of its next byte once it was fed.
    fn journal_end(&self) -> Option<Position> {
        let held = self.journal.held();
        let last = held.last().map(|run| Position {
            timeline: run.timeline,
            lsn: run.to,
        });
        self.journal.feeder().expected().or(last)
    }

    async fn derive(&mut self, host: &str, facts: &ServerFacts, slot: &SlotState) -> Result<Start> {
        let journal = self.journal_end();
        // WAL that this server has removed is lost only where no repository has it.
        let is_leading = journal.is_some() && !self.removed_before.contains_key(host);
        let (holdings, reach) = match self.holdings(is_leading, &facts.history).await? {
            Some((holdings, reach)) => (Some(holdings), reach),
            None => (None, Reach::default()),
        };
        let size = self.identity.segment_size;
        let path = Path::new(facts.history.clone(), size);
        let removed_before = match self.removed_before.get(host).copied() {
            Some(removed) => {
                let kept = slot.restart_lsn.unwrap_or(facts.identity.flush_lsn);
                Some(self.first_given(host, &path, (removed, kept)).await?)
            }
            None => None,
        };
        let listings = RefCell::new(Listings::default());
        let covered = |name: SegmentName| match &holdings {
            Some(holdings) => holdings.covered_in_order(name, &mut listings.borrow_mut()),
            None => Ok(name.start_lsn(size)?),
        };
        let mut known = Known {
            path: &path,
            journal,
            repository: reach.end,
            slot: slot.restart_lsn,
            server_end: facts.identity.flush_lsn,
            removed_before,
            covered: &covered,
        };
        let mut start = position::derive(&known)?;
        if let Some(first) = removed_before
            && !start.gaps.is_empty()
            && let Some((other, first)) = self.one_with_more(host, first).await
        {
            known.removed_before = Some(first);
            if position::derive(&known)?.gaps != start.gaps {
                return Err(self.give_way(host, (other, first)));
            }
        }
        if let Some(holdings) = &holdings {
            self.has_lives = holdings.has_lives(&facts.history)?;
            start.gaps = self.record_lost(holdings, &start.gaps)?;
        }
        Ok(start)
    }

    /// Records what is lost to a repository of the WAL that the server gives no more, and returns it.
    fn record_lost(&self, holdings: &Holdings, gaps: &[Gap]) -> Result<Vec<Gap>> {
        let writer = Writer::of(self.host);
        let mut all = Vec::new();
        for gap in gaps {
            let lost = holdings.lost(gap)?;
            if lost.is_held_by_another {
                self.host.progress.warn(&held_by_another(gap));
            }
            holdings.record(&lost, &writer)?;
            all.extend(lost.parts);
        }
        Ok(all)
    }

    /// Writes damaged segments of the journal anew, as the server has them. WAL that neither it nor the repositories have is recorded as a gap.
    async fn mend(
        &mut self,
        mut client: Client,
        info: &ConnInfo,
        facts: &ServerFacts,
    ) -> Result<Client> {
        let damaged = self.journal.damaged();
        if damaged.is_empty() {
            return Ok(client);
        }
        self.mended = Some(Instant::now());
        let is_leading = !self.removed_before.contains_key(client.host());
        let Some((holdings, _)) = self.holdings(is_leading, &facts.history).await? else {
            return Ok(client);
        };
        let held = self.journal.follower().segments();
        for segment in damaged {
            let is_next =
                |s: &Segment| s.name.timeline == segment.name.timeline && s.from >= segment.end;
            let lacking = Lacking::of(&holdings, segment, &facts.history)?;
            // Only a file behind it tells that the timeline went on so far here.
            let behind = lacking.behind.filter(|_| held.iter().any(is_next));
            let is_recorded = behind.is_none_or(|gap| self.record_behind(&holdings, gap));
            let Some(lost) = lacking.asked else {
                // Else the next look tries to record it again.
                if is_recorded {
                    self.journal.give_up(segment.name);
                }
                continue;
            };
            if facts.identity.flush_lsn < lost.to {
                // A standby that has yet to catch up.
                continue;
            }
            let host = client.host().to_owned();
            let (connection, mended) = self.ask_again(client, segment, lost.to).await?;
            client = self
                .compared(Ok((connection, Compared::Same)), &host, info)
                .await?;
            if let Some(is_mended) = mended {
                self.tell_mended(&holdings, segment, (lost, is_mended))?;
            }
        }
        Ok(client)
    }

    /// Has the server send a segment of the journal again; tells whether it has it, where that is known.
    async fn ask_again(
        &self,
        client: Client,
        segment: Segment,
        to: Lsn,
    ) -> Result<(Option<Client>, Option<bool>)> {
        let mut mending = match self.journal.mend(segment.name) {
            Ok(mending) => mending,
            Err(e) if e.code() == Code::Full => return Ok((Some(client), None)),
            Err(e) => return Err(e),
        };
        let mut sink = |wal: &[u8]| mending.write(wal);
        let range = segment.from..to;
        match compare::ask_again(client, segment.name.timeline, range, &mut sink).await {
            Ok(client) => {
                mending.finish()?;
                Ok((client, Some(true)))
            }
            Err(e) if e.code() == Code::Gap => Ok((None, Some(false))),
            Err(e) if e.code() == Code::Server => {
                self.host.progress.warn(&format!(
                    "segment \"{}\" of the journal is damaged, and the server does not send it again: {e}",
                    segment.name
                ));
                Ok((None, None))
            }
            Err(e) => Err(e),
        }
    }

    fn tell_mended(
        &self,
        holdings: &Holdings,
        segment: Segment,
        (gap, is_mended): (Gap, bool),
    ) -> Result<()> {
        if is_mended {
            self.host.progress.note(&format!(
                "segment \"{}\" was damaged in the journal, from {} on: the server sent it again",
                segment.name, segment.to
            ));
            return Ok(());
        }
        self.record_gap(holdings, &gap)?;
        self.journal.give_up(segment.name);
        Ok(())
    }

    /// Records the gap behind a switch point; returns whether it is recorded. A repository that does not take it keeps nothing from being streamed.
    fn record_behind(&mut self, holdings: &Holdings, gap: Gap) -> bool {
        if self.recorded.contains(&gap) {
            return true;
        }
        match self.record_gap(holdings, &gap) {
            Ok(()) => {
                self.recorded.push(gap);
                true
            }
            Err(error) => {
                if !self.unrecorded.contains(&gap) {
                    self.unrecorded.push(gap);
                    self.host.progress.warn(&format!(
                        "WAL from {} to {} of timeline {} is lost in the journal, and that could not be recorded: {error}",
                        gap.from,
                        gap.to,
                        gap.timeline.decimal()
                    ));
                }
                false
            }
        }
    }

    /// Records what is lost of WAL that the journal has lost and no server gives, and says it once.
    fn record_gap(&self, holdings: &Holdings, gap: &Gap) -> Result<()> {
        let lost = holdings.lost(gap)?;
        let is_new = holdings.record(&lost, &Writer::of(self.host))?;
        if lost.is_held_by_another {
            self.host.progress.warn(&held_by_another(gap));
        }
        if is_new {
            for part in &lost.parts {
                self.host.progress.warn(&lost_for_good(part));
            }
        }
        Ok(())
    }

    /// Whether damage was found since the last look, or waits for so long, and the repositories take what comes of it.
    fn is_mending_due(&self) -> bool {
        let pause = crate::fault::shortened(MEND_AFTER);
        let is_due = self.mended.is_none_or(|at| at.elapsed() >= pause);
        let shipped = self.shipper.shipped();
        let fails = |s: &Shipped| s.is_required && s.error.is_some();
        is_due && !self.journal.damaged().is_empty() && !shipped.iter().any(fails)
    }

    /// Asks from where on the server still has WAL. It has removed the segment of `removed`, and has that of `kept`.
    async fn first_given(
        &self,
        host: &str,
        path: &Path,
        (removed, kept): (Lsn, Lsn),
    ) -> Result<Lsn> {
        let server = remaining::Server {
            info: &self.only(host),
            path,
            progress: &self.host.progress,
        };
        server.first_after(removed, kept).await
    }

    fn only(&self, host: &str) -> ConnInfo {
        let mut info = self.options.conninfo.clone();
        info.hosts.retain(|h| h.display() == host);
        info
    }

    /// Returns the other server that has removed least, and its first WAL, if that lies before `first`, which `host` has. Each is named once: it may
    /// have WAL, and not give it.
    async fn one_with_more(&self, host: &str, mut first: Lsn) -> Option<(String, Lsn)> {
        let mut found = None;
        for (other, removed) in &self.removed_before {
            if other == host || self.gave_way.contains(other) || self.left_out.contains(other) {
                continue;
            }
            // One that does not answer gives nothing.
            if let Ok(lsn) = Box::pin(self.first_of(other, *removed)).await
                && lsn < first
            {
                first = lsn;
                found = Some((other.clone(), lsn));
            }
        }
        found
    }

    /// Asks a server without a connection from where on it still has WAL.
    async fn first_of(&self, host: &str, removed: Lsn) -> Result<Lsn> {
        let info = self.only(host);
        let question = async {
            let mut client = upstream::connect(&info, Arc::clone(&self.host.progress)).await?;
            upstream::facts(&mut client).await
        };
        let facts = upstream::answered(host, question).await?;
        let path = Path::new(facts.history, self.identity.segment_size);
        let kept = facts.identity.flush_lsn;
        self.first_given(host, &path, (removed, kept)).await
    }

    /// Returns the WAL that the repositories hold. A journal that leads by itself can do without it, while they are away.
    async fn holdings(
        &self,
        is_leading: bool,
        history: &History,
    ) -> Result<Option<(Holdings, Reach)>> {
        let (repositories, identity) = (self.options.repositories.clone(), self.identity.clone());
        let (nonce, history) = (self.host.random(), history.clone());
        let look = aside("look into the repositories", move || {
            let holdings = Holdings::open(&repositories, &identity, nonce)?;
            let reach = holdings.reach(&history)?;
            Ok((holdings, reach))
        });
        match look.await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_leading && is_outage(&error) => {
                self.host.progress.warn(&format!(
                    "repository: {error}; streaming goes on from the journal's end"
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn tell_start(&self, start: &Start) {
        for gap in &start.gaps {
            self.host.progress.warn(&lost_for_good(gap));
        }
        if let Some(overhang) = start.overhang {
            self.host.progress.warn(&format!(
                "the server's history leaves timeline {} at {}, and WAL of it was received up to {}: commits between are not on the new timeline; \
                 they stay in journal and repository",
                overhang.timeline.decimal(),
                overhang.switch_lsn,
                overhang.end
            ));
        }
    }

    /// The histories that lead from the position's timeline to the server's, before any WAL of theirs.
    async fn archive_histories(
        &mut self,
        client: &mut Client,
        facts: &ServerFacts,
        from: TimelineId,
    ) -> Result<()> {
        if self.archived_of.as_ref() != Some(&facts.history) {
            self.archived_histories.clear();
            self.archived_of = Some(facts.history.clone());
        }
        let own = facts.history.timeline();
        let path = facts.history.ancestors().iter().map(|a| a.timeline);
        let wanted: Vec<_> = path
            .chain([own])
            .filter(|t| *t >= from && *t != TimelineId::FIRST)
            .filter(|t| !self.archived_histories.contains(t))
            .collect();
        for timeline in wanted {
            let host = client.host().to_owned();
            match upstream::answered(&host, client.timeline_history(timeline)).await {
                Ok(history) => self.archive_history(timeline, history.content).await?,
                // Servers need not keep those of ancestors.
                Err(error) if timeline != own && error.code() == Code::Server => continue,
                Err(error) => return Err(error),
            }
            self.archived_histories.insert(timeline);
        }
        Ok(())
    }

    /// Stores a history in the required repositories. A journal keeps it where one of them takes nothing: commits do not wait for that one.
    async fn archive_history(&self, timeline: TimelineId, content: Bytes) -> Result<()> {
        // A history that is stored is the archive's for good: that of another server must not come before WAL that was acknowledged.
        self.shipper.check_kept(timeline, &content)?;
        let (shipper, given) = (Arc::clone(self.shipper), content.clone());
        let store = move || shipper.archive_history(timeline, &given);
        let is_archived = match aside("archive a timeline's history", store).await {
            Ok(()) => true,
            Err(error) if self.journal_end().is_some() && takes_nothing(&error) => {
                self.host.progress.warn(&format!(
                    "{error}; the history of timeline {} waits in the journal, and WAL of that timeline behind it",
                    timeline.decimal()
                ));
                false
            }
            Err(error) => return Err(error),
        };
        self.shipper.keep_history((timeline, &content), is_archived)
    }

    /// How the WAL of a stream is acknowledged. Behind WAL that may be another life's nothing is shipped, and the journal is to be moved away: the
    /// server keeps what no repository has.
    fn acknowledge(&self, from: Place) -> Acknowledge {
        let first = self.journal.held().first().map(|h| (h.timeline, h.from));
        let is_nothing = |first: Place| self.shipper.proof_at(first) == Proof::Nothing;
        let is_doubted = self.has_lives && first.is_some_and(is_nothing);
        self.shipper.streams(from);
        match is_doubted {
            true => Acknowledge::Repository,
            false => self.options.acknowledge,
        }
    }

    /// Streams one timeline; returns the connection when it has ended, `None` when enough was received.
    async fn stream(
        &mut self,
        client: Client,
        start: &Start,
        (slot, origin): &(SlotState, Origin),
    ) -> Result<Option<Client>> {
        let position = start.position;
        let what = StartReplication {
            slot: Some(self.options.slot.clone()),
            timeline: position.timeline,
            from: position.lsn,
        };
        let host = client.host().to_owned();
        let granted = upstream::answered(&host, ReplicationStream::start(client, &what));
        let stream = match unless_stopped(&self.host.stop, granted).await {
            Ok(stream) => stream,
            // Without an SQL connection it comes out only here.
            Err(error) if error.code() == Code::SlotLost => {
                return Err(self.leave_out(&host, error));
            }
            Err(error) => return Err(self.removed(error, &host, position)),
        };
        // The WAL that was sought has come, or is recorded as lost.
        if self.sought.is_some_and(|sought| position.lsn >= sought.to) {
            self.found();
        }
        self.host.progress.note(&format!(
            "streaming from \"{host}\" at {} on timeline {}",
            position.lsn,
            position.timeline.decimal()
        ));
        self.status.server = Some(host.clone());
        self.last_server = Some(host);
        self.status.disconnected = None;
        self.status.timeline = Some(position.timeline);
        let floor = slot.restart_lsn.unwrap_or(Lsn::INVALID);
        let acknowledge = self.acknowledge((position.timeline, position.lsn));
        let sources = Sources {
            feeder: self.journal.feeder(),
            durable: self.journal.watch(),
            archived: self.shipper.archived(),
            acknowledge,
            clock: Arc::clone(&self.host.clock),
            origin: *origin,
        };
        let mut streaming = Streaming::new(stream, position, floor, sources);
        let step = self.follow(&mut streaming, position, *origin).await;
        self.show(&streaming.reached());
        match step? {
            Step::Done => self.next_timeline(streaming, position).await.map(Some),
            Step::Shutdown => Err(err!(Unreachable, "server has shut down")),
            Step::Progress | Step::Tick => {
                self.leave(streaming).await;
                self.disconnect();
                Ok(None)
            }
        }
    }

    /// Shows that there is no connection, and since when.
    fn disconnect(&mut self) {
        self.status.server = None;
        let now = self.host.now();
        self.status.disconnected.get_or_insert(now);
    }

    /// Steps until the stream ends, or it is enough.
    async fn follow(
        &mut self,
        streaming: &mut Streaming,
        position: Position,
        origin: Origin,
    ) -> Result<Step> {
        let mut first = true;
        let (mut received, mut heard) = (position.lsn, Instant::now());
        loop {
            let stepped = streaming.step().await;
            let step = match stepped {
                Ok(step) => step,
                Err(error) => {
                    let host = streaming.host().to_owned();
                    return Err(self.removed(error, &host, position));
                }
            };
            if let Step::Done | Step::Shutdown = step {
                return Ok(step);
            }
            if std::mem::take(&mut first) {
                self.streamed = true;
                self.status.last_error = None;
                self.told.clear();
            }
            let reached = streaming.reached();
            if reached.received > received {
                (received, heard) = (reached.received, Instant::now());
                self.came(received, origin);
            }
            let enough = self
                .options
                .until
                .is_some_and(|until| reached.acknowledged >= until);
            if step == Step::Tick || enough {
                self.show(&reached);
                self.check_journal(streaming.condition())?;
                self.watch_slot(streaming).await;
                self.write_status();
                if enough || self.is_stopped() {
                    return Ok(step);
                }
                // Without room in the journal nothing is read.
                if streaming.condition() != Condition::Writing {
                    heard = Instant::now();
                }
                if let Some(sought) = self.sought
                    && origin != Origin::Primary
                    && received < sought.to
                    && heard.elapsed() >= crate::fault::silence(OTHERS_MAX)
                {
                    let host = streaming.host().to_owned();
                    return Err(self.leave_stuck(&host, received, sought));
                }
                if self.is_mending_due() {
                    return Err(err!(
                        Unreachable,
                        "the journal is damaged: the server is asked on a connection of its own"
                    ));
                }
            }
        }
    }

    /// Warns of the WAL that the server keeps, for as long as more waits than what is under way anyhow.
    async fn watch_slot(&mut self, streaming: &Streaming) {
        let reached = streaming.reached();
        let end = reached.server_end.max(reached.received);
        let waiting = end.0.saturating_sub(reached.acknowledged.0);
        let size = self.identity.segment_size.bytes();
        if streaming.condition() == Condition::Writing && waiting < WAITING_SEGMENTS * size {
            return self.kept.forget();
        }
        self.watch_slot_of_last().await;
    }

    /// Asks the server of the last stream how much WAL it keeps, and warns.
    async fn watch_slot_of_last(&mut self) {
        let (options, progress) = (self.options, &self.host.progress);
        let Some(host) = &self.last_server else {
            return;
        };
        let look = self
            .kept
            .look(&options.conninfo, host, &options.slot, progress);
        if let Some(warning) = look.await {
            progress.warn(&warning);
        }
    }

    /// The server has not got the WAL that we need: the others are asked for it. Another attempt at this one comes behind them, and begins with what
    /// it has. It may remove more of what lies before the slot meanwhile.
    fn removed(&mut self, error: Error, host: &str, position: Position) -> Error {
        if error.code() != Code::Gap {
            return error;
        }
        let known = self.removed_before.get(host);
        if known.is_some_and(|lsn| *lsn >= position.lsn) {
            return error.with_code(Code::SlotLost).hint(
                "The server removes WAL that the slot was to keep. Raise max_slot_wal_keep_size, drop the slot and create it again.",
            );
        }
        self.removed_before.insert(host.to_owned(), position.lsn);
        let end = self.server_end;
        let sought = self.sought.get_or_insert_with(|| Sought {
            since: Instant::now(),
            to: end,
        });
        sought.to = sought.to.max(end);
        self.pass_over_removed();
        error
    }

    /// A timeline has ended: everything of it is on its way into the journal. The connection goes on with the next.
    async fn next_timeline(&mut self, streaming: Streaming, position: Position) -> Result<Client> {
        let stream = streaming.into_stream();
        let host = stream.host().to_owned();
        let finish = upstream::answered(&host, stream.finish());
        let (client, next) = unless_stopped(&self.host.stop, finish).await?;
        let Some(next) = next.filter(|n| n.timeline > position.timeline) else {
            return Err(err!(
                Server,
                "server ended timeline {} and names no next",
                position.timeline.decimal()
            ));
        };
        // More of this timeline is another life's.
        if self.sought.is_some() {
            self.found();
        }
        self.host.progress.note(&format!(
            "timeline {} ended at {}; timeline {} follows",
            position.timeline.decimal(),
            next.switch_lsn,
            next.timeline.decimal()
        ));
        Ok(client)
    }

    /// Tells the server what is safe at last, and ends the stream in order.
    async fn leave(&mut self, mut streaming: Streaming) {
        let end = Instant::now() + LAST_WORD_MAX;
        let received = streaming.reached().received;
        while streaming.reached().flushed < received && Instant::now() < end {
            let told = timeout_at(end, streaming.tell_if_changed()).await;
            if !matches!(told, Ok(Ok(()))) {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        self.show(&streaming.reached());
        // The server may be gone; there is nothing left to lose.
        let goodbye = async {
            let (client, _) = streaming.into_stream().finish().await?;
            client.close().await
        };
        let _ = timeout(GOODBYE_MAX, goodbye).await;
    }

    fn check_journal(&mut self, condition: Condition) -> Result<()> {
        match condition {
            Condition::Writing => {
                self.status.last_error = None;
                Ok(())
            }
            Condition::Full => {
                self.status.last_error =
                    Some("the journal has no room: nothing is acknowledged".to_owned());
                Ok(())
            }
            // Its cause is what ends the receiver.
            Condition::Failed => Err(err!(Internal, "the journal cannot be written")),
        }
    }

    fn show_journal(&mut self) {
        if let Some(position) = self.journal_end() {
            self.status.timeline = Some(position.timeline);
            self.status.received_lsn = Some(position.lsn);
            self.status.flushed_lsn = Some(position.lsn);
        }
    }

    fn show(&mut self, reached: &Reached) {
        let known = |lsn: Lsn| (lsn != Lsn::INVALID).then_some(lsn);
        self.status.received_lsn = known(reached.received);
        self.status.received_time = reached.received_time.or(self.status.received_time);
        self.status.flushed_lsn = known(reached.flushed).or(self.status.flushed_lsn);
        self.status.safe_time = reached.safe_time.or(self.status.safe_time);
        self.status.acknowledged_lsn = known(reached.acknowledged);
        self.status.server_lsn = known(reached.server_end).or(self.status.server_lsn);
    }

    /// Writes the status when it is due.
    fn write_status(&mut self) {
        let due = self
            .status_written
            .is_none_or(|written| written.elapsed() >= STATUS_INTERVAL);
        if due {
            self.write_status_now();
        }
    }

    fn write_status_now(&mut self) {
        self.status_written = Some(Instant::now());
        self.status.time = self.host.now();
        self.status.journal_bytes = self.journal.bytes();
        self.status.repositories = self.shipper.shipped().into_iter().map(shown).collect();
        // It only informs: without it `pitr info` says that nothing is known.
        let _ = status::write(self.journal.path(), &self.status, self.host.random());
        (self.watch)(&self.status);
    }
}

/// The WAL of a damaged segment that a repository lacks.
struct Lacking {
    /// The server's history leads through it.
    asked: Option<Gap>,
    /// It lies behind the place where the server left the timeline: no server has it.
    behind: Option<Gap>,
}

impl Lacking {
    fn of(holdings: &Holdings, segment: Segment, history: &History) -> Result<Lacking> {
        let timeline = segment.name.timeline;
        let left = match history.contains(timeline) {
            true => history.switch_point(timeline).unwrap_or(segment.end),
            false => segment.from,
        };
        let left = left.clamp(segment.from, segment.end);
        let from = holdings.covered(segment.name)?.max(segment.to);
        let gap = |from: Lsn, to: Lsn| (from < to).then_some(Gap { timeline, from, to });
        Ok(Lacking {
            asked: gap(from, left),
            behind: gap(from.max(left), segment.end),
        })
    }
}

fn lost_for_good(gap: &Gap) -> String {
    format!(
        "WAL from {} to {} of timeline {} is lost: neither the server nor a repository of the same keys has it; recorded as a gap. Take a base backup",
        gap.from,
        gap.to,
        gap.timeline.decimal()
    )
}

/// Explains that WAL which the server has removed is in some of the repositories.
fn held_by_another(gap: &Gap) -> String {
    format!(
        "the server has removed WAL between {} and {} of timeline {}; one repository has some or all of it, and another lacks it: \"pitr repo sync\" brings what backups there need",
        gap.from,
        gap.to,
        gap.timeline.decimal()
    )
}

/// Since when there is no connection, as one begins: a receiver that is started again and again has been down since the first.
fn disconnected(before: Option<&Status>, now: TimestampTz) -> TimestampTz {
    before.map_or(now, |before| before.down_since().unwrap_or(before.time))
}

fn shown(shipped: Shipped) -> RepositoryStatus {
    RepositoryStatus {
        name: shipped.repository,
        required: shipped.is_required,
        archived_lsn: shipped.position.map(|p| p.lsn),
        timeline: shipped.position.map(|p| p.timeline),
        archived_time: shipped.since,
        last_error: shipped.error,
    }
}
