//! The choice of the prior: the backup that an incremental builds on, or why a full one has to be taken.
//!
//! Pure. The newest backup of the server's own history that is good is the prior, unless content of it is older than the operator allows.

use std::time::Duration;

use crate::config::Period;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::clock::MAY_DIFFER;
use crate::repo::id::BackupId;

/// A root names no more parts than 2^18; a prior leaves room for those of the new backup.
const PARTS_MAX: usize = 1 << 17;

/// A full backup is due this part of its interval early: a job that runs at one minute of each week would else find that a moment is lacking, and
/// take it a run later.
const EARLY: u32 = 50;

/// How often a full backup has to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullEvery {
    /// The content of no backup is older than that.
    pub period: Duration,
    /// This moment.
    pub now: TimestampTz,
}

impl FullEvery {
    /// Whether a full backup is due after one of the time `taken`. One of the future says that a clock was wrong: then it is.
    fn is_due(&self, taken: TimestampTz) -> bool {
        let allowed = self.period.saturating_sub(self.period / EARLY);
        let is_old = taken.saturating_add(allowed) <= self.now;
        is_old || taken > self.now.saturating_add(MAY_DIFFER)
    }
}

impl std::fmt::Display for FullEvery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "full_every = \"{}\"", Period(self.period.as_secs()))
    }
}

/// The facts about files on which all pages depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// Size of pages of relations.
    pub block_size_bytes: u32,
    /// WAL segment size.
    pub segment_size_bytes: u64,
    /// Blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Whether pages have checksums.
    pub data_checksums: bool,
}

/// A backup that may be the prior.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: BackupId,
    /// The oldest backup that wrote a part of it: the full one at its base, whether that still exists or not.
    pub base: BackupId,
    /// Its nonce: another backup under the same id is another one.
    pub nonce: String,
    /// Its timeline at the stop.
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// Damage that is known of it.
    pub damage: Option<String>,
    /// Whether databases lie in it without their content.
    pub is_partial: bool,
    /// Whether it is marked for deletion.
    pub is_marked: bool,
    /// Its files.
    pub shape: Shape,
    /// Layers and packs that it names.
    pub parts: usize,
}

/// The server of which a backup is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub history: History,
    /// A backup that begins now starts here or later.
    pub least_start: Lsn,
    /// It stops here or later.
    pub least_stop: Lsn,
    /// Its files.
    pub shape: Shape,
}

/// Chooses the prior of candidates that come newest first; else says why there is none. Those behind the prior are not asked for: each is a root to read.
///
/// # Errors
/// Those of the candidates.
pub fn choose<E>(
    newest_first: &mut impl Iterator<Item = Result<Candidate, E>>,
    server: &Server,
    limit: Option<FullEvery>,
) -> Result<Result<Candidate, String>, E> {
    let mut why = None;
    for candidate in newest_first {
        let candidate = candidate?;
        match refusal(&candidate, server) {
            None => return Ok(is_young(&candidate, limit).map(|()| candidate)),
            Some(reason) => {
                why.get_or_insert_with(|| format!("backup \"{}\" {reason}", candidate.id));
            }
        }
    }
    Ok(Err(why.unwrap_or_else(|| {
        "the repository has no backup of this cluster".to_owned()
    })))
}

/// Requires that a full backup is not due.
fn is_young(prior: &Candidate, limit: Option<FullEvery>) -> Result<(), String> {
    let base = &prior.base;
    match limit {
        Some(limit) if base.time().is_none_or(|taken| limit.is_due(taken)) => Err(format!(
            "backup \"{base}\", with which the content of \"{}\" begins, is older than {limit}",
            prior.id
        )),
        _ => Ok(()),
    }
}

