//! `pitr info`.

use std::time::Duration;

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::archive::datadir::DataDirectory;
use crate::config;
use crate::error::Result;
use crate::exit;
use crate::operate::blocked::{Blocked, PASSING, Waiting};
use crate::operate::failures::Failures;
use crate::operate::former::{self, Former};
use crate::operate::human::{self, SizeUnit};
use crate::operate::lag::{self, Lag};
use crate::operate::reading::Reading;
use crate::operate::receiver::{self, Receiver};
use crate::operate::set_back;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::base::lies_on;
use crate::plan::cluster::{Cluster, DECIDE};
use crate::plan::gap::{self, Gap};
use crate::plan::window::{Window, Windows};
use crate::repo::event;
use crate::repo::root::BackupKind;
use crate::wal::inventory::{Backup, Inventory, Timeline, Unreadable};

/// Show what can be recovered, to when
///
/// One screen: clusters, backups, recovery windows and gaps. Exit status: 0 well, 6 warning, 1 critical. Without --cluster every cluster of
/// the configuration is shown, or of the repository where none is configured.
///
/// Example: pitr info --repository file:///var/backups/pitr
#[derive(clap::Args, Debug)]
pub struct Args {}

/// How bad things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Warning,
    Critical,
}

#[derive(Serialize)]
struct Shown {
    state: State,
    clusters: Vec<ShownCluster>,
}

#[derive(Serialize)]
struct ShownCluster {
    name: String,
    system_identifier: String,
    repository: String,
    major: u32,
    state: State,
    /// What is wrong, worst first.
    problems: Vec<Problem>,
    /// The timeline that is the cluster; none while it is undecided.
    timeline: Option<u32>,
    /// The timelines that may be the cluster.
    candidates: Vec<u32>,
    abandoned: Vec<u32>,
    backups: Vec<ShownBackup>,
    recovery_windows: Vec<Window>,
    gaps: Vec<Gap>,
    unreadable_backups: Vec<String>,
    /// Backups that were complete and whose roots are not there.
    lost_backups: Vec<String>,
    segments: u64,
    receiver: Option<Receiver>,
    /// All that are configured, where there are several.
    repositories: Vec<Lag>,
    /// Segments of which only a part is stored.
    tails: Vec<Tail>,
    /// Files that the server offers and that could not be archived.
    blocked: Vec<Blocked>,
    /// Clusters with other system identifiers under the same name.
    others: Vec<Former>,
}

#[derive(Serialize)]
struct Tail {
    segment: SegmentName,
    /// How far increments reach.
    reach_lsn: Option<Lsn>,
}

fn tails(inventory: &Inventory) -> Vec<Tail> {
    let size = inventory.segment_size;
    let of = |(id, timeline): (&TimelineId, &Timeline)| -> Vec<Tail> {
        let tail = |(number, reach): (&SegmentNumber, &Lsn)| {
            Some(Tail {
                segment: number.name(*id, size)?,
                reach_lsn: Some(*reach).filter(|reach| *reach > number.start_lsn(size)),
            })
        };
        timeline.tails.iter().filter_map(tail).collect()
    };
    inventory.timelines.iter().flat_map(of).collect()
}

#[derive(Serialize)]
struct Problem {
    state: State,
    message: String,
}

#[derive(Serialize)]
struct ShownBackup {
    id: String,
    kind: BackupKind,
    label: String,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    start_time: TimestampTz,
    stop_time: TimestampTz,
    timeline: u32,
    size_bytes: u64,
    stored_bytes: u64,
    damaged: bool,
    damage: Option<String>,
    expire_not_before: Option<TimestampTz>,
    pinned: bool,
    pinned_until: Option<TimestampTz>,
    pinned_reason: Option<String>,
}

impl ShownBackup {
    fn new(backup: &Backup, now: TimestampTz) -> ShownBackup {
        let pin = backup.pin(now);
        ShownBackup {
            id: backup.id.to_string(),
            kind: backup.kind,
            label: backup.label.clone(),
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            start_time: backup.start_time,
            stop_time: backup.stop_time,
            timeline: backup.timeline.decimal(),
            size_bytes: backup.size_bytes,
            stored_bytes: backup.stored_bytes,
            damaged: backup.damage.is_some(),
            damage: backup.damage.clone(),
            expire_not_before: backup.expire_mark,
            pinned: pin.is_some(),
            pinned_until: pin.and_then(|pin| pin.until),
            pinned_reason: pin.and_then(|pin| pin.reason.clone()),
        }
    }
}

