//! Room that nobody knows for certain before it is used.

use std::path::Path;

use rustix::fs::IFlags;

use super::replace::movable::mount_options;
use crate::fault;

/// A filesystem that compresses is tried where the bytes have to become up to this many times fewer.
const TIMES: u64 = 16;

/// Whether so many bytes may fit into so much room after all, because the filesystem of an existing path compresses them.
pub(super) fn may_fit(place: &Path, bytes: u64, free: u64) -> bool {
    bytes <= free.saturating_mul(TIMES) && compresses(place)
}

/// Whether a filesystem may compress. ZFS counts in any case: no call tells how it is set.
///
/// The numbers are those of Linux (include/uapi/linux/magic.h) and OpenZFS (include/sys/fs/zfs.h).
fn compresses(place: &Path) -> bool {
    const BTRFS: u32 = 0x9123_683E;
    const ZFS: u32 = 0x2FC1_2FC1;
    if fault::lacks("known-room") {
        return true;
    }
    let found = rustix::fs::statfs(place);
    // The kernel's number is unsigned; the type of the field differs by platform.
    match found.map(|found| u32::try_from(found.f_type)) {
        Ok(Ok(ZFS)) => true,
        Ok(Ok(BTRFS)) => {
            let options = place.canonicalize().ok().and_then(|at| mount_options(&at));
            has_compression(&options.unwrap_or_default()) || is_marked(place)
        }
        _ => false,
    }
}

fn has_compression(options: &str) -> bool {
    let mut options = options.split(',');
    options.any(|option| option.starts_with("compress"))
}

/// Whether what is made in a directory is compressed (`chattr +c`).
fn is_marked(directory: &Path) -> bool {
    let opened = std::fs::File::open(directory).ok();
    let flags = opened.and_then(|opened| rustix::fs::ioctl_getflags(opened).ok());
    flags.is_some_and(|flags| flags.contains(IFlags::COMPRESSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filesystem_that_compresses_may_take_more_than_it_has_room_for() {
        // One in memory never does.
        assert!(!may_fit(Path::new("/proc"), 2, 1));
        assert!(has_compression("rw,compress-force=zstd:3,ssd") && has_compression("compress=lzo"));
        assert!(!has_compression("rw,ssd,space_cache=v2"));
    }
}
