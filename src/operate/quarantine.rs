//! Quarantine: a restored copy runs as a server that reaches nothing and that nobody else reaches.
//!
//! The server gets no configuration of the cluster: its files lie beside the data directory, and every setting that runs code, connects,
//! archives or listens stands on its command line, which counts more than any file. The file has what a reload has to change: nothing of a
//! server lasts until it is to be kept. postgresql.auto.conf keeps only what the restore wrote, unless the directory stays. Sessions set
//! aside what roles and databases have for sessions.
//!
//! PostgreSQL: src/backend/utils/misc/guc.c (`GucSource`), src/backend/commands/event_trigger.c (session_replication_role).

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::outside::{Answering, Commands, Outside};
use super::programs::Programs;
use super::server::Server;
use crate::archive::datadir::DataDirectory;
use crate::archive::guard::{self, AUTO_CONF, COMMENT};
use crate::command::outside::SOCKET;
use crate::config::Environment;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::lock::locked;
use crate::pg::conf::{self, Setting};
use crate::pg::control::ControlSettings;
use crate::pg::parameters::Parameters;
use crate::pg::roles;
use crate::pg::version::{Major, time_limits};
use crate::program;
use crate::wire::conninfo::quoted;
use crate::wire::server_error;
use crate::wire::sql::is_own_limit;

/// The port in the socket's name.
const PORT: u16 = 5504;
/// The one address that it may listen on.
const LOOPBACK: &str = "127.0.0.1";
/// Who enters the folder is trusted; over the network the cluster's own passwords count.
const HBA: &[u8] = b"local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
/// The server's configuration.
const CONF: &str = "postgresql.conf";
/// Nothing has to last, or to be tidied up, of a server that is thrown away.
const PASSING: &str =
    "fsync = off\nfull_page_writes = off\nsynchronous_commit = off\nautovacuum = off\n";
/// A copy that lasts is tidied up by its own server, later.
const UNTIDIED: &str = "autovacuum = off\n";
const LASTING: &str = "fsync = on\nfull_page_writes = on\nsynchronous_commit = on\n";
/// The file that has the server's words.
const LOG: &str = "server.log";
/// Libraries that are loaded all the same: WAL has records that only they can replay.
const ALLOWED_LIBRARIES: [&str; 2] = ["orioledb", "pg_tde"];
/// A catalog of roles is smaller.
const ROLES_BYTES: u64 = 64 << 20;
const MAP_BYTES: u64 = 64 << 10;
/// The first major that keeps event triggers from firing by a setting.
const EVENT_TRIGGERS_SINCE: u32 = 17;
/// How long a server may take to end at once.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// The slots that a server has room for unless its configuration says otherwise.
const SLOTS_USUAL: usize = 10;
/// Settings of each session, which count more than those of roles and databases. A prepared transaction may hold a lock for ever.
const SESSION: &str = "-c session_preload_libraries= -c local_preload_libraries= -c session_replication_role=replica -c default_transaction_read_only=off -c statement_timeout=30min -c lock_timeout=10s -c lc_messages=C -c client_encoding=UTF8 -c search_path=pg_catalog,public";

/// The private folder of one server, and how the server is to be run in it.
pub struct Quarantine<'a> {
    /// The folder, which only the server's user may enter.
    pub folder: &'a Path,
    /// The restored data directory.
    pub data: &'a Path,
    /// The programs of its major.
    pub programs: &'a Programs,
    /// Words before the server's own, of programs that take rights away.
    pub before: &'a [String],
    /// Whether this process fetches the server's WAL: it is across a network, which the server does not have.
    pub fetches_outside: bool,
    /// The port of this host that it listens on, where the operator asks for one.
    pub listens: Option<u16>,
    /// The future of the directory.
    pub lasts: Lasts,
}

