//! `pitr doctor`.
//!
//! Every finding has a value, and where something is wrong a cause and the command that helps. What cannot be looked at is itself a
//! finding: nothing passes in silence. Looks only, apart from two files that it tries in each repository and removes again.

use std::path::Path;

use serde::Serialize;

use super::owner::{Access, User};
use super::{Context, target};
use crate::archive::datadir::DataDirectory;
use crate::config::{Cluster, Settings};
use crate::error::{Error, Result};
use crate::exit;

mod archiver;
mod loss;
mod receiver;
mod recipients;
mod repository;
mod server;

/// Check every link of the chain; say cause and fix
///
/// Looks at the server's settings, its archiver and the receiver's slot, the rights of the role, the repositories, clock and space. Exit status: 0 well, 6
/// warnings, 1 critical.
///
/// Example: pitr doctor --json
#[derive(clap::Args, Debug)]
pub struct Args {}

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    group: &'static str,
    name: String,
    level: Level,
    value: String,
    cause: Option<String>,
    fix: Option<String>,
}

/// What was found so far, in the order in which it is shown.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    group: &'static str,
}

impl Findings {
    fn begin(&mut self, group: &'static str) {
        self.group = group;
    }

    fn ok(&mut self, name: &str, value: impl Into<String>) {
        self.add(Level::Ok, name, value.into(), None, None);
    }

    fn warn(
        &mut self,
        name: &str,
        value: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(
            Level::Warn,
            name,
            value.into(),
            Some(cause.into()),
            Some(fix.into()),
        );
    }

    fn fail(
        &mut self,
        name: &str,
        value: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(
            Level::Fail,
            name,
            value.into(),
            Some(cause.into()),
            Some(fix.into()),
        );
    }

    fn error(&mut self, name: &str, error: &Error) {
        let fix = error.hint_text().unwrap_or_default().replace('\n', " ");
        self.fail(name, exit::name(error.code()), error.to_string(), fix);
    }

    /// The server that was connected to has its data directory elsewhere: nothing is lost, the configuration is wrong.
    fn is_elsewhere(&mut self, before_server: usize, served: &Path) {
        let mut configured = self.all.iter_mut().take(before_server);
        if let Some(gone) = configured.find(|f| f.name == "pgdata" && f.level == Level::Fail) {
            let served = served.display();
            gone.cause = Some(format!(
                "the server that conninfo leads to has its data directory in \"{served}\""
            ));
            gone.fix = Some(format!("set pgdata = \"{served}\", or correct conninfo"));
        }
    }

    fn add(
        &mut self,
        level: Level,
        name: &str,
        value: String,
        cause: Option<String>,
        fix: Option<String>,
    ) {
        let fix = fix.filter(|f| !f.is_empty());
        self.all.push(Finding {
            group: self.group,
            name: name.to_owned(),
            level,
            value,
            cause,
            fix,
        });
    }
}

/// Runs the command.
pub fn run(_args: &Args, cx: &Context) -> Result<u8> {
    let settings = cx.settings()?;
    let cluster = settings.cluster_if_named()?;
    let mut found = Findings::default();
    configuration(&mut found, &settings, cluster.as_ref());
    let before_server = found.all.len();
    let mut seen = server::Seen::default();
    if let Some(cluster) = &cluster {
        seen = server::look(&mut found, &settings, cluster, cx);
    }
    let pgdata = cluster
        .as_ref()
        .and_then(|c| c.pgdata.clone())
        .or(seen.pgdata.clone());
    if let Some(served) = &seen.pgdata {
        found.is_elsewhere(before_server, served);
    }
    let is_gone = pgdata.as_deref().is_some_and(is_gone);
    if let Some(pgdata) = pgdata.as_deref().filter(|_| !is_gone) {
        archiver::look(&mut found, pgdata, &seen, cx);
        if let Some(cluster) = &cluster {
            archiver::spool(&mut found, cluster, &settings, pgdata);
            archiver::hung(&mut found, cluster, pgdata, cx);
            archiver::blocked(&mut found, cluster, pgdata, cx);
        }
    }
    let opened = repository::look(
        &mut found,
        &settings,
        cluster.as_ref(),
        pgdata.as_deref(),
        &seen,
        cx,
    );
    if let Some(cluster) = cluster.as_ref().filter(|_| is_gone || seen.is_silent) {
        loss::look(&mut found, &opened, &settings, cluster, cx);
    }
    report(&found.all, cx)
}

