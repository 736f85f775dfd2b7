//! Takes a directory back to a backup of files where it lies.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Choice, choose};
use crate::operate::in_place::{self, Replaced, Work};
use crate::operate::session::Session;
use serde_json::Value;

use crate::backup::files::selection;
use crate::config::Source;
use crate::config::trust::is_own;
use crate::err;
use crate::error::{Error, Result};
use crate::restore::content::Open;
use crate::snapshot::content::ContentReader;
use crate::tree::explain;
use crate::tree::part::Part;
use crate::tree::replace::journal::Restore;
use crate::tree::replace::{Target, Wanted};
use crate::tree::selection::Selection;
use crate::tree::settle::Permit;

const KIND: &str = "files";
/// Linux follows no more links on one path.
const LINKS_MAX: usize = 40;

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Name of the set of files.
    pub name: String,
    /// Which backup.
    pub choice: Choice,
    /// Globs of the entries that are restored; everything without one.
    pub globs: Vec<String>,
    /// The directory; the configured source without it, and then what is replaced is kept.
    pub to: Option<PathBuf>,
    /// The things that any user may not make.
    pub permit: Permit,
    /// Whether files of equal length and time are compared byte by byte.
    pub compares_content: bool,
    /// Whether entries that the backup lacks are removed.
    pub deletes: bool,
    /// Whether the plan is carried out.
    pub is_confirmed: bool,
}

/// Whether a directory is restored as a whole: it does not exist, or it is ours and has no entry.
///
/// # Errors
/// `TargetWrite` when it cannot be read.
pub fn is_fresh(to: &Path) -> Result<bool> {
    match std::fs::exists(to) {
        Ok(false) => Ok(true),
        _ => Target::open(to)?.is_empty_and_ours(),
    }
}

/// Takes a directory back to a backup: makes and replaces what differs, and removes what the backup lacks where that is asked for.
///
/// # Errors
/// `NotFound`; `Refused` when the backup cannot tell what to remove; `Locked`; those of [`Target::stage`] and of the store.
pub fn replace(session: &Session, asked: &Asked) -> Result<Replaced> {
    let to = match &asked.to {
        Some(to) => to.clone(),
        None => source(session, &asked.name)?,
    };
    let chosen = choose(session, &asked.name, &asked.choice)?;
    let host = &session.host;
    let rules = rules(session, &asked.name)?;
    chosen.read(session, |open| {
        if asked.deletes {
            check_deletion(&open, rules.as_ref(), &asked.name)?;
        }
        let part = match asked.globs.is_empty() {
            true => None,
            false => Some(Part::find(open.snapshot, &asked.globs, open.tick)?),
        };
        let removes = |path: &[u8]| match &rules {
            _ if was_left_out(open.member, path) => Ok(false),
            Some(rules) => explain::explain(&to, rules, path).map(|verdict| verdict.taken),
            None => Ok(true),
        };
        let wanted = Wanted {
            snapshot: open.snapshot,
            part: part.as_ref(),
            permit: asked.permit,
            trusts_times: !asked.compares_content,
            settles_directories: true,
            refuses: None,
            removes: if asked.deletes { Some(&removes) } else { None },
        };
        let is_there = std::fs::exists(&to).unwrap_or(true);
        let target = match is_there || asked.is_confirmed {
            true => Target::open(&to)?,
            false => Target::empty(host)?,
        };
        let keeps = asked.to.is_none();
        let restore = keeps.then(|| Restore {
            kind: KIND.to_owned(),
            name: asked.name.clone(),
            backup: chosen.id.clone(),
            began: host.now(),
        });
        let work = Work {
            target: &target,
            to: &to,
            wanted: &wanted,
            contents: &mut ContentReader::new(open.snapshot),
            restore,
            is_confirmed: asked.is_confirmed,
        };
        in_place::take_back(host, open, work)
    })
}

/// Tells why a restore in place from a backup may remove nothing that it lacks; none where it may.
///
/// # Errors
/// `Usage` for a name that has no directory here; `NotFound`; those of the store.
pub fn why_kept(session: &Session, name: &str, choice: &Choice) -> Result<Option<Error>> {
    source(session, name)?;
    let chosen = choose(session, name, choice)?;
    let rules = rules(session, name)?;
    chosen.read(session, |open| {
        Ok(check_deletion(&open, rules.as_ref(), name).err())
    })
}

/// Requires that a backup can tell what to remove: it lacks nothing that was there.
fn check_deletion(open: &Open<'_>, rules: Option<&Selection>, name: &str) -> Result<()> {
    let lacking = open.root.content.incomplete_count;
    if lacking > 0 {
        return Err(err!(
            Refused,
            "the backup lacks {lacking} things that could not be read, and --delete would remove them"
        )
        .hint("Nothing was changed. Leave --delete out, or take another backup: pitr info"));
    }
    check_rules(open.member, rules, name)
}

