//! The rows of the catalogs along a stretch of WAL, as far as its page images and heap records tell.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::digest::{Place, RowStep};
use super::event::Commit;
use crate::pg::catalog::{self, Catalog, ClassRow, FileMap};
use crate::pg::heap::{PageRow, Row, RowChange};
use crate::pg::lsn::Lsn;
use crate::pg::version::Major;

/// More rows than this are not kept: a relation whose row is lost so is shown by its numbers.
const ROWS_MAX: usize = 2_000_000;

/// Which files are catalogs: those that have their oid as number, and others that maps or lists name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogFiles(BTreeMap<(u32, u32), Catalog>);

impl CatalogFiles {
    /// Adds the file of a catalog, by the catalog's oid.
    pub fn add(&mut self, database: u32, oid: u32, file: u32) {
        let known = Catalog::ALL.into_iter().find(|c| c.oid() == oid);
        if let Some(catalog) = known.filter(|c| file != oid && c.is_shared() == (database == 0)) {
            self.0.insert((database, file), catalog);
        }
    }

    /// Adds the files that others know. Returns whether one of them is new.
    pub fn add_all(&mut self, other: &CatalogFiles) -> bool {
        let before = self.0.len();
        self.0.extend(&other.0);
        self.0.len() > before
    }

    /// Adds the files that a map names.
    pub fn add_map(&mut self, map: &FileMap) {
        map.files
            .iter()
            .for_each(|(oid, file)| self.add(map.database, *oid, *file));
    }

    /// Returns the catalog of a file; `None` for files of other relations.
    pub fn catalog(&self, database: u32, file: u32) -> Option<Catalog> {
        let own = Catalog::ALL.into_iter();
        let mut own = own.filter(|c| c.oid() == file && c.is_shared() == (database == 0));
        own.next()
            .or_else(|| self.0.get(&(database, file)).copied())
    }
}

/// A row's place: that of its page, and its offset there.
type RowPlace = (Place, u16);

/// The in-place update that made a database invalid.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Start of its record.
    pub lsn: Lsn,
    /// The transaction; 0 where it is not known.
    pub xid: u32,
    /// The database's name.
    pub name: String,
    /// The last commit before it.
    pub last_commit: Option<Commit>,
    row: RowPlace,
}

/// A change of a row of `pg_class`.
#[derive(Debug, Clone)]
pub struct ClassChange {
    /// Start of the record.
    pub lsn: Lsn,
    /// Transaction or subtransaction.
    pub xid: u32,
    /// Oid of the database.
    pub database: u32,
    /// Whether there was a row before.
    pub had_row: bool,
    /// The row before; none where it is not known, or was none.
    pub before: Option<ClassRow>,
    /// Whether there is a row after it.
    pub has_row: bool,
    /// The row after; none where it is not known, or is none.
    pub after: Option<ClassRow>,
}

/// A change that the story of a transaction takes up.
#[derive(Debug, Clone)]
pub enum Change {
    /// A row of pg_class changed.
    Class(ClassChange),
    /// The row of a database was deleted; its oid and name, where they are known.
    DropDatabase(Option<(u32, String)>),
    /// The row of a tablespace was deleted.
    DropTablespace(Option<(u32, String)>),
    /// A schema, database or tablespace got this row.
    Named(Place, Row),
}

/// The known rows.
pub struct Catalogs {
    /// Files of catalogs that maps and rows name.
    pub own_files: CatalogFiles,
    /// Files of all catalogs that maps name, by database: rows of these are nobody's data.
    mapped: HashSet<(u32, u32)>,
    major: Major,
    rows: HashMap<RowPlace, Row>,
    /// Transactions that were rolled back: their rows count for nothing.
    void: HashSet<u32>,
    /// Transactions that were committed: the rows of others may never count.
    committed: HashSet<u32>,
    /// The attempts to drop databases, by oid; none where the database was dropped since, or made valid again. A DROP DATABASE that fails takes
    /// none back.
    pub attempts: BTreeMap<u32, Option<Attempt>>,
    /// Newest known row of each relation, by database and oid.
    relations: HashMap<(u32, u32), ClassRow>,
    /// Oids of relations by database and file.
    files: HashMap<(u32, u32), u32>,
    /// Names of schemas, by database and oid.
    schemas: HashMap<(u32, u32), String>,
    databases: HashMap<u32, String>,
    tablespaces: HashMap<u32, String>,
    /// Rows of relations and schemas that committed transactions made or changed, by database and oid.
    changed: HashSet<(Catalog, u32, u32)>,
    /// Relations whose newest row a page has shown, by database and oid.
    shown: HashSet<(u32, u32)>,
    /// Databases of which a relation was changed whose new row is not known.
    lost: HashSet<u32>,
}

