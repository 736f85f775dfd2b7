//! The reservation of a backup's id and the claim that protects what it needs while it runs (format, sections 9 and 10).

use rustix::time::{ClockId, clock_gettime};

use super::Surroundings;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::repo::event::{self, Event};
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::store::{Published, Store};

/// How long a claim holds; it is renewed well before.
const CLAIM_SECONDS: u64 = 3 * 3600;
const RENEWAL_SECONDS: i64 = 3600;
/// Backups that may begin in one second.
const MOST_ATTEMPTS: u32 = 100;

/// A reserved id with its standing claim.
pub struct Claim<'a> {
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    around: &'a Surroundings<'a>,
    id: BackupId,
    standing: String,
    start: Option<(u32, Lsn)>,
    /// In seconds since boot.
    renewed: i64,
}

impl<'a> Claim<'a> {
    /// Reserves an id for a full backup that begins now, and claims it.
    ///
    /// # Errors
    /// What the store says.
    pub fn begin(
        store: &'a dyn Store,
        layout: &'a ClusterLayout,
        around: &'a Surroundings<'a>,
    ) -> Result<Claim<'a>> {
        let now = (around.clock)();
        let stamp = event::compact(now);
        let stamp = format!("{}Z", stamp.get(..15).unwrap_or_default());
        let mut reserved = None;
        for attempt in 1..=MOST_ATTEMPTS {
            let id = BackupId::compose(&stamp, attempt, "full")?;
            let begin = Event {
                time: now,
                backup_kind: Some("full".into()),
                pid: Some(std::process::id()),
                ..around.writer().event("begin", &id.to_string())
            };
            if event::begin(store, layout, &begin)? == Published::Created {
                reserved = Some(id);
                break;
            }
        }
        let id = reserved.ok_or_else(|| {
            err!(
                Locked,
                "{MOST_ATTEMPTS} backups began within the second {stamp}"
            )
        })?;
        let mut claim = Claim {
            store,
            layout,
            around,
            id,
            standing: String::new(),
            start: None,
            renewed: 0,
        };
        claim.record(None)?;
        Ok(claim)
    }

    /// The id of the backup.
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Renews the claim with the place from which on WAL is needed.
    ///
    /// # Errors
    /// What the store says.
    pub fn protect_from(&mut self, timeline: u32, start_lsn: Lsn) -> Result<()> {
        self.check()?;
        self.start = Some((timeline, start_lsn));
        let replaced = self.standing.clone();
        self.record(Some(replaced))
    }

    /// Renews the claim when it is due; cheap to call often.
    ///
    /// # Errors
    /// As [`Claim::check`]; what the store says.
    pub fn keep(&mut self) -> Result<()> {
        if self.age_seconds() < RENEWAL_SECONDS {
            return Ok(());
        }
        self.check()?;
        let replaced = self.standing.clone();
        self.record(Some(replaced))
    }

    /// Requires that the claim has never ended: else expire may have deleted what the backup needs. Asked before the root is written.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn check(&self) -> Result<()> {
        let age = self.age_seconds();
        if age < CLAIM_SECONDS.cast_signed() {
            return Ok(());
        }
        Err(err!(
            Conflict,
            "the claim of backup \"{}\" was last renewed {age} seconds ago and has ended",
            self.id
        )
        .hint("The machine or this process stood still for hours, and pitr expire may have deleted what the backup needs.\nNothing was committed. Take the backup again."))
    }

    fn age_seconds(&self) -> i64 {
        seconds_since_boot().saturating_sub(self.renewed)
    }

    fn record(&mut self, replaced: Option<String>) -> Result<()> {
        let claim = Event {
            ends: replaced,
            purpose: Some("backup".into()),
            seconds: Some(CLAIM_SECONDS),
            timeline: self.start.map(|(timeline, _)| timeline),
            start_lsn: self.start.map(|(_, lsn)| lsn),
            ..self.around.writer().event("claim", &self.id.to_string())
        };
        // From before the write: the store dates the claim while it is written.
        let asked = seconds_since_boot();
        let nonce = (self.around.random)();
        self.standing = event::record(self.store, self.layout, &claim, nonce)?;
        self.renewed = asked;
        Ok(())
    }

    /// Ends the claim.
    ///
    /// # Errors
    /// What the store says; the claim then ends by itself.
    pub fn release(self) -> Result<()> {
        let release = Event {
            ends: Some(self.standing),
            ..self.around.writer().event("release", &self.id.to_string())
        };
        event::record(self.store, self.layout, &release, (self.around.random)())?;
        Ok(())
    }
}

/// By a clock that nobody sets, and that goes on while the machine sleeps.
fn seconds_since_boot() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::store::file::FileStore;

    #[test]
    fn a_claim_that_has_ended_cannot_be_renewed_and_nothing_is_committed_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let layout = ClusterLayout::new("main", 7).unwrap();
        let nonce = std::sync::atomic::AtomicU64::new(1);
        let around = Surroundings {
            clock: &|| "2026-11-20T06:40:49Z".parse().unwrap(),
            random: &|| nonce.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            progress: &crate::progress::Silent,
            stop: &std::sync::atomic::AtomicBool::new(false),
            scratch: dir.path().to_owned(),
        };
        let mut claim = Claim::begin(&store, &layout, &around).unwrap();
        claim.check().unwrap();
        claim.keep().unwrap();
        claim.renewed = seconds_since_boot() - CLAIM_SECONDS.cast_signed();
        for result in [claim.check(), claim.keep(), claim.protect_from(1, Lsn(8))] {
            assert_eq!(result.unwrap_err().code(), Code::Conflict);
        }
    }
}
