//! The slot maps of a cluster's shards, on their way into the repositories. A shard's first map comes before all else of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope as Threads;
use std::time::{Duration, Instant};

use super::cluster::Live;
use super::receive::{origin, pause};
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::redis::kind::NAME;
use crate::repo::clock;
use crate::repo::event::{Event, Writer};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::slot_map::{self, APART_MAX, EVERY, Seen, SlotMap};

/// More maps do not wait for a repository that does not answer.
const WAITING_MAX: usize = 4096;
/// How long a repository that refused a map is left alone.
const AGAIN: Duration = Duration::from_secs(5);
/// How often this host's clock is compared with the repository's.
const CLOCK_EVERY: Duration = Duration::from_secs(600);
/// A look that is further ahead was dated by a wrong clock.
const BEFORE_MAX: Duration = Duration::from_secs(86_400);
/// So many settings of the clock are remembered.
const PAST_MAX: usize = 100;

/// A map that is to be recorded.
#[derive(Clone)]
struct Entry {
    shard: String,
    event: Event,
    /// Whether it is of use only where there is none of the shard.
    is_first: bool,
}

/// The clock of this host, as the looks at a shard saw it.
struct Shown {
    /// Times up to this were looked at by a process before.
    before: Option<TimestampTz>,
    /// Times that it showed before it was set.
    past: VecDeque<(TimestampTz, TimestampTz)>,
    /// The times since then.
    current: (TimestampTz, TimestampTz),
    /// When it showed the last one.
    at: Instant,
}

impl Shown {
    fn new(before: Option<TimestampTz>, time: TimestampTz, at: Instant) -> Shown {
        Shown {
            before,
            past: VecDeque::new(),
            current: (time, time),
            at,
        }
    }

    /// Takes the next time. Returns whether the clock had shown it before.
    fn again(&mut self, time: TimestampTz, at: Instant) -> bool {
        let latest = self.current.1.saturating_add(at - self.at);
        match self.current.1 <= time && time <= latest.saturating_add(APART_MAX) {
            true => self.current.1 = time,
            false => {
                self.past.push_back(self.current);
                if self.past.len() > PAST_MAX {
                    self.past.pop_front();
                }
                self.current = (time, time);
            }
        }
        self.at = at;
        let mut past = self.past.iter();
        past.any(|(from, to)| *from <= time && time <= *to)
            || self.before.is_some_and(|before| time <= before)
    }
}

/// The looks at a shard that all saw the same.
struct Run {
    map: SlotMap,
    /// The last look.
    seen: TimestampTz,
    /// The last look that was recorded.
    recorded: TimestampTz,
}

impl Run {
    /// Whether a look goes on with it.
    fn goes_on(&self, time: TimestampTz, map: &SlotMap) -> bool {
        let apart = time.duration_since(self.seen);
        self.map.is_same(map)
            && apart.is_some_and(|apart| apart <= APART_MAX)
            && slot_map::is_one_day(self.map.since, time)
    }
}

/// The runs of looks, and the ways into the repositories.
pub(super) struct Recorder<'s> {
    session: &'s Session,
    live: &'s Live<'s>,
    /// The number of this receiver.
    number: String,
    queues: Vec<(String, Arc<Queue>)>,
    runs: BTreeMap<String, Run>,
    /// The times that the clock showed at the looks at each shard.
    shown: BTreeMap<String, Shown>,
}

