//! Servers of Redis and Valkey: whether each can be backed up, and how long its receiver may be away.

use std::time::{Duration, Instant};

use crate::config::{Redis, RedisSource, Settings};
use crate::error::{Code, Result};
use crate::operate::finding::Findings;
use crate::operate::human;
use crate::operate::redis::{connect, owners};
use crate::operate::session::Session;
use crate::redis::connection::Tick;
use crate::redis::files::{self, Place};
use crate::redis::info::Info;
use crate::redis::source::Source;

/// For so long it is looked how much a server writes.
const LOOK: Duration = Duration::from_secs(1);
/// A receiver that may be away for less is in danger: a restart of its host takes as long.
const AWAY_MIN_SECONDS: u64 = 300;
/// A data set may take so long on its way.
const DUMP_MIN_SECONDS: u64 = 30;

/// Looks at each configured server.
pub fn look(found: &mut Findings, settings: &Settings, session: &Session) {
    found.begin("redis");
    for redis in &settings.redis {
        if redis.is_cluster {
            if let Err(e) = cluster(found, redis, settings, session) {
                found.error(&redis.name, &e);
            }
            continue;
        }
        if let Err(e) = server(found, redis, connect(session, redis), session) {
            found.error(&redis.name, &e);
        }
    }
}

/// Looks at the owner of each shard.
fn cluster(
    found: &mut Findings,
    redis: &Redis,
    settings: &Settings,
    session: &Session,
) -> Result<()> {
    for (shard, slots, source) in owners(session, redis, settings)? {
        let section = Redis {
            name: shard,
            ..redis.clone()
        };
        let name = format!("{} slots", section.name);
        match slots.is_empty() {
            true => found.ok(&name, "on their way or failing over"),
            false => found.ok(&name, slots),
        }
        if let Err(e) = server(found, &section, source, session) {
            found.error(&section.name, &e);
        }
    }
    Ok(())
}

fn server(
    found: &mut Findings,
    redis: &Redis,
    source: Result<Source>,
    session: &Session,
) -> Result<()> {
    let mut source = source?;
    source.check_ready()?;
    let role = source.role();
    found.ok(&redis.name, format!("{}, {role}", source.version));
    if source.is_shard() && !redis.is_cluster {
        let name = format!("{} cluster", redis.name);
        found.ok(&name, "one shard of a cluster: its slots alone are backed up; cluster = true in its section takes all shards");
    }
    let mut tick = || session.host.check_stop();
    let memory = source.ask("memory", &mut tick)?;
    if redis.source != RedisSource::Aof {
        fork(found, redis, &memory);
    }
    if redis.source != RedisSource::Psync {
        return files(found, redis, &mut source, &mut tick);
    }
    let (began, before) = (Instant::now(), offset(&source.info));
    while began.elapsed() < LOOK {
        tick()?;
        std::thread::sleep(LOOK / 10);
    }
    let after = source.ask("replication", &mut tick)?;
    let written = offset(&after).saturating_sub(before);
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let rate = written.saturating_mul(1000) / millis.max(1);
    if redis.journal.is_some() {
        away(found, redis, &after, rate);
    }
    let limit = source.setting("client-output-buffer-limit", &mut tick);
    let seconds = source.info.number("rdb_last_bgsave_time_sec").unwrap_or(0);
    match limit {
        Ok(Some(limit)) => output(found, redis, (limit.expose(), &after), (rate, seconds)),
        Ok(None) => {}
        Err(e) if matches!(e.code(), Code::Denied | Code::Server) => found.ok(
            &format!("{} output buffer", redis.name),
            "cannot be asked: give the user +config|get",
        ),
        Err(e) => return Err(e),
    }
    let name = format!("{} rights", redis.name);
    match source.check_rights(&mut tick) {
        Ok(()) => found.ok(&name, "it hands out its data set and its commands"),
        Err(e) => found.error(&name, &e),
    }
    Ok(())
}

/// Looks at the files of a server that does not answer `PSYNC`. Nothing is saved.
fn files(found: &mut Findings, redis: &Redis, source: &mut Source, tick: Tick<'_>) -> Result<()> {
    let name = format!("{} files", redis.name);
    let place = Place::find(source, redis.service.data_directory.as_deref(), tick)?;
    let path = match redis.source {
        RedisSource::Aof => {
            if !source.info.is_on("aof_enabled") {
                found.fail(
                    &name,
                    "the server writes no append-only file",
                    "no backup is made",
                    "appendonly yes, or source = \"bgsave\"",
                );
                return Ok(());
            }
            let (directory, file) = place.append_only(source, tick)?;
            match source.version.has_directory() {
                true => directory.join(format!("{file}.manifest")),
                false => directory.join(file),
            }
        }
        RedisSource::Psync | RedisSource::Bgsave => place.dump(source, tick)?,
    };
    let shown = path.display();
    match (files::open(&path)?, redis.source) {
        (Some(opened), RedisSource::Bgsave) => {
            let (size, free) = (opened.bytes(), files::free_bytes(&place.directory)?);
            let value = format!("{shown}, {}, {} free", human::size(size), human::size(free));
            match free < size {
                true => found.warn(
                    &name,
                    value,
                    "a save needs as much again: no backup is made, and the server's own saves fail",
                    "make room on that disk",
                ),
                false => found.ok(&name, value),
            }
        }
        (Some(_), _) => found.ok(&name, shown.to_string()),
        (None, RedisSource::Bgsave) => found.ok(&name, format!("{shown}, not saved yet")),
        (None, _) => found.fail(
            &name,
            format!("\"{shown}\" is not there"),
            "no backup is made",
            "service.data_directory names the server's directory as this host sees it",
        ),
    }
    Ok(())
}

