//! The meaning of an answer that is no success. The protocol has few words: "failure" stands for a name that is taken, for a full disk and for
//! a broken one. The caller finds out which.

use russh_sftp::client::error::Error as Answer;
use russh_sftp::protocol::StatusCode;

use crate::error::{Code, Error};

/// The result of a request.
pub(super) type Answered<T> = std::result::Result<T, Failure>;

/// How a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: Error,
    /// An earlier attempt of the same request may have taken effect.
    pub(super) is_ambiguous: bool,
}

/// The action that a failure requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The name is not there; or something on the way to it is no directory, which the answer does not tell apart.
    Absent,
    /// The server refuses, and does not say why.
    Failed,
    /// Behind the end of a file or a listing.
    End,
    /// The connection is of no use any more; another one may be.
    Again,
    /// Will not work until somebody changes something.
    Final,
}

impl Failure {
    pub(super) fn new(kind: Kind, error: Error) -> Failure {
        Failure {
            kind,
            error,
            is_ambiguous: false,
        }
    }

    pub(super) fn again(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Again, Error::new(Code::Unreachable, message))
    }

    pub(super) fn context(self, doing: impl Into<String>) -> Failure {
        Failure {
            error: self.error.context(doing),
            ..self
        }
    }
}

impl From<Answer> for Failure {
    fn from(answer: Answer) -> Failure {
        let status = match answer {
            Answer::Status(status) => status,
            Answer::Limited(what) => {
                let error = Error::new(Code::Internal, format!("a request is too large: {what}"));
                return Failure::new(Kind::Final, error);
            }
            other => {
                let text = shown(&other.to_string());
                return Failure::again(format!("the connection broke off: {text}"));
            }
        };
        let (kind, code) = match status.status_code {
            StatusCode::NoSuchFile => (Kind::Absent, Code::NotFound),
            StatusCode::PermissionDenied => (Kind::Final, Code::Denied),
            StatusCode::Eof => (Kind::End, Code::Damaged),
            StatusCode::Failure => (Kind::Failed, Code::Io),
            StatusCode::NoConnection | StatusCode::ConnectionLost => {
                (Kind::Again, Code::Unreachable)
            }
            StatusCode::OpUnsupported => (Kind::Final, Code::Refused),
            // OpenSSH's word for an argument that the system does not take.
            StatusCode::BadMessage => (Kind::Final, Code::Io),
            // A success is none here: an answer of another kind was due.
            StatusCode::Ok => (Kind::Final, Code::Unreachable),
        };
        let said = match status.error_message.trim() {
            "" => status.status_code.to_string(),
            text => shown(text),
        };
        let error = Error::new(code, format!("the server answered \"{said}\""));
        let error = match code {
            Code::Denied => error.hint(
                "The account on the server may not do that. Nothing was stored that is not there already; give it the directory.",
            ),
            _ => error,
        };
        Failure::new(kind, error)
    }
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

/// A text that comes from the server, of bounded length.
pub(super) fn shown(text: &str) -> String {
    text.escape_debug().take(400).collect()
}
