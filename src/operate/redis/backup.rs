//! The data set of a server, into the repository.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::cluster::{Learned, Live, Nodes, of_shard};
use super::receive::{origin, pause};
use super::{configured, connect, connect_to, identity, sentinels, server};
use crate::backup::content::{self, Options};
use crate::config::{self, Redis, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::counters;
use crate::operate::session::Session;
use crate::redis::info::REPLICA;
use crate::redis::kind::{Base, NAME};
use crate::redis::member::Member;
use crate::redis::source::no_backup;
use crate::repo::clock;
use crate::repo::event::Writer;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;
use crate::repo::slot_map::{self, Seen};
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::writer;

/// The level of zstd: higher ones are slower than a server sends.
const ZSTD_LEVEL: i32 = 1;
/// How long after the first look at a cluster's nodes the second one is.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The operator's request.
pub struct Asked<'a> {
    /// Name of the server.
    pub name: &'a str,
    /// A text to recognise the backup by.
    pub label: String,
    /// A name under which another server was backed up goes on with this one.
    pub takes_over: bool,
    /// It is the master's, also where a replica is preferred: that may be behind.
    pub of_master: bool,
}

/// A backup that was taken.
pub struct Taken {
    pub root: AuxRoot,
    /// The facts of its data set.
    pub member: Member,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
    /// Things that the operator should know.
    pub warnings: Vec<String>,
}

/// Takes the data set into the first repository.
///
/// # Errors
/// `Config` for a name that is not configured; those of the server, and of [`content::take`]. Nothing of the backup is visible then.
pub fn run(session: &Session, asked: Asked<'_>) -> Result<Taken> {
    let settings = session.settings_with_repositories()?;
    let wanted = server(&settings, asked.name)?;
    counted(session, &settings, (wanted, None), asked)
}

/// A shard, and its backup.
pub type OfShard = (String, Taken);

/// Takes the data set of each shard of a cluster into the first repository, one after the other.
///
/// # Errors
/// Those of [`run`], with the shard; the other shards' backups exist then. `Refused` for another cluster than before.
pub fn of_cluster(session: &Session, asked: &Asked<'_>) -> Result<Vec<OfShard>> {
    let settings = session.settings_with_repositories()?;
    let section = configured(&settings, asked.name)?;
    let first = settings.first_repository()?;
    let live = Live::new(session, section, &settings, asked.takes_over)?;
    let mut nodes = Nodes::new(&live);
    let mut look = || -> Result<(Learned, Vec<OfSlots>)> {
        let accounts = nodes.all(&mut || session.host.check_stop())?;
        let learned = live.learn_all(&accounts);
        let gone = live.gone(&accounts, &learned);
        Ok((learned, gone))
    };
    let (mut learned, mut gone) = look().map_err(no_backup)?;
    if asked.takes_over {
        // That a shard is gone is believed when all say it twice.
        pause(&|| session.host.check_stop(), LOOK_AGAIN);
        let again = look().map_err(no_backup)?;
        learned = again.0;
        gone.extend(again.1);
        for seen in &gone {
            if let Err(e) = record(session, (&live, first), seen) {
                let name = &seen.0;
                session.warn(&format!("that shard {name} is gone is not recorded: {e}"));
            }
        }
    }
    if let Some(e) = learned.nameless {
        return Err(no_backup(e));
    }
    let (mut taken, mut failure) = (Vec::new(), None);
    for shard in &learned.shards {
        let name = shard.name.as_str();
        let redis = live.section_of(name);
        let own = Asked {
            name,
            label: asked.label.clone(),
            ..*asked
        };
        let seen = learned.seen.iter().find(|(of, _)| of == name);
        let silent = || err!(Unreachable, "the owner of its slots did not name them");
        let done = seen
            .ok_or_else(silent)
            .and_then(|seen| record(session, (&live, first), seen))
            .and_then(|()| counted(session, &settings, (&redis, Some(&live)), own));
        match done {
            Ok(done) => taken.push((name.to_owned(), done)),
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => failure = failure.or(Some(of_shard(name, e))),
        }
    }
    let done = taken.len();
    let told = |e: Error| e.hint_last(&format!("The backups of {done} other shards exist."));
    failure.map_or(Ok(taken), |e| Err(told(e)))
}

/// A shard, and its slots.
type OfSlots = (String, Seen);

