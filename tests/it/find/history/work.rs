//! A transaction: what it does to tables, in subtransactions that stay or not, and how it ends.

use std::collections::BTreeMap;

use super::now;
use super::world::{Draft, Looked, Shape, Table, World, quoted};
use crate::common::Client;

/// Transactions that go on beside the others.
const OPEN_MAX: usize = 4;

/// A transaction that has not ended.
pub struct Work {
    pub database: String,
    /// Its session; none once it is prepared.
    pub client: Option<Client>,
    xid: u64,
    gid: Option<String>,
    /// The tables that it has taken, as they were and as it leaves them.
    pub before: Vec<Table>,
    pub after: Vec<Table>,
    drafts: Vec<Draft>,
}

/// The changes of one table in a transaction.
#[derive(Clone)]
struct Touched {
    /// Its name before.
    first: String,
    table: Table,
    is_dropped: bool,
    is_truncated: bool,
    is_rewritten: bool,
    /// After SET TABLESPACE and INSERT are rolled back, servers have been seen to look for a block in the old file that it never had.
    is_moved: bool,
    /// Rows deleted and updated of each relation that has a file, by its first name.
    rows: BTreeMap<String, [u64; 2]>,
}

impl Work {
    fn does(&self, world: &mut World, sql: &str) {
        world.statements += 1;
        self.client.as_ref().expect("it is not prepared").sql(sql);
    }

    fn count(&self, sql: &str) -> u64 {
        let client = self.client.as_ref().expect("it is not prepared");
        client.value(sql).parse().unwrap()
    }

    /// Does one or more things to a table, each in a subtransaction or not.
    fn touch(&mut self, world: &mut World, table: Table) {
        let leaves = table.leaves();
        let client = self.client.as_ref().expect("it is not prepared");
        let look = |name: &String| table.look(client, name);
        let looked: Vec<Looked> = leaves.iter().map(look).collect();
        let parent = match table.shape {
            Shape::Parts(_) => Some(look(&table.name)),
            _ => None,
        };
        let mut touched = Touched {
            first: table.name.clone(),
            table,
            is_dropped: false,
            is_truncated: false,
            is_rewritten: false,
            is_moved: false,
            rows: BTreeMap::new(),
        };
        let count = 1 + world.random.below(3) / 2 + world.random.below(4) / 3;
        for _ in 0..count {
            if touched.is_dropped || touched.is_moved {
                break;
            }
            match world.random.below(10) {
                0 => {
                    self.does(world, "savepoint gone");
                    let as_before = touched.clone();
                    self.change(world, &mut touched);
                    self.does(world, "rollback to gone");
                    touched = as_before;
                }
                1 => {
                    self.does(world, "savepoint kept");
                    self.change(world, &mut touched);
                    self.does(world, "release kept");
                }
                2 => {
                    self.does(world, "savepoint around");
                    self.does(world, "savepoint within");
                    self.change(world, &mut touched);
                    self.does(world, "release within");
                    self.noise(world);
                    if world.random.one_in(2) {
                        self.does(world, "release around");
                    }
                }
                3 => {
                    self.does(world, "savepoint noise");
                    self.noise(world);
                    self.does(world, "rollback to noise");
                    self.change(world, &mut touched);
                }
                _ => self.change(world, &mut touched),
            }
        }
        let fate = match (
            touched.is_dropped,
            touched.is_truncated,
            touched.is_rewritten,
        ) {
            (true, ..) => Some("drop"),
            (_, true, _) => Some("truncate"),
            (_, _, true) => Some("rewrite"),
            _ => None,
        };
        for (name, looked) in leaves.iter().zip(looked) {
            if let Some(fate) = fate {
                self.drafts.push((fate, looked.clone(), None));
            }
            let [deleted, updated] = touched.rows.get(name).copied().unwrap_or_default();
            for (kind, rows) in [("delete", deleted), ("update", updated)] {
                if rows > 0 {
                    self.drafts.push((kind, looked.clone(), Some(rows)));
                }
            }
        }
        match touched.is_dropped {
            true => self
                .drafts
                .extend(parent.map(|looked| ("drop", looked, None))),
            false => self.after.push(touched.table),
        }
    }

    /// A table that comes and goes, and that nobody else ever saw.
    fn noise(&self, world: &mut World) {
        let name = format!("noise{}", world.next());
        self.does(
            world,
            &format!("create table {name} as select g as a from generate_series(1, 20) g"),
        );
        match world.random.below(5) {
            0 => self.does(world, &format!("truncate {name}")),
            1 => self.does(world, &format!("update {name} set a = 7")),
            2 => self.does(world, &format!("delete from {name} where a > 3")),
            3 => self.does(world, &format!("alter table {name} alter a type bigint")),
            _ => {}
        }
        self.does(world, &format!("drop table {name}"));
    }

