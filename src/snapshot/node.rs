//! A node: what the map of a tree says of one file, directory, link, pipe, socket or device (format, section 16.2).

use super::filekey::{FileKey, Naming};
use crate::err;
use crate::error::Result;
use crate::repo::varint::{self, Reader};

/// Longest node.
pub const NODE_LIMIT_BYTES: usize = 56 << 10;
/// Longest list of extended attributes inside a node.
pub const XATTRS_LIMIT_BYTES: usize = 32 << 10;
const BUCKET_LIMIT_BYTES: usize = 16 << 10;
const TARGET_LIMIT_BYTES: usize = 4095;
const NANOSECONDS: u32 = 1_000_000_000;

const TARGET: u64 = 1;
const OWNER: u64 = 2;
const LINKED: u64 = 3;
const DEVICE: u64 = 4;
const XATTRS: u64 = 6;
const BIRTH: u64 = 8;
const CHANGE: u64 = 10;
const UNSTABLE: u64 = 12;
const BLAKE3: u64 = 14;
const SHA256: u64 = 16;
const LINKS: u64 = 18;
const BUCKET: u64 = 20;
const ATTRIBUTES: u64 = 22;

/// The bits of [`Node::unstable`].
pub mod unstable {
    /// The size changed while the file was read.
    pub const SIZE: u64 = 1;
    /// The time of modification changed.
    pub const MTIME: u64 = 2;
    /// The time of change changed.
    pub const CTIME: u64 = 4;
    /// The file ended before its length.
    pub const SHRANK: u64 = 8;
    /// A mapping may have written it.
    pub const MAPPED: u64 = 16;
}

/// A moment of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Unix seconds.
    pub seconds: i64,
    /// Below 10^9.
    pub nanoseconds: u32,
}

/// The number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// One of its devices.
    pub minor: u32,
}

/// The type of a node, with what this type alone has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// Another name of the file, device, pipe, socket or symbolic link of this key.
    HardLink(FileKey),
}

/// An owner, by number and by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// User name; empty where unknown.
    pub user: Vec<u8>,
    /// Group name; empty where unknown.
    pub group: Vec<u8>,
}

/// The facts that later show whether a file changed; never restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Inode number.
    pub inode: u64,
    /// Time of change.
    pub ctime: Moment,
}

/// Metadata of an entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Kind of the entry.
    pub kind: NodeKind,
    /// 12 bits: permissions, setuid, setgid, sticky. 0 for a hard link: its target has them, and all below.
    pub mode: u32,
    /// Time of modification.
    pub mtime: Moment,
    pub owner: Option<Owner>,
    /// Extended attributes and ACLs, names ascending.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Time of birth, for information.
    pub birth: Option<Moment>,
    /// Change detection.
    pub change: Option<Change>,
    /// Facts of a file that changed while it was read, as bits of [`unstable`].
    pub unstable: u64,
    /// Hash of a file's content.
    pub blake3: Option<[u8; 32]>,
    /// Hash of a file's content.
    pub sha256: Option<[u8; 32]>,
    /// Number of links at the source.
    pub links: Option<u64>,
    /// Metadata of a bucket's object, JSON.
    pub bucket: Option<Vec<u8>>,
    /// Linux file attributes.
    pub attributes: Option<u64>,
    /// Tags that this version does not know and may pass over. A restore reports them.
    pub passed_over: Vec<(u64, Vec<u8>)>,
}

impl Node {
    /// A node that says nothing but type, mode and time.
    pub fn new(kind: NodeKind, mode: u32, mtime: Moment) -> Node {
        Node {
            kind,
            mode: mode & 0o7777,
            mtime,
            owner: None,
            xattrs: Vec::new(),
            birth: None,
            change: None,
            unstable: 0,
            blake3: None,
            sha256: None,
            links: None,
            bucket: None,
            attributes: None,
            passed_over: Vec::new(),
        }
    }

