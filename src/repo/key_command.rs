//! A command that prints what opens an encrypted repository: a recipient's key file or passphrase, which a KMS, a TPM, a
//! token or another program unwraps. It runs when something is to be opened, and once in a process.
//!
//! Whoever may change the program, or a file that it is told to read, has the key: so both are looked at before, and what was
//! looked at is what runs.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::config::account::Account;
use crate::config::trust;
use crate::err;
use crate::error::{Error, Result};
use crate::program;

/// A key file or a passphrase is not longer.
const SECRET_BYTES: usize = 4096;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the end of a command is looked for.
const GLANCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// How much of what it says is kept: the beginning.
const SAID_BYTES: usize = 16 << 10;
/// How many lines of it a message repeats.
const SHOWN_LINES: usize = 3;
/// A run of so many letters and digits may be a key.
const LONG: usize = 20;
/// The search path of every command: the same from a shell, from cron and from the server.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables that a command does not get: secrets of this program and of servers, and what loads code into a program or a shell.
const KEPT_FROM_IT: [&[u8]; 5] = [b"PITR_", b"PG", b"REDISCLI_AUTH", b"LD_", b"BASH_ENV"];

/// Secrets that helpers gave, by their words.
static GIVEN: Mutex<BTreeMap<Vec<String>, Zeroizing<Vec<u8>>>> = Mutex::new(BTreeMap::new());

/// Returns the secret that a command of the configuration prints; `setting` is its key there.
///
/// # Errors
/// `Key` when it may not be run, fails, takes too long, or prints too much or nothing.
pub fn secret(setting: &str, words: &[String]) -> Result<Zeroizing<Vec<u8>>> {
    once(words.to_vec(), || run(setting, words, None, SECRET_BYTES))
}

/// Returns the secret that a helper gives, which is asked once in a process.
///
/// # Errors
/// Those of the helper.
pub fn once(
    words: Vec<String>,
    ask: impl FnOnce() -> Result<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>> {
    // Others wait for the answer, and do not ask, too.
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = given.get(&words) {
        return Ok(known.clone());
    }
    let secret = ask()?;
    given.insert(words, secret.clone());
    Ok(secret)
}

/// Runs a command, which is given `input` where there is one, and returns what it prints.
///
/// # Errors
/// As [`secret`].
pub fn run(
    setting: &str,
    words: &[String],
    input: Option<&[u8]>,
    limit_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(err!(Config, "{setting} names no program"));
    };
    let named = Named { setting, program };
    if !Path::new(program).is_absolute() {
        return Err(named.untrusted("is not an absolute path"));
    }
    let real = trust::closed_path(Path::new(program)).map_err(|why| named.untrusted(&why))?;
    let files = arguments.iter().map(Path::new);
    for file in files.filter(|path| path.is_absolute() && path.is_file()) {
        trust::closed_path(file).map_err(|why| {
            named.untrusted(&format!("is given \"{}\", which {why}", file.display()))
        })?;
    }
    let mut command = Command::new(real);
    command
        .arg0(program)
        .args(arguments)
        .current_dir("/")
        .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for prefix in KEPT_FROM_IT {
        program::remove_variables(&mut command, prefix);
    }
    command.env_remove("ENV").env("PATH", SEARCH_PATH);
    let child = command
        .spawn()
        .map_err(|e| named.error("could not be run").source(e))?;
    let mut running = Running {
        child,
        has_ended: false,
    };
    let heard = running.hear(input, limit_bytes, &named)?;
    heard.checked(&named)
}

/// The names of a command in messages. Its arguments are not among them.
struct Named<'a> {
    setting: &'a str,
    program: &'a str,
}

impl Named<'_> {
    fn error(&self, what: &str) -> Error {
        let user = Account::name_of(rustix::process::geteuid().as_raw());
        err!(Key, "{} \"{}\" {what}", self.setting, self.program).hint(format!(
            "Nothing that is encrypted was opened or made. Run it as user \"{user}\", with its arguments, and count what it prints: {} … | wc -c",
            self.program
        ))
    }

    fn untrusted(&self, why: &str) -> Error {
        err!(Key, "{} \"{}\" {why}", self.setting, self.program).hint(
            "It was not run: what it prints opens the repository. Let it, what it reads and the directories above belong to root, and let nobody else write them: chown root FILE; chmod go-w FILE",
        )
    }
}

/// A command that runs. Dropped before its end, it is killed with its workers.
struct Running {
    child: Child,
    has_ended: bool,
}

/// The output of a command that has ended.
struct Heard {
    status: ExitStatus,
    printed: Zeroizing<Vec<u8>>,
    said: Zeroizing<Vec<u8>>,
}

