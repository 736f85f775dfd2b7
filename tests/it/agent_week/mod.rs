//! A week of two agents in minutes: the clock is sped up, the jobs are stubs, and the agents are killed all the time.
//!
//! The real program runs, with its own processes for runs and looks. `stage` has the hosts and what fails around them, `model` says what must
//! have become of each job, of each alert and of what is shown. `make agent-week` runs a whole week, with both kinds of changes of the clock;
//! by itself the test has the night in which an hour is missing.

mod model;
mod stage;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use self::model::{Answer, City, Job, Judge, Page, Run, SECOND, Seen, Trigger, Wall};
use self::stage::{HOSTS, Mood, Stage, now_ns};
use crate::common::Running;
use crate::common::number;
use crate::common::random::Random;
use crate::require_mounts;

/// 2025-03-29T22:00:00Z: three hours before an hour is missing in Berlin, a week before one comes twice in Sydney.
const START: u64 = 1_743_285_600;
/// A week in ten minutes.
const FACTOR: u32 = 1008;

const JOBS: [Job; 14] = [
    job("quarter", Trigger::At(Wall::Every(15, 0), City::Berlin), 0),
    job("night", Trigger::At(Wall::Daily(2, 30), City::Berlin), 1),
    job("check", Trigger::After("night"), 0),
    job("twice", Trigger::At(Wall::Daily(2, 30), City::Sydney), 0),
    job("hour", Trigger::At(Wall::Hours(0, 1), City::Sydney), 0),
    job("long", Trigger::At(Wall::Hours(0, 1), City::Utc), 0),
    job("fails", Trigger::At(Wall::Hours(20, 2), City::Utc), 2),
    job("bad", Trigger::At(Wall::Hours(10, 2), City::Utc), 0),
    job("flaky", Trigger::At(Wall::Every(30, 0), City::Utc), 0),
    job("limit", Trigger::At(Wall::Hours(40, 3), City::Utc), 1),
    Job {
        is_caught_up: false,
        ..job("strict", Trigger::At(Wall::Hours(50, 1), City::Utc), 0)
    },
    job("receiver", Trigger::Always, 0),
    Job {
        is_claimed: true,
        ..job("shared", Trigger::At(Wall::Hours(30, 1), City::Utc), 1)
    },
    job("follows", Trigger::After("shared"), 0),
];

const fn job(name: &'static str, trigger: Trigger, retries: u32) -> Job {
    Job {
        name,
        trigger,
        retries,
        is_caught_up: true,
        is_claimed: false,
    }
}

/// The section of the configuration.
fn section(job: &Job) -> String {
    let when = match job.trigger {
        Trigger::After(other) => format!("after = \"{other}\""),
        Trigger::Always => "schedule = \"always\"".to_owned(),
        Trigger::At(wall, city) => {
            let zone = match city {
                City::Utc => "",
                City::Berlin => "\nzone = \"Europe/Berlin\"",
                City::Sydney => "\nzone = \"Australia/Sydney\"",
            };
            let cron = match wall {
                Wall::Every(step, _) => format!("*/{step} * * * *"),
                Wall::Hours(minute, 1) => format!("{minute} * * * *"),
                Wall::Hours(minute, step) => format!("{minute} */{step} * * *"),
                Wall::Daily(hour, minute) => format!("{minute} {hour} * * *"),
            };
            format!("schedule = \"{cron}\"{zone}")
        }
    };
    let more = [
        (job.retries > 0).then(|| format!("retries = {}", job.retries)),
        job.is_claimed.then(|| "claim = true".to_owned()),
        (!job.is_caught_up).then(|| "catch_up = false".to_owned()),
        (job.name == "limit").then(|| "time_limit = \"1s\"".to_owned()),
    ];
    let more: Vec<String> = more.into_iter().flatten().collect();
    format!(
        "[jobs.{0}]\nrun = \"files backup {0}\"\n{when}\n{1}\n",
        job.name,
        more.join("\n")
    )
}

/// Something that fails for a part of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Refuses,
    Down,
    Full,
    Away,
    Hangs,
}

