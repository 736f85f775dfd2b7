//! The newest mark that waits for a backup of a member.

use super::scope;
use crate::config::{RecoverySet, SetMember};
use crate::host::Host;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::event;
use crate::repo::scope::Scope;
use crate::repo::set_mark::{self, Mark, Point};
use crate::store::Store;

/// The moment behind which a backup of files has to begin, so that the newest mark of a set with these files is settled; none where nothing tells of one.
///
/// It looks into the first repository, which has the backups, too. One that does not answer takes no backup either.
pub fn newest_of(session: &Session, member: &SetMember) -> Option<TimestampTz> {
    let settings = session.settings_with_repositories().ok()?;
    let with_it = |set: &&RecoverySet| set.members.contains(member);
    let mut sets = settings.sets.iter().filter(with_it).peekable();
    sets.peek()?;
    let repository = session.open(settings.first_repository().ok()?).ok()?;
    let own = format!("aux/{}/{}", member.kind.section(), member.name);
    let moments = sets.filter_map(|set| {
        let mark = newest(repository.store(), &scope(set).ok()?, &session.host)?;
        let mut points = mark.members.iter().filter(|one| one.scope == own);
        points.find_map(|one| match one.point {
            Point::After(after) => Some(after),
            _ => None,
        })
    });
    moments.max()
}

/// The newest mark of a set that is not later than now: one by a clock that was ahead would wait without end, and hide those behind it.
fn newest(store: &dyn Store, scope: &Scope, host: &Host) -> Option<Mark> {
    let now = host.now();
    let found = set_mark::newest(store, scope, 1).ok()?;
    let mark = found.marks.into_iter().next()?;
    if is_reached(&mark, now) {
        return Some(mark);
    }
    // The names of events begin with their times.
    let until = event::compact(now);
    let places = set_mark::places(store, scope).ok()?;
    let reached = places.iter().rev().filter(|(_, name)| {
        let time = name.split('-').next().unwrap_or_default();
        time <= until.as_str()
    });
    for place in reached {
        let read = set_mark::read_at(store, scope, std::slice::from_ref(place), host).ok()?;
        let mut marks = read.marks.into_iter();
        if let Some(mark) = marks.find(|mark| is_reached(mark, now)) {
            return Some(mark);
        }
    }
    None
}

/// Pure: whether no moment of a mark is later than now.
fn is_reached(mark: &Mark, now: TimestampTz) -> bool {
    let is_ahead = |point: &Point| matches!(point, Point::After(after) if *after > now);
    mark.ended <= now && !mark.members.iter().any(|member| is_ahead(&member.point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::event::Writer;
    use crate::repo::set_mark::{KIND, Stated, StatedMember};
    use crate::store::file::FileStore;

    fn time(text: &str) -> TimestampTz {
        text.parse().unwrap()
    }

    /// Stores a mark of a directory by a clock.
    fn put(store: &FileStore, scope: &Scope, clock: &str) {
        let at = time(clock);
        let (clock, random) = (|| at, || 7_u64);
        let writer = Writer::new(&clock, &random);
        let member = StatedMember {
            scope: "aux/files/uploads".into(),
            after: Some(at),
            ..StatedMember::default()
        };
        let stated = Stated {
            set: "shop".into(),
            began: at,
            ended: at,
            level: 2,
            members: vec![member],
            runbook: None,
        };
        let event = set_mark::event(&writer, stated, None);
        event::record(store, scope, &event, 1).unwrap();
    }

    #[test]
    fn a_mark_by_a_clock_that_is_ahead_hides_no_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let scope = Scope::aux(KIND, "shop").unwrap();
        let ended = |now: &str| {
            let found = newest(&store, &scope, &Host::still(time(now), 1));
            found.map(|mark| mark.ended)
        };
        assert_eq!(ended("2026-11-20T07:00:00Z"), None);
        put(&store, &scope, "2027-11-20T06:40:49Z");
        assert_eq!(ended("2026-11-20T07:00:00Z"), None);
        put(&store, &scope, "2026-11-20T06:40:49Z");
        put(&store, &scope, "2026-11-20T06:50:49.5Z");
        put(&store, &scope, "2026-11-20T07:00:01Z");
        let good = time("2026-11-20T06:50:49.5Z");
        assert_eq!(ended("2026-11-20T07:00:00Z"), Some(good));
        assert_eq!(ended("2026-11-20T06:50:49.5Z"), Some(good));
        // Once its time has come it is one like others.
        let late = time("2027-11-20T06:40:49Z");
        assert_eq!(ended("2027-11-20T06:40:49Z"), Some(late));
    }
}
