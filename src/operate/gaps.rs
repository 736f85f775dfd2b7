//! WAL that should be there and is not.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::backfill;
use super::heal::{self, Healed};
use super::of::Of;
use super::reading::Reading;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::error::{Code, Result};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::gap::{self, Gap};
use crate::repo::layout::ClusterLayout;

/// A gap names at most this many of its segments.
const NAMES_MAX: u64 = 1000;

/// A gap, with its segments.
#[derive(Serialize)]
pub struct NamedGap {
    /// The gap.
    #[serde(flatten)]
    pub gap: Gap,
    /// The first of its segments.
    pub names: Vec<SegmentName>,
}

/// Looks for gaps behind the start of the oldest backup.
///
/// # Errors
/// Errors of the repository.
pub fn look(session: &Session) -> Result<Vec<NamedGap>> {
    look_in(session, &Reading::open(session)?).map(|(_, gaps)| gaps)
}

/// Returns the gaps of the life that is read, by its system identifier.
fn look_in(session: &Session, reading: &Reading) -> Result<(u64, Vec<NamedGap>)> {
    let inventory = reading.inventory(session)?;
    let size = inventory.segment_size;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let gaps = gap::gaps(&inventory, oldest.unwrap_or_default())
        .into_iter()
        .map(|gap| {
            let first = gap.from_lsn.0 / size.bytes();
            let names = (first..first + gap.segments.min(NAMES_MAX))
                .filter_map(|n| SegmentNumber(n).name(gap.timeline, size))
                .collect();
            NamedGap { gap, names }
        })
        .collect();
    Ok((inventory.system_identifier, gaps))
}

/// The gaps of one repository, and what was done about them.
#[derive(Serialize)]
pub struct HealedGaps {
    /// Name of the repository.
    pub repository: String,
    /// Segments that came, or would come.
    pub healed: Vec<Healed>,
    /// The gaps that are left.
    pub gaps: Vec<NamedGap>,
}

/// Fills the gaps of every repository: from the pg_wal of the configured server, where it is on this host, and from the other repositories.
/// A place that cannot be asked is a warning.
///
/// # Errors
/// Errors of the repositories; `Interrupted`.
pub fn heal(session: &Session, dry_run: bool) -> Result<Vec<HealedGaps>> {
    let own = Reading::open(session)?;
    let readings: Vec<Reading> = match session.flags.repository {
        Some(_) => vec![own],
        None => {
            let others: Vec<Reading> = own.others(session).collect();
            std::iter::once(own).chain(others).collect()
        }
    };
    let mut done = Vec::new();
    for reading in &readings {
        let name = reading.configured.name.clone();
        let (identifier, mut gaps) = look_in(session, reading)?;
        let mut healed = Vec::new();
        if !gaps.is_empty() {
            healed = fill(session, reading, (identifier, &gaps), dry_run)?;
        }
        if !dry_run && !healed.is_empty() {
            (_, gaps) = look_in(session, reading)?;
        }
        done.push(HealedGaps {
            repository: name,
            healed,
            gaps,
        });
    }
    Ok(done)
}

fn fill(
    session: &Session,
    reading: &Reading,
    (identifier, gaps): (u64, &[NamedGap]),
    dry_run: bool,
) -> Result<Vec<Healed>> {
    let (store, layout) = (
        reading.repository.store(),
        ClusterLayout::new(&reading.name, identifier)?,
    );
    let mut left: BTreeSet<SegmentName> =
        gaps.iter().flat_map(|g| g.names.iter().copied()).collect();
    let mut healed = Vec::new();
    let pgdata = reading.cluster.as_ref().and_then(|c| c.pgdata.clone());
    // The server that has the name now may be another cluster.
    let is_own = |pgdata: &PathBuf| {
        let control = DataDirectory::at(pgdata).control_head().ok().flatten();
        control.is_none_or(|control| control.system_identifier == identifier)
    };
    if let Some(pgdata) = pgdata.filter(is_own) {
        let found = backfill::chosen(session, &pgdata, &left, dry_run);
        match found {
            Ok((names, failed)) => {
                if let Some(e) = failed {
                    session.warn(&format!("WAL in \"{}\": {e}", pgdata.display()));
                }
                for name in names {
                    // It may have gone to the other repositories alone: an optional one that refuses writes ends nothing.
                    if dry_run || store.head(&layout.segment(name))?.is_some() {
                        left.remove(&name);
                        healed.push(Healed::wal(name, pgdata.display().to_string()));
                    }
                }
            }
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => session.warn(&format!(
                "missing WAL could not be looked for in \"{}\": {e}",
                pgdata.display()
            )),
        }
    }
    let registrations = reading.repository.registrations(&reading.name)?;
    let others = heal::others(session, &reading.configured)?;
    // A cluster that was made anew under the same name has segments of the same names.
    for registration in registrations
        .into_iter()
        .filter(|r| r.system_identifier == identifier)
    {
        let of = Of::Cluster(registration);
        let place = (&reading.repository, &of);
        healed.extend(heal::fill(session, place, &left, &others, dry_run)?);
    }
    Ok(healed)
}
