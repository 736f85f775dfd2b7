//! The bytes that are stored of a segment, whole or in increments, and single records in them.

use super::feeder::Feeder;
use super::increment::{self, OpenSegment};
use super::increments::Run;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::reader::{Finding, Sink};
use crate::pg::record::Record;
use crate::pg::segment::SegmentNumber;
use crate::repo::container::{Container, Kind};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::wal_proof::{Prefix, RawHash};

/// The stored WAL of a segment.
pub enum StoredWal {
    /// All of it.
    Whole(Box<Container>),
    /// Increments.
    Run(Run),
}

impl StoredWal {
    /// Opens what is stored; `None` when nothing is that begins with the segment.
    ///
    /// # Errors
    /// `Damaged` when it is another file; what the store says.
    pub fn open(
        repository: &Repository,
        layout: &ClusterLayout,
        segment: &OpenSegment,
    ) -> Result<Option<StoredWal>> {
        let name = segment.name;
        let Some(object) = repository.store().open(&layout.segment(name))? else {
            let listed = increment::list(repository, layout, name)?;
            return Ok(Run::of(*segment, &listed)?.map(StoredWal::Run));
        };
        let container =
            Container::open(object).map_err(|e| e.context(format!("open segment \"{name}\"")))?;
        match container.is_stored_as(Kind::Segment, name, layout.system_identifier()) {
            true => Ok(Some(StoredWal::Whole(Box::new(container)))),
            false => Err(err!(Damaged, "segment \"{name}\" is another file")),
        }
    }

    /// Streams its bytes.
    ///
    /// # Errors
    /// `Damaged`; `Key` where it cannot be read for want of a key; what `sink` returns.
    pub fn read(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match self {
            StoredWal::Whole(container) => container.read_body(sink),
            StoredWal::Run(run) => run.read(repository, layout, sink),
        }
    }

    /// The hash of its first bytes; `None` when there are not so many.
    ///
    /// # Errors
    /// As [`StoredWal::read`].
    pub fn prefix(
        &self,
        repository: &Repository,
        layout: &ClusterLayout,
        length_bytes: u64,
    ) -> Result<Option<RawHash>> {
        let mut prefix = Prefix::new(length_bytes);
        self.read(repository, layout, &mut |piece| {
            prefix.update(piece);
            Ok(())
        })?;
        Ok(prefix.finish())
    }
}

/// Returns whether the first bytes of a segment's stored WAL have this hash. WAL that is not stored so far, is damaged,
/// or cannot be read for want of a key has every hash.
///
/// # Errors
/// Errors of the store.
pub fn has_prefix(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    (length_bytes, hash): (u64, RawHash),
) -> Result<bool> {
    let known = is_prefix(repository, layout, segment, (length_bytes, hash))?;
    Ok(known.unwrap_or(true))
}

/// Whether the first bytes of a segment's stored WAL have this hash; `None` where nothing tells: see [`has_prefix`].
///
/// # Errors
/// Errors of the store.
pub fn is_prefix(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    (length_bytes, hash): (u64, RawHash),
) -> Result<Option<bool>> {
    match stored_prefix(repository, layout, segment, length_bytes) {
        Err(e) if e.is_damage() || e.code() == Code::Key => Ok(None),
        found => Ok(found?.map(|found| found == hash)),
    }
}

/// Whether the first bytes of what is stored of a segment surely have this hash; `false` also where nothing is stored.
///
/// # Errors
/// Errors of the store; `Damaged`, `Key`.
pub fn has_surely_prefix(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    (length_bytes, hash): (u64, RawHash),
) -> Result<bool> {
    Ok(stored_prefix(repository, layout, segment, length_bytes)? == Some(hash))
}

/// The hash of the first bytes of a segment; `None` where not so many are stored.
fn stored_prefix(
    repository: &Repository,
    layout: &ClusterLayout,
    segment: &OpenSegment,
    length_bytes: u64,
) -> Result<Option<RawHash>> {
    match StoredWal::open(repository, layout, segment)? {
        Some(stored) => stored.prefix(repository, layout, length_bytes),
        None => Ok(None),
    }
}

/// Looks through records until the one that is wanted was seen.
struct Search<'a> {
    is_wanted: &'a mut dyn FnMut(&Record<'_>) -> bool,
    is_found: bool,
    is_over: bool,
}

impl Sink for Search<'_> {
    fn record(&mut self, record: &Record<'_>) {
        if !self.is_over {
            self.is_found = (self.is_wanted)(record);
            self.is_over = self.is_found;
        }
    }

    fn finding(&mut self, _: Finding) {
        self.is_over = true;
    }
}

/// Looks for a record in stored WAL, from the start of a segment on, through to segment `last`. Returns whether `is_wanted` said yes.
///
/// # Errors
/// As [`StoredWal::read`].
pub fn find_record(
    repository: &Repository,
    layout: &ClusterLayout,
    from: &OpenSegment,
    last: SegmentNumber,
    is_wanted: &mut dyn FnMut(&Record<'_>) -> bool,
) -> Result<bool> {
    let mut search = Search {
        is_wanted,
        is_found: false,
        is_over: false,
    };
    let mut feeder = Feeder::default();
    let first = from.name.number(from.size)?;
    for number in first.0..=last.0 {
        let Some(name) = SegmentNumber(number).name(from.name.timeline, from.size) else {
            break;
        };
        let segment = OpenSegment { name, ..*from };
        let Some(stored) = StoredWal::open(repository, layout, &segment)? else {
            break;
        };
        feeder.begin(name, SegmentNumber(number).start_lsn(from.size));
        let mut feed = |piece: &[u8]| {
            feeder.feed(piece, &mut search)?;
            match search.is_over {
                true => Err(err!(Interrupted, "enough")),
                false => Ok(()),
            }
        };
        let read = stored.read(repository, layout, &mut feed);
        // The last page of increments is rarely whole.
        let read = read.and_then(|()| match &stored {
            StoredWal::Whole(_) => Ok(()),
            StoredWal::Run(run) => feed(&vec![0; run.missing_of_page()]),
        });
        match read {
            Err(e) if e.code() == Code::Interrupted && search.is_over => break,
            Err(e) => return Err(Error::context(e, format!("segment \"{name}\""))),
            Ok(()) => {
                feeder.finish();
            }
        }
    }
    Ok(search.is_found)
}
