//! PostgreSQL servers: any number side by side, as the unprivileged user, always stopped in the end.
//!
//! Layout of a cluster's folder: `data` (PGDATA), `sock`, `log`. Port, socket and addresses are given on the command line,
//! so that a data directory, and whatever is restored from its backups, holds nothing of the place where it ran.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::client::{Client, Rows};
use super::postgres::{self, Lock, Shape};
use super::program::{Program, Run};
use super::sandbox::Sandbox;
use super::{PATIENCE, unpadded, user, wait_until, wait_within};

/// How long a server may take to start or to stop, recovery included.
const SERVER_TIMEOUT: Duration = Duration::from_secs(300);

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: waits for clients.
    Smart,
    /// SIGINT: ends sessions, writes a shutdown checkpoint, archives what is there.
    Fast,
    /// SIGQUIT: like a crash; the next start recovers.
    Immediate,
}

/// The properties of a future cluster; made by [`Cluster::builder`].
pub struct Builder {
    shape: Shape,
    settings: Vec<(String, String)>,
    options: BTreeMap<String, String>,
    hba: Option<String>,
    files: Vec<(PathBuf, Vec<u8>)>,
    fresh: bool,
    primary: Option<(String, PathBuf)>,
    basebackup_args: Vec<String>,
    slot: Option<String>,
    pgdata: Option<PathBuf>,
    on_disk: bool,
}

impl Builder {
    /// Sets the WAL segment size in MiB (else 16). 1 makes segments cheap.
    #[must_use]
    pub fn segment_size_mb(mut self, megabytes: u32) -> Builder {
        self.shape.segment_size_mb = megabytes;
        self
    }

    /// Turns data page checksums on or off (else on).
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Builder {
        self.shape.checksums = on;
        self
    }

    /// Adds a line to postgresql.conf (of a data directory that is already there: an option of the command line).
    #[must_use]
    pub fn config(mut self, name: &str, value: impl std::fmt::Display) -> Builder {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Gives the server an option on its command line, which no copy of the data directory inherits.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl std::fmt::Display) -> Builder {
        self.options.insert(name.to_owned(), value.to_string());
        self
    }

    /// Puts the data directory on a disk. Else it lies in memory where there is room: a hundred clusters start sooner.
    #[must_use]
    pub fn on_disk(mut self) -> Builder {
        self.on_disk = true;
        self
    }

    /// Lets the server sync nothing: for tests that are not about durability and start many clusters.
    #[must_use]
    pub fn without_fsync(self) -> Builder {
        self.option("fsync", "off")
    }

