//! The claim under which WAL is deleted, and how others wait for its end (format, sections 9 and 10).
//!
//! A backup or a sync claims first, and then looks for this claim; expire takes this claim first, and then reads the claims of backups. So
//! at least one side sees the other: no WAL goes that was proven present for a backup which is committed afterwards.

use std::time::Duration;

use super::claim::seconds_since_boot;
use super::event::{self, Event, Recorded, Writer};
use super::scope::Scope;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;
use crate::progress::Progress;
use crate::store::Store;

const PURPOSE: &str = "expire";
/// How long the claim holds: so long others wait where expire was killed.
const HOLDS_SECONDS: u64 = 300;
/// After how long it is renewed.
const RENEWAL_SECONDS: u64 = 60;
/// How often a waiting program looks.
const LOOKS_AGAIN: Duration = Duration::from_millis(500);

/// A standing claim of expire on the WAL of a cluster.
pub struct DeletionClaim<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    writer: Writer<'a>,
    standing: String,
    renewed: i64,
}

impl<'a> DeletionClaim<'a> {
    /// Claims the WAL for deletion, and clears away such claims that are over.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn take(
        store: &'a dyn Store,
        scope: &'a Scope,
        writer: Writer<'a>,
    ) -> Result<DeletionClaim<'a>> {
        let now = (writer.clock)();
        let events = event::read_all(store, scope, scope.whole())?;
        let live = event::live_claims(&events, now);
        let is_ours = |e: &&Recorded| e.event.purpose.as_deref() == Some(PURPOSE);
        for over in events.iter().filter(is_ours).filter(|e| !live.contains(e)) {
            match store.delete(&scope.event(scope.whole(), &over.name)?) {
                // A store that keeps it holds up nobody: it is over.
                Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {}
                deleted => drop(deleted?),
            }
        }
        let mut deletion = DeletionClaim {
            store,
            scope,
            writer,
            standing: String::new(),
            renewed: 0,
        };
        deletion.record()?;
        Ok(deletion)
    }

    /// Renews the claim when it is due; cheap to call before each deletion.
    ///
    /// # Errors
    /// `Conflict` when the claim has ended: somebody may need by now what was to be deleted; what the store says.
    pub fn keep(&mut self) -> Result<()> {
        let age = seconds_since_boot().saturating_sub(self.renewed);
        let age = u64::try_from(age).unwrap_or(0);
        if age < RENEWAL_SECONDS {
            return Ok(());
        }
        if age >= HOLDS_SECONDS {
            return Err(err!(
                Conflict,
                "the claim under which WAL is deleted was last renewed {age} seconds ago and has ended"
            )
            .hint("The machine, this process or the repository stood still. Nothing that is needed was deleted. Run the command again: it goes on."));
        }
        let replaced = std::mem::take(&mut self.standing);
        self.record()?;
        self.remove(&replaced)
    }

    /// Ends the claim.
    ///
    /// # Errors
    /// Errors of the store; the claim then ends by itself.
    pub fn end(self) -> Result<()> {
        self.remove(&self.standing)
    }

    fn record(&mut self) -> Result<()> {
        let claim = Event {
            purpose: Some(PURPOSE.into()),
            seconds: Some(HOLDS_SECONDS),
            ..self.writer.event("claim", self.scope.whole())
        };
        let asked = seconds_since_boot();
        self.standing = self.writer.record(self.store, self.scope, &claim)?;
        self.renewed = asked;
        Ok(())
    }

    /// Deletes an own claim; where the store keeps it, it is released.
    fn remove(&self, name: &str) -> Result<()> {
        let key = self.scope.event(self.scope.whole(), name)?;
        match self.store.delete(&key) {
            Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {
                let release = Event {
                    ends: Some(name.to_owned()),
                    ..self.writer.event("release", self.scope.whole())
                };
                let released = self.writer.record(self.store, self.scope, &release);
                released.map(|_| ())
            }
            deleted => deleted.map(|_| ()),
        }
    }
}

/// Waits until nobody deletes WAL of the cluster. `tick` is called meanwhile, and may end the wait with an error.
///
/// # Errors
/// Errors of the store, and `tick`.
pub fn wait(
    (store, scope): (&dyn Store, &Scope),
    clock: &(dyn Fn() -> TimestampTz + Sync),
    progress: &dyn Progress,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut is_said = false;
    loop {
        let events = match event::read_all(store, scope, scope.whole()) {
            // Other events of the cluster are not this module's business.
            Err(e) if e.code() == Code::Damaged => return Ok(()),
            events => events?,
        };
        let live = event::live_claims(&events, clock());
        let deleting = live
            .into_iter()
            .find(|e| e.event.purpose.as_deref() == Some(PURPOSE));
        let Some(deleting) = deleting else {
            return Ok(());
        };
        if !is_said {
            is_said = true;
            progress.note(&format!(
                "\"pitr expire\" on host \"{}\" deletes WAL in \"{}\": waiting until it has ended, or for {HOLDS_SECONDS} seconds where it was killed",
                deleting.event.host,
                store.location()
            ));
        }
        tick()?;
        std::thread::sleep(LOOKS_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::store::file::FileStore;

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "the store's times are those of this clock"
    )]
    fn a15_nobody_goes_on_while_wal_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let scope = Scope::cluster("main", 7).unwrap();
        let now = TimestampTz::from_system_time(std::time::SystemTime::now());
        let (clock, random) = (|| now, || 5);
        let deletion = DeletionClaim::take(&store, &scope, Writer::new(&clock, &random)).unwrap();
        let ask = |clock: &(dyn Fn() -> TimestampTz + Sync)| {
            let mut stop = || Err(err!(Interrupted, "it waits"));
            wait((&store, &scope), clock, &Silent, &mut stop).map_err(|e| e.code())
        };
        assert_eq!(ask(&clock), Err(Code::Interrupted));
        // Killed, the claim ends by itself, and the next run clears it away.
        let later = || now.saturating_add(Duration::from_secs(HOLDS_SECONDS + 60));
        assert_eq!(ask(&later), Ok(()));
        let random = || 6;
        let next = DeletionClaim::take(&store, &scope, Writer::new(&later, &random)).unwrap();
        let names = || store.list(&scope.subject(scope.whole())).unwrap().len();
        assert_eq!((names(), ask(&later)), (1, Err(Code::Interrupted)));
        next.end().unwrap();
        assert_eq!((names(), ask(&later)), (0, Ok(())));
        // A run that stood still deletes nothing more.
        let mut late = deletion;
        late.renewed = seconds_since_boot() - HOLDS_SECONDS.cast_signed();
        assert_eq!(late.keep().unwrap_err().code(), Code::Conflict);
    }
}
