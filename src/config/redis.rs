//! `[redis.NAME]`: a Redis or Valkey server whose data set is backed up.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Content, Period, Service};
use crate::err;
use crate::error::Result;
use crate::text::is_hex;

/// The silence of a server after which it counts as gone, where none is configured.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A longer name leaves no room for those of the shards.
const CLUSTER_NAME_MAX: usize = 50;

/// How many digits of a node's id are in the name of its shard.
pub const SHARD_DIGITS: usize = 12;

/// A server that is backed up, or a cluster of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Its name in configuration and repository.
    pub name: String,
    /// The place where it listens; none where Sentinels name it.
    pub address: Option<RedisAddress>,
    /// The way in which its data set is taken.
    pub source: RedisSource,
    /// Whether it is a cluster, whose shards are backed up.
    pub is_cluster: bool,
    /// Places where nodes of the cluster listen, besides `address`.
    pub addresses: Vec<RedisAddress>,
    /// The Sentinels that name it.
    pub sentinel: RedisSentinel,
    /// The account on the server.
    pub access: RedisAccess,
    /// How long the server may be silent before it counts as gone.
    pub stall_timeout: Duration,
    /// The identity of the source; else the address.
    pub identity: Option<String>,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
    /// The directory of the receiver's journal, absolute.
    pub journal: Option<PathBuf>,
    /// How large the journal may grow.
    pub journal_limit_bytes: Option<u64>,
    /// How far the receiver tells the server that it is.
    pub acknowledge: RedisAcknowledge,
    /// Its data directory, and the commands of its service.
    pub service: Service,
}

/// The way in which a data set is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisSource {
    /// The server gives it as to a new replica.
    Psync,
    /// The server saves it into a file of this host.
    Bgsave,
    /// The server's append-only file on this host has it.
    Aof,
}

/// How far a receiver tells the server that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisAcknowledge {
    /// As far as its journal is durable.
    Journal,
    /// As far as every required repository has it.
    Repository,
    /// Nothing: `WAIT` does not count it.
    None,
}

/// The way in: to a server, or to a Sentinel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisAccess {
    /// The ACL user; none: the default user.
    pub user: Option<String>,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// TLS; none: plain.
    pub tls: RedisTls,
}

/// Sentinels that watch a master and name it. There are some where `addresses` is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisSentinel {
    /// The name of the master, as in their `sentinel monitor`.
    pub master: Option<String>,
    /// The places where they listen.
    pub addresses: Vec<RedisAddress>,
    /// The account on them.
    pub access: RedisAccess,
    /// Whether backups are those of a replica, where one is fit.
    pub is_replica_preferred: bool,
}

/// The files of a connection by TLS. There is one where `ca_file` is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Certificates of the authorities that may have signed the server's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that this side shows.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
}

/// The place where a server listens. Its text is that of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// A host and a port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        port: u16,
    },
    /// A socket, absolute.
    Unix(PathBuf),
}

impl Redis {
    /// A server of which nothing but the name is known.
    pub(super) fn named(name: String) -> Redis {
        Redis {
            name,
            address: None,
            source: RedisSource::Psync,
            is_cluster: false,
            addresses: Vec::new(),
            sentinel: RedisSentinel::default(),
            access: RedisAccess::default(),
            stall_timeout: STALL_TIMEOUT,
            identity: None,
            max_backup_age: None,
            journal: None,
            journal_limit_bytes: None,
            acknowledge: RedisAcknowledge::Journal,
            service: Service::default(),
        }
    }

    /// Its place as a text: the address, or the name of the master or cluster.
    pub fn place(&self) -> String {
        if self.is_cluster {
            return format!("cluster:{}", self.name);
        }
        match (&self.address, &self.sentinel.master) {
            (Some(address), _) => address.to_string(),
            (None, Some(master)) => format!("sentinel:{master}"),
            (None, None) => String::new(),
        }
    }
}

