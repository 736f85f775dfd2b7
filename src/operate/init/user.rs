//! The server's user: gets the files that root makes, and a list of the obstacles that keep it out.

use std::path::{Path, PathBuf};

use super::Wanted;
use crate::error::{Error, Result};
use crate::operate::archive_command::shell_word;
use crate::operate::owner::{Access, User};

/// Who the archiver runs as, where the data directory tells.
pub(super) struct ServerUser {
    user: Option<User>,
    is_root: bool,
}

impl ServerUser {
    pub(super) fn find(pgdata: Option<&Path>) -> ServerUser {
        ServerUser {
            user: pgdata.and_then(|p| User::owner_of(p).ok()),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// Gives what root made to the server's user; what belongs to somebody else already is left.
    pub(super) fn take(&self, paths: &[PathBuf]) -> Result<()> {
        let Some(user) = self.user.as_ref().filter(|u| self.is_root && u.uid != 0) else {
            return Ok(());
        };
        for path in paths {
            let is_roots = User::owner_of(path).is_ok_and(|o| o.uid == 0);
            let doing = || format!("give \"{}\" to user \"{}\"", path.display(), user.name());
            if is_roots {
                user.take(path).map_err(|e| Error::from_io(doing(), e))?;
            }
        }
        Ok(())
    }

    /// The beginning of a command line that is to run as the server's user; empty where this process does.
    pub(super) fn prefix(&self) -> String {
        match self.user.as_ref().filter(|u| self.is_root && u.uid != 0) {
            Some(user) => format!("sudo -u {} ", user.name()),
            None => String::new(),
        }
    }

    /// Obstacles to the archiver's work, with the command that helps.
    pub(super) fn obstacles(&self, wanted: &Wanted, program: &Path) -> Vec<String> {
        let Some(user) = &self.user else {
            return match self.is_root {
                true => vec![format!(
                    "run as root without a data directory: the server's user must own the repository and read the configuration (chown USER {})",
                    shell_word(&wanted.config.to_string_lossy())
                )],
                false => Vec::new(),
            };
        };
        let directories = wanted.repositories.iter();
        let directories = directories.filter_map(|r| r.location.directory());
        let places = directories.map(|path| (path, Access::Use));
        let files = wanted.repositories.iter().flat_map(|r| r.files());
        let places = places.chain(files.map(|path| (path, Access::Read)));
        let mut said = Vec::new();
        let own = [
            (wanted.config.as_path(), Access::Read),
            (program, Access::Execute),
        ];
        for (path, access) in places.chain(own) {
            let Some(at) = user.kept_out_by(path, access) else {
                continue;
            };
            let at_word = shell_word(&at.to_string_lossy());
            let path_word = shell_word(&path.to_string_lossy());
            let remedy = match access {
                _ if at != path => format!(
                    "move it out of \"{}\", or chmod a+x {at_word}",
                    at.display()
                ),
                Access::Use => format!("chown -R {} {path_word}", user.name()),
                Access::Read => format!("chown {} {path_word}", user.name()),
                Access::Execute => format!("chmod a+rx {path_word}"),
            };
            said.push(format!(
                "the server's user \"{}\" cannot use \"{}\": {remedy}",
                user.name(),
                path.display()
            ));
        }
        said
    }
}
