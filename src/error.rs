//! The error of the whole toolkit: what happened, what it means, what to do next.
//!
//! A [`Code`] names the consequence: what the caller does next. It never names an origin. How a code is printed (A120, R201 …)
//! and which exit status it gives depends on the program and lives in `exit`.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The action that an error requires of the caller; a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The command line cannot be understood.
    Usage,
    /// The configuration is missing, unreadable or invalid.
    Config,
    /// The name is not one of a WAL, history or backup history file.
    WalName,
    /// The file to archive is missing, unreadable or not a regular file.
    SourceMissing,
    /// The file to archive does not have the size of a segment.
    SourceSize,
    /// The header of the file to archive does not belong to its name.
    SourceHeader,
    /// The file to archive changed while it was read.
    SourceChanged,
    /// The name already holds other bytes. The original stays; the refused copy is kept aside.
    Conflict,
    /// The system identifier is not registered, or belongs to another cluster.
    WrongCluster,
    /// The data directory is a restored copy that was not adopted.
    Clone,
    /// The timeline number already belongs to another history.
    TimelineReused,
    /// The repository or the server cannot be reached; it may work later.
    Unreachable,
    /// Access was refused by the repository or the server.
    Denied,
    /// There is no room left: bytes, inodes or a quota.
    Full,
    /// The medium failed: an I/O error or a failed fsync.
    Io,
    /// The repository is read-only.
    ReadOnly,
    /// The bytes that were read back differ from those that were written.
    ReadBack,
    /// The repository marker is not there: not mounted, not initialised, another place.
    NoRepository,
    /// A key is missing or wrong.
    Key,
    /// Our own deadline has passed.
    Deadline,
    /// Another process holds the lock.
    Locked,
    /// Not every required repository took part.
    Partial,
    /// Stored data fails its check.
    Damaged,
    /// The replication slot has lost WAL that it was to keep, and has to be made again.
    SlotLost,
    /// The server is not where what we hold leads: its timeline is older, or left the common history before our end.
    Diverged,
    /// WAL is missing although later WAL of the same path exists.
    Gap,
    /// The file or directory to write to cannot be written.
    TargetWrite,
    /// The named thing does not exist: a backup, a restore point, a cluster.
    NotFound,
    /// The recovery target cannot be reached.
    OutOfReach,
    /// A safety guard refused: non-empty directory, running server, too few backups.
    Refused,
    /// The PostgreSQL server answered with an error, or cannot do what is asked.
    Server,
    /// A check found something.
    Findings,
    /// A stored object was written by a newer format.
    Unsupported,
    /// The operator or the system asked to stop.
    Interrupted,
    /// A defect of the program itself.
    Internal,
}

impl Code {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(self) -> bool {
        matches!(self, Code::Unreachable | Code::Deadline | Code::Locked)
    }
}

/// An error: a code, the cause, and (where it helps) impact and next command.
///
/// `Display` gives the message and its chain of causes on one line; the hint is printed apart from it.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    is_frozen: bool,
}

