//! Whether a backup is needed: how much WAL a recovery would replay now, and how long that takes.

use std::time::{Duration, Instant};

use super::how_long;
use super::human;
use super::info::{self, ClusterInfo};
use super::server;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::backup::turn;
use crate::config::Cluster;
use crate::err;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::plan::base::lies_on;
use crate::plan::estimate::{Estimate, Work};
use crate::plan::window::Window;
use crate::repo::drilled::Phase;
use crate::repo::layout::ClusterLayout;
use crate::wal::inventory::Backup;

/// Less WAL behind a backup asks for no other one: estimates of it are noise, and another backup would spare no time.
const FLOOR_BYTES: u64 = 64 << 20;
/// Segments that are archived at the same time leave holes for moments. A hole that is there after this time is one.
const HOLE_LASTS: Duration = Duration::from_secs(30);

/// Whether a backup is needed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// One is.
    Needed(String),
    /// None is.
    NotNeeded(String),
}

/// The largest replay that the configuration accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub replay: Option<Duration>,
    /// How much WAL it may read.
    pub wal_bytes: Option<u64>,
}

/// A backup, and the WAL that recovery from it would replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The backup's id.
    pub backup: String,
    /// WAL from its start.
    pub bytes: u64,
    /// The part of that from its stop.
    pub bytes_after_it: u64,
    /// How long the replay probably takes.
    pub replay: Duration,
}

/// The state of a cluster in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The newest backup that leads to the end of the archived WAL.
    pub usable: Option<Behind>,
    /// Why no backup leads there.
    pub broken: Option<String>,
    /// A newer backup that lacks pages or databases.
    pub incomplete: Option<Behind>,
}

/// Judges whether a backup is needed.
pub fn judge(limits: Limits, state: &State) -> Need {
    // The next backup of this server would lack the same: it must not be taken every few minutes.
    if let Some(behind) = &state.incomplete
        && limits.exceeded(behind).is_none()
    {
        return Need::NotNeeded(format!(
            "backup \"{}\" is damaged or partial, and another one would be, too: repair what \"pitr info\" names, then take one: pitr backup",
            behind.backup
        ));
    }
    let Some(behind) = &state.usable else {
        let broken = state.broken.as_deref();
        return Need::Needed(broken.unwrap_or("nothing can be recovered").to_owned());
    };
    match limits.exceeded(behind) {
        Some(why) => Need::Needed(why),
        None if behind.bytes_after_it < FLOOR_BYTES => Need::NotNeeded(format!(
            "{} of WAL follow backup \"{}\", and less than {} ask for none",
            human::size(behind.bytes_after_it),
            behind.backup,
            human::size(FLOOR_BYTES)
        )),
        None => Need::NotNeeded(format!("{}, {limits}", behind.told())),
    }
}

impl Limits {
    fn of(cluster: &Cluster) -> Result<Limits> {
        let limits = Limits {
            replay: cluster.max_replay,
            wal_bytes: cluster.max_wal_bytes,
        };
        if limits.replay.is_none() && limits.wal_bytes.is_none() {
            let name = &cluster.name;
            return Err(err!(
                Config,
                "cluster \"{name}\" has neither max_replay nor max_wal: nothing says when a backup is needed"
            )
            .hint(format!(
                "Nothing was stored. Add max_replay = \"10m\" or max_wal = \"2GiB\" to [clusters.{name}], or take one now: pitr backup"
            )));
        }
        Ok(limits)
    }

    /// Returns the limit that is exceeded.
    fn exceeded(&self, behind: &Behind) -> Option<String> {
        if behind.bytes_after_it < FLOOR_BYTES {
            return None;
        }
        let is_long = self.replay.is_some_and(|limit| behind.replay > limit);
        let is_much = self.wal_bytes.is_some_and(|limit| behind.bytes > limit);
        (is_long || is_much).then(|| format!("{}, {self}", behind.told()))
    }
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let replay = self.replay.map(human::duration);
        let replay = replay.map(|limit| format!("max_replay is {limit}"));
        let wal = self.wal_bytes.map(human::size);
        let wal = wal.map(|limit| format!("max_wal is {limit}"));
        let both: Vec<String> = [replay, wal].into_iter().flatten().collect();
        f.write_str(&both.join(", "))
    }
}

impl Behind {
    fn told(&self) -> String {
        format!(
            "recovery from backup \"{}\" replays {} of WAL in about {}",
            self.backup,
            human::size(self.bytes),
            human::duration(self.replay)
        )
    }

    fn new(backup: &Backup, end: Lsn, replay: Duration) -> Behind {
        let since = |lsn: Lsn| end.0.saturating_sub(lsn.0);
        Behind {
            backup: backup.id.to_string(),
            bytes: since(backup.start_lsn),
            bytes_after_it: since(backup.stop_lsn),
            replay,
        }
    }
}

