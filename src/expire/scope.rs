//! Expiry of an aux scope: the rules of retention, and the log of Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use super::run::{Decided, Domain, Run};
use super::{Leftovers, Outcome, check_clock, judged_again, pin_clock};
use crate::error::Result;
use crate::host::Host;
use crate::plan::retention::aux_items::retention;
use crate::plan::retention::{Deletion, ExpirePlan, Fate, Policy};
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::{AuxBackup, AuxOutline};
use crate::repo::scope::Scope;
use crate::repo::slot_map::{self, Useless};
use crate::repo::source;
use crate::repo::stored_log::StoredLog;

/// The backups of a scope, its log, and records of slots that later ones repeat.
type Stored = (Catalog<AuxBackup>, StoredLog, Vec<Useless>);

/// One run of expiry on one aux scope in one repository.
pub struct ExpireScope<'a> {
    /// Repository that holds the scope.
    pub repository: &'a Repository,
    /// Scope on which expiry runs.
    pub scope: &'a Scope,
    /// The rules of retention.
    pub policy: Policy,
    /// The host that it runs on.
    pub host: &'a Host,
    /// Leftovers of unfinished writes in the repository; all its scopes share one.
    pub leftovers: Leftovers,
}

impl ExpireScope<'_> {
    /// Computes what a run would do, and changes nothing.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says.
    pub fn plan(&self) -> Result<ExpirePlan> {
        self.judge(&self.first_reading()?, &self.policy)
    }

    /// Computes what a run would do, and what has gone in the end: the plan of the same policy without a grace period.
    ///
    /// # Errors
    /// As [`ExpireScope::plan`].
    pub fn plan_to_the_end(&self) -> Result<(ExpirePlan, ExpirePlan)> {
        let stored = self.first_reading()?;
        let plan = self.judge(&stored, &self.policy)?;
        let at_once = Policy {
            grace: Duration::ZERO,
            ..self.policy.clone()
        };
        Ok((plan, self.judge(&stored, &at_once)?))
    }

    /// Reads what is there for a plan.
    fn first_reading(&self) -> Result<Stored> {
        let mut stored = self.read()?;
        let (store, now) = (self.repository.store(), self.host.now());
        stored.0.unfinished = self.leftovers.shown(store, self.scope, now)?;
        Ok(stored)
    }

    /// Marks what `shown`, a plan made just now, does not keep, and deletes what was marked before the grace period.
    ///
    /// # Errors
    /// As [`super::Expire::run`].
    pub fn run(&self, shown: &ExpirePlan, outcome: &mut Outcome) -> Result<()> {
        let place = (self.repository.store(), self.scope);
        Run::new(self, place, &self.policy, self.host, outcome).run(shown, &self.policy)
    }

    /// Reads what is there but for leftovers. A scope whose registration is lost, damaged or forged is left alone.
    fn read(&self) -> Result<Stored> {
        let store = self.repository.store();
        let mut catalog = Reading::begin(store, self.scope)?.everything()?;
        let registered = source::registration(store, self.scope);
        if let Some(None) = catalog.found(registered)? {
            let lost = source::lost(self.scope).to_string();
            catalog.unreadable.push(lost);
        }
        check_clock(store, &catalog, self.host.now())?;
        let is_redis = self.scope.kind() == Some(slot_map::CONTENT);
        let log = match is_redis {
            true => StoredLog::read(store, self.scope)?,
            false => StoredLog::default(),
        };
        let has_slots = is_redis && self.policy.requested.is_none();
        let useless = match has_slots {
            true => slot_map::useless(store, self.scope, self.host)?,
            false => Vec::new(),
        };
        Ok((catalog, log, useless))
    }

    fn judge(&self, (catalog, log, useless): &Stored, policy: &Policy) -> Result<ExpirePlan> {
        let policy = Policy {
            store_clock: pin_clock(self.repository.store(), catalog)?,
            ..policy.clone()
        };
        let mut plan = retention(catalog, log, &policy, self.host.now());
        let slots = useless.iter().filter(|_| plan.withheld.is_empty());
        let slots = slots.map(|(day, name)| Deletion::Event(day.clone(), name.clone()));
        plan.deletions.extend(slots.collect::<Vec<_>>());
        if !self.scope.is_known_kind() {
            let kind = self.scope.kind().unwrap_or_default();
            for backup in &mut plan.backups {
                backup.fate = Fate::Keep;
            }
            plan = ExpirePlan {
                withheld: vec![format!(
                    "nothing is marked or deleted, because this version does not know content of kind \"{kind}\""
                )],
                backups: plan.backups,
                ..ExpirePlan::default()
            };
        }
        Ok(plan)
    }
}

impl Domain for ExpireScope<'_> {
    fn decide(&self, spared: &BTreeSet<BackupId>) -> Result<Decided> {
        let mut stored = self.read()?;
        let (store, now) = (self.repository.store(), self.host.now());
        stored.0.unfinished = self.leftovers.to_delete(store, self.scope, now)?;
        let judge = |policy: &Policy| self.judge(&stored, policy);
        let plan = judged_again(self.policy.clone(), spared, judge)?;
        Ok(Decided { plan, wal: None })
    }

    fn exists(&self, id: &BackupId) -> Result<bool> {
        let stored = AuxOutline::stored(self.repository.store(), self.scope, id)?;
        Ok(stored.root().is_some())
    }
}
