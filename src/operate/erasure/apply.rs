//! Runs erasures on a restored copy before anybody else can connect to it.
//!
//! The copy's own server runs in quarantine (`operate::quarantine`): a socket in a private folder, nothing that is sent to the archive, no
//! code of the cluster that runs by itself. Recovery ends at its target, and a new timeline begins, as it would with the operator's start. Its
//! history and its WAL wait in pg_wal where the copy is adopted before its first start; else `pitr adopt` archives the history alone. The record of
//! the restore notes that scripts have begun, and no more. A run that was killed is repeated from its beginning, so scripts must bear to be run twice.
//!
//! Triggers fire as in production, so scripts run without a network where the host can take it away. Recovery may need one, for the command that
//! fetches WAL may ask a bucket. So the server recovers first, and is started again without a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::scripts::{Applied, Outcome, Scripts};
use super::{Entry, Listing, list};
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{self, UNFINISHED, WrittenSettings};
use crate::archive::pid_file::PidFile;
use crate::archive::server_conf;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::lock;
use crate::operate::aside;
use crate::operate::clone::namespace;
use crate::operate::drill::sandbox::{self, Sandbox};
use crate::operate::drill::{comparison, recovery};
use crate::operate::programs::Programs;
use crate::operate::quarantine::{self, Lasts, Libraries, Quarantine, Quarantined};
use crate::operate::session::Session;
use crate::pg::control::ControlFile;
use crate::plan::recovery::Plan;
use crate::process;
use crate::restore::job::Job;

/// The host keeps the network, which triggers could use.
pub const HAS_NETWORK: &str =
    "this host does not let this user take the network away, so the scripts have it";
/// The state after a refusal.
const NOTHING: &str = "Nothing was done.";

/// A copy, and the erasures that are recorded of its cluster.
pub struct Prepared {
    directory: DataDirectory,
    control: ControlFile,
    programs: Programs,
    /// Everything that is recorded.
    pub scripts: Scripts,
    /// The plan of its recovery, where the restore has left it.
    plan: Option<Plan>,
    is_for_adoption: bool,
}

/// The operator's request to run erasures.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The data directory of the copy.
    pub pgdata: PathBuf,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<PathBuf>,
    /// Whether the copy is adopted before its own start, so that its WAL is kept for the archive.
    pub is_for_adoption: bool,
    /// The operator's word about single erasures.
    pub consent: Consent,
}

/// The operator's word about single erasures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consent {
    /// Erasures that are left out.
    pub skipped: Vec<String>,
    /// Whether those are run, too, that a weaker repository alone has.
    pub is_unproven_allowed: bool,
}

/// The options by which a command takes that word.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The one that leaves an erasure out.
    pub skip: &'static str,
    /// The one that allows those of a weaker repository.
    pub unproven: &'static str,
}

/// The options of `pitr erasure apply`.
const OPTIONS: Options = Options {
    skip: "--skip",
    unproven: "--unproven",
};

/// Looks which erasures there are, and whether they can be run on a data directory.
///
/// # Errors
/// `Refused` for root, and for a directory that is no restored copy, is not ready, or would not take writes; `WrongCluster` for the copy of another
/// cluster; `NotFound` for an erasure to be left out that does not exist; those of [`list`].
pub fn prepare(session: &Session, asked: &Asked) -> Result<Prepared> {
    let pgdata = &asked.pgdata;
    let refused = |why: String| err!(Refused, "{why}");
    check_user()?;
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
    let plan = plan_of(&directory);
    let is_cut_short = match &plan {
        Some(plan) => recovery::is_cut_short(&directory, &control, plan)?,
        None => false,
    };
    let recovers = directory.has("recovery.signal") || is_cut_short;
    let action = server_conf::value_of(&path, "recovery_target_action");
    if recovers && action.as_deref() != Some("promote") {
        return Err(refused(format!("recovery of \"{shown}\" does not end with a promotion, and only then it takes writes"))
            .hint("Nothing was done. Restore with --target-action promote. Or start it, look at it where nobody else can, promote it, stop it, and run this again."));
    }
    let cluster = cluster_of(session, &directory, control.system_identifier)?;
    let listing = list(&session.on_cluster(&cluster))?;
    for id in &asked.consent.skipped {
        listing.entry(id)?;
    }
    require_consent(&listing, &asked.consent, OPTIONS)?;
    let bin = asked.bin.as_deref();
    let programs = quarantine::programs(&session.environment, control.major.number(), bin)?;
    Ok(Prepared {
        directory,
        programs,
        scripts: Scripts {
            listing,
            skipped: asked.consent.skipped.clone(),
            system_identifier: control.system_identifier,
            only: None,
        },
        control,
        plan,
        is_for_adoption: asked.is_for_adoption,
    })
}

