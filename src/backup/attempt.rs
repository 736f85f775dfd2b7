//! The steps of every backup around its content: the commit, and what becomes of one that failed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::claim::Claim;
use crate::repo::event::{self, Event, Recorded, Writer};
use crate::repo::id::{BackupId, PartKind};
use crate::repo::root::{BackupKind, Head, Map};
use crate::repo::scope::{self, Scope};
use crate::snapshot::writer::Written;
use crate::store::{Key, Published, Store};

/// For so long the time of a store counts that deletions have asked for.
const TIME_AGE: Duration = Duration::from_secs(60);

/// A backup whose id is reserved.
pub struct Attempt<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    host: &'a Host,
    id: BackupId,
    /// From here on an error does not say that the root is not there.
    is_committing: bool,
}

/// The end of the packs of a backup that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// They are deleted.
    All,
    /// So many stay, and the next backup goes on from them.
    ForNext(usize),
    /// So many are still there: somebody may use them, or they could not be deleted.
    Left(usize),
    /// The repository does not say what is there.
    Unknown,
    /// All are there, for the backup may be complete.
    Nothing,
}

/// How the root of one kind of content is written and read.
pub trait Commit {
    /// Writes the root.
    ///
    /// # Errors
    /// Errors of the store.
    fn write(&self) -> Result<Published>;

    /// Returns whether the root that is stored is this one.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    fn is_stored(&self) -> Result<bool>;
}

