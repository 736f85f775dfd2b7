//! A cluster that is restored beside the data directory of one that runs, and recovers there: only names are left to be exchanged.
//!
//! Its server runs in quarantine (`operate::quarantine`), recovers to the target, is held to the plan, and is shut down. It keeps the guard: what starts there
//! does not archive before `pitr adopt`. The history and the WAL of the new timeline wait in pg_wal for the server that the service starts later.
//!
//! The directory tells how far an earlier run came: a copy that is not whole, one that is closed, one that recovers, one that is noted as recovered.

use std::path::Path;

use super::drill::comparison;
use super::drill::recovery;
use super::drill::sandbox::Sandbox;
use super::erasure::apply;
use super::quarantine::{self, Lasts, Libraries, Quarantine};
use super::restoring::{Prepared, Restored};
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::archive::{guard, server_conf};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::plan::recovery::Plan;
use crate::restore::job::Job;
use crate::restore::replace::{self, New, Old, Standing, State, waiting};

/// The request in the record of a replacement whose cluster recovered aside.
const ASKED: &str = "switch";
const UNCHANGED: &str = "Nothing was changed.";

/// Looks at the data directory beside which a cluster is to recover, and ends what a run that was killed left there.
///
/// # Errors
/// `Refused` for root, and where it cannot be so; `Locked` while another process recovers there; those of [`Old::look_beside`].
pub fn look(to: &Path) -> Result<Old> {
    if rustix::process::geteuid().is_root() {
        return Err(
            err!(Refused, "PostgreSQL refuses to run as root").hint(format!(
                "{UNCHANGED} Run it as the server's user: sudo -u postgres pitr restore --aside"
            )),
        );
    }
    let old = Old::look_beside(to)?;
    let waits = old.waiting();
    if let Some(why) = old.why_not_aside() {
        return Err(refused(&old, why));
    }
    if let Ok(waits) = waits.canonicalize() {
        apply::end_left_behind(&waits)?;
    }
    Ok(old)
}

/// The error of a backup with tablespaces: WAL names their places, in which the cluster that runs has its files.
pub fn in_one_directory() -> Error {
    err!(
        Refused,
        "no cluster can recover aside whose backup has tablespaces"
    )
    .hint(format!(
        "{UNCHANGED} Stop the server, and restore with --replace."
    ))
}

fn refused(old: &Old, why: &str) -> Error {
    err!(
        Refused,
        "no cluster can recover beside \"{}\": {why}",
        old.data.display()
    )
    .hint(format!(
        "{UNCHANGED} Stop its server, and restore with --replace."
    ))
}

/// Restores a cluster aside, and lets it recover there.
///
/// # Errors
/// `Refused` without the programs of its major; those of [`Prepared::copy`]; `Findings` where the server did not end recovery as planned; those of
/// [`Quarantine::start`] and the wait for its recovery.
pub fn restore(session: &Session, prepared: &Prepared, jobs: Option<u16>) -> Result<Restored> {
    // A host that lacks something refuses before hours of copying.
    require_private(session, prepared.major())?;
    let restored = prepared.copy(session, jobs)?;
    let (data, plan) = (&prepared.place().0.data, prepared.job.plan.as_ref());
    let plan = plan.ok_or_else(|| err!(Internal, "a restore without a plan"))?;
    if waiting::is_recovered(data)? {
        return Ok(restored);
    }
    fault::point("aside-restored");
    waiting::open(data)?;
    fault::point("aside-opened");
    recover(session, data, plan)?;
    Ok(restored)
}

/// Requires what a server in quarantine needs of this host, before anything is written.
///
/// # Errors
/// `Refused` without the programs of its major, and without a place for its socket.
pub fn require_private(session: &Session, major: u32) -> Result<()> {
    quarantine::programs(&session.environment, major, None)?;
    let sandbox = Sandbox::make(&session.host.scratch, false);
    sandbox.map(drop).map_err(|e| {
        e.hint("Nothing was done. Set TMPDIR to a directory with a short path, say /tmp.")
    })
}

/// Runs the server of a data directory until it has recovered as planned, and notes that.
///
/// # Errors
/// Those of [`restore`] but for the copy.
pub(super) fn recover(session: &Session, data: &Path, plan: &Plan) -> Result<()> {
    in_private(session, data, plan)?;
    fault::point("aside-recovered");
    note(data, session.host.random())
}

/// Notes that a copy has recovered, and waits.
fn note(data: &Path, nonce: u64) -> Result<()> {
    let control = waiting::digest_of_control(data)?;
    let control = control.ok_or_else(|| err!(Damaged, "the copy has no pg_control"))?;
    guard::note_recovered(&DataDirectory::at(data), &control, nonce)
}

/// Notes anew that a copy waits, where it was one that did before a server of ours ran on it.
///
/// # Errors
/// Those of the system.
pub fn note_again(directory: &DataDirectory, nonce: u64) -> Result<()> {
    match guard::written(directory).is_ok_and(|written| written.recovered.is_some()) {
        true => note(directory.path(), nonce),
        false => Ok(()),
    }
}

