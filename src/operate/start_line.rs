//! The line that starts a server on a restored directory.
//!
//! A backup may have no postgresql.conf (Debian keeps it in /etc): then `pg_ctl -D DIR` does not start. With
//! `config_file` alone it starts the server that the file belongs to: its `data_directory` counts more than -D. So the
//! line names all four files. Settings that two servers must not share (port, external_pid_file, stats_temp_directory)
//! are set apart, too.
//!
//! PostgreSQL: src/backend/utils/misc/guc.c (`SelectConfigFiles`), src/bin/pg_ctl/pg_ctl.c (`adjust_data_dir`).

use std::path::{Path, PathBuf};

use super::archive_command::shell_word;
use super::owner::User;
use super::port;
use super::rival::is_same;
use crate::archive::datadir::{DataDirectory, read_small};
use crate::archive::guard::AUTO_CONF;
use crate::archive::server_conf::{self, Configuration, Disk, Started};
use crate::restore::job::{Job, Purpose};
use crate::restore::settings::{self, Brought};
use crate::restore::target_dir::Target;

/// The folder of clusters' configurations on Debian.
const ETC: &str = "/etc/postgresql";
/// Stands for a directory that only the operator knows.
const PLACEHOLDER: &str = "CONFIG_DIR";

/// How the server is started.
pub struct Start {
    /// The line for a shell.
    pub command: String,
    /// Remarks on it.
    pub notes: Vec<String>,
    /// The port that its settings name.
    pub port: u16,
    /// Whether somebody listens there already.
    pub is_port_taken: bool,
    /// Who has to confirm each commit.
    pub synchronous_standby_names: Option<String>,
    /// Settings that run code when it is started, as `file: name = 'value'`.
    pub code_settings: Vec<String>,
    /// Includes that could not be looked at.
    pub includes_not_read: Vec<String>,
    /// Includes that were not restored, and without which the server does not start.
    pub includes_absent: Vec<String>,
}

/// Which postgresql.conf the server gets.
enum Main {
    /// That of the data directory.
    Own,
    /// That of the server the backup was taken from, on this host.
    Of(PathBuf),
    /// The operator has to provide one.
    Missing,
}

/// Composes the line. `original` is the data directory of the server that the backup was taken from, where it is on this host.
pub fn compose(
    job: &Job,
    target: &Target,
    brought: &Brought,
    major: u32,
    original: Option<&Path>,
) -> Start {
    let original = original.filter(|pgdata| !is_foreign(pgdata, job.system_identifier));
    let started = original
        .filter(|pgdata| is_of(pgdata, major))
        .map(Started::read)
        .unwrap_or_default();
    let main = main_file(brought, major, (original, &target.data), &started);
    let mut line = Line {
        to: &target.data,
        configuration: effective(&main, brought),
        options: Vec::new(),
        notes: Vec::new(),
    };
    match &main {
        Main::Own => line.own_files(brought, original),
        Main::Of(file) => line.files_of(file, brought),
        Main::Missing => line.files_missing(brought, major),
    }
    if original != Some(&target.data) {
        line.set_apart(major);
    }
    let (port, is_port_taken) = line.port();
    let synchronous_standby_names = line.synchronous(job);
    line.subscriptions(job, brought);
    let mut code_settings = settings::running_code(&line.configuration);
    for more in brought.running_code() {
        if !code_settings.contains(&more) {
            code_settings.push(more);
        }
    }
    let shown = |lines: &[server_conf::Line]| lines.iter().map(settings::shown).collect();
    Start {
        code_settings,
        includes_not_read: shown(&line.configuration.unseen),
        includes_absent: shown(&line.configuration.absent),
        command: line.command(target, &program("pg_ctl", &started, major)),
        notes: line.notes,
        port,
        is_port_taken,
        synchronous_standby_names,
    }
}

/// Whether another cluster lies where the configuration has that of the backup: its files have nothing to do with this one.
fn is_foreign(pgdata: &Path, system_identifier: u64) -> bool {
    let control = DataDirectory::at(pgdata).control_head();
    control.is_ok_and(|c| c.is_some_and(|c| c.system_identifier != system_identifier))
}

/// Whether a directory is one of a server of this major.
fn is_of(pgdata: &Path, major: u32) -> bool {
    let version = read_small(&pgdata.join("PG_VERSION"));
    version.is_ok_and(|text| text.trim() == major.to_string())
}

fn main_file(
    brought: &Brought,
    major: u32,
    (original, to): (Option<&Path>, &Path),
    started: &Started,
) -> Main {
    let outside = |file: PathBuf| {
        let is_outside = !original.is_some_and(|pgdata| file.starts_with(pgdata));
        (file.is_absolute() && is_outside && is_there(&file)).then_some(file)
    };
    let told = started.option("config_file").map(PathBuf::from);
    let beside = || Some(started.directory.as_ref()?.join("postgresql.conf"));
    let debian = |pgdata: &Path| debian_file(Path::new(ETC), major, pgdata);
    if let Some(file) = told.or_else(beside).and_then(outside) {
        return Main::Of(file);
    }
    if brought.has_main {
        return Main::Own;
    }
    // A cluster that was made for this very directory comes before the one that the backup was taken from.
    let made_for = debian(to).filter(|file| names_directory(file, to));
    let of_original = || original.and_then(debian);
    let found = made_for
        .and_then(outside)
        .or_else(|| of_original().and_then(outside));
    found.map_or(Main::Missing, Main::Of)
}

