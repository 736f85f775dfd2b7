//! The claim that keeps a backup from being deleted while it is restored (format, sections 9 and 10).

use std::time::{Duration, Instant};

use super::Surroundings;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;
use crate::repo::event::{self, Event};
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::store::Store;

/// How long a claim holds; it is renewed well before.
const CLAIM_SECONDS: u64 = 3 * 3600;
const RENEWAL: Duration = Duration::from_secs(3600);
/// How long it holds once everything is copied: the server has yet to replay the WAL behind the backup.
const REPLAY_SECONDS: u64 = 24 * 3600;

/// A standing claim.
pub struct Claim<'a> {
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    around: &'a Surroundings<'a>,
    subject: String,
    standing: String,
    renewed: Instant,
    complained: bool,
}

impl<'a> Claim<'a> {
    /// Claims a backup; `None`, and a warning, where the repository cannot be written.
    ///
    /// `planned` is when the backup was chosen: a mark for deletion that came later means that another one should be.
    ///
    /// # Errors
    /// `Refused` when the backup was marked for deletion meanwhile; what the store says when it cannot be read.
    pub fn take(
        store: &'a dyn Store,
        layout: &'a ClusterLayout,
        around: &'a Surroundings<'a>,
        id: &BackupId,
        planned: TimestampTz,
    ) -> Result<Option<Claim<'a>>> {
        let mut claim = Claim {
            store,
            layout,
            around,
            subject: id.to_string(),
            standing: String::new(),
            renewed: Instant::now(),
            complained: false,
        };
        if let Err(e) = claim.record(None, CLAIM_SECONDS) {
            if !matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Full) {
                return Err(e.context(format!("claim backup \"{id}\"")));
            }
            around.progress.warn(&format!(
                "the repository cannot be written, so nothing keeps \"pitr expire\" from deleting backup \"{id}\" before the restore is complete ({e})"
            ));
            return Ok(None);
        }
        let events = event::read_all(store, layout, &claim.subject)?;
        let marks = event::standing(&events, "expire", "unexpire");
        let Some(mark) = marks.iter().map(|m| m.since()).max() else {
            return Ok(Some(claim));
        };
        if mark > planned {
            claim.release();
            return Err(err!(
                Refused,
                "backup \"{id}\" was marked for deletion while the restore was planned"
            )
            .hint("Nothing was written. Run the same command again: it chooses another backup."));
        }
        around.progress.warn(&format!(
            "backup \"{id}\" is marked for deletion; it is kept while this restore runs"
        ));
        Ok(Some(claim))
    }

    /// Renews the claim when it is due; cheap to call often. A failure is said once: the restore goes on.
    pub fn keep(&mut self) {
        if self.renewed.elapsed() < RENEWAL {
            return;
        }
        let replaced = Some(self.standing.clone());
        if let Err(e) = self.record(replaced, CLAIM_SECONDS)
            && !self.complained
        {
            self.complained = true;
            self.around.progress.warn(&format!(
                "the claim of backup \"{}\" could not be renewed: {e}",
                self.subject
            ));
        }
    }

    fn record(&mut self, replaced: Option<String>, seconds: u64) -> Result<()> {
        let claim = Event {
            ends: replaced,
            purpose: Some("restore".into()),
            seconds: Some(seconds),
            ..self.around.writer().event("claim", &self.subject)
        };
        self.renewed = Instant::now();
        self.standing = event::record(self.store, self.layout, &claim, (self.around.random)())?;
        Ok(())
    }

    /// Leaves the claim to the recovery that follows, which needs the backup's WAL and cannot claim anything itself.
    pub fn hand_over(mut self) {
        let replaced = Some(self.standing.clone());
        if let Err(e) = self.record(replaced, REPLAY_SECONDS) {
            self.around.progress.warn(&format!(
                "the claim of backup \"{}\" could not be renewed for the recovery, and ends in some hours: {e}",
                self.subject
            ));
        }
    }

    /// Ends the claim. When that fails it ends by itself in some hours.
    pub fn release(self) {
        let release = Event {
            ends: Some(self.standing),
            ..self.around.writer().event("release", &self.subject)
        };
        let recorded = event::record(self.store, self.layout, &release, (self.around.random)());
        if let Err(e) = recorded {
            self.around.progress.note(&format!(
                "the claim of backup \"{}\" could not be released, it ends by itself: {e}",
                self.subject
            ));
        }
    }
}
