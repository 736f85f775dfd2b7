//! Maps as large clusters have them, with the layers of a chain and without content; and a store far away that counts what it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pitr::error::Result;
use pitr::pg::time::TimestampTz;
use pitr::repo::id::{BackupId, PartName};
use pitr::repo::root::{BackupKind, Head, LayerRef, Map, PackRef, Shard};
use pitr::repo::scope::Scope;
use pitr::snapshot::filekey::{ClusterNaming, FileKey, Naming};
use pitr::snapshot::layer::{LayerWriter, Metadata};
use pitr::snapshot::piece::{self, ENTRY_PIECES, Piece, Source};
use pitr::snapshot::reader::SnapshotRoot;
use pitr::store::ahead::Ahead;
use pitr::store::file::FileStore;
use pitr::store::{Key, Listed, Meta, NewObject, Object, Room, Store};

const PAGE: u64 = 8192;
/// Pages of a frame of a full backup.
const FRAME_PAGES: u64 = 128;
const NAMING: Naming = Naming::Cluster(ClusterNaming {
    major: 17,
    catalog_version: 202_406_281,
});
const SYSTEM_IDENTIFIER: u64 = 77;

/// The measures of a map.
pub struct Size {
    /// Shards.
    pub shards: u64,
    /// Backups of the chain: each has a layer in each shard.
    pub layers: u64,
    /// Files of a shard.
    pub files: u64,
    /// Pages of a file.
    pub pages: u64,
    /// Pages of a file that each incremental changes.
    pub changed: u64,
}

/// A map that was made.
pub struct Made {
    head: Head,
    map: Map,
    size: Size,
}

impl Made {
    /// Writes the layers of a map.
    pub fn write(store: &dyn Store, size: Size) -> Made {
        let files = size.shards * size.files;
        let mut made = Made {
            head: Head {
                id: id(size.layers - 1),
                nonce: String::new(),
                backup_kind: BackupKind::Incremental,
                prior: None,
                label: String::new(),
                start_time: TimestampTz(0),
                stop_time: TimestampTz(0),
                file_count: files,
                size_bytes: files * size.pages * PAGE,
                stored_bytes: 0,
                program: String::new(),
                features: Vec::new(),
            },
            map: Map {
                shards: Vec::new(),
                packs: (0..size.layers).map(pack).collect(),
            },
            size,
        };
        for shard in 0..made.size.shards {
            let layers = (0..made.size.layers).map(|layer| made.layer(store, shard, layer));
            let layers = layers.collect();
            let first = made.key(shard * made.size.files);
            made.map.shards.push(Shard {
                first_key: match shard {
                    0 => String::new(),
                    _ => pitr::text::hex(first.as_bytes()),
                },
                layers,
            });
        }
        made
    }

    pub fn scope() -> Scope {
        Scope::cluster("main", SYSTEM_IDENTIFIER).unwrap()
    }

    pub fn root(&self) -> SnapshotRoot<'_> {
        SnapshotRoot {
            head: &self.head,
            map: &self.map,
            naming: NAMING,
        }
    }

    pub fn files(&self) -> u64 {
        self.head.file_count
    }

    #[allow(
        dead_code,
        reason = "the program in benches needs it, the tests do not"
    )]
    pub fn size_bytes(&self) -> u64 {
        self.head.size_bytes
    }

    /// Head and map, for another process.
    #[allow(
        dead_code,
        reason = "the program in benches needs it, the tests do not"
    )]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&(&self.head, &self.map)).unwrap()
    }

    /// Reads what [`Made::encode`] wrote.
    #[allow(
        dead_code,
        reason = "the program in benches needs it, the tests do not"
    )]
    pub fn decode(bytes: &[u8], size: Size) -> serde_json::Result<Made> {
        let (head, map) = serde_json::from_slice(bytes)?;
        Ok(Made { head, map, size })
    }

    pub fn layers_bytes(&self) -> u64 {
        let layers = self.map.shards.iter().flat_map(|shard| &shard.layers);
        layers.map(|layer| layer.length).sum()
    }

    /// The key of the `n`th file, in the order of the map.
    pub fn key(&self, n: u64) -> FileKey {
        FileKey::from_path(format!("base/5/{}", 16384 + n).as_bytes(), NAMING).unwrap()
    }

    fn layer(&self, store: &dyn Store, shard: u64, layer: u64) -> LayerRef {
        let part = PartName {
            id: id(layer),
            number: u32::try_from(shard).unwrap(),
        };
        let object = store.create(&Made::scope().layer(&part)).unwrap();
        let mut writer = LayerWriter::new(object, &part, Made::scope().tag()).unwrap();
        writer.add_pack(&pack(layer).key, &[0; 32]);
        let length = self.size.pages * PAGE;
        for n in shard * self.size.files..(shard + 1) * self.size.files {
            let file = self.key(n);
            let metadata = Metadata::File {
                mode: 0o600,
                mtime: 1_800_000_000 + i64::try_from(n % 1000).unwrap(),
                length,
            };
            let (kind, value) = metadata.encode();
            writer.push(&file.metadata_entry(), kind, &value).unwrap();
            for entry in self.pieces(n, layer).chunks(ENTRY_PIECES) {
                let at = entry[0].position;
                let value = piece::encode(at, entry, true);
                let kind = pitr::snapshot::layer::EntryKind::Extents;
                writer.push(&file.extents_entry(at), kind, &value).unwrap();
            }
            writer.count_file(length);
        }
        let (object, summary) = writer.finish().unwrap();
        object.publish().unwrap();
        LayerRef {
            key: part,
            offset: 0,
            length: summary.length,
            hash: pitr::text::hex(&summary.hash),
        }
    }

    fn pieces(&self, n: u64, layer: u64) -> Vec<Piece> {
        let frame = u32::try_from(n * self.size.pages / FRAME_PAGES).unwrap();
        let piece = |page: u64, pages: u64, frame: u32, offset: u64| Piece {
            position: page * PAGE,
            length: pages * PAGE,
            source: Source::Frame {
                pack: 0,
                frame,
                offset: u32::try_from(offset * PAGE).unwrap(),
            },
        };
        if layer == 0 {
            let frames = (0..self.size.pages).step_by(usize::try_from(FRAME_PAGES).unwrap());
            let whole = frames.zip(frame..).map(|(page, frame)| {
                let pages = FRAME_PAGES.min(self.size.pages - page);
                piece(page, pages, frame, 0)
            });
            return whole.collect();
        }
        let step = self.size.pages / self.size.changed;
        let changed = (0..self.size.changed).map(|i| {
            let frame = u32::try_from((n * self.size.changed + i) / 16).unwrap();
            let page = i * step + scattered((n << 40) + (layer << 30) + i, step);
            piece(page, 1, frame, i % 16)
        });
        changed.collect()
    }
}

