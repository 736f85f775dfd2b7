//! Puts digests together, in order, and judges each transaction where it ends.
//!
//! A relation that a transaction leaves without a row in `pg_class` was dropped. One that it leaves with another file was truncated, or
//! written anew: then the new file was made for a transient relation, was another relation's before, or lies in another tablespace. TRUNCATE
//! empties a file that the same transaction made, in its place.
//!
//! PostgreSQL: src/backend/commands/cluster.c (make_new_heap, swap_relation_files), tablecmds.c (ExecuteTruncateGuts, ATExecSetTableSpace),
//! src/backend/utils/cache/relcache.c (RelationSetNewRelfilenumber), src/backend/commands/dbcommands.c (dropdb).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::catalogs::{Attempt, CatalogFiles, Catalogs, Change, ClassChange};
use super::digest::{Digest, EndStep, RowCount, Step};
use super::event::{Commit, Event, Kind, Named, Relation};
use crate::pg::catalog::{ClassRow, FIRST_NORMAL_OID};
use crate::pg::lsn::Lsn;
use crate::pg::number_map::NumberMap;
use crate::pg::record;
use crate::pg::version::Major;

/// Kinds of relations whose end is an event: tables, partitioned tables, materialized views.
const TABLES: &[u8] = b"rpm";

/// A transaction or subtransaction that has not ended.
#[derive(Debug, Default)]
struct Open {
    changes: Vec<Change>,
    created: HashSet<record::Relation>,
    /// Files that it emptied in their place, by database.
    emptied: HashSet<(u32, u32)>,
    /// Databases of which it wrote the map of the catalogs' files; 0 for the shared one.
    maps: HashSet<u32>,
    databases: Vec<(Lsn, u32, Option<Commit>)>,
    tablespaces: Vec<(Lsn, u32, Option<Commit>)>,
    rows: NumberMap<record::Relation, RowCount>,
    gid: Option<String>,
    is_prepared: bool,
    /// The server began anew, and it was not seen to be prepared: no record of its end is awaited.
    is_lost: bool,
}

/// A stretch of WAL, as it goes on.
pub struct Story {
    /// The known rows of the catalogs.
    pub catalogs: Catalogs,
    /// The events found.
    pub events: Vec<Event>,
    open: NumberMap<u32, Open>,
    last_commit: Option<Commit>,
    /// Fewer rows than this of one relation and transaction are no event.
    rows_min: u64,
}

/// The fate of a relation in a transaction.
#[derive(Debug, Default)]
struct Fate {
    first_lsn: Lsn,
    xids: Vec<u32>,
    /// The row before the transaction; none where it made the relation.
    before: Option<ClassRow>,
    after: Option<ClassRow>,
    /// Whether the transaction made the relation.
    is_made: bool,
    is_truncated: bool,
    is_rewritten: bool,
}

impl Story {
    /// Begins a stretch.
    pub fn new(major: Major, files: CatalogFiles, rows_min: u64) -> Story {
        Story {
            catalogs: Catalogs::new(major, files),
            events: Vec::new(),
            open: NumberMap::default(),
            last_commit: None,
            rows_min,
        }
    }

    /// Says that segments follow which were not decoded: which commit was the last is not known.
    pub fn skip(&mut self) {
        self.last_commit = None;
    }

    /// Whether a transaction that has not ended gave a name to a schema, a database or a tablespace.
    pub fn awaits_names(&self) -> bool {
        let mut changes = self.awaited();
        changes.any(|change| matches!(change, Change::Named(..)))
    }

    /// Whether a transaction that has not ended changed relations of these databases.
    pub fn awaits_relations(&self, databases: &BTreeSet<u32>) -> bool {
        let mut changes = self.awaited();
        changes.any(|change| match change {
            Change::Class(change) => databases.contains(&change.database),
            _ => false,
        })
    }

    /// The changes of transactions whose end may still come.
    fn awaited(&self) -> impl Iterator<Item = &Change> {
        let open = self.open.values().filter(|open| !open.is_lost);
        open.flat_map(|open| &open.changes)
    }

