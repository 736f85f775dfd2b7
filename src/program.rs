//! Other programs, run to their end: in a process group of their own, with the end of what they said.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::err;
use crate::error::{Code, Error, Result};

/// How often a program that runs is looked after.
const GLANCE: Duration = Duration::from_millis(20);
/// How often its caller is asked whether to go on.
const TICK: Duration = Duration::from_millis(200);
/// How long a program may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of what it says is kept: the end.
const KEPT_BYTES: usize = 16 << 10;
/// How many of these lines a message repeats.
const SHOWN_LINES: usize = 5;
/// Beginnings of variables that concern no other program: secrets of repositories, and what pitr's processes tell their own steps. A server that is
/// started here would keep these for as long as it lives, and its `archive_command` would go by them.
const OWN_VARIABLES: [&[u8]; 4] = [
    b"PITR_REPOSITORIES_",
    b"PITR_IN_FORCE",
    b"PITR_FOLLOWS",
    b"PITR_CLONE_FOLDER",
];

/// A program that runs. Dropped, it ends with its workers.
pub struct Running {
    name: String,
    child: Child,
    said: Receiver<String>,
    has_ended: bool,
}

/// A command of these words. It inherits the environment without pitr's own variables.
///
/// # Errors
/// `Config` for an empty list.
pub fn command(words: &[String]) -> Result<Command> {
    let Some((program, arguments)) = words.split_first().filter(|(name, _)| !name.is_empty())
    else {
        return Err(err!(Config, "a command has no program"));
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for prefix in OWN_VARIABLES {
        remove_variables(&mut command, prefix);
    }
    Ok(command)
}

/// Keeps libpq's variables, and those of another server, from a program.
pub fn without_libpq(command: &mut Command) {
    remove_variables(command, b"PG");
}

/// Keeps the variables whose names begin so from a program.
pub fn remove_variables(command: &mut Command, prefix: &[u8]) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}

impl Running {
    /// Starts a program. Its standard input and output are those of `command`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn start(command: &mut Command) -> Result<Running> {
        let name = Path::new(command.get_program()).file_name();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        // Ctrl-C at the terminal is this process's alone: it ends the program in order.
        let spawned = command.stderr(Stdio::piped()).process_group(0).spawn();
        let mut child = spawned.map_err(|e| {
            Error::from_io(format!("run \"{name}\""), e).with_code(Code::SourceMissing)
        })?;
        Ok(Running {
            said: listen(&mut child),
            child,
            name,
            has_ended: false,
        })
    }

    /// The pipe into the program, where it has one.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The pipe out of the program, where it has one.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether the program itself has ended. A worker of it may go on.
    pub fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Its process group, which ends with [`stop_group`].
    pub fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end, and asks `tick` all the while whether to go on. Returns the status, and the end of what the program said.
    ///
    /// # Errors
    /// Those of `tick`, after the program was stopped; those of the system.
    pub fn wait(mut self, tick: &mut dyn FnMut() -> Result<()>) -> Result<(ExitStatus, String)> {
        let mut asked = Instant::now();
        loop {
            let ended = self.child.try_wait();
            let ended = ended.map_err(|e| Error::from_io("wait for a program", e))?;
            if let Some(status) = ended {
                self.has_ended = true;
                // A worker that outlives the program holds the pipe open.
                let said = self.said.recv_timeout(PATIENCE).unwrap_or_default();
                return Ok((status, said));
            }
            if asked.elapsed() >= TICK {
                tick()?;
                asked = Instant::now();
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// As [`Running::wait`], and requires success.
    ///
    /// # Errors
    /// `SourceMissing` with the end of what the program said; those of [`Running::wait`].
    pub fn succeed(self, tick: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let name = self.name.clone();
        match self.wait(tick)? {
            (status, _) if status.success() => Ok(()),
            (status, said) => Err(failed(&name, status, &said)),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let since = Instant::now();
        stop_group(self.group());
        while matches!(self.child.try_wait(), Ok(None)) {
            if since.elapsed() > PATIENCE {
                // A group that is gone needs no signal.
                let _ = kill_process_group(self.group(), Signal::KILL);
            }
            std::thread::sleep(GLANCE);
        }
        // A shell leaves at once, and what it started cleans up.
        while since.elapsed() < PATIENCE && test_kill_process_group(self.group()).is_ok() {
            std::thread::sleep(GLANCE);
        }
        let _ = kill_process_group(self.group(), Signal::KILL);
    }
}

/// Asks a program that was not waited for yet, and its workers, to end.
pub fn stop_group(group: Pid) {
    // A group that is gone needs no signal.
    let _ = kill_process_group(group, Signal::TERM);
}

/// Runs a program, and returns what it printed, of which more than `limit` bytes are an error.
///
/// # Errors
/// `SourceMissing` when it fails, with the end of what it said, and when it prints too much; those of `tick` and of the system.
pub fn output(
    command: &mut Command,
    limit: usize,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<u8>> {
    let mut running = Running::start(command.stdout(Stdio::piped()))?;
    let name = running.name.clone();
    let group = running.group();
    let pipe = running.stdout();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let (heard, printed) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(most).read_to_end(&mut bytes));
        if bytes.len() > limit {
            stop_group(group);
        }
        // Nobody listens any more where the program was stopped.
        let _ = heard.send(read.map(|_| bytes));
    });
    let ended = running.succeed(tick);
    let held = || {
        err!(
            SourceMissing,
            "a worker of \"{name}\" holds its output open"
        )
    };
    let printed = match &ended {
        Err(e) if e.code() != Code::SourceMissing => Err(held()),
        _ => printed.recv_timeout(PATIENCE).map_err(|_| held()),
    };
    match (printed, ended) {
        (Ok(Ok(bytes)), _) if bytes.len() > limit => Err(err!(
            SourceMissing,
            "\"{name}\" prints more than {limit} bytes"
        )),
        (_, Err(e)) => Err(e),
        (Ok(read), _) => read.map_err(|e| Error::from_io(format!("read from \"{name}\""), e)),
        (Err(held), _) => Err(held),
    }
}

/// Reads what a program says on a thread: a full pipe would stop it.
fn listen(child: &mut Child) -> Receiver<String> {
    let (heard, said) = channel();
    if let Some(mut pipe) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                kept.extend_from_slice(buffer.get(..length).unwrap_or_default());
                let surplus = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..surplus);
            }
            // Nobody listens any more where the program was stopped.
            let _ = heard.send(String::from_utf8_lossy(&kept).into_owned());
        });
    }
    said
}

