//! Versions of servers, and which data sets each can load. Pure.
//!
//! A server loads data sets of its own version and of older ones of its family. Redis: src/rdb.h and src/rdb.c (`RDB_VERSION`, rdbLoadRioWithLoadingCtx);
//! Valkey: src/rdb.h (`RDB_VERSION_MAP`, `RDB_FOREIGN_VERSION_MIN`). Redis 6.0, 7.0 and 8.0, and Valkey 8.1 and 9.1, were measured.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::{Error, Result};

/// The first version of data sets that is Valkey's alone.
pub const FIRST_OF_VALKEY: u32 = 80;
/// Versions from here up to Valkey's first are Redis' alone.
const FIRST_OF_REDIS: u32 = 12;

/// A release, and the greatest version of data sets that it and those after it load, until the next row.
type Greatest = ((u32, u32), u32);

/// Greatest version of data sets that each Redis loads, by the first release that does.
const REDIS: [Greatest; 6] = [
    ((4, 0), 8),
    ((5, 0), 9),
    ((7, 0), 10),
    ((7, 2), 11),
    ((7, 4), 12),
    ((8, 6), 13),
];
/// The same of Valkey.
const VALKEY: [Greatest; 3] = [((7, 2), 11), ((9, 0), 80), ((9, 2), 81)];
/// The first release that keeps its append-only files in a directory of their own.
const FIRST_WITH_DIRECTORY: (u32, u32) = (7, 0);
/// The first release that is told of its master by `replicaof`.
const FIRST_WITH_REPLICAOF: (u32, u32) = (5, 0);
/// The first release of Valkey whose clusters have numbered databases.
const FIRST_WITH_CLUSTER_DATABASES: (u32, u32) = (9, 0);

/// The family of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavor {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl Flavor {
    /// Its name, with which the names of its programs begin.
    pub fn name(self) -> &'static str {
        match self {
            Flavor::Redis => "redis",
            Flavor::Valkey => "valkey",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Flavor::Redis => "Redis",
            Flavor::Valkey => "Valkey",
        }
    }
}

/// The version of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVersion {
    /// The family.
    pub flavor: Flavor,
    /// The first two numbers.
    pub release: (u32, u32),
    text: String,
}

/// Whether a server can load a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loads {
    /// It can.
    Yes,
    /// It cannot.
    No,
    /// The server is newer than all that are known here.
    Unknown,
}

impl ServerVersion {
    /// Reads a version such as `7.0.15`.
    ///
    /// # Errors
    /// `Usage` when it does not begin with two numbers.
    pub fn new(flavor: Flavor, text: &str) -> Result<ServerVersion> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|n| n.parse().ok());
        let release = next().zip(next().or_else(|| (!text.contains('.')).then_some(0)));
        let release = release.ok_or_else(|| {
            err!(
                Usage,
                "\"{}\" is no version of a server",
                text.escape_debug()
            )
            .hint("A version is like 7.0.15 or valkey-8.1.")
        })?;
        Ok(ServerVersion {
            flavor,
            release,
            text: text.to_owned(),
        })
    }

    /// Reads a version that may name its family: `8.0`, `redis 8.0`, `valkey-8.1`. One that does not is of the family `of`.
    ///
    /// # Errors
    /// As [`ServerVersion::new`].
    pub fn named(text: &str, of: Flavor) -> Result<ServerVersion> {
        let lower = text.trim().to_ascii_lowercase();
        for flavor in [Flavor::Redis, Flavor::Valkey] {
            if let Some(rest) = lower.strip_prefix(flavor.name()) {
                return ServerVersion::new(flavor, rest.trim_start_matches([' ', '-', '=', 'v']));
            }
        }
        ServerVersion::new(of, &lower)
    }

    /// Reads what `redis-server --version` prints: `Redis server v=7.0.15 sha=…`; none of another text.
    pub fn printed(text: &str) -> Option<ServerVersion> {
        let (name, rest) = text.split_once(' ')?;
        let flavor = match name {
            "Redis" => Flavor::Redis,
            "Valkey" => Flavor::Valkey,
            _ => return None,
        };
        let version = rest.split_once("v=")?.1.split_whitespace().next()?;
        ServerVersion::new(flavor, version).ok()
    }

    /// Whether the server can load a data set of this version that came from `source`.
    pub fn loads(&self, rdb_version: u32, source: &ServerVersion) -> Loads {
        let is_own = self.flavor == source.flavor && self.release >= source.release;
        let (table, is_foreign): (&[Greatest], bool) = match self.flavor {
            Flavor::Redis => (&REDIS, rdb_version >= FIRST_OF_VALKEY),
            Flavor::Valkey => {
                let foreign = FIRST_OF_REDIS..FIRST_OF_VALKEY;
                (&VALKEY, foreign.contains(&rdb_version))
            }
        };
        let known = table.iter().rev().find(|(first, _)| *first <= self.release);
        let is_newer = table.last().is_some_and(|(last, _)| self.release > *last);
        match known {
            _ if is_own => Loads::Yes,
            _ if is_foreign => Loads::No,
            Some((_, most)) if rdb_version <= *most => Loads::Yes,
            Some(_) if is_newer => Loads::Unknown,
            _ => Loads::No,
        }
    }

    /// Returns the version of the data sets that it writes; none where it is newer than all that are known here.
    pub fn writes(&self) -> Option<u32> {
        let table: &[Greatest] = match self.flavor {
            Flavor::Redis => &REDIS,
            Flavor::Valkey => &VALKEY,
        };
        let known = table.iter().rev().find(|(first, _)| *first <= self.release);
        let is_newer = table.last().is_some_and(|(last, _)| self.release > *last);
        known.filter(|_| !is_newer).map(|(_, version)| *version)
    }

    /// Whether it can be a replica of `master`: it loads what that one writes.
    pub fn can_follow(&self, master: &ServerVersion) -> bool {
        let is_own = self.flavor == master.flavor && self.release >= master.release;
        let loads = |written| self.loads(written, master) != Loads::No;
        is_own || master.writes().is_some_and(loads)
    }

    /// Returns the version without its family.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it keeps its append-only files in a directory of their own, with a manifest.
    pub fn has_directory(&self) -> bool {
        self.release >= FIRST_WITH_DIRECTORY
    }

    /// Whether it has a setting of its own for the number of databases in a cluster.
    pub fn has_cluster_databases(&self) -> bool {
        self.flavor == Flavor::Valkey && self.release >= FIRST_WITH_CLUSTER_DATABASES
    }

    /// The setting that makes it a replica.
    pub fn replica_setting(&self) -> &'static str {
        match self.release >= FIRST_WITH_REPLICAOF {
            true => "replicaof",
            false => "slaveof",
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flavor.title(), self.text)
    }
}

