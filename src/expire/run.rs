//! Executes plans of expiry in one scope, whatever its content is.

use std::collections::BTreeSet;

use super::Outcome;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::segment::{SegmentNumber, SegmentSize, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::{Deletion, ExpirePlan, Policy};
use crate::repo::deletion::DeletionClaim;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::{BackupId, PartName};
use crate::repo::json;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::{TOMBSTONE, Tombstone};
use crate::repo::scope::Scope;
use crate::store::{Key, Published, Store, reserve};

/// How often the repository may change under a run before it gives up.
const ATTEMPTS: u32 = 4;

/// Pieces of the reserve that marks leave: the claim needs one for each directory on its way.
const KEPT_FOR_CLAIM: usize = 6;

/// The way out of a full disk without a reserve.
const FULL: &str = "Nothing that is needed was deleted: expire has to write a small file before it may delete.\nRemove a file that is not the repository's, or enlarge the disk, and run the command again. From then on expire keeps a reserve for this.";

/// A scope of which something is deleted.
pub trait Domain {
    /// Reads everything anew, and computes what goes; these stay for this run.
    ///
    /// # Errors
    /// As the first reading.
    fn decide(&self, spared: &BTreeSet<BackupId>) -> Result<Decided>;

    /// Returns whether a backup exists.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    fn exists(&self, id: &BackupId) -> Result<bool>;
}

/// A plan, and the place of the WAL that it deletes.
pub struct Decided {
    /// The plan.
    pub plan: ExpirePlan,
    /// None of a scope without WAL.
    pub wal: Option<(ClusterLayout, SegmentSize)>,
}

/// One execution of plans.
pub struct Run<'a> {
    domain: &'a dyn Domain,
    store: &'a dyn Store,
    scope: &'a Scope,
    host: &'a Host,
    spared: BTreeSet<BackupId>,
    wal: Option<(ClusterLayout, SegmentSize)>,
    /// Held from before the second reading on, while anything is deleted.
    deletion: Option<DeletionClaim<'a>>,
    outcome: &'a mut Outcome,
}

