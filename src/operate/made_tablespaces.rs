//! The tablespaces that recovery makes behind a backup. It takes a directory that is there, with all files in it: those of the cluster itself, where
//! that lives on this host.
//!
//! PostgreSQL: src/backend/commands/tablespace.c (`create_tablespace_directories`): only outside of recovery is a directory refused that is in use.

use std::path::{Path, PathBuf};

use super::archive_command::shell_word;
use crate::err;
use crate::error::{Error, Result};
use crate::restore::replace::Old;
use crate::restore::target_dir::PlacedTablespace;
use crate::wal::tablespaces::Made;

/// Requires that no files lie where recovery makes a tablespace, and that no other one is restored there. Files of the cluster that is replaced are moved
/// aside before.
///
/// # Errors
/// `Refused`.
pub fn require_free(
    made: &Made,
    major: u32,
    placed: &[PlacedTablespace],
    replaces: Option<&Old>,
) -> Result<()> {
    for (oid, path) in made {
        let real = real_of(path);
        if let Some(other) = restored_there(placed, &real, replaces) {
            // No two had one place: the other one was dropped before this one was made. Files that are there are this restore's own.
            if other.oid == *oid || other.original == *path {
                continue;
            }
            return Err(err!(
                Refused,
                "recovery makes tablespace {oid} in \"{}\", where tablespace {} would be restored",
                path.display(),
                other.oid
            )
            .hint(format!(
                "Nothing was written. The two would write into the files of each other. Give the second another place: --tablespace-mapping {}=DIR",
                other.oid
            )));
        }
        if replaces.is_some_and(|old| old.has_tablespace(&real)) {
            continue;
        }
        if let Some(files) = in_the_way(&real, major) {
            return Err(err!(
                Refused,
                "recovery makes tablespace {oid} in \"{}\", and would write into the files of \"{}\"",
                path.display(),
                files.display()
            )
            .hint("Nothing was written. These may be the files of the cluster itself.\nA backup that has the tablespace leads it elsewhere: take one with pitr backup, and name a later moment.\nFor this moment, restore on another host. If no cluster needs the files, move that directory away."));
        }
    }
    Ok(())
}

/// Names the directories that recovery needs, and that are not there. Nothing else makes them. `user` is whom the server runs as.
pub fn absent<'a>(
    made: &'a Made,
    placed: &'a [PlacedTablespace],
    replaces: Option<&'a Old>,
    user: &str,
) -> impl Iterator<Item = String> {
    let user = shell_word(user);
    let absent = made.iter().filter(move |(_, path)| {
        matches!(path.try_exists(), Ok(false))
            && restored_there(placed, &real_of(path), replaces).is_none()
    });
    absent.map(move |(oid, path)| {
        // The place comes out of WAL: who can write to the repository chooses it.
        let word = shell_word(&path.to_string_lossy());
        format!(
            "recovery makes tablespace {oid} in \"{}\", which does not exist, so it would end there: make it for the server's user before the start: install -d -o {user} -m 700 {word}",
            path.display()
        )
    })
}

/// The tablespace of the backup that is restored in a directory.
fn restored_there<'a>(
    placed: &'a [PlacedTablespace],
    real: &Path,
    replaces: Option<&Old>,
) -> Option<&'a PlacedTablespace> {
    placed.iter().find(|one| match replaces {
        // It waits in a directory there.
        Some(_) => one.real.parent() == Some(real),
        None => one.real == real,
    })
}

/// A directory without links on the way; of one that does not exist, its parent's.
fn real_of(path: &Path) -> PathBuf {
    let real = path.canonicalize().ok();
    let below = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    real.or_else(below).unwrap_or_else(|| path.to_owned())
}

/// Refuses a server that is to leave the host as it is.
///
/// # Errors
/// `Refused`.
pub fn refuse(made: &Made) -> Result<()> {
    match made.first_key_value() {
        None => Ok(()),
        Some((oid, path)) => Err(outside(*oid, path)),
    }
}

fn outside(oid: u32, path: &Path) -> Error {
    err!(
        Refused,
        "recovery to this moment makes tablespace {oid} in \"{}\", outside of the copy",
        path.display()
    )
    .hint("Nothing was started: the server would write there, into the files of the cluster itself where it lives on this host.\nA backup that has the tablespace leads it elsewhere: take one with pitr backup, and name a later moment.\nFor this moment, restore on another host: pitr restore")
}

/// The directory of a tablespace that is not empty.
fn in_the_way(path: &Path, major: u32) -> Option<PathBuf> {
    let beginning = format!("PG_{major}_");
    let entries = std::fs::read_dir(path).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        name.as_encoded_bytes()
            .starts_with(beginning.as_bytes())
            .then(|| entry.path())
    });
    let is_used =
        |at: &PathBuf| std::fs::read_dir(at).is_ok_and(|mut files| files.next().is_some());
    entries.into_iter().find(is_used)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tablespace of a backup that goes from one directory into another one.
    fn placed(oid: u32, original: &Path, to: &Path) -> PlacedTablespace {
        PlacedTablespace {
            oid,
            original: original.to_owned(),
            path: to.to_owned(),
            real: real_of(to),
        }
    }

    #[test]
    fn r216_no_tablespace_is_led_into_the_directory_of_one_that_recovery_makes() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let made = Made::from([(20, two.clone())]);
        let free = |to: &Path| require_free(&made, 17, &[placed(10, &one, to)], None);
        for is_there in [false, true] {
            let refused = free(&two).unwrap_err();
            assert!(
                refused.to_string().contains("tablespace 10 would"),
                "{refused}"
            );
            assert!(free(&one).is_ok());
            if !is_there {
                std::fs::create_dir(&two).unwrap();
            }
        }
        // By another name it is the same directory.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&two, &link).unwrap();
        assert!(free(&link).is_err());
    }

    #[test]
    fn r220_files_of_the_restore_itself_are_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(one.join("PG_17_202406281/5")).unwrap();
        let made = |oid: u32| Made::from([(oid, one.clone())]);
        let free = |made: &Made, placed: &[PlacedTablespace]| require_free(made, 17, placed, None);
        // One that was dropped, and made again in its place.
        assert!(free(&made(20), &[placed(10, &one, &one)]).is_ok());
        // The backup has it already.
        assert!(free(&made(10), &[placed(10, &one, &one)]).is_ok());
        for others in [vec![], vec![placed(10, &one, &two)]] {
            assert!(free(&made(20), &others).is_err());
            assert!(free(&made(10), &others).is_err());
        }
    }

    #[test]
    fn a_directory_that_recovery_needs_and_nobody_makes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["it's one", "two"].map(|name| dir.path().join(name));
        let made = Made::from([(20, one.clone()), (30, two.clone())]);
        let there = [placed(10, &two, &two)];
        let named: Vec<String> = absent(&made, &there, None, "anna").collect();
        let command = format!(
            "install -d -o anna -m 700 '{}/it'\\''s one'",
            dir.path().display()
        );
        assert!(
            matches!(named.as_slice(), [one] if one.contains("tablespace 20") && one.ends_with(&command)),
            "{named:?}"
        );
        std::fs::create_dir(&one).unwrap();
        assert_eq!(absent(&made, &there, None, "anna").count(), 0);
    }
}
