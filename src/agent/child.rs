//! A run of a job: the command, and beside it this process, which keeps the record.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::claim;
use super::in_force::{self, InForce};
use super::load::Check;
use crate::config::{Job, Settings, is_configuration};
use crate::err;
use crate::error::{Error, Result};
use crate::exit::{self, Program};
use crate::fault;
use crate::operate::counters;
use crate::operate::runs::{Begun, Ended, RunId, Runs};
use crate::operate::session::Session;
use crate::process;

/// How often the command is looked after.
const GLANCE: Duration = Duration::from_millis(100);
/// A command has its handlers of signals after so long.
const SETTLED: Duration = Duration::from_secs(2);
/// How long it may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// The end of the path of a program that was replaced while it ran.
const DELETED: &str = " (deleted)";

/// The result of a run.
#[derive(Debug)]
pub enum Done {
    /// The command ran, and this is its end.
    Ended(Ended),
    /// Another run of the job is under way.
    Busy,
    /// This run was begun by another process.
    Known,
    /// Another agent has claimed it.
    Elsewhere,
}

/// This program, also after another version was installed in its place.
///
/// # Errors
/// Those of the system.
pub fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().map_err(|e| Error::from_io("find the program itself", e))?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(DELETED) {
        Some(replaced) => PathBuf::from(replaced),
        None => path,
    })
}

/// A command of pitr with the configuration of the session, or of a tenant.
///
/// # Errors
/// Those of [`own_program`].
pub fn command(settings: &Settings) -> Result<Command> {
    command_with(settings.path.as_deref(), settings.is_of_tenant)
}

/// As [`command`], for somebody who asks at the page. While the file is wrong, it has the copy that the agent goes on with.
///
/// # Errors
/// Those of [`command`] and [`in_force::lend_copy`].
pub fn command_on_demand(settings: &Settings, check: Check, state_dir: &Path) -> Result<Command> {
    let mut command = command(settings)?;
    in_force::lend_copy(&mut command, settings, check, state_dir)?;
    Ok(command)
}

/// The command of a job; the agent of a tenant knows nothing of this configuration.
fn command_of(job: &Job, settings: &Settings) -> Result<Command> {
    match &job.tenant {
        Some(config) => command_with(Some(config), true),
        None => command(settings),
    }
}

fn command_with(config: Option<&Path>, is_of_tenant: bool) -> Result<Command> {
    let mut command = Command::new(own_program()?);
    command.args(config.map(|_| "--config")).args(config);
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| is_of_tenant && is_configuration(name)) {
        command.env_remove(name);
    }
    Ok(command)
}

/// How a run is asked for.
pub struct Asked<'a> {
    /// Its output is that of this process, else it goes to the file of the run.
    pub is_shown: bool,
    /// Somebody wants it on this host, so nothing is claimed.
    pub is_by_hand: bool,
    /// A job that this refuses is not started, and the record has the refusal as its end.
    pub permit: &'a dyn Fn() -> Result<()>,
    /// The configuration was read again: the agent of a tenant is to do so, too, and every other command is to end.
    pub reload: &'a AtomicBool,
}

/// Runs a job to its end, and keeps the record.
///
/// # Errors
/// Those of the system, and of `permit`. A command that cannot be started is a run that failed.
pub fn run(
    session: &Session,
    settings: &Settings,
    (state_dir, job): (&Path, &Job),
    id: RunId,
    asked: &Asked<'_>,
) -> Result<Done> {
    let runs = Runs::of(state_dir, &job.name);
    runs.begin(session.host.now(), session.host.random())?;
    let Some(held) = runs.hold()? else {
        return Ok(Done::Busy);
    };
    // By hand, and again after a failure, it is this host's in any case.
    let elsewhere = match job.is_claimed && !asked.is_by_hand && id.attempt == 0 {
        true => claim::take(session, settings, state_dir, (job, id.scheduled))?,
        false => None,
    };
    fault::point("run-claimed");
    let begun = Begun {
        started: session.host.now(),
        pid: std::process::id(),
        tick: process::started_at(std::process::id()),
    };
    fault::point("run-begins");
    fault::pause("run-begins");
    // The agent that wanted the run has left: nothing has begun.
    if session.host.is_stopping() {
        return Err(err!(
            Interrupted,
            "the run of job \"{}\" was to end before it began",
            job.name
        ));
    }
    if !runs.record_begin(&held, id, &begun, session.host.random())? {
        return Ok(Done::Known);
    }
    if elsewhere.is_some() {
        let ended = Ended {
            elsewhere,
            ..Ended::new(session.host.now(), None, String::new())
        };
        runs.record_end(&held, id, &ended, session.host.random())?;
        return Ok(Done::Elsewhere);
    }
    if let Err(refused) = (asked.permit)() {
        let status = i32::from(exit::status(Program::Pitr, refused.code()));
        let ended = Ended::new(session.host.now(), Some(status), refused.to_string());
        runs.record_end(&held, id, &ended, session.host.random())?;
        return Err(refused);
    }
    let mut command = command_of(job, settings)?;
    // The command holds the lock for as long as it runs, whatever becomes of this process.
    let lock = held
        .lock
        .try_clone()
        .map_err(|e| Error::from_io("share the lock of a job", e))?;
    command
        .args(&job.run)
        .env(counters::JOB, &job.name)
        .stdin(Stdio::from(lock))
        .process_group(0);
    if job.tenant.is_none() {
        fault::keep_clock(&mut command);
    }
    if !asked.is_shown {
        let log = runs.new_log(id);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) =
            log.map_err(|e| Error::from_io("create the file of what a job prints", e))?;
        command.stdout(out).stderr(err);
    }
    // The command that starts now reads the file of now.
    asked.reload.store(false, Ordering::Relaxed);
    let (status, is_over_time, said) = match command.spawn() {
        Ok(child) => {
            let (status, is_over_time) = wait(child, (&runs, id), (job, asked.reload), session)?;
            (status.code(), is_over_time, signal_of(status))
        }
        Err(e) => (None, false, format!("the command cannot be started: {e}")),
    };
    let said = match said.is_empty() {
        true => runs.said(id),
        false => said,
    };
    let ended = Ended {
        is_over_time,
        ..Ended::new(session.host.now(), status, said)
    };
    fault::point("run-ends");
    runs.record_end(&held, id, &ended, session.host.random())?;
    Ok(Done::Ended(ended))
}

