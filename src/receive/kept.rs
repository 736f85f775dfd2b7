//! Warns while there is time: WAL that the server keeps for the slot because it is not acknowledged.
//!
//! Only the server knows how much there is and how much there may be, and while the journal has no room nothing is read that would tell.
//! So it is asked by SQL, beside the stream, for as long as something waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::upstream;
use crate::journal::growth::Growth;
use crate::progress::Progress;
use crate::wire::conninfo::ConnInfo;
use crate::wire::slot::{KeptWal, SlotName};
use crate::wire::sql::Sql;

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(5);

/// The last answers about the kept WAL while something waits.
#[derive(Default)]
pub struct Kept {
    asked: Option<Instant>,
    asking: Option<JoinHandle<Option<KeptWal>>>,
    growth: Option<Growth>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Kept {
    /// Nothing waits any more.
    pub fn forget(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
        self.growth = None;
    }

    /// Asks when it is time, and looks at the answer when it is there; the warning that follows from it.
    pub async fn look(
        &mut self,
        info: &ConnInfo,
        host: &str,
        slot: &SlotName,
        progress: &Arc<dyn Progress>,
    ) -> Option<String> {
        if let Some(asking) = self.asking.take_if(|a| a.is_finished()) {
            // Without an answer there is nothing to say: it is asked again.
            return self.answer(asking.await.ok()??, slot);
        }
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= EVERY);
        if is_due && self.asking.is_none() {
            self.asked = Some(Instant::now());
            let mut same = info.clone();
            same.hosts.retain(|h| h.display() == host);
            let (host, slot, progress) = (host.to_owned(), slot.clone(), Arc::clone(progress));
            let question = async move {
                let mut sql = Sql::connect(&same, progress).await?;
                let kept = sql.kept_wal(&slot).await;
                sql.close().await;
                kept
            };
            self.asking = Some(tokio::spawn(async move {
                upstream::answered(&host, question).await.ok().flatten()
            }));
        }
        None
    }

    fn answer(&mut self, kept: KeptWal, slot: &SlotName) -> Option<String> {
        let now = std::time::Instant::now();
        let Some(growth) = &mut self.growth else {
            // A rate needs two looks.
            self.growth = Some(Growth::new(now, kept.bytes));
            return None;
        };
        let reached = growth.observe(now, kept.bytes, kept.limit_bytes)?;
        Some(format!(
            "the server keeps {} bytes of WAL for slot \"{slot}\", {} % of what it may keep (max_slot_wal_keep_size){}; it lets go what the receiver \
             can acknowledge again",
            kept.bytes,
            reached.percent,
            reached.in_words("the slot loses WAL")
        ))
    }
}
