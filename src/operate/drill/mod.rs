//! Drills: a restore that is tried, not assumed.
//!
//! | file | what it owns |
//! |---|---|
//! | `turn` | the repositories in turn |
//! | `moment` | a random moment |
//! | `sandbox` | the private folder, and what a drill that was killed left |
//! | `recovery` | the server's way to the target, by its log |
//! | `comparison` | the plan beside what the server did |
//! | `amcheck` | indexes and tables |
//! | `checks` | the operator's own queries |
//! | `pages` | the checksums of all pages |
//!
//! A drill that cannot be tried is an error. Recovery that turns out to be broken is a result, with the phase that showed it, and is recorded as such.

mod amcheck;
pub mod checks;
pub(super) mod comparison;
mod moment;
mod pages;
pub(super) mod recovery;
pub(super) mod sandbox;
mod turn;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use self::checks::Check;
use self::sandbox::Sandbox;
use super::choice::{Question, Unless};
use super::clone::{self, namespace};
use super::erasure;
use super::mounted;
use super::opened::Opened;
use super::private_tablespaces::{self, PrivateTablespaces};
use super::programs::Programs;
use super::quarantine::{self, Lasts, Libraries, Quarantine, Quarantined};
use super::restore;
use super::restoring::Prepared;
use super::session::Session;
use super::target::{AskedTarget, Point};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::conf::Setting;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::{Action, Plan};
use crate::plan::target::Target;
use crate::repo::drilled::{self, Drill, Phase, Timed};
use crate::repo::event::{Event, Writer};
use crate::repo::id::BackupId;
use crate::wal::tablespaces::Made;
use crate::wire::sql::is_own_limit;

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The recovery target.
    pub target: AskedTarget,
    /// Whether a random moment is taken in its place, and by which seed.
    pub random: Option<u64>,
    /// The operator's own queries.
    pub checks: Vec<Check>,
    /// The folder below which the sandbox is made.
    pub folder: Option<PathBuf>,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<PathBuf>,
    /// Whether the sandbox is left behind.
    pub keep: bool,
    /// Whether the content is brought when the server reads it, as a clone's is: then not all of it is read.
    pub is_fast: bool,
}

impl Asked {
    /// Whether the operator named the moment: one that is out of reach is then a mistake, and no proof that recovery is broken.
    fn names_a_moment(&self) -> bool {
        let is_end = matches!(self.target.point, Point::Known(Target::End));
        self.random.is_none() && (!is_end || self.target.backup.is_some())
    }

    /// The kind of its target, for the record.
    fn kind(&self) -> &'static str {
        match &self.target.point {
            Point::Time(_) | Point::Known(Target::Time(_)) => "time",
            Point::Known(Target::Xid(_)) => "xid",
            Point::Known(Target::Lsn(_)) => "lsn",
            Point::Known(Target::Name(_)) => "name",
            Point::Known(Target::Immediate) => "immediate",
            Point::Known(Target::End) => "end",
        }
    }
}

/// One check, and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The phase that it belongs to.
    pub phase: Phase,
    /// The thing that was checked.
    pub name: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// The finding, where it is not.
    pub found: Option<String>,
}

impl Checked {
    /// A check that has failed where it found something.
    fn new(phase: Phase, name: String, found: Option<String>) -> Checked {
        Checked {
            phase,
            name,
            passed: found.is_none(),
            found,
        }
    }
}

/// Why recovery is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The phase that showed it.
    pub phase: Phase,
    pub cause: String,
}

/// A drill that was carried out.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub cluster: String,
    /// The repository, by its name.
    pub repository: String,
    /// Its place, without secrets.
    pub url: String,
    pub began: TimestampTz,
    /// Whether recovery works.
    pub passed: bool,
    /// Why it does not.
    pub broken: Option<Broken>,
    /// The backup that was restored.
    pub backup: Option<BackupId>,
    /// The target in words.
    pub target: String,
    /// The seed of a random target.
    pub seed: Option<u64>,
    /// The position at which the server ended recovery.
    pub reached_lsn: Option<Lsn>,
    /// The moment that it was recovered to.
    pub reached_time: Option<TimestampTz>,
    /// The timeline that the server began there.
    pub new_timeline: Option<TimelineId>,
    /// The durations.
    pub phases: Vec<Timed>,
    /// Everything that was checked.
    pub checks: Vec<Checked>,
    /// Phases that checked nothing, or not everything.
    pub not_checked: Vec<Phase>,
    /// Checks that could not be made, and libraries that were left out.
    pub notes: Vec<String>,
    /// The folder, where it was left behind.
    pub kept: Option<PathBuf>,
    /// Why the result could not be recorded in the repository.
    pub not_recorded: Option<String>,
    /// The plan; none where there was none.
    pub plan: Option<Plan>,
}

