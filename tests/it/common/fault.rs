//! Faults at chosen system calls, by strace: it sees the calls of every crate, also those that go past libc.
//!
//! strace counts each system call of a set for itself, and each thread for itself. A sweep therefore takes the calls of one
//! undisturbed run ([`trace`]) and hits every one of them by name and number ([`Call::fault`]).

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::program::{Program, Run, Running};
use super::sandbox::Sandbox;
use super::wait_until;

/// The variable that keeps pitr from a thread of its own for others to see it: calls are counted thread by thread.
const UNSEEN: &str = "PITR_FAULT_UNSEEN";

/// The calls that change a filesystem. `openat` is left out: it is mostly reading; a sweep that wants it adds it.
pub const MUTATING: &[&str] = &[
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "fallocate",
    "ftruncate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "fchownat",
    "utimensat",
];

/// Calls that open, list and read: with [`MUTATING`] all that a program does with a store.
const READING: &[&str] = &[
    "openat",
    "openat2",
    "getdents64",
    "pread64",
    "read",
    "newfstatat",
    "statx",
    "fstat",
    "close",
    "flock",
];

/// Whether a sweep is to hit every call on a repository (`make sweep`), not only those that decide.
pub fn is_long() -> bool {
    std::env::var_os("PITR_SWEEP").is_some()
}

/// Whether point `n` of a sweep is tried in this turn (`PITR_TEST_TURN`, Makefile): every third one, and without turns each.
pub fn is_of_turn(n: usize) -> bool {
    turn().is_none_or(|turn| turn % TURNS == n % TURNS)
}

/// The share of a number of points that one turn tries, rounded down.
pub fn share(points: usize) -> usize {
    points / turn().map_or(1, |_| TURNS)
}

const TURNS: usize = 3;

/// The number of this turn (Makefile), where the tests take turns.
pub fn turn() -> Option<usize> {
    let turn = std::env::var("PITR_TEST_TURN").ok()?;
    Some(turn.parse().expect("PITR_TEST_TURN is a number"))
}

/// The calls of a long sweep.
pub fn every_call() -> Vec<&'static str> {
    [MUTATING, READING].concat()
}

/// An event at a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    calls: String,
    effect: String,
    when: String,
    paths: Vec<String>,
}

impl Fault {
    /// The calls (`"fsync"`, or several: `"rename,renameat,renameat2"`) return an error (`"EIO"`), each time.
    pub fn error(calls: &str, errno: &str) -> Fault {
        Fault::new(calls, format!("error={errno}"))
    }

    /// The process is killed as it enters one of the calls, which is then not made.
    pub fn kill(calls: &str) -> Fault {
        Fault::new(calls, "signal=SIGKILL".into())
    }

    /// The process gets a signal (`"SIGTERM"`) at one of the calls.
    pub fn signal(calls: &str, signal: &str) -> Fault {
        Fault::new(calls, format!("signal={signal}"))
    }

    /// The calls are not made, yet return this: a lying fsync (0), a short write.
    pub fn pretend(calls: &str, returned: i64) -> Fault {
        Fault::new(calls, format!("retval={returned}"))
    }

    /// The calls are held for this long.
    pub fn delay(calls: &str, delay: std::time::Duration) -> Fault {
        Fault::new(calls, format!("delay_enter={}", delay.as_micros()))
    }

    fn new(calls: &str, effect: String) -> Fault {
        Fault {
            calls: calls.to_owned(),
            effect,
            when: String::new(),
            paths: Vec::new(),
        }
    }

    /// Only at the n-th of the calls, counted from 1 for each system call and thread; `n+` is "from the n-th on".
    #[must_use]
    pub fn at(mut self, when: impl std::fmt::Display) -> Fault {
        self.when = format!(":when={when}");
        self
    }

    /// Only at calls on this very file or folder (not what lies under it).
    #[must_use]
    pub fn on(mut self, path: impl AsRef<Path>) -> Fault {
        self.paths.push(path.as_ref().to_str().unwrap().to_owned());
        self
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![
            // Without it in the traced set, strace leaves the fault out in silence.
            format!("--trace={}", self.calls),
            format!("--inject={}:{}{}", self.calls, self.effect, self.when),
        ];
        for path in &self.paths {
            words.extend(["-P".into(), path.clone()]);
        }
        words
    }
}

