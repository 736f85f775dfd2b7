//! The stored shards of a cluster: their names, and one moment of all of them.

use std::time::Duration;

use super::plan;
use super::restore::{self, Restored};
use super::{cluster::of_shard, find};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::search;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::redis::kind::NAME;
use crate::redis::nodes::{self, Known};
use crate::redis::route::{Moment, Target};
use crate::redis::slots::{self, Doubt, Slots};
use crate::redis::walk;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::repo::slot_map::{self, Range, Seen};

/// Records of slots that end so much before the log are over: nobody records any more, and moments behind them are of use, too.
const RECORDS_LAG_MAX_MICROS: i64 = 150_000_000;
/// A shard whose log ends so much before that of another one is not received any more: a server is never silent for so long.
const BEHIND_MAX: Duration = Duration::from_secs(120);

/// Whether a scope is a shard of a cluster of this name: slots of it were recorded. A server may have a name of the same form.
///
/// # Errors
/// Errors of the store.
pub fn is_shard(repository: &Repository, scope: &Scope, cluster: &str) -> Result<bool> {
    Ok(may_be(cluster)(scope) && slot_map::is_any(repository.store(), scope)?)
}

/// Names of the stored shards of a cluster, and those of scopes that may be some and have no record of slots.
fn names(repository: &Repository, cluster: &str) -> Result<(Vec<String>, Vec<String>)> {
    let (found, unrecorded) = sorted(repository, cluster, |scope| {
        let is_any = slot_map::is_any(repository.store(), scope)?;
        Ok(is_any.then_some(()))
    })?;
    let names = found.into_iter().map(|(name, ())| name);
    Ok((names.collect(), unrecorded))
}

/// Whether a scope has a name that shards of a cluster have.
fn may_be(cluster: &str) -> impl Fn(&Scope) -> bool + '_ {
    move |scope| scope.kind() == Some(NAME) && nodes::digits(cluster, scope.name()).is_some()
}

/// The shards that a repository has of a cluster.
pub(super) struct InRepository {
    /// Those whose slots are recorded, as they were seen last.
    pub known: Vec<Known>,
    /// Names of scopes that may be shards and have content, of which no slots are recorded.
    pub unrecorded: Vec<String>,
}

/// The stored shards of a cluster.
///
/// # Errors
/// Errors of the store.
pub(super) fn stored(repository: &Repository, cluster: &str) -> Result<InRepository> {
    let newest = |scope: &Scope| slot_map::newest(repository.store(), scope);
    let (found, unrecorded) = sorted(repository, cluster, newest)?;
    let known = found.into_iter().map(|(name, (time, map))| Known {
        lingers: !map.owned.is_empty(),
        name,
        time,
        map,
    });
    Ok(InRepository {
        known: known.collect(),
        unrecorded,
    })
}

/// Scopes by what is recorded of their slots, each with its name; and the names of those that may be shards of the cluster, and lack that.
type Sorted<T> = (Vec<(String, T)>, Vec<String>);

fn sorted<T>(
    repository: &Repository,
    cluster: &str,
    recorded: impl Fn(&Scope) -> Result<Option<T>>,
) -> Result<Sorted<T>> {
    let (mut found, mut unrecorded) = (Vec::new(), Vec::new());
    for scope in repository.aux_scopes()?.into_iter().filter(may_be(cluster)) {
        let name = scope.name().to_owned();
        match recorded(&scope)? {
            Some(recorded) => found.push((name, recorded)),
            None if has_content(repository, &scope)? => unrecorded.push(name),
            // A registration is made before the first slots are recorded.
            None => {}
        }
    }
    Ok((found, unrecorded))
}

/// Whether there is more of a scope than its registration.
fn has_content(repository: &Repository, scope: &Scope) -> Result<bool> {
    let registration = scope.registration();
    let listed = repository.store().list(&scope.prefix())?;
    let mut names = listed.iter().map(|listed| listed.name.as_str());
    Ok(names.any(|name| registration.as_str().rsplit('/').next() != Some(name)))
}

/// The warning for a scope that may be a shard.
pub(super) fn unrecorded(name: &str) -> String {
    format!(
        "redis \"{name}\" may be a shard, but its slots are not recorded: it is left out of the cluster (copied by an older pitr? run pitr repo sync again)"
    )
}

