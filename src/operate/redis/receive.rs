//! The receiver of a server's history.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cluster::Live;
use super::gap_base::{self, Receiver};
use super::{connect_while, identity, server};
use crate::config::{Redis, RedisAcknowledge, Settings};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::journal::frame::Frames;
use crate::journal::shipping::{self, Shipper, Work};
use crate::journal::{self, Condition, Journal};
use crate::operate::human;
use crate::operate::session::Session;
use crate::pg::segment::SegmentSize;
use crate::redis::command::Reader;
use crate::redis::connection::Tick;
use crate::redis::history::{Beginning, Parent};
use crate::redis::kind::NAME;
use crate::redis::owed::Owed;
use crate::redis::position::{self, Action};
use crate::redis::receive::{self, Process, Sink, Told, Turn};
use crate::redis::record::{Record, Records, SEGMENT_BYTES, State};
use crate::redis::shipment::{self, Origin, Rewind, Shipment};
use crate::redis::source::Source;
use crate::redis::walk;
use crate::repo::log_keys::LogKeys;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::source;
use crate::wire::backoff::Backoff;
use crate::wire::runtime;

/// How long the repositories have to take what is in the journal, when the receiver ends.
const FINISH_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether the process shall end.
const LOOK: Duration = Duration::from_millis(100);
/// A journal has the number of a cluster in its path; that of a server is made from its name and identity.
const NUMBER_BYTES: usize = 8;

/// How a receiver ended.
pub struct Ended {
    /// Behind the last byte that was received; none where nothing was.
    pub position: Option<(String, u64)>,
    /// Whether the required repositories hold all of it.
    pub is_shipped: bool,
}

/// Runs the receiver until the process is told to stop.
///
/// # Errors
/// `Config` without a journal or for a name that is not configured; `Locked` where another receiver has the journal; those of the server that another attempt
/// would not mend.
pub fn run(session: &Session, name: &str) -> Result<Ended> {
    let settings = session.settings_with_repositories()?;
    let redis = server(&settings, name)?;
    let peer = Peer { redis, live: None };
    until_stopped(session, &settings, &peer, &|| session.host.check_stop())
}

/// The server that is received from.
pub(super) struct Peer<'p> {
    /// Its section, or the one that stands for a shard.
    pub redis: &'p Redis,
    /// The cluster, where it is the owner of a shard's slots.
    pub live: Option<&'p Live<'p>>,
}

impl Peer<'_> {
    fn connect(&self, tick: Tick<'_>) -> Result<Source> {
        match self.live {
            Some(live) => live.connect(&self.redis.name, tick),
            None => connect_while(self.redis, tick),
        }
    }

    /// The name by which the operator knows it.
    pub(super) fn section(&self) -> &str {
        self.live
            .map_or(&self.redis.name, |live| &live.section.name)
    }

    /// A message with the shard that it is about.
    pub(super) fn told(&self, message: &str) -> String {
        match self.live {
            Some(_) => format!("shard {}: {message}", self.redis.name),
            None => message.to_owned(),
        }
    }
}

/// Asked all the while whether to go on.
pub(super) type Check<'c> = &'c (dyn Fn() -> Result<()> + Sync);

/// Runs a receiver until `check` says that it shall end.
///
/// # Errors
/// Those of [`run`].
pub(super) fn until_stopped(
    session: &Session,
    settings: &Settings,
    peer: &Peer<'_>,
    check: Check<'_>,
) -> Result<Ended> {
    let redis = peer.redis;
    let scope = Scope::aux(NAME, &redis.name)?;
    let options = journal_options(session, redis)?;
    ship_former(session, (peer, settings, &scope), &options)?;
    let journal = Journal::open(&options, Arc::clone(&session.host.progress))?;
    let rewind = Rewind::default();
    let shipper = ship(session, (peer, settings), (&journal, &rewind), &scope)?;
    let (held, end) = tail(&journal)?;
    let runtime = runtime::start()?;
    let owed = Owed::open(owed_path(&options))?;
    let mut sink = Sink {
        feeder: journal.feeder(),
        watch: journal.watch(),
        archived: shipper.archived(),
        runtime: &runtime,
        held,
        place: end.next_multiple_of(SEGMENT_BYTES),
        rewind,
        owed: &owed,
    };
    let receiver = Receiver {
        session,
        settings,
        peer,
        scope: &scope,
        owed: &owed,
    };
    let received = gap_base::beside(&receiver, check, || receive(&receiver, &mut sink, check));
    let held = sink.held.as_ref();
    let position = held.map(|held| (held.replid.clone(), held.reader.position()));
    drop(sink);
    let failure = journal.failure();
    let is_shipped = shipper.finish(FINISH_MAX);
    journal.close()?;
    failure.map_or(received, Err)?;
    Ok(Ended {
        position,
        is_shipped,
    })
}

