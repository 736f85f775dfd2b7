//! The content of the audit log, and whether it is whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::{Spool, readable};
use crate::config::{self, Period, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::counters;
use crate::operate::failures::Failures;
use crate::operate::moment::is_day;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::repo::audit::{self, Hash, Record};
use crate::repo::audit_chain::{self, Anchor, Chains, Kept, Problem};
use crate::repo::clock;
use crate::repo::repository::Repository;
use crate::store::Store;

/// A moment in the audit log, as an operator writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A time.
    At(TimestampTz),
    /// So long ago.
    Ago(Duration),
}

impl Moment {
    /// The time, by a clock that says `now`.
    pub fn before(self, now: TimestampTz) -> TimestampTz {
        match self {
            Moment::At(time) => time,
            Moment::Ago(ago) => now.saturating_sub(ago),
        }
    }
}

impl FromStr for Moment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Moment> {
        if let Ok(period) = text.parse::<Period>() {
            return Ok(Moment::Ago(period.duration()));
        }
        let text = match is_day(text) {
            true => format!("{text}T00:00:00Z"),
            false => text.to_owned(),
        };
        text.parse().map(Moment::At)
    }
}

/// The time of records that are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range {
    /// From here on.
    pub since: Option<TimestampTz>,
    /// Before that.
    pub until: Option<TimestampTz>,
}

impl Range {
    fn holds(self, time: TimestampTz) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// A record, and where it lies.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The record.
    #[serde(flatten)]
    pub record: Record,
    /// It bears no MAC in a repository with a key set: anybody may have written it.
    pub doubted: bool,
    /// The repositories that have it.
    pub repositories: Vec<String>,
}

/// Records by writer, number and content: two repositories may have different ones under one name.
type Found = BTreeMap<(String, u64, Hash), Listed>;

/// Lists the records of a time, in order of time.
///
/// # Errors
/// The first failure when no repository can be read.
pub fn list(session: &Session, range: Range) -> Result<(Vec<Listed>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let mut found = Found::new();
    let mut failures = Failures::default();
    let all = &settings.repositories;
    failures.in_each(all, "read the audit log of", |configured| {
        let repository = session.open(configured)?;
        collect(session, configured, repository.store(), range, &mut found)
    });
    failures.first_if(session, found.is_empty())?;
    let mut records: Vec<Listed> = found.into_values().collect();
    records.sort_by(|Listed { record: a, .. }, Listed { record: b, .. }| {
        (a.time, a.seq, &a.writer).cmp(&(b.time, b.seq, &b.writer))
    });
    Ok((records, failures))
}

fn collect(
    session: &Session,
    configured: &config::Repository,
    store: &dyn Store,
    range: Range,
    found: &mut Found,
) -> Result<()> {
    for (writer, numbers) in audit::names(store)?.chains {
        // The newest first: a record is stored when it was made, or later.
        for (seq, meta) in numbers.into_iter().rev() {
            session.host.check_stop()?;
            let is_over = |since: TimestampTz| {
                meta.is_some_and(|meta| meta.modified.saturating_add(clock::MAY_DIFFER) < since)
            };
            if range.since.is_some_and(is_over) {
                break;
            }
            let told = |e: &Error| session.warn(&format!("\"{}\": {e}", configured.name));
            let stored = readable(store, (&writer, seq), &told)?;
            let Some(stored) = stored.filter(|stored| range.holds(stored.record.time)) else {
                continue;
            };
            let key = (writer.clone(), seq, stored.hash);
            let listed = found.entry(key).or_insert_with(|| Listed {
                record: stored.record,
                doubted: stored.is_doubted,
                repositories: Vec::new(),
            });
            listed.repositories.push(configured.name.clone());
        }
    }
    Ok(())
}

/// An anchor that was kept elsewhere: `<writer>/<seq>:<hash>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    writer: String,
    seq: u64,
    hash: Hash,
}

impl Given {
    /// Finds every anchor in a text: letters, notices as JSON, the log of a service that gets heartbeats.
    pub fn all_in(text: &str) -> Vec<Given> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
        let words = text.split(|c| !is_part(c));
        let mut found: Vec<Given> = Vec::new();
        for given in words.filter_map(|word| word.trim_end_matches('.').parse().ok()) {
            if !found.contains(&given) {
                found.push(given);
            }
        }
        found
    }

    /// Reads an anchor, or a file that holds some.
    ///
    /// # Errors
    /// `Usage` for a text that is neither, and for a file without an anchor; `Io`.
    pub fn read(session: &Session, text: &str) -> Result<Vec<Given>> {
        let parsed = match text.parse::<Given>() {
            Ok(one) => return Ok(vec![one]),
            Err(e) => e,
        };
        let path = session.environment.absolute(Path::new(text));
        if !path.exists() {
            return Err(parsed);
        }
        let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
        let content = std::fs::read(&path).map_err(failed)?;
        let found = Given::all_in(&String::from_utf8_lossy(&content));
        match found.is_empty() {
            true => Err(err!(Usage, "\"{}\" holds no anchor", path.display())),
            false => Ok(found),
        }
    }
}

