//! Events: state that changes, as small create-only objects (format, section 9).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock;
use super::json;
use super::layout::ClusterLayout;
use super::root::outline::Outline;
use super::scope::Scope;
use crate::err;
use crate::error::{Code, Result};
#[cfg(feature = "full")]
use crate::host::Host;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::store::{self, Key, Listed, Meta, Published, Store, beside};

const KIND: &str = "event";
/// The subject of events that concern a cluster as a whole.
pub const CLUSTER: &str = "cluster";
/// Most characters in a description of damage.
const DETAIL_MAX: usize = 1000;
/// Name and version of the program that does everything but one, in events and records.
pub const PROGRAM: &str = concat!("pitr ", env!("CARGO_PKG_VERSION"));

/// The kind under which an event counts that nothing can be made of, in an encrypted repository: it has no MAC, and belongs under another
/// key. No event is written with it.
pub const MEANINGLESS: &str = "meaningless";

/// The kind that says of a backup: WAL behind it was let go on purpose ([`Trimmed`](super::trimmed::Trimmed)).
pub const TRIMMED: &str = "trimmed";

/// Kinds that take something away: protection, trust, WAL. They do not count without the MAC that an encrypted
/// repository's events bear. Kinds that only keep things (`begin`, `claim`, `pin`, `unexpire`, those of a newer
/// version) count without it. A janitor and a sync without keys make some of these.
const NEED_PROOF: [&str; 20] = [
    "expire",
    TRIMMED,
    "completed",
    "verified",
    "checked",
    "damaged",
    "healed",
    "gap",
    "adopted",
    "abandon",
    "restore",
    "resolve",
    "unresolve",
    "segment_size",
    "source",
    "drilled",
    "mark",
    "slots",
    "held",
    MEANINGLESS,
];

/// Kinds that a janitor and a sync may write without the MAC key of an encrypted repository.
const WITHOUT_PROOF: [&str; 5] = ["claim", "release", "expire", "unexpire", TRIMMED];

/// Kinds that say whether a backup is pinned or on hold.
pub const PINNING: [&str; 3] = ["pin", "unpin", "unhold"];

/// One event. Fields that its kind does not use are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Event {
    /// `begin`, `claim`, `release`, `pin`, `unpin`, `expire`, `unexpire`, `damaged`, `healed`, `gap`, `adopted`, `abandon`, `restore`, `resolve`, `unresolve`,
    /// `unhold`, `held`, `segment_size`, `source`, `completed`, `verified`, `checked`, `trimmed`, `drilled`, `mark`, `slots`.
    pub event: String,
    /// A backup id, `wal-<24 hex>`, `wal-<T>`, `cluster`, `scope`, `checks`, `drills`, `marks-<day>` or `slots-<day>`.
    pub subject: String,
    /// The writer's clock.
    pub time: TimestampTz,
    /// The writer's host name.
    pub host: String,
    /// Name and version of the program.
    pub program: String,
    /// The event that this one ends or replaces: the last part of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
    /// 32 hexadecimal digits, so that two writers never make equal events.
    pub nonce: String,
    /// Claims: for how long, from the later of `time` and the store's time of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Claims: `backup`, `restore`, `prior`, `sync`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Claims of a backup that is running or copied, and `completed`: where its WAL begins. `adopted`, `abandon`, `restore`: the timeline that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Claims of a backup that is running or copied: where its WAL begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<Lsn>,
    /// Marks: not deleted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<TimestampTz>,
    /// Pins: kept no longer than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<TimestampTz>,
    /// Pins: a legal hold, which `unhold` alone ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub legal: bool,
    /// Marks: a person asked for it (`pitr backup delete`), and retention did not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_request: bool,
    /// `resolve`, `unresolve`: the first segment of the life. `trimmed`: that of the hole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// `resolve`, `unresolve`: the first 16 hexadecimal digits of that segment's hash, as in the key of the refused copy. `gap`: those of the life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
    /// Pins, `abandon`, `restore`, `resolve`, `unresolve`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Damage: the object. `held`: the hold, the last part of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Damage: what was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `begin`: full or incremental.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_kind: Option<String>,
    /// `begin`: process id of the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `begin`, and claims of expire: the process that writes or holds it, as its machine names it ([`own_name`](crate::process)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// `begin`: the writer deletes nothing that it stored once another backup has claimed its id, or may take it for killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumable: bool,
    /// `adopted`: the name it continues under.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "as")]
    pub as_name: Option<String>,
    /// `begin` and `source` of an aux scope: what is backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `gap`: the first byte that is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_lsn: Option<Lsn>,
    /// `gap`: the first byte behind; `completed`: the stop LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_lsn: Option<Lsn>,
    /// `segment_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_size_bytes: Option<u64>,
    /// `checked`: what was read back.
    #[cfg(feature = "full")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portion: Option<super::portion::Stated>,
    /// `drilled`: the result.
    #[cfg(feature = "full")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<super::drilled::Drill>,
    /// `mark`: one point in every member of a recovery set.
    #[cfg(feature = "full")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<super::set_mark::Stated>,
    /// `slots`: those of a shard of a cluster.
    #[cfg(feature = "full")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<super::slot_map::SlotMap>,
}

