//! Clones: a moment as a running server before anything was copied.
//!
//! | file | what it owns |
//! |---|---|
//! | `namespace` | mounts that nobody else sees |
//! | `folder` | the private folder, what is known of a clone, and what was left over |
//! | `copied` | the same for a short while where nothing can be mounted: one database is copied first |
//!
//! A clone is a restore whose content is brought when it is read (`operate::mounted`), with a server in quarantine on it. Its process
//! serves the mount as long as the server runs. It is thrown away in the end, unless it was kept.

mod copied;
pub mod folder;
pub mod namespace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use self::folder::{Folder, Stage, State};
use super::choice::{Question, Unless};
use super::drill::recovery;
use super::mounted::{self, Mount, SetOnDrop};
use super::opened;
use super::programs::Programs;
use super::quarantine::{self, Libraries, Quarantine, Quarantined};
use super::reading::Reading;
use super::restore;
use super::restoring::Prepared;
use super::session::Session;
use super::target::AskedTarget;
use crate::archive::guard::{AUTO_CONF, COMMENT};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::conf::{self, Setting};
use crate::pg::time::TimestampTz;
use crate::plan::recovery::{Action, Plan};
use crate::restore::hollow;
use crate::restore::target_dir::Mapping;

/// How often a clone looks at its server and at what is wanted of it.
const PAUSE: Duration = Duration::from_millis(100);

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The recovery target.
    pub target: AskedTarget,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<PathBuf>,
    /// The port of this host that the server listens on.
    pub port: Option<u16>,
    /// How long the clone lives.
    pub lasts: Option<Duration>,
    /// Client programs of the same folder that are needed besides the server's.
    pub clients: &'static [&'static str],
}

/// A server on a clone.
pub struct Running<'r> {
    /// The server.
    pub server: &'r mut Quarantined,
    /// Its record.
    pub state: &'r mut State,
    /// The programs of its major.
    pub programs: &'r Programs,
}

/// Requires what a clone needs of this host and of its user.
///
/// # Errors
/// `Refused`.
pub fn check_possible() -> Result<()> {
    check_user()?;
    mounted::check_possible()
}

/// Requires a user whose server PostgreSQL starts.
///
/// # Errors
/// `Refused`.
pub fn check_user() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Err(err!(Refused, "PostgreSQL refuses to run as root, so a clone cannot run as root")
            .hint("Nothing was done. Run it as the server's user or another one that may read the configuration: sudo -u postgres pitr clone"));
    }
    Ok(())
}

/// A clone that is being made.
struct Making<'a> {
    session: &'a Session,
    asked: &'a Asked,
    folder: &'a Folder,
    programs: Programs,
    state: State,
    started: Instant,
}

impl<'a> Making<'a> {
    fn begin(
        (session, asked, folder): (&'a Session, &'a Asked, &'a Folder),
        (prepared, plan): (&Prepared, &Plan),
        started: Instant,
    ) -> Result<Making<'a>> {
        let bin = asked.bin.as_deref();
        let programs = quarantine::programs(&session.environment, prepared.major(), bin)?;
        asked.clients.iter().try_for_each(|name| {
            programs
                .client(name, session.environment.get("PATH"))
                .map(drop)
        })?;
        let state = State {
            id: folder::id_of(folder.path()),
            cluster: prepared.opened.layout.name().to_owned(),
            repository: prepared.opened.reading.configured.name.clone(),
            backup: prepared.job.backup.to_string(),
            target: plan.target.target.to_string(),
            stage: Stage::Starting,
            began: session.host.now(),
            ends: None,
            pid: std::process::id(),
            data: folder.data(),
            reached_lsn: None,
            connection: None,
            ready_after_ms: None,
            not_kept: None,
        };
        folder.put(&state)?;
        Ok(Making {
            session,
            asked,
            folder,
            programs,
            state,
            started,
        })
    }