    /// The value of the node's entry.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        varint::put(&mut out, self.kind.number());
        varint::put(&mut out, u64::from(self.mode));
        put_moment(&mut out, self.mtime);
        varint::put(
            &mut out,
            match self.kind {
                NodeKind::File(length) => length,
                _ => 0,
            },
        );
        let mut tags = self.tags();
        tags.sort_by_key(|(tag, _)| *tag);
        for (tag, value) in &tags {
            varint::put(&mut out, *tag);
            varint::put_blob(&mut out, value);
        }
        out
    }

    fn tags(&self) -> Vec<(u64, Vec<u8>)> {
        let mut tags = self.passed_over.clone();
        let mut add = |tag, put: &dyn Fn(&mut Vec<u8>)| {
            let mut value = Vec::new();
            put(&mut value);
            tags.push((tag, value));
        };
        match &self.kind {
            NodeKind::Symlink(target) => add(TARGET, &|v| v.extend_from_slice(target)),
            NodeKind::HardLink(to) => add(LINKED, &|v| v.extend_from_slice(to.as_bytes())),
            NodeKind::CharDevice(device) | NodeKind::BlockDevice(device) => add(DEVICE, &|v| {
                varint::put(v, u64::from(device.major));
                varint::put(v, u64::from(device.minor));
            }),
            _ => {}
        }
        if let Some(owner) = &self.owner {
            add(OWNER, &|v| put_owner(v, owner));
        }
        if !self.xattrs.is_empty() {
            add(XATTRS, &|v| put_xattrs(v, &self.xattrs));
        }
        if let Some(birth) = self.birth {
            add(BIRTH, &|v| put_moment(v, birth));
        }
        if let Some(change) = self.change {
            add(CHANGE, &|v| {
                varint::put(v, change.inode);
                put_moment(v, change.ctime);
            });
        }
        for (tag, number) in [
            (UNSTABLE, Some(self.unstable).filter(|bits| *bits != 0)),
            (LINKS, self.links),
            (ATTRIBUTES, self.attributes),
        ] {
            if let Some(number) = number {
                add(tag, &|v| varint::put(v, number));
            }
        }
        for (tag, bytes) in [
            (BLAKE3, self.blake3.as_ref().map(|h| &h[..])),
            (SHA256, self.sha256.as_ref().map(|h| &h[..])),
            (BUCKET, self.bucket.as_deref()),
        ] {
            if let Some(bytes) = bytes {
                add(tag, &|v| v.extend_from_slice(bytes));
            }
        }
        tags
    }

    /// Reads what [`Node::encode`] wrote.
    ///
    /// # Errors
    /// `Damaged` when it breaks the format; `Unsupported` for a type or an odd tag that this version does not know.
    pub fn decode(value: &[u8]) -> Result<Node> {
        let mut r = Reader::new(value, "a node of a tree");
        if value.len() > NODE_LIMIT_BYTES {
            return Err(r.damaged());
        }
        let number = r.varint()?;
        let mode = match r.number()? {
            mode if mode <= 0o7777 => mode,
            _ => return Err(r.damaged()),
        };
        let mtime = moment(&mut r)?;
        let length = r.varint()?;
        let mut found = Node::new(NodeKind::File(length), mode, mtime);
        let mut named = Named::default();
        let mut last = 0;
        while r.remaining() > 0 {
            let tag = r.varint()?;
            if tag <= last {
                return Err(r.damaged());
            }
            last = tag;
            let mut value = Reader::new(r.blob()?, "a tag of a node");
            found.read_tag(tag, &mut value, &mut named)?;
            value.finish()?;
        }
        let is_file = number == 1;
        let files_alone =
            found.unstable != 0 || found.blake3.is_some() || found.sha256.is_some() || length != 0;
        found.kind = match (number, named) {
            (1, Named::Nothing) => NodeKind::File(length),
            (2, Named::Nothing) => NodeKind::Directory,
            (3, Named::Target(target)) => NodeKind::Symlink(target),
            (4, Named::Nothing) => NodeKind::Fifo,
            (5, Named::Nothing) => NodeKind::Socket,
            (6, Named::Device(device)) => NodeKind::CharDevice(device),
            (7, Named::Device(device)) => NodeKind::BlockDevice(device),
            (8, Named::File(to)) => NodeKind::HardLink(to),
            (1..=8, _) => return Err(r.damaged()),
            _ => return Err(newer(&format!("nodes of type {number}"))),
        };
        if files_alone && !is_file {
            return Err(r.damaged());
        }
        Ok(found)
    }

    fn read_tag(&mut self, tag: u64, r: &mut Reader<'_>, named: &mut Named) -> Result<()> {
        let name = match tag {
            TARGET => Named::Target(target(r)?),
            LINKED => Named::File(FileKey::decode(r.bytes(r.remaining())?, Naming::Tree)?),
            DEVICE => Named::Device(Device {
                major: r.number()?,
                minor: r.number()?,
            }),
            _ => return self.read_common_tag(tag, r),
        };
        match std::mem::replace(named, name) {
            Named::Nothing => Ok(()),
            _ => Err(r.damaged()),
        }
    }

    fn read_common_tag(&mut self, tag: u64, r: &mut Reader<'_>) -> Result<()> {
        match tag {
            OWNER => {
                self.owner = Some(Owner {
                    uid: r.number()?,
                    gid: r.number()?,
                    user: r.blob()?.to_vec(),
                    group: r.blob()?.to_vec(),
                });
            }
            XATTRS => self.xattrs = xattrs(r)?,
            BIRTH => self.birth = Some(moment(r)?),
            CHANGE => {
                self.change = Some(Change {
                    inode: r.varint()?,
                    ctime: moment(r)?,
                });
            }
            UNSTABLE => self.unstable = r.varint()?,
            BLAKE3 => self.blake3 = Some(r.array()?),
            SHA256 => self.sha256 = Some(r.array()?),
            LINKS => self.links = Some(r.varint()?),
            BUCKET if r.remaining() <= BUCKET_LIMIT_BYTES => {
                self.bucket = Some(r.bytes(r.remaining())?.to_vec());
            }
            BUCKET => return Err(r.damaged()),
            ATTRIBUTES => self.attributes = Some(r.varint()?),
            odd if odd % 2 == 1 => return Err(newer(&format!("tag {odd} of a node"))),
            even => self
                .passed_over
                .push((even, r.bytes(r.remaining())?.to_vec())),
        }
        Ok(())
    }
}

