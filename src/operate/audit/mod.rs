//! The audit log: a record before a command works, and one of what became of it (format, section 19).
//!
//! There is one frame around all commands, and no command knows of it. A record that cannot be created waits in the spool of the host.

mod anchor;
mod expiry;
mod reading;
mod spool;
mod sync;

use std::path::Path;

pub use anchor::{Anchored, anchor, head};
pub use expiry::expire;
pub use reading::{Given, Listed, Moment, Range, Verified, list, verify};
pub use spool::Spool;
pub use sync::{Brought, bring};

use super::session::Session;
use crate::config::account::Account;
use crate::config::{Flags, Records, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::exit::{self, Program};
use crate::repo::audit::{self, Outcome, Record, Stored};
use crate::repo::event::{self, PROGRAM};
use crate::store::Store;

/// The kernel's word for a process without a login.
const NO_LOGIN: u32 = u32::MAX;
/// Most characters of a name that comes from outside.
const NAME_MAX: usize = 200;

/// Commands that make the place of records, or the key that is to open it: none can be required of them.
const BEFORE_REPOSITORIES: [&str; 3] = ["init", "repo keygen", "repo join"];

/// The subject of a command line, as records tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Words of the command.
    pub command: &'static str,
    /// The names that it is about.
    pub object: Option<String>,
}

/// The log of this host, and the repositories that it goes to: all that are configured, whichever one a command works on.
struct Log<'a> {
    session: &'a Session,
    settings: Settings,
    spool: Spool,
}

/// Runs a command, and records who ran it and what became of it, where the configuration wants that.
///
/// # Errors
/// Those of `work`; `Refused` where records are required and this one cannot be created.
pub fn framed(
    session: &Session,
    about: Option<About>,
    work: impl FnOnce() -> Result<u8>,
) -> Result<u8> {
    let Some(about) = about else {
        return work();
    };
    let first = about.record(session);
    let begun = match begin(session, first.clone()) {
        Ok(begun) => begun,
        Err(e) => {
            let refused = Err(e);
            if let Ok(Some(log)) = Log::open(session) {
                // The refusal itself is what the operator is told.
                let _ = log.append(ended(first, &refused));
            }
            return refused;
        }
    };
    let done = work();
    let last = Record {
        time: session.host.now(),
        ..ended(first, &done)
    };
    // The configuration may have come with the command, as that of init does.
    let log = match begun {
        Some(log) => Some(log),
        None => warned(session, Log::open(session)).flatten(),
    };
    if let Some(log) = log {
        warned(session, log.append(last));
    }
    done
}

/// Records that a command begins; none where nothing is recorded.
fn begin(session: &Session, record: Record) -> Result<Option<Log<'_>>> {
    let may_require = !BEFORE_REPOSITORIES.contains(&record.command.as_str());
    let log = match Log::open(session) {
        Ok(Some(log)) => log,
        Ok(None) => return Ok(None),
        Err(e) if may_require && is_required(session) => return Err(required(&e)),
        Err(_) => return Ok(None),
    };
    let appended = log.append(record);
    if may_require && log.settings.audit.records == Records::Required {
        let record = appended.map_err(|e| required(&e))?;
        let mut repositories = log.settings.repositories.iter();
        if !repositories.any(|one| log.spool.is_sent(one, &record)) {
            return Err(required(&err!(Denied, "no repository takes it")));
        }
    } else {
        warned(session, appended);
    }
    Ok(Some(log))
}

fn is_required(session: &Session) -> bool {
    let settings = session.settings();
    settings.is_ok_and(|s| s.audit.records == Records::Required)
}

fn required(e: &Error) -> Error {
    err!(
        Refused,
        "this command cannot be recorded in the audit log: {e}"
    )
    .hint("Nothing was done. [audit] records = \"required\" lets nothing begin that no repository has a record of; \"on\" keeps the record on this host until one takes it.")
}

