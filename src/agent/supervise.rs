//! The loop of the agent: what is due starts, what ended is buried, and once in a while everything is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::child;
use super::examinations::Examinations;
use super::in_force::InForce;
use super::load::{self, Check, Loaded};
use super::looks::Looks;
use super::page::{Page, View};
use super::refused;
use super::scheduler;
use super::serve::{self, Served};
use crate::behalf;
use crate::config::{Settings, Tenant};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::lock;
use crate::operate::counters::make;
use crate::operate::runs::{Begun, JobState, RunId, Runs};
use crate::operate::session::Session;
use crate::process;

/// The lock of the agent, below `state_dir`.
pub const LOCK: &str = "agent.lock";
/// How long one who only looks may hold it.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks whether somebody wants something.
const GLANCE: Duration = Duration::from_millis(250);
/// The record of a run that begins in this moment comes so soon.
const RECORDED: Duration = Duration::from_secs(2);
/// A run whose start left no record is started again after so long.
const AGAIN: Duration = Duration::from_secs(30);

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
    check: Check,
    loaded: Loaded,
    in_force: InForce<'a>,
    page: Option<Arc<Page>>,
    known: BTreeMap<String, Known>,
    /// Runs that were started, and of which no record has been seen yet.
    asked: BTreeMap<String, (RunId, Instant)>,
    /// The record keepers of runs, each with the name of its job.
    children: Vec<(String, Child)>,
    looks: Looks,
    examinations: Examinations,
    /// Trouble that was reported, so that it is reported once.
    troubles: BTreeMap<String, String>,
}

/// Runs until the session is to stop. Jobs go on.
///
/// # Errors
/// Those of [`load::load`]; `Locked` when another agent runs with the same memory.
pub fn run(session: &Session, requests: &Requests, check: Check) -> Result<()> {
    let (mut agent, _lock) = begin(session, requests, check).inspect_err(|e| {
        if e.code() == Code::Config {
            refused::tell(session, check, e);
        }
    })?;
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

/// Reads the configuration, and serves the page: everything that keeps an agent from its start.
fn begin<'a>(session: &'a Session, requests: &Requests, check: Check) -> Result<(Agent<'a>, File)> {
    let loaded = load::load(session, check)?;
    make(&loaded.state_dir)?;
    let lock = lock(&loaded.state_dir)?;
    if let Err(e) = load::check_zones(&loaded.settings) {
        session.warn(&format!(
            "there are no quiet hours, and a reload will refuse this file: {e}"
        ));
    }
    // The agent writes the copy before the page answers: a client that waits for the page may change the file at once.
    let in_force = InForce::keep(session, check, &loaded);
    let page = match requests.is_tenant {
        true => loaded.settings.refuse_tenants().map(|()| None)?,
        false => Some(serve(session, &loaded.settings, check)?),
    };
    in_force.note(None);
    let agent = Agent {
        session,
        check,
        in_force,
        loaded,
        page,
        known: BTreeMap::new(),
        asked: BTreeMap::new(),
        children: Vec::new(),
        looks: Looks::none(),
        examinations: Examinations::none(),
        troubles: BTreeMap::new(),
    };
    Ok((agent, lock))
}

