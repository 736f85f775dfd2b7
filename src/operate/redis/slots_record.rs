//! The slot maps of a cluster's shards, on their way into the repositories.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope as Threads;
use std::time::Duration;

use super::cluster::Live;
use super::receive::{origin, pause};
use crate::config;
use crate::error::{Code, Result};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::redis::kind::NAME;
use crate::repo::event::{Event, Writer};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::slot_map::{self, APART_MAX, EVERY, Seen, SlotMap};

/// More maps do not wait for a repository that does not answer.
const WAITING_MAX: usize = 4096;
/// How long a repository that refused a map is left alone.
const AGAIN: Duration = Duration::from_secs(5);

/// A map that is to be recorded: the shard's name, and the event.
type Entry = (String, Event);

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
        self.map.is_same(map) && apart.is_some_and(|apart| apart <= APART_MAX)
    }
}

/// The runs of looks, and the ways into the repositories.
pub(super) struct Recorder<'s> {
    session: &'s Session,
    queues: Vec<(String, Arc<Queue>)>,
    runs: BTreeMap<String, Run>,
}

impl<'s> Recorder<'s> {
    /// Starts a thread for each repository. They end when the recorder is dropped and all maps are stored, or one is not while the process ends.
    pub fn start<'t>(
        threads: &'t Threads<'t, '_>,
        (session, live): (&'s Session, &'t Live<'t>),
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
            queues: queues.collect(),
            runs: BTreeMap::new(),
        }
    }

    /// Takes a look at a shard: it is recorded where it is another state, where the last record is old, and with `is_last`.
    pub fn record(&mut self, name: &str, (time, map): Seen, is_last: bool) {
        let mut events: Vec<Seen> = Vec::new();
        match self
            .runs
            .get_mut(name)
            .filter(|run| run.goes_on(time, &map))
        {
            Some(run) => {
                run.seen = time;
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
            let event = slot_map::event(&Writer::of(&self.session.host), seen);
            for (repository, queue) in &self.queues {
                if !queue.push((name.to_owned(), event.clone())) {
                    self.session.warn(&format!(
                        "repository \"{repository}\" takes no slot maps: one of shard {name} is dropped, and no moment around it counts as exact"
                    ));
                }
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
    fn push(&self, (name, event): Entry) -> bool {
        let mut state = self.locked();
        let since = |event: &Event| event.slots.as_ref().map(|map| map.since);
        let own = state.0.iter_mut().rfind(|(own, _)| *own == name);
        if let Some((_, waiting)) = own.filter(|(_, waiting)| since(waiting) == since(&event)) {
            *waiting = event;
            return true;
        }
        let is_empty = |map: &SlotMap| map.owned.is_empty();
        if state.0.len() >= WAITING_MAX && !event.slots.as_ref().is_some_and(is_empty) {
            return false;
        }
        state.0.push_back((name, event));
        self.changed.notify_all();
        true
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
    let mut open = None;
    let mut registered = BTreeSet::new();
    let mut said = String::new();
    while let Some(entry) = from.pop() {
        while let Err(e) = write(
            session,
            live,
            (configured, &mut open),
            &mut registered,
            &entry,
        ) {
            open = None;
            let text = e.to_string();
            if said != text {
                session.warn(&format!(
                    "repository \"{}\": the slots of shard {} are not recorded: {text}",
                    configured.name, entry.0
                ));
                said = text;
            }
            // Time mends no refusal, and the other shards wait behind it.
            if matches!(e.code(), Code::Refused | Code::Conflict | Code::Damaged) {
                break;
            }
            if session.host.is_stopping() {
                return;
            }
            pause(&|| session.host.check_stop(), AGAIN);
        }
        said.clear();
    }
}

fn write(
    session: &Session,
    live: &Live<'_>,
    (configured, open): (&config::Repository, &mut Option<Repository>),
    registered: &mut BTreeSet<String>,
    (name, event): &Entry,
) -> Result<()> {
    let repository = match open.take() {
        Some(repository) => repository,
        None => session.open(configured)?,
    };
    let scope = Scope::aux(NAME, name)?;
    if !registered.contains(name) {
        origin(session, &live.section_of(name), &scope).require(&repository)?;
        registered.insert(name.clone());
    }
    Writer::of(&session.host).record(repository.store(), &scope, event)?;
    *open = Some(repository);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(since: i64, time: i64, owned: bool) -> Event {
        Event {
            time: TimestampTz(time),
            slots: Some(SlotMap {
                since: TimestampTz(since),
                owned: if owned { vec![(0, 5)] } else { Vec::new() },
                ..SlotMap::default()
            }),
            ..Event::default()
        }
    }

    #[test]
    fn what_waits_of_a_run_is_its_last_map() {
        let queue = Queue::default();
        for (name, event) in [
            ("a", event(1, 1, true)),
            ("b", event(1, 2, true)),
            ("a", event(1, 3, true)),
            ("a", event(4, 4, true)),
            ("a", event(4, 5, true)),
        ] {
            assert!(queue.push((name.to_owned(), event)));
        }
        queue.locked().1 = true;
        let all = std::iter::from_fn(|| queue.pop());
        let all: Vec<(String, i64)> = all.map(|(name, event)| (name, event.time.0)).collect();
        let expected = [("a", 3), ("b", 2), ("a", 5)].map(|(name, time)| (name.to_owned(), time));
        assert_eq!(all, expected);
    }

    #[test]
    fn a_full_queue_takes_the_last_word_of_a_shard() {
        let queue = Queue::default();
        for n in 0..WAITING_MAX as i64 {
            assert!(queue.push(("a".to_owned(), event(n, n, true))));
        }
        assert!(!queue.push(("a".to_owned(), event(1 << 20, 1 << 20, true))));
        assert!(queue.push(("a".to_owned(), event(1 << 20, 1 << 20, false))));
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
            assert_eq!(
                run.goes_on(time(second), &map(slot)),
                goes_on,
                "{second} {slot}"
            );
        }
    }
}
