//! Erasures: scripts that erased somebody in production, and that a restored copy repeats before anybody uses it.
//!
//! | file | what it owns |
//! |---|---|
//! | `apply` | the run of the scripts on a restored copy |
//! | `scripts` | the scripts as a server runs them, there and in clones |

pub mod apply;
pub mod scripts;

use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::failures::Failures;
use super::human;
use super::opened::Opened;
use super::reading::Reading;
use super::rescue::tables::literal;
use super::server::{self, Server};
use super::session::Session;
use super::unproven;
use crate::config::account::Account;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::expire::erasures;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::recovery::Plan;
use crate::repo::erasure::{self, Erasure, Left};
use crate::repo::event;
use crate::repo::layout::ClusterLayout;

/// A script is shorter; what is longer is not read whole.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Why nothing is written without the MAC key.
const UNPROVEN: &str = "an erasure that nothing proves would be taken for forged";

/// An erasure, and the repositories that hold it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Entry {
    /// Its name.
    pub id: String,
    /// The system identifier that the cluster had.
    #[serde(with = "crate::text::decimal")]
    pub system_identifier: u64,
    /// The repositories that hold it.
    pub repositories: Vec<String>,
    /// The record; none where it can be read in none of them.
    pub erasure: Option<Recorded>,
    /// Why it cannot be read in one of them.
    pub damage: Option<String>,
    /// The kind of that error.
    #[serde(skip)]
    pub code: Option<Code>,
    /// Without its script.
    #[serde(skip)]
    position: Option<Erasure>,
}

/// An erasure without its script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// When it was recorded.
    pub time: TimestampTz,
    /// The host that recorded it.
    pub host: String,
    /// The user who recorded it.
    pub recorded_by: String,
    /// Why.
    pub reason: Option<String>,
    pub database: String,
    pub database_oid: Option<u32>,
    /// The timeline of `lsn`.
    pub timeline: Option<TimelineId>,
    /// The server's position by which the rows were gone.
    pub lsn: Option<Lsn>,
    /// Length of the script.
    pub sql_bytes: usize,
    /// All of it, so that two repositories can be compared.
    #[serde(skip)]
    hash: blake3::Hash,
}

impl From<&Erasure> for Recorded {
    fn from(erasure: &Erasure) -> Recorded {
        Recorded {
            time: erasure.time,
            host: erasure.host.clone(),
            recorded_by: erasure.recorded_by.clone(),
            reason: erasure.reason.clone(),
            database: erasure.database.clone(),
            database_oid: erasure.database_oid,
            timeline: erasure.timeline,
            lsn: erasure.lsn,
            sql_bytes: erasure.sql.len(),
            hash: blake3::hash(format!("{erasure:?}").as_bytes()),
        }
    }
}

/// The erasures of a cluster, oldest first.
#[derive(Serialize)]
pub struct Listing {
    /// The cluster's name.
    pub cluster: String,
    /// Those of every system identifier that the name has had.
    pub erasures: Vec<Entry>,
    /// Repositories in which nothing proves who recorded them.
    pub unproven: Vec<String>,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
    #[serde(skip)]
    readings: Vec<Reading>,
}

/// Reads the erasures of a cluster in every repository that answers.
///
/// # Errors
/// Those of [`Reading::open`]; `Conflict` where two repositories have different ones under a name; the first failure where nothing was read.
pub fn list(session: &Session) -> Result<Listing> {
    let (mut readings, mut failures) = everywhere(session)?;
    let mut erasures = Vec::new();
    let before = readings.len();
    let mut unproven = Vec::new();
    readings.retain(|reading| {
        let name = &reading.configured.name;
        // Entries of a repository that fails later do not count.
        let mut with = erasures.clone();
        let gathered = gather(session, reading, &mut with);
        let doing = format!("read the erasures of repository \"{name}\"");
        let is_read = failures.note(gathered, doing).is_some();
        if is_read {
            erasures = with;
        }
        if is_read && is_unproven(reading) {
            unproven.push(name.clone());
        }
        is_read
    });
    failures.first_if(session, readings.is_empty() && before > 0)?;
    erasures.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Listing {
        cluster: readings.first().map(|r| r.name.clone()).unwrap_or_default(),
        erasures,
        unproven,
        failures,
        readings,
    })
}

/// The cluster in every repository that answers.
fn everywhere(session: &Session) -> Result<(Vec<Reading>, Failures)> {
    let first = Reading::open(session)?;
    let mut failures = Failures::default();
    let others = first.all_others(session);
    let opened = others
        .filter_map(|(name, other)| failures.note(other, format!("open repository \"{name}\"")));
    let others: Vec<Reading> = opened.collect();
    let all = std::iter::once(first).chain(others);
    Ok((all.collect(), failures))
}

