//! The kind of the backup that is taken, and why: full, or incremental upon a prior.

use std::time::Duration;

use super::incremental::held::{self, Held};
use super::incremental::prior::{FullEvery, Server};
use super::producer::Producer;
use super::source::Source;
use crate::error::Result;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::History;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;

/// The kind that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A full backup.
    Full,
    /// An incremental one, where a backup is there to build on.
    Incremental,
    /// The same, as long as no content of it is older than that.
    FullEvery(Duration),
}

/// The kind that is taken.
#[derive(Default)]
pub struct Chosen<'a> {
    /// The backup on which an incremental builds.
    pub prior: Option<Held<'a>>,
    /// The reason, unless it was asked for.
    pub why: Option<String>,
}

/// Settles the kind, and says why where something else than the command line decided it. The prior of an incremental is claimed.
///
/// # Errors
/// Those of the server; what the store says.
pub fn choose<'a>(
    (repository, layout): (&'a Repository, &'a ClusterLayout),
    (source, producer): (&mut dyn Source, &dyn Producer),
    history: &History,
    wish: Option<Wish>,
    host: &'a Host,
) -> Result<Chosen<'a>> {
    let limit = match wish {
        None | Some(Wish::Full) => return Ok(Chosen::default()),
        Some(Wish::Incremental) => None,
        Some(Wish::FullEvery(period)) => Some(FullEvery {
            period,
            now: host.now(),
        }),
    };
    if let Some(why) = producer.why_full()? {
        return Ok(full(host, why));
    }
    let shape = match producer.shape() {
        Ok(shape) => shape,
        Err(why) => return Ok(full(host, why)),
    };
    let (least_start, least_stop) = least_bounds(source)?;
    let server = Server {
        history: history.clone(),
        least_start,
        least_stop,
        shape,
    };
    match held::hold((repository, layout), &server, limit, host)? {
        Ok(prior) => Ok(incremental(host, prior, limit)),
        Err(why) => Ok(full(host, why)),
    }
}

/// A full backup, and why it is one.
pub(super) fn full<'a>(host: &Host, why: String) -> Chosen<'a> {
    host.progress
        .note(&format!("a full backup is taken: {why}"));
    Chosen {
        prior: None,
        why: Some(why),
    }
}

fn incremental<'a>(host: &Host, prior: Held<'a>, limit: Option<FullEvery>) -> Chosen<'a> {
    let why = limit.map(|limit| {
        format!(
            "backup \"{}\", with which the content of \"{}\" begins, is younger than {limit}",
            prior.base, prior.root.head.id
        )
    });
    if let Some(why) = &why {
        host.progress
            .note(&format!("an incremental backup is taken: {why}"));
    }
    Chosen {
        prior: Some(prior),
        why,
    }
}

/// Returns positions before which a backup that begins now neither starts nor stops. A standby starts at its last restartpoint, and stops at the end of
/// what it must replay.
fn least_bounds(source: &mut dyn Source) -> Result<(Lsn, Lsn)> {
    let rows = source.query(
        "select case when pg_is_in_recovery() then redo_lsn else pg_current_wal_insert_lsn() end, \
         case when pg_is_in_recovery() then min_recovery_end_lsn else pg_current_wal_insert_lsn() end \
         from pg_control_checkpoint(), pg_control_recovery()",
    )?;
    Ok((rows.value(0, 0)?, rows.value(0, 1)?))
}
