//! `pitr mark`: one point in every member of a set, recorded in every repository.
//!
//! The order is databases, Redis, files: what refers to something is asked before what it refers to. All servers are connected to first, so that the
//! points lie close together.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{cluster, configured, own, redis, runbook, scope};
use crate::config::{MemberKind, RecoverySet, RedisSource, SetMember, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::failures::Failures;
use crate::operate::server::{self, Server};
use crate::operate::session::Session;
use crate::operate::unproven;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::redis::info::REPLICA;
use crate::redis::kind::NAME as REDIS;
use crate::redis::source::Source;
use crate::repo::event::{self, Event, Writer};
use crate::repo::id::BackupId;
use crate::repo::runbook as stored_runbook;
use crate::repo::scope::Scope;
use crate::repo::set_mark::{self, Level, MEMBERS_MAX, Stated, StatedMember};
use crate::repo::source;

/// An option of `pitr config backup`.
const ALLOW_PLAIN: &str = "--allow-plain-secrets";

/// How often a wait for the next mark looks whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// A mark that is asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The set; none: the only one.
    pub set: Option<String>,
    /// A text to recognise it by.
    pub label: Option<String>,
    /// Whether backups of files and configuration are taken right after it.
    pub takes_backups: bool,
}

/// A mark that was made.
#[derive(Serialize)]
pub struct Marked {
    /// Its name.
    pub id: String,
    pub set: String,
    /// The operator's text.
    pub label: Option<String>,
    /// The writer's clock before the first member was asked.
    pub began: TimestampTz,
    /// The same when every member had answered.
    pub ended: TimestampTz,
    /// The exactness that it promises.
    pub level: Level,
    pub members: Vec<StatedMember>,
    /// Those of them that follow another server, and gave what they had replayed.
    pub followers: Vec<Follower>,
    /// The repositories that have it.
    pub repositories: Vec<String>,
    /// Errors of the others.
    #[serde(skip)]
    pub failures: Failures,
}

/// A standby, or a replica of Redis: its point lacks what it had not replayed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Follower {
    /// The scope of the member.
    pub scope: String,
    /// By how much it is behind its primary, as far as it knows itself.
    pub behind_seconds: Option<u64>,
}

/// A member that is connected to.
enum Asking<'s> {
    Cluster(&'s str, Box<Server>, String),
    Redis(&'s str, Box<Source>),
    Later(&'s SetMember),
}

/// Makes a mark.
///
/// # Errors
/// `Usage`; `Refused` where a member cannot give a point; those of the servers and, where no repository takes the mark, of the first one.
pub fn run(session: &Session, asked: &Asked) -> Result<Marked> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, asked.set.as_deref())?;
    if let Some(label) = asked
        .label
        .as_deref()
        .filter(|text| !set_mark::is_label(text))
    {
        return Err(err!(
            Usage,
            "\"{}\" is no label: one line of at most {} bytes is needed",
            label.escape_debug(),
            set_mark::LABEL_MAX
        ));
    }
    if set.members.len() > MEMBERS_MAX {
        return Err(err!(Config, "a set has at most {MEMBERS_MAX} members"));
    }
    unproven::require_key_of_one(session, &settings.repositories)?;
    let mut members: Vec<&SetMember> = set.members.iter().collect();
    members.sort_by_key(|member| member.kind);
    let asking: Result<Vec<Asking<'_>>> = members
        .into_iter()
        .map(|member| connect(session, &settings, member))
        .collect();
    let asking = asking?;
    let began = session.host.now();
    let nonce = session.host.random();
    let (mut points, mut followers) = (Vec::new(), Vec::new());
    let mut later = Vec::new();
    for member in asking {
        let (point, follower) = match member {
            Asking::Cluster(name, mut server, conninfo) => {
                of_cluster(name, &mut server, &conninfo, (began, nonce))?
            }
            Asking::Redis(name, mut source) => of_redis(session, name, &mut source)?,
            Asking::Later(member) => {
                later.push(member);
                continue;
            }
        };
        points.push(point);
        followers.extend(follower);
    }
    let ended = session.host.now();
    for member in later {
        points.push(of_files(session, member, (asked.takes_backups, ended))?);
    }
    let level = level(&points, &followers);
    let stated = Stated {
        set: set.name.clone(),
        began,
        ended,
        level: level.number(),
        members: points,
        runbook: None,
    };
    let label = asked.label.clone();
    record(session, &settings, set, (stated, label, level, followers))
}