impl<'a> Attempt<'a> {
    /// An attempt that has not committed.
    pub fn new(
        (store, scope): (&'a dyn Store, &'a Scope),
        id: &BackupId,
        host: &'a Host,
    ) -> Attempt<'a> {
        Attempt {
            store,
            scope,
            host,
            id: id.clone(),
            is_committing: false,
        }
    }

    /// Returns head and map of the root that this attempt writes: that of a full backup without a prior.
    pub fn head_and_map(
        &self,
        label: &str,
        prior: Option<&BackupId>,
        (start_time, stop_time): (TimestampTz, TimestampTz),
        written: Written,
    ) -> (Head, Map) {
        let head = Head {
            id: self.id.clone(),
            nonce: event::nonce(self.host.random.as_ref()),
            backup_kind: match prior {
                Some(_) => BackupKind::Incremental,
                None => BackupKind::Full,
            },
            prior: prior.cloned(),
            label: label.to_owned(),
            start_time,
            stop_time,
            file_count: written.file_count,
            size_bytes: written.size_bytes,
            stored_bytes: written.stored_bytes,
            program: event::PROGRAM.into(),
            features: Vec::new(),
        };
        let map = Map {
            shards: written.shards,
            packs: written.packs,
        };
        (head, map)
    }

    /// Writes the root. An answer that was lost is not taken for a failure, nor a failure for an answer. `prior` is the backup whose parts it names.
    ///
    /// # Errors
    /// `Conflict` when a janitor gave the id up; `Damaged` when a part of the prior was found damaged meanwhile; what the store says.
    pub fn commit(&mut self, root: &dyn Commit, prior: Option<&BackupId>) -> Result<()> {
        self.publish(root)?;
        prior.map_or(Ok(()), |prior| self.check_inherited(prior))
    }

    /// Has the store keep for another period what earlier backups have stored and this one needs, and what opens the repository. The backup
    /// goes on where it cannot: it is no worse than without a lock. That lasts where there is much, and `tick` is called meanwhile.
    ///
    /// # Errors
    /// Those of `tick`.
    pub fn extend_locks(&self, map: &Map, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let layers = map.shards.iter().flat_map(|shard| &shard.layers);
        let layers = layers.map(|layer| (PartKind::Layer, &layer.key));
        let packs = map.packs.iter().map(|pack| (PartKind::Pack, &pack.key));
        let foreign = layers.chain(packs).filter(|(_, part)| part.id != self.id);
        let keys = foreign.map(|(kind, part)| self.scope.part(kind, part));
        let mut places: BTreeSet<String> = keys
            .filter_map(|key| key.parent().map(str::to_owned))
            .collect();
        let fixed = [scope::marker(), self.scope.registration()];
        places.extend(fixed.map(|key| key.to_string()));
        places.insert(scope::KEYS.to_owned());
        for place in places {
            let mut is_stopped = false;
            let mut tick = || tick().inspect_err(|_| is_stopped = true);
            match self.store.extend_locks(&place, &mut tick) {
                Ok(_) => {}
                Err(e) if is_stopped => return Err(e),
                Err(e) => {
                    self.host.progress.warn(&format!(
                        "what backup \"{}\" needs of earlier ones can be deleted once its first lock ends: {e}",
                        self.id
                    ));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, root: &dyn Commit) -> Result<()> {
        let (store, key) = (self.store, self.scope.manifest(&self.id));
        fault::pause("backup-commits");
        self.is_committing = true;
        match root.write() {
            Ok(Published::Created) => Ok(()),
            // Our own, when an answer was lost on the way; else a janitor's tombstone.
            Ok(Published::Exists) => match root.is_stored()? {
                true => self.settle(&key),
                false => Err(err!(
                    Conflict,
                    "backup \"{}\" was given up by another program",
                    self.id
                )
                .hint("A janitor took it for a leftover. Take the backup again.")),
            },
            Err(e) => {
                // Refused for want of room, the root is proven absent: then the rest may go, and makes room.
                let refused = matches!(e.code(), Code::Full | Code::ReadOnly | Code::Denied);
                let absent = matches!(store.head(&key), Ok(None));
                self.is_committing = !(refused && absent);
                Err(e)
            }
        }
    }

    /// Looks once more for damage of the prior's parts. A verify that finds some records it, and then looks for roots that name them: one of
    /// the two sees the other, so this backup counts as damaged from the beginning.
    fn check_inherited(&self, prior: &BackupId) -> Result<()> {
        let events = event::read_all(self.store, self.scope, &prior.to_string())?;
        let is_part = |e: &&Recorded| {
            let object = e.event.object.as_deref();
            object.is_some_and(|key| self.scope.named_part(key).is_some())
        };
        let Some(damage) = event::damage(&events).into_iter().find(is_part) else {
            return Ok(());
        };
        let told = |text: &Option<String>| text.clone().unwrap_or_default();
        let (object, detail) = (told(&damage.event.object), told(&damage.event.detail));
        let writer = Writer::of(self.host);
        let own = writer.damaged(&self.id.to_string(), &object, &detail);
        writer.record(self.store, self.scope, &own)?;
        Err(err!(
            Damaged,
            "backup \"{}\" builds on \"{prior}\", of which \"{object}\" was found damaged while it was taken: {detail}",
            self.id
        )
        .hint("No plan uses it. Take the backup again: it builds on neither of them."))
    }

    /// An object that another call, or another program, gave its name may not be durable yet.
    fn settle(&self, key: &Key) -> Result<()> {
        match self.store.open(key)? {
            Some(object) => object.settle(),
            None => Err(err!(Unreachable, "object \"{key}\" came and went")),
        }
    }

    /// Records that the root exists, so that its loss is noticed. The backup is complete without.
    pub fn record_completed(&self, completed: Result<Event>) {
        let writer = Writer::of(self.host);
        let recorded = completed.and_then(|event| writer.record(self.store, self.scope, &event));
        if let Err(e) = recorded {
            self.host.progress.warn(&format!(
                "backup \"{}\" is complete, but that could not be recorded: should its root be lost, nothing will tell ({e})",
                self.id
            ));
        }
    }

    /// Deletes what an uncommitted backup wrote, as far as it may. The janitor deletes the rest: it knows the id by its `begin`. With `keeps_packs` packs
    /// stay, for the next backup to go on from.
    ///
    /// Packs stay as well where another backup may take them over, or has: it claims the id before it reads them, and not before this one's claim is old.
    pub fn discard(&self, claim: &Claim<'_>, keeps_packs: bool) -> Discarded {
        if self.is_committing {
            return Discarded::Nothing;
        }
        let listed = self.parts(PartKind::Pack);
        let is_known = listed.is_ok();
        let packs = listed.unwrap_or_default();
        let keeps_packs = keeps_packs && !packs.is_empty();
        let mut deleted = 0;
        if !keeps_packs && !self.may_be_claimed() {
            // A store is asked for its time now and then.
            let mut asked: Option<Instant> = None;
            for key in &packs {
                if asked.is_none_or(|at| at.elapsed() > TIME_AGE) {
                    if !claim.is_fresh() {
                        break;
                    }
                    asked = Some(Instant::now());
                }
                deleted += usize::from(self.store.delete(key).is_ok());
            }
        }
        for key in self.parts(PartKind::Layer).unwrap_or_default() {
            let _ = self.store.delete(&key);
        }
        let _ = self.store.delete(&self.scope.server_manifest(&self.id));
        let _ = self.store.delete(&self.scope.relations(&self.id));
        match (keeps_packs, packs.len() - deleted) {
            (true, kept) => Discarded::ForNext(kept),
            (false, 0) if !is_known => Discarded::Unknown,
            (false, 0) => Discarded::All,
            (false, left) => Discarded::Left(left),
        }
    }

    fn parts(&self, kind: PartKind) -> Result<Vec<Key>> {
        let prefix = self.scope.parts(kind, Some(&self.id));
        let keys = self.store.list(&prefix)?.into_iter();
        let keys = keys.filter_map(|l| Key::new(format!("{prefix}/{}", l.name)).ok());
        Ok(keys.collect())
    }

    /// Whether anybody else has claimed the id, or that is not known.
    fn may_be_claimed(&self) -> bool {
        let events = event::read_all(self.store, self.scope, &self.id.to_string());
        let is_other = |e: &Recorded| {
            let purpose = e.event.purpose.as_deref();
            purpose.is_some_and(|purpose| purpose != "backup")
        };
        events.map_or(true, |events| events.iter().any(is_other))
    }
}
