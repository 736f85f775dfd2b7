//! The check of an aux scope: the common rules, and nothing about WAL or pages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::check::Check;
use super::depth::Depth;
use super::oldest::{self, ReadParts, packs_of_backups};
use super::packs::{Chosen, Mapped, Nothing, check_layers, open_map, read_packs, walk_map};
use super::record::{Recorder, Stood, damaged_backups};
use super::{About, FindingKind, Report, epoch, events, keys, log};
use crate::error::Result;
use crate::host::Host;
use crate::pg::segment::SegmentNumber;
use crate::repo::catalog::{Catalog, Manifest, Needs, Parts, Reading};
use crate::repo::event::Recorded;
use crate::repo::id::BackupId;
use crate::repo::portion::{Portion, ReadBack, Share};
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxOutline, AuxRoot};
use crate::repo::runs::Runs;
use crate::repo::scope::Scope;
use crate::repo::source;
use crate::snapshot::reader::SnapshotRoot;

/// A check of one aux scope in one repository.
pub struct VerifyScope<'a> {
    /// Repository that holds the scope.
    pub repository: &'a Repository,
    /// Scope to check.
    pub scope: &'a Scope,
    /// How much is read.
    pub depth: Depth,
    /// Threads that read.
    pub threads: usize,
    /// The host that it runs on.
    pub host: &'a Host,
}

impl VerifyScope<'_> {
    /// Checks everything, and records which backups are damaged.
    ///
    /// # Errors
    /// `Interrupted`; what the store says, but for damage, which is a finding.
    pub fn run(&self) -> Result<Report> {
        let store = self.repository.store();
        store.read_medium();
        let begun = (self.host.now(), Instant::now());
        let catalog = self.read()?;
        let stood = Stood::of(catalog.ids.values().map(|subject| &subject.events));
        let check = Check::new(store, self.scope, self.threads, begun, self.host);
        registration(&check)?;
        events::events(&check)?;
        events::reservations(&check, &catalog)?;
        let lost = lost(&catalog);
        events::find_lost(&check, &catalog, &lost, true);
        keys::check_scope(&check, &catalog)?;
        let logs = log::check(&check, &self.depth)?;
        log::check_runbooks(&check)?;
        let newest = catalog.committed().last();
        let newest = newest.map(|(id, _, _)| check.scope.manifest(id));
        epoch::check(&check, self.repository, newest.as_slice())?;
        let recorder = self.recorder();
        let is_by_turns = matches!(self.depth, Depth::Oldest(_));
        for (id, subject) in catalog.ids.iter().rev() {
            match subject.manifest {
                Manifest::Committed(_) if is_by_turns => {}
                Manifest::Committed(_) => {
                    backup(&check, id, self.depth.of_packs(&subject.events))?;
                    recorder.record_step(&check);
                }
                Manifest::Unreadable(_) => unreadable(&check, id)?,
                Manifest::Absent | Manifest::Tombstone => {}
            }
        }
        if let Depth::Oldest(budget) = &self.depth {
            let there = Portion {
                logs: logs.clone(),
                ..packs_of_backups(&catalog)
            };
            let read_back = ReadBack::new(&catalog.checks, &[], self.host.now());
            let wanted = (&read_back, budget);
            oldest::read((&check, &recorder), (&catalog, &there), wanted, &check)?;
        }
        check.warn_healed();
        check.warn_archived();
        recorder.record_read(&check);
        let catalog = match check.is_disturbed() {
            true => self.read_again(&check)?,
            false => catalog,
        };
        Ok(self.record((&catalog, &stood), report(check, &catalog, logs)))
    }

    fn read(&self) -> Result<Catalog<AuxBackup>> {
        Reading::begin(self.repository.store(), self.scope)?.everything()
    }

    fn recorder(&self) -> Recorder<'_> {
        Recorder {
            repository: self.repository,
            scope: self.scope,
            host: self.host,
        }
    }

    /// Reads the catalog again: expiry may have deleted the missing objects meanwhile. Only objects that are still
    /// there, or still needed, count.
    fn read_again(&self, check: &Check<'_>) -> Result<Catalog<AuxBackup>> {
        let catalog = self.read()?;
        check.forget_gone(&catalog);
        Ok(catalog)
    }

    fn record(&self, (catalog, stood): (&Catalog<AuxBackup>, &Stood), report: Report) -> Report {
        let damaged = damaged_backups(&report.findings);
        let events_of = |subject: &str| -> &[Recorded] {
            let id = subject.parse::<BackupId>().ok();
            let subject = id.and_then(|id| catalog.ids.get(&id));
            subject.map_or(&[], |s| s.events.as_slice())
        };
        let read_back = ReadBack::new(&catalog.checks, &[], self.host.now());
        let read = read_back.all().union(&report.read);
        let was_read = |id: &BackupId| {
            let root = catalog.ids.get(id).and_then(|subject| subject.root());
            root.is_some_and(|root| {
                let packs = Portion::of_packs(root.needs().1);
                packs.minus(&read).is_empty()
            })
        };
        let sound = report.backups.iter().filter(|(_, is_sound)| *is_sound);
        let whole: Vec<&BackupId> = sound.map(|(id, _)| id).filter(|id| was_read(id)).collect();
        let is_deep = self.depth == Depth::Everything;
        let known: BTreeMap<String, &[Recorded]> = whole
            .iter()
            .filter(|id| is_deep && !report.uncompared.contains(**id))
            .map(|id| (id.to_string(), events_of(&id.to_string())))
            .collect();
        let recorder = self.recorder();
        let recorded = recorder.record(&damaged, (&known, stood), &whole, &events_of);
        let recorded =
            recorded.and_then(|()| recorder.record_sharing(|| self.read(), &report.findings));
        report.with_record(recorded)
    }
}

