//! The runs that are to start now: a function of the clock, the jobs and how they stand. It does nothing, and remembers nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::schedule::Schedule;
use crate::operate::runs::{JobState, Run, RunId};
use crate::pg::time::TimestampTz;
use crate::repo::run_claim;

/// A job that is not caught up may begin so much late: the agent had something else to do.
const LATE: Duration = Duration::from_secs(120);
/// The first wait before another attempt; each further one is twice as long.
const RETRY: Duration = Duration::from_secs(60);
/// The longest wait before another attempt.
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// A run that ends earlier than this had trouble with its start.
const SHORT: Duration = Duration::from_secs(60);
/// A job may run for so long when it is due again.
const LONG: Duration = Duration::from_secs(6 * 3600);
/// So many failures of something that runs always, one soon after another, are trouble.
const FAILURES: usize = 3;
/// The longest wait before something that runs always is started again.
const RESTART_MAX: Duration = Duration::from_secs(60);

/// When a job runs.
#[derive(Debug)]
pub enum Trigger {
    /// By a schedule.
    Scheduled(Box<Schedule>),
    /// All the time.
    Always,
    /// After each success of another job.
    After(String),
}

/// A job, as far as its times are concerned.
#[derive(Debug)]
pub struct Planned {
    pub name: String,
    /// When it runs.
    pub trigger: Trigger,
    /// How much later than scheduled it starts on this host.
    pub delay: Duration,
    /// Whether a run that was missed is caught up.
    pub catch_up: bool,
    /// How often it is tried again.
    pub retries: u32,
    /// Whether one of several agents runs it.
    pub is_claimed: bool,
}

/// The runs that are to start now, each with the name of its job. A job that is not in `states` is not known yet, and starts nothing.
pub fn due<'a>(
    now: TimestampTz,
    jobs: &'a [Planned],
    states: &BTreeMap<String, JobState>,
) -> Vec<(&'a str, RunId)> {
    let one = |job: &'a Planned| {
        let state = states.get(&job.name)?;
        let run = match state.is_running {
            true => None,
            false => job.due(now, state, states),
        };
        Some((job.name.as_str(), run?))
    };
    jobs.iter().filter_map(one).collect()
}

impl Planned {
    fn due(
        &self,
        now: TimestampTz,
        state: &JobState,
        states: &BTreeMap<String, JobState>,
    ) -> Option<RunId> {
        let last = state.runs.last();
        let floor = last.map_or(state.since, |run| run.id.scheduled);
        let scheduled = match &self.trigger {
            Trigger::Always => {
                return may_restart(now, &state.runs)
                    .then(|| RunId::unscheduled(now, last.map(|run| run.id)));
            }
            Trigger::Scheduled(schedule) => self.scheduled(schedule, floor, now),
            Trigger::After(other) => succeeded(states.get(other)?, state, last),
        };
        scheduled
            .map(RunId::first)
            .or_else(|| self.again(now, last?))
    }

    /// The newest time that was missed, or is now.
    fn scheduled(
        &self,
        schedule: &Schedule,
        floor: TimestampTz,
        now: TimestampTz,
    ) -> Option<TimestampTz> {
        let due = schedule.last(floor, now.saturating_sub(self.delay))?;
        let late = now.duration_since(due.saturating_add(self.delay));
        let is_caught_up = self.catch_up && !self.is_forgotten(due, now);
        (is_caught_up || late.unwrap_or_default() <= LATE).then_some(due)
    }

    /// Whether nobody knows any more which agent had the run.
    fn is_forgotten(&self, due: TimestampTz, now: TimestampTz) -> bool {
        self.is_claimed && now.duration_since(due) >= Some(run_claim::LATEST)
    }

    /// Another attempt after one that failed.
    fn again(&self, now: TimestampTz, last: &Run) -> Option<RunId> {
        let attempt = last.id.attempt.checked_add(1)?;
        let is_left = attempt <= self.retries && !last.is_success() && !last.is_elsewhere();
        let wait = doubled(RETRY, last.id.attempt).min(RETRY_MAX);
        (is_left && has_passed(wait, end_of(last), now)).then_some(RunId { attempt, ..last.id })
    }

