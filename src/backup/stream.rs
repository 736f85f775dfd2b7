//! Receives the stream of a base backup: files go to the snapshot, each checked against the server's manifest at the end.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::thread::{Scope, ScopedJoinHandle};

use bytes::Bytes;

use super::beside::{Beside, Compared};
use super::incremental::prior::Shape;
use super::producer::{Damage, Produced, Producer, Watch, Work};
use super::rate::Rate;
use super::seen::{QUEUED_PIECES, Seen};
use super::source::{ServerFacts, Source};
use crate::archive::left_out::{self, MARKER};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::pg::control::{self, CONTROL_FILE_SIZE, ControlFile};
use crate::pg::label::BackupLabel;
use crate::pg::manifest::ManifestEnd;
use crate::progress::Progress;
use crate::repo::container::{Codec, ContainerWriter, Identity, Kind};
use crate::repo::root::cluster::Method;
use crate::snapshot::byte_queue::byte_queue;
use crate::snapshot::filekey::{ClusterNaming, FileKey};
use crate::snapshot::layer::Metadata;
use crate::snapshot::sink::FileSink;
use crate::store::NewObject;
use crate::wire::basebackup::{BackupEnd, BackupEvent, BackupStart};
use crate::wire::tar::{TarEntry, TarKind};

const LABEL: &[u8] = b"backup_label";
const CONTROL: &[u8] = b"global/pg_control";
/// Files that are kept while they pass are never larger.
const KEPT_BYTES: u64 = 1 << 20;

/// The files as the server streams them.
#[derive(Default)]
pub struct Streamed {
    shape: Option<Shape>,
}

impl Producer for Streamed {
    fn method(&self) -> Method {
        Method::Stream
    }

    fn prepare(&mut self, source: &mut dyn Source, facts: &ServerFacts) -> Result<()> {
        // Without a session for SQL there is a full backup.
        self.shape = shape(source, facts).ok();
        Ok(())
    }

    fn shape(&self) -> std::result::Result<Shape, String> {
        self.shape.ok_or_else(|| {
            "the server does not tell what its pages depend on: an incremental needs a session for SQL besides replication, with pg_control_init()".to_owned()
        })
    }

    fn produce(&mut self, source: &mut dyn Source, work: Work<'_, '_, '_>) -> Result<Produced> {
        source.begin(work.request)?;
        let object = work.store.create(&work.layout.server_manifest(work.id))?;
        let (scratch, progress) = (&work.host.scratch, work.host.progress.as_ref());
        let mut receiver = Receiver::new(
            work.threads,
            work.writer.sink(),
            work.naming,
            (work.host, work.rate),
            object,
        )?;
        let prior = work.prior;
        receiver.beside = prior.map(|prior| Beside::new(prior, scratch, progress));
        receiver.run(source, work.watch)
    }
}

/// Asks the server what the pages of its files depend on.
fn shape(source: &mut dyn Source, facts: &ServerFacts) -> Result<Shape> {
    let rows = source.query(
        "select database_block_size, blocks_per_segment, data_page_checksum_version from pg_control_init()",
    )?;
    let checksum_version: u32 = rows.value(0, 2)?;
    Ok(Shape {
        catalog_version: facts.catalog_version,
        block_size_bytes: rows.value(0, 0)?,
        segment_size_bytes: facts.segment_size.bytes(),
        relation_segment_blocks: rows.value(0, 1)?,
        data_checksums: control::are_checksums_on(checksum_version),
    })
}

/// The server's manifest: complete, compared with what arrived, not yet visible.
pub struct ReceivedManifest {
    writer: ContainerWriter<Box<dyn NewObject>>,
    /// BLAKE3 of its raw bytes.
    pub hash: blake3::Hash,
    /// Its length.
    pub raw_bytes: u64,
    /// Facts that the manifest's end gives about the whole.
    pub end: ManifestEnd,
}

impl ReceivedManifest {
    /// Completes the container.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(self, control: &ControlFile, timeline: u32) -> Result<Box<dyn NewObject>> {
        let identity = Identity {
            hash: self.hash.into(),
            raw_bytes: self.raw_bytes,
            system_identifier: control.system_identifier,
            timeline,
            major: control.major.number(),
            segment_size_bytes: control.wal_segment_size.bytes(),
            name: "backup_manifest".into(),
            from_lsn: 0,
            to_lsn: 0,
        };
        self.writer
            .complete(&identity, Vec::new())
            .map_err(|e| Error::from_io("write the server's manifest", e))
    }
}

