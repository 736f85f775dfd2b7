//! A restore to a target: from what is asked to what is written.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::aside;
use super::choice::{Question, Unless};
use super::former;
use super::last_wal;
use super::made_tablespaces;
use super::opened::{self, Opened};
use super::reading::Reading;
use super::replace;
use super::restoring::{Place, Prepared, path_text};
use super::rival;
use super::session::Session;
use super::target::AskedTarget;
use crate::err;
use crate::error::{Error, Result};
use crate::plan::recovery::{Action, Moment, Plan, Reason};
use crate::repo::lives::Followed;
use crate::repo::root::BackupRoot;
use crate::restore::databases::Wanted;
use crate::restore::job::{self, Earlier, Job, Purpose, Request};
use crate::restore::replace::Old;
use crate::restore::target_dir::{Found, Mapping};

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The directory to restore into.
    pub to: PathBuf,
    /// The recovery target.
    pub target: AskedTarget,
    /// The action of PostgreSQL there.
    pub action: Action,
    /// The places for tablespaces.
    pub mappings: Vec<Mapping>,
    /// The databases whose content is wanted; of all without it.
    pub databases: Option<Wanted>,
    /// Whether a data directory is restored in place.
    pub delta: bool,
    /// Whether the content is left to a mount.
    pub is_hollow: bool,
    /// Whether only this process runs a server on it, whose new tablespaces it keeps apart.
    pub is_private: bool,
    /// Whether the data directory there is replaced.
    pub replace: bool,
    /// Whether it is restored beside a data directory in which a server may run, to take its place later.
    pub aside: bool,
    /// Whether the copy may archive.
    pub adopt: bool,
    /// Whether tablespaces may lie where the backup says, and the copy beside a running server.
    pub is_confirmed: bool,
    /// Whether it is only looked at.
    pub dry_run: bool,
}

/// The result of a request.
pub enum Way {
    /// To the target.
    Ready(Box<Prepared>),
    /// Not there.
    OutOfReach(Box<Unreached>),
}

/// A target that no repository leads to.
pub struct Unreached {
    /// The plan that leads farthest.
    pub plan: Plan,
    /// The directory that was asked for.
    pub to: String,
    /// The error that follows.
    pub error: Error,
}

/// Decides and checks a restore, up to the first write. Also returns the time of the target as it was meant, where that is not UTC.
///
/// # Errors
/// Those of the place, the repositories and the plan; `Refused` for an unfinished restore of another request, or a rival server.
pub fn prepare(session: &Session, asked: &Asked) -> Result<(Way, Option<String>)> {
    let reading = Reading::open(session)?;
    // A dry run shows where they would go.
    let as_in_backup = asked.is_confirmed || asked.dry_run;
    let mappings = asked.mappings.clone();
    let to = session.environment.absolute(&asked.to);
    let old = match (asked.replace, asked.aside) {
        (true, _) => Some(Old::look(&to)?),
        (_, true) => Some(aside::look(&to)?),
        _ => None,
    };
    let place = Place::new(
        session,
        &reading.settings,
        &asked.to,
        mappings,
        as_in_backup,
    )
    .in_place(asked.delta)
    .hollow(asked.is_hollow)
    .private(asked.is_private)
    .replacing(old.clone(), replace::words(session, asked));
    let target = place.look()?;
    let opened = opened::open(session, reading)?;
    let resolved = opened
        .reading
        .resolve(session, &opened.inventory, &asked.target)?;
    let request = Request {
        to: path_text(&target.data)?,
        cluster: opened.layout.name().to_owned(),
        repository: session.flags.repository.clone(),
        backup: asked.target.backup.clone(),
        as_stored: session.followed == Followed::AsStored,
        delta: asked.delta,
        databases: asked.databases.clone(),
        tablespace_mappings: asked.mappings.iter().map(Mapping::recorded).collect(),
        purpose: Purpose::Restore {
            target: resolved.target,
            action: asked.action,
            adopt: asked.adopt,
        },
    };
    let local_time = resolved.local_time;
    let earlier = job::earlier(&target.found, &request)?;
    let found = match (&old, &target.found) {
        (Some(old), _) => Some((&old.data, old.system_identifier)),
        (
            None,
            Found::Data {
                system_identifier, ..
            },
        ) => Some((&target.data, *system_identifier)),
        _ => None,
    };
    check_cluster(found, opened.inventory.system_identifier)?;
    // A server may have run since a restore in place was killed that had changed nothing yet.
    if target.is_whole_cluster() {
        last_wal::require(session, &target.data, &opened)?;
    }
    let cluster = opened.reading.cluster.as_ref();
    if let Some(cluster) = cluster.filter(|_| asked.adopt && !asked.dry_run) {
        let copy = rival::Newcomer {
            path: target.data.as_path(),
            identifier: opened.inventory.system_identifier,
            name: cluster.name.as_str(),
        };
        rival::check(session, &copy, cluster, asked.is_confirmed)?;
    }
    let begun = match &earlier {
        // The one that has yet to take another's place may wait since long.
        Earlier::LastStep(job) => {
            let plan = job.plan.as_ref().filter(|_| asked.replace || asked.aside);
            taken_up(session, opened, job, plan)?
        }
        Earlier::Copying(job) => taken_up(session, opened, job, job.plan.as_ref())?,
        Earlier::None => match planned(session, asked, opened, request)? {
            ControlFlow::Continue(begun) => begun,
            ControlFlow::Break(unreached) => {
                return Ok((Way::OutOfReach(Box::new(unreached)), local_time));
            }
        },
    };
    let prepared = Prepared::new(session, begun, (&place, target), earlier)?;
    if asked.aside {
        made_tablespaces::refuse(&prepared.made)?;
        if !prepared.job.tablespaces.is_empty() {
            return Err(aside::in_one_directory());
        }
    }
    Ok((Way::Ready(Box::new(prepared)), local_time))
}

