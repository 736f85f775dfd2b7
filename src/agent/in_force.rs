//! A copy of the configuration that the agent read last. While the file is wrong, processes of the agent go on with that: somebody has to be told.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::load::{self, Check, Loaded};
use crate::behalf;
use crate::config::{Environment, Flags, IN_FORCE, IN_FORCE_OF, Settings};
use crate::durable;
use crate::error::{Error, Result};
use crate::operate::agent_trouble;
use crate::operate::session::Session;

/// The file of the copy, below `state_dir`. It may hold passwords, as the configuration may.
const FILE: &str = "configuration.toml";

/// The configuration that the agent goes on with.
pub struct InForce<'a> {
    session: &'a Session,
    check: Check,
    /// It is none without a file, and where it could not be kept.
    copy: Option<PathBuf>,
    /// The file that it is a copy of.
    file: PathBuf,
    state_dir: PathBuf,
    /// Why the last reload took nothing. The file may look well since: the agent has not read it.
    refused: Option<String>,
    /// The trouble of the file that was last told.
    told: RefCell<Option<String>>,
}

impl<'a> InForce<'a> {
    /// Keeps a copy of the file that was read. Without it the agent works, but for a file that becomes wrong.
    pub fn keep(session: &'a Session, check: Check, loaded: &Loaded) -> InForce<'a> {
        let copy = copied(session, check, loaded).unwrap_or_else(|e| {
            session.warn(&format!(
                "a copy of the configuration is not kept: while the file is wrong, nothing would be looked at: {e}"
            ));
            None
        });
        InForce {
            session,
            check,
            copy,
            file: loaded.settings.path.clone().unwrap_or_default(),
            state_dir: loaded.state_dir.clone(),
            refused: None,
            told: RefCell::default(),
        }
    }

    /// Has a process of the agent go on with the copy while the file is wrong, and after a reload that took nothing.
    pub fn lend(&self, command: &mut Command) {
        let Some(copy) = &self.copy else {
            return;
        };
        let wrong = load::refusal(self.session, self.check, &self.state_dir);
        let wrong = wrong.map(|e| e.to_string());
        let wrong = wrong.or_else(|| self.refused.clone());
        if wrong.is_some() {
            command.env(IN_FORCE, copy).env(IN_FORCE_OF, &self.file);
        }
        if *self.told.borrow() != wrong {
            self.tell(wrong);
        }
    }

    /// Notes that a reload took nothing. The next one that takes the file ends that, and nothing else does.
    pub fn refuse(&mut self, error: &Error) {
        self.refused = Some(error.to_string());
        self.tell(self.refused.clone());
    }

    fn tell(&self, wrong: Option<String>) {
        if let Some(e) = &wrong {
            self.session.warn(&format!(
                "the configuration is wrong, and the agent goes on with the one before: {e}"
            ));
        }
        self.note(wrong.as_deref());
        self.told.replace(wrong);
    }

    /// Notes for looks and for `pitr doctor` that the file is wrong, or that it is well.
    pub fn note(&self, wrong: Option<&str>) {
        let noted = agent_trouble::note(self.session, &self.state_dir, wrong.map(|e| (e, true)));
        if let Err(e) = noted {
            self.session.warn(&format!("{e}"));
        }
    }
}

/// Loads the copy that the agent before kept.
///
/// # Errors
/// Those of [`load::load`].
pub fn before(session: &Session, check: Check, state_dir: &Path) -> Result<Loaded> {
    let mut own = session.again();
    let copy = state_dir.join(FILE);
    let environment = own.environment.with(IN_FORCE, copy.as_os_str());
    own.environment = environment.with(IN_FORCE_OF, "".as_ref());
    load::load(&own, check)
}

/// Has a command that somebody asks for at the page go on with the copy where the agent does so. The judgement is that of the agent's own processes.
///
/// # Errors
/// Why the file is wrong, where there is no copy.
pub fn lend_copy(
    command: &mut Command,
    settings: &Settings,
    check: Check,
    state_dir: &Path,
) -> Result<()> {
    let (Some(file), copy) = (&settings.path, state_dir.join(FILE)) else {
        return Ok(());
    };
    let flags = Flags {
        config: Some(file.clone()),
        ..Flags::default()
    };
    let environment = Environment::of_process();
    let environment = match settings.is_of_tenant {
        true => environment.of_tenant(),
        false => environment,
    };
    let read = Settings::load(&flags, &environment)
        .and_then(|settings| load::checked(settings, &environment, check))
        .and_then(|loaded| loaded.require_place(state_dir));
    let is_refused = || agent_trouble::read(state_dir).is_some_and(|trouble| trouble.goes_on);
    if read.is_ok() && !is_refused() {
        return Ok(());
    }
    if behalf::read(&copy).is_ok() {
        command.env(IN_FORCE, copy).env(IN_FORCE_OF, file);
        return Ok(());
    }
    // Without the copy, another directory than the agent's would get locks and records.
    read
}

/// Writes the copy, and proves that it can be read.
fn copied(session: &Session, check: Check, loaded: &Loaded) -> Result<Option<PathBuf>> {
    let Some(file) = &loaded.settings.path else {
        return Ok(None);
    };
    let failed = |e| Error::from_io(format!("copy \"{}\"", file.display()), e);
    let text = std::fs::read(file).map_err(failed)?;
    let (copy, nonce) = (loaded.state_dir.join(FILE), session.host.random());
    behalf::of(&copy, || durable::replace(&copy, &text, nonce)).map_err(failed)?;
    // The file may have changed since the agent read it.
    before(session, check, &loaded.state_dir)?;
    Ok(Some(copy))
}
