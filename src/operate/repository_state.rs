//! The state of a repository that a look of a minute can afford: its clock, its room, and who can read it.

use super::readers;
use super::session::Session;
use crate::config::{self, Location};
use crate::pg::time::TimestampTz;
use crate::repo::repository::Repository;
use crate::store::Room;

/// The state of a repository that is open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepositoryState {
    /// How far its clock is ahead of this host's, in seconds; none where it has none that is asked each minute.
    pub clock_offset_s: Option<f64>,
    /// Recipients that can read it; none where it is not encrypted, or they are not known.
    pub recipients: Option<usize>,
    /// The room on its disk; none where the store does not tell.
    pub room: Option<Room>,
}

impl RepositoryState {
    /// Looks at it.
    pub fn look(
        session: &Session,
        configured: &config::Repository,
        repository: &Repository,
    ) -> RepositoryState {
        RepositoryState {
            clock_offset_s: clock_offset(session, configured, repository),
            recipients: readers::working(repository).ok().flatten(),
            room: repository.store().room().ok().flatten(),
        }
    }
}

fn clock_offset(
    session: &Session,
    configured: &config::Repository,
    repository: &Repository,
) -> Option<f64> {
    // That of an SFTP server is only known by a file that is made there.
    if matches!(configured.location, Location::Sftp { .. }) {
        return None;
    }
    let before = session.host.now();
    let theirs = repository.store().clock().ok()??;
    offset(theirs, before, session.host.now())
}

/// The difference of `theirs` to this host's clock before and after the question; 0 where it lies between the two.
pub(super) fn offset(theirs: TimestampTz, before: TimestampTz, after: TimestampTz) -> Option<f64> {
    let apart = |later: TimestampTz, earlier: TimestampTz| {
        let apart = later.duration_since(earlier);
        apart.map(|apart| apart.as_secs_f64())
    };
    if theirs > after {
        apart(theirs, after)
    } else if theirs < before {
        apart(before, theirs).map(|behind| -behind)
    } else {
        Some(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_differs_by_what_the_answer_did_not_take() {
        let at = |text: &str| text.parse::<TimestampTz>().unwrap();
        let (before, after) = (at("2026-11-20T06:00:00Z"), at("2026-11-20T06:00:02Z"));
        let offset = |theirs| offset(at(theirs), before, after);
        assert_eq!(offset("2026-11-20T06:00:01Z"), Some(0.0));
        assert_eq!(offset("2026-11-20T06:01:02Z"), Some(60.0));
        assert_eq!(offset("2026-11-20T05:50:00Z"), Some(-600.0));
    }
}
