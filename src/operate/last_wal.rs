//! The WAL that a stopped server wrote last. The repository may lack its end: where nothing but a receiver took it, which was away or behind.

use std::path::Path;

use super::archive_command::shell_word;
use super::opened::Opened;
use super::session::Session;
use crate::archive::backfill;
use crate::archive::datadir::DataDirectory;
use crate::archive::push;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::lsn::Lsn;
use crate::pg::page::LONG_HEADER;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
use crate::pg::timeline::{Ancestor, History, TimelineId};
use crate::repo::repository::Repository;
use crate::wal::increment::OpenSegment;
use crate::wal::inventory::{HistoryFile, Inventory, Timeline};
use crate::wal::remnant::Remnant;

/// Requires that a repository has all WAL of the server that ran last in this data directory, which a restore in place removes.
/// That of the timelines before its own counts, too: a standby may alone have what its lost primary wrote.
///
/// With `archive_mode` the server says so itself, by files that wait. Nothing is asked of a timeline that the repository does not know: a copy that
/// may not archive has one of its own.
///
/// # Errors
/// `Refused`; what the store says of the repository that is read.
pub fn require(session: &Session, data: &Path, opened: &Opened) -> Result<()> {
    for last in Last::all(data) {
        for parent in last.parents() {
            require_one(session, &parent, opened)?;
        }
        require_one(session, &last, opened)?;
    }
    Ok(())
}

/// Requires the WAL of one timeline.
fn require_one(session: &Session, last: &Last, opened: &Opened) -> Result<()> {
    let mut found = Found::default();
    found.add(last, &opened.reading.repository, &opened.inventory)?;
    if found.is_there {
        return Ok(());
    }
    let mut silent = None;
    // Another repository may have it, or alone know the timeline.
    for (name, other) in opened.reading.all_others(session) {
        if found.is_there {
            return Ok(());
        }
        let added = other.and_then(|other| {
            // A backup of another cluster of the name may be the newest there.
            let identifier = Some(opened.inventory.system_identifier);
            let (repository, followed) = (&other.repository, session.followed);
            match Inventory::read_as(repository, &other.name, identifier, followed) {
                Ok(inventory) => found.add(last, repository, &inventory),
                Err(e) if e.code() == Code::NotFound => Ok(()),
                Err(e) => Err(e),
            }
        });
        if let Err(e) = added {
            silent = silent.or(Some((name, e)));
        }
    }
    match found.missing.filter(|_| !found.is_there) {
        Some(first) => Err(last.lacking(first, silent)),
        None => Ok(()),
    }
}

/// The answers of the repositories.
#[derive(Default)]
struct Found {
    /// One of them has all of the WAL.
    is_there: bool,
    /// The first segment that one of them lacks; none where nobody knows the timeline.
    missing: Option<SegmentName>,
}

impl Found {
    fn add(&mut self, last: &Last, repository: &Repository, inventory: &Inventory) -> Result<()> {
        let timeline = inventory.timelines.get(&last.name.timeline);
        let Some(timeline) = timeline.filter(|timeline| last.is_of(timeline)) else {
            return Ok(());
        };
        match last.first_missing(repository, inventory, timeline)? {
            None => self.is_there = true,
            Some(name) => self.missing = self.missing.or(Some(name)),
        }
        Ok(())
    }
}

/// The end of the WAL of a stopped server, or of a timeline that it left.
struct Last {
    directory: DataDirectory,
    /// The segment, as pg_wal names it. The next timeline's first segment has the same WAL where this one was left.
    name: SegmentName,
    /// Whether the server left the timeline there.
    is_left: bool,
    number: SegmentNumber,
    end: Lsn,
    control: ControlFile,
}

impl Last {
    /// Reads pg_control; none where the last WAL of the server does not lie there. A standby may have the end of two timelines.
    fn all(data: &Path) -> Vec<Last> {
        let directory = DataDirectory::at(data);
        let Some(control) = directory.control().ok().flatten() else {
            return Vec::new();
        };
        let ends = match control.state {
            ClusterState::ShutDown => vec![(control.checkpoint_copy.timeline, end_of(&control))],
            // Its primary may be lost. Nothing marks streamed WAL as waiting, so nothing else asks for it.
            ClusterState::ShutDownInRecovery => ends_of_standby(directory.wal(), &control),
            _ => Vec::new(),
        };
        let last = |(timeline, (end, number)): (TimelineId, (Lsn, SegmentNumber))| {
            let name = number.name(timeline, control.wal_segment_size)?;
            let is_there = directory.wal().join(name.to_string()).exists();
            is_there.then(|| Last {
                directory: directory.clone(),
                name,
                is_left: false,
                number,
                end,
                control: control.clone(),
            })
        };
        ends.into_iter().filter_map(last).collect()
    }

