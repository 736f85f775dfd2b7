//! Whether a place keeps what a repository promises, tried on objects of its own.

use serde::Serialize;

use super::failures::ShownError;
use super::session::Session;
use crate::config::{self, Location};
use crate::error::{Code, Error, Result};
use crate::store::blob::BlobStore;
use crate::store::conformance::{CLAUSES, Clause};
use crate::store::file::FileStore;
use crate::store::probe::probe;
use crate::store::s3::S3Store;
use crate::store::sftp::SftpStore;
use crate::store::{Store, s3};

/// The report on one repository.
#[derive(Default, Serialize)]
pub struct Checked {
    pub name: String,
    /// Its place.
    pub url: String,
    /// The kind of thing that keeps the bytes.
    #[serde(skip)]
    pub kind: &'static str,
    /// Whether it may be used; none where it could not be tried.
    pub usable: Option<bool>,
    /// The promises that were tried.
    pub checks: Vec<Check>,
    /// Promises that it keeps only in part.
    pub weaknesses: Vec<String>,
    /// Whether these credentials may delete objects; none for a directory, and where that was not found out.
    pub may_delete: Option<bool>,
    /// Why it could not be tried.
    pub error: Option<ShownError>,
}

/// A promise that was tried.
#[derive(Serialize)]
pub struct Check {
    pub promise: &'static str,
    /// Whether the place keeps it.
    pub holds: bool,
    /// The error where it does not.
    pub detail: Option<String>,
}

/// Checks every repository. Also returns the errors of those that could not be tried.
///
/// # Errors
/// `Config` without a repository.
pub fn run(session: &Session) -> Result<(Vec<Checked>, Vec<Error>)> {
    let settings = session.settings_with_repositories()?;
    let mut all = Vec::new();
    let mut failed: Vec<Error> = Vec::new();
    for configured in &settings.repositories {
        let mut checked = Checked {
            name: configured.name.clone(),
            url: configured.location.to_string(),
            kind: configured.location.kind(),
            ..Checked::default()
        };
        match tried(configured, &mut checked, session) {
            Ok(()) => checked.usable = Some(checked.checks.iter().all(|c| c.holds)),
            Err(e) => {
                checked.usable = (e.code() == Code::Refused).then_some(false);
                checked.error = Some(ShownError::from(&e));
                failed.push(e);
            }
        }
        all.push(checked);
    }
    Ok((all, failed))
}

fn tried(configured: &config::Repository, checked: &mut Checked, session: &Session) -> Result<()> {
    // A place without a marker is somewhere else: nothing is written there.
    session.open(configured)?;
    match &configured.location {
        Location::File(path) => {
            checked.weaknesses = probe(path, session.host.random())?;
            let store = FileStore::open(path, session.host.random())?;
            let (aside, name) = store.aside(session.host.random())?;
            clauses(&aside, true, checked);
            store.discard(&name).map(|_| ())
        }
        Location::S3 { bucket, prefix } => {
            let store = S3Store::open(bucket, prefix, &configured.s3, session.host.random())?;
            let s3::probe::Found {
                weaknesses,
                may_delete,
            } = store.probe(session.host.random())?;
            (checked.weaknesses, checked.may_delete) = (weaknesses, may_delete);
            if let Some(seconds) = s3::clock_differs(&store, || session.host.now())? {
                let off = s3::shown_difference(seconds);
                checked.weaknesses.push(format!(
                    "has a clock that is {off}: requests are signed with this host's time and refused at first. Correct the one that is wrong"
                ));
            }
            let aside = store.aside(session.host.random());
            clauses(&aside, may_delete == Some(true), checked);
            aside.clear().map(|_| ())
        }
        location @ Location::Blob { .. } => {
            let store = BlobStore::open(location, &configured.s3, session.host.random())?;
            let may_delete = store.probe(session.host.random())?;
            checked.may_delete = Some(may_delete);
            if let Some(seconds) = s3::clock_differs(&store, || session.host.now())? {
                let off = s3::shown_difference(seconds);
                checked.weaknesses.push(format!(
                    "has a clock that is {off}: requests are signed with this host's time. Correct the one that is wrong"
                ));
            }
            let aside = store.aside(session.host.random());
            clauses(&aside, may_delete, checked);
            aside.clear().map(|_| ())
        }
        location @ Location::Sftp { .. } => {
            let store = SftpStore::open(location, &configured.sftp, session.host.random())?;
            store.probe(session.host.random())?;
            let (aside, name) = store.aside(session.host.random())?;
            clauses(&aside, true, checked);
            store.discard(&name).map(|_| ())
        }
    }
}

fn clauses(store: &dyn Store, may_delete: bool, checked: &mut Checked) {
    let wanted = |clause: &&Clause| may_delete || !clause.deletes;
    for (n, clause) in CLAUSES.iter().enumerate().filter(|(_, c)| wanted(c)) {
        let outcome = (clause.check)(store, &format!("clause-{n}"));
        checked.checks.push(Check {
            promise: clause.name,
            holds: outcome.is_ok(),
            detail: outcome.err().map(|e| e.to_string()),
        });
    }
}
