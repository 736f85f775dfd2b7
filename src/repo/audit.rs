//! Records of the audit log, and the chains that they form (format, section 19).
//!
//! A record holds names and numbers, and no text of a server, an error or a query: it stays plain in encrypted repositories.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::scope::is_scope_name;
use super::{event, json};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::time::TimestampTz;
use crate::store::{self, Key, Meta, Published, Store, get};
use crate::text::{hex, unhex_array};

/// Prefix below which the writers are listed.
pub const ROOT: &str = "audit";
const KIND: &str = "audit";
/// Greatest size of a record: an anchor names thousands of chains.
const LIMIT_BYTES: u64 = json::LIMIT_BYTES;
/// Digits of a number in a key.
const DIGITS: usize = 12;
/// Records of all chains that a check takes; each costs it some hundred bytes.
const NAMES_MAX: usize = 1_000_000;

/// The hash of a record's content.
pub type Hash = [u8; 32];

/// The outcome that a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The command is about to work.
    #[default]
    Begun,
    /// It ended well.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// The record is about the log itself.
    Noted,
}

impl Outcome {
    /// The outcome as records name it.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Begun => "begun",
            Outcome::Succeeded => "succeeded",
            Outcome::Failed => "failed",
            Outcome::Noted => "noted",
        }
    }
}

/// The newest record of a chain, as an anchor names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// The hash of its content, in hexadecimal.
    pub hash: String,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Record {
    /// The chain.
    pub writer: String,
    /// The number in the chain, from 1.
    pub seq: u64,
    /// The hash of the content of the record before it.
    pub prev: Option<String>,
    /// The writer's clock.
    pub time: TimestampTz,
    /// The writer's host name.
    pub host: String,
    /// Name and version of the program.
    pub program: String,
    /// The user that the process runs as.
    pub actor: String,
    /// The number of that user.
    pub uid: u32,
    /// The user who called `sudo`, as the environment has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// The user who logged in, as the kernel has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Words of the command.
    pub command: String,
    /// The cluster, content or backup that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// 16 hexadecimal digits, the same in all records of one run.
    pub run: String,
    pub outcome: Outcome,
    /// The exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// The error's code, as a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The record of another chain, `<writer>/<seq>`, after which this chain goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<String>,
    /// The repositories that had that record, by their identity, as the writer's state has it. A record of an older program does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues_in: Option<Vec<String>>,
    /// An anchor: the newest records that its writer read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heads: BTreeMap<String, Head>,
    /// Records up to these are deleted once this one is durable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expired: BTreeMap<String, u64>,
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub record: Record,
    /// The hash of its content.
    pub hash: Hash,
    /// The MAC key is at hand, and whoever made this did not hold it.
    pub is_doubted: bool,
}

/// The result of creating a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The record is there, and is this one.
    Own,
    /// Another record has its number.
    Taken,
}

/// Returns the key of a record.
///
/// # Errors
/// `Damaged` for a name that is no writer's.
pub fn key(writer: &str, seq: u64) -> Result<Key> {
    match is_scope_name(writer) {
        true => Key::new(format!("{ROOT}/{writer}/{seq:0DIGITS$}")),
        false => Err(err!(
            Damaged,
            "\"{}\" is no writer of the audit log",
            writer.escape_debug()
        )),
    }
}

/// The number of a record, from the last part of its key.
pub fn number(name: &str) -> Option<u64> {
    let is_number = name.len() == DIGITS && name.bytes().all(|b| b.is_ascii_digit());
    name.parse().ok().filter(|seq| is_number && *seq > 0)
}

/// Returns the bytes of a record without a MAC, as the host keeps them.
///
/// # Errors
/// `Internal`.
pub fn encode(record: &Record) -> Result<Vec<u8>> {
    json::encode(&key(&record.writer, record.seq)?, KIND, record)
}

/// Checks and parses the bytes of a record.
///
/// # Errors
/// `Damaged`, also when it belongs elsewhere; `Unsupported`.
pub fn decode(writer: &str, seq: u64, bytes: &[u8]) -> Result<(Record, Hash)> {
    let key = key(writer, seq)?;
    let record: Record = json::decode(&key, KIND, bytes)?;
    if record.writer != writer || record.seq != seq {
        return Err(err!(
            Damaged,
            "object \"{key}\" is a record of another place"
        ));
    }
    Ok((record, json::content_hash(&key, bytes)?))
}

/// Creates a record that follows what is stored of its chain.
///
/// # Errors
/// Those of the store. Only an answer of the store says that the number is taken.
pub fn create(store: &dyn Store, record: &Record) -> Result<Created> {
    let key = key(&record.writer, record.seq)?;
    if json::write_signed(store, &key, KIND, record)? == Published::Created {
        return Ok(Created::Own);
    }
    let own = json::content_hash(&key, &encode(record)?)?;
    match read(store, &record.writer, record.seq) {
        Ok(Some(there)) if there.hash == own => Ok(Created::Own),
        Ok(None) => Err(err!(
            Unreachable,
            "object \"{key}\" exists, and cannot be found"
        )),
        Ok(Some(_)) => Ok(Created::Taken),
        Err(e) if is_of_the_record(&e) => Ok(Created::Taken),
        Err(e) => Err(e),
    }
}

