//! WAL that should be there and is not.

use std::collections::BTreeSet;

use serde::Serialize;

use super::heal::{self, Healed, Outcome, Unhealed};
use super::of::Of;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::plan::gap::{self, Gap};
use crate::repo::container::Container;
use crate::repo::event;
use crate::repo::healed;
use crate::repo::layout::ClusterLayout;
use crate::store::Key;

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
    /// Damaged segments that no place has whole.
    pub not_healed: Vec<Unhealed>,
    /// The gaps that are left.
    pub gaps: Vec<NamedGap>,
}

/// Fills the gaps of every repository, and heals the segments of which damage is recorded: from the pg_wal of the configured server, where it is
/// on this host, and from the other repositories. A place that cannot be asked is a warning.
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
        let Outcome { healed, unhealed } = fill(session, reading, (identifier, &gaps), dry_run)?;
        if !dry_run && !healed.is_empty() {
            (_, gaps) = look_in(session, reading)?;
        }
        done.push(HealedGaps {
            repository: name,
            healed,
            not_healed: unhealed,
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
) -> Result<Outcome> {
    let missing: BTreeSet<SegmentName> =
        gaps.iter().flat_map(|g| g.names.iter().copied()).collect();
    let damaged = damaged(reading, identifier)?;
    let mut outcome = Outcome::default();
    if missing.is_empty() && damaged.is_empty() {
        return Ok(outcome);
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
        let filled = heal::fill(session, place, (&missing, &damaged), &others, dry_run)?;
        outcome.healed.extend(filled.healed);
        outcome.unhealed.extend(filled.unhealed);
    }
    Ok(outcome)
}

/// The segments of which damage is recorded, and of which no copy is whole.
fn damaged(reading: &Reading, identifier: u64) -> Result<Vec<Key>> {
    let layout = ClusterLayout::new(&reading.name, identifier)?;
    let store = reading.repository.store();
    let mut keys = BTreeSet::new();
    for listed in store.list(&layout.events())? {
        let segment = listed.name.strip_prefix("wal-");
        if segment.is_none_or(|name| name.parse::<SegmentName>().is_err()) {
            continue;
        }
        let events = event::read_all(store, &layout, &listed.name)?;
        let objects = event::damage(&events).into_iter();
        keys.extend(objects.filter_map(|e| Key::new(e.event.object.as_deref()?).ok()));
    }
    let mut damaged = Vec::new();
    for key in keys {
        store.healed_copies(&key)?;
        let is_whole = |object| {
            let container = Container::open_under(&key, object);
            container.is_ok_and(|container| healed::check_whole(&container).is_ok())
        };
        let is_lost = match store.open(&key) {
            Ok(object) => object.is_some_and(|object| !is_whole(object)),
            Err(e) => e.is_damage(),
        };
        if is_lost {
            damaged.push(key);
        }
    }
    Ok(damaged)
}
