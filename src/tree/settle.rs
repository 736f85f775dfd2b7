//! Gives an entry what its node says: owner, extended attributes, permissions and time.

use super::left_out::{LeftOut, Part};
use super::names::Names;
use super::status::{Holder, Status};
use crate::error::{Code, Error, Result};
use crate::snapshot::node::{Node, NodeKind};

const SET_IDS: u32 = 0o6000;
const ACL: &[u8] = b"system.posix_acl_access";
/// A file has capabilities by this attribute.
const CAPABILITY: &[u8] = b"security.capability";

/// The things that the operator allows a restore to make, beside those that any user may make. The process must
/// have the right to make them as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permit {
    /// Pipes, sockets and devices.
    pub specials: bool,
    /// The bits setuid and setgid.
    pub set_ids: bool,
    /// Owners and groups.
    pub owners: bool,
    /// Extended attributes other than `user.` and POSIX ACLs.
    pub xattrs: bool,
}

impl Permit {
    /// All of it.
    pub const ALL: Permit = Permit {
        specials: true,
        set_ids: true,
        owners: true,
        xattrs: true,
    };
}

/// Gives entries what their nodes say, as far as that is permitted.
pub struct Settler {
    /// The things that any user may not make.
    pub permit: Permit,
    names: Names,
}

/// The attributes that an entry gets.
pub struct Due<'n> {
    /// The owner, where it is another one and permitted.
    pub owner: Option<(u32, u32)>,
    /// The permissions; none of a symbolic link.
    pub mode: Option<u32>,
    /// The extended attributes that are permitted.
    pub xattrs: Vec<&'n (Vec<u8>, Vec<u8>)>,
}

impl Settler {
    /// Knows the users and groups of this host.
    pub fn new(permit: Permit) -> Settler {
        Settler {
            permit,
            names: Names::of_host(),
        }
    }

    /// Whether an extended attribute that a node lacks is a difference. Labels that the system makes by itself are none.
    pub fn counts(&self, name: &[u8]) -> bool {
        let is_of_root = self.permit.xattrs && name.starts_with(b"trusted.");
        is_harmless(name) || name == CAPABILITY || is_of_root
    }

    /// Returns the attributes that an entry gets which has `status` now; what is not permitted is left out.
    pub fn due<'n>(
        &self,
        status: &Status,
        path: &[u8],
        node: &'n Node,
        left_out: &mut LeftOut,
    ) -> Due<'n> {
        let wanted = node.owner.as_ref().map(|owner| self.names.numbers(owner));
        let owner = wanted.filter(|owner| *owner != (status.uid, status.gid));
        let mut is_owned = true;
        if let Some((uid, gid)) = owner.filter(|_| !self.permit.owners) {
            is_owned = false;
            let why = format!("{uid}:{gid} is given with --privileged alone");
            left_out.add(path, Part::Owner, why);
        }
        let mut xattrs = Vec::with_capacity(node.xattrs.len());
        for xattr in &node.xattrs {
            if self.permit.xattrs || is_harmless(&xattr.0) {
                xattrs.push(xattr);
                continue;
            }
            let shown = xattr.0.escape_ascii();
            let why = format!("\"{shown}\" is given with --privileged alone");
            left_out.add(path, Part::Xattr, why);
        }
        // An ACL may close the entry to its owner, who sets the others before.
        xattrs.sort_by_key(|xattr| xattr.0 == ACL);
        let mut mode = node.mode;
        if mode & SET_IDS != 0 && !(self.permit.set_ids && is_owned) {
            mode &= !SET_IDS;
            left_out.add(path, Part::Mode, NO_SET_IDS);
        }
        for (tag, _) in &node.passed_over {
            left_out.add(path, Part::Tag, format!("tag {tag} is of a newer version"));
        }
        Due {
            owner: owner.filter(|_| is_owned),
            mode: Some(mode).filter(|_| !matches!(node.kind, NodeKind::Symlink(_))),
            xattrs,
        }
    }

    /// Sets owner, extended attributes, permissions and time, in this order: each clears some of those after it.
    ///
    /// # Errors
    /// `TargetWrite` when the entry cannot be looked at.
    pub fn settle(
        &self,
        holder: Holder<'_>,
        path: &[u8],
        node: &Node,
        left_out: &mut LeftOut,
    ) -> Result<()> {
        let status = holder.status().map_err(|e| {
            let doing = format!("look at \"{}\"", path.escape_ascii());
            Error::from_io(doing, e.into()).with_code(Code::TargetWrite)
        })?;
        let due = self.due(&status, path, node, left_out);
        let mut mode = due.mode;
        if let Some((uid, gid)) = due.owner
            && let Err(e) = holder.set_owner(uid, gid)
        {
            left_out.add(path, Part::Owner, format!("{uid}:{gid}: {e}"));
            if mode.is_some_and(|mode| mode & SET_IDS != 0) {
                mode = mode.map(|mode| mode & !SET_IDS);
                left_out.add(path, Part::Mode, NO_SET_IDS);
            }
        }
        for (name, value) in due.xattrs {
            if let Err(e) = holder.set_xattr(name, value) {
                let shown = name.escape_ascii();
                left_out.add(path, Part::Xattr, format!("\"{shown}\": {e}"));
            }
        }
        if let Some(mode) = mode
            && let Err(e) = holder.set_mode(mode)
        {
            left_out.add(path, Part::Mode, e);
        }
        if let Err(e) = holder.set_mtime(node.mtime) {
            left_out.add(path, Part::Time, e);
        }
        Ok(())
    }
}

const NO_SET_IDS: &str =
    "setuid and setgid are given with --privileged alone, and to the owner of the backup";

/// Whether anybody may set an extended attribute for what is theirs.
fn is_harmless(name: &[u8]) -> bool {
    name.starts_with(b"user.") || [ACL, b"system.posix_acl_default"].contains(&name)
}
