//! The kind of filesystem that a directory is on, as far as a walk has to know it.

use std::os::fd::BorrowedFd;

/// Linux: include/uapi/linux/magic.h: proc, sysfs, debugfs, tracefs, securityfs, cgroup, cgroup2, devpts, pstore, bpf, binfmt_misc, configfs, efivarfs, mqueue,
/// selinuxfs, fusectl, nsfs.
const INVENTED: &[u64] = &[
    0x9FA0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_E0EB,
    0x6367_7270,
    0x1CD1,
    0x6165_676C,
    0xCAFE_4A11,
    0x4249_4E4D,
    0x6265_6570,
    0xDE5E_81E4,
    0x1980_0202,
    0xF97C_FF8C,
    0x6573_5543,
    0x6E73_6673,
];
/// tmpfs, ramfs, hugetlbfs.
const MEMORY: &[u64] = &[0x0102_1994, 0x8584_58F6, 0x9584_58F6];

/// A kind of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// The kernel makes its files up while they are read.
    Invented,
    /// Pages are never written back, so a store through a mapping moves a time once only.
    Memory,
    /// Any other.
    Other,
}

impl Filesystem {
    /// That of an open directory.
    pub fn of(directory: BorrowedFd<'_>) -> Filesystem {
        let kind = rustix::fs::fstatfs(directory).map(|found| found.f_type);
        let kind = kind.ok().and_then(|kind| u64::try_from(kind).ok());
        match kind {
            Some(kind) if INVENTED.contains(&kind) => Filesystem::Invented,
            Some(kind) if MEMORY.contains(&kind) => Filesystem::Memory,
            _ => Filesystem::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kernels_own_files_are_told_from_others() {
        let of = |path: &str| Filesystem::of(File::open(path).unwrap().as_fd());
        assert_eq!(of("/proc"), Filesystem::Invented);
        assert_eq!(of("/sys"), Filesystem::Invented);
        assert_eq!(of(env!("CARGO_MANIFEST_DIR")), Filesystem::Other);
    }
}