fn connect<'s>(
    session: &Session,
    settings: &'s Settings,
    member: &'s SetMember,
) -> Result<Asking<'s>> {
    let name = member.name.as_str();
    match member.kind {
        MemberKind::Cluster => {
            let conninfo = cluster(settings, name)?.conninfo.as_ref();
            let conninfo = conninfo.map_or("", |secret| secret.expose()).to_owned();
            let server = Server::connect(&conninfo).map_err(|e| of(member, e))?;
            let server = server.heeding(&session.host.stop);
            Ok(Asking::Cluster(name, Box::new(server), conninfo))
        }
        MemberKind::Redis => {
            let section = redis(settings, name)?;
            if section.source != RedisSource::Psync {
                return Err(err!(
                    Refused,
                    "backups of member \"{member}\" have no position (source in [redis.{name}]): no mark leads to one"
                )
                .hint("No mark was made.\nGive the set a server that hands out its data set by PSYNC, or take the member out of it."));
            }
            let source = crate::operate::redis::connect(session, section);
            let source = source.map_err(|e| of(member, e))?;
            Ok(Asking::Redis(name, Box::new(source)))
        }
        MemberKind::Files | MemberKind::Config => Ok(Asking::Later(member)),
    }
}

fn of(member: &SetMember, error: Error) -> Error {
    error.context(format!("ask member \"{member}\""))
}

/// The name of a restore point: PostgreSQL takes 63 bytes.
fn restore_point((time, nonce): (TimestampTz, u64)) -> String {
    let seconds = event::stamp(time);
    format!("pitr-mark-{seconds}Z-{:08x}", nonce >> 32)
}

/// How far a standby is behind. One that has replayed all that it received, and that receives, is not.
const BEHIND: &str = "select case when exists (select from pg_stat_wal_receiver) and pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() then 0 \
    else ceil(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()))::bigint end";

/// PostgreSQL: src/backend/access/transam/xlogfuncs.c, `pg_create_restore_point` returns the end of its record, before which recovery then stops.
fn of_cluster(
    name: &str,
    server: &mut Server,
    conninfo: &str,
    at: (TimestampTz, u64),
) -> Result<(StatedMember, Option<Follower>)> {
    let rows = server.query("select pg_is_in_recovery()")?;
    let is_standby = rows.text(0, 0)? == Some("t");
    let identifier = "select system_identifier from pg_control_system()";
    let identifier: i64 = server.query(identifier)?.value(0, 0)?;
    let scope = Scope::cluster(name, identifier.cast_unsigned())?.prefix();
    let mut follower = None;
    let (lsn, timeline, restore_point) = match is_standby {
        true => {
            let behind = server.query(BEHIND)?.text(0, 0)?.map(str::to_owned);
            follower = Some(Follower {
                scope: scope.clone(),
                behind_seconds: behind
                    .and_then(|seconds| seconds.parse::<i64>().ok())
                    .map(|seconds| seconds.max(0).unsigned_abs()),
            });
            let rows = server.query("select pg_last_wal_replay_lsn()")?;
            let lsn: Lsn = rows.value(0, 0)?;
            let timeline = server::identify(conninfo)?.timeline.decimal();
            (lsn, timeline, None)
        }
        false => {
            let point = restore_point(at);
            let made = "select lsn, ('x' || substr(pg_walfile_name(lsn), 1, 8))::bit(32)::int from pg_create_restore_point";
            let rows = server.query(&format!("{made}('{point}') as lsn"))?;
            (rows.value(0, 0)?, rows.value(0, 1)?, Some(point))
        }
    };
    let point = StatedMember {
        scope,
        timeline: Some(timeline),
        lsn: Some(lsn),
        restore_point,
        ..StatedMember::default()
    };
    Ok((point, follower))
}

/// A server without a backlog does not count what is written: its offset would be that of long ago.
///
/// Redis: src/replication.c, `feedReplicationBuffer` moves `master_repl_offset` only while there is a backlog.
fn of_redis(
    session: &Session,
    name: &str,
    source: &mut Source,
) -> Result<(StatedMember, Option<Follower>)> {
    let mut tick = || session.host.check_stop();
    let info = source.ask("replication", &mut tick)?;
    let is_replica = info.role() == REPLICA;
    let is_counted = info.is_on("repl_backlog_active") || is_replica;
    if !is_counted {
        return Err(err!(
            Refused,
            "Redis server \"{name}\" has no replica, so what is written to it is not counted"
        )
        .hint(format!(
            "No mark was made.\nStart the receiver first: pitr redis receive {name}"
        )));
    }
    let replid = info.field("master_replid").unwrap_or_default().to_owned();
    let offset: Option<u64> = info.number("master_repl_offset");
    let offset =
        offset.ok_or_else(|| err!(Server, "Redis server \"{name}\" does not tell its offset"))?;
    let scope = Scope::aux(REDIS, name)?.prefix();
    // A link that is up has been silent for so long; one that is down leaves out the other field.
    let silent = info.number("master_link_down_since_seconds");
    let silent = silent.or_else(|| info.number("master_last_io_seconds_ago"));
    let follower = is_replica.then(|| Follower {
        scope: scope.clone(),
        behind_seconds: silent,
    });
    let point = StatedMember {
        scope,
        replid: Some(replid),
        offset: Some(offset),
        ..StatedMember::default()
    };
    Ok((point, follower))
}

