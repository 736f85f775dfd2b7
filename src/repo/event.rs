//! Events: state that changes, as small create-only objects (format, section 9).

use serde::{Deserialize, Serialize};

use super::json;
use super::layout::ClusterLayout;
use crate::err;
use crate::error::Result;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::store::{Key, Published, Store};

const KIND: &str = "event";
/// Characters of what is said of damage.
const DETAIL_MAX: usize = 1000;
/// Name and version of the program that does everything but one, in events and records.
pub const PROGRAM: &str = concat!("pitr ", env!("CARGO_PKG_VERSION"));

/// One event. Fields that its kind does not use are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Event {
    /// `begin`, `claim`, `release`, `pin`, `unpin`, `expire`, `unexpire`, `damaged`, `healed`, `gap`, `adopted`, `segment_size`.
    pub event: String,
    /// A backup id, `wal-<24 hex>`, `wal-<T>` or `cluster`.
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
    /// Claims of a backup that is running or copied: where its WAL begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Claims of a backup that is running or copied: where its WAL begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<Lsn>,
    /// Marks: not deleted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<TimestampTz>,
    /// Pins: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Damage: the object.
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
    /// `adopted`: the name it continues under.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "as")]
    pub as_name: Option<String>,
    /// `gap`: the first byte that is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_lsn: Option<Lsn>,
    /// `gap`: the first byte behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_lsn: Option<Lsn>,
    /// `segment_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_size_bytes: Option<u64>,
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
}

impl Recorded {
    /// The later of the writer's and the store's clock: what every duration is counted from.
    pub fn since(&self) -> TimestampTz {
        self.event.time.max(self.stored)
    }
}

/// Who writes events: a program of this host, its clock and its random numbers.
pub struct Writer<'a> {
    /// Name and version.
    pub program: &'a str,
    /// The current time.
    pub clock: &'a dyn Fn() -> TimestampTz,
    /// Random numbers.
    pub random: &'a dyn Fn() -> u64,
}

impl<'a> Writer<'a> {
    /// This program, `pitr`.
    pub fn new(clock: &'a dyn Fn() -> TimestampTz, random: &'a dyn Fn() -> u64) -> Writer<'a> {
        Writer {
            program: PROGRAM,
            clock,
            random,
        }
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
    /// What the store says.
    pub fn record(
        &self,
        store: &dyn Store,
        layout: &ClusterLayout,
        event: &Event,
    ) -> Result<String> {
        record(store, layout, event, (self.random)())
    }

    /// Writes that `object` is damaged, unless damage of its subject stands already.
    ///
    /// # Errors
    /// What the store says.
    pub fn record_damage(
        &self,
        store: &dyn Store,
        layout: &ClusterLayout,
        subject: &str,
        (object, detail): (&str, &str),
    ) -> Result<()> {
        if !damage(&read_all(store, layout, subject)?).is_empty() {
            return Ok(());
        }
        let damaged = self.damaged(subject, object, detail);
        self.record(store, layout, &damaged).map(|_| ())
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

/// 32 hexadecimal digits.
pub fn nonce(random: &dyn Fn() -> u64) -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// Writes an event; `nonce` is random. Returns the last part of its key.
pub fn record(
    store: &dyn Store,
    layout: &ClusterLayout,
    event: &Event,
    nonce: u64,
) -> Result<String> {
    let name = format!("{}-{}-{nonce:016x}", compact(event.time), event.event);
    let key = layout.event(&event.subject, &name)?;
    match json::write(store, &key, KIND, event)? {
        Published::Created => Ok(name),
        Published::Exists => Err(err!(Internal, "event \"{key}\" exists already")),
    }
}

/// Reserves a backup id by creating its `begin` event; `Exists` means that the id is taken.
pub fn begin(store: &dyn Store, layout: &ClusterLayout, event: &Event) -> Result<Published> {
    let id = event.subject.parse()?;
    json::write(store, &layout.begin(&id), KIND, event)
}

/// Checks and reads an event that was found under `key`.
///
/// # Errors
/// `Damaged`, also when it belongs to another subject than that of its key.
pub fn decode(key: &Key, bytes: &[u8]) -> Result<Event> {
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
pub fn read_all(store: &dyn Store, layout: &ClusterLayout, subject: &str) -> Result<Vec<Recorded>> {
    let mut names: Vec<String> = store
        .list(&layout.subject(subject))?
        .into_iter()
        .filter(|l| !l.is_prefix)
        .map(|l| l.name)
        .collect();
    names.sort();
    let mut events = Vec::new();
    for name in names {
        let key = layout.event(subject, &name)?;
        let Some(meta) = store.head(&key)? else {
            continue;
        };
        if let Some(event) = json::read::<Event>(store, &key, KIND, json::LIMIT_BYTES)? {
            if event.subject != subject {
                return Err(err!(
                    Damaged,
                    "event \"{key}\" belongs to subject \"{}\"",
                    event.subject
                ));
            }
            events.push(Recorded {
                name,
                event,
                stored: meta.modified,
            });
        }
    }
    Ok(events)
}

fn host() -> String {
    let host = rustix::system::uname();
    host.nodename().to_string_lossy().into_owned()
}

/// Of `events`, those of `kind` that no event of `ended_by` (or of the same kind, as a renewal) ends.
pub fn standing<'a>(events: &'a [Recorded], kind: &str, ended_by: &str) -> Vec<&'a Recorded> {
    let ended = |name: &str| {
        events.iter().any(|e| {
            (e.event.event == ended_by || e.event.event == kind)
                && e.event.ends.as_deref() == Some(name)
        })
    };
    events
        .iter()
        .filter(|e| e.event.event == kind && !ended(&e.name))
        .collect()
}

/// The damage that stands.
pub fn damage(events: &[Recorded]) -> Vec<&Recorded> {
    standing(events, "damaged", "healed")
}

/// The subject of what concerns a whole timeline.
pub fn timeline_subject(timeline: TimelineId) -> String {
    format!("wal-{timeline}")
}

/// What `gap` events tell to be lost, ascending. Whether it came after all is not their business.
pub fn gaps(events: &[Recorded]) -> Vec<LsnRange> {
    let mut gaps: Vec<LsnRange> = events
        .iter()
        .filter(|e| e.event.event == "gap")
        .filter_map(|e| e.event.from_lsn.zip(e.event.to_lsn))
        .filter(|(start, end)| start < end)
        .map(|(start, end)| LsnRange { start, end })
        .collect();
    gaps.sort_unstable_by_key(|r| (r.start, r.end));
    gaps.dedup();
    gaps
}

/// `20261120T064049.123456Z`, the form of times in keys.
pub fn compact(time: TimestampTz) -> String {
    time.to_string().replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::FileStore;

    #[test]
    fn a_renewed_claim_is_over_and_the_renewal_stands() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let layout = ClusterLayout::new("main", 7).unwrap();
        let mut event = Event {
            event: "claim".into(),
            subject: "20261120T064049Z-full".into(),
            time: "2026-11-20T06:40:49.123456Z".parse().unwrap(),
            ..Event::default()
        };
        let first = record(&store, &layout, &event, 1).unwrap();
        assert_eq!(first, "20261120T064049.123456Z-claim-0000000000000001");
        event.ends = Some(first.clone());
        let second = record(&store, &layout, &event, 2).unwrap();
        let all = read_all(&store, &layout, &event.subject).unwrap();
        let standing: Vec<_> = standing(&all, "claim", "release")
            .iter()
            .map(|e| e.name.clone())
            .collect();
        assert_eq!(standing, [second]);
    }
}
