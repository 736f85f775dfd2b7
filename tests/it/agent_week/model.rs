//! When each job is due, and what must have become of it. It is written from docs/agent.md and the clocks of two cities, and knows nothing of the
//! scheduler.

use std::collections::{BTreeMap, BTreeSet};

use super::stage::{HOSTS, Heard, Stage};

/// Nanoseconds.
pub const SECOND: i128 = 1_000_000_000;
const MINUTE: i128 = 60 * SECOND;

/// When a job is due by the clock on the wall.
#[derive(Clone, Copy)]
pub enum Wall {
    /// At each minute of the hour that this divides, behind the second number.
    Every(i64, i64),
    /// At this minute of each hour that the second number divides.
    Hours(i64, i64),
    /// Once a day, at hour and minute.
    Daily(i64, i64),
}

#[derive(Clone, Copy)]
pub enum Trigger {
    At(Wall, City),
    After(&'static str),
    Always,
}

#[derive(Clone, Copy)]
pub enum City {
    Utc,
    /// An hour is missing from 01:00 UTC on 2025-03-30.
    Berlin,
    /// An hour comes twice from 16:00 UTC on 2025-04-05.
    Sydney,
}

impl City {
    fn offset(self, utc: i64) -> i64 {
        match self {
            City::Utc => 0,
            City::Berlin if utc < 1_743_296_400 => 3600,
            City::Berlin => 7200,
            City::Sydney if utc < 1_743_868_800 => 11 * 3600,
            City::Sydney => 10 * 3600,
        }
    }
}

pub struct Job {
    pub name: &'static str,
    pub trigger: Trigger,
    pub retries: u32,
    pub is_caught_up: bool,
    pub is_claimed: bool,
}

impl Job {
    /// The second host has little more than what both share.
    pub fn is_on(&self, host: &str) -> bool {
        host == "one" || matches!(self.name, "bad" | "night" | "check" | "shared" | "follows")
    }
}

/// The times at which a job is due, in nanoseconds, from `from` to `to`.
pub fn times(wall: Wall, city: City, from: i128, to: i128) -> Vec<i128> {
    let minute = |at: i128| i64::try_from(at / MINUTE).unwrap();
    let mut found = Vec::new();
    let mut days = BTreeSet::new();
    for at in minute(from) - 1440..=minute(to) {
        let utc = at * 60;
        let local = at + city.offset(utc) / 60;
        let (hour, past) = (local.rem_euclid(1440) / 60, local.rem_euclid(60));
        let is_due = match wall {
            Wall::Every(step, behind) => past % step == behind,
            Wall::Hours(minute, step) => past == minute && hour % step == 0,
            Wall::Daily(hours, minutes) => {
                // The first minute of the day that is not earlier: in a gap, the one behind it.
                local.rem_euclid(1440) >= hours * 60 + minutes
                    && days.insert(local.div_euclid(1440))
            }
        };
        let at = i128::from(utc) * SECOND;
        if is_due && at > from && at <= to {
            found.push(at);
        }
    }
    found
}

/// A run, by its record. Moments are of the clock of the machine, but for the scheduled one.
#[derive(Debug, Clone)]
pub struct Run {
    pub scheduled: i128,
    pub attempt: u32,
    pub begun: i128,
    /// When it ended, and its status; no status where a signal ended it.
    pub ended: Option<(i128, Option<i64>)>,
    pub is_elsewhere: bool,
    pub is_over_time: bool,
}

impl Run {
    fn is_success(&self) -> bool {
        self.ended.is_some_and(|(_, status)| status == Some(0))
    }
}

/// A line of a stub.
#[derive(Debug, Clone)]
struct Line {
    at: i128,
    end: Option<(i128, i64)>,
}

/// An answer of `pitr agent status`.
pub struct Answer {
    pub host: &'static str,
    pub from: i128,
    pub to: i128,
    pub code: i32,
    pub json: serde_json::Value,
}

/// Metrics or readiness, as they were served.
pub struct Page {
    pub host: &'static str,
    pub from: i128,
    pub to: i128,
    pub is_ready: Option<bool>,
    /// Results of jobs by name, 1 where the last run failed.
    pub results: BTreeMap<String, f64>,
}

/// Everything that was seen.
#[derive(Default)]
pub struct Seen {
    pub finish: i128,
    /// The name of a run is the name of its file, without its end.
    pub runs: BTreeMap<(&'static str, String), BTreeMap<String, Run>>,
    /// When each job was first seen, by the simulated clock.
    pub since: BTreeMap<(&'static str, String), i128>,
    /// When the agents were there.
    pub up: BTreeMap<&'static str, Vec<(i128, i128)>>,
    /// When a host lost its power.
    pub cuts: Vec<(&'static str, i128)>,
    /// When the disk of the first host was full, the repository was away, and its first sink took nothing.
    pub full: (i128, i128),
    pub away: (i128, i128),
    pub deaf: Vec<(i128, i128)>,
    /// When the file of notices changed.
    pub told: BTreeMap<&'static str, Vec<i128>>,
    pub answers: Vec<Answer>,
    pub pages: Vec<Page>,
}

/// Judges a week.
pub struct Judge<'a> {
    pub stage: &'a Stage,
    pub seen: &'a Seen,
    pub jobs: &'a [Job],
    /// So much later something may happen than it should: the machine has other things to do.
    pub slack: i128,
    pub faults: Vec<String>,
    /// How many were seen of each kind, so that a test in which nothing happened does not pass.
    pub counts: BTreeMap<&'static str, usize>,
}

fn is_in(at: i128, (from, to): (i128, i128)) -> bool {
    (from..to).contains(&at)
}

impl Judge<'_> {
    fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    fn count(&mut self, name: &'static str, by: usize) {
        *self.counts.entry(name).or_default() += by;
    }

    /// Simulated hours and minutes since the begin, for messages.
    fn clock(&self, at: i128) -> String {
        let at = self.stage.simulated(at) / SECOND;
        let days = at.div_euclid(86_400);
        format!("{days}d{:02}:{:02}", at / 3600 % 24, at / 60 % 60)
    }

    pub fn all(&mut self) {
        let stubs = self.stubs();
        for host in HOSTS {
            for job in self.jobs.iter().filter(|job| job.is_on(host)) {
                let runs = self.runs(host, job, &stubs);
                self.schedule(host, job, &runs);
                self.notices(host, job, &runs);
                self.greens(host, job, &runs);
            }
        }
        self.claims();
        self.sequences();
        let (from, to) = (self.seen.away.0 + self.slack, self.seen.away.1);
        let away = self
            .seen
            .pages
            .iter()
            .filter(|p| p.from > from && p.to < to);
        let ready = away.filter(|p| p.is_ready == Some(true)).count();
        if ready > 0 {
            self.fault(format!(
                "{ready} times an agent was ready without its repository"
            ));
        }
    }

    /// Reads what the stubs noted: no run twice, no two of a job at once.
    fn stubs(&mut self) -> BTreeMap<String, Line> {
        let mut all: BTreeMap<String, Line> = BTreeMap::new();
        let mut by_process: BTreeMap<String, String> = BTreeMap::new();
        let mut order: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.stage.trace().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [what, host, job, scheduled, attempt, process, at, rest @ ..] = &words[..] else {
                self.fault(format!("a line of a stub: {line}"));
                continue;
            };
            let at: i128 = at.parse().unwrap();
            let process = format!("{host} {job} {process}");
            if *what == "end" {
                let status = rest[0].parse().unwrap();
                if let Some(stub) = by_process.get(&process).and_then(|id| all.get_mut(id)) {
                    stub.end = Some((at, status));
                }
                continue;
            }
            // Its record keeper was gone before it could look: a power cut.
            let id = match *scheduled {
                "?" => format!("{host} {job} unknown {at}"),
                _ => format!("{host} {job} {scheduled} {attempt}"),
            };
            by_process.insert(process, id.clone());
            if all.insert(id.clone(), Line { at, end: None }).is_some() {
                self.fault(format!("{id} ran twice"));
            }
            order.entry(format!("{host} {job}")).or_default().push(id);
        }
        self.count("stubs", all.len());
        for ids in order.values() {
            for pair in ids.windows(2) {
                let (before, next) = (&all[&pair[0]], &all[&pair[1]]);
                let host = pair[0].split(' ').next().unwrap();
                let end = before
                    .end
                    .map(|(at, _)| at)
                    .or_else(|| self.cut(host, before.at));
                if end.is_none_or(|end| end > next.at) {
                    self.fault(format!("{} and {} ran at once", pair[0], pair[1]));
                }
            }
        }
        all
    }

