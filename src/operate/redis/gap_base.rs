//! The base that a receiver takes by itself behind a gap. Nothing behind the gap is acknowledged before it is stored.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::backup::{self, Asked};
use super::list;
use super::receive::{Check, Peer, pause};
use super::watch;
use crate::config::Settings;
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::operate::human;
use crate::operate::scopes::{self, ScopeBackup};
use crate::operate::session::Session;
use crate::redis::history::{Held, Parent};
use crate::redis::owed::{Base, Owed};
use crate::redis::record::State;
use crate::redis::{route, walk};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::wire::backoff::Backoff;

/// How often it is looked whether a base is owed.
const LOOK: Duration = Duration::from_millis(200);
/// The label of such a base.
const LABEL: &str = "behind a gap";
/// A server that loses its receiver again and again forks for bases in a tenth of the time at most.
const REST: u32 = 9;

/// A receiver, as the thread beside it knows it.
#[derive(Clone, Copy)]
pub(super) struct Receiver<'r> {
    pub session: &'r Session,
    pub settings: &'r Settings,
    pub peer: &'r Peer<'r>,
    pub scope: &'r Scope,
    pub owed: &'r Owed,
}

/// Works, and takes the bases that are owed meanwhile in a thread of its own.
///
/// # Errors
/// Those of the work.
pub(super) fn beside<T>(
    receiver: &Receiver<'_>,
    check: Check<'_>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    let check = || match is_over.load(Ordering::Relaxed) {
        true => Err(err!(Interrupted, "the receiver has ended")),
        false => check(),
    };
    std::thread::scope(|threads| {
        threads.spawn(|| take_owed(receiver, &check));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

/// Takes each base that is owed, until `check` fails.
fn take_owed(receiver: &Receiver<'_>, check: Check<'_>) {
    let Receiver { session, peer, .. } = *receiver;
    let mut backoff = Backoff::default();
    let mut said = String::new();
    let mut of_master = false;
    while check().is_ok() {
        let Some(owed) = receiver.owed.get() else {
            pause(check, LOOK);
            continue;
        };
        fault::pause("redis-gap-base");
        let since = Instant::now();
        let rest = match take(receiver, &owed, of_master, check) {
            Ok(is_met) => {
                // A replica may be behind the gap itself.
                of_master = !is_met;
                backoff.reset();
                said.clear();
                since.elapsed().saturating_mul(REST)
            }
            Err(_) if check().is_err() => return,
            Err(e) => {
                let text = e.to_string();
                if said != text {
                    session.warn(&peer.told(&format!(
                        "no backup behind the gap, and nothing is acknowledged: {text}; the receiver tries again"
                    )));
                    said = text;
                }
                backoff.next(session.host.random())
            }
        };
        pause(check, rest);
    }
}

/// Takes the base, unless one that serves is stored. Returns whether nothing is owed any more.
fn take(receiver: &Receiver<'_>, owed: &Base, of_master: bool, check: Check<'_>) -> Result<bool> {
    let (session, peer) = (receiver.session, receiver.peer);
    if is_stored(receiver, owed, check)? {
        settle(receiver, owed);
        return Ok(true);
    }
    let asked = Asked {
        name: &peer.redis.name,
        label: LABEL.to_owned(),
        takes_over: false,
        of_master,
    };
    let server = (peer.redis, peer.live);
    let taken = backup::counted(session, receiver.settings, server, asked)?;
    // One without a position is of the time behind the gap: it was begun there, and of the master.
    let is_met = match taken.member.position() {
        Some(position) => receiver.owed.is_met_by(position),
        None => of_master || !peer.redis.sentinel.is_replica_preferred,
    };
    for warning in &taken.warnings {
        session.warn(&peer.told(warning));
    }
    if is_met {
        session.note(&peer.told(&format!(
            "backup {} was taken behind the gap: {} in {}",
            taken.root.head.id,
            human::size(taken.member.bytes()),
            human::duration(taken.took)
        )));
        settle(receiver, owed);
    }
    Ok(is_met)
}

fn settle(receiver: &Receiver<'_>, owed: &Base) {
    if let Err(e) = receiver.owed.settle(owed) {
        let Receiver { session, peer, .. } = *receiver;
        session.warn(&peer.told(&format!("the next receiver takes one more backup: {e}")));
    }
}

/// Whether a backup that serves is stored: an operator may have taken one, or one leads to where a history was left.
fn is_stored(receiver: &Receiver<'_>, owed: &Base, check: Check<'_>) -> Result<bool> {
    let (repository, backups) = stored(receiver)?;
    let mut positions: Vec<(String, u64)> = Vec::new();
    for backup in backups.iter().rev().filter(|b| b.damage.is_none()) {
        check()?;
        let member = match list::member(&repository, receiver.scope, backup) {
            Err(e) if e.code() == Code::Unsupported => continue,
            member => member?,
        };
        let position = member.as_ref().and_then(|member| member.position());
        let Some((replid, offset)) = position else {
            continue;
        };
        if receiver.owed.is_met_by((replid, offset)) {
            return Ok(true);
        }
        positions.push((replid.to_owned(), offset));
    }
    match &owed.left {
        Some(left) => leads_to(receiver, &repository, (positions.as_slice(), left), check),
        None => Ok(false),
    }
}

/// Whether the log leads from a backup to where a history was left. A way that cannot be told leads nowhere.
///
/// The newest one before that place is looked at alone: the way from an older one passes through the same gap, and has more to read.
fn leads_to(
    receiver: &Receiver<'_>,
    repository: &Repository,
    (newest_first, left): (&[(String, u64)], &Parent),
    check: Check<'_>,
) -> Result<bool> {
    let Ok(histories) = walk::histories(repository, receiver.scope) else {
        return Ok(false);
    };
    let mut positions = newest_first.iter();
    let Some((replid, offset)) =
        positions.find(|(replid, offset)| route::is_before(&histories, (replid, *offset), left))
    else {
        return Ok(false);
    };
    let target = route::Target {
        moment: route::Moment::Position(left.fork),
        replid: Some(left.replid.clone()),
    };
    let from = (replid.as_str(), *offset);
    let found = route::plan_while(repository, receiver.scope, from, &target, check);
    // A receiver that ends takes no base.
    check()?;
    Ok(found.is_ok())
}

fn stored(receiver: &Receiver<'_>) -> Result<(Repository, Vec<ScopeBackup>)> {
    let session = receiver.session;
    let repository = session.open(receiver.settings.first_repository()?)?;
    let info = scopes::look_at(&repository, receiver.scope, session.host.now())?;
    Ok((repository, info.backups))
}

/// Owes a base where the log goes on as a repository has it, and no backup leads to its end: a journal that was lost cannot tell of a gap.
///
/// # Errors
/// Those of the system.
pub(super) fn owe_unless_led(receiver: &Receiver<'_>, held: Option<&State>) -> Result<()> {
    let Some(state) = held else {
        return Ok(());
    };
    let look = || -> Result<bool> {
        let (repository, backups) = stored(receiver)?;
        let watched = watch::look(&repository, receiver.scope, &backups)?;
        Ok(watched.is_some_and(|watched| !watched.has_gap()))
    };
    // A log that cannot be read may have a gap.
    if look().unwrap_or(false) {
        return Ok(());
    }
    let place = Held {
        replid: state.replid.clone(),
        position: state.reader.position(),
    };
    let base = Base::behind(place);
    receiver.owed.set(base, receiver.session.host.random())
}
