//! `pitr`: parse, run, exit status. Everything is in `pitr::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pitr::cli::main())
}
