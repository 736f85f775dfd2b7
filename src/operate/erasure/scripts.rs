//! The scripts of a cluster, as a server runs them whose recovery has ended in quarantine.

use serde::Serialize;

use super::apply::{Consent, Options, require_consent};
use super::{Entry, Listing, lacking_ids, list};
use crate::archive::datadir::DataDirectory;
use crate::archive::guard;
use crate::err;
use crate::error::Result;
use crate::operate::human;
use crate::operate::opened::Opened;
use crate::operate::quarantine::Quarantined;
use crate::operate::rescue::tables::literal;
use crate::operate::session::Session;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::recovery::Plan;
use crate::repo::erasure::Erasure;

/// The options of commands that restore and run scripts in one.
pub const OPTIONS: Options = Options {
    skip: "--skip-erasure",
    unproven: "--unproven-erasures",
};

/// Everything that is recorded of a cluster, and the operator's word about it.
pub struct Scripts {
    /// The list.
    pub listing: Listing,
    /// Those that are left out.
    pub skipped: Vec<String>,
    /// The system identifier of the copy.
    pub system_identifier: u64,
    /// The only database whose content the copy has; none: it has all.
    pub only: Option<String>,
}

/// The outcome of an erasure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its script was run and committed.
    Applied,
    /// The copy has it: recovery went beyond it.
    Contained,
    /// Its script failed.
    Failed(String),
    /// The copy has no such database.
    NoDatabase,
    /// The operator left it out.
    Skipped,
}

/// An erasure, and what became of it.
#[derive(Debug, Serialize)]
pub struct Applied {
    /// Its name.
    pub id: String,
    pub database: String,
    pub outcome: Outcome,
}

/// Returns the scripts where a copy that recovers as planned lacks some; none where it lacks none.
///
/// # Errors
/// `Refused` for one that nothing proves, unless the operator allows it; that of one that cannot be read; `NotFound` for one to be left out that does not exist; those of [`list`].
pub fn needed(
    session: &Session,
    (opened, plan): (&Opened, &Plan),
    consent: &Consent,
) -> Result<Option<Scripts>> {
    let (ids, _) = lacking_ids(session, opened, plan)?;
    if ids.is_empty() {
        return Ok(None);
    }
    let listing = list(session)?;
    for id in &consent.skipped {
        listing.entry(id)?;
    }
    require_consent(&listing, consent, OPTIONS)?;
    let is_doubtful = |entry: &&Entry| {
        let is_unproven = |name: &String| listing.unproven.contains(name);
        ids.contains(&entry.id)
            && !consent.skipped.contains(&entry.id)
            && entry.repositories.iter().all(is_unproven)
    };
    let mut doubtful = listing.erasures.iter().filter(is_doubtful);
    if let Some(entry) = doubtful.next().filter(|_| !consent.is_unproven_allowed) {
        return Err(err!(Refused, "this copy lacks erasure \"{}\", and nothing proves who recorded it", entry.id).hint(format!(
            "Nothing was done. Scripts run as a superuser, so read what the copy lacks: pitr erasure list, pitr erasure show {0}\nThen run this again with {1}, or leave one out: {2} {0}",
            entry.id, OPTIONS.unproven, OPTIONS.skip
        )));
    }
    Ok(Some(Scripts {
        listing,
        skipped: consent.skipped.clone(),
        system_identifier: plan.system_identifier,
        only: None,
    }))
}

impl Scripts {
    /// Runs what a server lacks whose recovery has ended, oldest first. One that fails does not keep the others from being run.
    ///
    /// # Errors
    /// Those of the server, asked for the end of recovery; those of the system.
    pub fn run(
        &self,
        session: &Session,
        server: &mut Quarantined,
        directory: &DataDirectory,
    ) -> Result<Vec<Applied>> {
        let (history, end) = reached(server, directory)?;
        let mut done = Vec::new();
        for entry in &self.listing.erasures {
            session.host.check_stop()?;
            let identifier = self.system_identifier;
            let outcome = if self.skipped.contains(&entry.id) {
                Outcome::Skipped
            } else if entry.is_within(identifier, (&history, end)) {
                Outcome::Contained
            } else {
                let is_own = entry.system_identifier == identifier;
                // One that fails keeps no other from being run.
                let run = self.listing.read(&entry.id).and_then(|erasure| {
                    let database = database_of(server, &erasure, is_own)?;
                    let is_copied = |name: &String| self.only.as_ref().is_none_or(|o| o == name);
                    database
                        .filter(is_copied)
                        .map(|name| script(server, &name, &erasure.sql))
                        .transpose()
                });
                match run {
                    Ok(Some(())) => Outcome::Applied,
                    Ok(None) => Outcome::NoDatabase,
                    Err(e) => Outcome::Failed(e.to_string()),
                }
            };
            let database = entry.erasure.as_ref().map(|own| own.database.clone());
            done.push(Applied {
                id: entry.id.clone(),
                database: database.unwrap_or_default(),
                outcome,
            });
        }
        Ok(done)
    }

