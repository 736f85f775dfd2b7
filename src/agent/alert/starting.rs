//! Receivers that a job of the agent has begun just now: what they wrote before their start says nothing of them.

use std::time::Duration;

use crate::agent::load::Loaded;
use crate::config::{Cluster, Job};
use crate::operate::runs::{JobState, Run, Runs};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// A receiver connects in this time after its start.
const START: Duration = Duration::from_secs(30);
/// A receiver that starts more often than twice in this time fails, and gets no time.
const LATELY: Duration = Duration::from_secs(300);
/// Starts within [`LATELY`] that are no failure.
const STARTS_MAX: usize = 2;

/// The names of the conditions of receivers that have begun just now.
pub fn receivers(session: &Session, loaded: &Loaded) -> Vec<String> {
    let now = session.host.now();
    let clusters = &loaded.settings.clusters;
    let jobs = loaded.settings.jobs.iter();
    let begun = jobs.filter_map(|job| {
        let cluster = cluster_of(job, clusters)?;
        let state = Runs::of(&loaded.state_dir, &job.name).state(now).ok()?;
        is_starting(&state, now).then(|| format!("{cluster}/receiver/state"))
    });
    begun.collect()
}

/// The cluster that a job receives from; none where it does something else, or names none of several.
fn cluster_of<'s>(job: &'s Job, clusters: &'s [Cluster]) -> Option<&'s str> {
    let has = |wanted: &str| job.run.iter().any(|word| word == wanted);
    if !has("receive") || has("redis") {
        return None;
    }
    let words = job.run.iter().map(String::as_str);
    let joined = words
        .clone()
        .find_map(|word| word.strip_prefix("--cluster="));
    let behind = words.skip_while(|word| *word != "--cluster").nth(1);
    match (behind.or(joined), clusters) {
        (Some(named), _) => Some(named),
        (None, [only]) => Some(only.name.as_str()),
        (None, _) => None,
    }
}

fn is_starting(state: &JobState, now: TimestampTz) -> bool {
    let starts = state.runs.iter();
    let starts = starts.filter(|run| has_begun_within(run, LATELY, now));
    let last = state.runs.last();
    last.is_some_and(|run| state.is_going(run) && has_begun_within(run, START, now))
        && starts.count() <= STARTS_MAX
}

fn has_begun_within(run: &Run, limit: Duration, now: TimestampTz) -> bool {
    let age = now.duration_since(run.begun.started);
    age.is_some_and(|age| age < limit)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Tenant;
    use crate::operate::runs::{Begun, RunId};

    fn at(seconds: i64) -> TimestampTz {
        TimestampTz(seconds * 1_000_000)
    }

    fn run(started: i64) -> Run {
        Run {
            id: RunId::first(at(started)),
            begun: Begun::sample(at(started)),
            ended: None,
        }
    }

    #[test]
    fn j80_a_receiver_gets_time_to_start_and_one_that_fails_gets_none() {
        let state = |started: &[i64], is_running| JobState {
            is_running,
            ..JobState::sample(at(0), started.iter().map(|one| run(*one)).collect())
        };
        assert!(is_starting(&state(&[1000], true), at(1002)));
        assert!(is_starting(&state(&[10, 1000], true), at(1029)));
        assert!(!is_starting(&state(&[1000], true), at(1030)), "long ago");
        assert!(!is_starting(&state(&[1000], false), at(1002)), "it ended");
        let failing = state(&[900, 960, 1000], true);
        assert!(!is_starting(&failing, at(1002)), "it fails again and again");
        assert!(!is_starting(&state(&[], false), at(1002)));
    }

    #[test]
    fn j80_the_cluster_of_a_receiver_is_known_by_its_command() {
        let clusters = ["main", "other"].map(|name| Cluster::named(name.parse().unwrap()));
        let of = |run: &str, clusters: &[Cluster]| {
            let tenant = Tenant {
                name: "a".to_owned(),
                config: PathBuf::new(),
            };
            let job = Job {
                run: run.split(' ').map(str::to_owned).collect(),
                ..tenant.job()
            };
            cluster_of(&job, clusters).map(str::to_owned)
        };
        let (main, other) = (Some("main".to_owned()), Some("other".to_owned()));
        assert_eq!(of("receive --create-slot", &clusters[..1]), main);
        assert_eq!(of("receive", &clusters), None);
        assert_eq!(of("--cluster other receive", &clusters), other);
        assert_eq!(of("receive --cluster=other", &clusters), other);
        assert_eq!(of("redis receive cache", &clusters[..1]), None);
        assert_eq!(of("backup --full", &clusters[..1]), None);
    }
}
