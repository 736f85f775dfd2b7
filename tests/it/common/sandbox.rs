//! A temporary folder whose parents the unprivileged user may search, and which is removed in the end.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::program::Program;
use super::user;

/// The beginning of the name of every such folder.
const PREFIX: &str = "pitrtest-";

/// Writes one line for each failure as it happens, past the capture of the runner, who prints all of them at the end: logs are cut.
fn tell_failures_at_once() {
    const LENGTH_MAX: usize = 800;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let place = info.location().map(ToString::to_string);
        let what = info.payload_as_str().unwrap_or("?").replace('\n', " | ");
        let what: String = what.chars().take(LENGTH_MAX).collect();
        let line = format!("failed: {name} at {}: {what}\n", place.unwrap_or_default());
        // One call: lines of several threads do not mix.
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes());
        usual(info);
    }));
}

/// In a folder that is kept although its test is over.
const KEPT: &str = ".kept";

/// A temporary folder, owned by the unprivileged user. Its path is short, because sockets lie under it.
pub struct Sandbox {
    path: PathBuf,
    keep: AtomicBool,
    /// Locked while the folder is in use, which distinguishes it from leftovers of killed tests.
    _in_use: File,
}

impl Sandbox {
    /// Makes one in memory where there is room for it, else on a disk: the files of a server take a second to create on ext4
    /// and a tenth of that in memory (measured: 0.95 s and 0.10 s). `name` is for whoever finds it.
    pub fn new(name: &str) -> Sandbox {
        Sandbox::make(name, &memory().unwrap_or_else(disk))
    }

    /// Makes one on a disk, under `/tmp`, or `/var/tmp` where that is memory: for tests of what a disk does.
    pub fn on_disk(name: &str) -> Sandbox {
        Sandbox::make(name, &disk())
    }

    fn make(name: &str, root: &Path) -> Sandbox {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            sweep(&disk());
            sweep(Path::new(MEMORY));
            tell_failures_at_once();
        });
        let path = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{name}-"))
            .tempdir_in(root)
            .unwrap_or_else(|e| panic!("a temporary folder in {}: {e}", root.display()))
            .keep();
        let in_use = File::open(&path).unwrap();
        rustix::fs::flock(&in_use, FlockOperation::LockExclusive).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        user::own(&path);
        Sandbox {
            path,
            keep: AtomicBool::new(std::env::var_os("PITR_TEST_KEEP").is_some()),
            _in_use: in_use,
        }
    }

    /// Whether it is not in memory.
    pub fn is_on_disk(&self) -> bool {
        !self.path.starts_with(MEMORY)
    }

    /// Returns the folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in it, made or not.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a folder (mode 0700) of the unprivileged user's in it.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let mut made = path.as_path();
        while made != self.path {
            user::own(made);
            made = made.parent().unwrap();
        }
        path
    }

    /// Writes a file (mode 0600) of the unprivileged user's in it.
    pub fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        user::own(&path);
        path
    }

    /// Keeps the folder when the test fails, whatever `PITR_TEST_KEEP` says: for runs that cannot be had again.
    pub fn keep_on_failure(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() && self.keep.load(Ordering::Relaxed) {
            let _ = std::fs::write(self.path.join(KEPT), "");
            eprintln!("kept: {}", self.path.display());
            return;
        }
        remove(&self.path);
    }
}

/// Copies a file or a folder with all that is in it, owners and permissions included, as the unprivileged user. `to` must not be there.
pub fn copy_tree(from: &Path, to: &Path) {
    Program::new("cp").arg("-a").arg(from).arg(to).succeed();
}

/// As [`copy_tree`], but as the user who runs the tests, be it root; `to` may be there.
pub fn copy_all(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copy = Program::new("cp").privileged().arg("-a");
    copy.arg(from.as_ref()).arg(to.as_ref()).succeed();
}

fn remove(path: &Path) {
    // A folder that a test made unwritable does not stop root; for others it is opened first.
    if std::fs::remove_dir_all(path).is_err() {
        let _ = Command::new("chmod")
            .args(["-R", "u+rwX"])
            .arg(path)
            .status();
        let _ = std::fs::remove_dir_all(path);
    }
}

/// A place on a disk: /tmp is memory on some hosts, which has no times of creation and takes memory from the tests.
fn disk() -> PathBuf {
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    let is_memory = |path: &str| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == TMPFS);
    let place = match is_memory("/tmp") {
        true => "/var/tmp",
        false => "/tmp",
    };
    PathBuf::from(std::env::var_os("PITR_TEST_TMP").unwrap_or_else(|| place.into()))
}

const MEMORY: &str = "/dev/shm";

/// [`MEMORY`], unless the caller chose a place, or it or the machine's memory is small, as it is in containers.
fn memory() -> Option<PathBuf> {
    const ROOM: u64 = 4 << 30;
    let stat = rustix::fs::statvfs(MEMORY).ok()?;
    let is_usable = stat.f_bavail.saturating_mul(stat.f_frsize) >= ROOM
        && available_memory()? >= 2 * ROOM
        && std::env::var_os("PITR_TEST_TMP").is_none();
    is_usable.then(|| MEMORY.into())
}

/// Bytes that programs may still use, by the kernel's estimate and the limit of the container.
fn available_memory() -> Option<u64> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let available = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok());
    Some(limit.map_or(available, |limit: u64| available.min(limit)))
}

/// Removes what tests left behind that were killed: folders of ours which nobody holds locked.
fn sweep(root: &Path) {
    let me = rustix::process::geteuid().as_raw();
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let is_test = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if !is_test || path.join(KEPT).exists() {
            continue;
        }
        let Ok(folder) = File::open(&path) else {
            continue;
        };
        let is_ours = folder.metadata().is_ok_and(|meta| {
            // A folder is locked in the moment after it is made; a minute is more than that.
            let is_old = meta
                .modified()
                .is_ok_and(|at| at.elapsed().unwrap_or_default() > Duration::from_secs(60));
            meta.is_dir() && is_old && (me == 0 || meta.uid() == me)
        });
        if is_ours && rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // A filesystem may still be mounted in it (mount.rs).
            if user::is_root() && path.join("disk").is_dir() {
                let _ = Command::new("umount")
                    .args(["-q", "-l"])
                    .arg(path.join("disk"))
                    .output();
            }
            remove(&path);
        }
    }
}