/// The directory of its journals. It is there then.
///
/// # Errors
/// `Config` where none is configured; those of the system.
pub(super) fn journal_of(redis: &Redis) -> Result<PathBuf> {
    let directory = redis.journal.clone().ok_or_else(|| {
        err!(Config, "[redis.{}] has no receive.journal", redis.name).hint(
            "The receiver keeps the history there until the repository has it. Add a directory on a disk that syncs: receive.journal = \"/var/lib/pitr/journal\"",
        )
    })?;
    std::fs::create_dir_all(&directory)
        .map_err(|e| Error::from_io(format!("make directory \"{}\"", directory.display()), e))?;
    Ok(directory)
}

fn journal_options(session: &Session, redis: &Redis) -> Result<journal::Options> {
    let host = &session.host;
    let directory = journal_of(redis)?;
    Ok(journal::Options {
        directory: directory.join(format!("redis-{}", redis.name)),
        system_identifier: number_of(&redis.name, &identity(redis)),
        segment_size: SegmentSize::new(SEGMENT_BYTES)?,
        limit_bytes: redis.journal_limit_bytes,
        is_mended: false,
        nonce: host.random(),
        now: host.now(),
    })
}

/// The file of the base that is owed, beside the journal.
fn owed_path(options: &journal::Options) -> PathBuf {
    let own = format!("{}.owed", options.system_identifier);
    options.directory.join(own)
}

