//! The first steps: a repository, the cluster registered in it, a configuration file.
//!
//! Everything is looked at before the first write. Then, for each repository: directory, trial of its filesystem, marker,
//! registration. The configuration file comes last. Killed in between, the same command goes on where it was.

use std::path::{Path, PathBuf};

use super::archive_command::{compose, shell_word};
use super::clusters::Clusters;
use super::session::Session;
use crate::config::{self, ClusterName, Flags, Location, Settings};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::store::Published;

pub mod identity;
mod keys;
pub mod new_file;
pub mod place;
pub mod settle;
mod user;

use identity::{Identity, check_identity, identity};
pub use place::Done;
use place::{create, missing_ancestors, prepare};
use user::ServerUser;

/// The operator's request.
#[derive(Debug, Default)]
pub struct Request {
    /// The data directory of the cluster.
    pub pgdata: Option<PathBuf>,
    /// How to connect to the cluster, in libpq's syntax.
    pub conninfo: Option<String>,
    /// The writer's file of the key set that encrypts the repository.
    pub key_set: Option<PathBuf>,
    /// Whether a key set with a single recipient does.
    pub one_recipient: bool,
    /// Whether another system identifier may be registered under a name that is taken.
    pub confirm: bool,
}

/// A repository and a cluster that were made, and the next steps.
pub struct Made {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether it was written.
    pub config_written: bool,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The identity of the cluster.
    pub identity: Identity,
    /// The outcome of each repository.
    pub repositories: Vec<Done>,
    /// The settings that belong into postgresql.conf.
    pub settings: [(&'static str, String); 4],
    /// Obstacles to the archiver's work, and weaknesses of the places.
    pub warnings: Vec<String>,
    /// The commands that come next.
    pub next: [String; 3],
}

/// Creates the repositories, registers the cluster in them, and writes the configuration file where there is none.
///
/// # Errors
/// `Usage`, `Refused`, `WrongCluster` before the first write; then what the places say.
pub fn init(session: &Session, request: &Request) -> Result<Made> {
    let wanted = wanted(request, session)?;
    let identity = identity(&wanted, session)?;
    check_identity(&identity)?;
    let mut prepared = Vec::new();
    for repository in &wanted.repositories {
        prepared.push(prepare(&wanted, repository, &identity, request, session)?);
    }
    if !wanted.config_exists {
        place_of_config(&wanted.config)?;
    }
    let server = ServerUser::find(identity.pgdata.as_deref());
    let mut done = Vec::new();
    for one in &prepared {
        let made = create(&wanted, one, &identity, &server, session);
        done.push(made.map_err(|e| with_made(&done, e))?);
    }
    let config_written = write_config(&wanted, &identity, &server, session);
    let config_written = config_written.map_err(|e| with_made(&done, e))?;
    drop(prepared);
    let program = archiver();
    if !program.exists() {
        session.warn(&format!(
            "\"{}\" does not exist: install pitr-archive beside pitr",
            program.display()
        ));
    }
    let mut warnings = server.obstacles(&wanted, &program);
    warnings.extend(done.iter().flat_map(Done::warnings));
    if request.confirm && done.iter().all(|d| !d.registered) {
        warnings.push(nothing_to_confirm(&wanted, &identity));
    }
    let cluster = wanted.several_clusters.then(|| wanted.cluster.as_str());
    Ok(Made {
        settings: settings(&wanted, &identity, &program),
        next: next(&wanted, cluster, &server),
        warnings,
        config: wanted.config,
        config_written,
        cluster: wanted.cluster,
        identity,
        repositories: done,
    })
}

/// Requires a directory that takes the configuration file, which is written last. Its ancestors may be missing.
fn place_of_config(config: &Path) -> Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let parent = config.parent().unwrap_or(Path::new("/"));
    let there = parent.ancestors().find(|p| p.exists()).unwrap_or(parent);
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, there, access, AtFlags::EACCESS).map_err(|e| {
        let doing = format!("write configuration file \"{}\"", config.display());
        Error::from_io(doing, e.into()).hint(format!(
            "Nothing was written. Give this user write access to \"{}\", or name another file with --config.",
            there.display()
        ))
    })
}

