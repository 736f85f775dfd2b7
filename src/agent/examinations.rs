//! Runs examinations: each is a process that does what `pitr doctor` does, and keeps what is wrong for the looks.

use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::child;
use super::in_force::InForce;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::exit;
use crate::fault;
use crate::operate::session::Session;
use crate::operate::sets::FOLLOWS;

/// Nothing is examined sooner after the agent began.
const DELAY: Duration = Duration::from_secs(10);
/// How often everything is examined.
pub const INTERVAL: Duration = Duration::from_secs(3600);
/// How often everything is examined while something is wrong: sinks hear of its end soon.
const INTERVAL_WRONG: Duration = Duration::from_secs(600);
/// An examination may take so long.
const LONGEST: Duration = Duration::from_secs(600);

/// An examination that is under way.
struct Running {
    child: Child,
    since: Instant,
    /// It keeps that the one before it came to no end, and examines nothing.
    is_given_up: bool,
}

/// The examinations of an agent.
pub struct Examinations {
    running: Option<Running>,
    /// Those that were killed, and are not gone yet.
    given_up: Vec<Child>,
    next: Instant,
}

impl Examinations {
    /// Returns the examinations of an agent that begins.
    pub fn none() -> Examinations {
        Examinations {
            running: None,
            given_up: Vec::new(),
            next: Instant::now() + DELAY,
        }
    }

    /// Begins the examination that is due, and gives up one that takes too long.
    pub fn tick(&mut self, session: &Session, settings: &Settings, in_force: &InForce<'_>) {
        self.given_up
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Some(mut running) = self.running.take() {
            match running.child.try_wait() {
                Ok(None) if running.since.elapsed() < fault::shortened(LONGEST) => {
                    self.running = Some(running);
                    return;
                }
                Ok(None) => {
                    session.warn("pitr doctor takes too long, and is given up");
                    // It is ours and not buried yet, so the number is its. One that hangs in the kernel is waited for by nobody.
                    let _ = running.child.kill();
                    self.given_up.push(running.child);
                    self.begin(session, settings, in_force, true);
                    return;
                }
                Ok(Some(status)) if is(status, exit::SUCCESS) => {}
                Ok(Some(status)) if !is(status, exit::WARNINGS) && !running.is_given_up => {
                    session.warn(&format!("pitr doctor came to no end: {status}"));
                    self.begin(session, settings, in_force, true);
                    return;
                }
                _ => self.next = self.next.min(Instant::now() + INTERVAL_WRONG),
            }
        }
        if Instant::now() >= self.next {
            // Beside one that hangs another would hang, too.
            self.begin(session, settings, in_force, !self.given_up.is_empty());
        }
    }

    fn begin(
        &mut self,
        session: &Session,
        settings: &Settings,
        in_force: &InForce<'_>,
        is_given_up: bool,
    ) {
        self.next = Instant::now() + INTERVAL;
        match start(settings, in_force, is_given_up) {
            Ok(child) => {
                self.running = Some(Running {
                    child,
                    since: Instant::now(),
                    is_given_up,
                });
            }
            Err(e) => session.warn(&e.to_string()),
        }
    }

    /// Ends the one that runs, as its agent leaves.
    pub fn end(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
        }
    }
}

fn is(status: ExitStatus, code: u8) -> bool {
    status.code() == Some(i32::from(code))
}

fn start(settings: &Settings, in_force: &InForce<'_>, is_given_up: bool) -> Result<Child> {
    let mut command = child::command(settings)?;
    in_force.lend(&mut command);
    command
        .args(["agent", "examine"])
        .args(is_given_up.then_some("--given-up"))
        .env(FOLLOWS, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Error::from_io("start pitr doctor", e))
}
