//! When recovery was last proven by a drill, and to which moment.

use std::time::Duration;

use serde::Serialize;

use super::archive_command::shell_word;
use super::finding::{Finding, Level};
use super::human;
use super::reading::Reading;
use super::session::Session;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::drilled::{self, Drills};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;

/// The drills of one repository.
#[derive(Debug, Clone, Serialize)]
pub struct Proven {
    /// The repository's name.
    pub repository: String,
    /// Its newest drills.
    #[serde(flatten)]
    pub drills: Drills,
}

impl Proven {
    /// The backup that a drill is to try again: the newest drill passed, and an older one found it broken.
    fn again(&self) -> Option<&BackupId> {
        let drills = &self.drills;
        let is_newest_broken = drills
            .newest
            .as_ref()
            .is_some_and(|held| held.drill.failed.is_some());
        let broken = drills.broken.last().filter(|_| !is_newest_broken);
        broken.and_then(|held| held.drill.backup.as_ref())
    }
}

/// Reads the drills of the repository that is read, and of the others that answer.
///
/// # Errors
/// Errors of the store of the first one.
pub fn look(session: &Session, reading: &Reading, identifier: u64) -> Result<Vec<Proven>> {
    let layout = ClusterLayout::new(&reading.name, identifier)?;
    let of = |reading: &Reading| -> Result<Proven> {
        Ok(Proven {
            repository: reading.configured.name.clone(),
            drills: drilled::standing(reading.repository.store(), &layout, &event::host())?,
        })
    };
    let mut all = vec![of(reading)?];
    // `info` and `doctor` themselves report a repository that cannot be reached.
    let others = reading.all_others(session);
    all.extend(others.filter_map(|(_, other)| of(&other.ok()?).ok()));
    Ok(all)
}

/// Tells in one line when recovery was last proven.
pub fn line(all: &[Proven]) -> Option<String> {
    let (name, held) = all
        .iter()
        .filter_map(|p| Some((&p.repository, p.drills.proven.as_ref()?)))
        .max_by_key(|(_, held)| held.time)?;
    let reached = held.drill.reached_time.map_or(String::new(), |time| {
        format!(": recovered to {}", human::time(time))
    });
    let time = human::time(held.time);
    let took = human::duration(Duration::from_millis(held.recovery_ms()));
    let not_checked = match held.drill.not_checked.as_slice() {
        [] => String::new(),
        phases => format!(" (not wholly checked: {})", drilled::named(phases)),
    };
    Some(format!(
        "recovery proven: {time}, by a drill of {name} in {took}{reached}{not_checked}"
    ))
}

/// Judges the drills of one repository: a last one that failed, a backup that one found broken, and proof that is older than the
/// configuration allows.
pub fn judge(
    proven: &Proven,
    max_age: Option<Duration>,
    now: TimestampTz,
) -> Option<(Level, String)> {
    let (name, drills) = (&proven.repository, &proven.drills);
    if let Some(held) = &drills.newest
        && let Some(phase) = held.drill.failed
    {
        let (time, phase) = (human::time(held.time), phase.name());
        let value = format!(
            "the last drill of repository {name}, {time}, found recovery broken (phase {phase})"
        );
        return Some((Level::Fail, value));
    }
    if let Some(held) = drills.broken.last()
        && let (Some(id), Some(phase)) = (&held.drill.backup, held.drill.failed)
    {
        let (time, phase) = (human::time(held.time), phase.name());
        let value = format!(
            "recovery from backup {id} of repository {name} was found broken, {time} (phase {phase}), and no drill with --backup {id} has shown otherwise since"
        );
        return Some((Level::Fail, value));
    }
    let limit = max_age?;
    let since = match &drills.proven {
        None => "was never proven".to_owned(),
        Some(held) => {
            let age = now.duration_since(held.time).unwrap_or_default();
            let age = Some(age).filter(|age| *age > limit)?;
            format!("was last proven {} ago", human::duration(age))
        }
    };
    let limit = human::duration(limit);
    let value = format!("recovery from repository {name} {since}, max_drill_age is {limit}");
    Some((Level::Warn, value))
}

/// The command that tries a repository.
pub fn next(name: &str) -> String {
    format!("pitr drill --repository {}", shell_word(name))
}

/// As [`judge`], of several.
pub fn problems(all: &[Proven], max_age: Option<Duration>, now: TimestampTz) -> Vec<Finding> {
    let found = all.iter().filter_map(|proven| {
        let (level, value) = judge(proven, max_age, now)?;
        let next = match (level, proven.again()) {
            (Level::Fail, Some(id)) => format!("{} --backup {id}", next(&proven.repository)),
            _ => next(&proven.repository),
        };
        let value = format!("{value}: {next}");
        Some(Finding::new("recovery", "drill", level, value).with_next(next))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::drilled::{Drill, Held, Phase};

    fn proven(name: &str, time: &str, failed: Option<Phase>) -> Proven {
        let held = Held {
            time: time.parse().unwrap(),
            host: "h".into(),
            drill: Drill {
                failed,
                ..Drill::default()
            },
        };
        Proven {
            repository: name.into(),
            drills: Drills {
                proven: Some(held.clone()).filter(Held::is_passed),
                newest: Some(held),
                ..Drills::default()
            },
        }
    }

    #[test]
    fn old_proof_is_a_warning_and_a_failed_drill_is_critical() {
        let now = "2026-11-21T06:00:00Z".parse().unwrap();
        let day = Some(Duration::from_secs(86_400));
        let levels = |all: &[Proven], limit| -> Vec<Level> {
            problems(all, limit, now).iter().map(|f| f.level).collect()
        };
        let fresh = proven("a", "2026-11-21T05:00:00Z", None);
        let old = proven("a", "2026-11-19T05:00:00Z", None);
        let broken = proven("b", "2026-11-21T05:30:00Z", Some(Phase::Replay));
        let never = Proven {
            repository: "c".into(),
            drills: Drills::default(),
        };
        assert_eq!(levels(&[fresh.clone(), never], day), [Level::Warn]);
        assert_eq!(levels(std::slice::from_ref(&old), day), [Level::Warn]);
        assert!(levels(&[old], None).is_empty());
        let both = [fresh.clone(), broken.clone()];
        assert_eq!(levels(&both, None), [Level::Fail]);
        assert_eq!(line(std::slice::from_ref(&broken)), None);
        let mut forgotten = fresh.clone();
        let mut held = broken.drills.newest.clone().unwrap();
        held.drill.backup = "20201102T060000Z-full".parse().ok();
        forgotten.drills.broken = vec![held];
        assert_eq!(levels(&[forgotten], day), [Level::Fail]);
        let shown = line(&[broken, fresh]).unwrap();
        assert!(shown.starts_with("recovery proven: 2026-11-21"), "{shown}");
    }
}