/// Why a backup cannot be the prior.
fn refusal(prior: &Candidate, server: &Server) -> Option<String> {
    let (old, new) = (&prior.shape, &server.shape);
    let is_of_history = server.history.contains(prior.timeline)
        && server
            .history
            .holder(Lsn(prior.stop_lsn.0.saturating_sub(1)))
            == prior.timeline;
    let tests = [
        (prior.is_partial, "is partial"),
        (prior.damage.is_some(), "is damaged"),
        (prior.is_marked, "is marked for deletion"),
        (!is_of_history, "is not in the server's history"),
        (
            old.catalog_version != new.catalog_version,
            "has another catalog version",
        ),
        (
            old.block_size_bytes != new.block_size_bytes
                || old.relation_segment_blocks != new.relation_segment_blocks,
            "has files of another block size",
        ),
        (
            old.segment_size_bytes != new.segment_size_bytes,
            "has another WAL segment size",
        ),
        (
            old.data_checksums != new.data_checksums,
            "was taken before data checksums were switched",
        ),
        (
            prior.start_lsn > server.least_start,
            "begins behind the point from which this backup would",
        ),
        (
            prior.stop_lsn > server.least_stop,
            "ends behind the point that the server has come to",
        ),
        (
            prior.parts >= PARTS_MAX,
            "has as many parts as a root may name",
        ),
    ];
    let failed = tests.into_iter().find(|(fails, _)| *fails);
    failed.map(|(_, why)| why.to_owned())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::pg::timeline::tli;

    const SHAPE: Shape = Shape {
        catalog_version: 202_406_281,
        block_size_bytes: 8192,
        segment_size_bytes: 1 << 24,
        relation_segment_blocks: 131_072,
        data_checksums: true,
    };

    /// On timeline 2, which left 1 at 1000.
    fn server() -> Server {
        Server {
            history: History::root(tli(1)).child(tli(2), Lsn(1000), b"x"),
            least_start: Lsn(5000),
            least_stop: Lsn(5000),
            shape: SHAPE,
        }
    }

    fn backup(n: u32, timeline: u32, start: u64, stop: u64) -> Candidate {
        Candidate {
            id: format!("20261120T0640{n:02}Z-full").parse().unwrap(),
            base: format!("20261120T0640{n:02}Z-full").parse().unwrap(),
            nonce: String::new(),
            timeline: tli(timeline),
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            damage: None,
            is_partial: false,
            is_marked: false,
            shape: SHAPE,
            parts: 2,
        }
    }

    /// The index of the prior of backups that come in the order of an inventory.
    fn chosen(all: &[Candidate], limit: Option<FullEvery>) -> Result<usize, String> {
        let mut newest_first = all.iter().rev().cloned().map(Ok::<_, Infallible>);
        let prior = choose(&mut newest_first, &server(), limit).unwrap()?;
        Ok(all.iter().position(|one| *one == prior).unwrap())
    }

    fn why(change: impl Fn(&mut Candidate)) -> String {
        let mut one = backup(1, 2, 2000, 2100);
        change(&mut one);
        chosen(&[one], None).unwrap_err()
    }

    #[test]
    fn the_newest_good_backup_of_the_history_is_the_prior() {
        let mut all = vec![
            backup(1, 1, 500, 600),
            backup(2, 2, 2000, 2100),
            backup(3, 2, 3000, 3100),
        ];
        assert_eq!(chosen(&all, None), Ok(2));
        all[2].is_partial = true;
        assert_eq!(chosen(&all, None), Ok(1));
        all[2].is_partial = false;
        all[2].damage = Some("x".into());
        assert_eq!(chosen(&all, None), Ok(1));
        all[1].is_marked = true;
        assert_eq!(chosen(&all, None), Ok(0));
        all[0].shape.data_checksums = false;
        let why = chosen(&all, None).unwrap_err();
        assert_eq!(why, "backup \"20261120T064003Z-full\" is damaged");
        assert!(chosen(&[], None).is_err());
    }

    #[test]
    fn b38_backups_behind_the_prior_are_not_asked_for() {
        let partial = Candidate {
            is_partial: true,
            ..backup(3, 2, 4000, 4100)
        };
        let good = backup(2, 2, 3000, 3100);
        let all = [Ok(partial), Ok(good.clone()), Err("read in vain")];
        let mut all = all.into_iter();
        assert_eq!(choose(&mut all, &server(), None), Ok(Ok(good)));
        assert_eq!(choose(&mut all, &server(), None), Err("read in vain"));
    }

    #[test]
    fn a_fork_before_the_stop_leaves_the_prior_out() {
        // It began before the fork and stopped behind it: its pages may hold what was abandoned.
        let refused = chosen(&[backup(1, 1, 900, 1001)], None);
        assert!(refused.unwrap_err().contains("history"));
        assert_eq!(chosen(&[backup(1, 1, 900, 1000)], None), Ok(0));
        assert!(chosen(&[backup(1, 3, 2000, 2100)], None).is_err());
    }

    #[test]
    fn whatever_pages_depend_on_has_to_be_the_same() {
        for (part, expected) in [
            (why(|c| c.shape.catalog_version += 1), "catalog"),
            (why(|c| c.shape.block_size_bytes *= 2), "block size"),
            (why(|c| c.shape.relation_segment_blocks *= 2), "block size"),
            (why(|c| c.shape.segment_size_bytes *= 2), "segment size"),
            (why(|c| c.shape.data_checksums = false), "checksums"),
            (why(|c| c.start_lsn = Lsn(5001)), "begins behind"),
            (why(|c| c.stop_lsn = Lsn(5001)), "ends behind"),
            (why(|c| c.parts = PARTS_MAX), "parts"),
        ] {
            assert!(part.contains(expected), "{part}");
        }
        // A restartpoint that did not move: the interval is empty, and valid.
        let one = backup(1, 2, 5000, 5000);
        assert_eq!(chosen(&[one], None), Ok(0));
    }

    #[test]
    fn a_full_backup_is_due_by_the_age_of_the_oldest_content() {
        let mut one = backup(9, 2, 2000, 2100);
        one.base = "20261113T064009Z-482913-full".parse().unwrap();
        let choose_at = |one: &Candidate, now: &str| {
            let limit = FullEvery {
                period: Duration::from_secs(7 * 24 * 3600),
                now: now.parse().unwrap(),
            };
            chosen(std::slice::from_ref(one), Some(limit))
        };
        assert_eq!(choose_at(&one, "2026-11-19T06:40:09Z"), Ok(0));
        // A weekly job that is a moment early.
        let why = choose_at(&one, "2026-11-20T06:40:08Z").unwrap_err();
        assert_eq!(
            why,
            "backup \"20261113T064009Z-482913-full\", with which the content of \"20261120T064009Z-full\" begins, is older than full_every = \"1w\""
        );
        // Clocks may differ a little.
        assert_eq!(choose_at(&one, "2026-11-13T06:35:00Z"), Ok(0));
        assert!(choose_at(&one, "2026-11-13T06:25:00Z").is_err());
        // A day that no calendar has.
        one.base = "20261399T064009Z-full".parse().unwrap();
        assert!(choose_at(&one, "2026-11-20T06:40:08Z").is_err());
        assert!(chosen(&[one], None).is_ok());
    }
}