/// Runs `program` with a fault; returns what it left and how often the fault fired. Tests assert on that number.
pub fn inject(program: &Program, fault: &Fault) -> (Run, usize) {
    let (run, log) = strace(program, &fault.words());
    let killed = fault.effect == "signal=SIGKILL";
    let fired = log
        .lines()
        .filter(|line| {
            if killed {
                line.ends_with("+++ killed by SIGKILL +++")
            } else if fault.effect.starts_with("signal=") {
                // Once for the call, once for its delivery.
                line.contains("(INJECTED)")
                    || line.contains(&format!("--- {} ", &fault.effect[7..]))
            } else {
                line.contains("(INJECTED)") || line.contains("(DELAYED)")
            }
        })
        .count();
    // With several threads strace names the end of each, or of none; but nobody else kills the program.
    let unnamed = killed && fired == 0 && run.code() == 128 + 9;
    (run, fired + usize::from(unnamed))
}

/// Runs `program`, stops it as it enters one of the calls for the first time, and lets it go on once `meanwhile` has returned.
///
/// # Panics
/// When it makes none of the calls.
pub fn pause(program: &Program, calls: &str, meanwhile: impl FnOnce()) -> Run {
    pause_at(program, &Fault::signal(calls, "SIGSTOP").at(1), meanwhile)
}

/// As [`pause`], at the call that a SIGSTOP is to hit.
pub fn pause_at(program: &Program, fault: &Fault, meanwhile: impl FnOnce()) -> Run {
    let sandbox = Sandbox::new("strace");
    let log = sandbox.file("log", "");
    let mut prefix: Vec<String> = ["strace", "-D", "-f", "-qq", "-o"]
        .map(str::to_owned)
        .to_vec();
    prefix.push(log.to_str().unwrap().to_owned());
    prefix.extend(fault.words());
    prefix.push("--".into());
    // With -D the process that was started is the program itself.
    let mut running = program.clone().env(UNSEEN, "1").under(prefix).spawn();
    wait_until("the program is stopped", || {
        assert!(
            !running.is_done(),
            "{} makes none of {}",
            program.shell(),
            fault.calls
        );
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("--- stopped by SIGSTOP ---")
    });
    meanwhile();
    // Another thread may make the call, too, and stop the program again.
    wait_until("the program ends", || {
        running.signal(Signal::CONT);
        running.is_done()
    });
    running.wait()
}

/// One system call of an undisturbed run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The process or thread.
    pub pid: u32,
    /// Its name, `fsync`.
    pub name: String,
    /// The how many-th of this name in this thread, from 1.
    pub nth: usize,
    /// The line of strace, paths of descriptors included: `fsync(5</tmp/x>) = 0`.
    pub text: String,
}

impl Call {
    /// The fault that kills the program just before this call.
    pub fn kill(&self) -> Fault {
        Fault::kill(&self.name).at(self.nth)
    }

    /// The fault that makes this call fail.
    pub fn fail(&self, errno: &str) -> Fault {
        Fault::error(&self.name, errno).at(self.nth)
    }

    /// Whether it names `path`, or something under it.
    pub fn touches(&self, path: &Path) -> bool {
        self.text.contains(path.to_str().unwrap())
    }
}

/// Runs `program` undisturbed; returns what it left and which of `calls` it made, in order.
pub fn trace(program: &Program, calls: &[&str]) -> (Run, Vec<Call>) {
    // A "?" passes over what this strace or this machine does not know (fchmodat2, rename on some).
    let known: Vec<String> = calls.iter().map(|call| format!("?{call}")).collect();
    let (run, log) = strace(program, &[format!("--trace={}", known.join(","))]);
    let mut count = std::collections::HashMap::new();
    let made = log
        .lines()
        .filter_map(|line| {
            let (pid, text) = line.split_once(' ')?;
            let text = text.trim_start();
            let (name, _) = text.split_once('(')?;
            // Not "<... fsync resumed>", "+++ exited" and "--- SIG…".
            if !calls.contains(&name) {
                return None;
            }
            let pid = pid.parse().ok()?;
            let nth = count.entry((pid, name.to_owned())).or_insert(0);
            *nth += 1;
            Some(Call {
                pid,
                name: name.to_owned(),
                nth: *nth,
                text: text.to_owned(),
            })
        })
        .collect();
    (run, made)
}