/// Whether an error is one of the record, and not of the way to it.
pub fn is_of_the_record(error: &Error) -> bool {
    matches!(error.code(), Code::Damaged | Code::Unsupported)
}

/// Reads a record; none where there is none.
///
/// # Errors
/// `Damaged`, `Unsupported`; those of the store.
pub fn read(store: &dyn Store, writer: &str, seq: u64) -> Result<Option<Stored>> {
    let key = key(writer, seq)?;
    let Some(bytes) = get(store, &key, LIMIT_BYTES)? else {
        return Ok(None);
    };
    let (record, hash) = decode(writer, seq, &bytes)?;
    let is_doubted = !json::is_genuine(store, &key, &bytes)?;
    Ok(Some(Stored {
        record,
        hash,
        is_doubted,
    }))
}

/// Copies a record byte by byte; false where it went meanwhile, and where another one is there.
///
/// # Errors
/// `Damaged` for one that nobody can read; those of the stores.
pub fn copy(from: &dyn Store, to: &dyn Store, writer: &str, seq: u64) -> Result<bool> {
    let key = key(writer, seq)?;
    let Some(bytes) = get(from, &key, LIMIT_BYTES)? else {
        return Ok(false);
    };
    decode(writer, seq, &bytes)?;
    Ok(store::put(to, &key, &bytes)? == Published::Created)
}

/// The numbers of a chain that are stored, with what the listing says of each.
pub type Numbers = BTreeMap<u64, Option<Meta>>;

/// The names below `audit/`.
#[derive(Debug, Default)]
pub struct Names {
    /// The numbers of each writer.
    pub chains: BTreeMap<String, Numbers>,
    /// Names that are none of this format.
    pub strange: Vec<String>,
}

/// Lists every record.
///
/// # Errors
/// `Unsupported` for more than can be checked; those of the store.
pub fn names(store: &dyn Store) -> Result<Names> {
    let most = fault::lowered(NAMES_MAX);
    let (writers, strange) = writers(store)?;
    let mut names = Names {
        strange,
        ..Names::default()
    };
    let mut count = 0_usize;
    for writer in writers {
        let (numbers, strange) = numbers(store, &writer)?;
        names.strange.extend(strange);
        count += numbers.len();
        if count + names.strange.len() > most {
            return Err(
                err!(Unsupported, "the audit log has more than {most} records")
                    .hint("Shorten [audit] keep, and run \"pitr expire --confirm\"."),
            );
        }
        names.chains.insert(writer, numbers);
    }
    Ok(names)
}

/// Lists the writers, and the names beside them that are none.
///
/// # Errors
/// Those of the store.
pub fn writers(store: &dyn Store) -> Result<(Vec<String>, Vec<String>)> {
    let (mut writers, mut strange) = (Vec::new(), Vec::new());
    for writer in store.list(ROOT)? {
        match writer.is_prefix && is_scope_name(&writer.name) {
            true => writers.push(writer.name),
            false => strange.push(format!("{ROOT}/{}", writer.name)),
        }
    }
    Ok((writers, strange))
}

/// Lists the numbers of one chain, and the names beside them that are none.
///
/// # Errors
/// Those of the store.
pub fn numbers(store: &dyn Store, writer: &str) -> Result<(Numbers, Vec<String>)> {
    let (mut numbers, mut strange) = (Numbers::new(), Vec::new());
    for one in store.list(&format!("{ROOT}/{writer}"))? {
        match number(&one.name).filter(|_| !one.is_prefix) {
            Some(seq) => drop(numbers.insert(seq, one.meta)),
            None => strange.push(format!("{ROOT}/{writer}/{}", one.name)),
        }
    }
    Ok((numbers, strange))
}

/// A hash of content from its hexadecimal digits.
pub fn hash_of(text: &str) -> Option<Hash> {
    unhex_array(text)
}

impl Record {
    /// Makes the record the next one of a chain.
    pub fn chained(mut self, writer: &str, before: Option<(u64, Hash)>) -> Record {
        writer.clone_into(&mut self.writer);
        self.seq = before.map_or(1, |(seq, _)| seq.saturating_add(1));
        self.prev = before.map(|(_, hash)| hex(&hash));
        self
    }

    /// The name of a new chain of this host: `random` tells it from every other.
    pub fn new_writer(random: u64) -> String {
        let host: String = event::host()
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(40)
            .collect();
        let host = host.trim_matches('-');
        let host = if host.is_empty() { "host" } else { host };
        format!("{host}-{:08x}", random & 0xFFFF_FFFF)
    }
}
