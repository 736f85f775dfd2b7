//! The log of a server, as those see it who watch over it: whether it goes on, and whether a backup leads to its end.

use std::time::Duration;

use serde::Serialize;

use super::list;
use crate::error::{Code, Result};
use crate::operate::human;
use crate::operate::scopes::ScopeBackup;
use crate::pg::time::TimestampTz;
use crate::redis::overview::{self, Line};
use crate::redis::window::{self, Base};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// The age above which the newest stored bytes are too old. A server sends something each ten seconds also while nobody writes, and that is stored within a minute.
const LATE: Duration = Duration::from_secs(600);

/// The end of a log in one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// When the newest stored bytes had arrived; none where nothing is stored.
    pub stored_time: Option<TimestampTz>,
    /// The last time to which the log leads from a backup; none where it leads on from none.
    pub restorable_time: Option<TimestampTz>,
}

impl Watched {
    /// Whether newer bytes are stored than those to which a backup leads: a gap lies between, or there is no backup.
    pub fn has_gap(&self) -> bool {
        self.restorable_time < self.stored_time
    }

    /// Pure: what is wrong with it, and the command that helps; `backup` brings a newer backup to where the log is.
    pub fn trouble(&self, section: &str, backup: &str, now: TimestampTz) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let Some(stored) = self.stored_time else {
            return found;
        };
        let age = now.duration_since(stored).filter(|age| *age > LATE);
        if let Some(age) = age {
            found.push((
                format!(
                    "the newest stored bytes of the log arrived {} ago: the receiver is down, the server is, or the repository takes nothing",
                    human::duration(age)
                ),
                format!("pitr redis receive {section}"),
            ));
        }
        if self.has_gap() {
            let until = match self.restorable_time {
                None => "no moment of it".to_owned(),
                Some(time) => format!("no moment behind {}", human::time(time)),
            };
            found.push((
                format!("no backup leads to the end of the log: {until} comes back"),
                backup.to_owned(),
            ));
        }
        found
    }
}

/// Looks at the log of a server; none where its times cannot be read here.
///
/// # Errors
/// `Damaged`; those of the store.
pub fn look(
    repository: &Repository,
    scope: &Scope,
    backups: &[ScopeBackup],
) -> Result<Option<Watched>> {
    let lines = overview::read(repository, scope, false, &Err)?;
    let Some(ends) = ends(&lines) else {
        return Ok(None);
    };
    let mut members = Vec::new();
    for backup in backups.iter().filter(|backup| backup.damage.is_none()) {
        match list::member(repository, scope, backup) {
            Err(e) if e.code() == Code::Unsupported => {}
            member => members.extend(member?),
        }
    }
    let bases = members.iter().filter_map(|member| {
        let (replid, offset) = member.position()?;
        Some(Base {
            replid,
            offset,
            time: member.received_time,
        })
    });
    let bases: Vec<Base<'_>> = bases.collect();
    Ok(Some(Watched {
        stored_time: ends.into_iter().max(),
        restorable_time: window::end(&lines, &bases),
    }))
}

/// Pure: when the last bytes of each history had arrived; none where one of these times cannot be read. Two failovers in a row leave a history without bytes,
/// which has none.
fn ends(lines: &[Line]) -> Option<Vec<TimestampTz>> {
    let last = lines.iter().filter_map(|line| line.ranges.last());
    last.map(|range| range.to_time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::overview::Range;

    #[test]
    fn r218_a_history_without_bytes_hides_no_other_one() {
        let time = TimestampTz(7);
        let line = |ends: &[Option<TimestampTz>]| Line {
            replid: "a".repeat(40),
            server: None,
            parents: Vec::new(),
            ranges: ends
                .iter()
                .map(|to_time| Range {
                    from: 0,
                    to: 1,
                    from_time: Some(time),
                    to_time: *to_time,
                })
                .collect(),
            beginnings: Vec::new(),
            notable: Vec::new(),
        };
        let stored = line(&[Some(time)]);
        assert_eq!(ends(&[stored.clone(), line(&[])]), Some(vec![time]));
        // A time that cannot be read is another thing.
        assert_eq!(ends(&[stored, line(&[None])]), None);
        assert_eq!(ends(&[]), Some(Vec::new()));
    }

    #[test]
    fn a_log_that_is_old_or_that_no_backup_leads_to_is_told() {
        let now: TimestampTz = "2026-11-20T12:00:00Z".parse().unwrap();
        let before = |seconds: u64| Some(now.saturating_sub(Duration::from_secs(seconds)));
        let told = |stored_time, restorable_time| {
            let watched = Watched {
                stored_time,
                restorable_time,
            };
            let found = watched.trouble("cache", "take one", now).into_iter();
            found.map(|(_, next)| next).collect::<Vec<_>>()
        };
        assert_eq!(told(None, None), Vec::<String>::new());
        assert_eq!(told(before(600), before(600)), Vec::<String>::new());
        assert_eq!(told(before(601), before(601)), ["pitr redis receive cache"]);
        assert_eq!(told(before(5), before(6)), ["take one"]);
        assert_eq!(told(before(5), None), ["take one"]);
        assert_eq!(told(before(700), None).len(), 2);
    }
}
