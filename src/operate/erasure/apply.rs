//! Runs erasures on a restored copy before anybody else can connect to it.
//!
//! The copy's own server runs in quarantine (`operate::quarantine`): a socket in a private folder, no archiving, no code of the cluster that
//! runs by itself. Recovery ends at its target, and a new timeline begins, as it would with the operator's start; the guard of a copy and
//! `archive_mode = off` keep both out of the archive, and `pitr adopt` archives the history later. Nothing is recorded in the directory: a
//! run that was killed is repeated from its beginning, so scripts must bear to be run twice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Entry, Listing, list};
use crate::archive::datadir::{DataDirectory, GUARD, read_small};
use crate::archive::guard::{self, UNFINISHED};
use crate::archive::server_conf;
use crate::err;
use crate::error::{Error, Result};
use crate::lock;
use crate::operate::drill::recovery;
use crate::operate::drill::sandbox::{self, Sandbox};
use crate::operate::programs::Programs;
use crate::operate::quarantine::{self, Lasts, Libraries, Quarantine, Quarantined};
use crate::operate::session::Session;
use crate::pg::control::ControlFile;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::process;
use crate::repo::erasure::Erasure;

/// The state after a refusal.
const NOTHING: &str = "Nothing was done.";

/// A copy, and the erasures that are recorded of its cluster.
pub struct Prepared {
    directory: DataDirectory,
    control: ControlFile,
    programs: Programs,
    /// Everything that is recorded.
    pub listing: Listing,
}

/// The outcome of an erasure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its script was run and committed.
    Applied,
    /// The copy has it: recovery went beyond it.
    Contained,
    /// Its script failed, and nothing of it was committed.
    Failed(String),
}

/// An erasure, and what became of it.
#[derive(Debug, Serialize)]
pub struct Applied {
    /// Its name.
    pub id: String,
    /// The database.
    pub database: String,
    /// The outcome.
    pub outcome: Outcome,
}

/// Looks which erasures there are, and whether they can be run on a data directory.
///
/// # Errors
/// `Refused` for root, and for a directory that is no restored copy, is not ready, or would not take writes; those of [`list`].
pub fn prepare(session: &Session, pgdata: &Path, bin: Option<&Path>) -> Result<Prepared> {
    let refused = |why: String| err!(Refused, "{why}");
    if rustix::process::geteuid().is_root() {
        return Err(refused("PostgreSQL refuses to run as root".into()).hint(
            "Nothing was done. Run it as the server's user: sudo -u postgres pitr erasure apply",
        ));
    }
    let shown = pgdata.display();
    // The server's working directory is compared with it.
    let path = session.environment.absolute(pgdata).canonicalize();
    let path = path.map_err(|e| Error::from_io(format!("look for \"{shown}\""), e))?;
    let directory = DataDirectory::at(&path);
    if directory.wal().join(UNFINISHED).exists() {
        return Err(
            refused(format!("the restore into \"{shown}\" is not finished"))
                .hint("Nothing was done. Run the restore again: it resumes."),
        );
    }
    let control = directory.control()?.ok_or_else(|| {
        refused(format!("\"{shown}\" is not a data directory"))
            .hint("Nothing was done. Name the copy's data directory with --pgdata.")
    })?;
    if !directory.has(&format!("pg_wal/{GUARD}")) {
        return Err(refused(format!("\"{shown}\" is not a restored copy: it has no guard"))
            .hint("Nothing was done. Scripts run on copies that do not archive alone: of a new timeline that begins in private nothing would be archived.\nRestore without --adopt, run this, then run pitr adopt. On the cluster itself run the scripts by hand: pitr erasure show ID"));
    }
    if directory.has("standby.signal") {
        return Err(
            refused(format!("\"{shown}\" is a standby, which takes no writes"))
                .hint("Nothing was done. A standby gets erasures from its primary."),
        );
    }
    let action = server_conf::value_of(&path, "recovery_target_action");
    if directory.has("recovery.signal") && action.as_deref() != Some("promote") {
        return Err(refused(format!("recovery of \"{shown}\" does not end with a promotion, and only then it takes writes"))
            .hint("Nothing was done. Restore with --target-action promote. Or start it, look at it where nobody else can, promote it, stop it, and run this again."));
    }
    let guard = guard::read(&directory).ok().flatten();
    let cluster = session.flags.cluster.clone();
    let cluster = cluster.or(guard.map(|guard| guard.cluster));
    let listing = match &cluster {
        Some(name) => list(&session.on_cluster(name))?,
        None => list(session)?,
    };
    let damaged = |entry: &&Entry| entry.erasure.is_none();
    if let Some(entry) = listing.erasures.iter().find(damaged) {
        let why = entry.damage.as_deref().unwrap_or("it cannot be read");
        return Err(err!(Damaged, "erasure \"{}\" cannot be read: {why}", entry.id).hint(format!(
            "{NOTHING} The copy may hold what it erases: let nobody connect. \"pitr repo sync\" brings it back where another repository has it whole.\nIf it is lost, or somebody forged it: pitr erasure remove {} --confirm",
            entry.id
        )));
    }
    let programs = quarantine::programs(&session.environment, control.major.number(), bin)?;
    Ok(Prepared {
        directory,
        control,
        programs,
        listing,
    })
}

