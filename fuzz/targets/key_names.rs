//! Names out of listings and directories: each has one spelling, and reading it back gives the same.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use pitr::config::{self};
use pitr::pg::lsn::Lsn;
use pitr::pg::manifest::is_safe_relative_path;
use pitr::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use pitr::pg::timeline::TimelineId;
use pitr::repo::id::{BackupId, PartName};
use pitr::repo::layout::ClusterLayout;
use pitr::repo::scope::is_scope_name;
use pitr::snapshot::filekey::{ClusterNaming, FileKey, Naming, split_entry};
use pitr::store::Key;
use pitr_fuzz::{Input, SYSTEM_IDENTIFIER, within};

const CEILING: usize = 8 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let cluster = ClusterNaming {
        major: input.major().number(),
        catalog_version: 202_406_281,
    };
    let (bits, at) = (input.choice(11), Lsn(input.u64()));
    let size = SegmentSize::new(1 << (20 + bits)).unwrap();
    for naming in [Naming::Cluster(cluster), Naming::Tree] {
        paths(input.rest(), naming);
    }
    arithmetic(at, size);
    let Ok(text) = std::str::from_utf8(input.rest()) else {
        return;
    };
    let layout = ClusterLayout::new("main", SYSTEM_IDENTIFIER).unwrap();
    exact::<SegmentName>(text);
    exact::<TimelineId>(text);
    if let Some(name) = exact::<WalFileName>(text) {
        let key = layout.wal_file(name);
        assert!(Key::new(key.as_str()).is_ok());
        assert!(Key::new(layout.conflict(name, &[0xAB; 32]).as_str()).is_ok());
    }
    if let Some(id) = exact::<BackupId>(text) {
        assert!(Key::new(layout.manifest(&id).as_str()).is_ok());
    }
    if let Some(part) = exact::<PartName>(text) {
        assert!(Key::new(layout.pack(&part).as_str()).is_ok());
    }
    if let Ok(key) = Key::new(text) {
        assert_eq!(key.as_str(), text);
        assert!(
            is_safe_relative_path(text.as_bytes()),
            "no key leaves the repository"
        );
        assert!(text.ends_with(key.name()));
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
    }
    if let Ok(timeline) = TimelineId::from_decimal(text) {
        assert_eq!(
            TimelineId::from_decimal(&timeline.decimal().to_string()).unwrap(),
            timeline
        );
    }
    if is_scope_name(text) {
        ClusterLayout::new(text, 1).unwrap();
    }
    let _ = layout.event(text, "begin");
    let _ = config::nearest(text, ["backup", "restore"].into_iter());
}

/// The only spelling: what is read prints as it was written.
fn exact<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let read: T = text.parse().ok()?;
    assert_eq!(read.to_string(), text);
    Some(read)
}

fn paths(path: &[u8], naming: Naming) {
    if let Ok(key) = FileKey::from_path(path, naming) {
        assert_eq!(key.path(naming), path);
        assert_eq!(FileKey::decode(key.as_bytes(), naming).unwrap(), key);
        let (file, _) = split_entry(&key.extents_entry(8192), naming).unwrap();
        assert_eq!(file, key);
    }
    if let Ok(key) = FileKey::decode(path, naming)
        && !key.is_attachment()
    {
        assert_eq!(FileKey::from_path(&key.path(naming), naming).unwrap(), key);
    }
    let _ = split_entry(path, naming);
}

fn arithmetic(at: Lsn, size: SegmentSize) {
    let number = SegmentNumber::of(at, size);
    let name = SegmentName::of(TimelineId::FIRST, at, size);
    assert_eq!(name.number(size).unwrap(), number);
    assert!(name.start_lsn(size).unwrap() <= at);
    if let Some(next) = name.next(size) {
        assert!(next.start_lsn(size).unwrap() > at);
    }
    assert!(
        name.next(size).is_none_or(|next| next > name),
        "names sort as positions do"
    );
}
