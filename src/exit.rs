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
    let (_, archive, restore, pitr) = of(code);
    match program {
        Program::Archive => archive,
        Program::Restore => restore,
        Program::Pitr => pitr,
    }
}

/// The code as it is printed: `A120`, `R201`; empty for `pitr`, whose errors are named by [`name`].
pub fn printed(program: Program, code: Code) -> String {
    let status = status(program, code);
    match program {
        Program::Archive => format!("A1{status:02}"),
        Program::Restore => format!("R{status}"),
        Program::Pitr => name(code).to_owned(),
    }
}

/// The name of a code, and the statuses of `pitr-archive`, `pitr-restore` and `pitr`.
fn of(code: Code) -> (&'static str, u8, u8, u8) {
    match code {
        Code::Usage => ("usage", 1, 202, 2),
        Code::Config => ("config", 2, 202, 3),
        Code::WalName => ("wal_name", 10, 202, 2),
        Code::SourceMissing => ("source_missing", 11, 209, 1),
        Code::SourceSize => ("source_size", 12, 201, 1),
        Code::SourceHeader => ("source_header", 13, 201, 1),
        Code::SourceChanged => ("source_changed", 14, 209, 1),
        Code::Conflict => ("conflict", 20, 209, 1),
        Code::WrongCluster => ("wrong_cluster", 21, 203, 1),
        Code::Clone => ("clone", 22, 209, 8),
        Code::TimelineReused => ("timeline_reused", 23, 209, 1),
        Code::Unreachable => ("unreachable", 30, 200, 9),
        Code::Denied => ("denied", 31, 207, 1),
        Code::Full => ("full", 32, 206, 1),
        Code::Io => ("io", 33, 200, 1),
        Code::ReadOnly => ("read_only", 34, 206, 1),
        Code::ReadBack => ("read_back", 35, 201, 1),
        Code::NoRepository => ("no_repository", 36, 208, 9),
        Code::Key => ("key", 37, 204, 1),
        Code::Deadline => ("deadline", 40, 209, 1),
        Code::Locked => ("locked", 41, 209, 7),
        Code::Partial => ("partial", 50, 209, 10),
        Code::Damaged => ("damaged", 35, 201, 1),
        Code::Gap => ("gap", 70, 205, 1),
        Code::SlotLost => ("slot_lost", 70, 209, 1),
        Code::Diverged => ("diverged", 70, 209, 8),
        Code::TargetWrite => ("target_write", 33, 206, 1),
        Code::NotFound => ("not_found", 70, 209, 2),
        Code::OutOfReach => ("out_of_reach", 70, 209, 5),
        Code::Refused => ("refused", 70, 209, 8),
        Code::Server => ("server", 30, 200, 1),
        Code::Findings => ("findings", 70, 209, 4),
        Code::Unsupported => ("unsupported", 35, 201, 1),
        Code::Interrupted => ("interrupted", 40, 209, INTERRUPTED),
        Code::Internal => ("internal", 70, 209, 1),
    }
}

/// The name of a code: printed by `pitr` and used as `reason` and `code` in JSON. Never renamed.
pub fn name(code: Code) -> &'static str {
    of(code).0
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
