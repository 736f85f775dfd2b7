//! Clones: a moment as a running server before anything was copied.
//!
//! | file | what it owns |
//! |---|---|
//! | `below` | the directory below which clones lie |
//! | `begin` | the process of a clone, until it takes queries |
//! | `namespace` | mounts that nobody else sees |
//! | `folder` | the private folder, what is known of a clone, and what was left over |
//! | `lifetime` | what happens while it serves: its end, and the wish to keep it |
//! | `durability` | how a clone that is kept becomes durable while it serves |
//! | `last_step` | how it becomes a plain data directory |
//! | `stop` | its end by hand |
//! | `copied` | the same for a short while where nothing can be mounted: one database is copied first |
//!
//! A clone is a restore whose content is brought when it is read (`operate::mounted`), with a server in quarantine on it. Its process
//! serves the mount as long as the server runs. It is thrown away in the end, unless it was kept.

pub mod begin;
pub mod below;
mod copied;
mod durability;
pub mod folder;
mod last_step;
mod lifetime;
pub mod namespace;
pub mod stop;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::folder::{Folder, Stage, State};
use self::lifetime::Left;
use super::drill::recovery;
use super::erasure::apply::{Consent, HAS_NETWORK};
use super::erasure::scripts::{self, Scripts};
use super::mounted::{self, Mount};
use super::private_tablespaces::{self, PrivateTablespaces};
use super::programs::Programs;
use super::quarantine::{self, Lasts, Libraries, Quarantine, Quarantined};
use super::restore;
use super::restoring::Prepared;
use super::session::Session;
use super::target::AskedTarget;
use crate::archive::datadir::DataDirectory;
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::conf::Setting;
use crate::pg::time::TimestampTz;
use crate::plan::recovery::Action;
use crate::restore::settings::Brought;
use crate::restore::target_dir::Mapping;

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
    /// The operator's word about erasures; none: nobody but pitr asks the server, about its catalog alone, and no script is run.
    pub consent: Option<Consent>,
}

/// A server on a clone.
pub struct Running<'r> {
    pub server: &'r mut Quarantined,
    /// Its record.
    pub state: &'r mut State,
    /// The programs of its major.
    pub programs: &'r Programs,
    /// The configuration of the cluster, which the server does not have.
    pub brought: &'r Brought,
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
    /// The erasures that the moment lacks.
    scripts: Option<Scripts>,
}

/// The start of a clone's server, as often as it is started.
struct Start<'s> {
    data: &'s Path,
    libraries: &'s Libraries,
    settings: &'s [Setting],
    host: &'s Host,
    /// Whether this process fetches the server's WAL.
    fetches_outside: bool,
}

impl<'a> Making<'a> {
    fn begin(
        (session, asked, folder): (&'a Session, &'a Asked, &'a Folder),
        prepared: &Prepared,
        started: Instant,
    ) -> Result<Making<'a>> {
        let plan = prepared.plan()?;
        let bin = asked.bin.as_deref();
        let programs = quarantine::programs(&session.environment, prepared.major(), bin)?;
        let search = session.environment.get("PATH");
        let mut clients = asked.clients.iter();
        clients.try_for_each(|name| programs.client(name, search).map(drop))?;
        let scripts = match &asked.consent {
            Some(consent) => scripts::needed(session, (&prepared.opened, plan), consent)?,
            None => None,
        };
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
        last_step::prepare(folder, &prepared.brought().auto, session.host.random())?;
        Ok(Making {
            session,
            asked,
            folder,
            programs,
            state,
            started,
            scripts,
        })
    }

    /// The directories of tablespaces that recovery makes.
    fn tablespaces(&self, prepared: &Prepared) -> Result<PrivateTablespaces> {
        PrivateTablespaces::mount(&prepared.made, &|oid| self.folder.tablespace(oid))
    }

    /// Starts the server, lets it replay to the target, and has it repeat the erasures that the moment lacks. The server is ended at once when `host`
    /// wants to stop.
    fn recover(
        &mut self,
        (prepared, tablespaces): (&Prepared, &PrivateTablespaces),
        (settings, host): (&[Setting], &Host),
    ) -> Result<Quarantined> {
        let session = self.session;
        let has_network = self.asked.port.is_some();
        let before = namespace::before_server(&session.environment, has_network);
        let preload = prepared.brought().value("shared_preload_libraries");
        let libraries = Libraries::of(preload.unwrap_or_default(), &self.programs);
        tell_libraries(session, &libraries);
        session.host.progress.phase("replay", None);
        self.state.stage = Stage::Replaying;
        self.folder.put(&self.state)?;
        let start = Start {
            data: &self.folder.data(),
            libraries: &libraries,
            settings,
            host,
            fetches_outside: needs_network(prepared),
        };
        let mut server = self.replayed(&start, (&before, self.asked.port))?;
        let reached = server
            .connect("template1")?
            .query("select pg_last_wal_replay_lsn()")?;
        self.state.reached_lsn = reached.text(0, 0)?.and_then(|lsn| lsn.parse().ok());
        tablespaces.lead(&mut server, start.data)?;
        let server = self.erased(&start, (&before, server))?;
        self.ready(connection(&server, self.folder))?;
        Ok(server)
    }

