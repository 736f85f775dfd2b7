//! The programs that PostgreSQL runs: the bodies of `pitr-archive` and `pitr-restore`, without printing and exiting.
//!
//! Both read the configuration, know the data directory by the path they are given, and answer by a status that PostgreSQL reads
//! (`exit`). Their `main` prints what is returned here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::archive::datadir::DataDirectory;
use crate::config::{Environment, Flags, Settings};
use crate::err;
use crate::error::Result;
use crate::release;
use crate::repo;

pub mod ahead;
pub mod archive;
pub mod delegate;
pub mod detach;
mod latch;
pub mod outside;
pub mod prefetch;
pub mod recovery_ended;
pub mod restore;
pub mod shipper;
pub mod watch;

/// The command line of both programs: options, then file arguments.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// `--config`, `--cluster`, `--repository`.
    pub flags: Flags,
    /// The system identifier of the wanted WAL, if the data directory shall not decide; no option of the two programs.
    pub system_identifier: Option<u64>,
    /// Arguments that are no options, in order; bytes as given.
    pub files: Vec<OsString>,
    /// `--help`.
    pub help: bool,
    /// `--version`.
    pub version: bool,
    /// Other options of one program, by name.
    pub switches: Vec<String>,
}

impl Arguments {
    /// The text that is asked for instead of work: the help, or the version.
    pub fn about(&self, program: &str, help: &str) -> Option<String> {
        if self.help {
            return Some(help.to_owned());
        }
        self.version
            .then(|| format!("{program} {}\n", release::version()))
    }
}

/// The switch of `pitr-restore` that reads the WAL which was archived first, whatever `pitr wal resolve` decided.
pub const AS_STORED: &str = "as-stored";

/// Parses a command line; `switches` are the program's own options without a value.
///
/// # Errors
/// `Usage`, naming what was given.
pub fn parse(arguments: Vec<OsString>, switches: &[&str]) -> Result<Arguments> {
    use lexopt::Arg::{Long, Short, Value};
    let usage = |e: lexopt::Error| err!(Usage, "{e}");
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut parsed = Arguments::default();
    let text = |v: OsString| {
        v.into_string()
            .map_err(|_| err!(Usage, "an option's value is not UTF-8"))
    };
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Long("config") => {
                parsed.flags.config = Some(PathBuf::from(parser.value().map_err(usage)?));
            }
            Long("cluster") => {
                parsed.flags.cluster = Some(text(parser.value().map_err(usage)?)?);
            }
            Long("repository") => {
                parsed.flags.repository = Some(text(parser.value().map_err(usage)?)?);
            }
            Long("help") | Short('h') => parsed.help = true,
            Long("version") | Short('V') => parsed.version = true,
            Long(name) if switches.contains(&name) => parsed.switches.push(name.to_owned()),
            Value(value) => parsed.files.push(value),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(parsed)
}

/// The settings, which name at least one repository. None is opened: one that hangs must not hold up the others.
///
/// Several clusters may be configured and none be named: then the `pgdata` in which the last file lies names it. So a second section
/// does not stop the archiving of the first cluster. The system identifier still has to be the registered one.
///
/// # Errors
/// `Config` and `Usage`.
pub fn settings(arguments: &Arguments, environment: &Environment) -> Result<Settings> {
    let mut settings = Settings::load(&arguments.flags, environment)?;
    if let Some(path) = arguments.files.last() {
        let path = environment.absolute(Path::new(path));
        settings.name_cluster_at(DataDirectory::of_wal_file(&path).path());
    }
    if settings.repositories.is_empty() {
        return Err(err!(Config, "no repository is configured")
            .hint("Add a [repositories.NAME] section with its url, or run \"pitr init\"."));
    }
    Ok(settings)
}

/// How long ago the machine was started: by a clock that nobody sets, and that goes on while it sleeps.
fn since_boot() -> Duration {
    clock_gettime(ClockId::Boottime)
        .try_into()
        .unwrap_or_default()
}

/// The name of the cluster: that of the command line, the only one configured, else the only one in the repositories.
pub(crate) fn cluster_name(settings: &Settings, nonce: u64) -> Result<String> {
    if let Some(cluster) = settings.cluster_if_named()? {
        return Ok(cluster.name.to_string());
    }
    let mut known: Vec<String> = Vec::new();
    let mut failed = None;
    for configured in &settings.repositories {
        match repo::open(configured, nonce) {
            Ok(repository) => known.extend(repository.cluster_names()?),
            Err(e) => failed = Some(e),
        }
    }
    // Why a repository cannot be opened says more than that no cluster is named.
    if let (true, Some(e)) = (known.is_empty(), failed) {
        return Err(e);
    }
    known.sort();
    known.dedup();
    match known.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(err!(
            Usage,
            "no cluster is named, and the repository holds none"
        )),
        _ => Err(err!(
            Usage,
            "no cluster is named, and the repository holds several: {}",
            known.join(", ")
        )
        .hint("Add --cluster NAME.")),
    }
}