impl FromStr for Flavor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Flavor> {
        match text {
            "redis" => Ok(Flavor::Redis),
            "valkey" => Ok(Flavor::Valkey),
            other => Err(err!(
                Unsupported,
                "\"{}\" is no family of servers that this version knows",
                other.escape_debug()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_loads_its_own_data_sets_and_older_ones_of_its_family() {
        use Loads::{No, Unknown, Yes};
        for (server, rdb_version, expected) in [
            ("redis 4.0.14", 8, Yes),
            ("redis 4.0.14", 9, No),
            ("redis 3.2", 7, No),
            ("redis 6.0.16", 9, Yes),
            ("redis 6.2", 10, No),
            ("redis 7.0.15", 10, Yes),
            ("redis 7.0.15", 11, No),
            ("redis 7.2", 11, Yes),
            ("redis 8.0.6", 12, Yes),
            ("redis 8.6", 13, Yes),
            ("redis 8.6", 14, No),
            ("redis 9.0", 14, Unknown),
            ("redis 9.0", 80, No),
            ("redis 8.0.6", 80, No),
            ("valkey 8.1.1", 11, Yes),
            ("valkey 8.1.1", 9, Yes),
            ("valkey 8.1.1", 12, No),
            ("valkey 8.1.1", 80, No),
            ("valkey 9.1", 80, Yes),
            ("valkey 9.1", 12, No),
            ("valkey 9.1", 81, No),
            ("valkey 9.2", 81, Yes),
            ("valkey 10.0", 82, Unknown),
        ] {
            let version = ServerVersion::named(server, Flavor::Redis).unwrap();
            // The table alone tells about such a source.
            let source = ServerVersion::named("redis 99.0", Flavor::Redis).unwrap();
            let found = version.loads(rdb_version, &source);
            assert_eq!(found, expected, "{server}, {rdb_version}");
        }
        // The table may lag behind what a server says of itself.
        let own = ServerVersion::named("redis 8.4", Flavor::Redis).unwrap();
        assert_eq!(own.loads(13, &own), Yes);
    }

    #[test]
    fn a_replica_loads_what_its_master_writes() {
        for (replica, master, expected) in [
            ("redis 7.0.15", "redis 7.0.15", true),
            ("redis 8.0", "redis 7.0", true),
            ("redis 7.0", "redis 8.0", false),
            ("valkey 8.1", "redis 7.2", true),
            ("valkey 8.1", "redis 8.0", false),
            ("redis 7.2", "valkey 8.1", true),
            ("redis 8.0", "valkey 9.1", false),
            ("redis 8.0", "redis 99.0", false),
            ("redis 99.0", "redis 99.0", true),
        ] {
            let version = |text| ServerVersion::named(text, Flavor::Redis).unwrap();
            let found = version(replica).can_follow(&version(master));
            assert_eq!(found, expected, "{replica}, {master}");
        }
    }

    #[test]
    fn versions_are_read_as_people_and_programs_write_them() {
        let named = |text: &str| {
            let version = ServerVersion::named(text, Flavor::Valkey).unwrap();
            (version.flavor, version.release, version.to_string())
        };
        let redis = |text: &str| (Flavor::Redis, (7, 0), format!("Redis {text}"));
        assert_eq!(named("redis 7.0.15"), redis("7.0.15"));
        assert_eq!(named("Redis-7"), redis("7"));
        assert_eq!(named("8.1").0, Flavor::Valkey);
        for odd in ["", "new", "redis", "7.x"] {
            assert!(ServerVersion::named(odd, Flavor::Redis).is_err(), "{odd}");
        }
        let printed = "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";
        let version = ServerVersion::printed(printed).unwrap();
        assert_eq!(version.to_string(), "Valkey 8.1.1");
        assert_eq!(ServerVersion::printed("KeyDB server v=6.3"), None);
    }
}
