//! Access to an encrypted repository, given and withdrawn. No data is touched.

use std::path::PathBuf;

use serde::Serialize;

use super::failures::Failures;
use super::keys::Passphrase;
use super::rewrap_all;
use super::session::Session;
use crate::err;
use crate::error::{Error, Result};

/// So many recipients besides the withdrawn ones must be proven.
pub(super) const PROVEN_MIN: usize = 2;

/// The operator's request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The .pub files of recipients who get access.
    pub add: Vec<PathBuf>,
    /// A recipient who gets access by a passphrase.
    pub add_passphrase: Option<String>,
    /// The place of that passphrase.
    pub source: Passphrase,
    /// Recipients whose access is withdrawn.
    pub withdraw: Vec<String>,
    /// Key files of recipients who keep access.
    pub proof: Vec<PathBuf>,
}

impl Asked {
    /// Requires that something is to be changed.
    pub(super) fn check(&self) -> Result<()> {
        match self.add.is_empty() && self.add_passphrase.is_none() && self.withdraw.is_empty() {
            true => Err(err!(Usage, "nothing is to be changed")
                .hint("Give access with --add FILE.pub or --add-passphrase NAME, take it with --withdraw NAME.")),
            false => Ok(()),
        }
    }
}

/// A repository, and who reads it.
#[derive(Debug, Serialize)]
pub struct Readers {
    /// The repository.
    pub name: String,
    /// Its recipients: they read every epoch.
    pub recipients: Vec<String>,
    /// Recipients that read some epochs, and not all: they were left out of a rotation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub some_epochs_alone: Vec<String>,
}

/// Changes the recipients of each repository, in every epoch of its key set; returns them, and what could not be withdrawn.
///
/// # Errors
/// `Usage` when nothing is to be changed; `Key` without a key that reads; `Refused` when too few recipients would be proven. Nothing was
/// changed then.
pub fn run(session: &Session, asked: &Asked) -> Result<(Vec<Readers>, Failures)> {
    let mut plan = rewrap_all::plan_data(session, asked)?;
    plan.carry_out(session)?;
    let failures = std::mem::take(&mut plan.failures);
    Ok((plan.readers(), failures))
}

pub(super) fn too_few(staying: &[&String]) -> Error {
    let names: Vec<&str> = staying.iter().map(|n| n.as_str()).collect();
    let shown = match names.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    err!(
        Refused,
        "{PROVEN_MIN} recipients who keep access must be proven; proven so far: {shown}"
    )
    .hint("Nothing was withdrawn. The configured key or passphrase counts; show the others' key files with --proof FILE.")
}
