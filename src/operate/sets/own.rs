//! Commands of pitr itself, as processes of their own.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::Value;

use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::session::Session;
use crate::program::{self, Running};

/// More than any answer has.
const ANSWER_BYTES: u64 = 64 << 20;
/// How long the end of an answer may take once the process has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// The variable by which a process follows the one that started it: its number.
pub const FOLLOWS: &str = "PITR_FOLLOWS";

/// The account that a command runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Returns the owner of a path; none where that is this process's own user.
    ///
    /// # Errors
    /// `Refused` where neither root nor the owner asks; `Io`.
    pub fn of(path: &Path) -> Result<Option<Owner>> {
        let failed = |e| Error::from_io(format!("look at \"{}\"", path.display()), e);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let own = rustix::process::geteuid();
        if metadata.uid() == own.as_raw() {
            return Ok(None);
        }
        match own.is_root() {
            true => Ok(Some(Owner {
                uid: metadata.uid(),
                gid: metadata.gid(),
            })),
            false => Err(err!(
                Refused,
                "\"{}\" belongs to user id {}",
                path.display(),
                metadata.uid()
            )
            .hint("Nothing was changed.\nRun the command as root, or as that user.")),
        }
    }

    /// Lets a program run as this account.
    pub fn apply(owner: Option<Owner>, command: &mut Command) {
        if let Some(owner) = owner {
            command.uid(owner.uid).gid(owner.gid);
        }
    }

    /// The numbers of user and group.
    pub fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }
}

/// The answer of a command.
pub struct Answer {
    pub json: Value,
    /// Whether it warned.
    pub has_warned: bool,
}

/// A word of a command line, as an operator would type it.
pub fn word(word: &str) -> String {
    shell_word(word)
}

/// The words of a command line, as an operator would type it.
pub fn line(words: &[impl AsRef<str>]) -> String {
    let words: Vec<String> = words.iter().map(|one| word(one.as_ref())).collect();
    format!("pitr {}", words.join(" "))
}

/// Runs a command with `--json`, and returns its answer.
///
/// # Errors
/// The error of the command, with its code; those of the system; `Interrupted`.
pub fn run(session: &Session, words: &[impl AsRef<str>], owner: Option<Owner>) -> Result<Answer> {
    let program = std::env::current_exe().map_err(|e| Error::from_io("find pitr itself", e))?;
    let mut command = Command::new(program);
    command.args(words.iter().map(AsRef::as_ref)).arg("--json");
    if let Some(config) = session.settings()?.path {
        command.arg("--config").arg(config);
    }
    if let Some(repository) = &session.flags.repository {
        command.arg("--repository").arg(repository);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.env(FOLLOWS, std::process::id().to_string());
    Owner::apply(owner, &mut command);
    let mut running = Running::start(&mut command)?;
    let pipe = running.stdout();
    let (heard, printed) = channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(ANSWER_BYTES).read_to_end(&mut text));
        // Nobody listens any more where the command was stopped.
        let _ = heard.send(read.map(|_| text));
    });
    let mut tick = || session.host.check_stop();
    let (status, said) = running.wait(&mut tick)?;
    let text = match printed.recv_timeout(PATIENCE) {
        Ok(read) => read.map_err(|e| Error::from_io("read the answer of pitr", e))?,
        Err(_) => Vec::new(),
    };
    let json: Option<Value> = serde_json::from_slice(&text).ok();
    let has_warned = status.code() == Some(i32::from(exit::WARNINGS));
    match json {
        Some(json) if status.success() || has_warned => Ok(Answer { json, has_warned }),
        json => Err(failure(&line(words), json.as_ref(), &said, status)),
    }
}

/// The error of a command, from its answer or from what it said.
fn failure(
    line: &str,
    answer: Option<&Value>,
    said: &str,
    status: std::process::ExitStatus,
) -> Error {
    let from_said = serde_json::from_str(said.get(said.find('{').unwrap_or(0)..).unwrap_or(""));
    let from_said: Option<Value> = from_said.ok();
    let is_error = |value: &&Value| value["code"].is_string() && value["message"].is_string();
    let error = answer
        .filter(is_error)
        .or(from_said.as_ref().filter(is_error));
    let Some(error) = error else {
        return program::failed(line, status, said);
    };
    let code = error["code"].as_str().unwrap_or_default();
    let known = [
        Code::Usage,
        Code::Config,
        Code::NotFound,
        Code::OutOfReach,
        Code::Refused,
        Code::Locked,
        Code::Findings,
        Code::Unreachable,
        Code::Server,
        Code::NoRepository,
        Code::Denied,
        Code::Full,
        Code::Damaged,
        Code::Key,
        Code::TargetWrite,
        Code::Interrupted,
    ];
    let code = known.into_iter().find(|known| exit::name(*known) == code);
    let message = error["message"].as_str().unwrap_or_default();
    let made = err!(Internal, "{line}: {message}");
    let made = made.with_code(code.unwrap_or(Code::SourceMissing));
    match error["hint"].as_str() {
        Some(hint) => made.hint(hint.to_owned()),
        None => made,
    }
}

/// The words of a command line.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The words of a command, with those of a target behind them.
pub fn with(words: &[&str], target: &[String]) -> Vec<String> {
    [&self::words(words)[..], target].concat()
}