    /// The timelines from which the server's own comes, the oldest first. Their WAL may lie here alone, as that of a primary that was lost.
    fn parents(&self) -> Vec<Last> {
        let id = self.name.timeline;
        let history = std::fs::read(self.directory.wal().join(id.history_file_name()));
        let history = history
            .ok()
            .and_then(|bytes| History::parse(id, &bytes).ok());
        let size = self.control.wal_segment_size;
        let of = |ancestor: &Ancestor| {
            let number = SegmentNumber::ending_at(ancestor.switch_lsn, size);
            Some(Last {
                directory: self.directory.clone(),
                name: number.name(ancestor.timeline, size)?,
                is_left: true,
                number,
                end: ancestor.switch_lsn,
                control: self.control.clone(),
            })
        };
        let ancestors = history.iter().flat_map(|history| history.ancestors());
        let parents = ancestors.filter_map(of);
        // No repository need be asked for what does not lie here.
        parents.filter(Last::lies).collect()
    }

    /// Whether the last segment or the one before it lies in pg_wal.
    fn lies(&self) -> bool {
        let before = self
            .name
            .before(self.name.timeline, self.control.wal_segment_size);
        self.end_lies() || before.is_some_and(|name| self.has_file(&name.to_string()))
    }

    /// Whether the last segment lies in pg_wal. A promotion renames that of the timeline that it leaves.
    fn end_lies(&self) -> bool {
        self.has_file(&self.name.to_string()) || self.has_file(&format!("{}.partial", self.name))
    }

    fn has_file(&self, name: &str) -> bool {
        self.directory.wal().join(name).exists()
    }

    /// Whether a repository has a segment with which a timeline begins where the server left this one: a promotion copies its WAL into it.
    fn is_in_next(&self, inventory: &Inventory) -> bool {
        inventory.timelines.values().any(|next| {
            let HistoryFile::Known(history) = &next.history else {
                return false;
            };
            let tail = next.tails.get(&self.number);
            let has =
                next.segments.contains(self.number) || tail.is_some_and(|tail| *tail >= self.end);
            has && history.switch_point(self.name.timeline) == Some(self.end)
        })
    }

    /// Whether the directory's timeline is this one, and not another one of the same number.
    fn is_of(&self, timeline: &Timeline) -> bool {
        is_of_server(self.directory.wal(), timeline)
    }

    /// The first segment of pg_wal that a repository lacks, and never had: no backup begins behind it.
    fn first_missing(
        &self,
        repository: &Repository,
        inventory: &Inventory,
        timeline: &Timeline,
    ) -> Result<Option<SegmentName>> {
        let is_elsewhere = self.is_left && (!self.end_lies() || self.is_in_next(inventory));
        let has_end = is_elsewhere || self.has_end(repository, inventory, timeline)?;
        let size = self.control.wal_segment_size;
        let mut missing = (!has_end).then_some(self.name);
        let mut number = self.number;
        while number.0 > 0 {
            let end = number.start_lsn(size);
            number = SegmentNumber(number.0 - 1);
            let name = number.name(self.name.timeline, size);
            let name = name.filter(|n| self.directory.wal().join(n.to_string()).exists());
            // A segment that is not there cannot be lost, and one before a backup is not needed.
            let Some(name) = name.filter(|_| !had(inventory, self.name.timeline, end)) else {
                break;
            };
            let tail = timeline.tails.get(&number);
            if !timeline.segments.contains(number) && tail.is_none_or(|tail| *tail < end) {
                missing = Some(name);
            }
        }
        Ok(missing)
    }

