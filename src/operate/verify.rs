//! The check of everything that the repositories hold.

use super::failures::Failures;
use super::of::{self, Of};
use super::session::Session;
use crate::config;
use crate::error::{Code, Result};
use crate::repo::id::BackupId;
use crate::verify::scope::VerifyScope;
use crate::verify::{Report, Verify};

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

/// Reads everything back and checks it, or only a backup and the WAL it needs.
///
/// # Errors
/// `Config` without a repository; the first failure when nothing was checked at all.
pub fn run(session: &Session, backup: Option<&BackupId>) -> Result<(Vec<Done>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut done = Vec::new();
    let mut failures = Failures::default();
    failures.in_each(&settings.repositories, "verify", |configured| {
        one_repository(session, configured, name, backup, &mut done)
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
    backup: Option<&BackupId>,
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
