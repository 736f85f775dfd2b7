//! Paths of files as sortable keys, and back (format, sections 8.2 and 16.2).
//!
//! In a cluster, segments of relations become fixed-length binary keys that sort by tablespace, database, relation, fork and segment;
//! everything else keeps its path. A path becomes a relation key only when its derived path reproduces it exactly, so that every file
//! has one key and every key one path. In a tree every key is a path, and the root directory is the empty one.

use std::fmt;

use crate::err;
use crate::error::Result;
use crate::pg::manifest::is_safe_relative_path;
use crate::repo::root::ClusterContent;

/// Longest path in bytes (format, section 13).
pub const PATH_LIMIT_BYTES: usize = 4096;
/// Longest name of an attachment in bytes.
const ATTACHMENT_LIMIT_BYTES: usize = 4160;

/// The tablespace `base`.
const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace `global`.
const GLOBAL_TABLESPACE: u32 = 1664;
const RELATION: u8 = 1;
const PATH: u8 = 2;
const ATTACHMENT: u8 = 3;
const CHUNK: u8 = 4;
const RELATION_LENGTH: usize = 18;
/// Tag, function and hash.
const CHUNK_LENGTH: usize = 34;

/// How keys and paths lead to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Relations and paths of a data directory.
    Cluster(ClusterNaming),
    /// Paths of any directory, and attachments.
    Tree,
}

impl Naming {
    /// Whether positions and lengths of extents may count pages.
    pub fn has_pages(self) -> bool {
        matches!(self, Naming::Cluster(_))
    }
}

impl From<&Naming> for Naming {
    fn from(naming: &Naming) -> Naming {
        *naming
    }
}

impl From<&ClusterNaming> for Naming {
    fn from(naming: &ClusterNaming) -> Naming {
        Naming::Cluster(*naming)
    }
}

/// The versions on which names of directories inside tablespaces depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterNaming {
    /// PostgreSQL's major.
    pub major: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
}

impl From<&ClusterContent> for ClusterNaming {
    fn from(content: &ClusterContent) -> ClusterNaming {
        ClusterNaming {
            major: content.major,
            catalog_version: content.catalog_version,
        }
    }
}

impl ClusterNaming {
    /// The directory of the server's version in each tablespace.
    pub fn version_directory(&self) -> String {
        format!("PG_{}_{}", self.major, self.catalog_version)
    }
}

/// A fork of a relation, numbered as PostgreSQL's `ForkNumber`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data.
    Main = 0,
    /// The free space map.
    FreeSpace = 1,
    /// The visibility map.
    Visibility = 2,
    /// The fork to which an unlogged relation is reset.
    Init = 3,
}

impl Fork {
    const ALL: [(Fork, &'static str); 4] = [
        (Fork::Main, ""),
        (Fork::FreeSpace, "_fsm"),
        (Fork::Visibility, "_vm"),
        (Fork::Init, "_init"),
    ];

    fn suffix(self) -> &'static str {
        Fork::ALL
            .iter()
            .find(|(fork, _)| *fork == self)
            .map_or("", |(_, suffix)| suffix)
    }

    fn from_number(number: u8) -> Option<Fork> {
        Fork::ALL
            .iter()
            .map(|(fork, _)| *fork)
            .find(|fork| *fork as u8 == number)
    }
}

/// One segment file of a relation's fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Tablespace; 1663 is `base`, 1664 is `global`.
    pub tablespace: u32,
    /// Database; 0 in `global`.
    pub database: u32,
    /// Relfilenode.
    pub relation: u32,
    pub fork: Fork,
    /// 0 for the file without a suffix, 1 for `.1`.
    pub segment: u32,
}

impl RelationFile {
    /// The path relative to the data directory.
    pub fn path(&self, naming: &ClusterNaming) -> String {
        let directory = match self.tablespace {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{}", self.database),
            other => format!(
                "pg_tblspc/{other}/{}/{}",
                naming.version_directory(),
                self.database
            ),
        };
        let (relation, fork) = (self.relation, self.fork.suffix());
        match self.segment {
            0 => format!("{directory}/{relation}{fork}"),
            n => format!("{directory}/{relation}{fork}.{n}"),
        }
    }

