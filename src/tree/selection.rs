//! Which entries of a tree are taken.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder, Glob};

use super::beneath;
use super::status::Status;
use crate::err;
use crate::error::Result;

/// The first bytes of a `CACHEDIR.TAG` (bford.info/cachedir).
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";

/// Rules by which entries are left out.
#[derive(Debug, Clone)]
pub struct Selection {
    patterns: Gitignore,
    /// The same as they are written.
    lines: Vec<String>,
    /// A directory with an entry of one of these names is not read.
    pub markers: Vec<String>,
    /// A directory with a valid `CACHEDIR.TAG` is not read.
    pub caches: bool,
    /// Files of more bytes are left out.
    pub larger_than_bytes: Option<u64>,
    /// Directories of other filesystems are not read.
    pub one_file_system: bool,
}

impl Selection {
    /// Rules with these patterns, in the syntax of gitignore, and no others.
    ///
    /// # Errors
    /// `Config` for a pattern that has no meaning.
    pub fn new(patterns: &[String]) -> Result<Selection> {
        let mut builder = GitignoreBuilder::new("");
        for pattern in patterns {
            let wrong = |e: ignore::Error| {
                let shown = pattern.escape_debug();
                err!(Config, "pattern \"{shown}\" of exclude has no meaning: {e}")
                    .hint("Nothing was stored. Patterns are those of gitignore: *.tmp, /cache/, !keep.tmp.")
            };
            builder.add_line(None, &line(pattern)).map_err(wrong)?;
        }
        let compiled = builder
            .build()
            .map_err(|e| err!(Config, "the patterns of exclude have no meaning: {e}"))?;
        Ok(Selection {
            patterns: compiled,
            lines: patterns.to_vec(),
            markers: Vec::new(),
            caches: false,
            larger_than_bytes: None,
            one_file_system: false,
        })
    }

    /// Everything.
    ///
    /// # Errors
    /// None that is known.
    pub fn all() -> Result<Selection> {
        Selection::new(&[])
    }

    /// Whether it depends on the state of an entry, and not on its name alone, whether the entry is taken.
    pub fn judges_state(&self) -> bool {
        !self.markers.is_empty()
            || self.caches
            || self.larger_than_bytes.is_some()
            || self.one_file_system
    }

    /// Returns a hash by which a backup tells under which rules it was taken.
    pub fn digest(&self) -> String {
        let rules = serde_json::json!([
            self.lines,
            self.markers,
            self.caches,
            self.larger_than_bytes,
            self.one_file_system
        ]);
        blake3::hash(rules.to_string().as_bytes())
            .to_hex()
            .to_string()
    }

    /// Returns the pattern that leaves an entry out, if the last one that matches does.
    pub fn excludes(&self, path: &[u8], is_directory: bool) -> Option<&str> {
        match self.decides(path, is_directory) {
            Some((pattern, true)) => Some(pattern),
            _ => None,
        }
    }

    /// Whether a pattern leaves out the key of an object, or a directory that the key names. The key need not be a path.
    pub fn excludes_key(&self, key: &[u8]) -> bool {
        let slashes = key.iter().enumerate().filter(|(_, b)| **b == b'/');
        let mut above = slashes.filter_map(|(at, _)| key.get(..at));
        above.any(|above| !above.is_empty() && self.excludes(above, true).is_some())
            || self.excludes(key, false).is_some()
    }

    /// Returns the last pattern that matches an entry, and whether it leaves the entry out.
    pub fn decides(&self, path: &[u8], is_directory: bool) -> Option<(&str, bool)> {
        let path = Path::new(OsStr::from_bytes(path));
        match self.patterns.matched(path, is_directory) {
            Match::Ignore(glob) => Some((self.written(glob), true)),
            Match::Whitelist(glob) => Some((self.written(glob), false)),
            Match::None => None,
        }
    }