/// Whether anybody who may create objects in a repository could have recorded what is there.
fn is_unproven(reading: &Reading) -> bool {
    let is_plain = reading.repository.marker().key_set.is_none();
    is_plain || unproven::warning(&reading.configured, &reading.repository, UNPROVEN).is_some()
}

/// Adds the erasures of one repository.
fn gather(session: &Session, reading: &Reading, entries: &mut Vec<Entry>) -> Result<()> {
    let store = reading.repository.store();
    for layout in reading.repository.clusters(&reading.name)? {
        for listed in erasure::list(store, &layout)? {
            session.host.check_stop()?;
            let read = match erasure::read(store, &layout, &listed.name).transpose() {
                None => continue,
                // A host that only writes, and a janitor, know the names alone.
                Some(Err(e)) if !e.is_damage() && e.code() != Code::Key => return Err(e),
                Some(read) => read,
            };
            let identifier = layout.system_identifier();
            let same = |e: &&mut Entry| e.id == listed.name && e.system_identifier == identifier;
            let known = match entries.iter_mut().find(same) {
                Some(known) => known,
                None => {
                    entries.push(Entry {
                        id: listed.name.clone(),
                        system_identifier: identifier,
                        ..Entry::default()
                    });
                    let Some(new) = entries.last_mut() else {
                        continue;
                    };
                    new
                }
            };
            known.repositories.push(reading.configured.name.clone());
            match read {
                Err(e) => {
                    known.code = known.code.or(Some(e.code()));
                    known.damage = known.damage.take().or(Some(e.to_string()));
                }
                Ok(mut erasure) => {
                    let own = Recorded::from(&erasure);
                    if known.erasure.as_ref().is_some_and(|e| *e != own) {
                        return Err(differs(&listed.name));
                    }
                    known.erasure = Some(own);
                    erasure.sql.clear();
                    known.position = Some(erasure);
                }
            }
        }
    }
    Ok(())
}

fn differs(id: &str) -> Error {
    err!(Conflict, "two repositories have different erasures \"{id}\"")
        .hint("Nothing was run. Compare them: pitr erasure show ID --repository NAME; remove the wrong one there: pitr erasure remove ID --repository NAME --confirm")
}

impl Listing {
    /// Whether a repository proves who recorded what is there.
    pub fn is_proven_somewhere(&self) -> bool {
        self.unproven.len() < self.readings.len()
    }

    /// Finds an erasure by its name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn entry(&self, id: &str) -> Result<&Entry> {
        let entry = self.erasures.iter().find(|e| e.id == id);
        entry.ok_or_else(|| unknown(id))
    }

    /// Reads the script of an erasure from the first repository that has it whole.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` where it is damaged in each; those of the stores.
    pub fn read(&self, id: &str) -> Result<Erasure> {
        let entry = self.entry(id)?;
        let mut damage = None;
        for reading in &self.readings {
            let layout = ClusterLayout::new(&reading.name, entry.system_identifier)?;
            match erasure::read(reading.repository.store(), &layout, id) {
                Ok(Some(erasure)) => return Ok(erasure),
                Err(e) if e.is_damage() => damage = damage.or(Some(e)),
                read => drop(read?),
            }
        }
        Err(damage.unwrap_or_else(|| unknown(id)))
    }

    /// Deletes an erasure wherever it is; returns the repositories that had it.
    ///
    /// # Errors
    /// `NotFound`; the first failure where it was deleted nowhere.
    pub fn remove(&mut self, session: &Session, id: &str) -> Result<Vec<String>> {
        let identifier = self.entry(id)?.system_identifier;
        let mut removed = Vec::new();
        for reading in &self.readings {
            let name = &reading.configured.name;
            let layout = ClusterLayout::new(&reading.name, identifier)?;
            match erasures::remove(&reading.repository, &layout, id) {
                Ok(true) => removed.push(name.clone()),
                Ok(false) => {}
                Err(e) => {
                    let doing = format!("remove it from repository \"{name}\"");
                    if !self.failures.add(e, doing) {
                        break;
                    }
                }
            }
        }
        self.failures.first_if(session, removed.is_empty())?;
        Ok(removed)
    }
}

fn unknown(id: &str) -> Error {
    err!(NotFound, "erasure \"{}\" does not exist", id.escape_debug())
        .hint("Nothing was changed. \"pitr erasure list\" shows them all.")
}

/// The operator's request to record an erasure.
pub struct Asked {
    /// The script.
    pub sql: String,
    /// The database that it belongs to.
    pub database: String,
    /// Why, for those who read it later.
    pub reason: Option<String>,
}

