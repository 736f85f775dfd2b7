//! The settings: flag, else environment, else file, else default.
//!
//! Owns where the configuration file is looked for, what its values mean, and which cluster and repositories a command works
//! on. The keys are in `keys`, and their places in the file in `file`; `docs/configuration.md` is the page for users. Nothing
//! here is a secret but [`Cluster::conninfo`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::err;
use crate::error::{Error, Result, causes};

pub mod account;
pub mod agent;
pub mod audit;
mod blocks;
mod config_set;
mod encryption;
mod file;
mod files;
mod hours;
mod keys;
mod location;
mod logical;
mod name;
mod price;
mod redis;
mod retention;
pub mod roots;
mod s3;
pub mod secret;
mod set;
mod sftp;
mod tier;
pub mod trust;
mod unit;

pub use agent::{
    Agent, Compat, Copies, Job, Objectives, Page, Severity, Shape, Sink, SinkKind, Tenant, When,
};
pub use audit::{Audit, Records};
pub use config_set::{ConfigSet, DEFAULT as DEFAULT_PATHS};
pub use encryption::{Encryption, Kms};
pub use files::{Files, Quiesce, Source};
pub use hours::Hours;
pub use location::{BlobService, Location, is_part};
pub use logical::{Logical, LogicalContent};
pub use name::ClusterName;
pub use price::{Price, Prices, of_gib};
pub use redis::{
    Redis, RedisAccess, RedisAcknowledge, RedisAddress, RedisSentinel, RedisSource, RedisTls,
    SHARD_DIGITS, shard_digits,
};
pub use retention::Retention;
pub use s3::{
    LockMode, ObjectLock, S3Settings, Sse, StorageClasses, endpoint as check_endpoint, is_loopback,
};
pub use secret::Secret;
pub use set::{MemberKind, RecoverySet, Service, SetMember};
pub use sftp::SftpSettings;
pub use tier::{StorageClass, Tier, TierBy, TierKind, not_by_copy};
pub use unit::{Millis, Period, Size};

use account::Account;
use file::{Document, Kind, Parse, Section};

/// The last place that is searched for the file.
const SYSTEM_FILE: &str = "/etc/pitr/pitr.toml";

/// The variable by which the agent has its processes read a copy instead of the file, which is wrong since.
pub const IN_FORCE: &str = "PITR_IN_FORCE";
/// The variable with the file that this copy was made of. It stands in for no other one.
pub const IN_FORCE_OF: &str = "PITR_IN_FORCE_OF";

/// The process's environment, as an argument: variables, working directory, and the account's home.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    directory: Option<PathBuf>,
    /// From the password file, where there is no `$HOME`: Debian starts servers with an empty environment.
    account_home: Option<PathBuf>,
}

impl Environment {
    /// Returns the environment of this process.
    pub fn of_process() -> Environment {
        let environment = Environment {
            variables: std::env::vars_os().collect(),
            directory: std::env::current_dir().ok(),
            account_home: None,
        };
        let account = match environment.home() {
            Some(_) => None,
            None => Account::of_process(),
        };
        Environment {
            account_home: account.map(|a| a.home).filter(|home| home.is_absolute()),
            ..environment
        }
    }

    /// These variables and no others, and this working directory.
    pub fn new<K, V>(
        variables: impl IntoIterator<Item = (K, V)>,
        directory: Option<PathBuf>,
    ) -> Environment
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        Environment {
            variables: variables
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
            directory,
            account_home: None,
        }
    }

    /// The environment of another process, given as the system shows it: what it was started with, ended by zero bytes. `account` runs it.
    pub fn of_other(variables: &[u8], account: Option<Account>) -> Environment {
        use std::os::unix::ffi::OsStrExt as _;
        let variables = variables.split(|&b| b == 0).filter_map(|line| {
            let at = line.iter().position(|&b| b == b'=')?;
            let (name, value) = (line.get(..at)?, line.get(at + 1..)?);
            Some((OsStr::from_bytes(name), OsStr::from_bytes(value)))
        });
        Environment {
            account_home: account.map(|a| a.home),
            ..Environment::new(variables, None)
        }
    }

    /// A variable's value; set but empty is as good as not set.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|v| !v.is_empty())
    }

    /// This environment with another value of a variable; an empty one is as good as none.
    pub fn with(&self, name: &str, value: &OsStr) -> Environment {
        let mut own = self.clone();
        own.variables.insert(name.into(), value.into());
        own
    }

    /// The working directory.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// `$HOME`, where it is an absolute path, else the home of this process's account. PostgreSQL may run its commands without the variable.
    pub fn home(&self) -> Option<&Path> {
        let variable = self.get("HOME").map(Path::new).filter(|p| p.is_absolute());
        variable.or(self.account_home.as_deref())
    }

    /// The directory for caches where none is configured: `$XDG_CACHE_HOME/pitr`, else `~/.cache/pitr`, else none.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        let base = self
            .get("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .or_else(|| Some(self.home()?.join(".cache")))?;
        Some(base.join("pitr"))
    }

    /// Makes a path absolute by the working directory.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        match &self.directory {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }

    /// This environment without the variables that stand in for keys: they are those of one configuration, and no tenant's.
    pub fn of_tenant(&self) -> Environment {
        let mut own = self.clone();
        own.variables.retain(|name, _| !is_configuration(name));
        own
    }

    /// Whether `$PITR_FAULT_HIDE` names this file: a test takes it for absent, so that no test reads the machine's own configuration.
    pub fn hides(&self, path: &Path) -> bool {
        cfg!(debug_assertions) && self.get("PITR_FAULT_HIDE") == Some(path.as_os_str())
    }

    fn with_prefix<'a>(&'a self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a OsStr)> {
        self.variables.iter().filter_map(move |(name, value)| {
            let name = name.to_str()?;
            (name.starts_with(prefix) && !value.is_empty()).then_some((name, value.as_os_str()))
        })
    }
}

/// Whether a variable of this name is part of a configuration.
pub fn is_configuration(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"PITR_") && !name.starts_with(b"PITR_FAULT")
}

/// The options of the command line about the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--repository`: a name, a URL or an absolute path.
    pub repository: Option<String>,
}

/// The answer of a standby's `restore_command` while the repository is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StandbyOutage {
    /// "Not there", with a warning: the standby goes on streaming and asks again.
    #[default]
    Stream,
    /// An error: the standby stops.
    Stop,
}

/// The fate of a standby that is promoted while the repository is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromoteUnreachable {
    /// It is promoted if the WAL that it asks for was streamed, and stopped if not.
    #[default]
    Auto,
    /// It is stopped.
    Refuse,
    /// It is promoted, also without WAL that only the archive has.
    Proceed,
}

/// When the receiver tells the server that WAL is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// When it is durable in the local journal.
    #[default]
    Journal,
    /// When it is durable in every required repository.
    Repository,
}

/// `[clusters.NAME.receive]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receive {
    /// The physical replication slot.
    pub slot: Option<String>,
    /// The directory of the journal, absolute.
    pub journal: Option<PathBuf>,
    /// How large the journal may grow.
    pub journal_limit_bytes: Option<u64>,
    /// When WAL counts as received.
    pub acknowledge: Acknowledge,
}

/// `backoff` of `[clusters.NAME]`: what a backup slows down for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    /// The longest time that `select 1` may take.
    pub latency: Option<Duration>,
    /// The most bytes of WAL that may wait to be archived.
    pub wal_lag_bytes: Option<u64>,
}

impl Backoff {
    /// Whether a backup slows down for nothing.
    pub fn is_none(&self) -> bool {
        *self == Backoff::default()
    }
}

/// One cluster. It has no `Debug`, because of its [`Secret`].
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its name in configuration and repository.
    pub name: ClusterName,
    /// Its data directory, absolute.
    pub pgdata: Option<PathBuf>,
    /// How to connect, in libpq's syntax; libpq's environment fills in what it leaves out.
    pub conninfo: Option<Secret>,
    /// Age that the newest backup may reach before monitoring reports it.
    pub max_backup_age: Option<Period>,
    /// Age that the newest drill that passed may reach before monitoring reports it.
    pub max_drill_age: Option<Period>,
    /// The directory below which drills restore.
    pub drill_dir: Option<PathBuf>,
    /// The directory below which clones lie; none where temporary files go.
    pub clone_dir: Option<PathBuf>,
    /// How old the content of a backup may become before a full one is taken; without it every backup is full that is not asked to be incremental.
    pub full_every: Option<Duration>,
    /// How long replay from the newest backup may take before `pitr backup --if-needed` takes another one.
    pub max_replay: Option<Duration>,
    /// How much WAL may follow the begin of the newest backup before it does.
    pub max_wal_bytes: Option<u64>,
    /// How busy the server may be before a backup slows down.
    pub backoff: Backoff,
    /// The answer of `pitr-restore` to a standby while the repository is out of reach.
    pub standby_outage: StandbyOutage,
    /// Its answer to one that is promoted then.
    pub promote_unreachable: PromoteUnreachable,
    /// The directory of caches, absolute; else [`Environment::cache_dir`].
    pub cache_dir: Option<PathBuf>,
    /// The directory of notes about archived files, absolute; else `spool` below the caches.
    pub spool_dir: Option<PathBuf>,
    /// The zone of times that are given without one.
    pub timezone: Option<String>,
    /// How many segments `pitr-restore` has fetched ahead at most; 0 is none.
    pub prefetch_segments: u32,
    /// The streaming receiver.
    pub receive: Receive,
    /// The promises about it.
    pub objectives: Objectives,
    /// Rules by which `pitr expire` keeps its backups.
    pub retention: Retention,
    /// The commands of its service.
    pub service: Service,
}

/// The number of segments fetched ahead if none is configured.
pub const PREFETCH_SEGMENTS: u32 = 8;
/// More would be of no use: recovery asks for one after the other.
const PREFETCH_SEGMENTS_MAX: u32 = 64;

