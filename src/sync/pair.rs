//! Two repositories, and a scope of which one is brought up to date from the other: what every transfer works with.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::copy::Copied;
use super::parts::{Parts, Proven};
use super::{Options, Problem, Report, is_of_the_object};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::repo::claim::Claim;
use crate::repo::clock;
use crate::repo::deletion;
use crate::repo::epochs;
use crate::repo::event::{self, Event, PINNING, Recorded, Writer};
use crate::repo::id::BackupId;
use crate::repo::json;
use crate::repo::repository::Repository;
use crate::repo::scope::{self, Scope};
use crate::store::Key;

/// Problems that a report lists; the rest is counted.
const LISTED_MAX: usize = 1000;

/// Two repositories, and a scope.
pub struct Pair<'a> {
    pub(super) from: &'a Repository,
    pub(super) to: &'a Repository,
    pub(super) scope: Scope,
    pub(super) options: Options<'a>,
    pub(super) host: &'a Host,
    /// The parts that both sides have, as far as this run has seen it.
    pub(super) proven: Proven,
    report: Mutex<Report>,
}

impl<'a> Pair<'a> {
    /// # Errors
    /// `Refused` when they do not have the same keys.
    pub(super) fn new(
        (from, to): (&'a Repository, &'a Repository),
        scope: &Scope,
        options: Options<'a>,
        host: &'a Host,
    ) -> Result<Pair<'a>> {
        let pair = Pair {
            from,
            to,
            scope: scope.clone(),
            options,
            host,
            proven: Proven::default(),
            report: Mutex::default(),
        };
        pair.check_keys()?;
        Ok(pair)
    }

    /// Objects are copied as they are stored, so both sides must have the same keys, or none.
    fn check_keys(&self) -> Result<()> {
        let (from, to) = (&self.from.marker().key_set, &self.to.marker().key_set);
        if from == to {
            return self.check_epochs();
        }
        let (from, to) = (self.from.store().location(), self.to.store().location());
        Err(
            err!(Refused, "\"{from}\" and \"{to}\" do not have the same key set").hint(
                "Nothing was copied: objects are copied as they are stored, between repositories of one key set, or of none. Take a backup into each instead (pitr backup --repository NAME), or create the one anew with the keys of the other.",
            ),
        )
    }

    /// Copies must be readable there: the other side has every epoch of this one, with the same pair.
    fn check_epochs(&self) -> Result<()> {
        let later = |repository: &Repository| match repository.keys() {
            None => Ok(Vec::new()),
            Some(keys) => epochs::later(repository.store(), keys.mac.as_ref()),
        };
        let (from, to) = (later(self.from)?, later(self.to)?);
        let Some(lacks) = from.iter().find(|epoch| !to.contains(epoch)) else {
            return Ok(());
        };
        let (from, to) = (self.from.store().location(), self.to.store().location());
        Err(err!(
            Refused,
            "the key set has epoch {} in \"{from}\", and \"{to}\" lacks it or has another pair in it",
            lacks.number
        )
        .hint("Nothing was copied: what is sealed in it could not be read there. Give it the epoch: pitr repo rotate, with the current writer.key in its directory. \"pitr doctor\" names the epochs of each."))
    }

    /// Waits until nobody deletes WAL on the other side: what is planned then is still there when it is proven.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`; those of `tick`.
    pub fn wait_for_deletion(&self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut tick = || {
            self.check_stop()?;
            tick()
        };
        deletion::wait(
            (self.to.store(), &self.scope),
            self.host.clock.as_ref(),
            self.host.progress.as_ref(),
            &mut tick,
        )
    }

    /// Claims are dated by this host's clock.
    pub(super) fn check_clocks(&self) -> Result<()> {
        for side in [self.from, self.to] {
            clock::check(side.store(), self.host.now()).map_err(|e| match e.code() {
                Code::Refused => e.hint("Nothing was copied: the claims that keep a backup while it is copied are dated by this clock.\nCorrect the clock that is wrong: timedatectl set-ntp true"),
                _ => e,
            })?;
        }
        Ok(())
    }

    /// Returns the work that was done so far.
    pub fn report(&self) -> Report {
        self.locked().clone()
    }

    pub(super) fn locked(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writer(&self) -> Writer<'_> {
        Writer::of(self.host)
    }

    pub(super) fn check_stop(&self) -> Result<()> {
        let hint = "What was copied is there and whole. Run the command again: it goes on.";
        self.host.check_stop().map_err(|e| e.hint(hint))
    }

    /// Counts a copy; what is wrong with the object is taken down, other errors end the run. `true` when the object is there now.
    pub(super) fn settle(&self, object: &str, copied: Result<Copied>) -> Result<bool> {
        match copied {
            Ok(Copied::Stored(bytes)) => {
                let mut report = self.locked();
                report.objects += 1;
                report.bytes += bytes;
                Ok(true)
            }
            Ok(Copied::There) => Ok(true),
            // The janitor of the source was there; another run sees what is left.
            Ok(Copied::Gone) => Ok(false),
            Err(e) if is_of_the_object(&e) => {
                self.problem(object, &e);
                Ok(false)
            }
            Err(e) => Err(e.context(format!("copy object \"{object}\""))),
        }
    }

    /// As [`Pair::settle`], where it does not matter whether the object is there now.
    pub(super) fn settle_some(&self, key: &Key, copied: Result<Copied>) -> Result<()> {
        self.settle(key.as_str(), copied).map(drop)
    }

    /// Takes down a copied backup, or what is wrong with it; other errors end the run.
    pub(super) fn settle_backup(&self, id: &BackupId, copied: Result<bool>) -> Result<()> {
        match copied {
            Ok(true) => {
                self.locked().backups.push(id.clone());
                self.host.progress.note(&format!("copied backup {id}"));
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(e) if is_of_the_object(&e) => {
                self.problem(&format!("backup {id}"), &e);
                Ok(())
            }
            Err(e) => Err(e.context(format!("copy backup \"{id}\""))),
        }
    }

    /// The events of a backup that is to be copied. `None` when it is marked for deletion.
    pub(super) fn events_of(&self, id: &BackupId) -> Result<Option<Vec<Recorded>>> {
        let events = event::read_all(self.from.store(), &self.scope, &id.to_string())?;
        if event::is_marked(&events) {
            let note = format!("backup {id} was marked for deletion meanwhile, and is not copied");
            self.host.progress.note(&note);
            return Ok(None);
        }
        Ok(Some(events))
    }

    /// Copies the pins of a backup whose content is there, and its root. `false` when the root is gone.
    pub(super) fn complete(
        &self,
        (id, parts, bytes): (&BackupId, Parts, Option<&[u8]>),
        events: &[Recorded],
        claims: &mut [Claim<'_>],
        completed: &dyn Fn(&Writer<'_>) -> Event,
    ) -> Result<bool> {
        // A backup that is there and not yet pinned could be expired there.
        let pins = events.iter().filter(|e| !e.is_doubted);
        for pin in pins.filter(|e| PINNING.contains(&e.event.event.as_str())) {
            self.copy_event(&self.scope.event(&id.to_string(), &pin.name)?)?;
        }
        let mut tick = || {
            self.host.check_stop()?;
            claims.iter_mut().try_for_each(Claim::keep)
        };
        self.extend_locks(id, &parts, &mut tick)?;
        claims.first().map_or(Ok(()), Claim::check)?;
        if !self.commit((id, parts), bytes)? {
            return Ok(false);
        }
        if let Err(e) = self.copy_completed(id, events, completed) {
            self.host.progress.warn(&format!(
                "backup {id} is copied, but that could not be recorded: should its root be lost there, nothing will tell ({e})"
            ));
        }
        Ok(true)
    }

    /// Records there that the root exists: by the event of here, which needs no key, else by an own one, where it can be proven.
    fn copy_completed(
        &self,
        id: &BackupId,
        events: &[Recorded],
        completed: &dyn Fn(&Writer<'_>) -> Event,
    ) -> Result<()> {
        let mut known = events.iter().filter(|e| !e.is_doubted);
        if let Some(known) = known.find(|e| e.event.event == "completed") {
            return self.copy_event(&self.scope.event(&id.to_string(), &known.name)?);
        }
        let (store, writer) = (self.to.store(), self.writer());
        if !self.is_sealed() || store.mac(&scope::marker(), b"")?.is_some() {
            writer.record(store, &self.scope, &completed(&writer))?;
        }
        Ok(())
    }

    pub(super) fn problem(&self, object: &str, e: &Error) {
        self.host
            .progress
            .warn(&format!("\"{object}\" was not copied: {e}"));
        let mut report = self.locked();
        report.problem_count += 1;
        if report.problems.len() < LISTED_MAX {
            report.problems.push(Problem {
                object: object.to_owned(),
                detail: e.to_string(),
                is_conflict: e.code() == Code::Conflict,
            });
        }
    }

    /// Works on all items, several at a time; the first error ends it. `tick` is called about five times a second meanwhile.
    pub(super) fn side_by_side<T: Sync>(
        &self,
        items: &[T],
        work: &(dyn Fn(&T) -> Result<()> + Sync),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let one = || -> Result<()> {
            while !failed.load(Ordering::Relaxed) {
                let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                if let Err(e) = work(item) {
                    failed.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            // The channel carries nothing: it is closed when the last thread has ended.
            let (alive, ended) = std::sync::mpsc::channel::<()>();
            let threads: Vec<_> = (0..self.options.jobs.clamp(1, items.len().max(1)))
                .map(|_| {
                    let (alive, one) = (alive.clone(), &one);
                    scope.spawn(move || {
                        let _alive = alive;
                        one()
                    })
                })
                .collect();
            drop(alive);
            let mut result = Ok(());
            let pause = Duration::from_millis(200);
            while ended.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                if result.is_ok() {
                    result = tick().inspect_err(|_| failed.store(true, Ordering::Relaxed));
                }
            }
            for thread in threads {
                let done = thread
                    .join()
                    .unwrap_or_else(|_| Err(err!(Internal, "a copying thread panicked")));
                result = result.and(done);
            }
            result
        })
    }

    pub(super) fn copy_pins(&self, pins: &[(BackupId, String)], copied: &[BackupId]) -> Result<()> {
        for (id, name) in pins {
            // A pin of a backup that could not be copied would keep nothing.
            if copied.contains(id) && !self.locked().backups.contains(id) {
                continue;
            }
            let key = self.scope.event(&id.to_string(), name)?;
            self.copy_event(&key)?;
        }
        Ok(())
    }

    pub(super) fn copy_event(&self, key: &Key) -> Result<()> {
        let copied = self.copy_small(key, json::LIMIT_BYTES, &|bytes| {
            event::check(self.from.store(), key, bytes)
        });
        self.settle_some(key, copied)
    }
}
