//! Executes plans of expiry in one scope, whatever its content is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Outcome;
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::segment::{SegmentNumber, SegmentSize, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::plan::retention::claims::SpentClaims;
use crate::plan::retention::wal::Needed;
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

/// So many objects are deleted at once where each deletion is a round trip.
const AT_ONCE: usize = 8;

/// The claim ends when WAL was deleted under it for so long: backups that wait for its end can then commit.
const ROUND: Duration = Duration::from_secs(600);
/// The time without a claim between two rounds; programs that wait look twice a second.
const PAUSE: Duration = Duration::from_secs(5);
/// How often a pause looks for the operator's wish to stop.
const LOOKS_AGAIN: Duration = Duration::from_millis(50);

/// Pieces of the reserve that marks leave: the claim needs one for each directory on its way.
const KEPT_FOR_CLAIM: usize = 6;

/// The way out of a full disk without a reserve.
const FULL: &str = "Nothing that is needed was deleted: expire has to write a small file before it may delete.\nRemove a file that is not the repository's, or enlarge the disk, and run the command again. From then on expire keeps a reserve for this.";

/// The way on where the store has failed.
const GOES_ON: &str = "Nothing that is needed was deleted. Run the command again when the repository answers: it goes on.";

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
    /// Objects that the store refused to delete: each is asked for and counted once, whatever later plans name.
    kept: BTreeSet<String>,
    round: Duration,
    pause: Duration,
    /// The end of this round.
    until: Instant,
    /// Whether the round has ended before all WAL, and all of a log, of its plan was gone.
    is_cut: bool,
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
            kept: BTreeSet::new(),
            round: ROUND,
            pause: fault::shortened(PAUSE),
            until: Instant::now(),
            is_cut: false,
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
        let done = self.rounds();
        let ended = self.deletion.take().map_or(Ok(()), DeletionClaim::end);
        done.and(ended)?;
        marked.or_else(|_| self.mark(shown, policy, KEPT_FOR_CLAIM))
    }

    /// Takes the claim. A full disk without a reserve may still have unfinished files, which nobody needs.
    fn claim(&mut self, shown: &ExpirePlan) -> Result<DeletionClaim<'a>> {
        match self.take_claim() {
            Err(e) if e.code() == Code::Full => {}
            taken => return taken,
        }
        for deletion in &shown.deletions {
            if let Deletion::Unfinished(_) = deletion {
                self.delete_one(deletion, &shown.needed)?;
            }
        }
        self.take_claim()
    }

    fn take_claim(&self) -> Result<DeletionClaim<'a>> {
        DeletionClaim::take(self.store, self.scope, Writer::of(self.host))
    }

    /// Deletes in rounds, each under a claim and by a plan of its own, as several runs would.
    fn rounds(&mut self) -> Result<()> {
        while !self.attempts()? {
            self.let_others_pass()?;
        }
        Ok(())
    }

    /// Ends the claim for a while: who waits for that proves its WAL present, and has a claim which the next plan sees.
    fn let_others_pass(&mut self) -> Result<()> {
        self.deletion.take().map_or(Ok(()), DeletionClaim::end)?;
        let ended = Instant::now();
        while ended.elapsed() < self.pause {
            self.check_stop()?;
            std::thread::sleep(LOOKS_AGAIN.min(self.pause));
        }
        self.deletion = Some(self.take_claim()?);
        Ok(())
    }

    /// Makes a plan and carries it out; `false` where WAL is left for another round.
    fn attempts(&mut self) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            let asked = Instant::now();
            // The plan as it is now that the marks are durable.
            let decide = || self.domain.decide(&self.spared);
            let Decided { plan, wal } = match &mut self.deletion {
                Some(deletion) => deletion.keep_during(decide)?,
                None => decide()?,
            };
            self.wal = wal;
            // A round is no shorter than its plan took: else most of the time would go into plans.
            self.until = Instant::now() + fault::shortened(self.round.max(asked.elapsed()));
            fault::pause("expire-decided");
            if self.bury(&plan.tombstones)? && self.unmake(&plan)? {
                self.outcome.withheld.clone_from(&plan.withheld);
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

    /// Deletes all but roots; `false` where the round has ended, and WAL is left.
    fn delete(&mut self, plan: &ExpirePlan) -> Result<bool> {
        // Before any of their WAL goes: what is missing then is missing on purpose.
        for (id, first) in plan.holes.iter().filter(|_| !plan.only_clears()) {
            let writer = Writer::of(self.host);
            let trimmed = Event {
                segment: Some(first.to_string()),
                ..writer.event(event::TRIMMED, &id.to_string())
            };
            self.record(&writer, &trimmed, 0)?;
        }
        self.is_cut = false;
        for deletion in &plan.deletions {
            // The next plan would take a deleted backup with events for an aborted one.
            if !self.is_cut || is_of_backup(deletion) {
                // An object that the store keeps costs no time, and is in each plan.
                let is_asked = |key: &Key| !self.kept.contains(key.as_str());
                let is_timed = matches!(deletion, Deletion::Object(key) if is_asked(key));
                self.delete_one(deletion, &plan.needed)?;
                self.is_cut |= is_timed && self.is_over();
            }
        }
        if !self.is_cut {
            self.clear_all(plan)?;
        }
        Ok(!self.is_cut)
    }

    /// Deletes claims of copies that are over. Nothing hangs on it: it ends with the round, and a later run goes on.
    fn clear_all(&mut self, plan: &ExpirePlan) -> Result<()> {
        for deletion in &plan.deletions {
            if self.is_over() {
                return Ok(());
            }
            if let Deletion::Spent(id, spent) = deletion
                && !self.clear_claims(id, spent)?
            {
                self.outcome.uncleared += 1;
            }
        }
        Ok(())
    }

    /// Deletes those of one id; `false` when the store refused one, which ends it. It keeps what is over, and that holds up nobody.
    fn clear_claims(&mut self, id: &BackupId, spent: &SpentClaims) -> Result<bool> {
        let (scope, subject) = (self.scope, id.to_string());
        let width = self.at_once();
        for names in [&spent.releases, &spent.claims] {
            let keys = names.iter().map(|name| scope.event(&subject, name));
            let keys: Vec<Key> = keys.collect::<Result<_>>()?;
            // The first one alone shows whether the store keeps them.
            let (first, others) = keys.split_at(keys.len().min(1));
            for step in first.chunks(1).chain(others.chunks(width)) {
                if self.is_over() {
                    return Ok(true);
                }
                if !self.clear(step)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Deletes a step of events; `false` when the store refused one.
    fn clear(&mut self, step: &[Key]) -> Result<bool> {
        let mut is_complete = true;
        let mut failed = None;
        for result in self.delete_step(step)? {
            match result {
                Ok(was_there) => self.outcome.cleared += u64::from(was_there),
                Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => is_complete = false,
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        match failed {
            Some(e) => Err(e.hint(GOES_ON)),
            None => Ok(is_complete),
        }
    }

    /// Whether the round has lasted as long as it may.
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn delete_one(&mut self, deletion: &Deletion, needed: &Needed) -> Result<()> {
        let scope = self.scope;
        let part = |id: &BackupId, number| PartName {
            id: id.clone(),
            number,
        };
        let key = match deletion {
            // Roots are gone by now, and claims of copies go behind all else.
            Deletion::Manifest(_) | Deletion::Spent(..) => return Ok(()),
            Deletion::ServerManifest(id) => scope.server_manifest(id),
            Deletion::Relations(id) => scope.relations(id),
            Deletion::Layers(id, first, last) => {
                let keys = (*first..=*last).map(|number| scope.layer(&part(id, number)));
                return self.remove_each(keys);
            }
            Deletion::Packs(id, first, last) => {
                let keys = (*first..=*last).map(|number| scope.pack(&part(id, number)));
                return self.remove_each(keys);
            }
            Deletion::Segments(timeline, first, last) => {
                return self.segments(*timeline, (*first, *last), needed);
            }
            Deletion::WalFile(name) => match &self.wal {
                Some((layout, _)) => layout.wal_file(*name),
                None => return Ok(()),
            },
            Deletion::Object(key) => key.clone(),
            Deletion::Event(subject, name) => scope.event(subject, name)?,
            Deletion::Tombstone(id) => scope.manifest(id),
            Deletion::Begin(id) => scope.begin(id),
            Deletion::Unfinished(path) => {
                let result = self.store.discard(path);
                return self.count(path, result).map(drop);
            }
        };
        self.remove(&key).map(drop)
    }

    /// Deletes a run of segments, ascending, until the round is over.
    fn segments(
        &mut self,
        timeline: TimelineId,
        (first, last): (SegmentNumber, SegmentNumber),
        needed: &Needed,
    ) -> Result<()> {
        let Some((layout, size)) = self.wal.clone() else {
            return Ok(());
        };
        // A hole behind a backup would be a gap for everybody; nobody looks for any before the first backup.
        let width = match needed.has_any_until(last) {
            true => 1,
            false => self.at_once(),
        };
        let key = |number: u64| {
            let name = SegmentNumber(number).name(timeline, size)?;
            Some(layout.wal_file(WalFileName::Segment(name)))
        };
        let mut keys = (first.0..=last.0).map_while(key);
        // The first one alone shows whether the store keeps them.
        let mut step: Vec<Key> = keys.by_ref().take(1).collect();
        while !step.is_empty() && self.remove_segments(&step)? {
            if self.is_over() {
                self.is_cut = true;
                return Ok(());
            }
            step = keys.by_ref().take(width).collect();
        }
        Ok(())
    }

    /// Deletes a step of a run; `false` when the store refused one, which ends the run: behind it there would be a hole.
    fn remove_segments(&mut self, step: &[Key]) -> Result<bool> {
        if step.iter().any(|key| self.kept.contains(key.as_str())) {
            return Ok(false);
        }
        let results = self.delete_step(step)?;
        let gone = results.iter().filter(|result| matches!(result, Ok(true)));
        let gone: u64 = gone.map(|_| 1).sum();
        self.outcome.deleted_objects += gone;
        self.outcome.deleted_segments += gone;
        let mut both = step.iter().zip(results);
        match both.find(|(_, result)| result.is_err()) {
            Some((key, failed)) => self.counted(key, failed),
            None => Ok(true),
        }
    }

    /// Deletes objects whose order does not matter. Their being gone already is fine.
    fn remove_each(&mut self, mut keys: impl Iterator<Item = Key>) -> Result<()> {
        let width = self.at_once();
        loop {
            let is_asked = |key: &Key| !self.kept.contains(key.as_str());
            let step: Vec<Key> = keys.by_ref().filter(is_asked).take(width).collect();
            if step.is_empty() {
                return Ok(());
            }
            let results = self.delete_step(&step)?;
            let both = step.iter().zip(results);
            // Each is counted before the first failure ends it.
            let counted = both.map(|(key, result)| self.counted(key, result));
            let counted: Vec<Result<bool>> = counted.collect();
            counted.into_iter().collect::<Result<Vec<bool>>>()?;
        }
    }

    /// Deletes an object; `false` when the store refused. Its being gone already is fine.
    fn remove(&mut self, key: &Key) -> Result<bool> {
        if self.kept.contains(key.as_str()) {
            return Ok(false);
        }
        let mut results = self.delete_step(std::slice::from_ref(key))?;
        match results.pop() {
            Some(result) => self.counted(key, result),
            None => Ok(true),
        }
    }

    /// Asks the store to delete objects, all at once, while the claim stands.
    fn delete_step(&mut self, step: &[Key]) -> Result<Vec<Result<bool>>> {
        self.check_stop()?;
        if let Some(deletion) = &mut self.deletion {
            deletion.keep()?;
        }
        let store = self.store;
        match step {
            [key] => Ok(vec![store.delete(key)]),
            _ => self
                .host
                .parallel(step.len(), step, |key| store.delete(key)),
        }
    }

    /// How many objects whose order does not matter are deleted at once.
    fn at_once(&self) -> usize {
        match self.store.is_remote() {
            true => AT_ONCE,
            false => 1,
        }
    }

    /// Counts a deletion, and the bytes of an object that the store keeps.
    fn counted(&mut self, key: &Key, result: Result<bool>) -> Result<bool> {
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
            Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {
                self.kept.insert(what.to_owned());
                let known = &mut *self.outcome;
                let (list, count) = match e.code() {
                    // Its time comes: that is what the lock was set for.
                    Code::Locked => (&mut known.locked, &mut known.locked_count),
                    _ => (&mut known.refused, &mut known.refused_count),
                };
                *count += 1;
                if list.len() < 100 {
                    list.push(format!("{what}: {e}"));
                }
                Ok(false)
            }
            Err(e) => Err(e.hint(GOES_ON)),
        }
    }

    fn check_stop(&self) -> Result<()> {
        let hint = "Nothing that is needed was deleted. Run the command again: it goes on.";
        self.host.check_stop().map_err(|e| e.hint(hint))
    }
}

/// Whether something belongs to a backup that goes, and not to WAL.
fn is_of_backup(deletion: &Deletion) -> bool {
    match deletion {
        Deletion::Event(subject, _) => subject.parse::<BackupId>().is_ok(),
        Deletion::Tombstone(_) | Deletion::Begin(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use super::*;
    use crate::pg::time::TimestampTz;
    use crate::repo::deletion;
    use crate::store::file::FileStore;
    use crate::store::{Listed, Meta, NewObject, Object, Room, put};

    /// How long a deletion takes.
    const LATENCY: Duration = Duration::from_millis(30);

    /// A directory that answers as slowly as a store across a network, and remembers what was deleted.
    struct Distant {
        inner: FileStore,
        /// Keys with this in them are locked.
        locked: &'static str,
        running: AtomicUsize,
        most: AtomicUsize,
        deleted: Mutex<Vec<String>>,
    }

    impl Store for Distant {
        crate::store::forward! {
            fn location(&self) -> String;
            fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>>;
            fn create(&self, key: &Key) -> Result<Box<dyn NewObject>>;
            fn list(&self, prefix: &str) -> Result<Vec<Listed>>;
            fn head(&self, key: &Key) -> Result<Option<Meta>>;
            fn room(&self) -> Result<Option<Room>>;
        }

        fn delete(&self, key: &Key) -> Result<bool> {
            self.deleted.lock().unwrap().push(key.to_string());
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            std::thread::sleep(LATENCY);
            self.running.fetch_sub(1, Ordering::SeqCst);
            match !self.locked.is_empty() && key.as_str().contains(self.locked) {
                true => Err(err!(Locked, "kept by the store")),
                false => self.inner.delete(key),
            }
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    /// Segments, packs, events and the reservation of a backup whose root is gone, and claims of copies of others: what is there goes.
    struct Bench {
        directory: tempfile::TempDir,
        store: Distant,
        layout: ClusterLayout,
        host: Host,
        segments: u64,
        packs: u32,
        /// Increments, each an object of its own.
        increments: u64,
        /// Backups with claims of copies that are over.
        copied: Vec<BackupId>,
        needed: Needed,
        /// The claims that stood at each plan, and whether the reservation was there.
        seen: Mutex<Vec<(Vec<String>, bool)>>,
    }

    fn id() -> BackupId {
        "20261120T064049Z-full".parse().unwrap()
    }

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    impl Bench {
        #[allow(
            clippy::disallowed_methods,
            reason = "the store's times are those of this clock"
        )]
        fn new(segments: u64, packs: u32, locked: &'static str, needed: Needed) -> Bench {
            let directory = tempfile::tempdir().unwrap();
            let bench = Bench {
                store: Distant {
                    inner: FileStore::open(directory.path(), 1).unwrap(),
                    locked,
                    running: AtomicUsize::new(0),
                    most: AtomicUsize::new(0),
                    deleted: Mutex::default(),
                },
                directory,
                layout: ClusterLayout::new("main", 7).unwrap(),
                host: Host::still(TimestampTz::from_system_time(SystemTime::now()), 5),
                segments,
                packs,
                increments: 0,
                copied: Vec::new(),
                needed,
                seen: Mutex::default(),
            };
            let segments = (1..=segments).map(|number| bench.segment(number));
            let packs = (1..=packs).map(|number| bench.pack(number));
            for key in segments.chain(packs).chain([bench.layout.begin(&id())]) {
                put(&bench.store, &key, b"content").unwrap();
            }
            bench
        }

        fn segment(&self, number: u64) -> Key {
            let name = SegmentNumber(number).name(TimelineId::FIRST, size());
            self.layout.wal_file(WalFileName::Segment(name.unwrap()))
        }

        fn pack(&self, number: u32) -> Key {
            self.layout.pack(&PartName { id: id(), number })
        }

        fn increment(&self, number: u64) -> Key {
            Key::new(format!("clusters/main/7/increments/{number:06}")).unwrap()
        }

        /// Puts so many increments.
        fn streamed(&mut self, count: u64) {
            self.increments = count;
            for number in 1..=count {
                put(&self.store, &self.increment(number), b"content").unwrap();
            }
        }

        /// The increments that are left.
        fn increments_left(&self) -> Vec<u64> {
            let all = 1..=self.increments;
            all.filter(|number| self.is_there(&self.increment(*number)))
                .collect()
        }

        /// The names of a backup's events, but for its reservation.
        fn events(&self, id: &BackupId) -> Vec<String> {
            let prefix = self.layout.subject(&id.to_string());
            let listed = self.store.list(&prefix).unwrap().into_iter();
            let names = listed.map(|one| one.name);
            names.filter(|name| name != "begin").collect()
        }

        /// Puts an event, without the time that a store takes to make it durable.
        fn record(&self, id: &BackupId, name: &str) {
            let key = self.layout.event(&id.to_string(), name).unwrap();
            let path = self.directory.path().join(key.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"event").unwrap();
        }

        /// Puts so many claims of copies that are over, and their releases.
        fn copied(&mut self, id: &BackupId, count: usize) {
            for n in 0..count {
                for kind in ["release", "claim"] {
                    self.record(id, &format!("20261101T000000Z-{kind}-{n:016x}"));
                }
            }
            self.copied.push(id.clone());
        }

        /// The keys with this in them of which the deletion was asked for, in order.
        fn asked(&self, part: &str) -> Vec<String> {
            let mut asked = self.store.deleted.lock().unwrap().clone();
            asked.retain(|key| key.contains(part));
            asked
        }

        /// Those of a backup's events.
        fn asked_of(&self, id: &BackupId) -> Vec<String> {
            self.asked(&format!("/events/{id}/"))
        }

        fn is_there(&self, key: &Key) -> bool {
            self.store.head(key).unwrap().is_some()
        }

        /// The segments that are left.
        fn left(&self) -> Vec<u64> {
            let all = 1..=self.segments;
            all.filter(|number| self.is_there(&self.segment(*number)))
                .collect()
        }

        fn run(&self, (round, pause): (Duration, Duration)) -> Outcome {
            let policy = Policy::default();
            let mut outcome = Outcome::default();
            let shown = self.decide(&BTreeSet::new()).unwrap().plan;
            let place: (&dyn Store, &Scope) = (&self.store, &self.layout);
            let mut run = Run::new(self, place, &policy, &self.host, &mut outcome);
            (run.round, run.pause) = (round, pause);
            run.run(&shown, &policy).unwrap();
            outcome
        }

        /// As [`Bench::run`], while somebody waits for the first claim to end. Also returns what that one sees then.
        fn run_beside_a_waiter<T: Send>(
            &self,
            times: (Duration, Duration),
            seen: impl FnOnce() -> T + Send,
        ) -> (Outcome, T) {
            let place: (&dyn Store, &Scope) = (&self.store, &self.layout);
            let subject = self.claims();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    while self.store.list(&subject).unwrap().is_empty() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    deletion::wait_on(place, &self.host).unwrap();
                    seen()
                });
                (self.run(times), waiter.join().unwrap())
            })
        }

        /// The folder of the claims of runs.
        fn claims(&self) -> String {
            self.layout.subject(self.layout.whole())
        }
    }

    impl Domain for Bench {
        fn decide(&self, _: &BTreeSet<BackupId>) -> Result<Decided> {
            let claims = self.store.list(&self.claims())?;
            let claims = claims.into_iter().map(|one| one.name).collect();
            let has_begin = self.is_there(&self.layout.begin(&id()));
            self.seen.lock().unwrap().push((claims, has_begin));
            let mut deletions = Vec::new();
            for id in &self.copied {
                let is_release = |name: &String| name.contains("-release-");
                let (releases, claims) = self.events(id).into_iter().partition(is_release);
                let spent = SpentClaims { releases, claims };
                deletions.push(Deletion::Spent(id.clone(), spent));
            }
            for number in (1..=self.packs).filter(|n| self.is_there(&self.pack(*n))) {
                deletions.push(Deletion::Packs(id(), number, number));
            }
            let left = self.left();
            if let (Some(first), Some(last)) = (left.first(), left.last()) {
                let (first, last) = (SegmentNumber(*first), SegmentNumber(*last));
                deletions.push(Deletion::Segments(TimelineId::FIRST, first, last));
            }
            let increments = self.increments_left().into_iter();
            deletions.extend(increments.map(|n| Deletion::Object(self.increment(n))));
            for name in self.events(&id()) {
                deletions.push(Deletion::Event(id().to_string(), name));
            }
            if has_begin {
                deletions.push(Deletion::Begin(id()));
            }
            let plan = ExpirePlan {
                deletions,
                needed: self.needed.clone(),
                ..ExpirePlan::default()
            };
            let wal = Some((self.layout.clone(), size()));
            Ok(Decided { plan, wal })
        }

        fn exists(&self, _: &BackupId) -> Result<bool> {
            Ok(false)
        }
    }

    /// WAL of a backup whose first segment is the first of the timeline.
    fn needed_before() -> Needed {
        let mut needed = Needed::default();
        needed.add(TimelineId::FIRST, SegmentNumber(0), SegmentNumber(0));
        needed
    }

    #[test]
    fn x37_who_waits_goes_on_between_rounds_and_each_round_has_its_claim_and_plan() {
        let bench = Bench::new(16, 2, "/000002", needed_before());
        let times = (9 * LATENCY, Duration::from_secs(2));
        let (outcome, left) = bench.run_beside_a_waiter(times, || bench.left());
        assert!(!left.is_empty() && left.len() < 16, "{left:?}");
        assert_eq!(bench.left(), [0; 0]);
        assert_eq!(outcome.deleted_segments, 16);
        // The pack that the store keeps is in each plan, and is counted once.
        assert!(bench.is_there(&bench.pack(2)));
        assert_eq!((outcome.locked_count, outcome.locked_bytes), (1, 7));
        assert_eq!(outcome.deleted_objects, 16 + 1 + 1);
        // The first plan is the shown one, without a claim. The reservation goes in the first round, before the rest of the WAL.
        let seen = bench.seen.lock().unwrap().clone();
        assert_eq!(seen[0], (Vec::new(), true));
        assert!(seen.len() > 2, "{seen:?}");
        let mut claims = BTreeSet::new();
        for (at, (standing, has_begin)) in seen.iter().enumerate().skip(1) {
            assert_eq!((standing.len(), *has_begin), (1, at == 1), "{seen:?}");
            assert!(claims.insert(standing.clone()), "{seen:?}");
        }
        assert!(bench.store.list(&bench.claims()).unwrap().is_empty());
    }

    #[test]
    fn x63_a_round_ends_among_increments_and_one_that_the_store_keeps_is_no_round() {
        let mut bench = Bench::new(0, 0, "/increments/000003", Needed::default());
        bench.streamed(24);
        let times = (9 * LATENCY, Duration::from_secs(2));
        let (outcome, left) = bench.run_beside_a_waiter(times, || bench.increments_left());
        assert!(left.len() > 1 && left.len() < 24, "{left:?}");
        assert_eq!(bench.increments_left(), [3]);
        assert_eq!((outcome.locked_count, bench.asked("/000003").len()), (1, 1));
        // The reservation of the backup that goes went in the first round.
        let seen = bench.seen.lock().unwrap().clone();
        assert!(seen.len() > 2 && !seen[2].1, "{seen:?}");
    }

    #[test]
    fn x38_several_go_at_once_but_for_wal_behind_a_backup() {
        let times = (Duration::from_secs(600), Duration::ZERO);
        let most = |bench: &Bench| bench.store.most.load(Ordering::SeqCst);
        let bench = Bench::new(30, 0, "", Needed::default());
        assert_eq!(bench.run(times).deleted_segments, 30);
        assert!((2..=AT_ONCE).contains(&most(&bench)), "{}", most(&bench));
        assert_eq!(bench.left(), [0; 0]);
        // A kill leaves no hole that anybody would call a gap.
        let bench = Bench::new(10, 0, "", needed_before());
        assert_eq!(bench.run(times).deleted_segments, 10);
        assert_eq!(most(&bench), 1);
        assert!(bench.asked("/wal/").is_sorted());
        assert_eq!(bench.asked("/wal/").len(), 10);
    }

    #[test]
    fn x38_wal_that_the_store_keeps_is_asked_for_once_and_ends_its_run() {
        let times = (Duration::from_secs(600), Duration::ZERO);
        // The first one alone, whatever could go at once.
        let bench = Bench::new(30, 0, "000000010000000000000001", Needed::default());
        let outcome = bench.run(times);
        assert_eq!((outcome.locked_count, outcome.deleted_segments), (1, 0));
        assert_eq!((bench.asked("/wal/").len(), bench.left().len()), (1, 30));
        // Another one: those of its step go, and none behind them.
        let bench = Bench::new(30, 0, "000000010000000000000004", Needed::default());
        let outcome = bench.run(times);
        assert_eq!((outcome.locked_count, outcome.deleted_segments), (1, 8));
        let left: Vec<u64> = [4].into_iter().chain(10..=30).collect();
        assert_eq!(bench.left(), left);
    }

    #[test]
    fn x39_claims_that_are_over_go_behind_all_else_and_only_while_the_round_lasts() {
        let kept: BackupId = "20261121T064049Z-full".parse().unwrap();
        let mut bench = Bench::new(0, 0, "", Needed::default());
        bench.record(&id(), "20261120T070000Z-verified-0000000000000001");
        bench.copied(&kept, 1_000);
        let times = (20 * LATENCY, Duration::ZERO);
        let (outcome, left) = bench.run_beside_a_waiter(times, || bench.events(&kept).len());
        // Who waits goes on long before the last of them would be gone.
        assert!((1_000..2_000).contains(&left), "{left}");
        assert_eq!(outcome.cleared, 2_000 - left as u64);
        assert_eq!(bench.store.most.load(Ordering::SeqCst), AT_ONCE);
        // The event and the reservation of the backup that goes are gone, and went before.
        assert_eq!(outcome.deleted_objects, 2);
        let asked = bench.asked("");
        let is_of = |id: &BackupId| {
            let part = format!("/events/{id}/");
            move |key: &String| key.contains(&part)
        };
        let first = asked.iter().position(is_of(&kept)).unwrap();
        let last = asked.iter().rposition(is_of(&id())).unwrap();
        assert!(last < first, "{last} {first}");
        assert_eq!(bench.asked_of(&id()).len(), 2);
        // Another run goes on.
        assert!(bench.run(times).cleared > 0);
    }

    #[test]
    fn x39_claims_that_the_store_keeps_are_asked_for_once_a_backup_and_hold_up_no_other() {
        let [one, another, free] = [
            "20251101T000000Z-full",
            "20251102T000000Z-full",
            "20261121T064049Z-full",
        ]
        .map(|id| id.parse::<BackupId>().unwrap());
        let mut bench = Bench::new(0, 0, "/20251", Needed::default());
        for id in [&one, &another, &free] {
            bench.copied(id, 20);
        }
        let outcome = bench.run((Duration::from_secs(600), Duration::ZERO));
        for id in [&one, &another] {
            assert_eq!((bench.asked_of(id).len(), bench.events(id).len()), (1, 40));
        }
        assert_eq!(bench.events(&free), [""; 0]);
        assert_eq!((outcome.cleared, outcome.uncleared), (40, 2));
        assert_eq!((outcome.locked_count, outcome.locked_bytes), (0, 0));
        assert_eq!((outcome.refused_count, outcome.locked.len()), (0, 0));
        // A run that is killed finds the releases by their claims.
        let asked = bench.asked_of(&free);
        assert!(asked[..20].iter().all(|key| key.contains("-release-")));
        assert!(asked[20..].iter().all(|key| key.contains("-claim-")));
    }
}
