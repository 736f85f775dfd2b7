//! `pitr init`.
//!
//! Everything is looked at before the first write. Then, for each repository: directory, trial of its filesystem, marker,
//! registration. The configuration file comes last. Killed in between, the same command goes on where it was.

use std::path::{Path, PathBuf};

use super::Context;
use crate::config::{self, ClusterName, Flags, Location, Settings};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::store::Published;

mod identity;
mod keys;
mod place;
mod report;
mod user;

use identity::{Identity, check_identity, identity};
use place::{create, missing_ancestors, prepare};
use report::report;
use user::ServerUser;

/// Create the repository and register the cluster in it
///
/// Writes a configuration file where there is none, creates the repository, and prints the lines that postgresql.conf needs.
/// A repository that exists is kept. After pg_upgrade or initdb, --confirm registers the cluster's new system identifier under
/// its old name.
///
/// Example: pitr init --cluster main --pgdata /var/lib/postgresql/17/main --repository file:///var/backups/pitr
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data directory of the cluster
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,

    /// How to connect to the cluster, in libpq's syntax
    #[arg(long, value_name = "CONNINFO")]
    pub conninfo: Option<String>,

    /// Encrypt the repository: the writer's file of its key set, made by pitr repo keygen
    #[arg(long, value_name = "FILE")]
    pub key_set: Option<PathBuf>,

    /// Let a key set with a single recipient do: when its key is lost, everything is
    #[arg(long)]
    pub one_recipient: bool,

    /// Register another system identifier under a name that is taken
    #[arg(long)]
    pub confirm: bool,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let wanted = wanted(args, cx)?;
    let identity = identity(&wanted, cx)?;
    check_identity(&identity)?;
    let mut prepared = Vec::new();
    for repository in &wanted.repositories {
        prepared.push(prepare(&wanted, repository, &identity, args, cx)?);
    }
    let server = ServerUser::find(identity.pgdata.as_deref());
    let mut done = Vec::new();
    for one in &prepared {
        done.push(create(&wanted, one, &identity, &server, cx)?);
    }
    let written = write_config(&wanted, &identity, &server, cx)?;
    report(&wanted, &identity, &done, written, &server, cx)
}

/// What is to be, from the command line and from the configuration file if there is one.
struct Wanted {
    config: PathBuf,
    config_exists: bool,
    cluster: ClusterName,
    pgdata: Option<PathBuf>,
    conninfo: Option<String>,
    repositories: Vec<config::Repository>,
    several_clusters: bool,
}

fn wanted(args: &Args, cx: &Context) -> Result<Wanted> {
    let flags = Flags {
        repository: None,
        ..cx.given()
    };
    let (config, config_exists) = config::place(&flags, &cx.environment)?;
    let pgdata = args.pgdata.as_deref().map(|p| absolute(p, cx));
    if config_exists {
        let flags = Flags {
            config: Some(config),
            ..flags
        };
        return wanted_by_file(args, pgdata, &flags, cx);
    }
    let Some(repository) = cx.global.repository.as_deref() else {
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
            let path = absolute(Path::new(repository), cx);
            Location::from_argument(&path.to_string_lossy())?
        }
        false => Location::from_url(repository)?,
    };
    Ok(Wanted {
        config,
        config_exists,
        cluster: flags.cluster.as_deref().unwrap_or("main").parse()?,
        pgdata,
        conninfo: args.conninfo.clone(),
        repositories: vec![config::Repository {
            name: match location {
                Location::File(_) => "local",
                Location::S3 { .. } => "s3",
            }
            .to_owned(),
            encryption: args.key_set.as_deref().map(|path| config::Encryption {
                key_set: Some(absolute(path, cx)),
                ..config::Encryption::default()
            }),
            ..config::Repository::at(location)
        }],
        several_clusters: false,
    })
}