    /// The first power cut of a host from then on.
    fn cut(&self, host: &str, from: i128) -> Option<i128> {
        let cuts = self
            .seen
            .cuts
            .iter()
            .filter(|(of, at)| *of == host && *at >= from);
        cuts.map(|(_, at)| *at).min()
    }

    /// The runs of a job in their order, each beside what its stub noted.
    fn runs(&mut self, host: &'static str, job: &Job, stubs: &BTreeMap<String, Line>) -> Vec<Run> {
        let known = self.seen.runs.get(&(host, job.name.to_owned()));
        let runs = known.into_iter().flat_map(|r| r.values().cloned());
        let mut runs: Vec<Run> = runs.collect();
        for run in &mut runs {
            let id = format!(
                "{host} {} {} {}",
                job.name,
                run.scheduled / 1000,
                run.attempt
            );
            let stub = stubs.get(&id);
            let near = |at: i128| at >= run.begun && at <= run.begun + self.slack;
            let is_cut =
                self.cut(host, run.begun).is_some_and(near) || self.is_full(host, run.begun);
            match (stub, run.is_elsewhere) {
                (None, false) if !is_cut => self.fault(format!("{id} has a record and never ran")),
                (Some(_), true) => self.fault(format!("{id} ran though it was elsewhere")),
                _ => {}
            }
            let end = stub.and_then(|s| s.end);
            let (status, kept) = (end.map(|(_, s)| s), run.ended.and_then(|(_, s)| s));
            if run.ended.is_some()
                && !run.is_elsewhere
                && status.is_some()
                && kept.is_some()
                && status != kept
            {
                self.fault(format!(
                    "{id} ended with {status:?}, its record says {kept:?}"
                ));
            }
            if run.ended.is_none() {
                // It was killed, or its record could not be kept.
                let at = end.map(|(at, _)| at).or_else(|| self.cut(host, run.begun));
                let is_lost =
                    self.cut(host, run.begun).is_some() || self.seen.full.0 > 0 && host == "one";
                match at.filter(|_| is_lost) {
                    Some(at) => {
                        self.count("killed", 1);
                        run.ended = Some((at, None));
                    }
                    None if run.begun + 12 * SECOND < self.seen.finish
                        && !matches!(job.trigger, Trigger::Always) =>
                    {
                        self.fault(format!("{id} never ended"));
                    }
                    None => {}
                }
            }
            if run.is_over_time {
                self.count("over time", 1);
            }
        }
        for id in stubs
            .keys()
            .filter(|id| id.starts_with(&format!("{host} {} ", job.name)))
        {
            let is_known = |run: &Run| {
                *id == format!(
                    "{host} {} {} {}",
                    job.name,
                    run.scheduled / 1000,
                    run.attempt
                )
            };
            if !id.contains("unknown") && !runs.iter().any(is_known) {
                self.fault(format!("{id} ran without a record"));
            }
        }
        runs
    }

