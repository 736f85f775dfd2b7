//! The databases, schemas, tablespaces and tables of a history, and the record of what happened to them.

use std::collections::BTreeMap;
use std::ops::Range;

use pitr::pg::time::TimestampTz;

use super::now;
use super::work::Work;
use crate::common::random::Random;
use crate::common::{Client, Cluster, Stop, text_of, wait_until};

/// Text of a name in SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Plain,
    /// Its content is in no WAL.
    Unlogged,
    /// With these partitions.
    Parts(Vec<String>),
    /// A materialized view.
    View,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub database: String,
    pub schema: String,
    pub name: String,
    pub shape: Shape,
    /// Never comes again, for the names of indexes.
    pub number: usize,
}

impl Table {
    pub fn sql(&self) -> String {
        self.sql_of(&self.name)
    }

    /// The name of one of its partitions in SQL.
    pub fn sql_of(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(name))
    }

    fn title_of(&self, name: &str) -> String {
        format!("{}.{}.{name}", self.database, self.schema)
    }

    /// Looks at itself or a partition while it is whole.
    pub fn look(&self, client: &Client, name: &str) -> Looked {
        let relation = self.sql_of(name);
        let query = format!(
            "select count(*) || '/' || coalesce(sum(hashtextextended(t::text, 0)), 0) from {relation} t"
        );
        let is_kept = self.shape != Shape::Unlogged;
        Looked {
            title: self.title_of(name),
            seen: is_kept.then(|| Seen {
                database: self.database.clone(),
                answer: client.value(&query),
                query,
            }),
        }
    }

    /// The relations that have a file: itself, or its partitions.
    pub fn leaves(&self) -> Vec<String> {
        match &self.shape {
            Shape::Parts(parts) => parts.clone(),
            _ => vec![self.name.clone()],
        }
    }
}

/// A query at the moment before an event, and its answer.
#[derive(Debug, Clone)]
pub struct Seen {
    pub database: String,
    pub query: String,
    pub answer: String,
}

/// Name and content of a relation, as the client last saw it.
#[derive(Debug, Clone)]
pub struct Looked {
    pub title: String,
    pub seen: Option<Seen>,
}

/// An event that must be found.
#[derive(Debug)]
pub struct Expected {
    pub title: String,
    pub xids: Range<u64>,
    /// Its commit lies between these.
    pub times: (TimestampTz, TimestampTz),
    pub rows: Option<u64>,
    pub gid: Option<String>,
    pub seen: Option<Seen>,
}

impl Expected {
    pub fn is_of_relation(&self) -> bool {
        !self.title.starts_with("database ") && !self.title.starts_with("tablespace ")
    }
}

/// The transactions that a statement may have been, and the times between which it was committed.
pub type When = (Range<u64>, (TimestampTz, TimestampTz));

