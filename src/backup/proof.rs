//! Proves that the WAL in the repository is that of the backup's own server, before the root is written.
//!
//! Another server with the same system identifier, a clone or this machine before it was set back to a snapshot, may have archived
//! other WAL under the names that the backup needs.

use std::collections::BTreeMap;

use super::source::Source;
use super::wal::Needed;
use super::witness::{Heard, Question, Witness};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::record::Record;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::xlog::{self, XlogRecord};
use crate::progress::Progress;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::wal_proof::{CheckpointMark, FirstSegment, LastSegment, RawHash, WalProof};
use crate::wal::increment::OpenSegment;
use crate::wal::stored_wal::{StoredWal, find_record};

/// Whether a stored segment is the server's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It is.
    Proven,
    /// The server does not say, for this reason; it may later.
    NotHad(String),
}

/// Records that the WAL of a backup must hold.
#[derive(Debug, Clone, Copy)]
pub struct Landmarks {
    /// The checkpoint of the backup's label.
    pub checkpoint: Lsn,
    /// The checkpoint that the copied pg_control points to, and its redo point.
    pub control: (Lsn, Lsn),
    /// Whether the server was in recovery: then it has written no record of the backup's end.
    pub from_standby: bool,
}

/// Compares stored WAL with the server's own.
pub struct Prover<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    major: u32,
    needed: Needed,
    witness: Witness,
    progress: &'a dyn Progress,
    first: Option<RawHash>,
    last: Option<(RawHash, Option<RawHash>)>,
    /// Segments between, of which another copy was refused.
    between: BTreeMap<SegmentName, Question>,
}

