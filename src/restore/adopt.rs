//! A restored copy becomes a cluster that may archive.
//!
//! Order: the new name is registered, the histories archived and the event recorded first, then settings are taken away, and the guard goes last: it is the commit
//! point, and repeating everything before it does no harm.

use std::fs::File;
use std::io::Read;

use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{self, Guard, SETTINGS, UNFINISHED, Which};
use crate::archive::push;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::conf::Setting;
use crate::pg::control::ControlFile;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::{History, TimelineId};
use crate::repo::container::Container;
use crate::repo::decision::SUBJECT;
use crate::repo::event::Event;
use crate::repo::event::Writer;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};

/// Length of a history file, at most.
const HISTORY_LIMIT_BYTES: u64 = 1 << 20;

/// Bytes compared at once.
const CHUNK: usize = 256 << 10;

/// The result of adopting.
#[derive(Debug, Clone, Default)]
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
/// `Refused` when the directory is none, a restore is not finished, or another server has taken its timeline; `Conflict` when another cluster has the new name; what a required
/// repository says when the new name cannot be registered.
pub fn adopt(
    directory: &DataDirectory,
    cluster: Option<&str>,
    new_name: Option<&str>,
    repositories: &[(Result<Repository>, bool)],
    host: &Host,
) -> Result<Adopted> {
    let shown = directory.path().display();
    if directory.wal().join(UNFINISHED).exists() {
        return Err(
            err!(Refused, "the restore into \"{shown}\" is not finished")
                .hint("Nothing was changed. Run the restore again: it resumes."),
        );
    }
    // Its next start may replay what the target leaves out.
    let record = guard::written(directory);
    if record.is_ok_and(|record| record.was_standby && record.recovered.is_none()) {
        return Err(
            err!(Refused, "the standby in \"{shown}\" has not recovered to its target yet").hint(
                "Nothing was changed. Run the command that began it again: pitr restore --from-standby.",
            ),
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
    if !was_guarded && new_name.is_none() && !directory.wal().join(SETTINGS).exists() {
        return Ok(Adopted::default());
    }
    let from = guard.as_ref().map(|g| g.cluster.as_str()).or(cluster);
    if was_guarded && let Some(name) = from.filter(|from| new_name.is_none_or(|new| new == *from)) {
        let layout = ClusterLayout::new(name, control.system_identifier)?;
        for repository in repositories.iter().filter_map(|(r, _)| r.as_ref().ok()) {
            let layout = repository.read_lives(&layout)?;
            check_timelines(directory, &control, repository, &layout)?;
        }
    }
    let copy = Copy {
        directory,
        control: &control,
        from,
        new_name,
    };
    let recorded_in = copy.record_all(repositories, host)?;
    let recovery_pending = directory.has("recovery.signal") || directory.has("standby.signal");
    let which = match recovery_pending {
        true => Which::Clone,
        false => Which::All,
    };
    let removed = guard::take_away(directory, which, host.random())?;
    guard::remove_guard(directory)?;
    Ok(Adopted {
        guard,
        was_guarded,
        removed,
        recovery_pending,
        recorded_in,
    })
}

/// Requires that the repository has no other server's WAL under the timeline that the copy took when it was promoted.
///
/// Two copies that were promoted before either could archive have the same number. Restored to the same target they have the same
/// history, too: then the first segment tells, which holds the end of recovery with its time. A segment that the server has not written to
/// its end yet, as its last checkpoint tells, is not compared.
fn check_timelines(
    directory: &DataDirectory,
    control: &ControlFile,
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<()> {
    for timeline in histories(directory)? {
        let (own, _) = history(directory, timeline)?;
        let stored = push::sound_history(repository, layout, timeline)?;
        let is_same = stored.is_none_or(|stored| push::is_same_history(&own, &stored));
        let is_current = timeline == control.checkpoint_copy.timeline;
        if !is_same
            || (is_current && !begins_as_stored(directory, control, repository, layout, &own)?)
        {
            return Err(taken(repository, timeline));
        }
    }
    Ok(())
}

/// Archives the histories of the copy's timelines: a server that does not archive marks them for nobody, so it never would.
fn put_histories(
    directory: &DataDirectory,
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<()> {
    for timeline in histories(directory)? {
        let (_, content) = history(directory, timeline)?;
        push::push_history(repository, layout, timeline, &content)?;
    }
    Ok(())
}

fn history(directory: &DataDirectory, timeline: TimelineId) -> Result<(History, Vec<u8>)> {
    let path = directory.wal().join(timeline.history_file_name());
    let failed = |e| Error::from_io(format!("read \"{}\"", path.display()), e);
    let mut content = Vec::new();
    let file = File::open(&path).map_err(failed)?;
    file.take(HISTORY_LIMIT_BYTES)
        .read_to_end(&mut content)
        .map_err(failed)?;
    let history = History::parse(timeline, &content)
        .map_err(|e| e.context(format!("read \"{}\"", path.display())))?;
    Ok((history, content))
}

fn taken(repository: &Repository, timeline: TimelineId) -> Error {
    err!(
        Refused,
        "timeline {} is that of another server in \"{}\"",
        timeline.decimal(),
        repository.store().location()
    )
    .hint("Nothing was changed. Two copies were promoted to the same timeline number, and the other one has archived. If that one is the cluster, this copy can go on under a name of its own.\nTo do so: pitr adopt --as NAME; else restore once more, which takes the next number.")
}

/// The timelines of which pg_wal has a history.
fn histories(directory: &DataDirectory) -> Result<Vec<TimelineId>> {
    let failed = |e| Error::from_io(format!("read \"{}\"", directory.wal().display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory.wal()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(Ok(WalFileName::History(timeline))) = name.to_str().map(str::parse) {
            found.push(timeline);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the first segment of the copy's own timeline is the stored one, as far as the copy has surely written it.
fn begins_as_stored(
    directory: &DataDirectory,
    control: &ControlFile,
    repository: &Repository,
    layout: &ClusterLayout,
    own: &History,
) -> Result<bool> {
    let Some((_, begin)) = own.parent() else {
        return Ok(true);
    };
    let size = control.wal_segment_size;
    let name = SegmentName::of(own.timeline(), begin, size);
    let Some(object) = repository.store().open(&layout.segment(name))? else {
        return Ok(true);
    };
    let start = name.start_lsn(size)?;
    let written = control
        .checkpoint
        .0
        .saturating_sub(start.0)
        .min(size.bytes());
    let Ok(file) = File::open(directory.wal().join(name.to_string())) else {
        // Recycled already.
        return Ok(true);
    };
    let mut left = file.take(written);
    let mut is_same = true;
    let mut buffer = vec![0; CHUNK];
    let read = Container::open(object).and_then(|stored| {
        // Without the key its hash can be compared, with that of a segment which the server has written to its end.
        if stored.is_opaque() && written == size.bytes() {
            let mut hasher = blake3::Hasher::new();
            let hashed = hasher.update_reader(&mut left);
            hashed.map_err(|e| Error::from_io(format!("read \"{name}\""), e))?;
            is_same = stored.compared(&hasher.finalize().into()).unwrap_or(true);
            return Ok(());
        }
        stored.read_body(&mut |piece| {
            for piece in piece.chunks(CHUNK) {
                let room = usize::try_from(left.limit()).unwrap_or(usize::MAX);
                let length = piece.len().min(room);
                let (Some(mine), Some(theirs)) = (buffer.get_mut(..length), piece.get(..length))
                else {
                    continue;
                };
                left.read_exact(mine)
                    .map_err(|e| Error::from_io(format!("read \"{name}\""), e))?;
                is_same &= mine == theirs;
            }
            Ok(())
        })
    });
    match read {
        // Verify tells. Without the key, a segment that the server still writes cannot be compared.
        Err(e) if matches!(e.code(), Code::Damaged | Code::Key) => Ok(true),
        Err(e) => Err(e),
        Ok(()) => Ok(is_same),
    }
}

/// A copy and the names it has and gets.
struct Copy<'a> {
    directory: &'a DataDirectory,
    control: &'a ControlFile,
    from: Option<&'a str>,
    new_name: Option<&'a str>,
}

impl Copy<'_> {
    /// Tells every repository; returns those that know of it.
    fn record_all(
        &self,
        repositories: &[(Result<Repository>, bool)],
        host: &Host,
    ) -> Result<Vec<String>> {
        let mut recorded_in = Vec::new();
        for (repository, required) in repositories {
            let done = match repository {
                Ok(repository) => self
                    .record(repository, host)
                    .map(|is_recorded| (repository.store().location(), is_recorded)),
                Err(e) => Err(err!(Unreachable, "{e}").with_code(e.code())),
            };
            match done {
                Ok((location, true)) => recorded_in.push(location),
                Ok((location, false)) => host.progress.warn(&format!(
                    "the adoption was not recorded in \"{location}\": system identifier {} is not registered there for {}",
                    self.control.system_identifier,
                    self.from.map_or_else(|| "a cluster of a known name".to_owned(), |name| format!("cluster \"{name}\""))
                )),
                // Without a registration the new name could not archive; the event alone is for the record.
                Err(e) if e.code() == Code::Conflict || (*required && self.new_name.is_some()) => {
                    return Err(e);
                }
                Err(e) => host
                    .progress
                    .warn(&format!("the adoption was not recorded: {e}")),
            }
        }
        Ok(recorded_in)
    }

    /// The timeline that the copy is on: after a promotion pg_control has it only from the next checkpoint on, pg_wal at once.
    fn timeline(&self) -> Result<TimelineId> {
        let known = self.control.checkpoint_copy.timeline;
        if self.directory.has("recovery.signal") || self.directory.has("standby.signal") {
            return Ok(known);
        }
        let mut newest = known;
        for timeline in histories(self.directory)? {
            let (history, _) = history(self.directory, timeline)?;
            if history.contains(known) {
                newest = newest.max(timeline);
            }
        }
        Ok(newest)
    }

    /// Registers the new name, archives the histories and writes the event; `false` when there is no cluster that it could be recorded of.
    fn record(&self, repository: &Repository, host: &Host) -> Result<bool> {
        let identifier = self.control.system_identifier;
        let layout_of = |name: &str| ClusterLayout::new(name, identifier);
        let old = self.from.map(layout_of).transpose()?;
        let known = match &old {
            Some(layout) => repository.registration(layout)?,
            None => None,
        };
        if let Some(name) = self.new_name.filter(|name| Some(*name) != self.from) {
            register(repository, self.control, name, known.as_ref(), host)?;
            put_histories(self.directory, repository, &layout_of(name)?)?;
        }
        let name = self.new_name.or(self.from);
        let Some((layout, name)) = old.filter(|_| known.is_some()).zip(name) else {
            return Ok(false);
        };
        if Some(name) == self.from {
            put_histories(self.directory, repository, &layout)?;
        }
        let writer = Writer::of(host);
        let event = Event {
            as_name: Some(name.to_owned()),
            timeline: Some(self.timeline()?.get()),
            ..writer.event("adopted", SUBJECT)
        };
        writer
            .record(repository.store(), &layout, &event)
            .map(|_| true)
    }
}

fn register(
    repository: &Repository,
    control: &ControlFile,
    name: &str,
    known: Option<&Registration>,
    host: &Host,
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
        first_seen: host.now(),
        features: Vec::new(),
        is_lost: false,
    })?;
    Ok(())
}
