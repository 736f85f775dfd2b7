//! An SFTP server for the tests: OpenSSH's, as the unprivileged user, on loopback, with keys of its own.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use pitr::config::{Location, SftpSettings};
use pitr::store::sftp::SftpStore;

use super::{Lock, Program, Running, Sandbox, free_port, user, wait_until};

const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd. It ends, with its sessions, when it is dropped.
pub struct SftpServer {
    pub sandbox: Sandbox,
    port: u16,
    running: Option<Running>,
    prefix: Vec<String>,
    _lock: Lock,
}

impl SftpServer {
    pub fn start() -> SftpServer {
        SftpServer::with("")
    }

    /// Starts one whose sftp-server gets these arguments.
    pub fn with(arguments: &str) -> SftpServer {
        assert!(
            Path::new(SSHD).exists(),
            "OpenSSH's server is missing: scripts/get-tools test"
        );
        let sandbox = Sandbox::new("sftp");
        for key in ["host", "key", "other"] {
            make_key(&sandbox.join(key), "");
        }
        let public = std::fs::read(sandbox.join("key.pub")).unwrap();
        sandbox.file("authorized", public);
        let (port, lock) = free_port();
        let mut server = SftpServer {
            sandbox,
            port,
            running: None,
            prefix: Vec::new(),
            _lock: lock,
        };
        server.configure(arguments);
        server.known_hosts("known", port, "host.pub");
        server.restart();
        server
    }

    /// Sets the arguments of sftp-server from the next start on.
    pub fn configure(&self, arguments: &str) {
        let at = |name: &str| self.sandbox.join(name).display().to_string();
        let text = |more: &str| {
            format!(
                "ListenAddress 127.0.0.1:{}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM yes\nMaxStartups 100\n{more}\
                 Subsystem sftp internal-sftp {arguments}\n",
                self.port,
                at("host"),
                at("authorized"),
            )
        };
        // Later versions hold failures of a test against the next one.
        let file = self
            .sandbox
            .file("sshd_config", text("PerSourcePenalties no\n"));
        let knows = user::command(SSHD).args(["-t", "-f"]).arg(&file).output();
        if !knows.unwrap().status.success() {
            self.sandbox.file("sshd_config", text(""));
        }
    }

    /// Starts it again under another program.
    pub fn restart_under(&mut self, prefix: &[&str]) {
        self.prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        self.restart();
    }

    /// Ends it where it runs, and starts it.
    pub fn restart(&mut self) {
        self.stop();
        let sshd = Program::new(SSHD).args(["-D", "-e", "-f"]);
        let sshd = sshd.arg(self.sandbox.join("sshd_config"));
        self.running = Some(sshd.under(&self.prefix).spawn());
        let address = (Ipv4Addr::LOCALHOST, self.port);
        let running = self.running.as_mut().unwrap();
        wait_until("sshd listens", || {
            assert!(!running.is_done(), "sshd has ended: {}", running.stderr());
            TcpStream::connect(address).is_ok()
        });
    }

    /// Ends it, and its sessions.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let sessions = descendants(running.pid());
            running.ended_by(rustix::process::Signal::KILL);
            for pid in sessions {
                kill(pid);
            }
        }
    }

    /// Kills the sessions there are, as a server that crashes does; returns how many there were.
    pub fn kill_sessions(&self) -> usize {
        let running = self.running.as_ref().expect("sshd runs");
        let sessions = descendants(running.pid());
        sessions.iter().copied().for_each(kill);
        sessions.len()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes a file of known hosts with a public key for a port.
    pub fn known_hosts(&self, name: &str, port: u16, public: &str) -> PathBuf {
        let key = std::fs::read_to_string(self.sandbox.join(public)).unwrap();
        self.sandbox.file(name, format!("[127.0.0.1]:{port} {key}"))
    }

    pub fn settings(&self) -> SftpSettings {
        SftpSettings {
            key_file: Some(self.sandbox.join("key")),
            known_hosts_file: Some(self.sandbox.join("known")),
            ..SftpSettings::default()
        }
    }

    /// A folder for a repository, and its place in the sandbox.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.sandbox.dir(name)
    }

    pub fn url(&self, folder: &Path) -> String {
        self.url_by(self.port, folder)
    }

    pub fn url_by(&self, port: u16, folder: &Path) -> String {
        format!("sftp://{}@127.0.0.1:{port}{}", own_name(), folder.display())
    }

    pub fn store(&self, folder: &Path) -> SftpStore {
        self.store_by(self.port, folder, |_| {})
    }

    /// A store whose requests go to a port, with other settings.
    pub fn store_by(
        &self,
        port: u16,
        folder: &Path,
        change: impl FnOnce(&mut SftpSettings),
    ) -> SftpStore {
        let mut settings = self.settings();
        if port != self.port {
            settings.known_hosts_file = Some(self.known_hosts("known-by", port, "host.pub"));
        }
        change(&mut settings);
        let location = Location::from_url(&self.url_by(port, folder)).unwrap();
        SftpStore::open(&location, &settings, 7).unwrap()
    }

    /// The lines of a section for it.
    pub fn section(&self, folder: &Path) -> String {
        format!(
            "url = \"{}\"\nssh_key_file = \"{}\"\nssh_known_hosts_file = \"{}\"\n",
            self.url(folder),
            self.sandbox.join("key").display(),
            self.sandbox.join("known").display()
        )
    }
}

impl Drop for SftpServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes a pair of keys for the unprivileged user.
pub fn make_key(path: &Path, passphrase: &str) {
    let made = user::command("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f"])
        .arg(path)
        .output();
    let made = made.expect("OpenSSH's client is there: scripts/get-tools test");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// The name of the user as whom sshd runs, who alone can log in.
fn own_name() -> String {
    let (uid, _) = user::ids();
    let id = Command::new("id").args(["-un", &uid.to_string()]).output();
    String::from_utf8(id.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn descendants(pid: u32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut waiting = vec![pid.to_string()];
    while let Some(pid) = waiting.pop() {
        let path = format!("/proc/{pid}/task/{pid}/children");
        for child in std::fs::read_to_string(path)
            .unwrap_or_default()
            .split_whitespace()
        {
            found.push(child.parse().unwrap());
            waiting.push(child.to_owned());
        }
    }
    found
}
