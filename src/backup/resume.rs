//! Interrupted backups, and what the next one takes over of what they stored.
//!
//! Nothing depends on the state of the cluster: the new backup starts and stops by itself, and reads every page that it would read anyway. A page
//! that an interrupted backup stored, at the same position of the same file and with the same content, is not stored again. The rules, and the proof
//! that they suffice, are in `docs/decisions/0046-resumed-backups.md`.

use std::time::{Duration, Instant};

use super::incremental::held::has_packs;
use super::{stored, turn};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::repo::catalog::{self, part_number};
use crate::repo::claim::{Claim, LEFT_SECONDS};
use crate::repo::clock::MAY_DIFFER;
use crate::repo::deletion;
use crate::repo::event::{self, Recorded, Writer, live_claims};
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::layout::ClusterLayout;
use crate::repo::root::{BackupRoot, PackRef};
use crate::repo::scope::Scope;
use crate::snapshot::filekey::Naming;
use crate::snapshot::leftovers::{Leftovers, is_readable};
use crate::store::Store;

/// An interrupted backup is kept for so long (format, section 10.2), or as long as it is claimed.
const KEPT: Duration = Duration::from_secs(LEFT_SECONDS);

/// Interrupted backups that are claimed, and read back.
pub struct Resumed<'a> {
    /// Their packs.
    pub leftovers: Leftovers<'a>,
    claims: Vec<Claim<'a>>,
}

/// An interrupted backup from which a new one took something over.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TakenOver {
    pub id: String,
    /// Packs that it left, and that are whole.
    pub packs: u64,
    /// Those to which the new backup leads.
    pub used_packs: u64,
    /// Bytes of files that were not stored again.
    pub bytes: u64,
}

impl<'a> Resumed<'a> {
    /// Claims what interrupted backups of the cluster left, and reads it back; `None` where there is nothing, or it cannot be read here. `own` is the id of
    /// the new backup. `tick` is called meanwhile.
    ///
    /// # Errors
    /// `Interrupted`; those of `tick`; what the store says.
    pub fn hold(
        (store, layout): (&'a dyn Store, &'a ClusterLayout),
        own: &BackupId,
        (naming, threads): (Naming, usize),
        host: &'a Host,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Resumed<'a>>> {
        let place = (store, &**layout);
        let mut found = interrupted(place, own, host, tick)?;
        found.sort_by_key(|(id, _)| id.time());
        let mut claims = Vec::new();
        for (id, packs) in found {
            if !is_readable(place, first_of(&id, &packs)?, naming)? {
                host.progress.note(&format!(
                    "backup \"{id}\" was interrupted, and this host cannot read what it stored: everything is stored again"
                ));
                continue;
            }
            claims.push(Claim::take(place, Writer::of(host), &id, "prior", None)?);
        }
        if claims.is_empty() {
            return Ok(None);
        }
        let read = read(place, &mut claims, (naming, threads), host, tick);
        match read {
            Ok(Some(leftovers)) => Ok(Some(Resumed { leftovers, claims })),
            other => {
                release(claims, host);
                other.map(|_| None)
            }
        }
    }

    /// The claims on what is taken over, which are to be kept until the commit.
    pub fn split(self) -> (Leftovers<'a>, Vec<Claim<'a>>) {
        (self.leftovers, self.claims)
    }
}

/// Returns a pack of those that an id has.
fn first_of<'p>(id: &BackupId, packs: &'p [PartName]) -> Result<&'p PartName> {
    packs
        .first()
        .ok_or_else(|| err!(Internal, "backup \"{id}\" left no pack"))
}

/// Ends the claims on what interrupted backups left.
pub fn release(claims: Vec<Claim<'_>>, host: &Host) {
    for claim in claims {
        claim.release(host.progress.as_ref());
    }
}

/// Requires that no pack of another backup has gone since it was read.
///
/// # Errors
/// `Conflict`; what the store says.
pub fn check_packs(store: &dyn Store, scope: &Scope, packs: &[PackRef]) -> Result<()> {
    match has_packs(store, scope, packs)? {
        true => Ok(()),
        false => Err(err!(
            Conflict,
            "a pack of an interrupted backup, which this one took over, is gone"
        )
        .hint("Somebody deleted it by hand, or its writer woke up. Nothing was committed. Take the backup again, without it: pitr backup --no-resume")),
    }
}

/// Whether the packs of a backup that failed with this error are worth keeping: not where they take the room that WAL needs, and not
/// where what was read is in doubt.
pub fn may_resume(e: &Error) -> bool {
    let is_in_doubt = e.is_damage() || matches!(e.code(), Code::Conflict | Code::WrongCluster);
    !is_in_doubt && !matches!(e.code(), Code::Full | Code::ReadOnly | Code::Denied)
}

