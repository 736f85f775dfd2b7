//! WAL that should be there and is not.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failures::Failures;
use super::heal::{self, Healed, Outcome, Unhealed};
use super::of::Of;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
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
    Ok(look_in(session, &Reading::open(session)?)?.named())
}

/// The gaps of the life that is read.
struct Found {
    system_identifier: u64,
    segment_size: SegmentSize,
    gaps: Vec<Gap>,
}

impl Found {
    /// The first so many segments of a gap.
    fn names(&self, gap: &Gap, max: u64) -> impl Iterator<Item = SegmentName> {
        let (size, timeline) = (self.segment_size, gap.timeline);
        let first = gap.from_lsn.0 / size.bytes();
        let numbers = first..first + gap.segments.min(max);
        numbers.filter_map(move |n| SegmentNumber(n).name(timeline, size))
    }

    fn named(&self) -> Vec<NamedGap> {
        let named = |gap: &Gap| NamedGap {
            gap: gap.clone(),
            names: self.names(gap, NAMES_MAX).collect(),
        };
        self.gaps.iter().map(named).collect()
    }
}

fn look_in(session: &Session, reading: &Reading) -> Result<Found> {
    let inventory = reading.inventory(session)?;
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    Ok(Found {
        system_identifier: inventory.system_identifier,
        segment_size: inventory.segment_size,
        gaps: gap::gaps(&inventory, oldest.unwrap_or_default()),
    })
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
/// on this host, and from the other repositories. A place that cannot be asked is a warning; a repository that fails keeps no other from being
/// healed.
///
/// # Errors
/// Errors of the first repository; where nothing could be looked at, of the others; `Interrupted`.
pub fn heal(session: &Session, dry_run: bool) -> Result<(Vec<HealedGaps>, Failures)> {
    let own = Reading::open(session)?;
    let readings: Vec<Reading> = match session.flags.repository {
        Some(_) => vec![own],
        None => {
            let others: Vec<Reading> = own.others(session).collect();
            std::iter::once(own).chain(others).collect()
        }
    };
    let mut done = Vec::new();
    let mut failures = Failures::default();
    for reading in &readings {
        let name = &reading.configured.name;
        let doing = || format!("heal repository \"{name}\"");
        let Some(mut found) = failures.note(look_in(session, reading), doing()) else {
            continue;
        };
        let mut outcome = Outcome::default();
        let filled = fill(session, reading, &found, (dry_run, &mut outcome));
        let goes_on = filled.map_err(|e| failures.add(e, doing()));
        if !dry_run && !outcome.healed.is_empty() {
            // The answer keeps the gaps of before where the repository cannot be read again.
            let left = failures.note(look_in(session, reading), doing());
            found = left.unwrap_or(found);
        }
        done.push(HealedGaps {
            repository: name.clone(),
            healed: outcome.healed,
            not_healed: outcome.unhealed,
            gaps: found.named(),
        });
        if goes_on == Err(false) {
            break;
        }
    }
    failures.first_if(session, done.is_empty())?;
    Ok((done, failures))
}

fn fill(
    session: &Session,
    reading: &Reading,
    found: &Found,
    (dry_run, outcome): (bool, &mut Outcome),
) -> Result<()> {
    let identifier = found.system_identifier;
    let names = |gap| found.names(gap, heal::GAP_MAX);
    let missing: BTreeSet<SegmentName> = found.gaps.iter().flat_map(names).collect();
    let damaged = damaged(reading, identifier)?;
    if missing.is_empty() && damaged.is_empty() {
        return Ok(());
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
        let what = (&missing, damaged.as_slice());
        heal::fill(session, place, what, &others, (dry_run, &mut *outcome))?;
    }
    Ok(())
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