/// An event with its place in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The last part of its key: `begin` or `<time>-<kind>-<nonce>`.
    pub name: String,
    /// Its content.
    pub event: Event,
    /// When the store received it.
    pub stored: TimestampTz,
    /// The MAC key is at hand, and whoever made this did not hold it.
    pub is_doubted: bool,
}

impl Recorded {
    /// Whether what it says may be believed.
    pub fn counts(&self) -> bool {
        !self.is_doubted || !NEED_PROOF.contains(&self.event.event.as_str())
    }

    /// Whether it may end `other`: what is proven is ended only by what is proven, but for marks, for then nothing is deleted.
    fn may_end(&self, other: &Recorded) -> bool {
        !self.is_doubted || other.is_doubted || self.event.event == "unexpire"
    }

    /// The later of the writer's and the store's clock: what every duration is counted from. A writer's clock that was ahead of `now` does
    /// not count: it would make the duration end years too late.
    pub fn since(&self, now: TimestampTz) -> TimestampTz {
        match self.event.time > now.saturating_add(clock::MAY_DIFFER) {
            true => self.stored,
            false => self.event.time.max(self.stored),
        }
    }
}

/// Who writes events: a program of this host, its clock and its random numbers.
pub struct Writer<'a> {
    /// Name and version.
    pub program: &'a str,
    /// The current time.
    pub clock: &'a (dyn Fn() -> TimestampTz + Sync),
    /// Random numbers.
    pub random: &'a (dyn Fn() -> u64 + Sync),
}

impl<'a> Writer<'a> {
    /// This program, `pitr`.
    pub fn new(
        clock: &'a (dyn Fn() -> TimestampTz + Sync),
        random: &'a (dyn Fn() -> u64 + Sync),
    ) -> Writer<'a> {
        Writer {
            program: PROGRAM,
            clock,
            random,
        }
    }

    /// This program, `pitr`, on `host`.
    #[cfg(feature = "full")]
    pub fn of(host: &'a Host) -> Writer<'a> {
        Writer::new(host.clock.as_ref(), host.random.as_ref())
    }

    /// An event with the fields that every one has.
    pub fn event(&self, kind: &str, subject: &str) -> Event {
        Event {
            event: kind.to_owned(),
            subject: subject.to_owned(),
            time: (self.clock)(),
            host: host(),
            program: self.program.to_owned(),
            nonce: nonce(self.random),
            ..Event::default()
        }
    }

    /// Writes an event. Returns the last part of its key.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn record(&self, store: &dyn Store, scope: &Scope, event: &Event) -> Result<String> {
        record(store, scope, event, (self.random)())
    }

    /// Writes that `object` is damaged, unless damage of its subject stands already.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn record_damage(
        &self,
        store: &dyn Store,
        scope: &Scope,
        subject: &str,
        (object, detail): (&str, &str),
    ) -> Result<()> {
        if !damage(&read_all(store, scope, subject)?).is_empty() {
            return Ok(());
        }
        let damaged = self.damaged(subject, object, detail);
        self.record(store, scope, &damaged).map(|_| ())
    }

    /// The event that says that a backup is complete.
    pub fn completed(&self, root: &Outline) -> Event {
        Event {
            timeline: Some(root.start_timeline),
            start_lsn: Some(root.start_lsn),
            to_lsn: Some(root.stop_lsn),
            ..self.event("completed", &root.id.to_string())
        }
    }

    /// The event that says that `object` is damaged.
    pub fn damaged(&self, subject: &str, object: &str, detail: &str) -> Event {
        Event {
            object: Some(object.to_owned()),
            detail: Some(detail.chars().take(DETAIL_MAX).collect()),
            ..self.event("damaged", subject)
        }
    }
}