impl<'a> Prover<'a> {
    /// Asks the server for what it has only now.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn new(
        (repository, layout): (&'a Repository, &'a ClusterLayout),
        major: u32,
        needed: Needed,
        witness: Witness,
        source: &mut dyn Source,
        progress: &'a dyn Progress,
    ) -> Result<Prover<'a>> {
        let mut prover = Prover {
            repository,
            layout,
            major,
            needed,
            witness,
            progress,
            first: None,
            last: None,
            between: BTreeMap::new(),
        };
        prover.witness.last(source)?;
        Ok(prover)
    }

    fn segment(&self, name: SegmentName) -> OpenSegment {
        OpenSegment {
            name,
            size: self.needed.segment_size,
            major: self.major,
        }
    }

    fn ends(&self) -> Result<(SegmentName, SegmentName)> {
        let (first, last) = self.needed.bounds();
        Ok((self.needed.name(first)?, self.needed.name(last)?))
    }

    /// Compares a segment that is stored: the first whole, the last up to the stop LSN. Segments between them are not compared here.
    ///
    /// # Errors
    /// `Conflict` when another server wrote it; `Refused` when the server has it no more; what store and connection say.
    pub fn check(&mut self, name: SegmentName, source: &mut dyn Source) -> Result<Proof> {
        let (first, last) = self.ends()?;
        match name {
            _ if name == last => self.check_last(name, source),
            _ if name == first => self.check_first(name, source),
            _ => Ok(Proof::Proven),
        }
    }

    fn check_first(&mut self, name: SegmentName, source: &mut dyn Source) -> Result<Proof> {
        if self.first.is_some() {
            return Ok(Proof::Proven);
        }
        let heard = self.witness.first(source, self.progress)?;
        let hash = match self.told(name, heard)? {
            Ok(hash) => hash,
            Err(why) => return Ok(Proof::NotHad(why)),
        };
        match self.stored(name)? {
            Some(StoredWal::Whole(stored)) if stored.has_hash(&hash.0) => {}
            Some(StoredWal::Whole(_)) => return Err(self.foreign(name)),
            _ => return Ok(Proof::NotHad("it is not stored whole".into())),
        }
        self.first = Some(hash);
        Ok(Proof::Proven)
    }

    fn check_last(&mut self, name: SegmentName, source: &mut dyn Source) -> Result<Proof> {
        let Some(stored) = self.stored(name)? else {
            return Ok(Proof::NotHad("it is not stored".into()));
        };
        let heard = self.witness.last(source)?;
        let part = match self.told(name, heard)? {
            Ok(hash) => hash,
            Err(why) => return Ok(Proof::NotHad(why)),
        };
        let whole = match &stored {
            // Without a key its bytes cannot be read, and the whole segment must have the hash that the server's has.
            StoredWal::Whole(container) if container.is_opaque() => {
                let heard = self.witness.whole_last(source)?;
                match self.told(name, heard)? {
                    Ok(hash) if container.has_hash(&hash.0) => Some(hash),
                    Ok(_) => return Err(self.foreign(name)),
                    Err(why) => return Ok(Proof::NotHad(why)),
                }
            }
            _ => {
                let length = self.needed.last_length();
                let prefix = stored.prefix(self.repository, self.layout, length)?;
                if prefix != Some(part) {
                    return Err(self.foreign(name));
                }
                match &stored {
                    StoredWal::Whole(container) => Some(RawHash(container.identity().hash)),
                    StoredWal::Run(_) => None,
                }
            }
        };
        self.last = Some((part, whole));
        Ok(Proof::Proven)
    }

    fn stored(&self, name: SegmentName) -> Result<Option<StoredWal>> {
        StoredWal::open(self.repository, self.layout, &self.segment(name))
    }

    /// The server's answer, or why there is none yet.
    fn told(
        &self,
        name: SegmentName,
        heard: Heard<RawHash>,
    ) -> Result<std::result::Result<RawHash, String>> {
        match heard {
            Heard::Yes(hash) => Ok(Ok(hash)),
            Heard::NotYet(why) => Ok(Err(format!(
                "could not be compared with the server's own: {why}"
            ))),
            Heard::Gone(why) => Err(err!(
                Refused,
                "segment \"{name}\" could not be compared with the server's own, which the server has removed"
            )
            .source(err!(Gap, "{why}"))
            .hint("Nothing was committed: the segment in the repository may be another server's, such as a clone's.\nLet the server have one more connection for backups (max_wal_senders) and one more slot (max_replication_slots), or let it keep more WAL (wal_keep_size), and take the backup again.")),
        }
    }

    /// Compares each segment between the first and the last of which another copy was refused, whole.
    ///
    /// # Errors
    /// As [`Prover::check`].
    pub fn check_conflicts(&mut self, source: &mut dyn Source) -> Result<Proof> {
        self.find_conflicts()?;
        let mut proof = Proof::Proven;
        for name in self.between.keys().copied().collect::<Vec<_>>() {
            let Some(StoredWal::Whole(stored)) = self.stored(name)? else {
                continue;
            };
            let Some(question) = self.between.get_mut(&name) else {
                continue;
            };
            let heard = question.ask(source)?;
            match self.told(name, heard)? {
                Ok(hash) if stored.has_hash(&hash.0) => {}
                Ok(_) => return Err(self.foreign(name)),
                Err(why) => proof = Proof::NotHad(why),
            }
        }
        Ok(proof)
    }

    fn find_conflicts(&mut self) -> Result<()> {
        let (first, last) = self.ends()?;
        let size = self.needed.segment_size;
        for listed in self.repository.store().list(&self.layout.conflicts())? {
            let name = listed
                .name
                .rsplit_once('-')
                .and_then(|(name, _)| name.parse().ok());
            let Some(WalFileName::Segment(name)) = name else {
                continue;
            };
            let is_between = name.timeline == first.timeline && first < name && name < last;
            if is_between && !self.between.contains_key(&name) {
                let range = name.number(size)?.range(size);
                let question = Question::new(name.timeline, range);
                self.between.insert(name, question);
            }
        }
        Ok(())
    }

    fn foreign(&self, name: SegmentName) -> Error {
        err!(
            Conflict,
            "segment \"{name}\" in the repository is not this server's: another server of the same cluster wrote it"
        )
        .hint("Nothing was committed. A clone of this server archives into the repository, or this machine was set back to a snapshot, or a drill's copy was promoted with archiving on.\nSee the copies that were refused: pitr wal conflicts. Only one of these servers may archive under this cluster name: give the other one a name of its own (pitr init --cluster NAME).")
    }

    /// Returns the proof for the root, once everything was compared. The records that a restore begins and ends with must be there.
    ///
    /// # Errors
    /// `Conflict` when a record is not in the stored WAL; `Internal` when something was not compared; what the store says.
    pub fn finish(self, landmarks: &Landmarks) -> Result<WalProof> {
        let (first, last) = self.ends()?;
        let Some((hash, segment_hash)) = self.last else {
            return Err(err!(Internal, "segment \"{last}\" was not compared"));
        };
        if self.first.is_none() && first != last {
            return Err(err!(Internal, "segment \"{first}\" was not compared"));
        }
        let checkpoint = match self.landmarks(landmarks) {
            Ok(crc) => Some(CheckpointMark {
                lsn: landmarks.checkpoint,
                crc: format!("{crc:08x}"),
            }),
            // This host writes, and reads nothing.
            Err(e) if e.code() == Code::Key => None,
            Err(e) => return Err(e),
        };
        Ok(WalProof {
            first: FirstSegment {
                name: first,
                hash: self.first,
            },
            last: LastSegment {
                name: last,
                length_bytes: self.needed.last_length(),
                hash: Some(hash),
                segment_hash,
            },
            checkpoint,
        })
    }

    /// The CRC of the checkpoint from which a restore begins.
    fn landmarks(&self, landmarks: &Landmarks) -> Result<u32> {
        let crc = self.checkpoint(landmarks.checkpoint, self.needed.start_lsn)?;
        let (control, redo) = landmarks.control;
        if control != landmarks.checkpoint && control < self.needed.stop_lsn {
            self.checkpoint(control, redo)?;
        }
        if !landmarks.from_standby {
            self.backup_end()?;
        }
        Ok(crc)
    }

    fn checkpoint(&self, lsn: Lsn, redo: Lsn) -> Result<u32> {
        let mut crc = None;
        self.find(lsn, &mut |record| {
            let is_it = record.start_lsn == lsn
                && matches!(xlog_of(record), Some(XlogRecord::Checkpoint(c)) if c.checkpoint.redo == redo);
            crc = is_it.then_some(record.crc);
            is_it
        })?;
        crc.ok_or_else(|| self.lacking(lsn, "checkpoint record"))
    }

    fn backup_end(&self) -> Result<()> {
        let (start, stop) = (self.needed.start_lsn, self.needed.stop_lsn);
        // It may begin in the segment before.
        let from = Lsn(stop.0.saturating_sub(BACKUP_END_BYTES)).max(start);
        let is_found = self.find(from, &mut |record| {
            record.end_lsn == stop && xlog_of(record) == Some(XlogRecord::BackupEnd(start))
        })?;
        match is_found {
            true => Ok(()),
            false => Err(self.lacking(stop, "end of the backup")),
        }
    }

    fn find(&self, from: Lsn, is_wanted: &mut dyn FnMut(&Record<'_>) -> bool) -> Result<bool> {
        let size = self.needed.segment_size;
        let name = SegmentName::of(self.needed.timeline, from, size);
        let (_, last) = self.needed.bounds();
        let segment = self.segment(name);
        find_record(self.repository, self.layout, &segment, last, is_wanted)
    }

    fn lacking(&self, lsn: Lsn, what: &str) -> Error {
        err!(
            Conflict,
            "the WAL in the repository has no {what} at {lsn}, where the server wrote it"
        )
        .hint("Nothing was committed. The segment may be another server's, such as a clone's: see pitr wal conflicts, and pitr verify.")
    }
}

/// More than the record of a backup's end takes, with the page headers that may lie in it.
const BACKUP_END_BYTES: u64 = 128;

fn xlog_of<'r>(record: &Record<'r>) -> Option<XlogRecord<'r>> {
    let body = record.body().ok()?;
    xlog::decode(record, body.main_data).ok()?
}
