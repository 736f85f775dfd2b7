//! A base backup of the running cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::{self, Label};
use super::session::Session;
use crate::backup::backoff::HeldBack;
use crate::backup::kind::Wish;
use crate::backup::live::LiveServer;
use crate::backup::local::Local;
use crate::backup::producer::Producer;
use crate::backup::resume::TakenOver;
use crate::backup::stream::Streamed;
use crate::backup::{self, Options};
use crate::config::{Cluster, Repository, Settings};
use crate::error::{Code, Error, Result};
use crate::repo::epochs::{self, Sealing};
use crate::repo::repository::Repository as Opened;
use crate::repo::root::BackupRoot;
use crate::repo::root::cluster::Method;
use crate::wire::conninfo::{self, ConnInfo};

/// A backup that was taken.
pub struct Taken {
    pub root: BackupRoot,
    /// Why it is of its kind, where something else than the command line decided it.
    pub why: Option<String>,
    /// Cost of slowing down for the server; none if that is not configured.
    pub held_back: Option<HeldBack>,
    /// The interrupted backups that it went on from.
    pub taken_over: Vec<TakenOver>,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
}

/// Takes a backup into the first repository, and reads the files by `method`. The configuration decides the kind where no wish does.
///
/// # Errors
/// `Config` without a repository; those of [`backup::take`].
pub fn run(session: &Session, method: Method, options: Options) -> Result<Taken> {
    run_unless(session, method, options, |_| false)
}

/// As [`run`], where another backup that runs is an answer and no failure: it is not counted.
///
/// # Errors
/// Those of [`run`]; `Locked` while another backup of the cluster runs.
pub fn run_if_free(session: &Session, method: Method, options: Options) -> Result<Taken> {
    run_unless(session, method, options, |e| e.code() == Code::Locked)
}

fn run_unless(
    session: &Session,
    method: Method,
    options: Options,
    is_no_attempt: fn(&Error) -> bool,
) -> Result<Taken> {
    let settings = session.settings()?;
    let cluster = settings.cluster()?;
    let configured = settings.first_repository()?;
    let wish = options.wish.or(cluster.full_every.map(Wish::FullEvery));
    let label = Label {
        kind: expected(wish).to_owned(),
        ..counters::of_content("postgres", cluster.name.as_str(), configured)
    };
    let options = Options { wish, ..options };
    let work = || take(session, &settings, (&cluster, configured), method, options);
    let kind = |taken: &Taken| taken.root.head.backup_kind;
    counters::counted_unless((session, &settings), &label, work, kind, is_no_attempt)
}

/// The kind that is counted where a backup fails.
fn expected(wish: Option<Wish>) -> &'static str {
    match wish {
        None | Some(Wish::Full) => "full",
        Some(Wish::Incremental | Wish::FullEvery(_)) => "incr",
    }
}

/// Says that the epoch in which this host seals is not that of the repository. Nothing that a repository shows stops a backup.
fn warn_of_epoch(session: &Session, repository: &Opened) {
    let Some(keys) = repository.keys() else {
        return;
    };
    let later = epochs::later(repository.store(), keys.mac.as_ref());
    match later.ok().and_then(|later| epochs::sealing(keys, &later)) {
        Some(Sealing::Former { own, newest }) => session.warn(&format!(
            "the key set has epoch {newest}, and this host seals in epoch {own}: put the current writer.key in the place of key_set"
        )),
        Some(Sealing::Unreadable { own, .. }) => session.warn(&format!(
            "this host seals in epoch {own} of the key set, and the repository does not have it, or has another pair in it: give it the epoch by pitr repo rotate, with the current writer.key in its directory"
        )),
        _ => {}
    }
}

fn take(
    session: &Session,
    settings: &Settings,
    (cluster, configured): (&Cluster, &Repository),
    method: Method,
    options: Options,
) -> Result<Taken> {
    let repository = session.open_for_backup(configured)?;
    warn_of_epoch(session, &repository);
    if settings.repositories.len() > 1 {
        session.note(&format!(
            "the backup goes into repository \"{}\" alone, the first one configured: --repository NAME chooses another",
            configured.name
        ));
    }
    let conninfo = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    let info = ConnInfo::resolve(conninfo, &conninfo::Environment::of_process())?;
    let host = &session.host;
    let mut server =
        LiveServer::connect(&info, Arc::clone(&host.progress), Arc::clone(&host.stop))?;
    let mut producer: Box<dyn Producer> = match method {
        Method::Stream => Box::<Streamed>::default(),
        Method::Local => Box::new(Local::new(cluster.pgdata.clone())),
    };
    let options = Options {
        backoff: cluster.backoff,
        ..options
    };
    let started = Instant::now();
    let taken = backup::take(
        &repository,
        cluster.name.as_str(),
        &mut server,
        producer.as_mut(),
        &options,
        host,
    )?;
    Ok(Taken {
        root: taken.root,
        why: taken.why,
        held_back: taken.held_back,
        taken_over: taken.taken_over,
        repository: configured.name.clone(),
        took: started.elapsed(),
    })
}