/// A backup that was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// Start of its replay; none where there is no WAL, or where the event does not name it.
    pub start: Option<(TimelineId, Lsn)>,
}

/// Returns the completion of a backup as its events record it; none where they do not.
pub fn completed(events: &[Recorded]) -> Option<Completed> {
    let of = |e: &Recorded| {
        let e = Some(&e.event)
            .filter(|e| e.event == "completed")
            .filter(|_| e.counts())?;
        Some(Completed {
            start: e.timeline.and_then(TimelineId::new).zip(e.start_lsn),
        })
    };
    let all = events.iter().filter_map(of);
    all.max_by_key(|completed| completed.start.is_some())
}

/// Returns when the writer of a backup recorded its completion; none where it did not.
pub fn completion(events: &[Recorded]) -> Option<TimestampTz> {
    let completed = events
        .iter()
        .filter(|e| e.event.event == "completed" && e.counts());
    completed.map(|e| e.event.time).max()
}

/// The completed backup of these events, where its root is not there: it is lost, unless a mark shows that it was deleted.
pub fn lost(events: &[Recorded]) -> Option<Completed> {
    let is_marked = is_marked(events);
    completed(events).filter(|_| !is_marked)
}

/// 32 hexadecimal digits.
pub fn nonce(random: &(dyn Fn() -> u64 + Sync)) -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// Writes an event; `nonce` is random. Returns the last part of its key.
///
/// # Errors
/// `Key` for a kind that would count as forged, where the MAC key of an encrypted repository is not at hand; errors of the store.
pub fn record(store: &dyn Store, scope: &Scope, event: &Event, nonce: u64) -> Result<String> {
    match put(store, scope, event, &format!("{nonce:016x}"))? {
        (name, Published::Created) => Ok(name),
        (name, Published::Exists) => Err(err!(
            Internal,
            "event \"{}\" exists already",
            scope.event(&event.subject, &name)?
        )),
    }
}

/// Writes an event unless its key is taken. Returns the last part of the key.
fn put(
    store: &dyn Store,
    scope: &Scope,
    event: &Event,
    nonce: &str,
) -> Result<(String, Published)> {
    let name = format!("{}-{}-{nonce}", compact(event.time), event.event);
    let key = scope.event(&event.subject, &name)?;
    if !WITHOUT_PROOF.contains(&event.event.as_str()) {
        json::require_mac(store, &key)?;
    }
    let published = json::write_signed(store, &key, KIND, event)?;
    Ok((name, published))
}

/// Writes an event under a key that its own nonce gives: the same one in each repository. One that is there already is done.
///
/// # Errors
/// `Conflict` where the key has another event; errors of the store.
#[cfg(feature = "full")]
pub fn record_once(store: &dyn Store, scope: &Scope, event: &Event) -> Result<()> {
    let nonce: String = event.nonce.chars().take(16).collect();
    let (name, published) = put(store, scope, event, &nonce)?;
    if published == Published::Created {
        return Ok(());
    }
    let there = read_one(store, scope, &event.subject, &name)?;
    match there.is_some_and(|there| there.event == *event) {
        true => Ok(()),
        false => Err(err!(
            Conflict,
            "event \"{}\" is another one",
            scope.event(&event.subject, &name)?
        )),
    }
}

/// Reserves a backup id by creating its `begin` event; `Exists` means that the id is taken.
///
/// # Errors
/// `Key` where the MAC key of an encrypted repository is not at hand; errors of the store.
pub fn begin(store: &dyn Store, scope: &Scope, event: &Event) -> Result<Published> {
    let id = event.subject.parse()?;
    let key = scope.begin(&id);
    json::require_mac(store, &key)?;
    json::write_signed(store, &key, KIND, event)
}

/// Checks an event that was found under `key`, as it is stored.
///
/// # Errors
/// `Damaged`, also when it belongs to another subject than that of its key, and when it is forged.
pub fn check(store: &dyn Store, key: &Key, bytes: &[u8]) -> Result<()> {
    match json::is_genuine(store, key, bytes)? {
        true => decode(key, bytes).map(|_| ()),
        false => Err(err!(Damaged, "event \"{key}\" is {FORGED}")),
    }
}

/// Description of an object that has no MAC, or not the right one.
pub const FORGED: &str = "forged: whoever made it does not hold the MAC key of the key set";

