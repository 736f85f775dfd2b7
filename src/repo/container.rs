//! The container of WAL files and other small files (format, section 5): a standard LZ4 or zstd frame, then a skippable frame with
//! sections, their directory and a trailer.
//!
//! Written in one pass with bounded memory; read from the tail (sections) or from the front (content, checked against its hash).

use std::fmt::Display;
use std::io::{self, Read, Write};

use serde_json::{Map, Value};

use super::lz4::{FRAME_HEADER, FrameReader, FrameWriter};
use super::scope;
use super::varint::{self, Fixed, Reader, Varint, numbered, stored};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::WalFileName;
use crate::pg::timeline::{History, NO_PARENT, TimelineId};
use crate::store::{Key, Meta, NewObject, Object, Store};

/// The kind of a container's content; part of the trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole WAL segment.
    Segment = 1,
    /// A timeline history file.
    History = 2,
    /// The last, partial segment of a timeline.
    Partial = 3,
    /// A backup history file.
    Label = 4,
    /// A piece of a segment being streamed.
    Increment = 5,
    /// PostgreSQL's backup manifest.
    ServerManifest = 6,
    /// Bytes of a history of Redis.
    Log = 7,
    /// The list of a backup's relations.
    Relations = 8,
    /// Recovery instructions of a set.
    Runbook = 10,
}

impl Kind {
    /// The kind of the object that has a WAL file.
    pub fn of(name: WalFileName) -> Kind {
        match name {
            WalFileName::Segment(_) => Kind::Segment,
            WalFileName::Partial(_) => Kind::Partial,
            WalFileName::History(_) => Kind::History,
            WalFileName::BackupHistory { .. } => Kind::Label,
        }
    }

    /// Its name in the facts of a sealed object.
    fn word(self) -> &'static str {
        match self {
            Kind::Segment => "segment",
            Kind::History => "history",
            Kind::Partial => "partial",
            Kind::Label => "label",
            Kind::Increment => "increment",
            Kind::ServerManifest => "server_manifest",
            Kind::Log => "log",
            Kind::Relations => "relations",
            Kind::Runbook => "runbook",
        }
    }
}

numbered! {
    Kind: Segment, History, Partial, Label, Increment, ServerManifest, Log, Relations, Runbook
}

/// How the body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// LZ4 frame.
    Lz4,
    /// zstd frame of this level.
    Zstd(i32),
}

/// Section tags (format, sections 5 and 6).
pub mod tag {
    /// Identity, in every container.
    pub const IDENTITY: u8 = 1;
    /// Summary of a segment.
    pub const SUMMARY: u8 = 2;
    /// Edge fragments of a segment.
    pub const FRAGMENTS: u8 = 3;
    /// Xids of transaction ends.
    pub const XIDS: u8 = 4;
    /// Restore points, checkpoints, DDL.
    pub const EVENTS: u8 = 5;
    /// Blocks changed.
    pub const BLOCKS: u8 = 6;
    /// Records that failed their check.
    pub const DAMAGE: u8 = 7;
    /// The link of a segment to the one before it.
    pub const LINK: u8 = 8;
}

stored! {
    /// Who the content is; section 1.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Identity {
        /// BLAKE3 of the raw content.
        pub hash: [u8; 32] = Fixed,
        /// Length of the raw content.
        pub raw_bytes: u64 = Varint,
        /// System identifier of the cluster.
        pub system_identifier: u64 = Fixed,
        /// In the file's name.
        pub timeline: u32 = Varint,
        /// PostgreSQL major.
        pub major: u32 = Varint,
        /// Segment size of the cluster in bytes.
        pub segment_size_bytes: u64 = Varint,
        /// The file's name as PostgreSQL knows it.
        pub name: String = Varint,
        /// First LSN of segments, partials and increments; else 0.
        pub from_lsn: u64 = Fixed,
        /// End of the LSN range; else 0.
        pub to_lsn: u64 = Fixed,
    }
}

impl Identity {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Identity> {
        Identity::take(&mut Reader::new(bytes, "identity of an object"))
    }
}

/// The facts of a container that stay plain in an encrypted repository (format, section 11): its identity, with another
/// hash.
#[derive(serde::Serialize, serde::Deserialize)]
struct PlainIdentity {
    kind: String,
    raw_bytes: u64,
    #[serde(with = "crate::text::decimal")]
    system_identifier: u64,
    timeline: u32,
    major: u32,
    segment_size_bytes: u64,
    name: String,
    from_lsn: Lsn,
    to_lsn: Lsn,
}

