//! The receivers of a cluster: a thread for each shard, while the owners are looked at, their slots recorded, and shards that come and go are followed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope as Threads, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::cluster::{Live, Nodes, of_shard};
use super::receive::{Ended, Peer, journal_of, pause, until_stopped};
use super::slots_record::Recorder;
use super::{configured, kept_names};
use crate::config::{Redis, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::lock;
use crate::operate::session::Session;
use crate::redis::connection::Tick;
use crate::redis::nodes;
use crate::redis::receive::may_try_again;
use crate::repo::slot_map;
use crate::wire::backoff::Backoff;

/// How often the owners are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The same while the receivers end.
const LAST_LOOK: Duration = Duration::from_millis(200);
/// How long a receiver that failed is left alone.
const AGAIN: Duration = Duration::from_secs(30);
/// A warning names the shards that are not received so often.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// How the receiver of a shard ended.
pub type OfShard = (String, Result<Ended>);

/// Receives from all shards of a cluster until a signal ends the process.
///
/// # Errors
/// `Config` for a name that is not configured, or without a journal; `Locked` where another receiver has it; `Refused` for another cluster than before; those of
/// the nodes that another attempt would not mend.
pub fn run(session: &Session, name: &str) -> Result<Vec<OfShard>> {
    let settings = session.settings_with_repositories()?;
    let section = configured(&settings, name)?;
    let directory = journal_of(section)?;
    let path = directory.join(format!("cluster-{name}.lock"));
    let locked = lock::take(&path, Duration::ZERO)
        .map_err(|e| Error::from_io(format!("lock \"{}\"", path.display()), e))?;
    let Some(_lock) = locked else {
        let shown = path.display();
        return Err(err!(
            Locked,
            "another receiver of cluster \"{name}\" has \"{shown}\""
        ));
    };
    let begun = begin(session, |tick| {
        let live = Live::new(session, section, &settings, false)?;
        live.keep_names(kept_names::path(&directory, name));
        let learned = live.learn_all(&Nodes::new(&live).all(tick)?);
        match learned.nameless.filter(|_| learned.shards.is_empty()) {
            Some(e) => Err(e),
            None => Ok(live),
        }
    });
    let Some(live) = begun? else {
        return Ok(Vec::new());
    };
    let (live, settings) = (&live, &settings);
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|threads| {
        let mut recorder = Recorder::start(threads, (session, live), &settings.repositories);
        let mut watch = Watch::new(session, live);
        let mut receivers = Receivers {
            session,
            settings,
            live,
            running: BTreeMap::new(),
            over: BTreeMap::new(),
            left: journals(&directory, name)?,
            said: Instant::now(),
        };
        // Nothing of a shard is stored before its slots are recorded.
        for name in live.all() {
            recorder.remember(&name);
        }
        watch.round(&mut recorder, false);
        threads.spawn(move || read_names((session, is_over), live));
        loop {
            let is_stopping = session.host.is_stopping();
            receivers.see();
            if receivers.running.is_empty() && (is_stopping || receivers.are_all_down()) {
                break;
            }
            if is_stopping {
                // The slots are looked at until the last byte is there, so that the end of the log may be an exact moment.
                std::thread::sleep(LAST_LOOK);
            } else {
                receivers.start(threads, &recorder);
                pause(&|| session.host.check_stop(), LOOK);
            }
            watch.round(&mut recorder, false);
        }
        // Receivers that were refused end without a signal: the threads beside them end, too.
        is_over.store(true, Ordering::Relaxed);
        watch.round(&mut recorder, true);
        drop(recorder);
        let over = receivers.over.into_iter();
        Ok(over.map(|(name, over)| (name, over.result)).collect())
    })
}

/// Reads names where somebody waits for that, beside the looks, which a repository that hangs may not hold up.
fn read_names((session, is_over): (&Session, &AtomicBool), live: &Live<'_>) {
    while !session.host.is_stopping() && !is_over.load(Ordering::Relaxed) {
        live.read_wanted_names();
        pause(&|| session.host.check_stop(), LOOK);
    }
}