/// Receives the stream.
struct Receiver<'r, 'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    sink: FileSink<'scope>,
    naming: ClusterNaming,
    progress: &'r dyn Progress,
    /// The server keeps the operator's own limit; this one may be lower.
    rate: &'r Rate,
    stop: &'r AtomicBool,
    start: Option<BackupStart>,
    seen: Option<Seen>,
    /// The prior's files, for an incremental.
    beside: Option<Beside<'r>>,
    file: Option<Arriving>,
    label: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    marker: Option<Vec<u8>>,
    /// Databases of which a relation arrived.
    databases: BTreeSet<u32>,
    /// The databases whose version files say that they have no content.
    closed: BTreeSet<u32>,
    manifest: Option<ArrivingManifest<'scope>>,
    manifest_object: Option<Box<dyn NewObject>>,
}

/// A file on its way.
struct Arriving {
    path: Vec<u8>,
    mode: u32,
    mtime: i64,
    crc: u32,
    kept: Option<Vec<u8>>,
    /// The prior's pages of it.
    compared: Option<Compared>,
}

/// The manifest on its way: into the repository, and to the thread that compares it.
struct ArrivingManifest<'scope> {
    writer: ContainerWriter<Box<dyn NewObject>>,
    hasher: blake3::Hasher,
    raw_bytes: u64,
    queue: SyncSender<Bytes>,
    compared: ScopedJoinHandle<'scope, Result<ManifestEnd>>,
}

impl<'r, 'scope, 'env> Receiver<'r, 'scope, 'env> {
    /// Prepares to receive; `manifest_object` takes the server's manifest.
    ///
    /// # Errors
    /// Those of the filesystem of the host's scratch directory.
    fn new(
        scope: &'scope Scope<'scope, 'env>,
        sink: FileSink<'scope>,
        naming: ClusterNaming,
        (host, rate): (&'r Host, &'r Rate),
        manifest_object: Box<dyn NewObject>,
    ) -> Result<Self> {
        Ok(Receiver {
            scope,
            sink,
            naming,
            progress: host.progress.as_ref(),
            rate,
            stop: &host.stop,
            start: None,
            seen: Some(Seen::new(&host.scratch)?),
            beside: None,
            file: None,
            label: None,
            control: None,
            marker: None,
            databases: BTreeSet::new(),
            closed: BTreeSet::new(),
            manifest: None,
            manifest_object: Some(manifest_object),
        })
    }

    /// Receives until the server has said that the backup is complete.
    ///
    /// # Errors
    /// Those of the source; `Damaged` when what arrived is not what the manifest lists; what writing packs says.
    fn run(mut self, source: &mut dyn Source, watch: &mut dyn Watch) -> Result<Produced> {
        loop {
            match source.next_event(&mut || watch.tick())? {
                Some(BackupEvent::Begin(start)) => {
                    watch.began(&start)?;
                    let total = start.size_kib().map(|kib| kib.saturating_mul(1024));
                    self.progress.phase("copy", total);
                    self.start = Some(start);
                }
                Some(BackupEvent::Archive { .. }) => {}
                Some(BackupEvent::Entry(entry)) => self.entry(entry)?,
                Some(BackupEvent::Data(data)) => {
                    source.keep_wal(false);
                    self.data(&data)?;
                }
                Some(BackupEvent::EntryEnd) => self.entry_end()?,
                Some(BackupEvent::Manifest(piece)) => self.manifest(piece)?,
                Some(BackupEvent::End(end)) => return self.end(end),
                None => {
                    return Err(err!(Server, "the backup ended without the server's word"));
                }
            }
        }
    }

    fn entry(&mut self, entry: TarEntry) -> Result<()> {
        let key = FileKey::from_path(&entry.path, &self.naming)?;
        match entry.kind {
            TarKind::Directory => {
                let (mode, mtime) = (entry.mode & 0o7777, entry.mtime);
                let now = Metadata::Directory { mode, mtime };
                match self.has_changed(&key, &now)? {
                    true => self.sink.directory(&key, mode, mtime),
                    false => Ok(()),
                }
            }
            TarKind::Symlink { target } => {
                let now = Metadata::Symlink {
                    target: target.clone(),
                };
                match self.has_changed(&key, &now)? {
                    true => self.sink.symlink(&key, &target),
                    false => Ok(()),
                }
            }
            TarKind::File { size } => {
                let compared = match &mut self.beside {
                    Some(beside) => beside.file(&key, size, &mut self.sink)?,
                    None => None,
                };
                let path = entry.path.as_slice();
                let keep = [LABEL, CONTROL, MARKER.as_bytes()].contains(&path)
                    || path.ends_with(b"/PG_VERSION");
                self.databases.extend(key.relation().map(|r| r.database));
                self.file = Some(Arriving {
                    kept: (keep && size <= KEPT_BYTES).then(Vec::new),
                    path: entry.path,
                    mode: entry.mode,
                    mtime: entry.mtime,
                    crc: 0,
                    compared,
                });
                self.sink.begin(key)
            }
        }
    }

