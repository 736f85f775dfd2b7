//! Claims of scheduled runs: of several agents one runs a job (format, section 17.4).
//!
//! Creating the object is the claim. Nobody changes it, and the janitor deletes it when its time has long passed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{event, json};
use crate::error::{Code, Result};
use crate::pg::time::TimestampTz;
use crate::store::{Key, Published, Store, get};

/// Claims lie below this prefix.
pub const ROOT: &str = "jobs";
/// Claims of jobs that concern no one scope.
const FOLDER: &str = "jobs/all";
const KIND: &str = "run";
/// A claim that the store had received so long before its time was made to keep the job from running.
const EARLY: Duration = Duration::from_secs(600);
/// Claims are kept for so long behind their time.
const KEPT: Duration = Duration::from_secs(7 * 86_400);
/// A run is claimed at most so much later than scheduled: of an older one the claim may have been deleted, and it would run twice.
pub const LATEST: Duration = Duration::from_secs(6 * 86_400);

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunClaim {
    pub job: String,
    /// The digits of [`concern`]: jobs of one name that concern other clusters are other jobs.
    pub concern: String,
    /// The time for which the run is scheduled.
    pub scheduled: TimestampTz,
    /// The host of the agent.
    pub host: String,
    /// The process that runs the job.
    pub pid: u32,
    /// 32 hexadecimal digits: the same whenever this agent claims this run.
    pub nonce: String,
}

/// The outcome of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The run is this agent's, now or since an earlier try.
    Ours,
    /// The run is that of the agent on this host.
    Others(String),
    /// There is a claim that counts for nothing, for this reason.
    Void(&'static str),
}

/// Returns 16 hexadecimal digits that tell what a job does, and with what: the same for each agent that has this job.
pub fn concern(names: &[&str], words: &[String]) -> String {
    let text = serde_json::json!([names, words]).to_string();
    let hash = blake3::hash(text.as_bytes());
    hash.to_hex().chars().take(16).collect()
}

/// Claims a run.
///
/// # Errors
/// Those of the store; `Unsupported` for the claim of a newer version.
pub fn take(store: &dyn Store, claim: &RunClaim) -> Result<Claimed> {
    let key = key(claim)?;
    match json::write_signed(store, &key, KIND, claim)? {
        Published::Created => Ok(Claimed::Ours),
        Published::Exists => found(store, &key, claim),
    }
}

fn found(store: &dyn Store, key: &Key, own: &RunClaim) -> Result<Claimed> {
    let gone = || crate::err!(Unreachable, "claim \"{key}\" is there, and is not");
    let meta = store.head(key)?.ok_or_else(gone)?;
    let bytes = get(store, key, json::LIMIT_BYTES)?.ok_or_else(gone)?;
    let read = || -> Result<(bool, RunClaim)> {
        let is_genuine = json::is_genuine(store, key, &bytes)?;
        Ok((is_genuine, json::decode(key, KIND, &bytes)?))
    };
    let (is_genuine, claim) = match read() {
        Ok(read) => read,
        Err(e) if e.code() == Code::Damaged => return Ok(Claimed::Void("it is damaged")),
        Err(e) => return Err(e),
    };
    Ok(match is_genuine {
        _ if claim.nonce == own.nonce && is_genuine => Claimed::Ours,
        false => Claimed::Void("whoever made it does not hold the MAC key"),
        true if meta.modified.saturating_add(EARLY) < own.scheduled => {
            Claimed::Void("it was made long before its time")
        }
        true => Claimed::Others(claim.host),
    })
}

/// Deletes the claims whose time has long passed. Objects that the store keeps stay.
///
/// # Errors
/// Other errors of the store.
pub fn forget(store: &dyn Store, now: TimestampTz) -> Result<()> {
    let jobs = store.list(FOLDER)?.into_iter().filter(|l| l.is_prefix);
    for job in jobs {
        let folder = format!("{FOLDER}/{}", job.name);
        for listed in store.list(&folder)? {
            let is_over = |time: TimestampTz| now.duration_since(time) > Some(KEPT);
            if listed.is_prefix || !time_of(&listed.name).is_some_and(is_over) {
                continue;
            }
            match store.delete(&Key::new(format!("{folder}/{}", listed.name))?) {
                Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {}
                deleted => drop(deleted?),
            }
        }
    }
    Ok(())
}