/// Returns the stored shards of the cluster of this name; none where it is that of one server.
///
/// # Errors
/// Those of the configuration; the error of the first repository that failed, where no other one has a shard.
pub fn of(session: &Session, name: &str) -> Result<Option<Vec<String>>> {
    let settings = session.settings_with_repositories()?;
    let section = settings.redis.iter().find(|redis| redis.name == name);
    if section.is_some_and(|section| !section.is_cluster) {
        return Ok(None);
    }
    let scope = Scope::aux(NAME, name)?;
    let found = search::in_first(session, |repository, _| {
        let is_server = section.is_none() && repository.aux_scopes()?.contains(&scope);
        let (names, unrecorded) = names(&repository, name)?;
        let is_cluster = !names.is_empty() && !is_server;
        for shard in unrecorded.iter().filter(|_| is_cluster) {
            session.warn(&self::unrecorded(shard));
        }
        Ok(is_cluster.then_some(names))
    })?;
    match (found, section) {
        (None, Some(_)) => Ok(Some(Vec::new())),
        (found, _) => Ok(found),
    }
}

/// Whether the section of this name is a cluster.
///
/// # Errors
/// Those of the configuration.
pub fn is_cluster(session: &Session, name: &str) -> Result<bool> {
    let settings = session.settings()?;
    let mut clusters = settings.redis.iter().filter(|redis| redis.is_cluster);
    Ok(clusters.any(|redis| redis.name == name))
}

/// The way of each shard to one moment.
pub struct Planned {
    /// The moment, in microseconds since 1970 by the receiver's clock.
    pub micros: i64,
    /// The shards that had slots then.
    pub shards: Vec<OfShard>,
    /// The judgement on their slots.
    pub slots: Slots,
    /// Shards whose log ends long before that of another one, with its end: the last moment of all is no later.
    pub behind: Vec<(String, TimestampTz)>,
}

/// A shard on its way.
pub struct OfShard {
    pub name: String,
    /// Its slots at the moment; none where they were not recorded.
    pub owned: Option<String>,
    /// Its base and log.
    pub planned: plan::Planned,
}

impl OfShard {
    /// The point that was planned, to be restored whatever is stored meanwhile.
    pub fn wanted(&self) -> Wanted {
        let planned = &self.planned;
        let end = planned.route.end();
        let (replid, position) = end.unwrap_or((&planned.member.replid, planned.member.offset));
        Wanted {
            name: self.name.clone(),
            owned: self.owned.clone(),
            backup: planned.id.clone(),
            target: Some(Target {
                moment: Moment::Position(position),
                replid: Some(replid.to_owned()),
            }),
        }
    }
}