    /// Replaces pg_hba.conf.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Builder {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Puts a file (mode 0600) into the data directory before the first start, say `server.key`.
    #[must_use]
    pub fn file(mut self, name: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Builder {
        self.files.push((name.as_ref().to_owned(), content.into()));
        self
    }

    /// Runs initdb for this cluster alone. Clusters copied from one template share the system identifier.
    #[must_use]
    pub fn own_identifier(mut self) -> Builder {
        self.fresh = true;
        self
    }

    /// Makes it a streaming standby of `primary`, which must run: by pg_basebackup, `standby.signal` and `primary_conninfo`.
    #[must_use]
    pub fn standby_of(mut self, primary: &Cluster) -> Builder {
        self.primary = Some((primary.conninfo("postgres"), primary.pgdata.clone()));
        self
    }

    /// Lets the standby use this replication slot, which pg_basebackup creates on the primary.
    #[must_use]
    pub fn slot(mut self, name: &str) -> Builder {
        self.slot = Some(name.to_owned());
        self
    }

    /// Adds an argument to the standby's pg_basebackup, say `--tablespace-mapping=OLD=NEW`.
    #[must_use]
    pub fn basebackup_arg(mut self, arg: &str) -> Builder {
        self.basebackup_args.push(arg.to_owned());
        self
    }

    /// Makes the data directory and does not start it.
    pub fn create(self) -> Cluster {
        let name = format!("pg{}", self.shape.major);
        let sandbox = if self.on_disk {
            Sandbox::on_disk(&name)
        } else {
            Sandbox::new(&name)
        };
        sandbox.dir("sock");
        let pgdata = match (&self.pgdata, &self.primary) {
            (Some(pgdata), _) => pgdata.clone(),
            (None, Some((conninfo, _))) => self.base_backup(&sandbox, conninfo),
            (None, None) => self.initdb(&sandbox),
        };
        for (name, content) in &self.files {
            let path = pgdata.join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            user::own(&path);
        }
        if let Some(lines) = &self.hba {
            std::fs::write(pgdata.join("pg_hba.conf"), lines).unwrap();
        }
        let mut options = self.options;
        if self.pgdata.is_some() {
            options.extend(self.settings.iter().cloned());
        } else {
            append_settings(&pgdata, &self.settings);
        }
        let (port, port_lock) = free_port();
        Cluster {
            major: self.shape.major,
            pgdata,
            port,
            options,
            environment: BTreeMap::new(),
            server: None,
            _port_lock: port_lock,
            sandbox,
        }
    }

    /// Makes the data directory, starts the server and waits until it takes connections.
    ///
    /// # Panics
    /// With the server's log, if it does not.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }

    /// Starts the server on a restored data directory, and waits until recovery has ended.
    pub fn promoted(self) -> Cluster {
        let cluster = self.start();
        cluster.wait_promoted();
        cluster
    }

    fn initdb(&self, sandbox: &Sandbox) -> PathBuf {
        let pgdata = sandbox.join("data");
        if self.fresh {
            postgres::initdb(self.shape, &pgdata);
        } else {
            postgres::copy_template(self.shape, &pgdata);
        }
        // Builds without LLVM must not try; a small server starts faster.
        let base = [
            ("jit", "off"),
            ("shared_buffers", "16MB"),
            // A standby that finds nothing asks again soon, not after five seconds.
            ("wal_retrieve_retry_interval", "200ms"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_line_prefix", "%m [%p] "),
            // It would write WAL, end segments and change pages of tests that last longer than a minute.
            ("autovacuum_naptime", "1d"),
        ];
        append_settings(&pgdata, &base.map(|(n, v)| (n.to_owned(), v.to_owned())));
        pgdata
    }

    fn base_backup(&self, sandbox: &Sandbox, conninfo: &str) -> PathBuf {
        let pgdata = sandbox.join("data");
        let mut args: Vec<String> = ["-c", "fast", "-X", "stream", "-R", "--no-sync", "-d"]
            .map(str::to_owned)
            .to_vec();
        args.push(conninfo.to_owned());
        if let Some(slot) = &self.slot {
            args.extend(["-C", "-S", slot].map(str::to_owned));
        }
        args.extend(self.basebackup_args.iter().cloned());
        Program::new(postgres::newest_bin(self.shape.major, "pg_basebackup"))
            .arg("-D")
            .arg(&pgdata)
            .args(args)
            .succeed();
        pgdata
    }
}

fn append_settings(pgdata: &Path, settings: &[(String, String)]) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(pgdata.join("postgresql.conf"))
        .unwrap();
    for (name, value) in settings {
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }
}

/// Takes a port below the range that the kernel gives away; the lock keeps other tests, of any process, off it. Whether anybody else
/// listens there is asked by connecting: a socket of our own on it would live on, for a moment, in every child that another test starts just
/// then, and the server could not listen. The tests of another user cannot share the locks, and get ports of their own.
pub fn free_port() -> (u16, Lock) {
    let user = rustix::process::geteuid().as_raw();
    let folder = format!("/tmp/pitr-test-ports-{user}");
    let _ = std::fs::create_dir(&folder);
    let first = 21_000 + (user % 10) as u16 * 1_000;
    (first..first + 1_000)
        .filter_map(|port: u16| {
            let lock = Lock::try_take(&Path::new(&folder).join(port.to_string()))?;
            let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
            (!listens).then_some((port, lock))
        })
        .next()
        .expect("there is a free port")
}

/// A server process and the shell that ends it when the tests die before they could.
struct Server {
    child: Child,
    watchdog: Child,
}

impl Drop for Server {
    /// Whoever drops it has seen the server's end: the watchdog must not take it for the end of the tests, and remove the folder.
    fn drop(&mut self) {
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }
}

/// A cluster: a data directory, and a server on it when it runs. Dropped, it is stopped and removed.
pub struct Cluster {
    major: u32,
    pgdata: PathBuf,
    port: u16,
    options: BTreeMap<String, String>,
    environment: BTreeMap<String, OsString>,
    server: Option<Server>,
    _port_lock: Lock,
    sandbox: Sandbox,
}

impl Cluster {
    /// Whether its data directory was asked to be on a disk.
    pub fn is_on_disk(&self) -> bool {
        self.sandbox.is_on_disk()
    }

