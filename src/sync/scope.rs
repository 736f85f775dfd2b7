//! One aux scope, from one repository into another (format, section 12).
//!
//! Order: registration and `source` events → the first and the last slots of a shard, which make it one → per backup, oldest first: reservation, claims,
//! packs, layers, root, `completed` → log → its other slots → pins.

use std::collections::BTreeSet;

use super::parts::Parts;
use super::{Options, Pair};
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::plan::lacking::scope::{LackingBackups, lacking, unwanted_log};
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::claim::Claim;
use crate::repo::id::BackupId;
use crate::repo::json;
use crate::repo::log_keys::{self, Objects};
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxOutline, AuxRoot};
use crate::repo::scope::Scope;
use crate::repo::slot_map;
use crate::repo::source;
use crate::repo::stored_log::StoredLog;
use crate::snapshot::reader::Snapshot;
use crate::store::Store;

/// One aux scope, from one repository into another.
pub struct ScopeTransfer<'a> {
    /// The repositories, and what was done so far.
    pub pair: Pair<'a>,
}

/// A root that is copied: of an encrypted one what it says without keys, of a plain one all of it.
struct Copying {
    outline: AuxOutline,
    whole: Option<(AuxRoot, Vec<u8>)>,
}

impl Copying {
    /// The packs and layers that it names.
    fn parts(&self) -> Parts {
        let packs = self.outline.packs().collect();
        (packs, self.outline.layers().collect())
    }
}