impl Error {
    /// Makes an error from its consequence and its cause (lower case, no full stop).
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            code,
            message: message.into(),
            hint: None,
            source: None,
            is_frozen: false,
        }))
    }

    /// Returns the cause among the failures of threads that stop one another: the first that is no interruption, else the last.
    pub fn cause(first: Option<Error>, other: Error) -> Error {
        match first {
            Some(first) if first.code() != Code::Interrupted => first,
            _ => other,
        }
    }

    /// Adds impact and next command, as full sentences.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts a line before the hint.
    #[must_use]
    pub fn hint_first(self, line: &str) -> Self {
        let hint = match self.hint_text() {
            Some(hint) => format!("{line}\n{hint}"),
            None => line.to_owned(),
        };
        self.hint(hint)
    }

    /// Puts a line behind the hint.
    #[must_use]
    pub fn hint_last(self, line: &str) -> Self {
        let hint = format!("{}\n{line}", self.hint_text().unwrap_or_default());
        self.hint(hint.trim().to_owned())
    }

    /// Attaches the underlying error.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Wraps this error in what was being done: a verb and its object. Code and hint stay.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        let (code, hint) = (self.code(), self.0.hint.clone());
        Error(Box::new(Inner {
            code,
            message: doing.into(),
            hint,
            source: Some(Box::new(self)),
            is_frozen: false,
        }))
    }

    /// Replaces the code, where a caller knows better what follows from the error.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// Says that it is about an object that its store must thaw before it can be read: of no use now, and whole for all that is known.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.0.is_frozen = true;
        self
    }

    /// Whether one object is of no use, because it is damaged or of a newer format. That is an answer about this object, and none about its
    /// repository.
    ///
    /// Three places ask another question, and say why: `verify` (what it calls a finding), `sync` (what it passes over) and
    /// `snapshot::spare` (whether another copy may be whole).
    pub fn is_damage(&self) -> bool {
        matches!(self.code(), Code::Damaged | Code::Unsupported)
    }

    /// Whether one object is damaged, or its disk does not give it back: an answer about this object, too.
    pub fn is_lost(&self) -> bool {
        self.is_damage() || self.is_medium()
    }

    /// Whether that is the cause.
    pub fn is_frozen(&self) -> bool {
        let mut own = causes(self).filter_map(|cause| cause.downcast_ref::<Error>());
        own.any(|e| e.0.is_frozen)
    }

    /// The consequence.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The cause without its chain.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Impact and next command, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the system said that the medium, or the filesystem's own checksum of it, is bad. Every other error of the system (no
    /// descriptors, no memory, a mount that went away) says nothing about what was read.
    pub fn is_medium(&self) -> bool {
        use rustix::io::Errno;
        let mut cause = StdError::source(self);
        while let Some(source) = cause {
            if let Some(io) = source.downcast_ref::<std::io::Error>() {
                let errno = io.raw_os_error().map(Errno::from_raw_os_error);
                return self.code() == Code::Io
                    && matches!(errno, Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG));
            }
            cause = source.source();
        }
        false
    }

    /// An operating system error met while `doing` something, with the code that follows from its number.
    ///
    /// `ENOENT` and everything without a rule of its own become `Io`; a caller to whom absence means something asks before.
    pub fn from_io(doing: impl Into<String>, error: std::io::Error) -> Self {
        let code = io_code(&error);
        Error::new(code, doing).source(error)
    }
}

/// An error and what is behind it, also inside errors of the operating system, whose `source` passes over what they hold.
pub fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&this| {
        match this.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => this.source(),
        }
    })
}

/// The consequence of an operating system error, by its number.
pub fn io_code(error: &std::io::Error) -> Code {
    use rustix::io::Errno;
    if let Some(own) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        return own.code();
    }
    let Some(raw) = error.raw_os_error() else {
        return match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Denied,
            std::io::ErrorKind::TimedOut => Code::Deadline,
            _ => Code::Io,
        };
    };
    match Errno::from_raw_os_error(raw) {
        Errno::ACCESS | Errno::PERM => Code::Denied,
        Errno::NOSPC | Errno::DQUOT => Code::Full,
        Errno::ROFS => Code::ReadOnly,
        Errno::TIMEDOUT
        | Errno::CONNREFUSED
        | Errno::CONNRESET
        | Errno::HOSTUNREACH
        | Errno::HOSTDOWN
        | Errno::NETUNREACH
        // A FUSE filesystem whose process has died.
        | Errno::NOTCONN => Code::Unreachable,
        _ => Code::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            // An `Error` prints its own chain; print only its message here, the loop walks on.
            match cause.downcast_ref::<Error>() {
                Some(own) => write!(f, ": {}", own.message())?,
                None => write!(f, ": {cause}")?,
            }
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.code)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}

/// Makes an [`Error`] from a code and a format string.
#[macro_export]
macro_rules! err {
    ($code:ident, $($arg:tt)*) => { $crate::error::Error::new($crate::error::Code::$code, format!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_without_its_server_is_unreachable_and_no_broken_disk() {
        use rustix::io::Errno;
        let code = |errno: Errno| io_code(&std::io::Error::from(errno));
        for errno in [Errno::NOTCONN, Errno::HOSTDOWN, Errno::TIMEDOUT] {
            assert_eq!(code(errno), Code::Unreachable, "{errno}");
        }
        for errno in [Errno::IO, Errno::STALE] {
            assert_eq!(code(errno), Code::Io, "{errno}");
        }
    }

    #[test]
    fn chain_reads_as_one_line_and_keeps_code_and_hint() {
        let io = std::io::Error::from_raw_os_error(28);
        let e = Error::from_io("write object \"x\"", io)
            .hint("Free some space.")
            .context("push segment \"s\"");
        assert_eq!(e.code(), Code::Full);
        assert_eq!(e.hint_text(), Some("Free some space."));
        assert_eq!(
            e.to_string(),
            "push segment \"s\": write object \"x\": No space left on device (os error 28)"
        );
    }
}
