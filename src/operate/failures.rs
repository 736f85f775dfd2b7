//! Errors of a verb that works on several repositories: one that fails does not keep the others from being worked on.

use std::collections::BTreeSet;

use super::session::Session;
use serde::{Serialize, Serializer};

use crate::config;
use crate::error::{Code, Error, Result};
use crate::exit;

/// Errors, repository by repository.
#[derive(Default)]
pub struct Failures {
    /// Errors, each with the repository in its context.
    pub errors: Vec<Error>,
    /// The operator's wish to stop.
    pub interrupted: Option<Error>,
    /// The clusters, of several, in which something failed.
    pub clusters: BTreeSet<String>,
}

impl Failures {
    /// Takes down what failed while `doing` something; `false` when the operator wants no more.
    pub fn add(&mut self, error: Error, doing: String) -> bool {
        let is_over = error.code() == Code::Interrupted;
        match is_over {
            true => self.interrupted = Some(error),
            false => self.errors.push(error.context(doing)),
        }
        !is_over
    }

    /// Returns the result of a success; a failure is taken down as [`add`](Failures::add) does.
    pub fn note<T>(&mut self, done: Result<T>, doing: impl Into<String>) -> Option<T> {
        done.map_err(|e| self.add(e, doing.into())).ok()
    }

    /// Does something in each repository; `doing` is the verb of the error. The operator's wish to stop ends it.
    pub fn in_each(
        &mut self,
        repositories: &[config::Repository],
        doing: &str,
        mut one: impl FnMut(&config::Repository) -> Result<()>,
    ) {
        for configured in repositories {
            let Err(e) = one(configured) else { continue };
            if !self.add(e, format!("{doing} repository \"{}\"", configured.name)) {
                break;
            }
        }
    }

    /// Takes over the failures of another look at the same things; each is told once.
    pub fn take_over(&mut self, others: Failures) {
        for other in others.errors {
            let text = other.to_string();
            if self.errors.iter().all(|known| known.to_string() != text) {
                self.errors.push(other);
            }
        }
        self.interrupted = self.interrupted.take().or(others.interrupted);
        self.clusters.extend(others.clusters);
    }

    /// The errors and the operator's wish to stop, each in a line.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let all = self.errors.iter().chain(&self.interrupted);
        all.map(|error| error.to_string().replace('\n', " "))
    }

    /// Writes them as a list of texts.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn as_texts<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(self.texts())
    }

    /// Whether nothing failed.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty() && self.interrupted.is_none()
    }

    /// Drops errors that turned out to be none.
    pub fn forget(&mut self, code: Code) {
        self.errors.retain(|e| e.code() != code);
    }

    /// Returns the first error where nothing was done at all, and reports the others as warnings.
    ///
    /// # Errors
    /// The first.
    pub fn first_if(&mut self, session: &Session, is_nothing_done: bool) -> Result<()> {
        if !is_nothing_done {
            return Ok(());
        }
        if let Some(interrupted) = self.interrupted.take() {
            return Err(interrupted);
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        let first = self.errors.remove(0);
        for other in self.errors.drain(..) {
            session.warn(&other.to_string());
        }
        Err(first)
    }
}

/// An error in an answer that is given all the same.
#[derive(Debug, Serialize)]
pub struct ShownError {
    code: &'static str,
    /// For people.
    pub message: String,
}

impl From<&Error> for ShownError {
    fn from(error: &Error) -> ShownError {
        ShownError {
            code: exit::name(error.code()),
            message: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};
    use crate::err;
    use crate::operate::away::Away;
    use crate::operate::pacing::Pacing;
    use crate::repo::lives::Followed;

    fn session() -> Session {
        Session {
            host: crate::host::Host::still(crate::pg::time::TimestampTz(0), 0),
            environment: Environment::default(),
            flags: Flags::default(),
            system_identifier: None,
            followed: Followed::default(),
            away: Away::default(),
            pacing: Pacing::default(),
        }
    }

    #[test]
    fn an_interruption_ends_the_loop_and_comes_behind_the_report() {
        let session = session();
        let mut failures = Failures::default();
        assert!(failures.add(err!(Unreachable, "away"), "read a".into()));
        assert!(!failures.add(err!(Interrupted, "interrupted"), "read b".into()));
        let ended = failures.first_if(&session, false);
        assert!(ended.is_ok(), "something is to be reported");
        let error = failures.interrupted.unwrap();
        assert_eq!(error.code(), Code::Interrupted);
    }

    #[test]
    fn the_first_failure_is_the_answer_when_nothing_was_done() {
        let session = session();
        let mut failures = Failures::default();
        failures.add(err!(Denied, "no"), "read a".into());
        failures.add(err!(Io, "broken"), "read b".into());
        let error = failures.first_if(&session, true).unwrap_err();
        assert_eq!(error.code(), Code::Denied);
        assert!(failures.is_empty(), "the others were reported as warnings");
    }
}