/// Serves metrics and the page, which has a copy of everything: it is asked on another thread.
fn serve(session: &Session, settings: &Settings, check: Check) -> Result<Arc<Page>> {
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
            .retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
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
        let (session, settings) = (self.session, &self.loaded.settings);
        self.looks.tick(session, settings, &self.in_force);
        self.examinations.tick(session, settings, &self.in_force);
    }

    fn start(&mut self, name: &str, id: RunId) {
        let is_always =
            |job: &scheduler::Planned| matches!(job.trigger, scheduler::Trigger::Always);
        let mut jobs = self.loaded.jobs.iter();
        let is_always = jobs.any(|job| job.name == name && is_always(job));
        if let Some((asked, since)) = self.asked.get(name)
            && (*asked == id || is_always)
            && since.elapsed() < fault::shortened(AGAIN)
        {
            return;
        }
        self.asked.insert(name.to_owned(), (id, Instant::now()));
        match child::start(&self.loaded.settings, &self.in_force, name, id) {
            Ok(child) => self.children.push((name.to_owned(), child)),
            Err(e) => self.trouble(name, &e.to_string()),
        }
    }

    /// Reads the jobs whose records have changed, and those that run.
    fn states(&mut self) -> BTreeMap<String, JobState> {
        let jobs = self.loaded.jobs.iter();
        let names: Vec<String> = jobs.map(|job| job.name.clone()).collect();
        for name in names {
            match self.state(&name) {
                Ok(known) => {
                    let has_begun =
                        |(id, _): &(RunId, Instant)| known.1.runs.iter().any(|run| run.id == *id);
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
            // A clock that was ahead is right by now: the file has to be written anew.
            && state.since <= self.session.host.now()
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

    /// Reads the configuration again; one that is wrong changes nothing.
    fn reload(&mut self) {
        let read = || -> Result<Loaded> {
            let loaded = load::load(self.session, self.check)?;
            load::check_zones(&loaded.settings)?;
            loaded
                .require_place(&self.loaded.state_dir)
                .inspect_err(|_| {
                    // The host's agent starts the one of a tenant again.
                    let stop = &self.session.host.stop;
                    stop.fetch_or(self.page.is_none(), Ordering::Relaxed);
                })?;
            match &self.page {
                Some(page) => page.reload(View::read(self.session, self.check)?)?,
                None => loaded.settings.refuse_tenants()?,
            }
            Ok(loaded)
        };
        let loaded = match read() {
            Ok(loaded) => loaded,
            Err(e) => {
                self.in_force.refuse(&e);
                return;
            }
        };
        if loaded.settings.agent.listen != self.loaded.settings.agent.listen {
            self.session
                .warn("listen of [agent] changes when the agent is started again");
        }
        let is_kept = |name: &str| loaded.jobs.iter().any(|job| job.name == name);
        let jobs = self.loaded.jobs.iter();
        let always = jobs.filter(|job| matches!(job.trigger, scheduler::Trigger::Always));
        let gone = always.filter(|job| !is_kept(&job.name));
        let gone = gone.map(|job| job.name.clone());
        // Agents of tenants read their configurations again, and go on with the ones before where these are wrong.
        let (kept, moved): (Vec<&Tenant>, Vec<&Tenant>) = {
            let tenants = self.loaded.settings.tenants.iter();
            tenants.partition(|tenant| loaded.settings.tenants.contains(tenant))
        };
        kept.iter()
            .for_each(|tenant| self.pass_on(&tenant.job().name));
        let moved = moved.iter().map(|tenant| tenant.job().name);
        let ended: BTreeSet<String> = gone.chain(moved).collect();
        self.end(&ended);
        self.known.retain(|name, _| is_kept(name));
        self.loaded = loaded;
        self.in_force = InForce::keep(self.session, self.check, &self.loaded);
        self.in_force.note(None);
        self.session.note("the configuration was read again");
    }

    /// Has the agent of a tenant read its configuration. One that has no record yet is about to read it.
    fn pass_on(&self, name: &str) {
        let (_, keeper) = self.recorded(name);
        let keeper = keeper.and_then(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw));
        if let Some(keeper) = keeper {
            let _ = kill_process(keeper, Signal::HUP);
        }
    }

    /// The jobs that are the agents of tenants.
    fn tenants(&self) -> Vec<String> {
        let tenants = self.loaded.settings.tenants.iter();
        tenants.map(|tenant| tenant.job().name).collect()
    }

    /// Asks what runs always to end, each run once. A run that has begun in this moment has no record yet, so its record keeper is asked, too;
    /// the record of a run that another agent began is waited for.
    fn end(&mut self, names: &BTreeSet<String>) {
        let since = Instant::now();
        let mut asked = BTreeSet::new();
        loop {
            let mut is_all = true;
            for name in names {
                let own = self.children.iter_mut().filter(|(job, _)| job == name);
                // One that is not buried yet has its number for itself.
                let own = own.filter_map(|(_, child)| {
                    let is_there = matches!(child.try_wait(), Ok(None));
                    is_there.then(|| child.id())
                });
                let own: Vec<u32> = own.collect();
                let (is_running, keeper) = self.recorded(name);
                is_all &= !is_running || keeper.is_some() || !own.is_empty();
                for pid in own.into_iter().chain(keeper) {
                    if asked.insert(pid)
                        && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                    {
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
            }
            if is_all || since.elapsed() >= RECORDED {
                return;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Returns whether a run of the job is under way, and the process that keeps its record, as the record has it.
    fn recorded(&self, name: &str) -> (bool, Option<u32>) {
        let runs = Runs::of(&self.loaded.state_dir, name);
        let Ok(state) = runs.state(self.session.host.now()) else {
            return (false, None);
        };
        let going = state.runs.last().filter(|run| state.is_going(run));
        // The number may be another's by now; with the tick it is this process.
        let is_its =
            |begun: &&Begun| begun.tick.is_some() && process::started_at(begun.pid) == begun.tick;
        let keeper = going.map(|run| &run.begun).filter(is_its);
        (state.is_running, keeper.map(|begun| begun.pid))
    }

    fn leave(&mut self) {
        self.looks.end();
        self.examinations.end();
        // Their jobs go on.
        self.end(&self.tenants().into_iter().collect());
        let running = self.children.len();
        self.session
            .note(&format!("the agent leaves; {running} of its jobs go on"));
    }
}
