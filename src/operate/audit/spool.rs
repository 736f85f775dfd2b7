//! The records of a configuration on their way into the repositories.
//!
//! The order is decided here, under a lock, and a record is durable here before it is created anywhere. A record stays until every configured
//! repository has it; the newest one stays for ever, because the next one names it.
//!
//! Root and the user of backups continue one chain, in a directory of that user: root works there on behalf of the user.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::behalf;
use crate::config::{self, Settings};
use crate::durable::{self, Published};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::lock;
use crate::operate::counters::make;
use crate::operate::session::Session;
use crate::repo::audit::{self, Created, Hash, Record};
use crate::repo::repository::Repository;
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

/// How far each repository got with each chain. Another repository may come to the place of one, and has none of its records: what was sent
/// belongs to the identity of a repository.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sent {
    /// The repository that was last at each place.
    #[serde(default)]
    places: BTreeMap<String, String>,
    /// The last number of each chain, by repository.
    #[serde(default)]
    repositories: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Sent {
    fn of(&self, repository: &str, writer: &str) -> u64 {
        let chains = self.repositories.get(repository);
        chains.and_then(|c| c.get(writer)).copied().unwrap_or(0)
    }

    /// The same of the repository that was last at a place.
    fn at(&self, configured: &config::Repository, writer: &str) -> u64 {
        let there = self.places.get(&configured.location.to_string());
        there.map_or(0, |repository| self.of(repository, writer))
    }

    /// Whether any repository has a record.
    fn is_anywhere(&self, writer: &str, seq: u64) -> bool {
        self.holders(writer, seq).next().is_some()
    }

    /// The repositories that have a record.
    fn holders(&self, writer: &str, seq: u64) -> impl Iterator<Item = &String> {
        let holds = move |last: &u64| *last != CLOSED && *last >= seq;
        let all = self.repositories.iter();
        all.filter(move |(_, chains)| chains.get(writer).is_some_and(holds))
            .map(|(uuid, _)| uuid)
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
        let place = place(state_dir, settings);
        make(&place)?;
        Ok(Spool { place })
    }

    /// The spool of a configuration below `state_dir`, where it is there.
    pub fn existing(state_dir: &Path, settings: &Settings) -> Option<Spool> {
        let place = place(state_dir, settings);
        let writer = place.join(WRITER);
        let is_there = behalf::of(&place, || Ok(writer.exists()));
        is_there
            .is_ok_and(|is_there| is_there)
            .then_some(Spool { place })
    }

    /// Works on a file of the spool.
    fn on<T: Send>(
        &self,
        doing: &str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T> {
        let done = behalf::of(&self.place, work);
        done.map_err(|e| self.failed(doing, path, e))
    }

    fn failed(&self, doing: &str, path: &Path, e: io::Error) -> Error {
        let failed = Error::from_io(format!("{doing} \"{}\"", path.display()), e);
        match failed.code() {
            Code::Denied => failed.hint(format!(
                "All of \"{}\" must belong to the account of backups. Root works there as that account.",
                self.place.display()
            )),
            _ => failed,
        }
    }

    /// Reads a file of the spool; none where it is not there.
    fn bytes(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match behalf::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("read", path, e)),
        }
    }

    fn lock(&self) -> Result<File> {
        let path = self.place.join(LOCK);
        let lock = self.on("lock", &path, || lock::take(&path, PATIENCE))?;
        let shown = path.display();
        lock.ok_or_else(|| err!(Deadline, "\"{shown}\" is locked by another process"))
    }

    fn path(&self, writer: &str, seq: u64) -> PathBuf {
        self.place.join(format!("{writer}.{seq:012}"))
    }

    /// The chain of this host; none before its first record.
    pub fn writer(&self) -> Result<Option<String>> {
        let Some(bytes) = self.bytes(&self.place.join(WRITER))? else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(&bytes).trim().to_owned();
        Ok(audit::key(&name, 1).is_ok().then_some(name))
    }

    /// The numbers of each chain that lie here.
    fn numbers(&self) -> Result<BTreeMap<String, Vec<u64>>> {
        let names = || -> io::Result<Vec<OsString>> {
            let entries = std::fs::read_dir(&self.place)?;
            entries.map(|entry| Ok(entry?.file_name())).collect()
        };
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for name in self.on("read", &self.place, names)? {
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
        let bytes = self.bytes(&self.path(writer, seq))?;
        let read = bytes.map(|bytes| audit::decode(writer, seq, &bytes));
        read.transpose()
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
                let last = last.unwrap_or(0);
                record.continues = Some(format!("{writer}/{last}"));
                let sent = self.sent();
                record.continues_in = Some(sent.holders(&writer, last).cloned().collect());
                (self.begin_chain(session)?, None)
            }
        };
        let record = record.chained(&writer, before);
        let path = self.path(&writer, record.seq);
        let (bytes, nonce) = (audit::encode(&record)?, session.host.random());
        match self.on("write", &path, || durable::write_new(&path, &bytes, nonce))? {
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
        let (path, nonce) = (self.place.join(name), session.host.random());
        self.on("write", &path, || durable::replace(&path, content, nonce))
    }

    /// Damaged or missing, it costs sending again what is there already.
    fn sent(&self) -> Sent {
        let bytes = self.bytes(&self.place.join(SENT));
        let bytes = bytes.ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn change_sent(&self, session: &Session, change: impl FnOnce(&mut Sent)) -> Result<()> {
        let mut sent = self.sent();
        change(&mut sent);
        let text = serde_json::to_vec(&sent)
            .map_err(|e| err!(Internal, "what was sent cannot be written").source(e))?;
        self.replace(session, SENT, &text)
    }

    /// Notes under the lock how far a repository got.
    fn note_sent(&self, session: &Session, repository: &str, writer: &str, seq: u64) -> Result<()> {
        self.change_sent(session, |sent| {
            let chains = sent.repositories.entry(repository.to_owned()).or_default();
            let known = chains.entry(writer.to_owned()).or_default();
            *known = seq.max(*known);
        })
    }

    /// Notes which repository is at a place.
    fn note_place(
        &self,
        session: &Session,
        configured: &config::Repository,
        uuid: &str,
    ) -> Result<()> {
        let place = configured.location.to_string();
        if self
            .sent()
            .places
            .get(&place)
            .is_some_and(|known| known == uuid)
        {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.change_sent(session, |sent| {
            if sent.places.insert(place, uuid.to_owned()).is_some() {
                session.warn(&format!(
                    "repository \"{}\" is another one than before: the audit log of this host begins there anew",
                    configured.name
                ));
            }
        })
    }

    /// Creates in a repository every record that it lacks, in order.
    ///
    /// # Errors
    /// Those of the store and of the system: the rest is sent another time.
    pub fn send(
        &self,
        session: &Session,
        configured: &config::Repository,
        repository: &Repository,
    ) -> Result<()> {
        let uuid = &repository.marker().uuid;
        self.note_place(session, configured, uuid)?;
        // A chain that has to end begins another one, which is sent at once.
        for _ in 0..2 {
            if self.send_once(session, uuid, repository.store())? {
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
    fn send_once(&self, session: &Session, uuid: &str, store: &dyn Store) -> Result<bool> {
        let sent = self.sent();
        let mut is_whole = true;
        for (writer, numbers) in self.numbers()? {
            let from = sent.of(uuid, &writer);
            let mut last = None;
            let mut done = Ok(());
            let mut waiting = numbers.into_iter().filter(|seq| *seq > from).peekable();
            if let Some(first) = waiting.peek().copied()
                && first > from + 1
                && lacks_before(store, &writer, first)?
            {
                self.leave(session, uuid, (&writer, first), Left::Beginning)?;
                is_whole = false;
                continue;
            }
            for seq in waiting {
                let created = self.read(&writer, seq).and_then(|read| {
                    let created = read.map(|(record, _)| audit::create(store, &record));
                    created.transpose()
                });
                match created {
                    Ok(Some(Created::Own)) => last = Some(seq),
                    Ok(Some(Created::Taken)) => {
                        self.leave(session, uuid, (&writer, seq), Left::Taken)?;
                        (is_whole, last) = (false, None);
                        break;
                    }
                    Ok(None) => {}
                    Err(e) => {
                        done = Err(e);
                        break;
                    }
                }
            }
            if let Some(seq) = last {
                let _lock = self.lock()?;
                self.note_sent(session, uuid, &writer, seq)?;
            }
            done?;
        }
        Ok(is_whole)
    }

    /// Leaves a chain that a repository cannot continue from the record `from` on, and writes what follows once more into another one.
    fn leave(
        &self,
        session: &Session,
        uuid: &str,
        (writer, from): (&str, u64),
        why: Left,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let before = self.sent();
        let mut holders: BTreeSet<String> = before.holders(writer, from - 1).cloned().collect();
        if why == Left::Taken {
            // It took all up to there.
            holders.insert(uuid.to_owned());
        }
        self.note_sent(session, uuid, writer, CLOSED)?;
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
                let is_first = record.continues.is_some();
                record.continues_in = is_first.then(|| holders.iter().cloned().collect());
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
                self.on("remove", &path, || durable::remove(&path))?;
            }
        }
        Ok(())
    }

    fn least(&self, repositories: &[config::Repository], writer: &str) -> u64 {
        let sent = self.sent();
        let each = repositories.iter().map(|one| sent.at(one, writer));
        each.min().unwrap_or(0)
    }

    /// Whether a repository has this record of this host.
    pub fn is_sent(&self, configured: &config::Repository, record: &Record) -> bool {
        let sent = self.sent().at(configured, &record.writer);
        sent != CLOSED && sent >= record.seq
    }

    /// The number of records that a repository lacks.
    ///
    /// # Errors
    /// Those of the system.
    pub fn waiting(&self, configured: &config::Repository) -> Result<usize> {
        let (sent, numbers) = (self.sent(), self.numbers()?);
        let of = |(writer, seqs): (&String, &Vec<u64>)| {
            let from = sent.at(configured, writer);
            seqs.iter().filter(|seq| **seq > from).count()
        };
        Ok(numbers.iter().map(of).sum())
    }

    /// The newest record of this host that a repository has.
    ///
    /// # Errors
    /// Those of the system.
    pub fn newest_sent(&self, repository: &Repository) -> Result<Option<(Record, Hash)>> {
        let Some(writer) = self.writer()? else {
            return Ok(None);
        };
        let sent = self.sent().of(&repository.marker().uuid, &writer);
        self.newest_up_to(&writer, if sent == CLOSED { 0 } else { sent })
    }

    /// The newest record of this host that any of these repositories has.
    ///
    /// # Errors
    /// Those of the system.
    pub fn head(&self, repositories: &[config::Repository]) -> Result<Option<(Record, Hash)>> {
        let Some(writer) = self.writer()? else {
            return Ok(None);
        };
        let sent = self.sent();
        let each = repositories.iter().map(|one| sent.at(one, &writer));
        let most = each.filter(|sent| *sent != CLOSED).max();
        self.newest_up_to(&writer, most.unwrap_or(0))
    }

    fn newest_up_to(&self, writer: &str, most: u64) -> Result<Option<(Record, Hash)>> {
        let numbers = self.numbers()?.remove(writer).unwrap_or_default();
        let newest = numbers.into_iter().rfind(|seq| *seq <= most);
        newest.map_or(Ok(None), |seq| self.read(writer, seq))
    }
}