    /// Takes the next digest.
    pub fn take(&mut self, digest: Digest) {
        for ((xid, relation), count) in digest.rows {
            self.of(xid).rows.entry(relation).or_default().add(&count);
        }
        for step in digest.steps {
            self.step(step);
        }
    }

    /// Ends the stretch. Databases that were destroyed by a transaction without an end are gone all the same.
    pub fn finish(&mut self) {
        let mut open: Vec<_> = self.open.drain().collect();
        open.sort_unstable_by_key(|(xid, _)| *xid);
        for (xid, open) in open {
            let event = Draft::new(xid, None);
            self.destroyed(&event, &[open]);
        }
    }

    fn of(&mut self, xid: u32) -> &mut Open {
        let open = self.open.entry(xid).or_default();
        open.is_lost = false;
        open
    }

    fn prepare(&mut self, xid: u32, gid: String, subxids: &[u32]) {
        for subxid in subxids {
            if let Some(open) = self.open.get_mut(subxid) {
                open.is_prepared = true;
            }
        }
        let open = self.of(xid);
        open.is_prepared = true;
        open.gid = Some(gid);
    }

    /// Awaits no end of transactions that are not prepared. They are kept: where segments were skipped, one may have been prepared there.
    fn restart(&mut self) {
        for open in self.open.values_mut().filter(|open| !open.is_prepared) {
            open.is_lost = true;
        }
    }

    fn step(&mut self, step: Step) {
        let last = self.last_commit;
        match step {
            Step::Page(place, rows) => self.catalogs.page(place, rows),
            Step::Row(step) => {
                let xid = step.xid;
                if let Some(change) = self.catalogs.change(step, last) {
                    self.of(xid).changes.push(change);
                }
            }
            Step::Map(xid, map) => {
                self.catalogs.map(&map);
                self.of(xid).maps.insert(map.database);
            }
            Step::Create(xid, relation) => drop(self.of(xid).created.insert(relation)),
            Step::Empty(xid, relation) => {
                let file = (relation.database, relation.number);
                self.of(xid).emptied.insert(file);
            }
            Step::DropDatabase { lsn, xid, database } => {
                self.of(xid).databases.push((lsn, database, last));
            }
            Step::DropTablespace {
                lsn,
                xid,
                tablespace,
            } => self.of(xid).tablespaces.push((lsn, tablespace, last)),
            Step::Prepare { xid, gid, subxids } => self.prepare(xid, gid, &subxids),
            Step::Restart => self.restart(),
            Step::End(end) => self.end(&end),
        }
    }

    fn end(&mut self, end: &EndStep) {
        let xids = || std::iter::once(end.xid).chain(end.subxids.iter().copied());
        let open: Vec<Open> = xids().filter_map(|xid| self.open.remove(&xid)).collect();
        let changes_catalogs = open.iter().any(|o| !o.changes.is_empty());
        if end.is_commit {
            if changes_catalogs || !end.dropped.is_empty() || self.may_tell(&open) {
                self.judge(end, &open);
            }
            if changes_catalogs {
                xids().for_each(|xid| self.catalogs.commit(xid));
            }
            self.last_commit = Some(Commit {
                xid: end.xid,
                lsn: end.lsn,
                time: end.time,
            });
            return;
        }
        // A database that is destroyed stays so.
        self.destroyed(&Draft::new(end.xid, None), &open);
        if changes_catalogs {
            xids().for_each(|xid| self.catalogs.roll_back(xid));
        }
    }

    /// Whether a transaction that changed no catalog can be an event: most change a few rows.
    fn may_tell(&self, open: &[Open]) -> bool {
        let destroys = |o: &Open| !o.databases.is_empty() || !o.tablespaces.is_empty();
        let rows = open.iter().flat_map(|o| o.rows.values());
        let count: u64 = rows.map(|rows| rows.deleted + rows.updated).sum();
        count >= self.rows_min || open.iter().any(destroys)
    }