/// The plan of a copy's recovery; none where nothing of the restore is left.
fn plan_of(directory: &DataDirectory) -> Option<Plan> {
    let job = guard::written(directory).ok()?.job;
    serde_json::from_value::<Job>(job).ok()?.plan
}

/// Requires a user whose server PostgreSQL starts.
///
/// # Errors
/// `Refused`.
pub fn check_user() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        false => Ok(()),
        true => Err(err!(Refused, "PostgreSQL refuses to run as root").hint(
            "Nothing was done. Run it as the server's user: sudo -u postgres pitr erasure apply",
        )),
    }
}

/// Requires that every erasure can be read, and that the operator wants those which nothing proves, as far as none is left out.
///
/// # Errors
/// `Refused` for one that nothing proves beside a repository that proves; that of one that cannot be read.
pub fn require_consent(listing: &Listing, consent: &Consent, options: Options) -> Result<()> {
    let is_skipped = |entry: &Entry| consent.skipped.contains(&entry.id);
    for entry in listing.erasures.iter().filter(|entry| !is_skipped(entry)) {
        if entry.erasure.is_none() {
            return Err(unreadable(entry, options));
        }
        let is_doubtful = |name: &String| listing.unproven.contains(name);
        if entry.repositories.iter().all(is_doubtful)
            && !consent.is_unproven_allowed
            && listing.is_proven_somewhere()
        {
            let places = entry.repositories.join(" and ");
            return Err(err!(Refused, "erasure \"{}\" is in repository {places} alone, where nothing proves who recorded it", entry.id).hint(format!(
                "{NOTHING} Scripts run as a superuser, so read it: pitr erasure show {0}\nThen run this again with {1} {0} or with {2}.",
                entry.id, options.skip, options.unproven
            )));
        }
    }
    Ok(())
}

/// The cluster of a copy: its guard names it. Scripts of another one would erase somebody else.
fn cluster_of(session: &Session, directory: &DataDirectory, identifier: u64) -> Result<String> {
    let wrong = |why: String| Err(err!(WrongCluster, "{why}").hint(NOTHING));
    let guard = guard::read(directory)?.ok_or_else(|| err!(Refused, "the copy has no guard"))?;
    if guard.system_identifier != identifier {
        return wrong(format!(
            "the guard is of system identifier {}, the data directory of {identifier}",
            guard.system_identifier
        ));
    }
    match &session.flags.cluster {
        Some(named) if *named != guard.cluster => wrong(format!(
            "the copy is one of cluster {}, and --cluster names {named}",
            guard.cluster
        )),
        _ => Ok(guard.cluster),
    }
}