    fn is_full(&self, host: &str, at: i128) -> bool {
        host == "one"
            && is_in(
                at,
                (self.seen.full.0 - SECOND, self.seen.full.1 + self.slack),
            )
    }

    /// When agents of a host were killed, or its power was cut.
    fn kills(&self, host: &str) -> Vec<i128> {
        let ups = self.seen.up.get(host).into_iter().flatten();
        let cuts = self.seen.cuts.iter().filter(|c| c.0 == host);
        ups.map(|(_, to)| *to).chain(cuts.map(|c| c.1)).collect()
    }

    /// How long the agent could have done it.
    fn ready(&self, host: &str, job: &Job, from: i128, to: i128) -> i128 {
        let ups = self.seen.up.get(host).into_iter().flatten();
        // It starts, and looks each 50 ms.
        let ups = ups.map(|(from, to)| (from + 7 * SECOND / 10, *to));
        let within = |(a, b): (i128, i128)| (b.min(to) - a.max(from)).max(0);
        let lost = |(a, b): (i128, i128), up: (i128, i128)| {
            within((a.max(up.0), (b + 3 * SECOND).min(up.1)))
        };
        ups.map(|up| {
            let full = if host == "one" {
                lost(self.seen.full, up)
            } else {
                0
            };
            let away = if job.is_claimed {
                lost(self.seen.away, up)
            } else {
                0
            };
            (within(up) - full - away).max(0)
        })
        .sum()
    }