    /// Starts the server behind these words, and waits for the end of its recovery.
    fn replayed(
        &self,
        start: &Start<'_>,
        (before, listens): (&[String], Option<u16>),
    ) -> Result<Quarantined> {
        let quarantine = Quarantine {
            folder: self.folder.path(),
            data: start.data,
            programs: &self.programs,
            before,
            fetches_outside: start.fetches_outside,
            listens,
            lasts: Lasts::Passing,
        };
        let mut server = quarantine.start(start.host, start.libraries, start.settings)?;
        fault::pause("clone_replay");
        let recovered = recovery::wait(self.session, &mut server)?;
        match recovered.broken {
            None => Ok(server),
            Some((_, cause)) => Err(err!(Server, "the server did not reach the target: {cause}")
                .hint("The copy is thrown away. Run the command again. Where it ends alike, pitr drill with the same target says where recovery breaks off, and --backup ID takes another backup.")),
        }
    }

    /// Has the server repeat the erasures that the moment lacks, before anybody knows how to connect. Triggers fire as in production, so it has no
    /// network then where the host can take it away.
    fn erased(
        &self,
        start: &Start<'_>,
        (before, mut server): (&[String], Quarantined),
    ) -> Result<Quarantined> {
        let Some(scripts) = &self.scripts else {
            return Ok(server);
        };
        let (session, directory) = (self.session, DataDirectory::at(start.data));
        session.host.progress.phase("erase", None);
        let alone = namespace::before_scripts(&session.environment);
        if alone.is_none() {
            session.note(HAS_NETWORK);
        }
        let alone = alone.unwrap_or_else(|| before.to_vec());
        let is_private = alone == before && self.asked.port.is_none();
        if !is_private {
            server.stop(&|| start.host.check_stop())?;
            server = self.replayed(start, (&alone, None))?;
        }
        scripts.repeat(session, &mut server, &directory)?;
        if !is_private {
            server.stop(&|| start.host.check_stop())?;
            server = self.replayed(start, (before, self.asked.port))?;
        }
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

/// A restore whose content is brought when it is read, as it was planned.
struct Planned {
    prepared: Box<Prepared>,
    started: Instant,
}

impl Planned {
    fn of(session: &Session, asked: &Asked, folder: &Folder) -> Result<Planned> {
        let started = Instant::now();
        session.host.progress.phase("plan", None);
        let places = (&*folder.data(), &*folder.tablespaces());
        let prepared = prepare(session, &asked.target, places)?;
        private_tablespaces::check(&prepared.made, &session.environment)?;
        Ok(Planned { prepared, started })
    }
}

/// Makes a clone in a folder, and does `work` with its server. The server is ended afterwards, and the mount is gone.
///
/// # Errors
/// Those of [`mounted::with_mount`] and of `work`; `Server` where the server does not recover.
fn with_server<T>(
    session: &Session,
    (asked, host): (&Asked, &Host),
    (planned, folder): (&Planned, &Folder),
    work: impl FnOnce(&mut Running<'_>, &mut Mount<'_>) -> Result<T>,
) -> Result<T> {
    let prepared = &planned.prepared;
    let mut making = Making::begin((session, asked, folder), prepared, planned.started)?;
    let is_alone = namespace::is_inside(&session.environment);
    mounted::with_mount(session, prepared, (&folder.tree(), is_alone), |mount| {
        // It outlives the server.
        let tablespaces = making.tablespaces(prepared)?;
        let mut server = making.recover((prepared, &tablespaces), (&mount.settings, host))?;
        let mut running = Running {
            server: &mut server,
            state: &mut making.state,
            programs: &making.programs,
            brought: prepared.brought(),
        };
        work(&mut running, mount)
    })
}

/// Whether restore_command needs a network: it asks all repositories for what is not there, and does where one is no directory.
pub fn needs_network(prepared: &Prepared) -> bool {
    let mut repositories = prepared.opened.reading.settings.repositories.iter();
    repositories.any(|one| one.location.directory().is_none())
}

/// Plans a moment, and decides the restore that has its content brought when it is read. All tablespaces lie below `tablespaces`.
///
/// # Errors
/// Those of [`restore::prepare`]; `OutOfReach`.
pub fn prepare(
    session: &Session,
    target: &AskedTarget,
    (data, tablespaces): (&Path, &Path),
) -> Result<Box<Prepared>> {
    ready(session, &wanted(target, (data, tablespaces)))
}

/// The restore of a moment for a server in quarantine, whose content is brought when it is read.
pub(super) fn wanted(target: &AskedTarget, (data, tablespaces): (&Path, &Path)) -> restore::Asked {
    restore::Asked {
        to: data.to_owned(),
        target: target.clone(),
        action: Action::Promote,
        mappings: vec![Mapping::every(tablespaces.to_owned())],
        databases: None,
        delta: false,
        is_hollow: true,
        is_private: true,
        replace: false,
        aside: false,
        adopt: false,
        is_confirmed: false,
        dry_run: false,
    }
}

fn ready(session: &Session, wanted: &restore::Asked) -> Result<Box<Prepared>> {
    match restore::prepare(session, wanted)?.0 {
        restore::Way::Ready(prepared) => {
            // Nobody else prints the plan: it may follow another life of the cluster than is meant.
            if let Some(plan) = &prepared.job.plan {
                plan.warnings.iter().for_each(|text| session.warn(text));
            }
            Ok(prepared)
        }
        restore::Way::OutOfReach(unreached) => Err(match unreached.error.code() {
            Code::OutOfReach => unreached.error.hint(
                "Nothing was done. pitr plan with the same target names the nearest moments.",
            ),
            _ => unreached.error,
        }),
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

/// Makes a clone below a directory for as long as `work` takes, and throws it away. On a host that offers no mounts, and of a backup that is
/// partial, what `database` needs is copied instead.
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
    let work = |running: &mut Running<'_>| {
        running.server.lift_time_limit();
        roll_back_prepared(session, running.server, database)?;
        work(&folder, running)
    };
    let done = planned_for(session, asked, &folder).and_then(|planned| match planned {
        Ok(planned) => {
            let planned = (&planned, &folder);
            let with = (asked, &session.host);
            with_server(session, with, planned, |running, _| work(running))
        }
        Err(why) => copied::with_server(session, (asked, why), (&folder, database), work),
    });
    folder.remove();
    // The server was ended, and the session that asked it something says that it is gone.
    done.map_err(|e| session.host.check_stop().err().unwrap_or(e))
}

/// Rolls back what was prepared in a database at the moment. Nobody saw that then, and its locks would hold up whoever reads it here for ever.
fn roll_back_prepared(session: &Session, server: &mut Quarantined, database: &str) -> Result<()> {
    let Ok(mut there) = server.connect(database) else {
        // Whoever asks for it says so.
        return Ok(());
    };
    let found = there.query("select pg_catalog.format('rollback prepared %L', gid), gid from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database() order by 2")?;
    for row in 0..found.rows.len() {
        let statement: String = found.value(row, 0)?;
        there.query(&statement)?;
        let name: String = found.value(row, 1)?;
        session.note(&format!(
            "prepared transaction \"{}\" was open at that moment, and is rolled back in the copy",
            name.escape_debug()
        ));
    }
    Ok(())
}

/// The restore that is mounted; else why it cannot be.
fn planned_for(
    session: &Session,
    asked: &Asked,
    folder: &Folder,
) -> Result<std::result::Result<Planned, &'static str>> {
    if mounted::check_possible().is_err() {
        let why = "this host offers no mounts to this user (/dev/fuse would do)";
        return Ok(Err(why));
    }
    let planned = Planned::of(session, asked, folder)?;
    Ok(match planned.prepared.is_partial() {
        true => Err("the backup is partial"),
        false => Ok(planned),
    })
}

/// Serves a clone until it is stopped, its time is over or its server ends. One that was to be kept, and has all content, is left behind as
/// a plain data directory: then its state is returned.
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
    let served = Planned::of(session, asked, &folder).and_then(|planned| {
        let planned = (&planned, &folder);
        with_server(session, (asked, &host), planned, |running, mount| {
            let until = asked.lasts.map(|lasts| Instant::now() + lasts);
            lifetime::attend((session, &folder), running, mount, until)
        })
    });
    match served {
        Ok(Some(left)) => leave_behind(folder, left).map(Some),
        other => {
            folder.remove();
            other.map(|_| None)
        }
    }
}

/// Makes a clone that has all content a plain data directory. It holds all that was written to it, so it is not thrown away where that fails.
fn leave_behind(folder: Folder, left: Left) -> Result<State> {
    let Left { state, synced } = left;
    let is_durable = synced.is_ok();
    let kept = synced.and_then(|()| last_step::take(folder.path(), &state));
    if let Err(e) = &kept {
        let _ = folder.put(&folder::not_kept(&state, e));
    }
    // A durable one whose last step has failed keeps its lock, by which the next command finds it and tries again.
    if kept.is_ok() || !is_durable {
        folder.release();
    }
    kept
}
