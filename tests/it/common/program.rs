//! Running programs: `pitr`, `pitr-archive`, `pitr-restore`, and those of PostgreSQL.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Seek as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::sandbox::Sandbox;
use super::{PATIENCE, postgres, user};

/// `pitr`, to be run as the unprivileged user.
pub fn pitr() -> Program {
    Program::new(path_of("pitr"))
}

/// `pitr-archive`, to be run as the unprivileged user.
pub fn pitr_archive() -> Program {
    Program::new(path_of("pitr-archive"))
}

/// `pitr-restore`, to be run as the unprivileged user.
pub fn pitr_restore() -> Program {
    Program::new(path_of("pitr-restore"))
}

/// Returns the absolute path of one of the three programs, where the unprivileged user can execute it.
///
/// The two small ones are built on their own first: a build of the whole workspace would give them the features of `pitr`.
pub fn path_of(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(programs).join(name)
}

/// The folder of the programs: `PITR_TEST_PROGRAMS`, where a measurement is of another build, else that of the test.
fn programs() -> PathBuf {
    let given = std::env::var_os("PITR_TEST_PROGRAMS").map(PathBuf::from);
    let profile = given.unwrap_or_else(built);
    if !user::is_root() || profile.ancestors().all(everybody_may_search) {
        return profile;
    }
    copy_programs(&profile)
}