/// Looks at the cluster of the command, as `pitr info` does. The life counts that the server leads now, of several under its name.
///
/// # Errors
/// `Config` where no limit is configured; those of [`info::look`].
pub fn look(session: &Session) -> Result<Need> {
    let cluster = session.settings()?.cluster()?;
    let limits = Limits::of(&cluster)?;
    let mut info = look_once(session, &cluster)?;
    // Readers take the life of the newest backup, which after pg_upgrade or initdb is the former one.
    let own = match session.system_identifier {
        None => identifier(session, &cluster),
        Some(_) => None,
    };
    let own = own.filter(|own| own.to_string() != info.system_identifier);
    let of_server;
    let session = match own {
        None => session,
        Some(own) => {
            of_server = Session {
                system_identifier: Some(own),
                ..session.again()
            };
            info = match look_once(&of_server, &cluster) {
                // It is not registered: the backup says what to do about that.
                Err(e) if e.code() == Code::NotFound => {
                    return Ok(Need::Needed(format!(
                        "the server has system identifier {own}, of which the repository has no backup"
                    )));
                }
                info => info?,
            };
            &of_server
        }
    };
    let mut state = state(&info);
    if state.broken.is_some() {
        wait(session, HOLE_LASTS)?;
        info = look_once(session, &cluster)?;
        state = self::state(&info);
    }
    match judge(limits, &state) {
        Need::Needed(why) => {
            Ok(running(session, &info)?.map_or(Need::Needed(why), Need::NotNeeded))
        }
        not => Ok(not),
    }
}

/// The system identifier of the server, as a backup asks for it; else that of a data directory on this host. None where neither can be read.
fn identifier(session: &Session, cluster: &Cluster) -> Option<u64> {
    let conninfo = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    if let Ok(identity) = server::identify_soon(conninfo, &session.host.stop) {
        return Some(identity.system_identifier);
    }
    let pgdata = cluster.pgdata.as_deref()?;
    let control = DataDirectory::at(pgdata).control().ok()??;
    Some(control.system_identifier)
}

fn look_once(session: &Session, cluster: &Cluster) -> Result<ClusterInfo> {
    let clusters = info::look(session)?.clusters.into_iter();
    let mut clusters = clusters.filter(|c| c.name == cluster.name.as_str());
    let found = clusters.next();
    found.ok_or_else(|| {
        err!(
            NotFound,
            "cluster \"{}\" is not in the repository",
            cluster.name
        )
    })
}