    /// Whether a directory or link is to be recorded: in a full backup each is.
    fn has_changed(&mut self, key: &FileKey, now: &Metadata) -> Result<bool> {
        self.beside
            .as_mut()
            .map_or(Ok(true), |beside| beside.has_changed(key, now))
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        let file = self
            .file
            .as_mut()
            .ok_or_else(|| err!(Server, "content arrived that belongs to no file"))?;
        file.crc = crc32c::crc32c_append(file.crc, data);
        if let Some(kept) = &mut file.kept {
            kept.extend_from_slice(data);
        }
        match &mut file.compared {
            Some(compared) => compared.append(data, &mut self.sink)?,
            None => self.sink.append(data)?,
        }
        self.progress.advance(data.len() as u64);
        self.rate.take(data.len(), self.stop);
        Ok(())
    }

    fn entry_end(&mut self) -> Result<()> {
        let (Some(mut file), Some(seen)) = (self.file.take(), &mut self.seen) else {
            return Err(err!(Server, "a file ended that did not begin"));
        };
        let length = match file.compared.take() {
            Some(compared) => compared.end(file.mode, file.mtime, &mut self.sink)?,
            None => self.sink.end(file.mode, file.mtime)?,
        };
        seen.add(&file.path, length, file.crc)?;
        match file.path.as_slice() {
            LABEL => self.label = file.kept,
            CONTROL => self.control = file.kept,
            path if path == MARKER.as_bytes() => self.marker = Some(file.kept.unwrap_or_default()),
            path => {
                let content = file.kept.unwrap_or_default();
                self.closed.extend(left_out::closed(path, &content));
            }
        }
        Ok(())
    }

    fn manifest(&mut self, piece: Bytes) -> Result<()> {
        let failed = |e| Error::from_io("write the server's manifest", e);
        let manifest = match self.manifest.take() {
            Some(manifest) => manifest,
            None => {
                let (Some(seen), Some(object)) = (self.seen.take(), self.manifest_object.take())
                else {
                    return Err(err!(Server, "the server sent two manifests"));
                };
                let expected = seen.rewind()?;
                let (queue, input) = byte_queue(QUEUED_PIECES);
                ArrivingManifest {
                    writer: ContainerWriter::new(object, Kind::ServerManifest, Codec::Lz4)
                        .map_err(failed)?,
                    hasher: blake3::Hasher::new(),
                    raw_bytes: 0,
                    queue,
                    compared: self.scope.spawn(move || expected.compare(input)),
                }
            }
        };
        let manifest = self.manifest.insert(manifest);
        manifest.writer.write(&piece).map_err(failed)?;
        manifest.hasher.update(&piece);
        manifest.raw_bytes += piece.len() as u64;
        // When the comparison has failed already, its error is read at the end.
        let _ = manifest.queue.send(piece);
        Ok(())
    }

    fn end(self, end: BackupEnd) -> Result<Produced> {
        let manifest = self
            .manifest
            .ok_or_else(|| err!(Server, "the server sent no manifest"))?;
        if let Some(beside) = self.beside {
            beside.finish(&self.naming, &self.sink)?;
        }
        self.sink.finish()?;
        drop(manifest.queue);
        let compared = manifest
            .compared
            .join()
            .map_err(|_| err!(Internal, "the thread that compares files panicked"))??;
        let missing = |what: &str| err!(Server, "the server sent no {what}");
        let label = self.label.ok_or_else(|| missing("backup_label"))?;
        let control = self.control.ok_or_else(|| missing("pg_control"))?;
        let start = self.start.ok_or_else(|| missing("start LSN"))?;
        let control = control.get(..CONTROL_FILE_SIZE).unwrap_or(&control);
        let marked = self.marker.as_deref().map(left_out::read).transpose()?;
        let mut left_out = marked.unwrap_or_default();
        left_out.retain(|database| self.databases.contains(&database.oid));
        let left_out = left_out::join(left_out, self.closed);
        Ok(Produced {
            start,
            end,
            label: BackupLabel::parse(&label)?,
            control: ControlFile::parse(control)?,
            manifest: Some(ReceivedManifest {
                writer: manifest.writer,
                hash: manifest.hasher.finalize(),
                raw_bytes: manifest.raw_bytes,
                end: compared,
            }),
            has_scanned: true,
            left_out,
            damage: Damage::default(),
        })
    }
}
