//! Clusters on a host that only writes: judges what can be known without a key that reads.
//!
//! The policy of a writer may deny it the roots of backups, so events alone tell which backups are complete.

use std::time::Duration;

use serde::Serialize;

use super::backup_age;
use super::blocked::Blocked;
use super::finding::{Finding, Level};
use super::info;
use super::lag::{self, Lag};
use super::proven::{self, Proven};
use super::reading::Reading;
use super::receiver::Receiver;
use super::server_state::ServerState;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::config;
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::catalog;
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::store::Store;

/// Name of the finding that names what is not judged here.
pub const NOT_JUDGED: &str = "not judged here";

/// A cluster, as a host that only writes knows it.
#[derive(Serialize)]
pub struct Written {
    pub name: String,
    /// Its system identifier, as a string: it exceeds 2^53.
    pub system_identifier: String,
    /// The repository that was looked at, without secrets.
    pub repository: String,
    /// Its name in the configuration.
    #[serde(skip)]
    pub repository_name: String,
    /// The worst of its problems.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// Problems, worst first.
    #[serde(serialize_with = "info::problems")]
    pub problems: Vec<Finding>,
    /// The newest complete backup of each kind, newest first.
    pub backups: Vec<Complete>,
    /// The receiver, as it was last seen from here.
    pub receiver: Option<Receiver>,
    /// All repositories that are configured, where there are several.
    pub repositories: Vec<Lag>,
    /// Files that the server offers and that could not be archived.
    pub blocked: Vec<Blocked>,
    /// When recovery was last proven, by repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drills: Vec<Proven>,
    /// The state of its server; none where that is not known.
    #[serde(skip)]
    pub server: Option<ServerState>,
}

/// A backup that an event calls complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Complete {
    pub id: BackupId,
    /// When its writer recorded that.
    pub time: TimestampTz,
}

/// The backups of a cluster, as far as events tell.
#[derive(Default)]
struct Known {
    /// The newest of each kind, newest first.
    complete: Vec<Complete>,
    /// Whether nothing at all is stored under any id.
    is_empty: bool,
}

/// Looks at a cluster.
///
/// # Errors
/// `NotFound` when the cluster is not registered; errors of the store.
pub fn look(session: &Session, reading: &Reading) -> Result<Written> {
    let now = session.host.now();
    let identifier = identifier(session, reading)?;
    let layout = ClusterLayout::new(&reading.name, identifier)?;
    reading.repository.require_readable(&layout)?;
    let cluster = reading.cluster.as_ref();
    let known = known(reading.repository.store(), &layout)?;
    let read = |cluster| Receiver::read(cluster, identifier, now);
    let receiver = cluster.map_or(Ok(None), read)?;
    let (blocked, mut problems) = info::archiving(cluster, session);
    problems.push(not_judged());
    let limit = cluster.and_then(|c| c.max_backup_age);
    problems.extend(newest(&known, limit.map(|age| age.duration()), now));
    problems.extend(receiver.as_ref().and_then(|r| r.finding(now)));
    let mut repositories = lag::look(session, &reading.settings, &reading.name, identifier);
    repositories.retain(|lag| !is_denied(session, &reading.settings, lag));
    problems.extend(repositories.iter().flat_map(info::of_lag));
    let mut drills = proven::look(session, reading, identifier)?;
    let limit = cluster.and_then(|c| c.max_drill_age);
    let limit = limit.map(|age| age.duration());
    problems.extend(proven::problems(&drills, limit, now));
    drills.retain(|proven| proven.drills.newest.is_some());
    let asked = cluster.map(|own| ServerState::look(own, identifier, &session.host));
    let (mut server, silence) = asked.unwrap_or_default();
    // This host cannot tell a standby that lags from one that has everything of an idle primary.
    if let Some(server) = &mut server {
        server.replay = None;
    }
    problems.extend(silence);
    problems.sort_by_key(|p| std::cmp::Reverse(p.level));
    Ok(Written {
        name: reading.name.clone(),
        system_identifier: identifier.to_string(),
        repository: reading.repository.store().location(),
        repository_name: reading.configured.name.clone(),
        state: problems.iter().map(|p| p.level).max().unwrap_or(Level::Ok),
        problems,
        backups: known.complete,
        receiver,
        repositories,
        blocked,
        drills,
        server,
    })
}