    /// Each due time is begun, once, soon, in its order, or is rightly passed over.
    fn schedule(&mut self, host: &'static str, job: &Job, runs: &[Run]) {
        let name = format!("{host} {}", job.name);
        let Some(since) = self.seen.since.get(&(host, job.name.to_owned())).copied() else {
            return self.fault(format!("{name} was never seen"));
        };
        let end = self.stage.simulated(self.seen.finish);
        // Each with the moment from which it is due.
        let dues: Vec<(i128, i128)> = match job.trigger {
            Trigger::At(wall, city) => {
                let times = times(wall, city, since, end).into_iter();
                times.map(|at| (at, self.stage.real(at))).collect()
            }
            Trigger::After(other) => {
                let before = self.seen.runs.get(&(host, other.to_owned()));
                let before = before.into_iter().flat_map(|r| r.values());
                before
                    .filter(|r| r.is_success())
                    .map(|r| (r.scheduled, r.ended.unwrap().0))
                    .collect()
            }
            Trigger::Always => Vec::new(),
        };
        let since = self.stage.real(since);
        let mut before: Option<&Run> = None;
        for next in runs.iter().map(Some).chain([None]) {
            let idle = match before {
                None => since,
                Some(run) => match run.ended {
                    Some((at, _)) => at,
                    // It goes on.
                    None => break,
                },
            };
            let floor = before.map(|run| run.scheduled);
            let fresh = dues
                .iter()
                .filter(|(at, _)| floor.is_none_or(|floor| *at > floor));
            let passed: Vec<&(i128, i128)> = fresh.collect();
            let again =
                before.filter(|r| !r.is_success() && !r.is_elsewhere && r.attempt < job.retries);
            let again = again.map(|run| {
                // One that was killed counts from its begin.
                let (end, status) = run.ended.unwrap();
                let end = if status.is_none() && !run.is_over_time {
                    run.begun
                } else {
                    end
                };
                self.stage
                    .real(self.stage.simulated(end) + MINUTE * (1 << run.attempt))
            });
            let owed = match job.trigger {
                Trigger::Always => Some(idle),
                _ => passed
                    .first()
                    .map(|(_, at)| *at)
                    .into_iter()
                    .chain(again)
                    .min(),
            };
            let until = next.map_or(self.seen.finish, |run| run.begun.min(self.seen.finish));
            if let Some(owed) = owed.map(|owed| owed.max(idle)) {
                let ready = self.ready(host, job, owed, until);
                if ready > self.slack && job.is_caught_up {
                    let ms = ready / 1_000_000;
                    self.fault(format!(
                        "{name}: due at {}, not begun until {}, though the agent had {ms} ms",
                        self.clock(owed),
                        self.clock(until)
                    ));
                }
            }
            // Agents that leave may still begin one.
            let Some(run) = next.filter(|run| run.begun <= self.seen.finish) else {
                break;
            };
            let what = format!(
                "{name}, begun at {}, scheduled for {}, attempt {}",
                self.clock(run.begun),
                self.clock(self.stage.real(run.scheduled)),
                run.attempt
            );
            if run.begun < idle {
                self.fault(format!("{what}: before the one before it had ended"));
            }
            if run.attempt > 0 {
                self.count("attempts", 1);
                let follows = before
                    .is_some_and(|b| b.scheduled == run.scheduled && b.attempt + 1 == run.attempt);
                // A record keeps microseconds.
                let is_early = again.is_none_or(|at| run.begun + 1000 < at);
                if !follows || is_early {
                    self.fault(format!("{what}: no attempt was due"));
                }
            } else if !matches!(job.trigger, Trigger::Always) {
                let found = passed.iter().position(|(at, _)| *at == run.scheduled);
                match found {
                    None => self.fault(format!("{what}: it was not due then")),
                    Some(index) => {
                        self.count("passed over", index);
                        let newer = passed.get(index + 1).map(|(_, at)| *at);
                        if newer.is_some_and(|newer| newer + self.slack < run.begun) {
                            self.fault(format!("{what}: a newer time was due"));
                        }
                        let late = run.begun - passed[index].1;
                        if late < -1000 {
                            self.fault(format!("{what}: too early"));
                        }
                        let limit = self.slack + self.stage.real(2 * MINUTE) - self.stage.real(0);
                        if !job.is_caught_up && late > limit {
                            self.fault(format!("{what}: it is not to be caught up"));
                        }
                    }
                }
            }
            if run.is_elsewhere {
                self.count("elsewhere", 1);
            }
            before = Some(run);
        }
        self.count("runs", runs.len());
    }

