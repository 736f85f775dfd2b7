//! A directory that a server loads: the data set as the base of its append-only file, and the configuration that makes it do so.
//!
//! From Redis 7 on the append-only file is a directory with a manifest; before, it is one file that begins with the data set. The data set is never made a
//! dump.rdb: a server that loads one takes over the replication history in it, and a replica of the original would go on with the copy's writes.
//!
//! Write order: the data set → what follows it → the manifest → the configuration, without which no server finds them.
//!
//! Redis: src/aof.c (aofLoadManifestFromFile, loadAppendOnlyFiles), src/config.c (loadServerConfigFromString), src/sds.c (sdssplitargs).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::effects::Effects;
use super::ends::Ends;
use super::kind::{BASE, TAIL};
use super::log::Mark;
use super::member::Member;
use super::rdb::{Checksum, Passing};
use super::resp;
use super::version::{FIRST_OF_VALKEY, ServerVersion};
use crate::durable::{self, NewFile, Published};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::NodeKind;
use crate::snapshot::reader::Snapshot;

/// The configuration.
pub const CONFIGURATION: &str = "redis.conf";
/// The directory of append-only files, and the one that there was before it.
const APPEND_ONLY_DIRECTORY: &str = "appendonlydir";
const APPEND_ONLY: &str = "appendonly.aof";
const MANIFEST: &str = "appendonly.aof.manifest";
const FIRST_BASE: &str = "appendonly.aof.1.base.rdb";
const FIRST_INCREMENT: &str = "appendonly.aof.1.incr.aof";
/// Databases of a server that is not told otherwise.
const USUAL_DATABASES: u32 = 16;

/// Takes bytes of a history, and the marks that tell when they arrived.
pub type Take<'t> = &'t mut dyn FnMut(&[u8], &[Mark]) -> Result<()>;

/// Gives the bytes of the history that follow the data set, up to a place where it may end.
pub type Log<'l> = &'l dyn Fn(Take<'_>) -> Result<()>;

/// The files to be written.
pub struct Plan<'p> {
    /// The facts of the data set.
    pub member: &'p Member,
    /// The server that shall load it.
    pub target: &'p ServerVersion,
    /// The directory, absolute.
    pub to: &'p Path,
    /// The server is the replica of a master that is not there, and keeps keys whose time is over.
    pub as_replica: bool,
}