    /// The newest due time that has no record, though its run was to begin before now: it could not be claimed or started.
    pub fn missed(&self, now: TimestampTz, state: &JobState) -> Option<TimestampTz> {
        let Trigger::Scheduled(schedule) = &self.trigger else {
            return None;
        };
        let last = state.runs.last();
        let floor = last.map_or(state.since, |run| run.id.scheduled);
        let due = schedule.last(floor, now.saturating_sub(self.delay + LATE))?;
        // A run that was due during another begins behind it.
        let is_idle = !state.is_running
            && last.is_none_or(|run| now.duration_since(end_of(run)) >= Some(LATE));
        (is_idle && !self.is_forgotten(due, now)).then_some(due)
    }

    /// The time at which it was due again, of a run that goes on for hours.
    pub fn overrun(&self, now: TimestampTz, state: &JobState) -> Option<TimestampTz> {
        let last = state.runs.last().filter(|run| state.is_going(run))?;
        let due = self.next(
            last.id
                .scheduled
                .max(last.begun.started)
                .saturating_add(self.delay),
        )?;
        let is_long = now.duration_since(last.begun.started) >= Some(LONG);
        (is_long && due <= now).then_some(due)
    }

    /// The newest end of it that is trouble. A job that runs always is none while it runs, unless it fails again and again.
    pub fn failure<'s>(&self, now: TimestampTz, state: &'s JobState) -> Option<&'s Run> {
        let last = state.newest_over()?;
        let is_told = match self.trigger {
            Trigger::Always => !state.is_running || fails_again(now, state),
            _ => true,
        };
        (is_told && !last.is_success()).then_some(last)
    }

    /// The next time at which it starts by its schedule.
    pub fn next(&self, now: TimestampTz) -> Option<TimestampTz> {
        match &self.trigger {
            Trigger::Scheduled(schedule) => {
                let next = schedule.next(now.saturating_sub(self.delay))?;
                Some(next.saturating_add(self.delay))
            }
            Trigger::Always | Trigger::After(_) => None,
        }
    }
}

/// The name of the run that follows the newest success of the job before, where this one did not begin behind it yet.
fn succeeded(before: &JobState, own: &JobState, last: Option<&Run>) -> Option<TimestampTz> {
    let success = before.runs.iter().rfind(|run| run.is_success())?;
    let (scheduled, end) = (success.id.scheduled, end_of(success));
    let Some(last) = last else {
        return (end >= own.since).then_some(scheduled);
    };
    // After a run by hand the time of the success may be an older name than the last one.
    let name = match scheduled > last.id.scheduled {
        true => scheduled,
        false => end,
    };
    // A clock that went back lets nothing follow twice. A run that is named by the end of another success followed that one.
    let mut others = before.runs.iter().filter(|other| other.id != success.id);
    let is_of_another = others.any(|other| end_of(other) == scheduled);
    let mut names = own.runs.iter().map(|run| run.id.scheduled);
    let is_known = names.any(|name| name == end || name == scheduled && !is_of_another);
    (end > last.begun.started && name > last.id.scheduled && !is_known).then_some(name)
}

/// Whether something that runs always may be started again: at once, and ever later where it ends soon.
fn may_restart(now: TimestampTz, runs: &[Run]) -> bool {
    let Some(last) = runs.last() else { return true };
    let short = runs.iter().rev().take_while(|run| is_short(run)).count();
    let Some(before) = short.checked_sub(1) else {
        return true;
    };
    let exponent = u32::try_from(before).unwrap_or(u32::MAX);
    let wait = doubled(Duration::from_secs(1), exponent).min(RESTART_MAX);
    has_passed(wait, end_of(last), now)
}

fn is_short(run: &Run) -> bool {
    let took = end_of(run).duration_since(run.begun.started);
    took.unwrap_or_default() < SHORT
}

