//! Redis and Valkey servers of the test environment, which `scripts/get-redis` fetches.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::{Lock, Program, Running, Sandbox, free_port, wait_until};

/// Longer than any test.
const LIFE: Duration = Duration::from_secs(1800);

/// Makes one test for each server out of `fn name(server: &'static str)`.
#[macro_export]
macro_rules! per_server {
    ($name:ident) => {
        $crate::per_server!($name, redis6 redis7 redis8 valkey8 valkey9);
    };
    ($name:ident, $($test:ident)+) => {
        mod $name {
            $($crate::per_server!(@ $name $test);)+
        }
    };
    (@ $name:ident redis6) => { $crate::per_server!(@ $name redis6 "redis-6"); };
    (@ $name:ident redis7) => { $crate::per_server!(@ $name redis7 "redis-7"); };
    (@ $name:ident redis8) => { $crate::per_server!(@ $name redis8 "redis-8"); };
    (@ $name:ident valkey8) => { $crate::per_server!(@ $name valkey8 "valkey-8"); };
    (@ $name:ident valkey9) => { $crate::per_server!(@ $name valkey9 "valkey-9"); };
    (@ $name:ident $test:ident $server:literal) => {
        #[test]
        fn $test() {
            super::$name($server);
        }
    };
}

/// The folder of all servers.
fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/get-redis");
        let fetched = Command::new(&script).status().expect("scripts/get-redis");
        assert!(fetched.success(), "scripts/get-redis: {fetched}");
        let told = Command::new(&script).arg("--where").output().unwrap();
        PathBuf::from(String::from_utf8(told.stdout).unwrap().trim())
    })
}

/// The folder of a server's programs.
pub fn bin(name: &str) -> PathBuf {
    cache().join(name).join("bin")
}

/// A program of a server: `server`, `cli`, `check-aof`.
pub fn program(name: &str, what: &str) -> PathBuf {
    let product = name.split('-').next().unwrap();
    bin(name).join(format!("{product}-{what}"))
}

/// A server that listens on a socket.
pub struct Server {
    /// Its name here.
    pub name: &'static str,
    sandbox: Sandbox,
    arguments: Vec<String>,
    process: Option<Running>,
    port: Option<(u16, Lock)>,
}

impl Server {
    /// Starts an empty one that saves nothing by itself.
    pub fn start(name: &'static str, more: &[&str]) -> Server {
        let sandbox = Sandbox::new("redis");
        let dir = sandbox.dir("data");
        let mut arguments = vec!["--dir".to_owned(), dir.display().to_string()];
        arguments.extend(["--save", ""].map(str::to_owned));
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        Server::run(name, sandbox, arguments)
    }

    /// Starts one that listens on a port besides, given by this option.
    pub fn listening(name: &'static str, option: &str, more: &[&str]) -> Server {
        let (port, lock) = free_port();
        let number = port.to_string();
        let mut server = Server::start(name, &[&[option, &number], more].concat());
        server.port = Some((port, lock));
        server
    }

    /// The port of one that listens.
    pub fn port(&self) -> u16 {
        self.port.as_ref().unwrap().0
    }

    /// Starts one on a restored directory.
    pub fn on(name: &'static str, restored: &Path, more: &[&str]) -> Server {
        let mut arguments = vec![restored.join("redis.conf").display().to_string()];
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        Server::run(name, Sandbox::new("redis"), arguments)
    }

    /// As [`Server::on`], at a port.
    pub fn on_port(name: &'static str, restored: &Path, more: &[&str]) -> Server {
        let (port, lock) = free_port();
        let number = port.to_string();
        let mut server = Server::on(name, restored, &[&["--port", &number], more].concat());
        server.port = Some((port, lock));
        server
    }

    /// Takes words away from its command line, for the next start.
    pub fn leave_out(&mut self, words: &[&str]) {
        self.arguments
            .retain(|word| !words.contains(&word.as_str()));
    }

    fn run(name: &'static str, sandbox: Sandbox, mut arguments: Vec<String>) -> Server {
        let socket = sandbox.join("s").display().to_string();
        if !arguments.iter().any(|word| word == "--port") {
            arguments.extend(["--port", "0"].map(str::to_owned));
        }
        arguments.extend(["--unixsocket".to_owned(), socket]);
        // The oldest one allows it always, and knows no such setting.
        if name != "redis-6" {
            arguments.extend(["--enable-debug-command", "yes"].map(str::to_owned));
        }
        let mut server = Server {
            name,
            sandbox,
            arguments,
            process: None,
            port: None,
        };
        server.begin();
        server
    }

    /// Starts the process, and waits until it answers.
    pub fn begin(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let command = Program::new(program(self.name, "server")).args(&self.arguments);
        let process = command.timeout(LIFE).spawn();
        self.process = Some(process);
        wait_until("the server answers", || {
            let process = self.process.as_mut().unwrap();
            assert!(
                !process.is_done(),
                "{}{}",
                process.stdout(),
                process.stderr()
            );
            let answer = self.cli(&["PING"]).run();
            // One that wants a password answers, too.
            answer.stdout.contains("PONG") || answer.stdout.contains("NOAUTH")
        });
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.ended_by(Signal::KILL);
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.sandbox.join("s")
    }

    pub fn data(&self) -> PathBuf {
        self.sandbox.join("data")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().pid()
    }

    /// The address in a configuration.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// A command by the server's own client.
    pub fn cli(&self, words: &[&str]) -> Program {
        Program::new(program(self.name, "cli"))
            .arg("-s")
            .arg(self.socket())
            .args(words)
    }

    /// Runs one command that may run twice, and returns what it answers. Sentinels cut all connections of a server that they promote or demote:
    /// then redis-cli dies of its broken pipe, or says so, and is asked again.
    pub fn ask(&self, words: &[&str]) -> String {
        let mut run = self.cli(words).run();
        if run.code() == 128 + Signal::PIPE.as_raw() || run.stderr.contains("closed the connection")
        {
            run = self.cli(words).run();
        }
        run.success().stdout.trim_end().to_owned()
    }

    /// Runs commands, one in a line, on one connection.
    pub fn feed(&self, lines: &str) {
        let run = self.cli(&[]).stdin(lines.as_bytes()).succeed();
        let wrong = run.stdout.lines().find(|line| {
            let word = line.split(' ').next().unwrap_or_default();
            word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase()) && line.len() > 20
        });
        assert_eq!(wrong, None, "{}", run.stdout);
    }

    /// Its digest, and the number of keys of each database: they stand for the whole content.
    pub fn content(&self) -> String {
        let counts: String = (0..16).map(|db| format!("SELECT {db}\nDBSIZE\n")).collect();
        let lines = format!("DEBUG DIGEST\n{counts}");
        let told = self.cli(&[]).stdin(lines.into_bytes()).succeed();
        let mut words: Vec<&str> = told.stdout.split_whitespace().collect();
        words.retain(|word| *word != "OK");
        assert_eq!((words[0].len(), words.len()), (40, 17), "{told}");
        words.join(" ")
    }

    /// A field of `INFO`.
    pub fn info(&self, field: &str) -> String {
        let all = self.ask(&["INFO", "all"]);
        let prefix = format!("{field}:");
        let line = all.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {field} in {all}"))
            .trim_end()
            .to_owned()
    }
}
