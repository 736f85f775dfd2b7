//! The claims that protect a backup while it is copied: on the side that has it, and on the one that gets it (format, section 12).

use rustix::time::{ClockId, clock_gettime};

use super::Transfer;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::repo::event::{self, Event};
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::store::Store;

/// How long a claim holds; it is renewed well before.
const CLAIM_SECONDS: u64 = 3 * 3600;
const RENEWAL_SECONDS: i64 = 3600;

/// A standing claim.
pub(super) struct Claim<'a> {
    transfer: &'a Transfer<'a>,
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    id: BackupId,
    start: (u32, Lsn),
    standing: String,
    /// In seconds since boot, by a clock that nobody sets.
    renewed: i64,
}

impl<'a> Claim<'a> {
    /// Claims a backup, with the WAL from `start` on.
    ///
    /// # Errors
    /// What the store says.
    pub(super) fn take(
        transfer: &'a Transfer<'a>,
        store: &'a dyn Store,
        id: &BackupId,
        start: (u32, Lsn),
    ) -> Result<Claim<'a>> {
        let mut claim = Claim {
            transfer,
            store,
            layout: &transfer.layout,
            id: id.clone(),
            start,
            standing: String::new(),
            renewed: 0,
        };
        claim.record(None)?;
        Ok(claim)
    }

    /// As [`Claim::take`]; `None`, and a warning, where the repository cannot be written.
    ///
    /// # Errors
    /// What the store says otherwise.
    pub(super) fn take_if_possible(
        transfer: &'a Transfer<'a>,
        store: &'a dyn Store,
        id: &BackupId,
        start: (u32, Lsn),
    ) -> Result<Option<Claim<'a>>> {
        match Claim::take(transfer, store, id, start) {
            Ok(claim) => Ok(Some(claim)),
            Err(e) if matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Full) => {
                transfer.progress.warn(&format!(
                    "repository \"{}\" cannot be written, so nothing keeps \"pitr expire\" there from deleting backup \"{id}\" while it is copied ({e})",
                    store.location()
                ));
                Ok(None)
            }
            Err(e) => Err(e.context(format!("claim backup \"{id}\""))),
        }
    }

    /// Renews the claim when it is due; cheap to call often.
    ///
    /// # Errors
    /// As [`Claim::check`]; what the store says.
    pub(super) fn keep(&mut self) -> Result<()> {
        if seconds_since_boot().saturating_sub(self.renewed) < RENEWAL_SECONDS {
            return Ok(());
        }
        self.check()?;
        let replaced = self.standing.clone();
        self.record(Some(replaced))
    }

    /// Requires that the claim never ended. Asked before the root is written.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check(&self) -> Result<()> {
        let age = seconds_since_boot().saturating_sub(self.renewed);
        match age < CLAIM_SECONDS.cast_signed() {
            true => Ok(()),
            false => Err(err!(
                Conflict,
                "the claim of backup \"{}\" was last renewed {age} seconds ago and has ended",
                self.id
            )
            .hint("The machine or this process stood still for hours, and pitr expire may have deleted what was copied. Run the command again.")),
        }
    }

    fn record(&mut self, replaced: Option<String>) -> Result<()> {
        let claim = Event {
            ends: replaced,
            purpose: Some("sync".into()),
            seconds: Some(CLAIM_SECONDS),
            timeline: Some(self.start.0),
            start_lsn: Some(self.start.1),
            ..self.transfer.writer().event("claim", &self.id.to_string())
        };
        // From before the write: the store dates the claim while it is written.
        let asked = seconds_since_boot();
        let nonce = (self.transfer.random)();
        self.standing = event::record(self.store, self.layout, &claim, nonce)?;
        self.renewed = asked;
        Ok(())
    }

    /// Ends the claim. When that fails it ends by itself in some hours.
    pub(super) fn release(self) {
        let release = Event {
            ends: Some(self.standing),
            ..self
                .transfer
                .writer()
                .event("release", &self.id.to_string())
        };
        let nonce = (self.transfer.random)();
        if let Err(e) = event::record(self.store, self.layout, &release, nonce) {
            self.transfer.progress.note(&format!(
                "the claim of backup \"{}\" could not be released, it ends by itself: {e}",
                self.id
            ));
        }
    }
}

fn seconds_since_boot() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}