/// The place of a data directory's postgresql.conf, as Debian's pg_createcluster lays clusters out.
fn debian_file(etc: &Path, major: u32, pgdata: &Path) -> Option<PathBuf> {
    let place = etc.join(major.to_string()).join(pgdata.file_name()?);
    Some(place.join("postgresql.conf"))
}

/// Whether a configuration file says that its server lives in this directory.
fn names_directory(file: &Path, pgdata: &Path) -> bool {
    let mut configuration = Configuration::default();
    let read = configuration.add(file, &Disk);
    let named = configuration.value_of("data_directory");
    read.is_ok() && named.is_some_and(|named| is_same(Path::new(named), pgdata))
}

/// Whether a file is there, be it out of our reach.
fn is_there(path: &Path) -> bool {
    !std::fs::metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// The settings that count: postgresql.conf, then postgresql.auto.conf of the directory.
fn effective(main: &Main, brought: &Brought) -> Configuration {
    if let Main::Own = main {
        return brought.configuration.clone();
    }
    let mut configuration = Configuration::default();
    if let Main::Of(file) = main {
        // A file that cannot be read stays unknown; only the messages depend on it.
        let _ = configuration.add(file, &Disk);
    }
    let lines = brought.configuration.lines.iter();
    let auto = lines.filter(|line| line.file == Path::new(AUTO_CONF));
    configuration.lines.extend(auto.cloned());
    configuration
}

/// The command that restarts the server: by its service where Debian's layout tells its name.
pub fn restart_command(pgdata: &Path, major: u32) -> String {
    let name = |path: Option<&Path>| Some(path?.file_name()?.to_str()?.to_owned());
    let (cluster, version) = (name(Some(pgdata)), name(pgdata.parent()));
    if let (Some(cluster), Some(version)) = (cluster, version)
        && Path::new(ETC).join(&version).join(&cluster).exists()
    {
        return format!("sudo systemctl restart postgresql@{version}-{cluster}");
    }
    format!(
        "{} -D {} restart   (or its service, by systemctl)",
        shell_word(&program("pg_ctl", &Started::read(pgdata), major)),
        shell_word(&pgdata.to_string_lossy())
    )
}

/// The program of this major: that of the original server, else where distributions put it.
pub fn program(name: &str, started: &Started, major: u32) -> String {
    let beside = started.program.as_ref().and_then(|p| p.parent());
    let places = [
        beside.map(Path::to_owned),
        Some(format!("/usr/lib/postgresql/{major}/bin").into()),
        Some(format!("/usr/pgsql-{major}/bin").into()),
    ];
    let mut found = places.into_iter().flatten().map(|p| p.join(name));
    let found = found.find(|program| program.is_file());
    found.map_or_else(|| name.to_owned(), |p| p.to_string_lossy().into_owned())
}

/// The line while it is composed.
struct Line<'a> {
    to: &'a Path,
    configuration: Configuration,
    options: Vec<String>,
    notes: Vec<String>,
}