    fn judge(&mut self, end: &EndStep, open: &[Open]) {
        let draft = Draft {
            gid: open.iter().find_map(|o| o.gid.clone()),
            last_commit: self.last_commit,
            ..Draft::new(end.xid, Some(end))
        };
        self.destroyed(&draft, open);
        let mut changes: Vec<&ClassChange> = Vec::new();
        for change in open.iter().flat_map(|o| &o.changes) {
            match change {
                Change::Class(change) => changes.push(change),
                Change::Named(place, row) => self.catalogs.learn_named(*place, row),
                _ => {}
            }
        }
        changes.sort_unstable_by_key(|c| c.lsn);
        let is_emptied = |file: (u32, u32)| open.iter().any(|o| o.emptied.contains(&file));
        let fates = fates(&changes, &is_emptied);
        for ((database, _), fate) in &fates {
            // A catalog that is written anew has its transient relation made in one file of pg_class, and dropped in another.
            let is_transient = |b: &ClassRow| b.written_anew().is_some();
            let is_mapped = open.iter().any(|o| o.maps.contains(database));
            if !is_mapped || !fate.before.as_ref().is_some_and(is_transient) {
                self.relation(&draft, *database, fate);
            }
        }
        self.leftover(&draft, end, (open, &changes));
        self.rows(&draft, open, &owners(&changes, &fates));
        for change in changes {
            let Some(after) = &change.after else {
                if change.has_row {
                    self.catalogs.lose(change.database);
                }
                continue;
            };
            let fate = fates.get(&(change.database, after.oid));
            let is_brief = fate.is_some_and(|fate| fate.is_made && fate.after.is_none());
            match is_brief && after.written_anew().is_some() {
                true => self.catalogs.learn_transient(change.database, after),
                false => self.catalogs.learn_change(change.database, after.clone()),
            }
        }
    }

    /// Reports databases and tablespaces that are gone: their target is the record that removed them, or made the database invalid.
    fn destroyed(&mut self, draft: &Draft, open: &[Open]) {
        let changes = || open.iter().flat_map(|o| &o.changes);
        for (lsn, oid, last) in open.iter().flat_map(|o| &o.databases) {
            // ALTER DATABASE SET TABLESPACE removes files as well, and CREATE DATABASE that fails.
            let deleted = changes().find_map(|change| match change {
                Change::DropDatabase(named) if is_of(named.as_ref(), *oid) => Some(named),
                _ => None,
            });
            let Some(named) = deleted else {
                continue;
            };
            let attempt = self.catalogs.attempt(*oid);
            let (target, last) = attempt.map_or((*lsn, *last), |a| (a.lsn, a.last_commit));
            self.catalogs.end_attempt(*oid);
            let name = named.as_ref().map(|(_, name)| name.clone());
            self.events.push(Event {
                database: Some(Named { oid: *oid, name }),
                last_commit: last,
                ..draft.event(Kind::Database, target, target)
            });
        }
        for (lsn, oid, last) in open.iter().flat_map(|o| &o.tablespaces) {
            let name = changes().find_map(|change| match change {
                Change::DropTablespace(Some((own, name))) if own == oid => Some(name.clone()),
                _ => None,
            });
            self.events.push(Event {
                tablespace: Some(Named { oid: *oid, name }),
                last_commit: *last,
                ..draft.event(Kind::Tablespace, *lsn, *lsn)
            });
        }
    }

    /// Reports the fate of a relation.
    fn relation(&mut self, draft: &Draft, database: u32, fate: &Fate) {
        let Some(before) = &fate.before else {
            return;
        };
        let kind = match &fate.after {
            None => Kind::Drop,
            Some(_) if fate.is_truncated => Kind::Truncate,
            Some(_) if fate.is_rewritten => Kind::Rewrite,
            Some(_) => return,
        };
        // WAL has the rows of pg_class of temporary tables, and nothing of their content.
        let is_temporary = before.persistence == b't';
        if !TABLES.contains(&before.kind) || before.oid < FIRST_NORMAL_OID || is_temporary {
            return;
        }
        let relation = self.named(database, before);
        let event = draft.event(kind, fate.first_lsn, draft.commit_lsn());
        self.events.push(Event {
            subxids: fate
                .xids
                .iter()
                .copied()
                .filter(|x| *x != draft.xid)
                .collect(),
            database: Some(self.database(database)),
            relation: Some(relation),
            ..event
        });
    }

