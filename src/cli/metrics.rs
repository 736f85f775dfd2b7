//! `pitr metrics`.

use std::path::PathBuf;

use super::Context;
use crate::config::Compat;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::exit;
use crate::operate::metrics;

/// Print metrics for Prometheus
///
/// Backups, archiving, recovery windows, gaps, drills and repositories, in the text format of Prometheus. Counts of attempts, successes and failures are those of this host:
/// the commands keep them in state_dir of the section "agent". A value that is not known has no series. The names are in docs/metrics.md.
///
/// With --textfile the file is replaced as a whole, for the textfile collector of node_exporter. When no repository answers, the series that they would tell are
/// missing, and the exit status is that of pitr info. When one of several does not, its series are missing, standard error tells why, and the exit status is 0.
///
/// With --compat dashboards and rules that were made for other tools go on working. There is a series for each backup then.
///
/// Example: pitr metrics --textfile /var/lib/prometheus/node-exporter/pitr.prom
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Replace this file instead of printing
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,

    /// Give what is known the names of other exporters, too: pgbackrest, barman, cnpg, walg, postgres_exporter, with commas between; else those of metrics_compat
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub compat: Vec<Compat>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if cx.is_json() {
        return Err(err!(Usage, "metrics have no JSON: pitr info --json has it"));
    }
    let metrics = metrics::collect(&cx.session, &args.compat)?;
    match &args.textfile {
        None => cx.raw(&metrics.text)?,
        Some(path) => {
            let path = cx.session.environment.absolute(path);
            let written =
                durable::replace_readable(&path, metrics.text.as_bytes(), cx.session.host.random());
            written.map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
        }
    }
    if let Some(e) = metrics.failed.or(metrics.uncounted) {
        return Err(e);
    }
    match metrics.info {
        Some(info) => cx.told(info.failures).map(|_| exit::SUCCESS),
        None => Ok(exit::SUCCESS),
    }
}