fn decode(key: &Key, bytes: &[u8]) -> Result<Event> {
    let event: Event = json::decode(key, KIND, bytes)?;
    match key.parent().and_then(|p| p.rsplit('/').next()) == Some(event.subject.as_str()) {
        true => Ok(event),
        false => Err(err!(
            Damaged,
            "event \"{key}\" belongs to subject \"{}\"",
            event.subject
        )),
    }
}

/// All events of a subject, in key order.
///
/// # Errors
/// `Damaged` if one of them is; a caller that deletes must then keep the subject.
pub fn read_all(store: &dyn Store, scope: &Scope, subject: &str) -> Result<Vec<Recorded>> {
    read_some(store, scope, subject, &|_| true)
}

/// As [`read_all`], of the events alone whose name, the last part of the key, is wanted.
///
/// # Errors
/// `Damaged` if one of them is.
pub fn read_some(
    store: &dyn Store,
    scope: &Scope,
    subject: &str,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Recorded>> {
    let mut listed = store.list(&scope.subject(subject))?;
    listed.retain(|l| !l.is_prefix && is_wanted(&l.name));
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let read = |one: &Listed| read_listed(store, scope, subject, &one.name, one.meta);
    let read: Result<Vec<_>> = beside(store, &listed, read).into_iter().collect();
    Ok(read?.into_iter().flatten().collect())
}

/// The event of this name; none where it is not there.
///
/// # Errors
/// `Damaged` if it is; errors of the store.
pub fn read_one(
    store: &dyn Store,
    scope: &Scope,
    subject: &str,
    name: &str,
) -> Result<Option<Recorded>> {
    read_listed(store, scope, subject, name, None)
}

/// As [`read_one`], of an event of which a listing may have told the facts.
fn read_listed(
    store: &dyn Store,
    scope: &Scope,
    subject: &str,
    name: &str,
    listed: Option<Meta>,
) -> Result<Option<Recorded>> {
    let key = scope.event(subject, name)?;
    let Some(object) = store.open(&key)? else {
        return Ok(None);
    };
    let meta = match object.meta().or(listed) {
        Some(meta) => meta,
        None => match store.head(&key)? {
            Some(meta) => meta,
            None => return Ok(None),
        },
    };
    let bytes = store::read(object.as_ref(), &key, json::LIMIT_BYTES)?;
    let is_doubted = !json::is_genuine(store, &key, &bytes)?;
    let event = match decode(&key, &bytes) {
        Err(e) if is_doubted && e.code() == Code::Damaged => Event {
            event: MEANINGLESS.into(),
            subject: subject.to_owned(),
            ..Event::default()
        },
        read => read?,
    };
    Ok(Some(Recorded {
        name: name.to_owned(),
        event,
        stored: meta.modified,
        is_doubted,
    }))
}

/// The subject of the day (UTC) of a time, for events that are kept by day.
#[cfg(feature = "full")]
pub fn of_day(prefix: &str, time: TimestampTz) -> String {
    let day: String = compact(time).chars().take(8).collect();
    format!("{prefix}{day}")
}

/// The subjects with this prefix that have events, ascending: days by their time.
///
/// # Errors
/// Errors of the store.
#[cfg(feature = "full")]
pub fn days(store: &dyn Store, scope: &Scope, prefix: &str) -> Result<Vec<String>> {
    let listed = store.list(&scope.events())?.into_iter();
    let mut days: Vec<String> = listed
        .filter(|listed| listed.is_prefix && listed.name.starts_with(prefix))
        .map(|listed| listed.name)
        .collect();
    days.sort_unstable();
    Ok(days)
}

/// The names of a subject's events of one kind, ascending: by their time.
///
/// # Errors
/// Errors of the store.
#[cfg(feature = "full")]
pub fn names(store: &dyn Store, scope: &Scope, subject: &str, kind: &str) -> Result<Vec<String>> {
    let listed = store.list(&scope.subject(subject))?.into_iter();
    let mut names: Vec<String> = listed
        .filter(|listed| !listed.is_prefix && kind_in(&listed.name) == kind)
        .map(|listed| listed.name)
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// The kind in the name of an event; empty where it has none.
pub fn kind_in(name: &str) -> &str {
    name.split('-').nth(1).unwrap_or_default()
}

/// Returns the events of a subject that are forged. A janitor and a sync without the MAC key make marks and claims, and
/// end their own. Those cannot be distinguished from a stranger's, and need not be.
pub fn forged(events: &[Recorded]) -> Vec<&Recorded> {
    let ends_proven = |e: &Recorded| {
        let ended = |p: &&Recorded| e.event.ends.as_deref() == Some(p.name.as_str());
        events.iter().filter(ended).any(|p| !p.is_doubted)
    };
    let is_forged = |e: &&Recorded| match e.event.event.as_str() {
        "unexpire" => false,
        "claim" | "release" | "expire" => ends_proven(e),
        _ => true,
    };
    events
        .iter()
        .filter(|e| e.is_doubted)
        .filter(is_forged)
        .collect()
}

/// The name of this host, as events have it.
pub fn host() -> String {
    let host = rustix::system::uname();
    host.nodename().to_string_lossy().into_owned()
}

/// Returns the events of `kind` that no event of `ended_by` (or of the same kind, as a renewal) ends. A legal hold is ended by `unhold` alone.
pub fn standing<'a>(events: &'a [Recorded], kind: &str, ended_by: &str) -> Vec<&'a Recorded> {
    let may_end = |e: &Recorded, one: &Recorded| match one.event.legal {
        true => e.event.event == "unhold",
        false => e.event.event == ended_by || e.event.event == kind,
    };
    let ended = |one: &Recorded| {
        events.iter().any(|e| {
            may_end(e, one) && e.event.ends.as_deref() == Some(one.name.as_str()) && e.may_end(one)
        })
    };
    events
        .iter()
        .filter(|e| e.event.event == kind && e.counts() && !ended(e))
        .collect()
}

