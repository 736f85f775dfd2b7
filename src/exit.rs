//! Every printed code and exit status of the three programs (`docs/exit-status.md`).

use crate::error::Code;

/// Which program prints or exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `pitr-archive`, read by PostgreSQL's archiver: never above 125.
    Archive,
    /// `pitr-restore`, read by PostgreSQL's startup process: 1 means "not in the archive"; every error is 200–209.
    Restore,
    /// `pitr`, read by people, scripts and monitoring.
    Pitr,
}

/// Status of `pitr-restore` for proven absence; see [`Program::Restore`].
pub const RESTORE_ABSENT: u8 = 1;
/// Everything went well.
pub const SUCCESS: u8 = 0;
/// `info` and `doctor`: warnings only.
pub const WARNINGS: u8 = 6;
/// `info` and `doctor`: something that somebody has to be woken for.
pub const CRITICAL: u8 = 1;
/// `pitr` after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// The exit status that `program` leaves with after an error of this code.
pub fn status(program: Program, code: Code) -> u8 {
    match program {
        Program::Archive => archive(code),
        Program::Restore => restore(code),
        Program::Pitr => pitr(code),
    }
}

/// The code as it is printed: `A120`, `R201`; empty for `pitr`, whose errors are named by [`name`].
pub fn printed(program: Program, code: Code) -> String {
    match program {
        Program::Archive => format!("A1{:02}", archive(code)),
        Program::Restore => format!("R{}", restore(code)),
        Program::Pitr => name(code).to_owned(),
    }
}

fn archive(code: Code) -> u8 {
    match code {
        Code::Usage => 1,
        Code::Config => 2,
        Code::WalName => 10,
        Code::SourceMissing => 11,
        Code::SourceSize => 12,
        Code::SourceHeader => 13,
        Code::SourceChanged => 14,
        Code::Conflict => 20,
        Code::WrongCluster => 21,
        Code::Clone => 22,
        Code::TimelineReused => 23,
        Code::Unreachable | Code::Server => 30,
        Code::Denied => 31,
        Code::Full => 32,
        Code::Io | Code::TargetWrite => 33,
        Code::ReadOnly => 34,
        Code::ReadBack | Code::Damaged | Code::Unsupported => 35,
        Code::NoRepository => 36,
        Code::Key => 37,
        Code::Deadline | Code::Interrupted => 40,
        Code::Locked => 41,
        Code::Partial => 50,
        Code::Gap
        | Code::SlotLost
        | Code::Diverged
        | Code::NotFound
        | Code::OutOfReach
        | Code::Refused
        | Code::Findings
        | Code::Internal => 70,
    }
}

fn restore(code: Code) -> u8 {
    match code {
        Code::Unreachable | Code::Io | Code::Server => 200,
        Code::Damaged
        | Code::Unsupported
        | Code::ReadBack
        | Code::SourceHeader
        | Code::SourceSize => 201,
        Code::Usage | Code::Config | Code::WalName => 202,
        Code::WrongCluster => 203,
        Code::Key => 204,
        Code::Gap => 205,
        Code::TargetWrite | Code::Full | Code::ReadOnly => 206,
        Code::Denied => 207,
        Code::NoRepository => 208,
        Code::Deadline
        | Code::Internal
        | Code::Interrupted
        | Code::SourceMissing
        | Code::SourceChanged
        | Code::Conflict
        | Code::Clone
        | Code::TimelineReused
        | Code::Locked
        | Code::Partial
        | Code::SlotLost
        | Code::Diverged
        | Code::NotFound
        | Code::OutOfReach
        | Code::Refused
        | Code::Findings => 209,
    }
}

fn pitr(code: Code) -> u8 {
    match code {
        Code::Usage | Code::NotFound | Code::WalName => 2,
        Code::Config => 3,
        Code::Findings => 4,
        Code::OutOfReach => 5,
        Code::Locked => 7,
        Code::Clone | Code::Diverged | Code::Refused => 8,
        Code::Unreachable | Code::NoRepository => 9,
        Code::Partial => 10,
        Code::Interrupted => INTERRUPTED,
        Code::SourceMissing
        | Code::SourceSize
        | Code::SourceHeader
        | Code::SourceChanged
        | Code::Conflict
        | Code::WrongCluster
        | Code::TimelineReused
        | Code::Denied
        | Code::Full
        | Code::Io
        | Code::ReadOnly
        | Code::ReadBack
        | Code::Key
        | Code::Deadline
        | Code::Damaged
        | Code::Gap
        | Code::SlotLost
        | Code::TargetWrite
        | Code::Server
        | Code::Unsupported
        | Code::Internal => 1,
    }
}

/// The name of a code: printed by `pitr` and used as `reason` and `code` in JSON. Never renamed.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Usage => "usage",
        Code::Config => "config",
        Code::WalName => "wal_name",
        Code::SourceMissing => "source_missing",
        Code::SourceSize => "source_size",
        Code::SourceHeader => "source_header",
        Code::SourceChanged => "source_changed",
        Code::Conflict => "conflict",
        Code::WrongCluster => "wrong_cluster",
        Code::Clone => "clone",
        Code::TimelineReused => "timeline_reused",
        Code::Unreachable => "unreachable",
        Code::Denied => "denied",
        Code::Full => "full",
        Code::Io => "io",
        Code::ReadOnly => "read_only",
        Code::ReadBack => "read_back",
        Code::NoRepository => "no_repository",
        Code::Key => "key",
        Code::Deadline => "deadline",
        Code::Locked => "locked",
        Code::Partial => "partial",
        Code::Damaged => "damaged",
        Code::Gap => "gap",
        Code::SlotLost => "slot_lost",
        Code::Diverged => "diverged",
        Code::TargetWrite => "target_write",
        Code::NotFound => "not_found",
        Code::OutOfReach => "out_of_reach",
        Code::Refused => "refused",
        Code::Server => "server",
        Code::Findings => "findings",
        Code::Unsupported => "unsupported",
        Code::Interrupted => "interrupted",
        Code::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_codes_are_those_of_the_documentation() {
        assert_eq!(printed(Program::Archive, Code::Conflict), "A120");
        assert_eq!(printed(Program::Archive, Code::Usage), "A101");
        assert_eq!(printed(Program::Restore, Code::Gap), "R205");
        assert_eq!(printed(Program::Pitr, Code::Gap), "gap");
    }
}
