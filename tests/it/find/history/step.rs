//! The next step of a history.

use super::world::{Draft, Looked, Seen, Shape, Table, World, quoted};

/// A crash is rare.
const CRASH_ONE_IN: usize = 400;
/// Fewer tables are too few, and more make the history slow.
const TABLES: std::ops::Range<usize> = 10..40;
/// Databases that will be dropped.
const DATABASES_MAX: usize = 4;
const SPACES_MAX: usize = 4;
const SCHEMAS_MAX: usize = 8;

impl World {
    pub fn step(&mut self) {
        if self.random.one_in(CRASH_ONE_IN) {
            return self.crash();
        }
        let is_few = self.tables.len() < TABLES.start;
        if is_few || (self.tables.len() < TABLES.end && self.random.one_in(8)) {
            return self.create();
        }
        match self.random.below(40) {
            0 => self.does("postgres", "checkpoint"),
            1 => self.does("postgres", "select pg_switch_wal()"),
            2 => self.rewrite_catalog(),
            3 => self.databases(),
            4 => self.tablespaces(),
            5 => self.schemas(),
            6 | 7 => self.rewrite(),
            8 => self.maintain(),
            9 => self.temporary(),
            10..=13 => self.end_one(),
            _ => self.transaction(),
        }
    }

    pub fn create(&mut self) {
        let database = self.database();
        self.create_in(&database);
    }

    pub fn create_in(&mut self, database: &str) {
        let here = self.schemas.iter().filter(|(d, _)| d == database);
        let here: Vec<String> = here.map(|(_, schema)| schema.clone()).collect();
        let schema = self.random.pick(&here).clone();
        let name = self.name("t");
        let mut table = Table {
            database: database.to_owned(),
            schema,
            name,
            shape: Shape::Plain,
            number: self.next(),
        };
        let rows = 1 + self.random.below(400);
        let number = table.number;
        let space = quoted(&self.space());
        // A text that does not fit into its row, now and then.
        let text = match self.random.below(8) {
            0 => "(select string_agg(md5((g * h)::text), '') from generate_series(1, 150) h)",
            _ => "repeat('x', g % 90)",
        };
        let series = format!("generate_series(1, {rows}) g");
        let columns =
            format!("(a int constraint pk_{number} primary key, b text) tablespace {space}");
        match self.random.below(12) {
            0 => {
                let parts: Vec<String> = (0..2).map(|_| self.name("p")).collect();
                table.shape = Shape::Parts(parts.clone());
                let parent = table.sql();
                self.does(
                    database,
                    &format!("create table {parent} (a int, b text) partition by range (a)"),
                );
                for (part, range) in parts
                    .iter()
                    .zip(["from (minvalue) to (200)", "from (200) to (maxvalue)"])
                {
                    let part = table.sql_of(part);
                    self.does(
                        database,
                        &format!("create table {part} partition of {parent} for values {range}"),
                    );
                }
                self.does(
                    database,
                    &format!("insert into {parent} select g, {text} from {series}"),
                );
            }
            1 => {
                table.shape = Shape::View;
                let view = table.sql();
                self.does(database, &format!("create materialized view {view} tablespace {space} as select g as a, {text} as b from {series}"));
            }
            2 => {
                table.shape = Shape::Unlogged;
                let name = table.sql();
                self.does(database, &format!("create unlogged table {name} {columns}"));
                self.does(
                    database,
                    &format!("insert into {name} select g, {text} from {series}"),
                );
            }
            3 => {
                // Nobody else sees a table before the transaction that makes it ends.
                let name = table.sql();
                self.does(database, "begin");
                self.does(database, &format!("create table {name} {columns}"));
                self.does(
                    database,
                    &format!("insert into {name} select g, {text} from {series}"),
                );
                self.does(
                    database,
                    &format!("update {name} set b = 'early' where a % 2 = 0"),
                );
                self.does(database, &format!("delete from {name} where a % 3 = 0"));
                if self.random.one_in(3) {
                    self.does(database, &format!("alter table {name} alter a type bigint"));
                }
                self.does(database, "commit");
            }
            _ => {
                let name = table.sql();
                self.does(database, &format!("create table {name} {columns}"));
                self.does(
                    database,
                    &format!("insert into {name} select g, {text} from {series}"),
                );
            }
        }
        self.tables.push(table);
    }

    /// From here on a catalog has another file.
    fn rewrite_catalog(&mut self) {
        let database = self.database();
        let catalogs = [
            "pg_class",
            "pg_class",
            "pg_namespace",
            "pg_database",
            "pg_tablespace",
            "pg_attribute",
        ];
        let catalog = *self.random.pick(&catalogs);
        self.does(&database, &format!("vacuum full {catalog}"));
    }