    /// Runs what a server lacks before somebody else connects to it, and requires that it succeeds.
    ///
    /// # Errors
    /// Those of [`Scripts::run`]; `Server` for one that fails.
    pub fn repeat(
        &self,
        session: &Session,
        server: &mut Quarantined,
        directory: &DataDirectory,
    ) -> Result<()> {
        server.lift_time_limit();
        let done = self.run(session, server, directory);
        // A wish to stop has ended the server at once, which says nothing of the scripts.
        session.host.check_stop()?;
        let done = done?;
        let is = |wanted: &Outcome| done.iter().filter(|one| one.outcome == *wanted).count();
        let failed = done.iter().find_map(|one| match &one.outcome {
            Outcome::Failed(why) => Some((&one.id, why)),
            _ => None,
        });
        if let Some((id, why)) = failed {
            return Err(err!(Server, "erasure \"{id}\" failed: {why}").hint(format!(
                "Nobody could connect. Record a better script and remove this one (pitr erasure), or go on without it: {} {id}",
                OPTIONS.skip
            )));
        }
        if self.only.is_none() && is(&Outcome::NoDatabase) > 0 {
            session.warn("this moment lacks a database of an erasure: it is older than the database, or has it under another name");
        }
        let applied = is(&Outcome::Applied) as u64;
        if applied > 0 {
            session.note(&format!(
                "{} of the list were repeated here",
                human::count(applied, "erasure")
            ));
        }
        Ok(())
    }
}

/// The history of the copy's own timeline, and the position at which it begins: where recovery ended.
fn reached(server: &mut Quarantined, directory: &DataDirectory) -> Result<(History, Lsn)> {
    let mut sql = server.connect("template1")?;
    let rows = sql.query("select left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)")?;
    let timeline: TimelineId = rows.value(0, 0)?;
    let path = directory.wal().join(timeline.history_file_name());
    let history = match guard::read_limited(&path)? {
        Some(bytes) => History::parse(timeline, &bytes)?,
        None => History::root(timeline),
    };
    let end = history.parent().map_or(Lsn(0), |(_, lsn)| lsn);
    Ok((history, end))
}

/// The database of an erasure in the copy, which may have had another name: its OID says which it is, where that is one of this cluster.
fn database_of(
    server: &mut Quarantined,
    erasure: &Erasure,
    is_own: bool,
) -> Result<Option<String>> {
    let oid = erasure.database_oid.filter(|_| is_own).unwrap_or(0);
    let name = literal(&erasure.database);
    let rows = server.connect("template1")?.query(&format!(
        "select datname from pg_database where oid = {oid} or datname = {name} order by oid <> {oid} limit 1"
    ))?;
    match rows.rows.is_empty() {
        true => Ok(None),
        false => rows.value(0, 0).map(Some),
    }
}

/// Runs a script in one transaction.
fn script(server: &mut Quarantined, database: &str, text: &str) -> Result<()> {
    const TRANSACTION: &str = "select txid_current()";
    let mut sql = server.connect(database)?;
    // As in production: foreign keys cascade, and triggers fire.
    sql.query("set session_replication_role = origin")?;
    sql.query("begin")?;
    let own = sql.query(TRANSACTION)?;
    sql.query(text)?;
    if sql.query(TRANSACTION)? != own {
        return Err(err!(
            Server,
            "the script ends its transaction itself: a part of it may be committed"
        ));
    }
    sql.query("commit").map(drop)
}
