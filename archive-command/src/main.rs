//! `pitr-archive`: the archive_command of PostgreSQL. Exits 0 or 1–125, or dies of SIGTERM; never anything else.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pitr::command::archive::Archived;
use pitr::command::{archive, watch};
use pitr::config::Environment;
use pitr::error::{Code, Error};
use pitr::exit::{Program, printed, status};
use pitr::fault;

/// Below what platforms allow before they kill a stopping server.
const DEADLINE: Duration = Duration::from_secs(50);
/// How long repositories that are not required may take once the file is acknowledged.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // The panic's own text would stand in PostgreSQL's log without a code.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Error::new(Code::Internal, "internal error")
            .hint("PostgreSQL keeps the file. Please report this."))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn run() -> Result<(), Error> {
    let arguments = archive::arguments(std::env::args_os().skip(1).collect())?;
    if arguments.help || arguments.version {
        let text = if arguments.help {
            archive::HELP
        } else {
            VERSION
        };
        let _ = std::io::stdout().write_all(text.as_bytes());
        return Ok(());
    }
    let (started, deadline) = (Instant::now(), fault::shortened(DEADLINE));
    // The process id would be taken again after a crash, with its leftovers still there.
    let nonce = RandomState::new().build_hasher().finish();
    // When every required repository had it, in milliseconds since the start, plus one; 0 is not yet.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&acknowledged);
    let mark = move || acknowledged.store(millis(started.elapsed()) + 1, Ordering::Relaxed);
    let archived = watch::run(
        move || archive::run(&arguments, &Environment::of_process(), nonce, &mark),
        || {
            let elapsed = started.elapsed();
            let since = seen.load(Ordering::Relaxed);
            let is_late = elapsed >= deadline;
            if since > 0 && (is_late || millis(elapsed) > since + millis(PATIENCE)) {
                return Some(Ok(without_the_rest()));
            }
            is_late.then(|| Err(deadline_error(deadline)))
        },
    )?;
    for warning in archived.warnings {
        say(&format!("pitr-archive: warning: {warning}\n"));
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The file is durable wherever it has to be; a repository that is not required keeps it waiting.
fn without_the_rest() -> Archived {
    Archived {
        is_new: true,
        warnings: vec![
            "not stored in every repository: one that is not required does not answer".to_owned(),
        ],
    }
}

const VERSION: &str = concat!("pitr-archive ", env!("CARGO_PKG_VERSION"), "\n");

fn deadline_error(deadline: Duration) -> Error {
    let seconds = deadline.as_secs();
    Error::new(Code::Deadline, format!("not stored within {seconds} s"))
        .hint("PostgreSQL keeps the file and offers it again. The repository hangs or is too slow.")
}

fn fail(error: &Error) -> ExitCode {
    say(&message(error));
    ExitCode::from(status(Program::Archive, error.code()))
}

fn message(error: &Error) -> String {
    let code = printed(Program::Archive, error.code());
    let hint = error.hint_text().filter(|h| !h.is_empty());
    let hint = hint.map_or_else(String::new, |h| format!("  {h}\n"));
    format!("pitr-archive: error {code}: {error}\n{hint}")
}

/// Standard error may be closed; that changes nothing.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
