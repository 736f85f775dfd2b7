//! Data sets of Redis and Valkey: taken, put back, and listed. A cluster is all of this for each of its shards.

pub mod backup;
mod cluster;
mod gap_base;
pub mod info;
pub mod into;
mod kept_names;
pub mod keys;
pub mod list;
mod on_disk;
pub mod plan;
pub mod receive;
pub mod receive_cluster;
pub mod restore;
pub(super) mod scratch;
pub(super) mod sentinels;
pub mod shards;
mod slots_record;
pub mod watch;
pub mod windows;

use std::cell::RefCell;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::search;
use super::session::Session;
use crate::config::secret::check_closed;
use crate::config::{Redis, RedisAccess, RedisAddress, Secret, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::redis::connection::{Tick, Way};
use crate::redis::kind::NAME;
use crate::redis::member::Member;
use crate::redis::nodes::digits;
use crate::redis::route::{self, Moment, Route, Target};
use crate::redis::source::Source;
use crate::redis::walk::{self, Known};
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;
use crate::wire::tls;

/// No password is longer.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// The next step where a password file has no password.
const WRITE_PASSWORD: &str =
    "Nothing was done.\nWrite the password, and nothing else, into the first line of that file.";

/// A backup that is read.
pub struct Stored {
    /// The backup and its repository.
    pub backup: search::Stored,
    /// The facts of its data set.
    pub member: Member,
}

/// Returns the section of the configuration for a name.
///
/// # Errors
/// `Config` when there is none, with the lines to add.
fn configured<'s>(settings: &'s Settings, name: &str) -> Result<&'s Redis> {
    let sections = &settings.redis;
    if let Some(found) = sections.iter().find(|redis| redis.name == name) {
        return Ok(found);
    }
    let is_shard = |redis: &&Redis| redis.is_cluster && digits(&redis.name, name).is_some();
    let hint = match sections.iter().find(is_shard) {
        Some(cluster) => format!(
            "Nothing was stored.\nIt is a shard of [redis.{0}]: name the cluster, {0}",
            cluster.name
        ),
        None => format!(
            "Nothing was stored.\nAdd to the configuration file: [redis.{}] and below it address = \"127.0.0.1:6379\"",
            name.escape_debug()
        ),
    };
    let name = name.escape_debug();
    Err(err!(Config, "no Redis server \"{name}\" is configured").hint(hint))
}

/// Returns the section of the configuration for the name of one server.
///
/// # Errors
/// Those of [`configured`]; `Refused` for a cluster.
fn server<'s>(settings: &'s Settings, name: &str) -> Result<&'s Redis> {
    let section = configured(settings, name)?;
    match section.is_cluster {
        false => Ok(section),
        true => Err(err!(
            Refused,
            "[redis.{name}] is a cluster, and this works on one server alone"
        )
        .hint("Nothing was changed.\nName the node in a section of its own, with address and without cluster.")),
    }
}

/// The text that tells a configured server from others.
fn identity(redis: &Redis) -> String {
    redis.identity.clone().unwrap_or_else(|| redis.place())
}

/// Connects to a configured server, where Sentinels name it to the present master, and asks it about itself.
///
/// # Errors
/// `Config` for a file that cannot be read or is open to others; those of [`Source::connect`], and of the Sentinels.
pub(super) fn connect(session: &Session, redis: &Redis) -> Result<Source> {
    connect_while(redis, &mut || session.host.check_stop())
}

/// As [`connect`], and asks `tick` whether to go on.
fn connect_while(redis: &Redis, tick: Tick<'_>) -> Result<Source> {
    match &redis.address {
        Some(address) => connect_to(redis, address, tick),
        None => sentinels::connect(redis, false, tick),
    }
}

/// A shard of a cluster: its name, its slots, and its owner as one connection sees it.
pub(super) type Owner = (String, String, Result<Source>);

/// Connects to the owner of each shard of a cluster.
///
/// # Errors
/// Those of the nodes, and of the repositories: they have the names.
pub(super) fn owners(session: &Session, redis: &Redis, settings: &Settings) -> Result<Vec<Owner>> {
    let mut tick = || session.host.check_stop();
    let live = cluster::Live::new(session, redis, settings, false)?;
    let learned = live.learn_all(&cluster::Nodes::new(&live).all(&mut tick)?);
    if let Some(e) = learned.nameless {
        return Err(e);
    }
    let shards = learned.shards.into_iter().map(|shard| {
        let source = live.connect(&shard.name, &mut tick);
        let slots = crate::repo::slot_map::shown(&shard.map.owned);
        (shard.name, slots, source)
    });
    Ok(shards.collect())
}

fn connect_to(redis: &Redis, address: &RedisAddress, tick: Tick<'_>) -> Result<Source> {
    let (way, password) = way(&redis.access, address, redis.stall_timeout)?;
    Source::connect(way, password.as_ref(), tick)
}