/// The value, or a warning that the command is not recorded.
fn warned<T>(session: &Session, done: Result<T>) -> Option<T> {
    match done {
        Ok(value) => Some(value),
        Err(e) => {
            session.warn(&format!("this command is missing from the audit log: {e}"));
            None
        }
    }
}

/// The record of how a command ended.
fn ended(record: Record, done: &Result<u8>) -> Record {
    let (outcome, status, reason) = match done {
        Ok(status @ (exit::SUCCESS | exit::WARNINGS)) => (Outcome::Succeeded, *status, None),
        Ok(status) => (Outcome::Failed, *status, None),
        Err(e) => {
            let status = exit::status(Program::Pitr, e.code());
            let reason = exit::name(e.code()).to_owned();
            (Outcome::Failed, status, Some(reason))
        }
    };
    Record {
        outcome,
        status: Some(status),
        reason,
        ..record
    }
}

impl About {
    /// The record of a command that is about to work.
    fn record(&self, session: &Session) -> Record {
        let uid = rustix::process::geteuid().as_raw();
        let sudo_user = session.environment.get("SUDO_USER");
        let sudo_user = sudo_user.and_then(|name| name.to_str().map(bounded));
        Record {
            time: session.host.now(),
            host: event::host(),
            program: PROGRAM.to_owned(),
            actor: bounded(&Account::name_of(uid)),
            uid,
            sudo_user: sudo_user.filter(|name| !name.is_empty()),
            login_uid: login_uid(Path::new("/proc/self/loginuid")),
            command: self.command.to_owned(),
            object: self.object.as_deref().map(bounded),
            run: format!("{:016x}", session.host.random()),
            ..Record::default()
        }
    }
}

/// Reads a record; none where it is not there or cannot be read, of which `told` hears.
fn readable(
    store: &dyn Store,
    (writer, seq): (&str, u64),
    told: &dyn Fn(&Error),
) -> Result<Option<Stored>> {
    match audit::read(store, writer, seq) {
        Err(e) if audit::is_of_the_record(&e) => {
            told(&e);
            Ok(None)
        }
        read => read,
    }
}

/// A name of the environment or of the command line, without control characters.
fn bounded(name: &str) -> String {
    let shown = name.chars().filter(|c| !c.is_control());
    shown.take(NAME_MAX).collect()
}

fn login_uid(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    let uid = text.trim().parse().ok()?;
    (uid != NO_LOGIN).then_some(uid)
}

impl Log<'_> {
    /// The log of this host; none where nothing is recorded.
    fn open(session: &Session) -> Result<Option<Log<'_>>> {
        // A narrower choice of repositories leaves no hole in the others.
        let flags = Flags {
            repository: None,
            ..session.flags.clone()
        };
        let named = session.flags.repository.as_deref();
        let Ok(settings) = Settings::load(&flags, &session.environment) else {
            return Ok(None);
        };
        let is_known = |name: &str| settings.repositories.iter().any(|r| r.name == name);
        if settings.audit.records == Records::Off || named.is_some_and(|name| !is_known(name)) {
            return Ok(None);
        }
        let place = settings.state_dir(&session.environment).ok_or_else(|| {
            err!(Config, "this host has no directory for state").hint("Set state_dir in [agent].")
        })?;
        Ok(Some(Log {
            session,
            spool: Spool::open(&place, &settings)?,
            settings,
        }))
    }

    /// Makes a record the next one of this host, and brings every repository up to date that takes it.
    fn append(&self, record: Record) -> Result<Record> {
        let record = self.spool.append(self.session, record)?;
        self.send();
        Ok(record)
    }

    /// Sends what waits. A repository that does not take it gets it later, and `pitr doctor` tells.
    fn send(&self) {
        for configured in &self.settings.repositories {
            if let Ok(repository) = self.session.open(configured) {
                let _ = self.spool.send(self.session, configured, &repository);
            }
        }
        // A file that is not removed is removed another time.
        let _ = self.spool.tidy(&self.settings.repositories);
    }
}
