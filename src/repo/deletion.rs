//! The claim under which WAL is deleted, and how others wait for its end (format, sections 9 and 10).
//!
//! A backup or a sync claims first, and then looks for this claim; expire takes this claim first, and then reads the claims of backups. So
//! at least one side sees the other: no WAL goes that was proven present for a backup which is committed afterwards.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::claim::seconds_since_boot;
use super::clock::MAY_DIFFER;
use super::event::{self, Event, Recorded, Writer};
use super::id::BackupId;
use super::scope::Scope;
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::process;
use crate::progress::Progress;
use crate::store::{Store, reserve};

const PURPOSE: &str = "expire";
/// How long the claim holds: so long others wait where expire was killed.
const HOLDS_SECONDS: u64 = 300;
/// After how long it is renewed.
const RENEWAL_SECONDS: u64 = 60;
/// How often the store's clock is asked: a virtual machine that was paused has no clock of its own that tells.
const ASKED_SECONDS: u64 = 5;
/// How long the claim of a run counts on whose machine it was seen to have ended: what it had sent to the store has an answer by then. A run that goes
/// on all the same renews its claim within that time, and the time begins anew.
const ENDED_SECONDS: i64 = RENEWAL_SECONDS.cast_signed() + 30;
/// How often a waiting program looks.
const LOOKS_AGAIN: Duration = Duration::from_millis(500);
/// How often a claim is looked at while the repository is read.
const KEPT_EVERY: Duration = Duration::from_secs(1);

/// A standing claim of expire on the WAL of a cluster.
pub struct DeletionClaim<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    writer: Writer<'a>,
    standing: String,
    /// The claim before it. Two stand: who has listed them and then reads them finds one, also while this one is replaced.
    former: Option<String>,
    renewed: i64,
    /// The store's time before that; none where it has no clock.
    granted: Option<TimestampTz>,
    /// When the store's clock was asked last.
    asked: i64,
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
        let events = event::read_all(store, scope, scope.whole())?;
        let now = earliest(store, &events, (writer.clock)())?;
        let live = event::live_claims(&events, now);
        for over in events
            .iter()
            .filter(is_of_expire)
            .filter(|e| !live.contains(e))
        {
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
            former: None,
            renewed: 0,
            granted: None,
            asked: 0,
        };
        deletion.record()?;
        Ok(deletion)
    }

    /// Renews the claim when it is due; cheap to call before each deletion.
    ///
    /// # Errors
    /// `Conflict` when the claim has ended: somebody may need by now what was to be deleted; what the store says.
    pub fn keep(&mut self) -> Result<()> {
        let now = seconds_since_boot();
        let age = seconds(now, self.renewed);
        check_age(age)?;
        if seconds(now, self.asked) >= ASKED_SECONDS {
            self.asked = now;
            let elsewhere = self.store.clock()?.zip(self.granted);
            let elsewhere = elsewhere.and_then(|(now, granted)| now.duration_since(granted));
            check_age(elsewhere.map_or(0, |age| age.as_secs()))?;
        }
        if age < RENEWAL_SECONDS {
            return Ok(());
        }
        let replaced = std::mem::take(&mut self.standing);
        self.record()?;
        match self.former.replace(replaced) {
            Some(over) => self.remove(&over),
            None => Ok(()),
        }
    }

    /// Returns the result of `work`, and keeps the claim meanwhile: a large repository takes longer to read than the claim holds.
    ///
    /// # Errors
    /// Those of `work` and of [`DeletionClaim::keep`].
    pub fn keep_during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (done, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let keeper = scope.spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(KEPT_EVERY) {
                    self.keep()?;
                }
                self.keep()
            });
            let result = work();
            drop(done);
            let kept = keeper.join();
            let kept =
                kept.map_err(|_| err!(Internal, "the thread that keeps a claim panicked"))?;
            result.and_then(|value| kept.map(|()| value))
        })
    }

    /// Ends the claim.
    ///
    /// # Errors
    /// Errors of the store; the claim then ends by itself.
    pub fn end(self) -> Result<()> {
        if let Some(former) = &self.former {
            self.remove(former)?;
        }
        self.remove(&self.standing)
    }

    fn record(&mut self) -> Result<()> {
        let claim = Event {
            purpose: Some(PURPOSE.into()),
            seconds: Some(HOLDS_SECONDS),
            process: process::own_name(),
            ..self.writer.event("claim", self.scope.whole())
        };
        let asked = seconds_since_boot();
        let granted = self.store.clock()?;
        self.standing = reserve::spend(self.store, 0, || {
            self.writer.record(self.store, self.scope, &claim)
        })?;
        (self.renewed, self.asked, self.granted) = (asked, asked, granted);
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
                let released = reserve::spend(self.store, 0, || {
                    self.writer.record(self.store, self.scope, &release)
                });
                released.map(|_| ())
            }
            deleted => deleted.map(|_| ()),
        }
    }
}