    /// Reads a path; `None` when it is not that of a relation's segment.
    pub fn from_path(path: &[u8], naming: &ClusterNaming) -> Option<RelationFile> {
        let path = std::str::from_utf8(path).ok()?;
        let (directory, name) = path.rsplit_once('/')?;
        let (tablespace, database) = match directory.split_once('/') {
            None if directory == "global" => (GLOBAL_TABLESPACE, 0),
            Some(("base", database)) => (DEFAULT_TABLESPACE, number(database)?),
            Some(("pg_tblspc", rest)) => {
                let (tablespace, rest) = rest.split_once('/')?;
                let (_, database) = rest.split_once('/')?;
                (number(tablespace)?, number(database)?)
            }
            _ => return None,
        };
        let (name, segment) = match name.split_once('.') {
            None => (name, 0),
            Some((name, segment)) => (name, number(segment)?),
        };
        let (relation, fork) = match name.split_once('_') {
            None => (name, Fork::Main),
            Some((relation, suffix)) => {
                let found = Fork::ALL
                    .iter()
                    .find(|(_, s)| s.strip_prefix('_') == Some(suffix))?;
                (relation, found.0)
            }
        };
        let file = RelationFile {
            tablespace,
            database,
            relation: number(relation)?,
            fork,
            segment,
        };
        // The proof that key and path lead to one another; it also checks the version directory.
        (file.path(naming) == path).then_some(file)
    }

    fn encode(&self) -> Vec<u8> {
        let mut key = vec![RELATION];
        for number in [self.tablespace, self.database, self.relation] {
            key.extend_from_slice(&number.to_be_bytes());
        }
        key.push(self.fork as u8);
        key.extend_from_slice(&self.segment.to_be_bytes());
        key
    }

    fn decode(bytes: &[u8]) -> Option<RelationFile> {
        let (&tag, rest) = bytes.split_first()?;
        let (numbers, rest) = rest.split_at_checked(12)?;
        let (&fork, segment) = rest.split_first()?;
        let (numbers, _) = numbers.as_chunks::<4>();
        let mut numbers = numbers.iter().map(|n| u32::from_be_bytes(*n));
        let file = RelationFile {
            tablespace: numbers.next()?,
            database: numbers.next()?,
            relation: numbers.next()?,
            fork: Fork::from_number(fork)?,
            segment: u32::from_be_bytes(segment.try_into().ok()?),
        };
        (tag == RELATION).then_some(file)
    }
}

/// `[1-9][0-9]*` below 2^32.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    if digits && !text.starts_with('0') {
        text.parse().ok()
    } else {
        None
    }
}

/// The key of one file, directory or link; ordered bytewise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(Box<[u8]>);

impl FileKey {
    /// The key of a path relative to the data directory, or to the root of a tree, which is the empty path.
    ///
    /// # Errors
    /// `Damaged` when the path leads elsewhere, is empty in a cluster, or is too long.
    pub fn from_path(path: &[u8], naming: impl Into<Naming>) -> Result<FileKey> {
        let naming = naming.into();
        let is_root = path.is_empty() && naming == Naming::Tree;
        if path.len() > PATH_LIMIT_BYTES || !(is_root || is_safe_relative_path(path)) {
            let shown: String = path.escape_ascii().to_string().chars().take(200).collect();
            let place = match naming {
                Naming::Cluster(_) => "a data directory",
                Naming::Tree => "a directory",
            };
            return Err(err!(Damaged, "\"{shown}\" is not a path below {place}"));
        }
        if let Naming::Cluster(cluster) = naming
            && let Some(file) = RelationFile::from_path(path, &cluster)
        {
            return Ok(FileKey::of_relation(&file));
        }
        Ok(FileKey::tagged(PATH, path))
    }

    /// The key of an attachment: a file of a backup that belongs to no tree.
    ///
    /// # Errors
    /// `Damaged` for a name that is empty, too long, or has a NUL.
    pub fn attachment(name: &[u8]) -> Result<FileKey> {
        if name.is_empty() || name.len() > ATTACHMENT_LIMIT_BYTES || name.contains(&0) {
            let length = name.len();
            return Err(err!(Damaged, "{length} bytes are no name of an attachment"));
        }
        Ok(FileKey::tagged(ATTACHMENT, name))
    }

    fn tagged(tag: u8, name: &[u8]) -> FileKey {
        let mut key = Vec::with_capacity(name.len() + 2);
        key.push(tag);
        key.extend_from_slice(name);
        key.push(0);
        FileKey(key.into())
    }

    /// The key of a relation's segment file.
    pub fn of_relation(file: &RelationFile) -> FileKey {
        FileKey(file.encode().into())
    }

    /// The key of content that files share, in the extent list of a frame (format, section 16.3).
    pub fn chunk(id: &ChunkId) -> FileKey {
        let mut key = Vec::with_capacity(CHUNK_LENGTH);
        key.extend_from_slice(&[CHUNK, id.function]);
        key.extend_from_slice(&id.hash);
        FileKey(key.into())
    }