/// Finds the way of each shard to a moment; without one to the last up to which all of them, and their slots, are stored.
///
/// # Errors
/// `OutOfReach` where nothing leads there; `Usage` for a target that belongs to one shard; `Refused` where two clusters had this name; those of the repositories.
pub fn plan(session: &Session, name: &str, shards: &[String], target: &Target) -> Result<Planned> {
    if target.replid.is_some() {
        return Err(err!(
            Usage,
            "redis \"{name}\" is a cluster, and a history or an offset is that of one shard"
        )
        .hint(format!(
            "Nothing was written.\nName the shard: {}; or a time for all: --target-time",
            shards.join(", ")
        )));
    }
    let mut stored = Vec::new();
    for shard in shards {
        stored.push(look(session, shard).map_err(|e| of_shard(shard, e))?);
    }
    let micros = match target.moment {
        Moment::Time(wanted) => wanted,
        _ => latest(&stored).ok_or_else(|| {
            err!(OutOfReach, "redis \"{name}\" has a shard of which nothing was received")
                .hint(format!("Nothing was written.\npitr redis info {name} shows the shards. Start the receiver: pitr redis receive {name}"))
        })?,
    };
    let time = TimestampTz::from_unix_micros(micros);
    let time = time.ok_or_else(|| err!(Usage, "--target-time is out of range"))?;
    let mut seen: Vec<slots::OfShard> = Vec::new();
    for one in &stored {
        seen.push((one.name.clone(), maps(session, &one.name, time)?));
    }
    let (mut planned, mut silent) = (Vec::new(), Vec::new());
    let mut clusters: Vec<(&str, &[Range])> = Vec::new();
    for (one, (_, seen)) in stored.iter().zip(&seen) {
        let map = slots::at(seen, time);
        // It came later, or had no slots.
        if one.newest.is_some() && map.is_none_or(|map| map.owned.is_empty()) {
            continue;
        }
        let of = map.map(|map| map.cluster.as_str());
        let owned = map.map(|map| map.owned.as_slice()).unwrap_or_default();
        let is_other = |(id, slots): &(&str, &[Range])| {
            of.is_some_and(|of| of != *id) && nodes::overlap(slots, owned)
        };
        if clusters.iter().any(is_other) {
            return Err(err!(
                Refused,
                "two clusters had the name \"{name}\" at the target: {} is a shard of another one",
                one.name
            )
            .hint(format!(
                "Nothing was written.\nName each shard: {}",
                shards.join(", ")
            )));
        }
        clusters.extend(of.map(|of| (of, owned)));
        // All that is stored is of a time up to its last byte.
        let target = Target {
            moment: match one.end == Some(micros) {
                true => Moment::End,
                false => Moment::Time(micros),
            },
            replid: None,
        };
        let way = plan::run(session, &one.name, None, &target);
        let way = way.map_err(|e| of_shard(&one.name, lacks_backup(name, e)))?;
        silent.extend(silence(&one.name, &way, time));
        planned.push(OfShard {
            planned: way,
            name: one.name.clone(),
            owned: map.map(|map| slot_map::shown(&map.owned)),
        });
    }
    if planned.is_empty() {
        return Err(err!(OutOfReach, "no shard of redis \"{name}\" was known at the target")
            .hint(format!("Nothing was written.\npitr redis ls {name} and pitr redis info {name} show what there is.")));
    }
    let mut slots = slots::judge(&seen, time);
    slots.doubts.extend(silent);
    let behind = match target.moment {
        Moment::End => behind(&stored),
        _ => Vec::new(),
    };
    Ok(Planned {
        micros,
        shards: planned,
        slots,
        behind,
    })
}

/// The shards with slots that hold the last moment of all back.
fn behind(stored: &[Stored]) -> Vec<(String, TimestampTz)> {
    let live = || stored.iter().filter(|one| one.is_live());
    let latest = live().filter_map(|one| one.end).max().unwrap_or(i64::MIN);
    let latest = TimestampTz::from_unix_micros(latest);
    let late = live().filter_map(|one| {
        let end = TimestampTz::from_unix_micros(one.end?)?;
        let by = latest?.duration_since(end)?;
        (by > fault::shortened(BEHIND_MAX)).then(|| (one.name.clone(), end))
    });
    late.collect()
}

/// The last moment up to which the shards that have slots are stored, and their slots recorded.
pub(super) fn latest(stored: &[Stored]) -> Option<i64> {
    let live = || stored.iter().filter(|one| one.is_live());
    let end = live().map(|one| one.end.unwrap_or(i64::MIN)).min();
    let end = end.filter(|end| *end > i64::MIN)?;
    let records = live().filter_map(|one| one.newest.as_ref()?.0.unix_micros());
    let recorded = records.min().filter(|at| end - at < RECORDS_LAG_MAX_MICROS);
    Some(recorded.map_or(end, |at| at.min(end)))
}

/// A shard that appears has no way to any moment before its first backup.
fn lacks_backup(name: &str, error: Error) -> Error {
    if error.code() != Code::OutOfReach {
        return error;
    }
    let hint = error.hint_text().unwrap_or("Nothing was written.");
    let hint = format!(
        "{hint}\nEach shard needs a backup before the target. Where it came since the last one, take one now, and choose a moment behind it: pitr redis backup {name}"
    );
    error.hint(hint)
}

/// Whether nothing came from a shard around the moment for longer than a server is silent.
fn silence(shard: &str, way: &plan::Planned, moment: TimestampTz) -> Option<Doubt> {
    let from = way.route.arrived();
    let from = from.unwrap_or(way.member.received_time);
    let next = way.route.next_us.and_then(TimestampTz::from_unix_micros);
    slots::silence(shard, from, next.unwrap_or(moment))
}