/// Runs the command.
pub fn run(_args: &Args, cx: &Context) -> Result<u8> {
    let mut looked = Vec::new();
    let mut failures = Failures::default();
    for reading in Reading::open_each(&cx.session)? {
        match look(cx, &reading) {
            Ok(one) => looked.push(one),
            Err(e) => {
                failures.add(e, format!("look at cluster \"{}\"", reading.name));
            }
        }
    }
    failures.first_if(&cx.session, looked.is_empty())?;
    let worst = looked.iter().map(|(shown, _)| shown.state).max();
    let state = match failures.is_empty() {
        true => worst.unwrap_or(State::Ok),
        false => State::Critical,
    };
    if cx.out.is_json() {
        let clusters = looked.into_iter().map(|(shown, _)| shown).collect();
        cx.out.json(&Shown { state, clusters })?;
    } else {
        for (index, (shown, inventory)) in looked.iter().enumerate() {
            if index > 0 {
                cx.out.line("")?;
            }
            print(cx, shown, inventory)?;
        }
    }
    cx.told(failures)?;
    Ok(match state {
        State::Ok => exit::SUCCESS,
        State::Warning => exit::WARNINGS,
        State::Critical => exit::CRITICAL,
    })
}

fn look(cx: &Context, reading: &Reading) -> Result<(ShownCluster, Inventory)> {
    let inventory = reading.inventory(&cx.session)?;
    let found = reading.windows(&cx.session, &inventory)?;
    let (cluster, _) = reading.decide_with_others(&cx.session, &inventory)?;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let gaps = gap::gaps(&inventory, oldest.unwrap_or_default());
    let limit = reading
        .cluster
        .as_ref()
        .and_then(|c| c.max_backup_age)
        .map(|age| age.duration());
    let receiver = match &reading.cluster {
        Some(cluster) => {
            Receiver::read(cluster, inventory.system_identifier, cx.session.host.now())?
        }
        None => None,
    };
    let mut problems = judge(
        &inventory,
        &found,
        &gaps,
        &cluster,
        limit,
        cx.session.host.now(),
    );
    let mismatch = former::mismatch(&cx.session, reading, inventory.system_identifier);
    problems.extend(mismatch.map(|message| Problem {
        state: State::Critical,
        message,
    }));
    if inventory.is_unregistered {
        problems.push(Problem {
            state: State::Critical,
            message: "the registration (cluster.json) is missing: archiving and backups are refused (A121); on the cluster's host: pitr init".to_owned(),
        });
    }
    let lost = receiver::recorded_gaps(&reading.repository, &inventory)?;
    let trouble = receiver.as_ref().and_then(Receiver::problem);
    let identifier = inventory.system_identifier;
    let repositories = lag::look(&cx.session, &reading.settings, &reading.name, identifier);
    let lags = repositories.iter().flat_map(Lag::problems);
    let configured = reading.settings.repositories.iter();
    let weak = configured.filter_map(weakly_created);
    let undecided = cluster.undecided().map(|why| format!("{why}. {DECIDE}"));
    let lives = undecided.into_iter().chain(cluster.describe_beside());
    let lives = lives.chain(times_twice(cx, reading, &inventory, &found, &cluster)?);
    let warnings = lost.into_iter().chain(trouble).chain(lags).chain(weak);
    let warnings = warnings.chain(lives);
    problems.extend(warnings.map(|message| Problem {
        state: State::Warning,
        message,
    }));
    let blocked = match &reading.cluster {
        Some(cluster) => Blocked::all(cluster, None, &cx.session),
        None => Vec::new(),
    };
    problems.extend(blocked.iter().map(|file| Problem {
        state: match file.has_lasted() {
            true => State::Critical,
            false => State::Warning,
        },
        message: file.line(),
    }));
    if blocked.is_empty() {
        problems.extend(reading.cluster.as_ref().and_then(|c| stuck(c, cx)));
    }
    problems.sort_by_key(|p| std::cmp::Reverse(p.state));
    let state = problems.iter().map(|p| p.state).max().unwrap_or(State::Ok);
    let shown = ShownCluster {
        name: inventory.cluster.clone(),
        system_identifier: inventory.system_identifier.to_string(),
        repository: inventory.repository.clone(),
        major: inventory.major,
        state,
        problems,
        timeline: cluster.timeline().map(TimelineId::decimal),
        candidates: cluster.candidates().iter().map(|t| t.decimal()).collect(),
        abandoned: cluster.abandoned.iter().map(|t| t.decimal()).collect(),
        backups: inventory
            .backups
            .iter()
            .map(|b| ShownBackup::new(b, cx.session.host.now()))
            .collect(),
        recovery_windows: found.windows,
        gaps,
        unreadable_backups: inventory
            .unreadable
            .iter()
            .map(|u| u.id.to_string())
            .collect(),
        lost_backups: inventory.lost.iter().map(ToString::to_string).collect(),
        segments: inventory
            .timelines
            .values()
            .map(|t| t.segments.count())
            .sum(),
        receiver,
        repositories,
        tails: tails(&inventory),
        others: Former::all(reading, identifier)?,
        blocked,
    };
    Ok((shown, inventory))
}

