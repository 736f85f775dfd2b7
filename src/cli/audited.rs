//! Which command lines the audit log tells, and in which words.
//!
//! Listed is what changes a repository, a server or a directory, and what shows data. A command that only looks, and one that only shows what it
//! would do, is none of it; neither is the path of WAL. Names go into a record, and no other text of the command line.

use std::fmt::Display;

use super::{
    Command, backup, clone, configuration, erasure, files, logical, recover, redis, repo, timeline,
    wal,
};
use crate::operate::audit::About;

/// Returns what a record says of a command about the named things, where it does something.
fn content(is_done: bool, command: &'static str, names: &[&dyn Display]) -> Option<About> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let object = Some(names.join(" ")).filter(|names| !names.is_empty());
    is_done.then_some(About { command, object })
}

/// Returns what a record of a backup says that was found to be needed.
pub(super) fn backup(cluster: &str) -> Option<About> {
    content(true, "backup", &[&cluster])
}

/// Returns what a record of this command says; none where there is no record of it. `cluster` names the one that it works on.
pub(super) fn about(command: &Command, cluster: &dyn Fn() -> Option<String>) -> Option<About> {
    let words = |is_done: bool, command: &'static str, names: &[&dyn Display]| {
        let cluster = is_done.then(cluster).flatten();
        let mut all: Vec<&dyn Display> = cluster.iter().map(|one| one as &dyn Display).collect();
        all.extend(names);
        content(is_done, command, &all)
    };
    match command {
        Command::Init(args) => words(args.role.is_none(), "init", &[]),
        Command::Backup(args) => match &args.command {
            // It records what it does when it knows that a backup is needed.
            None => words(!args.if_needed, "backup", &[]),
            Some(backup::Command::Delete(args)) => {
                words(args.confirm, "backup delete", &[&args.backup])
            }
        },
        Command::Restore(args) => words(!args.dry_run, "restore", &[]),
        Command::Drill(_) => words(true, "drill", &[]),
        Command::Clone(args) => match &args.command {
            None => words(true, "clone", &[]),
            Some(clone::Command::Stop { id, confirm, .. }) => words(*confirm, "clone stop", &[id]),
            Some(clone::Command::Keep { id, .. }) => words(true, "clone keep", &[id]),
            Some(clone::Command::List { .. }) => None,
        },
        Command::Mount(_) => words(true, "mount", &[]),
        Command::Query(_) => words(true, "query", &[]),
        Command::Rescue(args) => {
            let tables: Vec<_> = args.table.iter().map(|one| one as &dyn Display).collect();
            words(true, "rescue", &tables)
        }
        Command::Standby(_) => words(true, "standby", &[]),
        Command::Adopt(_) => words(true, "adopt", &[]),
        Command::Expire(args) => words(args.confirm, "expire", &[]),
        Command::Pin(args) => words(args.confirm, "pin", &[&args.backup]),
        Command::Unpin(args) => words(args.confirm, "unpin", &[&args.backup]),
        Command::Hold(args) => words(args.confirm, "hold", &[&args.backup]),
        Command::Unhold(args) => words(args.confirm, "unhold", &[&args.backup]),
        Command::Erasure(command) => match command {
            erasure::Command::Add(_) => words(true, "erasure add", &[]),
            erasure::Command::Remove { id, confirm } => words(*confirm, "erasure remove", &[id]),
            erasure::Command::Apply(args) => words(args.confirm, "erasure apply", &[]),
            erasure::Command::Show { id } => words(true, "erasure show", &[id]),
            erasure::Command::List {} => None,
        },
        Command::Wal(command) => match command {
            wal::Command::Resolve(args) => words(args.confirm, "wal resolve", &[]),
            wal::Command::Gaps { heal, dry_run } => words(*heal && !dry_run, "wal gaps", &[]),
            wal::Command::Push { .. }
            | wal::Command::Fetch { .. }
            | wal::Command::List {}
            | wal::Command::Show { .. }
            | wal::Command::Conflicts { .. }
            | wal::Command::Backfill { .. } => None,
        },
        Command::Repo(command) => match command {
            repo::Command::Sync(args) => words(!args.dry_run, "repo sync", &[]),
            repo::Command::Claims(args) => words(args.confirm, "repo claims", &[]),
            repo::Command::Compact(args) => words(args.confirm, "repo compact", &[]),
            repo::Command::Tier(args) => words(args.confirm, "repo tier", &[]),
            repo::Command::Thaw(args) => words(!args.dry_run, "repo thaw", &[&args.backup]),
            repo::Command::Rewrap(args) => words(!args.all || args.confirm, "repo rewrap", &[]),
            repo::Command::Rotate(args) => words(args.confirm, "repo rotate", &[]),
            repo::Command::Keygen(_) => words(true, "repo keygen", &[]),
            repo::Command::Join(_) => words(true, "repo join", &[]),
            repo::Command::Show {}
            | repo::Command::Check {}
            | repo::Command::Cost {}
            | repo::Command::Lifecycle {} => None,
        },
        Command::Verify(args) => words(!args.dry_run, "verify", &[]),
        Command::Timeline(command) => match command {
            timeline::Command::Abandon(change) => words(change.confirm, "timeline abandon", &[]),
            timeline::Command::Restore(change) => words(change.confirm, "timeline restore", &[]),
            timeline::Command::List {} => None,
        },
        Command::Files(command) => match command {
            files::Command::Backup(args) => content(true, "files backup", &[&args.name]),
            files::Command::Restore(args) => {
                content(!args.replace.dry_run, "files restore", &[&args.name])
            }
            files::Command::Rollback(args) => {
                content(args.confirm, "files rollback", &[&args.name])
            }
            files::Command::Cat(args) => content(true, "files cat", &[&args.name]),
            files::Command::Copy(args) => content(true, "files copy", &[&args.name]),
            files::Command::Ls(_)
            | files::Command::Find(_)
            | files::Command::Diff(_)
            | files::Command::Sums(_)
            | files::Command::Watch(_)
            | files::Command::CheckExcludes(_) => None,
        },
        Command::Logical(command) => match command {
            logical::Command::Backup(args) => content(true, "logical backup", &[&args.name]),
            logical::Command::Restore(args) => content(true, "logical restore", &[&args.name]),
            logical::Command::Check(_) => None,
        },
        Command::Redis(command) => match command {
            redis::Command::Backup(args) => content(true, "redis backup", &[&args.name]),
            redis::Command::Restore(args) => content(!args.dry_run, "redis restore", &[&args.name]),
            redis::Command::Receive(_)
            | redis::Command::Info(_)
            | redis::Command::Plan(_)
            | redis::Command::Ls(_) => None,
        },
        Command::Config(command) => match command {
            configuration::Command::Backup(args) => content(true, "config backup", &[&args.name]),
            configuration::Command::Restore(args) => {
                content(!args.dry_run, "config restore", &[&args.name])
            }
            configuration::Command::Rollback(args) => {
                content(args.confirm, "config rollback", &[&args.name])
            }
            configuration::Command::Reveal(args) => content(true, "config reveal", &[&args.name]),
            configuration::Command::Recipients(args) => {
                let is_change = !args.add.is_empty() || !args.withdraw.is_empty();
                content(is_change, "config recipients", &[])
            }
            configuration::Command::Show(_)
            | configuration::Command::Diff(_)
            | configuration::Command::Scan(_) => None,
        },
        Command::Recover(command) => {
            let (verb, set, is_done) = match command {
                recover::Command::Test(args) => ("recover test", &args.moment.set, !args.dry_run),
                recover::Command::Database(recover::ClustersArgs { in_place: args, .. }) => {
                    ("recover database", &args.moment.set, args.confirm)
                }
                recover::Command::Application(args) => {
                    ("recover application", &args.moment.set, args.confirm)
                }
                recover::Command::Full(recover::ClustersArgs { in_place: args, .. }) => {
                    ("recover full", &args.moment.set, args.confirm)
                }
                recover::Command::Rollback(args) => ("recover rollback", &args.set, args.confirm),
            };
            content(is_done, verb, &[&set.as_deref().unwrap_or_default()])
        }
        Command::Mark(args) => {
            let set = args.set.as_deref().unwrap_or_default();
            // One that marks for ever tells nothing of its end.
            content(args.every.is_none(), "mark", &[&set])
        }
        Command::Demo(_)
        | Command::Doctor(_)
        | Command::Info(_)
        | Command::Find(_)
        | Command::Plan(_)
        | Command::Receive(_)
        | Command::Metrics(_)
        | Command::Agent(_)
        | Command::Alert(_)
        | Command::Explain(_)
        | Command::Audit(_)
        | Command::Report(_)
        | Command::Runbook(_)
        | Command::Help(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Serve(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::parsed;
    use super::*;

    #[test]
    fn wal_that_comes_is_recorded_and_a_look_at_gaps_is_not() {
        let about = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let line = parsed(&words).ok().unwrap();
            about(&line.command, &|| Some("main".to_owned()))
        };
        let healed = about("pitr wal gaps --heal").unwrap();
        assert_eq!(healed.command, "wal gaps");
        assert_eq!(healed.object.as_deref(), Some("main"));
        for line in [
            "pitr wal gaps",
            "pitr wal gaps --heal --dry-run",
            "pitr wal list",
        ] {
            assert_eq!(about(line), None, "{line}");
        }
    }
}