    /// When the newest end of a job was a failure: moments, and what holds from then on.
    fn failing(runs: &[Run]) -> Vec<(i128, bool)> {
        let over = runs.iter().filter(|r| !r.is_elsewhere && r.ended.is_some());
        let mut changes: Vec<(i128, bool)> = vec![(0, false)];
        for run in over {
            let (at, fails) = (run.ended.unwrap().0, !run.is_success());
            if changes.last().unwrap().1 != fails {
                changes.push((at, fails));
            }
        }
        changes
    }

    /// Each sink has a notice of every failure that lasted, and one of its end.
    fn notices(&mut self, host: &'static str, job: &Job, runs: &[Run]) {
        // A receiver that ends by itself is started again at once: nobody hears of it.
        if matches!(job.trigger, Trigger::Always) {
            return;
        }
        let changes = Self::failing(runs);
        let (seen, slack) = (self.seen, self.slack);
        let id = format!("jobs/{}", job.name);
        for sink in ["a", "b"] {
            let sink = format!("{host}/{sink}");
            let heard: Vec<Heard> = self.stage.sinks.heard();
            let heard: Vec<&Heard> = heard
                .iter()
                .filter(|h| h.sink == sink && h.id == id)
                .collect();
            let deaf = |at: i128| {
                sink == "one/a"
                    && seen
                        .deaf
                        .iter()
                        .any(|d| is_in(at, (d.0 - SECOND, d.1 + slack)))
            };
            for (index, (from, fails)) in changes.iter().enumerate() {
                let to = changes.get(index + 1).map_or(self.seen.finish, |c| c.0);
                let looks = self.seen.told.get(host).into_iter().flatten();
                let looks = looks.filter(|at| {
                    **at > from + SECOND && **at < to && !deaf(**at) && !self.is_full(host, **at)
                });
                if looks.count() < 4 {
                    continue;
                }
                let last = heard.iter().rfind(|h| h.at < to);
                let is_open = last.is_some_and(|h| h.event != "resolved");
                // While the disk is full, an agent keeps its notices in memory. A kill loses them, and the next agent tells no end.
                let is_forgotten = !fails
                    && last.is_some_and(|h| {
                        self.is_full(host, h.at)
                            && self.kills(host).iter().any(|at| is_in(*at, (h.at, *from)))
                    });
                if is_open && is_forgotten {
                    self.count("forgotten", 1);
                } else if is_open != *fails {
                    self.fault(format!(
                        "{sink}: {id} fails = {fails} from {} to {}, and the sink heard {:?} last",
                        self.clock(*from),
                        self.clock(to),
                        last.map(|h| (&h.event, self.clock(h.at)))
                    ));
                } else if *fails {
                    self.count("told failures", 1);
                }
            }
            for one in heard.iter().filter(|h| h.event != "repeat") {
                let holds = one.event == "new";
                let was = |(index, (from, fails)): (usize, &(i128, bool))| {
                    let to = changes.get(index + 1).map_or(i128::MAX, |c| c.0);
                    *fails == holds && *from <= one.at && to >= one.at - self.slack
                };
                let is_known = changes.iter().enumerate().any(was);
                let is_away = self.is_full(host, one.at) || deaf(one.at);
                if !is_known && !is_away {
                    self.fault(format!(
                        "{sink}: {} of {id} at {} is wrong",
                        one.event,
                        self.clock(one.at)
                    ));
                }
            }
        }
    }

