//! Claims, which keep backups, and the WAL of a cluster, from deletion for a time.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::of::{self, Of, Wanted};
use super::session::Session;
use super::unproven;
use crate::config;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::plan::retention::claims::{Held, held};
use crate::repo::catalog::{Catalog, Reading};
use crate::repo::claim;
use crate::repo::event::Writer;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::store::Store;
use crate::wal::survey::Survey;

/// A claim on a backup.
#[derive(Serialize)]
pub struct Claimed {
    pub repository: String,
    /// The cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its system identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// The aux scope, in the place of a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The backup that is held.
    pub backup: String,
    /// The name of the claim.
    pub claim: Option<String>,
    /// A backup, a restore or a copy.
    pub purpose: String,
    /// The host that holds it.
    pub host: String,
    /// When it began.
    pub since: TimestampTz,
    /// When it ends by itself.
    pub until: TimestampTz,
    /// The timeline of the WAL that it keeps.
    pub timeline: Option<u32>,
    /// The position from which it keeps WAL.
    pub start_lsn: Option<Lsn>,
    /// Whether the backup is complete.
    pub complete: bool,
    /// Whether it was ended.
    pub released: bool,
}

/// Lists the claims of every repository, or those on the backup that is to be released; where that is confirmed, ends them.
///
/// # Errors
/// `Config` without a repository; the first failure when none could be looked at; `Usage` where a backup of several clusters is to be released.
pub fn run(
    session: &Session,
    release: Option<&BackupId>,
    is_confirmed: bool,
) -> Result<(Vec<Claimed>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let wanted = Wanted::all(session, &settings)?;
    let (mut claimed, mut failures) = (Vec::new(), Failures::default());
    let mut repositories: Vec<&config::Repository> = settings.repositories.iter().collect();
    if let (Some(id), true) = (release, is_confirmed) {
        require_one_cluster(session, (&mut repositories, &wanted), id, &mut failures)?;
    }
    let mut looked_at = 0;
    for configured in repositories {
        let asked = (release, is_confirmed);
        let done = one_repository(session, configured, &wanted, asked, &mut claimed);
        looked_at += usize::from(failures.note(done, looking_at(configured)).is_some());
    }
    failures.first_if(session, looked_at == 0)?;
    Ok((claimed, failures))
}

fn looking_at(configured: &config::Repository) -> String {
    format!("look at repository \"{}\"", configured.name)
}

/// Requires that backups of one cluster alone are meant: timers of two clusters can give two backups one id. Leaves out the repositories that could not be
/// looked at: in them nobody knows what is meant.
fn require_one_cluster(
    session: &Session,
    (repositories, wanted): (&mut Vec<&config::Repository>, &Wanted),
    id: &BackupId,
    failures: &mut Failures,
) -> Result<()> {
    if wanted.only().is_some() {
        return Ok(());
    }
    let mut claimed = Vec::new();
    repositories.retain(|configured| {
        let looked = one_repository(session, configured, wanted, (Some(id), false), &mut claimed);
        failures.note(looked, looking_at(configured)).is_some()
    });
    let names: BTreeSet<&str> = claimed
        .iter()
        .filter_map(|c| c.cluster.as_deref())
        .collect();
    let names: Vec<&str> = names.into_iter().collect();
    match names.len() {
        0 | 1 => Ok(()),
        _ => Err(err!(
            Usage,
            "backups \"{id}\" of several clusters are held: {}",
            names.join(", ")
        )
        .hint("Nothing was changed. Add --cluster NAME.")),
    }
}

fn one_repository(
    session: &Session,
    configured: &config::Repository,
    wanted: &Wanted,
    (release, is_confirmed): (Option<&BackupId>, bool),
    claimed: &mut Vec<Claimed>,
) -> Result<()> {
    let repository = session.open(configured)?;
    if release.is_some() && is_confirmed {
        // The end of a proven claim would be found to be forged, and count for nothing.
        unproven::require_key(configured, &repository)?;
    }
    let mut releasing = Releasing {
        repository: &configured.name,
        store: repository.store(),
        host: &session.host,
        release,
        is_confirmed,
        claimed,
    };
    for name in repository.cluster_names()? {
        if !wanted.has(&name) {
            continue;
        }
        for registration in repository.registrations(&name)? {
            let layout = ClusterLayout::new(&name, registration.system_identifier)?;
            let survey = Survey::without_leftovers(&repository, &registration)?;
            let of = Of::Cluster(registration);
            releasing.take((&layout, &of), &survey.catalog)?;
        }
    }
    for scope in of::scopes(session, &repository)? {
        let catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), &scope)?.backups()?;
        releasing.take((&scope, &Of::Scope(scope.clone())), &catalog)?;
    }
    Ok(())
}

/// The claims of one repository.
struct Releasing<'a> {
    repository: &'a str,
    store: &'a dyn Store,
    host: &'a Host,
    release: Option<&'a BackupId>,
    is_confirmed: bool,
    claimed: &'a mut Vec<Claimed>,
}

impl Releasing<'_> {
    /// Lists the claims of a scope, and ends those that are to be released.
    fn take<R>(&mut self, (scope, of): (&Scope, &Of), catalog: &Catalog<R>) -> Result<()> {
        let writer = Writer::of(self.host);
        for one in held(catalog, self.host.now()) {
            if self.release.is_some_and(|id| *id != one.id) {
                continue;
            }
            if self.is_confirmed {
                claim::end((self.store, scope), &writer, &one.id, one.claim.as_deref())?;
            }
            let claimed = Claimed::new(self.repository, of, one, self.is_confirmed);
            self.claimed.push(claimed);
        }
        Ok(())
    }
}

impl Claimed {
    fn new(repository: &str, of: &Of, held: Held, released: bool) -> Claimed {
        let (cluster, scope) = match of {
            Of::Cluster(registration) => (Some(registration), None),
            Of::Scope(scope) => (None, Some(scope.prefix())),
        };
        Claimed {
            repository: repository.to_owned(),
            cluster: cluster.map(|c| c.name.clone()),
            system_identifier: cluster.map(|c| c.system_identifier.to_string()),
            scope,
            backup: held.id.to_string(),
            claim: held.claim,
            purpose: held.purpose,
            host: held.host,
            since: held.since,
            until: held.until,
            timeline: held.start.map(|(timeline, _)| timeline),
            start_lsn: held.start.map(|(_, lsn)| lsn),
            complete: held.is_committed,
            released,
        }
    }
}