/// An erasure that was recorded.
#[derive(Serialize)]
pub struct Added {
    /// Its name.
    pub id: String,
    /// The timeline of `lsn`.
    pub timeline: Option<TimelineId>,
    /// The server's position.
    pub lsn: Option<Lsn>,
    /// The repositories in which it was recorded.
    pub recorded_in: Vec<String>,
    /// Those of them in which everybody can read it who reads the repository.
    pub readable_in: Vec<String>,
    /// Errors, repository by repository.
    #[serde(skip)]
    pub failures: Failures,
}

/// Reads a script, which is UTF-8; `-` is standard input.
///
/// # Errors
/// `Io`; `Usage` for another text.
pub fn read_script(path: &Path) -> Result<String> {
    let shown = path.display();
    let failed = |e| Error::from_io(format!("read \"{shown}\""), e);
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin()
            .take(READ_BYTES_MAX)
            .read_to_end(&mut bytes),
        false => std::fs::File::open(path)
            .map_err(failed)?
            .take(READ_BYTES_MAX)
            .read_to_end(&mut bytes),
    };
    read.map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| {
        err!(Usage, "the script \"{shown}\" is not UTF-8").hint("Nothing was recorded.")
    })
}

/// Requires that a script can run in one transaction of ours, as far as a look tells.
fn check_plain(sql: &str) -> Result<()> {
    let first = sql.split_whitespace().next().unwrap_or_default();
    let first = first.trim_end_matches(';').to_ascii_lowercase();
    let why = if sql.lines().any(|line| line.trim_start().starts_with('\\')) {
        "has a command of psql: a line that begins with a backslash"
    } else if ["begin", "start", "commit", "rollback", "end", "abort"].contains(&first.as_str()) {
        "begins or ends a transaction"
    } else {
        return Ok(());
    };
    Err(err!(Usage, "the script {why}")
        .hint("Nothing was recorded. Write plain SQL: the script is one transaction of its own."))
}

/// Records an erasure that was done in production, in every repository that answers.
///
/// # Errors
/// `Usage` for a script that is no plain SQL; `NotFound` for a database that the server does not have; those of [`Reading::open`]; `WrongCluster` where the server is another cluster's; the first failure where it was recorded nowhere.
pub fn add(session: &Session, asked: &Asked) -> Result<Added> {
    check_plain(&asked.sql)?;
    let (readings, failures) = everywhere(session)?;
    let first = readings.first();
    let first = first.ok_or_else(|| err!(Internal, "no repository was read"))?;
    let moment = match moment(session, first, &asked.database) {
        Ok(moment) => moment,
        Err(e) if e.code() == Code::NotFound => return Err(e),
        Err(e) => {
            session.warn(&format!("the server was not asked for its position, so this erasure is run on every restored copy: {e}"));
            Moment {
                identifier: first.inventory(session)?.system_identifier,
                database_oid: None,
                position: None,
            }
        }
    };
    let identifier = moment.identifier;
    let host = &session.host;
    let (timeline, lsn, ancestors) = match moment.position {
        Some((timeline, lsn, ancestors)) => (Some(timeline), Some(lsn), ancestors),
        None => (None, None, Vec::new()),
    };
    let erasure = Erasure {
        time: host.now(),
        host: event::host(),
        program: event::PROGRAM.to_owned(),
        recorded_by: Account::name_of(rustix::process::geteuid().as_raw()),
        reason: asked.reason.clone(),
        database: asked.database.clone(),
        database_oid: moment.database_oid,
        timeline,
        lsn,
        ancestors,
        sql: asked.sql.clone(),
    };
    let layout = ClusterLayout::new(&first.name, identifier)?;
    let mut added = Added {
        id: String::new(),
        timeline,
        lsn,
        recorded_in: Vec::new(),
        readable_in: Vec::new(),
        failures,
    };
    // The same name in every repository: they say the same.
    let nonce = host.random();
    for reading in &readings {
        let name = &reading.configured.name;
        match record(reading, &layout, &erasure, nonce) {
            Ok(id) => {
                added.id = id;
                added.recorded_in.push(name.clone());
                if reading.repository.marker().key_set.is_none() {
                    added.readable_in.push(name.clone());
                }
            }
            Err(e) => {
                let doing = format!("record it in repository \"{name}\"");
                if !added.failures.add(e, doing) {
                    break;
                }
            }
        }
    }
    let is_nothing = added.recorded_in.is_empty();
    added.failures.first_if(session, is_nothing)?;
    Ok(added)
}

fn record(
    reading: &Reading,
    layout: &ClusterLayout,
    erasure: &Erasure,
    nonce: u64,
) -> Result<String> {
    if let Some(why) = unproven::warning(&reading.configured, &reading.repository, UNPROVEN) {
        return Err(err!(Key, "{why}").hint("Nothing was recorded there."));
    }
    reading.repository.require(layout)?;
    erasure::write(reading.repository.store(), layout, erasure, nonce)
}

