//! The rules of retention that hold for a cluster, or for other content, in one repository.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::one_place::{Elsewhere, beside, elsewhere, is_the_same};
use super::scopes::cluster_of;
use super::session::Session;
use super::target::{configured_zone, host_zone};
use crate::config::{self, Flags, Retention, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::plan::retention::copies::{Copies, Other, WalElsewhere};
use crate::plan::retention::{Commands, Policy, whole};
use crate::plan::target_time::Zone;
use crate::repo::catalog::{Needs, Reading, Reduced};
use crate::repo::drilled;
use crate::repo::id::BackupId;
use crate::repo::repository::Registration;
use crate::repo::scope::Scope;
use crate::repo::slot_map;
use crate::store::Store;
use crate::wal::survey::Survey;

/// The error where no rule says which backups stay.
pub fn no_rule() -> Error {
    err!(Config, "it is not said how many backups to keep").hint(
        "Nothing was deleted.\nSay how many with --keep N, at least 1 (pitr expire --keep 7 --dry-run), or write rules such as keep_daily = 30 into [clusters.NAME.retention] of the configuration: pitr help configuration. Where a unit or a job expires, the number is in its command: systemctl cat pitr-expire, or run in [jobs.expire]",
    )
}

/// The commands about other content. A shard of a Redis cluster is backed up with that.
pub fn commands(settings: &Settings, scope: &Scope) -> Commands {
    let (kind, name) = (scope.kind().unwrap_or_default(), scope.name());
    let cluster = cluster_of(settings, &scope.prefix());
    let backed_up = cluster.map_or(name, |cluster| cluster.name);
    Commands {
        backup: format!("pitr {kind} backup {backed_up}"),
        of: format!(" --of {kind}:{name}"),
    }
}

/// The zone of this host, else UTC.
fn own_zone(session: &Session) -> Zone {
    host_zone(&session.environment).unwrap_or(Zone::UTC)
}

/// The policy of a repository that is given copies.
fn receiver(rules: Retention, zone: Zone) -> Policy {
    Policy {
        zone: Some(zone),
        rules,
        confirm_burst: true,
        ..Policy::default()
    }
}

/// Why it is not known what the backups of a repository need that was read.
const UNKNOWN: &str = "objects that say which WAL its backups need cannot be read";

/// A repository of which it is not known which WAL it needs.
#[derive(Debug, Serialize)]
pub struct Unread {
    pub repository: String,
    /// The cause.
    pub why: String,
}

/// The rules of the configuration, and what the command line says in their place.
pub struct Rules {
    settings: Settings,
    /// `--keep`, for this run.
    keep: Option<u32>,
    /// `--default-keep`: for what no rule of the configuration holds.
    default_keep: Option<u32>,
    /// Every repository of the configuration, also where the command line names one.
    all: Vec<config::Repository>,
}

impl Rules {
    /// Takes the rules out of the settings.
    pub fn new(session: &Session, settings: Settings, keep: Option<u32>) -> Rules {
        let flags = Flags {
            repository: None,
            ..session.flags.clone()
        };
        // A place on the command line needs no configuration.
        let all = Settings::load(&flags, &session.environment);
        Rules {
            all: all.map_or_else(|_| settings.repositories.clone(), |s| s.repositories),
            settings,
            keep,
            default_keep: None,
        }
    }

    /// These, and a number of backups for what has no rule.
    pub fn with_default(self, default_keep: Option<u32>) -> Rules {
        Rules {
            default_keep,
            ..self
        }
    }

    /// Requires that some rule says what is kept.
    ///
    /// # Errors
    /// `Config` without any.
    pub fn check(&self) -> Result<()> {
        let clusters = self.settings.clusters.iter().map(|c| &c.retention);
        let repositories = self.settings.repositories.iter().map(|r| &r.retention);
        let mut all = clusters
            .chain(repositories)
            .chain([&self.settings.retention]);
        match self.keep.or(self.default_keep).is_some() || all.any(Retention::keeps_backups) {
            true => Ok(()),
            false => Err(no_rule()),
        }
    }

    /// The rules for a cluster, or for other content, in a repository; `None` where none says which backups stay.
    pub fn of(&self, cluster: Option<&str>, configured: &config::Repository) -> Option<Retention> {
        let configured = self.settings.retention_of(cluster, configured);
        let rules = Retention {
            last: self.keep,
            ..Retention::default()
        }
        .or(&configured);
        if rules.keeps_backups() {
            return Some(rules);
        }
        let last = Some(self.default_keep?);
        Some(Retention { last, ..rules })
    }

    /// The zone in which days begin: that of the narrowest section that names one, else the host's, else UTC.
    ///
    /// # Errors
    /// `Config` when it does not exist.
    pub fn zone(
        &self,
        session: &Session,
        cluster: Option<&str>,
        configured: &config::Repository,
    ) -> Result<Zone> {
        match self.settings.zone_of(cluster, configured) {
            Some(text) => configured_zone(text),
            None => Ok(own_zone(session)),
        }
    }

    /// The rules of a repository that is given copies, without gates of age; `None` where none says which backups stay.
    ///
    /// # Errors
    /// Those of [`Rules::zone`].
    pub fn receiving(
        &self,
        session: &Session,
        configured: &config::Repository,
        cluster: Option<&str>,
    ) -> Result<Option<Policy>> {
        let rules = self.of(cluster, configured);
        let zone = || self.zone(session, cluster, configured);
        let policy = |rules| zone().map(|zone| receiver(rules, zone));
        rules.map(policy).transpose()
    }

    /// As [`Rules::receiving`], for a look that neither copies nor deletes: by the host's days where the zone does not exist.
    pub fn seen_receiving(
        &self,
        session: &Session,
        configured: &config::Repository,
        cluster: Option<&str>,
    ) -> Option<Policy> {
        let rules = self.of(cluster, configured)?;
        let zone = self.zone(session, cluster, configured);
        Some(receiver(rules, zone.unwrap_or_else(|_| own_zone(session))))
    }

    /// The backups of a cluster that a drill proved, where the rules keep the newest of them.
    ///
    /// # Errors
    /// Errors of the store: a drill that was not read must let no backup go.
    pub fn proven(
        rules: &Retention,
        store: &dyn Store,
        scope: &Scope,
    ) -> Result<BTreeSet<BackupId>> {
        match rules.proven {
            Some(true) => drilled::proven_backups(store, scope),
            _ => Ok(BTreeSet::new()),
        }
    }

    /// The policy for a scope: `base` with these rules; `None` where no rule says which backups stay.
    ///
    /// # Errors
    /// Those of [`Rules::zone`].
    pub fn policy<R: Reduced + Needs>(
        &self,
        session: &Session,
        configured: &config::Repository,
        (scope, cluster): (&Scope, Option<&str>),
        base: &Policy,
    ) -> Result<Option<Policy>> {
        let Some(mut rules) = self.of(cluster, configured) else {
            return Ok(None);
        };
        // Other content has neither WAL nor a log.
        let has_log = cluster.is_some() || scope.kind() == Some(slot_map::CONTENT);
        rules.wal_window = rules.wal_window.filter(|_| has_log);
        let copies = rules.min_copies.filter(|wanted| *wanted > 1);
        let commands = match cluster {
            Some(_) => Commands::default(),
            None => commands(&self.settings, scope),
        };
        Ok(Some(Policy {
            commands,
            zone: Some(self.zone(session, cluster, configured)?),
            copies: copies.map(|wanted| self.copies::<R>(session, configured, scope, wanted)),
            rules,
            ..base.clone()
        }))
    }

    /// The other repositories.
    fn others<'a>(
        &'a self,
        session: &Session,
        configured: &'a config::Repository,
    ) -> Vec<(&'a config::Repository, Result<Elsewhere>)> {
        elsewhere(session, configured, beside(configured, &self.all))
    }

    /// Counts in how many other repositories each backup lies whole. One that cannot be read counts for nothing, with a warning.
    fn copies<R: Reduced + Needs>(
        &self,
        session: &Session,
        configured: &config::Repository,
        scope: &Scope,
        wanted: u32,
    ) -> Copies {
        let mut elsewhere = BTreeMap::new();
        for (other, opened) in self.others(session, configured) {
            let read = opened.and_then(|opened| {
                let repository = match opened {
                    Elsewhere::Place(repository) => repository,
                    Elsewhere::SameAs(name) => return Err(is_the_same(&name)),
                };
                let catalog = Reading::<R>::begin(repository.store(), scope)?.everything()?;
                Ok(whole(&catalog))
            });
            match read {
                Ok(ids) => ids
                    .into_iter()
                    .for_each(|id| *elsewhere.entry(id).or_default() += 1),
                Err(e) => session.warn(&format!(
                    "repository \"{}\" counts for no copy: {e}",
                    other.name
                )),
            }
        }
        Copies {
            wanted,
            elsewhere,
            wal: WalElsewhere::default(),
        }
    }

    /// The policy for the deletion of one backup of a cluster on request: that asks for no copies of the backup, and WAL that others need stays. Beside
    /// it, the repositories of which nobody knows what they need.
    pub fn with_wal_of_others(
        &self,
        session: &Session,
        configured: &config::Repository,
        registration: &Registration,
        policy: Policy,
    ) -> (Policy, Vec<Unread>) {
        let rules = self
            .settings
            .retention_of(Some(&registration.name), configured);
        let Some(wanted) = rules.min_copies.filter(|wanted| *wanted > 1) else {
            return (policy, Vec::new());
        };
        let (wal, unread) = self.wal_elsewhere(session, configured, registration);
        let copies = Some(Copies {
            wanted,
            wal,
            ..Copies::default()
        });
        (Policy { copies, ..policy }, unread)
    }

    /// The policy for a cluster: WAL, too, leaves only while enough repositories have it.
    pub fn with_wal_elsewhere(
        &self,
        session: &Session,
        configured: &config::Repository,
        registration: &Registration,
        mut policy: Policy,
    ) -> Policy {
        if let Some(copies) = &mut policy.copies {
            // The count of copies has warned of those that cannot be read.
            (copies.wal, _) = self.wal_elsewhere(session, configured, registration);
        }
        policy
    }

    /// The WAL of a cluster in the other repositories. One that cannot be read may need all of it.
    fn wal_elsewhere(
        &self,
        session: &Session,
        configured: &config::Repository,
        registration: &Registration,
    ) -> (WalElsewhere, Vec<Unread>) {
        let (mut wal, mut unread) = (WalElsewhere::default(), Vec::new());
        for (other, opened) in self.others(session, configured) {
            let read = opened.and_then(|opened| {
                let Elsewhere::Place(repository) = opened else {
                    return Ok(None);
                };
                let all = repository.registrations(&registration.name)?;
                let identifier = registration.system_identifier;
                let own = all.iter().find(|r| r.system_identifier == identifier);
                own.map(|own| Survey::compared(&repository, own))
                    .transpose()
            });
            let known = match read {
                // It has nothing of the cluster, or nothing of its own.
                Ok(None) => Ok(None),
                Ok(Some(survey)) => {
                    let known = Other::of(&survey, session.host.now());
                    known.map(Some).ok_or_else(|| UNKNOWN.to_owned())
                }
                Err(e) => Err(e.to_string()),
            };
            match known {
                Ok(known) => wal.others.extend(known),
                Err(why) => {
                    wal.unread += 1;
                    let repository = other.name.clone();
                    unread.push(Unread { repository, why });
                }
            }
        }
        (wal, unread)
    }
}
