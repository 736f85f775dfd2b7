//! The local directory beneath a mount, by descriptors alone.
//!
//! A program that uses the mount may rename a directory and put a link in its place while another request is on its way through it.
//! So each request finds its directory without following any link ([`crate::tree::beneath`]): root never acts outside.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::Result;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, StatVfs, Uid};

use crate::tree::beneath::{self, cut};

/// A file that has another name in the local directory than in the mount.
#[derive(Debug)]
pub struct Alias {
    pub shown: PathBuf,
    /// Its path in the local directory.
    pub stored: PathBuf,
}

/// The local directory; paths are those of the mount.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    alias: Alias,
}

impl Directory {
    /// Opens the directory; it is not mounted over yet.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn open(path: &Path, alias: Alias) -> Result<Directory> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Directory { root, alias })
    }

    fn stored<'p>(&'p self, path: &'p Path) -> &'p [u8] {
        let stored = match path == self.alias.shown {
            true => &self.alias.stored,
            false => path,
        };
        stored.as_os_str().as_bytes()
    }

    fn at(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let opened = beneath::open(self.root.as_fd(), self.stored(path), flags, mode);
        Ok(opened?)
    }

    /// The directory of a path, and its name there.
    fn parent<'p>(&'p self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        let (above, name) = cut(self.stored(path));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent = beneath::open(self.root.as_fd(), above, flags, Mode::empty())?;
        Ok((parent, OsStr::from_bytes(name)))
    }

    /// Returns what a path itself is: a link is not followed.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn metadata(&self, path: &Path) -> Result<Metadata> {
        File::from(self.at(path, OFlags::PATH, Mode::empty())?).metadata()
    }

    /// Opens a file for reading, and for writing where `is_written`.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn file(&self, path: &Path, is_written: bool) -> Result<File> {
        let access = match is_written {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(self.at(path, flags, Mode::empty())?.into())
    }

    /// Makes a file, or takes the one that is there unless `is_new`.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn create(&self, path: &Path, mode: u32, is_new: bool) -> Result<File> {
        let mut flags = OFlags::RDWR | OFlags::CREATE;
        flags.set(OFlags::EXCL, is_new);
        Ok(self.at(path, flags, mode_of(mode))?.into())
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn make_directory(&self, path: &Path, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(parent, name, mode_of(mode))?)
    }

    /// Makes a link with this text.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn make_link(&self, path: &Path, text: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::symlinkat(text, parent, name)?)
    }

    /// Returns the text of a link.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn link_text(&self, path: &Path) -> Result<OsString> {
        let (parent, name) = self.parent(path)?;
        let text = rustix::fs::readlinkat(parent, name, Vec::new())?;
        Ok(OsString::from_vec(text.into_bytes()))
    }

    /// Gives a file, a directory or a link itself to a user.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn give(&self, path: &Path, uid: u32, gid: u32) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        let given = rustix::fs::chownat(parent, name, Some(uid), Some(gid), itself);
        Ok(given?)
    }

    /// Changes permissions; a link has none.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn set_mode(&self, path: &Path, mode: u32) -> Result<()> {
        // The owner may change a file that it may not read, which only a descriptor without access reaches.
        let file = self.at(path, OFlags::PATH, Mode::empty())?;
        Ok(rustix::fs::chmod(path_of(&file), mode_of(mode))?)
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn add_name(&self, from: &Path, to: &Path) -> Result<()> {
        let (old, old_name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        let itself = AtFlags::empty();
        Ok(rustix::fs::linkat(old, old_name, new, new_name, itself)?)
    }

    /// Renames; the program that asks syncs the directory.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (old, old_name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(old, old_name, new, new_name)?)
    }

    /// Removes a file or a link, or, where `is_directory`, an empty directory.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn remove(&self, path: &Path, is_directory: bool) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = match is_directory {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        Ok(rustix::fs::unlinkat(parent, name, flags)?)
    }

    /// Lists the entries of a directory, under their names in the mount.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn list(&self, path: &Path) -> Result<Vec<(OsString, FileType)>> {
        let mut listed = Vec::new();
        for entry in Dir::read_from(self.readable(path)?)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let name = self.shown_name(path, name);
            let kind = match entry.file_type() {
                // Some filesystems do not say.
                FileType::Unknown => {
                    FileType::from_raw_mode(self.metadata(&path.join(&name))?.mode())
                }
                known => known,
            };
            listed.push((name, kind));
        }
        Ok(listed)
    }

    fn readable(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.at(path, flags, Mode::empty())
    }

    /// The name that an entry has in the mount.
    fn shown_name(&self, directory: &Path, stored: &OsStr) -> OsString {
        let alias = &self.alias;
        let is_it =
            alias.stored.parent() == Some(directory) && alias.stored.file_name() == Some(stored);
        let shown = alias.shown.file_name().filter(|_| is_it);
        shown.unwrap_or(stored).to_owned()
    }

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn sync(&self, path: &Path) -> Result<()> {
        File::from(self.readable(path)?).sync_all()
    }

    /// The room of the filesystem.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub fn room(&self) -> Result<StatVfs> {
        let root = self.at(Path::new(""), OFlags::PATH, Mode::empty())?;
        Ok(rustix::fs::fstatvfs(root)?)
    }

    /// Mounts a directory over its own path in the mount, which is at `root`. No link on the way leads root elsewhere.
    ///
    /// # Errors
    /// Those of the kernel, for a user that may not mount.
    pub fn bind(&self, path: &Path, root: &Path) -> Result<Bound> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.at(path, flags, Mode::empty())?;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let relative = path.as_os_str().as_bytes();
        over(&directory, || {
            beneath::open(root.as_fd(), relative, flags, Mode::empty())
        })
    }
}