    /// Starts the server, and lets it replay to the target. The server is ended at once when `host` wants to stop.
    fn recover(
        &mut self,
        prepared: &Prepared,
        (settings, host): (&[Setting], &Host),
    ) -> Result<Quarantined> {
        let session = self.session;
        let needs_network = self.asked.port.is_some() || needs_network(prepared);
        let before = namespace::before_server(&session.environment, needs_network);
        let data = self.folder.data();
        let quarantine = Quarantine {
            folder: self.folder.path(),
            data: &data,
            programs: &self.programs,
            before: &before,
            listens: self.asked.port,
        };
        let preload = prepared.brought().value("shared_preload_libraries");
        let libraries = Libraries::of(preload.unwrap_or_default(), &self.programs);
        tell_libraries(session, &libraries);
        session.host.progress.phase("replay", None);
        self.state.stage = Stage::Replaying;
        self.folder.put(&self.state)?;
        let mut server = quarantine.start(host, &libraries, settings)?;
        let recovered = recovery::wait(session, &mut server)?;
        if let Some((_, cause)) = recovered.broken {
            return Err(err!(Server, "the server did not reach the target: {cause}"));
        }
        let mut sql = server.connect("template1")?;
        self.state.reached_lsn = sql
            .query("select pg_last_wal_replay_lsn()")?
            .text(0, 0)?
            .and_then(|lsn| lsn.parse().ok());
        drop(sql);
        self.ready(connection(&server, self.folder))?;
        Ok(server)
    }

    fn ready(&mut self, connection: String) -> Result<()> {
        let state = &mut self.state;
        state.connection = Some(connection);
        state.ready_after_ms = u64::try_from(self.started.elapsed().as_millis()).ok();
        state.ends = self.asked.lasts.and_then(|lasts| {
            let micros = i64::try_from(lasts.as_micros()).ok()?;
            Some(TimestampTz(self.session.host.now().0.checked_add(micros)?))
        });
        state.stage = Stage::Ready;
        self.folder.put(state)
    }
}

/// Makes a clone in a folder, and does `work` with its server. The server is ended afterwards, and the mount is gone. Also returns the
/// restore that it was.
///
/// # Errors
/// Those of the plan; `OutOfReach`; those of [`mounted::with_mount`] and of `work`; `Server` where the server does not recover.
fn with_server<T>(
    session: &Session,
    (asked, host): (&Asked, &Host),
    folder: &Folder,
    work: impl FnOnce(&mut Running<'_>, &mut Mount<'_>) -> Result<T>,
) -> Result<(T, Box<Prepared>)> {
    let started = Instant::now();
    session.host.progress.phase("plan", None);
    let tablespace = |oid| folder.tablespace(oid);
    let (prepared, plan) = prepare(session, &asked.target, &folder.data(), &tablespace)?;
    let place = (session, asked, folder);
    let mut making = Making::begin(place, (&prepared, &plan), started)?;
    let is_alone = namespace::is_inside(&session.environment);
    let done = mounted::with_mount(session, &prepared, (&folder.tree(), is_alone), |mount| {
        let mut server = making.recover(&prepared, (&mount.settings, host))?;
        let mut running = Running {
            server: &mut server,
            state: &mut making.state,
            programs: &making.programs,
        };
        work(&mut running, mount)
    })?;
    Ok((done, prepared))
}

/// Whether the server's restore_command needs a network: it asks all repositories for what is not there, and does where one is no directory.
pub fn needs_network(prepared: &Prepared) -> bool {
    let mut repositories = prepared.opened.reading.settings.repositories.iter();
    repositories.any(|one| one.location.directory().is_none())
}

/// Plans a moment, and decides the restore that has its content brought when it is read.
///
/// # Errors
/// Those of the plan; `OutOfReach`; those of [`restore::prepare`].
pub fn prepare(
    session: &Session,
    target: &AskedTarget,
    data: &Path,
    tablespace: &dyn Fn(u32) -> PathBuf,
) -> Result<(Box<Prepared>, Plan)> {
    let plan = planned(session, target)?;
    let wanted = wanted((target, &plan), data, tablespace)?;
    Ok((ready(session, &wanted)?, plan))
}