    /// Reports files that were removed, and of which no row of `pg_class` told.
    fn leftover(
        &mut self,
        draft: &Draft,
        end: &EndStep,
        (open, changes): (&[Open], &[&ClassChange]),
    ) {
        let rows = changes.iter().flat_map(|c| [&c.before, &c.after]).flatten();
        let known: HashSet<u32> = rows.map(|row| row.file).collect();
        let is_new = |relation| open.iter().any(|o| o.created.contains(relation));
        let unknown = |c: &&&ClassChange| c.had_row && c.before.is_none();
        // Rows that were only deleted are relations that were dropped, whichever these were.
        let kind = match changes.iter().filter(unknown).all(|c| !c.has_row) {
            true if changes.iter().any(|c| unknown(&c)) => Kind::Drop,
            _ => Kind::Unclear,
        };
        for file in &end.dropped {
            // A map that was written explains the file of a catalog, which pg_class does not have.
            let is_mapped = open.iter().any(|o| o.maps.contains(&file.database));
            let is_own = file.number < FIRST_NORMAL_OID || known.contains(&file.number);
            if is_own || is_mapped || is_new(file) {
                continue;
            }
            let Some(relation) = self.table(file) else {
                continue;
            };
            let event = draft.event(kind, end.lsn, end.lsn);
            self.events.push(Event {
                database: Some(self.database(file.database)),
                relation: Some(relation),
                ..event
            });
        }
    }

    /// Reports relations of which many rows were deleted or updated. Those that the transaction made held nothing that anybody else saw.
    fn rows(&mut self, draft: &Draft, open: &[Open], owners: &HashMap<(u32, u32), &Fate>) {
        let mut counts: BTreeMap<(u32, u32, u32), (Relation, RowCount)> = BTreeMap::new();
        for (file, count) in open.iter().flat_map(|o| &o.rows) {
            let owner = owners.get(&(file.database, file.number));
            if owner.is_some_and(|fate| fate.is_made) {
                continue;
            }
            // A relation may have had several files: its numbers are those of the first.
            let relation = match owner.and_then(|fate| fate.before.as_ref()) {
                Some(before) => TABLES
                    .contains(&before.kind)
                    .then(|| self.named(file.database, before)),
                None => self.table(file),
            };
            if let Some(relation) = relation {
                let number = relation.file.unwrap_or(file.number);
                let key = (file.database, relation.oid.unwrap_or(0), number);
                let empty = || (relation, RowCount::default());
                // Subtransactions follow their parent, and each other, in no certain order: the first record of all counts.
                counts.entry(key).or_insert_with(empty).1.add(count);
            }
        }
        for ((database, ..), (relation, count)) in counts {
            for (kind, rows, first_lsn) in [
                (Kind::Delete, count.deleted, count.first_delete),
                (Kind::Update, count.updated, count.first_update),
            ] {
                if rows >= self.rows_min.max(1) {
                    self.events.push(Event {
                        rows: Some(rows),
                        database: Some(self.database(database)),
                        relation: Some(relation.clone()),
                        ..draft.event(kind, first_lsn, draft.commit_lsn())
                    });
                }
            }
        }
    }

