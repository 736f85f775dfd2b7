//! A repository that is open for restoring one cluster, with what it holds.

use std::collections::BTreeMap;

use super::human;
use super::reading::Reading;
use super::replayed;
use super::session::Session;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::control::ControlFile;
use crate::pg::parameters::Parameters;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::Plan;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::BackupRoot;
use crate::repo::root::cluster::LeftOutDatabase;
use crate::repo::root::outline::Outline;
use crate::restore::databases::{self, Wanted};
use crate::restore::job::{Job, Request};
use crate::snapshot::reader::Snapshot;
use crate::snapshot::spare::Spares;
use crate::wal::inventory::Inventory;

const CONTROL_LIMIT_BYTES: usize = 64 << 10;

/// A repository open for restoring one cluster.
pub struct Opened {
    /// The repository and the settings that led to it.
    pub reading: Reading,
    /// Its content.
    pub inventory: Inventory,
    /// The cluster's place in it.
    pub layout: ClusterLayout,
}

/// Opens the repository, and reads what it holds of the cluster.
///
/// # Errors
/// Those of [`Reading::open`] and [`Inventory::read`].
pub fn open(session: &Session, reading: Reading) -> Result<Opened> {
    let inventory = reading.inventory(session)?;
    Opened::new(reading, inventory)
}

impl Opened {
    /// Joins a repository and its content.
    ///
    /// # Errors
    /// Those of [`ClusterLayout::new`].
    pub fn new(reading: Reading, inventory: Inventory) -> Result<Opened> {
        Ok(Opened {
            layout: inventory.layout()?,
            reading,
            inventory,
        })
    }

    /// The repository that a job was begun with, where it can be opened: else this one, which may have the same backup.
    ///
    /// # Errors
    /// Those of [`Inventory::read`].
    pub fn where_it_began(self, session: &Session, job: &Job) -> Result<Opened> {
        let is_it = |r: &Reading| r.configured.location.to_string() == job.repository;
        if is_it(&self.reading) {
            return Ok(self);
        }
        let other = self.reading.others(session).find(is_it);
        match other {
            Some(other) => open(session, other),
            None => Ok(self),
        }
    }

    /// The lives that the WAL of a plan belongs to; `None` where the repository that it was made on does not tell.
    pub fn lives(&self, session: &Session, plan: &Plan) -> Option<Vec<String>> {
        let asked = self.where_planned(session, plan, |_, inventory| Ok(lives_of(inventory, plan)));
        asked.ok()??
    }

    /// Requires that the WAL of a plan that was made earlier is still what it was, and of the servers whose `lives` were followed then.
    ///
    /// # Errors
    /// Those of [`Reading::check_again`]; `Refused` where another server's is followed by now.
    pub fn check_again(
        &self,
        session: &Session,
        plan: &Plan,
        lives: Option<&Vec<String>>,
    ) -> Result<()> {
        let checked = self.where_planned(session, plan, |reading, inventory| {
            let followed = lives_of(inventory, plan);
            if let (Some(before), Some(followed)) = (lives, &followed)
                && before != followed
            {
                return Err(err!(
                    Refused,
                    "since the restore begun here was planned, \"pitr wal resolve\" gave its WAL to another server"
                )
                .hint("Nothing more was written. What is followed now is restored into an empty directory. The other server's WAL is still there: pitr wal resolve --undo EVENT, which pitr wal conflicts names, and the same command goes on."));
            }
            reading.check_again(session, inventory, plan)
        })?;
        if checked.is_none() {
            session.warn(&format!(
                "the WAL of this restore was planned in repository \"{}\", which cannot be opened, and no other has all of it: it is not looked at again",
                plan.repository
            ));
        }
        Ok(())
    }

