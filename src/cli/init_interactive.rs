//! `pitr init --interactive`: four questions, then a recoverable database, or the reason why not.

use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::{Context, init};
use crate::config::{self, Flags};
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::archive_command::shell_word;
use crate::operate::clusters::{Candidate, Clusters};
use crate::operate::init::new_file::{self, SYSTEM};
use crate::operate::init::place::ONE_DISK;
use crate::operate::init::settle::{self, Change, Standing};
use crate::operate::init::{self as use_case, Made, Request};
use crate::operate::owner::User;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::operate::start_line::restart_command;

/// How often a question that waits for its answer looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(100);
/// The proposal for a repository.
const REPOSITORY: &str = "file:///var/backups/pitr";

/// An error is the reason why the database is not recoverable in the end.
pub(super) fn run(args: &init::Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    if cx.is_json() {
        return Err(err!(
            Usage,
            "--interactive asks, and --json is for programs"
        ));
    }
    if rustix::process::geteuid().is_root() {
        return Err(err!(
            Usage,
            "--interactive runs as the server's user, and this is root"
        )
        .hint(
            "Nothing was written. Run it as that user: sudo -u postgres pitr init --interactive",
        ));
    }
    let session = new_file::session(&cx.session)?;
    let mut dialogue = Dialogue {
        cx,
        asked: 0,
        answers: lines_of_input(),
    };
    let pgdata = dialogue.cluster(args.pgdata.as_deref())?;
    let (place, is_configured) = config::place(&session.flags, &session.environment)?;
    if !is_configured && !new_file::is_named(&cx.session) && place != Path::new(SYSTEM) {
        cx.line(&format!(
            "The configuration will be {}. For it to be {SYSTEM}, where every user of the host finds it, run first:\n  sudo install -d -o {} -m 755 {}",
            place.display(),
            User::of_process().name(),
            Path::new(SYSTEM).parent().unwrap_or(Path::new("/")).display(),
        ))?;
    }
    let is_asked = session.flags.repository.is_none() && !is_configured;
    let repository = match (&session.flags.repository, is_configured) {
        (Some(given), _) => Some(given.clone()),
        (None, true) => {
            cx.line(&format!(
                "The configuration file is there: {}",
                place.display()
            ))?;
            None
        }
        (None, false) => Some(dialogue.repository(&pgdata)?),
    };
    let session = Session {
        flags: Flags {
            repository,
            ..session.flags
        },
        ..session
    };
    let request = Request {
        pgdata: Some(pgdata.clone()),
        ..args.request()
    };
    let made = use_case::init(&session, &request)?;
    init::print_done(&made, cx)?;
    // The question has warned of the disk already.
    let is_new = |w: &&String| !is_asked || !w.ends_with(ONE_DISK);
    cx.warn_all(made.warnings.iter().filter(is_new));
    dialogue.settle(&made, &pgdata)?;
    dialogue.back_up(&made)
}

/// Asks on standard output, and takes the answers from standard input.
struct Dialogue<'a> {
    cx: &'a Context,
    asked: u32,
    answers: Receiver<std::io::Result<String>>,
}

/// The lines of standard input, read by a thread of its own: a signal does not end a read, and Ctrl-C at a question must end the command.
fn lines_of_input() -> Receiver<std::io::Result<String>> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