impl<'a> Run<'a> {
    /// Prepares an execution under a policy.
    pub fn new(
        domain: &'a dyn Domain,
        (store, scope): (&'a dyn Store, &'a Scope),
        policy: &Policy,
        host: &'a Host,
        outcome: &'a mut Outcome,
    ) -> Run<'a> {
        Run {
            domain,
            store,
            scope,
            host,
            spared: policy.spared.clone(),
            wal: None,
            deletion: None,
            outcome,
        }
    }

    /// Marks what a plan made just now does not keep, and deletes what was marked before the grace period.
    ///
    /// # Errors
    /// Errors of the store, but for refused deletions, which are counted; `Interrupted`.
    pub fn run(self, shown: &ExpirePlan, policy: &Policy) -> Result<()> {
        self.carried_out(shown, policy).map_err(|e| match e.code() {
            Code::Full => e.hint(FULL),
            _ => e,
        })
    }

    fn carried_out(mut self, shown: &ExpirePlan, policy: &Policy) -> Result<()> {
        if shown.deletions.is_empty() && shown.tombstones.is_empty() {
            return self.mark(shown, policy, KEPT_FOR_CLAIM);
        }
        // The reserve is the claim's: marks without room wait for that of the deletions.
        let marked = self.mark(shown, policy, usize::MAX);
        if marked.as_ref().is_err_and(|e| e.code() != Code::Full) {
            return marked;
        }
        self.deletion = Some(self.claim(shown)?);
        let done = self.attempts();
        let ended = self.deletion.take().map_or(Ok(()), DeletionClaim::end);
        done.and(ended)?;
        marked.or_else(|_| self.mark(shown, policy, KEPT_FOR_CLAIM))
    }

    /// Takes the claim. A full disk without a reserve may still have unfinished files, which nobody needs.
    fn claim(&mut self, shown: &ExpirePlan) -> Result<DeletionClaim<'a>> {
        let take = || DeletionClaim::take(self.store, self.scope, Writer::of(self.host));
        match take() {
            Err(e) if e.code() == Code::Full => {}
            taken => return taken,
        }
        for deletion in &shown.deletions {
            if let Deletion::Unfinished(_) = deletion {
                self.delete_one(deletion)?;
            }
        }
        DeletionClaim::take(self.store, self.scope, Writer::of(self.host))
    }

    fn attempts(&mut self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            // The plan as it is now that the marks are durable.
            let decide = || self.domain.decide(&self.spared);
            let Decided { plan, wal } = match &mut self.deletion {
                Some(deletion) => deletion.keep_during(decide)?,
                None => decide()?,
            };
            self.wal = wal;
            fault::pause("expire-decided");
            if self.bury(&plan.tombstones)? && self.unmake(&plan)? {
                return self.delete(&plan);
            }
        }
        Err(
            err!(Locked, "the repository changes faster than it can be read")
                .hint("Nothing that is needed was deleted. Run the command again."),
        )
    }

    /// Writes the marks, out of a reserve of which so many pieces are left.
    fn mark(&mut self, plan: &ExpirePlan, policy: &Policy, left: usize) -> Result<()> {
        let writer = Writer::of(self.host);
        let marked = self.outcome.marked.clone();
        for id in plan.marks.iter().filter(|id| !marked.contains(id)) {
            let mark = Event {
                not_before: Some(self.host.now().saturating_add(policy.grace)),
                by_request: policy.requested.is_some(),
                ..writer.event("expire", &id.to_string())
            };
            self.record(&writer, &mark, left)?;
            self.outcome.marked.push(id.clone());
        }
        for (id, mark) in &plan.unmarks {
            let unmark = Event {
                ends: Some(mark.clone()),
                ..writer.event("unexpire", &id.to_string())
            };
            self.record(&writer, &unmark, left)?;
        }
        Ok(())
    }

    fn record(&self, writer: &Writer<'_>, event: &Event, left: usize) -> Result<()> {
        let record = || writer.record(self.store, self.scope, event);
        reserve::spend(self.store, left, record).map(|_| ())
    }

    /// Puts tombstones; `false` when one of the backups was committed meanwhile.
    fn bury(&self, ids: &[BackupId]) -> Result<bool> {
        for id in ids {
            self.check_stop()?;
            let tombstone = Tombstone {
                id: id.clone(),
                nonce: event::nonce(self.host.random.as_ref()),
            };
            let key = self.scope.manifest(id);
            // Without a key of an encrypted repository: the janitor need not have one.
            let published = reserve::spend(self.store, 0, || {
                json::write_plain(self.store, &key, TOMBSTONE, &tombstone)
            })?;
            if published == Published::Exists && self.domain.exists(id)? {
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
            let locked = self.outcome.locked_count;
            if self.remove(&self.scope.manifest(id))? {
                self.outcome.deleted_backups.push(id.clone());
                // The parts that the root names must not be gone while a power cut can bring the root back.
                self.store
                    .settle_deletions(&format!("{}/{id}", self.scope.backups()))?;
                self.host.progress.note(&format!("deleted backup {id}"));
            } else {
                if self.outcome.locked_count > locked {
                    let kept = plan.backups.iter().filter(|b| b.id == *id);
                    let bytes = kept.map(|b| b.stored_bytes).sum::<u64>();
                    self.outcome.locked_bytes += bytes;
                }
                self.spared.insert(id.clone());
                is_complete = false;
            }
        }
        Ok(is_complete)
    }

    fn delete(&mut self, plan: &ExpirePlan) -> Result<()> {
        // Before any of their WAL goes: what is missing then is missing on purpose.
        for id in &plan.trimmed {
            let writer = Writer::of(self.host);
            let trimmed = writer.event(event::TRIMMED, &id.to_string());
            self.record(&writer, &trimmed, 0)?;
        }
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
                self.remove(&self.scope.server_manifest(id))?;
            }
            Deletion::Relations(id) => {
                self.remove(&self.scope.relations(id))?;
            }
            Deletion::Layers(id, first, last) => {
                for number in *first..=*last {
                    self.remove(&self.scope.layer(&part(id, number)))?;
                }
            }
            Deletion::Packs(id, first, last) => {
                for number in *first..=*last {
                    self.remove(&self.scope.pack(&part(id, number)))?;
                }
            }
            Deletion::Segments(timeline, first, last) => self.segments(*timeline, *first, *last)?,
            Deletion::WalFile(name) => {
                let key = self.wal.as_ref().map(|(layout, _)| layout.wal_file(*name));
                key.map_or(Ok(true), |key| self.remove(&key))?;
            }
            Deletion::Object(key) => {
                self.remove(key)?;
            }
            Deletion::Event(subject, name) => {
                self.remove(&self.scope.event(subject, name)?)?;
            }
            Deletion::Tombstone(id) => {
                self.remove(&self.scope.manifest(id))?;
            }
            Deletion::Begin(id) => {
                self.remove(&self.scope.begin(id))?;
            }
            Deletion::Unfinished(path) => {
                let result = self.store.discard(path);
                self.count(path, result)?;
            }
        }
        Ok(())
    }

    fn segments(
        &mut self,
        timeline: TimelineId,
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> Result<()> {
        let Some((layout, size)) = self.wal.clone() else {
            return Ok(());
        };
        for number in first.0..=last.0 {
            let Some(name) = SegmentNumber(number).name(timeline, size) else {
                break;
            };
            let before = self.outcome.deleted_objects;
            // A refused one ends the range: behind it there would be a hole.
            if !self.remove(&layout.wal_file(WalFileName::Segment(name)))? {
                break;
            }
            self.outcome.deleted_segments += self.outcome.deleted_objects - before;
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
        if (result.as_ref()).is_err_and(|e| e.code() == Code::Locked) {
            let meta = self.store.head(key).ok().flatten();
            self.outcome.locked_bytes += meta.map_or(0, |meta| meta.size_bytes);
        }
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
        let hint = "Nothing that is needed was deleted. Run the command again: it goes on.";
        self.host.check_stop().map_err(|e| e.hint(hint))
    }
}