impl Cluster {
    /// A cluster of which nothing but the name is known.
    pub fn named(name: ClusterName) -> Cluster {
        Cluster {
            name,
            pgdata: None,
            conninfo: None,
            max_backup_age: None,
            max_drill_age: None,
            drill_dir: None,
            clone_dir: None,
            full_every: None,
            max_replay: None,
            max_wal_bytes: None,
            backoff: Backoff::default(),
            standby_outage: StandbyOutage::default(),
            promote_unreachable: PromoteUnreachable::default(),
            cache_dir: None,
            spool_dir: None,
            timezone: None,
            prefetch_segments: PREFETCH_SEGMENTS,
            receive: Receive::default(),
            objectives: Objectives::default(),
            retention: Retention::default(),
            service: Service::default(),
        }
    }
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Its name in the configuration; its URL, where it was given on the command line.
    pub name: String,
    pub location: Location,
    /// Archiving succeeds only once this repository has the segment.
    pub required: bool,
    /// The limit of everything but WAL, in and out together; all processes of an account share it.
    pub max_rate_bytes_per_s: Option<u64>,
    /// The hours of the host's day in which the limit holds; none: always.
    pub max_rate_hours: Option<Hours>,
    /// Prices of its store.
    pub prices: Prices,
    /// How it is reached, where it is in an object store.
    pub s3: S3Settings,
    /// How it is reached, where it is on an SFTP server.
    pub sftp: SftpSettings,
    /// The places of its keys, if it is encrypted.
    pub encryption: Option<Encryption>,
    /// Rules by which `pitr expire` keeps its content; they go before the rules of clusters.
    pub retention: Retention,
}

impl Repository {
    /// A required one, of which nothing but the place is known.
    pub fn at(location: Location) -> Repository {
        Repository {
            name: location.to_string(),
            location,
            required: true,
            max_rate_bytes_per_s: None,
            max_rate_hours: None,
            prices: Prices::default(),
            s3: S3Settings::default(),
            sftp: SftpSettings::default(),
            encryption: None,
            retention: Retention::default(),
        }
    }

    /// Whether this host seals its objects and opens none.
    pub fn only_writes(&self) -> bool {
        (self.encryption.as_ref()).is_some_and(Encryption::only_writes)
    }

    /// The file of the secrets pair.
    pub fn secrets_file(&self) -> Option<&Path> {
        self.encryption.as_ref()?.secrets.as_deref()
    }

    /// The private key of a recipient of the secrets pair.
    pub fn secrets_key_file(&self) -> Option<&Path> {
        self.encryption.as_ref()?.secrets_key.as_deref()
    }

    /// The files it names: whoever uses the repository must be able to read them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let keys = self.encryption.iter().flat_map(Encryption::files);
        let sftp = &self.sftp;
        let store = [
            &self.s3.credentials_file,
            &self.s3.ca_file,
            &sftp.key_file,
            &sftp.passphrase_file,
            &sftp.known_hosts_file,
        ];
        store
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .chain(keys)
    }
}

/// Content beside clusters, as far as all kinds of it are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'s> {
    /// The kind: the first part of the command and of the section.
    pub kind: &'static str,
    pub name: &'s str,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
}

/// Everything that was configured, and what the command line chose from it.
#[derive(Clone, Default)]
pub struct Settings {
    /// The configuration file, absolute; none when a repository on the command line made it unnecessary.
    pub path: Option<PathBuf>,
    /// It is a tenant's: variables of the host's own agent are no part of it.
    pub is_of_tenant: bool,
    /// All clusters, in the order of the file.
    pub clusters: Vec<Cluster>,
    /// The repositories to work with, in the order in which they are tried: all, or the one that the command line names.
    pub repositories: Vec<Repository>,
    /// Sets of files beside clusters, in the order of the file.
    pub files: Vec<Files>,
    /// Rules by which `pitr expire` keeps everything that has no rule in a narrower section.
    pub retention: Retention,
    /// Sets of dumps, in the order of the file.
    pub logical: Vec<Logical>,
    /// Sets of configuration files, in the order of the file.
    pub config: Vec<ConfigSet>,
    /// Redis servers, in the order of the file.
    pub redis: Vec<Redis>,
    /// Settings of the agent.
    pub agent: Agent,
    /// Settings of its status page.
    pub page: Page,
    /// Settings of the audit log.
    pub audit: Audit,
    /// Its jobs, in the order of the file.
    pub jobs: Vec<Job>,
    /// Who hears of what is wrong, in the order of the file.
    pub alerts: Vec<Sink>,
    /// Recovery sets, in the order of the file.
    pub sets: Vec<RecoverySet>,
    /// Configurations that the agent serves beside this one, in the order of the file.
    pub tenants: Vec<Tenant>,
    cluster_flag: Option<String>,
    /// `--repository` gave a place instead of a name: the file need not know the cluster.
    bare: bool,
}