/// The way to a server or a Sentinel, and the password there.
fn way(
    access: &RedisAccess,
    address: &RedisAddress,
    stall_timeout: Duration,
) -> Result<(Way, Option<Secret>)> {
    let files = &access.tls;
    let tls = files.ca_file.as_ref().map(|ca_file| tls::Files {
        ca_file: ca_file.clone(),
        certificate: files.cert_file.clone().zip(files.key_file.clone()),
    });
    if let Some(key) = &files.key_file {
        let metadata = std::fs::metadata(key);
        let metadata = metadata.map_err(|e| unreadable("private key file", key, e))?;
        check_closed(Code::Config, "private key file", key, &metadata)?;
    }
    let way = Way {
        address: address.clone(),
        tls,
        stall_timeout,
        user: access.user.clone(),
    };
    let password = access.password_file.as_deref().map(password).transpose()?;
    Ok((way, password))
}

/// Reads the first line of a password file.
fn password(path: &Path) -> Result<Secret> {
    let failed = |e| unreadable("password file", path, e);
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.size() > PASSWORD_BYTES_MAX {
        return Err(err!(
            Config,
            "password file \"{}\" is no small file",
            path.display()
        )
        .hint(WRITE_PASSWORD));
    }
    check_closed(Code::Config, "password file", path, &metadata)?;
    let mut text = String::new();
    let read = file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text);
    // The error of the conversion would name no byte of it; the file's name says enough.
    read.map_err(failed)?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line.to_owned())),
        None => Err(err!(
            Config,
            "password file \"{}\" has no password in its first line",
            path.display()
        )
        .hint(WRITE_PASSWORD)),
    }
}

fn unreadable(kind: &str, path: &Path, error: std::io::Error) -> Error {
    let next = match error.kind() {
        ErrorKind::NotFound => {
            "Make the file, which only this user may read (mode 0600), or correct its path in the configuration."
        }
        ErrorKind::PermissionDenied => {
            "Give the file to the user who runs this (chown, mode 0600), or run the command as its owner."
        }
        _ => "Look at the file, or correct its path in the configuration.",
    };
    let failed = err!(Config, "could not read {kind} \"{}\"", path.display());
    let failed = failed.source(error);
    failed.hint(format!("Nothing was done.\n{next}"))
}

/// A backup that does not lead to the target is followed by an older one, so often.
const ATTEMPTS_MAX: usize = 16;

