//! `pitr alert`.

use super::Context;
use crate::agent::alert;
use crate::error::Result;
use crate::exit::{self, Program};

/// Try the sinks of alerts
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Send a test to each sink
    ///
    /// When one did not take it, the exit status is that of its error.
    ///
    /// Example: pitr alert test --sink mail
    Test {
        /// Send to this one alone
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
    },
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    let Command::Test { sink } = command;
    let settings = cx.session.settings()?;
    let tried = alert::test(&cx.session, &settings, sink.as_deref())?;
    let shown = tried.iter().map(|one| serde_json::json!({ "sink": one.sink, "error": one.failed.as_ref().map(ToString::to_string) }));
    let shown = serde_json::json!({ "sinks": shown.collect::<Vec<_>>() });
    cx.answer(&shown, || {
        tried.iter().try_for_each(|one| {
            let result = one.failed.as_ref().map(|e| format!("FAILED: {e}"));
            let result = result.as_deref().unwrap_or("took the test");
            cx.line(&format!("{}: {result}", one.sink))
        })
    })?;
    let failed = tried.iter().find_map(|one| one.failed.as_ref());
    Ok(failed.map_or(exit::SUCCESS, |e| {
        match exit::status(Program::Pitr, e.code()) {
            exit::SUCCESS => exit::CRITICAL,
            status => status,
        }
    }))
}
