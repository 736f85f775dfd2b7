//! A restored copy becomes a cluster that may archive.
//!
//! Order: the new name is registered and the event recorded first, then settings are taken away, and the guard goes last: it is the commit
//! point, and repeating everything before it does no harm.

use super::Surroundings;
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{self, Guard, UNFINISHED, Which};
use crate::err;
use crate::error::{Code, Result};
use crate::pg::conf::Setting;
use crate::pg::control::ControlFile;
use crate::repo::event::{self, Event};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};

/// The subject of events that concern a cluster as a whole.
const SUBJECT: &str = "cluster";

/// What adopting came to.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// The guard that was removed, if there was one that could be read.
    pub guard: Option<Guard>,
    /// Whether there was one at all.
    pub was_guarded: bool,
    /// Settings that were taken away from postgresql.auto.conf.
    pub removed: Vec<Setting>,
    /// Recovery is yet to come, so its settings stay until it has ended.
    pub recovery_pending: bool,
    /// Repositories that know of it.
    pub recorded_in: Vec<String>,
}

/// Adopts the copy in `directory`. `cluster` is the name it was restored from, where the guard does not tell; `new_name` the one it goes on
/// under.
///
/// # Errors
/// `Refused` when the directory is none, or a restore is not finished; `Conflict` when another cluster has the new name; what a required
/// repository says when the new name cannot be registered.
pub fn adopt(
    directory: &DataDirectory,
    cluster: Option<&str>,
    new_name: Option<&str>,
    repositories: &[(Result<Repository>, bool)],
    around: &Surroundings<'_>,
) -> Result<Adopted> {
    let shown = directory.path().display();
    if directory.wal().join(UNFINISHED).exists() {
        return Err(
            err!(Refused, "the restore into \"{shown}\" is not finished")
                .hint("Nothing was changed. Run the restore again: it resumes."),
        );
    }
    let control = directory.control()?.ok_or_else(|| {
        err!(Refused, "\"{shown}\" is not a data directory")
            .hint("Nothing was changed. Name the copy's data directory with --pgdata.")
    })?;
    let was_guarded = std::fs::symlink_metadata(directory.wal().join(GUARD)).is_ok();
    let guard = match guard::read(directory) {
        Ok(guard) => guard,
        // A guard that cannot be read still is one; it names nothing.
        Err(e) if e.code() == Code::Damaged => None,
        Err(e) => return Err(e),
    };
    let from = guard.as_ref().map(|g| g.cluster.as_str()).or(cluster);
    let mut recorded_in = Vec::new();
    for (repository, required) in repositories {
        let done = match repository {
            Ok(repository) => record(repository, &control, from, new_name, around)
                .map(|is_recorded| (repository.store().location(), is_recorded)),
            Err(e) => Err(err!(Unreachable, "{e}").with_code(e.code())),
        };
        match done {
            Ok((location, true)) => recorded_in.push(location),
            Ok((location, false)) => around.progress.warn(&format!(
                "the adoption was not recorded in \"{location}\": system identifier {} is not registered there for {}",
                control.system_identifier,
                from.map_or_else(|| "a cluster of a known name".to_owned(), |name| format!("cluster \"{name}\""))
            )),
            // Without a registration the new name could not archive; the event alone is for the record.
            Err(e) if e.code() == Code::Conflict || (*required && new_name.is_some()) => {
                return Err(e);
            }
            Err(e) => around
                .progress
                .warn(&format!("the adoption was not recorded: {e}")),
        }
    }
    let recovery_pending = directory.has("recovery.signal") || directory.has("standby.signal");
    let which = match recovery_pending {
        true => Which::Clone,
        false => Which::All,
    };
    let removed = guard::take_away(directory, which, (around.random)())?;
    guard::remove_guard(directory)?;
    Ok(Adopted {
        guard,
        was_guarded,
        removed,
        recovery_pending,
        recorded_in,
    })
}

/// Registers the new name and writes the event; `false` when there is no cluster that it could be recorded of.
fn record(
    repository: &Repository,
    control: &ControlFile,
    from: Option<&str>,
    new_name: Option<&str>,
    around: &Surroundings<'_>,
) -> Result<bool> {
    let identifier = control.system_identifier;
    let old = from.map(|name| ClusterLayout::new(name, identifier));
    let old = old.transpose()?;
    let known = match &old {
        Some(layout) => repository.registration(layout)?,
        None => None,
    };
    if let Some(name) = new_name.filter(|name| Some(*name) != from) {
        register(repository, control, name, known.as_ref(), around)?;
    }
    let Some((layout, name)) = old.filter(|_| known.is_some()).zip(new_name.or(from)) else {
        return Ok(false);
    };
    let event = Event {
        event: "adopted".into(),
        as_name: Some(name.to_owned()),
        ..around.event(SUBJECT)
    };
    event::record(repository.store(), &layout, &event, (around.random)()).map(|_| true)
}

fn register(
    repository: &Repository,
    control: &ControlFile,
    name: &str,
    known: Option<&Registration>,
    around: &Surroundings<'_>,
) -> Result<()> {
    let identifier = control.system_identifier;
    let others = repository.registrations(name)?;
    if others.iter().any(|r| r.system_identifier != identifier) {
        return Err(err!(
            Conflict,
            "cluster name \"{name}\" belongs to another cluster in \"{}\"",
            repository.store().location()
        )
        .hint("Nothing was changed. Choose a name that is not in use."));
    }
    let major = known.map_or(control.major.number(), |r| r.major);
    repository.register(&Registration {
        name: name.to_owned(),
        system_identifier: identifier,
        major,
        segment_size_bytes: control.wal_segment_size.bytes(),
        block_size_bytes: control.block_size,
        wal_block_size_bytes: control.wal_block_size,
        first_seen: (around.clock)(),
        features: Vec::new(),
    })?;
    Ok(())
}