/// Pure: how many seconds passed between two times of the clock since boot.
fn seconds(now: i64, since: i64) -> u64 {
    u64::try_from(now.saturating_sub(since)).unwrap_or(0)
}

fn check_age(seconds: u64) -> Result<()> {
    if seconds < HOLDS_SECONDS {
        return Ok(());
    }
    Err(err!(
        Conflict,
        "the claim under which WAL is deleted was last renewed {seconds} seconds ago and has ended"
    )
    .hint("The machine, this process or the repository stood still. Nothing that is needed was deleted. Run the command again: it goes on."))
}

/// Waits until nobody deletes WAL of the cluster. `tick` is called meanwhile, and may end the wait with an error.
///
/// The store's clock judges a claim of another host: this host's may be ahead. A store may have none: the claim then counts for as much longer
/// as clocks may differ. A claim that was looked at for as long as it holds counts no more: its run was killed. On the machine of that run it is seen
/// that it was, and the claim counts for 90 seconds only.
///
/// # Errors
/// Errors of the store, and `tick`.
pub fn wait(
    (store, scope): (&dyn Store, &Scope),
    clock: &(dyn Fn() -> TimestampTz + Sync),
    progress: &dyn Progress,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut said = None;
    let mut seen = Seen::default();
    loop {
        let events = match event::read_all(store, scope, scope.whole()) {
            // Other events of the cluster are not this module's business.
            Err(e) if e.code() == Code::Damaged => return Ok(()),
            events => events?,
        };
        let live = event::live_claims(&events, earliest(store, &events, clock())?).into_iter();
        let of_expire: Vec<&Recorded> = live.filter(is_of_expire).collect();
        let Some(deleting) = of_expire.first() else {
            return Ok(());
        };
        let now = seconds_since_boot();
        // Each of them is looked at: the times of all run at once.
        let standing = of_expire.iter().filter(|claim| !seen.is_over(claim, now));
        if standing.count() == 0 {
            return Ok(());
        }
        let has_ended = of_expire.iter().all(|claim| has_ended(&claim.event));
        if said.replace(has_ended) != Some(has_ended) {
            let wait = match has_ended {
                true => format!(
                    "was killed: waiting for {ENDED_SECONDS} seconds, until what it had sent is done"
                ),
                false => format!(
                    "deletes WAL: waiting until it has ended, or for {HOLDS_SECONDS} seconds where it was killed"
                ),
            };
            let (host, location) = (&deleting.event.host, store.location());
            progress.note(&format!(
                "\"pitr expire\" on host \"{host}\", in \"{location}\", {wait}"
            ));
        }
        tick()?;
        std::thread::sleep(LOOKS_AGAIN);
    }
}

/// Since when claims were seen, and their runs to have ended, by the clock since boot.
#[derive(Default)]
struct Seen {
    claims: BTreeMap<String, i64>,
    ended: BTreeMap<String, i64>,
}