fn key(claim: &RunClaim) -> Result<Key> {
    let seconds = event::stamp(claim.scheduled);
    let (job, concern) = (&claim.job, &claim.concern);
    Key::new(format!("{FOLDER}/{job}.{concern}/{seconds}Z"))
}

/// The time in the name of a claim, `20261120T064000Z`.
fn time_of(name: &str) -> Option<TimestampTz> {
    event::time_of_stamp(name.strip_suffix('Z')?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;

    fn time(text: &str) -> TimestampTz {
        text.parse().unwrap()
    }

    fn claim(nonce: &str, scheduled: &str) -> RunClaim {
        RunClaim {
            job: "full".into(),
            concern: concern(&["main"], &["backup".into()]),
            scheduled: time(scheduled),
            host: format!("host-{nonce}"),
            pid: 1,
            nonce: nonce.into(),
        }
    }

    #[test]
    fn one_of_two_agents_has_the_run_and_has_it_again_after_a_crash() {
        let (_folder, store) = crafted::store();
        let at = "2001-11-20T06:40:00Z";
        let first = claim("a", at);
        assert_eq!(take(&store, &first).unwrap(), Claimed::Ours);
        let own = key(&first).unwrap();
        assert!(own.as_str().starts_with("jobs/all/full."), "{own}");
        assert!(own.as_str().ends_with("/20011120T064000Z"), "{own}");
        let others = Claimed::Others("host-a".into());
        assert_eq!(take(&store, &claim("b", at)).unwrap(), others);
        let again = RunClaim { pid: 2, ..first };
        assert_eq!(take(&store, &again).unwrap(), Claimed::Ours);
        let next = claim("b", "2001-11-20T06:41:00Z");
        assert_eq!(take(&store, &next).unwrap(), Claimed::Ours);
    }

    #[test]
    fn j48_jobs_of_one_name_are_one_job_where_they_concern_the_same() {
        let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let sales = concern(&["sales"], &words("backup --full"));
        assert_eq!(sales, concern(&["sales"], &words("backup --full")));
        assert_eq!(sales.len(), 16);
        for other in [
            concern(&["hr"], &words("backup --full")),
            concern(&["sales"], &words("backup")),
            concern(&["sales", "hr"], &words("backup --full")),
        ] {
            assert_ne!(sales, other);
        }
        let (_folder, store) = crafted::store();
        let at = "2001-11-20T06:40:00Z";
        let hr = RunClaim {
            concern: concern(&["hr"], &words("backup")),
            ..claim("b", at)
        };
        assert_eq!(take(&store, &claim("a", at)).unwrap(), Claimed::Ours);
        assert_eq!(take(&store, &hr).unwrap(), Claimed::Ours);
    }

    #[test]
    fn a_claim_that_is_damaged_or_far_too_early_counts_for_nothing() {
        let (folder, store) = crafted::store();
        // By the clock of the store, this time is far ahead.
        let ahead = "2201-11-20T06:40:00Z";
        take(&store, &claim("a", ahead)).unwrap();
        let taken = take(&store, &claim("b", ahead)).unwrap();
        assert!(matches!(taken, Claimed::Void(_)));
        let at = "2001-11-20T06:40:00Z";
        take(&store, &claim("a", at)).unwrap();
        let own = key(&claim("a", at)).unwrap();
        let path = folder.path().join(own.as_str());
        crafted::rot(&path, 20);
        let damaged = Claimed::Void("it is damaged");
        assert_eq!(take(&store, &claim("b", at)).unwrap(), damaged);
    }

    #[test]
    fn claims_are_forgotten_after_a_week_and_nothing_else_is() {
        let (folder, store) = crafted::store();
        forget(&store, time("2026-11-20T00:00:00Z")).unwrap();
        for at in [
            "2026-11-01T00:00:00Z",
            "2026-11-12T23:59:59Z",
            "2026-11-13T00:00:00Z",
        ] {
            take(&store, &claim("a", at)).unwrap();
        }
        let own = key(&claim("a", "2026-11-01T00:00:00Z")).unwrap();
        let jobs = own.parent().unwrap();
        std::fs::write(folder.path().join(jobs).join("20261101T0000000"), "x").unwrap();
        forget(&store, time("2026-11-20T00:00:00Z")).unwrap();
        let left = store.list(jobs).unwrap();
        let mut left: Vec<_> = left.into_iter().map(|l| l.name).collect();
        left.sort();
        assert_eq!(left, ["20261101T0000000", "20261113T000000Z"]);
    }
}
