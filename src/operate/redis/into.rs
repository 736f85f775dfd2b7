//! A data set put into a server that runs.
//!
//! A scratch server loads the restored data set, and the running server becomes its replica until both have the same; then it is its own master again. It
//! changes from the old data set to the new one at once, with times to live, and no command of ours writes a key.
//!
//! Order: look → plan → restore aside → backup of what is there → settings → REPLICAOF → in step → REPLICAOF NO ONE → settings back → on disk. Every error undoes
//! what was begun with the running server, on a new connection, whether the operator wants to stop or not.
//!
//! Redis: src/replication.c (replicaofCommand, readSyncBulkPayload), src/rdb.c (rdbLoadRioWithLoadingCtx ends the server for a database that it has not).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::scratch::{Folder, Scratch};
use super::{backup, connect, connect_while, on_disk, restore, scratch, sentinels, server};
use crate::config::{Redis, RedisAddress, RedisSource, Secret};
use crate::err;
use crate::error::{Error, Result};
use crate::fault;
use crate::operate::session::Session;
use crate::redis::info::Info;
use crate::redis::member::Member;
use crate::redis::route::{Moment, Target};
use crate::redis::source::Source;
use crate::redis::version::ServerVersion;
use crate::repo::id::BackupId;

/// For so long it is tried to make the server its own master again.
const PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(100);
/// A master writes this into its history while it has replicas (`*1 $4 PING`), and so often without a setting.
const PING_BYTES: u64 = 14;
const PING_SECONDS: u64 = 10;
/// A replica that asks so often for the data set does not take it.
const TRANSFERS_MAX: u64 = 3;
/// Settings of the running server while it is a replica; `slave-read-only` is the name before Redis 5.
const SETTINGS: [&str; 4] = [
    "masteruser",
    "masterauth",
    "replica-read-only",
    "slave-read-only",
];
const UNCHANGED: &str = "The server was not changed.";

/// The operator's request.
pub struct Asked<'a> {
    /// Name of the data set.
    pub name: &'a str,
    /// The section of the running server.
    pub into: &'a str,
    /// The backup; none: the newest.
    pub backup: Option<&'a BackupId>,
    /// The moment to which the log is replayed upon it; none: none of it is.
    pub target: Option<Target>,
    /// A backup of what is there is taken first.
    pub is_safe: bool,
    /// All keys of the server may be replaced.
    pub is_confirmed: bool,
    /// Nothing is written.
    pub is_dry_run: bool,
}