/// Runs the server of a copy until it has recovered as planned.
fn in_private(session: &Session, data: &Path, plan: &Plan) -> Result<()> {
    let directory = DataDirectory::at(data);
    let none = || err!(Damaged, "\"{}\" has no pg_control", data.display());
    let control = directory.control()?.ok_or_else(none)?;
    let major = control.major.number();
    let programs = quarantine::programs(&session.environment, major, None)?;
    let sandbox = Sandbox::make(&session.host.scratch, false).map_err(|e| {
        e.hint("Set TMPDIR to a directory with a short path, say /tmp, and run the same command again: it goes on.")
    })?;
    let quarantine = Quarantine {
        folder: sandbox.path(),
        data,
        programs: &programs,
        before: &[],
        fetches_outside: false,
        listens: None,
        lasts: Lasts::Archiving(control.settings),
    };
    let preload = server_conf::value_of(data, "shared_preload_libraries");
    let libraries = Libraries::of(&preload.unwrap_or_default(), &programs);
    session.host.progress.phase("replay", None);
    recovery::resume(&directory, plan, &session.host)?;
    let mut server = quarantine.start(&session.host, &libraries, &[])?;
    if let Some((_, cause)) = recovery::wait(session, &mut server)?.broken {
        return Err(err!(Server, "the copy did not recover: {cause}")
            .hint(format!("It lies in \"{}\".", data.display())));
    }
    let compared = comparison::compare(&mut server, data, plan)?;
    let found: Vec<String> = compared
        .checks
        .into_iter()
        .filter_map(|check| Some(format!("{}: {}", check.name, check.found?)))
        .collect();
    server.stop(&|| session.host.check_stop())?;
    // "pg_ctl restart" would start the private server again.
    let _ = std::fs::remove_file(data.join("postmaster.opts"));
    match found.is_empty() {
        true => Ok(()),
        false => Err(err!(
            Findings,
            "the copy did not recover as planned: {}",
            found.join("; ")
        )
        .hint(format!("It lies in \"{}\".", data.display()))),
    }
}

/// Puts the cluster that has recovered aside in the place of a data directory whose server is stopped. None where that is not confirmed.
///
/// # Errors
/// `NotFound` where none waits; `Refused` for another replacement that was interrupted, and as [`replace::replace`].
pub fn switch(session: &Session, to: &Path, is_confirmed: bool) -> Result<Option<Standing>> {
    if let Some(mut standing) = Standing::find(to)? {
        let waits = standing.data().with_added_extension(replace::WAITING);
        match (standing.state(), standing.is_of(ASKED)) {
            (State::Switching, true) => {
                return match is_confirmed {
                    true => standing.finish(&session.host).map(|()| Some(standing)),
                    false => Ok(None),
                };
            }
            // After a server has run on it, this is the switch of another day.
            (State::Switched, true) if !waits.exists() && standing.is_untouched()? => {
                return Ok(Some(standing));
            }
            (State::Switched, _) => {}
            (State::Switching | State::Undoing, _) => {
                return Err(err!(
                    Refused,
                    "another replacement or undo at \"{}\" was interrupted",
                    to.display()
                )
                .hint(format!(
                    "{UNCHANGED} Complete it first: {}",
                    super::replace::undo_line(to)
                )));
            }
        }
    }
    // The copy is looked at before its place, whose server would have to be stopped.
    let data = to.canonicalize().unwrap_or_else(|_| to.to_owned());
    waiting::require_recovered(&data.with_added_extension(replace::WAITING))?;
    let old = Old::look(to)?;
    if let Some(why) = old.why_not_aside() {
        return Err(refused(&old, why));
    }
    let waits = old.waiting();
    let job = guard::written(&DataDirectory::at(&waits))?.job;
    let job: Job = serde_json::from_value(job)
        .map_err(|e| err!(Damaged, "the record of the restored copy cannot be read").source(e))?;
    if job.system_identifier != old.system_identifier {
        let waits = waits.display();
        return Err(err!(Refused, "\"{waits}\" is a copy of another cluster").hint(UNCHANGED));
    }
    if !is_confirmed {
        return Ok(None);
    }
    waiting::close(&waits)?;
    let target = job.plan.map(|plan| plan.target.target.to_string());
    let new = New {
        asked: ASKED,
        backup: job.backup.to_string(),
        target: target.unwrap_or_default(),
        tablespaces: &[],
    };
    replace::replace(&old, &new, &session.host).map(Some)
}

/// Whether something lies beside a data directory that may have been restored there.
pub fn waits(to: &Path) -> bool {
    let data = to.canonicalize().unwrap_or_else(|_| to.to_owned());
    std::fs::symlink_metadata(data.with_added_extension(replace::WAITING)).is_ok()
}

/// Removes what was restored beside a data directory, and has not taken its place. Whether there was anything.
///
/// # Errors
/// `Locked` while another process recovers there; those of [`waiting::give_up`].
pub fn give_up(to: &Path) -> Result<bool> {
    let data = to.canonicalize().unwrap_or_else(|_| to.to_owned());
    let waits = data.with_added_extension(replace::WAITING);
    if let Ok(waits) = waits.canonicalize() {
        apply::end_left_behind(&waits)?;
    }
    waiting::give_up(&waits)
}
