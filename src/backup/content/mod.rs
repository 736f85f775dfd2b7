//! Backups of aux scopes (format, sections 10.6, 15 and 16.1).
//!
//! Write order: registration → `begin` → claim → packs → layers → the source looked at again → the root, which is the commit point → `completed`.

mod prior;

use super::attempt::{Attempt, Commit};
use super::incremental::complete;
use super::reservation;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::catalog;
use crate::repo::claim::Claim;
use crate::repo::clock;
use crate::repo::event::Writer;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxContent, AuxOutline, AuxRoot, CHUNKS, NODES};
use crate::repo::root::{BackupKind, Stored};
use crate::repo::scope::Scope;
use crate::repo::source::{self, Registration};
use crate::snapshot::filekey::Naming;
use crate::snapshot::flatten::{LAYERS, flatten};
use crate::snapshot::kind::{Before, Kind, Produced, Work};
use crate::snapshot::reader::Snapshot;
use crate::snapshot::writer::{self, SnapshotWriter, Written};
use crate::store::{Published, Store};
use crate::ticking::ticking;

/// How a backup of content is taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// The operator's name for it: one line.
    pub label: String,
    /// How the snapshot is written.
    pub snapshot: writer::Options,
    /// Everything is stored, whatever an earlier backup has.
    pub is_full: bool,
    /// A scope that another source wrote goes on with this one.
    pub takes_over: bool,
    /// The source was asked for no earlier: a snapshot of a filesystem may have been made since.
    pub began: TimestampTz,
}

/// A backup that was taken.
#[derive(Debug)]
pub struct Taken {
    /// Its root; that of the prior where nothing is new.
    pub root: AuxRoot,
    /// Whether there is a new backup.
    pub is_new: bool,
    /// Why it is a full one though that was not asked for; none of a kind whose backups always are.
    pub why_full: Option<String>,
    /// How many files its prior has; none of a full one.
    pub prior_files: Option<u64>,
}

/// Takes a backup of content into `repository`, under `name`. It stores what changed since the newest good backup of the same source, if the kind can tell.
///
/// # Errors
/// `Refused` when another source writes the scope, or the clocks differ; `Damaged` when the registration is lost; those of the kind; what the
/// store says. Nothing of the backup is visible then.
pub fn take(
    repository: &Repository,
    name: &str,
    kind: &mut dyn Kind,
    options: &Options,
    host: &Host,
) -> Result<Taken> {
    let scope = Scope::aux(kind.name(), name)?;
    let store = repository.store();
    let identity = kind.identity();
    let own = identity
        .as_deref()
        .map(|i| source::source_of(kind.name(), i));
    let named = (own.as_deref(), identity.as_deref());
    let registered = source::register(store, &scope, named, host.now())?;
    let writer = Writer::of(host);
    let confirmed = options.takes_over.then_some(&writer);
    source::require_or_continue(store, &scope, &registered, own.as_deref(), confirmed)?;
    let newest = newest_end(store, &scope, host.now())?;
    check_order(newest, host.now())?;
    let (held, mut why_full) = match options.is_full || !kind.takes_changes() {
        true => (None, None),
        false => match prior::hold(store, &scope, own.as_deref(), host)? {
            Ok(held) => (Some(held), None),
            // The first backup needs no reason.
            Err(why) => (None, newest.map(|_| why)),
        },
    };
    let (prior, mut prior_claim) = held.map(|held| (held.root, held.claim)).unzip();
    let prior_files = prior.as_ref().map(|prior| prior.head.file_count);
    let whose = (registered, own, newest, prior_files);
    let upon = (prior.as_ref(), prior_claim.as_mut());
    let mut taken = take_upon((store, &scope), (kind, options, host), &whose, upon);
    if let Some(claim) = prior_claim {
        claim.release(host.progress.as_ref());
    }
    if let (Err(e), Some(prior)) = (&taken, &prior)
        && e.is_damage()
    {
        let id = &prior.head.id;
        host.progress.warn(&format!(
            "backup \"{id}\" cannot be built on, and everything is stored: {e}. pitr verify says what else is damaged"
        ));
        why_full = Some(format!("backup \"{id}\" is damaged"));
        taken = take_upon((store, &scope), (kind, options, host), &whose, (None, None));
    }
    let taken = taken?;
    let is_new = taken.is_some();
    let root = taken.or(prior);
    Ok(Taken {
        root: root.ok_or_else(|| err!(Internal, "a backup without a prior has nothing new"))?,
        is_new,
        why_full,
        prior_files,
    })
}

