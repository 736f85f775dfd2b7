//! The private directory in which dumps wait: for their way into the repository, or for the server that reads them.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::host::private_folder;

/// A directory of mode 0700 that is gone when the value is.
pub struct Spool {
    folder: TempDir,
}

impl Spool {
    /// Makes it below `scratch`.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn new(scratch: &Path) -> Result<Spool> {
        let folder = private_folder(scratch, "pitr-logical-");
        let failed = |e| {
            Error::from_io(format!("make a directory in \"{}\"", scratch.display()), e)
                .hint("Nothing was done. Set TMPDIR to a directory with room for the dumps.")
        };
        Ok(Spool {
            folder: folder.map_err(failed)?,
        })
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::from_io(format!("make directory \"{}\"", path.display()), e))?;
        Ok(path)
    }

    /// Writes a file that nobody else can read.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        write(&path, content)?;
        Ok(path)
    }
}

/// Takes all rights of others away from what programs wrote below a directory: a backup keeps modes, and a restore gives them back.
///
/// # Errors
/// Errors of the system.
pub fn close(directory: &Path) -> Result<()> {
    let failed = |e| Error::from_io(format!("close \"{}\"", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let mode = match path.is_dir() {
            true => 0o700,
            false => 0o600,
        };
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).map_err(failed)?;
        if path.is_dir() {
            close(&path)?;
        }
    }
    Ok(())
}

/// Writes a file; a private directory lies above it.
///
/// # Errors
/// Errors of the system.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}
