//! Directories that can get another name.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

use super::entry::looked;
use crate::err;
use crate::error::Result;

/// Requires that a directory can get another name beside it, and that nothing is mounted in it.
pub(super) fn check_movable(path: &Path, uid: u32) -> Result<()> {
    let refused = |why: String| {
        Err(err!(Refused, "\"{}\" cannot be moved aside: {why}", path.display()).hint(
            "Nothing was changed. Restore into another directory, or take this one back where it is with --delta.",
        ))
    };
    let own = std::fs::symlink_metadata(path).map_err(|e| looked(path, e))?;
    let Some(parent) = path.parent() else {
        return refused("it is the root directory".into());
    };
    let above = std::fs::metadata(parent).map_err(|e| looked(parent, e))?;
    if let Some(mount) = mounted_in(path)? {
        return refused(format!(
            "a filesystem is mounted on \"{}\"",
            mount.display()
        ));
    }
    if own.dev() != above.dev() {
        return refused("it is a filesystem of its own".into());
    }
    if let Some(why) = owner_and_rights(&own, (parent, &above), uid) {
        return refused(why);
    }
    if path.to_str().is_none() {
        return refused("its path is not UTF-8".into());
    }
    Ok(())
}

/// The reason for which a user cannot rename an entry.
fn owner_and_rights(
    own: &Metadata,
    (parent, above): (&Path, &Metadata),
    uid: u32,
) -> Option<String> {
    if own.uid() != uid {
        return Some(format!("it belongs to user id {}, not to {uid}", own.uid()));
    }
    let writes = match rustix::process::geteuid().as_raw() == uid {
        true => {
            let rights = Access::WRITE_OK | Access::EXEC_OK;
            rustix::fs::accessat(rustix::fs::CWD, parent, rights, AtFlags::EACCESS).is_ok()
        }
        // Root looks for another user, of whose groups it does not know.
        false => {
            let may = |bits: u32| above.mode() & bits == bits;
            may(0o030) || may(0o003) || (above.uid() == uid && may(0o300))
        }
    };
    (!writes).then(|| format!("user id {uid} may not write into \"{}\"", parent.display()))
}

/// The first filesystem that is mounted on a directory or below it.
fn mounted_in(path: &Path) -> Result<Option<PathBuf>> {
    let points = mount_points()?;
    Ok(points.into_iter().find(|point| point.starts_with(path)))
}

/// The directories on which filesystems are mounted, whether they answer or not.
///
/// Linux: proc_pid_mountinfo(5); the fifth field is the mount point, with white space and backslashes as octal numbers.
///
/// # Errors
/// `Io`.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read(table).map_err(|e| looked(Path::new(table), e))?;
    let points = text.split(|b| *b == b'\n').filter_map(|line| {
        let field = line.split(|b| *b == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescaped(field))))
    });
    Ok(points.collect())
}

/// The options of the filesystem that holds a path, which has no links.
pub fn mount_options(path: &Path) -> Option<String> {
    options_in(&std::fs::read("/proc/self/mountinfo").ok()?, path)
}

/// Linux: proc_pid_mountinfo(5); the last field has the options of the filesystem itself.
fn options_in(table: &[u8], path: &Path) -> Option<String> {
    let lines = table.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let point = OsString::from_vec(unescaped(fields.nth(4)?));
        Some((PathBuf::from(point), fields.next_back()?))
    });
    let holding = lines.filter(|(point, _)| path.starts_with(point));
    // The last of several on one point lies over the others.
    let (_, options) = holding.max_by_key(|(point, _)| point.components().count())?;
    Some(String::from_utf8_lossy(options).into_owned())
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let number = after
            .first_chunk::<3>()
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = match number {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
        out.push(number.unwrap_or(byte));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_nearest_filesystem_above() {
        let table = b"21 1 0:20 / / rw - ext4 /dev/a rw\n22 21 0:21 /s /srv rw,noatime shared:1 - btrfs /dev/b rw,compress=zstd:3\n23 22 0:22 / /srv/a\\040b rw - btrfs /dev/c rw,ssd\n";
        let of = |path: &str| options_in(table, Path::new(path)).unwrap();
        assert_eq!(of("/srv/x"), "rw,compress=zstd:3");
        assert_eq!(of("/srv/a b/x"), "rw,ssd");
        assert_eq!(of("/srvx"), "rw");
        assert!(mount_options(Path::new("/proc")).is_some());
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        assert_eq!(unescaped(b"/a\\040b\\134"), b"/a b\\");
        assert_eq!(unescaped(b"/plain\\9"), b"/plain\\9");
        assert_eq!(
            mounted_in(Path::new("/proc")).unwrap().unwrap(),
            Path::new("/proc")
        );
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(mounted_in(nowhere.path()).unwrap(), None);
    }
}
