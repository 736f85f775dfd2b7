//! `pitr mount`.

use std::path::PathBuf;

use super::Context;
use super::target::TargetArgs;
use crate::error::Result;
use crate::exit;
use crate::operate::mount::{self, Ready};

/// Show a moment as a data directory before anything is copied
///
/// Lays the restored data directory out below the empty directory DIR, mounts it there and stays until it is interrupted; then it is
/// unmounted, and what was written is thrown away. Files are read from the repository as programs ask for them. The data directory is
/// DIR/data, with the settings that pitr restore writes: a server started there replays to the target. For a server that is started and
/// kept apart by itself: pitr clone.
///
/// Example: pitr mount /mnt/noon --target-time "2026-03-01 12:00:00+01"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// An empty directory
    #[arg(value_name = "DIR")]
    pub at: PathBuf,

    #[command(flatten)]
    pub target: TargetArgs,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let target = args.target.parse()?;
    let at = cx.session.environment.absolute(&args.at);
    cx.stop_with_cleanup()?;
    mount::run(&cx.session, &target, &at, |ready| shown(ready, cx))?;
    Ok(exit::SUCCESS)
}

fn shown(ready: &Ready, cx: &Context) -> Result<()> {
    cx.answer(ready, || {
        cx.line(&format!(
            "mounted: {}, from backup {}\n\n  {}\n\nIt is there until this command ends (Ctrl-C), and thrown away then. Stop the server before.",
            ready.target, ready.backup, ready.start
        ))
    })
}