/// The system identifier of the data directory, else that of the newest registration.
fn identifier(session: &Session, reading: &Reading) -> Result<u64> {
    let pgdata = reading.cluster.as_ref().and_then(|c| c.pgdata.as_deref());
    let control = pgdata.and_then(|path| DataDirectory::at(path).control_head().ok()?);
    let own = control.map(|control| control.system_identifier);
    if let Some(known) = session.system_identifier.or(own) {
        return Ok(known);
    }
    let registered = reading.repository.registrations(&reading.name)?;
    let newest = registered.last().map(|one| one.system_identifier);
    newest.ok_or_else(|| {
        err!(
            NotFound,
            "cluster \"{}\" is not registered in repository \"{}\"",
            reading.name,
            reading.configured.name
        )
        .hint("Run pitr init on the cluster's host.")
    })
}

/// Reads events from the newest backup on, until a complete one of each kind is found.
fn known(store: &dyn Store, layout: &ClusterLayout) -> Result<Known> {
    let mut ids = catalog::ids(store, layout)?;
    ids.sort();
    let mut known = Known {
        is_empty: ids.is_empty(),
        ..Known::default()
    };
    for id in ids.into_iter().rev() {
        let has_kind = |one: &Complete| one.id.is_incremental() == id.is_incremental();
        if known.complete.iter().any(has_kind) {
            continue;
        }
        let read = event::read_all(store, layout, &id.to_string());
        let events = match read {
            // Damage of one event hides one backup.
            Err(e) if e.is_damage() => continue,
            read => read?,
        };
        let time = event::completion(&events)
            .filter(|_| !event::is_marked(&events) && event::damage(&events).is_empty());
        known
            .complete
            .extend(time.map(|time| Complete { id, time }));
        if known.complete.len() == 2 {
            break;
        }
    }
    Ok(known)
}

/// Judges the newest backup. It says nothing where backups are stored and no event calls one complete, as with older versions of pitr.
fn newest(known: &Known, limit: Option<Duration>, now: TimestampTz) -> Option<Finding> {
    let critical = |value| {
        Finding::new("recovery", "newest backup", Level::Fail, value).with_next("pitr backup")
    };
    let times = known.complete.iter().map(|one| one.time);
    let Some(newest) = backup_age::newest(times, now) else {
        return known.is_empty.then(|| critical(info::NO_BACKUP.to_owned()));
    };
    backup_age::trouble(newest, limit, now).map(critical)
}

fn not_judged() -> Finding {
    let value = "this host only writes: windows of recovery, WAL between backups and promises are judged where a key reads the repository";
    Finding::new("recovery", NOT_JUDGED, Level::Warn, value)
        .with_next("pitr info on a host that has a reader's key")
}

/// Whether a repository answers, and only its backups are out of this host's reach.
fn is_denied(session: &Session, settings: &config::Settings, lag: &Lag) -> bool {
    let mut configured = settings.repositories.iter();
    let configured = configured.find(|one| one.name == lag.name && one.only_writes());
    lag.away.is_some() && configured.is_some_and(|one| session.open(one).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_backup_is_missed_and_becomes_too_old() {
        let now: TimestampTz = "2026-11-28T06:00:00Z".parse().unwrap();
        let day = Some(Duration::from_secs(86_400));
        let level = |known: &Known, limit| newest(known, limit, now).map(|f| f.level);
        let none = Known {
            is_empty: true,
            ..Known::default()
        };
        assert_eq!(level(&none, None), Some(Level::Fail));
        assert_eq!(level(&Known::default(), day), None, "events tell nothing");
        let complete = |time: &str| Known {
            complete: vec![Complete {
                id: "20261127T050000Z-482913-full".parse().unwrap(),
                time: time.parse().unwrap(),
            }],
            is_empty: false,
        };
        assert_eq!(level(&complete("2026-11-27T07:00:00Z"), day), None);
        let old = complete("2026-11-27T05:00:00Z");
        assert_eq!(level(&old, day), Some(Level::Fail));
        assert_eq!(level(&old, None), None);
    }
}
