//! Claims: what keeps `pitr expire` from deleting a backup while somebody works on it (format, sections 9, 10 and 12).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::event::{Event, Writer};
use super::id::BackupId;
use super::scope::Scope;
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::progress::Progress;
use crate::store::Store;

/// How long a claim holds; it is renewed well before.
pub const HOLDS_SECONDS: u64 = 3 * 3600;
/// After how long it is renewed.
pub const RENEWAL_SECONDS: u64 = 3600;
/// After how long that of a backup is renewed, which is a sign of life for others that wait.
pub const BACKUP_RENEWAL_SECONDS: u64 = 600;

/// How long a backup that failed keeps what it stored, for the next one to go on from.
pub const LEFT_SECONDS: u64 = 24 * 3600;
/// A backup deletes what it stored only while its claim is younger: by then no other backup takes it for killed.
const DELETES_SECONDS: u64 = BACKUP_RENEWAL_SECONDS + BACKUP_RENEWAL_SECONDS / 2;

/// A standing claim.
pub struct Claim<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    writer: Writer<'a>,
    id: BackupId,
    purpose: &'static str,
    start: Option<(u32, Lsn)>,
    standing: String,
    /// In seconds since boot. Signed: a test on a machine that has just been booted renews a claim before that.
    renewed: i64,
    /// The store's time before that; none where it has no clock, and where nothing is committed under the claim.
    granted: Option<TimestampTz>,
}

impl<'a> Claim<'a> {
    /// Claims a backup, with the WAL from `start` on where that is known.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn take(
        (store, scope): (&'a dyn Store, &'a Scope),
        writer: Writer<'a>,
        id: &BackupId,
        purpose: &'static str,
        start: Option<(u32, Lsn)>,
    ) -> Result<Claim<'a>> {
        let mut claim = Claim {
            store,
            scope,
            writer,
            id: id.clone(),
            purpose,
            start,
            standing: String::new(),
            renewed: 0,
            granted: None,
        };
        claim.record(None, HOLDS_SECONDS)?;
        Ok(claim)
    }

    /// Returns the claim that was taken; `None`, with a warning, where the repository cannot be written. `until` says
    /// what the backup is in danger for: "while it is copied".
    ///
    /// # Errors
    /// Other errors of the store.
    pub fn if_possible(
        taken: Result<Claim<'a>>,
        (store, id): (&dyn Store, &BackupId),
        until: &str,
        progress: &dyn Progress,
    ) -> Result<Option<Claim<'a>>> {
        match taken {
            Ok(claim) => Ok(Some(claim)),
            Err(e) if matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Full) => {
                progress.warn(&format!(
                    "repository \"{}\" cannot be written, so nothing keeps \"pitr expire\" there from deleting backup \"{id}\" {until} ({e})",
                    store.location()
                ));
                Ok(None)
            }
            Err(e) => Err(e.context(format!("claim backup \"{id}\""))),
        }
    }

    /// The id of the backup.
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Renews the claim with the place from which on WAL is needed.
    ///
    /// # Errors
    /// As [`Claim::check`]; what the store says.
    pub fn protect_from(&mut self, timeline: u32, start_lsn: Lsn) -> Result<()> {
        self.check()?;
        self.start = Some((timeline, start_lsn));
        self.renew(HOLDS_SECONDS)
    }

    /// Renews the claim when it is due; cheap to call often.
    ///
    /// # Errors
    /// As [`Claim::check`]; what the store says.
    pub fn keep(&mut self) -> Result<()> {
        let due = match self.purpose {
            "backup" => BACKUP_RENEWAL_SECONDS,
            _ => RENEWAL_SECONDS,
        };
        if self.age_seconds() < fault::shortened(Duration::from_secs(due)).as_secs() {
            return Ok(());
        }
        self.check()?;
        self.renew(HOLDS_SECONDS)
    }

    /// Requires that the claim has never ended: else expire may have deleted what the backup needs. Asked before the root is written.
    ///
    /// # Errors
    /// `Conflict`; what the store says.
    pub fn check(&self) -> Result<()> {
        let age = self.age_seconds().max(self.age_elsewhere()?);
        if age < HOLDS_SECONDS {
            return Ok(());
        }
        Err(err!(
            Conflict,
            "the claim of backup \"{}\" was last renewed {age} seconds ago and has ended",
            self.id
        )
        .hint("The machine or this process stood still for hours, and pitr expire may have deleted what the backup needs.\nThe backup was not committed. Run the command again."))
    }

    /// Renews the claim for so many seconds, also when it has ended.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn renew(&mut self, seconds: u64) -> Result<()> {
        let replaced = self.standing.clone();
        self.record(Some(replaced), seconds)
    }

    fn age_seconds(&self) -> u64 {
        let age = seconds_since_boot().saturating_sub(self.renewed);
        u64::try_from(age).unwrap_or(0)
    }

    /// The age by the store's clock: a virtual machine that was paused has no clock of its own that tells.
    fn age_elsewhere(&self) -> Result<u64> {
        let Some(granted) = self.granted else {
            return Ok(0);
        };
        let age = self.store.clock()?;
        let age = age.and_then(|now| now.duration_since(granted));
        Ok(age.map_or(0, |age| age.as_secs()))
    }

    fn record(&mut self, replaced: Option<String>, seconds: u64) -> Result<()> {
        let claim = Event {
            ends: replaced,
            purpose: Some(self.purpose.into()),
            seconds: Some(seconds),
            timeline: self.start.map(|(timeline, _)| timeline),
            start_lsn: self.start.map(|(_, lsn)| lsn),
            ..self.writer.event("claim", &self.id.to_string())
        };
        // From before the write: the store dates the claim while it is written.
        let asked = seconds_since_boot();
        // A sync looks for the parts before it commits, and a restore goes on without a claim.
        let granted = match self.purpose {
            "backup" | "prior" => self.store.clock()?,
            _ => None,
        };
        self.standing = self.writer.record(self.store, self.scope, &claim)?;
        (self.renewed, self.granted) = (asked, granted);
        Ok(())
    }

    /// Whether the claim is so young that no other backup takes its writer for killed. That is not known
    /// where the store's clock cannot be asked.
    pub fn is_fresh(&self) -> bool {
        let elsewhere = self.age_elsewhere();
        elsewhere.is_ok_and(|age| age.max(self.age_seconds()) < DELETES_SECONDS)
    }

    /// Ends the claim of a backup that failed. One of purpose `prior` takes its place: what was stored stays for a day.
    pub fn leave(mut self, progress: &dyn Progress) {
        self.purpose = "prior";
        if let Err(e) = self.renew(LEFT_SECONDS) {
            progress.note(&format!(
                "the claim of backup \"{}\" could not be handed over, it ends by itself: {e}",
                self.id
            ));
        }
    }

    /// Ends the claim. When that fails it ends by itself in some hours.
    pub fn release(self, progress: &dyn Progress) {
        let release = Event {
            ends: Some(self.standing),
            ..self.writer.event("release", &self.id.to_string())
        };
        if let Err(e) = self.writer.record(self.store, self.scope, &release) {
            progress.note(&format!(
                "the claim of backup \"{}\" could not be released, it ends by itself: {e}",
                self.id
            ));
        }
    }
}

