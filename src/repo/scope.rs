//! The keys that every kind of content has (format, section 3), and which of them are sealed.
//!
//! WAL is a cluster's alone: `layout` has its keys.

use super::event;
use super::id::{BackupId, PartKind, PartName};
use crate::err;
use crate::error::Result;
use crate::store::Key;

/// The repository's marker.
pub fn marker() -> Key {
    fixed(crate::store::MARKER.to_owned())
}

/// Prefix of what the recipients of an encrypted repository open.
pub fn recipients(epoch: u32) -> String {
    format!("keys/{epoch}")
}

/// Returns the key of the object that one recipient of an encrypted repository opens.
///
/// # Errors
/// `Damaged` when the name breaks the key grammar.
pub fn recipient(epoch: u32, name: &str) -> Result<Key> {
    Key::new(format!("keys/{epoch}/{name}"))
}

/// The keys of recipients.
pub const KEYS: &str = "keys";
/// The beginning of the name of a secrets pair's.
pub const SECRETS: &str = "secrets-";

/// Prefix of what the recipients of a secrets pair open.
pub fn secrets_recipients(pair: &str) -> String {
    format!("{KEYS}/{SECRETS}{pair}")
}

/// Returns the key of the object that one recipient of a secrets pair opens.
///
/// # Errors
/// `Damaged` when the name breaks the key grammar.
pub fn secrets_recipient(pair: &str, name: &str) -> Result<Key> {
    Key::new(format!("{}/{name}", secrets_recipients(pair)))
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
            | [AUX, _, _, "scope.json"]
            | [AUX, _, _, "events", _, _]
            | ["audit" | "jobs", _, ..]
    )
}

/// Whether an object belongs to a cluster.
pub fn is_of_cluster(key: &Key) -> bool {
    let rest = key.as_str().strip_prefix(CLUSTERS);
    rest.is_some_and(|rest| rest.starts_with('/'))
}

/// Returns the name or key without the suffix of a healed copy, where it has one. An object that is not of a sealed
/// form never heals. Otherwise a copy of an event would say a second time what another event has ended.
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
    matches!(parts.next(), Some(CLUSTERS | AUX)) && parts.nth(2) == Some("conflicts")
}

/// The prefix of the scope in which a path lies, whether it is a key or not; none where it belongs to no scope.
pub fn prefix_of(path: &str) -> Option<&str> {
    let mut ends = path.match_indices('/').map(|(at, _)| at);
    let prefix = path.get(..ends.nth(2)?)?;
    let (root, rest) = prefix.split_once('/')?;
    let (first, second) = rest.split_once('/')?;
    let is_scope = match root {
        CLUSTERS => is_scope_name(first) && second.parse::<u64>().is_ok(),
        AUX => is_scope_name(first) && is_scope_name(second),
        _ => false,
    };
    is_scope.then_some(prefix)
}

/// Prefix below which the names of clusters are listed.
pub const CLUSTERS: &str = "clusters";

