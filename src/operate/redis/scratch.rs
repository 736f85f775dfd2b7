//! A server that is started for a while with a restored data set, for others to copy from.
//!
//! It listens on a socket in a folder that nobody else can enter, and on one address with a password that is drawn for this run alone. The password is in a file
//! of that folder, on no command line. The server ends with this process, however that ends.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::behalf;
use crate::config::{RedisAddress, Secret};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::host::{Host, private_folder};
use crate::operate::session::Session;
use crate::program::Running;
use crate::redis::connection::Way;
use crate::redis::directory::{CONFIGURATION, quoted};
use crate::redis::info::Info;
use crate::redis::member::Member;
use crate::redis::program;
use crate::redis::source::Source;
use crate::redis::version::ServerVersion;

/// How long a server may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that answered may be silent.
const STALL: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(50);
/// The folder of the data set.
const DATA: &str = "data";
const LOG: &str = "log";
const SETTINGS: &str = "server.conf";
const SOCKET: &str = "s";
/// How much of its log is repeated.
const SHOWN_LINES: usize = 3;

/// The folder in which a data set is restored for a while. It goes when it is dropped.
pub struct Folder(TempDir);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(host: &Host) -> Result<Folder> {
        let below = &host.scratch;
        let made = private_folder(below, "pitr-redis-");
        let doing = || format!("make a folder in \"{}\"", below.display());
        made.map(Folder).map_err(|e| Error::from_io(doing(), e))
    }

    /// The place of the data set, which is not there yet.
    pub fn data(&self) -> std::path::PathBuf {
        self.0.path().join(DATA)
    }
}

/// A server with a data set.
pub struct Scratch {
    /// The connection of this process.
    pub source: Source,
    /// The password of everybody.
    pub password: Secret,
    /// The port at which it listens.
    pub port: u16,
    running: Running,
    folder: Folder,
}

impl Scratch {
    /// Starts a server of this version with the data set in the folder, and waits until it has loaded it.
    ///
    /// # Errors
    /// `SourceMissing` without a server; `Damaged` when it does not load the data set; those of the system.
    pub fn start(
        folder: Folder,
        version: &ServerVersion,
        ip: IpAddr,
        host: &Host,
    ) -> Result<Scratch> {
        let words: [u64; 4] = std::array::from_fn(|_| host.random());
        let password = Secret::new(words.iter().map(|word| format!("{word:016x}")).collect());
        // Whoever takes the port between these two lines makes the start fail.
        let free = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
        let free = free.map_err(|e| Error::from_io(format!("listen at {ip}"), e))?;
        let port = free.port();
        let path = folder.0.path().join(SETTINGS);
        let text = settings(folder.0.path(), (ip, port), &password);
        durable::write_new(&path, text.as_bytes(), host.random())
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
        let mut command = Command::new("setpriv");
        let program = format!("{}-server", version.flavor.name());
        command
            .args(["--pdeathsig=KILL", "--", &program])
            .arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = Running::start(&mut command)?;
        let source = loaded(folder.0.path(), &password, &mut running, host)?;
        Ok(Scratch {
            source,
            password,
            port,
            running,
            folder,
        })
    }

    /// Asks it for one section of `INFO`.
    ///
    /// # Errors
    /// `Unreachable` when it has ended, with the end of its log; those of the connection.
    pub fn ask(&mut self, section: &str, tick: &mut dyn FnMut() -> Result<()>) -> Result<Info> {
        self.source.ask(section, tick).map_err(|e| {
            // A connection closes a little before its process is gone.
            std::thread::sleep(GLANCE);
            self.check().err().unwrap_or(e)
        })
    }

    /// Requires that it still runs.
    ///
    /// # Errors
    /// `Unreachable`.
    pub fn check(&mut self) -> Result<()> {
        match self.running.is_over() {
            true => Err(err!(
                Unreachable,
                "the scratch server has ended by itself{}",
                last_words(&self.folder.0.path().join(LOG))
            )),
            false => Ok(()),
        }
    }
}

fn settings(folder: &Path, (ip, port): (IpAddr, u16), password: &Secret) -> String {
    let path = |name: &str| quoted(folder.join(name).as_os_str().as_bytes());
    let data = quoted(folder.join(DATA).join(CONFIGURATION).as_os_str().as_bytes());
    format!(
        "include {data}\nbind {ip}\nport {port}\nrequirepass {}\nunixsocket {}\nunixsocketperm 700\nlogfile {}\ndaemonize no\nsave \"\"\nappendfsync no\nauto-aof-rewrite-percentage 0\nrepl-diskless-sync yes\nrepl-diskless-sync-delay 0\nclient-output-buffer-limit slave 0 0 0\n",
        password.expose(),
        path(SOCKET),
        path(LOG),
    )
}

/// Waits until the server has loaded the data set, however long that takes.
fn loaded(folder: &Path, password: &Secret, running: &mut Running, host: &Host) -> Result<Source> {
    let way = Way {
        address: RedisAddress::Unix(folder.join(SOCKET)),
        tls: None,
        stall_timeout: STALL,
        user: None,
    };
    let mut check = || match running.is_over() {
        true => Err(err!(
            Damaged,
            "the scratch server does not load the data set{}",
            last_words(&folder.join(LOG))
        )),
        false => Ok(()),
    };
    let mut tick = || host.check_stop();
    Source::loaded((&way, Some(password)), PATIENCE, &mut check, &mut tick)
}

/// Requires that the server on the search path has the modules of a data set: one that lacks them calls the data set broken. Some are part of every server.
///
/// # Errors
/// `Unsupported`; those of [`Scratch::start`].
pub(in crate::operate) fn require_modules(session: &Session, member: &Member) -> Result<()> {
    let installed = program::find(session.environment.get("PATH"), member.server()?.flavor);
    let Some(installed) = installed.filter(|_| !member.modules.is_empty()) else {
        return Ok(());
    };
    let folder = Folder::new(&session.host)?;
    let data = folder.data();
    let text = format!("dir {}\n", quoted(data.as_os_str().as_bytes()));
    std::fs::create_dir(&data)
        .and_then(|()| std::fs::write(data.join(CONFIGURATION), text))
        .map_err(|e| Error::from_io(format!("write \"{}\"", data.display()), e))?;
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let empty = Scratch::start(folder, &installed.version, local, &session.host)?;
    match empty.source.info.lacking(&member.modules) {
        None => Ok(()),
        Some(module) => Err(err!(
            Unsupported,
            "the data set is of a server with module {}, version {}, and {} of the search path has none of it",
            module.name.escape_debug(),
            module.version,
            installed.version
        )
        .hint("Nothing was changed.\nPut a redis-server first in PATH that loads the module: a script that runs the server with \"$@\" --loadmodule FILE. pitr redis restore NAME --to DIR needs no server.")),
    }
}

/// The last words of a server's log.
pub(in crate::operate) fn last_words(log: &Path) -> String {
    let log = behalf::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().rev().take(SHOWN_LINES).collect();
    let lines = lines.iter().rev().map(|l| l.escape_debug().to_string());
    let lines: Vec<String> = lines.collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!(": {}", lines.join(" / ")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pg::time::TimestampTz;

    #[test]
    fn r196_nobody_else_gets_into_the_folder_of_a_data_set() {
        let folder = Folder::new(&Host::still(TimestampTz(0), 1)).unwrap();
        let mode = folder.0.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