impl Catalogs {
    /// Nothing is known yet.
    pub fn new(major: Major, own_files: CatalogFiles) -> Catalogs {
        Catalogs {
            own_files,
            mapped: HashSet::new(),
            major,
            rows: HashMap::new(),
            void: HashSet::new(),
            committed: HashSet::new(),
            attempts: BTreeMap::new(),
            relations: HashMap::new(),
            files: HashMap::new(),
            schemas: HashMap::new(),
            databases: HashMap::new(),
            tablespaces: HashMap::new(),
            changed: HashSet::new(),
            shown: HashSet::new(),
            lost: HashSet::new(),
        }
    }

    /// Takes the files that a map names.
    pub fn map(&mut self, map: &FileMap) {
        self.own_files.add_map(map);
        let files = map.files.iter().map(|(_, file)| (map.database, *file));
        self.mapped.extend(files);
    }

    /// Whether a map gave a file to a catalog.
    pub fn is_mapped(&self, database: u32, file: u32) -> bool {
        self.mapped.contains(&(database, file))
    }

    /// Takes the rows of a page.
    pub fn page(&mut self, place: Place, rows: Vec<PageRow>) {
        // Rows that something touched may be old versions: they name a relation only where no better row does. Rows of transactions that have not
        // ended yet, as far as is known, come after these.
        let counts = |r: &&PageRow| !r.is_void && !self.void.contains(&r.xmin);
        let is_sure = |r: &&PageRow| r.xmin == 0 || self.committed.contains(&r.xmin);
        let all: Vec<&PageRow> = rows.iter().filter(counts).collect();
        let (sure, mut unsure): (Vec<&PageRow>, Vec<&PageRow>) =
            all.iter().copied().partition(is_sure);
        let is_class = place.catalog == Catalog::Class;
        if !is_class {
            // Which one of two versions of a name counts, the WAL before the page tells.
            unsure.retain(|row| all.iter().filter(|other| oid(other) == oid(row)).count() == 1);
        }
        let classes: Vec<ClassRow> = match is_class {
            true => all
                .iter()
                .filter_map(|row| self.class(Some(&row.row)))
                .collect(),
            false => Vec::new(),
        };
        let sure = sure.into_iter().filter(|r| is_class || r.is_untouched);
        let sure = sure.map(|row| (row, row.is_untouched));
        let unsure = unsure.into_iter().map(|row| (row, false));
        for (row, is_newest) in sure.chain(unsure) {
            let class = match is_class {
                true => self.class(Some(&row.row)),
                false => None,
            };
            match class {
                Some(class) if !is_newest => self.learn_version(place, class, &classes),
                _ => self.learn(place, &row.row, is_newest),
            }
        }
        for row in rows {
            self.keep((place, row.offset), row.row);
        }
    }

    /// Takes a row of a page that may be an old version. It tells no name where the page has versions with others: only whose the file is.
    fn learn_version(&mut self, place: Place, class: ClassRow, page: &[ClassRow]) {
        let is_other = |row: &ClassRow| {
            row.oid == class.oid && (row.namespace, &row.name) != (class.namespace, &class.name)
        };
        if class.written_anew().is_some() {
            self.learn_transient(place.database, &class);
        } else if page.iter().any(is_other) {
            self.learn_file(place.database, &class, false);
        } else {
            self.learn_class(place.database, class, false);
        }
    }

