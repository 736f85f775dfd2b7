//! The plan of a restore, made by the command that people run.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::archive_command::shell_word;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::program::Running;

/// A plan may take so long.
const DEADLINE: Duration = Duration::from_secs(60);
/// A longer answer is none.
const MOST_BYTES: u64 = 8 << 20;
/// The word that the operator replaces.
const TARGET: &str = "/path/of/a/new/directory";

/// The kinds of targets that the page takes, by the word of a query.
pub(super) const KINDS: [&str; 4] = ["time", "lsn", "xid", "name"];

/// Whether a word needs no encoding in a query, and is no option.
fn is_plain(word: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain)
}

/// The option and the value of a target on a command line.
fn target(kind: &str, asked: &str) -> Result<(&'static str, String)> {
    let lsn = || asked.parse::<Lsn>().ok().map(|lsn| lsn.to_string());
    let (option, value, what) = match kind {
        "lsn" => ("--target-lsn", lsn(), "position, such as 0/16B3740"),
        "xid" => {
            let xid = asked.parse::<u64>().ok();
            ("--target-xid", xid.map(|n| n.to_string()), "transaction")
        }
        "name" => {
            let name = is_plain(asked).then(|| asked.to_owned());
            (
                "--target-name",
                name,
                "restore point of letters, digits, dots and dashes: \"pitr plan\" takes others",
            )
        }
        _ => {
            let time = asked.parse::<TimestampTz>().ok();
            let time = time.map(|time| time.to_string());
            ("--target-time", time, "time, such as 2026-11-20T06:40:49Z")
        }
    };
    let value = value.ok_or_else(|| err!(Usage, "that is no {what}"))?;
    Ok((option, value))
}

/// Runs `pitr plan`, by a command that has the configuration, for a target of a kind, and tells the line that would do it.
///
/// # Errors
/// `Usage` for words that are no cluster or no target; `Deadline`; those of the command that gives no plan.
pub(super) fn make(
    (settings, mut command): (&Settings, Command),
    cluster: &str,
    (kind, asked): (&str, &str),
) -> Result<Value> {
    if !is_plain(cluster) {
        return Err(err!(Usage, "that is no name of a cluster"));
    }
    let (option, value) = target(kind, asked)?;
    command
        .args(["--json", "--quiet", "plan", "--cluster", cluster])
        .args([option, &value])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let (status, printed, said) = run(&mut command)?;
    let plan: Option<Value> = serde_json::from_slice(&printed).ok();
    match plan {
        Some(plan) if plan.get("reachable").is_some() => Ok(json!({
            "status": status, "plan": plan, "line": line(settings, cluster, (option, &value))
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
fn line(settings: &Settings, cluster: &str, (option, value): (&str, &str)) -> String {
    let path = settings.path.as_ref();
    let config = path.map_or(String::new(), |path| {
        format!(" --config {}", shell_word(&path.to_string_lossy()))
    });
    let value = shell_word(value);
    format!("pitr{config} restore --cluster {cluster} {option} {value} --to {TARGET}")
}

fn run(command: &mut Command) -> Result<(Option<i32>, Vec<u8>, String)> {
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
