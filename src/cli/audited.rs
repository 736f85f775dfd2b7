//! Which command lines the audit log tells, and in which words.
//!
//! Listed is what changes a repository, a server or a directory, and what shows data. A command that only looks, and one that only shows what it
//! would do, is none of it; neither is the path of WAL. Names go into a record, and no other text of the command line.

use std::fmt::Display;

use super::configuration::Command as Config;
use super::erasure::Command as Erasure;
use super::files::Command as Files;
use super::logical::Command as Logical;
use super::recover::{ClustersArgs, Command as Recover};
use super::redis::Command as Redis;
use super::repo::Command as Repo;
use super::timeline::Command as Timeline;
use super::wal::Command as Wal;
use super::{Command, backup, backup_delete, clone, hold, pin};
use crate::operate::audit::About;

/// Returns what a record says of a command about the named things, where it does something.
fn content(is_done: bool, command: &'static str, names: &[&dyn Display]) -> Option<About> {
    let names = names.iter().map(ToString::to_string);
    let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    let object = Some(names.join(" ")).filter(|names| !names.is_empty());
    is_done.then_some(About { command, object })
}

/// Returns what a record of a backup says that was found to be needed.
pub(super) fn backup(cluster: &str) -> Option<About> {
    content(true, "backup", &[&cluster])
}

/// The match of a table: in each row a command, whether it does something, its words, and the names that it is about.
macro_rules! told {
    (
        $command:expr, $of_cluster:expr;
        cluster { $($pattern:pat => $is_done:expr, $words:literal $(, $name:expr)*;)* }
        others { $($other:pat => $does:expr, $other_words:literal $(, $other_name:expr)*;)* }
        none { $($none:pat),* $(,)? }
    ) => {
        match $command {
            $($pattern => $of_cluster($is_done, $words, &[$(&$name),*]),)*
            $($other => content($does, $other_words, &[$(&$other_name),*]),)*
            $($none => None,)*
        }
    };
}

