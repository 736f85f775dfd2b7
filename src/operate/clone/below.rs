//! The directory below which clones lie.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::operate::archive_command::shell_word;
use crate::operate::session::Session;
use crate::tree::filesystem::Filesystem;

/// Returns the directory that is named, else that of the configuration, else that of temporary files.
///
/// # Errors
/// Those of the configuration.
pub fn directory(session: &Session, named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(session.environment.absolute(named));
    }
    Ok(configured(session)?.unwrap_or_else(|| session.host.scratch.clone()))
}

fn configured(session: &Session) -> Result<Option<PathBuf>> {
    let cluster = session.settings()?.cluster_if_named()?;
    Ok(cluster.and_then(|c| c.clone_dir))
}

/// Returns the options with which another command finds the same clones, each with a space before it.
pub fn options(session: &Session, named: Option<&Path>) -> String {
    let mut options = session.options(session.flags.cluster.as_deref());
    if let Some(named) = named {
        let directory = session.environment.absolute(named);
        let directory = shell_word(&directory.to_string_lossy());
        options.push_str(&format!(" --dir {directory}"));
    }
    options
}

/// Tells why files of a clone below `directory` do not last, where that is so.
///
/// # Errors
/// `Io`; those of the configuration.
pub fn passing(
    session: &Session,
    named: Option<&Path>,
    directory: &Path,
) -> Result<Option<String>> {
    let shown = directory.display();
    let opened = std::fs::File::open(directory);
    let opened = opened.map_err(|e| Error::from_io(format!("open \"{shown}\""), e))?;
    if Filesystem::of(opened.as_fd()) == Filesystem::Memory {
        return Ok(Some(format!("\"{shown}\" is in memory")));
    }
    let is_named = named.is_some() || configured(session)?.is_some();
    Ok((!is_named).then(|| {
        format!("\"{shown}\" is where temporary files go, and the system may remove them")
    }))
}
