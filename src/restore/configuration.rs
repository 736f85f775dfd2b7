//! The configuration that came with a backup, read from the backup itself, with what it includes.
//!
//! Files outside of the data directory are not in the backup. The files of that name on this host may be those of the
//! original server, and say nothing about the backup. The restore reports them as not looked at. Links are not
//! restored, so nothing lies behind them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::extract::Survey;
use super::settings::Brought;
use super::target_dir::Target;
use crate::archive::guard::AUTO_CONF;
use crate::archive::server_conf::{Configuration, Files, Look};
use crate::error::Result;
use crate::snapshot::filekey::FileKey;
use crate::snapshot::layer::Metadata;
use crate::snapshot::reader::Snapshot;

/// Configuration files are read up to this size.
const CONF_LIMIT_BYTES: usize = 16 << 20;

/// Reads what came along.
///
/// # Errors
/// `Damaged`.
pub fn brought(snapshot: &Snapshot<'_>, survey: &Survey, target: &Target) -> Result<Brought> {
    let auto = snapshot.read_file(AUTO_CONF, CONF_LIMIT_BYTES)?;
    let files = Packed {
        snapshot,
        survey,
        to: &target.data,
        auto: auto.as_deref(),
    };
    let mut configuration = Configuration::default();
    let has_main = configuration.add(Path::new("postgresql.conf"), &files)?;
    configuration.add(Path::new(AUTO_CONF), &files)?;
    let (has_hba, has_ident) = (files.has("pg_hba.conf")?, files.has("pg_ident.conf")?);
    Ok(Brought {
        configuration,
        has_main,
        has_hba,
        has_ident,
        has_auto: auto.is_some(),
        auto: auto.unwrap_or_default(),
        in_place_tablespaces: survey.has_in_place(target),
        has_subscriptions: survey.has_subscriptions,
    })
}

/// The files of a backup, by the paths that its configuration names.
struct Packed<'a> {
    snapshot: &'a Snapshot<'a>,
    survey: &'a Survey,
    to: &'a Path,
    /// Content of postgresql.auto.conf.
    auto: Option<&'a [u8]>,
}

impl Packed<'_> {
    fn has(&self, path: &str) -> Result<bool> {
        let found = self.metadata(Path::new(path))?;
        Ok(matches!(found, Some(Metadata::File { .. })))
    }

    /// Returns what the backup holds under a path; nothing under one that no backup can hold.
    fn metadata(&self, path: &Path) -> Result<Option<Metadata>> {
        let path = path.as_os_str().as_bytes();
        match FileKey::from_path(path, self.snapshot.naming()) {
            Ok(key) => self.snapshot.metadata(&key),
            Err(_) => Ok(None),
        }
    }

    /// The path relative to the data directory; `None` where it leads out of it.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let relative = if path.is_absolute() {
            path.strip_prefix(self.to).ok()?
        } else {
            path
        };
        let mut inside = PathBuf::new();
        for component in relative.components() {
            match component {
                Component::Normal(name) => inside.push(name),
                Component::CurDir => {}
                Component::ParentDir if inside.pop() => {}
                _ => return None,
            }
        }
        Some(inside)
    }
}

impl Files for Packed<'_> {
    fn read(&self, path: &Path) -> Result<Look<Vec<u8>>> {
        let Some(inside) = self.inside(path) else {
            return Ok(Look::Unseen);
        };
        if inside == Path::new(AUTO_CONF) {
            return Ok(self
                .auto
                .map_or(Look::Absent, |auto| Look::There(auto.to_vec())));
        }
        let Some(Metadata::File { .. }) = self.metadata(&inside)? else {
            return Ok(Look::Absent);
        };
        let Some(name) = inside.to_str() else {
            return Ok(Look::Unseen);
        };
        let found = self.snapshot.read_file(name, CONF_LIMIT_BYTES)?;
        Ok(found.map_or(Look::Absent, Look::There))
    }

    fn list(&self, directory: &Path) -> Result<Look<Vec<PathBuf>>> {
        let Some(inside) = self.inside(directory) else {
            return Ok(Look::Unseen);
        };
        let Some(Metadata::Directory { .. }) = self.metadata(&inside)? else {
            return Ok(Look::Absent);
        };
        let files = self.survey.configuration_files.iter();
        let files = files.map(|f| Path::new(std::ffi::OsStr::from_bytes(f)));
        let found: Vec<PathBuf> = files
            .filter(|f| f.parent() == Some(&inside))
            .map(Path::to_owned)
            .collect();
        Ok(Look::There(found))
    }
}
