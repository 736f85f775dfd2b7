//! Private servers in a temporary folder, which are stopped in the end; then the folder is gone.
//!
//! Nothing of the host is touched: the servers listen on sockets in the folder alone.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::owner::{Access, User};
use super::programs::Programs;
use super::server::Server;
use crate::config::account::Account;
use crate::err;
use crate::error::{Error, Result};
use crate::host::{Host, private_folder};

/// A socket's path may have 107 bytes, of which its name takes some: PostgreSQL, src/include/libpq/pqcomm.h.
const FOLDER_BYTES_MAX: usize = 80;
/// The longest wait for the end of recovery, and for the archiver.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(50);

/// The folder, and its servers.
pub struct Playground {
    folder: Option<TempDir>,
    path: PathBuf,
    programs: Programs,
    pitr: PathBuf,
    /// Root runs everything as this user: PostgreSQL refuses to run as root.
    user: Option<User>,
    running: Vec<&'static str>,
}

/// A server of the playground.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its data directory, below the folder.
    pub data: &'static str,
    /// The port in its socket's name.
    pub port: u16,
}

impl Playground {
    /// Appends the settings that `pitr init` printed to postgresql.conf.
    ///
    /// # Errors
    /// `Io`.
    pub fn configure(&self, place: Place, printed: &str) -> Result<()> {
        let is_setting = |line: &&str| {
            let starts = |name: &str| line.starts_with(name);
            ["wal_level = ", "archive_"].into_iter().any(starts) && line.contains(" = ")
        };
        let path = self.path.join(place.data).join("postgresql.conf");
        let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
        let opened = std::fs::OpenOptions::new().append(true).open(&path);
        let mut file = opened.map_err(failed)?;
        for line in printed.lines().filter(is_setting) {
            writeln!(file, "{line}").map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the folder below `scratch`, with `purpose` in its name.
    ///
    /// # Errors
    /// `Usage` where a socket's path would be too long, or the user who runs servers for root cannot run this program; `Io`.
    pub fn new(programs: Programs, scratch: &Path, purpose: &str) -> Result<Playground> {
        let failed = |e| Error::from_io(format!("make a folder in \"{}\"", scratch.display()), e);
        // Every user who reaches their socket is a superuser of its servers.
        let folder = private_folder(scratch, &format!("pitr-{purpose}-")).map_err(failed)?;
        let path = folder.path().to_owned();
        if path.as_os_str().len() > FOLDER_BYTES_MAX {
            return Err(err!(
                Usage,
                "the path of \"{}\" is too long for a socket",
                path.display()
            )
            .hint("Nothing was done. Set TMPDIR to a shorter path, say /tmp."));
        }
        let pitr = std::env::current_exe()
            .map_err(|e| Error::from_io("look for this program".to_owned(), e))?;
        let user = unprivileged(&pitr, &programs)?;
        if let Some(user) = &user {
            user.take(&path).map_err(failed)?;
        }
        Ok(Playground {
            folder: Some(folder),
            path,
            programs,
            pitr,
            user,
            running: Vec::new(),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user who runs everything, where that is not this process's.
    pub fn user(&self) -> Option<String> {
        self.user.as_ref().map(User::name)
    }

    /// Leaves the folder behind when all is done.
    pub fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            self.path = folder.keep();
        }
    }

    /// A command of `pitr` in the folder.
    pub fn pitr(&self, arguments: &[OsString]) -> Command {
        let mut command = self.command(&self.pitr);
        command.args(arguments);
        command
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.path)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("NO_COLOR", "1")
            .env("HOME", &self.path)
            .env("TMPDIR", &self.path)
            .stdin(Stdio::null())
            // Ctrl-C at the terminal is this process's alone: it ends the others in order.
            .process_group(0);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid());
        }
        command
    }