impl Settings {
    /// Finds, reads and checks the configuration.
    ///
    /// A file is looked for as `--config`, `$PITR_CONFIG`, `./pitr.toml`, `~/.config/pitr/pitr.toml`, `/etc/pitr/pitr.toml`; the first
    /// two must exist when they are given, and nobody but this user and root may have written the next two. None is needed when `--repository` is a URL or a path, or when the environment
    /// names a repository.
    ///
    /// # Errors
    /// `Config` for a file that is missing, unreadable or wrong, with file, line and column; `Usage` for a repository that is
    /// not one of the file's.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Settings> {
        let wanted = flags.repository.as_deref();
        let bare = wanted.is_some_and(Location::looks_like_one);
        let found = match find(flags, environment, Document::parse) {
            Err(e) if bare && given(flags, environment).is_none() && is_denied(&e) => {
                Found::Nowhere(Vec::new())
            }
            found => found?,
        };
        let (path, mut document) = match found {
            Found::File(path, document) => (Some(path), document),
            Found::Nowhere(looked) => {
                let by_environment = environment
                    .with_prefix("PITR_REPOSITORIES_")
                    .next()
                    .is_some();
                if !bare && !by_environment {
                    return Err(err!(Config, "no configuration file was found")
                        .hint(format!("Looked for {}. Name one with --config, write one with pitr init, or name the place with --repository.", looked.join(", "))));
                }
                (None, Document::default())
            }
        };
        document.overlay(environment)?;
        let mut settings = settings(path, &document)?;
        settings.cluster_flag.clone_from(&flags.cluster);
        settings.settle_state_dirs(environment);
        if !settings.repositories.is_empty() && settings.repositories.iter().all(|r| !r.required) {
            return Err(err!(
                Config,
                "no repository is required: a segment would be acknowledged before any holds it"
            )
            .hint("Set required = true, or leave it out, for at least one repository."));
        }
        if let Some(wanted) = &flags.repository {
            settings.choose_repository(wanted)?;
            // It is all there is: what it does not say is not known.
            for repository in &mut settings.repositories {
                repository.required = true;
            }
        }
        Ok(settings)
    }

    /// Reads of a configuration that may be wrong what can be read: the sinks of alerts, and where the agent keeps its files. Each section counts by
    /// itself. A file that cannot be read or trusted gives nothing.
    pub fn readable(flags: &Flags, environment: &Environment) -> Settings {
        let mut readable = Settings::empty(None);
        let found = find(flags, environment, Document::parse_readable);
        let Ok(Found::File(path, mut document)) = found else {
            return readable;
        };
        readable.path = Some(path);
        // Variables that are wrong keep nobody from the file.
        let _ = document.overlay(environment);
        for section in &document.sections {
            match section.kind {
                Kind::Agent => readable.agent = keys::agent(section).unwrap_or_default(),
                Kind::Alerts => readable.alerts.extend(keys::alert(section)),
                Kind::Clusters => {
                    let read = keys::cluster(section, document.world_readable);
                    readable.clusters.extend(read);
                }
                _ => {}
            }
        }
        readable
    }

    /// One that says nothing.
    fn empty(path: Option<PathBuf>) -> Settings {
        Settings {
            path,
            ..Settings::default()
        }
    }

    /// Whether the host keeps nothing of its own: everything is its tenants'.
    pub fn has_only_tenants(&self) -> bool {
        self.repositories.is_empty() && !self.tenants.is_empty()
    }

    /// Refuses a tenant's configuration that has tenants of its own.
    ///
    /// # Errors
    /// `Config` for one.
    pub fn refuse_tenants(&self) -> Result<()> {
        match self.tenants.first() {
            None => Ok(()),
            Some(tenant) => Err(err!(Config, "a tenant has no tenants: \"{}\"", tenant.name)
                .hint("Move [tenants.NAME] to the configuration of the host's own agent.")),
        }
    }

    /// Takes a tenant.
    fn add_tenant(&mut self, section: &Section) -> Result<()> {
        let tenant = keys::tenant(section)?;
        let others = self.tenants.iter().map(|other| &other.config);
        if others.chain(&self.path).any(|path| *path == tenant.config) {
            return Err(section.origin.error(format_args!(
                "tenant \"{}\" has no configuration of its own",
                tenant.name
            )));
        }
        self.tenants.push(tenant);
        Ok(())
    }

    /// Gives hosts that only write a place for what they keep, where none is configured: below the caches.
    fn settle_state_dirs(&mut self, environment: &Environment) {
        let configured = self.clusters.iter().find_map(|c| c.cache_dir.clone());
        let Some(caches) = configured.or_else(|| environment.cache_dir()) else {
            return;
        };
        for encryption in self.repositories.iter_mut().flat_map(|r| &mut r.encryption) {
            if encryption.key_set.is_some() && !encryption.can_read() {
                encryption
                    .state_dir
                    .get_or_insert_with(|| caches.join("state"));
            }
        }
    }

    /// The directory of what commands and the agent remember: that of `[agent]`, else `state` below the caches.
    pub fn state_dir(&self, environment: &Environment) -> Option<PathBuf> {
        let configured = self.clusters.iter().find_map(|c| c.cache_dir.clone());
        let caches = || configured.or_else(|| environment.cache_dir());
        self.agent
            .state_dir
            .clone()
            .or_else(|| Some(caches()?.join("state")))
    }

    /// The cluster that a command works on: `--cluster`, or the only one.
    ///
    /// # Errors
    /// `Usage` when the name is not one of the file's, or when there are several and none is named.
    pub fn cluster(&self) -> Result<Cluster> {
        self.cluster_if_named()?.ok_or_else(|| {
            err!(Usage, "no cluster is configured and none is named").hint("Add --cluster NAME.")
        })
    }

    /// All content beside clusters.
    pub fn contents(&self) -> impl Iterator<Item = Content<'_>> {
        let files = self.files.iter().map(|files| Content {
            kind: "files",
            name: &files.name,
            max_backup_age: files.max_backup_age,
        });
        let logical = self.logical.iter().map(|logical| Content {
            kind: "logical",
            name: &logical.name,
            max_backup_age: logical.max_backup_age,
        });
        let config = self.config.iter().map(|set| Content {
            kind: "config",
            name: &set.name,
            max_backup_age: set.max_backup_age,
        });
        let servers = self.redis.iter().filter(|redis| !redis.is_cluster);
        let redis = servers.map(Redis::content);
        files.chain(logical).chain(config).chain(redis)
    }

    /// The configured Redis clusters: each is stored as content for each shard.
    pub fn redis_clusters(&self) -> impl Iterator<Item = Content<'_>> {
        let clusters = self.redis.iter().filter(|redis| redis.is_cluster);
        clusters.map(Redis::content)
    }

    /// The set of files of this name.
    ///
    /// # Errors
    /// `Usage` when none is configured.
    pub fn files_named(&self, name: &str) -> Result<&Files> {
        let found = self.files.iter().find(|files| files.name == name);
        found.ok_or_else(|| {
            err!(
                Usage,
                "no set of files \"{}\" is configured",
                name.escape_debug()
            )
            .hint(format!(
                "Add it to the configuration: [files.{}] and, below, source = \"/absolute/path\".",
                name.escape_debug()
            ))
        })
    }

    /// The repository that backups go to.
    ///
    /// # Errors
    /// `Config` when none is configured.
    pub fn first_repository(&self) -> Result<&Repository> {
        let first = self.repositories.first();
        first.ok_or_else(|| err!(Config, "no repository is configured"))
    }

    /// The cluster that a section of the configuration names, and of which it needs `key`.
    ///
    /// # Errors
    /// `Config` when none is configured under that name, with the lines to add.
    pub fn cluster_named_in(&self, section: &str, name: &str, key: &str) -> Result<&Cluster> {
        let found = self.clusters.iter().find(|c| c.name.as_str() == name);
        found.ok_or_else(|| {
            err!(
                Config,
                "[{section}] names cluster \"{name}\", which is not configured"
            )
            .hint(format!(
                "Nothing was stored. Add [clusters.{name}] with its {key}."
            ))
        })
    }

    /// The rules of retention of a cluster, or of other content, in a repository: its own keys, else the cluster's, else those for everything.
    pub fn retention_of(&self, cluster: Option<&str>, repository: &Repository) -> Retention {
        let own = |c: &&Cluster| Some(c.name.as_str()) == cluster;
        let of_cluster = self.clusters.iter().find(own).map(|c| &c.retention);
        let base = of_cluster.map_or(self.retention.clone(), |own| own.or(&self.retention));
        repository.retention.or(&base)
    }

    /// Returns the zone in which days of retention begin. A cluster's own zone goes before that of everything.
    pub fn zone_of<'a>(
        &'a self,
        cluster: Option<&str>,
        repository: &'a Repository,
    ) -> Option<&'a str> {
        let own = |c: &&Cluster| Some(c.name.as_str()) == cluster;
        let own = self.clusters.iter().find(own);
        let of_cluster = own.and_then(|c| c.retention.timezone.as_ref().or(c.timezone.as_ref()));
        let of_repository = repository.retention.timezone.as_ref();
        let zone = of_repository.or(of_cluster);
        zone.or(self.retention.timezone.as_ref())
            .map(String::as_str)
    }

    /// As [`Settings::cluster`], but none where neither command line nor configuration names one: a reader then takes the only one
    /// of the repository.
    ///
    /// # Errors
    /// As [`Settings::cluster`].
    pub fn cluster_if_named(&self) -> Result<Option<Cluster>> {
        let names = || -> String {
            let names: Vec<_> = self.clusters.iter().map(|c| c.name.as_str()).collect();
            names.join(", ")
        };
        let Some(wanted) = &self.cluster_flag else {
            return match self.clusters.as_slice() {
                [] => Ok(None),
                [only] => Ok(Some(only.clone())),
                _ => Err(err!(
                    Usage,
                    "several clusters are configured and none is named: {}",
                    names()
                )
                .hint("Add --cluster NAME.")),
            };
        };
        let wanted: ClusterName = wanted.parse()?;
        if let Some(cluster) = self.clusters.iter().find(|c| c.name == wanted) {
            return Ok(Some(cluster.clone()));
        }
        // A host that only restores configures repositories alone: they know the clusters.
        if self.bare || self.clusters.is_empty() {
            return Ok(Some(Cluster::named(wanted)));
        }
        let place = match &self.path {
            Some(path) => format!("\"{}\"", path.display()),
            None => "the environment".into(),
        };
        Err(err!(Usage, "no cluster \"{wanted}\" in {place}").hint(format!("Known: {}", names())))
    }

    /// The one cluster whose `pgdata` this directory is.
    pub fn cluster_at(&self, directory: &Path) -> Option<&Cluster> {
        let directory = std::fs::canonicalize(directory).ok()?;
        let is_it = |pgdata: &PathBuf| std::fs::canonicalize(pgdata).is_ok_and(|p| p == directory);
        let here = |c: &&Cluster| c.pgdata.as_ref().is_some_and(is_it);
        let mut here = self.clusters.iter().filter(here);
        // Two sections for one directory would be a guess.
        here.next().filter(|_| here.next().is_none())
    }

    /// Takes that cluster, where several are configured and the command line names none.
    pub fn name_cluster_at(&mut self, directory: &Path) {
        if self.cluster_flag.is_none() && self.clusters.len() > 1 {
            let found = self.cluster_at(directory);
            self.cluster_flag = found.map(|c| c.name.to_string());
        }
    }

    /// Narrows the repositories to the one that the command line names.
    fn choose_repository(&mut self, wanted: &str) -> Result<()> {
        if Location::looks_like_one(wanted) {
            let location = Location::from_argument(wanted)?;
            self.bare = true;
            self.repositories.retain(|r| r.location == location);
            // One url may be of two places where the endpoints differ, and of one with two ways to sign in.
            let mut endpoints = self.repositories.iter().map(|r| &r.s3.endpoint);
            let first = endpoints.next();
            if endpoints.any(|other| Some(other) != first) {
                let names: Vec<_> = self.repositories.iter().map(|r| r.name.as_str()).collect();
                return Err(err!(
                    Usage,
                    "several repositories are configured as \"{location}\""
                )
                .hint(format!("Name one of them: {}", names.join(", "))));
            }
            if self.repositories.is_empty() {
                self.repositories.push(Repository::at(location));
            }
            return Ok(());
        }
        name::check("repository", wanted)?;
        let known: Vec<_> = self
            .repositories
            .iter()
            .map(|r| format!("{} ({})", r.name, r.location))
            .collect();
        self.repositories.retain(|r| r.name == wanted);
        if self.repositories.is_empty() {
            let error = err!(Usage, "no repository \"{wanted}\" is configured");
            return Err(match known.is_empty() {
                true => error.hint("No repository is configured. Run pitr init."),
                false => error.hint(format!("Known: {}", known.join(", "))),
            });
        }
        Ok(())
    }
}

/// Returns the path of the configuration file, or the one at which `pitr init` puts it: the file named by `--config` or `$PITR_CONFIG`,
/// else the first that exists of the usual places, else `./pitr.toml`. The second value says whether it exists.
///
/// # Errors
/// `Config` for a file that is there and cannot be read or trusted, and for a directory in which none would be trusted.
pub fn place(flags: &Flags, environment: &Environment) -> Result<(PathBuf, bool)> {
    if let Some((path, _)) = given(flags, environment).filter(|(p, _)| !p.as_os_str().is_empty()) {
        let path = environment.absolute(path);
        // A dangling link or a closed folder is something, too: never written over.
        let exists = !matches!(std::fs::symlink_metadata(&path), Err(e) if e.kind() == std::io::ErrorKind::NotFound);
        return Ok((path, exists));
    }
    match find(flags, environment, Document::parse)? {
        Found::File(path, _) => Ok((path, true)),
        Found::Nowhere(_) => {
            let path = environment.absolute(Path::new("pitr.toml"));
            trust::check_directories(&path)?;
            Ok((path, false))
        }
    }
}

/// The candidate that is meant by `word`, if one is near enough to be a slip of the fingers.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::osa_distance(word, c), c))
        .filter(|(distance, c)| *distance <= c.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// The file that the command line or the environment names, and how a message says which of the two.
fn given<'a>(flags: &'a Flags, environment: &'a Environment) -> Option<(&'a Path, &'static str)> {
    match &flags.config {
        Some(path) => Some((path, "")),
        None => environment
            .get("PITR_CONFIG")
            .map(|v| (Path::new(v), ", named by $PITR_CONFIG,")),
    }
}