fn facts(kind: Kind, identity: &Identity) -> io::Result<Map<String, Value>> {
    let plain = PlainIdentity {
        kind: kind.word().to_owned(),
        raw_bytes: identity.raw_bytes,
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        major: identity.major,
        segment_size_bytes: identity.segment_size_bytes,
        name: identity.name.clone(),
        from_lsn: Lsn(identity.from_lsn),
        to_lsn: Lsn(identity.to_lsn),
    };
    match serde_json::to_value(plain)? {
        Value::Object(facts) => Ok(facts),
        _ => Err(io::Error::other("an identity is no object")),
    }
}

/// The identity in the facts of a sealed object; its hash is the keyed one.
fn identity_of(facts: &Value) -> Result<(Kind, Identity)> {
    let damaged = |what: &str| err!(Damaged, "what stays plain of the object lacks {what}");
    let plain: PlainIdentity =
        serde_json::from_value(facts.clone()).map_err(|e| damaged("its identity").source(e))?;
    let kind = (0..=u8::MAX)
        .filter_map(Kind::from_number)
        .find(|k| k.word() == plain.kind);
    let content = facts.get("content").and_then(Value::as_str);
    let content = content.and_then(|text| blake3::Hash::from_hex(text).ok());
    let identity = Identity {
        hash: content.ok_or_else(|| damaged("its hash"))?.into(),
        raw_bytes: plain.raw_bytes,
        system_identifier: plain.system_identifier,
        timeline: plain.timeline,
        major: plain.major,
        segment_size_bytes: plain.segment_size_bytes,
        name: plain.name,
        from_lsn: plain.from_lsn.0,
        to_lsn: plain.to_lsn.0,
    };
    Ok((kind.ok_or_else(|| damaged("its kind"))?, identity))
}

/// The switch points of a history, as facts have them.
pub(super) fn history_facts(history: &History) -> Value {
    let points = history.ancestors().iter().map(|a| {
        let (timeline, lsn) = (a.timeline.decimal(), a.switch_lsn.to_string());
        serde_json::json!({ "timeline": timeline, "switch_lsn": lsn })
    });
    Value::Array(points.collect())
}

/// Tells what of a history file stays plain in an encrypted repository.
pub fn describe_history(object: &mut dyn NewObject, history: &History) {
    let points = Map::from_iter([("history".to_owned(), history_facts(history))]);
    object.describe(points, None);
}

/// A history file with these switch points, without reasons; `None` for none.
pub(super) fn history_text(facts: &Value) -> Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Point {
        timeline: u32,
        switch_lsn: Lsn,
    }
    if facts.is_null() {
        return Ok(None);
    }
    let points: Vec<Point> = serde_json::from_value(facts.clone())
        .map_err(|e| err!(Damaged, "the switch points are not whole").source(e))?;
    let lines = points
        .iter()
        .map(|p| format!("{}\t{}\t\n", p.timeline, p.switch_lsn));
    Ok(Some(match points.is_empty() {
        true => NO_PARENT.to_owned(),
        false => lines.collect(),
    }))
}

/// A section to write, uncompressed.
pub struct Section {
    /// Its tag; each tag once.
    pub tag: u8,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether it is stored compressed; small ones are not.
    pub compress: bool,
}

/// Greatest raw length of a section.
pub const SECTION_LIMIT_BYTES: u64 = 16 << 20;
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
const TRAILER: usize = 56;
const ENTRY: usize = 16;
const TRAILER_MAGIC: &[u8; 4] = b"PITR";
const VERSION: u8 = 1;
/// Must-understand flag: a copy that was refused under its name.
const REFUSED: u32 = 1;
/// Must-understand flag: WAL that its writer could not decode, for a newer PostgreSQL wrote it. Its index says nothing of records.
const UNDECODED: u32 = 2;
/// One read of this length usually holds all that is needed of a segment's index.
const TAIL_READ_BYTES: u64 = 16 << 10;

/// Counts and checksums everything that goes to the sink.
struct Stored<W> {
    sink: W,
    bytes: u64,
    crc: u32,
}

impl<W: Write> Write for Stored<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.sink.write(buffer)?;
        let done = buffer.get(..n).unwrap_or_default();
        self.crc = crc32c::crc32c_append(self.crc, done);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

enum Encoder<W: Write> {
    Lz4(Box<FrameWriter<W>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
}

/// Writes one container to a sink.
pub struct ContainerWriter<W: Write> {
    encoder: Encoder<Stored<W>>,
    kind: Kind,
    is_refused: bool,
    is_undecoded: bool,
    raw_bytes: u64,
}

impl<W: Write> ContainerWriter<W> {
    /// Begins a container of `kind`.
    pub fn new(sink: W, kind: Kind, codec: Codec) -> io::Result<Self> {
        let stored = Stored {
            sink,
            bytes: 0,
            crc: 0,
        };
        let encoder = match codec {
            Codec::Lz4 => {
                let is_wal = matches!(kind, Kind::Segment | Kind::Partial | Kind::Increment);
                Encoder::Lz4(Box::new(FrameWriter::new(stored, is_wal)))
            }
            Codec::Zstd(level) => {
                let mut encoder = zstd::stream::write::Encoder::new(stored, level)?;
                encoder.include_contentsize(false)?;
                encoder.include_checksum(false)?;
                Encoder::Zstd(Box::new(encoder))
            }
        };
        Ok(ContainerWriter {
            encoder,
            kind,
            is_refused: false,
            is_undecoded: false,
            raw_bytes: 0,
        })
    }