/// Requires that the rules of this host leave out what those of the backup did: an entry that it lacks may have been there.
fn check_rules(member: &Value, rules: Option<&Selection>, name: &str) -> Result<()> {
    let excluded = member["excluded_count"].as_u64().unwrap_or(0);
    let stored = member["rules"].as_str();
    let why = match (rules.map(Selection::digest), stored) {
        _ if excluded == 0 => return Ok(()),
        (Some(own), Some(stored)) if own == stored => return check_states(member, rules),
        (None, _) => format!("\"{name}\" is not configured here"),
        (Some(_), Some(_)) => format!("those of [files.{name}] are others by now"),
        (Some(_), None) => "an older pitr did not store which".to_owned(),
    };
    let e = err!(
        Refused,
        "rules left {excluded} entries out of the backup, and {why}: --delete would remove such entries"
    );
    Err(match stored {
        None => e.hint("Nothing was changed. Leave --delete out."),
        Some(_) => e.hint(format!(
            "Nothing was changed. Leave --delete out, or give [files.{name}] the rules that it had when the backup was taken"
        )),
    })
}

/// Requires that the entries are known which were left out for their state then, such as their length: the rules judge them as they are now.
fn check_states(member: &Value, rules: Option<&Selection>) -> Result<()> {
    let is_whole = |count: u64| states(member).count() as u64 == count;
    let by_state = match member["excluded_by_state_count"].as_u64() {
        Some(count) if is_whole(count) => return Ok(()),
        Some(count) => format!("rules left entries out of the backup ({count})"),
        // An older pitr counted them with the others.
        None if !rules.is_some_and(Selection::judges_state) => return Ok(()),
        None => "rules may have left entries out of the backup".to_owned(),
    };
    Err(err!(
        Refused,
        "{by_state} for their size, a marker or their filesystem then, and it does not name each: --delete would remove those that the rules take by now"
    )
    .hint("Nothing was changed. Leave --delete out, or name a backup that this pitr took."))
}

/// The paths of entries that were left out for their state, as far as they were stored.
fn states(member: &Value) -> impl Iterator<Item = &str> {
    let paths = member["excluded_by_state"].as_array();
    paths.into_iter().flatten().filter_map(Value::as_str)
}