/// What a clock that was set back means for targets in the window of the cluster.
fn times_twice(
    cx: &Context,
    reading: &Reading,
    inventory: &Inventory,
    found: &Windows,
    cluster: &Cluster,
) -> Result<Option<String>> {
    let Some(window) = of_cluster(&found.windows, cluster.timeline(), inventory) else {
        return Ok(None);
    };
    let rollup = reading.rollup(&cx.session, inventory)?;
    let twice = set_back::look(inventory, &rollup, window)?;
    Ok(twice.map(|twice| {
        format!(
            "the clock was set back: the times from {} to {} occur twice. A target time between them stops at the first later transaction in the WAL: pitr plan shows where",
            human::time(twice.from),
            human::time(twice.to)
        )
    }))
}

/// WAL that waits for long, though no cause is recorded: there is no spool, or archive_command does not get as far as to record it. A standby may keep
/// what waited when it was a primary.
fn stuck(cluster: &config::Cluster, cx: &Context) -> Option<Problem> {
    let pgdata = cluster.pgdata.as_deref()?;
    let waiting = Waiting::read(pgdata, cx.session.host.now()).ok()?;
    let is_standby = DataDirectory::at(pgdata).has("standby.signal");
    (waiting.age >= PASSING && !is_standby).then(|| Problem {
        state: State::Critical,
        message: format!(
            "archiving is stuck: {waiting}. pg_wal grows until its disk is full. The server's log has the error of pitr-archive; pitr doctor looks for the cause"
        ),
    })
}

/// A repository in which the configuration accepts less than the promise.
fn weakly_created(configured: &config::Repository) -> Option<String> {
    configured.s3.unsafe_overwrite.then(|| {
        format!(
            "unsafe_overwrite = true: two writers at the same time can replace archived WAL in repository \"{}\"",
            configured.name
        )
    })
}

/// What is wrong, worst first.
fn judge(
    inventory: &Inventory,
    found: &Windows,
    gaps: &[Gap],
    cluster: &Cluster,
    max_backup_age: Option<Duration>,
    now: TimestampTz,
) -> Vec<Problem> {
    let mut problems = newest(inventory, found, cluster, max_backup_age, now);
    problems.extend(
        rest(inventory, found, gaps)
            .into_iter()
            .map(|message| Problem {
                state: State::Warning,
                message,
            }),
    );
    problems.sort_by_key(|p| std::cmp::Reverse(p.state));
    problems
}