impl FromStr for Given {
    type Err = Error;

    fn from_str(text: &str) -> Result<Given> {
        let parsed = || {
            let (place, hash) = text.trim().split_once(':')?;
            let (writer, seq) = place.split_once('/')?;
            let seq = seq.parse().ok().filter(|seq| *seq > 0)?;
            audit::key(writer, seq).ok()?;
            Some(Given {
                writer: writer.to_owned(),
                seq,
                hash: audit::hash_of(hash)?,
            })
        };
        let wanted = "an anchor is WRITER/NUMBER:HASH, as \"pitr audit anchor\" prints it";
        parsed().ok_or_else(|| err!(Usage, "{wanted}"))
    }
}

/// The result of a check.
#[derive(Serialize)]
pub struct Verified {
    /// Each repository that was read.
    pub repositories: Vec<Checked>,
    /// Problems, repository by repository.
    pub problems: Vec<Problem>,
    /// Repositories that could not be read.
    #[serde(skip)]
    pub failures: Failures,
}

/// One repository.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Its name.
    pub repository: String,
    pub chains: usize,
    pub records: usize,
    /// Statements of records about other records, and of this host, that were compared.
    pub anchors: usize,
}

impl Verified {
    /// Whether the log was changed.
    pub fn is_damaged(&self) -> bool {
        self.problems.iter().any(|p| p.is_damage)
    }
}

/// Reads every record of every repository, and compares them with one another, with this host's state, and with anchors that were kept elsewhere.
///
/// # Errors
/// The first failure when no repository can be read.
pub fn verify(session: &Session, given: &[Given]) -> Result<Verified> {
    let settings = session.settings_with_repositories()?;
    let mut failures = Failures::default();
    let mut all: Vec<(Chains, Vec<Anchor>)> = Vec::new();
    let repositories = &settings.repositories;
    failures.in_each(repositories, "read the audit log of", |configured| {
        let repository = session.open(configured)?;
        let mut chains = Chains::read(&configured.name, repository.store(), &session.host)?;
        chains.uuid.clone_from(&repository.marker().uuid);
        let outside = outside(session, &settings, &repository, given)?;
        all.push((chains, outside));
        Ok(())
    });
    failures.first_if(session, all.is_empty())?;
    let is_whole = failures.is_empty() && session.flags.repository.is_none();
    let problems = audit_chain::judge(&mut all, settings.audit.keep(), is_whole);
    let repositories = all.iter().map(|(chains, outside)| Checked {
        repository: chains.repository.clone(),
        chains: chains.chain_count(),
        records: chains.record_count(),
        anchors: chains.anchor_count() + outside.len(),
    });
    let verified = Verified {
        repositories: repositories.collect(),
        problems,
        failures,
    };
    let damage = verified.problems.iter().filter(|p| p.is_damage).count() as u64;
    if is_whole {
        counters::measured(session, counters::AUDIT_DAMAGE, damage);
        counters::succeeded(session, counters::AUDIT_VERIFY, "");
    } else if damage > 0 {
        // A repository that was not read is no proof that its log is whole.
        counters::measured_in_part(session, counters::AUDIT_DAMAGE, damage);
    }
    Ok(verified)
}

/// The records that this host remembers of its own chain, and those that the operator kept.
fn outside(
    session: &Session,
    settings: &Settings,
    repository: &Repository,
    given: &[Given],
) -> Result<Vec<Anchor>> {
    let now = session.host.now();
    let anchors = given.iter().map(|given| Anchor {
        by: "the anchor of the command line".to_owned(),
        kept: Kept::Outside,
        // When it was made is not known: it proves nothing of ages.
        time: TimestampTz::default(),
        writer: given.writer.clone(),
        seq: given.seq,
        hash: given.hash,
    });
    let mut anchors: Vec<Anchor> = anchors.collect();
    let place = settings.state_dir(&session.environment);
    let spool = place.and_then(|place| Spool::existing(&place, settings));
    let own = spool.map_or(Ok(None), |spool| spool.newest_sent(repository))?;
    if let Some((record, hash)) = own {
        anchors.push(Anchor {
            by: "this host".to_owned(),
            kept: Kept::ByWriter,
            time: record.time.min(now),
            writer: record.writer,
            seq: record.seq,
            hash,
        });
    }
    Ok(anchors)
}
