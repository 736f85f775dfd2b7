//! A data set put back as a directory that a server loads.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Stored, find, on_way};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::redis::directory::{CONFIGURATION, Plan, Take};
use crate::redis::member::{AOF, BGSAVE, Member, PSYNC};
use crate::redis::program::{self, Installed};
use crate::redis::route::{self, Route, Target};
use crate::redis::version::{Loads, ServerVersion};
use crate::repo::id::BackupId;
use crate::restore::content;

/// The operator's request.
pub struct Asked<'a> {
    /// Name of the data set.
    pub name: &'a str,
    /// The directory: empty, or not there yet.
    pub to: &'a Path,
    /// The backup; none: the newest.
    pub backup: Option<&'a BackupId>,
    /// The moment to which the log is replayed upon it; none: none of it is.
    pub target: Option<Target>,
    /// The server that loads it keeps keys whose time is over.
    pub as_replica: bool,
    /// The version of the server that shall load it; none: the one on the search path.
    pub server_version: Option<&'a str>,
    /// Nothing is written.
    pub is_dry_run: bool,
}

/// A data set that was put back, or would be.
pub struct Restored {
    pub id: BackupId,
    /// The repository that gave it.
    pub repository: String,
    /// The facts of its data set.
    pub member: Member,
    /// The log that is replayed upon it.
    pub route: Option<Route>,
    /// The directory, absolute.
    pub to: PathBuf,
    pub files: Vec<PathBuf>,
    /// The version of the server for which it is made; none where none is known, and it is made for that of the source.
    pub target: Option<ServerVersion>,
    /// Whether a program of the server's family found the files good; else why none looked.
    pub checked: std::result::Result<(), String>,
    /// The command that starts a server with it.
    pub start: String,
}

/// Puts a data set into a directory.
///
/// # Errors
/// `Refused` when the directory is not empty, or the server cannot load the data set: nothing was written. `Usage`, `NotFound`; `Damaged` when the backup is,
/// or a check of what was written failed; those of the system.
pub fn run(session: &Session, asked: &Asked<'_>) -> Result<Restored> {
    let to = session.environment.absolute(asked.to);
    if to.exists() {
        content::check_empty(&to)?;
    }
    let (stored, route) = match &asked.target {
        Some(target) => {
            let (stored, route) = on_way(session, asked.name, asked.backup, target)?;
            (stored, Some(route))
        }
        None => (find(session, asked.name, asked.backup)?, None),
    };
    let member = &stored.member;
    let source = member.server()?;
    if ![PSYNC, BGSAVE, AOF].contains(&member.method.as_str()) {
        return Err(err!(
            Unsupported,
            "backup \"{}\" was taken by \"{}\"",
            stored.backup.id,
            member.method.escape_debug()
        )
        .hint("Nothing was written.\nUse the version of pitr that took it, or a newer one."));
    }
    let installed = program::find(session.environment.get("PATH"), source.flavor);
    let target = target(asked, &source, installed.as_ref())?;
    check_loads(target.as_ref(), member, &source)?;
    let plan = Plan {
        member,
        target: target.as_ref().unwrap_or(&source),
        to: &to,
        as_replica: asked.as_replica,
    };
    let checker = checker(&plan, &source, installed.as_ref());
    if !asked.is_dry_run {
        write(session, &stored, &plan, route.as_ref())?;
        if let Ok(program) = &checker {
            session.host.progress.phase("check the files", None);
            let mut tick = || session.host.check_stop();
            program::check_aof(program, &plan.checked_file(), &mut tick)?;
        }
    }
    let checked = checker.map(|_| ());
    let server = format!("{}-server", plan.target.flavor.name());
    Ok(Restored {
        files: plan.files(),
        start: format!("{server} {} --port 6379", to.join(CONFIGURATION).display()),
        id: stored.backup.id,
        repository: stored.backup.configured.name,
        member: stored.member,
        route,
        to,
        target,
        checked,
    })
}

/// The version of the server that shall load the data set: the one that is named, else the one that is installed.
fn target(
    asked: &Asked<'_>,
    source: &ServerVersion,
    installed: Option<&Installed>,
) -> Result<Option<ServerVersion>> {
    match asked.server_version {
        Some(text) => ServerVersion::named(text, source.flavor).map(Some),
        None => Ok(installed.map(|i| i.version.clone())),
    }
}

fn check_loads(
    target: Option<&ServerVersion>,
    member: &Member,
    source: &ServerVersion,
) -> Result<()> {
    let version = member.rdb_version;
    match target.map(|target| (target, target.loads(version, source))) {
        Some((target, Loads::No)) => Err(err!(
            Refused,
            "{target} cannot load RDB version {version}, which {source} wrote"
        )
        .hint(format!(
            "Nothing was written.\nLoad it with {source} or a newer one of its family, and name that version where it is not the one of this host: --server-version \"{} {}\"",
            source.flavor.name(),
            source.text()
        ))),
        _ => Ok(()),
    }
}

/// The program that checks the files, or why there is none.
fn checker(
    plan: &Plan<'_>,
    source: &ServerVersion,
    installed: Option<&Installed>,
) -> std::result::Result<PathBuf, String> {
    let Some(installed) = installed else {
        return Err("no redis-check-aof or valkey-check-aof is on the search path".to_owned());
    };
    let version = &installed.version;
    let can_read = version.loads(plan.member.rdb_version, source) == Loads::Yes;
    if !can_read || version.has_directory() != plan.target.has_directory() {
        return Err(format!(
            "the programs on the search path are those of {version}"
        ));
    }
    let none = || format!("{version} has no check-aof beside its server");
    installed.check_aof.clone().ok_or_else(none)
}

/// Makes a directory for the server's account alone.
///
/// # Errors
/// Those of [`content::not_made`].
pub(super) fn make(directory: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(directory);
    made.map_err(|e| content::not_made(directory, e))
}

fn write(session: &Session, stored: &Stored, plan: &Plan<'_>, route: Option<&Route>) -> Result<()> {
    let is_new = !plan.to.exists();
    if is_new {
        make(plan.to)?;
    }
    let host = &session.host;
    let bytes = Some(plan.member.bytes());
    host.progress.phase("write the data set", bytes);
    let (repository, scope) = (&stored.backup.repository, &stored.backup.scope);
    let log = |out: Take<'_>| match route {
        Some(route) => route::read(repository, scope, route, out),
        None => Ok(()),
    };
    let written = stored.backup.read(session, |open| {
        plan.write(open.snapshot, &log, (host, open.tick))
    });
    if written.is_err() && is_new {
        // The error that made it stop is the one to be told.
        let _ = std::fs::remove_dir(plan.to);
    }
    written?;
    let parent = plan.to.parent().unwrap_or(plan.to);
    durable::sync_directory_at(parent)
        .map_err(|e| Error::from_io(format!("sync directory \"{}\"", parent.display()), e))
}