/// The future of the data directory of a server in quarantine.
pub enum Lasts {
    /// It is thrown away, or kept by a step of its own: postgresql.auto.conf has what the restore wrote alone.
    Passing,
    /// It stays: nothing but the server changes it, and what it writes lasts. The settings are those of pg_control; its
    /// postgresql.auto.conf may raise them.
    Staying(ControlSettings),
    /// It stays, and its next server archives: the history and the WAL of the new timeline wait for that in pg_wal.
    Archiving(ControlSettings),
}

/// The libraries that a server was to load at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Those that are loaded.
    pub kept: Vec<String>,
    /// Those that the quarantine leaves out.
    pub left_out: Vec<String>,
    /// Those that should be loaded, and are not on this host.
    pub missing: Vec<String>,
}

impl Libraries {
    /// Divides the libraries of `shared_preload_libraries`.
    pub fn of(setting: &str, programs: &Programs) -> Libraries {
        let mut libraries = Libraries::default();
        let names = setting.split(',').map(|n| n.trim().trim_matches('"'));
        for name in names.filter(|name| !name.is_empty()) {
            let bare = name.rsplit('/').next().unwrap_or(name);
            let bare = bare.trim_end_matches(".so");
            let list = match ALLOWED_LIBRARIES.contains(&bare) {
                false => &mut libraries.left_out,
                true if is_installed(bare, programs) => &mut libraries.kept,
                true => &mut libraries.missing,
            };
            list.push(match ALLOWED_LIBRARIES.contains(&bare) {
                true => bare.to_owned(),
                false => name.to_owned(),
            });
        }
        libraries
    }
}

/// Whether a library lies where this major's programs look for it.
fn is_installed(library: &str, programs: &Programs) -> bool {
    let file = format!("{library}.so");
    let beside = |below: &str| programs.folder.parent().map(|p| p.join(below).join(&file));
    let places = ["lib", "lib/postgresql"];
    places.into_iter().filter_map(beside).any(|p| p.is_file())
}

/// The settings of the command line.
fn settings(
    folder: &Path,
    major: Major,
    libraries: &Libraries,
    (listens, keeps_wal): (Option<u16>, bool),
) -> Vec<(&'static str, String)> {
    let file = |name: &str| folder.join(name).display().to_string();
    let addresses = listens.map_or("", |_| LOOPBACK);
    let mut settings: Vec<(&'static str, String)> = vec![
        ("config_file", file(CONF)),
        ("hba_file", file("pg_hba.conf")),
        ("ident_file", file("pg_ident.conf")),
        ("unix_socket_directories", folder.display().to_string()),
        ("port", listens.unwrap_or(PORT).to_string()),
        ("listen_addresses", addresses.to_owned()),
        ("shared_preload_libraries", libraries.kept.join(",")),
    ];
    let number = major.number();
    // Only with archive_mode the server marks what is to be archived, and keeps it until somebody has. Without a command nothing leaves the
    // host: src/backend/access/transam/xlogarchive.c (XLogArchiveCheckDone), src/backend/postmaster/pgarch.c.
    let archive_mode = if keeps_wal { "on" } else { "off" };
    let fixed = [
        // Nobody else gets in.
        (13, "unix_socket_permissions", "0700"),
        (13, "unix_socket_group", ""),
        (13, "bonjour", "off"),
        (13, "ssl", "off"),
        // Nothing gets out.
        (13, "archive_mode", archive_mode),
        (13, "archive_command", ""),
        (15, "archive_library", ""),
        (13, "primary_conninfo", ""),
        (13, "primary_slot_name", ""),
        (13, "synchronous_standby_names", ""),
        (13, "max_logical_replication_workers", "0"),
        (17, "sync_replication_slots", "off"),
        // No code of the cluster runs by itself.
        (13, "archive_cleanup_command", ""),
        (13, "ssl_passphrase_command", ""),
        (13, "session_preload_libraries", ""),
        (13, "local_preload_libraries", ""),
        (13, "dynamic_library_path", "$libdir"),
        (18, "extension_control_path", "$system"),
        (18, "oauth_validator_libraries", ""),
        (EVENT_TRIGGERS_SINCE, "event_triggers", "off"),
        (13, "jit", "off"),
        // It fits on a small host.
        (13, "shared_buffers", "128MB"),
        (13, "huge_pages", "off"),
        (13, "wal_level", "replica"),
        // The log is read.
        (13, "logging_collector", "off"),
        (13, "log_destination", "stderr"),
        (13, "log_min_messages", "warning"),
        (13, "log_line_prefix", ""),
        (13, "log_timezone", "UTC"),
        (13, "lc_messages", "C"),
        (13, "external_pid_file", ""),
    ];
    let known = fixed.iter().filter(|(since, ..)| *since <= number);
    settings.extend(known.map(|(_, name, value)| (*name, (*value).to_owned())));
    settings
}

