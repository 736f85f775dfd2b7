//! Executes a plan of expiry (`plan::retention`).
//!
//! Order: marks → the claim under which WAL is deleted (`repo::deletion`) → everything is read anew, claims before roots → tombstones → roots, each gone for good before → server manifests,
//! layers, packs → WAL, ascending per timeline → events, reservations last. Killed anywhere, the next run goes on: what is
//! gone is gone, and what is left is still marked. A mark is no authority: the second reading decides again, and only what was marked
//! before it is deleted. Only this module deletes objects, but for a failed backup, which takes back its own (`backup`).

use std::collections::BTreeSet;

use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::segment::{SegmentNumber, SegmentSize, WalFileName};
use crate::plan::retention::{Deletion, ExpirePlan, Policy, retention};
use crate::repo::clock;
use crate::repo::deletion::DeletionClaim;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::{BackupId, PartName};
use crate::repo::json;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::root::outline::Outline;
use crate::repo::root::{TOMBSTONE, Tombstone};
use crate::repo::survey::Survey;
use crate::store::{Key, Published, Store};

/// How often the repository may change under a run before it gives up.
const ATTEMPTS: u32 = 4;

/// One run of expiry on one cluster in one repository.
pub struct Expire<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// Whose.
    pub registration: &'a Registration,
    /// What is to be kept.
    pub policy: Policy,
    /// The host that it runs on.
    pub host: &'a Host,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Backups that were marked.
    pub marked: Vec<BackupId>,
    /// Backups that are gone.
    pub deleted_backups: Vec<BackupId>,
    /// Segments that are gone.
    pub deleted_segments: u64,
    /// All objects that are gone.
    pub deleted_objects: u64,
    /// Deletions that the store refused, at most the first hundred.
    pub refused: Vec<String>,
    /// How many it refused.
    pub refused_count: u64,
    /// What the store keeps for a time that is not over, and until when; at most the first hundred.
    pub locked: Vec<String>,
    /// How many it keeps.
    pub locked_count: u64,
}

impl Expire<'_> {
    /// Computes what a run would do, and changes nothing.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says.
    pub fn plan(&self) -> Result<ExpirePlan> {
        let survey = self.survey()?;
        Ok(retention(&survey, &self.policy, self.host.now()))
    }

    /// Reads what is there, and requires a clock by which it can be judged.
    fn survey(&self) -> Result<Survey> {
        let survey = Survey::read(self.repository, self.registration)?;
        let now = self.host.now();
        if let Some((stored, key)) = &survey.newest
            && *stored > now.saturating_add(clock::MAY_DIFFER)
        {
            let what = format!("\"{key}\" was stored at {stored}");
            return Err(not_deleted(clock::differs(now, &what)));
        }
        clock::check(self.repository.store(), now).map_err(|e| match e.code() {
            Code::Refused => not_deleted(e),
            _ => e,
        })?;
        Ok(survey)
    }

    /// Marks what `shown`, a plan made just now, does not keep, and deletes what was marked before the grace period. `outcome` tells what was
    /// done, be it with an error in the end.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says, but for refused deletions, which are counted; `Interrupted`. Run again, it goes on.
    pub fn run(&self, shown: &ExpirePlan, outcome: &mut Outcome) -> Result<()> {
        let layout =
            ClusterLayout::new(&self.registration.name, self.registration.system_identifier)?;
        // Where segments lie is known with the second reading.
        let mut run = Run {
            what: self,
            store: self.repository.store(),
            layout: layout.clone(),
            size: SegmentSize::new(self.registration.segment_size_bytes)?,
            spared: self.policy.spared.clone(),
            deletion: None,
            outcome,
        };
        run.mark(shown)?;
        if shown.deletions.is_empty() && shown.tombstones.is_empty() {
            return Ok(());
        }
        let writer = Writer::of(self.host);
        run.deletion = Some(DeletionClaim::take(run.store, &layout, writer)?);
        let done = run.attempts();
        let ended = run.deletion.take().map_or(Ok(()), DeletionClaim::end);
        done.and(ended)
    }
}

fn not_deleted(clocks_differ: Error) -> Error {
    clocks_differ.hint(
        "Nothing was marked or deleted: grace periods and the claims of running backups and restores are counted by the clock.\nCorrect the clock that is wrong: timedatectl set-ntp true",
    )
}

struct Run<'a> {
    what: &'a Expire<'a>,
    store: &'a dyn Store,
    layout: ClusterLayout,
    size: SegmentSize,
    spared: BTreeSet<BackupId>,
    /// Held from before the second reading on, while anything is deleted.
    deletion: Option<DeletionClaim<'a>>,
    outcome: &'a mut Outcome,
}