impl Running {
    /// Gives it its input, and reads what it prints until it ends.
    fn hear(
        &mut self,
        input: Option<&[u8]>,
        limit_bytes: usize,
        named: &Named<'_>,
    ) -> Result<Heard> {
        let failed = |e| named.error("could not be heard").source(e);
        if let (Some(input), Some(mut pipe)) = (input, self.child.stdin.take()) {
            match pipe.write_all(input) {
                // Its status tells why it wanted none.
                Err(e) if e.kind() != ErrorKind::BrokenPipe => return Err(failed(e)),
                _ => {}
            }
        }
        let started = Instant::now();
        // One byte more shows that there is too much.
        let mut printed = Kept::new(self.child.stdout.take(), limit_bytes + 1);
        let mut said = Kept::new(self.child.stderr.take(), SAID_BYTES);
        loop {
            // Looked for first: what a program that has ended printed is in the pipes.
            let ended = self.child.try_wait().map_err(failed)?;
            self.has_ended = ended.is_some();
            let has_come = wait(&mut [&mut printed, &mut said], ended.is_some()).map_err(failed)?;
            if printed.length > limit_bytes {
                return Err(named.error(&format!("prints more than {limit_bytes} bytes")));
            }
            if let (Some(status), false) = (ended, has_come) {
                let (printed, said) = (printed.bytes(), said.bytes());
                return Ok(Heard {
                    status,
                    printed,
                    said,
                });
            }
            if started.elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                return Err(
                    named.error(&format!("has not ended within {seconds} s, and was killed"))
                );
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended {
            // It was not waited for: the number of the group is still its own. The group holds nothing that would be lost.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// A pipe, and what came out of it: the first bytes, in a buffer that never moves.
struct Kept {
    pipe: Option<Box<dyn Pipe>>,
    bytes: Zeroizing<Vec<u8>>,
    length: usize,
}

/// The end of a pipe that is read.
trait Pipe: Read + AsFd {}
impl<P: Read + AsFd> Pipe for P {}

impl Kept {
    fn new(pipe: Option<impl Pipe + 'static>, limit_bytes: usize) -> Kept {
        Kept {
            pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>),
            bytes: Zeroizing::new(vec![0; limit_bytes]),
            length: 0,
        }
    }

    /// Reads once. Bytes without room are lost.
    fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut lost = Zeroizing::new([0; 512]);
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let read = match room.is_empty() {
            true => pipe.read(&mut *lost).map(|length| (length, 0)),
            false => pipe.read(room).map(|length| (length, length)),
        };
        match read {
            Ok((0, _)) => self.pipe = None,
            Ok((_, kept)) => self.length += kept,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn bytes(mut self) -> Zeroizing<Vec<u8>> {
        self.bytes.truncate(self.length);
        self.bytes
    }
}

/// Waits until one of the pipes has something, or for a moment, and reads. Returns whether something came.
fn wait(pipes: &mut [&mut Kept], has_ended: bool) -> io::Result<bool> {
    let timeout = match has_ended {
        true => NO_TIME,
        false => GLANCE,
    };
    let open = |kept: &&mut Kept| kept.pipe.is_some();
    let mut open: Vec<&mut Kept> = pipes
        .iter_mut()
        .map(|kept| &mut **kept)
        .filter(open)
        .collect();
    let ready: Vec<bool> = {
        let pipes = open.iter().filter_map(|kept| kept.pipe.as_ref());
        let mut polled: Vec<PollFd<'_>> =
            pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Err(Errno::INTR) => return Ok(true),
            Err(e) => return Err(e.into()),
            Ok(_) => polled.iter().map(|one| !one.revents().is_empty()).collect(),
        }
    };
    for (kept, _) in open
        .iter_mut()
        .zip(&ready)
        .filter(|(_, is_ready)| **is_ready)
    {
        kept.read()?;
    }
    Ok(ready.contains(&true))
}

impl Heard {
    /// Returns the output of a command that succeeded.
    ///
    /// Its standard error is repeated only where it failed before it printed anything: then it had no secret yet. One that has printed may have
    /// said the same to standard error, as a shell that traces does.
    fn checked(self, named: &Named<'_>) -> Result<Zeroizing<Vec<u8>>> {
        let has_printed = !self.printed.trim_ascii().is_empty();
        match (self.status.success(), has_printed) {
            (true, true) => Ok(self.printed),
            (true, false) => Err(named.error("prints nothing")),
            (false, true) => Err(named.error(&format!(
                "failed ({}) after it had printed something: that, and what it said, may hold a secret and is not shown",
                self.status
            ))),
            (false, false) => Err(named.error(&format!("failed ({}){}", self.status, shown(&self.said)))),
        }
    }
}

/// Returns the last lines of what a command said, for a message: without control characters, and without what may be a key.
fn shown(said: &[u8]) -> String {
    let text = Zeroizing::new(String::from_utf8_lossy(said).into_owned());
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines
        .get(lines.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default();
    let shown: Vec<String> = last.iter().map(|line| masked(line)).collect();
    match shown.is_empty() {
        true => String::new(),
        false => format!(": {}", shown.join(" · ")),
    }
}

/// Replaces long runs of letters and digits, as keys and tokens are.
fn masked(line: &str) -> String {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_');
    let mut shown = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let is_run = is_of_key(first);
        let end = rest.find(|c| is_of_key(c) != is_run).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        let may_be_key = is_run && run.len() >= LONG && run.bytes().any(|b| b.is_ascii_digit());
        match may_be_key {
            true => shown.push('…'),
            false => shown.extend(run.chars().map(|c| if c.is_control() { ' ' } else { c })),
        }
        rest = after;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_repeats_words_and_no_keys() {
        let hex = "0123456789abcdef".repeat(4);
        let base64 = "kR3x+Zq0vT8uYw2pLmN4/aBcDeFgHiJkLmNoPqRsTuV0=";
        let said = format!(
            "one\nAccessDeniedException: key/{hex}\n\n\x1b[31m{{\"k\":\"{base64}\"}}\nuuid 1c2d3e4f-0000-4444-8888-0123456789ab\n"
        );
        assert_eq!(
            shown(said.as_bytes()),
            ": AccessDeniedException: key/… ·  [31m{\"k\":\"…/…\"} · uuid 1c2d3e4f-0000-4444-8888-0123456789ab"
        );
        assert_eq!(shown(b" \n"), "");
    }
}