    /// The pattern as the operator wrote it.
    fn written<'s>(&'s self, glob: &'s Glob) -> &'s str {
        let compiled = glob.original();
        let bare = compiled.strip_prefix('\\');
        match bare.filter(|bare| bare.starts_with('#')) {
            Some(bare) if !self.lines.iter().any(|l| l == compiled) => bare,
            _ => compiled,
        }
    }

    /// Whether a file is too large.
    pub fn is_too_large(&self, bytes: u64) -> bool {
        self.larger_than_bytes.is_some_and(|most| bytes > most)
    }

    /// Whether something in a directory says that it is not to be read.
    pub(super) fn is_marked(&self, directory: BorrowedFd<'_>) -> bool {
        self.mark(directory).is_some()
    }

    /// Returns the key by which a directory's content is left out, and the name of the entry that says so.
    pub(super) fn mark(&self, directory: BorrowedFd<'_>) -> Option<(&'static str, Option<String>)> {
        let has = |name: &&String| Status::at(directory, name.as_bytes()).is_ok();
        match self.markers.iter().find(has) {
            Some(name) => Some(("exclude_if_present", Some(name.clone()))),
            None => (self.caches && is_cache(directory)).then_some(("exclude_caches", None)),
        }
    }
}

/// Pure: a pattern as a line of gitignore. There `#` begins a comment; here it is a name, as in `#recycle`.
pub(super) fn line(pattern: &str) -> Cow<'_, str> {
    match pattern.starts_with('#') {
        true => format!("\\{pattern}").into(),
        false => pattern.into(),
    }
}

fn is_cache(directory: BorrowedFd<'_>) -> bool {
    let mut found = [0; CACHE_SIGNATURE.len()];
    let opened = beneath::open_file(directory, CACHE_TAG).map(std::fs::File::from);
    opened.is_ok_and(|mut file| file.read_exact(&mut found).is_ok() && found == CACHE_SIGNATURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_gitignore() {
        let patterns = ["*.tmp", "!keep.tmp", "/cache/", "logs/**/old", "# note"];
        let selection = Selection::new(&patterns.map(str::to_owned)).unwrap();
        let excludes = |path: &str, is_directory| {
            let found = selection.excludes(path.as_bytes(), is_directory);
            found.map(str::to_owned)
        };
        assert_eq!(excludes("a/b.tmp", false).as_deref(), Some("*.tmp"));
        assert_eq!(excludes("a/keep.tmp", false), None);
        assert_eq!(excludes("cache", true).as_deref(), Some("/cache/"));
        assert_eq!(excludes("cache", false), None);
        assert_eq!(excludes("a/cache", true), None);
        assert!(excludes("logs/a/b/old", true).is_some());
        assert_eq!(excludes("note", false), None);
        // Names of a NAS, and no comments.
        let patterns = ["#recycle/", "/#snapshot/", "\\#old"].map(str::to_owned);
        let named = Selection::new(&patterns).unwrap();
        assert_eq!(named.excludes(b"a/#recycle", true), Some("#recycle/"));
        assert_eq!(named.excludes(b"#snapshot", true), Some("/#snapshot/"));
        assert_eq!(named.excludes(b"a/#old", false), Some("\\#old"));
        let raw = Selection::new(&["*.x".to_owned()]).unwrap();
        assert!(raw.excludes(b"\xff\xfe.x", false).is_some());
        let wrong = Selection::new(&["a{b".to_owned()]);
        assert!(wrong.is_err() || wrong.is_ok_and(|s| s.excludes(b"a{b", false).is_some()));
    }

    #[test]
    fn a_key_is_left_out_with_the_directory_that_it_names() {
        let patterns = ["/cache/", "old", "!keep"].map(str::to_owned);
        let selection = Selection::new(&patterns).unwrap();
        for key in ["cache//x", "cache/../y", "cache/a", "a//old", "a/old//keep"] {
            assert!(selection.excludes_key(key.as_bytes()), "{key}");
        }
        for key in ["cache", "caches//x", "a//cache/x", "//x", "../up", "keep/"] {
            assert!(!selection.excludes_key(key.as_bytes()), "{key}");
        }
    }
}