/// Whether a data directory is not there, as opposed to out of our reach.
fn is_gone(pgdata: &Path) -> bool {
    let found = std::fs::symlink_metadata(pgdata.join("PG_VERSION"));
    found.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn configuration(found: &mut Findings, settings: &Settings, cluster: Option<&Cluster>) {
    found.begin("configuration");
    match &settings.path {
        Some(path) => found.ok("file", path.display().to_string()),
        None => found.ok("file", "none is needed with --repository"),
    }
    let Some(cluster) = cluster else {
        found.warn(
            "cluster",
            "none",
            "only the repository can be looked at",
            "name the cluster in the configuration file: pitr init",
        );
        return;
    };
    found.ok("cluster", cluster.name.as_str());
    let zone = cluster.timezone.as_deref().map(target::configured_zone);
    if let Some(Err(e)) = zone {
        found.fail(
            "timezone",
            "not known",
            e.to_string(),
            "name a zone of the tz database, such as Europe/Berlin: without one no time of a target can be read",
        );
    }
    let Some(pgdata) = &cluster.pgdata else {
        found.warn(
            "pgdata",
            "not set",
            "pg_wal cannot be looked at from here",
            format!("add pgdata to [clusters.{}]", cluster.name),
        );
        return;
    };
    if is_gone(pgdata) {
        found.fail(
            "pgdata",
            pgdata.display().to_string(),
            "there is no data directory",
            "mount its disk, or set pgdata to where it is; if it is lost: pitr info, pitr plan, pitr restore --to DIR",
        );
        return;
    }
    match DataDirectory::at(pgdata).check_guard() {
        Ok(()) => found.ok("pgdata", pgdata.display().to_string()),
        Err(e) => found.error("pgdata", &e),
    }
    // The archiver reads the file as the owner of the data directory.
    let blocked = settings.path.as_deref().and_then(|config| {
        let user = User::owner_of(pgdata).ok()?;
        Some((user.kept_out_by(config, Access::Read)?, user.name()))
    });
    if let Some((at, user)) = blocked {
        found.fail(
            "readable by the server",
            "no",
            format!("user \"{user}\" is kept out by \"{}\"", at.display()),
            format!(
                "give the file to that user, or move it to /etc/pitr/pitr.toml: chown {user} {}",
                at.display()
            ),
        );
    }
}

fn report(findings: &[Finding], cx: &Context) -> Result<u8> {
    let worst = findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    if cx.out.is_json() {
        cx.out
            .json(&serde_json::json!({ "state": worst, "findings": findings }))?;
    } else {
        let width = findings
            .iter()
            .map(|f| f.name.chars().count())
            .max()
            .unwrap_or(0);
        let mut group = "";
        for finding in findings {
            if finding.group != group {
                group = finding.group;
                cx.out.line(group)?;
            }
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            cx.out.line(&format!(
                "  {level:4}  {:width$}  {}",
                finding.name, finding.value
            ))?;
            if let Some(cause) = &finding.cause {
                cx.out.line(&format!("        cause: {cause}"))?;
            }
            if let Some(fix) = &finding.fix {
                cx.out.line(&format!("        fix:   {fix}"))?;
            }
        }
    }
    Ok(match worst {
        Level::Ok => exit::SUCCESS,
        Level::Warn => exit::WARNINGS,
        Level::Fail => exit::CRITICAL,
    })
}
