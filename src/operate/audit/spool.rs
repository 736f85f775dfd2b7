//! The records of a configuration on their way into the repositories.
//!
//! The order is decided here, under a lock, and a record is durable here before it is created anywhere. A record stays until every configured
//! repository has it; the newest one stays for ever, because the next one names it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{self, Settings};
use crate::durable::{self, Published};
use crate::err;
use crate::error::{Error, Result};
use crate::lock;
use crate::operate::counters::make;
use crate::operate::session::Session;
use crate::repo::audit::{self, Created, Hash, Record};
use crate::store::Store;

/// The directory, below `state_dir`.
const FOLDER: &str = "audit";
/// Its lock.
const LOCK: &str = "lock";
/// The file with the name of the chain.
const WRITER: &str = "writer";
/// The file that tells how far each repository got.
const SENT: &str = "sent.json";
/// How long another command may hold the lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number of a chain that a repository takes no more of.
const CLOSED: u64 = u64::MAX;

/// The spool of a host.
pub struct Spool {
    place: PathBuf,
}

/// How far each repository got with each chain, by the repository's place.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sent(BTreeMap<String, BTreeMap<String, u64>>);

impl Sent {
    fn of(&self, place: &str, writer: &str) -> u64 {
        let chains = self.0.get(place);
        chains.and_then(|c| c.get(writer)).copied().unwrap_or(0)
    }

    /// Whether any repository has a record.
    fn is_anywhere(&self, writer: &str, seq: u64) -> bool {
        let sent = self.0.values().filter_map(|chains| chains.get(writer));
        sent.into_iter().any(|last| *last != CLOSED && *last >= seq)
    }
}

/// The directory of a configuration's spool: by the file, for its repositories may change.
fn place(state_dir: &Path, settings: &Settings) -> PathBuf {
    let file = settings.path.as_deref().unwrap_or(Path::new(""));
    let hash = blake3::hash(file.as_os_str().as_bytes()).to_hex();
    let name = hash.get(..16).unwrap_or_default();
    state_dir.join(FOLDER).join(name)
}

/// Why a repository cannot continue a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Somebody else has the number.
    Taken,
    /// The repository is new, and lacks the records before.
    Beginning,
}

