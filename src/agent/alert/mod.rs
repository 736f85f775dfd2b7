//! Alerts: compares the conditions of now with the notices that were taken, and delivers the notices that are due.
//!
//! A condition counts as told to a sink once the sink took it. A notice that was not taken is offered again by the next look, so nothing is lost by a
//! sink that is away, and a sink that is away is a condition of its own.

pub mod condition;
mod counted;
pub mod decide;
pub mod examined;
pub mod heartbeat;
mod http;
mod mail;
mod overdue;
pub mod payload;
pub mod sink;
mod starting;
mod unjudged;
mod watched;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use self::decide::{Book, Condition, Event, Notice};
use self::unjudged::Unjudged;
use super::identity::Identity;
use super::load::Loaded;
use crate::behalf;
use crate::config::{Settings, Severity, Sink, SinkKind};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::lock;
use crate::operate::audit;
use crate::operate::counters;
use crate::operate::failing_sinks::FILE;
use crate::operate::metrics::Metrics;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// The lock of the look that delivers, beside the file of notices.
const LOCK: &str = "alerts.lock";
/// Digits of the mark of an agent.
const MARK: usize = 12;
/// No delivery of a look begins later: the rest waits for the next look.
const OFFERED: Duration = Duration::from_secs(60);

/// Returns how long the deliveries of a look take at most.
pub fn longest() -> Duration {
    fault::shortened(OFFERED) + sink::longest()
}

/// The notices that were taken: in a file, and in memory that the agent lends to each look. A full disk makes nobody hear everything in each look.
pub struct Notices {
    path: PathBuf,
    memory: Option<File>,
}

impl Notices {
    /// Those of a directory, and of the agent's memory.
    pub fn of(state_dir: &Path, memory: Option<File>) -> Notices {
        Notices {
            path: state_dir.join(FILE),
            memory,
        }
    }

    /// A memory for [`Notices::of`], which is empty; none where the system has none.
    pub fn memory() -> Option<File> {
        let made = rustix::fs::memfd_create("pitr-notices", MemfdFlags::CLOEXEC);
        made.ok().map(File::from)
    }

    /// Reads them. A file that is damaged or cannot be read is given up: each sink gets all of them once more, and nothing is lost.
    fn read(&self, session: &Session) -> Book {
        if let Some(book) = self.memory.as_ref().and_then(remembered) {
            return book;
        }
        let given_up = |e: &dyn std::fmt::Display| {
            session.warn(&format!(
                "\"{}\" cannot be read, and every alert is sent again: {e}",
                self.path.display()
            ));
            Book::default()
        };
        match behalf::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| given_up(&e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Book::default(),
            Err(e) => given_up(&e),
        }
    }

    /// Takes the turn to deliver; none while another look delivers, which would deliver the same notices. A lock that cannot be taken silences
    /// nobody.
    pub fn turn(&self) -> Option<Turn> {
        let path = self.path.with_file_name(LOCK);
        match behalf::of(&path, || lock::take(&path, Duration::ZERO)) {
            Ok(lock) => lock.map(|lock| Turn { _lock: Some(lock) }),
            Err(_) => Some(Turn { _lock: None }),
        }
    }

    fn write(&self, book: &Book, session: &Session) -> Result<()> {
        let text = serde_json::to_vec(book)
            .map_err(|e| err!(Internal, "alerts cannot be written").source(e))?;
        if let Some(memory) = &self.memory {
            // One that is half written is not read: then the file counts.
            let emptied = memory.set_len(0);
            let _ = emptied.and_then(|()| memory.write_all_at(&text, 0));
        }
        session.keep(&self.path, &text)
    }
}

/// The turn of one look to deliver. Dropped, it is the next one's.
pub struct Turn {
    _lock: Option<File>,
}

