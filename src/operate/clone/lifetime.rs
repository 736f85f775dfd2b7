//! The life of a clone while it serves: it ends by itself, or somebody keeps it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::Running;
use super::durability;
use super::folder::{Folder, Stage, State};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::host::Host;
use crate::operate::mounted::{Mount, SetOnDrop};
use crate::operate::session::Session;

/// How often a clone looks at its server and at what is wanted of it.
const PAUSE: Duration = Duration::from_millis(100);

/// A clone that is left behind: all of its content is there, and its server has ended.
pub(super) struct Left {
    /// Its record.
    pub state: State,
    /// Whether everything that the server wrote is on the disk.
    pub synced: Result<()>,
}

/// The time until which something is waited for.
pub(super) struct Until<'a> {
    host: &'a Host,
    is_over: &'a AtomicBool,
}

impl Until<'_> {
    /// Waits.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn pause(&self, time: Duration) -> Result<()> {
        self.host.check_stop()?;
        if self.is_over.load(Ordering::Relaxed) {
            return Err(err!(Interrupted, "the clone is ending"));
        }
        std::thread::sleep(time);
        Ok(())
    }
}

/// A clone that serves.
struct Lifetime<'a, 'r> {
    session: &'a Session,
    folder: &'a Folder,
    running: &'a mut Running<'r>,
    bring_all: &'a (dyn Fn(&AtomicBool) -> Result<()> + Sync),
    sync: &'a (dyn Fn() -> Result<()> + Sync),
    until: Option<Instant>,
    /// Whether the record is as it was written last: a full disk takes it later.
    is_saved: bool,
}

type Job<'scope> = ScopedJoinHandle<'scope, Result<()>>;
/// The scope of threads, and what ends them.
type Threads<'scope, 'env> = (&'scope Scope<'scope, 'env>, &'scope AtomicBool);

/// Looks after a clone until it is stopped, its time `until` is over or its server has ended. Returns it where it is left behind.
///
/// # Errors
/// `Server` where the server ends by itself before all content is there; `Io`.
pub(super) fn attend(
    (session, folder): (&Session, &Folder),
    running: &mut Running<'_>,
    mount: &mut Mount<'_>,
    until: Option<Instant>,
) -> Result<Option<Left>> {
    let is_over = AtomicBool::new(false);
    let mut lifetime = Lifetime {
        session,
        folder,
        running,
        bring_all: mount.bring_all,
        sync: mount.sync,
        until,
        is_saved: true,
    };
    std::thread::scope(|scope| {
        let _over = SetOnDrop(&is_over);
        let mut job = None;
        while !lifetime.is_over() {
            if lifetime.has_ended()? {
                return Ok(Some(lifetime.left()));
            }
            lifetime.step((scope, &is_over), &mut job);
            if !lifetime.is_saved {
                lifetime.save();
            }
            std::thread::sleep(PAUSE);
        }
        fault::pause("clone_stop");
        if !lifetime.stage().has_all() {
            return Ok(None);
        }
        lifetime.stop();
        Ok(Some(lifetime.left()))
    })
}

