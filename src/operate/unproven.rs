//! The warning that nothing at hand proves the objects of an encrypted repository.

use crate::config;
use crate::repo::repository::Repository;

/// The warning, where the repository is encrypted and its MAC key is not configured; `impact` says what may come of it.
pub fn warning(
    configured: &config::Repository,
    repository: &Repository,
    impact: &str,
) -> Option<String> {
    let encryption = configured.encryption.as_ref();
    let is_proven = encryption.is_some_and(config::Encryption::can_prove);
    let is_encrypted = repository.marker().key_set.is_some();
    (is_encrypted && !is_proven).then(|| {
        format!(
            "repository \"{}\" is encrypted, and without the MAC key of its key set it is not checked who made what is in it: {impact}; \
             configure key_set, which reads nothing",
            configured.name
        )
    })
}