    /// Status and metrics say nothing good of a job that fails or is overdue.
    fn greens(&mut self, host: &'static str, job: &Job, runs: &[Run]) {
        if matches!(job.trigger, Trigger::Always) {
            return;
        }
        let changes = Self::failing(runs);
        let fails_all = |from: i128, to: i128| {
            let margin = SECOND / 4;
            changes.iter().enumerate().any(|(index, (begin, fails))| {
                let end = changes.get(index + 1).map_or(i128::MAX, |c| c.0);
                *fails && *begin + margin < from && to + margin < end
            })
        };
        let (mut red, mut faults) = (0, Vec::new());
        for answer in self.seen.answers.iter().filter(|a| a.host == host) {
            let jobs = answer.json["jobs"].as_array().unwrap();
            let shown = jobs.iter().find(|j| j["name"] == job.name).unwrap();
            if fails_all(answer.from, answer.to) && !self.is_full(host, answer.from) {
                red += 1;
                if answer.code == 0 || shown["last_success"] == true {
                    faults.push(format!(
                        "{host} {}: status {} at {} though it fails: {shown}",
                        job.name,
                        answer.code,
                        self.clock(answer.from)
                    ));
                }
            }
            let Trigger::At(wall, city) = job.trigger else {
                continue;
            };
            let sure = answer.from - SECOND / 2;
            let since = self.seen.since[&(host, job.name.to_owned())];
            let overdue = times(wall, city, since, self.stage.simulated(sure) - 2 * MINUTE);
            let newest = overdue.last().copied();
            // Who cannot record that a run begins holds its lock for a moment, again and again.
            if self.is_full(host, answer.from) {
                continue;
            }
            // A run that was due during another is due behind that.
            let is_begun = |due: i128| {
                runs.iter()
                    .any(|r| r.scheduled >= due && r.begun < answer.to + SECOND / 2)
            };
            let is_busy = runs.iter().any(|r| {
                r.begun < answer.to && r.ended.is_none_or(|(end, _)| end + SECOND > answer.from)
            });
            if newest.is_some_and(|due| !is_begun(due)) && !is_busy {
                red += 1;
                if answer.code == 0 || shown["overdue_since"].is_null() {
                    faults.push(format!(
                        "{host} {}: status {} at {} though it is overdue: {shown}",
                        job.name,
                        answer.code,
                        self.clock(answer.from)
                    ));
                }
            }
        }
        for page in self.seen.pages.iter().filter(|p| p.host == host) {
            // The metrics are those of the last look.
            if fails_all(page.from - self.slack, page.to)
                && !self.is_full(host, page.from)
                && let Some(result) = page.results.get(job.name)
            {
                red += 1;
                if *result == 0.0 {
                    faults.push(format!(
                        "{host} {}: metrics say that it went well at {}",
                        job.name,
                        self.clock(page.from)
                    ));
                }
            }
        }
        self.count("red", red);
        self.faults.extend(faults);
    }