/// Names of the shards of which there are journals: what is in them is brought into the repositories, also where the shard has no slots any more.
fn journals(directory: &Path, cluster: &str) -> Result<BTreeMap<String, Instant>> {
    let failed = |e| Error::from_io(format!("read directory \"{}\"", directory.display()), e);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let shard = name.to_str().and_then(|name| name.strip_prefix("redis-"));
        if let Some(shard) = shard.filter(|shard| nodes::digits(cluster, shard).is_some()) {
            found.insert(shard.to_owned(), Instant::now());
        }
    }
    Ok(found)
}

/// The receivers of the shards.
struct Receivers<'e, 't> {
    session: &'e Session,
    settings: &'e Settings,
    live: &'e Live<'e>,
    running: BTreeMap<String, Running<'t>>,
    over: BTreeMap<String, Over>,
    /// Shards whose journals may hold more than the repositories, and when these are tried next.
    left: BTreeMap<String, Instant>,
    /// When a warning named the shards last that are not received.
    said: Instant,
}

/// A shard's receiver.
struct Running<'t> {
    is_over: Arc<AtomicBool>,
    thread: ScopedJoinHandle<'t, Result<Ended>>,
}

/// A receiver that ended.
struct Over {
    result: Result<Ended>,
    /// When another one may start; none where time mends nothing.
    again: Option<Instant>,
}

impl<'e, 't> Receivers<'e, 't> {
    /// Starts what is to run and does not.
    fn start(&mut self, threads: &'t Threads<'t, 'e>, recorder: &Recorder<'_>) {
        let shards = self.live.shards();
        let now = Instant::now();
        for shard in &shards {
            let is_due = |over: &Over| over.again.is_some_and(|again| again <= now);
            let name = &shard.name;
            if self.running.contains_key(name) || !self.over.get(name).is_none_or(is_due) {
                continue;
            }
            let slots = slot_map::shown(&shard.map.owned);
            self.session.note(&format!("shard {name}: slots {slots}"));
            self.run(threads, name, false);
        }
        let is_live = |name: &String| shards.iter().any(|shard| shard.name == *name);
        let left: Vec<String> = self
            .left
            .iter()
            .filter(|(name, at)| **at <= now && !is_live(name) && !self.running.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in left {
            if self.live.last_look(&name).is_none() {
                // A repository that did not answer may know it.
                self.live.want_names();
                self.left.insert(name, now + AGAIN);
                continue;
            }
            recorder.remember(&name);
            self.run(threads, &name, true);
        }
    }

    /// Runs a receiver; of a shard that is gone it brings the journal into the repositories alone.
    fn run(&mut self, threads: &'t Threads<'t, 'e>, name: &str, is_gone: bool) {
        let is_over = Arc::new(AtomicBool::new(is_gone));
        let over = Arc::clone(&is_over);
        let (session, settings, live) = (self.session, self.settings, self.live);
        let redis: Redis = live.section_of(name);
        let thread = threads.spawn(move || {
            let check = || match over.load(Ordering::Relaxed) {
                true => Err(err!(Interrupted, "the shard owns no slots any more")),
                false => session.host.check_stop(),
            };
            let peer = Peer {
                redis: &redis,
                live: Some(live),
            };
            until_stopped(session, settings, &peer, &check)
        });
        let running = Running { is_over, thread };
        self.running.insert(name.to_owned(), running);
    }

    /// Ends the receivers of shards that are gone, and sees to those that ended.
    fn see(&mut self) {
        let (session, shards) = (self.session, self.live.shards());
        for (name, one) in &self.running {
            let is_gone = shards.iter().all(|shard| shard.name != *name);
            if is_gone && !one.is_over.swap(true, Ordering::Relaxed) {
                session.note(&format!(
                    "shard {name} owns no slots any more: its receiver ends"
                ));
            }
        }
        let done = self.running.iter();
        let done = done.filter(|(_, one)| one.thread.is_finished());
        let done: Vec<String> = done.map(|(name, _)| name.clone()).collect();
        let now = Instant::now();
        for name in done {
            let Some(Running { is_over, thread }) = self.running.remove(&name) else {
                continue;
            };
            let panicked = |_| Err(err!(Internal, "the thread of a receiver panicked"));
            let result = thread.join().unwrap_or_else(panicked);
            let is_shipped = result.as_ref().is_ok_and(|ended| ended.is_shipped);
            match is_shipped {
                true => self.left.remove(&name),
                false => self.left.insert(name.clone(), now + AGAIN),
            };
            let again = match &result {
                // One whose slots come back is received at once.
                _ if is_over.load(Ordering::Relaxed) => Some(now),
                Ok(_) => Some(now + AGAIN),
                Err(e) if is_mended_by_time(e) => Some(now + AGAIN),
                Err(_) => None,
            };
            if let Err(e) = &result {
                let next = match again {
                    Some(_) => format!("its receiver is started again in {} s", AGAIN.as_secs()),
                    None => DOWN.to_owned(),
                };
                session.warn(&format!("shard {name}: {}; {next}", shown(e)));
            }
            self.over.insert(name, Over { result, again });
        }
        if self.said.elapsed() >= SAY_AGAIN {
            self.said = now;
            for (name, over) in &self.over {
                if let (Err(e), None) = (&over.result, over.again) {
                    session.warn(&format!("shard {name}: {e}; {DOWN}"));
                }
            }
        }
    }

    /// Whether nothing is received, and nothing will be.
    fn are_all_down(&self) -> bool {
        let is_down = |over: &Over| over.result.is_err() && over.again.is_none();
        let shards = self.live.shards();
        let mut over = shards.iter().map(|shard| self.over.get(&shard.name));
        !shards.is_empty() && over.all(|over| over.is_some_and(is_down))
    }
}

const DOWN: &str = "the shard is not received until the receiver is started again";

/// Whether a receiver may be started again by itself: what a guard refused is for the operator.
fn is_mended_by_time(error: &Error) -> bool {
    may_try_again(error) || matches!(error.code(), Code::Denied | Code::Io | Code::Locked)
}

fn shown(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error} ({})", hint.replace('\n', " ")),
        None => error.to_string(),
    }
}