    /// Makes a cluster.
    ///
    /// # Errors
    /// `Server` with what initdb said.
    pub fn initdb(&self, place: Place) -> Result<()> {
        let mut command = self.command(&self.programs.program("initdb"));
        command
            .args([
                "-D", place.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
            ])
            .args(["--no-sync", "--locale=C"]);
        finish(&mut command, "initdb")
    }

    /// Starts a server.
    ///
    /// # Errors
    /// `Server` with what pg_ctl said, and the end of the server's log.
    pub fn start(&mut self, place: Place) -> Result<()> {
        let log = format!("{}.log", place.data);
        let options = format!(
            "-p {} -k {} -c unix_socket_permissions=0700 -c listen_addresses=",
            place.port,
            self.path.display()
        );
        let mut command = self.command(&self.programs.program("pg_ctl"));
        command
            .args(["-D", place.data, "-w", "-t", "300", "-l", log.as_str()])
            .args(["-o", options.as_str(), "start"]);
        // Even one that does not answer in time may run.
        self.running.retain(|data| *data != place.data);
        self.running.push(place.data);
        finish(&mut command, "pg_ctl").map_err(|e| {
            let text = std::fs::read_to_string(self.path.join(&log)).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            e.context(format!(
                "start a server, whose log ends with: {}",
                last.join(" · ")
            ))
        })
    }

    /// Stops a server.
    ///
    /// # Errors
    /// `Server` with what pg_ctl said.
    pub fn stop(&mut self, place: Place) -> Result<()> {
        self.end(place.data, "fast")?;
        self.running.retain(|data| *data != place.data);
        Ok(())
    }

    fn end(&self, data: &str, mode: &str) -> Result<()> {
        let mut command = self.command(&self.programs.program("pg_ctl"));
        command.args(["-D", data, "-w", "-t", "300", "-m", mode, "stop"]);
        finish(&mut command, "pg_ctl")
    }

    /// Connects to a server.
    ///
    /// # Errors
    /// Those of [`Server::connect`].
    pub fn connect(&self, place: Place) -> Result<Server> {
        Server::connect(&format!(
            "host={} port={} user=postgres dbname=postgres",
            self.path.display(),
            place.port
        ))
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // Each one that runs, whatever became of the others.
        for data in &self.running {
            let _ = self.end(data, "immediate");
        }
    }
}

/// Asks a server until a condition holds.
///
/// # Errors
/// `Interrupted`; `Deadline` when it does not come to hold; what the server says.
pub fn wait(host: &Host, server: &mut Server, condition: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        host.check_stop()?;
        if server.query(&format!("select {condition}"))?.text(0, 0)? == Some("t") {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            return Err(err!(Deadline, "the server did not get there: {condition}"));
        }
        std::thread::sleep(PAUSE);
    }
}

fn finish(command: &mut Command, name: &str) -> Result<()> {
    // pg_ctl's server inherits the outputs: a pipe would never end.
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| Error::from_io(format!("run {name}"), e))?;
    match output.success() {
        true => Ok(()),
        false => Err(err!(Server, "{name} failed: {output}")),
    }
}

/// The user who runs servers in place of root: postgres, else nobody.
fn unprivileged(pitr: &Path, programs: &Programs) -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let account = ["postgres", "nobody"].into_iter().find_map(Account::named);
    let Some(user) = account.map(|account| User::of(&account)) else {
        return Err(err!(
            Usage,
            "PostgreSQL refuses to run as root, and there is no user postgres or nobody"
        )
        .hint("Nothing was done. Run the command as another user."));
    };
    for program in [pitr, programs.folder.as_path()] {
        if let Some(at) = user.kept_out_by(program, Access::Execute) {
            return Err(err!(
                Usage,
                "user {} runs the servers for root, and \"{}\" keeps it from \"{}\"",
                user.name(),
                at.display(),
                program.display()
            )
            .hint("Nothing was done. Install pitr, say in /usr/local/bin, or run the command as another user."));
        }
    }
    Ok(Some(user))
}