    /// A run that is claimed is one agent's.
    fn claims(&mut self) {
        for job in self.jobs.iter().filter(|job| job.is_claimed) {
            let mut own: BTreeMap<i128, Vec<&str>> = BTreeMap::new();
            for host in HOSTS {
                let runs = self.seen.runs.get(&(host, job.name.to_owned()));
                for run in runs.into_iter().flat_map(|r| r.values()) {
                    let of = own.entry(run.scheduled).or_default();
                    if !run.is_elsewhere && run.attempt == 0 {
                        of.push(host);
                    }
                }
            }
            for (scheduled, hosts) in own {
                let at = self.stage.real(scheduled);
                let is_cut = self
                    .seen
                    .cuts
                    .iter()
                    .any(|(_, cut)| *cut >= at && *cut < at + 2 * self.slack);
                if hosts.len() > 1 || hosts.is_empty() && !is_cut {
                    self.fault(format!(
                        "{} at {} ran on {hosts:?}",
                        job.name,
                        self.clock(at)
                    ));
                }
            }
        }
    }

    /// Each notice comes once: new, repeated after four hours, resolved.
    fn sequences(&mut self) {
        let mut by_name: BTreeMap<(String, String), Vec<Heard>> = BTreeMap::new();
        for one in self.stage.sinks.heard() {
            by_name
                .entry((one.sink.clone(), one.id.clone()))
                .or_default()
                .push(one);
        }
        let hours = self.stage.real(240 * MINUTE) - self.stage.real(0);
        for ((sink, id), all) in by_name {
            let host = HOSTS.into_iter().find(|h| sink.starts_with(h)).unwrap();
            let mut before: Option<&Heard> = None;
            for one in &all {
                let open = before.is_some_and(|b| b.event != "resolved");
                let is_due = match (one.event.as_str(), before) {
                    ("repeat", Some(b)) => one.at - b.at >= hours - self.slack,
                    ("repeat", None) => false,
                    ("new", _) => !open,
                    _ => open,
                };
                let kills = self.kills(host);
                // A look that is killed behind a delivery makes it once more.
                let gone = |from: i128| {
                    let near = (from - SECOND / 5, from + SECOND);
                    kills.iter().any(|at| is_in(*at, near))
                };
                // One that is killed before a delivery has promised the end of what the sink never heard of.
                let quiet = (before.map_or(i128::MIN, |b| b.at), one.at);
                let is_unheard =
                    one.event == "resolved" && !open && kills.iter().any(|at| is_in(*at, quiet));
                let is_twice = before.is_some_and(|b| b.event == one.event && gone(b.at));
                let is_full =
                    self.is_full(host, one.at) || before.is_some_and(|b| self.is_full(host, b.at));
                if is_twice {
                    self.count("told twice", 1);
                } else if is_unheard {
                    self.count("ended unheard", 1);
                } else if !is_due && !is_full {
                    self.fault(format!(
                        "{sink}: {} of {id} at {} behind {:?}",
                        one.event,
                        self.clock(one.at),
                        before.map(|b| (&b.event, self.clock(b.at)))
                    ));
                }
                before = Some(one);
            }
        }
    }
}