    /// Writes a table anew without a transaction around it.
    fn rewrite(&mut self) {
        let mut able = self
            .tables
            .iter()
            .filter(|t| !matches!(t.shape, Shape::Parts(_)));
        let count = able.clone().count();
        let at = self.random.below(count);
        let Some(table) = able.nth(at).cloned() else {
            return;
        };
        let looked = self.look(&table, &table.name);
        let name = table.sql();
        let sql = match self.cluster.major() >= 19 && self.random.one_in(2) {
            true => format!("repack {name}"),
            false => format!("vacuum full {name}"),
        };
        let when = self.alone(&table.database, &sql);
        self.expect(vec![("rewrite", looked, None)], when, None);
    }

    /// Does something that leaves rows as they are.
    fn maintain(&mut self) {
        let at = self.random.below(self.tables.len());
        let table = self.tables[at].clone();
        let name = table.sql();
        match self.random.below(3) {
            0 => self.does(&table.database, &format!("vacuum {name}")),
            1 => self.does(&table.database, &format!("analyze {name}")),
            _ if matches!(table.shape, Shape::Parts(_)) => {}
            _ => self.does(&table.database, &format!("reindex table {name}")),
        }
    }

    fn temporary(&mut self) {
        let database = self.database();
        for sql in [
            "create temp table passing as select g as a from generate_series(1, 100) g",
            "update passing set a = 1",
            "delete from passing",
            "truncate passing",
            "drop table passing",
        ] {
            self.does(&database, sql);
        }
    }

    fn databases(&mut self) {
        let known = self.clients.keys();
        let all: Vec<String> = known
            .filter(|d| *d != "postgres" && *d != "Other db")
            .cloned()
            .collect();
        let idle: Vec<String> = all.iter().filter(|d| !self.is_busy(d)).cloned().collect();
        if all.len() < DATABASES_MAX && (idle.is_empty() || self.random.one_in(3)) {
            return self.create_database();
        }
        if idle.is_empty() {
            return;
        }
        let name = self.random.pick(&idle).clone();
        let quoted_name = quoted(&name);
        match self.random.below(4) {
            0 => {
                let new = self.name("d");
                self.clients.remove(&name);
                self.does(
                    "postgres",
                    &format!("alter database {quoted_name} rename to {}", quoted(&new)),
                );
                for table in self.tables.iter_mut().filter(|t| t.database == name) {
                    table.database.clone_from(&new);
                }
                for (database, _) in self.schemas.iter_mut().filter(|(d, _)| *d == name) {
                    database.clone_from(&new);
                }
                self.connect(&new);
            }
            1 => {
                self.clients.remove(&name);
                let is_there = "select count(*) from pg_database d join pg_tablespace t on t.oid = dattablespace where spcname = 'dbspace' and datname = ";
                let is_there = self
                    .client("postgres")
                    .value(&format!("{is_there} '{}'", name.replace('\'', "''")));
                let space = if is_there == "1" {
                    "pg_default"
                } else {
                    "dbspace"
                };
                let sql = format!("alter database {quoted_name} set tablespace {space}");
                self.tries("postgres", &sql, "are already in tablespace");
                self.connect(&name);
            }
            _ => self.drop_database(&name),
        }
    }

    fn create_database(&mut self) {
        let name = self.name("d");
        let mut sql = format!("create database {}", quoted(&name));
        if self.cluster.major() >= 15 {
            let strategy = *self.random.pick(&["wal_log", "file_copy"]);
            sql.push_str(&format!(" strategy {strategy}"));
        }
        self.does("postgres", &sql);
        self.connect(&name);
        self.schemas.push((name.clone(), "public".into()));
        for _ in 0..2 {
            self.create_in(&name);
        }
    }

    fn drop_database(&mut self, name: &str) {
        let inside = self.tables.iter();
        let mut inside = inside.filter(|t| t.database == name && t.shape == Shape::Plain);
        let inside = inside.next().cloned();
        let seen = match inside {
            Some(table) => self.look(&table, &table.name).seen,
            None => Some(Seen {
                database: name.to_owned(),
                query: "select current_database()".into(),
                answer: name.to_owned(),
            }),
        };
        let is_forced = self.random.one_in(2);
        if !is_forced {
            self.clients.remove(name);
        }
        let forced = if is_forced { " with (force)" } else { "" };
        let when = self.alone(
            "postgres",
            &format!("drop database {}{forced}", quoted(name)),
        );
        self.clients.remove(name);
        self.tables.retain(|t| t.database != name);
        self.schemas.retain(|(d, _)| d != name);
        let title = name.to_owned();
        self.expect(vec![("database", Looked { title, seen }, None)], when, None);
    }