/// Whether the operating system keeps this user from reading a file.
fn is_denied(error: &Error) -> bool {
    let mut causes = causes(error).filter_map(|e| e.downcast_ref::<std::io::Error>());
    causes.any(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

enum Found {
    File(PathBuf, Document),
    Nowhere(Vec<String>),
}

/// Reads the first file there is. A file that cannot be read, or that others may have written, is an error and never skipped.
fn find(flags: &Flags, environment: &Environment, parse: Parse) -> Result<Found> {
    if let Some((path, by)) = given(flags, environment) {
        if path.as_os_str().is_empty() {
            return Err(err!(Usage, "--config names no file"));
        }
        let path = environment.absolute(path);
        // Messages name the file.
        let is_of = |file: &OsStr| Path::new(file) == path;
        let copy = environment.get(IN_FORCE);
        let copy = copy.filter(|_| environment.get(IN_FORCE_OF).is_none_or(is_of));
        let read = match copy {
            Some(copy) => Document::read_copy(Path::new(copy), &path, parse),
            None => Document::read(&path, parse, |_| Ok(())),
        };
        return match read? {
            Some(document) => Ok(Found::File(path, document)),
            None => Err(err!(
                Config,
                "configuration file \"{}\"{by} does not exist",
                path.display()
            )),
        };
    }
    let home = environment.home();
    let candidates = [
        Some((environment.absolute(Path::new("pitr.toml")), true)),
        home.map(|home| (home.join(".config/pitr/pitr.toml"), true)),
        // Only root makes files there.
        Some((PathBuf::from(SYSTEM_FILE), false)),
    ];
    let mut looked = Vec::new();
    for (path, is_anybodys) in candidates.into_iter().flatten() {
        if environment.hides(&path) {
            looked.push(path.display().to_string());
            continue;
        }
        // A directory that may not be entered (`sudo -u postgres` keeps root's working directory and, often, $HOME) hides
        // whether there is a file. Going on is right here: such a file could never have been meant for this user.
        if let Err(e) = std::fs::symlink_metadata(&path)
            && e.kind() == std::io::ErrorKind::PermissionDenied
        {
            looked.push(format!("{} (permission denied)", path.display()));
            continue;
        }
        let trusted = |file: &File| match is_anybodys {
            true => trust::check_file(&path, file),
            false => Ok(()),
        };
        match Document::read(&path, parse, trusted)? {
            Some(document) => return Ok(Found::File(path, document)),
            None => looked.push(path.display().to_string()),
        }
    }
    Ok(Found::Nowhere(looked))
}

fn settings(path: Option<PathBuf>, document: &Document) -> Result<Settings> {
    let mut settings = Settings::empty(path);
    for section in &document.sections {
        match section.kind {
            Kind::Clusters => settings
                .clusters
                .push(keys::cluster(section, document.world_readable)?),
            Kind::Repositories => {
                let repository = keys::repository(section)?;
                if let Some(same) = settings.repositories.iter().find(|r| {
                    r.location == repository.location && r.s3.endpoint == repository.s3.endpoint
                }) {
                    return Err(section.origin.error(format_args!(
                        "repositories \"{}\" and \"{}\" are the same place: \"{}\"",
                        same.name, repository.name, repository.location
                    )));
                }
                settings.repositories.push(repository);
            }
            Kind::Files => settings.files.push(keys::files(section)?),
            Kind::Retention => settings.retention = keys::retention(section)?,
            Kind::Logical => settings.logical.push(keys::logical(section)?),
            Kind::Config => settings.config.push(keys::config(section)?),
            Kind::Redis => {
                let redis = keys::redis(section)?;
                let is_shard = |cluster: &Redis, name: &str| {
                    cluster.is_cluster && shard_digits(&cluster.name, name).is_some()
                };
                let same =
                    |other: &&Redis| is_shard(other, &redis.name) || is_shard(&redis, &other.name);
                if let Some(other) = settings.redis.iter().find(same) {
                    return Err(section.origin.error(format_args!(
                        "[redis.{}] and [redis.{}]: one has a name as shards of the other have",
                        other.name, redis.name
                    )));
                }
                settings.redis.push(redis);
            }
            Kind::Agent => settings.agent = keys::agent(section)?,
            Kind::Page => settings.page = keys::page(section)?,
            Kind::Audit => settings.audit = keys::audit(section)?,
            Kind::Jobs => settings.jobs.push(keys::job(section)?),
            Kind::Alerts => settings.alerts.push(keys::alert(section)?),
            Kind::Sets => settings.sets.push(keys::set(section)?),
            Kind::Tenants => settings.add_tenant(section)?,
        }
    }
    for section in document.sections.iter().filter(|s| s.kind == Kind::Page) {
        keys::check_actions(section, &settings.page, &settings.agent.tls)?;
    }
    // Those whose names begin so are tenants' agents.
    if let Some(job) = settings.jobs.iter().find(|j| j.name.starts_with("tenant.")) {
        return Err(err!(
            Config,
            "job \"{}\" has the name of a tenant's agent",
            job.name
        )
        .hint("Give the job another name, or add [tenants.NAME] with config."));
    }
    settings
        .jobs
        .extend(settings.tenants.iter().map(Tenant::job));
    Ok(settings)
}

/// Keywords of libpq whose value is a secret; `sslpassword` ends in the first. PostgreSQL: src/interfaces/libpq/fe-connect.c, `PQconninfoOptions`.
const SECRETS: [&str; 4] = [
    "password",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
];

/// Whether connection settings, in either of libpq's forms, give a password or another secret. In doubt it says yes.
pub fn holds_password(conninfo: &str) -> bool {
    let conninfo = conninfo.to_ascii_lowercase();
    let is_given = |word: &str| {
        conninfo.match_indices(word).any(|(at, _)| {
            let rest = conninfo.get(at + word.len()..).unwrap_or_default();
            rest.trim_start().starts_with('=')
        })
    };
    let in_uri = conninfo
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?']).next()?.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    in_uri || SECRETS.into_iter().any(is_given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::os::unix::fs::PermissionsExt;

    /// A working directory of its own with, if any, this `pitr.toml`.
    fn place(text: Option<&str>) -> (tempfile::TempDir, Environment) {
        let directory = tempfile::tempdir().unwrap();
        if let Some(text) = text {
            let path = directory.path().join("pitr.toml");
            std::fs::write(&path, text).unwrap();
            // Under any umask: a file that the group may write is not believed.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        }
        let environment = Environment::new(
            [("PITR_FAULT_HIDE", SYSTEM_FILE)],
            Some(directory.path().to_owned()),
        );
        (directory, environment)
    }

    fn loaded(flags: &Flags, environment: &Environment) -> Settings {
        Settings::load(flags, environment).ok().unwrap()
    }

    fn failed(flags: &Flags, environment: &Environment) -> Error {
        Settings::load(flags, environment).err().unwrap()
    }

    fn load(text: &str) -> Result<Settings> {
        let (_directory, environment) = place(Some(text));
        Settings::load(&Flags::default(), &environment)
    }

    /// The error for this file, without the directory.
    fn refused(text: &str) -> (String, String) {
        let (directory, environment) = place(Some(text));
        let error = failed(&Flags::default(), &environment);
        assert_eq!(error.code(), Code::Config, "{error}");
        let prefix = format!("{}/", directory.path().display());
        (
            error.to_string().replace(&prefix, ""),
            error.hint_text().unwrap_or_default().to_owned(),
        )
    }

    fn flags(cluster: Option<&str>, repository: Option<&str>) -> Flags {
        Flags {
            config: None,
            cluster: cluster.map(str::to_owned),
            repository: repository.map(str::to_owned),
        }
    }

    const TWO: &str = "[clusters.prod]\npgdata='/p'\n[clusters.dev]\n[repositories.disk]\nurl='file:///r1'\n[repositories.attic]\nurl='file:///r2'\nrequired=false";

    #[test]
    fn every_key_is_read() {
        let settings = load(
            r#"
            [clusters.main]
            pgdata = "/var/lib/postgresql/17/main/"
            conninfo = "host=/run/postgresql user=postgres"
            max_backup_age = "26h"
            max_drill_age = "8d"
            drill_dir = "/srv/drills"
            full_every = "7d"
            max_replay = "10m"
            max_wal = "2GiB"
            standby_outage = "stop"
            promote_unreachable = "refuse"
            cache_dir = "/var/cache/pitr"
            backoff = { latency = "50ms", wal_lag = "256MiB" }
            timezone = "Europe/Berlin"
            prefetch_segments = 3
            [clusters.main.receive]
            slot = "pitr_1"
            journal = "/var/spool/pitr"
            journal_limit_bytes = 1_000
            acknowledge = "repository"
            [clusters.main.retention]
            keep_last = 3
            keep_daily = 30
            keep_weekly = 12
            keep_monthly = 12
            keep_yearly = 7
            keep_within = "7d"
            wal_window = "14d"
            [retention]
            keep_last = 5
            [repositories.local.retention]
            keep_last = 2
            min_copies = 2
            [repositories.local]
            url = "file:///var/backups/pitr"
            required = false
            max_rate = "20MiB"
            [repositories.other]
            url = "s3://bucket/prefix"
            max_rate = "50MB"
            price = { currency = "USD", standard_ia = "0.0125", put = "0.01" }
            tier = [{ after = "30d", class = "STANDARD_IA" }, { after = "60d", class = "GLACIER_IR", kind = "wal" }]
            tier_by = "rules"
            region = "x"
            endpoint = "http://127.0.0.1:9000"
            path_style = true
            ca_file = "/etc/ca.pem"
            credentials_file = "/etc/pitr/s3"
            profile = "backup"
            sse = "aws:kms"
            sse_kms_key_id = "alias/backup"
            stall_timeout = "10s"
            retry_budget = "1m"
            storage_class = { wal = "STANDARD_IA" }
            object_lock = { mode = "compliance", period = "30d" }
            "#,
        )
        .ok()
        .unwrap();
        let cluster = settings.cluster().ok().unwrap();
        assert_eq!(cluster.name.as_str(), "main");
        assert_eq!(
            cluster.pgdata.as_deref(),
            Some(Path::new("/var/lib/postgresql/17/main"))
        );
        assert_eq!(
            cluster.conninfo.as_ref().map(Secret::expose),
            Some("host=/run/postgresql user=postgres")
        );
        assert_eq!(cluster.max_backup_age, Some(Period(26 * 3600)));
        assert_eq!(cluster.max_drill_age, Some(Period(8 * 24 * 3600)));
        assert_eq!(cluster.drill_dir.as_deref(), Some(Path::new("/srv/drills")));
        assert_eq!(cluster.full_every, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(cluster.max_replay, Some(Duration::from_secs(600)));
        assert_eq!(cluster.max_wal_bytes, Some(2 << 30));
        let backoff = Backoff {
            latency: Some(Duration::from_millis(50)),
            wal_lag_bytes: Some(256 << 20),
        };
        assert_eq!(cluster.backoff, backoff);
        assert_eq!(cluster.standby_outage, StandbyOutage::Stop);
        assert_eq!(cluster.promote_unreachable, PromoteUnreachable::Refuse);
        assert_eq!(
            cluster.cache_dir.as_deref(),
            Some(Path::new("/var/cache/pitr"))
        );
        assert_eq!(cluster.timezone.as_deref(), Some("Europe/Berlin"));
        assert_eq!(cluster.prefetch_segments, 3);
        assert_eq!(
            cluster.receive,
            Receive {
                slot: Some("pitr_1".into()),
                journal: Some("/var/spool/pitr".into()),
                journal_limit_bytes: Some(1000),
                acknowledge: Acknowledge::Repository,
            }
        );
        let days = |n: u64| Some(std::time::Duration::from_secs(n * 86_400));
        let rules = Retention {
            last: Some(3),
            daily: Some(30),
            weekly: Some(12),
            monthly: Some(12),
            yearly: Some(7),
            within: days(7),
            wal_window: days(14),
            min_copies: None,
            proven: None,
            timezone: None,
        };
        assert_eq!(cluster.retention, rules);
        let (near, far) = (&settings.repositories[0], &settings.repositories[1]);
        assert_eq!(settings.retention_of(Some("main"), far), rules);
        assert_eq!(settings.retention_of(None, far), Retention::newest(5));
        let two = (Some(2), Some(2), Some(30));
        let of_near = settings.retention_of(Some("main"), near);
        assert_eq!((of_near.last, of_near.min_copies, of_near.daily), two);
        assert_eq!(
            settings.repositories[0],
            Repository {
                name: "local".into(),
                required: false,
                max_rate_bytes_per_s: Some(20 << 20),
                retention: Retention {
                    min_copies: Some(2),
                    ..Retention::newest(2)
                },
                ..Repository::at(Location::File("/var/backups/pitr".into()))
            }
        );
        assert_eq!(far.max_rate_bytes_per_s, Some(50_000_000));
        let prices = Prices {
            currency: Some("USD".into()),
            standard_ia: Some(Price(12_500_000)),
            put: Some(Price(10_000_000)),
            ..Prices::default()
        };
        assert_eq!(far.prices, prices);
        assert_eq!(
            settings.repositories[1].s3,
            S3Settings {
                region: Some("x".into()),
                endpoint: Some("http://127.0.0.1:9000".into()),
                path_style: true,
                ca_file: Some("/etc/ca.pem".into()),
                credentials_file: Some("/etc/pitr/s3".into()),
                profile: Some("backup".into()),
                sse: Some(Sse::Kms),
                sse_kms_key_id: Some("alias/backup".into()),
                stall_timeout: std::time::Duration::from_secs(10),
                retry_budget: std::time::Duration::from_secs(60),
                storage_class: StorageClasses {
                    wal: Some("STANDARD_IA".into()),
                    ..StorageClasses::default()
                },
                tiers: vec![
                    "30d:STANDARD_IA".parse().unwrap(),
                    "60d:GLACIER_IR:wal".parse().unwrap(),
                ],
                object_lock: Some(ObjectLock {
                    mode: LockMode::Compliance,
                    period: std::time::Duration::from_secs(30 * 86_400),
                }),
                ..S3Settings::default()
            }
        );
        assert!(settings.path.unwrap().ends_with("pitr.toml"));
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let settings = load("[clusters.main]\n[repositories.r]\nurl='file:///r'")
            .ok()
            .unwrap();
        let cluster = settings.cluster().ok().unwrap();
        assert!(cluster == Cluster::named("main".parse().unwrap()));
        assert_eq!(cluster.standby_outage, StandbyOutage::Stream);
        assert_eq!(cluster.promote_unreachable, PromoteUnreachable::Auto);
        assert!(settings.repositories.iter().all(|r| r.required));
    }

    #[test]
    fn days_of_retention_begin_in_the_zone_of_the_narrowest_section() {
        let text = "[clusters.a]\ntimezone='Europe/Berlin'\n[clusters.b]\n[retention]\ntimezone='Asia/Tokyo'\n[repositories.r]\nurl='file:///r'\n[repositories.s]\nurl='file:///s'\nretention.timezone='UTC'";
        let settings = load(text).ok().unwrap();
        let [r, s] = settings.repositories.as_slice() else {
            panic!("two repositories")
        };
        let zone = |cluster, repository| settings.zone_of(cluster, repository);
        assert_eq!(zone(Some("a"), r), Some("Europe/Berlin"));
        assert_eq!(zone(Some("b"), r), Some("Asia/Tokyo"));
        assert_eq!(zone(None, r), Some("Asia/Tokyo"), "other content");
        assert_eq!(zone(Some("a"), s), Some("UTC"));
    }

    #[test]
    fn sets_of_dumps_are_read() {
        let text = "[repositories.r]\nurl='file:///r'\n[logical.app]\ncluster='main'\ndatabases=['a','b c']\njobs=3\ncontent='data'\n[logical.other]";
        let (_directory, mut environment) = place(Some(text));
        environment
            .variables
            .insert("PITR_LOGICAL_OTHER_DATABASES".into(), "x,y".into());
        let settings = loaded(&Flags::default(), &environment);
        let [app, other] = settings.logical.as_slice() else {
            panic!("two sets")
        };
        assert_eq!(
            *app,
            Logical {
                cluster: Some("main".into()),
                databases: vec!["a".into(), "b c".into()],
                jobs: 3,
                content: LogicalContent::Data,
                ..Logical::named("app".into())
            }
        );
        let expected = Logical {
            databases: vec!["x".into(), "y".into()],
            ..Logical::named("other".into())
        };
        assert_eq!(*other, expected);
        assert_eq!((other.jobs, other.content), (2, LogicalContent::Full));
    }

    #[test]
    fn sentinels_are_read() {
        let text = "[repositories.r]\nurl='file:///r'\n[redis.cache]\nuser='a'\npassword_file='/a'\n[redis.cache.sentinel]\nmaster='shop'\naddresses=['s:1','[::1]:2']\nbackup_from='replica'\npassword_file='/b'\n";
        let (_directory, mut environment) = place(Some(text));
        // It is none of "user" of a server called "cache_sentinel".
        let variable = ("PITR_REDIS_CACHE_SENTINEL_USER".into(), "b".into());
        environment.variables.extend([variable]);
        let settings = loaded(&Flags::default(), &environment);
        let [cache] = settings.redis.as_slice() else {
            panic!("one server")
        };
        assert_eq!(cache.place(), "sentinel:shop");
        let addresses: Vec<String> = cache
            .sentinel
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["s:1", "[::1]:2"]);
        let access = |name: &str| RedisAccess {
            user: Some(name.to_owned()),
            password_file: Some(PathBuf::from(format!("/{name}"))),
            tls: RedisTls::default(),
        };
        assert_eq!(&cache.access, &access("a"));
        assert_eq!(&cache.sentinel.access, &access("b"));
        assert!(cache.sentinel.is_replica_preferred);
    }

    /// A file, its complaint and perhaps the hint, one to a line.
    const MISTAKES: &str = r#"
[clusters.main]\nmax_backup_aeg = '1d' => pitr.toml:2:1: key "max_backup_aeg" does not exist in [clusters.main] => Did you mean "max_backup_age"?
[clusters.main]\n  retension = 1 => pitr.toml:2:3: key "retension" does not exist in [clusters.main] => Did you mean "retention"?
[clusters.main]\n  location = 1 => pitr.toml:2:3: key "location" does not exist in [clusters.main] => Keys are: pgdata, conninfo, max_backup_age, max_drill_age, drill_dir, clone_dir, full_every, max_replay, max_wal, backoff, standby_outage, promote_unreachable, cache_dir, spool_dir, timezone, prefetch_segments, receive, rpo, rto, copies, retention, service.
[clusters.main.retention]\nkeep_dayly = 1 => pitr.toml:2:1: key "keep_dayly" does not exist in [clusters.main.retention] => Did you mean "keep_daily"?
[clusters.main.retention]\nkeep_last = -1 => pitr.toml:2:13: "retention.keep_last" is not a number from 0 to 100000
[clusters.main.retention]\nwal_window = "0d" => pitr.toml:2:14: "retention.wal_window" must be longer than 0
[retention]\nkeep_within = 7 => pitr.toml:2:15: "keep_within" needs a string, found an integer
[retention]\nmin_copies = 2 => pitr.toml:2:14: "min_copies" belongs to a repository => Write it into [repositories.NAME.retention] of the repository that backups leave first: in all of them, the last one would keep everything for good.
retention = 1 => pitr.toml:1:13: "retention" needs a table, found an integer
[cluster.main] => pitr.toml:1:2: key "cluster" does not exist in the file => Did you mean "clusters"?
[clusters.main.receive]\nslott = '' => pitr.toml:2:1: key "slott" does not exist in [clusters.main.receive] => Did you mean "slot"?
# é\n[repositories.r]\n"é" = x => pitr.toml:3:7: string values must be quoted, expected literal string
[clusters.main]\npgdata='a'\npgdata='b' => pitr.toml:3:1: duplicate key
[clusters.main]\n[clusters.main] => pitr.toml:2:11: duplicate key
clusters = 3 => pitr.toml:1:12: "clusters" needs a table, found an integer
[clusters]\nmain = 'x' => pitr.toml:2:8: "clusters.main" needs a table, found a string
[clusters.main]\nreceive = true => pitr.toml:2:11: "clusters.main.receive" needs a table, found a boolean
[clusters."../x"] => pitr.toml:1:11: "../x" is not a cluster name: [a-z0-9][a-z0-9._-]{0,62} is needed
[repositories.A] => pitr.toml:1:15: "A" is not a repository name: [a-z0-9][a-z0-9._-]{0,62} is needed
[clusters.a]\npgdata = 3 => pitr.toml:2:10: "pgdata" needs a string, found an integer
[clusters.a]\npgdata = 1979-05-27 => pitr.toml:2:10: "pgdata" needs a string, found a date or time
[clusters.a]\npgdata = '' => pitr.toml:2:10: "pgdata" is empty
[clusters.a]\npgdata = 'data' => pitr.toml:2:10: path "data" is not absolute
[clusters.a]\ncache_dir = '/a/../b' => pitr.toml:2:13: path "/a/../b" holds ".."
[clusters.a]\nmax_backup_age = '5 fortnights' => pitr.toml:2:18: "5 fortnights" is not a length of time: "fortnights" is not a unit
[clusters.a]\nmax_backup_age = 7 => pitr.toml:2:18: "max_backup_age" needs a string, found an integer
[clusters.a]\nstandby_outage = 'halt' => pitr.toml:2:18: "standby_outage" is "halt" but must be "stream" or "stop"
[clusters.a]\npromote_unreachable = 'never' => pitr.toml:2:23: "promote_unreachable" is "never" but must be "auto" or "refuse" or "proceed"
[clusters.a.receive]\nslot = 'Big' => pitr.toml:2:8: "Big" is not the name of a replication slot: up to 63 of a-z, 0-9 and _ are needed
[clusters.a.receive]\njournal_limit_bytes = '10 GBB' => pitr.toml:2:23: "10 GBB" is not a size: "GBB" is not a unit
[clusters.a.receive]\njournal_limit_bytes = -1 => pitr.toml:2:23: "receive.journal_limit_bytes" is not a number of bytes above 0
[clusters.a.receive]\njournal_limit_bytes = 99999999999999999999 => pitr.toml:2:23: "receive.journal_limit_bytes" needs a number of bytes, found an integer out of range
[clusters.a.receive]\nacknowledge = true => pitr.toml:2:15: "receive.acknowledge" needs a string, found a boolean
[logical.a]\njobs = 0 => pitr.toml:2:8: "jobs" is not a number from 1: a dump needs a connection
[logical.a]\ndatabases = [] => pitr.toml:2:13: "databases" is not an array of names; without the key every database is dumped
[logical.a]\ncontent = 'all' => pitr.toml:2:11: "content" is "all" but must be "full" or "schema" or "data"
[redis.a]\nuser = 'x' => pitr.toml:1:8: Redis server "a" has no address
[redis.a]\nsentinel = { master = 'm' } => pitr.toml:1:8: sentinel has a master, and no addresses
[redis.a]\nsentinel = { addresses = ['h:26379'] } => pitr.toml:1:8: sentinel has addresses, and no master
[redis.a]\naddress = 'h:1'\nsentinel = { user = 'x' } => pitr.toml:1:8: address and sentinel are both given
[redis.a]\nsentinel = { master = 'm', addresses = ['h:1', 'h'] } => pitr.toml:2:40: the address is none of host:port, [v6 address]:port and unix:/path
[redis.a]\nsentinel = { master = 'm', addresses = ['h:1'], user = 'x' } => pitr.toml:1:8: sentinel.user needs password_file
[redis.a]\nsentinel = { master = 'm', addresses = ['unix:/s'], tls = { ca_file = '/c' } } => pitr.toml:1:8: sentinel.tls means nothing to a socket of this host
[redis.a]\naddress = 'h:1'\nsource = 'rdb' => pitr.toml:3:10: "source" is "rdb" but must be "psync" or "bgsave" or "aof"
[redis.a]\naddress = 'h:1'\nsource = 'aof'\nreceive.journal = '/j' => pitr.toml:1:8: source and receive.journal are both given
[redis.a]\ncluster = true\naddress = 'h:1'\nsource = 'bgsave' => pitr.toml:1:8: source and cluster are both given
[redis.a]\nsource = 'bgsave'\nsentinel = { master = 'm', addresses = ['h:1'] } => pitr.toml:1:8: source and sentinel are both given
[redis.a]\naddress = 'h:1'\ntls = { cert_file = '/c' } => pitr.toml:1:8: tls needs both cert_file and key_file, or neither
[redis.a]\naddresses = ['h:1'] => pitr.toml:1:8: addresses are those of a cluster, and cluster is not true
[redis.a]\ncluster = true => pitr.toml:1:8: Redis cluster "a" has no addresses
[redis.a]\ncluster = true\naddress = 'h:1'\nsentinel = { master = 'm', addresses = ['h:1'] } => pitr.toml:1:8: cluster and sentinel are both given
[redis.a]\ncluster = true\naddress = 'h:1'\nservice = { start = ['x'] } => pitr.toml:1:8: service means nothing to a cluster
[redis.a]\ncluster = true\naddress = 'h:1'\n[redis.'a.0123456789ab']\naddress = 'h:2' => pitr.toml:4:8: [redis.a] and [redis.a.0123456789ab]: one has a name as shards of the other have
[repositories.a] => pitr.toml:1:15: repository "a" has no url
[repositories.a]\nurl='x'\nrequired = 'no' => pitr.toml:2:5: "x" is not the URL of a repository
[repositories.a]\nurl='file:///x'\nrequired = false => no repository is required: a segment would be acknowledged before any holds it
[repositories.a]\nurl='sftp://h/x'\nregion = 'x' => pitr.toml:3:10: "region" means nothing to a repository on an SFTP server
[repositories.a]\nurl='s3://bucket'\nssh_key_file = '/k' => pitr.toml:3:16: "ssh_key_file" means nothing to a repository in an object store
[repositories.a]\nurl='sftp://h/x'\nssh_passphrase_file = '/k' => pitr.toml:1:15: "ssh_passphrase_file" needs ssh_key_file
[repositories.a]\nurl='gs://bucket'\nregion = 'x' => pitr.toml:3:10: "region" means nothing to a repository in Google Cloud Storage
[repositories.a]\nurl='azure://acc/box'\nsse = 'AES256' => pitr.toml:3:7: "sse" means nothing to a repository in Azure Blob Storage
[repositories.a]\nurl='file:///x'\nregion = 'x' => pitr.toml:3:10: "region" means nothing to a repository in a directory
[repositories.a]\nurl='s3://bucket'\nendpoint = 'http://minio' => pitr.toml:3:12: "http://minio" is plain HTTP to another machine
[repositories.a]\nurl='s3://bucket'\nobject_lock = { mode = 'governance' } => pitr.toml:1:15: "object_lock" needs both mode and period
[repositories.a]\nurl='s3://bucket'\nstorage_class = { wal = 'GLACIER' } => pitr.toml:3:25: "GLACIER" is not a storage class that can be used
[repositories.a]\nurl='s3://bucket'\ntier = [{ after = '30d', class = 'COLD' }] => pitr.toml:3:8: "COLD" is not a storage class to move to
[repositories.a]\nurl='s3://bucket'\ntier = [{ after = '30d' }] => pitr.toml:3:8: a tier needs after and class
[repositories.a]\nurl='s3://bucket'\ntier = [{ after = '30d', class = 'GLACIER', age = 'x' }] => pitr.toml:3:8: "age" is no part of a tier => Parts are after, class and kind.
[repositories.a]\nurl='s3://bucket'\ntier = 'x' => pitr.toml:3:8: "tier" needs an array of tables, found a string
[repositories.a]\nurl='s3://bucket'\ntier = [{ after = 1, class = 'GLACIER' }] => pitr.toml:3:8: "tier" needs an array of tables, found an array of other things
[repositories.a]\nurl='s3://bucket'\ntier = [{ after = '1d', class = 'STANDARD_IA' }] => pitr.toml:3:8: rules of a bucket move nothing to STANDARD_IA before it is 30 days old
[repositories.a]\nurl='s3://bucket'\ntier_by = 'copy'\nobject_lock = { mode = 'governance', period = '1d' } => pitr.toml:3:11: objects that are locked cannot be copied onto themselves => Leave tier_by away: rules of the bucket move locked objects, too.
[repositories.a]\nurl='file:///x'\ntier = [{ after = '30d', class = 'GLACIER' }] => pitr.toml:3:8: "tier" means nothing to a repository in a directory
[repositories.a]\nurl='s3://bucket'\nstall_timeout = '0s' => pitr.toml:3:17: "stall_timeout" must be longer than 0
[repositories.a]\nurl='file:///x'\nrequired = 'no' => pitr.toml:3:12: "required" needs true or false, found a string
[repositories.a]\nurl='s3://B' => pitr.toml:2:5: "B" is not the name of a bucket: 3 to 63 of a-z, 0-9, "." and "-" are needed
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkey=1 => pitr.toml:4:1: key "key" does not exist in [repositories.a.encryption]
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\npassphrase='correct horse' => pitr.toml:4:12: "encryption.passphrase" is taken from the environment only
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkey_file='/k'\npassphrase_file='/p' => pitr.toml:1:15: one of key_file, key_command, kms, passphrase_file, passphrase_command, passphrase_fd and passphrase is enough, and more are given
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkey_file='/k'\nrecipient='ops' => pitr.toml:1:15: encryption.recipient says whose passphrase it is; a key file names its recipient itself
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkms.key_id='alias/a' => pitr.toml:1:15: "encryption.kms" needs both key_id and wrapped_file
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkms={key_id='a', wrapped_file='/w', endpoint='http://kms.example'} => pitr.toml:4:46: "http://kms.example" is plain HTTP to another machine
[repositories.a]\nurl='file:///x'\n[repositories.a.encryption]\nkey_command=['gpg'] => pitr.toml:4:13: "encryption.key_command" is not a list that begins with the absolute path of a program
[jobs.a]\nrun='info' => pitr.toml:1:7: job "a" needs one of schedule and after
[jobs.a]\nrun='info'\nschedule='always'\nclaim=true => pitr.toml:1:7: job "a" claims no time, for it has none
[jobs.a]\nschedule='always' => pitr.toml:1:7: job "a" runs nothing
[alerts.a]\nkind='email' => pitr.toml:1:9: alert sink "a" needs smtp, from and to
[agent]\nlisten='x' => pitr.toml:2:8: "x" is no address to listen at
[agent]\nmetrics_compat=['walg', 'zabbix'] => pitr.toml:2:16: "zabbix" is no exporter whose names are known: pgbackrest, barman, cnpg, walg, postgres_exporter
[agent]\ntls.key_file='/k' => pitr.toml:1:2: tls.key_file needs tls.cert_file
[agent]\ntls.cert_file='/c' => pitr.toml:1:2: tls.cert_file needs tls.key_file
[agent]\ntls={client_ca_file='/c'} => pitr.toml:1:2: tls.client_ca_file needs tls.cert_file and tls.key_file
[page]\nactions=true => pitr.toml:2:9: a page that starts jobs needs token_file, or tls.client_ca_file in [agent]
[clusters.a]\ncopies='3' => pitr.toml:2:8: "3" are no copies
[repositories.a]\nurl='file:///x'\n[repositories.b]\nurl='file:///y/../x' => pitr.toml:4:5: path "/y/../x" holds ".."
[repositories.a]\nurl='file:///x'\n[repositories.b]\nurl='file:///x/' => pitr.toml:3:15: repositories "a" and "b" are the same place: "file:///x"
"#;

    #[test]
    fn every_mistake_is_refused_where_it_stands() {
        for line in MISTAKES.trim().lines() {
            let mut parts = line.split(" => ");
            let text = parts.next().unwrap().replace("\\n", "\n");
            let (message, hint) = refused(&text);
            assert_eq!(Some(message.as_str()), parts.next(), "{text}");
            assert!(parts.next().is_none_or(|h| h == hint), "{text}: {hint}");
        }
    }

    /// A variable, its complaint and the beginning of the hint, if there is one.
    const WRONG_VARIABLES: &str = r#"
PITR_CLUSTERS_A_B_PGDAT=/d => it ends in no key of a cluster => Did you mean "PITR_CLUSTERS_A_B_PGDATA"?
PITR_CLUSTERS_C_RECEIVE_SLTO=s => it ends in no key of a cluster => Did you mean "PITR_CLUSTERS_C_RECEIVE_SLOT"?
PITR_CLUSTERS_PGDATA=/d => it ends in no key of a cluster => Keys are: pgdata, conninfo,
PITR_REPOSITORIES_R_PGDATA=/d => it ends in no key of a repository => Keys are: url, required,
PITR_CLUSTERS_A_B_PGDATA=/d => it names more than one cluster => Set the key in the file
PITR_CLUSTERS_C_PREFETCH_SEGMENTS=65 => "prefetch_segments" is not a number from 0 to 64
PITR_CLUSTERS_C_RECEIVE_JOURNAL_LIMIT_BYTES=0 => "receive.journal_limit_bytes" is not a number of bytes above 0
PITR_REPOSITORIES_R_REQUIRED=yes => "required" is "yes" but must be "true" or "false"
PITR_REPOSITORIES_R_ENCRYPTION_PASSPHRASE_FD=geheim => "encryption.passphrase_fd" is not 0 and not above 2
"#;

    #[test]
    fn every_wrong_variable_is_refused_by_its_name() {
        let text = "[clusters.a-b]\n[clusters.a_b]\n[repositories.r]\nurl='file:///r'";
        let (directory, _) = place(Some(text));
        for line in WRONG_VARIABLES.trim().lines() {
            let mut parts = line.split(" => ");
            let (variable, value) = parts.next().unwrap().split_once('=').unwrap();
            let environment = Environment::new([(variable, value)], Some(directory.path().into()));
            let error = failed(&Flags::default(), &environment);
            let message = parts.next().unwrap();
            let expected = format!("environment variable \"{variable}\": {message}");
            assert_eq!(error.to_string(), expected);
            let hint = error.hint_text().unwrap_or_default();
            assert!(hint.starts_with(parts.next().unwrap_or_default()), "{hint}");
        }
    }

    #[test]
    fn j65_no_command_runs_with_words_that_a_wrong_text_does_not_have() {
        let sinks = |text: &str| -> Vec<(String, Vec<String>)> {
            let (_directory, environment) = place(Some(text));
            let read = Settings::readable(&Flags::default(), &environment);
            let one = |sink: Sink| (sink.name, sink.command);
            read.alerts.into_iter().map(one).collect()
        };
        let sink = |name: &str, command: &str| {
            format!("[alerts.{name}]\nkind = \"command\"\ncommand = {command}\n")
        };
        let well = sink("b", "[\"/x/tell.sh\", \"b\"]");
        let words = vec!["/x/tell.sh".to_owned(), "b".to_owned()];
        for wrong in [
            "[\"/x/hear.sh\", \"a, \"b\"]",
            "[\"/x/hear.sh\", \"a\"",
            "[\"/x/hear.sh\", \"a\",",
            "[\"/x/hear.sh\", 'a]",
            "[\"/x/hear.sh\" \"a\"]",
            "[\"/x/hear.sh\", \"\\q\"]",
        ] {
            let wrong = sink("a", wrong);
            for text in [wrong.clone() + &well, well.clone() + &wrong] {
                assert_eq!(sinks(&text), [("b".to_owned(), words.clone())], "{text}");
            }
        }
        let open = well.clone() + "[retention\nkeep_last = 2\n";
        assert_eq!(sinks(&open), [("b".to_owned(), words)]);
    }

    #[test]
    fn each_kind_of_unreadable_file_has_its_own_message() {
        let (directory, environment) = place(None);
        let path = directory.path().join("pitr.toml");
        let message = || {
            let error = failed(&Flags::default(), &environment);
            assert_eq!(error.code(), Code::Config, "{error}");
            error.to_string().replace(path.to_str().unwrap(), "F")
        };
        let says = |what: &str| assert_eq!(message(), format!("configuration file \"F\" {what}"));
        std::fs::create_dir(&path).unwrap();
        says("is a directory");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, b"# a\n# \xff").unwrap();
        says("is not UTF-8 in line 2");
        std::fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
        says("is larger than 1 MiB");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(message().starts_with("could not read configuration file \"F\": "));
    }

    #[test]
    fn b1_a_file_behind_a_link_is_believed_only_where_its_own_directories_are() {
        let (directory, environment) = place(None);
        let other = tempfile::tempdir().unwrap();
        let file = other.path().join("real.toml");
        std::fs::write(&file, "[repositories.r]\nurl='file:///r'").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&file, directory.path().join("pitr.toml")).unwrap();
        let load = |mode| {
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(other.path(), mode).unwrap();
            Settings::load(&Flags::default(), &environment)
        };
        assert!(load(0o755).is_ok());
        let error = load(0o777).err().unwrap();
        assert_eq!(error.code(), Code::Config);
        assert!(error.to_string().contains("may be changed by other users"));
    }

    #[test]
    fn b1_a_file_that_was_exchanged_after_it_was_opened_is_not_believed() {
        let (directory, _) = place(Some("# one"));
        let path = directory.path().join("pitr.toml");
        let opened = std::fs::File::open(&path).unwrap();
        trust::check_file(&path, &opened).unwrap();
        // Another file under the same name: what is open keeps its inode.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "# two").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = trust::check_file(&path, &opened).unwrap_err();
        assert!(error.to_string().contains("was exchanged"), "{error}");
    }

    #[test]
    fn files_are_looked_for_in_their_order() {
        let (directory, _) = place(Some("[repositories.here]\nurl='file:///r'"));
        let home = directory.path().join("home");
        std::fs::create_dir_all(home.join(".config/pitr")).unwrap();
        for (path, name) in [
            ("flag.toml", "flag"),
            ("env.toml", "env"),
            ("home/.config/pitr/pitr.toml", "home"),
        ] {
            let text = format!("[repositories.{name}]\nurl='file:///r'");
            std::fs::write(directory.path().join(path), text).unwrap();
        }
        let found = |config: Option<&str>, env: &str, cwd: &Path| {
            let environment = Environment::new(
                [("PITR_CONFIG", OsStr::new(env)), ("HOME", home.as_os_str())],
                Some(cwd.to_owned()),
            );
            let flags = Flags {
                config: config.map(PathBuf::from),
                ..Flags::default()
            };
            Settings::load(&flags, &environment).map(|s| {
                assert!(s.path.unwrap().is_absolute());
                s.repositories[0].name.clone()
            })
        };
        for (config, env, cwd, name) in [
            (Some("flag.toml"), "env.toml", directory.path(), "flag"),
            (None, "env.toml", directory.path(), "env"),
            (None, "", directory.path(), "here"),
            (None, "", &home, "home"),
        ] {
            assert_eq!(found(config, env, cwd).unwrap(), name);
        }
        for (config, env, said) in [
            (Some("none.toml"), "env.toml", "\" does not exist"),
            (
                None,
                "none.toml",
                "\", named by $PITR_CONFIG, does not exist",
            ),
        ] {
            let missing = found(config, env, directory.path()).unwrap_err();
            let said = format!("none.toml{said}");
            assert!(missing.to_string().ends_with(&said), "{missing}");
        }
    }

    #[test]
    fn no_file_at_all_says_where_it_looked() {
        let (directory, environment) = place(None);
        let error = failed(&Flags::default(), &environment);
        assert_eq!(error.code(), Code::Config);
        assert_eq!(error.to_string(), "no configuration file was found");
        let hint = error.hint_text().unwrap();
        let own = directory.path().display();
        let looked = format!("Looked for {own}/pitr.toml, /etc/pitr/pitr.toml.");
        assert!(hint.starts_with(&looked), "{hint}");
    }

    #[test]
    fn a_repository_on_the_command_line_needs_no_file() {
        let (_directory, environment) = place(None);
        for (given, cluster) in [("/r", None), ("file:///r", Some("main"))] {
            let settings = loaded(&flags(cluster, Some(given)), &environment);
            let [repository] = settings.repositories.as_slice() else {
                panic!("one repository")
            };
            assert_eq!(repository.name, "file:///r");
            assert!(repository.required);
            let named = settings.cluster_if_named().ok().unwrap();
            assert_eq!(named.map(|c| c.name.to_string()).as_deref(), cluster);
            assert_eq!(settings.cluster().is_ok(), cluster.is_some());
        }
        let error = failed(&flags(None, Some("local")), &environment);
        assert_eq!(error.to_string(), "no configuration file was found");
        let error = failed(&flags(None, Some("./r")), &environment);
        assert_eq!(error.to_string(), "\"./r\" is not the URL of a repository");
    }

    #[test]
    fn repositories_alone_know_their_clusters() {
        let (_directory, environment) = place(Some("[repositories.r]\nurl='file:///r'"));
        for name in [None, Some("main")] {
            let settings = loaded(&flags(name, None), &environment);
            let cluster = settings.cluster_if_named().ok().unwrap();
            assert_eq!(cluster.map(|c| c.name.to_string()).as_deref(), name);
        }
    }

    #[test]
    fn a_repository_is_chosen_by_name_or_place() {
        let (_directory, environment) = place(Some(TWO));
        let chosen = |given: &str| -> Result<Vec<String>> {
            let settings = Settings::load(&flags(None, Some(given)), &environment)?;
            Ok(settings.repositories.into_iter().map(|r| r.name).collect())
        };
        assert_eq!(chosen("attic").unwrap(), ["attic"]);
        assert_eq!(chosen("/r1").unwrap(), ["disk"]);
        assert_eq!(chosen("/r3").unwrap(), ["file:///r3"]);
        let error = chosen("3").unwrap_err();
        assert_eq!(error.code(), Code::Usage);
        assert_eq!(error.to_string(), "no repository \"3\" is configured");
        let known = "Known: disk (file:///r1), attic (file:///r2)";
        assert_eq!(error.hint_text(), Some(known));
    }

    #[test]
    fn a_place_that_two_repositories_have_chooses_none_of_them() {
        let one = |name: &str| {
            format!(
                "[repositories.{name}]\nurl='s3://bucket/p'\nregion='r'\nendpoint='https://{name}.example'\n"
            )
        };
        let (_directory, environment) = place(Some(&(one("a") + &one("b"))));
        let error = failed(&flags(None, Some("s3://bucket/p")), &environment);
        assert_eq!(error.code(), Code::Usage);
        assert_eq!(error.hint_text(), Some("Name one of them: a, b"));
        let settings = loaded(&flags(None, Some("b")), &environment);
        assert_eq!(settings.repositories.len(), 1);
    }

    #[test]
    fn u110_a_copy_stands_in_for_its_own_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [own, copy] = ["own", "copy"].map(|name| {
            let file = folder.path().join(name);
            let text = format!("[repositories.{name}]\nurl='file:///{name}'");
            std::fs::write(&file, text).unwrap();
            file
        });
        let named = |of: &Path| {
            let variables = [(IN_FORCE, copy.as_os_str()), (IN_FORCE_OF, of.as_os_str())];
            let flags = Flags {
                config: Some(own.clone()),
                ..Flags::default()
            };
            let settings = loaded(&flags, &Environment::new(variables, None));
            settings.repositories[0].name.clone()
        };
        assert_eq!(named(&own), "copy");
        assert_eq!(named(Path::new("/other")), "own");
    }

    #[test]
    fn a_data_directory_names_its_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let (data, link) = (folder.path().join("data"), folder.path().join("link"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let named = |one: &Path, two: &Path, flag: Option<&str>| {
            let text = format!(
                "[clusters.a]\npgdata='{}'\n[clusters.b]\npgdata='{}'\n[repositories.r]\nurl='file:///r'",
                one.display(),
                two.display()
            );
            let (_directory, environment) = place(Some(&text));
            let mut settings = loaded(&flags(flag, None), &environment);
            settings.name_cluster_at(&data);
            let cluster = settings.cluster_if_named().ok().flatten();
            cluster.map(|c| c.name.to_string())
        };
        let none = folder.path().join("none");
        assert_eq!(named(&none, &link, None).as_deref(), Some("b"));
        assert_eq!(named(&none, &link, Some("a")).as_deref(), Some("a"));
        assert_eq!(named(&none, &none, None), None);
        // Two of them are no answer.
        assert_eq!(named(&data, &link, None), None);
    }

    #[test]
    fn a_cluster_is_named_when_there_are_several() {
        let (_directory, environment) = place(Some(TWO));
        let cluster = |name: Option<&str>| {
            let settings = Settings::load(&flags(name, None), &environment)?;
            settings.cluster().map(|c| c.name.to_string())
        };
        assert_eq!(cluster(Some("dev")).unwrap(), "dev");
        for (name, message, hint) in [
            (
                None,
                "several clusters are configured and none is named: prod, dev",
                Some("Add --cluster NAME."),
            ),
            (
                Some("prd"),
                "no cluster \"prd\" in F",
                Some("Known: prod, dev"),
            ),
            (
                Some("../x"),
                "\"../x\" is not a cluster name: [a-z0-9][a-z0-9._-]{0,62} is needed",
                None,
            ),
        ] {
            let error = cluster(name).unwrap_err();
            let file = environment.absolute(Path::new("pitr.toml"));
            let file = format!("\"{}\"", file.display());
            assert_eq!(error.code(), Code::Usage);
            assert_eq!(error.to_string().replace(&file, "F"), message);
            assert_eq!(error.hint_text(), hint);
        }
    }

    #[test]
    fn the_environment_alone_can_configure() {
        let environment = Environment::new(
            [
                ("PITR_CLUSTERS_MAIN_PGDATA", "/data"),
                ("PITR_CLUSTERS_MAIN_RECEIVE_JOURNAL_LIMIT_BYTES", "1GiB"),
                ("PITR_REPOSITORIES_LOCAL_URL", "file:///r"),
                ("PITR_REPOSITORIES_LOCAL_REQUIRED", "false"),
                ("PITR_REPOSITORIES_OTHER_URL", "file:///o"),
                ("PITR_FAULT_HIDE", SYSTEM_FILE),
            ],
            Some(PathBuf::from("/nonexistent")),
        );
        let settings = loaded(&Flags::default(), &environment);
        let cluster = settings.cluster().ok().unwrap();
        assert_eq!(cluster.pgdata.as_deref(), Some(Path::new("/data")));
        assert_eq!(cluster.receive.journal_limit_bytes, Some(1 << 30));
        assert!(!settings.repositories[0].required);
    }

    #[test]
    fn a_password_in_a_file_for_everybody_is_refused() {
        let text = "[clusters.a]\nconninfo = 'host=h password = geheim'";
        let (directory, environment) = place(Some(text));
        let path = directory.path().join("pitr.toml");
        let load = |mode: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Settings::load(&Flags::default(), &environment).map(|_| ())
        };
        assert!(load(0o640).is_ok());
        let error = load(0o644).unwrap_err();
        assert!(
            error.to_string().ends_with(
                "pitr.toml:2:12: the file holds a password, and every user of this machine may read it"
            ),
            "{error}"
        );
        assert!(!format!("{error:?}").contains("geheim"));
        for (conninfo, holds) in [
            ("host=/run user=postgres passfile=/x", false),
            ("password=x", true),
            ("sslpassword=x", true),
            ("postgresql://u:p@h/db", true),
            ("postgresql://u@h:5432/db", false),
            ("postgresql://h/db?password=x", true),
        ] {
            assert_eq!(holds_password(conninfo), holds, "{conninfo}");
        }
    }

    #[test]
    fn a_host_that_only_writes_keeps_its_state_below_the_caches() {
        let state = |cache: &str, more: &str| {
            let text = format!(
                "[clusters.a]\n{cache}\n[repositories.r]\nurl='file:///r'\n[repositories.r.encryption]\n{more}"
            );
            let settings = load(&text).ok().unwrap();
            settings.repositories[0]
                .encryption
                .clone()
                .unwrap()
                .state_dir
        };
        let caches = "cache_dir='/c'";
        assert_eq!(state(caches, "key_set='/k'"), Some("/c/state".into()));
        let configured = state(caches, "key_set='/k'\nstate_dir='/s'");
        assert_eq!(configured, Some("/s".into()));
        assert_eq!(state(caches, "key_file='/k'"), None);
        assert_eq!(state(caches, "key_set='/k'\nkey_file='/k'"), None);
    }

    #[test]
    fn caches_follow_the_environment() {
        let dir = |vars: &[(&str, &str)]| Environment::new(vars.iter().copied(), None).cache_dir();
        assert_eq!(dir(&[("HOME", "/h")]), Some("/h/.cache/pitr".into()));
        assert_eq!(
            dir(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]),
            Some("/c/pitr".into())
        );
        assert_eq!(dir(&[("HOME", "h")]), None);
        assert_eq!(dir(&[]), None);
    }
}