/// The registration of the scope, the own source, the end of the newest backup, and how many files the prior has.
type Whose = (
    Registration,
    Option<String>,
    Option<TimestampTz>,
    Option<u64>,
);

/// Reserves the id, takes the backup, and takes back what was stored when it fails. None where nothing is new, and the kind wants no backup then.
fn take_upon(
    (store, scope): (&dyn Store, &Scope),
    (kind, options, host): (&mut dyn Kind, &Options, &Host),
    (registered, own, newest, prior_files): &Whose,
    (prior, mut prior_claim): (Option<&AuxRoot>, Option<&mut Claim<'_>>),
) -> Result<Option<AuxRoot>> {
    let backup_kind = match prior {
        Some(_) => BackupKind::Incremental,
        None => BackupKind::Full,
    };
    let before = prior
        .map(|root| {
            let mut tick = || prior_claim.as_mut().map_or(Ok(()), |claim| claim.keep());
            let snapshot = ticking(&mut tick, || Snapshot::open(store, scope, root));
            snapshot.map(|snapshot| (root, snapshot.spooling(&host.scratch)))
        })
        .transpose()?;
    let id = reservation::reserve(store, scope, backup_kind, own.as_deref(), host)?;
    let mut claim = Claim::take((store, scope), Writer::of(host), &id, "backup", None)?;
    let mut taking = Taking {
        store,
        scope,
        host,
        options,
        registered: registered.clone(),
        source: own.clone(),
        newest: *newest,
        prior_files: *prior_files,
        before: before.as_ref(),
        attempt: Attempt::new((store, scope), &id, host),
    };
    let taken = taking.run(kind, &mut Claims(&mut claim, prior_claim));
    if !matches!(taken, Ok(Some(_))) {
        taking.attempt.discard(&claim, false);
    }
    claim.release(host.progress.as_ref());
    taken
}

/// When the newest backup ended. The time of the store counts of one that ended by a clock that was ahead (format, section 16.1).
fn newest_end(store: &dyn Store, scope: &Scope, now: TimestampTz) -> Result<Option<TimestampTz>> {
    let mut newest = None;
    for id in catalog::ids(store, scope)? {
        match AuxOutline::stored(store, scope, &id) {
            Ok(Stored::Root(root)) => {
                let is_ahead = root.stop_time > now.saturating_add(clock::MAY_DIFFER);
                let meta = match is_ahead {
                    true => store.head(&scope.manifest(&id))?,
                    false => None,
                };
                newest = newest.max(Some(root.end(meta.map(|meta| meta.modified))));
            }
            Ok(_) => {}
            // A root that cannot be read orders nothing.
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(newest)
}

/// Requires a clock by which this backup is the newest one, but for what clocks may differ.
fn check_order(newest: Option<TimestampTz>, now: TimestampTz) -> Result<()> {
    match newest {
        Some(newest) if newest > now.saturating_add(clock::MAY_DIFFER) => {
            Err(clock::differs(now, &format!("the newest backup ended at {newest}"))
                .hint("Nothing was stored: backups are ordered by their ends. Correct the clock that is wrong: timedatectl set-ntp true"))
        }
        _ => Ok(()),
    }
}

/// Pure: whether somebody waits for this backup, and not for its prior. One that begins before the moment itself helps nobody, by a clock that is ahead.
fn is_awaited(wanted: Option<TimestampTz>, (prior, own): (TimestampTz, TimestampTz)) -> bool {
    wanted.is_some_and(|wanted| prior < wanted && wanted <= own)
}

/// The claims of a backup: its own, and that of its prior.
struct Claims<'c, 'a, 'p>(&'c mut Claim<'a>, Option<&'c mut Claim<'p>>);

impl Claims<'_, '_, '_> {
    fn keep(&mut self) -> Result<()> {
        self.0.keep()?;
        self.1.as_mut().map_or(Ok(()), |prior| prior.keep())
    }

    fn check(&self) -> Result<()> {
        self.0.check()?;
        self.1.as_ref().map_or(Ok(()), |prior| prior.check())
    }
}

/// One backup under way.
struct Taking<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    host: &'a Host,
    options: &'a Options,
    registered: Registration,
    source: Option<String>,
    newest: Option<TimestampTz>,
    /// How many files the backup before has, also where that one is damaged.
    prior_files: Option<u64>,
    /// The prior, and its map.
    before: Option<&'a (&'a AuxRoot, Snapshot<'a>)>,
    attempt: Attempt<'a>,
}

impl Taking<'_> {
    fn run(
        &mut self,
        kind: &mut dyn Kind,
        claims: &mut Claims<'_, '_, '_>,
    ) -> Result<Option<AuxRoot>> {
        let start_time = self.options.began;
        let (produced, written) = self.copy(kind, claims)?;
        let serves = |prior: &AuxRoot| {
            let times = (prior.head.start_time, start_time);
            prior.map.shards == written.shards && !is_awaited(kind.wanted_since(), times)
        };
        if kind.takes_changes_alone() && self.before.is_some_and(|(prior, _)| serves(prior)) {
            return Ok(None);
        }
        let has_chunks = written.has_chunks || self.has_chunks_of_prior();
        let (mut root, member) = self.root(produced, written, start_time);
        if has_chunks {
            root.content.content_features.push(CHUNKS.to_owned());
        }
        let features = kind.features().iter().map(|f| (*f).to_owned());
        root.content.content_features.extend(features);
        if let Some((prior, _)) = self.before {
            // Layers that were not put upon the prior's have the counts of this run.
            let own = kind.begins_anew().then(|| root.head.clone());
            let counted = own.as_ref().unwrap_or(&prior.head);
            (root.head, root.map) = complete(
                (self.store, self.scope),
                (counted, &prior.map),
                (root.head, root.map),
                Naming::Tree,
                &mut || self.tick(claims),
            )?;
        }
        if kind.takes_changes_alone() {
            self.check_files(root.head.file_count)?;
        }
        let map = &root.map;
        self.attempt.extend_locks(map, &mut || self.tick(claims))?;
        // Another source may have taken the name over meanwhile.
        source::require(
            self.store,
            self.scope,
            &self.registered,
            self.source.as_deref(),
        )?;
        self.host.check_stop()?;
        claims.check()?;
        let commit = RootOfContent {
            store: self.store,
            scope: self.scope,
            root: &root,
            member,
        };
        let prior = self.before.map(|(prior, _)| &prior.head.id);
        self.attempt.commit(&commit, prior)?;
        let id = root.head.id.to_string();
        let completed = Writer::of(self.host).event("completed", &id);
        self.attempt.record_completed(Ok(completed));
        Ok(Some(root))
    }

    /// Requires files where the prior has some: nobody looks on, and a filesystem that is not mounted has none.
    fn check_files(&self, count: u64) -> Result<()> {
        match self.prior_files {
            Some(files @ 1..) if count == 0 => Err(err!(
                SourceMissing,
                "the source has no file any more, and the backup before has {files}"
            )
            .hint(
                "No backup was taken. Mount its filesystem.\nIf it is meant to be empty, say so once: pitr files backup NAME",
            )),
            _ => Ok(()),
        }
    }

    fn has_chunks_of_prior(&self) -> bool {
        let features = self.before.map(|(root, _)| &root.content.content_features);
        features.is_some_and(|features| features.iter().any(|f| f == CHUNKS))
    }

    fn tick(&self, claims: &mut Claims<'_, '_, '_>) -> Result<()> {
        self.host.check_stop()?;
        claims.keep()
    }

    fn copy(
        &self,
        kind: &mut dyn Kind,
        claims: &mut Claims<'_, '_, '_>,
    ) -> Result<(Produced, Written)> {
        let id = claims.0.id().clone();
        let mut options = self.options.snapshot.clone();
        let mut flat_bytes = 0;
        if let Some((_, snapshot)) = self.before
            && !kind.begins_anew()
        {
            let flat = flatten(
                snapshot,
                (self.store, self.scope),
                &id,
                fault::lowered(LAYERS),
                options.shard_files,
                &mut || self.tick(claims),
            )?;
            (options.prior, options.layers) = (flat.shards, flat.layers);
            flat_bytes = flat.stored_bytes;
        }
        let (produced, mut written) = std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, self.store, self.scope, &id, &options);
            if let Some((_, snapshot)) = self.before {
                writer.reuse(snapshot, self.host);
            }
            let produced = kind.produce(&mut Work {
                writer: &writer,
                naming: Naming::Tree,
                prior: self.before.map(|(root, snapshot)| Before {
                    snapshot,
                    start_time: root.head.start_time,
                    turns_since: root.head.start_time,
                }),
                host: self.host,
                tick: &mut || self.tick(claims),
            })?;
            self.host.check_stop()?;
            let written = writer.finish().map_err(of_own_map)?;
            Ok::<_, Error>((produced, written))
        })?;
        written.stored_bytes += flat_bytes;
        Ok((produced, written))
    }

    fn root(
        &self,
        produced: Produced,
        written: Written,
        start_time: TimestampTz,
    ) -> (AuxRoot, serde_json::Value) {
        let after = self.newest.map(|t| TimestampTz(t.0.saturating_add(1)));
        let stop_time = self.host.now().max(after.unwrap_or(start_time));
        let times = (start_time, stop_time);
        let prior = self.before.map(|(root, _)| &root.head.id);
        let (head, map) = self
            .attempt
            .head_and_map(&self.options.label, prior, times, written);
        let root = AuxRoot {
            head,
            map,
            content: AuxContent {
                scope: self.scope.prefix(),
                source: self.source.clone(),
                unstable_count: produced.unstable_count,
                incomplete_count: produced.incomplete_count,
                lock_until: None,
                content_features: vec![NODES.to_owned()],
                expire_features: Vec::new(),
                naming: "tree".to_owned(),
                base: produced.base,
            },
        };
        (root, produced.member)
    }
}

