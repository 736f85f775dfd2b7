//! The loop of the agent: what is due starts, what ended is buried, and once in a while everything is looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::alert::Notices;
use super::child;
use super::load::{self, Check, Loaded};
use super::page::{Page, View};
use super::scheduler;
use super::serve::{self, Served};
use crate::behalf;
use crate::config::Settings;
use crate::config::agent::INTERVAL;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::lock;
use crate::operate::counters::make;
use crate::operate::runs::{JobState, RunId, Runs};
use crate::operate::session::Session;
use crate::operate::sets::FOLLOWS;
use crate::process;

/// The lock of the agent, below `state_dir`.
pub const LOCK: &str = "agent.lock";
/// How long one who only looks may hold it.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks whether somebody wants something.
const GLANCE: Duration = Duration::from_millis(250);
/// A run whose start left no record is started again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// Looking at everything may take so long.
const OBSERVE_MAX: Duration = Duration::from_secs(300);

/// Requests from outside.
pub struct Requests {
    /// The configuration has changed.
    pub reload: Arc<AtomicBool>,
    /// Hears how the agent stands, in one line.
    pub status: Box<dyn Fn(&str)>,
    /// The agent of a tenant serves nothing: the host's own agent shows what it found.
    pub is_tenant: bool,
}

/// A job as it was last read, and when its directory last changed.
type Known = (Option<SystemTime>, JobState);

struct Agent<'a> {
    session: &'a Session,
    check: Check<'a>,
    loaded: Loaded,
    page: Option<Arc<Page>>,
    known: BTreeMap<String, Known>,
    /// Runs that were started, and of which no record has been seen yet.
    asked: BTreeMap<String, (RunId, Instant)>,
    children: Vec<Child>,
    observing: Option<(Child, Instant)>,
    /// Lookers that were killed, and are not gone yet.
    given_up: Vec<Child>,
    observed: Option<Instant>,
    /// The notices that were taken, which looks keep there, too.
    notices: Option<File>,
    /// Trouble that was reported, so that it is reported once.
    troubles: BTreeMap<String, String>,
}

/// Runs until the session is to stop. Jobs go on.
///
/// # Errors
/// Those of [`load::load`]; `Locked` when another agent runs with the same memory.
pub fn run(session: &Session, requests: &Requests, check: Check<'_>) -> Result<()> {
    let loaded = load::load(session, check)?;
    make(&loaded.state_dir)?;
    let _lock = lock(&loaded.state_dir)?;
    let page = match requests.is_tenant {
        true => loaded.settings.refuse_tenants().map(|()| None)?,
        false => Some(serve(session, &loaded.settings, check)?),
    };
    let mut agent = Agent {
        session,
        check,
        loaded,
        page,
        known: BTreeMap::new(),
        asked: BTreeMap::new(),
        children: Vec::new(),
        observing: None,
        given_up: Vec::new(),
        observed: None,
        notices: Notices::memory(),
        troubles: BTreeMap::new(),
    };
    (requests.status)(&agent.line());
    loop {
        agent.tick();
        let ticked = Instant::now();
        while ticked.elapsed() < fault::hastened(TICK) {
            if session.host.is_stopping() {
                agent.leave();
                return Ok(());
            }
            if requests.reload.swap(false, Ordering::Relaxed) {
                agent.reload();
                (requests.status)(&agent.line());
            }
            std::thread::sleep(GLANCE.min(fault::hastened(TICK)));
        }
    }
}

/// Serves metrics and the page, which has a copy of everything: it is asked on another thread.
fn serve(session: &Session, settings: &Settings, check: Check<'_>) -> Result<Arc<Page>> {
    let address = serve::address(settings);
    let view = View::read(session, check)?;
    let page = Arc::new(Page::new(session.host.clone(), view, address)?);
    Served::new(Arc::clone(&page)).begin(
        address,
        Arc::clone(&session.host.stop),
        Arc::clone(&session.host.progress),
    );
    Ok(page)
}

fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join(LOCK);
    let failed = |e| Error::from_io(format!("lock \"{}\"", path.display()), e);
    behalf::of(&path, || lock::take(&path, LOCK_PATIENCE))
        .map_err(failed)?
        .ok_or_else(|| {
            err!(
                Locked,
                "another agent runs, which holds \"{}\"",
                path.display()
            )
            .hint("Nothing was done. pitr agent status shows what it does.")
        })
}

/// Whether an agent runs.
pub fn is_running(state_dir: &Path) -> bool {
    let path = state_dir.join(LOCK);
    behalf::of(&path, || lock::is_held(&path)).unwrap_or(false)
}

impl Agent<'_> {
    fn line(&self) -> String {
        format!("{} jobs", self.loaded.jobs.len())
    }

    fn tick(&mut self) {
        // One that has ended is buried; its record tells how.
        self.children
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let states = self.states();
        let now = self.session.host.now();
        let due = scheduler::due(now, &self.loaded.jobs, &states);
        let due: Vec<(String, RunId)> = due
            .into_iter()
            .map(|(name, id)| (name.to_owned(), id))
            .collect();
        for (name, id) in due {
            self.start(&name, id);
        }
        self.observe();
    }

    fn start(&mut self, name: &str, id: RunId) {
        let is_always =
            |job: &scheduler::Planned| matches!(job.trigger, scheduler::Trigger::Always);
        let is_always = self
            .loaded
            .jobs
            .iter()
            .any(|job| job.name == name && is_always(job));
        if let Some((asked, since)) = self.asked.get(name)
            && (*asked == id || is_always)
            && since.elapsed() < fault::shortened(AGAIN)
        {
            return;
        }
        self.asked.insert(name.to_owned(), (id, Instant::now()));
        match child::start(&self.loaded.settings, name, id) {
            Ok(child) => self.children.push(child),
            Err(e) => self.trouble(name, &e.to_string()),
        }
    }

    /// Reads the jobs whose records have changed, and those that run.
    fn states(&mut self) -> BTreeMap<String, JobState> {
        let names: Vec<String> = self
            .loaded
            .jobs
            .iter()
            .map(|job| job.name.clone())
            .collect();
        for name in names {
            match self.state(&name) {
                Ok(known) => {
                    let has_begun =
                        |(id, _): &(RunId, Instant)| known.1.runs.iter().any(|run| run.id >= *id);
                    if self.asked.get(&name).is_some_and(has_begun) {
                        self.asked.remove(&name);
                    }
                    self.troubles.remove(&name);
                    self.known.insert(name, known);
                }
                Err(e) => {
                    self.known.remove(&name);
                    self.trouble(&name, &e.to_string());
                }
            }
        }
        self.known
            .iter()
            .map(|(name, (_, state))| (name.clone(), state.clone()))
            .collect()
    }

    fn state(&self, name: &str) -> Result<Known> {
        let runs = Runs::of(&self.loaded.state_dir, name);
        let changed = runs.changed();
        if let Some((then, state)) = self.known.get(name)
            && changed.is_some()
            && *then == changed
            && state.runs.last().is_none_or(|run| run.ended.is_some())
            // A lock may be held by a run that has not begun yet.
            && !state.is_running
        {
            return Ok((*then, state.clone()));
        }
        let now = self.session.host.now();
        runs.begin(now, self.session.host.random())?;
        let changed = runs.changed();
        Ok((changed, runs.state(now)?))
    }

    fn trouble(&mut self, name: &str, message: &str) {
        if self.troubles.get(name).is_none_or(|known| known != message) {
            self.session.warn(&format!("job \"{name}\": {message}"));
            self.troubles.insert(name.to_owned(), message.to_owned());
        }
    }

    /// Has everything looked at, by a process of its own. When that is given up, those who are to hear of trouble hear of this.
    fn observe(&mut self) {
        self.given_up
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Some((mut child, since)) = self.observing.take()
            && matches!(child.try_wait(), Ok(None))
        {
            if since.elapsed() < fault::shortened(OBSERVE_MAX) {
                self.observing = Some((child, since));
                return;
            }
            self.session
                .warn("looking at everything takes too long, and is given up");
            // It is ours and not buried yet, so the number is its. One that hangs in the kernel is waited for by nobody.
            let _ = child.kill();
            self.given_up.push(child);
            self.look(&["--given-up"]);
            return;
        }
        let interval = self.loaded.settings.agent.interval.unwrap_or(INTERVAL);
        if self
            .observed
            .is_some_and(|at| at.elapsed() < fault::hastened(interval))
        {
            return;
        }
        // Beside one that hangs another would hang, too.
        let is_stuck = !self.given_up.is_empty();
        self.look(if is_stuck { &["--given-up"] } else { &[] });
    }

    fn look(&mut self, how: &[&str]) {
        self.observed = Some(Instant::now());
        let memory = self.notices.as_ref().and_then(|file| file.try_clone().ok());
        let started = child::command(&self.loaded.settings).and_then(|mut command| {
            command
                .args(["agent", "observe"])
                .args(how)
                .args(memory.is_some().then_some("--remember"))
                // Beside the look of the next agent it would tell what was wrong before.
                .env(FOLLOWS, std::process::id().to_string())
                .stdin(memory.map_or_else(Stdio::null, Stdio::from))
                .stdout(Stdio::null());
            command
                .spawn()
                .map_err(|e| Error::from_io("start looking at everything", e))
        });
        match started {
            Ok(child) => self.observing = Some((child, Instant::now())),
            Err(e) => self.session.warn(&e.to_string()),
        }
    }

    /// Reads the configuration again; one that is wrong changes nothing.
    fn reload(&mut self) {
        let read = || -> Result<Loaded> {
            let loaded = load::load(self.session, self.check)?;
            if let Some(page) = &self.page {
                page.reload(View::read(self.session, self.check)?)?;
            }
            Ok(loaded)
        };
        let loaded = match read() {
            Ok(loaded) => loaded,
            Err(e) => {
                self.session.warn(&format!(
                    "the configuration is wrong, and the agent goes on with the one before: {e}"
                ));
                return;
            }
        };
        if loaded.state_dir != self.loaded.state_dir
            || loaded.settings.agent.listen != self.loaded.settings.agent.listen
        {
            self.session
                .warn("state_dir and listen of [agent] change when the agent is started again");
        }
        let is_kept = |name: &str| loaded.jobs.iter().any(|job| job.name == name);
        let always = self
            .loaded
            .jobs
            .iter()
            .filter(|job| matches!(job.trigger, scheduler::Trigger::Always));
        for job in always.filter(|job| !is_kept(&job.name)) {
            self.end(&job.name);
        }
        // They are started again, and read their configurations.
        self.end_tenants();
        let state_dir = self.loaded.state_dir.clone();
        self.known.retain(|name, _| is_kept(name));
        self.loaded = Loaded {
            state_dir,
            ..loaded
        };
        self.session.note("the configuration was read again");
    }

    /// Asks the agents of tenants to end; their jobs go on.
    fn end_tenants(&self) {
        for tenant in &self.loaded.settings.tenants {
            self.end(&tenant.job().name);
        }
    }

    /// Asks what runs always to end.
    fn end(&self, name: &str) {
        let Some((_, state)) = self.known.get(name) else {
            return;
        };
        let Some(run) = state
            .runs
            .last()
            .filter(|run| state.is_running && run.ended.is_none())
        else {
            return;
        };
        let pid = i32::try_from(run.begun.pid).ok().and_then(Pid::from_raw);
        // The number may be another's by now; with the tick it is this process.
        if let Some(pid) = pid
            && run.begun.tick.is_some()
            && process::started_at(run.begun.pid) == run.begun.tick
        {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn leave(&mut self) {
        if let Some((child, _)) = &mut self.observing {
            let _ = child.kill();
        }
        self.end_tenants();
        let running = self.children.len();
        self.session
            .note(&format!("the agent leaves; {running} of its jobs go on"));
    }
}
