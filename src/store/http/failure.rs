//! The failure of a request: what it requires, and how it is told.

use std::error::Error as StdError;

use super::attempt::Attempt;
use crate::error::{Code, Error};

/// The result of a request.
pub(in crate::store) type Answered<T> = std::result::Result<T, Failure>;

/// How a request failed.
#[derive(Debug)]
pub(in crate::store) struct Failure {
    pub(in crate::store) kind: Kind,
    pub(in crate::store) error: Error,
    /// An earlier attempt of the same request may have taken effect.
    pub(in crate::store) is_ambiguous: bool,
    /// The upload in parts that was asked for is not there: completed, taken back, or never begun.
    pub(in crate::store) is_upload_gone: bool,
    /// The store is asked too much: by all of this host, as far as it can tell.
    pub(in crate::store) is_throttled: bool,
    /// The head of the answer says success, and nobody can tell what the body says: the request may have taken effect.
    pub(in crate::store) is_unreadable: bool,
}

/// The action that a failure requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// The store says that it has no such object.
    Absent,
    /// The name is taken.
    Taken,
    /// The object does not reach into the range.
    Range,
    /// May work later; whether it took effect is not known.
    Again,
    /// The credentials have run out, or were replaced: once more with fresh ones.
    Expired,
    /// A refusal without a word, as every answer to HEAD is: perhaps the credentials have run out.
    Wordless,
    /// The clocks differ; the client has just learnt by how much.
    Skewed,
    /// The bucket is in this region.
    Elsewhere(String),
    /// The server's certificate proves nothing; nothing was sent.
    Untrusted,
    /// Will not work until somebody changes something.
    Final,
}

impl Failure {
    pub(in crate::store) fn new(kind: Kind, error: Error) -> Failure {
        Failure {
            kind,
            error,
            is_ambiguous: false,
            is_upload_gone: false,
            is_throttled: false,
            is_unreadable: false,
        }
    }

    pub(in crate::store) fn again(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Again, Error::new(Code::Unreachable, message))
    }

    /// Converts the failure of a request that sets no condition. "The condition does not hold" is not the store's
    /// answer to it, and says nothing about a name.
    pub(in crate::store) fn without_condition(self) -> Failure {
        match self.kind {
            Kind::Taken => Failure {
                kind: Kind::Final,
                error: self.error.with_code(Code::Unreachable),
                ..self
            },
            _ => self,
        }
    }
}

/// The messages of an error and its causes, each once, of bounded length.
pub(in crate::store) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(this) = cause {
        let text = this.to_string();
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
        cause = this.source();
    }
    shown(&parts.join(": "))
}

/// A text that comes from the store, of bounded length and without what nobody may read.
pub(in crate::store) fn shown(text: &str) -> String {
    let text = Attempt::current().map_or_else(|| text.to_owned(), |a| a.scrub(text));
    text.escape_debug().take(400).collect()
}

/// Converts an error that occurred before or beside a request.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(Kind::Final, error)
    }
}

/// A failure where no kind of it has a meaning of its own.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        failure.error
    }
}
