//! Facts about a cluster from its objects, where its registration (`cluster.json`) is lost: enough to read, not to
//! write.

use super::container::Container;
use super::id::BackupId;
use super::layout::ClusterLayout;
use super::repository::Registration;
use super::root::outline::Outline;
use crate::error::{Code, Error, Result};
use crate::pg::segment::SegmentName;
use crate::pg::time::TimestampTz;
use crate::store::{Key, Store};

/// Puts a registration together from a backup's root, else from a segment; `None` where neither is there.
///
/// # Errors
/// Errors of the store, apart from damage.
pub fn registration(store: &dyn Store, layout: &ClusterLayout) -> Result<Option<Registration>> {
    let of = |major, segment_size_bytes, first_seen| Registration {
        name: layout.name().to_owned(),
        system_identifier: layout.system_identifier(),
        major,
        segment_size_bytes,
        block_size_bytes: 8192,
        wal_block_size_bytes: 8192,
        first_seen,
        features: Vec::new(),
        is_lost: true,
    };
    for listed in store.list(&layout.backups())? {
        let Ok(id) = listed.name.parse::<BackupId>() else {
            continue;
        };
        let root = readable(Outline::read(store, layout, &id))?.flatten();
        if let Some(root) = root {
            // A segment tells the size where the root is sealed.
            if let Some(details) = root.details {
                let size = details.wal_segment_size_bytes;
                return Ok(Some(of(root.major, size, root.start_time)));
            }
        }
    }
    for name in segments(store, layout)? {
        let Some(object) = store.open(&name)? else {
            continue;
        };
        if let Some(container) = readable(Container::open(object))? {
            let identity = container.identity();
            let (major, size) = (identity.major, identity.segment_size_bytes);
            return Ok(Some(of(major, size, TimestampTz(0))));
        }
    }
    Ok(None)
}

/// The segments of the first directory of each timeline.
fn segments(store: &dyn Store, layout: &ClusterLayout) -> Result<Vec<Key>> {
    let mut names = Vec::new();
    for timeline in store.list(&layout.wal())? {
        let Ok(id) = timeline.name.parse() else {
            continue;
        };
        let prefix = layout.timeline(id);
        let logs = store.list(&prefix)?;
        let log = logs.iter().find(|l| l.is_prefix && l.name.len() == 8);
        if let Some(log) = log {
            let listed = store.list(&format!("{prefix}/{}", log.name))?;
            let own = listed.iter().filter_map(|l| l.name.parse().ok());
            let home = layout.home(id, None);
            names.extend(own.map(|name: SegmentName| home.segment(name)));
        }
    }
    Ok(names)
}

/// Returns `None` for an object that is damaged, or that the keys at hand do not open: it shows nothing.
fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    let is_of_the_object = |e: &Error| e.is_damage() || e.code() == Code::Key;
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if is_of_the_object(&e) => Ok(None),
        Err(e) => Err(e),
    }
}
