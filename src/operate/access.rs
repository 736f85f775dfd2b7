//! An access that was denied: what stands in the way, whose it is, and as whom to come again.
//!
//! The layers below know that the system refused, and which path. The owner of that path, and the user of this process,
//! are looked up once, here, when the error is shown.

use std::error::Error as StdError;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::archive_command::shell_word;
use super::owner::{Access, User};
use crate::error::Error;
use crate::tree::replace::DEPOT_PREFIX;

/// The error with a next step, where the system denied access and nothing better is known. `repositories` are looked at when the error names no
/// file itself.
pub fn explain(error: Error, repositories: &[PathBuf]) -> Error {
    if error.hint_text().is_some() || !is_of_system(&error) {
        return error;
    }
    let text = error.to_string();
    let me = User::of_process();
    if me.uid != 0 && names_depot(&text) {
        return error.hint(hint_at_depot(&me.name()));
    }
    let named = named_in(&text);
    let places = named.iter().chain(repositories);
    let hint = match places.filter_map(|p| Some((p, obstacle(p)?))).next() {
        Some((wanted, place)) => hint_at(&place, wanted),
        None => "Run this as the user who owns it, which should be the server's: sudo -u postgres pitr …, or correct its permissions.".into(),
    };
    error.hint(hint)
}

/// The next step where the directory cannot be made in which a restore in place keeps what it replaces. Each run has one of its own name.
fn hint_at_depot(me: &str) -> String {
    format!(
        "This runs as {me}, who may not write the lowest directory above all paths of the section: what is replaced is kept there.\nRun the same command as root: sudo pitr … --privileged. Or give these paths a section of their own, with paths below a directory of {me}."
    )
}

fn hint_at(place: &Path, wanted: &Path) -> String {
    let me = User::of_process().name();
    let owner = User::owner_of(place);
    let is_roots = owner.as_ref().is_ok_and(|owner| owner.uid == 0);
    let owner = owner.map_or_else(|_| "postgres".into(), |owner| owner.name());
    let shown = place.display();
    // Made as root, it would be out of the server's reach.
    if is_roots && owner != me && place.is_dir() && place != wanted && !wanted.exists() {
        let directory = match wanted.extension() {
            Some(_) => wanted.parent().unwrap_or(wanted),
            None => wanted,
        };
        return format!(
            "\"{shown}\" belongs to root, and this runs as {me}.\nMake the directory as root, then run the command again: sudo install -d -o {me} -m 700 {}",
            shell_word(&directory.to_string_lossy())
        );
    }
    if owner == me {
        return format!(
            "Correct the permissions of \"{shown}\": it belongs to the user who runs this."
        );
    }
    format!(
        "\"{shown}\" belongs to user {owner}, and this runs as {me}.\nRun it as that user: sudo -u {owner} pitr …"
    )
}

/// Whether the operating system refused, and not a server.
fn is_of_system(error: &Error) -> bool {
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::PermissionDenied;
        }
        source = cause.source();
    }
    false
}

fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('"').skip(1).step_by(2)
}

/// The absolute paths that stand in quotes.
fn named_in(message: &str) -> Vec<PathBuf> {
    quoted(message)
        .filter(|q| q.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Whether a path in quotes is that of a depot, or leads through one.
fn names_depot(message: &str) -> bool {
    quoted(message).any(|q| q.split('/').any(|part| part.starts_with(DEPOT_PREFIX)))
}

/// The uppermost directory on the way, or the place itself, that this process may not go through.
fn obstacle(path: &Path) -> Option<PathBuf> {
    let me = User::of_process();
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    let mut last = None;
    for at in way {
        match std::fs::metadata(at) {
            Ok(meta) => {
                let wanted = if meta.is_dir() {
                    Access::Execute
                } else {
                    Access::Read
                };
                last = Some(at);
                if !me.may(&meta, wanted) {
                    return Some(at.to_owned());
                }
            }
            Err(_) => break,
        }
    }
    // Everything can be passed: then the last one cannot be listed or written.
    let last = last?;
    let meta = std::fs::metadata(last).ok()?;
    (meta.uid() != me.uid && !me.may(&meta, Access::Use)).then(|| last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;

    #[test]
    fn only_what_the_system_denied_is_explained() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let error = explain(err!(Denied, "open \"/\"").source(denied()), &[]);
        assert!(error.hint_text().is_some_and(|h| h.contains("sudo -u")));
        let error = explain(err!(Denied, "role may not"), &[]);
        assert_eq!(error.hint_text(), None);
        let error = explain(err!(Denied, "x").source(denied()).hint("Known."), &[]);
        assert_eq!(error.hint_text(), Some("Known."));
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let error = explain(err!(Io, "x").source(missing), &[]);
        assert_eq!(error.hint_text(), None);
        let named = named_in("read object \"a/b\": open \"/r/a b\": no");
        assert_eq!(named, [PathBuf::from("/r/a b")]);
    }

    #[test]
    fn u100_a_depot_that_cannot_be_made_names_no_directory_of_that_run() {
        let run = ".pitr-rollback-20261120T064049Z-482913";
        for path in [format!("/{run}"), run.to_owned(), format!("{run}/1")] {
            assert!(names_depot(&format!("make directory \"{path}\"")), "{path}");
        }
        assert!(!names_depot(
            "make directory \"/srv/pitr\": run .pitr-rollback-1"
        ));
        let hint = hint_at_depot("nobody");
        assert!(hint.contains("--privileged"), "{hint}");
        assert!(hint.contains("a section of their own"), "{hint}");
        assert!(!hint.contains(".pitr-rollback-"), "{hint}");
    }
}
