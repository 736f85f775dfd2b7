//! Every object key, in one file (format, section 3).

use std::fmt;
use std::str::FromStr;

use super::lives::Lives;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::store::Key;

/// The repository's marker.
pub fn marker() -> Key {
    fixed("pitr.json".to_owned())
}

/// Prefix of what the recipients of an encrypted repository open.
pub fn recipients(epoch: u32) -> String {
    format!("keys/{epoch}")
}

/// What one recipient of an encrypted repository opens.
///
/// # Errors
/// `Damaged` when the name breaks the key grammar.
pub fn recipient(epoch: u32, name: &str) -> Result<Key> {
    Key::new(format!("keys/{epoch}/{name}"))
}

/// Whether an object under this key is sealed in an encrypted repository: all are but the marker, keys, registrations and events.
pub fn is_sealed_form(key: &Key) -> bool {
    is_sealed(key.as_str())
}

fn is_sealed(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    !matches!(
        parts.as_slice(),
        ["pitr.json"]
            | ["keys", _, _]
            | [CLUSTERS, _, _, "cluster.json"]
            | [CLUSTERS, _, _, "events", _, _]
    )
}

/// The name or key without the suffix of a healed copy, where it has one. What is not of a sealed form never heals: a copy of an event under
/// such a name would say a second time what another event has ended.
pub fn healed_base(name: &str) -> Option<&str> {
    let (base, number) = name.rsplit_once(".heal-")?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_number && is_sealed(base)).then_some(base)
}

/// The key that an object found under `key` says it has.
pub fn own_key(key: &Key) -> &str {
    healed_base(key.as_str()).unwrap_or(key.as_str())
}

/// Whether a refused copy belongs under the key.
pub fn is_conflict(key: &Key) -> bool {
    let mut parts = key.as_str().split('/');
    parts.next() == Some(CLUSTERS) && parts.nth(2) == Some("conflicts")
}

/// Prefix below which the names of clusters are listed.
pub const CLUSTERS: &str = "clusters";

