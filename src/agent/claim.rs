//! The claim of a scheduled run, where several agents have the same job.
//!
//! It stands in the first repository of the configuration, and there alone: two places could give one run to two agents. Nothing runs
//! while that does not answer, and the agent tries again for as long as the run may be caught up.

use std::path::Path;

use crate::behalf;
use crate::config::{Job, Settings};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::event;
use crate::repo::run_claim::{self, Claimed, RunClaim};

/// The file that tells this agent from others, also from one with the same host name.
const FILE: &str = "agent.id";
/// The file that tells hosts from each other. A container may have none.
const MACHINE: &str = "/etc/machine-id";

/// Claims a run. Returns the host that has it, where that is another agent's.
///
/// # Errors
/// Those of the repository: nobody has the run then, as far as is known.
pub(super) fn take(
    session: &Session,
    settings: &Settings,
    state_dir: &Path,
    (own, scheduled): (&Job, TimestampTz),
) -> Result<Option<String>> {
    let configured = settings.first_repository()?;
    let job = &own.name;
    let of_run = |e: Error| {
        e.context(format!(
            "claim a run of job \"{job}\" in repository \"{}\"",
            configured.name
        ))
    };
    let id = identity(session, state_dir)?;
    let repository = session.open(configured).map_err(of_run)?;
    let machine = std::fs::read_to_string(MACHINE).unwrap_or_default();
    let claim = RunClaim {
        job: job.clone(),
        concern: concern(settings, &own.run),
        scheduled,
        host: event::host(),
        pid: std::process::id(),
        nonce: nonce((&id, &machine), job, scheduled),
    };
    match run_claim::take(repository.store(), &claim).map_err(of_run)? {
        Claimed::Ours => Ok(None),
        Claimed::Others(host) => Ok(Some(host)),
        Claimed::Void(why) => {
            session.warn(&format!(
                "the claim of job \"{job}\" for {scheduled} counts for nothing, because {why}: the job runs, and other agents may run it, too"
            ));
            Ok(None)
        }
    }
}

/// Tells jobs of one name apart, where several clusters share a repository. Other content counts on hosts without a cluster: each host of a
/// cluster may have its own.
fn concern(settings: &Settings, words: &[String]) -> String {
    let is_named = |word: &String| word == "--cluster" || word.starts_with("--cluster=");
    let mut names: Vec<&str> = settings.clusters.iter().map(|c| c.name.as_str()).collect();
    if words.iter().any(is_named) {
        names.clear();
    } else if names.is_empty() {
        let all = settings.contents().chain(settings.redis_clusters());
        names.extend(all.map(|content| content.name));
    }
    names.sort_unstable();
    run_claim::concern(&names, words)
}

/// The mark of a claim, the same at each try: an agent that was killed behind its claim finds it again. Hosts of one image have one file with
/// the id, and not one machine id.
fn nonce((id, machine): (&str, &str), job: &str, scheduled: TimestampTz) -> String {
    let text = format!("{id}/{}/{job}/{scheduled}", machine.trim());
    let hash = blake3::hash(text.as_bytes());
    hash.to_hex().chars().take(32).collect()
}

fn identity(session: &Session, state_dir: &Path) -> Result<String> {
    let path = state_dir.join(FILE);
    let failed = |e| Error::from_io(format!("keep \"{}\"", path.display()), e);
    let new = event::nonce(session.host.random.as_ref());
    // The first one stays.
    let nonce = session.host.random();
    let kept = || {
        durable::write_new(&path, new.as_bytes(), nonce)?;
        behalf::read(&path)
    };
    let id = behalf::of(&path, kept).map_err(failed)?;
    let id = String::from_utf8_lossy(&id).into_owned();
    match id.len() {
        32 => Ok(id),
        _ => Err(err!(
            Damaged,
            "\"{}\" is not what the agent wrote: remove it",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j47_hosts_of_one_image_are_told_apart_by_their_machine_ids() {
        let of = |machine: &str| nonce(("0123", machine), "nightly", TimestampTz(7));
        assert_eq!(of("aa\n"), of("aa"));
        assert_ne!(of("aa\n"), of("bb\n"));
        assert_eq!(of("").len(), 32);
    }
}
