//! A data set as a kind of content.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::append_only;
use super::connection::Tick;
use super::files::{Opened, Place};
use super::member::{AOF, BGSAVE, Database, Member, NO_HISTORY, PSYNC};
use super::rdb::Passing;
use super::resp::FullResync;
use super::saved;
use super::source::{Source, no_backup};
use super::transfer::{self, Received};
use crate::config::RedisSource;
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::node::{Moment, Node, NodeKind};
use crate::snapshot::sink::FileSink;

/// The name of the kind.
pub const NAME: &str = "redis";
/// A save of another one is waited for so long.
const SAVE_MAX: Duration = Duration::from_secs(3600);
/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The file of the data set.
pub const BASE: &str = "base.rdb";
/// The file of the commands behind it, where the server keeps some.
pub const TAIL: &str = "tail.aof";

/// Connects to the server once more.
pub type Again<'a> = dyn Fn(Tick<'_>) -> Result<Source> + 'a;

/// A server whose data set is taken.
pub struct Base<'a> {
    /// The server.
    pub source: Source,
    /// A second connection to it: the first one is that of a replica once a data set came by it.
    pub again: &'a Again<'a>,
    /// The text that tells it from others.
    pub identity: String,
    /// The way in which it is taken.
    pub way: RedisSource,
    /// The server's directory on this host, where the operator names it.
    pub directory: Option<PathBuf>,
    /// Facts about the product, once there is one.
    pub member: Option<Member>,
}

/// Facts about a data set that was taken.
struct Facts {
    method: &'static str,
    position: Option<FullResync>,
    received: Received,
    tail_bytes: Option<u64>,
    /// The bounds of its moment.
    times: (TimestampTz, TimestampTz),
}

impl Base<'_> {
    fn receive(&mut self, work: &mut Work<'_, '_>) -> Result<Member> {
        let facts = match self.way {
            RedisSource::Psync => self.by_psync(work)?,
            RedisSource::Bgsave => self.by_save(work)?,
            RedisSource::Aof => self.by_append_only(work)?,
        };
        let keyspace = self.keyspace(work)?;
        Ok(self.told(facts, keyspace))
    }

    /// The databases with keys before and behind the fork. The data set of the moment between may have one that the server did not have before.
    fn keyspace(&mut self, work: &mut Work<'_, '_>) -> Result<Vec<Database>> {
        let before = self.source.info.keyspace();
        let behind = match self.way {
            RedisSource::Psync => (self.again)(work.tick).map(|source| source.info),
            RedisSource::Bgsave | RedisSource::Aof => self.source.ask("keyspace", work.tick),
        };
        match behind {
            Ok(info) => Ok(with_greater(before, info.keyspace())),
            Err(e) if e.code() == Code::Interrupted => Err(e),
            Err(e) => {
                work.host.progress.warn(&format!(
                    "which databases the server has was asked before its fork alone: set \"databases\" by hand where a restored server says that it needs more ({e})"
                ));
                Ok(before)
            }
        }
    }

    fn by_psync(&mut self, work: &mut Work<'_, '_>) -> Result<Facts> {
        let progress = &work.host.progress;
        progress.phase("wait for the server to fork", None);
        let before = no_save(&mut self.source, work)?;
        let requested = work.host.now();
        let position = transfer::request(&mut self.source, work.tick)?;
        let answered = work.host.now();
        if before.is_some_and(|before| position.offset < before) {
            progress.warn("the server gave the data set of a save that had begun before it was asked: what was written since is not in it");
        }
        progress.phase("receive the data set", None);
        let mut tree = Tree::begin(work, answered)?;
        let connection = &mut self.source.connection;
        let received = tree.file(BASE, &mut |out| {
            transfer::receive(connection, out, work.tick)
        })?;
        tree.sink.finish()?;
        Ok(Facts {
            method: PSYNC,
            position: Some(position),
            received,
            tail_bytes: None,
            times: (requested, answered),
        })
    }

    fn by_save(&mut self, work: &mut Work<'_, '_>) -> Result<Facts> {
        let progress = &work.host.progress;
        let directory = self.directory.as_deref();
        let place = Place::find(&mut self.source, directory, work.tick)?;
        progress.phase("wait for the server to save", None);
        let saved = saved::take(&mut self.source, &place, work.host, work.tick)?;
        progress.phase("read the file", Some(saved.opened.bytes()));
        let mut tree = Tree::begin(work, saved.found)?;
        let received = tree.file(BASE, &mut |out| {
            data_set(&saved.opened, saved.opened.bytes(), work.tick, out)
        })?;
        tree.sink.finish()?;
        saved.opened.require_unchanged()?;
        saved.require_own(&received.head, &self.source.version)?;
        Ok(Facts {
            method: BGSAVE,
            position: None,
            times: (saved.requested, saved.latest(&received.head)),
            received,
            tail_bytes: None,
        })
    }

    fn by_append_only(&mut self, work: &mut Work<'_, '_>) -> Result<Facts> {
        let progress = &work.host.progress;
        let directory = self.directory.as_deref();
        let place = Place::find(&mut self.source, directory, work.tick)?;
        progress.phase("look at the append-only file", None);
        let frozen = append_only::freeze(&mut self.source, &place, work.host, work.tick)?;
        let bytes = frozen.base_bytes + frozen.tail_bytes;
        progress.phase("read the append-only file", Some(bytes));
        let mut tree = Tree::begin(work, frozen.frozen)?;
        let received = tree.file(BASE, &mut |out| {
            data_set(&frozen.base, frozen.base_bytes, work.tick, out)
        })?;
        tree.file(TAIL, &mut |out| frozen.tail(work.tick, out))?;
        tree.sink.finish()?;
        Ok(Facts {
            method: AOF,
            position: None,
            received,
            tail_bytes: Some(frozen.tail_bytes),
            times: (frozen.requested, frozen.frozen),
        })
    }

    fn told(&self, facts: Facts, keyspace: Vec<Database>) -> Member {
        let (info, version) = (&self.source.info, &self.source.version);
        let head = &facts.received.head;
        let position = facts.position.as_ref();
        let stream_db = head.field("repl-stream-db").filter(|_| position.is_some());
        let (parent, fork) = position.and_then(|p| info.parent(&p.replid)).unzip();
        let (requested_time, received_time) = facts.times;
        Member {
            flavor: version.flavor.name().to_owned(),
            server_version: version.text().to_owned(),
            rdb_version: head.version,
            replid: position.map_or(NO_HISTORY, |p| &p.replid).to_owned(),
            offset: position.map_or(0, |p| p.offset),
            parent,
            fork,
            role: self.source.role().to_owned(),
            run_id: info.field("run_id").unwrap_or_default().to_owned(),
            stream_db: stream_db.and_then(|db| db.parse().ok()),
            keyspace,
            modules: info.modules.clone(),
            rdb_bytes: facts.received.bytes,
            has_checksum: facts.received.has_checksum,
            requested_time,
            received_time,
            method: facts.method.to_owned(),
            tail_bytes: facts.tail_bytes,
        }
    }
}