fn lost(catalog: &Catalog<AuxBackup>) -> Vec<BackupId> {
    let lost = catalog.ids.iter().filter(|(_, s)| s.lost().is_some());
    lost.map(|(id, _)| id.clone()).collect()
}

/// A lost registration stops writers, not readers.
fn registration(check: &Check<'_>) -> Result<()> {
    let key = check.scope.registration();
    let read = source::registration(check.store, &check.scope);
    match check.settle(read, key.as_str(), About::Other)? {
        Some(None) => {
            let detail = "the registration is lost: nothing is written before it is made again";
            check.find(FindingKind::Missing, key.as_str(), detail, About::Other);
        }
        Some(Some(_)) => check.count(0),
        None => {}
    }
    Ok(())
}

fn unreadable(check: &Check<'_>, id: &BackupId) -> Result<()> {
    let key = check.scope.manifest(id);
    let read = AuxOutline::stored(check.store, &check.scope, id);
    let about = About::Backup(id.clone());
    check.settle(read, key.as_str(), about).map(|_| ())
}

impl ReadParts for Check<'_> {
    fn log_bytes(&self, replid: &str, number: SegmentNumber) -> Result<u64> {
        log::bytes(self, replid, number)
    }

    fn segments(&self, portion: &Portion) -> Result<()> {
        log::read(self, &portion.logs)
    }

    fn packs(&self, id: &BackupId, packs: &Parts) -> Result<()> {
        let Some(root) = self.root(id, AuxRoot::read(self.store, &self.scope, id))? else {
            return Ok(());
        };
        let view = SnapshotRoot::from(&root);
        match open_map(self, view)? {
            Some(snapshot) => {
                let chosen = (&snapshot, Chosen::Only(packs));
                read_packs(self, view, chosen, Mapped::nothing(self), &Nothing).map(|_| ())
            }
            None => Ok(()),
        }
    }

    fn structure(&self, id: &BackupId) -> Result<()> {
        backup(self, id, Chosen::Directories)
    }
}

fn backup(check: &Check<'_>, id: &BackupId, chosen: Chosen<'_>) -> Result<()> {
    let Some(root) = check.root(id, AuxRoot::read(check.store, &check.scope, id))? else {
        return Ok(());
    };
    check.count(0);
    let phase = format!("verify backup {id} of {}", check.scope.prefix());
    let bytes = Some(root.head.size_bytes);
    check.host.progress.phase(&phase, bytes);
    let member = AuxRoot::member(check.store, &check.scope, id).and(root.check_content());
    let key = check.scope.manifest(id);
    let about = About::Backup(id.clone());
    if check.settle(member, key.as_str(), about)?.is_none() {
        return Ok(());
    }
    let view = SnapshotRoot::from(&root);
    if !check_layers(check, &view)? {
        return Ok(());
    }
    let Some((snapshot, mapped)) = walk_map(check, view)? else {
        return Ok(());
    };
    let chosen = chosen.of(check, &snapshot);
    if matches!(chosen, Chosen::Rest) {
        check.found().uncompared.insert(id.clone());
    }
    read_packs(check, view, (&snapshot, chosen), mapped, &Nothing).map(|_| ())
}

fn report(check: Check<'_>, catalog: &Catalog<AuxBackup>, logs: BTreeMap<String, Runs>) -> Report {
    let now = check.host.now();
    let read_back = ReadBack::new(&catalog.checks, &[], now).and(now, check.told());
    let mut found = check.take_found();
    let of_backup = |about: &About| match about {
        About::Backup(id) => Some(id.clone()),
        _ => None,
    };
    let bad: BTreeSet<_> = found.abouts().filter_map(|(_, a)| of_backup(a)).collect();
    for finding in &mut found.findings {
        if let Some(id) = of_backup(&finding.about) {
            finding.costs = vec![format!("backup {id} cannot be restored")];
        }
    }
    let ids = catalog.committed().map(|(id, ..)| id.clone());
    let there = Portion {
        logs,
        ..packs_of_backups(catalog)
    };
    check.report(found, ids, &bad, Share::of(&read_back, &there))
}