/// Returns what a record of this command says; none where there is no record of it. `cluster` names the one that it works on.
pub(super) fn about(command: &Command, cluster: &dyn Fn() -> Option<String>) -> Option<About> {
    let of_cluster = |is_done: bool, command: &'static str, names: &[&dyn Display]| {
        let cluster = is_done.then(cluster).flatten().unwrap_or_default();
        let mut all: Vec<&dyn Display> = vec![&cluster];
        all.extend(names);
        content(is_done, command, &all)
    };
    let set = |set: &Option<String>| set.clone().unwrap_or_default();
    told! {
        command, of_cluster;
        cluster {
            Command::Init(args) => args.role.is_none(), "init";
            // It records what it does when it knows that a backup is needed.
            Command::Backup(backup::Args { command: None, if_needed, .. }) => !if_needed, "backup";
            Command::Backup(backup::Args { command: Some(backup::Command::Delete(args @ backup_delete::Args { of: None, .. })), .. }) => args.confirm, "backup delete", args.backup;
            Command::Restore(args) => !args.dry_run, "restore";
            Command::Drill(_) => true, "drill";
            Command::Clone(clone::Args { command: None, .. }) => true, "clone";
            Command::Clone(clone::Args { command: Some(clone::Command::Stop { id, confirm, .. }), .. }) => *confirm, "clone stop", id;
            Command::Clone(clone::Args { command: Some(clone::Command::Keep { id, .. }), .. }) => true, "clone keep", id;
            Command::Mount(_) => true, "mount";
            Command::Query(_) => true, "query";
            Command::Rescue(args) => true, "rescue", args.table.join(" ");
            Command::Standby(_) => true, "standby";
            Command::Adopt(_) => true, "adopt";
            Command::Expire(args) => args.confirm, "expire";
            Command::Pin(args @ pin::Args { of: None, .. }) => args.confirm, "pin", args.backup;
            Command::Unpin(args @ pin::UnpinArgs { of: None, .. }) => args.confirm, "unpin", args.backup;
            Command::Hold(args @ hold::Args { of: None, .. }) => args.confirm, "hold", args.backup;
            Command::Unhold(args @ hold::UnholdArgs { of: None, .. }) => args.confirm, "unhold", args.backup;
            Command::Erasure(Erasure::Add(_)) => true, "erasure add";
            Command::Erasure(Erasure::Remove { id, confirm }) => *confirm, "erasure remove", id;
            Command::Erasure(Erasure::Apply(args)) => args.confirm, "erasure apply";
            Command::Erasure(Erasure::Show { id }) => true, "erasure show", id;
            Command::Wal(Wal::Resolve(args)) => args.confirm, "wal resolve";
            Command::Wal(Wal::Gaps { heal, dry_run }) => *heal && !dry_run, "wal gaps";
            Command::Repo(Repo::Sync(args)) => !args.dry_run, "repo sync";
            Command::Repo(Repo::Claims(args)) => args.confirm, "repo claims";
            Command::Repo(Repo::Compact(args)) => args.confirm, "repo compact";
            Command::Repo(Repo::Tier(args)) => args.confirm, "repo tier";
            Command::Repo(Repo::Thaw(args)) => !args.dry_run, "repo thaw", args.backup;
            Command::Repo(Repo::Rewrap(args)) => !args.all || args.confirm, "repo rewrap";
            Command::Repo(Repo::Rotate(args)) => args.confirm, "repo rotate";
            Command::Repo(Repo::Keygen(_)) => true, "repo keygen";
            Command::Repo(Repo::Join(_)) => true, "repo join";
            Command::Verify(args) => !args.dry_run, "verify";
            Command::Timeline(Timeline::Abandon(change)) => change.confirm, "timeline abandon";
            Command::Timeline(Timeline::Restore(change)) => change.confirm, "timeline restore";
        }
        others {
            Command::Backup(backup::Args { command: Some(backup::Command::Delete(backup_delete::Args { of: Some(of), backup, confirm, .. })), .. }) => *confirm, "backup delete", of, backup;
            Command::Pin(pin::Args { of: Some(of), backup, confirm, .. }) => *confirm, "pin", of, backup;
            Command::Unpin(pin::UnpinArgs { of: Some(of), backup, confirm, .. }) => *confirm, "unpin", of, backup;
            Command::Hold(hold::Args { of: Some(of), backup, confirm, .. }) => *confirm, "hold", of, backup;
            Command::Unhold(hold::UnholdArgs { of: Some(of), backup, confirm, .. }) => *confirm, "unhold", of, backup;
            Command::Files(Files::Backup(args)) => true, "files backup", args.name;
            Command::Files(Files::Restore(args)) => !args.replace.dry_run, "files restore", args.name;
            Command::Files(Files::Rollback(args)) => args.confirm, "files rollback", args.name;
            Command::Files(Files::Cat(args)) => true, "files cat", args.name;
            Command::Files(Files::Copy(args)) => true, "files copy", args.name;
            Command::Logical(Logical::Backup(args)) => true, "logical backup", args.name;
            Command::Logical(Logical::Restore(args)) => true, "logical restore", args.name;
            Command::Redis(Redis::Backup(args)) => true, "redis backup", args.name;
            Command::Redis(Redis::Restore(args)) => !args.dry_run, "redis restore", args.name;
            Command::Config(Config::Backup(args)) => true, "config backup", args.name;
            Command::Config(Config::Restore(args)) => !args.dry_run, "config restore", args.name;
            Command::Config(Config::Rollback(args)) => args.confirm, "config rollback", args.name;
            Command::Config(Config::Reveal(args)) => true, "config reveal", args.name;
            Command::Config(Config::Recipients(args)) => !(args.add.is_empty() && args.withdraw.is_empty()), "config recipients";
            Command::Recover(Recover::Test(args)) => !args.dry_run, "recover test", set(&args.moment.set);
            Command::Recover(Recover::Database(ClustersArgs { in_place: args, .. })) => args.confirm, "recover database", set(&args.moment.set);
            Command::Recover(Recover::Application(args)) => args.confirm, "recover application", set(&args.moment.set);
            Command::Recover(Recover::Full(ClustersArgs { in_place: args, .. })) => args.confirm, "recover full", set(&args.moment.set);
            Command::Recover(Recover::Rollback(args)) => args.confirm, "recover rollback", set(&args.set);
            // One that marks for ever tells nothing of its end.
            Command::Mark(args) => args.every.is_none(), "mark", set(&args.set);
        }
        none {
            Command::Demo(_) | Command::Doctor(_) | Command::Info(_) | Command::Find(_) | Command::Plan(_) | Command::Receive(_),
            Command::Metrics(_) | Command::Agent(_) | Command::Alert(_) | Command::Explain(_) | Command::Audit(_) | Command::Report(_),
            Command::Runbook(_) | Command::Help(_) | Command::Completions(_) | Command::Man(_) | Command::Serve(_),
            Command::Clone(clone::Args { command: Some(clone::Command::List { .. }), .. }),
            Command::Erasure(Erasure::List {}),
            Command::Wal(Wal::Push { .. } | Wal::Fetch { .. } | Wal::List {} | Wal::Show { .. } | Wal::Conflicts { .. } | Wal::Backfill { .. }),
            Command::Repo(Repo::Show {} | Repo::Check {} | Repo::Cost {} | Repo::Lifecycle {}),
            Command::Timeline(Timeline::List {}),
            Command::Files(Files::Ls(_) | Files::Find(_) | Files::Diff(_) | Files::Sums(_) | Files::Watch(_) | Files::CheckExcludes(_)),
            Command::Logical(Logical::Check(_)),
            Command::Redis(Redis::Receive(_) | Redis::Info(_) | Redis::Plan(_) | Redis::Ls(_)),
            Command::Config(Config::Show(_) | Config::Diff(_) | Config::Scan(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::parsed;
    use super::*;

    fn about(line: &str) -> Option<About> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let line = parsed(&words).ok().unwrap();
        super::about(&line.command, &|| Some("main".to_owned()))
    }

    #[test]
    fn what_is_done_to_a_backup_of_content_is_not_told_of_a_cluster() {
        let id = "20261120T064049Z-full";
        for words in ["backup delete", "pin", "unpin", "hold", "unhold"] {
            let reason = match words {
                "pin" | "hold" => " --reason r",
                _ => "",
            };
            for (of, object) in [("", "main"), (" --of files:www", "files:www")] {
                let line = format!("pitr {words} {id}{reason}{of} --confirm");
                let done = about(&line).unwrap();
                assert_eq!(done.command, words);
                assert_eq!(done.object, Some(format!("{object} {id}")));
            }
        }
    }

    #[test]
    fn wal_that_comes_is_recorded_and_a_look_at_gaps_is_not() {
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