/// Runs `program` undisturbed and returns how often it made any of `calls`.
pub fn count(program: &Program, calls: &[&str]) -> usize {
    let (_, made) = trace(program, calls);
    made.len()
}

/// A program that runs with a fault.
pub struct Faulty {
    /// Goes before `running`, whose end ends strace alone.
    traced: Traced,
    /// The program.
    pub running: Running,
    log: PathBuf,
    _sandbox: Sandbox,
}

impl Faulty {
    /// Starts one whose calls are held.
    pub fn held(program: &Program, fault: &Fault) -> Faulty {
        let sandbox = Sandbox::new("strace");
        let log = sandbox.file("log", "");
        let running = under_strace(program, &fault.words(), &log).spawn();
        Faulty {
            traced: Traced(running.pid()),
            running,
            log,
            _sandbox: sandbox,
        }
    }

    /// Meets the calls of a process that runs, from here on. It takes root.
    pub fn attached(pid: u32, fault: &Fault) -> Faulty {
        let sandbox = Sandbox::new("strace");
        let log = sandbox.file("log", "");
        let strace = Program::new("strace").args(["-f", "-qq", "-y", "-s", "0", "-o"]);
        let strace = strace.arg(&log).args(fault.words());
        let running = strace.args(["-p", &pid.to_string()]).privileged().spawn();
        Faulty {
            traced: Traced(running.pid()),
            running,
            log,
            _sandbox: sandbox,
        }
    }

    /// Leaves the process as it was.
    pub fn detach(self) {
        self.running.signal(Signal::INT);
        self.running.wait();
    }

    /// Kills it, and waits for its end. strace alone would leave it running.
    pub fn kill(self) {
        for pid in self.traced.pids() {
            kill_process(pid, Signal::KILL).unwrap();
        }
        self.running.wait();
    }

    /// How many calls were held, or failed, so far.
    pub fn fired(&self) -> usize {
        let log = std::fs::read(&self.log).unwrap();
        let log = String::from_utf8_lossy(&log);
        log.matches("(DELAYED)").count() + log.matches("(INJECTED)").count()
    }
}

/// The programs that a strace has started, by its process id. They end with this, also where a test fails.
struct Traced(u32);

impl Traced {
    fn pids(&self) -> Vec<Pid> {
        let own = format!("/proc/{0}/task/{0}", self.0);
        let read = |name: &str| std::fs::read_to_string(format!("{own}/{name}"));
        // Another process may have the number by now.
        if read("comm").is_ok_and(|name| name.trim_end() != "strace") {
            return Vec::new();
        }
        let children = read("children").unwrap_or_default();
        let pids = children.split_whitespace();
        pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
            .collect()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn strace(program: &Program, words: &[String]) -> (Run, String) {
    let sandbox = Sandbox::new("strace");
    let log = sandbox.file("log", "");
    let run = under_strace(program, words, &log).run();
    let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    (run, log)
}

fn under_strace(program: &Program, words: &[String], log: &Path) -> Program {
    let mut prefix: Vec<String> = ["strace", "-f", "-qq", "-y", "-s", "0", "-o"]
        .map(str::to_owned)
        .to_vec();
    prefix.push(log.to_str().unwrap().to_owned());
    prefix.extend(words.iter().cloned());
    prefix.push("--".into());
    program.clone().env(UNSEEN, "1").under(prefix)
}

/// Whether strace can be used; else the reason, for [`skip!`](crate::skip).
pub fn missing() -> Option<&'static str> {
    let works = std::process::Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    (!works).then_some("strace is missing, or may not trace here: apt-get install strace")
}

/// Ends the test as skipped when strace cannot be used: `require_strace!("name")`.
#[macro_export]
macro_rules! require_strace {
    ($name:expr) => {
        if let Some(why) = $crate::common::fault::missing() {
            $crate::skip!($name, why);
        }
    };
}