fn of_files(
    session: &Session,
    member: &SetMember,
    (takes_backups, ended): (bool, TimestampTz),
) -> Result<StatedMember> {
    let kind = member.kind.section();
    let mut backup = None;
    if takes_backups {
        let words = own::words(&[kind, "backup", &member.name]);
        let answer = own::run(session, &words, None);
        let answer = answer.map_err(|e| refused(e, &own::line(&words)))?;
        let id = answer.json["id"]
            .as_str()
            .or(answer.json["backup"].as_str());
        let id = id.and_then(|id| id.parse::<BackupId>().ok());
        backup = Some(id.ok_or_else(|| err!(Internal, "the backup of \"{member}\" has no id"))?);
    }
    Ok(StatedMember {
        scope: Scope::aux(kind, &member.name)?.prefix(),
        after: backup.is_none().then_some(ended),
        backup,
        ..StatedMember::default()
    })
}

/// The error of a member's backup. An option that its hint names is one of that backup alone.
fn refused(error: Error, line: &str) -> Error {
    let is_of_backup = |hint: &str| hint.contains(ALLOW_PLAIN);
    match error.hint_text().is_some_and(is_of_backup) {
        true => error.hint(format!(
            "No mark was made.\nStore secrets in an encrypted repository. Or make the mark without --with-backups, then take that backup: {line} {ALLOW_PLAIN}"
        )),
        false => error,
    }
}

/// Writes the same mark into every repository, behind the instructions that it names.
fn record(
    session: &Session,
    settings: &Settings,
    set: &RecoverySet,
    (stated, label, level, followers): (Stated, Option<String>, Level, Vec<Follower>),
) -> Result<Marked> {
    let writer = Writer::of(&session.host);
    let event = set_mark::event(&writer, stated.clone(), label.clone());
    let (scope, text) = (scope(set)?, runbook::to_store(settings, set));
    let mut failures = Failures::default();
    let mut repositories = Vec::new();
    failures.in_each(&settings.repositories, "mark in", |configured| {
        let repository = session.open(configured)?;
        unproven::require_key(configured, &repository)?;
        let store = repository.store();
        source::register(store, &scope, (None, None), session.host.now())?;
        // Its name is another one in each encrypted repository.
        let stated = Stated {
            runbook: Some(stored_runbook::write(store, &scope, &text)?),
            ..stated.clone()
        };
        let event = Event {
            mark: Some(stated),
            ..event.clone()
        };
        writer.record(store, &scope, &event)?;
        // An expiry that has read the marks before this one may have let the text go.
        stored_runbook::write(store, &scope, &text)?;
        repositories.push(configured.name.clone());
        Ok(())
    });
    failures.first_if(session, repositories.is_empty())?;
    Ok(Marked {
        id: set_mark::name_of(&event),
        set: stated.set,
        label,
        began: stated.began,
        ended: stated.ended,
        level,
        members: stated.members,
        followers,
        repositories,
        failures,
    })
}

/// The exactness of a mark. A follower gives no more than a state that it had: of a replica of Redis nothing in its point tells that to a reader.
fn level(members: &[StatedMember], followers: &[Follower]) -> Level {
    let lowest = members.iter().map(StatedMember::level).min();
    let lowest = lowest.unwrap_or(Level::Nearest);
    match followers {
        [] => lowest,
        _ => lowest.min(Level::Time),
    }
}

/// Makes a mark each time `every` has passed, until the operator stops it; `told` hears each of them. One that cannot be made is warned of.
///
/// # Errors
/// That of the first mark; those of `told`.
pub fn run_every(
    session: &Session,
    asked: &Asked,
    every: Duration,
    told: &mut dyn FnMut(&Marked) -> Result<()>,
) -> Result<()> {
    told(&run(session, asked)?)?;
    let mut due = Instant::now() + every;
    loop {
        while Instant::now() < due {
            if session.host.is_stopping() {
                return Ok(());
            }
            std::thread::sleep(TICK);
        }
        // A host that slept makes one mark, not all that it missed.
        due = (due + every).max(Instant::now());
        match run(session, asked) {
            Ok(marked) => told(&marked)?,
            Err(_) if session.host.is_stopping() => return Ok(()),
            Err(e) => session.warn(&format!("no mark was made: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_a_members_backup_is_named_with_the_command_that_has_it() {
        let line = "pitr config backup host";
        let plain =
            err!(Refused, "a secret").hint("Nothing was stored. Add --allow-plain-secrets.");
        let told = refused(plain, line);
        let hint = told.hint_text().unwrap();
        assert!(
            hint.ends_with("pitr config backup host --allow-plain-secrets"),
            "{hint}"
        );
        let other = err!(Refused, "a member").hint("Another one.");
        assert_eq!(refused(other, line).hint_text(), Some("Another one."));
    }
}