/// When each begins and ends, in thousandths of the whole time.
const FAULTS: [(Fault, u64, u64); 5] = [
    (Fault::Refuses, 80, 200),
    (Fault::Down, 330, 450),
    (Fault::Full, 500, 620),
    (Fault::Away, 660, 780),
    (Fault::Hangs, 820, 960),
];

#[test]
fn j01_j10_a_week_in_minutes_loses_and_doubles_no_run_and_no_alert_and_shows_no_false_green() {
    require_mounts!(
        "j01_j10_a_week_in_minutes_loses_and_doubles_no_run_and_no_alert_and_shows_no_false_green"
    );
    let kills = number("PITR_AGENT_KILLS").unwrap_or(12);
    let seconds = number("PITR_AGENT_SECONDS").unwrap_or(32);
    let seed = number("PITR_AGENT_SEED").unwrap_or(11);
    let of = |host: &str| {
        let jobs = JOBS.iter().filter(|job| job.is_on(host));
        jobs.map(section).collect::<String>()
    };
    let stage = Stage::new(START, FACTOR, HOSTS.map(of));
    let seen = Mutex::new(Seen::default());
    let ends = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&stage, &seen, &ends));
        let asker = scope.spawn(|| ask(&stage, &seen, &ends));
        let guard = Ends(&ends);
        torment(&stage, &seen, (kills, seconds, seed));
        drop(guard);
        watcher.join().unwrap();
        asker.join().unwrap()
    });
    let mut seen = seen.into_inner().unwrap();
    read(&stage, &mut seen);
    // The receiver goes on, and so may others.
    for host in HOSTS {
        stage.cut(host);
    }
    let slack = 4 * SECOND + 3 * slowest;
    let mut judge = Judge {
        stage: &stage,
        seen: &seen,
        jobs: &JOBS,
        slack,
        faults: Vec::new(),
        counts: BTreeMap::new(),
    };
    judge.all();
    let (faults, counts) = (judge.faults, judge.counts);
    let heard = stage.sinks.heard().len();
    let refused = stage.sinks.refused();
    let many = seen.up.values().map(Vec::len).sum::<usize>();
    println!(
        "agent week: {many} agents, {heard} notices, {refused} refused, slack {} ms, {counts:?}",
        judge.slack / 1_000_000
    );
    if !faults.is_empty() {
        stage.sandbox.keep_on_failure();
    }
    let shown = faults
        .iter()
        .take(60)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        faults.is_empty(),
        "{} faults, seed {seed}:\n{shown}",
        faults.len()
    );
    for name in [
        "runs",
        "stubs",
        "attempts",
        "passed over",
        "elsewhere",
        "over time",
        "killed",
        "told failures",
        "red",
    ] {
        assert!(counts.get(name).is_some_and(|n| *n > 0), "none: {name}");
    }
    assert!(refused > 0 && many as u64 >= kills);
    let is_told = |sink: &str, id: &str, event: &str| {
        let heard = stage.sinks.heard();
        assert!(
            heard
                .iter()
                .any(|h| h.sink == sink && h.id == id && h.event == event),
            "{sink} heard no {event} of {id}"
        );
    };
    for (sink, id) in [("one/b", "alerts/a"), ("one/b", "look"), ("two/a", "look")] {
        is_told(sink, id, "new");
        is_told(sink, id, "resolved");
    }
    // Only the agent that raised the alert can tell of its end: that agent may be gone.
    is_told("one/b", "agent/state", "new");
    // With so much of the time forgiven little is proven. That is no failure of pitr, and is said past the capture of the test runner.
    if slack > SECOND * i128::from(seconds) / 3 {
        use std::io::Write as _;
        let _ = writeln!(
            std::io::stderr(),
            "agent_week: this machine is too slow to see a late run: {} s were forgiven",
            slack / SECOND
        );
    }
}