    /// Asks the repository whose WAL a plan was made on, else one that has all of it. Its address may have changed, or it is lost. `None` where there is none.
    ///
    /// # Errors
    /// Those of [`Inventory::read`] and of `ask`.
    pub fn where_planned<T>(
        &self,
        session: &Session,
        plan: &Plan,
        ask: impl FnOnce(&Reading, &Inventory) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.inventory.repository == plan.repository {
            return ask(&self.reading, &self.inventory).map(Some);
        }
        let others: Vec<Reading> = self.reading.others(session).collect();
        let is_it = |r: &&Reading| r.repository.store().location() == plan.repository;
        if let Some(other) = others.iter().find(is_it) {
            let inventory = other.inventory(session)?;
            return ask(other, &inventory).map(Some);
        }
        if replayed::has_all(&self.inventory, plan)? {
            return ask(&self.reading, &self.inventory).map(Some);
        }
        for other in &others {
            let Ok(inventory) = other.inventory(session) else {
                continue;
            };
            if replayed::has_all(&inventory, plan)? {
                return ask(other, &inventory).map(Some);
            }
        }
        Ok(None)
    }

    /// The other repositories, for objects that are damaged in this one.
    pub fn spares<'a>(&'a self, session: &'a Session) -> Spares<'a> {
        Spares::new(|| {
            let others = self.reading.all_others(session);
            let others = others.map(|(name, other)| (name, other.map(|o| o.repository)));
            others.collect()
        })
    }

    /// Adds to a plan the parameters that pg_control of its backup requires.
    pub fn add_parameters(&self, session: &Session, plan: &mut Plan) {
        let Some(id) = plan.backup.as_ref().map(|b| b.id.clone()) else {
            return;
        };
        match self.parameters(session, &id) {
            Ok(parameters) => plan.require(parameters),
            Err(e) => plan.warnings.push(unknown_parameters(&id, &e)),
        }
    }

    /// Reads the parameters that pg_control of a standby's backup and the WAL after it require. A part that cannot be read is a warning.
    ///
    /// # Errors
    /// Those of [`Reading::parameters_behind`].
    pub fn parameters_of_standby(
        &self,
        session: &Session,
        id: &BackupId,
        timeline: TimelineId,
    ) -> Result<BTreeMap<String, u32>> {
        let mut known = Parameters::default();
        match self.parameters(session, id) {
            Ok(parameters) => known = parameters,
            Err(e) => session.warn(&unknown_parameters(id, &e)),
        }
        if let Some(backup) = self.inventory.backups.iter().find(|b| b.id == *id) {
            let inventory = &self.inventory;
            let behind = self
                .reading
                .parameters_behind(session, inventory, backup, timeline)?;
            known = known.max(behind.unwrap_or_default());
        }
        Ok(known.iter().map(|(n, v)| (n.to_owned(), v)).collect())
    }

    fn parameters(&self, session: &Session, id: &BackupId) -> Result<Parameters> {
        let store = self.reading.repository.store();
        let root = BackupRoot::read(store, &self.layout, id)?
            .ok_or_else(|| err!(NotFound, "the backup does not exist any more"))?;
        let spares = self.spares(session);
        let snapshot = Snapshot::open_with(store, &self.layout, &root, Some(&spares))?;
        control(&snapshot).map(|(parameters, _)| parameters)
    }

    /// Reads the root of a backup whose parts can be read, too.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`; those of [`Reading::require_thawed`].
    pub fn root(&self, session: &Session, id: &BackupId) -> Result<BackupRoot> {
        let root = BackupRoot::read(self.reading.repository.store(), &self.layout, id)?
            .ok_or_else(|| err!(NotFound, "backup \"{id}\" does not exist"))?;
        let outline = Outline::of(&root)?;
        self.reading
            .require_thawed(session, &self.layout, &outline)?;
        Ok(root)
    }

    /// Requires that the backup of a plan can be read. A backup that has expired meanwhile is left to the restore, which finds that.
    ///
    /// # Errors
    /// Those of [`Reading::require_thawed`].
    pub fn require_thawed(&self, session: &Session, plan: &Plan) -> Result<()> {
        let store = self.reading.repository.store();
        let Some(backup) = plan.backup.as_ref().filter(|_| store.is_remote()) else {
            return Ok(());
        };
        match Outline::read(store, &self.layout, &backup.id)? {
            Some(root) => self.reading.require_thawed(session, &self.layout, &root),
            None => Ok(()),
        }
    }

