//! The state of every link of the chain, as findings.
//!
//! Every finding has a value, and where something is wrong a cause and the command that helps. A link that cannot be
//! looked at is itself a finding: nothing passes in silence. Looks only, apart from two files that it tries in each
//! repository and removes again.

use std::path::Path;

use super::finding::{Finding, Findings, Level};
use super::owner::{Access, User};
use super::rival::is_same;
use super::roles::{self, Role};
use super::session::Session;
use super::target;
use crate::archive::datadir::DataDirectory;
use crate::config::{Cluster, Settings};
use crate::error::Result;

mod agent;
mod alerts;
mod archiver;
mod audit;
mod busiest_hour;
mod certificates;
mod content;
mod loss;
mod receiver;
mod recipients;
mod redis;
mod repository;
mod server;
mod sets;

/// Looks at every link of the chain: configuration, server, archiver, receiver, repositories.
///
/// # Errors
/// Those of the configuration; everything else is a finding.
pub fn doctor(session: &Session, role: Option<Role>) -> Result<Vec<Finding>> {
    let settings = session.settings()?;
    let cluster = settings.cluster_if_named()?;
    let mut found = Findings::default();
    configuration(&mut found, &settings, cluster.as_ref());
    let before_server = found.all.len();
    let mut seen = server::Seen::default();
    if let Some(cluster) = &cluster {
        seen = server::look(&mut found, &settings, cluster, session);
    }
    let configured = cluster.as_ref().and_then(|c| c.pgdata.as_deref());
    let before = found.all.get_mut(..before_server).unwrap_or_default();
    if let Some(served) = &seen.pgdata
        && !configured.is_some_and(|pgdata| is_same(pgdata, served))
    {
        is_elsewhere(before, served);
    }
    // Nothing of another cluster's directory tells of the server.
    let own = configured.filter(|pgdata| !is_foreign(before, pgdata, &seen));
    let pgdata = own.map(Path::to_owned).or(seen.pgdata.clone());
    let is_gone = pgdata.as_deref().is_some_and(is_gone);
    if let Some(pgdata) = pgdata.as_deref().filter(|_| !is_gone) {
        archiver::look(&mut found, pgdata, &seen, session);
        if let Some(cluster) = &cluster {
            archiver::spool(&mut found, cluster, &settings, pgdata);
            archiver::hung(&mut found, cluster, pgdata, session);
            archiver::blocked(&mut found, cluster, pgdata, session);
        }
    }
    let (of, at) = (cluster.as_ref(), pgdata.as_deref());
    let opened = repository::look(&mut found, &settings, of, at, &seen, session);
    let served = cluster.as_ref().zip(seen.major);
    content::look(&mut found, &opened, &settings, served, session);
    redis::look(&mut found, &settings, session);
    sets::look(&mut found, &settings, session);
    audit::look(&mut found, &settings, session);
    agent::look(&mut found, &settings, session);
    alerts::look(&mut found, &settings, session);
    certificates::look(&mut found, &settings, session);
    if let Some(role) = role {
        roles::look(&mut found, &settings, cluster.as_ref(), role, session);
    }
    if let Some(cluster) = cluster.as_ref().filter(|_| is_gone || seen.is_silent) {
        loss::look(&mut found, &opened, &settings, cluster, session);
    }
    Ok(found.all)
}

/// The server that was connected to has its data directory elsewhere: nothing is lost, the configuration is wrong.
fn is_elsewhere(before_server: &mut [Finding], served: &Path) {
    let mut configured = before_server.iter_mut();
    if let Some(gone) = configured.find(|f| f.name == "pgdata" && f.level == Level::Fail) {
        let served = served.display();
        gone.cause = Some(format!(
            "the server that conninfo leads to has its data directory in \"{served}\""
        ));
        gone.next = Some(format!("set pgdata = \"{served}\", or correct conninfo"));
    }
}

/// Returns the system identifiers of a data directory and of the server, where they are known and differ.
fn differing(pgdata: &Path, seen: &server::Seen) -> Option<(u64, u64)> {
    let head = DataDirectory::at(pgdata).control_head().ok().flatten()?;
    let (own, served) = (head.system_identifier, seen.system_identifier?);
    (own != served).then_some((own, served))
}

/// Whether the configured data directory is of another cluster than the server, by their system identifiers: then its finding fails.
fn is_foreign(before_server: &mut [Finding], pgdata: &Path, seen: &server::Seen) -> bool {
    let Some((own, served)) = differing(pgdata, seen) else {
        return false;
    };
    let mut configured = before_server.iter_mut();
    if let Some(finding) = configured.find(|f| f.name == "pgdata" && f.level != Level::Fail) {
        finding.level = Level::Fail;
        finding.cause = Some(format!(
            "it has system identifier {own}, and the server that conninfo leads to has {served}: they are two clusters"
        ));
        finding.next = Some(match &seen.pgdata {
            Some(place) => format!("set pgdata = \"{}\", or correct conninfo", place.display()),
            None => "correct pgdata or conninfo, so that both mean one cluster".to_owned(),
        });
    }
    true
}

/// Whether a data directory is not there, as opposed to out of our reach.
fn is_gone(pgdata: &Path) -> bool {
    let found = std::fs::symlink_metadata(pgdata.join("PG_VERSION"));
    found.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// Names the zones that the tz database does not have: that of times of the cluster, and those of all rules of retention.
fn zones(found: &mut Findings, settings: &Settings, cluster: Option<&Cluster>) {
    let mut check = |name: &str, zone: Option<&str>, means: &str| {
        if let Some(Err(e)) = zone.map(target::configured_zone) {
            let next = format!("name a zone of the tz database, such as Europe/Berlin: {means}");
            found.fail(name, "not known", e.to_string(), next);
        }
    };
    if let Some(cluster) = cluster {
        let means = "without one no time of a target can be read";
        check("timezone", cluster.timezone.as_deref(), means);
    }
    let rules = [("retention".to_owned(), &settings.retention)].into_iter();
    let clusters = settings.clusters.iter();
    let clusters = clusters.map(|c| (format!("clusters.{}.retention", c.name), &c.retention));
    let repositories = settings.repositories.iter();
    let repositories =
        repositories.map(|r| (format!("repositories.{}.retention", r.name), &r.retention));
    for (section, rules) in rules.chain(clusters).chain(repositories) {
        let means = "without one pitr expire deletes nothing by these rules";
        check(
            &format!("{section}.timezone"),
            rules.timezone.as_deref(),
            means,
        );
    }
}

fn configuration(found: &mut Findings, settings: &Settings, cluster: Option<&Cluster>) {
    found.begin("configuration");
    match &settings.path {
        Some(path) => found.ok("file", path.display().to_string()),
        None => found.ok("file", "none is needed with --repository"),
    }
    zones(found, settings, cluster);
    let Some(cluster) = cluster else {
        if settings.clusters.is_empty() && settings.contents().next().is_some() {
            return;
        }
        return found.warn(
            "cluster",
            "none",
            "only the repository can be looked at",
            "name the cluster in the configuration file: pitr init",
        );
    };
    found.ok("cluster", cluster.name.as_str());
    let Some(pgdata) = &cluster.pgdata else {
        return found.warn(
            "pgdata",
            "not set",
            "pg_wal cannot be looked at from here",
            format!("add pgdata to [clusters.{}]", cluster.name),
        );
    };
    if is_gone(pgdata) {
        return found.fail(
            "pgdata",
            pgdata.display().to_string(),
            "there is no data directory",
            "mount its disk, or set pgdata to where it is; if it is lost: pitr info, pitr plan, pitr restore --to DIR",
        );
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
