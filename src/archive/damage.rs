//! Damage that a fetch came upon: reported, and recorded in the repository that has it, so that plans, expiry and
//! people know of it.
//!
//! Recovery waits for no record: what cannot be written is not written (a reader may have no right to), and what takes too long is left
//! behind. `pitr verify` finds the damage all the same.

use std::sync::mpsc;
use std::time::Duration;

use crate::error::Result;
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::progress::Progress;
use crate::repo::event::Writer;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;

/// How long a fetch is held up by its records. In a healthy repository they take some milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
const PROGRAM: &str = concat!("pitr-restore ", env!("CARGO_PKG_VERSION"));

/// A copy that failed its check.
pub(super) struct Damage {
    pub(super) repository: Repository,
    pub(super) layout: ClusterLayout,
    pub(super) detail: String,
    /// Nothing is known to be wrong with its bytes: the store must thaw it, or the medium did not give them this time.
    pub(super) is_passing: bool,
}

/// Says which copies are of no use where another repository gave the file; without one the error says it.
pub(super) fn tell(progress: &dyn Progress, found: &[Damage], from: &Repository) {
    for damage in found {
        progress.warn(&format!(
            "{}; it was taken from \"{}\"; \"pitr verify\" shows what else is damaged",
            damage.detail,
            from.store().location()
        ));
    }
}

/// Records the damage of a segment's copies. Never fails, and takes a second at most.
pub(super) fn record(segment: SegmentName, found: Vec<Damage>, now: TimestampTz, nonce: u64) {
    // Nothing is sent: the channel is closed when the last thread has ended.
    let (alive, ended) = mpsc::channel::<()>();
    for damage in found.into_iter().filter(|damage| !damage.is_passing) {
        let alive = alive.clone();
        let work = move || {
            let _alive = alive;
            // The result has no reader: the important facts were reported before.
            let _ = damage.record(segment, now, nonce);
        };
        if std::thread::Builder::new().spawn(work).is_err() {
            return;
        }
    }
    drop(alive);
    let _ = ended.recv_timeout(PATIENCE);
}

impl Damage {
    fn record(&self, segment: SegmentName, now: TimestampTz, nonce: u64) -> Result<()> {
        let store = self.repository.store();
        let writer = Writer {
            program: PROGRAM,
            clock: &|| now,
            random: &|| nonce,
        };
        let subject = format!("wal-{segment}");
        let object = self.layout.segment(segment).to_string();
        writer.record_damage(store, &self.layout, &subject, (&object, &self.detail))
    }
}
