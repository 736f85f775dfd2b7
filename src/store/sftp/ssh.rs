//! The system's ssh as the way to the server: keys, agent, host keys and encryption are in its hands.
//!
//! Its standard input and output are one end of a pair of sockets. When the other end is closed, by whatever ends this process, ssh ends, too.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::failure::{Failure, Kind, shown};
use super::link::Server;
use crate::config::SftpSettings;
use crate::config::secret::check_closed;
use crate::err;
use crate::error::{Code, Error, Result};

/// Names the file with the passphrase to this program, when ssh runs it to ask.
pub const PASSPHRASE_FILE: &str = "PITR_SSH_PASSPHRASE_FILE";

/// So much of what ssh says is kept.
const SAID_BYTES: usize = 4000;
/// How long ssh may take to say its last word.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How long making a connection may take, in seconds.
const CONNECT_TIMEOUT: &str = "ConnectTimeout=10";

/// A running ssh.
pub(super) struct Ssh {
    child: Mutex<Child>,
    said: Arc<Mutex<String>>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Ssh {
    /// Starts ssh for the server's SFTP. Within the stores' runtime.
    ///
    /// # Errors
    /// `Config` where there is no ssh, or a file of the settings cannot be used.
    pub(super) fn start(server: &Server, settings: &SftpSettings) -> Result<(Ssh, UnixStream)> {
        let failed = |e: std::io::Error| Error::from_io("start ssh", e);
        let (ours, theirs) = Pair::pair().map_err(failed)?;
        let (heard, said) = Pair::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        heard.set_nonblocking(true).map_err(failed)?;
        let input = theirs.try_clone().map_err(failed)?;
        let child = command(server, settings)?
            .stdin(OwnedFd::from(input))
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::from(OwnedFd::from(said)))
            .spawn()
            .map_err(|e| {
                err!(Config, "ssh cannot be run: {e}")
                    .hint("Install OpenSSH's client, as in: apt-get install openssh-client")
            })?;
        let said = Arc::new(Mutex::new(String::new()));
        let heard = UnixStream::from_std(heard).map_err(failed)?;
        let listener = tokio::spawn(listen(heard, Arc::clone(&said)));
        let ssh = Ssh {
            child: Mutex::new(child),
            said,
            listener: Mutex::new(Some(listener)),
        };
        Ok((ssh, UnixStream::from_std(ours).map_err(failed)?))
    }

    /// Explains why there is no connection, by the last words of ssh.
    pub(super) async fn explained(&self, failure: Failure) -> Failure {
        let listener = {
            let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            listener.take()
        };
        if let Some(listener) = listener {
            let _ = tokio::time::timeout(LAST_WORD, listener).await;
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.trim() {
            "" => failure,
            text => meaning(text),
        }
    }

    /// Ends it.
    pub(super) fn end(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.end();
    }
}

async fn listen(mut heard: UnixStream, said: Arc<Mutex<String>>) {
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = heard.read(&mut piece).await {
        let text = String::from_utf8_lossy(piece.get(..length).unwrap_or_default()).into_owned();
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < SAID_BYTES {
            said.push_str(&text);
        }
    }
}

/// The command line holds names and paths, and no secret. Options that stand there go before those of ssh's own configuration.
fn command(server: &Server, settings: &SftpSettings) -> Result<Command> {
    let mut command = Command::new(program());
    command.args(["-T", "-x", "-a"]);
    let mut option = |text: String| {
        command.arg("-o").arg(text);
    };
    for fixed in [
        // A host that is not known is not believed, and nobody is there to be asked.
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "PasswordAuthentication=no",
        "KbdInteractiveAuthentication=no",
        "NumberOfPasswordPrompts=1",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "RequestTTY=no",
        "LogLevel=ERROR",
        // A shared connection ends for all that share it.
        "ControlMaster=no",
        "ControlPath=none",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=3",
        CONNECT_TIMEOUT,
    ] {
        option(fixed.to_owned());
    }
    if settings.passphrase_file.is_none() {
        option("BatchMode=yes".to_owned());
    }
    if let Some(file) = &settings.key_file {
        check_file("the SSH key", file)?;
        option("IdentitiesOnly=yes".to_owned());
        option(format!("IdentityFile={}", quoted(file)?));
    }
    if let Some(file) = &settings.known_hosts_file {
        option(format!("UserKnownHostsFile={}", quoted(file)?));
        option("GlobalKnownHostsFile=/dev/null".to_owned());
    }
    if let Some(user) = &server.user {
        command.arg("-l").arg(user);
    }
    if let Some(port) = server.port {
        command.arg("-p").arg(port.to_string());
    }
    command.args(["-s", "--", &server.host, "sftp"]);
    // The messages of ssh are read. An interrupt from the terminal is for this program, which ends in its own time.
    command.env("LC_ALL", "C").process_group(0);
    if let Some(file) = &settings.passphrase_file {
        check_file("the passphrase of the SSH key", file)?;
        let own = std::env::current_exe().map_err(|e| Error::from_io("find this program", e))?;
        command.env("SSH_ASKPASS", own);
        command.env("SSH_ASKPASS_REQUIRE", "force");
        command.env(PASSPHRASE_FILE, file);
    }
    Ok(command)
}

/// The ssh of the search path; PostgreSQL may run its commands without one.
fn program() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .map(|folder| folder.join("ssh"))
        .find(|path| path.is_absolute() && path.is_file());
    found.unwrap_or_else(|| PathBuf::from("/usr/bin/ssh"))
}

