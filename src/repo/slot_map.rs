//! The slots of a shard of a Redis Cluster, as they were seen: events of the shard's scope (format, section 16.9).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::MAY_DIFFER;
use super::event::{self, Event, Recorded, Writer};
use super::log_keys::is_replid as is_node;
use super::scope::Scope;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::store::{Key, Store};
use crate::text::is_hex;

/// The kind of content that has these events.
pub const CONTENT: &str = "redis";
/// The kind of event.
const SLOTS: &str = "slots";
/// The beginning of the subjects: one for each day.
pub const SUBJECT: &str = "slots-";
/// The greatest slot.
pub const SLOT_MAX: u16 = 16_383;
/// Looks that are further apart do not make one run, and streams of two shards are not further apart.
pub const APART_MAX: Duration = Duration::from_secs(15);
/// A run that goes on is recorded again so often.
pub const EVERY: Duration = Duration::from_secs(60);
/// A run that held a moment has an event within so long behind it.
const FOLLOWS: Duration = Duration::from_secs(90);
/// A day.
const DAY: Duration = Duration::from_secs(86_400);
/// Events of older days were thinned before.
const THINNED_DAYS: u32 = 15;
/// So many events are read at once.
const READERS: usize = 16;
/// Digits of the id of a cluster.
const CLUSTER_DIGITS: usize = 8;
/// Digits of the number of a receiver.
const RUN_DIGITS: usize = 16;
/// Begins what the id of a cluster is made of.
const CLUSTER_ID: &[u8] = b"pitr/1/redis-cluster\0";

/// First and last of some slots.
pub type Range = (u16, u16);

/// First and last of some slots that are on their way, and the other node.
pub type Moving = (u16, u16, String);

/// The slots of a shard, and for how long they were seen so. They stand in a file beside the journals, too: a field that is added has a default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotMap {
    /// The id of the cluster: 8 hexadecimal digits ([`cluster_id`]).
    pub cluster: String,
    /// The receiver that looked: 16 hexadecimal digits that it drew when it started; none for a single look of a backup.
    pub run: Option<String>,
    /// The earliest time from which on each look saw this; that of the event where it was one look.
    pub since: TimestampTz,
    /// Id of the node that owns them, or did last.
    pub node: String,
    /// Ids of the owner and its replicas, the owner first.
    pub nodes: Vec<String>,
    /// The history that the owner has; empty where it did not say.
    pub replid: String,
    /// The slots, ascending; none where the shard owns none any more.
    pub owned: Vec<Range>,
    /// Slots on their way to another node.
    pub migrating: Vec<Moving>,
    /// Slots on their way from another node.
    pub importing: Vec<Moving>,
    /// Whether migrations that servers make by themselves are among these.
    pub atomic_seen: bool,
    /// Whether the clock had shown these times before: it was set back.
    pub again: bool,
    /// Position of the owner's history at the last look; none where it did not say.
    pub offset: Option<u64>,
}

impl SlotMap {
    /// The same shard without slots.
    #[must_use]
    pub fn emptied(&self, since: TimestampTz) -> SlotMap {
        SlotMap {
            since,
            run: None,
            owned: Vec::new(),
            migrating: Vec::new(),
            importing: Vec::new(),
            again: false,
            offset: None,
            ..self.clone()
        }
    }

    /// Whether both say the same, at whatever time.
    pub fn is_same(&self, other: &SlotMap) -> bool {
        SlotMap {
            since: other.since,
            offset: other.offset,
            ..self.clone()
        } == *other
    }

    /// Whether it is as the format says.
    fn is_sound(&self) -> bool {
        let ascends = |ranges: &[Range]| {
            let gaps = ranges.windows(2).all(|pair| match pair {
                [(_, end), (next, _)] => u32::from(*end) + 1 < u32::from(*next),
                _ => true,
            });
            let is_range = |(first, last): &Range| first <= last && *last <= SLOT_MAX;
            gaps && ranges.iter().all(is_range)
        };
        let moves = |moves: &[Moving]| {
            let is_one =
                |(first, last, node): &Moving| first <= last && *last <= SLOT_MAX && is_node(node);
            moves.iter().all(is_one)
        };
        is_hex(&self.cluster, CLUSTER_DIGITS)
            && self.run.as_ref().is_none_or(|run| is_hex(run, RUN_DIGITS))
            && is_node(&self.node)
            && self.nodes.first() == Some(&self.node)
            && self.nodes.iter().all(|node| is_node(node))
            && (self.replid.is_empty() || is_node(&self.replid))
            && ascends(&self.owned)
            && moves(&self.migrating)
            && moves(&self.importing)
    }
}