/// The options of each session, as far as this major knows them.
fn session(major: Major) -> String {
    let limits = time_limits(major.number()).iter();
    let lifted: String = limits.map(|name| format!("-c {name}=0 ")).collect();
    let event_triggers = match major.number() >= EVENT_TRIGGERS_SINCE {
        true => " -c event_triggers=off",
        false => "",
    };
    // The later one of two values of a setting counts.
    format!("{lifted}{SESSION}{event_triggers}")
}

/// Disables the event triggers of a database, before anything is created in it: `ENABLE ALWAYS` fires in replicas, too, and before 17 no
/// setting keeps it from that. The command itself fires none.
///
/// # Errors
/// Those of [`Server::query`].
pub fn disable_event_triggers(sql: &mut Server) -> Result<()> {
    const ENABLED: &str = "select format('alter event trigger %I disable', evtname) from pg_event_trigger where evtenabled <> 'D'";
    let commands = sql.query(ENABLED)?;
    for row in 0..commands.rows.len() {
        if let Some(command) = commands.text(row, 0)? {
            sql.query(command)?;
        }
    }
    Ok(())
}

/// Whether an error only says that this host, the time or our own client did not suffice for a query: nothing about what was recovered.
pub fn is_not_checked(error: &Error) -> bool {
    let Some(state) = server_error::sqlstate(error) else {
        return is_own_limit(error);
    };
    match state {
        // A function that needs another library, or an older version of an extension; a lock; the time.
        "42883" | "55P03" | "57014" => true,
        // A library that the host lacks. A file of a relation that is gone has the same code, and is damage.
        "58P01" => error.to_string().contains("could not access file"),
        _ => state.starts_with("53"),
    }
}

/// The names of the replication slots in a data directory.
pub fn slots(data: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data.join("pg_replslot")).into_iter();
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

