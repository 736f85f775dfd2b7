//! The programs of Redis and Valkey on this host.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::version::{Flavor, ServerVersion};
use crate::err;
use crate::error::{Code, Result};
use crate::program;

/// More than any check prints.
const PRINTED_BYTES_MAX: usize = 16 << 20;

/// A server that is installed, and the program beside it that checks append-only files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub version: ServerVersion,
    pub check_aof: Option<PathBuf>,
}

/// Finds a server on the search path, one of this family first.
pub fn find(search_path: Option<&OsStr>, first: Flavor) -> Option<Installed> {
    let folders: Vec<PathBuf> = search_path
        .into_iter()
        .flat_map(std::env::split_paths)
        .collect();
    let second = match first {
        Flavor::Redis => Flavor::Valkey,
        Flavor::Valkey => Flavor::Redis,
    };
    [first, second].into_iter().find_map(|flavor| {
        folders.iter().find_map(|folder| {
            let version = version_of(&folder.join(format!("{}-server", flavor.name())))?;
            let check_aof = folder.join(format!("{}-check-aof", flavor.name()));
            Some(Installed {
                version,
                check_aof: check_aof.exists().then_some(check_aof),
            })
        })
    })
}

fn version_of(server: &Path) -> Option<ServerVersion> {
    let mut command = Command::new(server);
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    ServerVersion::printed(&String::from_utf8_lossy(&output.stdout))
}

/// Checks an append-only file, or a manifest.
///
/// # Errors
/// `Damaged` when the program finds it wrong; those of `tick` and of the system.
pub fn check_aof(program: &Path, file: &Path, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(file).stdin(Stdio::null());
    match program::output(&mut command, PRINTED_BYTES_MAX, tick) {
        Ok(_) => Ok(()),
        Err(e) if e.code() == Code::Interrupted => Err(e),
        Err(e) => {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            Err(err!(Damaged, "{name} does not take what was restored")
                .source(e)
                .hint(format!(
                    "The files were left for a look. Do not start a server with them.\nSee what it says: {name} {}",
                    file.display()
                )))
        }
    }
}