    /// Which chunk it is; `None` for files.
    pub fn as_chunk(&self) -> Option<ChunkId> {
        let (&[CHUNK, function], hash) = self.0.split_first_chunk()? else {
            return None;
        };
        let hash = hash.try_into().ok()?;
        Some(ChunkId { function, hash })
    }

    /// As [`FileKey::decode`], in the extent list of a frame, where chunks stand as well.
    ///
    /// # Errors
    /// As [`FileKey::decode`]; `Unsupported` for a chunk whose function is not known.
    pub fn decode_extent(bytes: &[u8], naming: impl Into<Naming>) -> Result<FileKey> {
        let naming = naming.into();
        let key = FileKey(bytes.into());
        match key.as_chunk() {
            Some(id) if naming == Naming::Tree => match id.function {
                0 | 1 => Ok(key),
                other => Err(
                    err!(Unsupported, "chunks of function {other} are not known")
                        .hint("Use the version of pitr that wrote the backup, or a newer one."),
                ),
            },
            _ => FileKey::decode(bytes, naming),
        }
    }

    /// Checks that `bytes` are the one key of their path.
    ///
    /// # Errors
    /// `Damaged` otherwise.
    pub fn decode(bytes: &[u8], naming: impl Into<Naming>) -> Result<FileKey> {
        let naming = naming.into();
        let key = FileKey(bytes.into());
        let right = match (naming, bytes.split_first()) {
            (Naming::Cluster(cluster), Some((&RELATION, _))) => RelationFile::decode(bytes)
                .is_some_and(|file| {
                    let path = file.path(&cluster);
                    bytes.len() == RELATION_LENGTH
                        && RelationFile::from_path(path.as_bytes(), &cluster) == Some(file)
                }),
            (_, Some((&PATH, rest))) => rest
                .strip_suffix(&[0])
                .is_some_and(|path| FileKey::from_path(path, naming).is_ok_and(|k| k == key)),
            (Naming::Tree, Some((&ATTACHMENT, rest))) => rest
                .strip_suffix(&[0])
                .is_some_and(|name| FileKey::attachment(name).is_ok()),
            _ => false,
        };
        if right {
            Ok(key)
        } else {
            Err(err!(Damaged, "{key:?} is not the key of a file"))
        }
    }

    /// The path relative to the data directory or the root of the tree, as the bytes on disk; of an attachment its name.
    pub fn path(&self, naming: impl Into<Naming>) -> Vec<u8> {
        match (self.relation(), naming.into()) {
            (Some(file), Naming::Cluster(cluster)) => file.path(&cluster).into_bytes(),
            _ => self
                .0
                .get(1..self.0.len().saturating_sub(1))
                .unwrap_or_default()
                .to_vec(),
        }
    }

    /// Whether the file is an attachment, which no restore of a tree writes.
    pub fn is_attachment(&self) -> bool {
        self.0.first() == Some(&ATTACHMENT)
    }

    /// Which segment of which relation it is; `None` for other files.
    pub fn relation(&self) -> Option<RelationFile> {
        RelationFile::decode(&self.0)
    }

    /// The key as stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Key of the file's metadata entry.
    pub fn metadata_entry(&self) -> Vec<u8> {
        self.entry(Part::METADATA, &[])
    }

    /// Key of the entry that hides older layers.
    pub fn limit_entry(&self) -> Vec<u8> {
        self.entry(Part::LIMIT, &[])
    }

    /// Key of the extents from `position` (in bytes) on.
    pub fn extents_entry(&self, position: u64) -> Vec<u8> {
        self.entry(Part::EXTENTS, &position.to_be_bytes())
    }