/// Slots as text: `0-5460,6000`.
pub fn shown(ranges: &[Range]) -> String {
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    texts.join(",")
}

/// The id of a cluster that nobody knew, from the ids of the nodes that own its slots: all who see it so draw the same.
pub fn cluster_id(owners: &[&str]) -> String {
    let mut owners = owners.to_vec();
    owners.sort_unstable();
    let mut hash = blake3::Hasher::new();
    hash.update(CLUSTER_ID);
    for owner in owners {
        hash.update(owner.as_bytes());
    }
    let hex = hash.finalize().to_hex();
    hex.chars().take(CLUSTER_DIGITS).collect()
}

/// The number of a receiver.
pub fn run(random: u64) -> String {
    format!("{random:016x}")
}

/// A map, and the last time at which it was seen.
pub type Seen = (TimestampTz, SlotMap);

/// Makes an event of a map; the same one may be written into several repositories.
pub fn event(writer: &Writer<'_>, (time, map): Seen) -> Event {
    Event {
        time,
        subject: subject(time),
        slots: Some(map),
        ..writer.event(SLOTS, "")
    }
}

/// Writes an event, under the same key in each repository. One that is there already is done.
///
/// # Errors
/// Errors of the store.
pub fn write(store: &dyn Store, scope: &Scope, event: &Event) -> Result<()> {
    event::record_once(store, scope, event)
}

/// Whether two times are of one day. A run ends with its day, so that all that is known of a time lies in the subject of its day.
pub fn is_one_day(one: TimestampTz, other: TimestampTz) -> bool {
    subject(one) == subject(other)
}

fn subject(time: TimestampTz) -> String {
    event::of_day(SUBJECT, time)
}

fn read(recorded: Recorded) -> Option<Seen> {
    let is_ahead = recorded.event.time > recorded.stored.saturating_add(MAY_DIFFER);
    let counts = recorded.counts() && !is_ahead;
    let event = recorded.event;
    let map = event.slots.filter(|map| counts && map.is_sound())?;
    let is_own = event.event == SLOTS && event.subject == subject(event.time);
    let is_sound = map.since <= event.time && is_one_day(map.since, event.time);
    (is_own && is_sound).then_some((event.time, map))
}

/// Days with events, ascending.
fn days(store: &dyn Store, scope: &Scope) -> Result<Vec<String>> {
    event::days(store, scope, SUBJECT)
}

/// Names of the events of a day, ascending: by their time.
fn names(store: &dyn Store, scope: &Scope, day: &str) -> Result<Vec<String>> {
    event::names(store, scope, day, SLOTS)
}

/// Whether there is an event of this kind.
///
/// # Errors
/// Errors of the store.
pub fn is_any(store: &dyn Store, scope: &Scope) -> Result<bool> {
    Ok(!days(store, scope)?.is_empty())
}

/// The keys of all events of this kind.
///
/// # Errors
/// Errors of the store.
pub fn keys(store: &dyn Store, scope: &Scope) -> Result<BTreeSet<Key>> {
    let mut keys = BTreeSet::new();
    for day in days(store, scope)? {
        for name in names(store, scope, &day)? {
            keys.insert(scope.event(&day, &name)?);
        }
    }
    Ok(keys)
}

/// One event; none where it does not count. One that cannot be read hides no other one.
fn one(store: &dyn Store, scope: &Scope, day: &str, name: &str) -> Result<Option<Seen>> {
    match event::read_one(store, scope, day, name) {
        Ok(event) => Ok(event.and_then(read)),
        Err(e) if e.code() == Code::Damaged => Ok(None),
        Err(e) => Err(e),
    }
}

/// An event that a later one makes useless: its subject, and its name.
pub type Useless = (String, String);

