//! Deletes erasures that no backup needs any more.

use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::History;
use crate::repo::clock::MAY_DIFFER;
use crate::repo::erasure::{self, Erasure};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::inventory::Inventory;

/// An erasure that each backup of its own repository has.
struct Spent<'a> {
    layout: &'a ClusterLayout,
    name: String,
    /// Without its script.
    recorded: Erasure,
    stored: TimestampTz,
}

/// The outcome of a run on the erasures of a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// How many went.
    pub gone: u64,
    /// The other repositories for which some stay, as backups there cannot be read.
    pub unread: Vec<String>,
}

/// Deletes the erasures of a name that each of its backups has, whichever system identifier these have: a backup from before pg_upgrade needs
/// the erasures that came after it. One stays for a backup of one of the `others` that lacks it, unless that repository has the erasure itself.
/// Objects that the store keeps stay.
///
/// # Errors
/// Those of `others`, which is asked where one would go, and of a repository that cannot be read; other errors of the store.
pub fn forget(
    repository: &Repository,
    name: &str,
    others: impl FnOnce() -> Result<Vec<(String, Repository)>>,
    host: &Host,
) -> Result<Forgotten> {
    let clusters = repository.clusters(name)?;
    let store = repository.store();
    let mut spent = spent(repository, &clusters, host)?;
    let mut forgotten = Forgotten::default();
    if spent.is_empty() {
        return Ok(forgotten);
    }
    for (other, opened) in others()? {
        let unneeded = unneeded_in(&opened, name, spent)
            .map_err(|e| e.context(format!("ask repository \"{other}\" for them")))?;
        spent = unneeded.spent;
        if unneeded.is_unread {
            forgotten.unread.push(other);
        }
    }
    for one in spent {
        host.check_stop()?;
        match store.delete(&one.layout.erasure(&one.name)?) {
            Err(e) if matches!(e.code(), Code::Denied | Code::Locked) => {}
            deleted => forgotten.gone += u64::from(deleted?),
        }
    }
    Ok(forgotten)
}

/// The erasures that each backup of a repository has.
fn spent<'a>(
    repository: &Repository,
    clusters: &'a [ClusterLayout],
    host: &Host,
) -> Result<Vec<Spent<'a>>> {
    let store = repository.store();
    let mut found = Vec::new();
    for layout in clusters {
        let listed = erasure::list(store, layout)?;
        found.extend(listed.into_iter().map(|one| (layout, one)));
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let Some(backups) = backups(repository, clusters)?.filter(|all| !all.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut spent = Vec::new();
    for (layout, one) in found {
        host.check_stop()?;
        let stored = match one.meta {
            Some(meta) => Some(meta),
            None => store.head(&layout.erasure(&one.name)?)?,
        };
        let Some(stored) = stored else { continue };
        let recorded = match erasure::read(store, layout, &one.name) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            // Only its position tells which backups have it: a standby's backup that is younger may lack it, and so may a timeline.
            Err(e) if e.is_damage() || e.code() == Code::Key => continue,
            Err(e) => return Err(e),
        };
        let one = Spent {
            layout,
            name: one.name,
            recorded: Erasure {
                sql: String::new(),
                ..recorded
            },
            stored: stored.modified,
        };
        if !backups.iter().any(|backup| one.is_needed_by(backup)) {
            spent.push(one);
        }
    }
    Ok(spent)
}

/// The erasures that no backup of another repository needs from here.
struct Unneeded<'a> {
    spent: Vec<Spent<'a>>,
    /// Others stay, as a backup there cannot be read.
    is_unread: bool,
}

/// Those that no backup of another repository needs from here: it has the erasure itself, or each of its backups does. A restore from there asks every
/// repository.
fn unneeded_in<'a>(other: &Repository, name: &str, spent: Vec<Spent<'a>>) -> Result<Unneeded<'a>> {
    let (mut unneeded, mut lacking) = (Vec::new(), Vec::new());
    for one in spent {
        match one.is_in(other)? {
            true => unneeded.push(one),
            false => lacking.push(one),
        }
    }
    let mut is_unread = false;
    if !lacking.is_empty() {
        match backups(other, &other.clusters(name)?)? {
            Some(backups) => {
                lacking.retain(|one| !backups.iter().any(|backup| one.is_needed_by(backup)));
                unneeded.extend(lacking);
            }
            None => is_unread = true,
        }
    }
    Ok(Unneeded {
        spent: unneeded,
        is_unread,
    })
}

impl Spent<'_> {
    /// Whether another repository has it whole, as far as this host can read there.
    fn is_in(&self, other: &Repository) -> Result<bool> {
        match erasure::read(other.store(), self.layout, &self.name) {
            Err(e) if e.is_damage() || e.code() == Code::Key => Ok(false),
            read => Ok(read?.is_some_and(|read| {
                let sql = String::new();
                Erasure { sql, ..read } == self.recorded
            })),
        }
    }

    /// Whether a backup lacks it.
    fn is_needed_by(&self, backup: &Begun) -> bool {
        !backup.has(self.layout.system_identifier(), &self.recorded, self.stored)
    }
}

/// The beginning of a backup.
struct Begun {
    system_identifier: u64,
    time: TimestampTz,
    /// None of one that runs.
    position: Option<(History, Lsn)>,
}

impl Begun {
    /// Whether the backup has an erasure. Its own cluster's position tells; clocks where there is none.
    fn has(&self, identifier: u64, erasure: &Erasure, stored: TimestampTz) -> bool {
        match &self.position {
            Some((history, lsn))
                if erasure.lsn.is_some() && identifier == self.system_identifier =>
            {
                erasure.is_within(history, *lsn)
            }
            _ => self.time > erasure.time.max(stored).saturating_add(MAY_DIFFER),
        }
    }
}

/// The beginnings of all backups, also of those that run; none where one cannot be read: nothing goes then.
fn backups(repository: &Repository, clusters: &[ClusterLayout]) -> Result<Option<Vec<Begun>>> {
    let mut all = Vec::new();
    for layout in clusters {
        let system_identifier = layout.system_identifier();
        let inventory = match Inventory::read(repository, layout.name(), Some(system_identifier)) {
            // Somebody made a folder of that name.
            Err(e) if e.code() == Code::NotFound => continue,
            inventory => inventory?,
        };
        if !inventory.unreadable.is_empty() || !inventory.lost.is_empty() {
            return Ok(None);
        }
        for (id, _) in &inventory.begun {
            let Some(time) = id.time() else {
                return Ok(None);
            };
            all.push(Begun {
                system_identifier,
                time,
                position: None,
            });
        }
        // A compacted backup has a new id, and the time of its content.
        for backup in &inventory.backups {
            let history = inventory.history(backup.start_timeline);
            all.push(Begun {
                system_identifier,
                time: backup.start_time,
                position: history.ok().map(|history| (history, backup.start_lsn)),
            });
        }
    }
    Ok(Some(all))
}

/// Deletes one erasure on request; whether it was there.
///
/// # Errors
/// Those of the store.
pub fn remove(repository: &Repository, layout: &ClusterLayout, name: &str) -> Result<bool> {
    repository.store().delete(&layout.erasure(name)?)
}