/// Brings what the journals of former identities hold into the repositories: where the address has changed, the receiver begins an empty journal beside them.
///
/// # Errors
/// `Config` where a repository takes nothing of the present identity; those of the system.
fn ship_former(
    session: &Session,
    (peer, settings, scope): (&Peer<'_>, &Settings, &Scope),
    options: &journal::Options,
) -> Result<()> {
    for number in former(options)? {
        let (own, progress) = (number.to_string(), &session.host.progress);
        let path = options.directory.join(&own);
        check_taken(session, (peer, settings, scope), (number, &path))?;
        let options = journal::Options {
            system_identifier: number,
            ..options.clone()
        };
        let journal = match Journal::open(&options, Arc::clone(progress)) {
            // The receiver that has it ships it.
            Err(e) if e.code() == Code::Locked => continue,
            journal => journal?,
        };
        let of = (&journal, &Rewind::default());
        let shipper = ship(session, (peer, settings), of, scope)?;
        let is_shipped = shipper.finish(FINISH_MAX);
        journal.close()?;
        let shown = path.display();
        if !is_shipped {
            session.warn(&peer.told(&format!("a repository does not hold what journal \"{shown}\" of another identity has: it stays there, and the next receiver ships it")));
            continue;
        }
        let folder = std::fs::File::open(&options.directory);
        let folder =
            folder.map_err(|e| Error::from_io(format!("open the folder of \"{shown}\""), e))?;
        let to = format!("{own}.shipped-{:08x}", session.host.random() >> 32);
        let at = folder.as_fd();
        durable::move_to_free((at, own.as_bytes()), (at, to.as_bytes()))
            .map_err(|e| Error::from_io(format!("rename \"{shown}\""), e.into()))?;
        session.note(&peer.told(&format!(
            "the repositories hold what journal \"{shown}\" of another identity had: it was renamed, and may be deleted"
        )));
    }
    Ok(())
}

/// The numbers of the other journals of this name that hold anything.
fn former(options: &journal::Options) -> Result<Vec<u64>> {
    let doing = || format!("read directory \"{}\"", options.directory.display());
    let failed = |e| Error::from_io(doing(), e);
    let entries = match std::fs::read_dir(&options.directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        let Some(number) = number.filter(|number| *number != options.system_identifier) else {
            continue;
        };
        let mut files = std::fs::read_dir(entry.path()).map_err(failed)?.flatten();
        if files.any(|file| file.path().extension().is_some_and(|end| end == "wal")) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Requires that the repositories that answer take the log from the present identity.
///
/// # Errors
/// `Config` where one does not.
fn check_taken(
    session: &Session,
    (peer, settings, scope): (&Peer<'_>, &Settings, &Scope),
    (number, path): (u64, &Path),
) -> Result<()> {
    let (name, origin) = (&peer.redis.name, origin_of(session, peer, scope));
    for configured in &settings.repositories {
        // The receiver tells of one that does not answer.
        let Ok(repository) = session.open(configured) else {
            continue;
        };
        let Err(e) = origin.require(&repository, None) else {
            continue;
        };
        if e.code() != Code::Refused {
            continue;
        }
        let registered = source::registration(repository.store(), scope)?;
        let text = registered.and_then(|registered| registered.source_text);
        let text = text.filter(|text| number_of(name, text) == number);
        let former = text.map_or("<the former address>".to_owned(), |text| {
            text.escape_debug().to_string()
        });
        return Err(err!(
            Config,
            "journal \"{}\" holds what was received from another address than {}",
            path.display(),
            identity(peer.redis).escape_debug()
        )
        .source(e)
        .hint(format!(
            "Nothing was received, and nothing is lost.\nThe same server, or a replica that was promoted: identity = \"{former}\" in the section. Another server in its place: pitr redis backup {} --confirm. Then the receiver ships what the journal holds.",
            peer.section()
        )));
    }
    Ok(())
}

/// The number that tells the journals of two servers of one name from each other.
fn number_of(name: &str, identity: &str) -> u64 {
    let text = format!("{name}\0{identity}");
    let hash = blake3::hash(text.as_bytes());
    let first = hash.as_bytes().first_chunk::<NUMBER_BYTES>();
    u64::from_le_bytes(first.copied().unwrap_or_default())
}

fn ship(
    session: &Session,
    (peer, settings): (&Peer<'_>, &Settings),
    (journal, rewind): (&Journal, &Rewind),
    scope: &Scope,
) -> Result<Shipper> {
    let host = &session.host;
    let origin = origin_of(session, peer, scope);
    let is_waited_for = peer.redis.acknowledge == RedisAcknowledge::Repository;
    let rewind = Arc::clone(rewind);
    let work: Work = Arc::new(move |ship, index| {
        let origin = (origin.clone(), is_waited_for);
        Shipment::new(Arc::clone(ship), index, origin, Arc::clone(&rewind)).run()
    });
    let options = shipping::Options {
        repositories: settings.repositories.clone(),
        nonce: host.random(),
        clock: Arc::clone(&host.clock),
    };
    Shipper::start(journal, options, &work, Arc::clone(&host.progress))
}

fn origin_of(session: &Session, peer: &Peer<'_>, scope: &Scope) -> Origin {
    Origin {
        is_shard: peer.live.is_some(),
        ..origin(session, peer.redis, scope)
    }
}

/// The server as the registration of its scope has it.
pub(super) fn origin(session: &Session, redis: &Redis, scope: &Scope) -> Origin {
    Origin {
        scope: scope.clone(),
        identity: identity(redis),
        clock: Arc::clone(&session.host.clock),
        is_shard: false,
    }
}

/// Reads the end of the journal: the state behind its last byte, and the place of that.
fn tail(journal: &Journal) -> Result<(Option<State>, u64)> {
    let follower = journal.follower();
    let segments = follower.segments();
    let end = segments.last().map_or(0, |segment| segment.to.0);
    for segment in segments.iter().rev() {
        let mut frames = follower.open(segment.name)?;
        let left = segment.to.0 - segment.from.0;
        if let Some(state) = replay(&mut frames, left)? {
            return Ok((Some(state), end));
        }
    }
    Ok((None, end))
}

fn replay(frames: &mut Frames<std::fs::File>, left: u64) -> Result<Option<State>> {
    let mut records = Records::new(left, |buffer: &mut [u8]| shipment::fill(frames, buffer));
    let mut held: Option<State> = None;
    loop {
        let record = match records.read() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(held),
            // The server is asked once more for what follows; the shipping says what is lost where it has it no more.
            Err(_) if held.is_some() => return Ok(held),
            Err(e) => return Err(e),
        };
        match (record, &mut held) {
            (Record::State(state), _) => held = Some(*state),
            (Record::Bytes { bytes, .. }, Some(state)) => {
                state.reader.read(&bytes, &mut |_| Ok(()))?;
            }
            (Record::Bytes { .. }, None) => {
                return Err(err!(Damaged, "the journal has bytes of no history"));
            }
        }
    }
}

fn receive(receiver: &Receiver<'_>, sink: &mut Sink<'_>, check: Check<'_>) -> Result<()> {
    let Receiver { session, peer, .. } = *receiver;
    let (host, redis) = (&session.host, peer.redis);
    let mut backoff = Backoff::default();
    let mut said = String::new();
    let mut followed = None;
    let mut has_received = false;
    loop {
        // It could take nothing, and a server whose backlog has passed would fork for it each time.
        while sink.watch.borrow().condition == Condition::Full && check().is_ok() {
            pause(check, LOOK);
        }
        let mut tick = || check();
        let attempt = peer.connect(&mut tick).and_then(|source| {
            if sink.held.is_none() {
                sink.held = stored(receiver, &source)?;
                gap_base::owe_unless_led(receiver, sink.held.as_ref())?;
            }
            let address = source.connection.address();
            if redis.address.is_none() && followed.as_ref() != Some(address) {
                let named = match peer.live {
                    Some(_) => format!("{address} owns its slots"),
                    None => format!("the Sentinels name {address} as master"),
                };
                host.progress.note(&peer.told(&named));
                followed = Some(address.clone());
            }
            let is_alone = source.is_shard() && peer.live.is_none();
            let mut told = |(turn, state, process): Told<'_>| {
                let text = match turn {
                    Turn::Begins(beginning) => begun(peer, state, beginning),
                    Turn::Leaves { parent, received } => left(peer, (parent, *received), state, process),
                    Turn::GoesOn(parent) => goes_on(parent.as_ref(), state, process),
                };
                let is_gap = matches!(turn, Turn::Begins(beginning) if beginning.reason.is_some());
                match turn {
                    Turn::Leaves { .. } => host.progress.warn(&peer.told(&text)),
                    Turn::Begins(_) if is_gap => host.progress.warn(&peer.told(&text)),
                    Turn::Begins(_) | Turn::GoesOn(_) => host.progress.note(&peer.told(&text)),
                }
                if is_alone && matches!(turn, Turn::Begins(_)) {
                    host.progress.note("the server is one shard of a cluster: cluster = true in its section receives from all of them");
                }
            };
            let mut succeeded = || {
                backoff.reset();
                said.clear();
                has_received = true;
            };
            let (to, way) = ((&mut *sink, host), redis.acknowledge);
            receive::run(source, way, to, &mut told, &mut succeeded, &mut tick)
        });
        let Err(error) = attempt else {
            return Ok(());
        };
        if check().is_err() {
            return Ok(());
        }
        // An operator may put right what worked before: the journal keeps what was received. At the start an error ends the receiver.
        let may_go_on =
            receive::may_try_again(&error) || has_received && receive::may_be_mended(&error);
        if !may_go_on {
            return Err(error);
        }
        let text = error.to_string();
        if said != text {
            host.progress
                .warn(&peer.told(&format!("{text}; the receiver tries again")));
            said = text;
        }
        pause(check, backoff.next(host.random()));
    }
}

fn begun(peer: &Peer<'_>, state: &State, beginning: &Beginning) -> String {
    let (name, replid, from) = (peer.section(), &state.replid, beginning.position);
    match &beginning.reason {
        Some(why) => format!(
            "gap: {why}. History {replid} is received from position {from} on. A backup is taken now, and nothing is acknowledged before it is stored"
        ),
        None => format!(
            "history {replid} is received from position {from} on. Take a backup now, or nothing behind it can be restored: pitr redis backup {name}"
        ),
    }
}

/// The words for bytes that the server went on without. `WAIT` may have confirmed them.
fn left(
    peer: &Peer<'_>,
    (parent, received): (&Parent, u64),
    state: &State,
    process: Option<&Process>,
) -> String {
    let (name, replid, fork) = (&peer.redis.name, &parent.replid, parent.fork);
    format!(
        "the server went on without what it sent last: history {} goes on from position {fork} of history {replid}, which was received and acknowledged up to position {received}. \
         These bytes stay stored: pitr redis restore {name} --to DIR --latest --history {replid}{}",
        state.replid,
        other(process)
    )
}

fn goes_on(parent: Option<&Parent>, state: &State, process: Option<&Process>) -> String {
    let replid = &state.replid;
    let on = match parent {
        Some(parent) => format!(
            "history {replid} goes on from position {} of history {}",
            parent.fork, parent.replid
        ),
        None => format!("history {replid} goes on"),
    };
    format!("{on}{}", other(process))
}

/// The words for another process. Nothing that it says tells a promoted replica or a restart from a copy of the server.
fn other(process: Option<&Process>) -> String {
    let Some(process) = process else {
        return String::new();
    };
    let up = process.up_seconds.map(|seconds| {
        let up = human::duration(Duration::from_secs(seconds));
        format!(", which runs for {up}")
    });
    format!(
        ". It is sent by another process, run_id {}{}: a replica that was promoted, a restart, or a copy of the server. Make sure that it is the right one",
        process.run_id,
        up.unwrap_or_default()
    )
}

/// The end of what the repositories hold of the server's history, where the journal holds nothing.
///
/// # Errors
/// That of the first repository, where none answers.
fn stored(receiver: &Receiver<'_>, source: &Source) -> Result<Option<State>> {
    let (session, scope) = (receiver.session, receiver.scope);
    let (mut opened, mut failure) = (Vec::new(), None);
    for configured in &receiver.settings.repositories {
        match session.open(configured) {
            Ok(repository) => opened.push((configured.name.as_str(), repository)),
            Err(e) => passed_over(session, &configured.name, e, &mut failure),
        }
    }
    if opened.is_empty() {
        return failure.map_or(Ok(None), Err);
    }
    for field in ["master_replid", "master_replid2"] {
        let Some(replid) = source.info.field(field) else {
            continue;
        };
        let ends = answers(session, &opened, &|repository| {
            end_of(repository, scope, replid, source)
        })?;
        if let Some(state) = chosen(ends, source) {
            return Ok(Some(state));
        }
    }
    // A server that goes on with another history leaves a gap behind the newest one.
    let ends = answers(session, &opened, &|repository| {
        let Some((replid, arrived_us)) = newest(session, repository, scope)? else {
            return Ok(None);
        };
        let end = end_of(repository, scope, &replid, source)?;
        Ok(end.map(|state| (arrived_us, state)))
    })?;
    let ends = ends.into_iter();
    let last = ends.max_by_key(|(arrived_us, state)| (*arrived_us, state.reader.position()));
    Ok(last.map(|(_, state)| state))
}

/// Pure: of the ends of one history in several repositories, the first one from which the server can go on, so that every repository gets what it lacks; where it
/// can from none, the last.
fn chosen(mut ends: Vec<State>, source: &Source) -> Option<State> {
    ends.sort_by_key(|state| state.reader.position());
    let goes_on = |state: &State| {
        let action = position::action(Some(state), &source.info);
        matches!(action, Action::GoOn | Action::Leave { .. })
    };
    match ends.iter().position(goes_on) {
        Some(at) => Some(ends.swap_remove(at)),
        None => ends.pop(),
    }
}

/// Asks each repository, and returns what those that answer found.
///
/// # Errors
/// The first one, where none answers.
fn answers<T>(
    session: &Session,
    opened: &[(&str, Repository)],
    ask: &dyn Fn(&Repository) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let (mut found, mut failure) = (Vec::new(), None);
    let mut has_answer = false;
    for (name, repository) in opened {
        match ask(repository) {
            Ok(answer) => {
                has_answer = true;
                found.extend(answer);
            }
            Err(e) => passed_over(session, name, e, &mut failure),
        }
    }
    match failure.filter(|_| !has_answer) {
        Some(e) => Err(e),
        None => Ok(found),
    }
}

fn passed_over(session: &Session, name: &str, error: Error, failure: &mut Option<Error>) {
    session.warn(&format!(
        "repository \"{name}\" is not asked where the log ends: {error}"
    ));
    failure.get_or_insert(error);
}

/// The stored history whose bytes arrived last, and when; one that no other goes on from, where the times cannot be read here.
fn newest(
    session: &Session,
    repository: &Repository,
    scope: &Scope,
) -> Result<Option<(String, Option<i64>)>> {
    match walk::latest(repository, scope, &|text| session.warn(text)) {
        Ok(latest) => Ok(latest.map(|(replid, mark)| (replid, Some(mark.arrived_us)))),
        Err(e) if e.code() == Code::Key => {
            let known = walk::histories(repository, scope)?;
            let is_parent = |replid: &String| {
                let mut parents = known.iter().flat_map(|(_, parents)| parents);
                parents.any(|parent| parent.replid == *replid)
            };
            let mut leaves = known.iter().map(|(replid, _)| replid);
            let leaf = leaves.rfind(|replid| !is_parent(replid));
            Ok(leaf.map(|replid| (replid.clone(), None)))
        }
        Err(e) => Err(e),
    }
}

/// The state at the last place at which the stored history of this name may be gone on with.
fn end_of(
    repository: &Repository,
    scope: &Scope,
    replid: &str,
    source: &Source,
) -> Result<Option<State>> {
    let keys = LogKeys::new(scope, replid);
    let cut = walk::last_cut(repository, &keys)?;
    Ok(cut.map(|cut| State {
        reader: Reader::new(cut.position, cut.db),
        ..source.state(replid.to_owned(), cut.position)
    }))
}

/// Waits, unless the receiver shall end.
pub(super) fn pause(check: Check<'_>, time: Duration) {
    let until = Instant::now() + time;
    while check().is_ok() && Instant::now() < until {
        std::thread::sleep(LOOK.min(time));
    }
}