/// Whether `name` may name a cluster, or content: `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn is_scope_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 63
        && bytes.next().is_some_and(first)
        && bytes.all(|b| first(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Prefix below which the kinds of auxiliary content are listed.
pub const AUX: &str = "aux";

/// Kinds of auxiliary content that this version knows. Only tests of the program write `test`.
const KNOWN_KINDS: [&str; 5] = ["config", "files", "logical", "redis", "test"];

/// The owner of everything below one prefix: a cluster, or one piece of auxiliary content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    name: String,
    owner: Owner,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// A system identifier under a name.
    Cluster { system_identifier: u64 },
    /// Content of a kind: files, redis.
    Aux { kind: String },
}

impl Scope {
    /// A cluster.
    ///
    /// # Errors
    /// `Usage` when `name` is no cluster name.
    pub fn cluster(name: &str, system_identifier: u64) -> Result<Scope> {
        check_name(name, "a cluster name")?;
        Ok(Scope {
            name: name.to_owned(),
            owner: Owner::Cluster { system_identifier },
        })
    }

    /// Auxiliary content.
    ///
    /// # Errors
    /// `Usage` when kind or name break the grammar.
    pub fn aux(kind: &str, name: &str) -> Result<Scope> {
        check_name(kind, "a kind of content")?;
        check_name(name, "a name of content")?;
        Ok(Scope {
            name: name.to_owned(),
            owner: Owner::Aux {
                kind: kind.to_owned(),
            },
        })
    }

    /// The kind of auxiliary content; none of a cluster.
    pub fn kind(&self) -> Option<&str> {
        match &self.owner {
            Owner::Cluster { .. } => None,
            Owner::Aux { kind } => Some(kind),
        }
    }

    /// Returns whether this version knows the needs of the scope's kind of content. It deletes and restores nothing of
    /// another kind.
    pub fn is_known_kind(&self) -> bool {
        match &self.owner {
            Owner::Cluster { .. } => true,
            Owner::Aux { kind } => KNOWN_KINDS.contains(&kind.as_str()),
        }
    }

    /// The name that its owner gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag that packs and layers of the scope bear.
    pub fn tag(&self) -> Tag {
        match &self.owner {
            Owner::Cluster { system_identifier } => Tag::cluster(*system_identifier),
            Owner::Aux { .. } => {
                let hash = blake3::hash(format!("pitr/1/scope\0{}", self.prefix()).as_bytes());
                let (number, _) = hash
                    .as_bytes()
                    .split_first_chunk()
                    .unwrap_or((&[0; 8], &[]));
                Tag {
                    class: 1,
                    number: u64::from_le_bytes(*number),
                }
            }
        }
    }

    /// `clusters/<name>/<system identifier>` or `aux/<kind>/<name>`.
    pub fn prefix(&self) -> String {
        match &self.owner {
            Owner::Cluster { system_identifier } => {
                format!("{CLUSTERS}/{}/{system_identifier}", self.name)
            }
            Owner::Aux { kind } => format!("{AUX}/{kind}/{}", self.name),
        }
    }

    fn key(&self, rest: &str) -> Key {
        fixed(format!("{}/{rest}", self.prefix()))
    }

    /// The registration of the scope.
    pub fn registration(&self) -> Key {
        self.key(match self.owner {
            Owner::Cluster { .. } => "cluster.json",
            Owner::Aux { .. } => "scope.json",
        })
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

    /// The list of a backup's relations.
    pub fn relations(&self, id: &BackupId) -> Key {
        self.key(&format!("backups/{id}/relations"))
    }

    /// A layer object, by the `<id>/<n>` that roots use.
    pub fn layer(&self, part: &PartName) -> Key {
        self.key(&format!("layers/{part}"))
    }

    /// A pack, by the `<id>/<n>` that roots and layers use.
    pub fn pack(&self, part: &PartName) -> Key {
        self.key(&format!("packs/{part}"))
    }

    /// A layer object or a pack.
    pub fn part(&self, kind: PartKind, part: &PartName) -> Key {
        match kind {
            PartKind::Layer => self.layer(part),
            PartKind::Pack => self.pack(part),
        }
    }

    /// The part that a key of this scope names; `None` for another object.
    pub fn named_part(&self, key: &str) -> Option<(PartKind, PartName)> {
        let mut kinds = [PartKind::Layer, PartKind::Pack].into_iter();
        kinds.find_map(|kind| {
            let below = key.strip_prefix(&self.parts(kind, None))?;
            let name = below.strip_prefix('/')?.parse().ok()?;
            Some((kind, name))
        })
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

    /// Prefix below which erasures are listed.
    pub fn erasures(&self) -> String {
        format!("{}/erasures", self.prefix())
    }

    /// An erasure: `name` is `<time>-<nonce>`.
    ///
    /// # Errors
    /// `Damaged` when the name breaks the key grammar.
    pub fn erasure(&self, name: &str) -> Result<Key> {
        Key::new(format!("{}/{name}", self.erasures()))
    }

    /// Prefix below which subjects of events are listed.
    pub fn events(&self) -> String {
        format!("{}/events", self.prefix())
    }

    /// Prefix of one subject's events.
    pub fn subject(&self, subject: &str) -> String {
        format!("{}/events/{subject}", self.prefix())
    }

    /// The subject of events that concern the scope as a whole.
    pub fn whole(&self) -> &'static str {
        match self.owner {
            Owner::Cluster { .. } => event::CLUSTER,
            Owner::Aux { .. } => "scope",
        }
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

/// The scope of a pack or layer, as its head has it: an object that was moved to another scope is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// 0 of a cluster, 1 of auxiliary content.
    pub class: u32,
    /// The system identifier, or the first eight bytes of the hash of `pitr/1/scope`, a zero byte and the prefix.
    pub number: u64,
}

impl Tag {
    /// The tag of a cluster.
    pub fn cluster(system_identifier: u64) -> Tag {
        Tag {
            class: 0,
            number: system_identifier,
        }
    }
}

fn check_name(name: &str, what: &str) -> Result<()> {
    match is_scope_name(name) {
        true => Ok(()),
        false => Err(err!(
            Usage,
            "\"{}\" is not {what}: [a-z0-9][a-z0-9._-]{{0,62}} is needed",
            name.escape_debug()
        )),
    }
}

/// A key whose parts were checked.
pub(super) fn fixed(key: String) -> Key {
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
            "aux/files/web/scope.json",
            "aux/files/web/events/20261120T064049Z-full/begin",
            "audit/db1/000000000001",
            "jobs/aux/files/web/backup/20261120T064000Z",
        ] {
            assert!(!is_sealed(plain), "{plain}");
        }
        for sealed in [
            "aux/x",
            "aux/files/web/backups/x/manifest",
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
    fn every_scope_has_its_prefix_and_its_tag() {
        let cluster = Scope::cluster("main", 7).unwrap();
        assert_eq!(cluster.prefix(), "clusters/main/7");
        assert_eq!(cluster.tag(), Tag::cluster(7));
        assert_eq!(
            cluster.registration().as_str(),
            "clusters/main/7/cluster.json"
        );
        let files = Scope::aux("files", "web").unwrap();
        assert_eq!(files.prefix(), "aux/files/web");
        assert_eq!(files.registration().as_str(), "aux/files/web/scope.json");
        assert_eq!(files.tag().class, 1);
        for other in [("files", "db"), ("config", "web"), ("web", "files")] {
            let other = Scope::aux(other.0, other.1).unwrap();
            assert_ne!(other.tag(), files.tag());
        }
        for bad in ["", "A", "a/b", "..", "-a"] {
            assert!(Scope::aux("files", bad).is_err(), "{bad}");
            assert!(Scope::aux(bad, "web").is_err(), "{bad}");
        }
    }

    #[test]
    fn leftovers_belong_to_a_scope_or_to_none() {
        for (path, prefix) in [
            ("clusters/main/7/packs/.tmp.x", Some("clusters/main/7")),
            ("aux/files/web/.tmp.x", Some("aux/files/web")),
            ("clusters/main/.tmp.x", None),
            ("clusters/main/x/.tmp.x", None),
            ("aux/.tmp.x/web/y", None),
            ("aux/files/.tmp.x", None),
            (".tmp.x", None),
        ] {
            assert_eq!(prefix_of(path), prefix, "{path}");
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
}
