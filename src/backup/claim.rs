//! The reservation of a backup's id and the claim that protects what it needs while it runs (format, sections 9 and 10).

use std::time::{Duration, Instant};

use super::Surroundings;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::repo::event::{self, Event};
use crate::repo::layout::{BackupId, ClusterLayout};
use crate::store::{Published, Store};

/// How long a claim holds; it is renewed well before.
const CLAIM_SECONDS: u64 = 3 * 3600;
const RENEWAL: Duration = Duration::from_secs(3600);
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
    renewed: Instant,
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
                event: "begin".into(),
                subject: id.to_string(),
                time: now,
                backup_kind: Some("full".into()),
                pid: Some(std::process::id()),
                ..around.event()
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
            renewed: Instant::now(),
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
        self.start = Some((timeline, start_lsn));
        let replaced = self.standing.clone();
        self.record(Some(replaced))
    }

    /// Renews the claim when it is due; cheap to call often.
    ///
    /// # Errors
    /// What the store says.
    pub fn keep(&mut self) -> Result<()> {
        if self.renewed.elapsed() < RENEWAL {
            return Ok(());
        }
        let replaced = self.standing.clone();
        self.record(Some(replaced))
    }

    fn record(&mut self, replaced: Option<String>) -> Result<()> {
        let claim = Event {
            event: "claim".into(),
            subject: self.id.to_string(),
            time: (self.around.clock)(),
            ends: replaced,
            purpose: Some("backup".into()),
            seconds: Some(CLAIM_SECONDS),
            timeline: self.start.map(|(timeline, _)| timeline),
            start_lsn: self.start.map(|(_, lsn)| lsn),
            ..self.around.event()
        };
        let nonce = (self.around.random)();
        self.standing = event::record(self.store, self.layout, &claim, nonce)?;
        self.renewed = Instant::now();
        Ok(())
    }

    /// Ends the claim.
    ///
    /// # Errors
    /// What the store says; the claim then ends by itself.
    pub fn release(self) -> Result<()> {
        let release = Event {
            event: "release".into(),
            subject: self.id.to_string(),
            time: (self.around.clock)(),
            ends: Some(self.standing),
            ..self.around.event()
        };
        event::record(self.store, self.layout, &release, (self.around.random)())?;
        Ok(())
    }
}