/// Tries a restore.
///
/// # Errors
/// Errors of what keeps it from being tried: `Refused`, `Config`, `Unreachable`, `Full` and the like; `OutOfReach` for a moment that the
/// operator named; `Interrupted`.
pub fn run(session: &Session, asked: &Asked) -> Result<Report> {
    if rustix::process::geteuid().is_root() {
        return Err(err!(Refused, "PostgreSQL refuses to run as root, so a drill cannot run as root")
            .hint("Nothing was done. Run it as the server's user or another one that may read the configuration: sudo -u postgres pitr drill"));
    }
    if asked.is_fast {
        mounted::check_possible()?;
    }
    let mut failed = None;
    let due = turn::due(session)?;
    let is_only = due.len() == 1;
    for (own, opened) in due {
        let name = opened.reading.configured.name.clone();
        match of_repository(&own, opened, asked) {
            Err(e) if !is_only && e.code() != Code::Interrupted => {
                session.warn(&format!("repository \"{name}\" could not be drilled: {e}"));
                failed.get_or_insert(e);
            }
            report => return report,
        }
    }
    Err(failed.unwrap_or_else(|| err!(Internal, "no repository to drill")))
}

/// Tries a restore from the one repository that a session asks.
fn of_repository(session: &Session, opened: Opened, asked: &Asked) -> Result<Report> {
    let began = session.host.now();
    let started = Instant::now();
    let mut asked = asked.clone();
    if let Some(seed) = asked.random {
        asked.target = moment::random(session, &opened, &asked.target, seed)?;
    }
    let mut course = Course::new(&asked, &opened, began);
    let question = Question {
        target: &asked.target,
        action: Action::Promote,
        is_carried_out: true,
    };
    let writes_to = Place::of(&opened);
    session.host.progress.phase("plan", None);
    match question.answer(session, opened) {
        Err(e) if is_broken(&e) => course.broken(Phase::Plan, e.to_string()),
        Err(e) => return Err(e),
        Ok(chosen) => {
            course.planned(&chosen.plan);
            match chosen.unless {
                Some(Unless::NotKnown(e)) => return Err(e),
                Some(Unless::OutOfReach { why, .. }) if asked.names_a_moment() => {
                    return Err(err!(OutOfReach, "{why}").hint("Nothing was restored, and nothing recorded. pitr plan with the same target names the nearest moments."));
                }
                Some(Unless::OutOfReach { why, .. }) => course.broken(Phase::Plan, why),
                None => {
                    let plan = chosen.plan;
                    // A copy that is kept may be started by others.
                    if asked.keep {
                        erasure::warn_of_lacking(session, &chosen.opened, &plan);
                    }
                    course.attempt(session, &asked, &plan, started)?;
                }
            }
        }
    }
    session.host.check_stop()?;
    course.end(session, &writes_to)
}

/// Whether an error proves that recovery does not work, in contrast to one that keeps it from being tried: objects of a newer version, and
/// those that the store has to thaw first, say nothing.
fn is_broken(e: &Error) -> bool {
    let codes = [Code::Damaged, Code::Findings, Code::Gap, Code::OutOfReach];
    codes.contains(&e.code()) && !e.is_frozen()
}

/// The repository that records the result.
struct Place {
    repository: crate::config::Repository,
    layout: crate::repo::layout::ClusterLayout,
}

impl Place {
    fn of(opened: &Opened) -> Place {
        Place {
            repository: opened.reading.configured.clone(),
            layout: opened.layout.clone(),
        }
    }

    fn record(&self, session: &Session, drill: &Drill) -> Result<()> {
        let writer = Writer::of(&session.host);
        let event = Event {
            drill: Some(drill.clone()),
            ..writer.event(drilled::DRILLED, drilled::SUBJECT)
        };
        let opened = session.open(&self.repository)?;
        writer.record(opened.store(), &self.layout, &event)?;
        Ok(())
    }
}

/// A drill under way.
struct Course {
    report: Report,
    kind: &'static str,
}

impl Course {
    fn new(asked: &Asked, opened: &Opened, began: TimestampTz) -> Course {
        let target = match &asked.target.point {
            Point::Known(target) => target.to_string(),
            Point::Time(_) => "a time".to_owned(),
        };
        let report = Report {
            cluster: opened.layout.name().to_owned(),
            repository: opened.reading.configured.name.clone(),
            url: opened.inventory.repository.clone(),
            began,
            target,
            seed: asked.random,
            ..Report::default()
        };
        let kind = asked.kind();
        Course { report, kind }
    }

