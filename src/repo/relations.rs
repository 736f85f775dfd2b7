//! The list of relations that is kept with a backup (format, section 8.4): names, for who looks for a table later. No restore needs it.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::container::{Codec, Container, ContainerWriter, Identity, Kind};
use super::healed;
use super::id::BackupId;
use super::scope::Scope;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::store::{Published, Store};

/// The name in the object's identity.
const NAME: &str = "relations";
/// Longer lists are not read, and not written: who has so many relations finds names in WAL.
pub const LIMIT_BYTES: u64 = 256 << 20;

/// The member of a backup's root that names its list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOfRelations {
    /// BLAKE3 of the raw list, 64 hexadecimal digits.
    pub hash: String,
    /// Its length.
    pub raw_bytes: u64,
    pub databases: u64,
    pub relations: u64,
    /// Databases that could not be read.
    pub unread: u64,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    kind: String,
    backup: String,
    databases: u64,
}

/// A database, or, without a name, what all share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Database {
    /// Its name; none for the shared relations.
    pub database: Option<String>,
    /// Its oid; 0 for the shared relations.
    pub oid: u32,
    /// Oid of its tablespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<u32>,
    /// Its encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// The server's position when it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// The server's clock then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimestampTz>,
    /// Why it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// How many relations follow.
    pub relations: u64,
}

/// A relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`.
    pub kind: char,
    /// `relpersistence`.
    pub persistence: char,
    /// Oid of its tablespace.
    pub tablespace: u32,
    /// Number of its file; 0 where it has none.
    pub file: u32,
    /// The table of an index or of a TOAST table, else 0.
    #[serde(default)]
    pub of: u32,
}

/// The databases of a server, each with its relations.
pub type Listed = Vec<(Database, Vec<Relation>)>;

/// The list leaves this much of its filesystem free.
const LEFT_FREE_BYTES: u64 = 512 << 20;
/// Lines are copied in pieces of this length.
const PIECE_BYTES: usize = 256 << 10;

/// A list that is being made. Its lines lie in an unnamed file: a million relations would fill memory.
pub struct Draft {
    /// The databases in order, each with the place of its lines.
    databases: Vec<(Database, Range<u64>)>,
    lines: BufWriter<File>,
    /// The begin of the lines of the next database.
    begin: u64,
    end: u64,
    count: u64,
    /// Why there will be no list.
    given_up: Option<&'static str>,
}

impl Draft {
    /// Begins an empty one; `lines` is an empty file.
    pub fn new(lines: File) -> Draft {
        Draft {
            databases: Vec::new(),
            lines: BufWriter::new(lines),
            begin: 0,
            end: 0,
            count: 0,
            given_up: None,
        }
    }

    /// Adds a relation of the next database.
    ///
    /// # Errors
    /// `Io` when its line cannot be written, there is too little room, or the list is too long.
    pub fn add(&mut self, relation: &Relation) -> Result<()> {
        let line = line(relation)?;
        let end = self.end + line.len() as u64;
        if end > LIMIT_BYTES {
            self.given_up = Some("it is longer than 256 MiB");
        } else if self.end >> 20 != end >> 20 && !has_room(self.lines.get_ref()) {
            self.given_up = Some("TMPDIR has too little room for it beside the backup's own files");
        }
        self.check()?;
        let written = self.lines.write_all(&line);
        self.keep(written)?;
        (self.end, self.count) = (end, self.count + 1);
        Ok(())
    }

    /// A line that was written in part shifts all that come behind it.
    fn keep(&mut self, written: std::io::Result<()>) -> Result<()> {
        if written.is_err() {
            self.given_up = Some("its temporary file could not be written");
        }
        written.map_err(kept)
    }

    fn check(&self) -> Result<()> {
        match self.given_up {
            Some(why) => Err(err!(Io, "there is no list of relations: {why}")),
            None => Ok(()),
        }
    }

    /// Ends a database, whose relations were added. One that could not be read has none.
    ///
    /// # Errors
    /// `Io` when lines of such a one cannot be taken back, and where the list was given up.
    pub fn end(&mut self, database: Database) -> Result<()> {
        self.check()?;
        if database.unread.is_some() && self.end > self.begin {
            // Seeking writes what waits in memory, too.
            let taken_back = self.lines.seek(SeekFrom::Start(self.begin));
            let taken_back = taken_back.and_then(|_| self.lines.get_ref().set_len(self.begin));
            self.keep(taken_back)?;
            (self.end, self.count) = (self.begin, 0);
        }
        let database = Database {
            relations: self.count,
            ..database
        };
        self.databases.push((database, self.begin..self.end));
        (self.begin, self.count) = (self.end, 0);
        Ok(())
    }

    /// Puts the database that ended last in front of all others.
    pub fn last_first(&mut self) {
        self.databases.rotate_right(1);
    }