    /// The relation of a file, by its numbers where no row of it is known; `None` of a catalog, an index or the like.
    fn table(&self, file: &record::Relation) -> Option<Relation> {
        if self.catalogs.is_mapped(file.database, file.number) {
            return None;
        }
        let Some(row) = self.catalogs.relation(file.database, file.number) else {
            let oid = self.catalogs.owner(file.database, file.number);
            if oid.is_some_and(|oid| oid < FIRST_NORMAL_OID) {
                return None;
            }
            return Some(Relation {
                oid,
                file: Some(file.number),
                tablespace: Some(file.tablespace),
                ..Relation::default()
            });
        };
        let is_table = TABLES.contains(&row.kind) && row.oid >= FIRST_NORMAL_OID;
        is_table.then(|| self.named(file.database, row))
    }

    fn named(&self, database: u32, row: &ClassRow) -> Relation {
        Relation {
            oid: Some(row.oid),
            file: (row.file != 0).then_some(row.file),
            tablespace: (row.tablespace != 0).then_some(row.tablespace),
            schema: self.catalogs.schema(database, row.namespace).cloned(),
            name: Some(row.name.clone()),
            name_now: None,
            kind: Some(char::from(row.kind)),
            persistence: Some(char::from(row.persistence)),
            namespace: row.namespace,
            is_unsure: false,
        }
    }

    fn database(&self, oid: u32) -> Named {
        Named {
            oid,
            name: self.catalogs.database(oid).cloned(),
        }
    }
}

/// The event of a database that somebody began to drop, and that is still there: nobody gets into it again.
pub fn interrupted(database: u32, attempt: Attempt) -> Event {
    Event {
        database: Some(Named {
            oid: database,
            name: Some(attempt.name),
        }),
        last_commit: attempt.last_commit,
        ..Draft::new(attempt.xid, None).event(Kind::Database, attempt.lsn, attempt.lsn)
    }
}

/// Whether a row that was deleted may be that of an oid.
fn is_of(named: Option<&(u32, String)>, oid: u32) -> bool {
    named.is_none_or(|(own, _)| *own == oid)
}

/// The members that all events of a transaction share.
struct Draft {
    xid: u32,
    commit: Option<Commit>,
    gid: Option<String>,
    last_commit: Option<Commit>,
}

impl Draft {
    fn new(xid: u32, end: Option<&EndStep>) -> Draft {
        Draft {
            xid,
            commit: end.map(|end| Commit {
                xid: end.xid,
                lsn: end.lsn,
                time: end.time,
            }),
            gid: None,
            last_commit: None,
        }
    }

    fn commit_lsn(&self) -> Lsn {
        self.commit.map_or(Lsn(0), |c| c.lsn)
    }

    fn event(&self, kind: Kind, first_lsn: Lsn, target_lsn: Lsn) -> Event {
        Event {
            kind,
            time: self.commit.map(|c| c.time),
            xid: self.xid,
            subxids: Vec::new(),
            gid: self.gid.clone(),
            database: None,
            relation: None,
            tablespace: None,
            rows: None,
            commit_lsn: self.commit.map(|c| c.lsn),
            first_lsn,
            target_lsn,
            last_commit: self.last_commit,
        }
    }
}

/// Follows each relation through the changes of a transaction, which are in order. `is_emptied` tells the files that it emptied in their place.
fn fates(
    changes: &[&ClassChange],
    is_emptied: &impl Fn((u32, u32)) -> bool,
) -> BTreeMap<(u32, u32), Fate> {
    let mut fates: BTreeMap<(u32, u32), Fate> = BTreeMap::new();
    // Files of relations that the transaction itself made: what is swapped in from there was written anew.
    let mut made: HashSet<(u32, u32)> = HashSet::new();
    // Files that relations had before: what another one has afterwards was swapped with it, as pg_repack does.
    let mut had: HashMap<(u32, u32), u32> = HashMap::new();
    for (change, before) in changes.iter().filter_map(|c| Some((c, c.before.as_ref()?))) {
        had.entry((change.database, before.file))
            .or_insert(before.oid);
    }
    for change in changes {
        if !change.had_row
            && let Some(after) = &change.after
        {
            made.insert((change.database, after.file));
        }
        let Some(row) = change.before.as_ref().or(change.after.as_ref()) else {
            continue;
        };
        let key = (change.database, row.oid);
        let is_first = !fates.contains_key(&key);
        let fate = fates.entry(key).or_default();
        if is_first {
            fate.before = change.before.clone();
            fate.is_made = !change.had_row;
        }
        if change.has_row && change.after.is_none() {
            // Its new version is not known: as it was, but for what it does not tell.
            fate.after = change.before.clone();
            continue;
        }
        fate.after = change.after.clone();
        let Some((before, after)) = change.before.as_ref().zip(change.after.as_ref()) else {
            if !change.has_row {
                note(fate, change);
            }
            continue;
        };
        if before.file != after.file && before.file != 0 {
            note(fate, change);
            fate.is_truncated |= is_emptied((change.database, after.file));
            let file = (change.database, after.file);
            let is_swapped =
                made.contains(&file) || had.get(&file).is_some_and(|oid| *oid != after.oid);
            match is_swapped || before.tablespace != after.tablespace {
                true => fate.is_rewritten = true,
                false => fate.is_truncated = true,
            }
        }
    }
    fates
}