/// Records the slots of a shard, as its owner named them, or that it has none.
fn record(
    session: &Session,
    (live, first): (&Live<'_>, &config::Repository),
    (name, seen): &OfSlots,
) -> Result<()> {
    let scope = Scope::aux(NAME, name)?;
    let repository = session.open(first)?;
    clock::check(repository.store(), session.host.now())?;
    let writer = Writer::of(&session.host);
    let confirmed = live.takes_over.then_some(&writer);
    origin(session, &live.section_of(name), &scope).require(&repository, confirmed)?;
    let event = slot_map::event(&writer, seen.clone());
    slot_map::write(repository.store(), &scope, &event)
}

/// The section of a server; or the one that stands for a shard, and its cluster.
pub(super) type Server<'s> = (&'s Redis, Option<&'s Live<'s>>);

/// Takes the data set of a server, and counts that.
///
/// # Errors
/// Those of [`run`].
pub(super) fn counted(
    session: &Session,
    settings: &Settings,
    server: Server<'_>,
    asked: Asked<'_>,
) -> Result<Taken> {
    let first = settings.first_repository()?;
    let label = counters::of_content("redis", asked.name, first);
    let is_connecting = Cell::new(false);
    let work = || take(session, settings, server, asked, &is_connecting);
    counters::counted_by(
        (session, settings),
        &label,
        work,
        |taken| taken.root.head.backup_kind,
        |e| Some(reason(e.code(), is_connecting.get())),
    )
}

/// The reason of a failure: a server that does not answer is no trouble of the repository.
fn reason(code: Code, is_connecting: bool) -> &'static str {
    match code {
        Code::Unreachable | Code::Deadline | Code::Io if is_connecting => "server",
        _ => counters::reason(code),
    }
}

/// Takes the data set. `is_connecting` tells whether an error came before the server was ready.
fn take(
    session: &Session,
    settings: &Settings,
    (wanted, live): Server<'_>,
    asked: Asked<'_>,
    is_connecting: &Cell<bool>,
) -> Result<Taken> {
    let configured = settings.first_repository()?;
    let repository = session.open_for_backup(configured)?;
    is_connecting.set(true);
    let host = &session.host;
    let began = host.now();
    let started = Instant::now();
    let prefers_replica = wanted.sentinel.is_replica_preferred && !asked.of_master;
    let mut tick = || host.check_stop();
    let source = match live {
        Some(live) => live.connect(&wanted.name, &mut tick),
        None if prefers_replica => sentinels::connect(wanted, true, &mut tick),
        None => connect(session, wanted),
    };
    let source = source.map_err(no_backup)?;
    let lacks_replica = prefers_replica && source.role() != REPLICA;
    source.check_ready().map_err(no_backup)?;
    is_connecting.set(false);
    let is_alone = source.is_shard() && live.is_none();
    let address = source.connection.address().clone();
    let mut base = Base {
        source,
        again: &|tick| connect_to(wanted, &address, tick),
        identity: identity(wanted),
        way: wanted.source,
        directory: wanted.service.data_directory.clone(),
        member: None,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let codec = FrameCodec::Zstd(ZSTD_LEVEL);
    let options = Options {
        label: asked.label,
        snapshot: writer::Options::new(codec, threads, host.scratch.clone()),
        is_full: true,
        takes_over: asked.takes_over,
        began,
    };
    let taken = content::take(&repository, asked.name, &mut base, &options, host)?;
    let member = base.member.take();
    let member = member.ok_or_else(|| err!(Internal, "the data set has no facts"))?;
    Ok(Taken {
        root: taken.root,
        warnings: warnings(&member, is_alone, lacks_replica),
        member,
        repository: configured.name.clone(),
        took: started.elapsed(),
    })
}

fn warnings(member: &Member, is_alone: bool, lacks_replica: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if !member.has_checksum {
        warnings.push("the server writes no checksum (rdbchecksum no): damage on its way here would not have been found".to_owned());
    }
    if lacks_replica {
        warnings.push("no replica was fit: the master forked for the backup".to_owned());
    }
    if is_alone {
        warnings.push("the server is one shard of a cluster: the backup has the keys of its slots alone (cluster = true in its section takes all shards)".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_no_trouble_of_the_repository() {
        assert_eq!(reason(Code::Unreachable, true), "server");
        assert_eq!(reason(Code::Unreachable, false), "repository");
        assert_eq!(reason(Code::Config, true), "config");
        assert_eq!(reason(Code::Interrupted, true), "interrupted");
    }
}