impl Seen {
    /// Whether a claim counts no more.
    fn is_over(&mut self, claim: &Recorded, now: i64) -> bool {
        let since = |seen: &mut BTreeMap<String, i64>| {
            let since = *seen.entry(claim.name.clone()).or_insert(now);
            now.saturating_sub(since)
        };
        let is_silent = since(&mut self.claims) >= HOLDS_SECONDS.cast_signed();
        is_silent || (has_ended(&claim.event) && since(&mut self.ended) >= ENDED_SECONDS)
    }
}

/// Whether the process that made a claim is of this host, and has ended for all that it sees.
fn has_ended(claim: &Event) -> bool {
    let process = claim.process.as_deref();
    claim.host == event::host() && process.is_some_and(process::has_named_ended)
}

/// Waits for a run of expire that may have decided before an event was there. The operator can end the wait.
///
/// # Errors
/// Those of [`wait`]; `Interrupted`.
pub fn wait_on(place: (&dyn Store, &Scope), host: &Host) -> Result<()> {
    let mut tick = || host.check_stop();
    wait(
        place,
        host.clock.as_ref(),
        host.progress.as_ref(),
        &mut tick,
    )
}

/// Waits as [`wait_on`] does, and returns whether the backup is still there.
///
/// # Errors
/// Those of [`wait_on`].
pub fn outlived((store, scope): (&dyn Store, &Scope), host: &Host, id: &BackupId) -> Result<bool> {
    wait_on((store, scope), host)?;
    Ok(store.head(&scope.manifest(id))?.is_some())
}

fn is_of_expire(event: &&Recorded) -> bool {
    event.event.purpose.as_deref() == Some(PURPOSE)
}

/// The time by which claims of expire end: the earlier of two clocks where another host has dated one.
fn earliest(store: &dyn Store, events: &[Recorded], own: TimestampTz) -> Result<TimestampTz> {
    if is_ours_alone(events) {
        return Ok(own);
    }
    let elsewhere = store.clock()?;
    Ok(elsewhere.unwrap_or(own.saturating_sub(MAY_DIFFER)).min(own))
}

