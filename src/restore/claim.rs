//! The claim that keeps a backup from being deleted while it is restored (format, sections 9 and 10).

use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::claim::{self, HOLDS_SECONDS, RENEWAL_SECONDS};
use crate::repo::clock;
use crate::repo::deletion;
use crate::repo::event;
use crate::repo::event::Writer;
use crate::repo::id::BackupId;
use crate::repo::scope::Scope;
use crate::store::Store;

/// How long the claim of a marked backup holds once everything is copied: the server has yet to replay the WAL behind it.
const REPLAY_SECONDS: u64 = 24 * 3600;

/// The error, unless its cause is that the backup was deleted after it had been chosen.
pub(super) fn unless_deleted(
    store: &dyn Store,
    scope: &Scope,
    id: &BackupId,
    error: Error,
) -> Error {
    match store.head(&scope.manifest(id)) {
        Ok(None) => deleted(id, false),
        _ => error,
    }
}

fn deleted(id: &BackupId, is_taken_up: bool) -> Error {
    if is_taken_up {
        return err!(
            NotFound,
            "backup \"{id}\" was deleted since its restore began"
        )
        .hint("Nothing more was written. Restore another backup into an empty directory: pitr info lists them.");
    }
    err!(
        NotFound,
        "backup \"{id}\" was deleted while the restore was planned"
    )
    .hint("Nothing was written. Run the same command again, with another backup where it names one: pitr info lists them.")
}

/// Waits for a run of expire that decided before the claim was there, and requires that the marked backup is still there.
fn outlived(
    (store, scope): (&dyn Store, &Scope),
    host: &Host,
    (id, is_taken_up): (&BackupId, bool),
) -> Result<()> {
    match deletion::wait_on((store, scope), host) {
        Ok(()) => {}
        Err(e) if e.code() == Code::Interrupted => return Err(e),
        // The restore does not depend on it.
        Err(e) => host.progress.warn(&format!(
            "whether \"pitr expire\" deletes from the repository could not be asked: {e}"
        )),
    }
    match store.head(&scope.manifest(id))? {
        Some(_) => Ok(()),
        None => Err(deleted(id, is_taken_up)),
    }
}

/// A standing claim.
pub struct Claim<'a> {
    claim: claim::Claim<'a>,
    host: &'a Host,
    tried: Instant,
    complained: bool,
}

impl<'a> Claim<'a> {
    /// Claims a backup; `None`, and a warning, where the repository cannot be written.
    ///
    /// `planned` is when the backup was chosen: a mark for deletion that came later means that another one should be. A restore that is taken
    /// up has none: its backup is fixed.
    ///
    /// # Errors
    /// `Refused` when the backup was marked for deletion meanwhile, `NotFound` when it was deleted; `Interrupted`; what the store says when it
    /// cannot be read.
    pub fn take(
        store: &'a dyn Store,
        scope: &'a Scope,
        host: &'a Host,
        id: &BackupId,
        planned: Option<TimestampTz>,
    ) -> Result<Option<Claim<'a>>> {
        let is_taken_up = planned.is_none();
        fault::pause("restore-planned");
        let tried = Instant::now();
        // A clock is no reason to refuse a restore. Expire counts a claim from the future by the store's time.
        if let Err(e) = clock::check(store, host.now())
            && e.code() == Code::Refused
        {
            host.progress.warn(&format!(
                "{e}: correct the clock that is wrong; the restore goes on"
            ));
        }
        let taken = claim::Claim::take((store, scope), Writer::of(host), id, "restore", None)
            .map_err(|e| match store.head(&scope.manifest(id)) {
                Ok(None) => deleted(id, is_taken_up),
                _ => e,
            });
        let until = "before the restore is complete";
        let taken = claim::Claim::if_possible(taken, (store, id), until, host.progress.as_ref())?;
        let Some(claim) = taken else { return Ok(None) };
        if store.head(&scope.manifest(id))?.is_none() {
            claim.release(host.progress.as_ref());
            return Err(deleted(id, is_taken_up));
        }
        let claim = Claim {
            claim,
            host,
            tried,
            complained: false,
        };
        let events = event::read_all(store, scope, &id.to_string())?;
        let marks = event::marks(&events);
        if marks.is_empty() {
            return Ok(Some(claim));
        }
        if planned.is_some_and(|planned| marks.iter().any(|m| m.since(planned) > planned)) {
            claim.release();
            return Err(err!(
                Refused,
                "backup \"{id}\" was marked for deletion while the restore was planned"
            )
            .hint("Nothing was written. Run the same command again: it chooses another backup."));
        }
        if let Err(e) = outlived((store, scope), host, (id, is_taken_up)) {
            claim.release();
            return Err(e);
        }
        host.progress.warn(&format!(
            "backup \"{id}\" is marked for deletion; it is kept while this restore runs"
        ));
        Ok(Some(claim))
    }

    /// Renews the claim when it is due; cheap to call often. A failure is reported once: the restore goes on.
    pub fn keep(&mut self) {
        if self.tried.elapsed() < fault::shortened(Duration::from_secs(RENEWAL_SECONDS)) {
            return;
        }
        self.tried = Instant::now();
        if let Err(e) = self.claim.renew(HOLDS_SECONDS)
            && !self.complained
        {
            self.complained = true;
            self.host.progress.warn(&format!(
                "the claim of backup \"{}\" could not be renewed: {e}",
                self.claim.id()
            ));
        }
    }

    /// Ends the claim of a restore that is complete. A backup without a mark for deletion stays for a grace period, in which the recovery
    /// that follows reads the WAL behind it; of a marked backup the claim is left to that recovery, which cannot claim anything itself.
    pub fn complete(mut self, store: &dyn Store, scope: &Scope) {
        let id = self.claim.id().to_string();
        let events = event::read_all(store, scope, &id);
        if events.is_ok_and(|events| !event::is_marked(&events)) {
            self.release();
        } else if let Err(e) = self.claim.renew(REPLAY_SECONDS) {
            self.host.progress.warn(&format!(
                "the claim of backup \"{}\" could not be renewed for the recovery, and ends in some hours: {e}",
                self.claim.id()
            ));
        }
    }

    /// Ends the claim.
    pub fn release(self) {
        self.claim.release(self.host.progress.as_ref());
    }
}