    fn entry(&self, part: u8, rest: &[u8]) -> Vec<u8> {
        [&self.0, &[part][..], rest].concat()
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The name of a chunk: the hash of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId {
    /// 0: BLAKE3. 1: keyed BLAKE3, in a repository with a key set.
    pub function: u8,
    pub hash: [u8; 32],
}

/// Which entry of a file an entry key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Metadata.
    Metadata,
    /// The position from which on older layers are hidden.
    Limit,
    /// Extents from this byte position on.
    Extents(u64),
}

impl Part {
    const METADATA: u8 = 0;
    const LIMIT: u8 = 1;
    const EXTENTS: u8 = 2;
}

/// Cuts an entry key into file key and part.
///
/// # Errors
/// `Damaged` when it is none.
pub fn split_entry(key: &[u8], naming: impl Into<Naming>) -> Result<(FileKey, Part)> {
    let damaged = || {
        let shown: String = key.escape_ascii().to_string().chars().take(200).collect();
        err!(Damaged, "\"{shown}\" is not the key of an entry")
    };
    let length = match key.first() {
        Some(&RELATION) => RELATION_LENGTH,
        Some(&(PATH | ATTACHMENT)) => key.iter().position(|&b| b == 0).ok_or_else(damaged)? + 1,
        _ => return Err(damaged()),
    };
    let (file, part) = key.split_at_checked(length).ok_or_else(damaged)?;
    let part = match part.split_first() {
        Some((&Part::METADATA, [])) => Part::Metadata,
        Some((&Part::LIMIT, [])) => Part::Limit,
        Some((&Part::EXTENTS, position)) => Part::Extents(u64::from_be_bytes(
            position.try_into().map_err(|_| damaged())?,
        )),
        _ => return Err(damaged()),
    };
    Ok((FileKey::decode(file, naming)?, part))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::snapshot) const CLUSTER: ClusterNaming = ClusterNaming {
        major: 15,
        catalog_version: 202_209_061,
    };
    pub(in crate::snapshot) const NAMING: Naming = Naming::Cluster(CLUSTER);

    fn relation(path: &str) -> Option<RelationFile> {
        let key = FileKey::from_path(path.as_bytes(), NAMING).unwrap();
        assert_eq!(key.path(NAMING), path.as_bytes());
        assert_eq!(FileKey::decode(key.as_bytes(), NAMING).unwrap(), key);
        key.relation()
    }