/// Whether an entry was left out for its state, by itself or with the directory that it is in.
fn was_left_out(member: &Value, path: &[u8]) -> bool {
    states(member).any(|one| {
        let below = path.strip_prefix(one.as_bytes());
        one.is_empty() || below.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

/// The directory that is configured under a name, with links in its place followed as a backup follows them: the walk of a restore follows none.
///
/// # Errors
/// `Usage` for a name that is not configured, and for a source that is no directory; `Refused` for a link of somebody else.
pub fn source(session: &Session, name: &str) -> Result<PathBuf> {
    let settings = session.settings()?;
    match &settings.files_named(name)?.source {
        Source::Directory(directory) => followed(directory),
        _ => Err(err!(
            Usage,
            "the source of \"{name}\" is no directory: nothing of it can be taken back in place"
        )
        .hint("Restore it into a directory: --to DIR")),
    }
}

/// The directory that a path leads to. Each link in its place is root's or this user's: others could have any directory replaced.
///
/// The restore opens the directory itself without following links, so nobody can put one there meanwhile. It also reports a missing directory.
fn followed(path: &Path) -> Result<PathBuf> {
    let mut at: PathBuf = path.components().collect();
    let mut is_linked = false;
    for _ in 0..LINKS_MAX {
        let Ok(found) = at.symlink_metadata() else {
            return Ok(at);
        };
        if !found.is_symlink() {
            return Ok(match is_linked {
                true => without_links(&at).unwrap_or(at),
                false => path.to_owned(),
            });
        }
        if !is_own(&found) {
            return Err(err!(
                Refused,
                "\"{}\" is a link of user id {}, who could lead it to any directory",
                at.display(),
                found.uid()
            )
            .hint("Nothing was changed. If it is right, name the directory itself as the source, or give the link to root (chown -h root)."));
        }
        let read = std::fs::read_link(&at);
        let to = read.map_err(|e| Error::from_io(format!("read \"{}\"", at.display()), e))?;
        at = at.parent().unwrap_or(&at).join(to).components().collect();
        is_linked = true;
    }
    Ok(at)
}

/// The path of an entry with the links above it followed; none where they lead nowhere.
fn without_links(at: &Path) -> Option<PathBuf> {
    match (at.parent(), at.file_name()) {
        (Some(parent), Some(name)) => Some(parent.canonicalize().ok()?.join(name)),
        _ => at.canonicalize().ok(),
    }
}

/// The rules of a configured directory. Entries that they leave out of backups are never removed.
fn rules(session: &Session, name: &str) -> Result<Option<Selection>> {
    let settings = session.settings()?;
    match settings.files_named(name) {
        Ok(files) if matches!(files.source, Source::Directory(_)) => selection(files).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn links_in_the_place_of_a_directory_lead_to_it() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        std::fs::create_dir_all(at("disk/real")).unwrap();
        symlink("disk", at("above")).unwrap();
        symlink("../above/real/.", at("disk/one")).unwrap();
        symlink(at("disk/one"), at("two")).unwrap();
        symlink("missing", at("dangling")).unwrap();
        symlink("around", at("around")).unwrap();
        let to = |name: &str| followed(&at(name)).unwrap();
        for name in ["two", "two/", "disk/one"] {
            assert_eq!(to(name), at("disk/real"), "{name}");
        }
        // A path without a link in its last place stays as it is written.
        for name in ["disk/real", "above/real", "missing"] {
            assert_eq!(to(name), at(name));
        }
        assert_eq!(to("dangling"), at("missing"));
        assert_eq!(to("around"), at("around"));
    }

    #[test]
    fn rules_are_those_of_the_backup_or_nothing_is_removed() {
        let rules = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            Selection::new(&patterns).unwrap()
        };
        let own = rules(&["*.tmp"]);
        let mut larger = own.clone();
        larger.larger_than_bytes = Some(1);
        let taken = |excluded: u64, rules: Option<&Selection>| json!({ "excluded_count": excluded, "rules": rules.map(Selection::digest) });
        let refused = |member: Value, rules: Option<&Selection>| {
            let result = check_rules(&member, rules, "up");
            result.err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(taken(1, Some(&own)), Some(&rules(&["*.tmp"]))), "");
        assert_eq!(refused(taken(0, Some(&own)), None), "");
        assert_eq!(refused(taken(0, None), Some(&own)), "");
        for (member, rules, says) in [
            (taken(1, Some(&own)), Some(&rules(&[])), "are others by now"),
            (taken(1, Some(&own)), Some(&larger), "are others by now"),
            (taken(1, Some(&own)), None, "is not configured here"),
            (taken(1, None), Some(&own), "did not store which"),
            (taken(1, None), None, "is not configured here"),
        ] {
            let text = refused(member, rules);
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn u103_entries_that_were_left_out_for_their_state_are_never_removed() {
        let plain = Selection::new(&["*.tmp".to_owned()]).unwrap();
        let mut larger = plain.clone();
        larger.larger_than_bytes = Some(1);
        let mut marked = plain.clone();
        marked.markers = vec![".nobackup".to_owned()];
        let mut caches = plain.clone();
        caches.caches = true;
        let mut one = plain.clone();
        one.one_file_system = true;
        let is_refused = |rules: &Selection, by_state: Option<u64>| {
            let mut member = json!({ "excluded_count": 1, "rules": rules.digest() });
            if let Some(count) = by_state {
                member["excluded_by_state_count"] = count.into();
            }
            check_rules(&member, Some(rules), "up").is_err()
        };
        for rules in [&larger, &marked, &caches, &one] {
            assert!(is_refused(rules, Some(1)) && is_refused(rules, None));
            assert!(!is_refused(rules, Some(0)));
        }
        assert!(!is_refused(&plain, None) && !is_refused(&plain, Some(0)));
    }

    #[test]
    fn u103_entries_that_are_known_refuse_no_deletion_and_stay() {
        let rules = Selection::new(&["x".to_owned()]).unwrap();
        let member = |count: u64, paths: &[&str]| {
            json!({
                "excluded_count": count,
                "excluded_by_state_count": count,
                "excluded_by_state": paths,
                "rules": rules.digest(),
            })
        };
        let all = member(2, &["marked", "sub/large"]);
        assert!(check_rules(&all, Some(&rules), "up").is_ok());
        let part = member(3, &["marked", "sub/large"]);
        assert!(check_rules(&part, Some(&rules), "up").is_err());
        for (path, stays) in [
            ("marked", true),
            ("marked/below/x", true),
            ("marked2", false),
            ("sub", false),
            ("sub/large", true),
        ] {
            assert_eq!(was_left_out(&all, path.as_bytes()), stays, "{path}");
        }
        assert!(was_left_out(&member(1, &[""]), b"any"));
    }
}
