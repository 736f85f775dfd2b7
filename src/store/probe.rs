//! Whether a directory can keep what a repository promises: tried on two small files under a temporary name, which are removed again.
//!
//! A directory is refused if a step of publishing an object does not work. The steps are a link that fails when the
//! name is taken, syncs of file and directory, and names that stay what they are. A weakness that only lessens the
//! promise is reported.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::durable::{self, NewFile, Published, TEMPORARY_PREFIX};
use crate::err;
use crate::error::{Code, Error, Result};

/// As long as the longest names of objects: a filesystem that cuts names shows it here.
const NAME: &str =
    "probe-0123456789abcdef0123456789abcdef-000000010000000A000000FE.00000028.backup";

/// Tries `directory`; `nonce` is random. Returns what is weak about it, as clauses.
///
/// # Errors
/// `Refused` when the filesystem cannot keep a repository; what the system says when it cannot be tried.
pub fn probe(directory: &Path, nonce: u64) -> Result<Vec<String>> {
    let shown = directory.display();
    let root = File::open(directory)
        .map_err(|e| Error::from_io(format!("open directory \"{shown}\""), e))?;
    let name = format!(
        "{TEMPORARY_PREFIX}probe.{}.{nonce:016x}",
        std::process::id()
    );
    let work = Work {
        path: directory.join(&name),
    };
    durable::create_directory(root.as_fd(), &name)
        .map_err(|e| failed(directory, "create and sync a directory", e))?;
    let weak = try_objects(directory, &work.path, nonce)?;
    drop(work);
    Ok([weak, kind(&root)].into_iter().flatten().collect())
}

/// The directory of the trial; whatever happens, it goes away.
struct Work {
    path: PathBuf,
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn try_objects(directory: &Path, work: &Path, nonce: u64) -> Result<Option<String>> {
    let refused = |what: &str| {
        Err(err!(
            Refused,
            "the filesystem of \"{}\" {what}",
            directory.display()
        )
        .hint("Nothing was created. A repository needs a filesystem of POSIX semantics, such as ext4 or xfs."))
    };
    let publish = |name: &str, content: &[u8]| -> Result<Published> {
        let attempt = || -> io::Result<Published> {
            let mut file = NewFile::create(open(work)?, name, nonce)?;
            file.write_all(content)?;
            file.publish()
        };
        attempt().map_err(|e| failed(directory, "write, sync and link a file", e))
    };
    if publish(NAME, b"one")? != Published::Created || publish(NAME, b"two")? != Published::Exists {
        return refused("replaces files instead of refusing a name that is taken");
    }
    let read = |e| failed(directory, "read back a file", e);
    if std::fs::read(work.join(NAME)).map_err(read)? != b"one" {
        return refused("does not give back what was written");
    }
    if work.join(NAME.to_uppercase()).exists() {
        return refused("does not tell upper from lower case in names");
    }
    let names: Vec<_> = std::fs::read_dir(work)
        .map_err(read)?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    if names != [NAME] {
        return refused("changes names");
    }
    let unnamed = rustix::fs::open(
        work,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    );
    Ok(unnamed.err().map(|_| {
        "has no unnamed files: a killed writer leaves a file \".tmp.*\" behind, which expire removes".to_owned()
    }))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(OwnedFd::from(File::open(path)?))
}

/// Makes the error for a failed step: a lack of rights or room, or a filesystem without the operation.
fn failed(directory: &Path, what: &str, error: io::Error) -> Error {
    let error = Error::from_io(
        format!("could not {what} in \"{}\"", directory.display()),
        error,
    );
    match error.code() {
        Code::Denied | Code::Full | Code::ReadOnly => error,
        _ => error
            .with_code(Code::Refused)
            .hint("Nothing was created. A repository needs a filesystem of POSIX semantics, such as ext4 or xfs."),
    }
}

/// Returns a remark about the kind of filesystem, if it needs one. Linux: include/uapi/linux/magic.h.
fn kind(root: &File) -> Option<String> {
    let kind = rustix::fs::fstatfs(root).ok()?.f_type;
    // The field's width differs between architectures; magic numbers have 32 bits.
    let text = match u32::try_from(kind.rem_euclid(1 << 32)).ok()? {
        0x0102_1994 | 0x8584_58F6 => "lies in memory: a reboot takes everything",
        0x794C_7630 => {
            "is an overlay, as in a container: it ends with the container unless it is a volume"
        }
        0x6969 => "is NFS: mount it \"hard\", and let the server export it \"sync\"",
        0xFF53_4D42 | 0xFE53_4D42 => "is SMB: whether a sync reaches the disk is up to its server",
        0x6573_5546 => "is FUSE: whether a sync reaches the disk is up to its program",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_directory_passes_and_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        probe(directory.path(), 7).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_cannot_be_tried() {
        let directory = tempfile::tempdir().unwrap();
        assert!(probe(&directory.path().join("none"), 7).is_err());
    }
}