    /// How many relations there are.
    pub fn relations(&self) -> u64 {
        self.databases.iter().map(|(d, _)| d.relations).sum()
    }

    /// Gives all lines to `take`, in order.
    fn each(&mut self, id: &BackupId, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.check()?;
        self.lines.flush().map_err(kept)?;
        take(&line(&Head {
            format: 1,
            kind: NAME.to_owned(),
            backup: id.to_string(),
            databases: self.databases.len() as u64,
        })?)?;
        let mut piece = vec![0; PIECE_BYTES];
        for (database, lines) in &self.databases {
            take(&line(database)?)?;
            let mut at = lines.start;
            while at < lines.end {
                let left = usize::try_from(lines.end - at).unwrap_or(PIECE_BYTES);
                let piece = piece.get_mut(..left.min(PIECE_BYTES)).unwrap_or_default();
                self.lines
                    .get_ref()
                    .read_exact_at(piece, at)
                    .map_err(kept)?;
                take(piece)?;
                at += piece.len() as u64;
            }
        }
        Ok(())
    }
}

/// Whether the file may grow: the backup sorts its own entries beside it.
fn has_room(file: &File) -> bool {
    let stat = rustix::fs::fstatvfs(file);
    stat.is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= LEFT_FREE_BYTES)
}

fn kept(e: std::io::Error) -> Error {
    Error::from_io("keep the list of relations in a temporary file", e)
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let line = serde_json::to_vec(value);
    let mut line = line.map_err(|e| err!(Internal, "a line of JSON cannot be made: {e}"))?;
    line.push(b'\n');
    Ok(line)
}

/// Writes the list of a backup; `identity` has the cluster's values. Returns the member of its root.
///
/// # Errors
/// `Conflict` where there is one already; `Io` when the draft cannot be read; what the store says.
pub fn write(
    store: &dyn Store,
    (scope, id): (&Scope, &BackupId),
    draft: &mut Draft,
    identity: &Identity,
) -> Result<ListOfRelations> {
    let key = scope.relations(id);
    let failed = |e| Error::from_io(format!("write object \"{key}\""), e);
    let object = store.create(&key)?;
    let mut writer = ContainerWriter::new(object, Kind::Relations, Codec::Lz4).map_err(failed)?;
    let (mut hasher, mut raw_bytes) = (blake3::Hasher::new(), 0);
    draft.each(id, &mut |piece| {
        hasher.update(piece);
        raw_bytes += piece.len() as u64;
        writer.write(piece).map_err(failed)
    })?;
    let hash = hasher.finalize();
    let identity = Identity {
        hash: *hash.as_bytes(),
        raw_bytes,
        name: NAME.to_owned(),
        ..identity.clone()
    };
    let object = writer.complete(&identity, Vec::new()).map_err(failed)?;
    if object.publish()? == Published::Exists {
        return Err(err!(Conflict, "the backup has a list of relations already"));
    }
    let databases = &draft.databases;
    Ok(ListOfRelations {
        hash: hash.to_hex().to_string(),
        raw_bytes,
        databases: databases.len() as u64,
        relations: draft.relations(),
        unread: databases.iter().filter(|(d, _)| d.unread.is_some()).count() as u64,
    })
}

/// Opens the list of a backup; `None` where there is none. `wanted` is the member of the root.
///
/// # Errors
/// `Damaged` where it is another object than the root names; what the store says.
pub fn open(
    store: &dyn Store,
    (scope, id): (&Scope, &BackupId),
    system_identifier: u64,
    wanted: &ListOfRelations,
) -> Result<Option<Container>> {
    let key = scope.relations(id);
    healed::read(store, &key, |store| {
        let Some(object) = store.open(&key)? else {
            return Ok(None);
        };
        let container = Container::open_under(&key, object)?;
        match is_own(&container, system_identifier, wanted) {
            true => Ok(Some(container)),
            false => Err(err!(
                Damaged,
                "object \"{key}\" is not the list of its backup"
            )),
        }
    })
}

/// Whether a container is the list that a root names.
pub fn is_own(container: &Container, system_identifier: u64, wanted: &ListOfRelations) -> bool {
    let identity = container.identity();
    container.is_stored_as(Kind::Relations, NAME, system_identifier)
        && identity.raw_bytes == wanted.raw_bytes
        && blake3::Hash::from_bytes(identity.hash).to_hex().as_str() == wanted.hash
}

/// Reads the list of a backup; `None` where there is none.
///
/// # Errors
/// Those of [`open`]; `Damaged` where a line cannot be read; `Unsupported` for a format that is not known.
pub fn read(
    store: &dyn Store,
    place: (&Scope, &BackupId),
    system_identifier: u64,
    wanted: &ListOfRelations,
) -> Result<Option<Listed>> {
    let Some(container) = open(store, place, system_identifier, wanted)? else {
        return Ok(None);
    };
    decode(&container.read_small(LIMIT_BYTES)?, place.1).map(Some)
}