impl Redis {
    /// It as content that is backed up.
    pub fn content(&self) -> Content<'_> {
        Content {
            kind: "redis",
            name: &self.name,
            max_backup_age: self.max_backup_age,
        }
    }

    /// Why files of one server cannot be its source, and what helps; none where nothing is wrong.
    pub(super) fn wrong_as_files(&self) -> Option<(&'static str, &'static str)> {
        match () {
            () if self.source == RedisSource::Psync => None,
            () if self.is_cluster => Some((
                "source and cluster are both given",
                "Files belong to one server: give each shard a section of its own, with address.",
            )),
            () if self.sentinel.master.is_some() => Some((
                "source and sentinel are both given",
                "Files belong to one server, and the master moves. Name the server as address.",
            )),
            () if self.journal.is_some() => Some((
                "source and receive.journal are both given",
                "A receiver needs PSYNC, and its log follows no backup without a position. Remove one of the two.",
            )),
            () => None,
        }
    }

    /// Why it cannot be a cluster, and what helps; none where nothing is wrong.
    pub(super) fn wrong_as_cluster(&self) -> Option<(String, &'static str)> {
        let nodes = "Name nodes of the cluster, any of them: addresses = [\"10.0.0.1:6379\", \"10.0.0.2:6379\"]";
        let (is_cluster, has_addresses) = (self.is_cluster, !self.addresses.is_empty());
        let service = &self.service;
        let has_service = service.data_directory.is_some()
            || !service.stop.is_empty()
            || !service.start.is_empty();
        match () {
            () if !is_cluster && has_addresses => Some((
                "addresses are those of a cluster, and cluster is not true".to_owned(),
                "Add cluster = true, or name the one server: address = \"127.0.0.1:6379\"",
            )),
            () if !is_cluster => None,
            () if self.sentinel.master.is_some() => Some((
                "cluster and sentinel are both given".to_owned(),
                "A cluster names its masters itself. Remove sentinel.",
            )),
            () if has_service => Some((
                "service means nothing to a cluster".to_owned(),
                "It belongs to one server of a recovery set, which a cluster cannot be in. Remove service.",
            )),
            () if self.address.is_none() && !has_addresses => Some((
                format!("Redis cluster \"{}\" has no addresses", self.name),
                nodes,
            )),
            () if self.name.len() > CLUSTER_NAME_MAX => Some((
                format!("the name of a cluster has at most {CLUSTER_NAME_MAX} characters"),
                "Its shards have names that begin with it. Choose a shorter one.",
            )),
            () => None,
        }
    }
}

/// The digits of a node's id in the name of a shard of this cluster; none of another name.
pub fn shard_digits<'n>(cluster: &str, name: &'n str) -> Option<&'n str> {
    let digits = name.strip_prefix(cluster)?.strip_prefix('.')?;
    is_hex(digits, SHARD_DIGITS).then_some(digits)
}

impl RedisAddress {
    /// Reads `host:port`, `[v6]:port` or `unix:/path`.
    ///
    /// # Errors
    /// `Config`. The text is not repeated: a URL in its place may hold a password.
    pub fn parse(text: &str) -> Result<RedisAddress> {
        RedisAddress::read(text).ok_or_else(|| {
            err!(
                Config,
                "the address is none of host:port, [v6 address]:port and unix:/path"
            )
            .hint("User and password have keys of their own: user and password_file.")
        })
    }

    fn read(text: &str) -> Option<RedisAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_path = path.starts_with('/') && !path.contains('\0');
            return is_path.then(|| RedisAddress::Unix(PathBuf::from(path)));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':'))?,
            None if host.contains(':') => return None,
            None => host,
        };
        let is_odd = |c: char| c.is_control() || c.is_whitespace() || "/@?#[]".contains(c);
        let is_host = !host.is_empty() && !host.contains(is_odd);
        is_host.then(|| RedisAddress::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            RedisAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            RedisAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in [
            "127.0.0.1:6379",
            "cache.example:7000",
            "[::1]:6379",
            "unix:/run/redis/redis.sock",
        ] {
            assert_eq!(RedisAddress::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_not_repeated() {
        for text in [
            "",
            "cache",
            "cache:",
            "cache:0",
            "cache:70000",
            ":6379",
            "::1:6379",
            "unix:run/redis.sock",
            "redis://me:tok3n@cache:6379",
            "me:tok3n@cache:6379",
        ] {
            let e = RedisAddress::parse(text).unwrap_err();
            assert!(!format!("{e:?}").contains("tok3n"), "{e:?}");
        }
    }
}
