//! Segment objects around an index.

use pitr::pg::lsn::Lsn;
use pitr::repo::container::{Codec, Container, ContainerWriter, Identity, Kind, Section};
use pitr::wal::index::{self, SegmentIndex};

use crate::{Memory, SYSTEM_IDENTIFIER};

/// Who the content `raw` of an object is.
pub fn identity(raw: &[u8]) -> Identity {
    Identity {
        hash: *blake3::hash(raw).as_bytes(),
        raw_bytes: raw.len() as u64,
        system_identifier: SYSTEM_IDENTIFIER,
        timeline: 1,
        major: 17,
        segment_size_bytes: 1 << 20,
        name: "000000010000000000000001".to_owned(),
        from_lsn: 1 << 20,
        to_lsn: 2 << 20,
    }
}

/// A segment object with these sections.
pub fn object(raw: &[u8], codec: Codec, sections: Vec<Section>) -> Vec<u8> {
    let mut writer = ContainerWriter::new(Vec::new(), Kind::Segment, codec).unwrap();
    writer.write(raw).unwrap();
    writer.finish(&identity(raw), sections).unwrap()
}

/// Checks that an index is read back as it was written.
pub fn check_index(made: &SegmentIndex) {
    let bytes = object(b"", Codec::Lz4, made.sections(false));
    let container = Container::open(Memory::boxed(&bytes)).unwrap();
    container.check_stored().unwrap();
    let summary = index::read_summary(&container).unwrap();
    assert_eq!(summary, made.summary);
    assert_eq!(index::read_fragments(&container).unwrap(), made.fragments);
    assert_eq!(index::read_damage(&container).unwrap(), made.damage);
    same(index::read_xids(&container).unwrap(), &made.xids);
    same(index::read_blocks(&container).unwrap(), &made.blocks);
    let start: Lsn = summary.start_lsn;
    same(index::read_events(&container, start).unwrap(), &made.events);
}

/// A section above its limit is written as not recorded.
fn same<T: PartialEq + std::fmt::Debug>(read: Option<T>, made: &Option<T>) {
    if read.is_some() {
        assert_eq!(&read, made);
    }
}