/// An event of a transaction that has not ended: kind, relation, rows.
pub type Draft = (&'static str, Looked, Option<u64>);

pub struct World {
    pub random: Random,
    pub cluster: Cluster,
    /// A session in each database.
    pub clients: BTreeMap<String, Client>,
    /// Database and name of each schema.
    pub schemas: Vec<(String, String)>,
    pub spaces: Vec<String>,
    pub tables: Vec<Table>,
    /// Things ever made, for names that never come again.
    pub made: usize,
    pub statements: u64,
    pub expected: Vec<Expected>,
    /// Transactions that go on beside the others.
    pub open: Vec<Work>,
}

impl World {
    pub fn new(cluster: Cluster, random: Random) -> World {
        let mut world = World {
            random,
            clients: BTreeMap::new(),
            schemas: Vec::new(),
            spaces: Vec::new(),
            tables: Vec::new(),
            made: 0,
            statements: 0,
            expected: Vec::new(),
            open: Vec::new(),
            cluster,
        };
        world.connect("postgres");
        for _ in 0..2 {
            world.create_tablespace();
        }
        let folder = world.cluster.sandbox().dir("dbspace");
        world.does(
            "postgres",
            &format!("create tablespace dbspace location '{}'", folder.display()),
        );
        world.does("postgres", "create database \"Other db\"");
        world.connect("Other db");
        for database in ["postgres", "Other db"] {
            world.schemas.push((database.into(), "public".into()));
            world.create_schema(database);
        }
        for _ in 0..6 {
            world.create();
        }
        world
    }

    pub fn connect(&mut self, database: &str) {
        let client = self.cluster.client_of(&quoted_conninfo(database));
        client.sql("set lock_timeout = '30s'; set statement_timeout = '120s'; set client_min_messages = error");
        self.clients.insert(database.into(), client);
    }

    pub fn client(&self, database: &str) -> &Client {
        &self.clients[database]
    }

    /// Runs one statement of the history.
    pub fn does(&mut self, database: &str, sql: &str) {
        self.statements += 1;
        self.client(database).sql(sql);
    }

    /// Runs one statement that the server may refuse for this reason; whether it did it.
    pub fn tries(&mut self, database: &str, sql: &str, refusal: &str) -> bool {
        self.statements += 1;
        let done = self.client(database).try_sql(sql);
        if let Err(e) = &done {
            let text = text_of(e);
            assert!(text.contains(refusal), "{sql}: {text}");
        }
        done.is_ok()
    }

    pub fn next(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    /// A name that never comes again, of one of several forms.
    pub fn name(&mut self, letter: &str) -> String {
        let number = self.next();
        match self.random.below(6) {
            0 => format!("{letter} {number}"),
            1 => format!("{}größe.{number}", letter.to_uppercase()),
            2 => format!("{letter}\"quoted\"{number}"),
            // The type of its arrays has a digit less: names that differ in their last one alone would clash where a table changes its schema.
            3 => format!("a_name_of_the_full_length_that_postgresql_takes_{letter}_{number:0>12}e"),
            _ => format!("{letter}{number}"),
        }
    }

    pub fn database(&mut self) -> String {
        let all: Vec<&String> = self.clients.keys().collect();
        (*self.random.pick(&all)).clone()
    }

    /// Whether a transaction that has not ended works in a database.
    pub fn is_busy(&self, database: &str) -> bool {
        self.open.iter().any(|work| work.database == database)
    }

    /// A tablespace for tables; that of the database more often.
    pub fn space(&mut self) -> String {
        match self.spaces.is_empty() || self.random.one_in(2) {
            true => "pg_default".into(),
            false => self.random.pick(&self.spaces).clone(),
        }
    }

    /// Looks at a relation that is whole.
    pub fn look(&self, table: &Table, name: &str) -> Looked {
        table.look(self.client(&table.database), name)
    }

    /// Runs one statement that is a transaction of its own; returns which transactions it may be, and when.
    pub fn alone(&mut self, database: &str, sql: &str) -> When {
        self.tries_alone(database, sql, "nothing")
            .expect("it is done")
    }

    /// As [`World::alone`]; none where the server refused it for this reason.
    pub fn tries_alone(&mut self, database: &str, sql: &str, refusal: &str) -> Option<When> {
        let next = "select pg_snapshot_xmax(pg_current_snapshot())::text";
        let next = |world: &World| -> u64 {
            let text = world.client("postgres").value(next);
            text.parse().unwrap()
        };
        let (first, from) = (next(self), now());
        let is_done = self.tries(database, sql, refusal);
        let to = now();
        is_done.then(|| (first..next(self), (from, to)))
    }

    /// Records what a transaction of its own did.
    pub fn expect(&mut self, drafts: Vec<Draft>, (xids, times): When, gid: Option<&str>) {
        let event = |(kind, looked, rows): Draft| Expected {
            title: format!("{kind} {}", looked.title),
            xids: xids.clone(),
            times,
            rows,
            gid: gid.map(str::to_owned),
            seen: looked.seen,
        };
        let mut events: Vec<Expected> = drafts.into_iter().map(event).collect();
        events.sort_by(|a, b| a.title.cmp(&b.title));
        self.expected.extend(events);
    }

    /// The server dies and comes back: what was open never happened.
    pub fn crash(&mut self) {
        // PostgreSQL resets unlogged tables after crash recovery, and ends with "File exists" where the WAL that it replays has one of their files.
        let shape = |t: &Table| t.shape == Shape::Unlogged;
        let is_open = |w: &Work| w.before.iter().any(shape) || w.after.iter().any(shape);
        if self.tables.iter().any(shape) || self.open.iter().any(is_open) {
            self.does("postgres", "checkpoint");
        }
        self.cluster.stop(Stop::Immediate);
        self.cluster.start();
        let names: Vec<String> = self.clients.keys().cloned().collect();
        for name in names {
            self.connect(&name);
        }
        let open = std::mem::take(&mut self.open);
        for work in open {
            match work.client.is_some() {
                true => self.tables.extend(work.before),
                false => self.open.push(work),
            }
        }
        let client = self.client("postgres");
        wait_until("the server has recovered", || {
            client.value("select pg_is_in_recovery()") == "f"
        });
    }

    pub fn stop(&mut self) {
        self.clients.clear();
        self.cluster.stop(Stop::Fast);
    }

    /// Removes what is in the places of tablespaces: recovery would find files of the future there.
    pub fn empty_spaces(&self) {
        for entry in std::fs::read_dir(self.cluster.sandbox().path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("place") || name == "dbspace" {
                for inside in std::fs::read_dir(path).unwrap() {
                    std::fs::remove_dir_all(inside.unwrap().path()).unwrap();
                }
            }
        }
    }
}

/// A name of a database as libpq's connection strings have it.
pub fn quoted_conninfo(name: &str) -> String {
    format!("'{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}
