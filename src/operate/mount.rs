//! A mounted restore for programs of the operator: it is there until it is stopped, and thrown away then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::clone;
use super::erasure;
use super::made_tablespaces;
use super::mount_point::MountPoint;
use super::mounted;
use super::restoring::Prepared;
use super::session::Session;
use super::target::AskedTarget;
use crate::error::Result;

/// How often the mount looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(100);
const DATA: &str = "data";
const TABLESPACES: &str = "tablespaces";

/// A data directory that is mounted.
#[derive(Serialize)]
pub struct Ready {
    /// The data directory.
    pub data: PathBuf,
    pub backup: String,
    /// The target in words.
    pub target: String,
    /// The line that starts a server there.
    pub start: String,
}

/// Mounts a moment on an empty directory, calls `ready`, and unmounts it when the operator wants to stop.
///
/// # Errors
/// Those of taking the mount point, of the plan and of [`mounted::with_mount`].
pub fn run(
    session: &Session,
    target: &AskedTarget,
    at: &Path,
    ready: impl FnOnce(&Ready) -> Result<()>,
) -> Result<()> {
    mounted::check_possible()?;
    let point = MountPoint::take(at)?;
    let made = point.make(DATA).and_then(|data| {
        let tablespaces = point.make(TABLESPACES)?;
        let prepared = clone::prepare(session, target, (&data, &tablespaces))?;
        let plan = prepared.plan()?;
        // The server is the operator's own.
        made_tablespaces::refuse(&prepared.made)?;
        erasure::warn_of_lacking(session, &prepared.opened, plan);
        let shown = Ready {
            data,
            backup: prepared.job.backup.to_string(),
            target: plan.target.target.to_string(),
            start: prepared.start_line().command,
        };
        attend(session, &prepared, point.path(), || ready(&shown))
    });
    // Only what was laid out and written through the mount: the directory was empty.
    clear(point.path());
    made
}

fn attend(
    session: &Session,
    prepared: &Prepared,
    root: &Path,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    mounted::with_mount(session, prepared, (root, false), |_| {
        ready()?;
        while !session.host.is_stopping() {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

fn clear(root: &Path) {
    for name in [DATA, TABLESPACES] {
        // A directory that cannot be removed costs room only, and no server starts on it.
        let _ = std::fs::remove_dir_all(root.join(name));
    }
}
