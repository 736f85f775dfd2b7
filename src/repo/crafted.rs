//! A repository of the cluster whose WAL a test crafts.

use std::path::Path;

use tempfile::TempDir;

use super::layout::ClusterLayout;
use super::repository::{Registration, Repository};
use super::scope::Scope;
use crate::pg::craft::Craft;
use crate::pg::time::TimestampTz;
use crate::store::file::FileStore;

/// A folder with a store in it.
pub(crate) fn store() -> (TempDir, FileStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path(), 1).unwrap();
    (dir, store)
}

/// A folder with a store in it, and the scope of cluster "main" there.
pub(crate) fn scope() -> (TempDir, FileStore, Scope) {
    let (dir, store) = store();
    (dir, store, Scope::cluster("main", 7).unwrap())
}

/// Changes a byte of a file.
pub(crate) fn rot(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A folder with a repository in its folder "repo", and the layout of cluster "main" there.
pub(crate) fn empty() -> (TempDir, Repository, ClusterLayout) {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::create(&dir.path().join("repo"), 1).unwrap();
    let (repository, _) = Repository::create(Box::new(store), 1, TimestampTz(0)).unwrap();
    (dir, repository, ClusterLayout::new("main", 7).unwrap())
}

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