fn decode(raw: &[u8], id: &BackupId) -> Result<Listed> {
    let damaged =
        |e: &dyn std::fmt::Display| err!(Damaged, "a list of relations cannot be read: {e}");
    let mut lines = raw.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let head = lines.next().unwrap_or_default();
    let head: Head = serde_json::from_slice(head).map_err(|e| damaged(&e))?;
    if head.format != 1 || head.kind != NAME {
        return Err(err!(
            Unsupported,
            "a list of relations has format {}, which this pitr does not know",
            head.format
        ));
    }
    if head.backup != id.to_string() {
        return Err(damaged(&"it is that of another backup"));
    }
    let mut listed = Listed::new();
    while let Some(line) = lines.next() {
        let database: Database = serde_json::from_slice(line).map_err(|e| damaged(&e))?;
        let mut relations = Vec::new();
        for _ in 0..database.relations {
            let line = lines.next().ok_or_else(|| damaged(&"it is cut short"))?;
            // Another kind of name is skipped: a relation without a name is no use.
            if let Ok(relation) = serde_json::from_slice(line) {
                relations.push(relation);
            }
        }
        listed.push((database, relations));
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn listed() -> Listed {
        let shared = Database {
            relations: 0,
            ..Database::default()
        };
        let app = Database {
            database: Some("app".into()),
            oid: 16384,
            tablespace: Some(1663),
            lsn: Some(Lsn(0x300_0060)),
            relations: 1,
            ..Database::default()
        };
        let orders = Relation {
            oid: 16390,
            schema: "public".into(),
            name: "orders \"x\"".into(),
            kind: 'r',
            persistence: 'p',
            tablespace: 1663,
            file: 16390,
            of: 0,
        };
        vec![(shared, Vec::new()), (app, vec![orders])]
    }

    fn encode(id: &BackupId, listed: &Listed) -> Vec<u8> {
        let mut draft = Draft::new(tempfile::tempfile().unwrap());
        // The shared relations are known once the first database was read.
        for (database, relations) in listed.iter().rev() {
            for relation in relations {
                draft.add(relation).unwrap();
            }
            draft.end(database.clone()).unwrap();
        }
        draft.last_first();
        let mut raw = Vec::new();
        draft
            .each(id, &mut |piece| {
                raw.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        raw
    }

    #[test]
    fn a_list_that_is_too_long_is_given_up_before_it_fills_a_disk() {
        let (_, relations) = listed().remove(1);
        let mut draft = Draft::new(tempfile::tempfile().unwrap());
        draft.add(&relations[0]).unwrap();
        draft.end = LIMIT_BYTES;
        draft.add(&relations[0]).unwrap_err();
        let refusal = draft.end(Database::default()).unwrap_err().to_string();
        assert!(refusal.contains("longer than 256 MiB"), "{refusal}");
    }

    #[test]
    fn a_database_that_could_not_be_read_to_its_end_has_no_relations() {
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let (app, relations) = listed().remove(1);
        let mut draft = Draft::new(tempfile::tempfile().unwrap());
        draft.add(&relations[0]).unwrap();
        let cut = Database {
            unread: Some("error".into()),
            ..app.clone()
        };
        draft.end(cut.clone()).unwrap();
        draft.lines.flush().unwrap();
        assert_eq!(draft.lines.get_ref().metadata().unwrap().len(), 0);
        draft.add(&relations[0]).unwrap();
        draft.end(app.clone()).unwrap();
        let mut raw = Vec::new();
        let mut take = |piece: &[u8]| {
            raw.extend_from_slice(piece);
            Ok(())
        };
        draft.each(&id, &mut take).unwrap();
        let unread = Database {
            relations: 0,
            ..cut
        };
        let wanted = vec![(unread, Vec::new()), (app, relations)];
        assert_eq!(decode(&raw, &id).unwrap(), wanted);
        assert_eq!(draft.relations(), 1);
    }

    #[test]
    fn a_list_comes_back_and_a_cut_or_foreign_one_does_not() {
        let id: BackupId = "20261120T064049Z-full".parse().unwrap();
        let raw = encode(&id, &listed());
        assert_eq!(decode(&raw, &id).unwrap(), listed());
        let lines: Vec<&[u8]> = raw.split_inclusive(|b| *b == b'\n').collect();
        let cut = lines[..lines.len() - 1].concat();
        assert_eq!(decode(&cut, &id).unwrap_err().code(), Code::Damaged);
        let other: BackupId = "20261120T064050Z-full".parse().unwrap();
        assert_eq!(decode(&raw, &other).unwrap_err().code(), Code::Damaged);
        let newer = String::from_utf8(raw)
            .unwrap()
            .replacen("\"format\":1", "\"format\":2", 1);
        let error = decode(newer.as_bytes(), &id).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert_eq!(decode(b"", &id).unwrap_err().code(), Code::Damaged);
    }
}
