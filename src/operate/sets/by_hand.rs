//! The commands that bring a set back by hand, where a directory is gone: nothing can be exchanged with it. They are the steps of a recovery, with a plain restore
//! in place of each exchange.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::own;
use super::recover::{UNCHANGED, steps_with};
use super::run::Record;
use super::work::Work;
use super::{cluster, redis};
use crate::archive::datadir::DataDirectory;
use crate::config::{MemberKind, RecoverySet, SetMember, Settings, Source};
use crate::err;
use crate::error::Result;
use crate::plan::sets::{Clusters, Step};

/// The configured directory of a member; none of one that has several places, or none.
fn directory(settings: &Settings, member: &SetMember) -> Option<PathBuf> {
    match member.kind {
        MemberKind::Cluster => cluster(settings, &member.name).ok()?.pgdata.clone(),
        MemberKind::Redis => {
            let redis = redis(settings, &member.name).ok()?;
            redis.service.data_directory.clone()
        }
        MemberKind::Files => match &settings.files_named(&member.name).ok()?.source {
            Source::Directory(directory) => Some(directory.clone()),
            _ => None,
        },
        MemberKind::Config => None,
    }
}

/// Whether a directory is gone, or a cluster's is none any more. The checks that follow tell of one that cannot be looked at.
fn is_gone(member: &SetMember, directory: &Path) -> bool {
    match std::fs::metadata(directory) {
        Err(e) => e.kind() == ErrorKind::NotFound,
        Ok(_) if member.kind == MemberKind::Cluster => {
            matches!(DataDirectory::at(directory).control(), Ok(None))
        }
        Ok(_) => false,
    }
}

/// Requires that the directory of each of these members is there.
///
/// # Errors
/// `Refused`, with the commands for the moment of the record.
pub fn require_all<'m>(
    (settings, set): (&Settings, &RecoverySet),
    members: impl Iterator<Item = &'m SetMember>,
    record: &Record,
) -> Result<()> {
    let mut gone = BTreeSet::new();
    let mut shown = Vec::new();
    for member in members {
        if let Some(directory) = directory(settings, member)
            && is_gone(member, &directory)
        {
            shown.push(format!("\"{}\" of {member}", directory.display()));
            gone.insert(member.clone());
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let lines = lines((settings, set), record, &gone);
    Err(err!(
        Refused,
        "{} has no data any more: there is nothing to exchange",
        shown.join(", ")
    )
    .hint(format!(
        "{UNCHANGED} Run these commands by hand, in this order, each as the user of its server:\n{}",
        lines.join("\n")
    )))
}

/// The commands, one in a line: those of a recovery after the stop, without exchanges for members that are gone.
pub fn lines(
    (settings, set): (&Settings, &RecoverySet),
    record: &Record,
    gone: &BTreeSet<SetMember>,
) -> Vec<String> {
    let members = record.members.iter();
    let members: Vec<SetMember> = members.filter_map(|one| one.member.parse().ok()).collect();
    let has_erasures = |member: &SetMember| record.steps.contains(&Step::Erase(member.to_string()));
    let clusters = Clusters {
        aside: Vec::new(),
        standbys: Vec::new(),
        erased: members
            .iter()
            .filter(|m| has_erasures(m))
            .cloned()
            .collect(),
    };
    let mut record = record.clone();
    record.steps = steps_with(set, &members, &clusters);
    let mut lines = Vec::new();
    for step in &record.steps {
        let Some(work) = Work::new((settings, set), &record, step) else {
            continue;
        };
        let member = work.member.clone();
        let is_gone = member.as_ref().is_some_and(|member| gone.contains(member));
        match (step, &member) {
            (Step::Aside(_), _) => {}
            // Its server lost its files.
            (Step::Stop(_), _) if is_gone && work.is_cluster() => {}
            (Step::Replace(_), Some(member)) => {
                let directory = directory(settings, member);
                lines.extend(restoring(&work, (member, is_gone), directory.as_deref()));
            }
            _ => lines.extend(work.command().ok().flatten()),
        }
    }
    lines
}

/// The commands that restore a member.
fn restoring(
    work: &Work<'_>,
    (member, is_gone): (&SetMember, bool),
    directory: Option<&Path>,
) -> Vec<String> {
    let words = work.target();
    let to = directory.map(|directory| directory.to_string_lossy().into_owned());
    let restore = |words: &[&str], target: &[String]| own::line(&own::with(words, target));
    match (member.kind, to) {
        (MemberKind::Cluster, Some(to)) if is_gone => {
            let mut line = vec!["restore", "--cluster", &member.name, "--to", &to];
            if !work.has_step(&Step::Adopt) {
                line.push("--adopt");
            }
            vec![restore(&line, words)]
        }
        (MemberKind::Redis, Some(to)) => {
            let aside = format!(
                "mv {} {}",
                own::word(&to),
                own::word(&format!("{to}.before"))
            );
            let line = restore(&["redis", "restore", &member.name, "--to", &to], words);
            let mut lines = vec![
                line,
                "# with \"appendonly no\" the server loads a dump.rdb alone: start one with that redis.conf, and SAVE".to_owned(),
            ];
            if !is_gone {
                lines.insert(0, aside);
                lines.push(format!(
                    "# settings and users that lay in it (*.conf, *.acl) are in {to}.before"
                ));
            }
            lines
        }
        (MemberKind::Files, Some(to)) if is_gone => {
            let mut line = vec!["files", "restore", &member.name, "--to", &to];
            if Work::is_privileged() {
                line.push("--privileged");
            }
            vec![restore(&line, words)]
        }
        _ => work.command().ok().flatten().into_iter().collect(),
    }
}