/// A file that exists is never changed: what the command line says besides must agree with it.
fn wanted_by_file(
    args: &Args,
    pgdata: Option<PathBuf>,
    flags: &Flags,
    cx: &Context,
) -> Result<Wanted> {
    let settings = Settings::load(flags, &cx.environment)?;
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
    let cluster = settings.cluster()?;
    if let (Some(flag), Some(file)) = (&pgdata, &cluster.pgdata)
        && flag != file
    {
        return Err(differs(
            format!("names another data directory: \"{}\"", file.display()),
            format!("pgdata = \"{}\"", flag.display()),
        ));
    }
    if let (Some(flag), Some(file)) = (&args.conninfo, &cluster.conninfo)
        && flag != file.expose()
    {
        // Neither is shown: there may be a password in it.
        return Err(differs(
            "has another conninfo".to_owned(),
            "the conninfo of the command line".to_owned(),
        ));
    }
    let mut repositories = settings.repositories.clone();
    if let Some(wanted) = cx.global.repository.as_deref() {
        let is_wanted = |r: &config::Repository| match Location::looks_like_one(wanted) {
            true => Location::from_argument(wanted).is_ok_and(|l| l == r.location),
            false => r.name == wanted,
        };
        repositories.retain(is_wanted);
    }
    if let Some(flag) = args.key_set.as_deref().map(|p| absolute(p, cx)) {
        let own = |r: &config::Repository| r.encryption.as_ref()?.key_set.clone();
        if !repositories.iter().any(|r| own(r).as_ref() == Some(&flag)) {
            return Err(differs(
                "does not name this key set".to_owned(),
                format!(
                    "[repositories.NAME.encryption] with key_set = \"{}\"",
                    flag.display()
                ),
            ));
        }
    }
    if repositories.is_empty() {
        let url = cx
            .global
            .repository
            .as_deref()
            .unwrap_or("file:///absolute/path");
        return Err(differs(
            "does not name the repository".to_owned(),
            format!("[repositories.NAME] with url = \"{}\"", url.escape_debug()),
        ));
    }
    Ok(Wanted {
        config,
        config_exists: true,
        cluster: cluster.name,
        pgdata: pgdata.or(cluster.pgdata),
        conninfo: args
            .conninfo
            .clone()
            .or_else(|| cluster.conninfo.map(|c| c.expose().to_owned())),
        repositories,
        several_clusters: settings.clusters.len() > 1,
    })
}

fn absolute(path: &Path, cx: &Context) -> PathBuf {
    let path = cx.environment.absolute(path);
    // "..", which a configuration cannot hold, is resolved here; other links stay as the operator wrote them.
    let has_parent = path
        .components()
        .any(|c| c == std::path::Component::ParentDir);
    match has_parent {
        true => std::fs::canonicalize(&path).unwrap_or(path),
        false => path.components().collect(),
    }
}

/// Writes the configuration file unless there is one; never over one that came meanwhile.
fn write_config(
    wanted: &Wanted,
    identity: &Identity,
    server: &ServerUser,
    cx: &Context,
) -> Result<bool> {
    if wanted.config_exists {
        return Ok(false);
    }
    let failed = |e| {
        Error::from_io(
            format!("write configuration file \"{}\"", wanted.config.display()),
            e,
        )
    };
    let mut ours = Vec::new();
    if let Some(parent) = wanted.config.parent() {
        ours = missing_ancestors(parent);
        for directory in &ours {
            std::fs::create_dir(directory).map_err(failed)?;
            durable::sync_directory_at(directory.parent().unwrap_or(parent)).map_err(failed)?;
        }
    }
    let text = config_text(wanted, identity);
    if durable::write_new(&wanted.config, text.as_bytes(), cx.random()).map_err(failed)?
        == Published::Exists
    {
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
        text.push_str(&format!(
            "pgdata   = {}\n",
            string(&pgdata.to_string_lossy())
        ));
    }
    match &identity.conninfo {
        Some(conninfo) => text.push_str(&format!("conninfo = {}\n", string(conninfo))),
        None => text.push_str("# conninfo = \"host=/run/postgresql user=postgres\"   # needed by pitr backup and pitr doctor\n"),
    }
    text.push_str("# max_backup_age = \"26h\"   # pitr info and pitr doctor are critical when the newest backup is older\n");
    for repository in &wanted.repositories {
        text.push_str(&format!(
            "\n[repositories.{}]\nurl = {}\n",
            repository.name,
            string(&repository.location.to_string())
        ));
        let encryption = repository.encryption.as_ref();
        if let Some(path) = encryption.and_then(|e| e.key_set.as_ref()) {
            text.push_str(&format!(
                "\n[repositories.{}.encryption]\nkey_set = {}\n",
                repository.name,
                string(&path.to_string_lossy())
            ));
        }
    }
    text
}
