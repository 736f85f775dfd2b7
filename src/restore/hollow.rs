//! A restore without its content: directories, files in full length with holes, settings. A mount brings the content when it is read.
//!
//! Nothing is synced, and pg_control keeps its waiting name: to everybody else the directory is a restore that was not finished.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::claim::Claim;
use super::extract::{self, Survey};
use super::job::Job;
use super::target_dir::{CONTROL, Target, WAITING_CONTROL};
use super::tree::{Tree, write_error};
use super::{Source, finish, prepare};
use crate::archive::guard::AUTO_CONF;
use crate::archive::left_out::MARKER;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::mount::shadow::HollowFile;
use crate::pg::conf::Setting;
use crate::snapshot::reader::{Item, Snapshot};

const LABEL: &str = "backup_label";
/// Files that are read and written before the server starts: they are small, and there from the beginning.
const BROUGHT_AT_ONCE: [&str; 4] = [CONTROL, LABEL, AUTO_CONF, MARKER];
/// None of them is larger.
const SMALL_BYTES: usize = 1 << 20;

/// A directory that was laid out.
pub struct LaidOut {
    /// Files whose content is absent.
    pub files: Vec<HollowFile>,
    /// Settings written into postgresql.auto.conf.
    pub settings: Vec<Setting>,
}

/// Claims the backup, so that it is not deleted while it is read.
///
/// # Errors
/// Those of [`Claim::take`].
pub fn claim<'a>(source: &Source<'a>, job: &Job, host: &'a Host) -> Result<Option<Claim<'a>>> {
    let planned = Some(job.planned);
    Claim::take(source.store, source.layout, host, &job.backup, planned)
}

/// Makes the directory, whose target was checked and is empty.
///
/// # Errors
/// `Refused`, `TargetWrite`, `Full`; `Damaged` when the map or a small file fails its check.
pub fn lay_out(
    source: &Source<'_>,
    snapshot: &Snapshot<'_>,
    (job, target, survey): (&Job, &Target, &Survey),
    host: &Host,
) -> Result<LaidOut> {
    let group = survey.group;
    let destination = prepare(target, job, false, group, host)?;
    let mut files = Vec::new();
    let mut made = |item: &Item, tree: &Tree, relative: &[u8]| {
        let is_small = BROUGHT_AT_ONCE
            .iter()
            .any(|name| name.as_bytes() == item.path);
        if item.mapped_bytes > 0 && !is_small {
            files.push(HollowFile {
                key: item.key.clone(),
                path: tree.path().join(OsStr::from_bytes(relative)),
                length: item.metadata.file_length().unwrap_or(0),
            });
        }
    };
    let stop = &host.stop;
    extract::lay_out(snapshot, &destination, survey, false, stop, &mut made)?;
    let read = |name| snapshot.read_file(name, SMALL_BYTES);
    let control = match &survey.control {
        Some(control) => Some(control.clone()),
        None => read(CONTROL)?,
    };
    // The settings below are written with what postgresql.auto.conf had.
    for (name, content) in [
        (WAITING_CONTROL, control),
        (LABEL, read(LABEL)?),
        (MARKER, read(MARKER)?),
    ] {
        if let Some(content) = content {
            destination.data().put(name.as_bytes(), &content, group)?;
        }
    }
    finish::check_identity(&destination, source)?;
    finish::put_links(&destination, target)?;
    let settings = finish::put_settings(&destination, job, &survey.brought, host, group)?;
    Ok(LaidOut { files, settings })
}

/// Makes everything below `root` durable, and the data directory there, whose files are whole, one that a server can start on. Doing it twice
/// does no harm.
///
/// # Errors
/// `TargetWrite`.
pub fn commit(root: &Path, data: &Path) -> Result<()> {
    let failed = |e| write_error(&root.display().to_string(), e);
    let beneath = std::fs::File::open(root).map_err(failed)?;
    finish::sync_whole(beneath.as_fd()).map_err(failed)?;
    finish::commit_plain(&Tree::open(data, None)?)
}

/// Requires that a backup has all databases.
///
/// # Errors
/// `Refused`.
pub fn check_whole(source: &Source<'_>) -> Result<()> {
    match source.root.content.left_out_databases.first() {
        None => Ok(()),
        Some(one) => Err(err!(
            Refused,
            "backup \"{}\" has no content of database {one}: it is partial",
            source.root.head.id
        )
        .hint("Nothing was written. Choose another backup: --backup ID. pitr restore takes a partial one.")),
    }
}