    /// Takes a change of a row; `last_commit` is the last commit before it.
    pub fn change(&mut self, step: RowStep, last_commit: Option<Commit>) -> Option<Change> {
        let place = step.place;
        match step.change {
            RowChange::Insert { offset } => {
                let row = match &step.data {
                    Some(data) => Row::inserted(data),
                    None => self.rows.get(&(place, offset)).cloned(),
                };
                if let Some(row) = &row {
                    self.keep((place, offset), row.clone());
                    self.note_made(place.catalog, row);
                }
                if place.catalog != Catalog::Class {
                    return row.map(|row| Change::Named(place, row));
                }
                let class = self.class(row.as_ref());
                Some(Change::Class(class_change(
                    &step,
                    (false, None),
                    (true, class),
                )))
            }
            RowChange::Delete { offset, .. } => self.delete(&step, offset),
            RowChange::Update { old, new, flags } => {
                let old_place = Place {
                    block: step.old_block,
                    ..place
                };
                let before = self.rows.get(&(old_place, old)).cloned();
                let row = match &step.data {
                    Some(data) => Row::updated(data, flags, before.as_ref()),
                    None => self.rows.get(&(place, new)).cloned(),
                };
                match &row {
                    Some(row) => self.keep((place, new), row.clone()),
                    None => {
                        self.rows.remove(&(place, new));
                        self.end_attempt_of((old_place, old));
                    }
                }
                if place.catalog != Catalog::Class {
                    return row.map(|row| Change::Named(place, row));
                }
                let (before, after) = (self.class(before.as_ref()), self.class(row.as_ref()));
                Some(Change::Class(class_change(
                    &step,
                    (true, before),
                    (true, after),
                )))
            }
            RowChange::InPlace { offset } => {
                self.overwrite(&step, offset, last_commit);
                None
            }
        }
    }

    fn delete(&mut self, step: &RowStep, offset: u16) -> Option<Change> {
        let at = (step.place, offset);
        let row = self.rows.get(&at);
        let named = || row.and_then(Row::columns).and_then(catalog::named);
        match step.place.catalog {
            Catalog::Class => {
                let before = self.class(row);
                Some(Change::Class(class_change(
                    step,
                    (true, before),
                    (false, None),
                )))
            }
            Catalog::Database => {
                let named = named();
                // The in-place update comes before the transaction has its number.
                let mut attempts = self.attempts.values_mut().flatten();
                if let Some(attempt) = attempts.find(|a| a.row == at && a.xid == 0) {
                    attempt.xid = step.xid;
                }
                Some(Change::DropDatabase(named))
            }
            Catalog::Tablespace => Some(Change::DropTablespace(named())),
            Catalog::Namespace => None,
        }
    }

    /// Takes an in-place update; that of a database which is about to be dropped cannot be undone.
    fn overwrite(&mut self, step: &RowStep, offset: u16, last_commit: Option<Commit>) {
        let at = (step.place, offset);
        if let Some(data) = &step.data {
            let new = self.rows.get(&at).and_then(|row| row.overwritten(data));
            match new {
                Some(new) => self.keep(at, new),
                None => drop(self.rows.remove(&at)),
            }
        }
        if step.place.catalog != Catalog::Database {
            return;
        }
        let columns = match &step.data {
            Some(data) => Some(data.as_slice()),
            None => self.rows.get(&at).and_then(Row::columns),
        };
        let Some((oid, name)) = columns.and_then(catalog::named) else {
            return;
        };
        if !columns.is_some_and(|c| catalog::is_invalid_database(c, self.major)) {
            self.end_attempt(oid);
            return;
        }
        let attempt = self.attempts.entry(oid).or_default();
        attempt.get_or_insert(Attempt {
            lsn: step.lsn,
            xid: step.xid,
            name,
            last_commit,
            row: at,
        });
    }

    /// Takes a new row: a database of an oid that another one had is not invalid.
    fn note_made(&mut self, catalog: Catalog, row: &Row) {
        if catalog == Catalog::Database
            && let Some((oid, _)) = row.columns().and_then(catalog::named)
        {
            self.end_attempt(oid);
        }
    }

    /// Says that a database was dropped, or is valid.
    pub fn end_attempt(&mut self, database: u32) {
        self.attempts.insert(database, None);
    }

    /// Takes a change of a row whose new version is not known: nothing but a statement by hand changes that of an invalid database.
    fn end_attempt_of(&mut self, row: RowPlace) {
        let mut attempts = self.attempts.values_mut();
        if let Some(attempt) = attempts.find(|a| a.as_ref().is_some_and(|a| a.row == row)) {
            *attempt = None;
        }
    }