/// A number that looks random, below `end`.
pub fn scattered(n: u64, end: u64) -> u64 {
    let mixed = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) % end
}

fn id(layer: u64) -> BackupId {
    let kind = if layer == 0 { "full" } else { "incr" };
    let (day, hour) = (1 + layer / 24, layer % 24);
    format!("202611{day:02}T{hour:02}0000Z-{kind}")
        .parse()
        .unwrap()
}

fn pack(layer: u64) -> PackRef {
    PackRef {
        key: PartName {
            id: id(layer),
            number: 0,
        },
        size_bytes: 1 << 20,
        live_frames: 1,
        live_bytes: 1,
        all_frames: None,
        all_bytes: None,
    }
}

/// The questions to a store.
#[derive(Default)]
pub struct Counts {
    /// Requests: each reads a range of an object.
    pub requests: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Objects that are open, and the most that were.
    pub open: AtomicU64,
    pub most_open: AtomicU64,
}

impl Counts {
    /// Requests and bytes since this was asked last.
    pub fn take(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&self.requests), take(&self.bytes))
    }
}

/// A directory that is read as a bucket is: an object's end when it is opened, and then ranges, by the same reader.
pub struct Distant {
    pub inner: FileStore,
    pub counts: Arc<Counts>,
    /// The time of each request.
    pub latency: Duration,
    pub is_remote: bool,
}

struct DistantObject {
    inner: Box<dyn Object>,
    key: Key,
    counts: Arc<Counts>,
    latency: Duration,
    ahead: Option<Ahead>,
}

impl DistantObject {
    fn fetch(&self, from: u64, bytes: u64) -> Result<Bytes> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        std::thread::sleep(self.latency);
        let mut buffer = vec![0; usize::try_from(bytes).unwrap()];
        self.inner.read_at(&mut buffer, from)?;
        Ok(buffer.into())
    }
}

impl Drop for DistantObject {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Object for DistantObject {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match &self.ahead {
            Some(ahead) => ahead.read_at(&self.key, buffer, offset, |from, bytes| {
                self.fetch(from, bytes)
            }),
            None => {
                let bytes = self.fetch(offset, buffer.len() as u64)?;
                buffer.copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    fn settle(&self) -> Result<()> {
        self.inner.settle()
    }
}

impl Store for Distant {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let Some(inner) = self.inner.open(key)? else {
            return Ok(None);
        };
        let open = self.counts.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.most_open.fetch_max(open, Ordering::Relaxed);
        let mut object = DistantObject {
            inner,
            key: key.clone(),
            counts: Arc::clone(&self.counts),
            latency: self.latency,
            ahead: None,
        };
        if self.is_remote {
            let size = object.size_bytes();
            let tail_at = size.saturating_sub(pitr::store::ahead::TAIL_BYTES);
            let tail = object.fetch(tail_at, size - tail_at)?;
            object.ahead = Some(Ahead::new(size, tail_at, tail));
        }
        Ok(Some(Box::new(object)))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.inner.create(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.inner.list(prefix)
    }

    fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.inner.head(key)
    }

    fn delete(&self, key: &Key) -> Result<bool> {
        self.inner.delete(key)
    }

    fn is_remote(&self) -> bool {
        self.is_remote
    }

    fn room(&self) -> Result<Option<Room>> {
        self.inner.room()
    }
}