/// What is wrong with the newest backup, and so with recovery to the end.
fn newest(
    inventory: &Inventory,
    found: &Windows,
    cluster: &Cluster,
    max_backup_age: Option<Duration>,
    now: TimestampTz,
) -> Vec<Problem> {
    let critical = |message: String| Problem {
        state: State::Critical,
        message,
    };
    // A backup of a branch that is not the cluster assures nothing.
    let history = cluster.timeline().and_then(|t| inventory.history(t).ok());
    let leads = |b: &&Backup| history.as_ref().is_none_or(|h| lies_on(h, b));
    let newest = inventory
        .backups
        .iter()
        .filter(|b| b.damage.is_none())
        .filter(leads)
        .max_by_key(|b| b.stop_time);
    let Some(newest) = newest else {
        if let Some(history) =
            history.filter(|_| inventory.backups.iter().any(|b| b.damage.is_none()))
        {
            return vec![critical(format!(
                "no backup leads to timeline {}, which is the cluster: it cannot be recovered; take one: pitr backup",
                history.timeline().decimal()
            ))];
        }
        let is_first = inventory.backups.is_empty() && inventory.unreadable.is_empty();
        let what = if is_first {
            "backup"
        } else {
            "undamaged backup"
        };
        return vec![critical(format!(
            "there is no {what}: nothing can be recovered; take one: pitr backup"
        ))];
    };
    let mut problems = Vec::new();
    let id = newest.id.to_string();
    match found.windows.iter().rfind(|w| w.backups.contains(&id)) {
        None => problems.push(critical(format!(
            "recovery is not assured: the newest backup, {id}, cannot be used"
        ))),
        Some(w) if !w.to_end => problems.push(critical(format!(
            "recovery is not assured: behind the newest backup, {id}, WAL gets to {} only: {}",
            w.to_lsn,
            w.broken.as_deref().unwrap_or_default()
        ))),
        Some(_) => {}
    }
    if let Some(limit) = max_backup_age
        && let Some(age) = now.duration_since(newest.stop_time)
        && age > limit
    {
        problems.push(critical(format!(
            "the newest backup is {} old, max_backup_age is {}",
            human::duration(age),
            human::duration(limit)
        )));
    }
    problems
}

/// What else is wrong: each a warning.
fn rest(inventory: &Inventory, found: &Windows, gaps: &[Gap]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut say = |message: String| problems.push(message);
    for (id, why) in &found.unusable {
        say(format!("backup {id} cannot be used: {why}"));
    }
    for window in found.windows.iter().filter(|w| !w.to_end) {
        say(format!(
            "on timeline {} recovery from {} gets to {} only: {}",
            window.timeline.decimal(),
            window.backups.last().map_or("", String::as_str),
            window.to_lsn,
            window.broken.as_deref().unwrap_or_default()
        ));
    }
    for gap in gaps {
        say(format!(
            "{} of timeline {} missing, {} to {}",
            human::count(gap.segments, "segment"),
            gap.timeline.decimal(),
            gap.from_lsn,
            gap.to_lsn
        ));
    }
    for Unreadable { id, problem } in &inventory.unreadable {
        say(format!("backup {id} cannot be read: {problem}"));
    }
    for id in &inventory.lost {
        say(format!(
            "backup {id} was complete, and its root is lost: it cannot be restored; pitr verify says what helps"
        ));
    }
    for backup in inventory.backups.iter() {
        if let Some(damage) = &backup.damage {
            say(format!("backup {} is damaged: {damage}", backup.id));
        }
    }
    for forged in &inventory.forged {
        say(format!(
            "event \"{forged}\" is {}; it does not count: pitr verify",
            event::FORGED
        ));
    }
    for problem in &found.problems {
        say(problem.clone());
    }
    problems
}

