//! The private folder of a drill, and what drills that were killed left.
//!
//! A drill holds a lock on a file in its folder. A folder whose lock is free is left over: the next drill stops its server and removes it.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::archive::pid_file::PidFile;
use crate::error::{Error, Result};
use crate::host::private_folder;
use crate::operate::{leased, mounted};

/// The beginning of the folder's name.
pub(in crate::operate) const PREFIX: &str = "pitr-drill-";
/// The file that is locked.
const LOCK: &str = "drill.lock";
const DATA: &str = "data";
/// The directory that a fast drill mounts over.
const TREE: &str = "tree";
/// How long a server that was left behind may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// The folder; it is gone when this is dropped.
pub(in crate::operate) struct Sandbox {
    path: PathBuf,
    /// The directory that holds the data directory and its tablespaces.
    tree: PathBuf,
    folder: Option<TempDir>,
    _lock: File,
}

impl Sandbox {
    /// Removes what is left over below a folder, and makes a new one there. One for a mount has a directory of its own for it.
    ///
    /// # Errors
    /// `Refused` where the folder is not there, or its path too long for a socket; `Io`.
    pub(in crate::operate) fn make(below: &Path, is_for_mount: bool) -> Result<Sandbox> {
        let shown = below.display();
        let below = leased::below(below)?;
        sweep(&below);
        let failed = |e| Error::from_io(format!("make a folder in \"{shown}\""), e);
        // Every user who reaches the socket is a superuser of the server.
        let made = leased::make(LOCK, || private_folder(&below, PREFIX));
        let (folder, lock) = made.map_err(failed)?;
        let path = folder.path().to_owned();
        leased::check_path(&path)?;
        let tree = match is_for_mount {
            true => path.join(TREE),
            false => path.clone(),
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).recursive(true);
        builder.create(tree.join("tablespaces")).map_err(failed)?;
        Ok(Sandbox {
            path,
            tree,
            folder: Some(folder),
            _lock: lock,
        })
    }

    /// The folder.
    pub(in crate::operate) fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.tree.join(DATA)
    }

    /// The directory that holds the data directory and its tablespaces.
    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// The place of a tablespace.
    pub(super) fn tablespace(&self, oid: u32) -> PathBuf {
        self.tablespaces().join(oid.to_string())
    }

    /// The directory of all tablespaces.
    pub(super) fn tablespaces(&self) -> PathBuf {
        self.tree.join("tablespaces")
    }

    /// Removes the folder.
    pub(super) fn clear(&mut self) {
        self.folder = None;
    }

    /// Leaves the folder behind; no later drill removes it.
    pub(super) fn keep(&mut self) -> PathBuf {
        if let Some(folder) = self.folder.take() {
            let path = folder.keep();
            // Without it the folder is nobody's leftover.
            let _ = std::fs::remove_file(path.join(LOCK));
        }
        self.path.clone()
    }
}

/// Removes the folders of drills that were killed, as far as they are ours. A folder that cannot be removed costs room only.
fn sweep(below: &Path) {
    for path in leased::folders(below, PREFIX) {
        let Some(_lock) = leased::take_over(&path, LOCK) else {
            continue;
        };
        let tree = path.join(TREE);
        if stop(&path.join(DATA)) && stop(&tree.join(DATA)) {
            mounted::leave(&tree);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Whether a process holds the lock of a folder. One that is gone, or was kept, has none.
pub(in crate::operate) fn is_in_use(folder: &Path) -> bool {
    leased::is_held(folder, LOCK)
}

/// Ends the servers of a data directory that pitr has named at once; whether none runs there any more. Nothing is read in the directory: a mount whose
/// process was killed answers nobody.
pub(in crate::operate) fn stop(data: &Path) -> bool {
    end(|| servers_of(data))
}

/// Ends the server that is named in a data directory of the operator; whether it does not run any more. Servers of containers may have the same
/// path, and are left alone.
pub(in crate::operate) fn stop_named(data: &Path) -> bool {
    let file = PidFile::read(data).unwrap_or_default();
    let named = file.pid.and_then(Pid::from_raw);
    end(|| {
        named
            .into_iter()
            .filter(|pid| is_server_of(*pid, data))
            .collect()
    })
}

/// Signals servers until there are none any more.
fn end(servers: impl Fn() -> Vec<Pid>) -> bool {
    let began = Instant::now();
    loop {
        let servers = servers();
        if servers.is_empty() {
            return true;
        }
        for pid in servers {
            let _ = kill_process(pid, Signal::QUIT);
        }
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The servers of a data directory among the processes of this host.
fn servers_of(data: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|one| one.file_name().to_str()?.parse().ok());
    let all = numbers.filter_map(Pid::from_raw);
    all.filter(|pid| is_server_of(*pid, data)).collect()
}

/// Whether a process is the server of this data directory, by the words that it was started with or by its working directory. A child of a server
/// has a title in their place, and ends with it.
fn is_server_of(pid: Pid, data: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    if name.trim() != "postgres" {
        return false;
    }
    let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
    let is_named = |pair: &[&[u8]]| pair == [b"-D", data.as_os_str().as_bytes()];
    let is_child = || {
        words
            .first()
            .is_some_and(|word| word.starts_with(b"postgres:"))
    };
    let lies_there = || std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == *data);
    // A container has servers at the same path, and numbers of its own for its processes.
    let numbers = |process: &Path| std::fs::read_link(process.join("ns/pid")).ok();
    numbers(&process) == numbers(Path::new("/proc/self"))
        && (words.windows(2).any(is_named) || (lies_there() && !is_child()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_goes_and_what_is_in_use_or_kept_stays() {
        let below = tempfile::tempdir().unwrap();
        let running = Sandbox::make(below.path(), false).unwrap();
        let mut kept = Sandbox::make(below.path(), false).unwrap();
        let kept_path = kept.keep();
        let left = below.path().join("pitr-drill-left");
        std::fs::create_dir_all(left.join(DATA)).unwrap();
        std::fs::write(left.join(LOCK), "").unwrap();
        let next = Sandbox::make(below.path(), false).unwrap();
        assert!(!left.exists());
        assert!(running.path().exists() && kept_path.exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_server_at_the_same_path_that_no_file_names_lives() {
        let below = tempfile::tempdir().unwrap();
        let data = below.path().join(DATA);
        std::fs::create_dir(&data).unwrap();
        let program = below.path().join("postgres");
        std::fs::copy("/bin/sh", &program).unwrap();
        let mut other = std::process::Command::new(&program)
            .args(["-c", "read line", "-D"])
            .arg(&data)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&other);
        while !is_server_of(pid, &data) {
            std::thread::sleep(PAUSE);
        }
        let own = std::process::id().to_string();
        for text in [own, String::new()] {
            std::fs::write(data.join("postmaster.pid"), text).unwrap();
            assert!(stop_named(&data));
        }
        assert!(other.try_wait().unwrap().is_none());
        std::fs::write(data.join("postmaster.pid"), other.id().to_string()).unwrap();
        let waiter = std::thread::spawn(move || other.wait().unwrap());
        assert!(stop_named(&data));
        assert!(!waiter.join().unwrap().success());
    }

    #[test]
    fn a_folder_that_is_not_there_or_has_too_long_a_path_is_refused() {
        use crate::error::Code;
        let below = tempfile::tempdir().unwrap();
        let long = below.path().join("x".repeat(80));
        let refused = |path: &Path| Sandbox::make(path, true).err().unwrap().code();
        assert_eq!(refused(&long), Code::Refused);
        std::fs::create_dir(&long).unwrap();
        assert_eq!(refused(&long), Code::Refused);
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
    }
}