fn wait(session: &Session, time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        session.host.check_stop()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Tells of a backup that runs in the repository that a backup goes into.
fn running(session: &Session, info: &ClusterInfo) -> Result<Option<String>> {
    let settings = session.settings()?;
    let repository = session.open(settings.first_repository()?)?;
    let layout = ClusterLayout::new(&info.name, info.inventory.system_identifier)?;
    let running = turn::running(repository.store(), &layout, &session.host)?;
    Ok(running.map(|other| {
        format!(
            "backup \"{}\" runs on host \"{}\" since {}",
            other.id,
            other.host,
            human::time(other.since)
        )
    }))
}

fn state(info: &ClusterInfo) -> State {
    let inventory = &info.inventory;
    let timelines = inventory.timelines.keys().copied();
    let mut timelines = timelines.chain(inventory.backups.iter().map(|b| b.timeline));
    let timeline = timelines.find(|t| Some(t.decimal()) == info.timeline);
    let window = info::of_cluster(&info.recovery_windows, timeline, inventory);
    let newest = window.and_then(|w| {
        let id = w.backups.last()?;
        inventory.backups.iter().find(|b| b.id.to_string() == *id)
    });
    let leads = |w: &&Window| w.to_end || w.ends_alone(inventory);
    let usable = match (newest, window.filter(leads), &info.estimate) {
        (Some(newest), Some(window), Some(estimate)) => {
            Some(Behind::new(newest, window.to_lsn, replay(estimate)))
        }
        _ => None,
    };
    let broken = window.filter(|w| !leads(w)).map(|w| {
        let why = w.broken.as_deref().unwrap_or("WAL is missing");
        format!("recovery gets to {} only: {why}", w.to_lsn)
    });
    State {
        broken,
        incomplete: incomplete(info, timeline, newest),
        usable,
    }
}

/// The newest backup of the cluster where it lacks something that the server lacks, and is newer than the newest usable one.
fn incomplete(
    info: &ClusterInfo,
    timeline: Option<TimelineId>,
    usable: Option<&Backup>,
) -> Option<Behind> {
    let inventory = &info.inventory;
    let history = timeline.and_then(|t| inventory.history(t).ok());
    // Objects that a check found damaged are no fault of the server.
    let lacks = |b: &&Backup| b.damage.is_some() && b.damaged_copies == 0;
    let leads = |b: &&Backup| history.as_ref().is_none_or(|h| lies_on(h, b));
    let backups = inventory.backups.iter().filter(lacks).filter(leads);
    let newest = backups.max_by_key(|b| b.stop_time)?;
    if usable.is_some_and(|usable| usable.stop_time > newest.stop_time) {
        return None;
    }
    let archived = inventory.timelines.get(&newest.timeline);
    let last = archived.and_then(|t| t.segments.bounds());
    let end = last.map_or(newest.stop_lsn, |(_, last)| {
        last.next().start_lsn(inventory.segment_size)
    });
    let own = info.drills.iter();
    let mut own = own.filter(|p| p.repository == info.repository_name);
    let drills = own.next().map_or(&[][..], |p| p.drills.measured.as_slice());
    let work = Work {
        copy: newest.size_bytes,
        replay: end.0.saturating_sub(newest.start_lsn.0),
    };
    Some(Behind::new(
        newest,
        end,
        replay(&how_long::of(drills, work)),
    ))
}

fn replay(estimate: &Estimate) -> Duration {
    let mut parts = estimate.parts.iter();
    let part = parts.find(|part| part.phase == Phase::Replay);
    Duration::from_millis(part.map_or(0, |part| part.ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(minutes: Option<u64>, mib: Option<u64>) -> Limits {
        Limits {
            replay: minutes.map(|m| Duration::from_secs(60 * m)),
            wal_bytes: mib.map(|mib| mib * MIB),
        }
    }

    /// A backup whose own WAL has 10 MiB.
    fn behind(after_it_mib: u64, seconds: u64) -> Behind {
        Behind {
            backup: "20261120T064009Z-full".into(),
            bytes: (after_it_mib + 10) * MIB,
            bytes_after_it: after_it_mib * MIB,
            replay: Duration::from_secs(seconds),
        }
    }

    fn usable(after_it_mib: u64, seconds: u64) -> State {
        State {
            usable: Some(behind(after_it_mib, seconds)),
            ..State::default()
        }
    }

    fn needed(limits: Limits, state: &State) -> Option<String> {
        match judge(limits, state) {
            Need::Needed(why) => Some(why),
            Need::NotNeeded(_) => None,
        }
    }

    #[test]
    fn each_limit_asks_for_a_backup_once_it_is_exceeded() {
        let time = limits(Some(10), None);
        assert_eq!(needed(time, &usable(100_000, 600)), None);
        let why = needed(time, &usable(100, 601)).unwrap();
        assert!(why.ends_with("max_replay is 10 min"), "{why}");
        let wal = limits(None, Some(2048));
        assert_eq!(needed(wal, &usable(2038, 9999)), None);
        let why = needed(wal, &usable(2039, 0)).unwrap();
        assert!(why.contains("replays 2.0 GiB of WAL"), "{why}");
        let both = limits(Some(10), Some(2048));
        assert!(needed(both, &usable(100, 601)).is_some());
        assert!(needed(both, &usable(2039, 0)).is_some());
        assert_eq!(
            judge(both, &usable(90, 5)),
            Need::NotNeeded("recovery from backup \"20261120T064009Z-full\" replays 100.0 MiB of WAL in about 5 s, max_replay is 10 min, max_wal is 2.0 GiB".into())
        );
    }

    #[test]
    fn little_wal_behind_the_end_of_a_backup_asks_for_none_whatever_the_estimate() {
        let state = usable(63, 100_000);
        assert_eq!(needed(limits(Some(1), Some(1)), &state), None);
        assert!(needed(limits(Some(1), Some(1)), &usable(64, 100_000)).is_some());
        let Need::NotNeeded(why) = judge(limits(Some(1), None), &state) else {
            panic!("needed");
        };
        assert!(why.starts_with("63.0 MiB of WAL follow"), "{why}");
    }

    #[test]
    fn a_cluster_that_cannot_be_recovered_needs_a_backup() {
        let limits = limits(Some(10), None);
        let none = needed(limits, &State::default());
        assert_eq!(none.as_deref(), Some("nothing can be recovered"));
        let broken = State {
            broken: Some("recovery gets to 0/5 only".into()),
            ..State::default()
        };
        assert_eq!(needed(limits, &broken), broken.broken);
    }

    #[test]
    fn a_server_that_gives_incomplete_backups_gives_one_for_each_limit() {
        let limits = limits(Some(10), Some(2048));
        let state = |incomplete| State {
            incomplete: Some(incomplete),
            ..usable(50_000, 6_000)
        };
        assert_eq!(needed(limits, &state(behind(1000, 20))), None);
        let unusable = State {
            usable: None,
            ..state(behind(1000, 20))
        };
        assert_eq!(needed(limits, &unusable), None);
        assert!(needed(limits, &state(behind(3000, 60))).is_some());
    }
}
