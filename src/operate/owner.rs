//! The user that the server runs as, and what this user may do with a path.
//!
//! The archiver runs our commands as the owner of the data directory. Files that `pitr` creates as root would be out of
//! its reach.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use crate::config::account::Account;

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    gid: u32,
    groups: Vec<u32>,
    name: Option<String>,
}

/// An access to a path, as permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading a file.
    Read = 4,
    /// Executing a program.
    Execute = 1,
    /// Creating in a directory and listing it.
    Use = 7,
}

impl User {
    /// The owner of a path.
    ///
    /// # Errors
    /// Errors of the system about the path.
    pub fn owner_of(path: &Path) -> io::Result<User> {
        let metadata = std::fs::metadata(path)?;
        Ok(User::with_ids(metadata.uid(), metadata.gid()))
    }

    /// Whom this process runs as.
    pub fn of_process() -> User {
        User::with_ids(
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    }

    /// The user of an account.
    pub fn of(account: &Account) -> User {
        User::with_ids(account.uid, account.gid.unwrap_or(account.uid))
    }

    /// The user's group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    fn with_ids(uid: u32, gid: u32) -> User {
        let account = Account::of(uid);
        let gid = account.as_ref().and_then(|a| a.gid).unwrap_or(gid);
        let name = account.map(|a| a.name);
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let groups = groups.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, id, members] = fields.as_slice() else {
                return None;
            };
            let is_member = members.split(',').any(|m| Some(m) == name.as_deref());
            is_member.then(|| id.parse().ok())?
        });
        User {
            uid,
            gid,
            groups: groups.collect(),
            name,
        }
    }

    /// The name, or the number of a user without one.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// Whether permission bits give this user the access. Access control lists are not looked at.
    pub fn may(&self, metadata: &Metadata, access: Access) -> bool {
        let bits = access as u32;
        let mode = metadata.mode();
        let granted = if self.uid == 0 {
            7
        } else if metadata.uid() == self.uid {
            mode >> 6
        } else if metadata.gid() == self.gid || self.groups.contains(&metadata.gid()) {
            mode >> 3
        } else {
            mode
        };
        granted & bits == bits
    }

    /// The directory on the way to `path`, or `path` itself, that keeps the user from it; `None` when nothing does.
    ///
    /// `path` is absolute; links are followed first. A path that cannot be looked at is no obstacle.
    pub fn kept_out_by(&self, path: &Path, access: Access) -> Option<PathBuf> {
        let path = std::fs::canonicalize(path).ok()?;
        let mut way: Vec<&Path> = path.ancestors().skip(1).collect();
        way.reverse();
        let allowed = |at: &Path, access| std::fs::metadata(at).is_ok_and(|m| self.may(&m, access));
        way.into_iter()
            .find(|at| !allowed(at, Access::Execute))
            .or_else(|| (!allowed(&path, access)).then_some(path.as_path()))
            .map(Path::to_owned)
    }

    /// Gives a path to this user.
    ///
    /// # Errors
    /// Errors of the system; only root may do so.
    pub fn take(&self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.uid), Some(self.gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let closed = directory.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let file = closed.join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
        // Nobody has this number.
        let stranger = User::with_ids(4_000_000_001, 4_000_000_001);
        assert_eq!(stranger.name(), "4000000001");
        let canonical = std::fs::canonicalize(&closed).unwrap();
        let kept_out = |access| stranger.kept_out_by(&file, access);
        assert_eq!(kept_out(Access::Read), Some(canonical));
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(kept_out(Access::Read), None);
        assert!(kept_out(Access::Use).is_some());
    }
}