impl<'a> Lifetime<'a, '_> {
    fn stage(&self) -> Stage {
        self.running.state.stage
    }

    /// Whether it is to end. A wish to keep it that is there already is seen first.
    fn is_over(&self) -> bool {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        self.session.host.is_stopping() || (is_late && self.folder.close())
    }

    /// Whether the server has ended by itself.
    fn has_ended(&mut self) -> Result<bool> {
        if matches!(self.running.server.ended(), Ok(None)) {
            return Ok(false);
        }
        let words = last_lines(&self.running.server.log());
        let ended = err!(Server, "the server of the clone has ended by itself");
        if !self.stage().has_all() {
            return Err(ended.hint(format!("Its words: {words}")));
        }
        warn_crashed(self.session, &ended, &words);
        Ok(true)
    }

    /// Begins what is wanted, and goes on from what is done.
    fn step<'scope>(&mut self, threads: Threads<'scope, '_>, job: &mut Option<Job<'scope>>)
    where
        'a: 'scope,
    {
        if job.is_none() && self.folder.is_wanted() {
            match self.stage() {
                Stage::Ready => *job = self.begin_to_copy(threads),
                Stage::Settling => *job = self.begin_to_settle(threads),
                _ => {}
            }
        }
        let Some(done) = job.take_if(|job| job.is_finished()) else {
            return;
        };
        let panicked = |_| Err(err!(Internal, "a thread of the clone panicked"));
        match done.join().unwrap_or_else(panicked) {
            Ok(()) if self.stage() == Stage::Copying => *job = self.begin_to_settle(threads),
            Ok(()) => self.is_whole(),
            Err(_) if self.session.host.is_stopping() => {}
            Err(e) => self.not_kept(e),
        }
    }

    /// Copies the rest. The server works durably at once, so that statements of before have most likely ended once all is there.
    fn begin_to_copy<'scope>(
        &mut self,
        (scope, is_over): Threads<'scope, '_>,
    ) -> Option<Job<'scope>>
    where
        'a: 'scope,
    {
        // The wish counts more than the time that it was given, also where the copy fails.
        self.until = None;
        self.running.state.ends = None;
        self.begin(Stage::Copying)?;
        let bring_all = self.bring_all;
        Some(scope.spawn(move || {
            fault::pause("clone_copying");
            bring_all(is_over)
        }))
    }

    /// Makes it durable. The server is told once more: what kept it from that the first time may have been taken away.
    fn begin_to_settle<'scope>(
        &mut self,
        (scope, is_over): Threads<'scope, '_>,
    ) -> Option<Job<'scope>>
    where
        'a: 'scope,
    {
        self.begin(Stage::Settling)?;
        let (host, sync) = (&self.session.host, self.sync);
        let conninfo = self.running.server.conninfo("template1");
        Some(scope.spawn(move || durability::settle(&conninfo, sync, &Until { host, is_over })))
    }

    /// Begins a stage in which the server has to be durable; none where it cannot be.
    fn begin(&mut self, stage: Stage) -> Option<()> {
        self.put(stage, None);
        let made = self.running.server.make_durable(false);
        made.map_err(|e| self.not_kept(e)).ok()
    }

    fn is_whole(&mut self) {
        self.put(Stage::Whole, None);
        if let Err(e) = self.running.server.make_durable(true) {
            self.session
                .warn(&format!("the clone goes on without autovacuum: {e}"));
        }
    }

    /// Takes down that the wish could not be fulfilled. The clone and what was written to it stay, and it can be asked for again.
    fn not_kept(&mut self, e: Error) {
        let (doing, stage) = match self.stage() {
            Stage::Copying => ("copy the rest of the clone", Stage::Ready),
            stage => ("make the clone durable", stage),
        };
        let e = e.context(doing);
        self.session.warn(&format!("the clone is not kept: {e}"));
        self.folder.unwant();
        self.put(stage, Some(e.to_string()));
    }

    fn put(&mut self, stage: Stage, not_kept: Option<String>) {
        self.running.state.stage = stage;
        self.running.state.not_kept = not_kept;
        self.save();
    }

    fn save(&mut self) {
        self.is_saved = self.folder.put(self.running.state).is_ok();
    }

    fn stop(&mut self) {
        if let Err(e) = self.running.server.stop(&|| Ok(())) {
            let words = last_lines(&self.running.server.log());
            warn_crashed(self.session, &e, &words);
        }
    }

    /// Syncs everything once the server has ended: nothing writes any more, so all of it is durable then.
    fn left(&mut self) -> Left {
        let synced = (self.sync)().and_then(|()| {
            self.running.state.stage = Stage::Whole;
            self.folder.put(self.running.state)
        });
        Left {
            state: self.running.state.clone(),
            synced,
        }
    }
}

/// All content is in the directory, from which a server recovers as after a crash.
fn warn_crashed(session: &Session, e: &Error, words: &str) {
    session.warn(&format!("{e}, and the clone is kept: {words}"));
}

fn last_lines(log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines.get(from..).unwrap_or_default().join(" · ")
}
