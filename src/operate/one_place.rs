//! Two repositories of the configuration that are one place: what is lost in the one is lost in the other.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::repository::Repository;
use crate::store::MARKER;

/// A repository of the configuration, opened.
pub type Place<'a> = (&'a config::Repository, &'a Repository);

/// A repository beside another one.
pub enum Elsewhere {
    /// A place of its own.
    Place(Box<Repository>),
    /// The place of the repository of this name, which comes before it.
    SameAs(String),
}

/// Opens the other repositories, and compares their places with that of `own` and with each other's. None counts as another place where `own` cannot
/// be opened.
pub fn elsewhere<'a>(
    session: &Session,
    own: &'a config::Repository,
    others: impl Iterator<Item = &'a config::Repository>,
) -> Vec<(&'a config::Repository, Result<Elsewhere>)> {
    let all = std::iter::once(own).chain(others);
    let opened: Vec<_> = all.map(|one| (one, session.open(one))).collect();
    let place = |at: usize| -> Option<Place<'_>> {
        let (configured, opened) = opened.get(at)?;
        Some((*configured, opened.as_ref().ok()?))
    };
    let same: Vec<Option<String>> = (0..opened.len())
        .map(|at| {
            let this = place(at)?;
            let is_same = |n: &usize| place(*n).is_some_and(|other| is_one_place(this, other));
            let first = (0..at).find(is_same)?;
            opened.get(first).map(|(first, _)| first.name.clone())
        })
        .collect();
    let is_known = place(0).is_some();
    let compared = opened.into_iter().zip(same).skip(1);
    let judge = |(configured, opened): (_, Result<Repository>), same| {
        let judged = match (same, is_known) {
            (Some(name), _) => Ok(Elsewhere::SameAs(name)),
            (None, true) => opened.map(|place| Elsewhere::Place(Box::new(place))),
            (None, false) => Err(err!(
                Unreachable,
                "repository \"{}\" cannot be compared with it",
                own.name
            )),
        };
        (configured, judged)
    };
    compared.map(|(one, same)| judge(one, same)).collect()
}

/// Says why a repository is no other copy.
pub fn is_the_same(name: &str) -> Error {
    err!(
        Config,
        "it is the same place as \"{name}\": the two are one copy"
    )
    .hint("Let the url of one of them name another place, and run pitr init.")
}

/// Whether two repositories are one place, by another path, another name of the host, or another way to it. A directory that was copied is
/// another place with the same uuid. Elsewhere only the uuid can tell.
pub fn is_one_place((a, at): Place<'_>, (b, there): Place<'_>) -> bool {
    if at.marker().uuid != there.marker().uuid {
        return false;
    }
    match (a.location.directory(), b.location.directory()) {
        (Some(a), Some(b)) => is_one_directory(a, b),
        _ => true,
    }
}

/// Whether two paths lead to one directory. Two mounts of one NFS have different devices, and the marker in both is one file: it has one inode,
/// and one time of change, which no copy takes over.
fn is_one_directory(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let (own, other) = (identity(a), identity(b));
    if own.is_some() && own == other {
        return true;
    }
    let marker = |path: &Path| {
        let found = fs::metadata(path.join(MARKER)).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec()))
    };
    let own = marker(a);
    own.is_some() && own == marker(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_the_same_marker_is_one_and_a_copy_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        for name in ["one", "mounted", "copied"] {
            fs::create_dir(of(name)).unwrap();
        }
        fs::write(of("one").join(MARKER), b"{}").unwrap();
        // Another mount shows the same file below another directory.
        fs::hard_link(of("one").join(MARKER), of("mounted").join(MARKER)).unwrap();
        fs::copy(of("one").join(MARKER), of("copied").join(MARKER)).unwrap();
        std::os::unix::fs::symlink(of("one"), of("link")).unwrap();
        for (name, is_one) in [
            ("one", true),
            ("link", true),
            ("mounted", true),
            ("copied", false),
        ] {
            assert_eq!(is_one_directory(&of("one"), &of(name)), is_one, "{name}");
        }
        assert!(!is_one_directory(&of("none"), &of("nowhere")));
    }
}