impl Dialogue<'_> {
    /// One question; an empty answer is the proposal.
    fn ask(&mut self, question: &str, proposal: &str) -> Result<String> {
        self.cx.session.host.check_stop()?;
        self.asked += 1;
        let shown = match proposal {
            "" => String::new(),
            proposal => format!(" [{proposal}]"),
        };
        self.cx
            .raw(&format!("\n{}. {question}{shown} ", self.asked))?;
        let line = self.answer()?;
        Ok(match line.trim() {
            "" => proposal.to_owned(),
            answer => answer.to_owned(),
        })
    }

    fn answer(&self) -> Result<String> {
        loop {
            self.cx.session.host.check_stop()?;
            match self.answers.recv_timeout(GLANCE) {
                Ok(line) => return line.map_err(|e| Error::from_io("read the answer", e)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.cx.line("")?;
                    return Err(err!(Usage, "there is no answer")
                        .hint("Run the command in a terminal, or give it the answers by lines."));
                }
            }
        }
    }

    fn agrees(&mut self, question: &str, proposal: bool) -> Result<bool> {
        loop {
            let answer = self.ask(question, if proposal { "yes" } else { "no" })?;
            match answer.to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => {
                    self.asked -= 1;
                    self.cx.line("Please answer yes or no.")?;
                }
            }
        }
    }

    /// The data directory, which the command line may have named.
    fn cluster(&mut self, given: Option<&Path>) -> Result<PathBuf> {
        if let Some(given) = given {
            return Ok(given.to_owned());
        }
        let environment = &self.cx.session.environment;
        let found = Clusters::find(environment.get("PGDATA").map(PathBuf::from));
        for (pgdata, owner) in &found.foreign {
            self.cx.line(&format!(
                "not looked at: {}, which belongs to user {owner} (sudo -u {owner} pitr init --interactive)",
                pgdata.display()
            ))?;
        }
        for (number, one) in (1..).zip(&found.own) {
            self.cx.line(&format!("  {number}  {}", shown(one)))?;
        }
        let proposal = match found.own.as_slice() {
            [_] => "1",
            _ => "",
        };
        let question = match found.own.len() {
            0 => "No cluster of this user was found. Its data directory?",
            _ => "Which cluster? A number, or a data directory",
        };
        let answer = self.ask(question, proposal)?;
        let chosen = answer
            .parse::<usize>()
            .ok()
            .and_then(|n| found.own.get(n.checked_sub(1)?));
        match (chosen, Path::new(&answer).is_absolute()) {
            (Some(one), _) => Ok(one.pgdata.clone()),
            (None, true) => Ok(answer.into()),
            (None, false) => Err(err!(
                Usage,
                "\"{}\" is neither a number of the list nor an absolute path",
                answer.escape_debug()
            )
            .hint("Nothing was written.")),
        }
    }

    fn repository(&mut self, pgdata: &Path) -> Result<String> {
        let answer = self.ask(
            "Where do WAL and backups go? A directory on another disk, s3://bucket/prefix, azure://account/container/prefix, gs://bucket/prefix, or sftp://user@host/path",
            REPOSITORY,
        )?;
        let path = answer.strip_prefix("file://").unwrap_or(&answer);
        if let (Some(there), Some(here)) = (device_of(Path::new(path)), device_of(pgdata))
            && there == here
        {
            self.cx.warn(&format!(
                "the repository lies on the filesystem of the data: {ONE_DISK}"
            ));
        }
        Ok(answer)
    }

    /// Gives the server the settings that it lacks, with its operator's consent, and waits for a restart that they need.
    fn settle(&mut self, made: &Made, pgdata: &Path) -> Result<()> {
        let Some(conninfo) = &made.identity.conninfo else {
            return Err(err!(Unreachable, "the server does not run: its settings cannot be changed, and no backup can be taken")
                .hint("Repository and configuration are made. Start the server, and run the command again."));
        };
        let mut server = Server::connect(conninfo)?;
        let standing = Standing::read(&mut server)?;
        standing.check()?;
        let changes = standing.changes(&made.settings);
        if changes.is_empty() {
            return self.cx.line("\nThe server's settings are right.");
        }
        self.cx.line("\nThe server needs:")?;
        for change in &changes {
            let now = match change.from.as_str() {
                "" => "empty",
                from => from,
            };
            let statement = change.statement();
            self.cx.line(&format!("  {statement};   -- now {now}"))?;
        }
        let replaces = changes.iter().any(Change::replaces_archiving);
        let question = match replaces {
            true => "Something archives already, and would be replaced. Run these statements?",
            false => "Run these statements?",
        };
        if !self.agrees(question, !replaces)? {
            let now = match replaces {
                true => "the server archives as before, and not into the repository",
                false => "the server does not archive",
            };
            return Err(err!(Refused, "{now}: its settings were not changed")
                .hint("Repository and configuration are made. Put the settings into postgresql.conf, restart the server, and run \"pitr doctor\" and \"pitr backup\"."));
        }
        settle::apply(&mut server, &changes)?;
        drop(server);
        if !changes.iter().any(Change::needs_restart) {
            return Ok(());
        }
        self.cx.line(&format!(
            "\nThe server has to be restarted, which ends its sessions. Do it when it suits, in another terminal:\n\n  {}\n\nThis command waits for it, and goes on then.",
            restart_command(pgdata, made.identity.major)
        ))?;
        settle::await_restart(&self.cx.session.host, conninfo, &made.settings)
    }

    /// Takes the first backup, and shows what can be recovered.
    fn back_up(&mut self, made: &Made) -> Result<u8> {
        if !self.agrees("Take a backup now?", true)? {
            return Err(
                err!(Refused, "nothing can be recovered before the first backup").hint(format!(
                    "Archiving is set up. Take it: pitr --config {} backup",
                    shell_word(&made.config.to_string_lossy())
                )),
            );
        }
        for verb in ["backup", "info"] {
            let status = self.pitr(made, verb)?;
            // Warnings of info are no reason against a database that can be recovered.
            if status != exit::SUCCESS && !(verb == "info" && status == exit::WARNINGS) {
                self.cx
                    .note("the database is not recoverable yet, for the reason above");
                return Ok(status);
            }
        }
        Ok(exit::SUCCESS)
    }

    fn pitr(&self, made: &Made, verb: &str) -> Result<u8> {
        let config = made.config.to_string_lossy();
        self.cx
            .line(&format!("\n$ pitr --config {} {verb}", shell_word(&config)))?;
        let failed = |e| Error::from_io("run pitr", e);
        let status = Command::new(std::env::current_exe().map_err(failed)?)
            .args([
                "--config",
                &config,
                "--cluster",
                made.cluster.as_str(),
                verb,
            ])
            .stdin(Stdio::null())
            .status()
            .map_err(failed)?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        code.ok_or_else(|| err!(Interrupted, "pitr {verb} was ended: {status}"))
    }
}

fn shown(one: &Candidate) -> String {
    let state = match one.is_running {
        true => "runs",
        false => "does not run",
    };
    format!(
        "{}  PostgreSQL {}, {state}",
        one.pgdata.display(),
        one.major
    )
}

/// The filesystem of a path, or of the nearest directory above it that exists.
fn device_of(path: &Path) -> Option<u64> {
    let mut ancestors = path.ancestors().filter(|_| path.is_absolute());
    ancestors
        .find_map(|at| std::fs::metadata(at).ok())
        .map(|metadata| metadata.dev())
}
