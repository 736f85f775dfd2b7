//! Runs examinations: each is a process that does what `pitr doctor` does, and keeps what is wrong for the looks.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::child;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::exit;
use crate::fault;
use crate::operate::session::Session;
use crate::operate::sets::FOLLOWS;

/// Nothing is examined sooner after the agent began.
const DELAY: Duration = Duration::from_secs(10);
/// How often everything is examined.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How often everything is examined while something is wrong: sinks hear of its end soon.
const INTERVAL_WRONG: Duration = Duration::from_secs(600);
/// An examination may take so long.
const LONGEST: Duration = Duration::from_secs(600);

/// The examinations of an agent.
pub struct Examinations {
    running: Option<(Child, Instant)>,
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
    pub fn tick(&mut self, session: &Session, settings: &Settings) {
        self.given_up
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Some((mut child, since)) = self.running.take() {
            match child.try_wait() {
                Ok(None) if since.elapsed() < fault::shortened(LONGEST) => {
                    self.running = Some((child, since));
                    return;
                }
                Ok(None) => {
                    session.warn("pitr doctor takes too long, and is given up");
                    // It is ours and not buried yet, so the number is its. One that hangs in the kernel is waited for by nobody.
                    let _ = child.kill();
                    self.given_up.push(child);
                    self.begin(session, settings, true);
                    return;
                }
                Ok(Some(status)) if status.code() == Some(i32::from(exit::SUCCESS)) => {}
                _ => self.next = self.next.min(Instant::now() + INTERVAL_WRONG),
            }
        }
        if Instant::now() >= self.next {
            // Beside one that hangs another would hang, too.
            self.begin(session, settings, !self.given_up.is_empty());
        }
    }

    fn begin(&mut self, session: &Session, settings: &Settings, is_given_up: bool) {
        self.next = Instant::now() + INTERVAL;
        match start(settings, is_given_up) {
            Ok(child) => self.running = Some((child, Instant::now())),
            Err(e) => session.warn(&e.to_string()),
        }
    }

    /// Ends the one that runs, as its agent leaves.
    pub fn end(&mut self) {
        if let Some((child, _)) = &mut self.running {
            let _ = child.kill();
        }
    }
}

fn start(settings: &Settings, is_given_up: bool) -> Result<Child> {
    child::command(settings)?
        .args(["agent", "examine"])
        .args(is_given_up.then_some("--given-up"))
        .env(FOLLOWS, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Error::from_io("start pitr doctor", e))
}
