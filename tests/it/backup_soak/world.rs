//! The cluster, its repository, and the moments at which its content is known.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::home::Home;
use super::storm::{OTHER, Shared, Storm};
use crate::common::random::Random;
use crate::common::reception::lsn;
use crate::common::{Cluster, wait_until};
use crate::incremental::truth;

/// A moment at which all databases were at rest, and what was in them.
#[derive(Clone)]
pub struct Mark {
    pub name: String,
    /// The end of the restore point's record.
    pub lsn: u64,
    /// A time behind everything, and before the next commit.
    pub time: String,
    /// The last transaction that was committed.
    pub xid: String,
    pub content: Arc<Vec<String>>,
}

pub struct World {
    pub major: u32,
    pub home: Home,
    pub cluster: Cluster,
    pub space: PathBuf,
    pub shared: Arc<Shared>,
    pub random: Random,
    pub marks: Vec<Mark>,
    /// Backups that were killed and left a claim.
    pub killed: BTreeSet<String>,
    /// Restores so far: each has a folder of its own.
    pub restored: usize,
    pub has_checksums: bool,
}

impl World {
    pub fn new(major: u32, mut random: Random, may_be_far: bool) -> World {
        let has_checksums = random.one_in(2);
        let builder = Cluster::small(major)
            .checksums(has_checksums)
            .config("max_prepared_transactions", 10)
            .config("track_commit_timestamp", "on")
            .config("archive_timeout", "2s")
            .config("max_wal_size", "16MB")
            .config("min_wal_size", "4MB")
            // As the refusal advises: a checkpoint a second removes the last segment of a backup before the server is asked for it.
            .config("wal_keep_size", "16MB")
            .config("autovacuum_naptime", "1s");
        let builder = match major {
            17.. if random.one_in(2) => builder.config("summarize_wal", "on"),
            _ => builder,
        };
        let builder = match major {
            15.. => builder.config("allow_in_place_tablespaces", "on"),
            _ => builder,
        };
        let mut cluster = builder.create();
        let home = Home::new(&cluster, random.one_in(2) && may_be_far, random.one_in(2));
        println!(
            "backup soak {major}: the repository is {}; data checksums: {has_checksums}",
            home.describe()
        );
        home.attach(&cluster);
        cluster.start();
        home.sandbox.keep_on_failure();
        cluster.sandbox().keep_on_failure();
        let space = cluster.sandbox().dir("space");
        cluster.make_tablespace("ts", &space);
        cluster.sql(&format!("create database {OTHER}"));
        let world = World {
            major,
            home,
            cluster,
            space,
            shared: Shared::new(major),
            random,
            marks: Vec::new(),
            killed: BTreeSet::new(),
            restored: 0,
            has_checksums,
        };
        world.home.pitr().arg("backup").succeed();
        world
    }

    /// Clients begin to change things.
    pub fn storm(&mut self) -> Storm {
        let clients = [self.cluster.client(), self.cluster.client_of(OTHER)];
        Storm::begin(&self.shared, clients, self.random.fork())
    }

    /// Changes things for a while.
    pub fn storm_for(&mut self, time: Duration) {
        let storm = self.storm();
        std::thread::sleep(time);
        storm.end();
    }

    /// Notes what is in all databases now, as a moment that can be asked for, and has its WAL archived.
    pub fn mark(&mut self) {
        let shared = Arc::clone(&self.shared);
        let rest = shared.rest.lock().unwrap();
        let client = self.cluster.client();
        let name = format!("mark_{}", self.marks.len());
        let content = Arc::new(truth(&self.cluster));
        let xid = client.value("select txid_current() % (2::bigint ^ 32)::bigint");
        let end = client.value(&format!("select pg_create_restore_point('{name}')"));
        // A target by position stops behind the record that begins there.
        client.sql("select pg_logical_emit_message(false, 'mark', 'behind it')");
        std::thread::sleep(Duration::from_millis(20));
        let time = client.value("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        client.sql("select txid_current()");
        drop(rest);
        self.cluster.archive_now();
        self.marks.push(Mark {
            name,
            lsn: lsn(&end),
            time,
            xid,
            content,
        });
    }

    /// Any moment, the newest one more often.
    pub fn draw_mark(&mut self) -> Mark {
        let last = self.marks.len() - 1;
        let number = match self.random.one_in(3) {
            true => last,
            false => self.random.below(last + 1),
        };
        self.marks[number].clone()
    }

    /// The server dies, and comes back.
    pub fn crash(&mut self) {
        self.cluster.stop(crate::common::Stop::Immediate);
        self.cluster.start();
        let client = self.cluster.client();
        wait_until("the server has recovered", || {
            client.value("select pg_is_in_recovery()") == "f"
        });
        // DROP DATABASE was at it: nobody can connect to what is left.
        for row in client.sql("select datname from pg_database where datconnlimit = -2") {
            client.sql(&format!("drop database {}", row[0].as_deref().unwrap()));
        }
        // The transaction of a storm that was prepared as the server died has its locks still.
        for row in client.sql("select database, gid from pg_prepared_xacts") {
            let (database, gid) = (row[0].as_deref().unwrap(), row[1].as_deref().unwrap());
            self.cluster
                .client_of(database)
                .sql(&format!("rollback prepared '{gid}'"));
        }
    }
}
