//! The data set of a server, into the repository.

use std::time::{Duration, Instant};

use super::{configured, connect, identity, sentinels};
use crate::backup::content::{self, Options};
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::operate::counters;
use crate::operate::session::Session;
use crate::redis::kind::Base;
use crate::redis::member::Member;
use crate::redis::source::{REPLICA, no_backup};
use crate::repo::root::aux_root::AuxRoot;
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::writer;

/// The level of zstd: higher ones are slower than a server sends.
const ZSTD_LEVEL: i32 = 1;

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
    /// Its root.
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
    let first = settings.first_repository()?;
    let label = counters::of_content("redis", asked.name, first);
    let work = || take(session, &settings, asked);
    counters::counted((session, &settings), &label, work, |taken| {
        taken.root.head.backup_kind
    })
}

fn take(session: &Session, settings: &Settings, asked: Asked<'_>) -> Result<Taken> {
    let wanted = configured(settings, asked.name)?;
    let configured = settings.first_repository()?;
    let repository = session.open(configured)?;
    let host = &session.host;
    let began = host.now();
    let started = Instant::now();
    let prefers_replica = wanted.sentinel.is_replica_preferred && !asked.of_master;
    let source = match prefers_replica {
        true => sentinels::connect(wanted, true, &mut || host.check_stop()),
        false => connect(session, wanted),
    };
    let source = source.map_err(no_backup)?;
    let lacks_replica = prefers_replica && source.role() != REPLICA;
    source.check_ready().map_err(no_backup)?;
    let is_shard = source.is_shard();
    let mut base = Base {
        source,
        identity: identity(wanted),
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
        warnings: warnings(&member, is_shard, lacks_replica),
        member,
        repository: configured.name.clone(),
        took: started.elapsed(),
    })
}

fn warnings(member: &Member, is_shard: bool, lacks_replica: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if !member.has_checksum {
        warnings.push("the server writes no checksum (rdbchecksum no): damage on its way here would not have been found".to_owned());
    }
    if lacks_replica {
        warnings.push("no replica was fit: the master forked for the backup".to_owned());
    }
    if is_shard {
        warnings.push(
            "the server is one shard of a cluster: the backup has the keys of its slots alone"
                .to_owned(),
        );
    }
    warnings
}