/// The answers of a server to which an erasure was just committed.
struct Moment {
    identifier: u64,
    database_oid: Option<u32>,
    position: Option<(TimelineId, Lsn, Vec<Left>)>,
}

/// Asks the cluster's server who it is, and where it is: behind the erasure, which was committed before. A standby is behind its primary.
fn moment(session: &Session, reading: &Reading, database: &str) -> Result<Moment> {
    const QUESTION: &str = "select system_identifier, pg_is_in_recovery(), case when not pg_is_in_recovery() then pg_current_wal_insert_lsn() end, case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end";
    let cluster = reading.cluster.as_ref();
    let conninfo = cluster.and_then(|cluster| cluster.conninfo.as_ref());
    let conninfo = conninfo.ok_or_else(|| err!(Config, "the cluster has no conninfo"))?;
    let rows = Server::connect(conninfo.expose())?
        .heeding(&session.host.stop)
        .query(&format!(
            "{QUESTION}, (select oid from pg_database where datname = {}) from pg_control_system()",
            literal(database)
        ))?;
    if rows.text(0, 4)?.is_none() {
        return Err(err!(NotFound, "the server has no database \"{database}\"")
            .hint("Nothing was recorded. Names are taken as they are, without quotes."));
    }
    let mut moment = Moment {
        identifier: rows.value(0, 0)?,
        database_oid: Some(rows.value(0, 4)?),
        position: None,
    };
    if rows.text(0, 1)? == Some("t") {
        session.warn("the server is a standby, which is behind its primary: its position is not recorded, and this erasure is run on every restored copy");
        return Ok(moment);
    }
    let (timeline, lsn) = (rows.value(0, 3)?, rows.value(0, 2)?);
    match server::history(conninfo.expose(), timeline) {
        Ok(history) => {
            let ancestors = erasure::ancestors(&history, timeline).unwrap_or_default();
            moment.position = Some((timeline, lsn, ancestors));
        }
        Err(e) => session.warn(&format!("the server does not tell the history of its timeline, so this erasure is run on every restored copy: {e}")),
    }
    Ok(moment)
}

/// Erasures that a restored copy may lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lacking {
    pub count: usize,
    pub recorded: usize,
}

/// Counts the erasures that a copy does not have which recovers as planned; none where none is recorded. One that cannot be read counts.
///
/// # Errors
/// Those of the repository that is restored from, and `Conflict`. Another one that does not answer gets a warning.
pub fn lacking(session: &Session, opened: &Opened, plan: &Plan) -> Result<Option<Lacking>> {
    let (ids, recorded) = lacking_ids(session, opened, plan)?;
    let count = ids.len();
    Ok((recorded > 0).then_some(Lacking { count, recorded }))
}

/// The names of the erasures that a copy does not have which recovers as planned, and how many are recorded.
fn lacking_ids(session: &Session, opened: &Opened, plan: &Plan) -> Result<(Vec<String>, usize)> {
    let reading = &opened.reading;
    let mut erasures = Vec::new();
    gather(session, reading, &mut erasures)?;
    for (name, other) in reading.all_others(session) {
        if let Err(e) = other.and_then(|other| gather(session, &other, &mut erasures)) {
            session.warn(&format!(
                "repository \"{name}\" may have more erasures: {e}"
            ));
        }
    }
    if erasures.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let history = plan.target_timeline.map(|t| opened.inventory.history(t));
    let history = history.transpose()?;
    let stop = plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
    let end = stop.or_else(|| plan.backup.as_ref().map(|b| b.stop_lsn));
    let way = history.as_ref().zip(end);
    let is_within =
        |entry: &&Entry| way.is_some_and(|way| entry.is_within(plan.system_identifier, way));
    let lacking = erasures.iter().filter(|entry| !is_within(entry));
    Ok((
        lacking.map(|entry| entry.id.clone()).collect(),
        erasures.len(),
    ))
}

/// Warns that files which their user alone reaches show what was erased: no script is run on them.
pub fn warn_of_lacking(session: &Session, opened: &Opened, plan: &Plan) {
    match lacking(session, opened, plan) {
        Ok(Some(Lacking { count, .. })) if count > 0 => session.warn(&format!(
            "{} of the list are later than this moment: what they erased is seen here",
            human::count(count as u64, "erasure")
        )),
        Ok(_) => {}
        Err(e) => session.warn(&format!(
            "whether erasures are later than this moment is not known: {e}"
        )),
    }
}

impl Entry {
    /// Whether its WAL is within a history up to `end`; a position of another system identifier says nothing.
    fn is_within(&self, system_identifier: u64, (history, end): (&History, Lsn)) -> bool {
        let position = self.position.as_ref();
        self.system_identifier == system_identifier
            && position.is_some_and(|erasure| erasure.is_within(history, end))
    }
}