/// The restore of a plan, whose content is brought when it is read.
fn wanted(
    (target, plan): (&AskedTarget, &Plan),
    data: &Path,
    tablespace: &dyn Fn(u32) -> PathBuf,
) -> Result<restore::Asked> {
    let backup = plan.backup.as_ref();
    let backup = backup.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    let mappings = backup.tablespaces.iter().map(|one| Mapping {
        old: one.oid.to_string().into(),
        new: tablespace(one.oid),
    });
    Ok(restore::Asked {
        to: data.to_owned(),
        target: AskedTarget {
            backup: Some(backup.id.to_string()),
            ..target.clone()
        },
        action: Action::Promote,
        mappings: mappings.collect(),
        databases: None,
        delta: false,
        is_hollow: true,
        replace: false,
        adopt: false,
        is_confirmed: false,
        dry_run: false,
    })
}

fn ready(session: &Session, wanted: &restore::Asked) -> Result<Box<Prepared>> {
    match restore::prepare(session, wanted)?.0 {
        restore::Way::Ready(prepared) => Ok(prepared),
        restore::Way::OutOfReach(unreached) => Err(unreached.error),
    }
}

fn planned(session: &Session, target: &AskedTarget) -> Result<Plan> {
    let reading = Reading::open(session)?;
    let opened = opened::open(session, reading)?;
    let question = Question {
        target,
        action: Action::Promote,
        is_carried_out: true,
    };
    let chosen = question.answer(session, opened)?;
    match chosen.unless {
        None => Ok(chosen.plan),
        Some(Unless::NotKnown(e)) => Err(e),
        Some(Unless::OutOfReach { why, .. }) => Err(err!(OutOfReach, "{why}")
            .hint("Nothing was done. pitr plan with the same target names the nearest moments.")),
    }
}

fn tell_libraries(session: &Session, libraries: &Libraries) {
    if !libraries.left_out.is_empty() {
        let names = libraries.left_out.join(", ");
        session.note(&format!("the server is started without {names} of shared_preload_libraries: nothing of the cluster runs by itself in a clone"));
    }
    if !libraries.missing.is_empty() {
        let names = libraries.missing.join(", ");
        session.warn(&format!(
            "{names} of shared_preload_libraries is not installed on this host, and WAL may need it"
        ));
    }
}

/// The arguments of psql that lead to the server.
fn connection(server: &Quarantined, folder: &Folder) -> String {
    format!(
        "host={} port={} user={} dbname=postgres",
        folder.path().display(),
        server.port(),
        server.superuser()
    )
}