/// Names the repositories that were made before the error, beside what helps against that.
fn with_made(done: &[Done], error: Error) -> Error {
    let made = done.iter().filter(|d| d.created || d.registered);
    let made = made.map(|d| format!("\"{}\" ({})", d.name, d.url));
    let made: Vec<String> = made.collect();
    if made.is_empty() {
        return error;
    }
    let hint = error
        .hint_text()
        .map_or_else(String::new, |h| format!("{h} "));
    error.hint(format!(
        "{hint}Made before, and kept: repository {}. The same command goes on there.",
        made.join(", ")
    ))
}

/// After pg_upgrade the new cluster often has another directory and port, and the configuration still leads to the old one.
fn nothing_to_confirm(wanted: &Wanted, identity: &Identity) -> String {
    let is_other = |(_, found): &(PathBuf, u64)| *found != identity.system_identifier;
    let others = Clusters::identified().into_iter().filter(is_other);
    let others = others.map(|(pgdata, found)| format!("\"{}\" has {found}", pgdata.display()));
    let others: Vec<String> = others.collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!(" ({})", others.join(", ")),
    };
    let configured = match &identity.pgdata {
        Some(pgdata) => format!("\"{}\"", pgdata.display()),
        None => "the configured cluster".into(),
    };
    format!(
        "--confirm registered nothing: {configured} has system identifier {}, which was registered. If another cluster takes its place{others}, set pgdata and conninfo in [clusters.{}] of \"{}\" to that one's, then run the same command again",
        identity.system_identifier,
        wanted.cluster,
        wanted.config.display()
    )
}

/// The request, completed by the configuration file if there is one.
struct Wanted {
    config: PathBuf,
    config_exists: bool,
    cluster: ClusterName,
    pgdata: Option<PathBuf>,
    conninfo: Option<String>,
    repositories: Vec<config::Repository>,
    several_clusters: bool,
}

fn wanted(request: &Request, session: &Session) -> Result<Wanted> {
    let flags = Flags {
        repository: None,
        ..session.flags.clone()
    };
    let (config, config_exists) = config::place(&flags, &session.environment)?;
    let pgdata = request.pgdata.as_deref().map(|p| absolute(p, session));
    if config_exists {
        let flags = Flags {
            config: Some(config),
            ..flags
        };
        return wanted_by_file(request, pgdata, &flags, session);
    }
    let Some(repository) = session.flags.repository.as_deref() else {
        return Err(err!(Usage, "no configuration file is there, and --repository is not given")
            .hint("Say where the repository is to be: pitr init --pgdata DIR --repository file:///absolute/path"));
    };
    if !Location::looks_like_one(repository) {
        return Err(err!(
            Usage,
            "\"{}\" is not the URL of a repository",
            repository.escape_debug()
        )
        .hint("Say where the repository is to be: --repository file:///absolute/path"));
    }
    let location = match repository.contains("://") || repository.starts_with('/') {
        true => Location::from_argument(repository)?,
        false if repository.starts_with('.') => {
            let path = absolute(Path::new(repository), session);
            Location::from_argument(&path.to_string_lossy())?
        }
        false => Location::from_url(repository)?,
    };
    Ok(Wanted {
        config,
        config_exists,
        cluster: flags.cluster.as_deref().unwrap_or("main").parse()?,
        pgdata,
        conninfo: request.conninfo.clone(),
        repositories: vec![config::Repository {
            name: match location {
                Location::File(_) => "local",
                Location::S3 { .. } => "s3",
                Location::Blob {
                    service: config::BlobService::Azure { .. },
                    ..
                } => "azure",
                Location::Blob { .. } => "gs",
                Location::Sftp { .. } => "sftp",
            }
            .to_owned(),
            encryption: request.key_set.as_deref().map(|path| config::Encryption {
                key_set: Some(absolute(path, session)),
                ..config::Encryption::default()
            }),
            ..config::Repository::at(location)
        }],
        several_clusters: false,
    })
}

