//! Takes a place back to a backup of any kind of content: compares it, and carries the changes out where that is confirmed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::host::Host;
use crate::repo::root::aux_root::AuxRoot;
use crate::restore::content::Open;
use crate::tree::replace::compare::{Change, Plan};
use crate::tree::replace::depot::Run;
use crate::tree::replace::journal::Restore;
use crate::tree::replace::{Contents, Done, Target, Wanted};

/// Examples of changes that are handed on.
const EXAMPLES: usize = 1000;

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
    fn of(plan: &Plan) -> Changes {
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

/// A place that is taken back.
pub(super) struct Work<'w, 's> {
    pub(super) target: &'w Target,
    /// Its directory.
    pub(super) to: &'w Path,
    /// The entries, and how they are compared.
    pub(super) wanted: &'w Wanted<'w, 's>,
    /// The content of files.
    pub(super) contents: &'w mut dyn Contents,
    /// The record of a restore that can be undone; none of one that cannot.
    pub(super) restore: Option<Restore>,
    /// Whether the plan is carried out.
    pub(super) is_confirmed: bool,
}

/// Takes a place back to an open backup.
///
/// # Errors
/// Those of [`Target::stage`], and of what it is followed by.
pub(super) fn take_back(host: &Host, open: Open<'_>, work: Work<'_, '_>) -> Result<Replaced> {
    let started = Instant::now();
    let target = work.target;
    let interrupted = interrupted(target, work.is_confirmed, open.tick)?;
    if work.is_confirmed {
        target.clean()?;
    }
    host.progress.phase("compare", None);
    let mut plan = target.compare(work.wanted, work.contents, open.tick)?;
    let changes = Changes::of(&plan);
    let mut run = None;
    let done = match work.is_confirmed {
        true => {
            host.progress.phase("restore", Some(changes.content_bytes));
            let permit = work.wanted.permit;
            let staged = target.stage(plan, permit, work.contents, (host, &mut *open.tick))?;
            match work.restore {
                Some(restore) if !changes.is_empty() => {
                    run = Some(staged.run.clone());
                    staged.switch_kept(restore, (host, open.tick))?
                }
                _ => staged.switch(open.tick)?,
            }
        }
        false => {
            let mut left_out = std::mem::take(&mut plan.left_out);
            left_out.merge(std::mem::take(&mut plan.foreseen));
            Done {
                left_out,
                ..Done::default()
            }
        }
    };
    Ok(Replaced {
        root: open.root.clone(),
        not_stored: open.member["left_out"].clone(),
        to: work.to.to_owned(),
        run,
        interrupted,
        changes,
        done,
        is_carried_out: work.is_confirmed,
        took: started.elapsed(),
    })
}

/// Finds restores in place that were interrupted, and undoes them where that is confirmed.
fn interrupted(
    target: &Target,
    is_confirmed: bool,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Run>> {
    let kept = target.kept()?.into_iter();
    let kept = kept.filter(|kept| !kept.is_complete);
    let runs: Vec<Run> = kept.map(|kept| kept.run).collect();
    if is_confirmed {
        for run in runs.iter().rev() {
            target.undo(run)?.carry_out(false, tick)?;
        }
    }
    Ok(runs)
}
