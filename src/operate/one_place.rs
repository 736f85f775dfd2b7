//! Two repositories of the configuration that are one place: what is lost in the one is lost in the other.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::session::Session;
use crate::config;
use crate::config::Location;
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

/// The repositories beside one, by their names: two buckets of one name are two places where their endpoints differ.
pub fn beside<'a>(
    own: &config::Repository,
    all: &'a [config::Repository],
) -> impl Iterator<Item = &'a config::Repository> {
    all.iter().filter(move |other| other.name != own.name)
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
    .hint("Let the url of one of them name another place, and run pitr init. A copy that another program makes of a repository has its marker, and a directory or bucket of the same name cannot be told from it.")
}

/// Whether two repositories are one place, by another path, another name of the host, or another way to it. A directory that was copied is
/// another place with the same uuid, and so is a bucket of another name. Elsewhere only the uuid can tell.
pub fn is_one_place((a, at): Place<'_>, (b, there): Place<'_>) -> bool {
    if at.marker().uuid != there.marker().uuid {
        return false;
    }
    match (&a.location, &b.location) {
        (Location::File(a), Location::File(b)) => is_one_directory(a, b),
        // Replication of the store, or another program, copies one into the other.
        (Location::S3 { bucket: a, .. }, Location::S3 { bucket: b, .. }) => {
            a == b || is_alias(a) || is_alias(b)
        }
        _ => true,
    }
}

/// Whether Amazon gives this name to an access point, which leads to a bucket of another name.
fn is_alias(bucket: &str) -> bool {
    bucket.ends_with("-s3alias") || bucket.ends_with("--ol-s3")
}

/// Whether two paths lead to one directory. Two mounts of one NFS have different devices, and the marker in both is one file: it has one inode,
/// and one time of change, which copies of files do not take over. Copies of disks do, so of two local ones the device tells.
fn is_one_directory(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let (own, other) = (identity(a), identity(b));
    if own.is_some() && own == other {
        return true;
    }
    (is_network(a) || is_network(b)) && has_one_marker(a, b)
}

fn has_one_marker(a: &Path, b: &Path) -> bool {
    let marker = |path: &Path| {
        let found = fs::metadata(path.join(MARKER)).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec()))
    };
    let own = marker(a);
    own.is_some() && own == marker(b)
}

/// Whether a directory lies on another host, or is shown by a program: NFS, SMB 1 and 2, FUSE, Ceph, 9P, AFS.
///
/// Linux: include/uapi/linux/magic.h; fs/smb/client/cifsfs.c.
fn is_network(path: &Path) -> bool {
    const KINDS: [u32; 7] = [
        0x6969,
        0xFF53_4D42,
        0xFE53_4D42,
        0x6573_5546,
        0x00C3_6400,
        0x0102_1997,
        0x5346_414F,
    ];
    let found = rustix::fs::statfs(path);
    // The kernel's number is unsigned; the type of the field differs by platform.
    found.is_ok_and(|found| u32::try_from(found.f_type).is_ok_and(|kind| KINDS.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x59_a_bucket_of_the_same_name_at_another_endpoint_lies_beside_it() {
        let at = |name: &str, endpoint: &str| {
            let mut repository = config::Repository::at(Location::S3 {
                bucket: "backups".to_owned(),
                prefix: "shop".to_owned(),
            });
            name.clone_into(&mut repository.name);
            repository.s3.endpoint = Some(endpoint.to_owned());
            repository
        };
        let all = [
            at("here", "https://here.example"),
            at("there", "https://there.example"),
        ];
        for (own, other) in [(0, "there"), (1, "here")] {
            let names: Vec<&str> = beside(&all[own], &all).map(|r| r.name.as_str()).collect();
            assert_eq!(names, [other]);
        }
    }

    #[test]
    fn an_access_point_tells_no_bucket() {
        assert!(is_alias("writer-ap-x1y2z3-s3alias") && is_alias("redacted-x1--ol-s3"));
        assert!(!is_alias("backups") && !is_alias("backups-far"));
    }

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
        for (name, is_one, has_one) in [
            ("one", true, true),
            ("link", true, true),
            // A local disk tells its directories apart.
            ("mounted", false, true),
            ("copied", false, false),
        ] {
            let pair = (of("one"), of(name));
            assert_eq!(is_one_directory(&pair.0, &pair.1), is_one, "{name}");
            assert_eq!(has_one_marker(&pair.0, &pair.1), has_one, "{name}");
        }
        assert!(!is_one_directory(&of("none"), &of("nowhere")));
    }
}
