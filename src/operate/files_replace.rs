//! Takes a directory back to a backup of files where it lies.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::{Choice, choose};
use super::session::Session;
use crate::backup::files::selection;
use crate::config::Source;
use crate::err;
use crate::error::Result;
use crate::repo::root::aux_root::AuxRoot;
use crate::restore::content::read;
use crate::snapshot::content::ContentReader;
use crate::tree::explain;
use crate::tree::part::Part;
use crate::tree::replace::compare::{Change, Plan};
use crate::tree::replace::depot::Run;
use crate::tree::replace::journal::Restore;
use crate::tree::replace::{Done, Target, Wanted};
use crate::tree::selection::Selection;
use crate::tree::settle::Permit;

const KIND: &str = "files";
/// Examples of changes that are handed on.
const EXAMPLES: usize = 1000;

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Name of the set of files.
    pub name: String,
    /// Which backup.
    pub choice: Choice,
    /// Globs of the entries that are restored; everything without one.
    pub globs: Vec<String>,
    /// The directory; the configured source without it, and then what is replaced is kept.
    pub to: Option<PathBuf>,
    /// The things that any user may not make.
    pub permit: Permit,
    /// Whether files of equal length and time are compared byte by byte.
    pub compares_content: bool,
    /// Whether entries that the backup lacks are removed.
    pub deletes: bool,
    /// Whether the plan is carried out.
    pub is_confirmed: bool,
}

/// The changes of a restore, planned or made.
#[derive(Debug, Default)]
pub struct Changes {
    /// Entries that are made.
    pub created: u64,
    /// Entries that take the place of others.
    pub replaced: u64,
    /// Entries that the backup lacks, and that go.
    pub removed: u64,
    /// Directories that get other attributes.
    pub settled: u64,
    /// Entries that stay as they are.
    pub kept: u64,
    /// Bytes of the files that are made or replaced.
    pub content_bytes: u64,
    /// The first changes.
    pub examples: Vec<(Change, Vec<u8>)>,
}

impl Changes {
    /// Counts those of a plan.
    pub(super) fn of(plan: &Plan) -> Changes {
        let examples = plan.changes().take(EXAMPLES);
        Changes {
            created: plan.count(Change::Create),
            replaced: plan.count(Change::Replace),
            removed: plan.count(Change::Remove),
            settled: plan.count(Change::Settle),
            kept: plan.kept,
            content_bytes: plan.content_bytes,
            examples: examples
                .map(|(change, path)| (change, path.to_vec()))
                .collect(),
        }
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.created + self.replaced + self.removed + self.settled
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }
}

/// The result of a restore.
pub struct Replaced {
    /// The backup's root.
    pub root: AuxRoot,
    /// Examples of what could not be read when the backup was taken: an array of `path`, `part` and `reason`, or null.
    pub not_stored: serde_json::Value,
    /// The directory.
    pub to: PathBuf,
    /// The restore by which it can be undone, where it was carried out.
    pub run: Option<Run>,
    /// Restores that were interrupted, and are undone before.
    pub interrupted: Vec<Run>,
    /// The plan.
    pub changes: Changes,
    /// The result; things left out are those of the plan where nothing was done.
    pub done: Done,
    /// Whether the plan was carried out.
    pub is_carried_out: bool,
    /// How long it took.
    pub took: Duration,
}

/// Whether a directory has entries; one that does not exist has none.
///
/// # Errors
/// `TargetWrite` when it cannot be read.
pub fn has_entries(to: &Path) -> Result<bool> {
    match std::fs::exists(to) {
        Ok(false) => Ok(false),
        _ => Target::open(to)?.is_empty().map(|is_empty| !is_empty),
    }
}