/// The fates of relations by database and file. One that is written anew has the file of a transient one that the transaction made.
fn owners<'a>(
    changes: &[&ClassChange],
    fates: &'a BTreeMap<(u32, u32), Fate>,
) -> HashMap<(u32, u32), &'a Fate> {
    let mut owners: HashMap<(u32, u32), &Fate> = HashMap::new();
    for ((database, _), fate) in fates {
        if let Some(before) = &fate.before {
            owners.insert((*database, before.file), fate);
        }
    }
    for change in changes {
        for row in [&change.before, &change.after].into_iter().flatten() {
            if let Some(fate) = fates.get(&(change.database, row.oid)) {
                let owner = owners.entry((change.database, row.file)).or_insert(fate);
                if owner.is_made {
                    *owner = fate;
                }
            }
        }
    }
    owners
}

fn note(fate: &mut Fate, change: &ClassChange) {
    if fate.first_lsn == Lsn(0) {
        fate.first_lsn = change.lsn;
    }
    if !fate.xids.contains(&change.xid) {
        fate.xids.push(change.xid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lsn: u64, xid: u32) -> Open {
        let change = ClassChange {
            lsn: Lsn(lsn),
            xid,
            database: 5,
            had_row: true,
            before: None,
            has_row: true,
            after: None,
        };
        Open {
            changes: vec![Change::Class(change)],
            ..Open::default()
        }
    }

    fn digest(steps: Vec<Step>) -> Digest {
        Digest {
            steps,
            ..Digest::default()
        }
    }

    /// A server that crashed writes no record of the end of its transactions.
    #[test]
    fn a_transaction_that_a_crash_ended_is_not_awaited() {
        let mut story = Story::new(Major::V17, CatalogFiles::default(), u64::MAX);
        let databases = BTreeSet::from([5]);
        story.open.insert(7, changed(10, 7));
        assert!(story.awaits_relations(&databases));
        story.take(digest(vec![Step::Restart]));
        assert!(!story.awaits_relations(&databases));
        story.open.insert(8, changed(30, 8));
        assert!(story.awaits_relations(&databases));
    }

    #[test]
    fn a_prepared_transaction_is_awaited_beyond_a_restart() {
        let mut story = Story::new(Major::V17, CatalogFiles::default(), u64::MAX);
        let databases = BTreeSet::from([5]);
        // The subtransaction made the change.
        story.open.insert(8, changed(10, 8));
        let prepare = Step::Prepare {
            xid: 7,
            gid: "p".to_owned(),
            subxids: vec![8],
        };
        story.take(digest(vec![prepare, Step::Restart]));
        assert!(story.awaits_relations(&databases));
        let end = EndStep {
            lsn: Lsn(40),
            xid: 7,
            time: crate::pg::time::TimestampTz(0),
            is_commit: true,
            subxids: vec![8],
            dropped: Vec::new(),
        };
        story.take(digest(vec![Step::End(end)]));
        assert!(!story.awaits_relations(&databases));
    }
}
