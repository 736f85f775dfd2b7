//! Backups of aux scopes (format, sections 10.6, 15 and 16.1).
//!
//! Write order: registration → `begin` → claim → packs → layers → the source looked at again → the root, which is the commit point → `completed`.

use super::attempt::{Attempt, Commit};
use super::reservation;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::catalog;
use crate::repo::claim::Claim;
use crate::repo::clock;
use crate::repo::event::Writer;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxContent, AuxOutline, AuxRoot, NODES};
use crate::repo::root::{BackupKind, Stored};
use crate::repo::scope::Scope;
use crate::repo::source::{self, Registration};
use crate::snapshot::filekey::Naming;
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::writer::{self, SnapshotWriter, Written};
use crate::store::{Published, Store};

/// How a backup of content is taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// The operator's name for it: one line.
    pub label: String,
    /// How the snapshot is written.
    pub snapshot: writer::Options,
}

/// Takes a full backup of content into `repository`, under `name`.
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
) -> Result<AuxRoot> {
    let scope = Scope::aux(kind.name(), name)?;
    let store = repository.store();
    let identity = kind.identity();
    let own = identity
        .as_deref()
        .map(|i| source::source_of(kind.name(), i));
    let named = (own.as_deref(), identity.as_deref());
    let registered = source::register(store, &scope, named, host.now())?;
    source::require(store, &scope, &registered, own.as_deref())?;
    let newest = newest_end(store, &scope)?;
    check_order(newest, host.now())?;
    let id = reservation::reserve(store, &scope, BackupKind::Full, own.as_deref(), host)?;
    let mut claim = Claim::take((store, &scope), Writer::of(host), &id, "backup", None)?;
    let mut taking = Taking {
        store,
        scope: &scope,
        host,
        options,
        registered,
        source: own,
        newest,
        attempt: Attempt::new((store, &scope), &id, host),
    };
    let taken = taking.run(kind, &mut claim);
    if taken.is_err() {
        taking.attempt.discard();
    }
    claim.release(host.progress.as_ref());
    taken
}

/// When the newest backup ended.
fn newest_end(store: &dyn Store, scope: &Scope) -> Result<Option<TimestampTz>> {
    let mut newest = None;
    for id in catalog::ids(store, scope)? {
        match AuxOutline::stored(store, scope, &id) {
            Ok(Stored::Root(root)) => newest = newest.max(Some(root.stop_time)),
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

/// One backup under way.
struct Taking<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    host: &'a Host,
    options: &'a Options,
    registered: Registration,
    source: Option<String>,
    newest: Option<TimestampTz>,
    attempt: Attempt<'a>,
}

impl Taking<'_> {
    fn run(&mut self, kind: &mut dyn Kind, claim: &mut Claim<'_>) -> Result<AuxRoot> {
        let start_time = self.host.now();
        let (produced, written) = self.copy(kind, claim)?;
        // Another source may have taken the name over meanwhile.
        source::require(
            self.store,
            self.scope,
            &self.registered,
            self.source.as_deref(),
        )?;
        self.host.check_stop()?;
        claim.check()?;
        let (root, member) = self.root(produced, written, start_time);
        let commit = RootOfContent {
            store: self.store,
            scope: self.scope,
            root: &root,
            member,
        };
        self.attempt.commit(&commit)?;
        let id = root.head.id.to_string();
        let completed = Writer::of(self.host).event("completed", &id);
        self.attempt.record_completed(Ok(completed));
        Ok(root)
    }

    fn copy(&self, kind: &mut dyn Kind, claim: &mut Claim<'_>) -> Result<(Produced, Written)> {
        let id = claim.id().clone();
        let options = &self.options.snapshot;
        std::thread::scope(|threads| {
            let writer = SnapshotWriter::start(threads, self.store, self.scope, &id, options);
            let produced = kind.produce(&mut Work {
                writer: &writer,
                naming: Naming::Tree,
                host: self.host,
                tick: &mut || {
                    self.host.check_stop()?;
                    claim.keep()
                },
            })?;
            self.host.check_stop()?;
            Ok::<_, Error>((produced, writer.finish()?))
        })
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
        let (head, map) = self
            .attempt
            .head_and_map(&self.options.label, None, times, written);
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