/// Whether this host can read back what it stored under an id: else nothing could go on from it.
pub fn can_read_own(place: (&dyn Store, &Scope), id: &BackupId, naming: Naming) -> bool {
    let packs = packs_of(place, id).unwrap_or_default();
    let first = packs.first();
    first.is_some_and(|first| is_readable(place, first, naming).unwrap_or(false))
}

/// Sums up what a new backup took over.
pub fn taken_over(leftovers: &Leftovers<'_>, packs: &[PackRef]) -> Vec<TakenOver> {
    let mut all: Vec<TakenOver> = Vec::new();
    for part in leftovers.packs() {
        let id = part.id.to_string();
        let used = packs.iter().find(|pack| pack.key == *part);
        let of = match all.last_mut() {
            Some(last) if last.id == id => last,
            _ => {
                all.push(TakenOver {
                    id,
                    packs: 0,
                    used_packs: 0,
                    bytes: 0,
                });
                match all.last_mut() {
                    Some(new) => new,
                    None => continue,
                }
            }
        };
        of.packs += 1;
        of.used_packs += u64::from(used.is_some());
        of.bytes += used.map_or(0, |pack| pack.live_bytes);
    }
    all
}

/// Interrupted backups from which `own` may go on, with their packs.
fn interrupted(
    (store, scope): (&dyn Store, &Scope),
    own: &BackupId,
    host: &Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<(BackupId, Vec<PartName>)>> {
    let now = host.now();
    let mut found = Vec::new();
    for id in turn::left_for(own, (store, scope), now)? {
        if may_be_taken((store, scope), &id, now)? {
            let packs = packs_of((store, scope), &id)?;
            if !packs.is_empty() {
                found.push((id, packs));
            }
        }
    }
    drop_named((store, scope), &mut found, tick)?;
    Ok(found)
}

/// Whether an id has no backup, nobody works on it, and nobody is about to delete it.
fn may_be_taken(
    (store, scope): (&dyn Store, &Scope),
    id: &BackupId,
    now: TimestampTz,
) -> Result<bool> {
    if stored::length(store, &scope.manifest(id))?.is_some() {
        return Ok(false);
    }
    match event::read_all(store, scope, &id.to_string()) {
        // "pitr verify" names it.
        Err(e) if e.is_damage() => Ok(false),
        events => Ok(is_interrupted(id, &events?, now)),
    }
}

fn is_interrupted(id: &BackupId, events: &[Recorded], now: TimestampTz) -> bool {
    let Some(begin) = events.iter().find(|e| e.name == "begin") else {
        return false;
    };
    // A copy of another repository's backup may be completed yet.
    let is_copied = events
        .iter()
        .any(|e| e.event.purpose.as_deref() == Some("sync"));
    let is_kept =
        begin.since(now).saturating_add(KEPT) > now || !live_claims(events, now).is_empty();
    is_kept
        && !is_copied
        && event::completed(events).is_none()
        && !event::is_marked(events)
        && event::damage(events).is_empty()
        && turn::is_over(id, events, now)
}

fn packs_of((store, scope): (&dyn Store, &Scope), id: &BackupId) -> Result<Vec<PartName>> {
    let listed = store.list(&scope.parts(PartKind::Pack, Some(id)))?;
    let mut numbers: Vec<u32> = listed.iter().filter_map(|l| part_number(&l.name)).collect();
    numbers.sort_unstable();
    let part = |number| PartName {
        id: id.clone(),
        number,
    };
    Ok(numbers.into_iter().map(part).collect())
}

/// Drops those of which a backup has taken something over already. Only the next backup goes on from them, so that full ones share nothing later on.
fn drop_named(
    (store, scope): (&dyn Store, &Scope),
    found: &mut Vec<(BackupId, Vec<PartName>)>,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let oldest = found.iter().filter_map(|(id, _)| id.time()).min();
    let oldest = oldest.map(|time| time.saturating_sub(2 * MAY_DIFFER));
    for id in catalog::ids(store, scope)? {
        if found.is_empty() {
            break;
        }
        if id.time() < oldest {
            continue;
        }
        // Behind a full backup of yesterday there are the roots of a day.
        tick()?;
        let root = match BackupRoot::read(store, scope, &id) {
            // A host that only writes has no key, or no right to read: it goes on from nothing.
            Err(e) if e.is_damage() || matches!(e.code(), Code::Key | Code::Denied) => continue,
            root => root?,
        };
        let packs = root.map_or_else(Vec::new, |root| root.map.packs);
        found.retain(|(id, _)| packs.iter().all(|pack| pack.key.id != *id));
    }
    Ok(())
}

/// Reads back what is claimed by now; `None` where nothing of it is left.
fn read<'a>(
    (store, scope): (&'a dyn Store, &'a Scope),
    claims: &mut Vec<Claim<'a>>,
    (naming, threads): (Naming, usize),
    host: &'a Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<Leftovers<'a>>> {
    let progress = host.progress.as_ref();
    // A deletion that began before the claims did not see them; a later one does.
    deletion::wait((store, scope), host.clock.as_ref(), progress, tick)?;
    let mut parts = Vec::new();
    for claim in std::mem::take(claims) {
        if may_be_taken((store, scope), claim.id(), host.now())? {
            let packs = packs_of((store, scope), claim.id())?;
            progress.note(&format!(
                "backup \"{}\" was interrupted: the packs that it stored, {}, are read back, and what is still the same is not stored again",
                claim.id(),
                packs.len()
            ));
            parts.extend(packs);
            claims.push(claim);
        } else {
            claim.release(progress);
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let mut used = Instant::now();
    let mut tick = || -> Result<()> {
        tick()?;
        if used.elapsed() >= Duration::from_secs(1) {
            claims.iter_mut().try_for_each(Claim::keep)?;
            used = Instant::now();
        }
        Ok(())
    };
    let mut bytes = 0;
    for part in &parts {
        tick()?;
        let meta = store.head(&scope.pack(part))?;
        bytes += meta.map_or(0, |meta| meta.size_bytes);
    }
    progress.phase("read back what was stored before", Some(bytes));
    let scratch = host.scratch.as_path();
    let leftovers = Leftovers::read(
        (store, scope),
        naming,
        parts,
        (threads, scratch),
        progress,
        &mut tick,
    )?;
    let is_empty = leftovers.packs().next().is_none();
    Ok((!is_empty).then_some(leftovers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::turn::tests::{ID, at, recorded};
    use crate::repo::event::Event;

    fn event(name: &str, kind: &str, seconds: u64, purpose: Option<&str>) -> Recorded {
        let event = Event {
            event: kind.into(),
            host: "another".into(),
            resumable: kind == "begin",
            purpose: purpose.map(str::to_owned),
            seconds: purpose.map(|_| 3 * 3600),
            ..Event::default()
        };
        recorded(name, seconds, event)
    }

    fn is_taken(events: &[Recorded], seconds: u64) -> bool {
        is_interrupted(&ID.parse().unwrap(), events, at(seconds))
    }

    #[test]
    fn a_backup_is_gone_on_from_once_its_writer_is_over_and_while_it_is_kept() {
        let begin = event("begin", "begin", 0, None);
        let claim = event("a", "claim", 0, Some("backup"));
        let mut events = vec![begin.clone(), claim.clone()];
        assert!(!is_taken(&events, 1799), "it may run");
        assert!(is_taken(&events, 1800), "it was silent for half an hour");
        assert!(is_taken(&events, 24 * 3600 - 1));
        assert!(!is_taken(&events, 24 * 3600), "expire may delete it");
        events.push(event("b", "claim", 23 * 3600, Some("prior")));
        assert!(
            is_taken(&events, 24 * 3600),
            "another one that was killed keeps it"
        );
        assert!(!is_taken(&events, 26 * 3600));
        for (kind, purpose) in [
            ("completed", None),
            ("expire", None),
            ("damaged", None),
            ("claim", Some("sync")),
        ] {
            let events = [begin.clone(), claim.clone(), event("x", kind, 1, purpose)];
            assert!(!is_taken(&events, 3600), "{kind}");
        }
        assert!(!is_taken(&[claim], 3600), "without a reservation");
    }

    /// An older program takes everything back when it wakes up.
    #[test]
    fn of_an_older_program_it_must_be_proven_that_it_ended() {
        let mut begin = event("begin", "begin", 0, None);
        begin.event.resumable = false;
        let mut events = vec![begin, event("a", "claim", 0, Some("backup"))];
        assert!(!is_taken(&events, 3600 * 5));
        let mut release = event("b", "release", 9, None);
        release.event.ends = Some("a".into());
        events.push(release);
        assert!(is_taken(&events, 10));
        events.truncate(2);
        // The process of this number has ended on this host.
        events[0].event.host = event::host();
        assert!(!is_taken(&events, 10));
        events[0].event.pid = Some(std::process::id());
        assert!(is_taken(&events, 10));
    }

    #[test]
    fn a_run_that_met_damage_or_ran_out_of_room_leaves_nothing() {
        let kept_by_none = [
            Code::Full,
            Code::ReadOnly,
            Code::Denied,
            Code::Damaged,
            Code::Conflict,
        ];
        for code in kept_by_none {
            assert!(!may_resume(&Error::new(code, "x")), "{code:?}");
        }
        for code in [Code::Interrupted, Code::Unreachable, Code::Server] {
            assert!(may_resume(&Error::new(code, "x")), "{code:?}");
        }
    }
}
