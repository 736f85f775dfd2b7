//! The adoption of a restored copy: it is the cluster from now on, or a cluster of its own.

use std::path::{Path, PathBuf};

use super::rival::{self, is_same};
use super::session::Session;
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard;
use crate::config::{self, ClusterName, Settings};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::conf;
use crate::process;
use crate::restore::adopt::{self, Adopted};

/// A copy that was adopted.
pub struct Adoption {
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The name under which it archives.
    pub cluster: Option<String>,
    /// Whether that is a new one.
    pub is_renamed: bool,
    /// The report of what was done.
    pub adopted: Adopted,
    /// The operator's next steps.
    pub next: Vec<String>,
}

impl Adoption {
    /// Whether the settings of the directory keep its server from archiving.
    pub fn is_archiving_off(&self) -> bool {
        let text = guard::read_limited(&self.pgdata.join(guard::AUTO_CONF));
        let text = text.ok().flatten().unwrap_or_default();
        conf::is_off(conf::value_of(&text, "archive_mode").as_deref())
    }
}

/// Lets the copy in `pgdata` archive, else that in the configured directory; under a new name where one is given.
///
/// # Errors
/// `Usage` without a directory; `Refused` for a copy of another cluster than the one that is named, and while a server of the cluster runs, unless
/// that is confirmed; those of [`adopt::adopt`].
pub fn run(
    session: &Session,
    pgdata: Option<&Path>,
    new_name: Option<&ClusterName>,
    is_confirmed: bool,
) -> Result<Adoption> {
    let settings = session.settings()?;
    let (pgdata, configured) = match pgdata {
        Some(pgdata) => (
            session.environment.absolute(pgdata),
            settings.cluster_if_named(),
        ),
        None => {
            let configured = settings.cluster_if_named()?;
            (pgdata_of(configured.as_ref())?, Ok(configured))
        }
    };
    let directory = DataDirectory::at(&pgdata);
    let repositories: Vec<_> = settings
        .repositories
        .iter()
        .map(|r| (session.open(r), r.required))
        .collect();
    // The adoption itself says what is wrong with a guard.
    let guard = guard::read(&directory).ok().flatten();
    let is_told = guard.is_some();
    let origin = guard.filter(|_| new_name.is_none());
    let origin = origin.map(|guard| guard.cluster);
    check_named(session, &pgdata, origin.as_deref())?;
    let configured = match configured {
        // The copy itself tells its cluster, which need not be configured here.
        Err(e) if e.code() == Code::Usage && is_told => None,
        configured => configured?,
    };
    let name = configured.as_ref().map(|c| c.name.as_str());
    let of_copy = of_copy(&settings, configured.as_ref(), origin.as_deref());
    // Elsewhere a server of the copy's identifier is a rival, too: without a name of its own the copy archives as that cluster.
    let places: Vec<&config::Cluster> = match of_copy.or(configured.as_ref()) {
        _ if new_name.is_some() => Vec::new(),
        Some(cluster) => vec![cluster],
        None => settings.clusters.iter().collect(),
    };
    for cluster in places {
        let name = origin.as_deref().unwrap_or(cluster.name.as_str());
        check_rival(session, &directory, (name, cluster), is_confirmed)?;
    }
    let new_name = new_name.map(ClusterName::as_str);
    let adopted = adopt::adopt(&directory, name, new_name, &repositories, &session.host)?;
    let old = adopted.guard.as_ref().map(|g| g.cluster.as_str()).or(name);
    let cluster = new_name.or(old).map(str::to_owned);
    let steps = Steps {
        pgdata: &pgdata,
        cluster: cluster.as_deref().unwrap_or("the cluster"),
        is_renamed: new_name.is_some(),
        settings: &settings,
        configured: of_copy,
        is_section_missing: of_copy.is_none() && !settings.clusters.is_empty(),
    };
    Ok(Adoption {
        next: steps.all(session),
        is_renamed: new_name.is_some(),
        cluster,
        adopted,
        pgdata,
    })
}

