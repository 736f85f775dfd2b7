//! Encrypted repositories whose MAC key is not at hand: the warning that nothing proves their objects, and the refusal to write them.

use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Code, Result};
use crate::repo::repository::Repository;

/// The warning, where the repository is encrypted and its MAC key is not configured; `impact` says what may come of it.
pub fn warning(
    configured: &config::Repository,
    repository: &Repository,
    impact: &str,
) -> Option<String> {
    is_unproven(configured, repository).then(|| {
        format!(
            "repository \"{}\" is encrypted, and without the MAC key of its key set it is not checked who made what is in it: {impact}; \
             configure key_set, which reads nothing",
            configured.name
        )
    })
}

/// Requires that objects can be written, where the repository is encrypted.
///
/// # Errors
/// `Key`.
pub fn require_key(configured: &config::Repository, repository: &Repository) -> Result<()> {
    if !is_unproven(configured, repository) {
        return Ok(());
    }
    let name = &configured.name;
    Err(err!(
        Key,
        "repository \"{name}\" is encrypted, and no key to write with is configured on this host"
    )
    .hint(format!(
        "Nothing was done.\nConfigure key_set, which reads nothing, in [repositories.{name}.encryption], then run the same command again."
    )))
}

/// Requires that objects can be written to one of the repositories, as far as they answer.
///
/// # Errors
/// `Key` where none of them takes any.
pub fn require_key_of_one(session: &Session, repositories: &[config::Repository]) -> Result<()> {
    let mut refused = None;
    for configured in repositories {
        let opened = session.open(configured);
        match opened.and_then(|repository| require_key(configured, &repository)) {
            Err(e) if e.code() == Code::Key => refused = refused.or(Some(e)),
            _ => return Ok(()),
        }
    }
    refused.map_or(Ok(()), Err)
}

fn is_unproven(configured: &config::Repository, repository: &Repository) -> bool {
    let encryption = configured.encryption.as_ref();
    let is_proven = encryption.is_some_and(config::Encryption::can_prove);
    repository.marker().key_set.is_some() && !is_proven
}