    /// Marks WAL that cannot be decoded here, so that no program takes its index for one.
    pub fn undecoded(mut self, is_undecoded: bool) -> Self {
        self.is_undecoded = is_undecoded;
        self
    }

    /// Marks the content as a copy that was refused under its name, so that it is never taken for the accepted one.
    pub fn refused(mut self) -> Self {
        self.is_refused = true;
        self
    }

    /// Appends raw content.
    pub fn write(&mut self, raw: &[u8]) -> io::Result<()> {
        self.raw_bytes += raw.len() as u64;
        match &mut self.encoder {
            Encoder::Lz4(e) => e.write(raw),
            Encoder::Zstd(e) => e.write_all(raw),
        }
    }

    /// Ends the body, writes `identity`, `sections` and the trailer, and returns the sink.
    pub fn finish(self, identity: &Identity, sections: Vec<Section>) -> io::Result<W> {
        self.end(identity, sections, |_| {})
    }

    /// As [`ContainerWriter::finish`]; calls `behind_body` when the body is written.
    fn end(
        self,
        identity: &Identity,
        mut sections: Vec<Section>,
        behind_body: impl FnOnce(&mut W),
    ) -> io::Result<W> {
        let mut stored = match self.encoder {
            Encoder::Lz4(e) => e.finish()?,
            Encoder::Zstd(e) => e.finish()?,
        };
        behind_body(&mut stored.sink);
        sections.push(Section {
            tag: tag::IDENTITY,
            bytes: identity.encode(),
            compress: false,
        });
        let mut packed = sections
            .into_iter()
            .map(pack_section)
            .collect::<io::Result<Vec<_>>>()?;
        // Largest first: a short read of the tail then has all the small ones.
        packed.sort_by_key(|p| std::cmp::Reverse(p.bytes.len()));
        let section_bytes: usize = packed.iter().map(|p| p.bytes.len()).sum();
        let directory = directory(&mut packed);
        let content = section_bytes + directory.len() + TRAILER;
        let content = u32::try_from(content).map_err(|_| io::Error::other("index too large"))?;
        stored.write_all(&SKIPPABLE_MAGIC.to_le_bytes())?;
        stored.write_all(&content.to_le_bytes())?;
        let trailer = Trailer {
            sections_offset: stored.bytes,
            entries: u16::try_from(packed.len())
                .map_err(|_| io::Error::other("too many sections"))?,
            kind: self.kind,
            is_refused: self.is_refused,
            is_undecoded: self.is_undecoded,
            directory_crc: crc32c::crc32c(&directory),
            object_bytes: stored.bytes + u64::from(content),
            raw_bytes: self.raw_bytes,
            section_bytes: u32::try_from(section_bytes)
                .map_err(|_| io::Error::other("index too large"))?,
        };
        packed.sort_by_key(|p| p.offset);
        for section in &packed {
            stored.write_all(&section.bytes)?;
        }
        stored.write_all(&directory)?;
        stored.write_all(&trailer.encode())?;
        let crc = stored.crc;
        stored.write_all(&crc.to_le_bytes())?;
        stored.write_all(TRAILER_MAGIC)?;
        Ok(stored.sink)
    }
}

impl ContainerWriter<Box<dyn NewObject>> {
    /// As [`ContainerWriter::finish`], of an object that is then published: it tells what stays plain in an encrypted repository.
    pub fn complete(
        self,
        identity: &Identity,
        sections: Vec<Section>,
    ) -> io::Result<Box<dyn NewObject>> {
        let facts = facts(self.kind, identity)?;
        // Its index is what an incremental asks for.
        let is_kept = self.kind == Kind::Segment && !self.is_refused;
        let mut object = self.end(identity, sections, |object| object.keep(is_kept))?;
        object.describe(facts, Some(&identity.hash));
        Ok(object)
    }
}

struct Packed {
    tag: u8,
    codec: u8,
    offset: u32,
    bytes: Vec<u8>,
}

fn pack_section(section: Section) -> io::Result<Packed> {
    let raw = section.bytes;
    if raw.len() as u64 > SECTION_LIMIT_BYTES {
        return Err(io::Error::other("section too large"));
    }
    if section.compress && raw.len() > 256 {
        let mut bytes = Vec::new();
        varint::put(&mut bytes, raw.len() as u64);
        bytes.extend_from_slice(&zstd::bulk::compress(&raw, 1)?);
        if bytes.len() < raw.len() {
            return Ok(Packed {
                tag: section.tag,
                codec: 2,
                offset: 0,
                bytes,
            });
        }
    }
    Ok(Packed {
        tag: section.tag,
        codec: 0,
        offset: 0,
        bytes: raw,
    })
}

/// Gives each section its offset and returns the directory, ascending by tag.
fn directory(packed: &mut [Packed]) -> Vec<u8> {
    let mut offset = 0_u32;
    for p in packed.iter_mut() {
        p.offset = offset;
        offset = offset.saturating_add(u32::try_from(p.bytes.len()).unwrap_or(u32::MAX));
    }
    packed.sort_by_key(|p| p.tag);
    let mut out = Vec::with_capacity(packed.len() * ENTRY);
    for p in packed {
        out.extend_from_slice(&[p.tag, p.codec, 0, 0]);
        out.extend_from_slice(&p.offset.to_le_bytes());
        let length = u32::try_from(p.bytes.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&p.bytes).to_le_bytes());
    }
    out
}