fn built() -> PathBuf {
    let pitr = Path::new(env!("CARGO_BIN_EXE_pitr"));
    let profile = pitr.parent().expect("the program lies in a folder");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args([
            "build",
            "--quiet",
            "-p",
            "pitr-archive",
            "-p",
            "pitr-restore",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env(
            "CARGO_TARGET_DIR",
            profile.parent().expect("profiles lie under target"),
        );
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo starts");
    assert!(
        status.success(),
        "pitr-archive and pitr-restore do not build"
    );
    profile.to_path_buf()
}

fn everybody_may_search(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
}

/// A checkout under a private home (`/root` is 0700): the programs are copied to where `nobody` may run them. The copies
/// have one fixed place for each checkout, so that runs do not pile up.
fn copy_programs(profile: &Path) -> PathBuf {
    let folder = postgres::cache().join(format!(
        ".programs-{:08x}",
        crc32fast::hash(profile.as_os_str().as_encoded_bytes())
    ));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["pitr", "pitr-archive", "pitr-restore"] {
        // Under another name first: a program that another process runs just then is not disturbed. By another program: a child that
        // another test starts meanwhile would hold the copy open for writing, and what is open for writing cannot be run.
        let copy = folder.join(format!(".{name}.{}", std::process::id()));
        let copied = Command::new("cp")
            .args([&profile.join(name), &copy])
            .status()
            .expect("cp starts");
        assert!(copied.success(), "{name} cannot be copied");
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&copy, folder.join(name)).unwrap();
    }
    folder
}

/// A command to be run to its end, with a clean environment, as the unprivileged user.
#[derive(Debug, Clone)]
pub struct Program {
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: PathBuf,
    privileged: bool,
    timeout: Duration,
    stdin: Option<Vec<u8>>,
}

impl Program {
    /// Any program, by path or by name on the fixed `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Program {
        Program {
            words: vec![program.as_ref().to_owned()],
            env: Vec::new(),
            dir: PathBuf::from("/"),
            privileged: false,
            timeout: Duration::from_secs(300),
            stdin: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Program {
        self.words.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.words
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds arguments that have no spaces, as a line.
    #[must_use]
    pub fn words(self, line: &str) -> Program {
        self.args(line.split(' '))
    }

    /// Adds the words that restore into a folder.
    #[must_use]
    pub fn restore_to(self, folder: impl AsRef<OsStr>) -> Program {
        self.args(["restore", "--to"]).arg(folder)
    }

    /// Sets a variable of the environment, which else holds `PATH`, `LANG=C.UTF-8`, `TZ=UTC` and `HOME` alone.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Program {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory (else `/`).
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Program {
        dir.as_ref().clone_into(&mut self.dir);
        self
    }

    /// Runs it as the user who runs the tests, be it root.
    #[must_use]
    pub fn privileged(mut self) -> Program {
        self.privileged = true;
        self
    }

    /// Kills it, and fails the test, after this time (else five minutes).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Program {
        self.timeout = timeout;
        self
    }

    /// Gives it this on standard input (else nothing).
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Program {
        self.stdin = Some(bytes.into());
        self
    }

    /// The same run under another program: `["strace", "-f"]` before the words of this one.
    #[must_use]
    pub fn under(mut self, prefix: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        let prefix: Vec<OsString> = prefix.into_iter().map(|w| w.as_ref().to_owned()).collect();
        self.words.splice(0..0, prefix);
        self
    }

    /// Returns it as a command of the standard library.
    pub fn command(&self) -> Command {
        let mut command = match self.privileged {
            true => Command::new(&self.words[0]),
            false => user::command(&self.words[0]),
        };
        user::clean(&mut command)
            .args(&self.words[1..])
            .current_dir(&self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Returns it as one line for a shell, as `archive_command` and `restore_command` want it.
    pub fn shell(&self) -> String {
        self.words
            .iter()
            .map(|word| {
                // Bytes that are no text cannot be shown in a line; only tests of paths have any.
                let word = word.to_string_lossy();
                if word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"/-_.%=:,".contains(&b))
                {
                    word.into_owned()
                } else {
                    format!("'{}'", word.replace('\'', "'\\''"))
                }
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Starts it; its output goes to two files that [`Running::wait`] reads.
    pub fn spawn(&self) -> Running {
        let stdout = tempfile::tempfile().unwrap();
        let stderr = tempfile::tempfile().unwrap();
        let stdin = match &self.stdin {
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = tempfile::tempfile().unwrap();
                std::io::Write::write_all(&mut file, bytes).unwrap();
                file.rewind().unwrap();
                Stdio::from(file)
            }
        };
        let child = self
            .command()
            .stdin(stdin)
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", self.shell()));
        Running {
            child,
            stdout,
            stderr,
            line: self.shell(),
            end: Instant::now() + self.timeout,
        }
    }

    /// Runs it to its end, whatever that is.
    pub fn run(&self) -> Run {
        self.spawn().wait()
    }

    /// Runs it to its end, and fails the test unless the exit status is 0.
    #[track_caller]
    pub fn succeed(&self) -> Run {
        self.exits(0)
    }

    /// Runs it to its end, and fails the test unless the exit status is `code`.
    #[track_caller]
    pub fn exits(&self, code: i32) -> Run {
        self.run().expect_code(code)
    }

    /// Runs it, and waits for what it leaves running, too; returns also what each process of that ended with: its status, or -n for a
    /// signal n. A process that is started so is in the place of process 1 in a container.
    pub fn run_with_orphans(&self) -> (Run, Vec<i32>) {
        // Linux: include/uapi/linux/prctl.h, PR_SET_CHILD_SUBREAPER.
        const REAP: &str = "import ctypes, os, subprocess, sys\n\
            assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n\
            status = subprocess.call(sys.argv[2:])\n\
            while True:\n\
            \x20 try: how = os.wait()[1]\n\
            \x20 except ChildProcessError: break\n\
            \x20 how = os.WEXITSTATUS(how) if os.WIFEXITED(how) else -os.WTERMSIG(how)\n\
            \x20 print(how, file=open(sys.argv[1], 'a'))\n\
            sys.exit(status if status >= 0 else 128 - status)";
        let sandbox = Sandbox::new("orphans");
        let out = sandbox.file("ended", "");
        let run = self
            .clone()
            .under(["/usr/bin/python3", "-c", REAP, out.to_str().unwrap()])
            .run();
        let text = std::fs::read_to_string(&out).unwrap();
        (run, text.lines().map(|l| l.parse().unwrap()).collect())
    }

    /// Runs it to its end and says what it took. The measuring process itself takes some 10 MiB, the least peak there is.
    pub fn measure(&self) -> (Run, Usage) {
        // The time is taken here, so that it holds neither the start of python3 nor the pauses of who waits for it.
        const MEASURE: &str = "import resource, subprocess, sys, time\n\
            begun = time.monotonic()\n\
            status = subprocess.call(sys.argv[2:])\n\
            wall = time.monotonic() - begun\n\
            use = resource.getrusage(resource.RUSAGE_CHILDREN)\n\
            open(sys.argv[1], 'w').write(f'{use.ru_maxrss} {use.ru_utime + use.ru_stime} {wall}')\n\
            sys.exit(status if status >= 0 else 128 - status)";
        let sandbox = Sandbox::new("measure");
        let out = sandbox.file("usage", "");
        let run = self
            .clone()
            .under(["/usr/bin/python3", "-c", MEASURE, out.to_str().unwrap()])
            .run();
        let text = std::fs::read_to_string(&out).unwrap();
        let numbers: Vec<f64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        let usage = Usage {
            peak_memory_bytes: numbers[0] as u64 * 1024,
            cpu: Duration::from_secs_f64(numbers[1]),
            wall: Duration::from_secs_f64(numbers[2]),
        };
        (run, usage)
    }
}

/// The resources that a program and its children took.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// The largest resident set of any one process.
    pub peak_memory_bytes: u64,
    /// Time on processors, in user and kernel mode.
    pub cpu: Duration,
    /// From its start to its end.
    pub wall: Duration,
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    line: String,
    end: Instant,
}

impl Running {
    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn is_done(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// As [`wait_until`](super::wait_until), but fails as soon as it has ended.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        super::wait_until(what, || {
            assert!(!self.is_done(), "it ended: {}", self.stderr());
            done()
        });
    }

    /// Sends it a signal, and waits for its end.
    pub fn ended_by(self, signal: rustix::process::Signal) -> Run {
        self.signal(signal);
        self.wait()
    }

    /// Returns what it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Returns what it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After its timeout; but whoever asks after a long while waits some time all the same.
    pub fn wait(mut self) -> Run {
        let mut pause = Duration::from_millis(1);
        self.end = self.end.max(Instant::now() + PATIENCE);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > self.end {
                let _ = self.child.kill();
                panic!(
                    "{} did not end in time\n{}{}",
                    self.line,
                    read(&self.stdout),
                    read(&self.stderr)
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        Run {
            line: std::mem::take(&mut self.line),
            status,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads from the start without moving the position, which the running program shares.
fn read(file: &File) -> String {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64).unwrap() {
            0 => break,
            n => filled += n,
        }
    }
    bytes.truncate(filled);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The result of a program.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line.
    pub line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Returns the exit status; a signal n counts as 128 + n, as in a shell.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Whether the exit status is 0.
    pub fn is_success(&self) -> bool {
        self.status.success()
    }

    /// Fails the test unless the exit status is 0.
    pub fn success(self) -> Run {
        self.expect_code(0)
    }

    /// Fails the test unless the exit status is `code`.
    pub fn expect_code(self, code: i32) -> Run {
        assert!(self.code() == code, "expected exit status {code}\n{self}");
        self
    }

    /// Fails the test unless standard error holds `part`.
    pub fn expect_stderr(self, part: &str) -> Run {
        assert!(
            self.stderr.contains(part),
            "expected on standard error: {part}\n{self}"
        );
        self
    }

    /// Fails the test unless standard output holds `part`.
    pub fn expect_stdout(self, part: &str) -> Run {
        assert!(
            self.stdout.contains(part),
            "expected on standard output: {part}\n{self}"
        );
        self
    }

    /// Returns the id of what it made, by its answer in JSON: a backup, a clone, a mark or an erasure.
    pub fn id(&self) -> String {
        let answer = self.json();
        let id = answer["id"].as_str();
        id.unwrap_or_else(|| panic!("no id\n{self}")).to_owned()
    }

    /// Returns standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("standard output is not JSON: {e}\n{self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\nstatus {}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code(),
            self.stdout,
            self.stderr
        )
    }
}

/// The largest resident set that a process has had so far; none once it has ended.
pub fn peak_bytes(pid: impl std::fmt::Display) -> Option<u64> {
    memory_bytes(pid, "VmHWM")
}

/// A field of the memory of a process, such as `RssFile`; none once it has ended.
pub fn memory_bytes(pid: impl std::fmt::Display, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let prefix = format!("{field}:");
    let line = text.lines().find_map(|l| l.strip_prefix(&prefix))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
