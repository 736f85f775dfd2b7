//! The WAL that a test crafts, stored as an archiver stores it.

use std::path::Path;

use super::index::{SegmentIndex, flag};
use super::indexer::Indexer;
use crate::pg::craft::Craft;
use crate::pg::segment::SegmentNumber;
use crate::pg::timeline::TimelineId;
use crate::repo::container::{Codec, ContainerWriter, Identity, Kind};
use crate::repo::crafted;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;

/// The size of its segments.
const SEGMENT: usize = 1 << 20;

/// A repository that holds the crafted WAL on timeline 1.
pub(crate) fn repository(dir: &Path, craft: &Craft) -> Repository {
    let (repository, _) = crafted::create(dir, craft);
    let mut bytes = craft.bytes.clone();
    bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
    for (n, segment) in bytes.chunks(SEGMENT).enumerate() {
        store_as(&repository, craft, (n as u64 + 1, segment), false);
    }
    repository
}

/// As a program stores it that can decode it, or cannot.
pub(crate) fn store_as(
    repository: &Repository,
    craft: &Craft,
    (number, segment): (u64, &[u8]),
    is_undecoded: bool,
) {
    let size = craft.identity.segment_size;
    let name = SegmentNumber(number).name(TimelineId::FIRST, size).unwrap();
    let system_identifier = craft.identity.system_identifier;
    let layout = ClusterLayout::new("main", system_identifier).unwrap();
    let start = SegmentNumber(number).start_lsn(size);
    let mut indexer = Indexer::new(&craft.identity, start, TimelineId::FIRST).unwrap();
    indexer.feed(segment).unwrap();
    let mut index = indexer.finish(false);
    if is_undecoded {
        index = SegmentIndex::nothing(start);
        index.summary.flags = flag::UNDECODED;
        (index.xids, index.events, index.blocks) = (None, None, None);
    }
    let object = repository.store().create(&layout.segment(name)).unwrap();
    let writer = ContainerWriter::new(object, Kind::Segment, Codec::Lz4).unwrap();
    let mut writer = writer.undecoded(is_undecoded);
    writer.write(segment).unwrap();
    let identity = Identity {
        hash: *blake3::hash(segment).as_bytes(),
        raw_bytes: segment.len() as u64,
        system_identifier,
        timeline: 1,
        major: craft.identity.major.unwrap().number(),
        segment_size_bytes: size.bytes(),
        name: name.to_string(),
        from_lsn: start.0,
        to_lsn: start.0 + size.bytes(),
    };
    let object = writer.finish(&identity, index.sections(false)).unwrap();
    object.publish().unwrap();
}
