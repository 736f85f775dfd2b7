//! Members that are directories: what their restores in place need before anything is stopped, and which of them a step made.

use std::collections::BTreeMap;

use super::own;
use super::plan::Planned;
use super::recover::UNCHANGED;
use super::work::Work;
use crate::config::{MemberKind, SetMember};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::configuration;
use crate::operate::files::{self, Choice};
use crate::operate::session::Session;
use crate::tree::replace::undo::{Kept, kept_at};

/// So often a plan is made that an entry ends which vanishes meanwhile.
const ATTEMPTS: u32 = 3;
/// The errors of an entry that another process removes or exchanges while it is compared.
const VANISHED: [&str; 3] = [
    "No such file or directory",
    "Not a directory",
    "Too many levels of symbolic links",
];
/// An error of the directory itself says this: it does not pass.
const OF_THE_TOP: &str = "open directory \"";

/// Finds the files of which a restore may remove nothing that the backup lacks, and why.
///
/// # Errors
/// `Usage` for files that are no directory here; those of the repositories.
pub fn kept(session: &Session, planned: &Planned) -> Result<BTreeMap<SetMember, String>> {
    let mut kept = BTreeMap::new();
    for one in &planned.plan.members {
        let Some(reached) = &one.reached else {
            continue;
        };
        if one.member.kind != MemberKind::Files {
            continue;
        }
        let choice = Choice {
            backup: Some(reached.backup.parse()?),
            by_time: None,
        };
        if let Some(why) = files::replace::why_kept(session, &one.member.name, &choice)? {
            kept.insert(one.member.clone(), why.to_string());
        }
    }
    Ok(kept)
}

/// The words of a recovery about files of which nothing is removed.
pub fn told(member: &str, why: &str) -> String {
    format!("entries of {member} that its backup lacks stay: {why}")
}

/// Requires that a directory can go back in place, as its step does it: the plan of that is made, and no entry of it is changed.
///
/// Applications still write there. An entry that vanishes under the plan is no obstacle once they are stopped: it is tried again, and then told.
pub fn require_in_place(
    session: &Session,
    (member, words): (&SetMember, &[String]),
    deletes: bool,
) -> Result<()> {
    let delete = if deletes { &["--delete"][..] } else { &[] };
    let mut attempt = 1;
    loop {
        match rehearse(session, (member, words), delete) {
            Err(e) if has_vanished(&e) && attempt < ATTEMPTS => attempt += 1,
            Err(e) if has_vanished(&e) => {
                session.warn(&format!(
                    "whether {member} can go back was not seen, because entries vanish there while it is compared: {e}"
                ));
                return Ok(());
            }
            Err(e) if e.hint_text().is_none() => return Err(e.hint(UNCHANGED)),
            done => return done,
        }
    }
}

/// Whether a plan failed because of an entry that another process has removed or exchanged.
fn has_vanished(e: &Error) -> bool {
    let text = e.to_string();
    matches!(e.code(), Code::TargetWrite | Code::SourceMissing)
        && VANISHED.iter().any(|cause| text.contains(cause))
        && !text.contains(OF_THE_TOP)
}

/// Requires that configuration can come back with its secrets. Every envelope is opened for that.
pub fn require_opened(session: &Session, (member, words): (&SetMember, &[String])) -> Result<()> {
    match rehearse(session, (member, words), &[]) {
        Err(e) if e.code() == Code::Key => Err(e.hint(format!(
            "{UNCHANGED} {member} has secrets, and comes back with them: name the key file of a recipient of the secrets pair for as long as the recovery lasts (secrets_key in [repositories.NAME.encryption]). pitr recover database brings the servers back without it."
        ))),
        done => done,
    }
}

/// Runs the restore in place of a member without carrying it out.
fn rehearse(
    session: &Session,
    (member, words): (&SetMember, &[String]),
    more: &[&str],
) -> Result<()> {
    let kind = member.kind.section();
    let mut line = vec![kind, "restore", &member.name, "--in-place"];
    line.extend(more);
    if Work::is_privileged() {
        line.push("--privileged");
    }
    line.extend(words.iter().map(String::as_str));
    line.push("--dry-run");
    own::run(session, &line, None).map(|_| ())
}

/// The restores in place of a member that are kept, oldest first. Those of one second are told apart by their journals.
pub fn runs(session: &Session, member: &SetMember) -> Result<Vec<String>> {
    let name = member.name.as_str();
    let mut kept = match member.kind {
        MemberKind::Files => kept_at(&files::replace::source(session, name)?)?,
        MemberKind::Config => configuration::in_place::kept(session, name)?,
        _ => return Err(err!(Internal, "a server has no restores in place")),
    };
    let kind = member.kind.section();
    kept.retain(|one| one.restore.kind == kind && one.restore.name == name);
    kept.sort_by(|a, b| (a.restore.began, &a.run).cmp(&(b.restore.began, &b.run)));
    Ok(kept.iter().map(|one: &Kept| one.run.to_string()).collect())
}

/// Pure: those that began behind `before`, which a pitr of before noted alone.
pub fn behind(mut runs: Vec<String>, before: Option<&str>) -> Vec<String> {
    let from = match before {
        None => 0,
        Some(before) => match runs.iter().position(|run| run == before) {
            Some(found) => found + 1,
            // It was undone by hand.
            None => runs.partition_point(|run| run.as_str() <= before),
        },
    };
    runs.split_off(from)
}

/// Pure: those of a step among the ones that were made since it began: the last of them is `last`. A step that was killed behind its work was repeated, and
/// each time it restored what had changed meanwhile.
pub fn of_step(mut later: Vec<String>, last: Option<&str>) -> Vec<String> {
    let end = last.and_then(|last| later.iter().position(|run| run == last));
    later.truncate(end.map_or(later.len(), |end| end + 1));
    later
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u102_entries_that_vanish_are_told_from_a_directory_that_cannot_go_back() {
        let vanished = |code: Code, text: &str| has_vanished(&Error::new(code, text));
        let entry = "pitr files restore up --in-place: open \"a/b\": No such file or directory (os error 2)";
        assert!(vanished(Code::TargetWrite, entry));
        assert!(vanished(Code::TargetWrite, "read \"a\": Not a directory"));
        assert!(!vanished(Code::Refused, entry));
        assert!(!vanished(
            Code::TargetWrite,
            "open \"a\": Permission denied"
        ));
        let top = "open directory \"/srv/up\": Not a directory (os error 20)";
        assert!(!vanished(Code::TargetWrite, top));
    }

    #[test]
    fn the_restores_of_a_step_are_those_between_its_begin_and_its_end() {
        let all: Vec<String> = ["1", "2", "3", "4"].map(str::to_owned).to_vec();
        let of = |before, last| of_step(behind(all.clone(), before), last).concat();
        assert_eq!(of(None, None), "1234");
        assert_eq!(of(Some("2"), None), "34");
        assert_eq!(of(Some("2"), Some("3")), "3");
        assert_eq!(of(Some("1"), Some("3")), "23");
        assert_eq!(of(Some("4"), None), "");
        assert_eq!(of(Some("0"), Some("1")), "1");
        assert_eq!(of(Some("25"), None), "34", "its own is gone");
        assert_eq!(of(Some("1"), Some("gone")), "234");
    }
}
