//! `pitr adopt`.

use std::path::PathBuf;

use super::Context;
use super::output::members;
use crate::archive::guard;
use crate::config::ClusterName;
use crate::error::Result;
use crate::operate::adopt::{self, Adoption};

/// Let a restored copy archive
///
/// A restored copy must not write into the archive it came from. Adopting it says that it is the cluster from now on, or, with --as,
/// a cluster of its own under a new name: take a full backup of that one. A copy whose timeline another server has taken in the repository is
/// refused. While a server of the cluster still runs, in the configured data directory or at the configured conninfo, the copy is adopted only
/// with --confirm: both would archive under one name. On a directory that is no restored copy the command says that there is nothing to do, and exits with 0.
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

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let new_name: Option<ClusterName> = args.new_name.as_deref().map(str::parse).transpose()?;
    let pgdata = args.pgdata.as_deref();
    let adoption = adopt::run(&cx.session, pgdata, new_name.as_ref(), args.confirm)?;
    let adopted = &adoption.adopted;
    let shown = members! {
        'a;
        pgdata: String = adoption.pgdata.display().to_string();
        cluster: Option<&'a str> = adoption.cluster.as_deref();
        was_guarded: bool = adopted.was_guarded;
        settings_removed: Vec<&'a str> = adopted.removed.iter().map(|s| s.name.as_str()).collect();
        recovery_pending: bool = adopted.recovery_pending;
        recorded_in: &'a [String] = &adopted.recorded_in;
    };
    cx.answered(&shown, || print(&adoption, cx))
}

fn print(adoption: &Adoption, cx: &Context) -> Result<()> {
    let (pgdata, adopted) = (adoption.pgdata.display(), &adoption.adopted);
    let cluster = adoption.cluster.as_deref().unwrap_or("the cluster");
    if !adopted.was_guarded && adopted.removed.is_empty() && !adoption.is_renamed {
        cx.line(&format!(
            "nothing to do: {pgdata} is no restored copy, or it was adopted before. Nothing was changed"
        ))?;
        // A replica that was made of a copy by pg_basebackup has the copy's setting, and not the guard in pg_wal.
        return match adoption.is_archiving_off() {
            true => cx.line(&format!(
                "It does not archive: {} has archive_mode = off. A replica that was made of a copy before that was adopted has it, too. To let it archive: alter system reset archive_mode, and a restart",
                guard::AUTO_CONF
            )),
            false => Ok(()),
        };
    }
    match adopted.was_guarded {
        true => cx.line(&format!("{pgdata} is adopted as \"{cluster}\""))?,
        false => cx.line(&format!("{pgdata} has no guard: it may archive already"))?,
    }
    for setting in &adopted.removed {
        cx.line(&format!(
            "  removed from {}: {}",
            guard::AUTO_CONF,
            setting.line()?
        ))?;
    }
    if adopted.recovery_pending {
        cx.line("  the settings of recovery stay until it has ended")?;
    }
    cx.line("Next:")?;
    cx.lines(adoption.next.iter().map(|step| format!("  {step}")))
}