/// Ends a claim of somebody else, or, without one, what a reservation holds: a claim over at once, and its release, say that the writer gave up.
///
/// # Errors
/// Errors of the store.
pub fn end(
    (store, scope): (&dyn Store, &Scope),
    writer: &Writer<'_>,
    id: &BackupId,
    claim: Option<&str>,
) -> Result<()> {
    let ends = match claim {
        Some(claim) => claim.to_owned(),
        None => {
            let claim = Event {
                purpose: Some("backup".into()),
                seconds: Some(0),
                ..writer.event("claim", &id.to_string())
            };
            writer.record(store, scope, &claim)?
        }
    };
    let release = Event {
        ends: Some(ends),
        ..writer.event("release", &id.to_string())
    };
    writer.record(store, scope, &release).map(|_| ())
}

/// By a clock that nobody sets, and that goes on while the machine sleeps.
pub(super) fn seconds_since_boot() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;

    #[test]
    fn a_claim_that_has_ended_cannot_be_renewed_and_nothing_is_committed_under_it() {
        let (_dir, store, scope) = crafted::scope();
        let nonce = std::sync::atomic::AtomicU64::new(1);
        let clock = || "2026-11-20T06:40:49Z".parse().unwrap();
        let random = || nonce.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let writer = Writer::new(&clock, &random);
        let id = "20261120T064049Z-full".parse().unwrap();
        let mut claim = Claim::take((&store, &scope), writer, &id, "backup", None).unwrap();
        claim.check().unwrap();
        claim.keep().unwrap();
        assert!(claim.is_fresh());
        claim.renewed = seconds_since_boot() - DELETES_SECONDS.cast_signed();
        assert!(!claim.is_fresh());
        claim.check().unwrap();
        claim.renewed = seconds_since_boot() - HOLDS_SECONDS.cast_signed();
        for result in [claim.check(), claim.keep(), claim.protect_from(1, Lsn(8))] {
            assert_eq!(result.unwrap_err().code(), Code::Conflict);
        }
    }

    /// A virtual machine that was paused: the clock since boot stood still, and that of the store did not.
    #[test]
    fn x48_nothing_is_committed_under_a_claim_that_has_ended_by_the_clock_of_the_store() {
        let (_dir, store, scope) = crafted::scope();
        let nonce = std::sync::atomic::AtomicU64::new(1);
        let clock = || -> TimestampTz { "2026-11-20T06:40:49Z".parse().unwrap() };
        let random = || nonce.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let take = |purpose: &'static str| {
            let writer = Writer::new(&clock, &random);
            Claim::take((&store, &scope), writer, &id, purpose, None).unwrap()
        };
        let paused = Duration::from_secs(HOLDS_SECONDS);
        for purpose in ["backup", "prior"] {
            let mut claim = take(purpose);
            claim.check().unwrap();
            let granted = claim.granted.unwrap();
            assert!(claim.is_fresh());
            let silent = Duration::from_secs(DELETES_SECONDS);
            claim.granted = Some(granted.saturating_sub(silent));
            claim.check().unwrap();
            assert!(!claim.is_fresh(), "what others may take over stays");
            claim.granted = Some(granted.saturating_sub(paused));
            claim.keep().unwrap();
            assert_eq!(claim.check().unwrap_err().code(), Code::Conflict);
            // A renewal does not hide that, either.
            claim.renewed = seconds_since_boot() - RENEWAL_SECONDS.cast_signed();
            assert_eq!(claim.keep().unwrap_err().code(), Code::Conflict);
        }
        assert_eq!(take("sync").granted, None);
    }
}