    /// Describes a new cluster: 16 MiB segments, checksums, initdb's settings.
    pub fn builder(major: u32) -> Builder {
        Builder {
            shape: Shape {
                major,
                segment_size_mb: 16,
                checksums: true,
            },
            settings: Vec::new(),
            options: BTreeMap::new(),
            hba: None,
            files: Vec::new(),
            fresh: false,
            primary: None,
            basebackup_args: Vec::new(),
            slot: None,
            pgdata: None,
            on_disk: false,
        }
    }

    /// Describes a cluster for a test that is about neither size nor durability: 1 MiB segments, nothing synced.
    pub fn small(major: u32) -> Builder {
        Cluster::builder(major).segment_size_mb(1).without_fsync()
    }

    /// Describes a streaming standby of this cluster, which must run. It syncs nothing.
    pub fn standby(&self) -> Builder {
        Cluster::builder(self.major)
            .standby_of(self)
            .without_fsync()
    }

    /// Describes a server on a data directory that is already there, say a restored one. It is left where it is when the
    /// cluster is dropped, and nothing is written to its configuration.
    pub fn open(major: u32, pgdata: impl AsRef<Path>) -> Builder {
        let mut builder = Cluster::builder(major);
        builder.pgdata = Some(pgdata.as_ref().to_owned());
        builder
    }