/// A file that exists is never changed: what the command line says besides must agree with it.
fn wanted_by_file(
    request: &Request,
    pgdata: Option<PathBuf>,
    flags: &Flags,
    session: &Session,
) -> Result<Wanted> {
    let settings = Settings::load(flags, &session.environment)?;
    let config = settings.path.clone().unwrap_or_default();
    let shown = config.display().to_string();
    let differs = |what: String, line: String| {
        err!(Refused, "configuration file \"{shown}\" {what}").hint(format!(
            "Nothing was written: an existing file is never changed. Put {line} into it, or name another file with --config."
        ))
    };
    if settings.clusters.is_empty() {
        let name = flags.cluster.as_deref().unwrap_or("main");
        return Err(differs(
            "has no cluster".to_owned(),
            format!("[clusters.{name}]"),
        ));
    }
    if let Some(name) = (flags.cluster.as_ref())
        .filter(|name| !settings.clusters.iter().any(|c| c.name.as_str() == **name))
    {
        let name: ClusterName = name.parse()?;
        let section = section_of(&name, pgdata.as_deref());
        return Err(differs(format!("has no cluster \"{name}\""), section));
    }
    let cluster = settings.cluster()?;
    if let (Some(flag), Some(file)) = (&pgdata, &cluster.pgdata)
        && flag != file
    {
        if !flag.is_dir() {
            return Err(err!(NotFound, "\"{}\" is no directory", flag.display()).hint(format!(
                "Nothing was written. Correct --pgdata, or leave it out: \"{shown}\" names \"{}\".",
                file.display()
            )));
        }
        return Err(differs(
            format!("names another data directory: \"{}\"", file.display()),
            format!("pgdata = \"{}\"", flag.display()),
        ));
    }
    if let (Some(flag), Some(file)) = (&request.conninfo, &cluster.conninfo)
        && flag != file.expose()
    {
        // Neither is shown: there may be a password in it.
        let line = "the conninfo of the command line".to_owned();
        return Err(differs("has another conninfo".to_owned(), line));
    }
    let mut repositories = settings.repositories.clone();
    if let Some(wanted) = session.flags.repository.as_deref() {
        let is_wanted = |r: &config::Repository| match Location::looks_like_one(wanted) {
            true => Location::from_argument(wanted).is_ok_and(|l| l == r.location),
            false => r.name == wanted,
        };
        repositories.retain(is_wanted);
        // One url is of two places where their endpoints differ.
        if repositories.len() > 1 {
            let names: Vec<_> = repositories.iter().map(|r| r.name.as_str()).collect();
            let wanted = wanted.escape_debug();
            return Err(
                err!(Usage, "several repositories are configured as \"{wanted}\"").hint(format!(
                    "Nothing was written. Name one of them: {}",
                    names.join(", ")
                )),
            );
        }
    }
    if let Some(flag) = request.key_set.as_deref().map(|p| absolute(p, session)) {
        let own = |r: &config::Repository| r.encryption.as_ref()?.key_set.clone();
        if !repositories.iter().any(|r| own(r).as_ref() == Some(&flag)) {
            let flag = flag.display();
            let line = format!("[repositories.NAME.encryption] with key_set = \"{flag}\"");
            return Err(differs("does not name this key set".to_owned(), line));
        }
    }
    if repositories.is_empty() {
        let url = session.flags.repository.as_deref();
        let url = url.unwrap_or("file:///absolute/path").escape_debug();
        let line = format!("[repositories.NAME] with url = \"{url}\"");
        return Err(differs("does not name the repository".to_owned(), line));
    }
    let configured = cluster.conninfo.map(|c| c.expose().to_owned());
    Ok(Wanted {
        config,
        config_exists: true,
        cluster: cluster.name,
        pgdata: pgdata.or(cluster.pgdata),
        conninfo: request.conninfo.clone().or(configured),
        repositories,
        several_clusters: settings.clusters.len() > 1,
    })
}

/// The section that a cluster lacks, as a person would write it.
fn section_of(cluster: &ClusterName, pgdata: Option<&Path>) -> String {
    let pgdata = pgdata.map_or_else(|| "DIR".into(), Path::to_string_lossy);
    format!("[clusters.{cluster}] and pgdata = \"{pgdata}\"")
}

fn absolute(path: &Path, session: &Session) -> PathBuf {
    let path = session.environment.absolute(path);
    // "..", which a configuration cannot hold, is resolved here; other links stay as the operator wrote them.
    let mut parts = path.components();
    match parts.any(|c| c == std::path::Component::ParentDir) {
        true => std::fs::canonicalize(&path).unwrap_or(path),
        false => path.components().collect(),
    }
}