    fn planned(&mut self, plan: &Plan) {
        self.report.target = plan.target.target.to_string();
        self.report.backup = plan.backup.as_ref().map(|b| b.id.clone());
        self.report.plan = Some(plan.clone());
    }

    /// Takes down the first proof that recovery is broken.
    fn broken(&mut self, phase: Phase, cause: String) {
        self.report.broken.get_or_insert(Broken { phase, cause });
    }

    fn time(&mut self, phase: Phase, since: Instant, bytes: Option<u64>) {
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.report.phases.push(Timed { phase, ms, bytes });
    }

    /// Takes down findings of a phase; each note tells something that it did not check.
    fn take(&mut self, phase: Phase, found: Findings) {
        if !found.notes.is_empty() {
            self.report.not_checked.push(phase);
        }
        self.report.notes.extend(found.notes);
        self.add(found.checks);
    }

    fn add(&mut self, checks: Vec<Checked>) {
        for check in checks {
            if !check.passed {
                let found = check.found.as_deref().unwrap_or("it failed");
                self.broken(check.phase, format!("{}: {found}", check.name));
            }
            self.report.checks.push(check);
        }
    }

    /// Restores, starts, waits and checks.
    fn attempt(
        &mut self,
        session: &Session,
        asked: &Asked,
        plan: &Plan,
        started: Instant,
    ) -> Result<()> {
        let backup = plan.backup.as_ref();
        let backup = backup.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
        let bin = asked.bin.as_deref();
        let programs = quarantine::programs(&session.environment, backup.major, bin)?;
        let folder = asked.folder.as_deref();
        let folder = folder.unwrap_or(&session.host.scratch);
        let mut sandbox = Sandbox::make(folder, asked.is_fast)?;
        let target = AskedTarget {
            backup: Some(backup.id.to_string()),
            ..asked.target.clone()
        };
        let wanted = restore::Asked {
            is_hollow: asked.is_fast,
            ..clone::wanted(&target, (&*sandbox.data(), &*sandbox.tablespaces()))
        };
        let begun = Begun {
            session,
            asked,
            programs: &programs,
        };
        let ready = self.prepared(&begun, &wanted, started)?;
        if let Some(Ready { prepared, .. }) = &ready
            && !prepared.made.is_empty()
        {
            // A namespace is entered by running again, which leaves nothing behind.
            if !namespace::is_inside(&session.environment) {
                sandbox.clear();
                session.host.check_stop()?;
                namespace::enter(session)?;
            }
            private_tablespaces::check(&prepared.made, &session.environment)?;
        }
        let done = ready.map_or(Ok(()), |ready| match asked.is_fast {
            true => self.mounted(&begun, &sandbox, ready),
            false => self.copied(&begun, &sandbox, ready),
        });
        if asked.keep && done.is_ok() {
            self.report.kept = Some(sandbox.keep());
        }
        done
    }

    /// Plans what is carried out; none where that cannot be had.
    fn prepared(
        &mut self,
        begun: &Begun<'_>,
        wanted: &restore::Asked,
        started: Instant,
    ) -> Result<Option<Ready>> {
        let session = begun.session;
        let way = match restore::prepare(session, wanted) {
            Err(e) if is_broken(&e) => {
                self.broken(Phase::Copy, e.to_string());
                return Ok(None);
            }
            way => way?.0,
        };
        let prepared = match way {
            restore::Way::Ready(prepared) => prepared,
            restore::Way::OutOfReach(unreached) => {
                self.planned(&unreached.plan);
                self.broken(Phase::Plan, unreached.error.to_string());
                return Ok(None);
            }
        };
        // The repository may have grown since the first plan: this one is carried out.
        let plan = prepared.job.plan.clone();
        let plan = plan.ok_or_else(|| err!(Internal, "a restore without a plan"))?;
        plan.warnings.iter().for_each(|text| session.warn(text));
        self.planned(&plan);
        self.time(Phase::Plan, started, None);
        let brought = prepared.brought().value("shared_preload_libraries");
        let libraries = Libraries::of(brought.unwrap_or_default(), begun.programs);
        self.note_libraries(&libraries);
        Ok(Some(Ready {
            left_out: prepared.left_out_oids(),
            prepared,
            libraries,
            plan,
        }))
    }

