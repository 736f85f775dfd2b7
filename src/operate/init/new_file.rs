//! The place of a configuration file that is made where none is named and none is there.

use std::path::{Path, PathBuf};

use crate::config;
use crate::error::Result;
use crate::operate::away::Away;
use crate::operate::owner::{Access, User};
use crate::operate::pacing::Pacing;
use crate::operate::session::Session;

/// The configuration file of the host.
pub const SYSTEM: &str = "/etc/pitr/pitr.toml";

/// Returns the session with the place of its configuration file.
///
/// Without one that is named or there, it is the host's file if this user may write it, else the user's own.
///
/// # Errors
/// Those of [`config::place`].
pub fn session(given: &Session) -> Result<Session> {
    let (environment, mut flags) = (given.environment.clone(), given.flags.clone());
    let own = environment
        .get("HOME")
        .map(|home| Path::new(home).join(".config/pitr/pitr.toml"));
    let (place, exists) = config::place(&flags, &environment)?;
    flags.config = Some(match exists || is_named(given) {
        true => place,
        // A test that hides the host's file must not write it either.
        false if environment.hides(Path::new(SYSTEM)) => own.unwrap_or(place),
        false => new_place(Path::new(SYSTEM), own).unwrap_or(place),
    });
    Ok(Session {
        host: given.host.clone(),
        environment,
        flags,
        system_identifier: None,
        followed: given.followed,
        away: Away::default(),
        pacing: Pacing::default(),
    })
}

/// Whether the command line or the environment names a configuration file.
pub fn is_named(session: &Session) -> bool {
    session.flags.config.is_some() || session.environment.get("PITR_CONFIG").is_some()
}

/// The place of a new configuration file.
fn new_place(system: &Path, own: Option<PathBuf>) -> Option<PathBuf> {
    let folder = system.parent().and_then(|p| std::fs::metadata(p).ok());
    let is_ours = folder.is_some_and(|m| m.is_dir() && User::of_process().may(&m, Access::Use));
    is_ours.then(|| system.to_owned()).or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_configuration_comes_first_where_it_may_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (system, own) = (folder.path().join("pitr.toml"), PathBuf::from("/home/own"));
        assert_eq!(new_place(&system, Some(own.clone())), Some(system.clone()));
        let absent = folder.path().join("absent/pitr.toml");
        assert_eq!(new_place(&absent, Some(own.clone())), Some(own));
        assert_eq!(new_place(&absent, None), None);
    }
}
