//! Looks at everything once: metrics and findings into files, and alerts to those who are to hear of them.

use std::path::{Path, PathBuf};

use super::{alert, observed};
use crate::durable;
use crate::error::{Error, Result};
use crate::operate::metrics;
use crate::operate::objectives_history;
use crate::operate::session::Session;

/// The file of metrics, below `state_dir`.
const FILE: &str = "metrics.prom";

/// The file that the agent serves.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Collects metrics, writes them and what else was found, and has alerts delivered.
///
/// # Errors
/// Those of [`metrics::collect`] and of the files.
pub fn observe(session: &Session, state_dir: &Path) -> Result<()> {
    let metrics = metrics::collect(session)?;
    let path = file(state_dir);
    durable::replace(&path, metrics.text.as_bytes(), session.host.random())
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
    let settings = session.settings()?;
    let conditions = alert::conditions(session, &settings, state_dir, &metrics)?;
    // A history or a page that cannot be written keeps nobody from being told.
    let noted = objectives_history::add(session, &settings, state_dir, metrics.info.as_ref());
    let written = observed::write(session, &settings, state_dir, (&metrics, &conditions));
    let told = alert::tell(session, &settings, state_dir, &conditions);
    noted.and(written).and(told)
}