#[derive(Debug, Clone)]
struct Trailer {
    sections_offset: u64,
    entries: u16,
    kind: Kind,
    is_refused: bool,
    is_undecoded: bool,
    directory_crc: u32,
    object_bytes: u64,
    raw_bytes: u64,
    section_bytes: u32,
}

impl Trailer {
    /// The first 48 bytes; the CRC of everything before and the magic follow.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER);
        out.extend_from_slice(&self.sections_offset.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, VERSION]);
        out.extend_from_slice(&self.directory_crc.to_le_bytes());
        out.extend_from_slice(&self.object_bytes.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.is_refused, REFUSED) | flag(self.is_undecoded, UNDECODED);
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&self.section_bytes.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], object_bytes: u64) -> Result<Trailer> {
        let mut r = Reader::new(bytes, "trailer of an object");
        let own_crc = bytes.get(..44).map(crc32c::crc32c);
        let sections_offset = r.u64()?;
        let entries = r.u16()?;
        let (kind, version) = (r.u8()?, r.u8()?);
        let directory_crc = r.u32()?;
        let stated_bytes = r.u64()?;
        let raw_bytes = r.u64()?;
        let flags = r.u32()?;
        let section_bytes = r.u32()?;
        r.u32()?;
        let crc = r.u32()?;
        r.u32()?;
        if r.bytes(4)? != TRAILER_MAGIC || own_crc != Some(crc) {
            return Err(err!(Damaged, "the trailer's checksum is wrong"));
        }
        if version != VERSION || flags & !(REFUSED | UNDECODED) != 0 {
            return Err(err!(
                Unsupported,
                "container version {version} with flags {flags}"
            )
            .hint("Use the version of pitr that wrote it, or a newer one."));
        }
        let kind = Kind::from_number(kind)
            .ok_or_else(|| err!(Unsupported, "container kind {kind} is not known"))?;
        let index = u64::from(section_bytes) + u64::from(entries) * ENTRY as u64 + TRAILER as u64;
        if stated_bytes != object_bytes
            || sections_offset.checked_add(index) != Some(object_bytes)
            || entries > 32
        {
            return Err(err!(
                Damaged,
                "the object has {object_bytes} bytes, its trailer says {stated_bytes}"
            ));
        }
        Ok(Trailer {
            sections_offset,
            entries,
            kind,
            is_refused: flags & REFUSED != 0,
            is_undecoded: flags & UNDECODED != 0,
            directory_crc,
            object_bytes,
            raw_bytes,
            section_bytes,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u8,
    codec: u8,
    offset: u32,
    length: u32,
    crc: u32,
}

/// A container open for reading.
pub struct Container {
    object: Box<dyn Object>,
    trailer: Trailer,
    entries: Vec<Entry>,
    /// The last bytes of the object, from `tail_offset` on.
    tail: Vec<u8>,
    tail_offset: u64,
    identity: Identity,
}

impl Container {
    /// Opens what is stored under a key; none where nothing is. Damage shows when the object is opened, where objects are sealed, or in the
    /// container: to the caller it is the same.
    ///
    /// # Errors
    /// Those of the store and of [`Container::open`].
    pub fn stored(store: &dyn Store, key: &Key) -> Result<Option<Container>> {
        store.open(key)?.map(Container::open).transpose()
    }

    /// Reads trailer, directory and identity.
    ///
    /// # Errors
    /// `Damaged` when any of them fails its check, and for a copy that was refused; `Unsupported` for a newer version.
    pub fn open(object: Box<dyn Object>) -> Result<Container> {
        let container = Container::open_any(object)?;
        match container.trailer.is_refused {
            false => Ok(container),
            true => Err(err!(Damaged, "a copy that was refused lies in its place")),
        }
    }

    /// As [`Container::open`], of what lies under `key`: below `conflicts/` are the copies that were refused, and nothing else.
    ///
    /// # Errors
    /// Those of [`Container::open`]; `Damaged` for what was not refused, where it should have been.
    pub fn open_under(key: &Key, object: Box<dyn Object>) -> Result<Container> {
        if !scope::is_conflict(key) {
            return Container::open(object);
        }
        let container = Container::open_any(object)?;
        // One that cannot be read here is bound to its key.
        match container.trailer.is_refused || container.is_opaque() {
            true => Ok(container),
            false => Err(err!(Damaged, "it is no copy that was refused")),
        }
    }

    fn open_any(object: Box<dyn Object>) -> Result<Container> {
        let size = object.size_bytes();
        let known = object.opaque().map(|opaque| identity_of(opaque.facts()));
        if let Some((kind, identity)) = known.transpose()? {
            return Ok(Container::opaque(object, kind, identity));
        }
        let want = size.min(TAIL_READ_BYTES);
        let tail_offset = (size - want).max(object.readable_from());
        let want = size.saturating_sub(tail_offset);
        let mut tail = vec![0; usize::try_from(want).unwrap_or(0)];
        object.read_at(&mut tail, tail_offset)?;
        let trailer_at = tail
            .len()
            .checked_sub(TRAILER)
            .ok_or_else(|| err!(Damaged, "an object of {size} bytes is too short"))?;
        let trailer = Trailer::decode(tail.get(trailer_at..).unwrap_or_default(), size)?;
        let directory_at = trailer_at
            .checked_sub(usize::from(trailer.entries) * ENTRY)
            .ok_or_else(|| err!(Damaged, "the directory does not fit"))?;
        let directory = tail.get(directory_at..trailer_at).unwrap_or_default();
        let entries = read_directory(directory, &trailer)?;
        let mut container = Container {
            object,
            trailer,
            entries,
            tail,
            tail_offset,
            identity: Identity::default(),
        };
        let identity = container
            .section(tag::IDENTITY)?
            .ok_or_else(|| err!(Damaged, "the object has no identity"))?;
        container.identity = Identity::decode(&identity)?;
        if container.identity.raw_bytes != container.trailer.raw_bytes {
            return Err(err!(Damaged, "identity and trailer differ in length"));
        }
        Ok(container)
    }

    /// Creates the container of a sealed object that cannot be read here: only the identity is known.
    fn opaque(object: Box<dyn Object>, kind: Kind, identity: Identity) -> Container {
        let trailer = Trailer {
            sections_offset: 0,
            entries: 0,
            kind,
            is_refused: false,
            is_undecoded: false,
            directory_crc: 0,
            object_bytes: object.size_bytes(),
            raw_bytes: identity.raw_bytes,
            section_bytes: 0,
        };
        Container {
            object,
            trailer,
            entries: Vec::new(),
            tail: Vec::new(),
            tail_offset: 0,
            identity,
        }
    }

    /// Whether it can be compared, but not read, for want of a key: then the identity's hash is not that of the content.
    pub fn is_opaque(&self) -> bool {
        self.object.opaque().is_some()
    }

    /// Requires that it can be read.
    fn check_readable(&self) -> Result<()> {
        match self.is_opaque() {
            true => self.object.read_at(&mut [], 0),
            false => Ok(()),
        }
    }

    /// Whether the raw content has this hash.
    pub fn has_hash(&self, hash: &[u8; 32]) -> bool {
        self.compared(hash) == Some(true)
    }

    /// Whether the raw content has this hash; none where that needs a key which is not configured.
    pub fn compared(&self, hash: &[u8; 32]) -> Option<bool> {
        let stored = match self.object.opaque() {
            None => *hash,
            Some(opaque) => opaque.public_hash(hash)?,
        };
        Some(self.identity.hash == stored)
    }

    /// Whether it is the file of that kind and name, of the cluster with that system identifier.
    pub fn is_stored_as(&self, kind: Kind, name: impl Display, system_identifier: u64) -> bool {
        let own = &self.identity;
        let is_named = self.kind() == kind && own.name == name.to_string();
        is_named && own.system_identifier == system_identifier
    }

    /// Whether it is what `identity` says, hash included.
    pub fn is(&self, identity: &Identity) -> bool {
        let with_own_hash = Identity {
            hash: self.identity.hash,
            ..identity.clone()
        };
        self.has_hash(&identity.hash) && self.identity == with_own_hash
    }

    /// The history file that it holds, of at most `limit_bytes`; without reasons where it cannot be read for want of a key.
    ///
    /// # Errors
    /// As [`Container::read_body`]; `Damaged` when it is no history file.
    pub fn history(&self, timeline: TimelineId, limit_bytes: u64) -> Result<History> {
        let Some(opaque) = self.object.opaque() else {
            return History::parse(timeline, &self.read_small(limit_bytes)?);
        };
        let points = opaque.facts().get("history").unwrap_or(&Value::Null);
        let text = history_text(points)?.unwrap_or_default();
        History::parse(timeline, text.as_bytes())
    }

    /// Returns the kind of its content.
    pub fn kind(&self) -> Kind {
        self.trailer.kind
    }

    /// Whether its writer could not decode the WAL that it holds; `false` where it cannot be read for want of a key.
    pub fn is_undecoded(&self) -> bool {
        self.trailer.is_undecoded
    }

    /// Who the content is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Stored length of the object.
    pub fn stored_bytes(&self) -> u64 {
        self.trailer.object_bytes
    }

    /// As [`Object::meta`].
    pub fn meta(&self) -> Option<Meta> {
        self.object.meta()
    }

    /// The object below.
    pub fn object(&self) -> &dyn Object {
        self.object.as_ref()
    }

    /// A section's raw bytes, checked; `None` when there is none of this tag.
    pub fn section(&self, tag: u8) -> Result<Option<Vec<u8>>> {
        self.check_readable()?;
        let Some(entry) = self.entries.iter().find(|e| e.tag == tag) else {
            return Ok(None);
        };
        let length = entry.length as usize;
        let at = self.trailer.sections_offset + u64::from(entry.offset);
        let in_tail = at
            .checked_sub(self.tail_offset)
            .and_then(|o| usize::try_from(o).ok())
            .and_then(|o| self.tail.get(o..o + length));
        let stored = match in_tail {
            Some(bytes) => bytes.to_vec(),
            None => {
                let mut bytes = vec![0; length];
                self.object.read_at(&mut bytes, at)?;
                bytes
            }
        };
        if crc32c::crc32c(&stored) != entry.crc {
            return Err(err!(Damaged, "the checksum of section {tag} is wrong"));
        }
        unpack_section(entry.codec, stored).map(Some)
    }

    /// Streams the raw content to `sink` in pieces and checks it against the identity's hash.
    ///
    /// The last pieces reach the sink before the hash is known: the sink's work must not become visible before this returns `Ok`.
    ///
    /// # Errors
    /// `Damaged` when decompression, length or hash is wrong; what `sink` returns.
    pub fn read_body(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        read_pieces(self.body()?, sink)
    }

    /// Streams the raw content without its hash, which is a quarter of reading WAL: for readers that check each record by its own CRC,
    /// and call [`Container::read_body`] where anything is wrong with one.
    ///
    /// # Errors
    /// `Damaged` when decompression or length is wrong; what `sink` returns.
    pub fn read_body_unhashed(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let body = self.body()?;
        let body = Body {
            hasher: None,
            ..body
        };
        read_pieces(body, sink)
    }

    /// The raw content, to be read piece by piece; its hash is checked when its end is reached.
    ///
    /// # Errors
    /// As [`Container::read_body`].
    pub fn body(&self) -> Result<Body<'_>> {
        self.check_readable()?;
        let source = ObjectReader {
            object: self.object.as_ref(),
            at: 0,
            end: self.trailer.sections_offset.saturating_sub(8),
            failed: None,
        };
        Ok(Body {
            container: self,
            decoder: Decoder::open(source)?,
            hasher: Some(blake3::Hasher::new()),
            done: 0,
        })
    }

    /// The whole raw content, where it is small.
    ///
    /// # Errors
    /// As [`Container::read_body`]; `Damaged` when it is larger than `limit_bytes`.
    pub fn read_small(&self, limit_bytes: u64) -> Result<Vec<u8>> {
        if self.trailer.raw_bytes > limit_bytes {
            return Err(err!(
                Damaged,
                "the content has {} bytes, at most {limit_bytes} are allowed",
                self.trailer.raw_bytes
            ));
        }
        let mut content = Vec::new();
        self.read_body(&mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    /// Checks the CRC over all stored bytes, without decompressing.
    pub fn check_stored(&self) -> Result<()> {
        if let Some(opaque) = self.object.opaque() {
            return opaque.check_stored();
        }
        let end = self.trailer.object_bytes - 8;
        let mut crc = 0;
        let mut at = 0;
        let mut buffer = vec![0; 256 << 10];
        while at < end {
            let n = usize::try_from((end - at).min(buffer.len() as u64)).unwrap_or(0);
            let piece = buffer.get_mut(..n).unwrap_or_default();
            self.object.read_at(piece, at)?;
            crc = crc32c::crc32c_append(crc, piece);
            at += n as u64;
        }
        let mut stored = [0; 4];
        self.object.read_at(&mut stored, end)?;
        if u32::from_le_bytes(stored) != crc {
            return Err(err!(Damaged, "the checksum of the stored bytes is wrong"));
        }
        Ok(())
    }
}

/// The raw content of a container while it is read.
pub struct Body<'a> {
    container: &'a Container,
    decoder: Decoder<'a>,
    /// None where the reader has checksums of its own.
    hasher: Option<blake3::Hasher>,
    done: u64,
}

/// Hands a body to `sink` in pieces.
fn read_pieces(mut body: Body<'_>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = body.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        sink(buffer.get(..n).unwrap_or_default())?;
    }
}

impl Body<'_> {
    /// Reads the next bytes; 0 means that everything was read and has the recorded hash.
    ///
    /// # Errors
    /// `Damaged` when decompression, length or hash is wrong.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = self.decoder.read(buffer)?;
        let expected = self.container.trailer.raw_bytes;
        if n == 0 {
            let hash = self.hasher.as_ref().map(blake3::Hasher::finalize);
            let is_other = hash.is_some_and(|hash| hash != self.container.identity.hash);
            if self.done != expected || is_other {
                return Err(err!(
                    Damaged,
                    "the content does not have the recorded hash ({} of {expected} bytes)",
                    self.done
                ));
            }
            return Ok(0);
        }
        self.done += n as u64;
        if self.done > expected {
            return Err(err!(
                Damaged,
                "the content is longer than the {expected} bytes recorded"
            ));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buffer.get(..n).unwrap_or_default());
        }
        Ok(n)
    }
}