/// Whether a repository lacks the record before this one. One that cannot be read is there.
fn lacks_before(store: &dyn Store, writer: &str, seq: u64) -> Result<bool> {
    if seq == 1 {
        return Ok(false);
    }
    match audit::read(store, writer, seq - 1) {
        Ok(before) => Ok(before.is_none()),
        Err(e) if audit::is_of_the_record(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Spool {
    /// The spool of a configuration below `state_dir`, which is made. Each configuration has its own: the repositories of another one are not to
    /// get its records, and removed is only what all of its own have.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(state_dir: &Path, settings: &Settings) -> Result<Spool> {
        let spool = Spool {
            place: place(state_dir, settings),
        };
        make(&spool.place)?;
        let failed = |e| Error::from_io(format!("read \"{}\"", state_dir.display()), e);
        let owner = std::fs::metadata(state_dir).map_err(failed)?;
        if rustix::process::geteuid().is_root() {
            for made in [state_dir.join(FOLDER), spool.place.clone()] {
                lchown(made, Some(owner.uid()), Some(owner.gid())).map_err(failed)?;
            }
        }
        Ok(spool)
    }

    /// The spool of a configuration below `state_dir`, where it is there.
    pub fn existing(state_dir: &Path, settings: &Settings) -> Option<Spool> {
        let place = place(state_dir, settings);
        place.join(WRITER).exists().then_some(Spool { place })
    }

    fn lock(&self) -> Result<File> {
        let path = self.place.join(LOCK);
        let failed = |e| Error::from_io(format!("lock \"{}\"", path.display()), e);
        let lock = lock::take(&path, PATIENCE).map_err(failed)?;
        self.give(&path)?;
        lock.ok_or_else(|| {
            err!(
                Deadline,
                "\"{}\" is locked by another process",
                path.display()
            )
        })
    }

    /// Gives a file that root made to the user whose directory this is: both of them continue one chain.
    fn give(&self, path: &Path) -> Result<()> {
        let failed = |e| Error::from_io(format!("change the owner of \"{}\"", path.display()), e);
        let of = std::fs::metadata(&self.place).map_err(failed)?;
        let is_root = rustix::process::geteuid().is_root();
        match is_root && std::fs::metadata(path).map_err(failed)?.uid() != of.uid() {
            true => lchown(path, Some(of.uid()), Some(of.gid())).map_err(failed),
            false => Ok(()),
        }
    }

    fn path(&self, writer: &str, seq: u64) -> PathBuf {
        self.place.join(format!("{writer}.{seq:012}"))
    }

    /// The chain of this host; none before its first record.
    pub fn writer(&self) -> Result<Option<String>> {
        let path = self.place.join(WRITER);
        match std::fs::read_to_string(&path) {
            Ok(name) => Ok(audit::key(name.trim(), 1)
                .ok()
                .map(|_| name.trim().to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
        }
    }

    /// The numbers of each chain that lie here.
    fn numbers(&self) -> Result<BTreeMap<String, Vec<u64>>> {
        let failed = |e| Error::from_io(format!("read \"{}\"", self.place.display()), e);
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.place).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some((writer, seq)) = name.to_str().and_then(|n| n.rsplit_once('.')) else {
                continue;
            };
            if let Some(seq) = audit::number(seq) {
                found.entry(writer.to_owned()).or_default().push(seq);
            }
        }
        found.values_mut().for_each(|seqs| seqs.sort_unstable());
        Ok(found)
    }

    fn read(&self, writer: &str, seq: u64) -> Result<Option<(Record, Hash)>> {
        let path = self.path(writer, seq);
        match std::fs::read(&path) {
            Ok(bytes) => audit::decode(writer, seq, &bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::from_io(format!("read \"{}\"", path.display()), e)),
        }
    }

    /// Makes a record the next one of this host, durably.
    ///
    /// # Errors
    /// Those of the system; `Deadline` when another process holds the lock.
    pub fn append(&self, session: &Session, record: Record) -> Result<Record> {
        let _lock = self.lock()?;
        self.append_locked(session, record)
    }

    fn append_locked(&self, session: &Session, mut record: Record) -> Result<Record> {
        let writer = match self.writer()? {
            Some(writer) => writer,
            None => self.begin_chain(session)?,
        };
        let last = self.numbers()?.get(&writer).and_then(|s| s.last().copied());
        let before = last.map_or(Ok(None), |seq| self.read(&writer, seq));
        let (writer, before) = match before {
            Ok(before) => (writer, before.map(|(record, hash)| (record.seq, hash))),
            Err(e) if !audit::is_of_the_record(&e) => return Err(e),
            // Nobody can follow a record that cannot be read.
            Err(_) => {
                record.continues = Some(format!("{writer}/{}", last.unwrap_or(0)));
                (self.begin_chain(session)?, None)
            }
        };
        let record = record.chained(&writer, before);
        let path = self.path(&writer, record.seq);
        let written = durable::write_new(&path, &audit::encode(&record)?, session.host.random())
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
        self.give(&path)?;
        match written {
            Published::Created => Ok(record),
            Published::Exists => Err(err!(Internal, "\"{}\" exists already", path.display())),
        }
    }

    fn begin_chain(&self, session: &Session) -> Result<String> {
        let writer = Record::new_writer(session.host.random());
        self.replace(session, WRITER, writer.as_bytes())?;
        Ok(writer)
    }

    fn replace(&self, session: &Session, name: &str, content: &[u8]) -> Result<()> {
        let path = self.place.join(name);
        durable::replace(&path, content, session.host.random())
            .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))?;
        self.give(&path)
    }

    /// Damaged or missing, it costs sending again what is there already.
    fn sent(&self) -> Sent {
        let bytes = std::fs::read(self.place.join(SENT)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn note_sent(&self, session: &Session, place: &str, writer: &str, seq: u64) -> Result<()> {
        let _lock = self.lock()?;
        self.note_sent_locked(session, place, writer, seq)
    }

    fn note_sent_locked(
        &self,
        session: &Session,
        place: &str,
        writer: &str,
        seq: u64,
    ) -> Result<()> {
        let mut sent = self.sent();
        let chains = sent.0.entry(place.to_owned()).or_default();
        let known = chains.entry(writer.to_owned()).or_default();
        *known = seq.max(*known);
        let text = serde_json::to_vec(&sent)
            .map_err(|e| err!(Internal, "what was sent cannot be written").source(e))?;
        self.replace(session, SENT, &text)
    }

    /// Creates in a repository every record that it lacks, in order.
    ///
    /// # Errors
    /// Those of the store and of the system: the rest is sent another time.
    pub fn send(
        &self,
        session: &Session,
        configured: &config::Repository,
        store: &dyn Store,
    ) -> Result<()> {
        let place = configured.location.to_string();
        // A chain that has to end begins another one, which is sent at once.
        for _ in 0..2 {
            if self.send_once(session, &place, store)? {
                return Ok(());
            }
        }
        Err(err!(
            Conflict,
            "somebody creates records under the names of this host in repository \"{}\"",
            configured.name
        ))
    }

    /// False where a number was taken, and another chain has begun.
    fn send_once(&self, session: &Session, place: &str, store: &dyn Store) -> Result<bool> {
        let sent = self.sent();
        let mut is_whole = true;
        for (writer, numbers) in self.numbers()? {
            let from = sent.of(place, &writer);
            let mut last = None;
            let mut done = Ok(());
            let mut waiting = numbers.into_iter().filter(|seq| *seq > from).peekable();
            if let Some(first) = waiting.peek().copied()
                && from == 0
                && lacks_before(store, &writer, first)?
            {
                self.leave(session, place, (&writer, first), Left::Beginning)?;
                is_whole = false;
                continue;
            }
            for seq in waiting {
                let record = match self.read(&writer, seq) {
                    Ok(Some((record, _))) => record,
                    Ok(None) => continue,
                    Err(e) => {
                        done = Err(e);
                        break;
                    }
                };
                match audit::create(store, &record) {
                    Ok(Created::Own) => last = Some(seq),
                    Ok(Created::Taken) => {
                        self.leave(session, place, (&writer, seq), Left::Taken)?;
                        (is_whole, last) = (false, None);
                        break;
                    }
                    Err(e) => {
                        done = Err(e);
                        break;
                    }
                }
            }
            if let Some(seq) = last {
                self.note_sent(session, place, &writer, seq)?;
            }
            done?;
        }
        Ok(is_whole)
    }

    /// Leaves a chain that a repository cannot continue from the record `from` on, and writes what follows once more into another one.
    fn leave(
        &self,
        session: &Session,
        place: &str,
        (writer, from): (&str, u64),
        why: Left,
    ) -> Result<()> {
        let _lock = self.lock()?;
        self.note_sent_locked(session, place, writer, CLOSED)?;
        if self.writer()?.as_deref() != Some(writer) {
            return Ok(());
        }
        let sent = self.sent();
        let numbers = self.numbers()?.remove(writer).unwrap_or_default();
        self.begin_chain(session)?;
        let mut continues = Some(format!("{writer}/{}", from - 1));
        // A sync brings the beginning of the chain, and the records that another repository has.
        let is_elsewhere = |seq: u64| why == Left::Beginning && sent.is_anywhere(writer, seq);
        for seq in numbers.into_iter().filter(|seq| *seq >= from) {
            if is_elsewhere(seq) {
                continue;
            }
            if let Ok(Some((mut record, _))) = self.read(writer, seq) {
                record.continues = continues.take();
                self.append_locked(session, record)?;
            }
        }
        Ok(())
    }

    /// Removes what every one of these repositories has.
    ///
    /// # Errors
    /// Those of the system.
    pub fn tidy(&self, repositories: &[config::Repository]) -> Result<()> {
        let _lock = self.lock()?;
        let current = self.writer()?;
        for (writer, mut numbers) in self.numbers()? {
            let least = self.least(repositories, &writer);
            if current.as_deref() == Some(writer.as_str()) {
                numbers.pop();
            }
            for seq in numbers.into_iter().filter(|seq| *seq <= least) {
                let path = self.path(&writer, seq);
                durable::remove(&path)
                    .map_err(|e| Error::from_io(format!("remove \"{}\"", path.display()), e))?;
            }
        }
        Ok(())
    }

    fn least(&self, repositories: &[config::Repository], writer: &str) -> u64 {
        let sent = self.sent();
        let each = repositories
            .iter()
            .map(|r| sent.of(&r.location.to_string(), writer));
        each.min().unwrap_or(0)
    }

    /// Whether a repository has this record of this host.
    pub fn is_sent(&self, configured: &config::Repository, record: &Record) -> bool {
        let place = configured.location.to_string();
        let sent = self.sent().of(&place, &record.writer);
        sent != CLOSED && sent >= record.seq
    }

    /// The number of records that a repository lacks.
    ///
    /// # Errors
    /// Those of the system.
    pub fn waiting(&self, configured: &config::Repository) -> Result<usize> {
        let (place, sent) = (configured.location.to_string(), self.sent());
        let numbers = self.numbers()?;
        let of = |(writer, seqs): (&String, &Vec<u64>)| {
            let from = sent.of(&place, writer);
            seqs.iter().filter(|seq| **seq > from).count()
        };
        Ok(numbers.iter().map(of).sum())
    }

    /// The newest record of this host that a repository has.
    ///
    /// # Errors
    /// Those of the system.
    pub fn newest_sent(&self, configured: &config::Repository) -> Result<Option<(Record, Hash)>> {
        let Some(writer) = self.writer()? else {
            return Ok(None);
        };
        let sent = self.sent().of(&configured.location.to_string(), &writer);
        let numbers = self.numbers()?.remove(&writer).unwrap_or_default();
        let newest = numbers
            .into_iter()
            .rfind(|seq| *seq <= sent && sent != CLOSED);
        newest.map_or(Ok(None), |seq| self.read(&writer, seq))
    }
}