/// Writes the configuration file unless there is one; never over one that came meanwhile.
fn write_config(
    wanted: &Wanted,
    identity: &Identity,
    server: &ServerUser,
    session: &Session,
) -> Result<bool> {
    if wanted.config_exists {
        return Ok(false);
    }
    let doing = || format!("write configuration file \"{}\"", wanted.config.display());
    let failed = |e| Error::from_io(doing(), e);
    let mut ours = Vec::new();
    if let Some(parent) = wanted.config.parent() {
        ours = missing_ancestors(parent);
        for directory in &ours {
            std::fs::create_dir(directory).map_err(failed)?;
            durable::sync_directory_at(directory.parent().unwrap_or(parent)).map_err(failed)?;
        }
    }
    let text = config_text(wanted, identity);
    let written = durable::write_new(&wanted.config, text.as_bytes(), session.host.random());
    if written.map_err(failed)? == Published::Exists {
        return Err(err!(
            Refused,
            "configuration file \"{}\" appeared meanwhile",
            wanted.config.display()
        )
        .hint("It was left as it is. Run the command again."));
    }
    ours.push(wanted.config.clone());
    server.take(&ours)?;
    Ok(true)
}

fn config_text(wanted: &Wanted, identity: &Identity) -> String {
    let string = |text: &str| toml::Value::String(text.to_owned()).to_string();
    // A dot would part the name into two tables.
    let cluster = match wanted.cluster.as_str() {
        name if name.contains('.') => format!("\"{name}\""),
        name => name.to_owned(),
    };
    let mut text =
        format!("# Keys and their meaning: docs/configuration.md\n[clusters.{cluster}]\n");
    if let Some(pgdata) = &identity.pgdata {
        let pgdata = string(&pgdata.to_string_lossy());
        text.push_str(&format!("pgdata   = {pgdata}\n"));
    }
    match &identity.conninfo {
        Some(conninfo) => text.push_str(&format!("conninfo = {}\n", string(conninfo))),
        None => text.push_str("# conninfo = \"host=/run/postgresql user=postgres\"   # needed by pitr backup and pitr doctor\n"),
    }
    text.push_str("# max_backup_age = \"26h\"   # pitr info and pitr doctor are critical when the newest backup is older\n");
    for repository in &wanted.repositories {
        let (name, url) = (&repository.name, string(&repository.location.to_string()));
        text.push_str(&format!("\n[repositories.{name}]\nurl = {url}\n"));
        let encryption = repository.encryption.as_ref();
        if let Some(path) = encryption.and_then(|e| e.key_set.as_ref()) {
            let path = string(&path.to_string_lossy());
            text.push_str(&format!(
                "\n[repositories.{name}.encryption]\nkey_set = {path}\n"
            ));
        }
    }
    text
}

/// The program that PostgreSQL is to run: beside this one, where it was installed.
fn archiver() -> PathBuf {
    let own = std::env::current_exe().ok();
    let own = own.and_then(|p| Some(p.parent()?.join("pitr-archive")));
    own.unwrap_or_else(|| PathBuf::from("/usr/bin/pitr-archive"))
}

/// The settings that belong into postgresql.conf.
fn settings(wanted: &Wanted, identity: &Identity, program: &Path) -> [(&'static str, String); 4] {
    let level = if identity.logical {
        "logical"
    } else {
        "replica"
    };
    // Named also where it is the only one: a second section of the configuration must not stop the first cluster's archiving.
    let command = compose(program, &wanted.config, Some(wanted.cluster.as_str()));
    [
        ("wal_level", level.to_owned()),
        ("archive_mode", "on".to_owned()),
        ("archive_command", command),
        ("archive_timeout", "60s".to_owned()),
    ]
}

/// The commands that come next.
fn next(wanted: &Wanted, cluster: Option<&str>, server: &ServerUser) -> [String; 3] {
    let user = server.prefix();
    let config = shell_word(&wanted.config.to_string_lossy());
    let option = cluster.map_or_else(String::new, |c| format!(" --cluster {c}"));
    ["doctor", "backup", "info"].map(|verb| format!("{user}pitr --config {config} {verb}{option}"))
}