/// The detail, beside its type, that completes a node's kind.
#[derive(Default)]
enum Named {
    #[default]
    Nothing,
    Target(Vec<u8>),
    File(FileKey),
    Device(Device),
}

impl NodeKind {
    fn number(&self) -> u64 {
        match self {
            NodeKind::File(_) => 1,
            NodeKind::Directory => 2,
            NodeKind::Symlink(_) => 3,
            NodeKind::Fifo => 4,
            NodeKind::Socket => 5,
            NodeKind::CharDevice(_) => 6,
            NodeKind::BlockDevice(_) => 7,
            NodeKind::HardLink(_) => 8,
        }
    }
}

fn newer(what: &str) -> crate::error::Error {
    err!(Unsupported, "{what} are not known")
        .hint("Use the version of pitr that wrote the backup, or a newer one.")
}

fn put_moment(out: &mut Vec<u8>, moment: Moment) {
    varint::put_zigzag(out, moment.seconds);
    varint::put(out, u64::from(moment.nanoseconds));
}

fn moment(r: &mut Reader<'_>) -> Result<Moment> {
    let moment = Moment {
        seconds: r.zigzag()?,
        nanoseconds: r.number()?,
    };
    match moment.nanoseconds < NANOSECONDS {
        true => Ok(moment),
        false => Err(r.damaged()),
    }
}

fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    varint::put(out, u64::from(owner.uid));
    varint::put(out, u64::from(owner.gid));
    varint::put_blob(out, &owner.user);
    varint::put_blob(out, &owner.group);
}

fn target(r: &mut Reader<'_>) -> Result<Vec<u8>> {
    let target = r.bytes(r.remaining())?;
    match target.is_empty() || target.len() > TARGET_LIMIT_BYTES || target.contains(&0) {
        true => Err(r.damaged()),
        false => Ok(target.to_vec()),
    }
}

fn put_xattrs(out: &mut Vec<u8>, xattrs: &[(Vec<u8>, Vec<u8>)]) {
    varint::put(out, xattrs.len() as u64);
    for (name, value) in xattrs {
        varint::put_blob(out, name);
        varint::put_blob(out, value);
    }
}

/// Upper limit of what an extended attribute takes in a node.
pub fn xattr_bytes(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + 6
}

