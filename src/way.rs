//! The way to a path, entry by entry, through symbolic links: who checks each entry decides whether it is followed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// A way that begins at the root directory.
pub struct Way {
    /// The directory that was entered last, without links.
    real: PathBuf,
    left: VecDeque<OsString>,
    links: usize,
}

impl Way {
    /// The way to an absolute path.
    pub fn to(path: &Path) -> Way {
        Way {
            real: PathBuf::from("/"),
            left: parts(path),
            links: 0,
        }
    }

    /// Returns the next entry; none at the end. Who walks enters it, or follows it where it is a link.
    pub fn next_entry(&mut self) -> Option<PathBuf> {
        while let Some(part) = self.left.pop_front() {
            if part != ".." {
                return Some(self.real.join(part));
            }
            self.real.pop();
        }
        None
    }

    /// Goes on below an entry that is no link.
    pub fn enter(&mut self, entry: PathBuf) {
        self.real = entry;
    }

    /// Goes on where a link leads.
    ///
    /// # Errors
    /// `ELOOP` behind too many links; those of reading it.
    pub fn follow(&mut self, link: &Path) -> io::Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = std::fs::read_link(link)?;
        if target.is_absolute() {
            self.real = PathBuf::from("/");
        }
        let mut left = parts(&target);
        left.append(&mut self.left);
        self.left = left;
        Ok(())
    }

    /// The path without links.
    pub fn end(self) -> PathBuf {
        self.real
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let is_part =
        |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    let parts = path.components().filter(is_part);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}
