//! `pitr-archive`: the archive_command of PostgreSQL. Exits 0 or 1–125, or dies of SIGTERM; never anything else.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use pitr::command::{self, ahead, archive, delegate, shipper};
use pitr::config::Environment;
use pitr::error::{Code, Error};
use pitr::exit::{Program, SUCCESS, status};

fn main() -> ExitCode {
    // The panic's own text would stand in PostgreSQL's log without a code.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Error::new(Code::Internal, "internal error")
            .hint("PostgreSQL keeps the file. Please report this."))
    });
    match outcome {
        Ok(status) => ExitCode::from(status),
        // In an archive_command the switch must not acknowledge anything, either.
        Err(e) if ships() => fail_with(&e, shipper::STATUS),
        Err(e) => fail_with(&e, status(Program::Archive, e.code())),
    }
}

/// Whether this is the worker, which nobody waits for.
fn ships() -> bool {
    let switch = format!("--{}", archive::SHIP);
    std::env::args_os().any(|a| a == *switch)
}

/// The exit status of success, or what `pitr` left with where it did the work.
fn run() -> Result<u8, Error> {
    let arguments = archive::arguments(std::env::args_os().skip(1).collect())?;
    if let Some(text) = arguments.about("pitr-archive", archive::HELP) {
        let _ = std::io::stdout().write_all(text.as_bytes());
        return Ok(SUCCESS);
    }
    // The process id would be taken again after a crash, with its leftovers still there.
    let nonce = RandomState::new().build_hasher().finish();
    if arguments.switches.iter().any(|s| s == archive::SHIP) {
        return shipper::run(&arguments, nonce).map(|()| shipper::STATUS);
    }
    let settings = command::settings(&arguments, &Environment::of_process())?;
    let told = if delegate::is_needed(&settings) {
        let given = std::env::args_os().skip(1).collect();
        ahead::delegated(&arguments, &settings, given, nonce)?
    } else {
        ahead::watched(arguments, settings, nonce)?
    };
    say(&told.text);
    Ok(told.status)
}

fn fail_with(error: &Error, status: u8) -> ExitCode {
    say(&archive::message(error));
    ExitCode::from(status)
}

/// Standard error may be closed; that changes nothing.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
