//! The jobs as people are shown them: how they went, and when they run next.

use serde::Serialize;

use super::load::Loaded;
use super::scheduler::Planned;
use crate::error::{Code, Result};
use crate::operate::runs::{JobState, Run, Runs};
use crate::pg::time::TimestampTz;

/// A job as it is shown.
#[derive(Serialize)]
pub struct Shown {
    pub name: String,
    /// The words of the command.
    pub command: String,
    /// Whether a run is under way.
    pub running: bool,
    pub running_since: Option<TimestampTz>,
    /// The time for which the last run was scheduled.
    pub last_scheduled: Option<TimestampTz>,
    pub last_ended: Option<TimestampTz>,
    /// The status of its command.
    pub last_status: Option<i32>,
    /// Whether it went well; none while it runs, and before the first one.
    pub last_success: Option<bool>,
    /// Whether its last end was a failure, also while it runs again.
    pub failing: bool,
    /// The time at which it was due, where it has not begun two minutes later.
    pub overdue_since: Option<TimestampTz>,
    /// The end of what it printed.
    pub last_output: Option<String>,
    /// The host whose agent had the last run, where it is another one.
    pub elsewhere: Option<String>,
    /// When it runs next by its schedule.
    pub next: Option<TimestampTz>,
}

/// Reads how all jobs stand.
///
/// # Errors
/// Those of [`Runs::state`], apart from a job that never ran.
pub fn shown(loaded: &Loaded, now: TimestampTz) -> Result<Vec<Shown>> {
    let jobs = loaded.settings.jobs.iter().zip(&loaded.jobs);
    let one = |(job, planned): (&crate::config::Job, &Planned)| {
        let state = match Runs::of(&loaded.state_dir, &job.name).state(now) {
            Ok(state) => Some(state),
            Err(e) if e.code() == Code::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(show(&job.run.join(" "), planned, state.as_ref(), now))
    };
    jobs.map(one).collect()
}

fn show(command: &str, planned: &Planned, state: Option<&JobState>, now: TimestampTz) -> Shown {
    let last = state.and_then(|s| s.runs.last());
    let running = state.is_some_and(|s| s.is_running);
    let ended = last.and_then(|run| run.ended.as_ref());
    let is_over = last.is_some() && !(running && ended.is_none());
    Shown {
        name: planned.name.clone(),
        command: command.to_owned(),
        running,
        running_since: last.filter(|_| running).map(|run| run.begun.started),
        last_scheduled: last.map(|run| run.id.scheduled),
        last_ended: ended.map(|e| e.ended),
        last_status: ended.and_then(|e| e.status),
        last_success: last
            .filter(|run| is_over && !run.is_elsewhere())
            .map(Run::is_success),
        failing: state.is_some_and(|state| planned.failure(now, state).is_some()),
        overdue_since: state.and_then(|state| planned.missed(now, state)),
        last_output: ended
            .map(|e| e.said.clone())
            .filter(|said| !said.is_empty()),
        elsewhere: ended.and_then(|e| e.elsewhere.clone()),
        next: planned.next(now),
    }
}