impl<'a> Asked<'a> {
    /// The restore of the data set into a folder, at first as a plan.
    pub(super) fn wanted(&self, to: &'a Path) -> restore::Asked<'a> {
        restore::Asked {
            name: self.name,
            to,
            backup: self.backup,
            target: self.target.clone(),
            as_replica: false,
            server_version: None,
            is_dry_run: true,
        }
    }
}

/// A server whose keys were replaced, or would be.
pub struct Replaced {
    /// The plan of the data set.
    pub restored: restore::Restored,
    /// The version of the running server.
    pub server: ServerVersion,
    /// Its replicas and receivers: they follow it with the new data set.
    pub replicas: u64,
    /// The backup of what was there.
    pub safety: Option<BackupId>,
    /// Keys that it had.
    pub keys_before: u64,
    /// Keys that it has; none in a dry run.
    pub keys: Option<u64>,
}

/// Puts a data set into a running server.
///
/// # Errors
/// `Refused` without the confirmation, and for a server that cannot be replaced so; those of the backup, of the restore and of both servers. The hint says in which
/// state the running server is.
pub fn run(session: &Session, asked: &Asked<'_>) -> Result<Replaced> {
    let settings = session.settings_with_repositories()?;
    let redis = server(&settings, asked.into)?;
    let mut tick = || session.host.check_stop();
    let mut running = connect(session, redis).map_err(unchanged)?;
    check(&mut running, redis).map_err(unchanged)?;
    if asked.is_safe && redis.source != RedisSource::Psync {
        return Err(err!(
            Refused,
            "a backup of [redis.{}] has no position (source): nothing tells whether something was written behind it",
            redis.name
        )
        .hint(format!("{UNCHANGED}\nStop what writes there, take the backup, and add --no-safety: pitr redis backup {}", redis.name)));
    }
    let folder = Folder::new(&session.host)?;
    let data = folder.data();
    let mut wanted = asked.wanted(&data);
    let (planned, version) = plan(session, &wanted, &running.version)?;
    let keys_before = count(&running.info);
    let mut replaced = Replaced {
        server: running.version.clone(),
        replicas: number(&running.info, "connected_slaves"),
        safety: None,
        keys_before,
        keys: None,
        restored: planned,
    };
    if asked.is_dry_run {
        return Ok(replaced);
    }
    if !asked.is_confirmed {
        return Err(err!(
            Refused,
            "{} at {} has {keys_before} keys, all of which would be replaced",
            running.version,
            redis.place()
        )
        .hint(format!(
            "{UNCHANGED}\nStop what writes there, and add --confirm."
        )));
    }
    // A receiver goes on meanwhile.
    wanted.backup = Some(&replaced.restored.id);
    wanted.target = pinned(&replaced.restored);
    wanted.is_dry_run = false;
    restore::run(session, &wanted).map_err(unchanged)?;
    session.host.progress.phase("load the data set", None);
    let ip = running.connection.own_ip();
    let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut scratch = Scratch::start(folder, &version, ip, &session.host).map_err(unchanged)?;
    fits(&mut running, &mut scratch, &mut tick).map_err(unchanged)?;
    if asked.is_safe {
        session.host.progress.phase("back up what is there", None);
        let before = Instant::now();
        let gone = gone(&running.ask("stats", &mut tick).map_err(unchanged)?);
        let taken = safety(session, asked)?;
        fault::pause("redis-into");
        let since = (before, gone);
        require_unwritten(session, &mut running, &taken.member, since).map_err(unchanged)?;
        replaced.safety = Some(taken.root.head.id);
    }
    let work = Work { session, redis, ip };
    replaced.keys = Some(work.replace(&mut running, &mut scratch, &replaced)?);
    session.host.progress.phase("wait for the disk", None);
    on_disk::require(&mut running, redis.stall_timeout, &mut tick)?;
    Ok(replaced)
}

/// Plans a data set that a scratch server loads, and the running server from that: nothing is written yet.
pub(super) fn plan(
    session: &Session,
    wanted: &restore::Asked<'_>,
    running: &ServerVersion,
) -> Result<(restore::Restored, ServerVersion)> {
    let planned = restore::run(session, wanted)?;
    let Some(version) = planned.target.clone() else {
        return Err(err!(
            SourceMissing,
            "no redis-server or valkey-server is on the search path to load the data set"
        )
        .hint(format!(
            "{UNCHANGED}\nInstall one, or name its folder in PATH."
        )));
    };
    if !running.can_follow(&version) {
        return Err(err!(
            Refused,
            "{running} cannot load what {version} writes, which is on the search path"
        )
        .hint(format!(
            "{UNCHANGED}\nPut the programs of {running} first in PATH, if they load the data set."
        )));
    }
    scratch::require_modules(session, &planned.member)?;
    Ok((planned, version))
}

/// Requires a server that can become the replica of another one.
fn check(running: &mut Source, redis: &Redis) -> Result<()> {
    let mut never = || Ok(());
    require_master(running)?;
    if running.is_shard() {
        return Err(err!(
            Refused,
            "the server is one shard of a cluster, which takes no other master"
        )
        .hint("Restore with --to, and start a cluster with the directories."));
    }
    if redis.address.is_none() || sentinels::are_watching(running, &mut never)? {
        return Err(err!(
            Refused,
            "Sentinels watch the server, and would take its new master for a mistake"
        )
        .hint("Have each Sentinel forget it (SENTINEL REMOVE NAME), run the command again, and then have them watch it (SENTINEL MONITOR)."));
    }
    let is_tls = running.setting("tls-replication", &mut never)?;
    let is_tls = is_tls.is_some_and(|value| value.expose() == "yes");
    if is_tls || (redis.access.tls.ca_file.is_some() && running.connection.own_ip().is_some()) {
        return Err(err!(
            Unsupported,
            "the server is reached by TLS, and its replication would not be"
        )
        .hint("Restore with --to, and have the server load the directory."));
    }
    Ok(())
}

/// Requires a server that is ready, and no replica.
pub(super) fn require_master(running: &Source) -> Result<()> {
    running.check_ready()?;
    if running.role() == "master" {
        return Ok(());
    }
    let master = running.info.field("master_host").unwrap_or("?");
    Err(err!(
        Refused,
        "the server is a replica of {}",
        master.escape_debug()
    )
    .hint("Name the master: its replicas follow it."))
}

/// Requires that the running server can hold what the scratch server has: some of it would make the server end.
fn fits(
    running: &mut Source,
    scratch: &mut Scratch,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut limit = |name: &'static str| -> Result<Option<u64>> {
        let value = running.setting(name, tick)?;
        Ok(value.and_then(|value| value.expose().parse().ok()))
    };
    let (databases, memory) = (limit("databases")?, limit("maxmemory")?);
    let last = scratch.source.info.keyspace().last().map(|last| last.db);
    if let Some((last, databases)) = last.zip(databases)
        && u64::from(last) >= databases
    {
        return Err(err!(
            Refused,
            "the data set has keys in database {last}, and the server has {databases} databases"
        )
        .hint("Raise databases in redis.conf, and start the server again."));
    }
    let used = number(&scratch.ask("memory", tick)?, "used_memory_dataset");
    if let Some(memory) = memory.filter(|memory| (1..used).contains(memory)) {
        return Err(err!(
            Refused,
            "the data set takes {used} bytes, and maxmemory of the server is {memory}"
        )
        .hint("The server would evict keys. Raise maxmemory."));
    }
    match running.info.lacking(&scratch.source.info.modules) {
        Some(module) => Err(err!(
            Refused,
            "the server has not module {}, version {} or newer",
            module.name.escape_debug(),
            module.version
        )
        .hint("Load it, and run the command again.")),
        None => Ok(()),
    }
}

