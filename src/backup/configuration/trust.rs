//! Links that are followed: those that nobody but root and the effective user could have made, or could change.
//!
//! `pitr config` often runs as root, and the owner of an application's directory could plant a link to a file that only root reads.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};

use crate::config::trust;
use crate::tree::beneath;

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// The reason for which a path leads nowhere.
#[derive(Debug)]
pub enum Stop {
    /// A link, by its real place, is not trusted.
    Untrusted(PathBuf),
    /// The system says so.
    Failed(Error),
}

impl Stop {
    /// Whether the path leads to nothing, as far as anybody may know.
    pub fn is_absence(&self) -> bool {
        matches!(self, Stop::Failed(e) if is_absence(e))
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Untrusted(link) => write!(
                f,
                "link \"{}\" is not followed: others than root and the user of pitr could have made it, or could change what it leads to",
                link.display()
            ),
            Stop::Failed(e) => e.fmt(f),
        }
    }
}

/// Whether an error says that nothing is there.
pub fn is_absence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// An entry on the way.
struct Seen {
    /// It belongs to root or the effective user, and only they may write a directory.
    is_trusted: bool,
    /// The target of a link.
    target: Option<PathBuf>,
}

/// The system, or that of a test.
type Look<'l> = &'l dyn Fn(&Path) -> Result<Seen>;

/// Returns the real path of what a path leads to.
///
/// # Errors
/// The first link that is not trusted; what the system says.
pub fn resolve(path: &Path) -> std::result::Result<PathBuf, Stop> {
    walk(path, true, &on_disk)
}

/// Returns the real path of the entry that a path names, be it a link.
///
/// # Errors
/// As [`resolve`].
pub fn place(path: &Path) -> std::result::Result<PathBuf, Stop> {
    walk(path, false, &on_disk)
}

/// The names in a directory, which is given by its real path.
///
/// # Errors
/// The errors of the system; also for a link that took the place of a directory.
pub fn list(real: &Path) -> Result<Vec<OsString>> {
    let root = File::open("/")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = beneath::open(root.as_fd(), relative(real), flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Opens a file by its real path.
///
/// # Errors
/// As [`list`].
pub fn open(real: &Path) -> Result<File> {
    let root = File::open("/")?;
    Ok(File::from(beneath::open_file(
        root.as_fd(),
        relative(real),
    )?))
}

/// The path without its first slash, as a backup has it.
pub fn relative(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

fn on_disk(path: &Path) -> Result<Seen> {
    let metadata = path.symlink_metadata()?;
    let target = match metadata.is_symlink() {
        true => Some(std::fs::read_link(path)?),
        false => None,
    };
    Ok(Seen {
        is_trusted: is_trusted(&metadata),
        target,
    })
}

/// A sticky directory is one that others write: a link in it may be anybody's.
fn is_trusted(metadata: &Metadata) -> bool {
    trust::is_own(metadata) && (metadata.is_symlink() || trust::is_closed(metadata))
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    })
}

fn walk(path: &Path, follows_last: bool, look: Look<'_>) -> std::result::Result<PathBuf, Stop> {
    let failed = Stop::Failed;
    let root = look(Path::new("/")).map_err(failed)?;
    let mut real = PathBuf::from("/");
    // One for each directory of the real path.
    let mut trusted = vec![root.is_trusted];
    let mut last_link: Option<PathBuf> = None;
    let mut links = 0;
    let mut left: VecDeque<OsString> = parts(path).collect();
    while let Some(part) = left.pop_front() {
        if let Some(link) = &last_link
            && trusted.contains(&false)
        {
            return Err(Stop::Untrusted(link.clone()));
        }
        if part == OsStr::new("..") {
            if trusted.len() > 1 {
                real.pop();
                trusted.pop();
            }
            continue;
        }
        let at = real.join(&part);
        let seen = look(&at).map_err(failed)?;
        let target = match seen.target {
            Some(target) if follows_last || !left.is_empty() => target,
            _ => {
                real = at;
                trusted.push(seen.is_trusted);
                continue;
            }
        };
        if !seen.is_trusted || trusted.contains(&false) {
            return Err(Stop::Untrusted(at));
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(failed(rustix::io::Errno::LOOP.into()));
        }
        if target.is_absolute() {
            real = PathBuf::from("/");
            trusted.truncate(1);
        }
        for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
            left.push_front(part);
        }
        last_link = Some(at);
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that end in `-theirs` belong to others; `->` leads to a target.
    fn fake(path: &Path) -> Result<Seen> {
        let is_trusted = !path.to_str().unwrap().ends_with("-theirs");
        let links = [
            ("/etc/app", "/srv/app"),
            ("/etc/near", "../srv/app/./x"),
            ("/etc/loop", "loop"),
            ("/etc/out", "/home-theirs/x"),
            ("/etc/in", "/home-theirs"),
            ("/etc/chain", "app"),
            ("/etc/planted-theirs", "/root/key"),
            ("/home-theirs/link", "/root/key"),
        ];
        let target = links.iter().find(|(name, _)| Path::new(name) == path);
        if path.ends_with("none") {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(Seen {
            is_trusted,
            target: target.map(|(_, target)| PathBuf::from(target)),
        })
    }

    #[test]
    fn links_are_followed_that_only_root_could_have_made() {
        let resolved = |path: &str| match walk(Path::new(path), true, &fake) {
            Ok(real) => real.display().to_string(),
            Err(Stop::Untrusted(link)) => format!("! {}", link.display()),
            Err(Stop::Failed(e)) => format!("? {:?}", e.kind()),
        };
        for (path, expected) in [
            ("/", "/"),
            ("/../a//b/./c/..", "/a/b"),
            ("/etc/app/.env", "/srv/app/.env"),
            ("/etc/near", "/srv/app/x"),
            ("/etc/chain/x", "/srv/app/x"),
            ("/etc/loop", "? FilesystemLoop"),
            ("/etc/none/x", "? NotFound"),
            // No link is on the way, so that the path is what it says.
            ("/home-theirs/.env", "/home-theirs/.env"),
            ("/etc/planted-theirs", "! /etc/planted-theirs"),
            ("/etc/planted-theirs/x", "! /etc/planted-theirs"),
            ("/home-theirs/link", "! /home-theirs/link"),
            ("/home-theirs/link/x", "! /home-theirs/link"),
            ("/etc/out", "! /etc/out"),
            // The directory itself is looked at without a link; what is behind it is not trusted.
            ("/etc/in", "/home-theirs"),
            ("/etc/in/x", "! /etc/in"),
        ] {
            let expected = match expected {
                "? FilesystemLoop" => {
                    format!("? {:?}", Error::from(rustix::io::Errno::LOOP).kind())
                }
                other => other.to_owned(),
            };
            assert_eq!(resolved(path), expected, "{path}");
        }
        let link = walk(Path::new("/home-theirs/link"), false, &fake).unwrap();
        assert_eq!(link, Path::new("/home-theirs/link"));
    }

    #[test]
    fn directories_that_others_write_are_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", directory.path().join("link")).unwrap();
        let is_trusted = |path: &Path| is_trusted(&path.symlink_metadata().unwrap());
        assert!(is_trusted(directory.path()) && is_trusted(&directory.path().join("link")));
        for mode in [0o720, 0o702, 0o1777] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(directory.path(), mode).unwrap();
            assert!(!is_trusted(directory.path()));
        }
    }
}
