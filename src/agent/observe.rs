//! Looks at everything once: metrics and findings into files, and alerts to those who are to hear of them.

use std::path::{Path, PathBuf};

use super::alert::{self, Notices, condition};
use super::load::Loaded;
use super::observed;
use crate::error::Result;
use crate::fault;
use crate::operate::metrics;
use crate::operate::objectives_history;
use crate::operate::session::Session;

/// The file of metrics, below `state_dir`.
const FILE: &str = "metrics.prom";

/// The file that the agent serves.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Collects metrics, writes them and what else was found, calls `looked`, and has alerts delivered, unless the look before still delivers. A failure to write is
/// a condition: it keeps nobody from being told.
///
/// # Errors
/// Those of [`metrics::collect`] and of the files, behind the deliveries.
pub fn observe(
    session: &Session,
    loaded: &Loaded,
    notices: &Notices,
    looked: &dyn Fn(),
) -> Result<()> {
    let (settings, state_dir) = (&loaded.settings, &loaded.state_dir);
    fault::pause("look");
    let mut metrics = metrics::collect(session, &[])?;
    let path = file(state_dir);
    let exposed = session.keep(&path, metrics.text.as_bytes());
    let noted = objectives_history::add(session, settings, state_dir, metrics.info.as_ref());
    let measured = std::mem::replace(&mut metrics.noted, Ok(()));
    let mut conditions = alert::conditions(session, loaded, &metrics, notices);
    let uncounted = metrics.uncounted.take().map_or(Ok(()), Err);
    let kept = [uncounted, exposed, noted, measured];
    conditions.extend(condition::of_state(&kept));
    let written = observed::write(session, settings, state_dir, (&metrics, &conditions));
    if kept.iter().all(Result::is_ok) {
        conditions.extend(condition::of_state(std::slice::from_ref(&written)));
    }
    looked();
    let told = match notices.turn() {
        Some(turn) => {
            let success = alert::heartbeat::success(&metrics);
            alert::tell(
                session,
                (settings, true),
                (notices, &turn),
                conditions,
                success,
            )
        }
        None => Ok(()),
    };
    kept.into_iter().chain([written, told]).collect()
}

/// Has those told who are to hear of trouble that looking took too long: what was wrong before goes on, as far as anybody knows. Nothing but `state_dir` is looked at.
///
/// # Errors
/// Those of the file of notices.
pub fn given_up(session: &Session, loaded: &Loaded, notices: &Notices) -> Result<()> {
    let Some(turn) = notices.turn() else {
        return Ok(());
    };
    let conditions = alert::unseen(session, loaded, notices);
    alert::tell(
        session,
        (&loaded.settings, true),
        (notices, &turn),
        conditions,
        None,
    )
}
