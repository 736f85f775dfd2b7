//! Tells which rule takes an entry of a directory, or leaves it out.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;

use super::beneath;
use super::filesystem::Filesystem;
use super::selection::Selection;
use super::status::Status;
use crate::error::{Code, Error, Result};

/// The decision about one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Path below the source.
    pub path: String,
    /// Whether a backup has it.
    pub taken: bool,
    /// Whether it is there now. Patterns alone tell about a path that is not.
    pub exists: bool,
    /// The key of the rule that decides; none where no rule speaks of it.
    pub rule: Option<&'static str>,
    /// The value of the key that decides: a pattern, or the name of a marker.
    pub value: Option<String>,
    /// The entry that the rule is about: the path, or a directory above it.
    pub decided_at: Option<String>,
}

impl Verdict {
    fn decided(mut self, at: &[u8], rule: &'static str, value: Option<String>) -> Verdict {
        self.rule = Some(rule);
        self.value = value;
        self.decided_at = Some(match at {
            b"" => ".".to_owned(),
            at => String::from_utf8_lossy(at).into_owned(),
        });
        self
    }
}

/// Decides about `path`, which is relative to `root`. One that is not there is a directory where it ends in a slash.
///
/// # Errors
/// `SourceMissing` when the root cannot be read.
pub fn explain(root: &Path, selection: &Selection, path: &[u8]) -> Result<Verdict> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |e: rustix::io::Errno| {
        Error::from_io(format!("open \"{}\"", root.display()), e.into())
            .with_code(Code::SourceMissing)
    };
    let directory = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let device = Status::of(directory.as_fd()).map_err(failed)?.device;
    let is_named_directory = path.ends_with(b"/");
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let found = beneath::open(directory.as_fd(), path, OFlags::PATH, Mode::empty());
    let mut verdict = Verdict {
        path: String::from_utf8_lossy(path).into_owned(),
        taken: false,
        exists: found.is_ok(),
        rule: None,
        value: None,
        decided_at: None,
    };
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    let ends = ends.map(|(at, _)| at).chain([path.len()]);
    let mut above: &[u8] = b"";
    for end in ends.filter(|end| *end > 0) {
        let at = path.get(..end).unwrap_or_default();
        if let Some((rule, value)) = closed(&directory, above, selection, device) {
            return Ok(verdict.decided(above, rule, value));
        }
        let (parent, name) = beneath::cut(at);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = beneath::open(directory.as_fd(), parent, flags, Mode::empty());
        let status = opened
            .and_then(|parent| Status::at(parent.as_fd(), name))
            .ok();
        let is_directory = match status {
            Some(status) => status.kind == FileType::Directory,
            None => end < path.len() || is_named_directory,
        };
        match selection.decides(at, is_directory) {
            Some((pattern, true)) => {
                return Ok(verdict.decided(at, "exclude", Some(pattern.to_owned())));
            }
            Some((pattern, false)) => {
                verdict = verdict.decided(at, "exclude", Some(pattern.to_owned()));
            }
            None => {}
        }
        let is_file = |status: &Status| status.kind == FileType::RegularFile;
        if status
            .filter(is_file)
            .is_some_and(|status| selection.is_too_large(status.length))
        {
            return Ok(verdict.decided(at, "exclude_larger_than", None));
        }
        above = at;
    }
    verdict.taken = true;
    Ok(verdict)
}

/// The rule by which a directory's content is left out.
fn closed(
    root: &OwnedFd,
    path: &[u8],
    selection: &Selection,
    device: u64,
) -> Option<(&'static str, Option<String>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = beneath::open(root.as_fd(), path, flags, Mode::empty()).ok()?;
    let status = Status::of(directory.as_fd()).ok()?;
    if selection.one_file_system && status.device != device {
        return Some(("one_file_system", None));
    }
    if Filesystem::of(directory.as_fd()) == Filesystem::Invented {
        return Some(("made_up_by_the_kernel", None));
    }
    selection.mark(directory.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_rule_that_decides_is_named_with_its_place() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cache/x", "marked/y", "tagged", "plain"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for (name, bytes) in [
            ("marked/.nobackup", &b""[..]),
            (
                "tagged/CACHEDIR.TAG",
                b"Signature: 8a477f597d28d172789f06886806bc55",
            ),
            ("plain/large", &[0; 2000]),
            ("plain/a.tmp", b""),
            ("plain/keep.tmp", b""),
        ] {
            fs::write(root.path().join(name), bytes).unwrap();
        }
        let patterns = ["*.tmp", "!keep.tmp", "/cache/"].map(str::to_owned);
        let mut selection = Selection::new(&patterns).unwrap();
        selection.markers = vec![".nobackup".to_owned()];
        selection.caches = true;
        selection.larger_than_bytes = Some(1000);
        let cases = [
            ("plain", true, None, None),
            ("plain/a.tmp", false, Some("exclude"), Some("*.tmp")),
            ("plain/keep.tmp", true, Some("exclude"), Some("!keep.tmp")),
            ("plain/large", false, Some("exclude_larger_than"), None),
            ("cache/x/y", false, Some("exclude"), Some("/cache/")),
            ("marked", true, None, None),
            (
                "marked/y/z",
                false,
                Some("exclude_if_present"),
                Some(".nobackup"),
            ),
            ("tagged/x", false, Some("exclude_caches"), None),
            ("gone/a.tmp", false, Some("exclude"), Some("*.tmp")),
            ("gone/a", true, None, None),
        ];
        for (path, taken, rule, value) in cases {
            let verdict = explain(root.path(), &selection, path.as_bytes()).unwrap();
            let found = (verdict.taken, verdict.rule, verdict.value.as_deref());
            assert_eq!(found, (taken, rule, value), "{path}");
            assert_eq!(verdict.exists, root.path().join(path).exists(), "{path}");
        }
        let below = explain(root.path(), &selection, b"cache/x/y").unwrap();
        assert_eq!(below.decided_at.as_deref(), Some("cache"));
    }
}