/// Sets the flag when it goes, be it by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills agents, cuts the power of hosts, and has everything else fail for a while.
fn torment(stage: &Stage, seen: &Mutex<Seen>, (kills, seconds, seed): (u64, u64, u64)) {
    let mut random = Random::new(seed);
    let begun = Instant::now();
    let whole = Duration::from_secs(seconds);
    let mut agents: BTreeMap<&str, (Running, i128)> = BTreeMap::new();
    let mut back: BTreeMap<&str, Instant> = HOSTS.map(|host| (host, begun)).into();
    let mut on: BTreeMap<Fault, i128> = BTreeMap::new();
    let pause = u64::try_from(whole.as_millis()).unwrap() / (kills + 1);
    let mut next_kill = begun + Duration::from_millis(pause);
    let mut killed = 0;
    while begun.elapsed() < whole || killed < kills {
        let part = u64::try_from(begun.elapsed().as_millis() * 1000 / whole.as_millis()).unwrap();
        for (fault, from, to) in FAULTS {
            let is_on = on.contains_key(&fault);
            if !is_on && (from..to).contains(&part) {
                on.insert(fault, now_ns());
                begin(stage, fault);
            }
            if is_on && part >= to {
                end(stage, fault);
                note(
                    &mut seen.lock().unwrap(),
                    fault,
                    (on.remove(&fault).unwrap(), now_ns()),
                );
            }
        }
        for (host, (agent, _)) in &mut agents {
            assert!(
                !agent.is_done(),
                "the agent of {host} ended by itself: {}",
                agent.stderr()
            );
        }
        if on.contains_key(&Fault::Down) {
            leave(seen, "one", agents.remove("one"));
        }
        for host in HOSTS {
            let is_back =
                back[host] <= Instant::now() && !(host == "one" && on.contains_key(&Fault::Down));
            if is_back && !agents.contains_key(host) {
                agents.insert(host, (stage.agent(host), now_ns()));
            }
        }
        let alive: Vec<&str> = agents.keys().copied().collect();
        if next_kill <= Instant::now() && !alive.is_empty() {
            let host = *random.pick(&alive);
            let agent = agents.remove(host);
            killed += 1;
            // Chance may have spared every run so far.
            let is_late = killed * 2 >= kills && seen.lock().unwrap().cuts.is_empty();
            if random.one_in(6) || is_late {
                // Counted from its end: until then something may still begin, and is killed.
                if stage.cut(host) > 0 {
                    seen.lock().unwrap().cuts.push((host, now_ns()));
                }
            }
            // Dropped, it is killed.
            leave(seen, host, agent);
            back.insert(
                host,
                Instant::now() + Duration::from_millis(random.next() % 300),
            );
            next_kill += Duration::from_millis(pause / 2 + random.next() % pause.max(2));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Jobs that are due begin, and sinks get the notices that are due.
    for host in HOSTS {
        agents
            .entry(host)
            .or_insert_with(|| (stage.agent(host), now_ns()));
    }
    std::thread::sleep(Duration::from_secs(6));
    seen.lock().unwrap().finish = now_ns();
    for (host, (agent, from)) in agents {
        agent.ended_by(Signal::TERM).success();
        seen.lock()
            .unwrap()
            .up
            .entry(host)
            .or_default()
            .push((from, now_ns()));
    }
}

fn leave(seen: &Mutex<Seen>, host: &'static str, agent: Option<(Running, i128)>) {
    if let Some((agent, from)) = agent {
        drop(agent);
        let up = (from, now_ns());
        seen.lock().unwrap().up.entry(host).or_default().push(up);
    }
}

fn begin(stage: &Stage, fault: Fault) {
    match fault {
        Fault::Refuses => stage.sinks.set(Mood::Refuses),
        Fault::Hangs => stage.sinks.set(Mood::Hangs),
        Fault::Full => stage.fill(),
        Fault::Away => stage.take_repository_away(true),
        Fault::Down => {}
    }
}

fn end(stage: &Stage, fault: Fault) {
    match fault {
        Fault::Refuses | Fault::Hangs => stage.sinks.set(Mood::Takes),
        Fault::Full => stage.make_room(),
        Fault::Away => stage.take_repository_away(false),
        Fault::Down => {}
    }
}

fn note(seen: &mut Seen, fault: Fault, span: (i128, i128)) {
    match fault {
        Fault::Refuses | Fault::Hangs => seen.deaf.push(span),
        Fault::Full => seen.full = span,
        Fault::Away => seen.away = span,
        Fault::Down => {}
    }
}

/// Keeps what the records say: the agent forgets old ones.
fn watch(stage: &Stage, seen: &Mutex<Seen>, ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) {
        read(stage, &mut seen.lock().unwrap());
        std::thread::sleep(Duration::from_millis(60));
    }
}

fn read(stage: &Stage, seen: &mut Seen) {
    for host in HOSTS {
        let state = stage.state(host);
        if let Some(at) = stage::modified(&state.join("alerts.json")) {
            let told = seen.told.entry(host).or_default();
            // Several deliveries of one look.
            if told.last().is_none_or(|last| at > last + SECOND / 5) {
                told.push(at);
            }
        }
        for folder in std::fs::read_dir(state.join("jobs"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let job = folder.file_name().into_string().unwrap();
            let known = (host, job);
            if !seen.since.contains_key(&known)
                && let Ok(text) = std::fs::read_to_string(folder.path().join("since"))
            {
                let since = micros(&serde_json::from_str(&text).unwrap()) * 1000;
                seen.since.insert(known.clone(), since);
            }
            let runs = seen.runs.entry(known).or_default();
            for entry in std::fs::read_dir(folder.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name().into_string().unwrap();
                let Some(name) = name.strip_suffix(".begun") else {
                    continue;
                };
                if runs.get(name).is_none_or(|run| run.ended.is_none())
                    && let Some(run) = run(stage, &entry.path(), name)
                {
                    runs.insert(name.to_owned(), run);
                }
            }
        }
    }
}

fn micros(time: &Value) -> i128 {
    let time: pitr::pg::time::TimestampTz = time.as_str().unwrap().parse().unwrap();
    i128::from(time.unix_micros().unwrap())
}

fn run(stage: &Stage, path: &std::path::Path, name: &str) -> Option<Run> {
    let json = |path| -> Option<Value> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    let begun = json(path.to_owned())?;
    let ended = json(path.with_extension("ended"));
    let (scheduled, attempt) = name.split_once('-').unwrap();
    let real = |time: &Value| stage.real(micros(time) * 1000);
    Some(Run {
        scheduled: scheduled.parse::<i128>().unwrap() * 1000,
        attempt: attempt.parse().unwrap(),
        begun: real(&begun["started"]),
        is_elsewhere: ended.as_ref().is_some_and(|e| e["elsewhere"].is_string()),
        is_over_time: ended.as_ref().is_some_and(|e| e["is_over_time"] == true),
        ended: ended.map(|e| (real(&e["ended"]), e["status"].as_i64())),
    })
}

/// Asks for status and metrics all the time; returns how long the slowest answer took.
fn ask(stage: &Stage, seen: &Mutex<Seen>, ends: &AtomicBool) -> i128 {
    let mut slowest = 0;
    while !ends.load(Ordering::Relaxed) {
        for host in HOSTS {
            let from = now_ns();
            let run = stage.pitr(host).words("agent status --json").run();
            let to = now_ns();
            slowest = slowest.max(to - from);
            // A power cut kills it, too.
            if let Ok(json) = serde_json::from_str(&run.stdout) {
                let code = run.code();
                seen.lock().unwrap().answers.push(Answer {
                    host,
                    from,
                    to,
                    code,
                    json,
                });
            }
            let from = now_ns();
            let is_ready = stage.get(host, "/readyz").map(|(is_ready, _)| is_ready);
            let metrics = stage
                .get(host, "/metrics")
                .filter(|(is_there, _)| *is_there);
            let results = metrics.map(|(_, text)| results(&text)).unwrap_or_default();
            let to = now_ns();
            seen.lock().unwrap().pages.push(Page {
                host,
                from,
                to,
                is_ready,
                results,
            });
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    slowest
}

fn results(metrics: &str) -> BTreeMap<String, f64> {
    let of = |line: &str| {
        let (name, value) = line
            .strip_prefix("pitr_job_last_result{job_name=\"")?
            .split_once("\"} ")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of).collect()
}