/// Takes a backup of what is there.
pub(super) fn safety(session: &Session, asked: &Asked<'_>) -> Result<backup::Taken> {
    let request = backup::Asked {
        name: asked.into,
        label: format!("before a restore of {}", asked.name),
        takes_over: false,
        of_master: true,
    };
    backup::run(session, request).map_err(|e| {
        let e = e.context("back up what is there");
        let hint = e.hint_text().unwrap_or_default().to_owned();
        unchanged(e.hint(format!("{hint}\n--no-safety goes on without it.")))
    })
}

/// Keys that ended by themselves: the server replicates that as it does what is written.
fn gone(stats: &Info) -> u64 {
    number(stats, "expired_keys") + number(stats, "evicted_keys")
}

/// Requires that nothing was written since the backup of what is there.
fn require_unwritten(
    session: &Session,
    running: &mut Source,
    backup: &Member,
    (before, gone_before): (Instant, u64),
) -> Result<()> {
    let mut tick = || session.host.check_stop();
    let period = running.setting("repl-ping-replica-period", &mut tick)?;
    let period = period.and_then(|value| value.expose().parse().ok());
    let pings = before.elapsed().as_secs() / period.unwrap_or(PING_SECONDS).max(1) + 2;
    let now = running.ask("replication", &mut tick)?;
    if !is_written(backup, &now, pings) {
        return Ok(());
    }
    if gone(&running.ask("stats", &mut tick)?) != gone_before {
        session.warn("keys of the server ended since its backup began: nothing tells whether something was written, too");
        return Ok(());
    }
    Err(err!(
        Refused,
        "something was written to the server since its backup, and would be lost"
    )
    .hint("Stop what writes there, and run the command again. --no-safety loses what is there."))
}

/// Whether the server's history went on by more than so many pings.
fn is_written(backup: &Member, now: &Info, pings: u64) -> bool {
    if now.field("master_replid") != Some(backup.replid.as_str()) {
        return true;
    }
    let moved = number(now, "master_repl_offset").saturating_sub(backup.offset);
    !moved.is_multiple_of(PING_BYTES) || moved / PING_BYTES > pings
}

/// The moment that was planned, exactly.
fn pinned(planned: &restore::Restored) -> Option<Target> {
    let (replid, offset) = planned.route.as_ref()?.end()?;
    Some(Target {
        moment: Moment::Position(offset),
        replid: Some(replid.to_owned()),
    })
}

