//! Dumps of a cluster's databases, into the repository.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{configured, folders};
use crate::backup::content::{self, Options};
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::logical::kind::{Dumping, READERS, Tools};
use crate::logical::member::Member;
use crate::logical::source::Source;
use crate::logical::tool::Tool;
use crate::operate::counters;
use crate::operate::session::Session;
use crate::pg::version::Major;
use crate::repo::root::aux_root::AuxRoot;
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::writer;
use crate::tree::walk;

/// The operator's request.
pub struct Asked<'a> {
    /// Name of the set of dumps.
    pub name: &'a str,
    /// A text to recognise the backup by.
    pub label: String,
    /// Connections of each dump, in place of the configured number.
    pub jobs: Option<u16>,
    /// A name that another cluster wrote goes on with this one.
    pub takes_over: bool,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<&'a Path>,
}

/// A backup that was taken.
pub struct Taken {
    pub root: AuxRoot,
    /// The facts of its dumps.
    pub member: Member,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
}

/// Dumps the databases into the first repository.
///
/// # Errors
/// `Config` for a name or cluster that is not configured; `NotFound` without PostgreSQL's programs; those of the server, of the programs, and of
/// [`content::take`]. Nothing of the backup is visible then.
pub fn run(session: &Session, asked: Asked<'_>) -> Result<Taken> {
    let settings = session.settings_with_repositories()?;
    let first = settings.first_repository()?;
    let label = counters::of_content("logical", asked.name, first);
    let work = || take(session, &settings, asked);
    counters::counted((session, &settings), &label, work, |taken| {
        taken.root.head.backup_kind
    })
}

fn take(session: &Session, settings: &Settings, asked: Asked<'_>) -> Result<Taken> {
    let wanted = configured(settings, asked.name)?;
    let name = &wanted.name;
    let Some(cluster) = &wanted.cluster else {
        return Err(err!(Config, "[logical.{name}] names no cluster")
            .hint("Nothing was stored. Add cluster = \"NAME\", a cluster of the configuration."));
    };
    let section = format!("logical.{name}");
    let cluster = settings.cluster_named_in(&section, cluster, "conninfo")?;
    let configured = settings.first_repository()?;
    let repository = session.open_for_backup(configured)?;
    let conninfo = cluster.conninfo.as_ref().map_or("", |c| c.expose());
    let host = &session.host;
    let source = Source::connect(conninfo, &wanted.databases, &host.progress, &host.stop)?;
    let tools = tools(session, source.major, asked.bin)?;
    let is_sealed = repository.marker().key_set.is_some();
    if !is_sealed {
        session
            .note("password hashes of roles are left out, because the repository is not encrypted");
    } else if !source.is_superuser {
        session
            .note("password hashes of roles are left out, because only a superuser may read them");
    }
    let mut dumping = Dumping {
        source,
        tools,
        jobs: asked.jobs.map_or(wanted.jobs, u32::from),
        content: wanted.content,
        is_sealed,
        member: None,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut snapshot = writer::Options::new(FrameCodec::Lz4, threads, host.scratch.clone());
    snapshot.sinks = walk::sinks(READERS);
    let options = Options {
        label: asked.label,
        snapshot,
        is_full: true,
        takes_over: asked.takes_over,
        began: session.host.now(),
    };
    let started = Instant::now();
    let taken = content::take(&repository, asked.name, &mut dumping, &options, host)?;
    let member = dumping.member.take();
    Ok(Taken {
        root: taken.root,
        member: member.ok_or_else(|| err!(Internal, "the dumps have no facts"))?,
        repository: configured.name.clone(),
        took: started.elapsed(),
    })
}

/// The programs of one major that is at least the server's.
fn tools(session: &Session, server: Major, bin: Option<&Path>) -> Result<Tools> {
    let folders = folders(session, bin);
    let pg_dump = Tool::find("pg_dump", server, &folders)?;
    let same = |name: &str| Tool::find(name, pg_dump.major, &folders);
    Ok(Tools {
        pg_dumpall: same("pg_dumpall")?,
        pg_restore: same("pg_restore")?,
        pg_dump,
    })
}