impl Line<'_> {
    fn set(&mut self, name: &str, value: impl AsRef<Path>) {
        self.options.push("-c".into());
        self.options
            .push(format!("{name}={}", value.as_ref().display()));
    }

    fn value(&self, name: &str) -> Option<String> {
        let value = self.configuration.value_of(name);
        value.filter(|v| !v.is_empty()).map(str::to_owned)
    }

    /// postgresql.conf came along; what it says of the other files may be of the place it was taken from.
    fn own_files(&mut self, brought: &Brought, original: Option<&Path>) {
        let to = self.to.to_owned();
        if self
            .value("data_directory")
            .is_some_and(|d| Path::new(&d) != to)
        {
            self.set("data_directory", &to);
        }
        // A file in the data directory of the other server is that server's; this one has brought its own.
        let is_the_others =
            |f: &str| original.is_some_and(|pgdata| Path::new(f).starts_with(pgdata));
        let ident = self
            .value("ident_file")
            .filter(|f| Path::new(f).is_absolute());
        if ident.is_some_and(|f| is_the_others(&f) || !is_there(Path::new(&f))) && brought.has_ident
        {
            self.set("ident_file", to.join("pg_ident.conf"));
        }
        let named = self.value("hba_file");
        let is_to_stay = |f: &str| is_there(Path::new(f)) && !(is_the_others(f) && brought.has_hba);
        if named.as_deref().is_some_and(is_to_stay) {
            return;
        }
        match (brought.has_hba, named) {
            (true, None) => {}
            (true, Some(_)) => self.set("hba_file", to.join("pg_hba.conf")),
            (false, _) => {
                self.set("hba_file", Path::new(PLACEHOLDER).join("pg_hba.conf"));
                self.notes.push(format!(
                    "pg_hba.conf is not in the backup: write the directory of one in place of {PLACEHOLDER}."
                ));
            }
        }
    }

    fn files_of(&mut self, file: &Path, brought: &Brought) {
        let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
        self.set("config_file", file);
        self.set("data_directory", self.to);
        self.access_files(&directory, brought);
        self.notes.push(format!(
            "The configuration is not in the backup: the line uses {}",
            file.display()
        ));
    }

    fn files_missing(&mut self, brought: &Brought, major: u32) {
        let directory = Path::new(PLACEHOLDER);
        self.set("config_file", directory.join("postgresql.conf"));
        self.set("data_directory", self.to);
        self.access_files(directory, brought);
        self.notes.push(format!(
            "The configuration is not in the backup, and this host does not tell where it is: Debian keeps it in /etc/postgresql/{major}. Write the directory that has \
             postgresql.conf, pg_hba.conf and pg_ident.conf in place of {PLACEHOLDER}. max_connections, max_worker_processes, max_wal_senders, \
             max_prepared_transactions and max_locks_per_transaction must not be lower than they were."
        ));
    }

    /// pg_hba.conf and pg_ident.conf: where the settings say, else beside postgresql.conf, else those of the data directory.
    fn access_files(&mut self, directory: &Path, brought: &Brought) {
        for (setting, name, is_brought) in [
            ("hba_file", "pg_hba.conf", brought.has_hba),
            ("ident_file", "pg_ident.conf", brought.has_ident),
        ] {
            let beside = directory.join(name);
            let file = match self.value(setting) {
                Some(named) => PathBuf::from(named),
                None if is_brought && !is_there(&beside) => self.to.join(name),
                None => beside,
            };
            self.set(setting, file);
        }
    }

    /// Files that the server the backup was taken from may be using.
    fn set_apart(&mut self, major: u32) {
        if self.value("external_pid_file").is_some() {
            self.set("external_pid_file", self.to.join("external.pid"));
        }
        let statistics = self.value("stats_temp_directory");
        if major < 15 && statistics.is_some_and(|d| d.starts_with('/')) {
            self.set("stats_temp_directory", "pg_stat_tmp");
        }
    }

    fn port(&mut self) -> (u16, bool) {
        let named = self.value("port").and_then(|p| p.parse().ok());
        let port = named.unwrap_or(port::DEFAULT);
        let taken = port::Taken::look();
        let listens = port::Listens {
            addresses: self.configuration.value_of("listen_addresses"),
            directories: self.configuration.value_of("unix_socket_directories"),
        };
        if !taken.keeps_out(port, &listens) {
            self.notes.push(format!(
                "It listens on port {port}; on another one with -o \"-p PORT\"."
            ));
            return (port, false);
        }
        let free = taken.free_after(port);
        let free = free.map_or_else(|| "PORT".to_owned(), |p| p.to_string());
        self.notes.push(format!(
            "Port {port}, which its settings name, is taken on this host: the line gives it {free}. Any other that is free will do."
        ));
        self.options.extend(["-p".to_owned(), free]);
        (port, true)
    }

    fn synchronous(&mut self, job: &Job) -> Option<String> {
        let names = self.value("synchronous_standby_names")?;
        let note = match &job.request.purpose {
            Purpose::Restore { adopt: false, .. } => {
                self.options.push("-c".into());
                self.options.push("synchronous_standby_names=".into());
                "no standby follows this copy, so each commit would wait. The line switches it off for this start; for later ones: alter system set synchronous_standby_names = ''"
            }
            Purpose::Restore { .. } => {
                "each commit waits until such a standby or receiver has connected. To start without: -o \"-c synchronous_standby_names=''\""
            }
            Purpose::Standby { .. } => {
                "once promoted, each commit waits until such a standby or receiver has connected. To go without: alter system set synchronous_standby_names = ''"
            }
        };
        self.notes.push(format!(
            "synchronous_standby_names = '{names}' came along: {note}"
        ));
        Some(names)
    }

    /// A copy beside the cluster is a second subscriber with the same slot. One in its place goes on with it, so nothing is switched off here.
    fn subscriptions(&mut self, job: &Job, brought: &Brought) {
        if let Purpose::Restore { adopt: false, .. } = &job.request.purpose
            && brought.has_subscriptions
        {
            self.notes.push(
                "The cluster seems to have subscriptions. Open for writes, this copy takes the changes that the cluster itself is to get. Beside it, start it with -o \"-c max_logical_replication_workers=0\"."
                    .into(),
            );
        }
    }

    fn command(&self, target: &Target, pg_ctl: &str) -> String {
        let to = shell_word(&self.to.to_string_lossy());
        let mut command = format!("{} -D {to}", shell_word(pg_ctl));
        if !self.options.is_empty() {
            let options: Vec<String> = self.options.iter().map(|o| shell_word(o)).collect();
            command.push_str(&format!(" -o {}", shell_word(&options.join(" "))));
        }
        command.push_str(" start");
        match target.owner {
            Some(_) => {
                let user = User::owner_of(&target.data);
                let user = user.map_or_else(|_| "postgres".into(), |u| u.name());
                format!("sudo -u {user} {command}")
            }
            None => command,
        }
    }
}
