//! The filesystem's facts about an entry: its status, and its extended attributes.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::names::Names;
use crate::snapshot::node::{Change, Moment, Node, NodeKind, XATTRS_LIMIT_BYTES, xattr_bytes};

/// Greatest length of one extended attribute, and of a list of their names.
const XATTR_BYTES: usize = 64 << 10;

/// The status of an entry, with types that are the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Moment,
    pub ctime: Moment,
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    pub length: u64,
    /// Bytes that are allocated.
    pub allocated: u64,
    /// Number of a device.
    pub number: u64,
}

impl From<Stat> for Status {
    fn from(stat: Stat) -> Status {
        let wide = |n: i128| u64::try_from(n).unwrap_or(0);
        let moment = |seconds: i128, nanoseconds: i128| Moment {
            seconds: i64::try_from(seconds).unwrap_or(0),
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        Status {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: moment(stat.st_mtime.into(), stat.st_mtime_nsec.into()),
            ctime: moment(stat.st_ctime.into(), stat.st_ctime_nsec.into()),
            device: wide(stat.st_dev.into()),
            inode: wide(stat.st_ino.into()),
            links: wide(stat.st_nlink.into()),
            length: wide(stat.st_size.into()),
            allocated: wide(stat.st_blocks.into()).saturating_mul(512),
            number: wide(stat.st_rdev.into()),
        }
    }
}

impl Status {
    /// The status of what is open.
    pub fn of(file: BorrowedFd<'_>) -> rustix::io::Result<Status> {
        rustix::fs::fstat(file).map(Status::from)
    }

    /// The status of a name in a directory; a link itself, not its target.
    pub fn at(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Status> {
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(Status::from)
    }

    /// A node with all that the status says.
    pub fn node(&self, kind: NodeKind, names: &Names) -> Node {
        let mut node = Node::new(kind, self.mode, self.mtime);
        node.owner = Some(names.owner(self.uid, self.gid));
        node.links = self.links_of_node();
        node.change = Some(self.change());
        node
    }

    /// The number of links as a node has it: of what is no directory, and has several.
    pub fn links_of_node(&self) -> Option<u64> {
        let is_linked = self.links > 1 && self.kind != FileType::Directory;
        is_linked.then_some(self.links)
    }

    /// The facts by which a later backup tells that the entry has changed.
    pub fn change(&self) -> Change {
        Change {
            inode: self.inode,
            ctime: self.ctime,
        }
    }
}

/// ACLs that a directory has from the one around it.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_default", b"system.posix_acl_access"];

/// The holder of a status and extended attributes.
#[derive(Clone, Copy)]
pub enum Holder<'a> {
    /// A file or directory that is open.
    Open(BorrowedFd<'a>),
    /// A name in a directory that is open. Links and devices cannot be opened for it.
    Named(BorrowedFd<'a>, &'a [u8]),
}

impl Holder<'_> {
    /// No system call takes a directory and a name before Linux 6.13; the link below `/proc` leads to the directory that is open.
    fn path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
        let directory = format!("/proc/self/fd/{}/", directory.as_raw_fd());
        [directory.as_bytes(), name].concat()
    }

    fn list(self, room: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Holder::Open(file) => rustix::fs::flistxattr(file, room),
            Holder::Named(directory, name) => {
                rustix::fs::llistxattr(Holder::path(directory, name), room)
            }
        }
    }

    fn get(self, xattr: &[u8], room: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Holder::Open(file) => rustix::fs::fgetxattr(file, xattr, room),
            Holder::Named(directory, name) => {
                rustix::fs::lgetxattr(Holder::path(directory, name), xattr, room)
            }
        }
    }

    /// Sets user and group.
    pub fn set_owner(self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Holder::Open(file) => rustix::fs::fchown(file, owner.0, owner.1),
            Holder::Named(directory, name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(directory, name, owner.0, owner.1, flags)
            }
        }
    }

    /// Sets the permissions; those of a symbolic link cannot be set.
    pub fn set_mode(self, mode: u32) -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Holder::Open(file) => rustix::fs::fchmod(file, mode),
            Holder::Named(directory, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let found = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), mode)
            }
        }
    }

    /// Sets the time of modification.
    pub fn set_mtime(self, mtime: Moment) -> rustix::io::Result<()> {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: mtime.seconds,
                tv_nsec: mtime.nanoseconds.into(),
            },
        };
        match self {
            Holder::Open(file) => rustix::fs::futimens(file, &times),
            Holder::Named(directory, name) => {
                rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    /// The status of what holds the attributes.
    pub fn status(self) -> rustix::io::Result<Status> {
        match self {
            Holder::Open(file) => Status::of(file),
            Holder::Named(directory, name) => Status::at(directory, name),
        }
    }

    /// Sets an extended attribute.
    pub fn set_xattr(self, xattr: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        let flags = rustix::fs::XattrFlags::empty();
        match self {
            Holder::Open(file) => rustix::fs::fsetxattr(file, xattr, value, flags),
            Holder::Named(directory, name) => {
                rustix::fs::lsetxattr(Holder::path(directory, name), xattr, value, flags)
            }
        }
    }

    /// Removes the ACLs of a directory, which entries that are made in it would have as well.
    pub fn remove_acls(self) -> rustix::io::Result<()> {
        for acl in ACLS {
            match self.remove_xattr(acl) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(self, xattr: &[u8]) -> rustix::io::Result<()> {
        match self {
            Holder::Open(file) => rustix::fs::fremovexattr(file, xattr),
            Holder::Named(directory, name) => {
                rustix::fs::lremovexattr(Holder::path(directory, name), xattr)
            }
        }
    }
}

/// Reads extended attributes, with room that is used again.
pub struct XattrReader {
    list: Vec<u8>,
    value: Vec<u8>,
}

impl Default for XattrReader {
    fn default() -> XattrReader {
        XattrReader::new()
    }
}

impl XattrReader {
    pub fn new() -> XattrReader {
        XattrReader {
            list: vec![0; XATTR_BYTES],
            value: vec![0; XATTR_BYTES],
        }
    }

    /// Reads all of them, names ascending; what has no room in a node is handed to `left_out`.
    pub fn read(
        &mut self,
        holder: Holder<'_>,
        left_out: &mut dyn FnMut(String),
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        let length = match holder.list(&mut self.list) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return found,
            Ok(length) => length,
            Err(e) => {
                left_out(format!("could not list extended attributes: {e}"));
                return found;
            }
        };
        let mut names: Vec<&[u8]> = self
            .list
            .get(..length)
            .unwrap_or_default()
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable();
        let mut room = XATTRS_LIMIT_BYTES - 3;
        for name in names {
            let shown = name.escape_ascii();
            let value = match holder.get(name, &mut self.value) {
                Ok(length) => self.value.get(..length).unwrap_or_default(),
                // Removed meanwhile.
                Err(Errno::NODATA) => continue,
                Err(e) => {
                    left_out(format!("could not read \"{shown}\": {e}"));
                    continue;
                }
            };
            match room.checked_sub(xattr_bytes(name, value)) {
                Some(rest) => room = rest,
                None => {
                    left_out(format!("no room for \"{shown}\" of {} bytes", value.len()));
                    continue;
                }
            }
            found.push((name.to_vec(), value.to_vec()));
        }
        found
    }
}