fn offset(info: &Info) -> u64 {
    info.number("master_repl_offset").unwrap_or(0)
}

/// A fork needs memory for each page that is written while it lives: at worst for all.
fn fork(found: &mut Findings, redis: &Redis, memory: &Info) {
    let used: Option<u64> = memory.number("used_memory_rss");
    let total: Option<u64> = memory.number("total_system_memory");
    let Some((used, total)) = used.zip(total.filter(|total| *total > 0)) else {
        return;
    };
    let name = format!("{} fork", redis.name);
    let value = format!("{} of {} used", human::size(used), human::size(total));
    match used.saturating_mul(2) > total {
        true => found.warn(
            &name,
            value,
            "a backup makes the server fork: if many keys change meanwhile, its memory doubles, and the kernel may end it",
            "name a replica as address, or back up while little is written",
        ),
        false => found.ok(&name, value),
    }
}

/// While a data set is on its way, the server keeps what is written meanwhile, up to a limit behind which it lets the connection go.
fn output(
    found: &mut Findings,
    redis: &Redis,
    (setting, replication): (&str, &Info),
    (bytes_per_second, dump_seconds): (u64, u64),
) {
    let Some(limit) = OutputLimit::read(setting) else {
        return;
    };
    let name = format!("{} output buffer", redis.name);
    // Below the size of the backlog no limit holds.
    let backlog = replication.number("repl_backlog_size").unwrap_or(0);
    let Some(bytes) = limit.least().map(|bytes| bytes.max(backlog)) else {
        return found.ok(&name, "no limit");
    };
    let needed = dump_seconds.saturating_mul(2).max(DUMP_MIN_SECONDS);
    let rate = format!("{}/s written", human::size(bytes_per_second));
    let reached = bytes.checked_div(bytes_per_second);
    let Some(seconds) = reached.filter(|seconds| *seconds < needed) else {
        return found.ok(&name, format!("up to {}, {rate}", human::size(bytes)));
    };
    let time = human::duration(Duration::from_secs(seconds));
    let wanted = bytes_per_second.saturating_mul(needed).saturating_mul(2);
    found.warn(
        &name,
        format!("up to {}, {rate}: reached in {time}", human::size(bytes)),
        "the server lets a backup go whose data set takes longer than that",
        format!("redis-cli CONFIG SET client-output-buffer-limit 'replica {wanted} {wanted} 60', and the same in redis.conf"),
    );
}

/// The limit of what a server keeps for a replica that reads slowly.
struct OutputLimit {
    hard_bytes: u64,
    soft_bytes: u64,
}

impl OutputLimit {
    /// Reads the setting: class, hard limit, soft limit and seconds of each class of clients.
    fn read(setting: &str) -> Option<OutputLimit> {
        let words: Vec<&str> = setting.split_ascii_whitespace().collect();
        let of_replicas = |class: &&[&str]| matches!(class.first(), Some(&("slave" | "replica")));
        match words.chunks(4).find(of_replicas)? {
            [_, hard, soft, _] => Some(OutputLimit {
                hard_bytes: hard.parse().ok()?,
                soft_bytes: soft.parse().ok()?,
            }),
            _ => None,
        }
    }

    /// The smaller one; 0 stands for none.
    fn least(&self) -> Option<u64> {
        let limits = [self.hard_bytes, self.soft_bytes].into_iter();
        limits.filter(|bytes| *bytes > 0).min()
    }
}

/// The backlog is all that a receiver can catch up with.
fn away(found: &mut Findings, redis: &Redis, replication: &Info, bytes_per_second: u64) {
    let name = format!("{} backlog", redis.name);
    if !replication.is_on("repl_backlog_active") {
        let section = match redis.name.rsplit_once('.') {
            Some((cluster, _)) if redis.is_cluster => cluster,
            _ => &redis.name,
        };
        return found.warn(
            &name,
            "none",
            "no replica is connected, and no receiver: what is written now is in backups alone",
            format!("pitr redis receive {section}"),
        );
    }
    let size: u64 = replication.number("repl_backlog_size").unwrap_or(0);
    let rate = format!("{}/s written", human::size(bytes_per_second));
    let kept = human::size(size);
    let Some(seconds) = size.checked_div(bytes_per_second) else {
        return found.ok(&name, format!("{kept}, nothing written"));
    };
    let time = human::duration(Duration::from_secs(seconds));
    let value = format!("{kept}, {rate}: a receiver may be away for {time}");
    match seconds < AWAY_MIN_SECONDS {
        true => found.warn(
            &name,
            value,
            "a receiver that is away for longer leaves a gap, up to the next backup",
            format!(
                "redis-cli CONFIG SET repl-backlog-size {} (an hour of this), and the same in redis.conf",
                bytes_per_second.saturating_mul(3600)
            ),
        ),
        false => found.ok(&name, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_replicas_is_read_by_both_of_its_names() {
        let least = |setting: &str| OutputLimit::read(setting).map(|limit| limit.least());
        let old = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        assert_eq!(least(old), Some(Some(67_108_864)));
        assert_eq!(least("replica 1000 0 0 normal 5 5 5"), Some(Some(1000)));
        assert_eq!(least("normal 1 1 1 replica 0 0 0"), Some(None));
        for strange in ["", "normal 1 1 1", "slave 1", "slave x 1 1"] {
            assert_eq!(least(strange), None, "{strange}");
        }
    }
}