struct Work<'w> {
    session: &'w Session,
    redis: &'w Redis,
    ip: IpAddr,
}

impl Work<'_> {
    /// Has the server copy the scratch server, and makes it its own master again whatever happens. Returns how many keys it has.
    fn replace(
        &self,
        running: &mut Source,
        scratch: &mut Scratch,
        replaced: &Replaced,
    ) -> Result<u64> {
        let mut tick = || self.session.host.check_stop();
        let mut former = Vec::new();
        for name in SETTINGS {
            if let Some(value) = running.setting(name, &mut tick).map_err(unchanged)? {
                former.push((name, value));
            }
        }
        self.session.host.progress.note(&format!(
            "from here on the server is a replica for a while. If this command is killed, the server stays one. {}",
            self.by_hand()
        ));
        self.session.host.progress.phase("replace the keys", None);
        let followed = self.follow(running, scratch, &former);
        let released = self.release(&former);
        match (followed, released) {
            (Ok(()), Ok(info)) => Ok(count(&info)),
            (Ok(()), Err(e)) => Err(self.left(e)),
            (Err(e), Ok(info)) => Err(undone(e, &info, self.redis, replaced)),
            (Err(first), Err(e)) => Err(self.left(e.context(first.to_string()))),
        }
    }

    fn follow(
        &self,
        running: &mut Source,
        scratch: &mut Scratch,
        former: &[(&'static str, Secret)],
    ) -> Result<()> {
        let mut tick = || self.session.host.check_stop();
        let password = Secret::new(scratch.password.expose().to_owned());
        for (name, _) in former {
            let value = match *name {
                "masterauth" => password.expose(),
                "masteruser" => "",
                _ => "yes",
            };
            set(running, name, value, &mut tick)?;
        }
        let (ip, port) = (self.ip.to_string(), scratch.port.to_string());
        let words: [&[u8]; 3] = [replica_of(running), ip.as_bytes(), port.as_bytes()];
        running.connection.ask(&words, &mut tick)?;
        self.wait(running, scratch)
    }

    /// Waits until both have the same.
    fn wait(&self, running: &mut Source, scratch: &mut Scratch) -> Result<()> {
        let mut tick = || self.session.host.check_stop();
        let (mut since, mut last) = (Instant::now(), String::new());
        loop {
            tick()?;
            scratch.check()?;
            let master = scratch.ask("replication", &mut tick)?;
            let transfers = scratch.ask("stats", &mut tick)?;
            if number(&transfers, "sync_full") > TRANSFERS_MAX {
                return Err(
                    err!(Server, "the server does not take the data set").hint("Its log says why.")
                );
            }
            let replica = running.ask("replication", &mut tick)?;
            if is_in_step(&replica, &master) {
                return self.compare(running, scratch);
            }
            let loading = running.ask("persistence", &mut tick)?;
            let state = format!(
                "{:?} {:?} {:?} {:?}",
                replica.field("master_link_status"),
                replica.field("slave_repl_offset"),
                replica.field("slave_read_repl_offset"),
                (
                    replica.field("master_sync_read_bytes"),
                    loading.field("loading_loaded_bytes")
                ),
            );
            if state != last {
                (since, last) = (Instant::now(), state);
            }
            if since.elapsed() > self.redis.stall_timeout {
                return Err(err!(
                    Deadline,
                    "the server has not come on for {} s as a replica of {} port {}",
                    self.redis.stall_timeout.as_secs(),
                    self.ip,
                    scratch.port
                )
                .hint("The server has to reach this host at that address: a firewall or a network of its own may be between them. stall_timeout sets how long that is borne."));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Compares what both have: keys with a time to live may end meanwhile.
    fn compare(&self, running: &mut Source, scratch: &mut Scratch) -> Result<()> {
        let mut tick = || self.session.host.check_stop();
        let ours = scratch.ask("keyspace", &mut tick)?.lasting_keys();
        let theirs = running.ask("keyspace", &mut tick)?.lasting_keys();
        match ours == theirs {
            true => Ok(()),
            false => Err(err!(
                Server,
                "the server has {theirs} keys without a time to live, and the data set {ours}"
            )
            .hint("Somebody writes there, or the server is no plain replica.")),
        }
    }

    /// Makes the server its own master again, by a new connection, and puts its settings back.
    fn release(&self, former: &[(&'static str, Secret)]) -> Result<Info> {
        let mut began = Instant::now();
        loop {
            match self.try_release(former) {
                Ok(info) => return Ok(info),
                // A server that loads takes no such command, and comes to an end with it.
                Err(e) if e.message().contains("loading") => {
                    began = Instant::now();
                    std::thread::sleep(GLANCE);
                }
                Err(e) if began.elapsed() > PATIENCE => return Err(e),
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    fn try_release(&self, former: &[(&'static str, Secret)]) -> Result<Info> {
        // The operator's wish to stop is no reason to leave the server like this.
        let began = Instant::now();
        let mut tick = || match began.elapsed() > self.redis.stall_timeout.max(PATIENCE) {
            true => Err(err!(Deadline, "the server does not answer")),
            false => Ok(()),
        };
        let mut running = connect_while(self.redis, &mut tick)?;
        let words: [&[u8]; 3] = [replica_of(&running), b"NO", b"ONE"];
        running.connection.ask(&words, &mut tick)?;
        for (name, value) in former {
            set(&mut running, name, value.expose(), &mut tick)?;
        }
        let role = running.ask("replication", &mut tick)?;
        if role.field("role") != Some("master") {
            return Err(err!(Server, "the server is still a replica"));
        }
        running.ask("keyspace", &mut tick)
    }

    /// The line that makes the server its own master.
    fn line(&self) -> String {
        let way = match &self.redis.address {
            Some(RedisAddress::Unix(path)) => format!("-s {}", path.display()),
            Some(RedisAddress::Tcp { host, port }) => format!("-h {host} -p {port}"),
            None => String::new(),
        };
        format!("redis-cli {way} REPLICAOF NO ONE")
    }

    /// The error of a server that could not be made its own master.
    fn left(&self, error: Error) -> Error {
        error
            .context(format!(
                "THE SERVER AT {} IS LEFT AS A REPLICA OF A SCRATCH SERVER THAT IS GONE, AND TAKES NO WRITES",
                self.redis.place()
            ))
            .hint(self.by_hand())
    }

    /// The steps that make a server that was left as a replica what it was.
    fn by_hand(&self) -> String {
        format!(
            "Make it its own master again: {}\nThen put masterauth, masteruser and replica-read-only back as redis.conf has them (CONFIG SET), or start the server again.",
            self.line()
        )
    }
}

fn set(
    running: &mut Source,
    name: &str,
    value: &str,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let words: [&[u8]; 4] = [b"CONFIG", b"SET", name.as_bytes(), value.as_bytes()];
    running.connection.ask(&words, tick).map(|_| ())
}

fn replica_of(running: &Source) -> &'static [u8] {
    match running.version.replica_setting() {
        "slaveof" => b"SLAVEOF",
        _ => b"REPLICAOF",
    }
}

fn is_in_step(replica: &Info, master: &Info) -> bool {
    let is_up = replica.field("master_link_status") == Some("up")
        && !replica.is_on("master_sync_in_progress");
    let is_same = replica.field("master_replid") == master.field("master_replid");
    is_up && is_same && number(replica, "slave_repl_offset") >= number(master, "master_repl_offset")
}

pub(super) fn number(info: &Info, name: &str) -> u64 {
    info.number(name).unwrap_or(0)
}

fn count(info: &Info) -> u64 {
    info.keyspace().iter().map(|db| db.keys).sum()
}

/// Adds to an error that the running server is as it was.
pub(super) fn unchanged(error: Error) -> Error {
    error.hint_first(UNCHANGED)
}

/// Adds to an error that the server was made its own master again, and what it has.
fn undone(error: Error, info: &Info, redis: &Redis, replaced: &Replaced) -> Error {
    let mut hint = format!(
        "The server is its own master again and takes writes, with its former settings. It has {} keys; it had {}.",
        count(info),
        replaced.keys_before
    );
    if let Some(id) = &replaced.safety {
        hint += &format!(
            "\nWhat it had is in a backup: pitr redis restore {0} --backup {id} --into {0} --confirm",
            redis.name
        );
    }
    error.hint_first(&hint)
}
