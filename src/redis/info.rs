//! The answer of a server to `INFO`. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::member::{Database, Module};
use super::version::{Flavor, ServerVersion};
use crate::err;
use crate::error::Result;

/// The sections that a backup asks for.
pub const SECTIONS: [&str; 5] = [
    "server",
    "replication",
    "persistence",
    "keyspace",
    "modules",
];

/// The role of a server that follows another one.
pub const REPLICA: &str = "replica";

/// The fields of `INFO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    fields: BTreeMap<String, String>,
    /// Modules, in the order in which the server names them.
    pub modules: Vec<Module>,
}

impl Info {
    /// Adds the fields of a section.
    pub fn add(&mut self, text: &str) {
        for line in text.lines() {
            match line.split_once(':') {
                Some(("module", values)) => self.modules.extend(module(values)),
                Some((name, value)) if !line.starts_with('#') => {
                    self.fields
                        .insert(name.to_owned(), value.trim_end().to_owned());
                }
                _ => {}
            }
        }
    }

    /// Returns a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// Returns a field that is a number.
    pub fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.field(name)?.parse().ok()
    }

    /// Whether a field is there and says 1.
    pub fn is_on(&self, name: &str) -> bool {
        self.field(name) == Some("1")
    }

    /// Returns the first of these modules that it has not, or only in an older version.
    pub fn lacking<'m>(&self, wanted: &'m [Module]) -> Option<&'m Module> {
        let has = |module: &Module| {
            let mut own = self.modules.iter();
            own.any(|own| own.name == module.name && own.version >= module.version)
        };
        wanted.iter().find(|module| !has(module))
    }

    /// Returns `master` or `replica`.
    pub fn role(&self) -> &'static str {
        match self.field("role") {
            Some("slave" | "replica") => REPLICA,
            _ => "master",
        }
    }

    /// Returns the version of the server. Valkey names one of Redis besides, for clients that ask for it.
    ///
    /// # Errors
    /// `Server` for a server that names none.
    pub fn version(&self) -> Result<ServerVersion> {
        let own = self.field("valkey_version").map(|v| (Flavor::Valkey, v));
        let named = own.or_else(|| self.field("redis_version").map(|v| (Flavor::Redis, v)));
        let none = || err!(Server, "the server does not tell its version");
        let (flavor, version) = named.ok_or_else(none)?;
        ServerVersion::new(flavor, version)
    }

    /// Returns the history that `replid` goes on from, and how many bytes of it it has; none where the server knows of none, or is in another history by now.
    pub fn parent(&self, replid: &str) -> Option<(String, u64)> {
        let parent = self.field("master_replid2")?;
        let second: u64 = self.number("second_repl_offset")?;
        let is_own = self.field("master_replid") == Some(replid);
        let is_named = parent.bytes().any(|digit| digit != b'0');
        (is_own && is_named && second > 0).then(|| (parent.to_owned(), second - 1))
    }

    /// Returns how many keys have no time to live.
    pub fn lasting_keys(&self) -> u64 {
        let databases = self.keyspace();
        let lasting = databases
            .iter()
            .map(|db| db.keys.saturating_sub(db.expires));
        lasting.sum()
    }

    /// Returns the databases with keys, in order.
    pub fn keyspace(&self) -> Vec<Database> {
        let databases = self.fields.iter().filter_map(|(name, value)| {
            let db = name.strip_prefix("db")?.parse().ok()?;
            Some(Database {
                db,
                keys: value_of(value, "keys")?.parse().ok()?,
                expires: value_of(value, "expires")?.parse().ok()?,
            })
        });
        let mut databases: Vec<Database> = databases.collect();
        databases.sort_by_key(|database| database.db);
        databases
    }
}

/// Reads `name=ReJSON,ver=20007,api=1,…`.
fn module(values: &str) -> Option<Module> {
    Some(Module {
        name: value_of(values, "name")?.to_owned(),
        version: value_of(values, "ver")?.parse().ok()?,
    })
}

fn value_of<'v>(values: &'v str, name: &str) -> Option<&'v str> {
    let mut pairs = values.split(',').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_databases_and_modules_are_read() {
        let mut info = Info::default();
        info.add("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\nrun_id:abc\r\n");
        info.add("# Keyspace\r\ndb10:keys=1,expires=0,avg_ttl=0\r\ndb2:keys=7,expires=3,avg_ttl=9,subexpiry=0\r\ndb_x:keys=1\r\n");
        info.add("# Modules\r\nmodule:name=ReJSON,ver=20007,api=1,filters=0,usedby=[search],using=[],options=[]\r\nodd\r\n");
        assert_eq!(info.version().unwrap().to_string(), "Valkey 8.1.1");
        assert_eq!(info.field("run_id"), Some("abc"));
        let database = |db, keys, expires| Database { db, keys, expires };
        assert_eq!(info.keyspace(), [database(2, 7, 3), database(10, 1, 0)]);
        let json = Module {
            name: "ReJSON".to_owned(),
            version: 20007,
        };
        assert_eq!(info.modules, [json]);
        assert!(Info::default().version().is_err());
    }

    #[test]
    fn a_history_has_the_parent_that_the_server_names() {
        let (own, parent) = ("a".repeat(40), "b".repeat(40));
        let told = |replid2: &str, second: i64| {
            let mut info = Info::default();
            info.add(&format!(
                "master_replid:{own}\r\nmaster_replid2:{replid2}\r\nsecond_repl_offset:{second}\r\n"
            ));
            info
        };
        let forked = told(&parent, 71);
        assert_eq!(forked.parent(&own), Some((parent.clone(), 70)));
        assert_eq!(forked.parent(&parent), None);
        assert_eq!(told(&"0".repeat(40), -1).parent(&own), None);
        assert_eq!(Info::default().parent(&own), None);
    }
}
