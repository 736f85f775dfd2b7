//! The check of everything that the repositories hold.

use super::failures::Failures;
use super::of::{self, Of};
use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::verify::depth::Depth;
use crate::verify::scope::VerifyScope;
use crate::verify::{Report, Verify, sums};

/// Threads that read.
const THREADS: usize = 2;

/// The report on one cluster, or on other content, in one repository.
pub struct Done {
    /// The repository.
    pub repository: String,
    /// The cluster in it, or other content.
    pub of: Of,
    /// The report.
    pub report: Report,
}

/// Reads back as deep as is asked and checks it; all that there is, or only a backup and the WAL it needs.
///
/// # Errors
/// `Config` without a repository; the first failure when nothing was checked at all.
pub fn run(
    session: &Session,
    backup: Option<&BackupId>,
    depth: &Depth,
) -> Result<(Vec<Done>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut done = Vec::new();
    let mut failures = Failures::default();
    failures.in_each(&settings.repositories, "verify", |configured| {
        one_repository(session, configured, name, (backup, depth), &mut done)
    });
    // A backup is in one repository, as a rule.
    if backup.is_some() && !done.is_empty() {
        failures.forget(Code::NotFound);
    }
    failures.first_if(session, done.is_empty())?;
    Ok((done, failures))
}

fn one_repository(
    session: &Session,
    configured: &config::Repository,
    cluster: Option<&str>,
    (backup, depth): (Option<&BackupId>, &Depth),
    done: &mut Vec<Done>,
) -> Result<()> {
    let repository = session.open(configured)?;
    let mut missing = None;
    let scopes = match backup {
        None => of::scopes(session, &repository)?,
        Some(_) => Vec::new(),
    };
    let registrations = of::registrations_beside(&scopes, session, &repository, cluster)?;
    let before = done.len();
    for registration in registrations {
        let verify = Verify {
            repository: &repository,
            registration: &registration,
            backup: backup.cloned(),
            depth: depth.clone(),
            threads: THREADS,
            host: &session.host,
        };
        match verify.run() {
            Ok(report) => done.push(Done {
                repository: configured.name.clone(),
                of: Of::Cluster(registration),
                report,
            }),
            // Another identifier of the cluster may have it.
            Err(e) if e.code() == Code::NotFound => missing = Some(e),
            Err(e) => return Err(e),
        }
    }
    for scope in scopes {
        let verify = VerifyScope {
            repository: &repository,
            scope: &scope,
            depth: depth.clone(),
            threads: THREADS,
            host: &session.host,
        };
        done.push(Done {
            repository: configured.name.clone(),
            report: verify.run()?,
            of: Of::Scope(scope),
        });
    }
    match missing {
        Some(e) if done.len() == before => Err(e),
        _ => Ok(()),
    }
}

/// Reads every file of a backup, in the first repository that has it, and hands on path and SHA-256.
///
/// # Errors
/// `NotFound` where no repository has the backup; the first error of one that may have it; those of [`sums::sums`].
pub fn sums(session: &Session, id: &BackupId, sink: sums::Sink<'_>) -> Result<()> {
    let settings = session.settings_with_repositories()?;
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut failure: Option<Error> = None;
    for configured in &settings.repositories {
        let found = layout_with(session, configured, name, id);
        match found {
            Ok(Some((repository, layout))) => {
                return sums::sums(&repository, &layout, id, &session.host, sink);
            }
            Ok(None) => {}
            Err(e) => {
                failure.get_or_insert(e);
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        err!(NotFound, "backup \"{id}\" does not exist").hint("Run pitr info to see the backups.")
    }))
}

/// The cluster in a repository to which a backup belongs.
fn layout_with(
    session: &Session,
    configured: &config::Repository,
    cluster: Option<&str>,
    id: &BackupId,
) -> Result<Option<(Repository, ClusterLayout)>> {
    let repository = session.open(configured)?;
    for registration in of::registrations_beside(&[], session, &repository, cluster)? {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        if repository.store().head(&layout.manifest(id))?.is_some() {
            return Ok(Some((repository, layout)));
        }
    }
    Ok(None)
}