impl Quarantine<'_> {
    /// Starts the server of a restored data directory; `written` are the settings that the restore wrote. When the operator wants to stop it
    /// ends at once, so that no query is waited for.
    ///
    /// # Errors
    /// `Io`; `Usage` for values that no file can carry.
    pub fn start(
        &self,
        host: &Host,
        libraries: &Libraries,
        written: &[Setting],
    ) -> Result<Quarantined> {
        let superusers = superusers(self.data);
        let text = match &self.lasts {
            Lasts::Passing => {
                write(&self.data.join(AUTO_CONF), &auto_conf(self.data, written)?)?;
                format!("{PASSING}{}", parameters(written)?)
            }
            Lasts::Staying(own) | Lasts::Archiving(own) => {
                let parameters = Parameters::from(own);
                let lines = parameters.iter().map(|(name, n)| format!("{name} = {n}\n"));
                // Switched off, the server forgets the times of all commits.
                let times = own.track_commit_timestamp;
                let lines: String = lines.collect();
                format!("{LASTING}{UNTIDIED}{lines}track_commit_timestamp = {times}\n")
            }
        };
        write(&self.folder.join(CONF), text.as_bytes())?;
        write(&self.folder.join("pg_ident.conf"), b"")?;
        write(&self.folder.join("pg_hba.conf"), HBA)?;
        let path = self.folder.join(LOG);
        let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
        let log = File::create(&path).map_err(failed)?;
        let mut command = self.command();
        command.arg("-D").arg(self.data).current_dir(self.folder);
        let major = self.programs.major;
        let more = (self.listens, matches!(self.lasts, Lasts::Archiving(_)));
        for (name, value) in settings(self.folder, major, libraries, more) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // A directory that was a server's own has its slots: they stay, and a server that has too little for them does not start.
        let slots = slots(self.data).len();
        if slots > 0 {
            let most = slots.max(SLOTS_USUAL);
            command.args(["-c", "wal_level=logical", "-c"]);
            command.arg(format!("max_replication_slots={most}"));
        }
        // Variables of the repository stay, for restore_command may need them; libpq's and another server's go.
        program::without_libpq(&mut command);
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log.try_clone().map_err(failed)?)
            // Ctrl-C at the terminal is this process's alone: it ends the server in order.
            .process_group(0);
        let restore = written.iter().find(|s| s.name == "restore_command");
        let outside = match restore.filter(|_| self.fetches_outside) {
            Some(restore) => Some((self.outside(&mut command)?, restore.value.clone())),
            None => None,
        };
        let child = command
            .spawn()
            .map_err(|e| Error::from_io("run postgres", e))?;
        let answering = outside.map(|(outside, restore)| {
            outside.answer(Commands {
                restore,
                data: self.data.to_owned(),
                log,
                server: child.id(),
            })
        });
        let is_over = Arc::new(Mutex::new(None));
        watch(Pid::from_child(&child), Arc::clone(&is_over), host.clone());
        Ok(Quarantined {
            child,
            is_over,
            folder: self.folder.to_owned(),
            port: self.listens.unwrap_or(PORT),
            superusers,
            session: session(self.programs.major),
            _answering: answering,
        })
    }

    /// Has the server ask this process for WAL. It needs no credentials of a store then, and gets none.
    fn outside(&self, command: &mut Command) -> Result<Outside> {
        let outside = Outside::bind(self.folder);
        let outside = outside.map_err(|e| Error::from_io("make a socket for WAL", e))?;
        command.env(SOCKET, outside.path());
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|name| is_credential(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        Ok(outside)
    }

    fn command(&self) -> Command {
        let server = self.programs.program("postgres");
        match self.before {
            [] => Command::new(server),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(server);
                command
            }
        }
    }
}

/// The content of postgresql.auto.conf of a server that is thrown away.
fn auto_conf(data: &Path, written: &[Setting]) -> Result<Vec<u8>> {
    match that_count(data, written)?.as_slice() {
        // The comment would stay in a clone that is kept.
        [] => Ok(Vec::new()),
        settings => conf::append(b"", COMMENT, settings),
    }
}

/// The settings of a restore that count at this start: once recovery has ended, those that are not taken away yet. A clone that is kept would have the others
/// for ever.
fn that_count(data: &Path, written: &[Setting]) -> Result<Vec<Setting>> {
    let directory = DataDirectory::at(data);
    if directory.has("recovery.signal") {
        return Ok(written.to_vec());
    }
    match guard::written(&directory) {
        Ok(record) => Ok([record.until_recovery_ended, record.until_adopted].concat()),
        Err(e) if e.code() == Code::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The parameters among settings, as lines. A start behind the recovery needs room for prepared transactions, too.
fn parameters(written: &[Setting]) -> Result<String> {
    let parameters = written.iter().filter(|s| Parameters::is_name(&s.name));
    parameters
        .map(|s| s.line().map(|line| line + "\n"))
        .collect()
}

/// Whether a variable may say how to get into a store.
fn is_credential(name: &str) -> bool {
    let prefixes = ["AWS_", "AZURE_", "GOOGLE_", "SSH_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || name.contains("PASSPHRASE")
}

/// Writes a file that only its owner reads, over one that is there.
///
/// # Errors
/// Those of the system, with the path.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600);
    opened
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}

/// The names under which a superuser may be reached.
fn superusers(data: &Path) -> Vec<String> {
    let global = data.join("global");
    let read = |path: PathBuf, most: u64| {
        let is_small = std::fs::metadata(&path).is_ok_and(|m| m.len() <= most);
        is_small.then(|| std::fs::read(&path).ok())?
    };
    let file = read(global.join("pg_filenode.map"), MAP_BYTES)
        .and_then(|map| roles::file_of_catalog(&map));
    let pages = file.and_then(|file| read(global.join(file.to_string()), ROLES_BYTES));
    let mut names = pages.map(|p| roles::superusers(&p)).unwrap_or_default();
    // The usual one first: each that is tried in vain costs a connection.
    names.sort_by_key(|name| name != "postgres");
    if names.is_empty() {
        names.push("postgres".to_owned());
    }
    names
}

/// How a server has ended. Who signals it holds this lock: once its end was seen, the number may be another process's.
type Over = Arc<Mutex<Option<ExitStatus>>>;

/// Ends the server when the operator wants to stop; a thread that ends with the server.
fn watch(pid: Pid, is_over: Over, host: Host) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(PAUSE);
            let over = locked(&is_over);
            if over.is_some() {
                return;
            }
            if host.is_stopping() {
                let _ = kill_process(pid, Signal::QUIT);
                return;
            }
        }
    });
}