impl Run<'_> {
    fn attempts(&mut self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let plan = self.decide_again()?;
            if self.bury(&plan.tombstones)? && self.unmake(&plan)? {
                return self.delete(&plan);
            }
        }
        Err(
            err!(Locked, "the repository changes faster than it can be read")
                .hint("Nothing that is needed was deleted. Run the command again."),
        )
    }

    fn mark(&mut self, plan: &ExpirePlan) -> Result<()> {
        let writer = Writer::of(self.what.host);
        for id in &plan.marks {
            let mark = Event {
                not_before: Some(self.what.host.now().saturating_add(self.what.policy.grace)),
                ..writer.event("expire", &id.to_string())
            };
            writer.record(self.store, &self.layout, &mark)?;
            self.outcome.marked.push(id.clone());
        }
        for (id, mark) in &plan.unmarks {
            let unmark = Event {
                ends: Some(mark.clone()),
                ..writer.event("unexpire", &id.to_string())
            };
            writer.record(self.store, &self.layout, &unmark)?;
        }
        Ok(())
    }

    /// The plan as it is now that the marks are durable. What is not marked yet waits for another run, also without grace.
    fn decide_again(&mut self) -> Result<ExpirePlan> {
        let survey = self.what.survey()?;
        self.layout = survey.layout(self.what.registration)?;
        let mut policy = self.what.policy.clone();
        policy.spared.clone_from(&self.spared);
        let now = self.what.host.now();
        let plan = retention(&survey, &policy, now);
        if plan.marks.is_empty() {
            return Ok(plan);
        }
        policy.spared.extend(plan.marks);
        Ok(retention(&survey, &policy, now))
    }

    /// Puts tombstones; `false` when one of the backups was committed meanwhile.
    fn bury(&self, ids: &[BackupId]) -> Result<bool> {
        for id in ids {
            self.check_stop()?;
            let tombstone = Tombstone {
                id: id.clone(),
                nonce: event::nonce(self.what.host.random.as_ref()),
            };
            let key = self.layout.manifest(id);
            // Without a key of an encrypted repository: the janitor need not have one.
            let published = json::write_plain(self.store, &key, TOMBSTONE, &tombstone)?;
            if published == Published::Exists
                && Outline::read(self.store, &self.layout, id)?.is_some()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes roots; `false` when the store refused one, which then stays with all that it needs.
    fn unmake(&mut self, plan: &ExpirePlan) -> Result<bool> {
        let mut is_complete = true;
        for deletion in &plan.deletions {
            let Deletion::Manifest(id) = deletion else {
                continue;
            };
            if self.remove(&self.layout.manifest(id))? {
                self.outcome.deleted_backups.push(id.clone());
                // What the root names must not be gone while a power cut can bring the root back.
                self.store
                    .settle_deletions(&format!("{}/{id}", self.layout.backups()))?;
                self.what
                    .host
                    .progress
                    .note(&format!("deleted backup {id}"));
            } else {
                self.spared.insert(id.clone());
                is_complete = false;
            }
        }
        Ok(is_complete)
    }

    fn delete(&mut self, plan: &ExpirePlan) -> Result<()> {
        for deletion in &plan.deletions {
            self.delete_one(deletion)?;
        }
        Ok(())
    }

    fn delete_one(&mut self, deletion: &Deletion) -> Result<()> {
        let part = |id: &BackupId, number| PartName {
            id: id.clone(),
            number,
        };
        match deletion {
            Deletion::Manifest(_) => {}
            Deletion::ServerManifest(id) => {
                self.remove(&self.layout.server_manifest(id))?;
            }
            Deletion::Layers(id, first, last) => {
                for number in *first..=*last {
                    self.remove(&self.layout.layer(&part(id, number)))?;
                }
            }
            Deletion::Packs(id, first, last) => {
                for number in *first..=*last {
                    self.remove(&self.layout.pack(&part(id, number)))?;
                }
            }
            Deletion::Segments(timeline, first, last) => {
                for number in first.0..=last.0 {
                    let name = SegmentNumber(number).name(*timeline, self.size);
                    let Some(name) = name else { break };
                    let before = self.outcome.deleted_objects;
                    // A refused one ends the range: behind it there would be a hole.
                    if !self.remove(&self.layout.wal_file(WalFileName::Segment(name)))? {
                        break;
                    }
                    self.outcome.deleted_segments += self.outcome.deleted_objects - before;
                }
            }
            Deletion::WalFile(name) => {
                self.remove(&self.layout.wal_file(*name))?;
            }
            Deletion::Object(key) => {
                self.remove(key)?;
            }
            Deletion::Event(subject, name) => {
                self.remove(&self.layout.event(subject, name)?)?;
            }
            Deletion::Tombstone(id) => {
                self.remove(&self.layout.manifest(id))?;
            }
            Deletion::Begin(id) => {
                self.remove(&self.layout.begin(id))?;
            }
            Deletion::Unfinished(path) => {
                let result = self.store.discard(path);
                self.count(path, result)?;
            }
        }
        Ok(())
    }

    /// Deletes an object; `false` when the store refused. Its being gone already is fine.
    fn remove(&mut self, key: &Key) -> Result<bool> {
        self.check_stop()?;
        if let Some(deletion) = &mut self.deletion {
            deletion.keep()?;
        }
        let result = self.store.delete(key);
        self.count(key.as_str(), result)
    }

    fn count(&mut self, what: &str, result: Result<bool>) -> Result<bool> {
        match result {
            Ok(was_there) => {
                self.outcome.deleted_objects += u64::from(was_there);
                Ok(true)
            }
            Err(e) if e.code() == Code::Denied => {
                self.refuse(what, &e);
                Ok(false)
            }
            // Its time comes: that is what the lock was set for.
            Err(e) if e.code() == Code::Locked => {
                self.outcome.locked_count += 1;
                if self.outcome.locked.len() < 100 {
                    self.outcome.locked.push(format!("{what}: {e}"));
                }
                Ok(false)
            }
            Err(e) => Err(e.hint(
                "Nothing that is needed was deleted. Run the command again when the repository answers: it goes on.",
            )),
        }
    }

    fn refuse(&mut self, what: &str, error: &Error) {
        self.outcome.refused_count += 1;
        if self.outcome.refused.len() < 100 {
            self.outcome.refused.push(format!("{what}: {error}"));
        }
    }

    fn check_stop(&self) -> Result<()> {
        if self.what.host.is_stopping() {
            return Err(err!(Interrupted, "interrupted")
                .hint("Nothing that is needed was deleted. Run the command again: it goes on."));
        }
        Ok(())
    }
}