/// Tries until it works, or the process shall end: none then.
fn begin<T>(session: &Session, work: impl Fn(Tick<'_>) -> Result<T>) -> Result<Option<T>> {
    let host = &session.host;
    let mut backoff = Backoff::default();
    let mut said = String::new();
    loop {
        let error = match work(&mut || host.check_stop()) {
            Ok(done) => return Ok(Some(done)),
            Err(_) if host.is_stopping() => return Ok(None),
            Err(e) => e,
        };
        if !may_try_again(&error) {
            return Err(error);
        }
        let text = error.to_string();
        if said != text {
            session.warn(&format!("{text}; the receiver tries again"));
            said = text;
        }
        pause(&|| host.check_stop(), backoff.next(host.random()));
    }
}

/// Looks at the owners.
struct Watch<'w> {
    session: &'w Session,
    live: &'w Live<'w>,
    nodes: Nodes<'w>,
    said: String,
}

impl<'w> Watch<'w> {
    fn new(session: &'w Session, live: &'w Live<'w>) -> Watch<'w> {
        Watch {
            session,
            live,
            nodes: Nodes::new(live),
            said: String::new(),
        }
    }

    /// Asks each owner, and records the slots of those that answer, and of shards that are gone.
    fn round(&mut self, recorder: &mut Recorder<'_>, is_last: bool) {
        let mut said = String::new();
        match self.nodes.all(&mut || Ok(())) {
            Ok(accounts) => {
                let learned = self.live.learn(&accounts);
                let gone = self.live.gone(&accounts, &learned);
                for (name, seen) in learned.seen.into_iter().chain(gone) {
                    recorder.record(&name, seen, is_last);
                }
                if let Some(e) = learned.nameless {
                    said = shown(&e);
                }
            }
            Err(e) => said = format!("{}; no slots are recorded", shown(&e)),
        }
        if said != self.said && !said.is_empty() {
            self.session.warn(&said);
        }
        self.said = said;
    }
}

/// Returns the first error of a shard's receiver.
///
/// # Errors
/// That one.
pub fn all(ended: Vec<OfShard>) -> Result<Vec<(String, Ended)>> {
    let ended = ended.into_iter().map(|(name, ended)| match ended {
        Ok(ended) => Ok((name, ended)),
        Err(e) => Err(of_shard(&name, e)),
    });
    ended.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_is_mended_by_time() {
        for (code, is_mended) in [
            (Code::Unreachable, true),
            (Code::Denied, true),
            (Code::Locked, true),
            (Code::Refused, false),
            (Code::Damaged, false),
            (Code::Config, false),
        ] {
            let error = Error::new(code, "x");
            assert_eq!(is_mended_by_time(&error), is_mended, "{code:?}");
        }
    }
}
