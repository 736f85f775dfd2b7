//! Promises about a cluster (`rpo`, `rto`, `copies`), and what breaks them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::exposure::Exposure;
use super::finding::{Finding, Level};
use super::human;
use super::lag::Lag;
use crate::config::{Copies, Location, Objectives, Repository};
use crate::plan::estimate::Estimate;

/// The state that promises are held against.
#[derive(Default)]
pub struct State<'a> {
    /// Commits that would be lost now; none where that is not known.
    pub exposure: Option<&'a Exposure>,
    /// How long recovery takes; none where nothing can be recovered.
    pub estimate: Option<&'a Estimate>,
    /// Every repository that is configured.
    pub repositories: &'a [Repository],
    /// How each of several stands; empty where there is only one.
    pub lags: &'a [Lag],
    /// Whether there is a backup in the one that is read.
    pub has_backup: bool,
}

/// Judges the promises. One that nothing can be said about is a finding, too.
pub fn judge(promised: &Objectives, state: &State<'_>) -> Vec<Finding> {
    let found = [
        promised.rpo.and_then(|rpo| of_rpo(rpo.duration(), state)),
        promised.rto.and_then(|rto| of_rto(rto.duration(), state)),
        promised.copies.and_then(|copies| of_copies(copies, state)),
    ];
    found.into_iter().flatten().collect()
}

fn of_rpo(rpo: Duration, state: &State<'_>) -> Option<Finding> {
    let goal = human::duration(rpo);
    let found = |level, value: String| {
        Finding::new("objectives", "rpo", level, value).with_next("pitr doctor")
    };
    let Some(exposure) = state.exposure else {
        let value = format!(
            "how much would be lost now is not known (rpo is {goal}): the server does not answer here, or is a standby"
        );
        return Some(found(Level::Warn, value));
    };
    (exposure.age > rpo).then(|| {
        let value = format!(
            "{} of WAL are in no repository, the last commit that is safe is {} old, rpo is {goal}: pitr doctor",
            human::size(exposure.bytes),
            human::duration(exposure.age)
        );
        found(Level::Fail, value)
    })
}

fn of_rto(rto: Duration, state: &State<'_>) -> Option<Finding> {
    let estimate = Duration::from_millis(state.estimate?.ms);
    (estimate > rto).then(|| {
        let value = format!(
            "recovery would take {}, rto is {}: a newer backup leaves less WAL to replay: pitr backup --incremental",
            human::duration(estimate),
            human::duration(rto)
        );
        let next = "pitr backup --incremental";
        Finding::new("objectives", "rto", Level::Warn, value).with_next(next)
    })
}

fn of_copies(wanted: Copies, state: &State<'_>) -> Option<Finding> {
    let holds = |repository: &&Repository| match state.lags {
        [] => state.has_backup,
        lags => lags.iter().any(|lag| {
            let is_one = lag.away.is_none() && lag.same_place_as.is_none();
            lag.name == repository.name && is_one && lag.has_whole_backup
        }),
    };
    let holding: Vec<&Repository> = state.repositories.iter().filter(holds).collect();
    // The live cluster is the first copy, on a disk.
    let media = holding.iter().map(|r| medium(&r.location));
    let media: BTreeSet<&str> = media.chain(["disk"]).collect();
    let total = holding.len() + 1;
    let elsewhere = holding.iter().filter(|r| is_elsewhere(r)).count();
    let lacking = [
        (total, wanted.total, "copies"),
        (media.len(), wanted.media, "kinds of places"),
        (elsewhere, wanted.elsewhere, "elsewhere"),
    ];
    let lacking = lacking
        .iter()
        .filter(|(have, want, _)| (*have as u64) < u64::from(*want));
    let lacking = lacking.map(|(have, want, what)| format!("{have} of {want} {what}"));
    let lacking: Vec<String> = lacking.collect();
    let next = match state.repositories {
        [_] => "add another place as [repositories.NAME], then: pitr init",
        _ => "pitr repo sync",
    };
    (!lacking.is_empty()).then(|| {
        let value = format!(
            "copies are fewer than {}-{}-{} asks for: {}. A repository counts that answers and has a backup without recorded damage",
            wanted.total,
            wanted.media,
            wanted.elsewhere,
            lacking.join(", ")
        );
        Finding::new("objectives", "copies", Level::Warn, value).with_next(next)
    })
}

fn medium(location: &Location) -> &'static str {
    match location {
        Location::File(_) => "disk",
        Location::S3 { .. } | Location::Blob { .. } => "object store",
        Location::Sftp { .. } => "SFTP server",
    }
}

/// Whether a repository survives the loss of this machine. A directory may be a mount of another one: nobody can tell.
fn is_elsewhere(repository: &Repository) -> bool {
    let endpoint = repository.s3.endpoint.as_deref().unwrap_or_default();
    let host = endpoint.split_once("://").map_or("", |(_, rest)| rest);
    match &repository.location {
        Location::File(_) => false,
        Location::S3 { .. } | Location::Blob { .. } => !crate::config::is_loopback(host),
        Location::Sftp { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Period;
    use crate::pg::lsn::Lsn;

    fn state<'a>(repositories: &'a [Repository]) -> State<'a> {
        State {
            repositories,
            has_backup: true,
            ..State::default()
        }
    }

    #[test]
    fn a_promise_that_nobody_can_judge_is_no_kept_one() {
        let promised = Objectives {
            rpo: Some(Period(900)),
            ..Objectives::default()
        };
        let level = |exposure: Option<&Exposure>| {
            let mut state = state(&[]);
            state.exposure = exposure;
            judge(&promised, &state).first().map(|f| f.level)
        };
        assert_eq!(level(None), Some(Level::Warn));
        let of = |seconds| Exposure {
            bytes: 5,
            age: Duration::from_secs(seconds),
            server_lsn: Lsn(5),
            safe_lsn: Lsn(0),
        };
        assert_eq!(level(Some(&of(900))), None);
        assert_eq!(level(Some(&of(901))), Some(Level::Fail));
    }

    #[test]
    fn copies_are_counted_with_the_live_one() {
        let at = |text| Repository::at(Location::from_argument(text).unwrap());
        let (disk, bucket) = (at("file:///a"), at("s3://bucket/p"));
        let copies = |text: &str| Objectives {
            copies: Some(text.parse().unwrap()),
            ..Objectives::default()
        };
        let lacks = |text: &str, places: &[Repository]| {
            let found = judge(&copies(text), &state(places));
            found.first().map(|f| f.value.clone())
        };
        let one = [disk];
        assert_eq!(lacks("2-1-0", &one), None);
        let lacking = lacks("3-2-1", &one).unwrap();
        for part in ["2 of 3 copies", "1 of 2 kinds", "0 of 1 elsewhere"] {
            assert!(lacking.contains(part), "{lacking}");
        }
        assert_eq!(lacks("2-2-1", &[bucket]), None);
    }
}
