//! Recovery sets: members that come back to one moment together.
//!
//! Each step of a recovery is a command of pitr itself, run as a process of its own (`own`): the operator can repeat it by hand, it has its own tests and its own
//! undo, and it runs as the owner of what it replaces.
//!
//! | file | what it owns |
//! |---|---|
//! | `mark` | one point in every member |
//! | `marks` | the newest mark that waits for a backup of a member |
//! | `info` | the marks of a set, and which of them can be reached |
//! | `moments` | the moments that all members with a log reach |
//! | `plan` | a target, planned for each member |
//! | `records` | the directories of these records |
//! | `run` | the record of a recovery on this host, step by step |
//! | `recover` | a recovery in place: planned, resumed, carried out |
//! | `work` | one step of it |
//! | `back` | the rollback of a run |
//! | `service` | the members' services: stopped, started, asked |
//! | `scratch` | a recovery into a folder that is thrown away |
//! | `cache` | the data directory of a Redis server: restored aside, exchanged |
//! | `loads` | whether a Redis server will load what is put there |
//! | `by_hand` | the commands where a data directory is gone |
//! | `erasures` | what was erased later than the moment, repeated before anything is started |
//! | `commits` | commits of a server since it was recovered |
//! | `timing` | how long restores took in the recoveries before |
//! | `trees` | members that are directories: what their restores need, and which of them a step made |
//! | `runbook` | the recovery instructions of a set |
//! | `watch` | the marks of a set for those who watch over it |

pub mod back;
mod by_hand;
mod cache;
mod commits;
mod erasures;
pub mod info;
mod loads;
pub mod mark;
pub mod marks;
pub mod moments;
mod own;
pub mod plan;
mod records;
pub mod recover;
mod run;
pub mod runbook;
pub mod scratch;
mod service;
mod timing;
mod trees;
pub mod watch;
mod work;

pub use own::FOLLOWS;

use crate::config::{Cluster, MemberKind, RecoverySet, Redis, SetMember, Settings};
use crate::err;
use crate::error::Result;
use crate::repo::scope::Scope;
use crate::repo::set_mark::KIND;

/// Returns the set that is named, else the only one.
///
/// # Errors
/// `Usage` when there is none, or none is named of several; `Config` for a member that is not configured.
pub fn configured<'s>(settings: &'s Settings, name: Option<&str>) -> Result<&'s RecoverySet> {
    let names: Vec<&str> = settings.sets.iter().map(|set| set.name.as_str()).collect();
    let names = names.join(", ");
    let set = match (name, settings.sets.as_slice()) {
        (None, [only]) => only,
        (None, []) => {
            return Err(err!(Usage, "no recovery set is configured").hint(
                "Add [sets.NAME] with members = [\"main\", \"redis:NAME\", \"files:NAME\"].",
            ));
        }
        (None, _) => {
            return Err(err!(
                Usage,
                "several recovery sets are configured and none is named: {names}"
            ));
        }
        (Some(name), sets) => sets.iter().find(|set| set.name == name).ok_or_else(|| {
            err!(
                Usage,
                "no recovery set \"{}\" is configured",
                name.escape_debug()
            )
            .hint(format!("Known: {names}"))
        })?,
    };
    for member in &set.members {
        require_configured(settings, set, member)?;
    }
    Ok(set)
}

fn require_configured(settings: &Settings, set: &RecoverySet, member: &SetMember) -> Result<()> {
    let name = member.name.as_str();
    let is_there = match member.kind {
        MemberKind::Cluster => settings.clusters.iter().any(|c| c.name.as_str() == name),
        MemberKind::Redis => {
            let found = settings.redis.iter().find(|r| r.name == name);
            if found.is_some_and(|redis| redis.is_cluster) {
                return Err(err!(
                    Config,
                    "[sets.{}] has member \"{member}\", which is a cluster: a mark names one point of one server",
                    set.name
                )
                .hint(format!("Nothing was changed.\nRemove it from members, and restore the cluster to the time of the mark: pitr redis restore {name} --to DIR --target-time TIME")));
            }
            found.is_some()
        }
        MemberKind::Files => settings.files.iter().any(|f| f.name == name),
        MemberKind::Config => settings.config.iter().any(|c| c.name == name),
    };
    match is_there {
        true => Ok(()),
        false => Err(err!(
            Config,
            "[sets.{}] names member \"{member}\", which is not configured",
            set.name
        )
        .hint(format!("Add [{}.{name}].", member.kind.section()))),
    }
}

/// The scope of a set's marks.
///
/// # Errors
/// `Usage` for a name that is none.
fn scope(set: &RecoverySet) -> Result<Scope> {
    Scope::aux(KIND, &set.name)
}

/// The section of a cluster.
fn cluster<'s>(settings: &'s Settings, name: &str) -> Result<&'s Cluster> {
    let found = settings.clusters.iter().find(|c| c.name.as_str() == name);
    found.ok_or_else(|| err!(Config, "cluster \"{name}\" is not configured"))
}

/// The section of a Redis server.
fn redis<'s>(settings: &'s Settings, name: &str) -> Result<&'s Redis> {
    let found = settings.redis.iter().find(|redis| redis.name == name);
    found.ok_or_else(|| err!(Config, "Redis server \"{name}\" is not configured"))
}
