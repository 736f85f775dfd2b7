//! A repository of the cluster whose WAL a test crafts.

use std::path::Path;

use super::repository::{Registration, Repository};
use crate::pg::craft::Craft;
use crate::pg::time::TimestampTz;
use crate::store::file::FileStore;

/// Creates it, and registers the cluster as "main".
pub(crate) fn create(path: &Path, craft: &Craft) -> (Repository, Registration) {
    let store = FileStore::create(path, 1).unwrap();
    let (repository, _) = Repository::create(Box::new(store), 1, TimestampTz(0)).unwrap();
    let registration = Registration {
        name: "main".to_owned(),
        system_identifier: craft.identity.system_identifier,
        major: craft.identity.major.unwrap().number(),
        segment_size_bytes: craft.identity.segment_size.bytes(),
        block_size_bytes: 8192,
        wal_block_size_bytes: 8192,
        first_seen: TimestampTz(0),
        features: Vec::new(),
        is_lost: false,
    };
    repository.register(&registration).unwrap();
    (repository, registration)
}