    /// Returns the first attempt to drop a database, which made it invalid.
    pub fn attempt(&self, database: u32) -> Option<&Attempt> {
        self.attempts.get(&database)?.as_ref()
    }

    fn keep(&mut self, at: RowPlace, row: Row) {
        if self.rows.len() < ROWS_MAX || self.rows.contains_key(&at) {
            self.rows.insert(at, row);
        }
    }

    fn class(&self, row: Option<&Row>) -> Option<ClassRow> {
        ClassRow::read(row?.columns()?, self.major)
    }

    /// Takes the names that a row gives; `is_newest` where it takes the place of what is known.
    pub fn learn(&mut self, place: Place, row: &Row, is_newest: bool) {
        let Some(columns) = row.columns() else {
            return;
        };
        if place.catalog == Catalog::Class {
            match ClassRow::read(columns, self.major) {
                // A table of such a name that somebody made stays; a transient one is gone when its transaction ends.
                Some(class) if !is_newest && class.written_anew().is_some() => {
                    self.learn_transient(place.database, &class);
                }
                Some(class) if is_newest => {
                    self.shown.insert((place.database, class.oid));
                    self.learn_class(place.database, class, true);
                }
                Some(class) => self.learn_class(place.database, class, false),
                None => {}
            }
            return;
        }
        let Some((oid, name)) = catalog::named(columns) else {
            return;
        };
        match place.catalog {
            Catalog::Namespace => put(&mut self.schemas, (place.database, oid), name, is_newest),
            Catalog::Database => put(&mut self.databases, oid, name, is_newest),
            _ => put(&mut self.tablespaces, oid, name, is_newest),
        }
    }

    /// Takes the row that a committed transaction gave a schema, a database or a tablespace.
    pub fn learn_named(&mut self, place: Place, row: &Row) {
        let columns = row.columns();
        if let Some((oid, _)) = columns.and_then(catalog::named) {
            self.changed.insert((place.catalog, place.database, oid));
            // Somebody may give it another limit by hand.
            let is_invalid = columns.is_some_and(|c| catalog::is_invalid_database(c, self.major));
            if place.catalog == Catalog::Database && !is_invalid {
                self.end_attempt(oid);
            }
        }
        self.learn(place, row, true);
    }

    /// Takes the row that a committed transaction gave a relation, and that no later one touched as far as is known.
    pub fn learn_change(&mut self, database: u32, class: ClassRow) {
        self.changed.insert((Catalog::Class, database, class.oid));
        self.learn_class(database, class, true);
    }

    /// Says that a relation of a database got a row that is not known.
    pub fn lose(&mut self, database: u32) {
        self.lost.insert(database);
    }

    /// Whether each change of relations of a database is known.
    pub fn has_all(&self, database: u32) -> bool {
        !self.lost.contains(&database)
    }

    /// Returns the row that the last committed change gave a relation; old versions on page images do not count.
    pub fn changed_relation(&self, database: u32, oid: u32) -> Option<&ClassRow> {
        let is_changed = self.changed.contains(&(Catalog::Class, database, oid));
        self.newest(database, oid).filter(|_| is_changed)
    }

    /// Returns the newest row of a relation that a page has shown.
    pub fn shown_relation(&self, database: u32, oid: u32) -> Option<&ClassRow> {
        let is_shown = self.shown.contains(&(database, oid));
        self.newest(database, oid).filter(|_| is_shown)
    }

    /// Whether a committed transaction made or changed a schema.
    pub fn has_changed_schema(&self, database: u32, oid: u32) -> bool {
        self.changed.contains(&(Catalog::Namespace, database, oid))
    }

    /// Takes a row of `pg_class`.
    pub fn learn_class(&mut self, database: u32, class: ClassRow, is_newest: bool) {
        self.learn_file(database, &class, is_newest);
        put(&mut self.relations, (database, class.oid), class, is_newest);
    }

    fn learn_file(&mut self, database: u32, class: &ClassRow, is_newest: bool) {
        if class.file != 0 {
            self.own_files.add(database, class.oid, class.file);
            let file = (database, class.file);
            put(&mut self.files, file, class.oid, is_newest);
        }
    }