/// When a claim ends by itself.
pub fn end(claim: &Recorded, now: TimestampTz) -> TimestampTz {
    match claim.event.seconds {
        Some(seconds) => {
            let since = claim.since(now);
            since.saturating_add(Duration::from_secs(seconds))
        }
        // A claim without an end is one that never ends by itself.
        None => TimestampTz::INFINITY,
    }
}

/// Claims that are neither released, nor replaced, nor over.
pub fn live_claims(events: &[Recorded], now: TimestampTz) -> Vec<&Recorded> {
    standing(events, "claim", "release")
        .into_iter()
        .filter(|claim| end(claim, now) > now)
        .collect()
}

/// The ends of restores: releases of their claims.
pub fn restores(events: &[Recorded]) -> Vec<&Recorded> {
    let of_restore = |end: &Recorded| {
        let mut claims = events.iter().filter(|e| e.event.event == "claim");
        claims.any(|claim| {
            let is_meant = end.event.ends.as_deref() == Some(claim.name.as_str());
            is_meant && end.may_end(claim) && claim.event.purpose.as_deref() == Some("restore")
        })
    };
    let releases = events.iter().filter(|e| e.event.event == "release");
    releases
        .filter(|end| end.counts() && of_restore(end))
        .collect()
}

/// A request lapses so long after its `not_before`.
const REQUEST_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// A request lapses in any case so long after the store received it: one that was forged, and dated far ahead, hides no backup for longer.
const REQUEST_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether a mark is a person's request to delete a backup, and has not lapsed.
pub fn is_request(mark: &Recorded, now: TimestampTz) -> bool {
    let due = mark.event.not_before.unwrap_or(mark.stored);
    mark.event.by_request
        && now < due.saturating_add(REQUEST_LASTS)
        && now < mark.stored.saturating_add(REQUEST_MAX)
}

/// Returns the pins that are neither ended nor past their end. A caller that has two clocks asks by the earlier one.
pub fn live_pins(events: &[Recorded], now: TimestampTz) -> Vec<&Recorded> {
    standing(events, "pin", "unpin")
        .into_iter()
        .filter(|pin| pin.event.until.is_none_or(|until| until > now))
        .collect()
}

/// Returns the legal holds that nobody ended.
pub fn legal_holds(events: &[Recorded]) -> Vec<&Recorded> {
    let mut pins = standing(events, "pin", "unpin");
    pins.retain(|pin| pin.event.legal);
    pins
}

/// Whether the store was seen to hold everything that a hold is for.
pub fn is_held(events: &[Recorded], hold: &Recorded) -> bool {
    let says = |e: &Recorded| e.event.object.as_ref() == Some(&hold.name);
    let mut held = events.iter().filter(|e| e.event.event == "held");
    held.any(|e| e.counts() && says(e))
}