/// An error of the map that is written: a fault of it is no damage of the prior, and a full backup would have it, too.
fn of_own_map(e: Error) -> Error {
    match e.is_damage() {
        true => e.with_code(Code::Internal),
        false => e,
    }
}

struct RootOfContent<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    root: &'a AuxRoot,
    member: serde_json::Value,
}

impl Commit for RootOfContent<'_> {
    fn write(&self) -> Result<Published> {
        self.root
            .commit(self.store, self.scope, self.member.clone())
    }

    fn is_stored(&self) -> Result<bool> {
        let stored = AuxOutline::stored(self.store, self.scope, &self.root.head.id)?;
        Ok(stored
            .root()
            .is_some_and(|root| root.nonce == self.root.head.nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_is_not_reached_wants_no_backup() {
        let is_awaited = |wanted: Option<i64>| {
            let wanted = wanted.map(TimestampTz);
            is_awaited(wanted, (TimestampTz(10), TimestampTz(20)))
        };
        assert!(!is_awaited(None));
        // The prior began late enough.
        assert!(!is_awaited(Some(10)));
        assert!(is_awaited(Some(11)) && is_awaited(Some(20)));
        // A clock that was ahead has marked it: each walk would leave one more.
        assert!(!is_awaited(Some(21)) && !is_awaited(Some(i64::MAX)));
    }
}