/// The end of a shard as it is stored.
pub(super) struct Stored {
    name: String,
    /// When its last byte had arrived.
    end: Option<i64>,
    /// Its newest map.
    newest: Option<Seen>,
}

impl Stored {
    /// Whether it had slots when they were recorded last.
    pub(super) fn is_live(&self) -> bool {
        let newest = self.newest.as_ref();
        newest.is_none_or(|(_, map)| !map.owned.is_empty())
    }
}

pub(super) fn look(session: &Session, shard: &str) -> Result<Stored> {
    let scope = Scope::aux(NAME, shard)?;
    let found = search::in_first(session, |repository, _| {
        let newest = slot_map::newest(repository.store(), &scope)?;
        let latest = walk::latest(&repository, &scope, &|text| session.warn(text))?;
        let is_any = newest.is_some() || latest.is_some();
        Ok(is_any.then_some((newest, latest.map(|(_, mark)| mark.arrived_us))))
    })?;
    let (newest, end) = found.unwrap_or_default();
    Ok(Stored {
        name: shard.to_owned(),
        end,
        newest,
    })
}

fn maps(session: &Session, shard: &str, time: TimestampTz) -> Result<Vec<Seen>> {
    let scope = Scope::aux(NAME, shard)?;
    let found = search::in_first(session, |repository, _| {
        let maps = slot_map::around(repository.store(), &scope, time)?;
        Ok((!maps.is_empty()).then_some(maps))
    })?;
    Ok(found.unwrap_or_default())
}

/// A shard that is restored.
pub struct Wanted {
    pub name: String,
    /// Its slots; none where they were not recorded.
    pub owned: Option<String>,
    pub backup: BackupId,
    /// The point; none: the backup alone.
    pub target: Option<Target>,
}

/// Puts all shards of a cluster into directories below one.
///
/// # Errors
/// Those of [`restore::run`]; nothing was written where one of them cannot be restored at all.
pub fn restore(
    session: &Session,
    shards: &[Wanted],
    asked: &restore::Asked<'_>,
) -> Result<Vec<(String, Restored)>> {
    let to = session.environment.absolute(asked.to);
    if to.exists() {
        crate::restore::content::check_empty(&to)?;
    }
    let mut all = Vec::new();
    let passes: &[bool] = match asked.is_dry_run {
        true => &[true],
        false => &[true, false],
    };
    for is_dry_run in passes {
        all.clear();
        if !is_dry_run && !to.exists() {
            restore::make(&to)?;
        }
        for shard in shards {
            let name = &shard.name;
            let own = restore::Asked {
                name,
                to: &to.join(name),
                backup: Some(&shard.backup),
                target: shard.target.clone(),
                as_replica: asked.as_replica,
                server_version: asked.server_version,
                is_dry_run: *is_dry_run,
            };
            let restored = restore::run(session, &own).map_err(|e| of_shard(name, e))?;
            all.push((name.clone(), restored));
        }
    }
    Ok(all)
}

/// The newest backups of shards that have slots, or had any when that was recorded last. Slots that none of them has are named in a warning.
///
/// # Errors
/// Those of the repositories; `NotFound` where one has none.
pub fn newest(session: &Session, shards: &[String]) -> Result<Vec<Wanted>> {
    let (mut found, mut all) = (Vec::new(), Vec::new());
    for shard in shards {
        let newest = look(session, shard)?.newest;
        all.extend(newest.iter().flat_map(|(_, map)| map.owned.iter().copied()));
        let owned = newest.map(|(_, map)| slot_map::shown(&map.owned));
        if owned.as_ref().is_none_or(|slots| !slots.is_empty()) {
            let stored = find(session, shard, None).map_err(|e| of_shard(shard, e))?;
            found.push(Wanted {
                name: shard.clone(),
                owned,
                backup: stored.backup.id,
                target: None,
            });
        }
    }
    let (missing, _) = slots::cover(all);
    if !missing.is_empty() {
        session.warn(&format!(
            "slots {} belong to no shard that is stored: keys in them are not there",
            slot_map::shown(&missing)
        ));
    }
    Ok(found)
}