/// The marks for deletion that stand.
pub fn marks(events: &[Recorded]) -> Vec<&Recorded> {
    standing(events, "expire", "unexpire")
}

/// Whether a backup has a standing mark for deletion that nothing proves. A janitor without keys writes such marks, and so can whoever may write to
/// the store.
#[cfg(feature = "full")]
pub fn is_marked_unproven(events: &[Recorded]) -> bool {
    let mut marks = events.iter().filter(|e| e.event.event == "expire");
    let is_ended = |mark: &Recorded| {
        let mut ends = events.iter().filter(|e| e.event.event == "unexpire");
        ends.any(|e| e.event.ends.as_deref() == Some(mark.name.as_str()))
    };
    marks.any(|mark| !mark.counts() && !is_ended(mark))
}

/// Whether a backup is marked for deletion.
pub fn is_marked(events: &[Recorded]) -> bool {
    !marks(events).is_empty()
}

/// The damage that stands.
pub fn damage(events: &[Recorded]) -> Vec<&Recorded> {
    standing(events, "damaged", "healed")
}

/// The subject of what concerns a whole timeline.
pub fn timeline_subject(timeline: TimelineId) -> String {
    format!("wal-{timeline}")
}

/// Returns the losses that `gap` events record for the lives of a timeline that are followed, ascending. The events do
/// not show whether the WAL came after all.
pub fn gaps(
    events: &[Recorded],
    layout: &ClusterLayout,
    timeline: TimelineId,
    size: SegmentSize,
) -> Vec<LsnRange> {
    let is_followed = |e: &&Recorded| {
        let from = e.event.from_lsn.unwrap_or_default();
        e.event.copy == life_at(layout, timeline, from, size)
    };
    let mut gaps: Vec<LsnRange> = events
        .iter()
        .filter(|e| e.event.event == "gap" && e.counts())
        .filter(is_followed)
        .filter_map(|e| e.event.from_lsn.zip(e.event.to_lsn))
        .filter(|(start, end)| start < end)
        .map(|(start, end)| LsnRange { start, end })
        .collect();
    gaps.sort_unstable_by_key(|r| (r.start, r.end));
    gaps.dedup();
    gaps
}

/// The copy that names the life to which a position belongs, as `gap` events have it.
pub fn life_at(
    layout: &ClusterLayout,
    timeline: TimelineId,
    lsn: Lsn,
    size: SegmentSize,
) -> Option<String> {
    let name = SegmentNumber::of(lsn, size).name(timeline, size)?;
    layout.lives().of(name).map(|life| life.copy.clone())
}

/// `20261120T064049.123456Z`, the form of times in keys.
pub fn compact(time: TimestampTz) -> String {
    time.to_string().replace(['-', ':'], "")
}

/// The length of a second in a name.
pub const STAMP_CHARS: usize = 15;

/// The second of a time as it stands in names, `20261120T064049`.
pub fn stamp(time: TimestampTz) -> String {
    compact(time).chars().take(STAMP_CHARS).collect()
}

/// The time of such a second; `None` where the text is none.
pub fn time_of_stamp(stamp: &str) -> Option<TimestampTz> {
    let (date, time) = stamp.split_once('T')?;
    let is_digits = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(date, 8) || !is_digits(time, 6) {
        return None;
    }
    let (year, month, day) = (date.get(..4)?, date.get(4..6)?, date.get(6..)?);
    let (hour, minute, second) = (time.get(..2)?, time.get(2..4)?, time.get(4..)?);
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;

    #[test]
    fn a_renewed_claim_is_over_and_the_renewal_stands() {
        let (_dir, store, scope) = crafted::scope();
        let mut event = Event {
            event: "claim".into(),
            subject: "20261120T064049Z-full".into(),
            time: "2026-11-20T06:40:49.123456Z".parse().unwrap(),
            ..Event::default()
        };
        let first = record(&store, &scope, &event, 1).unwrap();
        assert_eq!(first, "20261120T064049.123456Z-claim-0000000000000001");
        event.ends = Some(first.clone());
        let second = record(&store, &scope, &event, 2).unwrap();
        let all = read_all(&store, &scope, &event.subject).unwrap();
        let standing: Vec<_> = standing(&all, "claim", "release")
            .iter()
            .map(|e| e.name.clone())
            .collect();
        assert_eq!(standing, [second]);
    }
}