/// Mounts a directory over another one, for this process and others of its namespace.
///
/// # Errors
/// Those of the kernel, for a user that may not mount.
pub fn bind(directory: &Path, place: &Path) -> Result<Bound> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    over(&open(directory)?, || open(place))
}

fn over(directory: &OwnedFd, place: impl Fn() -> rustix::io::Result<OwnedFd>) -> Result<Bound> {
    rustix::mount::mount_bind(path_of(directory), path_of(&place()?))?;
    Ok(Bound(place()?))
}

/// A directory that is mounted over another; dropped, it is not.
#[derive(Debug)]
pub struct Bound(OwnedFd);

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(path_of(&self.0), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A path that leads to an open file, whatever its name is by now.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias() -> Alias {
        Alias {
            shown: "d/shown".into(),
            stored: "d/stored".into(),
        }
    }

    #[test]
    fn no_link_on_the_way_leads_out() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, out) = (inside.path(), outside.path());
        for path in ["b", "b/full"] {
            std::fs::create_dir(out.join(path)).unwrap();
        }
        std::fs::write(out.join("b/file"), "secret").unwrap();
        let directory = Directory::open(root, alias()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("own"), "").unwrap();
        // A request that is on its way to a/b finds another program's link there.
        directory.rename("a".as_ref(), "z".as_ref()).unwrap();
        directory.make_link("a".as_ref(), out).unwrap();
        let at = |name: &str| PathBuf::from(format!("a/b/{name}"));
        let (new, file, own) = (at("new"), at("file"), PathBuf::from("own"));
        let failed = [
            directory.create(&new, 0o600, true).is_err(),
            directory.create(&file, 0o600, false).is_err(),
            directory.file(&file, true).is_err(),
            directory.metadata(&file).is_err(),
            directory.make_directory(&new, 0o700).is_err(),
            directory.make_link(&new, out).is_err(),
            directory.link_text(&file).is_err(),
            directory.give(&file, 0, 0).is_err(),
            directory.set_mode(&file, 0o777).is_err(),
            directory.add_name(&own, &new).is_err(),
            directory.add_name(&file, &own.join("x")).is_err(),
            directory.rename(&own, &new).is_err(),
            directory.rename(&file, Path::new("got")).is_err(),
            directory.remove(&file, false).is_err(),
            directory.remove(&at("full"), true).is_err(),
            directory.list(Path::new("a/b")).is_err(),
            directory.sync(Path::new("a/b")).is_err(),
        ];
        assert_eq!(failed, [true; 17]);
        // Nor does a link in the place of the file itself.
        directory
            .make_link(Path::new("l"), &out.join("b/file"))
            .unwrap();
        assert!(directory.file(Path::new("l"), true).is_err());
        assert!(directory.create(Path::new("l"), 0o600, false).is_err());
        assert!(directory.set_mode(Path::new("l"), 0o777).is_err());
        assert!(directory.metadata(Path::new("l")).unwrap().is_symlink());
        assert_eq!(std::fs::read(out.join("b/file")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(out.join("b")).unwrap().count(), 2);
    }

    #[test]
    fn a_file_has_its_other_name_everywhere() {
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("d")).unwrap();
        let directory = Directory::open(inside.path(), alias()).unwrap();
        let shown = Path::new("d/shown");
        directory.create(shown, 0o600, true).unwrap();
        directory.set_mode(shown, 0o640).unwrap();
        assert!(inside.path().join("d/stored").exists());
        let listed = directory.list(Path::new("d")).unwrap();
        assert_eq!(listed, [("shown".into(), FileType::RegularFile)]);
        let mode = directory.metadata(shown).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert!(directory.list(Path::new("")).is_ok() && directory.room().is_ok());
        directory.remove(shown, false).unwrap();
        let left = std::fs::read_dir(inside.path().join("d")).unwrap();
        assert_eq!(left.count(), 0);
    }
}