    /// The job that brings this backup to where `request` wants it, before tablespaces are placed.
    ///
    /// # Errors
    /// Those of [`Opened::root`].
    pub fn job(
        &self,
        session: &Session,
        request: Request,
        backup: &BackupId,
        plan: Option<Plan>,
    ) -> Result<(Job, BackupRoot)> {
        let root = self.root(session, backup)?;
        let job = Job {
            format: Job::FORMAT,
            request,
            planned: session.host.now(),
            repository: self.reading.configured.location.to_string(),
            system_identifier: root.content.system_identifier,
            backup: root.head.id.clone(),
            backup_nonce: root.head.nonce.clone(),
            tablespaces: Vec::new(),
            left_out: Vec::new(),
            restore_command: self.reading.commands(session).0,
            plan,
            timeline: None,
            parameters: BTreeMap::new(),
            lives: None,
        };
        Ok((job, root))
    }

    /// Returns the databases of a backup whose content a restore leaves out.
    ///
    /// # Errors
    /// Those of [`databases::left_out`].
    pub fn left_out(
        &self,
        session: &Session,
        root: &BackupRoot,
        wanted: &Wanted,
    ) -> Result<Vec<LeftOutDatabase>> {
        let (store, spares) = (self.reading.repository.store(), self.spares(session));
        let snapshot = Snapshot::open_with(store, &self.layout, root, Some(&spares))?;
        let chosen = databases::left_out(&snapshot, root.content.major, wanted)?;
        databases::check_asked(&root.content.left_out_databases, &chosen, wanted)?;
        Ok(chosen)
    }

    /// Takes up a job that was interrupted, and says so.
    ///
    /// # Errors
    /// Those of [`Opened::root`].
    pub fn resume(&self, session: &Session, job: &Job) -> Result<(Job, BackupRoot)> {
        session.note(&format!(
            "resuming the restore that was planned at {}",
            human::time(job.planned)
        ));
        Ok((job.clone(), self.root(session, &job.backup)?))
    }
}

/// The lives that the WAL of a plan belongs to, where the plan was made on this repository.
fn lives_of(inventory: &Inventory, plan: &Plan) -> Option<Vec<String>> {
    let parts = plan.segments_needed.parts.iter();
    let lives = parts.flat_map(|part| inventory.lives.along(part.first, part.last));
    (inventory.repository == plan.repository).then(|| lives.collect())
}

/// As [`Opened::add_parameters`], of a backup whose map is open; returns the content of pg_control.
pub fn add_parameters_of(
    plan: &mut Plan,
    (id, snapshot): (&BackupId, &Snapshot<'_>),
) -> Option<Vec<u8>> {
    match control(snapshot) {
        Ok((parameters, content)) => {
            plan.require(parameters);
            Some(content)
        }
        Err(e) => {
            plan.warnings.push(unknown_parameters(id, &e));
            None
        }
    }
}

/// Reads pg_control of a backup: the parameters that it requires, and its content.
fn control(snapshot: &Snapshot<'_>) -> Result<(Parameters, Vec<u8>)> {
    let content = snapshot
        .read_file("global/pg_control", CONTROL_LIMIT_BYTES)?
        .ok_or_else(|| err!(Damaged, "the backup does not hold it"))?;
    let parameters = (&ControlFile::parse(&content)?.settings).into();
    Ok((parameters, content))
}

fn unknown_parameters(id: &BackupId, e: &Error) -> String {
    format!(
        "pg_control of backup {id} cannot be read ({e}): recovery stops where the configuration has a lower max_connections, \
         max_worker_processes, max_wal_senders, max_prepared_transactions or max_locks_per_transaction than the server had"
    )
}