impl Plan<'_> {
    /// The files, relative to the directory, in the order in which they are written.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = match self.target.has_directory() {
            true => [FIRST_BASE, FIRST_INCREMENT, MANIFEST]
                .iter()
                .map(|name| Path::new(APPEND_ONLY_DIRECTORY).join(name))
                .collect(),
            false => vec![PathBuf::from(APPEND_ONLY)],
        };
        files.push(PathBuf::from(CONFIGURATION));
        files
    }

    /// The file that a check of the append-only file is given. `valkey-check-aof` takes the head of Valkey's own data sets for a command, and finds fault with
    /// whole directories that Valkey 9.1 wrote itself: it is given what follows the data set.
    pub fn checked_file(&self) -> PathBuf {
        let directory = self.to.join(APPEND_ONLY_DIRECTORY);
        match self.target.has_directory() {
            true if self.member.rdb_version >= FIRST_OF_VALKEY => directory.join(FIRST_INCREMENT),
            true => directory.join(MANIFEST),
            false => self.to.join(APPEND_ONLY),
        }
    }

    /// The text of the configuration. `last_db` is the greatest number of a database that the log names.
    pub fn configuration(&self, last_db: u32) -> Vec<u8> {
        let member = self.member;
        let databases = USUAL_DATABASES.max(member.last_db().max(last_db) + 1);
        let mut lines = vec![
            format!(
                "# The data set of {} {} at {}, restored by pitr. Give the port: --port N",
                member.flavor.escape_debug(),
                member.server_version.escape_debug(),
                member.received_time
            ),
            format!("dir {}", quoted(self.to.as_os_str().as_bytes())),
            "appendonly yes".to_owned(),
            format!("appendfilename {APPEND_ONLY}"),
        ];
        if self.target.has_directory() {
            lines.push(format!("appenddirname {APPEND_ONLY_DIRECTORY}"));
        }
        lines.extend([
            "aof-use-rdb-preamble yes".to_owned(),
            "# A file that is cut must not pass for a whole one.".to_owned(),
            "aof-load-truncated no".to_owned(),
            format!("databases {databases}"),
        ]);
        if self.target.has_cluster_databases() {
            lines.extend([
                "# The same of a node of a cluster, which goes by this alone.".to_owned(),
                format!("cluster-databases {databases}"),
            ]);
        }
        lines.extend([
            "# Nobody but this host, until passwords and users are set up again.".to_owned(),
            "bind 127.0.0.1".to_owned(),
        ]);
        if self.as_replica {
            lines.extend([
                "# A replica deletes no key by itself: those whose time is over stay to be seen. Nobody answers there.".to_owned(),
                format!("{} 127.0.0.1 1", self.target.replica_setting()),
            ]);
        }
        for module in &member.modules {
            lines.push(format!(
                "# loadmodule /path/of/{}   (version {} when the backup was taken; this one or a newer one is needed)",
                module.name.escape_debug(), module.version
            ));
        }
        (lines.join("\n") + "\n").into_bytes()
    }

    /// The commands that follow the data set: the history goes on in the database that it had selected, and each file is loaded by a client of its own.
    fn increment(&self) -> Vec<u8> {
        let db = self.member.stream_db.map(|db| db.to_string());
        db.map_or(Vec::new(), |db| resp::command(&[b"SELECT", db.as_bytes()]))
    }

    /// Writes the files into the directory, which is empty. A failure removes what was made. `log` follows the data set.
    ///
    /// # Errors
    /// `Damaged` when the data set is not that of the member; those of the store and of the system; those of `tick`.
    pub fn write(
        &self,
        snapshot: &Snapshot<'_>,
        log: Log<'_>,
        (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    ) -> Result<()> {
        let written = self.write_all(snapshot, log, (host, tick));
        if written.is_err() {
            for file in self.files() {
                // The error that made it stop is the one to be told.
                let _ = std::fs::remove_file(self.to.join(file));
            }
            let _ = std::fs::remove_dir(self.to.join(APPEND_ONLY_DIRECTORY));
        }
        written
    }

    fn write_all(
        &self,
        snapshot: &Snapshot<'_>,
        log: Log<'_>,
        (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    ) -> Result<()> {
        let root = open(self.to)?;
        let name = match self.target.has_directory() {
            true => {
                let made = durable::create_directory(root.as_fd(), APPEND_ONLY_DIRECTORY);
                made.map_err(|e| {
                    failed("make directory", &self.to.join(APPEND_ONLY_DIRECTORY), e)
                })?;
                FIRST_BASE
            }
            false => APPEND_ONLY,
        };
        let folder = match self.target.has_directory() {
            true => self.to.join(APPEND_ONLY_DIRECTORY),
            false => self.to.to_owned(),
        };
        let mut file = Target::create(&folder, name, host)?;
        self.copy(snapshot, &mut file, tick)?;
        let mut last_db = 0;
        if !self.target.has_directory() {
            last_db = self.replay(log, &mut file, (snapshot, &mut *tick))?;
        }
        file.publish()?;
        if self.target.has_directory() {
            let manifest =
                format!("file {FIRST_BASE} seq 1 type b\nfile {FIRST_INCREMENT} seq 1 type i\n");
            let mut file = Target::create(&folder, FIRST_INCREMENT, host)?;
            last_db = self.replay(log, &mut file, (snapshot, &mut *tick))?;
            file.publish()?;
            put(&folder, MANIFEST, manifest.as_bytes(), host)?;
        }
        put(self.to, CONFIGURATION, &self.configuration(last_db), host)
    }

    /// Writes what follows the data set, and returns the greatest number of a database that it names.
    fn replay(
        &self,
        log: Log<'_>,
        file: &mut Target,
        (snapshot, tick): (&Snapshot<'_>, &mut dyn FnMut() -> Result<()>),
    ) -> Result<u32> {
        file.write(&self.increment())?;
        let mut effects = Effects::new(self.member.offset, self.member.stream_db);
        let mut out = |bytes: &[u8]| {
            tick()?;
            effects.pass(bytes, &mut |bytes| file.write(bytes))
        };
        match self.member.tail_bytes {
            Some(bytes) => tail(snapshot, bytes, &mut out)?,
            None => {
                // A server from 7 on tells no lifetimes, and passes those of an older master on.
                let mut ends = Ends::new(self.member.offset);
                log(&mut |bytes, marks| ends.pass(bytes, marks, &mut out))?;
            }
        }
        match effects.is_at_cut() {
            true => Ok(effects.last_db()),
            false => Err(err!(Damaged, "the log ends inside of a command")),
        }
    }

    /// Copies the data set, and requires that it is the one that the member tells of.
    fn copy(
        &self,
        snapshot: &Snapshot<'_>,
        file: &mut Target,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (key, length) = stored(snapshot, BASE)?;
        let mut passing = Passing::new(0);
        let mut out = |bytes: &[u8]| file.write(bytes);
        ContentReader::new(snapshot).read(&key, length, &mut |bytes| {
            tick()?;
            passing.take(bytes, &mut out)
        })?;
        let checksum = passing.checksum();
        let (head, bytes) = passing.end(&mut out)?;
        let expected = match self.member.has_checksum {
            true => Checksum::Right,
            false => Checksum::Off,
        };
        let member = (self.member.rdb_version, self.member.rdb_bytes, expected);
        match (head.version, bytes, checksum) == member {
            true => Ok(()),
            false => Err(err!(
                Damaged,
                "\"{BASE}\" is not the data set that the backup tells of"
            )),
        }
    }
}

/// A file of the backup, and its length.
fn stored(snapshot: &Snapshot<'_>, name: &str) -> Result<(FileKey, u64)> {
    let key = FileKey::from_path(name.as_bytes(), Naming::Tree)?;
    match snapshot.metadata(&key)? {
        Some(Metadata::Node(node)) => match node.kind {
            NodeKind::File(length) => Ok((key, length)),
            _ => Err(err!(Damaged, "\"{name}\" of the backup is no file")),
        },
        _ => Err(err!(Damaged, "the backup has no \"{name}\"")),
    }
}

/// Hands on the commands behind the data set, and requires that they are as many bytes as the member tells of.
fn tail(
    snapshot: &Snapshot<'_>,
    bytes: u64,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    match stored(snapshot, TAIL)? {
        (key, length) if length == bytes => ContentReader::new(snapshot).read(&key, length, out),
        _ => Err(err!(
            Damaged,
            "\"{TAIL}\" is not the one that the backup tells of"
        )),
    }
}

/// A new file with its path, for messages.
struct Target {
    path: PathBuf,
    file: NewFile,
}

impl Target {
    fn create(folder: &Path, name: &str, host: &Host) -> Result<Target> {
        let path = folder.join(name);
        let file = NewFile::create(open(folder)?, name, host.random());
        let file = file.map_err(|e| failed("create", &path, e))?;
        Ok(Target { path, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|e| failed("write", &self.path, e))
    }

    fn publish(self) -> Result<()> {
        match self.file.publish() {
            Ok(Published::Created) => Ok(()),
            Ok(Published::Exists) => Err(err!(
                Refused,
                "\"{}\" has come meanwhile, and not by this restore",
                self.path.display()
            )),
            Err(e) => Err(failed("write", &self.path, e)),
        }
    }
}

fn put(folder: &Path, name: &str, content: &[u8], host: &Host) -> Result<()> {
    let mut file = Target::create(folder, name, host)?;
    file.write(content)?;
    file.publish()
}

fn open(directory: &Path) -> Result<OwnedFd> {
    let opened = File::open(directory);
    opened
        .map(OwnedFd::from)
        .map_err(|e| failed("open directory", directory, e))
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let e = Error::from_io(format!("{doing} \"{}\"", path.display()), error);
    match e.code() {
        Code::Full => e,
        _ => e.with_code(Code::TargetWrite),
    }
}

/// A word of a configuration file.
pub fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(*byte)]),
            0x20..=0x7E => out.push(char::from(*byte)),
            other => out.push_str(&format!("\\x{other:02x}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;
    use crate::redis::member::{Database, Module};
    use crate::redis::version::Flavor;

    fn member() -> Member {
        Member {
            flavor: "redis".into(),
            server_version: "7.0.15".into(),
            rdb_version: 10,
            replid: "0".repeat(40),
            offset: 7,
            parent: None,
            fork: None,
            role: "master".into(),
            run_id: "r".into(),
            stream_db: Some(31),
            keyspace: vec![Database {
                db: 20,
                keys: 1,
                expires: 0,
            }],
            modules: vec![Module {
                name: "json\nport 1".into(),
                version: 2,
            }],
            rdb_bytes: 90,
            has_checksum: true,
            requested_time: TimestampTz(0),
            received_time: TimestampTz(0),
            method: "psync".into(),
            tail_bytes: None,
        }
    }

    fn text(version: &str, as_replica: bool) -> String {
        let plan = Plan {
            member: &member(),
            target: &ServerVersion::named(version, Flavor::Redis).unwrap(),
            to: Path::new("/srv/a \"b\"\n"),
            as_replica,
        };
        String::from_utf8(plan.configuration(0)).unwrap()
    }

    #[test]
    fn the_configuration_fits_the_server() {
        let seven = text("7.0", false);
        assert!(seven.contains("dir \"/srv/a \\\"b\\\"\\x0a\"\n"), "{seven}");
        assert!(seven.contains("appenddirname appendonlydir\n"), "{seven}");
        assert!(seven.contains("databases 32\n"), "{seven}");
        assert!(!seven.contains("replicaof"), "{seven}");
        assert!(!seven.contains("\nport"), "{seven}");
        let six = text("6.0.16", true);
        assert!(!six.contains("appenddirname"), "{six}");
        assert!(six.contains("\nreplicaof 127.0.0.1 1\n"), "{six}");
        assert!(text("4.0", true).contains("\nslaveof 127.0.0.1 1\n"));
    }

    #[test]
    fn r217_a_node_of_a_cluster_gets_as_many_databases() {
        let nine = text("valkey 9.0", false);
        assert!(nine.contains("\ndatabases 32\n"), "{nine}");
        assert!(nine.contains("\ncluster-databases 32\n"), "{nine}");
        // Others do not know the setting, and would not start.
        for version in ["valkey 8.1", "redis 9.0", "7.0"] {
            let other = text(version, false);
            assert!(!other.contains("cluster-databases"), "{other}");
        }
    }

    #[test]
    fn what_follows_the_data_set_selects_the_database_of_the_history() {
        let mut member = member();
        let target = ServerVersion::new(Flavor::Redis, "7.0").unwrap();
        let increment = |member: &Member| {
            let plan = Plan {
                member,
                target: &target,
                to: Path::new("/"),
                as_replica: false,
            };
            plan.increment()
        };
        assert_eq!(increment(&member), b"*2\r\n$6\r\nSELECT\r\n$2\r\n31\r\n");
        member.stream_db = None;
        assert_eq!(increment(&member), b"");
    }
}