/// Requires that a data directory that is restored in place, or replaced, is one of the cluster.
fn check_cluster(found: Option<(&PathBuf, u64)>, wanted: u64) -> Result<()> {
    match found {
        Some((data, found)) if found != wanted => Err(err!(
            Refused,
            "\"{}\" is a data directory of system identifier {found}, the backup is of {wanted}",
            data.display()
        )
        .hint("Nothing was changed. Restore into an empty directory.")),
        _ => Ok(()),
    }
}

/// The repository that gives the backup, what is done with it, and its root.
type Begun = (Opened, Job, BackupRoot);

/// Takes up a restore that was begun, once the WAL of `checked` was looked at again.
fn taken_up(session: &Session, opened: Opened, job: &Job, checked: Option<&Plan>) -> Result<Begun> {
    let opened = opened.where_it_began(session, job)?;
    if let Some(plan) = checked {
        opened.check_again(session, plan, job.lives.as_ref())?;
    }
    let (job, root) = opened.resume(session, job)?;
    Ok((opened, job, root))
}

/// Plans a restore; breaks where nothing leads to the target.
fn planned(
    session: &Session,
    asked: &Asked,
    opened: Opened,
    request: Request,
) -> Result<ControlFlow<Unreached, Begun>> {
    let question = Question {
        target: &asked.target,
        action: asked.action,
        is_carried_out: true,
    };
    former::warn(session, &opened.reading, &opened.inventory);
    // The parameters of pg_control follow once the backup is open.
    let chosen = question.decide(session, opened)?;
    let (opened, plan) = (chosen.opened, chosen.plan);
    if let Some(unless) = chosen.unless {
        return Ok(ControlFlow::Break(Unreached {
            error: error_of(session, unless, &plan),
            to: request.to,
            plan,
        }));
    }
    let backup = plan.backup.as_ref().map(|b| b.id.clone());
    let backup = backup.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    let (mut job, root) = opened.job(session, request, &backup, Some(plan))?;
    job.lives = job
        .plan
        .as_ref()
        .and_then(|plan| opened.lives(session, plan));
    if let Some(wanted) = &asked.databases {
        let left_out = opened.left_out(session, &root, wanted)?;
        job = job.without(left_out);
    }
    Ok(ControlFlow::Continue((opened, job, root)))
}

/// Why nothing is restored, with what is to be done about it.
fn error_of(session: &Session, unless: Unless, plan: &Plan) -> Error {
    match unless {
        Unless::NotKnown(e) => e,
        Unless::OutOfReach { why, next } => {
            let is_damaged = plan.reason == Some(Reason::DamagedWal);
            let helps = match is_damaged {
                true => what_helps(plan),
                false => "Nothing was written.".to_owned(),
            };
            let next = next.or_else(|| (!is_damaged).then(|| nearest(session, plan)));
            let hint = [Some(helps), next].into_iter().flatten();
            err!(OutOfReach, "{why}").hint(hint.collect::<Vec<_>>().join("\n"))
        }
    }
}

/// Names the targets beside one that is out of reach.
fn nearest(session: &Session, plan: &Plan) -> String {
    let options = session.options(session.flags.cluster.as_deref());
    other_targets((plan.nearest_before, plan.nearest_after), &options)
}

/// The words for the moments before and behind a target. The WAL behind a backup before it may end with that backup.
fn other_targets((before, after): (Option<Moment>, Option<Moment>), options: &str) -> String {
    let before = before.filter(|moment| moment.xid.is_some());
    let named = [
        (before, "the last commit before it"),
        (after, "the first moment behind it"),
    ];
    let named: Vec<String> = named
        .into_iter()
        .filter_map(|(moment, words)| Some(format!("--target-lsn {} ({words})", moment?.lsn)))
        .collect();
    match named.is_empty() {
        true => format!("pitr info{options} shows the moments that can be reached."),
        false => format!("Take another target: {}.", named.join(", or ")),
    }
}

/// Names the remedy for a target that damaged WAL keeps out of reach.
fn what_helps(plan: &Plan) -> String {
    let before = match plan.nearest_before {
        Some(Moment {
            lsn, xid: Some(_), ..
        }) => {
            format!(" The last commit before it is reached with --target-lsn {lsn}.")
        }
        Some(_) => " What the backup itself holds is reached with --target-immediate.".to_owned(),
        None => String::new(),
    };
    let thaw = match plan.repository.starts_with("s3:") {
        true => {
            "What must be thawed \"pitr repo thaw --backup ID --wal\" requests, which takes hours. "
        }
        false => "",
    };
    format!(
        "Nothing was written.{before}
{thaw}\"pitr verify\" names all that is damaged."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_out_of_reach_comes_with_the_moments_beside_it() {
        let moment = |lsn: &str, xid| {
            Some(Moment {
                time: None,
                lsn: lsn.parse().unwrap(),
                xid,
            })
        };
        let both = other_targets((moment("0/10", Some(7)), moment("0/30", None)), "");
        assert_eq!(
            both,
            "Take another target: --target-lsn 0/10 (the last commit before it), or --target-lsn 0/30 (the first moment behind it)."
        );
        let none = other_targets((moment("0/20", None), None), " --cluster main");
        assert!(none.starts_with("pitr info --cluster main "), "{none}");
    }
}