    /// Copies the files, and tries a server on them.
    fn copied(&mut self, begun: &Begun<'_>, sandbox: &Sandbox, ready: Ready) -> Result<()> {
        let copying = Instant::now();
        let restored = match ready.prepared.run(begun.session, None) {
            Err(e) if is_broken(&e) => {
                self.time(Phase::Copy, copying, None);
                self.broken(Phase::Copy, e.to_string());
                return Ok(());
            }
            restored => restored?,
        };
        self.time(Phase::Copy, copying, Some(restored.report.raw_bytes));
        let copied = Copied {
            settings: restored.report.settings,
            before: namespace::before_scripts(&begun.session.environment).unwrap_or_default(),
            fetches_outside: clone::needs_network(&ready.prepared),
            made: ready.prepared.made,
            libraries: ready.libraries,
            plan: ready.plan,
            left_out: ready.left_out,
        };
        self.started(begun, sandbox, &copied)
    }

    /// Mounts the files, whose content is brought when it is read, and tries a server on them.
    fn mounted(&mut self, begun: &Begun<'_>, sandbox: &Sandbox, ready: Ready) -> Result<()> {
        let session = begun.session;
        let environment = &session.environment;
        self.report.not_checked.push(Phase::Copy);
        let place = (sandbox.tree(), namespace::is_inside(environment));
        let Ready {
            prepared,
            libraries,
            plan,
            left_out,
        } = ready;
        let done = mounted::with_mount(session, &prepared, place, |mount| {
            let copied = Copied {
                settings: mount.settings.clone(),
                before: namespace::before_server(environment, false),
                fetches_outside: clone::needs_network(&prepared),
                made: prepared.made.clone(),
                libraries,
                plan,
                left_out,
            };
            self.started(begun, sandbox, &copied)?;
            // Content that could not be brought looks like damage to the server.
            match self.report.broken.as_ref().and_then(|_| (mount.outside)()) {
                Some(e) => Err(e.context("bring content").hint(recovery::NOT_KNOWN)),
                None => Ok(()),
            }
        });
        match done {
            Err(e) if is_broken(&e) => {
                self.broken(Phase::Copy, e.to_string());
                Ok(())
            }
            done => done,
        }
    }

    fn note_libraries(&mut self, libraries: &Libraries) {
        let notes = &mut self.report.notes;
        if !libraries.left_out.is_empty() {
            let names = libraries.left_out.join(", ");
            notes.push(format!("the server was started without {names} of shared_preload_libraries: nothing of the cluster runs by itself in a drill"));
        }
        if !libraries.missing.is_empty() {
            let names = libraries.missing.join(", ");
            notes.push(format!("{names} of shared_preload_libraries is not installed on this host, and WAL may need it: install it where the cluster is to be restored"));
        }
    }

    /// Starts the server, waits for the target, and checks what is there.
    fn started(&mut self, begun: &Begun<'_>, sandbox: &Sandbox, copied: &Copied) -> Result<()> {
        let data = sandbox.data();
        let quarantine = Quarantine {
            folder: sandbox.path(),
            data: &data,
            programs: begun.programs,
            before: &copied.before,
            fetches_outside: copied.fetches_outside,
            listens: None,
            lasts: Lasts::Passing,
        };
        let session = begun.session;
        // They outlive the server.
        let tablespaces = PrivateTablespaces::mount(&copied.made, &|oid| sandbox.tablespace(oid))?;
        let mut server = quarantine.start(&session.host, &copied.libraries, &copied.settings)?;
        session.host.progress.phase("replay", None);
        let recovery = recovery::wait(session, &mut server)?;
        let replayed = Some(copied.plan.bytes_to_replay);
        self.report.phases.extend(recovery.phases(replayed));
        if let Some((phase, cause)) = recovery.broken {
            self.broken(phase, cause);
            return Ok(());
        }
        tablespaces.lead(&mut server, &data)?;
        let comparing = Instant::now();
        let compared = comparison::compare(&mut server, &data, &copied.plan);
        let Some(compared) = self.answered(session, Phase::Compare, compared)? else {
            return Ok(());
        };
        self.report.reached_lsn = compared.reached;
        self.report.new_timeline = compared.timeline;
        if compared.checks.iter().all(|check| check.passed) {
            let backup_stop = copied.plan.backup.as_ref().map(|b| b.stop_time);
            let last_commit = copied.plan.last_commit.map(|c| c.time);
            self.report.reached_time = last_commit.or(backup_stop);
        }
        self.add(compared.checks);
        self.time(Phase::Compare, comparing, None);
        self.check(begun, copied, &mut server, &data)
    }