    /// Whether a repository has the WAL up to the end.
    fn has_end(
        &self,
        repository: &Repository,
        inventory: &Inventory,
        timeline: &Timeline,
    ) -> Result<bool> {
        let tail = timeline.tails.get(&self.number);
        if timeline.segments.contains(self.number)
            || tail.is_some_and(|tail| *tail >= self.end)
            || had(inventory, self.name.timeline, self.end)
        {
            return Ok(true);
        }
        if !timeline.partials.contains(&self.name) {
            return Ok(false);
        }
        let segment = OpenSegment {
            name: self.name,
            size: self.control.wal_segment_size,
            major: inventory.major,
        };
        match Remnant::find(repository, &inventory.layout()?, &segment) {
            Ok(remnant) => Ok(remnant.is_some_and(|remnant| remnant.valid_end() >= self.end)),
            Err(e) if e.code() == Code::Damaged => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn lacking(&self, first: SegmentName, silent: Option<(String, Error)>) -> Error {
        let data = self.directory.path().display();
        let wal = shell_word(&self.directory.wal().to_string_lossy());
        let kept = shell_word(&format!("{data}.kept"));
        let silent = silent.map_or_else(String::new, |(name, e)| {
            format!(" Repository \"{name}\", which may have it, could not be asked: {e}.")
        });
        let lost = match self.control.state {
            _ if self.is_left => {
                "Commits from before its promotion would be lost, and all behind them out of reach."
            }
            ClusterState::ShutDownInRecovery => {
                "Commits would be lost, unless its primary still has them: one that runs archives the rest with: select pg_switch_wal()."
            }
            _ => "Its last commits would be lost.",
        };
        err!(
            Refused,
            "the repository lacks the last WAL of the server of \"{data}\": from segment {first} on, up to {}",
            self.end
        )
        .hint(format!(
            "Nothing was changed. {lost}{silent} Let the receiver bring in the rest, or do it by hand; where they do not count, keep them elsewhere:\npitr wal backfill --from {wal}\nmkdir {kept} && mv {wal}/0* {kept}/"
        ))
    }
}

/// Whether the timeline of a server's pg_wal is this one. A repository that is not read here, for want of a key, tells no reasons.
fn is_of_server(wal: &Path, timeline: &Timeline) -> bool {
    let HistoryFile::Known(known) = &timeline.history else {
        return true;
    };
    let id = known.timeline();
    let own = std::fs::read(wal.join(id.history_file_name())).ok();
    let own = own.and_then(|bytes| History::parse(id, &bytes).ok());
    own.is_none_or(|own| push::is_same_history(&own, known))
}

/// Whether a backup was taken behind a position of a timeline, on a way that leads over it.
fn had(inventory: &Inventory, id: TimelineId, end: Lsn) -> bool {
    inventory.backups.iter().any(|backup| {
        let timeline = inventory.timelines.get(&backup.start_timeline);
        let holder = match timeline.map(|timeline| &timeline.history) {
            Some(HistoryFile::Known(history)) => history.holder(Lsn(end.0.saturating_sub(1))),
            _ => backup.start_timeline,
        };
        backup.start_lsn >= end && holder == id
    })
}

/// The end of what counts, with its segment: the checkpoint of the shutdown changes nothing. The segment before is the last where it begins one.
fn end_of(control: &ControlFile) -> (Lsn, SegmentNumber) {
    let size = control.wal_segment_size;
    let begin = SegmentNumber::of(control.checkpoint, size).start_lsn(size);
    let end = match control.checkpoint.0 - begin.0 <= LONG_HEADER as u64 {
        true => begin,
        false => control.checkpoint,
    };
    (end, SegmentNumber::ending_at(end, size))
}

/// The end of what a standby has received, with its segment and timeline: of the timeline that it replayed last, and of one that it has not replayed yet.
/// The first is only there where it goes beyond the switch to the other one.
fn ends_of_standby(wal: &Path, control: &ControlFile) -> Vec<(TimelineId, (Lsn, SegmentNumber))> {
    let size = control.wal_segment_size;
    let of_checkpoint = control.checkpoint_copy.timeline;
    let timeline = control.min_recovery_timeline.unwrap_or(of_checkpoint);
    let replayed = control.min_recovery_point.max(control.checkpoint);
    let own = (timeline, received(wal, (timeline, replayed), size));
    let newer = newest_received(wal, (timeline, replayed), size);
    let begin = newer.as_ref().and_then(History::parent);
    let Some((newer, (_, begin))) = newer.as_ref().zip(begin) else {
        return vec![own];
    };
    let id = newer.timeline();
    let mut ends = vec![own];
    let switch = newer.switch_point(timeline);
    ends.retain(|(_, (end, _))| switch.is_none_or(|switch| *end > switch));
    ends.push((id, received(wal, (id, begin), size)));
    ends
}

/// The end of what was received of a timeline, with its segment. One that holds commits back has replayed less.
fn received(
    wal: &Path,
    (timeline, replayed): (TimelineId, Lsn),
    size: SegmentSize,
) -> (Lsn, SegmentNumber) {
    let mut number = SegmentNumber::ending_at(replayed, size);
    let file = |number: SegmentNumber| {
        let name = number.name(timeline, size)?;
        let path = wal.join(name.to_string());
        backfill::is_of_name(&path, name).then_some((path, name))
    };
    while file(number.next()).is_some() {
        number = number.next();
    }
    let received = file(number).and_then(|(path, name)| backfill::end_of(&path, name));
    let end = replayed
        .max(number.start_lsn(size))
        .max(received.unwrap_or(replayed));
    (end, SegmentNumber::ending_at(end, size))
}

/// The newest timeline of which a standby has WAL that goes on from what it replayed. PostgreSQL follows the newest, too.
fn newest_received(
    wal: &Path,
    (replayed_on, replayed): (TimelineId, Lsn),
    size: SegmentSize,
) -> Option<History> {
    let read = |id: TimelineId| {
        let bytes = std::fs::read(wal.join(id.history_file_name())).ok()?;
        let history = History::parse(id, &bytes).ok()?;
        let (_, begin) = history.parent()?;
        let goes_on = history.switch_point(replayed_on)? >= replayed;
        let name = SegmentName::of(id, begin, size);
        let is_there = backfill::is_of_name(&wal.join(name.to_string()), name);
        (goes_on && is_there).then_some(history)
    };
    let files = std::fs::read_dir(wal).ok()?.flatten();
    let ids = files.filter_map(|file| match file.file_name().to_str()?.parse().ok()? {
        WalFileName::History(id) if id > replayed_on => Some(id),
        _ => None,
    });
    ids.filter_map(read).max_by_key(History::timeline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::craft::{self, Craft};
    use crate::pg::rmgr;
    use crate::pg::timeline::tli;
    use crate::pg::version::Major;

    #[test]
    fn r213_a_standby_counts_wal_of_a_timeline_that_it_has_not_replayed() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path();
        let mut craft = Craft::new(Major::V17);
        let data = craft::long_main_data(&[7; 100]);
        craft.record(rmgr::XLOG, 0x20, 0, &data);
        let (switch, end) = craft.record(rmgr::XLOG, 0x20, 0, &data);
        let size = craft.identity.segment_size;
        let start = craft.identity.start_lsn;
        craft.bytes.resize(1 << 20, 0);
        let newest = |replayed| {
            let found = newest_received(wal, (tli(1), replayed), size);
            found.map(|history| history.timeline())
        };
        let name = SegmentName::of(tli(2), switch, size).to_string();
        std::fs::write(wal.join(&name), &craft.bytes).unwrap();
        assert_eq!(newest(start), None, "no history says where it begins");
        let history = History::root(tli(1)).child(tli(2), switch, b"promoted");
        std::fs::write(wal.join("00000002.history"), history.to_bytes()).unwrap();
        assert_eq!(newest(start), Some(tli(2)));
        assert_eq!(received(wal, (tli(2), switch), size).0, end);
        // It has replayed WAL that the newer one does not go on from.
        assert_eq!(newest(Lsn(switch.0 + 8)), None);
        std::fs::remove_file(wal.join(name)).unwrap();
        assert_eq!(newest(start), None, "its WAL was not received");
    }

    #[test]
    fn a17_a_history_without_reasons_is_that_of_the_server_all_the_same() {
        let wal = tempfile::tempdir().unwrap();
        let id = TimelineId::new(2).unwrap();
        let of = |text: &[u8]| Timeline {
            history: HistoryFile::Known(History::parse(id, text).unwrap()),
            ..Timeline::default()
        };
        let own = b"1\t0/3000000\tno recovery target specified\n";
        std::fs::write(wal.path().join(id.history_file_name()), own).unwrap();
        // It is known so where the key to read it is not at hand.
        assert!(is_of_server(wal.path(), &of(b"1\t0/3000000\t\n")));
        assert!(is_of_server(wal.path(), &of(own)));
        let others: [&[u8]; 2] = [b"1\t0/4000000\t\n", b"1\t0/3000000\tanother\n"];
        assert!(
            others
                .iter()
                .all(|text| !is_of_server(wal.path(), &of(text)))
        );
        assert!(is_of_server(wal.path(), &Timeline::default()));
    }
}