fn signal_of(status: ExitStatus) -> String {
    let ended = status.signal();
    ended.map_or(String::new(), |signal| format!("ended by signal {signal}"))
}

/// Waits for the end. A command that takes too long is asked to end, and so it is when this process is asked to.
fn wait(
    mut child: Child,
    (runs, id): (&Runs, RunId),
    (job, reload): (&Job, &AtomicBool),
    session: &Session,
) -> Result<(ExitStatus, bool)> {
    let started = Instant::now();
    let limit = job.time_limit.map(fault::shortened);
    let group = Pid::from_child(&child);
    let mut asked: Option<Instant> = None;
    let mut is_over_time = false;
    loop {
        let ended = child
            .try_wait()
            .map_err(|e| Error::from_io("wait for a command", e))?;
        if let Some(status) = ended {
            return Ok((status, is_over_time));
        }
        // The handler of a command that has just begun is not there yet.
        if started.elapsed() >= SETTLED && reload.swap(false, Ordering::Relaxed) {
            match job.tenant {
                // Its own children are in the same group.
                Some(_) => drop(kill_process(group, Signal::HUP)),
                None => session.host.stop.store(true, Ordering::Relaxed),
            }
        }
        match asked {
            None => {
                is_over_time = limit.is_some_and(|limit| started.elapsed() >= limit);
                if is_over_time || session.host.is_stopping() {
                    // A group that is gone needs no signal.
                    let _ = kill_process_group(group, Signal::TERM);
                    asked = Some(Instant::now());
                }
            }
            Some(since) if since.elapsed() >= PATIENCE => {
                let _ = kill_process_group(group, Signal::KILL);
            }
            Some(_) => {}
        }
        // A file that cannot be cut costs room only.
        let _ = runs.cut_log(id);
        std::thread::sleep(GLANCE);
    }
}

/// Starts the process that runs a job and keeps its record. It has a session of its own, and does not end with the agent.
///
/// # Errors
/// Those of the system.
pub fn start(settings: &Settings, in_force: &InForce<'_>, job: &str, id: RunId) -> Result<Child> {
    let mut command = command(settings)?;
    in_force.lend(&mut command);
    spawn(command, &[], job, id)
}

/// As [`start`], for somebody who asks at the page: it is this host's run in any case.
///
/// # Errors
/// Those of the system.
pub fn start_by_hand(
    settings: &Settings,
    (check, state_dir): (Check, &Path),
    job: &str,
    id: RunId,
) -> Result<Child> {
    let command = command_on_demand(settings, check, state_dir)?;
    spawn(command, &["--by-hand"], job, id)
}

fn spawn(mut command: Command, more: &[&str], job: &str, id: RunId) -> Result<Child> {
    let scheduled = id.scheduled.unix_micros();
    let scheduled = scheduled.ok_or_else(|| err!(Internal, "a run has no time"))?;
    command
        .args(["agent", "exec", job])
        .args(["--scheduled", &scheduled.to_string()])
        .args(["--attempt", &id.attempt.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
        .spawn()
        .map_err(|e| Error::from_io(format!("start job \"{job}\""), e))
}
