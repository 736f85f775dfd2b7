//! Runs looks: each is a process that looks at everything, and then has alerts delivered.
//!
//! The two parts have a time of their own. A look that takes too long is given up. A sink that hangs delays the deliveries alone: the next look
//! begins beside them, so metrics and status page stay new. One look delivers at a time.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use super::alert::{self, Notices};
use super::child;
use super::in_force::InForce;
use crate::config::Settings;
use crate::config::agent::INTERVAL;
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::session::Session;
use crate::operate::sets::FOLLOWS;

/// The line that a look prints when metrics and status page are written, before it has alerts delivered.
pub const LOOKED: &str = "looked";
/// Looking at everything may take so long.
const LOOK_MAX: Duration = Duration::from_secs(300);
/// Deliveries end by themselves so much earlier than they are ended.
const SPARE: Duration = Duration::from_secs(10);

/// A process that looks, or delivers.
struct Look {
    child: Child,
    /// Since when it looks, or delivers.
    since: Instant,
    /// The pipe of [`LOOKED`]; none for one that looks at nothing.
    said: Option<ChildStdout>,
}

/// The looks of an agent.
pub struct Looks {
    looking: Option<Look>,
    /// Looks that have looked, and deliver.
    telling: Vec<Look>,
    /// Looks that were killed, and are not gone yet.
    given_up: Vec<Child>,
    begun: Option<Instant>,
    /// The notices that were taken, which looks keep there, too.
    notices: Option<File>,
}

impl Look {
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn has_looked(&mut self) -> bool {
        let mut line = [0; 64];
        // The pipe does not block: it is empty while the process looks. One that died left no word.
        let read = |said: &mut ChildStdout| said.read(&mut line).ok();
        let read = self.said.as_mut().and_then(read);
        read.is_some() && line.starts_with(LOOKED.as_bytes())
    }
}

impl Looks {
    /// Returns the looks of an agent that begins.
    pub fn none() -> Looks {
        Looks {
            looking: None,
            telling: Vec::new(),
            given_up: Vec::new(),
            begun: None,
            notices: Notices::memory(),
        }
    }

    /// Begins the look that is due, and gives up what takes too long. Those who are to hear of trouble hear of that.
    pub fn tick(&mut self, session: &Session, settings: &Settings, in_force: &InForce<'_>) {
        self.given_up
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.end_deliveries(session);
        if let Some(mut look) = self.looking.take() {
            let has_ended = look.has_ended();
            if look.has_looked() {
                look.since = Instant::now();
                self.telling.push(look);
            } else if has_ended {
                session.warn("looking at everything failed, and is given up");
                self.begin(session, settings, in_force, true);
                return;
            } else if look.since.elapsed() < fault::shortened(LOOK_MAX) {
                self.looking = Some(look);
                return;
            } else {
                session.warn("looking at everything takes too long, and is given up");
                // It is ours and not buried yet, so the number is its. One that hangs in the kernel is waited for by nobody.
                let _ = look.child.kill();
                self.given_up.push(look.child);
                self.begin(session, settings, in_force, true);
                return;
            }
        }
        let interval = fault::hastened(settings.agent.interval.unwrap_or(INTERVAL));
        if self.begun.is_none_or(|at| at.elapsed() >= interval) {
            // Beside one that hangs another would hang, too.
            self.begin(session, settings, in_force, !self.given_up.is_empty());
        }
    }

    /// Buries those who have delivered, and kills the one that does not end.
    fn end_deliveries(&mut self, session: &Session) {
        let limit = alert::longest() + SPARE;
        self.telling.retain_mut(|look| {
            if look.has_ended() {
                return false;
            }
            if look.since.elapsed() >= limit {
                session.warn("the delivery of alerts takes too long, and is given up");
                let _ = look.child.kill();
                look.since = Instant::now();
            }
            true
        });
    }

    fn begin(
        &mut self,
        session: &Session,
        settings: &Settings,
        in_force: &InForce<'_>,
        is_given_up: bool,
    ) {
        self.begun = Some(Instant::now());
        match self.start(settings, in_force, is_given_up) {
            Ok(look) if is_given_up => self.telling.push(look),
            Ok(look) => self.looking = Some(look),
            Err(e) => session.warn(&e.to_string()),
        }
    }

    fn start(
        &self,
        settings: &Settings,
        in_force: &InForce<'_>,
        is_given_up: bool,
    ) -> Result<Look> {
        let memory = self.notices.as_ref().and_then(|file| file.try_clone().ok());
        let failed = |e| Error::from_io("start looking at everything", e);
        let mut command = child::command(settings)?;
        command
            .args(["agent", "observe"])
            .args(is_given_up.then_some("--given-up"))
            .args(memory.is_some().then_some("--remember"))
            // Beside the look of the next agent it would tell what was wrong before.
            .env(FOLLOWS, std::process::id().to_string())
            .stdin(memory.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped());
        in_force.lend(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        let said = child.stdout.take();
        if let Some(said) = &said {
            let set = rustix::io::ioctl_fionbio(said, true);
            set.map_err(|e| failed(e.into()))?;
        }
        Ok(Look {
            child,
            since: Instant::now(),
            said,
        })
    }

    /// Ends them all, as their agent leaves.
    pub fn end(&mut self) {
        for look in self.looking.iter_mut().chain(&mut self.telling) {
            let _ = look.child.kill();
        }
    }
}
