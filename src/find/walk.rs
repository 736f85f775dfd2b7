//! Follows names along the WAL. Only the segments are decoded that change the catalogs in which these stand.

use std::collections::BTreeSet;

use super::catalogs::{CatalogFiles, Catalogs};
use super::event::Relation;
use super::scan::Scan;
use super::story::Story;
use crate::error::Result;
use crate::pg::catalog::{Catalog, ClassRow};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;

/// Names as they go on along the WAL.
pub struct NameWalk<'a> {
    scan: &'a Scan<'a>,
    story: Story,
    from: Lsn,
    /// Databases whose relations are followed; none = schemas and databases are.
    databases: Option<BTreeSet<u32>>,
    is_whole: bool,
}

/// The answer of WAL about a relation.
pub enum Told<'a> {
    /// It was made or changed: its row is this one.
    Row(&'a ClassRow),
    /// It is as it was at the begin.
    Same,
    /// WAL is missing, or does not tell.
    Unknown,
}

impl<'a> Scan<'a> {
    /// Follows the names of schemas and databases from the first segment on.
    pub fn names(&'a self, files: &CatalogFiles) -> NameWalk<'a> {
        NameWalk {
            scan: self,
            story: Story::new(self.major, files.clone(), u64::MAX),
            from: Lsn(0),
            databases: None,
            is_whole: true,
        }
    }

    /// Follows the relations of some databases from a position on, which is the begin of a backup: behind it the first change of a page brings
    /// the whole page.
    pub fn relations(
        &'a self,
        files: &CatalogFiles,
        databases: BTreeSet<u32>,
        from: Lsn,
    ) -> NameWalk<'a> {
        NameWalk {
            from,
            databases: Some(databases),
            ..self.names(files)
        }
    }
}

impl NameWalk<'_> {
    /// Goes on to a position, which is never before the last one, and returns the names of then.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn names_at(&mut self, to: Lsn) -> Result<&Catalogs> {
        let scan = self.scan;
        let number = |lsn| SegmentNumber::of(lsn, scan.size);
        let begin = scan
            .segments
            .partition_point(|(n, _)| *n < number(self.from));
        let end = scan.segments.partition_point(|(n, _)| *n <= number(to));
        let first = scan.segments.get(begin).map(|(n, _)| *n);
        self.is_whole &= first == Some(number(self.from));
        for at in begin..end {
            scan.host.check_stop()?;
            self.is_whole &= at + 1 == end || scan.is_followed(at);
            let files = &self.story.catalogs.own_files;
            // The transaction that gave a name may end in a later segment.
            let is_wanted = self.is_awaiting() || {
                let is_changed = scan.changes(at, files, &|database, catalog| {
                    self.follows(database, catalog)
                });
                let is_changed = scan.tolerate(at, is_changed)?;
                self.is_whole &= is_changed.is_some();
                is_changed == Some(true)
            };
            if !is_wanted {
                continue;
            }
            let digest = scan.decode_part(at, files, false, (self.from, to));
            match scan.tolerate(at, digest)? {
                Some(digest) => self.story.take(digest),
                None => self.is_whole = false,
            }
        }
        self.from = self.from.max(to);
        Ok(&self.story.catalogs)
    }

    /// Returns what became of a relation on the way; `listed` is the oid that a list of the begin gives it.
    pub fn told(&self, database: u32, relation: &Relation, listed: Option<u32>) -> Told<'_> {
        let names = &self.story.catalogs;
        if !self.is_whole || !names.has_all(database) {
            return Told::Unknown;
        }
        let by_file = || names.owner(database, relation.file?);
        let oid = listed.or(relation.oid).or_else(by_file);
        let row = oid.and_then(|oid| names.changed_relation(database, oid));
        match (row, listed) {
            (Some(row), _) => Told::Row(row),
            (None, Some(_)) => Told::Same,
            (None, None) => Told::Unknown,
        }
    }

    fn follows(&self, database: u32, catalog: Catalog) -> bool {
        match &self.databases {
            Some(databases) => catalog == Catalog::Class && databases.contains(&database),
            None => matches!(catalog, Catalog::Namespace | Catalog::Database),
        }
    }

    fn is_awaiting(&self) -> bool {
        match &self.databases {
            Some(databases) => self.story.awaits_relations(databases),
            None => self.story.awaits_names(),
        }
    }
}
