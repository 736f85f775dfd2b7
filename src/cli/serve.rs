//! `pitr serve`: what `pitr-archive` and `pitr-restore` leave to this program. Not for people, and not in the help.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::Context;
use super::terminal::standard_error;
use crate::command::restore::{self, Reach};
use crate::command::{self, ahead, archive, delegate, detach, prefetch, shipper};
use crate::err;
use crate::error::{Error, Result};
use crate::exit::{self, Program};
use crate::store::runtime;

/// Do the work of one of the two small programs
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The process that started this one, and with which it ends; a worker ends by itself
    #[arg(long, value_name = "PID", required_if_eq_any = [("program", "archive"), ("program", "restore")])]
    pub caller: Option<i32>,

    /// How long the caller waits
    #[arg(long, value_name = "MILLISECONDS")]
    pub limit_ms: Option<u64>,

    /// Which of the two, or the worker that archives or fetches ahead
    #[arg(value_name = "archive|restore|ship|prefetch", value_parser = ["archive", "restore", shipper::WORD, prefetch::SWITCH])]
    pub program: String,

    /// Its arguments
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<OsString>,
}

/// Runs the command: its messages and statuses are those of the small program, and standard output gets the status.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let arguments = args.arguments.clone();
    if args.program == shipper::WORD {
        // Nobody hears its messages; the process that archives a file finds what is wrong with it.
        let _ = archive::arguments(arguments)
            .and_then(|arguments| shipper::run(&arguments, cx.session.host.random()));
        return Ok(shipper::STATUS);
    }
    if args.program == prefetch::SWITCH {
        // Nobody hears its messages; the process that asks for the segment finds what is wrong.
        let _ = command::parse(arguments, &[]).and_then(|parsed| {
            prefetch::worker::run(&parsed, &cx.session.environment, cx.session.host.random())
        });
        return Ok(exit::SUCCESS);
    }
    if let Some(caller) = args.caller {
        follow(caller)?;
    }
    let status = match args.program == delegate::word(Program::Archive) {
        true => archive_file(arguments, limit(args.limit_ms), cx),
        false => restore_file(arguments, cx),
    };
    cx.raw(&delegate::answer(status))?;
    Ok(status)
}

/// Ends when the caller ends, and gets no signal meant for its process group.
fn follow(caller: i32) -> Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    detach::own_session();
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|e| Error::from_io("follow the caller", e.into()))?;
    match super::is_parent(caller) {
        true => Ok(()),
        false => Err(err!(Interrupted, "the caller is gone")),
    }
}

/// How long archiving may take. Requests end before that, so that the message gives their cause.
fn limit(given_ms: Option<u64>) -> Duration {
    let longest = archive::deadline();
    let limit = given_ms.map_or(longest, |ms| Duration::from_millis(ms).min(longest));
    runtime::end_at(Instant::now() + delegate::sooner(limit));
    limit
}

fn archive_file(arguments: Vec<OsString>, limit: Duration, cx: &Context) -> u8 {
    let archived = archive::arguments(arguments)
        .and_then(|parsed| ahead::on_behalf(parsed, cx.session.host.random(), limit));
    match archived {
        Ok(archived) => {
            for warning in &archived.warnings {
                standard_error(&archive::warning(warning));
            }
            exit::SUCCESS
        }
        Err(e) => {
            standard_error(&archive::message(&e));
            exit::status(Program::Archive, e.code())
        }
    }
}

fn restore_file(arguments: Vec<OsString>, cx: &Context) -> u8 {
    let warn = |text: &str| standard_error(&restore::warning(text));
    let fetched = command::parse(arguments, &[command::AS_STORED])
        .and_then(|parsed| restore::watched(parsed, Reach::Far, cx.session.host.random(), warn));
    match fetched {
        Ok(fetched) => restore::answer(&fetched),
        Err(e) => {
            standard_error(&restore::message(&e));
            exit::status(Program::Restore, e.code())
        }
    }
}