/// Whether this host's clock alone dated the claims of expire.
fn is_ours_alone(events: &[Recorded]) -> bool {
    let host = event::host();
    let mut claims = events.iter().filter(is_of_expire);
    claims.all(|claim| claim.event.host == host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::repo::crafted;
    use crate::store::put;

    #[allow(
        clippy::disallowed_methods,
        reason = "the store's times are those of this clock"
    )]
    fn system_time() -> TimestampTz {
        TimestampTz::from_system_time(std::time::SystemTime::now())
    }

    #[test]
    fn a15_x35_nobody_goes_on_while_wal_is_deleted() {
        let (_dir, store, scope) = crafted::scope();
        let now = system_time();
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
        // A claim of another host is not over because this host's clock is ahead.
        let (clock, random) = (|| now, || 8);
        let writer = Writer::new(&clock, &random);
        let elsewhere = Event {
            purpose: Some(PURPOSE.into()),
            seconds: Some(HOLDS_SECONDS),
            host: "elsewhere".to_owned(),
            ..writer.event("claim", scope.whole())
        };
        writer.record(&store, &scope, &elsewhere).unwrap();
        let ahead = || now.saturating_add(MAY_DIFFER);
        assert_eq!(ask(&ahead), Err(Code::Interrupted));
        // Nor does a run of expire there take it away.
        let (ahead, random) = (|| now.saturating_add(Duration::from_secs(360)), || 9);
        let next = DeletionClaim::take(&store, &scope, Writer::new(&ahead, &random)).unwrap();
        assert_eq!(names(), 2);
        next.end().unwrap();
        assert_eq!(names(), 1);
        // A run that stood still deletes nothing more.
        let mut late = deletion;
        late.renewed = seconds_since_boot() - HOLDS_SECONDS.cast_signed();
        assert_eq!(late.keep().unwrap_err().code(), Code::Conflict);
    }

    #[test]
    fn x41_the_claim_of_a_process_that_has_ended_here_counts_for_a_moment() {
        let claim = |host: &str, process: Option<&str>| Recorded {
            name: "claim".to_owned(),
            event: Event {
                host: host.to_owned(),
                process: process.map(str::to_owned),
                ..Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        };
        let own = process::own_name().unwrap();
        let (place, _) = own.rsplit_once(' ').unwrap();
        let holds = HOLDS_SECONDS.cast_signed();
        let host = event::host();
        for (host, process, after) in [
            (&*host, Some(format!("{place} 1")), ENDED_SECONDS),
            ("elsewhere", Some(format!("{place} 1")), holds),
            (&*host, Some(own.clone()), holds),
            (&*host, Some("of another machine 7 1".to_owned()), holds),
            (&*host, None, holds),
        ] {
            let (mut seen, claim) = (Seen::default(), claim(host, process.as_deref()));
            assert!(!seen.is_over(&claim, 1000), "{process:?}");
            assert!(!seen.is_over(&claim, 1000 + after - 1), "{process:?}");
            assert!(seen.is_over(&claim, 1000 + after), "{process:?}");
        }
    }

    #[test]
    fn the_operator_ends_the_wait_and_a_backup_that_is_gone_is_told() {
        let (_dir, store, scope) = crafted::scope();
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let now = system_time();
        let host = Host::still(now, 5);
        let ask = || outlived((&store, &scope), &host, &id).map_err(|e| e.code());
        assert_eq!(ask(), Ok(false));
        put(&store, &scope.manifest(&id), b"root").unwrap();
        assert_eq!(ask(), Ok(true));
        let deletion = DeletionClaim::take(&store, &scope, Writer::of(&host)).unwrap();
        host.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ask(), Err(Code::Interrupted));
        deletion.end().unwrap();
        assert_eq!(ask(), Ok(true));
    }

    /// A virtual machine that was paused: the clock since boot stood still, and that of the store did not.
    #[test]
    fn x30_a_claim_ends_by_the_clock_of_the_store() {
        let (_dir, store, scope) = crafted::scope();
        let now = system_time();
        let (clock, random) = (|| now, || 5);
        let mut deletion =
            DeletionClaim::take(&store, &scope, Writer::new(&clock, &random)).unwrap();
        deletion.keep().unwrap();
        let asked = seconds_since_boot() - ASKED_SECONDS.cast_signed();
        (deletion.asked, deletion.granted) = (asked, Some(now));
        deletion.keep().unwrap();
        let paused = Duration::from_secs(HOLDS_SECONDS);
        (deletion.asked, deletion.granted) = (asked, Some(now.saturating_sub(paused)));
        assert_eq!(deletion.keep().unwrap_err().code(), Code::Conflict);
    }

    #[test]
    fn x15_a_claim_is_kept_while_the_repository_is_read_and_always_found() {
        let (_dir, store, scope) = crafted::scope();
        let next = std::sync::atomic::AtomicU64::new(5);
        let clock = system_time;
        let random = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut deletion =
            DeletionClaim::take(&store, &scope, Writer::new(&clock, &random)).unwrap();
        let names = || {
            let listed = store.list(&scope.subject(scope.whole())).unwrap();
            listed.into_iter().map(|one| one.name).collect::<Vec<_>>()
        };
        let due = seconds_since_boot() - RENEWAL_SECONDS.cast_signed();
        let first = names();
        deletion.renewed = due;
        // The reading ends once the claim was renewed beside it.
        let read = deletion.keep_during(|| {
            while names().len() < 2 {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(names())
        });
        let second = read.unwrap();
        assert!(second.contains(&first[0]), "{first:?} {second:?}");
        deletion.renewed = due;
        deletion.keep().unwrap();
        let third = names();
        assert_eq!(third.len(), 2, "{third:?}");
        assert!(!third.contains(&first[0]), "{first:?} {third:?}");
        assert!(third.iter().any(|name| second.contains(name)), "{third:?}");
        deletion.renewed = seconds_since_boot() - HOLDS_SECONDS.cast_signed();
        let late = deletion.keep_during(|| Ok(()));
        assert_eq!(late.unwrap_err().code(), Code::Conflict);
        deletion.end().unwrap();
        assert_eq!(names(), [""; 0]);
    }
}