/// Requires a file with a secret that nobody else can read.
fn check_file(kind: &str, file: &Path) -> Result<()> {
    let metadata = std::fs::metadata(file).map_err(|e| {
        let doing = format!("look at {kind}, \"{}\"", file.display());
        Error::from_io(doing, e).with_code(Code::Config)
    })?;
    check_closed(Code::Config, kind, file, &metadata)
}

/// A path as a value of ssh's configuration, which has its own signs for quotes and percent.
fn quoted(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .filter(|t| !t.contains(['"', '\\', '\n', '$']) && !t.starts_with('~'));
    let text = text.ok_or_else(|| {
        err!(
            Config,
            "ssh cannot be given the path \"{}\"",
            path.display()
        )
    })?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// Interprets the words of ssh. Those that no rule knows may pass: a network that is away, a server that starts.
fn meaning(said: &str) -> Failure {
    let says = |words: &[&str]| words.iter().any(|w| said.contains(w));
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    // Warnings come first, and what ended it last.
    let last = lines
        .iter()
        .rev()
        .take(2)
        .rev()
        .copied()
        .collect::<Vec<_>>();
    let text = format!("ssh: {}", shown(&last.join("; ")));
    let (code, hint) = if says(&[
        "Host key verification failed",
        "HOST IDENTIFICATION HAS CHANGED",
    ]) {
        (
            Code::Unreachable,
            "The server does not prove that it is the one you know. Nothing was sent. Compare its key (ssh-keyscan) with what its operator says, and put it into the file of known hosts.",
        )
    } else if says(&["Permission denied (", "Too many authentication failures"]) {
        (
            Code::Denied,
            "The server accepts none of the keys. Nothing was read or written. Look at ssh_key_file, at the agent, at the account in the url, and at authorized_keys on the server.",
        )
    } else if says(&["subsystem request failed"]) {
        (
            Code::Refused,
            "The server lets in, but offers no SFTP. Look for \"Subsystem sftp\" in its sshd_config.",
        )
    } else if says(&[
        "Bad configuration option",
        "Bad owner or permissions",
        "bad configuration options",
        "keyword",
    ]) {
        (
            Code::Config,
            "ssh does not accept its own configuration. Correct ~/.ssh/config or /etc/ssh/ssh_config.",
        )
    } else {
        return Failure::again(text);
    };
    Failure::new(Kind::Final, Error::new(code, text).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(settings: &SftpSettings) -> Vec<String> {
        let server = Server {
            user: Some("pitr".into()),
            host: "backup".into(),
            port: Some(2222),
        };
        let command = command(&server, settings).unwrap();
        let arguments = command.get_args();
        arguments.map(|a| a.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn no_host_is_believed_that_is_not_known() {
        let arguments = arguments(&SftpSettings::default());
        for wanted in ["StrictHostKeyChecking=yes", "BatchMode=yes"] {
            assert!(arguments.iter().any(|a| a == wanted), "{arguments:?}");
        }
        assert!(arguments.ends_with(&["-s", "--", "backup", "sftp"].map(str::to_owned)));
    }

    #[test]
    fn files_with_secrets_must_be_closed() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key%h");
        std::fs::write(&file, "x").unwrap();
        let settings = SftpSettings {
            key_file: Some(file.clone()),
            ..SftpSettings::default()
        };
        let mode =
            |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        let shown = format!("IdentityFile=\"{}\"", file.display()).replace('%', "%%");
        assert!(arguments(&settings).contains(&shown));
        mode(0o640);
        let server = Server {
            user: None,
            host: "backup".into(),
            port: None,
        };
        let error = command(&server, &settings).unwrap_err();
        assert_eq!(error.code(), Code::Config, "{error}");
    }

    #[test]
    fn the_last_words_of_ssh_tell_what_to_do() {
        use Code::{Config, Denied, Refused, Unreachable};
        use Kind::{Again, Final};
        for (said, kind, code) in [
            ("Host key verification failed.\r\n", Final, Unreachable),
            ("pitr@host: Permission denied (publickey).", Final, Denied),
            ("subsystem request failed on channel 0", Final, Refused),
            (
                "/root/.ssh/config: line 1: Bad configuration option: x\nterminating, 1 bad configuration options",
                Final,
                Config,
            ),
            (
                "ssh: connect to host h port 22: Connection refused",
                Again,
                Unreachable,
            ),
        ] {
            let failure = meaning(said);
            assert_eq!((failure.kind, failure.error.code()), (kind, code), "{said}");
        }
    }
}