fn read_directory(bytes: &[u8], trailer: &Trailer) -> Result<Vec<Entry>> {
    if crc32c::crc32c(bytes) != trailer.directory_crc {
        return Err(err!(Damaged, "the directory's checksum is wrong"));
    }
    let mut r = Reader::new(bytes, "directory of an object");
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..trailer.entries {
        let (tag, codec) = (r.u8()?, r.u8()?);
        r.u16()?;
        let entry = Entry {
            tag,
            codec,
            offset: r.u32()?,
            length: r.u32()?,
            crc: r.u32()?,
        };
        let ascends = entries.last().is_none_or(|last| last.tag < tag);
        let inside = entry
            .offset
            .checked_add(entry.length)
            .is_some_and(|end| end <= trailer.section_bytes);
        if !ascends || !inside || u64::from(entry.length) > SECTION_LIMIT_BYTES + 16 {
            return Err(r.damaged());
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn unpack_section(codec: u8, stored: Vec<u8>) -> Result<Vec<u8>> {
    match codec {
        0 => Ok(stored),
        2 => {
            let mut r = Reader::new(&stored, "section of an object");
            let raw = r.varint()?;
            if raw > SECTION_LIMIT_BYTES {
                return Err(r.damaged());
            }
            let packed = r.bytes(r.remaining())?;
            let raw = usize::try_from(raw).map_err(|_| r.damaged())?;
            let bytes = zstd::bulk::decompress(packed, raw)
                .map_err(|e| err!(Damaged, "a section cannot be decompressed").source(e))?;
            if bytes.len() != raw {
                return Err(r.damaged());
            }
            Ok(bytes)
        }
        other => Err(err!(Unsupported, "section codec {other} is not known")),
    }
}

/// Reads an object's first bytes as a stream; keeps the store's own error, which `io::Error` would flatten.
struct ObjectReader<'a> {
    object: &'a dyn Object,
    at: u64,
    end: u64,
    failed: Option<Error>,
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n =
            usize::try_from(self.end.saturating_sub(self.at).min(buffer.len() as u64)).unwrap_or(0);
        let piece = buffer.get_mut(..n).unwrap_or_default();
        if n == 0 {
            return Ok(0);
        }
        if let Err(e) = self.object.read_at(piece, self.at) {
            self.failed = Some(e);
            return Err(io::Error::other("read failed"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

type Buffered<'a> = io::BufReader<ObjectReader<'a>>;

enum Decoder<'a> {
    Blocks(FrameReader<ObjectReader<'a>>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<Buffered<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Buffered<'a>>>),
}

impl<'a> Decoder<'a> {
    fn open(mut source: ObjectReader<'a>) -> Result<Decoder<'a>> {
        let mut header = FRAME_HEADER;
        source.object.read_at(&mut header, 0)?;
        if header == FRAME_HEADER {
            source.at = header.len() as u64;
            return Ok(Decoder::Blocks(FrameReader::new(source)));
        }
        let [a, b, c, d, ..] = header;
        let magic = [a, b, c, d];
        let buffered = io::BufReader::with_capacity(256 << 10, source);
        match u32::from_le_bytes(magic) {
            0x184D_2204 => Ok(Decoder::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(
                buffered,
            )))),
            0xFD2F_B528 => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)
                    .map_err(|e| err!(Internal, "could not start zstd").source(e))?;
                // Bounds memory against a hostile window size: 8 MiB is more than any level used here.
                decoder
                    .window_log_max(23)
                    .map_err(|e| err!(Internal, "could not start zstd").source(e))?;
                Ok(Decoder::Zstd(Box::new(decoder.single_frame())))
            }
            other => Err(err!(
                Damaged,
                "the body begins with {other:08X}, no known codec"
            )),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let result = match self {
            Decoder::Blocks(d) => d.read(buffer),
            Decoder::Lz4(d) => d.read(buffer),
            Decoder::Zstd(d) => d.read(buffer),
        };
        result.map_err(|e| {
            let source = match self {
                Decoder::Blocks(d) => d.get_mut(),
                Decoder::Lz4(d) => d.get_mut().get_mut(),
                Decoder::Zstd(d) => d.get_mut().get_mut(),
            };
            match source.failed.take() {
                Some(failed) => failed,
                None => Error::new(Code::Damaged, "the body cannot be decompressed").source(e),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl Object for Memory {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            let at = usize::try_from(offset).unwrap();
            let source = self
                .0
                .get(at..at + buffer.len())
                .ok_or_else(|| err!(Damaged, "short"))?;
            buffer.copy_from_slice(source);
            Ok(())
        }

        fn settle(&self) -> Result<()> {
            Ok(())
        }
    }

    fn identity(raw: &[u8]) -> Identity {
        Identity {
            hash: *blake3::hash(raw).as_bytes(),
            raw_bytes: raw.len() as u64,
            system_identifier: u64::MAX,
            timeline: 1,
            major: 17,
            segment_size_bytes: 16 << 20,
            name: "000000010000000000000001".into(),
            from_lsn: 1 << 24,
            to_lsn: 2 << 24,
        }
    }

    fn build(raw: &[u8], codec: Codec) -> Vec<u8> {
        let mut w = ContainerWriter::new(Vec::new(), Kind::Segment, codec).unwrap();
        for piece in raw.chunks(1000) {
            w.write(piece).unwrap();
        }
        let sections = vec![
            Section {
                tag: tag::BLOCKS,
                bytes: vec![7; 100_000],
                compress: true,
            },
            Section {
                tag: tag::SUMMARY,
                bytes: b"summary".to_vec(),
                compress: false,
            },
        ];
        w.finish(&identity(raw), sections).unwrap()
    }

    fn raw(n: usize) -> Vec<u8> {
        (0..n)
            .map(|i| u8::try_from((i * i / 7) % 251).unwrap())
            .collect()
    }

    #[test]
    fn content_and_sections_come_back() {
        for codec in [Codec::Lz4, Codec::Zstd(1)] {
            for n in [0, 1, 100, 300_000, 1 << 20] {
                let raw = raw(n);
                let bytes = build(&raw, codec);
                let c = Container::open(Box::new(Memory(bytes))).unwrap();
                assert_eq!(c.identity(), &identity(&raw));
                assert_eq!(c.read_small(1 << 20).unwrap(), raw);
                assert_eq!(c.section(tag::SUMMARY).unwrap().unwrap(), b"summary");
                assert_eq!(c.section(tag::BLOCKS).unwrap().unwrap(), vec![7; 100_000]);
                assert!(c.section(tag::XIDS).unwrap().is_none());
                c.check_stored().unwrap();
            }
        }
    }

    #[test]
    fn a_copy_that_was_refused_is_none_that_was_not() {
        let accepted = build(b"abc", Codec::Lz4);
        let writer = ContainerWriter::new(Vec::new(), Kind::Segment, Codec::Lz4).unwrap();
        let mut writer = writer.refused();
        writer.write(b"abc").unwrap();
        let refused = writer.finish(&identity(b"abc"), Vec::new()).unwrap();
        let folder = "clusters/conflicts/7";
        let [own, conflict] = ["wal/00000001/00000000/x", "conflicts/x-0123456789abcdef"]
            .map(|key| Key::new(format!("{folder}/{key}")).unwrap());
        for (bytes, is_refused) in [(accepted, false), (refused, true)] {
            let object = || Box::new(Memory(bytes.clone()));
            let opened = [
                (Container::open(object()), false),
                (Container::open_under(&own, object()), false),
                (Container::open_under(&conflict, object()), true),
            ];
            for (opened, is_its_place) in opened {
                match is_refused == is_its_place {
                    true => assert_eq!(opened.unwrap().read_small(10).unwrap(), b"abc"),
                    false => assert_eq!(opened.err().unwrap().code(), Code::Damaged),
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let raw = raw(3000);
        let good = build(&raw, Codec::Lz4);
        let read = |bytes: Vec<u8>| -> Result<()> {
            let c = Container::open(Box::new(Memory(bytes)))?;
            c.check_stored()?;
            assert_eq!(c.read_small(1 << 20)?, raw);
            Ok(())
        };
        read(good.clone()).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(bad).is_err(), "bit {bit}");
        }
        for n in 0..good.len() {
            assert!(read(good[..n].to_vec()).is_err(), "cut at {n}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(read(longer).is_err());
    }
}