fn unreadable(entry: &Entry, options: Options) -> Error {
    let why = entry.damage.as_deref().unwrap_or("nobody has it");
    let next = match entry.code {
        Some(Code::Key) => "Run this on a host with a private key of the repository.".to_owned(),
        Some(Code::Unsupported) => "A newer pitr recorded it: run that one.".to_owned(),
        _ => format!(
            "\"pitr repo sync\" brings it back where another repository has it whole. If it is lost, or somebody forged it: {1} {0}, or pitr erasure remove {0} --confirm",
            entry.id, options.skip
        ),
    };
    let code = entry.code.unwrap_or(Code::Damaged);
    Error::new(
        code,
        format!("erasure \"{}\" cannot be read: {why}", entry.id),
    )
    .hint(format!(
        "{NOTHING} The copy may hold what it erases: let nobody connect.\n{next}"
    ))
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
        self.note(&session.host, |record| record.is_erasing = true)?;
        let is_resumed = self.resume(&session.host)?;
        let before = namespace::without_network();
        if before.is_empty() {
            session.note(HAS_NETWORK);
        }
        let mut quarantine = Quarantine {
            folder: sandbox.path(),
            data: self.directory.path(),
            programs: &self.programs,
            fetches_outside: false,
            before: &[],
            listens: None,
            lasts: match self.is_for_adoption {
                true => Lasts::Archiving(self.control.settings),
                false => Lasts::Staying(self.control.settings),
            },
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
        if !before.is_empty() && self.directory.has("recovery.signal") {
            let mut server = recovered(session, &quarantine, &libraries)?;
            server.stop(&|| session.host.check_stop())?;
        }
        quarantine.before = &before;
        let mut server = recovered(session, &quarantine, &libraries)?;
        if is_resumed {
            self.check_end(&mut server)?;
            self.note(&session.host, |record| record.is_resumed = false)?;
        }
        session.host.progress.phase("erase", None);
        server.lift_time_limit();
        let done = self.scripts.run(session, &mut server, &self.directory);
        // A wish to stop has ended the server at once, which says nothing of the scripts.
        session.host.check_stop()?;
        let done = done?;
        server.stop(&|| session.host.check_stop())?;
        // "pg_ctl restart" would start the private server again.
        let _ = std::fs::remove_file(self.directory.path().join("postmaster.opts"));
        aside::note_again(&self.directory, session.host.random())?;
        let is_failed = |one: &Applied| matches!(one.outcome, Outcome::Failed(_));
        if !done.iter().any(is_failed) {
            self.note(&session.host, |record| record.is_erasing = false)?;
        }
        Ok(done)
    }

    /// Notes something in the record of the restore, where that is left.
    fn note(&self, host: &Host, change: impl FnOnce(&mut WrittenSettings)) -> Result<()> {
        match guard::written(&self.directory).is_ok() {
            true => guard::note(&self.directory, host.random(), change),
            false => Ok(()),
        }
    }

    /// Has a copy recover once more whose server was killed as it ended recovery. Whether its end is to be held to the plan, be it that an
    /// earlier run was killed before it did so.
    fn resume(&self, host: &Host) -> Result<bool> {
        let Some(plan) = &self.plan else {
            return Ok(false);
        };
        let control = self.directory.control()?;
        let control = control.ok_or_else(|| err!(Damaged, "the copy has no pg_control"))?;
        if recovery::is_cut_short(&self.directory, &control, plan)? {
            self.note(host, |record| record.is_resumed = true)?;
            recovery::resume(&self.directory, plan, host)?;
        }
        Ok(guard::written(&self.directory).is_ok_and(|record| record.is_resumed))
    }

    /// Requires that nothing behind the target was replayed, where a server was killed as it ended recovery.
    fn check_end(&self, server: &mut Quarantined) -> Result<()> {
        // More may have been archived since for a plan that goes to the end.
        let plan = self.plan.as_ref();
        let Some(plan) = plan.filter(|plan| plan.first_excluded_commit.is_some()) else {
            return Ok(());
        };
        let compared = comparison::compare(server, self.directory.path(), plan)?;
        let found: Vec<String> = compared
            .checks
            .into_iter()
            .filter_map(|check| Some(format!("{}: {}", check.name, check.found?)))
            .collect();
        match found.is_empty() {
            true => Ok(()),
            false => Err(err!(
                Findings,
                "the copy did not recover as planned: {}",
                found.join("; ")
            )
            .hint(
                "No erasure was run. The copy is not of its moment: remove it, and restore again.",
            )),
        }
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
        if !process::is_alive(pid) || end_left_behind(path)? {
            return Ok(());
        }
        Err(err!(
            Refused,
            "a server runs on \"{}\" (process {pid})",
            path.display()
        )
        .hint("Nothing was done. Users may be connected already. Stop it, and run this again."))
    }
}

/// Starts the server of a copy, and waits for the end of its recovery.
fn recovered(
    session: &Session,
    quarantine: &Quarantine<'_>,
    libraries: &Libraries,
) -> Result<Quarantined> {
    let mut server = quarantine.start(&session.host, libraries, &[])?;
    match recovery::wait(session, &mut server)?.broken {
        None => Ok(server),
        Some((_, cause)) => Err(err!(Server, "the copy did not recover: {cause}")
            .hint("No erasure was run. The directory is as an ordinary start would have left it.")),
    }
}

/// Ends the private server that a killed run has left in a data directory, which is named without links. Whether it was such a server, and is gone.
///
/// # Errors
/// `Locked` where its run goes on.
pub fn end_left_behind(data: &Path) -> Result<bool> {
    let file = PidFile::read(data).unwrap_or_default();
    let folder = file.socket_directory.map(PathBuf::from);
    let name = folder.as_deref().and_then(Path::file_name);
    let is_ours = name.is_some_and(|n| n.to_string_lossy().starts_with(sandbox::PREFIX));
    if is_ours && folder.is_some_and(|folder| sandbox::is_in_use(&folder)) {
        let shown = data.display();
        return Err(err!(
            Locked,
            "another pitr runs a server in private on \"{shown}\""
        )
        .hint("Nothing was done. Wait for its end, and run this again."));
    }
    let is_gone = is_ours && sandbox::stop_named(data);
    if is_gone {
        // A server that was killed, or whose host was, leaves it; who waits for the end of a server reads it.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
    }
    Ok(is_gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t85_the_private_server_of_a_run_that_goes_on_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let running = Sandbox::make(scratch.path(), false).unwrap();
        let data = scratch.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let lines = format!(
            "1\n{}\n0\n5432\n{}\n",
            data.display(),
            running.path().display()
        );
        let file = data.join("postmaster.pid");
        std::fs::write(&file, lines).unwrap();
        assert_eq!(end_left_behind(&data).unwrap_err().code(), Code::Locked);
        assert!(file.exists());
        // Its process is none of ours: it has ended, and what it left goes.
        drop(running);
        assert!(end_left_behind(&data).unwrap() && !file.exists());
    }
}
