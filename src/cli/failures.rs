//! Errors of a verb that works on several repositories: one that fails does not keep the others from being worked on.

use super::Context;
use crate::error::{Code, Error, Result};

/// What failed, repository by repository.
#[derive(Default)]
pub struct Failures {
    errors: Vec<Error>,
    interrupted: Option<Error>,
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

    /// Whether nothing failed.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty() && self.interrupted.is_none()
    }

    /// Drops errors that turned out to be none.
    pub fn forget(&mut self, code: Code) {
        self.errors.retain(|e| e.code() != code);
    }

    /// Where nothing was done at all, the first error is the answer, and the others are told.
    ///
    /// # Errors
    /// The first.
    pub fn first_if(&mut self, cx: &Context, is_nothing_done: bool) -> Result<()> {
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
            cx.out.warn(&other.to_string());
        }
        Err(first)
    }

    /// Tells every error, behind the report of what was done; whether there was none.
    ///
    /// # Errors
    /// The interruption, if there was one.
    pub fn told(self, cx: &Context) -> Result<bool> {
        let is_none = self.errors.is_empty();
        for error in self.errors {
            cx.out.error(&cx.explained(error));
        }
        match self.interrupted {
            Some(interrupted) => Err(interrupted),
            None => Ok(is_none),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::GlobalArgs;
    use crate::cli::output::Output;
    use crate::config::Environment;
    use crate::err;
    use crate::repo::lives::Followed;

    fn context() -> Context {
        Context {
            followed: Followed::default(),
            global: GlobalArgs::default(),
            environment: Environment::default(),
            out: Output::default(),
            away: crate::cli::away::Away::default(),
        }
    }

    #[test]
    fn an_interruption_ends_the_loop_and_comes_behind_the_report() {
        let cx = context();
        let mut failures = Failures::default();
        assert!(failures.add(err!(Unreachable, "away"), "read a".into()));
        assert!(!failures.add(err!(Interrupted, "interrupted"), "read b".into()));
        assert!(
            failures.first_if(&cx, false).is_ok(),
            "something is to be reported"
        );
        let error = failures.told(&cx).unwrap_err();
        assert_eq!(error.code(), Code::Interrupted);
    }

    #[test]
    fn the_first_failure_is_the_answer_when_nothing_was_done() {
        let cx = context();
        let mut failures = Failures::default();
        failures.add(err!(Denied, "no"), "read a".into());
        failures.add(err!(Io, "broken"), "read b".into());
        let error = failures.first_if(&cx, true).unwrap_err();
        assert_eq!(error.code(), Code::Denied);
        assert!(
            failures.told(&cx).unwrap(),
            "the others were told as warnings"
        );
    }
}