/// Finds the newest undamaged backup from which a way leads to the target, or the one that is named, in the first repository that has one; and the way.
///
/// # Errors
/// `OutOfReach`; `Refused` where it is not known which history is wanted; that of the first repository, when none can be read; `Damaged`.
fn on_way(
    session: &Session,
    name: &str,
    wanted: Option<&BackupId>,
    target: &Target,
) -> Result<(Stored, Route)> {
    let is_whole = |events: &[Recorded]| event::damage(events).is_empty();
    let way = RefCell::new(None);
    let found = search::first(session, (NAME, name), |repository, scope| {
        let candidates: Vec<BackupId> = match wanted {
            Some(_) => search::named_or_newest(repository, scope, wanted, is_whole)?
                .into_iter()
                .map(|found| found.id)
                .collect(),
            None => search::newest_first(repository, scope, is_whole)?,
        };
        let (mut failure, mut alone, mut elsewhere) = (None, None, None);
        let mut attempts = 0;
        let histories = match target.replid {
            Some(_) => walk::histories(repository, scope)?,
            None => Vec::new(),
        };
        // A server that was started often has many newer backups of other histories.
        let passes: &[bool] = match target.replid {
            Some(_) => &[true, false],
            None => &[false],
        };
        let all = passes
            .iter()
            .flat_map(|own| candidates.iter().map(move |id| (*own, id)));
        for (is_own, id) in all {
            let member = AuxRoot::member(repository.store(), scope, id)?;
            let Some(member) = member.as_ref().map(Member::read).transpose()? else {
                continue;
            };
            let is_of_history = target.replid.as_ref() == Some(&member.replid);
            if is_of_history != is_own || !is_before((repository, scope), &member, target)? {
                continue;
            }
            if member.position().is_none() {
                if is_last((session, repository, scope), &member, target)? {
                    way.replace(Some(Route::default()));
                    return Ok(Some(id.clone()));
                }
                alone.get_or_insert_with(|| stands_alone(name, id, &member));
                continue;
            }
            if let Err(e) = leads_to(&histories, &member, target) {
                elsewhere.get_or_insert(e);
                continue;
            }
            match way_from((session, repository, scope), &member, target) {
                Ok(route) => {
                    way.replace(Some(route));
                    return Ok(Some(id.clone()));
                }
                Err(e) if e.code() == Code::OutOfReach && attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    failure.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        failure.or(alone).or(elsewhere).map_or(Ok(None), Err)
    })?;
    match (found, way.into_inner()) {
        (Some(backup), Some(route)) => Ok((read(backup)?, route)),
        _ => Err(err!(
            OutOfReach,
            "redis \"{name}\" has no undamaged backup at or before the target"
        )
        .hint(format!(
            "Nothing was written.\npitr redis ls {name} shows what there is."
        ))),
    }
}

/// The log in a repository, and the session that looks at it.
type Place<'p> = (&'p Session, &'p Repository, &'p Scope);

/// Requires that the history of a data set leads to the one that is wanted, where one is. No object of the log is read for that, so that such
/// data sets are no attempts.
fn leads_to(histories: &[Known], member: &Member, target: &Target) -> Result<()> {
    match (&target.replid, member.position()) {
        (Some(wanted), Some(position)) => route::leads_to(histories, position, wanted),
        _ => Ok(()),
    }
}

/// Whether a data set is one of before the target.
fn is_before(
    (repository, scope): (&Repository, &Scope),
    member: &Member,
    target: &Target,
) -> Result<bool> {
    let wanted = match target.moment {
        Moment::Time(wanted) => wanted,
        Moment::Position(wanted) => return Ok(member.offset <= wanted),
        Moment::End => return Ok(true),
    };
    let received = member.received_time.unix_micros();
    if received.is_none_or(|received| received > wanted) {
        return Ok(false);
    }
    // The time of a data set is that of another clock. The target is one of the receiver's.
    match member.position() {
        Some(position) => Ok(!route::arrived_later(repository, scope, position, wanted)?),
        None => Ok(true),
    }
}

/// Whether a data set without a position is the last that is stored, and that is wanted.
fn is_last(
    (session, repository, scope): Place<'_>,
    member: &Member,
    target: &Target,
) -> Result<bool> {
    if target.moment != Moment::End || target.replid.is_some() {
        return Ok(false);
    }
    // Bytes that arrived while it was taken may not be in it.
    let logged = walk::latest(repository, scope, &|text| session.warn(text))?
        .map(|(_, mark)| mark.arrived_us);
    Ok(logged <= member.requested_time.unix_micros())
}

/// The error of a target behind a data set that no log follows.
fn stands_alone(name: &str, id: &BackupId, member: &Member) -> Error {
    err!(
        OutOfReach,
        "backup \"{id}\" has no position in a history (source = \"{}\"): no log leads on from its moment, between {} and {}",
        member.method.escape_debug(),
        member.requested_time,
        member.received_time
    )
    .hint(format!(
        "Nothing was written.\nThat moment comes back without a target: pitr redis restore {name} --to DIR --backup {id}"
    ))
}

fn way_from(
    (session, repository, scope): Place<'_>,
    member: &Member,
    target: &Target,
) -> Result<Route> {
    let route = route::plan(repository, scope, (&member.replid, member.offset), target)?;
    if target.moment != Moment::End || target.replid.is_some() {
        return Ok(route);
    }
    // The end of a history that the server has left is not the end.
    let latest = walk::latest(repository, scope, &|text| session.warn(text))?;
    match latest.filter(|(replid, _)| route.legs.iter().all(|leg| leg.replid != *replid)) {
        Some((replid, mark)) if Some(mark.arrived_us) > route.arrived_us => Err(err!(
            OutOfReach,
            "the last bytes that were received are of history {replid}, and no way leads there"
        )
        .hint("Nothing was written.\nTake a backup now. --history REPLID goes to the end of another one; pitr redis info NAME shows them.")),
        _ => Ok(route),
    }
}

/// Finds the backup: the one that is named, else the newest that no check found damaged, in the first repository that has it.
///
/// # Errors
/// `NotFound`; that of the first repository, when none can be read; `Damaged` when its member cannot be read.
fn find(session: &Session, name: &str, wanted: Option<&BackupId>) -> Result<Stored> {
    let is_whole = |events: &[Recorded]| event::damage(events).is_empty();
    let found = search::best(session, (NAME, name), |repository, scope| {
        search::named_or_newest(repository, scope, wanted, is_whole)
    })?;
    let backup = found.ok_or_else(|| {
        search::lacking(&format!("redis \"{name}\""), wanted).hint(format!(
            "Nothing was written.\npitr redis ls {name} shows what there is. Take one with pitr redis backup {name}"
        ))
    })?;
    read(backup)
}

fn read(backup: search::Stored) -> Result<Stored> {
    Ok(Stored {
        member: Member::read(&backup.member()?)?,
        backup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::source::no_backup;

    #[test]
    fn a_password_file_without_a_password_comes_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let next = || {
            let refused = no_backup(password(&path).err().unwrap());
            refused.hint_text().unwrap_or_default().to_owned()
        };
        assert!(next().contains("Make the file"), "{}", next());
        std::fs::write(&path, "").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        assert!(next().contains("into the first line"), "{}", next());
    }
}
