//! The plan of a restore, made by the command that people run.

use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::child;
use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::archive_command::shell_word;
use crate::pg::time::TimestampTz;
use crate::program::Running;

/// A plan may take so long.
const DEADLINE: Duration = Duration::from_secs(60);
/// A longer answer is none.
const MOST_BYTES: u64 = 8 << 20;
/// The word that the operator replaces.
const TARGET: &str = "/path/of/a/new/directory";

/// Runs `pitr plan` for a moment, and tells the line that would do it.
///
/// # Errors
/// `Usage` for words that are no cluster or no time; `Deadline`; those of the command that gives no plan.
pub(super) fn make(settings: &Settings, cluster: &str, moment: &str) -> Result<Value> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if cluster.is_empty() || cluster.starts_with('-') || !cluster.chars().all(is_name) {
        return Err(err!(Usage, "that is no name of a cluster"));
    }
    let moment: TimestampTz = moment
        .parse()
        .map_err(|_| err!(Usage, "that is no time, such as 2026-11-20T06:40:49Z"))?;
    let moment = moment.to_string();
    let mut command = child::command(settings)?;
    command
        .args(["--json", "--quiet", "plan", "--cluster", cluster])
        .args(["--target-time", &moment])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let (status, printed, said) = run(&mut command)?;
    let plan: Option<Value> = serde_json::from_slice(&printed).ok();
    match plan {
        Some(plan) if plan.get("reachable").is_some() => Ok(json!({
            "status": status, "plan": plan, "line": line(settings, cluster, &moment)
        })),
        // An error of the command, which is an object, too.
        Some(error) => {
            let message = error.get("message").and_then(Value::as_str);
            Err(err!(Refused, "{}", message.unwrap_or("pitr plan fails")))
        }
        None => Err(err!(Refused, "pitr plan fails: {}", said.trim())),
    }
}

/// The command that does what the plan says.
fn line(settings: &Settings, cluster: &str, moment: &str) -> String {
    let path = settings.path.as_ref();
    let config = path.map_or(String::new(), |path| {
        format!(" --config {}", shell_word(&path.to_string_lossy()))
    });
    let moment = shell_word(moment);
    format!("pitr{config} restore --cluster {cluster} --target-time {moment} --to {TARGET}")
}

fn run(command: &mut std::process::Command) -> Result<(Option<i32>, Vec<u8>, String)> {
    let begun = Instant::now();
    let mut running = Running::start(command)?;
    let pipe = running.stdout();
    let (heard, printed) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(MOST_BYTES).read_to_end(&mut bytes));
        // Nobody listens any more where the command was stopped.
        let _ = heard.send(read.map(|_| bytes));
    });
    let deadline = fault::shortened(DEADLINE);
    let (status, said) = running.wait(&mut || match begun.elapsed() < deadline {
        true => Ok(()),
        false => Err(err!(
            Deadline,
            "the plan takes too long for a page: pitr plan makes it"
        )),
    })?;
    let printed = printed.recv_timeout(deadline);
    let printed = printed.map_err(|_| err!(Deadline, "the plan does not end"))?;
    let printed = printed.map_err(|e| Error::from_io("read a plan", e))?;
    Ok((status.code(), printed, said))
}