fn print(cx: &Context, shown: &ShownCluster, inventory: &Inventory) -> Result<()> {
    cx.out.line(&format!(
        "cluster \"{}\", system identifier {}, PostgreSQL {}, in {}",
        shown.name, shown.system_identifier, shown.major, shown.repository
    ))?;
    cx.out.line(&match shown.state {
        State::Critical => "recovery: NOT ASSURED".to_owned(),
        _ => match (cluster_window(shown, inventory), shown.timeline) {
            (Some(w), Some(_)) => format!(
                "recovery: any moment from {} to {}",
                human::time(w.from),
                human::time(w.to)
            ),
            (Some(_), None) => format!(
                "recovery: undecided between timelines {}",
                joined(&shown.candidates)
            ),
            (None, _) => "recovery: nothing can be recovered".to_owned(),
        },
    })?;
    if let Some(receiver) = &shown.receiver {
        cx.out.line(&receiver.line())?;
    }
    for lag in &shown.repositories {
        let backup = match &lag.newest_backup {
            _ if lag.away.is_some() => String::new(),
            Some(id) => match &lag.oldest_backup {
                Some(oldest) if oldest != id => {
                    format!(", newest backup {id}, oldest {oldest}")
                }
                _ => format!(", newest backup {id}"),
            },
            None => ", no backup".to_owned(),
        };
        let line = format!("repository {}: {}{backup}", lag.name, lag.value());
        cx.out.line(&line)?;
    }
    if !shown.backups.is_empty() {
        cx.out.line("")?;
        cx.out.table(&backups(inventory, cx.session.host.now()))?;
    }
    if !shown.recovery_windows.is_empty() {
        cx.out.line("")?;
        let mut table = Table::new(&[
            ("timeline", Align::Right),
            ("recoverable from", Align::Left),
            ("to", Align::Left),
            ("up to LSN", Align::Left),
        ]);
        for w in &shown.recovery_windows {
            table.row([
                w.timeline.decimal().to_string(),
                human::time(w.from),
                human::time(w.to),
                w.to_lsn.to_string(),
            ]);
        }
        cx.out.table(&table)?;
    }
    if !shown.others.is_empty() {
        cx.out.line("")?;
    }
    for other in &shown.others {
        cx.out.line(&other.line())?;
    }
    if !shown.problems.is_empty() {
        cx.out.line("")?;
    }
    for problem in &shown.problems {
        let state = match problem.state {
            State::Critical => "critical",
            _ => "warning",
        };
        cx.out.line(&format!("{state}: {}", problem.message))?;
    }
    Ok(())
}

fn joined(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(" and ")
}

fn cluster_window<'a>(shown: &'a ShownCluster, inventory: &Inventory) -> Option<&'a Window> {
    let timeline = shown.timeline.and_then(TimelineId::new);
    of_cluster(&shown.recovery_windows, timeline, inventory)
}

/// The window of the cluster: that which ends last on the way to its timeline; any while it is undecided.
fn of_cluster<'a>(
    windows: &'a [Window],
    timeline: Option<TimelineId>,
    inventory: &Inventory,
) -> Option<&'a Window> {
    let history = timeline.and_then(|t| inventory.history(t).ok());
    let leads = |w: &&Window| history.as_ref().is_none_or(|h| h.contains(w.timeline));
    let windows = windows.iter().filter(leads);
    windows.max_by_key(|w| (w.timeline, w.to))
}

fn backups(inventory: &Inventory, now: TimestampTz) -> Table {
    let backups = &inventory.backups;
    let raw = SizeUnit::for_largest(backups.iter().map(|b| b.size_bytes));
    let stored = SizeUnit::for_largest(backups.iter().map(|b| b.stored_bytes));
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("complete", Align::Left),
        ("timeline", Align::Right),
        (&format!("size {}", raw.name()), Align::Right),
        (&format!("stored {}", stored.name()), Align::Right),
        ("ratio", Align::Right),
        ("", Align::Left),
    ]);
    for b in backups {
        let tenths = u128::from(b.size_bytes) * 10 / u128::from(b.stored_bytes.max(1));
        let mut notes = Vec::new();
        if b.damage.is_some() {
            notes.push("damaged".to_owned());
        }
        if b.expire_mark.is_some() {
            notes.push("marked for deletion".to_owned());
        }
        match b.pin(now).map(|pin| pin.until) {
            None => {}
            Some(None) => notes.push("pinned".to_owned()),
            Some(Some(until)) => notes.push(format!("pinned until {}", human::time(until))),
        }
        if !b.label.is_empty() {
            notes.push(b.label.clone());
        }
        table.row([
            b.id.to_string(),
            human::time(b.stop_time),
            b.timeline.decimal().to_string(),
            raw.show(b.size_bytes),
            stored.show(b.stored_bytes),
            format!("{}.{}", tenths / 10, tenths % 10),
            notes.join(", "),
        ]);
    }
    table
}
