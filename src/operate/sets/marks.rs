//! The newest mark that waits for a backup of a member.

use super::scope;
use crate::config::{RecoverySet, SetMember};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::set_mark::{self, Point};

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
        let marks = set_mark::newest(repository.store(), &scope(set).ok()?, 1).ok()?;
        let members = marks.marks.first()?.members.iter();
        let mut points = members.filter(|one| one.scope == own).map(|one| &one.point);
        points.find_map(|point| match point {
            Point::After(after) => Some(*after),
            _ => None,
        })
    });
    moments.max()
}