/// Makes a clone below a directory for as long as `work` takes, and throws it away. A host that offers no mounts has what
/// `database` needs copied instead.
///
/// # Errors
/// `Refused` for root; those of the plan; `OutOfReach`; those of [`mounted::with_mount`], of a restore, and of `work`; `Server`.
pub fn for_a_while<T>(
    session: &Session,
    asked: &Asked,
    (database, below): (&str, &Path),
    work: impl FnOnce(&Folder, &mut Running<'_>) -> Result<T>,
) -> Result<T> {
    check_user()?;
    let folder = Folder::make(&Folder::choose(below, session.host.random())?)?;
    let done = match mounted::check_possible() {
        Ok(()) => {
            let done = with_server(session, (asked, &session.host), &folder, |running, _| {
                running.server.lift_time_limit();
                work(&folder, running)
            });
            done.map(|(done, _)| done)
        }
        Err(_) => copied::with_server(session, asked, (&folder, database), |running| {
            running.server.lift_time_limit();
            work(&folder, running)
        }),
    };
    folder.remove();
    // The server was ended, and the session that asked it something says that it is gone.
    done.map_err(|e| session.host.check_stop().err().unwrap_or(e))
}

/// Serves a clone until it is stopped, its time is over or its server ends. One that was to be kept, and is whole, is left behind as a plain
/// data directory: then its state is returned.
///
/// # Errors
/// Those of the plan; `OutOfReach`; those of [`mounted::with_mount`]; `Server` where the server does not recover, or ended by itself.
pub fn serve(session: &Session, asked: &Asked, at: &Path) -> Result<Option<State>> {
    let folder = Folder::make(at)?;
    // The server is stopped in order where it is kept: the wish to stop does not reach it by itself.
    let host = Host {
        stop: Arc::default(),
        ..session.host.clone()
    };
    let served = with_server(session, (asked, &host), &folder, |running, mount| {
        let until = asked.lasts.map(|lasts| Instant::now() + lasts);
        attend(session, &folder, (running, mount), until)
    });
    match served {
        Ok((Some(state), prepared)) => {
            let kept = commit(&folder, &prepared, state.clone());
            if let Err(e) = &kept {
                // It holds all that was written to it, so it is not thrown away.
                let not_kept = Some(e.to_string());
                let _ = folder.put(&State {
                    connection: None,
                    not_kept,
                    ..state
                });
            }
            folder.release();
            kept.map(Some)
        }
        other => {
            folder.remove();
            other.map(|_| None)
        }
    }
}

/// Looks after a clone; returns its state where it is left behind, whose server was stopped in order.
fn attend(
    session: &Session,
    folder: &Folder,
    (running, mount): (&mut Running<'_>, &mut Mount<'_>),
    mut until: Option<Instant>,
) -> Result<Option<State>> {
    let bring_all = mount.bring_all;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetOnDrop(&is_over);
        let mut copying = None;
        loop {
            if running.server.ended()?.is_some() {
                let words = last_lines(&running.server.log());
                let ended = err!(Server, "the server of the clone has ended by itself");
                if running.state.stage != Stage::Whole {
                    return Err(ended.hint(format!("Its words: {words}")));
                }
                warn_crashed(session, &ended, &words);
                return Ok(Some(running.state.clone()));
            }
            if folder.is_wanted() && copying.is_none() && running.state.stage == Stage::Ready {
                copying = Some(scope.spawn(|| bring_all(&is_over)));
                running.state.stage = Stage::Copying;
                running.state.not_kept = None;
                // The wish counts more than the time that it was given, also where the copy fails.
                until = None;
                running.state.ends = None;
                folder.put(running.state)?;
            }
            if let Some(done) = copying.take_if(|copying| copying.is_finished()) {
                let panicked = |_| Err(err!(Internal, "a thread of the clone panicked"));
                match done.join().unwrap_or_else(panicked) {
                    Ok(()) => running.state.stage = Stage::Whole,
                    Err(_) if session.host.is_stopping() => return Ok(None),
                    // The clone and what was written to it stay, and it can be asked for again.
                    Err(e) => {
                        let e = e.context("copy the rest of the clone");
                        session.warn(&format!("the clone is not kept: {e}"));
                        folder.unwant();
                        running.state.stage = Stage::Ready;
                        running.state.not_kept = Some(e.to_string());
                    }
                }
                folder.put(running.state)?;
            }
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if session.host.is_stopping() || (is_over && folder.close()) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        if running.state.stage != Stage::Whole {
            return Ok(None);
        }
        if let Err(e) = running.server.stop(&|| Ok(())) {
            warn_crashed(session, &e, &last_lines(&running.server.log()));
        }
        Ok(Some(running.state.clone()))
    })
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

/// Makes a whole directory, which is not mounted any more, durable and ready for a server.
fn commit(folder: &Folder, prepared: &Prepared, state: State) -> Result<State> {
    let path = folder.data().join(AUTO_CONF);
    let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
    // The quarantine had taken out what the cluster itself has set there.
    let now = std::fs::read(&path).map_err(failed)?;
    let ours = conf::settings(&now);
    let text = conf::append(&prepared.brought().auto, COMMENT, &ours)?;
    std::fs::write(&path, text).map_err(failed)?;
    let (target, survey) = prepared.place();
    hollow::commit(target, &prepared.job, survey.group)?;
    let state = State {
        stage: Stage::Kept,
        connection: None,
        ends: None,
        ..state
    };
    folder.put(&state)?;
    Ok(state)
}