    /// The answer of a server that still runs; none from one that was lost or does not answer, which is broken then.
    fn answered<T>(
        &mut self,
        session: &Session,
        phase: Phase,
        answer: Result<T>,
    ) -> Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            // Not by itself.
            Err(_) if session.host.is_stopping() => session.host.check_stop().map(|()| None),
            // The server has answered, and our own client does not take it.
            Err(e) if is_own_limit(&e) => Err(e),
            Err(e) if is_broken(&e) || quarantine::is_passing(&e) => {
                self.broken(phase, e.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Takes what a phase of checks finds; says whether the server answered.
    fn looked(
        &mut self,
        session: &Session,
        phase: Phase,
        look: impl FnOnce() -> Result<Findings>,
    ) -> Result<bool> {
        let checking = Instant::now();
        let Some(found) = self.answered(session, phase, look())? else {
            return Ok(false);
        };
        self.take(phase, found);
        self.time(phase, checking, None);
        Ok(true)
    }

    /// Checks the content of the recovered cluster.
    fn check(
        &mut self,
        begun: &Begun<'_>,
        copied: &Copied,
        server: &mut Quarantined,
        data: &Path,
    ) -> Result<()> {
        let session = begun.session;
        let is_fast = begun.asked.is_fast;
        if is_fast {
            let phases = [Phase::Amcheck, Phase::Pages];
            self.report.not_checked.extend(phases);
            let note = "the drill was fast: only what replay and your own queries read was brought from the repository and checked";
            self.report.notes.push(note.to_owned());
        } else {
            session.host.progress.phase("amcheck", None);
            let look = || amcheck::run(session, server, &copied.left_out);
            if !self.looked(session, Phase::Amcheck, look)? {
                return Ok(());
            }
        }
        if !begun.asked.checks.is_empty() {
            let look = || checks::run(session, server, &begun.asked.checks, &copied.left_out);
            if !self.looked(session, Phase::Checks, look)? {
                return Ok(());
            }
        }
        let checking = Instant::now();
        session.host.progress.phase("checksums", None);
        match server.stop(&|| session.host.check_stop()) {
            Err(e) if e.code() == Code::Server => self.broken(Phase::Pages, e.to_string()),
            stopped => stopped?,
        }
        if !is_fast {
            let found = pages::run(session, begun.programs, data)?;
            self.take(Phase::Pages, found);
            self.time(Phase::Pages, checking, None);
        }
        Ok(())
    }

    /// Records the result, and returns it.
    fn end(self, session: &Session, place: &Place) -> Result<Report> {
        let mut report = self.report;
        report.passed = report.broken.is_none();
        let passed = report.checks.iter().filter(|c| c.passed).count() as u64;
        let drill = Drill {
            backup: report.backup.clone(),
            target: self.kind.to_owned(),
            seed: report.seed,
            reached_lsn: report.reached_lsn,
            reached_time: report.reached_time,
            failed: report.broken.as_ref().map(|b| b.phase),
            phases: report.phases.clone(),
            checks_passed: passed,
            checks_failed: report.checks.len() as u64 - passed,
            not_checked: report.not_checked.clone(),
        };
        let recorded = place.record(session, &drill);
        report.not_recorded = recorded.err().map(|e| e.to_string());
        Ok(report)
    }
}

/// The parts of a drill that stay the same while it goes on.
struct Begun<'a> {
    session: &'a Session,
    asked: &'a Asked,
    programs: &'a Programs,
}

/// A restore that was planned.
struct Ready {
    prepared: Box<Prepared>,
    libraries: Libraries,
    /// The plan that is carried out.
    plan: Plan,
    /// Databases without content, by their oid.
    left_out: Vec<u32>,
}

/// A copy that was written, or that appears as it is read.
struct Copied {
    /// Settings of recovery.
    settings: Vec<Setting>,
    /// The words before the server's own.
    before: Vec<String>,
    /// Whether this process fetches its WAL.
    fetches_outside: bool,
    /// The tablespaces that recovery makes.
    made: Made,
    libraries: Libraries,
    /// The plan that it was written by.
    plan: Plan,
    /// Databases without content, by their oid.
    left_out: Vec<u32>,
}

/// Checks of one phase, and what could not be checked.
#[derive(Default)]
struct Findings {
    checks: Vec<Checked>,
    notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_with_the_archive_proves_that_recovery_is_broken() {
        let of = |code| Error::new(code, "x");
        assert!(is_broken(&of(Code::Damaged)) && is_broken(&of(Code::Findings)));
        assert!(!is_broken(&of(Code::Damaged).frozen()));
        for code in [Code::Unreachable, Code::Unsupported, Code::Full, Code::Key] {
            assert!(!is_broken(&of(code)), "{code:?}");
        }
    }
}
