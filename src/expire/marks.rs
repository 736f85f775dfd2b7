//! Expiry of the marks of a recovery set, and of the runbooks that no mark names any more.

use std::collections::{BTreeMap, BTreeSet};

use super::run::{Decided, Domain, Run};
use super::{Outcome, check_now};
use crate::error::Result;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::plan::retention::{Deletion, ExpirePlan, Policy};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::runbook;
use crate::repo::scope::Scope;
use crate::repo::set_mark;

/// One run of expiry on the marks of one set in one repository.
pub struct ExpireMarks<'a> {
    /// Repository that holds the marks.
    pub repository: &'a Repository,
    /// Scope of the set.
    pub scope: &'a Scope,
    /// The ends of the oldest remaining backups from which a log goes on, by the prefix of their scope.
    pub oldest: &'a BTreeMap<String, TimestampTz>,
    /// The host that it runs on.
    pub host: &'a Host,
}

impl ExpireMarks<'_> {
    /// Computes what a run would do, and changes nothing.
    ///
    /// # Errors
    /// `Refused` when the clocks differ; what the store says.
    pub fn plan(&self) -> Result<ExpirePlan> {
        let store = self.repository.store();
        check_now(store, self.host.now())?;
        let spent = set_mark::spent(store, self.scope, self.oldest, self.host)?;
        let unnamed = set_mark::unnamed(store, self.scope, self.host)?;
        let event = |one: &set_mark::Spent| Deletion::Event(one.day.clone(), one.name.clone());
        let mut deletions: Vec<Deletion> = spent.iter().map(event).collect();
        for name in &unnamed.names {
            deletions.push(Deletion::Object(runbook::named(self.scope, name)?));
        }
        Ok(ExpirePlan {
            deletions,
            spent,
            runbooks: unnamed.names,
            withheld: unnamed.withheld.into_iter().collect(),
            ..ExpirePlan::default()
        })
    }

    /// Deletes what nobody can use, as it is found anew.
    ///
    /// # Errors
    /// As [`super::Expire::run`].
    pub fn run(&self, shown: &ExpirePlan, outcome: &mut Outcome) -> Result<()> {
        let place = (self.repository.store(), self.scope);
        let policy = Policy::default();
        Run::new(self, place, &policy, self.host, outcome).run(shown, &policy)
    }
}

impl Domain for ExpireMarks<'_> {
    fn decide(&self, _spared: &BTreeSet<BackupId>) -> Result<Decided> {
        let plan = self.plan()?;
        Ok(Decided { plan, wal: None })
    }

    fn exists(&self, _id: &BackupId) -> Result<bool> {
        Ok(false)
    }
}
