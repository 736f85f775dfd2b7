//! `pitr runbook`.

use std::path::PathBuf;

use serde_json::json;

use super::Context;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::sets::runbook;

/// Write the recovery instructions of a set, as Markdown
///
/// They come from the configuration, the repository, and the times that drills measured. --check compares a copy with the configuration as it is, and leaves with 4
/// when it is stale.
///
/// Example: pitr runbook --set shop > runbook.md
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The set in the configuration; the only one without it
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,

    /// Compare this copy with the configuration
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let set = args.set.as_deref();
    match &args.check {
        None => {
            let text = runbook::write(&cx.session, set)?;
            match cx.out.is_json() {
                true => cx
                    .out
                    .json(&json!({ "format": "markdown", "text": text }))?,
                false => cx.out.text(&text)?,
            }
        }
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let copy =
                read.map_err(|e| Error::from_io(format!("read \"{}\"", path.display()), e))?;
            runbook::check(&cx.session, set, &copy)?;
            match cx.out.is_json() {
                true => cx.out.json(&json!({ "is_current": true }))?,
                false => cx.out.report("the runbook is that of the configuration")?,
            }
        }
    }
    Ok(exit::SUCCESS)
}
