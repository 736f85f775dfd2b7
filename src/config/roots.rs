//! Which entries of the file system are root's, for a process in a user namespace of its own: there, everybody but its user looks like
//! nobody. Whoever goes in notes before which entries on the way to files that have to be trusted are root's.
//!
//! Linux: user_namespaces(7), "Unmapped user and group IDs".

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::way::Way;

/// The variable that has the noted entries. Whoever sets the environment of pitr acts as its user in any case.
pub const VARIABLE: &str = "PITR_ROOTS";
/// Whom the kernel shows for users that a namespace does not have.
const NOBODY: u32 = 65534;

/// Device and inode.
type Entry = (u64, u64);

/// Whether an entry belongs to root, or was noted as root's.
pub fn is_roots(metadata: &Metadata) -> bool {
    static NOTED: OnceLock<BTreeSet<Entry>> = OnceLock::new();
    let noted = || NOTED.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()));
    match metadata.uid() {
        0 => true,
        NOBODY => noted().contains(&entry(metadata)),
        _ => false,
    }
}

/// Notes which entries on the ways to these files are root's. A way ends early where an entry cannot be looked at.
pub fn noted(files: impl IntoIterator<Item = PathBuf>) -> String {
    let mut all = BTreeSet::new();
    add(&mut all, Path::new("/"));
    for file in files.into_iter().filter(|file| file.is_absolute()) {
        walk(&mut all, &file);
    }
    let words = all
        .iter()
        .map(|(device, inode)| format!("{device}:{inode}"));
    words.collect::<Vec<_>>().join(" ")
}

fn walk(all: &mut BTreeSet<Entry>, file: &Path) {
    let mut way = Way::to(file);
    while let Some(at) = way.next_entry() {
        if !add(all, &at) {
            return;
        }
        match at.is_symlink() {
            true if way.follow(&at).is_err() => return,
            true => {}
            false => way.enter(at),
        }
    }
}

/// Adds an entry if it is root's; whether it can be looked at.
fn add(all: &mut BTreeSet<Entry>, at: &Path) -> bool {
    let Ok(metadata) = at.symlink_metadata() else {
        return false;
    };
    if is_roots(&metadata) {
        all.insert(entry(&metadata));
    }
    true
}

fn entry(metadata: &Metadata) -> Entry {
    (metadata.dev(), metadata.ino())
}

fn parse(text: &str) -> BTreeSet<Entry> {
    let words = text.split(' ').filter_map(|word| word.split_once(':'));
    words
        .filter_map(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_roots_on_the_way_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let link = folder.path().join("link");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let noted = parse(&noted([link, folder.path().join("absent/file")]));
        let is_noted = |path: &Path| noted.contains(&entry(&path.symlink_metadata().unwrap()));
        assert!(is_noted(Path::new("/")));
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(is_noted(&file), is_root);
        assert!(!is_noted(Path::new("/usr/bin")));
    }
}