/// Finds events that a later one of the same run repeats: the last one of a run is enough. Days are looked at that ended one to 15 days ago.
///
/// # Errors
/// Errors of the store; `Interrupted`.
pub fn useless(store: &dyn Store, scope: &Scope, host: &Host) -> Result<Vec<Useless>> {
    let now = host.now();
    let (from, to) = (
        subject(now.saturating_sub(DAY * THINNED_DAYS)),
        subject(now.saturating_sub(DAY)),
    );
    let mut found = Vec::new();
    for day in days(store, scope)?
        .into_iter()
        .filter(|day| from <= *day && *day < to)
    {
        let names = names(store, scope, &day)?;
        let read = host.parallel(READERS, &names, |name| one(store, scope, &day, name))?;
        let mut seen = Vec::new();
        for (name, one) in names.into_iter().zip(read) {
            seen.extend(one?.map(|seen| (name, seen)));
        }
        let useless = repeated(&seen).into_iter();
        found.extend(useless.map(|name| (day.clone(), name.to_owned())));
    }
    Ok(found)
}

/// The names of those maps that a later one of the same run repeats.
fn repeated(seen: &[(String, Seen)]) -> Vec<&str> {
    let mut last: BTreeMap<TimestampTz, Vec<(&str, &Seen)>> = BTreeMap::new();
    let mut repeated = Vec::new();
    for (name, own) in seen {
        let runs = last.entry(own.1.since).or_default();
        let same = runs.iter_mut().find(|(_, other)| other.1.is_same(&own.1));
        let Some(known) = same else {
            runs.push((name, own));
            continue;
        };
        let is_later = own.0 > known.1.0;
        repeated.push(if is_later { known.0 } else { name });
        if is_later {
            *known = (name, own);
        }
    }
    repeated
}

/// Finds the newest map.
///
/// # Errors
/// Errors of the store.
pub fn newest(store: &dyn Store, scope: &Scope) -> Result<Option<Seen>> {
    for day in days(store, scope)?.iter().rev() {
        for name in names(store, scope, day)?.iter().rev() {
            if let Some(seen) = one(store, scope, day, name)? {
                return Ok(Some(seen));
            }
        }
    }
    Ok(None)
}