/// Takes a directory back to a backup: makes and replaces what differs, and removes what the backup lacks where that is asked for.
///
/// # Errors
/// `NotFound`; `Refused` when the backup cannot tell what to remove; `Locked`; those of [`Target::stage`] and of the store.
pub fn replace(session: &Session, asked: &Asked) -> Result<Replaced> {
    let started = Instant::now();
    let to = match &asked.to {
        Some(to) => to.clone(),
        None => source(session, &asked.name)?,
    };
    let chosen = choose(session, &asked.name, &asked.choice)?;
    let place = (&chosen.scope, &chosen.id);
    let host = &session.host;
    let rules = rules(session, &asked.name)?;
    read(&chosen.repository, place, (host, chosen.planned), |open| {
        let lacking = open.root.content.incomplete_count;
        if asked.deletes && lacking > 0 {
            return Err(err!(
                Refused,
                "the backup lacks {lacking} things that could not be read, and --delete would remove them"
            )
            .hint("Nothing was changed. Leave --delete out, or take another backup: pitr info"));
        }
        let part = match asked.globs.is_empty() {
            true => None,
            false => Some(Part::find(open.snapshot, &asked.globs, open.tick)?),
        };
        let target = Target::open(&to)?;
        let interrupted = interrupted(&target, asked.is_confirmed, open.tick)?;
        if asked.is_confirmed {
            target.clean()?;
        }
        let removes = |path: &[u8]| match &rules {
            Some(rules) => explain::explain(&to, rules, path).map(|verdict| verdict.taken),
            None => Ok(true),
        };
        let wanted = Wanted {
            snapshot: open.snapshot,
            part: part.as_ref(),
            permit: asked.permit,
            trusts_times: !asked.compares_content,
            settles_directories: true,
            removes: if asked.deletes { Some(&removes) } else { None },
        };
        let mut contents = ContentReader::new(open.snapshot);
        host.progress.phase("compare", None);
        let mut plan = target.compare(&wanted, &mut contents, open.tick)?;
        let changes = Changes::of(&plan);
        let mut run = None;
        let done = match asked.is_confirmed {
            true => {
                host.progress.phase("restore", Some(changes.content_bytes));
                let staged =
                    target.stage(plan, asked.permit, &mut contents, (host, &mut *open.tick))?;
                if asked.to.is_none() && !changes.is_empty() {
                    run = Some(staged.run.clone());
                    let restore = Restore {
                        kind: KIND.to_owned(),
                        name: asked.name.clone(),
                        backup: chosen.id.clone(),
                        began: chosen.planned,
                    };
                    staged.switch_kept(restore, (host, &mut *open.tick))?
                } else {
                    staged.switch(open.tick)?
                }
            }
            false => Done {
                left_out: std::mem::take(&mut plan.left_out),
                ..Done::default()
            },
        };
        Ok(Replaced {
            root: open.root.clone(),
            not_stored: open.member["left_out"].clone(),
            to: to.clone(),
            run,
            interrupted,
            changes,
            done,
            is_carried_out: asked.is_confirmed,
            took: started.elapsed(),
        })
    })
}

/// The directory that is configured under a name.
///
/// # Errors
/// `Usage` for a name that is not configured, and for a source that is no directory.
pub fn source(session: &Session, name: &str) -> Result<PathBuf> {
    let settings = session.settings()?;
    match &settings.files_named(name)?.source {
        Source::Directory(directory) => Ok(directory.clone()),
        _ => Err(err!(
            Usage,
            "the source of \"{name}\" is no directory: nothing of it can be taken back in place"
        )
        .hint("Restore it into a directory: --to DIR")),
    }
}

/// Finds restores in place that were interrupted, and undoes them where that is confirmed.
pub(super) fn interrupted(
    target: &Target,
    is_confirmed: bool,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Run>> {
    let kept = target.kept()?.into_iter();
    let runs: Vec<Run> = kept
        .filter(|kept| !kept.is_complete)
        .map(|kept| kept.run)
        .collect();
    if is_confirmed {
        for run in runs.iter().rev() {
            target.undo(run)?.carry_out(false, tick)?;
        }
    }
    Ok(runs)
}

/// The rules of a configured directory. Entries that they leave out of backups are never removed.
fn rules(session: &Session, name: &str) -> Result<Option<Selection>> {
    let settings = session.settings()?;
    match settings.files_named(name) {
        Ok(files) if matches!(files.source, Source::Directory(_)) => selection(files).map(Some),
        _ => Ok(None),
    }
}