/// A server in quarantine. Dropped, it ends at once.
pub struct Quarantined {
    child: Child,
    is_over: Over,
    folder: PathBuf,
    port: u16,
    superusers: Vec<String>,
    session: String,
    /// Dropped behind the server's end.
    _answering: Option<Answering>,
}

impl Quarantined {
    /// The file with the server's words.
    pub fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    /// How the server has ended; none while it runs.
    ///
    /// # Errors
    /// `Io`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let mut is_over = locked(&self.is_over);
        if is_over.is_none() {
            let ended = self.child.try_wait();
            *is_over = ended.map_err(|e| Error::from_io("wait for postgres", e))?;
        }
        Ok(*is_over)
    }

    /// Connects to a database as a superuser.
    ///
    /// # Errors
    /// Those of [`Server::connect_alone`].
    pub fn connect(&mut self, database: &str) -> Result<Server> {
        let mut failed = None;
        for (at, name) in self.superusers.iter().enumerate() {
            match Server::connect_alone(&self.conninfo_as(name, database)) {
                Ok(server) => {
                    self.superusers.swap(0, at);
                    return Ok(server);
                }
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        Err(failed.unwrap_or_else(|| err!(Internal, "no superuser to connect as")))
    }

    /// How a session of ours connects to a database, once one was opened. No secret is in it.
    pub fn conninfo(&self, database: &str) -> String {
        self.conninfo_as(self.superuser(), database)
    }

    fn conninfo_as(&self, user: &str, database: &str) -> String {
        format!(
            "host={} port={} user={} dbname={} options={}",
            quoted(&self.folder.display().to_string()),
            self.port,
            quoted(user),
            quoted(database),
            quoted(&self.session),
        )
    }

    /// Lets sessions that are opened from now on take as long as they need.
    pub fn lift_time_limit(&mut self) {
        self.session.push_str(" -c statement_timeout=0");
    }

    /// The superuser that sessions are opened as, once one was.
    pub fn superuser(&self) -> &str {
        self.superusers.first().map_or("postgres", String::as_str)
    }

    /// The port in the name of its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Has the server work durably from now on, by a reload; what it wrote before nobody has synced. It is also tidied up where `has_all`: before
    /// that, autovacuum would read what is still to be copied.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub fn make_durable(&mut self, has_all: bool) -> Result<()> {
        let autovacuum = if has_all { "on" } else { "off" };
        let text = format!("{LASTING}autovacuum = {autovacuum}\n");
        let path = self.folder.join(CONF);
        let nonce = u64::from(self.child.id());
        // In one step: the server may read it at any time.
        durable::replace(&path, text.as_bytes(), nonce)
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
        if self.ended()?.is_none() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::HUP);
        }
        Ok(())
    }

    /// Stops the server in order: its files are then whole.
    ///
    /// # Errors
    /// `Server` where it does not end, or not well.
    pub fn stop(&mut self, tick: &dyn Fn() -> Result<()>) -> Result<()> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(err!(Server, "the server ended with {status}")),
                None => tick()?,
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Quarantined {
    fn drop(&mut self) {
        let began = Instant::now();
        // Once its end was seen, the number may be another process's.
        while matches!(self.ended(), Ok(None)) {
            let signal = match began.elapsed() > PATIENCE {
                true => Signal::KILL,
                false => Signal::QUIT,
            };
            let _ = kill_process(Pid::from_child(&self.child), signal);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Finds the programs of a major on this host.
///
/// # Errors
/// `Refused` with the version that is needed.
pub fn programs(environment: &Environment, major: u32, given: Option<&Path>) -> Result<Programs> {
    let wanted = Major::from_number(major)?;
    let found = Programs::of(wanted, given, environment.get("PATH"));
    found.ok_or_else(|| {
        err!(
            Refused,
            "no server of PostgreSQL {major} was found on this host: initdb, pg_ctl and postgres of that very major are needed"
        )
        .hint("Nothing was done. Install it, or put the folder of its programs into PATH; drill, query, rescue and clone also take --bin DIR.")
    })
}

/// Whether an error only says that the server is not ready yet.
pub fn is_passing(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable | Code::Server | Code::Denied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs {
            folder: "/nowhere/bin".into(),
            major: Major::from_number(17).unwrap(),
            version: "17.1".into(),
        }
    }

    #[test]
    fn libraries_are_loaded_by_an_allow_list_and_missing_ones_are_named() {
        let libraries = Libraries::of(" pg_cron, \"pg_tde\",$libdir/timescaledb.so,", &programs());
        assert_eq!(libraries.left_out, ["pg_cron", "$libdir/timescaledb.so"]);
        assert_eq!(libraries.missing, ["pg_tde"]);
        assert!(libraries.kept.is_empty());
    }

    #[test]
    fn k62_a_start_behind_the_recovery_gets_none_of_its_settings() {
        let data = tempfile::tempdir().unwrap();
        let wal = data.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let archive = Setting::new("archive_mode", "off");
        let written = [
            Setting::new("recovery_target_lsn", "0/5"),
            Setting::new("max_prepared_transactions", "7"),
            archive.clone(),
        ];
        let of = || that_count(data.path(), &written).unwrap();
        let signal = data.path().join("recovery.signal");
        std::fs::write(&signal, "").unwrap();
        assert_eq!(of(), written);
        std::fs::remove_file(&signal).unwrap();
        // All were taken away.
        assert!(of().is_empty());
        assert!(auto_conf(data.path(), &written).unwrap().is_empty());
        let record = guard::WrittenSettings {
            until_adopted: vec![archive.clone()],
            ..guard::WrittenSettings::default()
        };
        let json = serde_json::to_vec(&record).unwrap();
        std::fs::write(wal.join(guard::SETTINGS), json).unwrap();
        assert_eq!(of(), [archive]);
        let lines = parameters(&written).unwrap();
        assert_eq!(lines, "max_prepared_transactions = '7'\n");
    }

    #[test]
    fn an_older_server_gets_no_setting_that_it_does_not_know() {
        let of = |major| -> Vec<&str> {
            let major = Major::from_number(major).unwrap();
            let all = settings(Path::new("/f"), major, &Libraries::default(), (None, false));
            all.into_iter().map(|(name, _)| name).collect()
        };
        assert!(!of(13).contains(&"archive_library") && of(15).contains(&"archive_library"));
        assert!(!of(16).contains(&"event_triggers") && of(17).contains(&"event_triggers"));
        assert!(of(13).contains(&"listen_addresses"));
        let session = |major| session(Major::from_number(major).unwrap());
        assert!(!session(16).contains("event_triggers") && session(17).contains("event_triggers"));
        assert!(!session(13).contains("idle_session") && session(14).contains("idle_session"));
        assert!(!session(16).contains(" transaction_timeout"));
        assert!(session(17).contains(" transaction_timeout=0"));
    }
}