/// Whether `name` may name a cluster: `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn is_cluster_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 63
        && bytes.next().is_some_and(first)
        && bytes.all(|b| first(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Where everything of one cluster (a name and a system identifier) lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLayout {
    name: String,
    system_identifier: u64,
    lives: Lives,
}

impl ClusterLayout {
    /// # Errors
    /// `Usage` when `name` is no cluster name.
    pub fn new(name: &str, system_identifier: u64) -> Result<Self> {
        if !is_cluster_name(name) {
            return Err(err!(
                Usage,
                "\"{}\" is not a cluster name: [a-z0-9][a-z0-9._-]{{0,62}} is needed",
                name.escape_debug()
            ));
        }
        Ok(ClusterLayout {
            name: name.to_owned(),
            system_identifier,
            lives: Lives::default(),
        })
    }

    /// The layout in which segments have the homes that these resolutions give them.
    pub fn with_lives(self, lives: Lives) -> Self {
        ClusterLayout { lives, ..self }
    }

    /// Whether both are of one cluster, whatever homes its segments have.
    pub fn is_of(&self, other: &ClusterLayout) -> bool {
        (&self.name, self.system_identifier) == (&other.name, other.system_identifier)
    }

    /// The resolutions that give segments their homes.
    pub fn lives(&self) -> &Lives {
        &self.lives
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The system identifier of pg_control.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    fn key(&self, rest: &str) -> Key {
        fixed(format!("{}/{rest}", self.prefix()))
    }

    /// `clusters/<name>/<system identifier>`.
    pub fn prefix(&self) -> String {
        format!("{CLUSTERS}/{}/{}", self.name, self.system_identifier)
    }

    /// The registration.
    pub fn cluster(&self) -> Key {
        self.key("cluster.json")
    }

    /// Prefix below which timelines are listed.
    pub fn wal(&self) -> String {
        format!("{}/wal", self.prefix())
    }

    /// Prefix of one timeline: log ids, `partial`, `labels`, `open`, and `history`.
    pub fn timeline(&self, timeline: TimelineId) -> String {
        format!("{}/wal/{timeline}", self.prefix())
    }

    /// Prefix below which the lives of a timeline are listed that `pitr wal resolve` gave it.
    pub fn lives_of(&self, timeline: TimelineId) -> String {
        format!("{}/lives", self.timeline(timeline))
    }

    /// Where the segments of one life of a timeline lie, with partials and increments; without a life the timeline's own prefix.
    pub fn home(&self, timeline: TimelineId, life: Option<&str>) -> Home {
        Home(match life {
            Some(copy) => format!("{}/{copy}", self.lives_of(timeline)),
            None => self.timeline(timeline),
        })
    }

    /// The homes that segments of a timeline have, the one of its beginning first.
    pub fn homes(&self, timeline: TimelineId) -> Vec<Home> {
        let own = self.lives.iter().filter(|l| l.segment.timeline == timeline);
        let mut copies: Vec<&str> = own.map(|l| l.copy.as_str()).collect();
        copies.sort_unstable();
        copies.dedup();
        let lives = copies.into_iter().map(|c| self.home(timeline, Some(c)));
        std::iter::once(self.home(timeline, None))
            .chain(lives)
            .collect()
    }

    /// The home of a segment.
    pub fn home_of(&self, name: SegmentName) -> Home {
        let life = self.lives.of(name).map(|l| l.copy.as_str());
        self.home(name.timeline, life)
    }

    /// A segment.
    pub fn segment(&self, name: SegmentName) -> Key {
        self.home_of(name).segment(name)
    }

    /// Whether a key of something of a segment lies in another home than the segment's own.
    pub fn is_elsewhere(&self, name: SegmentName, key: &str) -> bool {
        let below = |prefix: &str| key.strip_prefix(prefix).is_some_and(|k| k.starts_with('/'));
        let (plain, own) = (self.home(name.timeline, None), self.home_of(name));
        match own == plain {
            true => below(&self.lives_of(name.timeline)),
            false => below(plain.prefix()) && !below(own.prefix()),
        }
    }

    /// A timeline's history file.
    pub fn history(&self, timeline: TimelineId) -> Key {
        self.key(&format!("wal/{timeline}/history"))
    }

    /// Where the WAL file `name` lies.
    pub fn wal_file(&self, name: WalFileName) -> Key {
        match name {
            WalFileName::Segment(segment) => self.segment(segment),
            WalFileName::History(timeline) => self.history(timeline),
            WalFileName::Partial(segment) => {
                fixed(format!("{}/{segment}", self.home_of(segment).partials()))
            }
            WalFileName::BackupHistory { segment, .. } => {
                self.key(&format!("wal/{}/labels/{name}", segment.timeline))
            }
        }
    }

    /// Prefix of the increments of one segment.
    pub fn increments(&self, name: SegmentName) -> String {
        format!("{}/{name}", self.home_of(name).open_segments())
    }

    /// The increment of `name` that holds `range`.
    pub fn increment(&self, name: SegmentName, range: LsnRange) -> Key {
        let (from, to) = (range.start.0, range.end.0);
        fixed(format!("{}/{from:016X}-{to:016X}", self.increments(name)))
    }

    /// Where a refused copy of `name` with this raw hash lies.
    pub fn conflict(&self, name: WalFileName, hash: &[u8; 32]) -> Key {
        let hash = blake3::Hash::from_bytes(*hash).to_hex();
        self.key(&format!(
            "conflicts/{name}-{}",
            hash.get(..16).unwrap_or_default()
        ))
    }

    /// Prefix of refused copies.
    pub fn conflicts(&self) -> String {
        format!("{}/conflicts", self.prefix())
    }

    /// Prefix below which ids of backups are listed.
    pub fn backups(&self) -> String {
        format!("{}/backups", self.prefix())
    }

    /// A backup's root, its commit record.
    pub fn manifest(&self, id: &BackupId) -> Key {
        self.key(&format!("backups/{id}/manifest"))
    }

    /// PostgreSQL's own manifest of a backup.
    pub fn server_manifest(&self, id: &BackupId) -> Key {
        self.key(&format!("backups/{id}/server-manifest"))
    }

    /// A layer object, by the `<id>/<n>` that roots use.
    pub fn layer(&self, part: &PartName) -> Key {
        self.key(&format!("layers/{part}"))
    }

    /// A pack, by the `<id>/<n>` that roots and layers use.
    pub fn pack(&self, part: &PartName) -> Key {
        self.key(&format!("packs/{part}"))
    }

    /// Prefix of layers or packs: all ids, or the parts of one.
    pub fn parts(&self, kind: PartKind, id: Option<&BackupId>) -> String {
        let kind = match kind {
            PartKind::Layer => "layers",
            PartKind::Pack => "packs",
        };
        match id {
            Some(id) => format!("{}/{kind}/{id}", self.prefix()),
            None => format!("{}/{kind}", self.prefix()),
        }
    }

    /// Prefix below which subjects of events are listed.
    pub fn events(&self) -> String {
        format!("{}/events", self.prefix())
    }

    /// Prefix of one subject's events.
    pub fn subject(&self, subject: &str) -> String {
        format!("{}/events/{subject}", self.prefix())
    }

    /// The reservation of a backup id.
    pub fn begin(&self, id: &BackupId) -> Key {
        self.key(&format!("events/{id}/begin"))
    }

    /// An event: `name` is `<time>-<kind>-<nonce>`.
    ///
    /// # Errors
    /// `Damaged` when subject or name break the key grammar.
    pub fn event(&self, subject: &str, name: &str) -> Result<Key> {
        Key::new(format!("{}/events/{subject}/{name}", self.prefix()))
    }
}

/// Where the segments of one life of a timeline lie: a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(String);

impl Home {
    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// Prefix of the segments of one log id, the second group of eight digits of their names.
    pub fn log(&self, log: u32) -> String {
        format!("{}/{log:08X}", self.0)
    }

    /// Prefix of the partial segments.
    pub fn partials(&self) -> String {
        format!("{}/partial", self.0)
    }

    /// Prefix below which segments that are being streamed are listed, by name.
    pub fn open_segments(&self) -> String {
        format!("{}/open", self.0)
    }

    /// A segment in this home.
    pub fn segment(&self, name: SegmentName) -> Key {
        fixed(format!("{}/{name}", self.log(name.log)))
    }
}

/// The range in the name of an increment; `None` for any other name.
pub fn increment_range(name: &str) -> Option<LsnRange> {
    let half = |s: &str| {
        let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        (s.len() == 16 && s.bytes().all(upper))
            .then(|| u64::from_str_radix(s, 16).ok())
            .flatten()
            .map(Lsn)
    };
    let (from, to) = name.split_once('-')?;
    let (start, end) = (half(from)?, half(to)?);
    (start < end).then_some(LsnRange { start, end })
}

/// Layers or packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// Parts of the map.
    Layer,
    /// Frames of file content.
    Pack,
}

/// A backup's id, e.g. `20261120T064049Z-482913-full`; older programs wrote no number, or a small one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// Composes the id for a start time printed as `20261120T064049Z`. Of `random` six decimal digits go into it: two hosts that begin in
    /// the same second, each in a repository of its own, get two ids.
    pub fn compose(stamp: &str, random: u64, kind: &str) -> Result<BackupId> {
        format!("{stamp}-{:06}-{kind}", random % 1_000_000).parse()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let stamp = s.get(..16).unwrap_or_default().as_bytes();
        let stamp_ok = stamp.iter().enumerate().all(|(i, b)| match i {
            8 => *b == b'T',
            15 => *b == b'Z',
            _ => b.is_ascii_digit(),
        });
        let rest = s
            .get(16..)
            .and_then(|r| r.strip_prefix('-'))
            .unwrap_or_default();
        let kind = rest.rsplit('-').next().unwrap_or_default();
        let number_ok = match rest.rsplit_once('-') {
            Some((n, _)) => n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty(),
            None => true,
        };
        if stamp.len() == 16 && stamp_ok && number_ok && matches!(kind, "full" | "incr") {
            Ok(BackupId(s.to_owned()))
        } else {
            let shown: String = s.escape_debug().take(100).collect();
            Err(err!(
                NotFound,
                "\"{shown}\" is not a backup id, as 20261120T064049Z-482913-full is"
            ))
        }
    }
}

impl serde::Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A layer object or a pack inside its prefix: `<id>/<n>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName {
    /// The backup that wrote it.
    pub id: BackupId,
    /// Counts from 0.
    pub number: u32,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:06}", self.id, self.number)
    }
}

impl FromStr for PartName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let shown = || s.escape_debug().take(100).collect::<String>();
        let wrong = || {
            err!(
                Damaged,
                "\"{}\" is not the name of a layer or pack",
                shown()
            )
        };
        let (id, number) = s.split_once('/').ok_or_else(wrong)?;
        if number.len() != 6 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        Ok(PartName {
            id: id.parse().map_err(|_| wrong())?,
            number: number.parse().map_err(|_| wrong())?,
        })
    }
}

impl serde::Serialize for PartName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PartName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn fixed(key: String) -> Key {
    Key::new(key).expect("keys are composed of parts whose grammar is checked before")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_as_plain_is_sealed() {
        let is_sealed = |key: &str| is_sealed_form(&Key::new(key).unwrap());
        for plain in [
            "pitr.json",
            "keys/1/ops",
            "clusters/main/7/cluster.json",
            "clusters/main/7/events/20261120T064049Z-full/begin",
        ] {
            assert!(!is_sealed(plain), "{plain}");
        }
        for sealed in [
            "aux/x",
            "pitr.json/x",
            "keys",
            "keys/1/ops/x",
            "clusters/main/7",
            "clusters/main/7/cluster.json/x",
            "clusters/main/7/events",
            "clusters/main/7/other",
            "clusters/main/7/wal/00000001/history",
            "clusters/main/7/backups/x/manifest",
        ] {
            assert!(is_sealed(sealed), "{sealed}");
        }
    }

    #[test]
    fn what_stays_plain_has_no_healed_copies() {
        let own = |key: &str| own_key(&Key::new(key).unwrap()).to_owned();
        for plain in [
            "pitr.json",
            "keys/1/ops",
            "clusters/main/7/cluster.json",
            "clusters/main/7/events/20261120T064049Z-full/begin",
            "clusters/main/7/events/cluster/20261120T064049.123456Z-gap-0000000000000001",
        ] {
            let healed = format!("{plain}.heal-1");
            assert_eq!(own(&healed), healed);
        }
        let c = "clusters/main/7";
        for sealed in [
            "wal/00000001/00000000/000000010000000000000001",
            "wal/00000001/history",
            "wal/00000001/partial/000000010000000000000001",
            "wal/00000001/open/000000010000000000000001/0000000001000000-0000000001000028",
            "wal/00000001/labels/000000010000000000000001.00000028.backup",
            "conflicts/00000002.history-0123456789abcdef",
            "backups/20261120T064049Z-full/manifest",
            "backups/20261120T064049Z-full/server-manifest",
            "layers/20261120T064049Z-full/000000",
            "packs/20261120T064049Z-full/000000",
        ] {
            assert_eq!(
                own(&format!("{c}/{sealed}.heal-12")),
                format!("{c}/{sealed}")
            );
        }
        for none in ["manifest.heal-", "manifest.heal-x", "manifest.heal-1/x"] {
            assert_eq!(healed_base(none), None, "{none}");
        }
    }

    #[test]
    fn keys_are_those_of_the_format_page() {
        let c = ClusterLayout::new("main", 7_000_000_000_000_000_001).unwrap();
        let p = "clusters/main/7000000000000000001";
        let file = |n: &str| c.wal_file(n.parse().unwrap()).to_string();
        assert_eq!(
            file("000000010000000A000000FE"),
            format!("{p}/wal/00000001/0000000A/000000010000000A000000FE")
        );
        assert_eq!(
            file("0000000B.history"),
            format!("{p}/wal/0000000B/history")
        );
        assert_eq!(
            file("000000010000000A000000FE.partial"),
            format!("{p}/wal/00000001/partial/000000010000000A000000FE")
        );
        assert_eq!(
            file("000000010000000A000000FE.00000028.backup"),
            format!("{p}/wal/00000001/labels/000000010000000A000000FE.00000028.backup")
        );
        let range = LsnRange {
            start: Lsn(0xA_FE00_0000),
            end: Lsn(0xA_FE00_2010),
        };
        let increment = c.increment("000000010000000A000000FE".parse().unwrap(), range);
        assert_eq!(
            increment.as_str(),
            format!(
                "{p}/wal/00000001/open/000000010000000A000000FE/0000000AFE000000-0000000AFE002010"
            )
        );
        assert_eq!(increment_range(increment.name()), Some(range));
        let conflict = c.conflict("0000000B.history".parse().unwrap(), &[0xAB; 32]);
        assert_eq!(
            conflict.as_str(),
            format!("{p}/conflicts/0000000B.history-abababababababab")
        );
        let id: BackupId = "20261120T064049Z-2-full".parse().unwrap();
        assert_eq!(
            c.begin(&id).as_str(),
            format!("{p}/events/20261120T064049Z-2-full/begin")
        );
        let part = PartName { id, number: 7 };
        assert_eq!(
            c.pack(&part).as_str(),
            format!("{p}/packs/20261120T064049Z-2-full/000007")
        );
        assert_eq!(part.to_string().parse::<PartName>().unwrap(), part);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "A", "../x", "-a", "a b", &"a".repeat(64)] {
            assert!(ClusterLayout::new(bad, 1).is_err(), "{bad}");
        }
        for bad in [
            "",
            "20261120T064049Z",
            "20261120T064049Z-",
            "20261120T064049Z-x",
            "20261120T064049Z-../full",
            "20261120T06404-full",
            "20261120T064049Z--full",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
        for bad in [
            "",
            "-",
            "0000000AFE002010-0000000AFE000000",
            "0000000AFE000000-0000000AFE000000",
            "0000000AFE000000-0000000AFE002010.heal-1",
            "0000000afe000000-0000000AFE002010",
            "+000000AFE000000-0000000AFE002010",
        ] {
            assert!(increment_range(bad).is_none(), "{bad}");
        }
        for bad in [
            "x",
            "20261120T064049Z-full",
            "20261120T064049Z-full/1",
            "20261120T064049Z-full/0000001",
        ] {
            assert!(bad.parse::<PartName>().is_err(), "{bad}");
        }
    }
}