    #[test]
    fn relation_files_are_told_from_others() {
        for path in [
            "base/1/1234",
            "base/16384/1234.1",
            "base/1/1234_fsm",
            "base/1/1234_vm.12",
            "base/1/1234_init",
            "base/4294967295/4294967295",
            "global/1262",
            "global/1262_fsm",
            "pg_tblspc/16999/PG_15_202209061/5/77.3",
        ] {
            assert!(relation(path).is_some(), "{path}");
        }
        for path in [
            "PG_VERSION",
            "base/1/PG_VERSION",
            "base/1",
            "base/01/1234",
            "base/0/1234",
            "base/1/01234",
            "base/1/1234.0",
            "base/1/1234.01",
            "base/1/1234.",
            "base/1/1234_main",
            "base/1/1234_",
            "base/1/1234_fsm_vm",
            "base/1/1234.1_fsm",
            "base/1/t3_1234",
            "base/4294967296/1",
            "base/1/2/3",
            "global/pg_control",
            "global/1/1234",
            "pg_tblspc/16999",
            "pg_tblspc/1663/PG_15_202209061/5/77",
            "pg_tblspc/1664/PG_15_202209061/5/77",
            "pg_tblspc/16999/PG_14_202107181/5/77",
            "pg_tblspc/16999/PG_15_202209061/5/77/8",
            "pg_xact/0000",
        ] {
            assert!(relation(path).is_none(), "{path}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = vec![b'x'; 4097];
        for bad in [
            &b""[..],
            b"/etc/passwd",
            b"a/../b",
            b"..",
            b"a//b",
            b"a/",
            b"./a",
            b"a\0b",
            &long,
        ] {
            assert!(FileKey::from_path(bad, NAMING).is_err());
        }
        assert!(FileKey::from_path(b"caf\xE9/\xFF", NAMING).is_ok());
    }

    #[test]
    fn keys_of_a_tree_are_paths_and_attachments() {
        for path in [&b""[..], b"base/1/1234", b"caf\xE9/\xFF", b"a-b"] {
            let key = FileKey::from_path(path, Naming::Tree).unwrap();
            assert_eq!(
                (key.path(Naming::Tree), key.relation()),
                (path.to_vec(), None)
            );
            assert_eq!(FileKey::decode(key.as_bytes(), Naming::Tree).unwrap(), key);
            let entry = key.limit_entry();
            assert_eq!(
                split_entry(&entry, Naming::Tree).unwrap(),
                (key, Part::Limit)
            );
        }
        let attachment = FileKey::attachment(b"redacted/../x").unwrap();
        assert!(attachment.is_attachment());
        let back = split_entry(&attachment.extents_entry(7), Naming::Tree).unwrap();
        assert_eq!(back, (attachment.clone(), Part::Extents(7)));
        assert!(FileKey::decode(attachment.as_bytes(), NAMING).is_err());
        for name in [&b""[..], b"a\0b", &[b'x'; 4161]] {
            assert!(FileKey::attachment(name).is_err());
        }
        let relation = FileKey::from_path(b"base/1/2", NAMING).unwrap();
        assert!(FileKey::decode(relation.as_bytes(), Naming::Tree).is_err());
        for bad in [&b"\x02a/../b\0"[..], b"\x02/\0", b"\x03\0", b"\x05a\0"] {
            let refused = FileKey::decode(bad, Naming::Tree).unwrap_err();
            assert_eq!(refused.code(), crate::error::Code::Damaged);
        }
        assert!(FileKey::decode(&[4; 34], Naming::Tree).is_err());
        let unknown = FileKey::decode_extent(&[4; 34], Naming::Tree).unwrap_err();
        assert_eq!(unknown.code(), crate::error::Code::Unsupported);
        let id = ChunkId {
            function: 1,
            hash: [7; 32],
        };
        let key = FileKey::chunk(&id);
        assert_eq!(key.as_chunk(), Some(id));
        assert_eq!(
            FileKey::decode_extent(key.as_bytes(), Naming::Tree).unwrap(),
            key
        );
        assert!(FileKey::decode(key.as_bytes(), Naming::Tree).is_err());
        assert!(FileKey::decode_extent(key.as_bytes(), NAMING).is_err());
        assert!(FileKey::decode_extent(&key.as_bytes()[..33], Naming::Tree).is_err());
    }

    #[test]
    fn a_file_has_one_key() {
        assert!(FileKey::decode(b"\x02base/1/1234\0", NAMING).is_err());
        assert!(FileKey::decode(b"\x02a\0\0", NAMING).is_err());
        assert!(FileKey::decode(b"\x03a\0", NAMING).is_err());
        assert!(FileKey::decode(b"", NAMING).is_err());
        let mut key = FileKey::from_path(b"base/1/2", NAMING).unwrap().0.to_vec();
        for fork in 0..=255 {
            key[13] = fork;
            assert_eq!(FileKey::decode(&key, NAMING).is_ok(), fork < 4);
        }
        key[13] = 0;
        key.push(0);
        assert!(FileKey::decode(&key, NAMING).is_err());
    }

    #[test]
    fn keys_sort_by_relation_number_and_then_by_path() {
        let keys: Vec<_> = [
            "base/1/9",
            "base/1/10",
            "base/1/10.1",
            "base/1/10_fsm",
            "base/2/3",
            "global/1",
            "PG_VERSION",
            "a",
            "a/b",
            "a-b",
        ]
        .iter()
        .map(|p| FileKey::from_path(p.as_bytes(), NAMING).unwrap())
        .collect();
        let mut entries = Vec::new();
        for key in &keys[..9] {
            entries.push(key.metadata_entry());
            entries.push(key.extents_entry(0));
            entries.push(key.extents_entry(1 << 40));
        }
        assert!(entries.is_sorted());
        assert!(keys[7] < keys[9] && keys[8] > keys[7]);
    }

    pub(in crate::snapshot) fn any_path() -> impl Strategy<Value = Vec<u8>> {
        let name = proptest::collection::vec(
            any::<u8>().prop_filter("no separators", |b| *b != b'/' && *b != 0),
            1..12,
        );
        let odd = proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'));
        let relation = (0_u32..3, 0_u32..40, 0..5_usize, 0_u32..3).prop_map(|(d, r, f, s)| {
            let fork = ["", "_fsm", "_vm", "_init", "_x"][f];
            let segment = if s == 0 {
                String::new()
            } else {
                format!(".{s}")
            };
            format!("base/{d}/{r}{fork}{segment}").into_bytes()
        });
        prop_oneof![odd, relation]
    }

    proptest! {
        #[test]
        fn paths_and_entry_keys_come_back(path in any_path(), position in any::<u64>()) {
            let Ok(key) = FileKey::from_path(&path, NAMING) else {
                prop_assert!(!is_safe_relative_path(&path));
                return Ok(());
            };
            prop_assert_eq!(key.path(NAMING), path);
            let entry = key.extents_entry(position);
            prop_assert_eq!(split_entry(&entry, NAMING).unwrap(), (key.clone(), Part::Extents(position)));
            prop_assert_eq!(split_entry(&key.metadata_entry(), NAMING).unwrap(), (key, Part::Metadata));
        }

        #[test]
        fn any_bytes_are_a_key_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(key) = FileKey::decode(&bytes, NAMING) {
                prop_assert_eq!(FileKey::from_path(&key.path(NAMING), NAMING).unwrap(), key);
            }
            let _ = split_entry(&bytes, NAMING);
        }
    }
}
