//! Follows names along the WAL. Only the segments are decoded that change the catalogs in which these stand.

use std::collections::BTreeSet;
use std::ops::Range;

use super::catalogs::{CatalogFiles, Catalogs};
use super::event::Relation;
use super::scan::{READERS, Scan};
use super::story::Story;
use crate::error::Result;
use crate::pg::catalog::{Catalog, ClassRow};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNumber;

/// So much WAL is decoded at the most for names of relations, and as much for those of schemas and databases: it takes some seconds.
pub const FOLLOWED_BYTES: u64 = 8 << 30;
/// So many segments are asked together whether they change what is followed.
const BATCH: usize = 64;

/// Names as they go on along the WAL.
pub struct NameWalk<'a> {
    scan: &'a Scan<'a>,
    story: Story,
    from: Lsn,
    /// Databases whose relations are followed; none = schemas and databases are.
    databases: Option<BTreeSet<u32>>,
    is_whole: bool,
    /// There was more to decode than may be.
    is_cut: bool,
    /// Something was decoded.
    has_begun: bool,
}

/// The answer of WAL about a relation.
pub enum Told<'a> {
    /// It was made or changed: its row is this one.
    Row(&'a ClassRow),
    /// A page shows its row, and no transaction changed it.
    Shown(&'a ClassRow),
    /// It is as it was at the begin.
    Same,
    /// WAL is missing, does not tell, or is too much to decode.
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
            is_cut: false,
            has_begun: false,
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
    /// Goes on to a position, which is never before the last one, and returns the names of then. `left` is how many bytes of WAL may be decoded;
    /// `None` where that is too little.
    ///
    /// # Errors
    /// Errors of the store; `Interrupted`.
    pub fn names_at(&mut self, to: Lsn, left: &mut u64) -> Result<Option<&Catalogs>> {
        let scan = self.scan;
        let number = |lsn| SegmentNumber::of(lsn, scan.size);
        let begin = scan
            .segments
            .partition_point(|(n, _)| *n < number(self.from));
        let end = scan.segments.partition_point(|(n, _)| *n <= number(to));
        let first = scan.segments.get(begin).map(|(n, _)| *n);
        self.is_whole &= first == Some(number(self.from));
        self.is_whole &= (begin..end.saturating_sub(1)).all(|at| scan.is_followed(at));
        let mut at = begin;
        while at < end && !self.is_over() {
            scan.host.check_stop()?;
            at = self.pass(at..end.min(at + BATCH), to, left)?;
        }
        self.from = self.from.max(to);
        Ok((!self.is_cut).then_some(&self.story.catalogs))
    }

    /// Decodes those of some segments that change what is followed. Returns the place to go on at: before the end where the catalogs got other
    /// files.
    fn pass(&mut self, batch: Range<usize>, to: Lsn, left: &mut u64) -> Result<usize> {
        let (scan, end) = (self.scan, batch.end);
        let all: Vec<usize> = batch.collect();
        let files = self.story.catalogs.own_files.clone();
        let databases = self.databases.as_ref();
        let is_wanted = |database, catalog| follows(databases, database, catalog);
        let changed = scan
            .host
            .parallel(READERS, &all, |at| scan.changes(*at, &files, &is_wanted))?;
        for (at, is_changed) in all.into_iter().zip(changed) {
            // The transaction that gave a name may end in a later segment.
            let is_wanted = self.is_awaiting() || {
                let is_changed = scan.tolerate(at, is_changed)?;
                self.is_whole &= is_changed.is_some();
                is_changed == Some(true)
            };
            if is_wanted {
                self.decode(at, to, left)?;
            }
            if self.is_over() || self.story.catalogs.own_files != files {
                return Ok(at + 1);
            }
        }
        Ok(end)
    }

    fn decode(&mut self, at: usize, to: Lsn, left: &mut u64) -> Result<()> {
        let scan = self.scan;
        scan.host.check_stop()?;
        if !spend(left, scan.size.bytes()) {
            (self.is_cut, self.is_whole) = (true, false);
            return Ok(());
        }
        if !self.has_begun {
            scan.host.progress.phase("follow names in the WAL", None);
            self.has_begun = true;
        }
        let files = &self.story.catalogs.own_files;
        let digest = scan.decode_part(at, files, false, (self.from, to));
        match scan.tolerate(at, digest)? {
            Some(digest) => self.story.take(digest),
            None => self.is_whole = false,
        }
        scan.host.progress.advance(scan.size.bytes());
        Ok(())
    }

    /// Whether more WAL tells nothing more: of relations it tells only where it is whole.
    fn is_over(&self) -> bool {
        self.is_cut || (self.databases.is_some() && !self.is_whole)
    }

    /// Returns what became of a relation on the way; `listed` is the oid that a list of the begin gives it.
    pub fn told(&self, database: u32, relation: &Relation, listed: Option<u32>) -> Told<'_> {
        let names = &self.story.catalogs;
        if !self.is_whole || !names.has_all(database) {
            return Told::Unknown;
        }
        let by_file = || names.owner(database, relation.file?);
        let oid = listed.or(relation.oid).or_else(by_file);
        let changed = oid.and_then(|oid| names.changed_relation(database, oid));
        let shown = oid.and_then(|oid| names.shown_relation(database, oid));
        match (changed, shown, listed) {
            (Some(row), _, _) => Told::Row(row),
            (None, Some(row), _) => Told::Shown(row),
            (None, None, Some(_)) => Told::Same,
            (None, None, None) => Told::Unknown,
        }
    }

    fn is_awaiting(&self) -> bool {
        match &self.databases {
            Some(databases) => self.story.awaits_relations(databases),
            None => self.story.awaits_names(),
        }
    }
}

/// Whether a catalog is followed: that of the relations of some databases, else those of schemas and databases.
fn follows(databases: Option<&BTreeSet<u32>>, database: u32, catalog: Catalog) -> bool {
    match databases {
        Some(databases) => catalog == Catalog::Class && databases.contains(&database),
        None => matches!(catalog, Catalog::Namespace | Catalog::Database),
    }
}

/// Takes bytes from what is left, where that is enough.
fn spend(left: &mut u64, bytes: u64) -> bool {
    let rest = left.checked_sub(bytes);
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_decoded_than_the_limit_allows() {
        let segment = 1 << 30;
        let mut left = FOLLOWED_BYTES;
        let decoded = (0..100).filter(|_| spend(&mut left, segment)).count();
        assert_eq!(decoded, 8);
        assert!(!spend(&mut left, 1));
        let mut left = 20;
        assert!(spend(&mut left, 16));
        assert!(!spend(&mut left, 16));
        assert_eq!(left, 4);
    }
}