/// Pure: the databases of an account, and those of a later one with greater numbers.
fn with_greater(mut before: Vec<Database>, behind: Vec<Database>) -> Vec<Database> {
    let last = before.last().map(|last| last.db);
    before.extend(behind.into_iter().filter(|one| Some(one.db) > last));
    before
}

/// Waits until no save runs, and returns the position of the server then. One that runs already may be handed to a further replica, and is older than its
/// moment would be told; a save of our own would wait for its end, too.
///
/// Redis: src/replication.c (syncCommand: "there is a background save in progress").
fn no_save(source: &mut Source, work: &mut Work<'_, '_>) -> Result<Option<u64>> {
    let began = Instant::now();
    while source
        .ask("persistence", work.tick)?
        .is_on("rdb_bgsave_in_progress")
    {
        if began.elapsed() >= SAVE_MAX {
            break;
        }
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until {
            (work.tick)()?;
            std::thread::sleep(LOOK_EVERY / 4);
        }
    }
    let now = source.ask("replication", work.tick)?;
    let same = now.field("master_replid") == source.info.field("master_replid");
    let offset = now
        .field("master_repl_offset")
        .and_then(|text| text.parse().ok());
    Ok(offset.filter(|_| same))
}

/// Hands on a data set that is the beginning of a file, and requires its checksum.
fn data_set(
    opened: &Opened,
    bytes: u64,
    tick: Tick<'_>,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Received> {
    let mut passing = Passing::new(0);
    opened.pass(0..bytes, tick, &mut |bytes| passing.take(bytes, out))?;
    transfer::ended(passing, out)
}

/// Takes bytes.
type Out<'o> = &'o mut dyn FnMut(&[u8]) -> Result<()>;

/// The tree of a backup, which is written.
struct Tree<'w, 's> {
    sink: FileSink<'s>,
    naming: Naming,
    mtime: Moment,
    host: &'w Host,
}

impl<'w, 's> Tree<'w, 's> {
    fn begin(work: &Work<'w, 's>, time: TimestampTz) -> Result<Tree<'w, 's>> {
        let tree = Tree {
            sink: work.writer.sink(),
            naming: work.naming,
            mtime: moment(time),
            host: work.host,
        };
        let root = FileKey::from_path(b"", tree.naming)?;
        let node = Node::new(NodeKind::Directory, 0o700, tree.mtime);
        tree.sink.node(&root, node)?;
        Ok(tree)
    }

    /// Writes a file that `fill` gives.
    fn file<T>(&mut self, name: &str, fill: &mut dyn FnMut(Out<'_>) -> Result<T>) -> Result<T> {
        let key = FileKey::from_path(name.as_bytes(), self.naming)?;
        self.sink.begin(key)?;
        let filled = fill(&mut |bytes| {
            self.host.progress.advance(bytes.len() as u64);
            self.sink.append(bytes)
        })?;
        let node = Node::new(NodeKind::File(0), 0o600, self.mtime);
        self.sink.end_node(node)?;
        Ok(filled)
    }
}

impl Kind for Base<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let member = self.receive(work).map_err(no_backup)?;
        let value: Value = serde_json::to_value(&member)
            .map_err(|e| err!(Internal, "write the member \"redis\"").source(e))?;
        self.member = Some(member);
        Ok(Produced {
            member: value,
            ..Produced::default()
        })
    }
}

fn moment(time: TimestampTz) -> Moment {
    Moment {
        seconds: time.unix_micros().unwrap_or_default().div_euclid(1_000_000),
        nanoseconds: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_that_appeared_behind_the_first_look_count_with_greater_numbers() {
        let of = |numbers: &[(u32, u64)]| -> Vec<Database> {
            let numbers = numbers.iter();
            let database = |(db, keys): &(u32, u64)| Database {
                db: *db,
                keys: *keys,
                expires: 0,
            };
            numbers.map(database).collect()
        };
        let both = |before, behind| with_greater(of(before), of(behind));
        let found = both(&[(0, 7), (4, 1)], &[(0, 8), (2, 1), (20, 3)]);
        assert_eq!(found, of(&[(0, 7), (4, 1), (20, 3)]));
        assert_eq!(both(&[], &[(0, 1), (3, 1)]), of(&[(0, 1), (3, 1)]));
        assert_eq!(both(&[(5, 1)], &[]), of(&[(5, 1)]));
    }
}
