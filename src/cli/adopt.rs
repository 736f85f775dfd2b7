//! `pitr adopt`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard;
use crate::config::{self, ClusterName, Settings};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::rival::{self, is_same};
use crate::restore::adopt::{self, Adopted};

/// Let a restored copy archive
///
/// A restored copy must not write into the archive it came from. Adopting it says that it is the cluster from now on, or, with --as,
/// a cluster of its own under a new name: take a full backup of that one. A copy whose timeline another server has taken in the repository is
/// refused. While a server of the cluster still runs, in the configured data directory or at the configured conninfo, the copy is adopted only
/// with --confirm: both would archive under one name. On a directory that is no restored copy there is nothing to do, which is said, with exit status 0.
///
/// Example: pitr adopt --pgdata /var/lib/postgresql/17/restored --as staging
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data directory of the copy; the configured one without it
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,

    /// Archive under this new cluster name
    #[arg(long = "as", value_name = "NAME")]
    pub new_name: Option<String>,

    /// Adopt the copy although a server of the cluster still runs
    #[arg(long)]
    pub confirm: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    pgdata: String,
    cluster: Option<&'a str>,
    was_guarded: bool,
    settings_removed: Vec<&'a str>,
    recovery_pending: bool,
    recorded_in: &'a [String],
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let new_name: Option<ClusterName> = args.new_name.as_deref().map(str::parse).transpose()?;
    let settings = cx.session.settings()?;
    let configured = settings.cluster_if_named()?;
    let pgdata = match (&args.pgdata, &configured) {
        (Some(pgdata), _) => cx.session.environment.absolute(pgdata),
        (None, Some(cluster)) => cluster.pgdata.clone().ok_or_else(|| {
            err!(Config, "cluster \"{}\" has no pgdata", cluster.name).hint("Add --pgdata DIR.")
        })?,
        (None, None) => {
            return Err(err!(Usage, "no data directory is named").hint("Add --pgdata DIR."));
        }
    };
    let directory = DataDirectory::at(&pgdata);
    let repositories: Vec<_> = settings
        .repositories
        .iter()
        .map(|r| (cx.session.open(r), r.required))
        .collect();
    let host = &cx.session.host;
    let name = configured.as_ref().map(|c| c.name.as_str());
    if let Some(cluster) = &configured
        && new_name.is_none()
        && directory.wal().join(GUARD).exists()
        && let Some(control) = directory.control()?
    {
        let copy = (directory.path(), control.system_identifier);
        rival::check(&cx.session, copy, cluster, args.confirm)?;
    }
    let adopted = adopt::adopt(
        &directory,
        name,
        new_name.as_ref().map(ClusterName::as_str),
        &repositories,
        &host,
    )?;
    let old = adopted.guard.as_ref().map(|g| g.cluster.as_str()).or(name);
    let cluster = args.new_name.as_deref().or(old);
    if cx.out.is_json() {
        cx.out.json(&Shown {
            pgdata: pgdata.display().to_string(),
            cluster,
            was_guarded: adopted.was_guarded,
            settings_removed: adopted.removed.iter().map(|s| s.name.as_str()).collect(),
            recovery_pending: adopted.recovery_pending,
            recorded_in: &adopted.recorded_in,
        })?;
        return Ok(exit::SUCCESS);
    }
    let report = Report {
        pgdata: &pgdata,
        cluster: cluster.unwrap_or("the cluster"),
        is_renamed: args.new_name.is_some(),
        adopted: &adopted,
        settings: &settings,
        configured: configured.as_ref(),
    };
    report.print(cx)?;
    Ok(exit::SUCCESS)
}

/// What is said of an adopted copy.
struct Report<'a> {
    pgdata: &'a Path,
    cluster: &'a str,
    is_renamed: bool,
    adopted: &'a Adopted,
    settings: &'a Settings,
    configured: Option<&'a config::Cluster>,
}

impl Report<'_> {
    fn print(&self, cx: &Context) -> Result<()> {
        let (pgdata, cluster) = (self.pgdata.display(), self.cluster);
        let adopted = self.adopted;
        if !adopted.was_guarded && adopted.removed.is_empty() && !self.is_renamed {
            return cx.out.line(&format!(
                "nothing to do: {pgdata} is no restored copy, or it was adopted before. Nothing was changed"
            ));
        }
        match adopted.was_guarded {
            true => cx
                .out
                .line(&format!("{pgdata} is adopted as \"{cluster}\""))?,
            false => cx
                .out
                .line(&format!("{pgdata} has no guard: it may archive already"))?,
        }
        for setting in &adopted.removed {
            cx.out.line(&format!(
                "  removed from {}: {}",
                guard::AUTO_CONF,
                setting.line()?
            ))?;
        }
        if adopted.recovery_pending {
            cx.out
                .line("  the settings of recovery stay until it has ended")?;
        }
        cx.out.line("Next:")?;
        self.steps(cx)
            .iter()
            .try_for_each(|step| cx.out.line(&format!("  {step}")))
    }

    fn steps(&self, cx: &Context) -> Vec<String> {
        let cluster = self.cluster;
        let mut steps = Vec::new();
        if self.is_renamed {
            steps.push(format!(
                "set archive_command to call pitr-archive with --cluster {cluster}, and add [clusters.{cluster}] to the configuration"
            ));
        } else if let Some(old) = self.configured.and_then(|c| c.pgdata.as_deref())
            && !is_same(old, self.pgdata)
        {
            let file = self.settings.path.as_deref();
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
        steps.push("restart the server, so that archive_mode takes effect".into());
        if !self.is_renamed && self.configured.is_some_and(receives) {
            steps.push(format!(
                "pitr receive --create-slot{}: the replication slot of the old server is not in the copy",
                cx.session.options(Some(cluster))
            ));
        }
        steps.push(format!("pitr backup{}", cx.session.options(Some(cluster))));
        steps
    }
}

fn receives(cluster: &config::Cluster) -> bool {
    cluster.receive.slot.is_some() || cluster.receive.journal.is_some()
}