fn remembered(memory: &File) -> Option<Book> {
    let length = usize::try_from(memory.metadata().ok()?.len()).ok()?;
    let mut text = vec![0; length];
    memory.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The result of one delivery.
pub struct Tried {
    pub sink: String,
    /// Why it did not take it.
    pub failed: Option<Error>,
}

/// Collects everything that is wrong, sinks that take nothing among it.
pub fn conditions(
    session: &Session,
    loaded: &Loaded,
    metrics: &Metrics,
    notices: &Notices,
) -> Vec<Condition> {
    let mut conditions = condition::all(session, loaded, metrics);
    conditions.extend(metrics.rooms.iter().filter_map(condition::of_room));
    // Until it connects nothing begins, and nothing ends.
    let starting = starting::receivers(session, loaded);
    conditions.retain(|one| !starting.contains(&one.id));
    if !loaded.settings.alerts.is_empty() {
        let book = notices.read(session);
        conditions.extend(book.failing.iter().map(condition::of_sink));
        let unjudged = Unjudged::of(&loaded.settings, metrics, || {
            examined::conditions(&loaded.state_dir, session.host.now()).is_some()
        });
        let is_starting = |id: &str| starting.iter().any(|one| one == id);
        let lasting = lasting(&book, |id| unjudged.holds(id) || is_starting(id));
        let lasting = lasting.filter(|one| conditions.iter().all(|known| known.id != one.id));
        let lasting: Vec<Condition> = lasting.collect();
        conditions.extend(lasting);
    }
    conditions
}

/// The conditions of the book that have not ended, of those names.
fn lasting(book: &Book, is_meant: impl Fn(&str) -> bool) -> impl Iterator<Item = Condition> {
    let open = book.open.iter().filter(|(_, open)| !open.is_over);
    open.filter(move |(id, _)| is_meant(id))
        .map(|(id, open)| open.condition(id))
}

/// The conditions after a look that was given up: those of the look before, with the jobs of now.
pub fn unseen(session: &Session, loaded: &Loaded, notices: &Notices) -> Vec<Condition> {
    let book = notices.read(session);
    let mut conditions = vec![condition::of_given_up()];
    conditions.extend(lasting(&book, |id| !unjudged::is_known(id)));
    conditions.extend(condition::of_jobs(session, loaded));
    conditions.extend(condition::of_configuration(loaded));
    conditions
}

/// The conditions of an agent that does not start: those of the look before, and why.
pub fn of_start(session: &Session, notices: &Notices, error: &Error) -> Vec<Condition> {
    let book = notices.read(session);
    let own = condition::of_start(error);
    let others = lasting(&book, |id| id != own.id).collect::<Vec<_>>();
    others.into_iter().chain([own]).collect()
}

/// Has everybody told of what is new, goes on or has ended. A file of notices that cannot be written is a condition of its own, and hears nobody the less.
/// Nothing is delivered later than [`longest`] allows. `is_whole` says that the settings have every sink.
///
/// # Errors
/// Those of that file, behind the deliveries. A sink that fails is a condition.
pub fn tell(
    session: &Session,
    (settings, is_whole): (&Settings, bool),
    (told, _turn): (&Notices, &Turn),
    mut conditions: Vec<Condition>,
    success: Option<TimestampTz>,
) -> Result<()> {
    if settings.alerts.is_empty() {
        return Ok(());
    }
    let mut book = told.read(session);
    if is_whole {
        book.keep(&settings.alerts);
    }
    let earlier = book.clone();
    // The look before may have delivered while this one looked.
    conditions.retain(|one| !condition::is_of_sink(&one.id));
    conditions.extend(book.failing.iter().map(condition::of_sink));
    let now = session.host.now();
    let (anchor, agent) = (anchor(session, settings), agent(session, settings));
    let decide = |conditions: &[Condition], book: &mut Book| {
        let mut notices = decide::decide(now, conditions, book, &settings.alerts);
        for one in &mut notices {
            one.anchor.clone_from(&anchor);
            one.agent.clone_from(&agent);
        }
        notices
    };
    let mut notices = decide(&conditions, &mut book);
    // The file names the sinks that a new condition goes to before it goes out: after a kill they hear of its end, too.
    offer(&mut book, &notices);
    let mut kept = told.write(&book, session);
    if let Some(one) = condition::of_state(std::slice::from_ref(&kept))
        && conditions.iter().all(|known| known.id != one.id)
    {
        conditions.push(one);
        notices = decide(&conditions, &mut book);
        offer(&mut book, &notices);
    }
    let mut waiting: Vec<&Notice> = new(&notices).collect();
    let (since, offered) = (Instant::now(), fault::shortened(OFFERED));
    // Each sink on a thread of its own: one that hangs delays no other.
    std::thread::scope(|scope| {
        let (taken, all) = mpsc::channel();
        for sink in &settings.alerts {
            let own = notices.iter().filter(|notice| notice.sink == sink.name);
            let own: Vec<&Notice> = own.collect();
            let taken = taken.clone();
            scope.spawn(move || {
                for notice in own {
                    if since.elapsed() > offered {
                        return;
                    }
                    let (noted, is_noted) = mpsc::channel();
                    let delivered = sink::deliver(sink, notice);
                    // The rest waits for the next look: it would take longer than a look may.
                    let hangs = matches!(&delivered, Err(e) if e.code() == Code::Deadline);
                    let sent = taken.send((notice, delivered, noted));
                    // Before the next one: a kill lets one notice of each sink come twice at most.
                    if sent.is_err() || hangs || is_noted.recv().is_err() {
                        return;
                    }
                }
            });
        }
        drop(taken);
        for (notice, delivered, noted) in all {
            let delivered = delivered.map_err(|e| session.explained(e));
            if let Err(e) = &delivered {
                session.warn(&format!("alert sink \"{}\": {e}", notice.sink));
            }
            waiting.retain(|one| one.key() != notice.key());
            // A sink that gave no answer in time may have taken it.
            let is_refused = matches!(&delivered, Err(e) if e.code() != Code::Deadline);
            if is_refused && notice.event == Event::New {
                book.withdraw(notice, &earlier);
            }
            book.note(notice, now, delivered.err().map(|e| e.to_string()));
            let written = told.write(&book, session);
            // A sink that hangs waits for nothing.
            let _ = noted.send(());
            if kept.is_ok() {
                kept = written;
            }
        }
    });
    let sinks = (settings.alerts.as_slice(), &mut book);
    if heartbeat::beat(session, sinks, &conditions, success, anchor.as_deref()) {
        kept = kept.and(told.write(&book, session));
    }
    if !waiting.is_empty() {
        for notice in waiting {
            book.withdraw(notice, &earlier);
        }
        kept = kept.and(told.write(&book, session));
    }
    kept
}

/// The line of this host's audit log that notices carry. One that cannot be read keeps no notice from going out.
fn anchor(session: &Session, settings: &Settings) -> Option<String> {
    audit::head(session, settings).unwrap_or_else(|e| {
        session.warn(&format!("notices carry no anchor of the audit log: {e}"));
        None
    })
}

/// The name of this agent, the same for as long as it keeps its directory: the tenant, and a mark. An id that cannot be kept silences nobody.
fn agent(session: &Session, settings: &Settings) -> String {
    let file = settings.path.clone().unwrap_or_default();
    let file = file.to_string_lossy();
    let place = settings.state_dir(&session.environment);
    let known = place.and_then(|place| Identity::of(session, &place).ok());
    let mark = match known {
        Some(identity) => identity.mark(&file),
        None => blake3::hash(file.as_bytes()).to_hex().to_string(),
    };
    let mark: String = mark.chars().take(MARK).collect();
    let job = session.environment.get(counters::JOB);
    let tenant = job.and_then(|job| job.to_str()?.strip_prefix("tenant."));
    tenant.map_or(mark.clone(), |tenant| format!("{tenant}-{mark}"))
}

/// Notes in the book which notices are about to go out.
fn offer(book: &mut Book, notices: &[Notice]) {
    new(notices).for_each(|notice| book.offer(notice));
}

/// The notices that tell a sink of a condition for the first time.
fn new(notices: &[Notice]) -> impl Iterator<Item = &Notice> {
    notices.iter().filter(|notice| notice.event == Event::New)
}

/// News of what a command of the operator does, for every sink that hears of its severity.
pub struct News {
    /// Why it is sent.
    pub event: Event,
    /// The name of the matter, the same from its beginning to its end.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// A line, which has no secret.
    pub summary: String,
    /// The command that helps.
    pub next: Option<String>,
}

/// Tells all sinks at once, and waits for none: the thread ends with the sinks that took nothing, and why.
pub fn announce(
    session: &Session,
    settings: &Settings,
    news: &News,
) -> std::thread::JoinHandle<Vec<Tried>> {
    let since = session.host.now();
    let has_sinks = !settings.alerts.is_empty();
    let anchor = has_sinks.then(|| anchor(session, settings)).flatten();
    let agent = has_sinks.then(|| agent(session, settings));
    let agent = agent.unwrap_or_default();
    let meant = settings
        .alerts
        .iter()
        .filter(|sink| sink.kind != SinkKind::Heartbeat && news.severity >= sink.severity);
    let notices: Vec<(Sink, Notice)> = meant
        .map(|sink| {
            let notice = Notice {
                sink: sink.name.clone(),
                event: news.event,
                id: news.id.clone(),
                severity: news.severity,
                summary: news.summary.clone(),
                next: news.next.clone(),
                since,
                agent: agent.clone(),
                anchor: anchor.clone(),
            };
            (sink.clone(), notice)
        })
        .collect();
    std::thread::spawn(move || {
        let one = |(sink, notice): &(Sink, Notice)| Tried {
            sink: sink.name.clone(),
            failed: sink::deliver(sink, notice).err(),
        };
        std::thread::scope(|scope| {
            let notices = notices.iter();
            let all: Vec<_> = notices.map(|it| scope.spawn(move || one(it))).collect();
            let done = all.into_iter().filter_map(|thread| thread.join().ok());
            done.filter(|tried| tried.failed.is_some()).collect()
        })
    })
}

/// Sends a test to each sink, or to the one that is named.
///
/// # Errors
/// `Usage` for a sink that is not configured, and without any.
pub fn test(session: &Session, settings: &Settings, wanted: Option<&str>) -> Result<Vec<Tried>> {
    let is_meant = |sink: &&Sink| wanted.is_none_or(|name| name == sink.name);
    let sinks: Vec<&Sink> = settings.alerts.iter().filter(is_meant).collect();
    if sinks.is_empty() {
        return Err(match wanted {
            Some(name) => err!(
                Usage,
                "no alert sink \"{}\" is configured",
                name.escape_debug()
            ),
            None => err!(Config, "no alert sink is configured"),
        }
        .hint("Add [alerts.NAME] with its kind to the configuration: docs/agent.md."));
    }
    let (anchor, agent) = (anchor(session, settings), agent(session, settings));
    let try_one = |sink: &Sink| {
        let notice = Notice {
            sink: sink.name.clone(),
            event: Event::Test,
            id: "test".to_owned(),
            severity: Severity::Low,
            summary: "this is a test of pitr alert test: nothing is wrong".to_owned(),
            next: None,
            since: session.host.now(),
            agent: agent.clone(),
            anchor: anchor.clone(),
        };
        let delivered = sink::deliver(sink, &notice);
        Tried {
            sink: sink.name.clone(),
            failed: delivered.err().map(|e| session.explained(e)),
        }
    };
    Ok(sinks.into_iter().map(try_one).collect())
}

/// Reads the notices that were taken, to show them.
pub fn told(session: &Session, state_dir: &Path) -> Book {
    Notices::of(state_dir, None).read(session)
}
