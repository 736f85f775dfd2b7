//! The claim of a scheduled run, where several agents have the same job.
//!
//! It stands in the first repository of the configuration, and there alone: two places could give one run to two agents. Nothing runs
//! while that does not answer, and the agent tries again for as long as the run may be caught up.

use std::path::Path;

use super::identity::Identity;
use crate::config::{Job, Settings};
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::away::PATIENCE;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::event;
use crate::repo::run_claim::{self, Claimed, RunClaim};

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
    let agent = Identity::of(session, state_dir)?;
    // The job's lock is held meanwhile. It is given back for longer than it is held, so that a run is seen to be missed.
    let answered = session.require_answer(configured, fault::silence(PATIENCE));
    answered.map_err(of_run)?;
    let repository = session.open(configured).map_err(of_run)?;
    let claim = RunClaim {
        job: job.clone(),
        concern: concern(settings, &own.run),
        scheduled,
        host: event::host(),
        pid: std::process::id(),
        // The same at each try: an agent that was killed behind its claim finds it again.
        nonce: agent.mark(&format!("{job}/{scheduled}")),
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