/// Reads the maps that tell what was known around a time, ascending: the first behind it and all that follow soon; and back to one that was seen so
/// [`APART_MAX`] before it, or to the first. One event tells all of a run that goes on, and a run whose times the clock had shown before says so.
///
/// # Errors
/// Errors of the store.
pub fn around(store: &dyn Store, scope: &Scope, time: TimestampTz) -> Result<Vec<Seen>> {
    let (at, own_day) = (event::compact(time), subject(time));
    let soon = format!("{}.", event::compact(time.saturating_add(FOLLOWS)));
    let days = days(store, scope)?;
    // That day has events on both sides of the time: it is listed once.
    let own_names = names(store, scope, &own_day)?;
    let names_of = |day: &String| match *day == own_day {
        true => Ok(own_names.clone()),
        false => names(store, scope, day),
    };
    let mut found: Vec<Seen> = Vec::new();
    'behind: for day in days.iter().filter(|day| **day >= own_day) {
        for name in names_of(day)?.iter().filter(|name| **name >= at) {
            if *name >= soon && !found.is_empty() {
                break 'behind;
            }
            found.extend(one(store, scope, day, name)?);
        }
    }
    let mut since = found.iter().map(|(_, map)| map.since).min();
    let begin = time.saturating_sub(APART_MAX);
    let mut before = Vec::new();
    'before: for day in days.iter().rev().filter(|day| **day <= own_day) {
        for name in names_of(day)?.iter().rev().filter(|name| **name < at) {
            if since.is_some_and(|since| since <= begin) {
                break 'before;
            }
            // It lies in a run that was read.
            if since.is_some_and(|since| *name >= event::compact(since)) {
                continue;
            }
            if let Some(seen) = one(store, scope, day, name)? {
                since = Some(since.map_or(seen.1.since, |since| since.min(seen.1.since)));
                before.push(seen);
            }
        }
    }
    before.reverse();
    before.append(&mut found);
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;
    use crate::store::file::FileStore;

    fn map(since: TimestampTz, owned: &[Range]) -> SlotMap {
        SlotMap {
            cluster: "0a1b2c3d".to_owned(),
            since,
            node: "a".repeat(40),
            nodes: vec!["a".repeat(40)],
            owned: owned.to_vec(),
            atomic_seen: true,
            ..SlotMap::default()
        }
    }

    fn time(text: &str) -> TimestampTz {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn stored(seen: &[(&str, &str)]) -> (tempfile::TempDir, FileStore, Scope) {
        let (dir, store) = crafted::store();
        let scope = Scope::aux("redis", "shop.0123456789ab").unwrap();
        for (n, (since, at)) in (1..).zip(seen) {
            let host = Host::still(time(at), 7 * n);
            let writer = Writer::of(&host);
            let map = map(time(since), &[(0, u16::try_from(n).unwrap())]);
            let event = event(&writer, (time(at), map));
            write(&store, &scope, &event).unwrap();
            write(&store, &scope, &event).unwrap();
        }
        (dir, store, scope)
    }

    #[test]
    fn the_maps_around_a_time_are_read_and_no_others() {
        let (_dir, store, scope) = stored(&[
            ("20T10:00:00", "20T10:01:00"),
            ("20T10:00:00", "20T10:02:00"),
            ("20T10:02:01", "20T23:59:30"),
            ("21T00:00:05", "21T00:00:30"),
            // Somebody looked once; and the same run goes on.
            ("21T00:00:50", "21T00:00:50"),
            ("21T00:00:05", "21T00:01:20"),
            ("21T08:00:00", "21T09:00:00"),
        ]);
        let around = |text: &str| -> Vec<u16> {
            let found = around(&store, &scope, time(text)).unwrap();
            found.into_iter().map(|(_, map)| map.owned[0].1).collect()
        };
        assert_eq!(around("20T09:00:00"), [1]);
        assert_eq!(around("20T10:00:30"), [1, 2]);
        // The run before is of use while it is near.
        assert_eq!(around("20T10:02:05"), [2, 3]);
        // A repository that did not answer for hours has the last event alone.
        assert_eq!(around("20T12:00:00"), [3]);
        assert_eq!(around("20T23:59:40"), [3, 4, 5]);
        assert_eq!(around("21T00:00:10"), [3, 4, 5, 6]);
        assert_eq!(around("21T00:00:50"), [5, 6]);
        assert_eq!(around("21T07:59:00"), [6, 7]);
        assert_eq!(around("21T08:59:00"), [7]);
        assert_eq!(around("22T08:59:00"), [7]);
        let newest = newest(&store, &scope).unwrap();
        assert_eq!(newest.map(|(at, _)| at), Some(time("21T09:00:00")));
        assert_eq!(keys(&store, &scope).unwrap().len(), 7);
    }

    #[test]
    fn a_run_that_ends_behind_its_event_or_began_on_another_day_does_not_count() {
        for seen in [
            ("20T10:00:01", "20T10:00:00"),
            ("19T23:59:59", "20T00:00:00"),
        ] {
            let (_dir, store, scope) = stored(&[seen]);
            assert_eq!(newest(&store, &scope).unwrap(), None, "{seen:?}");
        }
    }

    #[test]
    fn of_a_run_its_last_event_is_enough() {
        let seen: Vec<(String, Seen)> = [
            ("a", "20T10:00:00", "20T10:01:00", 1),
            ("b", "20T10:00:00", "20T10:02:00", 1),
            // Another receiver, or another state, at the same time.
            ("c", "20T10:00:00", "20T10:01:30", 2),
            ("d", "20T10:00:00", "20T10:03:00", 1),
            ("e", "20T10:03:00", "20T10:03:00", 1),
        ]
        .into_iter()
        .map(|(name, since, at, last)| {
            let map = SlotMap {
                offset: Some(u64::from(last) + u64::try_from(at.len()).unwrap()),
                ..map(time(since), &[(0, last)])
            };
            (name.to_owned(), (time(at), map))
        })
        .collect();
        assert_eq!(repeated(&seen), ["a", "b"]);
    }

    #[test]
    fn only_days_that_are_over_are_thinned() {
        let (_dir, store, scope) = stored(&[]);
        let write = |since: &str, at: &str, nonce| {
            let host = Host::still(time(at), nonce);
            let event = event(&Writer::of(&host), (time(at), map(time(since), &[(0, 9)])));
            write(&store, &scope, &event).unwrap();
        };
        write("05T10:00:00", "05T10:01:00", 1);
        write("05T10:00:00", "05T10:02:00", 2);
        write("19T10:00:00", "19T10:01:00", 3);
        write("19T10:00:00", "19T10:02:00", 4);
        write("20T10:00:00", "20T10:01:00", 5);
        write("20T10:00:00", "20T10:02:00", 6);
        let host = Host::still(time("21T09:00:00"), 7);
        let useless = useless(&store, &scope, &host).unwrap();
        let [(day, name)] = useless.as_slice() else {
            panic!("{useless:?}");
        };
        assert_eq!(day, "slots-20261119");
        assert!(name.starts_with("20261119T100100"), "{name}");
    }

    #[test]
    fn a_map_of_the_future_does_not_count() {
        let (_dir, store, scope) = stored(&[("20T10:00:00", "20T10:01:00")]);
        let of_2099: TimestampTz = "2099-11-20T10:00:00Z".parse().unwrap();
        let host = Host::still(of_2099, 99);
        let event = event(&Writer::of(&host), (of_2099, map(of_2099, &[(0, 1)])));
        write(&store, &scope, &event).unwrap();
        let newest = newest(&store, &scope).unwrap();
        assert_eq!(newest.map(|(at, _)| at), Some(time("20T10:01:00")));
    }

    #[test]
    fn another_event_of_the_same_key_is_an_error() {
        let (_dir, store, scope) = stored(&[]);
        let at = time("20T10:00:00");
        let host = Host::still(at, 7);
        let mut event = event(&Writer::of(&host), (at, map(at, &[(0, 1)])));
        write(&store, &scope, &event).unwrap();
        event.slots = Some(map(at, &[(0, 2)]));
        assert_eq!(
            write(&store, &scope, &event).unwrap_err().code(),
            Code::Conflict
        );
    }

    #[test]
    fn the_id_of_a_cluster_is_that_of_its_owners_in_any_order() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        assert_eq!(cluster_id(&[&a, &b]), cluster_id(&[&b, &a]));
        assert_ne!(cluster_id(&[&a, &b]), cluster_id(&[&a, &c]));
        assert_eq!(cluster_id(&[&a]).len(), CLUSTER_DIGITS);
    }

    #[test]
    fn what_is_not_as_described_does_not_count() {
        let good = map(time("20T10:00:00"), &[(0, 5), (7, 7)]);
        assert!(good.is_sound());
        for owned in [
            &[(5, 4)][..],
            &[(0, 5), (6, 7)],
            &[(3, 5), (0, 1)],
            &[(0, 16_384)],
        ] {
            assert!(!map(good.since, owned).is_sound(), "{owned:?}");
        }
        let odd: [&dyn Fn(&mut SlotMap); 6] = [
            &|map| map.run = Some("7".to_owned()),
            &|map| map.migrating = vec![(5, 5, "b".repeat(39))],
            &|map| map.importing = vec![(6, 5, "b".repeat(40))],
            &|map| map.nodes = Vec::new(),
            &|map| map.cluster = "shop".to_owned(),
            &|map| map.replid = "0".to_owned(),
        ];
        for change in odd {
            let mut map = good.clone();
            change(&mut map);
            assert!(!map.is_sound(), "{map:?}");
        }
        // A later version adds fields, and one of this version leaves none out.
        let text = serde_json::to_string(&good).unwrap();
        let more = text.replacen('{', "{\"more\":1,", 1);
        assert_eq!(serde_json::from_str::<SlotMap>(&more).unwrap(), good);
        for field in ["owned", "migrating", "atomic_seen", "again"] {
            let mut less: serde_json::Value = serde_json::from_str(&text).unwrap();
            less.as_object_mut().unwrap().remove(field).unwrap();
            assert!(serde_json::from_value::<SlotMap>(less).is_err(), "{field}");
        }
    }
}
