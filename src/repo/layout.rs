//! The keys of a cluster's WAL (format, section 3); those of every kind of content are in `scope`.

use std::ops::Deref;

use super::lives::Lives;
use super::scope::{Scope, fixed};
use crate::error::Result;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::store::Key;

/// The layout of one cluster (a name and a system identifier): the keys of everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLayout {
    scope: Scope,
    lives: Lives,
}

impl ClusterLayout {
    /// # Errors
    /// `Usage` when `name` is no cluster name.
    pub fn new(name: &str, system_identifier: u64) -> Result<Self> {
        Ok(ClusterLayout {
            scope: Scope::cluster(name, system_identifier)?,
            lives: Lives::default(),
        })
    }

    /// The layout in which segments have the homes that these resolutions give them.
    pub fn with_lives(self, lives: Lives) -> Self {
        ClusterLayout { lives, ..self }
    }

    /// Whether both are of one cluster, whatever homes its segments have.
    pub fn is_of(&self, other: &ClusterLayout) -> bool {
        self.scope == other.scope
    }

    /// The resolutions that give segments their homes.
    pub fn lives(&self) -> &Lives {
        &self.lives
    }

    /// The system identifier of pg_control.
    pub fn system_identifier(&self) -> u64 {
        self.scope.tag().number
    }

    fn key(&self, rest: &str) -> Key {
        fixed(format!("{}/{rest}", self.prefix()))
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

    /// Returns the home of the segments of one life of a timeline, with partials and increments; without a life the
    /// timeline's own prefix.
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

    /// Returns the key of the WAL file `name`.
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
        self.home_of(name).increments(name)
    }

    /// The increment of `name` that holds `range`.
    pub fn increment(&self, name: SegmentName, range: LsnRange) -> Key {
        let (from, to) = (range.start.0, range.end.0);
        fixed(format!("{}/{from:016X}-{to:016X}", self.increments(name)))
    }

    /// Returns the key of a refused copy of `name` with this raw hash.
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
}

/// A cluster's layout has the keys of its scope.
impl Deref for ClusterLayout {
    type Target = Scope;

    fn deref(&self) -> &Scope {
        &self.scope
    }
}

/// The prefix of the segments of one life of a timeline.
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

    /// Prefix of the increments of one segment.
    pub fn increments(&self, name: SegmentName) -> String {
        format!("{}/{name}", self.open_segments())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::id::{BackupId, PartName};

    #[test]
    fn keys_are_those_of_the_format_page() {
        let c = ClusterLayout::new("main", 7_000_000_000_000_000_001).unwrap();
        let p = "clusters/main/7000000000000000001";
        let file = |n: &str| c.wal_file(n.parse().unwrap()).to_string();
        let is = |key: &str, rest: &str| assert_eq!(key, format!("{p}/{rest}"));
        let name = "000000010000000A000000FE";
        is(&file(name), &format!("wal/00000001/0000000A/{name}"));
        is(&file("0000000B.history"), "wal/0000000B/history");
        let partial = file(&format!("{name}.partial"));
        is(&partial, &format!("wal/00000001/partial/{name}"));
        let label = format!("{name}.00000028.backup");
        is(&file(&label), &format!("wal/00000001/labels/{label}"));
        let range = LsnRange {
            start: Lsn(0xA_FE00_0000),
            end: Lsn(0xA_FE00_2010),
        };
        let increment = c.increment(name.parse().unwrap(), range);
        let ends = "0000000AFE000000-0000000AFE002010";
        is(
            increment.as_str(),
            &format!("wal/00000001/open/{name}/{ends}"),
        );
        assert_eq!(increment_range(increment.name()), Some(range));
        let conflict = c.conflict("0000000B.history".parse().unwrap(), &[0xAB; 32]);
        let kept = "conflicts/0000000B.history-abababababababab";
        is(conflict.as_str(), kept);
        let text = "20261120T064049Z-2-full";
        let id: BackupId = text.parse().unwrap();
        is(c.begin(&id).as_str(), &format!("events/{text}/begin"));
        let part = PartName { id, number: 7 };
        is(c.pack(&part).as_str(), &format!("packs/{text}/000007"));
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
