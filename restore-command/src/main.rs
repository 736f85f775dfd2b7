//! `pitr-restore`: the restore_command of PostgreSQL. Exits 0, 1 (proven absent) or 200–209, or dies of SIGTERM; never anything else.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use pitr::archive::fetch::Fetched;
use pitr::command::restore::Job;
use pitr::command::watch::{self, Pulse};
use pitr::command::{self, recovery_ended, restore};
use pitr::config::Environment;
use pitr::error::{Code, Error};
use pitr::exit::{Program, RESTORE_ABSENT, SUCCESS, printed, status};

fn main() -> ExitCode {
    // The panic's own text would stand in PostgreSQL's log without a code.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Error::new(Code::Internal, "internal error")
            .hint("Recovery stops and can be started again. Please report this."))
    });
    // A status above 125 would stop a server that has recovered.
    let ends_recovery = std::env::args_os().any(|a| a == "--recovery-ended");
    match outcome {
        Err(e) if ends_recovery => {
            say(&message(&e));
            ExitCode::FAILURE
        }
        outcome => ExitCode::from(answer(&outcome)),
    }
}

fn run() -> Result<Fetched, Error> {
    let arguments = command::parse(
        std::env::args_os().skip(1).collect(),
        &[recovery_ended::SWITCH],
    )?;
    if arguments.help || arguments.version {
        let text = if arguments.help {
            restore::HELP
        } else {
            VERSION
        };
        let _ = std::io::stdout().write_all(text.as_bytes());
        return Ok(Fetched::Delivered);
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
        return Ok(Fetched::Delivered);
    }
    let environment = Arc::new(Environment::of_process());
    let job = Arc::new(Job::new(arguments)?);
    let pulse = Pulse::new(warn);
    let (seen, at, around) = (pulse.clone(), Arc::clone(&job), Arc::clone(&environment));
    watch::run(
        move || at.run(&around, nonce, &pulse),
        || job.stuck(&environment, &seen),
    )
}

const VERSION: &str = concat!("pitr-restore ", env!("CARGO_PKG_VERSION"), "\n");

/// The exit status; an error is printed.
fn answer(outcome: &Result<Fetched, Error>) -> u8 {
    match outcome {
        Ok(Fetched::Delivered | Fetched::DeliveredTail { .. }) => SUCCESS,
        Ok(Fetched::ProvenAbsent) => RESTORE_ABSENT,
        Err(e) => {
            say(&message(e));
            status(Program::Restore, e.code())
        }
    }
}

fn message(error: &Error) -> String {
    let code = printed(Program::Restore, error.code());
    let hint = error.hint_text().filter(|h| !h.is_empty());
    let hint = hint.map_or_else(String::new, |h| format!("  {h}\n"));
    format!("pitr-restore: error {code}: {error}\n{hint}")
}

fn warn(text: &str) {
    say(&format!("pitr-restore: warning: {text}\n"));
}

/// Standard error may be closed; that changes nothing.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