impl<'s> Recorder<'s> {
    /// Starts a thread for each repository. They end when the recorder is dropped and all maps are stored, or one is not.
    pub fn start<'t>(
        threads: &'t Threads<'t, '_>,
        (session, live): (&'s Session, &'s Live<'s>),
        repositories: &[config::Repository],
    ) -> Recorder<'s>
    where
        's: 't,
    {
        let queues = repositories.iter().map(|configured| {
            let queue = Arc::new(Queue::default());
            let name = configured.name.clone();
            let (configured, from) = (configured.clone(), Arc::clone(&queue));
            threads.spawn(move || write_all(session, live, &configured, &from));
            (name, queue)
        });
        Recorder {
            session,
            live,
            number: slot_map::run(session.host.random()),
            queues: queues.collect(),
            runs: BTreeMap::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Records the last look at a shard that is not looked at any more, where nothing is recorded of it.
    pub fn remember(&self, shard: &str) {
        if let Some(seen) = self.live.last_look(shard) {
            self.push(shard, seen, true);
        }
    }

    /// Takes a look at a shard: it is recorded where it is another state, where the last record is old, and with `is_last`.
    pub fn record(&mut self, name: &str, (time, map): Seen, is_last: bool) {
        let at = Instant::now();
        let shown = self.shown.entry(name.to_owned()).or_insert_with(|| {
            // A time far ahead is that of a wrong clock.
            let before = self.live.seen_before(name);
            let is_ahead = |t: &TimestampTz| *t > time.saturating_add(BEFORE_MAX);
            Shown::new(before.filter(|t| !is_ahead(t)), time, at)
        });
        let map = SlotMap {
            run: Some(self.number.clone()),
            again: shown.again(time, at),
            ..map
        };
        let mut events: Vec<Seen> = Vec::new();
        let run = self.runs.get_mut(name);
        match run.filter(|run| run.goes_on(time, &map)) {
            Some(run) => {
                run.seen = time;
                run.map.offset = map.offset;
                let age = time.duration_since(run.recorded);
                if is_last || age.is_none_or(|age| age >= EVERY) {
                    run.recorded = time;
                    events.push((time, run.map.clone()));
                }
            }
            None => {
                let map = SlotMap { since: time, ..map };
                let run = Run {
                    map: map.clone(),
                    seen: time,
                    recorded: time,
                };
                // A run that ends is known up to its last look.
                if let Some(before) = self.runs.insert(name.to_owned(), run)
                    && before.seen > before.recorded
                {
                    events.push((before.seen, before.map));
                }
                events.push((time, map));
            }
        }
        for seen in events {
            self.push(name, seen, false);
        }
    }

    fn push(&self, shard: &str, seen: Seen, is_first: bool) {
        let entry = Entry {
            shard: shard.to_owned(),
            event: slot_map::event(&Writer::of(&self.session.host), seen),
            is_first,
        };
        for (repository, queue) in &self.queues {
            if !queue.push(entry.clone()) {
                self.session.warn(&format!(
                    "repository \"{repository}\" takes no slot maps: one of shard {shard} is dropped, and no moment around it counts as exact"
                ));
            }
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        for (_, queue) in &self.queues {
            queue.locked().1 = true;
            queue.changed.notify_all();
        }
    }
}

/// Maps that wait for a repository.
#[derive(Default)]
struct Queue {
    /// The maps, and whether no more will come.
    state: Mutex<(VecDeque<Entry>, bool)>,
    changed: Condvar,
}

impl Queue {
    fn locked(&self) -> MutexGuard<'_, (VecDeque<Entry>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a map. A later one of a run stands for those that wait. `false` where there are too many; the last word of a shard is always taken.
    fn push(&self, entry: Entry) -> bool {
        let mut state = self.locked();
        let since = |entry: &Entry| entry.event.slots.as_ref().map(|map| map.since);
        let own = state.0.iter_mut().rfind(|own| own.shard == entry.shard);
        match own {
            // It is of no use behind another one.
            Some(_) if entry.is_first => return true,
            Some(waiting) if since(waiting) == since(&entry) => {
                if waiting.event.time <= entry.event.time {
                    *waiting = entry;
                }
                return true;
            }
            _ => {}
        }
        let is_empty = |map: &SlotMap| map.owned.is_empty();
        if state.0.len() >= WAITING_MAX && !entry.event.slots.as_ref().is_some_and(is_empty) {
            return false;
        }
        state.0.push_back(entry);
        self.changed.notify_all();
        true
    }

    /// Whether no more will come.
    fn is_closed(&self) -> bool {
        self.locked().1
    }

    /// Takes the first map; none when no more will come.
    fn pop(&self) -> Option<Entry> {
        let mut state = self.locked();
        loop {
            if let Some(entry) = state.0.pop_front() {
                return Some(entry);
            }
            if state.1 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn write_all(session: &Session, live: &Live<'_>, configured: &config::Repository, from: &Queue) {
    let mut into = Into {
        session,
        live,
        configured,
        open: None,
        registered: BTreeSet::new(),
        checked: None,
    };
    let mut said = String::new();
    while let Some(entry) = from.pop() {
        let Err((e, is_final)) = into.put(&entry) else {
            said.clear();
            continue;
        };
        into.open = None;
        let text = e.to_string();
        if said != text {
            session.warn(&format!(
                "repository \"{}\": the slots of shard {} are not recorded: {text}",
                configured.name, entry.shard
            ));
            said = text;
        }
        if is_final {
            continue;
        }
        if session.host.is_stopping() || from.is_closed() {
            return;
        }
        // The trouble may be that of one shard: the others go before it next time.
        from.push(entry);
        pause(&|| session.host.check_stop(), AGAIN);
    }
}

/// A repository into which maps are written.
struct Into<'w> {
    session: &'w Session,
    live: &'w Live<'w>,
    configured: &'w config::Repository,
    open: Option<Repository>,
    /// Shards whose registration was looked at.
    registered: BTreeSet<String>,
    /// When the clocks were compared.
    checked: Option<Instant>,
}

impl Into<'_> {
    /// Writes a map. An error comes with whether another attempt would mend nothing: the other shards wait behind it.
    fn put(&mut self, entry: &Entry) -> std::result::Result<(), (Error, bool)> {
        let repository = self.opened().map_err(|e| (e, false))?;
        self.write(&repository, entry).map_err(|e| {
            let is_final = matches!(e.code(), Code::Refused | Code::Conflict | Code::Damaged);
            (e, is_final)
        })?;
        self.open = Some(repository);
        Ok(())
    }

    /// The repository; the clocks agree.
    fn opened(&mut self) -> Result<Repository> {
        let repository = match self.open.take() {
            Some(repository) => repository,
            None => self.session.open(self.configured)?,
        };
        if self.checked.is_none_or(|at| at.elapsed() >= CLOCK_EVERY) {
            self.checked = None;
            clock::check(repository.store(), self.session.host.now())?;
            self.checked = Some(Instant::now());
        }
        Ok(repository)
    }

    fn write(&mut self, repository: &Repository, entry: &Entry) -> Result<()> {
        let (session, shard) = (self.session, &entry.shard);
        let now = session.host.now();
        if entry.event.time > now.saturating_add(clock::MAY_DIFFER) {
            let ahead = "it is of a time that the clock showed before it was set back";
            return Err(err!(Refused, "{ahead}"));
        }
        let scope = Scope::aux(NAME, shard)?;
        if !self.registered.contains(shard) {
            origin(session, &self.live.section_of(shard), &scope).require(repository, None)?;
            self.registered.insert(shard.clone());
        }
        if entry.is_first && slot_map::is_any(repository.store(), &scope)? {
            return Ok(());
        }
        slot_map::write(repository.store(), &scope, &entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(shard: &str, since: i64, time: i64, owned: bool) -> Entry {
        let event = Event {
            time: TimestampTz(time),
            slots: Some(SlotMap {
                since: TimestampTz(since),
                owned: if owned { vec![(0, 5)] } else { Vec::new() },
                ..SlotMap::default()
            }),
            ..Event::default()
        };
        Entry {
            shard: shard.to_owned(),
            event,
            is_first: false,
        }
    }

    #[test]
    fn what_waits_of_a_run_is_its_last_map() {
        let queue = Queue::default();
        for (shard, since, time) in [
            ("a", 1, 1),
            ("b", 1, 2),
            ("a", 1, 3),
            ("a", 4, 4),
            ("a", 4, 5),
        ] {
            assert!(queue.push(entry(shard, since, time, true)));
        }
        queue.locked().1 = true;
        let all = std::iter::from_fn(|| queue.pop());
        let all: Vec<(String, i64)> = all.map(|one| (one.shard, one.event.time.0)).collect();
        let expected = [("a", 3), ("b", 2), ("a", 5)].map(|(name, time)| (name.to_owned(), time));
        assert_eq!(all, expected);
    }

    #[test]
    fn a_full_queue_takes_the_last_word_of_a_shard() {
        let queue = Queue::default();
        for n in 0..WAITING_MAX as i64 {
            assert!(queue.push(entry("a", n, n, true)));
        }
        assert!(!queue.push(entry("a", 1 << 20, 1 << 20, true)));
        assert!(queue.push(entry("a", 1 << 20, 1 << 20, false)));
    }

    #[test]
    fn a_time_that_the_clock_showed_before_is_known() {
        let start = Instant::now();
        let time = |second: i64| TimestampTz(second * 1_000_000);
        let at = |second: u64| start + Duration::from_secs(second);
        let mut shown = Shown::new(Some(time(90)), time(100), at(0));
        for (second, real, again) in [
            (100, 0, false),
            (101, 1, false),
            // Nobody looked for a while.
            (200, 100, false),
            // It is set back, and goes on from there.
            (150, 101, true),
            (199, 150, true),
            (201, 152, false),
            // It was wrong for a moment.
            (9_000, 153, false),
            (203, 154, false),
            (204, 155, false),
            (80, 156, true),
        ] {
            let is_again = shown.again(time(second), at(real));
            assert_eq!(is_again, again, "{second} {real}");
        }
    }

    #[test]
    fn a_run_ends_with_another_state_a_pause_and_a_clock_that_was_set_back() {
        let map = |slot| SlotMap {
            owned: vec![(0, slot)],
            ..SlotMap::default()
        };
        let time = |second: i64| TimestampTz(second * 1_000_000);
        let run = Run {
            map: map(5),
            seen: time(100),
            recorded: time(100),
        };
        for (second, slot, goes_on) in [
            (101, 5, true),
            (115, 5, true),
            (116, 5, false),
            (99, 5, false),
            (101, 6, false),
        ] {
            let went_on = run.goes_on(time(second), &map(slot));
            assert_eq!(went_on, goes_on, "{second} {slot}");
        }
        // Also with its day.
        let day = 86_400;
        let run = Run {
            map: SlotMap {
                since: time(day - 2),
                ..map(5)
            },
            seen: time(day - 1),
            recorded: time(day - 2),
        };
        assert!(!run.goes_on(time(day), &map(5)));
    }
}
