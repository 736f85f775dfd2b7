//! A backup of configuration files.

use std::time::{Duration, Instant};

use super::{configured, identity, recipients, sealing, wanted};
use crate::backup::configuration::collect::collect;
use crate::backup::configuration::{Configuration, NAME, Sealing};
use crate::backup::content::{self, Options};
use crate::config::Settings;
use crate::err;
use crate::error::Result;
use crate::operate::counters;
use crate::operate::session::Session;
use crate::repo::keyring::forbid_core_dumps;
use crate::repo::root::aux_root::AuxRoot;
use crate::repo::scope::Scope;
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::writer;
use crate::tree::left_out::LeftOut;

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Name of the set.
    pub name: String,
    /// A text to recognise the backup by.
    pub label: String,
    /// A name that another host wrote goes on with this one.
    pub takes_over: bool,
    /// Secrets may be stored where nothing is sealed.
    pub allow_plain: bool,
}

/// A backup that was taken.
pub struct Taken {
    pub root: AuxRoot,
    /// Files whose originals are kept apart.
    pub sealed_files: usize,
    /// Secrets in them.
    pub secrets: usize,
    /// Things that could not be read.
    pub left_out: LeftOut,
    /// The repository that has it.
    pub repository: String,
    /// How long it took.
    pub took: Duration,
}

/// Backs the files up, into the first repository.
///
/// # Errors
/// `Config` for a name that is not configured; `Refused` for a secret that nothing seals, and for a file that opens the repository; those of
/// [`content::take`]. Nothing of the backup is visible then.
pub fn run(session: &Session, asked: &Asked) -> Result<Taken> {
    let settings = session.settings_with_repositories()?;
    let first = settings.first_repository()?;
    let label = counters::of_content("config", &asked.name, first);
    let work = || take(session, &settings, asked);
    counters::counted((session, &settings), &label, work, |taken| {
        taken.root.head.backup_kind
    })
}

fn take(session: &Session, settings: &Settings, asked: &Asked) -> Result<Taken> {
    forbid_core_dumps()?;
    let set = configured(settings, &asked.name)?;
    let place = settings.first_repository()?;
    let repository = session.open_for_backup(place)?;
    let started = Instant::now();
    let is_encrypted = repository.marker().key_set.is_some();
    let wanted = wanted(session, settings, set)?;
    let mut kind = Configuration {
        scope: Scope::aux(NAME, &set.name)?.prefix(),
        identity: identity(set)?,
        collected: collect(&wanted, &session.host)?,
        sealing: sealing(place, is_encrypted, asked.allow_plain)?,
    };
    kind.check()?;
    if kind.collected.entries.iter().all(|e| e.content.is_none()) {
        let name = &set.name;
        return Err(
            err!(SourceMissing, "no file of \"{name}\" can be read").hint(format!(
                "Nothing was stored. Look at paths in [config.{name}]."
            )),
        );
    }
    if let Sealing::Pair(_) = kind.sealing {
        recipients::ensure(place, &repository)?;
    }
    let mut snapshot = writer::Options::new(FrameCodec::Lz4, 1, session.host.scratch.clone());
    snapshot.sinks = 1;
    let options = Options {
        label: asked.label.clone(),
        snapshot,
        is_full: true,
        takes_over: asked.takes_over,
        began: session.host.now(),
    };
    let taken = content::take(&repository, &set.name, &mut kind, &options, &session.host)?;
    let entries = kind.collected.entries.iter();
    let sealed = entries.filter(|e| !e.found.is_empty());
    Ok(Taken {
        root: taken.root,
        sealed_files: sealed.clone().count(),
        secrets: sealed.map(|e| e.found.len()).sum(),
        left_out: kind.collected.left_out,
        repository: place.name.clone(),
        took: started.elapsed(),
    })
}
