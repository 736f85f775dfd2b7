//! Which command lines the audit log tells, and in which words.
//!
//! Listed is what changes a repository, a server or a directory, and what shows data. A command that only looks, and one that only shows what it
//! would do, is none of it; neither is the path of WAL. Names go into a record, and no other text of the command line.

use super::{
    Command, backup, clone, configuration, erasure, files, logical, recover, redis, repo, timeline,
    wal,
};
use crate::operate::audit::About;

/// Returns what a record of a backup says that was found to be needed.
pub(super) fn backup(cluster: &str) -> Option<About> {
    Some(About {
        command: "backup",
        object: Some(cluster.to_owned()),
    })
}

/// Returns what a record of this command says; none where there is no record of it. `cluster` names the one that it works on.
pub(super) fn about(command: &Command, cluster: &dyn Fn() -> Option<String>) -> Option<About> {
    let content = |command, names: &[&str]| {
        Some(About {
            command,
            object: Some(names.join(" ")).filter(|names| !names.is_empty()),
        })
    };
    let words = |command, names: &[&str]| {
        let cluster = cluster();
        let cluster = cluster.as_deref().into_iter();
        let names: Vec<&str> = cluster.chain(names.iter().copied()).collect();
        content(command, &names)
    };
    match command {
        Command::Init(args) => args.role.is_none().then(|| words("init", &[]))?,
        Command::Backup(args) => match &args.command {
            // It records what it does when it knows that a backup is needed.
            None => (!args.if_needed).then(|| words("backup", &[]))?,
            Some(backup::Command::Delete(args)) => {
                let id = args.backup.to_string();
                args.confirm.then(|| words("backup delete", &[&id]))?
            }
        },
        Command::Restore(args) => (!args.dry_run).then(|| words("restore", &[]))?,
        Command::Drill(_) => words("drill", &[]),
        Command::Clone(args) => match &args.command {
            None => words("clone", &[]),
            Some(clone::Command::Stop { id, confirm, .. }) => {
                confirm.then(|| words("clone stop", &[id]))?
            }
            Some(clone::Command::Keep { id, .. }) => words("clone keep", &[id]),
            Some(clone::Command::List { .. }) => None,
        },
        Command::Mount(_) => words("mount", &[]),
        Command::Query(_) => words("query", &[]),
        Command::Rescue(args) => {
            let tables: Vec<&str> = args.table.iter().map(String::as_str).collect();
            words("rescue", &tables)
        }
        Command::Standby(_) => words("standby", &[]),
        Command::Adopt(_) => words("adopt", &[]),
        Command::Expire(args) => args.confirm.then(|| words("expire", &[]))?,
        Command::Pin(args) => {
            let id = args.backup.to_string();
            args.confirm.then(|| words("pin", &[&id]))?
        }
        Command::Unpin(args) => {
            let id = args.backup.to_string();
            args.confirm.then(|| words("unpin", &[&id]))?
        }
        Command::Hold(args) => {
            let id = args.backup.to_string();
            args.confirm.then(|| words("hold", &[&id]))?
        }
        Command::Unhold(args) => {
            let id = args.backup.to_string();
            args.confirm.then(|| words("unhold", &[&id]))?
        }
        Command::Erasure(args) => match &args.command {
            erasure::Command::Add(_) => words("erasure add", &[]),
            erasure::Command::Remove { id, confirm } => {
                confirm.then(|| words("erasure remove", &[id]))?
            }
            erasure::Command::Apply(args) => args.confirm.then(|| words("erasure apply", &[]))?,
            erasure::Command::Show { id } => words("erasure show", &[id]),
            erasure::Command::List {} => None,
        },
        Command::Wal(args) => match &args.command {
            wal::Command::Resolve(args) => args.confirm.then(|| words("wal resolve", &[]))?,
            wal::Command::Gaps { heal, dry_run } => {
                (*heal && !dry_run).then(|| words("wal gaps", &[]))?
            }
            wal::Command::Push { .. }
            | wal::Command::Fetch { .. }
            | wal::Command::List {}
            | wal::Command::Show { .. }
            | wal::Command::Conflicts { .. }
            | wal::Command::Backfill { .. } => None,
        },
        Command::Repo(args) => match &args.command {
            repo::Command::Sync(args) => (!args.dry_run).then(|| words("repo sync", &[]))?,
            repo::Command::Claims(args) => args.confirm.then(|| words("repo claims", &[]))?,
            repo::Command::Compact(args) => args.confirm.then(|| words("repo compact", &[]))?,
            repo::Command::Tier(args) => args.confirm.then(|| words("repo tier", &[]))?,
            repo::Command::Thaw(args) => {
                let id = args.backup.to_string();
                (!args.dry_run).then(|| words("repo thaw", &[&id]))?
            }
            repo::Command::Rewrap(args) => {
                (!args.all || args.confirm).then(|| words("repo rewrap", &[]))?
            }
            repo::Command::Rotate(args) => args.confirm.then(|| words("repo rotate", &[]))?,
            repo::Command::Keygen(_) => words("repo keygen", &[]),
            repo::Command::Join(_) => words("repo join", &[]),
            repo::Command::Show {}
            | repo::Command::Check {}
            | repo::Command::Cost {}
            | repo::Command::Lifecycle {} => None,
        },
        Command::Verify(args) => (!args.dry_run).then(|| words("verify", &[]))?,
        Command::Timeline(args) => match &args.command {
            timeline::Command::Abandon(change) => {
                change.confirm.then(|| words("timeline abandon", &[]))?
            }
            timeline::Command::Restore(change) => {
                change.confirm.then(|| words("timeline restore", &[]))?
            }
            timeline::Command::List {} => None,
        },
        Command::Files(args) => match &args.command {
            files::Command::Backup(args) => content("files backup", &[&args.name]),
            files::Command::Restore(args) => {
                (!args.replace.dry_run).then(|| content("files restore", &[&args.name]))?
            }
            files::Command::Rollback(args) => {
                (args.run.confirm).then(|| content("files rollback", &[&args.run.name]))?
            }
            files::Command::Cat(args) => content("files cat", &[&args.name]),
            files::Command::Copy(args) => content("files copy", &[&args.name]),
            files::Command::Ls(_)
            | files::Command::Find(_)
            | files::Command::Diff(_)
            | files::Command::Sums(_)
            | files::Command::Watch(_)
            | files::Command::CheckExcludes(_) => None,
        },
        Command::Logical(args) => match &args.command {
            logical::Command::Backup(args) => content("logical backup", &[&args.name]),
            logical::Command::Restore(args) => content("logical restore", &[&args.name]),
            logical::Command::Check(_) => None,
        },
        Command::Redis(args) => match &args.command {
            redis::Command::Backup(args) => content("redis backup", &[&args.name]),
            redis::Command::Restore(args) => {
                (!args.dry_run).then(|| content("redis restore", &[&args.name]))?
            }
            redis::Command::Receive(_)
            | redis::Command::Info(_)
            | redis::Command::Plan(_)
            | redis::Command::Ls(_) => None,
        },
        Command::Config(args) => match &args.command {
            configuration::Command::Backup(args) => content("config backup", &[&args.name]),
            configuration::Command::Restore(args) => {
                (!args.dry_run).then(|| content("config restore", &[&args.name]))?
            }
            configuration::Command::Rollback(args) => {
                (args.run.confirm).then(|| content("config rollback", &[&args.run.name]))?
            }
            configuration::Command::Reveal(args) => content("config reveal", &[&args.name]),
            configuration::Command::Recipients(args) => (!args.add.is_empty()
                || !args.withdraw.is_empty())
            .then(|| content("config recipients", &[]))?,
            configuration::Command::Show(_)
            | configuration::Command::Diff(_)
            | configuration::Command::Scan(_) => None,
        },
        Command::Recover(args) => {
            let (verb, set, is_done) = match &args.command {
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
            let set: Vec<&str> = set.as_deref().into_iter().collect();
            is_done.then(|| content(verb, &set))?
        }
        Command::Mark(args) => {
            let set: Vec<&str> = args.set.as_deref().into_iter().collect();
            // One that marks for ever tells nothing of its end.
            args.every.is_none().then(|| content("mark", &set))?
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
