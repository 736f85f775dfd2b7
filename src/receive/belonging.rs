//! Whether the journal's WAL is of the life that a repository follows, where `pitr wal resolve` has chosen one (decision 0019).
//!
//! A journal outlives the server that it was received from. After a resolution the names of its segments lead into the home of another life: what the
//! journal holds is stored there only where it is proven to belong there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::content::Received;
use super::shipment::begins_alike;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::journal::Segment;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::timeline::TimelineId;
use crate::repo::healed;
use crate::repo::layout::{self, ClusterLayout, Home};
use crate::repo::lives;
use crate::repo::repository::Repository;
use crate::store::Key;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// The things that were compared with the server from which is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Proof {
    /// None.
    #[default]
    Nothing,
    /// The journal's end is the server's, or the journal was empty. Archived WAL could not be compared.
    Journal,
    /// The last archived segment is the server's, too.
    Archive,
}

/// A position of the journal: WAL of a later timeline comes behind that of an earlier one.
pub type Place = (TimelineId, Lsn);

/// The proofs so far, each with the place from which it holds. A server of which one is true is followed by none that is another life's: the
/// journal's end is compared with each.
#[derive(Debug, Default)]
pub struct Evidence(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    journal: Option<Place>,
    archive: Option<Place>,
    /// WAL before this place was in the journal when a server began to send of which nothing was proven.
    doubted: Option<Place>,
}

impl Evidence {
    /// Returns the best of them.
    pub fn best(&self) -> Proof {
        let known = self.known();
        match (known.archive, known.journal) {
            (Some(_), _) => Proof::Archive,
            (None, Some(_)) => Proof::Journal,
            (None, None) => Proof::Nothing,
        }
    }

    /// Returns that of WAL at a place.
    pub fn at(&self, place: Place) -> Proof {
        let known = self.known();
        let holds = |from: Option<Place>| from.is_some_and(|from| from <= place);
        match (holds(known.archive), holds(known.journal)) {
            (true, _) => Proof::Archive,
            (false, true) => Proof::Journal,
            (false, false) => Proof::Nothing,
        }
    }

    /// Adds one that holds from a place on.
    pub fn found(&self, proof: Proof, from: Place) {
        let mut known = self.known();
        let from = known.doubted.map_or(from, |doubted| doubted.max(from));
        let earliest = |known: Option<Place>| Some(known.map_or(from, |known| known.min(from)));
        match proof {
            Proof::Nothing => {}
            Proof::Journal => known.journal = earliest(known.journal),
            Proof::Archive => known.archive = earliest(known.archive),
        }
    }

    /// A server begins to send from a place on: that WAL is its own, whatever lies before.
    pub fn streams(&self, from: Place) {
        if self.at(from) == Proof::Nothing {
            self.known().doubted = Some(from);
            self.found(Proof::Journal, from);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requires that a segment of the journal belongs to its home, by what was compared with the server.
///
/// # Errors
/// `Conflict` when another life has it, or nothing is proven; those of the store.
pub fn require(
    repository: &Repository,
    layout: &ClusterLayout,
    (segment, content): (Segment, &mut Received),
    proof: Proof,
) -> Result<()> {
    match proof {
        Proof::Archive => return Ok(()),
        Proof::Nothing => return Err(unproven(segment)),
        Proof::Journal => {}
    }
    match in_other_life(repository, layout, (segment, content))? {
        Some(key) => Err(of_other_life(segment, &key)),
        None => Ok(()),
    }
}

fn unproven(segment: Segment) -> Error {
    err!(
        Conflict,
        "nothing proves that segment \"{}\" of the journal is of the life of timeline {} that \"pitr wal resolve\" chose",
        segment.name,
        segment.name.timeline.decimal()
    )
    .hint("The receiver compares the journal with the server that is the cluster, once it can be reached. If it refuses that server, another one wrote what the journal holds: move the journal away then, and start the receiver again.")
}

fn of_other_life(segment: Segment, key: &Key) -> Error {
    err!(
        Conflict,
        "what the journal holds of segment \"{}\" is archived as \"{key}\", in a life of the timeline that is not followed",
        segment.name
    )
    .hint("It was not stored in the life that is followed. Another server wrote it than the one to which \"pitr wal resolve\" gave the timeline: pitr wal conflicts. Move the journal away, and start the receiver again.")
}

/// Returns the key under which another life of the timeline has what the journal holds of a segment.
fn in_other_life(
    repository: &Repository,
    layout: &ClusterLayout,
    (segment, content): (Segment, &mut Received),
) -> Result<Option<Key>> {
    let (store, name) = (repository.store(), segment.name);
    let own = layout.home_of(name);
    for home in lives::stored_homes(store, layout, name.timeline)? {
        if home == own {
            continue;
        }
        let key = home.segment(name);
        if let Some(stored) = healed::container(store, &key)? {
            content.seek(segment.from)?;
            let length = segment.to.0 - segment.from.0;
            if is_evidence(begins_alike(stored, content, length))? {
                return Ok(Some(key));
            }
        }
        if let Some(key) = in_increments(repository, &home, (segment, content))? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// As [`in_other_life`], of the increment in a home that reaches farthest of those that the journal holds all of.
fn in_increments(
    repository: &Repository,
    home: &Home,
    (segment, content): (Segment, &mut Received),
) -> Result<Option<Key>> {
    let store = repository.store();
    let prefix = home.increments(segment.name);
    let listed = store.list(&prefix)?;
    let held = listed.iter().filter_map(|l| {
        let range = layout::increment_range(&l.name)?;
        (segment.from <= range.start && range.end <= segment.to).then_some((range, &l.name))
    });
    let Some((range, last)) = held.max_by_key(|(range, _)| range.end) else {
        return Ok(None);
    };
    let key = Key::new(format!("{prefix}/{last}"))?;
    let Some(stored) = healed::container(store, &key)? else {
        return Ok(None);
    };
    let hash = hash(content, range)?;
    let is_same = stored.map(|stored| stored.has_hash(&hash));
    Ok(is_evidence(is_same)?.then_some(key))
}

/// Damage is verify's to report, and says nothing of lives; nor does what must not be read.
fn is_evidence(is_same: Result<bool>) -> Result<bool> {
    match is_same {
        Err(e) if matches!(e.code(), Code::Damaged | Code::Key | Code::Denied) => Ok(false),
        is_same => is_same,
    }
}

fn hash(content: &mut Received, range: LsnRange) -> Result<[u8; 32]> {
    content.seek(range.start)?;
    let (mut hasher, mut left) = (blake3::Hasher::new(), range.end.0 - range.start.0);
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let piece = buffer.get_mut(..length).unwrap_or_default();
        content.fill(piece)?;
        hasher.update(piece);
        left -= length as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(lsn: u64) -> Place {
        (TimelineId::new(1).unwrap(), Lsn(lsn))
    }

    #[test]
    fn t78_a_proof_does_not_reach_behind_the_wal_that_a_doubted_journal_held() {
        let evidence = Evidence::default();
        evidence.streams(place(50));
        assert_eq!(evidence.at(place(40)), Proof::Nothing);
        assert_eq!(evidence.at(place(50)), Proof::Journal);
        // The journal's end is that server's now, and its beginning is not.
        evidence.found(Proof::Archive, place(10));
        assert_eq!(evidence.at(place(40)), Proof::Nothing);
        assert_eq!(evidence.at(place(60)), Proof::Archive);
        let proven = Evidence::default();
        proven.found(Proof::Archive, place(10));
        proven.streams(place(50));
        assert_eq!(proven.at(place(10)), Proof::Archive);
    }
}