impl Prepared {
    /// Starts the copy in private, runs the erasures that it lacks, oldest first, and stops it. One that fails does not keep the others
    /// from being run.
    ///
    /// # Errors
    /// `Refused` while a server runs on the directory; `Locked` while another process does this; `Server` where it does not recover.
    pub fn run(&self, session: &Session) -> Result<Vec<Applied>> {
        let _lock = self.lock()?;
        self.clear()?;
        let sandbox = Sandbox::make(&session.host.scratch, false).map_err(|e| {
            e.hint("Nothing was done. Set TMPDIR to a directory with a short path, say /tmp.")
        })?;
        let quarantine = Quarantine {
            folder: sandbox.path(),
            data: self.directory.path(),
            programs: &self.programs,
            before: &[],
            listens: None,
            lasts: Lasts::Staying(self.control.settings),
        };
        let preload = server_conf::value_of(self.directory.path(), "shared_preload_libraries");
        let libraries = Libraries::of(&preload.unwrap_or_default(), &self.programs);
        if !libraries.left_out.is_empty() {
            session.note(&format!(
                "the server is started without {} of shared_preload_libraries: nothing of the cluster runs by itself",
                libraries.left_out.join(", ")
            ));
        }
        session.host.progress.phase("replay", None);
        let mut server = quarantine.start(&session.host, &libraries, &[])?;
        if let Some((_, cause)) = recovery::wait(session, &mut server)?.broken {
            return Err(err!(Server, "the copy did not recover: {cause}").hint(
                "No erasure was run. The directory is as an ordinary start would have left it.",
            ));
        }
        session.host.progress.phase("erase", None);
        server.lift_time_limit();
        let done = self.erase(session, &mut server);
        // A wish to stop has ended the server at once, which says nothing of the scripts.
        session.host.check_stop()?;
        let done = done?;
        server.stop(&|| session.host.check_stop())?;
        // "pg_ctl restart" would start the private server again.
        let _ = std::fs::remove_file(self.directory.path().join("postmaster.opts"));
        Ok(done)
    }

    /// Keeps others from doing the same; PostgreSQL leaves the guard alone.
    fn lock(&self) -> Result<File> {
        let path = self.directory.wal().join(GUARD);
        let failed = |e| Error::from_io(format!("lock \"{}\"", path.display()), e);
        let file = File::open(&path).map_err(failed)?;
        match lock::within(&file, Duration::ZERO).map_err(failed)? {
            true => Ok(file),
            false => Err(err!(Locked, "another process runs erasures on this copy")
                .hint("Nothing was done. Wait for its end, and run this again.")),
        }
    }

    /// Ends the private server of a run that was killed.
    fn clear(&self) -> Result<()> {
        let path = self.directory.path();
        let Some((pid, _)) = self.directory.server() else {
            return Ok(());
        };
        // PostgreSQL: src/include/utils/pidfile.h, LOCK_FILE_LINE_SOCKET_DIR.
        let text = read_small(&path.join("postmaster.pid")).unwrap_or_default();
        let folder = text.lines().nth(4).map(PathBuf::from);
        let name = folder.as_deref().and_then(Path::file_name);
        let is_ours = name.is_some_and(|n| n.to_string_lossy().starts_with(sandbox::PREFIX));
        if !process::is_alive(pid) || (is_ours && sandbox::stop(path)) {
            return Ok(());
        }
        Err(err!(
            Refused,
            "a server runs on \"{}\" (process {pid})",
            path.display()
        )
        .hint("Nothing was done. Users may be connected already. Stop it, and run this again."))
    }

    fn erase(&self, session: &Session, server: &mut Quarantined) -> Result<Vec<Applied>> {
        let (history, end) = self.reached(server)?;
        let mut done = Vec::new();
        for entry in &self.listing.erasures {
            session.host.check_stop()?;
            let identifier = self.control.system_identifier;
            let (database, outcome) = match &entry.erasure {
                Some(own) if entry.is_within(identifier, (&history, end)) => {
                    (own.database.clone(), Outcome::Contained)
                }
                _ => {
                    let erasure = self.listing.read(&entry.id)?;
                    let outcome = match script(server, &erasure) {
                        Ok(()) => Outcome::Applied,
                        Err(e) => Outcome::Failed(e.to_string()),
                    };
                    (erasure.database, outcome)
                }
            };
            done.push(Applied {
                id: entry.id.clone(),
                database,
                outcome,
            });
        }
        Ok(done)
    }

    /// The history of the copy's own timeline, and the position at which it begins: where recovery ended.
    fn reached(&self, server: &mut Quarantined) -> Result<(History, Lsn)> {
        let mut sql = server.connect("template1")?;
        let rows = sql.query("select left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)")?;
        let timeline: TimelineId = rows.value(0, 0)?;
        let path = self.directory.wal().join(timeline.history_file_name());
        let history = match guard::read_limited(&path)? {
            Some(bytes) => History::parse(timeline, &bytes)?,
            None => History::root(timeline),
        };
        let end = history.parent().map_or(Lsn(0), |(_, lsn)| lsn);
        Ok((history, end))
    }
}

/// Runs a script in one transaction.
fn script(server: &mut Quarantined, erasure: &Erasure) -> Result<()> {
    const TRANSACTION: &str = "select txid_current()";
    let mut sql = server.connect(&erasure.database)?;
    // As in production: foreign keys cascade, and triggers fire.
    sql.query("set session_replication_role = origin")?;
    sql.query("begin")?;
    let own = sql.query(TRANSACTION)?;
    sql.query(&erasure.sql)?;
    if sql.query(TRANSACTION)? != own {
        return Err(err!(
            Server,
            "the script ends its transaction itself: a part of it may be committed"
        ));
    }
    sql.query("commit").map(drop)
}
