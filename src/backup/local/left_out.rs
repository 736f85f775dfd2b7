//! Databases of a data directory that lie there without content.

use std::path::Path;

use crate::archive::left_out::{self, MARKER, MARKER_LIMIT_BYTES};
use crate::err;
use crate::error::{Error, Result};
use crate::repo::root::cluster::LeftOutDatabase;
use crate::snapshot::filekey::ClusterNaming;

/// Returns the databases that the marker of a data directory names; none without a marker.
///
/// # Errors
/// `Damaged`, and those of the file.
pub fn marked(root: &Path) -> Result<Vec<LeftOutDatabase>> {
    use std::io::Read;
    let path = root.join(MARKER);
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut content = Vec::new();
    let limit = MARKER_LIMIT_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    match content.len() > MARKER_LIMIT_BYTES {
        true => Err(err!(Damaged, "\"{}\" is too large", path.display())),
        false => left_out::read(&content),
    }
}

/// Whether a database has a directory, in `base` or in a tablespace.
pub fn is_there(root: &Path, oid: u32, naming: &ClusterNaming, tablespaces: &[u32]) -> bool {
    let version = naming.version_directory();
    let spaces = tablespaces
        .iter()
        .map(|space| format!("pg_tblspc/{space}/{version}"));
    let mut folders = std::iter::once("base".to_owned()).chain(spaces);
    folders.any(|folder| root.join(folder).join(oid.to_string()).is_dir())
}