    fn rows(
        &self,
        world: &mut World,
        touched: &mut Touched,
        (at, set): (usize, &str),
        filter: &str,
    ) {
        let table = &touched.table;
        let count = |name: &String| {
            let name = table.sql_of(name);
            self.count(&format!("select count(*) from {name} where {filter}"))
        };
        let counts: Vec<u64> = table.leaves().iter().map(count).collect();
        let target = table.sql();
        let sql = match at {
            0 => format!("delete from {target} where {filter}"),
            _ => format!("update {target} set {set} where {filter}"),
        };
        self.does(world, &sql);
        // WAL has no rows of unlogged tables.
        if touched.table.shape != Shape::Unlogged {
            for (name, count) in touched.originals().into_iter().zip(counts) {
                touched.rows.entry(name).or_default()[at] += count;
            }
        }
    }

    fn change(&self, world: &mut World, touched: &mut Touched) {
        let name = touched.table.sql();
        let is_view = touched.table.shape == Shape::View;
        let is_parted = matches!(touched.table.shape, Shape::Parts(_));
        if is_view {
            return match world.random.below(3) {
                0 => {
                    self.does(world, &format!("drop materialized view {name}"));
                    touched.is_dropped = true;
                }
                _ => {
                    self.does(world, &format!("refresh materialized view {name}"));
                    touched.is_rewritten = true;
                }
            };
        }
        let digit = world.random.below(7);
        match world.random.below(if is_parted { 8 } else { 16 }) {
            0 => {
                self.does(world, &format!("drop table {name}"));
                touched.is_dropped = true;
            }
            // WAL does not have that the new file of an unlogged table is emptied.
            1 | 2 if touched.table.shape == Shape::Unlogged && touched.is_rewritten => {}
            1 => {
                self.does(world, &format!("truncate {name}"));
                touched.is_truncated = true;
            }
            2 => {
                self.does(world, &format!("truncate {name}"));
                touched.is_truncated = true;
                self.insert(world, touched);
            }
            3 => self.rows(world, touched, (0, ""), &format!("a % 7 = {digit}")),
            4 => self.rows(
                world,
                touched,
                (1, "b = b || 'y'"),
                &format!("a % 7 = {digit}"),
            ),
            5 if is_parted => {
                // Rows of the first partition move to the last one.
                self.rows(world, touched, (1, "a = a + 100000"), "a % 3 = 1");
            }
            5 => self.rows(world, touched, (1, "b = null"), "a % 11 = 0"),
            6 => self.insert(world, touched),
            7 => {
                let new = world.name("r");
                let quoted = quoted(&new);
                self.does(world, &format!("alter table {name} rename to {quoted}"));
                touched.table.name = new;
            }
            8 => {
                let new = *world.random.pick(&["bigint", "numeric", "integer"]);
                let sql = format!("alter table {name} alter a type {new}");
                touched.is_rewritten |= self.gets_another_file(world, &name, &sql);
            }
            9 => {
                let schemas = world.schemas.iter();
                let here =
                    schemas.filter(|(d, s)| *d == self.database && *s != touched.table.schema);
                let here: Vec<String> = here.map(|(_, s)| s.clone()).collect();
                if !here.is_empty() {
                    let new = world.random.pick(&here).clone();
                    let quoted = quoted(&new);
                    self.does(world, &format!("alter table {name} set schema {quoted}"));
                    touched.table.schema = new;
                }
            }
            10 => {
                let space = world.space();
                let space = quoted(&space);
                let sql = format!("alter table {name} set tablespace {space}");
                touched.is_rewritten |= self.gets_another_file(world, &name, &sql);
                touched.is_moved = true;
            }
            11 => {
                let number = touched.table.number;
                self.does(world, &format!("cluster {name} using pk_{number}"));
                touched.is_rewritten = true;
            }
            12 => {
                let (word, shape) = match touched.table.shape {
                    Shape::Unlogged => ("logged", Shape::Plain),
                    _ => ("unlogged", Shape::Unlogged),
                };
                self.does(world, &format!("alter table {name} set {word}"));
                touched.table.shape = shape;
                touched.is_rewritten = true;
            }
            13 => {
                let column = world.next();
                self.does(
                    world,
                    &format!("alter table {name} add column c{column} float default random()"),
                );
                touched.is_rewritten = true;
            }
            14 => {
                let column = world.next();
                self.does(
                    world,
                    &format!("alter table {name} add column c{column} int default 7"),
                );
            }
            _ => {
                let column = world.next();
                self.does(world, &format!("create index i{column} on {name} (a)"));
                if world.random.one_in(2) {
                    self.does(world, &format!("reindex table {name}"));
                }
            }
        }
    }