/// Requires that no server of the configured cluster is a rival of a copy that is to archive under `name`.
fn check_rival(
    session: &Session,
    directory: &DataDirectory,
    (name, cluster): (&str, &config::Cluster),
    is_confirmed: bool,
) -> Result<()> {
    if !directory.wal().join(GUARD).exists() {
        return Ok(());
    }
    let Some(control) = directory.control()? else {
        return Ok(());
    };
    let copy = rival::Newcomer {
        path: directory.path(),
        identifier: control.system_identifier,
        name,
    };
    rival::check(session, &copy, cluster, is_confirmed)
}

/// The configured data directory.
fn pgdata_of(configured: Option<&config::Cluster>) -> Result<PathBuf> {
    let Some(cluster) = configured else {
        return Err(err!(Usage, "no data directory is named").hint("Add --pgdata DIR."));
    };
    cluster.pgdata.clone().ok_or_else(|| {
        err!(Config, "cluster \"{}\" has no pgdata", cluster.name).hint("Add --pgdata DIR.")
    })
}

/// Requires that the cluster that the operator names is that of the copy: servers of another one would be looked for.
fn check_named(session: &Session, pgdata: &Path, origin: Option<&str>) -> Result<()> {
    match (&session.flags.cluster, origin) {
        (Some(named), Some(origin)) if named != origin => Err(err!(
            Refused,
            "the copy in \"{}\" is of cluster \"{origin}\", and not of \"{named}\"",
            pgdata.display()
        )
        .hint(format!(
            "Nothing was changed. Add --cluster {origin} to adopt it as that; --as NAME makes it a cluster of its own."
        ))),
        _ => Ok(()),
    }
}

/// The configured cluster of which the copy is. Another one says nothing about it, also where it is the only one; without a
/// guard that tells, it is the one that is named.
fn of_copy<'a>(
    settings: &'a Settings,
    configured: Option<&'a config::Cluster>,
    origin: Option<&str>,
) -> Option<&'a config::Cluster> {
    let Some(origin) = origin else {
        return configured;
    };
    let mut known = settings.clusters.iter().chain(configured);
    known.find(|cluster| cluster.name.as_str() == origin)
}

/// The facts on which the steps after an adoption depend.
struct Steps<'a> {
    pgdata: &'a Path,
    cluster: &'a str,
    is_renamed: bool,
    settings: &'a Settings,
    configured: Option<&'a config::Cluster>,
    /// Whether other clusters are configured, and that of the copy is not.
    is_section_missing: bool,
}

impl Steps<'_> {
    fn all(&self, session: &Session) -> Vec<String> {
        let cluster = self.cluster;
        let mut steps = Vec::new();
        let file = self.settings.path.as_deref();
        if self.is_renamed {
            steps.push(format!(
                "set archive_command to call pitr-archive with --cluster {cluster}, and add [clusters.{cluster}] to the configuration"
            ));
        } else if self.is_section_missing {
            let file = file.map_or("the configuration".into(), |f| f.display().to_string());
            steps.push(format!(
                "add [clusters.{cluster}] with pgdata = \"{}\" and conninfo to {file}",
                self.pgdata.display()
            ));
        } else if let Some(old) = self.configured.and_then(|c| c.pgdata.as_deref())
            && !is_same(old, self.pgdata)
        {
            let file = file.map_or_else(String::new, |f| format!(" of {}", f.display()));
            steps.push(format!(
                "set pgdata = \"{}\" in [clusters.{cluster}]{file}: it says \"{}\". Change conninfo, too, if the port or the socket is another",
                self.pgdata.display(),
                old.display()
            ));
            steps.push(format!(
                "make sure that no server starts on \"{}\" again: it would archive under the same name",
                old.display()
            ));
        }
        let server = DataDirectory::at(self.pgdata).server();
        steps.push(
            match server.is_some_and(|(pid, _)| process::is_alive(pid)) {
                true => "restart the server, so that archive_mode takes effect".into(),
                false => "start the server: it recovers, and archives from then on".into(),
            },
        );
        if !self.is_renamed && self.configured.is_some_and(receives) {
            steps.push(format!(
                "pitr receive --create-slot{}: the replication slot of the old server is not in the copy",
                session.options(Some(cluster))
            ));
        }
        steps.push(format!("pitr backup{}", session.options(Some(cluster))));
        steps
    }
}

fn receives(cluster: &config::Cluster) -> bool {
    cluster.receive.slot.is_some() || cluster.receive.journal.is_some()
}