impl<'a> ScopeTransfer<'a> {
    /// Puts together what is to be done for one scope of `from`.
    ///
    /// # Errors
    /// `Refused` when they do not have the same keys; `Conflict` when the two hold content of different sources; what the stores say.
    pub fn new(
        repositories: (&'a Repository, &'a Repository),
        scope: &Scope,
        options: Options<'a>,
        host: &'a Host,
    ) -> Result<ScopeTransfer<'a>> {
        let pair = Pair::new(repositories, scope, options, host)?;
        let transfer = ScopeTransfer { pair };
        transfer.check_sources()?;
        Ok(transfer)
    }

    /// One source in common is enough: a second repository may have been registered after another host had taken over.
    fn check_sources(&self) -> Result<()> {
        let pair = &self.pair;
        let Some(there) = sources(pair.to.store(), &pair.scope)? else {
            return Ok(());
        };
        let here = sources(pair.from.store(), &pair.scope)?.unwrap_or_default();
        match here.is_disjoint(&there) {
            false => Ok(()),
            true => Err(err!(
                Conflict,
                "\"{}\" is content of another source in \"{}\"",
                pair.scope.prefix(),
                pair.to.store().location()
            )
            .hint("Nothing of it was copied: two sources have one name. Give one of them another name.")),
        }
    }

    /// Returns the objects that the other side lacks. Nothing is changed.
    ///
    /// # Errors
    /// Errors of the stores.
    pub fn plan(&self) -> Result<LackingBackups> {
        let pair = &self.pair;
        let read = |repository: &Repository| -> Result<Catalog<AuxBackup>> {
            Reading::begin(repository.store(), &pair.scope)?.everything()
        };
        let (from, to) = (read(pair.from)?, read(pair.to)?);
        let objects = |repository: &Repository| log_keys::objects(repository.store(), &pair.scope);
        let (own, theirs) = (objects(pair.from)?, objects(pair.to)?);
        let stored = |repository: &'a Repository, objects: &Objects| {
            StoredLog::of((repository.store(), &pair.scope), objects)
        };
        let log = match pair.options.everything {
            true => StoredLog::default(),
            false => stored(pair.from, &own)?.union(stored(pair.to, &theirs)?),
        };
        let slots = |repository: &Repository| slot_map::keys(repository.store(), &pair.scope);
        let (slots, known) = (slots(pair.from)?, slots(pair.to)?);
        let (rules, now) = (pair.options.rules, pair.host.now());
        let lacking = lacking(&from, &to, &log, (pair.options.everything, rules), now);
        let unwanted = unwanted_log((&from, &to), &lacking.backups, &log, rules, now);
        let mut wanted = own.without(&theirs);
        wanted.retain(|key| !unwanted.contains(key));
        Ok(LackingBackups {
            log: wanted,
            slots: slots.difference(&known).cloned().collect(),
            ..lacking
        })
    }

    /// Copies what a plan made just now says.
    ///
    /// # Errors
    /// `Refused` when the clocks of host and store differ; what the stores say, but for damage, which is part of the report; `Interrupted`.
    /// Run again, it goes on.
    pub fn run(&self, lacking: &LackingBackups) -> Result<()> {
        let pair = &self.pair;
        if !lacking.backups.is_empty() {
            pair.check_clocks()?;
        }
        if !self.register()? {
            return Ok(());
        }
        self.copy_sources()?;
        let (first, rest) = lacking.slots.split_at(lacking.slots.len().min(1));
        let (rest, last) = rest.split_at(rest.len().saturating_sub(1));
        for key in first.iter().chain(last) {
            pair.copy_event(key)?;
        }
        for id in &lacking.backups {
            self.copy_backup(id)?;
        }
        pair.copy_log(&lacking.log)?;
        for key in rest {
            pair.check_stop()?;
            pair.copy_event(key)?;
        }
        pair.copy_pins(&lacking.pins, &lacking.backups)
    }

    /// Copies the registration. `false` where neither side has one: nothing is written without.
    fn register(&self) -> Result<bool> {
        let pair = &self.pair;
        if source::registration(pair.to.store(), &pair.scope)?.is_some() {
            return Ok(true);
        }
        let key = pair.scope.registration();
        let copied = pair.copy_small(&key, json::LIMIT_BYTES, &|bytes| {
            source::check(pair.from.store(), &pair.scope, bytes).map(|_| ())
        });
        let is_there = pair.settle(key.as_str(), copied)?;
        if !is_there && pair.from.store().head(&key)?.is_none() {
            pair.problem(key.as_str(), &source::lost(&pair.scope));
        }
        Ok(is_there)
    }

    fn copy_sources(&self) -> Result<()> {
        let pair = &self.pair;
        let known = source::events(pair.to.store(), &pair.scope)?;
        for one in source::events(pair.from.store(), &pair.scope)? {
            if !known.iter().any(|k| k.name == one.name) {
                pair.copy_event(&pair.scope.event(pair.scope.whole(), &one.name)?)?;
            }
        }
        Ok(())
    }

    /// Copies a backup; what is wrong with it is taken down.
    fn copy_backup(&self, id: &BackupId) -> Result<()> {
        self.pair.check_stop()?;
        self.pair.settle_backup(id, self.copy_claimed(id))
    }

    /// `None` when it is not to be had any more.
    fn root(&self, id: &BackupId) -> Result<Option<Copying>> {
        let pair = &self.pair;
        let store = pair.from.store();
        if pair.is_sealed() {
            let stored = AuxOutline::stored(store, &pair.scope, id)?.root();
            return Ok(stored.map(|outline| Copying {
                outline,
                whole: None,
            }));
        }
        let read = AuxRoot::read(store, &pair.scope, id)?;
        let Some((root, bytes)) = read.zip(pair.root_bytes(id)?) else {
            return Ok(None);
        };
        // Plain content is checked while it is copied.
        root.check_content()?;
        Ok(Some(Copying {
            outline: AuxOutline::of(&root)?,
            whole: Some((root, bytes)),
        }))
    }

    /// `false` when it is not to be had any more.
    fn copy_claimed(&self, id: &BackupId) -> Result<bool> {
        let pair = &self.pair;
        let Some(root) = self.root(id)? else {
            return Ok(false);
        };
        pair.reserve(id)?;
        let (from, to) = (pair.from.store(), pair.to.store());
        let claim = |store, id: &BackupId| {
            Claim::take((store, &pair.scope), pair.writer(), id, "sync", None)
        };
        let mut claims = vec![claim(to, id)?];
        // Parts of former backups that are there stay there, too.
        for other in root.outline.writers().filter(|other| *other != id) {
            claims.push(claim(to, other)?);
        }
        let until = "while it is copied";
        let progress = pair.host.progress.as_ref();
        claims.extend(Claim::if_possible(
            claim(from, id),
            (from, id),
            until,
            progress,
        )?);
        pair.wait_for_deletion(&mut || claims.iter_mut().try_for_each(Claim::keep))?;
        let copied = self.copy_content(&root, &mut claims);
        for claim in claims {
            claim.release(progress);
        }
        copied
    }

    fn copy_content(&self, root: &Copying, claims: &mut [Claim<'_>]) -> Result<bool> {
        let pair = &self.pair;
        let id = &root.outline.id;
        let Some(events) = pair.events_of(id)? else {
            return Ok(false);
        };
        let whole = root.whole.as_ref();
        let packs = whole.map(|(whole, _)| whole.map.packs.iter().map(|p| p.size_bytes).sum());
        pair.host
            .progress
            .phase(&format!("copy backup {id}"), packs);
        let mut tick = || claims.iter_mut().try_for_each(Claim::keep);
        match whole {
            None => {
                pair.copy_sealed_parts(root.parts(), &mut tick)?;
            }
            Some((whole, _)) => {
                let snapshot = Snapshot::open(pair.from.store(), &pair.scope, whole)?;
                pair.copy_parts((id, &whole.map), &snapshot, &mut tick)?;
            }
        }
        let bytes = whole.map(|(_, bytes)| bytes.as_slice());
        pair.complete((id, root.parts(), bytes), &events, claims, &|writer| {
            writer.event("completed", &id.to_string())
        })
    }
}

/// The sources of a scope: that of its registration, of its newest root where that is lost, and those of its events. `None` where nothing is stored of
/// it.
fn sources(store: &dyn Store, scope: &Scope) -> Result<Option<BTreeSet<Option<String>>>> {
    let is_empty = store.list(&scope.prefix())?.is_empty();
    if is_empty {
        return Ok(None);
    }
    let mut sources = BTreeSet::new();
    match source::registration(store, scope)? {
        Some(registered) => drop(sources.insert(registered.source)),
        None => sources.extend(source::of_newest_root(store, scope)?),
    }
    let events = source::events(store, scope)?.into_iter();
    sources.extend(events.map(|e| e.event.source));
    Ok(Some(sources))
}
