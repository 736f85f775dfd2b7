//! `pitr-restore`: the restore_command of PostgreSQL. Exits 0, 1 (proven absent) or 200–209, or dies of SIGTERM; never anything else.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use pitr::command::prefetch::{self, Prefetch};
use pitr::command::restore::{self, Reach};
use pitr::command::{self, Arguments, delegate, outside, recovery_ended};
use pitr::config::Environment;
use pitr::error::{Code, Error};
use pitr::exit::{Program, SUCCESS, status};

fn main() -> ExitCode {
    // The panic's own text would stand in PostgreSQL's log without a code.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Error::new(Code::Internal, "internal error")
            .hint("Recovery stops and can be started again. Please report this."))
    });
    // PostgreSQL must not take the end of a worker for that of one of its own (decisions/0014-fetching-ahead.md).
    if is_given(prefetch::SWITCH) {
        return ExitCode::SUCCESS;
    }
    // A status above 125 would stop a server that has recovered.
    let ends_recovery = is_given(recovery_ended::SWITCH);
    match outcome {
        Err(e) if ends_recovery => {
            say(&restore::message(&e));
            ExitCode::FAILURE
        }
        outcome => ExitCode::from(answer(&outcome)),
    }
}

/// Whether the command line has this switch, also when the rest of it is not understood.
fn is_given(switch: &str) -> bool {
    let switch = format!("--{switch}");
    std::env::args_os().any(|a| a == *switch)
}

/// The exit status, also that of `pitr` where it did the work.
fn run() -> Result<u8, Error> {
    let arguments = command::parse(
        std::env::args_os().skip(1).collect(),
        &[recovery_ended::SWITCH, prefetch::SWITCH, command::AS_STORED],
    )?;
    if let Some(text) = arguments.about("pitr-restore", restore::HELP) {
        let _ = std::io::stdout().write_all(text.as_bytes());
        return Ok(SUCCESS);
    }
    // The process id would be taken again after a crash, with its leftovers still there.
    let nonce = RandomState::new().build_hasher().finish();
    if arguments
        .switches
        .iter()
        .any(|s| s == recovery_ended::SWITCH)
    {
        let removed = recovery_ended::run(&arguments, nonce)?;
        say(&format!(
            "pitr-restore: recovery has ended; {removed} recovery settings removed from postgresql.auto.conf\n"
        ));
        return Ok(SUCCESS);
    }
    let environment = Environment::of_process();
    if arguments.switches.iter().any(|s| s == prefetch::SWITCH) {
        return prefetch::worker::run(&arguments, &environment, nonce).map(|()| SUCCESS);
    }
    if let Some(socket) = environment.get(outside::SOCKET) {
        let ask = || outside::ask(Path::new(socket), &arguments.files);
        return restore::delegated(arguments.clone(), warn, ask);
    }
    let prefetch = Prefetch::of(&arguments, &environment);
    let status = match &prefetch {
        Some(prefetch) if prefetch.take(warn) => SUCCESS,
        _ => fetch(&arguments, &environment, nonce)?,
    };
    if let Some(prefetch) = prefetch.filter(|_| status == SUCCESS) {
        prefetch.delivered(&arguments, &environment);
    }
    Ok(status)
}

/// Fetches from the repositories.
fn fetch(arguments: &Arguments, environment: &Environment, nonce: u64) -> Result<u8, Error> {
    // An error in the configuration is reported by the program that does the work.
    let settings = command::settings(arguments, environment);
    if settings.is_ok_and(|settings| delegate::is_needed(&settings)) {
        let given: Vec<_> = std::env::args_os().skip(1).collect();
        return restore::delegated(arguments.clone(), warn, || {
            delegate::run(Program::Restore, given.clone(), None)
        });
    }
    restore::watched(arguments.clone(), Reach::Near, nonce, warn)
        .map(|fetched| restore::answer(&fetched))
}

/// The exit status; an error is printed.
fn answer(outcome: &Result<u8, Error>) -> u8 {
    match outcome {
        Ok(status) => *status,
        Err(e) => {
            say(&restore::message(e));
            status(Program::Restore, e.code())
        }
    }
}

fn warn(text: &str) {
    say(&restore::warning(text));
}

/// Standard error may be closed; that changes nothing.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
