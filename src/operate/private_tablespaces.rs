//! Tablespaces that a server in quarantine makes in directories of its own: they are mounted over those that WAL names, where this process has
//! a namespace and nobody else sees it.
//!
//! Replay makes a link to the directory that WAL names. Outside of the namespace the cluster's own files lie there, so the link is led to
//! the directory itself once recovery has ended. A checkpoint before keeps a crash from replaying the creation again.
//!
//! PostgreSQL: src/backend/commands/tablespace.c (`create_tablespace_directories`, `tblspc_redo`).

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::clone::namespace;
use super::made_tablespaces;
use super::quarantine::Quarantined;
use crate::config::Environment;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::mount::directory::{Bound, bind};
use crate::wal::tablespaces::Made;

const LINKS: &str = "pg_tblspc";
/// No number, so that PostgreSQL takes it for no tablespace.
const NEW: &[u8] = b"pitr.new";

/// Directories that lie over others as long as this lives.
#[derive(Default)]
pub struct PrivateTablespaces {
    /// By the directory that WAL names.
    own: BTreeMap<PathBuf, PathBuf>,
    _bound: Vec<Bound>,
}

/// Requires that directories can be mounted over those that WAL names.
///
/// # Errors
/// `Refused`.
pub fn check(made: &Made, environment: &Environment) -> Result<()> {
    if !namespace::is_inside(environment) {
        return made_tablespaces::refuse(made);
    }
    match made.iter().find(|(_, path)| !path.is_dir()) {
        None => Ok(()),
        Some((oid, path)) => Err(err!(
            Refused,
            "recovery to this moment makes tablespace {oid} in \"{}\", which is no directory that this user can see",
            path.display()
        )
        .hint("Nothing was started. A directory of the copy lies over it meanwhile, so make it, and leave it empty.")),
    }
}

impl PrivateTablespaces {
    /// Makes an empty directory for each, and mounts it over the one that WAL names.
    ///
    /// # Errors
    /// `Io`.
    pub fn mount(made: &Made, own: &dyn Fn(u32) -> PathBuf) -> Result<PrivateTablespaces> {
        let mut all = PrivateTablespaces::default();
        for (oid, path) in made {
            if all.own.contains_key(path) {
                continue;
            }
            let own = own(*oid);
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(true);
            let made = builder.create(&own);
            made.map_err(|e| Error::from_io(format!("make \"{}\"", own.display()), e))?;
            let bound = bind(&own, path).map_err(|e| {
                Error::from_io(format!("mount a directory over \"{}\"", path.display()), e)
            })?;
            all._bound.push(bound);
            all.own.insert(path.clone(), own);
        }
        Ok(all)
    }

    /// Leads the links of a data directory, whose server has recovered, to these directories.
    ///
    /// # Errors
    /// `Server`, `Io`.
    pub fn lead(&self, server: &mut Quarantined, data: &Path) -> Result<()> {
        if self.own.is_empty() {
            return Ok(());
        }
        server.connect("template1")?.query("checkpoint")?;
        let links = data.join(LINKS);
        let failed = |e| Error::from_io(format!("lead the links in \"{}\"", links.display()), e);
        let directory = File::open(&links).map_err(failed)?;
        for entry in std::fs::read_dir(&links).map_err(failed)? {
            let link = entry.map_err(failed)?.path();
            let Some(own) = std::fs::read_link(&link)
                .ok()
                .and_then(|to| self.own.get(&to))
            else {
                continue;
            };
            let name = link.file_name().unwrap_or_default().as_encoded_bytes();
            durable::link_to(directory.as_fd(), NEW, own)
                .and_then(|()| {
                    durable::move_over((directory.as_fd(), NEW), (directory.as_fd(), name))
                })
                .map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }
}