    /// Starts the server and waits until it takes connections (for a standby: until it is consistent).
    ///
    /// # Panics
    /// With the server's log, if it ends instead, or after five minutes.
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL {} did not start:\n{log}", self.major);
        }
    }

    /// Like [`start`](Self::start), but returns what the server logged if it ends before it takes connections: recovery
    /// that stops with FATAL, for one.
    ///
    /// # Errors
    /// The log since this start.
    pub fn try_start(&mut self) -> Result<(), String> {
        // Whatever looks for a free port may try ours for a moment.
        for _ in 0..20 {
            match self.start_once() {
                Err(log) if log.contains("Address already in use") => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                done => return done,
            }
        }
        self.start_once()
    }

    fn start_once(&mut self) -> Result<(), String> {
        let seen = self.log().len();
        self.spawn();
        let end = Instant::now() + SERVER_TIMEOUT;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            let server = self.server.as_mut().expect("it was spawned");
            if server.child.try_wait().unwrap().is_some() {
                self.server = None;
                return Err(self.log().split_off(seen));
            }
            assert!(
                Instant::now() < end,
                "PostgreSQL {} does not get ready:\n{}",
                self.major,
                self.log().split_off(seen)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the server and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        // One of a crash, or copied along: readiness is read from this file.
        let _ = std::fs::remove_file(self.pgdata.join("postmaster.pid"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.sandbox.join("log"))
            .unwrap();
        let mut command = user::command(self.bin("postgres").expect("every major has postgres"));
        command
            .arg("-D")
            .arg(&self.pgdata)
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "logging_collector=off"])
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                self.socket_dir().display()
            ));
        for (name, value) in &self.options {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = command
            .envs(&self.environment)
            .current_dir(self.sandbox.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // Its own group: Ctrl-C at the tests reaches it through the watchdog, not half-way.
            .process_group(0)
            .spawn()
            .expect("postgres starts");
        let watchdog = watchdog(child.id(), self.sandbox.path());
        self.server = Some(Server { child, watchdog });
    }

    /// Whether it takes connections.
    pub fn is_ready(&self) -> bool {
        // PostgreSQL: src/include/utils/pidfile.h, LOCK_FILE_LINE_PM_STATUS (line 8).
        let text = std::fs::read_to_string(self.pgdata.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        let state = lines.nth(6).map_or("", str::trim);
        pid == self.pid() && matches!(state, "ready" | "standby")
    }

    /// Stops the server and waits until it is gone.
    ///
    /// # Panics
    /// With its log, if it is not gone after five minutes.
    pub fn stop(&mut self, how: Stop) {
        let signal = match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let Some(mut server) = self.server.take() else {
            return;
        };
        let _ = kill_process(Pid::from_child(&server.child), signal);
        let end = Instant::now() + SERVER_TIMEOUT;
        while server.child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                self.server = Some(server);
                panic!("PostgreSQL {} does not stop:\n{}", self.major, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it fast and starts it again.
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Waits until the server has ended by itself, say after `recovery_target_action = 'shutdown'`; returns its exit status.
    pub fn wait_ended(&mut self) -> i32 {
        let server = self.server.as_mut().expect("the server was started");
        let end = Instant::now() + SERVER_TIMEOUT;
        let status = loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < end,
                "PostgreSQL {} does not end",
                self.major
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        self.server = None;
        status.code().unwrap_or(-1)
    }

    /// Promotes a standby and waits until it takes writes.
    pub fn promote(&self) {
        let done = self.value("select pg_promote(true, 300)");
        assert_eq!(done, "t", "promotion failed:\n{}", self.log());
        self.wait_promoted();
    }

    /// Waits until recovery has ended, which may have replayed the WAL of an hour.
    pub fn wait_promoted(&self) {
        wait_within(10 * PATIENCE, "recovery has ended", || {
            let asked = self.client().try_sql("select pg_is_in_recovery()");
            match asked {
                Err(e) if is_recovery_conflict(&e) => false,
                rows => rows.expect("the server answers")[0][0].as_deref() == Some("f"),
            }
        });
    }

    /// Waits until this standby has replayed everything up to `lsn`.
    pub fn wait_replayed(&self, lsn: &dyn std::fmt::Display) {
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
        wait_until("the standby has replayed", || self.value(&replayed) == "t");
    }

    /// Makes a tablespace in `folder`.
    pub fn make_tablespace(&self, name: &str, folder: &Path) {
        self.sql(&format!(
            "create tablespace {name} location '{}'",
            folder.display()
        ));
    }

    /// Opens a connection as the superuser `postgres` to the database `postgres`.
    pub fn client(&self) -> Client {
        self.client_of("postgres")
    }

    /// Opens a connection as the superuser `postgres` to `database`. A server in recovery may refuse one for what it replays just then: it is asked again.
    pub fn client_of(&self, database: &str) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.conninfo(database)) {
                Ok(client) => return client,
                Err(e) if is_recovery_conflict(&e) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => panic!(
                    "could not connect to PostgreSQL {}: {}\n{}",
                    self.major,
                    super::client::text(&e),
                    self.log()
                ),
            }
        }
    }

    /// Runs statements on a connection of their own, and returns the rows of all of them.
    pub fn sql(&self, sql: &str) -> Rows {
        self.client().sql(sql)
    }

    /// Returns the first column of the only row of a query, run on a connection of its own.
    pub fn value(&self, sql: &str) -> String {
        self.client().value(sql)
    }

    /// Returns a libpq connection string by the Unix socket.
    pub fn conninfo(&self, database: &str) -> String {
        format!(
            "host={} port={} user=postgres dbname={database}",
            self.socket_dir().display(),
            self.port
        )
    }

    /// Returns a libpq connection string by TCP on 127.0.0.1.
    pub fn conninfo_tcp(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database}",
            self.port
        )
    }

    /// Returns the major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Returns the data directory.
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// Returns the TCP port, which is also that of the socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of the Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.sandbox.join("sock")
    }

    /// Returns the folder around it all, which is removed with the cluster: for tablespaces and the like.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Returns the process id of the postmaster, when it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.child.id())
    }

    /// Whether the server was started and has not been stopped.
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Returns everything that the server has logged, with its positions as servers before 19 print them.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.sandbox.join("log")).unwrap_or_default();
        unpadded(&String::from_utf8_lossy(&bytes))
    }

    /// Waits until the log holds `part`.
    pub fn wait_log(&self, part: &str) {
        wait_until(&format!("the log says: {part}"), || {
            self.log().contains(part)
        });
    }

    /// Returns a program of exactly this major, if this machine has it.
    pub fn bin(&self, name: &str) -> Option<PathBuf> {
        postgres::bin(self.major, name)
    }

    /// Returns a client program of this or the next newer major, ready to talk to this server.
    pub fn tool(&self, name: &str) -> Program {
        Program::new(postgres::newest_bin(self.major, name))
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
    }

    /// Sets the variables of the server's environment, from its next start on.
    pub fn set_environment(&mut self, variables: &[(&str, &OsStr)]) {
        let owned = |(name, value): &(&str, &OsStr)| ((*name).to_owned(), (*value).to_owned());
        self.environment = variables.iter().map(owned).collect();
    }

    /// Writes a line to postgresql.auto.conf; it holds after [`reload`](Self::reload) or a restart.
    pub fn alter_system(&self, name: &str, value: &str) {
        self.sql(&format!(
            "alter system set {name} = '{}'",
            value.replace('\'', "''")
        ));
    }

    /// As [`alter_system`](Self::alter_system), and reloads the configuration.
    pub fn set(&self, name: &str, value: &str) {
        self.alter_system(name, value);
        self.reload();
    }

    /// Reloads the configuration.
    pub fn reload(&self) {
        self.sql("select pg_reload_conf()");
    }

    /// Appends a line to postgresql.conf, running or not.
    pub fn append_config(&self, name: &str, value: &str) {
        append_settings(&self.pgdata, &[(name.to_owned(), value.to_owned())]);
    }

    /// Makes an empty file in the data directory, say `recovery.signal`.
    pub fn touch(&self, name: &str) {
        let path = self.pgdata.join(name);
        std::fs::write(&path, "").unwrap();
        user::own(&path);
    }

    /// Returns the system identifier.
    pub fn system_identifier(&self) -> u64 {
        self.value("select system_identifier from pg_control_system()")
            .parse()
            .unwrap()
    }

    /// Returns where WAL is inserted next (a primary).
    pub fn insert_lsn(&self) -> String {
        self.value("select pg_current_wal_insert_lsn()")
    }

    /// Ends the segment that is being written, after making sure there is something in it; returns its name.
    pub fn switch_wal(&self) -> String {
        // One connection: what the record before the switch says lies in the segment that is named.
        let client = self.client();
        client.sql("select pg_logical_emit_message(false, 'pitr', 'switch')");
        // The end of a backup may have switched in between: the answer is the border before what is empty, which 17 calls by the segment behind it.
        let last = if self.major < 17 { "" } else { " - 1" };
        client.value(&format!("select pg_walfile_name(pg_switch_wal(){last})"))
    }

    /// Waits until the archiver has archived this file, or (where that is forgotten by now) a later one of its timeline.
    pub fn wait_archived(&self, name: &str) {
        let client = self.client();
        let status = self.pgdata.join("pg_wal/archive_status");
        // After a promotion the last one reported may be the partial segment of the timeline before, and 13 and 14 can miss being
        // woken: they look again after a minute.
        wait_within(3 * PATIENCE, &format!("\"{name}\" is archived"), || {
            if status.join(format!("{name}.done")).exists() {
                return true;
            }
            let last = client.value("select last_archived_wal from pg_stat_archiver");
            last.len() >= 24 && last[..8] == name[..8] && last[..24] >= name[..24]
        });
    }

    /// Ends the segment that is being written and waits until it is archived; returns its name.
    pub fn archive_now(&self) -> String {
        let name = self.switch_wal();
        self.wait_archived(&name);
        name
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("PITR_TEST_LOG").is_some() {
            eprintln!("--- log of PostgreSQL {}\n{}", self.major, self.log());
        }
        let Some(mut server) = self.server.take() else {
            return;
        };
        let pid = Pid::from_child(&server.child);
        let _ = kill_process(pid, Signal::QUIT);
        // After SIGQUIT the postmaster gives stuck children five seconds, and waits for all of them: whoever outlived it would write into
        // a folder that is being removed.
        let end = Instant::now() + PATIENCE;
        while matches!(server.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A shell that waits for the end of its standard input, which comes when the test process is gone for whatever reason,
/// and then ends the server and removes its folder. Stopping the server ends the shell first.
fn watchdog(pid: u32, folder: &Path) -> Child {
    Command::new("/bin/sh")
        .args([
            "-c",
            "read -r _; kill -QUIT \"$1\"; sleep 2; rm -rf \"$2\"",
            "watchdog",
        ])
        .arg(pid.to_string())
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a shell starts")
}

/// Whether a server in recovery cancelled a statement or a connection, because it replays what stands against it.
fn is_recovery_conflict(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
}