    pub fn create_tablespace(&mut self) {
        let name = self.name("s");
        let number = self.next();
        let folder = self.cluster.sandbox().dir(format!("place{number}"));
        let location = folder.display();
        self.does(
            "postgres",
            &format!("create tablespace {} location '{location}'", quoted(&name)),
        );
        self.spaces.push(name);
    }

    fn tablespaces(&mut self) {
        if self.spaces.len() < SPACES_MAX && (self.spaces.is_empty() || self.random.one_in(2)) {
            return self.create_tablespace();
        }
        let at = self.random.below(self.spaces.len());
        let name = self.spaces.swap_remove(at);
        if self.random.one_in(3) {
            let new = self.name("s");
            self.does(
                "postgres",
                &format!(
                    "alter tablespace {} rename to {}",
                    quoted(&name),
                    quoted(&new)
                ),
            );
            return self.spaces.push(new);
        }
        // A transaction that has not ended may have files there.
        self.end_all();
        for database in self.clients.keys().cloned().collect::<Vec<_>>() {
            self.empty(&database, &name);
        }
        let text = name.replace('\'', "''");
        let seen = Seen {
            database: "postgres".into(),
            query: format!("select spcname from pg_tablespace where spcname = '{text}'"),
            answer: name.clone(),
        };
        // A server that died leaves files of transactions that never ended.
        let sql = format!("drop tablespace {}", quoted(&name));
        let Some(when) = self.tries_alone("postgres", &sql, "is not empty") else {
            return self.spaces.push(name);
        };
        let looked = Looked {
            title: name,
            seen: Some(seen),
        };
        self.expect(vec![("tablespace", looked, None)], when, None);
    }

    /// Moves what a database has in a tablespace to its own.
    fn empty(&mut self, database: &str, space: &str) {
        let of = "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = relnamespace join pg_tablespace t on t.oid = reltablespace where relkind in ('r', 'm') and spcname = ";
        let space = space.replace('\'', "''");
        let sql = format!("{of} '{space}' order by c.oid");
        for row in self.client(database).sql(&sql) {
            let [schema, relation] = [0, 1].map(|n| row[n].clone().unwrap());
            let mut all = self.tables.iter();
            let is_it =
                |t: &&Table| t.database == database && t.schema == schema && t.name == relation;
            let table = all.find(is_it).expect("a table of the history").clone();
            let looked = self.look(&table, &table.name);
            let object = match table.shape {
                Shape::View => "materialized view",
                _ => "table",
            };
            let name = table.sql();
            let when = self.alone(
                database,
                &format!("alter {object} {name} set tablespace pg_default"),
            );
            self.expect(vec![("rewrite", looked, None)], when, None);
        }
    }

    pub fn create_schema(&mut self, database: &str) {
        let name = self.name("n");
        self.does(database, &format!("create schema {}", quoted(&name)));
        self.schemas.push((database.to_owned(), name));
    }

    fn schemas(&mut self) {
        let database = self.database();
        if self.schemas.len() < SCHEMAS_MAX && self.random.one_in(2) {
            return self.create_schema(&database);
        }
        let here = self.schemas.iter();
        let here = here.filter(|(d, s)| *d == database && s != "public");
        let here: Vec<String> = here.map(|(_, s)| s.clone()).collect();
        if here.is_empty() || self.is_busy(&database) {
            return;
        }
        let name = self.random.pick(&here).clone();
        let is_it = |t: &Table| t.database == database && t.schema == name;
        if self.random.one_in(2) {
            let new = self.name("n");
            self.does(
                &database,
                &format!("alter schema {} rename to {}", quoted(&name), quoted(&new)),
            );
            for table in self.tables.iter_mut().filter(|t| is_it(t)) {
                table.schema.clone_from(&new);
            }
            self.schemas
                .retain(|s| *s != (database.clone(), name.clone()));
            return self.schemas.push((database.clone(), new));
        }
        let inside: Vec<Table> = self.tables.iter().filter(|t| is_it(t)).cloned().collect();
        let mut drafts: Vec<Draft> = Vec::new();
        for table in &inside {
            let mut names = table.leaves();
            if matches!(table.shape, Shape::Parts(_)) {
                names.push(table.name.clone());
            }
            drafts.extend(names.iter().map(|n| ("drop", self.look(table, n), None)));
        }
        let when = self.alone(&database, &format!("drop schema {} cascade", quoted(&name)));
        self.tables
            .retain(|t| !(t.database == database && t.schema == name));
        self.schemas
            .retain(|s| *s != (database.clone(), name.clone()));
        self.expect(drafts, when, None);
    }
}