    /// Takes the row of a relation that a transaction made to write another one anew: its file is that one's.
    pub fn learn_transient(&mut self, database: u32, class: &ClassRow) {
        if let Some(oid) = class.written_anew() {
            put(&mut self.files, (database, class.file), oid, false);
        }
    }

    /// Takes the end of a transaction that was committed.
    pub fn commit(&mut self, xid: u32) {
        self.committed.insert(xid);
    }

    /// Takes the end of a transaction that was rolled back.
    pub fn roll_back(&mut self, xid: u32) {
        self.void.insert(xid);
    }

    /// Returns the oid of the relation that has a file.
    pub fn owner(&self, database: u32, file: u32) -> Option<u32> {
        self.files.get(&(database, file)).copied()
    }

    /// Returns the relation that has a file.
    pub fn relation(&self, database: u32, file: u32) -> Option<&ClassRow> {
        let oid = self.owner(database, file)?;
        self.relations.get(&(database, oid))
    }

    /// Returns the newest known row of a relation.
    pub fn newest(&self, database: u32, oid: u32) -> Option<&ClassRow> {
        self.relations.get(&(database, oid))
    }

    /// Returns the name of a schema.
    pub fn schema(&self, database: u32, oid: u32) -> Option<&String> {
        self.schemas.get(&(database, oid))
    }

    /// Returns the name of a database.
    pub fn database(&self, oid: u32) -> Option<&String> {
        self.databases.get(&oid)
    }
}

/// The oid in a row of schemas, databases or tablespaces.
fn oid(row: &PageRow) -> Option<u32> {
    catalog::named(row.row.columns()?).map(|(oid, _)| oid)
}

fn put<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: V, is_newest: bool) {
    match is_newest {
        true => drop(map.insert(key, value)),
        false => drop(map.entry(key).or_insert(value)),
    }
}

fn class_change(
    step: &RowStep,
    (had_row, before): (bool, Option<ClassRow>),
    (has_row, after): (bool, Option<ClassRow>),
) -> ClassChange {
    ClassChange {
        lsn: step.lsn,
        xid: step.xid,
        database: step.place.database,
        had_row,
        before,
        has_row,
        after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of `pg_class` of major 17, with a header of 24 bytes.
    fn row((oid, name, file): (u32, &str, u32)) -> Row {
        let mut columns = vec![0; 116];
        let mut put =
            |at: usize, bytes: &[u8]| columns[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &oid.to_le_bytes());
        put(4, name.as_bytes());
        put(68, &2200_u32.to_le_bytes());
        put(88, &file.to_le_bytes());
        put(114, b"pr");
        let header: &[u8] = &[0, 0, 0, 0, 24, 0];
        Row::inserted(&[header, &columns].concat()).unwrap()
    }

    fn page(rows: &[(u32, &str, u32)], is_untouched: bool) -> Vec<PageRow> {
        let numbered = (1..).zip(rows);
        let row = |(offset, given): (u16, &(u32, &str, u32))| PageRow {
            offset,
            xmin: 0,
            is_void: false,
            is_untouched,
            row: row(*given),
        };
        numbered.map(row).collect()
    }

    /// The old row of a transient relation names no file: it is that of the relation which was written anew, whatever its name.
    #[test]
    fn a_file_of_a_transient_relation_belongs_to_the_one_that_was_written_anew() {
        let place = Place {
            catalog: Catalog::Class,
            database: 5,
            file: 1259,
            block: 0,
        };
        let mut catalogs = Catalogs::new(Major::V17, CatalogFiles::default());
        catalogs.page(place, page(&[(26030, "pg_temp_23095", 26030)], false));
        assert_eq!(catalogs.owner(5, 26030), Some(23095));
        assert_eq!(catalogs.relation(5, 26030), None);
        catalogs.page(place, page(&[(23095, "orders", 26030)], true));
        assert_eq!(catalogs.relation(5, 26030).unwrap().name, "orders");
        // Somebody may give a table such a name: it is still there.
        catalogs.page(place, page(&[(30000, "pg_temp_9", 30000)], true));
        assert_eq!(catalogs.relation(5, 30000).unwrap().name, "pg_temp_9");
    }
}