    fn insert(&self, world: &mut World, touched: &Touched) {
        let rows = 1 + world.random.below(200);
        let name = touched.table.sql();
        self.does(
            world,
            &format!("insert into {name} (a, b) select (select coalesce(max(a), 0) from {name}) + g, repeat('n', g % 50) from generate_series(1, {rows}) g"),
        );
    }

    /// Runs a statement; whether the relation has another file then. The server's function leaves no lock on a catalog, which a query would.
    fn gets_another_file(&self, world: &mut World, name: &str, sql: &str) -> bool {
        let client = self.client.as_ref().expect("it is not prepared");
        let text = name.replace('\'', "''");
        let file = format!("select pg_relation_filepath('{text}')");
        let before = client.value(&file);
        self.does(world, sql);
        before != client.value(&file)
    }
}

impl Touched {
    /// The relations that have a file, by the names before the transaction.
    fn originals(&self) -> Vec<String> {
        match &self.table.shape {
            Shape::Parts(parts) => parts.clone(),
            _ => vec![self.first.clone()],
        }
    }
}

impl World {
    /// A transaction that does things to up to three tables of a database.
    pub fn transaction(&mut self) {
        let database = self.database();
        let mut taken = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let mut here = (0..self.tables.len()).collect::<Vec<_>>();
            here.retain(|at| self.tables[*at].database == database);
            if !here.is_empty() {
                let at = *self.random.pick(&here);
                taken.push(self.tables.swap_remove(at));
            }
        }
        if taken.is_empty() {
            return self.create_in(&database);
        }
        let client = self.clients.remove(&database).expect("a session");
        let mut work = Work {
            database,
            client: Some(client),
            xid: 0,
            gid: None,
            before: taken.clone(),
            after: Vec::new(),
            drafts: Vec::new(),
        };
        work.client.as_ref().unwrap().sql("begin");
        for table in taken {
            work.touch(self, table);
        }
        work.xid = work.count("select pg_current_xact_id()::text");
        let may_stay = self.open.len() < OPEN_MAX;
        match self.random.below(12) {
            0 => self.roll_back(work, "rollback"),
            1 => {
                self.statements += 1;
                let failed = work.client.as_ref().unwrap().try_sql("select 1 / 0");
                assert!(failed.is_err());
                self.roll_back(work, "commit");
            }
            2 => {
                self.prepare(&mut work);
                self.commit(work);
            }
            3 => {
                let gid = self.prepare(&mut work);
                self.roll_back(work, &format!("rollback prepared '{gid}'"));
            }
            4 if may_stay => {
                self.connect(&work.database.clone());
                self.open.push(work);
            }
            5 if may_stay => {
                self.prepare(&mut work);
                self.open.push(work);
            }
            _ => self.commit(work),
        }
    }

    /// The session is free for others from here on.
    fn prepare(&mut self, work: &mut Work) -> String {
        let gid = format!("gid '' {}", self.next());
        work.does(self, &format!("prepare transaction '{gid}'"));
        let client = work.client.take().expect("it is not prepared");
        self.clients.insert(work.database.clone(), client);
        work.gid = Some(gid.replace("''", "'"));
        gid
    }

    fn end(&mut self, work: &mut Work, sql: &str) {
        self.statements += 1;
        match work.client.take() {
            Some(client) => {
                client.sql(sql);
                self.clients.insert(work.database.clone(), client);
            }
            None => drop(self.client(&work.database).sql(sql)),
        }
    }

    fn roll_back(&mut self, mut work: Work, sql: &str) {
        self.end(&mut work, sql);
        self.tables.extend(work.before);
    }

    fn commit(&mut self, mut work: Work) {
        let sql = match &work.gid {
            Some(gid) => format!("commit prepared '{}'", gid.replace('\'', "''")),
            None => "commit".to_owned(),
        };
        let from = now();
        self.end(&mut work, &sql);
        let times = (from, now());
        self.tables.extend(work.after);
        self.expect(
            work.drafts,
            (work.xid..work.xid + 1, times),
            work.gid.as_deref(),
        );
    }

    /// Ends a transaction that went on beside the others.
    pub fn end_one(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.random.below(self.open.len());
        let work = self.open.swap_remove(at);
        match (self.random.one_in(3), &work.gid) {
            (false, _) => self.commit(work),
            (true, Some(gid)) => {
                let sql = format!("rollback prepared '{}'", gid.replace('\'', "''"));
                self.roll_back(work, &sql);
            }
            (true, None) => self.roll_back(work, "rollback"),
        }
    }

    pub fn end_all(&mut self) {
        while !self.open.is_empty() {
            self.end_one();
        }
    }
}