/// The error of a program that failed. Its arguments may hold secrets, and are not named.
pub fn failed(name: &str, status: ExitStatus, said: &str) -> Error {
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<&str> = lines.collect();
    let last = lines.get(lines.len().saturating_sub(SHOWN_LINES)..);
    let shown = last.unwrap_or_default().join(" · ");
    let shown = match shown.is_empty() {
        true => String::new(),
        false => format!(": {shown}"),
    };
    err!(SourceMissing, "\"{name}\" failed ({status}){shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        command(&["/bin/sh", "-c", script].map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_failure_says_what_the_program_said_last() {
        let mut go_on = || Ok(());
        let script = "echo out; for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3";
        let e = output(&mut shell(script), 100, &mut go_on).unwrap_err();
        assert_eq!(
            e.to_string(),
            "\"sh\" failed (exit status: 3): line 3 · line 4 · line 5 · line 6 · line 7"
        );
        let e = output(&mut shell("kill -9 $$"), 100, &mut go_on).unwrap_err();
        assert!(e.to_string().contains("signal: 9"), "{e}");
        let e = output(&mut Command::new("/nowhere/x"), 100, &mut go_on).unwrap_err();
        assert_eq!(e.code(), Code::SourceMissing);
        assert_eq!(command(&[]).unwrap_err().code(), Code::Config);
        let printed = output(&mut shell("echo out; echo err >&2"), 4, &mut go_on);
        assert_eq!(printed.unwrap(), b"out\n");
    }

    #[test]
    fn a_program_that_prints_without_end_is_stopped() {
        let e = output(&mut shell("yes"), 1000, &mut || Ok(())).unwrap_err();
        assert!(e.to_string().contains("more than 1000 bytes"), "{e}");
    }

    #[test]
    fn a_program_and_its_workers_end_when_the_caller_stops() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let mut stop = || match std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n')) {
            true => Err(err!(Interrupted, "interrupted")),
            false => Ok(()),
        };
        let e = output(&mut shell(&script), 100, &mut stop).unwrap_err();
        assert_eq!(e.code(), Code::Interrupted);
        let pid = std::fs::read_to_string(&file).unwrap();
        let pid: u32 = pid.trim().parse().unwrap();
        let since = Instant::now();
        while !crate::process::has_ended(pid) {
            assert!(since.elapsed() < PATIENCE, "the worker runs on");
            std::thread::sleep(GLANCE);
        }
    }
}
