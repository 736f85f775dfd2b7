//! The member `redis` of a root (format, section 16.6).

use serde::{Deserialize, Serialize};

use super::version::{Flavor, ServerVersion};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;

/// A base by a full resynchronisation.
pub const PSYNC: &str = "psync";
/// A base by the file of a save.
pub const BGSAVE: &str = "bgsave";
/// A base by the append-only file.
pub const AOF: &str = "aof";
/// The history of a base that has no position in one.
pub const NO_HISTORY: &str = "0000000000000000000000000000000000000000";

/// The facts of a backup of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The server's family: `redis` or `valkey`.
    pub flavor: String,
    /// The server's version as it names it itself.
    pub server_version: String,
    /// The version of the RDB file.
    pub rdb_version: u32,
    /// The replication history: 40 hexadecimal digits; [`NO_HISTORY`] without a position.
    pub replid: String,
    /// The bytes of the history that the data set holds; 0 without a position.
    pub offset: u64,
    /// The history that this one goes on from, as the server said just before; none where it knows of none.
    pub parent: Option<String>,
    /// The bytes of the parent that this history begins with.
    pub fork: Option<u64>,
    /// `master` or `replica`.
    pub role: String,
    /// The run of the server.
    pub run_id: String,
    /// The database that the history had selected at the offset, where the file says so.
    pub stream_db: Option<u32>,
    /// The databases with keys, as the server counted them just before; those with greater numbers as it counted them just behind.
    pub keyspace: Vec<Database>,
    /// Modules that the server had loaded.
    pub modules: Vec<Module>,
    /// The length of the file.
    pub rdb_bytes: u64,
    /// Whether the file has a checksum.
    pub has_checksum: bool,
    /// When the data set was asked for, by this host's clock.
    pub requested_time: TimestampTz,
    /// When the server answered with the position, by this host's clock. Without a position: the latest time of the moment that the data set is of.
    pub received_time: TimestampTz,
    /// The way in which it was taken: [`PSYNC`], [`BGSAVE`] or [`AOF`].
    pub method: String,
    /// The length of the commands that follow the data set in an append-only file; none with another method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_bytes: Option<u64>,
}

/// A database of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its number.
    pub db: u32,
    pub keys: u64,
    /// Those of them that have a time to live.
    pub expires: u64,
}

/// A module of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    pub name: String,
    pub version: i64,
}

impl Member {
    /// Reads a member.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn read(value: &serde_json::Value) -> Result<Member> {
        let member: Member = serde_json::from_value(value.clone())
            .map_err(|e| err!(Damaged, "the member \"redis\" cannot be read").source(e))?;
        match member.is_consistent() {
            true => Ok(member),
            false => Err(err!(
                Damaged,
                "the member \"redis\" has fields that do not go with its method"
            )),
        }
    }

    /// Whether the fields are those of its method. This version knows no fields of other methods.
    fn is_consistent(&self) -> bool {
        let is_alone = self.replid == NO_HISTORY
            && self.offset == 0
            && self.parent.is_none()
            && self.fork.is_none()
            && self.stream_db.is_none();
        match self.method.as_str() {
            PSYNC => self.tail_bytes.is_none(),
            BGSAVE => is_alone && self.tail_bytes.is_none(),
            AOF => is_alone && self.tail_bytes.is_some(),
            _ => true,
        }
    }

    /// Returns the version of the server that it came from.
    ///
    /// # Errors
    /// `Unsupported` for a family that this version does not know.
    pub fn server(&self) -> Result<ServerVersion> {
        let flavor: Flavor = self.flavor.parse()?;
        ServerVersion::new(flavor, &self.server_version)
    }

    /// Its history, and the bytes of it that it holds; none where the server would not tell.
    pub fn position(&self) -> Option<(&str, u64)> {
        (self.method == PSYNC).then_some((self.replid.as_str(), self.offset))
    }

    /// Its bytes: the data set, and the commands behind it.
    pub fn bytes(&self) -> u64 {
        self.rdb_bytes.saturating_add(self.tail_bytes.unwrap_or(0))
    }

    /// Counts the keys.
    pub fn keys(&self) -> u64 {
        self.keyspace.iter().map(|d| d.keys).sum()
    }

    /// Counts the keys that have a time to live.
    pub fn expires(&self) -> u64 {
        self.keyspace.iter().map(|d| d.expires).sum()
    }

    /// Returns the greatest number of a database that is known to be used.
    pub fn last_db(&self) -> u32 {
        let used = self.keyspace.iter().map(|d| d.db).chain(self.stream_db);
        used.max().unwrap_or(0)
    }
}