/// Whether the newest runs failed soon, and the one that is under way has not gone on for longer yet.
fn fails_again(now: TimestampTz, state: &JobState) -> bool {
    let is_young = |run: &Run| now.duration_since(run.begun.started) < Some(SHORT);
    let (going, over): (Vec<&Run>, Vec<&Run>) =
        state.runs.iter().partition(|run| state.is_going(run));
    let failed = over.iter().rev().take(FAILURES);
    let failed = failed.filter(|run| is_short(run) && !run.is_success());
    failed.count() == FAILURES && going.into_iter().all(is_young)
}

/// A clock that went back makes nobody wait for longer than was meant: the wait counts as over.
fn has_passed(wait: Duration, since: TimestampTz, now: TimestampTz) -> bool {
    now.duration_since(since)
        .is_none_or(|passed| passed >= wait)
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16))
}

/// A run that was killed with its record ended at its start, as far as anybody knows.
fn end_of(run: &Run) -> TimestampTz {
    run.ended.as_ref().map_or(run.begun.started, |e| e.ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::runs::{Begun, Ended};
    use proptest::prelude::*;

    fn time(text: &str) -> TimestampTz {
        text.parse().unwrap()
    }

    fn run(
        scheduled: TimestampTz,
        attempt: u32,
        started: TimestampTz,
        ended: Option<(TimestampTz, i32)>,
    ) -> Run {
        Run {
            id: RunId { scheduled, attempt },
            begun: Begun::sample(started),
            ended: ended.map(|(ended, status)| Ended::sample(ended, status)),
        }
    }

    fn daily(catch_up: bool, retries: u32) -> Planned {
        Planned {
            name: "a".into(),
            trigger: cron("0 2 * * *", None),
            delay: Duration::ZERO,
            catch_up,
            retries,
            is_claimed: false,
        }
    }

    fn cron(text: &str, zone: Option<&str>) -> Trigger {
        Trigger::Scheduled(Box::new(Schedule::new(text, zone).unwrap()))
    }

    fn with(trigger: Trigger) -> Planned {
        Planned {
            trigger,
            ..daily(true, 0)
        }
    }

    fn state(runs: Vec<Run>) -> JobState {
        JobState::sample(time("2026-11-01T00:00:00Z"), runs)
    }

    fn going(runs: Vec<Run>) -> JobState {
        JobState {
            is_running: true,
            ..state(runs)
        }
    }

    /// The run of a job that follows another one.
    fn follows(now: TimestampTz, retries: u32, before: &[Run], own: &[Run]) -> Option<RunId> {
        let mut job = with(Trigger::After("b".into()));
        job.retries = retries;
        let states = [("a", own), ("b", before)];
        let states = states.map(|(name, runs)| (name.to_owned(), state(runs.to_vec())));
        let jobs = [job];
        due(now, &jobs, &states.into()).first().map(|(_, id)| *id)
    }

    fn starts(job: Planned, state: JobState, now: &str) -> Option<RunId> {
        let states = [("a".to_owned(), state)].into();
        let jobs = [job];
        let due = due(time(now), &jobs, &states);
        due.first().map(|(_, id)| *id)
    }

    #[test]
    fn jitter_delays_the_start_and_not_the_scheduled_time() {
        let job = || Planned {
            delay: Duration::from_secs(600),
            ..daily(false, 0)
        };
        let two = time("2026-11-20T02:00:00Z");
        let id = Some(RunId::first(two));
        assert_eq!(starts(job(), state(vec![]), "2026-11-20T02:09:59Z"), None);
        assert_eq!(starts(job(), state(vec![]), "2026-11-20T02:10:00Z"), id);
        let next = job().next(time("2026-11-20T02:05:00Z"));
        assert_eq!(next, Some(time("2026-11-20T02:10:00Z")));
        // Before its delay is over nothing was missed.
        let missed = |now| job().missed(time(now), &state(vec![]));
        let yesterday = Some(time("2026-11-19T02:00:00Z"));
        assert_eq!(missed("2026-11-20T02:11:00Z"), yesterday);
        assert_eq!(missed("2026-11-20T02:13:00Z"), Some(two));
    }

    #[test]
    fn a_missed_time_is_caught_up_once() {
        let two = time("2026-11-20T02:00:00Z");
        let id = RunId::first(two);
        let late = "2026-11-20T09:00:00Z";
        assert_eq!(starts(daily(true, 0), state(vec![]), late), Some(id));
        assert_eq!(starts(daily(false, 0), state(vec![]), late), None);
        let soon = "2026-11-20T02:00:30Z";
        assert_eq!(starts(daily(false, 0), state(vec![]), soon), Some(id));
        let done = run(two, 0, two, Some((two, 0)));
        assert_eq!(starts(daily(true, 0), state(vec![done]), late), None);
        assert_eq!(starts(daily(true, 0), going(vec![]), late), None);
    }

    #[test]
    fn a_failure_is_tried_again_as_often_as_was_asked() {
        let two = time("2026-11-20T02:00:00Z");
        let failed = |attempt| run(two, attempt, two, Some((two, 1)));
        let after = |retries, attempt, now: &str| {
            starts(daily(true, retries), state(vec![failed(attempt)]), now).map(|id| id.attempt)
        };
        assert_eq!(after(0, 0, "2026-11-20T02:05:00Z"), None);
        assert_eq!(after(2, 0, "2026-11-20T02:00:30Z"), None, "too early");
        assert_eq!(after(2, 0, "2026-11-20T02:01:00Z"), Some(1));
        assert_eq!(after(2, 1, "2026-11-20T02:02:00Z"), Some(2));
        assert_eq!(after(2, 2, "2026-11-20T09:00:00Z"), None);
        // Killed with its record: it did not succeed.
        let lost = state(vec![run(two, 0, two, None)]);
        let again = starts(daily(true, 1), lost, "2026-11-20T02:01:00Z");
        assert_eq!(again.map(|id| id.attempt), Some(1));
    }

    #[test]
    fn one_job_follows_each_success_of_another() {
        let two = time("2026-11-20T02:00:00Z");
        let of = |before: Vec<Run>, own: Vec<Run>| {
            let run = follows(time("2026-11-20T03:00:00Z"), 0, &before, &own);
            run.map(|id| id.scheduled)
        };
        let good = run(two, 0, two, Some((two, 0)));
        let bad = run(two, 0, two, Some((two, 1)));
        assert_eq!(of(vec![], vec![]), None);
        assert_eq!(of(vec![bad.clone()], vec![]), None);
        assert_eq!(of(vec![good.clone()], vec![]), Some(two));
        assert_eq!(of(vec![good.clone()], vec![good.clone()]), None);
        assert_eq!(of(vec![good], vec![bad]), None, "it followed, and failed");
    }

    #[test]
    fn j43_a_run_by_hand_keeps_no_job_from_following() {
        let at = |minute: u32| time(&format!("2026-11-20T02:{minute:02}:00Z"));
        let of = |before: &Run, own: &[Run]| follows(at(59), 1, std::slice::from_ref(before), own);
        // By hand while the job before it ran: its success is newer.
        let before = run(at(0), 0, at(0), Some((at(20), 0)));
        let by_hand = run(at(5), 0, at(5), Some((at(6), 0)));
        let followed_by_hand = of(&before, std::slice::from_ref(&by_hand));
        assert_eq!(followed_by_hand, Some(RunId::first(at(20))));
        // It followed once, and is tried again where it failed.
        let followed = |status| run(at(20), 0, at(21), Some((at(22), status)));
        let all = |status| [by_hand.clone(), followed(status)];
        assert_eq!(of(&before, &all(0)), None);
        let again = RunId {
            scheduled: at(20),
            attempt: 1,
        };
        assert_eq!(of(&before, &all(1)), Some(again));
        // By hand behind that success: it has what it needs.
        let later = run(at(30), 0, at(30), Some((at(31), 0)));
        assert_eq!(of(&before, &[later]), None);
        // A clock that went back lets nothing follow twice.
        let back = run(at(0), 0, at(10), Some((at(11), 0)));
        assert_eq!(of(&before, &[back]), None);
    }

    #[test]
    fn what_runs_always_is_started_again_ever_later() {
        let begin = time("2026-11-20T02:00:00Z");
        let job = || with(Trigger::Always);
        let after = |count: u64, seconds: u64| {
            let at = |n: u64| begin.saturating_add(Duration::from_secs(n));
            let runs = (0..count).map(|n| run(at(n), 0, at(n), Some((at(n), 1))));
            let runs: Vec<Run> = runs.collect();
            let now = at(count.saturating_sub(1) + seconds).to_string();
            starts(job(), state(runs), &now).is_some()
        };
        assert!(after(0, 0));
        assert!(!after(1, 0) && after(1, 1));
        assert!(!after(4, 7) && after(4, 8));
        assert!(!after(40, 59) && after(40, 60));
        // A long run is started again at once.
        let long = run(begin, 0, begin, Some((time("2026-11-20T03:00:00Z"), 1)));
        assert!(starts(job(), state(vec![long]), "2026-11-20T03:00:00Z").is_some());
    }

    #[test]
    fn j50_what_runs_always_is_named_after_its_last_run_by_a_clock_that_went_back() {
        let last = time("2026-11-20T02:00:00Z");
        let ended = Some((time("2026-11-20T02:20:00Z"), 1));
        let state = state(vec![run(last, 0, last, ended)]);
        let id = starts(with(Trigger::Always), state, "2026-11-20T01:30:00Z");
        assert!(id.is_some_and(|id| id.scheduled > last), "{id:?}");
    }

    #[test]
    fn a_run_that_goes_on_when_it_is_due_again_is_trouble_after_hours() {
        let two = time("2026-11-20T02:00:00Z");
        let at = |now: &str, is_running| {
            let state = JobState {
                is_running,
                ..state(vec![run(two, 0, two, None)])
            };
            daily(true, 0).overrun(time(now), &state)
        };
        assert_eq!(at("2026-11-21T01:59:00Z", true), None);
        assert_eq!(at("2026-11-21T02:00:00Z", false), None);
        let again = Some(time("2026-11-21T02:00:00Z"));
        assert_eq!(at("2026-11-21T02:00:00Z", true), again);
        // Caught up shortly before it is due, it is given its time.
        let late = time("2026-11-21T01:00:00Z");
        let (state, job) = (going(vec![run(two, 0, late, None)]), daily(true, 0));
        assert_eq!(job.overrun(time("2026-11-21T06:59:00Z"), &state), None);
        assert_eq!(job.overrun(time("2026-11-21T07:00:00Z"), &state), again);
    }

    #[test]
    fn a_failure_is_trouble_until_a_run_ends_well_or_what_runs_always_goes_on() {
        let two = time("2026-11-20T02:00:00Z");
        let at = |n: u64| two.saturating_add(Duration::from_secs(n));
        let failed = |n| run(at(n), 0, at(n), Some((at(n + 1), 1)));
        let going = |runs: Vec<Run>, begun: u64| {
            going([runs, vec![run(at(begun), 0, at(begun), None)]].concat())
        };
        let is_told =
            |job: &Planned, state: &JobState, now: u64| job.failure(at(now), state).is_some();
        let job = daily(true, 0);
        assert!(is_told(&job, &going(vec![failed(0)], 10), 20), "it hangs");
        assert!(!is_told(&job, &going(vec![], 10), 20), "it is the first");
        let well = run(at(5), 0, at(5), Some((at(6), 0)));
        assert!(!is_told(&job, &state(vec![failed(0), well]), 20));
        let always = with(Trigger::Always);
        let thrice = vec![failed(0), failed(2), failed(4)];
        assert!(!is_told(&always, &going(thrice[..2].to_vec(), 10), 20));
        assert!(is_told(&always, &going(thrice.clone(), 10), 20));
        assert!(!is_told(&always, &going(thrice, 10), 70), "it goes on");
        assert!(is_told(&always, &state(vec![failed(0)]), 20));
    }

    #[test]
    fn a_due_time_without_a_record_is_trouble_after_a_while() {
        let missed = |state: &JobState, now: &str| daily(true, 0).missed(time(now), state);
        let two = time("2026-11-20T02:00:00Z");
        assert_eq!(missed(&state(vec![]), "2026-11-01T01:00:00Z"), None);
        let yesterday = time("2026-11-19T02:00:00Z");
        let before = state(vec![run(yesterday, 0, yesterday, Some((yesterday, 0)))]);
        assert_eq!(missed(&before, "2026-11-20T02:01:59Z"), None);
        assert_eq!(missed(&before, "2026-11-20T02:02:00Z"), Some(two));
        // It was busy until just now, and is now.
        let busy = time("2026-11-20T08:59:00Z");
        let mut busy = state(vec![run(yesterday, 0, yesterday, Some((busy, 0)))]);
        assert_eq!(missed(&busy, "2026-11-20T09:00:00Z"), None);
        assert_eq!(missed(&busy, "2026-11-20T09:01:00Z"), Some(two));
        busy.is_running = true;
        assert_eq!(missed(&busy, "2026-11-20T09:01:00Z"), None);
        let begun = state(vec![run(two, 0, two, Some((two, 1)))]);
        assert_eq!(missed(&begun, "2026-11-20T09:00:00Z"), None);
    }

    #[test]
    fn a_run_whose_claim_may_be_forgotten_is_not_caught_up() {
        let monthly = |is_claimed| Planned {
            is_claimed,
            ..with(cron("0 2 1 * *", None))
        };
        let begin = || JobState::sample(time("2026-10-02T00:00:00Z"), vec![]);
        let starts = |is_claimed, now| starts(monthly(is_claimed), begin(), now).is_some();
        let missed = |is_claimed, now| monthly(is_claimed).missed(time(now), &begin()).is_some();
        let (before, after) = ("2026-11-07T01:59:59Z", "2026-11-07T02:00:00Z");
        assert!(starts(true, before) && missed(true, before));
        assert!(!starts(true, after) && !missed(true, after));
        assert!(starts(false, after) && missed(false, after));
    }

    /// A day of one host: the agent is there or not, and a job takes some time and fails at times.
    #[derive(Debug, Clone)]
    struct Step {
        minutes: u64,
        is_down: bool,
        takes: u64,
        fails: bool,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (1_u64..90, any::<bool>(), 0_u64..150, any::<bool>());
        let step = step.prop_map(|(minutes, is_down, takes, fails)| Step {
            minutes,
            is_down,
            takes,
            fails,
        });
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Over random clocks and outages, across both changes of the clock: no run overlaps another, none begins twice, each is of a due
        /// time, and after a while with the agent up the newest due time was run.
        #[test]
        fn no_run_is_lost_or_doubled(steps in steps(), spring in any::<bool>(), retries in 0_u32..3) {
            let start = match spring {
                true => time("2026-03-28T20:00:00Z"),
                false => time("2026-10-24T20:00:00Z"),
            };
            let schedule = || Schedule::new("30 */2 * * *", Some("Europe/Berlin")).unwrap();
            let job = [Planned {
                trigger: Trigger::Scheduled(Box::new(schedule())),
                ..daily(true, retries)
            }];
            let oracle = schedule();
            let mut now = start;
            let mut runs: Vec<Run> = Vec::new();
            let mut busy_until = start;
            for step in steps {
                for _ in 0..step.minutes {
                    now = now.saturating_add(Duration::from_secs(60));
                    if step.is_down { continue; }
                    let own = JobState { since: start, is_running: now < busy_until, runs: runs.clone(), ahead: 0 };
                    let states = [("a".to_owned(), own)].into();
                    let decided = due(now, &job, &states);
                    let Some((_, id)) = decided.first() else {
                        // Idle means: the newest due time was begun.
                        if now >= busy_until {
                            prop_assert_eq!(oracle.last(runs.last().map_or(start, |r| r.id.scheduled), now), None);
                        }
                        continue;
                    };
                    prop_assert!(now >= busy_until, "overlap");
                    prop_assert!(id.scheduled <= now);
                    prop_assert!(runs.iter().all(|r| r.id < *id), "begun twice or out of order");
                    prop_assert!(id.attempt <= retries);
                    let just_before = id.scheduled.saturating_sub(Duration::from_secs(1));
                    prop_assert_eq!(oracle.next(just_before), Some(id.scheduled), "not a due time");
                    busy_until = now.saturating_add(Duration::from_secs(step.takes * 60));
                    let status = i32::from(step.fails);
                    runs.push(run(id.scheduled, id.attempt, now, Some((busy_until, status))));
                }
            }
        }

        /// Over random runs by hand of both: each success of the one is followed once by a run that began behind it.
        #[test]
        fn each_success_is_followed_though_runs_are_begun_by_hand(steps in prop::collection::vec((0_u8..4, 1_u64..90, any::<bool>()), 1..60)) {
            let start = time("2026-11-20T00:10:00Z");
            let minute = Duration::from_secs(60);
            let before = Planned {
                trigger: Trigger::Scheduled(Box::new(Schedule::new("30 */2 * * *", None).unwrap())),
                name: "b".into(),
                ..daily(true, 0)
            };
            let jobs = [before, Planned { trigger: Trigger::After("b".into()), ..daily(true, 0) }];
            let mut now = start;
            let mut runs: BTreeMap<String, Vec<Run>> = [("a".to_owned(), vec![]), ("b".to_owned(), vec![])].into();
            let is_busy = |runs: &[Run], now| runs.last().is_some_and(|run| end_of(run) > now);
            for (by_hand, takes, fails) in steps {
                for passed in 0..40 {
                    now = now.saturating_add(minute);
                    let seen = |runs: &Vec<Run>| JobState {
                        since: start,
                        is_running: is_busy(runs, now),
                        // A run that goes on has no end yet.
                        runs: runs.iter().map(|one| Run { ended: one.ended.clone().filter(|e| e.ended <= now), ..one.clone() }).collect(),
                        ahead: 0,
                    };
                    let states: BTreeMap<String, JobState> = runs.iter().map(|(name, own)| (name.clone(), seen(own))).collect();
                    let mut begins: Vec<(String, RunId)> = due(now, &jobs, &states).into_iter().map(|(name, id)| (name.to_owned(), id)).collect();
                    let success = states["b"].runs.iter().rfind(|run| run.is_success());
                    if let Some(success) = success && begins.iter().all(|(name, _)| name != "a") && !states["a"].is_running {
                        let has_followed = states["a"].runs.iter().any(|run| run.begun.started >= end_of(success));
                        prop_assert!(has_followed, "{:?} was not followed", success.id);
                    }
                    // No run by hand has the time of a schedule for its name.
                    let hand_time = now.saturating_add(Duration::from_secs(17));
                    let hand = ["a", "b"].into_iter().nth(usize::from(by_hand)).filter(|_| passed == 7);
                    if let Some(name) = hand && !states[name].is_running && begins.iter().all(|(begun, _)| begun != name) {
                        begins.push((name.to_owned(), RunId::first(hand_time)));
                    }
                    for (name, id) in begins {
                        let own = runs.get_mut(&name).unwrap();
                        prop_assert!(own.iter().all(|run| run.id < id), "{name}: begun twice or out of order");
                        let ended = now.saturating_add(minute * u32::try_from(takes).unwrap());
                        own.push(run(id.scheduled, id.attempt, now.max(id.scheduled), Some((ended, i32::from(fails)))));
                    }
                }
            }
        }
    }
}