fn xattrs(r: &mut Reader<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    if r.remaining() > XATTRS_LIMIT_BYTES {
        return Err(r.damaged());
    }
    let count = r.count(2)?;
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, value) = (r.blob()?, r.blob()?);
        if name <= xattrs.last().map_or(&[][..], |(last, _)| last) || name.contains(&0) {
            return Err(r.damaged());
        }
        xattrs.push((name.to_vec(), value.to_vec()));
    }
    Ok(xattrs)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn any_moment() -> impl Strategy<Value = Moment> {
        (any::<i64>(), 0..NANOSECONDS).prop_map(|(seconds, nanoseconds)| Moment {
            seconds,
            nanoseconds,
        })
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..most)
    }

    fn any_kind() -> impl Strategy<Value = NodeKind> {
        let device = || any::<(u32, u32)>().prop_map(|(major, minor)| Device { major, minor });
        prop_oneof![
            any::<u64>().prop_map(NodeKind::File),
            Just(NodeKind::Directory),
            "[^\0]{1,40}".prop_map(|t| NodeKind::Symlink(t.into_bytes())),
            Just(NodeKind::Fifo),
            Just(NodeKind::Socket),
            device().prop_map(NodeKind::CharDevice),
            device().prop_map(NodeKind::BlockDevice),
            "[a-z]{1,9}(/[a-z]{1,9}){0,3}".prop_map(|path| NodeKind::HardLink(
                FileKey::from_path(path.as_bytes(), Naming::Tree).unwrap()
            )),
        ]
    }

    pub(in crate::snapshot) fn any_node() -> impl Strategy<Value = Node> {
        let owner =
            (any::<(u32, u32)>(), bytes(9), bytes(9)).prop_map(|(ids, user, group)| Owner {
                uid: ids.0,
                gid: ids.1,
                user,
                group,
            });
        let xattrs = proptest::collection::btree_map("[a-z.]{1,20}", bytes(300), 0..5);
        let tags = (
            proptest::option::of(owner),
            xattrs,
            proptest::option::of(any_moment()),
            proptest::option::of((any::<u64>(), any_moment())),
            (
                0_u64..32,
                any::<Option<[u8; 32]>>(),
                any::<Option<[u8; 32]>>(),
            ),
            any::<(Option<u64>, Option<u64>)>(),
            proptest::option::of(bytes(99)),
            proptest::collection::btree_map(12_u64..99, bytes(9), 0..3),
        );
        (any_kind(), 0_u32..0o10000, any_moment(), tags).prop_map(|(kind, mode, mtime, tags)| {
            let (owner, xattrs, birth, change, files, numbers, bucket, others) = tags;
            let is_file = matches!(kind, NodeKind::File(_));
            let mut node = Node::new(kind, mode, mtime);
            if is_file {
                (node.unstable, node.blake3, node.sha256) = files;
            }
            node.owner = owner;
            node.xattrs = xattrs
                .into_iter()
                .map(|(n, v)| (n.into_bytes(), v))
                .collect();
            node.birth = birth;
            node.change = change.map(|(inode, ctime)| Change { inode, ctime });
            (node.links, node.attributes) = numbers;
            node.bucket = bucket;
            node.passed_over = others.into_iter().map(|(tag, v)| (2 * tag, v)).collect();
            node
        })
    }

    proptest! {
        #[test]
        fn nodes_come_back(node in any_node()) {
            let value = node.encode();
            prop_assert!(value.len() <= NODE_LIMIT_BYTES);
            prop_assert_eq!(Node::decode(&value).unwrap(), node);
        }

        #[test]
        fn any_bytes_are_a_node_or_an_error(number in 0_u8..10, rest in bytes(60)) {
            let value = [&[number], &rest[..]].concat();
            if let Ok(node) = Node::decode(&value) {
                prop_assert_eq!(Node::decode(&node.encode()).unwrap(), node);
            }
        }
    }

    fn with_tag(tag: u64, value: &[u8]) -> Result<Node> {
        let mut bytes = Node::new(NodeKind::Directory, 0o755, Moment::default()).encode();
        varint::put(&mut bytes, tag);
        varint::put_blob(&mut bytes, value);
        Node::decode(&bytes)
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_damage() {
        for odd in [5, 7, 9, 23, 1001] {
            assert_eq!(with_tag(odd, b"x").unwrap_err().code(), Code::Unsupported);
        }
        let known = with_tag(24, b"x").unwrap();
        assert_eq!(known.passed_over, [(24, b"x".to_vec())]);
        let refused = Node::decode(&[9, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(refused.code(), Code::Unsupported);
    }

    #[test]
    fn nodes_that_break_the_format_are_damage() {
        let long = vec![b'x'; 4096];
        for (tag, value) in [
            (TARGET, &b"x"[..]),
            (LINKED, b"\x02a\0"),
            (DEVICE, &[1, 1]),
            (UNSTABLE, &[1]),
            (BLAKE3, &[0; 32]),
            (SHA256, &[0; 31]),
            (OWNER, &[1, 1, 0]),
            (OWNER, &[1, 1, 0, 0, 0]),
            (XATTRS, &[2, 1, b'b', 0, 1, b'a', 0]),
            (XATTRS, &[2, 1, b'a', 0, 1, b'a', 0]),
            (XATTRS, &[1, 0, 0]),
            (BIRTH, &[0, 0x80, 0x94, 0xEB, 0xDC, 0x03]),
            (BUCKET, &[0; (16 << 10) + 1]),
        ] {
            let refused = with_tag(tag, value).unwrap_err();
            assert_eq!(refused.code(), Code::Damaged, "tag {tag}");
        }
        let node = |kind| Node::new(kind, 0, Moment::default()).encode();
        for bad in [
            node(NodeKind::Symlink(Vec::new())),
            node(NodeKind::Symlink(b"a\0b".to_vec())),
            node(NodeKind::Symlink(long)),
            // Types without what they need, a length without a file, bits above the twelve, tags that do not ascend.
            vec![3, 0, 0, 0, 0],
            vec![6, 0, 0, 0, 0],
            vec![8, 0, 0, 0, 0],
            vec![2, 0, 0, 0, 1],
            vec![2, 0x80, 0x20, 0, 0, 0],
            vec![2, 0, 0, 0, 0, 18, 1, 1, 18, 1, 1],
        ] {
            assert_eq!(
                Node::decode(&bad).unwrap_err().code(),
                Code::Damaged,
                "{bad:?}"
            );
        }
    }
}
